"""Decides about shipments in doubt, by what Stripe shows for their minute.

After 23 h of unknown outcome nothing is sent again (P6): Stripe may have forgotten the identifier.
Its summaries decide instead. "Absent" is believed only when a shipment delivered later is visible
there and two looks an hour apart agree; what stays unclear for three days needs a person.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Protocol

from . import logs
from .errors import C2MeterError, GatewayError
from .model import Clock, to_ms

if TYPE_CHECKING:
    from .store import Doubt, Store

logger: logs.Log = logs.logger(__name__)

#: Two looks that agree are at least this far apart.
LOOK_EVERY = timedelta(hours=1)
#: After this long without a decision an operator decides.
PATIENCE = timedelta(hours=72)
#: While Stripe cannot be asked, a doubt is left alone for this long.
ASK_AGAIN = timedelta(minutes=1)


class Summaries(Protocol):
    """Reads what Stripe has counted."""

    def minute_total(self, meter: str, customer: str, minute: datetime) -> int | None: ...


class Jury:
    """Looks at one doubt at a time: a duty of the clerk.

    :param summaries: raises a ``C2MeterError`` while Stripe cannot be asked.
    """

    name = "doubts"

    def __init__(self, store: Store, summaries: Summaries, clock: Clock) -> None:
        self._store = store
        self._summaries = summaries
        self._clock = clock

    def is_due(self) -> bool:
        """Whether a doubt is to be looked at now."""
        return bool(self._store.doubts(to_ms(self._clock()), limit=1))

    def work(self) -> None:
        """Look at the doubts that are due."""
        for doubt in self._store.doubts(to_ms(self._clock())):
            try:
                self.decide(doubt)
            except C2MeterError as exc:
                logger.warning("doubt_waits", shipment=doubt.shipment.identifier, error=exc)
                self._put_off(doubt, ASK_AGAIN, doubt.absent_since)

    def decide(self, doubt: Doubt) -> None:
        """Decide about *doubt*, or put the decision off."""
        now = self._clock()
        shipment = doubt.shipment
        shown = self._shown(shipment.meter, shipment.customer, doubt.minute)
        if shown == doubt.expected_without + shipment.value:
            self._store.end_doubt(shipment.identifier, "delivered", to_ms(now))
            return
        is_absent = shown == doubt.expected_without and self._sees_witness(doubt)
        since = doubt.absent_since if is_absent else None
        if since is not None and now - since >= LOOK_EVERY:
            logger.warning("shipment_lost", shipment=shipment.identifier, then="cut_anew")
            self._store.end_doubt(shipment.identifier, "lost", to_ms(now))
        elif shipment.first_attempt_at and now - shipment.first_attempt_at > PATIENCE:
            logger.error("shipment_ambiguous", shipment=shipment.identifier)
            self._store.end_doubt(shipment.identifier, "ambiguous", to_ms(now))
        else:
            self._put_off(doubt, LOOK_EVERY, (since or now) if is_absent else None)

    def _put_off(self, doubt: Doubt, by: timedelta, absent_since: datetime | None) -> None:
        self._store.prolong_doubt(
            doubt.shipment.identifier,
            to_ms(self._clock() + by),
            None if absent_since is None else to_ms(absent_since),
        )

    def _sees_witness(self, doubt: Doubt) -> bool:
        witness = doubt.witness
        if witness is None:
            return False
        minute = witness.timestamp.replace(second=0, microsecond=0)
        return self._shown(witness.meter, witness.customer, minute) == doubt.witness_expected

    def _shown(self, meter: str, customer: str, minute: datetime) -> int | None:
        """What Stripe shows for the minute; None if it has no such meter: that decides nothing."""
        try:
            return self._summaries.minute_total(meter, customer, minute) or 0
        except GatewayError as exc:
            if exc.reason != "no_meter":
                raise
            return None
