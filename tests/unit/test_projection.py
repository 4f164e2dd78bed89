"""What a period will come to: by elapsed time and weekday, with a range, never by looking ahead."""

from __future__ import annotations

import decimal
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from math import floor
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_c2meter.model import Aggregation, Period, Projection
from flask_c2meter.projection import Backtest, backtest, project

DAY, HOUR = timedelta(days=1), timedelta(hours=1)
#: Monday first.
OFFICE = (240, 264, 240, 288, 192, 24, 0)
MONDAYS = (700, 0, 0, 0, 0, 0, 0)
THIRD_PARTS = (1, 2, 4, 5, 7, 8, 10)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def period(start: str, end: str) -> Period:
    return Period(at(start), at(end))


JUNE = period("2026-06-01", "2026-07-01")  # begins on a Monday


def said(
    total: Decimal | int, over: Period, now: datetime, days: dict[date, Decimal] | None = None
) -> Projection:
    """What is projected of a sum, where it is not too early to say."""
    projection = project(Aggregation.SUM, Decimal(total), over, now, days or {})
    assert projection is not None
    return projection


def before(today: datetime, usage: Sequence[int | Decimal]) -> dict[date, Decimal]:
    """*usage* of the whole days before *today*, oldest first."""
    first = today.date() - len(usage) * DAY
    return {first + number * DAY: Decimal(each) for number, each in enumerate(usage)}


def periodic(week: Sequence[int], first: datetime, end: datetime) -> dict[date, Decimal]:
    """The days of a customer who uses the same every week."""
    span = [first.date() + number * DAY for number in range((end - first).days + 1)]
    return {day: Decimal(week[day.weekday()]) for day in span}


def brought(week: Sequence[int], start: datetime, end: datetime) -> Decimal:
    """What such a customer uses in [start, end), hour by hour."""
    hours = (end - start) // HOUR
    exact = sum(Fraction(week[(start + hour * HOUR).weekday()], 24) for hour in range(hours))
    assert exact.denominator == 1
    return Decimal(exact.numerator)


def plain(total: Decimal | int, over: Period, now: datetime) -> Decimal:
    """Elapsed time alone, in fractions, to three decimal places, half up."""
    microsecond = timedelta(microseconds=1)
    whole, elapsed = (over.end - over.start) // microsecond, (now - over.start) // microsecond
    return Decimal(floor(Fraction(total) * whole / elapsed * 1000 + Fraction(1, 2))).scaleb(-3)


# -- too early to say, and over --------------------------------------------------------------------


@pytest.mark.parametrize("aggregation", list(Aggregation))
@pytest.mark.parametrize("start", ["2026-06-01", "2026-06-17T13:37:11"])
def test_the_first_24_hours_are_too_early_to_say(aggregation: Aggregation, start: str) -> None:
    over = Period(at(start), at(start) + 30 * DAY)
    moments = [-DAY, 0 * DAY, HOUR, DAY - timedelta(microseconds=1)]
    assert [project(aggregation, Decimal(9), over, over.start + m, {}) for m in moments] == [
        None
    ] * 4


@pytest.mark.parametrize("start", ["2026-06-01", "2026-06-17T13:37:11"])
def test_exactly_24_hours_after_its_start_a_period_is_projected(start: str) -> None:
    over = Period(at(start), at(start) + 30 * DAY)
    assert said(9, over, over.start + DAY).total == 270


@pytest.mark.parametrize("aggregation", list(Aggregation))
@pytest.mark.parametrize("length", [HOUR, DAY, 30 * DAY])
@pytest.mark.parametrize("later", [0 * DAY, timedelta(microseconds=1), 90 * DAY])
def test_a_period_that_is_over_is_exact(
    aggregation: Aggregation, length: timedelta, later: timedelta
) -> None:
    over = Period(JUNE.start, JUNE.start + length)
    total = Decimal("12.345")
    projection = project(aggregation, total, over, over.end + later, before(over.end, [1, 50] * 9))
    assert projection == Projection(total, total, total)
    assert str(projection.total) == "12.345"


