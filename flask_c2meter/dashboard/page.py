"""What the page of one customer says, section by section: a report, put into words.

Pure; imports the nouns, the reports, how alerts are worded, and this folder's words and figures.
The templates lay out what stands here and decide nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING

from ..channels import Announcement
from ..decimals import exactly
from ..model import Alert, Charge, Level, Meter, Period
from ..projection import TOO_EARLY
from . import words
from .figures import Chart, Gauge, chart, gauge

if TYPE_CHECKING:
    from ..reports import BillTotal, MeterReport, Report
    from ..store.announcements import Notice

#: Unread alerts above the page; the others are in the history below.
_ON_TOP = 3

_ZERO = Decimal(0)


@dataclass(frozen=True, slots=True)
class MeterView:
    """One billed meter."""

    name: str
    title: str
    level: Level | None
    total: Decimal
    #: Such as ``of 2,000``, or why there is nothing to hold the total against.
    of: str
    #: ``60%``; empty without an included quantity.
    percent: str
    #: ``796 left``, ``500 above``, or empty.
    rest: str
    #: Empty while it is too early to say; the range, also if it is just what is projected.
    projected: str
    range: str
    #: The period, if it is another one than the page's.
    period: str
    #: All of it in one sentence.
    sentence: str
    #: None without an included quantity.
    gauge: Gauge | None
    #: For assistive technology: the end of the gauge.
    most: Decimal
    #: None if nothing was used.
    chart: Chart | None


@dataclass(frozen=True, slots=True)
class LineView:
    """One line of the bill."""

    title: str
    overage: Decimal
    value: Decimal | None
    amount: str
    projected: str
    #: Empty if it is just what is projected.
    range: str
    has_price: bool


@dataclass(frozen=True, slots=True)
class SumView:
    """The bill in one currency."""

    value: Decimal
    amount: str
    #: Empty while it is too early to say; the range, also if it is just what is projected.
    projected: str
    range: str


@dataclass(frozen=True, slots=True)
class NoticeView:
    """One alert."""

    identifier: str
    level: Level
    message: str
    raised_at: datetime
    #: The meter, if the page shows it.
    meter: str | None
    #: ``1,600 of 2,000``.
    usage: str
    is_unread: bool
    #: Channel and what became of it there.
    outcomes: Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class UsagePage:
    """The page of one customer."""

    customer: str
    as_of: datetime
    headline: str
    plan: str
    #: How the plan was changed within the cycle; empty if it was not.
    change: str
    status: str
    meaning: str
    cycle: Period
    left: str
    #: How much of the cycle is over, in per cent.
    elapsed: Decimal
    sums: Sequence[SumView]
    #: Which part of the cycle, and on which plan (empty for all of it), with the lines of it.
    lines: Mapping[str, Sequence[LineView]]
    #: What the bill is of, and whether it will be one.
    bill_note: str
    #: When it is no longer too early to project the bill; None = it is not.
    early_until: datetime | None
    meters: Sequence[MeterView]
    #: Meters that are only counted: title and total.
    counts: Sequence[tuple[str, Decimal]]
    notices: Sequence[NoticeView]
    #: The newest unread ones, and how many more there are.
    unread: Sequence[NoticeView]
    more_unread: int


@exactly
def usage_page(report: Report) -> UsagePage:
    """The page that *report* makes."""
    billed = [each for each in report.meters if each.meter.billable]
    name, meaning = words.status(report.status, report.ended_at)
    notices = list(_notices(report))
    unread = [each for each in notices if each.is_unread][:_ON_TOP]
    return UsagePage(
        customer=report.customer,
        as_of=report.as_of,
        headline=_headline(billed),
        plan=report.plan_name or "None known",
        change=_change(report),
        status=name,
        meaning=meaning,
        cycle=report.cycle,
        left=words.left(report.cycle, report.as_of),
        elapsed=_elapsed(report.cycle, report.as_of),
        sums=[_sum(each) for each in report.bills],
        lines=_lines(report, billed),
        bill_note=_bill_note(report),
        early_until=_early_until(billed),
        meters=[_meter(each, report) for each in billed],
        counts=[
            (each.meter.display_name, each.usage.total)
            for each in report.meters
            if not each.meter.billable
        ],
        notices=notices,
        unread=unread,
        more_unread=report.unread - len(unread),
    )


# -- the whole -------------------------------------------------------------------------------------


def _headline(billed: Sequence[MeterReport]) -> str:
    """The answer to "am I fine"."""
    limited = [each for each in billed if each.usage.included is not None]
    if not limited:
        return "Usage so far"
    if above := [each for each in limited if _above(each, each.usage.total)]:
        return f"{_names(above, limited)} above what the plan includes"
    if near := [each for each in limited if each.usage.level]:
        return f"{_names(near, limited)} close to what the plan includes"
    if not any(each.usage.total for each in billed):
        return "Nothing used yet in this period"
    if bound := [
        each for each in limited if each.projection and _above(each, each.projection.total)
    ]:
        return f"Within the plan so far; {_names(bound, limited)} on course to go above it"
    return "Everything is within the plan"


def _above(each: MeterReport, total: Decimal) -> bool:
    return each.usage.included is not None and total > each.usage.included


def _names(some: Sequence[MeterReport], of: Sequence[MeterReport]) -> str:
    if len(some) > 2:
        return f"{len(some)} of {len(of)} meters are"
    names = words.listed(each.meter.display_name for each in some)
    return f"{names} {'is' if len(some) == 1 else 'are'}"


def _change(report: Report) -> str:
    names = [name for _, name in report.plans]
    if len(names) < 2 or names[-1] == names[-2]:
        return ""
    since = words.day(report.plans[-1][0].start)
    return f"Changed from {names[-2]} on {since}" if names[-2] else f"Known since {since}"


def _elapsed(cycle: Period, now: datetime) -> Decimal:
    return Decimal((now - cycle.start) * 10_000 // (cycle.end - cycle.start)).scaleb(-2)


# -- the bill --------------------------------------------------------------------------------------


def _sum(total: BillTotal) -> SumView:
    projected, currency = total.projected, total.currency
    return SumView(
        value=total.amount,
        amount=words.amount(total.amount, currency),
        projected="" if projected is None else words.amount(projected, currency),
        range=_range(total.low, total.high, currency) if _has_range(total) else "",
    )


def _bill_note(report: Report) -> str:
    if report.plan is None:
        return "No plan is known, so nothing counts as above it."
    note, has_range = words.bill(report.status), any(map(_has_range, report.bills))
    return f"{note} A range holds four times in five." if has_range else note


def _has_range(total: BillTotal) -> bool:
    return total.low != total.high


def _lines(report: Report, billed: Sequence[MeterReport]) -> Mapping[str, Sequence[LineView]]:
    plans = {period.start: name for period, name in report.plans}
    lines = [(line, each.meter) for each in billed for line in each.charges]
    parts: dict[str, list[LineView]] = {}
    for line, meter in sorted(lines, key=lambda pair: pair[0].period.start):
        part = _part(line.period, report.cycle, plans.get(line.period.start))
        parts.setdefault(part, []).append(_line(line, meter))
    return parts


def _line(line: Charge, meter: Meter) -> LineView:
    projected = words.amount(line.projected_amount, line.currency)
    between = _range(line.projected_low, line.projected_high, line.currency)
    return LineView(
        title=meter.display_name,
        overage=line.units,
        value=line.amount,
        amount=words.amount(line.amount, line.currency),
        projected=projected,
        range="" if between == projected else between,
        has_price=line.currency is not None,
    )


def _part(period: Period, cycle: Period, plan: str | None) -> str:
    part = words.part(period, cycle)
    return f"{plan}, {part}" if part and plan else part


def _range(low: Decimal | None, high: Decimal | None, currency: str | None) -> str:
    if low is None or high is None:
        return ""
    return words.between(words.amount(low, currency), words.amount(high, currency))


def _early_until(billed: Sequence[MeterReport]) -> datetime | None:
    early = [line for each in billed for line in each.charges if _is_early(line)]
    return max((line.period.start + TOO_EARLY for line in early), default=None)


def _is_early(line: Charge) -> bool:
    return line.currency is not None and line.projected_amount is None


# -- meters ----------------------------------------------------------------------------------------


def _meter(each: MeterReport, report: Report) -> MeterView:
    used, meter = each.usage, each.meter
    total = max(_ZERO, used.total)
    projected, between = _projected(each), _projected_range(each)
    return MeterView(
        name=used.meter,
        title=meter.display_name,
        level=used.level,
        total=total,
        of=_of(used.included, report.plan),
        percent="" if used.utilization is None else words.percent(max(_ZERO, used.utilization)),
        rest=_rest(total, used.included),
        projected=projected,
        range="" if between == projected else between,
        period="" if used.period == report.cycle else _own_period(used.period, report.cycle),
        sentence=_sentence(each, total, report.plan),
        gauge=gauge(each),
        most=max(total, used.included or _ZERO, Decimal(1).scaleb(-meter.precision)),
        chart=chart(each, report.as_of) if any(used for _, used in each.days) else None,
    )


def _of(included: Decimal | None, plan: str | None) -> str:
    if included is None:
        return "no plan is known" if plan is None else "unlimited on this plan"
    return f"of {words.quantity(included)}" if included else "nothing included"


def _rest(total: Decimal, included: Decimal | None) -> str:
    if included is None:
        return ""
    if not included and not total:
        return "any use is overage"
    if total > included:
        return f"{words.quantity(total - included)} above"
    return f"{words.quantity(included - total)} left"


def _projected(each: MeterReport) -> str:
    if each.projection is None:
        return ""
    return words.quantity(words.expected(each.projection.total, each.meter))


def _projected_range(each: MeterReport) -> str:
    return "" if each.projection is None else words.range_of(each.projection, each.meter)


def _own_period(period: Period, cycle: Period) -> str:
    return words.part(period, cycle) if period.end == cycle.end else words.span(period)


def _sentence(each: MeterReport, total: Decimal, plan: str | None) -> str:
    used = each.usage
    parts = [f"{words.quantity(total)} {_of(used.included, plan)}"]
    if used.utilization is not None:
        parts.append(words.percent(max(_ZERO, used.utilization)))
    parts += [text for text in (_rest(total, used.included), used.level) if text]
    if projected := _projected(each):
        parts.append(f"{projected} projected")
    return ", ".join(parts)


# -- alerts ----------------------------------------------------------------------------------------


def _notices(report: Report) -> Iterator[NoticeView]:
    meters = {each.meter.name: each.meter for each in report.meters}
    for notice in report.notices:
        alert = notice.alert
        yield NoticeView(
            identifier=alert.identifier,
            level=alert.level,
            message=_message(alert, meters),
            raised_at=alert.raised_at,
            meter=alert.meter if alert.meter in meters else None,
            usage=f"{words.quantity(alert.total)} of {words.quantity(alert.included)}",
            is_unread=notice.is_unread,
            outcomes=list(_outcomes(notice)),
        )


def _message(alert: Alert, meters: Mapping[str, Meter]) -> str:
    """As the mail words it; a meter that the catalogue has lost goes by its name."""
    meter = meters.get(alert.meter)
    return f"{alert.meter} usage" if meter is None else Announcement(alert, meter).message


def _outcomes(notice: Notice) -> Iterator[tuple[str, str]]:
    for channel, announced in sorted(notice.channels.items()):
        outcome = words.OUTCOMES[announced.state]
        if channel == "in_app":
            outcome = "unread" if announced.read_at is None else "read"
        yield words.CHANNELS.get(channel, channel), outcome
