"""The geometry of the page: a gauge and a chart of days, from one meter's report.

Pure; imports the nouns, the reports and the page's words. Across, positions are per cent of the
width, so that a figure fits every screen; downwards, they are pixels of a fixed height, so that no
text is ever stretched. A projection is drawn as one, never as something that has happened.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import ROUND_CEILING, Decimal
from typing import TYPE_CHECKING

from ..decimals import exactly
from ..model import Aggregation, Meter, Period
from . import words

if TYPE_CHECKING:
    from ..reports import MeterReport

#: Where a chart's largest value and its base are, in pixels; above and below is room for text.
_TOP, _BASE = 12, 140

#: What is projected is shown to scale up to so many times what is there already.
_REACH = Decimal(2)
#: A pace so many times above the largest day is said, not drawn: it would flatten the days.
_FAR = Decimal(4)
#: Of a day's slot, the part that its bar fills.
_FILL = Decimal("0.72")
_STEPS = tuple(map(Decimal, ("1", "2", "2.5", "5", "10")))
#: Most labels below a chart.
_LABELS = 5

_ZERO = Decimal(0)
_DAY = timedelta(days=1)
_MICROSECOND = timedelta(microseconds=1)


# -- gauges ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Gauge:
    """A bar that begins at 0; positions in per cent of the width."""

    #: Where usage ends, or the included quantity if there is more.
    within: Decimal
    #: How far usage goes on above it.
    above: Decimal
    included: Decimal
    #: None while it is too early to say.
    projected: Decimal | None
    low: Decimal | None
    high: Decimal | None


@exactly
def gauge(report: MeterReport) -> Gauge | None:
    """The gauge of a meter; None without an included quantity."""
    included, total = report.usage.included, max(_ZERO, report.usage.total)
    if included is None:
        return None
    projection = report.projection
    there = max(included, total) or Decimal(1)
    end = there if projection is None else max(there, min(projection.high, there * _REACH))

    def at(value: Decimal) -> Decimal:
        return _share(min(value, end), end)

    return Gauge(
        within=at(min(total, included)),
        above=at(max(_ZERO, total - included)),
        included=at(included),
        projected=None if projection is None else at(projection.total),
        low=None if projection is None else at(projection.low),
        high=None if projection is None else at(projection.high),
    )


# -- charts ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pillar:
    """A part of a bar, in pixels."""

    y: Decimal
    height: Decimal


@dataclass(frozen=True, slots=True)
class Bar:
    """One day."""

    #: Left edges of the day's slot and of its bar, in per cent.
    slot: Decimal
    x: Decimal
    used: Pillar
    #: What is expected, on top of it.
    projected: Pillar
    #: What it says, such as ``Mon 9 Mar: 64``.
    label: str


@dataclass(frozen=True, slots=True)
class Mark:
    """A position with a text: in pixels for a step, in per cent for a date."""

    at: Decimal
    text: str


@dataclass(frozen=True, slots=True)
class Chart:
    """A meter's days, from the first to the last of its period."""

    bars: Sequence[Bar]
    #: Widths of a slot and of a bar, in per cent.
    slot: Decimal
    width: Decimal
    base: int
    ticks: Sequence[Mark]
    #: Where the included quantity is, as an even pace or as a level; None = none, or far above.
    line: Decimal | None
    labels: Sequence[Mark]
    #: What the bars are.
    caption: str
    #: The included quantity in words; empty if there is none.
    included: str
    #: The day that stands out.
    remarkable: str
    #: Day, what was used on it, and the total by its end: the chart as a table.
    rows: Sequence[tuple[date, Decimal, Decimal]]


@dataclass(frozen=True, slots=True)
class _Day:
    day: date
    #: None = it is still to come.
    used: Decimal | None
    #: What is expected beyond that.
    projected: Decimal


@exactly
def chart(report: MeterReport, now: datetime) -> Chart:
    """The chart of a meter's days.

    A maximum or a unique count does not grow with time: its bars are what had been reached by the
    end of a day, and its line is the included quantity itself.
    """
    meter, is_level = report.meter, _is_level(report.meter)
    days = list(_levels(report) if is_level else _sums(report, now))
    highest = max((each.used or _ZERO) + each.projected for each in days)
    line = _line(report)
    shown = line if line is not None and line <= (highest or line) * _FAR else None
    steps = _scale(max(highest, shown or _ZERO), meter)
    pixels = (_BASE - _TOP) / steps[-1]
    slot = Decimal(100) / len(days)
    return Chart(
        bars=list(_bars(days, slot, pixels, meter)),
        slot=_rounded(slot),
        width=_rounded(slot * _FILL),
        base=_BASE,
        ticks=[Mark(_pillar(step, pixels).y, words.compact(step)) for step in steps],
        line=None if shown is None else _pillar(shown, pixels).y,
        labels=list(_labels([each.day for each in days])),
        caption="Total by the end of the day" if is_level else "Used on the day",
        included="" if line is None else _included(line, meter),
        remarkable=_remarkable(report),
        rows=list(_rows(report)),
    )


