"""The storage job: once a day, how much each customer stores.

A run asks the host's ``storage_loader`` for measurements, a batch at a time, and records each batch
in one transaction: the events, and what became of each customer. One process at a time runs it,
whoever it is; killed, it is taken up where it was. A run is driven in steps of about a second, so
that whoever drives it can stop between them; it never sleeps longer and keeps nothing but a batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from . import logs
from .config import Config
from .errors import InvalidEvent
from .hooks import StorageLoader
from .measurements import METER, STORAGE, Finding, Judge, name_of
from .model import MAX_AGE, JobResult, StorageMeasurement, UsageEvent
from .owners import is_gone, new_owner
from .puller import LoaderFailed, Puller
from .schedule import Schedule
from .store import Entry, encode

if TYPE_CHECKING:
    from .store import Store
    from .store.jobs import LastRun
    from .store.leases import JobLease

logger: logs.Log = logs.logger(__name__)

#: A step takes about so long at most.
STEP_S = 1.0

_DAY = timedelta(days=1)


@dataclass(slots=True)
class Tally:
    """How far a run is."""

    #: Customers named since the loader was last asked from the beginning, and failed.
    named: int = 0
    failed: int = 0
    #: Recorded by this run, of which so many had to be rounded up.
    measured: int = 0
    rounded: int = 0
    #: What the run waits for, in words; empty while it works.
    waiting: str = ""


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be done.

    :param day: UTC.
    :param customers: only these; empty = all, which makes it the run of the day.
    :param allow_growth: believe a measurement however much it has grown.
    :param retry_failed: ask again for customers that failed, not only when the loader did.
    """

    day: date
    customers: frozenset[str] = frozenset()
    allow_growth: bool = False
    retry_failed: bool = False


class StorageJob:
    """The job, for one process.

    :param loader: the host's.
    :param context: makes what it runs in.
    :param judge: of the meter ``storage_gb``.
    :param channels: where the operator is alerted.
    :param on_recorded: called for each event, after the commit.
    :param on_finished: called at the end of each run.
    :param sleep: waits for so many seconds.
    """

    def __init__(
        self,
        store: Store,
        config: Config,
        loader: StorageLoader,
        context: Callable[[], AbstractContextManager[Any]],
        judge: Judge,
        channels: Sequence[str],
        *,
        on_recorded: Callable[[UsageEvent], None] = lambda event: None,
        on_finished: Callable[[JobResult], None] = lambda result: None,
        sleep: Callable[[float], None] = lambda seconds: time.sleep(seconds),
    ) -> None:
        self.store = store
        self.config = config
        self.loader = loader
        self.context = context
        self.judge = judge
        self.channels = channels
        self.on_recorded = on_recorded
        self.on_finished = on_finished
        self.sleep = sleep
        self._owner = new_owner()

    @property
    def today(self) -> date:
        """The UTC day."""
        return self.config.clock().astimezone(UTC).date()

    @property
    def lease(self) -> timedelta:
        """How long a run is believed in without a sign of life."""
        return timedelta(seconds=self.config.lease_s)

    def begin(self, order: Order) -> StorageRun | None:
        """A run; None while another process has one.

        :raises InvalidEvent: the day is to come, or so long ago that Stripe takes nothing.
        """
        today = self.today
        if not today - MAX_AGE < order.day <= today:
            oldest = today - MAX_AGE + _DAY
            raise InvalidEvent({"day": f"{order.day} is not within {oldest} and {today} (UTC)"})
        now = self.config.clock()
        lease = self.store.jobs.take(STORAGE, self._owner, now, self.lease, is_gone)
        return None if lease is None else StorageRun(self, order, lease)

    def running(self) -> str | None:
        """Which process has a run."""
        return self.store.jobs.holder(STORAGE, self.config.clock(), self.lease, is_gone)

    def last(self) -> LastRun | None:
        """The latest day's run that has ended."""
        return self.store.jobs.last(STORAGE)


