"""Does it work, end to end: ``selftest``."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Sequence
from typing import Any

import click

from ..gateway import Gateway
from ..selftest import SelfTest, Trial
from ..trial_customer import customer_for
from .terminal import (
    command,
    metering,
    operator,
    or_dash,
    refuse_other_account,
    stripe,
    table,
)


def _pairs(context: click.Context, option: click.Parameter, texts: Sequence[str]) -> dict[str, str]:
    found = dict(text.partition("=")[::2] for text in texts)
    if not all("=" in text for text in texts):
        raise click.BadParameter("write NAME=VALUE", context, option)
    return found


@command
@click.option("--customer", metavar="CUS_ID", help="A customer without usage; default: made once.")
@click.option(
    "--timeout",
    "timeout_s",
    default=300.0,
    show_default=True,
    type=click.FloatRange(1, 86_400),
    help="Seconds to wait for Stripe, there and back again.",
)
@click.option(
    "--property",
    "given",
    multiple=True,
    metavar="NAME=VALUE",
    callback=_pairs,
    help="Of the events, where a made-up one will not do; more than once.",
)
@click.option("--live", is_flag=True, help="In live mode, too.")
@click.option("--json", "as_json", is_flag=True, help="For a program.")
def selftest(
    customer: str | None, timeout_s: float, given: dict[str, str], live: bool, as_json: bool
) -> None:
    """Does it work? One event of each billable meter goes to Stripe and is taken back.

    For each meter an event is recorded, delivered by the running workers (without any, by one for
    the time of the test), seen in Stripe's summary of its minute, voided, and seen to be gone.
    Stripe adds up after it has answered, in its own time: seconds to minutes; all meters wait at
    once.

    The usage is that of a customer who has none: a customer named "flask_c2meter selftest", which
    is made at Stripe once, or the one of --customer. One with usage of its own is refused, in live
    mode also one with a subscription. The events stay in the ledger, voided, with keys that begin
    with selftest:, and the journal names who has tested.

    Exit codes: 0 all meters pass; 1 one fails, or Stripe refuses or cannot be reached; 2 bad
    arguments.
    """
    gateway = stripe()
    if gateway.livemode and not live:
        raise click.ClickException(
            f"LIVE MODE: {gateway.account}; add --live to send test events there, and take them "
            "back"
        )
    refuse_other_account(gateway)
    whose = customer_for(metering(), gateway, customer)
    test = SelfTest(metering(), gateway, whose, operator(), given, timeout_s, _tell)
    if not as_json:
        click.secho(f"Stripe: {gateway.account}, customer {whose}\n", bold=True)
    # Whoever ends us: what was recorded is taken back first.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        trials = test.run()
    finally:
        signal.signal(signal.SIGTERM, before)
    _tell("")
    if as_json:
        click.echo(json.dumps(_plain(test, gateway, trials), indent=2))
    else:
        _print(trials)
    sys.exit(0 if all(trial.passed for trial in trials) else 1)


def _tell(words: str) -> None:
    """How far it is, for a person only."""
    if sys.stderr.isatty():
        click.echo(f"\r\x1b[K{words}", err=True, nl=False)


def _print(trials: Sequence[Trial]) -> None:
    table(
        ("meter", "value", "delivered", "shown", "taken back", "result"),
        (
            (
                trial.meter.name,
                f"{trial.meter.to_value(trial.units)} {trial.meter.unit}",
                *map(_seconds, (trial.delivered_s, trial.shown_s, trial.returned_s)),
                "passed" if trial.passed else "FAILED",
            )
            for trial in trials
        ),
    )
    failed = [trial for trial in trials if not trial.passed]
    for trial in failed:
        click.secho(f"! {trial.meter.name}: {trial.failure}", fg="red")
    passed = f"{len(trials) - len(failed)} of {len(trials)} meters pass"
    click.secho(f"\n{passed}." if trials else "Nothing is billable.", bold=True)


def _seconds(moment_s: float | None) -> object:
    return or_dash(None if moment_s is None else f"{moment_s:.1f} s")


def _plain(test: SelfTest, gateway: Gateway, trials: Sequence[Trial]) -> dict[str, Any]:
    return {
        "version": 1,
        "account": gateway.account,
        "customer": test.customer,
        "run": test.run_id,
        "passed": all(trial.passed for trial in trials),
        "meters": [
            {
                "meter": trial.meter.name,
                "value": str(trial.meter.to_value(trial.units)),
                "key": trial.key,
                "delivered_s": _rounded(trial.delivered_s),
                "shown_s": _rounded(trial.shown_s),
                "taken_back_s": _rounded(trial.returned_s),
                "passed": trial.passed,
                "failure": trial.failure or None,
            }
            for trial in trials
        ],
    }


def _rounded(moment_s: float | None) -> float | None:
    return None if moment_s is None else round(moment_s, 3)


COMMANDS = (selftest,)
