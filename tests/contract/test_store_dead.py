"""Dead letters: what an operator decides is done once, written down, and keeps the books exact."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select, text
from storekit import (
    DAY,
    HOUR,
    MINUTE,
    NOW,
    Sender,
    adjustment,
    assert_consistent,
    delivered,
    record,
    usage,
)

from flask_c2meter.model import Period, Subscription, to_ms
from flask_c2meter.shipment import DeadReason, Shipment, ShipmentState
from flask_c2meter.store import Decision, Settlement, Store
from flask_c2meter.store.dead import Wanted
from flask_c2meter.store.tables import audit

ANY = Wanted()


def why(at: datetime = NOW, who: str = "ann", reason: str = "the meter is back") -> Decision:
    return Decision(who, reason, to_ms(at))


def refused(shipment: Shipment, reason: str = "invalid: payload_invalid_value") -> Settlement:
    return Settlement(shipment, ShipmentState.DEAD, reason)


def kill(store: Store, *customers: str, reason: str = "invalid", **more: Any) -> list[str]:
    """A dead shipment of 3 of each customer; return their identifiers."""
    sender, dead = Sender(store), []
    for customer in customers:
        record(store, usage(units=3, customer=customer, **more))
        (shipment,) = sender.claim()
        sender.settle(refused(shipment, reason))
        dead.append(shipment.identifier)
    return dead


def journal(store: Store) -> list[tuple[str, str, str]]:
    with store.reading() as connection:
        rows = connection.execute(select(audit).order_by(audit.c.id)).all()
    return [(row.who, row.what, row.why) for row in rows]


def identifiers(store: Store, wanted: Wanted = ANY) -> list[str]:
    return [letter.shipment.identifier for letter in store.dead.letters(wanted)]


# -- looking ---------------------------------------------------------------------------------------


def test_all_are_listed_whatever_their_number(store: Store) -> None:
    dead = kill(store, "cus_1")
    sender = Sender(store)
    record(store, *(usage(customer=f"cus_{number:04}") for number in range(1200)))
    while claimed := sender.claim(want=400):
        sender.settle(*map(refused, claimed))
        dead += [shipment.identifier for shipment in claimed]
    assert identifiers(store) == sorted(dead)
    assert len(dead) == 1201


def test_they_are_chosen_by_customer_meter_and_reason(store: Store) -> None:
    (one,) = kill(store, "cus_1", reason="invalid: no_such_field")
    (two,) = kill(store, "cus_2", reason="invalid")
    (three,) = kill(store, "cus_2", reason="ambiguous", occurred_at=NOW + MINUTE)
    assert set(identifiers(store, Wanted(customer="cus_2"))) == {two, three}
    assert identifiers(store, Wanted(meter="sign")) == []
    assert set(identifiers(store, Wanted(reason=DeadReason.INVALID))) == {one, two}
    assert identifiers(store, Wanted("cus_2", "verify", DeadReason.AMBIGUOUS)) == [three]


def test_a_letter_says_what_and_since_when(store: Store) -> None:
    (identifier,) = kill(store, "cus_1", occurred_at=NOW - timedelta(seconds=90))
    letter = store.dead.find(identifier)
    assert letter is not None
    assert (letter.shipment.value, letter.shipment.reason) == (3, "invalid")
    assert letter.minute == NOW - 2 * MINUTE
    assert letter.since == NOW
    assert store.dead.find("unknown") is None


# -- replaying -------------------------------------------------------------------------------------


def test_a_replay_is_a_new_shipment_with_a_new_identifier(store: Store) -> None:
    (dead,) = kill(store, "cus_1")
    assert Sender(store).claim() == []

    (decided,) = store.dead.replay([dead], why())

    assert decided.refusal is None
    (again,) = Sender(store).claim()
    assert again.identifier != dead
    assert (again.value, again.timestamp) == (3, NOW)
    assert identifiers(store) == []
    assert_consistent(store)


def test_a_replay_sends_what_its_minute_lacks_then(store: Store) -> None:
    record(store, usage(units=3, key="a"))
    sender = Sender(store)
    (shipment,) = sender.claim()
    sender.settle(refused(shipment))
    record(store, usage(units=5))
    sender.settle(*map(delivered, sender.claim()))
    store.adjust(adjustment("a"))
    record(store, usage(units=4))
    sender.settle(*map(delivered, sender.claim()))  # 1: the dead 3 are still counted
    store.dead.replay([shipment.identifier], why())
    assert [again.value for again in sender.claim()] == [3]
    assert_consistent(store)


def test_each_decision_is_in_the_journal(store: Store) -> None:
    one, two = kill(store, "cus_1", "cus_2")
    store.dead.replay([one], why())
    store.dead.discard([two], why(who="bob", reason="a test"))
    assert journal(store) == [
        (
            "ann",
            f"dead replay {one}: 3 of cus_1 verify at 2026-01-15T12:00Z (invalid)",
            "the meter is back",
        ),
        ("bob", f"dead discard {two}: 3 of cus_2 verify at 2026-01-15T12:00Z (invalid)", "a test"),
    ]


def test_a_decision_is_taken_once_however_many_take_it(store: Store) -> None:
    (dead,) = kill(store, "cus_1")
    with ThreadPoolExecutor(8) as pool:
        decided = list(pool.map(lambda _: store.dead.replay([dead, dead], why())[0], range(8)))
    assert sum(each.refusal is None for each in decided) == 1
    assert {each.refusal for each in decided} == {None, "there is no such dead shipment"}
    assert len(journal(store)) == 1
    assert [again.value for again in Sender(store).claim()] == [3]
    assert_consistent(store)


@pytest.mark.parametrize("identifier", ["unknown", "delivered"])
def test_only_what_is_dead_can_be_decided(store: Store, identifier: str) -> None:
    record(store, usage())
    sender = Sender(store)
    (shipment,) = sender.claim()
    sender.settle(delivered(shipment))
    asked = shipment.identifier if identifier == "delivered" else identifier
    for decide in (store.dead.replay, store.dead.discard):
        (decided,) = decide([asked], why())
        assert decided.refusal == "there is no such dead shipment"
    assert journal(store) == []
    assert store.counts()["verify"].delivered == 1


def test_what_stripe_takes_no_more_is_refused(store: Store) -> None:
    (dead,) = kill(store, "cus_1")
    (decided,) = store.dead.replay([dead], why(at=NOW + 35 * DAY + MINUTE))
    assert decided.refusal is not None and "older than 35 days" in decided.refusal
    assert identifiers(store) == [dead]
    (decided,) = store.dead.replay([dead], why(at=NOW + 35 * DAY - MINUTE))
    assert decided.refusal is None


def test_what_no_invoice_bills_any_more_is_refused(store: Store) -> None:
    (dead,) = kill(store, "cus_1")
    cycle = Period(NOW - DAY, NOW + DAY)
    store.subscriptions.learn(
        "cus_1",
        [Subscription("starter", cycle, id="sub_1")],
        NOW,
        source="stripe",
        finding="known",
        look_again=None,
    )
    (decided,) = store.dead.replay([dead], why(at=NOW + 2 * DAY))
    assert decided.refusal is not None and "is final" in decided.refusal
    assert journal(store) == []


def test_what_is_not_billable_is_refused(store: Store) -> None:
    (dead,) = kill(store, "cus_1")
    with store.writing() as connection:
        connection.execute(text("UPDATE shipments SET meter = 'gone'"))
    (decided,) = store.dead.replay([dead], why())
    assert decided.refusal is not None and "no billable meter" in decided.refusal


def test_a_minute_with_a_changed_event_is_never_shipped_anew(store: Store) -> None:
    record(store, usage(units=3, key="a"), usage(units=4, key="b", occurred_at=NOW + MINUTE))
    sender = Sender(store)
    dead = []
    for _ in range(2):
        (shipment,) = sender.claim(at=NOW + MINUTE)
        sender.settle(refused(shipment))
        dead.append(shipment.identifier)
    with store.writing() as connection:
        connection.execute(text("UPDATE events SET value = 900 WHERE key = 'a'"))
    first, second = store.dead.replay(dead, why())
    assert first.refusal is not None and first.refusal.startswith("the event a of its minute")
    assert second.refusal is None
    assert [again.value for again in sender.claim(at=NOW + MINUTE)] == [4]


def test_a_changed_event_that_is_voided_stops_nothing(store: Store) -> None:
    record(store, usage(units=3, key="a"), usage(units=4, key="b"))
    sender = Sender(store)
    (shipment,) = sender.claim()
    sender.settle(refused(shipment))
    store.adjust(adjustment("a"))
    with store.writing() as connection:
        connection.execute(text("UPDATE events SET request_id = 'forged' WHERE key = 'a'"))
    (decided,) = store.dead.replay([shipment.identifier], why())
    assert decided.refusal is None


# -- discarding ------------------------------------------------------------------------------------


def test_what_is_discarded_is_never_sent_and_stays_counted(store: Store) -> None:
    (dead,) = kill(store, "cus_1")
    (decided,) = store.dead.discard([dead], why())
    assert decided.refusal is None
    assert Sender(store).claim(at=NOW + HOUR) == []
    counts = store.counts()["verify"]
    assert (counts.dead, counts.discarded) == (0, 3)
    (shipment,) = store.shipments("discarded")
    assert shipment.reason == "invalid"
    assert_consistent(store)
    (again,) = store.dead.discard([dead], why())
    assert again.refusal == "there is no such dead shipment"


# -- voiding what Stripe never had -----------------------------------------------------------------


def test_what_is_voided_while_it_is_dead_is_neither_sent_nor_credited(store: Store) -> None:
    (dead,) = kill(store, "cus_1", key="a")
    store.adjust(adjustment("a"))
    assert Sender(store).claim(at=NOW + HOUR) == []
    assert identifiers(store) == []
    (shipment,) = store.shipments("discarded")
    assert (shipment.identifier, shipment.reason) == (dead, "voided, was invalid")
    counts = store.counts()["verify"]
    assert (counts.recorded, counts.dead, counts.discarded) == (0, 0, 0)
    assert_consistent(store)
    record(store, usage(units=5))
    assert [again.value for again in Sender(store).claim()] == [5]


def test_what_is_voided_after_it_was_written_off_is_not_credited(store: Store) -> None:
    (dead,) = kill(store, "cus_1", key="a")
    store.dead.discard([dead], why())
    store.adjust(adjustment("a"))
    store.adjust(adjustment("a"))
    assert Sender(store).claim(at=NOW + HOUR) == []
    assert store.counts()["verify"].discarded == 0
    (shipment,) = store.shipments("discarded")
    assert shipment.reason == "invalid"
    assert_consistent(store)


def test_of_a_dead_letter_what_was_not_voided_is_left(store: Store) -> None:
    record(store, usage(units=3, key="a"), usage(units=4, key="b"))
    sender = Sender(store)
    (shipment,) = sender.claim()
    sender.settle(refused(shipment))
    store.adjust(adjustment("a"))
    assert sender.claim() == []
    (letter,) = store.dead.letters(ANY)
    assert letter.shipment.value == 4
    assert_consistent(store)
    store.dead.replay([shipment.identifier], why())
    assert [again.value for again in sender.claim()] == [4]
    assert_consistent(store)


def test_what_stripe_may_have_is_taken_back_there(store: Store) -> None:
    kill(store, "cus_1", key="a", reason="ambiguous")
    store.adjust(adjustment("a"))
    assert [again.value for again in Sender(store).claim()] == [-3]
    assert_consistent(store)


def test_a_minute_has_its_shipments_and_operations(store: Store) -> None:
    (dead,) = kill(store, "cus_1", key="first", request_id="req-1")
    record(store, usage(units=2, key="second"), usage(units=9, occurred_at=NOW + MINUTE))
    sender = Sender(store)
    claimed = sender.claim()
    letter = store.dead.find(dead)
    assert letter is not None
    shipments, operations = store.trails.minute(letter.shipment, limit=10)
    assert {each.identifier for each in shipments} == {dead, claimed[0].identifier}
    assert [each.event.key for each in operations] == ["first", "second"]
    assert operations[0].event.request_id == "req-1"
    assert len(store.trails.minute(letter.shipment, limit=1)[1]) == 1
