"""Holding the ledger against Stripe: ``reconcile``."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import click

from ..metering import Metering
from ..model import Meter, check_customer_id, check_text
from ..reconciler import Finding, Scope, Tally
from ..reconciliation import Kind
from .terminal import BY, command, metering, progress

#: What follows from a repair.
_FOLLOWS = {
    Kind.LOST: "repaired: the worker ships it anew",
    Kind.DOUBLED: "repaired: the worker takes it back",
}


@command
@click.option("--repair", is_flag=True, help="Repair what is certain.")
@click.option("--customer", help="Only this customer.")
@click.option(
    "--since",
    type=click.DateTime(("%Y-%m-%d", "%Y-%m-%dT%H:%M:%S")),
    help="From that day (UTC) on. Default: 35 days ago, as far back as Stripe takes corrections.",
)
@click.option("--idle", is_flag=True, help="Ask about customers without usage, too.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line, the last a sum.")
@BY
def reconcile(
    repair: bool, customer: str | None, since: datetime | None, idle: bool, as_json: bool, by: str
) -> None:
    """Compare what was recorded with what Stripe counts, down to the minute.

    \b
    in flight  on its way: not delivered yet, or not shown by Stripe yet
    lost       Stripe accepted it and does not count it
    doubled    Stripe counts it twice
    refused    Stripe refused it; `flask c2meter dead` decides
    late       it came when Stripe would bill it nowhere; `flask c2meter dead` decides
    ambiguous  nobody can tell whether Stripe has it; `flask c2meter dead` decides
    foreign    Stripe counts what was never sent from here

    Stripe's summaries lag: what it accepted within the last hour is only called lost if it shows
    something newer. With --repair what was lost is shipped anew by the worker, and what was doubled
    is taken back by a negative event; all else is left alone. Each repair is noted in the journal
    (table audit), and repairing again changes nothing.

    Exits with 1 while anything differs, but for usage that has been on its way for less than an
    hour.
    """
    if customer is not None:
        check_customer_id(customer)
    usage = metering()
    start = None if since is None else since.replace(tzinfo=UTC)
    if start is not None and start > usage.config.clock():
        raise click.BadParameter("is in the future", param_hint="--since")
    reconciler = usage.reconciler()
    scope = reconciler.scope(start, customer=customer, with_idle=idle)
    tally, show_progress = Tally(), progress("meters of customers compared")
    findings = reconciler.run(
        scope,
        repair_as=check_text("--by", by) if repair else None,
        tally=tally,
        progress=show_progress,
    )
    for finding in findings:
        show_progress.end()
        row = _row(finding, usage)
        click.echo(json.dumps(row) if as_json else _line(row))
    show_progress.end()
    if as_json:
        click.echo(json.dumps({"summary": _summary(scope, tally)}))
    else:
        _print_summary(scope, tally)
    sys.exit(1 if tally.serious else 0)


def _row(finding: Finding, usage: Metering) -> dict[str, Any]:
    found, repaired = finding
    meter = usage.catalogue.meters[found.minute.meter]
    return {
        "customer": found.minute.customer,
        "meter": meter.name,
        "minute": f"{found.minute.start:%Y-%m-%dT%H:%MZ}",
        "kind": found.kind.value,
        "recorded": _quantity(found.minute.recorded, meter),
        "stripe": _quantity(found.theirs, meter),
        "shipments": list(found.shipments),
        "is_fresh": found.is_fresh,
        "is_repaired": repaired,
        "note": _FOLLOWS[found.kind] if repaired else found.note,
    }


def _quantity(units: int | Decimal, meter: Meter) -> str:
    """In the meter's unit; a fraction of it, which is not ours, as Stripe has it."""
    return str(meter.to_value(units)) if isinstance(units, int) else f"{units} wire units"


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['customer']}  {row['meter']}  {row['minute']}  "
        f"{click.style(row['kind'], bold=True)}: {row['recorded']} recorded, "
        f"Stripe has {row['stripe']}; {row['note']}"
    )


def _summary(scope: Scope, tally: Tally) -> dict[str, Any]:
    return {
        "since": f"{scope.start:%Y-%m-%dT%H:%M:%SZ}",
        "compared": tally.lanes,
        "hours": tally.hours,
        "differing_hours": tally.differing_hours,
        "billing_accuracy": None if tally.accuracy is None else str(tally.accuracy),
        "differences": dict(tally.kinds),
        "repaired": tally.repaired,
    }


def _print_summary(scope: Scope, tally: Tally) -> None:
    since = f"since {scope.start:%Y-%m-%d} (UTC)"
    if tally.accuracy is None:
        click.echo(f"no usage {since}")
    else:
        click.echo(
            f"billing accuracy {tally.accuracy:.3%}: {tally.hours - tally.differing_hours:,} of "
            f"{tally.hours:,} hours of customers' meters agree {since}"
        )
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(tally.kinds.items()))
    if kinds:
        repaired = f"; {tally.repaired} repaired" if tally.repaired else ""
        click.secho(f"differences: {kinds}{repaired}", fg="red" if tally.serious else None)
    else:
        click.secho("Stripe counts what was recorded", fg="green")


COMMANDS = (reconcile,)
