"""The endpoints of billing: customers, test clocks, subscriptions and their items, thin events.

Imports ``account``, ``bodies``, ``calls``, ``customers``, ``referee``, ``subscriptions``, ``terms``
and ``wire``.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from .account import Account
from .bodies import (
    clock_body,
    customer_body,
    deleted_customer_body,
    item_body,
    seconds,
    subscription_body,
)
from .calls import EXPAND, PAGING, Call, Route, is_within, missing, page
from .customers import Clock, Customer
from .referee import Shape, boolean, epoch, list_of, metadata, one_of, span, text, whole_number
from .subscriptions import Subscription
from .terms import new_id, whole_second
from .wire import Refusal

ENDED = ("canceled", "incomplete_expired")

# --- customers and test clocks --------------------------------------------------------------


def _create_customer(account: Account, call: Call) -> Any:
    fields = {
        name: value for name, value in call.params.items() if name not in ("expand", "test_clock")
    }
    clock = None
    if "test_clock" in call.params:
        clock = account.customers.find_clock(call.params["test_clock"])
    created = clock.frozen_time if clock else call.now
    customer = Customer(id=new_id("cus"), created=created, clock=clock, **fields)
    return customer_body(account.billing.add_customer(customer), call.livemode)


def _retrieve_customer(account: Account, call: Call) -> Any:
    customer = account.customers.by_id.get(call.id)
    if customer is None:
        if not account.customers.is_known(call.id):
            raise missing("customer", call.id)
        customer = Customer(id=call.id, created=call.now)  # any id is one, unless told otherwise
    if customer.is_deleted:
        return deleted_customer_body(customer)
    return customer_body(customer, call.livemode)


def _list_customers(account: Account, call: Call) -> Any:
    params = call.params
    found = [
        customer_body(customer, call.livemode)
        for customer in reversed(account.customers.by_id.values())
        if not customer.is_deleted
        and params.get("email", customer.email) == customer.email
        and _is_of_clock(customer, params.get("test_clock"))
        and is_within(params.get("created"), seconds(customer.created))
    ]
    return page(found, CUSTOMERS, call)


def _is_of_clock(customer: Customer, wanted: str | None) -> bool:
    """Whether the customer is listed: those with a clock only where their clock is asked for."""
    return (customer.clock and customer.clock.id) == wanted


def _create_clock(account: Account, call: Call) -> Any:
    params = call.params
    clock = account.customers.add_clock(params["frozen_time"], call.now, params.get("name"))
    return clock_body(clock, call.livemode)


def _retrieve_clock(account: Account, call: Call) -> Any:
    return clock_body(_find_clock(account, call), call.livemode)


def _advance_clock(account: Account, call: Call) -> Any:
    clock = _find_clock(account, call)
    account.customers.advance_clock(clock.id, call.params["frozen_time"])
    return clock_body(clock, call.livemode)


def _find_clock(account: Account, call: Call) -> Clock:
    if call.id not in account.customers.clocks:
        raise missing("testclock", call.id)
    return account.customers.find_clock(call.id)


# --- subscriptions --------------------------------------------------------------------------


def _create_subscription(account: Account, call: Call) -> Any:
    params = call.params
    customer = account.customers.find(params["customer"])
    now = whole_second(account.customers.now_of(customer.id, call.now))
    subscription = account.billing.subscribe(
        customer,
        [account.catalogue.find_price(item["price"]) for item in params["items"]],
        call.now,
        start=params.get("backdate_start_date"),
        anchor=params.get("billing_cycle_anchor"),
        is_flexible=params.get("billing_mode", {}).get("type") != "classic",
        trial_end=_trial_end(call, now),
        metadata=params.get("metadata"),
    )
    if params.get("cancel_at_period_end"):
        account.billing.cancel(subscription.id, call.now, at_period_end=True)
    return _subscribed(subscription, call, "")


def _trial_end(call: Call, now: datetime) -> datetime | None:
    if "trial_end" in call.params and "trial_period_days" in call.params:
        raise Refusal("Pass only one of trial_end and trial_period_days.", param="trial_end")
    if "trial_period_days" in call.params:
        return now + timedelta(days=call.params["trial_period_days"])
    trial_end: datetime | None = call.params.get("trial_end")
    return trial_end


def _retrieve_subscription(account: Account, call: Call) -> Any:
    if call.id not in account.billing.by_id:
        raise missing("subscription", call.id)
    return _subscribed(account.billing.find(call.id), call, "")


def _list_subscriptions(account: Account, call: Call) -> Any:
    customer = call.params.get("customer")
    if customer is not None:
        _refuse_stranger(account, customer)
    found = [
        _subscribed(subscription, call, "data.")
        for subscription in reversed(account.billing.by_id.values())
        if _is_wanted(subscription, call)
    ]
    return page(found, SUBSCRIPTIONS, call)


def _refuse_stranger(account: Account, customer: str) -> None:
    if customer not in account.customers.by_id and not account.customers.is_known(customer):
        raise Refusal(f"No such customer: '{customer}'", code="resource_missing", param="customer")


def _is_wanted(subscription: Subscription, call: Call) -> bool:
    params = call.params
    customer = subscription.customer
    return (
        params.get("customer", customer.id) == customer.id
        and ("customer" in params or _is_of_clock(customer, params.get("test_clock")))
        and _has_status(subscription, params.get("status"))
        and params.get("price", None) in (None, *(item.price.id for item in subscription.items))
        and params.get("collection_method") != "send_invoice"
        and is_within(params.get("created"), seconds(subscription.created))
        and _has_period(subscription, call, "current_period_start", lambda item: item.start)
        and _has_period(subscription, call, "current_period_end", lambda item: item.end)
    )


def _has_status(subscription: Subscription, wanted: str | None) -> bool:
    if wanted is None:
        return subscription.status not in ENDED
    if wanted == "ended":
        return subscription.status in ENDED
    return wanted in ("all", subscription.status)


def _has_period(
    subscription: Subscription, call: Call, name: str, edge: Callable[[Any], datetime]
) -> bool:
    bounds = call.params.get(name)
    return any(is_within(bounds, seconds(edge(item))) for item in subscription.items)


def _subscribed(subscription: Subscription, call: Call, prefix: str) -> dict[str, Any]:
    with_tiers = call.expands(f"{prefix}items.data.price.tiers")
    return subscription_body(subscription, call.livemode, with_tiers=with_tiers)


def _list_items(account: Account, call: Call) -> Any:
    subscription = account.billing.find(call.params["subscription"])
    with_tiers = call.expands("data.price.tiers")
    items = [
        item_body(item, subscription, call.livemode, with_tiers=with_tiers)
        for item in subscription.items
    ]
    return page(items, ITEMS, call)


# --- thin events ----------------------------------------------------------------------------


def _retrieve_event(account: Account, call: Call) -> Any:
    event = account.journal.fetch(call.id, call.now)
    if event is None:
        raise Refusal(f"No such event: '{call.id}'", status=404, code="not_found")
    return event


# --- the table ------------------------------------------------------------------------------


def _trial_days(name: str, value: Any) -> int:
    days = whole_number(name, value)
    if not 1 <= days <= 730:
        raise Refusal(f"Invalid {name}: must be between 1 and 730", param=name)
    return days


_NEW_CUSTOMER = Shape(
    optional={
        "description": text(5000),
        "email": text(800),
        "metadata": metadata,
        "name": text(256),
        "phone": text(20),
        "test_clock": text(5000),
        **EXPAND,
    }
)
_LIST_CUSTOMERS = Shape(
    optional={
        "created": span,
        "email": text(512),
        "test_clock": text(5000),
        **PAGING,
        **EXPAND,
    }
)
_NEW_CLOCK = Shape({"frozen_time": epoch}, {"name": text(300), **EXPAND})
_NEW_SUBSCRIPTION = Shape(
    {
        "customer": text(5000),
        "items": list_of(Shape({"price": text(5000)}), max_items=20),
    },
    {
        "backdate_start_date": epoch,
        "billing_cycle_anchor": epoch,
        "billing_mode": Shape({"type": one_of("classic", "flexible")}),
        "cancel_at_period_end": boolean,
        "collection_method": one_of("charge_automatically"),
        "metadata": metadata,
        "trial_end": epoch,
        "trial_period_days": _trial_days,
        **EXPAND,
    },
)
_LIST_SUBSCRIPTIONS = Shape(
    optional={
        "collection_method": one_of("charge_automatically", "send_invoice"),
        "created": span,
        "current_period_end": span,
        "current_period_start": span,
        "customer": text(5000),
        "price": text(5000),
        "status": one_of(
            "active",
            "all",
            "canceled",
            "ended",
            "incomplete",
            "incomplete_expired",
            "past_due",
            "paused",
            "trialing",
            "unpaid",
        ),
        "test_clock": text(5000),
        **PAGING,
        **EXPAND,
    }
)
_LIST_ITEMS = Shape({"subscription": text(5000)}, {**PAGING, **EXPAND})

CUSTOMERS = "/v1/customers"
SUBSCRIPTIONS = "/v1/subscriptions"
ITEMS = "/v1/subscription_items"
CLOCKS = "/v1/test_helpers/test_clocks"
BILLING_ROUTES = (
    Route("POST", CUSTOMERS, _create_customer, _NEW_CUSTOMER),
    Route("GET", CUSTOMERS, _list_customers, _LIST_CUSTOMERS),
    Route("GET", CUSTOMERS + "/{id}", _retrieve_customer, Shape(optional=EXPAND)),
    Route("POST", SUBSCRIPTIONS, _create_subscription, _NEW_SUBSCRIPTION),
    Route("GET", SUBSCRIPTIONS, _list_subscriptions, _LIST_SUBSCRIPTIONS),
    Route("GET", SUBSCRIPTIONS + "/{id}", _retrieve_subscription, Shape(optional=EXPAND)),
    Route("GET", ITEMS, _list_items, _LIST_ITEMS),
    Route("POST", CLOCKS, _create_clock, _NEW_CLOCK),
    Route("GET", CLOCKS + "/{id}", _retrieve_clock, Shape(optional=EXPAND)),
    Route("POST", CLOCKS + "/{id}/advance", _advance_clock, Shape({"frozen_time": epoch}, EXPAND)),
    Route("GET", "/v2/core/events/{id}", _retrieve_event),
)
