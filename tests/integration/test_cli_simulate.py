"""``flask c2meter simulate``: what usage would cost under each plan, as the bill would say."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from billing_rig import CATALOGUE
from cli_rig import run
from flask_host import Host

from flask_c2meter import Customer
from flask_c2meter.testing import FrozenClock


@pytest.fixture
def host(new_host: Callable[..., Host], c2meter_clock: FrozenClock) -> Host:
    """The plans of the billing tests, one meter of which is graduated; and one meter unpriced."""
    extra = {
        "words": {
            "event_type": "words.written",
            "unit": "word",
            "aggregation": "sum",
            "included": {"starter": 10},
        },
        "looks": {"event_type": "l", "unit": "look", "aggregation": "sum", "billable": False},
    }
    catalogue = CATALOGUE | {"meters": CATALOGUE["meters"] | extra}
    return new_host(C2METER_CLOCK=c2meter_clock, C2METER_CATALOGUE=catalogue, C2METER_WORKER="off")


@pytest.fixture
def used(host: Host) -> Host:
    """On the 15th of January, a customer has gone above what starter includes."""
    customer = Customer("cus_1", plan="starter")
    host.metering.record("verify", customer, value=100)
    host.metering.record("storage", customer, value="1.5")
    for domain in ("a.example", "b.example", "c.example"):
        host.metering.record("sites", customer, domain=domain)
    host.metering.record("words", customer, value=12)
    host.metering.record("looks", customer, value=1000)
    return host


def simulated(host: Host, *arguments: str) -> dict[str, Any]:
    """Plan -> what its JSON says."""
    result = run(host, "simulate", *arguments, "--json")
    assert result.exit_code == 0, result.output
    return {each["plan"]: each for each in json.loads(result.stdout)}


def amounts(plan: dict[str, Any]) -> dict[str, str | None]:
    return {each["meter"]: each["amount"] for each in plan["meters"]}


def test_the_own_plan_costs_what_the_bill_says(used: Host) -> None:
    own = simulated(used, "cus_1")["starter"]
    bill = {line.meter: line for line in used.metering.bill("cus_1")}
    assert own["is_current"] is True
    assert [(each["meter"], each["units"], each["amount"]) for each in own["meters"]] == [
        (name, str(line.units), None if line.amount is None else str(line.amount))
        for name, line in bill.items()
    ]
    # 50 at 4.35, 30 at 2.5 and a fee of 100; a gigabyte; three sites at 9 dollars.
    assert amounts(own) == {"verify": "393", "storage": "13", "sites": "2700", "words": None}
    assert own["totals"] == {"usd": "3106"}


def test_every_plan_by_what_it_includes(used: Host) -> None:
    plans = simulated(used, "cus_1")
    assert list(plans) == ["starter", "growth", "scale"]
    assert amounts(plans["growth"])["sites"] == plans["growth"]["totals"]["usd"] == "900"
    assert plans["scale"]["totals"] == {"usd": "0"}
    assert [plan["is_current"] for plan in plans.values()] == [True, False, False]
    assert plans["scale"]["meters"][0] == {
        "meter": "verify",
        "total": "100",
        "included": None,
        "units": "0",
        "amount": "0",
        "currency": "usd",
    }


def test_as_a_table(used: Host) -> None:
    result = run(used, "simulate", "cus_1")
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert lines[0] == "cus_1: 2026-01-01 to 2026-02-01 (UTC)"
    rows = [line.split() for line in lines[1:]]
    assert rows[0] == ["plan", "meter", "usage", "included", "overage", "amount"]
    assert rows[1] == ["starter*", "verify", "100", "20", "80", "$3.93"]
    assert ["starter*", "words", "12", "10", "2", "-"] in rows
    assert ["starter*", "total", "$31.06"] in rows
    assert ["growth", "total", "$9.00"] in rows
    assert ["scale", "verify", "100", "-", "0", "$0.00"] in rows
    assert "* the plan that cus_1 is on" in lines
    assert "without a price, so without an amount: words" in lines
    assert not any("looks" in line for line in lines)


def test_as_projected_at_the_end_of_the_period(used: Host) -> None:
    own = simulated(used, "cus_1", "--projected")["starter"]
    bill = {line.meter: line for line in used.metering.bill("cus_1")}
    assert amounts(own) == {
        name: None if line.projected_amount is None else str(line.projected_amount)
        for name, line in bill.items()
    }
    assert own["totals"] != simulated(used, "cus_1")["starter"]["totals"]
    assert "as projected" in run(used, "simulate", "cus_1", "--projected").output


def test_too_early_to_project_it_says_which_and_what_helps(
    used: Host, c2meter_clock: FrozenClock
) -> None:
    c2meter_clock.now = datetime(2026, 2, 1, 12, tzinfo=UTC)
    result = run(used, "simulate", "cus_1", "--projected")
    assert result.exit_code == 1
    assert "too early to project verify, storage, sites, words" in result.output
    given = [f"--usage={name}=1" for name in ("verify", "storage", "sites", "words")]
    assert run(used, "simulate", "cus_1", "--projected", *given).exit_code == 0


def test_a_total_below_zero_costs_what_zero_does(used: Host) -> None:
    with used.metering.store.writing() as connection:
        connection.exec_driver_sql("UPDATE totals SET total = -5 WHERE meter = 'verify'")
    assert amounts(simulated(used, "cus_1")["starter"])["verify"] == "0"


def test_hypothetical_usage_of_nobody(host: Host) -> None:
    plans = simulated(host, "--usage", "storage=1.5", "--usage", "verify=100")
    assert amounts(plans["starter"]) == {"verify": "393", "storage": "13"}
    assert [plan["is_current"] for plan in plans.values()] == [False] * 3
    result = run(host, "simulate", "--usage", "sites=7")
    assert ["growth", "sites", "7", "2", "5", "$45.00"] in [
        line.split() for line in result.output.splitlines()
    ]
    assert "*" not in result.output and "without a price" not in result.output


def test_what_is_given_stands_in_the_place_of_what_was_used(used: Host) -> None:
    plans = simulated(used, "cus_1", "--usage", "verify=20")
    assert amounts(plans["starter"]) == {
        "verify": "0",
        "storage": "13",
        "sites": "2700",
        "words": None,
    }


def test_what_is_due_without_any_usage_is_due(new_host: Callable[..., Host]) -> None:
    """Stripe bills the fee of the first tier even of nothing where nothing is included."""
    tiers = [{"flat_amount": 500, "unit_amount": 1}]
    meter = {
        "event_type": "a",
        "unit": "a",
        "aggregation": "sum",
        "included": {"starter": 0, "growth": 5},
        "price": {"mode": "graduated", "currency": "eur", "tiers": tiers},
    }
    host = new_host(C2METER_CATALOGUE={"meters": {"scans": meter}})
    plans = simulated(host, "--usage", "scans=0")
    assert [amounts(plans[name])["scans"] for name in ("starter", "growth")] == ["500", "0"]


def test_several_currencies_are_never_added(new_host: Callable[..., Host]) -> None:
    meters = {
        name: {
            "event_type": name,
            "unit": name,
            "aggregation": "sum",
            "included": {"starter": 0},
            "price": {"mode": "flat", "unit_amount": 100, "currency": currency},
        }
        for name, currency in (("scans", "usd"), ("faxes", "jpy"))
    }
    host = new_host(C2METER_CATALOGUE={"meters": meters, "plans": {"starter": {}}})
    arguments = ("--usage", "scans=2", "--usage", "faxes=3")
    assert simulated(host, *arguments)["starter"]["totals"] == {"usd": "200", "jpy": "300"}
    rows = [line.split() for line in run(host, "simulate", *arguments).output.splitlines()]
    assert rows[-2:] == [["starter", "total", "$2.00"], ["starter", "total", "¥300"]]


@pytest.mark.parametrize(
    ("customer", "told"),
    [
        (Customer("cus_1"), "no plan of cus_1 is known"),
        (
            Customer("cus_1", plan="old"),
            "cus_1 is on 'old', which is not in the catalogue",
        ),
    ],
)
def test_a_plan_that_is_not_there_is_said(host: Host, customer: Customer, told: str) -> None:
    host.metering.record("verify", customer)
    assert told in run(host, "simulate", "cus_1").output.splitlines()
    assert not any(plan["is_current"] for plan in simulated(host, "cus_1").values())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "name a CUSTOMER, or say how much: --usage METER=QUANTITY"),
        (("--projected", "--usage", "verify=1"), "--projected needs a CUSTOMER"),
        (("cus 1",), "no Stripe customer id"),
        (("--usage", "verify"), "'verify' is no METER=QUANTITY"),
        (("--usage", "verifi=1"), "did you mean 'verify'"),
        (("--usage", "looks=1"), "looks is not billed"),
        (("--usage", "verify=1", "--usage", "verify=2"), "verify is given twice"),
        (("--usage", "verify=-1"), "verify must be"),
        (("--usage", "verify=1.5"), "verify has more than 0 decimal places"),
        (("--usage", "storage=1e400"), "storage must be"),
        (("--usage", f"storage={'9' * 20}"), "storage must have at most 15 digits"),
    ],
)
def test_what_is_wrong_is_said_in_words(host: Host, arguments: tuple[str, ...], told: str) -> None:
    result = run(host, "simulate", *arguments)
    assert result.exit_code == 2
    assert told in result.output
    assert "Traceback" not in result.output


def test_a_catalogue_without_plans_has_nothing_to_compare(new_host: Callable[..., Host]) -> None:
    meter = {"event_type": "a", "unit": "a", "aggregation": "sum"}
    host = new_host(C2METER_CATALOGUE={"meters": {"scans": meter}, "plans": {}})
    result = run(host, "simulate", "--usage", "scans=1")
    assert result.exit_code == 1
    assert "the catalogue has no plans" in result.output
