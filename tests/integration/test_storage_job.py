"""The storage job: what a loader says becomes one event per customer and day, or a failure."""

from __future__ import annotations

import json
import logging
import os
import pty
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from flask import Flask, current_app
from flask_host import Host, wait_until

from flask_c2meter import Customer, StorageMeasurement, job_finished, usage_recorded
from flask_c2meter.channels.mail import Mail
from flask_c2meter.clerk import Clerk
from flask_c2meter.errors import LeaseLost
from flask_c2meter.jobs import Order, StorageDuty, StorageJob, StorageRun
from flask_c2meter.model import JobResult
from flask_c2meter.schedule import Schedule
from flask_c2meter.testing import FrozenClock

#: Two in the morning: when the job is due.
NIGHT = datetime(2026, 1, 15, 2, tzinfo=UTC)
DAY = timedelta(days=1)
SECRET = "whsec_" + "c2VjcmV0" * 4

SHOP = """
import os
from flask import Flask
from flask_c2meter import C2Meter, StorageMeasurement
app = Flask("shop", instance_path=os.environ["SHOP"])
app.config["C2METER_STORAGE_PAUSE"] = os.environ.get("C2METER_STORAGE_PAUSE", "0.01")
meter = C2Meter(app)

@meter.storage_loader
def load():
    for number in range(250):
        yield StorageMeasurement(f"cus_{number}", evidence_gb=1)
"""

#: Flask's command, interruptible also where whoever runs the tests is not.
FLASK = """
import signal
from flask.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)
main()
"""

Says = Callable[[], Iterable[StorageMeasurement]]


class Service:
    """A host whose storage is measured: it says what a test tells it to.

    Waiting moves the clock instead.
    """

    def __init__(self, host: Host, clock: FrozenClock) -> None:
        self.host = host
        self.clock = clock
        self.says: Says = lambda: ()
        #: How often the loader was called.
        self.calls = 0
        self.waits: list[float] = []
        self.results: list[JobResult] = []
        host.meter.storage_loader(self._load)
        job_finished.connect(self._finished, sender=host.app)

    def _load(self) -> Iterator[StorageMeasurement]:
        self.calls += 1
        yield from self.says()

    def _finished(self, sender: Flask, result: JobResult, **extra: object) -> None:
        self.results.append(result)

    @property
    def job(self) -> StorageJob:
        job = self.host.metering.storage_job
        job.sleep = self.wait
        return job

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.clock.advance(timedelta(seconds=seconds))

    def run(self, *arguments: str) -> Result:
        assert self.job
        runner = self.host.app.test_cli_runner()
        return runner.invoke(args=["c2meter", "measure-storage", *arguments])

    def duty(self, line: str = "0 2 * * *") -> StorageDuty:
        return StorageDuty(self.job, Schedule(line))

    def measured(self) -> dict[str, list[tuple[str, Decimal]]]:
        """Customer -> (key, value) of its events."""
        found: dict[str, list[tuple[str, Decimal]]] = {}
        for event in self.host.events("storage_gb"):
            found.setdefault(event.customer, []).append((event.key, event.value))
        return found

    def rows(self) -> list[tuple[str, str, str]]:
        """Day, customer and state of what the job has noted."""
        with self.host.metering.store.reading() as connection:
            found = connection.exec_driver_sql(
                "SELECT day, customer, state FROM job_runs ORDER BY 1, 2"
            )
            return [(row[0], row[1], row[2]) for row in found]


@pytest.fixture
def new_service(new_host: Callable[..., Host]) -> Callable[..., Service]:
    def make(**config: Any) -> Service:
        clock = FrozenClock(NIGHT)
        return Service(new_host(C2METER_CLOCK=clock, C2METER_WORKER="off", **config), clock)

    return make


@pytest.fixture
def service(new_service: Callable[..., Service]) -> Service:
    return new_service()


def gb(customer: str | Customer, value: Any = "1.5") -> StorageMeasurement:
    return StorageMeasurement(customer, evidence_gb=value)


def bad(customer: str, why: str = "S3 is away") -> StorageMeasurement:
    return StorageMeasurement(customer, error=why)


