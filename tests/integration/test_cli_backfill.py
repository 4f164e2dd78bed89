"""``flask c2meter backfill``: what is taken in from a file, what is not, and running it again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cli_rig import delivering, run
from click.testing import Result
from flask_host import Host, wait_until

from flask_c2meter import usage_recorded
from flask_c2meter.emulator import StripeEmulator
from flask_c2meter.model import Customer, Period, Subscription
from flask_c2meter.testing import FrozenClock

NOON = datetime.fromisoformat("2026-01-15T12:00:00+00:00")


@pytest.fixture
def host(
    new_host: Callable[..., Host], stripe_emulator: StripeEmulator, c2meter_clock: FrozenClock
) -> Host:
    return delivering(new_host, stripe_emulator, c2meter_clock)


def line(key: str, at: datetime = NOON, **more: Any) -> dict[str, Any]:
    return {
        "customer": "cus_1",
        "meter": "sign_operations",
        "key": key,
        "occurred_at": at.isoformat(),
        "properties": {"manifest_id": "m-1"},
        **more,
    }


def jsonl(path: Path, lines: Iterable[Any]) -> str:
    path.write_text("".join(f"{json.dumps(each)}\n" for each in lines))
    return str(path)


def keys(host: Host) -> list[str]:
    return [event.key for event in host.events()]


def summary(result: Result) -> list[tuple[str, str]]:
    """(number, what) of each line of the summary."""
    rows = [text.strip().partition(" ") for text in result.stdout.splitlines()]
    return [(number, what) for number, _, what in rows if number.isdigit()]


class TestJsonLines:
    def test_a_dry_run_writes_nothing(self, host: Host, tmp_path: Path) -> None:
        file = jsonl(tmp_path / "old", [line("a"), line("b", value=4)])
        result = run(host, "backfill", file)
        assert result.exit_code == 0
        assert ("2", "would be added") in summary(result)
        assert "a dry run: nothing was written; --apply writes" in result.output
        assert run(host, "backfill", "--dry-run", file).output == result.output
        assert keys(host) == []

    def test_what_is_applied_is_recorded_as_if_it_had_been_then(
        self, host: Host, tmp_path: Path, stripe_emulator: StripeEmulator
    ) -> None:
        yesterday = NOON - timedelta(days=1)
        file = jsonl(tmp_path / "old", [line("a", yesterday, value=4, request_id="req-1")])
        result = run(host, "backfill", file, "--apply")
        assert result.exit_code == 0
        assert ("1", "added") in summary(result)
        event = host.event()
        assert (event.key, event.units, event.occurred_at) == ("a", 4, yesterday)
        assert (event.request_id, dict(event.properties)) == ("req-1", {"manifest_id": "m-1"})
        run(host, "worker", "--once")
        assert stripe_emulator.meter_total("sign_operations", "cus_1") == 4
        assert run(host, "verify").exit_code == 0

    def test_running_it_again_adds_nothing(self, host: Host, tmp_path: Path) -> None:
        file = jsonl(tmp_path / "old", [line(f"k-{number}") for number in range(1203)])
        assert ("1,203", "added") in [
            (text.split()[0], text.split(maxsplit=1)[1])
            for text in run(host, "backfill", file, "--apply").stdout.splitlines()[1:]
        ]
        again = run(host, "backfill", file, "--apply")
        assert again.exit_code == 0
        assert ("0", "added") in summary(again)
        assert "1,203 known already" in again.stdout
        assert "1,203 known already" in run(host, "backfill", file).stdout
        assert len(keys(host)) == 1203

    def test_a_bad_line_is_named_and_stops_no_other(self, host: Host, tmp_path: Path) -> None:
        file = tmp_path / "old"
        bad: list[tuple[str, str]] = [
            ("not json", "is no JSON"),
            ('{"customer": "cus_1", "customer": "cus_2"}', "'customer' is in it twice"),
            ('{"properties": {"a": 1, "a": 2}}', "'a' is in it twice"),
            ("[1]", "is no JSON object"),
            (json.dumps(line("x", customer="cus 1")), "no Stripe customer id"),
            (json.dumps(line("x", meter="sign_operation")), "sign_operation"),
            (json.dumps(line("x", value=-1)), "value: must not be negative"),
            (json.dumps(line("x", value=1.5)), "value: has more than 0 decimal places"),
            ('{"value": NaN}', "NaN is no number"),
            (json.dumps(line("")), "key: must not be empty"),
            (json.dumps(line("adjust:a")), "key: must not begin with"),
            (json.dumps(line("x", occurred_at="yesterday")), "occurred_at: must be ISO 8601"),
            (json.dumps(line("x", occurred_at="2026-01-15T12:00:00")), "with an offset"),
            (json.dumps(line("x", occurred_at=1768478400)), "occurred_at: must be ISO 8601"),
            (json.dumps(line("x", NOON + timedelta(hours=1))), "is in the future"),
            (json.dumps(line("x", occurred_at="1969-12-31T23:59:59Z")), "occurred_at: is before"),
            (json.dumps(line("x", properties={"manifest": "m"})), "did you mean 'manifest_id'"),
            (json.dumps(line("x", vale=3)), "did you mean 'value'"),
            (json.dumps(line("x", request_id=7)), "request_id: must be a string"),
            (json.dumps(line("x", properties=[])), "properties: must be an object"),
            ('{"customer": "cus_1"}', "key: is required, so that running this again adds nothing"),
            ("[" * 100_000, "is no JSON"),
            ('{"properties": ' + '{"a": ' * 40 + "1" + "}" * 41, "is nested deeper than 32 levels"),
            ('{"key": "\udcff"}', "is required"),
        ]
        good = [json.dumps(line("first")), json.dumps(line("last"))]
        text = "\n".join([good[0], "", *(each for each, _ in bad), good[1]])
        file.write_text(text, encoding="utf-8", errors="surrogateescape")
        for apply in ((), ("--apply",)):
            result = run(host, "backfill", str(file), *apply)
            assert result.exit_code == 1
            told = result.stderr.splitlines()
            assert len(told) == len(bad), told
            for number, ((_, words), problem) in enumerate(zip(bad, told, strict=True), start=3):
                assert problem.startswith(f"{file}, line {number}: ")
                assert words in problem
            assert (str(len(bad)), "wrong") in summary(result)
        assert keys(host) == ["first", "last"]

    def test_errors_are_bounded_and_counted(self, host: Host, tmp_path: Path) -> None:
        file = jsonl(tmp_path / "old", [{}] * 130)
        result = run(host, "backfill", file)
        assert len(result.stderr.splitlines()) == 101
        assert "and 30 more errors" in result.stderr
        assert len(run(host, "backfill", file, "--errors", "2").stderr.splitlines()) == 3

    def test_a_key_that_is_known_for_something_else_is_an_error(
        self, host: Host, tmp_path: Path
    ) -> None:
        file = jsonl(tmp_path / "old", [line("a", value=3), line("a", value=3), line("a", value=4)])
        for apply in ((), ("--apply",), ("--apply",)):
            result = run(host, "backfill", file, *apply)
            assert result.exit_code == 1
            assert "line 3: key: 'a' is known for another event" in result.stderr
            assert len(result.stderr.splitlines()) == 1
        assert host.event().units == 3

    def test_what_a_view_has_recorded_is_known(self, host: Host, tmp_path: Path) -> None:
        host.route(lambda: "")
        host.client().post("/", headers={"Idempotency-Key": "k"})
        recorded = host.event()
        file = jsonl(
            tmp_path / "old", [line("k", recorded.occurred_at, customer=recorded.customer)]
        )
        result = run(host, "backfill", file, "--apply")
        assert (result.exit_code, ("1", "known already") in summary(result)) == (0, True)

    def test_what_the_meters_filter_does_not_bill_is_counted(
        self, host: Host, tmp_path: Path
    ) -> None:
        failed = {"manifest_id": "m", "verification_result": False}
        file = jsonl(tmp_path / "old", [line("a", meter="verify_operations", properties=failed)])
        result = run(host, "backfill", file, "--apply")
        assert ("1", "not billed by the meter's filter") in summary(result)
        assert keys(host) == []

    def test_what_stripe_takes_no_more_is_announced(
        self, host: Host, tmp_path: Path, stripe_emulator: StripeEmulator
    ) -> None:
        old = NOON - timedelta(days=36)
        never = line("c", old, meter="api_calls", properties={})
        file = jsonl(tmp_path / "old", [line("a", old), line("b"), never])
        result = run(host, "backfill", file)
        words = "1 are older than the 35 days that Stripe takes: they would become dead `expired`"
        assert words in result.output
        assert "they become dead `expired`" in run(host, "backfill", file, "--apply").output
        run(host, "worker", "--once")
        assert stripe_emulator.meter_total("sign_operations", "cus_1") == 1
        assert "expired" in run(host, "dead", "list").output

    def test_what_no_invoice_bills_is_announced(self, host: Host, tmp_path: Path) -> None:
        ended = Period(NOON - timedelta(days=40), NOON - timedelta(days=9))
        store = host.metering.store
        store.subscriptions.learn(
            "cus_1",
            [Subscription("starter", ended, id="sub_1")],
            ended.end - timedelta(days=1),
            source="stripe",
            finding="known",
            look_again=None,
        )
        file = jsonl(tmp_path / "old", [line("a", NOON - timedelta(days=10))])
        result = run(host, "backfill", file)
        words = "1 lie in periods whose invoice is final: they would become dead `late`"
        assert words in result.output

    def test_what_a_period_cannot_hold_stops_no_other(self, host: Host, tmp_path: Path) -> None:
        most = 10**15 - 1
        file = jsonl(tmp_path / "old", [line(f"k-{n}", value=most) for n in range(1003)])
        result = run(host, "backfill", file, "--apply")
        assert result.exit_code == 1
        assert result.stderr.count("would exceed") == 3
        assert "1,000 added" in result.stdout

    def test_an_empty_file(self, host: Host, tmp_path: Path) -> None:
        (tmp_path / "old").write_text("")
        result = run(host, "backfill", str(tmp_path / "old"), "--apply")
        assert (result.exit_code, result.stdout.splitlines()[0]) == (0, "0 lines")

    def test_signals_are_sent(self, host: Host, tmp_path: Path) -> None:
        told: list[str] = []

        def receive(sender: object, event: Any, **extra: Any) -> None:
            told.append(event.key)

        file = jsonl(tmp_path / "old", [line("a")])
        with usage_recorded.connected_to(receive, sender=host.app):
            run(host, "backfill", file)
            assert told == []
            run(host, "backfill", file, "--apply")
            run(host, "backfill", file, "--apply")
        assert told == ["a"]


class TestCsv:
    HEAD = "customer,meter,key,occurred_at,value,manifest_id,verification_result,processing_time_ms"

    def apply(self, host: Host, path: Path, *rows: str, head: str = HEAD) -> Result:
        path.write_text("\n".join([head, *rows]) + "\n")
        return run(host, "backfill", str(path), "--apply")

    def test_other_columns_are_properties(self, host: Host, tmp_path: Path) -> None:
        row = 'cus_1,verify_operations,a,2026-01-15T12:00:00Z,3,"urn:c2pa:1",true,12'
        result = self.apply(host, tmp_path / "old.csv", row)
        assert result.exit_code == 0, result.output
        event = host.event()
        assert (event.units, dict(event.properties)) == (
            3,
            {"manifest_id": "urn:c2pa:1", "verification_result": True, "processing_time_ms": 12},
        )

    def test_an_empty_cell_is_left_out(self, host: Host, tmp_path: Path) -> None:
        row = "cus_1,verify_operations,a,2026-01-15T12:00:00Z,,m,,"
        assert self.apply(host, tmp_path / "old.csv", row).exit_code == 0
        assert (host.event().units, dict(host.event().properties)) == (1, {"manifest_id": "m"})

    def test_a_column_that_comes_twice_is_no_guess(self, host: Host, tmp_path: Path) -> None:
        head = "customer,customer,meter,key,occurred_at,manifest_id"
        row = "cus_1,cus_2,verify_operations,a,2026-01-15T12:00:00Z,m"
        result = self.apply(host, tmp_path / "old.csv", row, head=head)
        assert result.exit_code == 1
        assert "line 2: has two cells for 'customer'" in result.output
        assert keys(host) == []

    def test_errors_have_the_line_they_begin_in(self, host: Host, tmp_path: Path) -> None:
        result = self.apply(
            host,
            tmp_path / "old.csv",
            'cus_1,verify_operations,a,2026-01-15T12:00:00Z,3,"two\nlines",true,12',
            "cus_1,verify_operations,b",
            "cus_1,verify_operations,c,2026-01-15T12:00:00Z,3,m,perhaps,12",
            "cus_1,verify_operations,d,2026-01-15T12:00:00Z,3,m,true,twelve",
            "cus_1,verify_operations,e,2026-01-15T12:00:00Z,3,m,true,12",
        )
        assert result.exit_code == 1
        file = tmp_path / "old.csv"
        one, two, three, four = result.stderr.splitlines()
        assert one.startswith(f"{file}, line 2: manifest_id: ")
        assert two == f"{file}, line 4: has 3 cells, its header 8"
        assert three.startswith(f"{file}, line 5: verification_result: ")
        assert four.startswith(f"{file}, line 6: processing_time_ms: ")
        assert keys(host) == ["e"]

    def test_properties_may_be_json_in_a_cell(self, host: Host, tmp_path: Path) -> None:
        head = "customer,meter,key,occurred_at,properties"
        row = 'cus_1,sign_operations,a,2026-01-15T12:00:00Z,"{""manifest_id"": ""m-7""}"'
        assert self.apply(host, tmp_path / "old.csv", row, head=head).exit_code == 0
        assert dict(host.event().properties) == {"manifest_id": "m-7"}

    def test_but_nested_no_deeper_than_in_json_lines(self, host: Host, tmp_path: Path) -> None:
        head = "customer,meter,key,occurred_at,properties"
        cell = '{""manifest_id"": ' + "[" * 40 + "]" * 40 + "}"
        row = f'cus_1,sign_operations,a,2026-01-15T12:00:00Z,"{cell}"'
        result = self.apply(host, tmp_path / "old.csv", row, head=head)
        assert result.exit_code == 1
        assert "properties: is nested deeper than 32 levels" in result.stderr

    def test_from_a_spreadsheet_with_a_byte_order_mark(self, host: Host, tmp_path: Path) -> None:
        file = tmp_path / "old.csv"
        text = f"{self.HEAD}\r\ncus_1,verify_operations,a,2026-01-15T12:00:00Z,3,m,true,12\r\n"
        file.write_bytes(text.encode("utf-8-sig"))
        assert run(host, "backfill", str(file), "--apply").exit_code == 0
        assert keys(host) == ["a"]


def test_from_standard_input(host: Host) -> None:
    text = json.dumps(line("a")) + "\n"
    assert run(host, "backfill", "-", "--apply", stdin=text).exit_code == 0
    assert keys(host) == ["a"]


def test_from_what_is_not_there(host: Host, tmp_path: Path) -> None:
    result = run(host, "backfill", str(tmp_path / "nothing"))
    assert result.exit_code == 1
    assert "No such file" in result.output


def test_a_plan_that_the_loader_said_is_kept(host: Host, tmp_path: Path) -> None:
    host.metering.record("sign_operations", Customer("cus_1", plan="starter"), manifest_id="m")
    run(host, "backfill", jsonl(tmp_path / "old", [line("a")]), "--apply")
    customer = host.metering.store.standing("cus_1").customer
    assert customer is not None
    assert customer.plan == "starter"


def test_without_a_database_it_says_how_far_it_came(
    new_host: Callable[..., Host], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("where a folder is needed")
    host = new_host(C2METER_DATABASE_URL=f"sqlite:///{tmp_path}/file/c2meter.sqlite")
    file = jsonl(tmp_path / "old", [line("a", datetime.fromisoformat("2020-01-01T00:00:00Z"))])
    result = run(host, "backfill", file, "--apply")
    assert result.exit_code == 1
    assert "stopped after line 0: run it again to go on" in result.output
    assert "Traceback" not in result.output


def test_the_terminal_never_delivers(
    new_host: Callable[..., Host], stripe_emulator: StripeEmulator, tmp_path: Path
) -> None:
    """Its process ends at once, in the middle of whatever a worker's thread is doing."""
    host = new_host(
        C2METER_STRIPE_SECRET_KEY="sk_test_1", C2METER_STRIPE_BASE_URL=stripe_emulator.url
    )
    recent = datetime.now().astimezone() - timedelta(days=1)
    assert (
        run(host, "backfill", jsonl(tmp_path / "old", [line("a", recent)]), "--apply").exit_code
        == 0
    )
    assert run(host, "adjust", "cus_1", "sign_operations", "a", "--reason", "x").exit_code == 0
    assert not host.metering.worker.is_running


