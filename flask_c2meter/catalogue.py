"""The catalogue: TOML, JSON or a mapping becomes meters, plans and prices.

The promise: what is loaded is right. A misspelt key, a wrong type, an unknown plan, an overlapping
tier or a float price fails here, at start, naming the key, the value and the cure; nothing is
guessed, sorted or rounded.

The builders (:func:`_meter`, :func:`_price`, ...) name which keys there are and which of the
:mod:`~flask_c2meter.readers` goes with each.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType
from typing import Any

from . import readers
from .errors import CatalogueError, UnknownMeter, did_you_mean, show
from .model import Aggregation, Meter, Plan, Price, Property, Tier
from .readers import Builder, Reader, Table, wrong

#: What :func:`load` reads when it is given nothing.
DEFAULT_PATH = Path(__file__).with_name("catalogues") / "c2pa.toml"

#: The plans of a source that has no ``plans`` of its own.
DEFAULT_PLANS = MappingProxyType(
    {name: Plan(name, name.title()) for name in ("starter", "growth", "scale")}
)

#: A meter of our own, in every ledger and in no catalogue: see ``canary``.
CANARY = Meter("c2meter_canary", "Canary", "canary.recorded", "event", Aggregation.COUNT)

#: Decimal places of an amount per wire unit. Source: Stripe Price ``unit_amount_decimal``.
AMOUNT_PLACES = 12

_METER_NAME = re.compile(r"[A-Za-z0-9_]{1,100}")
_PLAN_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}")
_PROPERTY_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
#: Own parameters of ``record()``, which takes the properties as keywords.
_RESERVED = frozenset({"self", "meter", "customer", "value", "key", "occurred_at", "connection"})
_CURRENCY = re.compile(r"[a-z]{3}")
# The notation of the `limits` package, whose import would cost more than all the rest of ours.
_ONE_LIMIT = r"\s*[1-9][0-9]*\s*(/|per)\s*([1-9][0-9]*\s*)?(second|minute|hour|day|month|year)s?\s*"
_RATE_LIMIT = re.compile(rf"{_ONE_LIMIT}([,;|]{_ONE_LIMIT})*", re.IGNORECASE)
_FILTER_CURES = {
    "string": "write a text that this property can have",
    "integer": "write a whole number that this property can have",
    "boolean": "write true or false, without quotes",
    # Both have several spellings of one value: no honest comparison with a constant.
    "decimal": "filter by a string, integer or boolean property instead",
    "domain": "filter by a string, integer or boolean property instead",
}


@dataclass(frozen=True, slots=True)
class Catalogue:
    """All meters and plans of an app, checked and immutable."""

    meters: Mapping[str, Meter]
    plans: Mapping[str, Plan]
    #: Tells what was made for it at Stripe from what was made for another; empty = it has none.
    name: str = ""

    def meter(self, name: str) -> Meter:
        """The meter called *name*.

        :raises UnknownMeter: (a ``LookupError`` and a ``ValueError``) listing the known ones.
        """
        try:
            return self.meters[name]
        except (KeyError, TypeError):
            raise UnknownMeter(
                f"no meter is called {show(name)}{did_you_mean(name, self.meters)}; known meters:"
                f" {', '.join(self.meters)}. Add [meters.NAME] to the catalogue for a new one"
            ) from None


def load(source: str | Path | Mapping[str, Any] | None = None) -> Catalogue:
    """Read and check a catalogue.

    :param source: path of a ``.toml`` or ``.json`` file, or the same as a mapping, which is not
        changed; None = the packaged one, ``catalogues/c2pa.toml``.
    :raises CatalogueError: the file or anything in it is wrong; the message names key, value and
        cure.
    :raises CatalogueTypeError: the same for a wrong type, such as a float where money is meant.
    """
    content = source if isinstance(source, Mapping) else _parse(Path(source or DEFAULT_PATH))
    table = Table("", content, ("meters", "plans", "name"))
    plans = table.read_or("plans", readers.tables_of(_plan), DEFAULT_PLANS)
    meters = table.read("meters", readers.tables_of(_meter(plans)))
    if not meters:
        raise wrong("meters", meters, "add at least one [meters.NAME]")
    name = table.read_or("name", _catalogue_name, "")
    return Catalogue(MappingProxyType(meters), MappingProxyType(dict(plans)), name)


def _parse(path: Path) -> Mapping[str, Any]:
    parsers: dict[str, Callable[[str], Any]] = {".toml": tomllib.loads, ".json": _parse_json}
    parse = parsers.get(path.suffix.lower())
    if parse is None:
        raise CatalogueError(f"catalogue {str(path)!r}: use a file named .toml or .json")
    try:
        content: Mapping[str, Any] = parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CatalogueError(
            f"catalogue {str(path)!r} cannot be read ({error.strerror}): correct C2METER_CATALOGUE"
        ) from error
    except (ValueError, RecursionError) as error:
        raise CatalogueError(
            f"catalogue {str(path)!r} is no {path.suffix} file: {error}"
        ) from error
    return content


def _parse_json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_no_duplicates)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # TOML refuses a repeated key by itself; JSON would let the last one win in silence.
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"key {twice!r} appears twice, remove one")
    return content


# -- Builders: which keys there are, and what each may hold ----------------------------------------


def _catalogue_name(path: str, value: Any) -> str:
    name = readers.text(path, value)
    _check_name(path, name, _PLAN_NAME, "letters, digits, '_' and '-', at most 100")
    return name


def _plan(path: str, name: str, content: Any) -> Plan:
    _check_name(path, name, _PLAN_NAME, "letters, digits, '_' and '-', at most 100")
    table = Table(path, content, ("display_name",))
    return Plan(name, table.read_or("display_name", readers.text, name.title()))


def _meter(plans: Mapping[str, Plan]) -> Builder[Meter]:
    def build(path: str, name: str, content: Any) -> Meter:
        _check_name(path, name, _METER_NAME, "letters, digits and '_', at most 100")
        if name == CANARY.name:
            raise wrong(path, name, "the canary of C2METER_CANARY is called so, use another")
        table = Table(path, content, Meter.__dataclass_fields__.keys() - {"name"})
        precision = table.read_or("precision", readers.whole(0, 9), 0)
        properties = table.read_or("properties", readers.tables_of(_property), {})
        meter = Meter(
            name=name,
            display_name=table.read_or("display_name", readers.text, _spoken(name)),
            event_type=table.read("event_type", readers.text),
            unit=table.read("unit", readers.text),
            aggregation=Aggregation(table.read("aggregation", readers.one_of(*Aggregation))),
            precision=precision,
            unique_by=table.read_or("unique_by", readers.text, None),
            value_from=table.read_or("value_from", readers.names, ()),
            rate_limit=table.read_or("rate_limit", _rate_limit, None),
            filter=table.read_or("filter", _filter(properties), MappingProxyType({})),
            included=table.read_or("included", _included(plans, precision), MappingProxyType({})),
            price=table.read_or("price", _price(precision), None),
            properties=MappingProxyType(properties),
            billable=table.read_or("billable", readers.flag, True),
        )
        _check_counting(path, meter)
        _check_value_from(path, meter)
        return meter

    return build


def _spoken(name: str) -> str:
    return name.replace("_", " ").title()


def _check_counting(path: str, meter: Meter) -> None:
    """Counting needs whole numbers, and unique counting a property that is always there."""
    is_unique = meter.aggregation is Aggregation.UNIQUE_COUNT
    if (is_unique or meter.aggregation is Aggregation.COUNT) and meter.precision:
        raise wrong(f"{path}.precision", meter.precision, "a count is whole, leave it out")
    if is_unique != (meter.unique_by is not None):
        cure = "name the property to count" if is_unique else 'only for aggregation "unique_count"'
        raise wrong(f"{path}.unique_by", meter.unique_by, cure)
    if meter.unique_by is None:
        return
    counted = _known(f"{path}.unique_by", meter.unique_by, meter.properties)
    if counted.type not in ("string", "domain") or not counted.required:
        raise wrong(
            f"{path}.unique_by",
            meter.unique_by,
            'make that property a "string" or "domain" with required = true',
        )


def _check_value_from(path: str, meter: Meter) -> None:
    """Only numbers add up, and only ``sum`` and ``max`` have a value to add up to."""
    path = f"{path}.value_from"
    if meter.value_from and meter.aggregation not in (Aggregation.SUM, Aggregation.MAX):
        raise wrong(path, meter.value_from, 'only for aggregation "sum" or "max"')
    for name in meter.value_from:
        if _known(path, name, meter.properties).type not in ("decimal", "integer"):
            raise wrong(path, name, 'make that property a "decimal" or an "integer"')


def _property(path: str, name: str, content: Any) -> Property:
    cure = "a lower-case letter, then lower-case letters, digits and '_', at most 40"
    _check_name(path, name, _PROPERTY_NAME, cure)
    if name in _RESERVED:
        raise wrong(path, name, "record() has a parameter of that name, use another")
    table = Table(path, content, Property.__dataclass_fields__.keys() - {"name"})
    kind = table.read("type", readers.one_of("string", "integer", "decimal", "boolean", "domain"))
    table.only_if(kind == "string", 'for type = "string"', "pattern", "choices", "max_length")
    table.only_if(kind in ("integer", "decimal"), "for numbers", "min", "max")
    bound = readers.bound if kind == "integer" else readers.decimal(9)
    item = Property(
        name=name,
        type=kind,
        required=table.read_or("required", readers.flag, False),
        pattern=table.read_or("pattern", readers.pattern, None),
        choices=table.read_or("choices", readers.names, ()),
        max_length=table.read_or("max_length", readers.whole(1, 1000), 255),
        min=table.read_or("min", bound, None),
        max=table.read_or("max", bound, None),
    )
    for choice in item.choices:
        if not _is_spelt(replace(item, choices=()), choice):
            raise wrong(f"{path}.choices", choice, "no event could have it: see pattern, length")
    if item.min is not None and item.max is not None and item.min > item.max:
        raise wrong(f"{path}.max", item.max, f"must not be below min = {item.min}")
    return item


def _filter(properties: Mapping[str, Property]) -> Reader[Mapping[str, Any]]:
    def read(path: str, content: Any) -> Mapping[str, Any]:
        table = Table(path, content)
        for name, wanted in table.content.items():
            prop = _known(table.at(name), name, properties)
            if not _accepts(prop, wanted):
                raise wrong(table.at(name), wanted, _FILTER_CURES[prop.type])
        return MappingProxyType(dict(table.content))

    return read


def _accepts(prop: Property, wanted: object) -> bool:
    """True if *wanted* is a value of *prop* in the one form it is compared in."""
    if prop.type == "boolean":
        return isinstance(wanted, bool)
    if prop.type == "integer":
        return type(wanted) is int and _is_within(prop, wanted)
    return prop.type == "string" and isinstance(wanted, str) and _is_spelt(prop, wanted)


def _is_within(prop: Property, number: int) -> bool:
    return (prop.min is None or prop.min <= number) and (prop.max is None or number <= prop.max)


def _is_spelt(prop: Property, text: str) -> bool:
    fits = prop.pattern is None or re.fullmatch(prop.pattern, text) is not None
    chosen = not prop.choices or text in prop.choices
    return fits and chosen and 0 < len(text) <= prop.max_length


def _included(plans: Mapping[str, Plan], precision: int) -> Reader[Mapping[str, Decimal | None]]:
    quantity = readers.decimal(precision)

    def read(path: str, content: Any) -> Mapping[str, Decimal | None]:
        table = Table(path, content)
        for name, value in table.content.items():
            if name not in plans:
                hint = did_you_mean(name, plans)
                cure = f"unknown plan{hint}; known plans: {', '.join(plans)}. Add [plans.{name}]"
                raise wrong(table.at(name), value, cure)
        return MappingProxyType(
            {
                name: None if value == "unlimited" else quantity(table.at(name), value)
                for name, value in table.content.items()
            }
        )

    return read


def _price(precision: int) -> Reader[Price]:
    # Stripe is told the price of a wire unit, 10**-precision of ours: that takes as many places.
    amount = readers.decimal(AMOUNT_PLACES - precision)

    def read(path: str, content: Any) -> Price:
        table = Table(path, content, ("mode", "unit_amount", "tiers", "currency"))
        mode = table.read("mode", readers.one_of("flat", "graduated", "volume"))
        currency = table.read("currency", _currency)
        table.only_if(mode == "flat", 'for mode = "flat"', "unit_amount")
        table.only_if(mode != "flat", 'for mode = "graduated" or "volume"', "tiers")
        if mode == "flat":
            return Price(mode, currency, unit_amount=table.read("unit_amount", amount))
        tiers = table.read("tiers", readers.list_of(_tier(precision)))
        _check_tiers(f"{path}.tiers", tiers)
        return Price(mode, currency, tiers=tiers)

    return read


def _tier(precision: int) -> Reader[Tier]:
    def read(path: str, content: Any) -> Tier:
        table = Table(path, content, Tier.__dataclass_fields__)
        return Tier(
            up_to=table.read_or("up_to", readers.decimal(precision), None),
            unit_amount=table.read("unit_amount", readers.decimal(AMOUNT_PLACES - precision)),
            flat_amount=table.read_or("flat_amount", readers.decimal(AMOUNT_PLACES), Decimal(0)),
        )

    return read


def _check_tiers(path: str, tiers: Sequence[Tier]) -> None:
    """Tiers ascend and only the last is open: never sorted here, a wrong order is a wrong price."""
    below = Decimal(0)
    for number, tier in enumerate(tiers[:-1]):
        if tier.up_to is None:
            raise CatalogueError(f"{path}[{number}].up_to is missing: only the last tier is open")
        if tier.up_to <= below:
            cure = f"tiers overlap: must be above {below}, list them ascending"
            raise wrong(f"{path}[{number}].up_to", str(tier.up_to), cure)
        below = tier.up_to
    if tiers[-1].up_to is not None:
        cure = "leave it out of the last tier, which is open-ended"
        raise wrong(f"{path}[{len(tiers) - 1}].up_to", str(tiers[-1].up_to), cure)


def _rate_limit(path: str, value: Any) -> str:
    text = readers.text(path, value)
    if not _RATE_LIMIT.fullmatch(text):
        raise wrong(path, value, 'write it like "100 per minute" or "10/second; 100/minute"')
    return text


def _currency(path: str, value: Any) -> str:
    text = readers.text(path, value)
    if not _CURRENCY.fullmatch(text):
        raise wrong(path, value, 'write three lower-case letters, such as "usd"')
    return text


def _check_name(path: str, name: str, pattern: re.Pattern[str], cure: str) -> None:
    if not pattern.fullmatch(name):
        raise wrong(path, name, f"name it with {cure}")


def _known(path: str, name: str, properties: Mapping[str, Property]) -> Property:
    if name not in properties:
        hint = did_you_mean(name, properties)
        raise wrong(path, name, f"no such property{hint}; declare it under properties")
    return properties[name]
