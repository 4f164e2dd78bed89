"""Group commit: many callers, one transaction, and what happens when the store fails."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import pytest

from flask_c2meter.errors import CorruptStore, InvalidEvent, StoreUnavailable
from flask_c2meter.model import Aggregation, Meter, UsageEvent, new_id
from flask_c2meter.recorder import Recorder
from flask_c2meter.store import MAX_BATCH, Entry, Spill, encode, open_store
from flask_c2meter.store.sqlite import SqliteStore

NOW = datetime(2026, 1, 15, 12, tzinfo=UTC)
METERS = {"verify": Meter("verify", "Verify", "verify.completed", "verify", Aggregation.SUM)}


class WatchedStore(SqliteStore):
    """A real store that notes its batches, can be made to fail, and to wait."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, METERS)
        self.batches: list[int] = []
        self.failure: BaseException | None = None
        self.entered = threading.Event()
        self.may_go = threading.Event()
        self.may_go.set()

    def append(self, entries: Sequence[Entry]) -> list[bool]:
        self.batches.append(len(entries))
        self.entered.set()
        assert self.may_go.wait(20)
        if self.failure is not None:
            raise self.failure
        return super().append(entries)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[WatchedStore]:
    store = WatchedStore(tmp_path / "ledger.db")
    yield store
    store.close()


@pytest.fixture
def spill(tmp_path: Path) -> Spill:
    return Spill(tmp_path / "spill")


def entry(key: str | None = None, units: int = 1) -> Entry:
    return Entry(encode(UsageEvent(key or new_id(), "cus_1", "verify", units, 0, NOW, NOW)))


@contextmanager
def callers(recorder: Recorder, *entries: Entry) -> Iterator[list[object]]:
    """One thread for each entry; their results, in any order, when the block is left."""
    results: list[object] = []

    def call(entry: Entry) -> None:
        try:
            results.append(recorder.record(entry))
        except Exception as exc:
            results.append(exc)

    threads = [threading.Thread(target=call, args=(entry,)) for entry in entries]
    for thread in threads:
        thread.start()
    yield results
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive(), "a caller waits for ever"


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def waiting(recorder: Recorder) -> int:
    return len(recorder._waiting)


def test_a_recorded_event_is_in_the_store_when_record_returns(
    store: WatchedStore, spill: Spill
) -> None:
    recorder = Recorder(store, spill)
    assert recorder.record(entry("k")) is True
    assert store.find("cus_1", "verify", "k") is not None
    assert recorder.record(entry("k")) is False
    assert spill.is_empty


def test_a_lone_caller_pays_one_commit(store: WatchedStore, spill: Spill) -> None:
    recorder = Recorder(store, spill)
    for _ in range(3):
        recorder.record(entry())
    assert store.batches == [1, 1, 1]


def test_those_who_wait_share_one_transaction(store: WatchedStore, spill: Spill) -> None:
    recorder = Recorder(store, spill)
    store.may_go.clear()
    with callers(recorder, *(entry() for _ in range(20))) as results:
        eventually(lambda: waiting(recorder) == 19)
        store.may_go.set()
    assert results == [True] * 20
    assert store.batches == [1, 19]
    assert len(store.events()) == 20


def test_more_than_the_largest_batch_takes_several(store: WatchedStore, spill: Spill) -> None:
    recorder = Recorder(store, spill)
    store.may_go.clear()
    with callers(recorder, *(entry() for _ in range(MAX_BATCH + 11))) as results:
        eventually(lambda: waiting(recorder) == MAX_BATCH + 10)
        store.may_go.set()
    assert results == [True] * (MAX_BATCH + 11)
    assert store.batches == [1, MAX_BATCH, 10]


def test_one_key_from_fifty_threads_is_new_once(store: WatchedStore, spill: Spill) -> None:
    """Case 13."""
    recorder = Recorder(store, spill)
    with callers(recorder, *(entry("k") for _ in range(50))) as results:
        pass
    assert sorted(map(bool, results)) == [False] * 49 + [True]
    assert len(store.events()) == 1


