"""Backoff, rate and breaker: how long to wait, how fast to go, when to pause."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_c2meter.pacing import BREAKER_FAILURES, MAX_BACKOFF_S, Breaker, Pace, backoff_s

# -- backoff ---------------------------------------------------------------------------------------


@given(attempts=st.integers(1, 10**6), seed=st.integers(0, 10**6))
def test_backoff_never_exceeds_its_bound(attempts: int, seed: int) -> None:
    wait_s = backoff_s(attempts, Random(seed))
    assert 0 <= wait_s <= min(MAX_BACKOFF_S, 2.0 ** min(attempts - 1, 20))


@pytest.mark.parametrize(("attempts", "bound"), [(1, 1), (2, 2), (5, 16), (9, 256), (10, 300)])
def test_backoff_is_full_jitter_over_the_whole_range(attempts: int, bound: float) -> None:
    random = Random(1)
    waits = [backoff_s(attempts, random) for _ in range(2000)]
    assert min(waits) < 0.01 * bound
    assert max(waits) > 0.99 * bound
    assert sum(waits) / len(waits) == pytest.approx(bound / 2, rel=0.05)


# -- pace ------------------------------------------------------------------------------------------


def spent_within(pace: Pace, start_s: float, seconds: float, step_s: float = 0.01) -> int:
    """How many requests a greedy sender starts within *seconds*."""
    spent = 0
    for step in range(round(seconds / step_s)):
        free = pace.available(start_s + step * step_s)
        pace.spend(free)
        spent += free
    return spent


@pytest.mark.parametrize("cap", [1.0, 20.0, 800.0])
def test_the_cap_holds_over_any_stretch_but_for_a_small_burst(cap: float) -> None:
    pace = Pace(cap)
    assert spent_within(pace, 0.0, 10.0) <= 10 * cap + max(1.0, cap / 10)
    assert spent_within(pace, 10.0, 10.0) == pytest.approx(10 * cap, rel=0.02, abs=1)


def test_a_long_rest_saves_up_a_tenth_of_a_second_only() -> None:
    pace = Pace(100)
    pace.available(0)
    assert pace.available(10_000) == 10


def test_it_says_how_long_to_wait_for_the_next_request() -> None:
    pace = Pace(10)
    assert pace.available(0) == 1
    assert pace.wait_s == 0
    pace.spend(1)
    assert pace.wait_s == pytest.approx(0.1)
    assert pace.available(pace.wait_s) == 1


def test_a_clock_that_goes_back_gives_nothing_away() -> None:
    pace = Pace(10)
    pace.spend(pace.available(100))
    assert pace.available(0) == 0


def test_a_429_halves_the_rate_at_most_once_a_second() -> None:
    pace = Pace(800)
    for now_s in (10.0, 10.1, 10.9):
        pace.slow_down(now_s)
    assert pace.rate == 400
    pace.slow_down(11.0)
    assert pace.rate == 200
    for now_s in range(12, 40):
        pace.slow_down(now_s)
    assert pace.rate == 1


def test_after_a_429_the_rate_grows_back_slowly() -> None:
    pace = Pace(800)
    pace.available(0)
    pace.slow_down(0)
    pace.available(1)
    assert pace.rate == pytest.approx(440)
    pace.available(60)
    assert pace.rate == 800


def test_after_an_outage_it_begins_at_ten_and_doubles_every_second() -> None:
    pace = Pace(800)
    pace.available(0)
    pace.ramp_up()
    assert pace.rate == 10
    for second, rate in ((1, 20), (2, 40), (5, 320), (9, 800)):
        pace.available(second)
        assert pace.rate == pytest.approx(rate)


def test_a_ramp_up_keeps_below_a_small_cap() -> None:
    pace = Pace(3)
    pace.ramp_up()
    assert pace.rate == 3


# -- breaker ---------------------------------------------------------------------------------------


def test_the_breaker_opens_after_five_failures_in_a_row() -> None:
    breaker = Breaker()
    opens = [breaker.note(healthy=False) for _ in range(BREAKER_FAILURES + 1)]
    assert opens == [False] * 4 + [True, True]


def test_one_success_closes_it() -> None:
    breaker = Breaker()
    for _ in range(BREAKER_FAILURES):
        breaker.note(healthy=False)
    assert breaker.note(healthy=True) is False
    assert breaker.note(healthy=False) is False
