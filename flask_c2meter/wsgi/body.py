"""A request's body, read before the app and handed on to it.

Imports the standard library only. Only what is asked for is read: most requests keep their input
as the server made it. A large body waits on disk, not in memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from email.message import Message
from hashlib import blake2b
from tempfile import SpooledTemporaryFile
from typing import Any

#: More than this waits on disk.
MEMORY_BYTES = 1 << 20

_CHUNK_BYTES = 1 << 16


class BodyTooLarge(Exception):
    """The body has more bytes than allowed."""


class Body:
    """The body of the request of *environ*, whose ``wsgi.input`` becomes a copy that starts anew.

    :param most_bytes: None = any number.
    :raises BodyTooLarge: it has more.
    """

    def __init__(self, environ: dict[str, Any], most_bytes: int | None) -> None:
        self._type = Message()
        self._type["Content-Type"] = environ.get("CONTENT_TYPE") or "application/octet-stream"
        self._file = _Spool(MEMORY_BYTES)
        size = 0
        for chunk in _received(environ):
            size += len(chunk)
            if most_bytes is not None and size > most_bytes:
                raise BodyTooLarge
            self._file.write(chunk)
        self._file.seek(0)
        environ["wsgi.input"] = self._file

    def json(self) -> object:
        """What it says; None if it is not declared as JSON, or is none."""
        kind = self._type.get_content_type()
        if kind != "application/json" and not (
            kind.startswith("application/") and kind.endswith("+json")
        ):
            return None
        try:
            return json.loads(b"".join(self._chunks()))
        except (ValueError, RecursionError):
            return None

    def digest(self) -> bytes:
        """Of its bytes, but for the boundary of a form: clients draw a new one for each try."""
        digest = blake2b(digest_size=16)
        boundary = self._type.get_boundary()
        chunks = self._chunks()
        for chunk in _without(boundary.encode("utf-8", "replace"), chunks) if boundary else chunks:
            digest.update(chunk)
        return digest.digest()

    def _chunks(self) -> Iterator[bytes]:
        self._file.seek(0)
        try:
            while chunk := self._file.read(_CHUNK_BYTES):
                yield chunk
        finally:
            self._file.seek(0)


class _Spool(SpooledTemporaryFile[bytes]):
    def __del__(self) -> None:
        # The app may keep its input for as long as it likes; nobody else closes it.
        self.close()


def _received(environ: dict[str, Any]) -> Iterator[bytes]:
    """What the client sends, up to the end that the server or ``CONTENT_LENGTH`` says."""
    source = environ["wsgi.input"]
    length = environ.get("CONTENT_LENGTH") or ""
    left = int(length) if length.isdecimal() else 0
    has_end = bool(environ.get("wsgi.input_terminated")) and not left
    while has_end or left:
        chunk = source.read(_CHUNK_BYTES if has_end else min(left, _CHUNK_BYTES))
        if not chunk:
            return
        left -= 0 if has_end else len(chunk)
        yield chunk


def _without(text: bytes, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The bytes of *chunks*, but for each *text* in them."""
    kept = b""
    for chunk in chunks:
        kept = (kept + chunk).replace(text, b"")
        end = max(0, len(kept) - len(text) + 1)
        yield kept[:end]
        kept = kept[end:]
    yield kept
