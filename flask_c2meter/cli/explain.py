"""``explain``: from the billed number down to shipments, minutes and operations."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING

import click

from .. import plain
from ..errors import GatewayError
from ..model import Charge, Meter, Period, Usage
from ..money import written
from ..shipment import Shipment
from ..stripe_objects import InvoiceLine, Names, invoice_lines, price_ids
from .terminal import PERIOD, command, day, metering, or_dash, progress

if TYPE_CHECKING:
    from ..store.trail import MinuteTrail, Tally, Traced

#: Operations shown to a person who does not say how many.
_SHOWN = 100

_PLACES = ("delivered", "in_flight", "unshipped", "in_doubt", "dead", "discarded")


@command
@click.argument("customer")
@click.argument("meter")
@PERIOD
@click.option("--invoice", metavar="ID", help="Begin with the lines of this Stripe invoice.")
@click.option("--limit", type=click.IntRange(0), help=f"Operations shown; default: {_SHOWN}.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line; all of them.")
def explain(
    customer: str,
    meter: str,
    period: datetime | None,
    invoice: str | None,
    limit: int | None,
    as_json: bool,
) -> None:
    """Why CUSTOMER is billed that much of METER: down to every single operation.

    The billed number, what Stripe was told of it, each minute with its shipments, and the
    operations in it with their request ids. Everything is added up again on the way, and each
    event's checksum is looked at: what does not agree is named, and the exit code is 1.
    """
    if period is not None and invoice is not None:
        raise click.UsageError("--period or --invoice, not both: an invoice has its own")
    definition = metering().catalogue.meter(meter)
    lines = [] if invoice is None else _invoiced(invoice, customer, meter)
    printer: _Text | _JsonLines
    if as_json:
        printer = _JsonLines(definition, limit)
    else:
        printer = _Text(definition, _SHOWN if limit is None else limit)
    agree = True
    for subject in _subjects(customer, definition, period, invoice, lines):
        agree &= _explain(subject, printer)
    sys.exit(0 if agree else 1)


# -- what is explained -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Subject:
    """One period of one customer's meter, as it is billed."""

    customer: str
    period: Period
    usage: Usage
    charge: Charge | None
    invoice: str | None = None
    lines: tuple[InvoiceLine, ...] = ()

    @property
    def invoiced(self) -> Decimal:
        """What the invoice's lines say, in wire units."""
        return sum((line.quantity for line in self.lines), Decimal(0))


def _subjects(
    customer: str,
    meter: Meter,
    period: datetime | None,
    invoice: str | None,
    lines: list[InvoiceLine],
) -> Iterator[_Subject]:
    if not lines:
        yield _subject(customer, meter, period or metering().config.clock(), invoice)
        return
    by_period: defaultdict[Period, list[InvoiceLine]] = defaultdict(list)
    for line in lines:
        by_period[line.period].append(line)
    for billed, theirs in by_period.items():
        yield _subject(customer, meter, billed.start, invoice, *theirs)


def _subject(
    customer: str, meter: Meter, moment: datetime, invoice: str | None, *lines: InvoiceLine
) -> _Subject:
    usage = metering()
    used = next(each for each in usage.usage(customer, moment) if each.meter == meter.name)
    charges = usage.bill(customer, moment) if meter.billable else []
    charge = next(
        (each for each in charges if (each.meter, each.period) == (meter.name, used.period)), None
    )
    return _Subject(customer, used.period, used, charge, invoice, lines)


