"""Who runs a job: a lease in ``meta`` with a fencing token, which grows with each holder.

Functions take an open connection; the caller commits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection

from ..errors import LeaseLost
from ..model import to_ms
from . import facts


@dataclass(frozen=True, slots=True)
class JobLease:
    """The right to run a job, until another takes it over."""

    job: str
    owner: str
    token: int


def take(
    connection: Connection,
    job: str,
    owner: str,
    now: datetime,
    duration: timedelta,
    is_gone: Callable[[str], bool],
) -> JobLease | None:
    """The right to run *job*; None while another holds it.

    :param is_gone: whether an owner is known to have died.
    """
    if holder(connection, job, now, duration, is_gone) not in (None, owner):
        return None
    held = facts.read(connection, _name(job))
    lease = JobLease(job, owner, held["token"] + 1 if held else 1)
    extend(connection, lease, now + duration)
    return lease


def holder(
    connection: Connection,
    job: str,
    now: datetime,
    duration: timedelta,
    is_gone: Callable[[str], bool],
) -> str | None:
    """Who holds *job* now."""
    held = facts.read(connection, _name(job))
    # One that ends later than any can was made before the clock was set back: it is over too.
    if held is None or not to_ms(now) < held["until_ms"] <= to_ms(now + 2 * duration):
        return None
    owner: str = held["owner"]
    return None if is_gone(owner) else owner


def check(connection: Connection, lease: JobLease) -> None:
    """Make sure that *lease* is still ours, for this transaction.

    :raises LeaseLost: another has taken over.
    """
    held = facts.read(connection, _name(lease.job))
    if held is None or (held["owner"], held["token"]) != (lease.owner, lease.token):
        who = held["owner"] if held else "nobody"
        raise LeaseLost(f"the job {lease.job} has been taken over by {who}")


def extend(connection: Connection, lease: JobLease, until: datetime) -> None:
    """Hold it until then; the caller has checked it."""
    _write(connection, lease, to_ms(until))


def leave(connection: Connection, lease: JobLease) -> None:
    """Give it back; the caller has checked it."""
    _write(connection, lease, 0)


def _write(connection: Connection, lease: JobLease, until_ms: int) -> None:
    held = {"owner": lease.owner, "token": lease.token, "until_ms": until_ms}
    facts.write(connection, _name(lease.job), held)


def _name(job: str) -> str:
    return f"job:{job}"
