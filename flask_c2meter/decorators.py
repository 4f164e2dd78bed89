"""``@metered``: a view of a Flask app through the steps of :mod:`~flask_c2meter.operation`.

Reads Flask's request, runs the view with its draft as ``current_usage``, and answers with Flask's
responses; what is decided is decided there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import iscoroutinefunction
from io import BytesIO
from typing import Any, Literal, ParamSpec, TypeVar, cast

from flask import Flask, Request, Response, current_app, g, jsonify, request
from marshmallow import Schema

from . import logs
from .drafts import UsageDraft
from .globals import RequestState, app_state, load_customer, request_state
from .growth import GrowingStream, is_streamed
from .headers import missing
from .model import Customer
from .operation import (
    Call,
    Header,
    Refusal,
    fingerprint_of,
    is_preflight,
)
from .terms import Terms, Value

logger: logs.Log = logs.logger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

KeyFunction = Callable[[], str | None]


def metered(
    meter: str,
    *,
    value: Value | Callable[[Response], Value] | None = None,
    properties: Mapping[str, Any] | Callable[[Response], Mapping[str, Any]] | None = None,
    rate_limit: str | Literal[False] | None = None,
    body: Literal["json"] | type[Schema] | None = None,
    enforce: Literal["allow", "block"] | None = None,
    bill_on: Callable[[Response], bool] | None = None,
    idempotency_key: Callable[[], str | None] | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Meter a view; put it below ``@app.route``.

    Answers 401 without a customer, 400 for a bad body, 409 for a reused ``Idempotency-Key``, 402
    where usage over the plan is blocked, 429 over the rate limit, 503 while usage cannot be
    recorded; otherwise runs the view and records its usage if it succeeded. ``HEAD`` and
    ``OPTIONS`` requests, exceptions and responses other than 2xx are not billed.

    Several on one view each count; ``current_usage`` is then the innermost's, so that the others
    take their *value* and *properties* from here.

    :param meter: name of a meter of the catalogue.
    :param value: quantity in the meter's unit, or a callable that takes the response; None = what
        the view sets as ``current_usage.value``, or the meter's default. While the response streams
        it may grow from there.
    :param properties: of the event, or a callable that takes the response; what the view passes to
        ``current_usage.update`` wins.
    :param rate_limit: such as ``"100/minute"``; None = the catalogue's, False = unlimited.
    :param body: ``"json"`` = a JSON object of at most 32 levels is required; a marshmallow schema
        class = and validated, the result is in ``g.c2meter_body``.
    :param enforce: ``"block"``: 402 once the included quantity is used up; default ``"allow"``.
    :param bill_on: predicate on the response that replaces the default one: status 2xx and the
        meter's filter.
    :param idempotency_key: returns the key of this request, or None; default: its
        ``Idempotency-Key`` header. A repeated request with the same key runs again and counts once.
    :raises ValueError: an argument is wrong, when the view is decorated; a ``TypeError`` if the
        parentheses are missing.
    """
    if not isinstance(meter, str):
        raise TypeError('name the meter: @metered("verify_operations")')
    if idempotency_key is not None and not callable(idempotency_key):
        raise ValueError(f"idempotency_key={idempotency_key!r} is not callable")
    terms: Terms[Response] = Terms(
        meter=meter,
        value=value,
        properties=properties,
        rate_limit=rate_limit,
        body=body,
        enforce=enforce,
        bill_on=bill_on,
    )

    def decorate(view: Callable[P, R]) -> Callable[P, R]:
        is_async = iscoroutinefunction(view)

        @functools.wraps(view)
        def metered_view(*args: P.args, **kwargs: P.kwargs) -> R:
            app = current_app._get_current_object()  # type: ignore[attr-defined]
            run = app.ensure_sync(view) if is_async else view
            # Flask takes a Response wherever it takes what the view returns.
            return cast(R, _ViewCall(terms, idempotency_key, app).respond(run, args, kwargs))

        return metered_view

    return decorate


