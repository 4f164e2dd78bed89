"""Whether history costs anything: ``usage()`` and one more event, with few and with many stored."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from statistics import median

from flask_c2meter.metering import Metering

from .drain import backlog, fill
from .measure import Report, alternate, build_metering, folder_on_disk, options, ratio

CUSTOMERS = 100


def filled(folder: Path, events: int) -> Metering:
    """A store with *events* of :data:`CUSTOMERS`, over the last day."""
    builder = build_metering(folder, durability="relaxed")  # only to be built faster
    started = time.perf_counter()
    fill(builder, backlog(events, CUSTOMERS, timedelta(days=1)))
    builder.store.close()
    size = os.path.getsize(folder / "c2meter.sqlite") / 1e6
    print(f"  {events} events stored in {time.perf_counter() - started:.0f} s, {size:.0f} MB")
    return build_metering(folder)


def _usage(metering: Metering, count: int) -> Callable[[], float]:
    def run() -> float:
        started = time.process_time()
        for number in range(count):
            metering.usage(f"cus_{number % CUSTOMERS}")
        return (time.process_time() - started) / count * 1e6

    return run


def _events(metering: Metering, count: int) -> Callable[[], tuple[float, float]]:
    def run() -> tuple[float, float]:
        wall, cpu = time.perf_counter(), time.process_time()
        for number in range(count):
            metering.record(
                "verify_operations",
                f"cus_{number % CUSTOMERS}",
                manifest_id="urn:c2pa:1",
                verification_result=True,
            )
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        return wall / count * 1e6, cpu / count * 1e6

    return run


def main() -> None:
    chosen = options(
        __doc__,
        rounds=15,
        events={"type": int, "default": 1_000_000, "help": "in the large store"},
    )
    many = 100_000 if chosen.quick else chosen.events
    with folder_on_disk(chosen.dir) as folder:
        sizes = {"few": 1_000, "some": 10_000, "many": many}
        stores = {name: filled(folder / name, size) for name, size in sizes.items()}
        usage = {name: _usage(stores[name], 200) for name in ("few", "many")}
        more = {name: _events(stores[name], 200) for name in ("some", "many")}
        alternate(usage, 1)
        alternate(more, 1)
        read = alternate(usage, chosen.rounds)
        pairs = alternate(more, chosen.rounds)
        for store in stores.values():
            store.store.close()
    walls = {name: [wall for wall, _ in values] for name, values in pairs.items()}
    cpus = {name: [cpu for _, cpu in values] for name, values in pairs.items()}
    report = Report(f"The cost of history, us (medians of {chosen.rounds} rounds)")
    for name, times in read.items():
        report.figure(f"usage() with {sizes[name]} events", f"cpu {median(times):6.0f}")
    for name in pairs:
        figures = f"cpu {median(cpus[name]):6.0f}   wall {median(walls[name]):6.0f}"
        report.figure(f"one more event with {sizes[name]} events", figures)
    report.at_most(
        f"usage(), {many} / {sizes['few']} events", ratio(read["many"], read["few"]), 1.1
    )
    report.at_most(
        f"one more event, {many} / {sizes['some']}", ratio(walls["many"], walls["some"]), 1.2
    )
    report.at_most(
        f"the same in CPU, {many} / {sizes['some']}", ratio(cpus["many"], cpus["some"]), 1.2
    )
    report.print()


if __name__ == "__main__":
    main()
