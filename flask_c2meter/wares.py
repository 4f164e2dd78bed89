"""Meters, products and prices as we make them at Stripe, and whether one there is like that.

Pure; imports the nouns and what knows Stripe's words. Stripe's meters bear no marks: each has a
product of ours, whose id follows from the meter's name, and which says whether we made the meter.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from types import MappingProxyType
from typing import Any

from .model import Meter, Plan
from .money import rate
from .stripe_objects import CUSTOMER_KEY, VALUE_KEY, Object, lookup_key
from .stripe_prices import INF, StripePrice

#: In the metadata of every product and price that we have made.
_MARK = "c2meter_managed"
#: The name of the catalogue that it was made for, if that has one.
_CATALOGUE = "c2meter_catalogue"
#: In the metadata of a product of ours: whether its meter was made by us, too.
_OWNS_METER = "c2meter_owns_meter"
_YES, _NO = "1", "0"

#: Longest ``unit_label`` of a product.
_MAX_LABEL = 12

#: How every price of ours recurs.
_MONTHLY = MappingProxyType({"interval": "month", "interval_count": 1, "usage_type": "metered"})
#: How every meter of ours counts what the shipments send.
_SETTINGS = MappingProxyType(
    {
        "default_aggregation": {"formula": "sum"},
        "customer_mapping": {"type": "by_id", "event_payload_key": CUSTOMER_KEY},
        "value_settings": {"event_payload_key": VALUE_KEY},
    }
)

Params = dict[str, Any]


def is_ours(found: Object, catalogue: str) -> bool:
    """Whether a product or price bears our mark, and was made for the catalogue of that name."""
    metadata = found.get("metadata") or {}
    return metadata.get(_MARK) == _YES and metadata.get(_CATALOGUE, "") == catalogue


def marking(catalogue: str) -> str:
    """What the metadata of an object of the catalogue of that name has, in words."""
    return " and ".join(f"{key}={value}" for key, value in _marks(catalogue).items())


def _marks(catalogue: str) -> dict[str, str]:
    return {_MARK: _YES, **({_CATALOGUE: catalogue} if catalogue else {})}


# -- meters ----------------------------------------------------------------------------------------


def new_meter(meter: Meter) -> Params:
    """The parameters of a new Stripe meter."""
    return {"display_name": meter.display_name, "event_name": meter.name, **_SETTINGS}


def faults(held: Object) -> list[str]:
    """Why a Stripe meter does not count as the shipments need it; empty if it does."""
    wanted: dict[str, Any] = {**_SETTINGS, "event_time_window": None}
    return [
        f"{name} is {_plain(held.get(name))}, must be {_plain(right)}"
        for name, right in wanted.items()
        if held.get(name) != right
    ]


def _plain(setting: Any) -> str:
    parts = setting.values() if isinstance(setting, Mapping) else [setting or "unset"]
    return " ".join(map(str, parts))


# -- products --------------------------------------------------------------------------------------


def product_id(meter: str) -> str:
    """The id of the product of *meter*."""
    return f"c2meter_{meter}"


def new_product(meter: Meter, catalogue: str, *, owns_meter: bool) -> Params:
    """The parameters of a new product.

    :param catalogue: its name.
    :param owns_meter: there was no meter of the name, so that it will be ours.
    """
    owns = _YES if owns_meter else _NO
    marks = {**_marks(catalogue), "meter": meter.name, _OWNS_METER: owns}
    return {"id": product_id(meter.name), **labels(meter), "metadata": marks}


def owns_meter(product: Object) -> bool:
    """Whether the meter of a *product* of ours was made by us."""
    return bool(product["metadata"].get(_OWNS_METER) == _YES)


def labels(meter: Meter) -> dict[str, str]:
    """What stands on the invoice. Stripe counts wire units there, and the product says so."""
    if not meter.precision:
        return {"name": meter.display_name, "unit_label": meter.unit[:_MAX_LABEL].strip()}
    unit = f"{meter.to_value(1):f} {meter.unit}"
    return {
        "name": f"{meter.display_name}, per {unit}",
        "unit_label": unit[:_MAX_LABEL].strip(),
    }


# -- prices ----------------------------------------------------------------------------------------


def new_price(meter: Meter, plan: Plan, price: StripePrice, catalogue: str) -> Params:
    """The parameters of a new price, all but the id of its meter.

    :param catalogue: its name.
    """
    return {
        "product": product_id(meter.name),
        "currency": price.currency,
        "billing_scheme": "tiered",
        "tiers_mode": price.tiers_mode,
        "tiers": [tier.params() for tier in price.tiers],
        "recurring": dict(_MONTHLY),
        "lookup_key": lookup_key(plan.name, meter.name),
        "nickname": f"{plan.display_name}: {meter.display_name}",
        "metadata": {**_marks(catalogue), "plan": plan.name, "meter": meter.name},
    }


def is_as_wanted(held: Object, meter: Meter, meter_id: str | None, price: StripePrice) -> bool:
    """Whether a Stripe price bills as *price* says.

    :param held: with its tiers.
    :param meter_id: of the Stripe meter; None = it is still to be made.
    """
    found = {key: (held.get("recurring") or {}).get(key) for key in (*_MONTHLY, "meter")}
    return (
        found == {**_MONTHLY, "meter": meter_id}
        and held["product"] == product_id(meter.name)
        and held["currency"] == price.currency
        and held["tiers_mode"] == price.tiers_mode
        and not held.get("transform_quantity")
        and [*map(_terms, held.get("tiers") or ())]
        == [
            (None if tier.up_to == INF else tier.up_to, tier.unit_amount, tier.flat_amount)
            for tier in price.tiers
        ]
    )


def _terms(tier: Object) -> tuple[int | None, Decimal, Decimal]:
    """A tier of Stripe's: last unit, amount of each, amount at once."""
    each, once = (
        Decimal(str(tier.get(f"{name}_decimal") or tier.get(name) or 0))
        for name in ("unit_amount", "flat_amount")
    )
    return tier.get("up_to"), each, once


def words(meter: Meter, price: StripePrice) -> str:
    """A price for a person, in the meter's unit."""
    if not any(tier.unit_amount or tier.flat_amount for tier in price.tiers):
        return "free, without limit"
    parts = []
    for number, tier in enumerate(price.tiers):
        each = rate(tier.unit_amount.scaleb(meter.precision), price.currency)
        text = f"{each} each" if tier.unit_amount or tier.flat_amount else "free"
        if tier.flat_amount:
            text += f" and {rate(tier.flat_amount, price.currency)} at once"
        if not isinstance(tier.up_to, str):
            up_to = f"{meter.to_value(tier.up_to).normalize():,f} {meter.unit}"
            text = f"up to {up_to} {text}" if number else f"{up_to} {text}"
        elif number:
            text = f"then {text}"
        parts.append(text)
    mode = "all at the rate reached: " if price.tiers_mode == "volume" else ""
    return mode + ", ".join(parts)
