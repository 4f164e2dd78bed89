"""The catalogue's prices as Stripe has to be told them. Pure; imports the nouns.

At Stripe tiers apply to all usage, counted in wire units; here they apply to overage, in the
meter's unit. What is included becomes a free first tier, the others follow after it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from .decimals import exactly
from .errors import CatalogueError
from .model import Meter, Price, Tier

#: Stripe's word for the open end of the last tier.
INF = "inf"


@dataclass(frozen=True, slots=True)
class StripeTier:
    """A tier of a Stripe price."""

    #: Last wire unit, or ``inf``.
    up_to: int | str
    #: Minor units per wire unit.
    unit_amount: Decimal
    flat_amount: Decimal = Decimal(0)

    def params(self) -> dict[str, int | str]:
        """As Stripe's API takes it."""
        found: dict[str, int | str] = {
            "up_to": self.up_to,
            "unit_amount_decimal": _text(self.unit_amount),
        }
        if self.flat_amount:
            found["flat_amount_decimal"] = _text(self.flat_amount)
        return found


@dataclass(frozen=True, slots=True)
class StripePrice:
    """How Stripe has to bill a meter on a plan."""

    currency: str
    tiers_mode: Literal["graduated", "volume"]
    tiers: Sequence[StripeTier]


@exactly
def price_of(meter: Meter, plan: str) -> StripePrice | None:
    """The Stripe price of *meter* on *plan*; None = it has no price, so that Stripe bills nothing.

    Where the plan has no limit the price is free: a subscription then has the same items on every
    plan, and its usage is on the invoice.

    :raises CatalogueError: Stripe has no price that bills the same.
    """
    included, price = meter.included.get(plan), meter.price
    if price is None:
        return None
    if included is None:
        return StripePrice(price.currency, "graduated", [StripeTier(INF, Decimal(0))])
    units = meter.to_units(included)
    if price.mode == "volume" and units:
        raise CatalogueError(
            f"meters.{meter.name}.price.mode = 'volume': a volume price of Stripe's would also "
            f"bill the {included} that {plan} includes; use 'graduated', or include 0"
        )
    free = [StripeTier(units, Decimal(0))] if units else []
    own = (_shifted(meter, tier, units) for tier in _tiers(price))
    mode: Literal["graduated", "volume"] = "volume" if price.mode == "volume" else "graduated"
    return StripePrice(price.currency, mode, [*free, *own])


def _tiers(price: Price) -> Iterator[Tier]:
    if price.unit_amount is not None:
        yield Tier(None, price.unit_amount)
    yield from price.tiers


def _shifted(meter: Meter, tier: Tier, units: int) -> StripeTier:
    return StripeTier(
        up_to=INF if tier.up_to is None else units + meter.to_units(tier.up_to),
        unit_amount=tier.unit_amount.scaleb(-meter.precision),
        flat_amount=tier.flat_amount,
    )


@exactly
def _text(amount: Decimal) -> str:
    return f"{amount.normalize():f}"
