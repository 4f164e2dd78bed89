"""News of a subscription that comes late, when newer news is known already.

Pure; imports :mod:`~flask_c2meter.model` and :mod:`~flask_c2meter.periods`. Webhooks overtake each
other, and what the newer one says of now stays. But the older one still tells what was before: it
holds from its own moment until the next thing known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import NamedTuple

from .model import EVERY_METER, Period, Subscription, SubscriptionItem
from .periods import DROPPED, ENDED, BillingPeriod, History, Term, learn

_TICK = datetime.resolution


def learn_late(
    history: History,
    subscriptions: Sequence[Subscription],
    at: datetime,
    source: str,
    latest: datetime,
) -> list[Term]:
    """What *subscriptions*, as they became at *at*, add to a *history* that knows of later times.

    :param at: aware UTC, in whole seconds, not after *latest*.
    :param source: ``stripe`` or ``loader``.
    :param latest: as of when the newest thing known was true.
    """
    learnt: list[Term] = []
    for subscription in subscriptions:
        if subscription.status in ENDED:
            learnt += learn(History([*history.terms, *learnt]), [subscription], at, source)
            continue
        for meter in (EVERY_METER, *sorted(subscription.items.keys() | history.meters)):
            item = subscription.items.get(meter) or SubscriptionItem(subscription.period)
            news = _News(meter, subscription, item, at, source, latest)
            learnt += _place(History([*history.terms, *learnt]), news)
    return learnt


class _News(NamedTuple):
    """What is told of one meter."""

    meter: str
    subscription: Subscription
    item: SubscriptionItem
    at: datetime
    source: str
    latest: datetime

    @property
    def plan(self) -> str | None:
        return self.item.plan or self.subscription.plan

    @property
    def start(self) -> datetime:
        cycle = self.item.period
        return max(cycle.start, min(self.at, cycle.end - _TICK))

    def term(self, period: Period, cycle: Period, status: str | None = None) -> Term:
        return Term(
            meter=self.meter,
            period=period,
            cycle=cycle,
            plan=self.plan,
            status=status or self.subscription.status,
            source=self.source,
            known_at=self.at,
            subscription=self.subscription.id,
        )


def _place(history: History, news: _News) -> list[Term]:
    """What *news* adds in its place."""
    known = history.at(news.meter, news.start)
    is_known = known.source != "calendar"
    if is_known and known.subscription != news.subscription.id:
        return []  # several at once: only a look at all of them can tell
    later = _later(history, news)
    until = min((term.known_at for term in later), default=news.latest)
    cycle = Period(news.item.period.start, _cycle_end(later, news))
    if is_known and known.status in ENDED:
        cycle = Period(cycle.start, min(cycle.end, known.cycle.end))
    # A new item's first cycle is the rest of the others'.
    is_rest = (
        known.cycle.end == cycle.end == news.item.period.end and known.cycle.start < cycle.start
    )
    if is_known and (known.cycle == cycle or is_rest):
        return _place_in_cycle(history, news, known, until)
    if news.at >= news.latest:
        return []
    if is_known and known.cycle.start == cycle.start and cycle.end < known.cycle.end:
        cut = _cut_before(history, news, known, cycle.end)
        return [*cut, *_place(History([*history.terms, *cut]), news)]
    # The cycle was only inferred, or nothing was known: it is learnt as a whole.
    after, until_known = (None, until) if is_known else history.gap(news.meter, news.start)
    period = Period(
        max(cycle.start, after or cycle.start), min(cycle.end, until_known or cycle.end)
    )
    if period.start >= period.end:
        return []
    overlapped = history.at(news.meter, period.start)
    return [*_cut_before(history, news, overlapped, period.start), news.term(period, cycle)]


def _cut_before(history: History, news: _News, known: BillingPeriod, start: datetime) -> list[Term]:
    """The cycle of *known* has ended at *start*, where that of *news* begins."""
    is_of_it = known.source != "calendar" and known.subscription == news.subscription.id
    if not (is_of_it and known.cycle.start < start < known.cycle.end):
        return []
    cycle = Period(known.cycle.start, start)
    return [
        replace(
            news.term(Period(each.period.start, min(each.period.end, start)), cycle, each.status),
            plan=each.plan,
            finalized_at=each.finalized_at,
        )
        for each in history.billed_with(news.meter, known.period.start)
        if each.period.start < start
    ]


def _place_in_cycle(
    history: History, news: _News, known: BillingPeriod, until: datetime
) -> list[Term]:
    """What *news* adds within the cycle of *known*."""
    start, end = news.start, min(until, known.cycle.end)
    if known.plan == news.plan:
        return _say_again(history, news, known)
    if start >= end:
        return []
    following = history.at(news.meter, end) if end < known.cycle.end else None
    if following is not None and following.plan == news.plan:
        # It was noticed later than it was made.
        end, following = following.period.end, None
    status = news.subscription.status
    if known.status in ENDED and end == known.cycle.end:
        status = known.status
    period = Period(start, end)
    term = replace(news.term(period, known.cycle, status), finalized_at=known.finalized_at)
    if news.subscription.billing_mode != "classic":
        return [term]
    # In its classic mode Stripe drops what was used before a change.
    if following is not None:
        term = replace(term, status=DROPPED)
    if known.period.start == start:
        return [term]
    before = Period(known.period.start, start)
    return [replace(term, period=before, plan=known.plan, status=DROPPED), term]


def _say_again(history: History, news: _News, known: BillingPeriod) -> list[Term]:
    """*news* says what is known; but as of when it was so may date what comes later still."""
    if news.meter != EVERY_METER and news.meter not in history.meters:
        return []
    status = known.status
    # A trial costs nothing. Other states of payment change nothing, and cut no period.
    if "trialing" in (status, news.subscription.status) and news.start == known.period.start:
        status = news.subscription.status
    period, cycle = known.period, known.cycle
    if period.end < cycle.end:
        following = history.at(news.meter, period.end)
        if (following.plan, following.cycle) == (known.plan, cycle):
            period = Period(period.start, following.period.end)  # as in _place_in_cycle
    again = replace(news.term(period, cycle, status), finalized_at=known.finalized_at)
    return [] if again in history.terms else [again]


def _later(history: History, news: _News) -> list[Term]:
    """What is known of the subscription as of later times."""
    return [
        term
        for term in history.terms
        if term.meter in (news.meter, EVERY_METER)
        and term.subscription == news.subscription.id
        and term.known_at > news.at
    ]


def _cycle_end(later: Sequence[Term], news: _News) -> datetime:
    """When the cycle of *news* ended: earlier than it says if its anchor was reset."""
    cycle = news.item.period
    ends = [cycle.end]
    for term in later:
        # What was told of its own time; the rest was inferred, or said again of the past.
        is_end = term.status in ENDED and term.known_at == term.cycle.end
        if term.cycle.start <= term.known_at < term.cycle.end or is_end:
            if term.cycle.start == cycle.start:
                ends.append(term.cycle.end)
            elif news.start < term.cycle.start and term.cycle.end != cycle.end:
                ends.append(term.cycle.start)
    return min(ends)
