"""What the tests of the emulator's billing are made of: an account in motion, a receiver."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from werkzeug.test import Client, TestResponse

from flask_c2meter.emulator import StripeEmulator

KEY = "sk_test_1"
#: A free first tier of 2,000, then 4 cents each.
STARTER = [
    {"up_to": 2000, "unit_amount_decimal": "0"},
    {"up_to": "inf", "unit_amount_decimal": "4"},
]


def at(text: str) -> datetime:
    """A moment in UTC, as ``2026-11-01`` or ``2026-11-01T12:00``."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


class Account:
    """An emulator without a socket, whose clock goes where it is told to."""

    def __init__(self, start: str = "2026-11-01", **settings: Any) -> None:
        self.stripe = StripeEmulator(clock=lambda: at(start), **settings)
        self._client = Client(self.stripe)

    def go(self, moment: str) -> None:
        """Move time to *moment*."""
        self.stripe.advance(at(moment) - self.stripe.now())

    def use(
        self,
        value: object,
        moment: str | None = None,
        *,
        meter: str = "verify",
        customer: str = "cus_1",
        identifier: str | None = None,
    ) -> TestResponse:
        """Report usage that happened at *moment*, by default now."""
        happened = at(moment) if moment else self.stripe.now()
        form = {
            "event_name": meter,
            "payload[stripe_customer_id]": customer,
            "payload[value]": str(value),
            "timestamp": str(int(happened.timestamp())),
        }
        if identifier is not None:
            form["identifier"] = identifier
        answer = self.post("/v1/billing/meter_events", form)
        assert answer.status_code == 200, answer.text
        return answer

    def post(self, path: str, form: Any = "", *, key: str | None = None) -> TestResponse:
        headers = {"Authorization": f"Bearer {KEY}"}
        if key is not None:
            headers["Idempotency-Key"] = key
        return self._client.post(
            path,
            data=form,
            content_type="application/x-www-form-urlencoded",
            headers=headers,
        )

    def get(self, path: str, **params: Any) -> TestResponse:
        headers = {"Authorization": f"Bearer {KEY}"}
        return self._client.get(path, query_string=params, headers=headers)

    def subscription(self, id: str) -> dict[str, Any]:
        """A subscription as a request sees it."""
        answer = self.get(f"/v1/subscriptions/{id}")
        assert answer.status_code == 200, answer.text
        body: dict[str, Any] = answer.get_json()
        return body

    def period(self, id: str, item: int = 0) -> tuple[datetime, datetime]:
        """The current period of an item."""
        body = self.subscription(id)["items"]["data"][item]
        return (
            datetime.fromtimestamp(body["current_period_start"], UTC),
            datetime.fromtimestamp(body["current_period_end"], UTC),
        )


@dataclass(frozen=True)
class Received:
    """A webhook as it arrived."""

    headers: Mapping[str, str]
    body: bytes

    @property
    def event(self) -> dict[str, Any]:
        event: dict[str, Any] = json.loads(self.body)
        return event


@dataclass
class Receiver:
    """A webhook endpoint on a real socket; answers as told, else 200."""

    #: Statuses for the next requests; 0 cuts the connection.
    statuses: list[int] = field(default_factory=list)
    received: list[Received] = field(default_factory=list)
    #: Answers wait for it.
    gate: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.gate.set()

    def __enter__(self) -> Receiver:
        self._changed = threading.Condition()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.gate.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/stripe/webhook?a=b"

    @property
    def types(self) -> Sequence[str]:
        """The types of the events received, in order."""
        return [each.event["type"] for each in self.received]

    def wait(self, count: int) -> list[Received]:
        """The first *count* webhooks, once they have arrived."""
        with self._changed:
            arrived = self._changed.wait_for(lambda: len(self.received) >= count, timeout=10)
        assert arrived, f"{len(self.received)} of {count} webhooks arrived: {self.types}"
        return self.received[:count]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                with receiver._changed:
                    receiver.received.append(Received(dict(self.headers), body))
                    status = receiver.statuses.pop(0) if receiver.statuses else 200
                    receiver._changed.notify_all()
                receiver.gate.wait()
                if status:
                    self.send_response(status)
                    self.send_header("Content-Length", "0")
                    self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        return Handler
