"""The account's objects as Stripe writes them: one function per kind.

The same body is answered to requests and sent in events. Imports the nouns of the account. Promise:
each body is valid against Stripe's OpenAPI description where that has its kind (tests/contract).
"""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from .customers import Clock, Customer
from .invoices import Bill, Invoice, InvoiceLine, Invoices
from .meters import Meter
from .prices import Price, Product, Tier
from .subscriptions import Item, Subscription

#: How long Stripe keeps a test clock.
CLOCK_LIFE = timedelta(days=30)


def seconds(moment: datetime) -> int:
    """*moment* as v1 writes it."""
    return int(moment.timestamp())


def _seconds(moment: datetime | None) -> int | None:
    return None if moment is None else seconds(moment)


def listed(items: list[dict[str, Any]], url: str, *, has_more: bool = False) -> dict[str, Any]:
    """A page of objects."""
    return {"object": "list", "url": url, "has_more": has_more, "data": items}


def meter_body(meter: Meter, livemode: bool) -> dict[str, Any]:
    """A ``billing.meter``."""
    return {
        "object": "billing.meter",
        "id": meter.id,
        "created": seconds(meter.created),
        "updated": seconds(meter.updated),
        "livemode": livemode,
        "status": "inactive" if meter.deactivated_at else "active",
        "display_name": meter.display_name,
        "event_name": meter.event_name,
        "event_time_window": meter.event_time_window,
        "default_aggregation": {"formula": meter.formula},
        "customer_mapping": {"type": "by_id", "event_payload_key": meter.customer_key},
        "value_settings": {"event_payload_key": meter.value_key},
        "status_transitions": {"deactivated_at": _seconds(meter.deactivated_at)},
    }


def customer_body(customer: Customer, livemode: bool) -> dict[str, Any]:
    """A ``customer``."""
    return {
        "object": "customer",
        "id": customer.id,
        "address": None,
        "balance": 0,
        "created": seconds(customer.created),
        "currency": None,
        "default_source": None,
        "delinquent": False,
        "description": customer.description,
        "email": customer.email,
        "invoice_settings": {
            "custom_fields": None,
            "default_payment_method": None,
            "footer": None,
            "rendering_options": None,
        },
        "livemode": livemode,
        "metadata": dict(customer.metadata),
        "name": customer.name,
        "phone": customer.phone,
        "preferred_locales": [],
        "shipping": None,
        "tax_exempt": "none",
        "test_clock": customer.clock.id if customer.clock else None,
    }


def deleted_customer_body(customer: Customer) -> dict[str, Any]:
    """What is left of a deleted ``customer``."""
    return {"object": "customer", "id": customer.id, "deleted": True}


def clock_body(clock: Clock, livemode: bool) -> dict[str, Any]:
    """A ``test_helpers.test_clock``."""
    return {
        "object": "test_helpers.test_clock",
        "id": clock.id,
        "created": seconds(clock.created),
        "deletes_after": seconds(clock.created + CLOCK_LIFE),
        "frozen_time": seconds(clock.frozen_time),
        "livemode": livemode,
        "name": clock.name,
        # Stripe advances in the background; here it has already happened.
        "status": "ready",
        "status_details": {},
    }


def product_body(product: Product, livemode: bool) -> dict[str, Any]:
    """A ``product``."""
    return {
        "object": "product",
        "id": product.id,
        "active": product.is_active,
        "created": seconds(product.created),
        "default_price": None,
        "description": product.description,
        "images": [],
        "livemode": livemode,
        "marketing_features": [],
        "metadata": dict(product.metadata),
        "name": product.name,
        "package_dimensions": None,
        "shippable": None,
        "statement_descriptor": None,
        "tax_code": None,
        "type": "service",
        "unit_label": product.unit_label,
        "updated": seconds(product.updated),
        "url": None,
    }


