"""Security and CORS headers: a policy built once, asked once per response.

Pure: request facts and the response's present headers in, headers to set out. Imports only
:mod:`flask_c2meter.errors` and knows neither Flask nor WSGI, so that both can be thin shells around
it. It keeps one promise: a header that a view or the host has set stays as it is. Credentials are
allowed to listed origins only, and ``Strict-Transport-Security`` is sent on https only (RFC 6797,
section 7.2).
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .errors import ConfigError

#: Header name and value.
Pair = tuple[str, str]

#: What a view or a library may have left as its response's headers: pairs, Werkzeug's ``Headers``
#: or a plain mapping.
Headers = Iterable[Pair] | Mapping[str, str]

#: The source document's six headers, values to the letter.
STANDARD: Mapping[str, str] = {
    "Strict-Transport-Security": "max-age=31536000; includeSubDomains; preload",
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "X-XSS-Protection": "1; mode=block",
    "Content-Security-Policy": (
        "default-src 'self'; "
        "script-src 'self' 'unsafe-inline' https://cdn.jsdelivr.net https://cdnjs.cloudflare.com; "
        "style-src 'self' 'unsafe-inline' https://cdn.jsdelivr.net https://cdnjs.cloudflare.com; "
        "img-src 'self' data: https:; "
        "connect-src 'self' https://api.stripe.com https://api.c2concierge.com"
        " wss://api.c2concierge.com"
    ),
    "Referrer-Policy": "strict-origin-when-cross-origin",
}

#: Today's OWASP advice for a host that serves an API and pages of its own. Not the strictest
#: possible: with ``no-referrer`` Flask-WTF's CSRF check fails on https, with an opener policy of
#: ``same-origin`` sign-in and payment popups do, with a resource policy of ``same-origin`` images
#: on a sister subdomain. ``Cross-Origin-Embedder-Policy`` would break any third-party embed.
STRICT: Mapping[str, str] = {
    "Strict-Transport-Security": "max-age=31536000; includeSubDomains",
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; "
        "form-action 'self'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "strict-origin-when-cross-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cross-Origin-Opener-Policy": "same-origin-allow-popups",
    "Cross-Origin-Resource-Policy": "same-site",
    "X-Permitted-Cross-Domain-Policies": "none",
}

_NAMED: Mapping[str, Mapping[str, str]] = {"standard": STANDARD, "strict": STRICT, "off": {}}

_HSTS = "strict-transport-security"
_ALLOW_ORIGIN = "access-control-allow-origin"
_VARY: Pair = ("Vary", "Origin")

#: Sent to listed origins only, on preflights. The document's lists, then our own header.
_PREFLIGHT: Sequence[Pair] = (
    ("Access-Control-Allow-Methods", "GET, POST, PUT, DELETE, OPTIONS"),
    (
        "Access-Control-Allow-Headers",
        "Content-Type, Authorization, X-Requested-With, Idempotency-Key",
    ),
    ("Access-Control-Max-Age", "86400"),
)

#: Sent to listed origins only, on all other responses: what their scripts may read.
_EXPOSED: Sequence[Pair] = (
    (
        "Access-Control-Expose-Headers",
        "Retry-After, X-RateLimit-Limit, X-RateLimit-Remaining, X-RateLimit-Reset",
    ),
)

_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_VALUE = re.compile(r"[\t\x20-\x7e\xa0-\xff]+")
_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://([a-z0-9._-]+|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?")
_DEFAULT_PORTS = {"http": "80", "https": "443"}


class RequestFacts(NamedTuple):
    """What the policy needs to know of a request."""

    method: str
    #: As the WSGI server or ``ProxyFix`` says; never read from a raw header.
    is_https: bool
    #: The ``Origin`` header.
    origin: str | None = None
    #: The ``Access-Control-Request-Method`` header.
    requested_method: str | None = None

    @property
    def is_preflight(self) -> bool:
        """True if a browser asks for permission; any other ``OPTIONS`` belongs to the host."""
        return (
            self.method == "OPTIONS"
            and self.origin is not None
            and self.requested_method is not None
        )


@dataclass(frozen=True, slots=True)
class HeaderPolicy:
    """The headers of one app. Build it with :meth:`from_config`."""

    #: Security headers on http.
    plain: tuple[Pair, ...]
    #: Security headers on https.
    secure: tuple[Pair, ...]
    #: Listed origin -> the CORS headers of its responses.
    actual: Mapping[str, tuple[Pair, ...]]
    #: Listed origin -> the CORS headers of the answers to its preflights.
    preflight: Mapping[str, tuple[Pair, ...]]

    @classmethod
    def from_config(
        cls, security: str | Mapping[str, str], cors_origins: Iterable[str]
    ) -> HeaderPolicy:
        """Check the configuration and prepare all that does not depend on a request.

        :param security: ``standard``, ``strict``, ``off``, or exactly the headers to send (but
            ``Strict-Transport-Security`` on https only).
        :param cors_origins: each ``scheme://host[:port]``; none = no CORS headers.
        :raises ConfigError: naming key, value and cure.
        """
        secure = _security_headers(security)
        origins = sorted({_check_origin(origin) for origin in cors_origins})
        return cls(
            plain=tuple(pair for pair in secure if pair[0].lower() != _HSTS),
            secure=secure,
            actual={origin: (*_allow(origin), *_EXPOSED) for origin in origins},
            preflight={origin: (*_allow(origin), *_PREFLIGHT) for origin in origins},
        )

    @property
    def is_off(self) -> bool:
        """True if no response ever gets a header."""
        return not (self.secure or self.actual)

    def answers(self, facts: RequestFacts) -> bool:
        """True if the request is a preflight to be answered 200, without the view.

        Preflights of other origins go on to the host, which may have CORS rules of its own.
        """
        return facts.is_preflight and facts.origin in self.preflight

    def headers_for(self, facts: RequestFacts) -> tuple[Pair, ...]:
        """All headers this request deserves, but for ``Vary``."""
        security = self.secure if facts.is_https else self.plain
        if facts.origin is None:
            return security
        cors = self.preflight if facts.is_preflight else self.actual
        return security + cors.get(facts.origin, ())

    def additions(self, facts: RequestFacts, existing: Headers) -> list[Pair]:
        """The headers to set on a response that already has the *existing* ones.

        Setting means ``headers[name] = value``, which suits Werkzeug's ``Headers`` and a plain
        mapping alike: each name is either new, or ``Vary``, spelled as it is there and complete.

        :param existing: of the response, left as they are.
        """
        if self.is_off:
            return []
        present = _pairs(existing)
        names = {str(name).lower() for name, _ in present}
        added = missing(names, self.headers_for(facts))
        if "vary" not in names:
            added.append(_VARY)
        elif (vary := _vary_on_origin(present)) is not None:
            added.append(vary)
        return added


def missing(names: Container[str], wanted: Iterable[Pair]) -> list[Pair]:
    """Those of the *wanted* headers that are not there yet.

    If the view has decided on ``Access-Control-Allow-Origin``, it has decided on CORS: credentials
    of ours beside an origin of its own could open it to everybody.

    :param names: of the headers there are, in lower case.
    """
    has_cors = _ALLOW_ORIGIN in names
    return [
        pair
        for pair in wanted
        if (name := pair[0].lower()) not in names
        and not (has_cors and name.startswith("access-control-"))
    ]


def _pairs(headers: Headers) -> list[Pair]:
    """The items of a mapping, of Werkzeug's ``Headers``, or of a list of pairs."""
    items = getattr(headers, "items", None)
    return list(headers if items is None else items())


