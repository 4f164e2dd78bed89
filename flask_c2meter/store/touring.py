"""Finding what to ship next: open buckets of free lanes, so that no customer starves another.

Cycles that have ended go first, because Stripe bills what it has when it finalises them. Then the
customers of each meter take turns, and the meters too. Functions take an open connection.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from typing import Any

from sqlalchemy import Connection, Row, text

from ..model import MINUTE_MS
from .shipping import LaneTour

#: Stripe takes timestamps up to 5 minutes ahead.
MAX_AHEAD_MS = 5 * MINUTE_MS

# The next customers with open buckets: one step through the index for each, whatever the backlog.
_NEXT_CUSTOMERS = (
    "WITH RECURSIVE visited (customer, number) AS ("
    "SELECT (SELECT MIN(customer) FROM buckets "
    "WHERE meter = :meter AND total <> counted AND customer > :after), 1 "
    "UNION ALL "
    "SELECT (SELECT MIN(b.customer) FROM buckets b "
    "WHERE b.meter = :meter AND b.total <> b.counted AND b.customer > v.customer), v.number + 1 "
    "FROM visited v WHERE v.customer IS NOT NULL AND v.number < :visits)"
)
# Those whose cycle has ended: what Stripe does not have when it finalises is billed nowhere.
_CLOSING_CUSTOMERS = (
    "WITH visited (customer, number) AS ("
    "SELECT p.customer, MIN(p.cycle_end) FROM periods p "
    "WHERE p.cycle_end <= :now AND p.cycle_end > :closed AND EXISTS (SELECT 1 FROM buckets b "
    "WHERE b.meter = :meter AND b.customer = p.customer AND b.total <> b.counted "
    "AND b.minute < p.cycle_end) GROUP BY p.customer ORDER BY 2 LIMIT :visits)"
)
# Of each, the oldest minute that has no shipment under way, if the lane is free. A minute in which
# a period begins has two buckets: one after the other.
_OLDEST_BUCKETS = (
    ", picked (customer, minute) AS ("
    "SELECT v.customer, (SELECT b.minute FROM buckets b "
    "WHERE b.meter = :meter AND b.customer = v.customer AND b.total <> b.counted "
    "AND b.last_at <= :horizon AND NOT EXISTS (SELECT 1 FROM shipments s "
    "WHERE s.customer = b.customer AND s.meter = b.meter AND s.minute = b.minute "
    "AND s.state IN ('ready', 'sending', 'in_doubt')) ORDER BY b.minute LIMIT 1) "
    "FROM visited v WHERE v.customer IS NOT NULL AND NOT EXISTS (SELECT 1 FROM lanes l "
    "WHERE l.customer = v.customer AND l.meter = :meter AND l.lease_owner IS NOT NULL)"
    ") "
    "SELECT v.customer AS visited, b.* FROM visited v "
    "LEFT JOIN picked p ON p.customer = v.customer "
    "LEFT JOIN buckets b ON b.meter = :meter AND b.customer = p.customer "
    "AND b.minute = p.minute AND b.total <> b.counted AND b.last_at <= :horizon "
    "AND b.period = (SELECT MIN(o.period) FROM buckets o WHERE o.meter = :meter "
    "AND o.customer = p.customer AND o.minute = p.minute AND o.total <> o.counted "
    "AND o.last_at <= :horizon) "
    "WHERE v.customer IS NOT NULL ORDER BY v.number"
)
_OPEN_BUCKETS = text(_NEXT_CUSTOMERS + _OLDEST_BUCKETS)
_CLOSING_BUCKETS = text(_CLOSING_CUSTOMERS + _OLDEST_BUCKETS)


def closing(
    connection: Connection, meters: Collection[str], want: int, now_ms: int, *, grace_ms: int
) -> list[Row[Any]]:
    """Up to *want* open buckets of cycles that have ended and are not final, one per lane.

    :param grace_ms: how long after a cycle's end its invoice is finalised.
    """
    found: list[Row[Any]] = []
    for meter in meters:
        if (visits := want - len(found)) > 0:
            rows = connection.execute(
                _CLOSING_BUCKETS,
                {
                    "meter": meter,
                    "visits": visits,
                    "now": now_ms,
                    "closed": now_ms - grace_ms,
                    "horizon": now_ms + MAX_AHEAD_MS,
                },
            )
            found += [row for row in rows if row.minute is not None]
    return found


def open_lanes(
    connection: Connection, meters: Collection[str], want: int, now_ms: int, *, tour: LaneTour
) -> list[Row[Any]]:
    """Up to *want* open buckets of free lanes, one per lane, the meters taking turns."""
    later = sorted(meter for meter in meters if meter > tour.last_meter)
    turns = deque(later + sorted(set(meters).difference(later)))
    rounds = {meter: _Round(meter, tour.after.get(meter, "")) for meter in turns}
    found: list[Row[Any]] = []
    while turns and len(found) < want:
        meter = turns.popleft()
        share = max(1, (want - len(found)) // (len(turns) + 1))
        found += rounds[meter].visit(connection, share, now_ms)
        tour.after[meter] = rounds[meter].after
        tour.last_meter = meter
        if not rounds[meter].is_over:
            turns.append(meter)
    return found


class _Round:
    """One round through the customers of one meter, beginning after the last one visited."""

    def __init__(self, meter: str, start: str) -> None:
        self._meter = meter
        self._start = start
        self.after = start
        self._has_wrapped = start == ""
        self.is_over = False

    def visit(self, connection: Connection, visits: int, now_ms: int) -> list[Row[Any]]:
        """Visit that many customers; return a bucket of each that has one to ship."""
        rows = connection.execute(
            _OPEN_BUCKETS,
            {
                "meter": self._meter,
                "after": self.after,
                "visits": visits,
                "horizon": now_ms + MAX_AHEAD_MS,
            },
        ).all()
        if self._has_wrapped and self._start:
            rows = [row for row in rows if row.visited <= self._start]
        if rows:
            self.after = rows[-1].visited
        if len(rows) < visits:
            self.is_over = self._has_wrapped
            self._has_wrapped, self.after = True, "" if not self.is_over else self.after
        return [row for row in rows if row.minute is not None]
