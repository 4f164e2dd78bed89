"""Rate limits: how often a user may use a meter, exact and cheap, over any storage of ``limits``.

Imports ``limits`` and lower layers. Promises kept: a limit of 50 lets exactly 50 through, whatever
the number of threads, or of processes on one Redis; an outage of that Redis makes a limit stricter,
never absent, and costs a request 50 ms at most; building opens no connection and starts no thread.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

from limits import RateLimitItem, parse_many
from limits.errors import ConfigurationError, StorageError
from limits.storage import MemoryStorage, RedisStorage, storage_from_string
from limits.strategies import MovingWindowRateLimiter
from limits.strategies import RateLimiter as Strategy

from . import logs
from .errors import ConfigError, show
from .model import Customer
from .parsers import BAD_VALUE, flag
from .windows import MEMORY_URI, Decision, MovingWindowStorage, Substitute, answer

logger: logs.Log = logs.logger(__name__)

#: Seconds without asking a storage that has failed.
RETRY_STORAGE_S = 5.0

#: So that a hanging server costs a request less than 50 ms. No retries of the client's own, which
#: would multiply it. The host's ``RATELIMIT_STORAGE_OPTIONS`` win.
_REDIS_OPTIONS: dict[str, Any] = {
    "socket_timeout": 0.03,
    "socket_connect_timeout": 0.03,
    "retry": None,
}


def identify(customer: Customer) -> str:
    """Whom a limit counts: *customer* and its user, hashed: no id leaves for the storage."""
    # Ids contain no control characters, so no two pairs join to the same text.
    pair = f"{customer.id}\0{customer.user_id or customer.id}"
    return blake2b(pair.encode(), digest_size=16).hexdigest()


@lru_cache(maxsize=1024)
def parse_rule(rule: str) -> tuple[RateLimitItem, ...]:
    """A rule in Flask-Limiter's notation, such as ``"10/second;100/minute"``.

    :raises ConfigError: it cannot be read.
    """
    try:
        return tuple(parse_many(rule))
    except ValueError:
        raise ConfigError(
            f"rate_limit {rule!r} cannot be read; write for example '100 per minute', "
            "or '10/second;100/minute' for several"
        ) from None


class RateLimiter:
    """Decides for one app. Build it with :func:`limiter_of`.

    :param strategy: with its storage; None = nothing is limited.
    :param prefix: of the keys in the storage; empty = ``c2meter``.
    :param workers: processes that share a limit while the storage fails; None = what
        ``WEB_CONCURRENCY`` says, or how many there are like this one beside it.
    :param retry_storage_s: how long a failed storage is left alone.
    """

    def __init__(
        self,
        strategy: Strategy | None,
        prefix: str | None = None,
        *,
        workers: int | None = None,
        retry_storage_s: float = RETRY_STORAGE_S,
    ) -> None:
        self._knows_workers = workers is not None
        workers = workers_from_environment() if workers is None else max(1, workers)
        self._shared = strategy
        self._prefix = prefix or "c2meter"
        self._outage = _outage_errors(strategy)
        #: None where the storage is the memory of this process, which does not fail.
        self._substitute: Substitute | None = None
        if strategy and not isinstance(strategy.storage, MovingWindowStorage):
            self._substitute = Substitute(workers)
        self._retry_storage_s = retry_storage_s
        #: Monotonic time of the next attempt to reach the storage; 0 = it works.
        self._retry_at = 0.0

    @property
    def is_shared(self) -> bool | None:
        """Whether all processes count together; None = there are no limits."""
        if self._shared is None:
            return None
        return not isinstance(self._shared.storage, (MovingWindowStorage, MemoryStorage))

    @property
    def is_degraded(self) -> bool:
        """True while the storage fails and this process enforces its share of each limit."""
        return self._retry_at > 0

    def hit(self, meter: str, rule: str | None, user: str) -> Decision | None:
        """Take one unit of what *user* may use of *meter*, or refuse and take nothing.

        :param rule: Flask-Limiter's notation; each of several limits must allow it.
        :param user: from :func:`identify`.
        :return: None = there is no limit: no rule, or ``RATELIMIT_ENABLED`` is false.
        :raises ConfigError: the rule cannot be read.
        """
        if not rule or self._shared is None:
            return None
        limits = parse_rule(rule)
        whom = f"{self._prefix}/{meter}/{user}"
        substitute = self._substitute
        if substitute is None:
            return _decide(self._shared, limits, whom)
        if self._may_ask_storage():
            try:
                for _ in range(substitute.take_owed(limits, whom)):
                    _decide(self._shared, limits, whom)
                decision = _decide(self._shared, limits, whom)
            except self._outage as exc:
                self._storage_failed(exc, substitute)
            else:
                self._storage_worked()
                if decision.allowed:
                    substitute.note(limits, whom)
                return decision
        return substitute.decide(limits, whom)

    def headers(self, decision: Decision) -> list[tuple[str, str]]:
        """The headers to send with *decision*."""
        return decision.headers()

    def _may_ask_storage(self) -> bool:
        """True if the storage works, or it is this request's turn to try it again."""
        if not self._retry_at:
            return True
        now = time.monotonic()
        if now < self._retry_at:
            return False
        # Unlocked: at worst two requests try at once.
        self._retry_at = now + self._retry_storage_s
        return True

    def _storage_failed(self, exc: Exception, substitute: Substitute) -> None:
        if not self._retry_at:
            if not self._knows_workers:
                substitute.workers = max(substitute.workers, _processes_like_this())
            logger.warning(
                "rate_limit_storage_failed",
                error=type(exc).__name__,
                share_of_this_process=f"1/{substitute.workers}",
            )
        self._retry_at = time.monotonic() + self._retry_storage_s

    def _storage_worked(self) -> None:
        if self._retry_at:
            self._retry_at = 0.0
            logger.info("rate_limit_storage_works")


