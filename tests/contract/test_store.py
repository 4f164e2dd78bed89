"""What every store promises of recording: exact books, in any batches, and proof of them."""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from random import Random
from time import monotonic
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from storekit import (
    DAY,
    HOUR,
    METERS,
    MINUTE,
    MONTH,
    NOW,
    Sender,
    adjustment,
    assert_consistent,
    books,
    delivered,
    derived,
    record,
    total,
    usage,
)

from flask_c2meter.errors import InvalidEvent, KeyConflict, UnknownEvent
from flask_c2meter.model import (
    Aggregation,
    Customer,
    Period,
    UsageEvent,
    new_id,
)
from flask_c2meter.store import (
    MAX_BATCH,
    Entry,
    Store,
    encode,
    open_store,
)
from flask_c2meter.store import customers as store_customers
from flask_c2meter.testing import Failure, failpoint

# -- recording -------------------------------------------------------------------------------------


def test_an_event_reads_back_as_it_was_recorded(store: Store) -> None:
    event = usage(
        "sites",
        1,
        customer="cus_9",
        unique_by="exämple.com",
        properties={"domain": "exämple.com", "n": 1, "ok": True},
        request_id="req-1",
        flags=("incomplete",),
        fingerprint="abc",
        occurred_at=NOW - 3 * MINUTE,
    )

    assert record(store, event) == [True]

    assert store.events() == [event]
    assert store.find("cus_9", "sites", event.key) == event
    assert store.find("cus_9", "verify", event.key) is None


def test_a_value_keeps_its_decimal_places(store: Store) -> None:
    event = usage("storage", 1500)
    record(store, event)
    assert str(store.events()[0].value) == "1.500"


def test_a_new_key_adds_to_the_total_and_the_minute_of_its_occurrence(store: Store) -> None:
    record(store, usage(units=3, occurred_at=NOW + timedelta(seconds=59)))
    record(store, usage(units=4, occurred_at=NOW + timedelta(seconds=60)))

    assert total(store) == 7
    assert books(store) == {("verify", NOW): (3, 0), ("verify", NOW + MINUTE): (4, 0)}


def test_a_known_key_changes_nothing_for_its_neighbours(store: Store) -> None:
    first = usage(units=5, key="k")
    record(store, first)

    again = replace(first, units=900, properties={"other": "body"})
    is_new = record(store, usage(units=1), again, usage(units=2))

    assert is_new == [True, False, True]
    assert total(store) == 8
    assert store.find("cus_1", "verify", "k") == first
    assert_consistent(store)


def test_a_key_that_comes_twice_in_one_batch_counts_once(store: Store) -> None:
    event = usage(units=5, key="k")
    assert record(store, event, usage(), replace(event, units=7)) == [True, True, False]
    assert total(store) == 6
    assert_consistent(store)


def test_the_same_key_of_another_customer_or_meter_is_another_event(store: Store) -> None:
    event = usage(key="k")
    others = [replace(event, customer="cus_2"), replace(event, meter="sign")]
    assert record(store, event, *others) == [True, True, True]
    assert_consistent(store)


