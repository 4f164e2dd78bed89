"""Case 26: the storage job with failures, killed in the middle, and on several hosts at once."""

from __future__ import annotations

import json
import random
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from fault_rig import Children, sql, until

APP = ("flask", "--app", "storage_app:create_app", "c2meter")
QUICK = {"C2METER_STORAGE_PAUSE": "0", "C2METER_WORKER": "off"}


class Hosts:
    """Processes that measure storage on one ledger, without Stripe."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.children = Children(folder, None)
        self.children.env["STRIPE_SECRET_KEY"] = ""

    def start(self, *arguments: str, customers: int, **env: str) -> subprocess.Popen[str]:
        return self.children.start(*arguments, env=self._env(customers, env))

    def measure(self, *arguments: str, customers: int, **env: str) -> tuple[int, str]:
        return self.children.run(*APP, "measure-storage", *arguments, env=self._env(customers, env))

    def _env(self, customers: int, env: Mapping[str, str]) -> dict[str, str]:
        return QUICK | {"CUSTOMERS": str(customers)} | env

    def rows(self) -> int:
        return sum(number for _, number in self.states())

    def states(self) -> list[tuple[Any, ...]]:
        """State and number of what the job has noted."""
        return sql(self.folder, "SELECT state, COUNT(*) FROM job_runs GROUP BY state ORDER BY 1")

    def events(self) -> tuple[Any, ...]:
        """Number of events, and of the customers and days they are of."""
        query = "SELECT COUNT(*), COUNT(DISTINCT customer || key) FROM events"
        return sql(self.folder, query)[0]

    def alerts(self) -> list[tuple[Any, ...]]:
        """Failures and customers of each alert for the operator."""
        return sql(self.folder, "SELECT total, included FROM alerts WHERE customer = '*'")


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    started = Hosts(tmp_path)
    yield started
    started.children.stop_all()


@pytest.mark.parametrize(("failing", "alerts", "exit_code"), [(10, [], 0), (11, [(11, 100)], 1)])
def test_case_26_failures_alert_once_and_a_rerun_adds_nothing(
    hosts: Hosts, failing: int, alerts: list[tuple[int, int]], exit_code: int
) -> None:
    for _ in range(2):
        code, output = hosts.measure(customers=100, FAILING=str(failing))

        assert code == exit_code, output
        assert hosts.states() == [
            ("done", 100 - failing),
            ("failed: error: 'the bucket is away'", failing),
        ]
        assert hosts.events() == (100 - failing, 100 - failing)
        assert hosts.alerts() == alerts

    code, output = hosts.measure(customers=100)
    assert code == 0, output
    assert hosts.states() == [("done", 100)]
    assert hosts.events() == (100, 100)
    assert hosts.alerts() == alerts


def test_case_26_killed_in_the_middle_two_hosts_at_once_finish_it(hosts: Hosts) -> None:
    env = {"C2METER_LEASE": "3", "C2METER_STORAGE_PAUSE": "1"}
    killed = hosts.start(
        *APP, "measure-storage", customers=350, ON_HOST="one", KILL_AT="250", **env
    )
    assert killed.wait(60) == -signal.SIGKILL
    assert hosts.states() == [("done", 200)]

    both = [
        hosts.start(*APP, "measure-storage", customers=350, ON_HOST=name, **env)
        for name in ("two", "three")
    ]
    outputs = [process.communicate(timeout=100)[0] for process in both]

    assert [process.returncode for process in both] == [0, 0], outputs
    assert hosts.states() == [("done", 350)]
    assert hosts.events() == (350, 350)
    assert hosts.children.run(*APP, "verify", env={"CUSTOMERS": "0"})[0] == 0


@pytest.mark.parametrize(
    "kills", [4, pytest.param(60, marks=[pytest.mark.long, pytest.mark.timeout(600)])]
)
def test_case_26_killed_at_any_moment_nobody_is_measured_twice(hosts: Hosts, kills: int) -> None:
    assert hosts.measure(customers=0)[0] == 0  # makes the ledger
    chance = random.Random(kills)
    customers = 200 * kills
    for _ in range(kills):
        target = hosts.rows() + chance.randrange(1, 150)
        process = hosts.start(
            *APP, "measure-storage", customers=customers, C2METER_STORAGE_BATCH="7"
        )
        until(lambda target=target: hosts.rows() >= target, 60)
        process.kill()
        process.wait()

    code, output = hosts.measure(customers=customers)

    assert code == 0, output
    assert hosts.states() == [("done", customers)]
    assert hosts.events() == (customers, customers)


def test_two_workers_run_the_schedule_once_and_outlive_each_other(hosts: Hosts) -> None:
    # At midnight: due since then, whatever the time is.
    env = {"C2METER_STORAGE_SCHEDULE": "0 0 * * *", "C2METER_STORAGE_PAUSE": "0.2"}
    assert hosts.children.run(*APP, "db", "upgrade", env={"CUSTOMERS": "0"})[0] == 0
    killed = hosts.start(*APP, "worker", customers=600, **env)
    until(lambda: hosts.rows() >= 100, 60)
    killed.kill()
    killed.wait()
    begun = hosts.rows()
    assert begun < 600

    workers = [hosts.start(*APP, "worker", customers=600, **env) for _ in range(2)]
    until(lambda: hosts.rows() == 600, 60)
    until(lambda: sql(hosts.folder, "SELECT 1 FROM meta WHERE name = 'job:storage:last'"), 30)
    for process in workers:
        process.send_signal(signal.SIGTERM)
    assert [process.wait(10) for process in workers] == [0, 0]

    assert hosts.events() == (600, 600)
    (tokens,) = sql(hosts.folder, "SELECT value FROM meta WHERE name = 'job:storage'")
    # The killed one, and one of the two.
    assert json.loads(tokens[0])["token"] == 2


@pytest.mark.parametrize(
    ("few", "many"),
    [
        (1_000, 6_000),
        pytest.param(1_000, 100_000, marks=[pytest.mark.long, pytest.mark.timeout(1200)]),
    ],
)
def test_memory_does_not_grow_with_the_customers(tmp_path: Path, few: int, many: int) -> None:
    peaks = []
    for customers in (few, many):
        folder = tmp_path / str(customers)
        folder.mkdir()
        hosts = Hosts(folder)
        try:
            process = hosts.start("storage_app", customers=customers)
            output, _ = process.communicate(timeout=1000)
        finally:
            hosts.children.stop_all()
        result = json.loads(output.splitlines()[-1])
        assert result["exit_code"] == 0
        assert hosts.events() == (customers, customers)
        peaks.append(result["peak_kib"])
    assert peaks[1] - peaks[0] < 8 * 1024, peaks
