"""Stripe's billing objects, read: plain dicts in, our nouns out.

Pure; imports :mod:`~flask_c2meter.model` only. The same objects come as answers and inside
webhooks, whose API version is the endpoint's: older ones have the period on the subscription.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from types import MappingProxyType
from typing import Any

from .model import Period, Subscription, SubscriptionItem

Object = Mapping[str, Any]

#: Where an event's payload has its customer and its value; a meter is told the same.
CUSTOMER_KEY = "stripe_customer_id"
VALUE_KEY = "value"


@dataclass(frozen=True, slots=True)
class Names:
    """What Stripe's ids and keys mean in the catalogue."""

    plans: Sequence[str]
    meters: Sequence[str]
    #: Stripe's meter id -> event name, as far as was asked.
    meter_ids: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def meter(self, price: Object) -> str | None:
        """The meter that *price* bills; None = none of ours, or not known."""
        key = price.get("lookup_key") or ""
        for name in self.meters:
            if any(key == lookup_key(plan, name) for plan in self.plans):
                return name
        meter_id = (price.get("recurring") or {}).get("meter")
        named = self.meter_ids.get(str(meter_id)) or (price.get("metadata") or {}).get("meter")
        return named if named in self.meters else None

    def plan(self, price: Object) -> str | None:
        """The plan that *price* belongs to: by its metadata, or by its lookup key."""
        named = (price.get("metadata") or {}).get("plan")
        if named in self.plans:
            return str(named)
        key = price.get("lookup_key") or ""
        return next(
            (p for p in self.plans if any(key == lookup_key(p, name) for name in self.meters)),
            None,
        )

    def are_unknown(self, subscriptions: Iterable[Object]) -> bool:
        """Whether a metered price has a meter whose name has to be asked for."""
        return any(
            meter_id not in self.meter_ids and self.meter(price) is None
            for subscription in subscriptions
            for price in map(_price, _items(subscription))
            if (meter_id := (price.get("recurring") or {}).get("meter"))
        )


def lookup_key(plan: str, meter: str) -> str:
    """The ``lookup_key`` of the price of *meter* on *plan*."""
    return f"{plan}_{meter}"


def subscription_from(found: Object, names: Names) -> Subscription:
    """Stripe's subscription object as ours.

    :raises LookupError: it is not as Stripe describes it, like ``TypeError`` and ``ValueError``.
    """
    items = list(_items(found))
    prices = [_price(item) for item in items]
    cycles = [_cycle(item, found) for item in items]
    plans = [names.plan(price) for price in prices]
    named = (found.get("metadata") or {}).get("plan")
    known = {
        meter: SubscriptionItem(cycle, plan)
        for price, cycle, plan in zip(prices, cycles, plans, strict=True)
        if (meter := names.meter(price)) is not None
    }
    return Subscription(
        plan=named if named in names.plans else next(filter(None, plans), None),
        period=next((item.period for item in known.values()), cycles[0]),
        status=str(found["status"]),
        items=known,
        id=str(found["id"]),
        started_at=_moment(found.get("start_date")),
        ended_at=_moment(found.get("ended_at")),
        billing_mode="classic"
        if (found.get("billing_mode") or {}).get("type") == "classic"
        else "flexible",
    )


def has_all_items(subscription: Object) -> bool:
    """Whether all items are in it: a webhook has the first few only."""
    return not subscription["items"].get("has_more")


def _items(subscription: Object) -> Iterator[Object]:
    yield from subscription["items"]["data"]


def _price(item: Object) -> Object:
    price = item["price"]
    return price if isinstance(price, Mapping) else {}


def _cycle(item: Object, subscription: Object) -> Period:
    start, end = (
        item.get(f"current_period_{bound}") or subscription[f"current_period_{bound}"]
        for bound in ("start", "end")
    )
    cycle = Period(datetime.fromtimestamp(start, UTC), datetime.fromtimestamp(end, UTC))
    if cycle.end <= cycle.start:
        raise ValueError("a period ends before it starts")
    return cycle


