"""What customers have used and owe: the reading side of the facade.

Reads totals and days, never events, so that an answer costs the same however many there are. What
is not fresh is looked at again by the worker, for the next time somebody asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Protocol

from . import billing
from .catalogue import Catalogue
from .config import Config
from .decimals import exactly
from .errors import InvalidEvent
from .model import Charge, Customer, Period, Projection, Usage, check_customer_id
from .projection import Backtest, backtest

if TYPE_CHECKING:
    from .store import Store
    from .store.standing import Standing

#: A projection looks this far back.
HISTORY = timedelta(weeks=8)

#: What is known of subscriptions is fresh enough for this long, whoever asks.
FRESH = timedelta(seconds=60)

#: Most customers of whom a process remembers when it last had them looked at.
_REMEMBERED = 10_000
_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)


class Parts(Protocol):
    """What is needed of the process at hand."""

    @property
    def store(self) -> Store:
        """Its store."""

    def have_looked_at(self, customer_id: str, now: datetime) -> None:
        """Have the subscriptions of a customer looked at soon; never raises."""


class Accounts:
    """Answers for one app."""

    def __init__(self, config: Config, catalogue: Catalogue, parts: Parts) -> None:
        self._config = config
        self._catalogue = catalogue
        self._parts = parts
        #: Customer -> when this process last had its subscriptions looked at.
        self._asked: dict[str, datetime] = {}

    @exactly
    def usage(self, customer: Customer | str, at: datetime | None = None) -> list[Usage]:
        """See :meth:`~flask_c2meter.metering.Metering.usage`."""
        moment = self._at(at)
        return self._usage(self.standing(customer), billing.plan_of(customer), moment)

    @exactly
    def is_used_up(self, customer: Customer, meter: str) -> bool:
        """Whether *customer* has used up what its plan includes of *meter*."""
        known = self.standing(customer)
        period = known.history.at(meter, self._config.clock())
        plan = customer.plan or billing.plan_of(known.customer)
        definition = self._catalogue.meters[meter]
        included = billing.included(definition, period, plan)
        return included is not None and definition.to_value(known.total(meter, period)) >= included

    @exactly
    def bill(self, customer: Customer | str, at: datetime | None = None) -> list[Charge]:
        """See :meth:`~flask_c2meter.metering.Metering.bill`."""
        moment, now = self._at(at), self._config.clock()
        known = self.standing(customer)
        days = self.usage_by_day(customer, moment - HISTORY)
        plan = billing.plan_of(customer) or billing.plan_of(known.customer)
        lines: list[Charge] = []
        for name, meter in self._catalogue.meters.items():
            if meter.billable:
                cycle = known.history.billed_with(name, moment)
                periods = [(period, known.total(name, period)) for period in cycle]
                lines += billing.charges(meter, periods, plan, now, days)
        return lines

    @exactly
    def project(self, customer: Customer | str) -> list[tuple[Usage, Projection | None]]:
        """What *customer* has used of each meter, and is expected to have used at the end."""
        now = self._config.clock()
        known = self.standing(customer)
        days = self.usage_by_day(customer, now - HISTORY)
        return [
            (
                used,
                billing.projection(
                    self._catalogue.meters[used.meter],
                    known.history.at(used.meter, now),
                    max(Decimal(0), used.total),
                    now,
                    days,
                ),
            )
            for used in self._usage(known, billing.plan_of(customer), now)
        ]

    @exactly
    def backtest(self, customer: str) -> dict[str, list[Backtest]]:
        """Meter -> what projections of past periods of *customer* would have said."""
        now = self._config.clock()
        known = self.standing(customer)
        found = {}
        for name, meter in self._catalogue.meters.items():
            periods = _past_periods(known, name, now)
            if periods:
                days = self.usage_by_day(customer, periods[0].start - HISTORY)
                found[name] = backtest(meter.aggregation, periods, days.get(name, {}))
        return found

    def usage_by_day(self, customer: Customer | str, since: datetime) -> billing.Days:
        """Meter -> UTC day -> what *customer* has used on it, in the meter's unit.

        A day of a ``max`` meter has what the maximum has risen by; one without usage is left out.

        :param since: aware; its day is the first.
        """
        now = self._config.clock()
        found = self._parts.store.usage_by_day(id_of(customer), since, now)
        meters = self._catalogue.meters
        return {
            name: {day: meters[name].to_value(units) for day, units in per_day.items()}
            for name, per_day in found.items()
            if name in meters
        }

    def standing(self, customer: Customer | str) -> Standing:
        """Where *customer* stands; has its subscriptions looked at if they are not fresh."""
        customer_id = id_of(customer)
        known = self._parts.store.standing(customer_id)
        now = self._config.clock()
        is_fresh = known.read_at is not None and now - known.read_at < FRESH
        if not is_fresh and now - self._asked.get(customer_id, _LONG_AGO) >= FRESH:
            if len(self._asked) >= _REMEMBERED:
                self._asked.clear()
            self._asked[customer_id] = now
            self._parts.have_looked_at(customer_id, now)
        return known

    def _usage(self, known: Standing, plan: str | None, moment: datetime) -> list[Usage]:
        shares = self._config.alert_thresholds
        plan = plan or billing.plan_of(known.customer)
        found = []
        for name, meter in self._catalogue.meters.items():
            period = known.history.at(name, moment)
            found.append(billing.usage(meter, period, known.total(name, period), plan, shares))
        return found

    def _at(self, at: datetime | None) -> datetime:
        return self._config.clock() if at is None else moment_of("at", at)


def id_of(customer: Customer | str) -> str:
    """The id of *customer*.

    :raises InvalidEvent: it cannot be one.
    """
    return check_customer_id(customer.id if isinstance(customer, Customer) else customer)


def moment_of(field: str, moment: datetime) -> datetime:
    """*moment* in UTC, if it is aware and within the calendar.

    :raises InvalidEvent: otherwise.
    """
    if not isinstance(moment, datetime) or moment.utcoffset() is None:
        raise InvalidEvent({field: "must be a datetime with a time zone"})
    try:
        Period.month_of(moment)
        return moment.astimezone(UTC)
    except (OverflowError, ValueError):
        raise InvalidEvent({field: "is beyond the calendar"}) from None


def _past_periods(known: Standing, meter: str, now: datetime) -> Sequence[Period]:
    """The periods of *meter* with usage that are over, oldest first."""
    starts = sorted(start for name, start in known.totals if name == meter)
    periods = (known.history.at(meter, start).period for start in starts)
    return [period for period in periods if period.end <= now]
