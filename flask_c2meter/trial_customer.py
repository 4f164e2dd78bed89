"""Whose usage a test may be: a customer that nobody bills."""

from __future__ import annotations

from typing import Any

from .errors import InvalidEvent
from .gateway import Gateway, Refused
from .metering import Metering
from .model import check_customer_id
from .periods import ENDED
from .samples import KEY

#: Where the store remembers the customer that was made for it: account -> id.
CUSTOMER = "selftest_customer"


def customer_for(metering: Metering, gateway: Gateway, wanted: str | None) -> str:
    """The customer to test with, who has no usage but that of tests.

    :param wanted: an id of Stripe's; None = one that is made for the purpose, once per account.
    :raises InvalidEvent: the customer has usage or a subscription of its own, or Stripe knows none.
    :raises GatewayError: Stripe cannot be asked.
    """
    if wanted is None:
        return _own_customer(metering, gateway)
    customer = check_customer_id(wanted)
    if metering.store.has_events_besides(customer, (KEY, f"adjust:{KEY}")):
        raise InvalidEvent({"--customer": f"{customer} has usage of its own: take another"})
    try:
        alive = [each for each in gateway.subscriptions(customer) if each["status"] not in ENDED]
        if gateway.livemode and alive:
            raise InvalidEvent({"--customer": f"{customer} is billed by {alive[0]['id']}"})
        if gateway.is_deleted(customer):
            raise InvalidEvent({"--customer": f"{customer} has been deleted at Stripe"})
    except Refused as refused:
        if refused.outcome.reason.startswith(("404", "resource_missing")):
            raise InvalidEvent({"--customer": f"Stripe knows no {customer}"}) from refused
        raise
    return customer


def _own_customer(metering: Metering, gateway: Gateway) -> str:
    known: dict[str, str] = metering.store.facts().get(CUSTOMER, {})
    if (found := known.get(gateway.account)) and not gateway.is_deleted(found):
        return found
    params: Any = {"name": "flask_c2meter selftest", "metadata": {"c2meter_selftest": "1"}}
    made = str(gateway.ask(lambda client: client.v1.customers.create(params)).id)
    metering.store.note(CUSTOMER, {**known, gateway.account: made})
    return made