def some(number: int, failing: int = 0) -> Says:
    return lambda: (bad(f"cus_{n}") if n < failing else gb(f"cus_{n}") for n in range(number))


def finish(run: StorageRun | None) -> StorageRun:
    assert run is not None
    while not run.is_over:
        run.step()
    return run


class TestMeasuring:
    def test_each_customer_has_one_event_and_one_row(self, service: Service) -> None:
        service.says = lambda: [
            StorageMeasurement("cus_a", evidence_gb="1.5", manifest_gb=2),
            gb(Customer("cus_b", plan="growth", email="b@example.com"), "0.0001"),
        ]
        result = service.run()
        assert result.exit_code == 0, result.output
        assert service.measured() == {
            "cus_a": [("storage:2026-01-15", Decimal("3.500"))],
            "cus_b": [("storage:2026-01-15", Decimal("0.001"))],
        }
        assert service.rows() == [
            ("2026-01-15", "cus_a", "done"),
            ("2026-01-15", "cus_b", "done"),
        ]
        assert service.host.total("storage_gb", "cus_a") == Decimal("3.5")
        known = service.host.metering.store.standing("cus_b").customer
        assert known is not None and known.plan == "growth"
        assert list(service.host.metering.store.verify()) == []
        lines = result.output.splitlines()
        assert lines[-1].split() == ["2026-01-15", "2", "2", "0", "1", "0", "0.00%"]

    def test_it_happens_now_with_what_was_said(self, service: Service) -> None:
        service.says = lambda: [StorageMeasurement("cus_a", evidence_gb="1.5", backup_gb=1)]
        service.run()
        event = service.host.event()
        assert event.occurred_at == event.recorded_at == NIGHT
        assert event.properties == {"evidence_gb": "1.5", "backup_gb": "1"}
        assert event.flags == ()

    def test_the_signals_say_so(self, service: Service) -> None:
        recorded = []

        def note(sender: Flask, event: Any, **extra: object) -> None:
            recorded.append(event.customer)

        service.says = some(3, failing=1)
        with usage_recorded.connected_to(note, sender=service.host.app):
            service.run()
        assert recorded == ["cus_1", "cus_2"]
        (result,) = service.results
        assert (result.job, result.day, result.total, result.failed) == (
            "storage",
            NIGHT.date(),
            3,
            1,
        )
        assert result.rate == "33.33%"

    def test_the_loader_runs_in_an_app_context_of_its_own_thread(self, service: Service) -> None:
        seen: list[Any] = []

        def say() -> Iterator[StorageMeasurement]:
            seen.extend((current_app.name, threading.current_thread().name))
            yield gb("cus_a")

        service.says = say
        service.run()
        assert seen == ["host", "c2meter-storage-loader"]

    def test_batches_of_a_hundred_with_a_second_between_them(self, service: Service) -> None:
        pulled = []

        def say() -> Iterator[StorageMeasurement]:
            for n in range(250):
                pulled.append((n, len(service.waits)))
                yield gb(f"cus_{n}")

        service.says = say
        service.run()
        assert len(service.measured()) == 250
        assert service.waits == [1.0, 1.0]
        # Nothing is measured ahead: the rest is for what measures, too.
        assert dict(pulled)[99] == 0 and dict(pulled)[100] == 1 and dict(pulled)[200] == 2

    def test_no_customers_are_no_failure(self, service: Service) -> None:
        result = service.run()
        assert result.exit_code == 0
        assert service.results[0].total == 0

    def test_a_customer_named_twice_counts_once_by_the_first_good_measurement(
        self, service: Service
    ) -> None:
        service.says = lambda: [
            bad("cus_a"),
            gb("cus_a", 1),
            gb("cus_a", 5),
            *some(120)(),
            gb("cus_a", 7),
        ]
        service.run()
        assert service.measured()["cus_a"] == [("storage:2026-01-15", Decimal(1))]
        assert service.results[0].total == 121
        assert service.results[0].failed == 0

    def test_an_id_that_cannot_be_one_fails_alone(self, service: Service) -> None:
        service.says = lambda: [gb("cus a"), gb(None), gb("*"), gb("cus_b")]  # type: ignore[arg-type]
        assert service.run().exit_code == 1
        assert set(service.measured()) == {"cus_b"}
        assert [row[1] for row in service.rows()] == ["'*'", "'cus a'", "None", "cus_b"]

    def test_what_was_recorded_by_hand_with_the_key_is_not_recorded_again(
        self, service: Service
    ) -> None:
        service.host.metering.record("storage_gb", "cus_a", value="2", key="storage:2026-01-15")
        service.says = lambda: [gb("cus_a", 5)]
        assert service.run().exit_code == 0
        assert service.measured() == {"cus_a": [("storage:2026-01-15", Decimal(2))]}

    def test_a_client_cannot_use_the_key_up(self, service: Service) -> None:
        service.host.route(lambda: "", meter="storage_gb", value="1")
        response = service.host.client().post(
            "/", headers={"Idempotency-Key": "storage:2026-01-15"}
        )
        assert response.status_code == 400
        assert service.host.events() == []


