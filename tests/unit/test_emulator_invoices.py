"""Invoices in the emulator: rated exactly, drafted at a cycle's end, fixed when finalised."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from emulatorkit import STARTER, Account, at
from hypothesis import given, settings
from hypothesis import strategies as st

GRADUATED = [
    {"up_to": 5, "unit_amount_decimal": "500", "flat_amount_decimal": "1000"},
    {"up_to": 10, "unit_amount_decimal": "400", "flat_amount_decimal": "2000"},
    {"up_to": "inf", "unit_amount_decimal": "300", "flat_amount_decimal": "3000"},
]


def bill(quantity: object, **price: Any) -> Any:
    """The one line of a month in which *quantity* was used."""
    account = Account("2026-11-01", allow_decimals=True)
    account.stripe.add_price("verify", lookup_key="p", **price)
    account.stripe.add_subscription("cus_1", ["p"])
    if quantity is not None:
        account.use(quantity)
    account.go("2026-12-02")
    (invoice,) = account.stripe.invoices
    (line,) = invoice.lines
    assert line.amount == invoice.total
    return line


# --- rating ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("quantity", "graduated", "volume"),
    [
        # Stripe's own example, of its guide to pricing models: 0 and 12.
        (0, 1000, 1000),
        (1, 1500, 1500),
        (5, 3500, 3500),
        (6, 3500 + 2400, 2400 + 2000),
        (10, 3500 + 4000, 4000 + 2000),
        (11, 7500 + 3300, 3300 + 3000),
        (12, 11100, 6600),
    ],
)
def test_tiers_apply_to_total_usage(quantity: int, graduated: int, volume: int) -> None:
    assert bill(quantity, tiers=GRADUATED).amount == graduated
    assert bill(quantity, tiers=GRADUATED, tiers_mode="volume").amount == volume


@pytest.mark.parametrize(
    ("quantity", "amount"), [(1999, 0), (2000, 0), (2001, 4), (2500, 2000), (None, 0)]
)
def test_an_included_quantity_is_a_free_first_tier(quantity: int | None, amount: int) -> None:
    line = bill(quantity, tiers=STARTER)
    assert (line.quantity, line.amount) == (quantity or 0, amount)


@pytest.mark.parametrize(
    ("quantity", "each", "amount"),
    [
        (1, "0.5", 1),
        (1, "0.499999999999", 0),
        (3, "0.5", 2),
        (1_000_000_000_000, "0.000000000001", 1),
        (499_999_999_999, "0.000000000001", 0),
        (500_000_000_000, "0.000000000001", 1),
        (999_999_999_999_999, "999999.999999999999", 10**21 - 10**6 - 1_000),
        ("2.5", "1", 3),
        ("0.125", "4", 1),
    ],
)
def test_amounts_are_exact_and_rounded_once_half_up(
    quantity: object, each: str, amount: int
) -> None:
    exact = Fraction(str(quantity)) * Fraction(each)
    assert abs(amount - exact) <= Fraction(1, 2)
    assert bill(quantity, unit_amount_decimal=each).amount == amount


def test_a_line_is_rounded_not_its_tiers() -> None:
    tiers = [
        {"up_to": 1, "unit_amount_decimal": "0.4"},
        {"up_to": 2, "unit_amount_decimal": "0.4"},
        {"up_to": "inf", "unit_amount_decimal": "0.4"},
    ]
    assert bill(3, tiers=tiers).amount == 1


def test_an_invoice_adds_up_rounded_lines() -> None:
    account = Account("2026-11-01")
    for meter in ("verify", "sign"):
        account.stripe.add_price(meter, lookup_key=meter, unit_amount_decimal="0.5")
    account.stripe.add_subscription("cus_1", ["verify", "sign"])
    account.use(1)
    account.use(1, meter="sign")
    account.go("2026-12-01")
    assert account.stripe.invoices[0].total == 2


@settings(deadline=None)  # an emulator per example, on a machine that may be busy
@given(
    quantity=st.integers(0, 10**6),
    first=st.integers(1, 10**5),
    cents=st.decimals(0, 1000, places=12, allow_nan=False),
)
def test_a_free_first_tier_charges_what_is_beyond_it(
    quantity: int, first: int, cents: Decimal
) -> None:
    tiers = [
        {"up_to": first, "unit_amount_decimal": "0"},
        {"up_to": "inf", "unit_amount_decimal": f"{cents:f}"},
    ]
    exact = Fraction(max(0, quantity - first)) * Fraction(cents)
    amount = bill(quantity, tiers=tiers).amount
    assert exact - Fraction(1, 2) < amount <= exact + Fraction(1, 2)


def test_a_negative_total_bills_as_nothing() -> None:
    line = bill(-5, unit_amount_decimal="4")
    assert (line.quantity, line.amount) == (-5, 0)


def test_corrections_lower_the_total() -> None:
    account = Account("2026-11-01")
    account.stripe.add_price("verify", lookup_key="p", unit_amount_decimal="4")
    account.stripe.add_subscription("cus_1", ["p"])
    account.use(10)
    account.use(-3)
    account.go("2026-12-01")
    assert account.stripe.invoices[0].total == 28


def test_a_line_says_what_it_bills() -> None:
    line = bill(2500, tiers=STARTER)
    assert (line.meter, line.description) == ("verify", "2,500 x verify")
    assert line.price.startswith("price_")
    assert (line.period_start, line.period_end) == (at("2026-11-01"), at("2026-12-01"))


# --- prices that cannot be rated ------------------------------------------------------------


@pytest.mark.parametrize(
    "price",
    [
        {},
        {"unit_amount_decimal": "-1"},
        {"unit_amount_decimal": "1e3"},
        {"unit_amount_decimal": "0.0000000000001"},
        {"unit_amount_decimal": ""},
        {"unit_amount_decimal": "1", "interval": "fortnight"},
        {"unit_amount_decimal": "1", "tiers": STARTER},
        {"tiers": STARTER, "tiers_mode": "slabs"},
        {"tiers": [{"up_to": 5, "unit_amount_decimal": "1"}]},
        {"tiers": [{"up_to": "inf"}]},
        {"tiers": [{"up_to": "inf", "unit_amount": "1"}]},
        {"tiers": [{"up_to": 2.5, "unit_amount_decimal": "1"}, *STARTER[1:]]},
        {"tiers": [STARTER[0], *STARTER]},
        {"tiers": [{"up_to": 0, "unit_amount_decimal": "1"}, *STARTER[1:]]},
    ],
)
def test_a_price_that_cannot_be_rated_is_refused(price: dict[str, Any]) -> None:
    account = Account()
    with pytest.raises(ValueError):
        account.stripe.add_price("verify", lookup_key="p", **price)
    assert account.get("/v1/prices").get_json()["data"] == []
    assert account.get("/v1/products").get_json()["data"] == []


def test_amounts_are_text() -> None:
    with pytest.raises(TypeError, match="use text"):
        Account().stripe.add_price("verify", unit_amount_decimal=0.04)  # type: ignore[arg-type]


def test_a_lookup_key_is_given_once() -> None:
    account = Account()
    account.stripe.add_price("verify", lookup_key="p", unit_amount_decimal="1")
    with pytest.raises(ValueError, match="already uses that lookup key"):
        account.stripe.add_price("verify", lookup_key="p", unit_amount_decimal="1")


# --- drafts and finalisation ----------------------------------------------------------------


def month(**settings: Any) -> Account:
    account = Account("2026-11-01", **settings)
    account.stripe.add_price("verify", lookup_key="p", unit_amount_decimal="1")
    account.stripe.add_subscription("cus_1", ["p"])
    return account


def test_usage_belongs_to_the_period_of_its_timestamp() -> None:
    account = month()
    account.go("2026-11-30T23:59:59")
    account.use(1)
    account.go("2026-12-01")
    account.use(10)
    account.use(100, "2026-12-01T00:00:01")
    account.use(1000, "2026-11-01")
    account.use(10000, "2026-10-31T23:59:59")
    account.go("2027-01-01")
    assert [invoice.total for invoice in account.stripe.invoices] == [1001, 110]


def test_parts_of_a_second_do_not_count() -> None:
    account = month()
    payload = {"stripe_customer_id": "cus_1", "value": "1"}
    account.go("2026-12-01")
    for moment in ("2026-11-30T23:59:59.999Z", "2026-12-01T00:00:00.001Z"):
        event = {"event_name": "verify", "payload": payload, "timestamp": moment}
        client = account._client
        headers = {"Authorization": "Bearer sk_test_1"}
        assert client.post("/v2/billing/meter_events", json=event, headers=headers).status_code
    account.go("2027-01-01")
    assert [invoice.total for invoice in account.stripe.invoices] == [1, 1]


def test_a_draft_shows_what_is_there_until_it_is_finalised() -> None:
    account = month()
    account.use(1)
    account.go("2026-12-01")
    (draft,) = account.stripe.invoices
    assert (draft.status, draft.finalized_at, draft.total) == ("draft", None, 1)
    assert (draft.created, draft.period_start, draft.period_end) == (
        at("2026-12-01"),
        at("2026-11-01"),
        at("2026-12-01"),
    )
    account.go("2026-12-01T00:59:59")
    account.use(10, "2026-11-20")
    assert account.stripe.invoices[0].total == 11
    account.go("2026-12-01T01:00:00")
    account.use(100, "2026-11-20")
    (final,) = account.stripe.invoices
    assert (final.status, final.finalized_at, final.total) == ("open", at("2026-12-01T01:00"), 11)
    assert final.id == draft.id
    account.go("2027-01-01T01:00:00")
    assert [invoice.total for invoice in account.stripe.invoices] == [11, 0]


def test_a_cancelled_event_leaves_drafts_but_not_final_invoices() -> None:
    account = month()
    account.go("2026-11-30T20:00")
    account.use(1, identifier="a")
    account.use(10, identifier="b")
    cancel = {"event_name": "verify", "type": "cancel", "cancel[identifier]": "a"}
    account.go("2026-12-01")
    account.post("/v1/billing/meter_event_adjustments", cancel)
    assert account.stripe.invoices[0].total == 10
    account.go("2026-12-01T02:00")
    account.post("/v1/billing/meter_event_adjustments", {**cancel, "cancel[identifier]": "b"})
    assert account.stripe.invoices[0].total == 10


def test_the_grace_is_a_setting() -> None:
    account = month(finalisation_grace=timedelta(hours=72))
    account.go("2026-12-03T23:59:59")
    assert account.stripe.invoices[0].status == "draft"
    account.go("2026-12-04")
    assert account.stripe.invoices[0].finalized_at == at("2026-12-04")
    at_once = month(finalisation_grace=timedelta(0))
    at_once.go("2026-12-01")
    assert at_once.stripe.invoices[0].finalized_at == at("2026-12-01")


def test_a_preview_is_the_running_cycle_as_it_is() -> None:
    account = month()
    (subscription,) = account.get("/v1/subscriptions").get_json()["data"]
    account.use(7)
    preview = account.stripe.preview_invoice(subscription["id"])
    assert (preview.total, preview.status) == (7, "draft")
    assert (preview.period_start, preview.period_end) == (at("2026-11-01"), at("2026-12-01"))
    assert account.stripe.invoices == []
    account.go("2026-12-01")
    assert account.stripe.preview_invoice(subscription["id"]).total == 0


@pytest.mark.parametrize(("formula", "amount"), [("count", 3), ("last", 30)])
def test_lines_go_by_the_meters_formula(formula: str, amount: int) -> None:
    account = Account("2026-11-20")
    form = {
        "display_name": "V",
        "event_name": "verify",
        "default_aggregation[formula]": formula,
    }
    account.post("/v1/billing/meters", form)
    account.stripe.add_price("verify", lookup_key="p", unit_amount_decimal="1")
    account.stripe.add_subscription("cus_1", ["p"], start=at("2026-11-01"))
    for value, moment in ((20, "2026-11-12"), (30, "2026-11-13"), (10, "2026-11-11")):
        account.use(value, moment)
    account.go("2026-12-01")
    assert account.stripe.invoices[0].total == amount
