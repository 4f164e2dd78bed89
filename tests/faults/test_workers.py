"""Cases 5-7 and 21: many processes on one ledger, gunicorn among them, and an orderly end."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from http.client import HTTPConnection

import pytest
from fault_rig import VERIFY, Children, Rig, leases, post, sends, stripe_totals, until

from flask_c2meter.emulator import StripeEmulator
from flask_c2meter.model import to_ms
from flask_c2meter.shipment import ShipmentState
from flask_c2meter.store import Claimant, LaneTour, Settlement


@pytest.mark.parametrize(
    ("customers", "minutes"),
    [
        (40, 15),
        pytest.param(200, 100, marks=[pytest.mark.long, pytest.mark.timeout(600)]),
    ],
)
def test_case_05_four_workers_claim_each_row_once(
    rig: Rig, children: Children, stripe: StripeEmulator, customers: int, minutes: int
) -> None:
    rows = rig.backlog(customers, minutes, datetime.now(UTC))

    codes = children.act(
        "deliver_together",
        env={"C2METER_WORKER": "off", "C2METER_RATE_CAP": "10000"},
        workers=4,
        timeout_s=500,
    )

    assert codes == [0, 0, 0, 0]
    assert len(stripe.events) == rows
    assert stripe.duplicates == 0
    assert [request.status for request in stripe.requests if request.status == 409] == []
    assert sends(stripe) <= 1.01 * rows
    rig.assert_books_balance()


def test_case_06_gunicorn_with_preload_delivers_a_thousand_requests_in_30_s(
    children: Children, stripe: StripeEmulator, new_rig: Callable[..., Rig]
) -> None:
    with children.gunicorn("--preload", "-w", "4") as port:
        with ThreadPoolExecutor(8) as pool:
            answers = list(
                pool.map(lambda n: post(port, "/verify", {}, f"cus_{n % 20}"), range(1000))
            )
        assert [answer for answer in answers if answer != (200, {"ok": True})] == []
        until(lambda: sum(stripe_totals(stripe).values()) == 1000, 30)

    # The threads ended with their servers; what they had not noted yet is settled by a successor.
    rig = new_rig(stripe)
    rig.worker().run_once(patience_s=15)
    rig.assert_books_balance()


def get(port: int, path: str) -> int:
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.mark.parametrize("preload", [(), ("--preload",)], ids=["", "preload"])
def test_case_06_gunicorn_with_gevent_serves_delivers_and_ends(
    children: Children, stripe: StripeEmulator, preload: tuple[str, ...]
) -> None:
    """With ``--preload`` gevent replaces what we imported before it was there."""
    pytest.importorskip("gevent", reason="gevent is not installed")
    with children.gunicorn("-k", "gevent", *preload, "-w", "1") as port:
        assert [post(port, "/verify", {}, "cus_1")[0] for _ in range(3)] == [200] * 3
        assert get(port, "/health") == 200
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda n: post(port, "/verify", {}, f"cus_{n}"), range(40)))
        assert [answer for answer in answers if answer != (200, {"ok": True})] == []
        until(lambda: sum(stripe_totals(stripe).values()) == 43, 30)
        assert get(port, "/health") == 200
        told = time.monotonic()
    assert time.monotonic() - told <= 10


def is_delivered(rig: Rig) -> bool:
    counts = rig.counts()
    return counts["delivered"] == counts["recorded"]


@pytest.mark.parametrize("delay_s", [0.3, pytest.param(11.0, id="longer than a worker may take")])
def test_case_07_sigterm_ends_a_worker_with_backlog_and_requests_in_flight(
    rig: Rig, children: Children, stripe: StripeEmulator, delay_s: float
) -> None:
    rig.backlog(50, 20, datetime.now(UTC))
    stripe.fail(delay=delay_s, times=None)
    worker = children.worker()
    until(lambda: sends(stripe) >= 10, 20)

    worker.send_signal(signal.SIGTERM)
    ended_s = until(lambda: worker.poll() is not None, 20)

    assert worker.returncode == 0
    assert ended_s <= 10
    assert leases(rig.folder) == []
    begun = sends(stripe)
    assert begun < 500
    stripe.recover()
    # Stripe still works on what it was sent, and refuses those lanes until it is done: how often
    # the successor tries them meanwhile is a matter of its dice.
    successor = rig.worker()
    until(lambda: successor.run_once(patience_s=15) or is_delivered(rig), 90)
    rig.assert_books_balance()


@pytest.mark.parametrize(
    ("processes", "events"),
    [(16, 40), pytest.param(16, 2000, marks=[pytest.mark.long, pytest.mark.timeout(600)])],
)
def test_case_21_sixteen_processes_record_without_errors_or_long_waits(
    rig: Rig, children: Children, processes: int, events: int
) -> None:
    result = children.act(
        "record_together",
        env={"C2METER_WORKER": "off"},
        processes=processes,
        events=events,
        timeout_s=500,
    )

    assert result["codes"] == [0] * processes
    assert result["reports"] == processes
    assert result["longest_s"] <= 1.0
    assert rig.counts()["events"] == processes * events
    assert rig.metering.status()["spill"]["pending"] == 0
    assert list(rig.store.verify()) == []


def test_no_lane_starves_however_few_may_be_claimed_at_a_time(frozen_rig: Rig) -> None:
    now = frozen_rig.clock()
    frozen_rig.backlog(4, 6, now)
    tour = LaneTour()
    claimant = Claimant("here:1:a", to_ms(now) + 60_000, [VERIFY], want=1)

    settled: list[Settlement] = []
    order = []
    for _ in range(8):
        exchange = frozen_rig.store.exchange(claimant, tour, to_ms(now), settlements=settled)
        settled = [Settlement(s, ShipmentState.DELIVERED) for s in exchange.claimed]
        order += [shipment.customer for shipment in exchange.claimed]

    assert sorted(order[:4]) == sorted(order[4:]) == ["cus_0", "cus_1", "cus_2", "cus_3"]
