"""The facade, built once per app: record, usage, bill, adjust.

Knows no Flask: the extension, the middleware and the CLI hand over plain values. What needs a
connection or a thread is made on first use and belongs to the process that made it (P12).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal

from . import logs, status, tracing, vitals
from .accounts import Accounts, id_of
from .catalogue import Catalogue
from .channels import Announcement
from .config import Config
from .drafts import Drafts, Operation, itself
from .errors import (
    ChannelError,
    ConfigError,
    CorruptStore,
    StoreUnavailable,
)
from .jobs import StorageJob
from .keys import Keys
from .measurements import METER
from .model import (
    Charge,
    Customer,
    Usage,
    UsageEvent,
    check_text,
    to_ms,
)
from .process import Host, Process
from .reports import Report, Reports, Summary
from .samples import sample_alert
from .schemas import EventSchema, ValidEvent
from .signals import emit, usage_recorded, usage_rejected
from .store import Decision, Entry, adjustment_key, database_path, encode

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from .gateway import Gateway
    from .reconciler import Reconciler
    from .store import Spill, Store
    from .stripe_events import StripeEvents
    from .vitals import Vitals
    from .worker import Worker

logger: logs.Log = logs.logger(__name__)


class Metering:
    """Records and reads usage for one app; ``current_metering`` is this."""

    def __init__(self, config: Config, catalogue: Catalogue, host: Host) -> None:
        database_path(config.database_url)  # a bad one fails here, not in the first request
        self.config = config
        self.catalogue = catalogue
        self._host = host
        self._sender = host.sender
        self._drafts = Drafts(catalogue, config.clock)
        #: Plans not worth a warning: the catalogue's, and what was warned of.
        self._known_plans: set[str | None] = {None, *catalogue.plans}
        self._processes: dict[int, Process] = {}
        #: What customers have used and owe.
        self.accounts: Accounts = Accounts(config, catalogue, self)
        #: What idempotency keys have been used for.
        self.keys: Keys = Keys(config, self, host.sender)
        self._reports = Reports(config, catalogue, self.accounts)

    # -- recording -----------------------------------------------------------------------------

    def record(
        self,
        meter: str,
        customer: Customer | str,
        *,
        value: int | Decimal | str | None = None,
        key: str | None = None,
        occurred_at: datetime | None = None,
        connection: Connection | None = None,
        **properties: Any,
    ) -> UsageEvent | None:
        """Record usage that has happened: the imperative twin of ``@metered``.

        Returns when the event is durable.

        :param customer: a ``Customer`` also tells its plan and address; with an id alone, what is
            already known of it holds.
        :param value: quantity in the meter's unit, >= 0, of at most 15 digits; None = 1, or the sum
            of the meter's ``value_from`` properties.
        :param key: idempotency key, <= 255 bytes; None = a new one.
        :param occurred_at: aware; None = now. Stripe takes 35 days back to 5 minutes ahead.
        :param connection: a SQLAlchemy connection to the same database, whose transaction the
            event joins: it is durable when the caller commits, and gone if the caller rolls back.
            ``usage_recorded`` is sent at once all the same. Keep the transaction short: while it
            has written, nothing else can be recorded.
        :return: the event; None if the key is known, or the meter's filter does not bill it.
        :raises InvalidEvent: (a ``ValueError``) naming each wrong field; nothing was written.
        :raises KeyConflict: (a ``ValueError``) the key is known for other values.
        :raises StoreUnavailable: neither the store nor the spill file could be written.
        """
        event = self.draft(
            meter, customer, value=value, key=key, occurred_at=occurred_at, properties=properties
        )
        if event is None:
            return None
        with tracing.record(meter) as span:
            entry = Entry(
                encode(event), itself(customer), trace=None if span is None else span.context
            )
            if connection is not None:
                is_new = self.store.append_on(connection, [entry])[0]
            else:
                is_new = self._process.recorder.record(entry)
        if not is_new:
            self.keys.check_same(event, connection)
            return None
        emit(usage_recorded, self._sender, event=event)
        if connection is None:
            self._wake_worker()
        else:  # nothing to see before the commit, and it looks by itself every second
            self._start_worker()
        return event

    def draft(
        self,
        meter: str,
        customer: Customer | str,
        *,
        value: int | Decimal | str | None = None,
        key: str | None = None,
        occurred_at: datetime | None = None,
        request_id: str | None = None,
        properties: Mapping[str, Any],
    ) -> UsageEvent | None:
        """The event that :meth:`record` would record; nothing is written.

        :return: None if the meter's filter does not bill it.
        :raises InvalidEvent: naming each wrong field.
        """
        return self._drafts.of_call(
            meter,
            customer,
            value=value,
            key=key,
            occurred_at=occurred_at,
            request_id=request_id,
            properties=properties,
        )

    def record_batch(self, events: Sequence[UsageEvent]) -> list[bool]:
        """Record *events*, made by :meth:`draft`, in one transaction; never into the spill.

        Delivery is left to whichever worker is running.

        :return: for each, whether its key was new.
        :raises InvalidEvent: one would exceed what a period can hold; none was recorded.
        """
        is_new = self.store.append([Entry(encode(event)) for event in events])
        for event, new in zip(events, is_new, strict=True):
            if new:
                emit(usage_recorded, self._sender, event=event)
        return is_new

    def schema(self, meter: str) -> EventSchema:
        """The schema of *meter*'s events."""
        return self._drafts.schemas[meter]

    def complete(self, operation: Operation, valid: ValidEvent) -> bool:
        """Record an operation whose work is done.

        :param valid: from the schema's ``lenient``, which flags what it had to leave out.
        :return: whether its key was new, and it was kept.
        :raises KeyConflict: another request with the same key was faster.
        :raises StoreUnavailable: the event could not be made durable.
        """
        if operation.customer.plan not in self._known_plans:
            self._warn_of_plan(operation.customer.plan)
        event = self._drafts.of_operation(operation, valid)
        try:
            with tracing.record(operation.meter.name) as span:
                entry = Entry(
                    encode(event),
                    itself(operation.customer),
                    trace=None if span is None else span.context,
                )
                is_new = self._process.recorder.record(entry)
        except StoreUnavailable:
            if operation.meter.billable:
                raise
            self._drop(operation)
            return False
        if not is_new:
            self.keys.check_same(event)
            return False
        emit(usage_recorded, self._sender, event=event)
        self._wake_worker()
        if event.flags and (worst := event.flags[-1]) != "reserved":
            self._tell_of_flags(operation, event, valid.wrong, worst)
        return True

    @property
    def is_closed(self) -> bool:
        """Whether billable work should be refused now, because it could not be recorded."""
        return self._process.recorder.is_closed

    # -- reading and correcting ----------------------------------------------------------------

    def usage(self, customer: Customer | str, at: datetime | None = None) -> list[Usage]:
        """What *customer* has used of each meter in the billing period of *at*.

        :param at: aware; None = now.
        """
        return self.accounts.usage(customer, at)

    def bill(self, customer: Customer | str, at: datetime | None = None) -> list[Charge]:
        """The overage of *customer* on the bill for the billing cycle of *at*.

        A line for each billable meter and period: a cycle has several periods if the plan was
        changed within it. Amounts are exact to the minor unit, as the invoice will be; what is
        projected says where they are expected to be when the period ends.

        :param at: aware; None = now.
        """
        return self.accounts.bill(customer, at)

    def report(self, customer: Customer | str) -> Report:
        """Everything about *customer* now: what the dashboard shows."""
        return self._reports.of(customer, self.store)

    def customers(self, containing: str = "", after: str = "", limit: int = 50) -> list[Summary]:
        """Where the customers whose ids contain a text stand, in the order of their ids.

        :param after: an id; those up to it are left out.
        """
        return self._reports.summaries(containing, after, limit, self.store)

    def adjust(
        self,
        customer: Customer | str,
        meter: str,
        key: str,
        reason: str,
        *,
        by: str | None = None,
    ) -> UsageEvent:
        """Void one event: its period's aggregate is corrected, and Stripe told the difference.

        Idempotent: voiding an event again returns the first adjustment.

        :param key: of the event to void.
        :param reason: for the record; not empty.
        :param by: who decided it, for the journal; None = the app. A person at a terminal leaves
            the delivery to the app's worker.
        :return: the adjustment.
        :raises UnknownEvent: (a ``LookupError``) no such event.
        :raises InvalidEvent: the event is not as it was written.
        """
        definition = self.catalogue.meter(meter)
        now = self.config.clock()
        adjustment = UsageEvent(
            key=adjustment_key(check_text("key", key)),
            customer=id_of(customer),
            meter=definition.name,
            units=0,
            precision=definition.precision,
            occurred_at=now,
            recorded_at=now,
            properties={"reason": check_text("reason", reason, max_bytes=1024)},
            kind="adjustment",
        )
        recorded = self.store.adjust(adjustment, Decision(by or "app", reason, to_ms(now)))
        if by is None:
            self._wake_worker()
        return recorded

    def test_alert(self, customer: Customer | str) -> dict[str, str | None]:
        """Announce a made-up warning for *customer* on every channel, now, marked as a test.

        :return: channel -> what went wrong, or None.
        """
        known = self.store.standing(id_of(customer)).customer or Customer(id_of(customer))
        meter = next(iter(self.catalogue.meters.values()))
        alert = sample_alert(known.id, meter, self.config.clock())
        outcomes: dict[str, str | None] = {}
        for channel in self._process.channels:
            try:
                channel.announce(Announcement(alert, meter, known.email))
                outcomes[channel.name] = None
            except ChannelError as exc:
                outcomes[channel.name] = exc.reason
        return outcomes

    def have_looked_at(self, customer_id: str, now: datetime) -> None:
        """Have the subscriptions of a customer looked at soon; never raises.

        Nothing happens where nobody looks: without a Stripe key and a ``subscription_loader``.
        """
        if not self._process.reads_subscriptions:
            return
        try:
            self.store.subscriptions.ask(customer_id, now)
        except (StoreUnavailable, CorruptStore) as exc:
            logger.warning("subscriptions_not_asked_for", error=exc)

    def status(self) -> dict[str, Any]:
        """How it is doing: counts per meter and state, holds, workers, targets, problems."""
        process = self._process
        account = process.gateway.account if process.gateway else None
        return status.report(
            process.store, process.spill, self.config, self.catalogue.meters, account
        )

    def vitals(self) -> Vitals:
        """The part of :meth:`status` that costs the same whatever the history: to be read often.

        :raises StoreUnavailable: the store cannot be read; ``CorruptStore`` if it is damaged.
        """
        billable = [meter.name for meter in self.catalogue.meters.values() if meter.billable]
        return vitals.read(self.store, self.config, billable)

    # -- the process's parts -------------------------------------------------------------------

    @property
    def store(self) -> Store:
        """This process's store."""
        return self._process.store

    @property
    def spill(self) -> Spill:
        """What this host keeps while the store is out of order."""
        return self._process.spill

    @property
    def worker(self) -> Worker:
        """This process's worker, not started."""
        return self._process.worker

    @property
    def stripe_events(self) -> StripeEvents:
        """Takes Stripe's webhooks in."""
        return self._process.stripe_events

    @property
    def storage_job(self) -> StorageJob:
        """Measures how much customers store.

        :raises UnknownMeter: the catalogue has no meter for it.
        :raises ConfigError: nothing says how much it is.
        """
        self.catalogue.meter(METER)
        if (job := self._process.storage_job) is None:
            raise ConfigError(
                "nothing says how much customers store: register a function with "
                "@meter.storage_loader"
            )
        return job

    @property
    def gateway(self) -> Gateway | None:
        """Stripe, or None without a key."""
        return self._process.gateway

    def reconciler(self) -> Reconciler:
        """Holds the ledger against Stripe.

        :raises ConfigError: there is no Stripe key, or it is another account's.
        """
        return self._process.reconciler()

    @property
    def _process(self) -> Process:
        # The pid is compared on every call: fork hooks may not run.
        pid = os.getpid()
        process = self._processes.get(pid)
        if process is None:
            for inherited in list(self._processes.values()):
                inherited.store.abandon()
            # setdefault: of two threads that come first at once, one wins.
            process = self._processes.setdefault(
                pid, Process(self.config, self.catalogue, self._host)
            )
        return process

    def _wake_worker(self) -> None:
        if (worker := self._start_worker()) is not None:
            worker.wake()

    def _start_worker(self) -> Worker | None:
        """This process's worker with its threads running; None if it is not to run here."""
        if self.config.worker != "thread":
            return None
        process = self._process
        if not process.worker.is_complete:
            try:
                with process.starting:
                    process.worker.start()
            except RuntimeError as exc:  # no thread to be had; the next event tries again
                logger.error("worker_not_started", error=exc)
                return None
        return process.worker

    # -- small parts ---------------------------------------------------------------------------

    def _warn_of_plan(self, plan: str | None) -> None:
        """Say once that *plan* limits nothing, which no overage, alert or refusal would ever show.

        It does not matter where Stripe's subscription has a plan: that wins.
        """
        self._known_plans.add(plan)
        logger.warning(
            "plan_unknown",
            plan=plan,
            known=",".join(self.catalogue.plans),
            then="unlimited_unless_stripe_names_another",
        )

    def _tell_of_flags(
        self,
        operation: Operation,
        event: UsageEvent,
        wrong: Sequence[str],
        worst: Literal["incomplete", "invalid"],
    ) -> None:
        logger.warning(
            "usage_flagged",
            meter=event.meter,
            # What a client calls a request may say who it is.
            key=event.key if operation.fingerprint is None else "of_the_client",
            flags=",".join(event.flags),
            wrong=",".join(wrong) or "properties",
        )
        self._reject(operation, worst, event)

    def _drop(self, operation: Operation) -> None:
        """An analytics event that cannot be kept: the host goes on, the loss is counted."""
        logger.error("usage_dropped", meter=operation.meter.name)
        self._process.count_drops({operation.meter.name: 1})
        self._reject(operation, "dropped", None)

    def _reject(
        self,
        operation: Operation,
        reason: Literal["incomplete", "invalid", "dropped"],
        event: UsageEvent | None,
    ) -> None:
        emit(
            usage_rejected,
            self._sender,
            customer=operation.customer.id,
            meter=operation.meter.name,
            reason=reason,
            event=event,
        )
