"""What reconciliation asks of the store, and the repairs it makes.

Reads go from coarse to fine, one customer's meter at a time, so that memory does not grow with
history. A repair is one transaction with its line in the journal: it moves ``counted`` and nothing
else, and only while the minute is as it was when it was judged, so that two at once are one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Table, case, func, select, text, update

from ..model import DAY_MS, HOUR_MS, from_ms, to_ms
from ..reconciliation import Difference, Minute, Repair, Sent
from ..shipment import DeadReason, ShipmentState
from . import doubt
from .book import Deadlines, PeriodBook
from .delivery import count
from .journal import Decision, note
from .tables import buckets, shipments
from .transactions import Transactions

#: Dead shipments read at a time.
_PAGE = 500

_IN_VAIN = {
    DeadReason.EXPIRED: "older than 35 days: Stripe takes no correction",
    DeadReason.LATE: "its invoice is final: a correction would be billed nowhere",
}

_OPEN = (ShipmentState.READY.value, ShipmentState.SENDING.value, ShipmentState.IN_DOUBT.value)


@dataclass(frozen=True, slots=True)
class LaneBook:
    """One customer's meter in a stretch of time, in wire units; a few entries for each day."""

    #: UTC day -> what Stripe is held to have counted, where that is not nothing.
    days: Mapping[datetime, int]
    #: UTC day -> the latest delivery that Stripe is held to have counted.
    settled: Mapping[datetime, datetime]
    has_dead: bool
    #: What Stripe has not been seen to accept, and since when; None = nothing.
    unshipped: int
    oldest_open: datetime | None
    #: Hours with usage.
    hours: frozenset[datetime]

    @property
    def is_empty(self) -> bool:
        """Whether nothing was recorded or sent."""
        return not (self.hours or self.settled or self.has_dead or self.oldest_open)


@dataclass(frozen=True, slots=True)
class Witness:
    """A delivered shipment: where Stripe shows all of its minute, it shows what came before."""

    customer: str
    minute: datetime
    settled_at: datetime
    #: What Stripe must show for the whole minute.
    expected: int


