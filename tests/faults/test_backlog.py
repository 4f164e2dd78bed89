"""Case 22: a backlog of a million; a worker's visits to the store stay short, its memory small."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fault_rig import Children, Rig, sends, until

from flask_c2meter.testing import FrozenClock

MIB = 2**20


def act(children: Children, name: str, durability: str = "full", **arguments: Any) -> Any:
    """What a function of ``fault_backlog`` returns, in a process of its own."""
    env = {
        "C2METER_WORKER": "off",
        "C2METER_RATE_CAP": "10000",
        "C2METER_DURABILITY": durability,
    }
    code, output = children.run(
        "fault_backlog", name, json.dumps(arguments), env=env, timeout_s=1500
    )
    assert code == 0, output
    return json.loads(output.splitlines()[-1])


def percentile(values: list[float], percent: int) -> float:
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)]


@pytest.mark.parametrize(
    ("customers", "minutes", "shipments"),
    [
        (500, 100, 1500),
        pytest.param(
            1000, 1000, 20_000, marks=[pytest.mark.long, pytest.mark.timeout(3600)], id="million"
        ),
    ],
)
def test_case_22_a_claim_takes_20_ms_and_memory_grows_by_less_than_64_mib(
    children: Children, customers: int, minutes: int, shipments: int
) -> None:
    end_ms = int(datetime.now(UTC).timestamp() * 1000)
    where = {"customers": customers, "minutes": minutes, "end_ms": end_ms}
    rows = act(children, "fill", "relaxed", **where)  # only to be done sooner
    assert rows == customers * minutes

    result = act(children, "deliver", shipments=shipments)

    assert result["settled"] >= shipments
    # Processor time: what a visit waits for the disk and for other processes is not its own.
    assert percentile(result["cpu_ms"], 99) <= 20
    assert result["grown"] <= 64 * MIB
    # Whoever records waits for a visit to end: none may take more the more there is to claim.
    assert max(result["claims"]) <= 32


def test_what_is_too_old_to_be_sent_is_set_aside_without_a_rest_between_visits(
    frozen_rig: Rig, clock: FrozenClock
) -> None:
    frozen_rig.backlog(320, 1, clock())
    clock.advance(timedelta(days=36))
    worker = frozen_rig.worker()

    worker.start()
    until(lambda: len(frozen_rig.dead()) == 320, 8)  # 32 at a time and one visit a second: ten
    worker.stop()
    until(lambda: not worker.is_running, 10)

    assert sends(frozen_rig.stripe) == 0
