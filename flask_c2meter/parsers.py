"""Parsers: a setting's native value or its text becomes the value of its field.

Imports only :mod:`~flask_c2meter.model`, touches no file and no network. Values may be native
(``app.config.from_mapping``) or text, as the environment gives them
(``app.config.from_prefixed_env``): each parser takes both, and raises one of :data:`BAD_VALUE` if
it is neither. :mod:`~flask_c2meter.config` says which key has which.
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Callable, Mapping
from datetime import datetime
from decimal import Decimal
from email.utils import getaddresses
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, cast
from urllib.parse import SplitResult, urlsplit

from .model import Clock

#: Lowest and highest number of minute, hour, day, month and day of the week in a cron line.
_CRON_RANGES = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 6))
_CRON_PART = re.compile(r"(?:\*|([0-9]{1,2})(?:-([0-9]{1,2}))?)(?:/[1-9][0-9]?)?")
# Of what an address may be, all that people have: no quotes, comments or groups.
_ADDRESS = re.compile(r"""[^\s@<>()\[\],;:"\\]+@[^\s@<>()\[\],;:"\\]+""")
_FLAGS = {word: True for word in ("true", "yes", "on", "1")} | {
    word: False for word in ("false", "no", "off", "0")
}
#: What a parser raises; the last two by a clock that cannot be imported.
BAD_VALUE = (ValueError, TypeError, LookupError, ArithmeticError, ImportError, AttributeError)


def signing_key(secret: str) -> bytes:
    """The key in a Standard Webhooks *secret*: base64, with ``whsec_`` before it or without.

    :raises ValueError: it is not of that form. Strictly, because libraries differ in what they
        make of foreign characters.
    """
    text = secret.removeprefix("whsec_")
    key = b64decode(text + "=" * (-len(text) % 4), validate=True)
    if not key:
        raise ValueError
    return key


def mail_address(text: str) -> str:
    """The one e-mail address in *text*, which may have a display name before it.

    :return: with the domain as DNS has it; few mail servers take another.
    :raises ValueError: there is none, or more than one.
    """
    found = getaddresses([text])
    if len(found) != 1 or not _ADDRESS.fullmatch(found[0][1]):
        raise ValueError
    name, _, domain = found[0][1].partition("@")
    if not domain.isascii():
        import idna  # seldom needed, and its tables take a while

        domain = idna.encode(domain, uts46=True).decode()
    return f"{name}@{domain}"


def text(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)  # from_prefixed_env reads digits, of a password say, as a number
    if not isinstance(value, str):
        raise TypeError
    if not value.isprintable():
        raise ValueError
    return value


def optional(value: object) -> str | None:
    return text(value) or None


def secret_key(value: object) -> str:
    key = text(value)
    if key and not re.fullmatch(r"(sk|rk)_[!-~]+", key):
        raise ValueError
    return key


def one_of(*words: str) -> Callable[[object], str]:
    def parse(value: object) -> str:
        if not isinstance(value, str) or value not in words:
            raise ValueError
        return value

    return parse


def flag(value: object) -> bool:
    return _FLAGS[str(value).lower()]


def whole(low: int, high: int) -> Callable[[object], int]:
    def parse(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise TypeError
        number = int(value)
        if not low <= number <= high:
            raise ValueError
        return number

    return parse


def between(low: float, high: float) -> Callable[[object], float]:
    def parse(value: object) -> float:
        found = float(number(value))
        if not low <= found <= high:
            raise ValueError
        return found

    return parse


def exact_between(low: int, high: int) -> Callable[[object], Decimal]:
    def parse(value: object) -> Decimal:
        found = number(value)
        if not low <= found <= high:
            raise ValueError
        return found

    return parse


def number(value: object) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal | str):
        raise TypeError
    found = Decimal(str(value))  # by way of text, so that the float 0.8 is 0.8
    if not found.is_finite():
        raise ValueError
    return found


def thresholds(value: object) -> tuple[Decimal, ...]:
    levels = tuple(number(item) for item in items(value))
    if len(levels) != 3 or not 0 < levels[0] < levels[1] < levels[2]:
        raise ValueError
    return levels


def texts(value: object) -> tuple[str, ...]:
    return tuple(text(item) for item in items(value))


def items(value: object) -> list[object]:
    if isinstance(value, str):
        return [item for part in value.split(",") if (item := part.strip())]
    if not isinstance(value, list | tuple):
        raise TypeError
    return list(value)


def origins_of_urls(value: object) -> tuple[str, ...]:
    """Of a variable of the host's own, where a path is right, but no part of an origin."""
    return tuple(f"{page.scheme}://{page.netloc}" for page in _pages(value))


def first_url(value: object) -> str | None:
    """The first of a variable of the host's own that may have several."""
    found = [f"{page.scheme}://{page.netloc}{page.path.rstrip('/')}" for page in _pages(value)]
    return next(iter(found), None)


def _pages(value: object) -> list[SplitResult]:
    pages = [urlsplit(item) for item in texts(value)]
    if not all(page.scheme in ("http", "https") and page.hostname for page in pages):
        raise ValueError
    return pages


def url(*schemes: str) -> Callable[[object], str | None]:
    def parse(value: object) -> str | None:
        written = text(value)
        parts = urlsplit(written)
        is_plain = " " not in written and parts.username is None and parts.port != 0
        if written and not (parts.scheme in schemes and parts.hostname and is_plain):
            raise ValueError
        return written or None

    return parse


def signing_secret(value: object) -> str | None:
    written = text(value)
    if written:
        signing_key(written)
    return written or None


def mailbox(value: object) -> str | None:
    written = text(value)
    if written:
        mail_address(written)
    return written or None


def base_url(value: object) -> str | None:
    written = url("https", "http")(value)
    if written and {"?", "#"} & set(written):
        raise ValueError
    return written and written.rstrip("/")


def database_url(value: object) -> str:
    written = text(value)
    if "://" not in written:
        raise ValueError
    return written


def path(value: object) -> Path:
    if not isinstance(value, str | Path):
        raise TypeError
    if not str(value):
        raise ValueError
    return Path(text(str(value)))


def catalogue(value: object) -> Path | Mapping[str, Any] | None:
    if isinstance(value, Mapping):
        return value
    return None if value == "" else path(value)


def headers(value: object) -> str | Mapping[str, str]:
    if not isinstance(value, Mapping):
        return one_of("standard", "strict", "off")(value)
    if not all(isinstance(item, str) for pair in value.items() for item in pair):
        raise TypeError
    return dict(value)


def cron(value: object) -> str:
    written = text(value)
    for part, (low, high) in zip(written.split(), _CRON_RANGES, strict=True):
        for item in part.split(","):
            match = _CRON_PART.fullmatch(item)
            numbers = [int(number) for number in match.groups() if number] if match else [-1]
            if numbers != sorted(numbers) or not all(low <= number <= high for number in numbers):
                raise ValueError
    return written


def clock(value: object) -> Clock:
    found = resolve_name(value) if isinstance(value, str) else value
    if not callable(found):
        raise TypeError
    now = found()
    if not isinstance(now, datetime) or now.tzinfo is None:
        raise ValueError
    return cast(Clock, found)
