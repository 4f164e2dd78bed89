"""The spill: a local append-only file that keeps events while the store is out of order.

Each line is one row of ``events`` with its checksum, flushed to disk before the call returns. When
the store is back the lines are recorded with the same keys, so that a line replayed twice counts
once. A line that cannot be read or recorded is kept beside the file and reported, never dropped.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..errors import InvalidEvent, StoreUnavailable
from .ledger import MAX_BATCH, Row


class Spill:
    """One spill file; any number of threads and processes may use it.

    :param path: the file; it exists only while it holds something.
    """

    def __init__(self, path: str | Path) -> None:
        self.path: Path = Path(path)
        #: What is being replayed, also after a crash in the middle.
        self._replaying = self.path.with_name(self.path.name + ".replaying")
        self._files = (os.fspath(self.path), os.fspath(self._replaying))
        #: Lines that could not be read.
        self.corrupt_path: Path = self.path.with_name(self.path.name + ".corrupt")

    def append(self, rows: Sequence[Row]) -> None:
        """Keep *rows*; returns when they are on disk.

        :raises StoreUnavailable: the file cannot be written.
        """
        data = b"".join(map(_line, rows))
        try:
            with self._locked() as file:
                size = os.fstat(file).st_size
                if size and os.pread(file, 1, size - 1) != b"\n":
                    data = b"\n" + data  # a crash has left half a line
                try:
                    _write_all(file, data)
                    os.fsync(file)
                except OSError:
                    os.ftruncate(file, size)  # half a line must not spoil the next one
                    raise
                if size == 0:
                    _fsync_folder(self.path)
        except OSError as exc:
            raise StoreUnavailable(f"cannot write the spill file: {exc.strerror}") from exc

    @contextmanager
    def _locked(self) -> Iterator[int]:
        while True:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
                if _is_at(file, self.path):  # else a replay has just taken it away
                    yield file
                    return
            finally:
                _unlock(file)

    def pending(self) -> int:
        """Number of events waiting in the file.

        :raises StoreUnavailable: it cannot be read.
        """
        # A replay may rename the one to the other between the two looks: the same file counts once.
        with _reading():
            return sum(dict(map(_lines, (self.path, self._replaying))).values())

    def corrupt(self) -> int:
        """Number of lines set aside because they could not be read.

        :raises StoreUnavailable: neither can the file with them.
        """
        with _reading():
            return _lines(self.corrupt_path)[1]

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits; costs two look-ups in the folder."""
        return not any(map(os.path.exists, self._files))

    def replay(self, record: Callable[[Sequence[Row]], object]) -> int:
        """Hand every line to *record*, in batches, then remove the file.

        Another process that replays already keeps this one out.

        :param record: writes rows durably; if it raises, the rest stays for the next call.
        :return: number of rows recorded.
        :raises StoreUnavailable: the file cannot be read or removed; also what *record* raises.
        """
        with _reading():
            return self._replay(record)

    def _replay(self, record: Callable[[Sequence[Row]], object]) -> int:
        recorded = 0
        while not self.is_empty:
            if not self._replaying.exists():
                with self._locked():
                    if not self._replaying.exists():
                        os.rename(self.path, self._replaying)
            try:
                file = os.open(self._replaying, os.O_RDONLY)
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(file, self._replaying):
                    recorded += self._replay_file(file, record)
            except BlockingIOError:
                return recorded
            finally:
                _unlock(file)
        return recorded

    def _replay_file(self, file: int, record: Callable[[Sequence[Row]], object]) -> int:
        rows: list[Row] = []
        corrupt: list[bytes] = []
        with os.fdopen(os.dup(file), "rb") as lines:
            for line in lines:
                row = _parse(line)
                if row is None:
                    corrupt.append(line.rstrip(b"\n") + b"\n")
                else:
                    rows.append(row)
        for start in range(0, len(rows), MAX_BATCH):
            batch = rows[start : start + MAX_BATCH]
            try:
                record(batch)
            except InvalidEvent:
                corrupt += [_line(row) for row in batch if not _is_taken(row, record)]
        if corrupt:
            with open(self.corrupt_path, "ab") as kept:
                kept.writelines(corrupt)
                kept.flush()
                os.fsync(kept.fileno())
        os.unlink(self._replaying)
        _fsync_folder(self.path)
        return len(rows)


@contextmanager
def _reading() -> Iterator[None]:
    """Within, the operating system's exceptions are ours."""
    try:
        yield
    except StoreUnavailable:  # an OSError too: the store's own
        raise
    except OSError as exc:
        raise StoreUnavailable(f"cannot read the spill file: {exc.strerror}") from exc


def _line(row: Row) -> bytes:
    return json.dumps(row, separators=(",", ":")).encode() + b"\n"


def _is_taken(row: Row, record: Callable[[Sequence[Row]], object]) -> bool:
    try:
        record([row])
    except InvalidEvent:
        return False
    return True


def _lines(path: Path) -> tuple[int, int]:
    """Which file *path* is now, and its number of lines; nothing if there is none."""
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_ino, file.read().count(b"\n")
    except FileNotFoundError:
        return 0, 0


def _unlock(file: int) -> None:
    """Close *file*; a child forked meanwhile has it too and would keep it locked."""
    fcntl.flock(file, fcntl.LOCK_UN)
    os.close(file)


def _parse(line: bytes) -> Row | None:
    try:
        row = Row(*json.loads(line))
    except (ValueError, TypeError):
        return None
    return row if row.is_intact else None


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


def _write_all(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def _fsync_folder(path: Path) -> None:
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
