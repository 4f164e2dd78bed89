"""The JSON that commands print, held against what the reference says of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from cli_rig import delivering, run
from flask_host import Host
from from_code.shapes import SHAPES, USES, schema
from jsonschema import Draft202012Validator

from flask_c2meter import Customer
from flask_c2meter.emulator import StripeEmulator
from flask_c2meter.testing import FrozenClock

LINES, LIST, MAP, OBJECT, HEAD = "lines", "list", "map", "object", "head"

#: Shape -> commands that print it, and how.
COMMANDS = {
    "Usage": [("usage cus_1 --json", LIST)],
    "Charge": [("bill cus_1 --json", LIST)],
    "Projection": [("project cus_1 --json", MAP)],
    "Offer": [
        ("simulate cus_1 --json", LIST),
        ("simulate --usage verify_operations=2500 --json", LIST),
    ],
    "Event": [("events --json", LINES)],
    "Notice": [("alerts --json", LIST)],
    "DeadLetter": [("dead list --json", LINES)],
    "Provisioning": [("provision --json", OBJECT), ("provision --apply --json", OBJECT)],
    "ExportHead": [("export cus_1 --format jsonl", HEAD)],
    "Difference": [("reconcile --json", LINES)],
    "Reconciliation": [("reconcile --json", "last line")],
}
#: Tried where the dashboard is.
ELSEWHERE = {"Report"}


@pytest.fixture
def host(
    new_host: Callable[..., Host], stripe_emulator: StripeEmulator, c2meter_clock: FrozenClock
) -> Host:
    """One customer above its plan, whose usage Stripe has refused in part."""
    host = delivering(new_host, stripe_emulator, c2meter_clock)
    stripe_emulator.fail(400, path="*meter_events", code="payload_invalid_value", message="no")
    customer = Customer("cus_1", plan="starter")
    host.metering.record("verify_operations", customer, value=1999, key="k-1", manifest_id="m-1")
    host.metering.record("active_sites", customer, domain="example.com")
    run(host, "worker", "--once")
    host.metering.record("verify_operations", customer, value=2, key="k-2", manifest_id="m-1")
    host.metering.adjust("cus_1", "verify_operations", "k-2", "an example")
    return host


def printed(text: str, how: str) -> list[Any]:
    """The objects in *text*."""
    lines = text.splitlines()
    if how == LINES:
        return [each for each in map(json.loads, lines) if "summary" not in each]
    if how == HEAD:
        return [json.loads(json.loads(lines[0])["properties"])]
    if how == "last line":
        return [json.loads(lines[-1])]
    whole = json.loads(text)
    if how == MAP:
        return [each for each in whole.values() if each is not None]
    return whole if how == LIST else [whole]


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_is_one_and_says_what_each_key_means(name: str) -> None:
    Draft202012Validator.check_schema(schema(name))
    assert SHAPES[name]["description"]
    for said in SHAPES[name]["properties"].values():
        assert said.keys() & {"description", "$ref", "anyOf"}


@pytest.mark.parametrize(
    ("name", "command", "how"),
    [(name, command, how) for name, each in COMMANDS.items() for command, how in each],
)
def test_a_command_prints_the_shape(
    name: str, command: str, how: str, host: Host, c2meter_clock: FrozenClock
) -> None:
    if name == "Projection":  # before that it is too early to say
        c2meter_clock.advance(timedelta(days=2))
    found = printed(run(host, *command.split()).stdout, how)
    assert found
    for each in found:
        Draft202012Validator(
            schema(name), format_checker=Draft202012Validator.FORMAT_CHECKER
        ).validate(each)


def test_every_shape_that_is_used_is_tried() -> None:
    assert ELSEWHERE | COMMANDS.keys() == USES.keys()