def _invoiced(invoice: str, customer: str, meter: str) -> list[InvoiceLine]:
    """The lines of Stripe's *invoice* that bill *meter*."""
    usage = metering()
    gateway = usage.gateway
    if gateway is None:
        raise click.ClickException(
            "no Stripe key, so no invoice can be read: set C2METER_STRIPE_SECRET_KEY"
        )
    try:
        found = gateway.invoice(invoice)
    except GatewayError as exc:
        if exc.reason != "resource_missing":
            raise
        raise click.ClickException(
            f"Stripe knows no invoice {invoice} at {gateway.account}: the id is wrong, or it is "
            "of another account or mode than C2METER_STRIPE_SECRET_KEY"
        ) from exc
    if found.get("customer") != customer:
        raise click.ClickException(f"{invoice} is no invoice of {customer}")
    try:
        prices = {each: gateway.price(each) for each in price_ids(found["lines"])}
        catalogue = usage.catalogue
        ids = {number: name for name, number in gateway.meter_ids().items()}
        names = Names(tuple(catalogue.plans), tuple(catalogue.meters), ids)
        lines = invoice_lines(found["lines"], prices, names)
    except (LookupError, TypeError, ValueError, ArithmeticError) as exc:
        raise GatewayError("no_receipt") from exc
    ours = [line for line in lines if line.meter == meter]
    if not ours:
        others = ", ".join(sorted({line.meter for line in lines})) or "none of ours"
        raise click.ClickException(f"{invoice} has no line for {meter}; it bills {others}")
    return ours


# -- the way down ----------------------------------------------------------------------------------


def _explain(subject: _Subject, printer: _Text | _JsonLines) -> bool:
    """Print everything about *subject*; whether it agrees."""
    where = (subject.customer, subject.usage.meter, subject.period)
    with metering().store.trails.open(*where) as trail:
        show_progress = progress("events read")
        tally = trail.tally(show_progress)
        show_progress.end()
        agrees = tally.agrees and (not subject.lines or subject.invoiced == tally.total)
        printer.head(subject, tally)
        left = printer.limit
        for minute in trail.minutes():
            agrees &= minute.total == minute.recomputed
            printer.minute(minute)
            for traced in minute.operations:
                if left == 0:
                    printer.left_out(tally)
                    return agrees
                left = None if left is None else left - 1
                printer.operation(traced)
    return agrees


class _Text:
    """For a person."""

    def __init__(self, meter: Meter, limit: int | None) -> None:
        self._meter = meter
        self.limit = limit

    def head(self, subject: _Subject, tally: Tally) -> None:
        """The number, and what it is made of."""
        used, charge, unit = subject.usage, subject.charge, self._meter.unit
        bounds = f"{day(subject.period.start)} to {day(subject.period.end)} (UTC)"
        click.secho(f"{subject.customer} {used.meter}, {bounds}", bold=True)
        for line in subject.lines:
            self._say(
                "invoice",
                f"{subject.invoice}: {self._value(line.quantity)} {unit} = "
                f"{written(Decimal(line.amount), line.currency)}  {line.description}",
            )
        if charge is not None and charge.amount is not None and charge.currency is not None:
            bill = f"{charge.units} {unit} above it = {written(charge.amount, charge.currency)}"
        elif self._meter.billable:
            bill = "no price, so no amount"
        else:
            bill = "never billed: for information only"
        self._say("billed", f"{used.total} {unit}, {or_dash(used.included)} included; {bill}")
        self._say("recorded", f"{self._value(tally.total)} {unit} in {tally.events:,} operations")
        places = ", ".join(
            f"{self._value(units)} {place.replace('_', ' ')}"
            for place in _PLACES
            if (units := tally.places.get(place, 0))
        )
        if self._meter.billable:
            self._say("shipped", f"{places or 'nothing'}, in {tally.shipments:,} shipments")
        self._differences(subject, tally)

    def _differences(self, subject: _Subject, tally: Tally) -> None:
        if subject.lines and subject.invoiced != tally.total:
            difference = self._value(subject.invoiced - tally.total)
            self._wrong(f"the invoice differs from what is recorded by {difference}")
        if tally.total != tally.recomputed or tally.events != tally.found:
            self._wrong(
                f"the events say {self._value(tally.recomputed)} in {tally.found:,} operations: "
                "`flask c2meter verify` tells more"
            )
        if tally.faults:
            self._wrong(f"{tally.faults:,} events are not as they were written")

    def minute(self, minute: MinuteTrail) -> None:
        """One minute and its shipments."""
        click.echo()
        click.secho(f"{minute.minute:%Y-%m-%d %H:%M}  {self._value(minute.total):+}", bold=True)
        for shipment in minute.shipments:
            click.echo(f"  shipment {shipment.identifier}  {self._shipped(shipment)}")
        if minute.total != minute.counted:
            click.echo(f"  not shipped yet: {self._value(minute.total - minute.counted)}")
        if minute.total != minute.recomputed:
            self._wrong(f"its operations say {self._value(minute.recomputed)}")

    def _shipped(self, shipment: Shipment) -> str:
        text = f"{self._value(shipment.value)} {shipment.state.value}"
        return f"{text} ({shipment.reason})" if shipment.reason else text

    def operation(self, traced: Traced) -> None:
        """One operation."""
        event = traced.event
        what = "void " if event.kind == "adjustment" else ""
        value = f"{what}{event.value}"
        if traced.increment != event.units:
            value += f" (adds {self._value(traced.increment)})"
        click.echo(
            f"  {event.occurred_at:%H:%M:%S.%f}"[:-3]
            + f"  {value}  request {event.request_id or '-'}  key {event.key}"
        )
        if traced.fault is not None:
            self._wrong(traced.fault, indent="    ")

    def left_out(self, tally: Tally) -> None:
        """Not everything was shown."""
        click.echo(f"\nthe first {self.limit} operations; more with --limit, all with --json")

    def _say(self, label: str, text: str) -> None:
        click.echo(f"  {label:<10}{text}")

    def _wrong(self, text: str, indent: str = "  ! ") -> None:
        click.secho(f"{indent}{text}", fg="red")

    def _value(self, units: int | Decimal) -> Decimal:
        return Decimal(units).scaleb(-self._meter.precision)


