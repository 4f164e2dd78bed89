"""An image service billed by ``flask_c2meter``: real C2PA signing, real verification, real counts.

:func:`create_app` is the whole wiring; ``python -m example_app`` serves it, with a stand-in for
Stripe when there is no key. Settings come from environment variables: ``C2METER_*`` as they are,
Flask's own and Flask-Limiter's with ``FLASK_`` in front.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flask import Flask, json
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response

from flask_c2meter import Alert, C2Meter, usage_alert

from .archive import Archive, measure_storage
from .arrivals import Arrivals
from .concierge import Concierge
from .credentials import load_or_create
from .customers import load_customer, load_visitor
from .demo import demo
from .kept import kept
from .views import CATALOGUE, api, pages

__all__ = ["create_app"]

#: Largest request, in bytes; as base64 in JSON an image may have three quarters of it.
MAX_CONTENT_LENGTH = 20 * 1024 * 1024

meter = C2Meter()
meter.customer_loader(load_customer)
meter.dashboard_auth(load_visitor)
meter.storage_loader(measure_storage)


def create_app(
    config: Mapping[str, Any] | None = None, *, instance_path: str | None = None
) -> Flask:
    """Build the example app; starts no thread and opens no connection.

    :param config: settings that win over the environment's.
    :param instance_path: absolute folder for the signing chain, the ledger, the archive and more;
        default: Flask's.
    """
    app = Flask(__name__, instance_path=instance_path)
    app.config.from_mapping(_defaults())
    app.config.from_prefixed_env()
    app.config.from_mapping({k: v for k, v in os.environ.items() if k.startswith("C2METER_")})
    app.config.from_mapping(config or {})
    app.config.setdefault("C2METER_CORS_ORIGINS", _origins(local=app.debug or app.testing))

    folder = Path(app.instance_path)
    app.config["SECRET_KEY"] = app.secret_key or kept(folder / "session.key", secrets.token_hex)
    app.extensions["concierge"] = Concierge(load_or_create(folder / "signing.pem"))
    app.extensions["archive"] = Archive(folder / "archive")
    app.extensions["arrivals"] = Arrivals(folder / "arrivals.jsonl")
    _choose_ledger(app)
    meter.init_app(app)
    usage_alert.connect(_note_signal, app)
    app.register_blueprint(pages)
    app.register_blueprint(api)
    app.register_blueprint(demo)
    app.register_blueprint(meter.dashboard_blueprint(), url_prefix="/billing")
    if app.config.get("C2METER_STRIPE_WEBHOOK_SECRET"):
        app.register_blueprint(meter.webhook_blueprint(), url_prefix="/stripe")
    app.register_error_handler(HTTPException, _as_json)
    return app


def _defaults() -> dict[str, Any]:
    return {
        "MAX_CONTENT_LENGTH": MAX_CONTENT_LENGTH,
        "C2METER_CATALOGUE": CATALOGUE,
        "C2METER_SECURITY_HEADERS": "strict",
        # Not at night, which is over when most people try this; a command measures at any time.
        "C2METER_STORAGE_SCHEDULE": "59 23 * * *",
        "C2METER_STRIPE_SECRET_KEY": os.environ.get("STRIPE_SECRET_KEY", ""),
        "SESSION_COOKIE_SAMESITE": "Lax",
    }


def _choose_ledger(app: Flask) -> None:
    """One of its own while Stripe is an emulator: a ledger belongs to one Stripe account."""
    key, url = (app.config.get(f"C2METER_STRIPE_{name}") for name in ("SECRET_KEY", "BASE_URL"))
    name = "c2meter" if key and not url else "emulator"
    app.config.setdefault("C2METER_DATABASE_URL", f"sqlite:///{name}.sqlite")
    app.config.setdefault("C2METER_SPILL_PATH", f"{name}.spill")


def _note_signal(app: Flask, alert: Alert, **extra: Any) -> None:
    """Receive ``usage_alert``, as a host would to act on it."""
    app.extensions["arrivals"].add(alert.identifier, "signal", level=alert.level)


def _origins(*, local: bool) -> list[str]:
    """Whose pages may call this API from a browser, with credentials."""
    frontend = os.environ.get("FRONTEND_URL", "https://app.c2concierge.com")
    origins = [frontend, "https://staging.c2concierge.com"]
    return [*origins, "http://localhost:3000"] if local else origins


def _as_json(error: HTTPException) -> Response:
    """Every HTTP error in the form ``{"error": ...}``, headers such as ``Allow`` kept."""
    response = error.get_response()
    response.data = json.dumps({"error": error.description or error.name})
    response.content_type = "application/json"
    return response
