"""``verify``: everything derived held against the events, and against itself.

The events and each table that follows from them are read once, side by side, one customer's meter
at a time: memory does not grow with their number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sqlalchemy import Connection, Select, Table, func, select

from ..model import Aggregation, Meter, from_ms
from .book import PeriodBook
from .groups import Groups
from .replay import Aggregate, Pair, Progress, Replay, Scope, pair_of, streamed, watched
from .tables import IS_OF_BUCKET, buckets, days, seen, shipments, totals


def verify(
    connection: Connection, meters: Mapping[str, Meter], progress: Progress = lambda events: None
) -> Iterator[str]:
    """Say, line by line, where what is stored differs from what the events say.

    Checks each event's checksum; buckets, totals, days and what was seen against the replay;
    ``counted`` against the shipments. *connection* must see one snapshot.

    :param progress: told now and then how many events have been read.
    """
    scope, book = Scope(meters), PeriodBook()
    recorded = Groups(watched(scope.events(connection), progress), pair_of)
    derived = {
        table.name: Groups(streamed(connection, query), pair_of) for table, query in _queries(scope)
    }
    unknown: Counter[str] = Counter()
    while heads := [group.head for group in (recorded, *derived.values()) if group.head]:
        pair = min(heads)
        replay = Replay(connection, meters.get(pair.meter), book)
        for row in recorded.of(pair):
            if fault := replay.take(row).fault:
                yield f"event {pair.customer} {pair.meter} {row.key}: {fault}"
        if pair.meter not in meters:
            unknown[pair.meter] += replay.events
            continue
        for name, compare in _COMPARISONS.items():
            yield from compare(replay.periods, pair, derived[name].of(pair))
    for meter, number in unknown.items():
        yield (
            f"meter {meter}: not in the catalogue, {number} events cannot be checked; "
            "keep a meter that is no longer used, with billable = false"
        )
    yield from _homeless(connection, scope)


# -- what is compared ------------------------------------------------------------------------------


def _queries(scope: Scope) -> Iterator[tuple[Table, Select[Any]]]:
    """Each table that follows from the events, in the order of its primary key."""
    counted = func.coalesce(func.sum(shipments.c.counted), 0)
    shipped = select(counted).where(IS_OF_BUCKET).scalar_subquery()
    for table in (buckets, totals, days, seen):
        query = select(table, shipped.label("shipped")) if table is buckets else select(table)
        yield table, query.where(scope.of(table)).order_by(*table.primary_key)


_Periods = Mapping[int, Aggregate]


def _compare_buckets(periods: _Periods, pair: Pair, stored: Iterator[Any]) -> Iterator[str]:
    for row in stored:
        where = _bucket(pair, row.minute)
        aggregate = periods.get(row.period)
        truth = aggregate.minutes.pop(row.minute, None) if aggregate else None
        expected, last_at = truth or (0, row.last_at)
        if row.total != expected:
            yield f"{where}: total is {row.total}, events say {expected}"
        elif row.last_at != last_at:
            yield f"{where}: its latest event is not at {from_ms(row.last_at):%H:%M:%S.%f}"
        if row.counted != row.shipped:
            yield f"{where}: counted is {row.counted}, its shipments say otherwise"
    for aggregate in periods.values():
        for minute, (total, _) in aggregate.minutes.items():
            yield f"{_bucket(pair, minute)}: missing, events say {total}"


def _compare_totals(periods: _Periods, pair: Pair, stored: Iterator[Any]) -> Iterator[str]:
    missing = set(periods)
    for row in stored:
        aggregate = periods.get(row.period)
        missing.discard(row.period)
        expected = (aggregate.total, aggregate.events) if aggregate else (0, 0)
        if (row.total, row.events) != expected:
            yield (
                f"total {_of_period(pair, row.period)}: is {row.total} of {row.events} events, "
                f"events say {expected[0]} of {expected[1]}"
            )
    for period in sorted(missing):
        yield f"total {_of_period(pair, period)}: missing"


def _compare_days(periods: _Periods, pair: Pair, stored: Iterator[Any]) -> Iterator[str]:
    for row in stored:
        aggregate = periods.get(row.period)
        total = aggregate.days[row.day] if aggregate else 0
        if row.total != total:
            yield (
                f"day {pair.customer} {pair.meter} {from_ms(row.day):%Y-%m-%d}: "
                f"is {row.total}, events say {total}"
            )


def _compare_seen(periods: _Periods, pair: Pair, stored: Iterator[Any]) -> Iterator[str]:
    unseen = {
        period: set(aggregate.present)
        for period, aggregate in periods.items()
        if aggregate.aggregation is Aggregation.UNIQUE_COUNT
    }
    surplus: Counter[int] = Counter()
    for row in stored:
        if row.key_hash in unseen.get(row.period, ()):
            unseen[row.period].discard(row.key_hash)
        else:
            surplus[row.period] += 1
    for period in sorted(unseen.keys() | surplus):
        if unseen.get(period) or surplus[period]:
            yield (
                f"seen {_of_period(pair, period)}: {len(unseen.get(period, ()))} missing, "
                f"{surplus[period]} that no event has"
            )


_COMPARISONS: Mapping[str, Callable[[_Periods, Pair, Iterator[Any]], Iterator[str]]] = {
    "days": _compare_days,
    "totals": _compare_totals,
    "seen": _compare_seen,
    # The last: it uses the minutes up.
    "buckets": _compare_buckets,
}


def _homeless(connection: Connection, scope: Scope) -> Iterator[str]:
    """What shipments have counted of buckets that there are not."""
    key = (shipments.c.customer, shipments.c.meter, shipments.c.period, shipments.c.minute)
    counted = func.sum(shipments.c.counted)
    without = ~select(buckets.c.minute).where(IS_OF_BUCKET).exists()
    query = select(*key, counted).where(scope.of(shipments), without).group_by(*key)
    for customer, meter, _, minute, units in streamed(connection, query.having(counted != 0)):
        where = _bucket(Pair(customer, meter), minute)
        yield f"{where}: missing, but its shipments counted {units}"


def _bucket(pair: Pair, minute: int) -> str:
    return f"bucket {pair.customer} {pair.meter} {from_ms(minute):%Y-%m-%dT%H:%MZ}"


def _of_period(pair: Pair, period: int) -> str:
    return f"{pair.customer} {pair.meter} {from_ms(period):%Y-%m-%d}"
