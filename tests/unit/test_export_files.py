"""Exports as files: what was changed in one is named with its line, whatever was changed."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_c2meter.exports import CELLS, Check, Format, Writer, chained
from flask_c2meter.model import Aggregation, Meter, UsageEvent

NOON = datetime(2026, 1, 15, 12, tzinfo=UTC)
VERIFY = Meter("verify", "Verify", "verify.completed", "verify", Aggregation.SUM)
FORMATS: tuple[Format, ...] = ("csv", "jsonl")


def event(key: str, units: int = 1) -> UsageEvent:
    return UsageEvent(
        key=key,
        customer="cus_1",
        meter="verify",
        units=units,
        precision=0,
        occurred_at=NOON,
        recorded_at=NOON,
        properties={"manifest_id": f"urn:{key}"},
        request_id=f"req-{key}",
    )


def exported(format: Format, *keys: str) -> tuple[list[str], str]:
    """The lines of a file with an operation for each of *keys*, and its last hash."""
    file = io.StringIO(newline="")
    writer = Writer(file, format, {"customer": "cus_1"})
    for key in keys:
        writer.operation(VERIFY, event(key), 1, None)
    writer.total(VERIFY, Decimal(len(keys)), {})
    sealed = writer.sealed()
    writer.end()
    assert sealed == (writer.rows, writer.head)
    return file.getvalue().splitlines(keepends=True), writer.head


def problems(lines: list[str]) -> list[str]:
    return list(Check().problems(io.StringIO("".join(lines), newline=""), lambda rows: None))


@pytest.fixture(params=FORMATS)
def format(request: pytest.FixtureRequest) -> Format:
    chosen: Format = request.param
    return chosen


@pytest.fixture
def lines(format: Format) -> list[str]:
    """Rows 0 to 6; the first line of a row is its number plus 1, in CSV plus 2."""
    return exported(format, "a", "b", "c", "d")[0]


@pytest.fixture
def line_of(format: Format) -> Callable[[int], int]:
    return lambda row: row + (2 if format == "csv" else 1)


def test_a_file_as_it_was_written_is_sound(format: Format, lines: list[str]) -> None:
    check = Check()
    text = io.StringIO("".join(lines), newline="")
    assert list(check.problems(text, lambda rows: None)) == []
    assert check.is_sound
    assert (check.about, check.rows) == ({"customer": "cus_1"}, 7)
    assert check.head == exported(format, "a", "b", "c", "d")[1]


def test_both_formats_have_the_same_chain() -> None:
    assert exported("csv", "a", "b")[1] == exported("jsonl", "a", "b")[1]


def test_the_chain_is_what_the_documentation_says() -> None:
    """Written once more, from its description alone."""
    from hashlib import sha256

    previous = "0" * 64
    for line in exported("jsonl", "ä", "b")[0]:
        row = json.loads(line)
        cells = [previous, *(row.get(name, "") for name in CELLS)]
        told = json.dumps(cells, ensure_ascii=False, separators=(",", ":"))
        previous = sha256(told.encode()).hexdigest()
        assert row["hash"] == previous


def test_a_changed_row_is_named_alone(
    lines: list[str], line_of: Callable[[int], int], format: Format
) -> None:
    at = line_of(2)
    lines[at - 1] = lines[at - 1].replace("req-b", "req-x")
    assert problems(lines) == [f"line {at}: row 2 was changed"]


def test_a_changed_row_with_a_new_hash_shows_in_the_next(format: Format) -> None:
    lines = exported("jsonl", "a", "b", "c")[0]
    row = json.loads(lines[1]) | {"value": "9", "increment": "9"}
    lines[1] = json.dumps(row | {"hash": chained(json.loads(lines[0])["hash"], row)}) + "\n"
    assert problems(lines) == ["line 3: row 2 was changed"]


def test_a_removed_row_is_named(lines: list[str], line_of: Callable[[int], int]) -> None:
    del lines[line_of(2) - 1]
    assert problems(lines) == [f"line {line_of(2)}: row 2 is missing before it"]


def test_removed_rows_are_named(lines: list[str], line_of: Callable[[int], int]) -> None:
    del lines[line_of(1) - 1 : line_of(3) - 1]
    assert problems(lines) == [f"line {line_of(1)}: rows 1 to 2 are missing before it"]


def test_the_first_row_is_missed(lines: list[str], line_of: Callable[[int], int]) -> None:
    del lines[line_of(0) - 1]
    assert problems(lines) == [f"line {line_of(0)}: row 0 is missing before it"]


def test_rows_that_changed_places_are_named(
    lines: list[str], line_of: Callable[[int], int]
) -> None:
    one, other = line_of(2) - 1, line_of(3) - 1
    lines[one], lines[other] = lines[other], lines[one]
    assert problems(lines) == [
        f"line {line_of(2)}: row 2 is missing before it",
        f"line {line_of(3)}: row 2 is out of place",
    ]


def test_a_row_that_is_there_twice_is_named(
    lines: list[str], line_of: Callable[[int], int]
) -> None:
    lines.insert(line_of(2), lines[line_of(2) - 1])
    assert problems(lines) == [f"line {line_of(3)}: row 2 is out of place"]


@pytest.mark.parametrize("left", range(1, 7))
def test_a_file_that_was_cut_off_is_named(
    lines: list[str], line_of: Callable[[int], int], left: int
) -> None:
    cut = lines[: line_of(left) - 1]
    (problem,) = problems(cut)
    assert problem.startswith(f"line {line_of(left)}: the end is missing")


def test_a_file_that_was_cut_off_within_a_line_is_named(lines: list[str]) -> None:
    whole = "".join(lines)
    for end in range(len(whole.rstrip()) - 1, len(whole) - 100, -7):
        assert problems([whole[:end]]), end


def test_rows_after_the_end_are_named(lines: list[str], line_of: Callable[[int], int]) -> None:
    assert problems([*lines, lines[-2]]) == [f"line {line_of(7)}: a row after the end"]


@pytest.mark.parametrize("text", ["", "\n", "{}\n", "a,b\n1,2\n", "[]\n", "{\n", "\0\0\n", '"\n'])
def test_what_is_no_export_is_named(text: str) -> None:
    assert problems([text])


def test_a_total_that_is_not_the_sum_is_named(format: Format) -> None:
    file = io.StringIO(newline="")
    writer = Writer(file, format, {})
    writer.operation(VERIFY, event("a"), 1, None)
    writer.total(VERIFY, Decimal(2), {})
    writer.end()
    (problem,) = problems([file.getvalue()])
    assert "the operations of verify do not add up to this total" in problem


@given(st.data())
def test_any_one_change_of_a_cell_is_found(data: st.DataObject) -> None:
    lines = exported("jsonl", "a", "b", "c")[0]
    at = data.draw(st.integers(0, len(lines) - 1))
    row = json.loads(lines[at])
    name = data.draw(st.sampled_from(sorted(row)))
    cell = data.draw(st.text(max_size=12).filter(lambda text: text != row[name]))
    lines[at] = json.dumps(row | {name: cell}) + "\n"
    found = problems(lines)
    assert found
    # The hash of the last row is the last of the chain: nothing follows that would miss it.
    assert found[0].startswith((f"line {at + 1}:", f"line {at + 2}:"))


# -- spreadsheets ----------------------------------------------------------------------------------

FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "'=1", "=cmd|' /C calc'!A0", 'a","=1']


@pytest.mark.parametrize("key", FORMULAS)
def test_no_cell_of_text_is_a_formula(key: str) -> None:
    lines, head = exported("csv", key)
    for row in csv.DictReader(io.StringIO("".join(lines), newline="")):
        for name, cell in row.items():
            if name not in ("n", "value", "increment", "hash"):
                assert not cell.startswith(("=", "+", "-", "@", "\t", "\r")), (name, cell)
    assert problems(lines) == []
    assert exported("jsonl", key)[1] == head


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1))
def test_any_text_comes_back_as_it_was(key: str) -> None:
    assert problems(exported("csv", key)[0]) == []
    assert problems(exported("jsonl", key)[0]) == []
