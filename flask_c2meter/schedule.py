"""When a job is due: a cron line, in UTC.

APScheduler does the reckoning and is imported only here, when it is asked. What it does not mean as
cron does is translated: Sunday is 0, and where both the day of the month and that of the week are
given, either will do.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

_WEEK = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_TICK = timedelta(microseconds=1)

#: The first time from a moment on; None = never.
_Next = Callable[[datetime], datetime | None]


class Schedule:
    """The times of a cron line.

    :param line: five fields in numbers, as :func:`~flask_c2meter.parsers.cron` lets through.
    """

    def __init__(self, line: str) -> None:
        self._line = line
        self._next: _Next | None = None
        #: What was found last: the day, the latest time on it and the one after that.
        self._known: tuple[datetime, datetime | None, datetime | None] | None = None

    def latest(self, now: datetime) -> datetime | None:
        """The latest time that has come on the UTC day of *now*; None = none has.

        What was missed on a day that is over stays missed.
        """
        midnight = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        if self._known is None or self._known[0] != midnight or now < (self._known[1] or midnight):
            self._known = midnight, None, self._first_from(midnight)
        _, found, coming = self._known
        while coming is not None and coming <= now:
            found, coming = coming, self._first_from(coming + _TICK)
        self._known = midnight, found, coming
        return found

    def _first_from(self, moment: datetime) -> datetime | None:
        if self._next is None:
            self._next = _reckoner(self._line)
        return self._next(moment)


def _reckoner(line: str) -> _Next:
    from apscheduler.triggers.cron import CronTrigger

    minute, hour, day, month, weekday = line.split()
    fields = {"minute": minute, "hour": hour, "month": month, "timezone": UTC}
    weekdays = _named(weekday)
    if day.startswith("*") or weekday.startswith("*"):
        triggers = [CronTrigger(day=day, day_of_week=weekdays, **fields)]
    else:
        triggers = [CronTrigger(day=day, **fields), CronTrigger(day_of_week=weekdays, **fields)]

    def first_from(moment: datetime) -> datetime | None:
        found = [trigger.get_next_fire_time(None, moment) for trigger in triggers]
        return min((time for time in found if time is not None), default=None)

    return first_from


def _named(field: str) -> str:
    """The days of a *field* by name."""
    if field == "*":
        return field
    days: set[int] = set()
    for item in field.split(","):
        span, _, step = item.partition("/")
        low, _, high = span.partition("-")
        first = 0 if low == "*" else int(low)
        # Cron's "2/3" goes on to the end of the week.
        last = int(high) if high else (6 if low == "*" or step else first)
        days.update(range(first, last + 1, int(step or 1)))
    return ",".join(_WEEK[day] for day in sorted(days))
