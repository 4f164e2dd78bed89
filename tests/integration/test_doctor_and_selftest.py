"""From an empty Stripe account to a metering that is known to work, by commands alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from flask_host import Host
from provision_rig import catalogue

from flask_c2meter.emulator import StripeEmulator
from flask_c2meter.stripe_events import REPORTS, SNAPSHOTS

NewHost = Callable[..., Host]


def priced() -> dict[str, Any]:
    """A catalogue in which nothing billable is without a price."""
    content = catalogue()
    content["meters"]["sites"]["price"] = {"mode": "flat", "currency": "usd", "unit_amount": "100"}
    return content


@pytest.fixture
def settings(stripe_emulator: StripeEmulator) -> dict[str, Any]:
    """Of an app that leaves nothing to be said."""
    return {
        "C2METER_STRIPE_SECRET_KEY": "sk_test_1",
        "C2METER_STRIPE_BASE_URL": stripe_emulator.url,
        "C2METER_STRIPE_WEBHOOK_SECRET": "whsec_one,whsec_two",
        "C2METER_CATALOGUE": priced(),
        "C2METER_SECURITY_HEADERS": "strict",
        "C2METER_MAIL_SERVER": "mail.example.com",
        "C2METER_MAIL_SENDER": "usage@example.com",
    }


def run(host: Host, *arguments: str) -> Any:
    return host.app.test_cli_runner().invoke(args=["c2meter", *arguments])


def test_from_an_empty_account_to_a_metering_that_works(
    new_host: NewHost, stripe_emulator: StripeEmulator, settings: dict[str, Any]
) -> None:
    host = new_host(**settings)
    host.app.register_blueprint(host.meter.webhook_blueprint(), url_prefix="/stripe")
    receiver = "http://127.0.0.1:9/stripe/webhook"
    stripe_emulator.add_webhook_endpoint(receiver, "whsec_one", events=SNAPSHOTS)
    stripe_emulator.add_webhook_endpoint(receiver, "whsec_two", events=[*REPORTS], thin=True)
    stripe_emulator.hold_webhooks()
    assert run(host, "doctor").exit_code == 1

    assert run(host, "provision", "--apply").exit_code == 0
    examined = run(host, "doctor", "--strict", "--json")
    assert (examined.exit_code, json.loads(examined.output)["findings"]) == (0, [])

    tested = run(host, "selftest", "--timeout", "30", "--json")
    assert tested.exit_code == 0, tested.output
    report = json.loads(tested.output)
    assert {row["meter"]: row["passed"] for row in report["meters"]} == {
        "verify": True,
        "storage": True,
        "sites": True,
    }
    for meter in ("verify", "storage", "sites"):
        assert stripe_emulator.meter_total(meter, report["customer"]) == 0
        values = [each.value for each in stripe_emulator.events if each.event_name == meter]
        assert values == [1, -1]

    again = run(host, "provision")
    assert again.exit_code == 0
    assert again.output.splitlines()[-1] == "Nothing to do: Stripe bills by the catalogue."
    assert run(host, "doctor", "--strict").exit_code == 0, "the test has left nothing to be said"
    assert list(host.metering.store.verify()) == []
