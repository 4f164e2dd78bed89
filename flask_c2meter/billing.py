"""From where a customer stands to what it has used, owes, and is expected to owe.

Pure: imports the nouns, rating and projection; is told the time. Knows neither a database nor
Stripe.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import ROUND_HALF_UP, Decimal

from .decimals import exactly
from .model import Charge, Customer, Meter, Plan, Projection, Usage
from .periods import DROPPED, BillingPeriod
from .projection import project
from .rating import least_amount, line_amount, overage
from .thresholds import allowance

#: UTC day -> usage in the meter's unit; the same by meter.
DaysOfMeter = Mapping[date, Decimal]
Days = Mapping[str, DaysOfMeter]


def plan_of(customer: Customer | str | None) -> str | None:
    """The plan as the loader says, if it is known."""
    return customer.plan if isinstance(customer, Customer) else None


def included(meter: Meter, known: BillingPeriod, plan: str | None) -> Decimal | None:
    """What is included of *meter* in the period; None = unlimited, or no plan is known.

    :param plan: as the loader says; the subscription's own wins.
    """
    return meter.included.get(known.plan or plan or "")


def usage(
    meter: Meter, known: BillingPeriod, units: int, plan: str | None, shares: Sequence[Decimal]
) -> Usage:
    """What was used of *meter* in the period.

    :param units: its aggregate, in wire units.
    :param shares: of the included quantity, at which the levels begin.
    """
    quantity, total = included(meter, known, plan), meter.to_value(units)
    limit = None if quantity is None else allowance(meter.to_units(quantity), shares)
    return Usage(
        meter=meter.name,
        total=total,
        included=quantity,
        utilization=total / quantity if quantity else None,
        level=limit.level(units) if limit else None,
        period=known.period,
    )


def charges(
    meter: Meter,
    periods: Iterable[tuple[BillingPeriod, int]],
    plan: str | None,
    now: datetime,
    days: Days,
) -> list[Charge]:
    """The lines of *meter* on the bill of one cycle.

    :param periods: the cycle's, each with its aggregate in wire units.
    :param days: of this cycle and before.
    """
    return [
        _charge(meter, known, units, plan, now, days)
        for known, units in periods
        if known.status != DROPPED
    ]


def _charge(
    meter: Meter,
    known: BillingPeriod,
    units: int,
    plan: str | None,
    now: datetime,
    days: Days,
) -> Charge:
    quantity, total = included(meter, known, plan), max(Decimal(0), meter.to_value(units))
    expected = projection(meter, known, total, now, days)

    def amount(total: Decimal) -> Decimal | None:
        if known.status == "trialing":  # Stripe bills no usage of a trial
            return line_amount(meter.price, Decimal(0))
        return _amount(meter, quantity, total, is_billed=known.is_billed)

    return Charge(
        meter=meter.name,
        units=overage(total, quantity),
        amount=amount(total),
        currency=meter.price.currency if meter.price else None,
        projected_units=None if expected is None else overage(expected.total, quantity),
        projected_amount=None if expected is None else amount(expected.total),
        projected_low=None if expected is None else amount(expected.low),
        projected_high=None if expected is None else amount(expected.high),
        period=known.period,
    )


def _amount(
    meter: Meter, included: Decimal | None, total: Decimal, *, is_billed: bool
) -> Decimal | None:
    """What *total* costs on an invoice, or would if there were one."""
    if included == total == 0 and is_billed:
        return least_amount(meter.price)
    return line_amount(meter.price, overage(total, included))


# -- on another plan -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Quote:
    """What a total of one meter would cost; amounts as in a :class:`~flask_c2meter.Charge`."""

    meter: str
    #: In the meter's unit, as the next two.
    total: Decimal
    included: Decimal | None
    #: Overage.
    units: Decimal
    amount: Decimal | None
    currency: str | None


@dataclass(frozen=True, slots=True)
class Offer:
    """What usage would cost on one plan, beyond the price of the plan itself."""

    plan: Plan
    quotes: Sequence[Quote]

    @property
    def totals(self) -> dict[str, Decimal]:
        """Currency -> amount, in minor units."""
        found: dict[str, Decimal] = {}
        for each in self.quotes:
            if each.amount is not None and each.currency is not None:
                found[each.currency] = found.get(each.currency, Decimal(0)) + each.amount
        return found


@exactly
def offer(plan: Plan, meters: Iterable[Meter], totals: Mapping[str, Decimal]) -> Offer:
    """What a period with these *totals* would cost somebody who is billed on *plan*.

    :param totals: of each of *meters*, in its unit, >= 0.
    """
    return Offer(plan, [_quote(plan, meter, totals[meter.name]) for meter in meters])


def _quote(plan: Plan, meter: Meter, total: Decimal) -> Quote:
    quantity = meter.included.get(plan.name)
    return Quote(
        meter=meter.name,
        total=total,
        included=quantity,
        units=overage(total, quantity),
        amount=_amount(meter, quantity, total, is_billed=True),
        currency=meter.price.currency if meter.price else None,
    )


# -- at the end of the period ----------------------------------------------------------------------


def projection(
    meter: Meter, known: BillingPeriod, total: Decimal, now: datetime, days: Days
) -> Projection | None:
    """What *total* will be at the end of the period, as finely as the meter counts.

    :return: None = too early to say.
    """
    expected = project(meter.aggregation, total, known.period, now, days.get(meter.name, {}))
    if expected is None:
        return None
    step = Decimal(1).scaleb(-meter.precision)
    return Projection(
        *(
            each.quantize(step, ROUND_HALF_UP)
            for each in (expected.total, expected.low, expected.high)
        )
    )
