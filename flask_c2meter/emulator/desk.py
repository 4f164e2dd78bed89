"""The emulator's own desk: the page at the root, ``state.json`` and the remote control.

``GET /`` shows a person what arrived and what is billed, ``GET /_emulator/state.json`` a program;
``POST /_emulator/<lever>`` is ``remote``'s. Imports ``picture``, ``remote`` and ``wire``, and
Jinja. Promise: nothing received is shown unescaped, and no API key or webhook secret is shown at
all.
"""

from __future__ import annotations

import secrets
from datetime import datetime
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup, escape

from .picture import Snapshot
from .remote import plain, pull
from .wire import Answer, ReceivedRequest

if TYPE_CHECKING:
    from .app import StripeEmulator

#: How many customers of one meter, customers, subscriptions and invoices the page shows;
#: ``state.json`` has them all.
SHOWN_CUSTOMERS = 25
SHOWN_INVOICES = 10

#: Currencies whose minor unit is not a hundredth.
PLACES = {
    **dict.fromkeys("bif clp djf gnf jpy kmf krw mga pyg rwf ugx vnd vuv xaf xof xpf".split(), 0),
    **dict.fromkeys("bhd jod kwd omr tnd".split(), 3),
}


def is_for_desk(path: str) -> bool:
    """Whether *path* is the emulator's own, not Stripe's."""
    return path == "/" or path.startswith("/_emulator/")


def answer(stripe: StripeEmulator, request: ReceivedRequest) -> Answer:
    """Answer a request to the desk."""
    match request.method, request.path:
        case "GET" | "HEAD", "/":
            return _page(stripe.snapshot(), live=request.query != "live=0")
        case "GET", "/_emulator/state.json":
            return Answer.of(plain(stripe.snapshot()), headers=_HEADERS)
        case "POST", path:
            return pull(stripe, path.removeprefix("/_emulator/"), request)
    return Answer.of({"error": f"no {request.method} {request.path} here"}, 404)


# --- the page -------------------------------------------------------------------------------

_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


@cache
def _template() -> Template:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["breakable"] = _breakable
    environment.filters["clock"] = lambda moment: f"{moment:%H:%M:%S}"
    environment.filters["minute"] = _minute
    environment.filters["money"] = _money
    environment.filters["number"] = lambda value: f"{value:,}"
    return environment.from_string(Path(__file__).with_name("desk.html").read_text("utf-8"))


def _breakable(name: str, separator: str = "_") -> Markup:
    """*name*, escaped, with leave to break the line after each *separator*."""
    return escape(name).replace(separator, Markup(f"{separator}<wbr>"))


def _minute(moment: datetime) -> Markup:
    """*moment* to the minute, where there is room for it; a midnight is a day."""
    clock = f"{moment:%H:%M}"
    rest = "" if clock == "00:00" else Markup(' <span class="wide">{}</span>').format(clock)
    return Markup('<span class="day">{}</span>{}').format(f"{moment:%Y-%m-%d}", rest)


def _money(amount: int, currency: str) -> str:
    """*amount*, in minor units, as people write it."""
    return f"{Decimal(amount).scaleb(-PLACES.get(currency, 2)):,f} {currency.upper()}"


def _page(snapshot: Snapshot, *, live: bool) -> Answer:
    nonce = secrets.token_urlsafe(16)
    html = _template().render(
        state=snapshot,
        live=live,
        nonce=nonce,
        shown_customers=SHOWN_CUSTOMERS,
        shown_invoices=SHOWN_INVOICES,
    )
    policy = (
        f"default-src 'none'; style-src 'nonce-{nonce}'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {**_HEADERS, "Content-Security-Policy": policy}
    return Answer(200, html.encode(), headers, content_type="text/html; charset=utf-8")
