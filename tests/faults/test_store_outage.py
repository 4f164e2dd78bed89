"""Cases 8, 9 and the rest of P14: the store is locked, full, gone, read-only or damaged.

With ``spill`` (the default) the host does not notice; with ``refuse`` it is told to come back.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from fault_rig import Children, Rig, stripe_totals, until
from sqlalchemy import Engine
from sqlalchemy import event as sqlalchemy_event

from flask_c2meter import CorruptStore, StoreUnavailable, current_metering
from flask_c2meter.emulator import StripeEmulator

ONLINE = {"C2METER_WORKER": "thread"}


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Somebody else's transaction holds the database."""
    connection = sqlite3.connect(folder / "c2meter.sqlite", isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")
        connection.close()


def request(rig: Rig, path: str = "/verify", **headers: str) -> tuple[int, float, str | None]:
    """Status, seconds and Retry-After of one request."""
    started = time.monotonic()
    answer = rig.app.test_client().post(path, json={}, headers={"X-Customer": "cus_1", **headers})
    return answer.status_code, time.monotonic() - started, answer.headers.get("Retry-After")


def spilled(rig: Rig) -> int:
    found: int = rig.metering.status()["spill"]["pending"]
    return found


def health(rig: Rig) -> list[str]:
    problems: list[str] = rig.metering.status()["problems"]
    return problems


@pytest.fixture
def online(new_rig: Callable[..., Rig], stripe: StripeEmulator) -> Rig:
    """An app with its worker thread, that has recorded and delivered one event."""
    rig = new_rig(stripe, **ONLINE)
    assert request(rig)[0] == 200
    assert stripe.wait_for(1)
    return rig


# -- case 8 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "seconds",
    [
        4,
        pytest.param(10, marks=pytest.mark.long),
        pytest.param(60, marks=[pytest.mark.long, pytest.mark.timeout(200)]),
    ],
)
def test_case_08_a_locked_store_is_not_noticed_and_well_within_1_s_after(
    online: Rig, stripe: StripeEmulator, seconds: int
) -> None:
    answers = []
    with locked(online.folder):
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s:
            answers.append(request(online))
            threading.Event().wait(0.05)
        assert spilled(online) == len(answers)
        assert health(online) != []

    healthy_s = until(lambda: health(online) == [], 10)

    assert healthy_s <= 1.0
    assert {status for status, _, _ in answers} == {200}
    assert max(duration_s for _, duration_s, _ in answers) <= 2.5
    until(lambda: sum(stripe_totals(stripe).values()) == len(answers) + 1, 10)
    online.close()
    online.assert_books_balance()


def test_case_08_many_threads_at_a_locked_store_wait_together_not_in_line(online: Rig) -> None:
    answers = []
    with locked(online.folder):
        threads = [
            threading.Thread(target=lambda: answers.append(request(online))) for _ in range(20)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)

    assert {status for status, _, _ in answers} == {200}
    assert max(duration_s for _, duration_s, _ in answers) <= 2.5


def test_case_08_refuse_answers_503_in_time_and_then_before_the_view_runs(
    new_rig: Callable[..., Rig], stripe: StripeEmulator
) -> None:
    rig = new_rig(stripe, C2METER_ON_STORE_FAILURE="refuse")
    assert request(rig)[0] == 200
    with locked(rig.folder):
        status, duration_s, retry_after = request(rig)
        assert (status, retry_after) == (503, "1")
        assert duration_s <= 2.5
        ran = rig.app.config["VIEW_RUNS"]

        status, duration_s, retry_after = request(rig)
        assert (status, retry_after) == (503, "1")
        assert duration_s <= 0.5
        assert rig.app.config["VIEW_RUNS"] == ran

        # Analytics fail open: the host goes on, the loss is counted.
        assert request(rig, "/ping")[0] == 200
        with pytest.raises(StoreUnavailable), rig.app.app_context():
            current_metering.record("verify_operations", "cus_1", manifest_id="m")

    recovered_s = until(lambda: request(rig)[0] == 200, 10)

    assert recovered_s <= 1.5
    assert spilled(rig) == 0
    rig.worker().run_once()
    assert stripe_totals(stripe) == {("verify_operations", "cus_1"): 2}
    rig.assert_books_balance()