class TestRerun:
    def test_it_does_only_what_failed_or_is_missing(self, service: Service) -> None:
        service.says = lambda: [gb("cus_a"), bad("cus_b"), gb("cus_c")]
        service.run()
        service.says = lambda: [gb("cus_a", 9), gb("cus_b", 2), gb("cus_c", 9), gb("cus_d", 3)]
        result = service.run()
        assert result.exit_code == 0
        values = {customer: value for customer, [(_, value)] in service.measured().items()}
        assert values == {
            "cus_a": Decimal("1.5"),
            "cus_b": Decimal(2),
            "cus_c": Decimal("1.5"),
            "cus_d": Decimal(3),
        }
        assert result.output.splitlines()[-1].split()[1:6] == ["4", "2", "2", "0", "0"]

    def test_the_next_day_is_another_row(self, service: Service) -> None:
        service.says = some(2)
        service.run()
        service.clock.advance(DAY)
        service.run()
        assert [key for key, _ in service.measured()["cus_0"]] == [
            "storage:2026-01-15",
            "storage:2026-01-16",
        ]

    def test_a_loader_with_a_parameter_need_not_measure_everybody(self, service: Service) -> None:
        measured = []

        @service.host.meter.storage_loader
        def load(is_wanted: Callable[[str], bool]) -> Iterator[StorageMeasurement]:
            for name in ("cus_a", "cus_b", "cus_c"):
                if is_wanted(name):
                    measured.append(name)
                    yield bad(name) if len(measured) == 2 else gb(name)

        service.run()
        service.run()
        service.run("--customer", "cus_a")
        assert measured == ["cus_a", "cus_b", "cus_c", "cus_b"]

    def test_customers_that_were_there_yesterday_are_missed(self, service: Service) -> None:
        service.says = some(5)
        service.run()
        service.clock.advance(DAY)
        service.says = some(3)
        assert "2 customers of the day before were not named" in service.run().output
        assert service.results[-1].unnamed == 2
        assert len(service.rows()) == 8


class TestImplausible:
    def test_growth_is_a_failure_until_it_is_allowed(self, service: Service) -> None:
        service.says = lambda: [gb("cus_a", 1), gb("cus_b", 1)]
        service.run()
        service.clock.advance(DAY)
        service.says = lambda: [gb("cus_a", 10), gb("cus_b", 11)]
        result = service.run()
        assert result.exit_code == 1
        assert "11.000 is more than 10 times the 1.000 before" in result.output
        assert [len(events) for events in service.measured().values()] == [2, 1]
        assert service.run("--customer", "cus_b", "--allow-growth").exit_code == 0
        assert service.measured()["cus_b"][-1] == ("storage:2026-01-16", Decimal(11))

    def test_a_day_that_failed_is_no_way_around(self, service: Service) -> None:
        service.says = lambda: [gb("cus_a", 1)]
        service.run()
        for _ in range(2):
            service.clock.advance(DAY)
            service.says = lambda: [gb("cus_a", 100)]
            assert service.run().exit_code == 1
        assert len(service.measured()["cus_a"]) == 1

    def test_a_measurement_that_was_voided_is_no_measure(self, service: Service) -> None:
        service.says = lambda: [gb("cus_a", 100)]
        service.run()
        service.clock.advance(DAY)
        service.says = lambda: [gb("cus_a", "0.1")]
        service.run()
        service.host.metering.adjust("cus_a", "storage_gb", "storage:2026-01-16", "disk was away")
        service.clock.advance(DAY)
        service.says = lambda: [gb("cus_a", 99)]
        assert service.run().exit_code == 0

    def test_no_failure_is_ever_a_measurement(self, service: Service) -> None:
        service.says = lambda: [
            gb("cus_a", "NaN"),
            gb("cus_b", -1),
            gb("cus_c", 1.5),
            StorageMeasurement("cus_d"),
            bad("cus_e"),
            gb("cus_f", None),
        ]
        assert service.run().exit_code == 1
        assert service.host.events() == []
        assert service.results[0].failed == 6


