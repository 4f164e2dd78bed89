"""Shipments in doubt: the evidence for each, and its end.

A shipment whose outcome is unknown for 23 h is never sent again, because Stripe may have forgotten
its identifier. What Stripe has counted in that minute decides instead. Functions take an open
connection; the caller commits.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, func, select, text, update

from ..model import from_ms
from ..shipment import DeadReason, ShipmentState
from .delivery import DOUBT_AFTER_MS, count, shipment_from
from .shipping import Doubt
from .tables import SHIPMENT_IS_OPEN, shipments


def due(connection: Connection, now_ms: int, limit: int) -> list[Doubt]:
    """The doubts whose next look is due."""
    rows = connection.execute(
        select(shipments)
        .where(
            shipments.c.state == ShipmentState.IN_DOUBT.value,
            text(SHIPMENT_IS_OPEN),
            shipments.c.next_attempt_at <= now_ms,
        )
        .order_by(shipments.c.next_attempt_at)
        .limit(limit)
    ).all()
    doubts = []
    for row in rows:
        since = row.first_attempt_at + DOUBT_AFTER_MS + 1
        where = (row.customer, row.meter, row.minute)
        witness = next(iter(witnesses(connection, where, since, 1)), None)
        doubts.append(
            Doubt(
                shipment=shipment_from(row),
                minute=from_ms(row.minute),
                expected_without=delivered(connection, row),
                absent_since=_absent_since(row.reason),
                witness=None if witness is None else shipment_from(witness),
                witness_expected=0 if witness is None else delivered(connection, witness),
            )
        )
    return doubts


def _absent_since(reason: str | None) -> datetime | None:
    """When Stripe was first seen to lack it; any other *reason* is that of the last attempt."""
    mark, _, milliseconds = (reason or "").partition(":")
    return from_ms(int(milliseconds)) if mark == "absent" and milliseconds else None


def witnesses(
    connection: Connection,
    apart_from: tuple[str, str, int],
    since_ms: int,
    limit: int,
    *,
    latest: bool = False,
) -> Sequence[Row[Any]]:
    """Shipments of a meter that were delivered from *since_ms* on.

    Where Stripe shows one of them, it should show what was delivered before.

    :param apart_from: customer, meter and minute of what they are to witness for.
    :param latest: the last ones instead of the first.
    """
    customer, meter, minute = apart_from
    order = shipments.c.settled_at.desc() if latest else shipments.c.settled_at
    return connection.execute(
        select(shipments)
        .where(
            shipments.c.meter == meter,
            shipments.c.state == ShipmentState.DELIVERED.value,
            shipments.c.settled_at >= since_ms,
            (shipments.c.customer != customer) | (shipments.c.minute != minute),
        )
        .order_by(order)
        .limit(limit)
    ).all()


def delivered(connection: Connection, shipment: Row[Any]) -> int:
    """What Stripe should show for the whole minute of *shipment*."""
    total = connection.execute(
        select(func.sum(shipments.c.counted)).where(
            shipments.c.customer == shipment.customer,
            shipments.c.meter == shipment.meter,
            shipments.c.minute == shipment.minute,
            shipments.c.state == ShipmentState.DELIVERED.value,
        )
    ).scalar()
    return int(total or 0)


def look_again(
    connection: Connection, identifier: str, at_ms: int, absent_since_ms: int | None
) -> None:
    """Leave it in doubt until *at_ms*, noting since when Stripe lacks it."""
    _update(
        connection,
        identifier,
        next_attempt_at=at_ms,
        reason=None if absent_since_ms is None else f"absent:{absent_since_ms}",
    )


def was_delivered(connection: Connection, identifier: str, now_ms: int) -> None:
    """Stripe shows it."""
    _update(
        connection, identifier, state=ShipmentState.DELIVERED.value, settled_at=now_ms, reason=None
    )


def was_lost(connection: Connection, identifier: str, now_ms: int) -> None:
    """Stripe never had it: its bucket opens again, a new shipment will follow."""
    row = connection.execute(
        select(shipments).where(
            shipments.c.identifier == identifier,
            shipments.c.state == ShipmentState.IN_DOUBT.value,
        )
    ).one_or_none()
    if row is None:  # another process was faster
        return
    count(connection, row, -row.counted)
    _update(
        connection,
        identifier,
        state=ShipmentState.DISCARDED.value,
        counted=0,
        settled_at=now_ms,
        reason="absent",
    )


def is_ambiguous(connection: Connection, identifier: str, now_ms: int) -> None:
    """Nothing decides: an operator must."""
    _update(
        connection,
        identifier,
        state=ShipmentState.DEAD.value,
        settled_at=now_ms,
        reason=DeadReason.AMBIGUOUS.value,
    )


def _update(connection: Connection, identifier: str, **values: object) -> None:
    connection.execute(
        update(shipments)
        .where(
            shipments.c.identifier == identifier,
            shipments.c.state == ShipmentState.IN_DOUBT.value,
        )
        .values(**values)
    )
