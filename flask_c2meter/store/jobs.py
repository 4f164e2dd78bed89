"""Daily jobs over all customers: which process runs one, and what has become of each customer.

A job has a lease with a fencing token: whoever writes for it says which, in the same transaction,
and is refused once another has taken over. A customer has one row for a job and UTC day, written in
the transaction of its effect; so a job that was killed goes on where it was, and nothing is done
twice.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Protocol

from sqlalchemy import Connection, bindparam, select, text

from ..errors import LeaseLost
from ..measurements import event_key
from ..model import JobAlert, JobResult, from_ms, new_id, percentage, to_ms
from . import facts, leases
from .leases import JobLease
from .ledger import Entry
from .operator import raise_alert
from .tables import job_runs
from .transactions import Transactions

#: What is known of a customer that was dealt with; otherwise ``failed: `` and why.
DONE = "done"
_FAILED = "failed: "
#: The measurement before is looked for this far back.
LOOK_BACK = timedelta(days=35)
#: Rows are kept for as long as their day can be run again; then the events' keys say the same.
KEPT = timedelta(days=40)

_DAY = timedelta(days=1)
_PUT = text(
    "INSERT INTO job_runs (job, day, customer, state) VALUES (:job, :day, :customer, :state) "
    "ON CONFLICT (job, day, customer) DO UPDATE SET state = excluded.state"
)
_COUNT = text(
    "SELECT COUNT(*), COALESCE(SUM(CASE WHEN state = 'done' THEN 0 ELSE 1 END), 0) "
    "FROM job_runs WHERE job = :job AND day = :day"
)
_UNNAMED = text(
    "SELECT COUNT(*) FROM job_runs y WHERE y.job = :job AND y.day = :before AND y.state = 'done' "
    "AND NOT EXISTS (SELECT 1 FROM job_runs t WHERE t.job = y.job AND t.day = :day "
    "AND t.customer = y.customer)"
)
_FORGET = text("DELETE FROM job_runs WHERE job = :job AND day < :day")
_BEFORE = text(
    "SELECT customer, key, value FROM events e WHERE customer IN :customers AND meter = :meter "
    "AND key >= :first AND key < :key AND kind = 'usage' AND NOT EXISTS (SELECT 1 FROM events a "
    "WHERE a.customer = e.customer AND a.meter = e.meter AND a.key = 'adjust:' || e.key) "
    "ORDER BY customer, key"
).bindparams(bindparam("customers", expanding=True))


class Ledger(Transactions, Protocol):
    """What is needed of the store."""

    def append_on(self, connection: Connection, entries: Sequence[Entry]) -> list[bool]:
        """Record *entries* inside the transaction on *connection*."""


@dataclass(frozen=True, slots=True)
class LastRun:
    """The latest day's run that has ended."""

    day: date
    begun_at: datetime
    ended_at: datetime
    total: int
    failed: int
    unnamed: int
    is_bad: bool
    error: str | None

    @property
    def rate(self) -> str:
        """Share of the failures: ``11.00%``."""
        return percentage(self.failed, self.total)


