"""Replaying the events: what each adds to its period's aggregate, from the events alone.

The definition of an increment, written once more and independently of the hot path in ``ledger``:
that the two agree is what ``audit`` checks. One customer's meter at a time, so that memory does not
grow with the number of events: what is kept is a number for each active minute of the one at hand.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import ColumnElement, Connection, Select, Table, select, true

from ..model import DAY_MS, Aggregation, Meter
from .book import PeriodBook
from .cursor import cursor_of
from .ledger import ADJUST, EVENT_COLUMNS, Row, key_hash
from .tables import events

T = TypeVar("T")

#: Told how many events have been read.
Progress = Callable[[int], None]

#: Events between two reports of progress.
_REPORTED = 10_000
#: Rows that are fetched at once where a table is read from end to end.
_FETCHED = 1000

_COLUMNS = tuple(events.c[name] for name in EVENT_COLUMNS)


class Pair(NamedTuple):
    """A customer's meter, over all periods."""

    customer: str
    meter: str


@dataclass(frozen=True, slots=True)
class Scope:
    """What is recomputed: some meters, of one customer or of all."""

    meters: Collection[str]
    customer: str | None = None

    def of(self, table: Table) -> ColumnElement[bool]:
        """The rows of *table* in this scope."""
        return self._of_customer(table) & table.c.meter.in_(self.meters)

    def _of_customer(self, table: Table) -> ColumnElement[bool]:
        return true() if self.customer is None else table.c.customer == self.customer

    def events(self, connection: Connection) -> Iterator[Row]:
        """Every event of the customers in scope, of meters out of scope too.

        Pair by pair in the order of customer and meter, those of a pair in recorded order.
        """
        ordered = (events.c.customer, events.c.meter, events.c.id)
        query = select(*_COLUMNS).where(self._of_customer(events)).order_by(*ordered)
        return map(Row._make, streamed(connection, query))


def streamed(connection: Connection, query: Select[Any]) -> Iterator[Any]:
    """The rows of *query*, fetched little by little."""
    yield from connection.execute(query, execution_options={"yield_per": _FETCHED})


def watched(rows: Iterator[T], progress: Progress) -> Iterator[T]:
    """*rows*, telling *progress* now and then how many were read."""
    number = 0
    for number, row in enumerate(rows, start=1):
        if number % _REPORTED == 0:
            progress(number)
        yield row
    if number % _REPORTED:
        progress(number)


def pair_of(row: Any) -> Pair:
    """Whose row it is."""
    return Pair(row.customer, row.meter)


def by_pair(rows: Iterator[Row]) -> Iterator[tuple[Pair, Iterator[Row]]]:
    """*rows* that are ordered by customer and meter, group by group."""
    yield from groupby(rows, key=pair_of)


#: What is wrong with an event that is not as it was written.
CORRUPT = "its checksum does not match (corrupt)"
#: The last moment that has a date.
_LAST_MS = 253_402_300_799_999


def _is_readable(row: Row) -> bool:
    """Whether a row that is not as it was written can be added up at all."""
    numbers = (row.value, row.occurred_at, row.recorded_at)
    return all(type(number) is int for number in numbers) and (
        max(row.occurred_at, row.recorded_at) <= _LAST_MS
        and min(row.occurred_at, row.recorded_at) >= 0
    )


class Step(NamedTuple):
    """What one event did."""

    #: Start of its period.
    period: int
    #: Start of its minute.
    minute: int
    increment: int
    #: What is wrong with it, in words; None = nothing.
    fault: str | None


@dataclass(slots=True)
class Aggregate:
    """The aggregate of one customer's meter in one period, event by event."""

    aggregation: Aggregation
    total: int = 0
    #: Usage events that are not voided.
    events: int = 0
    #: Latest occurrence.
    last_at: int = 0
    #: Minute -> its total and latest occurrence.
    minutes: dict[int, tuple[int, int]] = field(default_factory=dict)
    #: UTC day -> what its minutes add up to.
    days: Counter[int] = field(default_factory=Counter)
    #: What is counted (unique) or compared (max), with its number of unvoided occurrences.
    present: Counter[str | int] = field(default_factory=Counter)

    def take(self, row: Row, voided: Row | None) -> int:
        """Take one event in and return its increment."""
        before = self.total
        self.events += 1 if voided is None else -1
        self.last_at = max(self.last_at, row.occurred_at)
        if "invalid" not in (voided or row).flags:
            self._count(row if voided is None else voided, 1 if voided is None else -1)
        if increment := self.total - before:
            total, last_at = self.minutes.get(row.minute, (0, 0))
            self.minutes[row.minute] = (total + increment, max(last_at, row.occurred_at))
            self.days[row.minute - row.minute % DAY_MS] += increment
        return increment

    def _count(self, row: Row, sign: int) -> None:
        if self.aggregation is Aggregation.SUM:
            self.total += sign * row.value
        elif self.aggregation is Aggregation.COUNT:
            self.total += sign
        else:
            is_max = self.aggregation is Aggregation.MAX
            thing = row.value if is_max else key_hash(row.unique_by or "")
            self.present[thing] += sign
            if self.present[thing] == 0:
                del self.present[thing]
            if not is_max:
                self.total = len(self.present)
            elif sign > 0:
                self.total = max(self.total, row.value)
            else:
                self.total = max((int(peak) for peak in self.present), default=0)


class Replay:
    """One pair, event by event in recorded order.

    :param meter: None = not in the catalogue: its events are checked and counted, nothing more.
    :param book: of the same transaction.
    """

    def __init__(self, connection: Connection, meter: Meter | None, book: PeriodBook) -> None:
        self._connection = connection
        self._cursor = cursor_of(connection)
        self._meter = meter
        self._book = book
        #: Start of a period -> its aggregate.
        self.periods: dict[int, Aggregate] = {}
        self.events: int = 0

    def take(self, row: Row) -> Step:
        """Take the next event in."""
        self.events += 1
        fault = None if row.is_intact else CORRUPT
        if fault and not _is_readable(row):
            return Step(0, 0, 0, fault)
        span = self._book.span(self._cursor, row.customer, row.meter, row.occurred_at)
        if self._meter is None:
            return Step(span.start, row.minute, 0, fault)
        voided = None
        if row.kind != "usage":
            voided = self._voided(row)
            if voided is None:
                return Step(span.start, row.minute, 0, fault or "the event it voids is missing")
        aggregate = self.periods.get(span.start)
        if aggregate is None:
            aggregate = self.periods[span.start] = Aggregate(self._meter.aggregation)
        return Step(span.start, row.minute, aggregate.take(row, voided), fault)

    def _voided(self, adjustment: Row) -> Row | None:
        found = self._connection.execute(
            select(*_COLUMNS).where(
                events.c.customer == adjustment.customer,
                events.c.meter == adjustment.meter,
                events.c.key == adjustment.key.removeprefix(ADJUST),
            )
        ).one_or_none()
        return None if found is None else Row._make(found)
