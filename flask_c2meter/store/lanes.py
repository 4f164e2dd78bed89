"""Lanes: who may send for a (customer, meter), and what is held.

A *lane* has a lease and at most one request in flight, which is Stripe's own limit. The lane of the
customer ``*`` stands for a whole meter, or for everything. Functions here take an open connection
inside a write transaction; the caller commits.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from sqlalchemy import Connection, select, text, update

from ..shipment import Shipment, ShipmentState
from .shipping import ALL, Claimant, Hold
from .tables import lanes, shipments

_LEASE = text(
    "INSERT INTO lanes (customer, meter, lease_owner, lease_until) "
    "VALUES (:customer, :meter, :owner, :until) ON CONFLICT (customer, meter) "
    "DO UPDATE SET lease_owner = excluded.lease_owner, lease_until = excluded.lease_until"
)
_RELEASE = text(
    "UPDATE lanes SET lease_owner = NULL WHERE customer = :customer AND meter = :meter "
    "AND lease_owner = :owner"
)


# -- leases ----------------------------------------------------------------------------------------


def lease(connection: Connection, claimant: Claimant, shipments: Sequence[Shipment]) -> None:
    """Lease the lanes of *shipments* to *claimant*."""
    if shipments:
        connection.execute(
            _LEASE,
            [
                {
                    "customer": shipment.customer,
                    "meter": shipment.meter,
                    "owner": claimant.owner,
                    "until": claimant.lease_until_ms,
                }
                for shipment in shipments
            ],
        )


def release(connection: Connection, shipments: Sequence[Shipment], owner: str) -> None:
    """Give back *owner*'s leases of the lanes of *shipments*."""
    connection.execute(
        _RELEASE,
        [
            {"customer": shipment.customer, "meter": shipment.meter, "owner": owner}
            for shipment in shipments
        ],
    )


def lease_owners(connection: Connection) -> list[str]:
    """Who holds a lease."""
    return list(
        connection.execute(
            select(lanes.c.lease_owner).where(lanes.c.lease_owner.is_not(None)).distinct()
        ).scalars()
    )


def extend_leases(
    connection: Connection, owner: str, leased: Collection[tuple[str, str]], until_ms: int
) -> None:
    """The heartbeat: move the end of *owner*'s leases of the (customer, meter)s it knows of.

    One it does not know of, because a commit failed and yet was made, must run out.
    """
    connection.execute(
        text(
            "UPDATE lanes SET lease_until = :until "
            "WHERE customer = :customer AND meter = :meter AND lease_owner = :owner"
        ),
        [
            {"customer": customer, "meter": meter, "owner": owner, "until": until_ms}
            for customer, meter in leased
        ],
    )


def retake(connection: Connection, gone: Collection[str], now_ms: int, lease_ms: int) -> int:
    """Free the lanes of owners that are *gone*, and those whose lease has ended.

    A lease that ends later than any lease can was made before the clock was set back: it is
    over too. What was being sent becomes due at once, with the same identifier.

    :return: number of lanes freed.
    """
    over = lanes.c.lease_owner.is_not(None) & (
        lanes.c.lease_owner.in_(gone)
        | (lanes.c.lease_until <= now_ms)
        | (lanes.c.lease_until > now_ms + 2 * lease_ms)
    )
    freed = connection.execute(select(lanes.c.customer, lanes.c.meter).where(over)).all()
    for customer, meter in freed:
        connection.execute(
            update(shipments)
            .where(
                shipments.c.customer == customer,
                shipments.c.meter == meter,
                shipments.c.state == ShipmentState.SENDING.value,
            )
            .values(state=ShipmentState.READY.value, next_attempt_at=now_ms, reason="abandoned")
        )
        connection.execute(
            update(lanes)
            .where(lanes.c.customer == customer, lanes.c.meter == meter)
            .values(lease_owner=None)
        )
    return len(freed)


# -- holds -----------------------------------------------------------------------------------------


def holds(connection: Connection) -> list[Hold]:
    """Every hold in force."""
    found = connection.execute(
        text(
            "SELECT meter, hold_reason, held_since, lease_until FROM lanes "
            "WHERE customer = :all AND hold_reason IS NOT NULL"
        ),
        {"all": ALL},
    )
    return [Hold(*row) for row in found]


def set_hold(connection: Connection, hold: Hold) -> None:
    """Begin *hold*, or move its next probe; ``since`` stays that of the first."""
    connection.execute(
        text(
            "INSERT INTO lanes (customer, meter, lease_until, hold_reason, held_since) "
            "VALUES (:all, :meter, :probe, :reason, :since) "
            "ON CONFLICT (customer, meter) DO UPDATE SET lease_until = excluded.lease_until, "
            "held_since = CASE WHEN lanes.hold_reason IS NULL THEN excluded.held_since "
            "ELSE lanes.held_since END, hold_reason = excluded.hold_reason"
        ),
        {
            "all": ALL,
            "meter": hold.meter,
            "probe": hold.probe_ms,
            "reason": hold.reason,
            "since": hold.since_ms,
        },
    )


def lift_holds(connection: Connection, meters: Collection[str]) -> None:
    """End the holds of *meters*."""
    if meters:
        connection.execute(
            update(lanes)
            .where(lanes.c.customer == ALL, lanes.c.meter.in_(meters))
            .values(hold_reason=None)
        )
