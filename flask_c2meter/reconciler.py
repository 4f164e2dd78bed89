"""The reconciler: holds the ledger against Stripe, repairs what is certain, keeps the score.

How a customer's meter is compared is in :mod:`~flask_c2meter.comparison`, what a difference means
in :mod:`~flask_c2meter.reconciliation`. Only ``counted`` is repaired; the worker ships the rest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, NamedTuple

from .comparison import Comparison, Lane
from .jury import Jury
from .model import MAX_AGE, Clock
from .reconciliation import Difference
from .store import RECONCILED
from .summaries import SummaryReader
from .targets import share

if TYPE_CHECKING:
    from .gateway import Gateway
    from .store import Store
    from .store.reconciling import LaneBook

_DAY = timedelta(days=1)


class Finding(NamedTuple):
    """A difference, and whether it has been repaired."""

    difference: Difference
    is_repaired: bool


@dataclass(slots=True)
class Tally:
    """What has been compared so far."""

    #: Customers' meters; hours of them with usage; those of the hours that differ.
    lanes: int = 0
    hours: int = 0
    differing_hours: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    repaired: int = 0
    #: Differences that are more than fresh usage on its way.
    serious: int = 0

    @property
    def accuracy(self) -> Decimal | None:
        """The share of hours that agree, 0 to 1, rounded down; None = there are none."""
        return share(self.hours - self.differing_hours, self.hours)


class Scope(NamedTuple):
    """What to compare: whole UTC days."""

    start: datetime
    end: datetime
    #: None = every one.
    customer: str | None = None
    #: Whether to ask about customers without usage, too.
    with_idle: bool = False


def _day_of(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def _written(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


class Reconciler:
    """Compares, names, repairs.

    :param meters: names of the billable meters.
    """

    def __init__(
        self,
        store: Store,
        gateway: Gateway,
        summaries: SummaryReader,
        meters: Collection[str],
        clock: Clock,
    ) -> None:
        self._store = store
        self._book = store.reconciling
        self._gateway = gateway
        self._meters = sorted(meters)
        self._clock = clock
        self._comparison = Comparison(store.reconciling, summaries, clock)

    def scope(
        self,
        since: datetime | None = None,
        until: datetime | None = None,
        customer: str | None = None,
        *,
        with_idle: bool = False,
    ) -> Scope:
        """The whole days from *since* to *until*.

        :param since: None = from where Stripe still takes corrections.
        :param until: None = all that has happened.
        :param with_idle: ask about customers without usage, too, as is done of a single one.
        """
        now = self._clock()
        start = _day_of(now - MAX_AGE if since is None else since)
        # A day more: Stripe takes usage up to five minutes ahead.
        end = _day_of((now if until is None else until) + _DAY)
        return Scope(start, end, customer, with_idle or customer is not None)

    def run(
        self,
        scope: Scope,
        *,
        repair_as: str | None = None,
        tally: Tally | None = None,
        progress: Callable[[int], None] = lambda lanes: None,
    ) -> Iterator[Finding]:
        """Yield each difference once; first the doubts that are due are decided.

        :param repair_as: who has asked for repairs; None = nobody.
        :param tally: is kept up to date.
        :param progress: told now and then how many customers' meters have been compared.
        :raises GatewayError: Stripe cannot be read.
        """
        tally = Tally() if tally is None else tally
        known = self._gateway.meter_ids().keys()  # before all: is Stripe there?
        self._decide_doubts()
        everyone = self._store.customer_ids() if scope.customer is None else [scope.customer]
        for customer in everyone:
            books = {
                meter: self._book.lane(customer, meter, scope.start, scope.end)
                for meter in self._meters
            }
            if all(book.is_empty for book in books.values()) and not scope.with_idle:
                continue
            before = tally.serious
            for meter, book in books.items():
                lane = Lane(customer, meter, is_known=meter in known)
                found = self._comparison.differences(lane, scope.start, scope.end, book)
                yield from self._tallied(found, book, repair_as, tally)
                progress(tally.lanes)
            if tally.serious == before:
                self._store.closings.agree_at_last(customer, scope.start, scope.end)
        if scope.customer is None and not self._is_too_narrow(scope):
            self._note(scope, tally)

    def _tallied(
        self, differences: Iterator[Difference], book: LaneBook, who: str | None, tally: Tally
    ) -> Iterator[Finding]:
        differing: set[datetime] = set()
        undecided: set[datetime] = set()
        for found in differences:
            finding = self._finding(found, who)
            hour = found.minute.start.replace(minute=0)
            (undecided if found.is_fresh else differing).add(hour)
            tally.kinds[found.kind] += 1
            tally.repaired += finding.is_repaired
            tally.serious += not found.is_fresh
            yield finding
        tally.lanes += 1
        tally.hours += len((book.hours - undecided) | differing)
        tally.differing_hours += len(differing)

    def _decide_doubts(self) -> None:
        jury = Jury(self._store, self._gateway, self._clock)
        while jury.is_due():
            jury.work()

    def _is_too_narrow(self, scope: Scope) -> bool:
        """Whether differences are known that *scope* does not reach."""
        if scope.start <= _day_of(self._clock() - MAX_AGE):
            return False
        known = self._store.facts().get(RECONCILED)
        return bool(known and known["serious"] and known["since"] < _written(scope.start))

    def _note(self, scope: Scope, tally: Tally) -> None:
        accuracy = tally.accuracy
        self._store.note(
            RECONCILED,
            {
                "at": _written(self._clock()),
                "since": _written(scope.start),
                "accuracy": None if accuracy is None else str(accuracy),
                "hours": tally.hours,
                "differing_hours": tally.differing_hours,
                "differences": dict(tally.kinds),
                "repaired": tally.repaired,
                "serious": tally.serious - tally.repaired,
            },
        )

    def _finding(self, found: Difference, who: str | None) -> Finding:
        if not found.repairs:
            return Finding(found, is_repaired=False)
        now = self._clock()
        if who is None:
            note = self._book.obstacle(found.minute, now) or "can be repaired"
            return Finding(replace(found, note=note), is_repaired=False)
        why = self._book.repair(found, who, now)
        return Finding(found, True) if why is None else Finding(replace(found, note=why), False)
