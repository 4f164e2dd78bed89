"""One HTTP exchange under one deadline: what lies between the Stripe SDK and a socket.

Imports urllib3 and nothing of this package, so import it where something is sent. It keeps two
promises: an exchange ends by its deadline, however slowly the server talks, and a failed one says
whether any byte of the request can have left. Proxies of the environment are not looked up and
redirects are not followed.

Resolving a host name is the one step without a timeout: it is the operating system's.
"""

from __future__ import annotations

import http.client
import io
import socket
import ssl
import threading
import time
from collections.abc import Mapping, MutableMapping
from typing import Any

from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, Timeout, exceptions
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.util import Url, parse_url

#: Longest answer that is read, in bytes; of a longer one only the status counts.
MAX_ANSWER_BYTES = 1024 * 1024

#: Connections kept for reuse, per host.
POOL_SIZE = 64

#: What went wrong, most specific first: the classes derive from each other.
_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (exceptions.NameResolutionError, "dns"),
    (exceptions.NewConnectionError, "no_connection"),
    (exceptions.SSLError, "tls"),
    (ssl.SSLError, "tls"),
    (exceptions.TimeoutError, "timeout"),
    (TimeoutError, "timeout"),
)


class Unreachable(OSError):
    """No complete answer arrived.

    :param reason: ``dns``, ``no_connection``, ``tls``, ``timeout`` or ``reset``.
    :param sent: True if the server may have read some of the request.
    """

    def __init__(self, reason: str, sent: bool) -> None:
        self.reason = reason
        self.sent = sent
        super().__init__(reason)


class _Exchange:
    """The exchange a thread is busy with; its connections and sockets look here."""

    def __init__(self) -> None:
        self._mine = threading.local()

    def begin(self, deadline_s: float) -> None:
        self._mine.until = time.monotonic() + deadline_s
        self._mine.sent = False

    @property
    def sent(self) -> bool:
        sent: bool = self._mine.sent
        return sent

    def note_sent(self) -> None:
        self._mine.sent = True

    def left_s(self) -> float:
        left_s: float = self._mine.until - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("the deadline has passed")
        return left_s

    def limit(self, sock: socket.socket) -> None:
        """Let the next operation of *sock* take what is left, to half a second.

        Setting a timeout releases the interpreter, which beside busy threads costs more than the
        operation itself: so it is set again only when it has become too long.
        """
        left_s = self.left_s()
        set_s = sock.gettimeout()
        if set_s is None or not left_s <= set_s <= left_s + 0.5:
            sock.settimeout(left_s)


class _Reader(io.RawIOBase):
    """The receiving side of a socket, cut off at the deadline.

    A socket's own timeout starts anew with every read: a server that sends a byte a second would
    never meet it.
    """

    def __init__(self, sock: socket.socket, exchange: _Exchange) -> None:
        self._sock = sock
        self._raw: Any = sock.makefile("rb", buffering=0)
        self._exchange = exchange

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._exchange.limit(self._sock)
        count: int | None = self._raw.readinto(buffer)
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Socket:
    """A connected socket that obeys the exchange's deadline and notes that something was sent."""

    def __init__(self, sock: socket.socket, exchange: _Exchange) -> None:
        self._sock = sock
        self._exchange = exchange

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def sendall(self, data: bytes) -> None:
        self._exchange.limit(self._sock)
        self._exchange.note_sent()
        self._sock.sendall(data)

    def makefile(self, mode: str, *_: object) -> io.BufferedReader:
        return io.BufferedReader(_Reader(self._sock, self._exchange))


