"""What happens to requests on their way: faults, lanes, the rate limit, saved answers.

Four small machines, each with one question for a request. Not thread-safe but :class:`Lanes`: the
app holds its lock. Imports ``wire`` only. Promise: a scripted fault happens exactly as often as
ordered, in the order in which faults were scripted.
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from email.utils import format_datetime
from fnmatch import fnmatchcase
from random import Random

from .wire import Answer, ReceivedRequest, Refusal

#: How long an answer is saved for its ``Idempotency-Key``.
SAVED_FOR = timedelta(hours=24)
MAX_KEY_CHARS = 255
MAX_DELAY_S = 86_400


@dataclass(slots=True)
class Fault:
    """A scripted fault; ``StripeEmulator.fail`` explains the fields."""

    #: None = the true answer, only later.
    status: int | None = 503
    #: How often it will still happen; None = until recovery.
    times: int | None = 1
    path: str | None = None
    match: Callable[[ReceivedRequest], bool] | None = None
    after_processing: bool = False
    reset: bool = False
    delay: float | None = None
    rate: float | None = None
    retry_after: int | str | datetime | None = None
    code: str | None = None
    message: str | None = None
    body: str | bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.status is not None and not 200 <= self.status <= 599:
            raise ValueError(f"status {self.status} is no final HTTP status: use 200 to 599")
        if self.rate is not None and not 0 <= self.rate <= 1:
            raise ValueError(f"rate {self.rate} is no probability: use 0 to 1")
        if self.delay is not None and not 0 <= self.delay <= MAX_DELAY_S:
            raise ValueError(f"delay {self.delay}: use 0 to {MAX_DELAY_S} seconds")

    @property
    def hides_answer(self) -> bool:
        """Whether something else than the true answer is seen."""
        return self.reset or self.status is not None

    def applies_to(self, request: ReceivedRequest) -> bool:
        """Whether *request* is one of those it was scripted for."""
        by_path = self.path is None or fnmatchcase(request.path, self.path)
        return by_path and (self.match is None or self.match(request))

    def answer(self, *, v2: bool) -> Answer:
        """What is answered in place of the truth."""
        status = self.status or 503
        headers = {**self._retry_after(), **self.headers}
        if self.body is not None:
            body = self.body.encode() if isinstance(self.body, str) else self.body
            return Answer(status, body, headers, content_type="text/html")
        return Refusal(
            self.message or f"A scripted fault of the emulator (HTTP {status}).",
            status=status,
            code=self.code or ("rate_limit" if status == 429 else None),
            type="api_error" if status >= 500 else "invalid_request_error",
            headers=headers,
        ).answer(v2=v2)

    def __str__(self) -> str:
        if not self.hides_answer:
            return "late answer"
        what = "reset" if self.reset else str(self.status)
        return f"{what} {'after' if self.after_processing else 'before'} processing"

    def _retry_after(self) -> dict[str, str]:
        if self.retry_after is None:
            return {}
        if isinstance(self.retry_after, datetime):
            return {"Retry-After": format_datetime(self.retry_after, usegmt=True)}
        return {"Retry-After": str(self.retry_after)}


class FaultScript:
    """The faults that will happen, in order."""

    def __init__(self, seed: int | None) -> None:
        self._random = Random(seed)
        self.pending: list[Fault] = []

    def take(self, request: ReceivedRequest) -> Fault | None:
        """The fault that hits *request*, if any; it is used up by one."""
        for fault in self.pending:
            if fault.applies_to(request) and self._falls(fault):
                self._use_up(fault)
                return fault
        return None

    def _falls(self, fault: Fault) -> bool:
        return fault.rate is None or self._random.random() < fault.rate

    def _use_up(self, fault: Fault) -> None:
        if fault.times is not None:
            fault.times -= 1
            if fault.times <= 0:
                self.pending.remove(fault)


class Lanes:
    """One request at a time per customer and meter, as Stripe wants it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._busy: set[Hashable] = set()

    @contextmanager
    def hold(self, lane: Hashable | None) -> Iterator[None]:
        """Occupy *lane* (None = no lane) meanwhile.

        :raises Refusal: it is occupied (409).
        """
        if lane is None:
            yield
            return
        with self._lock:
            if lane in self._busy:
                raise Refusal(
                    "There are too many concurrent requests for this customer and meter.",
                    status=409,
                    code="too_many_concurrent_requests",
                )
            self._busy.add(lane)
        try:
            yield
        finally:
            with self._lock:
                self._busy.discard(lane)


class RateLimit:
    """At most so many requests in any second; None = no limit."""

    def __init__(self, per_second: int | None) -> None:
        self._per_second = per_second
        self._recent: deque[datetime] = deque()

    def admit(self, now: datetime) -> None:
        """Count a request at *now*.

        :raises Refusal: it is one too many (429).
        """
        if self._per_second is None:
            return
        while self._recent and now - self._recent[0] >= timedelta(seconds=1):
            self._recent.popleft()
        if len(self._recent) >= self._per_second:
            raise Refusal(
                "Request rate limit exceeded.",
                status=429,
                code="rate_limit",
                headers={"Stripe-Rate-Limited-Reason": "global-rate"},
            )
        self._recent.append(now)


@dataclass(frozen=True, slots=True)
class _Saved:
    fingerprint: bytes
    answer: Answer
    at: datetime


class SavedAnswers:
    """Answers to v1 POSTs by ``Idempotency-Key``: successes and 500s, for 24 hours.

    Refused requests are not saved: they may be corrected and sent again under the same key.
    """

    def __init__(self) -> None:
        self._by_key: dict[tuple[str, str], _Saved] = {}

    def find(self, request: ReceivedRequest, now: datetime) -> Answer | None:
        """The saved answer to *request*.

        :raises Refusal: its key was used with other parameters, or is too long.
        """
        key = _saved_key(request)
        if key is None:
            return None
        if len(key[1]) > MAX_KEY_CHARS:
            raise Refusal(f"Idempotency keys have at most {MAX_KEY_CHARS} characters.")
        saved = self._by_key.get(key)
        if saved is None or now - saved.at >= SAVED_FOR:
            return None
        if saved.fingerprint != _fingerprint(request):
            raise Refusal(
                "Keys for idempotent requests can only be used with the same parameters they "
                f"were first used with. Try using a key other than '{key[1]}'.",
                type="idempotency_error",
            )
        return saved.answer

    def keep(self, request: ReceivedRequest, answer: Answer, now: datetime) -> None:
        """Save *answer* if it is of the kind that is saved."""
        key = _saved_key(request)
        if key is not None and (answer.status < 400 or answer.status == 500):
            self._by_key[key] = _Saved(_fingerprint(request), answer, now)


def _saved_key(request: ReceivedRequest) -> tuple[str, str] | None:
    key = request.idempotency_key
    if not key or request.is_v2 or request.method != "POST":
        return None
    return request.secret, key


def _fingerprint(request: ReceivedRequest) -> bytes:
    return hashlib.sha256(request.path.encode() + b"\0" + request.body).digest()
