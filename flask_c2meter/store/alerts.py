"""Raising alerts, in the transaction that moves a total.

One row per customer, meter, period, level and included quantity, and one per channel to announce
it on: whatever happens, each is decided once. A jump raises only the highest level it reaches, and
below a level that was raised nothing is raised any more. An alert is of use while its period lasts,
so what moves the total of an older one raises nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..model import HOUR_MS, Customer, new_id
from ..thresholds import LEVELS, Allowance
from .book import Span
from .cursor import Cursor, execute_many, marked

#: Most decisions a process remembers, to spare the question to the database.
_REMEMBERED = 100_000

_RAISED = (
    "SELECT level FROM alerts WHERE customer = ? AND meter = ? AND period = ? AND included = ?"
)
_RAISE = (
    "INSERT INTO alerts (identifier, customer, meter, period, period_end, level, included, "
    "total, raised_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING id"
)
_ANNOUNCE = (
    "INSERT INTO alert_deliveries (alert, channel, state, attempts, next_attempt_at, settled_at)"
)

#: customer, meter, period, included
_Decision = tuple[str, str, int, int]


@dataclass(frozen=True, slots=True)
class AlertPolicy:
    """When to raise an alert, and where to announce it."""

    #: (meter, plan) -> its allowance.
    allowances: Mapping[tuple[str, str], Allowance] = field(default_factory=dict)
    #: ``in_app``, ``signal``, ``email``, ``webhook``: those that can announce.
    channels: Sequence[str] = ("in_app", "signal")
    #: How long after a period's end its alerts are still of use.
    grace_ms: int = HOUR_MS


@dataclass(frozen=True, slots=True)
class Reached:
    """A total that has moved."""

    customer: Customer
    meter: str
    span: Span
    total: int
    #: When that was decided, UTC milliseconds.
    now: int


class AlertBook:
    """Decides, for a process; remembers what has been decided."""

    def __init__(self, policy: AlertPolicy, mark: str = "?") -> None:
        self._policy = policy
        self._mark = mark
        self._raised: dict[_Decision, int] = {}
        self._uncommitted: dict[_Decision, int] = {}
        #: Meter -> the least total that reaches a level on any plan.
        self._least: dict[str, int] = {}
        for (meter, _), allowance in policy.allowances.items():
            first = allowance.steps[0]
            self._least[meter] = min(first, self._least.get(meter, first))

    def may_reach(self, meter: str, total: int) -> bool:
        """Whether *total* may be of interest, on whatever plan."""
        least = self._least.get(meter)
        return least is not None and total >= least

    def allowance(self, meter: str, plan: str | None) -> Allowance | None:
        """What *plan* includes of *meter*; None = unlimited."""
        return None if plan is None else self._policy.allowances.get((meter, plan))

    def look(self, cursor: Cursor, reached: Reached) -> None:
        """Raise the alert that *reached* deserves, unless it was raised; the caller commits."""
        span = reached.span
        allowance = self.allowance(reached.meter, span.plan or reached.customer.plan)
        if allowance is None or reached.total < allowance.steps[0]:
            return
        if reached.now >= span.cycle_end + self._policy.grace_ms:
            return
        level = allowance.level(reached.total)
        rank = LEVELS.index(level) if level else -1
        decision = (reached.customer.id, reached.meter, span.start, allowance.included)
        if rank <= self._raised.get(decision, -1):
            return
        cursor.execute(marked(_RAISED, self._mark), decision)
        before = max((LEVELS.index(found) for (found,) in cursor.fetchall()), default=-1)
        if rank > before:
            self._raise(cursor, reached, LEVELS[rank], allowance.included)
        self._uncommitted[decision] = max(rank, before)

    def committed(self) -> None:
        """The transaction of the last looks has been committed."""
        if self._uncommitted:
            if len(self._raised) > _REMEMBERED:
                self._raised.clear()
            self._raised |= self._uncommitted
            self._uncommitted.clear()

    def forget(self) -> None:
        """That transaction may have been rolled back."""
        self._uncommitted.clear()

    def _raise(self, cursor: Cursor, reached: Reached, level: str, included: int) -> None:
        cursor.execute(
            marked(_RAISE, self._mark),
            (
                new_id(reached.now),
                reached.customer.id,
                reached.meter,
                reached.span.start,
                reached.span.end,
                level,
                included,
                reached.total,
                reached.now,
            ),
        )
        alert = cursor.fetchone()[0]
        channels = [
            channel
            for channel in self._policy.channels
            if channel != "email" or reached.customer.email is not None
        ]
        now = reached.now
        rows = [
            # In the app it is announced by being there.
            (alert, channel, "delivered", 0, now, now)
            if channel == "in_app"
            else (alert, channel, "ready", 0, now, None)
            for channel in channels
        ]
        if rows:
            execute_many(cursor, _ANNOUNCE, rows, "", self._mark)
