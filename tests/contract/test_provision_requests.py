"""Every request of ``provision`` is one that Stripe's own description allows.

The requests are those that the emulator has received over its socket; the referee is
``openapi-billing.json`` beside this file.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from flask_c2meter.catalogue import load
from flask_c2meter.emulator import StripeEmulator
from flask_c2meter.emulator.wire import ReceivedRequest
from flask_c2meter.gateway import Gateway
from flask_c2meter.provisioner import Provisioner

CONTRACT = json.loads(Path(__file__).with_name("openapi-billing.json").read_text())
#: A request that makes something, or puts it into a state.
WRITES = {
    "POST /v1/products",
    "POST /v1/products/{id}",
    "POST /v1/billing/meters",
    "POST /v1/billing/meters/{id}",
    "POST /v1/billing/meters/{id}/deactivate",
    "POST /v1/billing/meters/{id}/reactivate",
    "POST /v1/prices",
    "POST /v1/prices/{price}",
}
READS = {"GET /v1/billing/meters", "GET /v1/products", "GET /v1/prices"}


def catalogue(name: str, unit_amount: str) -> dict[str, Any]:
    meter = {
        "display_name": f"Display {unit_amount}",
        "event_type": "v",
        "unit": "unit of a long name",
        "aggregation": "sum",
        "precision": 9,
        "included": {"starter": "0.000000001", "growth": "unlimited", "scale": 0},
        "price": {
            "mode": "graduated",
            "currency": "usd",
            "tiers": [
                {"up_to": 5, "unit_amount": unit_amount, "flat_amount": "0.000000000001"},
                {"unit_amount": "0.001"},
            ],
        },
    }
    return {"meters": {name: meter}}


def described(request: ReceivedRequest) -> tuple[str, dict[str, Any]]:
    """The template of what was called, and the schema of its parameters."""
    for template, methods in CONTRACT["paths"].items():
        pattern = re.sub(r"\{[^}]+\}", "[^/]+", template)
        if re.fullmatch(pattern, request.path) and request.method.lower() in methods:
            return f"{request.method} {template}", schema(methods[request.method.lower()], request)
    raise AssertionError(f"Stripe has no {request.method} {request.path}")


def schema(description: dict[str, Any], request: ReceivedRequest) -> dict[str, Any]:
    if request.method == "POST":
        (content,) = description["requestBody"]["content"].values()
        found: dict[str, Any] = content["schema"]
        return found
    named = {each["name"]: each for each in description["parameters"] if each["in"] == "query"}
    return {
        "type": "object",
        "properties": {name: each["schema"] for name, each in named.items()},
        "additionalProperties": False,
    }


def typed(value: Any, kind: dict[str, Any]) -> Any:
    """What a form says in text, in the types of the schema: nothing is made to fit."""
    if "anyOf" in kind:
        fits = (typed(value, each) for each in kind["anyOf"])
        return next(
            (
                v
                for v, k in zip(fits, kind["anyOf"], strict=True)
                if Draft202012Validator(k).is_valid(v)
            ),
            value,
        )
    if kind.get("type") == "array" and isinstance(value, dict):
        assert list(value) == [str(number) for number in range(len(value))]
        return [typed(each, kind["items"]) for each in value.values()]
    if kind.get("type") == "object" and isinstance(value, dict):
        known, other = kind.get("properties", {}), kind.get("additionalProperties")
        other = other if isinstance(other, dict) else {}
        return {name: typed(each, known.get(name, other)) for name, each in value.items()}
    if kind.get("type") == "integer" and re.fullmatch(r"-?[0-9]+", str(value)):
        return int(value)
    if kind.get("type") == "boolean" and value in ("true", "false"):
        return value == "true"
    return value


def closed(kind: Any) -> Any:
    """The schema, refusing properties that it does not name."""
    if isinstance(kind, list):
        return [closed(each) for each in kind]
    if not isinstance(kind, dict):
        return kind
    found = {name: closed(each) for name, each in kind.items()}
    if kind.get("type") == "object" and "properties" in kind:
        found.setdefault("additionalProperties", False)
    return found


def test_every_request_is_as_stripe_describes() -> None:
    with StripeEmulator() as stripe:
        for content in (
            catalogue("a", "2.345"),
            catalogue("a", "2.5"),
            catalogue("b", "2.5"),
            catalogue("a", "2.5"),
        ):
            provisioner = Provisioner(Gateway("sk_test_1", base_url=stripe.url), load(content))
            provisioner.apply(provisioner.plan())
        seen = set()
        for request in stripe.requests:
            name, kind = described(request)
            seen.add(name)
            values = typed(request.parse(), kind)
            Draft202012Validator(closed(kind)).validate(values)
            for tier in values.get("tiers", ()):
                assert all(
                    re.fullmatch(r"[0-9]+(\.[0-9]{1,12})?", tier[amount])
                    for amount in tier
                    if amount.endswith("_decimal")
                )
            assert len(values.get("lookup_keys", ())) <= 10
            assert len(request.query) < 2000
            if request.method == "POST":
                assert 0 < len(str(request.idempotency_key)) <= 255
        assert seen == WRITES | READS


def test_making_has_the_same_key_for_everybody_and_no_other_request() -> None:
    """So that Stripe itself makes one object of two runs at once."""
    keys = []
    for _ in range(2):
        with StripeEmulator() as stripe:
            content = load(catalogue("a", "2.345"))
            provisioner = Provisioner(Gateway("sk_test_1", base_url=stripe.url), content)
            provisioner.apply(provisioner.plan())
            keys.append([r.idempotency_key for r in stripe.requests if r.path == "/v1/products"])
            made = [r.idempotency_key for r in stripe.requests if r.method == "POST"]
            assert len(set(made)) == len(made)
    assert keys[0] == keys[1]
