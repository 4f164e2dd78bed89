"""A service with customers, its dashboard and weeks of believable usage: no Stripe, one clock."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from threading import Thread
from typing import Any

from flask import Flask, request
from flask.testing import FlaskClient
from werkzeug.serving import make_server

from flask_c2meter import ALL_CUSTOMERS, C2Meter, Period, Subscription
from flask_c2meter.metering import Metering
from flask_c2meter.testing import FrozenClock

DAY = timedelta(days=1)
OPERATOR = "operator"
VERIFY, SIGN, STORAGE, SITES = "verify_operations", "sign_operations", "storage_gb", "active_sites"

CATALOGUE: dict[str, Any] = {
    "plans": {
        "starter": {"display_name": "Starter"},
        "growth": {"display_name": "Growth"},
        "scale": {"display_name": "Scale"},
    },
    "meters": {
        VERIFY: {
            "display_name": "Verify Operations",
            "event_type": "verify.completed",
            "unit": "verify",
            "aggregation": "sum",
            "included": {"starter": 2000, "growth": 15000, "scale": "unlimited"},
            "price": {"mode": "flat", "unit_amount": "4", "currency": "usd"},
        },
        SIGN: {
            "display_name": "Sign Operations",
            "event_type": "sign.completed",
            "unit": "sign",
            "aggregation": "sum",
            "included": {"starter": 200, "growth": 1000, "scale": 5000},
            "price": {
                "mode": "graduated",
                "currency": "usd",
                "tiers": [
                    {"up_to": 1000, "unit_amount": "12.5"},
                    {"unit_amount": "9", "flat_amount": "500"},
                ],
            },
        },
        STORAGE: {
            "display_name": "Storage (GB)",
            "event_type": "storage.measured",
            "unit": "gb",
            "aggregation": "max",
            "precision": 3,
            "included": {"starter": 10, "growth": 50, "scale": 200},
            "price": {"mode": "flat", "unit_amount": "25", "currency": "usd"},
        },
        SITES: {
            "display_name": "Active Sites",
            "event_type": "site.activated",
            "unit": "site",
            "aggregation": "unique_count",
            "unique_by": "domain",
            "included": {"starter": 0, "growth": 5, "scale": 10},
            "properties": {"domain": {"type": "domain", "required": True}},
        },
        "api_calls": {
            "display_name": "API Calls",
            "event_type": "api.request",
            "unit": "call",
            "aggregation": "sum",
            "billable": False,
        },
        "support_requests": {
            "display_name": "Support Requests",
            "event_type": "support.created",
            "unit": "request",
            "aggregation": "count",
            "billable": False,
        },
    },
}


def at(text: str) -> datetime:
    """``03-19`` or ``03-19 14:05`` as a moment of 2026, UTC."""
    return datetime.fromisoformat(f"2026-{text}").replace(tzinfo=UTC)


class Service:
    """An app, what it knows of its customers, and the clock it goes by."""

    def __init__(self, folder: Path, **config: Any) -> None:
        self.clock = FrozenClock(at("03-19 14:05"))
        self.app = Flask("service", instance_path=str(folder))
        self.app.config.update(
            C2METER_STRIPE_SECRET_KEY="",
            C2METER_WORKER="off",
            C2METER_CLOCK=self.clock,
            C2METER_CATALOGUE=CATALOGUE,
            C2METER_CORS_ORIGINS=[],
            C2METER_DURABILITY="relaxed",
        )
        self.app.config.update(config)
        self.meter = C2Meter(self.app)
        self.meter.dashboard_auth(who)
        self.app.register_blueprint(self.meter.dashboard_blueprint(), url_prefix="/billing")

    @property
    def metering(self) -> Metering:
        state: Any = self.app.extensions["c2meter"]
        metering: Metering = state.metering
        return metering

    def client(self, customer: str | None) -> FlaskClient:
        """A browser of whoever is signed in."""
        client = self.app.test_client(use_cookies=False)
        if customer is not None:
            client.environ_base["HTTP_COOKIE"] = f"who={customer}"
        return client

    # -- what happens ------------------------------------------------------------------------------

    def subscribe(
        self,
        customer: str,
        plan: str | None,
        cycle: tuple[str, str] = ("03-01", "04-01"),
        *,
        when: str | None = None,
        status: str = "active",
        ended: str | None = None,
    ) -> None:
        """Stripe says what *customer* subscribes to, as of *when*."""
        subscription = Subscription(
            plan,
            Period(at(cycle[0]), at(cycle[1])),
            status,
            id="sub_1",
            started_at=at("01-01"),
            ended_at=at(ended) if ended else None,
        )
        self.metering.store.subscriptions.learn(
            customer,
            [subscription],
            at(when or cycle[0]),
            source="stripe",
            finding="known",
            look_again=None,
            is_exact=True,
        )

    def use(self, customer: str, meter: str, value: Any, moment: str | datetime) -> None:
        """Usage at *moment*, recorded then: an alert is raised at that time. Sites: the domain."""
        when = at(moment) if isinstance(moment, str) else moment
        now, self.clock.now = self.clock.now, when
        what: dict[str, Any] = {"domain": value} if meter == SITES else {"value": value}
        self.metering.record(meter, customer, occurred_at=when, **what)
        self.clock.now = now

    def work(self, customer: str, first: str, last: str, **usual: int) -> None:
        """About the *usual* of each meter on each working day, a fifth of it at weekends."""
        day = at(first)
        while day <= at(last):
            for hour, share in ((9, 3), (12, 5), (16, 2)):
                moment = day.replace(hour=hour)
                for meter, amount in usual.items():
                    varied = amount * (83 + day.toordinal() * 37 % 35) // 100
                    part = varied * share // (10 if day.weekday() < 5 else 50)
                    if part and moment < self.clock.now:
                        self.use(customer, meter, part, moment)
            day += DAY

    def read_alerts(self, customer: str, before: str) -> None:
        """*customer* has read what was raised before a day."""
        queue = self.metering.store.announcements
        old = [each.alert for each in queue.notices(at("01-01"), customer)]
        identifiers = [each.identifier for each in old if each.raised_at < at(before)]
        queue.mark_read(customer, at(before), identifiers)

    def settle_alerts(self, channel: str, outcome: str) -> None:
        """What is due on *channel* is announced, or given up."""
        queue, now = self.metering.store.announcements, self.clock.now
        while claim := queue.claim(channel, now):
            if outcome == "delivered":
                queue.delivered(claim, now)
            else:
                queue.give_up(claim, now, "http_500")

    def close(self) -> None:
        self.metering.store.close()


def who() -> Any:
    """Whoever the cookie names."""
    name = request.cookies.get("who")
    return ALL_CUSTOMERS if name == OPERATOR else name


@contextmanager
def service(folder: Path, **config: Any) -> Iterator[Service]:
    made = Service(folder, **config)
    try:
        yield made
    finally:
        made.close()


@contextmanager
def serving(app: Flask) -> Iterator[str]:
    """*app* on a real socket."""
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()


# -- customers -------------------------------------------------------------------------------------


def healthy(service: Service, customer: str = "cus_QpLm4Vt7xYh2Rd") -> str:
    """In mid-period, well within the plan."""
    for cycle in (("02-01", "03-01"), ("03-01", "04-01")):
        service.subscribe(customer, "starter", cycle)
    service.work(customer, "01-22", "03-01", verify_operations=61, sign_operations=8, api_calls=910)
    service.use(customer, STORAGE, Decimal("6.214"), "03-01 02:00")
    service.work(customer, "03-02", "03-11", verify_operations=70, sign_operations=8, api_calls=980)
    service.use(customer, STORAGE, Decimal("7.105"), "03-12 02:00")
    service.work(customer, "03-12", "03-19", verify_operations=68, sign_operations=7, api_calls=990)
    for day in ("03-04", "03-11"):
        service.use(customer, "support_requests", None, f"{day} 10:00")
    return customer


def exceeded(service: Service, customer: str = "cus_R8sWnK1bTfE5Zc") -> str:
    """Above the plan, which was changed within the cycle, with alerts nobody has read."""
    service.subscribe(customer, "starter", ("02-01", "03-01"))
    service.subscribe(customer, "starter")
    service.work(customer, "01-22", "03-01", verify_operations=160, sign_operations=13)
    service.use(customer, STORAGE, Decimal("9.2"), "03-02 02:00")
    service.use(customer, SITES, "shop.example.com", "03-02 08:00")
    service.work(customer, "03-02", "03-08", verify_operations=190, sign_operations=41)
    service.subscribe(customer, "growth", when="03-09 10:30")
    service.use(customer, STORAGE, Decimal("36.2"), "03-10 02:00")
    for number, name in enumerate(("shop", "blog", "press")):
        service.use(customer, SITES, f"{name}.example.com", f"03-1{number} 08:00")
    usual = {VERIFY: 1210, SIGN: 178, "api_calls": 21_400}
    service.work(customer, "03-10", "03-16", **usual)
    service.use(customer, STORAGE, Decimal("48.9"), "03-17 02:00")
    service.work(customer, "03-17", "03-19", **usual)
    service.use(customer, "support_requests", None, "03-16 10:00")
    service.read_alerts(customer, "03-16 11:00")
    return customer


def new(service: Service, customer: str = "cus_TfJ3aXe9Wq6Nud") -> str:
    """In its first day."""
    service.subscribe(customer, "starter", ("03-19 06:40", "04-19 06:40"))
    service.use(customer, VERIFY, 12, "03-19 09:10")
    service.use(customer, SIGN, 3, "03-19 09:30")
    service.use(customer, STORAGE, Decimal("0.35"), "03-19 10:00")
    return customer
