"""Webhooks of the emulator: told once, signed, in order, tried again, held back, thin or not."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import requests
import stripe as sdk
from emulatorkit import KEY, STARTER, Account, Receiver, at

from flask_c2meter.emulator import StripeEmulator

NOON = at("2026-11-23T12:00")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


@pytest.fixture
def account() -> Iterator[Account]:
    account = Account("2026-11-01")
    yield account
    account.stripe.stop()


@pytest.fixture
def served() -> Iterator[StripeEmulator]:
    with StripeEmulator(clock=lambda: NOON, known_customers_only=True, max_samples=2) as emulator:
        yield emulator


@pytest.fixture
def client(served: StripeEmulator) -> Iterator[sdk.StripeClient]:
    """A real Stripe client that speaks to the served emulator."""
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


def delivered(stripe: StripeEmulator, count: int) -> list[tuple[int | None, int]]:
    """Status and attempt of the first deliveries, once there are so many."""
    assert stripe.wait_for(lambda emulator: len(emulator.webhook_deliveries) >= count)
    return [(each.status, each.attempt) for each in stripe.webhook_deliveries]


# --- what is told ---------------------------------------------------------------------------


def test_a_subscriptions_life_is_told_in_order(account: Account, receiver: Receiver) -> None:
    stripe = account.stripe
    stripe.add_webhook_endpoint(receiver.url)
    stripe.add_price("verify", lookup_key="p", tiers=STARTER)
    id = stripe.add_subscription("cus_1", ["p"])
    account.go("2027-01-10")
    stripe.cancel_subscription(id, at_period_end=True)
    account.go("2027-02-10")
    stripe.delete_customer("cus_1")
    told = [each.event for each in receiver.wait(13)]
    assert [(event["type"], event["created"]) for event in told] == [
        (type, int(at(moment).timestamp()))
        for type, moment in [
            ("billing.meter.created", "2026-11-01"),
            ("customer.created", "2026-11-01"),
            ("customer.subscription.created", "2026-11-01"),
            ("customer.subscription.updated", "2026-12-01"),
            ("invoice.created", "2026-12-01"),
            ("invoice.finalized", "2026-12-01T01:00"),
            ("customer.subscription.updated", "2027-01-01"),
            ("invoice.created", "2027-01-01"),
            ("invoice.finalized", "2027-01-01T01:00"),
            ("customer.subscription.updated", "2027-01-10"),
            ("customer.subscription.deleted", "2027-02-01"),
            ("invoice.created", "2027-02-01"),
            ("invoice.finalized", "2027-02-01T01:00"),
        ]
    ]
    receiver.wait(14)
    assert receiver.types[13:] == ["customer.deleted"]
    assert len({event["id"] for event in told}) == 13


def test_an_update_says_what_was_before(account: Account, receiver: Receiver) -> None:
    stripe = account.stripe
    stripe.add_price("verify", lookup_key="p", tiers=STARTER)
    id = stripe.add_subscription("cus_1", ["p"])
    before = account.subscription(id)
    stripe.add_webhook_endpoint(receiver.url, events=["customer.*", "invoice.created"])
    account.go("2026-12-01")
    stripe.update_customer("cus_1", email="a@example.org", metadata={"plan": "starter"})
    turned, drafted, updated = (each.event for each in receiver.wait(3))
    now = account.subscription(id)
    assert turned["data"] == {
        "object": now,
        "previous_attributes": {
            "items": {"data": before["items"]["data"]},
            "latest_invoice": None,
        },
    }
    assert drafted["data"]["object"]["id"] == now["latest_invoice"]
    assert "previous_attributes" not in drafted["data"]
    assert updated["data"]["previous_attributes"] == {"email": None, "metadata": {"plan": None}}
    assert {key: turned[key] for key in ("object", "livemode", "pending_webhooks")} == {
        "object": "event",
        "livemode": False,
        "pending_webhooks": 1,
    }
    assert turned["api_version"]


def test_an_invoice_is_told_as_draft_and_as_final(account: Account, receiver: Receiver) -> None:
    stripe = account.stripe
    price = stripe.add_price("verify", lookup_key="p", tiers=STARTER)
    stripe.add_subscription("cus_1", ["p"])
    account.use(2500)
    stripe.add_webhook_endpoint(receiver.url, events=["invoice.*"])
    account.go("2026-12-01")
    receiver.wait(1)
    account.use(1, "2026-11-30")
    account.go("2026-12-01T01:00")
    draft, final = (each.event["data"]["object"] for each in receiver.wait(2))
    assert (draft["status"], draft["total"]) == ("draft", 2000)
    assert draft["automatically_finalizes_at"] == int(at("2026-12-01T01:00").timestamp())
    assert (final["status"], final["total"], final["id"]) == ("open", 2004, draft["id"])
    assert final["status_transitions"]["finalized_at"] == draft["automatically_finalizes_at"]
    assert final["billing_reason"] == "subscription_cycle"
    (line,) = final["lines"]["data"]
    assert (line["quantity"], line["amount"]) == (2501, 2004)
    assert line["pricing"]["price_details"]["price"] == price
    assert line["period"] == {
        "start": int(at("2026-11-01").timestamp()),
        "end": int(at("2026-12-01").timestamp()),
    }
    details = line["parent"]["subscription_item_details"]
    assert details["subscription"] == final["parent"]["subscription_details"]["subscription"]


def test_pauses_and_meters_are_told(account: Account, receiver: Receiver) -> None:
    stripe = account.stripe
    stripe.add_price("verify", lookup_key="p", tiers=STARTER)
    id = stripe.add_subscription("cus_1", ["p"])
    stripe.add_webhook_endpoint(receiver.url)
    stripe.set_status(id, "paused")
    stripe.set_status(id, "active")
    stripe.set_status(id, "active")
    (meter,) = account.get("/v1/billing/meters").get_json()["data"]
    path = f"/v1/billing/meters/{meter['id']}"
    for lever in ("", "/deactivate", "/deactivate", "/reactivate"):
        account.post(path + lever, {"display_name": "New"} if not lever else "")
    receiver.wait(7)
    assert receiver.types == [
        "customer.subscription.updated",
        "customer.subscription.paused",
        "customer.subscription.updated",
        "customer.subscription.resumed",
        "billing.meter.updated",
        "billing.meter.deactivated",
        "billing.meter.reactivated",
    ]


def test_an_endpoint_gets_the_types_it_wants(account: Account, receiver: Receiver) -> None:
    stripe = account.stripe
    stripe.add_webhook_endpoint(receiver.url, events=["customer.created", "billing.meter.*"])
    stripe.add_meter("verify")
    id = stripe.add_customer()
    stripe.update_customer(id, name="n")
    stripe.add_customer()
    receiver.wait(3)
    assert receiver.types == ["billing.meter.created", "customer.created", "customer.created"]


def test_an_account_of_live_keys_tells_of_live_mode(receiver: Receiver) -> None:
    stripe = StripeEmulator(keys={"sk_live_1"})
    stripe.add_webhook_endpoint(receiver.url)
    stripe.add_customer()
    assert receiver.wait(1)[0].event["livemode"] is True
    stripe.stop()


# --- how it is sent -------------------------------------------------------------------------


def test_the_real_sdk_accepts_the_signature(
    served: StripeEmulator, client: sdk.StripeClient, receiver: Receiver
) -> None:
    secret = served.add_webhook_endpoint(receiver.url)
    other = served.add_webhook_endpoint(receiver.url, "whsec_mine")
    assert (secret[:6], other) == ("whsec_", "whsec_mine")
    served.add_customer("cus_1", name="Zoë")
    signed = {}
    for webhook in receiver.wait(2):
        header = webhook.headers["Stripe-Signature"]
        signed[header] = webhook
        assert header.startswith(f"t={int(NOON.timestamp())},v1=")
        assert webhook.headers["Content-Type"] == "application/json; charset=utf-8"
    accepted = []
    for header, webhook in signed.items():
        for known in (secret, other):
            if _verifies(webhook.body, header, known):
                accepted.append(known)
                event = client.construct_event(webhook.body, header, known, tolerance=10**9)
                assert event.type == "customer.created"
                assert event.data.object["name"] == "Zoë"
        assert not _verifies(webhook.body + b" ", header, secret)
    assert sorted(accepted) == sorted([secret, other])


def _verifies(body: bytes, header: str, secret: str) -> bool:
    try:
        return bool(sdk.WebhookSignature.verify_header(body.decode(), header, secret))
    except sdk.SignatureVerificationError:
        return False


def test_the_signature_is_of_when_it_is_sent(account: Account, receiver: Receiver) -> None:
    account.stripe.add_webhook_endpoint(receiver.url)
    account.stripe.hold_webhooks()
    account.stripe.add_customer()
    account.go("2026-11-02")
    assert receiver.received == []
    account.stripe.release_webhooks()
    (webhook,) = receiver.wait(1)
    assert webhook.event["created"] == int(at("2026-11-01").timestamp())
    sent = int(at("2026-11-02").timestamp())
    assert webhook.headers["Stripe-Signature"].startswith(f"t={sent},")
    (delivery,) = _logged(account.stripe, 1)
    assert (delivery.event, delivery.url, delivery.sent_at) == (
        webhook.event["id"],
        receiver.url,
        at("2026-11-02"),
    )


def _logged(stripe: StripeEmulator, count: int) -> list[Any]:
    delivered(stripe, count)
    return stripe.webhook_deliveries


def test_what_fails_is_tried_again_and_nothing_overtakes_it(
    account: Account, receiver: Receiver
) -> None:
    receiver.statuses = [500, 302, 0]
    account.stripe.add_webhook_endpoint(receiver.url)
    account.stripe.add_customer()
    account.stripe.add_meter("verify")
    receiver.wait(5)
    assert receiver.types == ["customer.created"] * 4 + ["billing.meter.created"]
    assert len({each.event["id"] for each in receiver.received}) == 2
    assert delivered(account.stripe, 5) == [(500, 1), (302, 2), (None, 3), (200, 4), (200, 1)]


def test_attempts_are_limited(receiver: Receiver) -> None:
    receiver.statuses = [500] * 3
    account = Account(webhook_attempts=3)
    account.stripe.add_webhook_endpoint(receiver.url)
    account.stripe.add_customer()
    account.stripe.add_meter("verify")
    assert delivered(account.stripe, 4) == [(500, 1), (500, 2), (500, 3), (200, 1)]
    account.stripe.stop()


def test_a_broken_endpoint_holds_up_no_other(account: Account, receiver: Receiver) -> None:
    with Receiver() as gone:
        dead = gone.url
    account.stripe.add_webhook_endpoint(dead)
    account.stripe.add_webhook_endpoint(receiver.url)
    for _ in range(3):
        account.stripe.add_customer()
    receiver.wait(3)
    failed = [each for each in _logged(account.stripe, 4) if each.url == dead]
    assert {each.status for each in failed} == {None}


def test_an_event_can_be_sent_again_and_late(account: Account, receiver: Receiver) -> None:
    stripe = account.stripe
    stripe.add_webhook_endpoint(receiver.url)
    stripe.add_customer()
    first = receiver.wait(1)[0].event
    stripe.hold_webhooks()
    stripe.add_meter("verify")
    stripe.resend(first["id"])
    stripe.release_webhooks()
    _, meter, again = (each.event for each in receiver.wait(3))
    assert (meter["type"], again) == ("billing.meter.created", first)
    with pytest.raises(ValueError, match="No such event"):
        stripe.resend("evt_x")


@pytest.mark.parametrize("url", ["ftp://example.org/", "/webhook", "http://", "http://h:x/"])
def test_an_endpoint_needs_a_url(url: str) -> None:
    with pytest.raises(ValueError):
        StripeEmulator().add_webhook_endpoint(url)


# --- the thread -----------------------------------------------------------------------------


def test_one_thread_sends_from_the_first_event_to_the_stop(receiver: Receiver) -> None:
    before = threading.active_count()
    account = Account()
    account.stripe.add_webhook_endpoint(receiver.url)
    account.stripe.hold_webhooks()
    assert threading.active_count() == before
    for _ in range(5):
        account.stripe.add_customer()
    assert threading.active_count() == before + 1
    account.stripe.stop()
    assert threading.active_count() == before
    account.stripe.add_customer()
    assert threading.active_count() == before
    assert receiver.received == []


def test_what_a_stop_leaves_is_sent_after_the_next_start(receiver: Receiver) -> None:
    stripe = StripeEmulator(clock=lambda: NOON)
    stripe.add_webhook_endpoint(receiver.url)
    stripe.hold_webhooks()
    with stripe:
        stripe.add_customer()
    stripe.add_meter("verify")
    stripe.release_webhooks()
    assert receiver.received == []
    with stripe:
        receiver.wait(2)
        assert delivered(stripe, 2) == [(200, 1), (200, 1)]


def test_a_stop_does_not_wait_for_a_slow_endpoint(receiver: Receiver) -> None:
    receiver.gate.clear()
    receiver.statuses = [0]
    with StripeEmulator() as stripe:
        stripe.add_webhook_endpoint(receiver.url)
        stripe.add_customer()
        receiver.wait(1)
    assert stripe.webhook_deliveries == []
    receiver.gate.set()
    with stripe:
        assert delivered(stripe, 1) == [(200, 1)]


def test_forget_drops_the_endpoints(account: Account, receiver: Receiver) -> None:
    account.stripe.add_webhook_endpoint(receiver.url)
    account.stripe.add_customer()
    delivered(account.stripe, 1)
    account.stripe.forget()
    account.stripe.add_customer()
    assert account.stripe.webhook_deliveries == []
    assert len(receiver.received) == 1
    assert account.stripe.invoices == []


def test_time_is_watched_while_it_serves(receiver: Receiver) -> None:
    now = [at("2026-11-01")]
    with StripeEmulator(clock=lambda: now[0]) as stripe:
        stripe.add_price("verify", lookup_key="p", tiers=STARTER)
        stripe.add_subscription("cus_1", ["p"])
        stripe.add_webhook_endpoint(receiver.url)
        now[0] = at("2026-12-01")
        receiver.wait(2)
        assert receiver.types == ["customer.subscription.updated", "invoice.created"]


# --- thin reports of errors -----------------------------------------------------------------


def _event(identifier: str, meter: str = "verify", value: str = "1") -> Any:
    payload = {"stripe_customer_id": "cus_x", "value": value}
    return {"event_name": meter, "identifier": identifier, "payload": payload}


def test_bad_events_are_reported_by_themselves_and_fetched_by_the_real_sdk(
    served: StripeEmulator, client: sdk.StripeClient, receiver: Receiver
) -> None:
    secret = served.add_webhook_endpoint(receiver.url, thin=True)
    served.add_meter("verify")
    client.v1.billing.meter_events.create(_event("a"))
    (push,) = receiver.wait(1)
    assert "data" not in push.event
    header = push.headers["Stripe-Signature"]
    with pytest.raises(sdk.SignatureVerificationError):
        client.parse_event_notification(push.body, header, "whsec_other", tolerance=10**9)
    notice = client.parse_event_notification(push.body, header, secret, tolerance=10**9)
    assert isinstance(notice, sdk.events.V1BillingMeterErrorReportTriggeredEventNotification)
    event = notice.fetch_event()
    assert event.data.developer_message_summary == "There is 1 invalid event"
    (kind,) = event.data.reason.error_types
    assert kind.code == "meter_event_customer_not_found"
    assert kind.sample_errors[0].request.identifier == "a"
    assert notice.fetch_related_object().event_name == "verify"


def test_a_report_counts_more_than_it_samples(served: StripeEmulator, receiver: Receiver) -> None:
    with Receiver() as thin:
        served.add_webhook_endpoint(receiver.url)
        served.hold_webhooks()
        served.add_webhook_endpoint(thin.url, thin=True)
        served.add_meter("verify")
        served.add_meter("sign")
        for number, meter in enumerate(("verify", "verify", "sign", "verify", "verify")):
            _post_event(served, _event(f"i{number}", meter))
        served.report_errors()
        served.release_webhooks()
        assert served.wait_for(lambda stripe: stripe.snapshot().webhooks_waiting == 0)
    assert set(thin.types) == {"v1.billing.meter.error_report_triggered"}
    assert set(receiver.types) == {"billing.meter.created"}
    assert served.report_errors() == []
    counts = []
    for webhook in thin.received:
        event = _fetch(served, webhook.event["id"])
        for kind in event["data"]["reason"]["error_types"]:
            assert len(kind["sample_errors"]) <= 2
            counts.append(kind["error_count"])
        assert event["related_object"]["type"] == "billing.meter"
    assert sum(counts) == 5


def test_a_report_lists_at_most_so_many_samples_per_code() -> None:
    account = Account(customers=(), max_samples=3)
    account.stripe.add_meter("verify")
    for number in range(12):
        account.use(1, identifier=f"i{number}")
    (id,) = account.stripe.report_errors()
    event = account.get(f"/v2/core/events/{id}").get_json()
    (kind,) = event["data"]["reason"]["error_types"]
    assert (event["data"]["reason"]["error_count"], kind["error_count"]) == (12, 12)
    assert event["data"]["developer_message_summary"] == "There are 12 invalid events"
    samples = [sample["request"]["identifier"] for sample in kind["sample_errors"]]
    assert samples == ["i0", "i1", "i2"]
    account.stripe.advance(timedelta(days=31))
    assert account.get(f"/v2/core/events/{id}").status_code == 404


def test_events_without_a_meter_are_a_report_of_their_own(receiver: Receiver) -> None:
    with StripeEmulator(auto_meters=False) as stripe:
        stripe.add_webhook_endpoint(receiver.url, thin=True)
        stripe.add_meter("verify")
        session = _post(stripe, "/v2/billing/meter_event_session", {})
        bad = [_event("a", "missing"), _event("b", value="x"), _event("c", "missing too")]
        token = session["authentication_token"]
        _post(stripe, "/v2/billing/meter_event_stream", {"events": bad}, token)
        receiver.wait(2)
        events = {each.event["type"]: each.event for each in receiver.received}
        missing = events["v1.billing.meter.no_meter_found"]
        assert "related_object" not in missing
        reason = _fetch(stripe, missing["id"])["data"]["reason"]
        assert (reason["error_count"], reason["error_types"][0]["code"]) == (2, "no_meter")
        invalid = _fetch(stripe, events["v1.billing.meter.error_report_triggered"]["id"])
        assert invalid["data"]["reason"]["error_types"][0]["code"] == "meter_event_invalid_value"


def _post(stripe: StripeEmulator, path: str, data: Any, secret: str = KEY) -> Any:
    with requests.Session() as session:
        session.trust_env = False
        headers = {"Authorization": f"Bearer {secret}"}
        answer = session.post(stripe.url + path, json=data, headers=headers, timeout=5)
        assert answer.status_code == 200, answer.text
        return answer.json()


def _post_event(stripe: StripeEmulator, event: Any) -> None:
    _post(stripe, "/v2/billing/meter_events", event)


def _fetch(stripe: StripeEmulator, id: str) -> Any:
    with requests.Session() as session:
        session.trust_env = False
        headers = {"Authorization": f"Bearer {KEY}"}
        answer = session.get(f"{stripe.url}/v2/core/events/{id}", headers=headers, timeout=5)
        assert answer.status_code == 200, answer.text
        return answer.json()
