"""What happens is announced to whoever listens; a listener that fails stops nobody."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from blinker import NamedSignal
from flask import Flask
from flask_host import ALICE, Host

import flask_c2meter
from flask_c2meter import current_usage, usage_delivered, usage_recorded, usage_rejected
from flask_c2meter.emulator import StripeEmulator


@contextmanager
def heard(signal: NamedSignal, sender: Flask) -> Iterator[list[dict[str, Any]]]:
    """What *signal* says of *sender* within the block."""
    messages: list[dict[str, Any]] = []

    def listen(sender: Flask, **payload: Any) -> None:
        messages.append(payload)

    with signal.connected_to(listen, sender=sender):
        yield messages


def test_their_names_are_the_public_ones() -> None:
    names = ("job_finished", "usage_alert", "usage_delivered", "usage_recorded", "usage_rejected")
    for name in names:
        assert getattr(flask_c2meter, name).name == name.replace("_", "-")


class TestUsageRecorded:
    def test_the_app_sends_each_event_once_it_is_durable(self, host: Host) -> None:
        stored: list[Any] = []

        def listen(sender: Flask, event: Any, **extra: Any) -> None:
            stored.append((event, [known.key for known in host.events()]))

        host.route(lambda: "")
        with usage_recorded.connected_to(listen, sender=host.app):
            host.client().get("/")
            host.metering.record("api_calls", "cus_1", key="k")
            host.metering.record("api_calls", "cus_1", key="k")
        assert [event.meter for event, _ in stored] == ["sign_operations", "api_calls"]
        assert all(event.key in keys for event, keys in stored)

    def test_of_another_app_is_not_heard(self, new_host: Callable[..., Host]) -> None:
        one, two = new_host(), new_host()
        with heard(usage_recorded, one.app) as messages:
            two.metering.record("api_calls", "cus_1")
        assert messages == []

    def test_what_is_not_billed_is_not_announced(self, host: Host) -> None:
        host.route(lambda: ("", 404))
        with heard(usage_recorded, host.app) as messages:
            host.client().get("/")
            host.client().head("/")
        assert messages == []

    def test_a_listener_that_raises_is_logged_and_stops_neither_the_others_nor_the_view(
        self, host: Host, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fail(sender: Flask, **payload: Any) -> None:
            raise LookupError("a listener's own problem")

        host.route(lambda: "done")
        with (
            usage_recorded.connected_to(fail, sender=host.app),
            heard(usage_recorded, host.app) as messages,
            usage_recorded.connected_to(lambda sender, **payload: 1 / 0, sender=host.app),
        ):
            assert host.client().get("/").text == "done"
        assert len(messages) == 1
        assert caplog.text.count("event=receiver_failed signal=usage-recorded") == 2


class TestUsageRejected:
    @pytest.mark.parametrize(
        ("view_says", "reason"),
        [
            ({"properties": {}}, "incomplete"),
            ({"properties": {"manifest_id": "m"}, "value": -1}, "invalid"),
            ({"properties": {}, "value": -1}, "invalid"),
        ],
    )
    def test_kept_in_part(self, host: Host, view_says: dict[str, Any], reason: str) -> None:
        def view() -> str:
            current_usage.update(**view_says["properties"])
            current_usage.value = view_says.get("value")
            return "done"

        host.route(view, properties=None)
        with heard(usage_rejected, host.app) as messages:
            assert host.client().get("/").text == "done"
        (message,) = messages
        assert message.pop("event").key == host.event().key
        assert message == {"customer": "cus_alice", "meter": "sign_operations", "reason": reason}

    def test_a_listener_that_raises_does_not_break_the_view(self, host: Host) -> None:
        host.route(lambda: "done", properties={})
        with usage_rejected.connected_to(lambda sender, **payload: 1 / 0, sender=host.app):
            assert host.client().get("/").text == "done"

    def test_an_analytics_event_that_cannot_be_kept_is_dropped_and_the_host_goes_on(
        self, new_host: Callable[..., Host], tmp_path: Path
    ) -> None:
        (tmp_path / "a file").write_text("where a folder is needed")
        host = new_host(
            C2METER_DATABASE_URL=f"sqlite:///{tmp_path}/a file/c2meter.sqlite",
            C2METER_ON_STORE_FAILURE="refuse",
        )
        host.route(lambda: "done", "api_calls")
        with heard(usage_rejected, host.app) as messages:
            assert host.client(ALICE).get("/").text == "done"
        assert messages == [
            {"customer": "cus_alice", "meter": "api_calls", "reason": "dropped", "event": None}
        ]


def test_usage_delivered_says_what_stripe_has(
    new_host: Callable[..., Host], stripe_emulator: StripeEmulator
) -> None:
    host = new_host(
        C2METER_STRIPE_SECRET_KEY="sk_test_1",
        C2METER_STRIPE_BASE_URL=stripe_emulator.url,
        C2METER_WORKER="off",
    )
    host.metering.record("sign_operations", "cus_1", value=3, manifest_id="m-1")
    with heard(usage_delivered, host.app) as messages:
        assert (
            host.app.test_cli_runner().invoke(args=["c2meter", "worker", "--once"]).exit_code == 0
        )
    (message,) = messages
    (event,) = stripe_emulator.events
    assert message["shipment"].identifier == event.identifier
    assert (message["shipment"].customer, message["shipment"].value) == ("cus_1", 3)
