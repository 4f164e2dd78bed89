"""What Stripe reports of meters and of meter events it has refused: each has its effect once."""

from __future__ import annotations

import logging
import urllib.request
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from billing_rig import CUSTOMER, SECRET, SITES, VERIFY, Account, billed
from webhook_rig import event, inbox, reads, send, states, statuses

from flask_c2meter import usage_rejected
from flask_c2meter.transports import transport

REPORT = "v1.billing.meter.error_report_triggered"
NO_METER = "v1.billing.meter.no_meter_found"


@pytest.fixture
def account(tmp_path: Path) -> Iterator[Account]:
    """An account whose Stripe has forgotten ``cus_1``: it takes events and refuses them later.

    Webhooks are held back until the test lets them go.
    """
    with billed(tmp_path, emulator={"customers": {"cus_2"}}) as account:
        account.hold_webhooks()
        yield account


@pytest.fixture
def streaming(tmp_path: Path) -> Iterator[Account]:
    """An account that sends by the stream, which refuses everything later, to a Stripe that has
    lost the meters; two samples a report."""
    emulator = {"auto_meters": False, "customers": (), "max_samples": 2}
    with billed(tmp_path, emulator=emulator, C2METER_TRANSPORT="stream") as account:
        account.stripe.forget()
        account.stripe.add_webhook_endpoint(account.url, SECRET, thin=True)
        account.hold_webhooks()
        yield account