class _ViewCall(Call[Response]):
    """One request to a metered view. Holds what the proxies would look up twenty times."""

    __slots__ = ("app", "key_function", "request", "state")

    def __init__(
        self, terms: Terms[Response], key_function: KeyFunction | None, app: Flask
    ) -> None:
        self.app = app
        self.key_function = key_function
        self.request: Request = request._get_current_object()  # type: ignore[attr-defined]
        self.state = app_state(app)
        super().__init__(terms, self.state.metering, self.state.limiter, self.request.environ)

    def respond(self, view: Callable[..., Any], args: Any, kwargs: Any) -> Response:
        """Run every step; return the response to send."""
        terms = self.terms
        if is_preflight(self.environ):
            with _speaking(request_state(), UsageDraft(terms.meter, None)):
                return self.app.make_response(view(*args, **kwargs))
        if terms.value is not None or terms.properties is not None:
            # Seen by the developer at the first request, whatever its credentials.
            terms.check_for(self.metering.catalogue.meter(terms.meter))
        draft = self.admit()
        if isinstance(draft, Refusal):
            return _refuse(draft)
        known = request_state()
        with _speaking(known, draft):
            response = self.app.make_response(view(*args, **kwargs))
            streams = is_streamed(response.response, self.environ)
            refusal = self.settle(draft, response, response.status_code, is_streamed=streams)
        if refusal is not None:
            response = _refuse(refusal)
        elif is_streamed(response.response, self.environ):  # nobody has read it meanwhile
            chunks: Iterable[Any] = response.response
            if self.growth is not None:
                chunks = GrowingStream(chunks, self.growth)
            response.response = _ViewStream(chunks, known, draft)
        return _with_headers(response, self.limit_headers())

    def customer(self) -> Customer | None:
        """Whoever the ``customer_loader`` says."""
        return load_customer(self.state)

    def json(self) -> object:
        """The body, as Flask parses it."""
        try:
            return self.request.get_json(silent=True)
        except RecursionError:  # nested too deeply, which "silent" does not cover
            return None

    def keep_body(self, content: Any) -> None:
        """In ``g.c2meter_body``."""
        g.c2meter_body = content

    def client_key(self) -> str | None:
        """Of the ``idempotency_key`` function, or the header."""
        if self.key_function is not None:
            return self.key_function()
        return self.environ.get("HTTP_IDEMPOTENCY_KEY")

    def use_of(self, client_key: str) -> int:
        """Metered views may call others, and themselves."""
        uses = request_state().key_uses
        use = uses[self.terms.meter, client_key] = uses.get((self.terms.meter, client_key), 0) + 1
        return use

    def fingerprint(self) -> str:
        """Of method, path, query and body."""
        sent = self.request
        return fingerprint_of(sent.method, sent.path, sent.query_string, _body_parts(sent))


@contextmanager
def _speaking(known: RequestState, draft: UsageDraft) -> Iterator[None]:
    """Within, *draft* is ``current_usage``; an outer one is restored afterwards."""
    outer, known.usage = known.usage, draft
    try:
        yield
    finally:
        known.usage = outer


class _ViewStream(Iterator[Any]):
    """The *chunks* of a view's response, with its draft as ``current_usage`` while each is made."""

    def __init__(self, chunks: Iterable[Any], known: RequestState, draft: UsageDraft) -> None:
        self._chunks = iter(chunks)
        self._body = chunks
        self._known = known
        self._draft = draft

    def __next__(self) -> Any:
        with _speaking(self._known, self._draft):
            return next(self._chunks)

    def close(self) -> None:
        """Tell the view that nobody reads on."""
        if (close := getattr(self._body, "close", None)) is not None:
            with _speaking(self._known, self._draft):
                close()


def _body_parts(request: Request) -> Iterator[bytes]:
    if "form" in request.__dict__:
        # A login or a CSRF check has parsed the form, and with that consumed the body.
        for name, values in request.form.lists():
            yield from (text.encode("utf-8", "surrogatepass") for text in (name, *values))
        for name, file in request.files.items(multi=True):
            yield from (name.encode("utf-8", "replace"), (file.filename or "").encode())
            yield file.stream.read()
            file.stream.seek(0)
        return
    body = request.get_data(cache=True)
    request.stream = BytesIO(body)  # the view may still read it as a stream
    if boundary := request.mimetype_params.get("boundary"):
        # Clients draw a new boundary for each try of the same form.
        body = body.replace(boundary.encode("latin-1", "replace"), b"")
    yield body


def _refuse(refusal: Refusal) -> Response:
    response = jsonify(refusal.content)
    response.status_code = refusal.status
    return _with_headers(response, refusal.headers)


def _with_headers(response: Response, headers: Sequence[Header]) -> Response:
    if not headers:
        return response
    try:
        names = {str(name).lower() for name in response.headers.keys()}
        # Werkzeug's own way to add spares it the search for a header that is not there.
        add = getattr(response.headers, "add", response.headers.__setitem__)
        for name, text in missing(names, headers):
            add(name, text)
    except Exception:  # a view may have put anything in the place of its headers
        logger.exception("headers_not_added", response=type(response).__name__)
    return response