class TestLoaderThatFails:
    def test_it_is_asked_again_thrice_a_minute_apart(self, service: Service) -> None:
        def say() -> Iterator[StorageMeasurement]:
            yield gb(f"cus_{service.calls}")
            if service.calls < 4:
                raise RuntimeError("canary")

        service.says = say
        result = service.run()
        assert result.exit_code == 0, result.output
        assert service.calls == 4
        assert sum(service.waits) == 180.0
        # What it had said before it raised is kept.
        assert set(service.measured()) == {"cus_1", "cus_2", "cus_3", "cus_4"}
        assert result.output.splitlines()[-1].split()[1:4] == ["4", "4", "0"]

    def test_after_that_the_run_has_failed(
        self, service: Service, caplog: pytest.LogCaptureFixture
    ) -> None:
        def say() -> Iterator[StorageMeasurement]:
            yield gb("cus_a")
            raise RuntimeError("canary")

        service.says = say
        result = service.run()
        assert result.exit_code == 1
        assert service.calls == 4
        assert "ended early: the storage_loader raised RuntimeError" in result.output
        assert "canary" not in result.output
        (finished,) = service.results
        assert finished.error and finished.alert and finished.alert.is_broken
        status = service.host.metering.status()
        assert any("storage_loader raised" in problem for problem in status["problems"])

    def test_one_that_hangs_is_given_up(self, new_service: Callable[..., Service]) -> None:
        service = new_service(C2METER_STORAGE_TIMEOUT=0.05)
        released = threading.Event()

        def say() -> Iterator[StorageMeasurement]:
            yield gb("cus_a")
            if service.calls == 1:
                released.wait(30)
            yield gb("cus_b")

        service.says = say
        result = service.run()
        released.set()
        assert result.exit_code == 0, result.output
        assert service.calls == 2
        assert set(service.measured()) == {"cus_a", "cus_b"}

    @pytest.mark.parametrize("says", [lambda: [("cus_a", 1)], lambda: 42, lambda: None])
    def test_what_is_no_measurement_fails_the_run(
        self, new_service: Callable[..., Service], says: Any
    ) -> None:
        service = new_service(C2METER_STORAGE_RETRIES=0)
        service.says = says
        result = service.run()
        assert result.exit_code == 1
        assert "the storage_loader raised TypeError" in result.output

    def test_one_that_ends_its_thread_does_not_keep_anybody_waiting(
        self, new_service: Callable[..., Service]
    ) -> None:
        service = new_service(C2METER_STORAGE_RETRIES=0)

        def say() -> Iterator[StorageMeasurement]:
            raise SystemExit(3)
            yield gb("cus_a")

        service.says = say
        assert "raised SystemExit" in service.run().output


