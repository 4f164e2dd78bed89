"""One customer's meter in the ledger and at Stripe, compared from coarse to fine.

Reads are metered by Stripe: one of a range for each customer and meter, by the day; then the hours
of the days that differ, then the minutes of the hours that differ. A minute is read between two
looks into the store that agree, because the worker ships meanwhile.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from typing import TYPE_CHECKING

from .errors import GatewayError
from .model import Clock
from .reconciliation import Difference, Kind, Minute, judge, of_dead, of_open
from .summaries import SummaryReader, Totals, Window

if TYPE_CHECKING:
    from .store.reconciling import LaneBook, Reconciling

#: How often a minute is looked at that changes meanwhile.
_LOOKS = 3
#: So many later deliveries are tried to see whether Stripe is up to date.
_WITNESSES = 3
#: After so many searches in vain Stripe lags: a search reads all shipments of a meter.
_SEARCHES = 10

_MINUTE, _HOUR, _DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Lane:
    """A customer's meter."""

    customer: str
    meter: str
    #: Whether Stripe has such a meter.
    is_known: bool = True

    @property
    def where(self) -> tuple[str, str]:
        return self.customer, self.meter


class Comparison:
    """Compares lane after lane, and remembers how up to date Stripe is with each meter."""

    def __init__(self, book: Reconciling, summaries: SummaryReader, clock: Clock) -> None:
        self._book = book
        self._stripe = summaries
        self._clock = clock
        #: Meter -> Stripe shows what was delivered then.
        self._seen: dict[str, datetime] = {}
        #: Meter -> searches in a row that have not shown how up to date Stripe is.
        self._fruitless: Counter[str] = Counter()

    def differences(
        self, lane: Lane, start: datetime, end: datetime, book: LaneBook
    ) -> Iterator[Difference]:
        """Each difference of *lane* in ``[start, end)``, whole UTC days, once.

        :param book: what the store has of it.
        :raises GatewayError: Stripe cannot be read.
        """
        now = self._clock()
        if book.has_dead:
            for minute, sent in self._book.dead(*lane.where, start, end):
                yield of_dead(minute, sent)
        if book.oldest_open is not None:
            yield of_open(Minute(*lane.where, book.oldest_open, book.unshipped), now)
        if not lane.is_known and not book.days:
            return
        try:
            theirs = self._read(lane, start, end, "day")
        except GatewayError as exc:
            if exc.reason != "resource_missing":
                raise
            yield from _of_unknown(lane, book)
            return
        for day in sorted(book.days.keys() | theirs.keys()):
            if book.days.get(day, 0) != theirs.get(day, 0):
                yield from self._day(lane, day)
            elif day in book.days:
                self._has_seen(lane.meter, book.settled[day])

    def _day(self, lane: Lane, day: datetime) -> Iterator[Difference]:
        theirs = self._read(lane, day, day + _DAY, "hour")
        ours = self._book.hours(*lane.where, day, day + _DAY)
        for hour in sorted(ours.keys() | theirs.keys()):
            if ours.get(hour, 0) != theirs.get(hour, 0):
                yield from self._hour(lane, hour, theirs.get(hour, 0))

    def _hour(self, lane: Lane, hour: datetime, theirs: int | Decimal) -> Iterator[Difference]:
        """The minutes in which we sent something one by one; the others only as far as needed."""
        ours = self._book.minutes(*lane.where, hour, hour + _HOUR)
        for minute in ours:
            shown, found = self._minute(lane, minute)
            theirs -= shown
            if found is not None:
                yield found
        for before, after in pairwise([hour - _MINUTE, *ours, hour + _HOUR]):
            start = before + _MINUTE
            if theirs and start < after and (total := self._sum(lane, start, after)):
                theirs -= total
                yield from self._narrow(lane, start, after, total)

    def _narrow(
        self, lane: Lane, start: datetime, end: datetime, total: int | Decimal
    ) -> Iterator[Difference]:
        """Find the minutes of ``[start, end)``, where we sent nothing, that make up *total*."""
        minutes = (end - start) // _MINUTE
        if minutes == 1:
            _, found = self._minute(lane, start)
            if found is not None:
                yield found
            return
        middle = start + minutes // 2 * _MINUTE
        first = self._sum(lane, start, middle)
        if first:
            yield from self._narrow(lane, start, middle, first)
        if total != first:
            yield from self._narrow(lane, middle, end, total - first)

    def _minute(self, lane: Lane, start: datetime) -> tuple[int | Decimal, Difference | None]:
        """What Stripe shows of one minute, and what is wrong with it."""
        for _ in range(_LOOKS):
            minute = self._book.minute(*lane.where, start)
            shown = self._sum(lane, start, start + _MINUTE)
            if self._book.minute(*lane.where, start).shipments == minute.shipments:
                break
        else:  # much is sent just now: nothing can be said
            return shown, None
        delivered = [
            sent.settled_at for sent in minute.shipments if sent.is_delivered and sent.settled_at
        ]
        if delivered and shown == minute.delivered:
            self._has_seen(lane.meter, max(delivered))
        elif delivered:
            self._look_for_witness(minute, max(delivered))
        return shown, judge(minute, shown, self._clock(), self._seen.get(lane.meter))

    # -- whether Stripe is up to date ----------------------------------------------------------

    def _has_seen(self, meter: str, settled: datetime) -> None:
        seen = self._seen.get(meter)
        self._seen[meter] = settled if seen is None else max(seen, settled)

    def _look_for_witness(self, minute: Minute, since: datetime) -> None:
        """See whether Stripe shows something that was delivered from *since* on."""
        meter = minute.meter
        if (seen := self._seen.get(meter)) is not None and seen >= since:
            return
        if self._fruitless[meter] >= _SEARCHES:
            return
        self._fruitless[meter] += 1
        for witness in self._book.witnesses(minute, since, _WITNESSES):
            lane = Lane(witness.customer, meter)
            shown = self._sum(lane, witness.minute, witness.minute + _MINUTE)
            if shown == witness.expected != 0:
                self._has_seen(meter, witness.settled_at)
                self._fruitless[meter] = 0
                return

    # -- reading -------------------------------------------------------------------------------

    def _sum(self, lane: Lane, start: datetime, end: datetime) -> int | Decimal:
        return sum(self._read(lane, start, end).values())

    def _read(self, lane: Lane, start: datetime, end: datetime, window: Window = None) -> Totals:
        if not lane.is_known:
            return {}
        return self._stripe.totals(lane.meter, lane.customer, start, end, window)


def _of_unknown(lane: Lane, book: LaneBook) -> Iterator[Difference]:
    """What Stripe has of a customer that it does not know (any more): nothing."""
    note = "Stripe does not know this customer: not repaired"
    for day, units in sorted(book.days.items()):
        yield Difference(Minute(*lane.where, day, units), Kind.LOST, 0, note=note)
