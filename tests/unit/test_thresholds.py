"""Usage against what is included: which level is reached."""

from __future__ import annotations

from decimal import Decimal, localcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_c2meter.catalogue import load
from flask_c2meter.thresholds import LEVELS, allowance, allowances

DEFAULT = (Decimal("0.8"), Decimal("0.95"), Decimal("1.0"))


@pytest.mark.parametrize(
    ("total", "expected"),
    [
        (0, None),
        (1599, None),
        (1600, "warning"),
        (1899, "warning"),
        (1900, "critical"),
        (1999, "critical"),
        (2000, "exceeded"),
        (1_000_000, "exceeded"),
    ],
)
def test_each_level_begins_exactly_at_its_share(total: int, expected: str | None) -> None:
    assert allowance(2000, DEFAULT).level(total) == expected


def test_with_nothing_included_the_first_unit_exceeds() -> None:
    assert allowance(0, DEFAULT).level(0) is None
    assert allowance(0, DEFAULT).level(1) == "exceeded"


def test_thresholds_may_be_equal_and_the_highest_wins() -> None:
    assert allowance(10, (Decimal("0.5"),) * 3).level(5) == "exceeded"


def test_a_corrected_total_may_be_negative() -> None:
    assert allowance(10, DEFAULT).level(-1) is None
    assert allowance(0, DEFAULT).level(-1) is None


def test_a_plan_has_an_allowance_of_each_meter_it_limits() -> None:
    mapping = {
        "plans": {"free": {}, "pro": {}},
        "meters": {
            "storage": {
                "event_type": "x",
                "unit": "gb",
                "aggregation": "sum",
                "precision": 3,
                "included": {"free": "1.5", "pro": "unlimited"},
            }
        },
    }

    found = allowances(load(mapping).meters.values(), DEFAULT)

    assert found == {("storage", "free"): allowance(1500, DEFAULT)}


def test_the_context_of_the_host_changes_nothing() -> None:
    with localcontext(prec=2):
        assert allowance(10**15 - 1, DEFAULT).steps == (8 * 10**14, 95 * 10**13, 10**15 - 1)


@given(
    totals=st.lists(st.integers(0, 10**15), min_size=2, max_size=2),
    included=st.integers(0, 10**15),
)
def test_more_usage_never_lowers_the_level(totals: list[int], included: int) -> None:
    order = (None, *LEVELS)
    less, more = (allowance(included, DEFAULT).level(total) for total in sorted(totals))
    assert order.index(less) <= order.index(more)


@given(total=st.integers(0, 10**15), included=st.integers(1, 10**15))
def test_a_level_is_reached_at_its_exact_share(total: int, included: int) -> None:
    shares = zip(LEVELS, DEFAULT, strict=True)
    reached = [name for name, share in shares if Decimal(total) >= included * share]
    assert allowance(included, DEFAULT).level(total) == (reached[-1] if reached else None)
