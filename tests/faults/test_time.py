"""Cases 10-12: clocks that jump, rows at the edge of what Stripe takes, the edges of a period."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from fault_app import CLOCK
from fault_rig import VERIFY, Children, Rig, leases, sends, stripe_totals, until

from flask_c2meter.emulator import StripeEmulator
from flask_c2meter.model import to_ms
from flask_c2meter.store import Claimant, LaneTour
from flask_c2meter.testing import FrozenClock

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
SECOND = timedelta(seconds=1)


def set_clock(children: Children, shift: timedelta) -> None:
    """Shift the children's clock; at once, so that none reads half a number."""
    new = children.folder / "clock.new"
    new.write_text(str(shift.total_seconds()))
    new.replace(children.folder / "clock")


# -- case 10 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("jump", [-HOUR, DAY], ids=["one hour back", "one day ahead"])
def test_case_10_the_clock_jumps_while_everything_runs(
    children: Children, stripe: StripeEmulator, new_rig: Callable[..., Rig], jump: timedelta
) -> None:
    set_clock(children, timedelta(0))
    env = {"C2METER_CLOCK": CLOCK}
    worker = children.worker(env)
    rig = new_rig(stripe)
    rig.record_many((f"cus_{n}", 1, None) for n in range(50))
    until(lambda: stripe.events, 20)

    set_clock(children, jump)
    if jump > timedelta(0):
        stripe.advance(jump)  # or else it refuses what comes from the future, see below
    ticking = lambda: datetime.now(UTC) + jump  # noqa: E731
    jumped = new_rig(stripe, C2METER_CLOCK=ticking)
    jumped.record_many((f"cus_{n}", 1, None) for n in range(50))

    if jump < timedelta(0):
        # What was stamped before the jump lies in the future now and waits until the clock is set.
        until(lambda: len(stripe.events) >= 50, 30)
        set_clock(children, timedelta(0))
    until(lambda: sum(stripe_totals(stripe).values()) == 100, 30)
    worker.terminate()
    assert worker.wait(10) == 0
    jumped.assert_books_balance()


@pytest.mark.parametrize("jump", [-HOUR, DAY], ids=["one hour back", "one day ahead"])
def test_case_10_a_jump_of_our_clock_alone_loses_and_doubles_nothing(
    new_rig: Callable[..., Rig], stripe: StripeEmulator, clock: FrozenClock, jump: timedelta
) -> None:
    clock.now = datetime.now(UTC)
    rig = new_rig(stripe, clock)
    worker = rig.worker()
    rig.record_many((f"cus_{n}", 1, None) for n in range(20))
    # The jump comes while requests are in flight, and is corrected an hour later.
    stripe.fail(delay=0.2, times=20)
    thread = threading.Thread(target=worker.run_once)
    thread.start()
    until(lambda: sends(stripe) >= 5, 10)
    clock.advance(jump)
    rig.record_many((f"cus_{n}", 1, None) for n in range(20))
    thread.join(20)
    rig.worker().run_once()
    clock.advance(HOUR)
    rig.worker().run_once()
    clock.advance(-jump - HOUR)
    rig.worker().run_once()

    # What was stamped in the future waits until its time has come.
    stripe.advance(DAY)
    clock.advance(DAY)
    rig.drain()
    assert sum(stripe_totals(stripe).values()) == 40
    rig.assert_books_balance()


@pytest.mark.parametrize("jump", [-HOUR, timedelta(0), DAY], ids=["back", "none", "ahead"])
def test_case_10_leases_of_a_vanished_host_are_free_within_90_s_of_any_clock(
    frozen_rig: Rig, frozen_stripe: StripeEmulator, clock: FrozenClock, jump: timedelta
) -> None:
    frozen_rig.record_many((f"cus_{n}", 1, None) for n in range(5))
    elsewhere = Claimant("elsewhere:1:boot", to_ms(clock() + 60 * SECOND), [VERIFY], want=5)
    frozen_rig.store.exchange(elsewhere, LaneTour(), to_ms(clock()))
    assert len(leases(frozen_rig.folder)) == 5

    clock.advance(jump)
    for _ in range(10):
        frozen_rig.store.retake(lambda owner: False, to_ms(clock()), lease_ms=60_000)
        clock.advance(10 * SECOND)

    assert leases(frozen_rig.folder) == []
    if jump < DAY:
        frozen_rig.drain()
        frozen_rig.assert_books_balance()
    else:
        # A day may have passed since the attempt began: Stripe is asked before anything is resent.
        frozen_rig.worker().run_once()
        assert frozen_rig.counts()["in_doubt"] == "5"
        assert frozen_stripe.events == []


