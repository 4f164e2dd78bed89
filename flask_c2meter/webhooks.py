"""The blueprint that receives Stripe's webhooks: snapshot and thin events.

A request is answered when its event is in the store, with its effect or to be looked into by the
worker; Stripe is never asked here. What is not signed by Stripe, for this mode and about now, is
400 and changes nothing.
"""

from __future__ import annotations

import json
from typing import Any, cast

from flask import Blueprint, Flask, current_app, request
from flask.blueprints import BlueprintSetupState
from flask.typing import ResponseReturnValue

from . import logs
from .errors import CorruptStore, SetupError, StoreUnavailable
from .globals import app_state
from .nesting import is_too_deep
from .stripe_signature import BadSignature, check

logger: logs.Log = logs.logger(__name__)

#: Longest body, in bytes.
MAX_BODY_BYTES = 256 * 1024

_TOO_LARGE = {"error": "The body is too large"}, 413


def webhook_blueprint(name: str = "c2meter_webhooks") -> Blueprint:
    """A blueprint with ``POST /webhook``; register it with ``url_prefix="/stripe"``.

    Registering raises ``RuntimeError`` where the app has no ``C2Meter`` or no
    ``C2METER_STRIPE_WEBHOOK_SECRET``: without one, anybody could tell it anything. A global CSRF
    protection, such as Flask-WTF's, must be told to exempt it: Stripe sends no token.
    """
    blueprint = Blueprint(name, __name__)
    blueprint.record_once(_refuse_without_secret)
    blueprint.post("/webhook", endpoint="receive")(_receive)
    blueprint.register_error_handler(413, lambda error: _TOO_LARGE)
    return blueprint


def _refuse_without_secret(setup: BlueprintSetupState) -> None:
    if not app_state(cast(Flask, setup.app)).metering.config.stripe_webhook_secret:
        raise SetupError(
            "The webhook blueprint needs C2METER_STRIPE_WEBHOOK_SECRET, the whsec_... that Stripe "
            "signs with."
        )


def _receive() -> ResponseReturnValue:
    # One more, since a body without a length is cut off there; the host may have read it before.
    request.max_content_length = MAX_BODY_BYTES + 1
    body = request.get_data()
    if len(body) > MAX_BODY_BYTES:
        return _TOO_LARGE
    metering = app_state(current_app).metering
    config = metering.config
    try:
        signature = request.headers.get("Stripe-Signature", "")
        check(signature, body, config.stripe_webhook_secret, config.clock())
        event = _event(body)
        gateway = metering.gateway
        if gateway is not None and event.get("livemode") is not gateway.livemode:
            raise ValueError("the event is of the other mode, live or test")
        metering.stripe_events.receive(event)
    except BadSignature as exc:
        return {"error": f"Bad signature: {exc}"}, 400
    except ValueError as exc:
        return {"error": str(exc)}, 400
    except (StoreUnavailable, CorruptStore) as exc:
        logger.error("webhook_not_taken", error=exc, then="stripe_sends_it_again")
        return {"error": "Try again later"}, 503
    return {"received": True}


def _event(body: bytes) -> dict[str, Any]:
    try:
        event = json.loads(body)
    except (ValueError, RecursionError):
        raise ValueError("the body is no JSON") from None
    if not isinstance(event, dict):
        raise ValueError("the body is no event")
    if is_too_deep(event):
        raise ValueError("the body is nested too deeply")
    return event