@pytest.mark.parametrize("aggregation", [Aggregation.MAX, Aggregation.UNIQUE_COUNT])
def test_a_maximum_and_a_unique_count_are_not_multiplied(aggregation: Aggregation) -> None:
    now = at("2026-06-11")
    projection = project(aggregation, Decimal(40), JUNE, now, before(now, [40, 0, 3] * 10))
    assert projection == Projection(Decimal(40), Decimal(40), Decimal(40))


# -- by elapsed time -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "end", "now", "total", "expected"),
    [
        ("2026-06-01", "2026-07-01", "2026-06-11", "1000", "3000"),
        ("2026-07-01", "2026-08-01", "2026-07-11", "1000", "3100"),
        ("2026-02-01", "2026-03-01", "2026-02-08", "700", "2800"),
        ("2028-02-01", "2028-03-01", "2028-02-08", "700", "2900"),
        ("2027-01-31", "2027-02-28", "2027-02-07", "1", "4"),
        ("2026-01-01", "2027-01-01", "2026-01-02", "1", "365"),
        ("2028-01-01", "2029-01-01", "2028-01-02", "1", "366"),
        ("2026-06-01", "2026-07-01", "2026-06-02T12:00", "10", "200"),
        ("2026-06-17T12:00", "2026-07-17T12:00", "2026-06-20", "10", "120"),
        ("2026-06-17T12:00", "2026-07-17T12:00", "2026-06-20T12:00", "10", "100"),
        ("2026-06-01", "2026-06-08", "2026-06-04", "1", "2.333"),
        ("2026-06-01", "2026-06-08", "2026-06-04", "1.000", "2.333333"),
        ("2026-06-01", "2026-07-01", "2026-06-30T23:59:59", "2592", "2592.001"),
        ("2026-06-01", "2026-07-01", "2026-06-11", "0", "0"),
        ("2026-06-01", "2026-07-01", "2026-06-11", "1E+3", "3000"),
        ("2026-06-01", "2026-07-01", "2026-06-11", "999999999999999", "2999999999999997"),
    ],
)
def test_without_history_usage_goes_on_by_elapsed_time(
    start: str, end: str, now: str, total: str, expected: str
) -> None:
    projected = said(Decimal(total), period(start, end), at(now)).total
    assert projected == Decimal(expected)
    places = len(total.partition(".")[2])
    assert len(str(projected).partition(".")[2]) == places + 3


@pytest.mark.parametrize("aggregation", [Aggregation.SUM, Aggregation.COUNT])
def test_sums_and_counts_are_projected_alike(aggregation: Aggregation) -> None:
    projection = project(aggregation, Decimal(1000), JUNE, at("2026-06-11"), {})
    assert projection is not None
    assert projection.total == 3000


def test_less_than_two_weeks_of_history_tell_no_weekdays_apart() -> None:
    now = at("2026-06-13")
    thirteen = before(now, [100] * 5 + [0, 0] + [100] * 5 + [0])
    assert said(1000, JUNE, now, thirteen).total == 2500
    assert said(1000, JUNE, now, {now.date() - 14 * DAY: Decimal(0), **thirteen}).total != 2500


moments = st.datetimes(datetime(2024, 1, 1), datetime(2028, 12, 31), timezones=st.just(UTC))


@st.composite
def periods_and_moments(draw: st.DrawFn) -> tuple[Period, datetime]:
    """A period of two days to a year and a moment at which it can be projected."""
    start = draw(moments)
    over = Period(start, start + draw(st.timedeltas(2 * DAY, 366 * DAY)))
    return over, start + draw(st.timedeltas(DAY, over.end - start - timedelta(microseconds=1)))


totals = st.integers(0, 10**12).map(Decimal)
histories = st.lists(st.integers(0, 10**6), max_size=70)


