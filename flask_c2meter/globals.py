"""What belongs to one app and one request: :class:`AppState` and the three proxies.

``current_customer``, ``current_usage`` and ``current_metering`` resolve when they are used;
unbound, each says what is missing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from inspect import iscoroutinefunction

from flask import Flask, Request, current_app, g, has_request_context, request
from werkzeug.local import LocalProxy

from .drafts import UsageDraft
from .errors import SetupError
from .headers import HeaderPolicy
from .hooks import Hooks
from .limiting import RateLimiter
from .metering import Metering
from .model import Customer

#: Where an app keeps its state, in ``app.extensions``.
EXTENSION = "c2meter"


@dataclass(frozen=True, slots=True)
class AppState:
    """Everything of one app, in ``app.extensions["c2meter"]``."""

    metering: Metering
    limiter: RateLimiter
    headers: HeaderPolicy
    hooks: Hooks


@dataclass(slots=True)
class RequestState:
    """What is known of one request, in ``g._c2meter_request``."""

    request: Request
    #: What the loader said; its turn comes once.
    customer: Customer | None = None
    is_loaded: bool = False
    #: Of the metered view that runs; None outside of one.
    usage: UsageDraft | None = None
    #: How often each (meter, idempotency key) was used: a metered view may call others.
    key_uses: dict[tuple[str, str], int] = field(default_factory=dict)


def request_state() -> RequestState:
    """The state of the current request.

    One ``g`` may see several requests, such as those of a test client inside an app context.
    """
    current = request._get_current_object()  # type: ignore[attr-defined]
    state: RequestState | None = g.get("_c2meter_request")
    if state is None or state.request is not current:
        state = g._c2meter_request = RequestState(current)
    return state


def app_state(app: Flask | None = None) -> AppState:
    """The state of *app*, by default the current one.

    :raises SetupError: the app has no ``C2Meter``.
    """
    target = current_app if app is None else app
    try:
        state: AppState = target.extensions[EXTENSION]
    except KeyError:
        raise SetupError(
            "This app is not metered. Did you forget to call 'init_app' of your C2Meter?"
        ) from None
    return state


def load_customer(state: AppState) -> Customer | None:
    """The customer of this request, asked of the ``customer_loader`` once.

    :raises RuntimeError: there is no loader, or it returned something else.
    """
    known = request_state()
    if not known.is_loaded:
        loader = state.hooks.customer_loader
        if loader is None:
            raise RuntimeError(
                "No customer_loader: register one with @meter.customer_loader, so that usage "
                "can be attributed to a customer."
            )
        customer = current_app.ensure_sync(loader)() if iscoroutinefunction(loader) else loader()
        if customer is not None and not isinstance(customer, Customer):
            raise RuntimeError(
                f"The customer_loader returned {type(customer).__name__}; "
                "it must return a Customer or None."
            )
        known.customer, known.is_loaded = customer, True
    return known.customer


def _current_customer() -> Customer | None:
    if not has_request_context():
        raise RuntimeError("current_customer is only known while a request is handled.")
    return load_customer(app_state())


def _current_usage() -> UsageDraft:
    draft = request_state().usage if has_request_context() else None
    if draft is None:
        raise RuntimeError(
            "current_usage exists only inside a view with @metered, while it handles a request."
        )
    return draft


def _current_metering() -> Metering:
    if not current_app:
        raise RuntimeError(
            "current_metering needs an app context: use it in a request or within "
            "'with app.app_context():'."
        )
    return app_state().metering


#: The customer of this request; falsy if there is none.
current_customer: Customer = LocalProxy(_current_customer)  # type: ignore[assignment]

#: What the running metered view says about its usage.
current_usage: UsageDraft = LocalProxy(_current_usage)  # type: ignore[assignment]

#: The app's :class:`~flask_c2meter.metering.Metering`.
current_metering: Metering = LocalProxy(_current_metering)  # type: ignore[assignment]
