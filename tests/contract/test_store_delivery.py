"""What every store promises of delivery: one lane at a time, nothing lost, nothing twice."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select
from storekit import (
    DAY,
    HOUR,
    LEASE,
    METERS,
    MINUTE,
    NOW,
    Sender,
    adjustment,
    assert_consistent,
    delivered,
    record,
    retry,
    total,
    usage,
)

from flask_c2meter.model import MAX_UNITS, UsageEvent, from_ms, new_id, to_ms
from flask_c2meter.shipment import DeadReason, Shipment, ShipmentState
from flask_c2meter.store import (
    ALL,
    UNAVAILABLE,
    Doubt,
    Hold,
    MeterCounts,
    Settlement,
    Store,
    probe_after_ms,
)
from flask_c2meter.store.tables import shipments

# -- cutting and claiming --------------------------------------------------------------------------


def test_a_minute_becomes_one_shipment_with_the_time_of_its_latest_event(store: Store) -> None:
    late = NOW + timedelta(seconds=40)
    record(store, usage(units=2, occurred_at=late), usage(units=3))

    (shipment,) = Sender(store).claim(at=late)

    assert (shipment.value, shipment.timestamp, shipment.attempts) == (5, late, 1)
    assert shipment.customer == "cus_1" and shipment.meter == "verify"
    assert len(shipment.identifier) <= 100
    assert store.shipments("sending")[0].identifier == shipment.identifier
    assert_consistent(store)


def test_what_is_on_its_way_is_never_cut_twice(store: Store) -> None:
    record(store, usage(units=2))
    sender = Sender(store)
    (shipment,) = sender.claim()
    assert sender.claim() == []
    record(store, usage(units=3))
    sender.settle(delivered(shipment))
    assert [again.value for again in sender.claim()] == [3]


def test_a_lane_has_at_most_one_request_in_flight(store: Store) -> None:
    for minute in range(5):
        record(store, usage(occurred_at=NOW - minute * MINUTE))
        record(store, usage("sign", occurred_at=NOW - minute * MINUTE))
    first, second = Sender(store, "host:1:a"), Sender(store, "host:2:b")

    claimed = first.claim() + second.claim()

    assert sorted(shipment.meter for shipment in claimed) == ["sign", "verify"]


def test_the_oldest_minute_of_a_lane_goes_first(store: Store) -> None:
    for minute in (1, 3, 2):
        record(store, usage(units=minute, occurred_at=NOW - minute * MINUTE))
    sender = Sender(store)
    values = []
    while claimed := sender.claim():
        values.append(claimed[0].value)
        sender.settle(delivered(claimed[0]))
    assert values == [3, 2, 1]


def test_no_more_lanes_are_claimed_than_wanted(store: Store) -> None:
    record(store, *(usage(customer=f"cus_{n}") for n in range(5)))
    sender = Sender(store)
    assert len(sender.claim(2)) == 2
    assert len(sender.claim(0)) == 0
    assert len(sender.claim(9)) == 3


@pytest.mark.parametrize("want", [1, 2, 3])
@pytest.mark.parametrize("customers", [2, 3, 4])
def test_the_round_passes_every_lane_however_busy_the_others_are(
    store: Store, want: int, customers: int
) -> None:
    names = [f"cus_{n}" for n in range(customers)]
    lanes = {(name, meter) for name in names for meter in ("verify", "sign")}
    sender = Sender(store, meters=("verify", "sign"))
    served: Counter[tuple[str, str]] = Counter()
    rounds = 4 * len(lanes)
    for step in range(rounds):
        at = NOW + step * MINUTE  # everybody stays busy: a new minute for each lane
        record(store, *(usage(m, customer=name, occurred_at=at) for name, m in sorted(lanes)))
        for shipment in sender.claim(want, at):
            served[shipment.customer, shipment.meter] += 1
            sender.settle(delivered(shipment), at=at)
    fair_share = min(rounds, rounds * want // len(lanes))
    assert min(served[lane] for lane in lanes) >= fair_share - want - 1, served


def test_a_customer_that_is_refused_again_and_again_does_not_starve_others(store: Store) -> None:
    sender = Sender(store)
    for minute in range(20):
        record(store, usage(customer="cus_bad", occurred_at=NOW - minute * MINUTE))
        (shipment,) = sender.claim(1)
        sender.settle(retry(shipment, may_have_arrived=False))
    record(store, usage(customer="cus_good"))
    for _ in range(3):
        claimed = sender.claim(2)
        if any(shipment.customer == "cus_good" for shipment in claimed):
            return
        sender.settle(*(retry(shipment, may_have_arrived=False) for shipment in claimed))
    pytest.fail("three visits passed cus_good by")


def test_an_event_further_ahead_than_stripe_takes_waits(store: Store) -> None:
    record(store, usage(occurred_at=NOW + 6 * MINUTE), usage("sign", occurred_at=NOW + 5 * MINUTE))
    sender = Sender(store)
    assert [shipment.meter for shipment in sender.claim()] == ["sign"]
    due_ms = store.next_due_ms(["verify"], to_ms(NOW))
    assert due_ms == to_ms(NOW + MINUTE)
    assert [shipment.meter for shipment in sender.claim(at=from_ms(due_ms))] == ["verify"]


def test_something_due_now_is_not_hidden_by_something_due_later(store: Store) -> None:
    record(store, usage(customer="cus_1", occurred_at=NOW + HOUR), usage(customer="cus_2"))
    assert store.next_due_ms(["verify"], to_ms(NOW)) == to_ms(NOW)


def test_nothing_is_due_when_all_is_settled(store: Store) -> None:
    assert store.next_due_ms(list(METERS), to_ms(NOW)) is None
    record(store, usage())
    sender = Sender(store)
    (shipment,) = sender.claim()
    sender.settle(retry(shipment, NOW + HOUR))
    assert store.next_due_ms(["verify"], to_ms(NOW)) == to_ms(NOW + HOUR)
    assert store.next_due_ms(["sign"], to_ms(NOW)) is None
    (shipment,) = sender.claim(at=NOW + HOUR)
    sender.settle(delivered(shipment))
    assert store.next_due_ms(list(METERS), to_ms(NOW)) is None


def test_what_others_are_sending_is_due_when_their_lease_ends(store: Store) -> None:
    record(store, usage())
    Sender(store).claim()
    assert store.next_due_ms(["verify"], to_ms(NOW)) == to_ms(NOW + LEASE)


def test_usage_that_was_corrected_away_before_it_was_shipped_needs_no_request(store: Store) -> None:
    record(store, usage(key="k"))
    store.adjust(adjustment("k"))
    assert Sender(store).claim() == []
    assert store.next_due_ms(list(METERS), to_ms(NOW)) is None


def test_more_than_fifteen_digits_are_split(store: Store) -> None:
    record(store, *(usage(units=MAX_UNITS) for _ in range(2)), usage(units=5))
    sender = Sender(store)
    values = []
    while claimed := sender.claim():
        values.append(claimed[0].value)
        sender.settle(delivered(claimed[0]))
        assert_consistent(store)
    assert values == [MAX_UNITS, MAX_UNITS, 5]


@pytest.mark.parametrize(
    ("age", "is_sent"), [(34 * DAY + 23 * HOUR, True), (35 * DAY, True), (35 * DAY + HOUR, False)]
)
def test_what_stripe_would_refuse_for_its_age_is_set_aside_unsent(
    store: Store, age: timedelta, is_sent: bool
) -> None:
    """Case 11."""
    record(store, usage(units=3, occurred_at=NOW - age, recorded_at=NOW - age))
    sender = Sender(store)

    claimed = sender.claim()

    assert [shipment.timestamp for shipment in claimed] == [NOW - age] * is_sent
    dead = store.shipments("dead")
    assert [shipment.reason for shipment in dead] == [DeadReason.EXPIRED] * (not is_sent)
    assert [shipment.attempts for shipment in dead] == [0] * (not is_sent)
    assert [shipment.identifier for shipment in sender.set_aside] == [s.identifier for s in dead]
    assert store.counts()["verify"].dead == 3 * (not is_sent)
    assert_consistent(store)


# -- settling and fencing --------------------------------------------------------------------------


def test_a_delivered_shipment_is_at_rest(store: Store) -> None:
    record(store, usage(units=2))
    sender = Sender(store)
    (shipment,) = sender.claim()
    assert sender.settle(delivered(shipment)) == [delivered(shipment)]
    assert sender.claim(at=NOW + DAY) == []
    assert store.counts()["verify"].delivered == 2
    assert store.measures.deliveries(NOW).waits_ms == [0]
    assert_consistent(store)


def test_a_retry_keeps_value_time_and_identifier_and_counts_its_attempts(store: Store) -> None:
    record(store, usage(units=2))
    sender = Sender(store)
    (first,) = sender.claim()
    record(store, usage(units=7))  # comes while it is under way: not added to it
    sender.settle(retry(first, NOW + MINUTE))
    assert sender.claim() == []

    (second,) = sender.claim(at=NOW + MINUTE)

    assert second.attempts == 2
    assert second.attempt_key != first.attempt_key
    same = ("identifier", "value", "timestamp", "first_attempt_at")
    assert all(getattr(second, name) == getattr(first, name) for name in same)
    assert_consistent(store)


def test_while_one_minute_waits_the_other_minutes_of_its_lane_go_on(store: Store) -> None:
    record(store, usage(units=1), usage(units=2, occurred_at=NOW + MINUTE))
    sender = Sender(store)
    (first,) = sender.claim()
    sender.settle(retry(first, NOW + HOUR))
    record(store, usage(units=4))
    assert [shipment.value for shipment in sender.claim()] == [2]


def test_a_settlement_by_another_owner_is_refused(store: Store) -> None:
    record(store, usage())
    (shipment,) = Sender(store, "host:1:a").claim()
    other = Sender(store, "host:2:b")
    assert other.settle(delivered(shipment)) == []
    assert [s.state for s in store.shipments()] == [ShipmentState.SENDING]


def test_a_settlement_of_an_older_attempt_is_refused_and_leaves_the_lease(store: Store) -> None:
    record(store, usage(), usage(occurred_at=NOW + MINUTE))
    sender = Sender(store)
    (first,) = sender.claim()
    assert store.retake(lambda owner: False, to_ms(NOW + LEASE), 60_000) == 1
    (second,) = sender.claim(at=NOW + LEASE)
    assert (second.identifier, second.attempts) == (first.identifier, 2)

    assert sender.settle(delivered(first), at=NOW + LEASE) == []

    rival = Sender(store, "host:2:b")
    assert rival.claim(at=NOW + LEASE) == []  # the second attempt is still in flight
    assert sender.settle(delivered(second), at=NOW + LEASE) == [delivered(second)]
    assert_consistent(store)


def test_a_settlement_is_taken_once(store: Store) -> None:
    record(store, usage())
    sender = Sender(store)
    (shipment,) = sender.claim()
    settlements = [delivered(shipment), delivered(shipment)]
    assert sender.settle(*settlements) == [delivered(shipment)]
    assert sender.settle(delivered(shipment)) == []


def test_the_lease_of_an_owner_that_is_gone_is_retaken_at_once(store: Store) -> None:
    record(store, usage(), usage("sign"))
    gone, alive = Sender(store, "host:1:a", ["verify"]), Sender(store, "host:2:b", ["sign"])
    (abandoned,) = gone.claim()
    alive.claim()

    assert store.retake(lambda owner: owner == gone.owner, to_ms(NOW), 60_000) == 1

    (again,) = Sender(store, "host:3:c").claim()
    assert (again.identifier, again.attempts) == (abandoned.identifier, 2)
    assert gone.settle(delivered(abandoned)) == []


def test_a_lease_ends_by_itself_unless_it_is_extended(store: Store) -> None:
    record(store, usage(), usage("sign"))
    sender = Sender(store)
    known, _ = sender.claim()
    nobody = lambda owner: False  # noqa: E731
    assert store.retake(nobody, to_ms(NOW + LEASE) - 1, 60_000) == 0
    # A lease that its owner does not know of must end: nobody sends what it covers.
    store.extend_leases(sender.owner, {(known.customer, known.meter)}, to_ms(NOW + 2 * LEASE))
    assert store.retake(nobody, to_ms(NOW + LEASE), 60_000) == 1
    assert store.retake(nobody, to_ms(NOW + 2 * LEASE), 60_000) == 1


def test_a_clock_that_was_set_back_freezes_no_lease_and_no_retry(store: Store) -> None:
    """Case 10."""
    record(store, usage(), usage("sign"))
    sender = Sender(store)
    first, second = sender.claim()
    sender.settle(retry(first, NOW + MINUTE))
    back = NOW - DAY

    assert store.retake(lambda owner: False, to_ms(back), 60_000) == 1
    assert {s.identifier for s in sender.claim(at=back)} == {first.identifier, second.identifier}


def test_sixteen_threads_share_lanes_without_a_double_claim(store: Store) -> None:
    record(store, *(usage(customer=f"cus_{n}") for n in range(200)))
    claimed: list[str] = []

    def work(number: int) -> None:
        sender = Sender(store, f"host:1:{number}")
        while shipments := sender.claim(5):
            claimed.extend(shipment.identifier for shipment in shipments)
            sender.settle(*map(delivered, shipments))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(claimed) == len(set(claimed)) == 200
    assert store.counts()["verify"].delivered == 200
    assert_consistent(store)


# -- in doubt --------------------------------------------------------------------------------------


def _in_doubt(store: Store, units: int = 2) -> Doubt:
    record(store, usage(units=units))
    sender = Sender(store)
    (shipment,) = sender.claim()
    sender.settle(retry(shipment))
    assert sender.claim(at=NOW + 23 * HOUR + MINUTE) == []
    (doubt,) = store.doubts(to_ms(NOW + 24 * HOUR))
    assert doubt.shipment.identifier == shipment.identifier
    return doubt


def test_an_unknown_outcome_is_sent_again_for_23_hours_only(store: Store) -> None:
    record(store, usage(units=2))
    sender = Sender(store)
    (shipment,) = sender.claim()
    sender.settle(retry(shipment))
    (shipment,) = sender.claim(at=NOW + 23 * HOUR)
    sender.settle(retry(shipment), at=NOW + 23 * HOUR)

    assert sender.claim(at=NOW + 23 * HOUR + MINUTE) == []

    assert [s.state for s in sender.set_aside] == [ShipmentState.IN_DOUBT]
    assert store.counts()["verify"].in_doubt == 2
    assert store.doubts(to_ms(NOW + 24 * HOUR) - 1) == []
    (doubt,) = store.doubts(to_ms(NOW + 24 * HOUR))
    assert (doubt.minute, doubt.expected_without, doubt.witness) == (NOW, 0, None)
    assert_consistent(store)


def test_certain_refusals_never_lead_into_doubt(store: Store) -> None:
    record(store, usage())
    sender = Sender(store)
    at = NOW
    for _ in range(30):
        (shipment,) = sender.claim(at=at)
        sender.settle(retry(shipment, may_have_arrived=False), at=at)
        at += DAY
    (shipment,) = sender.claim(at=at)
    assert sender.settle(delivered(shipment), at=at)


def test_the_first_attempt_that_may_have_arrived_starts_the_clock(store: Store) -> None:
    record(store, usage())
    sender = Sender(store)
    (shipment,) = sender.claim()
    sender.settle(retry(shipment, may_have_arrived=False))
    (shipment,) = sender.claim(at=NOW + 20 * HOUR)
    sender.settle(retry(shipment), at=NOW + 20 * HOUR)
    (shipment,) = sender.claim(at=NOW + 30 * HOUR)
    sender.settle(retry(shipment, may_have_arrived=False), at=NOW + 30 * HOUR)  # the clock runs on
    assert sender.claim(at=NOW + 44 * HOUR) == []
    assert [s.state for s in sender.set_aside] == [ShipmentState.IN_DOUBT]


def test_an_attempt_that_died_with_its_process_may_have_arrived(store: Store) -> None:
    record(store, usage())
    sender = Sender(store)
    sender.claim()
    store.retake(lambda owner: True, to_ms(NOW + 25 * HOUR), 60_000)
    assert sender.claim(at=NOW + 25 * HOUR) == []
    assert [s.state for s in store.shipments()] == [ShipmentState.IN_DOUBT]


def test_what_may_have_arrived_is_never_called_expired(store: Store) -> None:
    record(store, usage(occurred_at=NOW - 34 * DAY))
    sender = Sender(store)
    (shipment,) = sender.claim()
    sender.settle(retry(shipment))
    assert sender.claim(at=NOW + 2 * DAY) == []
    assert [s.state for s in store.shipments()] == [ShipmentState.IN_DOUBT]


def test_a_doubt_that_ends_as_delivered_is_delivered(store: Store) -> None:
    doubt = _in_doubt(store)
    store.end_doubt(doubt.shipment.identifier, "delivered", to_ms(NOW + 25 * HOUR))
    assert store.counts()["verify"] == MeterCounts(recorded=2, delivered=2, events=1)
    assert Sender(store).claim(at=NOW + 25 * HOUR) == []
    assert_consistent(store)


def test_a_doubt_that_ends_as_lost_is_cut_anew(store: Store) -> None:
    doubt = _in_doubt(store)
    store.end_doubt(doubt.shipment.identifier, "lost", to_ms(NOW + 25 * HOUR))
    (shipment,) = Sender(store).claim(at=NOW + 25 * HOUR)
    assert (shipment.value, shipment.timestamp) == (2, NOW)
    assert shipment.identifier != doubt.shipment.identifier
    assert_consistent(store)


def test_a_doubt_that_nobody_can_end_waits_for_an_operator(store: Store) -> None:
    doubt = _in_doubt(store)
    store.end_doubt(doubt.shipment.identifier, "ambiguous", to_ms(NOW + 72 * HOUR))
    (dead,) = store.shipments("dead")
    assert dead.reason == DeadReason.AMBIGUOUS
    assert store.counts()["verify"].dead_shipments == 1
    assert Sender(store).claim(at=NOW + 73 * HOUR) == []
    assert_consistent(store)


def test_a_doubt_ends_once(store: Store) -> None:
    identifier = _in_doubt(store).shipment.identifier
    store.end_doubt(identifier, "delivered", to_ms(NOW + 25 * HOUR))
    for verdict in ("lost", "ambiguous"):
        store.end_doubt(identifier, verdict, to_ms(NOW + 26 * HOUR))  # type: ignore[arg-type]
    assert store.counts()["verify"] == MeterCounts(recorded=2, delivered=2, events=1)
    assert_consistent(store)


def test_a_doubt_remembers_since_when_stripe_lacks_it(store: Store) -> None:
    doubt = _in_doubt(store)
    assert doubt.absent_since is None
    looks = NOW + 24 * HOUR
    store.prolong_doubt(doubt.shipment.identifier, to_ms(looks + HOUR), to_ms(looks))
    assert store.doubts(to_ms(looks)) == []
    (again,) = store.doubts(to_ms(looks + HOUR))
    assert again.absent_since == looks


def test_a_doubt_knows_what_else_was_delivered_in_its_minute_and_who_can_witness(
    store: Store,
) -> None:
    sender = Sender(store)
    record(store, usage(units=4))
    sender.settle(delivered(*sender.claim()))
    _in_doubt(store, units=2)
    later = NOW + 25 * HOUR
    record(store, usage(units=9, customer="cus_2", occurred_at=later, recorded_at=later))
    sender.settle(delivered(*sender.claim(at=later)), at=later)

    (doubt,) = store.doubts(to_ms(later))

    assert doubt.expected_without == 4
    assert doubt.witness is not None and doubt.witness.customer == "cus_2"
    assert doubt.witness_expected == 9


def test_a_witness_was_delivered_after_the_last_attempt_and_long_enough_ago(store: Store) -> None:
    """The first such one: a witness that is always the newest may never be visible yet."""
    _in_doubt(store)
    sender = Sender(store)
    for hours, customer in ((1, "cus_early"), (25, "cus_right"), (26, "cus_late")):
        at = NOW + hours * HOUR
        record(store, usage(customer=customer, occurred_at=at, recorded_at=at))
        sender.settle(delivered(*sender.claim(at=at)), at=at)
    (doubt,) = store.doubts(to_ms(NOW + 26 * HOUR))
    assert doubt.witness is not None and doubt.witness.customer == "cus_right"


def test_while_a_minute_is_in_doubt_nothing_more_of_it_is_cut(store: Store) -> None:
    doubt = _in_doubt(store)
    record(store, usage(units=5), usage(units=7, occurred_at=NOW + MINUTE))
    assert [s.value for s in Sender(store).claim(at=NOW + 25 * HOUR)] == [7]
    store.end_doubt(doubt.shipment.identifier, "delivered", to_ms(NOW + 25 * HOUR))
    assert [s.value for s in Sender(store, "host:2:b").claim(at=NOW + 25 * HOUR)] == []


# -- holds -----------------------------------------------------------------------------------------


def _hold(meter: str, reason: str = "no_meter", at: datetime = NOW) -> Hold:
    return Hold(meter, reason, to_ms(at), to_ms(at) + probe_after_ms(reason))


def test_a_held_meter_does_not_block_the_others(store: Store) -> None:
    record(store, *(usage(m, customer=f"cus_{n}") for m in ("verify", "sign") for n in range(3)))
    sender = Sender(store)
    claimed = sender.exchange(100, NOW, new_holds=[_hold("verify")])
    assert {shipment.meter for shipment in claimed} == {"sign"}
    assert store.holds() == [_hold("verify")]


def test_a_held_meter_is_probed_with_one_shipment_a_minute(store: Store) -> None:
    record(store, *(usage(customer=f"cus_{n}") for n in range(3)))
    sender = Sender(store)
    sender.exchange(0, NOW, new_holds=[_hold("verify")])
    probes = 0
    for second in range(1, 301):
        at = NOW + timedelta(seconds=second)
        for shipment in sender.claim(at=at):
            probes += 1
            sender.settle(retry(shipment, at, may_have_arrived=False), at=at)
    assert probes == 5


@pytest.mark.parametrize(("reason", "probes"), [("401", 1), (UNAVAILABLE, 12)])
def test_while_everything_is_held_one_shipment_is_tried_now_and_then(
    store: Store, reason: str, probes: int
) -> None:
    record(store, *(usage(m, customer=f"cus_{n}") for m in ("verify", "sign") for n in range(3)))
    sender = Sender(store)
    sender.exchange(0, NOW, new_holds=[_hold(ALL, reason)])
    tried = 0
    for second in range(1, 61):
        at = NOW + timedelta(seconds=second)
        for shipment in sender.claim(at=at):
            tried += 1
            sender.settle(retry(shipment, at, may_have_arrived=False), at=at)
    assert tried == probes


def test_two_workers_share_one_probe(store: Store) -> None:
    record(store, *(usage(customer=f"cus_{n}") for n in range(3)))
    first, second = Sender(store, "host:1:a"), Sender(store, "host:2:b")
    first.exchange(0, NOW, new_holds=[_hold(ALL, "401")])
    at = NOW + MINUTE
    assert len(first.claim(at=at) + second.claim(at=at)) == 1


def test_a_lifted_hold_lets_everything_go(store: Store) -> None:
    record(store, *(usage(customer=f"cus_{n}") for n in range(3)))
    sender = Sender(store)
    sender.exchange(0, NOW, new_holds=[_hold(ALL, "401")])
    assert len(sender.exchange(100, NOW, lifted=[ALL])) == 3
    assert store.holds() == []


def test_a_renewed_hold_keeps_its_beginning_until_it_is_lifted(store: Store) -> None:
    sender = Sender(store)
    sender.exchange(0, NOW, new_holds=[_hold("verify")])
    sender.exchange(0, NOW + HOUR, new_holds=[_hold("verify", at=NOW + HOUR)])
    (hold,) = store.holds()
    assert (hold.since_ms, hold.probe_ms) == (to_ms(NOW), to_ms(NOW + HOUR + MINUTE))
    sender.exchange(0, NOW, lifted=["verify"])
    sender.exchange(0, NOW + DAY, new_holds=[_hold("verify", at=NOW + DAY)])
    (hold,) = store.holds()
    assert hold.since_ms == to_ms(NOW + DAY)


def test_a_clock_that_was_set_back_does_not_prolong_a_hold(store: Store) -> None:
    record(store, usage(occurred_at=NOW - 2 * DAY))
    sender = Sender(store)
    sender.exchange(0, NOW, new_holds=[_hold(ALL, "401")])
    assert len(sender.claim(at=NOW - DAY)) == 1


# -- counting --------------------------------------------------------------------------------------


def test_counts_say_where_each_unit_is(store: Store) -> None:
    sender = Sender(store)
    units = {"delivered": 1, "dead": 10, "in_doubt": 100, "ready": 1000, "sending": 10_000}
    for customer, amount in units.items():
        record(store, usage(units=amount, customer=customer))
    claimed = {shipment.customer: shipment for shipment in sender.claim()}
    sender.settle(
        delivered(claimed["delivered"]),
        Settlement(claimed["dead"], ShipmentState.DEAD, "invalid: x"),
        Settlement(claimed["in_doubt"], ShipmentState.IN_DOUBT),
        retry(claimed["ready"], NOW + HOUR),
    )
    record(store, usage(units=100_000, occurred_at=NOW - HOUR))

    assert store.counts()["verify"] == MeterCounts(
        recorded=111_111,
        unshipped=100_000,
        in_flight=11_000,
        delivered=1,
        in_doubt=100,
        dead=10,
        events=6,
        oldest_unshipped_ms=to_ms(NOW - HOUR),
        dead_shipments=1,
    )
    assert store.counts()["sign"] == MeterCounts()
    assert_consistent(store)


def test_small_facts_are_noted_once_or_replaced(store: Store) -> None:
    assert store.note_once("account", "live") == "live"
    assert store.note_once("account", "test") == "live"
    store.note("n", {"a": [1, None]})
    assert store.facts() == {"account": "live", "n": {"a": [1, None]}}
    store.note("n", None)
    assert store.facts() == {"account": "live"}


# -- any exchanges ---------------------------------------------------------------------------------


@dataclass
class Stripe:
    """Counts an identifier once, as long as it remembers it: always, within this test's hours."""

    seen: dict[str, Shipment] = field(default_factory=dict)

    def receive(self, shipment: Shipment) -> None:
        first = self.seen.setdefault(shipment.identifier, shipment)
        assert (first.value, first.timestamp) == (shipment.value, shipment.timestamp)

    def total(self, customer: str, meter: str) -> int:
        return sum(
            shipment.value
            for shipment in self.seen.values()
            if (shipment.customer, shipment.meter) == (customer, meter)
        )