@given(periods_and_moments(), totals, st.integers(0, 10**6), st.integers(0, 70))
def test_equal_days_are_extrapolated_by_time_alone(
    when: tuple[Period, datetime], total: Decimal, usage: int, length: int
) -> None:
    over, now = when
    assert said(total, over, now, before(now, [usage] * length)).total == plain(total, over, now)


@given(periods_and_moments(), totals, st.lists(st.integers(0, 10**6), min_size=2, max_size=8))
def test_equal_weekdays_are_extrapolated_by_time_alone(
    when: tuple[Period, datetime], total: Decimal, weeks: list[int]
) -> None:
    over, now = when
    days = before(now, [usage for usage in weeks for _ in range(7)])
    assert said(total, over, now, days).total == plain(total, over, now)


# -- by weekday ------------------------------------------------------------------------------------


@pytest.mark.parametrize("week", [OFFICE, MONDAYS, THIRD_PARTS])
@pytest.mark.parametrize("history", [14, 15, 20, 33, 56, 100])
@pytest.mark.parametrize(
    "over",
    [
        JUNE,
        period("2026-02-01", "2026-03-01"),
        period("2028-02-01", "2028-03-01"),
        period("2026-08-01", "2026-09-01"),  # begins on a Saturday
        period("2026-01-31", "2026-02-28"),
        period("2026-06-03", "2026-06-05"),
        period("2026-12-31", "2027-12-31"),
    ],
)
def test_a_customer_who_uses_the_same_every_week_is_projected_exactly(
    week: tuple[int, ...], history: int, over: Period
) -> None:
    days = periodic(week, over.start - history * DAY, over.end)
    comes = sum(days[over.start.date() + n * DAY] for n in range((over.end - over.start).days))
    for number in range(1, min(40, (over.end - over.start).days)):
        now = over.start + number * DAY
        used = sum(days[over.start.date() + n * DAY] for n in range(number))
        assert said(used, over, now, days) == Projection(*[Decimal(comes)] * 3)


@pytest.mark.parametrize("start", ["2026-06-17T12:00", "2026-06-20T21:00", "2026-06-14T01:00"])
def test_days_of_which_a_period_has_only_a_part_count_their_share(start: str) -> None:
    over = Period(at(start), at(start) + 30 * DAY + 5 * HOUR)
    days = periodic(OFFICE, over.start - 21 * DAY, over.end)
    comes = brought(OFFICE, over.start, over.end)
    for hours in range(24, 30 * 24, 7):
        now = over.start + hours * HOUR
        projection = said(brought(OFFICE, over.start, now), over, now, days)
        assert projection == Projection(comes, comes, comes)


def test_a_customer_who_uses_twice_as_much_as_before_goes_on_doing_so() -> None:
    now = at("2026-06-15")
    days = periodic(OFFICE, JUNE.start - 56 * DAY, JUNE.start - DAY)
    days |= periodic([2 * usage for usage in OFFICE], JUNE.start, now)
    used = 2 * brought(OFFICE, JUNE.start, now)
    assert said(used, JUNE, now, days).total == 2 * brought(OFFICE, JUNE.start, JUNE.end)


def test_only_the_last_eight_weeks_tell_the_weekdays() -> None:
    now = at("2026-06-11")
    recent = periodic(OFFICE, now - 56 * DAY, now)
    long_ago = periodic(OFFICE[::-1], now - 200 * DAY, now - 57 * DAY)
    assert said(500, JUNE, now, {**long_ago, **recent}) == said(500, JUNE, now, recent)
    oldest = (now - 56 * DAY).date()
    assert said(500, JUNE, now, {**recent, oldest: Decimal(9)}) != said(500, JUNE, now, recent)


def test_a_day_that_is_absent_had_no_usage() -> None:
    now = at("2026-06-11")
    days = periodic(MONDAYS, now - 28 * DAY, now)
    present = {day: usage for day, usage in days.items() if usage}
    assert said(1400, JUNE, now, present) == said(1400, JUNE, now, days)
    assert said(1400, JUNE, now, present).total == 3500


