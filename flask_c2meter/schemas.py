"""What an event may say: one marshmallow schema per meter, built from the catalogue.

Imports only :mod:`~flask_c2meter.model`, :mod:`~flask_c2meter.decimals`,
:mod:`~flask_c2meter.errors` and marshmallow (and ``idna`` when a domain needs it). The promise:
what leaves here is exact, printable, small, and what was said. Bad input is refused with the
field's name, never cleaned, because two ids must never become one; only domains, where one name has
many spellings, are normalised.

A property is checked by a function from the given value to the kept one; :data:`_CHECKS` names it
for each type of the catalogue.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal, Inexact, InvalidOperation
from functools import reduce
from itertools import islice
from typing import Any

from marshmallow import Schema, ValidationError, fields

from .decimals import own_context
from .errors import InvalidEvent, did_you_mean, show
from .model import MAX_UNITS, Aggregation, Flag, Meter, Property, check_text

#: Largest size of an event's properties as JSON, in bytes of UTF-8.
MAX_PROPERTIES_BYTES = 4096

#: Longest domain name, in characters. Source: RFC 1035, section 2.3.4, as text.
MAX_DOMAIN_LENGTH = 253

#: The source document's words for the result of a verification.
RESULT_WORDS = {"success": True, "failed": False, "pending": False}

#: marshmallow's messages: name of a property, known or not -> texts.
_Errors = Mapping[Any, list[str]]

_COUNTING = (Aggregation.COUNT, Aggregation.UNIQUE_COUNT)
_DECIMAL_TEXT = re.compile(r"[0-9]{1,30}(\.[0-9]{1,30})?", re.ASCII)
_PORT = re.compile(r":[0-9]{1,5}\Z", re.ASCII)
# Underscores are no host names by RFC 1123, but sites that browsers reach do use them.
_LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_DOMAIN = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_IP_ADDRESS = re.compile(r"(.*\.)?[0-9]+")
_FIFTEEN_DIGITS = own_context(15, Inexact, InvalidOperation)
_SUM = own_context(100, Inexact, InvalidOperation)
_ENCODER = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":")
)


def canonical_json(properties: Mapping[str, Any]) -> str:
    """*properties* as the one JSON text they have: keys sorted, no spaces, not escaped to ASCII."""
    return _ENCODER.encode(properties)


@dataclass(frozen=True, slots=True)
class ValidEvent:
    """What :class:`EventSchema` made of a value and properties."""

    #: Quantity in integers of ``10**-precision`` of the meter's unit.
    units: int
    #: Ready for JSON: strings, integers and booleans; decimals are text without exponent.
    properties: dict[str, Any]
    #: What a ``unique_count`` meter counts; None for others, or when it is undecidable.
    unique_by: str | None = None
    flags: tuple[Flag, ...] = ()
    #: Names of what was left out, for the log.
    wrong: tuple[str, ...] = field(default=(), compare=False)


class EventSchema:
    """Checks the events of one meter. Build it once: it is thread-safe and costs to build.

    :param meter: from the catalogue.
    """

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._filter = tuple(meter.filter.items())
        # Most meters cannot reach the limit, so that their events need not be measured.
        self._may_be_long = _longest_json(meter) > MAX_PROPERTIES_BYTES
        checked = {name: _Checked(prop) for name, prop in meter.properties.items()}
        self._schema = _EventFields.from_dict({**checked}, name=meter.name)()
        self._checks = {name: field.check for name, field in checked.items()}
        self._required = {name for name, field in checked.items() if field.required}

    def strict(self, properties: Mapping[str, Any], value: object = None) -> ValidEvent:
        """Check an event before anything is done or written.

        :param value: quantity in the meter's unit; None = the meter's default (see
            :func:`parse_units`), or the sum of its ``value_from`` properties.
        :raises InvalidEvent: naming each wrong field.
        """
        kept, errors = self._load(properties)
        wrong = self._explain(errors)
        try:
            units = self._units(kept, errors, value)
        except InvalidEvent as error:
            wrong |= error.messages
        if size_bytes := self._excess(kept):
            wrong["properties"] = f"at most {MAX_PROPERTIES_BYTES} bytes of JSON, not {size_bytes}"
        if wrong:
            raise InvalidEvent(wrong)
        return ValidEvent(units, kept, self._unique(kept))

    def lenient(
        self, properties: Mapping[str, Any], value: object = None, *, is_whole: bool = True
    ) -> ValidEvent:
        """Keep what can be kept of an event whose work is already done; never raises.

        Wrong, unknown and missing properties are left out and the event is flagged
        ``incomplete``. If that leaves its value undecidable, it has 0 units and the flag
        ``invalid``.

        :param is_whole: False if there was more to say that could not be said.
        """
        kept, errors = self._load(properties)
        unique_by = self._unique(kept)
        flags: tuple[Flag, ...] = ()
        wrong: set[str] = set(self._explain(errors)) if errors else set()
        too_long: set[str] = set()
        try:
            units = self._units(kept, errors, value)
        except InvalidEvent as error:
            units, flags = 0, ("invalid",)
            wrong |= error.messages.keys()
        while self._excess(kept):
            longest = max(kept, key=lambda name: len(str(kept[name])))
            del kept[longest]
            too_long.add(longest)
        if errors or too_long or not is_whole:
            flags = ("incomplete", *flags)
        left_out = tuple(sorted(wrong | too_long)) if flags else ()
        return ValidEvent(units, kept, unique_by, flags, left_out)

    def is_billable(self, properties: Mapping[str, Any]) -> bool:
        """True if the meter's filter lets an event with these properties through.

        :param properties: of a :class:`ValidEvent`; one that is absent passes.
        """
        return all(properties.get(name, wanted) == wanted for name, wanted in self._filter)

    def _load(self, properties: Mapping[str, Any]) -> tuple[dict[str, Any], _Errors]:
        """The good properties, and what is wrong with the others."""
        if (good := self._all_good(properties)) is not None:
            return good, {}
        try:
            return self._schema.load(properties), {}
        except ValidationError as error:
            valid: Any = error.valid_data
            return valid, error.messages_dict

    def _all_good(self, properties: Mapping[str, Any]) -> dict[str, Any] | None:
        """The checked properties if nothing is wrong with them, else None.

        Each metered request comes through here: the same checks without marshmallow's loop around
        them, which costs twice as much as they do and is needed only to collect what is wrong.
        """
        if type(properties) is not dict or not self._required <= properties.keys():
            return None
        try:
            return {name: self._checks[name](value) for name, value in properties.items()}
        except (KeyError, ValidationError):
            return None

    def _explain(self, errors: _Errors) -> dict[str, str]:
        # Whoever sends a thousand unknown names learns about the first few.
        few = islice(errors.items(), len(self._meter.properties) + 10)
        return dict(self._explain_one(name, texts) for name, texts in few)

    def _explain_one(self, name: object, texts: list[str]) -> tuple[str, str]:
        if name in self._meter.properties:
            return str(name), texts[0]
        if name == "_schema":
            return "properties", texts[0]
        known = ", ".join(self._meter.properties)
        hint = did_you_mean(name, self._meter.properties)
        return show(name, 60).strip("'"), f"is none of {self._meter.name}'s: {known}{hint}"

    def _units(self, kept: Mapping[str, Any], errors: _Errors, value: object) -> int:
        """The event's wire units.

        :raises InvalidEvent: they are undecidable.
        """
        unique_by = self._meter.unique_by
        if unique_by is not None and unique_by not in kept:
            raise InvalidEvent({unique_by: errors.get(unique_by, ["is required"])[0]})
        if value is None and self._meter.value_from:
            value = self._added_up(kept, errors)
        return parse_units(self._meter, value)

    def _added_up(self, kept: Mapping[str, Any], errors: _Errors) -> Decimal:
        sources = self._meter.value_from
        if bad := {name: errors[name][0] for name in sources if name in errors}:
            raise InvalidEvent(bad)
        given = [Decimal(kept[name]) for name in sources if name in kept]
        if not given:
            raise InvalidEvent({"value": f"is required, or one of {', '.join(sources)}"})
        return reduce(_SUM.add, given)

    def _unique(self, kept: Mapping[str, Any]) -> str | None:
        return None if self._meter.unique_by is None else kept.get(self._meter.unique_by)

    def _excess(self, kept: Mapping[str, Any]) -> int:
        """Size in bytes of properties that are too long; 0 if they are not."""
        if not self._may_be_long:
            return 0
        size_bytes = len(canonical_json(kept).encode())
        return size_bytes if size_bytes > MAX_PROPERTIES_BYTES else 0


def parse_units(meter: Meter, value: object) -> int:
    """A *value* in the meter's unit as an integer of ``10**-precision`` of it.

    :param value: an ``int``, a ``Decimal`` or ASCII decimal text such as ``"1.5"``, >= 0; None = 1,
        except for a ``max`` meter, which has no natural default.
    :raises InvalidEvent: under ``value``: another type (``bool`` and ``float`` included), negative,
        over 15 digits, more decimal places than the meter has, or not 1 where events are counted.
    """
    one: int = 10**meter.precision
    if value is None and meter.aggregation is not Aggregation.MAX:
        return one
    try:
        units = _scaled(_quantity(value), meter.precision)
    except ValidationError as error:
        raise InvalidEvent({"value": str(error.messages[0])}) from None
    if units != one and meter.aggregation in _COUNTING:
        raise InvalidEvent({"value": f"{meter.name} counts events as 1 each: leave the value out"})
    return units


def check_quantity(value: object) -> None:
    """Check what can be checked of a *value* without knowing the meter.

    :raises InvalidEvent: under ``value``: another type (``bool`` and ``float`` included), negative.
    """
    try:
        _quantity(value)
    except ValidationError as error:
        raise InvalidEvent({"value": str(error.messages[0])}) from None


def _scaled(number: Decimal, precision: int) -> int:
    try:
        exact = number.quantize(Decimal(1).scaleb(-precision), context=_FIFTEEN_DIGITS)
    except Inexact:
        raise ValidationError(f"has more than {precision} decimal places, round it first") from None
    except InvalidOperation:
        raise ValidationError(_too_large(precision)) from None
    return int(exact.scaleb(precision, _FIFTEEN_DIGITS))


def _too_large(precision: int) -> str:
    places = f", {precision} of them decimal places" if precision else ""
    return f"must have at most 15 digits{places}"


# -- Checks: from the given value to the kept one --------------------------------------------------


def _quantity(value: object) -> Decimal:
    """An exact, finite number >= 0; of any size but for an ``int``."""
    if isinstance(value, str) and _DECIMAL_TEXT.fullmatch(value):
        return Decimal(value)
    if isinstance(value, int) and not isinstance(value, bool):
        if value > MAX_UNITS:
            raise ValidationError(_too_large(0))
        number = Decimal(value)
    elif isinstance(value, Decimal) and value.is_finite():
        number = value
    else:
        given = show(value, 30) if isinstance(value, Decimal | str) else type(value).__name__
        raise ValidationError(f"must be an int, a Decimal or text such as '1.5', not {given}")
    if number < 0:
        raise ValidationError("must not be negative")
    return number.copy_abs()  # minus zero is zero


def _string(prop: Property) -> Callable[[object], str]:
    pattern = None if prop.pattern is None else re.compile(prop.pattern)

    def check(value: object) -> str:
        text = _printable(value, 4 * prop.max_length)
        if len(text) > prop.max_length:
            raise ValidationError(f"must have at most {prop.max_length} characters")
        if pattern is not None and not pattern.fullmatch(text):
            raise ValidationError(f"must match {prop.pattern}")
        if prop.choices and text not in prop.choices:
            raise ValidationError(f"must be one of {', '.join(prop.choices)}")
        return text

    return check


def _printable(value: object, max_bytes: int) -> str:
    try:
        return check_text("text", value, max_bytes)
    except InvalidEvent as error:
        raise ValidationError(error.messages["text"]) from None


def _integer(prop: Property) -> Callable[[object], int]:
    def check(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValidationError(f"must be an int, not {type(value).__name__}")
        if abs(value) > MAX_UNITS:
            raise ValidationError(_too_large(0))
        _check_range(prop, value)
        return int(value)  # without the subclass: an IntEnum is a name in some JSON

    return check


def _decimal(prop: Property) -> Callable[[object], str]:
    def check(value: object) -> str:
        number = _quantity(value)
        try:
            plain = _FIFTEEN_DIGITS.normalize(number)
        except Inexact:
            raise ValidationError(_too_large(0)) from None
        if plain and not -15 <= plain.adjusted() < 15:
            raise ValidationError(_too_large(0))
        _check_range(prop, plain)
        return f"{plain:f}"

    return check


def _check_range(prop: Property, number: int | Decimal) -> None:
    if prop.min is not None and number < prop.min:
        raise ValidationError(f"must not be below {prop.min}")
    if prop.max is not None and number > prop.max:
        raise ValidationError(f"must not be above {prop.max}")


def _boolean(prop: Property) -> Callable[[object], bool]:
    def check(value: object) -> bool:
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value in RESULT_WORDS:
            return RESULT_WORDS[value]
        raise ValidationError(f"must be true or false, or one of {', '.join(RESULT_WORDS)}")

    return check


def _domain(prop: Property) -> Callable[[object], str]:
    return normalise_domain


def normalise_domain(value: object) -> str:
    """The one spelling of a domain: lower case, IDNA, without port and trailing dot.

    A single label (``localhost``) and underscores are domains; an IP address, a URL and an e-mail
    address are not.

    :raises ValidationError: it is no domain.
    """
    text = _PORT.sub("", _printable(value, 4 * MAX_DOMAIN_LENGTH)).lower()
    if not text.isascii() or "xn--" in text:
        text = _to_ascii(text)
    text = text.removesuffix(".")
    if len(text) > MAX_DOMAIN_LENGTH or not _DOMAIN.fullmatch(text):
        raise ValidationError("must be a domain such as 'example.com', without scheme and path")
    if _IP_ADDRESS.fullmatch(text):
        raise ValidationError("must be a domain, not an IP address")
    return text


def _to_ascii(text: str) -> str:
    import idna  # its tables cost more than the rest of this module, and few domains need them

    try:
        # UTS 46 is what browsers apply: it folds case and width before encoding.
        return idna.encode(text, uts46=True).decode("ascii")
    except idna.IDNAError:
        raise ValidationError("must be a domain: its name is not allowed by IDNA") from None


#: Type of a property -> what builds its check.
_CHECKS: Mapping[str, Callable[[Property], Callable[[object], Any]]] = {
    "string": _string,
    "integer": _integer,
    "decimal": _decimal,
    "boolean": _boolean,
    "domain": _domain,
}


class _Checked(fields.Field[Any]):
    """A field whose whole rule is the check of its property."""

    default_error_messages = {  # noqa: RUF012 (marshmallow's own contract)
        "required": "is required",
        "null": "must not be None, leave it out instead",
    }

    def __init__(self, prop: Property) -> None:
        super().__init__(required=prop.required)
        self.check = _CHECKS[prop.type](prop)

    def _deserialize(
        self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any
    ) -> Any:
        return self.check(value)


class _EventFields(Schema):
    """Base of the schemas; unknown properties are errors, which is marshmallow's default."""

    error_messages = {"type": "must be a mapping"}  # noqa: RUF012


def _longest_json(meter: Meter) -> int:
    """The most bytes that the properties of an event can take as JSON."""
    return sum(len(f'"{prop.name}":"",') + _longest(prop) for prop in meter.properties.values())


def _longest(prop: Property) -> int:
    if prop.type != "string":
        return MAX_DOMAIN_LENGTH  # ASCII; numbers are shorter
    # UTF-8 has four bytes a character at most, and JSON's escapes only double an ASCII one.
    return 4 * prop.max_length
