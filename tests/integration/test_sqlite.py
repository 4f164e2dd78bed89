"""One SQLite file: its pragmas, its schema, many processes, forks, and files that go wrong."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, event, inspect, text

from flask_c2meter.errors import ConfigError, CorruptStore, StoreUnavailable
from flask_c2meter.model import Aggregation, Meter, UsageEvent, new_id, to_ms
from flask_c2meter.store import SCHEMA_VERSION, Claimant, Entry, LaneTour, Store, encode, open_store
from flask_c2meter.store.sqlite import SqliteStore
from flask_c2meter.store.tables import metadata

NOW = datetime(2026, 1, 15, 12, tzinfo=UTC)
MONTH = datetime(2026, 1, 1, tzinfo=UTC)
METERS = {"verify": Meter("verify", "Verify", "verify.completed", "verify", Aggregation.SUM)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "instance" / "ledger.db"


@pytest.fixture
def store(path: Path) -> Iterator[SqliteStore]:
    store = SqliteStore(path, METERS)
    yield store
    store.close()


def record(store: Store, *keys: str, customer: str = "cus_1", at: datetime = NOW) -> list[bool]:
    return store.append(
        [Entry(encode(UsageEvent(key, customer, "verify", 1, 0, at, at))) for key in keys]
    )


def keys(store: Store) -> list[str]:
    return [event.key for event in store.events()]


def read(path: Path, statement: str) -> list[tuple[Any, ...]]:
    """As an operator with the sqlite3 shell would."""
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(statement).fetchall()


# -- opening ---------------------------------------------------------------------------------------


def test_making_a_store_touches_no_disk(path: Path, store: SqliteStore) -> None:
    assert not path.parent.exists()
    store.check()
    assert not path.parent.exists()
    record(store, "k")
    assert path.exists()


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///", "sqlite:///:memory:", "mysql://x/y"])
def test_a_database_that_would_not_be_durable_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="C2METER_DATABASE_URL"):
        open_store(url, METERS)


@pytest.mark.parametrize(("durability", "synchronous"), [("full", 2), ("relaxed", 1)])
def test_every_connection_has_its_pragmas(path: Path, durability: Any, synchronous: int) -> None:
    """WAL and, unless relaxed, synchronous=FULL: NORMAL loses acked events at power loss (P1)."""
    with closing(SqliteStore(path, METERS, durability)) as store:

        def pragma(connection: Any, name: str) -> object:
            return connection.execute(text(f"PRAGMA {name}")).scalar()

        with store.writing() as writer, store.reading() as one, store.reading() as two:
            for connection in (writer, one, two):
                assert pragma(connection, "journal_mode") == "wal"
                assert pragma(connection, "synchronous") == synchronous
                assert pragma(connection, "foreign_keys") == 1
        record(store, "k")
        store.close()
        with store.writing() as reopened:
            assert pragma(reopened, "synchronous") == synchronous


def statements_of(store: SqliteStore, action: Callable[[], object]) -> list[str]:
    """The SQL that *action* runs on the writer's connection."""
    statements: list[str] = []
    with store.writing() as connection:
        driver: Any = connection.connection.driver_connection
    driver.set_trace_callback(statements.append)
    try:
        action()
    finally:
        driver.set_trace_callback(None)
    return statements


def test_a_write_transaction_begins_immediate(store: SqliteStore) -> None:
    """A deferred one that reads first fails at once when another process writes meanwhile."""

    def write() -> None:
        record(store, "k")
        store.note("n", 1)
        store.exchange(Claimant("o", 0, ["verify"], 0), LaneTour(), 0)

    begins = [text for text in statements_of(store, write) if text.upper().startswith("BEGIN")]
    assert begins == ["BEGIN IMMEDIATE"] * 3


def test_a_batch_is_a_handful_of_statements_whatever_its_size(store: SqliteStore) -> None:
    def statements(number: int) -> int:
        names = [new_id() for _ in range(number)]
        return len(statements_of(store, lambda: record(store, *names)))

    record(store, new_id())  # the first one also sets how long to wait for a lock
    assert statements(1) == statements(200) <= 6


def test_the_write_ahead_log_is_grown_once(path: Path, store: SqliteStore) -> None:
    record(store, "k")
    assert Path(f"{path}-wal").stat().st_size == 4 * 1024 * 1024
    record(store, *(new_id() for _ in range(300)))
    assert Path(f"{path}-wal").stat().st_size == 4 * 1024 * 1024


# -- schema ----------------------------------------------------------------------------------------


