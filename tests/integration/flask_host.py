"""A metered Flask app to test against, and its customers."""

from __future__ import annotations

import time
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from flask import Flask, request
from flask.testing import FlaskClient

from flask_c2meter import C2Meter, Customer, UsageEvent, metered, usage_rejected
from flask_c2meter.metering import Metering

ALICE = {"Authorization": "cus_alice"}
BOB = {"Authorization": "cus_bob"}


class Host:
    """One app with one ``C2Meter``, and what a test asks of it."""

    def __init__(self, app: Flask, meter: C2Meter) -> None:
        self.app = app
        self.meter = meter
        #: The ``reason`` of each ``usage_rejected``.
        self.rejections: list[str] = []
        usage_rejected.connect(self._rejected, sender=app)

    def _rejected(self, sender: Flask, reason: str, **extra: Any) -> None:
        self.rejections.append(reason)

    def client(self, headers: dict[str, str] | None = None) -> FlaskClient:
        """A client of Alice's, or of whoever *headers* say."""
        client = self.app.test_client()
        client.environ_base.update(
            {
                f"HTTP_{name.upper().replace('-', '_')}": text
                for name, text in (ALICE if headers is None else headers).items()
            }
        )
        return client

    def route(
        self,
        view: Callable[..., Any],
        meter: str = "sign_operations",
        path: str = "/",
        methods: tuple[str, ...] = ("GET", "POST"),
        **arguments: Any,
    ) -> None:
        """Serve *view*, metered, at *path*."""
        arguments.setdefault("rate_limit", False)
        if meter == "sign_operations":
            arguments.setdefault("properties", {"manifest_id": "m-1"})
        self.app.add_url_rule(
            path, path.strip("/") or "root", metered(meter, **arguments)(view), methods=methods
        )

    @property
    def metering(self) -> Metering:
        state: Any = self.app.extensions["c2meter"]
        metering: Metering = state.metering
        return metering

    def events(self, meter: str | None = None) -> list[UsageEvent]:
        """What is in the ledger."""
        return self.metering.store.events(meter=meter)

    def event(self) -> UsageEvent:
        """The only event in the ledger."""
        (event,) = self.events()
        return event

    def total(self, meter: str, customer: str = "cus_alice") -> Decimal:
        """What *customer* has used of *meter*."""
        return next(u.total for u in self.metering.usage(customer) if u.meter == meter)

    def close(self) -> None:
        """End the worker's thread and close the database."""
        close(self.app)


def close(app: Flask) -> None:
    """End the worker's thread of *app* and close its database."""
    metering: Metering = app.extensions["c2meter"].metering
    if (worker := metering.worker).is_running:
        worker.stop()
        wait_until(lambda: not worker.is_running)
    metering.store.close()


def load_customer() -> Customer | None:
    """Whoever the ``Authorization`` header names; ``X-User`` is one of the customer's users."""
    name = request.headers.get("Authorization")
    return Customer(name, request.headers.get("X-User"), "starter") if name else None


def wait_until(condition: Callable[[], bool], timeout_s: float = 15.0) -> None:
    """Poll until *condition* holds; fail if it does not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)
