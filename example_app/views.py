"""The HTTP surface: a page for people and four endpoints for programs.

The order of refusals is 401, 400, 429: who asks, what was sent, how often. Only a success counts.
"""

from __future__ import annotations

import base64
import json
import time
import tomllib
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path, PurePath
from typing import Any

from flask import Blueprint, Response, current_app, render_template, request
from flask.typing import ResponseReturnValue

from flask_c2meter import (
    InvalidEvent,
    current_customer,
    current_metering,
    current_usage,
    metered,
)

from .archive import Archive
from .concierge import BrokenCredentials, Concierge, Image, Signed, UnreadableImage
from .customers import DEMO_CUSTOMERS, OPERATOR_KEY
from .demo import MAY_INVENT
from .uploads import json_object, takes_image

pages = Blueprint("pages", __name__)
api = Blueprint("api", __name__, url_prefix="/api")

#: The catalogue this example is billed by; a file to read and to change.
CATALOGUE = Path(__file__).with_name("catalogue.toml")
_METERS = tomllib.loads(CATALOGUE.read_text("utf-8"))["meters"]

#: Everything on the page is ours; ``blob:`` shows the visitor's own image before it is sent.
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)


@pages.get("/")
def index() -> Response:
    """The page: sign, download and verify an image, and watch the counts move."""
    page = render_template(
        "index.html",
        customers=DEMO_CUSTOMERS,
        operator_key=OPERATOR_KEY,
        stripe=destination(current_app.config),
        may_invent=current_app.config.get(MAY_INVENT, False),
        base_url=request.host_url[:-1],
    )
    headers = {"Content-Security-Policy": _PAGE_POLICY, "Cache-Control": "no-store"}
    return Response(page, headers=headers)


@api.before_request
def authenticate() -> ResponseReturnValue | None:
    """Refuse strangers before anything looks at what they sent."""
    if request.method == "OPTIONS" or current_customer:
        return None
    return {"error": "Unauthorized"}, 401


@api.post("/sign")
@takes_image
@metered("sign_operations")
def sign(image: Image) -> ResponseReturnValue:
    """Answer the image with a manifest in it: as a download, or as JSON to who speaks JSON."""
    signed = _concierge().sign(image)
    archive: Archive = current_app.extensions["archive"]
    archive.keep(current_customer.id, signed.manifest_id, signed.data)
    current_usage.update(
        manifest_id=signed.manifest_id, asset_type="image", file_size_bytes=len(image.data)
    )
    wants_json = request.is_json or request.accept_mimetypes.best == "application/json"
    return _as_json(image, signed) if wants_json else _as_download(image, signed)


@api.post("/verify")
@takes_image
@metered("verify_operations")
def verify(image: Image) -> ResponseReturnValue:
    """Say whether the image still is what was signed; a "no" is an answer, but not a billed one."""
    start = time.perf_counter_ns()
    found = _concierge().verify(image)
    current_usage.update(
        verification_result=found.holds,
        processing_time_ms=(time.perf_counter_ns() - start) // 1_000_000,
    )
    if found.manifest_id:
        current_usage.update(manifest_id=found.manifest_id)
    return {
        "manifest_id": found.manifest_id,
        "verification_result": found.holds,
        "state": found.state,
        "title": found.title,
        "issuer": found.issuer,
        "failures": list(found.failures),
    }


@api.post("/sites")
def activate_site() -> ResponseReturnValue:
    """Activate a site; however often in a period, its domain counts once."""
    site = json_object()
    said = {name: site[name] for name in ("domain", "site_type") if name in site}
    current_metering.record("active_sites", current_customer, **{"site_type": "unknown", **said})
    return {"status": "active"}


@api.get("/usage")
def usage() -> ResponseReturnValue:
    """What the asking customer has used of each billed meter in the current period."""
    rows = [
        {
            "meter": row.meter,
            "display_name": _METERS[row.meter]["display_name"],
            "unit": _METERS[row.meter]["unit"],
            "total": _plain(row.total),
            "included": None if row.included is None else _plain(row.included),
            "level": row.level,
            "price": _METERS[row.meter].get("price"),
            "period": {"start": row.period.start.isoformat(), "end": row.period.end.isoformat()},
        }
        for row in current_metering.usage(current_customer)
        if _METERS[row.meter].get("billable", True)
    ]
    return {"customer": current_customer.id, "plan": current_customer.plan, "usage": rows}


@api.errorhandler(UnreadableImage)
def refuse_unreadable(error: UnreadableImage) -> ResponseReturnValue:
    """The bytes look like an image and are none."""
    return {"error": f"The image cannot be read: {str(error)[:200]}"}, 422


@api.errorhandler(BrokenCredentials)
def refuse_broken(error: BrokenCredentials) -> ResponseReturnValue:
    """The image was altered; signing it again would hide that."""
    return {"error": str(error)}, 422


@api.errorhandler(InvalidEvent)
def refuse_invalid(error: InvalidEvent) -> ResponseReturnValue:
    """A property that the catalogue does not allow; nothing was recorded."""
    return {"error": str(error), "fields": error.messages}, 400


def _as_download(image: Image, signed: Signed) -> Response:
    response = Response(signed.data, mimetype=image.mime)
    response.headers["X-Manifest-Id"] = signed.manifest_id
    response.headers.set("Content-Disposition", "attachment", filename=_signed_name(image))
    return response


def _as_json(image: Image, signed: Signed) -> ResponseReturnValue:
    encoded = base64.b64encode(signed.data).decode()
    body = {"manifest_id": signed.manifest_id, "name": _signed_name(image), "mime": image.mime}
    return Response(
        json.dumps(body | {"size_bytes": len(signed.data), "image": encoded}),
        mimetype="application/json",
    )


def _signed_name(image: Image) -> str:
    return f"{PurePath(image.name).stem}-signed.{image.mime.rpartition('/')[2]}"


def _plain(value: Decimal) -> str:
    """*value* without trailing zeros or exponent: text, because JSON numbers are floats."""
    return f"{value.normalize():f}"


def _concierge() -> Concierge:
    concierge: Concierge = current_app.extensions["concierge"]
    return concierge


def destination(config: Mapping[str, Any]) -> dict[str, Any]:
    """Where the counts go: a name, a sentence and, for an emulator, its address."""
    url, key = (config.get(f"C2METER_STRIPE_{name}") for name in ("BASE_URL", "SECRET_KEY"))
    if not key:
        return {"name": "ledger only", "words": "no key: nothing is sent", "url": None}
    if url:
        words = "an emulator: nothing leaves this machine"
        return {"name": "Stripe emulator", "words": words, "url": url}
    if "_test_" in key:
        return {"name": "Stripe test mode", "words": "Stripe's own, test mode", "url": None}
    return {"name": "Stripe live mode", "words": "Stripe's own, LIVE: this is billed", "url": None}
