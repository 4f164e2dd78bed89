"""One exchange with another host, under one deadline, over an address that was looked at first.

Imports nothing of this package. It keeps two promises. The exchange ends by its deadline, whatever
it is busy with: timeouts of sockets start anew with every read, libraries wrap and replace the
socket, and resolving a name has no timeout at all. So it runs on a thread of its own, and the
connection is cut from outside. And it is made to an address that was admitted: the name is resolved
once, and not again by whoever speaks.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

_T = TypeVar("_T")

#: An address family, and the address in it as :mod:`socket` has it.
Address = tuple[int, tuple[Any, ...]]

#: Host name and port -> its addresses; an :class:`OSError` if there are none.
Resolver = Callable[[str, int], Sequence[Address]]


class ForbiddenAddress(OSError):
    """The host has an address that must not be spoken to."""


#: What went wrong, most specific first: the classes derive from each other.
_REASONS: tuple[tuple[type[OSError], str], ...] = (
    (ForbiddenAddress, "forbidden_address"),
    (socket.gaierror, "dns"),
    (ssl.SSLError, "tls"),
    (TimeoutError, "timeout"),
    (ConnectionRefusedError, "no_connection"),
    (ConnectionError, "disconnected"),
)


def reason_of(failure: OSError) -> str:
    """One machine-readable word for what an exchange failed of."""
    return next((word for kind, word in _REASONS if isinstance(failure, kind)), "no_connection")


def resolve(host: str, port: int) -> Sequence[Address]:
    """The :data:`Resolver` of the operating system."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError:
        raise socket.gaierror(socket.EAI_NONAME, "not a host name") from None
    return [(family, address) for family, _, _, _, address in found]


class _Gone(Exception):
    """Nobody waits for the exchange any more."""


class _Line:
    """The connection of one exchange, which can be cut at any moment."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_cut = False
        self._handle: socket.socket | None = None

    def hold(self, sock: socket.socket) -> None:
        with self._lock:
            if self._is_cut:
                raise _Gone
            # A handle of our own: TLS takes the socket over and leaves an empty one behind.
            self._handle = sock.dup()

    def cut(self) -> None:
        with self._lock:
            self._is_cut = True
            if self._handle is not None:
                with suppress(OSError):
                    self._handle.shutdown(socket.SHUT_RDWR)
                self._handle.close()


@dataclass(frozen=True, slots=True)
class Dialler:
    """Makes connections, and bounds what is spoken over them."""

    #: Longest time for one exchange in all, and to reach one address of the host.
    deadline_s: float = 10.0
    connect_timeout_s: float = 5.0
    resolve: Resolver = resolve

    def call(
        self,
        host: str,
        port: int,
        talk: Callable[[socket.socket], _T],
        *,
        admits: Callable[[str], bool] = lambda address: True,
    ) -> _T:
        """What *talk* returns, given a connection to *host*, within the deadline.

        :param talk: runs on another thread; the connection is closed for it.
        :param admits: tells whether an address may be spoken to; all the host has must pass.
        :raises OSError: see :func:`reason_of`. Also whatever *talk* raises.
        """
        line = _Line()
        result: Future[_T] = Future()

        def run() -> None:
            try:
                with self._connect(host, port, line, admits) as sock:
                    result.set_result(talk(sock))
            except BaseException as exc:
                result.set_exception(exc)

        threading.Thread(target=run, name="c2meter-channel", daemon=True).start()
        try:
            return result.result(self.deadline_s)
        finally:
            line.cut()

    def _connect(
        self, host: str, port: int, line: _Line, admits: Callable[[str], bool]
    ) -> socket.socket:
        addresses = self.resolve(host, port)
        if not all(admits(address[0]) for _, address in addresses):
            raise ForbiddenAddress
        failure = OSError("the host has no address")
        for family, address in addresses:
            try:
                return self._dial(family, address, line)
            except OSError as exc:
                failure = exc
        raise failure

    def _dial(self, family: int, address: tuple[Any, ...], line: _Line) -> socket.socket:
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.settimeout(self.connect_timeout_s)
            sock.connect(address)
            # Only so that no thread outlives its caller for long, should cutting not wake it.
            sock.settimeout(2 * self.deadline_s)
            line.hold(sock)
        except BaseException:
            sock.close()
            raise
        return sock
