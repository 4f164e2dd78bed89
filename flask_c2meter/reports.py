"""Everything about one customer, at one moment, and where many stand: what the dashboard says.

Reads totals, days and alerts, never events: a report costs the same however many there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING

from . import billing
from .accounts import HISTORY, Accounts
from .catalogue import Catalogue
from .config import Config
from .decimals import exactly
from .model import EVERY_METER, Charge, Customer, Meter, Period, Projection, Usage
from .periods import ENDED, BillingPeriod, History

if TYPE_CHECKING:
    from .store import Store
    from .store.announcements import Notice
    from .store.standing import Standing

#: The alerts of the last so many days are told.
ALERT_HISTORY = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class MeterReport:
    """One meter in the current period."""

    meter: Meter
    usage: Usage
    #: What the total is expected to be at the period's end; None = too early to say.
    projection: Projection | None
    #: Its lines on the bill: several if the plan was changed within the cycle.
    charges: Sequence[Charge]
    #: Each UTC day of the period until today, with what was used on it.
    days: Sequence[tuple[date, Decimal]]


@dataclass(frozen=True, slots=True)
class BillTotal:
    """The bill of the cycle in one currency, in minor units."""

    currency: str
    amount: Decimal
    #: None while it is too early to say.
    projected: Decimal | None
    low: Decimal | None
    high: Decimal | None


@dataclass(frozen=True, slots=True)
class Report:
    """One customer."""

    customer: str
    as_of: datetime
    #: Name in the catalogue, and what people call it; None = no plan is known.
    plan: str | None
    plan_name: str | None
    #: Of the subscription, in Stripe's words; ``none`` if there never was one.
    status: str
    #: When the last subscription ended; None if one goes on or there never was one.
    ended_at: datetime | None
    #: Of the meters that have no period of their own.
    period: Period
    #: The cycle whose invoice bills it.
    cycle: Period
    #: The periods of the cycle, each with what people call its plan: several if it was changed.
    plans: Sequence[tuple[Period, str | None]]
    #: Those that are billed, then those that are only counted.
    meters: Sequence[MeterReport]
    bills: Sequence[BillTotal]
    #: Newest first.
    notices: Sequence[Notice]
    unread: int


@dataclass(frozen=True, slots=True)
class Summary:
    """Where one of many customers stands."""

    customer: str
    #: As people call it; None = no plan is known.
    plan_name: str | None
    #: As :attr:`Report.status`.
    status: str
    cycle: Period
    #: Of the billed meters, the one whose included quantity is used up the most; None = none has
    #: any.
    fullest: Usage | None


class Reports:
    """Makes reports for one app."""

    def __init__(self, config: Config, catalogue: Catalogue, accounts: Accounts) -> None:
        self._config = config
        self._catalogue = catalogue
        self._accounts = accounts

    @exactly
    def of(self, customer: Customer | str, store: Store) -> Report:
        """What there is to say of *customer* now."""
        now = self._config.clock()
        known = self._accounts.standing(customer)
        plan = billing.plan_of(customer) or billing.plan_of(known.customer)
        current = known.history.at(EVERY_METER, now)
        since = min(now - HISTORY, current.period.start)
        days = self._accounts.usage_by_day(customer, since)
        meters = [
            self._of_meter(meter, known, plan, now, days)
            for meter in sorted(self._catalogue.meters.values(), key=lambda each: not each.billable)
        ]
        name = current.plan or plan
        status, ended_at = _status(known.history, current)
        customer_id = customer.id if isinstance(customer, Customer) else customer
        return Report(
            customer=customer_id,
            as_of=now,
            plan=name,
            plan_name=self._plan_name(name),
            status=status,
            ended_at=ended_at,
            period=current.period,
            cycle=current.cycle,
            plans=[
                (each.period, self._plan_name(each.plan or plan))
                for each in known.history.billed_with(EVERY_METER, now)
            ],
            meters=meters,
            bills=_bills([line for meter in meters for line in meter.charges]),
            notices=store.announcements.notices(now - ALERT_HISTORY, customer_id),
            unread=store.announcements.unread(customer_id),
        )

    @exactly
    def summaries(self, containing: str, after: str, limit: int, store: Store) -> list[Summary]:
        """Up to *limit* customers whose ids contain a text, in the order of their ids.

        :param after: an id; those up to it are left out.
        """
        found = store.find_customers(containing, after, limit)
        return [self._summary(customer, store.standing(customer)) for customer in found]

    def _summary(self, customer: str, known: Standing) -> Summary:
        now = self._config.clock()
        plan = billing.plan_of(known.customer)
        current = known.history.at(EVERY_METER, now)
        used = [
            self._usage(meter, known, plan, now)
            for meter in self._catalogue.meters.values()
            if meter.billable
        ]
        limited = [each for each in used if each.included is not None]
        return Summary(
            customer=customer,
            plan_name=self._plan_name(current.plan or plan),
            status=_status(known.history, current)[0],
            cycle=current.cycle,
            fullest=max(limited, key=_fullness, default=None),
        )

    def _usage(self, meter: Meter, known: Standing, plan: str | None, now: datetime) -> Usage:
        current = known.history.at(meter.name, now)
        total = known.total(meter.name, current)
        return billing.usage(meter, current, total, plan, self._config.alert_thresholds)

    def _plan_name(self, name: str | None) -> str | None:
        plan = self._catalogue.plans.get(name or "")
        return plan.display_name if plan else name

    def _of_meter(
        self, meter: Meter, known: Standing, plan: str | None, now: datetime, days: billing.Days
    ) -> MeterReport:
        current = known.history.at(meter.name, now)
        used = self._usage(meter, known, plan, now)
        cycle = [
            (period, known.total(meter.name, period))
            for period in known.history.billed_with(meter.name, now)
        ]
        return MeterReport(
            meter=meter,
            usage=used,
            projection=billing.projection(meter, current, max(Decimal(0), used.total), now, days),
            charges=billing.charges(meter, cycle, plan, now, days) if meter.billable else (),
            days=_filled(used, now, days.get(meter.name, {})),
        )


def _status(history: History, current: BillingPeriod) -> tuple[str, datetime | None]:
    """The status of the subscription, and when it ended."""
    ends = [
        term.period.end
        for term in history.terms
        if term.status in ENDED and term.period.end <= current.period.start
    ]
    if current.status == "none" and ends:
        return "canceled", max(ends)
    return current.status, None


def _fullness(used: Usage) -> tuple[bool, Decimal]:
    """Of two, the fuller has the more; with nothing included, any usage is above everything."""
    if used.utilization is None:
        return used.total > 0, Decimal(0)
    return False, used.utilization


def _filled(used: Usage, now: datetime, days: billing.DaysOfMeter) -> list[tuple[date, Decimal]]:
    """Each day of the period of *used* until *now*."""
    first, last = used.period.start.date(), min(now, used.period.end).date()
    every = [first + timedelta(days=number) for number in range((last - first).days + 1)]
    later = [(day, days.get(day, Decimal(0))) for day in every[1:]]
    # The first day may also have usage of the period before.
    rest = used.total - sum((total for _, total in later), Decimal(0))
    return [(first, max(Decimal(0), min(rest, days.get(first, Decimal(0))))), *later]


def _bills(lines: Sequence[Charge]) -> list[BillTotal]:
    currencies = {line.currency: None for line in lines if line.currency is not None}
    return [
        _bill(currency, [line for line in lines if line.currency == currency])
        for currency in currencies
    ]


def _bill(currency: str, lines: Sequence[Charge]) -> BillTotal:
    return BillTotal(
        currency=currency,
        amount=_sum([line.amount for line in lines]) or Decimal(0),
        projected=_sum([line.projected_amount for line in lines]),
        low=_sum([line.projected_low for line in lines]),
        high=_sum([line.projected_high for line in lines]),
    )


def _sum(amounts: Sequence[Decimal | None]) -> Decimal | None:
    """The sum; None if one of them is not known."""
    known = [amount for amount in amounts if amount is not None]
    return sum(known, Decimal(0)) if len(known) == len(amounts) else None
