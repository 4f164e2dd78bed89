"""The Stripe emulator behaves like Stripe, and fails like it on demand."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
import requests
import stripe as sdk
from werkzeug.test import Client, TestResponse

from flask_c2meter.emulator import StripeEmulator

NOON = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
NOON_S = int(NOON.timestamp())
KEY = "sk_test_1"


class Door:
    """A client of an emulator without a socket."""

    def __init__(self, emulator: StripeEmulator) -> None:
        self._client = Client(emulator)

    def get(self, path: str, **params: Any) -> TestResponse:
        return self._client.get(path, query_string=params, headers=_headers())

    def post(self, path: str, form: Any = "", *, key: str | None = None) -> TestResponse:
        return self._client.post(
            path,
            data=form,
            content_type="application/x-www-form-urlencoded",
            headers=_headers(idempotency_key=key),
        )

    def post_json(self, path: str, data: Any, *, secret: str = KEY) -> TestResponse:
        return self._client.post(path, json=data, headers=_headers(secret))

    def event(
        self,
        value: object = 1,
        *,
        meter: str = "verify_operations",
        customer: str = "cus_1",
        identifier: str | None = None,
        timestamp: int | None = None,
        key: str | None = None,
    ) -> TestResponse:
        form = {
            "event_name": meter,
            "payload[stripe_customer_id]": customer,
            "payload[value]": str(value),
        }
        if identifier is not None:
            form["identifier"] = identifier
        if timestamp is not None:
            form["timestamp"] = str(timestamp)
        return self.post("/v1/billing/meter_events", form, key=key)

    def summaries(self, meter: str = "verify_operations", **params: Any) -> list[dict[str, Any]]:
        answer = self.get(f"/v1/billing/meters/{self.meter_id(meter)}/event_summaries", **params)
        assert answer.status_code == 200, answer.text
        data: list[dict[str, Any]] = answer.get_json()["data"]
        return data

    def meter_id(self, event_name: str) -> str:
        meters = self.get("/v1/billing/meters", limit=100).get_json()["data"]
        return next(meter["id"] for meter in meters if meter["event_name"] == event_name)


def _headers(secret: str = KEY, idempotency_key: str | None = None) -> dict[str, str]:
    headers = {"Authorization": f"Bearer {secret}"}
    if idempotency_key is not None:
        headers["Idempotency-Key"] = idempotency_key
    return headers


def _error(answer: TestResponse) -> dict[str, Any]:
    error: dict[str, Any] = answer.get_json()["error"]
    return error


@pytest.fixture
def emulator() -> StripeEmulator:
    return StripeEmulator(clock=lambda: NOON, seed=1)


@pytest.fixture
def door(emulator: StripeEmulator) -> Door:
    return Door(emulator)


# --- counting -------------------------------------------------------------------------------


def test_counts_events_per_meter_and_customer(emulator: StripeEmulator, door: Door) -> None:
    door.event(2)
    door.event(3)
    door.event(5, customer="cus_2")
    door.event(7, meter="sign_operations")
    assert emulator.meter_total("verify_operations", "cus_1") == Decimal(5)
    assert emulator.meter_total("verify_operations", "cus_2") == Decimal(5)
    assert emulator.meter_total("sign_operations", "cus_1") == Decimal(7)
    assert emulator.meter_total("unknown", "cus_1") == 0


def test_an_event_is_kept_as_it_came(emulator: StripeEmulator, door: Door) -> None:
    door.event(2, identifier="id 1+1", timestamp=NOON_S - 60)
    (event,) = emulator.events
    assert (event.event_name, event.customer, event.value) == (
        "verify_operations",
        "cus_1",
        Decimal(2),
    )
    assert event.identifier == "id 1+1"
    assert event.timestamp == NOON - timedelta(minutes=1)
    assert event.received_at == NOON
    assert event.payload == {"stripe_customer_id": "cus_1", "value": "2"}


def test_an_identifier_counts_once_until_it_expires(emulator: StripeEmulator, door: Door) -> None:
    door.event(identifier="a")
    again = door.event(identifier="a", customer="cus_2")
    assert again.status_code == 400
    assert _error(again) == {
        "type": "invalid_request_error",
        "message": "An event already exists with identifier a.",
    }
    assert emulator.duplicates == 1
    emulator.advance(timedelta(hours=24))
    assert door.event(identifier="a").status_code == 200
    assert emulator.meter_total("verify_operations", "cus_1") == 2


def test_v1_names_the_code_of_a_duplicate_if_told() -> None:
    door = Door(StripeEmulator(duplicate_code=True))
    door.event(identifier="a")
    assert _error(door.event(identifier="a"))["code"] == "duplicate_meter_event"


def test_a_refused_event_does_not_use_up_its_identifier(door: Door) -> None:
    assert door.event("1.5", identifier="a").status_code == 400
    assert door.event("1", identifier="a").status_code == 200


@pytest.mark.parametrize(
    ("value", "status"),
    [
        ("0", 200),
        ("-3", 200),
        ("9" * 15, 200),
        ("-" + "9" * 15, 200),
        ("9" * 16, 400),
        ("1.5", 400),
        ("1e3", 400),
        ("NaN", 400),
        ("", 400),
        (" 1", 400),
        ("٣", 400),
    ],
)
def test_values_are_whole_numbers_of_15_digits(door: Door, value: str, status: int) -> None:
    assert door.event(value).status_code == status


def test_negative_and_decimal_values_are_a_setting() -> None:
    door = Door(StripeEmulator(allow_negative=False, allow_decimals=True))
    assert _error(door.event("-1"))["code"] == "payload_invalid_value"
    assert door.event("1.5").status_code == 200


@pytest.mark.parametrize(
    ("offset", "status"),
    [
        (-35 * 86400, 200),
        (-35 * 86400 - 1, 400),
        (300, 200),
        (301, 400),
    ],
)
def test_timestamps_reach_from_35_days_back_to_5_minutes_ahead(
    door: Door, offset: int, status: int
) -> None:
    answer = door.event(timestamp=NOON_S + offset)
    assert answer.status_code == status
    if status == 400:
        assert "in past" in answer.text if offset < 0 else "in future" in answer.text


def test_strict_emulator_knows_only_its_meters() -> None:
    door = Door(StripeEmulator(auto_meters=False))
    assert "No active meter found" in _error(door.event())["message"]
    payload = {"stripe_customer_id": "cus_1", "value": "1"}
    answer = door.post_json(
        "/v2/billing/meter_events", {"event_name": "verify_operations", "payload": payload}
    )
    assert (answer.status_code, _error(answer)["code"]) == (400, "no_meter")


def test_events_of_unknown_customers_pass_the_call_and_fail_later() -> None:
    emulator = StripeEmulator(customers={"cus_1"})
    door = Door(emulator)
    assert door.event(customer="cus_2", identifier="a").status_code == 200
    assert emulator.events == []
    (error,) = emulator.async_errors
    assert (error.code, error.identifier) == ("meter_event_customer_not_found", "a")


def test_an_event_can_be_cancelled_within_a_day(emulator: StripeEmulator, door: Door) -> None:
    form = {"event_name": "verify_operations", "type": "cancel", "cancel[identifier]": "a"}
    door.event(2, identifier="a")
    door.event(3, identifier="b")
    assert door.post("/v1/billing/meter_event_adjustments", form).status_code == 200
    assert door.post("/v1/billing/meter_event_adjustments", form).status_code == 200
    assert emulator.meter_total("verify_operations", "cus_1") == 3
    assert [event.identifier for event in emulator.events] == ["b"]
    emulator.advance(timedelta(hours=24, seconds=1))
    late = door.post("/v1/billing/meter_event_adjustments", {**form, "cancel[identifier]": "b"})
    assert late.status_code == 400


# --- the referee ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "param"),
    [
        ("event_name=e&payload[value]=1&payload[stripe_customer_id]=c&colour=red", "colour"),
        ("payload[value]=1", "event_name"),
        ("event_name=e", "payload"),
        ("event_name=&payload[value]=1", "event_name"),
        (f"event_name={'e' * 101}&payload[value]=1", "event_name"),
        (f"event_name=e&identifier={'i' * 101}&payload[value]=1", "identifier"),
        ("event_name=e&payload=1", "payload"),
        ("event_name=e&payload[value][deep]=1", "payload[value]"),
        (f"event_name=e&payload[note]={'n' * 101}", "payload[note]"),
        ("event_name=e&payload[value]=1&timestamp=now", "timestamp"),
        ("event_name=e&payload[value]=1&timestamp=1.5", "timestamp"),
        ("event_name=e&payload[value]=1&timestamp=999999999999", "timestamp"),
    ],
)
def test_refuses_what_stripe_refuses_and_names_the_parameter(
    emulator: StripeEmulator, door: Door, form: str, param: str
) -> None:
    answer = door.post("/v1/billing/meter_events", form)
    assert answer.status_code == 400
    assert _error(answer)["param"] == param
    assert emulator.events == []


@pytest.mark.parametrize(
    "form",
    ["a[=1", "[a]=1", "event_name=%ff", "&".join("a=1" for _ in range(1001)), "x" * (2 << 20)],
)
def test_malformed_bodies_are_refused(door: Door, form: str) -> None:
    assert door.post("/v1/billing/meter_events", form).status_code in (400, 413)


@pytest.mark.parametrize("body", [[], {"event_name": 1, "payload": {}}, {"payload": {"a": 1}}])
def test_v2_takes_strings_only(door: Door, body: Any) -> None:
    assert door.post_json("/v2/billing/meter_events", body).status_code == 400


def test_deeply_nested_json_is_refused(emulator: StripeEmulator) -> None:
    answer = Client(emulator).post(
        "/v2/billing/meter_events",
        data="[" * 200_000,
        content_type="application/json",
        headers=_headers(),
    )
    assert answer.status_code == 400


def test_each_api_speaks_its_own_language(emulator: StripeEmulator, door: Door) -> None:
    assert door.post_json("/v1/billing/meter_events", {}).status_code == 400
    assert door.post("/v2/billing/meter_events", "event_name=e").status_code == 400


def test_unknown_urls_are_404_in_stripes_form(door: Door) -> None:
    answer = door.get("/v1/charges")
    assert answer.status_code == 404
    assert _error(answer)["message"] == "Unrecognized request URL (GET: /v1/charges)."


def test_keys_are_checked_and_can_be_rotated(emulator: StripeEmulator, door: Door) -> None:
    assert Client(emulator).get("/v1/billing/meters").status_code == 401
    emulator.accept_keys({"sk_test_new"})
    answer = door.event()
    assert answer.status_code == 401
    assert KEY not in answer.text
    emulator.accept_keys({KEY})
    assert door.event().status_code == 200


def test_the_key_decides_the_mode(emulator: StripeEmulator) -> None:
    client = Client(emulator)
    live = client.post("/v2/billing/meter_event_session", headers=_headers("rk_live_1"))
    assert live.get_json()["livemode"] is True
    test = client.post("/v2/billing/meter_event_session", auth=("sk_test_1", ""))
    assert test.get_json()["livemode"] is False


def test_more_requests_than_the_rate_limit_are_throttled() -> None:
    emulator = StripeEmulator(clock=lambda: NOON, rate_limit=2)
    door = Door(emulator)
    answers = [door.event() for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[2].headers["Stripe-Rate-Limited-Reason"] == "global-rate"
    emulator.advance(timedelta(seconds=1))
    assert door.event().status_code == 200


# --- idempotency keys -----------------------------------------------------------------------


def test_an_answer_is_replayed_to_its_idempotency_key(emulator: StripeEmulator, door: Door) -> None:
    first = door.event(identifier="a", key="k")
    again = door.event(identifier="a", key="k")
    assert (again.status_code, again.data) == (200, first.data)
    assert again.headers["Idempotent-Replayed"] == "true"
    assert "Idempotent-Replayed" not in first.headers
    assert len(emulator.events) == 1
    other = door.event(identifier="b", key="k")
    assert (other.status_code, _error(other)["type"]) == (400, "idempotency_error")


def test_a_500_is_replayed_but_a_503_is_not(emulator: StripeEmulator, door: Door) -> None:
    emulator.fail(500)
    assert door.event(identifier="a", key="k1").status_code == 500
    assert door.event(identifier="a", key="k1").status_code == 500
    assert door.event(identifier="a", key="k2").status_code == 200
    emulator.fail(503)
    assert door.event(identifier="b", key="k3").status_code == 503
    assert door.event(identifier="b", key="k3").status_code == 200


def test_idempotency_keys_expire(emulator: StripeEmulator, door: Door) -> None:
    door.event(key="k")
    emulator.advance(timedelta(hours=24))
    door.event(key="k")
    assert len(emulator.events) == 2


# --- meters and summaries -------------------------------------------------------------------


def _meter_form(event_name: str, formula: str = "sum", **more: str) -> dict[str, str]:
    return {
        "display_name": event_name.title(),
        "event_name": event_name,
        "default_aggregation[formula]": formula,
        **more,
    }


def test_a_meter_lives_and_is_archived(door: Door) -> None:
    meter = door.post("/v1/billing/meters", _meter_form("seats")).get_json()
    assert (meter["status"], meter["display_name"]) == ("active", "Seats")
    path = f"/v1/billing/meters/{meter['id']}"
    assert door.post("/v1/billing/meters", _meter_form("seats")).status_code == 400
    assert door.post(path, "display_name=Places").get_json()["display_name"] == "Places"
    assert door.post(path, "event_name=places").status_code == 400
    assert door.post(f"{path}/deactivate").get_json()["status"] == "inactive"
    assert _error(door.event(meter="seats"))["code"] == "archived_meter"
    assert door.get("/v1/billing/meters", status="active").get_json()["data"] == []
    assert door.post(f"{path}/reactivate").get_json()["status"] == "active"
    assert door.event(meter="seats").status_code == 200
    assert door.get("/v1/billing/meters/mtr_unknown").status_code == 404


def test_lists_are_paged_newest_first(door: Door) -> None:
    for number in range(5):
        door.post("/v1/billing/meters", _meter_form(f"m{number}"))
    first = door.get("/v1/billing/meters", limit=2).get_json()
    assert [meter["event_name"] for meter in first["data"]] == ["m4", "m3"]
    assert first["has_more"] is True
    rest = door.get("/v1/billing/meters", starting_after=first["data"][1]["id"]).get_json()
    assert [meter["event_name"] for meter in rest["data"]] == ["m2", "m1", "m0"]
    assert rest["has_more"] is False
    back = door.get("/v1/billing/meters", ending_before=rest["data"][1]["id"], limit=2).get_json()
    assert [meter["event_name"] for meter in back["data"]] == ["m3", "m2"]
    assert door.get("/v1/billing/meters", limit=101).status_code == 400
    assert door.get("/v1/billing/meters", starting_after="mtr_x").status_code == 400


@pytest.mark.parametrize(("formula", "total"), [("sum", 60), ("count", 3), ("last", 30)])
def test_summaries_aggregate_by_the_meters_formula(door: Door, formula: str, total: int) -> None:
    door.post("/v1/billing/meters", _meter_form("m", formula))
    for minutes, value in ((3, 20), (1, 30), (5, 10)):
        door.event(value, meter="m", timestamp=NOON_S - minutes * 60)
    (row,) = door.summaries("m", customer="cus_1", start_time=NOON_S - 3600, end_time=NOON_S)
    assert row["aggregated_value"] == total
    assert (row["start_time"], row["end_time"]) == (NOON_S - 3600, NOON_S)


def test_a_summary_includes_its_start_and_excludes_its_end(door: Door) -> None:
    for offset in (-61, -60, -1, 0):
        door.event(timestamp=NOON_S + offset)
    (row,) = door.summaries(customer="cus_1", start_time=NOON_S - 60, end_time=NOON_S)
    assert row["aggregated_value"] == 2
    assert door.summaries(customer="cus_2", start_time=NOON_S - 60, end_time=NOON_S) == []


def test_summaries_group_by_hour_and_page(door: Door) -> None:
    for hours in (1, 2, 3):
        door.event(hours, timestamp=NOON_S - hours * 3600)
    ask = {
        "customer": "cus_1",
        "start_time": NOON_S - 86400,
        "end_time": NOON_S,
        "value_grouping_window": "hour",
    }
    rows = door.summaries(limit=2, **ask)
    assert [row["aggregated_value"] for row in rows] == [1, 2]
    rest = door.summaries(starting_after=rows[-1]["id"], **ask)
    assert [row["aggregated_value"] for row in rest] == [3]


def test_summaries_want_aligned_times(door: Door) -> None:
    door.event()
    path = f"/v1/billing/meters/{door.meter_id('verify_operations')}/event_summaries"
    day = {"customer": "cus_1", "start_time": NOON_S - 3600, "end_time": NOON_S}
    assert door.get(path, **day).status_code == 200
    assert door.get(path, **{**day, "start_time": NOON_S - 3599}).status_code == 400
    assert door.get(path, **day, value_grouping_window="day").status_code == 400
    assert door.get(path, **{**day, "end_time": NOON_S - 7200}).status_code == 400


def test_summaries_lag_by_the_aggregation_delay() -> None:
    emulator = StripeEmulator(clock=lambda: NOON, aggregation_delay=timedelta(minutes=10))
    door = Door(emulator)
    door.event(timestamp=NOON_S - 60)
    window = {"customer": "cus_1", "start_time": NOON_S - 60, "end_time": NOON_S}
    assert door.summaries(**window) == []
    assert emulator.meter_total("verify_operations", "cus_1") == 1
    emulator.advance(timedelta(minutes=10))
    assert len(door.summaries(**window)) == 1


def test_a_preaggregated_meter_counts_the_last_received_of_each_window(door: Door) -> None:
    door.post("/v1/billing/meters", _meter_form("m", event_time_window="hour"))
    for value, offset in ((1, -7200), (2, -3600), (3, -7100)):
        door.event(value, meter="m", timestamp=NOON_S + offset)
    (row,) = door.summaries("m", customer="cus_1", start_time=NOON_S - 86400, end_time=NOON_S)
    assert row["aggregated_value"] == 2 + 3


# --- the stream -----------------------------------------------------------------------------


def _stream_event(identifier: str, value: str = "1", **more: Any) -> dict[str, Any]:
    return {
        "event_name": "verify_operations",
        "identifier": identifier,
        "payload": {"stripe_customer_id": "cus_1", "value": value},
        **more,
    }


def _token(door: Door) -> str:
    session = door.post_json("/v2/billing/meter_event_session", {}).get_json()
    token: str = session["authentication_token"]
    return token


def test_the_stream_validates_later(emulator: StripeEmulator, door: Door) -> None:
    events = [
        _stream_event("a"),
        _stream_event("b", "1.5"),
        _stream_event("c", timestamp="2026-01-01T00:00:00Z"),
        _stream_event("a"),
    ]
    answer = door.post_json(
        "/v2/billing/meter_event_stream", {"events": events}, secret=_token(door)
    )
    assert (answer.status_code, answer.data) == (200, b"{}")
    assert [event.identifier for event in emulator.events] == ["a"]
    assert [(error.identifier, error.code) for error in emulator.async_errors] == [
        ("b", "meter_event_invalid_value"),
        ("c", "timestamp_too_far_in_past"),
    ]


@pytest.mark.parametrize(
    "bad",
    [
        {"payload": {"value": "1"}},
        {"event_name": "e"},
        {"event_name": "e", "payload": {"value": 1}},
        {"event_name": "e", "payload": {"value": {"deep": "1"}}},
        {"event_name": "e", "payload": {}, "timestamp": "yesterday"},
        "no object",
    ],
)
def test_one_malformed_event_refuses_the_whole_batch(
    emulator: StripeEmulator, door: Door, bad: Any
) -> None:
    batch = {"events": [_stream_event("a"), bad]}
    answer = door.post_json("/v2/billing/meter_event_stream", batch, secret=_token(door))
    assert answer.status_code == 400
    assert emulator.events == []


def test_the_stream_takes_100_events(emulator: StripeEmulator, door: Door) -> None:
    token = _token(door)
    many = [_stream_event(str(number)) for number in range(101)]
    path = "/v2/billing/meter_event_stream"
    assert door.post_json(path, {"events": many}, secret=token).status_code == 400
    assert door.post_json(path, {"events": many[:100]}, secret=token).status_code == 200
    assert len(emulator.events) == 100


def test_a_session_ends_after_15_minutes(emulator: StripeEmulator, door: Door) -> None:
    token = _token(door)
    emulator.advance(timedelta(minutes=15))
    answer = door.post_json(
        "/v2/billing/meter_event_stream", {"events": [_stream_event("a")]}, secret=token
    )
    assert answer.status_code == 401
    assert _error(answer)["type"] == "temporary_session_expired"


# --- faults ---------------------------------------------------------------------------------


def test_faults_happen_in_order_and_as_often_as_told(emulator: StripeEmulator, door: Door) -> None:
    emulator.fail(503, times=2)
    emulator.fail(429, retry_after=7, code="rate_limit")
    answers = [door.event(identifier=f"i{number}") for number in range(4)]
    assert [answer.status_code for answer in answers] == [503, 503, 429, 200]
    assert answers[2].headers["Retry-After"] == "7"
    assert [event.identifier for event in emulator.events] == ["i3"]
    assert [request.answered for request in emulator.requests] == [
        "503 before processing",
        "503 before processing",
        "429 before processing",
        "processed",
    ]


def test_a_fault_after_processing_leaves_the_event(emulator: StripeEmulator, door: Door) -> None:
    emulator.fail(502, after_processing=True, body="<h1>Bad Gateway</h1>")
    answer = door.event(identifier="a")
    assert (answer.status_code, answer.text) == (502, "<h1>Bad Gateway</h1>")
    assert len(emulator.events) == 1
    assert "already exists" in door.event(identifier="a").text


def test_faults_go_on_until_recovery(emulator: StripeEmulator, door: Door) -> None:
    emulator.fail(times=None)
    assert {door.event().status_code for _ in range(5)} == {503}
    emulator.recover()
    assert door.event().status_code == 200


def test_faults_can_be_limited_to_a_path_or_a_kind_of_request(
    emulator: StripeEmulator, door: Door
) -> None:
    emulator.fail(500, path="/v1/billing/meters/*/event_summaries")
    emulator.fail(402, match=lambda request: "cus_2" in str(request.params))
    assert door.event().status_code == 200
    assert door.event(customer="cus_2").status_code == 402
    assert door.event(customer="cus_2").status_code == 200
    path = f"/v1/billing/meters/{door.meter_id('verify_operations')}/event_summaries"
    assert door.get(path, customer="c", start_time=0, end_time=60).status_code == 500


def test_a_rate_of_faults_is_random_but_repeatable() -> None:
    def statuses() -> list[int]:
        emulator = StripeEmulator(seed=7)
        emulator.fail(times=None, rate=0.1)
        return [Door(emulator).event().status_code for _ in range(300)]

    once = statuses()
    assert once == statuses()
    assert 10 <= once.count(503) <= 60


def test_retry_after_may_be_a_date(emulator: StripeEmulator, door: Door) -> None:
    emulator.fail(429, retry_after=NOON)
    assert door.event().headers["Retry-After"] == "Mon, 23 Nov 2026 12:00:00 GMT"


def test_every_answer_has_a_request_id_of_its_own(door: Door) -> None:
    ids = {door.event(value).headers["Request-Id"] for value in (1, "bad", 2)}
    assert len(ids) == 3


def test_requests_are_kept_with_what_they_said(emulator: StripeEmulator, door: Door) -> None:
    door.event(identifier="a", key="k")
    (request,) = emulator.requests
    assert (request.method, request.path, request.status) == (
        "POST",
        "/v1/billing/meter_events",
        200,
    )
    assert request.params["payload"] == {"stripe_customer_id": "cus_1", "value": "1"}
    assert request.idempotency_key == "k"
    assert KEY not in repr(request)


def test_forget_empties_the_account(emulator: StripeEmulator, door: Door) -> None:
    emulator.fail()
    door.event(identifier="a")
    emulator.forget()
    assert (emulator.events, emulator.requests, emulator.faults) == ([], [], [])
    assert door.event(identifier="a").status_code == 200


# --- the page and the remote control ---------------------------------------------------------


def test_the_page_shows_what_arrived_and_escapes_it(emulator: StripeEmulator, door: Door) -> None:
    door.event(1234, meter="<script>alert(1)</script>", customer="<b>cus</b>")
    emulator.fail(503, times=None)
    door.event()
    page = Client(emulator).get("/")
    assert page.status_code == 200
    assert "<script" not in page.text and "<b>" not in page.text
    assert "&lt;script&gt;" in page.text and "1,234" in page.text
    assert "503 before processing" in page.text
    assert KEY not in page.text
    assert "unsafe-inline" not in page.headers["Content-Security-Policy"]
    assert 'http-equiv="refresh"' in page.text
    assert 'http-equiv="refresh"' not in Client(emulator).get("/?live=0").text


def test_another_process_can_read_and_drive_it(emulator: StripeEmulator, door: Door) -> None:
    desk = Client(emulator)
    assert desk.post("/_emulator/advance", json={"seconds": 90}).status_code == 200
    assert emulator.now() == NOON + timedelta(seconds=90)
    assert desk.post("/_emulator/fail", json={"status": 503, "times": None}).status_code == 200
    assert door.event().status_code == 503
    assert desk.post("/_emulator/recover", json={}).status_code == 200
    assert door.event(5).status_code == 200
    assert desk.post("/_emulator/accept_keys", json={"keys": ["sk_test_2"]}).status_code == 200
    assert door.event().status_code == 401
    state = desk.get("/_emulator/state.json").get_json()
    assert state["meters"][0]["customers"] == [{"customer": "cus_1", "total": "5", "events": 1}]
    assert [line["status"] for line in state["requests"]] == [401, 200, 503]
    assert KEY not in json.dumps(state)


@pytest.mark.parametrize(
    ("lever", "body"),
    [
        ("fail", {"status": "503"}),
        ("fail", {"colour": "red"}),
        ("fail", {"rate": 2}),
        ("fail", {"delay": -1}),
        ("fail", {"status": 99}),
        ("advance", {}),
        ("advance", {"seconds": float("nan")}),
        ("advance", {"seconds": 1e300}),
        ("explode", {}),
    ],
)
def test_a_wrong_lever_is_refused(emulator: StripeEmulator, lever: str, body: Any) -> None:
    assert Client(emulator).post(f"/_emulator/{lever}", json=body).status_code in (400, 404)
    assert emulator.faults == []


def test_pages_of_other_origins_cannot_pull_levers(emulator: StripeEmulator) -> None:
    answer = Client(emulator).post("/_emulator/forget", data="{}", content_type="text/plain")
    assert answer.status_code == 415


# --- over a socket --------------------------------------------------------------------------


@pytest.fixture
def served() -> Iterator[StripeEmulator]:
    with StripeEmulator() as emulator:
        yield emulator


@pytest.fixture
def client_for() -> Iterator[Callable[..., sdk.StripeClient]]:
    """Makes real Stripe clients that speak to an emulator."""
    telemetry, sdk.enable_telemetry = sdk.enable_telemetry, False
    sessions: list[requests.Session] = []

    def make(emulator: StripeEmulator, secret: str = KEY) -> sdk.StripeClient:
        session = requests.Session()
        session.trust_env = False
        sessions.append(session)
        url = emulator.url
        return sdk.StripeClient(
            secret,
            http_client=sdk.RequestsClient(timeout=5, session=session),
            base_addresses={"api": url, "meter_events": url, "files": url, "connect": url},
        )

    yield make
    for session in sessions:
        session.close()
    sdk.enable_telemetry = telemetry


Clients = Callable[..., sdk.StripeClient]


def _sdk_event(identifier: str = "a") -> Any:
    return {
        "event_name": "verify_operations",
        "identifier": identifier,
        "payload": {"stripe_customer_id": "cus_1", "value": "1"},
    }


def test_the_real_sdk_bills_and_reconciles(served: StripeEmulator, client_for: Clients) -> None:
    client = client_for(served)
    event = client.v1.billing.meter_events.create(_sdk_event())
    assert event.identifier == "a"
    with pytest.raises(sdk.InvalidRequestError, match="already exists"):
        client.v1.billing.meter_events.create(_sdk_event())
    with pytest.raises(sdk.InvalidRequestError) as duplicate:
        client.v2.billing.meter_events.create(_sdk_event())
    assert duplicate.value.code == "duplicate_meter_event"
    (meter,) = client.v1.billing.meters.list({"status": "active"}).data
    start = int(event.timestamp) // 60 * 60
    summaries = client.v1.billing.meters.event_summaries.list(
        meter.id, {"customer": "cus_1", "start_time": start, "end_time": start + 60}
    )
    assert [row.aggregated_value for row in summaries.data] == [1]


def test_the_real_sdk_streams_and_renews_its_session(
    served: StripeEmulator, client_for: Clients
) -> None:
    session = client_for(served).v2.billing.meter_event_session.create()
    stream = client_for(served, session.authentication_token)
    stream.v2.billing.meter_event_stream.create({"events": [_sdk_event("a"), _sdk_event("b")]})
    assert served.meter_total("verify_operations", "cus_1") == 2
    served.advance(timedelta(minutes=16))
    with pytest.raises(sdk.TemporarySessionExpiredError):
        stream.v2.billing.meter_event_stream.create({"events": [_sdk_event("c")]})


@pytest.mark.parametrize("after_processing", [False, True])
def test_a_reset_connection_leaves_the_client_in_doubt(
    served: StripeEmulator, client_for: Clients, after_processing: bool
) -> None:
    served.fail(reset=True, after_processing=after_processing)
    with pytest.raises(sdk.APIConnectionError):
        client_for(served).v1.billing.meter_events.create(_sdk_event())
    assert len(served.events) == int(after_processing)
    (request,) = served.requests
    assert request.status is None
    assert request.answered.startswith("reset")


def _address(served: StripeEmulator) -> tuple[str, int]:
    host, _, port = served.url.removeprefix("http://").partition(":")
    return host, int(port)


def _raw_post(served: StripeEmulator, identifier: str, customer: str = "cus_1") -> int:
    connection = http.client.HTTPConnection(*_address(served), timeout=10)
    form = f"event_name=v&identifier={identifier}&payload[stripe_customer_id]={customer}"
    headers = {**_headers(), "Content-Type": "application/x-www-form-urlencoded"}
    try:
        connection.request("POST", "/v1/billing/meter_events", f"{form}&payload[value]=1", headers)
        return connection.getresponse().status
    finally:
        connection.close()


def test_a_reset_is_a_reset_and_not_a_polite_end(served: StripeEmulator) -> None:
    served.fail(reset=True)
    with pytest.raises(ConnectionResetError):
        _raw_post(served, "a")


def test_one_request_in_flight_per_customer_and_meter(served: StripeEmulator) -> None:
    served.fail(delay=60)

    def wait_in_vain() -> None:
        with pytest.raises((http.client.HTTPException, OSError)):
            _raw_post(served, "slow")

    slow = threading.Thread(target=wait_in_vain)
    slow.start()
    assert served.wait_for(lambda stripe: bool(stripe.requests) and not stripe.faults)
    assert _raw_post(served, "busy") == 409
    assert _raw_post(served, "other", customer="cus_2") == 200
    served.stop()  # cuts the delay
    slow.join(timeout=5)
    assert not slow.is_alive()
    assert [event.identifier for event in served.events] == ["other"]


def test_a_delay_holds_the_true_answer_back(served: StripeEmulator) -> None:
    served.fail(delay=0.01)
    served.fail(delay=0.01, after_processing=True)
    assert (_raw_post(served, "a"), _raw_post(served, "b")) == (200, 200)
    assert len(served.events) == 2


def test_waits_for_events_of_other_threads(served: StripeEmulator) -> None:
    sender = threading.Thread(target=_raw_post, args=(served, "a"))
    sender.start()
    assert served.wait_for(1)
    sender.join()
    assert served.wait_for(2, timeout=0) is False


def test_connections_are_kept_alive_and_may_pipeline(served: StripeEmulator) -> None:
    get = b"GET /v1/billing/meters HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer k\r\n\r\n"
    with socket.create_connection(_address(served), timeout=5) as connection:
        connection.sendall(get + get)
        answers = b""
        while answers.count(b'"object":"list"') < 2:
            answers += connection.recv(1 << 16)
        assert answers.count(b"HTTP/1.1 200 OK") == 2
        served.stop()  # at once, though the connection is open
        assert connection.recv(1) == b""


@pytest.mark.parametrize(
    "raw",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\nbroken\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n",
    ],
)
def test_what_is_no_http_is_a_400(served: StripeEmulator, raw: bytes) -> None:
    with socket.create_connection(_address(served), timeout=5) as connection:
        connection.sendall(raw)
        assert connection.recv(100).startswith(b"HTTP/1.1 400")


def test_stops_and_starts_again_on_its_port(served: StripeEmulator) -> None:
    url = served.url
    assert _raw_post(served, "a") == 200
    served.stop()
    served.stop()
    with pytest.raises(ConnectionRefusedError):
        _raw_post(served, "b")
    served.start()
    assert served.url == url
    assert _raw_post(served, "b") == 200
    assert len(served.events) == 2
    with pytest.raises(RuntimeError, match=r"call stop\(\) first"):
        served.start()


def test_nobody_takes_its_port_while_it_is_stopped() -> None:
    with StripeEmulator() as emulator:
        host, port = emulator.url.removeprefix("http://").split(":")
        emulator.stop()
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind((host, int(port)))
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, int(port)), timeout=5)
        emulator.start()
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind((host, int(port)))


def test_starts_no_thread_before_it_is_started() -> None:
    before = threading.active_count()
    emulator = StripeEmulator()
    assert threading.active_count() == before
    with pytest.raises(RuntimeError, match=r"call start\(\)"):
        emulator.url  # noqa: B018
    with emulator:
        _raw_post(emulator, "a")
    assert threading.active_count() == before


def test_two_emulators_share_nothing() -> None:
    with StripeEmulator() as one, StripeEmulator() as two:
        _raw_post(one, "a")
        assert (len(one.events), len(two.events)) == (1, 0)
        assert one.url != two.url


def test_totals_are_exact_under_many_threads(served: StripeEmulator) -> None:
    def send(thread: int) -> None:
        for number in range(25):
            assert _raw_post(served, f"{thread}-{number}", customer=f"cus_{thread}") == 200

    threads = [threading.Thread(target=send, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [served.meter_total("v", f"cus_{number}") for number in range(8)] == [25] * 8
