"""Dead letters: shipments set aside until an operator decides.

*Replay* counts a shipment 0, so that the worker cuts a new one, with a new identifier, of what its
minute lacks then. *Discard* writes it off. Either is committed with a row of the journal, and taken
once, however many people decide at the same time. What is voided of usage that Stripe never had is
taken off what was set aside: Stripe would give a credit for what it has charged nobody.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, Select, or_, select, text, update

from ..model import Meter, UsageEvent, from_ms, to_ms
from ..shipment import DeadReason, Shipment, ShipmentState
from .book import Deadlines, PeriodBook
from .delivery import count, shipment_from
from .journal import Decision, note
from .replay import Pair
from .tables import SHIPMENT_IS_OPEN, buckets, shipments
from .trail import corrupt_minutes
from .transactions import Transactions

_PAGE = 500
#: In words.
WHY = {
    DeadReason.EXPIRED: "Stripe takes no usage older than 35 days",
    DeadReason.LATE: "the invoice of its period is final",
}
_BY_HAND = "bill it by hand (an invoice item at Stripe), then discard it"


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which dead letters; None = any."""

    customer: str | None = None
    meter: str | None = None
    reason: DeadReason | None = None


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One shipment that was set aside."""

    #: Its value is what of it was not voided since.
    shipment: Shipment
    #: Start of its minute, and of its billing period.
    minute: datetime
    period: datetime
    #: When it was set aside.
    since: datetime


@dataclass(frozen=True, slots=True)
class Decided:
    """What became of one decision."""

    identifier: str
    #: None = there is no such dead letter (any more).
    letter: DeadLetter | None
    #: Why it was not done, and what to do instead; None = it was.
    refusal: str | None


class DeadLetters:
    """The dead letters of a store.

    :param mark: the driver's parameter mark.
    :param grace_ms: how long after a cycle's end its invoice is finalised.
    """

    def __init__(
        self, transactions: Transactions, meters: Mapping[str, Meter], mark: str, grace_ms: int
    ) -> None:
        self._transactions = transactions
        self._meters = meters
        self._mark = mark
        self._grace_ms = grace_ms

    def letters(self, wanted: Wanted) -> Iterator[DeadLetter]:
        """Those that are *wanted*, oldest first; read page by page."""
        last = ""
        while True:
            query = _dead().where(shipments.c.identifier > last)
            for column in (shipments.c.customer, shipments.c.meter):
                if (value := getattr(wanted, column.name)) is not None:
                    query = query.where(column == value)
            if wanted.reason is not None:
                alone, more = wanted.reason.value, f"{wanted.reason.value}: "
                is_it = shipments.c.reason.startswith(more, autoescape=True)
                query = query.where(or_(shipments.c.reason == alone, is_it))
            with self._transactions.reading() as connection:
                page = connection.execute(query.order_by(shipments.c.identifier).limit(_PAGE)).all()
            yield from map(_letter, page)
            if len(page) < _PAGE:
                return
            last = page[-1].identifier

    def find(self, identifier: str) -> DeadLetter | None:
        """The dead letter with that identifier."""
        with self._transactions.reading() as connection:
            row = connection.execute(
                _dead().where(shipments.c.identifier == identifier)
            ).one_or_none()
        return None if row is None else _letter(row)

    def replay(self, identifiers: Collection[str], decision: Decision) -> list[Decided]:
        """Have each counted 0, unless there is no use in sending it again; one transaction."""
        with self._transactions.reading() as connection:
            corrupt = self._corrupt(connection, _found(connection, identifiers).values())
        deadlines = Deadlines(PeriodBook(self._mark), self._grace_ms)

        def refuse(connection: Connection, row: Row[Any]) -> str | None:
            if (where := (Pair(row.customer, row.meter), row.minute)) in corrupt:
                return (
                    f"the event {corrupt[where]} of its minute is not as it was written (corrupt): "
                    "restore it from a backup, or discard this"
                )
            return self._useless(connection, row, deadlines, decision.at_ms)

        def do(connection: Connection, row: Row[Any]) -> None:
            count(connection, row, -row.counted)
            _settle(connection, row, decision, counted=0, reason=f"replayed, was {row.reason}")

        return self._decide("replay", identifiers, decision, refuse, do)

    def discard(self, identifiers: Collection[str], decision: Decision) -> list[Decided]:
        """Write each off; one transaction. It stays counted: nothing is sent in its place."""

        def do(connection: Connection, row: Row[Any]) -> None:
            _settle(connection, row, decision)

        return self._decide("discard", identifiers, decision, lambda *_: None, do)

    def _decide(
        self,
        what: str,
        identifiers: Collection[str],
        decision: Decision,
        refuse: Callable[[Connection, Row[Any]], str | None],
        do: Callable[[Connection, Row[Any]], None],
    ) -> list[Decided]:
        decided = []
        with self._transactions.writing() as connection:
            found = _found(connection, identifiers)
            for identifier in dict.fromkeys(identifiers):
                row = found.get(identifier)
                if row is None:
                    decided.append(Decided(identifier, None, "there is no such dead shipment"))
                    continue
                refusal = refuse(connection, row)
                if refusal is None:
                    do(connection, row)
                    note(
                        connection,
                        decision,
                        f"dead {what} {identifier}: {row.value} of {row.customer} {row.meter} "
                        f"at {from_ms(row.minute):%Y-%m-%dT%H:%MZ} ({row.reason})",
                    )
                decided.append(Decided(identifier, _letter(row), refusal))
        return decided

    def fates(self, events: Iterable[UsageEvent], now_ms: int) -> list[DeadReason | None]:
        """For each of *events*, why Stripe would not take it any more; None = it would."""
        deadlines = Deadlines(PeriodBook(self._mark), self._grace_ms)
        with self._transactions.reading() as connection:
            deadlines.refresh(connection)
            return [
                deadlines.dead_reason(
                    connection, event.customer, event.meter, to_ms(event.occurred_at), now_ms
                )
                for event in events
            ]

    def _useless(
        self, connection: Connection, row: Row[Any], deadlines: Deadlines, now_ms: int
    ) -> str | None:
        meter = self._meters.get(row.meter)
        if meter is None or not meter.billable:
            return f"{row.meter} is no billable meter of the catalogue: nothing would be sent"
        where = (row.customer, row.meter, row.timestamp)
        deadlines.refresh(connection)
        dead = deadlines.dead_reason(connection, *where, now_ms)
        return dead and f"it is {dead.value}: {WHY[dead]}; {_BY_HAND}"

    def _corrupt(
        self, connection: Connection, rows: Collection[Row[Any]]
    ) -> dict[tuple[Pair, int], str]:
        """Pair and minute -> key of an event in it that is not as it was written."""
        minutes: defaultdict[Pair, set[int]] = defaultdict(set)
        for row in rows:
            minutes[Pair(row.customer, row.meter)].add(row.minute)
        return {
            (pair, minute): key
            for pair, places in minutes.items()
            for minute, key in corrupt_minutes(connection, pair, places).items()
        }


def take_off(connection: Connection, customer: str, meter: str, minute: int, now_ms: int) -> None:
    """Take what was voided of a minute off its shipments, if Stripe has none of them.

    Otherwise the worker would have Stripe take back what it never had. The caller commits.
    """
    of_minute = (shipments.c.customer == customer, shipments.c.meter == meter)
    sent = connection.execute(
        select(shipments)
        .where(*of_minute, shipments.c.minute == minute, shipments.c.counted != 0)
        .order_by(shipments.c.identifier.desc())
    ).all()
    if not all(map(_is_not_at_stripe, sent)):  # which of them carried it, nobody can tell
        return
    for period in {row.period for row in sent}:
        excess = connection.execute(
            select(buckets.c.counted - buckets.c.total).where(
                buckets.c.customer == customer,
                buckets.c.meter == meter,
                buckets.c.period == period,
                buckets.c.minute == minute,
            )
        ).scalar()
        left = max(0, excess or 0)
        for row in sent:
            units = min(left, row.counted) if row.period == period else 0
            if units > 0:
                left -= units
                count(connection, row, -units)
                _take_off(connection, row, units, now_ms)


def _is_not_at_stripe(row: Row[Any]) -> bool:
    is_aside = row.state in (ShipmentState.DEAD.value, ShipmentState.DISCARDED.value)
    return is_aside and not (row.reason or "").startswith(DeadReason.AMBIGUOUS.value)


def _take_off(connection: Connection, row: Row[Any], units: int, now_ms: int) -> None:
    values: dict[str, object] = {"counted": row.counted - units}
    if row.counted == units and row.state == ShipmentState.DEAD.value:
        values |= {
            "state": ShipmentState.DISCARDED.value,
            "settled_at": now_ms,
            "reason": f"voided, was {row.reason}",
        }
    connection.execute(
        update(shipments).where(shipments.c.identifier == row.identifier).values(**values)
    )


def _dead() -> Select[Any]:
    return select(shipments).where(
        shipments.c.state == ShipmentState.DEAD.value, text(SHIPMENT_IS_OPEN)
    )


def _found(connection: Connection, identifiers: Collection[str]) -> dict[str, Row[Any]]:
    found: dict[str, Row[Any]] = {}
    wanted: Sequence[str] = list(identifiers)
    for start in range(0, len(wanted), _PAGE):
        page = _dead().where(shipments.c.identifier.in_(wanted[start : start + _PAGE]))
        found |= {row.identifier: row for row in connection.execute(page)}
    return found


def _settle(connection: Connection, row: Row[Any], decision: Decision, **values: object) -> None:
    connection.execute(
        update(shipments)
        .where(shipments.c.identifier == row.identifier)
        .values(state=ShipmentState.DISCARDED.value, settled_at=decision.at_ms, **values)
    )


def _letter(row: Row[Any]) -> DeadLetter:
    return DeadLetter(
        shipment=replace(shipment_from(row), value=row.counted),
        minute=from_ms(row.minute),
        period=from_ms(row.period),
        since=from_ms(row.settled_at or row.next_attempt_at),
    )
