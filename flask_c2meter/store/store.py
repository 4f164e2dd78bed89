"""The store: what the layers above may ask of it, in SQL that every database understands.

A concrete store (``sqlite``, later ``postgresql``) adds how to connect, how to serialise writers
and how to append a batch fast. Everything else is here, once, and tested by one contract suite.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from datetime import date, datetime
from typing import Any, Literal

from sqlalchemy import Connection, not_, select

from ..errors import StoreUnavailable
from ..model import Meter, UsageEvent, to_ms
from ..shipment import Shipment
from . import audit, counting, delivery, doubt, facts, journal, lanes, measures, rebuild
from .alerts import AlertPolicy
from .announcements import Announcements
from .book import Deadlines, PeriodBook
from .closings import Closings
from .cursor import Cursor, cursor_of
from .dead import DeadLetters, take_off
from .inbox import Inbox
from .jobs import Jobs
from .journal import Decision
from .ledger import ADJUST, EVENT_COLUMNS, Entry, Ledger, Row, decode, encode
from .reconciling import Reconciling
from .settings import DatabaseSettings
from .shipping import (
    Claimant,
    Doubt,
    Exchange,
    Hold,
    LaneTour,
    MeterCounts,
    Settlement,
    probe_after_ms,
)
from .standing import Standing, add_up, is_behind, standing, usage_by_day
from .subscriptions import Subscriptions
from .tables import customers, events, shipments
from .trail import Trails
from .transactions import writing


class Store(ABC):
    """Durable memory of one app, used by one process.

    :param meters: the catalogue's meters by name.
    :param alerts: when to raise alerts, and how long usage of a period that is over is billed.
    :param mark: the driver's parameter mark, ``?`` or ``%s``.

    Every method raises :class:`~flask_c2meter.errors.StoreUnavailable` while the database cannot be
    used and :class:`~flask_c2meter.errors.CorruptStore` if it is damaged.
    """

    def __init__(self, meters: Mapping[str, Meter], alerts: AlertPolicy, mark: str) -> None:
        self.meters = meters
        self._alert_policy = alerts
        self._mark = mark
        #: For :meth:`append` alone, which writers enter one at a time: it remembers.
        self._ledger = self._new_ledger()
        self._deadlines = Deadlines(PeriodBook(mark), alerts.grace_ms)
        self.subscriptions: Subscriptions = Subscriptions(self, meters, self._new_ledger)
        self.announcements: Announcements = Announcements(self, meters)
        self.inbox: Inbox = Inbox(self)
        self.reconciling: Reconciling = Reconciling(self, mark, alerts.grace_ms)
        self.closings: Closings = Closings(self, mark, alerts.grace_ms)
        self.dead: DeadLetters = DeadLetters(self, meters, mark, alerts.grace_ms)
        self.trails: Trails = Trails(self, meters)
        self.journal: journal.Journal = journal.Journal(self)
        self.jobs: Jobs = Jobs(self)
        self.measures: measures.Measures = measures.Measures(self)

    def _new_ledger(self) -> Ledger:
        return Ledger(self.meters, self._alert_policy, self._mark)

    # -- what a concrete store adds ------------------------------------------------------------

    @abstractmethod
    def append(self, entries: Sequence[Entry]) -> list[bool]:
        """Record *entries* in one durable transaction.

        :return: for each, whether its key was new.
        """

    @abstractmethod
    def writing(self) -> AbstractContextManager[Connection]:
        """A serialised write transaction; commits at the end, rolls back on error."""

    @abstractmethod
    def reading(self) -> AbstractContextManager[Connection]:
        """A read transaction that sees one snapshot."""

    @abstractmethod
    def upgrade(self) -> str:
        """Bring the schema to :data:`SCHEMA_VERSION`; return the version found before."""

    @abstractmethod
    def check(self) -> None:
        """Read the whole database and raise ``CorruptStore`` if it is damaged."""

    @abstractmethod
    def settings(self) -> DatabaseSettings:
        """What the database is set to."""

    @abstractmethod
    def close(self) -> None:
        """Close every connection."""

    @abstractmethod
    def abandon(self) -> None:
        """Called in a forked child: let go of what was inherited without closing it."""

    # -- recording -----------------------------------------------------------------------------

    def append_replayed(self, rows: Sequence[Row]) -> list[bool]:
        """Record what the spill has kept."""
        return self.append([Entry(row, is_replayed=True) for row in rows])

    def append_on(self, connection: Connection, entries: Sequence[Entry]) -> list[bool]:
        """Like :meth:`append`, inside the caller's transaction on *connection*."""
        if not connection.in_transaction():
            # As its own execute() would: otherwise its commit() would do nothing.
            connection.begin()
        return self._new_ledger().append(cursor_of(connection), entries)

    def _append(
        self, cursor: Cursor, entries: Sequence[Entry], commit: Callable[[], None]
    ) -> list[bool]:
        """What a concrete :meth:`append` does within its transaction."""
        try:
            is_new = self._ledger.append(cursor, entries)
            commit()
        except BaseException:
            self._ledger.forget()
            raise
        self._ledger.committed()
        return is_new

    def adjust(self, adjustment: UsageEvent, decision: Decision | None = None) -> UsageEvent:
        """Void the event that *adjustment* names and return the adjustment as recorded.

        :param decision: for the journal, if the event was not voided before.
        """
        row = encode(adjustment)
        with self.writing() as connection:
            cursor = cursor_of(connection)
            is_new = self._ledger.find(cursor, row.customer, row.meter, row.key) is None
            recorded = self._new_ledger().adjust(cursor, adjustment)
            if is_new:
                take_off(connection, row.customer, row.meter, recorded.minute, row.recorded_at)
            if decision is not None and is_new:
                voided = f"{row.customer} {row.meter} {row.key.removeprefix(ADJUST)}"
                journal.note(connection, decision, f"adjust {voided}")
            return decode(recorded, self.meters)

    def find(
        self, customer: str, meter: str, key: str, on: Connection | None = None
    ) -> UsageEvent | None:
        """The event with that key, or None; as the caller's connection sees it, if one is given."""
        with self.reading() if on is None else nullcontext(on) as connection:
            row = self._ledger.find(cursor_of(connection), customer, meter, key)
        return None if row is None else decode(row, self.meters)

    def find_all(self, wanted: Iterable[UsageEvent]) -> list[UsageEvent | None]:
        """For each of *wanted*, the event that is recorded with its key, or None."""
        with self.reading() as connection:
            return [self.find(e.customer, e.meter, e.key, connection) for e in wanted]

    # -- reading -------------------------------------------------------------------------------

    def events(
        self, customer: str | None = None, meter: str | None = None, limit: int | None = None
    ) -> list[UsageEvent]:
        """The latest *limit* events in recorded order."""
        query = select(*(events.c[name] for name in EVENT_COLUMNS)).order_by(events.c.id.desc())
        if customer is not None:
            query = query.where(events.c.customer == customer)
        if meter is not None:
            query = query.where(events.c.meter == meter)
        with self.reading() as connection:
            rows = connection.execute(query.limit(limit)).all()
        return [decode(Row._make(row), self.meters) for row in reversed(rows)]

    def latest_events(
        self, customer: str | None, meter: str | None, limit: int, page: int = 1000
    ) -> Iterator[UsageEvent]:
        """The same, *page* by *page*; what is recorded meanwhile is not among them."""
        ids = select(events.c.id).order_by(events.c.id.desc())
        query = select(events.c.id, *(events.c[name] for name in EVENT_COLUMNS))
        for column, wanted in ((events.c.customer, customer), (events.c.meter, meter)):
            if wanted is not None:
                ids, query = ids.where(column == wanted), query.where(column == wanted)
        with self.reading() as connection:
            last = connection.execute(ids.limit(1)).scalar()
            if last is None:
                return
            first = connection.execute(ids.offset(limit - 1).limit(1)).scalar()
        query = query.where(events.c.id <= last).order_by(events.c.id).limit(page)
        after = 0 if first is None else first - 1
        while after < last:
            with self.reading() as connection:
                rows = connection.execute(query.where(events.c.id > after)).all()
            yield from (decode(Row._make(row[1:]), self.meters) for row in rows)
            after = rows[-1].id if rows else last

    def has_events_besides(self, customer: str, prefixes: Sequence[str]) -> bool:
        """Whether *customer* has an event whose key begins with none of *prefixes*."""
        others = [not_(events.c.key.startswith(each, autoescape=True)) for each in prefixes]
        query = select(events.c.id).where(events.c.customer == customer, *others).limit(1)
        with self.reading() as connection:
            return connection.execute(query).first() is not None

    def standing(self, customer: str) -> Standing:
        """Where *customer* stands: its periods and totals."""
        with self.reading() as connection:
            return standing(connection, customer)

    def customer_ids(self, batch: int = 1000) -> Iterator[str]:
        """Every customer, in the order of their ids; read little by little."""
        last = ""
        while True:
            query = select(customers.c.id).where(customers.c.id > last).order_by(customers.c.id)
            with self.reading() as connection:
                found = connection.execute(query.limit(batch)).scalars().all()
            yield from found
            if len(found) < batch:
                return
            last = found[-1]

    def find_customers(self, containing: str, after: str, limit: int) -> list[str]:
        """Up to *limit* customers whose ids contain a text, in any case, in the order of the ids.

        Walks the primary key from *after* on, and stops when it has enough.
        """
        query = select(customers.c.id).where(customers.c.id > after).order_by(customers.c.id)
        if containing:
            query = query.where(customers.c.id.icontains(containing, autoescape=True))
        with self.reading() as connection:
            return list(connection.execute(query.limit(limit)).scalars())

    def usage_by_day(
        self, customer: str, since: datetime, now: datetime
    ) -> dict[str, dict[date, int]]:
        """Meter -> UTC day -> usage of *customer* in wire units; no entry = no usage."""
        with self.reading() as connection:
            behind = is_behind(connection, customer, now)
        if behind:
            # If the store cannot be written now, the minutes say the same, only slower.
            with suppress(StoreUnavailable), self.writing() as connection:
                add_up(connection, customer, now)
        with self.reading() as connection:
            return usage_by_day(connection, customer, since)

    def counts(self) -> dict[str, MeterCounts]:
        """Where the quantity of each meter is."""
        with self.reading() as connection:
            return counting.counts(connection, self.meters)

    def silent_streams(self, before: datetime) -> dict[str, int]:
        """Meter -> number of reservations made *before* then that never said how much it was."""
        with self.reading() as connection:
            return counting.silent_streams(connection, to_ms(before))

    # -- small facts ---------------------------------------------------------------------------

    def facts(self) -> dict[str, Any]:
        """Every entry of ``meta``, decoded."""
        with self.reading() as connection:
            return facts.every(connection)

    def note(self, name: str, value: object) -> None:
        """Set the entry *name* of ``meta``; None removes it."""
        with self.writing() as connection:
            facts.write(connection, name, value)

    def note_once(self, name: str, value: object) -> Any:
        """Set the entry *name* unless it is set; return what it is now."""
        with self.writing() as connection:
            if (found := facts.read(connection, name)) is not None:
                return found
            facts.write(connection, name, value)
            return value

    def add(self, name: str, amounts: Mapping[str, int], on: Connection | None = None) -> None:
        """Add *amounts* to the numbers in the entry *name* of ``meta``."""
        with writing(self, on) as connection:
            sums = Counter(facts.read(connection, name) or {})
            sums.update(amounts)
            facts.write(connection, name, sums)

    def note_newer(self, name: str, value: int, on: Connection) -> bool:
        """Set the entry *name* of ``meta`` to *value*, unless it is greater; whether it was not."""
        found = facts.read(on, name)
        if found is not None and found > value:
            return False
        facts.write(on, name, value)
        return True

    # -- delivery ------------------------------------------------------------------------------

    def exchange(
        self,
        claimant: Claimant,
        tour: LaneTour,
        now_ms: int,
        *,
        settlements: Sequence[Settlement] = (),
        new_holds: Sequence[Hold] = (),
        lifted: Collection[str] = (),
    ) -> Exchange:
        """Settle what was sent, keep the holds, and claim what to send next: one transaction.

        While everything is held, or a meter is, one shipment of it is claimed at each probe time.
        """
        with self.writing() as connection:
            settled = delivery.settle(connection, settlements, claimant.owner, now_ms)
            lanes.lift_holds(connection, lifted)
            for hold in new_holds:
                lanes.set_hold(connection, hold)
            holds = lanes.holds(connection)
            claimed, set_aside = delivery.claim_under(
                connection, holds, claimant, tour, self._deadlines, now_ms
            )
        return Exchange(claimed, set_aside, holds, settled)

    def holds(self) -> list[Hold]:
        """Every hold in force."""
        with self.reading() as connection:
            return lanes.holds(connection)

    def retake(self, is_gone: Callable[[str], bool], now_ms: int, lease_ms: int) -> int:
        """Free the lanes whose owner is gone or whose lease is over; return their number."""
        with self.reading() as connection:
            owners = lanes.lease_owners(connection)
        if not owners:
            return 0
        with self.writing() as connection:
            gone = [owner for owner in owners if is_gone(owner)]
            return lanes.retake(connection, gone, now_ms, lease_ms)

    def extend_leases(self, owner: str, leased: Collection[tuple[str, str]], until_ms: int) -> None:
        """The heartbeat of *owner*, for the (customer, meter)s it knows to have leased."""
        with self.writing() as connection:
            lanes.extend_leases(connection, owner, leased, until_ms)

    def next_due_ms(self, meters: Sequence[str], now_ms: int) -> int | None:
        """When something can be sent next; None if nothing is left."""
        with self.reading() as connection:
            return delivery.next_due_ms(connection, meters, now_ms)

    def doubts(self, now_ms: int, limit: int = 20) -> list[Doubt]:
        """Shipments in doubt that are due for another look."""
        with self.reading() as connection:
            return doubt.due(connection, now_ms, limit)

    def end_doubt(
        self, identifier: str, verdict: Literal["delivered", "lost", "ambiguous"], now_ms: int
    ) -> None:
        """Stripe has it, never had it (a new shipment follows), or nobody can tell (dead)."""
        ends = {
            "delivered": doubt.was_delivered,
            "lost": doubt.was_lost,
            "ambiguous": doubt.is_ambiguous,
        }
        with self.writing() as connection:
            if verdict == "delivered":
                measures.note_proved(connection, identifier, now_ms)
            ends[verdict](connection, identifier, now_ms)

    def named(self, names: Sequence[str], on: Connection) -> list[Shipment]:
        """The shipments that *names* speak of, as :meth:`reject` takes them."""
        return delivery.named(on, names)

    def reject(
        self, names: Sequence[str], code: str, now: datetime, on: Connection | None = None
    ) -> list[Shipment]:
        """Stripe reports *code* for shipments it had accepted: they are dead; return them.

        :param names: their identifiers, or the ``Idempotency-Key`` of an attempt of theirs.
        """
        with writing(self, on) as connection:
            return delivery.reject(connection, names, code, to_ms(now))

    def hold_meter(self, meter: str, reason: str, now: datetime, on: Connection) -> bool:
        """Send nothing of *meter* but a probe now and then; whether it was not held before."""
        is_new = all(hold.meter != meter for hold in lanes.holds(on))
        probe_ms = to_ms(now) + probe_after_ms(reason)
        lanes.set_hold(on, Hold(meter, reason, to_ms(now), probe_ms))
        return is_new

    def lift_hold(self, meter: str, on: Connection | None = None) -> None:
        """Send *meter* again."""
        with writing(self, on) as connection:
            lanes.lift_holds(connection, [meter])

    def prolong_doubt(self, identifier: str, until_ms: int, absent_since_ms: int | None) -> None:
        """Look again at *until_ms*; Stripe lacks it since *absent_since_ms*."""
        with self.writing() as connection:
            doubt.look_again(connection, identifier, until_ms, absent_since_ms)

    def shipments(self, state: str | None = None) -> list[Shipment]:
        """The shipments in *state*, oldest first."""
        query = select(shipments).order_by(shipments.c.identifier)
        if state is not None:
            query = query.where(shipments.c.state == state)
        with self.reading() as connection:
            return [delivery.shipment_from(row) for row in connection.execute(query)]

    def shipments_of(self, customer: str, meter: str, minute: datetime) -> list[Shipment]:
        """The shipments cut of one minute, oldest first."""
        query = (
            select(shipments)
            .where(
                shipments.c.customer == customer,
                shipments.c.meter == meter,
                shipments.c.minute == to_ms(minute),
            )
            .order_by(shipments.c.identifier)
        )
        with self.reading() as connection:
            return [delivery.shipment_from(row) for row in connection.execute(query)]

    # -- proof ---------------------------------------------------------------------------------

    def verify(self, progress: Callable[[int], None] = lambda events: None) -> Iterator[str]:
        """One line per difference between what is stored and what the events say.

        :param progress: told now and then how many events have been read.
        """
        with self.reading() as connection:
            yield from audit.verify(connection, self.meters, progress)

    def rebuild(self, now: datetime) -> int:
        """Derive everything anew from the events; return their number."""
        with self.writing() as connection:
            return rebuild.rebuild(connection, self.meters, to_ms(now))
