"""Billing periods: what is known of a customer's subscriptions, and what follows from it.

Pure; imports only :mod:`~flask_c2meter.model`. A :class:`Term` is one thing learnt; the terms of a
customer, in the order in which they were learnt, make its :class:`History`; :func:`learn` says what
a new look at the subscriptions adds to it. Promises kept: every moment of every meter lies in
exactly one period; newer knowledge wins; a customer of whom nothing is known has calendar months
(UTC), and a known cycle goes on by itself until there is news.
"""

from __future__ import annotations

from bisect import bisect_right
from calendar import monthrange
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from .model import EVERY_METER, MAX_AGE, Period, Subscription, SubscriptionItem

#: A subscription in one of these states bills nothing any more.
ENDED = frozenset({"canceled", "incomplete_expired"})

#: Status of a period that ended with a change of price which made Stripe forget its usage.
DROPPED = "dropped"

#: Which of several subscriptions speaks for the customer: the first of these.
_STATUS_ORDER = ("active", "trialing", "past_due", "unpaid", "paused", "incomplete")

#: So many cycles before the first known one may matter: see :data:`~flask_c2meter.model.MAX_AGE`.
_EARLIER_CYCLES = 2

_TICK = datetime.resolution


@dataclass(frozen=True, slots=True)
class Term:
    """A stretch of time on one plan, as it was learnt: a row of ``periods``."""

    #: The meter it speaks of, or ``*``: every meter that has no term of its own.
    meter: str
    period: Period
    #: The cycle whose invoice bills it: longer than the period where a change of plan cut it.
    cycle: Period
    plan: str | None
    #: Of the subscription, in Stripe's words.
    status: str
    #: ``stripe`` or ``loader``.
    source: str
    #: As of when this was true.
    known_at: datetime
    subscription: str | None = None
    #: False if the period begins when a change was noticed, not when it was made.
    is_exact: bool = True
    #: When the cycle's invoice was finalised: later usage is billed nowhere.
    finalized_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class BillingPeriod:
    """The period that some moment of some meter lies in, and what is known of it."""

    period: Period
    #: The cycle whose invoice bills it.
    cycle: Period
    plan: str | None = None
    status: str = "none"
    #: ``stripe``, ``loader``, or ``calendar`` while no subscription is known.
    source: str = "calendar"
    subscription: str | None = None
    finalized_at: datetime | None = None
    #: False if it only follows from what is known.
    is_known: bool = False

    @property
    def is_billed(self) -> bool:
        """Whether an invoice comes of it, as far as is known."""
        return self.source != "calendar" and self.status != DROPPED


class _Stretch(NamedTuple):
    """What is left of a term where newer ones have painted over it."""

    start: datetime
    end: datetime
    term: Term


class History:
    """What is known of one customer.

    :param terms: oldest knowledge first.
    """

    def __init__(self, terms: Sequence[Term] = ()) -> None:
        self.terms: tuple[Term, ...] = tuple(terms)
        self._timelines: dict[str, list[_Stretch]] = {}

    @property
    def meters(self) -> set[str]:
        """The meters with terms of their own."""
        return {term.meter for term in self.terms} - {EVERY_METER}

    def at(self, meter: str, moment: datetime) -> BillingPeriod:
        """The period of *meter* that *moment* lies in."""
        timeline = self._timeline(meter)
        number = bisect_right(timeline, moment, key=lambda stretch: stretch.start) - 1
        before = timeline[number] if number >= 0 else None
        until = timeline[number + 1].start if number + 1 < len(timeline) else None
        if before is None:
            return _calendar(moment, None, until)
        if moment < before.end:
            return _of_term(before.term, Period(before.start, before.end), before.term.cycle)
        if before.term.status in ENDED:
            return _calendar(moment, before.end, until)
        cycle = _Beat(before.term.cycle, before.end).cycle_of(moment)
        following = _of_term(before.term, _until(cycle, until), cycle)
        return replace(following, finalized_at=None, is_known=False)

    def gap(self, meter: str, moment: datetime) -> tuple[datetime | None, datetime | None]:
        """From when to when nothing is known around *moment*, of which nothing is; None = ever."""
        timeline = self._timeline(meter)
        number = bisect_right(timeline, moment, key=lambda stretch: stretch.start)
        after = timeline[number - 1].end if number else None
        return after, timeline[number].start if number < len(timeline) else None

    def billed_with(self, meter: str, moment: datetime) -> list[BillingPeriod]:
        """The periods that the invoice for *moment* bills, in order: all those of its cycle."""
        periods = [self.at(meter, moment)]
        cycle = periods[0].cycle
        while (start := periods[0].period.start) > cycle.start:
            earlier = self.at(meter, start - _TICK)
            if earlier.cycle != cycle:
                break
            periods.insert(0, earlier)
        while (end := periods[-1].period.end) < cycle.end:
            later = self.at(meter, end)
            if later.cycle != cycle:
                break
            periods.append(later)
        return periods

    def _timeline(self, meter: str) -> list[_Stretch]:
        """Ascending, without overlaps."""
        if meter not in self._timelines:
            # A meter's own terms win over those for every meter, however old.
            terms = [term for term in self.terms if term.meter == EVERY_METER]
            if meter != EVERY_METER:
                terms += [term for term in self.terms if term.meter == meter]
            self._timelines[meter] = _painted(terms)
        return self._timelines[meter]


