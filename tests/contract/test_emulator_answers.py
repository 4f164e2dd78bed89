"""Every answer of the emulator is one that Stripe's OpenAPI description allows.

Stricter than the description: a property that it does not name is refused, too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from werkzeug.test import Client, TestResponse

from flask_c2meter.emulator import StripeEmulator

NOON = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
NOON_S = int(NOON.timestamp())
KEY = "sk_test_1"

PAYLOAD = {"stripe_customer_id": "cus_1", "value": "1"}
EVENT_V1 = {
    "event_name": "seats",
    "payload[stripe_customer_id]": "cus_1",
    "payload[value]": "1",
}
EVENT_V2 = {"event_name": "seats", "payload": PAYLOAD}
CANCEL_V1 = {"event_name": "seats", "type": "cancel", "cancel[identifier]": "known"}
CANCEL_V2 = {"event_name": "seats", "type": "cancel", "cancel": {"identifier": "known"}}
METER = {
    "display_name": "Places",
    "event_name": "places",
    "default_aggregation[formula]": "count",
    "event_time_window": "day",
}
TIERED = {
    "currency": "usd",
    "product_data[name]": "Verify",
    "billing_scheme": "tiered",
    "tiers_mode": "graduated",
    "tiers[0][up_to]": 2000,
    "tiers[0][unit_amount]": 0,
    "tiers[1][up_to]": "inf",
    "tiers[1][unit_amount_decimal]": "4.000000000001",
    "tiers[1][flat_amount]": 100,
    "recurring[interval]": "month",
    "expand[]": "tiers",
}
#: Stands for the id of a price, which is not known before it is made.
PRICE = "{price}"
CUSTOMER = {"email": "a@example.org", "name": "A", "metadata[plan]": "starter"}
SUMMARIES = {"customer": "cus_1", "start_time": NOON_S - 86400, "end_time": NOON_S + 43200}

#: method, path of the description, parameters
CALLS: list[tuple[str, str, Any]] = [
    ("POST", "/v1/billing/meter_events", EVENT_V1),
    ("POST", "/v1/billing/meter_event_adjustments", CANCEL_V1),
    ("POST", "/v1/billing/meters", METER),
    ("GET", "/v1/billing/meters", {"limit": 1}),
    ("GET", "/v1/billing/meters/{id}", {}),
    ("POST", "/v1/billing/meters/{id}", {"display_name": "Chairs"}),
    ("POST", "/v1/billing/meters/{id}/deactivate", {}),
    ("POST", "/v1/billing/meters/{id}/reactivate", {}),
    ("GET", "/v1/billing/meters/{id}/event_summaries", SUMMARIES),
    (
        "GET",
        "/v1/billing/meters/{id}/event_summaries",
        {**SUMMARIES, "start_time": NOON_S - 43200, "value_grouping_window": "day"},
    ),
    ("POST", "/v2/billing/meter_events", {**EVENT_V2, "timestamp": "2026-11-23T11:00:00.5Z"}),
    ("POST", "/v2/billing/meter_event_adjustments", CANCEL_V2),
    ("POST", "/v2/billing/meter_event_session", {}),
    ("POST", "/v2/billing/meter_event_stream", {"events": [EVENT_V2]}),
    ("POST", "/v1/customers", CUSTOMER),
    ("GET", "/v1/customers", {"limit": 3}),
    ("GET", "/v1/customers/{customer}", {}),
    ("POST", "/v1/products", {"name": "Verify", "unit_label": "check"}),
    ("GET", "/v1/products", {"active": "true"}),
    ("GET", "/v1/products/{id}", {}),
    ("POST", "/v1/products/{id}", {"description": "d"}),
    ("POST", "/v1/prices", TIERED),
    ("POST", "/v1/prices", {"currency": "eur", "product_data[name]": "Fee", "unit_amount": 5}),
    ("GET", "/v1/prices", {"expand[]": "data.tiers", "lookup_keys[]": "starter"}),
    ("GET", "/v1/prices/{price}", {"expand[]": "tiers"}),
    ("POST", "/v1/prices/{price}", {"nickname": "n"}),
    ("POST", "/v1/subscriptions", {"customer": "cus_1", "items[0][price]": PRICE}),
    (
        "POST",
        "/v1/subscriptions",
        {"customer": "cus_1", "items[0][price]": PRICE, "trial_period_days": 7},
    ),
    ("GET", "/v1/subscriptions", {"status": "all", "expand[]": "data.items.data.price"}),
    ("GET", "/v1/subscriptions/{subscription_exposed_id}", {"expand[]": "items.data.price.tiers"}),
    ("GET", "/v1/subscription_items", {"subscription": "sub_1", "expand[]": "data.price.tiers"}),
    ("POST", "/v1/test_helpers/test_clocks", {"frozen_time": NOON_S, "name": "n"}),
    ("GET", "/v1/test_helpers/test_clocks/{test_clock}", {}),
    (
        "POST",
        "/v1/test_helpers/test_clocks/{test_clock}/advance",
        {"frozen_time": NOON_S + 1},
    ),
    ("GET", "/v2/core/events/{id}", {}),
]

#: method, path of the description, parameters, status
REFUSALS: list[tuple[str, str, Any, int]] = [
    ("POST", "/v1/billing/meter_events", {**EVENT_V1, "identifier": "known"}, 400),
    ("POST", "/v1/billing/meter_events", {**EVENT_V1, "payload[value]": "x"}, 400),
    ("POST", "/v1/billing/meter_events", {**EVENT_V1, "timestamp": "1"}, 400),
    ("POST", "/v1/billing/meter_events", {**EVENT_V1, "surprise": "1"}, 400),
    ("POST", "/v1/billing/meter_events", {**EVENT_V1, "event_name": "archived"}, 400),
    ("POST", "/v1/billing/meter_event_adjustments", {"event_name": "seats"}, 400),
    ("POST", "/v1/billing/meters", {**METER, "event_name": "seats"}, 400),
    ("GET", "/v1/billing/meters", {"limit": 0}, 400),
    ("GET", "/v1/billing/meters/{id}/event_summaries", {**SUMMARIES, "end_time": 1}, 400),
    ("POST", "/v2/billing/meter_events", {**EVENT_V2, "identifier": "known"}, 400),
    ("POST", "/v2/billing/meter_events", {"event_name": "seats", "payload": {}}, 400),
    ("POST", "/v2/billing/meter_events", {**EVENT_V2, "event_name": "archived"}, 400),
    ("POST", "/v2/billing/meter_event_adjustments", {**CANCEL_V2, "event_name": "x"}, 400),
    ("POST", "/v2/billing/meter_event_session", {"surprise": "1"}, 400),
    ("POST", "/v2/billing/meter_event_stream", {"events": []}, 400),
    ("POST", "/v1/customers", {"surprise": "1"}, 400),
    ("POST", "/v1/products", {}, 400),
    ("POST", "/v1/prices", {**TIERED, "tiers[1][up_to]": "1"}, 400),
    ("GET", "/v1/prices", {"recurring": "month"}, 400),
    ("POST", "/v1/subscriptions", {"customer": "cus_x", "items[0][price]": PRICE}, 400),
    ("GET", "/v1/subscriptions", {"status": "asleep"}, 400),
    ("GET", "/v1/subscription_items", {"subscription": "sub_x"}, 400),
    (
        "POST",
        "/v1/test_helpers/test_clocks/{test_clock}/advance",
        {"frozen_time": NOON_S - 1},
        400,
    ),
    ("GET", "/v2/core/events/{id}", {"surprise": "1"}, 400),
]

#: Paths whose id is not the meter's.
IDS = {
    "/v1/customers": "cus_1",
    "/v1/products": "prod_1",
    "/v1/prices": "price",
    "/v1/subscriptions": "sub_1",
    "/v1/test_helpers": "clock",
    "/v2/core": "event",
}


@cache
def _spec() -> dict[str, Any]:
    path = Path(__file__).with_name("openapi-billing.json")
    spec: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return spec


def _closed(schema: Any) -> Any:
    """An OpenAPI 3.0 schema as a JSON Schema that allows no unnamed properties."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    if closed.pop("nullable", False) is True:
        # An enum of a nullable string does not list null.
        return {"anyOf": [closed, {"type": "null"}]}
    if isinstance(schema.get("properties"), dict) and "additionalProperties" not in schema:
        closed["additionalProperties"] = False
    return closed


