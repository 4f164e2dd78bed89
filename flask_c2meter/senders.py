"""The threads that wait for Stripe, so that the worker need not.

Batches go in, outcomes come back through the worker's inbox. Knows nothing of stores or time.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from . import logs, tracing
from .shipment import Outcome, Shipment, Verdict

logger: logs.Log = logs.logger(__name__)

T = TypeVar("T")

#: Requests under way at most, each in a thread of its own.
MAX_SENDERS = 16

#: Of a shipment that was not sent, and may be claimed again at once.
RELEASED = Outcome(Verdict.RETRY, "released", retry_after_s=0.0)


@dataclass(frozen=True, slots=True)
class Sent:
    """What a sender brings back."""

    shipments: Sequence[Shipment]
    #: One for each shipment, in the same order.
    outcomes: Sequence[Outcome]


def take(inbox: queue.SimpleQueue[T], timeout_s: float) -> T:
    """The next of *inbox*, waited for at most so long; one thread takes.

    :raises queue.Empty: nothing has come.
    """
    try:
        return inbox.get_nowait()
    except queue.Empty:
        if timeout_s <= 0:
            raise
    # Not at once, without the look before: the last put() may have left the queue's lock open, and
    # then CPython (3.11) takes a deadline that passes while it looks for none, and waits for ever.
    return inbox.get(timeout=timeout_s)


class Senders:
    """Daemon threads that send batches.

    :param send: a transport's; does not raise for what Stripe or the network does.
    :param inbox: where outcomes go.
    """

    def __init__(
        self,
        send: Callable[[Sequence[Shipment]], Sequence[Outcome]],
        inbox: queue.SimpleQueue[Sent | None],
    ) -> None:
        self._send = send
        self._inbox = inbox
        self._outbox: queue.SimpleQueue[Sequence[Shipment] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    @property
    def are_busy(self) -> bool:
        """Whether a batch waits for a sender."""
        return not self._outbox.empty()

    def put(self, batches: Sequence[Sequence[Shipment]]) -> None:
        """Send *batches* as soon as senders are free."""
        for batch in batches:
            self._outbox.put(batch)
        self.hire()

    def hire(self) -> None:
        """Start one more sender if a batch waits for one.

        One by one, because sixteen threads that talk to a fast server only fight for the
        interpreter; a slow one leaves batches waiting, and gets all sixteen in a third of a second.

        :raises RuntimeError: there is none, and no thread to be had for one.
        """
        if self.are_busy and len(self._threads) < MAX_SENDERS:
            thread = threading.Thread(target=self._run, name="c2meter-sender", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                if not self._threads:
                    raise
            else:
                self._threads.append(thread)

    def take_back(self) -> Iterator[Shipment]:
        """The shipments that no sender has begun to send; they will not be sent."""
        while True:
            try:
                batch = self._outbox.get_nowait()
            except queue.Empty:
                return
            if batch is None:  # a dismissal, which is for somebody else
                self._outbox.put(None)
                return
            yield from batch

    def dismiss(self) -> None:
        """Let each thread end after what it is sending."""
        for _ in self._threads:
            self._outbox.put(None)
        self._threads.clear()

    def _run(self) -> None:
        while (batch := self._outbox.get()) is not None:
            try:
                with tracing.ship(batch) as span:
                    outcomes = self._send(batch)
                    if span is not None:
                        span.ended(outcomes)
            except Exception as exc:  # a fault of ours must not cost the shipments
                logger.exception("transport_failed")
                unknown = Outcome(Verdict.UNKNOWN, type(exc).__name__, unhealthy=True)
                outcomes = [unknown] * len(batch)
            self._inbox.put(Sent(batch, outcomes))
            if any(outcome.verdict is Verdict.HOLD_ALL for outcome in outcomes):
                # The key is refused: what waits would be refused too, one by one.
                released = list(self.take_back())
                self._inbox.put(Sent(released, [RELEASED] * len(released)))