def price_body(price: Price, livemode: bool, *, with_tiers: bool = False) -> dict[str, Any]:
    """A ``price``; Stripe shows its tiers only when they are expanded."""
    body = {
        "object": "price",
        "id": price.id,
        "active": price.is_active,
        "billing_scheme": "tiered" if price.tiers else "per_unit",
        "created": seconds(price.created),
        "currency": price.currency,
        "custom_unit_amount": None,
        "livemode": livemode,
        "lookup_key": price.lookup_key,
        "metadata": dict(price.metadata),
        "nickname": price.nickname,
        "product": price.product.id,
        "recurring": _recurring(price),
        "tax_behavior": "unspecified",
        "tiers_mode": price.tiers_mode,
        "transform_quantity": None,
        "type": "recurring" if price.recurring else "one_time",
        **_amounts("unit_amount", price.unit_amount),
    }
    if with_tiers and price.tiers:
        body["tiers"] = [_tier(tier) for tier in price.tiers]
    return body


def _recurring(price: Price) -> dict[str, Any] | None:
    if price.recurring is None:
        return None
    return {
        "interval": price.recurring.interval,
        "interval_count": price.recurring.count,
        "meter": price.meter.id if price.meter else None,
        "trial_period_days": None,
        "usage_type": "metered" if price.meter else "licensed",
    }


def _tier(tier: Tier) -> dict[str, Any]:
    return {
        **_amounts("flat_amount", tier.flat_amount),
        **_amounts("unit_amount", tier.unit_amount),
        "up_to": tier.up_to,
    }


def _amounts(name: str, amount: Decimal | None) -> dict[str, Any]:
    """An amount in both forms: the whole one is null where it would not be exact."""
    if amount is None:
        return {name: None, f"{name}_decimal": None}
    text = f"{amount:f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return {name: None if "." in text else int(text), f"{name}_decimal": text}


def item_body(
    item: Item, subscription: Subscription, livemode: bool, **how: bool
) -> dict[str, Any]:
    """A ``subscription_item``; *how* as for :func:`price_body`."""
    body: dict[str, Any] = {
        "object": "subscription_item",
        "id": item.id,
        "billing_thresholds": None,
        "created": seconds(item.created),
        "current_period_end": seconds(item.end),
        "current_period_start": seconds(item.start),
        "discounts": [],
        "metadata": {},
        "plan": _plan(item.price, livemode),
        "price": price_body(item.price, livemode, **how),
        "subscription": subscription.id,
        "tax_rates": [],
    }
    return body if item.price.meter else {**body, "quantity": 1}


def _plan(price: Price, livemode: bool) -> dict[str, Any]:
    """The price in Stripe's older words, which an item still repeats."""
    recurring = _recurring(price) or {}
    return {
        "object": "plan",
        "id": price.id,
        "active": price.is_active,
        "billing_scheme": "tiered" if price.tiers else "per_unit",
        "created": seconds(price.created),
        "currency": price.currency,
        "interval": recurring.get("interval"),
        "interval_count": recurring.get("interval_count"),
        "livemode": livemode,
        "metadata": dict(price.metadata),
        "meter": recurring.get("meter"),
        "nickname": price.nickname,
        "product": price.product.id,
        "tiers_mode": price.tiers_mode,
        "usage_type": recurring.get("usage_type"),
    }


def subscription_body(subscription: Subscription, livemode: bool, **how: bool) -> dict[str, Any]:
    """A ``subscription``; *how* as for :func:`price_body`."""
    items = [item_body(item, subscription, livemode, **how) for item in subscription.items]
    trial_end = _seconds(subscription.trial_end)
    clock = subscription.customer.clock
    return {
        "object": "subscription",
        "id": subscription.id,
        "application": None,
        "application_fee_percent": None,
        "automatic_tax": {"disabled_reason": None, "enabled": False, "liability": None},
        "billing_cycle_anchor": seconds(subscription.anchor),
        "billing_cycle_anchor_config": None,
        "billing_mode": {"type": "flexible" if subscription.is_flexible else "classic"},
        "billing_schedules": [],
        "billing_thresholds": None,
        "cancel_at": _seconds(subscription.cancel_at),
        "cancel_at_period_end": subscription.cancel_at is not None,
        "canceled_at": _seconds(subscription.canceled_at),
        "cancellation_details": {
            "comment": None,
            "feedback": None,
            "reason": "cancellation_requested" if subscription.canceled_at else None,
        },
        "collection_method": "charge_automatically",
        "created": seconds(subscription.created),
        "currency": subscription.currency,
        "customer": subscription.customer.id,
        "days_until_due": None,
        "default_payment_method": None,
        "default_source": None,
        "default_tax_rates": [],
        "description": None,
        "discounts": [],
        "ended_at": _seconds(subscription.ended_at),
        "invoice_settings": {"account_tax_ids": None, "issuer": {"type": "self"}},
        "items": listed(items, f"/v1/subscription_items?subscription={subscription.id}"),
        "latest_invoice": subscription.latest_invoice,
        "livemode": livemode,
        "metadata": dict(subscription.metadata),
        "next_pending_invoice_item_invoice": None,
        "on_behalf_of": None,
        "pause_collection": None,
        "pending_invoice_item_interval": None,
        "pending_setup_intent": None,
        "pending_update": None,
        "schedule": None,
        "start_date": seconds(subscription.start),
        "status": subscription.status,
        "test_clock": clock.id if clock else None,
        "transfer_data": None,
        "trial_end": trial_end,
        "trial_start": None if trial_end is None else seconds(subscription.start),
    }


