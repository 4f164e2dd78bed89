"""Subscriptions in the emulator: their periods, and what is billed when they change."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from emulatorkit import STARTER, Account, at

from flask_c2meter.emulator import Invoice, StripeEmulator


def subscribed(account: Account, start: str | None = None, **more: Any) -> str:
    """cus_1 on the starter price, with the better one at hand."""
    account.stripe.add_price("verify", lookup_key="starter", tiers=STARTER)
    account.stripe.add_price("verify", lookup_key="better", unit_amount_decimal="3")
    begin = at(start) if start else None
    return account.stripe.add_subscription("cus_1", ["starter"], start=begin, **more)


def lines(invoice: Invoice) -> list[tuple[Any, int, str, str]]:
    """Quantity, amount and period of each line."""
    return [
        (line.quantity, line.amount, _short(line.period_start), _short(line.period_end))
        for line in invoice.lines
    ]


def _short(moment: Any) -> str:
    return f"{moment:%m-%d}" if not moment.hour else f"{moment:%m-%dT%H}"


# --- periods --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "recurring", "ends"),
    [
        ("2026-11-15T09:30", ("month", 1), ["12-15 09:30", "01-15 09:30", "02-15 09:30"]),
        ("2027-01-31", ("month", 1), ["02-28", "03-31", "04-30", "05-31", "06-30"]),
        ("2028-01-30", ("month", 1), ["02-29", "03-30", "04-30"]),
        ("2026-11-30", ("month", 3), ["02-28", "05-30", "08-30"]),
        ("2028-02-29", ("year", 1), ["02-28", "02-28", "02-28", "02-29"]),
        ("2026-11-01", ("week", 2), ["11-15", "11-29", "12-13"]),
        ("2026-12-31", ("day", 1), ["01-01", "01-02"]),
    ],
)
def test_periods_follow_the_anchor(
    start: str, recurring: tuple[str, int], ends: Sequence[str]
) -> None:
    account = Account(start)
    interval, count = recurring
    account.stripe.add_price(
        "verify", lookup_key="p", unit_amount_decimal="1", interval=interval, interval_count=count
    )
    id = account.stripe.add_subscription("cus_1", ["p"])
    begin = at(start)
    for expected in ends:
        assert account.period(id)[0] == begin
        begin = account.period(id)[1]
        assert f"{begin:%m-%d %H:%M}".removesuffix(" 00:00") == expected
        account.stripe.advance(begin - account.stripe.now())


def test_a_period_ends_at_its_end_and_not_before() -> None:
    account = Account("2026-11-01")
    id = subscribed(account)
    account.go("2026-11-30T23:59:59")
    assert account.period(id) == (at("2026-11-01"), at("2026-12-01"))
    assert account.stripe.invoices == []
    account.stripe.advance(timedelta(seconds=1))
    assert account.period(id) == (at("2026-12-01"), at("2027-01-01"))
    assert len(account.stripe.invoices) == 1


def test_all_cycles_that_were_missed_are_caught_up_in_order() -> None:
    account = Account("2026-11-10")
    id = subscribed(account)
    account.stripe.add_subscription("cus_2", ["better"], start=at("2026-11-05"))
    account.go("2027-03-01")
    assert account.period(id) == (at("2027-02-10"), at("2027-03-10"))
    created = [invoice.created for invoice in account.stripe.invoices]
    assert created == sorted(created)
    assert [f"{moment:%m-%d}" for moment in created] == [
        "12-05",
        "12-10",
        "01-05",
        "01-10",
        "02-05",
        "02-10",
    ]


def test_time_that_moves_on_its_own_is_noticed_by_the_next_request() -> None:
    now = [at("2026-11-01")]
    stripe = StripeEmulator(clock=lambda: now[0])
    stripe.add_price("verify", lookup_key="p", unit_amount_decimal="1")
    stripe.add_subscription("cus_1", ["p"])
    now[0] = at("2026-12-01T01:00")
    (invoice,) = stripe.invoices
    assert (invoice.status, invoice.finalized_at) == ("open", now[0])


def test_a_backdated_subscription_has_its_past_and_bills_what_is_there() -> None:
    account = Account("2026-11-20")
    account.use(10, "2026-10-25")
    account.use(20, "2026-11-05")
    account.stripe.add_price("verify", lookup_key="p", unit_amount_decimal="1")
    id = account.stripe.add_subscription("cus_1", ["p"], start=at("2026-09-03"))
    body = account.subscription(id)
    assert body["start_date"] == int(at("2026-09-03").timestamp())
    assert body["billing_cycle_anchor"] == body["start_date"]
    assert account.period(id) == (at("2026-11-03"), at("2026-12-03"))
    first, second = account.stripe.invoices
    assert (first.created, first.status, first.total) == (at("2026-10-03"), "open", 0)
    assert lines(second) == [(10, 10, "10-03", "11-03")]
    assert second.finalized_at == at("2026-11-03T01:00")
    account.stripe.add_subscription("cus_2", ["p"], start=at("2026-09-15"))
    created = [f"{invoice.created:%m-%d}" for invoice in account.stripe.invoices]
    assert created == ["10-03", "10-15", "11-03", "11-15"]


def test_items_of_different_intervals_have_periods_of_their_own() -> None:
    account = Account("2026-11-10")
    account.stripe.add_price("verify", lookup_key="monthly", unit_amount_decimal="1")
    account.stripe.add_price("sign", lookup_key="yearly", unit_amount_decimal="1", interval="year")
    id = account.stripe.add_subscription("cus_1", ["monthly", "yearly"])
    account.go("2026-12-20")
    assert account.period(id, 0) == (at("2026-12-10"), at("2027-01-10"))
    assert account.period(id, 1) == (at("2026-11-10"), at("2027-11-10"))
    (invoice,) = account.stripe.invoices
    assert [line.meter for line in invoice.lines] == ["verify"]
    with pytest.raises(ValueError, match="flexible"):
        account.stripe.add_subscription("cus_2", ["monthly", "yearly"], billing_mode="classic")


# --- trials and statuses --------------------------------------------------------------------


def test_a_trial_is_a_period_of_its_own_and_free() -> None:
    account = Account("2026-11-01")
    id = subscribed(account, trial_end=at("2026-12-16T12:00"))
    body = account.subscription(id)
    assert (body["status"], body["trial_start"], body["trial_end"]) == (
        "trialing",
        int(at("2026-11-01").timestamp()),
        int(at("2026-12-16T12:00").timestamp()),
    )
    assert account.period(id) == (at("2026-11-01"), at("2026-12-16T12:00"))
    account.go("2026-12-10")
    account.use(5000)
    assert account.stripe.preview_invoice(id).total == 0
    account.go("2026-12-16T12:00")
    assert account.subscription(id)["status"] == "active"
    assert account.period(id) == (at("2026-12-16T12:00"), at("2027-01-16T12:00"))
    (invoice,) = account.stripe.invoices
    assert lines(invoice) == [(5000, 0, "11-01", "12-16T12")]
    assert invoice.lines[0].description == "Free trial for 5,000 x verify"
    account.use(2001)
    account.go("2027-01-16T12:00")
    assert account.stripe.invoices[-1].total == 4


@pytest.mark.parametrize("status", ["past_due", "unpaid"])
def test_a_subscription_that_is_not_paid_is_still_billed(status: str) -> None:
    account = Account("2026-11-01")
    id = subscribed(account)
    account.stripe.set_status(id, status)
    account.use(2001)
    account.go("2026-12-01")
    assert account.subscription(id)["status"] == status
    assert [invoice.total for invoice in account.stripe.invoices] == [4]


def test_a_paused_subscription_makes_no_invoice() -> None:
    account = Account("2026-11-01")
    id = subscribed(account)
    account.stripe.set_status(id, "paused")
    account.use(5000)
    account.go("2026-12-02")
    assert account.stripe.invoices == []
    account.stripe.set_status(id, "active")
    account.go("2027-01-01")
    assert [invoice.total for invoice in account.stripe.invoices] == [0]


def test_other_statuses_cannot_be_set() -> None:
    account = Account()
    id = subscribed(account)
    for status in ("canceled", "trialing", "asleep"):
        with pytest.raises(ValueError, match="past_due"):
            account.stripe.set_status(id, status)


# --- changes of price -----------------------------------------------------------------------


def test_flexible_bills_each_price_for_its_own_stretch() -> None:
    account = Account("2026-11-01")
    id = subscribed(account)
    before = account.subscription(id)["items"]["data"][0]
    account.go("2026-11-10")
    account.use(2100)
    account.go("2026-11-16")
    account.stripe.change_price(id, "starter", "better")
    after = account.subscription(id)["items"]["data"][0]
    assert after["price"]["lookup_key"] == "better"
    for kept in ("id", "current_period_start", "current_period_end"):
        assert after[kept] == before[kept]
    account.use(10)  # at the very second of the change: the new price's
    account.use(1, "2026-11-15T23:59:59")
    account.go("2026-12-01")
    (invoice,) = account.stripe.invoices
    assert lines(invoice) == [(2101, 404, "11-01", "11-16"), (10, 30, "11-16", "12-01")]
    assert invoice.total == 434
    account.use(5, "2026-11-03")  # late, but before finalisation
    assert account.stripe.invoices[0].lines[0].quantity == 2106


def test_classic_bills_what_was_before_the_change_nowhere() -> None:
    account = Account("2026-11-01")
    id = subscribed(account, billing_mode="classic")
    account.use(2100)
    account.go("2026-11-16")
    account.stripe.change_price(id, "starter", "better")
    account.use(10)
    account.go("2027-01-01")
    first, second = account.stripe.invoices
    assert lines(first) == [(10, 30, "11-16", "12-01")]
    assert lines(second) == [(0, 0, "12-01", "01-01")]


def test_two_changes_in_one_cycle_make_three_lines() -> None:
    account = Account("2026-11-01")
    id = subscribed(account)
    account.use(1, "2026-11-01")
    account.go("2026-11-11")
    account.stripe.change_price(id, "starter", "better")
    account.use(2)
    account.go("2026-11-21")
    account.stripe.change_price(id, "better", "starter")
    account.use(2004)
    account.go("2026-12-01")
    (invoice,) = account.stripe.invoices
    assert lines(invoice) == [
        (1, 0, "11-01", "11-11"),
        (2, 6, "11-11", "11-21"),
        (2004, 16, "11-21", "12-01"),
    ]
    account.use(1)
    account.go("2027-01-01")
    assert len(account.stripe.invoices[-1].lines) == 1


def test_a_change_at_the_very_start_of_a_period_leaves_no_line_behind() -> None:
    account = Account("2026-11-01")
    id = subscribed(account)
    account.stripe.change_price(id, "starter", "better")
    account.go("2026-12-01")
    account.stripe.change_price(id, "better", "starter")
    (invoice,) = account.stripe.invoices
    assert lines(invoice) == [(0, 0, "11-01", "12-01")]
    assert len(account.stripe.preview_invoice(id).lines) == 1


def test_several_prices_change_at_one_moment() -> None:
    account = Account("2026-11-01")
    for meter in ("verify", "sign"):
        account.stripe.add_price(meter, lookup_key=f"{meter}_1", unit_amount_decimal="1")
        account.stripe.add_price(meter, lookup_key=f"{meter}_2", unit_amount_decimal="2")
    id = account.stripe.add_subscription("cus_1", ["verify_1", "sign_1"])
    account.use(10)
    account.use(20, meter="sign")
    account.go("2026-11-16")
    account.stripe.change_prices(id, {"verify_1": "verify_2", "sign_1": "sign_2"})
    account.use(1)
    account.go("2026-12-01")
    (invoice,) = account.stripe.invoices
    assert [(line.meter, line.quantity, line.amount) for line in invoice.lines] == [
        ("verify", 10, 10),
        ("sign", 20, 20),
        ("verify", 1, 2),
        ("sign", 0, 0),
    ]


@pytest.mark.parametrize("billing_mode", ["flexible", "classic"])
def test_an_anchor_reset_ends_the_cycle_and_bills_it_at_the_old_price(billing_mode: str) -> None:
    account = Account("2026-11-01")
    id = subscribed(account, billing_mode=billing_mode)
    account.use(2100)
    account.go("2026-11-16T08:00")
    account.stripe.change_price(id, "starter", "better", reset_anchor=True)
    assert account.period(id) == (at("2026-11-16T08:00"), at("2026-12-16T08:00"))
    (invoice,) = account.stripe.invoices
    assert (invoice.status, invoice.created) == ("draft", at("2026-11-16T08:00"))
    assert lines(invoice) == [(2100, 400, "11-01", "11-16T08")]
    account.use(10)
    account.go("2026-12-16T08:00")
    assert lines(account.stripe.invoices[1]) == [(10, 30, "11-16T08", "12-16T08")]


def test_a_price_of_another_interval_resets_the_anchor_in_classic_only() -> None:
    for billing_mode, invoices in (("classic", 1), ("flexible", 0)):
        account = Account("2026-11-01")
        id = subscribed(account, billing_mode=billing_mode)
        account.stripe.add_price(
            "verify", lookup_key="yearly", unit_amount_decimal="1", interval="year"
        )
        account.go("2026-11-16")
        account.stripe.change_price(id, "starter", "yearly")
        assert account.period(id)[0] == at("2026-11-16")
        assert len(account.stripe.invoices) == invoices
        anchor = account.subscription(id)["billing_cycle_anchor"]
        assert (anchor == int(at("2026-11-16").timestamp())) is (billing_mode == "classic")


def test_an_item_is_billed_from_when_it_is_added() -> None:
    account = Account("2026-11-01")
    id = subscribed(account)
    account.stripe.add_price("sign", lookup_key="sign", unit_amount_decimal="10")
    account.use(7, meter="sign")
    account.go("2026-11-16")
    account.stripe.add_item(id, "sign")
    account.use(2, meter="sign")
    assert account.period(id, 1) == (at("2026-11-16"), at("2026-12-01"))
    account.go("2026-12-01")
    (invoice,) = account.stripe.invoices
    assert lines(invoice) == [(0, 0, "11-01", "12-01"), (2, 20, "11-16", "12-01")]


@pytest.mark.parametrize(("billing_mode", "total"), [("flexible", 70), ("classic", 0)])
def test_an_item_that_is_removed_is_billed_in_flexible_mode(billing_mode: str, total: int) -> None:
    account = Account("2026-11-01")
    account.stripe.add_price("sign", lookup_key="sign", unit_amount_decimal="10")
    account.stripe.add_price("verify", lookup_key="verify", unit_amount_decimal="1")
    id = account.stripe.add_subscription("cus_1", ["verify", "sign"], billing_mode=billing_mode)
    account.use(7, meter="sign")
    account.go("2026-11-16")
    account.stripe.remove_item(id, "sign")
    account.use(9, meter="sign")
    account.go("2026-12-01")
    (invoice,) = account.stripe.invoices
    assert invoice.total == total
    with pytest.raises(ValueError, match="cancel it"):
        account.stripe.remove_item(id, "verify")


def test_changes_that_make_no_sense_are_refused_and_change_nothing() -> None:
    account = Account()
    id = subscribed(account)
    account.stripe.add_price("verify", lookup_key="euros", unit_amount_decimal="1", currency="eur")
    before = account.subscription(id)
    with pytest.raises(ValueError, match="No such price"):
        account.stripe.change_price(id, "starter", "missing")
    with pytest.raises(ValueError, match="has no item"):
        account.stripe.change_price(id, "better", "starter")
    with pytest.raises(ValueError, match="currency"):
        account.stripe.change_price(id, "starter", "euros")
    with pytest.raises(ValueError, match="same price"):
        account.stripe.add_item(id, "starter")
    with pytest.raises(ValueError, match="No such subscription"):
        account.stripe.cancel_subscription("sub_x")
    assert account.subscription(id) == before


# --- the end --------------------------------------------------------------------------------


def test_cancelled_at_once_it_gets_a_final_invoice() -> None:
    account = Account("2026-11-01")
    id = subscribed(account)
    account.use(2100)
    account.go("2026-11-16")
    account.stripe.cancel_subscription(id)
    body = account.subscription(id)
    now = int(at("2026-11-16").timestamp())
    assert (body["status"], body["ended_at"], body["canceled_at"]) == ("canceled", now, now)
    assert body["cancel_at_period_end"] is False
    account.use(50)
    account.go("2027-02-01")
    (invoice,) = account.stripe.invoices
    assert lines(invoice) == [(2100, 400, "11-01", "11-16")]
    assert invoice.finalized_at == at("2026-11-16T01:00")
    for lever in (account.stripe.cancel_subscription, account.stripe.preview_invoice):
        with pytest.raises(ValueError, match="canceled"):
            lever(id)


def test_cancelled_at_period_end_it_lives_until_then() -> None:
    account = Account("2026-11-01")
    id = subscribed(account)
    account.go("2026-11-16")
    account.stripe.cancel_subscription(id, at_period_end=True)
    body = account.subscription(id)
    assert (body["status"], body["cancel_at_period_end"], body["ended_at"]) == (
        "active",
        True,
        None,
    )
    account.use(2100)
    account.go("2027-01-15")
    body = account.subscription(id)
    assert (body["status"], body["ended_at"]) == ("canceled", int(at("2026-12-01").timestamp()))
    assert account.period(id) == (at("2026-11-01"), at("2026-12-01"))
    (invoice,) = account.stripe.invoices
    assert lines(invoice) == [(2100, 400, "11-01", "12-01")]


def test_an_end_that_is_planned_stays_when_periods_move() -> None:
    account = Account("2026-11-01")
    id = subscribed(account)
    account.stripe.add_price(
        "verify", lookup_key="yearly", unit_amount_decimal="1", interval="year"
    )
    account.go("2026-11-11")
    account.stripe.cancel_subscription(id, at_period_end=True)
    account.stripe.change_price(id, "starter", "yearly")
    account.use(5)
    assert account.period(id) == (at("2026-11-11"), at("2027-11-01"))
    assert account.stripe.preview_invoice(id).total == 5
    account.go("2026-12-01")
    assert account.subscription(id)["status"] == "canceled"
    (invoice,) = account.stripe.invoices
    assert lines(invoice) == [(0, 0, "11-01", "11-11"), (5, 5, "11-11", "12-01")]


def test_an_anchor_reset_ends_a_trial_and_moves_a_planned_end() -> None:
    account = Account("2026-11-01")
    id = subscribed(account, trial_end=at("2026-12-01"))
    account.stripe.cancel_subscription(id, at_period_end=True)
    account.use(3000)
    account.go("2026-11-11")
    account.stripe.change_price(id, "starter", "better", reset_anchor=True)
    body = account.subscription(id)
    assert (body["status"], body["trial_end"]) == ("active", int(at("2026-11-11").timestamp()))
    assert body["cancel_at"] == int(at("2026-12-11").timestamp())
    account.use(2)
    account.go("2027-01-01")
    assert [invoice.total for invoice in account.stripe.invoices] == [0, 6]


def test_a_deleted_customer_is_a_stub_and_loses_its_subscriptions() -> None:
    account = Account("2026-11-01")
    id = subscribed(account)
    account.use(2001)
    account.stripe.delete_customer("cus_1")
    stub = account.get("/v1/customers/cus_1").get_json()
    assert stub == {"id": "cus_1", "object": "customer", "deleted": True}
    assert account.subscription(id)["status"] == "canceled"
    assert account.get("/v1/customers").get_json()["data"] == []
    with pytest.raises(ValueError, match="No such customer"):
        account.stripe.delete_customer("cus_1")
    with pytest.raises(ValueError, match="No such customer"):
        account.stripe.add_subscription("cus_1", ["starter"])


# --- test clocks ----------------------------------------------------------------------------


def test_customers_of_a_test_clock_live_by_it() -> None:
    account = Account("2026-11-01")
    stripe = account.stripe
    stripe.add_price("verify", lookup_key="p", unit_amount_decimal="2")
    clock = stripe.add_test_clock(at("2030-01-31"), name="future")
    stripe.add_customer("cus_1", test_clock=clock)
    id = stripe.add_subscription("cus_1", ["p"])
    other = stripe.add_subscription("cus_2", ["p"])
    account.use(5, "2030-01-31T00:00:01")
    account.go("2026-12-15")
    assert account.period(id) == (at("2030-01-31"), at("2030-02-28"))
    assert account.period(other) == (at("2026-12-01"), at("2027-01-01"))
    stripe.advance_test_clock(clock, at("2030-04-01"))
    assert account.period(id) == (at("2030-03-31"), at("2030-04-30"))
    _, first, second = stripe.invoices
    assert lines(first) == [(5, 10, "01-31", "02-28")]
    assert (first.customer, first.status, second.created) == ("cus_1", "open", at("2030-03-31"))
    with pytest.raises(ValueError, match="later"):
        stripe.advance_test_clock(clock, at("2030-04-01"))


def test_test_clocks_over_http() -> None:
    account = Account("2026-11-01")
    account.stripe.add_price("verify", lookup_key="p", unit_amount_decimal="2")
    start = int(at("2027-05-31").timestamp())
    clock = account.post(
        "/v1/test_helpers/test_clocks", {"frozen_time": start, "name": "n"}
    ).get_json()
    assert (clock["status"], clock["frozen_time"], clock["name"]) == ("ready", start, "n")
    customer = account.post("/v1/customers", {"test_clock": clock["id"]}).get_json()
    assert (customer["test_clock"], customer["created"]) == (clock["id"], start)
    id = account.stripe.add_subscription(customer["id"], ["p"])
    path = f"/v1/test_helpers/test_clocks/{clock['id']}"
    later = int(at("2027-07-01").timestamp())
    assert account.post(f"{path}/advance", {"frozen_time": later}).status_code == 200
    assert account.get(path).get_json()["frozen_time"] == later
    assert account.period(id) == (at("2027-06-30"), at("2027-07-31"))
    assert account.post(f"{path}/advance", {"frozen_time": start}).status_code == 400
    assert account.get("/v1/test_helpers/test_clocks/clock_x").status_code == 404
    # As with Stripe, lists leave customers of a clock out unless they are asked for.
    assert account.get("/v1/customers").get_json()["data"] == []
    assert len(account.get("/v1/customers", test_clock=clock["id"]).get_json()["data"]) == 1
    assert account.get("/v1/subscriptions").get_json()["data"] == []
    mine = account.get("/v1/subscriptions", customer=customer["id"]).get_json()["data"]
    assert [each["id"] for each in mine] == [id]


# --- who is a customer ----------------------------------------------------------------------


def test_unknown_customers_are_accepted_unless_told_otherwise() -> None:
    for settings, refused in (
        ({}, ["cus_gone"]),
        ({"known_customers_only": True}, ["cus_x", "cus_gone"]),
        ({"customers": {"cus_x"}}, ["cus_gone"]),
    ):
        account = Account(**settings)
        account.stripe.add_customer("cus_1")
        account.stripe.add_customer("cus_gone")
        account.stripe.delete_customer("cus_gone")
        for customer in ("cus_1", "cus_x", "cus_gone"):
            account.use(1, customer=customer, identifier=customer)
        assert [error.identifier for error in account.stripe.async_errors] == refused


# --- over HTTP ------------------------------------------------------------------------------


def test_a_subscription_over_http() -> None:
    account = Account("2026-11-20")
    price = account.stripe.add_price("verify", unit_amount_decimal="1")
    form = {
        "customer": account.stripe.add_customer(),
        "items[0][price]": price,
        "backdate_start_date": int(at("2026-10-31").timestamp()),
        "metadata[plan]": "starter",
        "cancel_at_period_end": "true",
    }
    made = account.post("/v1/subscriptions", form).get_json()
    assert made == account.subscription(made["id"])
    assert (made["status"], made["metadata"]) == ("active", {"plan": "starter"})
    assert made["billing_mode"] == {"type": "flexible"}
    assert made["cancel_at_period_end"] is True
    assert account.period(made["id"]) == (at("2026-10-31"), at("2026-11-30"))
    items = account.get("/v1/subscription_items", subscription=made["id"]).get_json()
    assert items["data"] == made["items"]["data"]

    trial = {"customer": form["customer"], "items[0][price]": price, "trial_period_days": 14}
    trial["billing_mode[type]"] = "classic"
    made = account.post("/v1/subscriptions", trial).get_json()
    assert (made["status"], made["billing_mode"]["type"]) == ("trialing", "classic")
    assert made["trial_end"] - made["trial_start"] == 14 * 86400

    anchored = {"customer": form["customer"], "items[0][price]": price}
    anchored["billing_cycle_anchor"] = int(at("2026-12-01").timestamp())
    made = account.post("/v1/subscriptions", anchored).get_json()
    assert account.period(made["id"]) == (at("2026-11-20"), at("2026-12-01"))


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"customer": "cus_x"}, "customer"),
        ({"items[0][price]": "price_x"}, "price"),
        ({"items[0][price]": "by its lookup key"}, "price"),
        ({"items[0][colour]": "red"}, "items[0][colour]"),
        ({"colour": "red"}, "colour"),
        ({"items": "price_1"}, "items"),
        ({"items[a][price]": "price_1"}, "items"),
        ({"trial_end": "1"}, "trial_end"),
        ({"trial_end": "1900000000", "trial_period_days": "1"}, "trial_end"),
        ({"trial_period_days": "731"}, "trial_period_days"),
        ({"backdate_start_date": "1900000000"}, "backdate_start_date"),
        ({"cancel_at_period_end": "yes"}, "cancel_at_period_end"),
        ({"billing_mode[type]": "rigid"}, "billing_mode[type]"),
        ({"expand[]": "items.data.price.product.default_price"}, "expand"),
    ],
)
def test_subscriptions_are_refereed(change: dict[str, str], param: str) -> None:
    account = Account()
    price = account.stripe.add_price(
        "verify", lookup_key="by its lookup key", unit_amount_decimal="1"
    )
    form = {"customer": account.stripe.add_customer("cus_1"), "items[0][price]": price}
    answer = account.post("/v1/subscriptions", {**form, **change})
    assert (answer.status_code, answer.get_json()["error"].get("param")) == (400, param)
    assert account.get("/v1/subscriptions", status="all").get_json()["data"] == []


def test_subscriptions_are_listed_as_stripe_does() -> None:
    account = Account("2026-11-01")
    stripe = account.stripe
    price = stripe.add_price("verify", lookup_key="a", unit_amount_decimal="1")
    stripe.add_price("sign", lookup_key="b", unit_amount_decimal="1")
    ids = {
        "old": stripe.add_subscription("cus_1", ["a"], start=at("2026-10-05")),
        "gone": stripe.add_subscription("cus_1", ["a"]),
        "trial": stripe.add_subscription("cus_1", ["b"], trial_end=at("2026-11-20")),
        "other": stripe.add_subscription("cus_2", ["a", "b"]),
    }
    stripe.cancel_subscription(ids["gone"])
    stripe.set_status(ids["old"], "past_due")
    names = {id: name for name, id in ids.items()}

    def listed(**params: Any) -> list[str]:
        answer = account.get("/v1/subscriptions", **params)
        assert answer.status_code == 200, answer.text
        return [names[each["id"]] for each in answer.get_json()["data"]]

    assert listed() == ["other", "trial", "old"]
    assert listed(status="all") == ["other", "trial", "gone", "old"]
    assert listed(status="all", customer="cus_1") == ["trial", "gone", "old"]
    assert listed(customer="cus_1", status="active") == []
    assert listed(status="canceled") == listed(status="ended") == ["gone"]
    assert listed(status="trialing") == ["trial"]
    assert listed(price=price) == ["other", "old"]
    assert listed(limit=1) == ["other"]
    assert listed(limit=1, starting_after=ids["other"]) == ["trial"]
    assert listed(ending_before=ids["old"]) == ["other", "trial"]
    end = int(at("2026-11-05").timestamp())
    assert listed(current_period_end=end) == ["old"]
    assert listed(**{"current_period_end[gt]": end}) == ["other", "trial"]
    assert listed(**{"current_period_start[lt]": end - 86400 * 10}) == ["old"]
    assert listed(**{"created[gte]": end}) == []
    assert listed(collection_method="send_invoice") == []
    assert listed(customer="cus_unheard_of") == []
    assert account.get("/v1/subscriptions", status="asleep").status_code == 400


def test_a_strict_account_refuses_lists_of_unknown_customers() -> None:
    account = Account(known_customers_only=True)
    answer = account.get("/v1/subscriptions", customer="cus_x")
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (400, "resource_missing")


def test_a_repeated_request_makes_one_subscription() -> None:
    account = Account()
    price = account.stripe.add_price("verify", unit_amount_decimal="1")
    form = {"customer": account.stripe.add_customer(), "items[0][price]": price}
    first = account.post("/v1/subscriptions", form, key="k")
    again = account.post("/v1/subscriptions", form, key="k")
    assert again.data == first.data
    assert again.headers["Idempotent-Replayed"] == "true"
    assert len(account.get("/v1/subscriptions").get_json()["data"]) == 1
    for path, body in (("/v1/customers", {"name": "n"}), ("/v1/products", {"name": "n"})):
        one, two = (account.post(path, body, key=path).get_json()["id"] for _ in range(2))
        assert one == two


def test_25_clients_at_once_leave_the_account_consistent() -> None:
    account = Account("2026-11-01")
    price = account.stripe.add_price("verify", unit_amount_decimal="1")

    def work(number: int) -> None:
        customer = account.post("/v1/customers", {"name": str(number)}).get_json()["id"]
        form = {"customer": customer, "items[0][price]": price}
        account.post("/v1/subscriptions", form)
        for _ in range(10):
            account.use(1, customer=customer)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(25)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    account.go("2026-12-01")
    invoices = account.stripe.invoices
    assert len({invoice.customer for invoice in invoices}) == len(invoices) == 25
    assert {invoice.total for invoice in invoices} == {10}
