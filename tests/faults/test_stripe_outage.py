"""Cases 15-20: Stripe is slow, broken, overloaded, offended or having second thoughts.

In virtual time: the clock, Stripe's and ours, moves from one due time to the next.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

import pytest
from fault_rig import VERIFY, Rig, sends, stripe_totals

from flask_c2meter.emulator import StripeEmulator
from flask_c2meter.testing import FrozenClock

SECOND, MINUTE, HOUR = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1)

long = [pytest.mark.long, pytest.mark.timeout(900)]


# -- case 15 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("customers", "minutes"), [(30, 10), pytest.param(200, 50, marks=long)])
def test_case_15_reset_after_processing_of_every_tenth_request_counts_once(
    frozen_rig: Rig, frozen_stripe: StripeEmulator, customers: int, minutes: int
) -> None:
    rows = frozen_rig.backlog(customers, minutes, frozen_rig.clock())
    frozen_stripe.fail(reset=True, after_processing=True, rate=0.1, times=None)

    frozen_rig.drain()

    assert len(frozen_stripe.events) == rows
    assert frozen_stripe.duplicates > 0
    frozen_rig.assert_books_balance()


@pytest.mark.parametrize(("customers", "minutes"), [(10, 10), pytest.param(200, 50, marks=long)])
def test_case_15_read_timeout_after_processing_of_every_tenth_request_counts_once(
    frozen_rig: Rig, frozen_stripe: StripeEmulator, customers: int, minutes: int
) -> None:
    rows = frozen_rig.backlog(customers, minutes, frozen_rig.clock())
    frozen_stripe.fail(delay=0.6, after_processing=True, rate=0.1, times=None)

    frozen_rig.drain(frozen_rig.worker(deadline_s=0.3))

    assert len(frozen_stripe.events) == rows
    assert frozen_stripe.duplicates > 0
    frozen_rig.assert_books_balance()


# -- case 16 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("retry_after", "wait"),
    [
        pytest.param(45, 45 * SECOND, id="seconds"),
        pytest.param("date", 300 * SECOND, id="date"),
        pytest.param(None, timedelta(0), id="none"),
        pytest.param(999_999_999, HOUR, id="huge is one hour"),
        pytest.param("soon", timedelta(0), id="garbage"),
    ],
)
@pytest.mark.parametrize("scope", ["lane", "account"])
def test_case_16_nothing_is_sent_earlier_than_429_asks(
    frozen_rig: Rig,
    frozen_stripe: StripeEmulator,
    clock: FrozenClock,
    retry_after: int | str | None,
    wait: timedelta,
    scope: str,
) -> None:
    frozen_rig.backlog(8, 2, clock())
    date = clock() + wait
    headers = {"Stripe-Rate-Limited-Reason": "global-rate"} if scope == "account" else {}
    frozen_stripe.fail(
        429,
        times=4,
        retry_after=date if retry_after == "date" else retry_after,
        headers=headers,
    )

    frozen_rig.drain()

    refused: dict[str, datetime] = {}  # identifier -> when it may be sent again
    for request in frozen_stripe.requests:
        identifier = request.idempotency_key.partition(".")[0]
        if identifier in refused:
            assert request.received_at >= refused[identifier]
        if request.status == 429:
            is_date = retry_after == "date"
            refused[identifier] = date if is_date else request.received_at + wait
    assert len(refused) >= 4 if scope == "lane" else refused
    frozen_rig.assert_books_balance()


# -- case 17 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("customers", "minutes", "outage"),
    [
        (100, 10, 2 * MINUTE),
        pytest.param(1000, 50, 10 * MINUTE, marks=[pytest.mark.long, pytest.mark.timeout(1800)]),
    ],
)
@pytest.mark.parametrize("fault", [{"status": 500}, {"status": 503}, {"reset": True}], ids=str)
def test_case_17_an_outage_costs_few_requests_and_no_row(
    frozen_rig: Rig,
    frozen_stripe: StripeEmulator,
    clock: FrozenClock,
    customers: int,
    minutes: int,
    outage: timedelta,
    fault: dict[str, object],
) -> None:
    rows = frozen_rig.backlog(customers, minutes, clock())
    frozen_stripe.fail(times=None, **fault)

    frozen_rig.drain(at={clock() + outage: frozen_stripe.recover})

    assert sends(frozen_stripe) <= 1.1 * rows
    assert len(frozen_stripe.events) == rows
    frozen_rig.assert_books_balance()


def test_an_hour_without_stripe_loses_nothing_and_recording_goes_on(
    frozen_rig: Rig, frozen_stripe: StripeEmulator, clock: FrozenClock
) -> None:
    end = clock() + HOUR
    frozen_stripe.stop()  # not even a connection
    worker = frozen_rig.worker()
    recorded = 0
    while clock() < end:
        recorded += frozen_rig.record_many((f"cus_{n}", 2, None) for n in range(20))
        worker.run_once()
        clock.advance(MINUTE)
    assert frozen_rig.counts()["delivered"] == "0"
    assert frozen_rig.metering.status()["breaker"] == "open"

    frozen_stripe.start()
    frozen_rig.drain(worker)

    assert sum(stripe_totals(frozen_stripe).values()) == 2 * recorded
    assert frozen_rig.metering.status()["healthy"]
    frozen_rig.assert_books_balance()


# -- case 18 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "most_requests"), [("v1", 110), ("stream", 16)])
def test_case_18_one_bad_shipment_among_a_hundred_takes_no_other_with_it(
    frozen_rig: Rig, frozen_stripe: StripeEmulator, kind: str, most_requests: int
) -> None:
    frozen_rig.backlog(100, 1, frozen_rig.clock())
    frozen_stripe.fail(
        400,
        times=None,
        code="payload_invalid_value",
        match=lambda request: b"cus_61" in request.body,
    )

    frozen_rig.drain(frozen_rig.worker(kind=kind))

    assert frozen_rig.dead() == [("cus_61", "invalid: payload_invalid_value")]
    assert len(frozen_stripe.events) == 99
    # On the stream: fifteen with events, and one to open the session.
    assert len(frozen_stripe.requests) <= most_requests
    assert list(frozen_rig.store.verify()) == []
    assert frozen_rig.counts()["dead_shipments"] == 1


def test_case_18_an_archived_meter_holds_only_itself(
    frozen_rig: Rig, frozen_stripe: StripeEmulator, clock: FrozenClock
) -> None:
    frozen_rig.backlog(30, 1, clock())
    for number in range(5):
        frozen_rig.metering.record("active_sites", f"cus_{number}", domain="example.com")
    frozen_stripe.fail(
        400,
        times=None,
        code="archived_meter",
        match=lambda request: b"active_sites" in request.body,
    )
    worker = frozen_rig.worker()
    worker.run_once()
    assert {event.event_name for event in frozen_stripe.events} == {VERIFY}
    assert len(frozen_stripe.events) == 30
    assert [hold.meter for hold in frozen_rig.store.holds()] == ["active_sites"]

    frozen_stripe.recover()
    frozen_rig.drain(worker)
    frozen_rig.assert_books_balance()


# -- case 19 ---------------------------------------------------------------------------------------


def test_case_19_an_hour_of_401_costs_one_probe_a_minute_and_ends_without_restart(
    frozen_rig: Rig, frozen_stripe: StripeEmulator, clock: FrozenClock
) -> None:
    frozen_rig.backlog(50, 3, clock())
    frozen_stripe.accept_keys(["sk_test_other"])
    worker = frozen_rig.worker()
    worker.run_once()  # what is under way when the key is revoked is refused together
    first = sends(frozen_stripe)
    back_at = clock() + HOUR
    probes: list[int] = []

    def give_back() -> None:
        probes.append(sends(frozen_stripe) - first)
        frozen_stripe.accept_keys(None)

    frozen_rig.drain(worker, at={back_at: give_back})

    assert probes[0] <= 60
    assert first <= 32
    resumed = min(event.received_at for event in frozen_stripe.events)
    assert resumed - back_at <= 60 * SECOND
    frozen_rig.assert_books_balance()


def test_case_19_a_worker_with_the_rotated_key_resumes_within_60_s(
    frozen_rig: Rig, frozen_stripe: StripeEmulator, clock: FrozenClock
) -> None:
    frozen_rig.backlog(50, 3, clock())
    frozen_stripe.accept_keys(["sk_test_rotated"])
    old = frozen_rig.worker()
    for _ in range(60):
        old.run_once()
        clock.advance(MINUTE)
    assert frozen_stripe.events == []

    rotated_at = clock()
    frozen_rig.drain(frozen_rig.worker(key="sk_test_rotated"))

    resumed = min(event.received_at for event in frozen_stripe.events)
    assert resumed - rotated_at <= 60 * SECOND
    frozen_rig.assert_books_balance()


# -- case 20 ---------------------------------------------------------------------------------------


def test_case_20_an_async_error_report_makes_a_delivered_shipment_dead_once(
    new_rig: Callable[..., Rig], clock: FrozenClock
) -> None:
    with StripeEmulator(clock=clock, customers={"cus_0"}) as stripe:
        rig = new_rig(stripe, clock)
        rig.record_many([("cus_0", 1, None), ("cus_gone", 5, None)])
        rig.drain()
        assert rig.counts()["delivered"] == "6"
        (report,) = stripe.async_errors

        def take() -> bool:
            return bool(rig.store.reject([report.identifier], report.code, clock()))

        assert [take(), take(), take()] == [True, False, False]
        assert rig.dead() == [("cus_gone", f"rejected_async: {report.code}")]
        counts = rig.counts()
        assert (counts["delivered"], counts["dead"], counts["dead_shipments"]) == ("1", "5", 1)
        assert list(rig.store.verify()) == []

        rig.drain()
        assert stripe_totals(stripe) == {(VERIFY, "cus_0"): 1}


def test_case_20_a_report_may_name_the_attempt_and_an_unknown_one_changes_nothing(
    frozen_rig: Rig, clock: FrozenClock
) -> None:
    frozen_rig.record_many([("cus_0", 1, None)])
    frozen_rig.drain()
    (shipment,) = frozen_rig.store.shipments("delivered")

    def take(identifier: str) -> bool:
        return bool(frozen_rig.store.reject([identifier], "no_meter", clock()))

    assert not take("nobody-knows-this.1")
    assert frozen_rig.dead() == []
    assert take(f"{shipment.identifier}.{shipment.attempts}")
    assert frozen_rig.dead() == [("cus_0", "rejected_async: no_meter")]
