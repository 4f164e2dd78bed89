"""The spill file: what is kept while the store is out of order, and how it comes back."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from flask_c2meter.errors import StoreUnavailable
from flask_c2meter.model import UsageEvent
from flask_c2meter.store import MAX_BATCH, Spill, encode
from flask_c2meter.store.ledger import Row

NOW = datetime(2026, 1, 15, 12, tzinfo=UTC)


def row(key: str, **properties: object) -> Row:
    return encode(UsageEvent(key, "cus_1", "verify", 1, 0, NOW, NOW, properties))


@pytest.fixture
def spill(tmp_path: Path) -> Spill:
    return Spill(tmp_path / "deep" / "spill.jsonl")


def replayed(spill: Spill) -> list[Row]:
    rows: list[Row] = []
    spill.replay(rows.extend)
    return rows


def test_it_makes_no_file_until_it_is_needed(spill: Spill) -> None:
    assert spill.is_empty
    assert (spill.pending(), spill.corrupt()) == (0, 0)
    assert replayed(spill) == []
    assert not spill.path.parent.exists()


def test_rows_come_back_as_they_were_and_in_order(spill: Spill) -> None:
    rows = [row("a", text="ü\u2028\n", n=None), row("b"), row("c")]
    spill.append(rows[:2])
    spill.append(rows[2:])
    assert spill.pending() == 3
    assert not spill.is_empty

    assert replayed(spill) == rows

    assert spill.is_empty
    assert list(spill.path.parent.iterdir()) == []


def test_only_its_owner_can_read_it(spill: Spill) -> None:
    spill.append([row("a")])
    assert spill.path.stat().st_mode & 0o077 == 0


def test_a_long_spill_is_replayed_in_batches(spill: Spill) -> None:
    spill.append([row(str(n)) for n in range(MAX_BATCH + 1)])
    sizes: list[int] = []
    assert spill.replay(lambda rows: sizes.append(len(rows))) == MAX_BATCH + 1
    assert sizes == [MAX_BATCH, 1]


def test_a_file_that_cannot_be_read_is_a_store_that_is_unavailable(spill: Spill) -> None:
    spill.path.mkdir(parents=True)
    for read in (lambda: replayed(spill), spill.pending):
        with pytest.raises(StoreUnavailable, match="cannot read the spill file: Is a directory"):
            read()


def test_what_cannot_be_recorded_yet_stays(spill: Spill) -> None:
    spill.append([row("a")])

    def refuse(rows: Sequence[Row]) -> None:
        raise StoreUnavailable("still locked")

    with pytest.raises(StoreUnavailable):
        spill.replay(refuse)
    spill.append([row("b")])

    assert spill.pending() == 2
    assert {row.key for row in replayed(spill)} == {"a", "b"}


@pytest.mark.parametrize("cut", [2, 20, 60])
def test_half_a_line_of_a_crash_spoils_neither_its_neighbours_nor_gets_lost(
    spill: Spill, cut: int
) -> None:
    spill.append([row("a"), row("b")])
    os.truncate(spill.path, spill.path.stat().st_size - cut)
    spill.append([row("c")])

    assert [row.key for row in replayed(spill)] == ["a", "c"]
    assert spill.corrupt() == 1


def test_a_line_that_lost_only_its_end_is_whole(spill: Spill) -> None:
    spill.append([row("a")])
    os.truncate(spill.path, spill.path.stat().st_size - 1)
    spill.append([row("b")])
    assert [row.key for row in replayed(spill)] == ["a", "b"]


@pytest.mark.parametrize("line", [b"rubbish\n", b"{}\n", b"[1,2]\n", b"null\n", b"\xff\xfe\n"])
def test_a_line_that_cannot_be_read_is_kept_beside(spill: Spill, line: bytes) -> None:
    spill.append([row("a")])
    with spill.path.open("ab") as file:
        file.write(line)
    assert [row.key for row in replayed(spill)] == ["a"]
    assert spill.corrupt_path.read_bytes() == line
    assert spill.corrupt() == 1


def test_a_changed_line_is_never_recorded(spill: Spill) -> None:
    spill.append([row("a")])
    spill.path.write_bytes(spill.path.read_bytes().replace(b"cus_1", b"cus_2"))
    assert replayed(spill) == []
    assert b"cus_2" in spill.corrupt_path.read_bytes()


def test_a_replay_that_crashed_in_the_middle_is_taken_up_again(spill: Spill) -> None:
    """Nothing is lost; what was recorded already has the same key and counts once."""
    spill.append([row("a")])

    def crash(rows: Sequence[Row]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        spill.replay(crash)
    assert [row.key for row in replayed(Spill(spill.path))] == ["a"]


def test_a_full_disk_is_said_and_leaves_whole_lines(tmp_path: Path) -> None:
    import resource
    import signal

    spill = Spill(tmp_path / "spill")
    spill.append([row("a")])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (spill.path.stat().st_size + 10, before[1]))
    try:
        with pytest.raises(StoreUnavailable, match="cannot write the spill file"):
            spill.append([row("b")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)

    spill.append([row("c")])
    assert [row.key for row in replayed(spill)] == ["a", "c"]
    assert spill.corrupt() == 0


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreUnavailable):
        Spill(tmp_path / "file" / "spill").append([row("a")])


def test_two_replays_at_once_record_nothing_twice(spill: Spill) -> None:
    spill.append([row("a")])
    entered, leave = threading.Event(), threading.Event()
    recorded: list[Row] = []

    def slowly(rows: Sequence[Row]) -> None:
        entered.set()
        assert leave.wait(10)
        recorded.extend(rows)

    thread = threading.Thread(target=spill.replay, args=(slowly,))
    thread.start()
    try:
        assert entered.wait(10)
        assert Spill(spill.path).replay(recorded.extend) == 0
        spill.append([row("b")])  # and appending does not wait for them
    finally:
        leave.set()
        thread.join()

    assert [row.key for row in recorded + replayed(spill)] == ["a", "b"]


def test_a_child_forked_while_the_file_is_locked_does_not_keep_it_locked(spill: Spill) -> None:
    spill.append([row("a")])
    hold, release = os.pipe()

    def fork(rows: Sequence[Row]) -> None:
        nonlocal child
        child = os.fork()
        if child == 0:
            os.close(release)
            os.read(hold, 1)
            os._exit(0)
        raise StoreUnavailable("not yet")

    child = 0
    try:
        with pytest.raises(StoreUnavailable):
            spill.replay(fork)
        assert [row.key for row in replayed(spill)] == ["a"]
    finally:
        os.close(release)
        os.close(hold)
        os.waitpid(child, 0)


def test_threads_and_replays_together_lose_nothing(spill: Spill) -> None:
    def append(name: int) -> None:
        for n in range(25):
            spill.append([row(f"{name}-{n}")])

    recorded: list[Row] = []
    threads = [threading.Thread(target=append, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        spill.replay(recorded.extend)
        spill.pending()
    for thread in threads:
        thread.join()
    spill.replay(recorded.extend)

    assert sorted(row.key for row in recorded) == sorted(
        f"{name}-{n}" for name in range(4) for n in range(25)
    )
