"""What child processes do about alerts: ``python -m fault_alerts FUNCTION JSON``.

As in ``fault_children``, the process that is started only imports and forks.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fault_children import fork, new_metering, wait

from flask_c2meter import Alert, usage_alert
from flask_c2meter.metering import Metering

VERIFY = "verify_operations"


def _together(processes: int, act: Callable[[], object]) -> list[int]:
    """*act* in so many processes, which begin at the same moment; their exit codes."""
    barrier = multiprocessing.get_context("fork").Barrier(processes)

    def begin() -> None:
        barrier.wait(30)
        act()

    return [wait(pid) for pid in [fork(begin) for _ in range(processes)]]


def record_together(customers: Sequence[str], value: int, times: int, processes: int) -> list[int]:
    """So many processes, each new, use *value* for each customer in turn, so many times."""
    metering = new_metering()

    def record() -> None:
        for _ in range(times):
            for customer in customers:
                metering.record(VERIFY, customer, value=value, manifest_id="m")

    return _together(processes, record)


def announce_together(heard: str, processes: int, rounds: int) -> list[int]:
    """In each round so many new processes announce all that is due.

    :param heard: a file that gets a line for each alert that is heard of.
    """

    def hear(sender: object, alert: Alert, **extra: Any) -> None:
        _note(heard, alert)

    with usage_alert.connected_to(hear):
        return [
            code
            for metering in [new_metering() for _ in range(rounds)]
            for code in _together(processes, lambda metering=metering: _announce(metering))
        ]


def announce_until_it_ends_nobody(poison: str, heard: str, shifts_s: Sequence[int]) -> list[int]:
    """A process for each shift of the clock, which ends when it hears of *poison*."""
    metering = new_metering()
    clock = Path(os.environ["FAULT_DIR"], "clock")

    def hear(sender: object, alert: Alert, **extra: Any) -> None:
        if alert.customer == poison:
            os._exit(77)
        _note(heard, alert)

    codes = []
    with usage_alert.connected_to(hear):
        for shift_s in shifts_s:
            clock.write_text(str(shift_s))
            codes.append(wait(fork(lambda: _announce(metering))))
    return codes


def _announce(metering: Metering) -> None:
    assert metering.worker is not None
    metering.worker.run_once()


def _note(path: str, alert: Alert) -> None:
    line = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(line, f"{alert.identifier}\n".encode())
    os.close(line)


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](**json.loads(sys.argv[2]))))
