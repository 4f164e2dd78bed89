"""Reconciliation: what one minute of ours and one of Stripe's say when they differ.

Pure; imports only :mod:`~flask_c2meter.shipment`. Stripe shows sums and no single events, so a
difference is explained by the shipments of its minute: counted not at all, or twice. What no
shipment explains is foreign. Promises kept: each difference has one kind; what Stripe may still be
adding up is never called lost; a repair is named only where it makes the minute equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum

from .shipment import DeadReason, ShipmentState

#: What was delivered so recently may not be in Stripe's summaries yet, which have no stated bound.
SETTLING = timedelta(hours=1)

#: Most sums that are tried to explain one minute.
_MAX_SUMS = 4096


class Kind(StrEnum):
    """Why the ledger and Stripe differ."""

    #: On its way: not shipped yet, or shipped and not yet shown.
    IN_FLIGHT = "in flight"
    #: Stripe accepted it and does not count it.
    LOST = "lost"
    #: Stripe counts it twice.
    DOUBLED = "doubled"
    #: Stripe refused it: a dead letter waits for a decision.
    REFUSED = "refused"
    #: It came when Stripe would bill it nowhere: a dead letter waits for a decision.
    LATE = "late"
    #: Stripe counts what we never sent.
    FOREIGN = "foreign"
    #: Nobody can tell whether Stripe has it: a dead letter waits for a decision.
    AMBIGUOUS = "ambiguous"


_DEAD_KINDS = {
    DeadReason.LATE: Kind.LATE,
    DeadReason.EXPIRED: Kind.LATE,
    DeadReason.AMBIGUOUS: Kind.AMBIGUOUS,
}

_DEAD_NOTES = {
    DeadReason.LATE: "it came when its invoice was final",
    DeadReason.EXPIRED: "it was older than the 35 days for which Stripe takes usage",
    DeadReason.AMBIGUOUS: "nobody can tell whether Stripe has it",
}


@dataclass(frozen=True, slots=True)
class Sent:
    """A shipment, as far as it matters here. Quantities in wire units."""

    identifier: str
    value: int
    #: What Stripe is held to have counted of it.
    counted: int
    state: ShipmentState
    reason: str | None
    timestamp: datetime
    #: When it was delivered or set aside; None = it is under way.
    settled_at: datetime | None
    #: Whether an attempt was made that Stripe may have processed.
    was_tried: bool

    @property
    def is_delivered(self) -> bool:
        """Whether Stripe has accepted it."""
        return self.state is ShipmentState.DELIVERED

    @property
    def may_be_there(self) -> bool:
        """Whether Stripe may or may not have it."""
        if self.state in (ShipmentState.DEAD, ShipmentState.DISCARDED):
            return self.counted != 0 and self.dead_reason is DeadReason.AMBIGUOUS
        return self.state is not ShipmentState.DELIVERED and self.was_tried

    @property
    def dead_reason(self) -> DeadReason:
        """Why it was set aside."""
        word = (self.reason or "").partition(":")[0]
        return DeadReason(word) if word in set(DeadReason) else DeadReason.OTHER


@dataclass(frozen=True, slots=True)
class Minute:
    """One minute of a customer's meter, as the store has it."""

    customer: str
    meter: str
    start: datetime
    #: What was recorded in it, in wire units.
    recorded: int
    shipments: tuple[Sent, ...] = ()

    @property
    def delivered(self) -> int:
        """What Stripe is held to have counted."""
        return sum(sent.counted for sent in self.shipments if sent.is_delivered)


