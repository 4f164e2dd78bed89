"""How delivery fares, read from the store alone: any process can say it, whichever does the work.

Everything here costs the same whatever the history: recent rows are found by their time-ordered
identifiers, what is open by the partial indexes, and :data:`~.tables.delivery_times` adds up.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import Connection, Row, case, func, select, text

from ..model import first_id, to_ms
from ..shipment import Shipment
from .tables import (
    SHIPMENT_IS_OPEN,
    alert_deliveries,
    alerts,
    buckets,
    delivery_times,
    events,
    shipments,
    totals,
)
from .transactions import Transactions

#: Upper bounds of the histogram of waits, in milliseconds; 5 s is the target.
BOUNDS_MS = (100, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000, 300_000, 900_000, 3_600_000)
#: The bound of what waited longer than all of these.
BEYOND_MS = 2**53

#: Most rows that one look at the recent past reads.
MOST_SHIPMENTS = 5_000
MOST_ALERTS = 1_000

_WAITING_SINCE = func.coalesce(shipments.c.waiting_since, shipments.c.timestamp)
_ADD = text(
    "INSERT INTO delivery_times (meter, up_to_ms, shipments, waited_ms) "
    "VALUES (:meter, :up_to_ms, :shipments, :waited_ms) ON CONFLICT (meter, up_to_ms) DO UPDATE "
    "SET shipments = delivery_times.shipments + excluded.shipments, "
    "waited_ms = delivery_times.waited_ms + excluded.waited_ms"
)


@dataclass(frozen=True, slots=True)
class Deliveries:
    """What became of recent shipments that are at rest."""

    #: How long the longest-waiting event of each one that Stripe has took, ascending.
    waits_ms: Sequence[int]
    #: Number of those that Stripe refused, or that were set aside or written off.
    failed: int


@dataclass(frozen=True, slots=True)
class AlertDelays:
    """How long recent alerts took to be announced on all their channels."""

    #: Of those that are through, ascending.
    delays_ms: Sequence[int]
    #: How long those still to be announced somewhere have waited.
    waiting_ms: Sequence[int]
    #: Number of those that a channel has given up.
    failed: int


@dataclass(frozen=True, slots=True)
class Backlog:
    """What of one meter Stripe does not have."""

    #: Wire units not yet cut into shipments.
    unshipped: int = 0
    #: Occurrence of the oldest event not delivered, UTC milliseconds.
    oldest_ms: int | None = None
    #: State -> number of shipments: ready, sending, in_doubt, dead.
    shipments: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Last:
    """When the latest usage of a customer's meter occurred, UTC milliseconds; None = never."""

    recorded_ms: int | None
    delivered_ms: int | None


@dataclass(frozen=True, slots=True)
class Times:
    """The histogram of one meter since its first delivery."""

    #: Upper bound in milliseconds -> number of shipments, not cumulative.
    shipments: Mapping[int, int]
    waited_ms: int


def note_delivered(connection: Connection, delivered: Sequence[Shipment], now_ms: int) -> None:
    """Add *delivered* to the histogram; the caller commits."""
    _note(connection, [(each.meter, _since(each)) for each in delivered], now_ms)


def note_proved(connection: Connection, identifier: str, now_ms: int) -> None:
    """The same for a shipment in doubt that Stripe is found to have; call it before that ends."""
    found = connection.execute(
        select(shipments.c.meter, _WAITING_SINCE).where(
            shipments.c.identifier == identifier,
            shipments.c.state == "in_doubt",  # else another process was faster
        )
    )
    _note(connection, [(row[0], row[1]) for row in found], now_ms)


def _since(shipment: Shipment) -> int:
    return to_ms(shipment.waiting_since or shipment.timestamp)


def _note(connection: Connection, waited_since: Sequence[tuple[str, int]], now_ms: int) -> None:
    sums: dict[tuple[str, int], tuple[int, int]] = {}
    for meter, since in waited_since:
        waited = max(0, now_ms - since)
        bound = next((bound for bound in BOUNDS_MS if waited <= bound), BEYOND_MS)
        number, total = sums.get((meter, bound), (0, 0))
        sums[meter, bound] = (number + 1, total + waited)
    if sums:
        connection.execute(
            _ADD,
            [
                {"meter": meter, "up_to_ms": bound, "shipments": number, "waited_ms": total}
                for (meter, bound), (number, total) in sorted(sums.items())
            ],
        )


