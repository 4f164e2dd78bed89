"""Setting Stripe up from the catalogue: ``provision``."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from itertools import zip_longest

import click

from .. import plain
from ..gateway import Gateway
from ..provisioner import Provisioner
from ..provisioning import Action, Plan, Step
from .terminal import command, metering, stripe

#: Exit code of a plan with something to do, as of ``terraform plan -detailed-exitcode``.
CHANGES = 2

_SIGNS = {
    Action.CREATE: ("+", "green"),
    Action.KEEP: (" ", None),
    Action.RENAME: ("~", "yellow"),
    Action.REACTIVATE: ("~", "yellow"),
    Action.DEACTIVATE: ("-", "red"),
    Action.CANNOT_CHANGE: ("!", "red"),
}
_WORDS = {
    Action.CREATE: "to create",
    Action.RENAME: "to rename",
    Action.REACTIVATE: "to reactivate",
    Action.DEACTIVATE: "to deactivate",
    Action.CANNOT_CHANGE: "that cannot be changed",
    Action.KEEP: "to keep",
}
_DONE = {
    Action.CREATE: "created",
    Action.RENAME: "renamed",
    Action.REACTIVATE: "reactivated",
    Action.DEACTIVATE: "deactivated",
}


@command
@click.option("--apply", "is_applying", is_flag=True, help="Carry the plan out.")
@click.option("--yes", is_flag=True, help="With --apply in live mode: do not ask.")
@click.option("--json", "as_json", is_flag=True, help="The plan, or what was done, for a program.")
def provision(is_applying: bool, yes: bool, as_json: bool) -> None:
    """Set Stripe up from the catalogue: meters, products and prices.

    Prints a plan and changes nothing: what there is to create (+), to rename or reactivate (~), to
    deactivate (-) and to keep, and what Stripe cannot change (!) with its cure. With --apply the
    plan is carried out; after a failure of any kind, do it again. While something cannot be
    changed, nothing is.

    Every billable meter becomes a Stripe meter of formula sum with a product; on each plan its
    price is one with the included quantity as free first tier. Prices never change at Stripe: one
    that differs is replaced, and subscriptions keep theirs until they are moved. Objects that
    provision did not make are never changed.

    Exit codes: 0 nothing to do, or all done; 2 a plan has changes; 1 something cannot be changed,
    or Stripe refuses or cannot be reached.
    """
    gateway = stripe()
    provisioner = Provisioner(gateway, metering().catalogue)
    plan = provisioner.plan()
    if is_applying and plan.changes and not plan.obstacles:
        if not as_json:
            _print_plan(plan, gateway)
        _confirm(gateway, yes)
        plan = _apply(provisioner, plan, is_quiet=as_json)
        if not as_json:
            click.secho("Done: Stripe bills by the catalogue.", bold=True)
        code = 0
    else:
        if not as_json:
            _print_plan(plan, gateway)
        code = 1 if plan.obstacles else CHANGES if plan.changes else 0
    if as_json:
        document = plain.provisioning(plan, gateway.account, is_applied=is_applying and not code)
        click.echo(json.dumps(document, indent=2))
    sys.exit(code)


def _confirm(gateway: Gateway, yes: bool) -> None:
    if not gateway.livemode:
        return
    click.secho(
        f"LIVE MODE: real customers of {gateway.account} pay these prices.",
        fg="red",
        bold=True,
        err=True,
    )
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.ClickException("nobody to ask: add --yes to apply in live mode")
    click.confirm("Carry out this plan?", abort=True, err=True)


def _apply(provisioner: Provisioner, plan: Plan, *, is_quiet: bool) -> Plan:
    """The steps that were taken, each with the id of its object, and what was kept."""
    taken: list[Step] = []

    def tell(step: Step, id: str) -> None:
        taken.append(replace(step, id=id))
        if not is_quiet:
            _, color = _SIGNS[step.action]
            click.secho(f"{_DONE[step.action]:<12}{step.kind:<8} {step.name} ({id})", fg=color)

    last = provisioner.apply(plan, tell)
    kept = [step for step in plan.steps if step.action is Action.KEEP]
    return replace(last, steps=[*taken, *kept])


def _print_plan(plan: Plan, gateway: Gateway) -> None:
    click.secho(f"Stripe: {gateway.account}\n", bold=True, fg="red" if gateway.livemode else None)
    width = max((len(step.name) for step in plan.steps), default=0)
    for step, following in zip_longest(plan.steps, plan.steps[1:]):
        sign, color = _SIGNS[step.action]
        action = step.action.replace("_", " ")
        line = f"{sign} {action:<14}{step.kind:<8} {step.name:<{width}}  {step.detail}"
        click.secho(line.rstrip(), fg=color)
        if step.note and (following is None or following.note != step.note):
            click.echo(f"{'':4}{step.note}")
    for note in plan.notes:
        click.echo(f"  {note}")
    counts = ", ".join(
        f"{plan.counts[action]} {words}" for action, words in _WORDS.items() if plan.counts[action]
    )
    click.secho(f"\nPlan: {counts or 'nothing is billable'}.", bold=True)
    if plan.obstacles:
        click.echo("Nothing is changed while something cannot be.")
    elif not plan.changes:
        click.echo("Nothing to do: Stripe bills by the catalogue.")


COMMANDS = (provision,)
