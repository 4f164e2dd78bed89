"""A stand-in for Stripe's billing API: real HTTP, state, a clock and faults on demand.

For tests, and for trying the product without a Stripe account. It needs no network and no
key, listens on loopback only and forgets everything when it ends::

    with StripeEmulator() as stripe:
        client = StripeClient("sk_test_1", base_addresses={"api": stripe.url, ...})
        ...
        assert stripe.meter_total("verify_operations", "cus_123") == 3

It meters, and it bills: with prices and subscriptions it turns periods over, makes invoices and
sends signed webhooks::

    stripe.add_price("verify_operations", lookup_key="starter", unit_amount_decimal="4")
    stripe.add_subscription("cus_123", ["starter"])
    stripe.advance(timedelta(days=32))
    assert stripe.invoices[0].total == 12

The rooms, in the order in which a request walks through them: ``server`` (HTTP over a socket),
``app`` and ``levers`` (:class:`StripeEmulator`, the WSGI app and what can be done to it),
``intake`` (the way of a request) with ``traffic`` (rate limit, lanes, scripted faults, saved
answers), ``routes`` (the endpoints, as a table; ``calls`` and the families beside it) and
``referee`` (which parameters are allowed). Then ``account``, which is all that it remembers:
``customers``, ``meters``, ``sessions``, ``prices``, ``subscriptions`` and ``billing`` (what happens
to them), ``invoices`` (what they cost), ``agenda`` (what is still to come) and ``news`` (what is
told of it). ``hooks`` sends webhooks; ``wire`` and ``bodies`` hold the forms of requests and
answers; ``desk``, ``picture`` and ``remote`` are the page at the root and the remote control.

Imports the standard library and Jinja (which comes with Flask); nothing else of this package.
Its promise: what it refuses, Stripe refuses; what Stripe answers, it answers in the same form.
"""

from __future__ import annotations

from .app import StripeEmulator
from .hooks import WebhookDelivery
from .invoices import Invoice, InvoiceLine
from .meters import AsyncError, MeterEvent
from .wire import ReceivedRequest

__all__ = [
    "AsyncError",
    "Invoice",
    "InvoiceLine",
    "MeterEvent",
    "ReceivedRequest",
    "StripeEmulator",
    "WebhookDelivery",
]