class _JsonLines:
    """For a program: ``period``, then ``minute``, ``shipment`` and ``operation``, in order."""

    def __init__(self, meter: Meter, limit: int | None) -> None:
        self._meter = meter
        self.limit = limit

    def head(self, subject: _Subject, tally: Tally) -> None:
        """The number, and what it is made of."""
        self._line(
            "period",
            customer=subject.customer,
            **plain.usage(subject.usage),
            charge=None if subject.charge is None else plain.charge(subject.charge),
            invoice=subject.invoice,
            invoiced=self._text(subject.invoiced) if subject.lines else None,
            recorded=self._text(tally.total),
            recomputed=self._text(tally.recomputed),
            operations=tally.events,
            faults=tally.faults,
            shipments=tally.shipments,
            places={place: self._text(tally.places.get(place, 0)) for place in _PLACES},
        )

    def minute(self, minute: MinuteTrail) -> None:
        """One minute and its shipments."""
        self._line(
            "minute",
            minute=minute.minute.isoformat(),
            total=self._text(minute.total),
            counted=self._text(minute.counted),
            recomputed=self._text(minute.recomputed),
        )
        for shipment in minute.shipments:
            self._line(
                "shipment",
                identifier=shipment.identifier,
                value=self._text(shipment.value),
                timestamp=shipment.timestamp.isoformat(),
                state=shipment.state.value,
                attempts=shipment.attempts,
                reason=shipment.reason,
            )

    def operation(self, traced: Traced) -> None:
        """One operation."""
        self._line(
            "operation",
            **plain.event(traced.event),
            increment=self._text(traced.increment),
            fault=traced.fault,
        )

    def left_out(self, tally: Tally) -> None:
        """Not everything was shown."""
        self._line("left_out", operations=tally.events)

    def _line(self, kind: str, /, **values: object) -> None:
        click.echo(json.dumps({"type": kind, **values}))

    def _text(self, units: int | Decimal) -> str:
        return str(Decimal(units).scaleb(-self._meter.precision))


COMMANDS = (explain,)
