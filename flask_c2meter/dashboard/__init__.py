"""The dashboard: a blueprint with a page for each customer, the same as JSON, and a list of all.

Routes below its ``url_prefix``: ``GET /usage``, ``GET /usage.json``, ``GET /customers``,
``POST /notifications/read``. A host looks like itself by templates of its own in
``c2meter/dashboard/``: ``header.html`` stands above every page, ``style.css`` replaces the looks,
and a ``usage.html`` that extends ``c2meter/dashboard/layout.html`` may fill its blocks and include
``c2meter/dashboard/report.html`` where it likes; ``csp_nonce`` is the nonce of its scripts.

Imports flask and the facade. The promises (P20): nothing is answered before ``dashboard_auth`` has
said who asks; a customer sees itself only; looking neither waits for the metered views nor is
metered; and a store that is out of order is a 503, never a 500.
"""

from __future__ import annotations

from typing import cast

from flask import Blueprint, Flask, current_app, g, request, url_for
from flask.blueprints import BlueprintSetupState

from .. import logs, plain
from ..errors import CorruptStore, SetupError, StoreUnavailable
from ..globals import app_state
from ..metering import Metering
from ..model import Customer
from . import words
from .origins import comes_from_us
from .page import usage_page
from .responses import OwnResponse, data, elsewhere, keep_policy, page, refusal, wants_data
from .visitors import Visitor, visitor

logger: logs.Log = logs.logger(__name__)

#: Customers on one page of the list.
PAGE = 50

#: Longest body of a form, in bytes.
MAX_BODY_BYTES = 16 * 1024


def dashboard_blueprint(name: str = "c2meter_dashboard") -> Blueprint:
    """The blueprint; register it with ``url_prefix="/billing"``.

    Registering raises ``RuntimeError`` where the app has no ``C2Meter``, or that no
    ``dashboard_auth``: without one, anybody could see everything. A host that asks each form for a
    token, such as with Flask-WTF's ``CSRFProtect``, exempts it: its forms are told by their origin.
    """
    blueprint = Blueprint(name, __name__, template_folder="templates")
    blueprint.record_once(_set_up)
    blueprint.before_request(_admit)
    blueprint.get("/usage", endpoint="usage")(_usage)
    blueprint.get("/usage.json", endpoint="usage_json")(_usage_json)
    blueprint.get("/customers", endpoint="customers")(_customers)
    blueprint.post("/notifications/read", endpoint="read")(_read)
    blueprint.register_error_handler(StoreUnavailable, _unavailable)
    blueprint.register_error_handler(CorruptStore, _unavailable)
    blueprint.register_error_handler(413, lambda error: refusal(413))
    return blueprint


def _set_up(setup: BlueprintSetupState) -> None:
    app = cast(Flask, setup.app)
    if app_state(app).hooks.dashboard_auth is None:
        raise SetupError(
            "The dashboard needs a dashboard_auth: register a function with @meter.dashboard_auth "
            "that returns the visitor's customer id, ALL_CUSTOMERS for an operator, or None."
        )
    keep_policy(app)


def _admit() -> OwnResponse | None:
    """401 for whoever may not look; everything below knows its visitor."""
    known = visitor()
    if known is None:
        return refusal(401)
    g._c2meter_visitor = known
    return None


def _unavailable(error: Exception) -> OwnResponse:
    logger.error("dashboard_unavailable", error=error)
    return refusal(503)


def _visitor() -> Visitor:
    known: Visitor = g._c2meter_visitor
    return known


def _metering() -> Metering:
    return app_state(current_app).metering


def _customer() -> Customer | str | None:
    return _visitor().sees(request.args.get("customer"), _metering().store)


# -- one customer ----------------------------------------------------------------------------------


def _usage() -> OwnResponse:
    if _visitor().is_operator and "customer" not in request.args:
        return elsewhere(url_for(".customers"))
    customer = _customer()
    if customer is None:
        return refusal(404)
    report = _metering().report(customer)
    is_operator = _visitor().is_operator
    return page("usage.html", page=usage_page(report), words=words, is_operator=is_operator)


def _usage_json() -> OwnResponse:
    customer = _customer()
    if customer is None:
        return refusal(404)
    report, is_operator = _metering().report(customer), _visitor().is_operator
    url = url_for(".usage", customer=report.customer if is_operator else None)
    return data(plain.report(report, action_url=url, with_channels=is_operator))


def _read() -> OwnResponse:
    """Note that the visitor has seen an alert, or all of them."""
    request.max_content_length = MAX_BODY_BYTES
    customer = _visitor().customer_id
    if customer is None or not comes_from_us(request):
        return refusal(403)
    if _customer() is None:
        return refusal(404)
    identifiers = request.form.getlist("id") or None
    metering = _metering()
    read = metering.store.announcements.mark_read(customer, metering.config.clock(), identifiers)
    return data({"read": read}) if wants_data() else elsewhere(url_for(".usage"))


# -- all of them -----------------------------------------------------------------------------------


def _customers() -> OwnResponse:
    if not _visitor().is_operator:
        return refusal(404)
    containing, after = request.args.get("q", "").strip(), request.args.get("after", "")
    metering = _metering()
    found = metering.customers(containing, after, PAGE + 1)
    return page(
        "customers.html",
        customers=found[:PAGE],
        has_more=len(found) > PAGE,
        containing=containing,
        after=after,
        titles={name: meter.display_name for name, meter in metering.catalogue.meters.items()},
        words=words,
    )
