"""Every request the gateway makes is one that Stripe's own description allows.

The referee is ``openapi-billing.json`` beside this file; what it does not say (limits in words,
headers) is stated here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
import responses
import stripe
from jsonschema import Draft202012Validator, FormatChecker

from flask_c2meter.gateway import API_VERSION, Gateway
from flask_c2meter.model import MAX_UNITS
from flask_c2meter.shipment import Shipment
from flask_c2meter.transports import transport

CONTRACT = json.loads(Path(__file__).with_name("openapi-billing.json").read_text())
NOW = datetime(2026, 11, 23, 12, 0, 30, 999_000, tzinfo=UTC)
HOSTS = {"api.stripe.com": None, "meter-events.stripe.com": "https://meter-events.stripe.com/"}

SESSION = {
    "object": "v2.billing.meter_event_session",
    "authentication_token": "token-1",
    "created": "2026-11-23T12:00:00Z",
    "expires_at": "2026-11-23T12:15:00Z",
}
METERS = {
    "object": "list",
    "url": "/v1/billing/meters",
    "has_more": False,
    "data": [
        {
            "object": "billing.meter",
            "id": "mtr_1",
            "event_name": "verify_operations",
            "status": "active",
        }
    ],
}
SUMMARIES = {"object": "list", "url": "/v1/x", "has_more": False, "data": []}


@pytest.fixture
def stripe_http() -> Iterator[responses.RequestsMock]:
    with responses.RequestsMock(assert_all_requests_are_fired=False) as mock:
        api = "https://api.stripe.com"
        mock.post(f"{api}/v1/billing/meter_events", json={"object": "billing.meter_event"})
        mock.post(f"{api}/v2/billing/meter_event_session", json=SESSION)
        mock.post("https://meter-events.stripe.com/v2/billing/meter_event_stream", json={})
        mock.get(f"{api}/v1/billing/meters/mtr_1/event_summaries", json=SUMMARIES)
        mock.get(f"{api}/v1/billing/meters", json=METERS)
        yield mock


@pytest.fixture
def gateway() -> Gateway:
    return Gateway("sk_test_1", clock=lambda: NOW, http_client=stripe.RequestsClient())


def shipments() -> list[Shipment]:
    plain = Shipment("0192f-abc:1", "cus_1", "verify_operations", 1, NOW, attempts=1)
    return [
        plain,
        replace(plain, identifier="i" * 100, value=MAX_UNITS, attempts=12),
        replace(plain, value=-7, timestamp=NOW - timedelta(days=35)),
        replace(plain, customer="acct_1-x", meter="m" * 100),
    ]


def operation(path: str, method: str) -> tuple[str, dict[str, Any]]:
    """The template and the description of what was called."""
    for template, methods in CONTRACT["paths"].items():
        if re.fullmatch(re.sub(r"\{[^}]+\}", "[^/]+", template), path) and method in methods:
            return template, methods[method]
    raise AssertionError(f"Stripe has no {method} {path}")


def nested(pairs: list[tuple[str, str]], schema: dict[str, Any]) -> dict[str, Any]:
    """``a[b]=1`` as the object it stands for; integers as the *schema* says."""
    result: dict[str, Any] = {}
    for name, value in pairs:
        group, _, key = name.partition("[")
        target, key = (result.setdefault(group, {}), key[:-1]) if key else (result, group)
        assert key not in target, f"{name} twice"
        kind = schema["properties"].get(group, {}).get("type")
        target[key] = int(value) if kind == "integer" else value
    return result


def parameters(description: dict[str, Any], request: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The request's parameters, and the schema they have to satisfy."""
    url = urlsplit(request.url)
    if request.method == "GET":
        named = {each["name"]: each for each in description["parameters"] if each["in"] == "query"}
        schema = {
            "type": "object",
            "properties": {name: each["schema"] for name, each in named.items()},
            "required": [name for name, each in named.items() if each["required"]],
            "additionalProperties": False,
        }
        return nested(parse_qsl(url.query, strict_parsing=True), schema), schema
    assert not url.query
    if "requestBody" not in description:
        return json.loads(request.body), {"type": "object", "additionalProperties": False}
    content = description["requestBody"]["content"]
    assert list(content) == [request.headers["Content-Type"]]
    (body,) = content.values()
    if request.headers["Content-Type"] == "application/json":
        return json.loads(request.body), body["schema"]
    return nested(parse_qsl(request.body, strict_parsing=True), body["schema"]), body["schema"]


