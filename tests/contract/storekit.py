"""Short words for tests of stores: a catalogue, events, and a worker's hands without its head."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import select, text

from flask_c2meter.model import Aggregation, Customer, Meter, UsageEvent, from_ms, new_id, to_ms
from flask_c2meter.shipment import Shipment, ShipmentState
from flask_c2meter.store import (
    Claimant,
    Entry,
    LaneTour,
    Settlement,
    Store,
    adjustment_key,
    encode,
)
from flask_c2meter.store.tables import buckets

NOW = datetime(2026, 1, 15, 12, tzinfo=UTC)
MONTH = datetime(2026, 1, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
LEASE = MINUTE


def _meter(name: str, aggregation: Aggregation, **more: Any) -> Meter:
    return Meter(name, name.title(), f"{name}.happened", "unit", aggregation, **more)


METERS = {
    meter.name: meter
    for meter in (
        _meter("verify", Aggregation.SUM),
        _meter("sign", Aggregation.SUM),
        _meter("calls", Aggregation.COUNT),
        _meter("storage", Aggregation.MAX, precision=3),
        _meter("sites", Aggregation.UNIQUE_COUNT, unique_by="domain"),
    )
}


def usage(meter: str = "verify", units: int = 1, **more: Any) -> UsageEvent:
    """A usage event of cus_1, now, unless told otherwise."""
    defaults: dict[str, Any] = {
        "key": new_id(),
        "customer": "cus_1",
        "precision": METERS[meter].precision if meter in METERS else 0,
        "occurred_at": NOW,
        "recorded_at": NOW,
    }
    return UsageEvent(meter=meter, units=units, **(defaults | more))


def record(store: Store, *events: UsageEvent, customer: Customer | None = None) -> list[bool]:
    """Append *events* in one batch."""
    return store.append([Entry(encode(event), customer) for event in events])


def adjustment(key: str, meter: str = "verify", customer: str = "cus_1") -> UsageEvent:
    """What voids the event with *key*."""
    return usage(
        meter,
        0,
        key=adjustment_key(key),
        customer=customer,
        kind="adjustment",
        properties={"reason": "test"},
    )


class Sender:
    """A worker's hands, without its head: claims and settles one step at a time.

    :param owner: who it claims to be.
    """

    def __init__(self, store: Store, owner: str = "host:1:a", meters: Any = tuple(METERS)) -> None:
        self.store = store
        self.owner = owner
        self.meters = tuple(meters)
        self.tour = LaneTour()
        #: What the last exchange set aside, which holds it saw and which settlements it took.
        self.set_aside: list[Shipment] = []
        self.holds: list[Any] = []
        self.settled: list[Settlement] = []

    def exchange(self, want: int, at: datetime, **more: Any) -> list[Shipment]:
        claimant = Claimant(self.owner, to_ms(at + LEASE), self.meters, want)
        exchange = self.store.exchange(claimant, self.tour, to_ms(at), **more)
        self.set_aside = list(exchange.set_aside)
        self.holds = list(exchange.holds)
        self.settled = list(exchange.settled)
        return list(exchange.claimed)

    def claim(self, want: int = 100, at: datetime = NOW) -> list[Shipment]:
        return self.exchange(want, at)

    def settle(self, *settlements: Settlement, at: datetime = NOW) -> list[Settlement]:
        self.exchange(0, at, settlements=settlements)
        return self.settled


def delivered(shipment: Shipment) -> Settlement:
    return Settlement(shipment, ShipmentState.DELIVERED)


def retry(shipment: Shipment, at: datetime = NOW, *, may_have_arrived: bool = True) -> Settlement:
    return Settlement(
        shipment,
        ShipmentState.READY,
        "503" if may_have_arrived else "429",
        to_ms(at),
        may_have_arrived,
    )


def total(store: Store, meter: str = "verify", customer: str = "cus_1", at: datetime = NOW) -> int:
    known = store.standing(customer)
    return known.total(meter, known.history.at(meter, at))


def books(store: Store, customer: str = "cus_1") -> dict[tuple[str, datetime], tuple[int, int]]:
    """(meter, minute) -> total and counted."""
    with store.reading() as connection:
        rows = connection.execute(select(buckets).where(buckets.c.customer == customer)).all()
    return {(row.meter, from_ms(row.minute)): (row.total, row.counted) for row in rows}


def assert_consistent(store: Store) -> None:
    """Conservation (P3): the books agree with the events, and each unit is in one place."""
    assert list(store.verify()) == []
    for meter, count in store.counts().items():
        places = (
            count.unshipped,
            count.in_flight,
            count.delivered,
            count.in_doubt,
            count.dead,
            count.discarded,
        )
        assert sum(places) == count.recorded, meter


def derived(store: Store) -> list[set[tuple[Any, ...]]]:
    with store.reading() as connection:
        return [
            {tuple(row) for row in connection.execute(text(f"SELECT {what}"))}
            for what in (
                # How delivery fares is no matter of the events.
                "customer, meter, period, minute, total, counted, last_at FROM buckets",
                "* FROM totals",
                "* FROM seen",
            )
        ]
