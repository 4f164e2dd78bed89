"""The forms in which the emulator hears and speaks: requests, answers, refusals.

Knows Stripe's two dialects (v1: forms with brackets, v2: JSON) and its error objects; knows no
endpoint. Imports the standard library only. Promise: whatever bytes arrive, the result is a
:class:`ReceivedRequest` or a :class:`Refusal`, never another exception.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from sys import intern
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_plus

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

#: Longest request body that is read, in bytes.
MAX_BODY_BYTES = 1 << 20

#: Most fields one form may have.
MAX_FIELDS = 1000

_KEY = re.compile(r"([^\[\]]+)((?:\[[^\[\]]*\])*)")
_to_json = json.JSONEncoder(separators=(",", ":")).encode
_BRACKET = re.compile(r"\[([^\[\]]*)\]")


class Refusal(Exception):
    """The emulator's "no", in Stripe's words.

    :param code: Stripe's error code; v1 often has none.
    :param param: the parameter at fault, as ``payload[value]``.
    :param type: Stripe's error type.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        code: str | None = None,
        param: str | None = None,
        type: str = "invalid_request_error",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code
        self.param = param
        self.type = type
        self.headers: Mapping[str, str] = headers or {}

    def answer(self, *, v2: bool = False) -> Answer:
        """The error object; *v2* errors always have a code and never a ``param``."""
        error: dict[str, Any] = {"type": self.type}
        if self.code or v2:
            error["code"] = self.code or "invalid_request"
        error["message"] = self.message
        if self.param and not v2:
            error["param"] = self.param
        return Answer.of({"error": error}, self.status, self.headers, code=self.code)


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back: a status, a body and its headers."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/json"
    #: Stripe's error code in the body, if any.
    code: str | None = None

    @classmethod
    def of(
        cls,
        data: Any,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        code: str | None = None,
    ) -> Answer:
        """*data* as a JSON answer."""
        return cls(status, _to_json(data).encode(), headers or {}, code=code)

    def with_headers(self, headers: Mapping[str, str]) -> Answer:
        """The same answer with more *headers*; its own stay."""
        both = {**headers, **self.headers}
        return Answer(self.status, self.body, both, self.content_type, self.code)


@dataclass(slots=True, eq=False)
class ReceivedRequest:
    """One HTTP request as it arrived, and how it was answered."""

    method: str
    path: str
    #: The raw query string.
    query: str
    #: Header names in title case, such as ``Idempotency-Key``.
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    received_at: datetime
    #: The HTTP status answered; None while in progress and after a reset.
    status: int | None = None
    #: How, in words: ``processed``, ``refused``, ``replayed``, ``reset after processing``, ...
    answered: str = "in progress"
    #: Stripe's error code in the answer, if it had one.
    code: str | None = None

    @property
    def is_v2(self) -> bool:
        """True for Stripe's second API, which speaks JSON."""
        return self.path.startswith("/v2/")

    @property
    def idempotency_key(self) -> str | None:
        """The ``Idempotency-Key`` header."""
        return self.headers.get("Idempotency-Key")

    @property
    def secret(self) -> str:
        """The API key or session token, from a bearer or basic ``Authorization``; else ``""``."""
        scheme, _, credentials = self.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return credentials.strip()
        if scheme.lower() == "basic":
            return _basic_user(credentials)
        return ""

    @property
    def params(self) -> dict[str, Any]:
        """The parameters as nested dicts, of the query (GET) or the body; ``{}`` if unreadable."""
        try:
            return self.parse()
        except Refusal:
            return {}

    def parse(self) -> dict[str, Any]:
        """As :attr:`params`.

        :raises Refusal: the body is too long, of the wrong type or malformed.
        """
        if len(self.body) > MAX_BODY_BYTES:
            raise Refusal(f"Request body is larger than {MAX_BODY_BYTES} bytes.", status=413)
        if self.method != "POST":
            return parse_form(self.query)
        if not self.body:
            return {}
        content_type = self.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        wanted = "application/json" if self.is_v2 else "application/x-www-form-urlencoded"
        if content_type != wanted:
            raise Refusal(f"Invalid content type {content_type!r}: send {wanted}.")
        return parse_json(self.body) if self.is_v2 else parse_form(_decode(self.body))


def read_request(environ: WSGIEnvironment, received_at: datetime) -> ReceivedRequest:
    """The request in a WSGI *environ*; one byte more than the limit is read, to notice excess."""
    length = environ.get("CONTENT_LENGTH") or ""
    wanted = min(int(length), MAX_BODY_BYTES + 1) if length.isascii() and length.isdigit() else 0
    return ReceivedRequest(
        method=environ["REQUEST_METHOD"],
        path=environ.get("PATH_INFO", "").encode("latin-1", "replace").decode("utf-8", "replace"),
        query=environ.get("QUERY_STRING", ""),
        headers=dict(_headers(environ)),
        body=environ["wsgi.input"].read(wanted) if wanted else b"",
        received_at=received_at,
    )


def _headers(environ: WSGIEnvironment) -> Iterable[tuple[str, str]]:
    for key, value in environ.items():
        name = _header_name(key)
        if name is not None:
            # A client repeats its headers with every request: interned they are kept once.
            yield name, intern(value)


@lru_cache(maxsize=512)
def _header_name(key: str) -> str | None:
    if not key.startswith("HTTP_") and key not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
        return None
    return key.removeprefix("HTTP_").replace("_", "-").title()


def _basic_user(credentials: str) -> str:
    try:
        return base64.b64decode(credentials, validate=True).decode().partition(":")[0]
    except ValueError:
        return ""


def _decode(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError:
        raise Refusal("Request body is not UTF-8.") from None


def parse_json(body: bytes) -> dict[str, Any]:
    """A JSON object.

    :raises Refusal: it is something else.
    """
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        raise Refusal("Request body is not valid JSON.", code="invalid_json") from None
    if not isinstance(data, dict):
        raise Refusal("Request body must be a JSON object.", code="invalid_json")
    return data


def parse_form(text: str) -> dict[str, Any]:
    """A form or query with bracketed keys as nested dicts: ``a[b]=1`` -> ``{"a": {"b": "1"}}``.

    List items become numbered keys, also those of ``a[]=1``.

    :raises Refusal: a key is malformed, or both a value and a group.
    """
    if text.count("&") >= MAX_FIELDS:
        raise Refusal(f"Requests have at most {MAX_FIELDS} parameters.")
    form: dict[str, Any] = {}
    for pair in filter(None, text.split("&")):
        key, _, value = pair.partition("=")
        key = _unquote(key)
        if "[" in key or "]" in key:
            _put(form, key, _unquote(value))
        else:
            form[key] = _unquote(value)
    return form


def _unquote(text: str) -> str:
    # Most texts are plain: urllib's parse_qsl takes three times as long.
    if "%" not in text and "+" not in text:
        return text
    try:
        return unquote_plus(text, errors="strict")
    except UnicodeDecodeError:
        raise Refusal("Request parameters are not UTF-8.") from None


def _put(form: dict[str, Any], key: str, value: str) -> None:
    match = _KEY.fullmatch(key)
    if match is None:
        raise Refusal(f"Invalid parameter name: {key}", param=key)
    *parents, last = [match[1], *_BRACKET.findall(match[2])]
    group: Any = form
    for name in parents:
        group = group.setdefault(name or str(len(group)), {})
        if not isinstance(group, dict):
            raise Refusal(f"Parameter is both a value and a group: {key}", param=key)
    group[last or str(len(group))] = value


def rfc3339(moment: datetime) -> str:
    """*moment* as v2 writes it: ``2026-11-23T00:00:00.000Z``."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
