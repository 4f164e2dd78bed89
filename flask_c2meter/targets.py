"""The four targets of the source document, and how far recent figures meet them. Pure.

Event latency under 5 seconds, success rate over 99.9 %, billing accuracy of 100 %, alerts within
15 minutes. Shares are rounded down, so that 100 % means all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

#: From ``record()`` until Stripe has the event.
EVENT_LATENCY = timedelta(seconds=5)
#: Share of shipments at rest that Stripe has.
SUCCESS_RATE = Decimal("0.999")
#: Share of what was compared with Stripe that agrees.
BILLING_ACCURACY = Decimal(1)
#: From the crossing of a threshold until the alert is announced on all channels.
ALERT_TIMELINESS = timedelta(minutes=15)

#: The recent past that is looked at.
WINDOW = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Durations:
    """How long something took, over a window; None where nothing happened."""

    p50: Decimal | None
    p99: Decimal | None
    longest: Decimal | None
    #: Of all that happened: what was never done, or is overdue, is not within.
    share_within: Decimal | None


@dataclass(frozen=True, slots=True)
class Accuracy:
    """What the last reconciliation found."""

    share: Decimal
    at: datetime


@dataclass(frozen=True, slots=True)
class Targets:
    """The four of them; None = nothing to go by."""

    event_latency: Durations
    success_rate: Decimal | None
    accuracy: Accuracy | None
    alert_timeliness: Durations

    @property
    def are_met(self) -> Mapping[str, bool | None]:
        """Name -> whether it is met; None = nothing to go by."""
        latency, alerts = self.event_latency.p99, self.alert_timeliness.share_within
        rate, accuracy = self.success_rate, self.accuracy
        return {
            "event_latency": None if latency is None else latency < EVENT_LATENCY.seconds,
            "success_rate": None if rate is None else rate > SUCCESS_RATE,
            "billing_accuracy": None if accuracy is None else accuracy.share >= BILLING_ACCURACY,
            "alert_timeliness": None if alerts is None else alerts == 1,
        }


def durations(
    done_ms: Sequence[int], limit: timedelta, *, waiting_ms: Sequence[int] = (), failed: int = 0
) -> Durations:
    """Sum up how long things took.

    :param done_ms: of those that are done, ascending.
    :param limit: the target.
    :param waiting_ms: how long others have waited by now; below the limit they do not count yet.
    :param failed: number of those that will never be done.
    """
    limit_ms = limit // timedelta(milliseconds=1)
    within = sum(each <= limit_ms for each in done_ms)
    overdue = sum(each > limit_ms for each in waiting_ms)
    return Durations(
        p50=_seconds(percentile(done_ms, 50)),
        p99=_seconds(percentile(done_ms, 99)),
        longest=_seconds(done_ms[-1] if done_ms else None),
        share_within=share(within, len(done_ms) + overdue + failed),
    )


def percentile(ascending: Sequence[int], percent: int) -> int | None:
    """The smallest value that *percent* of all do not exceed (nearest rank); None of nothing."""
    if not ascending:
        return None
    return ascending[max(0, -(-len(ascending) * percent // 100) - 1)]


def share(part: int, whole: int) -> Decimal | None:
    """*part* of *whole* from 0 to 1, rounded down to five places; None of nothing."""
    if not whole:
        return None
    # In whole numbers: the host's decimal context may round as it likes.
    ones, places = divmod(part * 100_000 // whole, 100_000)
    return Decimal(f"{ones}.{places:05d}")


def accuracy(noted: Mapping[str, Any] | None) -> Accuracy | None:
    """What the last reconciliation has found; None if there was none, or nothing to compare.

    :param noted: its note in the store, ``{"accuracy": "0.99861", "at": "2026-01-15T12:00:00Z"}``.
    """
    if noted is None or noted["accuracy"] is None:
        return None
    return Accuracy(Decimal(noted["accuracy"]), datetime.fromisoformat(noted["at"]))


def _seconds(milliseconds: int | None) -> Decimal | None:
    if milliseconds is None:
        return None
    return Decimal(f"{milliseconds // 1000}.{milliseconds % 1000:03d}")
