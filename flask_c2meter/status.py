"""How the metering is doing: numbers for ``flask c2meter status`` and whoever watches it.

Reads the store only; changes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from . import vitals
from .catalogue import CANARY
from .config import Config
from .errors import CorruptStore, StoreUnavailable
from .measurements import STORAGE
from .model import DAY_MS, MAX_AGE, Meter, to_ms
from .store import ALL, RECONCILED, UNEXPLAINED, Hold, MeterCounts
from .targets import ALERT_TIMELINESS, EVENT_LATENCY, WINDOW, Durations, Targets, durations

if TYPE_CHECKING:
    from .store import Spill, Store
    from .store.closings import Closing
    from .store.jobs import LastRun

#: Where the quantity of a meter may be; the first is the sum of the others.
STATES = ("recorded", "unshipped", "in_flight", "delivered", "in_doubt", "dead", "discarded")

#: A backlog older than this is no longer healthy: a week, of the 35 days Stripe allows.
MAX_BACKLOG_MS = 7 * DAY_MS
#: A stream that has not said by then how much it was is not expected to.
STREAM_LIFE: timedelta = timedelta(minutes=15)


def report(
    store: Store,
    spill: Spill,
    config: Config,
    meters: Mapping[str, Meter],
    account: str | None,
) -> dict[str, Any]:
    """Everything ``status --json`` prints.

    Quantities are in the meter's unit, as text. ``problems`` lists why ``healthy`` is false.

    :param account: the Stripe account whose key is configured; None without a key.
    """
    now_ms = to_ms(config.clock())
    try:
        seen = _look(store, config)
    except (StoreUnavailable, CorruptStore) as exc:
        seen = _Seen(unreadable=f"the store cannot be read: {exc}")
    facts, holds = seen.facts, seen.holds
    per_meter = {
        name: _of_meter(count, meters.get(name), seen.silent_streams.get(name, 0), now_ms)
        for name, count in seen.counts.items()
        # It is in every ledger, and of interest where there is one.
        if name != CANARY.name or count.events
    }
    ages = [row["oldest_unshipped_age_s"] for row in per_meter.values() if row["billable"]]
    result: dict[str, Any] = {
        "delivery": _delivery(config),
        "account": facts.get("account"),
        "configured_account": account,
        "paused": [
            {"meter": hold.meter, "reason": hold.reason, "since_ms": hold.since_ms}
            for hold in holds
        ],
        "breaker": "open" if vitals.breaker_is_open(holds) else "closed",
        "durability": config.durability,
        "workers": vitals.workers(facts, now_ms, config.lease_s),
        "spill": {"pending": spill.pending(), "corrupt": spill.corrupt()},
        "dropped": facts.get("dropped", {}),
        "oldest_unshipped_age_s": max((age for age in ages if age is not None), default=None),
        "canary": {leg.name: {"age_s": leg.age_s, "stale": leg.is_stale} for leg in seen.canary},
        "targets": _plain_targets(seen.targets),
        "alerts": {
            "waiting": sum(each["ready"] + each["sending"] for each in seen.alerts.values()),
            "dead": sum(each["dead"] for each in seen.alerts.values()),
            "channels": {name: dict(states) for name, states in seen.alerts.items()},
        },
        "subscriptions": {
            finding: {"count": count, "examples": examples}
            for finding, (count, examples) in sorted(seen.findings.items())
        },
        "reconciled": facts.get(RECONCILED),
        "storage": None if seen.storage is None else _storage(seen.storage),
        "unexplained_refusals": facts.get(UNEXPLAINED, {}),
        "meters": per_meter,
    }
    result["notes"] = _notes(seen)
    result["problems"] = [seen.unreadable] if seen.unreadable else []
    result["problems"] += _problems(result) + _billing_problems(result, seen)
    result["healthy"] = not result["problems"]
    return result


def _of_meter(
    count: MeterCounts, meter: Meter | None, silent_streams: int, now_ms: int
) -> dict[str, Any]:
    precision, oldest_ms = meter.precision if meter else 0, count.oldest_unshipped_ms
    return {
        **{state: _text(getattr(count, state), precision) for state in STATES},
        "events": count.events,
        "incomplete": count.incomplete,
        "invalid": count.invalid,
        "silent_streams": silent_streams,
        "dead_shipments": count.dead_shipments,
        "billable": meter.billable if meter else False,
        "oldest_unshipped_age_s": (
            None if oldest_ms is None else max(0, now_ms - oldest_ms) // 1000
        ),
    }


def _plain_targets(targets: Targets) -> dict[str, Any]:
    known = targets.accuracy
    return {
        "window_s": WINDOW // timedelta(seconds=1),
        "event_latency_s": _plain_durations(targets.event_latency),
        "success_rate": _or_none(targets.success_rate),
        "billing_accuracy": _or_none(known.share if known else None),
        "billing_accuracy_at": known.at.isoformat() if known else None,
        "alert_timeliness_s": _plain_durations(targets.alert_timeliness),
        "met": dict(targets.are_met),
    }


def _plain_durations(value: Durations) -> dict[str, str | None]:
    return {
        "p50": _or_none(value.p50),
        "p99": _or_none(value.p99),
        "max": _or_none(value.longest),
        "share_within_target": _or_none(value.share_within),
    }


def _or_none(value: object) -> str | None:
    return None if value is None else str(value)


_NO_TARGETS = Targets(durations((), EVENT_LATENCY), None, None, durations((), ALERT_TIMELINESS))


@dataclass(slots=True)
class _Seen:
    """What the store holds; nothing while it cannot be read."""

    unreadable: str = ""
    counts: Mapping[str, MeterCounts] = field(default_factory=dict)
    #: Meter -> streams that should have said by now how much they were.
    silent_streams: Mapping[str, int] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    holds: Sequence[Hold] = ()
    targets: Targets = _NO_TARGETS
    canary: Sequence[vitals.CanaryLeg] = ()
    #: Channel -> state -> number of alerts.
    alerts: Mapping[str, Counter[str]] = field(default_factory=dict)
    #: Channel -> how many alerts have failed and are tried again, and a reason.
    failing_alerts: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    #: Finding -> how many customers, and some of them.
    findings: Mapping[str, tuple[int, Sequence[str]]] = field(default_factory=dict)
    #: Customers whose usage before a change of price Stripe has dropped of late.
    dropped: Sequence[str] = ()
    dead_events: Sequence[tuple[str, str, str | None]] = ()
    #: Cycles that were closed while Stripe and the ledger did not agree.
    differing: Sequence[Closing] = ()
    #: The latest day on which storage was measured.
    storage: LastRun | None = None


def _look(store: Store, config: Config) -> _Seen:
    now, facts = config.clock(), store.facts()
    return _Seen(
        counts=store.counts(),
        silent_streams=store.silent_streams(now - STREAM_LIFE),
        facts=facts,
        holds=store.holds(),
        targets=vitals.targets(store, now, facts),
        canary=vitals.canary_legs(store, config, now),
        alerts=store.announcements.counts(),
        failing_alerts=store.announcements.failing(),
        findings=store.subscriptions.findings(),
        # No fault of ours: worth a note for as long as Stripe takes usage.
        dropped=store.subscriptions.dropped(since_ms=to_ms(now - MAX_AGE)),
        dead_events=store.inbox.dead(),
        differing=store.closings.differing(limit=10),
        storage=store.jobs.last(STORAGE),
    )


def _storage(last: LastRun) -> dict[str, Any]:
    return {
        "day": last.day.isoformat(),
        "ended_at": last.ended_at.isoformat(),
        "customers": last.total,
        "failed": last.failed,
        "rate": last.rate,
        "unnamed": last.unnamed,
        "error": last.error,
    }


def _notes(seen: _Seen) -> list[str]:
    """What is worth knowing and no fault of ours."""
    notes = [
        f"{meter}: {count.invalid} events whose value could not be told count 0, "
        f"{count.incomplete} lack properties"
        for meter, count in sorted(seen.counts.items())
        if count.invalid or count.incomplete
    ]
    notes += [
        f"{meter}: {number} streams broke off before they said how much they were, and count 0"
        for meter, number in sorted(seen.silent_streams.items())
    ]
    for finding, text in (
        ("none", "have no subscription: nothing is billed"),
        ("several", "have several subscriptions: the first active one counts"),
    ):
        if finding in seen.findings:
            count, examples = seen.findings[finding]
            notes.append(f"{_named(count, examples)} {text}")
    for channel, (count, reason) in sorted(seen.failing_alerts.items()):
        notes.append(f"{count} alerts are tried again by {channel}: {reason}")
    last = seen.storage
    if last is not None and last.failed and not last.is_bad:
        notes.append(f"storage of {last.failed} customers was not measured on {last.day}")
    if last is not None and last.unnamed:
        notes.append(f"{last.unnamed} customers measured before were not named on {last.day}")
    if seen.dropped:
        what = "usage before a change of price: in its classic billing mode Stripe bills it nowhere"
        notes.append(f"{_named(len(seen.dropped), seen.dropped)}: {what}")
    return notes


def _billing_problems(status: Mapping[str, Any], seen: _Seen) -> list[str]:
    problems = []
    for finding, text in (
        ("deleted", "deleted at Stripe: usage is billed nowhere"),
        ("unknown", "not known to Stripe: usage is billed nowhere"),
        ("failed", "their subscriptions cannot be read"),
    ):
        if finding in seen.findings:
            problems.append(f"{_named(*seen.findings[finding])}: {text}")
    for what, count in sorted(status["unexplained_refusals"].items()):
        problems.append(f"Stripe has refused {count} events that no shipment is known of ({what})")
    for event_id, kind, reason in seen.dead_events:
        problems.append(f"Stripe's event {event_id} ({kind}) cannot be looked into: {reason}")
    last = seen.storage
    if last is not None and last.is_bad:
        text = f"{last.failed} of {last.total} customers failed ({last.rate})"
        problems.append(f"storage of {last.day}: {last.error or text}; `measure-storage` says why")
    for channel, states in sorted(seen.alerts.items()):
        if states["dead"]:
            problems.append(f"{states['dead']} alerts could not be announced by {channel}")
    for closing in seen.differing:
        problems.append(
            f"{closing.customer}: Stripe did not agree with the ledger when the cycle that ended "
            f"on {closing.end:%Y-%m-%d} was closed, see: "
            f"flask c2meter reconcile --customer {closing.customer}"
        )
    return problems


def _named(count: int, examples: Sequence[str], shown: int = 3) -> str:
    names = ", ".join(examples[:shown])
    return f"{count} customers ({names}{', ...' if count > shown else ''})"


def _delivery(config: Config) -> str:
    if not config.stripe_secret_key:
        return "off: no Stripe key here, the ledger only records"
    return "by a thread of each process" if config.worker == "thread" else "by a worker process"


def held(meter: str, reason: str) -> str:
    """A hold in words."""
    return f"{'everything' if meter == ALL else meter} is held: {reason}"


def _problems(status: Mapping[str, Any]) -> list[str]:
    problems = [held(hold["meter"], hold["reason"]) for hold in status["paused"]]
    for name, row in status["meters"].items():
        if row["dead_shipments"]:
            problems.append(f"{name}: {row['dead_shipments']} dead shipments wait for a decision")
    known, ours = status["account"], status["configured_account"]
    if known and ours and known != ours:
        problems.append(f"nothing is sent: this ledger delivers to {known}, not to {ours}")
    age_s = status["oldest_unshipped_age_s"]
    # A ledger that has never delivered and has no key is not meant to.
    is_to_deliver = known or ours
    if is_to_deliver and age_s is not None and age_s * 1000 > MAX_BACKLOG_MS:
        problems.append(f"the oldest undelivered event is {age_s // 86_400} days old")
    reconciled = status["reconciled"] or {}
    if reconciled.get("serious"):
        problems.append(
            f"Stripe did not agree with the ledger at {reconciled['at']}, see: "
            "flask c2meter reconcile"
        )
    for leg, canary in status["canary"].items():
        if canary["stale"] and canary["age_s"] is None:
            problems.append(f"no canary was ever {leg}: does a worker run?")
        elif canary["stale"]:
            problems.append(f"the last canary was {leg} {canary['age_s']} s ago: it is stuck")
    if status["spill"]["pending"]:
        problems.append(f"{status['spill']['pending']} events wait in the spill file")
    if status["spill"]["corrupt"]:
        problems.append(f"{status['spill']['corrupt']} spilled lines cannot be read")
    return problems


def _text(units: int, precision: int) -> str:
    if not precision:
        return str(units)
    sign, digits = ("-" if units < 0 else ""), f"{abs(units):0{precision + 1}d}"
    return f"{sign}{digits[:-precision]}.{digits[-precision:]}"
