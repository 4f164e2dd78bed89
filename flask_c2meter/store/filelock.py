"""A lock on a file that processes take in turn, with an end to the waiting.

``flock`` hands a contended lock over fairly but knows no timeout, and polling would give it to
whoever polls next. So the first to find it taken lets a thread wait for it; if the caller gives up
first, the thread lets go of the lock as soon as it gets it.
"""

from __future__ import annotations

import fcntl
import os
import threading


class FileLock:
    """The lock file at one open descriptor; one thread of the process at a time may ask for it.

    :param file: descriptor of the lock file, owned from now on.
    """

    def __init__(self, file: int) -> None:
        self._file = file
        self._mutex = threading.Lock()
        self._waiter: _Waiter | None = None

    def acquire(self, timeout_s: float) -> bool:
        """Take the lock; False if others held it for all of *timeout_s*."""
        with self._mutex:
            if self._waiter is None:
                try:
                    fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return True
                except BlockingIOError:
                    self._waiter = _Waiter(os.dup(self._file), self)
            waiter = self._waiter
            waiter.is_wanted = True
        waiter.has_it.wait(timeout_s)
        with self._mutex:
            waiter.is_wanted = False
            if not waiter.has_it.is_set():
                return False
            self._waiter = None
            return True

    @property
    def is_marked(self) -> bool:
        """Whether somebody has called :meth:`mark`, ever."""
        return os.fstat(self._file).st_size > 0

    def mark(self) -> None:
        """Leave a mark in the file that stays."""
        if not self.is_marked:
            os.pwrite(self._file, b"1", 0)

    def release(self) -> None:
        """Let the next one have it."""
        fcntl.flock(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the file."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)

    def granted(self, waiter: _Waiter) -> bool:
        """Called by *waiter* when it has the lock; whether somebody still wants it."""
        with self._mutex:
            if waiter.is_wanted:
                waiter.has_it.set()
            else:
                # Under the mutex: nobody can have taken the lock through the other descriptor,
                # which is the same lock to the kernel.
                fcntl.flock(waiter.file, fcntl.LOCK_UN)
                self._waiter = None
            return waiter.is_wanted


class _Waiter:
    """A thread that waits for the lock on a descriptor of its own, which outlives the owner's."""

    def __init__(self, file: int, lock: FileLock) -> None:
        self.file = file
        self.is_wanted = True
        self.has_it: threading.Event = threading.Event()
        threading.Thread(target=self._wait, args=(lock,), name="c2meter-turn", daemon=True).start()

    def _wait(self, lock: FileLock) -> None:
        fcntl.flock(self.file, fcntl.LOCK_EX)
        lock.granted(self)
        os.close(self.file)
