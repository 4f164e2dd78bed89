"""Case 14, shipments in doubt: after 23 h Stripe's summaries decide; nothing is billed twice."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from shipping_rig import HOUR, MINUTE, Rig, shipping

from flask_c2meter.jury import ASK_AGAIN
from flask_c2meter.shipment import DeadReason


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with shipping(tmp_path) as rig:
        yield rig


def lose_the_answer(rig: Rig, *, arrived: bool, units: int = 5) -> None:
    """One shipment of cus_1 whose outcome is unknown, then Stripe is gone for 25 hours."""
    rig.record(units=units)
    rig.stripe.fail(reset=True, after_processing=arrived)
    rig.work()
    rig.stripe.stop()
    for _ in range(25):
        rig.advance(HOUR)
        rig.work()
    rig.stripe.start()
    rig.advance(ASK_AGAIN)
    assert rig.states() == ["in_doubt"]


def go_on(rig: Rig, hours: int, *, witness: bool = True) -> None:
    """Hours of normal life, with other customers' usage now and then."""
    for _ in range(hours):
        if witness:
            rig.record(customer="cus_other")
        rig.work()
        rig.advance(HOUR)


@pytest.mark.parametrize("arrived", [True, False])
@pytest.mark.parametrize("witness", [True, False])
@pytest.mark.parametrize("delay", [timedelta(0), timedelta(minutes=90)])
def test_case_14_an_unknown_outcome_and_25_hours_of_outage_never_bill_twice(
    tmp_path: Path, arrived: bool, witness: bool, delay: timedelta
) -> None:
    """Both truths end as 1.000x, or wait for an operator as ambiguous: never 2x."""
    with shipping(tmp_path, aggregation_delay=delay) as rig:
        lose_the_answer(rig, arrived=arrived)
        for _ in range(80):
            go_on(rig, 1, witness=witness)
            assert rig.sent() <= 5
        states = [s for s in rig.store.shipments() if s.customer == "cus_1"]
        if arrived or witness:
            assert rig.sent() == 5
            assert rig.store.counts()["verify"].dead == 0
            assert states[-1].state == "delivered"
        else:
            assert [s.reason for s in states] == [DeadReason.AMBIGUOUS]


def test_while_it_is_in_doubt_nothing_of_it_is_sent(rig: Rig) -> None:
    lose_the_answer(rig, arrived=True)
    before = [r for r in rig.attempts()]
    go_on(rig, 1, witness=False)
    assert list(rig.attempts()) == before


def test_what_stripe_shows_is_delivered_at_the_first_look(rig: Rig) -> None:
    lose_the_answer(rig, arrived=True)
    rig.work()
    assert rig.states() == ["delivered"]
    assert rig.sent() == 5


def test_absence_is_believed_only_after_two_looks_an_hour_apart(rig: Rig) -> None:
    lose_the_answer(rig, arrived=False)
    rig.record(customer="cus_other")
    rig.work()  # delivers the witness
    rig.work()
    for _ in range(6):
        assert rig.sent() == 0
        rig.advance(10 * MINUTE)
        rig.work()
    rig.advance(HOUR)
    rig.work()
    rig.work()
    assert rig.sent() == 5


def test_absence_is_not_believed_without_a_witness(rig: Rig) -> None:
    lose_the_answer(rig, arrived=False)
    go_on(rig, 40, witness=False)
    assert rig.states() == ["in_doubt"]
    assert rig.sent() == 0


def test_the_reason_of_the_last_attempt_is_no_evidence(tmp_path: Path) -> None:
    """A refusal such as 429 leaves a number as the reason: it is not the time of a look."""
    with shipping(tmp_path, aggregation_delay=timedelta(hours=26)) as rig:
        rig.record(units=5)
        rig.stripe.fail(status=503, after_processing=True, body="<html>", times=None)
        rig.work()
        for _ in range(24):
            rig.advance(HOUR)
            rig.work()
        rig.stripe.recover()
        for _ in range(30):
            go_on(rig, 1)
            assert rig.sent() == 5
    assert rig.states()[0] == "delivered"


def test_a_minute_partly_delivered_before_is_judged_by_the_rest(rig: Rig) -> None:
    rig.record(units=3)
    rig.work()
    rig.record(units=5)
    rig.stripe.fail(reset=True, after_processing=True)
    rig.work()
    rig.stripe.stop()
    for _ in range(25):
        rig.advance(HOUR)
        rig.work()
    rig.stripe.start()
    rig.advance(ASK_AGAIN)
    rig.work()
    assert rig.states() == ["delivered", "delivered"]
    assert rig.sent() == 8


def test_what_stripe_shows_and_nobody_can_explain_needs_an_operator(rig: Rig) -> None:
    lose_the_answer(rig, arrived=True)
    first = rig.stripe.events[0]
    _post(rig, value=1, timestamp=int(first.timestamp.timestamp()), identifier="someone-else")
    go_on(rig, 80)
    (dead,) = rig.store.shipments("dead")
    assert dead.reason == DeadReason.AMBIGUOUS
    assert rig.sent() == 6


def _post(rig: Rig, *, value: int, timestamp: int, identifier: str) -> None:
    payload: Any = {"stripe_customer_id": "cus_1", "value": str(value)}
    event: Any = {"event_name": "verify", "payload": payload, "identifier": identifier}
    rig.gateway.ask(
        lambda client: client.v1.billing.meter_events.create({**event, "timestamp": timestamp})
    )


def test_while_stripe_cannot_be_asked_the_decision_waits(rig: Rig) -> None:
    lose_the_answer(rig, arrived=True)
    rig.stripe.stop()
    rig.work()
    assert rig.states() == ["in_doubt"]
    rig.stripe.start()
    rig.work()
    assert rig.states() == ["in_doubt"]
    rig.advance(ASK_AGAIN)
    rig.work()
    assert rig.states() == ["delivered"]


def test_usage_recorded_meanwhile_in_the_minute_in_doubt_is_not_lost(rig: Rig) -> None:
    event = rig.record(units=5)
    rig.stripe.fail(reset=True, after_processing=True)
    rig.work()
    rig.record(units=2, occurred_at=event.occurred_at)
    rig.stripe.stop()
    for _ in range(25):
        rig.advance(HOUR)
        rig.work()
    rig.stripe.start()
    go_on(rig, 3, witness=False)
    assert rig.sent() == 7
