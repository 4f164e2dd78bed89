"""What usage would cost on another plan: ``simulate``."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from decimal import Decimal

import click

from .. import plain
from ..billing import Offer, Quote, offer
from ..errors import InvalidEvent
from ..money import written
from ..schemas import parse_total
from .terminal import command, metering, or_dash, periods, table


@command
@click.argument("customer", required=False)
@click.option(
    "--usage",
    "usages",
    metavar="METER=QUANTITY",
    multiple=True,
    help="So much of a meter, in its unit; once for each meter.",
)
@click.option(
    "--projected", is_flag=True, help="What CUSTOMER will have used when the period ends."
)
@click.option("--json", "as_json", is_flag=True, help="For a program.")
def simulate(customer: str | None, usages: tuple[str, ...], projected: bool, as_json: bool) -> None:
    """What usage would cost on each plan of the catalogue.

    Rates what CUSTOMER has used in the current period, and marks the plan that it is on. With
    --usage and no CUSTOMER: only that, of nobody. With both: what --usage says stands in the place
    of what was used. Nothing is recorded or changed.

    Amounts are for usage above what a plan includes, as `flask c2meter bill` has them; what the
    plan itself costs is not in the catalogue, and not in the totals.

    \b
    flask c2meter simulate cus_123
    flask c2meter simulate cus_123 --projected --usage storage_gb=80
    flask c2meter simulate --usage verify_operations=2500 --usage storage_gb=1.5
    """
    given = _given(usages)
    if customer is None and not given:
        raise click.UsageError("name a CUSTOMER, or say how much: --usage METER=QUANTITY")
    if customer is None and projected:
        raise click.UsageError("--projected needs a CUSTOMER")
    catalogue = metering().catalogue
    if not catalogue.plans:
        raise click.ClickException("the catalogue has no plans: there is nothing to compare")
    used = [] if customer is None else metering().usage(customer)
    totals = {each.meter: max(Decimal(0), each.total) for each in used}
    if customer is not None and projected:
        totals |= _projected(customer, given)
    totals |= given
    meters = [each for each in catalogue.meters.values() if each.billable and each.name in totals]
    current = None if customer is None else metering().accounts.plan(customer)
    offers = [offer(plan, meters, totals) for plan in catalogue.plans.values()]
    if as_json:
        found = [plain.offer(each, is_current=each.plan.name == current) for each in offers]
        click.echo(json.dumps(found, indent=2))
        return
    if customer is not None:
        when = ", as projected at its end" if projected else ""
        click.echo(f"{customer}: {periods(used)} (UTC){when}")
    table(
        ("plan", "meter", "usage", "included", "overage", "amount"),
        (row for each in offers for row in _rows(each, current)),
        left=2,
    )
    if customer is not None:
        click.echo(_of_plan(customer, current))
    if unpriced := [meter.name for meter in meters if meter.price is None]:
        click.echo(f"without a price, so without an amount: {', '.join(unpriced)}")


def _given(usages: Sequence[str]) -> dict[str, Decimal]:
    """Meter -> quantity, as ``METER=QUANTITY`` says."""
    given: dict[str, Decimal] = {}
    for text in usages:
        name, sign, quantity = text.partition("=")
        if not sign:
            raise _wrong(f"{text!r} is no METER=QUANTITY")
        meter = metering().catalogue.meter(name)
        if not meter.billable:
            raise _wrong(f"{name} is not billed")
        if name in given:
            raise _wrong(f"{name} is given twice")
        try:
            given[name] = meter.to_value(parse_total(meter, quantity))
        except InvalidEvent as exc:
            raise _wrong(f"{name} {exc.messages['value']}") from None
    return given


def _wrong(problem: str) -> click.BadParameter:
    return click.BadParameter(problem, param_hint="--usage")


def _projected(customer: str, given: Collection[str]) -> dict[str, Decimal]:
    """Meter -> what *customer* will have used of it at the end, but for what is *given*."""
    meters = metering().catalogue.meters
    expected = {
        used.meter: projection
        for used, projection in metering().accounts.project(customer)
        if used.meter not in given and meters[used.meter].billable
    }
    if early := [name for name, projection in expected.items() if projection is None]:
        raise click.ClickException(
            f"too early to project {', '.join(early)}: leave --projected out, or say how much "
            "with --usage METER=QUANTITY"
        )
    return {name: each.total for name, each in expected.items() if each is not None}


def _rows(offered: Offer, current: str | None) -> Iterator[Sequence[object]]:
    plan = offered.plan.name + "*" * (offered.plan.name == current)
    for each in offered.quotes:
        yield plan, each.meter, each.total, or_dash(each.included), each.units, _amount(each)
    for currency, total in offered.totals.items():
        yield plan, "total", "", "", "", written(total, currency)


def _amount(quote: Quote) -> str:
    if quote.amount is None or quote.currency is None:
        return "-"
    return written(quote.amount, quote.currency)


def _of_plan(customer: str, current: str | None) -> str:
    if current is None:
        return f"no plan of {customer} is known"
    if current not in metering().catalogue.plans:
        return f"{customer} is on {current!r}, which is not in the catalogue"
    return f"* the plan that {customer} is on"


COMMANDS = (simulate,)
