"""What happens to customers and subscriptions: how they begin, turn over, change, end, are billed.

Every change has its moment, in the customer's own time, and is told as an event of that moment.
What is still to come (the end of a period, a finalisation) waits in an agenda: the account's, or
that of the customer's test clock. Imports ``agenda``, ``customers``, ``invoices``, ``prices``,
``subscriptions`` and ``terms``. Not thread-safe: the app holds its lock. Promise: each second of a
metered item is billed once, or, where Stripe does so, knowingly not at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial

from .agenda import Agenda
from .customers import Customer, Customers
from .invoices import Bill, Invoice, Invoices
from .prices import Price
from .subscriptions import Item, Subscription
from .terms import Rejection, Tell, new_id, whole_second

#: The statuses that :meth:`Billing.set_status` knows; the others are come by on their own.
SETTABLE = ("active", "past_due", "unpaid", "paused")


class Billing:
    """All subscriptions.

    :param agenda: of the customers without a test clock.
    :param grace: from an invoice's creation to its finalisation.
    """

    def __init__(
        self,
        customers: Customers,
        invoices: Invoices,
        agenda: Agenda,
        tell: Tell,
        grace: timedelta,
    ) -> None:
        self._customers = customers
        self._invoices = invoices
        self._agenda = agenda
        self._tell = tell
        self._grace = grace
        self.by_id: dict[str, Subscription] = {}

    # --- beginning --------------------------------------------------------------------------

    def add_customer(self, customer: Customer) -> Customer:
        """Create *customer*.

        :raises Rejection: its id is taken.
        """
        self._customers.create(customer)
        self._tell("customer.created", customer, customer.created)
        return customer

    def subscribe(
        self,
        customer: Customer,
        prices: Sequence[Price],
        now: datetime,
        *,
        start: datetime | None = None,
        anchor: datetime | None = None,
        is_flexible: bool = True,
        trial_end: datetime | None = None,
        metadata: Mapping[str, str] | None = None,
        id: str | None = None,
    ) -> Subscription:
        """Begin a subscription; if it begins in the past, what has been due since happens now.

        :param customer: created, too, if it is new.
        :param anchor: where its cycles are counted from; default: the trial's end, else the start.
        :raises Rejection: the prices do not go together, or a time or the id is impossible.
        """
        moment = self._moment(customer, now)
        start = whole_second(start or moment)
        trial_end = trial_end and whole_second(trial_end)
        if start > moment:
            raise Rejection("invalid_time", "The start lies in the future.", "backdate_start_date")
        if trial_end is not None and trial_end <= start:
            raise Rejection("invalid_time", "The trial ends before it begins.", "trial_end")
        if id in self.by_id:
            raise Rejection("resource_already_exists", f"Subscription already exists: '{id}'", "id")
        _refuse_archived(prices)
        _refuse_mixture(prices, is_flexible, prices[0].currency if prices else "")
        subscription = Subscription(
            id=id or new_id("sub"),
            customer=customer,
            created=moment,
            start=start,
            anchor=whole_second(anchor or trial_end or start),
            is_flexible=is_flexible,
            status="trialing" if trial_end else "active",
            currency=prices[0].currency,
            trial_end=trial_end,
            metadata=metadata or {},
        )
        subscription.items = [_new_item(subscription, price, start) for price in prices]
        if customer.id not in self._customers.by_id:
            self.add_customer(customer)
        self.by_id[subscription.id] = subscription
        self._await(subscription)
        self._agenda_of(customer).run(moment)
        # However long ago it began, it is created now.
        self._tell("customer.subscription.created", subscription, moment)
        return subscription

    def find(self, id: str) -> Subscription:
        """The subscription of this id.

        :raises Rejection: there is none.
        """
        if id not in self.by_id:
            raise Rejection("resource_missing", f"No such subscription: '{id}'", "subscription")
        return self.by_id[id]

    def of(self, customer: Customer) -> list[Subscription]:
        """The subscriptions of *customer* that have not ended."""
        return [
            each
            for each in self.by_id.values()
            if each.customer is customer and each.ended_at is None
        ]

    # --- changes ----------------------------------------------------------------------------

    def change(
        self,
        id: str,
        changes: Sequence[tuple[Price, Price]],
        now: datetime,
        *,
        reset_anchor: bool = False,
    ) -> None:
        """Give items other prices, all at one moment. Items keep their ids and periods.

        With *reset_anchor* the running periods end at once, billed at the old prices, and new ones
        begin. Otherwise the old price's usage up to now waits for the next invoice in flexible
        billing mode, and is billed nowhere in classic.

        :raises Rejection: it has no item of an old price, or the new prices do not go together.
        """
        subscription, moment = self._running(id, now)
        changed = [(subscription.item_of(old), new) for old, new in changes]
        _refuse_archived([new for _, new in changed])
        after = {item.id: item.price for item in subscription.items}
        after |= {item.id: new for item, new in changed}
        _refuse_mixture(list(after.values()), subscription.is_flexible, subscription.currency)
        is_other_rhythm = any(new.rhythm != item.price.rhythm for item, new in changed)
        # Classic mode resets by itself when the rhythm changes; flexible mode never does.
        if reset_anchor or (is_other_rhythm and not subscription.is_flexible):
            self._reset(subscription, changed, moment)
            return
        for item, new in changed:
            self._leave_price(subscription, item, moment)
            if new.rhythm != item.price.rhythm:
                item.start, item.end = moment, subscription.period_end(new, moment)
            item.price = new
        self._tell("customer.subscription.updated", subscription, moment)
        self._await(subscription)

    def add_item(self, id: str, price: Price, now: datetime) -> Item:
        """Bill *price*, too, from now on; the item's first period is the rest of the cycle.

        :raises Rejection: it does not go together with the other prices.
        """
        subscription, moment = self._running(id, now)
        _refuse_archived([price])
        prices = [item.price for item in subscription.items]
        _refuse_mixture([*prices, price], subscription.is_flexible, subscription.currency)
        item = _new_item(subscription, price, moment)
        subscription.items.append(item)
        self._tell("customer.subscription.updated", subscription, moment)
        self._await(subscription)
        return item

    def remove_item(self, id: str, price: Price, now: datetime) -> None:
        """Bill *price* no longer; its usage up to now as in :meth:`change`.

        :raises Rejection: there is no such item, or no other.
        """
        subscription, moment = self._running(id, now)
        item = subscription.item_of(price)
        if len(subscription.items) == 1:
            raise Rejection(
                "invalid_items", "A subscription must keep an item; cancel it instead.", "price"
            )
        self._leave_price(subscription, item, moment)
        subscription.items.remove(item)
        self._tell("customer.subscription.updated", subscription, moment)
        self._await(subscription)

    def set_status(self, id: str, status: str, now: datetime) -> None:
        """Let the subscription be paid late, be paused or be active again.

        :raises Rejection: it cannot have that status by decree.
        """
        subscription, moment = self._running(id, now)
        if status not in SETTABLE:
            raise Rejection("invalid_status", f"Use one of {', '.join(SETTABLE)}.", "status")
        before, subscription.status = subscription.status, status
        if status == before:
            return
        self._tell("customer.subscription.updated", subscription, moment)
        if status == "paused":
            self._tell("customer.subscription.paused", subscription, moment)
        elif before == "paused":
            self._tell("customer.subscription.resumed", subscription, moment)

    def cancel(self, id: str, now: datetime, *, at_period_end: bool = False) -> None:
        """End it at once with a final invoice for its usage, or at the end of its period.

        :raises Rejection: it has ended already.
        """
        subscription, moment = self._running(id, now)
        subscription.canceled_at, subscription.cancel_at = moment, None
        if not at_period_end:
            self._end(subscription, moment)
            return
        # Of several periods the longest: nothing that is running is cut short.
        subscription.cancel_at = max(item.end for item in subscription.items)
        self._tell("customer.subscription.updated", subscription, moment)
        self._await(subscription)

    def delete_customer(self, customer: Customer, now: datetime) -> None:
        """Delete *customer*; its subscriptions end at once."""
        for subscription in self.of(customer):
            self.cancel(subscription.id, now)
        customer.is_deleted = True
        self._tell("customer.deleted", customer, self._moment(customer, now))

    def preview(self, id: str, now: datetime) -> Invoice:
        """The next invoice, if there were no more usage than has arrived by now.

        :raises Rejection: there will be none.
        """
        subscription, moment = self._running(id, now)
        end = subscription.next_moment
        ending = subscription.ending(end)
        start = min(item.start for item in ending)
        bill = Bill(
            id=f"upcoming_{subscription.id}",
            subscription=subscription,
            stretches=subscription.stretches(ending, end),
            created=moment,
            period_start=start,
            period_end=end,
            reason="upcoming",
            finalizes_at=end + self._grace,
        )
        return self._invoices.show(bill)

    # --- what comes about -------------------------------------------------------------------

    def _turn(self, subscription: Subscription, moment: datetime) -> None:
        # Appointments are not cancelled when plans change; what they were for is gone then.
        if subscription.ended_at is not None or subscription.next_moment != moment:
            return
        if subscription.cancel_at == moment:
            self._end(subscription, moment)
            return
        ending = subscription.ending(moment)
        bill = self._bill(subscription, ending, moment, "subscription_cycle")
        if subscription.is_trialing and subscription.trial_end == moment:
            subscription.status = "active"
        self._begin_periods(subscription, ending, moment)
        self._tell("customer.subscription.updated", subscription, moment)
        self._announce(bill)
        self._await(subscription)

    def _reset(
        self,
        subscription: Subscription,
        changed: Iterable[tuple[Item, Price]],
        moment: datetime,
    ) -> None:
        bill = self._bill(subscription, subscription.items, moment, "subscription_update")
        if subscription.is_trialing:
            subscription.status, subscription.trial_end = "active", moment
        subscription.anchor = moment
        for item, new in changed:
            item.price = new
        self._begin_periods(subscription, subscription.items, moment)
        if subscription.cancel_at is not None:
            subscription.cancel_at = max(item.end for item in subscription.items)
        self._tell("customer.subscription.updated", subscription, moment)
        self._announce(bill)
        self._await(subscription)

    def _end(self, subscription: Subscription, moment: datetime) -> None:
        reason = "subscription_cycle" if subscription.cancel_at == moment else "subscription_update"
        bill = self._bill(subscription, subscription.items, moment, reason)
        subscription.status = "canceled"
        subscription.ended_at = moment
        self._tell("customer.subscription.deleted", subscription, moment)
        self._announce(bill)

    def _begin_periods(
        self, subscription: Subscription, items: Iterable[Item], moment: datetime
    ) -> None:
        for item in items:
            item.start = item.since = moment
            item.end = subscription.period_end(item.price, moment)

    def _leave_price(self, subscription: Subscription, item: Item, moment: datetime) -> None:
        """End what *item*'s price bills.

        Classic mode bills it nowhere. In flexible mode it becomes a pending invoice item. Stripe's
        exact rule is not documented for usage that arrives after the change but happened before it:
        here its timestamp decides, and it counts until the invoice it appears on is finalised.
        """
        stretch = subscription.stretch(item, moment)
        if stretch is not None and subscription.is_flexible:
            subscription.pending.append(stretch)
        item.since = moment

    def _bill(
        self, subscription: Subscription, items: Sequence[Item], moment: datetime, reason: str
    ) -> Bill | None:
        """A draft for the periods of *items*, which end now; none while it is paused."""
        if subscription.status == "paused":
            return None
        bill = Bill(
            id=new_id("in"),
            subscription=subscription,
            stretches=subscription.stretches(items, moment),
            created=moment,
            period_start=min(item.start for item in items),
            period_end=moment,
            reason=reason,
            finalizes_at=moment + self._grace,
        )
        subscription.pending = []
        subscription.latest_invoice = bill.id
        self._invoices.bills.append(bill)
        return bill

    def _announce(self, bill: Bill | None) -> None:
        if bill is not None:
            self._tell("invoice.created", bill, bill.created)
            agenda = self._agenda_of(bill.subscription.customer)
            agenda.add(bill.finalizes_at, partial(self._finalise, bill))

    def _finalise(self, bill: Bill, moment: datetime) -> None:
        self._invoices.finalise(bill, moment)
        self._tell("invoice.finalized", bill, moment)

    def _await(self, subscription: Subscription) -> None:
        agenda = self._agenda_of(subscription.customer)
        agenda.add(subscription.next_moment, partial(self._turn, subscription))

    def _running(self, id: str, now: datetime) -> tuple[Subscription, datetime]:
        """The subscription of this id, and the moment it is for it."""
        subscription = self.find(id)
        if subscription.ended_at is not None:
            raise Rejection("resource_missing", f"Subscription {id} is canceled.", "subscription")
        return subscription, self._moment(subscription.customer, now)

    def _moment(self, customer: Customer, now: datetime) -> datetime:
        return whole_second(self._customers.now_of(customer.id, now))

    def _agenda_of(self, customer: Customer) -> Agenda:
        return self._agenda if customer.clock is None else customer.clock.agenda


def _new_item(subscription: Subscription, price: Price, moment: datetime) -> Item:
    end = subscription.period_end(price, moment)
    return Item(new_id("si"), price, created=moment, start=moment, end=end, since=moment)


def _refuse_archived(prices: Iterable[Price]) -> None:
    if not all(price.is_active for price in prices):
        raise Rejection("price_inactive", "An archived price cannot be used anew.", "items")


def _refuse_mixture(prices: Sequence[Price], is_flexible: bool, currency: str) -> None:
    """Refuse prices that no subscription can have together."""
    if not prices:
        raise Rejection("parameter_missing", "A subscription needs at least one price.", "items")
    if any(price.rhythm is None for price in prices):
        raise Rejection("price_not_recurring", "All prices must be recurring.", "items")
    if len({price.id for price in prices}) < len(prices):
        raise Rejection("duplicate_price", "Two items cannot have the same price.", "items")
    if any(price.currency != currency for price in prices):
        raise Rejection("currency_mismatch", "All prices must have the same currency.", "items")
    if len({price.rhythm for price in prices}) > 1 and not is_flexible:
        raise Rejection(
            "mixed_intervals", "Prices of different intervals need flexible billing mode.", "items"
        )