def test_killed_in_the_middle_and_run_again_each_line_counts_once(tmp_path: Path) -> None:
    """A real process is fed through a pipe and killed; the whole file is run again."""
    (tmp_path / "metered.py").write_text(
        "from flask import Flask\n"
        "from flask_c2meter import C2Meter\n"
        "app = Flask(__name__)\n"
        "app.config['C2METER_WORKER'] = 'off'\n"
        "C2Meter(app)\n"
    )
    recent = datetime.now().astimezone() - timedelta(days=1)
    lines = [json.dumps(line(f"k-{number}", recent)) for number in range(3000)]
    command = [sys.executable, "-m", "flask", "--app", "metered", "c2meter"]
    process = subprocess.Popen(
        [*command, "backfill", "-", "--apply"], cwd=tmp_path, stdin=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    pipe = process.stdin
    feeder = threading.Thread(target=lambda: pipe.write("\n".join(lines[:2000]) + "\n"))
    feeder.start()
    feeder.join(60)
    pipe.flush()
    database = tmp_path / "instance" / "c2meter.sqlite"
    wait_until(lambda: count(database) >= 500, timeout_s=60)
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    pipe.close()
    assert 500 <= count(database) < 3000

    file = tmp_path / "old"
    file.write_text("\n".join(lines) + "\n")
    again = subprocess.run(
        [*command, "backfill", str(file), "--apply"],
        cwd=tmp_path,
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert again.returncode == 0, again.stderr
    assert count(database) == 3000
    verified = subprocess.run([*command, "verify"], cwd=tmp_path, timeout=100)
    assert verified.returncode == 0


def count(database: Path) -> int:
    """Events in the ledger, as another process sees them."""
    import sqlite3

    if not database.exists():
        return 0
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    try:
        return int(connection.execute("SELECT COUNT(*) FROM events").fetchone()[0])
    except sqlite3.OperationalError:  # the tables are being made
        return 0
    finally:
        connection.close()