def test_a_period_that_begins_on_days_off_is_projected_from_history() -> None:
    august = period("2026-08-01", "2026-09-01")  # Saturday and Sunday come first
    days = periodic(OFFICE, august.start - 28 * DAY, august.start)
    sunday = said(30, august, at("2026-08-02T12:00"), days)
    assert sunday.total == 30 + brought(OFFICE, at("2026-08-02T12:00"), august.end)


def test_the_morning_of_the_heaviest_weekday_does_not_multiply_what_it_began_with() -> None:
    july = period("2026-07-01", "2026-08-01")
    days = periodic(MONDAYS, july.start - 28 * DAY, july.start)
    one = said(690, july, at("2026-07-06T06:00"), days)
    assert one.total == 690 + Decimal("0.75") * 700 + 3 * 700


@pytest.mark.parametrize("week", [(0,) * 7, MONDAYS, MONDAYS[::-1]])
@pytest.mark.parametrize("total", [0, 1, 10**15 - 1])
def test_weekdays_without_usage_divide_nothing(week: tuple[int, ...], total: int) -> None:
    for hours in range(24, 30 * 24, 5):
        now = JUNE.start + hours * HOUR
        projection = said(total, JUNE, now, periodic(week, JUNE.start - 28 * DAY, JUNE.start))
        assert projection.total >= total
        if not any(week):
            assert projection.total == plain(total, JUNE, now)


def test_a_period_with_nothing_but_days_off_ahead_stays_as_it_is() -> None:
    weekend = period("2026-06-05", "2026-06-08")
    days = periodic((9, 9, 9, 9, 9, 0, 0), weekend.start - 28 * DAY, weekend.start)
    assert said(9, weekend, at("2026-06-06"), days) == Projection(*[Decimal(9)] * 3)


@given(periods_and_moments(), totals, histories, histories)
def test_today_and_what_comes_after_it_are_not_looked_at(
    when: tuple[Period, datetime], total: Decimal, past: list[int], future: list[int]
) -> None:
    over, now = when
    days = before(now, past)
    ahead = {now.date() + number * DAY: Decimal(each) for number, each in enumerate(future)}
    assert said(total, over, now, {**ahead, **days}) == said(total, over, now, days)


def test_the_day_is_the_utc_day_wherever_the_clock_is() -> None:
    now = at("2026-06-11T23:30")
    days = {**periodic(OFFICE, now - 28 * DAY, now), now.date(): Decimal(999)}
    elsewhere = now.astimezone(tz=datetime.fromisoformat("2026-01-01T00:00+09:00").tzinfo)
    assert elsewhere.date() != now.date()
    assert said(2000, JUNE, elsewhere, days) == said(2000, JUNE, now, days)


# -- the range -------------------------------------------------------------------------------------


@pytest.mark.parametrize("history", [[], [5], [0, 5], [0] * 3, [0] * 20])
def test_with_too_little_history_what_is_to_come_is_halved_and_doubled(history: list[int]) -> None:
    now = at("2026-06-11")
    assert said(1000, JUNE, now, before(now, history)) == Projection(
        Decimal(3000), low=Decimal(2000), high=Decimal(5000)
    )


@pytest.mark.parametrize(
    ("usage", "deviation", "t"),
    [
        # sample standard deviations, and the 90 % quantiles of Student's t from printed tables
        ([10, 20, 30], "10", "1.886"),
        ([10, 20, 30, 40], "12.91", "1.638"),
        ([10, 30] * 6, "10.445", "1.363"),
        # two weeks, seven weekdays of which each strays by 5 from its mean
        ([10] * 7 + [20] * 7, "7.0711", "1.415"),
        # two weeks with usage on one weekday, so that there are two days to learn from
        ([*[0] * 6, 10, *[0] * 6, 20], "2.6726", "3.078"),
    ],
)
def test_the_range_is_the_textbooks_prediction_interval(
    usage: list[int], deviation: str, t: str
) -> None:
    over = Period(JUNE.start, JUNE.start + 28 * DAY)
    now = over.start + 7 * DAY
    projection = said(10**6, over, now, before(now, usage))
    assert projection.total == 4 * 10**6
    margin = Decimal(t) * Decimal(deviation) * (21 + Decimal(21) ** 2 / 7).sqrt()
    tolerance = Decimal("0.04") if t == "3.078" else Decimal("0.004")
    assert abs(projection.high - projection.total - margin) <= margin * tolerance
    assert projection.high - projection.total == projection.total - projection.low


