"""Where a customer stands: what is known of it, its periods, its totals, its days.

No event is read here, so that a page costs the same however many there are. Functions take an open
connection.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime

from sqlalchemy import ColumnElement, Connection, func, select

from ..model import DAY_MS, HOUR_MS, MINUTE_MS, Customer, from_ms, to_ms
from ..periods import BillingPeriod, History
from .book import load
from .cursor import cursor_of
from .ledger import Lane
from .tables import buckets, customers, days, totals

#: A day is added up only this long after its end: by then all that was recorded in it is committed.
_SETTLED_MS = HOUR_MS


@dataclass(frozen=True, slots=True)
class Standing:
    """What the store knows of one customer, all of one moment."""

    #: As the loader last said; None = never recorded.
    customer: Customer | None
    history: History
    #: (meter, start of the period) -> aggregate in wire units.
    totals: Mapping[tuple[str, datetime], int]
    #: As of when the subscriptions are known; None = never looked at.
    read_at: datetime | None

    def total(self, meter: str, known: BillingPeriod) -> int:
        """The aggregate of *meter* in that period, in wire units."""
        return self.totals.get((meter, known.period.start), 0)


def standing(connection: Connection, customer: str) -> Standing:
    """Where *customer* stands."""
    row = connection.execute(select(customers).where(customers.c.id == customer)).one_or_none()
    found = connection.execute(
        select(totals.c.meter, totals.c.period, totals.c.total).where(totals.c.customer == customer)
    )
    return Standing(
        customer=None if row is None else Customer(row.id, row.user_label, row.plan, row.email),
        history=load(cursor_of(connection), customer),
        totals={(meter, from_ms(period)): total for meter, period, total in found},
        read_at=None if row is None or row.read_at is None else from_ms(row.read_at),
    )


# -- days ------------------------------------------------------------------------------------------


def usage_by_day(
    connection: Connection, customer: str, since: datetime
) -> dict[str, dict[date, int]]:
    """Meter -> UTC day -> usage in wire units, from the day of *since* on; no entry = no usage."""
    first = _day(to_ms(since))
    found: defaultdict[str, Counter[date]] = defaultdict(Counter)
    finished = connection.execute(
        select(days.c.meter, days.c.day, days.c.total).where(
            days.c.customer == customer, days.c.day >= first
        )
    )
    for meter, day, total in finished:
        found[meter][from_ms(day).date()] += total
    for lane, start in _unfinished(connection, customer, first):
        for day, total in _by_day(connection, lane, max(first, start)):
            found[lane.meter][from_ms(day).date()] += total
    return {meter: dict(+per_day) for meter, per_day in found.items()}


def is_behind(connection: Connection, customer: str, now: datetime) -> bool:
    """Whether finished days of *customer* have not been added up."""
    return any(True for _ in _due(connection, customer, now))


def add_up(connection: Connection, customer: str, now: datetime) -> None:
    """Add the finished days of *customer* up; the caller commits."""
    for lane, start, end in list(_due(connection, customer, now)):
        totals_by_day = dict(_by_day(connection, lane, start, end))
        connection.execute(
            days.insert(),
            [
                {**lane._asdict(), "day": day, "total": totals_by_day.get(day, 0)}
                for day in range(_day(start), end, DAY_MS)
            ],
        )


def _due(connection: Connection, customer: str, now: datetime) -> Iterator[tuple[Lane, int, int]]:
    """The lanes with finished days that are not added up: from when, and up to when."""
    today = _day(to_ms(now) - _SETTLED_MS)
    for lane, start in _unfinished(connection, customer):
        last = connection.execute(
            select(func.max(buckets.c.minute)).where(_is_of(lane), buckets.c.minute >= start)
        ).scalar()
        # A period that is over is added up to its last usage; one that goes on, up to today.
        if last is not None and _day(start) < today:
            yield lane, start, min(today, _day(last) + DAY_MS)


def _unfinished(
    connection: Connection, customer: str, first: int = 0
) -> Iterator[tuple[Lane, int]]:
    """Each lane that may have usage since *first*, with the time since which it is not added up."""
    is_same = (
        (days.c.customer == totals.c.customer)
        & (days.c.meter == totals.c.meter)
        & (days.c.period == totals.c.period)
    )
    finished = select(func.max(days.c.day)).where(is_same).scalar_subquery()
    rows = connection.execute(
        select(totals.c.customer, totals.c.meter, totals.c.period, finished)
        .where(totals.c.customer == customer)
        .order_by(totals.c.period.desc())
    )
    begun_before: set[str] = set()
    for *key, last in rows:
        lane = Lane(*key)
        if lane.meter not in begun_before:
            yield lane, lane.period if last is None else last + DAY_MS
        if lane.period <= first:
            begun_before.add(lane.meter)


def _by_day(
    connection: Connection, lane: Lane, start: int, end: int | None = None
) -> list[tuple[int, int]]:
    """Day -> usage, from the minutes in ``[start, end)``."""
    day = buckets.c.minute - buckets.c.minute % DAY_MS
    query = select(day, func.sum(buckets.c.total)).where(
        _is_of(lane), buckets.c.minute >= start - start % MINUTE_MS
    )
    if end is not None:
        query = query.where(buckets.c.minute < end)
    return [(int(row[0]), int(row[1])) for row in connection.execute(query.group_by(day))]


def _is_of(lane: Lane) -> ColumnElement[bool]:
    return (
        (buckets.c.customer == lane.customer)
        & (buckets.c.meter == lane.meter)
        & (buckets.c.period == lane.period)
    )


def _day(moment: int) -> int:
    return moment - moment % DAY_MS
