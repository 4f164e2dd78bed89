"""Exports: a customer's operations as a file that shows whether it was changed.

Pure; imports ``records`` and ``schemas``. Every row carries a hash of itself and of the row before
it, so that a row that was changed, removed or moved is found, and so is one that is missing at the
end. The chain is over what the cells say, not over how a format writes them: CSV and JSON Lines of
the same rows end in the same hash.

A cell of text that a spreadsheet would take for a formula (``=``, ``+``, ``-``, ``@``, tab, return
at its beginning) gets an apostrophe before it in CSV; so does one that begins with an apostrophe,
and the reader takes it off again: nothing is lost, and nothing is executed.
"""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from hashlib import sha256
from typing import Any, Literal, TextIO

from .model import Meter, UsageEvent
from .records import Record, read
from .schemas import canonical_json

#: The cells of a row, in the order in which they are hashed; ``hash`` follows.
CELLS = (
    "record",
    "n",
    "meter",
    "key",
    "value",
    "increment",
    "occurred_at",
    "recorded_at",
    "kind",
    "unique_by",
    "request_id",
    "flags",
    "fault",
    "properties",
)
_COLUMNS = (*CELLS, "hash")
#: Ours alone, so that a minus in front is one.
_NUMBERS = ("n", "value", "increment", "hash")
_DANGEROUS = ("=", "+", "-", "@", "\t", "\r", "'")

#: What the first row continues.
_NOTHING = "0" * 64

Format = Literal["csv", "jsonl"]
Row = Mapping[str, str]


def chained(previous: str, row: Row) -> str:
    """The hash of *row*, which follows the one with the hash *previous*: SHA-256 in hex.

    Of the UTF-8 of a JSON array, without spaces and not escaped to ASCII: *previous*, then each of
    :data:`CELLS` as text, empty where the row has none.
    """
    told = [previous, *(row.get(name, "") for name in CELLS)]
    text = json.dumps(told, ensure_ascii=False, separators=(",", ":"))
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


# -- writing ---------------------------------------------------------------------------------------


class Writer:
    """Writes an export row by row.

    :param about: of whom and what; the first row says it.
    """

    def __init__(self, file: TextIO, format: Format, about: Mapping[str, Any]) -> None:
        self._write = _csv_writer(file) if format == "csv" else _json_writer(file)
        #: Hash of the row written last, and the number of rows.
        self.head = _NOTHING
        self.rows: int = 0
        self._add("start", properties=canonical_json(about))

    def operation(self, meter: Meter, event: UsageEvent, increment: int, fault: str | None) -> None:
        """One operation and what it added, in wire units."""
        self._add(
            "operation",
            meter=meter.name,
            key=event.key,
            value=str(event.value),
            increment=str(meter.to_value(increment)),
            occurred_at=event.occurred_at.isoformat(),
            recorded_at=event.recorded_at.isoformat(),
            kind=event.kind,
            unique_by=event.unique_by or "",
            request_id=event.request_id or "",
            flags=" ".join(event.flags),
            fault=fault or "",
            properties=canonical_json(dict(event.properties)),
        )

    def total(self, meter: Meter, total: Decimal, about: Mapping[str, Any]) -> None:
        """What the operations of *meter* before it add up to."""
        self._add("total", meter=meter.name, value=str(total), properties=canonical_json(about))

    def sealed(self) -> tuple[int, str]:
        """The number of rows and the last hash, as they will be after :meth:`end`."""
        return self.rows + 1, chained(self.head, self._numbered("end", value=str(self.rows)))

    def end(self) -> None:
        """Write the last row: a file without one is not whole."""
        self._add("end", value=str(self.rows))

    def _add(self, record: str, **cells: str) -> None:
        row = self._numbered(record, **cells)
        self.head = chained(self.head, row)
        self.rows += 1
        self._write({**row, "hash": self.head})

    def _numbered(self, record: str, **cells: str) -> dict[str, str]:
        return {"record": record, "n": str(self.rows), **cells}


def _json_writer(file: TextIO) -> Callable[[Row], None]:
    def write(row: Row) -> None:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")

    return write


def _csv_writer(file: TextIO) -> Callable[[Row], None]:
    writer = csv.writer(file)
    writer.writerow(_COLUMNS)

    def write(row: Row) -> None:
        writer.writerow([_armoured(name, row.get(name, "")) for name in _COLUMNS])

    return write


def _armoured(name: str, cell: str) -> str:
    return f"'{cell}" if name not in _NUMBERS and cell.startswith(_DANGEROUS) else cell


# -- checking --------------------------------------------------------------------------------------


@dataclass
class Check:
    """Checks a file; walk through :meth:`problems` first."""

    #: What the first row says.
    about: dict[str, Any] = field(default_factory=dict)
    rows: int = 0
    #: Hash of the last row.
    head: str = _NOTHING
    #: Whether nothing was wrong so far.
    is_sound: bool = True
    _sums: defaultdict[str, Decimal] = field(default_factory=lambda: defaultdict(Decimal))
    _is_ended: bool = False

    def problems(self, file: TextIO, progress: Callable[[int], None]) -> Iterator[str]:
        """What is wrong with *file*, line by line.

        :param progress: told now and then how many rows were read.
        """
        line = 0
        for record in read(file):
            line = record.line
            problem = record.problem or self._wrong(_cells(record))
            if record.problem is not None:
                self.head, self.rows = "", self.rows + 1  # it may have been any row
            if problem is not None:
                self.is_sound = False
                yield f"line {line}: {problem}"
            if self.rows % 10_000 == 0:
                progress(self.rows)
        progress(self.rows)
        if not self._is_ended:
            self.is_sound = False
            yield f"line {line + 1}: the end is missing: the file was cut off after row {self.rows}"

    def _wrong(self, row: dict[str, str]) -> str | None:
        """What is wrong with *row* in its place; goes on to the next."""
        number = _number(row)
        if self._is_ended:
            return "a row after the end"
        if number is None or row.keys() - set(_COLUMNS):
            self.head, self.rows = "", self.rows + 1
            return "is no row of an export"
        if number < self.rows:
            return f"row {number} is out of place"
        problem = None
        if number > self.rows:
            problem = f"{_gap(self.rows, number)} missing before it"
        elif self.head and chained(self.head, row) != row.get("hash"):
            problem = f"row {number} was changed"
        # The hash that the row shows: what follows it is judged by itself.
        self.head, self.rows = row.get("hash", ""), number + 1
        self._is_ended = row.get("record") == "end"
        return problem or self._added_up(row)

    def _added_up(self, row: dict[str, str]) -> str | None:
        record = row.get("record")
        try:
            if record == "start":
                self.about = json.loads(row["properties"])
            elif record == "operation":
                self._sums[row["meter"]] += Decimal(row["increment"])
            elif record == "total" and self.is_sound:
                if self._sums[row["meter"]] != Decimal(row["value"]):
                    return f"the operations of {row['meter']} do not add up to this total"
        except (LookupError, ValueError, InvalidOperation):
            return "is no row of an export"
        return None


def _gap(first: int, after: int) -> str:
    return f"row {first} is" if after == first + 1 else f"rows {first} to {after - 1} are"


def _number(row: Mapping[str, str]) -> int | None:
    text = row.get("n", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else None


def _cells(record: Record) -> dict[str, str]:
    """The cells as they were hashed."""
    if not record.is_csv:
        return {name: str(cell) for name, cell in record.fields.items()}
    return {
        name: cell[1:] if name not in _NUMBERS and cell.startswith("'") else cell
        for name, cell in record.fields.items()
    }
