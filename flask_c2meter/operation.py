"""A metered request, step by step, whatever the framework.

Who asks, is the body right, is the work allowed: :meth:`Call.admit`. Then the app does its work.
Was it done, what is to be billed, is it durable: :meth:`Call.settle`. ``@metered`` and
``MeterMiddleware`` are thin shells around these two. Imports neither Flask nor Werkzeug.

Promises kept: the event is durable before the response leaves (P1). Once the work is done, nothing
here fails it: what is wrong with the event's properties is flagged, not raised.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Generic, NamedTuple, TypeVar

from marshmallow import ValidationError

from . import logs
from .drafts import Operation, UsageDraft
from .errors import CorruptStore, InvalidEvent, KeyConflict, StoreUnavailable
from .growth import Growth, may_grow, reserving
from .headers import RequestFacts
from .limiting import RateLimiter, identify
from .metering import Metering
from .model import Customer, check_text, new_id
from .terms import Properties, Terms
from .windows import Decision

logger: logs.Log = logs.logger(__name__)

R = TypeVar("R")

Header = tuple[str, str]

#: Meter, rule and user.
LimitKey = tuple[str, str, str]

#: Where in a request's environ its :class:`Passage` is.
PASSAGE = "c2meter.passage"

#: No quantity at all: makes the event ``invalid``.
_UNDECIDABLE = object()


class Refusal(NamedTuple):
    """A response of ours in the place of the app's, as JSON."""

    status: int
    error: str
    fields: Mapping[str, Any] | None = None
    headers: Sequence[Header] = ()

    @property
    def content(self) -> dict[str, Any]:
        """The object to send."""
        return (
            {"error": self.error, "fields": self.fields} if self.fields else {"error": self.error}
        )


UNAVAILABLE = Refusal(503, "Usage cannot be recorded right now", headers=(("Retry-After", "1"),))


@dataclass(slots=True)
class Passage:
    """What a middleware tells the metered views within it, and they it, in the same request."""

    #: What was decided around; nobody takes twice from one limit for one request.
    hits: dict[LimitKey, Decision] = field(default_factory=dict)
    #: How often each meter was taken up: the innermost, who knows most of the usage, records it.
    taken: Counter[str] = field(default_factory=Counter)
    #: Of the request as it came in, before anybody within has read its body in their own way.
    fingerprint: str | None = None


def method_of(environ: Mapping[str, Any]) -> str:
    """The method in capitals, as frameworks understand it; some servers pass on what was sent."""
    method: str = environ["REQUEST_METHOD"].upper()
    return method


def facts_of(environ: Mapping[str, Any]) -> RequestFacts:
    """What the security and CORS headers of its response depend on."""
    return RequestFacts(
        method=method_of(environ),
        is_https=environ["wsgi.url_scheme"] == "https",
        origin=environ.get("HTTP_ORIGIN"),
        requested_method=environ.get("HTTP_ACCESS_CONTROL_REQUEST_METHOD"),
    )


def is_preflight(environ: Mapping[str, Any]) -> bool:
    """Whether a browser asks for permission first; it sends no credentials with that."""
    return "HTTP_ACCESS_CONTROL_REQUEST_METHOD" in environ and method_of(environ) == "OPTIONS"


def fingerprint_of(method: str, path: str, query: bytes, body: Iterable[bytes]) -> str:
    """What makes two requests the same; *body* in parts, each of which counts as a whole."""
    digest = blake2b(digest_size=16)
    for part in (method.encode(), path.encode("utf-8", "surrogatepass"), query, *body):
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()


