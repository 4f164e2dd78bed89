"""Case 13: the same ``Idempotency-Key`` again and again, at once, with another body, by others."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from fault_rig import Children, Rig, post, sql, stripe_totals

from flask_c2meter.emulator import StripeEmulator
from flask_c2meter.testing import FrozenClock


def sign(rig: Rig, key: str, customer: str = "cus_1", value: int = 1) -> int:
    answer = rig.app.test_client().post(
        "/sign", json={"value": value}, headers={"X-Customer": customer, "Idempotency-Key": key}
    )
    return answer.status_code


def events(rig: Rig) -> list[tuple[str, str, int]]:
    return sql(rig.folder, "SELECT customer, key, value FROM events ORDER BY 1, 2")


def test_case_13_fifty_requests_with_one_key_at_once_count_once(rig: Rig) -> None:
    together = threading.Barrier(50)

    def request(_: int) -> int:
        together.wait(30)
        return sign(rig, "k1")

    with ThreadPoolExecutor(50) as pool:
        assert list(pool.map(request, range(50))) == [200] * 50

    assert events(rig) == [("cus_1", "k1", 1)]
    rig.worker().run_once()
    rig.assert_books_balance()


def test_case_13_fifty_requests_with_one_key_at_several_processes_count_once(
    children: Children, stripe: StripeEmulator, new_rig: Callable[..., Rig]
) -> None:
    headers = {"Idempotency-Key": "k1"}
    with children.gunicorn("-w", "3") as port, ThreadPoolExecutor(16) as pool:
        answers = list(
            pool.map(lambda _: post(port, "/sign", {}, "cus_1", **headers)[0], range(50))
        )
        assert answers == [200] * 50
        assert stripe.wait_for(1)
    assert stripe_totals(stripe) == {("sign_operations", "cus_1"): 1}
    rig = new_rig(stripe)
    # The threads of the server may have died before they noted that Stripe has it.
    rig.worker().run_once(patience_s=10)
    rig.assert_books_balance()


def test_case_13_the_same_key_with_another_body_is_a_conflict(rig: Rig) -> None:
    assert sign(rig, "k1", value=1) == 200
    assert sign(rig, "k1", value=2) == 409
    assert sign(rig, "k1", value=1) == 200
    assert events(rig) == [("cus_1", "k1", 1)]


def test_case_13_of_two_bodies_at_once_one_counts_and_the_other_conflicts(rig: Rig) -> None:
    together = threading.Barrier(20)

    def request(number: int) -> tuple[int, int]:
        together.wait(30)
        return number % 2, sign(rig, "k1", value=1 + number % 2)

    with ThreadPoolExecutor(20) as pool:
        answers = set(pool.map(request, range(20)))

    ((_, _, value),) = events(rig)
    winner = value - 1
    assert answers == {(winner, 200), (1 - winner, 409)}


def test_case_13_the_same_key_of_another_tenant_counts_separately(rig: Rig) -> None:
    assert sign(rig, "k1", "cus_1") == 200
    assert sign(rig, "k1", "cus_2") == 200
    assert events(rig) == [("cus_1", "k1", 1), ("cus_2", "k1", 1)]


def test_case_13_a_key_begins_anew_after_24_hours(frozen_rig: Rig, clock: FrozenClock) -> None:
    assert sign(frozen_rig, "k1", value=1) == 200
    clock.advance(timedelta(hours=23, minutes=59))
    assert sign(frozen_rig, "k1", value=2) == 409
    clock.advance(timedelta(minutes=2))
    assert sign(frozen_rig, "k1", value=2) == 200
    assert sign(frozen_rig, "k1", value=2) == 200
    assert [value for _, _, value in events(frozen_rig)] == [2, 1]
