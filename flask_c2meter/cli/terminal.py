"""What every command prints with: tables, progress, errors in one line."""

from __future__ import annotations

import getpass
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import NoReturn, ParamSpec, TextIO

import click
from flask.cli import with_appcontext

from ..errors import C2MeterError, CorruptStore, InvalidEvent, UnknownMeter
from ..gateway import Gateway
from ..globals import app_state
from ..metering import Metering
from ..model import Period, Usage, check_text, to_ms
from ..records import text_of
from ..store import Decision

P = ParamSpec("P")


def command(function: Callable[P, None]) -> click.Command:
    """A command within an app context."""
    return click.command()(with_appcontext(function))


def fail(exc: Exception) -> NoReturn:
    """Say *exc* and exit."""
    click.secho(str(exc), err=True, fg="red")
    sys.exit(2 if isinstance(exc, CorruptStore | InvalidEvent | UnknownMeter) else 1)


def metering() -> Metering:
    """The current app's."""
    return app_state().metering


def stripe() -> Gateway:
    """The current app's way to Stripe, for a command that needs one."""
    gateway = metering().gateway
    if gateway is None:
        raise click.ClickException(
            "no Stripe key: set C2METER_STRIPE_SECRET_KEY (or STRIPE_SECRET_KEY), and to try it out"
            " C2METER_STRIPE_BASE_URL, to the URL of: flask c2meter emulator"
        )
    return gateway


def refuse_other_account(gateway: Gateway) -> None:
    """Do nothing with a ledger that delivers elsewhere."""
    known = metering().store.facts().get("account")
    if known not in (None, gateway.account):
        raise click.ClickException(
            f"this ledger delivers to {known}, not to {gateway.account}: nothing is sent; "
            "after thought: flask c2meter worker --adopt"
        )


def table(head: Sequence[str], rows: Iterable[Sequence[object]], left: int = 1) -> None:
    """Print columns: the first *left* to the left, the others to the right."""
    lines = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(head), *lines]) for i in range(len(head))]
    for number, row in enumerate([list(head), *lines]):
        cells = [
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        click.secho("  ".join(cells).rstrip(), bold=number == 0)


class Progress:
    """A count that grows, shown to a person only."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._is_shown = sys.stderr.isatty()

    def __call__(self, count: int) -> None:
        """Show it."""
        if self._is_shown:
            click.echo(f"\r{count:,} {self._what}", err=True, nl=False)

    def end(self) -> None:
        """Make room for what follows."""
        if self._is_shown:
            click.echo("\r\x1b[K", err=True, nl=False)


def progress(what: str) -> Progress:
    """Shows a count of *what* that grows."""
    return Progress(what)


def quantity(meter: str, units: int) -> object:
    """*units* in the unit of *meter*; as they are if the catalogue does not know it."""
    known = metering().catalogue.meters.get(meter)
    return units if known is None else known.to_value(units)


def operator() -> str:
    """Who is at the keyboard, as far as the system knows."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container has users without names
        return f"user {os.getuid()}"


#: Options of every command that changes the books.
REASON = click.option("--reason", required=True, help="Why; kept in the journal.")
BY = click.option("--by", default=operator, show_default="you", help="Who decides; kept too.")


def decision(by: str, reason: str) -> Decision:
    """Who decides now, and why.

    :raises InvalidEvent: there is nothing in one of them, or something unprintable.
    """
    now_ms = to_ms(metering().config.clock())
    return Decision(check_text("--by", by), check_text("--reason", reason, max_bytes=1024), now_ms)


#: Of what is recorded; before and after there are periods beyond the calendar.
_YEARS = range(1970, 9000)


def _moment_of_period(
    context: click.Context, option: click.Parameter, text: str | None
) -> datetime | None:
    """A moment of the period that *text* means: a day, a moment, or a month.

    A month stands for the period under way at its end: the one that begins in it.
    """
    if text is None:
        return None
    try:
        if re.fullmatch("[0-9]{4}-[0-9]{2}", text):
            moment = Period.month_of(_utc(f"{text}-01")).end - timedelta(milliseconds=1)
        else:
            moment = _utc(text)
        if moment.year not in _YEARS:
            raise ValueError
        return moment
    except (ValueError, OverflowError):
        raise click.BadParameter(
            f"{text!r} is no month (2026-01), day (2026-01-15) or moment", context, option
        ) from None


def _utc(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


#: The option of commands about one billing period.
PERIOD = click.option(
    "--period",
    metavar="YYYY-MM[-DD]",
    callback=_moment_of_period,
    help="The billing period of this day, or the one that begins in this month; default: now's.",
)


@contextmanager
def reading(path: str) -> Iterator[TextIO]:
    """The file of records at *path*; ``-`` is standard input."""
    try:
        if path == "-":
            text = text_of(sys.stdin.buffer)
            try:
                yield text
            finally:
                text.detach()
        else:
            with open(path, "rb") as file, text_of(file) as text:
                yield text
    except C2MeterError:
        raise
    except OSError as exc:
        raise click.ClickException(f"{path}: {exc.strerror or exc}") from exc


def or_dash(value: object) -> object:
    """*value*, or a dash for None."""
    return "-" if value is None else value


def day(moment: datetime) -> str:
    """The date of *moment*, with the time if it is not midnight."""
    is_midnight = (moment.hour, moment.minute, moment.second) == (0, 0, 0)
    return f"{moment:%Y-%m-%d}" if is_midnight else f"{moment:%Y-%m-%d %H:%M:%S}"


def periods(used: Iterable[Usage]) -> str:
    """The billing periods of *used*, each once."""
    spans = [each.period for each in used]
    return ", ".join(dict.fromkeys(f"{day(each.start)} to {day(each.end)}" for each in spans))
