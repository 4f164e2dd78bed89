"""A backlog to the emulator: requests used and events/s, beside one SDK call per event.

``--quick`` has too few events in a minute to reach the target: the gain is in the bundling.

The worker runs here, the emulator in a process of its own. The yardstick is what the source
document does: a v1 call per event, one after the other, through the SDK as it comes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

from flask_c2meter.metering import Metering
from flask_c2meter.model import UsageEvent, new_id, to_ms, utc_now
from flask_c2meter.store import MAX_BATCH, Entry, encode

from .measure import (
    KEY,
    RemoteEmulator,
    Report,
    build_metering,
    folder_on_disk,
    options,
    remote_emulator,
)

METER = "verify_operations"


def backlog(total: int, customers: int, spread: timedelta) -> Iterator[UsageEvent]:
    """*total* events of *customers* in turn, evenly over the last *spread*, in order."""
    now = utc_now()
    for number in range(total):
        yield UsageEvent(
            key=new_id(),
            customer=f"cus_{number % customers}",
            meter=METER,
            units=1,
            precision=0,
            occurred_at=now - spread * (total - number) / total,
            recorded_at=now,
            properties={"manifest_id": "urn:c2pa:1", "verification_result": True},
        )


def fill(metering: Metering, events: Iterator[UsageEvent]) -> int:
    """Record *events* in batches; return the number of active customer-minutes."""
    minutes = set()
    while batch := list(islice(events, MAX_BATCH)):
        metering.store.append([Entry(encode(event)) for event in batch])
        minutes |= {(event.customer, to_ms(event.occurred_at) // 60_000) for event in batch}
    return len(minutes)


def drain(folder: Path, stripe: RemoteEmulator, total: int, report: Report) -> float:
    """Deliver a backlog; return events per second."""
    metering = build_metering(
        folder,
        stripe_secret_key=KEY,
        stripe_base_url=stripe.url,
        rate_cap=10_000,
        worker="off",
    )
    worker: Any = metering.worker
    # Of customers who are known: the subscription of a new one is looked at once.
    fill(metering, backlog(1000, 1000, timedelta(minutes=3)))
    worker.run_once(patience_s=30)
    stripe.forget()
    started = time.perf_counter()
    minutes = fill(metering, backlog(total, 1000, timedelta(minutes=3)))
    report.figure("backlog recorded in", f"{time.perf_counter() - started:6.1f} s")
    started, cpu = time.perf_counter(), time.process_time()
    worker.run_once(patience_s=30)
    elapsed, cpu = time.perf_counter() - started, time.process_time() - cpu
    requests = stripe.requests()
    delivered = sum(value for _, value, _, _ in stripe.arrivals())
    metering.store.close()
    if delivered != total:
        raise RuntimeError(f"{delivered} of {total} events have arrived")
    report.figure("drained in", f"{elapsed:6.1f} s")
    report.figure("active customer-minutes", f"{minutes:6}")
    report.figure("requests used", f"{requests:6}")
    report.figure("requests/s", f"{requests / elapsed:6.0f}")
    report.figure("CPU of the worker per request", f"{cpu / requests * 1e6:6.0f} us")
    report.figure("events/s", f"{total / elapsed:6.0f}")
    report.at_most("requests / active customer-minutes", requests / minutes, 1.05)
    return total / elapsed


def per_event(stripe: RemoteEmulator, total: int) -> float:
    """Events per second with one SDK call each."""
    import stripe as sdk

    addresses: Any = dict.fromkeys(("api", "connect", "files", "meter_events"), stripe.url)
    client = sdk.StripeClient(KEY, base_addresses=addresses)
    started = time.perf_counter()
    for number in range(total):
        payload = {"stripe_customer_id": f"cus_{number % 1000}", "value": "1"}
        client.v1.billing.meter_events.create({"event_name": METER, "payload": payload})
    return total / (time.perf_counter() - started)


def main() -> None:
    chosen = options(
        __doc__,
        rounds=2,
        events={"type": int, "default": 100_000, "help": "default: %(default)s"},
    )
    total, sample = (10_000, 500) if chosen.quick else (chosen.events, 2000)
    with folder_on_disk(chosen.dir) as folder, remote_emulator() as stripe:
        report = Report(f"A backlog of {total} events of 1,000 customers")
        # The yardstick before and after, so that a busy moment hits both.
        before = per_event(stripe, sample // 2)
        stripe.forget()
        speed = drain(folder, stripe, total, report)
        yardstick = (before + per_event(stripe, sample // 2)) / 2
        report.figure("one SDK call per event, events/s", f"{yardstick:6.0f}")
        report.at_least("events/s / one SDK call per event", speed / yardstick, 50)
        report.print()


if __name__ == "__main__":
    main()
