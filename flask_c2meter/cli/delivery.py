"""What happens to usage: ``status``, ``worker``, ``emulator``, ``db upgrade``."""

from __future__ import annotations

import json
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import ROUND_FLOOR, Decimal
from typing import Any

import click

from ..canary import is_delivered
from ..catalogue import CANARY
from ..metering import Metering
from ..shipment import Shipment
from ..signals import usage_delivered
from ..status import STATES, held
from ..worker import Worker
from .terminal import command, metering, progress, refuse_other_account, table

#: ``worker --once`` also waits for retries due within this time.
ONCE_PATIENCE_S = 15.0


@command
@click.option("--json", "as_json", is_flag=True, help="Everything, for a program.")
def status(as_json: bool) -> None:
    """Where all usage is, and whether anything needs attention (exit 1)."""
    report = metering().status()
    if as_json:
        click.echo(json.dumps(report, indent=2))
    else:
        _print_status(report)
    sys.exit(0 if report["healthy"] else 1)


def _print_status(report: dict[str, Any]) -> None:
    table(
        ("meter", *STATES),
        (
            (name, *(_quantity(name, row, state) for state in STATES))
            for name, row in report["meters"].items()
        ),
    )
    alerts = report["alerts"]
    workers = ", ".join(str(worker["pid"]) for worker in report["workers"]) or "none running"
    dropped = ", ".join(f"{meter} {count}" for meter, count in sorted(report["dropped"].items()))
    found = report["subscriptions"]
    click.echo()
    for label, text in (
        ("delivery", report["delivery"]),
        ("account", report["account"] or "nothing delivered yet"),
        ("workers", workers),
        ("breaker", report["breaker"]),
        ("durability", report["durability"]),
        ("spilled", report["spill"]["pending"]),
        ("dropped", dropped or "nothing"),
        ("oldest", _seconds(report["oldest_unshipped_age_s"])),
        ("customers", ", ".join(f"{row['count']} {what}" for what, row in found.items()) or "-"),
        ("storage", _storage(report["storage"])),
        ("canary", _legs(report["canary"])),
        ("alerts", f"{alerts['waiting']} waiting, {alerts['dead']} never announced"),
    ):
        click.echo(f"{label:<11}{text}")
    _print_targets(report["targets"])
    for note in report["notes"]:
        click.echo(f"- {note}")
    for problem in report["problems"]:
        click.secho(f"! {problem}", fg="red")


def _quantity(name: str, row: dict[str, Any], state: str) -> str:
    """That of a meter for analytics is only recorded: it is no backlog."""
    is_canary = name == CANARY.name and is_delivered(metering().config)
    is_kept = state == "unshipped" and not row["billable"] and not is_canary
    return "not sent" if is_kept else str(row[state])


def _storage(last: dict[str, Any] | None) -> str:
    if last is None:
        return "never measured by the job"
    return f"{last['customers']} customers on {last['day']}, {last['failed']} failed"


def _print_targets(targets: dict[str, Any]) -> None:
    latency, delay = targets["event_latency_s"], targets["alert_timeliness_s"]
    accuracy, at = targets["billing_accuracy"], targets["billing_accuracy_at"]
    click.echo()
    click.secho(f"targets, over the last {targets['window_s'] // 3600} hours", bold=True)
    for name, label, figures, target in (
        ("event_latency", "latency", _durations(latency, "p99"), "p99 below 5 s"),
        ("success_rate", "success", _percent(targets["success_rate"]), "above 99.9 %"),
        (
            "billing_accuracy",
            "accuracy",
            "never reconciled" if accuracy is None else f"{_percent(accuracy)}, {at}",
            "100 %",
        ),
        ("alert_timeliness", "alerts", _durations(delay, "max"), "all within 15 minutes"),
    ):
        is_met = targets["met"][name]
        verdict = {True: "met", False: "MISSED", None: "-"}[is_met]
        click.secho(
            f"{label:<11}{figures} (target: {target}): {verdict}",
            fg="red" if is_met is False else None,
        )


def _legs(canary: dict[str, Any]) -> str:
    return (
        ", ".join(
            f"{leg} {_seconds(found['age_s'])} ago"
            if found["age_s"] is not None
            else f"never {leg}"
            for leg, found in canary.items()
        )
        or "off"
    )


def _durations(value: dict[str, Any], worst: str) -> str:
    if value["share_within_target"] is None:
        return "nothing yet"
    within = f"{_percent(value['share_within_target'])} in time"
    if value["p50"] is None:
        return within
    return f"p50 {value['p50']} s, {worst} {value[worst]} s, {within}"


def _percent(share: str | None) -> str:
    """Rounded down, so that 100 % means all."""
    if share is None:
        return "nothing yet"
    return f"{(Decimal(share) * 100).quantize(Decimal('0.001'), ROUND_FLOOR)} %"


