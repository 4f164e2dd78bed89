"""From ``record()`` to the emulator, idle and at a steady rate.

The worker is the daemon thread of this process, the emulator has a process of its own; both read
the same machine's clock. Many events leave in one shipment: an event has arrived when the shipments
of its customer's minute add up to it.
"""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path
from threading import Thread
from typing import Any

from flask_c2meter.metering import Metering

from .measure import (
    KEY,
    RemoteEmulator,
    Report,
    build_metering,
    folder_on_disk,
    options,
    percentile,
    remote_emulator,
)

#: Customer, minute -> when each of its events was recorded, in order.
Recorded = dict[tuple[str, int], list[float]]


def record(metering: Metering, customer: str) -> tuple[str, int, float]:
    """Record one event; return its customer, its minute and when recording began."""
    before = time.time()
    event = metering.record(
        "verify_operations", customer, manifest_id="urn:c2pa:1", verification_result=True
    )
    assert event is not None
    return customer, int(event.occurred_at.timestamp()) // 60, before


def latencies(recorded: Recorded, stripe: RemoteEmulator) -> list[float]:
    """Seconds from the call of ``record()`` to arrival, for each event."""
    found = []
    waiting = {key: iter(sorted(times)) for key, times in recorded.items()}
    for customer, value, timestamp, arrived in stripe.arrivals():
        times = waiting[customer, int(timestamp) // 60]
        found += [arrived - next(times) for _ in range(value)]
    return found


def wait_for_delivery(metering: Metering, timeout_s: float = 30.0) -> None:
    """Return when nothing is unshipped or in flight.

    :raises TimeoutError: it takes too long.
    """
    deadline = time.monotonic() + timeout_s
    while any(one.unshipped or one.in_flight for one in metering.store.counts().values()):
        if time.monotonic() > deadline:
            raise TimeoutError("events are not delivered")
        time.sleep(0.01)


def idle(metering: Metering, stripe: RemoteEmulator, count: int) -> list[float]:
    """One event at a time, the next after a pause of its own delivery."""
    recorded: Recorded = defaultdict(list)
    for number in range(count):
        customer, minute, before = record(metering, f"cus_{number % 20}")
        recorded[customer, minute].append(before)
        time.sleep(0.05)
    wait_for_delivery(metering)
    return latencies(recorded, stripe)


def steady(
    metering: Metering, stripe: RemoteEmulator, rate: int, seconds: float, threads: int = 8
) -> tuple[list[float], float]:
    """Events at *rate* per second from several threads; also the rate that was reached."""
    lists: list[list[tuple[str, int, float]]] = [[] for _ in range(threads)]
    start = time.time() + 0.1

    def work(number: int) -> None:
        for step in range(number, int(rate * seconds), threads):
            left = start + step / rate - time.time()
            if left < -seconds:  # hopelessly behind: the rate that was reached tells
                break
            if left > 0:
                time.sleep(left)
            lists[number].append(record(metering, f"cus_{step % 100}"))

    workers = [Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    reached = sum(map(len, lists)) / (time.time() - start)
    wait_for_delivery(metering)
    recorded: Recorded = defaultdict(list)
    for events in lists:
        for customer, minute, before in events:
            recorded[customer, minute].append(before)
    return latencies(recorded, stripe), reached


def measure(folder: Path, stripe: RemoteEmulator, chosen: Any) -> Report:
    metering = build_metering(
        folder, stripe_secret_key=KEY, stripe_base_url=stripe.url, rate_cap=10_000
    )
    report = Report("From record() to the emulator, ms")
    idle(metering, stripe, 20)  # connections, schema, imports
    stripe.forget()
    alone = idle(metering, stripe, 60 if chosen.quick else 400)
    stripe.forget()
    seconds = 3.0 if chosen.quick else 15.0
    busy, reached = steady(metering, stripe, chosen.rate, seconds)
    worker: Any = metering.worker
    worker.stop()
    for name, found in (("idle", alone), (f"at {reached:.0f} operations/s", busy)):
        p50, p99, longest = (percentile(found, percent) * 1e3 for percent in (50, 99, 100))
        report.figure(name, f"p50 {p50:6.1f}  p99 {p99:7.1f}  max {longest:7.1f}")
    p50, p99 = percentile(busy, 50), percentile(busy, 99)
    report.at_most("idle p50", percentile(alone, 50) * 1e3, 10, "ms")
    report.at_most("idle p99", percentile(alone, 99) * 1e3, 100, "ms")
    # Behind the rate, p99 / p50 says little: then this is the figure to look at.
    report.at_least("operations/s reached", reached, 0.95 * chosen.rate, "/s")
    report.at_most(f"p99 / p50 at {chosen.rate} operations/s", p99 / p50, 5)
    return report


def main() -> None:
    chosen = options(
        __doc__,
        rounds=1,
        rate={"type": int, "default": 1000, "help": "operations/s; default: %(default)s"},
    )
    with folder_on_disk(chosen.dir) as folder, remote_emulator() as stripe:
        measure(folder, stripe, chosen).print()


if __name__ == "__main__":
    main()