def test_case_08_a_store_without_a_stripe_key_also_takes_the_spill_back(
    new_rig: Callable[..., Rig], stripe: StripeEmulator
) -> None:
    rig = new_rig(stripe, C2METER_STRIPE_SECRET_KEY="", C2METER_WORKER="thread")
    assert request(rig)[0] == 200
    with locked(rig.folder):
        assert request(rig)[0] == 200
        assert spilled(rig) == 1

    def is_back() -> bool:
        request(rig)
        return spilled(rig) == 0

    until(is_back, 10)
    assert list(rig.store.verify()) == []


def test_a_spill_replayed_twice_counts_once(rig: Rig, stripe: StripeEmulator) -> None:
    spill_file = rig.folder / "c2meter.spill"
    request(rig)
    with locked(rig.folder):
        for number in range(3):
            assert request(rig, **{"Idempotency-Key": f"k{number}"})[0] == 200
    copy = spill_file.read_bytes()
    rig.worker().run_once()
    assert not spill_file.exists()

    spill_file.write_bytes(copy)
    rig.worker().run_once()

    assert stripe_totals(stripe) == {("verify_operations", "cus_1"): 4}
    rig.assert_books_balance()


def test_a_damaged_spill_line_is_kept_and_reported_and_costs_no_other(
    rig: Rig, stripe: StripeEmulator
) -> None:
    spill_file = rig.folder / "c2meter.spill"
    request(rig)
    with locked(rig.folder):
        for _ in range(3):
            assert request(rig)[0] == 200
    lines = spill_file.read_bytes().splitlines(keepends=True)
    spill_file.write_bytes(lines[0] + lines[1].replace(b"cus_1", b"cus_2") + lines[2])

    rig.worker().run_once()

    assert stripe_totals(stripe) == {("verify_operations", "cus_1"): 3}
    assert rig.metering.status()["spill"] == {"pending": 0, "corrupt": 1}
    assert health(rig) == ["1 spilled lines cannot be read"]


# -- case 9 ----------------------------------------------------------------------------------------


@pytest.fixture
def page_limit() -> Iterator[Callable[[int | None], None]]:
    """Sets SQLite's ``max_page_count`` for connections opened from now on."""
    limit: int | None = None

    def restrict(driver: sqlite3.Connection, record: object) -> None:
        if limit is not None:
            driver.execute(f"PRAGMA max_page_count={limit}")

    def set_limit(pages: int | None) -> None:
        nonlocal limit
        limit = pages

    sqlalchemy_event.listen(Engine, "connect", restrict)
    yield set_limit
    sqlalchemy_event.remove(Engine, "connect", restrict)


