"""Where all usage is, meter by meter: what ``status`` tells. Functions take an open connection."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, func, select, text

from .shipping import MeterCounts
from .tables import buckets, events, shipments, totals

_SILENT_STREAMS = text(
    "SELECT meter, COUNT(*) FROM events e WHERE flags <> '' "  # as the partial index says it
    "AND flags IN ('reserved', 'reserved incomplete') "
    "AND recorded_at < :before AND NOT EXISTS (SELECT 1 FROM events a "
    "WHERE a.customer = e.customer AND a.meter = e.meter "
    "AND a.key IN ('part:1:' || e.key, 'adjust:' || e.key)) GROUP BY meter"
)


def counts(connection: Connection, meters: Iterable[str]) -> dict[str, MeterCounts]:
    """Where the quantity of each meter is, of *meters* and of all that were ever used."""
    found: dict[str, dict[str, Any]] = {name: {} for name in meters}
    for meter, recorded, number in connection.execute(
        select(totals.c.meter, func.sum(totals.c.total), func.sum(totals.c.events)).group_by(
            totals.c.meter
        )
    ):
        found.setdefault(meter, {}).update(recorded=int(recorded), events=int(number))
    for meter, flags, number in connection.execute(
        select(events.c.meter, events.c.flags, func.count())
        .where(text("flags <> ''"))
        .group_by(events.c.meter, events.c.flags)
    ):
        for flag in flags.split():
            row = found.setdefault(meter, {})
            row[flag] = row.get(flag, 0) + number
    for meter, unshipped, oldest in connection.execute(
        select(
            buckets.c.meter,
            func.sum(buckets.c.total - buckets.c.counted),
            func.min(buckets.c.minute),
        )
        .where(text("total <> counted"))
        .group_by(buckets.c.meter)
    ):
        found.setdefault(meter, {}).update(unshipped=int(unshipped), oldest_unshipped_ms=oldest)
    for meter, state, counted, number, oldest in connection.execute(
        select(
            shipments.c.meter,
            shipments.c.state,
            func.sum(shipments.c.counted),
            func.count(),
            func.min(shipments.c.timestamp),
        ).group_by(shipments.c.meter, shipments.c.state)
    ):
        _add_state(found.setdefault(meter, {}), state, int(counted), number, oldest)
    return {meter: MeterCounts(**numbers) for meter, numbers in found.items()}


def _add_state(counts: dict[str, Any], state: str, counted: int, number: int, oldest: int) -> None:
    name = "in_flight" if state in ("ready", "sending") else state
    counts[name] = counts.get(name, 0) + counted
    if state == "dead":
        counts["dead_shipments"] = number
    elif name in ("in_flight", "in_doubt"):
        before = counts.get("oldest_unshipped_ms")
        counts["oldest_unshipped_ms"] = oldest if before is None else min(before, oldest)


def silent_streams(connection: Connection, before_ms: int) -> dict[str, int]:
    """Meter -> number of reservations made before then that have no part and are not voided."""
    return {
        meter: number
        for meter, number in connection.execute(_SILENT_STREAMS, {"before": before_ms})
    }
