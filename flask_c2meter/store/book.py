"""The period history as the hot path needs it: which period an event belongs to, in a microsecond.

A process keeps the histories of the customers it meets. Each batch begins by asking what was learnt
since (one look at the end of ``periods``), so that every event is recorded into the period that is
known when it is committed. :func:`load` and :func:`insert` turn rows into terms and back.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ..model import DAY_MS, MAX_AGE, Period, from_ms, to_ms
from ..periods import History, Term
from ..shipment import DeadReason
from .cursor import Cursor, cursor_of, marked

if TYPE_CHECKING:
    from sqlalchemy import Connection

#: Most customers whose history a process keeps.
_KEPT = 50_000

_MAX_AGE_MS = MAX_AGE // timedelta(milliseconds=1)

_COLUMNS = (
    "meter",
    "start",
    '"end"',
    "cycle_start",
    "cycle_end",
    "plan",
    "status",
    "source",
    "known_at",
    "subscription",
    "is_exact",
    "finalized_at",
)
_OF_CUSTOMER = f"SELECT {', '.join(_COLUMNS)} FROM periods WHERE customer = ? ORDER BY id"
_LATEST = "SELECT id FROM periods ORDER BY id DESC LIMIT 1"
_SINCE = "SELECT DISTINCT customer FROM periods WHERE id > ?"
_INSERT = (
    f"INSERT INTO periods (customer, {', '.join(_COLUMNS)}) "
    f"VALUES ({', '.join('?' * (len(_COLUMNS) + 1))})"
)


class Span(NamedTuple):
    """A billing period in milliseconds."""

    start: int
    end: int
    cycle_end: int
    #: As its subscription says; None = it says none, or there is no subscription.
    plan: str | None
    is_billed: bool
    #: Whether its invoice is known to be final.
    is_final: bool

    def is_late(self, now: int, grace: int) -> bool:
        """Whether what Stripe does not have yet will be on no invoice."""
        return self.is_billed and (self.is_final or now > self.cycle_end + grace)


class PeriodBook:
    """Finds the period of any moment of any meter.

    :param mark: the driver's parameter mark.
    """

    def __init__(self, mark: str = "?") -> None:
        self._mark = mark
        self._known = -1
        self._histories: dict[str, History] = {}
        #: (customer, meter) -> the span found last: most events come in the one of their neighbour.
        self._latest: dict[tuple[str, str], Span] = {}

    def refresh(self, cursor: Cursor) -> None:
        """Forget the customers of whom something was learnt since the last call."""
        cursor.execute(_LATEST)
        found = cursor.fetchone()
        newest = found[0] if found else 0
        if newest == self._known:
            return
        if self._known >= 0:
            cursor.execute(marked(_SINCE, self._mark), (self._known,))
            for (customer,) in cursor.fetchall():
                self._histories.pop(customer, None)
        self._latest.clear()
        self._known = newest

    def forget(self) -> None:
        """Forget everything: it may have been read in a transaction that was rolled back."""
        self._known = -1
        self._histories.clear()
        self._latest.clear()

    def history(self, cursor: Cursor, customer: str) -> History:
        """What is known of *customer*."""
        history = self._histories.get(customer)
        if history is None:
            if len(self._histories) >= _KEPT:
                self._histories.clear()
            history = self._histories[customer] = load(cursor, customer, self._mark)
        return history

    def span(self, cursor: Cursor, customer: str, meter: str, moment: int) -> Span:
        """The period that *moment* lies in."""
        lane = (customer, meter)
        latest = self._latest.get(lane)
        if latest is not None and latest.start <= moment < latest.end:
            return latest
        history = self.history(cursor, customer)
        if not history.terms:
            return _month(moment // DAY_MS)
        if len(self._latest) >= _KEPT:
            self._latest.clear()
        found = history.at(meter, from_ms(moment))
        span = self._latest[lane] = Span(
            start=to_ms(found.period.start),
            end=to_ms(found.period.end),
            cycle_end=to_ms(found.cycle.end),
            plan=found.plan,
            is_billed=found.is_billed,
            is_final=found.finalized_at is not None,
        )
        return span


class Deadlines:
    """Until when Stripe takes and bills what is shipped.

    :param grace_ms: how long after a cycle's end its invoice is finalised.
    """

    def __init__(self, book: PeriodBook, grace_ms: int) -> None:
        self._book = book
        self.grace_ms = grace_ms

    def refresh(self, connection: Connection) -> None:
        """Call in each transaction, before the rest."""
        self._book.refresh(cursor_of(connection))

    def dead_reason(
        self, connection: Connection, customer: str, meter: str, moment: int, now_ms: int
    ) -> Literal[DeadReason.EXPIRED, DeadReason.LATE] | None:
        """Why it is of no use to send usage of *moment* now; None = it is not in vain."""
        if moment < now_ms - _MAX_AGE_MS:
            return DeadReason.EXPIRED
        span = self._book.span(cursor_of(connection), customer, meter, moment)
        return DeadReason.LATE if span.is_late(now_ms, self.grace_ms) else None


@lru_cache(maxsize=4096)
def _month(day: int) -> Span:
    month = Period.month_of(from_ms(day * DAY_MS))
    end = to_ms(month.end)
    return Span(to_ms(month.start), end, end, None, False, False)


def load(cursor: Cursor, customer: str, mark: str = "?") -> History:
    """What is known of *customer*."""
    cursor.execute(marked(_OF_CUSTOMER, mark), (customer,))
    return History([_term(row) for row in cursor.fetchall()])


def insert(cursor: Cursor, customer: str, terms: Iterable[Term], mark: str = "?") -> None:
    """Add what was learnt."""
    for term in terms:
        cursor.execute(marked(_INSERT, mark), (customer, *_row(term)))


def _term(row: Sequence[Any]) -> Term:
    meter, start, end, cycle_start, cycle_end, plan, status, source, known, *rest = row
    subscription, is_exact, finalized_at = rest
    return Term(
        meter=meter,
        period=Period(from_ms(start), from_ms(end)),
        cycle=Period(from_ms(cycle_start), from_ms(cycle_end)),
        plan=plan,
        status=status,
        source=source,
        known_at=from_ms(known),
        subscription=subscription,
        is_exact=bool(is_exact),
        finalized_at=None if finalized_at is None else from_ms(finalized_at),
    )


def _row(term: Term) -> tuple[Any, ...]:
    return (
        term.meter,
        to_ms(term.period.start),
        to_ms(term.period.end),
        to_ms(term.cycle.start),
        to_ms(term.cycle.end),
        term.plan,
        term.status,
        term.source,
        to_ms(term.known_at),
        term.subscription,
        int(term.is_exact),
        None if term.finalized_at is None else to_ms(term.finalized_at),
    )
