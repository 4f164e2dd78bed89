"""``flask c2meter ...``: what each command prints, and how it exits."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sqlite3
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import Result
from flask import Flask
from flask_host import Host

from flask_c2meter import Customer
from flask_c2meter.emulator import StripeEmulator
from flask_c2meter.testing import FrozenClock


@pytest.fixture
def host(
    new_host: Callable[..., Host], stripe_emulator: StripeEmulator, c2meter_clock: FrozenClock
) -> Host:
    """Delivers to the emulator when told to."""
    return new_host(
        C2METER_STRIPE_SECRET_KEY="sk_test_1",
        C2METER_STRIPE_BASE_URL=stripe_emulator.url,
        C2METER_WORKER="off",
        C2METER_CLOCK=c2meter_clock,
    )


def run(host: Host, *arguments: str) -> Result:
    return host.app.test_cli_runner().invoke(args=["c2meter", *arguments])


def path_of(host: Host) -> Path:
    return Path(host.metering.config.database_url.removeprefix("sqlite:///"))


def damage(host: Host) -> None:
    """Overwrite the middle of the database file."""
    for number in range(50):
        host.metering.record("sign_operations", f"cus_{number}", manifest_id="m" * 100)
    host.metering.store.close()
    path = path_of(host)
    size = path.stat().st_size
    with open(path, "r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (size - 8192))


def test_help_lists_every_command(host: Host) -> None:
    result = run(host, "--help")
    assert result.exit_code == 0
    for command in (
        *("status", "worker", "usage", "bill", "simulate", "events", "verify", "emulator"),
        *("explain", "dead", "adjust", "export", "backfill", "doctor", "selftest"),
        *("db", "provision"),
    ):
        assert f"\n  {command} " in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("usage",),
        ("events", "--limit", "0"),
        ("events", "--limit", "many"),
        ("events", "--limit", "9" * 30),
        ("alerts", "--days", "900000"),
        ("explain", "cus_1", "verify_operations", "--period", "9999-12"),
        ("explain", "cus_1", "verify_operations", "--period", "0001-01"),
        ("export", "cus_1", "--period", "0001-01-01"),
        ("export", "cus_1", "--period", "0001-01-01T00:00:00+14:00"),
        ("reconcile", "--customer", "cus/1"),
        ("emulator", "--port", "70000"),
        ("worker", "--twice"),
    ],
)
def test_wrong_arguments_exit_2(host: Host, arguments: tuple[str, ...]) -> None:
    assert run(host, *arguments).exit_code == 2


class TestStatus:
    def test_a_healthy_one_exits_0(self, host: Host) -> None:
        host.metering.record("sign_operations", "cus_1", value=7, manifest_id="m-1")
        result = run(host, "status")
        assert result.exit_code == 0
        lines = [line.split() for line in result.output.splitlines()]
        assert lines[0][:4] == ["meter", "recorded", "unshipped", "in_flight"]
        assert ["sign_operations", "7", "7", "0", "0", "0", "0", "0"] in lines
        assert ["durability", "full"] in lines

    def test_one_with_a_problem_names_it_and_exits_1(
        self, host: Host, stripe_emulator: StripeEmulator
    ) -> None:
        stripe_emulator.fail(400, path="*meter_events", code="payload_invalid_value", message="no")
        host.metering.record("sign_operations", "cus_1", manifest_id="m-1")
        run(host, "worker", "--once")
        result = run(host, "status")
        assert result.exit_code == 1
        assert "! sign_operations: 1 dead shipments wait for a decision" in result.output

    def test_a_damaged_store_exits_2_in_one_line(self, host: Host) -> None:
        path_of(host).parent.mkdir()
        path_of(host).write_bytes(b"this is no database at all, but long enough" * 100)
        for command in (
            *("usage cus_1", "verify", "events", "dead list", "export cus_1"),
            *(
                "explain cus_1 api_calls",
                "dead replay --reason x",
                "adjust cus_1 api_calls k --reason x",
            ),
        ):
            result = run(host, *command.split())
            assert result.exit_code == 2, result.output
            assert "is damaged" in result.output
            assert "Traceback" not in result.output


class TestWorker:
    def test_once_ends_even_if_the_clock_stands_still(
        self,
        new_host: Callable[..., Host],
        stripe_emulator: StripeEmulator,
        c2meter_clock: FrozenClock,
    ) -> None:
        host = new_host(
            C2METER_STRIPE_SECRET_KEY="sk_test_1",
            C2METER_STRIPE_BASE_URL=stripe_emulator.url,
            C2METER_WORKER="off",
            C2METER_CLOCK=c2meter_clock,
        )
        host.metering.record("sign_operations", "cus_1", manifest_id="m-1")
        stripe_emulator.fail(503, path="*meter_events")
        worker = host.metering.worker
        assert worker is not None
        worker.run_once(patience_s=0.3)
        assert host.metering.store.counts()["sign_operations"].in_flight == 1

    def test_it_leaves_the_signal_handlers_as_they_were(self, host: Host) -> None:
        before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
        assert run(host, "worker", "--once").exit_code == 0
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before

    def test_once_delivers_what_is_due_and_exits_0(
        self, host: Host, stripe_emulator: StripeEmulator
    ) -> None:
        for number in range(3):
            host.metering.record("sign_operations", f"cus_{number}", manifest_id="m-1")
        host.metering.record("api_calls", "cus_1")
        result = run(host, "worker", "--once")
        assert result.exit_code == 0
        assert result.output == "sign_operations: 3 delivered, 0 waiting, 0 dead\n"
        assert len(stripe_emulator.events) == 3

    def test_once_with_nothing_to_do_says_so_and_exits_0(self, host: Host) -> None:
        result = run(host, "worker", "--once")
        assert (result.exit_code, result.output) == (0, "nothing to deliver\n")

    def test_once_tells_of_shipments_that_cancel_each_other_out(
        self, host: Host, stripe_emulator: StripeEmulator
    ) -> None:
        host.metering.record("sign_operations", "cus_1", value=5, key="k-1", manifest_id="m-1")
        run(host, "worker", "--once")
        host.metering.adjust("cus_1", "sign_operations", "k-1", "a mistake")
        host.metering.record("sign_operations", "cus_2", value=5, manifest_id="m-1")
        result = run(host, "worker", "--once")
        assert sorted(event.value for event in stripe_emulator.events) == [-5, 5, 5]
        assert result.output == (
            "sign_operations: 0 delivered (2 shipments that cancel each other out), "
            "0 waiting, 0 dead\n"
        )

    def test_once_says_that_stripe_is_out_of_order(
        self, host: Host, stripe_emulator: StripeEmulator
    ) -> None:
        stripe_emulator.fail(503, times=None)
        for number in range(30):
            host.metering.record("sign_operations", f"cus_{number}", manifest_id="m-1")
        result = run(host, "worker", "--once")
        assert result.exit_code == 0
        assert result.output.splitlines()[-2:] == [
            "sign_operations: 0 delivered, 30 waiting, 0 dead",
            "! everything is held: stripe_unavailable; the next run tries again",
        ]

    def test_once_gives_up_on_what_is_held_and_says_how_much_waits(
        self, host: Host, stripe_emulator: StripeEmulator
    ) -> None:
        stripe_emulator.accept_keys([])
        for number in range(3):
            host.metering.record("sign_operations", f"cus_{number}", manifest_id="m-1")
        result = run(host, "worker", "--once")
        assert result.exit_code == 0
        assert result.output.splitlines()[-2:] == [
            "sign_operations: 0 delivered, 3 waiting, 0 dead",
            "! everything is held: 401 api_key_invalid; the next run tries again",
        ]

        stripe_emulator.accept_keys(None)
        assert run(host, "status").exit_code == 1

    def test_once_replays_the_spill(
        self, new_host: Callable[..., Host], stripe_emulator: StripeEmulator, tmp_path: Path
    ) -> None:
        (tmp_path / "store").write_text("where a folder is needed")
        host = new_host(
            C2METER_STRIPE_SECRET_KEY="sk_test_1",
            C2METER_STRIPE_BASE_URL=stripe_emulator.url,
            C2METER_WORKER="off",
            C2METER_DATABASE_URL=f"sqlite:///{tmp_path}/store/c2meter.sqlite",
        )
        host.metering.record("sign_operations", "cus_1", manifest_id="m-1")
        (tmp_path / "store").unlink()
        (tmp_path / "store").mkdir()
        assert run(host, "status").exit_code == 1
        assert run(host, "worker", "--once").exit_code == 0
        assert stripe_emulator.meter_total("sign_operations", "cus_1") == 1
        assert run(host, "status").exit_code == 0

    def test_a_damaged_store_exits_2_and_is_left_as_it_is(
        self, host: Host, stripe_emulator: StripeEmulator
    ) -> None:
        damage(host)
        before = path_of(host).read_bytes()
        result = run(host, "worker", "--once")
        assert result.exit_code == 2, result.output
        assert "Restore" in result.output or "restore" in result.output
        assert path_of(host).read_bytes() == before
        assert stripe_emulator.events == []

    def test_without_a_key_it_says_what_to_set(self, new_host: Callable[..., Host]) -> None:
        result = run(new_host(), "worker", "--once")
        assert result.exit_code == 0
        assert "nothing is delivered; set C2METER_STRIPE_SECRET_KEY" in result.output

    def test_without_a_key_once_replays_the_spill_too(
        self, new_host: Callable[..., Host], tmp_path: Path
    ) -> None:
        (tmp_path / "store").write_text("where a folder is needed")
        host = new_host(
            C2METER_WORKER="off", C2METER_DATABASE_URL=f"sqlite:///{tmp_path}/store/c2meter.sqlite"
        )
        host.metering.record("sign_operations", "cus_1", manifest_id="m-1")
        assert run(host, "worker", "--once").exit_code == 1

        (tmp_path / "store").unlink()
        (tmp_path / "store").mkdir()
        new = new_host(
            C2METER_WORKER="off",
            C2METER_DATABASE_URL=f"sqlite:///{tmp_path}/store/c2meter.sqlite",
            C2METER_SPILL_PATH=str(host.metering.config.spill_path),
        )
        result = run(new, "worker", "--once")
        assert result.exit_code == 0, result.output
        assert new.metering.store.counts()["sign_operations"].events == 1
        assert new.metering.spill.pending() == 0

    @pytest.mark.parametrize("key", ["", "sk_test_1"])
    def test_once_at_a_locked_store_does_not_claim_success(
        self,
        new_host: Callable[..., Host],
        stripe_emulator: StripeEmulator,
        monkeypatch: pytest.MonkeyPatch,
        key: str,
    ) -> None:
        monkeypatch.setattr("flask_c2meter.cli.delivery.ONCE_PATIENCE_S", 0.1)
        stripe = {
            "C2METER_STRIPE_SECRET_KEY": key,
            "C2METER_STRIPE_BASE_URL": stripe_emulator.url,
            "C2METER_WORKER": "off",
        }
        host = new_host(**stripe)
        host.metering.record("sign_operations", "cus_1", manifest_id="m-1")
        with closing(sqlite3.connect(path_of(host), isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            host.metering.record("sign_operations", "cus_1", manifest_id="m-1")  # is spilled
            result = run(host, "worker", "--once")
            assert result.exit_code == 1, result.output

        config = host.metering.config
        later = new_host(
            **stripe,
            C2METER_DATABASE_URL=config.database_url,
            C2METER_SPILL_PATH=str(config.spill_path),
        )
        assert run(later, "worker", "--once").exit_code == 0
        assert host.metering.store.counts()["sign_operations"].recorded == 2

    def test_another_account_is_refused_until_adopted(
        self,
        new_host: Callable[..., Host],
        stripe_emulator: StripeEmulator,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        def at(key: str) -> Host:
            return new_host(
                C2METER_STRIPE_SECRET_KEY=key,
                C2METER_STRIPE_BASE_URL=stripe_emulator.url,
                C2METER_WORKER="off",
                C2METER_DATABASE_URL=url,
            )

        url = new_host().metering.config.database_url
        first, other = at("sk_test_1"), at("sk_live_2")
        first.metering.record("sign_operations", "cus_1", manifest_id="m-1")
        assert run(first, "worker", "--once").exit_code == 0
        other.metering.record("sign_operations", "cus_1", manifest_id="m-1")

        refused = run(other, "worker", "--once")
        assert refused.exit_code == 1
        assert "nothing is sent; after thought: flask c2meter worker --adopt" in refused.output
        assert "! nothing is sent: this ledger delivers to" in run(other, "status").output
        delivery = other.metering.worker
        assert delivery is not None
        delivery.run_once(patience_s=15)  # as a thread of the web process would
        assert "nothing is sent" in caplog.text
        assert len(stripe_emulator.events) == 1

        adopted = run(at("sk_live_2"), "worker", "--once", "--adopt")
        assert adopted.exit_code == 0
        assert "this ledger now delivers to" in adopted.output
        assert len(stripe_emulator.events) == 2


class TestUsage:
    def test_as_a_table(self, host: Host) -> None:
        host.metering.record(
            "sign_operations", Customer("cus_1", plan="starter"), value=190, manifest_id="m-1"
        )
        result = run(host, "usage", "cus_1")
        assert result.exit_code == 0
        lines = result.output.splitlines()
        assert lines[0] == "cus_1: 2026-01-01 to 2026-02-01 (UTC)"
        assert lines[1].split() == ["meter", "total", "included", "used", "level"]
        assert ["sign_operations", "190", "200", "95.0%", "critical"] in [
            line.split() for line in lines
        ]

    @pytest.mark.parametrize(("value", "share"), [(14_999, "99.9%"), (15_000, "100.0%")])
    def test_the_whole_is_only_said_to_be_used_when_it_is(
        self, host: Host, value: int, share: str
    ) -> None:
        growth = Customer("cus_1", plan="growth")
        host.metering.record("verify_operations", growth, value=value, manifest_id="m-1")
        assert f" {share} " in run(host, "usage", "cus_1").output

    def test_as_json(self, host: Host) -> None:
        host.metering.record("storage_gb", Customer("cus_1", plan="starter"), value="2.5")
        rows = json.loads(run(host, "usage", "cus_1", "--json").output)
        assert {row["meter"]: row for row in rows}["storage_gb"] == {
            "meter": "storage_gb",
            "total": "2.500",
            "included": "10",
            "utilization": "0.2500",
            "level": None,
            "period": {
                "start": "2026-01-01T00:00:00+00:00",
                "end": "2026-02-01T00:00:00+00:00",
            },
        }

    @pytest.mark.parametrize("customer", ["cus 1", "../etc", "c" * 300])
    def test_of_what_is_no_customer_id_exits_2(self, host: Host, customer: str) -> None:
        result = run(host, "usage", customer)
        assert result.exit_code == 2
        assert result.output.startswith("customer: ")


class TestBill:
    @pytest.fixture
    def used(self, host: Host) -> Host:
        """The document's own case: 2,500 verifications used, 2,000 included, 4 cents each."""
        host.metering.record(
            "verify_operations",
            Customer("cus_1", plan="starter"),
            value=2500,
            manifest_id="m-1",
            verification_result=True,
        )
        return host

    def test_the_documents_case(self, used: Host) -> None:
        (line,) = (
            row
            for row in json.loads(run(used, "bill", "cus_1", "--json").output)
            if row["meter"] == "verify_operations"
        )
        assert (line["units"], line["amount"], line["currency"]) == ("500", "2000", "usd")
        # Half of 31 days less half a day: 2,500 become 5,345.
        assert (line["projected_units"], line["projected_amount"]) == ("3345", "13380")

    def test_as_a_table(self, used: Host) -> None:
        result = run(used, "bill", "cus_1")
        assert result.exit_code == 0
        lines = [line.split() for line in result.output.splitlines()]
        assert lines[0] == "meter period (UTC) overage amount projected range".split()
        assert lines[1][:8] == [
            *("verify_operations", "2026-01-01", "to", "2026-02-01", "500", "$20.00", "$133.80"),
            lines[1][7],
        ]
        assert "so far $20.00, projected $133.80" in result.output
        unpriced = "active_sites, sign_operations, storage_gb"
        assert f"without a price, so without an amount: {unpriced}" in result.output

    def test_of_an_earlier_period(self, used: Host) -> None:
        rows = json.loads(run(used, "bill", "cus_1", "--at", "2025-12-24", "--json").output)
        assert {row["units"] for row in rows} == {"0"}

    def test_on_the_first_day_it_is_too_early(self, used: Host, c2meter_clock: FrozenClock) -> None:
        c2meter_clock.now = datetime(2026, 2, 1, 23, 59, tzinfo=UTC)
        used.metering.record("sign_operations", "cus_1", value=300, manifest_id="m-1")
        result = run(used, "bill", "cus_1")
        assert "so far $0.00, too early to say what it will be" in result.output


