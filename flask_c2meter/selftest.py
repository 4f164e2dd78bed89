"""Does it work: an event of each billable meter, to Stripe's summary and back.

For each meter: record an event of a customer that nobody bills, have a worker deliver it, see it in
Stripe's summary of its minute, void it, and see the summary as it was before. All meters at once,
since Stripe takes its time. Promises: usage of others is never touched; whatever has been recorded
is voided, also when the test fails or is interrupted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal

from . import samples
from .errors import C2MeterError, GatewayError, InvalidEvent
from .gateway import Gateway, Refused
from .metering import Metering
from .model import Aggregation, Meter, new_id, to_ms
from .shipment import Shipment, ShipmentState, Verdict
from .store import ALL, Decision

#: Stripe meters reads of summaries: each is asked for later than the one before, up to this.
MAX_PAUSE_S = 15.0
#: The store is looked at so often.
LOOK_S = 0.25
#: A worker that was started for the test gets so long to end.
STOP_S = 10.0
_MINUTE = timedelta(minutes=1)


@dataclass(slots=True)
class Trial:
    """One meter's way to Stripe and back; times in seconds since the beginning."""

    meter: Meter
    key: str
    minute: datetime
    #: What the event has added, in wire units.
    units: int = 0
    #: What Stripe showed of its minute before.
    before: int = 0
    delivered_s: float | None = None
    shown_s: float | None = None
    returned_s: float | None = None
    failure: str = ""

    @property
    def is_recorded(self) -> bool:
        """Whether there is something to void."""
        return self.units > 0

    @property
    def passed(self) -> bool:
        """Whether it has come back."""
        return self.returned_s is not None and not self.failure