class _Timed(HTTPConnection):
    """Connects and speaks within the exchange's deadline."""

    def __init__(self, *args: Any, exchange: _Exchange, **kwargs: Any) -> None:
        self._exchange = exchange
        super().__init__(*args, **kwargs)

    def connect(self) -> None:
        super().connect()
        self.sock: Any = _Socket(self.sock, self._exchange)

    def _new_conn(self) -> socket.socket:
        # urllib3's own gives every address of a host the whole timeout, whatever they add up to.
        try:
            addresses = socket.getaddrinfo(self._dns_host, self.port, type=socket.SOCK_STREAM)
        except socket.gaierror as exc:
            raise exceptions.NameResolutionError(self.host, self, exc) from exc
        except UnicodeError as exc:
            raise exceptions.LocationParseError(self.host) from exc
        failure = OSError("the host has no address")
        for family, kind, protocol, _, address in addresses:
            try:
                return self._dial(socket.socket(family, kind, protocol), address)
            except OSError as exc:
                failure = exc
        raise exceptions.NewConnectionError(self, str(failure)) from failure

    def _dial(self, sock: socket.socket, address: Any) -> socket.socket:
        try:
            sock.settimeout(self._patience_s())
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.connect(address)
            # What is left of it is for the TLS handshake.
            sock.settimeout(self._patience_s())
        except BaseException:
            sock.close()
            raise
        return sock

    def _patience_s(self) -> float:
        left_s = self._exchange.left_s()
        return min(self.timeout or left_s, left_s)


class _TimedTls(_Timed, HTTPSConnection):
    """The same with TLS."""


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Timed


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _TimedTls


class HttpClient:
    """What the Stripe SDK calls to speak HTTP; threads may share it, processes may not.

    :param deadline_s: longest time for one exchange in all.
    :param connect_timeout_s: longest time to reach one address of the host.
    :param ca_bundle: file with the certificates to trust.
    """

    def __init__(self, *, deadline_s: float, connect_timeout_s: float, ca_bundle: str) -> None:
        self._deadline_s = deadline_s
        self._timeout = Timeout(connect=connect_timeout_s, read=deadline_s)
        self._ca_bundle = ca_bundle
        self._exchange = _Exchange()
        self._pools: dict[str, HTTPConnectionPool] = {}

    def request(
        self, method: str, url: str, headers: Mapping[str, str], post_data: str | None = None
    ) -> tuple[bytes, int, MutableMapping[str, str]]:
        """Make one request, once.

        :return: body, status and headers of the answer.
        :raises Unreachable: there was none.
        """
        scheme, _, rest = url.partition("://")
        host, _, path = rest.partition("/")
        self._exchange.begin(self._deadline_s)
        try:
            response = self._pool(f"{scheme}://{host}").urlopen(
                method.upper(),
                f"/{path}",
                body=post_data,
                headers=headers,
                retries=False,
                redirect=False,
                timeout=self._timeout,
                preload_content=False,
            )
            return _read(response), response.status, response.headers
        except (exceptions.HTTPError, http.client.HTTPException, OSError) as exc:
            raise Unreachable(_reason(exc), self._exchange.sent) from exc

    def _pool(self, origin: str) -> HTTPConnectionPool:
        pool = self._pools.get(origin)
        return pool or self._pools.setdefault(origin, self._new_pool(parse_url(origin)))

    def _new_pool(self, url: Url) -> HTTPConnectionPool:
        if url.host is None or url.scheme not in ("http", "https"):
            raise exceptions.LocationParseError(str(url))
        options: dict[str, Any] = {"maxsize": POOL_SIZE, "exchange": self._exchange}
        if url.scheme == "http":
            return _Pool(url.host, url.port, **options)
        # One context for all connections: reading the certificates takes 10 ms.
        options["ssl_context"] = ssl.create_default_context(cafile=self._ca_bundle)
        return _TlsPool(url.host, url.port, **options)


def _read(response: Any) -> bytes:
    body: bytes = response.read(MAX_ANSWER_BYTES + 1, decode_content=False)
    if len(body) > MAX_ANSWER_BYTES:
        response.close()
        return b""
    response.release_conn()
    return body


def _reason(exc: Exception) -> str:
    return next((reason for kind, reason in _REASONS if isinstance(exc, kind)), "reset")