# -- case 11 ---------------------------------------------------------------------------------------


def test_case_11_rows_of_34_d_23_h_are_sent_as_they_are_and_of_35_d_1_h_set_aside(
    frozen_rig: Rig, frozen_stripe: StripeEmulator, clock: FrozenClock
) -> None:
    young, old = clock() - 35 * DAY + HOUR, clock() - 35 * DAY - HOUR
    frozen_rig.record_many([("cus_young", 3, young), ("cus_old", 5, old)])

    frozen_rig.worker().run_once()

    (event,) = frozen_stripe.events
    assert (event.customer, event.value, event.timestamp) == ("cus_young", 3, young)
    assert sends(frozen_stripe) == 1
    assert frozen_rig.dead() == [("cus_old", "expired")]
    assert list(frozen_rig.store.verify()) == []


def test_case_11_a_row_that_grows_too_old_while_it_waits_is_set_aside_unsent(
    frozen_rig: Rig, frozen_stripe: StripeEmulator, clock: FrozenClock
) -> None:
    frozen_rig.record_many([("cus_1", 1, clock() - 35 * DAY + HOUR)])
    frozen_stripe.accept_keys([])
    frozen_rig.worker().run_once()
    assert frozen_rig.dead() == []

    frozen_stripe.accept_keys(None)
    clock.advance(2 * HOUR)
    sent = sends(frozen_stripe)
    frozen_rig.drain()

    assert sends(frozen_stripe) == sent
    assert frozen_stripe.events == []
    assert frozen_rig.dead() == [("cus_1", "expired")]


def test_case_11_a_row_from_the_future_waits_for_its_time(
    frozen_rig: Rig, frozen_stripe: StripeEmulator, clock: FrozenClock
) -> None:
    soon = clock() + HOUR
    frozen_rig.record_many([("cus_1", 1, soon)])
    frozen_rig.worker().run_once()
    assert sends(frozen_stripe) == 0

    frozen_rig.drain()

    assert [event.timestamp for event in frozen_stripe.events] == [soon]
    assert sends(frozen_stripe) == 1


# -- case 12 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("delivered_late", [False, True])
def test_case_12_events_at_the_edge_of_a_period_count_in_the_right_one(
    frozen_rig: Rig, frozen_stripe: StripeEmulator, clock: FrozenClock, delivered_late: bool
) -> None:
    end = datetime(2026, 2, 1, tzinfo=UTC)
    clock.now = end - timedelta(minutes=1)
    if delivered_late:
        frozen_stripe.accept_keys([])
    for moment, value in ((end - SECOND, 1), (end, 10), (end + SECOND, 100)):
        clock.now = moment
        frozen_rig.record_many([("cus_1", value, None)])
        frozen_rig.worker().run_once()
    # Recorded late, too: it happened before the end.
    clock.advance(HOUR / 2)
    frozen_rig.record_many([("cus_1", 1000, end - SECOND)])
    frozen_stripe.accept_keys(None)
    frozen_rig.drain()

    def used(at: datetime) -> int:
        return int(frozen_rig.metering.usage("cus_1", at)[0].total)

    assert (used(end - SECOND), used(end)) == (1001, 110)
    by_month = {1: 0, 2: 0}
    for event in frozen_stripe.events:
        by_month[event.timestamp.month] += int(event.value)
    assert by_month == {1: 1001, 2: 110}
    frozen_rig.assert_books_balance()


def test_case_12_maxima_and_unique_counts_begin_anew_with_each_period(
    frozen_rig: Rig, frozen_stripe: StripeEmulator, clock: FrozenClock
) -> None:
    end = datetime(2026, 2, 1, tzinfo=UTC)
    metering = frozen_rig.metering
    clock.now = end + HOUR / 2
    for moment in (end, end - SECOND, end + SECOND):
        metering.record("storage_gb", "cus_1", occurred_at=moment, storage_gb="1.5")
        metering.record("active_sites", "cus_1", occurred_at=moment, domain="example.com")
    frozen_rig.drain()

    sent = sorted((e.event_name, e.timestamp.month, int(e.value)) for e in frozen_stripe.events)
    assert sent == [
        ("active_sites", 1, 1),
        ("active_sites", 2, 1),
        ("storage_gb", 1, 1500),
        ("storage_gb", 2, 1500),
    ]
    frozen_rig.assert_books_balance()