@cache
def _components() -> Any:
    return {
        "schemas": {
            name: _closed(schema) for name, schema in _spec()["components"]["schemas"].items()
        }
    }


def _check(method: str, path: str, answer: TestResponse) -> None:
    responses = _spec()["paths"][path][method.lower()]["responses"]
    response = responses.get(str(answer.status_code), responses["default"])
    schema = _closed(response["content"]["application/json"]["schema"])
    if path == "/v2/core/events/{id}" and answer.status_code == 200:
        # The description knows only what all events have; each type has a schema of its own.
        schema = _components()["schemas"][answer.get_json()["type"]]
    Draft202012Validator({**schema, "components": _components()}).validate(answer.get_json())
    assert answer.content_type == "application/json"
    assert answer.headers["Request-Id"].startswith("req_")


class Caller:
    """Calls an emulator that has a past: meters with events, one archived, and a subscription."""

    def __init__(self, emulator: StripeEmulator) -> None:
        self._client = Client(emulator)
        self._ids: dict[str, str] = {}
        self.call("POST", "/v1/billing/meter_events", {**EVENT_V1, "identifier": "known"})
        self.call("POST", "/v1/billing/meter_events", {**EVENT_V1, "event_name": "archived"})
        archived, seats = self.call("GET", "/v1/billing/meters", {}).get_json()["data"]
        self._meter_id = archived["id"]
        self.call("POST", "/v1/billing/meters/{id}/deactivate", {})
        self._meter_id = seats["id"]
        session = self.call("POST", "/v2/billing/meter_event_session", {}).get_json()
        self._token = session["authentication_token"]
        self._ids = IDS | _past(emulator)

    def call(self, method: str, path: str, params: Any) -> TestResponse:
        secret = self._token if path.endswith("stream") else KEY
        params = {
            name: self._ids["/v1/prices"] if value == PRICE else value
            for name, value in params.items()
        }
        own = next((id for start, id in self._ids.items() if path.startswith(start)), None)
        url = re.sub(r"\{\w+\}", own or getattr(self, "_meter_id", ""), path)
        headers = {"Authorization": f"Bearer {secret}"}
        if method == "GET":
            return self._client.get(url, query_string=params, headers=headers)
        if path.startswith("/v2/"):
            return self._client.post(url, json=params, headers=headers)
        return self._client.post(
            url,
            data=params,
            headers=headers,
            content_type="application/x-www-form-urlencoded",
        )


