"""The levers of the account: what a test, or the desk, does to customers and subscriptions.

One half of :class:`~.app.StripeEmulator`, which is the other. Each lever catches up with the clock
first, and acts at the moment at which it is pulled, in the customer's own time. Imports the rooms
of the account, and ``hooks`` for its deliveries. Promise: a lever that raises has changed nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from .account import Account
from .customers import Customer
from .hooks import Hooks, WebhookDelivery
from .invoices import Invoice
from .meters import Meter
from .prices import Price, Product, Recurring, Tier, new_product
from .terms import Rejection, decimal_amount, new_id


class Levers(ABC):
    """Everything that can be done to an account without a request."""

    _hooks: Hooks

    @abstractmethod
    def now(self) -> datetime:
        """The emulator's time, aware UTC."""

    @abstractmethod
    def _open(self) -> AbstractContextManager[Account]:
        """The account, locked and up to date."""

    # --- customers --------------------------------------------------------------------------

    def add_customer(
        self,
        id: str | None = None,
        *,
        email: str | None = None,
        name: str | None = None,
        metadata: Mapping[str, str] | None = None,
        test_clock: str | None = None,
    ) -> str:
        """Create a customer.

        :param id: default: a new one.
        :param test_clock: id of the test clock whose time it lives by.
        :return: its id.
        :raises ValueError: the id is taken, or the clock is unknown.
        """
        with self._open() as account:
            clock = account.customers.find_clock(test_clock) if test_clock else None
            customer = Customer(
                id or new_id("cus"),
                clock.frozen_time if clock else self.now(),
                email=email,
                name=name,
                metadata=metadata or {},
                clock=clock,
            )
            return account.billing.add_customer(customer).id

    def update_customer(
        self,
        id: str,
        *,
        email: str | None = None,
        name: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Change what is given of a customer; *metadata* is added to what it has.

        :raises ValueError: there is no such customer.
        """
        with self._open() as account:
            customer = account.customers.find(id)
            customer.email = email or customer.email
            customer.name = name or customer.name
            customer.metadata = {**customer.metadata, **(metadata or {})}
            account.tell("customer.updated", customer, account.customers.now_of(id, self.now()))

    def delete_customer(self, id: str) -> None:
        """Delete a customer; its subscriptions are canceled at once.

        :raises ValueError: there is no such customer.
        """
        with self._open() as account:
            account.billing.delete_customer(account.customers.find(id), self.now())

    def add_test_clock(self, frozen_time: datetime, *, name: str | None = None) -> str:
        """Create a test clock that stands at *frozen_time*.

        :return: its id.
        """
        with self._open() as account:
            return account.customers.add_clock(_aware(frozen_time), self.now(), name).id

    def advance_test_clock(self, id: str, frozen_time: datetime) -> None:
        """Move a test clock forward; what becomes due for its customers happens.

        :raises ValueError: there is no such clock, or it is later there already.
        """
        with self._open() as account:
            account.customers.advance_clock(id, _aware(frozen_time))

    # --- prices -----------------------------------------------------------------------------

    def add_meter(self, event_name: str, display_name: str | None = None) -> str:
        """Create a ``sum`` meter.

        :return: its id.
        :raises ValueError: there is one of this event name.
        """
        with self._open() as account:
            name, now = display_name or event_name, self.now()
            return account.meters.create(Meter(new_id("mtr"), event_name, name, now, now)).id

    def add_price(
        self,
        meter: str,
        *,
        lookup_key: str | None = None,
        currency: str = "usd",
        unit_amount_decimal: str | None = None,
        tiers: Iterable[Mapping[str, Any]] | None = None,
        tiers_mode: str = "graduated",
        interval: str = "month",
        interval_count: int = 1,
        metadata: Mapping[str, str] | None = None,
        product: str | None = None,
    ) -> str:
        """Create a metered price: one amount per unit, or tiers over total usage.

        :param meter: event name; created as a ``sum`` meter if there is none.
        :param unit_amount_decimal: minor units, at most 12 decimal places.
        :param tiers: ``{"up_to": 2000, "unit_amount_decimal": "0"}``, ascending; in the last one
            ``up_to`` is ``"inf"``. Each may have a ``flat_amount_decimal``.
        :param tiers_mode: ``graduated`` or ``volume``.
        :param interval: ``day``, ``week``, ``month`` or ``year``.
        :param product: id; created if there is none.
        :return: the price's id.
        :raises ValueError: the lookup key is taken, or it cannot be rated.
        """
        if tiers_mode not in ("graduated", "volume"):
            raise ValueError(f"tiers_mode {tiers_mode!r}: use graduated or volume")
        if interval not in ("day", "week", "month", "year") or interval_count < 1:
            raise ValueError(f"every {interval_count} {interval}: use day, week, month or year")
        rates = [_tier(tier) for tier in tiers or ()]
        with self._open() as account:
            counted = account.meters.by_name.get(meter)
            counted = counted or Meter(new_id("mtr"), meter, meter, self.now(), self.now())
            price = Price(
                id=new_id("price"),
                product=self._product(account, product, counted),
                currency=currency.lower(),
                created=self.now(),
                unit_amount=_decimal(unit_amount_decimal),
                tiers=rates,
                tiers_mode=tiers_mode if rates else None,
                recurring=Recurring(interval, interval_count, counted),
                lookup_key=lookup_key,
                metadata=metadata or {},
            )
            account.catalogue.add_price(price)
            if counted.id not in account.meters.by_id:
                account.meters.create(counted)
            return price.id

    def _product(self, account: Account, id: str | None, meter: Meter) -> Product:
        known = account.catalogue.products.get(id or "")
        return known or new_product(id or meter.display_name, self.now(), id)

    # --- subscriptions ----------------------------------------------------------------------

    def add_subscription(
        self,
        customer: str,
        prices: Sequence[str],
        *,
        start: datetime | None = None,
        billing_mode: str = "flexible",
        trial_end: datetime | None = None,
        metadata: Mapping[str, str] | None = None,
        id: str | None = None,
    ) -> str:
        """Subscribe a customer, who is created if unknown, to prices.

        :param prices: ids or lookup keys; one item each.
        :param start: may lie in the past: the cycles since then are caught up, and bill the usage
            that is already there. Default: now.
        :param billing_mode: ``flexible`` or ``classic``.
        :param trial_end: until then usage is free.
        :return: the subscription's id.
        :raises ValueError: a price is unknown, they do not go together, or a time is impossible.
        """
        if billing_mode not in ("flexible", "classic"):
            raise ValueError(f"billing_mode {billing_mode!r}: use flexible or classic")
        start = start and _aware(start)
        with self._open() as account:
            wanted = [_price(account, price) for price in prices]
            known = account.customers.by_id.get(customer)
            subscriber = account.customers.find(customer) if known else None
            subscriber = subscriber or Customer(customer, min(start or self.now(), self.now()))
            subscription = account.billing.subscribe(
                subscriber,
                wanted,
                self.now(),
                start=start,
                is_flexible=billing_mode == "flexible",
                trial_end=trial_end and _aware(trial_end),
                metadata=metadata,
                id=id,
            )
            return subscription.id

    def change_price(
        self, subscription: str, old: str, new: str, *, reset_anchor: bool = False
    ) -> None:
        """Give an item another price from now on; see :meth:`change_prices`."""
        self.change_prices(subscription, {old: new}, reset_anchor=reset_anchor)

    def change_prices(
        self, subscription: str, changes: Mapping[str, str], *, reset_anchor: bool = False
    ) -> None:
        """Give items other prices from now on, all at one moment.

        The items keep their ids and periods. In flexible billing mode the old prices' usage
        appears on the next invoice; in classic it is billed nowhere.

        :param changes: old price -> new price, as ids or lookup keys.
        :param reset_anchor: end the running periods at once, with an invoice at the old prices,
            and begin a new cycle.
        :raises ValueError: no item has an old price, or the new ones do not go together.
        """
        with self._open() as account:
            pairs = [(_price(account, old), _price(account, new)) for old, new in changes.items()]
            account.billing.change(subscription, pairs, self.now(), reset_anchor=reset_anchor)

    def add_item(self, subscription: str, price: str) -> str:
        """Bill another price, too, from now on.

        :return: the new item's id.
        :raises ValueError: it does not go together with the other prices.
        """
        with self._open() as account:
            added = account.billing.add_item(subscription, _price(account, price), self.now())
            return added.id

    def remove_item(self, subscription: str, price: str) -> None:
        """Bill a price no longer; its usage so far is treated as in :meth:`change_prices`.

        :raises ValueError: no item has it, or it is the only one.
        """
        with self._open() as account:
            account.billing.remove_item(subscription, _price(account, price), self.now())

    def cancel_subscription(self, subscription: str, *, at_period_end: bool = False) -> None:
        """End a subscription now, with a final invoice for its usage, or when its period ends.

        :raises ValueError: there is no such subscription, or it has ended.
        """
        with self._open() as account:
            account.billing.cancel(subscription, self.now(), at_period_end=at_period_end)

    def set_status(self, subscription: str, status: str) -> None:
        """Set ``past_due``, ``unpaid``, ``paused`` or ``active``; no invoice is made while paused.

        :raises ValueError: it is another status, or the subscription has ended.
        """
        with self._open() as account:
            account.billing.set_status(subscription, status, self.now())

    # --- invoices ---------------------------------------------------------------------------

    @property
    def invoices(self) -> list[Invoice]:
        """All invoices, oldest first; drafts as they are by now."""
        with self._open() as account:
            return account.invoices.all()

    def preview_invoice(self, subscription: str) -> Invoice:
        """What the running cycle would bill if it ended with what is there now.

        :raises ValueError: there is no such subscription, or it has ended.
        """
        with self._open() as account:
            return account.billing.preview(subscription, self.now())

    # --- webhooks ---------------------------------------------------------------------------

    def add_webhook_endpoint(
        self,
        url: str,
        secret: str | None = None,
        *,
        events: Sequence[str] = ("*",),
        thin: bool = False,
    ) -> str:
        """Send events to *url* from now on, each signed as Stripe signs them.

        :param secret: default: a new one.
        :param events: types, with ``*`` as wildcard.
        :param thin: send thin events instead of snapshots.
        :return: the secret.
        :raises ValueError: *url* is no HTTP URL.
        """
        with self._open():
            return self._hooks.add(url, secret, events, thin=thin)

    @property
    def webhooks_waiting(self) -> int:
        """How many webhooks are still to be sent, held ones included."""
        return self._hooks.waiting

    @property
    def webhook_deliveries(self) -> list[WebhookDelivery]:
        """Every attempt to send an event, oldest first."""
        with self._open():
            return list(self._hooks.deliveries)

    def resend(self, event_id: str) -> None:
        """Send an event again, to every endpoint that wants it.

        :raises ValueError: there is no such event.
        """
        with self._open() as account:
            event = account.journal.by_id.get(event_id)
            if event is None:
                raise Rejection("resource_missing", f"No such event: '{event_id}'")
            self._hooks.post(event)

    def hold_webhooks(self) -> None:
        """Keep events back until :meth:`release_webhooks`."""
        with self._open():
            self._hooks.hold()

    def release_webhooks(self) -> None:
        """Send the events that were held back, in order."""
        with self._open():
            self._hooks.release()

    def report_errors(self) -> list[str]:
        """Report the asynchronous errors not reported yet, as thin events, one per meter.

        While the emulator serves and has an endpoint this happens by itself.

        :return: the ids of the events.
        """
        with self._open() as account:
            return account.journal.report(self.now())


def _price(account: Account, id_or_lookup_key: str) -> Price:
    return account.catalogue.find_price(id_or_lookup_key, or_lookup_key=True)


def _aware(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        raise ValueError(f"{moment} has no time zone: use an aware datetime")
    return moment.astimezone(UTC)


def _decimal(value: str | None) -> Decimal | None:
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{value!r} is no amount: use text, as '4' or '0.0005'")
    return None if value is None else decimal_amount(value)


def _tier(tier: Mapping[str, Any]) -> Tier:
    names = {"up_to", "unit_amount_decimal", "flat_amount_decimal"}
    up_to = tier.get("up_to") if isinstance(tier, Mapping) and names.issuperset(tier) else None
    if not (up_to == "inf" or type(up_to) is int):
        raise ValueError(
            f"{tier!r} is no tier: give it an up_to, whole or 'inf', "
            "a unit_amount_decimal and, if you like, a flat_amount_decimal"
        )
    return Tier(
        None if up_to == "inf" else up_to,
        _decimal(tier.get("unit_amount_decimal")),
        _decimal(tier.get("flat_amount_decimal")),
    )