@dataclass(slots=True)
class SelfTest:
    """One run.

    :param customer: whose usage it is; see :mod:`~flask_c2meter.trial_customer`.
    :param by: who tests, for the journal.
    :param given: property -> value, as text, where a sample would not do.
    :param timeout_s: how long to wait for Stripe on each of the two ways.
    :param tell: told now and then, in words, how far it is.
    """

    metering: Metering
    gateway: Gateway
    customer: str
    by: str
    given: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float = 300.0
    tell: Callable[[str], None] = lambda words: None
    pause: Callable[[float], None] = lambda seconds: time.sleep(seconds)
    run_id: str = field(default_factory=lambda: new_id()[-12:])
    _began_s: float = field(default_factory=time.monotonic)

    def run(self) -> list[Trial]:
        """Try every billable meter; a failure of one is in its :class:`Trial`.

        :raises StoreUnavailable: nothing can be recorded.
        """
        meters = [meter for meter in self.metering.catalogue.meters.values() if meter.billable]
        now = self.metering.config.clock()
        trials = [Trial(meter, samples.key(self.run_id, meter), _minute(now)) for meter in meters]
        why = f"{len(trials)} meters of {self.customer}"
        self.metering.store.journal.add(
            Decision(self.by, why, to_ms(now)), f"selftest {self.run_id}"
        )
        with self._worker():
            try:
                for trial in trials:
                    self._record(trial, now)
                self._wait([each for each in trials if each.is_recorded], self._is_there, "shown")
            finally:
                # Also of those that failed: what has not arrived yet then never does.
                voided = [each for each in trials if each.is_recorded and self._void(each)]
            self._wait(voided, self._is_back, "taken back")
        return trials

    @contextmanager
    def _worker(self) -> Iterator[None]:
        """Somebody who delivers: those at work, else one of our own."""
        worker = self.metering.worker
        if not self.metering.status()["workers"]:
            worker.start()
        try:
            yield
        finally:
            worker.stop()
            ends_s = time.monotonic() + STOP_S
            while worker.is_running and time.monotonic() < ends_s:
                self.pause(LOOK_S / 5)

    # -- there ---------------------------------------------------------------------------------

    def _record(self, trial: Trial, now: datetime) -> None:
        meter = trial.meter
        # Each test has a minute of its own, so that no other's correction is taken for it.
        moments = (now - back * _MINUTE for back in range(60))
        moment = next((at for at in moments if not self._shipments(meter, _minute(at))), None)
        if moment is None:
            trial.failure = "tested too often within the hour: try again in a minute"
            return
        trial.minute = _minute(moment)
        try:
            trial.before = self._shown(trial)
            total = self._total(meter, moment)
            event = self.metering.record(
                meter.name,
                self.customer,
                value=samples.value(meter, total),
                key=trial.key,
                occurred_at=moment,
                **samples.properties(meter, self.run_id, self._given(meter)),
            )
        except InvalidEvent as exc:
            trial.failure = f"cannot be recorded: {exc}"
        except GatewayError as exc:
            trial.failure = _words(exc)
        else:
            if event is None:
                trial.failure = "its filter does not bill the sample; give others: --property"
            else:
                is_max = meter.aggregation is Aggregation.MAX
                trial.units = event.units - (meter.to_units(total) if is_max else 0)

    def _given(self, meter: Meter) -> Mapping[str, str]:
        return {name: text for name, text in self.given.items() if name in meter.properties}

    def _shipments(self, meter: Meter, minute: datetime) -> list[Shipment]:
        return self.metering.store.shipments_of(self.customer, meter.name, minute)

    def _total(self, meter: Meter, at: datetime) -> Decimal:
        used = self.metering.usage(self.customer, at)
        return next((row.total for row in used if row.meter == meter.name), Decimal(0))

    def _is_there(self, trial: Trial, may_ask: bool) -> bool:
        if trial.delivered_s is None and self._is_delivered(trial, trial.units):
            trial.delivered_s = self._since_s()
        if trial.delivered_s is None or not may_ask:
            return False
        if self._shown(trial) == trial.before + trial.units:
            trial.shown_s = self._since_s()
        return trial.shown_s is not None

    # -- and back ------------------------------------------------------------------------------

    def _void(self, trial: Trial) -> bool:
        """Void its event; whether that could be done, since the others are to be voided too."""
        name, key = trial.meter.name, trial.key
        try:
            self.metering.adjust(self.customer, name, key, "selftest", by=self.by)
        except C2MeterError as exc:
            cure = f"flask c2meter adjust {self.customer} {name} {key}"
            trial.failure = f"not taken back ({exc}): {cure}"
            return False
        return True

    def _is_back(self, trial: Trial, may_ask: bool) -> bool:
        if not may_ask or not self._is_delivered(trial, 0):
            return False
        if self._shown(trial) == trial.before:
            trial.returned_s = self._since_s()
        return trial.returned_s is not None

    # -- looking -------------------------------------------------------------------------------

    def _wait(
        self, trials: Sequence[Trial], has_come: Callable[[Trial, bool], bool], what: str
    ) -> None:
        """Until it has come of all, failed for good, or taken too long."""
        self.metering.worker.wake()  # if it is ours that delivers
        ends_s = time.monotonic() + self.timeout_s
        pause_s, asks_s = LOOK_S, 0.0
        count = len(trials)
        waiting = list(trials)
        while waiting:
            may_ask = time.monotonic() >= asks_s
            waiting = [trial for trial in waiting if not self._has_ended(trial, has_come, may_ask)]
            self.tell(f"{count - len(waiting)} of {count} meters {what}")
            if may_ask:
                asks_s, pause_s = time.monotonic() + pause_s, min(MAX_PAUSE_S, 2 * pause_s)
            if time.monotonic() >= ends_s:
                break
            if waiting:
                self.pause(LOOK_S)
        for trial in waiting:
            trial.failure = trial.failure or self._why_not(trial, what)

    def _has_ended(
        self, trial: Trial, has_come: Callable[[Trial, bool], bool], may_ask: bool
    ) -> bool:
        """Whether nothing more is waited for; what cannot be asked now may be asked later."""
        try:
            return has_come(trial, may_ask)
        except _Dead as exc:
            trial.failure = trial.failure or str(exc)
            return True
        except GatewayError as exc:
            if not _is_final(exc):
                return False
            trial.failure = trial.failure or _words(exc)
            return True

    def _is_delivered(self, trial: Trial, units: int) -> bool:
        """Whether Stripe has taken the test's shipments, and they come to *units*.

        :raises _Dead: it has refused one for good.
        """
        shipments = self._shipments(trial.meter, trial.minute)
        for each in shipments:
            if each.state is ShipmentState.DEAD:
                raise _Dead(f"refused ({each.reason}): flask c2meter dead list")
        return sum(each.value for each in shipments) == units and all(
            each.state is ShipmentState.DELIVERED for each in shipments
        )

    def _shown(self, trial: Trial) -> int:
        return self.gateway.minute_total(trial.meter.name, self.customer, trial.minute) or 0

    def _why_not(self, trial: Trial, what: str) -> str:
        held = {hold.meter: hold.reason for hold in self.metering.store.holds()}
        late = f"not delivered after {self.timeout_s:g} s"
        for meter, whatever in ((ALL, "all"), (trial.meter.name, "it")):
            if meter in held:
                return f"{late}: {whatever} is held, {held[meter]}"
        if trial.delivered_s is None:
            return f"{late}: is a worker running?"
        return f"not {what} by Stripe after {self.timeout_s:g} s; it may take longer: --timeout"

    def _since_s(self) -> float:
        return time.monotonic() - self._began_s


def _minute(moment: datetime) -> datetime:
    return moment.replace(second=0, microsecond=0)


class _Dead(Exception):
    """A shipment was refused for good."""


def _is_final(exc: GatewayError) -> bool:
    if isinstance(exc, Refused):
        return exc.outcome.verdict is Verdict.HOLD_ALL
    return exc.reason == "no_meter"


def _words(exc: GatewayError) -> str:
    if exc.reason == "no_meter":
        return "not at Stripe: flask c2meter provision --apply makes it"
    return f"Stripe could not be asked: {exc.reason}"
