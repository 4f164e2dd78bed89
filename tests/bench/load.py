"""A load generator: keep-alive connections in a closed loop, for a fixed time, in one thread."""

from __future__ import annotations

import selectors
import socket
import time
from itertools import cycle

from .apps import CUSTOMERS
from .measure import PROCESSES


def requests_per_second(port: int, seconds: float, connections: int) -> float:
    """POST /verify to localhost for *seconds*, from a process of its own.

    :raises RuntimeError: an answer was not 200.
    """
    with PROCESSES.Pool(1) as pool:
        return pool.apply(_drive, (port, seconds, connections))


def _drive(port: int, seconds: float, connections: int) -> float:
    requests = cycle(
        [
            f"POST /verify HTTP/1.1\r\nHost: localhost\r\nAuthorization: {key}\r\n"
            "Content-Length: 0\r\n\r\n".encode()
            for key in CUSTOMERS
        ]
    )
    selector = selectors.DefaultSelector()
    for _ in range(connections):
        connection = socket.create_connection(("127.0.0.1", port), timeout=10)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(next(requests))
        selector.register(connection, selectors.EVENT_READ, bytearray())
    answered = 0
    started = time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        for key, _ in selector.select(1.0):
            received: bytearray = key.data
            data = key.fileobj.recv(65_536)  # type: ignore[union-attr]
            if not data:
                raise RuntimeError("the server has closed a connection")
            received += data
            if _is_complete(received):
                received.clear()
                answered += 1
                key.fileobj.sendall(next(requests))  # type: ignore[union-attr]
    for key in list(selector.get_map().values()):
        key.fileobj.close()  # type: ignore[union-attr]
    return answered / elapsed


def _is_complete(received: bytearray) -> bool:
    head, end, body = received.partition(b"\r\n\r\n")
    if not end:
        return False
    if not head.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(f"not answered: {head[:200]!r}")
    length = head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]
    return len(body) >= int(length)