def _seconds(seconds: object) -> str:
    return "-" if seconds is None else f"{seconds} s"


@command
@click.option("--once", is_flag=True, help="Work until nothing is due, then exit.")
@click.option("--adopt", is_flag=True, help="Deliver to this Stripe account from now on.")
def worker(once: bool, adopt: bool) -> None:
    """Deliver to Stripe and announce alerts until SIGTERM; exits within 10 seconds of it.

    Without a Stripe key only alerts are announced.
    """
    usage = metering()
    usage.store.check()
    _check_account(usage, adopt)
    with _stopped_by_signals(usage.worker):
        if not once:
            where = usage.gateway.account if usage.gateway else "nowhere (no Stripe key)"
            click.echo(f"delivering to {where}; SIGTERM stops")
            usage.worker.run()
            return
        before = usage.store.counts()
        with _counted() as sent:
            usage.worker.run_once(ONCE_PATIENCE_S, progress("shipments settled"))
    told = False
    for name, count in usage.store.counts().items():
        if (meter := usage.catalogue.meters.get(name)) is None or not meter.billable:
            continue
        delivered = count.delivered - before[name].delivered
        waiting = count.unshipped + count.in_flight
        if delivered or waiting or count.dead or sent[name]:
            net, rest, dead = (meter.to_value(n) for n in (delivered, waiting, count.dead))
            is_net = sent[name] and not delivered
            note = f" ({sent[name]} shipments that cancel each other out)" if is_net else ""
            click.echo(f"{name}: {net} delivered{note}, {rest} waiting, {dead} dead")
            told = True
    if not told:
        click.echo("nothing to deliver")
    for hold in usage.store.holds():
        click.secho(f"! {held(hold.meter, hold.reason)}; the next run tries again", fg="red")
    if waiting := usage.spill.pending():
        raise click.ClickException(f"{waiting} events still wait in the spill file")


@contextmanager
def _counted() -> Iterator[Counter[str]]:
    """Meter -> how many of its shipments are delivered meanwhile."""
    sent: Counter[str] = Counter()

    def note(_: object, shipment: Shipment) -> None:
        sent[shipment.meter] += 1

    with usage_delivered.connected_to(note):
        yield sent


def _check_account(usage: Metering, adopt: bool) -> None:
    if usage.gateway is None:
        click.echo(
            "no Stripe key: nothing is delivered; set C2METER_STRIPE_SECRET_KEY "
            "(or STRIPE_SECRET_KEY) to deliver",
            err=True,
        )
        return
    account = usage.gateway.account
    if adopt:
        usage.store.note("account", account)
        click.echo(f"this ledger now delivers to {account}")
    refuse_other_account(usage.gateway)


@contextmanager
def _stopped_by_signals(worker: Worker) -> Iterator[None]:
    """SIGTERM and SIGINT stop *worker*; afterwards they do what they did before."""
    before = {
        number: signal.signal(number, lambda *_: worker.stop())
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


#: To be pasted, each with its comment.
_WAYS_THERE = """\
# in the shell of an app that calls app.config.from_prefixed_env():
export FLASK_C2METER_STRIPE_BASE_URL={url} FLASK_C2METER_STRIPE_SECRET_KEY=sk_test_any
# or in the app, before its C2Meter:
app.config.update(C2METER_STRIPE_BASE_URL="{url}", C2METER_STRIPE_SECRET_KEY="sk_test_any")"""


@command
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=12111, show_default=True, type=click.IntRange(0, 65535))
def emulator(host: str, port: int) -> None:
    """Run the Stripe emulator; its page lists what it has received."""
    from ..emulator import StripeEmulator

    try:
        stripe = StripeEmulator(host=host, port=port).start()
    except OSError as exc:
        raise click.ClickException(f"cannot listen on {host}:{port}: {exc.strerror}") from exc
    click.echo(f"Stripe emulator on {stripe.url} (open it in a browser; CTRL+C stops)")
    click.echo(_WAYS_THERE.format(url=stripe.url))
    stopped = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, stopped)
    signal.sigwait(stopped)
    stripe.stop()


@click.group()
def db() -> None:
    """The database schema."""


@command
def upgrade() -> None:
    """Create the tables, or bring them to this version."""
    from ..store import SCHEMA_VERSION

    found = metering().store.upgrade()
    if found == SCHEMA_VERSION:
        click.echo(f"schema {SCHEMA_VERSION} is up to date")
    else:
        click.echo(f"schema upgraded from {found or 'nothing'} to {SCHEMA_VERSION}")


db.add_command(upgrade)

COMMANDS = (status, worker, emulator, db)