def test_where_history_sets_the_pace_its_days_set_the_range() -> None:
    over = period("2026-06-06", "2026-06-27")  # three weeks that begin with a weekend
    usage = ([90] * 5 + [0, 0] + [110] * 5 + [0, 0]) * 2
    projection = said(0, over, at("2026-06-07"), before(at("2026-06-07"), usage[:-1]))
    assert projection.total == 1500
    # Of 27 known days 20 stray by 10 from their mean, and 20 is what is left of 27 after seven
    # means; the weekdays to come are 21 usual days; t has 5 * 3 degrees of freedom.
    margin = Decimal("1.3406") * 10 * (21 + Decimal(21) ** 2 / 27).sqrt()
    assert abs(projection.high - 1500 - margin) <= margin / 1000


@given(periods_and_moments(), totals, histories)
def test_the_range_holds_the_projection_and_nothing_below_what_is_used(
    when: tuple[Period, datetime], total: Decimal, history: list[int]
) -> None:
    over, now = when
    projection = said(total, over, now, before(now, history))
    assert 0 <= total <= projection.low <= projection.total <= projection.high


@given(periods_and_moments(), totals, totals, histories)
def test_more_usage_never_projects_less(
    when: tuple[Period, datetime], one: Decimal, other: Decimal, history: list[int]
) -> None:
    over, now = when
    less, more = (said(each, over, now, before(now, history)) for each in sorted((one, other)))
    assert less.total <= more.total
    assert less.low <= more.low
    assert less.high <= more.high


@given(periods_and_moments(), totals, histories, st.integers(1, 10_000))
def test_the_unit_of_measure_does_not_matter(
    when: tuple[Period, datetime], total: Decimal, history: list[int], factor: int
) -> None:
    over, now = when
    one = said(total, over, now, before(now, history))
    many = said(total * factor, over, now, before(now, [each * factor for each in history]))
    rounding = Decimal("0.0005") * (factor + 1)
    for small, large in zip(
        (one.total, one.low, one.high), (many.total, many.low, many.high), strict=True
    ):
        assert abs(small * factor - large) <= rounding


def noisy(week: Sequence[float], noise: str, random: Random) -> dict[date, Decimal]:
    """A customer from eight weeks before June to its end."""
    days = {}
    for number in range(56 + 30):
        day = (JUNE.start - 56 * DAY).date() + number * DAY
        usual = 1000 * week[day.weekday()]
        spread = {"counting": (20 * usual) ** 0.5, "relative": 0.3 * usual}[noise]
        days[day] = Decimal(max(0, round(random.gauss(usual, spread))))
    return days


EVEN, UNEVEN, ONE = (1,) * 7, (1.4, 1.3, 1.4, 1.3, 1.2, 0.4, 0), (7, 0, 0, 0, 0, 0, 0)


