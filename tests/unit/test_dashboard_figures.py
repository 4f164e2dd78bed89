"""Gauges and charts: where things are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal, localcontext
from typing import Any

import pytest

from flask_c2meter.dashboard.figures import Chart, Gauge, chart, gauge
from flask_c2meter.model import Aggregation, Meter, Period, Projection, Usage
from flask_c2meter.reports import MeterReport

NOW = datetime(2026, 3, 19, 12, tzinfo=UTC)
MARCH = Period(datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 4, 1, tzinfo=UTC))
METER = Meter("verify", "Verify", "v", "verify", Aggregation.SUM)
STORAGE = Meter("storage", "Storage", "s", "gb", Aggregation.MAX, precision=3)


def report(
    total: str,
    included: str | None = None,
    projected: Sequence[str] | None = None,
    days: Sequence[str] = (),
    **more: Any,
) -> MeterReport:
    meter, period = more.get("meter", METER), more.get("period", MARCH)
    used = [(period.start.date() + timedelta(days=n), Decimal(each)) for n, each in enumerate(days)]
    return MeterReport(
        meter=meter,
        usage=Usage(
            meter=meter.name,
            total=Decimal(total),
            included=None if included is None else Decimal(included),
            utilization=None,
            level=None,
            period=period,
        ),
        projection=Projection(*map(Decimal, projected)) if projected else None,
        charges=(),
        days=used or [(period.start.date(), Decimal(0))],
    )


def positions(found: Gauge | None) -> list[str | None]:
    assert found is not None
    parts = (found.within, found.above, found.included, found.projected, found.low, found.high)
    return [None if each is None else f"{each.normalize():f}" for each in parts]


# -- gauges ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("total", "included", "projected", "expected"),
    [
        # within; the whole gauge is what is included
        ("50", "200", None, ["25", "0", "100", None, None, None]),
        ("50", "200", ["100", "90", "120"], ["25", "0", "100", "50", "45", "60"]),
        # expected to go above: the gauge reaches to the range's end
        ("50", "200", ["220", "200", "250"], ["20", "0", "80", "88", "80", "100"]),
        # above already
        ("300", "200", None, ["66.67", "33.33", "66.67", None, None, None]),
        # far above: the gauge shows no more than twice what is there, and the rest at its end
        ("50", "200", ["900", "700", "9000"], ["12.5", "0", "50", "100", "100", "100"]),
        # nothing included
        ("0", "0", None, ["0", "0", "0", None, None, None]),
        ("3", "0", None, ["0", "100", "0", None, None, None]),
        # corrected below nothing
        ("-3", "200", None, ["0", "0", "100", None, None, None]),
    ],
)
def test_a_gauge_shows_usage_against_what_is_included(
    total: str, included: str, projected: Sequence[str] | None, expected: list[str | None]
) -> None:
    assert positions(gauge(report(total, included, projected))) == expected


def test_what_is_not_limited_has_no_gauge() -> None:
    assert gauge(report("50", None, ["100", "90", "120"])) is None


# -- charts ----------------------------------------------------------------------------------------


def ticks(found: Chart) -> list[str]:
    return [tick.text for tick in found.ticks]


@pytest.mark.parametrize(
    ("most", "expected"),
    [
        ("1", ["0", "1"]),
        ("2", ["0", "1", "2"]),
        ("7", ["0", "5", "10"]),
        ("61", ["0", "25", "50", "75"]),
        ("90", ["0", "50", "100"]),
        ("130", ["0", "50", "100", "150"]),
        ("14071", ["0", "5,000", "10k", "15k"]),
        ("987654321", ["0", "500M", "1B"]),
    ],
)
def test_a_chart_has_round_steps_and_whole_units(most: str, expected: list[str]) -> None:
    assert ticks(chart(report(most, days=[most]), NOW)) == expected


def test_a_meter_with_decimal_places_may_have_steps_between() -> None:
    found = chart(report("0.35", days=["0.35"], meter=STORAGE), NOW)
    assert ticks(found) == ["0", "0.2", "0.4"]


def test_a_tiny_projection_still_makes_a_chart() -> None:
    days = ["1"] + ["0"] * 18
    found = chart(report("1", days=days, projected=["1.004", "1", "1.01"]), NOW)
    assert ticks(found) == ["0", "1"]


def test_what_is_projected_is_spread_over_the_time_that_is_left() -> None:
    days = ["0"] * 18 + ["10"]
    found = chart(report("10", days=days, projected=["135", "100", "200"]), NOW)
    assert len(found.bars) == 31
    assert not any(bar.projected.height for bar in found.bars[:18])
    today, tomorrow, last = found.bars[18], found.bars[19], found.bars[30]
    assert today.label == "Thu 19 Mar: 10 so far, 5 more projected"
    assert tomorrow.label == "Fri 20 Mar: 10 projected"
    assert tomorrow.projected == last.projected and tomorrow.projected.height == today.used.height
    assert today.projected.y + today.projected.height == today.used.y


def test_a_period_that_begins_and_ends_within_a_day_has_bars_for_both() -> None:
    period = Period(MARCH.start + timedelta(hours=10), MARCH.end + timedelta(hours=10))
    found = chart(report("5", "310", days=["5"], period=period), NOW)
    assert len(found.bars) == 32
    assert found.bars[-1].label == "Wed 1 Apr: still to come"
    assert found.included == "even pace: 10 a day"


def test_the_line_of_a_sum_is_its_even_pace_and_of_a_level_what_is_included() -> None:
    total = chart(report("12", "310", days=["12"]), NOW)
    level = chart(report("12", "20", days=["12"], meter=STORAGE), NOW)
    assert (total.caption, total.included) == ("Used on the day", "even pace: 10 a day")
    assert (level.caption, level.included) == ("Total by the end of the day", "included: 20")
    # Among steps of 5 and 10 pixels apart: 10 of 15 for the pace, 20 of 20 for the level.
    assert total.line is not None and level.line is not None
    assert level.line == level.ticks[-1].at < total.line == total.ticks[2].at


def test_a_pace_far_above_is_said_and_not_drawn() -> None:
    found = chart(report("2", "3100", days=["2"]), NOW)
    assert (found.line, found.included) == (None, "even pace: 100 a day")


def test_a_level_stays_where_it_is() -> None:
    days = ["5", "0", "2.5"] + ["0"] * 16
    found = chart(report("7.5", days=days, meter=STORAGE, projected=["7.5"] * 3), NOW)
    labels = [bar.label for bar in found.bars]
    assert labels[1:3] == ["Mon 2 Mar: 5", "Tue 3 Mar: 7.5"]
    assert labels[-1] == "Tue 31 Mar: 7.5 projected"
    assert found.remarkable == "7.5 reached on Tue 3 Mar"
    assert found.rows[2] == (date(2026, 3, 3), Decimal("2.5"), Decimal("7.5"))


@pytest.mark.parametrize(
    ("days", "expected"),
    [
        (5, ["1 Mar", "2", "3", "4", "5"]),
        (31, ["1 Mar", "8", "15", "22", "29"]),
        (61, ["1 Mar", "15", "29", "12 Apr", "26"]),
        (365, ["1 Mar", "17 May", "2 Aug", "18 Oct", "3 Jan"]),
    ],
)
def test_a_few_days_are_named(days: int, expected: list[str]) -> None:
    period = Period(MARCH.start, MARCH.start + timedelta(days=days))
    found = chart(report("1", days=["1"], period=period), MARCH.start + timedelta(hours=1))
    assert [label.text for label in found.labels] == expected


def test_everything_lies_within_the_chart() -> None:
    days = [str(number * 37 % 101) for number in range(19)]
    found = chart(report("900", "2000", days=days, projected=["1600", "1500", "1700"]), NOW)
    for bar in found.bars:
        assert 0 <= bar.slot <= bar.x and bar.x + found.width <= 100
        assert 0 < bar.projected.y <= bar.used.y <= found.base


def test_the_hosts_decimal_context_is_not_used() -> None:
    seen = report("987654.321", "1234567", ["1987654.321"] * 3, ["987654.321"], meter=STORAGE)
    usual = (gauge(seen), chart(seen, NOW))
    with localcontext(prec=2):
        assert (gauge(seen), chart(seen, NOW)) == usual