def test_every_caller_of_many_is_served(store: WatchedStore, spill: Spill) -> None:
    recorder = Recorder(store, spill)

    def work() -> None:
        for _ in range(20):
            recorder.record(entry())

    threads = [threading.Thread(target=work) for _ in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(store.events()) == 64 * 20
    assert len(store.batches) < 64 * 20


# -- a failing store -------------------------------------------------------------------------------


@pytest.mark.parametrize("failure", [StoreUnavailable("locked"), CorruptStore("damaged")])
def test_while_the_store_fails_events_are_spilled(
    store: WatchedStore, spill: Spill, failure: Exception
) -> None:
    recorder = Recorder(store, spill)
    store.failure = failure
    assert recorder.record(entry("k")) is True
    assert recorder.store_is_failing
    assert not recorder.is_closed
    assert spill.pending() == 1


def test_a_failed_store_is_left_alone_for_a_second(store: WatchedStore, spill: Spill) -> None:
    recorder = Recorder(store, spill)
    store.failure = StoreUnavailable("locked")
    for _ in range(5):
        recorder.record(entry())
    assert len(store.batches) == 1
    assert spill.pending() == 5


def test_when_the_store_is_back_it_is_used_again(store: WatchedStore, spill: Spill) -> None:
    recorder = Recorder(store, spill)
    store.failure = StoreUnavailable("locked")
    recorder.record(entry("a"))
    store.failure = None
    eventually(lambda: not recorder.store_is_failing)
    recorder.record(entry("b"))
    assert [event.key for event in store.events()] == ["b"]
    spill.replay(lambda rows: store.append([Entry(row) for row in rows]))
    assert {event.key for event in store.events()} == {"a", "b"}


def test_spilled_events_keep_their_order_and_batch(store: WatchedStore, spill: Spill) -> None:
    recorder = Recorder(store, spill)
    store.failure = StoreUnavailable("locked")
    store.may_go.clear()
    with callers(recorder, *(entry() for _ in range(9))) as results:
        eventually(lambda: waiting(recorder) == 8)
        store.may_go.set()
    assert results == [True] * 9
    assert spill.pending() == 9


@pytest.mark.parametrize("on_failure", ["spill", "refuse"])
def test_when_nothing_can_be_written_callers_are_told_and_the_door_is_closed(
    store: WatchedStore, tmp_path: Path, on_failure: Literal["spill", "refuse"]
) -> None:
    (tmp_path / "file").touch()
    recorder = Recorder(store, Spill(tmp_path / "file" / "spill"), on_failure)
    assert not recorder.is_closed
    store.failure = StoreUnavailable("locked")
    with callers(recorder, *(entry() for _ in range(4))) as results:
        pass
    assert [type(result) for result in results] == [StoreUnavailable] * 4
    assert recorder.is_closed
    assert store.events() == []
    store.failure = None
    eventually(lambda: not recorder.is_closed and not recorder.store_is_failing)
    assert recorder.record(entry()) is True


def test_refusing_never_spills(store: WatchedStore, spill: Spill) -> None:
    recorder = Recorder(store, spill, "refuse")
    store.failure = StoreUnavailable("locked")
    with pytest.raises(StoreUnavailable):
        recorder.record(entry())
    assert spill.is_empty


def test_what_a_fault_of_ours_would_lose_is_spilled(store: WatchedStore, spill: Spill) -> None:
    recorder = Recorder(store, spill)
    store.failure = ZeroDivisionError()
    with callers(recorder, *(entry() for _ in range(4))) as results:
        pass
    assert results == [True] * 4
    assert spill.pending() == 4


def test_an_event_that_cannot_be_fails_alone(store: WatchedStore, spill: Spill) -> None:
    recorder = Recorder(store, spill)
    store.append([entry(units=10**15 - 1) for _ in range(1000)])
    with callers(recorder, entry(), entry(units=10**15 - 1), entry()) as results:
        pass
    assert Counter(map(type, results)) == {bool: 2, InvalidEvent: 1}
    assert spill.is_empty


# -- callers that are taken away -------------------------------------------------------------------


class Interrupted(BaseException):
    """As a signal handler or a greenlet's timeout raises it."""


def test_no_caller_takes_an_interrupted_leaders_silence_for_success(
    store: WatchedStore, spill: Spill
) -> None:
    recorder = Recorder(store, spill)
    store.may_go.clear()
    died: list[BaseException] = []

    def lead() -> None:
        try:
            recorder.record(entry())
        except Interrupted as exc:
            died.append(exc)

    first = threading.Thread(target=lead)
    first.start()
    assert store.entered.wait(10)
    with callers(recorder, *(entry() for _ in range(3))) as results:
        eventually(lambda: waiting(recorder) == 3)
        store.entered.clear()
        store.failure = Interrupted()
        # The second batch is led by one of the three: it is interrupted, the two others told.
        threading.excepthook, before = lambda args: None, threading.excepthook
        try:
            store.may_go.set()
            first.join(10)
            eventually(lambda: len(results) == 2)
        finally:
            threading.excepthook = before
    assert len(died) == 1
    assert [type(result) for result in results] == [StoreUnavailable] * 2
    store.failure = None
    assert recorder.record(entry()) is True


@pytest.mark.parametrize("is_next", [True, False])
def test_a_waiting_caller_that_is_taken_away_blocks_nobody(
    store: WatchedStore, spill: Spill, is_next: bool
) -> None:
    recorder = Recorder(store, spill)

    def interrupt(number: int, frame: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGUSR1, interrupt)
    store.may_go.clear()
    try:
        with callers(recorder, entry()) as first:
            assert store.entered.wait(10)
            main = threading.main_thread().ident
            assert main is not None

            def signal_main() -> None:
                eventually(lambda: waiting(recorder) == (1 if is_next else 2))
                signal.pthread_kill(main, signal.SIGUSR1)

            with callers(recorder, *([] if is_next else [entry()])) as second:
                if not is_next:
                    eventually(lambda: waiting(recorder) == 1)
                killer = threading.Thread(target=signal_main)
                killer.start()
                with pytest.raises(Interrupted):
                    recorder.record(entry("gone"))
                killer.join()
                store.may_go.set()
    finally:
        signal.signal(signal.SIGUSR1, before)

    assert [*first, *second] == [True] * (1 if is_next else 2)
    assert recorder.record(entry()) is True
    assert store.find("cus_1", "verify", "gone") is None


def test_two_recorders_share_a_store(tmp_path: Path) -> None:
    """As two processes do."""
    url = f"sqlite:///{tmp_path}/ledger.db"
    stores = [open_store(url, METERS) for _ in range(2)]
    recorders = [Recorder(store, Spill(tmp_path / "spill")) for store in stores]
    threads = [
        threading.Thread(target=lambda r=recorder: [r.record(entry()) for _ in range(30)])
        for recorder in recorders
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(stores[0].events()) == 240
    for store in stores:
        store.close()
