"""Sending shipments and reading totals: what each answer of Stripe, or its absence, means.

Answers are given at the HTTP boundary (``responses``); everything about sockets, time and
processes runs against a small local server.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import responses
import stripe

from flask_c2meter.emulator import StripeEmulator
from flask_c2meter.errors import ConfigError, GatewayError
from flask_c2meter.gateway import Gateway
from flask_c2meter.shipment import DeadReason, Outcome, Shipment, Verdict
from flask_c2meter.transports import StreamTransport, V1Transport, transport

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
SECRET = "sk_test_canary"
V1_URL = "https://api.stripe.com/v1/billing/meter_events"
METERS_URL = "https://api.stripe.com/v1/billing/meters"
SUMMARIES_URL = f"{METERS_URL}/mtr_1/event_summaries"
SESSION_URL = "https://api.stripe.com/v2/billing/meter_event_session"
STREAM_URL = "https://meter-events.stripe.com/v2/billing/meter_event_stream"
RECEIPT = {"object": "billing.meter_event", "identifier": "ship-0"}


def shipment(number: int = 0, value: int = 3) -> Shipment:
    return Shipment(f"ship-{number}", "cus_1", "verify_operations", value, NOW, attempts=2)


@pytest.fixture
def stripe_http() -> Iterator[responses.RequestsMock]:
    with responses.RequestsMock(assert_all_requests_are_fired=False) as mock:
        yield mock


@pytest.fixture
def gateway() -> Gateway:
    return Gateway(SECRET, clock=lambda: NOW, http_client=stripe.RequestsClient())


def send_one(gateway: Gateway) -> Outcome:
    (outcome,) = V1Transport(gateway).send([shipment()])
    return outcome


def error(code: str = "", message: str = "", type_: str = "invalid_request_error") -> str:
    facts = {"type": type_, "message": message, "code": code}
    return json.dumps({"error": {name: text for name, text in facts.items() if text}})


# What Stripe answers


def test_an_accepted_shipment_is_delivered(
    gateway: Gateway, stripe_http: responses.RequestsMock
) -> None:
    stripe_http.post(V1_URL, json=RECEIPT)
    assert send_one(gateway) == Outcome(Verdict.DELIVERED)


@pytest.mark.parametrize(
    ("status", "body", "verdict", "reason", "dead"),
    [
        (400, error("duplicate_meter_event"), Verdict.DELIVERED, "duplicate_meter_event", None),
        (
            400,
            error(message="An event already exists with identifier ship-0."),
            Verdict.DELIVERED,
            "duplicate_meter_event",
            None,
        ),
        (
            400,
            error("payload_invalid_value"),
            Verdict.REJECTED,
            "payload_invalid_value",
            DeadReason.INVALID,
        ),
        (
            400,
            error(message="The value has too many digits"),
            Verdict.REJECTED,
            "payload_invalid_value",
            DeadReason.INVALID,
        ),
        (
            400,
            error(message="The timestamp cannot be more than 35 days in past"),
            Verdict.REJECTED,
            "timestamp_too_far_in_past",
            DeadReason.EXPIRED,
        ),
        (400, error("timestamp_in_future"), Verdict.RETRY, "timestamp_in_future", None),
        (400, error("no_meter"), Verdict.HOLD_METER, "no_meter", None),
        (400, error("archived_meter"), Verdict.HOLD_METER, "archived_meter", None),
        (
            400,
            error(message="No active meter found for event name x"),
            Verdict.HOLD_METER,
            "no_meter",
            None,
        ),
        (400, error(type_="idempotency_error"), Verdict.RETRY, "idempotency_error", None),
        (
            400,
            error("parameter_unknown"),
            Verdict.REJECTED,
            "400 parameter_unknown",
            DeadReason.OTHER,
        ),
        (402, error("card_declined"), Verdict.REJECTED, "402 card_declined", DeadReason.OTHER),
        (
            404,
            error("resource_missing"),
            Verdict.REJECTED,
            "resource_missing",
            DeadReason.UNKNOWN_CUSTOMER,
        ),
        (
            404,
            error(message="Unrecognized request URL (POST: /v1/x)"),
            Verdict.HOLD_ALL,
            "unrecognized_url",
            None,
        ),
        (401, error("api_key_expired"), Verdict.HOLD_ALL, "401 api_key_expired", None),
        (401, "<html>", Verdict.HOLD_ALL, "401 unreadable", None),
        (403, error(), Verdict.HOLD_ALL, "403 invalid_request_error", None),
        (
            409,
            error("idempotency_key_in_use", type_="idempotency_error"),
            Verdict.UNKNOWN,
            "409 idempotency_key_in_use",
            None,
        ),
        (
            409,
            error("too_many_concurrent_requests"),
            Verdict.UNKNOWN,
            "409 too_many_concurrent_requests",
            None,
        ),
    ],
)
def test_a_refusal_says_what_to_do_with_the_shipment(
    gateway: Gateway,
    stripe_http: responses.RequestsMock,
    status: int,
    body: str,
    verdict: Verdict,
    reason: str,
    dead: DeadReason | None,
) -> None:
    stripe_http.post(V1_URL, body=body, status=status)
    outcome = send_one(gateway)
    assert (outcome.verdict, outcome.reason, outcome.dead) == (verdict, reason, dead)
    assert not outcome.unhealthy and not outcome.throttled


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, error("boom", type_="api_error")),
        (503, "<html>unavailable</html>"),
        (502, '{"error": "Bad gateway"}'),
        (502, '{"error": ["Bad gateway"]}'),
        (302, ""),
        (400, "<html>a proxy's own</html>"),
        (404, ""),
        (408, error()),
        (200, ""),
        (200, '{"object": "billing.meter_ev'),
        (200, "<html>sign in to the network</html>"),
        (200, "[]"),
        (200, "null"),
        (200, '{"status": "ok"}'),
        (200, "[" * 100_000),
        (200, '{"a":' * 700 + "1" + "}" * 700),
        (500, b"\xff\xfe"),
    ],
)
def test_an_answer_that_settles_nothing_leaves_the_outcome_unknown(
    gateway: Gateway, stripe_http: responses.RequestsMock, status: int, body: str | bytes
) -> None:
    stripe_http.post(V1_URL, body=body, status=status)
    outcome = send_one(gateway)
    assert (outcome.verdict, outcome.unhealthy) == (Verdict.UNKNOWN, True)
    assert outcome.reason.startswith(str(status))


@pytest.mark.parametrize(
    ("retry_after", "wait_s"),
    [
        ("7", 7.0),
        ("1.5", 1.5),
        ("-3", 0.0),
        ("999999", 3600.0),
        ("9" * 400, 3600.0),
        ("Mon, 23 Nov 2026 12:00:30 GMT", 30.0),
        ("Mon, 23 Nov 2026 11:00:00 GMT", 0.0),
        ("soon", None),
        ("nan", None),
        ("", None),
        (None, None),
    ],
)
def test_a_rate_limit_slows_the_sender_for_as_long_as_stripe_asks(
    gateway: Gateway,
    stripe_http: responses.RequestsMock,
    retry_after: str | None,
    wait_s: float | None,
) -> None:
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    stripe_http.post(V1_URL, status=429, body=error("rate_limit"), headers=headers)
    outcome = send_one(gateway)
    assert (outcome.verdict, outcome.throttled) == (Verdict.RETRY, True)
    assert outcome.retry_after_s == wait_s


@pytest.mark.parametrize(
    ("limit", "account_wide"),
    [("global-rate", True), ("global-concurrency", True), ("endpoint-rate", False)],
)
def test_only_a_global_limit_stops_the_whole_account(
    gateway: Gateway, stripe_http: responses.RequestsMock, limit: str, account_wide: bool
) -> None:
    stripe_http.post(
        V1_URL, status=429, body="slow down", headers={"Stripe-Rate-Limited-Reason": limit}
    )
    assert send_one(gateway).account_wide is account_wide


def test_retry_after_survives_an_html_page(
    gateway: Gateway, stripe_http: responses.RequestsMock
) -> None:
    stripe_http.post(V1_URL, status=503, body="<html>", headers={"Retry-After": "20"})
    assert send_one(gateway).retry_after_s == 20.0


@pytest.mark.parametrize(
    ("status", "header", "verdict"),
    [
        (400, "true", Verdict.RETRY),
        (400, "false", Verdict.REJECTED),
        # Of a 5xx nobody knows whether it was processed: to stop here would lose it.
        (500, "false", Verdict.UNKNOWN),
        (500, "true", Verdict.UNKNOWN),
    ],
)
def test_should_retry_saves_a_shipment_but_never_gives_one_up(
    gateway: Gateway,
    stripe_http: responses.RequestsMock,
    status: int,
    header: str,
    verdict: Verdict,
) -> None:
    stripe_http.post(
        V1_URL, status=status, body=error("odd"), headers={"Stripe-Should-Retry": header}
    )
    assert send_one(gateway).verdict is verdict


def test_a_notice_of_stripe_is_no_warning_here(
    gateway: Gateway, stripe_http: responses.RequestsMock
) -> None:
    stripe_http.post(V1_URL, json=RECEIPT, headers={"Stripe-Notice": "upgrade"})
    assert send_one(gateway).verdict is Verdict.DELIVERED


def test_a_reason_is_short_and_printable_whatever_the_server_says(
    gateway: Gateway, stripe_http: responses.RequestsMock
) -> None:
    stripe_http.post(V1_URL, status=400, body=error("a\r\nb\x1b[31m" + "c" * 500))
    reason = send_one(gateway).reason
    assert reason.isprintable() and len(reason) <= 100


# The stream


def open_session(stripe_http: responses.RequestsMock, token: str = "token-1") -> None:
    stripe_http.post(
        SESSION_URL,
        json={
            "object": "v2.billing.meter_event_session",
            "authentication_token": token,
            # An hour off our clock: only the difference counts.
            "created": "2026-11-23T11:00:00.000Z",
            "expires_at": "2026-11-23T11:15:00.000Z",
        },
    )


def stream_calls(stripe_http: responses.RequestsMock) -> list[Any]:
    return [call.request for call in stripe_http.calls if call.request.url == STREAM_URL]


def identifiers(request: Any) -> list[str]:
    return [event["identifier"] for event in json.loads(request.body)["events"]]


def test_a_hundred_shipments_go_in_one_request(
    gateway: Gateway, stripe_http: responses.RequestsMock
) -> None:
    open_session(stripe_http)
    stripe_http.post(STREAM_URL, json={})
    outcomes = StreamTransport(gateway).send([shipment(n) for n in range(100)])
    assert outcomes == [Outcome(Verdict.DELIVERED)] * 100
    (request,) = stream_calls(stripe_http)
    assert request.headers["Authorization"] == "Bearer token-1"
    assert identifiers(request) == [f"ship-{n}" for n in range(100)]


@pytest.mark.parametrize("bad", [0, 37, 62, 99])
def test_one_bad_shipment_among_a_hundred_takes_no_other_with_it(
    gateway: Gateway, stripe_http: responses.RequestsMock, bad: int
) -> None:
    def answer(request: Any) -> tuple[int, dict[str, str], str]:
        refused = f"ship-{bad}" in identifiers(request)
        return (400, {}, error("payload_invalid_value")) if refused else (200, {}, "{}")

    open_session(stripe_http)
    stripe_http.add_callback("POST", STREAM_URL, answer)
    outcomes = StreamTransport(gateway).send([shipment(n) for n in range(100)])
    assert outcomes[bad].dead is DeadReason.INVALID
    assert [outcome.verdict for outcome in outcomes].count(Verdict.DELIVERED) == 99
    requests = stream_calls(stripe_http)
    assert len(requests) <= 15
    keys = {request.headers["Idempotency-Key"] for request in requests}
    assert len(keys) == len(requests)


def test_a_duplicate_in_a_batch_says_nothing_about_its_neighbours(
    gateway: Gateway, stripe_http: responses.RequestsMock
) -> None:
    processed = []

    def answer(request: Any) -> tuple[int, dict[str, str], str]:
        if "ship-0" in identifiers(request):
            return 400, {}, error("duplicate_meter_event")
        processed.extend(identifiers(request))
        return 200, {}, "{}"

    open_session(stripe_http)
    stripe_http.add_callback("POST", STREAM_URL, answer)
    outcomes = StreamTransport(gateway).send([shipment(n) for n in range(4)])
    assert {outcome.verdict for outcome in outcomes} == {Verdict.DELIVERED}
    assert processed == ["ship-1", "ship-2", "ship-3"]


def test_trouble_in_one_half_spares_the_other(
    gateway: Gateway, stripe_http: responses.RequestsMock
) -> None:
    answers: Iterator[Any] = iter([(400, {}, error("odd")), (503, {}, "")])
    open_session(stripe_http)
    stripe_http.add_callback("POST", STREAM_URL, lambda request: next(answers))
    outcomes = StreamTransport(gateway).send([shipment(n) for n in range(4)])
    assert [outcome.verdict for outcome in outcomes] == [Verdict.UNKNOWN] * 2 + [Verdict.RETRY] * 2


def test_a_session_is_kept_and_renewed_before_it_expires(
    stripe_http: responses.RequestsMock,
) -> None:
    now = NOW
    gateway = Gateway(SECRET, clock=lambda: now, http_client=stripe.RequestsClient())
    stream = transport("stream", gateway)
    open_session(stripe_http, "token-1")
    open_session(stripe_http, "token-2")
    stripe_http.post(STREAM_URL, json={})
    for minutes in (0, 13, 14):
        now = NOW + timedelta(minutes=minutes)
        stream.send([shipment()])
    tokens = [request.headers["Authorization"] for request in stream_calls(stripe_http)]
    assert tokens == ["Bearer token-1", "Bearer token-1", "Bearer token-2"]


def test_an_expired_session_costs_one_more_request_and_nothing_else(
    gateway: Gateway, stripe_http: responses.RequestsMock
) -> None:
    def answer(request: Any) -> tuple[int, dict[str, str], str]:
        if request.headers["Authorization"] == "Bearer token-2":
            return 200, {}, "{}"
        expired = error("billing_meter_event_session_expired", type_="temporary_session_expired")
        return 401, {}, expired

    open_session(stripe_http, "token-1")
    open_session(stripe_http, "token-2")
    stripe_http.add_callback("POST", STREAM_URL, answer)
    outcomes = StreamTransport(gateway).send([shipment(0), shipment(1)])
    assert outcomes == [Outcome(Verdict.DELIVERED)] * 2
    assert len(stream_calls(stripe_http)) == 2


@pytest.mark.parametrize(
    ("status", "body", "verdict"),
    [
        (400, error("livemode_only"), Verdict.HOLD_ALL),
        (400, error("duplicate_meter_event"), Verdict.HOLD_ALL),
        (401, error(), Verdict.HOLD_ALL),
        (429, error(), Verdict.RETRY),
        # Whatever became of the session: the shipments were not sent.
        (500, "", Verdict.RETRY),
        (200, "{}", Verdict.RETRY),
        (200, '{"authentication_token": "a\\nb", "created": 1, "expires_at": 2}', Verdict.RETRY),
    ],
)
def test_without_a_session_no_shipment_is_sent_or_blamed(
    gateway: Gateway, stripe_http: responses.RequestsMock, status: int, body: str, verdict: Verdict
) -> None:
    stripe_http.post(SESSION_URL, status=status, body=body)
    outcomes = StreamTransport(gateway).send([shipment(n) for n in range(3)])
    assert {outcome.verdict for outcome in outcomes} == {verdict}
    assert stream_calls(stripe_http) == []


# Reading back


def list_meters(stripe_http: responses.RequestsMock) -> None:
    """Two pages, and an archived meter of the same name on the second."""
    first = {"id": "mtr_1", "event_name": "verify_operations", "status": "active"}
    second = {"id": "mtr_0", "event_name": "verify_operations", "status": "inactive"}
    for meter, has_more in ((first, True), (second, False)):
        stripe_http.get(
            METERS_URL,
            json={
                "object": "list",
                "url": "/v1/billing/meters",
                "has_more": has_more,
                "data": [{"object": "billing.meter", **meter}],
            },
        )


def summarise(stripe_http: responses.RequestsMock, *values: float) -> None:
    start = int(NOW.timestamp())
    rows = [
        {
            "object": "billing.meter_event_summary",
            "aggregated_value": value,
            "start_time": start + 3600 * number,
        }
        for number, value in enumerate(values)
    ]
    stripe_http.get(
        SUMMARIES_URL,
        json={"object": "list", "url": "/v1/x", "has_more": False, "data": rows},
    )


def test_totals_are_read_from_the_meters_summaries(
    gateway: Gateway, stripe_http: responses.RequestsMock
) -> None:
    list_meters(stripe_http)
    summarise(stripe_http, 12.5)
    end = NOW + timedelta(hours=1)
    for _ in range(2):
        found = gateway.totals("verify_operations", "cus_1", NOW, end)
        assert found == {NOW: Decimal("12.5")}
    paths = [str(call.request.url).partition("?")[0] for call in stripe_http.calls]
    assert paths == [METERS_URL, METERS_URL, SUMMARIES_URL, SUMMARIES_URL]


@pytest.mark.parametrize(("values", "total"), [((7.0,), 7), ((-2,), -2), ((0,), 0), ((), None)])
def test_a_minute_is_read_alone(
    gateway: Gateway,
    stripe_http: responses.RequestsMock,
    values: tuple[float, ...],
    total: int | None,
) -> None:
    list_meters(stripe_http)
    summarise(stripe_http, *values)
    assert gateway.minute_total("verify_operations", "cus_1", NOW) == total
    assert "start_time=1795435200&end_time=1795435260" in str(stripe_http.calls[-1].request.url)


def test_a_range_is_read_in_windows(gateway: Gateway, stripe_http: responses.RequestsMock) -> None:
    list_meters(stripe_http)
    summarise(stripe_http, 7, 0.5)
    hour = timedelta(hours=1)
    found = gateway.totals("verify_operations", "cus_1", NOW, NOW + 2 * hour, "hour")
    assert found == {NOW: Decimal(7), NOW + hour: Decimal("0.5")}
    assert "value_grouping_window=hour" in str(stripe_http.calls[-1].request.url)


def test_a_fraction_decides_nothing(gateway: Gateway, stripe_http: responses.RequestsMock) -> None:
    list_meters(stripe_http)
    summarise(stripe_http, 0.5)
    with pytest.raises(GatewayError, match="fraction"):
        gateway.minute_total("verify_operations", "cus_1", NOW)


def test_reading_an_unknown_meter_fails_with_its_reason(
    gateway: Gateway, stripe_http: responses.RequestsMock
) -> None:
    list_meters(stripe_http)
    with pytest.raises(GatewayError) as caught:
        gateway.minute_total("nothing", "cus_1", NOW)
    assert caught.value.reason == "no_meter"


@pytest.mark.parametrize(
    "body", ["{}", '{"object": "list"}', '{"object": "list", "data": [{"id": 1}]}', "[]", "<html>"]
)
def test_an_answer_unlike_the_described_is_a_failed_read(
    gateway: Gateway, stripe_http: responses.RequestsMock, body: str
) -> None:
    stripe_http.get(METERS_URL, body=body)
    with pytest.raises(GatewayError, match="unreadable"):
        gateway.minute_total("verify_operations", "cus_1", NOW)


def test_a_failed_read_keeps_stripes_error_as_its_cause(
    gateway: Gateway, stripe_http: responses.RequestsMock
) -> None:
    stripe_http.get(METERS_URL, status=500, body=error("boom"))
    with pytest.raises(GatewayError) as caught:
        gateway.minute_total("verify_operations", "cus_1", NOW)
    assert caught.value.reason == "500 boom"
    assert isinstance(caught.value.__cause__, stripe.StripeError)


# The wire: real sockets


OK = json.dumps(RECEIPT).encode()


def http_answer(body: bytes = OK, head: bytes = b"200 OK", extra: bytes = b"") -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n%s\r\n%s" % (head, len(body), extra, body)


@contextmanager
def server(speak: Callable[[socket.socket], object]) -> Iterator[str]:
    """A server that reads one request per connection and then lets *speak* answer."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection, suppress(OSError):
                    connection.recv(65536)
                    speak(connection)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def dribble(connection: socket.socket, text: bytes) -> None:
    for byte in text:
        connection.sendall(bytes([byte]))
        time.sleep(0.05)


