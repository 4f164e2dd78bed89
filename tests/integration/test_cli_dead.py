"""``flask c2meter dead ...`` and ``adjust``: what an operator sees, decides and is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from cli_rig import delivering, run
from flask_host import Host

from flask_c2meter.emulator import StripeEmulator
from flask_c2meter.testing import FrozenClock


@pytest.fixture
def host(
    new_host: Callable[..., Host], stripe_emulator: StripeEmulator, c2meter_clock: FrozenClock
) -> Host:
    return delivering(new_host, stripe_emulator, c2meter_clock)


@pytest.fixture
def dead(host: Host, stripe_emulator: StripeEmulator) -> str:
    """The identifier of a dead shipment of cus_1's."""
    stripe_emulator.fail(400, path="*meter_events", code="payload_invalid_value", message="no")
    host.metering.record("sign_operations", "cus_1", value=3, key="k-1", manifest_id="m-1")
    assert run(host, "worker", "--once").exit_code == 0
    (shipment,) = host.metering.store.shipments("dead")
    return shipment.identifier


class TestList:
    def test_names_customer_meter_and_reason(self, host: Host, dead: str) -> None:
        result = run(host, "dead", "list")
        assert result.exit_code == 0
        head, line = result.output.splitlines()
        assert head.split()[:4] == ["identifier", "customer", "meter", "value"]
        assert line.split()[:4] == [dead, "cus_1", "sign_operations", "3"]
        assert "invalid: payload_invalid_value" in line

    def test_as_json_lines(self, host: Host, dead: str) -> None:
        (line,) = run(host, "dead", "list", "--json").output.splitlines()
        assert json.loads(line) == {
            "identifier": dead,
            "customer": "cus_1",
            "meter": "sign_operations",
            "value": "3",
            "happened_at": "2026-01-15T12:00:00+00:00",
            "period_start": "2026-01-01T00:00:00+00:00",
            "dead_since": "2026-01-15T12:00:00+00:00",
            "attempts": 1,
            "reason": "invalid: payload_invalid_value",
        }

    def test_of_an_empty_ledger(self, host: Host) -> None:
        result = run(host, "dead", "list")
        assert (result.exit_code, result.output) == (0, "nothing is dead\n")
        assert run(host, "dead", "list", "--json").output == ""

    def test_is_bounded_and_says_so(
        self,
        host: Host,
        stripe_emulator: StripeEmulator,
    ) -> None:
        stripe_emulator.fail(400, path="*meter_events", times=3, code="x", message="no")
        for number in range(3):
            host.metering.record("sign_operations", f"cus_{number}", manifest_id="m")
        run(host, "worker", "--once")
        result = run(host, "dead", "list", "--limit", "2")
        assert len(result.output.splitlines()) == 1 + 2 + 1
        assert "the first 2; more with --limit" in result.output

    def test_in_a_filter_only_a_reason_that_exists(self, host: Host) -> None:
        assert run(host, "dead", "list", "--cause", "nonsense").exit_code == 2


class TestShow:
    def test_down_to_the_operations(self, host: Host, dead: str) -> None:
        result = run(host, "dead", "show", dead)
        assert result.exit_code == 0
        assert "reason         invalid: payload_invalid_value" in result.output
        assert "12:00:00  3  key k-1  request -" in result.output

    def test_what_is_not_there(self, host: Host) -> None:
        result = run(host, "dead", "show", "nothing")
        assert result.exit_code == 1
        assert "there is no such dead shipment" in result.output


class TestReplay:
    def test_without_identifiers_all_are_delivered(
        self,
        host: Host,
        dead: str,
        stripe_emulator: StripeEmulator,
    ) -> None:
        result = run(host, "dead", "replay", "--reason", "price mended")
        assert (result.exit_code, result.output) == (0, "1 replayed, 0 refused\n")
        run(host, "worker", "--once")
        assert stripe_emulator.meter_total("sign_operations", "cus_1") == 3
        assert run(host, "status").exit_code == 0
        assert run(host, "verify").exit_code == 0
        assert run(host, "dead", "list").output == "nothing is dead\n"

    def test_without_a_reason_nothing_happens(self, host: Host, dead: str) -> None:
        for decide in ("replay", "discard"):
            result = run(host, "dead", decide, dead)
            assert result.exit_code == 2
            assert "--reason" in result.output
            assert run(host, "dead", decide, dead, "--reason", "").exit_code == 2
        assert len(host.metering.store.shipments("dead")) == 1

    def test_what_stripe_takes_no_more_is_refused_with_the_cure(
        self,
        host: Host,
        dead: str,
        c2meter_clock: FrozenClock,
    ) -> None:
        c2meter_clock.advance(timedelta(days=36))
        result = run(host, "dead", "replay", "--reason", "once more")
        assert result.exit_code == 1
        assert f"{dead}: it is expired" in result.output
        assert "bill it by hand" in result.output
        assert "0 replayed, 1 refused" in result.output

    def test_what_is_not_there_is_refused(self, host: Host) -> None:
        result = run(host, "dead", "replay", "nothing", "--reason", "x")
        assert result.exit_code == 1
        assert "nothing: there is no such dead shipment" in result.output

    def test_of_nothing(self, host: Host) -> None:
        result = run(host, "dead", "replay", "--reason", "x")
        assert (result.exit_code, result.output) == (0, "0 replayed, 0 refused\n")

    def test_what_may_be_at_stripe_comes_with_a_warning(
        self,
        host: Host,
        dead: str,
    ) -> None:
        with host.metering.store.writing() as connection:
            connection.exec_driver_sql("UPDATE shipments SET reason = 'ambiguous'")
        result = run(host, "dead", "replay", "--cause", "ambiguous", "--reason", "asked Stripe")
        assert result.exit_code == 0
        assert "1 of them may be at Stripe already" in result.output


