"""What the worker and the store say to each other; plain values, no SQL.

Apart from the statements so that an app which only imports the package does not load SQLAlchemy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from ..model import MINUTE_MS
from ..shipment import Shipment, ShipmentState

#: Stands for every customer, or every meter, in ``lanes``.
ALL = "*"

#: Name in ``meta`` of how many events Stripe has refused that no shipment is known of.
UNEXPLAINED = "unexplained_refusals"

#: Name in ``meta`` of what the last reconciliation of everything found.
RECONCILED = "reconciled"

#: While a hold lasts, one shipment is tried this often.
PROBE_MS = MINUTE_MS
#: The breaker's hold of everything: Stripe is down, so look more often.
UNAVAILABLE = "stripe_unavailable"
UNAVAILABLE_PROBE_MS = 5_000


def probe_after_ms(reason: str) -> int:
    """How long a hold for *reason* waits between two probes."""
    return UNAVAILABLE_PROBE_MS if reason == UNAVAILABLE else PROBE_MS


@dataclass(frozen=True, slots=True)
class Settlement:
    """What the worker decided about an attempted shipment."""

    shipment: Shipment
    state: ShipmentState
    reason: str | None = None
    next_attempt_ms: int = 0
    #: False if Stripe certainly did not process the attempt.
    may_have_arrived: bool = True


@dataclass(frozen=True, slots=True)
class Hold:
    """A pause of one meter, or of everything (meter ``*``), until the next probe."""

    meter: str
    reason: str
    since_ms: int
    probe_ms: int


@dataclass(frozen=True, slots=True)
class Exchange:
    """What one visit of the worker to the store gave."""

    #: Leased to the caller; their attempts have begun. One per lane.
    claimed: Sequence[Shipment]
    #: Set aside without an attempt: too old, or in doubt for too long.
    set_aside: Sequence[Shipment]
    #: Holds in force.
    holds: Sequence[Hold]
    #: Settlements that were accepted: the lease was still ours.
    settled: Sequence[Settlement]


@dataclass(frozen=True, slots=True)
class Claimant:
    """Who claims, and what it may send."""

    owner: str
    lease_until_ms: int
    #: Meters it may take; the rest is held or not billable.
    meters: Sequence[str]
    want: int


class LaneTour:
    """Where the worker's round through the open lanes stands, so that none starves.

    Kept in its memory only: losing it costs nothing, and the round wraps, so a bucket that opens
    behind it is found on the next one.
    """

    def __init__(self) -> None:
        #: Meter -> the customer visited last.
        self.after: dict[str, str] = {}
        self.last_meter = ""


@dataclass(frozen=True, slots=True)
class Doubt:
    """One shipment in doubt and what we know of its minute."""

    shipment: Shipment
    minute: datetime
    #: What Stripe must show for the minute without this shipment, in wire units.
    expected_without: int
    #: When Stripe was first seen to lack it; None if never.
    absent_since: datetime | None
    #: The first delivery of the meter after the last attempt: Stripe must show it before absence
    #: means anything. Not the latest, which may never be visible yet.
    witness: Shipment | None
    #: What Stripe must show for the witness's whole minute.
    witness_expected: int


@dataclass(frozen=True, slots=True)
class MeterCounts:
    """Where the recorded quantity of one meter is, in wire units.

    ``recorded = unshipped + in_flight + delivered + in_doubt + dead + discarded``, always.
    """

    recorded: int = 0
    unshipped: int = 0
    in_flight: int = 0
    delivered: int = 0
    in_doubt: int = 0
    dead: int = 0
    discarded: int = 0
    #: Number of usage events; of those of which properties were left out, of those whose value
    #: could not be told and is 0, and of the streams that began with nothing known.
    events: int = 0
    incomplete: int = 0
    invalid: int = 0
    reserved: int = 0
    #: Occurrence of the oldest event not yet delivered, UTC milliseconds.
    oldest_unshipped_ms: int | None = None
    #: Number of shipments that wait for a decision.
    dead_shipments: int = 0