def _past(emulator: StripeEmulator) -> dict[str, str]:
    """A subscription that is ending, a clock and an error report; ids that are not chosen."""
    emulator.add_customer("cus_1", metadata={"a": "b"})
    emulator.add_customer("cus_gone")
    emulator.delete_customer("cus_gone")
    tiers = [
        {"up_to": 5, "unit_amount_decimal": "0.5"},
        {"up_to": "inf", "flat_amount_decimal": "9"},
    ]
    price = emulator.add_price("verify", lookup_key="starter", tiers=tiers, product="prod_1")
    start = NOON - timedelta(days=70)
    emulator.add_subscription("cus_1", ["starter"], id="sub_1", start=start, metadata={"a": "b"})
    emulator.cancel_subscription("sub_1", at_period_end=True)
    client = Client(emulator)
    headers = {"Authorization": f"Bearer {KEY}"}
    payload = {"stripe_customer_id": "cus_gone", "value": "1"}
    event = {"event_name": "verify", "payload": payload}
    client.post("/v2/billing/meter_events", json=event, headers=headers)
    (report,) = emulator.report_errors()
    clock = emulator.add_test_clock(NOON)
    return {"/v1/prices": price, "/v1/test_helpers": clock, "/v2/core": report}


@pytest.fixture
def emulator() -> StripeEmulator:
    return StripeEmulator(clock=lambda: NOON)