def test_case_09_a_full_database_spills_and_resumes_within_5_s(
    new_rig: Callable[..., Rig], stripe: StripeEmulator, page_limit: Callable[[int | None], None]
) -> None:
    page_limit(1)  # SQLite makes it the number of pages there are
    rig = new_rig(stripe, **ONLINE)
    recorded = 0
    while not rig.folder.joinpath("c2meter.spill").exists():
        assert request(rig)[0] == 200
        recorded += 1
        assert recorded < 500, "the database was never full"

    for _ in range(5):
        assert request(rig)[0] == 200
        recorded += 1
    page_limit(None)
    resumed_s = until(lambda: spilled(rig) == 0, 15)

    assert resumed_s <= 5
    until(lambda: sum(stripe_totals(stripe).values()) == recorded, 15)
    rig.close()
    rig.assert_books_balance()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 20 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small tmpfs (needs root): {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.skipif(shutil.which("mount") is None, reason="there is no mount command")
@pytest.mark.parametrize("spill_is_on_it", [False, True])
def test_case_09_a_full_disk_spills_or_refuses_and_resumes_within_5_s(
    new_rig: Callable[..., Rig],
    stripe: StripeEmulator,
    small_disk: Path,
    tmp_path: Path,
    spill_is_on_it: bool,
) -> None:
    rig = new_rig(
        stripe,
        C2METER_DATABASE_URL=f"sqlite:///{small_disk}/c2meter.sqlite",
        C2METER_SPILL_PATH=str((small_disk if spill_is_on_it else tmp_path) / "c2meter.spill"),
        **ONLINE,
    )
    recorded = 0
    assert request(rig)[0] == 200
    recorded += 1
    ballast = small_disk / "ballast"
    with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(bytes(4096))

    # The log has room that was reserved; when it is used up, the disk is full.
    until_s = time.monotonic() + 40
    statuses = []
    while not (503 in statuses if spill_is_on_it else spilled(rig)):
        with suppress(StoreUnavailable), rig.store.writing() as connection:
            for _ in range(200):
                rig.metering.record("api_calls", "cus_1", connection=connection, endpoint="x" * 200)
        statuses.append(request(rig)[0])
        recorded += statuses[-1] == 200
        assert time.monotonic() < until_s, "the disk was never full"
    ballast.unlink()

    resumed_s = until(lambda: request(rig)[0] == 200 and spilled(rig) == 0, 15)

    assert resumed_s <= 5
    assert set(statuses) <= ({200, 503} if spill_is_on_it else {200})
    rig.close()


# -- the file itself -------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["unlinked", "replaced"])
def test_an_unlinked_or_replaced_file_is_noticed_and_never_recreated(
    rig: Rig, stripe: StripeEmulator, what: str
) -> None:
    database = rig.folder / "c2meter.sqlite"
    assert request(rig)[0] == 200
    rig.worker().run_once()
    kept = rig.folder / "kept"
    kept.mkdir()
    files = [f"c2meter.sqlite{suffix}" for suffix in ("", "-wal", "-shm")]
    for name in files:
        os.rename(rig.folder / name, kept / name)
    if what == "replaced":
        database.write_bytes(b"this is no database at all" * 100)
        foreign = database.read_bytes()

    for _ in range(3):
        assert request(rig)[0] == 200
        rig.metering._process.recorder._store_failed_at = float("-inf")
    assert (rig.folder / "c2meter.spill").read_bytes().count(b"\n") == 3
    if what == "unlinked":
        assert not database.exists()
    else:
        assert database.read_bytes() == foreign

    for name in files:
        if (kept / name).exists():
            os.replace(kept / name, rig.folder / name)
    rig.worker().run_once()
    assert stripe_totals(stripe) == {("verify_operations", "cus_1"): 4}
    rig.assert_books_balance()


def test_a_read_only_file_spills_and_recovers_without_restart(
    children: Children, stripe: StripeEmulator
) -> None:
    # Not in tmp_path: pytest's folders are closed to other users.
    with tempfile.TemporaryDirectory() as folder:
        result = children.act("meet_a_read_only_store", folder=folder)
    if "skip" in result:
        pytest.skip(result["skip"])
    assert result == {"statuses": [200, 200, 200, 200], "spilled": 2, "spilled_after": 0}
    assert stripe.meter_total("verify_operations", "cus_1") == 4


def damage_header(data: bytearray) -> None:
    data[:100] = b"not a database" + bytes(86)


def damage_page(data: bytearray) -> None:
    for start in range(4096, len(data), 4096):
        data[start : start + 64] = b"\xff" * 64


@pytest.mark.parametrize("damage", [damage_header, damage_page], ids=["header", "pages"])
@pytest.mark.parametrize("once", [True, False])
def test_a_worker_refuses_a_corrupt_file_and_changes_nothing(
    rig: Rig, children: Children, stripe: StripeEmulator, damage: Callable[..., None], once: bool
) -> None:
    assert request(rig)[0] == 200
    rig.close()
    database = rig.folder / "c2meter.sqlite"
    data = bytearray(database.read_bytes())
    damage(data)
    database.write_bytes(data)

    code, output = children.c2meter("worker", *(["--once"] if once else []))

    assert code != 0
    assert "c2meter.sqlite" in output
    assert "damaged" in output
    assert "Traceback" not in output
    assert database.read_bytes() == bytes(data)
    assert stripe.requests == []


def test_a_host_with_a_corrupt_file_spills_and_leaves_the_file_alone(rig: Rig) -> None:
    assert request(rig)[0] == 200
    rig.close()
    database = rig.folder / "c2meter.sqlite"
    data = bytearray(database.read_bytes())
    damage_header(data)
    database.write_bytes(data)

    assert request(rig)[0] == 200

    assert database.read_bytes() == bytes(data)
    assert (rig.folder / "c2meter.spill").read_bytes().count(b"\n") == 1
    with pytest.raises(CorruptStore):
        rig.store.check()


def test_an_event_changed_behind_our_back_is_named_by_verify(rig: Rig, children: Children) -> None:
    assert request(rig, **{"Idempotency-Key": "changed-one"})[0] == 200
    rig.worker().run_once()
    assert children.c2meter("verify")[0] == 0
    with sqlite3.connect(rig.folder / "c2meter.sqlite") as connection:
        connection.execute("UPDATE events SET value = 7")
    connection.close()

    code, output = children.c2meter("verify")

    assert code == 1
    assert "changed-one" in output