def invoice_body(bill: Bill, invoice: Invoice, livemode: bool) -> dict[str, Any]:
    """An ``invoice``, with all of its lines."""
    is_draft = invoice.finalized_at is None
    clock = bill.subscription.customer.clock
    lines = [
        _line_body(f"il_{bill.id.removeprefix('in_')}{number}", bill, line, stretch.item, livemode)
        for number, (line, stretch) in enumerate(zip(invoice.lines, bill.stretches, strict=True))
    ]
    return {
        "object": "invoice",
        "id": invoice.id,
        "amount_due": invoice.total,
        "amount_paid": 0,
        "amount_remaining": invoice.total,
        "attempt_count": 0,
        "attempted": False,
        "auto_advance": True,
        "automatically_finalizes_at": seconds(bill.finalizes_at) if is_draft else None,
        "billing_reason": bill.reason,
        "collection_method": "charge_automatically",
        "created": seconds(invoice.created),
        "currency": invoice.currency,
        "customer": invoice.customer,
        "description": None,
        "effective_at": _seconds(invoice.finalized_at),
        "lines": listed(lines, f"/v1/invoices/{invoice.id}/lines"),
        "livemode": livemode,
        "metadata": {},
        "number": None if is_draft else f"EMULATOR-{bill.id[-8:].upper()}",
        "parent": {
            "type": "subscription_details",
            "quote_details": None,
            "subscription_details": {
                "metadata": dict(bill.subscription.metadata),
                "subscription": invoice.subscription,
            },
        },
        "period_end": seconds(invoice.period_end),
        "period_start": seconds(invoice.period_start),
        "status": invoice.status,
        "status_transitions": {
            "finalized_at": _seconds(invoice.finalized_at),
            "marked_uncollectible_at": None,
            "paid_at": None,
            "voided_at": None,
        },
        "subtotal": invoice.total,
        "test_clock": clock.id if clock else None,
        "total": invoice.total,
    }


def _line_body(id: str, bill: Bill, line: InvoiceLine, item: str, livemode: bool) -> dict[str, Any]:
    return {
        "object": "line_item",
        "id": id,
        "amount": line.amount,
        "currency": bill.subscription.currency,
        "description": line.description,
        "discount_amounts": [],
        "discountable": True,
        "discounts": [],
        "invoice": bill.id,
        "livemode": livemode,
        "metadata": {},
        "parent": {
            "type": "subscription_item_details",
            "invoice_item_details": None,
            "subscription_item_details": {
                "invoice_item": None,
                "proration": False,
                "proration_details": None,
                "subscription": bill.subscription.id,
                "subscription_item": item,
            },
        },
        "period": {"end": seconds(line.period_end), "start": seconds(line.period_start)},
        "pricing": {
            "type": "price_details",
            "price_details": {"price": line.price},
            "unit_amount_decimal": None,
        },
        "quantity": line.quantity if isinstance(line.quantity, int) else None,
        "quantity_decimal": f"{Decimal(line.quantity):f}",
        "subtotal": line.amount,
    }


def body_of(thing: Any, invoices: Invoices, livemode: bool) -> dict[str, Any]:
    """*thing* as it stands in an event."""
    match thing:
        case Customer():
            return customer_body(thing, livemode)
        case Subscription():
            return subscription_body(thing, livemode)
        case Bill():
            return invoice_body(thing, invoices.show(thing), livemode)
        case Meter():
            return meter_body(thing, livemode)
    raise TypeError(f"{type(thing).__name__} is in no event")
