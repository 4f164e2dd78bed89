"""``flask c2meter verify`` and ``export``: proof that a program and a customer can check."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cli_rig import delivering, run
from flask_host import Host

from flask_c2meter import Customer
from flask_c2meter.emulator import StripeEmulator
from flask_c2meter.model import UsageEvent, new_id
from flask_c2meter.store import Entry, encode
from flask_c2meter.testing import FrozenClock


@pytest.fixture
def host(
    new_host: Callable[..., Host], stripe_emulator: StripeEmulator, c2meter_clock: FrozenClock
) -> Host:
    return delivering(new_host, stripe_emulator, c2meter_clock)


def rows_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def tamper(host: Host, statement: str) -> None:
    with host.metering.store.writing() as connection:
        assert connection.exec_driver_sql(statement).rowcount >= 1


def audited(host: Host) -> list[tuple[str, ...]]:
    with host.metering.store.reading() as connection:
        return [tuple(row) for row in connection.exec_driver_sql("SELECT what FROM audit").all()]


@pytest.fixture
def used(host: Host, c2meter_clock: FrozenClock) -> Host:
    """Three verifications of cus_1's this month, one last month, one of cus_2's."""
    for number, days in enumerate((1, 2, 3, 30)):
        host.metering.record(
            "verify_operations",
            Customer("cus_1", plan="starter", email="a@example.org"),
            value=1000,
            key=f"k-{number}",
            occurred_at=c2meter_clock() - timedelta(days=days),
            manifest_id=f"m-{number}",
            verification_result=True,
        )
    host.metering.record(
        "verify_operations", "cus_2", key="foreign", manifest_id="m", verification_result=True
    )
    return host


class TestExport:
    def test_of_a_period_as_json_lines(self, used: Host) -> None:
        result = run(used, "export", "cus_1", "--format", "jsonl")
        assert result.exit_code == 0
        rows = rows_of(result.stdout)
        operations = [row for row in rows if row["record"] == "operation"]
        assert [row["key"] for row in operations] == ["k-0", "k-1", "k-2"]
        assert json.loads(operations[0]["properties"])["manifest_id"] == "m-0"
        assert json.loads(rows[0]["properties"])["customer"] == "cus_1"
        total = next(row for row in rows if row["record"] == "total")
        assert (total["meter"], total["value"]) == ("verify_operations", "3000")
        assert json.loads(total["properties"]) == {
            "unit": "verify",
            "period": {
                "start": "2026-01-01T00:00:00+00:00",
                "end": "2026-02-01T00:00:00+00:00",
            },
            "included": "2000",
            "overage": "1000",
            "amount": "4000",
            "currency": "usd",
        }
        assert rows[-1]["record"] == "end"
        assert f"{len(rows)} rows, sha256 {rows[-1]['hash']}" in result.stderr

    def test_as_csv(self, used: Host) -> None:
        result = run(used, "export", "cus_1", "--period", "2025-12")
        assert result.exit_code == 0
        rows = list(csv.DictReader(io.StringIO(result.stdout, newline="")))
        assert [row["key"] for row in rows if row["record"] == "operation"] == ["k-3"]

    def test_names_neither_others_nor_an_address(self, used: Host) -> None:
        text = run(used, "export", "cus_1").output
        assert "foreign" not in text
        assert "example.org" not in text

    @pytest.mark.parametrize("format", ["csv", "jsonl"])
    def test_can_be_verified(self, used: Host, tmp_path: Path, format: str) -> None:
        file = tmp_path / "cus_1"
        done = run(used, "export", "cus_1", "--format", format, "--output", str(file))
        assert (done.exit_code, done.stdout) == (0, "")
        result = run(used, "verify", "--file", str(file))
        assert result.exit_code == 0, result.output
        assert "12 rows of cus_1, as they were written" in result.output
        assert "made by this ledger on 2026-01-15 12:00:00 UTC" in result.output
        assert run(used, "verify", "--file", "-", stdin=file.read_text()).exit_code == 0
        assert list(tmp_path.glob("*.part")) == []

    def test_a_changed_line_is_named(self, used: Host, tmp_path: Path) -> None:
        file = tmp_path / "cus_1.csv"
        run(used, "export", "cus_1", "--output", str(file))
        text = file.read_text().splitlines(keepends=True)
        at = next(number for number, line in enumerate(text, start=1) if "k-1" in line)
        text[at - 1] = text[at - 1].replace("1000", "1")
        file.write_text("".join(text))
        result = run(used, "verify", "--file", str(file))
        assert result.exit_code == 1
        assert f"{file}: line {at}: row {at - 2} was changed\n1 problems\n" == result.output

    def test_a_file_that_was_rewritten_whole_is_none_of_this_ledger(
        self, used: Host, new_host: Callable[..., Host], tmp_path: Path
    ) -> None:
        file = tmp_path / "cus_1.csv"
        run(used, "export", "cus_1", "--output", str(file))
        other = new_host()
        result = run(other, "verify", "--file", str(file))
        assert result.exit_code == 1
        assert "this ledger has not made that file" in result.output
        assert run(other, "verify", "--file", str(file), "--detached").exit_code == 0

    def test_is_in_the_journal_before_its_last_row_is_written(self, used: Host) -> None:
        rows = rows_of(run(used, "export", "cus_1", "--format", "jsonl").stdout)
        assert audited(used) == [(f"export cus_1 {len(rows)} rows {rows[-1]['hash']}",)]

    @pytest.mark.parametrize(
        ("statement", "words"),
        [
            ("UPDATE events SET value = 1 WHERE key = 'k-1'", "k-1: its checksum does not match"),
            ("UPDATE events SET properties = 'x' WHERE key = 'k-1'", "k-1: its checksum does"),
            ("DELETE FROM events WHERE key = 'k-1'", "total: is 3000, events say 2000"),
        ],
    )
    def test_what_is_not_as_it_was_recorded_is_named(
        self, used: Host, statement: str, words: str
    ) -> None:
        tamper(used, statement)
        result = run(used, "export", "cus_1")
        assert result.exit_code == 1
        assert words in result.stderr

    def test_of_nobody_is_a_file_too(self, host: Host, tmp_path: Path) -> None:
        file = tmp_path / "nobody"
        assert run(host, "export", "cus_1", "--output", str(file)).exit_code == 0
        assert run(host, "verify", "--file", str(file)).exit_code == 0

    def test_wrong_arguments_exit_2(self, host: Host) -> None:
        for arguments in (("cus 1",), ("cus_1", "--period", "x"), ("cus_1", "--format", "xls")):
            assert run(host, "export", *arguments).exit_code == 2
        assert run(host, "verify", "--detached").exit_code == 2

    def test_where_nothing_can_be_written_or_read(self, used: Host, tmp_path: Path) -> None:
        written = run(used, "export", "cus_1", "--output", str(tmp_path / "no" / "such"))
        read = run(used, "verify", "--file", str(tmp_path / "nothing"))
        for result in (written, read):
            assert result.exit_code == 1
            assert "No such file or directory" in result.output
            assert len(result.output.splitlines()) == 1

    def test_a_file_cannot_be_a_folder(self, used: Host, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        result = run(used, "export", "cus_1", "--output", str(tmp_path / "file" / "x"))
        assert result.exit_code == 1
        assert "Not a directory" in result.output
        assert len(result.output.splitlines()) == 1

    def test_what_is_no_file_is_written_to_and_never_replaced(
        self, used: Host, tmp_path: Path
    ) -> None:
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)  # it holds less than 64 KiB
        try:
            assert run(used, "export", "cus_1", "--output", str(pipe)).exit_code == 0
            assert pipe.is_fifo()
            assert os.read(reader, 65_536).startswith(b"record,n,meter,")
        finally:
            os.close(reader)

    def test_a_link_stays_one(self, used: Host, tmp_path: Path) -> None:
        link, file = tmp_path / "link", tmp_path / "file"
        link.symlink_to(file)
        for _ in range(2):  # the file is not there yet, and is
            assert run(used, "export", "cus_1", "--output", str(link)).exit_code == 0
            assert link.is_symlink()
            assert run(used, "verify", "--file", str(file)).exit_code == 0

    def test_a_voided_operation_is_in_it_with_what_it_took_back(
        self, used: Host, tmp_path: Path
    ) -> None:
        used.metering.adjust("cus_1", "verify_operations", "k-0", "a test")
        file = tmp_path / "cus_1.csv"
        assert run(used, "export", "cus_1", "--output", str(file)).exit_code == 0
        assert run(used, "verify", "--file", str(file)).exit_code == 0
        rows = list(csv.DictReader(io.StringIO(file.read_text(), newline="")))
        assert [row["increment"] for row in rows if row["kind"] == "adjustment"] == ["-1000"]


PEAKS = """
import sys, tracemalloc
from flask_c2meter import catalogue
from flask_c2meter.store import open_store

