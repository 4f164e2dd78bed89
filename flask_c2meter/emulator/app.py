"""The emulator itself: an account put together with a clock, a server, webhooks and a desk.

``levers`` is the other half of the class, ``intake`` the way of every request. Imports all other
rooms of the package. Promises: no thread before :meth:`~StripeEmulator.start`, or the first
webhook; when :meth:`~StripeEmulator.stop` returns, nothing of it runs any more; what a client has
been answered is already visible in the properties.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Self

from . import desk
from .account import Account, Settings
from .hooks import Hooks
from .intake import Intake, is_live
from .levers import Levers
from .meters import AsyncError, MeterEvent, Rules
from .news import Event
from .picture import Snapshot
from .server import Server, status_line
from .traffic import Fault
from .wire import ReceivedRequest, read_request

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


def _real_time() -> datetime:
    return datetime.now(UTC)


class StripeEmulator(Levers):
    """Stripe's billing API on loopback, with state, a clock and faults on demand.

    As a context manager it serves HTTP on :attr:`url`; as a WSGI app it works without a socket.
    The rules of the real API hold, except that the stream also works with test keys. The account
    is empty at first and lives in memory; ``GET /`` shows it to a person,
    ``GET /_emulator/state.json`` to a program. Whenever time has moved, billing periods that have
    ended are turned over and invoices finalised before anything else happens.

    :param host: address to listen on; keep it on loopback, there is no other protection.
    :param port: 0 = any free one. The port is kept when the emulator is stopped and started again.
    :param clock: tells the time, aware UTC; default: real time. :meth:`advance` adds to it.
    :param auto_meters: create a ``sum`` meter at its first event; False: unknown = ``no_meter``.
    :param allow_negative: accept negative values, which are documented corrections.
    :param allow_decimals: accept decimal values, which Stripe's sources are at odds about.
    :param identifier_ttl: how long an event's identifier is remembered.
    :param aggregation_delay: how long after its receipt an event shows up in summaries.
    :param lane_concurrency: answer 409 to a second request in flight for a customer and meter.
    :param keys: the API keys accepted; None = any; :meth:`accept_keys` changes them.
    :param customers: customers known without being created; events of others are answered with 200
        and end in :attr:`async_errors`; None = any.
    :param known_customers_only: instead of None, know only the customers that were created.
    :param duplicate_code: whether v1 names ``duplicate_meter_event`` in its refusal of a
        duplicate; the real one only says so in its message.
    :param session_ttl: life of a stream session.
    :param rate_limit: requests per second above which 429 is answered; None = no limit.
    :param keep_requests: how many of the latest requests are kept.
    :param seed: of the dice that :meth:`fail` throws for a ``rate``.
    :param finalisation_grace: from an invoice's creation to its finalisation.
    :param max_samples: how many bad events an error report lists per code.
    :param webhook_attempts: how often a webhook is sent at most.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        clock: Callable[[], datetime] | None = None,
        auto_meters: bool = True,
        allow_negative: bool = True,
        allow_decimals: bool = False,
        identifier_ttl: timedelta = timedelta(hours=24),
        aggregation_delay: timedelta = timedelta(0),
        lane_concurrency: bool = True,
        keys: Iterable[str] | None = None,
        customers: Container[str] | None = None,
        known_customers_only: bool = False,
        duplicate_code: bool = False,
        session_ttl: timedelta = timedelta(minutes=15),
        rate_limit: int | None = None,
        keep_requests: int = 1_000_000,
        seed: int | None = None,
        finalisation_grace: timedelta = timedelta(hours=1),
        max_samples: int = 10,
        webhook_attempts: int = 5,
    ) -> None:
        self._clock = clock or _real_time
        self._offset = timedelta(0)
        # Guards all that follows; told whenever something happens.
        self._changed = threading.Condition(threading.RLock())
        accepted = None if keys is None else frozenset(keys)
        self._settings = Settings(
            Rules(
                auto_meters=auto_meters,
                allow_negative=allow_negative,
                allow_decimals=allow_decimals,
                identifier_ttl=identifier_ttl,
                aggregation_delay=aggregation_delay,
            ),
            customers=() if customers is None and known_customers_only else customers,
            session_ttl=session_ttl,
            finalisation_grace=finalisation_grace,
            max_samples=max_samples,
            livemode=bool(accepted) and all(map(is_live, accepted or ())),
        )
        self._host = host
        self._server = Server(self.wsgi_app, host, port)
        self._hooks = Hooks(self._changed, self.now, self._tick, webhook_attempts)
        self._intake = Intake(
            self._new_account(),
            self._changed,
            self.now,
            self._watch,
            keys=accepted,
            lane_concurrency=lane_concurrency,
            duplicate_code=duplicate_code,
            rate_limit=rate_limit,
            keep_requests=keep_requests,
            seed=seed,
        )

    # --- life -------------------------------------------------------------------------------

    def start(self) -> Self:
        """Serve on :attr:`url` from now on; the state of an earlier run is kept.

        :raises RuntimeError: it already runs.
        :raises OSError: the port is taken.
        """
        if self._server.is_running:
            raise RuntimeError(f"The emulator already serves {self.url}; call stop() first.")
        self._intake.stopping.clear()
        self._server.start()
        self._hooks.start()
        with self._changed:
            self._watch()
        return self

    def stop(self) -> None:
        """Refuse connections from now on and cut the open ones; safe to call twice.

        The port is kept for the next start until the block ends, if there is one.
        State is kept, webhooks not delivered yet included. Requests in a scripted delay are cut
        without an answer.
        """
        self._intake.stopping.set()
        self._hooks.stop()
        self._server.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()
        self._server.release()

    @property
    def url(self) -> str:
        """Base URL without trailing slash, for every ``base_addresses`` of a ``StripeClient``.

        :raises RuntimeError: it has never been started.
        """
        if not self._server.port:
            raise RuntimeError("The emulator has no URL yet; call start() or use it in a `with`.")
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._server.port}"

    # --- what it has received ---------------------------------------------------------------

    @property
    def events(self) -> list[MeterEvent]:
        """The meter events accepted so far and not cancelled, in order of arrival."""
        with self._changed:
            return list(self._account.meters.events)

    @property
    def async_errors(self) -> list[AsyncError]:
        """The events that were answered with 200 but are not counted."""
        with self._changed:
            return list(self._account.meters.async_errors)

    @property
    def requests(self) -> list[ReceivedRequest]:
        """Every request to Stripe's API, in order of arrival, also those that a fault hit."""
        with self._changed:
            return list(self._intake.requests)

    @property
    def duplicates(self) -> int:
        """How many events came with an identifier that was still remembered."""
        return self._account.meters.duplicates

    def meter_total(self, event_name: str, customer: str) -> Decimal:
        """Sum of the values of all accepted events of a customer, whenever they happened.

        Includes what is not aggregated yet: this is what Stripe *holds*; the summaries endpoint is
        what Stripe *shows*, after ``aggregation_delay``. It is a plain sum also for meters with
        another formula, and 0 for what is unknown.
        """
        with self._changed:
            lane = self._account.meters.lanes.get((event_name, customer))
            return lane.total if lane else Decimal(0)

    def wait_for(self, what: int | Callable[[StripeEmulator], bool], timeout: float = 10.0) -> bool:
        """Wait until so many events are accepted, or until a predicate of the emulator holds.

        :param what: a number of events, or a callable that is asked whenever something happened.
        :param timeout: in seconds of real time.
        :return: False if the time is up.
        """

        def reached() -> bool:
            if callable(what):
                return what(self)
            return len(self._account.meters.events) >= what

        with self._changed:
            return self._changed.wait_for(reached, timeout)

    # --- levers -----------------------------------------------------------------------------

    def now(self) -> datetime:
        """The emulator's time, aware UTC."""
        return self._clock() + self._offset

    def advance(self, step: timedelta) -> datetime:
        """Move the emulator's clock by *step*; what becomes due happens.

        :param step: may be negative; nothing that has happened is undone.
        :return: the new time.
        """
        with self._changed:
            self._offset += step
            self._account.catch_up(self.now())
            self._changed.notify_all()
            return self.now()

    def fail(
        self,
        status: int | None = None,
        times: int | None = 1,
        path: str | None = None,
        *,
        after_processing: bool = False,
        retry_after: int | str | datetime | None = None,
        code: str | None = None,
        message: str | None = None,
        reset: bool = False,
        delay: float | None = None,
        rate: float | None = None,
        body: str | bytes | None = None,
        headers: Mapping[str, str] | None = None,
        match: Callable[[ReceivedRequest], bool] | None = None,
    ) -> None:
        """Script a fault. Faults are consumed in the order in which they were scripted.

        A fault hits requests that are authenticated and well-formed. As with Stripe, a 500 is
        saved under the request's ``Idempotency-Key`` and replayed to it; other faults are not.

        :param status: HTTP status in place of the answer. Default: 503; with only a *delay*,
            the true answer.
        :param times: how many requests it hits; None = all, until :meth:`recover`.
        :param path: only requests whose path matches, with ``*`` as wildcard.
        :param after_processing: process the request first; otherwise it leaves no trace.
        :param retry_after: the ``Retry-After`` header: seconds, a time, or any text.
        :param code: Stripe's error code, such as ``lock_timeout``.
        :param message: the error's message.
        :param reset: reset the connection instead of answering.
        :param delay: seconds to wait, after processing if *after_processing*, else before it.
        :param rate: hit a matching request only with this probability, 0 to 1.
        :param body: a raw body, such as a proxy's HTML, in place of Stripe's error.
        :param headers: more headers of the answer.
        :param match: only requests for which this is true.
        :raises ValueError: a number is out of its range.
        """
        if status is None and (delay is None or body is not None):
            status = 503
        fault = Fault(
            status=status,
            times=times,
            path=path,
            match=match,
            after_processing=after_processing,
            reset=reset,
            delay=delay,
            rate=rate,
            retry_after=retry_after,
            code=code,
            message=message,
            body=body,
            headers=headers or {},
        )
        with self._changed:
            self._intake.faults.pending.append(fault)

    def recover(self) -> None:
        """Drop all scripted faults that have not happened yet."""
        with self._changed:
            self._intake.faults.pending.clear()

    @property
    def faults(self) -> list[Fault]:
        """The scripted faults that are still to come."""
        with self._changed:
            return list(self._intake.faults.pending)

    def accept_keys(self, keys: Iterable[str] | None) -> None:
        """Accept only these API keys from now on (401 to others); None = any."""
        self._intake.accept_keys(keys)

    def forget(self) -> None:
        """Empty the account and the lists of requests, faults and webhook endpoints.

        The clock stays as it is.
        """
        with self._changed:
            self._hooks.forget()
            self._intake.begin(self._new_account())

    def _new_account(self) -> Account:
        return Account(self._settings, self._post, lambda: self._hooks.endpoints)

    @property
    def _account(self) -> Account:
        return self._intake.account

    @contextmanager
    def _open(self) -> Iterator[Account]:
        with self._changed:
            self._account.catch_up(self.now())
            yield self._account
            self._watch()

    def _post(self, event: Event) -> int:
        self._changed.notify_all()
        return self._hooks.post(event)

    def _watch(self) -> None:
        """Have time watched if it can make something that an endpoint is to be told of."""
        if self._server.is_running and self._hooks.endpoints:
            if self._account.journal.has_unreported or self._account.agenda:
                self._hooks.watch()

    def _tick(self) -> None:
        self._account.catch_up(self.now())
        if self._server.is_running:
            self._account.journal.report(self.now())

    def snapshot(self) -> Snapshot:
        """A consistent picture of the state, as the page and ``state.json`` show it."""
        with self._open() as account:
            return Snapshot.of(
                account, self._hooks, self._intake.requests, self._intake.faults.pending, self.now()
            )

    # --- as a WSGI app ----------------------------------------------------------------------

    def wsgi_app(self, environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        """The WSGI app.

        :raises ConnectionError: a scripted reset or a stop; the server resets the connection.
        """
        request = read_request(environ, self.now())
        if desk.is_for_desk(request.path):
            answer = desk.answer(self, request)
        else:
            answer = self._intake.take(request)
        headers = {"Content-Type": answer.content_type, **answer.headers}
        start_response(status_line(answer.status), list(headers.items()))
        return [answer.body]

    __call__ = wsgi_app
