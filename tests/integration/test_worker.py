"""From the ledger to Stripe: a worker, a real store, the emulator over a socket."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from random import Random

import pytest
from shipping_rig import HOUR, MINUTE, Rig, shipping

from flask_c2meter.errors import StoreUnavailable
from flask_c2meter.model import to_ms, utc_now
from flask_c2meter.shipment import Outcome, Shipment, ShipmentState, Verdict
from flask_c2meter.store import ALL, UNAVAILABLE, Claimant, LaneTour, encode
from flask_c2meter.testing import Failure, failpoint
from flask_c2meter.transports import StreamTransport
from flask_c2meter.worker import Worker

SECOND = timedelta(seconds=1)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with shipping(tmp_path) as rig:
        yield rig


def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> bool:
    """Poll *condition* until it holds or the time is up."""
    tick, rounds = threading.Event(), round(timeout_s / 0.005)
    return any(condition() or tick.wait(0.005) for _ in range(rounds))


# -- shipping --------------------------------------------------------------------------------------


def test_a_recorded_event_arrives_at_stripe_as_it_happened(rig: Rig) -> None:
    event = rig.record(units=7)
    rig.work()
    (arrived,) = rig.stripe.events
    assert (arrived.event_name, arrived.customer, arrived.value) == ("verify", "cus_1", 7)
    assert arrived.timestamp == event.occurred_at
    assert arrived.identifier == rig.only_shipment().identifier
    assert [s.state for s in rig.settled] == [ShipmentState.DELIVERED]


def test_a_backlog_costs_one_request_per_customer_and_minute(rig: Rig) -> None:
    for minute in range(3):
        for customer in range(10):
            for _ in range(5):
                at = rig.clock() - minute * MINUTE
                rig.record(customer=f"cus_{customer}", occurred_at=at)
    rig.work()
    assert len(rig.attempts()) == 30
    assert all(rig.sent(customer=f"cus_{customer}") == 15 for customer in range(10))


def test_a_correction_is_shipped_as_a_negative_value(rig: Rig) -> None:
    event = rig.record(units=7)
    rig.work()
    rig.adjust(event)
    rig.work()
    assert [int(event.value) for event in rig.stripe.events] == [7, -7]


def test_meters_that_are_not_billable_are_never_sent(rig: Rig) -> None:
    rig.record("sign")
    rig.work(meters=("verify",))
    assert rig.attempts() == []
    assert rig.store.counts()["sign"].unshipped == 1


def test_each_attempt_has_a_new_idempotency_key_that_leads_back(rig: Rig) -> None:
    rig.record()
    rig.stripe.fail(status=503, times=2)
    for _ in range(3):
        rig.work()
        rig.advance(MINUTE)
    identifier = rig.only_shipment().identifier
    sent = [request.idempotency_key for request in rig.attempts()]
    assert sent == [f"{identifier}.{n}" for n in (1, 2, 3)]


def test_nothing_runs_twice_when_nothing_is_due(rig: Rig) -> None:
    rig.record()
    rig.work()
    before = len(rig.stripe.requests)
    rig.work()
    assert len(rig.stripe.requests) == before


# -- outcomes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        {"reset": True},
        {"reset": True, "after_processing": True},
        {"status": 500},
        {"status": 500, "after_processing": True},
        {"status": 409, "code": "lock_timeout"},
        {"status": 429},
        {"status": 200, "body": "", "after_processing": True},
        {"status": 502, "body": "<html>", "after_processing": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("duplicate_code", [True, False])
def test_a_failed_attempt_is_repeated_until_stripe_has_it_once(
    tmp_path: Path, fault: dict[str, object], duplicate_code: bool
) -> None:
    with shipping(tmp_path, duplicate_code=duplicate_code) as rig:
        rig.record(units=3)
        rig.stripe.fail(times=2, **fault)  # type: ignore[arg-type]
        for _ in range(3):
            rig.work()
            rig.advance(MINUTE)
        assert rig.states() == ["delivered"]
        assert rig.sent() == 3


def test_nothing_is_tried_again_before_its_time(rig: Rig) -> None:
    rig.record()
    rig.stripe.fail(status=429, retry_after=120)
    rig.work()
    rig.advance(119 * SECOND)
    rig.work()
    assert len(rig.attempts()) == 1
    rig.advance(SECOND)
    rig.work()
    assert len(rig.attempts()) == 2


@pytest.mark.parametrize("headers", [{}, {"Stripe-Rate-Limited-Reason": "global-rate"}])
@pytest.mark.parametrize("status", [409, 429])
def test_a_pause_of_no_length_is_none_that_was_asked_for(
    rig: Rig, status: int, headers: dict[str, str]
) -> None:
    rig.record()
    rig.stripe.fail(status=status, retry_after=0, times=20, headers=headers)
    rig.work()
    assert len(rig.attempts()) == 1


def test_waits_are_drawn_from_a_growing_range(rig: Rig) -> None:
    rig.record()
    rig.stripe.fail(status=409, times=None)
    for attempt in range(1, 6):
        rig.work(random=Random(7 * attempt))
        due = rig.store.next_due_ms(["verify"], 0)
        assert due is not None
        bound_s = 2 ** (attempt - 1)
        expected = Random(7 * attempt)
        wait_ms = int(expected.uniform(0, bound_s) * 1000)
        assert due == to_ms(rig.clock()) + wait_ms
        rig.advance(timedelta(milliseconds=wait_ms))


def test_a_refused_shipment_is_dead_at_once_and_the_rest_goes_on(rig: Rig) -> None:
    for number in range(4):
        rig.record(customer=f"cus_{number}")
    rig.stripe.fail(
        status=400, code="payload_invalid_value", match=lambda request: b"cus_2" in request.body
    )
    rig.work()
    (dead,) = rig.store.shipments("dead")
    assert dead.customer == "cus_2"
    assert dead.reason == "invalid: payload_invalid_value"
    assert Counter(rig.states()) == {"delivered": 3, "dead": 1}


def test_an_error_of_the_transport_itself_loses_nothing(rig: Rig) -> None:
    class Broken:
        batch_size = 1

        def send(self, shipments: Sequence[Shipment]) -> Sequence[Outcome]:
            raise ZeroDivisionError

    rig.record()
    rig.work(transport=Broken())
    assert rig.states() == ["ready"]
    rig.advance(MINUTE)
    rig.work()
    assert rig.sent() == 1


def test_an_error_of_the_listener_loses_no_shipment(rig: Rig) -> None:
    for number in range(3):
        rig.record(customer=f"cus_{number}")

    def listener(settlement: object) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        rig.work(on_settled=listener)
    rig.store.retake(lambda owner: True, 0, 60_000)
    rig.work()
    assert [rig.sent(customer=f"cus_{number}") for number in range(3)] == [1, 1, 1]


# -- holds -----------------------------------------------------------------------------------------


def test_an_unknown_meter_holds_only_itself(tmp_path: Path) -> None:
    with shipping(tmp_path, auto_meters=False) as rig:
        _create_meter(rig, "sign")
        for number in range(5):
            rig.record("verify", customer=f"cus_{number}")
            rig.record("sign", customer=f"cus_{number}")
        rig.work()
        assert rig.store.counts()["sign"].delivered == 5
        assert rig.store.counts()["verify"].dead == 0
        assert [hold.meter for hold in rig.store.holds()] == ["verify"]

        _create_meter(rig, "verify")
        rig.advance(MINUTE)
        rig.work()
        rig.work()
        assert rig.store.holds() == []
        assert rig.store.counts()["verify"].delivered == 5


def _create_meter(rig: Rig, name: str) -> None:
    rig.gateway.ask(
        lambda client: client.v1.billing.meters.create(
            {
                "display_name": name,
                "event_name": name,
                "default_aggregation": {"formula": "sum"},
            }
        )
    )


def test_a_probe_without_an_answer_does_not_lift_a_hold(tmp_path: Path) -> None:
    with shipping(tmp_path, auto_meters=False) as rig:
        for number in range(5):
            rig.record(customer=f"cus_{number}")
        rig.work()
        assert [hold.meter for hold in rig.store.holds()] == ["verify"]
        rig.stripe.fail(status=503)
        rig.advance(MINUTE)
        rig.work()
        assert [hold.meter for hold in rig.store.holds()] == ["verify"]


def test_a_refused_key_pauses_everything_with_one_probe_a_minute(rig: Rig) -> None:
    """Case 19 in small: an hour of 401, then the key is accepted."""
    rig.stripe.accept_keys(["sk_test_other"])
    for number in range(20):
        rig.record(customer=f"cus_{number}")
    rig.work()
    at_first = len(rig.attempts())
    for _ in range(60):
        rig.advance(MINUTE)
        rig.work()
    assert len(rig.attempts()) - at_first <= 60
    assert [hold.meter for hold in rig.store.holds()] == [ALL]
    assert rig.store.counts()["verify"].dead == 0

    rig.stripe.accept_keys(None)
    rig.advance(MINUTE)
    rig.work()
    rig.work()
    assert rig.store.holds() == []
    assert rig.store.counts()["verify"].delivered == 20


def test_after_five_failures_the_breaker_opens_and_probes_every_five_seconds(rig: Rig) -> None:
    rig.stripe.fail(status=503, times=None)
    for number in range(40):
        rig.record(customer=f"cus_{number}")
    rig.work()
    assert [hold.reason for hold in rig.store.holds()] == [UNAVAILABLE]
    before = len(rig.attempts())
    for _ in range(60):
        rig.advance(SECOND)
        rig.work()
    assert len(rig.attempts()) - before <= 12

    rig.stripe.recover()
    rig.advance(5 * SECOND)
    for _ in range(4):
        rig.work()
        rig.advance(MINUTE)
    assert rig.store.counts()["verify"].delivered == 40


def test_on_the_stream_too_the_breaker_counts_requests(rig: Rig) -> None:
    for number in range(20):
        rig.record(customer=f"cus_{number}")
    rig.stripe.fail(status=503, path="*meter_event_stream", times=1)
    rig.work(transport=StreamTransport(rig.gateway))
    assert [request.status for request in rig.stripe.requests] == [200, 503]
    assert rig.store.holds() == []

    rig.advance(MINUTE)
    rig.work(transport=StreamTransport(rig.gateway))
    assert rig.store.counts()["verify"].delivered == 20


def test_on_the_stream_too_five_failures_open_the_breaker(rig: Rig) -> None:
    worker = rig.worker(transport=StreamTransport(rig.gateway))
    rig.stripe.fail(status=503, path="*meter_event_stream", times=None)
    for failures in range(1, 6):
        rig.record(customer=f"cus_{failures}")
        worker.run_once()
        assert [hold.reason for hold in rig.store.holds()] == [UNAVAILABLE] * (failures == 5)


# -- one account -----------------------------------------------------------------------------------


def test_a_store_delivers_to_one_account_only(rig: Rig) -> None:
    rig.record()
    rig.work()
    rig.record(occurred_at=rig.clock() - MINUTE)
    rig.work(account="api.stripe.com live")
    assert rig.sent() == 1
    rig.work()
    assert rig.sent() == 2


# -- the spill -------------------------------------------------------------------------------------


def test_spilled_events_are_recorded_and_shipped(rig: Rig) -> None:
    event = rig.event(units=4)
    rig.spill.append([encode(event), encode(event)])
    rig.work()
    assert rig.spill.is_empty
    assert rig.sent() == 4


def test_a_spill_file_that_cannot_be_read_keeps_no_delivery_waiting(rig: Rig) -> None:
    rig.spill.path.mkdir()
    rig.record()
    with pytest.raises(StoreUnavailable, match="spill file"):
        rig.work()
    assert rig.sent() == 1


def test_a_spilled_event_of_a_meter_that_left_the_catalogue_blocks_nobody(rig: Rig) -> None:
    rig.spill.append([encode(rig.event("old_meter"))])
    rig.record()
    rig.work()
    assert rig.sent() == 1
    assert rig.spill.is_empty
    assert [event.meter for event in rig.store.events()] == ["verify", "old_meter"]
    rig.store.meters["old_meter"] = rig.store.meters["verify"]  # type: ignore[index]
    rig.store.rebuild(rig.clock())


# -- crashes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["after_claim", "before_ack", "after_ack"])
def test_a_worker_that_fails_anywhere_is_taken_over_without_loss_or_double(
    rig: Rig, place: str
) -> None:
    for number in range(3):
        rig.record(customer=f"cus_{number}")

    def fail() -> None:
        raise Failure(place)

    with failpoint(place, fail), pytest.raises(Failure):
        rig.work()
    rig.store.retake(lambda owner: True, 0, 60_000)
    rig.work()
    rig.advance(MINUTE)
    rig.work()
    assert [rig.sent(customer=f"cus_{number}") for number in range(3)] == [1, 1, 1]
    assert set(rig.states()) == {"delivered"}


@pytest.mark.parametrize("place", ["after_claim", "after_send", "before_ack"])
def test_the_lanes_of_a_killed_process_are_retaken_at_once(rig: Rig, place: str) -> None:
    rig.record(units=3)
    child = os.fork()
    if child == 0:
        try:
            with failpoint(place, lambda: os.kill(os.getpid(), signal.SIGKILL)):
                rig.work()
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert rig.states() == ["sending"]

    rig.work()  # its first chore is to look for the dead
    rig.work()

    assert rig.sent() == 3
    assert rig.states() == ["delivered"]


def test_a_lease_of_another_host_is_left_until_it_is_over(rig: Rig) -> None:
    rig.record()
    claimant = Claimant(
        "elsewhere:1:x", int(rig.clock().timestamp() * 1000) + 60_000, ["verify"], 1
    )
    rig.store.exchange(claimant, LaneTour(), int(rig.clock().timestamp() * 1000))
    rig.work()
    assert rig.attempts() == []
    rig.advance(MINUTE)
    rig.work()
    rig.work()
    assert rig.sent() == 1


# -- life ------------------------------------------------------------------------------------------


@pytest.fixture
def running(rig: Rig) -> Iterator[Worker]:
    """A worker as a thread, on real time."""
    rig.clock.now = utc_now()
    worker = rig.worker()
    worker.start()
    yield worker
    worker.stop()
    assert until(lambda: not worker.is_running)


def test_a_woken_worker_delivers_within_a_second(rig: Rig, running: Worker) -> None:
    rig.record()
    running.wake()
    assert rig.stripe.wait_for(1, timeout=1.0)


def test_what_another_process_recorded_is_found_without_being_woken(
    rig: Rig, running: Worker
) -> None:
    rig.record()
    assert rig.stripe.wait_for(1, timeout=3.0)


def test_starting_twice_is_starting_once(rig: Rig, running: Worker) -> None:
    before = set(threading.enumerate())
    running.start()
    running.start()
    started = set(threading.enumerate()) - before
    assert not {"c2meter-courier", "c2meter-clerk"} & {thread.name for thread in started}


def test_a_stopping_worker_finishes_what_is_in_flight_and_gives_the_rest_back(rig: Rig) -> None:
    """P13: no lease is left, nothing unsent counts as an attempt that may have arrived."""
    rig.clock.now = utc_now()
    for number in range(30):
        rig.record(customer=f"cus_{number}")
    rig.stripe.fail(delay=0.5, times=None)
    worker = rig.worker()
    worker.start()
    worker.wake()
    assert rig.stripe.wait_for(lambda stripe: len(stripe.requests) >= 16)
    worker.stop()
    assert until(lambda: not worker.is_running)

    assert "sending" not in rig.states()
    assert Counter(rig.states())["delivered"] == len(rig.stripe.events)
    assert rig.store.retake(lambda owner: True, 0, 60_000) == 0
    assert all(s.first_attempt_at is None for s in rig.store.shipments("ready"))
    rig.stripe.recover()
    rig.work()
    assert len(rig.stripe.events) == 30
    assert rig.stripe.duplicates == 0


def test_a_working_worker_signs_on_and_a_stopped_one_signs_off(rig: Rig) -> None:
    rig.clock.now = utc_now()
    worker = rig.worker()
    worker.start()
    worker.wake()

    def signed_on() -> list[int]:
        facts = rig.store.facts().items()
        return [fact["pid"] for name, fact in facts if name.startswith("worker:")]

    assert until(lambda: signed_on() == [os.getpid()])
    worker.stop()
    assert until(lambda: not worker.is_running)
    assert signed_on() == []


def test_the_rate_cap_is_kept(rig: Rig) -> None:
    rig.clock.now = utc_now()
    for number in range(30):
        rig.record(customer=f"cus_{number}")
    worker = rig.worker(rate_cap=20.0)
    worker.start()
    worker.wake()
    try:
        assert rig.stripe.wait_for(30, timeout=10)
    finally:
        worker.stop()
        assert until(lambda: not worker.is_running)


def test_no_lane_ever_has_two_requests_in_flight(rig: Rig) -> None:
    """The emulator answers 409 to the second one, as Stripe does."""
    workers = [rig.worker(transport=None) for _ in range(3)]
    for minute in range(8):
        for customer in range(4):
            rig.record(customer=f"cus_{customer}", occurred_at=rig.clock() - minute * MINUTE)
    threads = [threading.Thread(target=worker.run_once) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    rig.work()
    assert [request.status for request in rig.attempts()] == [200] * 32
    assert [rig.sent(customer=f"cus_{customer}") for customer in range(4)] == [8] * 4


def test_a_day_of_faults_ends_with_what_was_recorded(tmp_path: Path) -> None:
    """Every tenth answer is lost or late; Stripe's totals equal the ledger's."""
    with shipping(tmp_path, seed=3) as rig:
        rig.stripe.fail(reset=True, after_processing=True, times=None, rate=0.05)
        rig.stripe.fail(status=503, times=None, rate=0.05)
        dice = Random(5)
        oracle: Counter[tuple[str, str]] = Counter()
        for _ in range(48):
            for _ in range(10):
                meter, customer = dice.choice(["verify", "sign"]), f"cus_{dice.randrange(5)}"
                units = dice.randrange(1, 9)
                rig.record(meter, units, customer=customer)
                oracle[meter, customer] += units
            rig.work()
            rig.advance(HOUR / 2)
        rig.stripe.recover()
        for _ in range(3):
            rig.work()
            rig.advance(HOUR / 2)
        for (meter, customer), units in oracle.items():
            assert rig.sent(meter, customer) == units
        assert set(rig.states()) == {"delivered"}


def test_verdicts_that_are_certain_forget_the_attempt(rig: Rig) -> None:
    """What certainly did not arrive may be sent again for 35 days, not for 23 hours."""

    class Refusing:
        batch_size = 1

        def send(self, shipments: Sequence[Shipment]) -> Sequence[Outcome]:
            return [Outcome(Verdict.RETRY, "429", retry_after_s=60.0)] * len(shipments)

    rig.record()
    for _ in range(5):
        rig.work(transport=Refusing())
        rig.advance(24 * HOUR)
    rig.work()
    assert rig.sent() == 1
