"""Webhooks out: endpoints, signatures, and the one thread that sends.

Each endpoint has a queue of its own: its events arrive in order, and a broken endpoint holds up no
other. Imports ``news``, ``terms`` and the standard library. Queues and log are guarded by the app's
lock, which is never held while sending. Promises: no thread before there is something to send or to
watch; when :meth:`Hooks.stop` returns it has ended, and what was not delivered is still queued.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import http.client
import json
import secrets
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from fnmatch import fnmatchcase
from urllib.parse import urlsplit

from .news import Event
from .terms import new_id

#: How long a connection and an answer are waited for, in seconds.
CONNECT_WITHIN_S = 2.0
ANSWER_WITHIN_S = 10.0
#: How often the thread looks whether time has made something due.
TICK_S = 0.2
#: Before the second attempt; doubled before each further one.
FIRST_PAUSE_S = 0.05

_CONNECTIONS: Mapping[str, type[http.client.HTTPConnection]] = {
    "http": http.client.HTTPConnection,
    "https": http.client.HTTPSConnection,
}


@dataclass(frozen=True, slots=True)
class WebhookDelivery:
    """One attempt to send an event to an endpoint."""

    #: The event's id.
    event: str
    type: str
    url: str
    #: The HTTP status answered; None: no answer.
    status: int | None
    #: 1 for the first.
    attempt: int
    #: By the emulator's clock, as in the signature.
    sent_at: datetime


@dataclass(slots=True)
class Letter:
    """An event on its way to one endpoint."""

    event: Event
    attempt: int = 1
    #: When to try, on the monotonic clock.
    due_s: float = 0.0


@dataclass(slots=True, eq=False)
class Endpoint:
    """Where events go."""

    id: str
    url: str
    created: datetime
    secret: str = field(repr=False)
    #: Types wanted, with ``*`` as wildcard.
    types: Sequence[str]
    is_thin: bool
    queue: deque[Letter] = field(default_factory=deque)

    def wants(self, event: Event) -> bool:
        """Whether *event* is sent to it."""
        return event.is_thin == self.is_thin and any(
            fnmatchcase(event.type, wanted) for wanted in self.types
        )


class Hooks:
    """All endpoints, what was sent to them, and the thread that sends.

    :param changed: the app's lock; told of each attempt.
    :param now: the emulator's clock.
    :param tick: called by the thread all the time, under the lock: it makes what time makes due.
    :param attempts: how often an event is tried at most.
    """

    def __init__(
        self,
        changed: threading.Condition,
        now: Callable[[], datetime],
        tick: Callable[[], None],
        attempts: int,
    ) -> None:
        self._changed = changed
        self._now = now
        self._tick = tick
        self._attempts = attempts
        self.endpoints: list[Endpoint] = []
        self.deliveries: list[WebhookDelivery] = []
        self.is_held: bool = False
        self._thread: threading.Thread | None = None
        self._woken = threading.Event()
        self._stopping = threading.Event()
        self._connection: http.client.HTTPConnection | None = None

    # --- under the app's lock ---------------------------------------------------------------

    def add(self, url: str, secret: str | None, types: Sequence[str], *, thin: bool) -> str:
        """Send events to *url* from now on.

        :return: the secret they are signed with.
        :raises ValueError: *url* is none of HTTP.
        """
        _connection(url)
        secret = secret or f"whsec_{secrets.token_hex(16)}"
        id = new_id("ed" if thin else "we")
        self.endpoints.append(Endpoint(id, url, self._now(), secret, tuple(types), thin))
        return secret

    def post(self, event: Event) -> int:
        """Queue *event* for every endpoint that wants it; return how many do."""
        wanting = [endpoint for endpoint in self.endpoints if endpoint.wants(event)]
        for endpoint in wanting:
            endpoint.queue.append(Letter(event))
        if wanting:
            self.watch()
            self._woken.set()
        return len(wanting)

    def hold(self) -> None:
        """Send nothing until :meth:`release`."""
        self.is_held = True

    def release(self) -> None:
        """Send what was held."""
        self.is_held = False
        self._woken.set()

    def forget(self) -> None:
        """Drop all endpoints, what is queued and what is logged."""
        self.endpoints = []
        self.deliveries = []
        self.is_held = False

    @property
    def waiting(self) -> int:
        """How many events are queued, each counted per endpoint."""
        return sum(len(endpoint.queue) for endpoint in self.endpoints)

    def watch(self) -> None:
        """Have the thread running, not after :meth:`stop`."""
        if self._thread is None and not self._stopping.is_set():
            self._thread = threading.Thread(
                target=self._work, name="stripe-emulator-webhooks", daemon=True
            )
            self._thread.start()

    # --- the thread's life --------------------------------------------------------------------

    def start(self) -> None:
        """Send again after :meth:`stop`, beginning with what was left."""
        with self._changed:
            self._stopping.clear()
            if self.waiting:
                self.watch()

    def stop(self) -> None:
        """Cut what is being sent and end the thread; not to be called under the lock."""
        with self._changed:
            self._stopping.set()
            self._woken.set()
            thread, self._thread = self._thread, None
        if thread is not None:
            self._cut()
            thread.join(timeout=5)

    def _cut(self) -> None:
        connection = self._connection
        if connection is not None and connection.sock is not None:
            with contextlib.suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RDWR)

    def _work(self) -> None:
        while not self._stopping.is_set():
            with self._changed:
                self._tick()
                endpoint, pause_s = self._next()
                letter = endpoint.queue[0] if endpoint else None
            if endpoint is None or letter is None:
                self._woken.wait(pause_s)
                self._woken.clear()
            else:
                self._attempt(endpoint, letter)

    def _next(self) -> tuple[Endpoint | None, float]:
        """The endpoint whose first letter is due longest, else how long to wait for one."""
        waiting = [] if self.is_held else [each for each in self.endpoints if each.queue]
        if not waiting:
            return None, TICK_S
        first = min(waiting, key=lambda endpoint: endpoint.queue[0].due_s)
        pause_s = first.queue[0].due_s - time.monotonic()
        return (first, 0.0) if pause_s <= 0 else (None, min(pause_s, TICK_S))

    def _attempt(self, endpoint: Endpoint, letter: Letter) -> None:
        sent_at = self._now()
        status = self._send(endpoint, letter.event, sent_at)
        with self._changed:
            is_cut = status is None and self._stopping.is_set()
            if is_cut or endpoint not in self.endpoints:
                return
            self.deliveries.append(
                WebhookDelivery(
                    letter.event.id,
                    letter.event.type,
                    endpoint.url,
                    status,
                    letter.attempt,
                    sent_at,
                )
            )
            if (status is not None and status // 100 == 2) or letter.attempt >= self._attempts:
                endpoint.queue.popleft()
            else:
                letter.due_s = time.monotonic() + FIRST_PAUSE_S * 2 ** (letter.attempt - 1)
                letter.attempt += 1
            self._changed.notify_all()

    def _send(self, endpoint: Endpoint, event: Event, sent_at: datetime) -> int | None:
        """Send *event*; the status answered, None without an answer."""
        body = json.dumps(event.body, separators=(",", ":")).encode()
        headers = {
            "Content-Type": "application/json; charset=utf-8",
            "User-Agent": "Stripe/1.0 (+https://stripe.com/docs/webhooks)",
            "Stripe-Signature": signature(body, endpoint.secret, sent_at),
        }
        connection, target = _connection(endpoint.url)
        try:
            connection.connect()
            connection.sock.settimeout(ANSWER_WITHIN_S)
            self._connection = connection
            if self._stopping.is_set():
                return None
            connection.request("POST", target, body, headers)
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return None
        finally:
            self._connection = None
            connection.close()


def _connection(url: str) -> tuple[http.client.HTTPConnection, str]:
    """A connection to *url*, not yet open, and what to request on it."""
    parts = urlsplit(url)
    if parts.scheme not in _CONNECTIONS or not parts.hostname or not url.isascii():
        raise ValueError(f"{url!r} is no URL of a webhook endpoint: use http:// or https://")
    connect_to = _CONNECTIONS[parts.scheme]
    connection = connect_to(parts.hostname, parts.port, timeout=CONNECT_WITHIN_S)
    return connection, f"{parts.path or '/'}{'?' * bool(parts.query)}{parts.query}"


def signature(body: bytes, secret: str, sent_at: datetime) -> str:
    """The ``Stripe-Signature`` header of *body*."""
    timestamp = int(sent_at.timestamp())
    signed = hmac.new(secret.encode(), f"{timestamp}.".encode() + body, hashlib.sha256)
    return f"t={timestamp},v1={signed.hexdigest()}"
