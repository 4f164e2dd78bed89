"""The canary tells "nobody used anything" from "metering is broken"."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from flask_host import Host
from prometheus_client import CollectorRegistry

from flask_c2meter import CatalogueError, StoreUnavailable
from flask_c2meter.catalogue import CANARY, load
from flask_c2meter.emulator import StripeEmulator
from flask_c2meter.metrics import Collector
from flask_c2meter.testing import FrozenClock

MINUTE = timedelta(minutes=1)


@pytest.fixture
def new(
    new_host: Callable[..., Host], stripe_emulator: StripeEmulator, c2meter_clock: FrozenClock
) -> Callable[..., Host]:
    """Makes hosts that deliver to the emulator when told to."""

    def make(**config: Any) -> Host:
        return new_host(
            **{
                "C2METER_STRIPE_SECRET_KEY": "sk_test_1",
                "C2METER_STRIPE_BASE_URL": stripe_emulator.url,
                "C2METER_WORKER": "off",
                "C2METER_CLOCK": c2meter_clock,
                **config,
            }
        )

    return make


def canaries(host: Host) -> list[str]:
    return [event.key for event in host.events(CANARY.name)]


def metric(host: Host, name: str, leg: str) -> float | None:
    registry = CollectorRegistry()
    registry.register(Collector(host.app))
    return registry.get_sample_value(name, {"leg": leg})


def test_there_is_none_unless_asked_for(new: Callable[..., Host]) -> None:
    host = new()
    host.metering.worker.run_once()
    report = host.metering.status()
    assert canaries(host) == []
    assert report["canary"] == {}
    assert CANARY.name not in report["meters"]
    assert metric(host, "c2meter_canary_stale", "recorded") is None


def test_silence_without_a_worker_is_a_problem(new: Callable[..., Host]) -> None:
    host = new(C2METER_CANARY=60)
    report = host.metering.status()
    assert report["canary"] == {"recorded": {"age_s": None, "stale": True}}
    assert report["problems"] == ["no canary was ever recorded: does a worker run?"]
    assert metric(host, "c2meter_canary_stale", "recorded") == 1
    assert metric(host, "c2meter_canary_age_seconds", "recorded") is None


def test_a_worker_records_one_each_interval(
    new: Callable[..., Host], c2meter_clock: FrozenClock
) -> None:
    host = new(C2METER_CANARY=60)
    for advance in (timedelta(0), timedelta(0), MINUTE, MINUTE):
        c2meter_clock.advance(advance)
        host.metering.worker.run_once()
    c2meter_clock.advance(timedelta(seconds=20))
    report = host.metering.status()
    assert len(canaries(host)) == 3
    assert report["healthy"]
    assert report["canary"] == {"recorded": {"age_s": 20, "stale": False}}
    assert metric(host, "c2meter_canary_age_seconds", "recorded") == 20
    assert metric(host, "c2meter_canary_stale", "recorded") == 0
    assert "canary     recorded 20 s ago" in printed_status(host)


def printed_status(host: Host) -> str:
    return host.app.test_cli_runner().invoke(args=["c2meter", "status"]).output


def test_several_workers_record_it_once(new: Callable[..., Host]) -> None:
    one = new(C2METER_CANARY=60)
    other = new(C2METER_CANARY=60, C2METER_DATABASE_URL=one.metering.config.database_url)
    for host in (one, other, one):
        host.metering.worker.run_once()
    assert len(canaries(one)) == 1


def test_when_the_worker_stops_it_goes_stale(
    new: Callable[..., Host], c2meter_clock: FrozenClock
) -> None:
    host = new(C2METER_CANARY=60)
    host.metering.worker.run_once()
    c2meter_clock.advance(3 * MINUTE)
    assert host.metering.status()["healthy"]
    c2meter_clock.advance(MINUTE)
    report = host.metering.status()
    assert report["problems"] == ["the last canary was recorded 240 s ago: it is stuck"]
    assert metric(host, "c2meter_canary_stale", "recorded") == 1


def test_one_that_is_only_spilled_has_not_arrived(new: Callable[..., Host]) -> None:
    host = new(C2METER_CANARY=60)
    other = new(C2METER_DATABASE_URL=host.metering.config.database_url)
    with other.metering.store.writing(), pytest.raises(StoreUnavailable):
        host.metering.worker.run_once()
    report = host.metering.status()
    assert report["spill"]["pending"] == 1
    assert "no canary was ever recorded: does a worker run?" in report["problems"]

    host.metering.worker.run_once()  # replays it
    assert host.metering.status()["healthy"]
    assert len(canaries(host)) == 1


def test_it_is_nobodys_usage(new: Callable[..., Host], stripe_emulator: StripeEmulator) -> None:
    host = new(C2METER_CANARY=60)
    for _ in range(2):
        host.metering.worker.run_once()
    assert list(host.metering.store.customer_ids()) == []
    assert stripe_emulator.requests == []  # neither sent, nor its subscriptions looked up
    assert CANARY.name not in {usage.meter for usage in host.metering.usage("cus_1")}
    assert list(host.metering.store.verify()) == []


def test_what_was_recorded_is_still_proved_when_it_is_switched_off(
    new: Callable[..., Host],
) -> None:
    host = new(C2METER_CANARY=60)
    host.metering.worker.run_once()
    later = new(C2METER_DATABASE_URL=host.metering.config.database_url)
    assert list(later.metering.store.verify()) == []
    assert later.metering.status()["healthy"]


class TestToStripe:
    @pytest.fixture
    def host(self, new: Callable[..., Host]) -> Host:
        return new(C2METER_CANARY=60, C2METER_CANARY_CUSTOMER="cus_canary")

    def test_with_a_customer_of_its_own_it_goes_all_the_way(
        self, host: Host, stripe_emulator: StripeEmulator, c2meter_clock: FrozenClock
    ) -> None:
        host.metering.worker.run_once()
        c2meter_clock.advance(timedelta(seconds=5))
        assert stripe_emulator.meter_total(CANARY.name, "cus_canary") == 1
        report = host.metering.status()
        assert report["canary"] == {
            "recorded": {"age_s": 5, "stale": False},
            "delivered": {"age_s": 5, "stale": False},
        }
        assert report["healthy"]
        assert list(host.metering.store.customer_ids()) == []
        asked = {request.path for request in stripe_emulator.requests}
        assert asked == {"/v1/billing/meter_events"}

    def test_what_is_sent_is_not_called_kept(self, host: Host) -> None:
        host.metering.worker.run_once()
        result = host.app.test_cli_runner().invoke(args=["c2meter", "status"])
        (row,) = (line for line in result.output.splitlines() if line.startswith(CANARY.name))
        assert row.split() == [CANARY.name, "1", "0", "0", "1", "0", "0", "0"]

    def test_a_broken_delivery_is_seen_without_any_usage(
        self, host: Host, stripe_emulator: StripeEmulator, c2meter_clock: FrozenClock
    ) -> None:
        host.metering.worker.run_once()
        stripe_emulator.accept_keys(["sk_test_other"])
        for _ in range(4):
            c2meter_clock.advance(MINUTE)
            host.metering.worker.run_once()
        report = host.metering.status()
        assert report["canary"] == {
            "recorded": {"age_s": 0, "stale": False},
            "delivered": {"age_s": 240, "stale": True},
        }
        assert "the last canary was delivered 240 s ago: it is stuck" in report["problems"]
        assert metric(host, "c2meter_canary_stale", "delivered") == 1


def test_no_meter_of_a_catalogue_may_be_called_so() -> None:
    meter = {"event_type": "a.b", "unit": "b", "aggregation": "sum"}
    with pytest.raises(CatalogueError, match="C2METER_CANARY"):
        load({"meters": {CANARY.name: meter}})
