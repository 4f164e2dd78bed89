"""The emulator's page and remote control, as far as they show and drive billing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from emulatorkit import STARTER, Account, Receiver, at
from werkzeug.test import Client


class Remote:
    """Another process, as far as the emulator can tell."""

    def __init__(self, account: Account) -> None:
        self._client = Client(account.stripe)

    def pull(self, lever: str, **params: Any) -> Any:
        answer = self._client.post(f"/_emulator/{lever}", json=params)
        assert answer.status_code == 200, answer.text
        return answer.get_json().get("result")

    def refuse(self, lever: str, **params: Any) -> str:
        answer = self._client.post(f"/_emulator/{lever}", json=params)
        assert answer.status_code == 400, answer.text
        error: str = answer.get_json()["error"]
        return error

    @property
    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = self._client.get("/_emulator/state.json").get_json()
        return state

    @property
    def page(self) -> str:
        return self._client.get("/?live=0").text


@pytest.fixture
def account() -> Iterator[Account]:
    account = Account("2026-11-20")
    yield account
    account.stripe.stop()


@pytest.fixture
def remote(account: Account) -> Remote:
    return Remote(account)


def test_another_process_pulls_every_lever(account: Account, remote: Remote) -> None:
    with Receiver() as receiver:
        secret = remote.pull("add_webhook_endpoint", url=receiver.url, events=["customer.created"])
        assert secret.startswith("whsec_")
        remote.pull("hold_webhooks")
        clock = remote.pull("add_test_clock", frozen_time="2026-11-20T00:00:00Z")
        customer = remote.pull("add_customer", id="cus_1", name="A", metadata={"a": "b"})
        remote.pull("add_customer", test_clock=clock)
        assert customer == "cus_1"
        remote.pull("release_webhooks")
        event = receiver.wait(2)[0].event
        remote.pull("resend", event_id=event["id"])
        receiver.wait(3)
    remote.pull("update_customer", id="cus_1", email="a@example.org")
    remote.pull("advance_test_clock", id=clock, frozen_time="2026-12-20T00:00:00+00:00")
    remote.pull("add_meter", event_name="verify", display_name="Verify")
    remote.pull("add_price", meter="verify", lookup_key="a", tiers=STARTER)
    remote.pull("add_price", meter="verify", lookup_key="b", unit_amount_decimal="3")
    remote.pull("add_price", meter="sign", lookup_key="c", unit_amount_decimal="1")
    id = remote.pull(
        "add_subscription",
        customer="cus_1",
        prices=["a"],
        start="2026-11-01T01:00:00+01:00",
        trial_end="2026-11-10T00:00:00Z",
        billing_mode="classic",
        id="sub_1",
    )
    assert account.period(id) == (at("2026-11-10"), at("2026-12-10"))
    remote.pull("add_item", subscription=id, price="c")
    remote.pull("change_price", subscription=id, old="a", new="b")
    remote.pull("change_prices", subscription=id, changes={"b": "a"}, reset_anchor=True)
    remote.pull("remove_item", subscription=id, price="c")
    remote.pull("set_status", subscription=id, status="past_due")
    account.use(2001)
    preview = remote.pull("preview_invoice", subscription=id)
    assert (preview["total"], preview["period_end"]) == (4, "2026-12-20T00:00:00.000Z")
    assert preview["lines"][0]["quantity"] == 2001
    remote.pull("cancel_subscription", subscription=id, at_period_end=True)
    assert account.subscription(id)["cancel_at_period_end"] is True
    remote.pull("delete_customer", id="cus_1")
    assert remote.pull("report_errors") == []
    assert account.subscription(id)["status"] == "canceled"


@pytest.mark.parametrize(
    ("lever", "params"),
    [
        ("add_customer", {"colour": "red"}),
        ("add_customer", {"metadata": "red"}),
        ("add_subscription", {"customer": "cus_1", "prices": ["missing"]}),
        ("add_subscription", {"customer": "cus_1", "prices": []}),
        ("add_subscription", {"customer": "cus_1", "prices": ["p"], "start": "2026-11-01"}),
        ("add_subscription", {"customer": "cus_1", "prices": ["p"], "start": "yesterday"}),
        ("add_subscription", {"customer": "cus_1", "prices": ["p"], "start": 5}),
        ("add_subscription", {"customer": "cus_1", "prices": ["p"], "billing_mode": "rigid"}),
        ("add_price", {"meter": "verify", "unit_amount_decimal": 0.04}),
        ("add_price", {"meter": "verify", "tiers": [5]}),
        ("delete_customer", {"id": "cus_x"}),
        ("preview_invoice", {}),
    ],
)
def test_a_wrong_lever_changes_nothing(
    account: Account, remote: Remote, lever: str, params: dict[str, Any]
) -> None:
    account.stripe.add_price("verify", lookup_key="p", unit_amount_decimal="1")
    before = remote.state
    assert remote.refuse(lever, **params)
    assert remote.state == before


def test_the_state_shows_what_is_billed(account: Account, remote: Remote) -> None:
    stripe = account.stripe
    price = stripe.add_price("verify", lookup_key="starter", tiers=STARTER)
    stripe.add_customer("cus_1", name="Acme", email="a@example.org")
    id = stripe.add_subscription("cus_1", ["starter"])
    account.use(2500)
    state = remote.state
    assert state["customers"] == [
        {
            "id": "cus_1",
            "name": "Acme",
            "email": "a@example.org",
            "test_clock": None,
            "deleted": False,
        }
    ]
    (subscription,) = state["subscriptions"]
    assert (subscription["id"], subscription["so_far"]) == (id, 2000)
    (item,) = subscription["items"]
    assert (item["price"], item["lookup_key"], item["meter"]) == (price, "starter", "verify")
    assert item["period_end"] == "2026-12-20T00:00:00.000Z"
    account.go("2026-12-20")
    stripe.cancel_subscription(id)
    state = remote.state
    assert [invoice["total"] for invoice in state["invoices"]] == [0, 2000]
    assert state["invoices"][1]["lines"][0]["amount"] == 2000
    assert state["subscriptions"][0]["so_far"] is None


def test_the_page_shows_what_is_billed_and_escapes_it(account: Account, remote: Remote) -> None:
    stripe = account.stripe
    with Receiver(statuses=[200, 500]) as receiver:
        secret = stripe.add_webhook_endpoint(receiver.url, events=["customer.created"])
        stripe.add_price("<i>verify", lookup_key="<b>starter", tiers=STARTER)
        stripe.add_customer("cus_<u>1", name="<script>alert(1)</script>", email="a@example.org")
        id = stripe.add_subscription("cus_<u>1", ["<b>starter"])
        receiver.wait(1)
        assert stripe.wait_for(lambda emulator: bool(emulator.webhook_deliveries))
    account.use(402500, meter="<i>verify", customer="cus_<u>1")
    account.go("2026-12-20")
    stripe.cancel_subscription(id, at_period_end=True)
    page = remote.page
    for shown in ("16,020.00 USD", "a@example.org", "draft", "2026-12-20", "ends", "402,500"):
        assert shown in page, shown
    assert "customer.<wbr>created" in page
    for hidden in ("<script", "<i>", "<b>", "<u>", secret):
        assert hidden not in page
    assert secret not in json.dumps(remote.state)
    stripe.delete_customer("cus_<u>1")
    assert "deleted" in remote.page


def test_the_page_knows_currencies_without_cents(account: Account, remote: Remote) -> None:
    for currency in ("jpy", "bhd"):
        account.stripe.add_price(
            "verify", lookup_key=currency, currency=currency, unit_amount_decimal="1"
        )
        account.stripe.add_subscription(f"cus_{currency}", [currency])
        account.use(1234, customer=f"cus_{currency}")
    assert "1,234 JPY" in remote.page
    assert "1.234 BHD" in remote.page


def test_long_lists_are_cut_on_the_page_only(account: Account, remote: Remote) -> None:
    account.stripe.add_price("verify", lookup_key="p", unit_amount_decimal="1")
    for number in range(30):
        account.stripe.add_subscription(f"cus_{number:02}", ["p"])
    account.go("2026-12-20")
    page = remote.page
    assert "and 5 more customers" in page and "and 5 more subscriptions" in page
    assert "the last 10 of 30" in page
    assert len(remote.state["invoices"]) == len(remote.state["subscriptions"]) == 30
