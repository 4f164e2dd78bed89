"""``backfill``: usage that was recorded elsewhere."""

from __future__ import annotations

import sys

import click

from ..backfill import FATES, Backfill
from ..errors import StoreUnavailable
from ..records import read
from .terminal import command, metering, progress, reading


@command
@click.argument("file")
@click.option(
    "--apply/--dry-run", "is_applied", default=False, help="Write; the default is a dry run."
)
@click.option(
    "--errors", "shown", default=100, show_default=True, type=click.IntRange(0), help="Show N."
)
def backfill(file: str, is_applied: bool, shown: int) -> None:
    """Take in usage that was recorded elsewhere, from FILE; - is standard input.

    \b
    JSON Lines, one object per line:
      {"customer": "cus_1", "meter": "verify_operations", "key": "old-1",
       "occurred_at": "2026-01-15T12:00:00Z", "value": 3,
       "properties": {"manifest_id": "urn:c2pa:1"}}
    or CSV with a header:
      customer,meter,key,occurred_at,value,manifest_id
      cus_1,verify_operations,old-1,2026-01-15T12:00:00Z,3,urn:c2pa:1

    customer, meter, key and occurred_at are required, value, request_id and properties are not; in
    CSV any other column is a property. A key counts once for ever, so running the same file again
    adds nothing: if it is interrupted, run it again.

    A dry run says what would happen. A bad line is named, and stops no other; then the exit code
    is 1. Usage that Stripe will not take any more, because it is older than 35 days or its invoice
    is final, is recorded, shown and totalled, and becomes dead `expired` or `late`: bill that by
    hand.
    """
    left, show_progress = shown, progress("lines")

    def complain(line: int, problem: str) -> None:
        nonlocal left
        if left > 0:
            show_progress.end()
            click.secho(f"{file}, line {line}: {problem}", err=True, fg="red")
        left -= 1

    run = Backfill(metering(), apply=is_applied, complain=complain)
    try:
        with reading(file) as text:
            run.run(read(text), show_progress)
    except StoreUnavailable:
        show_progress.end()
        click.secho(f"stopped after line {run.done}: run it again to go on", err=True, fg="red")
        raise
    show_progress.end()
    _summarise(run, is_applied, hidden=max(0, -left))
    sys.exit(1 if run.counts["errors"] else 0)


def _summarise(run: Backfill, is_applied: bool, hidden: int) -> None:
    if hidden:
        click.secho(f"and {hidden} more errors; show them with --errors", err=True, fg="red")
    click.echo(f"{run.lines} lines")
    added = "added" if is_applied else "would be added"
    for name, label in (
        ("new", added),
        ("known", "known already"),
        ("not billed", "not billed by the meter's filter"),
        ("errors", "wrong"),
    ):
        click.echo(f"{run.counts[name]:>9,} {label}")
    for fate, words in FATES.items():
        if count := run.counts[fate.value]:
            verb = "become" if is_applied else "would become"
            click.secho(f"{count:,} {words}: they {verb} dead `{fate.value}`", fg="yellow")
    if not is_applied:
        click.echo("a dry run: nothing was written; --apply writes")


COMMANDS = (backfill,)
