"""``provision --apply`` as a process: killed (SIGKILL) at any of its requests, asked by a person.

What a killed one has begun is completed by the next run.
"""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fault_rig import KEY, Children, until

from flask_c2meter.catalogue import load
from flask_c2meter.emulator import StripeEmulator
from flask_c2meter.emulator.wire import ReceivedRequest
from flask_c2meter.gateway import Gateway
from flask_c2meter.provisioner import Provisioner

COMMAND = ("flask", "--app", "fault_app:create_app", "c2meter", "provision")
#: Longer than any test; it is cut when the emulator stops.
FOREVER_S = 3600


def catalogue(unit_amount: int) -> dict[str, Any]:
    meter = {
        "event_type": "v",
        "unit": "v",
        "aggregation": "sum",
        "included": {"starter": 5, "growth": 10},
        "price": {"mode": "flat", "currency": "usd", "unit_amount": unit_amount},
    }
    return {"plans": {"starter": {}, "growth": {}}, "meters": {"verify": meter}}


def provisioner(stripe: StripeEmulator, content: dict[str, Any]) -> Provisioner:
    return Provisioner(Gateway(KEY, base_url=stripe.url), load(content))


def objects(stripe: StripeEmulator) -> list[tuple[Any, ...]]:
    """All that is at Stripe, without ids."""
    prices = Gateway(KEY, base_url=stripe.url).ask(
        lambda client: client.v1.prices.list({"limit": 100, "expand": ["data.tiers"]}).data
    )
    return sorted(
        (str(price.lookup_key), price.active, str(price.tiers[-1].unit_amount_decimal))
        for price in prices
    )


def nth_write(number: int) -> Callable[[ReceivedRequest], bool]:
    seen = 0

    def match(request: ReceivedRequest) -> bool:
        nonlocal seen
        seen += request.method == "POST"
        return request.method == "POST" and seen == number

    return match


@pytest.mark.parametrize("after_processing", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_killed_at_any_request_of_the_first_time(
    children: Children, stripe: StripeEmulator, number: int, after_processing: bool
) -> None:
    kill_at(children, stripe, catalogue(4), number, after_processing)
    assert len(stripe.snapshot().meters) == 1
    assert objects(stripe) == [("growth_verify", True, "4"), ("starter_verify", True, "4")]


@pytest.mark.parametrize("after_processing", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_killed_at_any_request_of_a_new_price(
    children: Children, stripe: StripeEmulator, number: int, after_processing: bool
) -> None:
    before = provisioner(stripe, catalogue(4))
    before.apply(before.plan())
    kill_at(children, stripe, catalogue(5), number, after_processing)
    assert objects(stripe) == [
        ("None", False, "4"),
        ("None", False, "4"),
        ("growth_verify", True, "5"),
        ("starter_verify", True, "5"),
    ]


def kill_at(
    children: Children,
    stripe: StripeEmulator,
    content: dict[str, Any],
    number: int,
    after_processing: bool,
) -> None:
    """Kill the command while Stripe has its *number*-th write; run it again."""
    path = Path(children.folder, "catalogue.json")
    path.write_text(json.dumps(content))
    stripe.fail(
        None if after_processing else 503,
        delay=FOREVER_S,
        after_processing=after_processing,
        match=nth_write(number),
    )
    running = children.start(*COMMAND, "--apply", env={"C2METER_CATALOGUE": str(path)})
    until(lambda: not stripe.faults or running.poll() is not None, 60)
    if after_processing:
        until(lambda: stripe.requests[-1].answered == "processed", 20)
    running.send_signal(signal.SIGKILL)
    assert running.wait(20) == -signal.SIGKILL

    again = provisioner(stripe, content)
    assert again.apply(again.plan()).changes == []


def on_a_terminal(children: Children, answer: str, *arguments: str) -> tuple[int, str]:
    """Run the command in live mode as a person does; exit code and what the screen shows."""
    ours, theirs = pty.openpty()
    env = {**children.env, "C2METER_STRIPE_SECRET_KEY": "sk_live_1"}
    running = subprocess.Popen(
        [sys.executable, "-m", *COMMAND, *arguments],
        env=env,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    os.write(ours, answer.encode())
    shown = b""
    try:
        while chunk := os.read(ours, 65536):
            shown += chunk
    except OSError:  # Linux says so when the last one has left
        pass
    os.close(ours)
    return running.wait(60), shown.decode()


def test_a_person_is_asked_in_live_mode(children: Children, stripe: StripeEmulator) -> None:
    code, shown = on_a_terminal(children, "n\n", "--apply")
    assert code == 1
    assert "LIVE MODE" in shown and "Carry out this plan? [y/N]:" in shown
    assert "\x1b[32m+ create" in shown, "in color"
    assert [request for request in stripe.requests if request.method == "POST"] == []

    code, shown = on_a_terminal(children, "y\n", "--apply")
    assert code == 0, shown
    assert "Done: Stripe bills by the catalogue." in shown
