"""Where a request comes from: a page of ours, or one that forges a form of ours.

Imports flask's types. The promise (P20): what changes something must come from the same origin, and
what does not say where it comes from is refused.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from flask import Request

_DEFAULT_PORTS = {"http": 80, "https": 443}


def comes_from_us(request: Request) -> bool:
    """Whether a page of ours made *request*, as far as its browser says: no forged form.

    ``Sec-Fetch-Site`` decides; browsers that are old, or reach us over plain http, do not send it,
    and then ``Origin`` or else ``Referer`` must be exactly ours. Source: OWASP, "Cross-Site Request
    Forgery Prevention Cheat Sheet", fetch metadata and standard headers.
    """
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        return site == "same-origin"
    source = request.headers.get("Origin", request.headers.get("Referer"))
    return source is not None and _origin(source) == _origin(request.host_url)


def _origin(url: str) -> tuple[str, str, int] | None:
    """Scheme, host and port of *url*; None if it has no such thing."""
    try:
        parts = urlsplit(url)
        port = parts.port or _DEFAULT_PORTS.get(parts.scheme)
    except ValueError:
        return None
    if not parts.hostname or port is None:
        return None
    return parts.scheme, parts.hostname, port