@pytest.mark.parametrize("noise", ["counting", "relative"])
@pytest.mark.parametrize(
    ("week", "weeks", "elapsed"),
    [
        *((EVEN, 0, elapsed) for elapsed in (3, 8, 15, 22)),
        *((week, 0, elapsed) for week in (UNEVEN, ONE) for elapsed in (15, 22)),
        *(
            (week, weeks, elapsed)
            for week in (EVEN, UNEVEN, ONE)
            for weeks in (2, 8)
            for elapsed in (2, 8, 15, 22)
        ),
    ],
)
def test_four_times_in_five_what_comes_is_in_the_range(
    week: Sequence[float], weeks: int, elapsed: int, noise: str
) -> None:
    random = Random(80)
    now = JUNE.start + elapsed * DAY
    within = 0
    for _ in range(150):
        days = noisy(week, noise, random)
        of_june = [usage for day, usage in days.items() if day >= JUNE.start.date()]
        known = {d: u for d, u in days.items() if d >= JUNE.start.date() - weeks * 7 * DAY}
        projection = said(sum(of_june[:elapsed], Decimal(0)), JUNE, now, known)
        within += projection.low <= sum(of_june) <= projection.high
    assert 0.7 <= within / 150 <= 0.9


# -- quantities ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [4.0, 4, "4", True, None])
def test_a_quantity_that_is_no_decimal_is_refused(bad: object) -> None:
    now = at("2026-06-11")
    with pytest.raises(TypeError, match="total"):
        project(Aggregation.SUM, bad, JUNE, now, {})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="2026-06-10"):
        said(1, JUNE, now, {date(2026, 6, 10): bad})  # type: ignore[dict-item]


@pytest.mark.parametrize("bad", ["-1", "NaN", "sNaN", "Infinity", "-Infinity"])
def test_negative_and_infinite_quantities_are_refused(bad: str) -> None:
    now = at("2026-06-11")
    with pytest.raises(ValueError, match="total"):
        project(Aggregation.MAX, Decimal(bad), JUNE, JUNE.end, {})
    with pytest.raises(ValueError, match="2026-06-10"):
        said(1, JUNE, now, {date(2026, 6, 10): Decimal(bad)})


@pytest.mark.parametrize(
    "context",
    [
        decimal.Context(prec=3, rounding=decimal.ROUND_DOWN),
        decimal.Context(prec=3, traps=[decimal.Inexact, decimal.Rounded]),
        decimal.Context(prec=1, Emax=1, Emin=-1, clamp=1, traps=[]),
    ],
)
def test_the_hosts_decimal_context_changes_nothing(context: decimal.Context) -> None:
    now = at("2026-06-11T07:00")
    random = Random(7)
    days = before(now, [Decimal(random.randrange(10**6)).scaleb(-3) for _ in range(40)])
    tests = backtest(Aggregation.SUM, [JUNE], days)
    errors = [each.error for each in tests]
    projection = said(Decimal("1234.567"), JUNE, now, days)
    with decimal.localcontext(context):
        again = said(Decimal("1234.567"), JUNE, now, days)
        tests_again = backtest(Aggregation.SUM, [JUNE], days)
        errors_again = [each.error for each in tests_again]
    assert (again, tests_again, errors_again) == (projection, tests, errors)


# -- past periods ----------------------------------------------------------------------------------

MAY = period("2026-05-01", "2026-06-01")
BOTH = [MAY, JUNE]


def test_the_backtest_of_a_customer_who_uses_the_same_every_week_has_no_error() -> None:
    days = periodic(OFFICE, MAY.start - 30 * DAY, JUNE.end)
    tests = backtest(Aggregation.SUM, BOTH, days)
    assert [(each.period, each.share) for each in tests] == [
        (over, Decimal(share)) for over in BOTH for share in ("0.25", "0.5", "0.75")
    ]
    for each in tests:
        comes = brought(OFFICE, each.period.start, each.period.end)
        assert (each.projected, each.low, each.high, each.actual) == (comes,) * 4
        assert each.is_within
        assert each.error == 0