steps = st.lists(
    st.one_of(
        st.tuples(
            st.just("record"),
            st.sampled_from(["verify", "storage"]),
            st.integers(0, 1),
            st.integers(1, 9),
            st.integers(0, 2),
        ),
        st.tuples(st.just("void"), st.integers(0, 30)),
        st.tuples(st.just("claim"), st.integers(0, 1), st.integers(1, 3)),
        st.tuples(
            st.just("settle"),
            st.integers(0, 1),
            st.sampled_from(["delivered", "answer lost", "request lost", "refused", "dead"]),
        ),
        st.tuples(st.just("crash"), st.integers(0, 1), st.booleans()),
        st.tuples(st.just("wait"), st.integers(1, 200)),
    ),
    max_size=40,
)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=steps)
def test_after_any_exchanges_stripe_has_each_unit_exactly_once(
    store: Store, steps: list[Any]
) -> None:
    run = new_id()
    customers = [f"cus_{run}_{n}" for n in (0, 1)]
    stripe = Stripe()
    senders = [Sender(store, f"host:{n}:a") for n in (0, 1)]
    in_hand: list[list[Shipment]] = [[], []]
    events: list[UsageEvent] = []
    at, dead = NOW, 0

    def finish(number: int, outcome: str) -> None:
        nonlocal dead
        shipment = in_hand[number].pop(0)
        if outcome in ("delivered", "answer lost"):
            stripe.receive(shipment)
        settlement = {
            "delivered": delivered(shipment),
            "dead": Settlement(shipment, ShipmentState.DEAD, "invalid"),
            "refused": retry(shipment, at, may_have_arrived=False),
        }.get(outcome, retry(shipment, at))
        accepted = senders[number].settle(settlement, at=at)
        if accepted and outcome == "dead":
            dead += 1

    for step in steps:
        if step[0] == "record":
            _, meter, number, units, minute = step
            event = usage(
                meter, units, customer=customers[number], occurred_at=NOW - minute * MINUTE
            )
            events.append(event)
            record(store, event)
        elif step[0] == "void" and events:
            event = events[step[1] % len(events)]
            store.adjust(adjustment(event.key, event.meter, event.customer))
        elif step[0] == "claim":
            in_hand[step[1]] += senders[step[1]].claim(step[2], at)
        elif step[0] == "settle" and in_hand[step[1]]:
            finish(step[1], step[2])
        elif step[0] == "crash":
            _, number, arrived = step
            if arrived and in_hand[number]:
                stripe.receive(in_hand[number][0])
            in_hand[number].clear()
            senders[number].owner += "a"
            gone = senders[number].owner[:-1]
            store.retake(lambda owner, gone=gone: owner == gone, to_ms(at), 60_000)  # type: ignore[misc]
        elif step[0] == "wait":
            at += timedelta(seconds=step[1])
            store.retake(lambda owner: False, to_ms(at), 60_000)
        _assert_one_of_each_lane(store)
        assert_consistent(store)

    for number in (0, 1):
        while in_hand[number]:
            finish(number, "delivered")
    store.retake(lambda owner: True, to_ms(at), 60_000)
    while claimed := senders[0].claim(at=at):
        for shipment in claimed:
            stripe.receive(shipment)
        senders[0].settle(*map(delivered, claimed), at=at)
    assert_consistent(store)
    assert not {s.state for s in store.shipments()} & {ShipmentState.READY, ShipmentState.SENDING}
    if not dead:
        for customer in customers:
            for meter in ("verify", "storage"):
                assert stripe.total(customer, meter) == total(store, meter, customer)


def _assert_one_of_each_lane(store: Store) -> None:
    with store.reading() as connection:
        rows = connection.execute(select(shipments)).all()
    lanes = Counter((row.customer, row.meter) for row in rows if row.state == "sending")
    minutes = Counter(
        (row.customer, row.meter, row.minute)
        for row in rows
        if row.state in ("ready", "sending", "in_doubt")
    )
    assert max(lanes.values(), default=0) <= 1
    assert max(minutes.values(), default=0) <= 1
