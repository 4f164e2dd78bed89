"""One app in several variants: bare, limited, metered durably or relaxed, Stripe in the request.

``floor`` and ``relaxed floor`` write the rows that the metered variants write, by bare ``sqlite3``
and nothing else: no design of ours can add less while it keeps these rows.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from flask import Flask, request

from flask_c2meter import C2Meter, Customer, current_usage, metered

from . import bare

View = Callable[[], dict[str, object]]

VARIANTS = ("bare", "limiter", "metered", "relaxed", "sdk", "floor", "relaxed floor")

#: Callers, known by their API key.
CUSTOMERS = {
    f"key_{number}": Customer(f"cus_{number}", f"user_{number}", "growth") for number in range(100)
}

#: Moving window, per caller, in both variants that limit; high enough never to refuse.
RATE_LIMIT = "10000 per minute"


def create_app(variant: str, folder: str, stripe_url: str = "") -> Flask:
    """The app, its files in *folder*; no variant delivers, so that only the request is measured."""
    app = Flask(__name__, instance_path=str(Path(folder, variant)))
    app.add_url_rule("/verify", "verify", _view(app, variant, stripe_url), methods=["POST"])
    return app


def _view(app: Flask, variant: str, stripe_url: str) -> View:
    if variant == "limiter":
        return _limited(app)
    if variant in ("metered", "relaxed"):
        return _metered(app, "full" if variant == "metered" else "relaxed")
    if variant in ("floor", "relaxed floor"):
        return _storing(app, "FULL" if variant == "floor" else "NORMAL")
    if variant == "sdk":
        return _reporting(stripe_url)
    return verify


def verify() -> dict[str, object]:
    """What a small JSON endpoint does."""
    checks = [{"name": f"check_{number}", "passed": True} for number in range(8)]
    return {"id": "urn:c2pa:3fa85f64", "valid": True, "checks": checks}


def _limited(app: Flask) -> View:
    from flask_limiter import Limiter

    limiter = Limiter(
        lambda: request.headers["Authorization"],
        app=app,
        strategy="moving-window",
        storage_uri="memory://",
    )
    return limiter.limit(RATE_LIMIT)(verify)


def _metered(app: Flask, durability: str) -> View:
    app.config["C2METER_DURABILITY"] = durability
    app.config["C2METER_SECURITY_HEADERS"] = "off"  # another feature, that flask-limiter lacks
    meter = C2Meter(app)

    @meter.customer_loader
    def load() -> Customer | None:
        return CUSTOMERS.get(request.headers.get("Authorization", ""))

    @metered("verify_operations", rate_limit=RATE_LIMIT)
    def view() -> dict[str, object]:
        result = verify()
        current_usage.update(manifest_id=result["id"], verification_result=result["valid"])
        return result

    return view


def _storing(app: Flask, synchronous: str) -> View:
    folder = Path(app.instance_path)
    folder.mkdir(parents=True)
    store = bare.GroupCommit(folder / "floor.sqlite", synchronous)
    app.extensions["floor"] = store

    def view() -> dict[str, object]:
        store.record(CUSTOMERS[request.headers["Authorization"]].id)
        return verify()

    return view


def _reporting(stripe_url: str) -> View:
    import stripe

    addresses = dict.fromkeys(("api", "connect", "files", "meter_events"), stripe_url)
    client = stripe.StripeClient("sk_test_bench", base_addresses=addresses)  # type: ignore[arg-type]

    def view() -> dict[str, object]:
        result = verify()
        payload = {"stripe_customer_id": request.headers["Authorization"], "value": "1"}
        client.v1.billing.meter_events.create(
            {"event_name": "verify_operations", "payload": payload}
        )
        return result

    return view
