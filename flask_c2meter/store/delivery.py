"""Cutting shipments, beginning attempts, settling outcomes: the worker's side of the store.

A shipment and the start of its attempt are committed before the attempt; its outcome is accepted
only from the owner of its lane's lease and for the attempt that was leased. A bucket's ``counted``
rises when a shipment is cut from it, so what is on its way is never cut twice.

Functions here take an open connection inside a write transaction; the caller commits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from sqlalchemy import Connection, Row, bindparam, case, func, select, text, update

from ..model import HOUR_MS, MAX_UNITS, from_ms, new_id, to_ms
from ..shipment import DeadReason, Shipment, ShipmentState
from . import measures, touring
from .book import Deadlines
from .lanes import lease, release, set_hold
from .shipping import ALL, Claimant, Hold, LaneTour, Settlement, probe_after_ms
from .tables import SHIPMENT_IS_OPEN, buckets, lanes, shipments

#: Stripe forgets identifiers after 24 h; with an hour's margin nothing is resent blindly.
DOUBT_AFTER_MS = 23 * HOUR_MS
#: Only then do Stripe's summaries prove anything about what is in doubt.
LOOK_AFTER_MS = 24 * HOUR_MS
#: No wait we impose on an attempted shipment is longer (Retry-After is capped at one hour): a later
#: due time means that the clock was set back.
MAX_WAIT_MS = 3_700_000


# -- settling ------------------------------------------------------------------------------------

_OURS = text(
    "SELECT s.identifier, s.attempts FROM shipments s "
    "JOIN lanes l ON l.customer = s.customer AND l.meter = s.meter AND l.lease_owner = :owner "
    "WHERE s.identifier IN :identifiers AND s.state = 'sending'"
).bindparams(bindparam("identifiers", expanding=True))
_SETTLE = text(
    "UPDATE shipments SET state = :state, reason = :reason, next_attempt_at = :next_attempt_at, "
    "first_attempt_at = :first_attempt_at, settled_at = :settled_at "
    "WHERE identifier = :identifier"
)


def settle(
    connection: Connection, settlements: Sequence[Settlement], owner: str, now_ms: int
) -> list[Settlement]:
    """Write outcomes and give the lanes back; return the settlements that were accepted.

    A settlement is refused, and changes nothing, if the lease or the attempt is no longer ours:
    a lane it would release may be that of a newer attempt.
    """
    if not settlements:
        return []
    identifiers = [settlement.shipment.identifier for settlement in settlements]
    ours = connection.execute(_OURS, {"owner": owner, "identifiers": identifiers}).all()
    attempts = {identifier: number for identifier, number in ours}
    accepted = [
        settlement
        for settlement in settlements
        if attempts.pop(settlement.shipment.identifier, None) == settlement.shipment.attempts
    ]
    if accepted:
        connection.execute(_SETTLE, [_settled(settlement, now_ms) for settlement in accepted])
        delivered = [s.shipment for s in accepted if s.state is ShipmentState.DELIVERED]
        measures.note_delivered(connection, delivered, now_ms)
        release(connection, [settlement.shipment for settlement in accepted], owner)
    return accepted


def _settled(settlement: Settlement, now_ms: int) -> dict[str, Any]:
    shipment = settlement.shipment
    at_rest = settlement.state not in (ShipmentState.READY, ShipmentState.IN_DOUBT)
    forget_first = shipment.is_first_unknown and not settlement.may_have_arrived
    first = None if forget_first else shipment.first_attempt_at
    return {
        "state": settlement.state.value,
        "reason": settlement.reason,
        "next_attempt_at": settlement.next_attempt_ms,
        "first_attempt_at": first and to_ms(first),
        "settled_at": now_ms if at_rest else None,
        "identifier": shipment.identifier,
    }


def named(connection: Connection, names: Sequence[str]) -> list[Shipment]:
    """The shipments of ours that *names* speak of: as :func:`reject` takes them."""
    query = select(shipments).where(shipments.c.identifier.in_(_identifiers(names)))
    return [shipment_from(row) for row in connection.execute(query)]


def reject(connection: Connection, names: Sequence[str], code: str, now_ms: int) -> list[Shipment]:
    """Stripe has refused, asynchronously, shipments that it had accepted: each is dead, once.

    So is one whose acceptance we do not know of: what Stripe names, it has received.

    :param names: identifiers, or the ``Idempotency-Key`` of an attempt.
    :param code: Stripe's.
    :return: those of *names* that were shipments of ours, taken by Stripe as far as we knew.
    """
    accepted = shipments.c.state.in_((ShipmentState.DELIVERED.value, ShipmentState.IN_DOUBT.value))
    waits_to_be_repeated = (shipments.c.state == ShipmentState.READY.value) & (
        shipments.c.attempts > 0
    )
    rows = connection.execute(
        update(shipments)
        .where(shipments.c.identifier.in_(_identifiers(names)), accepted | waits_to_be_repeated)
        .values(
            state=ShipmentState.DEAD.value,
            reason=f"{DeadReason.REJECTED_ASYNC.value}: {code}",
            settled_at=now_ms,
        )
        .returning(shipments)
    )
    return [shipment_from(row) for row in rows]


def _identifiers(names: Sequence[str]) -> list[str]:
    return sorted({each for name in names for each in (name, name.rpartition(".")[0])})


def claim_under(
    connection: Connection,
    in_force: Sequence[Hold],
    claimant: Claimant,
    tour: LaneTour,
    deadlines: Deadlines,
    now_ms: int,
) -> tuple[list[Shipment], list[Shipment]]:
    """:func:`claim` what is not held, and one shipment for each hold whose probe is due."""
    deadlines.refresh(connection)
    held = {hold.meter: hold for hold in in_force}
    free = [meter for meter in claimant.meters if meter not in held]
    if ALL in held:
        probes = [(held[ALL], free)]
        claimed: list[Shipment] = []
        set_aside: list[Shipment] = []
    else:
        probes = [(hold, [hold.meter]) for hold in in_force if hold.meter in claimant.meters]
        wanted = replace(claimant, meters=free)
        claimed, set_aside = claim(connection, wanted, tour, deadlines, now_ms)
    for hold, meters in probes:
        # A hold that begins in the future was made before the clock was set back.
        if hold.probe_ms <= now_ms or hold.since_ms > now_ms:
            wanted = replace(claimant, meters=meters, want=1)
            probe, aside = claim(connection, wanted, tour, deadlines, now_ms)
            claimed += probe
            set_aside += aside
            if probe:
                set_hold(connection, replace(hold, probe_ms=now_ms + probe_after_ms(hold.reason)))
    return claimed, set_aside


# -- claiming -------------------------------------------------------------------------------------


_DUE = text(
    "SELECT s.* FROM shipments s "
    "LEFT JOIN lanes l ON l.customer = s.customer AND l.meter = s.meter "
    f"WHERE s.state = 'ready' AND s.{SHIPMENT_IS_OPEN} "
    "AND l.lease_owner IS NULL AND s.meter IN :meters AND "
    "(s.next_attempt_at <= :now OR (s.attempts > 0 AND s.next_attempt_at > :absurd)) "
    "ORDER BY s.next_attempt_at LIMIT :want"
).bindparams(bindparam("meters", expanding=True))

_INSERT = text(
    "INSERT INTO shipments (identifier, customer, meter, period, minute, value, counted, "
    "timestamp, state, attempts, first_attempt_at, next_attempt_at, settled_at, reason, "
    "waiting_since, trace) VALUES "
    "(:identifier, :customer, :meter, :period, :minute, :value, :value, :timestamp, :state, "
    ":attempts, :first_attempt_at, :now, :settled_at, :reason, :waiting_since, :trace)"
)

_COUNT = text(
    "UPDATE buckets SET counted = counted + :value WHERE customer = :customer "
    "AND meter = :meter AND period = :period AND minute = :minute"
)

_BEGIN_ATTEMPT = text(
    "UPDATE shipments SET state = 'sending', attempts = attempts + 1, "
    "first_attempt_at = COALESCE(first_attempt_at, :now) WHERE identifier = :identifier"
)


def claim(
    connection: Connection,
    claimant: Claimant,
    tour: LaneTour,
    deadlines: Deadlines,
    now_ms: int,
) -> tuple[list[Shipment], list[Shipment]]:
    """Lease up to ``want`` lanes and begin one attempt on each.

    Shipments due again go before new ones, and of those the ones of closing cycles before the rest.
    What Stripe would refuse for its age or bill nowhere is set aside unsent, and what has been in
    doubt for 23 h is not sent again.

    :return: the shipments claimed, and those set aside.
    """
    if not claimant.meters or claimant.want <= 0:
        return [], []
    claimed, set_aside = _take_due(connection, claimant, deadlines, now_ms)
    lease(connection, claimant, claimed)
    for find in (
        partial(touring.closing, grace_ms=deadlines.grace_ms),
        partial(touring.open_lanes, tour=tour),
    ):
        want = claimant.want - len(claimed)
        if want > 0:
            found = find(connection, claimant.meters, want, now_ms)
            sent, dead = _ship(connection, claimant, found, deadlines, now_ms)
            claimed += sent
            set_aside += dead
    return claimed, set_aside


def _ship(
    connection: Connection,
    claimant: Claimant,
    found: Sequence[Row[Any]],
    deadlines: Deadlines,
    now_ms: int,
) -> tuple[list[Shipment], list[Shipment]]:
    """Cut a shipment of each bucket and begin its first attempt; those not to be sent apart."""
    cut = []
    for row in found:
        where = (row.customer, row.meter, row.last_at)
        cut.append(_cut(row, deadlines.dead_reason(connection, *where, now_ms), now_ms))
    if cut:
        connection.execute(_INSERT, cut)
        connection.execute(_COUNT, cut)
    new = [_shipment(row) for row in cut]
    sent = [shipment for shipment in new if shipment.state is ShipmentState.SENDING]
    lease(connection, claimant, sent)
    return sent, [shipment for shipment in new if shipment.state is ShipmentState.DEAD]


def _take_due(
    connection: Connection, claimant: Claimant, deadlines: Deadlines, now_ms: int
) -> tuple[list[Shipment], list[Shipment]]:
    """Begin another attempt on what is due again, at most one of each lane."""
    rows = connection.execute(
        _DUE,
        {
            "meters": list(claimant.meters),
            "now": now_ms,
            "absurd": now_ms + MAX_WAIT_MS,
            "want": claimant.want,
        },
    ).all()
    taken: dict[tuple[str, str], Shipment] = {}
    set_aside: list[Shipment] = []
    for row in rows:
        if (aside := _set_aside(connection, row, deadlines, now_ms)) is not None:
            set_aside.append(aside)
        elif (row.customer, row.meter) not in taken:
            taken[row.customer, row.meter] = replace(
                shipment_from(row),
                state=ShipmentState.SENDING,
                attempts=row.attempts + 1,
                first_attempt_at=from_ms(row.first_attempt_at or now_ms),
                is_first_unknown=row.first_attempt_at is None,
            )
    begun = list(taken.values())
    if begun:
        connection.execute(
            _BEGIN_ATTEMPT,
            [{"now": now_ms, "identifier": shipment.identifier} for shipment in begun],
        )
    return begun, set_aside


def _cut(bucket: Row[Any], dead: DeadReason | None, now_ms: int) -> dict[str, Any]:
    """The row of a new shipment of *bucket*, its first attempt begun unless it is *dead*."""
    return {
        "identifier": new_id(now_ms),
        "customer": bucket.customer,
        "meter": bucket.meter,
        "period": bucket.period,
        "minute": bucket.minute,
        # Stripe takes 15 digits: what is over stays open and follows in the next shipment.
        "value": max(-MAX_UNITS, min(MAX_UNITS, bucket.total - bucket.counted)),
        "timestamp": bucket.last_at,
        "state": (ShipmentState.DEAD if dead else ShipmentState.SENDING).value,
        "attempts": 0 if dead else 1,
        "first_attempt_at": None if dead else now_ms,
        "now": now_ms,
        "settled_at": now_ms if dead else None,
        "reason": dead.value if dead else None,
        "waiting_since": bucket.waiting_since or bucket.last_at,
        "trace": bucket.trace,
    }


def _shipment(row: dict[str, Any]) -> Shipment:
    is_sending = row["state"] == ShipmentState.SENDING.value
    return Shipment(
        identifier=row["identifier"],
        customer=row["customer"],
        meter=row["meter"],
        value=row["value"],
        timestamp=from_ms(row["timestamp"]),
        attempts=row["attempts"],
        first_attempt_at=from_ms(row["first_attempt_at"]) if is_sending else None,
        is_first_unknown=is_sending,
        state=ShipmentState(row["state"]),
        reason=row["reason"],
        waiting_since=from_ms(row["waiting_since"]),
        trace=row["trace"],
    )


def count(connection: Connection, shipment: Row[Any], difference: int) -> None:
    """Move ``counted`` of the shipment's bucket; the caller moves the shipment's own."""
    connection.execute(
        _COUNT,
        {
            "value": difference,
            "customer": shipment.customer,
            "meter": shipment.meter,
            "period": shipment.period,
            "minute": shipment.minute,
        },
    )


def _set_aside(
    connection: Connection, row: Row[Any], deadlines: Deadlines, now_ms: int
) -> Shipment | None:
    """Set a shipment aside unsent if Stripe would refuse it, bill it nowhere, or count it twice."""
    first = row.first_attempt_at
    where = (row.customer, row.meter, row.timestamp)
    dead = deadlines.dead_reason(connection, *where, now_ms)
    # What may have arrived is in doubt, however old: Stripe's summaries can still tell.
    if first is not None and (dead is DeadReason.EXPIRED or first < now_ms - DOUBT_AFTER_MS):
        values: dict[str, Any] = {
            "state": ShipmentState.IN_DOUBT.value,
            "next_attempt_at": first + LOOK_AFTER_MS,
        }
    elif first is None and dead is not None:
        values = {
            "state": ShipmentState.DEAD.value,
            "reason": dead.value,
            "settled_at": now_ms,
        }
    else:
        return None
    updated = connection.execute(
        update(shipments)
        .where(shipments.c.identifier == row.identifier)
        .values(**values)
        .returning(shipments)
    ).one()
    return shipment_from(updated)


def shipment_from(row: Row[Any]) -> Shipment:
    """A row of ``shipments`` as the model's value."""
    return Shipment(
        identifier=row.identifier,
        customer=row.customer,
        meter=row.meter,
        value=row.value,
        timestamp=from_ms(row.timestamp),
        attempts=row.attempts,
        first_attempt_at=None if row.first_attempt_at is None else from_ms(row.first_attempt_at),
        state=ShipmentState(row.state),
        reason=row.reason,
        waiting_since=None if row.waiting_since is None else from_ms(row.waiting_since),
        trace=row.trace,
    )


