"""Which line of a table of methods and paths a request belongs to.

Pure: text in, whatever the line stands for out. The promise: of several lines that fit, the most
specific one counts, and no two lines are equally specific.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Generic, NamedTuple, TypeVar

from ..errors import ConfigError

T = TypeVar("T")

_METHOD = re.compile(r"[A-Z]+(?:-[A-Z]+)*|\*")
#: As Flask and Django write it, with a converter or without, or as Falcon and OpenAPI do. Whether
#: the text suits the converter is for the app to say.
_PLACEHOLDER = re.compile(r"<(?:(?!path:)\w+(?:\([^()]*\))?:)?\w+>|\{\w+(?::\w+)?\}")

#: How specific a segment is; less is more.
_LITERAL, _ANY, _REST = range(3)


class _Line(NamedTuple, Generic[T]):
    method: str
    path: re.Pattern[str]
    entry: T


class PathTable(Generic[T]):
    """Lines such as ``"POST /verify"``, ``"GET /sites/<id>"`` and ``"* /api/*"``.

    ``<name>`` (or ``<int:name>``, ``{name}``) stands for one segment, ``*`` at the end for
    everything below and what is before it; the method ``*`` for every method, and ``"*"`` alone for
    every request. ``GET`` includes ``HEAD``, and a slash at the end makes no difference. Segment by
    segment a text beats a ``<name>``, which beats ``*``; then a method beats ``*``.

    :param lines: line -> what it stands for.
    :raises ConfigError: (a ``ValueError``) a line cannot be read, or two of them fit the same.
    """

    def __init__(self, lines: Mapping[str, T]) -> None:
        known: dict[tuple[str, tuple[tuple[int, str], ...]], str] = {}
        ranked: list[tuple[tuple[list[int], bool], _Line[T]]] = []
        for line, entry in lines.items():
            method, segments = _read(line)
            if (twin := known.setdefault((method, segments), line)) is not line:
                raise ConfigError(f"the lines {twin!r} and {line!r} fit the same: remove one")
            rank = [kind for kind, _ in segments]
            ranked.append(((rank, method == "*"), _Line(method, _compiled(segments), entry)))
        ranked.sort(key=lambda item: item[0])
        self._lines = [line for _, line in ranked]

    def find(self, method: str, path: str) -> T | None:
        """What the most specific line that fits stands for; None if none does.

        :param path: decoded, as from ``PATH_INFO``.
        """
        methods = ("HEAD", "GET", "*") if method == "HEAD" else (method, "*")
        for line in self._lines:
            if line.method in methods and line.path.fullmatch(path):
                return line.entry
        return None


def _read(line: object) -> tuple[str, tuple[tuple[int, str], ...]]:
    """The method, and for each segment of the path its kind and text."""
    method, _, path = line.partition(" ") if isinstance(line, str) else ("", "", "")
    method, path = method.upper(), path.strip()
    if path == "*" or line == "*":
        path = "/*"
    if not _METHOD.fullmatch(method) or not path.startswith("/") or "?" in path:
        raise ConfigError(
            f"the line {line!r} cannot be read: write a method and a path, such as 'POST /verify', "
            "'GET /sites/<id>' or '* /api/*'"
        )
    if method in ("HEAD", "OPTIONS"):
        raise ConfigError(f"the line {line!r} would never bill: GET includes HEAD; remove it")
    texts = path.removesuffix("/").split("/")[1:]
    kinds = [_kind(text, is_last=number == len(texts)) for number, text in enumerate(texts, 1)]
    if None in kinds:
        raise ConfigError(
            f"the path of the line {line!r} cannot be read: a segment is text, or <name> for any "
            "text; * stands at the end only, for everything below"
        )
    # Names of placeholders make no difference.
    read = zip(kinds, texts, strict=True)
    return method, tuple(
        (kind, text if kind == _LITERAL else "") for kind, text in read if kind is not None
    )


def _kind(text: str, *, is_last: bool) -> int | None:
    if text == "*" and is_last:
        return _REST
    if _PLACEHOLDER.fullmatch(text):
        return _ANY
    return None if not text or set(text) & set("<>{}*") else _LITERAL


def _compiled(segments: tuple[tuple[int, str], ...]) -> re.Pattern[str]:
    parts = {_ANY: "/[^/]+", _REST: "(?:/.*)?"}
    path = "".join(parts.get(kind) or "/" + re.escape(text) for kind, text in segments)
    return re.compile(f"{path}/?", re.DOTALL)
