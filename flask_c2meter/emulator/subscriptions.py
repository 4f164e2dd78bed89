"""What a customer has agreed to pay: subscriptions, their items, and stretches of usage.

The nouns, and what they know of themselves; what happens to them is ``billing``'s. Imports
``agenda``, ``customers``, ``meters``, ``prices`` and ``terms``. Promise: periods live on the items
only, each in whole seconds, ``[start, end)``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from .agenda import Cycle
from .customers import Customer
from .meters import Meter
from .prices import Price
from .terms import Rejection


@dataclass(slots=True)
class Item:
    """One price of a subscription, and the period it is in."""

    id: str
    price: Price
    created: datetime
    start: datetime
    end: datetime
    #: From when on the price bills: the period's start, or the latest change of the price in it.
    since: datetime


@dataclass(frozen=True, slots=True)
class Stretch:
    """The usage that one price bills: its meter's, in ``[start, end)``."""

    item: str
    price: Price
    meter: Meter
    start: datetime
    end: datetime
    #: In a trial: shown, not charged.
    is_free: bool = False


@dataclass(slots=True)
class Subscription:
    """A customer's items, billed together."""

    id: str
    customer: Customer
    created: datetime
    start: datetime
    anchor: datetime
    is_flexible: bool
    status: str
    currency: str
    items: list[Item] = field(default_factory=list)
    trial_end: datetime | None = None
    cancel_at: datetime | None = None
    canceled_at: datetime | None = None
    ended_at: datetime | None = None
    latest_invoice: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    #: What earlier prices of the running periods are still to be paid for: pending invoice items.
    pending: list[Stretch] = field(default_factory=list)

    @property
    def next_moment(self) -> datetime:
        """When it has something to do next: a period's end, or its own."""
        ends = [item.end for item in self.items]
        return min(ends) if self.cancel_at is None else min(self.cancel_at, *ends)

    @property
    def is_trialing(self) -> bool:
        """Whether its usage is free now."""
        return self.status == "trialing"

    def ending(self, moment: datetime) -> list[Item]:
        """The items whose period ends at *moment*; all of them if it ends itself."""
        is_last = moment == self.cancel_at
        return [item for item in self.items if is_last or item.end == moment]

    def period_end(self, price: Price, moment: datetime) -> datetime:
        """The end of the period that *price* is in at *moment*: a trial is one period."""
        if self.is_trialing and self.trial_end is not None and moment < self.trial_end:
            return self.trial_end
        if price.rhythm is None:
            raise Rejection("price_not_recurring", f"Price {price.id} is not recurring.", "price")
        return Cycle(self.anchor, *price.rhythm).next_after(moment)

    def stretch(self, item: Item, end: datetime) -> Stretch | None:
        """What *item*'s price bills up to *end*; None if it bills nothing by usage, or no time."""
        meter = item.price.meter
        if meter is None or item.since >= end:
            return None
        return Stretch(item.id, item.price, meter, item.since, end, self.is_trialing)

    def stretches(self, items: Iterable[Item], end: datetime) -> list[Stretch]:
        """What is to be paid if the periods of *items* end at *end*: what is pending, then they."""
        running = (self.stretch(item, end) for item in items)
        return [*self.pending, *(each for each in running if each is not None)]

    def item_of(self, price: Price) -> Item:
        """The item of *price*.

        :raises Rejection: there is none.
        """
        for item in self.items:
            if item.price is price:
                return item
        raise Rejection(
            "resource_missing", f"Subscription {self.id} has no item of price {price.id}.", "price"
        )
