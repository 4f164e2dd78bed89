"""A shipment, where it stands, and what an attempt to deliver it has come to: frozen values."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class ShipmentState(StrEnum):
    """Where a shipment stands; only ``dead`` waits for an operator."""

    READY = "ready"
    SENDING = "sending"
    DELIVERED = "delivered"
    IN_DOUBT = "in_doubt"
    DEAD = "dead"
    DISCARDED = "discarded"


class DeadReason(StrEnum):
    """Why a shipment was set aside."""

    INVALID = "invalid"
    EXPIRED = "expired"
    LATE = "late"
    AMBIGUOUS = "ambiguous"
    UNKNOWN_CUSTOMER = "unknown_customer"
    INACTIVE_METER = "inactive_meter"
    REJECTED_ASYNC = "rejected_async"
    CORRUPT = "corrupt"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Shipment:
    """One meter event for Stripe. Value, timestamp and identifier never change."""

    #: Stripe's deduplication key, <= 100 characters, made when the shipment was cut.
    identifier: str
    customer: str
    meter: str
    #: Wire units; negative for a correction.
    value: int
    #: Of the latest event it contains; sent in whole seconds.
    timestamp: datetime
    #: Number of the attempt under way or made last; 0 before the first.
    attempts: int = 0
    #: First attempt that Stripe may have processed; None if there is none.
    first_attempt_at: datetime | None = None
    #: Whether the attempt under way is that first one.
    is_first_unknown: bool = False
    state: ShipmentState = ShipmentState.READY
    reason: str | None = None
    #: When the event in it that has waited longest was recorded.
    waiting_since: datetime | None = None
    #: The trace context that event was recorded in (W3C ``traceparent``).
    trace: str | None = None

    @property
    def attempt_key(self) -> str:
        """HTTP ``Idempotency-Key`` of this attempt: new each time, leads back to the row."""
        return f"{self.identifier}.{self.attempts}"


class Verdict(StrEnum):
    """What one attempt to deliver says."""

    #: Stripe accepted it, or refused it as its own duplicate.
    DELIVERED = "delivered"
    #: Certainly not processed; try again.
    RETRY = "retry"
    #: May have been processed; try again with the same identifier.
    UNKNOWN = "unknown"
    #: Refused for good: dead letter with ``Outcome.dead``.
    REJECTED = "rejected"
    #: The meter is missing or archived at Stripe: hold all its shipments.
    HOLD_METER = "hold_meter"
    #: The key is refused (401, 403): hold everything.
    HOLD_ALL = "hold_all"


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of one delivery attempt; retrying is a value, not control flow."""

    verdict: Verdict
    #: Machine-readable cause, such as ``429``, ``no_meter`` or ``timeout``; never a secret.
    reason: str = ""
    #: Why it is dead, for ``rejected``.
    dead: DeadReason | None = None
    #: Stripe asked to wait this many seconds (already capped at one hour).
    retry_after_s: float | None = None
    #: True if the whole sender should slow down (429).
    throttled: bool = False
    #: True if it speaks against Stripe's health (5xx, timeout, no connection): feeds the breaker.
    unhealthy: bool = False
    #: True if waiting applies to the whole account (``Stripe-Rate-Limited-Reason: global-*``).
    account_wide: bool = False