class TestProject:
    def test_total_and_range(self, host: Host) -> None:
        host.metering.record("sign_operations", "cus_1", value=290, manifest_id="m-1")
        host.metering.record("storage_gb", "cus_1", value="2.5")
        result = run(host, "project", "cus_1")
        assert result.exit_code == 0
        lines = result.output.splitlines()
        assert lines[0] == "cus_1: 2026-01-01 to 2026-02-01 (UTC)"
        rows = {line.split()[0]: line.split()[1:] for line in lines[1:]}
        assert rows["sign_operations"][:2] == ["290", "620"]
        assert rows["storage_gb"][:2] == ["2.500", "2.500"], "a maximum does not grow with time"

    def test_too_early(self, host: Host, c2meter_clock: FrozenClock) -> None:
        c2meter_clock.now = datetime(2026, 1, 1, 23, 59, tzinfo=UTC)
        host.metering.record("sign_operations", "cus_1", value=290, manifest_id="m-1")
        assert "too early to say" in run(host, "project", "cus_1").output
        found = json.loads(run(host, "project", "cus_1", "--json").output)
        assert found["sign_operations"] is None

    def test_backtest_of_a_past_month(self, host: Host, c2meter_clock: FrozenClock) -> None:
        """A month of the same use every day is foretold exactly, at any moment of it."""
        c2meter_clock.now = datetime(2026, 2, 3, tzinfo=UTC)
        for number in range(1, 32):
            host.metering.record(
                "sign_operations",
                "cus_1",
                value=10,
                manifest_id="m-1",
                occurred_at=datetime(2026, 1, number, 12, tzinfo=UTC),
            )
        rows = json.loads(run(host, "project", "--backtest", "--json").output)
        shares = [row for row in rows if row["meter"] == "sign_operations"]
        assert [row["share"] for row in shares] == ["0.25", "0.5", "0.75"]
        assert all(float(row["median_error"].rstrip("%")) <= 5 for row in shares)
        result = run(host, "project", "cus_1", "--backtest")
        assert (result.exit_code, len(result.output.splitlines())) == (0, 1 + len(shares))

    def test_backtest_without_a_past(self, host: Host) -> None:
        assert "no period is over yet" in run(host, "project", "--backtest").output

    def test_of_nobody_exits_2(self, host: Host) -> None:
        assert run(host, "project").exit_code == 2