class Measures:
    """The readings."""

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions

    def deliveries(self, since: datetime) -> Deliveries:
        """What became of the shipments cut from *since* on, of the latest if they are many."""
        recent = (
            select(
                shipments.c.state,
                shipments.c.counted,
                (shipments.c.settled_at - _WAITING_SINCE).label("waited"),
            )
            .where(shipments.c.identifier >= first_id(to_ms(since)))
            .order_by(shipments.c.identifier.desc())
            .limit(MOST_SHIPMENTS)
        )
        with self._transactions.reading() as connection:
            rows = connection.execute(recent).all()
        # What is discarded and counts nothing was sent anew: its successor tells how that went.
        failed = sum(
            row.state == "dead" or (row.state == "discarded" and row.counted) for row in rows
        )
        return Deliveries(
            sorted(max(0, row.waited) for row in rows if row.state == "delivered"), failed
        )

    def alert_delays(self, since: datetime, now: datetime) -> AlertDelays:
        """How the alerts raised from *since* on fared, of the latest if they are many."""
        latest = (
            select(alerts.c.id, alerts.c.raised_at)
            .where(alerts.c.raised_at >= to_ms(since))
            .order_by(alerts.c.id.desc())
            .limit(MOST_ALERTS)
            .subquery()
        )
        is_open = case((alert_deliveries.c.state.in_(("ready", "sending")), 1), else_=0)
        is_dead = case((alert_deliveries.c.state == "dead", 1), else_=0)
        query = (
            select(
                latest.c.raised_at,
                func.max(alert_deliveries.c.settled_at).label("settled_at"),
                func.sum(is_open).label("waiting"),
                func.sum(is_dead).label("dead"),
            )
            .select_from(latest.join(alert_deliveries, alert_deliveries.c.alert == latest.c.id))
            .group_by(latest.c.id, latest.c.raised_at)
        )
        with self._transactions.reading() as connection:
            rows = connection.execute(query).all()
        through = [row for row in rows if not row.dead and not row.waiting]
        return AlertDelays(
            delays_ms=sorted(max(0, row.settled_at - row.raised_at) for row in through),
            waiting_ms=[
                max(0, to_ms(now) - row.raised_at) for row in rows if row.waiting and not row.dead
            ],
            failed=sum(bool(row.dead) for row in rows),
        )

    def backlog(self, meters: Collection[str]) -> dict[str, Backlog]:
        """Meter -> what of it is still on its way; of *meters*, which are those to be delivered."""
        found = {}
        with self._transactions.reading() as connection:
            opened = _open_buckets(connection, meters)
            on_way = _open_shipments(connection, meters)
        for meter in meters:
            states = on_way.get(meter, {})
            unshipped, oldest = opened.get(meter, (0, None))
            # What is dead waits for a decision, not for delivery.
            ages = [age for state, (_, age) in states.items() if state != "dead"]
            ages += [] if oldest is None else [oldest]
            found[meter] = Backlog(
                unshipped,
                min(ages, default=None),
                {state: number for state, (number, _) in states.items()},
            )
        return found

    def times(self) -> dict[str, Times]:
        """Meter -> how long its events waited until Stripe had them, since the first one."""
        with self._transactions.reading() as connection:
            rows = connection.execute(select(delivery_times)).all()
        found: dict[str, list[Row[tuple[object, ...]]]] = {}
        for row in rows:
            found.setdefault(row.meter, []).append(row)
        return {
            meter: Times(
                {row.up_to_ms: row.shipments for row in mine}, sum(row.waited_ms for row in mine)
            )
            for meter, mine in found.items()
        }

    def last(self, customer: str, meter: str) -> Last:
        """The latest usage of *customer* there is, and that Stripe has."""
        mine = (shipments.c.customer == customer) & (shipments.c.meter == meter)
        latest = (
            select(shipments.c.timestamp)
            .where(mine, shipments.c.state == "delivered")
            .order_by(shipments.c.minute.desc())
            .limit(1)
        )
        recorded = select(func.max(totals.c.last_at)).where(
            totals.c.customer == customer, totals.c.meter == meter
        )
        with self._transactions.reading() as connection:
            return Last(connection.execute(recorded).scalar(), connection.execute(latest).scalar())

    def recorded(self) -> int:
        """Number of events ever recorded: their ids have no gaps, and none is ever removed."""
        with self._transactions.reading() as connection:
            return connection.execute(select(func.max(events.c.id))).scalar() or 0


def _open_buckets(
    connection: Connection, meters: Collection[str]
) -> dict[str, tuple[int, int | None]]:
    query = (
        select(
            buckets.c.meter,
            func.sum(buckets.c.total - buckets.c.counted),
            func.min(buckets.c.minute),
        )
        .where(text("total <> counted"), buckets.c.meter.in_(meters))
        .group_by(buckets.c.meter)
    )
    return {meter: (int(units), oldest) for meter, units, oldest in connection.execute(query)}


def _open_shipments(
    connection: Connection, meters: Collection[str]
) -> dict[str, dict[str, tuple[int, int]]]:
    query = (
        select(shipments.c.meter, shipments.c.state, func.count(), func.min(shipments.c.timestamp))
        .where(text(SHIPMENT_IS_OPEN), shipments.c.meter.in_(meters))
        .group_by(shipments.c.meter, shipments.c.state)
    )
    found: dict[str, dict[str, tuple[int, int]]] = {}
    for meter, state, number, oldest in connection.execute(query):
        found.setdefault(meter, {})[state] = (number, oldest)
    return found
