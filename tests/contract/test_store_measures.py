"""How delivery fares, as every store tells it: waits, failures, alerts, what is on its way."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from storekit import DAY, HOUR, METERS, MINUTE, NOW, Sender, delivered, record, usage

from flask_c2meter.model import Customer, to_ms
from flask_c2meter.shipment import DeadReason, ShipmentState
from flask_c2meter.store import AlertPolicy, Settlement, Store, open_store
from flask_c2meter.store.measures import BEYOND_MS
from flask_c2meter.thresholds import Allowance

SECOND = timedelta(seconds=1)


def deliver(store: Store, at: Any, claimed_at: Any = None) -> None:
    """Claim everything and have it delivered."""
    sender = Sender(store)
    claimed = sender.claim(at=claimed_at or at)
    sender.settle(*map(delivered, claimed), at=at)


def waits_s(store: Store, since: Any = NOW - DAY) -> list[float]:
    return [ms / 1000 for ms in store.measures.deliveries(since).waits_ms]


# -- waits -----------------------------------------------------------------------------------------


def test_an_event_waits_from_its_recording_not_from_its_occurrence(store: Store) -> None:
    record(store, usage(occurred_at=NOW - 3 * DAY, recorded_at=NOW))
    deliver(store, at=NOW + 2 * SECOND)
    assert waits_s(store) == [2]


def test_of_a_shipment_counts_the_event_that_has_waited_longest(store: Store) -> None:
    record(store, usage(recorded_at=NOW + 40 * SECOND))
    record(store, usage(recorded_at=NOW + 10 * SECOND))  # such as one replayed from the spill
    record(store, usage(recorded_at=NOW + 45 * SECOND))
    deliver(store, at=NOW + 50 * SECOND)
    assert waits_s(store) == [10]


def test_in_one_batch_too(store: Store) -> None:
    record(store, usage(recorded_at=NOW + 5 * SECOND), usage(recorded_at=NOW + 2 * SECOND))
    deliver(store, at=NOW + 10 * SECOND)
    assert waits_s(store) == [8]


def test_what_comes_after_a_shipment_waits_from_its_own_recording(store: Store) -> None:
    record(store, usage())
    deliver(store, at=NOW + SECOND)
    record(store, usage(recorded_at=NOW + 30 * SECOND))
    deliver(store, at=NOW + 33 * SECOND)
    assert waits_s(store) == [1, 3]


def test_a_retry_goes_on_waiting(store: Store) -> None:
    record(store, usage())
    sender = Sender(store)
    (first,) = sender.claim()
    again = Settlement(first, ShipmentState.READY, "503", to_ms(NOW + MINUTE))
    sender.settle(again, at=NOW)
    (second,) = sender.claim(at=NOW + MINUTE)
    assert second.waiting_since == NOW
    sender.settle(delivered(second), at=NOW + MINUTE)
    assert waits_s(store) == [60]


def test_after_a_rebuild_it_is_the_occurrence_that_counts(store: Store) -> None:
    record(store, usage(occurred_at=NOW - MINUTE, recorded_at=NOW))
    store.rebuild(NOW)
    deliver(store, at=NOW + SECOND)
    assert waits_s(store) == [61]


def test_only_the_recent_past_is_looked_at(store: Store) -> None:
    record(store, usage())
    deliver(store, at=NOW + SECOND)
    record(store, usage(occurred_at=NOW + 2 * DAY, recorded_at=NOW + 2 * DAY))
    deliver(store, at=NOW + 2 * DAY + 2 * SECOND)
    assert waits_s(store, since=NOW + DAY) == [2]
    assert waits_s(store, since=NOW) == [1, 2]


def test_the_histogram_adds_up_for_ever(store: Store) -> None:
    for number, wait in enumerate((0.1, 0.101, 5, 2 * 3600)):
        at = NOW + number * DAY
        record(store, usage(occurred_at=at, recorded_at=at))
        deliver(store, at=at + timedelta(seconds=wait))
    times = store.measures.times()["verify"]
    assert times.shipments == {100: 1, 500: 1, 5_000: 1, BEYOND_MS: 1}
    assert times.waited_ms == 100 + 101 + 5_000 + 7_200_000


def test_a_settlement_that_is_refused_is_not_in_the_histogram(store: Store) -> None:
    record(store, usage())
    sender, other = Sender(store), Sender(store, owner="host:2:b")
    (shipment,) = sender.claim()
    assert other.settle(delivered(shipment)) == []
    assert store.measures.times() == {}


def test_what_was_in_doubt_and_is_proved_is_in_the_histogram(store: Store) -> None:
    record(store, usage())
    sender = Sender(store)
    (shipment,) = sender.claim()
    sender.settle(Settlement(shipment, ShipmentState.READY, "timeout", to_ms(NOW + DAY)))
    sender.claim(at=NOW + DAY)
    (doubted,) = store.shipments("in_doubt")
    for _ in range(2):  # another process may have been as fast
        store.end_doubt(doubted.identifier, "delivered", to_ms(NOW + 25 * HOUR))
        store.end_doubt(doubted.identifier, "delivered", to_ms(NOW + 26 * HOUR))
    times = store.measures.times()["verify"]
    assert (times.shipments, times.waited_ms) == ({BEYOND_MS: 1}, 25 * 3_600_000)


# -- failures --------------------------------------------------------------------------------------


def test_what_is_dead_has_failed_and_what_was_sent_anew_has_not(store: Store) -> None:
    record(store, usage(), usage("sign"), usage("calls"))
    sender = Sender(store)
    claimed = {shipment.meter: shipment for shipment in sender.claim()}
    sender.settle(
        delivered(claimed["verify"]),
        Settlement(claimed["sign"], ShipmentState.DEAD, DeadReason.INVALID.value),
        Settlement(claimed["calls"], ShipmentState.READY, "timeout", to_ms(NOW + DAY)),
    )
    sender.claim(at=NOW + DAY)
    store.end_doubt(claimed["calls"].identifier, "lost", to_ms(NOW + 25 * HOUR))
    found = store.measures.deliveries(NOW - DAY)
    assert (len(found.waits_ms), found.failed) == (1, 1)


# -- what is on its way ----------------------------------------------------------------------------


def test_the_backlog_is_what_stripe_does_not_have(store: Store) -> None:
    record(store, usage(units=3, occurred_at=NOW - HOUR), usage("sign", 5))
    assert store.measures.backlog(["verify"])["verify"].unshipped == 3
    (shipment,) = Sender(store, meters=["verify"]).claim()
    record(store, usage(units=2, occurred_at=NOW - 2 * HOUR))

    found = store.measures.backlog(["verify", "calls"])

    assert found.keys() == {"verify", "calls"}
    assert found["verify"].unshipped == 2
    assert found["verify"].shipments == {"sending": 1}
    assert found["verify"].oldest_ms == to_ms(NOW - 2 * HOUR)
    assert (found["calls"].unshipped, found["calls"].oldest_ms) == (0, None)
    assert shipment.meter == "verify"


def test_what_is_dead_does_not_age(store: Store) -> None:
    record(store, usage())
    sender = Sender(store)
    (shipment,) = sender.claim()
    sender.settle(Settlement(shipment, ShipmentState.DEAD, DeadReason.INVALID.value))
    found = store.measures.backlog(["verify"])["verify"]
    assert (found.shipments, found.oldest_ms) == ({"dead": 1}, None)


def test_every_event_recorded_is_counted(store: Store) -> None:
    assert store.measures.recorded() == 0
    record(store, usage(key="once"), usage("sign"))
    record(store, usage(key="once"))
    assert store.measures.recorded() == 2


# -- alerts ----------------------------------------------------------------------------------------


@pytest.fixture
def alerting(store_url: str) -> Any:
    allowances = {("verify", "starter"): Allowance(10, (8, 10, 11))}
    policy = AlertPolicy(allowances, channels=("in_app", "signal", "webhook"))
    store = open_store(store_url, METERS, alerts=policy)
    yield store
    store.close()


def raise_alert(store: Store, customer: str) -> None:
    record(store, usage(units=9, customer=customer), customer=Customer(customer, plan="starter"))


def test_an_alert_is_through_when_its_last_channel_is(alerting: Store) -> None:
    raise_alert(alerting, "cus_1")
    queue = alerting.announcements
    signal = queue.claim("signal", NOW)
    assert signal is not None
    queue.delivered(signal, NOW + SECOND)
    waiting = alerting.measures.alert_delays(NOW - DAY, NOW + HOUR)
    assert (waiting.delays_ms, waiting.waiting_ms, waiting.failed) == ([], [3_600_000], 0)

    webhook = queue.claim("webhook", NOW)
    assert webhook is not None
    queue.delivered(webhook, NOW + MINUTE)
    through = alerting.measures.alert_delays(NOW - DAY, NOW + HOUR)
    assert (through.delays_ms, through.waiting_ms, through.failed) == ([60_000], [], 0)
    assert alerting.measures.alert_delays(NOW + SECOND, NOW + HOUR).delays_ms == []


def test_an_alert_that_a_channel_gives_up_has_failed(alerting: Store) -> None:
    raise_alert(alerting, "cus_1")
    queue = alerting.announcements
    webhook = queue.claim("webhook", NOW)
    assert webhook is not None
    queue.give_up(webhook, NOW + DAY, "500")
    found = alerting.measures.alert_delays(NOW - DAY, NOW + DAY)
    assert (found.delays_ms, found.waiting_ms, found.failed) == ([], [], 1)
