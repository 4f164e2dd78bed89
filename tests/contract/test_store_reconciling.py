"""What every store tells reconciliation, and how it repairs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from sqlalchemy import text
from storekit import (
    DAY,
    HOUR,
    MINUTE,
    NOW,
    Sender,
    assert_consistent,
    books,
    delivered,
    record,
    usage,
)

from flask_c2meter.model import Period, Subscription
from flask_c2meter.reconciliation import Difference, Kind, Minute, Repair
from flask_c2meter.store import Store
from flask_c2meter.store.closings import LOOK_AGAIN

TODAY = NOW.replace(hour=0)
WHERE = ("cus_1", "verify", TODAY - 40 * DAY, TODAY + DAY)


def ship(store: Store, at: datetime = NOW) -> None:
    """Everything that is open is delivered."""
    sender = Sender(store)
    while claimed := sender.claim(at=at):
        sender.settle(*map(delivered, claimed), at=at)


def test_a_lane_is_summed_up_by_the_day(store: Store) -> None:
    record(
        store,
        usage(units=3, occurred_at=NOW - DAY),
        usage(units=4, occurred_at=NOW - DAY - HOUR),
        usage(units=5, occurred_at=NOW - 2 * DAY),
        usage(units=9, customer="cus_2"),
        usage("sign", units=9),
    )
    ship(store)
    record(store, usage(units=2, occurred_at=NOW - HOUR))
    book = store.reconciling.lane(*WHERE)
    assert book.days == {TODAY - DAY: 7, TODAY - 2 * DAY: 5}
    assert book.settled == {TODAY - DAY: NOW, TODAY - 2 * DAY: NOW}
    assert (book.unshipped, book.oldest_open, book.has_dead) == (2, NOW - HOUR, False)
    assert len(book.hours) == 4
    assert not book.is_empty
    hours = store.reconciling.hours("cus_1", "verify", TODAY - DAY, TODAY)
    assert hours == {NOW - DAY: 3, NOW - DAY - HOUR: 4}
    minutes = store.reconciling.minutes("cus_1", "verify", TODAY - DAY, TODAY)
    assert minutes == [NOW - DAY - HOUR, NOW - DAY]


def test_an_unknown_lane_is_empty(store: Store) -> None:
    assert store.reconciling.lane(*WHERE).is_empty
    assert store.reconciling.minute("cus_1", "verify", NOW) == Minute("cus_1", "verify", NOW, 0)


def test_what_is_being_sent_is_open(store: Store) -> None:
    record(store, usage(units=2))
    Sender(store).claim()
    book = store.reconciling.lane(*WHERE)
    assert (book.unshipped, book.oldest_open, book.days) == (2, NOW, {})
    (sent,) = store.reconciling.minute("cus_1", "verify", NOW).shipments
    assert (sent.value, sent.was_tried, sent.may_be_there) == (2, True, True)


def test_dead_letters_are_read_page_by_page(store: Store) -> None:
    number = 600
    oldest = NOW - 36 * DAY
    events = [usage(occurred_at=oldest - n * MINUTE) for n in range(number)]
    record(store, *events)
    sender = Sender(store)
    while sender.claim() or sender.set_aside:
        pass
    assert store.reconciling.lane(*WHERE).has_dead
    found = list(store.reconciling.dead(*WHERE))
    assert [minute.start for minute, _ in found] == [
        oldest - n * MINUTE for n in reversed(range(number))
    ]
    assert {sent.reason for _, sent in found} == {"expired"}


def lost(store: Store) -> Difference:
    """A difference that is repaired by not counting one of two shipments of a minute."""
    record(store, usage(units=3))
    ship(store)
    record(store, usage(units=5))
    ship(store)
    minute = store.reconciling.minute("cus_1", "verify", NOW)
    (identifier,) = (sent.identifier for sent in minute.shipments if sent.value == 3)
    return Difference(minute, Kind.LOST, 5, (identifier,), (Repair(identifier, 3, 0),))


def test_a_repair_moves_counted_and_says_so(store: Store) -> None:
    difference = lost(store)
    assert store.reconciling.repair(difference, "me", NOW) is None
    assert books(store) == {("verify", NOW): (8, 5)}
    assert_consistent(store)
    with store.reading() as connection:
        (row,) = connection.execute(text("SELECT who, what, why FROM audit"))
    assert tuple(row) == (
        "me",
        f"reconcile {difference.shipments[0]} of cus_1 verify at 2026-01-15T12:00Z: "
        "counted 3, now 0",
        "lost: Stripe shows 5 of the minute, not 8",
    )
    (again,) = Sender(store).claim()
    assert (again.value, again.timestamp) == (3, NOW)


def test_a_repair_is_made_once(store: Store) -> None:
    difference = lost(store)
    store.reconciling.repair(difference, "me", NOW)
    for _ in range(2):
        assert "changed" in (store.reconciling.repair(difference, "me", NOW) or "")
        ship(store)
    assert books(store) == {("verify", NOW): (8, 8)}
    assert_consistent(store)


def test_nothing_is_repaired_that_stripe_would_not_take(store: Store) -> None:
    difference = lost(store)
    just, too_late = NOW + 35 * DAY, NOW + 35 * DAY + timedelta(milliseconds=1)
    assert store.reconciling.obstacle(difference.minute, just) is None
    for ask in (
        store.reconciling.obstacle(difference.minute, too_late),
        store.reconciling.repair(difference, "me", too_late),
    ):
        assert "35 days" in (ask or "")
    assert books(store) == {("verify", NOW): (8, 8)}


def test_what_was_repaired_is_no_witness(store: Store) -> None:
    difference = lost(store)
    store.reconciling.repair(difference, "me", NOW)
    assert store.reconciling.lane(*WHERE).days == {TODAY: 5}
    apart = Minute("cus_2", "verify", NOW, 0)
    assert {each.expected for each in store.reconciling.witnesses(apart, NOW, 3)} == {5}
    assert store.reconciling.witnesses(difference.minute, NOW, 3) == []
    assert store.reconciling.witnesses(apart, NOW + MINUTE, 3) == []


# -- closing cycles --------------------------------------------------------------------------------

CYCLE = Period(datetime(2026, 1, 10, tzinfo=UTC), datetime(2026, 2, 10, tzinfo=UTC))


def subscribe(store: Store) -> None:
    store.subscriptions.learn(
        "cus_1",
        [Subscription("starter", CYCLE)],
        NOW,
        source="stripe",
        finding="known",
        look_again=None,
    )


def test_a_closing_cycle_is_looked_at_by_one_at_a_time(store: Store) -> None:
    subscribe(store)
    closings = store.closings
    assert closings.begin("cus_1", [CYCLE.end])
    ready = CYCLE.end + timedelta(minutes=30)
    assert not closings.are_due(ready - MINUTE)
    assert closings.take(ready - MINUTE) is None
    assert closings.are_due(ready)
    closing = closings.take(ready)
    assert closing == ("cus_1", CYCLE.end)
    assert closings.cycle(closing) == CYCLE
    assert closings.take(ready) is None
    assert closings.take(ready + LOOK_AGAIN) == closing
    assert not closings.is_final(closing, ready)
    assert closings.is_final(closing, CYCLE.end + HOUR)
    closings.done(closing)
    assert closings.take(ready + DAY) is None


def test_a_cycle_that_differs_is_remembered_until_it_agrees(store: Store) -> None:
    subscribe(store)
    closings = store.closings
    closings.begin("cus_1", [CYCLE.end])
    closing = closings.take(CYCLE.end + HOUR)
    assert closing is not None
    closings.agree_at_last("cus_1", CYCLE.start, CYCLE.end)  # it is still to be looked at
    closings.differs(closing)
    assert closings.differing(limit=5) == [closing]
    assert not closings.are_due(CYCLE.end + DAY)
    closings.agree_at_last("cus_1", CYCLE.end, CYCLE.end + DAY)  # of another time
    closings.agree_at_last("cus_2", CYCLE.start, CYCLE.end)
    assert closings.differing(limit=5) == [closing]
    closings.agree_at_last("cus_1", CYCLE.start, CYCLE.end)
    assert closings.differing(limit=5) == []
