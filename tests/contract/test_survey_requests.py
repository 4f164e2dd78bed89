"""What is asked of Stripe about ourselves, over a socket, and what becomes of its answers."""

from __future__ import annotations

from datetime import timedelta

import pytest

from flask_c2meter.catalogue import load
from flask_c2meter.emulator import StripeEmulator
from flask_c2meter.gateway import Gateway
from flask_c2meter.model import Clock, utc_now
from flask_c2meter.survey import PERMISSIONS, Destination, Permission, Survey, survey
from flask_c2meter.testing import FrozenClock

#: Permission -> the path that takes it.
PATHS = {
    "Billing Meters: Read": "/v1/billing/meters",
    "Products: Read": "/v1/products",
    "Prices: Read": "/v1/prices",
    "Subscriptions: Read": "/v1/subscriptions",
    "Customers: Read": "/v1/customers",
    "Webhook Endpoints: Read": "/v1/webhook_endpoints",
    "Event Destinations: Read": "/v2/core/event_destinations",
}


def look(stripe: StripeEmulator, key: str = "sk_test_1", clock: Clock = utc_now) -> Survey:
    return survey(Gateway(key, base_url=stripe.url, clock=clock), load(None))


def test_nothing_is_changed(stripe_emulator: StripeEmulator) -> None:
    found = look(stripe_emulator)
    assert (found.failure, list(found.missing)) == ("", [])
    assert {request.method for request in stripe_emulator.requests} == {"GET"}


@pytest.mark.parametrize(
    ("key", "livemode", "is_restricted"),
    [("sk_test_1", False, False), ("rk_test_1", False, True), ("rk_live_1", True, True)],
)
def test_keys(
    stripe_emulator: StripeEmulator, key: str, livemode: bool, is_restricted: bool
) -> None:
    found = look(stripe_emulator, key)
    assert (found.livemode, found.is_restricted, found.is_diverted) == (
        livemode,
        is_restricted,
        True,
    )


@pytest.mark.parametrize("ahead_s", [0, 90, -7200])
def test_the_clock_is_compared_with_stripes(
    stripe_emulator: StripeEmulator, c2meter_clock: FrozenClock, ahead_s: int
) -> None:
    stripe_emulator.advance(timedelta(seconds=ahead_s))
    found = look(stripe_emulator, clock=c2meter_clock)
    assert found.skew_s is not None
    assert abs(found.skew_s - ahead_s) <= 1


def test_the_clock_is_told_by_a_refusal_too(
    stripe_emulator: StripeEmulator, c2meter_clock: FrozenClock
) -> None:
    stripe_emulator.fail(403, times=None, path="/v1/account")
    stripe_emulator.advance(timedelta(seconds=90))
    found = look(stripe_emulator, clock=c2meter_clock)
    assert found.skew_s == pytest.approx(90, abs=1)
    assert (found.failure, list(found.missing)) == ("", [])


@pytest.mark.parametrize("permission", PERMISSIONS, ids=lambda each: each.name)
def test_what_a_key_lacks_is_named_and_the_rest_is_looked_at(
    stripe_emulator: StripeEmulator, permission: Permission
) -> None:
    name = permission.name
    stripe_emulator.fail(403, times=None, path=PATHS[name])
    found = look(stripe_emulator, "rk_test_1")
    assert [each.name for each in found.missing] == [name]
    assert found.failure == ""
    knows_plan = name.split(":")[0] not in ("Billing Meters", "Products", "Prices")
    assert (found.plan is not None) is knows_plan
    assert (found.snapshots is None) is (name == "Webhook Endpoints: Read")
    assert (found.thin is None) is (name == "Event Destinations: Read")


def test_an_account_without_the_newer_api_is_looked_at_all_the_same(
    stripe_emulator: StripeEmulator,
) -> None:
    stripe_emulator.fail(404, times=None, path="/v2/core/event_destinations")
    found = look(stripe_emulator)
    assert [each.name for each in found.missing] == ["Event Destinations: Read"]
    assert (found.failure, found.snapshots, found.thin) == ("", [], None)
    assert found.plan is not None


def test_a_refused_key_ends_it(stripe_emulator: StripeEmulator) -> None:
    stripe_emulator.accept_keys(["sk_test_other"])
    found = look(stripe_emulator)
    assert (found.failure, found.plan) == ("401 api_key_invalid", None)
    assert len(stripe_emulator.requests) == 1


def test_no_stripe(stripe_emulator: StripeEmulator) -> None:
    stripe_emulator.stop()
    found = look(stripe_emulator)
    assert (found.failure, found.skew_s, found.plan) == ("no_connection", None, None)


def test_an_outage_in_the_middle_keeps_what_is_known(stripe_emulator: StripeEmulator) -> None:
    stripe_emulator.fail(503, times=None, path="/v1/prices")
    found = look(stripe_emulator)
    assert found.failure.startswith("503")
    assert found.skew_s is not None


def test_destinations(stripe_emulator: StripeEmulator) -> None:
    stripe_emulator.add_webhook_endpoint("https://a.example/one", events=["invoice.created"])
    stripe_emulator.add_webhook_endpoint("https://a.example/two", events=["v1.*"], thin=True)
    found = look(stripe_emulator)
    assert found.snapshots == [
        Destination("https://a.example/one", False, True, ["invoice.created"])
    ]
    assert found.thin == [Destination("https://a.example/two", True, True, ["v1.*"])]


def test_more_than_a_page_of_endpoints(stripe_emulator: StripeEmulator) -> None:
    for number in range(120):
        stripe_emulator.add_webhook_endpoint(f"https://a.example/{number}")
    found = look(stripe_emulator)
    assert len(found.snapshots or ()) == 120
