"""The canary: an event that the worker records by itself, so that silence means a fault.

No usage may be no traffic. With ``C2METER_CANARY`` set, an event of a meter of our own takes the
path of every other one, recorder, store and, if it has a customer at Stripe, delivery: ``status``
and the metrics tell how long ago the last one arrived.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from .catalogue import CANARY
from .config import Config
from .model import UsageEvent, to_ms
from .store import Entry, encode


class Canary:
    """Records the events: a duty of the clerk.

    :param record: makes an entry durable, as for any event.
    """

    name = "canary"

    def __init__(self, record: Callable[[Entry], object], config: Config) -> None:
        self._record = record
        self._customer = customer_of(config)
        self._interval_ms = config.canary_s * 1000
        self._clock = config.clock
        #: Start of the interval of the last one.
        self._last_ms = -1

    def is_due(self) -> bool:
        """Whether this process has not recorded the one of this interval."""
        return self._begins_ms(self._clock()) != self._last_ms

    def work(self) -> None:
        """Record it; of several processes, one is the first with its key."""
        now = self._clock()
        begins_ms = self._begins_ms(now)
        event = UsageEvent(
            key=f"canary:{begins_ms}",
            customer=self._customer,
            meter=CANARY.name,
            units=1,
            precision=CANARY.precision,
            occurred_at=now,
            recorded_at=now,
            properties={},
        )
        self._record(Entry(encode(event)))
        self._last_ms = begins_ms

    def _begins_ms(self, now: datetime) -> int:
        now_ms = to_ms(now)
        return now_ms - now_ms % self._interval_ms


def customer_of(config: Config) -> str:
    """Whose usage the canary's events are."""
    return config.canary_customer or CANARY.name


def is_delivered(config: Config) -> bool:
    """Whether they are sent to Stripe."""
    return bool(config.canary_s and config.canary_customer)


def patience(config: Config) -> timedelta:
    """How old the last one may be; if it is older, something is broken."""
    return timedelta(seconds=max(60, 3 * config.canary_s))
