"""What child processes do about a huge backlog: ``python -m fault_backlog FUNCTION JSON``."""

from __future__ import annotations

import json
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from fault_children import new_metering

from flask_c2meter.model import UsageEvent, new_id
from flask_c2meter.store import MAX_BATCH, Entry, encode
from flask_c2meter.store.shipping import Exchange

VERIFY = "verify_operations"


def fill(customers: int, minutes: int, end_ms: int) -> int:
    """Record an event in each of *minutes* before *end_ms* of each customer; their number."""
    metering = new_metering()
    end = datetime.fromtimestamp(end_ms / 1000, UTC)
    entries: list[Entry] = []
    number = 0
    for minute in range(minutes):
        at = end - timedelta(minutes=minute)
        for customer in range(customers):
            event = UsageEvent(
                key=new_id(),
                customer=f"cus_{customer}",
                meter=VERIFY,
                units=1,
                precision=0,
                occurred_at=at,
                recorded_at=at,
                properties={"manifest_id": "m"},
            )
            entries.append(Entry(encode(event)))
            number += 1
            if len(entries) == MAX_BATCH:
                metering.store.append(entries)
                entries.clear()
    if entries:
        metering.store.append(entries)
    metering.store.close()
    return number


def deliver(shipments: int) -> dict[str, Any]:
    """Deliver so many, as a worker does.

    :return: of each visit to the store its milliseconds, those on the processor, and how many
        shipments it claimed; the bytes by which memory grew after the start.
    """
    metering = new_metering()
    store, worker = metering.store, metering.worker
    assert worker is not None
    visit = store.exchange
    took_ms, cpu_ms, claims = list[float](), list[float](), list[int]()
    before = most = settled = 0

    def timed(*arguments: Any, **more: Any) -> Exchange:
        wall, cpu = time.perf_counter(), time.thread_time()
        exchange = visit(*arguments, **more)
        if exchange.claimed:
            took_ms.append((time.perf_counter() - wall) * 1000)
            cpu_ms.append((time.thread_time() - cpu) * 1000)
            claims.append(len(exchange.claimed))
        return exchange

    def look(count: int) -> None:
        nonlocal before, most, settled
        settled = count
        if count < shipments // 10:  # until then senders are hired and caches filled
            before = _resident()
        most = max(most, _resident())
        if count >= shipments:
            worker.stop()

    store.exchange = timed  # type: ignore[method-assign]
    worker.run_once(patience_s=15, progress=look)
    return {
        "took_ms": took_ms,
        "cpu_ms": cpu_ms,
        "claims": claims,
        "settled": settled,
        "grown": most - before,
    }


def _resident() -> int:
    """Bytes of memory that this process holds (Linux)."""
    status = Path("/proc/self/status").read_text()
    (kilobytes,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))
    return int(kilobytes) * 1024


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](**json.loads(sys.argv[2]))))