class Reconciling:
    """The store, as reconciliation sees it.

    :param grace_ms: how long after a cycle's end its invoice is finalised.
    """

    def __init__(self, transactions: Transactions, mark: str, grace_ms: int) -> None:
        self._transactions = transactions
        self._mark = mark
        self._grace_ms = grace_ms

    # -- reading -------------------------------------------------------------------------------

    def lane(self, customer: str, meter: str, start: datetime, end: datetime) -> LaneBook:
        """Everything of ``[start, end)``, by the day."""
        day = shipments.c.minute - shipments.c.minute % DAY_MS
        hour = buckets.c.minute - buckets.c.minute % HOUR_MS
        recorded = _within(buckets, customer, meter, start, end)
        sent = select(
            day.label("day"),
            shipments.c.state,
            func.sum(shipments.c.counted).label("counted"),
            func.min(shipments.c.minute).label("oldest"),
            func.max(case((shipments.c.counted != 0, shipments.c.settled_at))).label("settled"),
        ).where(_within(shipments, customer, meter, start, end))
        unshipped = select(
            func.sum(buckets.c.total - buckets.c.counted), func.min(buckets.c.minute)
        ).where(recorded, text("total <> counted"))
        with self._transactions.reading() as connection:
            rows = connection.execute(sent.group_by(day, shipments.c.state)).all()
            units, oldest = connection.execute(unshipped).one()
            hours = connection.execute(select(hour).where(recorded).distinct()).scalars().all()
        delivered = [row for row in rows if row.state == ShipmentState.DELIVERED.value]
        on_way = [row for row in rows if row.state in _OPEN]
        begun = [row.oldest for row in on_way] + ([] if oldest is None else [oldest])
        return LaneBook(
            days={from_ms(row.day): int(row.counted) for row in delivered if row.counted},
            settled={from_ms(row.day): from_ms(row.settled) for row in delivered if row.settled},
            has_dead=any(row.state == ShipmentState.DEAD.value for row in rows),
            unshipped=sum(int(row.counted) for row in on_way) + int(units or 0),
            oldest_open=from_ms(min(begun)) if begun else None,
            hours=frozenset(map(from_ms, hours)),
        )

    def hours(
        self, customer: str, meter: str, start: datetime, end: datetime
    ) -> dict[datetime, int]:
        """Hour -> what Stripe is held to have counted, where that is not nothing."""
        hour = shipments.c.minute - shipments.c.minute % HOUR_MS
        query = (
            select(hour, func.sum(shipments.c.counted))
            .where(
                _within(shipments, customer, meter, start, end),
                shipments.c.state == ShipmentState.DELIVERED.value,
            )
            .group_by(hour)
        )
        with self._transactions.reading() as connection:
            return {from_ms(row[0]): int(row[1]) for row in connection.execute(query) if row[1]}

    def minutes(self, customer: str, meter: str, start: datetime, end: datetime) -> list[datetime]:
        """The minutes that have shipments which Stripe may have, in order."""
        query = (
            select(shipments.c.minute)
            .where(
                _within(shipments, customer, meter, start, end),
                shipments.c.first_attempt_at.is_not(None),
            )
            .distinct()
            .order_by(shipments.c.minute)
        )
        with self._transactions.reading() as connection:
            return [from_ms(minute) for minute in connection.execute(query).scalars()]

    def minute(self, customer: str, meter: str, start: datetime) -> Minute:
        """One minute with all of its shipments."""
        with self._transactions.reading() as connection:
            return _minute(connection, customer, meter, to_ms(start))

    def dead(
        self, customer: str, meter: str, start: datetime, end: datetime
    ) -> Iterator[tuple[Minute, Sent]]:
        """The dead shipments, each with its minute, oldest minute first; read little by little."""
        after = (to_ms(start), "")
        while True:
            query = (
                select(shipments)
                .where(
                    shipments.c.customer == customer,
                    shipments.c.meter == meter,
                    shipments.c.state == ShipmentState.DEAD.value,
                    shipments.c.counted != 0,
                    shipments.c.minute >= after[0],
                    shipments.c.minute < to_ms(end),
                    (shipments.c.minute > after[0]) | (shipments.c.identifier > after[1]),
                )
                .order_by(shipments.c.minute, shipments.c.identifier)
                .limit(_PAGE)
            )
            with self._transactions.reading() as connection:
                rows = connection.execute(query).all()
                found = [
                    (_minute(connection, customer, meter, row.minute), _sent(row)) for row in rows
                ]
            yield from found
            if len(rows) < _PAGE:
                return
            after = (rows[-1].minute, rows[-1].identifier)

    def witnesses(self, minute: Minute, since: datetime, limit: int) -> list[Witness]:
        """The first and the last *limit* deliveries of the meter from *since* on, in other minutes.

        Stripe may lack some of the first, too, and not show the last yet.
        """
        where = (minute.customer, minute.meter, to_ms(minute.start))
        with self._transactions.reading() as connection:
            return [
                Witness(
                    row.customer,
                    from_ms(row.minute),
                    from_ms(row.settled_at),
                    doubt.delivered(connection, row),
                )
                for latest in (False, True)
                for row in doubt.witnesses(connection, where, to_ms(since), limit, latest=latest)
            ]

    # -- repairing -----------------------------------------------------------------------------

    def obstacle(self, minute: Minute, now: datetime) -> str | None:
        """Why a correction of *minute* would be in vain; None = it would not."""
        with self._transactions.reading() as connection:
            return self._obstacle(connection, minute, to_ms(now))

    def repair(self, difference: Difference, who: str, now: datetime) -> str | None:
        """Make the repairs of *difference*, each noted in the journal: all of them or none.

        :return: why nothing was done; None = it was.
        """
        judged = difference.minute
        where = (judged.customer, judged.meter, to_ms(judged.start))
        with self._transactions.writing() as connection:
            if (why := self._obstacle(connection, judged, to_ms(now))) is not None:
                return why
            if _minute(connection, *where).shipments != judged.shipments:
                return "the minute has changed meanwhile: look again"
            for each in difference.repairs:
                row = connection.execute(
                    update(shipments)
                    .where(shipments.c.identifier == each.identifier)
                    .values(counted=each.after)
                    .returning(shipments)
                ).one()
                count(connection, row, each.after - each.before)
            decision = Decision(who, _why(difference), to_ms(now))
            note(connection, decision, *(_what(judged, each) for each in difference.repairs))
        return None

    def _obstacle(self, connection: Connection, minute: Minute, now_ms: int) -> str | None:
        # The correction will bear the time of the latest event.
        last_at = connection.execute(
            select(func.max(buckets.c.last_at)).where(
                buckets.c.customer == minute.customer,
                buckets.c.meter == minute.meter,
                buckets.c.minute == to_ms(minute.start),
            )
        ).scalar()
        moment = to_ms(minute.start) if last_at is None else int(last_at)
        deadlines = Deadlines(PeriodBook(self._mark), self._grace_ms)
        where = (minute.customer, minute.meter, moment)
        dead = deadlines.dead_reason(connection, *where, now_ms)
        return None if dead is None else _IN_VAIN[dead]


def _what(minute: Minute, repair: Repair) -> str:
    return (
        f"reconcile {repair.identifier} of {minute.customer} {minute.meter} "
        f"at {minute.start:%Y-%m-%dT%H:%MZ}: counted {repair.before}, now {repair.after}"
    )


def _why(difference: Difference) -> str:
    shown, held = difference.theirs, difference.minute.delivered
    return f"{difference.kind}: Stripe shows {shown} of the minute, not {held}"


def _within(
    table: Table, customer: str, meter: str, start: datetime, end: datetime
) -> ColumnElement[bool]:
    return (
        (table.c.customer == customer)
        & (table.c.meter == meter)
        & (table.c.minute >= to_ms(start))
        & (table.c.minute < to_ms(end))
    )


def _minute(connection: Connection, customer: str, meter: str, minute: int) -> Minute:
    recorded = connection.execute(
        select(func.sum(buckets.c.total)).where(
            buckets.c.customer == customer,
            buckets.c.meter == meter,
            buckets.c.minute == minute,
        )
    ).scalar()
    rows = connection.execute(
        select(shipments)
        .where(
            shipments.c.customer == customer,
            shipments.c.meter == meter,
            shipments.c.minute == minute,
        )
        .order_by(shipments.c.identifier)
    )
    sent = tuple(_sent(row) for row in rows)
    return Minute(customer, meter, from_ms(minute), int(recorded or 0), sent)


def _sent(row: Row[Any]) -> Sent:
    return Sent(
        identifier=row.identifier,
        value=row.value,
        counted=row.counted,
        state=ShipmentState(row.state),
        reason=row.reason,
        timestamp=from_ms(row.timestamp),
        settled_at=None if row.settled_at is None else from_ms(row.settled_at),
        was_tried=row.first_attempt_at is not None,
    )
