"""The worker: everything that happens outside of requests, in one process.

A courier ships, a clerk does the rest. The same class runs as daemon threads inside a web process
and as ``flask c2meter worker``. It is the only part that speaks to Stripe, mail servers and
webhook receivers.
"""

from __future__ import annotations

from collections.abc import Callable

from .clerk import Clerk
from .courier import Courier


class Worker:
    """A courier and a clerk, started and stopped together.

    :param courier: None without a Stripe key: nothing is shipped.
    """

    def __init__(self, clerk: Clerk, courier: Courier | None = None) -> None:
        self._clerk = clerk
        self._courier = courier

    def start(self) -> None:
        """Run as daemon threads of this process, unless they do already."""
        if self._courier is not None:
            self._courier.start()
        self._clerk.start()

    @property
    def is_complete(self) -> bool:
        """Whether all of its threads live."""
        return self._clerk.is_running and (self._courier is None or self._courier.is_running)

    @property
    def is_running(self) -> bool:
        """Whether any of its threads lives."""
        courier = self._courier
        return self._clerk.is_running or (courier is not None and courier.is_running)

    def wake(self) -> None:
        """Something was recorded: ship it now."""
        if self._courier is not None:
            self._courier.wake()

    def stop(self) -> None:
        """Ask :meth:`run` to end; safe in a signal handler."""
        self._clerk.stop()
        if self._courier is not None:
            self._courier.stop()

    def run(self) -> None:
        """Work until :meth:`stop`; then finish what is under way."""
        if self._courier is None:
            self._clerk.run()
            return
        self._clerk.start()
        self._courier.run()
        self._clerk.join()

    def run_once(
        self, patience_s: float = 0.0, progress: Callable[[int], None] = lambda settled: None
    ) -> None:
        """Work until nothing is due, then return.

        :param patience_s: also wait for retries of shipments due within this time.
        :param progress: told now and then how many shipments have been settled.
        """
        # What the clerk learns or decides may be something to ship.
        self._clerk.run_once()
        if self._courier is not None:
            self._courier.run_once(patience_s, progress)
            self._clerk.run_once()
