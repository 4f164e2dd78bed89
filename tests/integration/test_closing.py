"""A cycle that is being closed: shipped first, then held against Stripe, before it is final."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from billing_rig import CUSTOMER, VERIFY, Account, at, billed
from reconcile_rig import lose, post, reconcile, sent
from sqlalchemy import select

from flask_c2meter.closing import PeriodClose
from flask_c2meter.store.tables import job_runs


@pytest.fixture
def account(tmp_path: Path) -> Iterator[Account]:
    """Its first cycle ends on 10 February, its invoice is final an hour later."""
    with billed(tmp_path) as account:
        account.subscribe("starter")
        account.use(30)
        account.go("02-09 23:30")
        account.use(45)
        account.work()
        yield account
        assert list(account.store.verify()) == []


def closings(account: Account) -> list[str]:
    """The states of the cycles that are being closed."""
    with account.store.reading() as connection:
        return [str(row.state).split()[0] for row in connection.execute(select(job_runs))]


def summary_reads(account: Account) -> int:
    return sum("event_summaries" in request.path for request in account.stripe.requests)


def problems(account: Account) -> str:
    found: list[str] = account.metering.status()["problems"]
    return "\n".join(found)


def billed_units(account: Account) -> list[Any]:
    return [
        line.quantity
        for invoice in account.invoices()
        for line in invoice.lines
        if line.meter == VERIFY
    ]


def test_a_cycle_that_agrees_is_looked_at_once_and_forgotten(account: Account) -> None:
    account.go("02-10 00:10")
    assert closings(account) == ["due"]
    assert summary_reads(account) == 0  # there is time for what is on its way
    account.go("02-10 00:31")
    assert closings(account) == []
    assert summary_reads(account) == 3  # one for each meter
    account.go("02-10 00:45")
    assert summary_reads(account) == 3
    assert problems(account) == ""


def test_a_loss_is_named_in_time_to_repair_it_before_the_invoice_is_final(
    account: Account, caplog: pytest.LogCaptureFixture
) -> None:
    lose(account, sent(account, CUSTOMER))
    account.metering.record(VERIFY, "cus_2", value=1)  # something newer
    account.go("02-10 00:10")
    with caplog.at_level(logging.ERROR):
        account.go("02-10 00:31")
    assert (
        "event=invoice_differs cycle_end=2026-02-10T00:00:00+00:00 meter=verify kind=lost "
        "minute=2026-02-09T23:30:00+00:00" in caplog.text
    )
    assert closings(account) == ["differs"]
    assert "cus_1: Stripe did not agree with the ledger when the cycle" in problems(account)
    assert "flask c2meter reconcile --customer cus_1" in problems(account)
    assert sum(event.value for event in account.stripe.events if event.customer == CUSTOMER) == 30

    assert "1 repaired" in reconcile(account, "--repair", "--customer", CUSTOMER).output
    account.work()
    assert reconcile(account, "--customer", CUSTOMER).exit_code == 0
    assert closings(account) == []
    assert problems(account) == ""
    account.go("02-10 01:05")
    assert billed_units(account) == [75]


def test_what_is_on_its_way_is_looked_at_again_until_the_invoice_is_final(account: Account) -> None:
    account.stripe.fail(503, times=None, path="*meter_events")
    account.use(5, "02-09 23:50")
    account.go("02-10 00:10")
    account.go("02-10 00:31")
    account.go("02-10 00:45")
    assert closings(account) == ["due"]
    assert "when the cycle" not in problems(account)
    account.go("02-10 01:01")
    assert closings(account) == ["differs"]


def test_usage_outside_of_the_cycle_does_not_matter(account: Account) -> None:
    account.go("02-10 00:10")
    post(account, CUSTOMER, 3, at("02-10 00:05"))
    account.go("02-10 00:31")
    assert closings(account) == []


def test_while_stripe_cannot_be_read_the_look_waits(account: Account) -> None:
    account.go("02-10 00:10")
    account.stripe.fail(400, times=None, path="*event_summaries")
    account.go("02-10 00:31")
    account.stripe.recover()
    assert closings(account) == ["due"]
    account.go("02-10 00:45", work=False)
    duty = PeriodClose(account.store, account.metering.reconciler, account.clock)
    assert duty.is_due()
    duty.work()
    assert closings(account) == []


def test_only_the_end_of_a_known_cycle_closes_it(account: Account) -> None:
    closings_ = account.store.closings
    assert not closings_.begin(CUSTOMER, [at("02-03")])  # fees in advance, upfront invoices
    assert not closings_.begin("cus_unknown", [at("02-10")])
    assert closings(account) == []
    assert closings_.begin(CUSTOMER, [at("02-03"), at("02-10")])
    assert closings_.begin(CUSTOMER, [at("02-10")])  # told again
    assert closings(account) == ["due"]


def test_what_comes_after_the_grace_is_late_and_alarmed_and_never_sent(
    account: Account, caplog: pytest.LogCaptureFixture
) -> None:
    account.go("02-10 01:30")
    account.use(7, "02-09 22:00")
    with caplog.at_level(logging.ERROR):
        account.work()
    (late,) = account.store.shipments("dead")
    alarm = f"event=shipment_set_aside shipment={late.identifier} meter=verify reason=late"
    assert alarm in caplog.text
    assert "1 dead shipments wait for a decision" in problems(account)
    assert billed_units(account) == [75]
    output = reconcile(account).output
    assert "late: 7 recorded, Stripe has 0; it came when its invoice was final" in output
