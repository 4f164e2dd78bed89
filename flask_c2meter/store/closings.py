"""Billing cycles that are being closed: a draft of their invoice is made, and will be final soon.

One row of ``job_runs`` for a cycle, from the draft on until Stripe is known to agree with the
ledger: it says when to look next, or that the two differ.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from sqlalchemy import Connection, delete, insert, select, text, update

from ..model import EVERY_METER, Period, to_ms
from .book import load
from .cursor import cursor_of
from .tables import job_runs
from .transactions import Transactions, writing

_JOB = "close"
_DIFFERS = "differs"
#: A cycle that somebody has begun to look at is left to it for this long; and looked at again then.
LOOK_AGAIN = timedelta(minutes=10)

_TICK = datetime.resolution

_TAKE = text(
    "UPDATE job_runs SET state = :again WHERE job = :job AND (day, customer) IN "
    "(SELECT day, customer FROM job_runs WHERE job = :job AND state LIKE 'due %' "
    "AND state <= :now ORDER BY state LIMIT 1) RETURNING customer, day"
)


class Closing(NamedTuple):
    """A cycle of a customer's that is being closed."""

    customer: str
    end: datetime


class Closings:
    """The cycles that are being closed.

    :param mark: the driver's parameter mark.
    :param grace_ms: how long after a cycle's end its invoice is finalised.
    """

    def __init__(self, transactions: Transactions, mark: str, grace_ms: int) -> None:
        self._transactions = transactions
        self._mark = mark
        self._grace = timedelta(milliseconds=grace_ms)

    def begin(
        self, customer: str, ends: Collection[datetime], on: Connection | None = None
    ) -> bool:
        """An invoice is drafted; have the cycles that it bills looked at in time.

        :param ends: when what it bills has ended. Where no cycle is known to have, as with fees in
            advance, nothing is closed.
        :return: whether any is.
        """
        with writing(self._transactions, on) as connection:
            history = load(cursor_of(connection), customer, self._mark)
            found = []
            for end in sorted(ends):
                known = [history.at(each, end - _TICK) for each in (EVERY_METER, *history.meters)]
                if any(each.is_billed and each.cycle.end == end for each in known):
                    found.append(end)
            for end in found:
                where = (job_runs.c.job == _JOB) & (job_runs.c.day == _day(end))
                mine = where & (job_runs.c.customer == customer)
                if connection.execute(select(job_runs.c.state).where(mine)).first() is None:
                    state = _due(end + self._grace / 2)
                    row = {"job": _JOB, "day": _day(end), "customer": customer, "state": state}
                    connection.execute(insert(job_runs), row)
            return bool(found)

    def are_due(self, now: datetime) -> bool:
        """Whether a cycle is to be looked at now."""
        query = select(job_runs.c.day).where(
            job_runs.c.job == _JOB, job_runs.c.state.like("due %"), job_runs.c.state <= _due(now)
        )
        with self._transactions.reading() as connection:
            return connection.execute(query.limit(1)).first() is not None

    def take(self, now: datetime) -> Closing | None:
        """The cycle to look at now; it is due again later, unless something is noted of it."""
        values = {"job": _JOB, "now": _due(now), "again": _due(now + LOOK_AGAIN)}
        with self._transactions.writing() as connection:
            row = connection.execute(_TAKE, values).first()
        return None if row is None else Closing(row[0], datetime.fromisoformat(row[1]))

    def cycle(self, closing: Closing) -> Period:
        """The cycle that is being closed."""
        with self._transactions.reading() as connection:
            history = load(cursor_of(connection), closing.customer, self._mark)
        known = [history.at(each, closing.end - _TICK) for each in (EVERY_METER, *history.meters)]
        return Period(min(each.cycle.start for each in known), closing.end)

    def is_final(self, closing: Closing, now: datetime) -> bool:
        """Whether nothing can be done for its invoice any more."""
        return now >= closing.end + self._grace

    def differs(self, closing: Closing) -> None:
        """Stripe and the ledger do not agree about it."""
        with self._transactions.writing() as connection:
            connection.execute(
                update(job_runs)
                .where(
                    job_runs.c.job == _JOB,
                    job_runs.c.day == _day(closing.end),
                    job_runs.c.customer == closing.customer,
                )
                .values(state=_DIFFERS)
            )

    def done(self, closing: Closing) -> None:
        """Stripe and the ledger agree about it."""
        with self._transactions.writing() as connection:
            connection.execute(
                delete(job_runs).where(
                    job_runs.c.job == _JOB,
                    job_runs.c.day == _day(closing.end),
                    job_runs.c.customer == closing.customer,
                )
            )

    def agree_at_last(self, customer: str, start: datetime, end: datetime) -> None:
        """Nothing differs any more of what *customer* used in ``[start, end)``."""
        mine = (
            (job_runs.c.job == _JOB)
            & (job_runs.c.customer == customer)
            & (job_runs.c.state == _DIFFERS)
            & (job_runs.c.day > _day(start))
            & (job_runs.c.day <= _day(end))
        )
        with self._transactions.reading() as connection:
            if connection.execute(select(job_runs.c.day).where(mine)).first() is None:
                return
        with self._transactions.writing() as connection:
            connection.execute(delete(job_runs).where(mine))

    def differing(self, limit: int) -> list[Closing]:
        """The latest cycles that were closed while Stripe and the ledger did not agree."""
        query = (
            select(job_runs.c.customer, job_runs.c.day)
            .where(job_runs.c.job == _JOB, job_runs.c.state == _DIFFERS)
            .order_by(job_runs.c.day.desc())
        )
        with self._transactions.reading() as connection:
            rows = connection.execute(query.limit(limit)).all()
        return [Closing(row[0], datetime.fromisoformat(row[1])) for row in rows]


def _day(moment: datetime) -> str:
    """As it stands in ``job_runs``: sorts by time."""
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%S+00:00}"


def _due(moment: datetime) -> str:
    return f"due {to_ms(moment):015d}"
