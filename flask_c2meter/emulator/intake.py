"""A request's way through the emulator: recorded, routed, authenticated, admitted, answered.

Between being admitted and being answered it is hit by a fault, or not. Imports ``account``,
``calls``, ``routes``, ``terms``, ``traffic`` and ``wire``. Promises: time catches up with the
account before a request is handled; what is answered is already visible in the state.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterable
from datetime import datetime
from email.utils import formatdate

from .account import Account
from .calls import Call, Route
from .routes import find_route, translate
from .terms import Rejection
from .traffic import Fault, FaultScript, Lanes, RateLimit, SavedAnswers
from .wire import Answer, ReceivedRequest, Refusal


def is_live(key: str) -> bool:
    """Whether an API key is of live mode."""
    return key.startswith(("sk_live_", "rk_live_"))


class Intake:
    """Takes requests to an account; the parameters are those of ``StripeEmulator``.

    :param account: worked on until :meth:`begin` is given another.
    :param changed: the app's lock; told whenever a request arrives or is answered.
    :param now: the emulator's clock.
    :param processed: called, under the lock, after each request that was processed.
    """

    def __init__(
        self,
        account: Account,
        changed: threading.Condition,
        now: Callable[[], datetime],
        processed: Callable[[], None],
        *,
        keys: Iterable[str] | None,
        lane_concurrency: bool,
        duplicate_code: bool,
        rate_limit: int | None,
        keep_requests: int,
        seed: int | None,
    ) -> None:
        self._changed = changed
        self._now = now
        self._processed = processed
        self._lane_concurrency = lane_concurrency
        self._duplicate_code = duplicate_code
        self._rate_limit = RateLimit(rate_limit)
        self._lanes = Lanes()
        self._request_numbers = itertools.count(1)
        self.faults: FaultScript = FaultScript(seed)
        self.requests: deque[ReceivedRequest] = deque(maxlen=keep_requests)
        #: Cuts scripted delays.
        self.stopping: threading.Event = threading.Event()
        self.accept_keys(keys)
        self.begin(account)

    def begin(self, account: Account) -> None:
        """Work on *account* from now on, and forget requests, answers and faults."""
        self.account = account
        self._saved = SavedAnswers()
        self.requests.clear()
        self.faults.pending.clear()

    def accept_keys(self, keys: Iterable[str] | None) -> None:
        """Accept only these API keys from now on; None = any."""
        self._keys = None if keys is None else frozenset(keys)

    def take(self, request: ReceivedRequest) -> Answer:
        """Answer *request*.

        :raises ConnectionError: a scripted reset, or a delay was cut.
        """
        with self._changed:
            self.requests.append(request)
            self._changed.notify_all()
        try:
            answer = self._answer(request)
        except Refusal as refusal:
            answer = self._refuse(request, refusal)
        with self._changed:
            request.status, request.code = answer.status, answer.code
            self._changed.notify_all()
        return self._stamped(request, answer)

    def _answer(self, request: ReceivedRequest) -> Answer:
        route, id = find_route(request.method, request.path)
        livemode = self._authenticate(request, route)
        with self._changed:
            self._rate_limit.admit(request.received_at)
        call = Call(route.shape("", request.parse()), request.received_at, livemode, id)
        with self._lanes.hold(self._lane(route, call)):
            with self._changed:
                fault = self.faults.take(request)
            if fault is None:
                return self._process(request, route, call)
            return self._process_under(fault, request, route, call)

    def _authenticate(self, request: ReceivedRequest, route: Route) -> bool:
        """Whether the request is in live mode.

        :raises Refusal: its key or session token is not accepted (401).
        """
        secret = request.secret
        if not secret:
            raise Refusal("You did not provide an API key.", status=401, code="api_key_missing")
        if route.by_session:
            with self._changed:
                session = self.account.sessions.find(secret, request.received_at)
            if session is None:
                raise Refusal(
                    "The meter event session has expired.",
                    status=401,
                    type="temporary_session_expired",
                    code="billing_meter_event_session_expired",
                )
            return session.livemode
        if self._keys is not None and secret not in self._keys:
            raise Refusal(
                f"Invalid API Key provided: {secret[:8]}{'*' * 8}",
                status=401,
                code="api_key_invalid",
            )
        return is_live(secret)

    def _lane(self, route: Route, call: Call) -> tuple[str, str] | None:
        """What the request occupies while it is worked on; None = nothing."""
        if not (route.in_lane and self._lane_concurrency):
            return None
        name = call.params["event_name"]
        with self._changed:
            key = self.account.meters.customer_key(name)
        return name, call.params["payload"].get(key, "")

    def _process(self, request: ReceivedRequest, route: Route, call: Call) -> Answer:
        with self._changed:
            try:
                saved = self._saved.find(request, call.now)
                if saved is not None:
                    request.answered = "replayed"
                    return saved.with_headers({"Idempotent-Replayed": "true"})
                if self.account.agenda:
                    self.account.catch_up(self._now())
                answer = Answer.of(route.handle(self.account, call))
            except Rejection as rejection:
                return self._refuse(request, translate(rejection, request, self._duplicate_code))
            except Refusal as refusal:
                return self._refuse(request, refusal)
            request.answered = "processed"
            self._saved.keep(request, answer, call.now)
            self._processed()
            return answer

    def _process_under(
        self, fault: Fault, request: ReceivedRequest, route: Route, call: Call
    ) -> Answer:
        answer = self._process(request, route, call) if fault.after_processing else None
        if fault.hides_answer:
            request.answered = str(fault)
        self._linger(fault)
        if fault.reset:
            raise ConnectionResetError("a scripted reset")
        if not fault.hides_answer:
            return answer or self._process(request, route, call)
        answer = fault.answer(v2=request.is_v2)
        if answer.status == 500:
            with self._changed:
                self._saved.keep(request, answer, call.now)
        return answer

    def _refuse(self, request: ReceivedRequest, refusal: Refusal) -> Answer:
        request.answered = "refused"
        return refusal.answer(v2=request.is_v2)

    def _linger(self, fault: Fault) -> None:
        if fault.delay and self.stopping.wait(fault.delay):
            raise ConnectionAbortedError("the emulator stops")

    def _stamped(self, request: ReceivedRequest, answer: Answer) -> Answer:
        headers = {
            "Request-Id": f"req_{next(self._request_numbers):014d}",
            "Date": formatdate(request.received_at.timestamp(), usegmt=True),
        }
        for name in ("Idempotency-Key", "Stripe-Version"):
            if name in request.headers:
                headers[name] = request.headers[name]
        return answer.with_headers(headers)
