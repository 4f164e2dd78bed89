"""A body read before the app: whole, handed on as it was, and told from others."""

from __future__ import annotations

import gc
import io
from pathlib import Path
from typing import Any

import pytest

from flask_c2meter.wsgi.body import MEMORY_BYTES, Body, BodyTooLarge


class Wire(io.BytesIO):
    """What a plain server hands over: reading past the body would wait for ever."""

    def __init__(self, sent: bytes) -> None:
        super().__init__(sent + b"the next request on this connection")


def environ_of(sent: bytes, kind: str = "", **more: Any) -> dict[str, Any]:
    return {
        "wsgi.input": Wire(sent),
        "CONTENT_LENGTH": str(len(sent)),
        "CONTENT_TYPE": kind,
        **more,
    }


def chunked(sent: bytes) -> dict[str, Any]:
    """As a server hands over a body without a length, whose end it knows."""
    return {"wsgi.input": io.BytesIO(sent), "wsgi.input_terminated": True}


def digest(sent: bytes, kind: str = "") -> bytes:
    return Body(environ_of(sent, kind), None).digest()


@pytest.mark.parametrize("size", [0, 1, MEMORY_BYTES, 3 * MEMORY_BYTES + 7])
@pytest.mark.parametrize("make", [environ_of, chunked])
def test_the_app_reads_all_of_it_again(size: int, make: Any) -> None:
    sent = bytes(range(256)) * (size // 256 + 1)
    environ = make(sent[:size])
    Body(environ, None).digest()
    assert environ["wsgi.input"].read() == sent[:size]
    assert environ["wsgi.input"].read() == b""


def test_the_app_may_read_it_in_lines() -> None:
    environ = environ_of(b"one\ntwo\nthree")
    Body(environ, None)
    source = environ["wsgi.input"]
    assert source.readline() == b"one\n"
    assert source.readlines() == [b"two\n", b"three"]
    source.seek(0)
    assert list(source) == [b"one\n", b"two\n", b"three"]


@pytest.mark.parametrize("length", ["", "nonsense", "-1", None])
def test_without_a_length_or_an_end_there_is_no_body(length: str | None) -> None:
    environ = environ_of(b"never read", CONTENT_LENGTH=length)
    Body(environ, None)
    assert environ["wsgi.input"].read() == b""


def test_a_client_that_hangs_up_leaves_what_it_sent() -> None:
    environ = environ_of(b"")
    environ.update({"wsgi.input": io.BytesIO(b"half"), "CONTENT_LENGTH": "8"})
    Body(environ, None)
    assert environ["wsgi.input"].read() == b"half"


@pytest.mark.parametrize("make", [environ_of, chunked])
def test_one_byte_too_many_is_refused(make: Any) -> None:
    Body(make(b"x" * 10), 10)
    with pytest.raises(BodyTooLarge):
        Body(make(b"x" * 11), 10)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files in /proc")
def test_a_large_one_waits_on_disk_until_nobody_holds_it() -> None:
    gc.collect()
    before = open_files()
    environ = environ_of(b"x" * (MEMORY_BYTES + 1))
    Body(environ, None)
    assert open_files() == before + 1
    del environ
    assert open_files() == before


@pytest.mark.parametrize(
    ("kind", "sent", "says"),
    [
        ("application/json", b'{"a": 1}', {"a": 1}),
        ("application/json; charset=utf-8", b"[]", []),
        ("Application/Problem+JSON", b"{}", {}),
        ("application/json", '{"a": "ü"}'.encode("utf-16"), {"a": "ü"}),
        ("application/json", b"{", None),
        ("application/json", b"", None),
        ("application/json", b"\xff\xfe{}", None),
        ("application/json", b'{"a":' + b"[" * 100_000, None),
        ("application/json", b'{"a":' + b"9" * 10_000 + b"}", None),
        ("text/plain", b"{}", None),
        ("text/json", b"{}", None),
        ("", b"{}", None),
        ("nonsense", b"{}", None),
    ],
)
def test_json_is_what_is_declared_and_can_be_read(kind: str, sent: bytes, says: object) -> None:
    assert Body(environ_of(sent, kind), None).json() == says


def form(boundary: str, content: bytes) -> tuple[bytes, str]:
    edge = boundary.encode()
    head = b'Content-Disposition: form-data; name="image"; filename="a.jpg"'
    sent = b"--" + edge + b"\r\n" + head + b"\r\n\r\n" + content + b"\r\n--" + edge + b"--\r\n"
    return sent, f"multipart/form-data; boundary={boundary}"


@pytest.mark.parametrize("size", [10, 65_400, 65_536, 65_600, 200_000])
def test_a_form_sent_again_with_a_new_boundary_is_the_same(size: int) -> None:
    content = b"image " * (size // 6)
    same = {digest(*form(boundary, content)) for boundary in ("one", "another-of-77", "x" * 70)}
    assert len(same) == 1
    assert digest(*form("one", content + b"!")) not in same


def test_one_byte_makes_another() -> None:
    large = b"x" * 200_000
    assert len({digest(large), digest(large + b"x"), digest(large[:-1] + b"y"), digest(b"")}) == 4
