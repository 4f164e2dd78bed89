"""What usage costs: products, prices and their tiers.

Stripe's rules for a price live here, free of HTTP. Imports ``meters`` and ``terms``. Not
thread-safe: the app holds its lock. Promise: a price that was accepted can be rated; amounts are
exact decimals in minor units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal

from .meters import Meter
from .terms import Rejection, new_id


@dataclass(slots=True)
class Product:
    """What a price is for."""

    id: str
    name: str
    created: datetime
    updated: datetime
    is_active: bool = True
    description: str | None = None
    unit_label: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Tier:
    """One tier of a price, over total usage."""

    #: The last unit that still belongs to it; None = no end.
    up_to: int | None
    unit_amount: Decimal | None = None
    flat_amount: Decimal | None = None


@dataclass(frozen=True, slots=True)
class Recurring:
    """How often a price is billed, and for what."""

    interval: str
    count: int = 1
    #: What is counted; None: a licensed price, which this emulator keeps but does not bill.
    meter: Meter | None = None


@dataclass(slots=True)
class Price:
    """A price; tiered if it has tiers, else per unit."""

    id: str
    product: Product
    currency: str
    created: datetime
    unit_amount: Decimal | None = None
    tiers: Sequence[Tier] = ()
    #: ``graduated`` or ``volume``, with tiers only.
    tiers_mode: str | None = None
    #: None: billed once.
    recurring: Recurring | None = None
    lookup_key: str | None = None
    nickname: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    is_active: bool = True

    @property
    def meter(self) -> Meter | None:
        """What it bills; None if it does not bill usage."""
        return self.recurring.meter if self.recurring else None

    @property
    def rhythm(self) -> tuple[str, int] | None:
        """Every how many of which interval it is billed; None: once."""
        return (self.recurring.interval, self.recurring.count) if self.recurring else None


class Catalogue:
    """All products and prices."""

    def __init__(self) -> None:
        self.products: dict[str, Product] = {}
        self.prices: dict[str, Price] = {}

    def add_product(self, product: Product) -> Product:
        """Add *product*.

        :raises Rejection: its id is taken.
        """
        self._refuse_product(product)
        self.products[product.id] = product
        return product

    def find_product(self, id: str) -> Product:
        """The product of this id.

        :raises Rejection: there is none.
        """
        if id not in self.products:
            raise Rejection("resource_missing", f"No such product: '{id}'", "product")
        return self.products[id]

    def add_price(self, price: Price, *, transfer_lookup_key: bool = False) -> Price:
        """Add *price*, and its product if that is new.

        :param transfer_lookup_key: take its lookup key away from the price that has it.
        :raises Rejection: it cannot be rated, or its lookup key or its new product's id is taken.
        """
        _refuse_unratable(price)
        if self.products.get(price.product.id) is not price.product:
            self._refuse_product(price.product)
        self.name_price(price, price.lookup_key, transfer=transfer_lookup_key)
        self.products[price.product.id] = price.product
        self.prices[price.id] = price
        return price

    def name_price(self, price: Price, lookup_key: str | None, *, transfer: bool = False) -> None:
        """Give *price* a lookup key.

        :raises Rejection: another price has it.
        """
        holder = self._by_lookup_key(lookup_key)
        if holder is not None and holder is not price:
            if not transfer:
                raise Rejection(
                    "resource_already_exists",
                    f"A price (`{holder.id}`) already uses that lookup key.",
                    "lookup_key",
                )
            holder.lookup_key = None
        price.lookup_key = lookup_key

    def find_price(self, id: str, *, or_lookup_key: bool = False) -> Price:
        """The price of this id.

        :param or_lookup_key: it may be a lookup key instead, which Stripe takes in lists only.
        :raises Rejection: there is none.
        """
        price = self.prices.get(id)
        if price is None and or_lookup_key:
            price = self._by_lookup_key(id)
        if price is None:
            raise Rejection("resource_missing", f"No such price: '{id}'", "price")
        return price

    def _refuse_product(self, product: Product) -> None:
        if product.id in self.products:
            raise Rejection(
                "resource_already_exists", f"Product already exists: '{product.id}'", "id"
            )

    def _by_lookup_key(self, lookup_key: str | None) -> Price | None:
        if lookup_key is None:
            return None
        keyed = (price for price in self.prices.values() if price.lookup_key == lookup_key)
        return next(keyed, None)


def new_product(name: str, now: datetime, id: str | None = None) -> Product:
    """A product that is only a name."""
    return Product(id or new_id("prod"), name, created=now, updated=now)


def _refuse_unratable(price: Price) -> None:
    if price.tiers:
        _refuse_tiers(price)
    elif price.unit_amount is None or price.tiers_mode is not None:
        raise Rejection(
            "parameter_missing",
            "A price has either a unit amount or tiers and a tiers_mode.",
            "unit_amount",
        )


def _refuse_tiers(price: Price) -> None:
    if price.unit_amount is not None or price.tiers_mode is None:
        raise Rejection(
            "parameter_invalid_empty",
            "A price with tiers has a tiers_mode and no unit amount of its own.",
            "tiers_mode",
        )
    *closed, last = (tier.up_to for tier in price.tiers)
    below = 0
    for up_to in closed:
        if up_to is None or up_to <= below:
            raise Rejection(
                "invalid_tiers", f"Tiers must be in ascending order: {up_to} <= {below}", "tiers"
            )
        below = up_to
    if last is not None:
        raise Rejection("invalid_tiers", "The last tier must be up_to=inf.", "tiers")
    if any(tier.unit_amount is None and tier.flat_amount is None for tier in price.tiers):
        raise Rejection(
            "invalid_tiers", "An entry in the tiers array is missing an amount.", "tiers"
        )
