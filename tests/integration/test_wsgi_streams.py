"""Responses that come in pieces: recorded before the first byte, and never held back after it."""

from __future__ import annotations

import http.client
import io
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server
from wsgiref.util import FileWrapper

import pytest
from werkzeug.test import EnvironBuilder
from wsgi_rig import ALICE, WsgiHost, answering

from flask_c2meter.wsgi import MeterMiddleware

PLAIN = [("Content-Type", "text/plain")]


@pytest.fixture
def host_of(new_wsgi_host: Callable[..., WsgiHost]) -> Callable[[Any], WsgiHost]:
    """A host whose app is not wrapped in a validator, which would hide what it returns."""

    def make(app: Any) -> WsgiHost:
        host = new_wsgi_host()
        host.middleware._app = app
        return host

    return make


class Server:
    """What a WSGI server sees of one request, step by step."""

    def __init__(self, host: WsgiHost, **more: Any) -> None:
        self.host = host
        self.environ = EnvironBuilder("/sign", method="POST", headers=ALICE, **more).get_environ()
        #: ``start``, a chunk or ``close``, each with the number of events by then.
        self.seen: list[tuple[object, int]] = []
        self.headers: dict[str, str] = {}

    def see(self, what: object) -> None:
        self.seen.append((what, len(self.host.events())))

    def start_response(self, status: str, headers: Any, exc_info: Any = None) -> Any:
        if exc_info is not None and self.seen:
            raise exc_info[1].with_traceback(exc_info[2])
        self.headers = dict(headers)
        self.see(status)
        return self.see

    def run(self) -> Any:
        """The body, all of it sent."""
        body = self.host.middleware(self.environ, self.start_response)
        try:
            for chunk in body:
                self.see(chunk)
        finally:
            getattr(body, "close", lambda: None)()
        return body

    def serve(self) -> list[object]:
        """What was sent, in order."""
        self.run()
        return [what for what, _ in self.seen]

    @property
    def recorded(self) -> list[int]:
        """The number of events each time something left."""
        return [number for _, number in self.seen]


class Closing:
    """An iterable of the app's that must be closed."""

    def __init__(self, chunks: Any) -> None:
        self.chunks = iter(chunks)
        self.closed = 0

    def __iter__(self) -> Iterator[bytes]:
        return self.chunks

    def close(self) -> None:
        self.closed += 1


def test_what_the_app_returns_is_handed_on_itself(host_of: Callable[[Any], WsgiHost]) -> None:
    returned = [b"one", b"two"]

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", PLAIN)
        return returned

    server = Server(host_of(app))
    assert server.run() is returned
    assert server.recorded == [1, 1, 1]


def test_so_the_servers_own_way_to_send_a_file_stays(host_of: Callable[[Any], WsgiHost]) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", PLAIN)
        return environ["wsgi.file_wrapper"](io.BytesIO(b"file"))

    server = Server(host_of(app))
    server.environ["wsgi.file_wrapper"] = FileWrapper
    assert isinstance(server.run(), FileWrapper)


def test_a_generator_says_its_status_with_the_first_chunk(
    host_of: Callable[[Any], WsgiHost],
) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        environ["c2meter.usage"].update(manifest_id="late")
        start_response("200 OK", PLAIN)
        yield b""
        yield b"one"
        yield b"two"

    server = Server(host_of(app))
    assert server.serve() == ["200 OK", b"one", b"two"]
    assert server.recorded == [1, 1, 1]
    assert server.host.event().properties == {"manifest_id": "late"}


@pytest.mark.parametrize("chunks", [[], [b""]])
def test_a_generator_without_a_body_is_recorded_too(
    host_of: Callable[[Any], WsgiHost], chunks: list[bytes]
) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", PLAIN)
        yield from chunks

    server = Server(host_of(app))
    assert server.serve() == ["200 OK"]
    assert server.recorded == [1]


def test_an_app_may_write_before_it_returns(host_of: Callable[[Any], WsgiHost]) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        write = start_response("200 OK", PLAIN)
        write(b"one")
        write(b"two")
        return [b"three"]

    server = Server(host_of(app))
    assert server.serve() == ["200 OK", b"one", b"two", b"three"]
    assert server.recorded == [1] * 4


def test_a_server_without_write_hears_of_late_errors_all_the_same(
    host_of: Callable[[Any], WsgiHost],
) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", PLAIN)
        yield b"one"
        start_response("500 Oh", PLAIN, (ValueError, ValueError("late"), None))

    server = Server(host_of(app))
    heard: list[Any] = []

    def start_response(status: str, headers: Any, exc_info: Any = None) -> None:
        heard.append((status, exc_info and str(exc_info[1])))

    assert b"".join(server.host.middleware(server.environ, start_response)) == b"one"
    assert heard == [("200 OK", None), ("500 Oh", "late")]
    assert len(server.host.events()) == 1


def test_close_is_passed_on(host_of: Callable[[Any], WsgiHost]) -> None:
    body = Closing([b"one"])

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", PLAIN)
        return body

    Server(host_of(app)).run()
    assert body.closed == 1


