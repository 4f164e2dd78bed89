"""A metered WSGI app to test against: PEP 3333 is checked on both sides of the middleware."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import Any
from wsgiref.validate import validator

from flask_host import wait_until
from werkzeug.test import Client, TestResponse

from flask_c2meter import Customer, UsageEvent, usage_rejected
from flask_c2meter.wsgi import MeterMiddleware

ALICE = {"Authorization": "cus_alice"}
BOB = {"Authorization": "cus_bob"}

App = Callable[[dict[str, Any], Any], Iterable[bytes]]


class WsgiHost:
    """One middleware around one app, and what a test asks of it."""

    def __init__(self, middleware: MeterMiddleware) -> None:
        self.middleware = middleware
        self.metering = middleware.metering
        #: The ``reason`` of each ``usage_rejected``.
        self.rejections: list[str] = []
        usage_rejected.connect(self._rejected, sender=middleware)

    def _rejected(self, sender: object, reason: str, **extra: Any) -> None:
        self.rejections.append(reason)

    def send(
        self, method: str = "POST", path: str = "/sign", who: dict[str, str] = ALICE, **more: Any
    ) -> TestResponse:
        """The answer to one request of Alice's, or whoever."""
        headers = {**who, **more.pop("headers", {})}
        client = Client(validator(self.middleware))
        return client.open(path, method=method, headers=headers, buffered=True, **more)

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
        if (worker := self.metering.worker).is_running:
            worker.stop()
            wait_until(lambda: not worker.is_running)
        self.metering.store.close()


def customer_of(environ: dict[str, Any]) -> Customer | None:
    """Whoever the ``Authorization`` header names; ``X-User`` is one of the customer's users."""
    name = environ.get("HTTP_AUTHORIZATION")
    return Customer(name, environ.get("HTTP_X_USER"), "starter") if name else None


def answering(
    body: bytes = b"done", status: str = "200 OK", headers: Iterable[tuple[str, str]] = ()
) -> App:
    """An app that always gives the same answer, and names its manifest where it is metered."""

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        if (usage := environ.get("c2meter.usage")) is not None:
            usage.update(manifest_id="m-1")
        kind = [] if status[:3] in ("204", "304") else [("Content-Type", "text/plain")]
        start_response(status, [*kind, *headers])
        return [body] if kind else []

    return app
