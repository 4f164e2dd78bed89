"""What Stripe tells by webhook, and what follows from it.

A request takes an event in: its effect and the note that it is known are one transaction. Where
Stripe would have to be asked first, which no request does, the event waits for the clerk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeGuard

from . import logs
from .errors import C2MeterError, GatewayError
from .model import Clock
from .pacing import MAX_BACKOFF_S
from .shipment import Shipment, ShipmentState
from .store import UNEXPLAINED
from .stripe_objects import (
    Names,
    Object,
    Refusals,
    closing_invoice,
    has_all_items,
    refusals_from,
    subscription_from,
)
from .subscriptions import METER_IDS

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from .gateway import Gateway
    from .store import Store
    from .store.inbox import Inbox, State

logger: logs.Log = logs.logger(__name__)

#: Looked into in one go.
BATCH = 5
#: Stripe keeps a thin event for 30 days; what cannot be fetched for so long will not be.
MAX_ATTEMPTS = 30 * 86_400 // int(MAX_BACKOFF_S)

#: How long an event is known after it came. Stripe can be made to send one again for 30 days.
KEPT = timedelta(days=90)
FORGOTTEN_AT_ONCE = 500

#: Thin events: what they say has to be fetched.
REPORTS = frozenset({"v1.billing.meter.error_report_triggered", "v1.billing.meter.no_meter_found"})
#: Refusals that all events of the meter would meet.
_HOLDING = frozenset({"no_meter", "archived_meter"})
#: Longest id of an event, and of its type.
_MAX_ID = 255

#: A meter, and why nothing of it is sent.
_Held = tuple[str, str]


@dataclass(frozen=True, slots=True)
class _News:
    """An event, and the transaction in which it has its effect."""

    on: Connection
    created: datetime
    #: The object it tells of.
    found: Object
    #: Names of what has changed of it.
    changed: frozenset[str] = frozenset()
    #: Holds that an operator has to be told of once they are committed.
    alarms: list[_Held] = field(default_factory=list)


class _BeingSent(C2MeterError):
    """A report is ahead of the receipt of what it names."""

    reason = "being_sent"


Effect = Callable[["StripeEvents", _News], bool]


class StripeEvents:
    """Takes events in; a duty of the clerk for those that have to be looked into.

    :param gateway: None without a Stripe key: nothing can be looked into.
    :param on_refused: told of each shipment that Stripe has refused after accepting it.
    """

    name = "stripe-events"

    def __init__(
        self,
        store: Store,
        names: Names,
        clock: Clock,
        gateway: Gateway | None,
        on_refused: Callable[[Shipment], None] = lambda shipment: None,
    ) -> None:
        self._store = store
        self._names = names
        self._clock = clock
        self._gateway = gateway
        self._on_refused = on_refused

    # -- in a request --------------------------------------------------------------------------

    def receive(self, event: Object) -> bool:
        """Take in an event whose signature was checked; False if it is known.

        One that cannot be understood is taken in too, as ``status`` says: sending it again would
        change nothing.

        :raises ValueError: it is no event at all.
        :raises StoreUnavailable: it could not be taken in; Stripe sends it again.
        """
        event_id, kind = event.get("id"), event.get("type")
        if not (_is_id(event_id) and _is_id(kind)):
            raise ValueError("an event has an id and a type")
        receive, now = self._store.inbox.receive, self._clock()
        alarms: list[_Held] = []
        try:
            is_new = receive(event_id, kind, now, lambda on: self._apply(on, kind, event, alarms))
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as exc:
            logger.exception("stripe_event_unreadable", stripe_event=event_id, type=kind)
            reason = f"unreadable: {type(exc).__name__}"
            return receive(event_id, kind, now, lambda on: "dead", reason)
        _raise_alarms(alarms)
        return is_new

    def _apply(self, on: Connection, kind: str, event: Object, alarms: list[_Held]) -> State:
        if kind in REPORTS:
            return "pending"
        effect = _effect(kind)
        if effect is None:
            return "ignored"
        data = event["data"]
        changed = frozenset(data.get("previous_attributes") or ())
        news = _News(on, _moment(event["created"]), data["object"], changed, alarms)
        return "applied" if effect(self, news) else "ignored"

    def _subscription(self, news: _News) -> bool:
        customer, names, now = str(news.found["customer"]), self._known_names(), self._clock()
        if names.are_unknown([news.found]) or not has_all_items(news.found):
            self._store.subscriptions.have_looked_at(customer, now, on=news.on)
        else:
            subscription = subscription_from(news.found, names)
            self._store.subscriptions.hear(
                customer,
                subscription,
                news.created,
                now,
                on=news.on,
                has_new_items="items" in news.changed,
            )
        return True

    def _customer_deleted(self, news: _News) -> bool:
        customer = str(news.found["id"])
        self._store.subscriptions.have_looked_at(customer, self._clock(), on=news.on)
        return True

    def _invoice_created(self, news: _News) -> bool:
        # It ends no period by itself: it may be for a fee in advance, or made by hand.
        customer = str(news.found["customer"])
        self._store.subscriptions.have_looked_at(customer, self._clock(), on=news.on)
        if (draft := closing_invoice(news.found, news.created)) is not None:
            self._store.closings.begin(customer, draft.cycle_ends, on=news.on)
        return True

    def _invoice_finalized(self, news: _News) -> bool:
        invoice = closing_invoice(news.found, news.created)
        return invoice is not None and self._store.subscriptions.finalise(invoice, on=news.on)

    def _meter_deactivated(self, news: _News) -> bool:
        return self._hold(str(news.found["event_name"]), "archived_meter", news)

    def _meter_reactivated(self, news: _News) -> bool:
        name = str(news.found["event_name"])
        if not self._is_newest(name, news):
            return False
        self._store.lift_hold(name, on=news.on)
        return True

    def _hold(self, name: str, reason: str, news: _News) -> bool:
        """Hold a meter, with one alarm, unless there is newer news of it."""
        if not self._is_newest(name, news):
            return False
        if self._store.hold_meter(name, reason, self._clock(), on=news.on):
            news.alarms.append((name, reason))
        return True

    def _is_newest(self, meter: str, news: _News) -> bool:
        """Whether nothing newer is known of *meter*, and it is ours."""
        told_at = int(news.created.timestamp())
        return meter in self._names.meters and self._store.note_newer(
            f"meter_news:{meter}", told_at, on=news.on
        )

    def _known_names(self) -> Names:
        ids: Mapping[str, str] = self._store.facts().get(METER_IDS) or {}
        return Names(self._names.plans, self._names.meters, ids)

    # -- for the clerk -------------------------------------------------------------------------

    def is_due(self) -> bool:
        """Whether an event is to be looked into now."""
        return self._gateway is not None and self._store.inbox.is_pending(self._clock())

    def work(self) -> None:
        """Look into a few events."""
        for event_id, attempt in self._store.inbox.take(self._clock(), BATCH):
            try:
                self._look_into(event_id)
            except C2MeterError as exc:
                self._put_off(event_id, attempt, exc)

    def _look_into(self, event_id: str) -> None:
        if self._gateway is None:
            return
        event = self._gateway.event(event_id)
        try:
            refusals = refusals_from(event["data"])
            told_at = datetime.fromisoformat(event["created"])
        except (LookupError, TypeError, ValueError, AttributeError) as exc:
            raise GatewayError("unreadable report") from exc
        meter = self._meter_of(event)
        refused: list[Shipment] = []
        alarms: list[_Held] = []

        def apply(connection: Connection) -> None:
            news = _News(connection, told_at, event, alarms=alarms)
            for each in refusals:
                refused.extend(self._refuse(each, meter, news))

        self._store.inbox.settle(event_id, "applied", apply=apply)
        _raise_alarms(alarms)
        for shipment in refused:
            logger.error(
                "shipment_refused",
                shipment=shipment.identifier,
                meter=shipment.meter,
                reason=shipment.reason,
            )
            self._on_refused(shipment)

    def _refuse(self, refusals: Refusals, meter: str, news: _News) -> Sequence[Shipment]:
        """What *refusals* are of our shipments, each once; the rest is noted as unexplained."""
        known = self._store.named(refusals.names, on=news.on)
        if any(shipment.state is ShipmentState.SENDING for shipment in known):
            # Its outcome would be noted over what we say of it.
            raise _BeingSent("a shipment that it names is just being sent")
        now = self._clock()
        refused = self._store.reject(refusals.names, refusals.code, now, on=news.on)
        if (missing := refusals.count - len(known)) > 0:
            self._store.add(UNEXPLAINED, {f"{meter}: {refusals.code}": missing}, on=news.on)
        if refusals.code in _HOLDING:
            for name in sorted({shipment.meter for shipment in refused}):
                self._hold(name, refusals.code, news)
        return refused

    def _meter_of(self, event: Object) -> str:
        """What an operator knows the meter of a report by."""
        meter_id = str((event.get("related_object") or {}).get("id") or "unknown meter")
        ids = self._known_names().meter_ids
        if meter_id not in ids and meter_id.startswith("mtr") and self._gateway is not None:
            ids = {id: name for name, id in self._gateway.meter_ids().items()}
            self._store.note(METER_IDS, ids)
        return ids.get(meter_id, meter_id)

    def _put_off(self, event_id: str, attempt: int, exc: C2MeterError) -> None:
        logger.warning("stripe_event_waits", stripe_event=event_id, error=exc)
        reason = getattr(exc, "reason", type(exc).__name__)
        is_gone = reason == "resource_missing" or reason.startswith("404 ")
        if is_gone or attempt >= MAX_ATTEMPTS:
            self._store.inbox.settle(event_id, "dead", reason=reason)
            return
        wait_s = min(MAX_BACKOFF_S, 2.0 ** min(attempt, 30))
        again_at = self._clock() + timedelta(seconds=wait_s)
        self._store.inbox.settle(event_id, "pending", again_at=again_at, reason=reason)


class OldEvents:
    """Forgets, once a day, the events that cannot come again: a duty of the clerk."""

    name = "old-stripe-events"

    def __init__(self, inbox: Inbox, clock: Clock) -> None:
        self._inbox = inbox
        self._clock = clock
        #: The day of which nothing is left to do.
        self._day: date | None = None

    def is_due(self) -> bool:
        """Whether it has not been done today, by this process."""
        return self._clock().date() != self._day

    def work(self) -> None:
        """Forget some."""
        now = self._clock()
        if self._inbox.forget(now - KEPT, FORGOTTEN_AT_ONCE) < FORGOTTEN_AT_ONCE:
            self._day = now.date()


_EFFECTS: Mapping[str, Effect] = {
    "customer.deleted": StripeEvents._customer_deleted,
    "invoice.created": StripeEvents._invoice_created,
    "invoice.finalized": StripeEvents._invoice_finalized,
    "billing.meter.deactivated": StripeEvents._meter_deactivated,
    "billing.meter.reactivated": StripeEvents._meter_reactivated,
}
_SUBSCRIPTION = "customer.subscription."

#: Snapshot events that Stripe has to send: those with an effect.
SNAPSHOTS = (*(_SUBSCRIPTION + what for what in ("created", "updated", "deleted")), *_EFFECTS)


def _effect(kind: str) -> Effect | None:
    if kind.startswith(_SUBSCRIPTION):
        return StripeEvents._subscription
    return _EFFECTS.get(kind)


def _raise_alarms(alarms: Sequence[_Held]) -> None:
    """Tell an operator of holds that are committed."""
    for meter, reason in alarms:
        logger.error("deliveries_held", meter=meter, reason=reason, told_by="stripe")


def _is_id(value: object) -> TypeGuard[str]:
    """Whether *value* can be the name of something: it stands in logs, on one line."""
    return (
        isinstance(value, str)
        and 0 < len(value) <= _MAX_ID
        and value.isascii()
        and value.isprintable()
    )


def _moment(seconds: Any) -> datetime:
    return datetime.fromtimestamp(int(seconds), UTC)
