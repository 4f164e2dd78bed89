"""Waiting for outcomes: never longer than was said, however short that is."""

from __future__ import annotations

import threading
import time
from queue import Empty, SimpleQueue

import pytest

from flask_c2meter.senders import take


def test_what_is_there_comes_at_once() -> None:
    inbox: SimpleQueue[int] = SimpleQueue()
    inbox.put(1)
    inbox.put(2)
    assert [take(inbox, 0.0), take(inbox, 60.0)] == [1, 2]
    with pytest.raises(Empty):
        take(inbox, 0.0)


def test_what_comes_meanwhile_ends_the_wait() -> None:
    inbox: SimpleQueue[int] = SimpleQueue()
    threading.Timer(0.01, inbox.put, [1]).start()
    assert take(inbox, 60.0) == 1


@pytest.mark.timeout(30)
def test_a_wait_that_is_over_before_it_begins_ends() -> None:
    """A plain ``SimpleQueue.get`` waits for ever here, after a thousand tries or so."""
    inbox: SimpleQueue[int] = SimpleQueue()
    ends_s = time.monotonic() + 1
    while time.monotonic() < ends_s:
        inbox.put(1)
        take(inbox, 0.0)
        with pytest.raises(Empty):
            take(inbox, 1e-9)