class TestCommand:
    def test_a_day_before(self, service: Service) -> None:
        service.says = some(1)
        assert service.run("--day", "2026-01-13").exit_code == 0
        event = service.host.event()
        assert event.key == "storage:2026-01-13"
        assert event.occurred_at == datetime(2026, 1, 13, 23, 59, 59, 999000, tzinfo=UTC)

    @pytest.mark.parametrize("day", ["2026-01-16", "2025-12-11", "1969-01-01"])
    def test_a_day_to_come_or_too_old_is_refused(self, service: Service, day: str) -> None:
        result = service.run("--day", day)
        assert result.exit_code == 2
        assert f"{day} is not within 2025-12-12 and 2026-01-15" in result.output

    def test_a_few_customers_are_no_run_of_the_day(self, service: Service) -> None:
        service.says = some(5, failing=2)
        result = service.run("--customer", "cus_0", "--customer", "cus_4", "--customer", "cus_9")
        assert result.exit_code == 1
        assert result.output.splitlines() == [
            "cus_0: error: 'S3 is away'",
            "cus_4: 1.500 GB",
            "cus_9: not named by the storage_loader",
        ]
        assert set(service.measured()) == {"cus_4"}
        assert service.results == [] and service.host.metering.status()["storage"] is None

    def test_a_few_customers_mend_what_is_said_of_the_day(self, service: Service) -> None:
        service.says = some(5, failing=2)
        service.run()
        assert not service.host.metering.status()["healthy"]
        service.says = some(5)
        assert service.run("--customer", "cus_0", "--customer", "cus_1").exit_code == 0
        status = service.host.metering.status()
        assert (status["storage"]["failed"], status["healthy"]) == (0, True)
        assert len(service.results) == 1

    def test_failures_that_are_many_are_a_number(self, service: Service) -> None:
        service.says = some(50, failing=25)
        lines = service.run().output.splitlines()
        assert "... and 5 more" in lines
        assert sum("S3 is away" in line for line in lines) == 20

    def test_without_a_loader_it_says_what_to_do(self, host: Host) -> None:
        result = host.app.test_cli_runner().invoke(args=["c2meter", "measure-storage"])
        assert result.exit_code == 1
        assert result.output.count("\n") == 1 and "@meter.storage_loader" in result.output

    def test_without_a_meter_it_says_so(self, new_host: Callable[..., Host]) -> None:
        meter = {"display_name": "A", "event_type": "a", "unit": "a", "aggregation": "sum"}
        host = new_host(C2METER_CATALOGUE={"plans": {}, "meters": {"a": meter}})
        host.meter.storage_loader(some(1))
        result = host.app.test_cli_runner().invoke(args=["c2meter", "measure-storage"])
        assert result.exit_code == 2 and "storage_gb" in result.output

    def test_a_store_that_is_away_is_one_line(self, service: Service) -> None:
        service.says = some(3)
        path = Path(service.host.metering.config.database_url.removeprefix("sqlite:///"))
        service.run()
        service.host.metering.store.close()
        path.write_bytes(b"no database" * 1000)
        result = service.run()
        assert result.exit_code == 2
        assert result.output.count("\n") == 1 and "Traceback" not in result.output

    def test_it_says_how_far_it_is_where_nobody_looks_on(self, service: Service) -> None:
        service.says = some(2_100)
        result = service.run()
        lines = [line for line in result.output.splitlines() if "customers, 0 failed (" in line]
        assert [line.split()[0] for line in lines] == ["1,000", "2,000"]
        assert "\r" not in result.output

    def test_a_store_that_is_locked_is_one_line(self, service: Service) -> None:
        service.says = some(3)
        service.run()
        path = service.host.metering.config.database_url.removeprefix("sqlite:///")
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            result = service.run()
        assert result.exit_code == 1
        assert result.output.count("\n") == 1 and "locked" in result.output

    def test_a_person_sees_a_bar_and_may_interrupt(self, tmp_path: Path) -> None:
        (tmp_path / "shop.py").write_text(SHOP)
        env = {**os.environ, "SHOP": str(tmp_path), "STRIPE_SECRET_KEY": ""}
        command = [sys.executable, "-c", FLASK, "--app", "shop", "c2meter", "measure-storage"]

        def measure(*arguments: str, until: bytes = b"", **more: str) -> tuple[int, bytes]:
            terminal, end = pty.openpty()
            with subprocess.Popen(
                [*command, *arguments],
                stdout=subprocess.PIPE,
                stderr=end,
                cwd=tmp_path,
                env=env | more,
            ) as process:
                os.close(end)
                seen = b""
                with suppress(OSError):  # how a terminal says that nobody is left
                    while piece := os.read(terminal, 4096):
                        seen += piece
                        if until and until in seen:
                            process.send_signal(signal.SIGINT)
                            until = b""
                os.close(terminal)
                process.communicate(timeout=60)
            return process.returncode, seen

        yesterday = (datetime.now(UTC) - DAY).date().isoformat()
        assert measure("--day", yesterday)[0] == 0
        code, seen = measure(until=b"] of about 250: 100 customers", C2METER_STORAGE_PAUSE="60")
        assert code == 1 and b"[#########---------------]" in seen
        assert b"Traceback" not in seen
        code, seen = measure()
        assert code == 0 and b"waiting" not in seen
        assert seen.endswith(b"\r\x1b[2K")

    def test_it_waits_for_another_process_and_tells_its_result(self, service: Service) -> None:
        service.says = some(150)
        other = another_process(service)
        run = other.begin(Order(NIGHT.date()))
        assert run is not None
        run.step()

        def wait(seconds: float) -> None:
            finish(run)
            service.clock.advance(timedelta(seconds=seconds))

        job = service.host.metering.storage_job
        job.sleep = wait
        result = service.host.app.test_cli_runner().invoke(args=["c2meter", "measure-storage"])
        assert result.exit_code == 0, result.output
        assert "is measuring: waiting for it" in result.output
        assert result.output.splitlines()[-1].split()[1:4] == ["150", "0", "150"]
        assert service.calls == 1 and len(service.results) == 1


