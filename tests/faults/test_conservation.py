"""Case 24 and the whole: whatever happens, Stripe = ledger = an independent count."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import fault_oracle
import pytest
from fault_rig import SIGN, SITES, STORAGE, VERIFY, Children, Rig, post, sql, stripe_totals, until

from flask_c2meter.emulator import StripeEmulator


@pytest.mark.parametrize(
    "runs", [8, pytest.param(1000, marks=[pytest.mark.long, pytest.mark.timeout(1800)])]
)
def test_case_24_shuffled_late_repeated_and_voided_usage_adds_up_from_four_processes(
    children: Children, stripe: StripeEmulator, new_rig: Callable[..., Rig], runs: int
) -> None:
    first = random.SystemRandom().randrange(10**6)
    seeds = range(first, first + runs)

    env = {"C2METER_WORKER": "off", "C2METER_RATE_CAP": "10000"}
    bad = children.act("record_shuffled", env=env, seeds=list(seeds), timeout_s=1700)
    children.act("deliver_all", env=env, timeout_s=300)

    assert bad == [], f"seeds from {first}"
    expected = fault_oracle.expected(seeds)
    ledger = {
        (meter, customer, month): total
        for meter, customer, month, total in sql(
            children.folder,
            "SELECT meter, customer, strftime('%Y-%m', period / 1000, 'unixepoch'), total "
            "FROM totals WHERE total <> 0",
        )
    }
    held: Counter[tuple[str, str, str]] = Counter()
    for event in stripe.events:
        held[event.event_name, event.customer, f"{event.timestamp:%Y-%m}"] += int(event.value)
    assert ledger == expected, f"seeds from {first}"
    assert {lane: total for lane, total in held.items() if total} == expected
    new_rig(stripe).assert_books_balance()
    assert children.c2meter("verify")[0] == 0


class Clients:
    """Twenty customers at a server, and a count of what they should be billed."""

    def __init__(self, port: int, operations: int, seed: int) -> None:
        self._port = port
        self._dice = random.Random(seed)
        self._lock = threading.Lock()
        self.sums: Counter[tuple[str, str]] = Counter()
        self.peaks: dict[tuple[str, str], int] = {}
        self.sites: dict[str, set[str]] = {}
        self.unexpected: list[Any] = []
        plan = [self._operation(number) for number in range(operations)]
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda operation: operation(), plan))

    def _operation(self, number: int) -> Callable[[], None]:
        dice = self._dice
        customer = f"cus_{dice.randrange(20)}"
        kind = dice.choice((self._verify, self._verify, self._sign, self._storage, self._site))
        thing, times = dice.randint(1, 9), dice.choice((1, 1, 1, 2))
        return lambda: kind(customer, thing, times, f"key-{number}")

    def _send(
        self, path: str, content: dict[str, Any], customer: str, expect: int = 200, **headers: str
    ) -> None:
        answer = post(self._port, path, content, customer, **headers)
        if answer[0] != expect:
            self.unexpected.append((path, content, answer))

    def _verify(self, customer: str, thing: int, times: int, key: str) -> None:
        ok = thing > 2  # a failed verification is answered, but not billed
        for _ in range(times):  # a client without a key is billed each time
            self._send("/verify", {"ok": ok}, customer)
            with self._lock:
                self.sums[VERIFY, customer] += ok

    def _sign(self, customer: str, thing: int, times: int, key: str) -> None:
        headers = {"Idempotency-Key": key}
        for _ in range(times):
            self._send("/sign", {"value": thing}, customer, **headers)
        if times == 2:
            self._send("/sign", {"value": thing + 1}, customer, expect=409, **headers)
        with self._lock:
            self.sums[SIGN, customer] += thing

    def _storage(self, customer: str, thing: int, times: int, key: str) -> None:
        for _ in range(times):
            content = {"key": key, "storage_gb": f"0.{thing:03d}"}
            self._send(f"/record/{STORAGE}", content, customer)
        with self._lock:
            self.peaks[STORAGE, customer] = max(self.peaks.get((STORAGE, customer), 0), thing)

    def _site(self, customer: str, thing: int, times: int, key: str) -> None:
        domain = f"{'WWW' if times == 2 else 'www'}.Site{thing}.example"
        self._send(f"/record/{SITES}", {"domain": domain}, customer)
        with self._lock:
            self.sites.setdefault(customer, set()).add(domain.lower())

    def expected(self) -> dict[tuple[str, str], int]:
        """(meter, customer) -> wire units."""
        unique = {(SITES, customer): len(domains) for customer, domains in self.sites.items()}
        return {lane: n for lane, n in {**self.sums, **self.peaks, **unique}.items() if n}


def test_a_thousand_mixed_operations_at_four_processes_survive_ten_percent_faults(
    children: Children, stripe: StripeEmulator, new_rig: Callable[..., Rig]
) -> None:
    for fault in (
        {"status": 500},
        {"status": 503, "after_processing": True},
        {"status": 429, "retry_after": 1},
        {"reset": True},
        {"reset": True, "after_processing": True},
    ):
        stripe.fail(times=None, rate=0.02, **fault)
    with children.gunicorn("--preload", "-w", "4") as port:
        clients = Clients(port, operations=1000, seed=1)
        assert clients.unexpected == []
        expected = clients.expected()
        until(lambda: stripe_totals(stripe) == expected, 60)

    code, output = children.c2meter("worker", "--once")
    assert code == 0, output
    assert stripe_totals(stripe) == expected
    code, output = children.c2meter("verify")
    assert code == 0, output
    assert any(request.status != 200 for request in stripe.requests)
    new_rig(stripe).assert_books_balance()
