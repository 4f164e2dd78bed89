"""Billing periods: what follows from what was learnt of subscriptions, and in which order."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_c2meter.model import EVERY_METER, Period, Subscription, SubscriptionItem
from flask_c2meter.periods import DROPPED, History, Term, finalise, learn

SECOND = timedelta(seconds=1)
VERIFY = "verify_operations"


def at(text: str) -> datetime:
    """``01-15`` or ``2026-01-15 10:00`` as a moment of 2026, UTC."""
    text = text if text.startswith("20") else f"2026-{text}"
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def span(text: str) -> Period:
    """``01-10 to 02-10`` as a period of 2026."""
    start, end = text.split(" to ")
    return Period(at(start), at(end))


def subscription(cycle: str, plan: str | None = "starter", **more: Any) -> Subscription:
    return Subscription(plan, span(cycle), **{"id": "sub_1", **more})


def item(cycle: str) -> SubscriptionItem:
    return SubscriptionItem(span(cycle))


def know(
    history: History, *subscriptions: Subscription, now: str, exact: bool = False
) -> tuple[History, list[Term]]:
    terms = learn(history, subscriptions, at(now), "stripe", is_exact=exact)
    return History([*history.terms, *terms]), terms


def after(*looks: tuple[str, Subscription], exact: bool = False) -> History:
    """The history that looks at one subscription at a time have made."""
    history = History()
    for now, found in looks:
        history, _ = know(history, found, now=now, exact=exact)
    return history


def periods(history: History, *moments: str, meter: str = VERIFY) -> list[Period]:
    return [history.at(meter, at(moment)).period for moment in moments]


# -- what nothing is known of ----------------------------------------------------------------------


def test_without_knowledge_there_are_calendar_months() -> None:
    found = History().at(VERIFY, at("02-10"))
    assert found.period == found.cycle == span("02-01 to 03-01")
    assert (found.plan, found.source, found.is_billed) == (None, "calendar", False)


def test_a_month_ends_where_a_known_period_begins() -> None:
    history = after(("01-20", subscription("01-10 to 02-10")))
    assert periods(history, "01-05", "01-09 23:59:59") == [span("01-01 to 01-10")] * 2
    assert periods(history, "01-10", "02-09 23:59:59") == [span("01-10 to 02-10")] * 2


def test_a_known_cycle_goes_on_by_itself() -> None:
    history = after(("01-20", subscription("01-10 to 02-10")))
    assert periods(history, "02-10", "03-15", "12-25") == [
        span("02-10 to 03-10"),
        span("03-10 to 04-10"),
        span("12-10 to 2027-01-10"),
    ]
    found = history.at(VERIFY, at("12-25"))
    assert (found.plan, found.is_billed, found.is_known) == ("starter", True, False)


@pytest.mark.parametrize(
    ("cycle", "ends"),
    [
        ("01-31 to 02-28", ["03-31", "04-30", "05-31", "06-30"]),
        ("02-28 to 03-31", ["04-30", "05-31"]),
        ("2028-01-31 to 2028-02-29", ["2028-03-31", "2028-04-30"]),
        ("01-30 to 02-28", ["03-30", "04-30"]),
        ("01-15 09:30 to 02-15 09:30", ["03-15 09:30", "04-15 09:30"]),
        ("01-01 to 2027-01-01", ["2028-01-01"]),
        ("01-05 to 01-12", ["01-19", "01-26", "02-02"]),
        ("01-15 09:30 to 02-15 09:31", ["03-18 09:32"]),
    ],
)
def test_months_are_counted_on_the_anchor_day(cycle: str, ends: list[str]) -> None:
    history = after((cycle.split(" to ")[0], subscription(cycle)))
    start = span(cycle).end
    for end in map(at, ends):
        assert history.at(VERIFY, start).period == Period(start, end)
        start = end


@given(
    start=st.datetimes(datetime(2024, 1, 1), datetime(2028, 1, 1)).map(
        lambda moment: moment.replace(microsecond=0, tzinfo=UTC)
    ),
    ahead=st.integers(0, 4_000 * 86_400),
)
def test_periods_that_follow_have_no_gaps(start: datetime, ahead: int) -> None:
    end = (start.replace(day=1) + timedelta(days=32)).replace(day=min(start.day, 28))
    history = History(learn(History(), [Subscription("p", Period(start, end))], start, "loader"))
    found = history.at(VERIFY, start + timedelta(seconds=ahead)).period
    assert found.start <= start + timedelta(seconds=ahead) < found.end
    assert history.at(VERIFY, found.end - SECOND).period == found
    assert history.at(VERIFY, found.end).period.start == found.end


# -- looks at one subscription ---------------------------------------------------------------------


def test_the_same_news_twice_is_news_once() -> None:
    history, first = know(History(), subscription("01-10 to 02-10"), now="01-20")
    history, second = know(history, subscription("01-10 to 02-10"), now="01-25")
    assert (len(first), second) == (1, [])


def test_each_cycle_is_written_down_as_it_comes() -> None:
    history = after(("01-20", subscription("01-10 to 02-10")))
    history, terms = know(history, subscription("02-10 to 03-10"), now="02-11")
    assert [term.period for term in terms] == [span("02-10 to 03-10")]
    assert history.at(VERIFY, at("02-20")).is_known


def test_a_change_of_plan_cuts_the_period_and_not_the_cycle() -> None:
    history = after(
        ("01-20", subscription("01-10 to 02-10")),
        ("01-25 12:00", subscription("01-10 to 02-10", "growth")),
        exact=True,
    )
    before, now = (history.at(VERIFY, at(moment)) for moment in ("01-25", "01-25 12:00"))
    assert (before.period, before.plan) == (span("01-10 to 01-25 12:00"), "starter")
    assert (now.period, now.plan) == (span("01-25 12:00 to 02-10"), "growth")
    assert before.cycle == now.cycle == span("01-10 to 02-10")
    assert history.billed_with(VERIFY, at("02-01")) == [before, now]
    assert periods(history, "02-10") == [span("02-10 to 03-10")]


def test_two_changes_of_plan_make_three_periods_of_one_invoice() -> None:
    history = after(
        ("01-11", subscription("01-10 to 02-10")),
        ("01-20", subscription("01-10 to 02-10", "growth")),
        ("02-01", subscription("01-10 to 02-10", "starter")),
        exact=True,
    )
    found = history.billed_with(VERIFY, at("01-12"))
    assert [(each.plan, each.period) for each in found] == [
        ("starter", span("01-10 to 01-20")),
        ("growth", span("01-20 to 02-01")),
        ("starter", span("02-01 to 02-10")),
    ]


def test_a_change_at_the_start_of_a_cycle_leaves_nothing_of_the_old_plan() -> None:
    history = after(
        ("01-10", subscription("01-10 to 02-10")),
        ("01-10", subscription("01-10 to 02-10", "growth")),
    )
    (only,) = history.billed_with(VERIFY, at("01-20"))
    assert (only.plan, only.period) == ("growth", span("01-10 to 02-10"))


def test_in_classic_mode_what_was_used_before_a_change_is_dropped() -> None:
    history = after(
        ("01-20", subscription("01-10 to 02-10", billing_mode="classic")),
        ("01-25", subscription("01-10 to 02-10", "growth", billing_mode="classic")),
    )
    before = history.at(VERIFY, at("01-24"))
    assert (before.status, before.is_billed, before.plan) == (DROPPED, False, "starter")
    assert history.at(VERIFY, at("01-25")).is_billed


def test_a_reset_of_the_anchor_ends_the_cycle_at_once() -> None:
    history = after(
        ("01-20", subscription("01-10 to 02-10")),
        ("01-25", subscription("01-25 to 02-25")),
    )
    before, now = (history.at(VERIFY, at(moment)) for moment in ("01-24", "01-25"))
    assert before.period == before.cycle == span("01-10 to 01-25")
    assert now.period == now.cycle == span("01-25 to 02-25")


def test_a_reset_after_a_change_ends_the_cycle_of_both_plans() -> None:
    history = after(
        ("01-12", subscription("01-10 to 02-10")),
        ("01-20", subscription("01-10 to 02-10", "growth")),
        ("01-25", subscription("01-25 to 02-25", "growth")),
        exact=True,
    )
    found = history.billed_with(VERIFY, at("01-24"))
    assert [(each.plan, each.period) for each in found] == [
        ("starter", span("01-10 to 01-20")),
        ("growth", span("01-20 to 01-25")),
    ]
    assert {each.cycle.end for each in found} == {at("01-25")}


def test_a_reset_with_a_new_plan_is_both_at_once() -> None:
    history = after(
        ("01-12", subscription("01-10 to 02-10")),
        ("01-25", subscription("01-25 to 02-25", "growth")),
    )
    assert [history.at(VERIFY, at(moment)).plan for moment in ("01-24", "01-25")] == [
        "starter",
        "growth",
    ]


def test_a_status_alone_moves_nothing() -> None:
    history = after(
        ("01-20", subscription("01-10 to 02-10", status="trialing")),
        ("01-25", subscription("01-10 to 02-10", status="past_due")),
    )
    (only,) = history.billed_with(VERIFY, at("01-20"))
    assert (only.period, only.status) == (span("01-10 to 02-10"), "past_due")


def test_a_cycle_that_ends_otherwise_keeps_its_start() -> None:
    history = after(
        ("01-20", subscription("01-10 to 02-10")),
        ("01-25", subscription("01-10 to 02-05")),
    )
    assert periods(history, "01-12") == [span("01-10 to 02-05")]


def test_cycles_before_the_first_known_one_are_taken_for_the_same() -> None:
    found = subscription("03-10 to 04-10", started_at=at("01-20"))
    history = after(("03-15", found))
    assert periods(history, "03-01", "02-09", "01-19") == [
        span("02-10 to 03-10"),
        span("01-20 to 02-10"),
        span("01-01 to 01-20"),
    ]
    assert not history.at(VERIFY, at("01-19")).is_billed


# -- ends ------------------------------------------------------------------------------------------


def ended(cycle: str, at_: str, **more: Any) -> Subscription:
    return subscription(cycle, status="canceled", ended_at=at(at_), **more)


def test_a_subscription_that_ends_at_its_periods_end_is_followed_by_calendar_months() -> None:
    history = after(
        ("01-20", subscription("01-10 to 02-10")),
        ("02-10", ended("01-10 to 02-10", "02-10")),
    )
    assert periods(history, "02-09", "02-15", "03-15") == [
        span("01-10 to 02-10"),
        span("02-10 to 03-01"),
        span("03-01 to 04-01"),
    ]
    assert [history.at(VERIFY, at(moment)).is_billed for moment in ("02-09", "02-10")] == [
        True,
        False,
    ]


def test_a_subscription_that_is_cancelled_at_once_ends_its_cycle_there() -> None:
    history = after(
        ("01-20", subscription("01-10 to 02-10")),
        ("01-26", ended("01-10 to 02-10", "01-25")),
    )
    found = history.at(VERIFY, at("01-24"))
    assert found.period == found.cycle == span("01-10 to 01-25")
    assert (found.status, found.is_billed) == ("canceled", True)
    assert periods(history, "01-25") == [span("01-25 to 02-01")]


def test_an_end_learnt_twice_is_learnt_once() -> None:
    history = after(
        ("01-20", subscription("01-10 to 02-10")),
        ("01-26", ended("01-10 to 02-10", "01-25")),
    )
    assert know(history, ended("01-10 to 02-10", "01-25"), now="01-27")[1] == []
    assert know(history, now="01-28")[1] == []


def test_an_end_of_what_was_never_known_teaches_what_it_ends() -> None:
    """Usage was billed up to there; Stripe takes more of it for 35 days."""
    history, _ = know(History(), ended("01-10 to 02-10", "01-25"), now="01-27")
    assert periods(history, "01-12") == [span("01-10 to 01-25")]
    assert history.at(VERIFY, at("01-12")).is_billed
    assert not history.at(VERIFY, at("01-26")).is_billed
    assert know(history, ended("01-10 to 02-10", "01-25"), now="01-28")[1] == []
    assert know(History(), ended("01-10 to 02-10", "01-25"), now="03-02")[1] == []


def test_an_end_of_what_was_never_known_takes_nothing_from_what_is() -> None:
    history = after(("01-20", subscription("01-10 to 02-10", id="sub_2")))
    over = ended("01-10 to 02-10", "01-25", id="sub_1")
    assert know(history, over, subscription("01-10 to 02-10", id="sub_2"), now="01-27")[1] == []


def test_no_subscription_at_all_ends_what_was_known() -> None:
    history = after(("01-20", subscription("01-10 to 02-10")))
    history, _ = know(history, now="01-25")
    assert periods(history, "01-24", "01-25") == [span("01-10 to 01-25"), span("01-25 to 02-01")]


def test_a_new_subscription_after_a_cancelled_one_begins_where_it_begins() -> None:
    old = ended("01-10 to 02-10", "01-25", id="sub_old")
    history = after(("01-20", subscription("01-10 to 02-10", id="sub_old")), ("01-26", old))
    history, _ = know(history, old, subscription("02-05 to 03-05", "growth"), now="02-06")
    assert periods(history, "01-12", "01-30", "02-02", "02-05") == [
        span("01-10 to 01-25"),
        span("01-25 to 02-01"),
        span("02-01 to 02-05"),
        span("02-05 to 03-05"),
    ]


# -- several subscriptions, several items ----------------------------------------------------------


def test_the_active_one_speaks_for_the_customer() -> None:
    history, _ = know(
        History(),
        subscription("01-05 to 02-05", "past", status="past_due", id="sub_a"),
        subscription("01-10 to 02-10", "active", id="sub_b"),
        now="01-20",
    )
    assert history.at(VERIFY, at("01-20")).plan == "active"


def test_a_meter_follows_the_item_of_its_own_price() -> None:
    history, terms = know(
        History(),
        subscription("01-10 to 02-10", items={"storage": item("01-01 to 2027-01-01")}),
        now="01-20",
    )
    assert len(terms) == 2
    assert periods(history, "01-20", meter="storage") == [span("01-01 to 2027-01-01")]
    assert periods(history, "01-20") == [span("01-10 to 02-10")]


def test_a_meter_of_another_subscription_has_its_plan_and_period() -> None:
    history, _ = know(
        History(),
        subscription("01-10 to 02-10", items={VERIFY: item("01-10 to 02-10")}, id="sub_a"),
        subscription(
            "01-15 to 02-15",
            "addon",
            items={"s": item("01-15 to 02-15")},
            id="sub_b",
        ),
        now="01-20",
    )
    assert history.at("s", at("01-20")).plan == "addon"
    assert history.at(VERIFY, at("01-20")).plan == "starter"


def test_an_item_that_begins_in_mid_cycle_is_billed_with_the_rest() -> None:
    history = after(("01-12", subscription("01-10 to 02-10")))
    later = subscription("01-10 to 02-10", items={VERIFY: item("01-20 to 02-10")})
    history, _ = know(history, later, now="01-21")
    assert [each.period for each in history.billed_with(VERIFY, at("01-30"))] == [
        span("01-10 to 01-20"),
        span("01-20 to 02-10"),
    ]
    assert know(history, later, now="01-22")[1] == []


def test_a_reset_that_is_noticed_after_the_old_cycles_end_has_ended_that_cycle() -> None:
    history = after(
        ("01-12", subscription("01-10 to 02-10")), ("02-12", subscription("01-30 to 02-28"))
    )
    found = history.at(VERIFY, at("01-15"))
    assert found.period == found.cycle == span("01-10 to 01-30")
    assert history.at(VERIFY, at("02-11")).period == span("01-30 to 02-28")


# -- what is final ---------------------------------------------------------------------------------


def test_a_final_invoice_closes_all_periods_of_its_cycle() -> None:
    history = after(
        ("01-12", subscription("01-10 to 02-10")),
        ("01-20", subscription("01-10 to 02-10", "growth")),
        ("02-10", subscription("02-10 to 03-10", "growth")),
        exact=True,
    )
    terms = finalise(history, at("02-10"), at("02-10 01:00"))
    history = History([*history.terms, *terms])
    closed = [history.at(VERIFY, at(moment)).finalized_at for moment in ("01-15", "01-25")]
    assert closed == [at("02-10 01:00")] * 2
    assert history.at(VERIFY, at("02-15")).finalized_at is None
    assert finalise(history, at("02-10"), at("02-10 02:00")) == []
    assert finalise(history, at("02-09"), at("02-10 02:00")) == []


def test_the_final_invoice_of_a_cycle_that_only_followed_closes_it_too() -> None:
    history = after(("01-12", subscription("01-10 to 02-10")))
    history = History([*history.terms, *finalise(history, at("03-10"), at("03-10 01:00"))])
    assert history.at(VERIFY, at("02-20")).finalized_at == at("03-10 01:00")
    assert history.at(VERIFY, at("03-20")).finalized_at is None


LOOKS = st.lists(
    st.tuples(
        st.sampled_from(["starter", "growth", "scale"]),
        st.sampled_from(["active", "past_due", "canceled"]),
        st.integers(0, 40),
        st.booleans(),
    ),
    max_size=8,
)


@given(looks=LOOKS, moments=st.lists(st.integers(-40, 400), min_size=1, max_size=10))
def test_whatever_is_learnt_every_moment_lies_in_one_period(
    looks: list[tuple[str, str, int, bool]], moments: list[int]
) -> None:
    history, now, start = History(), at("01-10"), at("01-10")
    for plan, status, days, reset in looks:
        now += timedelta(days=days)
        start = now if reset else history.at(VERIFY, now).cycle.start if history.terms else start
        end = start + timedelta(days=30)
        over = now if status == "canceled" else None
        found = Subscription(plan, Period(start, end), status, id="sub_1", ended_at=over)
        history = History([*history.terms, *learn(history, [found], now, "stripe")])
    for days in moments:
        moment = at("01-10") + timedelta(days=days, hours=5)
        found_period = history.at(VERIFY, moment)
        period = found_period.period
        assert period.start <= moment < period.end
        assert history.at(VERIFY, period.start).period == period
        assert history.at(VERIFY, period.end - SECOND).period == period
        assert history.at(VERIFY, period.end).period.start == period.end
        assert found_period in history.billed_with(VERIFY, moment)
    assert EVERY_METER not in history.meters
