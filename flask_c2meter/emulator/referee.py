"""Which parameters an endpoint takes: the referee of every request.

A :class:`Shape` names the required and the optional parameters of an endpoint, each with a check;
what it does not name is refused, as Stripe does. Imports ``terms`` and ``wire``. Promise: a handler
sees nothing that its shape has not passed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from .terms import Rejection, decimal_amount
from .wire import Refusal

#: (name, raw value) -> checked value; raises :class:`~.wire.Refusal`.
Check = Callable[[str, Any], Any]

_WHOLE_NUMBER = re.compile(r"-?[0-9]{1,12}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Shape:
    """The parameters of an endpoint, or of a group inside one."""

    required: Mapping[str, Check] = field(default_factory=dict)
    optional: Mapping[str, Check] = field(default_factory=dict)

    def __call__(self, name: str, value: Any) -> dict[str, Any]:
        """Check the group *value*, called *name* (``""`` for the whole request).

        :raises Refusal: a parameter is unknown, missing or wrong.
        """
        if not isinstance(value, dict):
            raise Refusal("Invalid object", code="parameter_invalid", param=name)
        checks = {**self.required, **self.optional}
        for given in value:
            if given not in checks:
                unknown = _inside(name, given)
                raise Refusal(
                    f"Received unknown parameter: {unknown}",
                    code="parameter_unknown",
                    param=unknown,
                )
        for wanted in self.required:
            if wanted not in value:
                missing = _inside(name, wanted)
                raise Refusal(
                    f"Missing required param: {missing}.", code="parameter_missing", param=missing
                )
        return {given: checks[given](_inside(name, given), item) for given, item in value.items()}


def _inside(group: str, name: str) -> str:
    return f"{group}[{name}]" if group else name


def text(max_chars: int) -> Check:
    """A non-empty string of at most *max_chars* characters."""

    def check(name: str, value: Any) -> str:
        if not isinstance(value, str):
            raise Refusal(f"Invalid string: {value}", code="parameter_invalid", param=name)
        if not value:
            raise Refusal(
                f"You passed an empty string for '{name}'.",
                code="parameter_invalid_empty",
                param=name,
            )
        if len(value) > max_chars:
            raise Refusal(
                f"Invalid string: {name} must be at most {max_chars} characters",
                code="parameter_invalid_string",
                param=name,
            )
        if _CONTROL.search(value):
            raise Refusal(
                f"Invalid string: {name} has control characters",
                code="parameter_invalid_string",
                param=name,
            )
        return value

    return check


def one_of(*choices: str) -> Check:
    """One of the given words."""

    def check(name: str, value: Any) -> str:
        if value not in choices:
            raise Refusal(f"Invalid {name}: must be one of {', '.join(choices)}", param=name)
        return str(value)

    return check


def whole_number(name: str, value: Any) -> int:
    """An integer, as v1 writes it: in digits."""
    if not isinstance(value, str) or not _WHOLE_NUMBER.fullmatch(value):
        raise Refusal(f"Invalid integer: {value}", code="parameter_invalid_integer", param=name)
    return int(value)


def epoch(name: str, value: Any) -> datetime:
    """A moment as v1 writes it: whole seconds since 1970."""
    seconds = whole_number(name, value)
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        raise Refusal(
            f"Invalid timestamp: {value}", code="parameter_invalid_integer", param=name
        ) from None


def date_time(name: str, value: Any) -> datetime:
    """A moment as v2 writes it: RFC 3339 with a zone."""
    try:
        moment = datetime.fromisoformat(value)
        if moment.tzinfo is None or "T" not in value.upper():
            raise ValueError
        return moment.astimezone(UTC)
    except (TypeError, ValueError, OverflowError):
        raise Refusal(
            f"Invalid timestamp for {name}: use RFC 3339, as 2026-11-23T00:00:00Z",
            code="invalid_timestamp",
            param=name,
        ) from None


def page_limit(name: str, value: Any) -> int:
    """How many items a page has, 1 to 100."""
    limit = whole_number(name, value)
    if not 1 <= limit <= 100:
        raise Refusal(
            f"Invalid {name}: must be between 1 and 100",
            code="parameter_invalid_integer",
            param=name,
        )
    return limit


def flat_map(name: str, value: Any) -> dict[str, str]:
    """A map of strings to strings of at most 100 characters; no nesting."""
    if not isinstance(value, dict):
        raise Refusal("Invalid object", code="parameter_invalid", param=name)
    check = _flat_value
    return {key: check(_inside(name, key), item) for key, item in value.items()}


def _flat_value(name: str, value: Any) -> str:
    # Empty values pass here: the meter says better what is missing.
    return "" if value == "" else str(_payload_text(name, value))


_payload_text = text(100)


def boolean(name: str, value: Any) -> bool:
    """True or false, as v1 writes them."""
    return str(one_of("true", "false")(name, value)) == "true"


def amount(name: str, value: Any) -> Decimal:
    """An amount in whole minor units."""
    if not isinstance(value, str) or not value.isascii() or not value.isdigit():
        raise Refusal(
            f"Invalid non-negative integer: {value}", code="parameter_invalid_integer", param=name
        )
    return decimal(name, value)


def decimal(name: str, value: Any) -> Decimal:
    """An amount in minor units, with at most 12 decimal places."""
    try:
        return decimal_amount(text(40)(name, value))
    except Rejection as rejection:
        raise Refusal(rejection.message, code=rejection.code, param=name) from None


def list_of(check: Check, max_items: int = 100) -> Check:
    """A list, which v1 writes as a group with numbers for names."""

    def check_each(name: str, value: Any) -> list[Any]:
        if not isinstance(value, dict) or not all(key.isdecimal() for key in value):
            raise Refusal("Invalid array", code="parameter_invalid", param=name)
        if len(value) > max_items:
            raise Refusal(f"{name} has at most {max_items} items", param=name)
        ordered = sorted(value, key=int)
        return [check(f"{name}[{index}]", value[index]) for index in ordered]

    return check_each


def metadata(name: str, value: Any) -> dict[str, str]:
    """Up to 50 short strings of the caller's own; an empty one unsets its key."""
    if value == "":
        return {}
    if not isinstance(value, dict) or len(value) > 50:
        raise Refusal("Invalid object", code="parameter_invalid", param=name)
    for key in value:
        text(40)(name, key)
    return {key: text(500)(_inside(name, key), item) for key, item in value.items() if item != ""}


def span(name: str, value: Any) -> tuple[int, int]:
    """A moment or a range of moments, as ``[first, last]`` in epoch seconds."""
    if isinstance(value, str):
        exact = whole_number(name, value)
        return exact, exact
    bounds = _RANGE(name, value)
    first = max(bounds.get("gte", _EARLIEST), bounds.get("gt", _EARLIEST - 1) + 1)
    last = min(bounds.get("lte", _LATEST), bounds.get("lt", _LATEST + 1) - 1)
    return first, last


_EARLIEST, _LATEST = -(10**12), 10**12
_RANGE = Shape(optional={bound: whole_number for bound in ("gt", "gte", "lt", "lte")})


def expansions(name: str, value: Any) -> list[str]:
    """What is to be expanded: paths of at most four levels."""
    paths: list[str] = list_of(text(200))(name, value)
    for path in paths:
        if path.count(".") > 3:
            raise Refusal(f"You cannot expand more than 4 levels of a property: {path}", param=name)
    return paths
