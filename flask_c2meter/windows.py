"""Moving windows in the memory of one process: exact under threads, forgetting idle users.

A storage that Flask-Limiter can use, and what it decides.
"""

from __future__ import annotations

import sys
import time
from bisect import bisect_right
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil
from typing import Any, NamedTuple

from limits import RateLimitItem
from limits.storage import MovingWindowSupport, Storage

from .locks import ProcessLock

#: Storage used unless ``RATELIMIT_STORAGE_URI`` names a shared one.
MEMORY_URI = "c2meter-memory://"

#: The limits of one rule: each must allow.
Limits = tuple[RateLimitItem, ...]


class Decision(NamedTuple):
    """The answer to one request for a unit of a limit."""

    allowed: bool
    #: The limit that decided: the one refused, else the one with least remaining.
    limit: int
    #: Units left in its window after this request.
    remaining: int
    #: When units become free again, UTC seconds since 1970, rounded up.
    reset_at: int
    #: Whole seconds to wait, at least 1; 0 if allowed.
    retry_after_s: int

    def headers(self) -> list[tuple[str, str]]:
        """The response headers that tell the client; ``Retry-After`` only on refusal."""
        pairs = [
            ("X-RateLimit-Limit", str(self.limit)),
            ("X-RateLimit-Remaining", str(self.remaining)),
            ("X-RateLimit-Reset", str(self.reset_at)),
        ]
        return pairs if self.allowed else [*pairs, ("Retry-After", str(self.retry_after_s))]


def answer(limit: RateLimitItem, allowed: bool, remaining: int, reset: float) -> Decision:
    """The decision about *limit*, whose next unit becomes free at *reset*."""
    retry_after_s = 0 if allowed else max(1, ceil(reset - time.time()))
    return Decision(allowed, limit.amount, max(0, remaining), ceil(reset), retry_after_s)


