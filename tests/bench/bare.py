"""What plain ``sqlite3`` does with the same rows: one commit per event, and leader group commit.

Nothing is checked, signalled, limited or protected here; these are the floors to compare with.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections import deque
from pathlib import Path
from threading import Lock
from typing import Any

from flask_c2meter.model import new_id

_COLUMNS = (
    "key, customer, meter, value, unique_by, occurred_at, recorded_at, properties, request_id, "
    "kind, flags, fingerprint, checksum"
)
_SCHEMA = f"""
CREATE TABLE events (id INTEGER PRIMARY KEY, {_COLUMNS}, UNIQUE (customer, meter, key));
CREATE TABLE buckets (customer, meter, period, minute, total, counted, last_at,
    PRIMARY KEY (customer, meter, period, minute)) WITHOUT ROWID;
CREATE INDEX buckets_open ON buckets (meter, customer, minute) WHERE total <> counted;
CREATE TABLE totals (customer, meter, period, total, events,
    PRIMARY KEY (customer, meter, period)) WITHOUT ROWID;
"""
_MAX_BATCH = 500

Row = tuple[Any, ...]


def connect(
    path: Path, synchronous: str = "FULL", busy_timeout_s: float = 60.0
) -> sqlite3.Connection:
    """The file at *path* as durable as ours: WAL, ``synchronous=FULL`` or ``NORMAL``."""
    driver = sqlite3.connect(
        path, timeout=busy_timeout_s, isolation_level=None, check_same_thread=False
    )
    driver.execute("PRAGMA journal_mode=WAL")
    driver.execute(f"PRAGMA synchronous={synchronous}")
    if not driver.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        driver.executescript(_SCHEMA)
    return driver


def event_row(customer: str) -> Row:
    """A row of ``events`` as the product writes it, but for a real checksum."""
    now_ms = time.time_ns() // 1_000_000
    properties = json.dumps({"manifest_id": "urn:c2pa:1", "verification_result": True})
    meter = "verify_operations"
    row = (new_id(), customer, meter, 1, None, now_ms, now_ms, properties, None)
    return (*row, "usage", "", None, "0123456789abcdef")


class OneCommitPerEvent:
    """One event row per transaction; several threads take turns with a lock."""

    def __init__(self, path: Path) -> None:
        self._driver = connect(path)
        self._lock = Lock()

    def record(self, customer: str) -> None:
        """Insert one row and commit."""
        row = event_row(customer)
        with self._lock:
            insert_one(self._driver, row)

    def close(self) -> None:
        """Close the file."""
        self._driver.close()


def insert_one(driver: sqlite3.Connection, row: Row) -> None:
    """One event row in one transaction."""
    driver.execute("BEGIN IMMEDIATE")
    driver.execute(f"INSERT INTO events ({_COLUMNS}) VALUES {_marks(len(row))}", row)
    driver.execute("COMMIT")


class GroupCommit:
    """Leader group commit: the first thread of a batch writes for all that wait."""

    def __init__(self, path: Path, synchronous: str = "FULL") -> None:
        self._driver = connect(path, synchronous)
        self._lock = Lock()
        self._waiting: deque[tuple[Row, Lock]] = deque()
        self._served: set[int] = set()
        self._has_leader = False

    def record(self, customer: str) -> None:
        """Return when the event and what it adds are on disk."""
        turn = Lock()
        turn.acquire()
        with self._lock:
            self._waiting.append((event_row(customer), turn))
            leads = not self._has_leader
            self._has_leader = True
        if not leads:
            turn.acquire()
            with self._lock:
                if id(turn) in self._served:
                    self._served.remove(id(turn))
                    return
        self._lead(turn)

    def close(self) -> None:
        """Close the file."""
        self._driver.close()

    def _lead(self, own: Lock) -> None:
        with self._lock:
            count = min(len(self._waiting), _MAX_BATCH)
            batch = [self._waiting.popleft() for _ in range(count)]
        self._write([row for row, _ in batch])
        with self._lock:
            self._has_leader = bool(self._waiting)
            successor = self._waiting[0][1] if self._waiting else None
            self._served.update(id(turn) for _, turn in batch if turn is not own)
        for _, turn in batch:
            if turn is not own:
                turn.release()
        if successor is not None:
            successor.release()

    def _write(self, rows: list[Row]) -> None:
        added: dict[tuple[str, str], int] = {}
        for row in rows:
            added[row[1], row[2]] = added.get((row[1], row[2]), 0) + row[3]
        last_at = rows[-1][5]
        minute = last_at - last_at % 60_000
        buckets = [
            value
            for (customer, meter), total in sorted(added.items())
            for value in (customer, meter, 0, minute, total, 0, last_at)
        ]
        totals = [
            value
            for (customer, meter), total in sorted(added.items())
            for value in (customer, meter, 0, total, total)
        ]
        run = self._driver.execute
        run("BEGIN IMMEDIATE")
        run(
            f"INSERT INTO events ({_COLUMNS}) VALUES {_marks(13, len(rows))} "
            "ON CONFLICT DO NOTHING",
            [value for row in rows for value in row],
        )
        run(
            f"INSERT INTO buckets VALUES {_marks(7, len(added))} ON CONFLICT DO UPDATE SET "
            "total = buckets.total + excluded.total, last_at = excluded.last_at",
            buckets,
        )
        run(
            f"INSERT INTO totals VALUES {_marks(5, len(added))} ON CONFLICT DO UPDATE SET "
            "total = totals.total + excluded.total, events = totals.events + excluded.events",
            totals,
        )
        run("COMMIT")


def _marks(columns: int, rows: int = 1) -> str:
    return ", ".join([f"({', '.join('?' * columns)})"] * rows)
