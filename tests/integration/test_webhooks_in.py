"""Stripe's webhooks as a served app takes them in: what is refused, what counts once, and when.

What refused meter events and held meters come to is in ``test_webhook_reports``.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from billing_rig import CUSTOMER, HOUR, SECOND, SECRET, VERIFY, Account, at, billed
from flask import Flask, request
from webhook_rig import down, event, inbox, invoice, line, reads, send, signed, states, statuses

from flask_c2meter import C2Meter
from flask_c2meter.model import Period

LIMIT = 256 * 1024


@pytest.fixture
def account(tmp_path: Path) -> Iterator[Account]:
    with billed(tmp_path) as account:
        yield account


def known(account: Account, moment: str, meter: str = VERIFY) -> Any:
    """What is known of the period that *moment* lies in."""
    return account.store.standing(CUSTOMER).history.at(meter, at(moment))


def padded(account: Account, size: int) -> bytes:
    """An event of *size* bytes."""
    body = json.dumps(event(account, "balance.available", {"object": "balance"})).encode()
    return body + b" " * (size - len(body))


# -- registering -----------------------------------------------------------------------------------


def test_it_refuses_to_register_without_a_secret(tmp_path: Path) -> None:
    """Case 28."""
    app = Flask("bare", instance_path=str(tmp_path))
    app.config["C2METER_STRIPE_WEBHOOK_SECRET"] = ""
    meter = C2Meter(app)
    with pytest.raises(RuntimeError, match="needs C2METER_STRIPE_WEBHOOK_SECRET"):
        app.register_blueprint(meter.webhook_blueprint(), url_prefix="/stripe")


def test_it_refuses_to_register_before_init_app(tmp_path: Path) -> None:
    app = Flask("bare", instance_path=str(tmp_path))
    with pytest.raises(RuntimeError, match="Did you forget to call 'init_app'"):
        app.register_blueprint(C2Meter().webhook_blueprint(), url_prefix="/stripe")


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE"])
def test_only_post_is_answered(account: Account, method: str) -> None:
    body = json.dumps(event(account, "customer.deleted", {"id": CUSTOMER})).encode()
    assert send(account, body, method=method)[0] == 405
    assert inbox(account) == {}


# -- what is not from Stripe, or not of now (case 30) ----------------------------------------------


def test_case_30_forged_altered_and_old_ones_are_400_and_have_no_effect(account: Account) -> None:
    account.subscribe("starter")
    before = (inbox(account), account.store.standing(CUSTOMER).history.terms)
    over = {"id": account.subscription, "customer": CUSTOMER, "status": "canceled"}
    body = json.dumps(event(account, "customer.subscription.deleted", over)).encode()
    altered = body.replace(CUSTOMER.encode(), b"cus_2")
    refused = [
        send(account, body, secret="whsec_somebody_elses"),
        send(account, body, signature=""),
        send(account, body, signature="t=1,v1=0"),
        send(account, body, signature=signed(body, account.clock(), SECRET).replace("v1", "v0")),
        send(account, altered, signature=signed(body, account.clock(), SECRET)),
        send(account, body + b" ", signature=signed(body, account.clock(), SECRET)),
        send(account, body, age=301 * SECOND),
        send(account, body, age=-301 * SECOND),
        send(account, body, age=timedelta(days=3)),
    ]
    assert [status for status, _ in refused] == [400] * len(refused)
    assert all(json.loads(text)["error"].startswith("Bad signature: ") for _, text in refused)
    assert (inbox(account), account.store.standing(CUSTOMER).history.terms) == before


@pytest.mark.parametrize("age", [300 * SECOND, -300 * SECOND])
def test_five_minutes_both_ways_are_now(account: Account, age: timedelta) -> None:
    assert send(account, padded(account, 300), age=age)[0] == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\xfe",
        b"{",
        b"[]",
        b'"evt_1"',
        b"null",
        b"[" * 100_000,
        b'{"id": "evt_1", "type": "a", "livemode": false, "data": %s}' % (b"[" * 60 + b"]" * 60),
        b'{"id": 1, "type": "a", "livemode": false}',
        b'{"id": "", "type": "a", "livemode": false}',
        b'{"id": "evt_1", "livemode": false}',
        b'{"id": "evt_1\\nERROR all is lost", "type": "a", "livemode": false}',
        b'{"id": "evt_\\ud800", "type": "a", "livemode": false}',
        b'{"id": "%s", "type": "a", "livemode": false}' % (b"e" * 256),
    ],
)
def test_what_is_signed_and_no_event_is_400(account: Account, body: bytes) -> None:
    status, text = send(account, body)
    assert status == 400 and set(json.loads(text)) == {"error"}
    assert inbox(account) == {}


@pytest.mark.parametrize("livemode", [True, None, "false", 0])
def test_a_live_event_is_refused_in_test_mode(account: Account, livemode: Any) -> None:
    live = event(account, "customer.deleted", {"id": CUSTOMER}, livemode=livemode)
    status, text = send(account, live)
    assert (status, json.loads(text)["error"]) == (
        400,
        "the event is of the other mode, live or test",
    )
    assert inbox(account) == {}


def test_a_test_event_is_refused_in_live_mode(tmp_path: Path) -> None:
    with billed(tmp_path, C2METER_STRIPE_SECRET_KEY="sk_live_1") as account:
        account.stripe.add_subscription(CUSTOMER, [f"starter_{VERIFY}"])
        account.settle()
        assert set(statuses(account)) == {400}
        assert inbox(account) == {}


def test_live_events_of_both_kinds_are_taken_in_live_mode(tmp_path: Path) -> None:
    live = {"keys": ["sk_live_1"], "customers": ()}
    with billed(tmp_path, emulator=live, C2METER_STRIPE_SECRET_KEY="sk_live_1") as account:
        account.use(1)
        account.work()
        account.stripe.report_errors()
        account.settle()
        assert set(statuses(account)) == {200}
        assert {kind.split(".")[0] for kind, _, _ in inbox(account).values()} == {"v1"}


def test_either_secret_is_good_while_one_is_rolled(tmp_path: Path) -> None:
    with billed(tmp_path, C2METER_STRIPE_WEBHOOK_SECRET=f"whsec_new, {SECRET}") as account:
        account.subscribe("starter")
        assert set(statuses(account)) == {200}
        assert send(account, padded(account, 300), secret="whsec_new")[0] == 200
        both = json.dumps(event(account, "balance.available", {})).encode()
        many = signed(both, account.clock(), "whsec_gone", "whsec_new")
        assert send(account, both, signature=many)[0] == 200
        assert send(account, padded(account, 300), secret="whsec_gone")[0] == 400


# -- what is too large -----------------------------------------------------------------------------


@pytest.mark.parametrize("chunked", [False, True])
def test_more_than_256_kib_is_refused(account: Account, chunked: bool) -> None:
    assert send(account, padded(account, LIMIT), chunked=chunked)[0] == 200
    taken = inbox(account)
    assert send(account, padded(account, LIMIT + 1), chunked=chunked)[0] == 413
    assert inbox(account) == taken


def test_the_hosts_own_limit_neither_widens_nor_narrows_ours(tmp_path: Path) -> None:
    with billed(tmp_path, MAX_CONTENT_LENGTH=1000) as account:
        assert send(account, padded(account, LIMIT))[0] == 200
    with billed(tmp_path, MAX_CONTENT_LENGTH=10 * LIMIT) as account:
        assert send(account, padded(account, LIMIT + 1))[0] == 413


def test_a_host_that_has_read_the_body_before_changes_nothing(account: Account) -> None:
    account.app.before_request_funcs.setdefault(None, []).append(_reads_everything)
    assert send(account, padded(account, LIMIT))[0] == 200
    assert send(account, padded(account, LIMIT + 1))[0] == 413


def _reads_everything() -> None:
    request.get_data()


# -- what each does --------------------------------------------------------------------------------


def test_a_subscription_is_known_before_stripe_was_ever_asked(account: Account) -> None:
    account.subscribe("starter")
    found = known(account, "01-15")
    assert (found.period, found.plan) == (Period(at("01-10"), at("02-10")), "starter")
    assert (found.status, found.source) == ("active", "stripe")
    assert reads(account) == []
    assert states(account, "customer.subscription.created") == ["applied"]
    assert account.metering.status()["subscriptions"] == {"known": {"count": 1, "examples": []}}


def test_each_change_of_a_subscription_is_learnt(account: Account) -> None:
    account.subscribe("starter")
    account.go("01-20 10:00:07", work=False)
    account.change("starter", "growth")
    assert [known(account, moment).plan for moment in ("01-20", "01-21")] == ["starter", "growth"]
    account.stripe.set_status(account.subscription, "paused")
    account.settle()
    assert known(account, "01-21").status == "paused"
    account.stripe.set_status(account.subscription, "active")
    account.settle()
    assert known(account, "01-21").status == "active"
    account.go("01-25", work=False)
    account.cancel()
    assert known(account, "01-24").status == "canceled"
    assert not known(account, "01-26").is_billed
    assert account.metering.status()["subscriptions"]["none"]["examples"] == [CUSTOMER]
    assert set(statuses(account)) == {200}
    assert reads(account) == []


@pytest.mark.parametrize("what", ["trial_will_end", "pending_update_applied", "of_the_future"])
def test_every_kind_of_news_of_a_subscription_is_read(account: Account, what: str) -> None:
    cycle = {"current_period_start": int(at("01-10").timestamp())}
    cycle["current_period_end"] = int(at("02-10").timestamp())
    items = {"data": [{"price": {"lookup_key": f"growth_{VERIFY}"}, **cycle}], "has_more": False}
    found = {"id": "sub_1", "customer": CUSTOMER, "status": "active", "items": items}
    assert send(account, event(account, f"customer.subscription.{what}", found))[0] == 200
    assert known(account, "01-15").plan == "growth"


def test_of_many_items_a_webhook_has_not_all_so_the_worker_looks(account: Account) -> None:
    account.hold_webhooks()
    account.subscribe("starter")
    account.use(1)
    account.work()
    some = {"data": [], "has_more": True}
    found = {"id": account.subscription, "customer": CUSTOMER, "status": "active", "items": some}
    asked = len(reads(account))
    assert send(account, event(account, "customer.subscription.updated", found))[0] == 200
    assert len(reads(account)) == asked
    account.metering.worker.run_once()
    assert "GET /v1/subscriptions" in reads(account)[asked:]


def test_a_deleted_customer_is_looked_at_and_named(account: Account) -> None:
    account.subscribe("starter")
    account.use(1)
    account.work()
    account.stripe.delete_customer(CUSTOMER)
    account.settle()
    assert states(account, "customer.deleted") == ["applied"]
    account.work()
    assert account.metering.status()["subscriptions"]["deleted"]["examples"] == [CUSTOMER]
    # The end of its subscription, of the same second, is told again after that.
    over = {"id": account.subscription, "customer": CUSTOMER, "status": "canceled"}
    item = {"price": {"lookup_key": f"starter_{VERIFY}"}}
    item |= {"current_period_start": 1, "current_period_end": 2}
    over |= {"items": {"data": [item]}, "ended_at": int(account.clock().timestamp())}
    assert send(account, event(account, "customer.subscription.deleted", over))[0] == 200
    account.work()
    assert account.metering.status()["subscriptions"]["deleted"]["examples"] == [CUSTOMER]


def test_a_new_invoice_has_the_customer_looked_at(account: Account) -> None:
    account.hold_webhooks()
    account.subscribe("starter")
    account.use(1)
    account.work()
    assert not account.store.subscriptions.are_due(account.clock())
    created = invoice(account, at("01-10"), at("02-10"))
    assert send(account, event(account, "invoice.created", created))[0] == 200
    assert account.store.subscriptions.are_due(account.clock())


def test_a_final_invoice_closes_its_cycle_and_what_comes_later_is_late(account: Account) -> None:
    account.subscribe("starter")
    account.use(30)
    account.go("02-09 23:50")
    account.use(45)
    account.go("02-10 00:20", work=False)
    assert known(account, "02-09").finalized_at is None
    # Half an hour before the default grace is over: by hand, in Stripe's dashboard.
    final = invoice(account, at("01-10"), at("02-10"))
    assert send(account, event(account, "invoice.finalized", final))[0] == 200
    assert known(account, "02-09").finalized_at == at("02-10 00:20")
    assert known(account, "02-11").finalized_at is None
    account.use(7)  # of the new cycle
    account.work()
    assert account.states() == {"delivered": 30 + 7, "dead": 45}
    assert {shipment.reason for shipment in account.store.shipments("dead")} == {"late"}
    assert list(account.store.verify()) == []


@pytest.mark.parametrize(
    "more",
    [
        pytest.param({"billing_reason": "subscription_create"}, id="the first fee in advance"),
        pytest.param({"billing_reason": "subscription_update"}, id="a proration"),
        pytest.param({"billing_reason": "subscription_threshold"}, id="a threshold"),
        pytest.param({"billing_reason": "manual", "parent": None}, id="by hand"),
        pytest.param({"billing_reason": "manual"}, id="by hand, for a subscription"),
    ],
)
def test_neither_a_fee_in_advance_nor_an_invoice_by_hand_closes_the_running_cycle(
    account: Account, more: dict[str, Any]
) -> None:
    account.subscribe("starter")
    account.use(5)
    account.go("01-12", work=False)
    upfront = invoice(account, at("01-10"), at("02-10"), **more)
    upfront |= {"created": int(account.clock().timestamp()), "period_end": upfront["period_start"]}
    for kind in ("invoice.created", "invoice.finalized"):
        assert send(account, event(account, kind, upfront))[0] == 200
    account.use(6)
    account.work()
    assert known(account, "01-15").finalized_at is None
    assert known(account, "01-15").period == Period(at("01-10"), at("02-10"))
    assert account.states() == {"delivered": 11}


def test_the_next_cycles_fee_on_a_cycles_invoice_closes_only_the_cycle(account: Account) -> None:
    account.subscribe("starter")
    account.go("02-10 00:10", work=False)
    both = invoice(account, at("01-10"), at("02-10"))
    both["lines"]["data"].insert(0, line(at("02-10"), at("03-10")))
    assert send(account, event(account, "invoice.finalized", both))[0] == 200
    assert known(account, "02-09").finalized_at == at("02-10 00:10")
    assert known(account, "02-11").finalized_at is None


def test_an_item_by_hand_for_a_past_cycle_closes_nothing(account: Account) -> None:
    account.subscribe("starter")
    account.go("02-10 00:10", work=False)
    other = invoice(account, at("01-10"), at("02-10"), billing_reason="subscription_update")
    other["lines"]["data"] = [line(at("01-10"), at("02-10"), "invoice_item_details")]
    assert send(account, event(account, "invoice.finalized", other))[0] == 200
    assert known(account, "02-09").finalized_at is None


def test_another_subscriptions_invoice_of_the_same_cycle_closes_nothing(account: Account) -> None:
    account.subscribe("starter")
    account.go("02-10 00:10", work=False)
    parent = {"subscription_details": {"subscription": "sub_other"}}
    other = invoice(account, at("01-10"), at("02-10"), parent=parent)
    assert send(account, event(account, "invoice.finalized", other))[0] == 200
    assert known(account, "02-09").finalized_at is None


def test_of_many_lines_the_cycle_is_told_by_the_invoice(account: Account) -> None:
    account.subscribe("starter")
    account.go("02-10 00:10", work=False)
    long = invoice(account, at("01-10"), at("02-10"))
    long["lines"] = {"data": [line(at("02-10"), at("03-10"))] * 10, "has_more": True}
    assert send(account, event(account, "invoice.finalized", long))[0] == 200
    assert known(account, "02-09").finalized_at == at("02-10 00:10")


@pytest.mark.parametrize("kind", ["charge.succeeded", "customer.created", "v2.core.unheard_of"])
def test_unknown_types_are_200_and_have_no_effect(account: Account, kind: str) -> None:
    account.subscribe("starter")
    before = account.store.standing(CUSTOMER).history.terms
    assert send(account, event(account, kind, {"id": CUSTOMER, "customer": CUSTOMER}))[0] == 200
    assert states(account, kind)[-1] == "ignored"
    assert account.store.standing(CUSTOMER).history.terms == before


# -- once ------------------------------------------------------------------------------------------


def test_duplicates_have_one_effect(account: Account) -> None:
    account.subscribe("starter")
    terms = account.store.standing(CUSTOMER).history.terms
    (created,) = [e for e, (kind, *_) in inbox(account).items() if kind.endswith("n.created")]
    for _ in range(3):
        account.stripe.resend(created)
    account.settle()
    assert set(statuses(account)) == {200}
    assert account.store.standing(CUSTOMER).history.terms == terms


def test_after_90_days_the_worker_forgets_what_is_dealt_with(account: Account) -> None:
    for kind in ("balance.available", "customer.deleted", "customer.subscription.updated"):
        assert send(account, event(account, kind, {"id": CUSTOMER}))[0] == 200
    account.work()
    assert {state for _, state, _ in inbox(account).values()} == {"ignored", "applied", "dead"}
    arrived = account.clock()
    account.clock.now = arrived + timedelta(days=90)
    account.work()
    assert len(inbox(account)) == 3
    account.clock.now = arrived + timedelta(days=91)
    account.work()
    assert [state for _, state, _ in inbox(account).values()] == ["dead"]


def test_of_many_at_once_one_has_the_effect(account: Account) -> None:
    account.subscribe("starter")
    account.use(1)
    account.go("02-10 00:05", work=False)
    final = event(account, "invoice.finalized", invoice(account, at("01-10"), at("02-10")))
    before = len(account.store.standing(CUSTOMER).history.terms)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda number: send(account, final)[0], range(48)))
    assert set(answers) == {200}
    assert states(account, "invoice.finalized") == ["applied"]
    closed = account.store.standing(CUSTOMER).history.terms[before:]
    assert [term.finalized_at for term in closed] == [at("02-10 00:05")] * len(closed)
    assert len({term.meter for term in closed}) == len(closed) > 0


@pytest.mark.parametrize(
    "broken", ["INSERT ON periods", "UPDATE ON customers", "INSERT ON webhook_events"]
)
def test_a_handler_that_fails_leaves_nothing_and_the_next_delivery_works(
    account: Account, broken: str
) -> None:
    """Event row and effect are one transaction, whichever of them fails."""
    account.use(1)
    account.work()
    ledger = Path(account.app.instance_path, "c2meter.sqlite")
    with closing(sqlite3.connect(ledger)) as database:
        database.execute(
            f"CREATE TRIGGER broken AFTER {broken} BEGIN SELECT RAISE(ABORT, 'broken'); END"
        )
    account.hold_webhooks()
    account.subscribe("starter")
    account.stripe.release_webhooks()
    assert account.stripe.wait_for(lambda stripe: len(stripe.webhook_deliveries) >= 3)
    assert 500 in statuses(account)
    assert states(account, "customer.subscription.created") == []
    assert account.store.standing(CUSTOMER).history.terms == ()

    with closing(sqlite3.connect(ledger)) as database:
        database.execute("DROP TRIGGER broken")
    account.release_webhooks()
    for delivery in {each.event for each in account.stripe.webhook_deliveries}:
        account.stripe.resend(delivery)
    account.settle()
    assert states(account, "customer.subscription.created") == ["applied"]
    assert known(account, "01-15").plan == "starter"


def test_while_the_store_is_locked_it_is_503_within_limits_and_stripe_sends_it_again(
    account: Account,
) -> None:
    account.use(1)
    ledger = Path(account.app.instance_path, "c2meter.sqlite")
    body = event(account, "customer.deleted", {"id": CUSTOMER})
    with closing(sqlite3.connect(ledger, isolation_level=None)) as database:
        database.execute("BEGIN IMMEDIATE")
        started = time.monotonic()
        assert send(account, body)[0] == 503
        assert time.monotonic() - started < 2.5
        database.execute("ROLLBACK")
    assert inbox(account) == {}
    assert send(account, body)[0] == 200
    assert states(account, "customer.deleted") == ["applied"]


@pytest.mark.parametrize(
    "found",
    [
        {},
        {"customer": CUSTOMER},
        {"customer": CUSTOMER, "id": "sub_1", "status": "active", "items": {"data": []}},
        {"customer": CUSTOMER, "id": "sub_1", "status": "active", "items": []},
        {"customer": CUSTOMER, "lines": {"data": [{"period": {"end": 10**30}}]}},
    ],
)
@pytest.mark.parametrize("kind", ["customer.subscription.updated", "invoice.finalized"])
def test_what_cannot_be_read_is_taken_in_and_named_in_status(
    account: Account, kind: str, found: dict[str, Any]
) -> None:
    """Sent again it would be no more readable: Stripe would go on for three days."""
    found = {"billing_reason": "subscription_cycle", "subscription": "sub_1", **found}
    strange = event(account, kind, found)
    assert send(account, strange)[0] == 200
    assert states(account, kind) == ["dead"]
    (problem,) = account.metering.status()["problems"]
    assert f"Stripe's event {strange['id']} ({kind}) cannot be looked into" in problem


@pytest.mark.parametrize("created", ["soon", None, 10**30, float("inf"), [], {}])
def test_a_moment_that_is_none_is_taken_in_and_named_too(account: Account, created: Any) -> None:
    strange = event(account, "invoice.created", {"customer": CUSTOMER}, created=created)
    assert send(account, strange)[0] == 200
    assert states(account, "invoice.created") == ["dead"]


# -- order -----------------------------------------------------------------------------------------


@pytest.fixture
def tried_once(tmp_path: Path) -> Iterator[Account]:
    """An account whose webhooks are lost where nobody takes them in, until they are sent again."""
    with billed(tmp_path, emulator={"webhook_attempts": 1}) as account:
        yield account


def test_older_news_that_arrives_late_does_not_undo_newer_and_is_learnt_in_its_place(
    tried_once: Account,
) -> None:
    account = tried_once
    with down(account) as missed:
        account.subscribe("starter")
        account.go("01-20", work=False)
        account.change("starter", "growth")
        account.go("01-25", work=False)
        account.change("growth", "scale")
    for each in reversed(missed):
        account.stripe.resend(each)
        account.settle()
        assert known(account, "01-26").plan == "scale"
    assert [known(account, day).plan for day in ("01-15", "01-22")] == ["starter", "growth"]
    account.use(30, "01-15")
    account.use(200, "01-22")
    account.use(1000, "01-25")
    account.go("02-12")
    account.assert_agrees(1)


def test_a_change_that_was_taken_back_before_it_was_told_of_ends_where_it_did(
    tried_once: Account,
) -> None:
    account = tried_once
    account.subscribe("starter")
    account.go("01-14", work=False)
    with down(account) as missed:
        account.change("starter", "growth")
    account.go("01-26", work=False)
    account.change("growth", "starter")  # nothing new, as far as is known
    account.go("02-04", work=False)
    account.change("starter", "scale")
    for each in missed:
        account.stripe.resend(each)
        account.settle()
    days = ("01-12", "01-20", "01-28", "02-05")
    assert [known(account, day).plan for day in days] == ["starter", "growth", "starter", "scale"]


def test_a_whole_life_told_backwards_is_billed_as_it_was(tried_once: Account) -> None:
    """The worker ships all the while, and cannot read subscriptions."""
    account = tried_once
    account.stripe.fail(503, times=None, path="*subscriptions*")
    with down(account) as missed:
        account.subscribe("starter", trial_end=at("01-15"))
        account.use(500)
        account.go("01-16")
        account.use(70)
        account.go("01-20")
        account.change("starter", "growth")
        account.use(200)
        account.go("01-22 10:00:05")
        account.change("growth", "starter", reset=True)
        account.use(90)
        account.go("01-25")
        account.cancel()
        account.go("01-25 02:00")
    assert known(account, "01-12").source == "calendar"
    for each in reversed(missed):
        account.stripe.resend(each)
        account.settle()
    trial, *paid = account.assert_agrees(3)
    assert trial.total == 0 and all(each.total > 0 for each in paid)
    assert not known(account, "01-26").is_billed
    assert account.states() == {"delivered": 860}


def test_a_new_cycle_is_not_undone_by_news_of_the_old_one(account: Account) -> None:
    account.subscribe("starter")
    account.go("02-10 00:01", work=False)
    assert known(account, "02-10").is_known
    bounds = {"current_period_start": at("01-10"), "current_period_end": at("02-10")}
    item = {"price": {"lookup_key": f"starter_{VERIFY}"}}
    item |= {name: int(moment.timestamp()) for name, moment in bounds.items()}
    found = {"id": account.subscription, "customer": CUSTOMER, "items": {"data": [item]}}
    late = event(account, "customer.subscription.updated", {**found, "status": "past_due"})
    late["created"] = int(at("01-20").timestamp())
    assert send(account, late)[0] == 200
    assert known(account, "02-10").period == Period(at("02-10"), at("03-10"))
    assert known(account, "02-10").status == "active"
    assert known(account, "01-15").period == Period(at("01-10"), at("02-10"))


def test_two_changes_of_one_second_are_settled_by_a_look(tried_once: Account) -> None:
    account = tried_once
    account.subscribe("starter")
    account.use(1)
    account.work()
    account.go("01-20", work=False)
    with down(account) as missed:
        account.change("starter", "growth")
        account.change("growth", "scale")
    for each in reversed(missed):
        account.stripe.resend(each)
        account.settle()
    account.work()
    assert known(account, "01-21").plan == "scale"


# -- several subscriptions -------------------------------------------------------------------------


def test_when_one_of_several_ends_the_worker_looks_at_what_is_left(account: Account) -> None:
    account.subscribe("starter")
    account.use(1)
    account.go("01-12")
    other = account.stripe.add_subscription(CUSTOMER, [f"growth_{VERIFY}"], id="sub_other")
    account.settle()
    account.go("01-12 00:01")
    assert account.metering.status()["subscriptions"]["several"]["examples"] == [CUSTOMER]
    (note,) = account.metering.status()["notes"]
    assert note.startswith(f"1 customers ({CUSTOMER}) have several subscriptions")
    account.stripe.cancel_subscription(other)
    account.settle()
    account.go("01-12 00:02")
    assert account.metering.status()["subscriptions"] == {"known": {"count": 1, "examples": []}}
    account.cancel()
    account.go("01-12 00:03")
    assert account.metering.status()["subscriptions"]["none"]["examples"] == [CUSTOMER]
    (note,) = account.metering.status()["notes"]
    assert note.startswith(f"1 customers ({CUSTOMER}) have no subscription")


# -- fast, and discreet ----------------------------------------------------------------------------


def test_no_webhook_waits_for_stripe(account: Account) -> None:
    """Stripe is down all the time; nothing is even tried before the worker works."""
    account.stripe.fail(503, times=None)
    account.subscribe("starter")
    account.go("01-20", work=False)
    account.change("starter", "growth")
    account.stripe.delete_customer(CUSTOMER)
    account.go("03-12", work=False)
    report = event(account, "v1.billing.meter.error_report_triggered", {})
    assert send(account, report)[0] == 200
    assert set(statuses(account)) == {200}
    assert reads(account) == []
    assert states(account, report["type"]) == ["pending"]


def test_secrets_are_in_no_log_and_in_no_answer(
    account: Account, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    account.stripe.add_customer(CUSTOMER, email="canary@customer.example")
    account.subscribe("starter")
    account.use(5)
    body = padded(account, 400)
    right = signed(body, account.clock(), SECRET)
    answers = [
        send(account, body, secret="whsec_other"),
        send(account, body, age=HOUR),
        send(account, body, signature=right.replace("t=", "t=1,t=")),
        send(account, event(account, "invoice.finalized", {"email": "canary@customer.example"})),
        send(account, padded(account, LIMIT + 1)),
    ]
    account.go("02-12")
    account.cancel()
    said = caplog.text + "".join(text for _, text in answers)
    digest = right.partition("v1=")[2]
    for secret in (SECRET, SECRET.removeprefix("whsec_"), digest, "sk_test_1", "canary@"):
        assert secret not in said