def limiter_of(settings: Mapping[str, Any]) -> RateLimiter:
    """The rate limiter that *settings* describe; opens no connection and starts no thread.

    Reads ``RATELIMIT_ENABLED``, ``RATELIMIT_STORAGE_URI``, ``RATELIMIT_STORAGE_OPTIONS`` and
    ``RATELIMIT_KEY_PREFIX``, as Flask-Limiter names them.

    :raises ConfigError: the storage cannot be used, or it is unclear whether to.
    """
    enabled = settings.get("RATELIMIT_ENABLED", True)
    try:
        if not flag(enabled):
            return RateLimiter(None)
    except BAD_VALUE:
        raise ConfigError(f"RATELIMIT_ENABLED = {show(enabled)}: write true or false") from None
    uri, options = storage_of(settings)
    with usable_storage(uri):
        strategy = MovingWindowRateLimiter(storage_from_string(uri, **options))
    warn_of_memory(strategy)
    return RateLimiter(strategy, settings.get("RATELIMIT_KEY_PREFIX"))


def storage_of(settings: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """URI and options of the storage that *settings* name; by default the memory of the process."""
    uri = settings.get("RATELIMIT_STORAGE_URI") or MEMORY_URI
    is_redis = uri.partition(":")[0] in (RedisStorage.STORAGE_SCHEME or ())
    given = settings.get("RATELIMIT_STORAGE_OPTIONS") or {}
    # Plain memory starts a racy timer thread and never forgets; ours means the same.
    uri = MEMORY_URI if uri == "memory://" else uri
    return uri, {**(_REDIS_OPTIONS if is_redis else {}), **given}


@contextmanager
def usable_storage(uri: str) -> Iterator[None]:
    """Within, the storage at *uri* is built.

    :raises ConfigError: that cannot be done.
    """
    try:
        yield
    except (ConfigurationError, NotImplementedError, ValueError):
        # Without the cause, whose message shows the password within the URI.
        raise ConfigError(
            f"RATELIMIT_STORAGE_URI with scheme {uri.partition(':')[0]!r} cannot be used; "
            "use redis:// or valkey:// with flask_c2meter[redis] or [valkey] installed, "
            "or leave it out to count in memory"
        ) from None


def warn_of_memory(strategy: Strategy) -> None:
    """Say so if each of several processes counts for itself."""
    processes = workers_from_environment()
    if processes > 1 and isinstance(strategy.storage, MovingWindowStorage):
        logger.warning(
            "rate_limits_not_shared",
            processes=processes,
            cure="each counts for itself; set RATELIMIT_STORAGE_URI, to Redis for example",
        )


def workers_from_environment() -> int:
    """The processes of this server, as ``WEB_CONCURRENCY`` says; 1 if it does not."""
    text = os.environ.get("WEB_CONCURRENCY", "")
    return max(1, int(text)) if text.isdecimal() else 1


def _processes_like_this() -> int:
    """The children of this one's parent that run the same command: a server's workers (Linux)."""
    try:
        parent = os.getppid()
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        command = Path("/proc/self/cmdline").read_bytes()
        return sum(Path(f"/proc/{pid}/cmdline").read_bytes() == command for pid in children)
    except OSError:
        return 1


def _outage_errors(strategy: Strategy | None) -> tuple[type[Exception], ...]:
    """What a failing storage raises: its client's own errors, as ``limits`` knows them."""
    if strategy is None:
        return ()
    known = strategy.storage.base_exceptions
    return (StorageError, OSError, *(known if isinstance(known, tuple) else (known,)))


def _decide(strategy: Strategy, limits: tuple[RateLimitItem, ...], whom: str) -> Decision:
    """Take from each limit, or from none: only a race between the two rounds may cost a unit."""
    if len(limits) == 1:
        if isinstance(strategy.storage, MovingWindowStorage):
            return strategy.storage.decide(limits[0], whom, 1)
        allowed = strategy.hit(limits[0], whom)
        return _decision(strategy, limits[0], whom, allowed)
    allowed = all(strategy.test(limit, whom) for limit in limits) and all(
        strategy.hit(limit, whom) for limit in limits
    )
    decisions = [_decision(strategy, limit, whom, allowed) for limit in limits]
    if allowed:
        return min(decisions, key=lambda decision: decision.remaining)
    full = [decision for decision in decisions if not decision.remaining]
    return max(full or decisions, key=lambda decision: decision.reset_at)


def _decision(strategy: Strategy, limit: RateLimitItem, whom: str, allowed: bool) -> Decision:
    reset, remaining = strategy.get_window_stats(limit, whom)
    return answer(limit, allowed, remaining, reset)