class Alarms:
    """What an operator is told: errors in the log, and ``usage_rejected``."""

    def __init__(self, account: Account, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog
        self.refused: list[str] = []
        usage_rejected.connect(self._rejected, sender=account.app)

    def _rejected(self, sender: object, reason: str, shipment: Any = None, **more: Any) -> None:
        assert reason == "refused"
        self.refused.append(shipment.identifier)

    @property
    def logged(self) -> list[str]:
        """The errors, one line each."""
        return [
            record.getMessage()
            for record in self._caplog.records
            if record.levelno >= logging.ERROR and record.name.startswith("flask_c2meter")
        ]


@pytest.fixture
def alarms(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> Alarms:
    which = "streaming" if "streaming" in request.fixturenames else "account"
    return Alarms(request.getfixturevalue(which), caplog)


def use(account: Account, value: int, customer: str = CUSTOMER, meter: str = VERIFY) -> None:
    account.metering.record(meter, customer, value=value)


def reported(account: Account) -> None:
    """Stripe reports what it has refused; the worker looks into it."""
    tell(account)
    account.work()


def tell(account: Account) -> None:
    """Stripe tells what it has to tell."""
    account.stripe.report_errors()
    account.release_webhooks()
    account.hold_webhooks()


def dead(account: Account) -> list[tuple[str, int, str | None]]:
    return [(each.customer, each.value, each.reason) for each in account.store.shipments("dead")]


def switch(account: Account, meter: str, what: str) -> None:
    """``deactivate`` or ``reactivate`` a meter, by its event name, as a person at Stripe would."""
    stripe_id = account.metering.gateway.meter_ids()[meter]
    call(account, f"/v1/billing/meters/{stripe_id}/{what}")
    tell(account)


def call(account: Account, path: str, form: bytes = b"") -> None:
    """Another program of the account's owner calls Stripe."""
    headers = {"Authorization": "Bearer sk_test_1"}
    request = urllib.request.Request(f"{account.stripe.url}{path}", form, headers)
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
        assert answer.status == 200


# -- refused meter events (case 20) ----------------------------------------------------------------


def test_case_20_what_a_report_names_is_dead_with_stripes_code_and_one_alert(
    account: Account, alarms: Alarms
) -> None:
    use(account, 5)
    use(account, 3, "cus_2")
    account.work()
    assert account.states() == {"delivered": 8}
    (lost,) = [each for each in account.store.shipments() if each.customer == CUSTOMER]

    tell(account)
    assert states(account, REPORT) == ["pending"]
    assert account.states() == {"delivered": 8}  # no request looks into anything
    account.work()

    assert states(account, REPORT) == ["applied"]
    assert dead(account) == [(CUSTOMER, 5, "rejected_async: meter_event_customer_not_found")]
    assert alarms.refused == [lost.identifier]
    (told,) = alarms.logged
    assert lost.identifier in told and "meter_event_customer_not_found" in told
    status = account.metering.status()
    assert status["unexplained_refusals"] == {}
    assert f"{VERIFY}: 1 dead shipments wait for a decision" in status["problems"]
    assert list(account.store.verify()) == []


def test_case_20_a_report_that_comes_again_has_no_second_effect(
    account: Account, alarms: Alarms
) -> None:
    use(account, 5)
    account.work()
    reported(account)
    (id,) = [id for id, (kind, *_) in inbox(account).items() if kind == REPORT]
    for _ in range(3):
        account.stripe.resend(id)
    reported(account)
    assert (len(dead(account)), len(alarms.refused), len(alarms.logged)) == (1, 1, 1)
    assert set(statuses(account)) == {200}
    assert sum("/v2/core/events/" in read for read in reads(account)) == 1


def test_case_20_the_rest_of_a_report_is_unexplained_and_shown(
    streaming: Account, alarms: Alarms
) -> None:
    """Stripe names samples only: here two of five."""
    streaming.stripe.add_meter(VERIFY)
    for number in range(5):
        use(streaming, 1, f"cus_{number}")
    streaming.work()
    reported(streaming)
    assert len(dead(streaming)) == len(alarms.refused) == 2
    status = streaming.metering.status()
    what = f"{VERIFY}: meter_event_customer_not_found"
    assert status["unexplained_refusals"] == {what: 3}
    problem = f"Stripe has refused 3 events that no shipment is known of ({what})"
    assert problem in status["problems"]
    printed = streaming.app.test_cli_runner().invoke(args=["c2meter", "status"])
    assert printed.exit_code == 1
    assert problem in printed.output


def test_what_was_refused_before_is_no_rest(streaming: Account, alarms: Alarms) -> None:
    """Another report names it again, since it was sent again."""
    use(streaming, 5)
    streaming.work()
    reported(streaming)
    (lost,) = streaming.store.shipments("dead")
    transport("stream", streaming.metering.gateway).send([lost])
    reported(streaming)
    assert states(streaming, NO_METER) == ["applied", "applied"]
    assert streaming.metering.status()["unexplained_refusals"] == {}
    assert len(dead(streaming)) == len(alarms.refused) == 1


def test_a_receipt_in_doubt_is_settled_by_a_report(account: Account) -> None:
    """Stripe has taken it, and we were cut off: what it names, it has received."""
    account.stripe.fail(path="*meter_events", reset=True, after_processing=True)
    use(account, 5)
    account.work()
    assert account.states() == {"ready": 5}
    reported(account)
    assert dead(account) == [(CUSTOMER, 5, "rejected_async: meter_event_customer_not_found")]
    sent = sum(read.endswith("meter_events") for read in reads(account))
    account.clock.now += timedelta(hours=1)
    account.work()
    assert sum(read.endswith("meter_events") for read in reads(account)) == sent
    assert list(account.store.verify()) == []


def test_a_report_that_overtakes_the_receipt_waits_for_it(account: Account) -> None:
    """While it is being sent: what the receipt says would be noted over what the report says."""
    account.stripe.fail(path="*meter_events", delay=0.5, after_processing=True)
    use(account, 5)
    sending = Thread(target=account.metering.worker.run_once)
    sending.start()
    assert account.stripe.wait_for(lambda stripe: len(stripe.async_errors) == 1)
    tell(account)
    account.metering.stripe_events.work()
    ((_, state, reason),) = inbox(account).values()
    assert (state, reason) == ("pending", "being_sent")
    sending.join(10)
    assert account.states() == {"delivered": 5}
    account.clock.now += timedelta(seconds=5)
    account.work()
    assert account.states() == {"dead": 5}


def test_events_of_somebody_else_on_the_account_are_unexplained(account: Account) -> None:
    account.stripe.add_meter("theirs")
    form = b"event_name=theirs&payload[stripe_customer_id]=cus_9&payload[value]=1"
    call(account, "/v1/billing/meter_events", form)
    reported(account)
    assert account.metering.status()["unexplained_refusals"] == {
        "theirs: meter_event_customer_not_found": 1
    }


def test_while_stripe_is_down_a_report_waits_and_is_looked_into_later(account: Account) -> None:
    use(account, 5)
    account.work()
    account.stripe.fail(503, times=None, path="/v2/core/events/*")
    reported(account)
    assert states(account, REPORT) == ["pending"]
    assert dead(account) == []
    account.stripe.recover()
    account.clock.now += timedelta(minutes=6)
    account.work()
    assert states(account, REPORT) == ["applied"]
    assert len(dead(account)) == 1


@pytest.mark.parametrize("kind", [REPORT, NO_METER])
def test_a_report_that_stripe_does_not_know_any_more_is_named_in_status(
    account: Account, kind: str
) -> None:
    thin = event(account, kind, {}, object="v2.core.event", created="2026-01-10T00:00:00.000Z")
    del thin["data"]
    assert send(account, thin)[0] == 200
    account.work()
    assert states(account, kind) == ["dead"]
    (problem,) = account.metering.status()["problems"]
    assert problem == (f"Stripe's event {thin['id']} ({kind}) cannot be looked into: 404 not_found")


# -- held meters -----------------------------------------------------------------------------------


def test_no_meter_found_holds_the_meter_with_one_alarm(streaming: Account, alarms: Alarms) -> None:
    use(streaming, 5)
    streaming.work()
    assert streaming.states() == {"delivered": 5}
    reported(streaming)
    assert states(streaming, NO_METER) == ["applied"]
    assert dead(streaming) == [(CUSTOMER, 5, "rejected_async: no_meter")]
    assert [(hold.meter, hold.reason) for hold in streaming.store.holds()] == [(VERIFY, "no_meter")]
    assert (
        sum("event=deliveries_held meter=verify reason=no_meter" in told for told in alarms.logged)
        == 1
    )
    problems = streaming.metering.status()["problems"]
    assert f"{VERIFY} is held: no_meter" in problems
    assert streaming.metering.status()["unexplained_refusals"] == {}

    use(streaming, 7)
    streaming.work()
    assert streaming.states() == {"dead": 5}  # the other is not sent
    use(streaming, 1, meter=VERIFY, customer="cus_3")
    reported(streaming)
    assert (
        sum("event=deliveries_held meter=verify reason=no_meter" in told for told in alarms.logged)
        == 1
    )


def test_a_deactivated_meter_is_held_at_once_and_released_when_it_is_back(
    account: Account, alarms: Alarms
) -> None:
    use(account, 1, "cus_2")
    account.work()
    switch(account, VERIFY, "deactivate")
    (hold,) = account.store.holds()
    assert (hold.meter, hold.reason) == (VERIFY, "archived_meter")
    (told,) = alarms.logged
    assert told.startswith(f"event=deliveries_held meter={VERIFY} reason=archived_meter")
    assert f"{VERIFY} is held: archived_meter" in account.metering.status()["problems"]

    sent = sum(read.endswith("meter_events") for read in reads(account))
    use(account, 2, "cus_2")
    account.metering.record(SITES, "cus_2", domain="a.example")
    account.work()
    assert sum(read.endswith("meter_events") for read in reads(account)) == sent + 1  # the site
    assert account.stripe.meter_total(VERIFY, "cus_2") == 1

    account.clock.now += timedelta(seconds=10)
    switch(account, VERIFY, "reactivate")
    assert account.store.holds() == []
    account.work()
    assert account.stripe.meter_total(VERIFY, "cus_2") == 3
    assert account.metering.status()["problems"] == []
    assert dead(account) == []
    assert len(alarms.logged) == 1
    assert states(account, "billing.meter.deactivated") == ["applied"]
    assert states(account, "billing.meter.reactivated") == ["applied"]


def test_several_alike_hold_with_one_alarm(account: Account, alarms: Alarms) -> None:
    for _ in range(3):
        off = event(account, "billing.meter.deactivated", {"event_name": VERIFY})
        assert send(account, off)[0] == 200
        account.clock.now += timedelta(seconds=1)
    assert len(account.store.holds()) == len(alarms.logged) == 1


def test_older_news_of_a_meter_does_not_undo_newer(account: Account, alarms: Alarms) -> None:
    off = event(account, "billing.meter.deactivated", {"event_name": VERIFY})
    account.clock.now += timedelta(seconds=5)
    on = event(account, "billing.meter.reactivated", {"event_name": VERIFY})
    for each in (on, off):
        assert send(account, each)[0] == 200
    assert account.store.holds() == []
    account.clock.now += timedelta(seconds=5)
    off_again = event(account, "billing.meter.deactivated", {"event_name": VERIFY})
    late = {**on, "id": "evt_late"}
    for each in (off_again, late):
        assert send(account, each)[0] == 200
    assert [hold.reason for hold in account.store.holds()] == ["archived_meter"]
    assert len(alarms.logged) == 1


def test_a_meter_of_somebody_else_holds_nothing(account: Account, alarms: Alarms) -> None:
    off = event(account, "billing.meter.deactivated", {"event_name": "theirs"})
    assert send(account, off)[0] == 200
    assert account.store.holds() == []
    assert states(account, "billing.meter.deactivated") == ["ignored"]
    assert alarms.logged == []
