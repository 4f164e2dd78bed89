"""``C2Meter``: what a host creates, registers hooks on, and initialises its apps with."""

from __future__ import annotations

import os
from typing import Any, TypeVar

from flask import Blueprint, Flask, Response, request
from flask_limiter import Limiter

from . import catalogue, logs
from .cli import c2meter_group
from .config import Config
from .errors import SetupError
from .globals import EXTENSION, AppState, app_state
from .headers import HeaderPolicy
from .hooks import (
    CustomerLoader,
    DashboardAuth,
    Hooks,
    MailSender,
    MetricsAuth,
    StorageLoader,
    SubscriptionLoader,
)
from .metering import Metering
from .operation import facts_of
from .process import Host
from .ratelimit import build_limiter

logger: logs.Log = logs.logger(__name__)

L = TypeVar("L", bound=StorageLoader)


class C2Meter:
    """Usage metering for Flask apps.

    Create one, register a ``customer_loader``, and call :meth:`init_app`; or pass the app here. It
    keeps constructor arguments and hooks only: each app's state is its own.

    :param app: initialised at once if given.
    :param limiter: the host's own Flask-Limiter, whose storage and strategy are then used; it must
        be initialised for the app before.
    """

    def __init__(self, app: Flask | None = None, *, limiter: Limiter | None = None) -> None:
        self._limiter = limiter
        self._hooks = Hooks()
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Meter *app*. Starts no thread and opens no connection.

        Reads the ``C2METER_`` keys of ``app.config`` (see :mod:`flask_c2meter.config`) and the
        ``RATELIMIT_`` keys of Flask-Limiter.

        :raises ConfigError: a key is wrong; the message names key, value and cure.
        :raises CatalogueError: the catalogue is wrong.
        :raises RuntimeError: the app is metered already.
        """
        if EXTENSION in app.extensions:
            raise SetupError(
                "This app has a C2Meter already: call init_app once per app, and share that one."
            )
        config = Config.load(app.config, environ=os.environ, instance_path=app.instance_path)
        meters = catalogue.load(config.catalogue)
        headers = HeaderPolicy.from_config(config.security_headers, config.cors_origins)
        app.extensions[EXTENSION] = AppState(
            metering=Metering(
                config, meters, Host(app, self._hooks, app.app_context, app.jinja_loader)
            ),
            limiter=build_limiter(app, self._limiter),
            headers=headers,
            hooks=self._hooks,
        )
        if headers.preflight:
            # In front of the hooks the host has registered: its login must not refuse a preflight.
            app.before_request_funcs.setdefault(None, []).insert(0, _answer_preflight)
        if not headers.is_off:
            app.after_request(_add_headers)
        app.cli.add_command(c2meter_group)

    def customer_loader(self, loader: CustomerLoader) -> CustomerLoader:
        """Register the function that says who this request is billed to.

        It runs within the request and returns a :class:`~flask_c2meter.Customer`, or None for 401.
        """
        self._hooks.customer_loader = loader
        return loader

    def subscription_loader(self, loader: SubscriptionLoader) -> SubscriptionLoader:
        """Register the function that says what a customer subscribes to, instead of Stripe.

        It takes a customer id and returns a :class:`~flask_c2meter.Subscription`, or None if there
        is none. The worker calls it in an app context, never a request.
        """
        self._hooks.subscription_loader = loader
        return loader

    def storage_loader(self, loader: L) -> L:
        """Register the function that says how much each customer stores.

        It returns an iterable, best a generator, of
        :class:`~flask_c2meter.StorageMeasurement`, which is read in batches. If it has a
        parameter, it is given a function that says whether a customer id is still to be measured,
        so that a rerun need not measure everybody. The worker calls it every night in an app
        context of its own thread, never a request; so does ``flask c2meter measure-storage``.
        """
        self._hooks.storage_loader = loader
        return loader

    def webhook_blueprint(self) -> Blueprint:
        """The blueprint for Stripe's webhooks: ``POST /webhook`` below its ``url_prefix``.

        Register it after :meth:`init_app`; it refuses without ``C2METER_STRIPE_WEBHOOK_SECRET``.
        """
        from .webhooks import webhook_blueprint

        return webhook_blueprint()

    def dashboard_auth(self, auth: DashboardAuth) -> DashboardAuth:
        """Register the function that says whom the visitor of the dashboard may look at.

        It runs within each request to the dashboard and returns a
        :data:`~flask_c2meter.hooks.Sight`: the visitor's customer (or its id), ``ALL_CUSTOMERS``
        for an operator, or None for 401. It may also ``abort``, such as with a redirect to a login.
        """
        self._hooks.dashboard_auth = auth
        return auth

    def dashboard_blueprint(self) -> Blueprint:
        """The blueprint for customers' pages: ``/usage`` and more below its ``url_prefix``.

        Register it after :meth:`init_app` and :meth:`dashboard_auth`; it refuses without them.
        """
        from .dashboard import dashboard_blueprint

        return dashboard_blueprint()

    def metrics_auth(self, auth: MetricsAuth) -> MetricsAuth:
        """Register the function that says whether a request may read the metrics.

        It runs within each request to :meth:`metrics_blueprint` and returns True, or False for
        401; compare a bearer token with :func:`hmac.compare_digest`.
        """
        self._hooks.metrics_auth = auth
        return auth

    def metrics_blueprint(self, *, public: bool = False) -> Blueprint:
        """The blueprint for Prometheus: ``GET /metrics`` below its ``url_prefix``.

        Needs the extra ``metrics``. Register it after :meth:`init_app` and :meth:`metrics_auth`;
        it refuses without them.

        :param public: serve whoever asks, without ``metrics_auth``: where only Prometheus can.
        """
        try:
            from .metrics import metrics_blueprint
        except ModuleNotFoundError as exc:
            if exc.name != "prometheus_client":
                raise
            raise SetupError(
                "Metrics need prometheus_client: pip install 'flask_c2meter[metrics]'"
            ) from exc

        return metrics_blueprint(public=public)

    def mail_sender(self, sender: MailSender) -> MailSender:
        """Register the function that sends usage alerts by mail, instead of SMTP.

        It takes a :class:`~flask_c2meter.channels.mail.Mail`, of which a Flask-Mail message is
        soon made. The worker calls it in an app context; what it raises is tried again later.
        """
        self._hooks.mail_sender = sender
        return sender


def _answer_preflight() -> Response | None:
    """200 for a CORS preflight of a listed origin; everything else goes on."""
    if request.method == "OPTIONS" and app_state().headers.answers(facts_of(request.environ)):
        return Response(status=200)
    return None


def _add_headers(response: Any) -> Any:
    """Security and CORS headers, where the view has not set its own.

    A view or a library may have put a plain mapping in the place of the response's headers, or
    something else in the place of the response: then it goes out as it is.
    """
    try:
        facts = facts_of(request.environ)
        for name, text in app_state().headers.additions(facts, response.headers):
            response.headers[name] = text
    except Exception:
        logger.exception("headers_not_added", response=type(response).__name__)
    return response
