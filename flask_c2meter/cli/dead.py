"""What went wrong, put right by a person: ``dead list|show|replay|discard``, ``adjust``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .. import plain
from ..shipment import DeadReason
from ..store import Decision, adjustment_key
from .terminal import (
    BY,
    REASON,
    command,
    decision,
    metering,
    progress,
    quantity,
    table,
)

if TYPE_CHECKING:
    from ..store.dead import DeadLetter, Decided, Wanted

F = TypeVar("F", bound=Callable[..., Any])

#: Decisions that are committed together.
_BATCH = 200
_TIME = "%Y-%m-%d %H:%M:%S"


@click.group()
def dead() -> None:
    """Usage that was set aside: Stripe has refused it, or nobody can tell whether Stripe has it.

    It stays counted, and is not sent again, until somebody decides about it.
    """


def _filters(function: F) -> F:
    """The options that choose among dead letters."""
    for option in (
        click.option(
            "--cause",
            type=click.Choice([reason.value for reason in DeadReason]),
            help="Only these.",
        ),
        click.option("--meter", help="Only of this meter."),
        click.option("--customer", help="Only of this customer."),
    ):
        function = option(function)
    return function


def _wanted(customer: str | None, meter: str | None, cause: str | None) -> Wanted:
    from ..store.dead import Wanted

    return Wanted(customer, meter, None if cause is None else DeadReason(cause))


@command
@_filters
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1), help="At most N.")
@click.option("--json", "as_json", is_flag=True, help="All of them, one JSON object per line.")
def show_list(
    customer: str | None, meter: str | None, cause: str | None, limit: int, as_json: bool
) -> None:
    """What waits for a decision, oldest first.

    \b
    invalid           Stripe refused the request itself
    expired           older than the 35 days that Stripe takes
    late              the invoice of its period was final
    ambiguous         it may have arrived, and Stripe's numbers do not tell
    unknown_customer  Stripe has no such customer
    inactive_meter    the meter is deactivated
    rejected_async    Stripe accepted it, and refused it later
    corrupt           an event in it is not as it was written
    other             see the code that follows
    """
    letters = metering().store.dead.letters(_wanted(customer, meter, cause))
    if as_json:
        for letter in letters:
            click.echo(json.dumps(_plain(letter)))
        return
    shown = list(islice(letters, limit))
    if not shown:
        click.echo("nothing is dead")
        return
    table(
        ("identifier", "customer", "meter", "value", "happened (UTC)", "dead since", "reason"),
        (
            (
                letter.shipment.identifier,
                letter.shipment.customer,
                letter.shipment.meter,
                quantity(letter.shipment.meter, letter.shipment.value),
                f"{letter.shipment.timestamp:{_TIME}}",
                f"{letter.since:{_TIME}}",
                letter.shipment.reason,
            )
            for letter in shown
        ),
        left=3,
    )
    if next(letters, None) is not None:
        click.echo(f"the first {limit}; more with --limit, all with --json")


def _plain(letter: DeadLetter) -> dict[str, Any]:
    shipment = letter.shipment
    return {
        "identifier": shipment.identifier,
        "customer": shipment.customer,
        "meter": shipment.meter,
        "value": str(quantity(shipment.meter, shipment.value)),
        "happened_at": shipment.timestamp.isoformat(),
        "period_start": letter.period.isoformat(),
        "dead_since": letter.since.isoformat(),
        "attempts": shipment.attempts,
        "reason": shipment.reason,
    }


@command
@click.argument("identifier")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1), help="Operations.")
@click.option("--json", "as_json", is_flag=True, help="For a program.")
def show(identifier: str, limit: int, as_json: bool) -> None:
    """One dead letter, the operations of its minute, and what else was sent of it."""
    store = metering().store
    letter = store.dead.find(identifier)
    if letter is None:
        raise click.ClickException(f"{identifier}: there is no such dead shipment")
    others, operations = store.trails.minute(letter.shipment, limit)
    if as_json:
        events = [plain.event(each.event) | {"fault": each.fault} for each in operations]
        click.echo(json.dumps(_plain(letter) | {"operations": events}, indent=2))
        return
    for label, text in _plain(letter).items():
        click.echo(f"{label.replace('_', ' '):<15}{text}")
    click.echo("\nshipments of this minute")
    for each in others:
        value = quantity(each.meter, each.value)
        click.echo(
            f"  {each.identifier}  {value}  {each.state.value}  {each.reason or ''}".rstrip()
        )
    click.echo("operations of this minute")
    for traced in operations:
        event = traced.event
        click.echo(
            f"  {event.occurred_at:%H:%M:%S}  {event.value}  key {event.key}  "
            f"request {event.request_id or '-'}"
        )
        if traced.fault:
            click.secho(f"    {traced.fault}", fg="red")
    if len(operations) == limit:
        click.echo(f"  the first {limit}; more with --limit")


@command
@click.argument("identifiers", nargs=-1)
@_filters
@REASON
@BY
def replay(
    identifiers: tuple[str, ...],
    customer: str | None,
    meter: str | None,
    cause: str | None,
    reason: str,
    by: str,
) -> None:
    """Send again what is dead: the worker cuts new shipments, with new identifiers.

    Without IDENTIFIERS: all, or all that the options choose. Mend the cause first. What Stripe
    would take no more is refused, with what to do instead; then the exit code is 1.
    """
    chosen = _chosen(identifiers, _wanted(customer, meter, cause))
    _decide("replayed", chosen, metering().store.dead.replay, decision(by, reason))


@command
@click.argument("identifiers", nargs=-1)
@_filters
@click.option("--all", "everything", is_flag=True, help="Whatever is dead.")
@REASON
@BY
def discard(
    identifiers: tuple[str, ...],
    customer: str | None,
    meter: str | None,
    cause: str | None,
    everything: bool,
    reason: str,
    by: str,
) -> None:
    """Write dead usage off: it is never sent.

    It stays in the ledger and in the customer's total, so that the bill says what was used; Stripe
    will not charge it. Name IDENTIFIERS, or choose with the options.
    """
    if not (identifiers or customer or meter or cause or everything):
        raise click.UsageError("name IDENTIFIERS, choose with an option, or say --all")
    chosen = _chosen(identifiers, _wanted(customer, meter, cause))
    _decide("discarded", chosen, metering().store.dead.discard, decision(by, reason))


def _chosen(identifiers: tuple[str, ...], wanted: Wanted) -> Iterator[str]:
    if identifiers and (wanted.customer or wanted.meter or wanted.reason):
        raise click.UsageError("name IDENTIFIERS or choose with options, not both")
    if identifiers:
        return iter(identifiers)
    return (letter.shipment.identifier for letter in metering().store.dead.letters(wanted))


def _decide(
    done: str,
    identifiers: Iterator[str],
    decide: Callable[[list[str], Decision], list[Decided]],
    why: Decision,
) -> None:
    """Have it *done*, batch by batch; say what became of it and exit with 1 if some was refused."""
    show_progress = progress(done)
    counts = {"done": 0, "refused": 0, "ambiguous": 0}
    for batch in _batches(identifiers):
        for each in decide(batch, why):
            _tell(each, counts)
        show_progress(counts["done"])
    show_progress.end()
    if counts["ambiguous"] and done == "replayed":
        click.secho(
            f"{counts['ambiguous']} of them may be at Stripe already: "
            "look with `flask c2meter reconcile` a day after they were sent",
            err=True,
            fg="yellow",
        )
    click.echo(f"{counts['done']} {done}, {counts['refused']} refused")
    sys.exit(1 if counts["refused"] else 0)


def _tell(each: Decided, counts: dict[str, int]) -> None:
    if each.refusal is not None:
        counts["refused"] += 1
        click.secho(f"{each.identifier}: {each.refusal}", err=True, fg="red")
    else:
        counts["done"] += 1
        reason = "" if each.letter is None else each.letter.shipment.reason or ""
        counts["ambiguous"] += reason.startswith(DeadReason.AMBIGUOUS.value)


def _batches(identifiers: Iterable[str]) -> Iterator[list[str]]:
    remaining = iter(identifiers)
    while batch := list(islice(remaining, _BATCH)):
        yield batch


show_list.name = "list"  # a function of that name would hide the type
dead.add_command(show_list)
dead.add_command(show)
dead.add_command(replay)
dead.add_command(discard)


@command
@click.argument("customer")
@click.argument("meter")
@click.argument("key")
@REASON
@BY
def adjust(customer: str, meter: str, key: str, reason: str, by: str) -> None:
    """Void one wrong event of CUSTOMER's METER, the one with KEY.

    The ledger keeps it; its period is added up without it, and Stripe is told the difference, at
    the minute it happened. `flask c2meter events` and `explain` show keys. Voiding an event again
    changes nothing.
    """
    usage, why = metering(), decision(by, reason)
    known = usage.store.find(customer, meter, adjustment_key(key))
    if known is not None:
        click.echo(
            f"already voided on {known.recorded_at:{_TIME}} UTC: {known.properties['reason']}"
        )
        return
    voided = usage.adjust(customer, meter, key, reason, by=why.who)
    definition = usage.catalogue.meters[meter]
    period = next(each for each in usage.usage(customer, voided.occurred_at) if each.meter == meter)
    click.echo(
        f"voided {voided.value} {definition.unit} of {customer}, of "
        f"{voided.occurred_at:{_TIME}} UTC; its period now has {period.total}"
    )
    (fate,) = usage.store.dead.fates([voided], why.at_ms)
    if definition.billable and fate is not None:
        from ..store.dead import WHY

        text = f"if it was shipped, Stripe takes no correction: {WHY[fate]}"
        click.secho(text, err=True, fg="yellow")


COMMANDS = (dead, adjust)
