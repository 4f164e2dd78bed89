"""What can be read of the store often, whatever its history: for scrapers, and part of ``status``.

Nothing here counts what has been delivered long ago; ``status`` does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from . import canary
from .catalogue import CANARY
from .config import Config
from .model import to_ms
from .owners import is_gone
from .store import ALL, RECONCILED, UNAVAILABLE, UNEXPLAINED, Hold
from .targets import (
    ALERT_TIMELINESS,
    EVENT_LATENCY,
    WINDOW,
    Targets,
    accuracy,
    durations,
    share,
)

if TYPE_CHECKING:
    from .store import Store
    from .store.measures import Backlog, Times

#: A worker that has not signed on for this many leases is gone.
_SIGN_ON_LEASES = 3

#: ``{"owner", "pid", "seen_ms"}``.
WorkerFact = dict[str, Any]


@dataclass(frozen=True, slots=True)
class CanaryLeg:
    """How far the canary came: ``recorded``, or ``delivered``."""

    name: str
    #: Since the last one; None = there never was one.
    age_s: int | None
    #: Whether that is so long that something must be broken.
    is_stale: bool


@dataclass(frozen=True, slots=True)
class Vitals:
    """One reading of the store."""

    at: datetime
    #: Events ever recorded.
    recorded: int
    #: Billable meter -> what Stripe does not have of it.
    backlog: Mapping[str, Backlog]
    #: Meter -> histogram of how long its events have waited.
    times: Mapping[str, Times]
    targets: Targets
    holds: Sequence[Hold]
    workers: Sequence[WorkerFact]
    #: Channel -> state -> number of alerts.
    alerts: Mapping[str, Counter[str]]
    #: Analytics meter -> events lost while neither store nor spill could be written.
    dropped: Mapping[str, int]
    #: Stripe's code -> events it has refused that no shipment is known of.
    unexplained: Mapping[str, int]
    #: Empty if there is no canary.
    canary: Sequence[CanaryLeg]

    @property
    def breaker_is_open(self) -> bool:
        """Whether deliveries wait because Stripe is down."""
        return breaker_is_open(self.holds)


def read(store: Store, config: Config, meters: Sequence[str]) -> Vitals:
    """Take a reading.

    :param meters: names of the billable meters.
    :raises StoreUnavailable: the store cannot be read; ``CorruptStore`` if it is damaged.
    """
    now, facts = config.clock(), store.facts()
    return Vitals(
        at=now,
        recorded=store.measures.recorded(),
        backlog=store.measures.backlog(meters),
        times=store.measures.times(),
        targets=targets(store, now, facts),
        holds=store.holds(),
        workers=workers(facts, to_ms(now), config.lease_s),
        alerts=store.announcements.counts(),
        dropped=facts.get("dropped", {}),
        unexplained=facts.get(UNEXPLAINED, {}),
        canary=canary_legs(store, config, now),
    )


def targets(store: Store, now: datetime, facts: Mapping[str, Any]) -> Targets:
    """The four targets, as the store tells them of the last day.

    :param facts: the store's.
    """
    recent = store.measures.deliveries(now - WINDOW)
    told = store.measures.alert_delays(now - WINDOW, now)
    at_rest = len(recent.waits_ms) + recent.failed
    return Targets(
        event_latency=durations(recent.waits_ms, EVENT_LATENCY),
        success_rate=share(len(recent.waits_ms), at_rest),
        accuracy=accuracy(facts.get(RECONCILED)),
        alert_timeliness=durations(
            told.delays_ms, ALERT_TIMELINESS, waiting_ms=told.waiting_ms, failed=told.failed
        ),
    )


def canary_legs(store: Store, config: Config, now: datetime) -> list[CanaryLeg]:
    """How far the canary came of late; nothing if there is none."""
    if not config.canary_s:
        return []
    last = store.measures.last(canary.customer_of(config), CANARY.name)
    legs = [_leg("recorded", last.recorded_ms, config, now)]
    if canary.is_delivered(config):
        legs.append(_leg("delivered", last.delivered_ms, config, now))
    return legs


def _leg(name: str, last_ms: int | None, config: Config, now: datetime) -> CanaryLeg:
    if last_ms is None:
        return CanaryLeg(name, None, is_stale=True)
    age_s = max(0, to_ms(now) - last_ms) // 1000
    return CanaryLeg(name, age_s, is_stale=age_s > canary.patience(config).total_seconds())


def breaker_is_open(holds: Sequence[Hold]) -> bool:
    """Whether one of *holds* is the breaker's."""
    return any(hold.meter == ALL and hold.reason == UNAVAILABLE for hold in holds)


def workers(facts: Mapping[str, Any], now_ms: int, lease_s: float) -> list[WorkerFact]:
    """The workers that have signed on of late, and may live."""
    oldest_ms = now_ms - int(lease_s * 1000) * _SIGN_ON_LEASES
    signed_on = {
        name.removeprefix("worker:"): fact
        for name, fact in facts.items()
        if name.startswith("worker:") and fact["seen_ms"] >= oldest_ms
    }
    return [
        {"owner": owner, "pid": fact["pid"], "seen_ms": fact["seen_ms"]}
        for owner, fact in signed_on.items()
        if not is_gone(owner)
    ]