@pytest.fixture
def caller(emulator: StripeEmulator) -> Iterator[Caller]:
    yield Caller(emulator)


@pytest.mark.parametrize(("method", "path", "params"), CALLS)
def test_successes_are_as_described(caller: Caller, method: str, path: str, params: Any) -> None:
    answer = caller.call(method, path, params)
    assert answer.status_code == 200, answer.text
    _check(method, path, answer)


@pytest.mark.parametrize(("method", "path", "params", "status"), REFUSALS)
def test_refusals_are_as_described(
    caller: Caller, method: str, path: str, params: Any, status: int
) -> None:
    answer = caller.call(method, path, params)
    assert answer.status_code == status, answer.text
    _check(method, path, answer)


@pytest.mark.parametrize("status", [401, 402, 403, 409, 429, 500, 503])
@pytest.mark.parametrize(("method", "path", "params"), CALLS)
def test_scripted_faults_are_as_described(
    emulator: StripeEmulator, caller: Caller, method: str, path: str, params: Any, status: int
) -> None:
    emulator.fail(status)
    answer = caller.call(method, path, params)
    assert answer.status_code == status
    _check(method, path, answer)


def test_summaries_have_rows_to_check(caller: Caller) -> None:
    summaries = caller.call("GET", "/v1/billing/meters/{id}/event_summaries", SUMMARIES)
    assert summaries.get_json()["data"] != []


def test_a_deleted_customer_is_as_described(caller: Caller) -> None:
    caller._ids["/v1/customers"] = "cus_gone"
    answer = caller.call("GET", "/v1/customers/{customer}", {})
    assert answer.get_json()["deleted"] is True
    _check("GET", "/v1/customers/{customer}", answer)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/products/{id}",
        "/v1/prices/{price}",
        "/v1/subscriptions/{subscription_exposed_id}",
        "/v1/test_helpers/test_clocks/{test_clock}",
        "/v2/core/events/{id}",
    ],
)
def test_what_does_not_exist_is_as_described(caller: Caller, path: str) -> None:
    caller._ids = dict.fromkeys(caller._ids, "unheard_of")
    answer = caller.call("GET", path, {})
    assert answer.status_code == 404
    _check("GET", path, answer)


def test_a_customer_that_does_not_exist_is_as_described() -> None:
    client = Client(StripeEmulator(known_customers_only=True))
    answer = client.get("/v1/customers/cus_x", headers={"Authorization": f"Bearer {KEY}"})
    assert answer.status_code == 404
    _check("GET", "/v1/customers/{customer}", answer)


def test_events_without_a_meter_are_as_described() -> None:
    emulator = StripeEmulator(auto_meters=False)
    client = Client(emulator)
    headers = {"Authorization": f"Bearer {KEY}"}
    session = client.post("/v2/billing/meter_event_session", json={}, headers=headers).get_json()
    token = {"Authorization": f"Bearer {session['authentication_token']}"}
    stream = "/v2/billing/meter_event_stream"
    assert client.post(stream, json={"events": [EVENT_V2]}, headers=token).status_code == 200
    (report,) = emulator.report_errors()
    answer = client.get(f"/v2/core/events/{report}", headers=headers)
    assert answer.get_json()["type"] == "v1.billing.meter.no_meter_found"
    _check("GET", "/v2/core/events/{id}", answer)


def test_missing_keys_and_unknown_meters_are_as_described(emulator: StripeEmulator) -> None:
    client = Client(emulator)
    path = "/v1/billing/meters/{id}"
    _check("GET", path, client.get("/v1/billing/meters/mtr_x"))
    headers = {"Authorization": f"Bearer {KEY}"}
    _check("GET", path, client.get("/v1/billing/meters/mtr_x", headers=headers))
    stream = "/v2/billing/meter_event_stream"
    _check("POST", stream, client.post(stream, json={"events": []}, headers=headers))
