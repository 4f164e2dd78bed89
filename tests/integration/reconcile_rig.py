"""What can go wrong between the ledger and Stripe, done to real parts."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any

from billing_rig import CUSTOMER, HOUR, Account, at
from click.testing import Result
from sqlalchemy import select

from flask_c2meter.emulator import MeterEvent
from flask_c2meter.gateway import Gateway
from flask_c2meter.model import new_id
from flask_c2meter.store.tables import audit

DAY = timedelta(days=1)
OTHERS = ("cus_2", "cus_3", "cus_4", "cus_5")


def gateway(account: Account) -> Gateway:
    assert account.metering.gateway is not None
    return account.metering.gateway


def sent(account: Account, customer: str, meter: str = "verify") -> MeterEvent:
    """The latest event that Stripe has taken of *customer*."""
    return [
        event
        for event in account.stripe.events
        if (event.customer, event.event_name) == (customer, meter)
    ][-1]


def lose(account: Account, event: MeterEvent) -> None:
    """Stripe counts *event* no longer."""
    cancel: Any = {
        "event_name": event.event_name,
        "type": "cancel",
        "cancel": {"identifier": event.identifier},
    }
    gateway(account).ask(lambda client: client.v1.billing.meter_event_adjustments.create(cancel))


def post(account: Account, customer: str, value: int, at: datetime, meter: str = "verify") -> None:
    """Somebody else sends Stripe usage."""
    event: Any = {
        "event_name": meter,
        "payload": {"stripe_customer_id": customer, "value": str(value)},
        "identifier": new_id(),
        "timestamp": int(at.timestamp()),
    }
    gateway(account).ask(lambda client: client.v1.billing.meter_events.create(event))


def double(account: Account, event: MeterEvent) -> None:
    """Stripe counts *event* twice."""
    post(account, event.customer, int(event.value), event.timestamp, event.event_name)


def reconcile(account: Account, *arguments: str) -> Result:
    """``flask c2meter reconcile``, as a user runs it."""
    runner = account.app.test_cli_runner()
    return runner.invoke(args=["c2meter", "reconcile", *arguments])


def differences(account: Account, *arguments: str) -> list[dict[str, Any]]:
    """What it finds."""
    *rows, summary = map(json.loads, reconcile(account, "--json", *arguments).output.splitlines())
    assert "summary" in summary
    return rows


def kinds(rows: list[dict[str, Any]]) -> dict[str, str]:
    """Customer -> kind, of customers that differ in one way."""
    found = {row["customer"]: row["kind"] for row in rows}
    assert len(found) == len(rows), rows
    return found


def recorded(account: Account, customer: str, meter: str = "verify") -> int:
    """What the ledger has of *customer*, in wire units."""
    return sum(event.units for event in account.store.events(customer, meter))


def in_stripe(account: Account, customer: str, meter: str = "verify") -> int:
    return int(account.stripe.meter_total(meter, customer))


def journal(account: Account) -> list[str]:
    """Who repaired what, oldest first."""
    with account.store.reading() as connection:
        rows = connection.execute(select(audit).order_by(audit.c.id)).all()
    return [f"{row.who}: {row.why}" for row in rows if row.what.startswith("reconcile ")]


def a_month(account: Account, known: set[str]) -> None:
    """Five customers' usage from 10 January to 10 February, and five things that go wrong."""
    account.subscribe("starter")  # cus_1; the others have calendar months, without an invoice
    for day in range(31):
        now = at("2026-01-10 09:30") + day * DAY
        account.go(f"{now:%Y-%m-%d %H:%M}", work=False)
        for number, customer in enumerate((CUSTOMER, *OTHERS), start=1):
            for hour in range(0, 9, 3):
                moment = now - hour * HOUR
                account.metering.record("verify", customer, value=number, occurred_at=moment)
                account.metering.record("verify", customer, value=2, occurred_at=moment)
        account.work()
        if day == 12:
            lose(account, sent(account, "cus_2"))
        elif day == 14:
            double(account, sent(account, "cus_3"))
        elif day == 16:
            known.remove("cus_4")
            account.metering.record("verify", "cus_4", value=6)
            account.work()
            known.add("cus_4")
        elif day == 20:
            post(account, "cus_5", 7, now - timedelta(minutes=17))
    account.go("2026-02-10 09:00")
    account.metering.record("verify", CUSTOMER, value=9, occurred_at=at("2026-02-09 20:00"))
    account.work()
