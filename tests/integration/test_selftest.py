"""``flask c2meter selftest``: to Stripe's summary and back, and what may go wrong on the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from flask_host import Host
from provision_rig import CATALOGUE, catalogue
from sqlalchemy import select

from flask_c2meter.emulator import StripeEmulator
from flask_c2meter.provisioner import Provisioner
from flask_c2meter.selftest import SelfTest
from flask_c2meter.store.tables import audit

NewHost = Callable[..., Host]
BILLABLE = ["verify", "storage", "sites"]


@pytest.fixture
def stripe_emulator() -> Any:
    with StripeEmulator(auto_meters=False, known_customers_only=True) as stripe:
        yield stripe


@pytest.fixture
def app(new_host: NewHost, stripe_emulator: StripeEmulator, tmp_path: Path) -> Callable[..., Host]:
    """Makes apps as several processes have them: of one ledger, at a Stripe that is set up."""

    def make(content: dict[str, Any] | None = CATALOGUE, **more: Any) -> Host:
        settings: dict[str, Any] = {
            "C2METER_STRIPE_SECRET_KEY": "sk_test_1",
            "C2METER_STRIPE_BASE_URL": stripe_emulator.url,
            "C2METER_DATABASE_URL": f"sqlite:///{tmp_path}/ledger.db",
            "C2METER_CATALOGUE": content,
            "C2METER_WORKER": "off",
        }
        host = new_host(**settings | more)
        if host.metering.gateway is not None:
            provisioner = Provisioner(host.metering.gateway, host.metering.catalogue)
            provisioner.apply(provisioner.plan())
        return host

    return make


def run(host: Host, *arguments: str) -> Result:
    return host.app.test_cli_runner().invoke(
        args=["c2meter", "selftest", "--timeout", "20", *arguments]
    )


def trials(host: Host, *arguments: str) -> dict[str, dict[str, Any]]:
    result = run(host, "--json", *arguments)
    document = json.loads(result.output)
    assert (result.exit_code == 0) is document["passed"]
    return {row["meter"]: row for row in document["meters"]}


def test_every_billable_meter_goes_there_and_back(
    app: Callable[..., Host], stripe_emulator: StripeEmulator
) -> None:
    host = app()
    result = run(host)
    assert result.exit_code == 0
    lines = result.output.splitlines()
    (customer,) = {each.customer for each in stripe_emulator.events}
    assert lines[0] == f"Stripe: 127.0.0.1 test, customer {customer}"
    assert [line.split()[0] for line in lines[3:6]] == BILLABLE
    assert all(line.endswith("passed") for line in lines[3:6])
    assert lines[-1] == "3 of 3 meters pass."
    for meter in BILLABLE:
        assert stripe_emulator.meter_total(meter, customer) == 0
    assert {used.total for used in host.metering.usage(customer)} == {0}
    assert list(host.metering.store.verify()) == []
    assert not host.metering.worker.is_running, "it has ended with the test"


def test_it_can_be_repeated_with_the_same_customer(
    app: Callable[..., Host], stripe_emulator: StripeEmulator
) -> None:
    assert [run(app()).exit_code for _ in range(3)] == [0, 0, 0]
    assert len({each.customer for each in stripe_emulator.events}) == 1
    made = [r for r in stripe_emulator.requests if (r.method, r.path) == ("POST", "/v1/customers")]
    assert len(made) == 1


def test_a_deleted_customer_is_replaced(
    app: Callable[..., Host], stripe_emulator: StripeEmulator
) -> None:
    run(app())
    (first,) = {each.customer for each in stripe_emulator.events}
    stripe_emulator.delete_customer(first)
    assert run(app()).exit_code == 0
    assert len({each.customer for each in stripe_emulator.events}) == 2


def test_what_was_done_stays_in_the_books(app: Callable[..., Host]) -> None:
    host = app()
    rows = trials(host)
    for meter in BILLABLE:
        (event, adjustment) = host.events(meter)
        assert event.key == rows[meter]["key"]
        assert (adjustment.kind, adjustment.key) == ("adjustment", f"adjust:{event.key}")
    with host.metering.store.reading() as connection:
        what = [row.what.split()[0] for row in connection.execute(select(audit))]
    assert what == ["selftest", *["adjust"] * 3]


def test_a_worker_that_runs_already_delivers(
    app: Callable[..., Host], stripe_emulator: StripeEmulator
) -> None:
    host = app()
    usage, other = host.metering, app().metering
    other.worker.start()
    try:
        while not usage.status()["workers"]:
            threading.Event().wait(0.01)
        assert run(host).exit_code == 0
        assert not usage.worker.is_running
    finally:
        other.worker.stop()


def test_stripe_adds_up_later_than_it_answers(app: Callable[..., Host]) -> None:
    with StripeEmulator(aggregation_delay=timedelta(seconds=1.5)) as slow:
        host = app(C2METER_STRIPE_BASE_URL=slow.url)
        for row in trials(host).values():
            assert row["passed"]
            assert row["shown_s"] - row["delivered_s"] > 1
            assert row["taken_back_s"] - row["shown_s"] > 1


class TestFailures:
    def test_a_meter_that_is_not_at_stripe(
        self, app: Callable[..., Host], stripe_emulator: StripeEmulator
    ) -> None:
        host = app()
        stripe_emulator.forget()
        app(without("storage"))
        rows = trials(host)
        assert rows["storage"]["failure"] == (
            "not at Stripe: flask c2meter provision --apply makes it"
        )
        assert rows["verify"]["passed"] and rows["sites"]["passed"], "the others are tried"
        assert host.events("storage") == []

    def test_a_refused_shipment(
        self, app: Callable[..., Host], stripe_emulator: StripeEmulator
    ) -> None:
        host = app()
        stripe_emulator.fail(
            400,
            times=None,
            path="/v1/billing/meter_events",
            message="Invalid value",
            match=lambda request: request.params["event_name"] == "sites",
        )
        result = run(host)
        assert result.exit_code == 1
        lines = result.output.splitlines()
        (failed,) = [line for line in lines if line.startswith("! ")]
        assert failed.startswith("! sites: refused (invalid")
        assert lines[-1] == "2 of 3 meters pass."

    def test_deliveries_that_are_held(
        self, app: Callable[..., Host], stripe_emulator: StripeEmulator
    ) -> None:
        host = app()
        stripe_emulator.fail(403, times=None, path="/v1/billing/meter_events")
        rows = trials(host, "--timeout", "4")
        for row in rows.values():
            assert row["failure"].startswith("not delivered after 4 s: all is held, 403")
        assert all(used.total == 0 for used in host.metering.usage(host.events()[0].customer))

    def test_deliveries_of_one_meter_that_are_held(
        self, app: Callable[..., Host], stripe_emulator: StripeEmulator
    ) -> None:
        host = app()
        stripe_emulator.fail(
            400,
            times=None,
            path="/v1/billing/meter_events",
            code="archived_meter",
            match=lambda request: request.params["event_name"] == "sites",
        )
        rows = trials(host, "--timeout", "4")
        assert rows["sites"]["failure"] == "not delivered after 4 s: it is held, archived_meter"
        assert rows["verify"]["passed"] and rows["storage"]["passed"]

    def test_summaries_that_never_come(self, app: Callable[..., Host]) -> None:
        with StripeEmulator(aggregation_delay=timedelta(hours=1)) as slow:
            host = app(C2METER_STRIPE_BASE_URL=slow.url)
            for row in trials(host, "--timeout", "4").values():
                assert row["failure"] == (
                    "not shown by Stripe after 4 s; it may take longer: --timeout"
                )
                assert row["delivered_s"] is not None
            (customer,) = {each.customer for each in slow.events}
            assert {slow.meter_total(meter, customer) for meter in BILLABLE} == {0}

    def test_a_property_that_no_sample_fits(self, app: Callable[..., Host]) -> None:
        content = catalogue()
        content["meters"]["verify"]["properties"] = {
            "serial": {"type": "string", "pattern": "Q[0-9]{7}", "required": True}
        }
        host = app(content)
        rows = trials(host)
        assert "--property serial=" in rows["verify"]["failure"]
        assert rows["sites"]["passed"]
        assert trials(app(content), "--property", "serial=Q0000001")["verify"]["passed"]

    def test_reads_that_fail_now_and_then(
        self, app: Callable[..., Host], stripe_emulator: StripeEmulator
    ) -> None:
        host = app()
        seen: list[str] = []

        def after_the_first(request: Any) -> bool:
            seen.append(request.path)
            return len(seen) > 3  # before anything is recorded it must work

        stripe_emulator.fail(
            503, times=4, path="/v1/billing/meters/*/event_summaries", match=after_the_first
        )
        assert run(host).exit_code == 0
        assert stripe_emulator.faults == []


def without(meter: str) -> dict[str, Any]:
    content = catalogue()
    del content["meters"][meter]
    return content


class TestCustomers:
    def test_one_with_usage_of_its_own_is_refused(
        self, app: Callable[..., Host], stripe_emulator: StripeEmulator
    ) -> None:
        stripe_emulator.add_customer("cus_real")
        host = app()
        host.metering.record("verify", "cus_real")
        result = run(host, "--customer", "cus_real")
        assert result.exit_code == 2
        assert result.output == "--customer: cus_real has usage of its own: take another\n"
        assert len(host.events()) == 1

    def test_one_that_stripe_does_not_know(self, app: Callable[..., Host]) -> None:
        result = run(app(), "--customer", "cus_nobody")
        assert (result.exit_code, result.output) == (
            2,
            "--customer: Stripe knows no cus_nobody\n",
        )

    def test_one_of_the_operators_choice(
        self, app: Callable[..., Host], stripe_emulator: StripeEmulator
    ) -> None:
        stripe_emulator.add_customer("cus_test")
        assert run(app(), "--customer", "cus_test").exit_code == 0
        assert {each.customer for each in stripe_emulator.events} == {"cus_test"}


class TestLiveMode:
    def live(self, app: Callable[..., Host]) -> Host:
        return app(C2METER_STRIPE_SECRET_KEY="sk_live_1")

    def test_it_takes_a_word(
        self, app: Callable[..., Host], stripe_emulator: StripeEmulator
    ) -> None:
        host = self.live(app)
        result = run(host)
        assert (result.exit_code, "add --live" in result.output) == (1, True)
        assert stripe_emulator.events == []
        assert run(host, "--live").exit_code == 0

    def test_a_customer_who_is_billed_is_refused(
        self, app: Callable[..., Host], stripe_emulator: StripeEmulator
    ) -> None:
        host = self.live(app)
        stripe_emulator.add_subscription("cus_billed", ["starter_verify"], id="sub_1")
        result = run(host, "--live", "--customer", "cus_billed")
        assert result.output == "--customer: cus_billed is billed by sub_1\n"
        assert stripe_emulator.events == []


class TestTrouble:
    def test_no_key(self, new_host: NewHost) -> None:
        result = run(new_host())
        assert (result.exit_code, result.output.startswith("Error: no Stripe key")) == (1, True)

    def test_no_stripe(self, app: Callable[..., Host], stripe_emulator: StripeEmulator) -> None:
        host = app()
        stripe_emulator.stop()
        result = run(host)
        assert (result.exit_code, result.output) == (
            1,
            "Stripe could not be read: no_connection\n",
        )

    def test_another_account(self, app: Callable[..., Host]) -> None:
        host = app()
        host.metering.store.note("account", "api.stripe.com live")
        result = run(host)
        assert result.exit_code == 1
        assert result.output.startswith("Error: this ledger delivers to api.stripe.com live")

    def test_no_database(
        self, app: Callable[..., Host], tmp_path: Any, stripe_emulator: StripeEmulator
    ) -> None:
        (tmp_path / "file").write_text("in the way")
        result = run(app(C2METER_DATABASE_URL=f"sqlite:///{tmp_path}/file/ledger.db"))
        assert (result.exit_code, "Traceback" in result.output) == (1, False)
        assert len(result.output.splitlines()) == 1
        assert stripe_emulator.events == []

    def test_an_interrupt_still_takes_everything_back(
        self, app: Callable[..., Host], stripe_emulator: StripeEmulator
    ) -> None:
        host = app()
        usage = host.metering
        stripe_emulator.add_customer("cus_test")

        def interrupt(words: str) -> None:
            raise KeyboardInterrupt

        assert usage.gateway is not None
        test = SelfTest(usage, usage.gateway, "cus_test", "me", tell=interrupt)
        before = set(threading.enumerate())
        with pytest.raises(KeyboardInterrupt):
            test.run()
        for thread in set(threading.enumerate()) - before:
            thread.join(20)  # its last attempt may still be under way
        assert {used.total for used in usage.usage("cus_test")} == {0}
        usage.worker.run_once(patience_s=20)  # it may have been cut off
        assert stripe_emulator.meter_total("verify", "cus_test") == 0

    def test_a_process_that_is_ended_takes_everything_back(
        self, app: Callable[..., Host], tmp_path: Path
    ) -> None:
        """A real process, while it waits for a summary that does not come."""
        (tmp_path / "testee.py").write_text(
            "from flask import Flask\n"
            "from flask_c2meter import C2Meter\n"
            f"app = Flask('testee', instance_path={str(tmp_path)!r})\n"
            "app.config.from_prefixed_env()\n"
            "C2Meter(app)\n"
        )
        with StripeEmulator(aggregation_delay=timedelta(hours=1)) as slow:
            environ = {
                "FLASK_C2METER_STRIPE_SECRET_KEY": "sk_test_1",
                "FLASK_C2METER_STRIPE_BASE_URL": slow.url,
                "FLASK_C2METER_DATABASE_URL": f"sqlite:///{tmp_path}/ledger.db",
            }
            host = app(None, C2METER_STRIPE_BASE_URL=slow.url)
            process = subprocess.Popen(
                [sys.executable, "-m", "flask", "--app", "testee", "c2meter", "selftest"],
                cwd=tmp_path,
                env=os.environ | environ,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            assert slow.wait_for(4, timeout=60)
            process.terminate()
            output, _ = process.communicate(timeout=30)
            assert process.returncode == 1
            assert "Traceback" not in output
            (customer,) = {each.customer for each in slow.events}
            assert {used.total for used in host.metering.usage(customer)} == {0}


def test_a_catalogue_with_nothing_to_bill(app: Callable[..., Host]) -> None:
    content = catalogue()
    content["meters"] = {"calls": content["meters"]["calls"]}
    result = run(app(content))
    assert (result.exit_code, result.output.splitlines()[-1]) == (0, "Nothing is billable.")


def test_the_packaged_catalogue_passes(app: Callable[..., Host]) -> None:
    assert all(row["passed"] for row in trials(app(None)).values())


def test_help_names_the_exit_codes(app: Callable[..., Host]) -> None:
    output = " ".join(run(app(), "--help").output.split())
    assert "Exit codes: 0 all meters pass; 1 one fails" in output
