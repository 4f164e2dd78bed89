"""Where a webhook goes, from a URL that leaves no doubt about it.

Pure: imports :mod:`~flask_c2meter.errors` and the table of addresses. The promise: what is not
plainly an https URL of a host on the public network fails at start, without being shown, as it may
be a secret; a name is judged again, by all its addresses, each time it is resolved.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import urlsplit

from ..errors import ConfigError
from .addresses import is_loopback, is_public

_PORTS = {"https": 443, "http": 80}
_NAME_OR_ADDRESS = re.compile(r"[a-z0-9._-]+|[0-9a-f:.]+")


@dataclass(frozen=True, slots=True)
class Target:
    """The parts of a webhook's URL that a request needs."""

    is_encrypted: bool
    #: Name or address without brackets, lower case.
    host: str
    port: int
    #: As the URL has it: for the ``Host`` header.
    authority: str
    #: With the query.
    path: str = field(repr=False)
    allow_loopback: bool

    @classmethod
    def of(cls, url: str, allow_loopback: bool) -> Self:
        """The target that *url* names.

        :param allow_loopback: lets ``http`` and this machine's addresses pass too.
        :raises ConfigError: *url* is not plain, or its address is not public.
        """
        schemes = ("https", "http") if allow_loopback else ("https",)
        target = cls._read(url, schemes, allow_loopback)
        if target is None:
            raise _bad_url(
                f"write {schemes[-1]}://, a host name in ASCII and a path, without user name or "
                "spaces"
            )
        if not target._may_be_reached():
            raise _bad_url("its address is not public; write that of a host on the internet")
        return target

    @classmethod
    def _read(cls, url: str, schemes: tuple[str, ...], allow_loopback: bool) -> Self | None:
        if not re.fullmatch(r"[!-~]+", url):  # urlsplit would drop some of what is not
            return None
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError:
            return None
        is_plain = port != 0 and "@" not in parts.netloc and _NAME_OR_ADDRESS.fullmatch(host)
        if parts.scheme not in schemes or not is_plain:
            return None
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        is_encrypted, port = parts.scheme == "https", port or _PORTS[parts.scheme]
        return cls(is_encrypted, host, port, parts.netloc, path, allow_loopback)

    def admits(self, address: str) -> bool:
        """True if the webhook may be sent to *address*."""
        return is_public(address) or (self.allow_loopback and is_loopback(address))

    def _may_be_reached(self) -> bool:
        try:
            return self.admits(self.host)
        except ValueError:  # a name
            return True


def _bad_url(cure: str) -> ConfigError:
    return ConfigError(f"C2METER_ALERT_WEBHOOK_URL (a secret, not shown) is wrong: {cure}")