class TestEvents:
    def test_the_latest_ones_oldest_first(self, host: Host, c2meter_clock: FrozenClock) -> None:
        for number in range(5):
            host.metering.record("api_calls", f"cus_{number % 2}", value=number, key=f"k-{number}")
        result = run(host, "events", "--limit", "3")
        assert result.exit_code == 0
        assert [line.split()[5] for line in result.output.splitlines()[1:]] == ["k-2", "k-3", "k-4"]
        assert "2026-01-15 12:00:00" in result.output

    def test_filtered(self, host: Host) -> None:
        for number in range(4):
            host.metering.record("api_calls", f"cus_{number % 2}", key=f"k-{number}")
        host.metering.record("support_requests", "cus_0", key="k-4")
        found = run(host, "events", "--customer", "cus_0", "--meter", "api_calls", "--json")
        assert [json.loads(line)["key"] for line in found.output.splitlines()] == ["k-0", "k-2"]

    def test_as_json_lines(self, host: Host) -> None:
        host.route(lambda: "", properties={})
        host.client().get("/", headers={"X-Request-ID": "req-1", "Idempotency-Key": "k"})
        (line,) = run(host, "events", "--json").output.splitlines()
        assert json.loads(line) == {
            "key": "k",
            "customer": "cus_alice",
            "meter": "sign_operations",
            "value": "1",
            "occurred_at": "2026-01-15T12:00:00+00:00",
            "recorded_at": "2026-01-15T12:00:00+00:00",
            "properties": {},
            "unique_by": None,
            "request_id": "req-1",
            "kind": "usage",
            "flags": ["incomplete"],
        }

    def test_of_an_adjustment(self, host: Host) -> None:
        host.metering.record("api_calls", "cus_1", value=3, key="k")
        host.metering.adjust("cus_1", "api_calls", "k", "a mistake")
        assert "void 3" in run(host, "events").output

    def test_of_an_empty_ledger(self, host: Host) -> None:
        assert run(host, "events").exit_code == 0
        assert run(host, "events", "--json").output == ""