def _painted(terms: Iterable[Term]) -> list[_Stretch]:
    timeline: list[_Stretch] = []
    for term in terms:
        new = _Stretch(term.period.start, term.period.end, term)
        kept = (part for stretch in timeline for part in _outside(stretch, new))
        timeline = sorted([*kept, new], key=lambda stretch: stretch.start)
    return timeline


def _outside(old: _Stretch, new: _Stretch) -> Iterator[_Stretch]:
    """The parts of *old* that *new* leaves."""
    if old.start < (end := min(old.end, new.start)):
        yield old._replace(end=end)
    # Where the cycle is now known to end, the rest of an older belief in it goes.
    goes = old.start <= new.start < old.end and new.term.cycle.end == new.end
    if (start := max(old.start, new.end)) < old.end and not goes:
        yield old._replace(start=start)


def _of_term(term: Term, period: Period, cycle: Period) -> BillingPeriod:
    return BillingPeriod(
        period,
        cycle,
        term.plan,
        term.status,
        term.source,
        term.subscription,
        term.finalized_at,
        is_known=True,
    )


def _calendar(moment: datetime, after: datetime | None, until: datetime | None) -> BillingPeriod:
    month = Period.month_of(moment)
    start = month.start if after is None else max(month.start, after)
    period = _until(Period(start, month.end), until)
    return BillingPeriod(period, period)


def _until(period: Period, end: datetime | None) -> Period:
    return period if end is None else Period(period.start, min(period.end, end))


# -- cycles that follow each other -----------------------------------------------------------------