class StorageRun:
    """One run; :meth:`step` until it :attr:`is_over`."""

    def __init__(self, job: StorageJob, order: Order, lease: JobLease) -> None:
        self._job = job
        self._order = order
        self._lease = lease
        self.tally: Tally = Tally()
        self.is_over: bool = False
        #: Of a run of the whole day that is over.
        self.result: JobResult | None = None
        #: Why the loader failed last; None if it did not.
        self.error: str | None = None
        self._begun_at = job.config.clock()
        self._wait_s = 0.0
        self._beat_every_s = job.config.lease_s / 3
        self._step_s = min(STEP_S, self._beat_every_s)
        self._beat_s = time.monotonic()
        self._work = self._passes()
        judge = job.judge
        self._judge = replace(judge, max_growth=Decimal(0)) if order.allow_growth else judge

    def step(self) -> None:
        """Go on for about a second: wait, look whether a batch is measured, or record it.

        :raises LeaseLost: another process has taken over.
        :raises StoreUnavailable: what was recorded before stays; begin another run.
        """
        if time.monotonic() - self._beat_s >= self._beat_every_s:
            self._beat()
        if self._wait_s > 0:
            nap_s = min(self._wait_s, self._step_s)
            self._wait_s -= nap_s
            self._job.sleep(nap_s)
            return
        try:
            self._wait_s = next(self._work)
        except StopIteration:
            self.is_over = True

    def leave(self) -> None:
        """Leave it to whoever comes next."""
        self._work.close()
        self._job.store.jobs.leave(self._lease)

    def _beat(self) -> None:
        self._job.store.jobs.extend(self._lease, self._until())
        self._beat_s = time.monotonic()

    def _until(self) -> datetime:
        return self._job.config.clock() + self._job.lease

    # -- all of it: generators of how many seconds to wait before going on ---------------------

    def _passes(self) -> Generator[float]:
        config, order = self._job.config, self._order
        for retries_left in range(config.storage_retries, -1, -1):
            self.tally = Tally(measured=self.tally.measured, rounded=self.tally.rounded)
            yield from self._pass()
            is_clean = self.error is None and not (order.retry_failed and self.tally.failed)
            if is_clean or not retries_left:
                break
            what = self.error or f"{self.tally.failed} customers failed"
            wait_s = config.storage_retry_delay_s
            self.tally.waiting = f"{what}; again in {wait_s:g} s"
            logger.warning("storage_measurement_repeats", why=what, wait_s=wait_s)
            yield wait_s
        self._finish()

    def _pass(self) -> Iterator[float]:
        """All that the loader has to say, once."""
        config = self._job.config
        self.error = None
        with Puller(
            self._job.loader, self._job.context, self._is_wanted, config.storage_batch
        ) as puller:
            is_last = False
            while not is_last:
                puller.ask()
                ends_s = time.monotonic() + config.storage_timeout_s
                while not puller.wait(min(self._step_s, max(0.0, ends_s - time.monotonic()))):
                    if time.monotonic() >= ends_s:
                        break
                    yield 0.0
                try:
                    measurements, is_last = puller.take()
                except LoaderFailed as exc:
                    measurements, is_last = exc.measured, True
                    self.error = str(exc)
                    logger.warning("storage_loader_gave_up", error=exc)
                if self._record(measurements) and not is_last:
                    yield config.storage_pause_s

    def _finish(self) -> None:
        job = self._job
        if self._order.customers:
            share = job.config.storage_max_failures
            job.store.jobs.finish_some(self._lease, self._order.day, share)
            return
        self.result = result = job.store.jobs.finish(
            self._lease,
            self._order.day,
            self._begun_at,
            job.config.clock(),
            error=self.error,
            max_failures=job.config.storage_max_failures,
            channels=job.channels,
        )
        log = logger.error if result.is_bad else logger.info
        log(
            "storage_measured",
            day=result.day,
            customers=result.total,
            failed=result.failed,
            rate=result.rate,
            unnamed=result.unnamed,
            error=result.error,
        )
        job.on_finished(result)

    # -- a batch -------------------------------------------------------------------------------

    def _is_wanted(self, customer: str) -> bool:
        """Whether *customer* is still to be measured; asked in the loader's thread."""
        order = self._order
        if order.customers and customer not in order.customers:
            return False
        return not self._job.store.jobs.is_done(STORAGE, order.day, customer)

    def _record(self, measurements: Sequence[StorageMeasurement]) -> bool:
        """Record what is new of *measurements*; return whether there was anything."""
        job, order = self._job, self._order
        named = [(name_of(each), each) for each in measurements]
        if order.customers:
            named = [(name, each) for name, each in named if name in order.customers]
        if not named:
            return False
        names = {name for name, _ in named}
        with job.store.jobs.batch(self._lease, order.day, self._until()) as batch:
            done, before = batch.done(names), batch.before(names, METER)
            now = job.config.clock()
            findings = self._judge.findings(named, done, before, order.day, now)
            good = [(each.event, each.customer) for each in findings.values() if each.event]
            is_new = batch.append([Entry(encode(event), customer) for event, customer in good])
            batch.put({name: each.failure for name, each in findings.items()})
        self._beat_s = time.monotonic()
        self._count(len(names), findings)
        for (event, _), new in zip(good, is_new, strict=True):
            if new:
                job.on_recorded(event)
        return bool(findings)

    def _count(self, named: int, findings: Mapping[str, Finding]) -> None:
        tally = self.tally
        failed = sum(each.failure is not None for each in findings.values())
        tally.named += named
        tally.failed += failed
        tally.measured += len(findings) - failed
        tally.rounded += sum(each.is_rounded for each in findings.values())


class StorageDuty:
    """Runs the job when its time has come: a duty of the clerk.

    A run that was missed is caught up the same UTC day; one that was killed is taken up by whoever
    notices first.
    """

    name = "storage"

    def __init__(self, job: StorageJob, schedule: Schedule) -> None:
        self._job = job
        self._schedule = schedule
        self._run: StorageRun | None = None
        #: The latest time for which a run is known to have been made.
        self._made: datetime | None = None

    def is_due(self) -> bool:
        """Whether a run goes on here, or is to be begun."""
        if self._run is not None:
            return True
        now = self._job.config.clock()
        due = self._schedule.latest(now)
        if due is None or due == self._made:
            return False
        last = self._job.last()
        if last is not None and last.day == due.date() and last.begun_at >= due:
            self._made = due
            return False
        return self._job.running() is None

    def work(self) -> None:
        """Go on for about a second."""
        run = self._run or self._job.begin(Order(self._job.today, retry_failed=True))
        self._run = None  # a step that raises ends it: another is begun, and goes on where it was
        if run is not None:
            run.step()
            self._run = None if run.is_over else run