class Jobs:
    """The jobs of a store."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    # -- the lease -----------------------------------------------------------------------------

    def take(
        self,
        job: str,
        owner: str,
        now: datetime,
        lease: timedelta,
        is_gone: Callable[[str], bool],
    ) -> JobLease | None:
        """The right to run *job*; None while another holds it.

        :param is_gone: whether an owner is known to have died.
        """
        with self._ledger.writing() as connection:
            return leases.take(connection, job, owner, now, lease, is_gone)

    def holder(
        self, job: str, now: datetime, lease: timedelta, is_gone: Callable[[str], bool]
    ) -> str | None:
        """Who runs *job* now."""
        with self._ledger.reading() as connection:
            return leases.holder(connection, job, now, lease, is_gone)

    def extend(self, lease: JobLease, until: datetime) -> None:
        """The heartbeat.

        :raises LeaseLost: another has taken over.
        """
        with self._ledger.writing() as connection:
            leases.check(connection, lease)
            leases.extend(connection, lease, until)

    def leave(self, lease: JobLease) -> None:
        """Give the right back, if it is still ours."""
        with suppress(LeaseLost), self._ledger.writing() as connection:
            leases.check(connection, lease)
            leases.leave(connection, lease)

    # -- customers -----------------------------------------------------------------------------

    @contextmanager
    def batch(self, lease: JobLease, day: date, until: datetime) -> Iterator[JobBatch]:
        """One transaction of a run, which is a heartbeat too.

        :raises LeaseLost: another has taken over.
        """
        with self._ledger.writing() as connection:
            leases.check(connection, lease)
            leases.extend(connection, lease, until)
            yield JobBatch(self._ledger, connection, lease.job, day)

    def is_done(self, job: str, day: date, customer: str) -> bool:
        """Whether *customer* has been dealt with."""
        with self._ledger.reading() as connection:
            return bool(_done(connection, job, day, [customer]))

    def count(self, job: str, day: date) -> int:
        """How many customers there are on *day*."""
        with self._ledger.reading() as connection:
            return _count(connection, _of(job, day))[0]

    def failures(self, job: str, day: date, limit: int) -> list[tuple[str, str]]:
        """Customers that failed on *day* and why, the first *limit*."""
        query = select(job_runs.c.customer, job_runs.c.state).where(
            job_runs.c.job == job, job_runs.c.day == day.isoformat(), job_runs.c.state != DONE
        )
        with self._ledger.reading() as connection:
            rows = connection.execute(query.order_by(job_runs.c.customer).limit(limit)).all()
        return [(row[0], row[1].removeprefix(_FAILED)) for row in rows]

    def failure(self, job: str, day: date, customer: str) -> str | None:
        """Why *customer* failed on *day*; None if it did not."""
        query = select(job_runs.c.state).where(
            job_runs.c.job == job,
            job_runs.c.day == day.isoformat(),
            job_runs.c.customer == customer,
            job_runs.c.state != DONE,
        )
        with self._ledger.reading() as connection:
            state = connection.execute(query).scalar()
        return None if state is None else str(state).removeprefix(_FAILED)

    # -- the end -------------------------------------------------------------------------------

    def finish(
        self,
        lease: JobLease,
        day: date,
        begun_at: datetime,
        now: datetime,
        *,
        error: str | None,
        max_failures: Decimal,
        channels: Sequence[str],
    ) -> JobResult:
        """End a run of the whole day: count, decide about the alert, give the right back.

        Rows older than :data:`KEPT` go.

        :param error: why it ended before its end.
        :param channels: where the operator is alerted.
        :raises LeaseLost: another has taken over.
        """
        with self._ledger.writing() as connection:
            leases.check(connection, lease)
            of_day = _of(lease.job, day)
            total, failed = _count(connection, of_day)
            before = {"before": (day - _DAY).isoformat()}
            unnamed = int(connection.execute(_UNNAMED, of_day | before).scalar_one())
            is_bad = error is not None or _are_many(failed, total, max_failures)
            alert = None
            if is_bad:
                alert = JobAlert(
                    lease.job, day, total, failed, error is not None, now, new_id(to_ms(now))
                )
                alert = raise_alert(connection, alert, channels)
            last = LastRun(day, begun_at, now, total, failed, unnamed, is_bad, error)
            known = _last(connection, lease.job)
            if known is None or known.day <= day:
                _note_last(connection, lease.job, last)
            connection.execute(_FORGET, _of(lease.job, day - KEPT))
            leases.leave(connection, lease)
        return JobResult(
            lease.job, day, total, failed, unnamed, error, is_bad, alert, begun_at, now
        )

    def finish_some(self, lease: JobLease, day: date, max_failures: Decimal) -> None:
        """End a run of a few customers: what is known of the day follows, if it is the latest.

        :raises LeaseLost: another has taken over.
        """
        with self._ledger.writing() as connection:
            leases.check(connection, lease)
            known = _last(connection, lease.job)
            if known is not None and known.day == day:
                total, failed = _count(connection, _of(lease.job, day))
                is_bad = known.error is not None or _are_many(failed, total, max_failures)
                known = replace(known, total=total, failed=failed, is_bad=is_bad)
                _note_last(connection, lease.job, known)
            leases.leave(connection, lease)

    def last(self, job: str) -> LastRun | None:
        """The latest day's run that has ended; None = there was none."""
        with self._ledger.reading() as connection:
            return _last(connection, job)