# -- what is left ---------------------------------------------------------------------------------


def next_due_ms(connection: Connection, meters: Sequence[str], now_ms: int) -> int | None:
    """When something of *meters* can be sent next; None if nothing is left to send.

    What others are sending is due when their lease is over: they may die.
    """
    on_lane = (lanes.c.customer == shipments.c.customer) & (lanes.c.meter == shipments.c.meter)
    is_sending = shipments.c.state == ShipmentState.SENDING.value
    due_at = case((is_sending, lanes.c.lease_until), else_=shipments.c.next_attempt_at)
    waiting = connection.execute(
        select(func.min(due_at))
        .select_from(shipments.outerjoin(lanes, on_lane))
        .where(
            shipments.c.state.in_(("ready", "sending")),
            text(SHIPMENT_IS_OPEN),
            shipments.c.meter.in_(meters),
        )
    ).scalar()
    unsettled = (
        select(shipments.c.identifier)
        .where(
            shipments.c.customer == buckets.c.customer,
            shipments.c.meter == buckets.c.meter,
            shipments.c.minute == buckets.c.minute,
            shipments.c.state.in_(("ready", "sending", "in_doubt")),
        )
        .exists()
    )
    for meter in meters:
        opened = select(buckets.c.last_at).where(
            buckets.c.meter == meter, text("total <> counted"), ~unsettled
        )
        # Any one that is due will do; only if there is none, the earliest is looked for.
        is_due = buckets.c.last_at <= now_ms + touring.MAX_AHEAD_MS
        opens = connection.execute(opened.where(is_due).limit(1)).scalar()
        if opens is None:
            opens = connection.execute(opened.order_by(buckets.c.last_at).limit(1)).scalar()
        if opens is not None:
            due = max(now_ms, opens - touring.MAX_AHEAD_MS)
            waiting = due if waiting is None else min(waiting, due)
    return waiting