class MovingWindowStorage(Storage, MovingWindowSupport):
    """Moving windows.

    Unlike the memory storage of ``limits`` 5.8 it has no timer thread, which is racy there. Users
    idle for a whole window are dropped as others arrive, so that memory follows the active ones.
    """

    # A mutable default and its type, as the base class declares them.
    STORAGE_SCHEME: list[str] | None = ["c2meter-memory"]  # noqa: RUF012

    def __init__(self, uri: str = MEMORY_URI, wrap_exceptions: bool = False, **_: Any) -> None:
        super().__init__(uri, wrap_exceptions=wrap_exceptions)
        #: Window length in seconds -> key -> when its units were taken, ascending. The keys are
        #: in order of last use, so that the idle ones of each length come first.
        self._windows: defaultdict[int, OrderedDict[str, list[float]]] = defaultdict(OrderedDict)
        self._lock = ProcessLock()

    def decide(
        self, limit: RateLimitItem, whom: str, cost: int, share: int | None = None
    ) -> Decision:
        """Take *cost* units of *limit*, or of a smaller *share* of it; one look serves both."""
        amount = limit.amount if share is None else share
        key, expiry = limit.key_for(whom), limit.get_expiry()
        with self._lock():
            allowed = self.acquire_entry(key, amount, expiry, cost)
            begin, taken = self.get_moving_window(key, amount, expiry)
        return answer(limit, allowed, amount - taken, begin + expiry)._replace(limit=amount)

    def note(self, limit: RateLimitItem, whom: str) -> None:
        """Somebody else has let a unit through."""
        self.acquire_entry(limit.key_for(whom), sys.maxsize, limit.get_expiry())

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else takes anything meanwhile."""
        with self._lock():
            yield

    def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        """Take *amount* units of *key*, unless its window would then hold more than *limit*."""
        with self._lock():
            now = time.time()
            windows = self._windows[expiry]
            _forget_idle(windows, now - expiry)
            window = windows.setdefault(key, [])
            windows.move_to_end(key)
            if len(window) - _first_within(window, now, expiry) + amount > limit:
                return False
            window += [now] * amount
            return True

    def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
        """When the window of *key* begins, and the units taken since."""
        with self._lock():
            now = time.time()
            window = self._windows[expiry].get(key, [])
            first = _first_within(window, now, expiry)
            return (window[first] if first < len(window) else now, len(window) - first)

    def clear(self, key: str) -> None:
        """Forget *key*."""
        with self._lock():
            for windows in self._windows.values():
                windows.pop(key, None)

    def reset(self) -> int:
        """Forget everything; returns the number of keys."""
        with self._lock():
            count = self.key_count
            self._windows.clear()
            return count

    # Not __len__: Flask-Limiter would take an empty storage for none.
    @property
    def key_count(self) -> int:
        """The number of keys remembered."""
        return sum(len(windows) for windows in self._windows.values())

    def check(self) -> bool:
        """Memory is always there."""
        return True

    @property
    def base_exceptions(self) -> tuple[type[Exception], ...]:
        """Memory raises nothing of its own."""
        return ()

    def get(self, key: str) -> int:
        """Not a counter."""
        raise NotImplementedError(f"{MEMORY_URI} knows the moving-window strategy only")

    def get_expiry(self, key: str) -> float:
        """Not a counter."""
        raise NotImplementedError(f"{MEMORY_URI} knows the moving-window strategy only")

    def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        """Not a counter."""
        raise NotImplementedError(f"{MEMORY_URI} knows the moving-window strategy only")


def _first_within(window: list[float], now: float, expiry: int) -> int:
    """Index of the first unit taken after ``now - expiry``."""
    if window and window[-1] > now:
        # The clock was set back: keep the distances, or a full window would stay full for as long.
        ahead = window[-1] - now
        window[:] = [taken_at - ahead for taken_at in window]
    first = bisect_right(window, now - expiry)
    if 2 * first > len(window):
        # Cutting only when half is old keeps a hit cheap, however large the limit.
        del window[:first]
        return 0
    return first


def _forget_idle(windows: OrderedDict[str, list[float]], oldest: float) -> None:
    """Drop up to two keys unused since *oldest*: faster than new ones can come."""
    for _ in range(2):
        key = next(iter(windows), None)
        if key is None or (windows[key] and windows[key][-1] > oldest):
            return
        del windows[key]


class Substitute:
    """Stands in for a shared storage while that fails: this process enforces its share.

    It counts what the storage lets through as well, so that nobody gets more by an outage, and what
    it lets through itself, for the storage to be told afterwards.

    :param workers: the processes that share a limit.
    """

    #: Most users whose units are remembered for the storage.
    _REMEMBERED = 10_000

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._storage = MovingWindowStorage()
        self._owed: Counter[tuple[Limits, str]] = Counter()

    def note(self, limits: Limits, whom: str) -> None:
        """The storage has let a unit through."""
        for limit in limits:
            self._storage.note(limit, whom)

    def decide(self, limits: Limits, whom: str) -> Decision:
        """Take a unit of this process's share of each limit, or of none."""
        with self._storage.locked():
            looks = [self._storage.decide(each, whom, 0, self._share(each)) for each in limits]
            if short := [look for look in looks if not look.remaining]:
                last = max(short, key=lambda look: look.reset_at)
                wait_s = max(1, last.reset_at - int(time.time()))
                return last._replace(allowed=False, retry_after_s=wait_s)
            taken = [self._storage.decide(each, whom, 1, self._share(each)) for each in limits]
        if len(self._owed) < self._REMEMBERED:
            self._owed[limits, whom] += 1
        return min(taken, key=lambda decision: decision.remaining)

    def take_owed(self, limits: Limits, whom: str) -> int:
        """The units let through of which the storage does not know; it is told now."""
        return self._owed.pop((limits, whom), 0) if self._owed else 0

    def _share(self, limit: RateLimitItem) -> int:
        """What one of the processes may let through by itself, at least one unit."""
        return int(max(1, limit.amount // self.workers))
