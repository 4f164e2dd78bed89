"""What customers have used and owe: ``usage``, ``bill``, ``project``, ``events``, ``alerts``."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import islice
from statistics import median
from typing import TYPE_CHECKING, Any

import click

from .. import plain
from ..model import Charge, UsageEvent
from ..money import written
from ..projection import Backtest
from .terminal import command, day, metering, or_dash, periods, progress, table

if TYPE_CHECKING:
    from ..store.announcements import Announced

_CUSTOMER = click.argument("customer")
_JSON = click.option("--json", "as_json", is_flag=True, help="For a program.")
_AT = click.option(
    "--at",
    type=click.DateTime(("%Y-%m-%d", "%Y-%m-%dT%H:%M:%S")),
    help="In the period of this moment (UTC) instead of now.",
)


def _moment(at: datetime | None) -> datetime | None:
    return None if at is None else at.replace(tzinfo=UTC)


def _print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2))


@command
@_CUSTOMER
@_AT
@_JSON
def usage(customer: str, at: datetime | None, as_json: bool) -> None:
    """What CUSTOMER has used in the current billing period."""
    used = metering().usage(customer, _moment(at))
    if as_json:
        _print_json([plain.usage(row) for row in used])
        return
    click.echo(f"{customer}: {periods(used)} (UTC)")
    table(
        ("meter", "total", "included", "used", "level"),
        (
            (
                row.meter,
                row.total,
                or_dash(row.included),
                "-" if row.utilization is None else _share(row.utilization),
                or_dash(row.level),
            )
            for row in used
        ),
    )


def _share(used: Decimal) -> str:
    """Per cent with one place, but the whole is only said to be used when it is."""
    return f"{min(used, Decimal('0.999')) if used < 1 else used:.1%}"


@command
@_CUSTOMER
@_AT
@_JSON
def bill(customer: str, at: datetime | None, as_json: bool) -> None:
    """What CUSTOMER owes for the current billing cycle so far, and will owe at its end."""
    lines = metering().bill(customer, _moment(at))
    if as_json:
        _print_json([plain.charge(line) for line in lines])
        return
    table(
        ("meter", "period (UTC)", "overage", "amount", "projected", "range"),
        ((*_bill_line(line),) for line in lines),
        left=2,
    )
    for currency, priced in _by_currency(lines).items():
        total = written(sum((line.amount or Decimal(0) for line in priced), Decimal(0)), currency)
        click.secho(f"so far {total}, {_expected(priced, currency)}", bold=True)
    if unpriced := sorted({line.meter for line in lines if line.currency is None}):
        click.echo(f"without a price, so without an amount: {', '.join(unpriced)}")


def _bill_line(line: Charge) -> Sequence[object]:
    period = f"{day(line.period.start)} to {day(line.period.end)}"
    if line.currency is None or line.amount is None:
        return line.meter, period, line.units, "-", or_dash(line.projected_units), "-"
    if line.projected_amount is None or line.projected_low is None or line.projected_high is None:
        return line.meter, period, line.units, written(line.amount, line.currency), "-", "-"
    low, high = (
        written(amount, line.currency) for amount in (line.projected_low, line.projected_high)
    )
    return (
        line.meter,
        period,
        line.units,
        written(line.amount, line.currency),
        written(line.projected_amount, line.currency),
        low if low == high else f"{low} to {high}",
    )


def _by_currency(lines: Iterable[Charge]) -> dict[str, list[Charge]]:
    found: defaultdict[str, list[Charge]] = defaultdict(list)
    for line in lines:
        if line.currency is not None:
            found[line.currency].append(line)
    return found


def _expected(lines: Iterable[Charge], currency: str) -> str:
    amounts = [line.projected_amount for line in lines]
    if None in amounts:
        return "too early to say what it will be"
    total = sum((amount for amount in amounts if amount is not None), Decimal(0))
    return f"projected {written(total, currency)}"


@command
@click.argument("customer", required=False)
@click.option("--backtest", is_flag=True, help="The error that past periods would have had.")
@_JSON
def project(customer: str | None, backtest: bool, as_json: bool) -> None:
    """What CUSTOMER's usage will be at the end of the current period.

    With --backtest: how far off a projection made after a quarter, half and three quarters of each
    past period would have been, of CUSTOMER or of all.
    """
    if backtest:
        _print_backtest(customer, as_json)
    elif customer is None:
        raise click.UsageError("name a CUSTOMER, or ask for a --backtest")
    else:
        _print_projection(customer, as_json)


def _print_projection(customer: str, as_json: bool) -> None:
    found = metering().accounts.project(customer)
    if as_json:
        _print_json({row.meter: plain.projection(expected) for row, expected in found})
        return
    click.echo(f"{customer}: {periods(row for row, _ in found)} (UTC)")
    table(
        ("meter", "total", "projected", "range"),
        (
            (row.meter, row.total, "too early to say", "-")
            if expected is None
            else (row.meter, row.total, expected.total, f"{expected.low} to {expected.high}")
            for row, expected in found
        ),
    )


def _print_backtest(customer: str | None, as_json: bool) -> None:
    usage = metering()
    names = [customer] if customer else usage.store.customer_ids()
    show = progress("customers looked at")
    found: defaultdict[tuple[str, Decimal], list[Backtest]] = defaultdict(list)
    for number, name in enumerate(names, start=1):
        for meter, tests in usage.accounts.backtest(name).items():
            for test in tests:
                found[meter, test.share].append(test)
        show(number)
    rows = [_backtest_row(meter, share, tests) for (meter, share), tests in sorted(found.items())]
    if as_json:
        _print_json(rows)
    elif rows:
        table(
            ("meter", "after", "periods", "median error", "worst", "in range"),
            (
                (
                    row["meter"],
                    f"{Decimal(row['share']):.0%}",
                    row["periods"],
                    or_dash(row["median_error"]),
                    or_dash(row["worst_error"]),
                    row["in_range"],
                )
                for row in rows
            ),
        )
    else:
        click.echo("no period is over yet: nothing to test against")


def _backtest_row(meter: str, share: Decimal, tests: Sequence[Backtest]) -> dict[str, Any]:
    errors = [abs(test.error) for test in tests if test.error is not None]
    within = sum(test.is_within for test in tests)
    return {
        "meter": meter,
        "share": str(share),
        "periods": len(tests),
        "median_error": f"{median(errors):.1%}" if errors else None,
        "worst_error": f"{max(errors):.1%}" if errors else None,
        "in_range": f"{Decimal(within) / len(tests):.0%}",
    }


#: So many events make one table: its columns are as wide as what is in it.
_TABLE = 1000


@command
@click.option("--customer", help="Only of this customer.")
@click.option("--meter", help="Only of this meter.")
@click.option(
    "--limit", default=100, show_default=True, type=click.IntRange(1, 10**12), help="Latest N."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
def events(customer: str | None, meter: str | None, limit: int, as_json: bool) -> None:
    """The latest events, oldest first."""
    if meter is not None:
        metering().catalogue.meter(meter)
    found = metering().store.latest_events(customer, meter, limit)
    if as_json:
        for event in found:
            click.echo(json.dumps(plain.event(event), ensure_ascii=True))
        return
    _print_events(islice(found, _TABLE))
    while page := list(islice(found, _TABLE)):
        _print_events(page)


def _print_events(found: Iterable[UsageEvent]) -> None:
    table(
        ("occurred (UTC)", "customer", "meter", "value", "key", "flags"),
        (
            (
                f"{event.occurred_at:%Y-%m-%d %H:%M:%S}",
                event.customer,
                event.meter,
                f"void {event.value}" if event.kind == "adjustment" else event.value,
                event.key,
                " ".join(event.flags),
            )
            for event in found
        ),
    )


@command
@click.option("--customer", help="Only of this customer.")
@click.option(
    "--days", default=30, show_default=True, type=click.IntRange(1, 36_500), help="How far back."
)
@click.option("--test", "test_customer", metavar="CUSTOMER", help="Try every channel now.")
@_JSON
def alerts(customer: str | None, days: int, test_customer: str | None, as_json: bool) -> None:
    """The usage alerts raised, and what became of each on every channel.

    With --test: a made-up warning for CUSTOMER goes out on every channel, marked as a test; exits
    with 1 if one fails.
    """
    if test_customer is not None:
        _try_channels(test_customer)
        return
    since = metering().config.clock() - timedelta(days=days)
    notices = metering().store.announcements.notices(since, customer)
    if as_json:
        _print_json([plain.notice(notice) for notice in notices])
        return
    if not notices:
        click.echo(f"no alert was raised in the last {days} days")
        return
    channels = sorted({channel for notice in notices for channel in notice.channels})
    table(
        ("raised (UTC)", "customer", "meter", "level", "used", *channels),
        (
            (
                f"{notice.alert.raised_at:%Y-%m-%d %H:%M:%S}",
                notice.alert.customer,
                notice.alert.meter,
                notice.alert.level,
                f"{notice.alert.total}/{notice.alert.included}",
                *(_state(notice.channels.get(channel)) for channel in channels),
            )
            for notice in notices
        ),
        left=4,
    )


def _state(announced: Announced | None) -> str:
    if announced is None:
        return "-"
    state = "waiting" if announced.state in ("ready", "sending") else announced.state
    return state if announced.reason is None else f"{state} ({announced.reason})"


def _try_channels(customer: str) -> None:
    outcomes = metering().test_alert(customer)
    for channel, problem in outcomes.items():
        click.secho(f"{channel}: {problem or 'delivered'}", fg="red" if problem else "green")
    sys.exit(1 if any(outcomes.values()) else 0)


COMMANDS = (usage, bill, project, events, alerts)
