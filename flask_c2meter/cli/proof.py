"""Checking, and giving away what can be checked: ``verify``, ``export``."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from io import TextIOWrapper
from pathlib import Path
from typing import IO, Any, TextIO

import click

from .. import plain
from ..errors import C2MeterError
from ..exports import Check, Format, Writer
from ..model import Charge, Meter, Usage, check_customer_id, from_ms
from .terminal import PERIOD, Progress, command, decision, metering, operator, progress, reading

#: Problems of a file that are shown one by one.
_SHOWN = 100
#: Rows between two reports of progress.
_REPORTED = 10_000
#: How the journal knows an export.
_EXPORT = "export {customer} {rows} rows {head}"


@command
@click.option("--file", "path", metavar="FILE", help="Check this export instead; - is stdin.")
@click.option(
    "--detached", is_flag=True, help="With --file: do not ask this ledger whether it made it."
)
def verify(path: str | None, detached: bool) -> None:
    """Recompute everything from the raw events; print each difference and exit 1.

    Every event's checksum, every minute, total and day, what was seen, and what was shipped. One
    customer's meter at a time: memory stays flat whatever the number of events.

    With --file: check the hash chain of an export. Each row that was changed, removed or moved is
    named with its line, and so is an end that is missing; then the ledger is asked whether it has
    made that file, because whoever rewrites all of it can make a chain too.
    """
    if path is not None:
        _verify_file(path, detached)
        return
    if detached:
        raise click.UsageError("--detached goes with --file")
    differences, show_progress = 0, progress("events read")
    for line in metering().store.verify(show_progress):
        differences += 1
        show_progress.end()
        click.secho(line, fg="red")
    show_progress.end()
    if differences:
        click.echo(f"{differences} differences")
        sys.exit(1)
    click.echo("every bucket, total and shipment agrees with the events")


def _verify_file(path: str, detached: bool) -> None:
    check, count, show_progress = Check(), 0, progress("rows read")
    with reading(path) as file:
        for problem in check.problems(file, show_progress):
            count += 1
            if count <= _SHOWN:
                show_progress.end()
                click.secho(f"{path}: {problem}", fg="red")
    show_progress.end()
    if count:
        click.echo(f"{count} problems" + (f", the first {_SHOWN} shown" * (count > _SHOWN)))
        sys.exit(1)
    about = check.about
    click.echo(f"{path}: {check.rows} rows of {about.get('customer')}, as they were written")
    click.echo(f"sha256 {check.head}")
    if not detached:
        _ask_ledger(str(about.get("customer")), check)


def _ask_ledger(customer: str, check: Check) -> None:
    made = metering().store.journal.find(
        _EXPORT.format(customer=customer, rows=check.rows, head=check.head)
    )
    if made is None:
        click.secho(
            "this ledger has not made that file: it was made elsewhere (then check it there, or "
            "with --detached), or rewritten from one end to the other",
            fg="red",
        )
        sys.exit(1)
    click.echo(f"made by this ledger on {from_ms(made.at_ms):%Y-%m-%d %H:%M:%S} UTC ({made.who})")


# -- export ----------------------------------------------------------------------------------------


@command
@click.argument("customer")
@PERIOD
@click.option(
    "--format",
    "format",
    type=click.Choice(["csv", "jsonl"]),
    default="csv",
    show_default=True,
    help="For spreadsheets, or one JSON object per line.",
)
@click.option("--output", metavar="FILE", help="Write here instead of to the terminal.")
def export(customer: str, period: datetime | None, format: Format, output: str | None) -> None:
    """Write every operation of CUSTOMER in one billing period, so that the bill can be audited.

    Each meter's operations are followed by the total that is billed. A hash chain runs through the
    rows: `flask c2meter verify --file FILE` tells whether any was changed, removed or moved since,
    and whether this ledger wrote it. CUSTOMER's e-mail address and plan are not in it.

    An operation that is not as it was recorded is named, and the exit code is 1.
    """
    check_customer_id(customer)
    moment = period or metering().config.clock()
    show_progress = progress("operations written")
    with _target(output) as file:
        faults, rows, head = _write(file, customer, moment, format, show_progress)
    show_progress.end()
    click.echo(f"{rows} rows, sha256 {head}", err=True)
    if faults:
        click.secho(f"{faults} operations are not as they were recorded", err=True, fg="red")
        sys.exit(1)


def _write(
    file: TextIO, customer: str, moment: datetime, format: Format, show_progress: Progress
) -> tuple[int, int, str]:
    usage = metering()
    about = {
        "version": 1,
        "customer": customer,
        "exported_at": usage.config.clock().isoformat(),
    }
    writer, faults = Writer(file, format, about), 0
    charges = {(each.meter, each.period): each for each in usage.bill(customer, moment)}
    for used in usage.usage(customer, moment):
        charge = charges.get((used.meter, used.period))
        faults += _write_meter(writer, customer, used, charge, show_progress)
    rows, head = writer.sealed()
    # Before the last row is written: a file that is whole is always known here.
    what = _EXPORT.format(customer=customer, rows=rows, head=head)
    usage.store.journal.add(decision(operator(), "export"), what)
    writer.end()
    return faults, rows, head


def _write_meter(
    writer: Writer, customer: str, used: Usage, charge: Charge | None, show_progress: Progress
) -> int:
    """The operations of one meter and their total; the number of those that are not right."""
    meter, faults, added = metering().catalogue.meters[used.meter], 0, 0

    def complain(what: str) -> None:
        show_progress.end()
        click.secho(f"{customer} {meter.name} {what}", err=True, fg="red")

    with metering().store.trails.open(customer, meter.name, used.period) as trail:
        for traced in trail.operations():
            if traced.fault is not None:
                faults += 1
                complain(f"{traced.event.key}: {traced.fault}")
            writer.operation(meter, traced.event, traced.increment, traced.fault)
            added += traced.increment
            if writer.rows % _REPORTED == 0:
                show_progress(writer.rows)
        total = trail.total()
    if added != total:
        faults += 1
        complain(f"total: is {meter.to_value(total)}, events say {meter.to_value(added)}")
    writer.total(meter, meter.to_value(total), _billed(meter, used, charge))
    return faults


def _billed(meter: Meter, used: Usage, charge: Charge | None) -> dict[str, Any]:
    """What is billed of a meter's total."""
    told = plain.usage(used)
    about = {"unit": meter.unit, "period": told["period"], "included": told["included"]}
    if charge is None:
        return about
    line = plain.charge(charge)
    return about | {
        "overage": line["units"],
        "amount": line["amount"],
        "currency": line["currency"],
    }


@contextmanager
def _target(output: str | None) -> Iterator[TextIO]:
    """Where to write: standard output, or a file that appears when it is whole.

    What is there and is no file, such as a device or a named pipe, is written to, never replaced.
    """
    if output is None:
        text = TextIOWrapper(sys.stdout.buffer, encoding="utf-8", newline="")
        try:
            yield text
            text.flush()
        finally:
            with suppress(BrokenPipeError):  # the reader has gone: the first error says so
                text.detach()
        return
    path = Path(os.path.realpath(output))  # a link stays one
    part = path.with_name(f"{path.name}.part")
    is_replaced = path.is_file() or not os.path.lexists(output)
    target = part if is_replaced else output
    try:
        with open(target, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            yield file
            if is_replaced:
                _flush_to_disk(file)
        if is_replaced:
            part.replace(path)
    except C2MeterError:
        raise
    except OSError as exc:
        raise click.ClickException(f"{output}: {exc.strerror or exc}") from exc
    finally:
        if is_replaced:
            with suppress(OSError):
                part.unlink()


def _flush_to_disk(file: IO[str]) -> None:
    file.flush()
    os.fsync(file.fileno())


COMMANDS = (verify, export)