def test_a_real_connection_delivers() -> None:
    with server(lambda connection: connection.sendall(http_answer())) as url:
        assert send_one(Gateway(SECRET, base_url=url)).verdict is Verdict.DELIVERED


@pytest.mark.parametrize(
    "text", [http_answer(), b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n" + b" " * 99]
)
def test_a_server_that_dribbles_is_cut_off_at_the_deadline(text: bytes) -> None:
    with server(lambda connection: dribble(connection, text)) as url:
        started = time.monotonic()
        outcome = send_one(Gateway(SECRET, base_url=url, deadline_s=0.3))
        took_s = time.monotonic() - started
    assert outcome == Outcome(Verdict.UNKNOWN, "timeout", unhealthy=True)
    assert took_s < 1.5


def test_refused_connections_and_unknown_hosts_are_a_definite_no() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        closed = f"http://127.0.0.1:{listener.getsockname()[1]}"
    refused = send_one(Gateway(SECRET, base_url=closed))
    unresolved = send_one(Gateway(SECRET, base_url="http://stripe.invalid"))
    assert refused == Outcome(Verdict.RETRY, "no_connection", unhealthy=True)
    assert unresolved == Outcome(Verdict.RETRY, "dns", unhealthy=True)


def test_a_failed_handshake_sent_nothing() -> None:
    with server(lambda connection: connection.sendall(b"not TLS at all")) as url:
        outcome = send_one(Gateway(SECRET, base_url=url.replace("http:", "https:")))
    assert outcome == Outcome(Verdict.RETRY, "tls", unhealthy=True)


@pytest.mark.parametrize(
    "half", [b"", b"HTTP/1.1 200 OK\r\nConte", http_answer()[:-5], b"gibberish\r\n\r\n"]
)
def test_a_broken_answer_leaves_the_outcome_unknown(half: bytes) -> None:
    with server(lambda connection: connection.sendall(half)) as url:
        outcome = send_one(Gateway(SECRET, base_url=url))
    assert (outcome.verdict, outcome.unhealthy) == (Verdict.UNKNOWN, True)


def test_an_endless_answer_is_not_read() -> None:
    huge = b'{"object": "billing.meter_event", "x": "' + b"x" * (1 << 20) + b'"}'
    with server(lambda connection: connection.sendall(http_answer(huge))) as url:
        assert send_one(Gateway(SECRET, base_url=url)).verdict is Verdict.UNKNOWN


def test_redirects_are_not_followed() -> None:
    with server(lambda connection: connection.sendall(http_answer())) as elsewhere:
        moved = http_answer(b"", b"307 Moved", b"Location: %s\r\n" % elsewhere.encode())
        with server(lambda connection: connection.sendall(moved)) as url:
            assert send_one(Gateway(SECRET, base_url=url)).reason == "307 unreadable"


def run_alone(script: str, url: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run *script* in a process of its own, because what it shows is process-wide."""
    prelude = """
import logging, os, sys
logging.basicConfig(level=logging.DEBUG, stream=sys.stdout)
from datetime import datetime, UTC
from flask_c2meter.gateway import Gateway
from flask_c2meter.shipment import Shipment
from flask_c2meter.transports import transport
gateway = Gateway("sk_test_canary", base_url=sys.argv[1])
shipment = Shipment("ship-0", "cus_canary", "verify_operations", 3, datetime.now(UTC), 1)
"""
    return subprocess.run(
        [sys.executable, "-c", prelude + script, url],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_forked_child_makes_its_own_connection() -> None:
    script = """
def deliver():
    return transport("v1", gateway).send([shipment])[0].verdict == "delivered"
assert deliver()
parents = gateway.client
if (pid := os.fork()) == 0:
    os._exit(0 if deliver() and gateway.client is not parents else 1)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
assert deliver() and gateway.client is parents
"""
    peers = []

    def speak(connection: socket.socket) -> None:
        peers.append(connection.getpeername())
        connection.sendall(http_answer())

    with server(speak) as url:
        run = run_alone(script, url)
    assert run.returncode == 0, run.stderr
    assert len(set(peers)) == 3


def test_proxies_telemetry_and_logs_stay_out(tmp_path: Path) -> None:
    script = """
assert "stripe" not in sys.modules and "urllib3" not in sys.modules
print(gateway, transport("v1", gateway).send([shipment])[0].verdict)
import stripe
assert stripe.enable_telemetry and stripe.log is None and stripe.default_http_client is None
"""
    nowhere = "http://127.0.0.1:9"
    home = str(tmp_path)
    with server(lambda connection: connection.sendall(http_answer())) as url:
        run = run_alone(
            script, url, HTTP_PROXY=nowhere, http_proxy=nowhere, HOME=home, XDG_CONFIG_HOME=home
        )
    assert run.returncode == 0, run.stderr
    assert "delivered" in run.stdout
    assert "canary" not in run.stdout + run.stderr
    assert list(tmp_path.iterdir()) == []


# Against the emulator


@pytest.mark.parametrize("kind", ["v1", "stream"])
def test_what_was_delivered_can_be_read_back(kind: Any) -> None:
    now = datetime.now(UTC)
    minute = now.replace(second=0, microsecond=0)
    lot = [replace(shipment(number, value=number), timestamp=now) for number in range(1, 11)]
    with StripeEmulator() as emulator:
        gateway = Gateway(SECRET, base_url=emulator.url)
        sender = transport(kind, gateway)
        for _ in range(2):  # the second time as duplicates
            assert {outcome.verdict for outcome in sender.send(lot)} == {Verdict.DELIVERED}
        assert gateway.minute_total("verify_operations", "cus_1", minute) == 55


def test_a_reset_after_processing_is_unknown_and_its_repetition_counts_once() -> None:
    once = replace(shipment(), timestamp=datetime.now(UTC))
    with StripeEmulator() as emulator:
        sender = V1Transport(Gateway(SECRET, base_url=emulator.url))
        emulator.fail(reset=True, after_processing=True)
        (lost,) = sender.send([once])
        (found,) = sender.send([replace(once, attempts=3)])
        total = emulator.meter_total("verify_operations", "cus_1")
    assert (lost.verdict, lost.reason) == (Verdict.UNKNOWN, "reset")
    assert (found.verdict, total) == (Verdict.DELIVERED, Decimal(3))


def test_threads_share_a_gateway() -> None:
    now = datetime.now(UTC)
    lot = [
        Shipment(f"ship-{n}", f"cus_{n}", "verify_operations", 1, now, attempts=1)
        for n in range(80)
    ]
    with StripeEmulator() as emulator, ThreadPoolExecutor(8) as threads:
        sender = V1Transport(Gateway(SECRET, base_url=emulator.url))
        outcomes = list(threads.map(lambda each: sender.send([each])[0], lot))
        assert {outcome.verdict for outcome in outcomes} == {Verdict.DELIVERED}
        assert len(emulator.events) == 80


# Whose account


@pytest.mark.parametrize(
    ("key", "base_url", "account", "livemode"),
    [
        ("sk_live_x", None, "api.stripe.com live", True),
        ("rk_live_x", None, "api.stripe.com live", True),
        ("sk_test_x", None, "api.stripe.com test", False),
        ("sk_test_x", "http://localhost:12111/", "localhost test", False),
    ],
)
def test_the_account_is_named_by_host_and_mode(
    key: str, base_url: str | None, account: str, livemode: bool
) -> None:
    gateway = Gateway(key, base_url=base_url)
    assert (gateway.account, gateway.livemode) == (account, livemode)
    assert key not in repr(gateway)


@pytest.mark.parametrize("key", ["", "sk_test_x\n", "sk test", "sk_tést"])
def test_a_key_that_cannot_be_one_is_refused_without_showing_it(key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Gateway(key)
    assert "C2METER_STRIPE_SECRET_KEY" in str(caught.value)
    assert not key or key not in str(caught.value)