def test_the_file_is_created_with_the_schema_of_this_version(
    path: Path, store: SqliteStore
) -> None:
    record(store, "k")
    assert read(path, "SELECT version_num FROM c2meter_schema_version") == [(SCHEMA_VERSION,)]


def test_the_migrations_give_exactly_the_tables_of_the_code(path: Path, tmp_path: Path) -> None:
    with closing(SqliteStore(path, METERS)) as store:
        assert store.upgrade() == ""
        assert store.upgrade() == SCHEMA_VERSION
    plain = create_engine(f"sqlite:///{tmp_path}/plain.db")
    metadata.create_all(plain)
    plain.dispose()

    migrated = _schema(path)
    del migrated["c2meter_schema_version"]
    assert migrated == _schema(tmp_path / "plain.db")
    assert set(migrated) == set(metadata.tables)


def _schema(path: Path) -> dict[str, Any]:
    engine = create_engine(f"sqlite:///{path}")
    inspector = inspect(engine)
    found = {
        table: {
            "columns": [{**c, "type": str(c["type"])} for c in inspector.get_columns(table)],
            "key": inspector.get_pk_constraint(table),
            "foreign": inspector.get_foreign_keys(table),
            "unique": inspector.get_unique_constraints(table),
            "sql": _sql(engine, table),
        }
        for table in inspector.get_table_names()
    }
    engine.dispose()
    return found


def _sql(engine: Any, table: str) -> list[str]:
    with engine.connect() as connection:
        query = "SELECT sql FROM sqlite_master WHERE tbl_name = :name AND sql IS NOT NULL"
        return sorted(connection.execute(text(query), {"name": table}).scalars())


def test_a_schema_newer_than_the_code_is_left_alone_and_said(path: Path) -> None:
    with closing(SqliteStore(path, METERS)) as store:
        record(store, "k")
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE c2meter_schema_version SET version_num = '9999'")
    with closing(SqliteStore(path, METERS)) as store:
        with pytest.raises(StoreUnavailable, match=r"9999.*upgrade flask_c2meter"):
            record(store, "l")
    assert read(path, "SELECT key FROM events") == [("k",)]


_CREATE = """
import sys
from datetime import UTC, datetime
from flask_c2meter.model import Aggregation, Meter, UsageEvent, new_id
from flask_c2meter.store import Entry, encode, open_store

meters = {"verify": Meter("verify", "V", "v", "v", Aggregation.SUM)}
now = datetime(2026, 1, 15, 12, tzinfo=UTC)
store = open_store(f"sqlite:///{sys.argv[1]}", meters)
print("ready", flush=True)
sys.stdin.readline()
for _ in range(int(sys.argv[2])):
    store.append([Entry(encode(UsageEvent(new_id(), "cus_1", "verify", 1, 0, now, now)))])
"""


def test_processes_that_create_the_file_at_once_share_it(path: Path, store: SqliteStore) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _CREATE, str(path), "25"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    outcomes = []
    for process in processes:  # all are loaded: let them go together
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        _, errors = process.communicate(timeout=60)
        outcomes.append((process.returncode, errors))
    assert outcomes == [(0, "")] * 3
    assert store.standing("cus_1").totals == {("verify", MONTH): 75}
    assert list(store.verify()) == []


