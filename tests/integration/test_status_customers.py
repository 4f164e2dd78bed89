"""``status`` names the customers that are billed otherwise than by one subscription."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from billing_rig import STORAGE, VERIFY, Account, billed


@pytest.fixture
def account(tmp_path: Path) -> Iterator[Account]:
    """Stripe knows only the customers that were added."""
    with billed(tmp_path, emulator={"known_customers_only": True}) as account:
        yield account


def found(account: Account, *customers: str) -> tuple[dict[str, Any], str]:
    """What ``status`` says once the worker has looked at *customers*: as JSON, and as text."""
    account.clock.now += timedelta(minutes=2)
    for customer in customers:
        account.metering.usage(customer)  # somebody looks, so that the worker does
    account.work()
    runner = account.app.test_cli_runner()
    report: dict[str, Any] = json.loads(runner.invoke(args=["c2meter", "status", "--json"]).output)
    return report, runner.invoke(args=["c2meter", "status"]).output


def use(account: Account, *customers: str) -> None:
    for customer in customers:
        account.metering.record(VERIFY, customer, value=1)


def subscribe(account: Account, customer: str, *prices: str) -> None:
    for price in prices:
        account.stripe.add_subscription(customer, [price])
    account.settle()


def test_with_one_subscription_each_nobody_is_named(account: Account) -> None:
    for customer in ("cus_a", "cus_b"):
        subscribe(account, customer, f"starter_{VERIFY}")
        use(account, customer)
    report, text = found(account, "cus_a", "cus_b")
    assert report["subscriptions"] == {"known": {"count": 2, "examples": []}}
    assert report["healthy"] and report["notes"] == []
    assert "customers  2 known" in text and "cus_" not in text


def test_several_are_named_and_no_fault(account: Account) -> None:
    subscribe(account, "cus_many", f"starter_{VERIFY}", f"growth_{STORAGE}")
    use(account, "cus_many")
    report, text = found(account, "cus_many")
    assert report["subscriptions"]["several"] == {"count": 1, "examples": ["cus_many"]}
    assert report["healthy"]
    assert "- 1 customers (cus_many) have several subscriptions" in text


def test_none_is_named_and_no_fault(account: Account) -> None:
    for number in range(5):
        account.stripe.add_customer(f"cus_{number}")
    customers = [f"cus_{number}" for number in range(5)]
    use(account, *customers)
    report, text = found(account, *customers)
    assert report["subscriptions"]["none"] == {"count": 5, "examples": customers}
    assert report["healthy"]
    assert (
        "- 5 customers (cus_0, cus_1, cus_2, ...) have no subscription: nothing is billed" in text
    )


@pytest.mark.parametrize("told", [True, False], ids=["by webhook", "by a look"])
def test_a_deleted_one_is_named_as_a_problem(account: Account, told: bool) -> None:
    subscribe(account, "cus_gone", f"starter_{VERIFY}")
    use(account, "cus_gone")
    found(account, "cus_gone")
    if not told:
        account.hold_webhooks()
    account.stripe.delete_customer("cus_gone")
    account.settle()
    report, text = found(account, *(() if told else ("cus_gone",)))
    assert report["subscriptions"] == {"deleted": {"count": 1, "examples": ["cus_gone"]}}
    assert not report["healthy"]
    assert "! 1 customers (cus_gone): deleted at Stripe: usage is billed nowhere" in text


def test_one_that_stripe_does_not_know_is_named_as_a_problem(account: Account) -> None:
    use(account, "cus_typo")
    report, text = found(account, "cus_typo")
    assert report["subscriptions"]["unknown"] == {"count": 1, "examples": ["cus_typo"]}
    assert "! 1 customers (cus_typo): not known to Stripe: usage is billed nowhere" in text


def test_one_that_subscribes_again_is_named_no_longer(account: Account) -> None:
    account.stripe.add_customer("cus_new")
    use(account, "cus_new")
    report, _ = found(account, "cus_new")
    assert set(report["subscriptions"]) == {"none"}
    subscribe(account, "cus_new", f"starter_{VERIFY}")
    report, text = found(account)
    assert report["subscriptions"] == {"known": {"count": 1, "examples": []}}
    assert "cus_new" not in text


def test_one_that_cannot_be_read_is_named_as_a_problem(account: Account) -> None:
    account.stripe.fail(503, times=None, path="*subscriptions*")
    use(account, "cus_a")
    report, text = found(account, "cus_a")
    assert report["subscriptions"]["failed"] == {"count": 1, "examples": ["cus_a"]}
    assert "! 1 customers (cus_a): their subscriptions cannot be read" in text
