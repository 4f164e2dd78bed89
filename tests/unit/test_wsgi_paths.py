"""Lines of methods and paths: what fits, which counts, and what is refused when it is written."""

from __future__ import annotations

from typing import Any

import pytest

from flask_c2meter.errors import ConfigError
from flask_c2meter.wsgi.paths import PathTable


def found(line: str, method: str, path: str) -> bool:
    return PathTable({line: "it"}).find(method, path) == "it"


@pytest.mark.parametrize(
    ("line", "method", "path"),
    [
        ("POST /verify", "POST", "/verify"),
        ("post   /verify", "POST", "/verify"),
        ("POST /verify", "POST", "/verify/"),
        ("POST /verify/", "POST", "/verify"),
        ("GET /", "GET", "/"),
        ("GET /sites/<id>", "GET", "/sites/a.example"),
        ("GET /sites/<id>/pages", "GET", "/sites/Zürich/pages"),
        ("* /api/*", "DELETE", "/api/a/b/c"),
        ("* /api/*", "POST", "/api/"),
        ("* /api/*", "POST", "/api"),
        ("* /*", "PATCH", "/"),
        ("* *", "PATCH", "/a/b"),
        ("*", "PATCH", "/a/b"),
        ("GET *", "GET", "/a/b"),
        ("GET /sites/<int:id>", "GET", "/sites/7"),
        ("GET /sites/<any(a,b):id>", "GET", "/sites/a"),
        ("GET /sites/{id}/pages", "GET", "/sites/7/pages"),
        ("GET /sites/{id:int}", "GET", "/sites/7"),
        ("* /*", "PATCH", "/a\nb"),
        ("GET /a.b", "GET", "/a.b"),
        ("M-SEARCH /x", "M-SEARCH", "/x"),
        ("GET /head", "HEAD", "/head"),
    ],
)
def test_what_fits(line: str, method: str, path: str) -> None:
    assert found(line, method, path)


@pytest.mark.parametrize(
    ("line", "method", "path"),
    [
        ("POST /verify", "GET", "/verify"),
        ("POST /verify", "HEAD", "/verify"),
        ("POST /verify", "POST", "/verify/1"),
        ("POST /verify", "POST", "/Verify"),
        ("POST /verify", "POST", "/verify//"),
        ("GET /sites/<id>", "GET", "/sites/"),
        ("GET /sites/<id>", "GET", "/sites/a/b"),
        ("* /api/*", "GET", "/apis"),
        ("GET /a.b", "GET", "/aXb"),
        ("GET /", "GET", "/x"),
    ],
)
def test_what_does_not(line: str, method: str, path: str) -> None:
    assert not found(line, method, path)


@pytest.mark.parametrize(
    ("method", "path", "line"),
    [
        ("POST", "/api/verify", "POST /api/verify"),
        ("GET", "/api/verify", "* /api/verify"),
        ("GET", "/api/sites/new", "GET /api/sites/new"),
        ("GET", "/api/sites/7", "GET /api/sites/<id>"),
        ("PUT", "/api/sites/7", "* /api/<kind>/<id>"),
        ("GET", "/api/users/7", "* /api/<kind>/<id>"),
        ("GET", "/api/sites/7/pages", "* /api/*"),
        ("GET", "/elsewhere", "* /*"),
    ],
)
@pytest.mark.parametrize("is_reversed", [False, True])
def test_the_most_specific_line_counts_whatever_their_order(
    method: str, path: str, line: str, is_reversed: bool
) -> None:
    lines = [
        "* /*",
        "* /api/*",
        "* /api/<kind>/<id>",
        "GET /api/sites/<id>",
        "GET /api/sites/new",
        "* /api/verify",
        "POST /api/verify",
    ]
    if is_reversed:
        lines.reverse()
    assert PathTable({each: each for each in lines}).find(method, path) == line


@pytest.mark.parametrize(
    "lines",
    [
        ("GET /sites/<id>", "GET /sites/<domain>"),
        ("GET /sites/<id>", "GET /sites/{id}"),
        ("*", "* /*"),
        ("POST /verify", "post /verify"),
        ("POST /verify", "POST /verify/"),
    ],
)
def test_two_lines_that_fit_the_same_are_both_named(lines: tuple[str, str]) -> None:
    with pytest.raises(ConfigError, match="remove one") as caught:
        PathTable(dict.fromkeys(lines, ""))
    assert all(repr(line) in str(caught.value) for line in lines)


@pytest.mark.parametrize(
    ("line", "cure"),
    [
        ("/verify", "write a method and a path"),
        ("POST", "write a method and a path"),
        ("POST verify", "write a method and a path"),
        ("POST /verify?deep=1", "write a method and a path"),
        ("", "write a method and a path"),
        (7, "write a method and a path"),
        ("GET|POST /verify", "write a method and a path"),
        ("GET /files/<path:rest>", "at the end only"),
        ("GET /sites/<id", "<name>"),
        ("GET /sites/id-<id>", "<name>"),
        ("GET /*/pages", "at the end only"),
        ("GET /a*", "at the end only"),
        ("GET //a", "a segment is text"),
        ("HEAD /verify", "GET includes HEAD"),
        ("OPTIONS /verify", "never bill"),
    ],
)
def test_a_line_that_cannot_be_read_is_shown_with_its_cure(line: Any, cure: str) -> None:
    with pytest.raises(ConfigError) as caught:
        PathTable({line: ""})
    assert cure in str(caught.value)
    assert repr(line) in str(caught.value)
