"""What belongs to one process of an app: the store, the gateway, the worker.

Built on first use and never shared with a child (P12).
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from . import canary, logs
from .catalogue import CANARY, Catalogue
from .channels import Channel
from .channels.mail import Mail, MailChannel, mail_renderer
from .channels.signal import SignalChannel
from .clerk import POLL_S, Clerk, Duty
from .closing import PeriodClose
from .config import Config
from .courier import Courier
from .errors import C2MeterError, ConfigError
from .gateway import Gateway
from .hooks import Hooks
from .jobs import StorageDuty, StorageJob
from .jury import Jury
from .measurements import METER, Judge
from .model import JobResult, UsageEvent
from .notify import Announcer
from .reconciler import Reconciler
from .recorder import Recorder
from .schedule import Schedule
from .schemas import EventSchema
from .shipment import Shipment, ShipmentState
from .signals import emit, job_finished, usage_delivered, usage_recorded, usage_rejected
from .store import AlertPolicy, Settlement, Spill, open_store
from .stripe_events import OldEvents, StripeEvents
from .stripe_objects import Names
from .subscriptions import (
    RARELY,
    REFRESH,
    LoaderSource,
    Source,
    StripeSource,
    SubscriptionReader,
)
from .summaries import SummaryReader
from .thresholds import allowances
from .transports import transport
from .worker import Worker

if TYPE_CHECKING:
    import jinja2

    from .store import Store

logger: logs.Log = logs.logger(__name__)

_A = TypeVar("_A")
_T = TypeVar("_T")

#: Stripe allows 1,000 meter events per second in live mode and 25 operations in a sandbox; we stay
#: at four fifths. Source: docs.stripe.com/rate-limits.
_LIVE_RATE, _SANDBOX_RATE = 800.0, 20.0
#: Of the 100 other requests per second that it allows in live mode, half.
_READ_RATE = 50.0


@dataclass(frozen=True, slots=True)
class Host:
    """The app around us, as far as the worker needs it."""

    #: The sender of signals.
    sender: object
    hooks: Hooks
    #: Makes a context in which the hooks may run.
    context: Callable[[], AbstractContextManager[Any]]
    #: Finds the host's own mail templates; None = there are none.
    templates: jinja2.BaseLoader | None = None

    def in_context(self, hook: Callable[[_A], _T]) -> Callable[[_A], _T]:
        """*hook*, run in a context of its own each time."""

        def run(argument: _A) -> _T:
            with self.context():
                return hook(argument)

        return run


class Process:
    """The parts, made together.

    :raises ConfigError: a part cannot be made of the configuration.
    """

    def __init__(self, config: Config, catalogue: Catalogue, host: Host) -> None:
        self._config = config
        self._catalogue = catalogue
        self._host = host
        self._channels = list(_channels(config, host))
        self.store: Store = open_store(
            config.database_url,
            {**catalogue.meters, CANARY.name: CANARY},
            config.durability,
            self._alert_policy(),
        )
        self.spill: Spill = Spill(config.spill_path)
        self.gateway: Gateway | None = self._new_gateway()
        names = Names(tuple(catalogue.plans), tuple(catalogue.meters))
        self.stripe_events: StripeEvents = StripeEvents(
            self.store, names, config.clock, self.gateway, self._refused
        )
        #: None where nothing says how much customers store, or nothing counts it.
        self.storage_job: StorageJob | None = self._new_storage_job()
        courier = self._new_courier()
        self.worker: Worker = Worker(Clerk(list(self._duties(names))), courier)
        self.recorder: Recorder = Recorder(
            self.store, self.spill, config.on_store_failure, replays=courier is None
        )
        #: Held while the worker's threads are being started.
        self.starting: threading.Lock = threading.Lock()
        #: Meter -> analytics events lost and not yet noted in the store.
        self._drops: Counter[str] = Counter()
        self._drops_lock = threading.Lock()

    @property
    def channels(self) -> list[Channel]:
        """The channels on which alerts are announced, but for the app itself."""
        return self._channels

    @property
    def reads_subscriptions(self) -> bool:
        """Whether somebody looks subscriptions up."""
        return self.gateway is not None or self._host.hooks.subscription_loader is not None

    def reconciler(self) -> Reconciler:
        """Holds this store against the Stripe account it delivers to.

        :raises ConfigError: there is no key, or it is another account's.
        """
        gateway = self.gateway
        if gateway is None:
            raise ConfigError(
                "there is nothing to reconcile with: no Stripe key here; set "
                "C2METER_STRIPE_SECRET_KEY (or STRIPE_SECRET_KEY)"
            )
        if not self._may_read():
            raise ConfigError(
                f"this ledger delivers to {self.store.facts()['account']}, not to "
                f"{gateway.account}: there is nothing to compare"
            )
        rate = min(_READ_RATE, self._rate(gateway))
        return Reconciler(
            self.store,
            gateway,
            SummaryReader(gateway, rate),
            self._billable(),
            self._config.clock,
        )

    # -- making the parts ----------------------------------------------------------------------

    def _alert_policy(self) -> AlertPolicy:
        config = self._config
        return AlertPolicy(
            allowances=allowances(self._catalogue.meters.values(), config.alert_thresholds),
            channels=("in_app", *(channel.name for channel in self._channels)),
            grace_ms=config.finalisation_grace_s * 1000,
        )

    def _new_gateway(self) -> Gateway | None:
        config = self._config
        if not config.stripe_secret_key:
            return None
        return Gateway(
            config.stripe_secret_key, base_url=config.stripe_base_url, clock=config.clock
        )

    def _new_courier(self) -> Courier | None:
        config, gateway = self._config, self.gateway
        if gateway is None:
            return None
        meters = self._billable()
        if canary.is_delivered(config):
            meters.append(CANARY.name)
        return Courier(
            self.store,
            self.spill,
            transport(config.transport, gateway),
            account=gateway.account,
            meters=meters,
            clock=config.clock,
            rate_cap=self._rate(gateway),
            lease_s=config.lease_s,
            on_settled=self._settled,
        )

    def _billable(self) -> list[str]:
        return [meter.name for meter in self._catalogue.meters.values() if meter.billable]

    def _rate(self, gateway: Gateway) -> float:
        config = self._config
        return config.rate_cap or _default_rate(gateway, config.stripe_base_url)

    def _new_storage_job(self) -> StorageJob | None:
        config, loader = self._config, self._host.hooks.storage_loader
        meter = self._catalogue.meters.get(METER)
        if loader is None or meter is None:
            return None
        tells_operator = {"webhook"} | ({"email"} if config.operator_email else set())
        return StorageJob(
            self.store,
            config,
            loader,
            self._host.context,
            Judge(meter, EventSchema(meter), config.storage_max_growth),
            [channel.name for channel in self._channels if channel.name in tells_operator],
            on_recorded=self._measured,
            on_finished=self._finished,
        )

    def _duties(self, names: Names) -> Iterator[Duty]:
        config, gateway, loader = self._config, self.gateway, self._host.hooks.subscription_loader
        source: Source | None = None
        if loader is not None:
            source = LoaderSource(self._host.in_context(loader))
        elif gateway is not None:
            source = StripeSource(gateway, self.store, names)
        if source is not None:
            refresh = RARELY if config.stripe_webhook_secret and loader is None else REFRESH
            yield SubscriptionReader(self.store, source, config.clock, self._may_read, refresh)
        if gateway is not None:
            yield Jury(self.store, gateway, config.clock)
            yield self.stripe_events
            yield PeriodClose(self.store, self.reconciler, config.clock, self._may_read)
        if config.stripe_webhook_secret:
            yield OldEvents(self.store.inbox, config.clock)
        if gateway is None:
            yield Replay(self)
        yield Drops(self)
        if config.canary_s:
            yield canary.Canary(lambda entry: self.recorder.record(entry), config)
        for channel in self._channels:
            yield Announcer(
                self.store,
                channel,
                self._catalogue.meters,
                config.clock,
                operator_email=config.operator_email,
            )
        if self.storage_job is not None:
            yield StorageDuty(self.storage_job, Schedule(config.storage_schedule))

    def _may_read(self) -> bool:
        """Whether the subscriptions to be read are those of the account we deliver to."""
        if self.gateway is None:
            return True
        return self.store.facts().get("account") in (None, self.gateway.account)

    # -- what happens --------------------------------------------------------------------------

    def _settled(self, settlement: Settlement) -> None:
        if settlement.state is ShipmentState.DELIVERED:
            emit(usage_delivered, self._host.sender, shipment=settlement.shipment)

    def _measured(self, event: UsageEvent) -> None:
        emit(usage_recorded, self._host.sender, event=event)

    def _finished(self, result: JobResult) -> None:
        emit(job_finished, self._host.sender, result=result)

    def _refused(self, shipment: Shipment) -> None:
        emit(
            usage_rejected,
            self._host.sender,
            customer=shipment.customer,
            meter=shipment.meter,
            reason="refused",
            event=None,
            shipment=shipment,
        )

    # -- drops ---------------------------------------------------------------------------------

    @property
    def has_drops(self) -> bool:
        """Whether the store does not know of all drops."""
        return bool(self._drops)

    def count_drops(self, drops: Mapping[str, int]) -> None:
        """Add to the drops that are still to be noted."""
        with self._drops_lock:
            self._drops.update(drops)

    def take_drops(self) -> Mapping[str, int]:
        """The drops that are still to be noted; from now on there are none."""
        with self._drops_lock:
            drops, self._drops = self._drops, Counter()
        return drops


class Replay:
    """Records what was spilled, where no courier does: a duty of the clerk."""

    name = "replay"

    def __init__(self, process: Process) -> None:
        self._process = process
        self._rested_s = float("-inf")

    def is_due(self) -> bool:
        """Whether something was spilled, and the store may work again."""
        process = self._process
        if process.spill.is_empty or process.recorder.store_is_failing:
            return False
        return time.monotonic() >= self._rested_s

    def work(self) -> None:
        """Record it; if another process is at it, leave it alone for a while."""
        recorded = self._process.spill.replay(self._process.store.append_replayed)
        if recorded:
            logger.warning("spilled_events_recorded", events=recorded)
        else:
            self._rested_s = time.monotonic() + POLL_S


class Drops:
    """Notes in the store what was dropped while it was out of order: a duty of the clerk."""

    name = "drops"

    def __init__(self, process: Process) -> None:
        self._process = process

    def is_due(self) -> bool:
        """Whether there is something to note, and the store works again."""
        return self._process.has_drops and not self._process.recorder.store_is_failing

    def work(self) -> None:
        """Note it."""
        drops = self._process.take_drops()
        try:
            self._process.store.add("dropped", drops)
        except C2MeterError:
            self._process.count_drops(drops)
            raise


def _channels(config: Config, host: Host) -> Iterator[Channel]:
    yield SignalChannel(host.sender)
    send: Callable[[Mail], object] | None = None
    if host.hooks.mail_sender is not None:
        send = host.in_context(host.hooks.mail_sender)
    elif config.mail_server is not None:
        from .channels.smtp import SmtpSender

        send = SmtpSender(config)
    if send is not None:
        yield MailChannel(mail_renderer(host.templates, site_url=config.site_url), send)
    if config.alert_webhook_url is not None:
        from .channels.webhook import WebhookChannel

        yield WebhookChannel(
            config.alert_webhook_url,
            config.alert_webhook_secret or "",
            config.clock,
            config.alert_webhook_allow_loopback,
        )


def _default_rate(gateway: Gateway, base_url: str | None) -> float:
    return _LIVE_RATE if gateway.livemode or base_url else _SANDBOX_RATE
