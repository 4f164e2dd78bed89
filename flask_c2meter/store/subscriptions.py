"""Subscriptions: whose are to be looked at, and what a look has taught.

Learning is one transaction: the new terms, the usage that moves into other periods with them, the
alerts that deserve a place in those, and the ones that the new plan calls for.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Literal

from sqlalchemy import Connection, func, select, text, update

from ..late_news import learn_late
from ..model import Meter, Subscription, from_ms, to_ms
from ..periods import DROPPED, ENDED, History, Term, finalise, learn
from . import book, rebuild
from .cursor import cursor_of
from .ledger import Ledger
from .tables import alerts, customers, periods
from .transactions import Transactions, writing

if TYPE_CHECKING:
    from ..stripe_objects import ClosingInvoice

#: A look that was begun is left to whoever began it for this long.
LOOK_LEASE = timedelta(seconds=60)

#: What a look at a customer's subscriptions found.
Finding = Literal["known", "several", "none", "deleted", "unknown", "failed"]

_TAKE = text(
    "UPDATE customers SET read_due_at = :lease WHERE id IN "
    "(SELECT id FROM customers WHERE read_due_at <= :now ORDER BY read_due_at LIMIT :limit) "
    "RETURNING id"
)
_ASK = text(
    "INSERT INTO customers (id, read_due_at) VALUES (:customer, :now) ON CONFLICT (id) "
    "DO UPDATE SET read_due_at = :now WHERE customers.read_due_at > :now"
)


class Subscriptions:
    """What the store knows of subscriptions.

    :param new_ledger: makes one for a transaction of our own.
    """

    def __init__(
        self,
        transactions: Transactions,
        meters: Mapping[str, Meter],
        new_ledger: Callable[[], Ledger],
    ) -> None:
        self._transactions = transactions
        self._meters = meters
        self._new_ledger = new_ledger

    # -- when to look --------------------------------------------------------------------------

    def are_due(self, now: datetime) -> bool:
        """Whether some customer's subscriptions should be looked at."""
        with self._transactions.reading() as connection:
            query = select(customers.c.id).where(customers.c.read_due_at <= to_ms(now))
            return connection.execute(query.limit(1)).first() is not None

    def take_due(self, now: datetime, limit: int) -> list[str]:
        """The customers to look at now; nobody else is told of them for a while."""
        with self._transactions.writing() as connection:
            lease = to_ms(now + LOOK_LEASE)
            return list(
                connection.execute(
                    _TAKE, {"now": to_ms(now), "lease": lease, "limit": limit}
                ).scalars()
            )

    def ask(self, customer: str, now: datetime) -> None:
        """Have *customer* looked at soon, unless that is under way."""
        with self._transactions.writing() as connection:
            connection.execute(_ASK, {"customer": customer, "now": to_ms(now)})

    def have_looked_at(self, customer: str, now: datetime, on: Connection | None = None) -> None:
        """Have *customer* looked at as soon as possible."""
        with writing(self._transactions, on) as connection:
            connection.execute(
                update(customers).where(customers.c.id == customer).values(read_due_at=to_ms(now))
            )

    def put_off(self, customer: str, finding: Finding, until: datetime) -> None:
        """A look has told nothing of the periods: *finding* says why; look again at *until*."""
        with self._transactions.writing() as connection:
            _found(connection, customer, finding, None, until)

    # -- what was learnt -----------------------------------------------------------------------

    def learn(
        self,
        customer: str,
        subscriptions: Sequence[Subscription],
        at: datetime,
        *,
        source: str,
        finding: Finding,
        look_again: datetime | None,
        is_exact: bool = False,
    ) -> bool:
        """Take in what a look at *at* has found of *customer*; whether anything was new.

        :param look_again: None = when a look was due anyway.
        :param is_exact: the subscriptions became so at *at*.
        """
        with self._transactions.writing() as connection:
            history = book.load(cursor_of(connection), customer)
            read_at, _ = _known_of(connection, customer)
            if read_at is not None and at < read_at:
                terms = learn_late(history, subscriptions, at, source, read_at)
            else:
                terms = learn(history, subscriptions, at, source, is_exact=is_exact)
                _found(connection, customer, finding, at, look_again)
            self._take_in(connection, customer, history, terms, at)
            return bool(terms)

    def hear(
        self,
        customer: str,
        subscription: Subscription,
        at: datetime,
        now: datetime,
        on: Connection,
        *,
        has_new_items: bool = False,
    ) -> None:
        """Take in that *subscription* became so at *at*, as a webhook tells.

        Where this alone does not tell how *customer* stands, a look is asked for.

        :param has_new_items: at *at* its prices or their periods have changed. If that is nothing
            new, it was changed before in a way that will be told of late.
        :param on: a write transaction of the store's to join.
        """
        history = book.load(cursor_of(on), customer)
        read_at, finding = _known_of(on, customer)
        is_alone = finding not in ("several", "deleted") and not _others(history, subscription.id)
        if read_at is not None and at < read_at:
            terms = learn_late(history, [subscription], at, "stripe", read_at)
        elif is_alone:
            terms = learn(history, [subscription], at, "stripe", is_exact=True)
            if has_new_items and not terms:
                terms = learn_late(history, [subscription], at, "stripe", at)
            _found(on, customer, "none" if subscription.ended_at else "known", at, None)
        else:
            terms = []
        # Two changes of one second may have come in any order, and what came late may have ended.
        if not is_alone or (terms and read_at is not None and at <= read_at):
            self.have_looked_at(customer, now, on=on)
        self._take_in(on, customer, history, terms, at)

    def finalise(self, invoice: ClosingInvoice, on: Connection) -> bool:
        """What *invoice* bills can be billed no more; whether that is news.

        :param on: a write transaction of the store's to join.
        """
        customer, at = invoice.customer, invoice.finalized_at
        history = book.load(cursor_of(on), customer)
        terms = [
            term
            for end in invoice.cycle_ends
            for term in finalise(history, end, at, invoice.subscription)
        ]
        self._take_in(on, customer, history, terms, at)
        return bool(terms)

    def _take_in(
        self,
        connection: Connection,
        customer: str,
        history: History,
        terms: Sequence[Term],
        at: datetime,
    ) -> None:
        if not terms:
            return
        cursor = cursor_of(connection)
        book.insert(cursor, customer, terms)
        if rebuild.is_misplaced(connection, customer, History([*history.terms, *terms])):
            rebuild.rebuild(connection, self._meters, to_ms(at), customer)
            _move_alerts(connection, customer)
        self._new_ledger().look_again(cursor, customer, to_ms(at))

    # -- for people ----------------------------------------------------------------------------

    def findings(self, examples: int = 10) -> dict[str, tuple[int, list[str]]]:
        """Finding -> how many customers, and some of them."""
        found: defaultdict[str, list[str]] = defaultdict(list)
        with self._transactions.reading() as connection:
            counts = connection.execute(
                select(customers.c.subscription, func.count())
                .where(customers.c.subscription.is_not(None))
                .group_by(customers.c.subscription)
            ).all()
            for finding, _ in counts:
                if finding != "known":
                    query = select(customers.c.id).where(customers.c.subscription == finding)
                    found[finding] += connection.execute(
                        query.order_by(customers.c.id).limit(examples)
                    ).scalars()
        return {finding: (count, found[finding]) for finding, count in counts}

    def dropped(self, since_ms: int) -> list[str]:
        """The customers of whom Stripe has dropped usage since then, with a change of price."""
        query = select(periods.c.customer).where(
            periods.c.status == DROPPED, periods.c.known_at >= since_ms
        )
        with self._transactions.reading() as connection:
            found = connection.execute(query.distinct().order_by(periods.c.customer))
            return list(found.scalars())