class Call(ABC, Generic[R]):
    """One request through all steps. A shell adds what only it knows of its requests."""

    __slots__ = ("decision", "environ", "growth", "limiter", "metering", "operation", "terms")

    def __init__(
        self, terms: Terms[R], metering: Metering, limiter: RateLimiter, environ: dict[str, Any]
    ) -> None:
        self.terms: Terms[R] = terms
        self.metering: Metering = metering
        self.limiter: RateLimiter = limiter
        self.environ: dict[str, Any] = environ
        #: Known once the request is admitted.
        self.operation: Operation | None = None
        #: Of the rate limit; None = there is none.
        self.decision: Decision | None = None
        #: Known once the operation is recorded; None = its usage is final.
        self.growth: Growth | None = None

    # -- what the shell knows; each is asked when its turn comes ---------------------------------

    @abstractmethod
    def customer(self) -> Customer | None:
        """Who is billed; None = 401."""

    @abstractmethod
    def json(self) -> object:
        """The body; None if it is no JSON."""

    @abstractmethod
    def keep_body(self, content: Any) -> None:
        """Hand the validated body to the app."""

    @abstractmethod
    def client_key(self) -> str | None:
        """The client's idempotency key."""

    @abstractmethod
    def use_of(self, client_key: str) -> int:
        """Which operation of its meter with *client_key* this is in its request, counted from 1."""

    @abstractmethod
    def fingerprint(self) -> str:
        """What tells this request from another with the same key."""

    # -- before the app --------------------------------------------------------------------------

    def admit(self) -> UsageDraft | Refusal:
        """Let the request in, or say why not."""
        passage: Passage | None = self.environ.get(PASSAGE)
        if passage is not None:
            passage.taken[self.terms.meter] += 1
        customer = self.customer()
        if customer is None:
            return Refusal(401, "Unauthorized")
        if (refusal := self._check_body()) is not None:
            return refusal
        try:
            operation = self.operation = self._operation(customer, passage)
        except KeyConflict as exc:
            return Refusal(409, str(exc))
        except InvalidEvent as exc:
            return Refusal(400, "Invalid request", exc.messages)
        except (StoreUnavailable, CorruptStore):
            return UNAVAILABLE
        if operation.meter.billable and self.metering.is_closed:
            return UNAVAILABLE
        if self.terms.enforce == "block" and self._is_used_up(operation):
            return Refusal(402, "Usage limit exceeded")
        decision = self.decision = self._hit(operation)
        if decision is not None and not decision.allowed:
            return Refusal(429, "Rate limit exceeded", headers=self.limiter.headers(decision))
        return UsageDraft(operation.meter.name, customer)

    def _check_body(self) -> Refusal | None:
        if self.terms.body is None:
            return None
        content = self.json()
        if not isinstance(content, dict):
            return Refusal(400, "Invalid request body")
        if self.terms.schema is not None:
            try:
                self.keep_body(self.terms.schema.load(content))
            except ValidationError as exc:
                return Refusal(400, "Invalid request body", exc.messages_dict)
        return None

    def _operation(self, customer: Customer, passage: Passage | None) -> Operation:
        meter = self.metering.catalogue.meter(self.terms.meter)
        client_key = self.client_key()
        request_id = _request_id(self.environ.get("HTTP_X_REQUEST_ID"))
        if client_key is None:
            return Operation(meter, customer, new_id(), request_id=request_id)
        fingerprint = passage.fingerprint if passage is not None else None
        if fingerprint is None:
            fingerprint = self.fingerprint()
        if passage is not None:
            passage.fingerprint = fingerprint
        use = self.use_of(client_key)
        key = self.metering.keys.for_request(meter.name, customer.id, client_key, fingerprint, use)
        return Operation(meter, customer, key, fingerprint, request_id)

    def _is_used_up(self, operation: Operation) -> bool:
        try:
            return self.metering.accounts.is_used_up(operation.customer, operation.meter.name)
        except (StoreUnavailable, CorruptStore) as exc:
            logger.warning("usage_not_blocked", meter=operation.meter.name, error=exc)
            return False

    def _hit(self, operation: Operation) -> Decision | None:
        rule = self.terms.rate_limit
        if rule is None:
            rule = operation.meter.rate_limit
        return (
            self.hit((operation.meter.name, rule, identify(operation.customer))) if rule else None
        )

    def hit(self, what: LimitKey) -> Decision | None:
        """Take from the limit, unless that was done around this call."""
        passage: Passage | None = self.environ.get(PASSAGE)
        decided = passage.hits.pop(what, None) if passage is not None else None
        return decided or self.limiter.hit(*what)

    # -- after it --------------------------------------------------------------------------------

    def settle(
        self, draft: UsageDraft, response: R, status: int, *, is_streamed: bool = False
    ) -> Refusal | None:
        """Record the operation if it is to be billed.

        :param status: of *response*.
        :param is_streamed: its body is still to be made, and the usage may grow with it.
        :return: what to answer instead of *response*; None = the response may leave.
        """
        operation = self.operation
        if operation is None or method_of(self.environ) in ("HEAD", "OPTIONS"):
            return None
        if draft.is_cancelled:
            return None
        decided = self._bill_on(response)
        if not (200 <= status < 300 if decided is None else decided):
            return None
        try:
            schema = self.metering.schema(operation.meter.name)
            properties, is_whole = self._properties(draft, response)
            valid = schema.lenient(properties, self._value(draft, response), is_whole=is_whole)
            if decided is None and not schema.is_billable(valid.properties):
                return None
            if not is_streamed or not may_grow(operation.meter):
                self.metering.complete(operation, valid)
                return None
            valid = reserving(draft, valid)
            if self.metering.complete(operation, valid):
                self.growth = Growth(self.metering, operation, draft, valid)
        except KeyConflict as exc:
            return Refusal(409, str(exc))
        except (StoreUnavailable, CorruptStore):
            return UNAVAILABLE  # never a 2xx without a durable record
        except Exception:  # the work is done: a fault of ours is no 500 of the host's
            logger.exception("usage_not_recorded", meter=operation.meter.name)
            return UNAVAILABLE if operation.meter.billable else None
        return None

    def limit_headers(self) -> Sequence[Header]:
        """The headers that tell the client of its rate limit."""
        return () if self.decision is None else self.limiter.headers(self.decision)

    def _bill_on(self, response: R) -> bool | None:
        """What ``bill_on`` says; None = status and filter decide."""
        if self.terms.bill_on is None:
            return None
        try:
            return bool(self.terms.bill_on(response))
        except Exception:
            logger.exception("bill_on_failed", meter=self.terms.meter, then="default")
            return None

    def _properties(self, draft: UsageDraft, response: R) -> tuple[Properties, bool]:
        """What is said of the operation, and whether that is all there was to say."""
        given = self.terms.properties or {}
        try:
            return {**(given(response) if callable(given) else given), **draft.properties}, True
        except Exception:
            logger.exception("properties_failed", meter=self.terms.meter, then="left_out")
        return draft.properties if isinstance(draft.properties, Mapping) else {}, False

    def _value(self, draft: UsageDraft, response: R) -> object:
        value = self.terms.value
        if draft.value is not None:
            return draft.value
        if not callable(value):
            return value
        try:
            return value(response)
        except Exception:
            logger.exception("value_failed", meter=self.terms.meter, then="recorded_as_0")
            return _UNDECIDABLE


def _request_id(header: object) -> str | None:
    """The request's ``X-Request-ID``, if it is fit to be stored."""
    if header is None:
        return None
    try:
        return check_text("X-Request-ID", header)
    except InvalidEvent:
        return None
