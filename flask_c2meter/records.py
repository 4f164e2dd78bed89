"""Reading files of records, JSON Lines or CSV, line by line.

Pure; imports :mod:`~flask_c2meter.nesting` only. However long a file is, one line of it is in
memory, and each record knows the number of its line. A bad line is a record with a problem, not the
end.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from io import TextIOWrapper
from itertools import chain
from typing import IO, Any, NamedTuple, NoReturn, TextIO

from .nesting import MAX_DEPTH, is_too_deep

#: Longest line that is read, in characters.
MAX_LINE = 1 << 20

#: What is wrong with JSON that is.
TOO_DEEP = f"is nested deeper than {MAX_DEPTH} levels"


def text_of(file: IO[bytes]) -> TextIOWrapper:
    """*file* as :func:`read` wants it.

    What is not UTF-8 becomes lone surrogates, which are refused wherever text is checked.
    """
    return TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")


class Record(NamedTuple):
    """One record of a file."""

    #: Of its first line, from 1.
    line: int
    fields: dict[str, Any]
    #: Why it could not be read; None = it could.
    problem: str | None = None
    #: Whether the fields are cells of a CSV, all of them text.
    is_csv: bool = False


def read(file: TextIO) -> Iterator[Record]:
    """The records of *file*: JSON Lines if its first character is ``{``, else CSV with a header.

    In JSON numbers with a point are ``Decimal``; in CSV everything is text and an empty cell is
    left out. Empty lines are skipped.
    """
    lines = _lines(file)
    first = next(lines, "")
    lines = chain([first], lines)
    return _json_lines(lines) if first.lstrip().startswith("{") else _csv(lines)


def _lines(file: TextIO) -> Iterator[str]:
    while line := file.readline(MAX_LINE):
        yield line
        while len(line) == MAX_LINE and not line.endswith("\n"):
            line = file.readline(MAX_LINE)


def _is_cut(line: str) -> bool:
    return len(line) == MAX_LINE and not line.endswith("\n")


_TOO_LONG = f"is longer than {MAX_LINE:,} characters"


def _json_lines(lines: Iterator[str]) -> Iterator[Record]:
    for number, line in enumerate(lines, start=1):
        if _is_cut(line):
            yield Record(number, {}, _TOO_LONG)
        elif line.strip():
            yield _json_record(number, line)


def _json_record(number: int, line: str) -> Record:
    try:
        fields = json.loads(
            line, parse_float=Decimal, parse_constant=_refuse, object_pairs_hook=_each_once
        )
    except (ValueError, ArithmeticError, RecursionError) as exc:
        # json's own words: what is wrong, and in which column.
        return Record(number, {}, f"is no JSON: {exc}"[:200])
    if not isinstance(fields, dict):
        return Record(number, {}, "is no JSON object")
    if is_too_deep(fields):
        return Record(number, {}, TOO_DEEP)
    return Record(number, fields)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError(f"{_twice([name for name, _ in pairs])!r} is in it twice")
    return fields


def _twice(names: list[str]) -> str | None:
    """One of *names* that is there again: which of the two is meant, nobody can tell."""
    return next((name for name, times in Counter(names).items() if times > 1), None)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number")


def _csv(lines: Iterator[str]) -> Iterator[Record]:
    rows = csv.reader(lines, strict=True)
    names: list[str] | None = None
    twice: str | None = None
    number = 1
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as exc:
            yield Record(number, {}, f"is no CSV: {exc}")
            number = rows.line_num + 1
            continue
        line, number = number, rows.line_num + 1
        if not row:
            continue
        if names is None:
            names, twice = row, _twice(row)
        elif twice is not None:
            yield Record(line, {}, f"has two cells for {twice!r}: its header names it twice")
        elif len(row) != len(names):
            yield Record(line, {}, f"has {len(row)} cells, its header {len(names)}")
        else:
            cells = {name: cell for name, cell in zip(names, row, strict=True) if cell}
            yield Record(line, cells, is_csv=True)
