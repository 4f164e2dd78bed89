"""An oracle for case 24: random operations, and what they add up to, by the definitions alone."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import cache
from typing import Any

from flask_c2meter.metering import Metering

#: Today's start, inherited by child processes: the same in all of a run, even at midnight.
TODAY = int(os.environ.setdefault("FAULT_TODAY", str(int(time.time()) // 86_400 * 86_400)))


@dataclass(frozen=True)
class Operation:
    """One use of a meter, somewhere in the last 34 days."""

    meter: str
    customer: str
    key: str
    #: verify: how many; storage: megabytes; sites: which domain.
    thing: int
    at: datetime


@cache
def operations(seed: int) -> tuple[Operation, ...]:
    """The operations of *seed*, late ones among them, in any order."""
    dice = random.Random(seed)
    end = datetime.fromtimestamp(TODAY, UTC)
    made = []
    for number in range(dice.randint(5, 40)):
        age = dice.choice((0, dice.uniform(0, 120), dice.uniform(0, 33 * 86_400)))
        made.append(
            Operation(
                meter=dice.choice(("verify_operations", "storage_gb", "active_sites")),
                customer=f"cus_{seed}_{dice.randrange(3)}",
                key=f"op-{seed}-{number}",
                thing=dice.randint(1, 8),
                at=end - timedelta(seconds=age),
            )
        )
    return tuple(made)


def share(seed: int, number: int, processes: int) -> Sequence[Operation]:
    """What process *number* records: its part, and a few that others record as well (retries)."""
    dice = random.Random(f"{seed}/{number}")
    everything = operations(seed)
    mine = [*everything[number::processes], *dice.sample(everything, len(everything) // 5)]
    dice.shuffle(mine)
    return mine


def voided(seed: int) -> Sequence[Operation]:
    """What is voided when all is recorded."""
    return random.Random(-seed - 1).sample(operations(seed), len(operations(seed)) // 8)


def perform(metering: Metering, operation: Operation) -> None:
    """Record *operation*."""
    arguments: dict[str, Any] = {
        "verify_operations": {"value": operation.thing, "manifest_id": "m"},
        "storage_gb": {"storage_gb": Decimal(operation.thing).scaleb(-3)},
        "active_sites": {"domain": f"site{operation.thing}.example"},
    }[operation.meter]
    metering.record(
        operation.meter,
        operation.customer,
        key=operation.key,
        occurred_at=operation.at,
        **arguments,
    )


def expected(seeds: Iterable[int]) -> dict[tuple[str, str, str], int]:
    """(meter, customer, month) -> wire units, other than 0."""
    things: dict[tuple[str, str, str], list[int]] = {}
    for seed in seeds:
        gone = set(voided(seed))
        for operation in operations(seed):
            if operation not in gone:
                lane = (operation.meter, operation.customer, f"{operation.at:%Y-%m}")
                things.setdefault(lane, []).append(operation.thing)
    aggregate = {
        "verify_operations": sum,
        "storage_gb": max,
        "active_sites": lambda found: len(set(found)),
    }
    return {lane: aggregate[lane[0]](found) for lane, found in things.items()}