class TestAnAppThatChangesItsMind:
    def test_before_anything_has_left_only_its_last_word_counts(
        self, host_of: Callable[[Any], WsgiHost]
    ) -> None:
        def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
            start_response("200 OK", PLAIN)
            try:
                raise ZeroDivisionError
            except ZeroDivisionError as exc:
                start_response("500 Oh", PLAIN, (type(exc), exc, exc.__traceback__))
            return [b"sorry"]

        server = Server(host_of(app))
        assert server.serve() == ["500 Oh", b"sorry"]
        assert server.host.events() == []

    def test_after_that_the_server_raises_and_the_usage_stays(
        self, host_of: Callable[[Any], WsgiHost]
    ) -> None:
        """As for ``@metered``, whose view has succeeded when its stream begins."""

        def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
            start_response("200 OK", PLAIN)
            yield b"one"
            try:
                raise ZeroDivisionError
            except ZeroDivisionError as exc:
                start_response("500 Oh", PLAIN, (type(exc), exc, exc.__traceback__))

        server = Server(host_of(app))
        with pytest.raises(ZeroDivisionError):
            server.run()
        assert server.seen == [("200 OK", 1), (b"one", 1)]

    def test_one_that_fails_before_its_first_chunk_is_not_billed(
        self, host_of: Callable[[Any], WsgiHost]
    ) -> None:
        def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
            start_response("200 OK", PLAIN)
            raise ZeroDivisionError
            yield b"never"

        server = Server(host_of(app))
        with pytest.raises(ZeroDivisionError):
            server.run()
        assert (server.seen, server.host.events()) == ([], [])

    def test_saying_its_status_twice_is_its_mistake(
        self, host_of: Callable[[Any], WsgiHost]
    ) -> None:
        def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
            start_response("200 OK", PLAIN)
            start_response("201 Created", PLAIN)
            return []

        with pytest.raises(AssertionError, match="twice"):
            Server(host_of(app)).run()

    def test_and_so_is_saying_none(self, host_of: Callable[[Any], WsgiHost]) -> None:
        with pytest.raises(AssertionError, match="without calling start_response"):
            Server(host_of(lambda environ, start_response: [b"one"])).run()


class TestUsageThatCannotBeRecorded:
    """The work is done, but another request with the same key was faster."""

    @pytest.fixture
    def racing(self, host_of: Callable[[Any], WsgiHost]) -> Callable[[Any], Server]:
        def make(respond: Callable[[Any], Any]) -> Server:
            def app(environ: dict[str, Any], start_response: Any) -> Any:
                server.host.metering.record(
                    "sign_operations", "cus_alice", key="key-1", manifest_id="faster"
                )
                return respond(start_response)

            server = Server(host_of(app))
            server.environ["HTTP_IDEMPOTENCY_KEY"] = "key-1"
            return server

        return make

    def check(self, server: Server) -> None:
        sent = server.serve()
        assert sent[0] == "409 Conflict"
        assert b"use a new key" in b"".join(sent[1:])  # type: ignore[arg-type]
        assert len(sent) == 2
        assert len(server.host.events()) == 1

    def test_its_response_is_replaced_and_closed(self, racing: Callable[[Any], Server]) -> None:
        body = Closing([b"secret"])

        def respond(start_response: Any) -> Any:
            start_response("200 OK", PLAIN)
            return body

        self.check(racing(respond))
        assert body.closed == 1

    def test_so_is_a_generator(self, racing: Callable[[Any], Server]) -> None:
        ended: list[bool] = []

        def respond(start_response: Any) -> Iterator[bytes]:
            try:
                start_response("200 OK", PLAIN)
                yield b"secret"
                yield b"more"
            finally:
                ended.append(True)

        self.check(racing(respond))
        assert ended == [True]

    def test_and_what_is_written(self, racing: Callable[[Any], Server]) -> None:
        def respond(start_response: Any) -> Any:
            write = start_response("200 OK", PLAIN)
            write(b"secret")
            start_response("500 Oh", PLAIN, (ValueError, ValueError(), None))(b"more")
            return [b"and more"]

        self.check(racing(respond))


class Quiet(WSGIRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def serving(app: MeterMiddleware) -> Iterator[int]:
    """The port of a real server."""
    server = make_server("127.0.0.1", 0, app, handler_class=Quiet)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("is_generator", [False, True])
def test_the_client_reads_the_first_byte_before_the_last_is_made(
    host_of: Callable[[Any], WsgiHost], is_generator: bool
) -> None:
    first_was_read = threading.Event()

    def chunks() -> Iterator[bytes]:
        yield b"first "
        assert first_was_read.wait(30)
        yield b"last"

    def returning(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", PLAIN)
        return chunks()

    def generating(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", PLAIN)
        yield from chunks()

    host = host_of(generating if is_generator else returning)
    with serving(host.middleware) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("POST", "/sign", headers=ALICE)
        response = connection.getresponse()
        assert response.read(6) == b"first "
        assert len(host.events()) == 1
        first_was_read.set()
        assert response.read() == b"last"
        connection.close()


def test_a_million_chunks_are_never_held_at_once(host_of: Callable[[Any], WsgiHost]) -> None:
    made = sent = ahead = 0

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        nonlocal made
        start_response("200 OK", PLAIN)
        for _ in range(1_000_000):
            made += 1
            yield b"x"

    server = Server(host_of(app))
    for chunk in server.host.middleware(server.environ, server.start_response):
        sent += len(chunk)
        ahead = max(ahead, made - sent)
    assert (sent, ahead) == (1_000_000, 0)


def test_headers_of_an_unmetered_stream_are_added_too(
    host_of: Callable[[Any], WsgiHost],
) -> None:
    server = Server(host_of(answering()))
    server.environ["PATH_INFO"] = "/elsewhere"
    assert server.serve() == ["200 OK", b"done"]
    assert server.headers["X-Content-Type-Options"] == "nosniff"