def another_process(service: Service) -> StorageJob:
    """The job of another process: another owner."""
    mine = service.job
    return StorageJob(
        mine.store,
        mine.config,
        mine.loader,
        mine.context,
        mine.judge,
        mine.channels,
        on_finished=mine.on_finished,
        sleep=service.wait,
    )


class TestOneAtATime:
    def test_another_process_is_kept_out_until_the_run_is_over(self, service: Service) -> None:
        service.says = some(1)
        run = service.job.begin(Order(NIGHT.date()))
        other = another_process(service)
        assert other.begin(Order(NIGHT.date())) is None
        assert other.running() == service.job.running() is not None
        finish(run)
        assert other.running() is None
        assert other.begin(Order(NIGHT.date())) is not None

    def test_who_gives_no_sign_of_life_is_replaced_and_writes_no_more(
        self, service: Service
    ) -> None:
        service.says = some(300)
        run = service.job.begin(Order(NIGHT.date()))
        assert run is not None
        while not service.measured():
            run.step()
        service.clock.advance(timedelta(seconds=61))
        other = finish(another_process(service).begin(Order(NIGHT.date())))
        with pytest.raises(LeaseLost, match="taken over"):
            finish(run)
        assert other.result is not None and other.result.total == 300
        assert all(len(events) == 1 for events in service.measured().values())
        assert len(service.results) == 1

    def test_each_batch_is_a_sign_of_life(self, service: Service) -> None:
        service.says = some(300)
        run = service.job.begin(Order(NIGHT.date()))
        assert run is not None
        for expected in (100, 200, 300):
            while len(service.measured()) < expected:
                run.step()
            service.clock.advance(timedelta(seconds=50))
        finish(run)

    def test_a_loader_that_takes_long_is_no_dead_process(
        self, new_service: Callable[..., Service]
    ) -> None:
        service = new_service(C2METER_LEASE=0.3)
        released = threading.Event()

        def say() -> Iterator[StorageMeasurement]:
            released.wait(30)
            yield gb("cus_a")

        service.says = say
        run = service.job.begin(Order(NIGHT.date()))
        assert run is not None
        other = another_process(service)
        for _ in range(5):
            run.step()
            service.clock.advance(timedelta(seconds=0.2))
            assert other.begin(Order(NIGHT.date())) is None
        released.set()
        finish(run)
        assert set(service.measured()) == {"cus_a"}

    def test_a_lease_from_a_clock_that_was_set_back_is_over(self, service: Service) -> None:
        service.clock.advance(timedelta(hours=5))
        assert service.job.begin(Order(NIGHT.date())) is not None
        service.clock.advance(-timedelta(hours=5))
        assert another_process(service).begin(Order(NIGHT.date())) is not None


