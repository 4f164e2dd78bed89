"""How long to wait and how fast to go: backoff, rate, breaker.

Pure and small; time and randomness are passed in. Imports nothing of the package.
"""

from __future__ import annotations

from random import Random

#: Longest wait between two attempts that we choose ourselves.
MAX_BACKOFF_S = 300.0

#: Failures in a row that open the breaker.
BREAKER_FAILURES = 5


def backoff_s(attempts: int, random: Random) -> float:
    """How long to wait after the *attempts*-th attempt has failed: full jitter.

    :param attempts: >= 1.
    :return: uniform in [0, min(300 s, 1 s x 2^n)], n = attempts - 1.

    Source: "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """
    return random.uniform(0.0, min(MAX_BACKOFF_S, 2.0 ** min(attempts - 1, 16)))


class Pace:
    """A token bucket whose rate gives way to 429 and ramps up after an outage.

    :param cap: requests per second, > 0; never exceeded for longer than a tenth of a second.
    """

    def __init__(self, cap: float) -> None:
        self._cap = cap
        self.rate: float = cap
        self._growth = 2.0
        self._tokens = self._burst
        self._seen_s: float | None = None
        self._slowed_s = float("-inf")

    @property
    def _burst(self) -> float:
        return max(1.0, self.rate / 10)

    def available(self, now_s: float) -> int:
        """How many requests may start now."""
        elapsed = 0.0 if self._seen_s is None else max(0.0, now_s - self._seen_s)
        self._seen_s = now_s
        self.rate = min(self._cap, self.rate * self._growth ** min(elapsed, 60.0))
        self._tokens = min(self._burst, self._tokens + elapsed * self.rate)
        return int(self._tokens)

    def spend(self, requests: int) -> None:
        """*requests* have started."""
        self._tokens -= requests

    @property
    def wait_s(self) -> float:
        """How long until the next request may start."""
        return max(0.0, (1.0 - self._tokens) / self.rate)

    def slow_down(self, now_s: float) -> None:
        """Stripe said 429: half the rate, at most once a second, then slowly back."""
        if now_s - self._slowed_s >= 1.0:
            self._slowed_s = now_s
            self.rate = max(1.0, self.rate / 2)
            self._growth = 1.1

    def ramp_up(self) -> None:
        """Begin again at ten a second, doubling every second."""
        self.rate = min(self._cap, 10.0)
        self._tokens = min(self._tokens, self._burst)
        self._growth = 2.0


class Breaker:
    """Counts failures in a row."""

    def __init__(self) -> None:
        self._failures = 0

    def note(self, *, healthy: bool) -> bool:
        """Take one outcome in; return whether everything should pause now."""
        self._failures = 0 if healthy else self._failures + 1
        return self._failures >= BREAKER_FAILURES
