"""News of a subscription that is overtaken by newer news: it is learnt in its place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_c2meter.late_news import learn_late
from flask_c2meter.model import Period, Subscription, SubscriptionItem
from flask_c2meter.periods import DROPPED, BillingPeriod, History, finalise, learn

VERIFY = "verify_operations"
START = datetime(2026, 1, 10, tzinfo=UTC)
DAY, HOUR = timedelta(days=1), timedelta(hours=1)

News = tuple[datetime, Subscription]


def at(text: str) -> datetime:
    return datetime.fromisoformat(f"2026-{text}").replace(tzinfo=UTC)


def span(text: str) -> Period:
    start, end = text.split(" to ")
    return Period(at(start), at(end))


def news(moment: str, cycle: str, plan: str = "starter", **more: Any) -> News:
    more = {"id": "sub_1", "started_at": START, **more}
    return at(moment), Subscription(plan, span(cycle), **more)


def heard(*told: News, history: History | None = None) -> History:
    """The history that webhooks have made, in the order in which they came."""
    history, latest = history or History(), None
    for moment, found in told:
        if latest is not None and moment < latest:
            terms = learn_late(history, [found], moment, "stripe", latest)
        else:
            terms, latest = learn(history, [found], moment, "stripe", is_exact=True), moment
            if not terms:  # the store does so where the news says that its items have changed
                terms = learn_late(history, [found], moment, "stripe", moment)
        history = History([*history.terms, *terms])
    return history


def seen(history: History, meter: str = VERIFY) -> list[tuple[Period, str | None, str]]:
    """The periods of half a year, the plan of each, and whether it is billed."""
    found: list[BillingPeriod] = []
    moment = START
    while moment < START + 180 * DAY:
        found.append(history.at(meter, moment))
        moment = found[-1].period.end
    return [(each.period, each.plan, "billed" if each.is_billed else each.status) for each in found]


CREATED = news("01-10", "01-10 to 02-10")
UPGRADED = news("01-20", "01-10 to 02-10", "growth")
UPGRADED_AGAIN = news("01-25", "01-10 to 02-10", "scale")


# -- what was before -------------------------------------------------------------------------------


def test_a_plan_that_is_told_of_last_was_there_before_the_one_told_of_first() -> None:
    history = heard(UPGRADED, CREATED)
    assert seen(history)[:2] == [
        (span("01-10 to 01-20"), "starter", "billed"),
        (span("01-20 to 02-10"), "growth", "billed"),
    ]


@pytest.mark.parametrize(
    "order", ["012", "021", "102", "120", "201", "210"], ids=lambda order: f"order {order}"
)
def test_three_plans_are_told_of_in_any_order(order: str) -> None:
    told = [CREATED, UPGRADED, UPGRADED_AGAIN]
    assert seen(heard(*(told[int(number)] for number in order))) == seen(heard(*told))


def test_what_says_nothing_new_still_dates_what_comes_later_still() -> None:
    """The same plan at another time: what is told of last was over before it."""
    renamed = news("01-25", "01-10 to 02-10", "growth")
    assert seen(heard(renamed, UPGRADED, CREATED)) == seen(heard(CREATED, UPGRADED, renamed))


def test_a_change_noticed_later_than_it_was_made_is_dated_by_its_news() -> None:
    history = heard(CREATED)
    found = Subscription("growth", span("01-10 to 02-10"), id="sub_1", started_at=START)
    noticed = learn(history, [found], at("01-27"), "stripe")
    history = History([*history.terms, *noticed])
    assert history.at(VERIFY, at("01-26")).plan == "starter"

    terms = learn_late(history, [UPGRADED[1]], UPGRADED[0], "stripe", at("01-27"))
    history = History([*history.terms, *terms])

    assert seen(history) == seen(heard(CREATED, UPGRADED))
    assert learn_late(history, [UPGRADED[1]], UPGRADED[0], "stripe", at("01-27")) == []


def test_old_news_of_a_plan_that_was_left_changes_nothing_of_now() -> None:
    before = heard(CREATED, UPGRADED)
    late = learn_late(before, [CREATED[1]], at("01-15"), "stripe", at("01-20"))
    assert seen(History([*before.terms, *late])) == seen(before)


# -- cycles ----------------------------------------------------------------------------------------

RESET = news("01-22", "01-22 to 02-22", "growth")
NEXT = news("02-10", "02-10 to 03-10")


@pytest.mark.parametrize("told", [(CREATED, RESET), (CREATED, NEXT), (CREATED, UPGRADED, RESET)])
def test_a_cycle_is_learnt_after_the_one_that_followed_it(told: Sequence[News]) -> None:
    assert seen(heard(*reversed(told))) == seen(heard(*told))


def test_a_cycle_that_could_only_be_inferred_is_put_right_by_its_own_news() -> None:
    """An anchor that was reset after two cycles: counted back from it, those lie elsewhere."""
    reset = news("02-15", "02-15 to 03-15")
    assert seen(heard(reset))[0] == (span("01-10 to 01-15"), "starter", "billed")
    assert seen(heard(reset, NEXT, CREATED))[:4] == seen(heard(CREATED, NEXT, reset))[:4]


def test_a_trial_that_is_told_of_after_its_end_was_one() -> None:
    trial = news("01-10", "01-10 to 01-20", status="trialing")
    over = news("01-20", "01-20 to 02-20")
    history = heard(over, trial)
    assert [history.at(VERIFY, at(day)).status for day in ("01-15", "01-25")] == [
        "trialing",
        "active",
    ]


def test_a_late_state_of_payment_cuts_no_period() -> None:
    owing = news("01-20", "01-10 to 02-10", status="past_due")
    paid = news("01-25", "01-10 to 02-10")
    assert seen(heard(CREATED, paid, owing)) == seen(heard(CREATED))


def test_a_final_period_stays_final_whatever_is_told_of_it_late() -> None:
    history = heard(CREATED, UPGRADED_AGAIN, NEXT)
    closed = finalise(history, at("02-10"), at("02-10 01:00"), "sub_1")
    history = History([*history.terms, *closed])
    for moment, found in (UPGRADED, CREATED):
        late = learn_late(history, [found], moment, "stripe", at("02-10"))
        history = History([*history.terms, *late])
    assert [
        (each.plan, each.finalized_at) for each in history.billed_with(VERIFY, at("01-12"))
    ] == [(plan, at("02-10 01:00")) for plan in ("starter", "growth", "scale")]


# -- ends, and others ------------------------------------------------------------------------------

OVER = news("01-25", "01-10 to 02-10", status="canceled", ended_at=at("01-25"))


def test_what_is_told_of_an_ended_subscription_does_not_revive_it() -> None:
    history = heard(CREATED, OVER, UPGRADED)
    assert seen(history)[:2] == [
        (span("01-10 to 01-20"), "starter", "billed"),
        (span("01-20 to 01-25"), "growth", "billed"),
    ]
    assert not history.at(VERIFY, at("01-25")).is_billed


def test_an_end_that_is_told_of_late_ends_only_what_it_is_of() -> None:
    anew = news("02-05", "02-05 to 03-05", "growth", id="sub_2", started_at=at("02-05"))
    history = heard(CREATED, anew)
    late = learn_late(history, [OVER[1]], OVER[0], "stripe", at("02-05"))
    history = History([*history.terms, *late])
    assert history.at(VERIFY, at("01-24")).period == span("01-10 to 01-25")
    assert history.at(VERIFY, at("02-05")).subscription == "sub_2"


def test_of_a_time_that_another_subscription_has_nothing_is_learnt() -> None:
    other = news("01-15", "01-10 to 02-10", "growth", id="sub_2")
    assert seen(heard(CREATED, UPGRADED_AGAIN, other)) == seen(heard(CREATED, UPGRADED_AGAIN))


def test_a_time_before_all_that_is_known_is_learnt_up_to_there() -> None:
    known = news("02-05", "02-05 to 03-05", "growth", id="sub_2", started_at=at("02-05"))
    history = heard(known, CREATED)
    assert history.at(VERIFY, at("02-04")).period == span("01-10 to 02-05")
    assert history.at(VERIFY, at("02-05")).plan == "growth"


def test_a_cycle_is_learnt_as_a_whole_by_whichever_news_of_it_comes_first() -> None:
    known = news("02-05", "02-05 to 03-05", "growth", id="sub_2", started_at=at("02-05"))
    same_plan = news("01-20", "01-10 to 02-10")
    assert seen(heard(known, same_plan))[0] == (span("01-10 to 02-05"), "starter", "billed")
    assert seen(heard(known, same_plan, CREATED)) == seen(heard(known, same_plan))
    assert seen(heard(known, UPGRADED, CREATED))[:2] == [
        (span("01-10 to 01-20"), "starter", "billed"),
        (span("01-20 to 02-05"), "growth", "billed"),
    ]


def test_an_inferred_cycle_gives_way_as_a_whole() -> None:
    reset = news("02-15", "02-15 to 03-15")
    history = heard(reset, news("02-12", "02-10 to 03-10"))
    assert history.at(VERIFY, at("02-11")).period == span("02-10 to 02-15")


def test_what_is_told_after_a_cycle_that_was_inferred_ends_the_one_before_it() -> None:
    reset = news("02-15", "02-15 to 03-15")
    history = heard(CREATED, reset, news("02-12", "01-20 to 02-20"))
    assert history.at(VERIFY, at("01-19")).cycle == span("01-10 to 01-20")
    assert history.at(VERIFY, at("01-20")).cycle == span("01-20 to 02-15")


def test_classic_mode_drops_what_was_before_a_change_however_late_it_is_told_of() -> None:
    told = [
        (moment, Subscription(each.plan, each.period, id="sub_1", billing_mode="classic"))
        for moment, each in (CREATED, UPGRADED, UPGRADED_AGAIN)
    ]
    for order in ([0, 2, 1], [2, 1, 0], [1, 2, 0]):
        history = heard(*(told[number] for number in order))
        assert [history.at(VERIFY, at(day)).status for day in ("01-12", "01-22", "01-26")] == [
            DROPPED,
            DROPPED,
            "active",
        ], order


def test_each_meter_is_told_of_by_its_own_item() -> None:
    def with_sites(moment: str, plan: str) -> News:
        items = {"active_sites": SubscriptionItem(span("01-15 to 02-15"), plan)}
        return news(moment, "01-10 to 02-10", "starter", items=items)

    told = [with_sites("01-15", "starter"), with_sites("01-20", "growth")]
    late = heard(*reversed(told))
    assert seen(late, "active_sites")[-6:] == seen(heard(*told), "active_sites")[-6:]
    assert late.at("active_sites", at("01-17")).plan == "starter"
    assert late.at(VERIFY, at("01-22")).plan == "starter"


# -- in any order ----------------------------------------------------------------------------------


@given(
    steps=st.lists(
        st.tuples(
            st.integers(1, 12),
            st.sampled_from(["starter", "growth", "scale"]),
            st.sampled_from(["changed", "reset"]),
        ),
        max_size=5,
    ),
    data=st.data(),
)
def test_whatever_the_order_a_life_is_learnt_as_it_was(
    steps: list[tuple[int, str, str]], data: st.DataObject
) -> None:
    month = timedelta(days=30)
    moment, cycle = START, Period(START, START + month)
    told = [(START, Subscription("starter", cycle, id="sub_1", started_at=START))]
    for days, plan, what in steps:
        moment += days * DAY + HOUR  # no reset meets the end of a cycle by chance
        while cycle.end <= moment:
            cycle = Period(cycle.end, cycle.end + month)
            told.append((cycle.start, replace(told[-1][1], period=cycle)))
        if what == "reset":
            cycle = Period(moment, moment + month)
        told.append((moment, replace(told[-1][1], plan=plan, period=cycle)))
    in_order, shuffled = heard(*told), heard(*data.draw(st.permutations(told)))
    while moment >= START:
        found = [history.at(VERIFY, moment) for history in (in_order, shuffled)]
        assert found[0].period == found[1].period
        assert found[0].plan == found[1].plan
        assert found[0].cycle.end == found[1].cycle.end
        moment -= DAY / 2