class TestDiscard:
    def test_is_never_sent(
        self,
        host: Host,
        dead: str,
        stripe_emulator: StripeEmulator,
    ) -> None:
        result = run(host, "dead", "discard", dead, "--reason", "a test", "--by", "ann")
        assert (result.exit_code, result.output) == (0, "1 discarded, 0 refused\n")
        run(host, "worker", "--once")
        assert stripe_emulator.events == []
        assert run(host, "status").exit_code == 0

    def test_everything_only_when_asked_for(self, host: Host, dead: str) -> None:
        assert run(host, "dead", "discard", "--reason", "x").exit_code == 2
        assert run(host, "dead", "discard", dead, "--meter", "m", "--reason", "x").exit_code == 2
        assert run(host, "dead", "discard", "--all", "--reason", "x").exit_code == 0
        assert host.metering.store.shipments("dead") == []


class TestAdjust:
    def test_voids_and_stripe_is_told(
        self,
        host: Host,
        stripe_emulator: StripeEmulator,
    ) -> None:
        host.metering.record("sign_operations", "cus_1", value=3, key="k-1", manifest_id="m-1")
        host.metering.record("sign_operations", "cus_1", value=4, key="k-2", manifest_id="m-1")
        run(host, "worker", "--once")
        command = ("adjust", "cus_1", "sign_operations", "k-1", "--reason", "a test", "--by", "ann")
        result = run(host, *command)
        assert result.exit_code == 0
        assert result.output == (
            "voided 3 sign of cus_1, of 2026-01-15 12:00:00 UTC; its period now has 4\n"
        )
        run(host, "worker", "--once")
        assert stripe_emulator.meter_total("sign_operations", "cus_1") == 4
        again = run(host, *command)
        assert (again.exit_code, again.output) == (
            0,
            "already voided on 2026-01-15 12:00:00 UTC: a test\n",
        )
        with host.metering.store.reading() as connection:
            rows = connection.exec_driver_sql("SELECT who, what, why FROM audit").all()
        assert [tuple(row) for row in rows] == [
            ("ann", "adjust cus_1 sign_operations k-1", "a test")
        ]

    def test_of_what_is_not_there(self, host: Host) -> None:
        result = run(host, "adjust", "cus_1", "sign_operations", "nothing", "--reason", "x")
        assert result.exit_code == 1
        assert "has no sign_operations event with key 'nothing'" in result.output
        assert run(host, "adjust", "cus_1", "signs", "k", "--reason", "x").exit_code == 2
        assert run(host, "adjust", "cus_1", "sign_operations", "k").exit_code == 2

    def test_says_when_stripe_will_not_take_the_correction(
        self,
        host: Host,
        c2meter_clock: FrozenClock,
    ) -> None:
        host.metering.record("sign_operations", "cus_1", value=3, key="k-1", manifest_id="m-1")
        c2meter_clock.advance(timedelta(days=36))
        result = run(host, "adjust", "cus_1", "sign_operations", "k-1", "--reason", "x")
        assert result.exit_code == 0
        assert "Stripe takes no correction" in result.output


@pytest.mark.parametrize(
    "command",
    [
        ("dead", "list"),
        ("dead", "show", "x"),
        ("dead", "replay", "--reason", "x"),
        ("dead", "discard", "--all", "--reason", "x"),
        ("adjust", "cus_1", "sign_operations", "k", "--reason", "x"),
        ("verify",),
    ],
)
def test_without_a_database_there_is_one_clear_line(
    new_host: Callable[..., Host], command: tuple[str, ...], tmp_path: Path
) -> None:
    place = tmp_path / "file"
    place.write_text("where a folder is needed")
    result = run(new_host(C2METER_DATABASE_URL=f"sqlite:///{place}/c2meter.sqlite"), *command)
    assert result.exit_code == 1
    assert len(result.output.splitlines()) == 1
    assert "Traceback" not in result.output
