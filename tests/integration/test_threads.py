"""A machine that has no thread to give: what needs one waits for it, and nothing is lost."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from queue import SimpleQueue
from threading import Event

import pytest
from flask_host import wait_until

from flask_c2meter import clerk
from flask_c2meter.clerk import Clerk
from flask_c2meter.senders import MAX_SENDERS, RELEASED, Senders, Sent
from flask_c2meter.shipment import Outcome, Shipment

SHIPMENT = Shipment("id-1", "cus_1", "sign", 1, datetime(2026, 1, 15, tzinfo=UTC))


@contextmanager
def no_threads() -> Iterator[None]:
    """Within, none can be started: each would want more memory than there is."""
    before = threading.stack_size(1 << 46)
    try:
        yield
    finally:
        threading.stack_size(before)


class Errand:
    """A duty that is to be done once."""

    name = "errand"

    def __init__(self) -> None:
        self.is_wanted = False
        self.is_done = Event()

    def is_due(self) -> bool:
        return self.is_wanted and not self.is_done.is_set()

    def work(self) -> None:
        self.is_done.set()


def test_a_duty_without_a_thread_is_done_when_there_is_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(clerk, "PAUSE_S", 0.01)
    errand = Errand()
    working = Clerk([errand])
    working.start()
    with no_threads():
        errand.is_wanted = True
        wait_until(lambda: "duty=errand" in caplog.text)
    assert errand.is_done.wait(10)
    working.stop()
    working.join()


def test_a_sender_that_cannot_be_had_is_hired_later() -> None:
    inbox: SimpleQueue[Sent | None] = SimpleQueue()
    senders = Senders(lambda batch: [RELEASED] * len(batch), inbox)
    with no_threads():
        with pytest.raises(RuntimeError):
            senders.put([[SHIPMENT]])
        for _ in range(MAX_SENDERS):
            with pytest.raises(RuntimeError):
                senders.hire()
    senders.hire()
    sent = inbox.get(timeout=10)
    assert sent is not None and list(sent.shipments) == [SHIPMENT]
    senders.dismiss()


def test_those_at_work_do_without_a_sender_that_cannot_be_had() -> None:
    inbox: SimpleQueue[Sent | None] = SimpleQueue()
    has_begun, may_end = Event(), Event()

    def send(batch: Sequence[Shipment]) -> list[Outcome]:
        has_begun.set()
        may_end.wait(10)
        return [RELEASED] * len(batch)

    senders = Senders(send, inbox)
    senders.put([[SHIPMENT]])
    assert has_begun.wait(10)
    with no_threads():
        senders.put([[SHIPMENT]])
    may_end.set()
    assert [inbox.get(timeout=10) is not None for _ in range(2)] == [True, True]
    senders.dismiss()
