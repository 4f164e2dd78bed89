"""A small HTTP/1.1 server for one WSGI app, made for tests and loopback.

It keeps connections alive (Werkzeug's development server closes them, which costs a client more
than the request itself), starts a thread per connection and stops at once. An app that raises
``ConnectionError`` has the connection reset (TCP RST) in place of an answer. Imports the standard
library only; knows nothing of Stripe. Not for the open internet: it trusts its clients to be
few and well-meaning.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
import threading
from collections.abc import Iterable
from functools import lru_cache
from http import HTTPStatus
from io import BytesIO
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import unquote_to_bytes

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

MAX_LINE_BYTES = 1 << 16
MAX_HEADERS = 100
#: Longer bodies are cut off here, one byte past what the app accepts.
MAX_BODY_BYTES = (1 << 20) + 1


class BadRequest(Exception):
    """The bytes are no HTTP/1.1 request that this server understands."""


class Server:
    """Serves *app* on *host* and *port* between :meth:`start` and :meth:`stop`.

    :param port: 0 = any free one; kept for the next start, so that nobody else answers there.
    """

    def __init__(self, app: WSGIApplication, host: str, port: int) -> None:
        self._app = app
        self._host = host
        self.port: int = port
        self._family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener: socket.socket | None = None
        #: Has the port while nobody listens.
        self._keeper: socket.socket | None = None
        self._acceptor: threading.Thread | None = None
        self._lock = threading.Lock()
        self._open: dict[threading.Thread, socket.socket] = {}

    @property
    def is_running(self) -> bool:
        """Whether it listens."""
        return self._listener is not None

    def start(self) -> None:
        """Listen and return at once.

        :raises OSError: the port is taken.
        """
        self.release()
        self._listener = socket.create_server(
            (self._host, self.port), family=self._family, backlog=512
        )
        self.port = self._listener.getsockname()[1]
        self._acceptor = threading.Thread(
            target=self._accept, args=(self._listener,), name="stripe-emulator", daemon=True
        )
        self._acceptor.start()

    def stop(self) -> None:
        """Close the listener and all connections; returns when their threads have ended."""
        listener, self._listener = self._listener, None
        if listener is None:
            return
        # A thread blocked in accept() does not notice a close; one last visitor wakes it.
        with contextlib.suppress(OSError):
            socket.create_connection(listener.getsockname()[:2], timeout=1).close()
        if self._acceptor is not None:
            self._acceptor.join(timeout=5)
        listener.close()
        self._keep_port()
        with self._lock:
            still_open = list(self._open.items())
        for thread, connection in still_open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            thread.join(timeout=5)

    def release(self) -> None:
        """Let others have the port of a server that is stopped."""
        if self._keeper is not None:
            self._keeper.close()
            self._keeper = None

    def _keep_port(self) -> None:
        keeper = socket.socket(self._family, socket.SOCK_STREAM)
        keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            keeper.bind((self._host, self.port))
        except OSError:  # somebody was faster
            keeper.close()
        else:
            self._keeper = keeper

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            if self._listener is not listener:
                connection.close()
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            with self._lock:
                self._open[thread] = connection
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        reader = connection.makefile("rb")
        try:
            while self._serve_one(connection, reader):
                pass
        except ConnectionError:
            _arm_reset(connection)
        except OSError:
            pass
        finally:
            with contextlib.suppress(OSError):
                reader.close()
            connection.close()
            with self._lock:
                self._open.pop(threading.current_thread(), None)

    def _serve_one(self, connection: socket.socket, reader: BinaryIO) -> bool:
        """Answer the next request; False when the connection is to be closed."""
        try:
            environ = self._read(connection, reader)
        except BadRequest as bad:
            connection.sendall(_response("400 Bad Request", [], str(bad).encode(), False))
            return False
        if environ is None:
            return False
        body_bytes = int(environ["CONTENT_LENGTH"] or 0)
        keep_alive = _wants_more(environ) and body_bytes < MAX_BODY_BYTES
        connection.sendall(self._call(environ, keep_alive))
        return keep_alive

    def _read(self, connection: socket.socket, reader: BinaryIO) -> WSGIEnvironment | None:
        line = reader.readline(MAX_LINE_BYTES)
        if not line:
            return None
        environ = self._environ(line)
        for _ in range(MAX_HEADERS):
            line = reader.readline(MAX_LINE_BYTES)
            if line in (b"\r\n", b"\n"):
                break
            if not line:
                raise ConnectionAbortedError("the client left in the middle of a request")
            name, colon, value = line.partition(b":")
            if not colon:
                raise BadRequest("malformed header")
            environ[_environ_key(name)] = value.strip().decode("latin-1")
        else:
            raise BadRequest("too many headers")
        environ["wsgi.input"] = BytesIO(_read_body(environ, connection, reader))
        return environ

    def _environ(self, request_line: bytes) -> WSGIEnvironment:
        parts = request_line.decode("latin-1").split()
        if len(parts) != 3 or not parts[2].startswith("HTTP/1."):
            raise BadRequest("malformed request line")
        method, target, protocol = parts
        path, _, query = target.partition("?")
        return {
            "REQUEST_METHOD": method,
            "SCRIPT_NAME": "",
            "PATH_INFO": unquote_to_bytes(path).decode("latin-1") if "%" in path else path,
            "QUERY_STRING": query,
            "SERVER_NAME": self._host,
            "SERVER_PORT": str(self.port),
            "SERVER_PROTOCOL": protocol,
            "CONTENT_LENGTH": "",
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
        }

    def _call(self, environ: WSGIEnvironment, keep_alive: bool) -> bytes:
        started: list[Any] = []

        def start_response(
            status: str, headers: list[tuple[str, str]], exc_info: Any = None
        ) -> Any:
            started[:] = [status, headers]
            return lambda data: None

        body = b"".join(_closing(self._app(environ, start_response)))
        with_body = environ["REQUEST_METHOD"] != "HEAD"
        return _response(started[0], started[1], body, keep_alive, with_body=with_body)


def _closing(result: Iterable[bytes]) -> Iterable[bytes]:
    try:
        yield from result
    finally:
        close = getattr(result, "close", None)
        if close is not None:
            close()


def _read_body(environ: WSGIEnvironment, connection: socket.socket, reader: BinaryIO) -> bytes:
    if "HTTP_TRANSFER_ENCODING" in environ:
        raise BadRequest("send a Content-Length, not a Transfer-Encoding")
    length = environ["CONTENT_LENGTH"]
    if not length:
        return b""
    if not (length.isascii() and length.isdigit()):
        raise BadRequest("malformed Content-Length")
    if environ.get("HTTP_EXPECT", "").lower() == "100-continue":
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    wanted = min(int(length), MAX_BODY_BYTES)
    body = reader.read(wanted)
    if len(body) < wanted:
        raise ConnectionAbortedError("the client left in the middle of a request")
    return body


def _wants_more(environ: WSGIEnvironment) -> bool:
    wish: str = environ.get("HTTP_CONNECTION", "").lower()
    if environ["SERVER_PROTOCOL"] == "HTTP/1.0":
        return wish == "keep-alive"
    return wish != "close"


@lru_cache(maxsize=512)
def _environ_key(name: bytes) -> str:
    key = name.decode("latin-1").upper().replace("-", "_")
    return key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{key}"


def _response(
    status: str,
    headers: list[tuple[str, str]],
    body: bytes,
    keep_alive: bool,
    *,
    with_body: bool = True,
) -> bytes:
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in headers)]
    lines.append(f"Content-Length: {len(body)}")
    lines.append(f"Connection: {'keep-alive' if keep_alive else 'close'}")
    head = "\r\n".join(lines) + "\r\n\r\n"
    return head.encode("latin-1", "replace") + (body if with_body else b"")


def _arm_reset(connection: socket.socket) -> None:
    # Lingering for zero seconds makes close() send RST instead of FIN.
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def status_line(status: int) -> str:
    """*status* with its phrase, as WSGI wants it."""
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"{status} Unknown"
