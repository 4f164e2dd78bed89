"""A metered app with its billing account: subscriptions, webhooks and invoices, on one clock.

The emulator rates its invoices with code of its own; :meth:`Account.assert_agrees` holds each
against the bill, the ledger and an oracle of the test's own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from threading import Thread
from typing import Any

from flask import Flask
from werkzeug.serving import make_server

from flask_c2meter import C2Meter, Charge, Customer
from flask_c2meter.emulator import Invoice, StripeEmulator
from flask_c2meter.gateway import Gateway
from flask_c2meter.metering import Metering
from flask_c2meter.provisioner import Provisioner
from flask_c2meter.stripe_objects import lookup_key
from flask_c2meter.testing import FrozenClock

SECRET = "whsec_dGhpcyBpcyBhIHNlY3JldCBvZiB0aGUgdGVzdHM="
CUSTOMER = "cus_1"
VERIFY, STORAGE, SITES = "verify", "storage", "sites"
METERS = (VERIFY, STORAGE, SITES)
SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)

CATALOGUE: dict[str, Any] = {
    "plans": {"starter": {}, "growth": {}, "scale": {}},
    "meters": {
        VERIFY: {
            "event_type": "verify.completed",
            "unit": "verify",
            "aggregation": "sum",
            "included": {"starter": 20, "growth": 150, "scale": "unlimited"},
            "price": {
                "mode": "graduated",
                "currency": "usd",
                "tiers": [
                    {"up_to": 50, "unit_amount": "4.35"},
                    {"unit_amount": "2.5", "flat_amount": "100"},
                ],
            },
        },
        STORAGE: {
            "event_type": "storage.measured",
            "unit": "gb",
            "aggregation": "max",
            "precision": 3,
            "included": {"starter": "0.5", "growth": 10, "scale": 50},
            "price": {"mode": "flat", "unit_amount": "12.5", "currency": "usd"},
        },
        SITES: {
            "event_type": "site.activated",
            "unit": "site",
            "aggregation": "unique_count",
            "unique_by": "domain",
            "included": {"starter": 0, "growth": 2, "scale": 5},
            "price": {"mode": "flat", "unit_amount": "900", "currency": "usd"},
            "properties": {"domain": {"type": "domain", "required": True}},
        },
    },
}


def at(text: str) -> datetime:
    """``01-15`` or ``2026-01-15 10:00`` as a moment of 2026, UTC."""
    text = text if text.startswith("20") else f"2026-{text}"
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


class Account:
    """A customer's life: usage, changes of its subscription, the passing of time."""

    def __init__(self, app: Flask, stripe: StripeEmulator, clock: FrozenClock) -> None:
        self.app, self.stripe, self.clock = app, stripe, clock
        state: Any = app.extensions["c2meter"]
        self.metering: Metering = state.metering
        self.store = self.metering.store
        self.subscription = ""
        #: Where the app takes webhooks in.
        self.url = ""
        #: How often Stripe was asked before the story began.
        self.asked_before = 0
        #: What the test itself knows to have happened: (moment, meter, value or domain).
        self.happened: list[tuple[datetime, str, Any]] = []

    # -- time ------------------------------------------------------------------------------------

    def go(self, moment: str, *, work: bool = True) -> None:
        """Do what is due, let time pass until *moment*, do it again; or only let it pass."""
        if work:
            self.work()
        self.clock.now = at(moment)
        self.stripe.advance(timedelta(0))
        self.settle()
        if work:
            self.work()

    def settle(self) -> None:
        """Wait until Stripe's webhooks have arrived."""
        if not self._holds:
            assert self.stripe.wait_for(lambda stripe: stripe.webhooks_waiting == 0)

    _holds = False

    def hold_webhooks(self) -> None:
        self._holds = True
        self.stripe.hold_webhooks()

    def release_webhooks(self) -> None:
        self._holds = False
        self.stripe.release_webhooks()
        self.settle()

    def work(self) -> None:
        """All that is due is done."""
        self.metering.worker.run_once()
        self.settle()

    # -- what the customer does --------------------------------------------------------------------

    def use(self, value: Any, moment: str | None = None, meter: str = VERIFY) -> None:
        """Usage happens at *moment*, by default now; of ``sites``, *value* is the domain."""
        occurred_at = at(moment) if moment else self.clock()
        what = {"domain": value} if meter == SITES else {"value": value}
        self.metering.record(meter, CUSTOMER, occurred_at=occurred_at, **what)
        self.happened.append((occurred_at, meter, value))

    def subscribe(self, plan: str, **more: Any) -> str:
        """A subscription to *plan* with a price of each meter that is limited on it."""
        self.subscription = self.stripe.add_subscription(CUSTOMER, prices(plan), **more)
        self.settle()
        return self.subscription

    def change(self, old: str, new: str, *, reset: bool = False) -> None:
        """Another plan, from now on."""
        pairs = dict(zip(prices(old), prices(new), strict=True))
        self.stripe.change_prices(self.subscription, pairs, reset_anchor=reset)
        self.settle()

    def cancel(self, *, at_period_end: bool = False) -> None:
        self.stripe.cancel_subscription(self.subscription, at_period_end=at_period_end)
        self.settle()

    # -- what must be ------------------------------------------------------------------------------

    def bill(self, moment: datetime) -> list[Charge]:
        with self.app.app_context():
            return self.metering.bill(CUSTOMER, moment)

    def page(self, moment: datetime) -> dict[str, Any]:
        """What the dashboard says at *moment*, as JSON."""
        now, self.clock.now = self.clock.now, moment
        try:
            answer = self.app.test_client().get("/billing/usage.json")
        finally:
            self.clock.now = now
        assert answer.status_code == 200
        return answer.get_json()

    def invoices(self) -> list[Invoice]:
        return self.stripe.invoices

    def assert_agrees(self, number: int) -> list[Invoice]:
        """Every one of *number* invoices is what bill and page say, to the minor unit.

        And the bill is what the test knows to have happened; the books balance.
        """
        assert list(self.store.verify()) == []
        invoices = self.invoices()
        assert len(invoices) == number, invoices
        for invoice in invoices:
            end = max(line.period_end for line in invoice.lines)
            lines = self.bill(end - SECOND)
            ours = {
                (line.meter, line.period.start, line.period.end): line.amount
                for line in lines
                if line.amount is not None
            }
            theirs = {
                (line.meter, line.period_start, line.period_end): line.amount
                for line in invoice.lines
            }
            assert {key: a for key, a in ours.items() if a} == {
                key: a for key, a in theirs.items() if a
            }
            assert sum(ours.values()) == invoice.total
            page = self.page(end - SECOND)
            assert sum(Decimal(each["amount"]) for each in page["bill"]) == invoice.total
            assert {
                (meter["meter"], datetime.fromisoformat(line["period"]["start"])): line["amount"]
                for meter in page["meters"]
                for line in meter["charges"]
                if line["amount"] is not None
            } == {(name, start): str(amount) for (name, start, _), amount in ours.items()}
            for line in invoice.lines:
                units = self._oracle(line.meter, line.period_start, line.period_end)
                assert line.quantity == units, line
        return invoices

    def _oracle(self, meter: str, start: datetime, end: datetime) -> int:
        """The aggregate in wire units, by the test's own list."""
        values = [
            value
            for moment, name, value in self.happened
            if name == meter and start <= moment < end
        ]
        if meter == SITES:
            return len(set(values))
        if meter == STORAGE:
            return max((int(Decimal(value) * 1000) for value in values), default=0)
        return sum(values)

    def states(self) -> dict[str, int]:
        found: defaultdict[str, int] = defaultdict(int)
        for shipment in self.store.shipments():
            found[str(shipment.state)] += shipment.value
        return dict(found)