class TestVerify:
    def test_a_sound_ledger_exits_0(self, host: Host) -> None:
        host.metering.record("api_calls", "cus_1")
        result = run(host, "verify")
        assert (result.exit_code, result.output) == (
            0,
            "every bucket, total and shipment agrees with the events\n",
        )

    @pytest.mark.parametrize(
        "tampering",
        [
            "UPDATE totals SET total = total + 1",
            "UPDATE buckets SET total = total + 1",
            "UPDATE events SET value = value + 1",
            "DELETE FROM events",
        ],
    )
    def test_each_difference_is_a_line_and_exits_1(self, host: Host, tampering: str) -> None:
        host.metering.record("api_calls", "cus_1", value=3)
        with host.metering.store.writing() as connection:
            connection.exec_driver_sql(tampering)
        result = run(host, "verify")
        assert result.exit_code == 1
        assert "cus_1" in result.output
        assert result.output.splitlines()[-1].endswith(" differences")


class TestDb:
    def test_upgrade_creates_the_schema_once(self, host: Host) -> None:
        first, second = run(host, "db", "upgrade"), run(host, "db", "upgrade")
        assert (first.exit_code, second.exit_code) == (0, 0)
        assert first.output == "schema upgraded from nothing to 0001\n"
        assert second.output == "schema 0001 is up to date\n"

    def test_where_no_folder_can_be_made_it_says_so_in_one_line(
        self, new_host: Callable[..., Host], tmp_path: Path
    ) -> None:
        (tmp_path / "file").write_text("where a folder is needed")
        for folder in (tmp_path / "file", tmp_path / "file" / "deeper", Path("/proc/nope")):
            host = new_host(C2METER_DATABASE_URL=f"sqlite:///{folder}/c2meter.sqlite")
            for command in ("db upgrade", "usage cus_1"):
                result = run(host, *command.split())
                assert result.exit_code == 1
                (told,) = result.output.splitlines()
                assert told.startswith(f"c2meter.sqlite: the folder {folder} cannot be made: ")


def test_the_emulator_serves_until_it_is_told_to_stop(tmp_path: Path) -> None:
    (tmp_path / "metered.py").write_text(
        "from flask import Flask\n"
        "from flask_c2meter import C2Meter\n"
        "app = Flask(__name__)\n"
        "app.config.from_prefixed_env()\n"
        "C2Meter(app)\n"
    )
    flask = [sys.executable, "-m", "flask", "--app", "metered", "c2meter"]
    process = subprocess.Popen(
        [*flask, "emulator", "--port", "0"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("Stripe emulator on http://127.0.0.1:")
        url = line.split()[3]
        told = [process.stdout.readline() for _ in range(4)]
        app = Flask("pasted")
        exec("".join(told[2:]), {"app": app})
        assert app.config["C2METER_STRIPE_BASE_URL"] == url
        assert app.config["C2METER_STRIPE_SECRET_KEY"]
        pasted = "".join(told[:2]) + shlex.join([*flask, "provision"])
        plan = subprocess.run(["sh", "-c", pasted], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
        assert plan.stdout.startswith("Stripe: 127.0.0.1 test\n")
        with urllib.request.urlopen(url, timeout=10) as page:
            assert page.status == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()
    assert not (tmp_path / "instance").exists()
