"""What every store promises of events from Stripe: taken in once, looked into, effective once."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import Connection
from storekit import NOW, Sender, assert_consistent, delivered, record, retry, usage

from flask_c2meter.model import to_ms
from flask_c2meter.shipment import Shipment, ShipmentState
from flask_c2meter.store import Settlement, Store

SECOND = timedelta(seconds=1)
CODE = "meter_event_customer_not_found"


def take_in(store: Store, event_id: str = "evt_1", state: str = "pending") -> bool:
    return store.inbox.receive(event_id, "a.type", NOW, lambda on: state)  # type: ignore[arg-type,return-value]


def sent(store: Store) -> tuple[Sender, Shipment]:
    """A shipment of 5 that is just being sent."""
    record(store, usage(units=5))
    sender = Sender(store)
    (shipment,) = sender.claim()
    return sender, shipment


# -- once ------------------------------------------------------------------------------------------


def test_an_event_is_taken_in_once_whatever_became_of_it(store: Store) -> None:
    for state in ("pending", "applied", "ignored", "dead"):
        assert take_in(store, f"evt_{state}", state)
        assert not take_in(store, f"evt_{state}", state)


def test_a_known_event_has_no_effect(store: Store) -> None:
    take_in(store)
    happened: list[Connection] = []
    store.inbox.receive("evt_1", "a.type", NOW, lambda on: happened.append(on) or "applied")  # type: ignore[func-returns-value]
    assert happened == []


def test_where_the_effect_fails_the_event_is_not_known_and_nothing_has_changed(
    store: Store,
) -> None:
    def fails(on: Connection) -> None:
        store.add("counted", {"a": 1}, on=on)
        raise RuntimeError("the handler failed")

    with pytest.raises(RuntimeError):
        store.inbox.receive("evt_1", "a.type", NOW, fails)  # type: ignore[arg-type]
    assert store.facts() == {}
    assert take_in(store)


# -- looking into them -----------------------------------------------------------------------------


def test_one_that_waits_is_left_to_whoever_took_it_for_a_while(store: Store) -> None:
    assert not store.inbox.is_pending(NOW)
    take_in(store, "evt_1")
    take_in(store, "evt_2", "ignored")
    assert store.inbox.is_pending(NOW)
    assert store.inbox.take(NOW, 5) == [("evt_1", 1)]
    assert store.inbox.take(NOW + 59 * SECOND, 5) == []
    assert store.inbox.take(NOW + 60 * SECOND, 5) == [("evt_1", 2)]


def test_what_was_put_off_comes_back_when_it_is_due(store: Store) -> None:
    take_in(store)
    store.inbox.take(NOW, 1)
    store.inbox.settle("evt_1", "pending", again_at=NOW + 5 * SECOND, reason="503")
    assert not store.inbox.is_pending(NOW + 4 * SECOND)
    assert store.inbox.take(NOW + 5 * SECOND, 1) == [("evt_1", 2)]


def test_of_two_that_looked_only_the_first_has_its_effect(store: Store) -> None:
    take_in(store)
    for _ in range(2):
        store.inbox.settle(
            "evt_1", "applied", apply=lambda on: store.add("counted", {"a": 1}, on=on)
        )
    assert store.facts() == {"counted": {"a": 1}}


def test_what_cannot_be_understood_is_named(store: Store) -> None:
    take_in(store)
    take_in(store, "evt_2", "applied")
    store.inbox.settle("evt_1", "dead", reason="resource_missing")
    assert store.inbox.dead() == [("evt_1", "a.type", "resource_missing")]
    assert not store.inbox.is_pending(NOW)


# -- forgetting them -------------------------------------------------------------------------------


def test_what_is_dealt_with_is_forgotten_when_it_is_old(store: Store) -> None:
    for state in ("pending", "applied", "ignored", "dead"):
        take_in(store, f"evt_{state}", state)
    assert store.inbox.forget(NOW, 5) == 0
    assert store.inbox.forget(NOW + SECOND, 5) == 2
    assert take_in(store, "evt_applied", "applied")
    assert take_in(store, "evt_ignored", "ignored")


def test_what_waits_or_is_dead_is_never_forgotten(store: Store) -> None:
    take_in(store, "evt_1")
    take_in(store, "evt_2")
    store.inbox.settle("evt_2", "dead", reason="resource_missing")
    assert store.inbox.forget(NOW + timedelta(days=10_000), 5) == 0
    assert store.inbox.take(NOW, 5) == [("evt_1", 1)]
    assert store.inbox.dead() == [("evt_2", "a.type", "resource_missing")]
    store.inbox.settle("evt_1", "applied")
    assert store.inbox.forget(NOW + SECOND, 5) == 1


def test_many_are_forgotten_a_few_at_a_time(store: Store) -> None:
    for number in range(5):
        take_in(store, f"evt_{number}", "applied")
    assert [store.inbox.forget(NOW + SECOND, 2) for _ in range(4)] == [2, 2, 1, 0]


# -- refused shipments -----------------------------------------------------------------------------


def test_a_delivered_one_is_dead_once_and_stays_counted(store: Store) -> None:
    sender, shipment = sent(store)
    sender.settle(delivered(shipment))
    (refused,) = store.reject([shipment.identifier, "unknown"], CODE, NOW)
    assert (refused.state, refused.reason) == (ShipmentState.DEAD, f"rejected_async: {CODE}")
    assert store.reject([shipment.identifier], CODE, NOW) == []
    assert store.counts()["verify"].dead == 5
    assert_consistent(store)


def test_the_key_of_an_attempt_names_it_too(store: Store) -> None:
    sender, shipment = sent(store)
    sender.settle(delivered(shipment))
    (refused,) = store.reject([f"{shipment.identifier}.1"], CODE, NOW)
    assert refused.identifier == shipment.identifier


@pytest.mark.parametrize("state", [ShipmentState.READY, ShipmentState.IN_DOUBT])
def test_one_whose_receipt_is_not_known_is_dead_and_never_sent_again(
    store: Store, state: ShipmentState
) -> None:
    sender, shipment = sent(store)
    sender.settle(Settlement(shipment, state, "timeout", to_ms(NOW)))
    assert len(store.reject([shipment.identifier], CODE, NOW)) == 1
    assert sender.claim() == []
    assert_consistent(store)


def test_one_that_is_being_sent_is_left_to_its_sender(store: Store) -> None:
    sender, shipment = sent(store)
    assert store.reject([shipment.identifier], CODE, NOW) == []
    with store.writing() as connection:
        (named,) = store.named([shipment.identifier, "unknown"], on=connection)
    assert (named.identifier, named.state) == (shipment.identifier, ShipmentState.SENDING)
    assert len(sender.settle(retry(shipment))) == 1


def test_naming_nothing_refuses_nothing(store: Store) -> None:
    sender, shipment = sent(store)
    sender.settle(delivered(shipment))
    assert store.reject([], CODE, NOW) == store.reject(["", "."], CODE, NOW) == []


# -- news of meters --------------------------------------------------------------------------------


def test_a_number_is_noted_unless_a_greater_one_is(store: Store) -> None:
    with store.writing() as connection:
        noted = [store.note_newer("news", value, on=connection) for value in (5, 4, 5, 6, 1)]
    assert noted == [True, False, True, True, False]
    assert store.facts() == {"news": 6}


def test_a_hold_is_new_once_until_it_is_lifted(store: Store) -> None:
    def hold(reason: str) -> bool:
        with store.writing() as connection:
            return store.hold_meter("verify", reason, NOW, on=connection)

    assert [hold("archived_meter"), hold("no_meter")] == [True, False]
    store.lift_hold("verify")
    assert store.holds() == []
    assert hold("archived_meter")
    assert [each.meter for each in store.holds()] == ["verify"]
