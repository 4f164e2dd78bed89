"""The app's response on its way out: held back until its usage is durable, then left alone.

PEP 3333 from the middle: the app may call ``start_response`` before it returns, as most do, or
with its first chunk, as generators do, and may ``write``. In each case nothing reaches the server
before the usage is settled, and from then on everything passes as it comes: no chunk is held back,
and what the app returned is handed on itself if it can be (``wsgi.file_wrapper`` and length stay).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from ..drafts import UsageDraft
from ..growth import GrowingStream, is_streamed
from ..headers import Pair, missing
from ..operation import Refusal, method_of
from .call import EnvironCall, Reply

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication

Write = Callable[[bytes], object]
#: The headers to send, given those there are.
Dress = Callable[[list[Pair]], list[Pair]]


class Departure:
    """One response.

    :param dress: adds what every response gets.
    """

    def __init__(
        self, call: EnvironCall, draft: UsageDraft, dress: Dress, start_response: StartResponse
    ) -> None:
        self._call = call
        self._draft = draft
        self._dress = dress
        self._start_response = start_response
        #: What the app has said; None = nothing yet.
        self._said: tuple[str, list[Pair]] | None = None
        self._has_left = False
        #: The server's, which some do not have.
        self._write: Write | None = None
        #: What is sent in the place of the app's body; None = that one.
        self._instead: list[bytes] | None = None

    def of(self, app: WSGIApplication) -> Iterable[bytes]:
        """Run the app; return the body to send."""
        body = app(self._call.environ, self.start_response)
        if self._said is None:
            return _Late(body, self)
        try:
            instead = self.leave(streams=is_streamed(body, self._call.environ))
        except BaseException:
            close(body)
            raise
        if instead is None:
            return self.following(body)
        close(body)
        return instead

    def start_response(self, status: str, headers: list[Pair], exc_info: Any = None) -> Write:
        """What the app calls."""
        if self._instead is not None:
            return _swallow
        if self._has_left:  # too late but for the server, which raises what went wrong
            return self._start_response(status, self._dressed(headers), exc_info)
        if self._said is not None and exc_info is None:
            raise AssertionError("start_response was called twice, without exc_info")
        self._said = (status, list(headers))
        return self._write_early

    def following(self, body: Iterable[bytes]) -> Iterable[bytes]:
        """*body*, with its usage followed if that can grow."""
        growth = self._call.growth
        return body if growth is None else GrowingStream(body, growth)

    def end(self) -> None:
        """Nothing more of the body will be made."""
        if (growth := self._call.growth) is not None:
            growth.end()

    def leave(self, *, streams: bool) -> list[bytes] | None:
        """Settle the usage and let status and headers go, once.

        :param streams: the body is still to be made.
        :return: the body to send instead of the app's, or None.
        """
        if not self._has_left:
            if self._said is None:
                raise AssertionError("the app sent a body without calling start_response")
            status, headers = self._said
            code = int(status[:3])
            reply = Reply(code, headers, self._call.environ)
            refusal = self._call.settle(self._draft, reply, code, is_streamed=streams)
            if refusal is not None:
                status, headers, self._instead = refuse(refusal, self._call.environ)
            self._has_left = True
            self._write = self._start_response(status, self._dressed(headers))
        return self._instead

    def _write_early(self, chunk: bytes) -> object:
        """What ``start_response`` gives to apps that write before they return."""
        if (instead := self.leave(streams=True)) is not None:
            return instead
        assert self._write is not None
        sent = self._write(chunk)
        if self._call.growth is not None:
            self._call.growth.look()
        return sent

    def _dressed(self, headers: list[Pair]) -> list[Pair]:
        headers = list(headers)
        names = {name.lower() for name, _ in headers}
        return self._dress([*headers, *missing(names, self._call.limit_headers())])


class _Late:
    """The body of an app that says its status with the first chunk."""

    def __init__(self, body: Iterable[bytes], departure: Departure) -> None:
        self._body = body
        self._chunks: Iterator[bytes] = iter(body)
        self._departure = departure
        self._has_left = False
        self._is_closed = False

    def __iter__(self) -> _Late:
        return self

    def __next__(self) -> bytes:
        if self._has_left:
            return next(self._chunks)
        # Nothing may be yielded before start_response, not even the empty chunk of an app that
        # has not got that far.
        first = next(filter(None, self._chunks), None)
        self._has_left = True
        if (instead := self._departure.leave(streams=first is not None)) is not None:
            self.close()
            self._chunks = iter(instead)
            return next(self._chunks)
        if first is None:
            raise StopIteration
        self._chunks = iter(self._departure.following(self._chunks))
        return first

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            try:
                close(self._body)
            finally:
                self._departure.end()


def refuse(refusal: Refusal, environ: dict[str, Any]) -> tuple[str, list[Pair], list[bytes]]:
    """Status, headers and body of a refusal."""
    body = json.dumps(refusal.content).encode() + b"\n"
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    status = f"{refusal.status} {HTTPStatus(refusal.status).phrase}"
    is_head = method_of(environ) == "HEAD"
    return status, [*headers, *refusal.headers], [] if is_head else [body]


def close(body: Iterable[bytes]) -> None:
    """Tell the app that nobody reads on."""
    if (end := getattr(body, "close", None)) is not None:
        end()


def _swallow(_: bytes) -> None:
    """Goes nowhere: a refusal is on its way instead."""