def _vary_on_origin(present: Iterable[Pair]) -> Pair | None:
    """The present ``Vary``, completed so that caches keep origins apart; None if it is fine."""
    lines = [(name, str(value)) for name, value in present if str(name).lower() == "vary"]
    fields = [field.strip() for _, value in lines for field in value.split(",") if field.strip()]
    if {"*", "origin"} & {field.lower() for field in fields}:
        return None
    return (lines[0][0], ", ".join([*fields, "Origin"]))


def _allow(origin: str) -> tuple[Pair, Pair]:
    return (
        ("Access-Control-Allow-Origin", origin),
        ("Access-Control-Allow-Credentials", "true"),
    )


def _security_headers(security: str | Mapping[str, str]) -> tuple[Pair, ...]:
    if isinstance(security, Mapping):
        return tuple(_check_header(name, value) for name, value in security.items())
    if security not in _NAMED:
        raise ConfigError(
            f"C2METER_SECURITY_HEADERS is {security!r}; "
            "use 'standard', 'strict', 'off' or a mapping of header names to values"
        )
    return tuple(_NAMED[security].items())


def _check_header(name: object, value: object) -> Pair:
    key = f"C2METER_SECURITY_HEADERS[{name!r}]"
    if not isinstance(name, str) or not _TOKEN.fullmatch(name):
        raise ConfigError(f"{key}: no header name; use letters, digits and '-'")
    if name.lower() == "vary" or name.lower().startswith("access-control-"):
        raise ConfigError(f"{key}: is set by C2METER_CORS_ORIGINS; list the origins there")
    if not isinstance(value, str) or not _VALUE.fullmatch(value):
        raise ConfigError(
            f"{key} is {value!r}; use one line of Latin-1 text without control characters"
        )
    return name, value


def _check_origin(origin: object) -> str:
    """*origin* as browsers write it: lower case, without the scheme's default port."""
    match = _ORIGIN.fullmatch(origin.lower()) if isinstance(origin, str) else None
    if match is None:
        raise ConfigError(f"C2METER_CORS_ORIGINS contains {origin!r}; {_origin_cure(origin)}")
    scheme, host, port = match.groups()
    if port is None or port == _DEFAULT_PORTS.get(scheme):
        return f"{scheme}://{host}"
    return f"{scheme}://{host}:{port}"


def _origin_cure(origin: object) -> str:
    if origin == "*":
        return "list each origin: '*' would let every site use your visitors' credentials"
    if origin == "null":
        return "remove it: sandboxed pages of any site have the origin 'null'"
    if isinstance(origin, str) and _ORIGIN.fullmatch(bare := origin.lower().rstrip("/")):
        return f"write {bare!r}, without the trailing slash"
    if isinstance(origin, str) and not origin.isascii():
        return "write the host in its ASCII form (xn--...), as browsers send it"
    return "write scheme://host or scheme://host:port, without path, query or user"
