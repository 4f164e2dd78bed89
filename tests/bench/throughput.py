"""Durable events per second by threads and processes, beside plain ``sqlite3`` in the same run.

``one commit per event`` is a single-threaded loop, the fastest form of it; ``bare group commit``
writes the same event, bucket and total rows from the same number of threads, unchecked.
``Recorder`` builds, encodes and records an event; ``Metering.record`` also validates and signals
it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from statistics import median
from threading import Barrier, Thread
from typing import Any

from flask_c2meter.metering import Metering
from flask_c2meter.model import UsageEvent, new_id, utc_now
from flask_c2meter.recorder import Recorder
from flask_c2meter.store import Entry, Spill, encode

from . import bare
from .measure import (
    PROCESSES,
    Report,
    alternate,
    build_metering,
    folder_on_disk,
    options,
    percentile,
    ratio,
)

THREADS = (1, 8, 16, 64)
CUSTOMERS = [f"cus_{number}" for number in range(100)]
_FILES = count()


def rate(record: Callable[[str], object], threads: int, total: int) -> tuple[float, float]:
    """Events per second when *threads* record *total* together, and CPU us per event."""
    each = max(1, total // threads)
    ready = Barrier(threads + 1)

    def work(first: int) -> None:
        ready.wait()
        for number in range(first, first + each):
            record(CUSTOMERS[number % len(CUSTOMERS)])

    workers = [Thread(target=work, args=(number * each,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    ready.wait()
    started, cpu = time.perf_counter(), time.process_time()
    for worker in workers:
        worker.join()
    elapsed, cpu = time.perf_counter() - started, time.process_time() - cpu
    return each * threads / elapsed, cpu / (each * threads) * 1e6


class Ours:
    """The product's recorder and facade on files of their own."""

    def __init__(self, folder: Path) -> None:
        self.metering = build_metering(folder / f"ours-{next(_FILES)}")
        spill = Spill(self.metering.config.spill_path)
        self._recorder = Recorder(self.metering.store, spill, "refuse")

    def record(self, customer: str) -> None:
        """Through the recorder, as ``@metered`` and ``Metering.record`` end up."""
        now = utc_now()
        event = UsageEvent(
            key=new_id(),
            customer=customer,
            meter="verify_operations",
            units=1,
            precision=0,
            occurred_at=now,
            recorded_at=now,
            properties={"manifest_id": "urn:c2pa:1", "verification_result": True},
        )
        self._recorder.record(Entry(encode(event)))

    def record_all_the_way(self, customer: str) -> None:
        """Through the public facade."""
        _record(self.metering, customer)

    def close(self) -> None:
        """Close the file."""
        self.metering.store.close()


def _record(metering: Metering, customer: str) -> None:
    metering.record(
        "verify_operations", customer, manifest_id="urn:c2pa:1", verification_result=True
    )


