"""What the usage of a period will be at its end: extrapolated by weekday, with a range.

Pure; imports only :mod:`~flask_c2meter.model` and :mod:`~flask_c2meter.decimals`. The promise: what
is used already is never projected away, a period that is over is exact, the future is never looked
at, and neither a float nor the host's :mod:`decimal` context touches a number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal, DivisionByZero, InvalidOperation, localcontext

from .decimals import not_negative, own_context
from .model import Aggregation, Period, Projection

#: The beginning of a period, during which it is too early to say.
TOO_EARLY = timedelta(hours=24)

#: Whole days of history that are looked at: the last eight weeks.
HISTORY_DAYS = 56

#: Whole days of history from which on weekdays are told apart.
WEEKDAYS_FROM = 14

#: Whole days of history from which on the range is measured.
RANGE_FROM = 3

#: The range before that: what is still to come, divided and multiplied by this.
WIDE = Decimal(2)

_ZERO = Decimal(0)
#: Three places more than the total has: what is made of a projection is not made of its rounding.
_FINER = Decimal("0.001")
_PLACES_OF_ERROR = Decimal("0.000001")

_DAY = timedelta(days=1)
_MICROSECOND = timedelta(microseconds=1)
_DAY_US = _DAY // _MICROSECOND

#: A weekday weighs so many times its mean. As the least common multiple of 1 to 8, it makes the
#: mean of up to eight Mondays exact: equal weights cancel out to the last digit.
_SCALE = 840
_EVEN = (Decimal(1),) * 7

# Student's 90 % quantile with n degrees of freedom, in powers of 1 / n.
_STUDENT = (Decimal("1.28155"), Decimal("0.84658"), Decimal("0.57089"), Decimal("0.25852"))

_OWN = own_context(100, InvalidOperation, DivisionByZero, rounding=ROUND_HALF_UP)


@dataclass(frozen=True, slots=True)
class Backtest:
    """What :func:`project` would have said of a past period, against what came."""

    period: Period
    #: How much of the period had elapsed, 0 to 1.
    share: Decimal
    #: In the meter's unit, as the next three.
    projected: Decimal
    low: Decimal
    high: Decimal
    actual: Decimal

    @property
    def error(self) -> Decimal | None:
        """How far off it was, relative to what came: 0.1 = a tenth too much; six places.

        None if nothing came.
        """
        if not self.actual:
            return None
        with localcontext(_OWN):
            return (self.projected / self.actual - 1).quantize(_PLACES_OF_ERROR)

    @property
    def is_within(self) -> bool:
        """Whether what came lies in the range."""
        return self.low <= self.actual <= self.high


def project(
    aggregation: Aggregation,
    total: Decimal,
    period: Period,
    now: datetime,
    days: Mapping[date, Decimal],
) -> Projection | None:
    """What *total* will be at the end of *period*.

    A sum or a count goes on at the pace of the period so far, by elapsed time. From two weeks of
    history on, a day counts as much as its weekday has brought on average, and a part of a day its
    share of that. While less has elapsed than the heaviest weekday counts, as on a weekend with
    which an office's period begins, the period shows no pace of its own: the history's holds.

    A maximum or a unique count does not grow with time: the largest day may be over, the same
    sites come again. It is projected to stay what it is, low and high included.

    :param total: of the period so far, in the meter's unit, >= 0.
    :param now: aware.
    :param days: UTC day -> usage of that day, in this period and before it. Only whole days are
        looked at: the last eight weeks before today, from the first day there is; a day that is
        absent in between had no usage.
    :return: None = too early to say: the first 24 hours. *total* itself when the period is over;
        else three decimal places more than *total* has. The range is an 80 % prediction interval;
        with fewer than three whole days, or without any usage in them, what is still to come is
        halved and doubled instead.
    :raises TypeError: a quantity is not a ``Decimal``.
    :raises ValueError: a quantity is negative or not finite.
    """
    as_it_is = Projection(not_negative("total", total), low=total, high=total)
    if now >= period.end:
        return as_it_is
    if now - period.start < TOO_EARLY:
        return None
    if aggregation in (Aggregation.MAX, Aggregation.UNIQUE_COUNT):
        return as_it_is
    with localcontext(_OWN):
        history = _history(days, now.astimezone(UTC).date())
        coming = _coming(total, period, now, history)
        quantum = (total + _ZERO) * _FINER  # the sum has decimal places even if total is 1E+3
        return Projection(*((total + each).quantize(quantum) for each in coming))


def backtest(
    aggregation: Aggregation,
    periods: Sequence[Period],
    days: Mapping[date, Decimal],
    at_share: Sequence[Decimal] = (Decimal("0.25"), Decimal("0.5"), Decimal("0.75")),
) -> list[Backtest]:
    """What :func:`project` would have said in the course of past *periods*, against what came.

    An approximation where a day is cut, by the moment asked about or by a period that begins in
    the middle of it: usage is known by the day, and each part is taken to have had its share,
    rounded to the decimal places of *days*.

    :param periods: all of them over.
    :param days: UTC day -> what the day added to the meter's total; absent = nothing.
    :param at_share: how much of a period had elapsed, 0 to 1.
    :return: in the order of *periods* and *at_share*, without the moments at which it would have
        been too early to say.
    """
    tests = []
    with localcontext(_OWN):
        for period in periods:
            actual = _usage(days, period.start, period.end)
            for share in at_share:
                now = period.start + int(_us(period.end - period.start) * share) * _MICROSECOND
                used = _usage(days, period.start, now)
                said = project(aggregation, used, period, now, days)
                if said is not None:
                    tests.append(Backtest(period, share, said.total, said.low, said.high, actual))
    return tests


# -- what the past says ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _History:
    """What the whole days before today say."""

    days: int
    #: What a day counts, Monday first, in ``_SCALE``-ths of usage; all alike if not told apart.
    weights: tuple[Decimal, ...] = _EVEN
    #: How far four days in five stay from what is usual for them; None = not known.
    stray: Decimal | None = None


def _history(days: Mapping[date, Decimal], today: date) -> _History:
    first = max(min(days, default=today), today - HISTORY_DAYS * _DAY)
    span = [first + number * _DAY for number in range((today - first).days)]
    used = [not_negative(f"days[{day}]", days.get(day, _ZERO)) for day in span]
    if len(used) < RANGE_FROM or not any(used):
        return _History(len(used))
    if len(used) < WEEKDAYS_FROM:
        return _History(len(used), stray=_stray([used]))
    weekdays = [used[(weekday - first.weekday()) % 7 :: 7] for weekday in range(7)]
    weights = tuple(sum(each, _ZERO) * (_SCALE // len(each)) for each in weekdays)
    return _History(len(used), weights, _stray(weekdays))


def _stray(groups: Sequence[Sequence[Decimal]]) -> Decimal:
    """How far four days in five stay from the mean of their group."""
    variance = sum(map(_squares, groups), _ZERO) / sum(len(group) - 1 for group in groups)
    # A weekday that is never used does not vary, and says nothing of how sure the others are.
    freedom = sum(len(group) - 1 for group in groups if any(group))
    return _student(freedom) * variance.sqrt()


def _squares(group: Sequence[Decimal]) -> Decimal:
    mean = sum(group, _ZERO) / len(group)
    return sum(((each - mean) ** 2 for each in group), _ZERO)


def _student(freedom: int) -> Decimal:
    """What one in ten draws of Student's t exceeds; 4 % short at one degree of freedom, else 0.3 %.

    Source: Abramowitz and Stegun, "Handbook of Mathematical Functions", 26.7.5.
    """
    return sum((term / freedom**power for power, term in enumerate(_STUDENT)), _ZERO)


# -- what is still to come -------------------------------------------------------------------------


def _coming(
    total: Decimal, period: Period, now: datetime, history: _History
) -> tuple[Decimal, Decimal, Decimal]:
    """What is expected until the period's end, at least and at most."""
    elapsed = _weigh(history.weights, period.start, now)
    remaining = _weigh(history.weights, now, period.end)
    usual_day = sum(history.weights, _ZERO) * _DAY_US / 7
    if elapsed < max(history.weights) * _DAY_US:
        expected, observed = remaining / (_SCALE * _DAY_US), Decimal(history.days)
    else:
        expected, observed = total * remaining / elapsed, elapsed / usual_day
    if history.stray is None:
        return expected, expected / WIDE, expected * WIDE
    # The sum of r more days after n observed ones varies as r + r**2 / n times a day does: the days
    # themselves, and the pace that was read off the n. Source: the prediction interval of Hahn and
    # Meeker, "Statistical Intervals".
    ahead = remaining / usual_day
    margin = history.stray * (ahead + ahead**2 / observed).sqrt()
    return expected, max(_ZERO, expected - margin), expected + margin


def _weigh(weights: Sequence[Decimal], start: datetime, end: datetime) -> Decimal:
    """What [start, end) counts, in microseconds times weight: exact."""
    return sum((weights[day.weekday()] * part_us for day, part_us in _parts(start, end)), _ZERO)


def _usage(days: Mapping[date, Decimal], start: datetime, end: datetime) -> Decimal:
    """What *days* brought in [start, end), in the decimal places that they have."""
    used = sum((days.get(day, _ZERO) * part_us for day, part_us in _parts(start, end)), _ZERO)
    # Events voided in another order than they were counted in can leave the beginning of a unique
    # count below zero, to be made up for later.
    return max(_ZERO, used / _DAY_US).quantize(sum(days.values(), _ZERO))


def _parts(start: datetime, end: datetime) -> Iterator[tuple[date, int]]:
    """The UTC days that [start, end) touches, each with the microseconds it has of them."""
    at = start.astimezone(UTC)
    while at < end:
        midnight = at.replace(hour=0, minute=0, second=0, microsecond=0) + _DAY
        yield at.date(), _us(min(midnight, end) - at)
        at = midnight


def _us(duration: timedelta) -> int:
    return duration // _MICROSECOND