class JobBatch:
    """What a run reads and writes of a few customers, in one transaction."""

    def __init__(self, ledger: Ledger, connection: Connection, job: str, day: date) -> None:
        self._ledger = ledger
        self._connection = connection
        self._job = job
        self._day = day

    def done(self, customers: Collection[str]) -> set[str]:
        """Those of *customers* that have been dealt with on this day."""
        return _done(self._connection, self._job, self._day, customers)

    def before(self, customers: Collection[str], meter: str) -> dict[str, int]:
        """Customer -> wire units of its latest event of this job before this day, not voided."""
        found = self._connection.execute(
            _BEFORE,
            {
                "customers": list(customers),
                "meter": meter,
                "first": event_key(self._job, self._day - LOOK_BACK),
                "key": event_key(self._job, self._day),
            },
        )
        return {customer: value for customer, _, value in found}  # in order: the latest stays

    def append(self, entries: Sequence[Entry]) -> list[bool]:
        """Record *entries*; for each, whether its key was new."""
        return self._ledger.append_on(self._connection, entries) if entries else []

    def put(self, failures: Mapping[str, str | None]) -> None:
        """Note what became of customers: why they failed, or None."""
        if failures:
            rows = [
                {
                    **_of(self._job, self._day),
                    "customer": customer,
                    "state": DONE if failure is None else _FAILED + failure,
                }
                for customer, failure in failures.items()
            ]
            self._connection.execute(_PUT, rows)


def _of(job: str, day: date) -> dict[str, str]:
    return {"job": job, "day": day.isoformat()}


def _count(connection: Connection, of_day: Mapping[str, str]) -> tuple[int, int]:
    """Customers of a day, and those of them that failed."""
    total, failed = connection.execute(_COUNT, of_day).one()
    return int(total), int(failed)


def _are_many(failed: int, total: int, share: Decimal) -> bool:
    # As fractions: the host may have set the thread's decimal context to any precision.
    return failed > total * Fraction(share)


def _done(connection: Connection, job: str, day: date, customers: Collection[str]) -> set[str]:
    query = select(job_runs.c.customer).where(
        job_runs.c.job == job,
        job_runs.c.day == day.isoformat(),
        job_runs.c.customer.in_(customers),
        job_runs.c.state == DONE,
    )
    return set(connection.execute(query).scalars())


# -- the end ---------------------------------------------------------------------------------------


def _last(connection: Connection, job: str) -> LastRun | None:
    found = facts.read(connection, f"job:{job}:last")
    if found is None:
        return None
    return LastRun(
        day=date.fromisoformat(found.pop("day")),
        begun_at=from_ms(found.pop("begun_ms")),
        ended_at=from_ms(found.pop("ended_ms")),
        **found,
    )


def _note_last(connection: Connection, job: str, last: LastRun) -> None:
    noted = {
        "day": last.day.isoformat(),
        "begun_ms": to_ms(last.begun_at),
        "ended_ms": to_ms(last.ended_at),
        "total": last.total,
        "failed": last.failed,
        "unnamed": last.unnamed,
        "is_bad": last.is_bad,
        "error": last.error,
    }
    facts.write(connection, f"job:{job}:last", noted)
