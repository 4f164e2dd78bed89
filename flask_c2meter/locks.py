"""Locks that a process makes for itself, when it first needs them.

One made at import or in ``init_app`` is older than the process that serves. A child of a fork may
inherit it from a thread that it does not have; and where gevent replaces locks after that, waiting
for an old one stops the whole process, not one greenlet.
"""

from __future__ import annotations

import os
import threading


class ProcessLock:
    """``with lock():`` keeps other threads of this process out."""

    def __init__(self) -> None:
        self._locks: dict[int, threading.RLock] = {}

    def __call__(self) -> threading.RLock:
        """The lock of this process."""
        pid = os.getpid()
        return self._locks.get(pid) or self._locks.setdefault(pid, threading.RLock())