@dataclass(frozen=True, slots=True)
class Repair:
    """Another ``counted`` for a shipment; what then differs from its bucket is shipped."""

    identifier: str
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing in which the ledger and Stripe differ. Quantities in wire units."""

    #: As it was judged; of what is not delivered yet, the oldest, with all of that recorded in it.
    minute: Minute
    kind: Kind
    #: What Stripe counts of the minute.
    theirs: int | Decimal
    #: The shipments that it is about.
    shipments: tuple[str, ...] = ()
    #: What makes the two equal; empty where that is not certain.
    repairs: tuple[Repair, ...] = ()
    #: In words: the reason, or why it is not repaired.
    note: str = ""
    #: In flight for so short a time that nothing is wrong.
    is_fresh: bool = False


def judge(
    minute: Minute, theirs: int | Decimal, now: datetime, seen: datetime | None
) -> Difference | None:
    """Why Stripe shows *theirs* for *minute*; None if that is what we hold it to have counted.

    Dead letters are not spoken of here: see :func:`of_dead`.

    :param seen: Stripe shows a shipment of this meter that was delivered then; so it should show
        what was delivered before.
    """
    delivered = [sent for sent in minute.shipments if sent.is_delivered]
    firm = [sent for sent in delivered if not is_settling(sent, now, seen)]
    settling = [sent.counted for sent in delivered if is_settling(sent, now, seen)]
    open_ = [sent for sent in minute.shipments if sent.may_be_there]
    gap = theirs - sum(sent.counted for sent in firm)
    found = Difference(minute, Kind.IN_FLIGHT, theirs)
    if not open_ and gap > sum(units for units in settling if units > 0):
        # More than all that was ever sent: no delay explains it.
        return _explained(found, delivered, theirs - minute.delivered, seen)
    if gap - sum(settling) in _sums(sent.value for sent in open_):
        return None
    if gap in _sums([*settling, *(sent.value for sent in open_)]):
        return replace(found, is_fresh=True, note="delivered, but Stripe does not show it yet")
    if settling or any(sent.state is ShipmentState.IN_DOUBT for sent in open_):
        note = "Stripe shows something else; look again when all of it has settled"
        return replace(found, is_fresh=bool(settling), note=note)
    if any(sent.state is not ShipmentState.DISCARDED for sent in open_):  # named as what it is
        return None
    if open_:
        return _written_off(found, gap)
    return _explained(found, firm, gap, seen)


def _written_off(found: Difference, gap: int | Decimal) -> Difference:
    """Nobody says any more what may be there; what it does not explain is named all the same."""
    kind = Kind.FOREIGN if gap > 0 else Kind.LOST
    return replace(found, kind=kind, note="what was discarded does not explain it: not repaired")


def is_settling(sent: Sent, now: datetime, seen: datetime | None) -> bool:
    """Whether Stripe need not show this delivered shipment yet."""
    if sent.settled_at is None or sent.settled_at <= now - SETTLING:
        return False
    return seen is None or sent.settled_at > seen


def _explained(
    found: Difference, firm: Sequence[Sent], gap: int | Decimal, seen: datetime | None
) -> Difference:
    explanation = _explanation(firm, gap)
    if explanation is None and gap > 0:
        return replace(found, kind=Kind.FOREIGN, note="no shipment of ours explains it")
    if explanation is None:
        return replace(found, kind=Kind.LOST, note="no shipments explain it: not repaired")
    kind, blamed = explanation
    named = replace(found, kind=kind, shipments=tuple(sent.identifier for sent in blamed))
    if kind is Kind.LOST and not all(_has_witness(sent, seen) for sent in blamed):
        return replace(named, note="Stripe shows nothing newer of this meter: not repaired")
    return replace(named, repairs=tuple(_repair(kind, sent) for sent in blamed))


def _has_witness(sent: Sent, seen: datetime | None) -> bool:
    return seen is not None and sent.settled_at is not None and sent.settled_at <= seen


def _repair(kind: Kind, sent: Sent) -> Repair:
    step = -sent.value if kind is Kind.LOST else sent.value
    return Repair(sent.identifier, sent.counted, sent.counted + step)


def _explanation(firm: Sequence[Sent], gap: int | Decimal) -> tuple[Kind, list[Sent]] | None:
    """The shipments that Stripe counts once too little, or too often; the simplest explanation."""
    # Of equal ones the newest: which of them it is, nobody can tell.
    newest = sorted(firm, key=lambda sent: sent.identifier, reverse=True)
    countable = [sent for sent in newest if sent.counted in (sent.value, 2 * sent.value)]
    repeatable = [sent for sent in newest if sent.counted in (0, sent.value)]
    for sent in countable:
        if -sent.value == gap:
            return Kind.LOST, [sent]
    for sent in repeatable:
        if sent.value == gap:
            return Kind.DOUBLED, [sent]
    if lost := _subset(countable, gap):
        return Kind.LOST, lost
    # Any set of them would be a guess; all of them is a batch that was taken twice.
    if len(repeatable) > 1 and sum(sent.value for sent in repeatable) == gap:
        return Kind.DOUBLED, repeatable
    return None


def _subset(countable: Sequence[Sent], gap: int | Decimal) -> list[Sent] | None:
    """The fewest of *countable* whose values make up what is missing."""
    reached: dict[int, list[Sent]] = {0: []}
    for sent in countable:
        for total, chosen in list(reached.items()):
            further = [*chosen, sent]
            known = reached.get(total - sent.value)
            if known is None or len(further) < len(known):
                reached[total - sent.value] = further
        if len(reached) > _MAX_SUMS:
            return None
    return next((chosen for total, chosen in reached.items() if total == gap and chosen), None)


def _sums(values: Iterable[int]) -> set[int]:
    """Everything that some of *values* add up to; nothing of none of them is 0."""
    sums = {0}
    for value in values:
        sums |= {total + value for total in sums}
        if len(sums) > _MAX_SUMS:
            break
    return sums


# -- what the store knows by itself ----------------------------------------------------------------


def of_dead(minute: Minute, sent: Sent) -> Difference:
    """The difference that a dead shipment of *minute* makes."""
    reason = sent.dead_reason
    return Difference(
        minute,
        _DEAD_KINDS.get(reason, Kind.REFUSED),
        minute.delivered,
        shipments=(sent.identifier,),
        note=_DEAD_NOTES.get(reason) or sent.reason or reason.value,
    )


def of_open(oldest: Minute, now: datetime) -> Difference:
    """The difference that usage on its way makes.

    :param oldest: the first minute of it, with all that Stripe has not been seen to accept.
    """
    is_fresh = oldest.start > now - SETTLING
    return Difference(oldest, Kind.IN_FLIGHT, 0, note="not delivered yet", is_fresh=is_fresh)
