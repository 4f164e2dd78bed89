"""A request to a metered path, as the steps of :mod:`~flask_c2meter.operation` ask of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from ..drafts import UsageDraft
from ..limiting import RateLimiter
from ..metering import Metering
from ..model import Customer
from ..operation import (
    PASSAGE,
    Call,
    LimitKey,
    Passage,
    Refusal,
    fingerprint_of,
    method_of,
)
from ..terms import Terms
from ..windows import Decision
from .body import Body, BodyTooLarge

#: Says who is billed for the request of an environ: a ``Customer``, its id, or None for 401.
CustomerOf = Callable[[dict[str, Any]], Customer | str | None]


class Reply(NamedTuple):
    """The app's response, as far as it is known before its first byte leaves."""

    status: int
    #: Name and value of each, as the app set them.
    headers: list[tuple[str, str]]
    #: Of the request.
    environ: dict[str, Any]


class EnvironCall(Call[Reply]):
    """One request, known by its environ.

    :param most_bytes: of a body that has to be read; None = any number.
    """

    __slots__ = ("_around", "_body", "_customer_of", "_most_bytes", "_passage")

    def __init__(
        self,
        terms: Terms[Reply],
        metering: Metering,
        limiter: RateLimiter,
        environ: dict[str, Any],
        customer_of: CustomerOf,
        most_bytes: int | None,
    ) -> None:
        super().__init__(terms, metering, limiter, environ)
        self._customer_of = customer_of
        self._most_bytes = most_bytes
        self._body: Body | None = None
        self._passage: Passage = environ.setdefault(PASSAGE, Passage())
        #: How often the meter has been taken over before anybody within could.
        self._around = self._passage.taken[terms.meter] + 1

    def admit(self) -> UsageDraft | Refusal:
        """Let the request in, or say why not."""
        try:
            return super().admit()
        except BodyTooLarge:
            return Refusal(413, "Request body too large")

    def settle(
        self, draft: UsageDraft, response: Reply, status: int, *, is_streamed: bool = False
    ) -> Refusal | None:
        """Record the operation if it is to be billed, and nobody within has taken it over."""
        if self._passage.taken[self.terms.meter] > self._around:
            return None
        return super().settle(draft, response, status, is_streamed=is_streamed)

    def customer(self) -> Customer | None:
        """Whoever the host's function says.

        :raises InvalidEvent: an id that no customer can have.
        :raises RuntimeError: it returned something else.
        """
        found = self._customer_of(self.environ)
        if not found or isinstance(found, Customer):
            return found or None
        if not isinstance(found, str):
            raise RuntimeError(
                f"customer(environ) returned {type(found).__name__}; "
                "it must return a Customer, its id, or None."
            )
        return Customer(found)

    def json(self) -> object:
        """The body, if it is JSON and declared as such."""
        return self._read_body().json()

    def keep_body(self, content: Any) -> None:
        """In ``environ["c2meter.body"]``."""
        self.environ["c2meter.body"] = content

    def client_key(self) -> str | None:
        """The ``Idempotency-Key`` header."""
        key: str | None = self.environ.get("HTTP_IDEMPOTENCY_KEY")
        return key

    def use_of(self, client_key: str) -> int:
        """The only one: a request belongs to one line."""
        return 1

    def fingerprint(self) -> str:
        """Of method, path, query and body."""
        environ = self.environ
        return fingerprint_of(
            method_of(environ),
            path_of(environ),
            environ.get("QUERY_STRING", "").encode("latin-1", "replace"),
            [self._read_body().digest()],
        )

    def hit(self, what: LimitKey) -> Decision | None:
        """Take from the limit, and tell those within that it is done."""
        decision = super().hit(what)
        if decision is not None:
            self._passage.hits[what] = decision
        return decision

    def _read_body(self) -> Body:
        if self._body is None:
            self._body = Body(self.environ, self._most_bytes)
        return self._body


def path_of(environ: dict[str, Any]) -> str:
    """The path below the app, decoded."""
    raw: str = environ.get("PATH_INFO") or "/"
    return raw.encode("latin-1", "replace").decode("utf-8", "replace")
