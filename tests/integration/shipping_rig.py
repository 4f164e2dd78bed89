"""A real store, a real worker and the emulator over a socket, all on one clock that is told."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

from flask_c2meter.clerk import Clerk
from flask_c2meter.courier import Courier
from flask_c2meter.emulator import StripeEmulator
from flask_c2meter.gateway import Gateway
from flask_c2meter.jury import Jury
from flask_c2meter.model import Aggregation, Meter, UsageEvent, new_id
from flask_c2meter.shipment import Shipment
from flask_c2meter.store import Entry, Settlement, Spill, Store, adjustment_key, encode, open_store
from flask_c2meter.testing import FrozenClock
from flask_c2meter.transports import V1Transport
from flask_c2meter.worker import Worker

METERS = {
    name: Meter(name, name.title(), f"{name}.happened", "unit", Aggregation.SUM)
    for name in ("verify", "sign")
}
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)


class Rig:
    """Everything between an event and Stripe."""

    def __init__(self, folder: Path, stripe: StripeEmulator, clock: FrozenClock) -> None:
        self.stripe, self.clock = stripe, clock
        self.store: Store = open_store(f"sqlite:///{folder}/ledger.db", METERS)
        self.spill = Spill(folder / "spill")
        self.gateway = Gateway("sk_test_1", base_url=stripe.url, clock=clock)
        self.settled: list[Settlement] = []

    def worker(self, **more: Any) -> Worker:
        defaults: dict[str, Any] = {
            "account": self.gateway.account,
            "meters": tuple(METERS),
            "clock": self.clock,
            "rate_cap": 1000.0,
            "random": Random(1),
            "on_settled": self.settled.append,
        }
        transport = more.pop("transport", None) or V1Transport(self.gateway)
        jury = more.pop("jury", None) or Jury(self.store, self.gateway, self.clock)
        courier = Courier(self.store, self.spill, transport, **(defaults | more))
        return Worker(Clerk([jury]), courier)

    def work(self, **more: Any) -> None:
        """A worker ships what is due now, and goes."""
        self.worker(**more).run_once()

    def event(self, meter: str = "verify", units: int = 1, **more: Any) -> UsageEvent:
        now = self.clock()
        defaults: dict[str, Any] = {
            "key": new_id(),
            "customer": "cus_1",
            "occurred_at": now,
            "recorded_at": now,
        }
        return UsageEvent(meter=meter, units=units, precision=0, **(defaults | more))

    def record(self, meter: str = "verify", units: int = 1, **more: Any) -> UsageEvent:
        event = self.event(meter, units, **more)
        self.store.append([Entry(encode(event))])
        return event

    def adjust(self, event: UsageEvent) -> None:
        key = adjustment_key(event.key)
        self.store.adjust(
            self.event(event.meter, 0, key=key, customer=event.customer, kind="adjustment")
        )

    def advance(self, by: timedelta) -> datetime:
        return self.clock.advance(by)

    def sent(self, meter: str = "verify", customer: str = "cus_1") -> int:
        """What Stripe holds."""
        return int(self.stripe.meter_total(meter, customer))

    def states(self) -> list[str]:
        return [shipment.state.value for shipment in self.store.shipments()]

    def only_shipment(self) -> Shipment:
        (shipment,) = self.store.shipments()
        return shipment

    def attempts(self) -> Sequence[Any]:
        """Requests that carry meter events."""
        return [r for r in self.stripe.requests if r.path.endswith("meter_events")]


@contextmanager
def shipping(folder: Path, **emulator: Any) -> Iterator[Rig]:
    """A rig, closed after the block with clean books."""
    clock = FrozenClock()
    with StripeEmulator(clock=clock, **emulator) as stripe:
        rig = Rig(folder, stripe, clock)
        try:
            yield rig
            assert list(rig.store.verify()) == []
        finally:
            rig.store.close()