def test_many_threads_recording_one_key_record_it_once(store: Store) -> None:
    event = usage(key="k")
    results: list[bool] = []
    threads = [
        threading.Thread(target=lambda: results.extend(record(store, event))) for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(results) == [False] * 15 + [True]
    assert total(store) == 1


def test_the_largest_batch_is_one_transaction(store: Store) -> None:
    events = [usage(customer=f"cus_{n}") for n in range(MAX_BATCH)]
    with failpoint("before_commit", _raise):
        with pytest.raises(Failure):
            record(store, *events)
        assert store.events() == []
    assert record(store, *events) == [True] * MAX_BATCH
    assert_consistent(store)


def _raise() -> None:
    raise Failure("before_commit")


@pytest.mark.parametrize(
    ("meter", "values", "expected"),
    [
        ("verify", [3, 0, 4], 7),
        ("calls", [9, 0, 4], 3),
        ("storage", [10, 5, 12, 12, 0], 12),
    ],
)
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_values_become_the_aggregate_in_any_batching(
    store: Store, meter: str, values: list[int], expected: int, batch: int
) -> None:
    events = [usage(meter, value) for value in values]
    for start in range(0, len(events), batch):
        record(store, *events[start : start + batch])
    assert total(store, meter) == expected
    assert_consistent(store)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_each_thing_counts_once_in_each_period(store: Store, batch: int) -> None:
    february = datetime(2026, 2, 1, tzinfo=UTC)
    events = [
        usage("sites", unique_by=name, occurred_at=at)
        for name, at in [("a", NOW), ("b", NOW), ("a", NOW), ("a", february), ("a", NOW + HOUR)]
    ]
    for start in range(0, len(events), batch):
        record(store, *events[start : start + batch])

    assert total(store, "sites") == 2
    assert total(store, "sites", at=february) == 1
    assert_consistent(store)


@pytest.mark.parametrize("meter", METERS)
def test_an_invalid_event_is_kept_and_counts_nothing(store: Store, meter: str) -> None:
    record(store, usage(meter, 0, flags=("incomplete", "invalid")))
    assert total(store, meter) == 0
    assert [event.flags for event in store.events()] == [("incomplete", "invalid")]
    assert store.counts()[meter].events == 1
    assert_consistent(store)


def test_an_event_belongs_to_the_period_of_its_occurrence(store: Store) -> None:
    """Case 12: end - 1 s, end, end + 1 s; recorded late."""
    end = datetime(2026, 2, 1, tzinfo=UTC)
    second = timedelta(seconds=1)
    for units, at in ((1, end - second), (10, end), (100, end + second)):
        record(store, usage(units=units, occurred_at=at, recorded_at=end + DAY))
    assert total(store, at=end - second) == 1
    assert total(store, at=end) == 110


def test_what_the_loader_last_said_of_a_customer_is_remembered(store: Store) -> None:
    record(store, usage(), customer=Customer("cus_1", "42", "starter", "a@example.com"))
    record(store, usage(), customer=Customer("cus_1", "43", "growth", "b@example.com"))
    record(store, usage())  # by hand, with the id only: says nothing of the plan

    assert store.standing("cus_1").customer == Customer("cus_1", "43", "growth", "b@example.com")
    assert store.standing("cus_2").customer is None


def test_what_another_process_was_told_of_a_customer_is_not_held_for_ever(
    store: Store, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = Customer("cus_1", plan="starter", email="a@example.com")
    large = Customer("cus_1", plan="growth", email="b@example.com")
    with closing(open_store(store_url, METERS)) as other:
        record(store, usage(), customer=small)
        record(other, usage(), customer=large)
    monkeypatch.setattr(store_customers, "monotonic", lambda: monotonic() + 61)
    record(store, usage(), customer=small)
    assert store.standing("cus_1").customer == small


def test_a_customer_noted_in_a_failed_transaction_is_noted_again(store: Store) -> None:
    customer = Customer("cus_1", plan="growth")
    with failpoint("before_commit", _raise), pytest.raises(Failure):
        record(store, usage(), customer=customer)
    record(store, usage(), customer=customer)
    assert store.standing("cus_1").customer == Customer("cus_1", plan="growth")


def test_events_are_listed_in_recorded_order_and_by_owner(store: Store) -> None:
    record(store, usage(key="a"), usage("sign", key="b"))
    record(store, usage(key="c", customer="cus_2"), usage(key="d"))

    assert [event.key for event in store.events()] == ["a", "b", "c", "d"]
    assert [event.key for event in store.events(limit=2)] == ["c", "d"]
    assert [event.key for event in store.events("cus_1", "verify")] == ["a", "d"]


@pytest.mark.parametrize("page", [1, 2, 1000])
def test_the_latest_events_are_read_little_by_little(store: Store, page: int) -> None:
    assert list(store.latest_events(None, None, 5, page)) == []
    for number in range(7):
        record(store, usage(customer=f"cus_{number % 2}", key=f"k{number}"))
    for customer in (None, "cus_0", "cus_1", "cus_2"):
        for limit in (1, 2, 3, 7, 100):
            found = list(store.latest_events(customer, "verify", limit, page))
            assert found == store.events(customer, "verify", limit)
    assert list(store.latest_events(None, "sign", 5, page)) == []
    reading = store.latest_events(None, None, 7, page)
    assert next(reading).key == "k0"
    record(store, usage(key="later"))
    assert [event.key for event in reading] == [f"k{number}" for number in range(1, 7)]


def test_an_event_can_join_the_callers_transaction(store: Store) -> None:
    with pytest.raises(Failure), store.writing() as connection:
        assert store.append_on(connection, [Entry(encode(usage(key="k")))]) == [True]
        raise Failure("the caller's own")
    assert total(store) == 0

    with store.writing() as connection:
        store.append_on(connection, [Entry(encode(usage(key="k")))])
    assert total(store) == 1
    assert_consistent(store)


# -- adjusting -------------------------------------------------------------------------------------


def test_an_adjustment_voids_one_event_at_its_own_minute(store: Store) -> None:
    record(store, usage(units=5, key="k"), usage(units=2, occurred_at=NOW + HOUR))

    adjusted = store.adjust(replace(adjustment("k"), occurred_at=NOW + DAY))

    assert adjusted.kind == "adjustment"
    assert adjusted.occurred_at == NOW
    assert total(store) == 2
    assert books(store)["verify", NOW] == (0, 0)
    assert store.counts()["verify"].events == 1
    assert_consistent(store)


def test_adjusting_twice_returns_the_first_adjustment(store: Store) -> None:
    record(store, usage(units=5, key="k"))
    first = store.adjust(adjustment("k"))
    second = store.adjust(replace(adjustment("k"), properties={"reason": "other"}))
    assert second == first
    assert total(store) == 0
    assert_consistent(store)


def test_only_an_existing_event_of_that_customer_and_meter_can_be_voided(store: Store) -> None:
    record(store, usage(key="k"), usage(key="x", customer="cus_2"))
    for wrong in (adjustment("x"), adjustment("k", "sign"), adjustment("nothing")):
        with pytest.raises(UnknownEvent):
            store.adjust(wrong)
    assert total(store) == 1


def test_an_adjustment_cannot_be_voided_itself(store: Store) -> None:
    record(store, usage(key="k"))
    store.adjust(adjustment("k"))
    with pytest.raises(KeyConflict):
        store.adjust(adjustment("adjust:k"))
    assert_consistent(store)


def test_voiding_the_peak_leaves_the_next_highest(store: Store) -> None:
    for key, units in (("a", 10), ("b", 30), ("c", 20)):
        record(store, usage("storage", units, key=key))
    for key, left in (("c", 30), ("b", 10), ("a", 0)):
        store.adjust(adjustment(key, "storage"))
        assert total(store, "storage") == left
        assert_consistent(store)


def test_a_thing_seen_twice_counts_until_both_are_voided(store: Store) -> None:
    for key in ("a", "b"):
        record(store, usage("sites", key=key, unique_by="example.com"))
    store.adjust(adjustment("a", "sites"))
    assert total(store, "sites") == 1
    store.adjust(adjustment("b", "sites"))
    assert total(store, "sites") == 0
    record(store, usage("sites", unique_by="example.com"))
    assert total(store, "sites") == 1
    assert_consistent(store)


@pytest.mark.parametrize("meter", METERS)
def test_voiding_an_invalid_event_changes_no_quantity(store: Store, meter: str) -> None:
    record(store, usage(meter, 0, key="k", flags=("invalid",)))
    store.adjust(adjustment("k", meter))
    assert total(store, meter) == 0
    assert_consistent(store)


def test_a_correction_of_what_was_delivered_is_a_negative_shipment(store: Store) -> None:
    record(store, usage(units=5, key="k"))
    sender = Sender(store)
    (shipment,) = sender.claim()
    sender.settle(delivered(shipment))

    store.adjust(adjustment("k"))

    (correction,) = sender.claim()
    assert (correction.value, correction.timestamp) == (-5, NOW)
    assert correction.identifier != shipment.identifier
    assert_consistent(store)


# -- any sequence ----------------------------------------------------------------------------------


@dataclass
class Oracle:
    """The ledger in plain Python: what is live, and what each event added when it came."""

    live: dict[tuple[str, str], UsageEvent] = field(default_factory=dict)
    known: set[tuple[str, str]] = field(default_factory=set)
    voided: set[tuple[str, str]] = field(default_factory=set)
    minutes: Counter[tuple[str, datetime]] = field(default_factory=Counter)

    def aggregate(self, meter: str, period: datetime) -> int:
        events = [
            event
            for (name, _), event in self.live.items()
            if name == meter
            and "invalid" not in event.flags
            and Period.month_of(event.occurred_at).start == period
        ]
        match METERS[meter].aggregation:
            case Aggregation.SUM:
                return sum(event.units for event in events)
            case Aggregation.COUNT:
                return len(events)
            case Aggregation.MAX:
                return max((event.units for event in events), default=0)
            case Aggregation.UNIQUE_COUNT:
                return len({event.unique_by for event in events})

    def take(self, event: UsageEvent) -> bool:
        identity = (event.meter, event.key)
        if identity in self.known:
            return False
        self.known.add(identity)
        self._change(event, identity, event)
        return True

    def void(self, meter: str, key: str) -> bool:
        identity = (meter, key)
        if identity not in self.known:
            return False
        if identity not in self.voided:
            self.voided.add(identity)
            self._change(self.live[identity], identity, None)
        return True

    def _change(self, at: UsageEvent, identity: tuple[str, str], now: UsageEvent | None) -> None:
        period = Period.month_of(at.occurred_at).start
        before = self.aggregate(at.meter, period)
        if now is None:
            del self.live[identity]
        else:
            self.live[identity] = now
        minute = at.occurred_at.replace(second=0)
        self.minutes[at.meter, minute] += self.aggregate(at.meter, period) - before


happenings = st.lists(
    st.one_of(
        st.tuples(
            st.just("use"),
            st.sampled_from(sorted(METERS)),
            st.integers(0, 7),
            st.integers(0, 40),
            st.sampled_from("abc"),
            st.sampled_from([0, 30, 60, 86_400, 20 * 86_400]),
            st.integers(0, 9),
        ),
        st.tuples(st.just("void"), st.sampled_from(sorted(METERS)), st.integers(0, 7)),
    ),
    max_size=40,
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(happenings=happenings, seed=st.integers(0, 2**16))
def test_any_events_in_any_batches_give_what_an_oracle_says(
    store: Store, happenings: list[Any], seed: int
) -> None:
    customer = f"cus_{new_id()}"  # one store serves all examples
    random, oracle = Random(seed), Oracle()
    batch: list[UsageEvent] = []

    def flush() -> None:
        if batch:
            assert record(store, *batch) == [oracle.take(event) for event in batch]
            batch.clear()

    for happening in happenings:
        if happening[0] == "void":
            flush()
            _, meter, key = happening
            try:
                store.adjust(adjustment(f"k{key}", meter, customer))
                voided = True
            except UnknownEvent:
                voided = False
            assert voided == oracle.void(meter, f"k{key}")
            continue
        _, meter, key, units, thing, seconds, dice = happening
        invalid = dice == 0
        batch.append(
            usage(
                meter,
                0 if invalid else units,
                key=f"k{key}",
                customer=customer,
                unique_by=thing if meter == "sites" and not invalid else None,
                occurred_at=NOW + timedelta(seconds=seconds),
                flags=("invalid",) if invalid else (),
            )
        )
        if random.random() < 0.4:
            flush()
    flush()

    found = store.standing(customer).totals
    for period in (MONTH, datetime(2026, 2, 1, tzinfo=UTC)):
        expected = {meter: oracle.aggregate(meter, period) for meter in METERS}
        assert {meter: found.get((meter, period), 0) for meter in METERS} == expected
    minutes = {minute: units for minute, units in oracle.minutes.items() if units}
    found_minutes = {key: units for key, (units, _) in books(store, customer).items() if units}
    assert found_minutes == minutes
    assert_consistent(store)
    before = derived(store)
    store.rebuild(NOW)
    assert derived(store) == before


# -- proof -----------------------------------------------------------------------------------------


def _tamper(store: Store, statement: str) -> None:
    with store.writing() as connection:
        assert connection.execute(text(statement)).rowcount >= 1


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("UPDATE events SET value = 900 WHERE key = 'a'", "checksum does not match"),
        ("UPDATE events SET value = 900 WHERE key = 'a'", "total is 5, events say 902"),
        ("UPDATE events SET properties = '[]' WHERE key = 'a'", "event cus_1 verify a"),
        ("UPDATE events SET customer = 'cus_x' WHERE key = 'a'", "checksum does not match"),
        ("DELETE FROM events WHERE key = 'a'", "total is 5, events say 2"),
        ("DELETE FROM events WHERE key = 'void me'", "void me"),
        ("UPDATE buckets SET total = total + 1 WHERE customer = 'cus_1'", "total is 6"),
        ("UPDATE buckets SET counted = counted + 1 WHERE customer = 'cus_1'", "counted is 6"),
        ("DELETE FROM buckets WHERE customer = 'cus_2'", "missing"),
        ("DELETE FROM buckets WHERE customer = 'cus_1'", "its shipments counted 5"),
        ("UPDATE totals SET total = 7 WHERE customer = 'cus_1'", "is 7 of 2 events"),
        ("UPDATE totals SET events = 9 WHERE customer = 'cus_1'", "of 9 events"),
        ("DELETE FROM totals WHERE customer = 'cus_1'", "missing"),
        ("UPDATE shipments SET counted = 0", "its shipments say otherwise"),
        ("DELETE FROM shipments", "counted is 5"),
        ("UPDATE buckets SET last_at = last_at + 1 WHERE customer = 'cus_1'", "its latest event"),
        ("DELETE FROM seen", "seen cus_4 sites 2026-01-01: 1 missing, 0 that no event has"),
        ("UPDATE seen SET key_hash = 'x'", "seen cus_4 sites 2026-01-01: 1 missing, 1 that no"),
        ("UPDATE days SET total = 8 WHERE customer = 'cus_5'", "day cus_5 verify 2026-01-14: is 8"),
    ],
)
def test_verify_names_what_was_tampered_with(store: Store, statement: str, words: str) -> None:
    record(store, usage(units=3, key="a"), usage(units=2, key="b"))
    Sender(store).claim()
    record(store, usage(units=4, customer="cus_2"))
    record(store, usage(units=1, customer="cus_3", key="void me"))
    store.adjust(adjustment("void me", customer="cus_3"))
    record(store, usage("sites", customer="cus_4", unique_by="a.com"))
    record(store, usage(units=7, customer="cus_5", occurred_at=NOW - DAY))
    store.usage_by_day("cus_5", NOW - 2 * DAY, NOW)  # adds the day up
    assert_consistent(store)

    _tamper(store, statement)

    differences = list(store.verify())
    assert any(words in line for line in differences), differences


@pytest.mark.parametrize("table", ["buckets", "totals", "seen"])
def test_rebuild_restores_what_wasderived(store: Store, table: str) -> None:
    record(store, usage(units=3), usage("sites", unique_by="a"), usage("storage", 8))
    Sender(store).claim()
    before = derived(store)
    _tamper(store, f"DELETE FROM {table}")

    assert store.rebuild(NOW) == 3

    assert derived(store) == before
    assert_consistent(store)


def test_an_event_that_was_changed_cannot_be_voided(store: Store) -> None:
    """Nobody knows what it counted: taking back what it says now could be far more."""
    record(store, usage(units=3, key="a"))
    _tamper(store, "UPDATE events SET value = 900 WHERE key = 'a'")
    with pytest.raises(InvalidEvent, match="not as it was written"):
        store.adjust(adjustment("a"))
    assert total(store) == 3


def test_a_rebuild_ships_nothing_for_an_event_that_was_changed(store: Store) -> None:
    """Guarantee P14: a mismatch is named and never shipped anew."""
    record(store, usage(units=3, key="a"), usage(units=4, key="b", occurred_at=NOW + MINUTE))
    sender = Sender(store)
    sender.settle(*map(delivered, sender.claim()))
    sender.settle(*map(delivered, sender.claim()))
    _tamper(store, "UPDATE events SET value = 900 WHERE key = 'a'")

    store.rebuild(NOW)

    assert sender.claim(at=NOW + HOUR) == []
    (dead,) = store.shipments("dead")
    assert (dead.value, dead.reason) == (897, "corrupt")
    differences = list(store.verify())
    assert differences == ["event cus_1 verify a: its checksum does not match (corrupt)"]


def test_progress_tells_how_many_events_were_read(store: Store) -> None:
    record(store, *(usage(customer=f"cus_{number % 3}") for number in range(30)))
    told: list[int] = []
    assert list(store.verify(told.append)) == []
    assert told == [30]


def test_a_meter_that_left_the_catalogue_is_named_and_left_alone(
    store: Store, store_url: str
) -> None:
    record(store, usage(units=3), usage("sign", units=4))
    before = derived(store)
    with closing(open_store(store_url, {"verify": METERS["verify"]})) as later:
        (line,) = later.verify()
        assert "sign" in line and "1 events" in line
        later.rebuild(NOW)
    assert derived(store) == before


def test_an_event_of_a_meter_that_left_the_catalogue_is_kept(store: Store, store_url: str) -> None:
    """It may come from the spill; when its meter is back, it counts."""
    with closing(open_store(store_url, {"verify": METERS["verify"]})) as later:
        assert record(later, usage("sign", units=4), usage(units=3)) == [True, True]
        assert total(later) == 3
    assert list(store.verify()) != []
    store.rebuild(NOW)
    assert total(store, "sign") == 4
    assert_consistent(store)
