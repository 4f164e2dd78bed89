"""The lock file of the SQLite store: in turn, and never without end."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from threading import Barrier, Thread

import pytest

from flask_c2meter.model import Aggregation, Meter, UsageEvent, new_id
from flask_c2meter.recorder import Recorder
from flask_c2meter.store import Entry, Spill, encode, open_store
from flask_c2meter.store.filelock import FileLock

METERS = {"verify": Meter("verify", "Verify", "verify.completed", "verify", Aggregation.SUM)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lock"


@pytest.fixture
def lock(path: Path) -> Iterator[FileLock]:
    lock = open_lock(path)
    yield lock
    lock.close()


def open_lock(path: Path) -> FileLock:
    """As another process would: an open file of its own."""
    return FileLock(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))


def test_whoever_waits_gets_it_when_it_is_released(path: Path, lock: FileLock) -> None:
    other = open_lock(path)
    assert other.acquire(0)
    started = Barrier(2)

    def release() -> None:
        started.wait(10)
        other.release()

    Thread(target=release).start()
    started.wait(10)
    assert lock.acquire(10)
    assert not other.acquire(0.01)
    lock.release()
    assert other.acquire(10)
    other.close()


def test_giving_up_takes_no_longer_than_said_and_keeps_nothing(path: Path, lock: FileLock) -> None:
    other = open_lock(path)
    assert other.acquire(0)
    for _ in range(3):
        began = time.monotonic()
        assert not lock.acquire(0.05)
        assert time.monotonic() - began < 1
    other.release()
    # Whether the lock that nobody wanted any more came and went, or was still on its way.
    assert lock.acquire(10)
    lock.release()
    assert other.acquire(10)
    other.close()


def test_a_closed_lock_that_was_still_waited_for_blocks_nobody(path: Path) -> None:
    holder, quitter = open_lock(path), open_lock(path)
    assert holder.acquire(0)
    assert not quitter.acquire(0.01)
    quitter.close()
    holder.release()
    third = open_lock(path)
    assert third.acquire(10)
    third.close()
    holder.close()


def test_a_process_frozen_in_its_turn_costs_others_two_seconds_and_no_event(
    tmp_path: Path,
) -> None:
    store = open_store(f"sqlite:///{tmp_path}/c2meter.sqlite", METERS)
    spill = Spill(tmp_path / "spill")
    recorder = Recorder(store, spill, replays=True)
    assert recorder.record(event())

    frozen = os.open(f"{tmp_path}/c2meter.sqlite-lock", os.O_RDWR)
    fcntl.flock(frozen, fcntl.LOCK_EX)
    began = time.monotonic()
    assert recorder.record(event())
    assert time.monotonic() - began < 2.5
    assert recorder.record(event())
    assert time.monotonic() - began < 2.5  # known to be out of order: not waited for again
    assert spill.pending() == 2

    os.close(frozen)
    while recorder.store_is_failing:
        os.sched_yield()
    assert recorder.record(event())
    assert spill.is_empty
    assert store.counts()["verify"].recorded == 4
    store.close()


def event() -> Entry:
    now = datetime.now(UTC)
    return Entry(encode(UsageEvent(new_id(), "cus_1", "verify", 1, 0, now, now)))
