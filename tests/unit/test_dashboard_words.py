"""Numbers, times and states as the page words them."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest

from flask_c2meter.dashboard import words
from flask_c2meter.model import Period

DASH = "\N{EN DASH}"


def at(text: str) -> datetime:
    return datetime.fromisoformat(f"2026-{text}").replace(tzinfo=UTC)


def period(start: str, end: str) -> Period:
    return Period(at(start), at(end))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("0", "0"),
        ("0.000", "0"),
        ("1234", "1,234"),
        ("7.100", "7.1"),
        ("1E+3", "1,000"),
        ("-12.50", "-12.5"),
        ("999999999999999.123456789", "999,999,999,999,999.123456789"),
    ],
)
def test_quantities_have_separators_and_no_idle_zeros(value: str, text: str) -> None:
    assert words.quantity(Decimal(value)) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("0", "0"),
        ("9500", "9,500"),
        ("10000", "10k"),
        ("2500000", "2.5M"),
        ("1E+9", "1B"),
        ("4E+13", "40T"),
    ],
)
def test_an_axis_is_written_short(value: str, text: str) -> None:
    assert words.compact(Decimal(value)) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [
        ("0", "0%"),
        ("0.0001", "<1%"),
        ("0.005", "1%"),
        ("0.954", "95%"),
        ("0.955", "96%"),
        ("0.9999", "99%"),
        ("1", "100%"),
        ("1.004", "100%"),
        ("12.5", "1,250%"),
    ],
)
def test_per_cent_round_half_up_and_never_up_to_full(share: str, text: str) -> None:
    assert words.percent(Decimal(share)) == text


@pytest.mark.parametrize(
    ("start", "end", "text"),
    [
        ("03-01", "04-01", f"1 {DASH} 31 March 2026"),
        ("03-01", "03-02", "1 March 2026"),
        ("03-15", "04-15", f"15 March {DASH} 14 April 2026"),
        ("03-19 06:40", "04-19 06:40", f"19 March {DASH} 19 April 2026"),
    ],
)
def test_a_period_names_the_days_it_has_a_part_of(start: str, end: str, text: str) -> None:
    assert words.span(period(start, end)) == text


def test_a_period_over_new_year_names_both_years() -> None:
    start, end = datetime(2025, 12, 15, tzinfo=UTC), datetime(2026, 1, 15, tzinfo=UTC)
    assert words.span(Period(start, end)) == f"15 December 2025 {DASH} 14 January 2026"


@pytest.mark.parametrize(
    ("now", "text"),
    [
        ("03-19 14:05", "12 days left"),
        ("03-30 00:00", "2 days left"),
        ("03-30 12:00", "1 day left"),
        ("03-31 00:01", "ends today"),
    ],
)
def test_what_is_left_is_said_in_whole_days(now: str, text: str) -> None:
    assert words.left(period("03-01", "04-01"), at(now)) == text


def test_an_end_in_the_night_is_tomorrow() -> None:
    assert words.left(period("03-01", "04-01 06:40"), at("03-31 20:00")) == "ends tomorrow"


def test_a_part_of_a_cycle_is_named_by_where_it_is_cut() -> None:
    cycle = period("03-01", "04-01")
    assert words.part(cycle, cycle) == ""
    assert words.part(period("03-01", "03-09"), cycle) == "until 9 March"
    assert words.part(period("03-09", "04-01"), cycle) == "since 9 March"
    assert words.part(period("03-09", "03-12"), cycle) == f"9 {DASH} 11 March 2026"


def test_lists_read_as_people_say_them() -> None:
    assert words.listed(["A"]) == "A"
    assert words.listed(["A", "B"]) == "A and B"
    assert words.listed(["A", "B", "C"]) == "A, B and C"
