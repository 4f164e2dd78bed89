"""Responses of the dashboard: pages, data and refusals, each with a strict policy of its own.

Imports flask. The promise (P20): every response says what its page may load, which is nothing but
what it holds itself, and that it is not to be stored; whatever the host or an extension adds to
responses, ours go out without ``X-XSS-Protection`` and ``preload``.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from flask import Flask, Response, render_template, request
from markupsafe import Markup

#: Where the templates are; a host's own folder comes first.
FOLDER = "c2meter/dashboard"

#: What a script waits before it tries again, in seconds.
RETRY_AFTER_S = 5

_HSTS = "Strict-Transport-Security"

#: Title and explanation of each refusal's page.
_REFUSALS = {
    401: ("Please sign in", "This page shows what a customer has used, so it must know who asks."),
    403: (
        "That was not done",
        "The request did not come from this page, or you may look but not change anything.",
    ),
    404: ("Not found", "There is no such page, or no such customer that you may see."),
    413: ("Too much", "The form is too large; nothing was changed."),
    503: (
        "The numbers cannot be read right now",
        "Nothing that was recorded is lost. Please try again in a few seconds.",
    ),
}


class OwnResponse(Response):
    """A response of ours, with the headers it is to have in the end."""

    policy: Mapping[str, str] = MappingProxyType({})


def page(template: str, status: int = 200, **facts: Any) -> OwnResponse:
    """An HTML page.

    The style sheet is allowed by its hash, not by the nonce: so two pages that say the same are
    the same to the byte. The nonce, ``csp_nonce`` in templates, is for scripts and for what a host
    adds.
    """
    nonce = secrets.token_urlsafe(18)
    style = render_template(f"{FOLDER}/style.css")
    html = render_template(f"{FOLDER}/{template}", csp_nonce=nonce, style=Markup(style), **facts)
    response = OwnResponse(html, status)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return _secured(response, f"'nonce-{nonce}'", f"'nonce-{nonce}' 'sha256-{digest}'")


def data(content: Any, status: int = 200) -> OwnResponse:
    """JSON."""
    text = json.dumps(content, indent=2) + "\n"
    return _secured(OwnResponse(text, status, content_type="application/json"))


def elsewhere(url: str) -> OwnResponse:
    """See *url* instead."""
    return _secured(OwnResponse(status=303, headers={"Location": url}))


def refusal(status: int) -> OwnResponse:
    """A page that says why not, or the same as JSON."""
    title, reason = _REFUSALS[status]
    if wants_data():
        response = data({"error": "Unauthorized" if status == 401 else title}, status)
    else:
        response = page("refusal.html", status, title=title, reason=reason, code=status)
    if status == 503:
        response.headers["Retry-After"] = str(RETRY_AFTER_S)
    return response


def wants_data() -> bool:
    """Whether this request is answered in JSON."""
    accepted = request.accept_mimetypes
    best = accepted.best_match(("text/html", "application/json"), default="text/html")
    return request.path.endswith(".json") or best == "application/json"


def _secured(response: OwnResponse, script: str = "'none'", style: str = "'none'") -> OwnResponse:
    response.policy = {
        "Content-Security-Policy": (
            f"default-src 'none'; script-src {script}; style-src {style}; "
            "img-src 'self' data:; connect-src 'self'; form-action 'self'; "
            "object-src 'none'; base-uri 'none'; frame-ancestors 'none'"
        ),
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        # Not no-referrer: the Origin of a form would be "null" then.
        "Referrer-Policy": "same-origin",
        "Cache-Control": "no-store",
    }
    return response


def keep_policy(app: Flask) -> None:
    """Have our responses go out as they should, after all that *app* does to responses."""
    # At the front: what comes first runs last.
    app.after_request_funcs.setdefault(None, []).insert(0, _with_policy)


def _with_policy(response: Any) -> Any:
    if isinstance(response, OwnResponse):
        response.headers.update(response.policy)
        response.headers.pop("X-XSS-Protection", None)
        directives = [each.strip() for each in response.headers.get(_HSTS, "").split(";")]
        if "preload" in directives:
            response.headers[_HSTS] = "; ".join(each for each in directives if each != "preload")
    return response
