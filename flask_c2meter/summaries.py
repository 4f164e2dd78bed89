"""Reading many of Stripe's event summaries: at a polite pace, and again after what may pass."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from itertools import count
from random import Random
from typing import TYPE_CHECKING, Literal

from .gateway import Refused
from .pacing import Pace, backoff_s

if TYPE_CHECKING:
    from .gateway import Gateway

#: How often a read is tried that fails for a reason that may pass.
ATTEMPTS = 4

#: By the beginning of each window, in wire units.
Totals = dict[datetime, int | Decimal]
Window = Literal["hour", "day"] | None


class SummaryReader:
    """Reads what Stripe has counted.

    :param rate: reads per second at most.
    :param wait: sleeps for so many seconds.
    """

    def __init__(
        self,
        gateway: Gateway,
        rate: float,
        wait: Callable[[float], object] = lambda seconds: time.sleep(seconds),
    ) -> None:
        self._gateway = gateway
        self._wait = wait
        self._pace = Pace(rate)
        self._random = Random()

    def totals(
        self, meter: str, customer: str, start: datetime, end: datetime, window: Window = None
    ) -> Totals:
        """What Stripe shows in each window with usage, in wire units.

        :raises GatewayError: Stripe cannot be read.
        """
        for attempt in count(1):
            self._take_turn()
            try:
                found = self._gateway.totals(meter, customer, start, end, window)
            except Refused as refused:
                self._put_off(refused, attempt)
            else:
                return {begin: _whole(total) for begin, total in found.items() if total}
        raise AssertionError

    def _take_turn(self) -> None:
        while not self._pace.available(time.monotonic()):
            self._wait(self._pace.wait_s)
        self._pace.spend(1)

    def _put_off(self, refused: Refused, attempt: int) -> None:
        outcome = refused.outcome
        if attempt >= ATTEMPTS or not (outcome.throttled or outcome.unhealthy):
            raise refused
        if outcome.throttled:
            self._pace.slow_down(time.monotonic())
        asked = outcome.retry_after_s
        self._wait(backoff_s(attempt, self._random) if asked is None else asked)


def _whole(total: Decimal) -> int | Decimal:
    """An integer where it is one; a fraction is nothing that we have sent."""
    return int(total) if total == total.to_integral_value() else total
