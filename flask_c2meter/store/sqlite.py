"""The store in one SQLite file: no server, no set-up, any number of processes on one host.

Promises kept here: a committed transaction survives power loss (WAL with ``synchronous=FULL``; with
``relaxed`` durability only a crash of the process); writers of all processes take turns fairly and
never see ``database is locked``; nothing is ever recreated over a damaged or vanished file.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote
from weakref import WeakSet

from sqlalchemy import Connection, Engine, QueuePool, create_engine, event, inspect, text
from sqlalchemy.exc import DBAPIError

from .. import failpoints
from ..errors import CorruptStore, StoreUnavailable
from ..locks import ProcessLock
from ..model import Meter
from .alerts import AlertPolicy
from .cursor import cursor_of
from .filelock import FileLock
from .ledger import Entry
from .schema import SCHEMA_VERSION, load_migrations, migrate
from .settings import DatabaseSettings
from .store import Store

#: Longest wait for other writers before the store counts as unavailable.
LOCK_TIMEOUT_S = 2.0
#: The same while it is known to be unavailable: a short look whether it is back.
LOOK_TIMEOUT_S = 0.1

#: A fork waits this long for those who read: SQLite has locks of its own for the whole process, and
#: one that is held at the moment of the fork is held for ever in the child.
FORK_PATIENCE_S = 2.0

#: SQLite's write-ahead log is grown to this size once: appending within a file costs fewer disk
#: writes than extending it (1.06 to 1.17 times the rate, half the p99).
_WAL_BYTES = 4 * 1024 * 1024

#: Every changed page goes to the log whole, and an event changes five: half of SQLite's usual size
#: spares an eighth of what recording costs a request; smaller ones spare no more. Of new files.
_PAGE_BYTES = 2048

#: Number -> name. ``extra`` is full, and the folder too. Source: sqlite.org/pragma.html.
_SYNCHRONOUS = ("off", "normal", "full", "full")

_CORRUPT = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class SqliteStore(Store):
    """The ledger in the SQLite file at *path*; created on first use.

    :param path: file on a local disk; its folder is created.
    :param durability: ``full`` or ``relaxed`` (see the module's promises).
    """

    def __init__(
        self,
        path: str | Path,
        meters: Mapping[str, Meter],
        durability: Literal["full", "relaxed"] = "full",
        alerts: AlertPolicy | None = None,
    ) -> None:
        super().__init__(meters, alerts or AlertPolicy(), mark="?")
        self.path: Path = Path(path)
        self._durability = durability
        self.mutex: threading.RLock = threading.RLock()
        self._opening = threading.Lock()
        #: Told when a reader leaves.
        self._calm = threading.Condition()
        self._readers = 0
        self._opened: _Opened | None = None
        self.is_failing: bool = False
        with _forking():
            _stores.add(self)

    # -- the protocol ------------------------------------------------------------------------------

    def append(self, entries: Sequence[Entry]) -> list[bool]:
        with _Turn(self) as opened:
            cursor = opened.driver.cursor()
            cursor.execute("BEGIN IMMEDIATE")
            try:
                is_new = self._append(cursor, entries, lambda: _commit(cursor))
            except BaseException:
                _roll_back(opened.driver)
                raise
            failpoints.reach("after_commit")
            return is_new

    def append_on(self, connection: Connection, entries: Sequence[Entry]) -> list[bool]:
        with self._translated():
            self.open()  # creates the tables
            self._check_is_ours(connection)
            return super().append_on(connection, entries)

    def _check_is_ours(self, connection: Connection) -> None:
        is_sqlite = connection.dialect.name == "sqlite"
        file = is_sqlite and cursor_of(connection).execute("PRAGMA database_list").fetchone()[2]
        if not file or not os.path.samefile(file, self.path):
            raise ValueError(
                f"the connection is not to {self.path.name}: only one to the database of "
                "C2METER_DATABASE_URL can take the event along"
            )

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        with _Turn(self) as opened, opened.writer.begin():
            yield opened.writer

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        with self._calm:
            self._readers += 1
        try:
            with self._translated():
                engine = self.open().engine
            with engine.connect() as connection, connection.begin():
                yield connection
        except (sqlite3.Error, DBAPIError) as exc:  # an OSError in the block is its own
            self.raise_ours(exc)
            raise
        finally:
            with self._calm:
                self._readers -= 1
                self._calm.notify_all()

    def upgrade(self) -> str:
        with self._translated():
            lock, engine = self._lock_file(), self._engine()
            try:
                with _holding(lock, LOCK_TIMEOUT_S):
                    return self._prepare(lock, engine)
            finally:
                engine.dispose()
                lock.close()

    def check(self) -> None:
        if not self.path.exists():
            return
        with self.reading() as connection:
            problem = connection.execute(text("PRAGMA quick_check(1)")).scalar()
        if problem != "ok":
            raise CorruptStore(f"{self.path.name} is damaged: {problem}. Restore it from a backup.")

    def settings(self) -> DatabaseSettings:
        with self.reading() as connection:
            journal_mode = connection.execute(text("PRAGMA journal_mode")).scalar_one()
            synchronous = connection.execute(text("PRAGMA synchronous")).scalar_one()
        return DatabaseSettings(_SYNCHRONOUS[synchronous], journal_mode, self.path)

    def close(self) -> None:
        with self.mutex:
            opened, self._opened = self._opened, None
            if opened is not None:
                opened.close()

    def abandon(self) -> None:
        # The connections stay open and unused: closing them here would end the parent's. The
        # lock must go, or a parent killed while it holds it would leave it with us.
        if self._opened is not None:
            self._opened.lock.close()

    def hold_for_fork(self) -> None:
        """Close the file and keep everybody out until :meth:`release_after_fork`."""
        self.mutex.acquire()
        self._calm.acquire()
        self._calm.wait_for(lambda: self._readers == 0, FORK_PATIENCE_S)
        self._opening.acquire()
        if self._opened is not None and not self._opened.driver.in_transaction:
            self.close()

    def release_after_fork(self) -> None:
        """Let everybody in again; the next one opens the file."""
        self._opening.release()
        self._calm.release()
        self.mutex.release()

    # -- taking turns ------------------------------------------------------------------------------

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """The driver's exceptions as ours; after a failure the file is opened anew."""
        try:
            yield
        except Exception as exc:
            self.raise_ours(exc)
            raise

    def raise_ours(self, exc: BaseException) -> None:
        """Raise our exception for the driver's *exc*; return if it is none of the driver's."""
        if isinstance(exc, sqlite3.Error | DBAPIError):
            cause = exc.orig if isinstance(exc, DBAPIError) else exc
            if isinstance(cause, sqlite3.IntegrityError | sqlite3.ProgrammingError):
                return
            self._failed(cause)
            if (getattr(cause, "sqlite_errorcode", 0) & 0xFF) in _CORRUPT:
                raise CorruptStore(
                    f"{self.path.name} is damaged ({cause}). Nothing was changed: restore a backup."
                ) from exc
            raise StoreUnavailable(f"{self.path.name}: {cause}") from exc
        if isinstance(exc, OSError):
            self._failed(exc)
            if not isinstance(exc, StoreUnavailable):
                raise StoreUnavailable(f"{self.path.name}: {exc.strerror}") from exc

    def _failed(self, cause: BaseException | None) -> None:
        self.is_failing = True
        is_busy = getattr(cause, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY
        if not (is_busy or isinstance(cause, _Locked)):
            # After a failed fsync only a new connection tells the truth.
            self.close()

    # -- opening -----------------------------------------------------------------------------------

    @property
    def patience_s(self) -> float:
        """How long to wait for others."""
        return LOOK_TIMEOUT_S if self.is_failing else LOCK_TIMEOUT_S

    def open(self) -> _Opened:
        opened = self._opened
        if opened is not None:
            return opened
        ends = time.monotonic() + self.patience_s
        if not self._opening.acquire(timeout=self.patience_s):
            raise _Locked(f"{self.path.name} is still being opened")
        try:
            if self._opened is None:
                self._opened = self._connect(max(0.0, ends - time.monotonic()))
            return self._opened
        finally:
            self._opening.release()

    def _lock_file(self) -> FileLock:
        folder = self.path.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise StoreUnavailable(
                f"{self.path.name}: the folder {folder} cannot be made: {exc.strerror}"
            ) from exc
        return FileLock(os.open(f"{self.path}-lock", os.O_RDWR | os.O_CREAT, 0o600))

    def _connect(self, patience_s: float) -> _Opened:
        lock, engine = self._lock_file(), self._engine()
        try:
            if not lock.is_marked:
                load_migrations()  # takes its time: not while others wait for the lock
            with _holding(lock, patience_s):
                self._prepare(lock, engine)
                opened = _Opened(engine, lock, os.stat(self.path))
                _grow_wal(self.path)
            return opened
        except BaseException:
            engine.dispose()
            lock.close()
            raise

    def _prepare(self, lock: FileLock, engine: Engine) -> str:
        """Create the file or bring it to this version; return the version found before.

        A mark in the lock file says that there is a ledger: one that has gone is never recreated.
        """
        if not self.path.exists():
            if lock.is_marked:
                raise StoreUnavailable(
                    f"{self.path.name} has vanished; put it back "
                    f"(to begin anew, remove {self.path.name}-lock too)"
                )
            # Before SQLite does: it holds customers' e-mail addresses. Never of a file that is
            # there: closing it would end the locks of every connection this process has to it.
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
        elif lock.is_marked and self.path.stat().st_size == 0:
            raise CorruptStore(f"{self.path.name} is empty; restore it from a backup")
        with engine.connect() as connection:
            found = _version(connection)
            if found != SCHEMA_VERSION:
                with _migrating():
                    migrate(connection)
        lock.mark()
        return found

    def _engine(self) -> Engine:
        # mode=rw: a reader must not make a new file where the ledger has vanished, for that would
        # overwrite the write-ahead log beside it.
        address = f"file:{quote(str(self.path))}?mode=rw"
        engine = create_engine(
            "sqlite://",
            creator=lambda: sqlite3.connect(
                address, timeout=LOCK_TIMEOUT_S, check_same_thread=False, uri=True
            ),
            poolclass=QueuePool,
            pool_size=16,
            max_overflow=-1,
        )
        synchronous = "FULL" if self._durability == "full" else "NORMAL"

        @event.listens_for(engine, "connect")
        def prepare(driver: sqlite3.Connection, record: object) -> None:
            driver.isolation_level = None  # we say BEGIN ourselves
            for pragma in (
                f"page_size={_PAGE_BYTES}",
                "journal_mode=WAL",
                f"synchronous={synchronous}",
                "foreign_keys=ON",
            ):
                driver.execute(f"PRAGMA {pragma}")

        @event.listens_for(engine, "begin")
        def begin(connection: Connection) -> None:
            options = connection.get_execution_options()
            connection.exec_driver_sql(options.get("c2meter_begin", "BEGIN"))

        return engine


class _Locked(StoreUnavailable):
    """Somebody else has the lock file for too long; the database itself may be fine."""


@contextmanager
def _holding(lock: FileLock, timeout_s: float) -> Iterator[None]:
    if not lock.acquire(timeout_s):
        raise _Locked("the database is locked by another process")
    try:
        yield
    finally:
        lock.release()


class _Turn:
    """One thread's right to write, in a ``with`` statement.

    SQLite's own busy handler starves (1.5 s median for the worst of 4 processes); a lock on a file
    beside it hands the turn over in a millisecond or two. A class, because a generator would cost
    each event 10 us more.
    """

    __slots__ = ("_opened", "_store")

    def __init__(self, store: SqliteStore) -> None:
        self._store = store
        self._opened: _Opened | None = None

    def __enter__(self) -> _Opened:
        patience_s = self._store.patience_s
        ends = time.monotonic() + patience_s
        if not self._store.mutex.acquire(timeout=patience_s):
            raise _Locked(f"{self._store.path.name} is in use by another thread")
        try:
            opened = self._store.open()
            if not opened.lock.acquire(max(0.0, ends - time.monotonic())):
                raise _Locked(f"{self._store.path.name} is locked by another process")
            self._opened = opened
            opened.check_same_file(self._store.path)
            opened.wait_at_most(max(0.0, ends - time.monotonic()))
            return opened
        except BaseException as exc:
            self.__exit__(type(exc), exc, None)
            raise

    def __exit__(self, kind: object, exc: BaseException | None, trace: object) -> None:
        try:
            if self._opened is not None:
                self._opened.lock.release()
            if exc is None:
                self._store.is_failing = False
            else:
                self._store.raise_ours(exc)
        finally:
            self._store.mutex.release()


class _Opened:
    """The open file: an engine for readers, one connection for the writer, the lock file."""

    def __init__(self, engine: Engine, lock: FileLock, identity: os.stat_result) -> None:
        self.engine = engine
        self.lock = lock
        self._identity = identity
        # BEGIN IMMEDIATE: a transaction that reads first and writes later could not be retried.
        self.writer: Connection = engine.connect().execution_options(
            c2meter_begin="BEGIN IMMEDIATE"
        )
        driver: Any = self.writer.connection.driver_connection
        self.driver: sqlite3.Connection = driver
        self._timeout_ms = -1

    def check_same_file(self, path: Path) -> None:
        """Refuse to write into a file that was replaced or unlinked behind us.

        :raises StoreUnavailable: what is written there would be lost.
        """
        try:
            same = os.path.samestat(self._identity, os.stat(path))
        except FileNotFoundError:
            raise StoreUnavailable(f"{path.name} has vanished; put it back") from None
        if not same:
            raise StoreUnavailable(f"{path.name} was replaced; opening the new file")

    def wait_at_most(self, seconds: float) -> None:
        """How long the next BEGIN may wait for a writer that is not one of ours."""
        timeout_ms = int(seconds * 10) * 100 if seconds > LOOK_TIMEOUT_S else int(seconds * 1000)
        if timeout_ms != self._timeout_ms:
            self.driver.execute(f"PRAGMA busy_timeout={timeout_ms:d}")
            self._timeout_ms = timeout_ms

    def close(self) -> None:
        """Close every connection and give the lock file back."""
        self.writer.close()
        self.engine.dispose()
        self.lock.close()


# A child must not inherit an open database: SQLite takes locks of the parent for its own, and when
# the parent closes, it deletes the write-ahead log into which the child still records.
# Source: sqlite.org/howtocorrupt.html, section 2.6.
_stores: WeakSet[SqliteStore] = WeakSet()
_held: list[SqliteStore] = []
_forking = ProcessLock()

# Alembic keeps the migration under way in globals of the process.
_migrating = ProcessLock()


def _before_fork() -> None:
    _forking().acquire()
    for store in _stores:
        store.hold_for_fork()
        _held.append(store)
    _migrating().acquire()


def _release_stores() -> None:
    while _held:
        _held.pop().release_after_fork()


def _after_fork() -> None:
    _migrating().release()
    _release_stores()
    _forking().release()


os.register_at_fork(
    before=_before_fork, after_in_parent=_after_fork, after_in_child=_release_stores
)


def _commit(cursor: sqlite3.Cursor) -> None:
    failpoints.reach("before_commit")
    cursor.execute("COMMIT")


def _roll_back(driver: sqlite3.Connection) -> None:
    if driver.in_transaction:
        try:
            driver.execute("ROLLBACK")
        except sqlite3.Error:  # already rolled back by SQLite: the first error tells more
            pass


def _version(connection: Connection) -> str:
    if not inspect(connection).has_table("c2meter_schema_version"):
        return ""
    found = connection.execute(text("SELECT version_num FROM c2meter_schema_version")).scalar()
    return str(found or "")


def _grow_wal(path: Path) -> None:
    """Write zeros behind the end of the write-ahead log; SQLite ignores frames without checksum."""
    try:
        wal = os.open(f"{path}-wal", os.O_RDWR)
    except FileNotFoundError:
        return
    try:
        size = os.fstat(wal).st_size
        if size < _WAL_BYTES:
            os.pwrite(wal, bytes(_WAL_BYTES - size), size)
            os.fsync(wal)
    finally:
        os.close(wal)