def measure_threads(folder: Path, rounds: int, total: int) -> Report:
    ours = Ours(folder)
    single = bare.OneCommitPerEvent(folder / "single.sqlite")
    group = bare.GroupCommit(folder / "group.sqlite")
    variants: dict[str, Callable[[], tuple[float, float]]] = {
        "one commit per event": lambda: rate(single.record, 1, total // 4)
    }
    for threads in THREADS:
        amount = total // 4 if threads == 1 else total
        for name, record in (
            ("bare group commit", group.record),
            ("Recorder", ours.record),
            ("Metering.record", ours.record_all_the_way),
        ):
            variants[f"{name}, {threads} threads"] = _rate(record, threads, amount)
    alternate(variants, 1)
    pairs = alternate(variants, rounds)
    for each in (ours, single, group):
        each.close()
    found = {name: [speed for speed, _ in values] for name, values in pairs.items()}
    report = Report(f"Durable events/s, ratio to the first, CPU per event ({rounds} rounds)")
    one = found["one commit per event"]
    for name, rates in found.items():
        cpu = median(cpu for _, cpu in pairs[name])
        report.figure(name, f"{median(rates):7.0f}   {ratio(rates, one):5.2f} x   {cpu:4.0f} us")
    report.at_least(
        "Recorder / one commit per event, 16", ratio(found["Recorder, 16 threads"], one), 3.5
    )
    for threads in (16, 64):
        floor = found[f"bare group commit, {threads} threads"]
        report.at_least(
            f"Recorder / bare group commit, {threads}",
            ratio(found[f"Recorder, {threads} threads"], floor),
            0.8,
        )
    for threads in (16, 64):
        full = found[f"Metering.record, {threads} threads"]
        floor = found[f"bare group commit, {threads} threads"]
        report.figure(
            f"Metering.record / bare group commit, {threads}", f"{ratio(full, floor):5.2f} x"
        )
    return report


def _rate(
    record: Callable[[str], object], threads: int, total: int
) -> Callable[[], tuple[float, float]]:
    return lambda: rate(record, threads, total)


# -- processes -------------------------------------------------------------------------------------


def measure_processes(folder: Path, rounds: int, each: int, processes: int) -> Report:
    variants = {
        "ours": lambda: _waits(_record_ours, folder / "shared", processes, each),
        "plain busy_timeout": lambda: _waits(_record_plain, folder, processes, each),
    }
    found = alternate(variants, rounds)
    report = Report(f"{processes} processes on one file, {each} records each: wait per record, ms")
    p99 = {}
    for name, results in found.items():
        waits = [[wait for wait in one[0]] for one in results]
        p50, p99[name], longest = (
            median(percentile(one, percent) for one in waits) * 1e3 for percent in (50, 99, 100)
        )
        speed = median(one[1] for one in results)
        report.figure(
            name,
            f"p50 {p50:7.2f}  p99 {p99[name]:8.2f}  max {longest:8.1f}  {speed:6.0f} events/s",
        )
    report.at_most(f"p99 wait of {processes} processes", p99["ours"], 20, "ms")
    return report


def _waits(
    target: Callable[..., None], folder: Path, processes: int, each: int
) -> tuple[list[float], float]:
    """All waits in seconds, and events per second of all processes together."""
    barrier = PROCESSES.Barrier(processes)
    answers: Any = PROCESSES.SimpleQueue()
    children = [
        PROCESSES.Process(target=target, args=(str(folder), each, barrier, answers), daemon=True)
        for _ in range(processes)
    ]
    for child in children:
        child.start()
    found = [answers.get() for _ in children]
    for child in children:
        child.join()
    waits = [wait for one, _, _ in found for wait in one]
    elapsed = max(end for _, _, end in found) - min(start for _, start, _ in found)
    return waits, processes * each / elapsed


def _record_ours(folder: str, each: int, barrier: Any, answers: Any) -> None:
    metering = build_metering(Path(folder))
    _timed(lambda customer: _record(metering, customer), each, barrier, answers)
    metering.store.close()


def _record_plain(folder: str, each: int, barrier: Any, answers: Any) -> None:
    driver = bare.connect(Path(folder, "plain.sqlite"))
    _timed(
        lambda customer: bare.insert_one(driver, bare.event_row(customer)), each, barrier, answers
    )
    driver.close()


def _timed(record: Callable[[str], None], each: int, barrier: Any, answers: Any) -> None:
    record(CUSTOMERS[0])
    waits = []
    barrier.wait()
    start = time.time()
    for number in range(each):
        before = time.perf_counter()
        record(CUSTOMERS[number % len(CUSTOMERS)])
        waits.append(time.perf_counter() - before)
    answers.put((waits, start, time.time()))


def main() -> None:
    chosen = options(
        __doc__, rounds=5, processes={"type": int, "default": 4, "help": "default: %(default)s"}
    )
    total = 800 if chosen.quick else 1600
    with folder_on_disk(chosen.dir) as folder:
        measure_threads(folder, chosen.rounds, total).print()
        each = 300 if chosen.quick else 800
        rounds = min(chosen.rounds, 3)
        measure_processes(folder, rounds, each, chosen.processes).print()


if __name__ == "__main__":
    main()