def _moment(seconds: int | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


# -- invoices --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ClosingInvoice:
    """An invoice that bills cycles which were over when it was made."""

    customer: str
    subscription: str
    cycle_ends: Sequence[datetime]
    finalized_at: datetime


def closing_invoice(invoice: Object, told_at: datetime) -> ClosingInvoice | None:
    """What a finalised *invoice* closes; None = no cycle.

    Neither an invoice of a fee in advance closes one, whose lines end with a cycle that is still
    to come, nor one made by hand, whatever period its lines name.

    :param told_at: when it was finalised, if it does not say so itself.
    :raises LookupError: it is not as Stripe describes it, like ``TypeError`` and ``ValueError``.
    """
    parent = (invoice.get("parent") or {}).get("subscription_details") or {}
    subscription = parent.get("subscription") or invoice.get("subscription")
    reason = str(invoice.get("billing_reason"))
    if not subscription or not reason.startswith("subscription"):
        return None
    ends = [int(line["period"]["end"]) for line in invoice["lines"]["data"] if _is_of_item(line)]
    if reason == "subscription_cycle":
        # Of more than ten lines a webhook leaves some out.
        ends.append(int(invoice["period_end"]))
    made_at = int(invoice["created"])
    finalized_at = (invoice.get("status_transitions") or {}).get("finalized_at")
    over = sorted({end for end in ends if end <= made_at})
    if not over:
        return None
    return ClosingInvoice(
        customer=str(invoice["customer"]),
        subscription=str(subscription),
        cycle_ends=[datetime.fromtimestamp(end, UTC) for end in over],
        finalized_at=_moment(finalized_at) or told_at,
    )


def _is_of_item(line: Object) -> bool:
    """Whether a line bills an item of the subscription, not something added by hand."""
    kind = (line.get("parent") or {}).get("type") or line.get("type")
    return kind in (None, "subscription_item_details", "subscription")


@dataclass(frozen=True, slots=True)
class InvoiceLine:
    """One line of an invoice that bills a meter of ours."""

    meter: str
    #: In wire units.
    quantity: Decimal
    #: In minor units.
    amount: int
    currency: str
    period: Period
    description: str


def price_ids(lines: Iterable[Object]) -> set[str]:
    """The ids of the prices that *lines* name without describing them."""
    return {price for line in lines if isinstance(price := _priced(line), str)}


def invoice_lines(
    lines: Iterable[Object], prices: Mapping[str, Object], names: Names
) -> list[InvoiceLine]:
    """Those of an invoice's *lines* that bill a meter of ours, in the invoice's order.

    :param prices: id -> Stripe's price object.
    :raises LookupError: they are not as Stripe describes them, like ``TypeError``, ``ValueError``
        and ``ArithmeticError``.
    """
    found = []
    for line in lines:
        price = _priced(line)
        described = prices.get(price, {}) if isinstance(price, str) else price or {}
        if (meter := names.meter(described)) is not None:
            bounds = (datetime.fromtimestamp(line["period"][b], UTC) for b in ("start", "end"))
            found.append(
                InvoiceLine(
                    meter=meter,
                    quantity=Decimal(str(line.get("quantity_decimal") or line["quantity"])),
                    amount=int(line["amount"]),
                    currency=str(line["currency"]),
                    period=Period(*bounds),
                    description=str(line.get("description") or ""),
                )
            )
    return found


def _priced(line: Object) -> str | Object | None:
    """The price of a line: its id, or, in older versions of the API, the object."""
    details = (line.get("pricing") or {}).get("price_details") or {}
    price: str | Object | None = details.get("price") or line.get("price")
    return price


# -- reports of refused events ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Refusals:
    """What a report of asynchronously refused meter events says of one error."""

    #: Stripe's, such as ``meter_event_customer_not_found``.
    code: str
    #: How many events were refused; may exceed the samples.
    count: int
    #: Identifiers or idempotency keys of some of them.
    names: Sequence[str]


def refusals_from(data: Object) -> list[Refusals]:
    """The refusals in the ``data`` of a ``v1.billing.meter.error_report_triggered`` event.

    :raises LookupError: it is not as Stripe describes it, like ``TypeError`` and ``ValueError``.
    """
    return [
        Refusals(
            code=str(error["code"]),
            count=int(error["error_count"]),
            names=list(_names(error.get("sample_errors") or ())),
        )
        for error in data["reason"]["error_types"]
    ]


def _names(samples: Iterable[Object]) -> Iterator[str]:
    for sample in samples:
        request = sample.get("request") or {}
        # Older samples name the Idempotency-Key; some, one in the place of the other.
        name = request.get("identifier") or request.get("idempotency_key")
        if name:
            yield str(name)
