"""What one minute of ours and one of Stripe's say when they differ."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_c2meter.reconciliation import Difference, Kind, Minute, Sent, judge, of_dead, of_open
from flask_c2meter.shipment import ShipmentState

NOW = datetime(2026, 1, 15, 12, tzinfo=UTC)
LONG_AGO = NOW - timedelta(days=2)
JUST_NOW = NOW - timedelta(minutes=5)


def sent(value: int, number: int = 0, **more: Any) -> Sent:
    """A shipment that was delivered two days ago, unless told otherwise."""
    defaults: dict[str, Any] = {
        "identifier": f"s{number:02}",
        "value": value,
        "counted": value,
        "state": ShipmentState.DELIVERED,
        "reason": None,
        "timestamp": LONG_AGO,
        "settled_at": LONG_AGO,
        "was_tried": True,
    }
    return Sent(**(defaults | more))


def many(*values: int) -> tuple[Sent, ...]:
    return tuple(sent(value, number) for number, value in enumerate(values))


def minute(*shipments: Sent) -> Minute:
    recorded = sum(each.value for each in shipments)
    return Minute("cus_1", "verify", LONG_AGO, recorded, shipments)


def look(*shipments: Sent, theirs: int | Decimal, seen: datetime | None = NOW) -> Difference | None:
    return judge(minute(*shipments), theirs, NOW, seen)


def kind(*shipments: Sent, theirs: int | Decimal, seen: datetime | None = NOW) -> Kind | None:
    found = look(*shipments, theirs=theirs, seen=seen)
    return None if found is None else found.kind


def repaired(*shipments: Sent, theirs: int | Decimal, seen: datetime | None = NOW) -> list[Any]:
    """(identifier, counted before, counted after) of the repairs."""
    found = look(*shipments, theirs=theirs, seen=seen)
    assert found is not None
    return [(each.identifier, each.before, each.after) for each in found.repairs]


@pytest.mark.parametrize("values", [(), (5,), (5, -5), (1, 2, 3)])
def test_what_is_equal_is_no_difference(values: tuple[int, ...]) -> None:
    assert look(*many(*values), theirs=sum(values)) is None


class TestLost:
    def test_one(self) -> None:
        assert kind(*many(2, 5), theirs=2) is Kind.LOST
        assert repaired(*many(2, 5), theirs=2) == [("s01", 5, 0)]

    def test_all(self) -> None:
        assert sorted(repaired(*many(2, 5, 1), theirs=0)) == [
            ("s00", 2, 0),
            ("s01", 5, 0),
            ("s02", 1, 0),
        ]

    def test_several(self) -> None:
        assert sorted(repaired(*many(2, 5, 100, 8), theirs=108)) == [("s00", 2, 0), ("s01", 5, 0)]

    def test_of_equal_ones_the_newest(self) -> None:
        assert repaired(*many(4, 4, 4), theirs=8) == [("s02", 4, 0)]

    def test_a_correction(self) -> None:
        assert repaired(*many(5, -2), theirs=5) == [("s01", -2, 0)]

    def test_a_part_is_not_repaired(self) -> None:
        found = look(*many(5), theirs=3)
        assert found is not None
        assert (found.kind, found.repairs) == (Kind.LOST, ())
        assert "no shipments explain it" in found.note

    def test_without_a_witness_it_is_not_repaired(self) -> None:
        for seen in (None, LONG_AGO - timedelta(seconds=1)):
            found = look(*many(5), theirs=0, seen=seen)
            assert found is not None
            assert (found.kind, found.repairs) == (Kind.LOST, ())

    def test_a_double_that_was_repaired_and_is_gone(self) -> None:
        shipments = (sent(5, 0, counted=10), sent(-5, 1))
        assert kind(*shipments, theirs=5) is None
        assert repaired(*shipments, theirs=0) == [("s00", 10, 5)]


class TestDoubled:
    def test_one(self) -> None:
        assert kind(*many(2, 5), theirs=12) is Kind.DOUBLED
        assert repaired(*many(2, 5), theirs=12) == [("s01", 5, 10)]

    def test_all_of_a_batch(self) -> None:
        assert repaired(*many(2, 5), theirs=14) == [("s01", 5, 10), ("s00", 2, 4)]

    def test_what_was_lost_and_comes_back(self) -> None:
        shipments = (sent(5, 0, counted=0), sent(5, 1))
        assert kind(*shipments, theirs=5) is None
        found = look(*shipments, theirs=10)
        assert found is not None
        assert found.kind is Kind.DOUBLED
        assert sum(each.after - each.before for each in found.repairs) == 5

    def test_never_more_than_twice(self) -> None:
        assert kind(sent(5, counted=10), theirs=15) is Kind.FOREIGN

    def test_more_than_was_ever_sent_is_no_delay(self) -> None:
        assert kind(sent(5, settled_at=JUST_NOW), theirs=10, seen=None) is Kind.DOUBLED


class TestForeign:
    @pytest.mark.parametrize("theirs", [1, 1000, Decimal("0.5")])
    def test_where_nothing_was_sent(self, theirs: int | Decimal) -> None:
        assert kind(theirs=theirs) is Kind.FOREIGN
        assert repaired(theirs=theirs) == []

    def test_where_something_else_was_sent(self) -> None:
        assert kind(*many(5), theirs=8) is Kind.FOREIGN
        assert kind(*many(5), theirs=Decimal("5.5")) is Kind.FOREIGN


class TestInFlight:
    def test_what_was_delivered_just_now_need_not_be_shown(self) -> None:
        fresh = sent(5, settled_at=JUST_NOW)
        for seen in (None, JUST_NOW - timedelta(minutes=1)):
            found = look(fresh, theirs=0, seen=seen)
            assert found is not None
            assert (found.kind, found.is_fresh, found.repairs) == (Kind.IN_FLIGHT, True, ())
        assert look(fresh, theirs=5, seen=None) is None

    def test_unless_something_newer_is(self) -> None:
        fresh = sent(5, settled_at=JUST_NOW)
        assert kind(fresh, theirs=0, seen=JUST_NOW) is Kind.LOST

    def test_an_older_loss_beside_it_waits(self) -> None:
        shipments = (sent(3, 0), sent(5, 1, settled_at=JUST_NOW))
        assert kind(*shipments, theirs=5, seen=None) is Kind.IN_FLIGHT
        assert kind(*shipments, theirs=3, seen=None) is Kind.IN_FLIGHT

    @pytest.mark.parametrize("state", [ShipmentState.SENDING, ShipmentState.READY])
    def test_what_is_being_sent_may_be_shown_or_not(self, state: ShipmentState) -> None:
        under_way = sent(5, 1, state=state, settled_at=None)
        assert look(sent(3), under_way, theirs=3) is None
        assert look(sent(3), under_way, theirs=8) is None

    def test_beside_a_doubt_nothing_else_is_decided(self) -> None:
        doubt = sent(5, 1, state=ShipmentState.IN_DOUBT, settled_at=None)
        assert look(sent(3), doubt, theirs=3) is None
        found = look(sent(3), doubt, theirs=5)
        assert found is not None
        assert (found.kind, found.is_fresh) == (Kind.IN_FLIGHT, False)


class TestDead:
    @pytest.mark.parametrize(
        ("reason", "expected"),
        [
            ("late", Kind.LATE),
            ("expired", Kind.LATE),
            ("ambiguous", Kind.AMBIGUOUS),
            ("rejected_async: meter_event_customer_not_found", Kind.REFUSED),
            ("invalid: payload_invalid_value", Kind.REFUSED),
            (None, Kind.REFUSED),
        ],
    )
    def test_its_reason_is_its_kind(self, reason: str | None, expected: Kind) -> None:
        dead = sent(5, state=ShipmentState.DEAD, reason=reason)
        found = of_dead(minute(dead), dead)
        assert (found.kind, found.theirs, found.shipments) == (expected, 0, ("s00",))

    def test_it_is_not_expected_at_stripe(self) -> None:
        for state in (ShipmentState.DEAD, ShipmentState.DISCARDED):
            refused = sent(5, 1, state=state, reason="invalid: x")
            assert look(sent(3), refused, theirs=3) is None
            assert kind(sent(3), refused, theirs=8) is Kind.FOREIGN

    def test_an_ambiguous_one_may_be_there_or_not(self) -> None:
        dead = sent(5, 1, state=ShipmentState.DEAD, reason="ambiguous")
        for theirs in (3, 8, 11):  # it is named as what it is, whatever Stripe shows
            assert look(sent(3), dead, theirs=theirs) is None

    def test_one_that_was_written_off_hides_nothing_else(self) -> None:
        discarded = sent(5, 1, state=ShipmentState.DISCARDED, reason="ambiguous")
        for theirs in (3, 8):
            assert look(sent(3), discarded, theirs=theirs) is None
        for theirs, expected in ((0, Kind.LOST), (11, Kind.FOREIGN), (100, Kind.FOREIGN)):
            assert kind(sent(3), discarded, theirs=theirs) is expected
            assert repaired(sent(3), discarded, theirs=theirs) == []


def test_usage_on_its_way_is_fresh_for_an_hour() -> None:
    young, old = (
        of_open(Minute("cus_1", "verify", NOW - age, 7), NOW)
        for age in (timedelta(minutes=59), timedelta(minutes=60))
    )
    assert (young.kind, young.is_fresh, old.is_fresh) == (Kind.IN_FLIGHT, True, False)


values = st.lists(st.integers(-20, 20).filter(bool), max_size=6)


@given(values, st.integers(-100, 100))
def test_a_repair_makes_the_minute_equal(values: list[int], theirs: int) -> None:
    shipments = many(*values)
    found = look(*shipments, theirs=theirs)
    assert (found is None) == (theirs == sum(values))
    if found is not None and found.repairs:
        moved = sum(each.after - each.before for each in found.repairs)
        assert sum(values) + moved == theirs
        assert len({each.identifier for each in found.repairs}) == len(found.repairs)


@given(values, st.integers(-100, 100), st.sampled_from([None, LONG_AGO]))
def test_what_is_settling_is_never_repaired_as_lost(
    values: list[int], theirs: int, seen: datetime | None
) -> None:
    shipments = [sent(v, n, settled_at=JUST_NOW) for n, v in enumerate(values)]
    found = look(*shipments, theirs=theirs, seen=seen)
    assert found is None or found.kind is not Kind.LOST or not found.repairs


def test_a_minute_with_very_many_shipments_is_judged_quickly() -> None:
    shipments = many(*(3**number % 10007 for number in range(500)))
    total = sum(each.value for each in shipments)
    assert kind(*shipments, theirs=total - shipments[17].value) is Kind.LOST
    assert kind(*shipments, theirs=total - 1_000_003) is Kind.LOST
