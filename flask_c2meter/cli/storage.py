"""Measuring how much customers store: ``measure-storage``."""

from __future__ import annotations

import sys
import time
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING

import click

from ..jobs import Order, StorageJob, StorageRun, Tally
from ..measurements import METER, STORAGE, event_key
from ..metering import Metering
from ..model import JobResult
from .terminal import command, metering, table

if TYPE_CHECKING:
    from ..store.jobs import LastRun

#: Failures that are listed; the rest is a number.
LISTED = 20
#: Where nobody looks on, a line says how far it is after so many customers.
LINE_EVERY = 1_000
_BAR = 24


@command
@click.option(
    "--day",
    type=click.DateTime(("%Y-%m-%d",)),
    help="Count it for this UTC day instead of today; at most 34 days back.",
)
@click.option("--customer", "customers", multiple=True, help="Only this one; may be repeated.")
@click.option(
    "--allow-growth",
    is_flag=True,
    help="Believe what has grown more than C2METER_STORAGE_MAX_GROWTH.",
)
@click.option(
    "--retry", is_flag=True, help="Ask again for customers that fail, as the worker does."
)
def measure_storage(
    day: datetime | None, customers: tuple[str, ...], allow_growth: bool, retry: bool
) -> None:
    """Measure how much each customer stores, once per UTC day.

    Asks the app's storage_loader and records one storage_gb event per customer and day. Customers
    that have been measured on the day are left alone: run it again, and only what failed or is
    missing is done. A measurement that failed or cannot be believed is a failure, never 0 GB.

    The worker does the same by itself every night (C2METER_STORAGE_SCHEDULE). If another process
    is measuring, this waits for it.

    \b
    Exit codes: 0 measured; 1 too many failed (C2METER_STORAGE_MAX_FAILURES, more than 10 %), the
    loader failed after all retries, or a --customer failed or was not named; 2 bad arguments.

    \b
      flask c2meter measure-storage
      flask c2meter measure-storage --customer cus_123 --allow-growth
    """
    usage = metering()
    job = usage.storage_job
    order = Order(day.date() if day else job.today, frozenset(customers), allow_growth, retry)
    begun = _begin(job, order)
    if not isinstance(begun, StorageRun):
        _finish_day(job, begun, Tally())
        return
    _drive(begun, _Progress(job.store.jobs.count(STORAGE, order.day - timedelta(days=1))))
    if begun.result is None:
        _finish_some(usage, begun, order)
    else:
        _finish_day(job, begun.result, begun.tally)


def _begin(job: StorageJob, order: Order) -> StorageRun | LastRun:
    """A run of ours; or that of another process which ended while we waited for it."""
    came_at, told = job.config.clock(), ""
    while (run := job.begin(order)) is None:
        owner = job.running() or "another process"
        if owner != told:
            told = owner
            click.echo(f"{owner} is measuring: waiting for it (CTRL+C leaves it to it)", err=True)
        job.sleep(1.0)
    last = job.last()
    if told and not order.customers and last and last.day == order.day and last.ended_at > came_at:
        run.leave()
        return last
    return run


def _drive(run: StorageRun, progress: _Progress) -> None:
    try:
        while not run.is_over:
            run.step()
            progress.show(run)
    except KeyboardInterrupt:
        run.leave()
        raise
    finally:
        progress.end()


def _finish_day(job: StorageJob, result: JobResult | LastRun, tally: Tally) -> None:
    """Print what has become of the day, and exit."""
    before = result.total - result.failed - tally.measured
    table(
        ("day (UTC)", "customers", "measured now", "before", "rounded up", "failed", "rate"),
        [
            (
                result.day,
                result.total,
                tally.measured,
                before,
                tally.rounded,
                result.failed,
                result.rate,
            )
        ],
    )
    if result.unnamed:
        click.echo(f"{result.unnamed} customers of the day before were not named")
    _list_failures(job, result.day, result.failed)
    if result.error:
        click.secho(f"ended early: {result.error}", fg="red", err=True)
    if result.is_bad:
        click.secho("too much failed; run it again: only that is done", fg="red", err=True)
    sys.exit(1 if result.is_bad else 0)


def _list_failures(job: StorageJob, day: date, number: int) -> None:
    failures = job.store.jobs.failures(STORAGE, day, LISTED)
    if failures:
        table(("failed", "why"), failures, left=2)
    if number > len(failures):
        click.echo(f"... and {number - len(failures)} more")


def _finish_some(usage: Metering, run: StorageRun, order: Order) -> None:
    """Print what has become of a few customers, and exit."""
    unmeasured = 0
    for customer in sorted(order.customers):
        event = usage.store.find(customer, METER, event_key(STORAGE, order.day))
        if event is not None:
            click.echo(f"{customer}: {event.value} GB")
            continue
        unmeasured += 1
        why = usage.store.jobs.failure(STORAGE, order.day, customer)
        why = why or run.error or "not named by the storage_loader"
        click.secho(f"{customer}: {why}", fg="red")
    sys.exit(1 if unmeasured else 0)


class _Progress:
    """A bar for a person, a line now and then for a log.

    :param expected: customers, as there were the day before; 0 = nobody knows.
    """

    def __init__(self, expected: int) -> None:
        self._expected = expected
        self._is_watched = sys.stderr.isatty()
        self._shown = ""
        self._told = 0
        self._began_s = time.monotonic()

    def show(self, run: StorageRun) -> None:
        tally = run.tally
        text = tally.waiting or f"{tally.named:,} customers, {tally.failed:,} failed"
        if text == self._shown:
            return
        if self._is_watched:
            click.echo(f"\r\x1b[2K{self._bar(tally.named)}{text}", err=True, nl=False)
        elif tally.waiting or tally.named - self._told >= LINE_EVERY:
            self._told = tally.named
            click.echo(f"{text} ({time.monotonic() - self._began_s:.0f} s)", err=True)
        self._shown = text

    def end(self) -> None:
        if self._is_watched and self._shown:
            click.echo("\r\x1b[2K", err=True, nl=False)

    def _bar(self, done: int) -> str:
        if not self._expected:
            return ""
        filled = min(_BAR, _BAR * done // self._expected)
        return f"[{'#' * filled}{'-' * (_BAR - filled)}] of about {self._expected:,}: "


COMMANDS = (measure_storage,)
