"""Reading subscriptions: a duty of the clerk, never of a request.

Whose subscriptions are to be looked at is known to the store: customers seen for the first time,
those whose cycle has ended, those somebody has asked for, those a webhook has spoken of. A look
goes to Stripe, or to the host's ``subscription_loader``; what it finds, the store learns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from . import logs
from .errors import C2MeterError, GatewayError
from .model import Clock, Subscription
from .periods import ENDED, whole_seconds
from .stripe_objects import Names, subscription_from

if TYPE_CHECKING:
    from .gateway import Gateway
    from .store import Finding, Store

logger: logs.Log = logs.logger(__name__)

#: Looked at in one go.
BATCH = 10
#: Without other reasons this often; where webhooks tell of changes, rarely: reads are metered.
REFRESH, RARELY = timedelta(days=1), timedelta(days=7)
#: A new cycle is looked at a little after it has begun.
SETTLING = timedelta(seconds=30)
#: After a look that failed.
RETRY = timedelta(minutes=1)

#: Name in ``meta`` of what Stripe calls the meters.
METER_IDS = "stripe_meters"


@dataclass(frozen=True, slots=True)
class Look:
    """What was found of one customer."""

    finding: Finding
    subscriptions: Sequence[Subscription] = ()


class Source(Protocol):
    """Where subscriptions are read."""

    @property
    def name(self) -> Literal["stripe", "loader"]:
        """For the history."""

    def look(self, customer: str) -> Look:
        """What there is of *customer*.

        :raises C2MeterError: nothing can be said now.
        """


class SubscriptionReader:
    """Looks at the customers that are due.

    :param may_read: whether *source* is where this store delivers to.
    :param refresh: how often to look without a reason.
    """

    name = "subscriptions"

    def __init__(
        self,
        store: Store,
        source: Source,
        clock: Clock,
        may_read: Callable[[], bool] = lambda: True,
        refresh: timedelta = REFRESH,
    ) -> None:
        self._store = store
        self._source = source
        self._clock = clock
        self._may_read = may_read
        self._refresh = refresh

    def is_due(self) -> bool:
        """Whether a customer is to be looked at now."""
        return self._store.subscriptions.are_due(self._clock()) and self._may_read()

    def work(self) -> None:
        """Look at a few customers."""
        for customer in self._store.subscriptions.take_due(self._clock(), BATCH):
            self._look_at(customer)

    def _look_at(self, customer: str) -> None:
        now = whole_seconds(self._clock())
        try:
            look = self._source.look(customer)
        except Exception as exc:
            self._store.subscriptions.put_off(customer, "failed", now + RETRY)
            if isinstance(exc, C2MeterError):
                raise
            logger.exception("subscription_loader_failed")
            return
        self._store.subscriptions.learn(
            customer,
            look.subscriptions,
            now,
            source=self._source.name,
            finding=look.finding,
            look_again=self._next_look(look, now),
        )

    def _next_look(self, look: Look, now: datetime) -> datetime:
        ends = (
            cycle.end + SETTLING
            for subscription in look.subscriptions
            if subscription.status not in ENDED
            for cycle in (
                subscription.period,
                *(each.period for each in subscription.items.values()),
            )
            if cycle.end > now
        )
        return min((now + self._refresh, *ends))


class StripeSource:
    """Reads Stripe.

    :param names: without meter ids, which are asked for when they are needed.
    """

    name: Final = "stripe"

    def __init__(self, gateway: Gateway, store: Store, names: Names) -> None:
        self._gateway = gateway
        self._store = store
        self._names = names

    def look(self, customer: str) -> Look:
        """What Stripe has of *customer*."""
        try:
            found = self._gateway.subscriptions(customer)
            goes_on = any(each.get("status") not in ENDED for each in found)
            is_deleted = not goes_on and self._gateway.is_deleted(customer)
        except GatewayError as exc:
            if exc.reason == "resource_missing":
                return Look("unknown")
            raise
        if self._names.are_unknown(found):
            self._ask_for_names()
        try:
            subscriptions = [subscription_from(each, self._names) for each in found]
        except (LookupError, TypeError, ValueError) as exc:
            raise GatewayError("unreadable subscription") from exc
        alive = [each for each in subscriptions if each.status not in ENDED]
        if len(alive) > 1:
            return Look("several", subscriptions)
        return Look("known" if alive else "deleted" if is_deleted else "none", subscriptions)

    def _ask_for_names(self) -> None:
        ids: dict[str, Any] = {
            meter_id: name for name, meter_id in self._gateway.meter_ids().items()
        }
        self._names = Names(self._names.plans, self._names.meters, ids)
        # For the webhooks: a request may not ask Stripe.
        self._store.note(METER_IDS, ids)


class LoaderSource:
    """Asks the host's ``subscription_loader``."""

    name: Final = "loader"

    def __init__(self, loader: Callable[[str], Subscription | None]) -> None:
        self._loader = loader

    def look(self, customer: str) -> Look:
        """What the host says of *customer*."""
        found = self._loader(customer)
        if found is None:
            return Look("none")
        if not isinstance(found, Subscription):
            raise TypeError(
                f"the subscription_loader returned {type(found).__name__}; "
                "it must return a Subscription or None"
            )
        return Look("known" if found.status not in ENDED else "none", [found])
