"""Group commit: many threads record, one transaction makes them durable.

The first thread to arrive writes for all that wait: alone, it pays one commit and no hand-over to
another thread; sixty-four share the commit of whoever leads. ``record`` returns only when its event
is on disk (P1): in the store or, while the store is out of order, in the spill file (P14).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from . import logs
from .errors import CorruptStore, InvalidEvent, StoreUnavailable
from .store import MAX_BATCH, Entry, Spill

if TYPE_CHECKING:
    from .store import Store

logger: logs.Log = logs.logger(__name__)

#: After a failure the store is left alone for this long.
RETRY_AFTER_S = 1.0


class _Ticket:
    """One waiting caller; its lock is held until it is served or made leader."""

    __slots__ = ("entry", "error", "is_new", "leads", "served", "turn")

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.is_new = False
        self.error: Exception | None = None
        self.served = False
        self.leads = False
        self.turn = threading.Lock()
        self.turn.acquire()


class Recorder:
    """Makes events durable; one per process, shared by its threads.

    :param on_failure: ``spill`` keeps events in a local file while the store fails,
        ``refuse`` raises.
    :param replays: record what was spilled after the next event that the store takes: where no
        worker does.
    """

    def __init__(
        self,
        store: Store,
        spill: Spill,
        on_failure: Literal["spill", "refuse"] = "spill",
        *,
        replays: bool = False,
    ) -> None:
        self._store = store
        self._spill = spill
        self._on_failure = on_failure
        self._replays = replays
        self._mutex = threading.Lock()
        self._waiting: deque[_Ticket] = deque()
        self._has_leader = False
        self._store_failed_at = float("-inf")
        self._looked_at = float("-inf")
        self._closed_at = float("-inf")

    def record(self, entry: Entry) -> bool:
        """Make *entry* durable.

        :return: whether its key was new; True for an event that was spilled.
        :raises StoreUnavailable: neither store nor spill took it; nothing was recorded.
        """
        ticket = _Ticket(entry)
        with self._mutex:
            self._waiting.append(ticket)
            ticket.leads = not self._has_leader
            self._has_leader = True
        if not ticket.leads:
            self._await_turn(ticket)
        if not ticket.served:
            self._lead()
        if ticket.error is not None:
            raise ticket.error
        return ticket.is_new

    @property
    def is_closed(self) -> bool:
        """Whether an event could not be made durable within the last second.

        Work that must be billed should then be refused before it is done.
        """
        return time.monotonic() - self._closed_at < RETRY_AFTER_S

    @property
    def store_is_failing(self) -> bool:
        """Whether the store refused a write within the last second."""
        return time.monotonic() - self._store_failed_at < RETRY_AFTER_S

    def _await_turn(self, ticket: _Ticket) -> None:
        try:
            ticket.turn.acquire()
        except BaseException:
            # A signal handler or a greenlet's timeout takes this caller away: nobody may wait for
            # it. If its event is being written just now, it stays.
            with self._mutex:
                if ticket in self._waiting:
                    self._waiting.remove(ticket)
                successor = self._choose_leader() if ticket.leads else None
            if successor is not None:
                successor.turn.release()
            raise

    def _choose_leader(self) -> _Ticket | None:
        """The first that waits, if any; the caller holds the mutex and then releases its turn."""
        self._has_leader = bool(self._waiting)
        if not self._waiting:
            return None
        self._waiting[0].leads = True
        return self._waiting[0]

    def _lead(self) -> None:
        """Write for all that wait, then pass the lead on to the first that came meanwhile."""
        with self._mutex:
            batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), MAX_BATCH))]
        try:
            self._write(batch)
        finally:
            with self._mutex:
                successor = self._choose_leader()
            for ticket in batch:
                ticket.served = True
                ticket.turn.release()
            if successor is not None:
                successor.turn.release()

    def _write(self, batch: Sequence[_Ticket]) -> None:
        entries = [ticket.entry for ticket in batch]
        try:
            results = self._make_durable(entries)
        except (StoreUnavailable, InvalidEvent) as exc:
            if len(batch) > 1 and isinstance(exc, InvalidEvent):
                self._write_singly(batch)
                return
            for ticket in batch:
                ticket.error = exc
            return
        except BaseException:  # the leader is taken away; whether this was durable is not known
            for ticket in batch:
                ticket.error = StoreUnavailable("recording was interrupted; try again")
            raise
        for ticket, is_new in zip(batch, results, strict=True):
            ticket.is_new = is_new

    def _write_singly(self, batch: Sequence[_Ticket]) -> None:
        """One that cannot be written must not fail its neighbours."""
        for ticket in batch:
            self._write([ticket])

    def _take_back(self) -> None:
        """Record what was spilled; if the store fails meanwhile, the rest stays in the file."""
        if not self._replays or time.monotonic() - self._looked_at < RETRY_AFTER_S:
            return
        self._looked_at = time.monotonic()
        if not self._spill.is_empty:
            try:
                self._spill.replay(self._store.append_replayed)
            except (StoreUnavailable, CorruptStore) as exc:
                logger.warning("spilled_events_wait", error=exc)

    def _make_durable(self, entries: Sequence[Entry]) -> Sequence[bool]:
        if not self.store_is_failing:
            try:
                results = self._store.append(entries)
                self._take_back()
                return results
            except InvalidEvent:
                raise
            except (StoreUnavailable, CorruptStore) as exc:
                self._store_failed_at = time.monotonic()
                logger.error("store_failed", then=self._on_failure, error=exc)
            except Exception:  # a fault of ours: the events are kept for whoever mends it
                self._store_failed_at = time.monotonic()
                logger.exception("store_failed", then=self._on_failure)
        try:
            if self._on_failure == "refuse":
                raise StoreUnavailable("the store failed within the last second; try again")
            self._spill.append([entry.row for entry in entries])
        except StoreUnavailable:
            self._closed_at = time.monotonic()
            raise
        return [True] * len(entries)
