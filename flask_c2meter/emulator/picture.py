"""A picture of the emulator's state at one moment, as the page and ``state.json`` show it.

Imports the nouns of the account, ``hooks``, ``traffic`` and ``wire``. Promise: it holds copies and
frozen things only, so that it can be read without the app's lock.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from itertools import islice
from typing import Any

from .account import Account
from .hooks import Hooks, WebhookDelivery
from .invoices import Invoice
from .meters import AsyncError, MeterEvent, Meters
from .subscriptions import Item, Subscription
from .traffic import Fault
from .wire import ReceivedRequest

#: How many of the latest events, requests, errors and deliveries there are.
SHOWN = 50


@dataclass(frozen=True, slots=True)
class CustomerTotal:
    """What one customer used of one meter."""

    customer: str
    total: Decimal
    events: int


@dataclass(frozen=True, slots=True)
class MeterTotal:
    """What all customers used of one meter, largest total first."""

    event_name: str
    total: Decimal
    events: int
    customers: Sequence[CustomerTotal]


@dataclass(frozen=True, slots=True)
class RequestLine:
    """A request as it is shown: without headers and body."""

    method: str
    path: str
    status: int | None
    answered: str
    code: str | None
    received_at: datetime


@dataclass(frozen=True, slots=True)
class CustomerLine:
    """A customer of the account."""

    id: str
    name: str | None
    email: str | None
    #: The test clock it lives by.
    test_clock: str | None
    deleted: bool


@dataclass(frozen=True, slots=True)
class ItemLine:
    """One price of a subscription, and its period."""

    id: str
    price: str
    lookup_key: str | None
    #: The meter's event name; None if it does not bill usage.
    meter: str | None
    period_start: datetime
    period_end: datetime


@dataclass(frozen=True, slots=True)
class SubscriptionLine:
    """A subscription of the account."""

    id: str
    customer: str
    status: str
    billing_mode: str
    currency: str
    trial_end: datetime | None
    cancel_at: datetime | None
    ended_at: datetime | None
    items: Sequence[ItemLine]
    #: What its next invoice comes to by now, in minor units; None: there will be none.
    so_far: int | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state at one moment; lists have the newest first."""

    now: datetime
    event_count: int
    request_count: int
    duplicates: int
    meters: Sequence[MeterTotal]
    events: Sequence[MeterEvent]
    requests: Sequence[RequestLine]
    async_errors: Sequence[AsyncError]
    faults: Sequence[str]
    customers: Sequence[CustomerLine]
    subscriptions: Sequence[SubscriptionLine]
    invoices: Sequence[Invoice]
    webhook_deliveries: Sequence[WebhookDelivery]
    #: How many events are still to be sent.
    webhooks_waiting: int
    webhooks_held: bool

    @classmethod
    def of(
        cls,
        account: Account,
        hooks: Hooks,
        requests: Sequence[ReceivedRequest],
        faults: Iterable[Fault],
        now: datetime,
    ) -> Snapshot:
        """The snapshot of live state; the caller holds the lock."""
        meters = account.meters
        return cls(
            now=now,
            event_count=len(meters.events),
            request_count=len(requests),
            duplicates=meters.duplicates,
            meters=list(_meter_totals(meters)),
            events=_latest(meters.events),
            requests=[_request_line(request) for request in _latest(requests)],
            async_errors=_latest(meters.async_errors),
            faults=[_fault_line(fault) for fault in faults],
            customers=list(_customer_lines(account)),
            subscriptions=[
                _subscription_line(account, subscription, now)
                for subscription in reversed(account.billing.by_id.values())
            ],
            invoices=account.invoices.all()[::-1],
            webhook_deliveries=_latest(hooks.deliveries),
            webhooks_waiting=hooks.waiting,
            webhooks_held=hooks.is_held,
        )


def _latest(items: Sequence[Any]) -> list[Any]:
    return list(islice(reversed(items), SHOWN))


def _meter_totals(meters: Meters) -> Iterable[MeterTotal]:
    by_meter: dict[str, list[CustomerTotal]] = {name: [] for name in sorted(meters.by_name)}
    for (event_name, customer), lane in meters.lanes.items():
        by_meter[event_name].append(CustomerTotal(customer, lane.total, lane.count))
    for event_name, customers in by_meter.items():
        yield MeterTotal(
            event_name,
            sum((each.total for each in customers), Decimal(0)),
            sum(each.events for each in customers),
            sorted(customers, key=lambda each: (-each.total, each.customer)),
        )


def _request_line(request: ReceivedRequest) -> RequestLine:
    return RequestLine(
        request.method,
        request.path,
        request.status,
        request.answered,
        request.code,
        request.received_at,
    )


def _fault_line(fault: Fault) -> str:
    often = "until recovery" if fault.times is None else f"{fault.times} times"
    chance = "" if fault.rate is None else f", {fault.rate:.0%} of requests"
    where = f", only {fault.path}" if fault.path else ""
    return f"{fault}, {often}{chance}{where}"


def _customer_lines(account: Account) -> Iterable[CustomerLine]:
    for customer in reversed(account.customers.by_id.values()):
        clock = customer.clock.id if customer.clock else None
        yield CustomerLine(customer.id, customer.name, customer.email, clock, customer.is_deleted)


def _subscription_line(
    account: Account, subscription: Subscription, now: datetime
) -> SubscriptionLine:
    has_ended = subscription.ended_at is not None
    return SubscriptionLine(
        id=subscription.id,
        customer=subscription.customer.id,
        status=subscription.status,
        billing_mode="flexible" if subscription.is_flexible else "classic",
        currency=subscription.currency,
        trial_end=subscription.trial_end,
        cancel_at=subscription.cancel_at,
        ended_at=subscription.ended_at,
        items=[_item_line(item) for item in subscription.items],
        so_far=None if has_ended else account.billing.preview(subscription.id, now).total,
    )


def _item_line(item: Item) -> ItemLine:
    return ItemLine(
        id=item.id,
        price=item.price.id,
        lookup_key=item.price.lookup_key,
        meter=item.price.meter.event_name if item.price.meter else None,
        period_start=item.start,
        period_end=item.end,
    )
