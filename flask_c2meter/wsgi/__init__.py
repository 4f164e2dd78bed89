"""``MeterMiddleware``: meters any WSGI app by method and path.

A shell around the steps of :mod:`~flask_c2meter.operation`, like ``@metered`` for Flask; limits,
headers, recording and worker are the same. ``paths`` says which line a request belongs to, ``call``
and ``body`` what the steps ask of it, ``reply`` lets the response go once its usage is durable.
Imports no Flask, and neither does anything below it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from .. import catalogue, parsers
from ..config import Config
from ..drafts import UsageDraft
from ..errors import CatalogueError, ConfigError, InvalidEvent, show
from ..headers import HeaderPolicy, Pair, RequestFacts
from ..hooks import Hooks, MailSender, StorageLoader, SubscriptionLoader
from ..limiting import limiter_of
from ..metering import Metering
from ..operation import Refusal, facts_of, is_preflight
from ..process import Host
from ..terms import Terms
from .call import CustomerOf, EnvironCall, Reply, path_of
from .paths import PathTable
from .reply import Departure, Dress, refuse

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication

__all__ = ["MeterMiddleware", "Reply", "Terms"]


class MeterMiddleware:
    """Meters a WSGI app, whatever it is made with.

    A request that fits a line of *meters* is answered 401 without a customer, 400, 402, 409, 429 or
    503 as by ``@metered``; else the app runs, and its usage is recorded before the first byte of a
    2xx leaves. All others pass. The app may take part through ``environ["c2meter.usage"]``, which
    is what ``current_usage`` is in Flask.

    :param wsgi_app: to be metered.
    :param meters: method and path (see :class:`~flask_c2meter.wsgi.paths.PathTable`) -> meter, or
        :class:`Terms` for more than its name, whose callables take a :class:`Reply`; None = not
        metered, of what another line would. A request counts for one line, the most specific.
    :param customer: takes the environ; returns a ``Customer``, its id, or None for 401. It runs
        before the app: whom the app itself logs in is not known yet.
    :param config: the ``C2METER_`` keys of :mod:`flask_c2meter.config`, the ``RATELIMIT_`` keys of
        Flask-Limiter's storage, and ``MAX_CONTENT_LENGTH``, the most bytes of a body that has to be
        read before the app runs; a Flask app's own ``config`` will do. None = the environment.
    :param instance_path: folder of relative SQLite and spill paths; None = ``instance`` in the
        working directory.
    :param subscription_loader: see :meth:`C2Meter.subscription_loader
        <flask_c2meter.C2Meter.subscription_loader>`.
    :param storage_loader: see :meth:`C2Meter.storage_loader
        <flask_c2meter.C2Meter.storage_loader>`.
    :param mail_sender: see :meth:`C2Meter.mail_sender <flask_c2meter.C2Meter.mail_sender>`.
    :raises ConfigError: (a ``ValueError``) a key, a line or an argument is wrong.
    :raises CatalogueError: the catalogue is wrong, or has no such meter.

    Making one starts no thread and opens no connection. It is the sender of its signals.
    """

    def __init__(
        self,
        wsgi_app: WSGIApplication,
        meters: Mapping[str, str | Terms[Reply] | None],
        customer: CustomerOf,
        config: Mapping[str, Any] | None = None,
        *,
        instance_path: str | os.PathLike[str] | None = None,
        subscription_loader: SubscriptionLoader | None = None,
        storage_loader: StorageLoader | None = None,
        mail_sender: MailSender | None = None,
    ) -> None:
        settings = os.environ if config is None else config
        if not callable(customer):
            raise ConfigError(
                f"customer={show(customer)} is not callable: pass a function of environ"
            )
        if not isinstance(meters, Mapping) or not meters:
            raise ConfigError(
                f"meters={show(meters)} meters nothing: "
                "write {'POST /verify': 'verify_operations'}"
            )
        folder = os.path.abspath("instance" if instance_path is None else instance_path)
        loaded = Config.load(settings, environ=os.environ, instance_path=folder)
        hooks = Hooks(
            subscription_loader=subscription_loader,
            storage_loader=storage_loader,
            mail_sender=mail_sender,
        )
        self._app = wsgi_app
        self._customer_of = customer
        self._most_bytes = _most_bytes(settings)
        self._policy = HeaderPolicy.from_config(loaded.security_headers, loaded.cors_origins)
        self._limiter = limiter_of(settings)
        #: Records and reads usage by hand; what ``current_metering`` is in Flask.
        self.metering: Metering = Metering(
            loaded, catalogue.load(loaded.catalogue), Host(self, hooks, nullcontext)
        )
        self._lines = PathTable({line: self._terms(line, what) for line, what in meters.items()})

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        facts = facts_of(environ)
        dress = self._dress_for(facts)
        if self._policy.answers(facts):
            start_response(
                "200 OK", dress([("Content-Type", "text/plain"), ("Content-Length", "0")])
            )
            return []
        terms = self._lines.find(facts.method, path_of(environ))
        if terms is not None and is_preflight(environ):
            environ["c2meter.usage"] = UsageDraft(terms.meter, None)
            terms = None
        if terms is None:
            return self._app(environ, _dressing(start_response, dress))
        call = EnvironCall(
            terms, self.metering, self._limiter, environ, self._customer_of, self._most_bytes
        )
        draft = call.admit()
        if isinstance(draft, Refusal):
            status, headers, body = refuse(draft, environ)
            start_response(status, dress(headers))
            return body
        environ["c2meter.usage"] = draft
        return Departure(call, draft, dress, start_response).of(self._app)

    def _terms(self, line: str, what: str | Terms[Reply] | None) -> Terms[Reply] | None:
        """What a line is metered by.

        :raises ConfigError, CatalogueError: naming the line.
        """
        if what is None:
            return None
        terms = what if isinstance(what, Terms) else Terms[Reply](what)
        try:
            terms.check_for(self.metering.catalogue.meter(terms.meter))
        except CatalogueError as exc:
            raise type(exc)(f"meters[{line!r}]: {exc}") from None
        except InvalidEvent as exc:
            raise ConfigError(f"meters[{line!r}]: {exc}") from None
        return terms

    def _dress_for(self, facts: RequestFacts) -> Dress:
        """Adds security and CORS headers where the app has not set its own."""
        policy = self._policy

        def dress(headers: list[Pair]) -> list[Pair]:
            added = policy.additions(facts, headers)
            names = {name.lower() for name, _ in added}
            return [*(pair for pair in headers if pair[0].lower() not in names), *added]

        return dress


def _dressing(start_response: StartResponse, dress: Dress) -> StartResponse:
    """*start_response* with more headers."""

    def start(status: str, headers: list[Pair], exc_info: Any = None) -> Any:
        return start_response(status, dress(list(headers)), exc_info)

    return start


def _most_bytes(settings: Mapping[str, Any]) -> int | None:
    value = settings.get("MAX_CONTENT_LENGTH")
    try:
        return None if value is None else parsers.whole(0, 1 << 60)(value)
    except parsers.BAD_VALUE:
        raise ConfigError(
            f"MAX_CONTENT_LENGTH = {show(value)} is wrong: write a whole number of bytes"
        ) from None