def prices(plan: str) -> list[str]:
    """The lookup keys of *plan*'s prices, in the order of the meters."""
    return [lookup_key(plan, meter) for meter in METERS]


@contextmanager
def billed(
    folder: Path,
    *,
    start: str = "2026-01-10",
    emulator: Mapping[str, Any] | None = None,
    **config: Any,
) -> Iterator[Account]:
    """An account whose emulator sells every plan of the catalogue, and whose webhooks arrive.

    :param emulator: settings of the emulator.
    """
    clock = FrozenClock(at(start))
    with StripeEmulator(clock=clock, **(emulator or {})) as stripe:
        app = Flask("billed", instance_path=str(folder))
        app.config.update(
            C2METER_STRIPE_SECRET_KEY="sk_test_1",
            C2METER_STRIPE_BASE_URL=stripe.url,
            C2METER_STRIPE_WEBHOOK_SECRET=SECRET,
            C2METER_WORKER="off",
            C2METER_CLOCK=clock,
            C2METER_CATALOGUE=CATALOGUE,
            C2METER_CORS_ORIGINS=[],
        )
        app.config.update(config)
        meter = C2Meter(app)
        meter.customer_loader(lambda: Customer(CUSTOMER))
        meter.dashboard_auth(lambda: CUSTOMER)
        app.register_blueprint(meter.webhook_blueprint(), url_prefix="/stripe")
        app.register_blueprint(meter.dashboard_blueprint(), url_prefix="/billing")
        account = Account(app, stripe, clock)
        _sell(account)
        account.asked_before = len(stripe.requests)
        with _serving(app) as url:
            account.url = f"{url}/stripe/webhook"
            for thin in (False, True):
                stripe.add_webhook_endpoint(account.url, SECRET, thin=thin)
            yield account
        account.store.close()


def _sell(account: Account) -> None:
    key = account.metering.config.stripe_secret_key or "sk_test_seller"
    gateway = Gateway(key, base_url=account.stripe.url, clock=account.clock)
    shop = Provisioner(gateway, account.metering.catalogue)
    shop.apply(shop.plan())


@contextmanager
def _serving(app: Flask) -> Iterator[str]:
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()