def test_stores_of_one_process_that_create_their_files_at_once_do_not_meet(tmp_path: Path) -> None:
    """Alembic keeps the migration under way in globals."""
    stores = [SqliteStore(tmp_path / f"{number}.db", METERS) for number in range(4)]
    together = threading.Barrier(len(stores), timeout=20)
    outcomes: list[object] = []

    def create(store: SqliteStore) -> None:
        together.wait()
        try:
            outcomes.append(record(store, "k"))
        except Exception as exc:
            outcomes.append(exc)

    threads = [threading.Thread(target=create, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == [[True]] * 4
    for store in stores:
        assert read(store.path, "SELECT version_num FROM c2meter_schema_version") == [
            (SCHEMA_VERSION,)
        ]
        store.close()


@pytest.mark.parametrize("name", ["100%.db", "what%3f.db", "a#b.db", "with space.db"])
def test_a_file_may_have_any_name(tmp_path: Path, name: str) -> None:
    store = open_store(f"sqlite:///{tmp_path}/{name}", METERS)
    record(store, "k")
    assert keys(store) == ["k"]
    store.close()
    assert (tmp_path / name).exists()


_TRY_TO_WRITE = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None)
try:
    connection.execute("BEGIN IMMEDIATE")
    print("free")
except sqlite3.OperationalError as exc:
    print(exc)
"""


def test_another_store_of_the_process_that_opens_and_closes_ends_no_lock(
    path: Path, store: SqliteStore
) -> None:
    """The kernel drops all of a process's locks on a file when any descriptor of it is closed."""
    record(store, "k")
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        other = SqliteStore(path, METERS)
        assert other.standing("cus_1").totals == {("verify", MONTH): 1}
        other.close()
        seen = subprocess.run(
            [sys.executable, "-c", _TRY_TO_WRITE, str(path)], capture_output=True, text=True
        )
    assert seen.stdout == "database is locked\n", seen.stderr


# -- threads and forks -----------------------------------------------------------------------------


def test_64_threads_write_and_read_one_store(store: SqliteStore) -> None:
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for _ in range(5):
                record(store, new_id(), customer=f"cus_{number % 8}")
                store.standing(f"cus_{number % 8}")
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert store.counts()["verify"].recorded == 320
    assert list(store.verify()) == []


class Child:
    """A forked child that does *steps* one by one, each when told to."""

    def __init__(self, *steps: Callable[[], object]) -> None:
        self._told, tell = os.pipe()
        answers, self._answer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            signal.alarm(60)  # whatever happens, it does not outlive the test for long
            os.close(tell)
            self._live(steps)
        os.close(self._told)
        os.close(self._answer)
        self._tell, self._answers = tell, answers

    def _live(self, steps: tuple[Callable[[], object], ...]) -> None:
        status = 1
        try:
            for step in steps:
                if not os.read(self._told, 1):
                    break
                step()
                os.write(self._answer, b"1")
            os.read(self._told, 1)
            status = 0
        finally:
            os._exit(status)

    def step(self) -> None:
        os.write(self._tell, b"1")
        assert os.read(self._answers, 1) == b"1", "the child failed"

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def end(self) -> None:
        os.close(self._tell)
        os.close(self._answers)
        os.waitpid(self.pid, 0)


def test_a_child_of_a_process_with_an_open_store_records_and_nothing_breaks(
    path: Path, store: SqliteStore
) -> None:
    record(store, "before")
    ours = SqliteStore(path, METERS)

    def first() -> None:
        store.abandon()
        record(ours, "child 1")

    child = Child(first, lambda: record(ours, "child 2"))
    try:
        child.step()
        record(store, "parent")
        child.step()
        record(store, "parent again")
    finally:
        child.end()
    assert keys(store) == ["before", "child 1", "parent", "child 2", "parent again"]
    assert list(store.verify()) == []


def test_what_a_child_records_survives_its_parents_close(path: Path, store: SqliteStore) -> None:
    """SQLite deletes the write-ahead log when the last one closes: the child must be seen."""
    record(store, "before")
    ours = SqliteStore(path, METERS)

    def first() -> None:
        store.abandon()
        record(ours, "child 1")

    child = Child(first, lambda: record(ours, "child 2"))
    try:
        child.step()
        store.close()
        with closing(SqliteStore(path, METERS)) as third:  # such as `flask c2meter status`
            assert keys(third) == ["before", "child 1"]
        child.step()
        child.kill()
    finally:
        child.end()
    assert keys(store) == ["before", "child 1", "child 2"]
    assert list(store.verify()) == []


def test_a_fork_while_another_thread_writes_leaves_the_child_free_to_write(
    path: Path, store: SqliteStore
) -> None:
    stop = threading.Event()
    writer = threading.Thread(
        target=lambda: [record(store, new_id()) for _ in iter(stop.is_set, True)]
    )
    writer.start()
    try:
        for number in range(10):
            ours = SqliteStore(path, METERS)
            child = Child(lambda ours=ours, number=number: record(ours, f"child {number}"))  # type: ignore[misc]
            try:
                child.step()
            finally:
                child.end()
    finally:
        stop.set()
        writer.join()
    assert {f"child {number}" for number in range(10)} <= set(keys(store))
    assert list(store.verify()) == []


def test_a_process_killed_while_it_writes_blocks_nobody(path: Path, store: SqliteStore) -> None:
    record(store, "before")
    ours = SqliteStore(path, METERS)

    def hang() -> None:
        with ours.writing() as connection:
            ours.append_on(
                connection, [Entry(encode(UsageEvent("x", "c", "verify", 1, 0, NOW, NOW)))]
            )
            os.kill(os.getpid(), signal.SIGKILL)

    child = Child(hang)
    with suppress(AssertionError):
        child.step()
    child.end()

    assert record(store, "after") == [True]
    assert keys(store) == ["before", "after"]


# -- a file in the way -----------------------------------------------------------------------------


def test_a_file_locked_by_others_is_said_in_two_seconds_and_recovers(
    path: Path, store: SqliteStore
) -> None:
    """P14; Case 8 in small. The second look is short, so that nobody waits long."""
    record(store, "before")
    with closing(sqlite3.connect(path, isolation_level=None)) as rude:
        rude.execute("BEGIN IMMEDIATE")
        for at_least, at_most in ((1.5, 2.5), (0.0, 0.5)):
            started = datetime.now(UTC)
            with pytest.raises(StoreUnavailable, match="locked"):
                record(store, "during")
            waited = (datetime.now(UTC) - started).total_seconds()
            assert at_least <= waited <= at_most
        assert keys(store) == ["before"]  # reading goes on
        rude.execute("ROLLBACK")
    assert record(store, "after") == [True]
    assert keys(store) == ["before", "after"]


def test_what_goes_wrong_for_a_reader_elsewhere_is_not_the_stores(store: SqliteStore) -> None:
    """Somebody streams from the ledger into a pipe that breaks."""
    record(store, "a")
    with pytest.raises(BrokenPipeError), store.reading():
        raise BrokenPipeError
    assert not store.is_failing
    assert keys(store) == ["a"]


def test_a_full_disk_is_said_and_recovers(path: Path, store: SqliteStore) -> None:
    record(store, "before")
    with store.writing() as connection:
        pages = connection.execute(text("PRAGMA page_count")).scalar()
        connection.execute(text(f"PRAGMA max_page_count = {pages}"))
    with pytest.raises(StoreUnavailable, match="full"):
        for _ in range(50):
            record(store, *(new_id() for _ in range(100)))
    # It is opened anew, so the limit, which belongs to the connection, is gone.
    assert record(store, "after") == [True]
    assert list(store.verify()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write read-only files")
def test_a_read_only_file_is_said(path: Path, store: SqliteStore) -> None:
    record(store, "before")
    store.close()
    path.chmod(0o400)
    with pytest.raises(StoreUnavailable):
        record(store, "during")
    path.chmod(0o600)
    assert record(store, "after") == [True]


def test_an_unlinked_file_is_never_made_anew_and_is_used_when_it_is_back(
    path: Path, store: SqliteStore
) -> None:
    record(store, "before")
    store.close()
    path.rename(path.with_suffix(".away"))
    for _ in range(3):
        with pytest.raises(StoreUnavailable, match="vanished"):
            record(store, "during")
        with pytest.raises(StoreUnavailable, match="vanished"):
            store.standing("cus_1")
        assert not path.exists()
    path.with_suffix(".away").rename(path)
    assert record(store, "after") == [True]
    assert keys(store) == ["before", "after"]


def test_a_reader_makes_no_new_file_where_the_ledger_was(path: Path, store: SqliteStore) -> None:
    """It would take the name of the write-ahead log too, with what is recorded in it."""
    record(store, "k")
    with store.reading():  # the next one needs a connection of its own
        path.rename(path.with_suffix(".away"))
        with pytest.raises(StoreUnavailable):
            store.standing("cus_1")
        assert not path.exists()
    path.with_suffix(".away").rename(path)
    assert keys(store) == ["k"]


def test_a_file_unlinked_behind_an_open_store_takes_no_more_events(
    path: Path, store: SqliteStore
) -> None:
    record(store, "before")
    path.unlink()
    for _ in range(3):
        with pytest.raises(StoreUnavailable, match="vanished"):
            record(store, "during")
    assert not path.exists()


def test_a_replaced_file_is_noticed_before_anything_is_written(
    path: Path, store: SqliteStore, tmp_path: Path
) -> None:
    record(store, "before")
    store.close()
    shutil.copy(path, tmp_path / "backup.db")
    record(store, "lost with the old file")
    store.close()
    record(store, "lost too")

    with closing(sqlite3.connect(path)) as connection:  # the old file is at rest
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    os.replace(tmp_path / "backup.db", path)
    with pytest.raises(StoreUnavailable, match="replaced"):
        record(store, "during")

    assert record(store, "after") == [True]
    assert keys(store) == ["before", "after"]


@pytest.mark.parametrize("damage", ["rubbish", "header", "middle"])
def test_a_damaged_file_is_refused_and_left_as_it_is(path: Path, damage: str) -> None:
    with closing(SqliteStore(path, METERS)) as store:
        record(store, *(new_id() for _ in range(500)))
    content = bytearray(path.read_bytes())
    if damage == "rubbish":
        content[:] = b"this is no database, it is a text of some length\n" * 200
    elif damage == "header":
        content[:16] = b"\0" * 16
    else:
        content[4096 : 60 * 1024] = os.urandom(60 * 1024 - 4096)
    path.write_bytes(content)

    with closing(SqliteStore(path, METERS)) as store:
        with pytest.raises(CorruptStore):
            store.check()
        with pytest.raises(CorruptStore, match="restore a backup"):
            record(store, "k")
        with pytest.raises(CorruptStore):
            store.counts()
    assert path.read_bytes() == content


def test_a_sound_file_passes_the_check(store: SqliteStore) -> None:
    record(store, "k")
    store.check()


# -- what reading costs ----------------------------------------------------------------------------


def plans_of(store: SqliteStore, action: Callable[[], object]) -> list[str]:
    """What SQLite does for each query of *action*, as EXPLAIN QUERY PLAN words it."""
    ran: list[tuple[str, Any]] = []
    with store.reading() as connection:
        engine = connection.engine

        def note(conn: Any, cursor: Any, statement: str, parameters: Any, *more: Any) -> None:
            ran.append((statement, parameters))

        event.listen(engine, "before_cursor_execute", note)
    action()
    event.remove(engine, "before_cursor_execute", note)
    with store.reading() as connection:
        cursor = connection.connection.cursor()
        return [
            row[3]
            for statement, parameters in ran
            if re.match("SELECT|WITH|UPDATE", statement)
            for row in cursor.execute(f"EXPLAIN QUERY PLAN {statement}", parameters).fetchall()
        ]


def test_usage_is_read_from_totals_never_from_events(store: SqliteStore) -> None:
    record(store, *(new_id() for _ in range(10)))

    plans = plans_of(store, lambda: store.standing("cus_1"))
    assert len(plans) == 2
    assert all(plan.startswith("SEARCH") for plan in plans), plans
    assert not any("events" in plan for plan in plans)


@pytest.mark.parametrize("containing", ["", "us"])
def test_customers_are_found_by_walking_the_primary_key(
    store: SqliteStore, containing: str
) -> None:
    for number in range(3):
        record(store, new_id(), customer=f"cus_{number}")
    assert store.find_customers(containing, "cus_0", 1) == ["cus_1"]
    (plan,) = plans_of(store, lambda: store.find_customers(containing, "cus_0", 1))
    assert plan == "SEARCH customers USING PRIMARY KEY (id>?)"


def test_counts_never_read_events(store: SqliteStore) -> None:
    record(store, "k")
    plans = plans_of(store, store.counts)
    flagged = "SCAN events USING COVERING INDEX events_flagged"  # Partial: the flagged ones only.
    assert plans and not any("events" in plan for plan in plans if plan != flagged)


def test_silent_streams_are_looked_for_among_the_flagged_events_only(store: SqliteStore) -> None:
    record(store, "k")
    first, *others = plans_of(store, lambda: store.silent_streams(NOW))
    assert first == "SCAN e USING INDEX events_flagged"
    assert not any(plan.startswith("SCAN") for plan in others), others


def test_claiming_walks_the_open_buckets_by_index(store: SqliteStore) -> None:
    """Case 22: the cost of a claim does not grow with the history."""
    for minute in range(3):
        record(store, new_id(), new_id(), at=NOW - timedelta(minutes=minute))

    def claim() -> None:
        claimant = Claimant("o", to_ms(NOW) + 60_000, ["verify"], 5)
        assert len(store.exchange(claimant, LaneTour(), to_ms(NOW)).claimed) == 1

    plans = plans_of(store, claim)
    assert any("buckets_open" in plan for plan in plans)
    assert not any(plan.startswith(("SCAN b", "SCAN e")) for plan in plans), plans


def test_what_is_due_again_is_found_among_the_open_shipments_only(store: SqliteStore) -> None:
    record(store, "k")
    claimant = Claimant("o", to_ms(NOW) + 60_000, ["verify"], 5)
    for look in (
        lambda: store.exchange(claimant, LaneTour(), to_ms(NOW)),
        lambda: store.next_due_ms(["verify"], to_ms(NOW)),
        lambda: store.doubts(to_ms(NOW)),
    ):
        plans = plans_of(store, look)
        assert any("shipments_open" in plan for plan in plans), plans
        assert not any(plan in ("SCAN s", "SCAN shipments") for plan in plans), plans
