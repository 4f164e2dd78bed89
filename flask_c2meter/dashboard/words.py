"""Numbers, times and states as the page words them.

Pure; imports :mod:`flask_c2meter.model`, :mod:`flask_c2meter.decimals` and
:mod:`flask_c2meter.money`. Nothing here changes a number but by rounding what is projected, half
up, to the places that its meter has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import date, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal

from .. import money
from ..decimals import EXACT
from ..model import Level, Meter, Period, Projection

_MIDNIGHT_LATER = timedelta(microseconds=1)

#: Of an axis: name, least value, decimal places.
_UNITS = (("T", 10**12, 12), ("B", 10**9, 9), ("M", 10**6, 6), ("k", 10**4, 3))

_DASH = "\N{EN DASH}"

#: In the place of a number that is not known.
NONE = _DASH

LEVELS: Mapping[Level, str] = {
    "warning": "Warning",
    "critical": "Critical",
    "exceeded": "Exceeded",
}

#: What became of an announcement, and the channels as people call them.
OUTCOMES: Mapping[str, str] = {
    "ready": "waiting",
    "sending": "waiting",
    "delivered": "delivered",
    "dead": "failed",
}
CHANNELS: Mapping[str, str] = {
    "signal": "Signal",
    "email": "E-mail",
    "webhook": "Webhook",
    "in_app": "In the app",
}

#: Status of the subscription -> its name, and what it means for the bill.
_STATUSES: Mapping[str, tuple[str, str]] = {
    "active": ("Active", "Overage is billed when the period ends."),
    "trialing": ("Trial", "Usage during the trial is not billed."),
    "past_due": (
        "Payment overdue",
        "The last payment has failed. Usage is still counted and billed.",
    ),
    "unpaid": (
        "Unpaid",
        "Invoices are still made, but not collected until an earlier one is paid.",
    ),
    "paused": ("Paused", "No invoice is made while the subscription is paused."),
    "incomplete": (
        "Incomplete",
        "The first payment is still to be made; the subscription begins with it.",
    ),
    "none": (
        "No subscription",
        "No subscription is known: usage is counted by calendar month and not billed.",
    ),
}

#: In these, no invoice comes of the amounts on the page.
_UNBILLED = frozenset({"paused", "incomplete", "canceled", "none"})


def status(name: str, ended_at: datetime | None = None) -> tuple[str, str]:
    """What a subscription's status is called, and what it means for the bill."""
    if name == "canceled" and ended_at is not None:
        return "Canceled", f"It ended on {day(ended_at)}: usage since then is not billed."
    return _STATUSES.get(name, (name.replace("_", " ").capitalize(), ""))


def bill(status: str) -> str:
    """What the amounts on the page are."""
    if status in _UNBILLED:
        return "Not billed: this is what the usage above the plan would cost."
    if status == "trialing":
        return "Usage above the plan, which is free during the trial."
    return "Usage above the plan in this billing period."


# -- numbers ---------------------------------------------------------------------------------------


def quantity(value: Decimal) -> str:
    """*value* with thousands separators, without zeros at its end: ``12,345.6``."""
    return f"{value.normalize(EXACT):,f}"


def plain(value: Decimal) -> str:
    """*value* for machines: no exponent, no separators."""
    return f"{value:f}"


def expected(value: Decimal, meter: Meter) -> Decimal:
    """A projected *value* in the decimal places of *meter*, half up."""
    return value.quantize(Decimal(1).scaleb(-meter.precision), ROUND_HALF_UP, EXACT)


def compact(value: Decimal) -> str:
    """A round *value* for an axis: ``2.5k``, ``10M``."""
    for unit, least, places in _UNITS:
        if value >= least:
            return quantity(value.scaleb(-places, EXACT)) + unit
    return quantity(value)


def percent(share: Decimal) -> str:
    """*share* in whole per cent, rounded half up, but 100 is only said when it is reached."""
    whole = share.scaleb(2, EXACT).quantize(Decimal(1), ROUND_HALF_UP, EXACT)
    if share < 1 <= whole / 100:
        whole = Decimal(99)
    if not whole and share > 0:
        return "<1%"
    return f"{whole:,f}%"


def amount(minor: Decimal | None, currency: str | None) -> str:
    """*minor* units as money, or a dash."""
    return NONE if minor is None or currency is None else money.written(minor, currency)


def between(low: str, high: str) -> str:
    """A range; just the one if both are written alike."""
    return low if low == high else f"{low} {_DASH} {high}"


def range_of(projection: Projection, meter: Meter) -> str:
    """The range of *projection* in the places of *meter*."""
    low, high = (expected(bound, meter) for bound in (projection.low, projection.high))
    return between(quantity(low), quantity(high))


# -- times, all of them UTC ------------------------------------------------------------------------


def day(moment: date) -> str:
    """``9 March 2026``."""
    return f"{moment.day} {moment:%B %Y}"


def short_day(moment: date) -> str:
    """``9 Mar``."""
    return f"{moment.day} {moment:%b}"


def weekday(moment: date) -> str:
    """``Mon 9 Mar``."""
    return f"{moment:%a} {short_day(moment)}"


def minute(moment: datetime) -> str:
    """``9 Mar, 14:05``."""
    return f"{short_day(moment)}, {moment:%H:%M}"


def last_day(period: Period) -> date:
    """The last day that *period* has a part of."""
    return (period.end - _MIDNIGHT_LATER).date()


def span(period: Period) -> str:
    """``1`` to ``31 March 2026``, with a dash; both days belong to it."""
    first, last = period.start.date(), last_day(period)
    if first == last:
        return day(last)
    if (first.year, first.month) == (last.year, last.month):
        return f"{first.day} {_DASH} {day(last)}"
    if first.year == last.year:
        return f"{first.day} {first:%B} {_DASH} {day(last)}"
    return f"{day(first)} {_DASH} {day(last)}"


def part(period: Period, cycle: Period) -> str:
    """Which part of *cycle* it is: ``until 11 March``, ``since 12 March``; empty for all of it."""
    starts, ends = period.start > cycle.start, period.end < cycle.end
    if starts and ends:
        return span(period)
    if starts:
        return f"since {period.start.day} {period.start:%B}"
    return f"until {period.end.day} {period.end:%B}" if ends else ""


def left(period: Period, now: datetime) -> str:
    """How much of *period* is left."""
    whole_days = (period.end - now) // timedelta(days=1)
    if whole_days >= 1:
        return f"{whole_days} day{'s' if whole_days > 1 else ''} left"
    return f"ends {'today' if last_day(period) == now.date() else 'tomorrow'}"


# -- lists -----------------------------------------------------------------------------------------


def listed(names: Iterable[str]) -> str:
    """``A``, ``A and B``, ``A, B and C``."""
    *firsts, last = names
    return f"{', '.join(firsts)} and {last}" if firsts else last
