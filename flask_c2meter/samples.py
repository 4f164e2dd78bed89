"""Events to try a meter with, their keys, properties and values; and a made-up alert.

Pure; imports only the nouns and the errors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from decimal import ROUND_CEILING, Decimal
from typing import Any

from .errors import InvalidEvent
from .model import Aggregation, Alert, Meter, Period, Property, new_id, to_ms

#: Keys of the events begin so; a voided one's adjustment has ``adjust:`` before it.
KEY = "selftest:"

#: Tried in turn where a property has a pattern; ``{}`` is the mark.
_TEXTS = (
    "selftest-{}",
    "selftest_{}",
    "{}",
    "selftest",
    "SELFTEST",
    "selftest@example.com",
    "https://example.com/selftest",
    "example.com",
    "192.0.2.1",
    "2026-01-01",
    "2026-01-01T00:00:00Z",
    "00000000-0000-4000-8000-000000000000",
    "1",
    "1.0.0",
    "0" * 32,
    "0" * 40,
    "0" * 64,
    "en",
    "US",
    "text/plain",
)


def key(mark: str, meter: Meter) -> str:
    """The key of the event of *meter* in the test of that mark."""
    return f"{KEY}{mark}:{meter.name}"


def properties(meter: Meter, mark: str, given: Mapping[str, str]) -> dict[str, Any]:
    """Properties of an event of *meter*: what it requires, and what its filter lets pass.

    :param mark: lower-case letters and digits; in what can bear it, so that it occurs once only.
    :param given: property -> value of those that are known better, as text.
    :raises InvalidEvent: nothing is known that a property's pattern matches.
    """
    found: dict[str, Any] = {}
    for name, prop in meter.properties.items():
        if name in given:
            found[name] = _read(prop, given[name])
        elif name in meter.filter:
            found[name] = meter.filter[name]
        elif prop.required:
            found[name] = _sample(prop, mark)
    return found


def value(meter: Meter, total: Decimal) -> Decimal | None:
    """The value of an event that counts: the least there is; None = the meter's own.

    :param total: of the customer in the period, which a ``max`` meter has to exceed.
    """
    if meter.aggregation in (Aggregation.COUNT, Aggregation.UNIQUE_COUNT):
        return None
    least = meter.to_value(1)
    return total + least if meter.aggregation is Aggregation.MAX else least


def _read(prop: Property, text: str) -> Any:
    if prop.type == "integer" and re.fullmatch("-?[0-9]{1,15}", text):
        return int(text)
    if prop.type == "boolean" and text in ("true", "false"):
        return text == "true"
    return text


def _sample(prop: Property, mark: str) -> Any:
    least = max(prop.min or Decimal(0), Decimal(0))
    match prop.type:
        case "integer":
            return int((prop.min or least).to_integral_value(ROUND_CEILING))
        case "decimal":
            return least
        case "boolean":
            return True
        case "domain":
            return f"selftest-{mark}.example.com"
        case "string":
            return _text(prop, mark)


def _text(prop: Property, mark: str) -> str:
    if prop.choices:
        return prop.choices[0]
    pattern = re.compile(prop.pattern or ".*")
    texts = (text.format(mark) for text in _TEXTS)
    for text in texts:
        if len(text) <= prop.max_length and pattern.fullmatch(text):
            return text
    raise InvalidEvent(
        {prop.name: f"no sample matches {prop.pattern}; give one: --property {prop.name}=..."}
    )


def sample_alert(customer: str, meter: Meter, now: datetime) -> Alert:
    """A warning that nothing has caused, marked as a test."""
    return Alert(
        customer=customer,
        meter=meter.name,
        level="warning",
        utilization=Decimal("0.8"),
        total=Decimal(80),
        included=Decimal(100),
        period=Period.month_of(now),
        raised_at=now,
        identifier=new_id(to_ms(now)),
        is_test=True,
    )