class _Beat:
    """Cycles as long as *cycle*, one after the other, before and after *start*.

    Months are counted on the cycle's day, or a shorter month's last one: 31 January, 28 February,
    31 March.
    """

    def __init__(self, cycle: Period, start: datetime) -> None:
        self._start = start
        self._length = cycle.end - cycle.start
        self._day = max(cycle.start.day, cycle.end.day)
        months = (cycle.end.year - cycle.start.year) * 12 + cycle.end.month - cycle.start.month
        is_whole = (
            self._months_later(cycle.start, 0) == cycle.start
            and self._months_later(cycle.start, months) == cycle.end
            and self._months_later(start, 0) == start
        )
        #: 0 = it is not made of whole months.
        self._months = months if is_whole else 0

    def cycle_of(self, moment: datetime) -> Period:
        """The cycle that *moment* lies in; not before *start*."""
        if not self._months:
            return self.cycle((moment - self._start) // self._length)
        # Never too high, since no month is longer.
        number = (moment - self._start) // timedelta(days=31 * self._months)
        while self.cycle(number).end <= moment:
            number += 1
        return self.cycle(number)

    def cycle(self, number: int) -> Period:
        """The cycle with that *number*; the one that begins at *start* has 0."""
        return Period(self._bound(number), self._bound(number + 1))

    def _bound(self, number: int) -> datetime:
        if self._months:
            return self._months_later(self._start, number * self._months)
        return self._start + number * self._length

    def _months_later(self, moment: datetime, months: int) -> datetime:
        year, month = divmod(moment.year * 12 + moment.month - 1 + months, 12)
        last = monthrange(year, month + 1)[1]
        return moment.replace(year=year, month=month + 1, day=min(self._day, last))


# -- learning --------------------------------------------------------------------------------------


def learn(
    history: History,
    subscriptions: Sequence[Subscription],
    at: datetime,
    source: str,
    *,
    is_exact: bool = False,
) -> list[Term]:
    """The terms to add to *history* now that *subscriptions* are known; none if nothing is new.

    :param subscriptions: all of the customer's, those that have ended included, as of *at*.
    :param at: aware UTC, in whole seconds, as Stripe's times are.
    :param source: ``stripe`` or ``loader``.
    :param is_exact: *at* is when they became so, not only when they were looked at.
    """
    mind = _Mind(history, at, source, is_exact)
    for subscription in sorted(subscriptions, key=lambda each: each.ended_at or at):
        if subscription.status in ENDED:
            mind.see_ended(subscription)
    if not subscriptions:
        mind.see_none()
    alive = sorted((each for each in subscriptions if each.status not in ENDED), key=_rank)
    if alive:
        own = {name for each in alive for name in each.items} | history.meters
        for meter in (EVERY_METER, *sorted(own)):
            mind.see(meter, *_billing(alive, meter))
    return mind.learnt


def finalise(
    history: History, cycle_end: datetime, at: datetime, subscription: str | None = None
) -> list[Term]:
    """Terms that say: since *at*, the invoice of the cycle that ended at *cycle_end* is final.

    :param subscription: whose invoice it is; None = of whichever has such a cycle.
    """
    learnt = []
    for meter in (EVERY_METER, *sorted(history.meters)):
        for known in history.billed_with(meter, cycle_end - _TICK):
            is_its = subscription is None or known.subscription in (None, subscription)
            is_open = known.cycle.end == cycle_end and known.finalized_at is None
            if is_its and is_open and known.is_billed:
                learnt.append(_again(known, meter, at, finalized_at=at))
    return learnt


def _rank(subscription: Subscription) -> tuple[int, float]:
    """The lower, the more it speaks for the customer: by status, then the newest cycle."""
    status = subscription.status
    number = _STATUS_ORDER.index(status) if status in _STATUS_ORDER else len(_STATUS_ORDER)
    return number, -subscription.period.start.timestamp()


def _billing(alive: Sequence[Subscription], meter: str) -> tuple[Subscription, SubscriptionItem]:
    """The subscription that bills *meter*, and what it says of it."""
    for subscription in alive:
        if meter in subscription.items:
            return subscription, subscription.items[meter]
    return alive[0], SubscriptionItem(alive[0].period)


def _again(known: BillingPeriod, meter: str, at: datetime, **changes: Any) -> Term:
    """What is known already, to be said again with *changes*."""
    term = Term(
        meter=meter,
        period=known.period,
        cycle=known.cycle,
        plan=known.plan,
        status=known.status,
        source=known.source,
        known_at=at,
        subscription=known.subscription,
        finalized_at=known.finalized_at,
    )
    return replace(term, **changes)


class _Mind:
    """A history, and what one look at the subscriptions adds to it."""

    def __init__(self, history: History, at: datetime, source: str, is_exact: bool) -> None:
        self._history = history
        self._at = at
        self._source = source
        self._is_exact = is_exact
        self.learnt: list[Term] = []

    def see_ended(self, subscription: Subscription) -> None:
        """Learn the end of *subscription*, unless it is known."""
        end = subscription.ended_at or self._at
        if all(term.subscription != subscription.id for term in self._history.terms):
            self._see_past(subscription, end)
        for meter, known in self._going_on(end):
            if known.subscription == subscription.id:
                self._cut_short(meter, known, end, status=subscription.status)

    def _see_past(self, subscription: Subscription, end: datetime) -> None:
        """Learn of a *subscription* that has ended before anything of it was known."""
        for meter in (EVERY_METER, *sorted(subscription.items)):
            item = subscription.items.get(meter) or SubscriptionItem(subscription.period)
            start = item.period.start
            if start >= end or end <= self._at - MAX_AGE:
                continue  # what was used in it, Stripe takes no more
            term = self._term(meter, subscription, item)
            known = self._history.at(meter, end - _TICK)
            is_its = known.subscription == subscription.id
            if known.is_billed and (
                not is_its or (known.cycle.start, known.plan) == (start, term.plan)
            ):
                continue
            last = Period(start, end)
            earlier = self._earlier(replace(term, status="active"), subscription)
            self._add(*earlier, replace(term, period=last, cycle=last))

    def see_none(self) -> None:
        """Learn that there is no subscription, not even one that has ended."""
        for meter, known in self._going_on(self._at):
            self._cut_short(meter, known, self._at, status="canceled")

    def _going_on(self, moment: datetime) -> Iterator[tuple[str, BillingPeriod]]:
        """The meters, and ``*``, of which a subscription is known just before *moment*."""
        for meter in (EVERY_METER, *sorted(self._history.meters)):
            known = self._history.at(meter, moment - _TICK)
            if known.is_billed and known.status not in ENDED:
                yield meter, known

    def see(self, meter: str, subscription: Subscription, item: SubscriptionItem) -> None:
        """Learn that *subscription* bills *meter*, how, and since when."""
        cycle = item.period
        moment = max(cycle.start, min(self._at, cycle.end - _TICK))
        known = self._history.at(meter, moment)
        term = self._term(meter, subscription, item)
        if not known.is_billed:
            self._add(*self._earlier(term, subscription), term)
        elif cycle not in (known.cycle, known.period):
            self._see_cycle(meter, known, term, subscription)
        elif known.plan != term.plan:
            start = max(moment, known.period.start)
            is_exact = self._is_exact or start == known.period.start
            self._see_change(meter, known, replace(term, is_exact=is_exact), start, subscription)
        elif not known.is_known or (known.status, known.subscription) != (
            term.status,
            term.subscription,
        ):
            self._add(replace(term, period=known.period, cycle=known.cycle))

    def _term(self, meter: str, subscription: Subscription, item: SubscriptionItem) -> Term:
        return Term(
            meter=meter,
            period=item.period,
            cycle=item.period,
            plan=item.plan or subscription.plan,
            status=subscription.status,
            source=self._source,
            known_at=self._at,
            subscription=subscription.id,
        )

    def _see_change(
        self,
        meter: str,
        known: BillingPeriod,
        term: Term,
        start: datetime,
        subscription: Subscription,
    ) -> None:
        """Learn that from *start* on, within the cycle of *known*, another price bills the meter.

        Stripe bills the old one up to then; in its classic mode it drops what was used before.
        """
        if subscription.billing_mode == "classic" and start > known.period.start:
            before = Period(known.period.start, start)
            self._add(_again(known, meter, self._at, period=before, status=DROPPED))
        self._add(replace(term, period=Period(start, known.cycle.end), cycle=known.cycle))

    def _see_cycle(
        self, meter: str, known: BillingPeriod, term: Term, subscription: Subscription
    ) -> None:
        """Learn that the cycle is another one than *known*'s."""
        start = term.cycle.start
        is_within = known.period.start < start < known.cycle.end
        if is_within and term.cycle.end == known.cycle.end:  # a new item of the same subscription
            self._see_change(meter, known, term, start, subscription)
            return
        before = self._history.at(meter, start - _TICK)
        if is_within:
            self._cut_short(meter, known, start)  # its anchor was reset
        elif (
            before.is_known
            and before.subscription == subscription.id
            and before.cycle.start < start < before.cycle.end
        ):
            self._cut_short(meter, before, start)  # so it was, a cycle ago
        elif known.cycle.start == start and known.plan == term.plan:
            term = replace(term, period=Period(known.period.start, term.cycle.end))
        self._add(term)

    def _cut_short(self, meter: str, known: BillingPeriod, end: datetime, **changes: Any) -> None:
        """The cycle of *known* has ended at *end*, and so have the periods its invoice bills."""
        cycle = Period(known.cycle.start, end)
        for each in self._history.billed_with(meter, known.period.start):
            if each.period.end <= known.period.start:
                self._add(_again(each, meter, self._at, cycle=cycle))
        period = Period(known.period.start, end)
        self._add(_again(known, meter, self._at, period=period, cycle=cycle, **changes))

    def _earlier(self, term: Term, subscription: Subscription) -> Iterator[Term]:
        """The cycles before the first known one, as far back as they may still matter."""
        beat = _Beat(term.cycle, term.cycle.start)
        for number in range(-_EARLIER_CYCLES, 0):
            cycle = beat.cycle(number)
            if subscription.started_at is not None and subscription.started_at < cycle.end:
                start = max(cycle.start, subscription.started_at)
                if not self._history.at(term.meter, start).is_billed:
                    yield replace(term, period=Period(start, cycle.end), cycle=cycle)

    def _add(self, *terms: Term) -> None:
        self.learnt += terms
        # What every meter has learnt need not be said again of one.
        self._history = History([*self._history.terms, *terms])


def whole_seconds(moment: datetime) -> datetime:
    """*moment* without its fraction: Stripe's times have none."""
    return moment.replace(microsecond=0)
