"""Writing everything derived anew from the events, in the periods that are known now.

Functions take an open connection inside a write transaction; the caller commits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from sqlalchemy import Connection, Table, delete, func, insert, literal, select, update

from .. import logs
from ..model import Aggregation, Meter, from_ms, new_id, to_ms
from ..periods import History
from ..shipment import DeadReason, ShipmentState
from .book import PeriodBook
from .cursor import cursor_of
from .replay import Pair, Replay, Scope, by_pair
from .tables import IS_OF_BUCKET, buckets, days, seen, shipments, totals

logger: logs.Log = logs.logger(__name__)

#: Rows that are written at once.
_BATCH = 1000

#: Period and minute of a bucket.
_Place = tuple[int, int]


def rebuild(
    connection: Connection, meters: Mapping[str, Meter], now_ms: int, customer: str | None = None
) -> int:
    """Write everything derived anew.

    Each shipment counts for the period of its own timestamp; nothing else of it changes. What
    belongs to a meter that is not in the catalogue stays. What a minute would have to be shipped
    anew for an event that is not as it was written is set aside (P14).

    :param customer: only this one's.
    :return: number of events read.
    """
    scope, book = Scope(meters, customer), PeriodBook()
    _move_shipments(connection, scope)
    for table in (seen, buckets, totals, days):
        connection.execute(delete(table).where(scope.of(table)))
    read = 0
    corrupt: list[tuple[Pair, _Place]] = []
    for pair, rows in by_pair(scope.events(connection)):
        replay = Replay(connection, meters.get(pair.meter), book)
        for row in rows:
            step = replay.take(row)
            if not row.is_intact:
                logger.error(
                    "event_corrupt", meter=pair.meter, checksum=row.checksum, fault=step.fault
                )
                if pair.meter in meters:
                    corrupt.append((pair, (step.period, step.minute)))
        read += replay.events
        for table, derived in _derived(pair, replay):
            _insert(connection, table, derived)
    _count_shipments(connection, scope)
    for pair, place in corrupt:
        _set_aside(connection, pair, place, now_ms)
    return read


def _derived(pair: Pair, replay: Replay) -> Iterator[tuple[Table, Iterator[dict[str, Any]]]]:
    """The rows that follow from the events of *pair*, but for what was shipped."""
    for period, aggregate in replay.periods.items():
        lane = {**pair._asdict(), "period": period}
        whole = {"total": aggregate.total, "events": aggregate.events, "last_at": aggregate.last_at}
        yield totals, iter([lane | whole])
        yield (
            buckets,
            (
                {**lane, "minute": minute, "total": total, "last_at": last_at, "counted": 0}
                for minute, (total, last_at) in aggregate.minutes.items()
            ),
        )
        if aggregate.aggregation is Aggregation.UNIQUE_COUNT:
            yield seen, ({**lane, "key_hash": thing} for thing in aggregate.present)


def _insert(connection: Connection, table: Table, rows: Iterator[dict[str, Any]]) -> None:
    while batch := list(islice(rows, _BATCH)):
        connection.execute(table.insert(), batch)


# -- shipments -------------------------------------------------------------------------------------


def _move_shipments(connection: Connection, scope: Scope) -> None:
    """Let each shipment count for the period that its own timestamp lies in."""
    book, cursor = PeriodBook(), cursor_of(connection)
    query = select(
        shipments.c.identifier,
        shipments.c.customer,
        shipments.c.meter,
        shipments.c.period,
        shipments.c.timestamp,
    ).where(scope.of(shipments))
    last = ""
    while page := connection.execute(
        query.where(shipments.c.identifier > last).order_by(shipments.c.identifier).limit(_BATCH)
    ).all():
        for row in page:
            period = book.span(cursor, row.customer, row.meter, row.timestamp).start
            if period != row.period:
                connection.execute(
                    update(shipments)
                    .where(shipments.c.identifier == row.identifier)
                    .values(period=period)
                )
        last = page[-1].identifier


def _count_shipments(connection: Connection, scope: Scope) -> None:
    """Write what was shipped of each bucket; of one without usage, it is to be taken back."""
    counted = func.sum(shipments.c.counted)
    of_bucket = select(func.coalesce(counted, 0)).where(IS_OF_BUCKET).scalar_subquery()
    connection.execute(update(buckets).where(scope.of(buckets)).values(counted=of_bucket))
    key = (shipments.c.customer, shipments.c.meter, shipments.c.period, shipments.c.minute)
    # At its own time: that of the latest shipment.
    homeless = (
        select(*key, literal(0), counted, func.max(shipments.c.timestamp))
        .where(scope.of(shipments), ~select(buckets.c.minute).where(IS_OF_BUCKET).exists())
        .group_by(*key)
        .having(counted != 0)
    )
    columns = [*(column.name for column in key), "total", "counted", "last_at"]
    connection.execute(insert(buckets).from_select(columns, homeless))


def _set_aside(connection: Connection, pair: Pair, place: _Place, now_ms: int) -> None:
    """What a minute with a corrupt event would have to be shipped anew waits for an operator."""
    is_it = (
        (buckets.c.customer == pair.customer)
        & (buckets.c.meter == pair.meter)
        & (buckets.c.period == place[0])
        & (buckets.c.minute == place[1])
    )
    row = connection.execute(select(buckets).where(is_it)).one_or_none()
    if row is None or row.total == row.counted:
        return
    difference = row.total - row.counted
    connection.execute(
        shipments.insert(),
        {
            "identifier": new_id(now_ms),
            **pair._asdict(),
            "period": row.period,
            "minute": row.minute,
            "value": difference,
            "counted": difference,
            "timestamp": row.last_at,
            "state": ShipmentState.DEAD.value,
            "attempts": 0,
            "next_attempt_at": now_ms,
            "settled_at": now_ms,
            "reason": DeadReason.CORRUPT.value,
        },
    )
    connection.execute(update(buckets).where(is_it).values(counted=row.total))


def is_misplaced(connection: Connection, customer: str, history: History) -> bool:
    """Whether usage of *customer* lies in another period than *history* says."""
    rows = connection.execute(
        select(totals.c.meter, totals.c.period, totals.c.last_at).where(
            totals.c.customer == customer
        )
    )
    for meter, start, last_at in rows:
        period = history.at(meter, from_ms(start)).period
        if to_ms(period.start) != start or last_at >= to_ms(period.end):
            return True
    return False
