"""``flask c2meter status``: where all usage is, and what needs attention."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from flask_host import Host, wait_until

from flask_c2meter import Customer
from flask_c2meter.emulator import StripeEmulator
from flask_c2meter.model import to_ms
from flask_c2meter.testing import FrozenClock

STATES = ("unshipped", "in_flight", "delivered", "in_doubt", "dead", "discarded")


@pytest.fixture
def host(
    new_host: Callable[..., Host], stripe_emulator: StripeEmulator, c2meter_clock: FrozenClock
) -> Host:
    """Delivers to the emulator when told to."""
    return new_host(
        C2METER_STRIPE_SECRET_KEY="sk_test_1",
        C2METER_STRIPE_BASE_URL=stripe_emulator.url,
        C2METER_WORKER="off",
        C2METER_CLOCK=c2meter_clock,
    )


def status(host: Host) -> dict[str, Any]:
    result = host.app.test_cli_runner().invoke(args=["c2meter", "status", "--json"])
    report: dict[str, Any] = json.loads(result.output)
    assert result.exit_code == (0 if report["healthy"] else 1)
    return report


def deliver(host: Host) -> None:
    assert host.app.test_cli_runner().invoke(args=["c2meter", "worker", "--once"]).exit_code == 0


def test_a_fresh_ledger_is_healthy(host: Host) -> None:
    report = status(host)
    assert report["healthy"]
    assert report["problems"] == []
    assert report["account"] is None
    assert report["breaker"] == "closed"
    assert report["durability"] == "full"
    assert report["workers"] == []
    assert report["spill"] == {"pending": 0, "corrupt": 0}
    assert report["dropped"] == {}
    assert set(report["meters"]) == set(host.metering.catalogue.meters)


def test_what_is_recorded_is_always_somewhere(host: Host, stripe_emulator: StripeEmulator) -> None:
    def check(**where: str) -> None:
        row = status(host)["meters"]["storage_gb"]
        assert row["recorded"] == "1.500"
        assert {state: row[state] for state in STATES} == {
            **dict.fromkeys(STATES, "0.000"),
            **where,
        }

    host.metering.record("storage_gb", "cus_1", value="1.5")
    check(unshipped="1.500")

    stripe_emulator.fail(429, path="*meter_events", retry_after=3000)
    deliver(host)
    check(in_flight="1.500")


def test_what_stripe_has_taken_is_delivered(host: Host, c2meter_clock: FrozenClock) -> None:
    host.metering.record("sign_operations", "cus_1", value=3, manifest_id="m-1")
    c2meter_clock.advance(timedelta(seconds=2))
    deliver(host)
    report = status(host)
    assert report["meters"]["sign_operations"]["delivered"] == "3"
    assert report["account"] is not None
    assert report["oldest_unshipped_age_s"] is None
    assert report["targets"]["event_latency_s"] == {
        "p50": "2.000",
        "p99": "2.000",
        "max": "2.000",
        "share_within_target": "1.00000",
    }
    assert float(report["targets"]["success_rate"]) == 1


def test_the_four_targets_are_measured_from_the_store(
    host: Host, new_host: Callable[..., Host], c2meter_clock: FrozenClock
) -> None:
    nothing = {"p50": None, "p99": None, "max": None, "share_within_target": None}
    before = status(host)["targets"]
    assert before["event_latency_s"] == before["alert_timeliness_s"] == nothing
    assert before["success_rate"] is before["billing_accuracy"] is None
    assert set(before["met"].values()) == {None}

    for wait_s in (1, 7):
        host.metering.record(
            "sign_operations", Customer("cus_1", plan="starter"), value=450, manifest_id="m-1"
        )
        c2meter_clock.advance(timedelta(seconds=wait_s))
        deliver(host)
    host.metering.store.note("reconciled", {"accuracy": "0.99", "at": "1970-01-01T00:00:00Z"})

    another = new_host(
        C2METER_DATABASE_URL=host.metering.config.database_url, C2METER_CLOCK=c2meter_clock
    )
    after = status(another)["targets"]
    assert after["event_latency_s"] == {
        "p50": "1.000",
        "p99": "7.000",
        "max": "7.000",
        "share_within_target": "0.50000",
    }
    assert after["success_rate"] == "1.00000"
    assert after["billing_accuracy"] == "0.99"
    assert after["billing_accuracy_at"] == "1970-01-01T00:00:00+00:00"
    assert after["alert_timeliness_s"]["max"] == "1.000"
    assert after["met"] == {
        "event_latency": False,
        "success_rate": True,
        "billing_accuracy": False,
        "alert_timeliness": True,
    }


def test_the_targets_are_printed_with_what_they_should_be(
    host: Host, c2meter_clock: FrozenClock
) -> None:
    def printed() -> str:
        return host.app.test_cli_runner().invoke(args=["c2meter", "status"]).output

    assert "accuracy   never reconciled (target: 100 %): -" in printed()
    host.metering.record("sign_operations", "cus_1", manifest_id="m-1")
    c2meter_clock.advance(timedelta(seconds=6))
    deliver(host)
    expected = (
        "latency    p50 6.000 s, p99 6.000 s, 0.000 % in time (target: p99 below 5 s): MISSED"
    )
    assert expected in printed()
    assert "success    100.000 % (target: above 99.9 %): met" in printed()
    c2meter_clock.advance(timedelta(days=2))
    assert "latency    nothing yet (target: p99 below 5 s): -" in printed()


def test_what_stripe_refuses_is_a_problem(host: Host, stripe_emulator: StripeEmulator) -> None:
    stripe_emulator.fail(400, path="*meter_events", code="payload_invalid_value", message="no")
    host.metering.record("sign_operations", "cus_1", manifest_id="m-1")
    deliver(host)
    report = status(host)
    assert report["meters"]["sign_operations"]["dead"] == "1"
    assert report["problems"] == ["sign_operations: 1 dead shipments wait for a decision"]
    assert float(report["targets"]["success_rate"]) == 0


def test_a_refused_key_holds_everything_and_says_so(
    host: Host, stripe_emulator: StripeEmulator
) -> None:
    stripe_emulator.accept_keys(["sk_test_other"])
    host.metering.record("sign_operations", "cus_1", manifest_id="m-1")
    deliver(host)
    report = status(host)
    assert [hold["meter"] for hold in report["paused"]] == ["*"]
    assert report["problems"][0].startswith("everything is held: ")
    assert report["meters"]["sign_operations"]["dead"] == "0"


def test_a_backlog_of_a_week_is_a_problem(host: Host, c2meter_clock: FrozenClock) -> None:
    host.metering.record("sign_operations", "cus_1", manifest_id="m-1")
    c2meter_clock.advance(timedelta(days=6, hours=23))
    assert status(host)["healthy"]
    c2meter_clock.advance(timedelta(hours=2))
    report = status(host)
    assert report["problems"] == ["the oldest undelivered event is 7 days old"]
    assert report["oldest_unshipped_age_s"] >= 7 * 86_400


def test_what_is_not_meant_to_be_delivered_is_no_backlog(
    new_host: Callable[..., Host], c2meter_clock: FrozenClock
) -> None:
    ledger_only = new_host(C2METER_STRIPE_SECRET_KEY="", C2METER_CLOCK=c2meter_clock)
    ledger_only.metering.record("sign_operations", "cus_1", manifest_id="m-1")
    ledger_only.metering.record("api_calls", "cus_1")
    c2meter_clock.advance(timedelta(days=8))
    assert status(ledger_only)["healthy"]
    printed = ledger_only.app.test_cli_runner().invoke(args=["c2meter", "status"]).output
    (row,) = (line.split() for line in printed.splitlines() if line.startswith("api_calls"))
    assert row == ["api_calls", "1", "not", "sent", "0", "0", "0", "0", "0"]


def test_usage_that_waits_since_this_very_second_is_a_backlog_too(host: Host) -> None:
    host.metering.record("sign_operations", "cus_1", manifest_id="m-1")
    report = status(host)
    waiting = report["meters"]["sign_operations"]["oldest_unshipped_age_s"]
    assert report["oldest_unshipped_age_s"] == waiting == 0


def test_analytics_meters_are_never_a_backlog(host: Host, c2meter_clock: FrozenClock) -> None:
    host.metering.record("api_calls", "cus_1")
    c2meter_clock.advance(timedelta(days=30))
    report = status(host)
    assert report["healthy"]
    assert report["oldest_unshipped_age_s"] is None


def test_without_a_key_it_says_that_nothing_is_delivered(new_host: Callable[..., Host]) -> None:
    report = status(new_host())
    assert report["delivery"].startswith("off: no Stripe key")
    assert report["healthy"]


def test_a_running_worker_is_listed_with_its_pid(
    new_host: Callable[..., Host], stripe_emulator: StripeEmulator
) -> None:
    host = new_host(
        C2METER_STRIPE_SECRET_KEY="sk_test_1", C2METER_STRIPE_BASE_URL=stripe_emulator.url
    )
    host.metering.record("sign_operations", "cus_1", manifest_id="m-1")
    wait_until(lambda: bool(status(host)["workers"]))
    (worker,) = status(host)["workers"]
    assert worker["pid"] == os.getpid()


def test_a_worker_of_this_host_that_was_killed_is_not_listed(
    host: Host, c2meter_clock: FrozenClock
) -> None:
    says_who = "from flask_c2meter.owners import new_owner; print(new_owner())"
    ended = subprocess.run([sys.executable, "-c", says_who], stdout=subprocess.PIPE, text=True)
    owner = ended.stdout.strip()
    signed_on = {"pid": int(owner.split(":")[1]), "seen_ms": to_ms(c2meter_clock())}
    host.metering.store.note(f"worker:{owner}", signed_on)
    host.metering.store.note(f"worker:elsewhere.{owner}", signed_on)

    (listed,) = status(host)["workers"]
    assert listed["owner"] == f"elsewhere.{owner}"


def test_secrets_are_in_no_report(host: Host) -> None:
    result = host.app.test_cli_runner().invoke(args=["c2meter", "status", "--json"])
    assert "sk_test_1" not in result.output


@pytest.mark.parametrize("failure", ["refuse", "spill"])
def test_dropped_analytics_events_are_counted_and_the_count_outlives_the_process(
    new_host: Callable[..., Host], tmp_path: Path, failure: str
) -> None:
    (tmp_path / "store").write_text("where a folder is needed")
    host = new_host(
        C2METER_DATABASE_URL=f"sqlite:///{tmp_path}/store/c2meter.sqlite",
        C2METER_SPILL_PATH=str(tmp_path / "store" / "spill"),
        C2METER_ON_STORE_FAILURE=failure,
    )
    for meter in ("api_calls", "dashboard_views", "sign_operations"):
        host.route(lambda: "done", meter, f"/{meter}")
    client = host.client()
    answers = [client.get(f"/{meter}") for meter in ("api_calls", "api_calls", "dashboard_views")]
    assert [answer.status_code for answer in answers] == [200, 200, 200]
    refused = client.get("/sign_operations")
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")

    (tmp_path / "store").unlink()
    (tmp_path / "store").mkdir()
    # The store is left alone for a second after it has failed.
    wait_until(lambda: client.get("/sign_operations").status_code == 200)
    wait_until(lambda: client.get("/api_calls").text == "done" and status(host)["dropped"] != {})

    assert status(host)["dropped"] == {"api_calls": 2, "dashboard_views": 1}
    host.metering.store.close()
    another = new_host(C2METER_DATABASE_URL=host.metering.config.database_url)
    assert status(another)["dropped"] == {"api_calls": 2, "dashboard_views": 1}
    printed = another.app.test_cli_runner().invoke(args=["c2meter", "status"]).output
    assert "api_calls 2, dashboard_views 1" in printed


def test_a_store_that_cannot_be_read_is_a_problem_beside_the_rest(host: Host) -> None:
    Path(host.app.instance_path).mkdir(parents=True, exist_ok=True)
    Path(host.app.instance_path, "c2meter.sqlite").write_bytes(b"no database " * 400)
    report = status(host)
    assert report["problems"][0].startswith("the store cannot be read")
    assert report["spill"] == {"pending": 0, "corrupt": 0}