class TestSchedule:
    def test_it_runs_when_its_time_has_come_and_once(self, service: Service) -> None:
        service.says = some(120)
        service.clock.now = NIGHT - timedelta(seconds=1)
        clerk = Clerk([service.duty()])
        clerk.run_once()
        assert service.calls == 0
        service.clock.now = NIGHT
        for _ in range(3):
            clerk.run_once()
        assert service.calls == 1 and len(service.measured()) == 120
        assert len(service.results) == 1
        service.clock.now = NIGHT + DAY
        clerk.run_once()
        assert service.calls == 2 and len(service.results) == 2

    def test_what_was_missed_is_caught_up_the_same_day_only(self, service: Service) -> None:
        service.says = some(1)
        service.clock.now = NIGHT + timedelta(hours=21, minutes=59)
        Clerk([service.duty()]).run_once()
        assert [key for key, _ in service.measured()["cus_0"]] == ["storage:2026-01-15"]
        service.clock.now = NIGHT + 2 * DAY - timedelta(hours=1)
        Clerk([service.duty()]).run_once()
        assert len(service.measured()["cus_0"]) == 1

    def test_it_asks_again_for_customers_that_failed(self, service: Service) -> None:
        def say() -> Iterable[StorageMeasurement]:
            return [gb("cus_a"), gb("cus_b") if service.calls == 3 else bad("cus_b")]

        service.says = say
        Clerk([service.duty()]).run_once()
        assert service.calls == 3
        assert sum(service.waits) == 120.0
        assert service.results[0].failed == 0

    def test_two_hosts_run_it_once(self, service: Service) -> None:
        service.says = some(250)
        first = service.duty()
        second = StorageDuty(another_process(service), Schedule("0 2 * * *"))
        assert first.is_due() and second.is_due()
        first.work()
        assert first.is_due() and not second.is_due()
        second.work()
        assert service.calls <= 1
        Clerk([first]).run_once()
        assert not second.is_due() and not first.is_due()
        assert service.calls == 1 and len(service.results) == 1

    def test_a_run_that_was_killed_is_taken_up_by_another(self, service: Service) -> None:
        service.says = some(250)
        first = service.duty()
        while not service.measured():
            first.work()
        del first
        second = StorageDuty(another_process(service), Schedule("0 2 * * *"))
        assert not second.is_due()
        service.clock.advance(timedelta(seconds=90))
        Clerk([second]).run_once()
        assert len(service.measured()) == 250
        assert all(len(events) == 1 for events in service.measured().values())
        assert len(service.results) == 1

    def test_a_run_over_midnight_is_still_of_its_day(self, service: Service) -> None:
        service.says = some(150)
        service.clock.now = NIGHT + timedelta(hours=21, minutes=59, seconds=59, milliseconds=500)
        Clerk([service.duty("59 23 * * *")]).run_once()
        days = {event.occurred_at.date() for event in service.host.events()}
        assert days == {NIGHT.date()}
        assert len(service.measured()) == 150

    def test_one_by_hand_after_its_time_will_do(self, service: Service) -> None:
        service.says = some(1)
        service.clock.now = NIGHT + timedelta(minutes=1)
        service.run()
        assert not service.duty().is_due()

    def test_one_by_hand_before_its_time_will_not(self, service: Service) -> None:
        service.says = some(1)
        service.clock.now = NIGHT - timedelta(minutes=1)
        service.run()
        service.clock.now = NIGHT
        assert service.duty().is_due()

    def test_the_thread_of_a_web_process_runs_it(self, new_host: Callable[..., Host]) -> None:
        host = new_host(C2METER_STORAGE_SCHEDULE="* * * * *")
        host.meter.storage_loader(some(5))
        host.metering.record("api_calls", "cus_x")
        wait_until(lambda: len(host.events("storage_gb")) == 5)
        assert host.total("storage_gb", "cus_4") == Decimal("1.5")