@given(st.lists(st.integers(0, 1000), min_size=91, max_size=91), st.integers(0, 30))
def test_the_backtest_knows_only_what_was_known_then(usage: list[int], changed: int) -> None:
    days = before(JUNE.end, usage)
    half = JUNE.start + 15 * DAY
    later = half.date() + changed % 15 * DAY
    (one,) = backtest(Aggregation.SUM, [JUNE], days, [Decimal("0.5")])
    (other,) = backtest(Aggregation.SUM, [JUNE], {**days, later: Decimal(9999)}, [Decimal("0.5")])
    assert (one.projected, one.low, one.high) == (other.projected, other.low, other.high)
    assert one.actual + 9999 == other.actual + days[later]
    used = sum((u for d, u in days.items() if JUNE.start.date() <= d < half.date()), Decimal(0))
    assert Projection(one.projected, one.low, one.high) == said(used, JUNE, half, days)


def test_the_day_under_way_is_counted_by_its_share() -> None:
    days = {date(2026, 5, 8): Decimal("80.0"), date(2026, 5, 20): Decimal("7.0")}
    (quarter,) = backtest(Aggregation.SUM, [MAY], days, [Decimal("0.25")])  # May 8, 18:00
    assert quarter == Backtest(
        MAY, Decimal("0.25"), Decimal(240), Decimal(150), Decimal(420), Decimal(87)
    )


def test_a_day_that_two_periods_share_is_counted_by_its_share_in_each() -> None:
    noon = period("2026-05-10T12:00", "2026-06-10T12:00")
    days = {date(2026, 5, 10): Decimal(11), date(2026, 6, 10): Decimal(3)}
    (test,) = backtest(Aggregation.SUM, [noon], days, [Decimal("0.25")])
    assert test.projected == 4 * 6  # 5.5, rounded to whole units as the days are
    assert test.actual == Decimal("5.5") + Decimal("1.5")


def test_moments_too_early_to_say_are_left_out() -> None:
    days = periodic(OFFICE, JUNE.start - 30 * DAY, JUNE.end)
    short = Period(JUNE.start, JUNE.start + 2 * DAY)
    shares = [Decimal("0"), Decimal("0.49"), Decimal("0.5"), Decimal("1")]
    tests = backtest(Aggregation.SUM, [short], days, shares)
    assert [each.share for each in tests] == [Decimal("0.5"), Decimal("1")]
    assert backtest(Aggregation.SUM, [], days) == []


@pytest.mark.parametrize(
    ("projected", "actual", "error", "is_within"),
    [
        ("110", "100", "0.1", True),
        ("110", "165", "-0.333333", False),
        ("0", "5", "-1", False),
        ("110", "90", "0.222222", True),
        ("110", "130", "-0.153846", True),
        ("110", "89.999", "0.222236", False),
        ("110", "0", None, False),
    ],
)
def test_an_error_is_relative_to_what_came(
    projected: str, actual: str, error: str | None, is_within: bool
) -> None:
    test = Backtest(
        JUNE, Decimal("0.5"), Decimal(projected), Decimal(90), Decimal(130), Decimal(actual)
    )
    assert test.error == (None if error is None else Decimal(error))
    assert test.is_within is is_within


def test_the_backtest_of_a_maximum_shows_how_much_it_still_grew() -> None:
    days = {date(2026, 6, 2): Decimal(40), date(2026, 6, 20): Decimal(10)}
    tests = backtest(Aggregation.MAX, [JUNE], days)
    assert [int(each.projected) for each in tests] == [40, 40, 50]
    assert [int(each.actual) for each in tests] == [50, 50, 50]


def test_a_unique_count_below_zero_for_a_day_is_taken_as_nothing() -> None:
    days = {date(2026, 6, 2): Decimal(-1), date(2026, 6, 20): Decimal(3)}
    tests = backtest(Aggregation.UNIQUE_COUNT, [JUNE], days)
    assert [int(each.projected) for each in tests] == [0, 0, 2]
    assert [int(each.actual) for each in tests] == [2, 2, 2]


def test_a_customer_without_any_usage_has_no_error() -> None:
    tests = backtest(Aggregation.COUNT, BOTH, {})
    assert [(each.error, each.is_within) for each in tests] == [(None, True)] * 6
    assert not any(each.projected for each in tests)
