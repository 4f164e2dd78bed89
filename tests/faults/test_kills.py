"""Cases 1-3: a process is killed (SIGKILL) anywhere between a request and Stripe's receipt."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest
from fault_rig import VERIFY, Children, Rig, leases, sends, sql, stripe_totals, until

from flask_c2meter.emulator import StripeEmulator

OFF = {"C2METER_WORKER": "off"}


@pytest.mark.parametrize(
    "kills", [10, pytest.param(200, marks=[pytest.mark.long, pytest.mark.timeout(600)])]
)
def test_case_01_kill_before_commit_leaves_nothing_and_a_retry_counts_once(
    children: Children, kills: int
) -> None:
    result = children.act("kill_before_commit", env=OFF, kills=kills, timeout_s=500)

    assert result == {"phantoms": 0, "repeated": 0}
    assert sql(children.folder, "SELECT COUNT(*), COUNT(DISTINCT key) FROM events") == [
        (kills, kills)
    ]
    assert sql(children.folder, "SELECT total, events FROM totals") == [(kills, kills)]


@pytest.mark.parametrize(
    "kills", [10, pytest.param(200, marks=[pytest.mark.long, pytest.mark.timeout(600)])]
)
def test_case_01_kill_at_any_moment_loses_nothing_acknowledged(
    children: Children, kills: int
) -> None:
    result = children.act("kill_at_random", env=OFF, kills=kills, seed=kills, timeout_s=500)

    assert result["missing"] == 0
    assert result["differences"] == 0
    # Each of the eight threads may have been killed between its commit and its acknowledgement.
    assert 0 <= result["rows"] - result["acknowledged"] <= 8 * kills
    assert result["acknowledged"] >= kills


def test_kill_in_a_stream_has_billed_its_last_checkpoint(children: Children) -> None:
    assert children.act("kill_in_stream", env=OFF) == ["0", "2"]


@pytest.mark.parametrize(
    "events", [200, pytest.param(1000, marks=[pytest.mark.long, pytest.mark.timeout(300)])]
)
def test_case_02_kill_after_commit_before_send_loses_nothing(
    children: Children, stripe: StripeEmulator, new_rig: Callable[..., Rig], events: int
) -> None:
    assert children.act("kill_after_commit", env=OFF, events=events, customers=20) == -9
    assert stripe.requests == []

    worker = children.worker()
    first_s = until(lambda: sends(stripe), 20)
    until(lambda: sum(stripe_totals(stripe).values()) == events, 30)

    assert first_s <= 5
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(10) == 0
    new_rig(stripe).assert_books_balance()


def test_case_02_leases_of_a_killed_worker_are_taken_over_within_5_s(
    children: Children, stripe: StripeEmulator, new_rig: Callable[..., Rig]
) -> None:
    rig = new_rig(stripe)
    rig.record_many((f"cus_{number}", 1, None) for number in range(10))
    killed = children.worker(env={"C2METER_FAILPOINTS": "after_claim=kill"})
    assert killed.wait(20) == -signal.SIGKILL
    assert len(leases(children.folder)) == 10
    assert sends(stripe) == 0

    worker = children.worker()
    first_s = until(lambda: sends(stripe), 20)
    until(lambda: sum(stripe_totals(stripe).values()) == 10, 10)

    assert first_s <= 5
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(10) == 0
    rig.assert_books_balance()


@pytest.mark.parametrize("point", ["before_send", "after_send", "before_ack", "after_ack"])
def test_case_03_a_worker_process_killed_anywhere_sends_the_same_identifiers_again(
    children: Children, stripe: StripeEmulator, new_rig: Callable[..., Rig], point: str
) -> None:
    rig = new_rig(stripe)
    rig.record_many((f"cus_{number}", 2, None) for number in range(10))
    killed = children.worker(env={"C2METER_FAILPOINTS": f"{point}=kill"})
    assert killed.wait(20) == -signal.SIGKILL

    rig.worker().run_once(patience_s=15)

    rig.assert_books_balance()
    assert len({event.identifier for event in stripe.events}) == 10


@pytest.mark.parametrize("with_code", [True, False])
@pytest.mark.parametrize(
    "kills", [15, pytest.param(250, marks=[pytest.mark.long, pytest.mark.timeout(600)])]
)
def test_case_03_kill_after_send_before_ack_counts_once(
    new_rig: Callable[..., Rig], tmp_path, kills: int, with_code: bool
) -> None:
    with StripeEmulator(duplicate_code=with_code) as stripe:
        children = Children(tmp_path, stripe)
        try:
            recorded = children.act(
                "kill_while_delivering", env=OFF, kills=kills, seed=kills, timeout_s=500
            )
            children.act("deliver_all", env=OFF)
        finally:
            children.stop_all()

        assert stripe.duplicates > 0
        assert sum(total for (meter, _), total in stripe_totals(stripe).items()) == recorded
        assert sql(tmp_path, "SELECT SUM(total) FROM totals WHERE meter = ?", VERIFY) == [
            (recorded,)
        ]
        assert sends(stripe) >= len(stripe.events)
        new_rig(stripe).assert_books_balance()
