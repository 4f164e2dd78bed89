"""Closing a billing cycle: what was recorded is held against Stripe while its invoice is a draft.

The draft is announced by ``invoice.created``. The courier ships what is left of the cycle before
all else; half of the time until the invoice is final is left to it and to Stripe's summaries. What
differs then is named while an operator can still do something about it. Nothing is repaired here:
that is for ``flask c2meter reconcile --repair``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from . import logs
from .model import Clock
from .reconciliation import Kind

if TYPE_CHECKING:
    from .reconciler import Reconciler
    from .store import Store

logger: logs.Log = logs.logger(__name__)


class PeriodClose:
    """Reconciles cycles that are being closed: a duty of the clerk.

    :param may_read: whether Stripe is where this store delivers to.
    """

    name = "period-close"

    def __init__(
        self,
        store: Store,
        reconciler: Callable[[], Reconciler],
        clock: Clock,
        may_read: Callable[[], bool] = lambda: True,
    ) -> None:
        self._closings = store.closings
        self._reconciler = reconciler
        self._clock = clock
        self._may_read = may_read

    def is_due(self) -> bool:
        """Whether a cycle is to be looked at now."""
        return self._closings.are_due(self._clock()) and self._may_read()

    def work(self) -> None:
        """Look at one cycle; what is on its way then is looked at again."""
        now = self._clock()
        closing = self._closings.take(now)
        if closing is None:  # another process was faster
            return
        cycle = self._closings.cycle(closing)
        reconciler = self._reconciler()
        found = [
            finding.difference
            for finding in reconciler.run(
                reconciler.scope(cycle.start, cycle.end, closing.customer)
            )
            if cycle.start <= finding.difference.minute.start < cycle.end
        ]
        is_final = self._closings.is_final(closing, now)
        settled = [each for each in found if is_final or each.kind is not Kind.IN_FLIGHT]
        for each in settled:
            logger.error(
                "invoice_differs",
                cycle_end=closing.end.isoformat(),
                meter=each.minute.meter,
                kind=each.kind,
                minute=each.minute.start.isoformat(),
                note=each.note,
            )
        if settled:
            self._closings.differs(closing)
        elif not found:
            self._closings.done(closing)
