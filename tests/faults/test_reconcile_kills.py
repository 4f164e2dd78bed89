"""Repairs killed in the middle, and two at once: each loss is shipped anew exactly once."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from fault_rig import KEY, VERIFY, Children, Rig, ledger_totals, sql, stripe_totals

from flask_c2meter.emulator import StripeEmulator
from flask_c2meter.gateway import Gateway
from flask_c2meter.model import utc_now

LOSSES = 20
RECONCILE = ("flask", "--app", "fault_app:create_app", "c2meter", "reconcile", "--repair", "--json")


@pytest.fixture
def losses(
    new_rig: Callable[..., Rig], stripe: StripeEmulator, children: Children
) -> StripeEmulator:
    """Stripe has lost all usage of twenty customers, and not that of another."""
    rig = new_rig(stripe)
    at = utc_now() - timedelta(minutes=10)
    rig.record_many((f"cus_{number:02}", 1 + number, at) for number in range(LOSSES))
    children.c2meter("worker", "--once")
    lost = stripe.events
    rig.record_many([("cus_seen", 1, None)])
    children.c2meter("worker", "--once")
    gateway = Gateway(KEY, base_url=stripe.url)
    for event in lost:
        lose(gateway, event.identifier)
    assert stripe_totals(stripe)[VERIFY, "cus_seen"] == 1
    assert sum(stripe_totals(stripe).values()) == 1
    return stripe


def lose(gateway: Gateway, identifier: str) -> None:
    """Stripe counts the event no longer."""
    cancel: Any = {"event_name": VERIFY, "type": "cancel", "cancel": {"identifier": identifier}}
    gateway.ask(lambda client: client.v1.billing.meter_event_adjustments.create(cancel))


def assert_repaired_once(children: Children, stripe: StripeEmulator) -> None:
    children.c2meter("worker", "--once")
    assert stripe_totals(stripe) == ledger_totals(children.folder)
    assert sql(children.folder, "SELECT COUNT(*), COUNT(DISTINCT what) FROM audit") == [
        (LOSSES, LOSSES)
    ]
    code, output = children.c2meter("reconcile")
    assert code == 0, output
    code, output = children.c2meter("verify")
    assert code == 0, output


def test_a_repair_that_is_killed_in_the_middle_is_finished_by_the_next(
    children: Children, losses: StripeEmulator
) -> None:
    process = children.start(*RECONCILE)
    assert process.stdout is not None
    for _ in range(5):
        assert json.loads(process.stdout.readline())["is_repaired"]
    os.kill(process.pid, signal.SIGKILL)
    process.wait(timeout=30)
    assert sql(children.folder, "SELECT COUNT(*) FROM audit")[0][0] < LOSSES
    children.run(*RECONCILE)
    assert_repaired_once(children, losses)


def test_repairs_by_two_processes_at_once_are_made_once(
    children: Children, losses: StripeEmulator
) -> None:
    processes = [children.start(*RECONCILE) for _ in range(2)]
    outputs = [process.communicate(timeout=110)[0] for process in processes]
    # Whoever comes after the other's last repair finds nothing that differs any more.
    codes = {process.returncode for process in processes}
    assert codes in ({1}, {0, 1}), outputs
    assert_repaired_once(children, losses)