def check(request: Any) -> None:
    url = urlsplit(request.url)
    template, description = operation(url.path, request.method.lower())
    values, schema = parameters(description, request)
    Draft202012Validator(schema, format_checker=FormatChecker()).validate(values)
    assert [server["url"] for server in description.get("servers", [])] == (
        [HOSTS[url.netloc]] if HOSTS[url.netloc] else []
    ), template
    for event in values.get("events", [values] if "event_name" in values else []):
        check_event(event)


def check_event(event: dict[str, Any]) -> None:
    """The facts that Stripe's description has in words only."""
    assert set(event) == {"event_name", "identifier", "payload", "timestamp"}
    assert set(event["payload"]) == {"stripe_customer_id", "value"}
    assert re.fullmatch(r"-?[0-9]{1,15}", event["payload"]["value"])
    assert len(event["identifier"]) <= 100 and len(event["event_name"]) <= 100
    if isinstance(event["timestamp"], str):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", event["timestamp"])


@pytest.mark.parametrize("kind", ["v1", "stream"])
def test_shipments_are_sent_as_stripe_describes(
    gateway: Gateway, stripe_http: responses.RequestsMock, kind: Any
) -> None:
    transport(kind, gateway).send(shipments())
    assert len(stripe_http.calls) == {"v1": 4, "stream": 2}[kind]
    for call in stripe_http.calls:
        check(call.request)


def test_reads_are_made_as_stripe_describes(
    gateway: Gateway, stripe_http: responses.RequestsMock
) -> None:
    minute = NOW.replace(second=0, microsecond=0)
    gateway.minute_total("verify_operations", "cus_1", minute)
    gateway.totals("verify_operations", "cus_1", minute, minute + timedelta(days=31))
    assert len(stripe_http.calls) == 3
    for call in stripe_http.calls:
        check(call.request)


@pytest.mark.parametrize("kind", ["v1", "stream"])
def test_every_request_says_who_asks_and_in_which_version(
    gateway: Gateway, stripe_http: responses.RequestsMock, kind: Any
) -> None:
    transport(kind, gateway).send(shipments()[:1])
    for call in stripe_http.calls:
        headers = call.request.headers
        assert headers["Stripe-Version"] == API_VERSION == stripe.api_version
        assert headers["Authorization"] in ("Bearer sk_test_1", "Bearer token-1")
        assert re.match(r"Stripe/v[12] PythonBindings/", str(headers["User-Agent"]))
        assert 0 < len(headers["Idempotency-Key"]) <= 255
        assert "X-Stripe-Client-Telemetry" not in headers
        assert set(json.loads(headers["X-Stripe-Client-User-Agent"])) == {
            "bindings_version",
            "lang",
            "lang_version",
        }


def test_each_attempt_has_its_own_key_that_leads_back_to_the_shipment(
    gateway: Gateway, stripe_http: responses.RequestsMock
) -> None:
    (first, *_) = shipments()
    v1 = transport("v1", gateway)
    v1.send([first])
    v1.send([replace(first, attempts=2)])
    keys = [call.request.headers["Idempotency-Key"] for call in stripe_http.calls]
    assert keys == ["0192f-abc:1.1", "0192f-abc:1.2"]


def test_v1_goes_over_the_wire_to_the_letter(
    gateway: Gateway, stripe_http: responses.RequestsMock
) -> None:
    transport("v1", gateway).send(shipments()[:1])
    assert stripe_http.calls[0].request.body == (
        "event_name=verify_operations&identifier=0192f-abc%3A1"
        "&payload[stripe_customer_id]=cus_1&payload[value]=1&timestamp=1795435230"
    )
