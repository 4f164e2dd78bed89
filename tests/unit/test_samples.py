"""Events to try a meter with: whatever the catalogue asks for, they are accepted and counted."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from flask_c2meter import samples
from flask_c2meter.catalogue import load
from flask_c2meter.errors import InvalidEvent
from flask_c2meter.model import Meter
from flask_c2meter.schemas import EventSchema

MARK = "0a1b2c3d4e5f"


def meter(properties: dict[str, Any] | None = None, **more: Any) -> Meter:
    content = {"event_type": "m", "unit": "m", "aggregation": "sum", **more}
    content["properties"] = properties or {}
    return load({"plans": {}, "meters": {"m": content}}).meters["m"]


def accepted(tried: Meter, **given: str) -> dict[str, Any]:
    """The properties, checked as those of any event."""
    properties = samples.properties(tried, MARK, given)
    schema = EventSchema(tried)
    valid = schema.strict(properties, samples.value(tried, Decimal(0)))
    assert schema.is_billable(valid.properties)
    assert valid.units > 0
    return valid.properties


@pytest.mark.parametrize("name", [*load(None).meters])
def test_every_meter_of_the_packaged_catalogue(name: str) -> None:
    accepted(load(None).meters[name])


@pytest.mark.parametrize(
    "definition",
    [
        {"type": "string"},
        {"type": "string", "pattern": "[A-Za-z0-9_:.-]{1,100}"},
        {"type": "string", "pattern": "[0-9a-f]{64}"},
        {"type": "string", "pattern": "[^@]+@[^@]+"},
        {"type": "string", "max_length": 2},
        {"type": "string", "choices": ["basic", "full"]},
        {"type": "integer", "min": 3},
        {"type": "integer", "max": -1, "min": -5},
        {"type": "decimal", "min": "0.5"},
        {"type": "boolean"},
        {"type": "domain"},
    ],
)
def test_required_properties(definition: dict[str, Any]) -> None:
    assert "x" in accepted(meter({"x": {**definition, "required": True}}))


def test_what_is_not_required_is_left_out() -> None:
    assert accepted(meter({"x": {"type": "string"}})) == {}


def test_the_filter_lets_it_pass() -> None:
    filtered = meter({"ok": {"type": "boolean"}}, filter={"ok": False})
    assert accepted(filtered) == {"ok": False}


def test_what_is_unique_bears_the_mark() -> None:
    site = {"type": "domain", "required": True}
    unique = meter({"site": site}, aggregation="unique_count", unique_by="site")
    assert MARK in accepted(unique)["site"]


def test_a_maximum_is_exceeded_by_the_least_there_is() -> None:
    largest = meter(aggregation="max", precision=3)
    assert samples.value(largest, Decimal("7.5")) == Decimal("7.501")


def test_a_pattern_that_nothing_matches_is_named_with_the_cure() -> None:
    odd = meter({"serial": {"type": "string", "pattern": "Q[0-9]{7}", "required": True}})
    with pytest.raises(InvalidEvent, match="--property serial="):
        samples.properties(odd, MARK, {})
    assert accepted(odd, serial="Q1234567") == {"serial": "Q1234567"}


@pytest.mark.parametrize(
    ("definition", "text", "value"),
    [
        ({"type": "integer"}, "12", 12),
        ({"type": "boolean"}, "true", True),
        ({"type": "decimal"}, "1.50", "1.5"),
        ({"type": "domain"}, "Example.COM", "example.com"),
    ],
)
def test_given_values_are_read_by_their_type(
    definition: dict[str, Any], text: str, value: Any
) -> None:
    assert accepted(meter({"x": definition}), x=text) == {"x": value}
