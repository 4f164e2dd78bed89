"""The clerk: does what is due now and then beside the shipping, and may take long.

Each duty runs in a thread of its own while there is something to do, so that a slow mail server
holds up neither a webhook nor the reading of subscriptions. Knows nothing of what the duties are.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from . import logs
from .errors import C2MeterError

logger: logs.Log = logs.logger(__name__)

#: Duties are looked at this often.
POLL_S = 1.0
#: A duty that fails is left alone for this long.
PAUSE_S = 5.0
#: A stopping clerk waits this long for duties under way.
STOP_S = 6.0


class Duty(Protocol):
    """Something to be done now and then."""

    @property
    def name(self) -> str:
        """For logs and threads."""

    def is_due(self) -> bool:
        """Whether there is something to do now; cheap."""

    def work(self) -> None:
        """Do some of it: little enough that a stop is not kept waiting."""


class Clerk:
    """Does *duties* until stopped."""

    def __init__(self, duties: Sequence[Duty]) -> None:
        self._duties = duties
        self._woken = threading.Event()
        self._is_stopping = False
        #: When a stopping clerk waits no longer, by the monotonic clock.
        self._ends = 0.0
        self._thread: threading.Thread | None = None
        self._mutex = threading.Lock()
        self._busy: dict[str, threading.Thread] = {}
        #: Duty -> until when it is left alone, by the monotonic clock.
        self._paused: dict[str, float] = {}

    def start(self) -> None:
        """Run as a daemon thread of this process, unless it does already."""
        if not self.is_running:
            self._thread = threading.Thread(target=self.run, name="c2meter-clerk", daemon=True)
            self._thread.start()

    @property
    def is_running(self) -> bool:
        """Whether its thread lives."""
        return self._thread is not None and self._thread.is_alive()

    def stop(self) -> None:
        """Ask :meth:`run` to end; safe in a signal handler."""
        self._is_stopping = True
        self._ends = time.monotonic() + STOP_S
        self._woken.set()

    def run(self) -> None:
        """Do what is due until :meth:`stop`; then wait for what is under way."""
        while not self._is_stopping:
            for duty in self._duties:
                if duty.name not in self._busy and self._is_due(duty):
                    self._begin(duty)
            self._woken.wait(POLL_S)
            self._woken.clear()
        self.join()

    def join(self) -> None:
        """Wait for what is under way, but not for long: it is begun anew elsewhere."""
        deadline = self._ends
        with self._mutex:
            busy = list(self._busy.values())
        for thread in busy:
            thread.join(max(0.0, deadline - time.monotonic()))

    def run_once(self) -> None:
        """Do, in this thread, all that is due."""
        for duty in self._duties:
            while not self._is_stopping and self._is_due(duty):
                self._work(duty)

    def _begin(self, duty: Duty) -> None:
        thread = threading.Thread(
            target=self._do, args=(duty,), name=f"c2meter-{duty.name}", daemon=True
        )
        # One that cannot be started must not count as busy, nor end this one.
        with self._guard(duty), self._mutex:
            thread.start()
            self._busy[duty.name] = thread

    def _do(self, duty: Duty) -> None:
        try:
            while not self._is_stopping and self._is_due(duty):
                self._work(duty)
        finally:
            with self._mutex:
                del self._busy[duty.name]

    def _is_due(self, duty: Duty) -> bool:
        if time.monotonic() < self._paused.get(duty.name, 0.0):
            return False
        with self._guard(duty):
            return duty.is_due()
        return False

    def _work(self, duty: Duty) -> None:
        with self._guard(duty):
            duty.work()

    @contextmanager
    def _guard(self, duty: Duty) -> Iterator[None]:
        """A duty that fails pauses, and neither it nor the others end."""
        try:
            yield
        except C2MeterError as exc:
            logger.warning("duty_waits", duty=duty.name, error=exc)
        except Exception:
            logger.exception("duty_failed", duty=duty.name)
        else:
            return
        self._paused[duty.name] = time.monotonic() + PAUSE_S