@pytest.fixture
def hook() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The URL of a receiver of webhooks, and what it has received."""
    received: list[dict[str, Any]] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/hook", received
    server.shutdown()
    server.server_close()
    thread.join()


class TestAlert:
    @pytest.fixture
    def told(
        self, new_service: Callable[..., Service], hook: tuple[str, list[dict[str, Any]]]
    ) -> tuple[Service, list[dict[str, Any]], list[Mail]]:
        url, received = hook
        service = new_service(
            C2METER_ALERT_WEBHOOK_URL=url,
            C2METER_ALERT_WEBHOOK_SECRET=SECRET,
            C2METER_ALERT_WEBHOOK_ALLOW_LOOPBACK=True,
            C2METER_OPERATOR_EMAIL="ops@example.com",
        )
        mails: list[Mail] = []
        service.host.meter.mail_sender(mails.append)
        return service, received, mails

    def announce(self, service: Service) -> None:
        service.host.metering.worker.run_once()

    def test_it_has_the_documents_fields_on_every_channel_once(
        self, told: tuple[Service, list[dict[str, Any]], list[Mail]]
    ) -> None:
        service, received, mails = told
        service.says = some(100, failing=11)
        assert service.run().exit_code == 1
        service.run()
        for _ in range(3):
            self.announce(service)
        assert received == [
            {
                "message": "Storage measurement failure rate too high",
                "total": 100,
                "failed": 11,
                "rate": "11.00%",
                "job": "storage",
                "day": "2026-01-15",
                "timestamp": "2026-01-15T02:00:01.000Z",  # after a rest of a second
            }
        ]
        (mail,) = mails
        assert mail.to == "ops@example.com"
        assert mail.subject == "Storage measurement failure rate too high"
        assert "11 (11.00%)" in mail.text and "11.00%" in mail.html
        assert [result.alert is not None for result in service.results] == [True, False]

    def test_the_next_day_has_its_own(
        self, told: tuple[Service, list[dict[str, Any]], list[Mail]]
    ) -> None:
        service, received, _ = told
        service.says = some(10, failing=2)
        for _ in range(2):
            service.run()
            service.clock.advance(DAY)
        self.announce(service)
        assert [alert["day"] for alert in received] == ["2026-01-15", "2026-01-16"]

    def test_a_loader_that_failed_is_told_of(
        self, told: tuple[Service, list[dict[str, Any]], list[Mail]]
    ) -> None:
        service, received, mails = told
        service.says = lambda: [gb("cus_a"), 42]  # type: ignore[list-item]
        service.run()
        self.announce(service)
        assert received[0]["message"] == "Storage measurement could not be completed"
        assert "before its end" in mails[0].text

    def test_customers_see_nothing_of_it(
        self, told: tuple[Service, list[dict[str, Any]], list[Mail]]
    ) -> None:
        service, _, _ = told
        service.says = some(10, failing=2)
        service.run()
        since = NIGHT - DAY
        assert service.host.metering.store.announcements.notices(since) == []
        assert service.host.app.test_cli_runner().invoke(args=["c2meter", "alerts"]).exit_code == 0
        assert service.host.metering.customers() != []

    def test_without_an_address_there_is_no_mail(
        self, new_service: Callable[..., Service], caplog: pytest.LogCaptureFixture
    ) -> None:
        service = new_service()
        mails: list[Mail] = []
        service.host.meter.mail_sender(mails.append)
        service.says = some(10, failing=2)
        with caplog.at_level(logging.INFO):
            service.run()
            self.announce(service)
        assert mails == []
        assert 'customers=10 failed=2 rate="20.00%"' in caplog.text
        status = service.host.metering.status()
        assert not status["healthy"]
        assert status["storage"]["rate"] == "20.00%"

    def test_few_failures_are_a_note(self, service: Service) -> None:
        service.says = some(10, failing=1)
        assert service.run().exit_code == 0
        status = service.host.metering.status()
        assert status["healthy"]
        assert "storage of 1 customers was not measured on 2026-01-15" in status["notes"]

    @pytest.mark.parametrize(("share", "exit_code"), [("0", 1), ("0.3", 0), ("1", 0)])
    def test_how_much_is_too_much_can_be_said(
        self, new_service: Callable[..., Service], share: str, exit_code: int
    ) -> None:
        service = new_service(C2METER_STORAGE_MAX_FAILURES=share)
        service.says = some(10, failing=3)
        assert service.run().exit_code == exit_code
