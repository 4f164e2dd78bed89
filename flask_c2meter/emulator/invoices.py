"""What is billed: usage rated by exact fractions, drafts, and invoices that no longer change.

The emulator's own rating, made apart from the product's so that one can check the other. Imports
``meters``, ``prices`` and ``subscriptions``. Not thread-safe: the app holds its lock.
Promises: an amount is exact until its line is rounded, once, half up; a draft shows the usage that
has arrived, a finalised invoice what had arrived when it was finalised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from math import floor

from .meters import Meters
from .prices import Price, Tier
from .subscriptions import Stretch, Subscription


@dataclass(frozen=True, slots=True)
class InvoiceLine:
    """What one price charges for one stretch of usage."""

    #: The meter's event name.
    meter: str
    #: The price's id.
    price: str
    #: The total usage, negative too.
    quantity: int | Decimal
    #: Whole minor units.
    amount: int
    period_start: datetime
    period_end: datetime
    description: str


@dataclass(frozen=True, slots=True)
class Invoice:
    """An invoice as it is at one moment."""

    id: str
    customer: str
    subscription: str
    #: ``draft`` or ``open``.
    status: str
    created: datetime
    finalized_at: datetime | None
    period_start: datetime
    period_end: datetime
    currency: str
    #: Whole minor units.
    total: int
    lines: tuple[InvoiceLine, ...]


@dataclass(slots=True)
class Bill:
    """What an invoice is made from; :meth:`Invoices.show` makes it."""

    id: str
    subscription: Subscription
    stretches: Sequence[Stretch]
    created: datetime
    period_start: datetime
    period_end: datetime
    #: Stripe's ``billing_reason``.
    reason: str
    finalizes_at: datetime
    #: What it became; None while it is a draft.
    final: Invoice | None = None


class Invoices:
    """All invoices."""

    def __init__(self, meters: Meters) -> None:
        self._meters = meters
        self.bills: list[Bill] = []

    def finalise(self, bill: Bill, moment: datetime) -> None:
        """Fix what *bill* charges: the usage that has arrived by now."""
        bill.final = self._invoice(bill, finalized_at=moment)

    def show(self, bill: Bill) -> Invoice:
        """The invoice as it is."""
        return bill.final or self._invoice(bill, finalized_at=None)

    def all(self) -> list[Invoice]:
        """All of them as they are, oldest first; a backdated one is as old as it says."""
        return [self.show(bill) for bill in sorted(self.bills, key=lambda bill: bill.created)]

    def _invoice(self, bill: Bill, finalized_at: datetime | None) -> Invoice:
        customer = bill.subscription.customer.id
        lines = tuple(self._line(customer, stretch) for stretch in bill.stretches)
        return Invoice(
            id=bill.id,
            customer=customer,
            subscription=bill.subscription.id,
            status="draft" if finalized_at is None else "open",
            created=bill.created,
            finalized_at=finalized_at,
            period_start=bill.period_start,
            period_end=bill.period_end,
            currency=bill.subscription.currency,
            total=sum(line.amount for line in lines),
            lines=lines,
        )

    def _line(self, customer: str, stretch: Stretch) -> InvoiceLine:
        price, meter = stretch.price, stretch.meter
        usage = self._meters.usage(meter, customer, stretch.start, stretch.end)
        quantity = int(usage) if usage == usage.to_integral_value() else usage
        what = f"{quantity:,} x {price.product.name}"
        return InvoiceLine(
            meter=meter.event_name,
            price=price.id,
            quantity=quantity,
            amount=0 if stretch.is_free else rounded(amount(price, Fraction(usage))),
            period_start=stretch.start,
            period_end=stretch.end,
            description=f"Free trial for {what}" if stretch.is_free else what,
        )


# --- rating ---------------------------------------------------------------------------------


def amount(price: Price, quantity: Fraction) -> Fraction:
    """What *quantity* costs, in exact minor units; less than nothing costs as much as nothing."""
    billed = max(quantity, Fraction(0))
    if price.unit_amount is not None:
        return billed * Fraction(price.unit_amount)
    rate = _volume if price.tiers_mode == "volume" else _graduated
    return rate(price.tiers, billed)


def _graduated(tiers: Sequence[Tier], quantity: Fraction) -> Fraction:
    total = below = Fraction(0)
    for number, tier in enumerate(tiers):
        # The first tier's flat amount is due with a quantity of 0, too (Stripe's guide to pricing
        # models says so); a later tier's only once the quantity reaches into it.
        if number and quantity <= below:
            break
        top = quantity if tier.up_to is None else min(quantity, Fraction(tier.up_to))
        total += _at_rate(tier, top - below)
        below = top
    return total


def _volume(tiers: Sequence[Tier], quantity: Fraction) -> Fraction:
    reached = next(tier for tier in tiers if tier.up_to is None or quantity <= tier.up_to)
    return _at_rate(reached, quantity)


def _at_rate(tier: Tier, quantity: Fraction) -> Fraction:
    each, flat = tier.unit_amount or Decimal(0), tier.flat_amount or Decimal(0)
    return Fraction(each) * quantity + Fraction(flat)


def rounded(exact: Fraction) -> int:
    """*exact*, which is not negative, in whole minor units, half up."""
    return floor(exact + Fraction(1, 2))