for url in sys.argv[1:]:
    store = open_store(url, catalogue.load(None).meters)
    tracemalloc.start()
    assert list(store.verify()) == []
    print(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
    store.close()
"""


class TestVerify:
    def fill(self, host: Host, customers: int) -> None:
        """Ten events of each of *customers*, each in a minute of its own."""
        now = host.metering.config.clock()
        for start in range(0, customers, 50):
            host.metering.store.append(
                [
                    Entry(
                        encode(
                            UsageEvent(
                                key=new_id(),
                                customer=f"cus_{start + number // 10:05}",
                                meter="sign_operations",
                                units=1,
                                precision=0,
                                occurred_at=now - timedelta(minutes=number),
                                recorded_at=now,
                            )
                        )
                    )
                    for number in range(500)
                ]
            )

    def peaks(self, *hosts: Host) -> list[int]:
        """Bytes in use at most while each is verified; in a process where nothing else happens."""
        urls = [host.metering.config.database_url for host in hosts]
        run = subprocess.run(
            [sys.executable, "-c", PEAKS, *urls], capture_output=True, text=True, check=True
        )
        return [int(line) for line in run.stdout.split()]

    def test_memory_does_not_grow_with_the_number_of_events(
        self, new_host: Callable[..., Host], c2meter_clock: FrozenClock
    ) -> None:
        few, many = (
            new_host(C2METER_CLOCK=c2meter_clock, C2METER_DURABILITY="relaxed") for _ in "ab"
        )
        self.fill(few, 100)
        self.fill(many, 1500)
        few.metering.store.close()
        many.metering.store.close()
        _, of_few, of_many = self.peaks(few, few, many)  # the first makes what is made once
        assert of_many < of_few * 1.5 + 500_000