def _is_level(meter: Meter) -> bool:
    return meter.aggregation in (Aggregation.MAX, Aggregation.UNIQUE_COUNT)


# -- days ------------------------------------------------------------------------------------------


def _sums(report: MeterReport, now: datetime) -> Iterator[_Day]:
    """Each day with its usage; what is projected, spread evenly over the time that is left."""
    period, known = report.usage.period, dict(report.days)
    coming = report.projection.total - report.usage.total if report.projection else _ZERO
    left = Period(now, period.end)
    for day in _days(period):
        share = Decimal(_overlap_us(day, left)) / _us(left)
        yield _Day(day, known.get(day), max(_ZERO, coming) * share)


def _levels(report: MeterReport) -> Iterator[_Day]:
    """Each day with what had been reached by its end; what is projected stays there."""
    totals = {day: total for day, _, total in _rows(report)}
    for day in _days(report.usage.period):
        ahead = report.projection.total if report.projection and day not in totals else _ZERO
        yield _Day(day, totals.get(day), ahead)


def _rows(report: MeterReport) -> Iterator[tuple[date, Decimal, Decimal]]:
    total = _ZERO
    for day, used in report.days:
        total += used
        yield day, used, total


def _days(period: Period) -> Iterator[date]:
    day = period.start.date()
    while day <= words.last_day(period):
        yield day
        day += _DAY


def _overlap_us(day: date, period: Period) -> int:
    midnight = datetime.combine(day, time.min, UTC)
    shared = Period(max(midnight, period.start), min(midnight + _DAY, period.end))
    return max(0, _us(shared))


def _us(period: Period) -> int:
    return (period.end - period.start) // _MICROSECOND


# -- what is drawn of them -------------------------------------------------------------------------


def _line(report: MeterReport) -> Decimal | None:
    """The included quantity: of a level as it is, else what it comes to for a day."""
    included = report.usage.included or None
    if included is None or _is_level(report.meter):
        return included
    return included * (_DAY // _MICROSECOND) / _us(report.usage.period)


def _included(line: Decimal, meter: Meter) -> str:
    if _is_level(meter):
        return f"included: {words.quantity(line)}"
    return f"even pace: {words.quantity(words.expected(line, meter))} a day"


def _remarkable(report: MeterReport) -> str:
    """The day with the most; of a level, the one on which it was reached."""
    used = [row for row in _rows(report) if row[1] > 0]
    if not used:
        return "Nothing used yet"
    if _is_level(report.meter):
        day, _, total = used[-1]
        return f"{words.quantity(total)} reached on {words.weekday(day)}"
    day, most, _ = max(used, key=lambda row: row[1])
    return f"Most on {words.weekday(day)}: {words.quantity(most)}"


def _bars(days: Sequence[_Day], slot: Decimal, pixels: Decimal, meter: Meter) -> Iterator[Bar]:
    for number, each in enumerate(days):
        used = _pillar(each.used or _ZERO, pixels)
        yield Bar(
            slot=_rounded(slot * number),
            x=_rounded(slot * number + slot * (1 - _FILL) / 2),
            used=used,
            projected=_pillar(each.projected, pixels, used.y),
            label=_label(each, meter),
        )


def _label(each: _Day, meter: Meter) -> str:
    day, coming = words.weekday(each.day), words.quantity(words.expected(each.projected, meter))
    if each.used is None:
        return f"{day}: {coming} projected" if each.projected else f"{day}: still to come"
    used = f"{day}: {words.quantity(each.used)}"
    return f"{used} so far, {coming} more projected" if each.projected else used


def _labels(days: Sequence[date]) -> Iterator[Mark]:
    """Every day if they are few, else every so many weeks; the month where it is another one."""
    weeks = -(-len(days) // (_LABELS * 7))
    before: date | None = None
    for number in range(0, len(days), 1 if len(days) <= _LABELS else weeks * 7):
        day = days[number]
        is_new = before is None or before.month != day.month
        text = words.short_day(day) if is_new else str(day.day)
        yield Mark(_share(Decimal(number), Decimal(len(days))), text)
        before = day


def _scale(highest: Decimal, meter: Meter) -> list[Decimal]:
    """0 and one to three round steps, the last of which is not below *highest*."""
    smallest = Decimal(1).scaleb(-meter.precision)
    least = max(smallest, highest / 3)
    power = Decimal(1).scaleb(least.adjusted())
    sizes = (each * power for each in _STEPS)
    step = next(size for size in sizes if size >= least and size % smallest == 0)
    count = int((highest / step).to_integral_value(ROUND_CEILING))
    return [step * number for number in range(max(1, count) + 1)]


def _pillar(value: Decimal, pixels: Decimal, base: Decimal = Decimal(_BASE)) -> Pillar:
    height = (value * pixels).quantize(Decimal("0.1"))
    return Pillar(base - height, height)


def _share(value: Decimal, whole: Decimal) -> Decimal:
    """*value* in per cent of *whole*."""
    return _rounded(value * 100 / whole)


def _rounded(share: Decimal) -> Decimal:
    return share.quantize(Decimal("0.01"))
