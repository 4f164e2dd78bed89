"""Usage that grows while the response streams: reserved before the first byte, recorded as it goes.

Also in ``tests/faults``: a process killed in the middle of a stream.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from decimal import Decimal
from typing import Any
from wsgiref.util import FileWrapper

import pytest
from flask import Response, send_file, stream_with_context
from flask_host import ALICE, Host
from werkzeug.test import EnvironBuilder
from wsgi_rig import WsgiHost

from flask_c2meter import UsageEvent, current_usage, metered
from flask_c2meter.errors import InvalidEvent, StoreUnavailable
from flask_c2meter.testing import FrozenClock


def serve(host: Host, make: Callable[[], Iterator[str]], first: object = 0, **more: Any) -> str:
    """The answer of a view that streams what *make* yields, with *first* known before that."""

    def view() -> Response:
        current_usage.value = first  # type: ignore[assignment]
        return Response(stream_with_context(make()))

    headers = more.pop("headers", {})
    host.route(view, **more)
    return host.client().get("/", headers=headers).text


def spoken(*values: object) -> Callable[[], Iterator[str]]:
    """Streams as many chunks, and sets the value to each before it."""

    def make() -> Iterator[str]:
        for value in values:
            current_usage.value = value  # type: ignore[assignment]
            yield "."

    return make


def parts(host: Host | WsgiHost) -> list[tuple[str, Decimal, tuple[str, ...]]]:
    """Prefix of the key, value and flags of each event."""
    return [(kind(event), event.value, event.flags) for event in host.events()]


def kind(event: UsageEvent) -> str:
    return event.key.rpartition(":")[0]


class TestFlask:
    def test_what_is_known_at_the_end_is_billed(self, host: Host) -> None:
        assert serve(host, spoken(2, 5, 9)) == "..."
        assert host.total("sign_operations") == 9
        assert host.rejections == []

    def test_a_reservation_is_recorded_before_the_first_byte(self, host: Host) -> None:
        seen = []

        def make() -> Iterator[str]:
            seen.append(parts(host))
            current_usage.value = 7
            yield "."

        serve(host, make)
        assert seen == [[("", 0, ("reserved",))]]
        assert parts(host) == [("", 0, ("reserved",)), ("part:1", 7, ())]

    def test_what_was_known_before_is_only_added_to(self, host: Host) -> None:
        serve(host, spoken(4, 10), first=4)
        assert parts(host) == [("", 4, ()), ("part:1", 6, ())]

    def test_without_a_value_the_default_grows(self, host: Host) -> None:
        serve(host, spoken(3), first=None)
        assert parts(host) == [("", 1, ()), ("part:1", 2, ())]

    def test_the_draft_itself_works_without_a_context(self, host: Host) -> None:
        def view() -> Iterator[str]:
            current_usage.value = 0
            usage = current_usage._get_current_object()  # type: ignore[attr-defined]

            def make() -> Iterator[str]:
                usage.value += 2
                yield "."
                usage.value += 2

            return make()

        host.route(view)
        assert host.client().get("/").text == "."
        assert host.total("sign_operations") == 4

    def test_each_part_is_of_the_same_request(self, host: Host) -> None:
        serve(host, spoken(1, 2), headers={"X-Request-ID": "r-1", "Idempotency-Key": "k"})
        assert [event.key for event in host.events()] == ["k", "part:1:k", "part:2:k"]
        assert {event.request_id for event in host.events()} == {"r-1"}

    def test_properties_said_late_are_with_the_last_part(self, host: Host) -> None:
        def make() -> Iterator[str]:
            current_usage.value = 1
            current_usage.update(asset_type="video")
            yield "."

        serve(host, make)
        reservation, part = host.events()
        assert "asset_type" not in reservation.properties
        assert part.properties == {"manifest_id": "m-1", "asset_type": "video"}

    def test_the_time_of_a_part_is_its_own(
        self, new_host: Callable[..., Host], c2meter_clock: FrozenClock
    ) -> None:
        host = new_host(C2METER_CLOCK=c2meter_clock)

        def make() -> Iterator[str]:
            c2meter_clock.advance(timedelta(minutes=3))
            current_usage.value = 1
            yield "."

        serve(host, make)
        reservation, part = host.events()
        assert part.occurred_at - reservation.occurred_at == timedelta(minutes=3)

    def test_many_chunks_make_few_parts(self, host: Host) -> None:
        started = time.monotonic()
        serve(host, spoken(*range(1, 301)))
        elapsed_s = time.monotonic() - started
        assert host.total("sign_operations") == 300
        # One at once, one each second, one at the end.
        assert len(parts(host)) <= 1 + 2 + elapsed_s

    def test_a_peak_grows_to_the_highest(self, host: Host) -> None:
        def make() -> Iterator[str]:
            for value in ("1.5", "4.25"):
                current_usage.value = value
                yield "."

        serve(host, make, meter="storage_gb")
        assert host.total("storage_gb") == Decimal("4.25")

    def test_what_fails_half_way_is_billed_so_far(self, host: Host) -> None:
        def make() -> Iterator[str]:
            current_usage.value = 3
            yield "."
            current_usage.value = 5
            raise RuntimeError("broke off")

        host.app.testing = True
        with pytest.raises(RuntimeError, match="broke off"):
            serve(host, make)
        assert host.total("sign_operations") == 5

    def test_a_client_that_leaves_is_billed_so_far(self, host: Host) -> None:
        def view() -> Response:
            current_usage.value = 0
            return Response(stream_with_context(spoken(*range(1, 10))()))

        host.route(view)
        environ = EnvironBuilder("/", headers=ALICE).get_environ()
        body: Any = host.app(environ, lambda *_: None)
        chunks = iter(body)
        assert [next(chunks), next(chunks), next(chunks)] == [b"."] * 3
        body.close()
        assert host.total("sign_operations") == 3

    def test_what_a_stream_says_while_it_is_closed_counts(self, host: Host) -> None:
        def make() -> Iterator[str]:
            sent = 0
            try:
                while True:
                    sent += 1
                    yield "."
            finally:
                current_usage.value = sent

        def view() -> Response:
            current_usage.value = 0
            return Response(stream_with_context(make()))

        host.route(view)
        body: Any = host.app(EnvironBuilder("/", headers=ALICE).get_environ(), lambda *_: None)
        chunks = iter(body)
        assert [next(chunks), next(chunks)] == [b".", b"."]
        body.close()
        assert host.total("sign_operations") == 2

    def test_one_that_is_passed_through_grows_too(self, host: Host) -> None:
        def view() -> Response:
            current_usage.value = 0
            made = (chunk.encode() for chunk in spoken(2, 5)())
            return Response(stream_with_context(made), direct_passthrough=True)

        host.route(view)
        assert host.client().get("/").text == ".."
        assert host.total("sign_operations") == 5

    def test_a_stream_may_still_be_cancelled(self, host: Host) -> None:
        def make() -> Iterator[str]:
            current_usage.value = 3
            yield "."
            current_usage.value = 8
            current_usage.cancel()
            yield "."

        assert serve(host, make) == ".."
        assert host.total("sign_operations") == 0
        reason = {event.properties.get("reason") for event in host.events() if event.units == 0}
        assert "not billed after all" in reason

    @pytest.mark.parametrize("first", [0, 2, None])
    def test_the_filter_decides_at_the_end(self, host: Host, first: int | None) -> None:
        def make() -> Iterator[str]:
            current_usage.value = 4
            yield "."
            current_usage.update(verification_result=False)

        serve(host, make, first, meter="verify_operations", properties={"manifest_id": "m"})
        assert host.total("verify_operations") == 0
        assert list(host.metering.store.verify()) == []

    def test_bill_on_stands_above_the_filter(self, host: Host) -> None:
        def make() -> Iterator[str]:
            current_usage.value = 4
            current_usage.update(manifest_id="m", verification_result=False)
            yield "."

        serve(host, make, meter="verify_operations", bill_on=lambda response: True)
        assert host.total("verify_operations") == 4

    def test_a_reservation_may_name_the_rest_later(self, host: Host) -> None:
        def make() -> Iterator[str]:
            current_usage.update(manifest_id="m-2")
            current_usage.value = 1
            yield "."

        serve(host, make, properties={})
        assert [flags for _, _, flags in parts(host)] == [("reserved",), ()]
        assert host.rejections == []

    def test_what_it_never_named_is_flagged_at_the_end(self, host: Host) -> None:
        serve(host, spoken(1), properties={})
        assert [flags for _, _, flags in parts(host)] == [("reserved",), ("incomplete",)]
        assert host.rejections == ["incomplete"]

    def test_whoever_reads_it_before_it_leaves_has_its_end(
        self, host: Host, caplog: pytest.LogCaptureFixture
    ) -> None:
        def size(response: Response) -> int:
            return len(response.get_data())

        assert serve(host, spoken(2, 5), properties=lambda r: {"file_size_bytes": size(r)}) == ".."
        assert host.total("sign_operations") == 5
        assert host.event().properties == {"file_size_bytes": 2}
        assert not [record for record in caplog.records if record.levelname == "ERROR"]

    def test_silence_is_recorded_as_such(self, host: Host) -> None:
        serve(host, lambda: iter(["."]))
        assert parts(host) == [("", 0, ("reserved",)), ("part:1", 0, ())]

    @pytest.mark.parametrize("wrong", [2.5, -1, True, "many", 10**16])
    def test_a_wrong_value_at_the_end_is_flagged(self, host: Host, wrong: object) -> None:
        assert serve(host, spoken(wrong)) == "."
        assert parts(host) == [("", 0, ("reserved",)), ("part:1", 0, ("invalid",))]
        assert host.rejections == ["invalid"]

    def test_a_wrong_value_on_the_way_is_not(self, host: Host) -> None:
        serve(host, spoken(2.5, 3))
        assert parts(host) == [("", 0, ("reserved",)), ("part:1", 3, ())]

    def test_what_was_recorded_is_not_taken_back(self, host: Host) -> None:
        serve(host, spoken(6, 2))
        assert parts(host)[1:] == [("part:1", 6, ()), ("part:2", 0, ("invalid",))]
        assert host.total("sign_operations") == 6

    def test_a_repeated_request_grows_nothing(self, host: Host) -> None:
        key = {"Idempotency-Key": "k"}
        serve(host, spoken(6), headers=key)
        assert host.client().get("/", headers=key).text == "."
        assert host.total("sign_operations") == 6
        assert len(host.events()) == 2

    def test_a_client_cannot_take_the_key_of_a_part(self, host: Host) -> None:
        host.route(lambda: "", path="/other")
        answer = host.client().get("/other", headers={"Idempotency-Key": "part:1:k"})
        assert answer.status_code == 400
        with pytest.raises(InvalidEvent):
            host.metering.record("api_calls", "cus_alice", key="part:1:k")

    def test_meters_that_count_events_do_not_grow(self, host: Host) -> None:
        assert serve(host, spoken(3), first=None, meter="support_requests") == "."
        assert parts(host) == [("", 1, ())]

    def test_what_is_not_billed_does_not_grow(self, host: Host) -> None:
        def view() -> tuple[Response, int]:
            current_usage.value = 0
            usage = current_usage._get_current_object()  # type: ignore[attr-defined]

            def make() -> Iterator[str]:
                usage.value = 3
                yield "."

            return Response(make()), 500

        host.route(view)
        host.client().get("/")
        assert host.events() == []

    def test_a_file_is_left_to_the_server(self, host: Host) -> None:
        host.route(lambda: send_file(io.BytesIO(b"file"), "text/plain"))
        environ = EnvironBuilder("/", headers=ALICE).get_environ()
        environ["wsgi.file_wrapper"] = FileWrapper
        assert isinstance(host.app(environ, lambda *_: None), FileWrapper)

    def test_of_two_meters_the_inner_one_grows(self, host: Host) -> None:
        def view() -> Response:
            current_usage.value = 0
            return Response(stream_with_context(spoken(3)()))

        inner = metered("sign_operations", properties={"manifest_id": "m"}, rate_limit=False)
        host.route(inner(view), "api_calls")
        assert host.client().get("/").text == "."
        assert host.total("sign_operations") == 3
        assert host.total("api_calls") == 1

    def test_usage_that_cannot_be_recorded_for_a_while_is_recorded_later(self, host: Host) -> None:
        complete = type(host.metering).complete
        fails = iter([StoreUnavailable("for a moment")])

        class Flaky(type(host.metering)):  # type: ignore[misc]
            def complete(self, operation: Any, valid: Any) -> bool:
                if operation.key.startswith("part:"):
                    for failure in fails:
                        raise failure
                return complete(self, operation, valid)

        host.metering.__class__ = Flaky
        assert serve(host, spoken(4, 6)) == ".."
        assert host.total("sign_operations") == 6


class TestStatus:
    def test_streams_that_never_said_are_counted(
        self, new_host: Callable[..., Host], c2meter_clock: FrozenClock
    ) -> None:
        host = new_host(C2METER_CLOCK=c2meter_clock, C2METER_WORKER="off")

        def view() -> Response:
            current_usage.value = 0
            return Response(iter([".", "never asked for"]))

        host.route(view)
        environ = EnvironBuilder("/", headers=ALICE).get_environ()
        body: Any = host.app(environ, lambda *_: None)
        next(iter(body))

        def silent() -> int:
            return int(host.metering.status()["meters"]["sign_operations"]["silent_streams"])

        c2meter_clock.advance(timedelta(minutes=15))
        assert silent() == 0
        c2meter_clock.advance(timedelta(seconds=1))
        assert silent() == 1
        notes = host.metering.status()["notes"]
        assert "sign_operations: 1 streams broke off before they said how much" in "".join(notes)
        body.close()
        assert silent() == 0


class TestMiddleware:
    def serve(self, host: WsgiHost, app: Any) -> list[bytes]:
        """What is sent of *app*'s answer, without a validator, which hides what it returns."""
        host.middleware._app = app
        environ = EnvironBuilder("/sign", method="POST", headers=ALICE).get_environ()
        body: Any = host.middleware(environ, lambda *_: lambda __: None)
        try:
            return list(body)
        finally:
            if hasattr(body, "close"):
                body.close()

    @pytest.fixture
    def host(self, new_wsgi_host: Callable[..., WsgiHost]) -> WsgiHost:
        return new_wsgi_host()

    def test_the_apps_iterable_grows(self, host: WsgiHost) -> None:
        def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
            usage = environ["c2meter.usage"]
            usage.value = 0
            usage.update(manifest_id="m")

            def make() -> Iterator[bytes]:
                for value in (2, 5):
                    usage.value = value
                    yield b"."

            start_response("200 OK", [("Content-Type", "text/plain")])
            return make()

        assert self.serve(host, app) == [b".", b"."]
        assert parts(host) == [
            ("", 0, ("reserved",)),
            ("part:1", 2, ()),
            ("part:2", 3, ()),
        ]

    def test_a_generator_is_reserved_with_its_first_chunk(self, host: WsgiHost) -> None:
        closed = []

        def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
            usage = environ["c2meter.usage"]
            usage.update(manifest_id="m")
            start_response("200 OK", [("Content-Type", "text/plain")])
            try:
                for value in (0, 2, 5):
                    usage.value = value
                    yield b"."
                usage.value = 6
            finally:
                closed.append(True)

        assert self.serve(host, app) == [b".", b".", b"."]
        assert host.total("sign_operations") == 6
        assert parts(host)[0] == ("", 0, ("reserved",))
        assert closed == [True]

    @pytest.mark.parametrize("wrapper", [None, FileWrapper, lambda file, size=8192: (file, size)])
    def test_so_does_one_that_is_no_iterator(self, host: WsgiHost, wrapper: Any) -> None:
        class Streaming:  # as Django's is
            def __init__(self, usage: Any) -> None:
                self.usage = usage

            def __iter__(self) -> Iterator[bytes]:
                for value in (2, 5):
                    self.usage.value = value
                    yield b"."

        def app(environ: dict[str, Any], start_response: Any) -> Streaming:
            environ["c2meter.usage"].value = 0
            environ["wsgi.file_wrapper"] = wrapper
            start_response("200 OK", [("Content-Type", "text/plain")])
            return Streaming(environ["c2meter.usage"])

        assert self.serve(host, app) == [b".", b"."]
        assert host.total("sign_operations") == 5

    def test_so_does_what_is_written(self, host: WsgiHost) -> None:
        def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
            usage = environ["c2meter.usage"]
            usage.value = 0
            write = start_response("200 OK", [("Content-Type", "text/plain")])
            for value in (2, 5):
                usage.value = value
                write(b".")
            usage.value = 6
            return []

        self.serve(host, app)
        assert host.total("sign_operations") == 6

    def test_a_body_that_is_all_there_does_not(self, host: WsgiHost) -> None:
        def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
            environ["c2meter.usage"].value = 0
            environ["c2meter.usage"].update(manifest_id="m")
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [b"."]

        self.serve(host, app)
        assert parts(host) == [("", 0, ())]
