"""What is here because this is a demonstration: a login, what arrived where, a month of traffic.

A blueprint beside :mod:`.views`; a real service has a login of its own and none of the rest.
"""

from __future__ import annotations

from typing import Any, cast

from flask import Blueprint, abort, current_app, redirect, request, session, url_for
from flask.typing import ResponseReturnValue

from flask_c2meter import Customer, current_customer, current_metering

from . import traffic
from .arrivals import Arrivals
from .customers import log_in

demo = Blueprint("demo", __name__)

#: Set where Stripe is an emulator: what is made up must not reach a real account.
MAY_INVENT = "EXAMPLE_MAY_INVENT"


@demo.post("/login")
def login() -> ResponseReturnValue:
    """Let a browser in by API key, and show it its dashboard."""
    # A page elsewhere must not log its visitors in as somebody else.
    if request.headers.get("Sec-Fetch-Site", "same-origin") != "same-origin":
        abort(403)
    if not log_in(request.form.get("key", "")):
        abort(401)
    return redirect(url_for("c2meter_dashboard.usage"), 303)


@demo.post("/logout")
def logout() -> ResponseReturnValue:
    """Forget who this browser is."""
    session.clear()
    return redirect(url_for("pages.index"), 303)


@demo.get("/api/alerts")
def alerts() -> ResponseReturnValue:
    """The asking customer's alerts of 30 days, newest first, and how often each came where."""
    if not current_customer:
        return {"error": "Unauthorized"}, 401
    arrivals: Arrivals = current_app.extensions["arrivals"]
    report, found = current_metering.report(current_customer), arrivals.found()
    titles = {each.meter.name: each.meter.display_name for each in report.meters}
    return {
        "alerts": [
            {
                "id": notice.alert.identifier,
                "title": titles.get(notice.alert.meter, notice.alert.meter),
                "level": notice.alert.level,
                "percent": _percent(notice.alert.utilization),
                "raised_at": notice.alert.raised_at.isoformat(),
                "is_unread": notice.is_unread,
                "arrived": {"app": [{}], **found.get(notice.alert.identifier, {})},
            }
            for notice in report.notices
        ]
    }


@demo.post("/api/demo")
def invent() -> ResponseReturnValue:
    """Let the asking customer have had a month of traffic; a second time changes nothing."""
    if not current_customer:
        return {"error": "Unauthorized"}, 401
    if not current_app.config.get(MAY_INVENT):
        return {"error": "Only with the emulator: this account is real"}, 409
    metering, customer = (
        cast(Any, proxy)._get_current_object() for proxy in (current_metering, current_customer)
    )
    return {"customer": customer.id, "recorded": traffic.record(metering, cast(Customer, customer))}


def _percent(utilization: Any) -> int | None:
    return None if utilization is None else int(utilization * 100)