def _known_of(connection: Connection, customer: str) -> tuple[datetime | None, str | None]:
    """As of which second the newest is known of *customer*, and what was found."""
    query = select(customers.c.read_at, customers.c.subscription).where(customers.c.id == customer)
    row = connection.execute(query).first()
    if row is None:
        return None, None
    return None if row[0] is None else from_ms(row[0] - row[0] % 1000), row[1]


def _others(history: History, subscription: str | None) -> set[str | None]:
    """The other subscriptions that go on, as far as is known."""
    terms = sorted(history.terms, key=lambda term: term.known_at)
    latest = {term.subscription: term.status for term in terms}
    return {each for each, status in latest.items() if status not in ENDED} - {subscription}


def _found(
    connection: Connection,
    customer: str,
    finding: Finding,
    read_at: datetime | None,
    due_at: datetime | None,
) -> None:
    values: dict[str, object] = {"subscription": finding}
    if read_at is not None:
        values["read_at"] = to_ms(read_at)
    if due_at is not None:
        values["read_due_at"] = to_ms(due_at)
    changed = connection.execute(
        update(customers).where(customers.c.id == customer).values(**values)
    )
    if not changed.rowcount:
        connection.execute(customers.insert(), {"id": customer, **values})


def _move_alerts(connection: Connection, customer: str) -> None:
    """Carry alerts over into the periods they were raised in, unless the same is there."""
    known, cursor = book.PeriodBook(), cursor_of(connection)
    mine = connection.execute(select(alerts).where(alerts.c.customer == customer)).all()
    taken = {(row.meter, row.period, row.level, row.included) for row in mine}
    for row in mine:
        # What came in the grace of its period was announced after that, but is of its end.
        moment = max(row.period, min(row.raised_at, row.period_end - 1))
        span = known.span(cursor, customer, row.meter, moment)
        place = (row.meter, span.start, row.level, row.included)
        if place not in taken:
            taken.add(place)
            connection.execute(
                update(alerts)
                .where(alerts.c.id == row.id)
                .values(period=span.start, period_end=span.end)
            )
