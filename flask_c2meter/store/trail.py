"""The paper trail of one customer's meter in one period: from the number down to each operation.

Read little by little, whatever its length, in one snapshot; every event's checksum is looked at on
the way.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, func, select

from ..model import MINUTE_MS, Aggregation, Meter, Period, UsageEvent, from_ms, to_ms
from ..shipment import Shipment, ShipmentState
from .book import PeriodBook
from .delivery import shipment_from
from .groups import Groups
from .ledger import ADJUST, EVENT_COLUMNS, Row, decode
from .replay import Aggregate, Pair, Progress, Replay, Step, streamed, watched
from .tables import buckets, events, shipments, totals
from .transactions import Transactions

_COLUMNS = tuple(events.c[name] for name in EVENT_COLUMNS)
_MINUTE = events.c.occurred_at - events.c.occurred_at % MINUTE_MS


@dataclass(frozen=True, slots=True)
class Traced:
    """One operation, and what it added."""

    event: UsageEvent
    #: In wire units.
    increment: int
    #: What is wrong with its row, in words; None = nothing.
    fault: str | None


@dataclass(frozen=True, slots=True)
class MinuteTrail:
    """One minute: what was shipped of it, and the operations in it."""

    minute: datetime
    #: In wire units: as stored, as the events say, and what its shipments count of it.
    total: int
    recomputed: int
    counted: int
    shipments: list[Shipment]
    #: To be read before the next minute.
    operations: Iterator[Traced]


@dataclass(frozen=True, slots=True)
class Tally:
    """The whole period, in wire units."""

    #: As stored, and as the events say.
    total: int
    recomputed: int
    #: Number of usage events that are not voided, as stored and as found.
    events: int
    found: int
    #: Number of events that are not as they were written, or void what is not there.
    faults: int
    #: State of the shipments -> what they count, and ``unshipped``.
    places: Mapping[str, int]
    shipments: int

    @property
    def agrees(self) -> bool:
        """Whether what is stored is what the events say."""
        return (self.total, self.events, self.faults) == (self.recomputed, self.found, 0)


class Trails:
    """Reads the trails of a store."""

    def __init__(self, transactions: Transactions, meters: Mapping[str, Meter]) -> None:
        self._transactions = transactions
        self._meters = meters

    @contextmanager
    def open(self, customer: str, meter: str, period: Period) -> Iterator[Trail]:
        """The trail of that period, in one snapshot."""
        with self._transactions.reading() as connection:
            yield Trail(connection, self._meters, Pair(customer, meter), period)

    def minute(self, shipment: Shipment, limit: int) -> tuple[list[Shipment], list[Traced]]:
        """All shipments of the minute of *shipment*, and its first *limit* operations."""
        start = to_ms(shipment.timestamp) - to_ms(shipment.timestamp) % MINUTE_MS
        period = Period(from_ms(start), from_ms(start + MINUTE_MS))
        pair = Pair(shipment.customer, shipment.meter)
        with self._transactions.reading() as connection:
            trail = Trail(connection, self._meters, pair, period)
            rows = connection.execute(_shipments(pair).where(shipments.c.minute == start))
            found = [shipment_from(row) for row in rows]
            query = select(*_COLUMNS).where(trail.events).order_by(events.c.id).limit(limit)
            operations = []
            for row in map(Row._make, connection.execute(query)):
                step = Replay(connection, self._meters.get(pair.meter), PeriodBook()).take(row)
                operations.append(trail.traced(row, step.increment, step.fault))
        return found, operations


class Trail:
    """One trail, in one transaction: the :meth:`tally` first, then the way down."""

    def __init__(
        self, connection: Connection, meters: Mapping[str, Meter], pair: Pair, period: Period
    ) -> None:
        self._connection = connection
        self._meters = meters
        self._pair = pair
        self._start, self._end = to_ms(period.start), to_ms(period.end)
        self.events: ColumnElement[bool] = (
            (events.c.customer == pair.customer)
            & (events.c.meter == pair.meter)
            & (events.c.occurred_at >= self._start)
            & (events.c.occurred_at < self._end)
        )
        #: Key of an event -> its increment, where that depends on the order of recording.
        self._increments: dict[str, int] = {}
        self._aggregate = Aggregate(Aggregation.SUM)

    def traced(self, row: Row, increment: int, fault: str | None) -> Traced:
        """The operation that *row* stores."""
        try:
            event = decode(row, self._meters)
        except ValueError:  # of a row that is not as it was written
            event = decode(row._replace(properties="{}"), self._meters)
        return Traced(event, increment, fault)

    def _replay(self) -> Replay:
        meter = self._meters.get(self._pair.meter)
        return Replay(self._connection, meter, PeriodBook())

    @property
    def _is_ordered(self) -> bool:
        """Whether an increment depends on what was recorded before."""
        meter = self._meters.get(self._pair.meter)
        ordered = (Aggregation.MAX, Aggregation.UNIQUE_COUNT)
        return meter is not None and meter.aggregation in ordered

    def operations(self) -> Iterator[Traced]:
        """Every operation, in recorded order."""
        for row, step in self._recorded(self._replay()):
            yield self.traced(row, step.increment, step.fault)

    def _recorded(self, replay: Replay) -> Iterator[tuple[Row, Step]]:
        query = select(*_COLUMNS).where(self.events).order_by(events.c.id)
        for row in map(Row._make, streamed(self._connection, query)):
            yield row, replay.take(row)

    # -- the whole ---------------------------------------------------------------------------------

    def tally(self, progress: Progress = lambda events: None) -> Tally:
        """The whole, added up again from the events.

        :param progress: told now and then how many events have been read.
        """
        replay, faults = self._replay(), 0
        for row, step in watched(self._recorded(replay), progress):
            faults += step.fault is not None
            if step.increment and self._is_ordered:
                self._increments[row.key] = step.increment
        aggregate = self._aggregate = replay.periods.get(self._start, self._aggregate)
        total, number = self._stored()
        unshipped = self._connection.execute(
            select(func.coalesce(func.sum(buckets.c.total - buckets.c.counted), 0)).where(
                self._of(buckets)
            )
        ).scalar_one()
        states = self._connection.execute(
            select(shipments.c.state, func.sum(shipments.c.counted), func.count())
            .where(self._of(shipments))
            .group_by(shipments.c.state)
        ).all()
        places = {"unshipped": int(unshipped)}
        for state, counted, _ in states:
            is_under_way = state in (ShipmentState.READY, ShipmentState.SENDING)
            name = "in_flight" if is_under_way else state
            places[name] = places.get(name, 0) + int(counted)
        return Tally(
            total=total,
            recomputed=aggregate.total,
            events=number,
            found=aggregate.events,
            faults=faults,
            places=places,
            shipments=sum(number for *_, number in states),
        )

    def total(self) -> int:
        """The stored aggregate, in wire units."""
        return self._stored()[0]

    def _stored(self) -> tuple[int, int]:
        query = select(totals.c.total, totals.c.events).where(self._of(totals))
        row = self._connection.execute(query).one_or_none()
        return (row.total, row.events) if row else (0, 0)

    def _of(self, table: Any) -> ColumnElement[bool]:
        is_it: ColumnElement[bool] = (
            (table.c.customer == self._pair.customer)
            & (table.c.meter == self._pair.meter)
            & (table.c.period == self._start)
        )
        return is_it

    # -- minute by minute --------------------------------------------------------------------------

    def minutes(self) -> Iterator[MinuteTrail]:
        """Merges what happened, what was counted and what was shipped; the tally comes first."""
        in_order = select(buckets).where(self._of(buckets)).order_by(buckets.c.minute)
        of_period = _shipments(self._pair).where(shipments.c.period == self._start)
        happened = Groups(self._by_minute(), lambda found: int(found[0].minute))
        counted = Groups(streamed(self._connection, in_order), _minute_of)
        shipped = Groups(streamed(self._connection, of_period), _minute_of)
        groups = (happened, counted, shipped)
        while heads := [group.head for group in groups if group.head is not None]:
            minute = min(heads)
            total, units = next(((b.total, b.counted) for b in list(counted.of(minute))), (0, 0))
            yield MinuteTrail(
                minute=from_ms(minute),
                total=total,
                recomputed=self._aggregate.minutes.get(minute, (0, 0))[0],
                counted=units,
                shipments=[shipment_from(row) for row in shipped.of(minute)],
                operations=(self.traced(*found) for found in happened.of(minute)),
            )
            happened.leave(minute)

    def _by_minute(self) -> Iterator[tuple[Row, int, str | None]]:
        replay = self._replay()
        query = select(*_COLUMNS).where(self.events).order_by(_MINUTE, events.c.id)
        for row in map(Row._make, streamed(self._connection, query)):
            step = replay.take(row)
            ordered = self._increments.get(row.key, 0)
            yield row, ordered if self._is_ordered else step.increment, step.fault


def _shipments(pair: Pair) -> Select[Any]:
    return (
        select(shipments)
        .where(shipments.c.customer == pair.customer, shipments.c.meter == pair.meter)
        .order_by(shipments.c.minute, shipments.c.identifier)
    )


def _minute_of(row: Any) -> int:
    return int(row.minute)


def corrupt_minutes(connection: Connection, pair: Pair, minutes: Collection[int]) -> dict[int, str]:
    """Minute -> key of an unvoided event in it that is not as it was written."""
    query = select(*_COLUMNS).where(
        events.c.customer == pair.customer, events.c.meter == pair.meter, _MINUTE.in_(minutes)
    )
    suspects: defaultdict[int, list[str]] = defaultdict(list)
    for row in map(Row._make, streamed(connection, query)):
        if not row.is_intact:
            suspects[row.minute].append(row.key)
    found = {}
    for minute, keys in suspects.items():
        for key in keys:
            voided = select(events.c.id).where(
                events.c.customer == pair.customer,
                events.c.meter == pair.meter,
                events.c.key == ADJUST + key,
            )
            if connection.execute(voided).first() is None:
                found[minute] = key
                break
    return found
