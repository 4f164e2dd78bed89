"""Products, prices and customers in the emulator, over HTTP and through the real SDK."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
import requests
import stripe as sdk
from emulatorkit import KEY, STARTER, Account

from flask_c2meter.emulator import StripeEmulator


@pytest.fixture
def account() -> Account:
    return Account("2026-11-01")


def tiered(account: Account, **change: Any) -> dict[str, Any]:
    """The parameters of a price whose first tier is free."""
    form = {
        "currency": "usd",
        "product_data[name]": "Verify",
        "billing_scheme": "tiered",
        "tiers_mode": "graduated",
        "lookup_key": "starter",
        "recurring[interval]": "month",
        "recurring[usage_type]": "metered",
        "recurring[meter]": account.stripe.add_meter("verify"),
        "tiers[0][up_to]": 2000,
        "tiers[0][unit_amount]": 0,
        "tiers[1][up_to]": "inf",
        "tiers[1][unit_amount_decimal]": "4.000000000001",
        "tiers[1][flat_amount]": 100,
    }
    return {name: value for name, value in {**form, **change}.items() if value is not None}


# --- products -------------------------------------------------------------------------------


def test_a_product_lives_and_is_archived(account: Account) -> None:
    form = {"name": "Verify", "id": "prod_verify", "metadata[plan]": "starter"}
    product = account.post("/v1/products", form).get_json()
    assert (product["id"], product["active"], product["metadata"]) == (
        "prod_verify",
        True,
        {"plan": "starter"},
    )
    assert account.post("/v1/products", form).status_code == 400
    path = "/v1/products/prod_verify"
    change = {"active": "false", "unit_label": "check", "metadata[plan]": "", "metadata[a]": "b"}
    changed = account.post(path, change).get_json()
    assert (changed["active"], changed["unit_label"], changed["name"]) == (False, "check", "Verify")
    assert account.get(path).get_json() == changed
    other = account.post("/v1/products", {"name": "Sign"}).get_json()["id"]
    listed = account.get("/v1/products").get_json()["data"]
    assert [each["id"] for each in listed] == [other, "prod_verify"]
    for filters, found in (
        ({"active": "true"}, [other]),
        ({"ids[]": "prod_verify"}, ["prod_verify"]),
        ({"created[lt]": 1}, []),
    ):
        listed = account.get("/v1/products", **filters).get_json()["data"]
        assert [each["id"] for each in listed] == found
    assert account.get("/v1/products/prod_x").status_code == 404


# --- prices ---------------------------------------------------------------------------------


def test_tiers_are_shown_only_when_they_are_expanded(account: Account) -> None:
    price = account.post("/v1/prices", {**tiered(account), "expand[]": "tiers"}).get_json()
    assert price["tiers"] == [
        {
            "flat_amount": None,
            "flat_amount_decimal": None,
            "unit_amount": 0,
            "unit_amount_decimal": "0",
            "up_to": 2000,
        },
        {
            "flat_amount": 100,
            "flat_amount_decimal": "100",
            "unit_amount": None,
            "unit_amount_decimal": "4.000000000001",
            "up_to": None,
        },
    ]
    assert (price["unit_amount"], price["unit_amount_decimal"]) == (None, None)
    path = f"/v1/prices/{price['id']}"
    assert "tiers" not in account.get(path).get_json()
    assert account.get(path, **{"expand[]": "tiers"}).get_json() == price
    (plain,) = account.get("/v1/prices").get_json()["data"]
    assert "tiers" not in plain
    (full,) = account.get("/v1/prices", **{"expand[]": "data.tiers"}).get_json()["data"]
    assert full == price
    id = account.stripe.add_subscription("cus_1", ["starter"])
    body = account.get(
        f"/v1/subscriptions/{id}", **{"expand[]": "items.data.price.tiers"}
    ).get_json()
    assert body["items"]["data"][0]["price"] == price
    items = account.get(
        "/v1/subscription_items", **{"subscription": id, "expand[]": "data.price.tiers"}
    ).get_json()
    assert items["data"][0]["price"] == price


def test_a_price_of_the_api_bills_as_it_says(account: Account) -> None:
    account.post("/v1/prices", tiered(account))
    account.stripe.add_subscription("cus_1", ["starter"])
    account.use(2010)
    account.go("2026-12-01")
    assert account.stripe.invoices[0].total == 140


def test_amounts_come_in_both_forms(account: Account) -> None:
    form = {"currency": "USD", "product_data[name]": "Fee", "recurring[interval]": "year"}
    whole = account.post("/v1/prices", {**form, "unit_amount": 2000}).get_json()
    assert (whole["unit_amount"], whole["unit_amount_decimal"]) == (2000, "2000")
    assert (whole["currency"], whole["recurring"]["usage_type"]) == ("usd", "licensed")
    parts = account.post("/v1/prices", {**form, "unit_amount_decimal": "0.0500"}).get_json()
    assert (parts["unit_amount"], parts["unit_amount_decimal"]) == (None, "0.05")


@pytest.mark.parametrize(
    "change",
    [
        {"colour": "red"},
        {"currency": None},
        {"product": "prod_x"},
        {"product_data[name]": None},
        {"product_data[name]": None, "product": "prod_x"},
        {"billing_scheme": "per_unit"},
        {"billing_scheme": "sliding"},
        {"tiers_mode": None},
        {"unit_amount": "1"},
        {"recurring[meter]": None},
        {"recurring[meter]": "mtr_x"},
        {"recurring[usage_type]": "licensed"},
        {"recurring[interval]": "fortnight"},
        {"recurring[interval_count]": "0"},
        {"tiers[0][up_to]": "many"},
        {"tiers[1][up_to]": "3000"},
        {"tiers[1][unit_amount]": "4"},
        {"tiers[1][unit_amount_decimal]": "4.0000000000001"},
        {"tiers[0][unit_amount]": "-1"},
        {"tiers[0][unit_amount]": "1.5"},
        {"tiers[0][colour]": "red"},
        {"expand[]": "a.b.c.d.e"},
        {"metadata[a]": "x" * 501},
    ],
)
def test_prices_are_refereed(account: Account, change: dict[str, Any]) -> None:
    answer = account.post("/v1/prices", tiered(account, **change))
    assert answer.status_code == 400, answer.text
    assert account.get("/v1/prices").get_json()["data"] == []


def test_a_lookup_key_can_be_taken_over(account: Account) -> None:
    form = tiered(account)
    first = account.post("/v1/prices", form).get_json()["id"]
    assert account.post("/v1/prices", form).status_code == 400
    second = account.post("/v1/prices", {**form, "transfer_lookup_key": "true"}).get_json()["id"]
    (found,) = account.get("/v1/prices", **{"lookup_keys[]": "starter"}).get_json()["data"]
    assert found["id"] == second
    path = f"/v1/prices/{first}"
    assert account.post(path, {"lookup_key": "starter"}).status_code == 400
    taken = {"lookup_key": "starter", "transfer_lookup_key": "true", "nickname": "n"}
    assert account.post(path, taken).get_json()["lookup_key"] == "starter"
    assert account.get(f"/v1/prices/{second}").get_json()["lookup_key"] is None
    assert account.get("/v1/prices/price_x").status_code == 404


def test_an_archived_price_is_kept_but_not_used_anew(account: Account) -> None:
    price = account.post("/v1/prices", tiered(account)).get_json()["id"]
    account.stripe.add_subscription("cus_1", ["starter"])
    account.post(f"/v1/prices/{price}", {"active": "false"})
    with pytest.raises(ValueError, match="archived"):
        account.stripe.add_subscription("cus_2", ["starter"])
    account.go("2026-12-01")
    assert len(account.stripe.invoices) == 1


def test_prices_are_filtered_and_paged(account: Account) -> None:
    stripe = account.stripe
    names = {
        stripe.add_price("verify", lookup_key="a", unit_amount_decimal="1", product="prod_v"): "a",
        stripe.add_price("verify", lookup_key="b", tiers=STARTER, interval="year"): "b",
        stripe.add_price("sign", lookup_key="c", unit_amount_decimal="1", currency="eur"): "c",
    }
    once = {"currency": "usd", "product": "prod_v", "unit_amount": 1, "active": "false"}
    names[account.post("/v1/prices", once).get_json()["id"]] = "once"
    meters = account.get("/v1/billing/meters").get_json()["data"]
    sign = next(meter["id"] for meter in meters if meter["event_name"] == "sign")

    def listed(**params: Any) -> str:
        answer = account.get("/v1/prices", **params)
        assert answer.status_code == 200, answer.text
        return " ".join(names[each["id"]] for each in answer.get_json()["data"])

    assert listed() == "once c b a"
    assert listed(active="true") == "c b a"
    assert listed(product="prod_v") == "once a"
    assert listed(currency="eur") == "c"
    assert listed(type="one_time") == "once"
    assert listed(**{"lookup_keys[0]": "a", "lookup_keys[1]": "c"}) == "c a"
    assert listed(**{"recurring[interval]": "year"}) == "b"
    assert listed(**{"recurring[meter]": sign}) == "c"
    assert listed(**{"recurring[usage_type]": "licensed"}) == "once"
    assert listed(**{"created[gt]": 1900000000}) == ""
    assert listed(limit=2) == "once c"
    last = next(id for id, name in names.items() if name == "c")
    assert listed(limit=2, starting_after=last) == "b a"
    assert account.get("/v1/prices", limit=101).status_code == 400


# --- customers ------------------------------------------------------------------------------


def test_customers_are_created_found_and_listed(account: Account) -> None:
    form = {"email": "a@example.org", "name": "A", "metadata[plan]": "starter"}
    made = account.post("/v1/customers", form).get_json()
    assert account.get(f"/v1/customers/{made['id']}").get_json() == made
    assert (made["email"], made["metadata"]) == ("a@example.org", {"plan": "starter"})
    other = account.stripe.add_customer("cus_other", email="b@example.org")
    listed = account.get("/v1/customers").get_json()["data"]
    assert [each["id"] for each in listed] == [other, made["id"]]
    (found,) = account.get("/v1/customers", email="a@example.org").get_json()["data"]
    assert found == made
    assert account.post("/v1/customers", {"colour": "red"}).status_code == 400
    assert account.post("/v1/customers", {"test_clock": "clock_x"}).status_code == 400
    with pytest.raises(ValueError, match="already exists"):
        account.stripe.add_customer("cus_other")


@pytest.mark.parametrize(("strict", "status"), [(False, 200), (True, 404)])
def test_a_customer_nobody_created_is_one_unless_told_otherwise(strict: bool, status: int) -> None:
    account = Account(known_customers_only=strict)
    assert account.get("/v1/customers/cus_x").status_code == status
    assert [each["id"] for each in account.get("/v1/customers").get_json()["data"]] == []


# --- through the real SDK -------------------------------------------------------------------


@pytest.fixture
def served() -> Iterator[StripeEmulator]:
    with StripeEmulator() as emulator:
        yield emulator


@pytest.fixture
def client(served: StripeEmulator) -> Iterator[sdk.StripeClient]:
    telemetry, sdk.enable_telemetry = sdk.enable_telemetry, False
    with requests.Session() as session:
        session.trust_env = False
        bases = dict.fromkeys(("api", "meter_events", "files", "connect"), served.url)
        yield sdk.StripeClient(
            KEY,
            http_client=sdk.RequestsClient(timeout=5, session=session),
            base_addresses=bases,  # type: ignore[arg-type]
        )
    sdk.enable_telemetry = telemetry


def test_the_real_sdk_sets_up_an_account(served: StripeEmulator, client: sdk.StripeClient) -> None:
    meter = client.v1.billing.meters.create(
        {
            "display_name": "Verify",
            "event_name": "verify",
            "default_aggregation": {"formula": "sum"},
        }
    )
    product = client.v1.products.create({"name": "Verify", "metadata": {"plan": "starter"}})
    price = client.v1.prices.create(
        {
            "product": product.id,
            "currency": "usd",
            "billing_scheme": "tiered",
            "tiers_mode": "graduated",
            "lookup_key": "starter_verify",
            "recurring": {"interval": "month", "usage_type": "metered", "meter": meter.id},
            "tiers": [
                {"up_to": 2000, "unit_amount": 0},
                {"up_to": "inf", "unit_amount_decimal": Decimal("4")},
            ],
            "expand": ["tiers"],
        }
    )
    assert price.tiers is not None and price.tiers[1].unit_amount_decimal == Decimal("4")
    clock = client.v1.test_helpers.test_clocks.create({"frozen_time": 1900000000})
    customer = client.v1.customers.create({"name": "A", "test_clock": clock.id})
    made = client.v1.subscriptions.create(
        {"customer": customer.id, "items": [{"price": price.id}], "metadata": {"a": "b"}}
    )
    client.v1.test_helpers.test_clocks.advance(clock.id, {"frozen_time": 1900000000 + 40 * 86400})
    (found,) = client.v1.subscriptions.list(
        {"customer": customer.id, "limit": 1, "expand": ["data.items.data.price"]}
    ).data
    assert found.id == made.id == client.v1.subscriptions.retrieve(made.id).id
    (item,) = found["items"].data
    assert item.current_period_start > made["items"].data[0].current_period_start
    assert item.price.recurring is not None and item.price.recurring.meter == meter.id
    assert client.v1.subscription_items.list({"subscription": made.id}).data[0].id == item.id
    assert [each.id for each in client.v1.prices.list({"lookup_keys": ["starter_verify"]})] == [
        price.id
    ]
    assert len(served.invoices) == 1
    served.delete_customer(customer.id)
    assert client.v1.customers.retrieve(customer.id).deleted is True
    (gone,) = client.v1.subscriptions.list({"customer": customer.id, "status": "all"}).data
    assert gone.status == "canceled"
