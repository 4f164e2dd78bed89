"""Scripted lives of a subscription: ledger, bill, page and the emulator's invoices agree exactly.

The invoices are rated by the emulator's own code, from the meter events it has received; the
quantities are checked against what each test says has happened.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from billing_rig import CUSTOMER, HOUR, SITES, STORAGE, VERIFY, Account, at, billed

from flask_c2meter.model import Period


@pytest.fixture
def account(tmp_path: Path) -> Iterator[Account]:
    with billed(tmp_path) as account:
        yield account


def period(account: Account, moment: str, meter: str = VERIFY) -> Period:
    return account.store.standing(CUSTOMER).history.at(meter, at(moment)).period


def test_01_two_plain_months(account: Account) -> None:
    account.subscribe("starter")
    account.use(35)
    account.go("01-20")
    account.use(40)
    account.use("0.750", meter=STORAGE)
    account.go("02-11")
    account.use(7)
    account.go("03-12")
    first, second = account.assert_agrees(2)
    # 75 used, 20 included: 50 at 4.35 cents, 5 at 2.5 and their flat fee; 0.25 GB at 12.5 cents.
    assert first.total == round(50 * 4.35 + 5 * 2.5 + 100) + 3
    assert second.total == 0


def test_02_an_upgrade_in_mid_cycle(account: Account) -> None:
    account.subscribe("starter")
    account.use(90)
    account.go("01-20 10:00:07")
    account.change("starter", "growth")
    account.use(160)
    account.go("02-12")
    (invoice,) = account.assert_agrees(1)
    assert len({line.period_start for line in invoice.lines if line.meter == VERIFY}) == 2


def test_03_a_downgrade_in_mid_cycle(account: Account) -> None:
    account.subscribe("growth")
    account.use(100)
    account.go("01-25")
    account.change("growth", "starter")
    account.use(100)
    account.go("02-12")
    account.assert_agrees(1)


def test_04_up_and_down_again_within_a_cycle(account: Account) -> None:
    account.subscribe("starter")
    account.use(30)
    account.go("01-15")
    account.change("starter", "growth")
    account.use(200)
    account.go("01-20")
    account.change("growth", "starter")
    account.use(31)
    account.go("02-12")
    account.assert_agrees(1)


def test_05_to_a_plan_without_limits_and_back(account: Account) -> None:
    account.subscribe("starter")
    account.use(1000)
    account.go("01-15")
    account.change("starter", "scale")
    account.use(1000)
    account.go("01-20")
    account.change("scale", "starter")
    account.use(5)
    account.go("02-12")
    account.assert_agrees(1)


def test_06_a_reset_of_the_anchor(account: Account) -> None:
    account.subscribe("starter")
    account.use(50)
    account.go("01-22 08:15:30")
    account.change("starter", "starter", reset=True)
    account.use(60)
    account.go("02-23")
    account.assert_agrees(2)
    assert period(account, "02-22 09:00") == Period(at("02-22 08:15:30"), at("03-22 08:15:30"))


def test_07_an_upgrade_that_resets_the_anchor(account: Account) -> None:
    account.subscribe("starter")
    account.use(50)
    account.go("01-22 08:15:30")
    account.change("starter", "growth", reset=True)
    account.use(180)
    account.go("02-23")
    account.assert_agrees(2)


def test_08_cancelled_at_once(account: Account) -> None:
    account.subscribe("starter")
    account.use(120)
    account.go("01-25")
    account.cancel()
    account.use(10)  # nobody is billed for it
    account.go("02-12")
    account.assert_agrees(1)
    assert not account.store.standing(CUSTOMER).history.at(VERIFY, at("01-26")).is_billed


def test_09_cancelled_at_the_end_of_the_period(account: Account) -> None:
    account.subscribe("starter")
    account.use(70)
    account.go("01-25")
    account.cancel(at_period_end=True)
    account.use(30)
    account.go("02-12")
    account.use(10)
    account.go("03-12")
    account.assert_agrees(1)


def test_10_cancelled_and_subscribed_again(account: Account) -> None:
    account.subscribe("starter")
    account.use(70)
    account.go("01-25")
    account.cancel()
    account.go("02-03")
    account.use(5)  # between two subscriptions
    account.go("02-05")
    account.subscribe("growth")
    account.use(170)
    account.go("03-07")
    account.assert_agrees(2)


def test_11_a_period_learnt_after_its_usage_was_shipped(account: Account) -> None:
    """The usage lies in calendar months first; part of it moves, and Stripe hears nothing twice."""
    account.use(40)
    account.go("01-10 00:00:30")
    account.go("02-03")
    account.use(35)
    account.go("02-03 00:01")
    account.subscribe("starter", start=at("01-10"))
    account.work()
    assert period(account, "02-03") == Period(at("01-10"), at("02-10"))
    account.go("02-12")
    account.assert_agrees(1)
    assert account.states() == {"delivered": 75}


def test_12_a_maximum_that_moves_into_the_true_period(account: Account) -> None:
    account.use("2.0", meter=STORAGE)
    account.go("01-20")
    account.use("1.5", meter=STORAGE)  # no rise within January
    account.go("01-25")
    account.subscribe("starter", start=at("01-15"))
    account.work()
    account.go("02-16")
    (invoice,) = account.assert_agrees(1)
    assert [line.quantity for line in invoice.lines if line.meter == STORAGE] == [1500]


def test_13_sites_count_once_in_each_period(account: Account) -> None:
    account.subscribe("growth")
    for domain in ("a.example", "b.example", "a.example", "c.example"):
        account.use(domain, meter=SITES)
    account.go("01-20")
    account.change("growth", "starter")
    account.use("a.example", meter=SITES)
    account.go("02-11")
    account.use("a.example", meter=SITES)
    account.go("03-11")
    first, second = account.assert_agrees(2)
    assert [line.quantity for line in first.lines if line.meter == SITES] == [3, 1]
    assert [line.quantity for line in second.lines if line.meter == SITES] == [1]


def test_14_events_a_second_before_at_and_after_the_end(account: Account) -> None:
    account.go("01-10 06:30:15")
    account.subscribe("starter")
    for moment in ("02-10 06:30:14", "02-10 06:30:15", "02-10 06:30:16"):
        account.go(moment, work=False)
        account.use(21)
        account.clock.now += timedelta(milliseconds=900)
        account.use(21)
    account.go("02-10 06:31")
    account.go("03-11")
    first, second = account.assert_agrees(2)
    quantities = [
        line.quantity for i in (first, second) for line in i.lines if line.meter == VERIFY
    ]
    assert quantities == [42, 84]


def test_15_stripe_is_down_over_the_end_and_back_within_the_grace(account: Account) -> None:
    account.subscribe("starter")
    account.use(30)
    account.go("02-09 23:50")
    account.stripe.fail(503, times=None, path="*meter_events")
    account.use(45)
    account.go("02-10 00:20")
    account.stripe.recover()
    account.clock.now += timedelta(minutes=6)
    account.work()
    account.go("02-11")
    account.assert_agrees(1)


def test_16_what_comes_after_the_grace_is_flagged_and_not_shipped(account: Account) -> None:
    account.subscribe("starter")
    account.use(30)
    account.go("02-09 23:50", work=False)
    account.use(45)  # no worker works until the invoice is final
    account.go("02-10 02:00", work=False)
    account.work()
    (invoice,) = account.invoices()
    assert [line.quantity for line in invoice.lines if line.meter == VERIFY] == [0]
    assert {shipment.reason for shipment in account.store.shipments("dead")} == {"late"}
    assert account.states() == {"dead": 75}
    assert "2 dead shipments wait" in account.metering.status()["problems"][0]
    assert list(account.store.verify()) == []


def test_17_an_anchor_on_the_31st(tmp_path: Path) -> None:
    with billed(tmp_path, start="01-31 12:00:00") as account:
        account.subscribe("starter")
        account.use(50)
        for moment in ("02-28 11:59:59", "02-28 12:00:00", "03-31 11:59:59", "03-31 12:00:00"):
            account.go(moment)
            account.use(25)
        account.go("04-30 13:30")
        assert len(account.assert_agrees(3)) == 3
        assert period(account, "04-15") == Period(at("03-31 12:00"), at("04-30 12:00"))


def test_18_a_leap_february(tmp_path: Path) -> None:
    with billed(tmp_path, start="2028-01-29 00:00:00") as account:
        account.subscribe("starter")
        account.use(25)
        account.go("2028-02-29 00:00:00")
        account.use(26)
        account.go("2028-03-29 02:00:00")
        account.assert_agrees(2)


def test_19_a_trial_is_free_and_then_it_counts(account: Account) -> None:
    account.subscribe("starter", trial_end=at("01-20"))
    account.use(80)
    account.go("01-21")
    assert account.store.standing(CUSTOMER).history.at(VERIFY, at("01-12")).status == "trialing"
    account.use(80)
    account.go("02-21")
    first, second = account.assert_agrees(2)
    assert (first.total, second.total > 0) == (0, True)


def test_20_past_due_counts_like_active(account: Account) -> None:
    account.subscribe("starter")
    account.use(60)
    account.go("01-20")
    account.stripe.set_status(account.subscription, "past_due")
    account.settle()
    account.use(60)
    account.go("02-12")
    account.assert_agrees(1)


def test_21_a_change_in_classic_mode_drops_what_was_before_and_says_so(account: Account) -> None:
    account.subscribe("starter", billing_mode="classic")
    account.use(90)
    account.go("01-20")
    account.change("starter", "growth")
    account.use(160)
    account.go("02-12")
    account.assert_agrees(1)
    (note,) = account.metering.status()["notes"]
    assert "1 customers (cus_1): usage before a change of price" in note


def test_22_a_webhook_that_comes_after_the_change_was_noticed(account: Account) -> None:
    account.subscribe("starter")
    account.use(50)
    account.go("01-20")
    account.hold_webhooks()
    account.change("starter", "growth")
    account.go("01-20 09:00", work=False)
    account.use(170)  # on the new plan already
    account.go("01-20 10:00", work=False)
    account.metering.usage(CUSTOMER)  # somebody looks, so that the worker asks Stripe
    account.work()
    assert period(account, "01-20 10:00").start == at("01-20 10:00")
    account.release_webhooks()
    assert period(account, "01-20 10:00").start == at("01-20")
    account.go("02-12")
    account.assert_agrees(1)


def test_23_webhooks_twice_and_in_the_wrong_order(account: Account) -> None:
    account.hold_webhooks()
    account.subscribe("starter")
    account.use(50)
    account.go("01-20")
    account.change("starter", "growth")
    account.use(160)
    account.go("01-21")
    account.change("growth", "starter")
    account.use(40)
    account.release_webhooks()
    for delivery in reversed(account.stripe.webhook_deliveries):
        account.stripe.resend(delivery.event)
    account.settle()
    account.go("02-12")
    account.assert_agrees(1)


def test_24_without_webhooks_each_new_cycle_is_noticed(account: Account) -> None:
    account.hold_webhooks()
    account.subscribe("starter")
    account.use(50)
    for moment in ("02-10 00:01", "03-10 00:01", "04-10 02:00"):
        account.go(moment)
        account.use(33)
    account.assert_agrees(3)
    history = account.store.standing(CUSTOMER).history
    assert [term.period.start for term in history.terms] == [
        at(f"0{month}-10") for month in (1, 2, 3, 4)
    ]


def test_25_an_item_is_replaced_by_another(account: Account) -> None:
    account.subscribe("starter")
    account.use(50)
    account.go("01-20")
    account.stripe.remove_item(account.subscription, f"starter_{VERIFY}")
    account.stripe.add_item(account.subscription, f"growth_{VERIFY}")
    account.settle()
    account.use(160)
    account.go("02-12")
    account.assert_agrees(1)


def test_26_an_event_is_voided_before_the_invoice_is_final(account: Account) -> None:
    account.subscribe("starter")
    account.use(50)
    account.metering.record(VERIFY, CUSTOMER, value=500, key="wrong")
    account.go("01-20")
    account.metering.adjust(CUSTOMER, VERIFY, "wrong", reason="counted twice")
    account.go("02-12")
    account.assert_agrees(1)


def test_27_a_deleted_customer_is_named(account: Account) -> None:
    account.subscribe("starter")
    account.use(50)
    account.go("01-20")
    account.stripe.delete_customer(CUSTOMER)
    account.settle()
    account.metering.usage(CUSTOMER)
    account.go("01-20 00:02")
    account.go("02-12")
    account.assert_agrees(1)
    status = account.metering.status()
    assert status["subscriptions"]["deleted"] == {"count": 1, "examples": [CUSTOMER]}
    assert "1 customers (cus_1): deleted at Stripe" in status["problems"][0]


def test_28_two_subscriptions_are_named_and_each_meter_follows_its_own(account: Account) -> None:
    account.subscription = account.stripe.add_subscription(CUSTOMER, [f"starter_{VERIFY}"])
    account.settle()
    account.use(30)
    account.go("01-15")
    account.stripe.add_subscription(CUSTOMER, [f"growth_{SITES}"])
    account.settle()
    account.use("a.example", meter=SITES)
    account.go("01-15 00:02")
    assert account.metering.status()["subscriptions"]["several"]["examples"] == [CUSTOMER]
    assert period(account, "01-20") == Period(at("01-10"), at("02-10"))
    assert period(account, "01-20", SITES) == Period(at("01-15"), at("02-15"))
    account.use(30)
    account.go("02-15 02:00")
    assert list(account.store.verify()) == []


@pytest.mark.parametrize("hours", [0.5, 26])
def test_29_a_worker_that_sleeps_over_the_end_delivers_or_flags(
    account: Account, hours: float
) -> None:
    account.subscribe("starter")
    account.go("02-09 23:00", work=False)
    account.use(75)
    account.clock.now = at("02-10") + hours * HOUR
    account.stripe.advance(timedelta(0))
    account.settle()
    account.work()
    account.go("02-12")
    expected = "delivered" if hours < 1 else "dead"
    assert account.states() == {expected: 75}
    if hours < 1:
        account.assert_agrees(1)


def test_30_an_alert_of_usage_that_came_in_the_grace_stays_with_its_period(
    account: Account,
) -> None:
    def raised() -> set[tuple[str, Decimal, Decimal, Period]]:
        alerts = (notice.alert for notice in account.store.announcements.notices(at("01-01")))
        return {(each.level, each.included, each.total, each.period) for each in alerts}

    account.subscribe("starter")
    account.use(15)
    account.go("02-10 00:00:05", work=False)
    account.use(1, "02-09 23:59:59")
    january = ("warning", Decimal(20), Decimal(16), Period(at("01-10"), at("02-10")))
    assert raised() == {january}
    account.work()
    account.hold_webhooks()
    account.go("02-10 00:10", work=False)
    account.change("starter", "growth")
    account.go("02-10 00:15", work=False)
    account.use(1)  # moves when the change is told of, and everything is derived anew
    account.release_webhooks()
    assert period(account, "02-10 00:15").start == at("02-10 00:10")
    assert raised() == {january}
    # The warning of the new period is its own.
    account.use(16, "02-10 00:09")
    february = ("warning", Decimal(20), Decimal(16), Period(at("02-10"), at("02-10 00:10")))
    assert raised() == {january, february}
