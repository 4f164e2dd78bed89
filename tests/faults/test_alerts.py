"""Case 27 and its neighbours: many processes raise and announce alerts, and some of them die."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fault_rig import VERIFY, Children, Rig, sql, until

from flask_c2meter import Customer
from flask_c2meter.emulator import StripeEmulator
from tests.integration.channel_rig import SECRET, Receiver, serving

LEVELS = ("warning", "critical", "exceeded")
#: The least of which 80, 95 and 100 % are different numbers: 16, 19 and 20.
INCLUDED = 20


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """Receives the webhooks of all processes."""
    receiver = Receiver()
    with serving(receiver) as receiver.port:
        yield receiver


@pytest.fixture
def settings(tmp_path: Path, receiver: Receiver) -> dict[str, str]:
    """Of all processes: a small plan, no Stripe, a webhook, a clock that can be moved."""
    meter = {
        "event_type": "verify.completed",
        "unit": "verify",
        "aggregation": "sum",
        "included": {"starter": INCLUDED},
        "properties": {"manifest_id": {"type": "string"}},
    }
    catalogue = tmp_path / "catalogue.json"
    catalogue.write_text(json.dumps({"plans": {"starter": {}}, "meters": {VERIFY: meter}}))
    (tmp_path / "clock").write_text("0")
    return {
        "C2METER_CATALOGUE": str(catalogue),
        "C2METER_STRIPE_SECRET_KEY": "",
        "C2METER_WORKER": "off",
        "C2METER_CLOCK": "fault_app:shifted_clock",
        "C2METER_ALERT_WEBHOOK_URL": f"http://127.0.0.1:{receiver.port}/",
        "C2METER_ALERT_WEBHOOK_SECRET": SECRET,
        "C2METER_ALERT_WEBHOOK_ALLOW_LOOPBACK": "true",
    }


@pytest.fixture
def ledger(
    new_rig: Callable[..., Rig],
    stripe: StripeEmulator,
    settings: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Rig:
    """The app of this process, with the same settings."""
    monkeypatch.setenv("FAULT_DIR", str(tmp_path))
    return new_rig(stripe, **settings)


def act(children: Children, settings: dict[str, str], name: str, **arguments: Any) -> Any:
    """What a function of ``fault_alerts`` returns, in a process of its own."""
    code, output = children.run(
        "fault_alerts", name, json.dumps(arguments), env=settings, timeout_s=500
    )
    assert code == 0, output
    return json.loads(output.splitlines()[-1])


def fill(ledger: Rig, customers: list[str], value: int) -> None:
    """Each of *customers*, on the plan, has used *value*."""
    with ledger.store.writing() as connection:
        for name in customers:
            customer = Customer(name, plan="starter")
            ledger.metering.record(
                VERIFY, customer, value=value, connection=connection, manifest_id="m"
            )


def alerts(ledger: Rig) -> dict[tuple[str, str], int]:
    """(customer, level) -> how many were raised."""
    rows = sql(ledger.folder, "SELECT customer, level, COUNT(*) FROM alerts GROUP BY 1, 2")
    return {(customer, level): number for customer, level, number in rows}


def identifiers(ledger: Rig) -> list[str]:
    return sorted(each for (each,) in sql(ledger.folder, "SELECT identifier FROM alerts"))


def posted(receiver: Receiver) -> list[str]:
    return sorted(h["webhook-id"].removeprefix("alert_") for h in receiver.headers)


def unsettled(ledger: Rig) -> list[tuple[str, str, str]]:
    """Customer, channel and state of what is not delivered."""
    return sql(
        ledger.folder,
        "SELECT a.customer, d.channel, d.state FROM alert_deliveries d "
        "JOIN alerts a ON a.id = d.alert WHERE d.state <> 'delivered' ORDER BY 1, 2",
    )


@pytest.mark.parametrize(
    "number", [40, pytest.param(1000, marks=[pytest.mark.long, pytest.mark.timeout(900)])]
)
def test_case_27_concurrent_crossings_raise_and_announce_one_alert_per_level(
    ledger: Rig,
    children: Children,
    settings: dict[str, str],
    receiver: Receiver,
    tmp_path: Path,
    number: int,
) -> None:
    steady = [f"cus_{n:04d}" for n in range(number)]
    jumping = [f"cus_jumps_{n:04d}" for n in range(number)]
    fill(ledger, steady, 15)
    fill(ledger, jumping, 0)

    # Four processes take each customer one by one from 15 to 23, all of them at the same time.
    codes = act(
        children,
        settings,
        "record_together",
        customers=steady,
        value=1,
        times=2,
        processes=4,
    )
    assert codes == [0] * 4
    each_level_once = {(customer, level): 1 for customer in steady for level in LEVELS}
    assert alerts(ledger) == each_level_once

    # A jump from 0, 10 at a time: the second one reaches 20.
    codes = act(
        children,
        settings,
        "record_together",
        customers=jumping,
        value=10,
        times=1,
        processes=4,
    )
    assert codes == [0] * 4
    only_the_highest = {(customer, "exceeded"): 1 for customer in jumping}
    assert alerts(ledger) == each_level_once | only_the_highest

    # Restarted: nothing is remembered but what is in the ledger.
    codes = act(
        children,
        settings,
        "record_together",
        customers=steady + jumping,
        value=1,
        times=1,
        processes=4,
    )
    assert codes == [0] * 4
    assert alerts(ledger) == each_level_once | only_the_highest

    heard = tmp_path / "heard"
    codes = act(
        children,
        settings,
        "announce_together",
        heard=str(heard),
        processes=4,
        rounds=2,
    )
    assert codes == [0] * 8
    assert unsettled(ledger) == []
    assert len(identifiers(ledger)) == 4 * number
    assert sorted(heard.read_text().split()) == posted(receiver) == identifiers(ledger)
    assert list(ledger.store.verify()) == []


def test_two_workers_announce_each_alert_once_between_them(
    ledger: Rig, children: Children, settings: dict[str, str], receiver: Receiver
) -> None:
    workers = [children.worker(settings) for _ in range(2)]
    fill(ledger, [f"cus_{n}" for n in range(40)], 25)
    until(lambda: identifiers(ledger) and unsettled(ledger) == [], 30)
    assert posted(receiver) == identifiers(ledger)
    for worker in workers:
        children.await_readiness(worker)
        worker.terminate()
        assert worker.wait(10) == 0


def test_a_worker_killed_between_sending_and_noting_is_the_only_way_to_a_second_one(
    ledger: Rig,
    children: Children,
    settings: dict[str, str],
    receiver: Receiver,
    tmp_path: Path,
) -> None:
    fill(ledger, ["cus_0", "cus_1", "cus_2"], 25)
    first = children.worker(settings)

    def kill_before_answering(body: bytes) -> None:
        receiver.on_request = len
        os.kill(first.pid, 9)
        first.wait(10)

    receiver.on_request = kill_before_answering
    until(lambda: first.poll() is not None, 20)

    second = children.worker(settings)
    until(lambda: len(posted(receiver)) == 3, 20)
    interrupted = receiver.headers[0]["webhook-id"]
    assert len(set(posted(receiver))) == 3, "the others wait for nobody's lease"
    (tmp_path / "clock").write_text("61")
    until(lambda: unsettled(ledger) == [], 20)
    times = Counter(headers["webhook-id"] for headers in receiver.headers)
    assert times.pop(interrupted) == 2
    assert set(times.values()) == {1}
    second.terminate()
    assert second.wait(10) == 0


def test_an_alert_that_ends_its_process_ends_few_and_takes_no_other_with_it(
    ledger: Rig,
    children: Children,
    settings: dict[str, str],
    receiver: Receiver,
    tmp_path: Path,
) -> None:
    fill(ledger, ["cus_poison", "cus_1", "cus_2"], 25)
    heard = tmp_path / "heard"

    codes = act(
        children,
        settings,
        "announce_until_it_ends_nobody",
        poison="cus_poison",
        heard=str(heard),
        shifts_s=[1, 2, 62, *range(120, 7200, 300), *range(7200, 26 * 3600, 1800)],
    )

    assert set(codes) == {0, 77}
    assert codes[:3] == [77, 0, 77], "what is not due ends nobody, what was abandoned is due again"
    assert codes.count(77) <= 50
    assert unsettled(ledger) == [("cus_poison", "signal", "dead")]
    assert sql(ledger.folder, "SELECT reason FROM alert_deliveries WHERE state = 'dead'") == [
        ("interrupted",)
    ]
    assert len(heard.read_text().split()) == 2
    assert posted(receiver) == identifiers(ledger)
    assert ledger.metering.status()["problems"] == ["1 alerts could not be announced by signal"]
