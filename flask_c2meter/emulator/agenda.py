"""When things happen: billing cycles, and what an account still has to do.

A :class:`Cycle` knows where billing periods begin, an :class:`Agenda` holds the steps that are yet
to come (a period that ends, an invoice that is finalised) and runs those that are due, each at its
own moment. Pure; imports the standard library only. Promises: steps run in the order of their
moments, however late they are looked for, and an agenda with nothing due costs one comparison.
"""

from __future__ import annotations

import heapq
import itertools
from calendar import monthrange
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

#: What is done when its moment has come, which it is told.
Step = Callable[[datetime], None]

#: Stripe's intervals: days where they have a fixed length, months where they follow the calendar.
DAYS = {"day": 1, "week": 7}
MONTHS = {"month": 1, "year": 12}


@dataclass(frozen=True, slots=True)
class Cycle:
    """Billing periods that begin every *count* intervals, counted from *anchor*."""

    anchor: datetime
    #: ``day``, ``week``, ``month`` or ``year``.
    interval: str
    count: int

    def next_after(self, moment: datetime) -> datetime:
        """The first boundary later than *moment*, which may lie before the anchor."""
        number = self._latest_candidate(moment)
        while self._boundary(number) <= moment:
            number += 1
        return self._boundary(number)

    def _latest_candidate(self, moment: datetime) -> int:
        """The number of a boundary that is the one wanted or at most one too early."""
        if self.interval in DAYS:
            return (moment - self.anchor) // timedelta(days=DAYS[self.interval] * self.count)
        months = (moment.year - self.anchor.year) * 12 + moment.month - self.anchor.month
        return months // (MONTHS[self.interval] * self.count)

    def _boundary(self, number: int) -> datetime:
        steps = number * self.count
        if self.interval in DAYS:
            return self.anchor + timedelta(days=DAYS[self.interval] * steps)
        year, month = divmod(
            self.anchor.year * 12 + self.anchor.month - 1 + MONTHS[self.interval] * steps, 12
        )
        # The anchor's own day counts each time: 31 January, 28 February, 31 March.
        day = min(self.anchor.day, monthrange(year, month + 1)[1])
        return self.anchor.replace(year=year, month=month + 1, day=day)


class Agenda:
    """The steps that are yet to come, on one clock."""

    def __init__(self) -> None:
        self._steps: list[tuple[datetime, int, Step]] = []
        self._numbers = itertools.count()

    def __bool__(self) -> bool:
        return bool(self._steps)

    def add(self, moment: datetime, step: Step) -> None:
        """Do *step* at *moment*, which may lie in the past: then it is due at once."""
        heapq.heappush(self._steps, (moment, next(self._numbers), step))

    def run(self, now: datetime) -> None:
        """Do everything that is due by *now*, also what the steps themselves add."""
        while self._steps and self._steps[0][0] <= now:
            moment, _, step = heapq.heappop(self._steps)
            step(moment)
