"""What Prometheus reads: the same from every process, and only by those who may."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from http.client import HTTPConnection
from pathlib import Path

import pytest
from flask import Flask, request
from flask_host import Host, wait_until
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from flask_c2meter import C2Meter, Customer
from flask_c2meter.emulator import StripeEmulator
from flask_c2meter.metrics import CACHE_S, NAMES, Collector
from flask_c2meter.testing import FrozenClock

Samples = dict[tuple[str, tuple[str, ...]], float]


def parsed(text: str) -> Samples:
    """(sample's name, values of its labels in the order of their names) -> value."""
    return {
        (sample.name, tuple(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
def host(
    new_host: Callable[..., Host], stripe_emulator: StripeEmulator, c2meter_clock: FrozenClock
) -> Host:
    """Delivers to the emulator when told to; its metrics are public."""
    host = new_host(
        C2METER_STRIPE_SECRET_KEY="sk_test_1",
        C2METER_STRIPE_BASE_URL=stripe_emulator.url,
        C2METER_WORKER="off",
        C2METER_CLOCK=c2meter_clock,
    )
    host.app.register_blueprint(host.meter.metrics_blueprint(public=True))
    return host


def scrape(host: Host) -> Samples:
    """A fresh reading: what a process says that has not been asked yet."""
    registry = CollectorRegistry()
    registry.register(Collector(host.app))
    return parsed(generate_latest(registry).decode())


def sign(host: Host, value: int = 1, plan: str | None = None) -> None:
    customer = Customer("cus_1", plan=plan)
    host.metering.record("sign_operations", customer, value=value, manifest_id="m-1")


def deliver(host: Host) -> None:
    host.metering.worker.run_once()


class TestWhoMayRead:
    def test_without_an_auth_callback_it_refuses_to_register(
        self, new_host: Callable[..., Host]
    ) -> None:
        host = new_host()
        with pytest.raises(RuntimeError, match="metrics_auth"):
            host.app.register_blueprint(host.meter.metrics_blueprint())

    def test_without_a_meter_too(self) -> None:
        with pytest.raises(RuntimeError, match="init_app"):
            Flask("bare").register_blueprint(C2Meter().metrics_blueprint(public=True))

    @pytest.mark.parametrize("is_async", [False, True])
    def test_whoever_may_not_gets_401_and_no_number(
        self, new_host: Callable[..., Host], is_async: bool
    ) -> None:
        host = new_host()

        def may_scrape() -> bool:
            return request.headers.get("Authorization") == "Bearer right"

        async def may_scrape_soon() -> bool:
            return may_scrape()

        host.meter.metrics_auth(may_scrape_soon if is_async else may_scrape)  # type: ignore[arg-type]
        host.app.register_blueprint(host.meter.metrics_blueprint())
        client = host.app.test_client()
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            answer = client.get("/metrics", headers=headers)
            assert (answer.status_code, answer.text) == (401, "Unauthorized\n")
        answer = client.get("/metrics", headers={"Authorization": "Bearer right"})
        assert answer.status_code == 200
        assert answer.headers["Cache-Control"] == "no-store"
        assert parsed(answer.text)["c2meter_store_up", ()] == 1


class TestWhatIsSaid:
    def test_a_ledger_without_events(self, host: Host) -> None:
        found = scrape(host)
        assert found["c2meter_store_up", ()] == 1
        assert found["c2meter_events_recorded_total", ()] == 0
        assert found["c2meter_oldest_unshipped_age_seconds", ("sign_operations",)] == 0
        assert found["c2meter_breaker_open", ()] == found["c2meter_holds", ()] == 0
        assert not any(name == "c2meter_target_met" for name, _ in found)
        assert not any("api_calls" in labels for _, labels in found)

    def test_from_record_to_stripe(self, host: Host, c2meter_clock: FrozenClock) -> None:
        host.metering.record("storage_gb", "cus_1", value="1.5")
        c2meter_clock.advance(timedelta(seconds=4))
        waiting = scrape(host)
        assert waiting["c2meter_unshipped_units", ("storage_gb",)] == 1.5
        assert waiting["c2meter_oldest_unshipped_age_seconds", ("storage_gb",)] >= 4

        deliver(host)
        done = scrape(host)
        latency = "c2meter_event_latency_seconds"
        assert done["c2meter_unshipped_units", ("storage_gb",)] == 0
        assert done["c2meter_oldest_unshipped_age_seconds", ("storage_gb",)] == 0
        assert done[f"{latency}_bucket", ("2.5", "storage_gb")] == 0
        assert done[f"{latency}_bucket", ("5.0", "storage_gb")] == 1
        assert done[f"{latency}_bucket", ("+Inf", "storage_gb")] == 1
        assert done[f"{latency}_sum", ("storage_gb",)] == 4
        assert done["c2meter_recent_event_latency_seconds", ("0.99",)] == 4
        assert done["c2meter_target_met", ("event_latency",)] == 1
        assert done["c2meter_target_ratio", ("success_rate",)] == 1

    def test_what_stripe_refuses(self, host: Host, stripe_emulator: StripeEmulator) -> None:
        stripe_emulator.fail(400, path="*meter_events", code="payload_invalid_value", message="no")
        sign(host)
        deliver(host)
        found = scrape(host)
        assert found["c2meter_shipments", ("sign_operations", "dead")] == 1
        assert found["c2meter_target_met", ("success_rate",)] == 0

    def test_a_refused_key_is_a_hold(self, host: Host, stripe_emulator: StripeEmulator) -> None:
        stripe_emulator.accept_keys(["sk_test_other"])
        sign(host)
        deliver(host)
        found = scrape(host)
        assert found["c2meter_holds", ()] == 1
        (hold,) = [labels for name, labels in found if name == "c2meter_held"]
        assert hold[0] == "*"
        assert found["c2meter_breaker_open", ()] == 0

    def test_stripe_down_opens_the_breaker(
        self, host: Host, stripe_emulator: StripeEmulator
    ) -> None:
        stripe_emulator.fail(503, path="*meter_events", times=None)
        for number in range(8):
            host.metering.record("sign_operations", f"cus_{number}", manifest_id="m-1")
        deliver(host)
        assert scrape(host)["c2meter_breaker_open", ()] == 1

    def test_alerts_and_the_last_reconciliation(
        self, host: Host, c2meter_clock: FrozenClock
    ) -> None:
        sign(host, 490, plan="starter")
        c2meter_clock.advance(timedelta(minutes=1))
        deliver(host)
        host.metering.store.note("reconciled", {"accuracy": "0.75", "at": "1970-01-01T00:00:12Z"})
        found = scrape(host)
        assert found["c2meter_alerts", ("signal", "delivered")] == 1
        assert found["c2meter_recent_alert_delay_seconds", ("1",)] == 60
        assert found["c2meter_target_ratio", ("billing_accuracy",)] == 0.75
        assert found["c2meter_target_met", ("billing_accuracy",)] == 0
        assert found["c2meter_reconciled_timestamp_seconds", ()] == 12

    def test_a_store_out_of_order_is_a_number_and_no_500(self, host: Host) -> None:
        Path(host.app.instance_path).mkdir(parents=True, exist_ok=True)
        Path(host.app.instance_path, "c2meter.sqlite").write_bytes(b"no database " * 400)
        host.metering.record("sign_operations", "cus_1", manifest_id="m-1")  # spilled
        answer = host.app.test_client().get("/metrics")
        assert answer.status_code == 200
        assert parsed(answer.text) == {
            ("c2meter_store_up", ()): 0,
            ("c2meter_spilled_events", ()): 1,
            ("c2meter_spill_corrupt_lines", ()): 0,
        }

    def test_every_name_is_described_and_nothing_else_is_said(self, host: Host) -> None:
        described = {family.name for family in Collector(host.app).describe()}
        said = {family.name for family in Collector(host.app).collect()}
        assert said <= described
        assert {name.removesuffix("_total") for name in NAMES} == described

    def test_customers_are_in_no_label(self, host: Host) -> None:
        sign(host, 600, plan="starter")
        deliver(host)
        assert not any("cus_1" in labels for _, labels in scrape(host))


class TestCosts:
    def test_registering_opens_nothing(self, host: Host) -> None:
        CollectorRegistry(auto_describe=True).register(Collector(host.app))
        assert not Path(host.app.instance_path, "c2meter.sqlite").exists()

    def test_a_reading_is_shared_for_some_seconds(self, host: Host) -> None:
        collector = Collector(host.app)
        first = collector.collect()
        sign(host)
        assert collector.collect() is first
        assert CACHE_S < 15  # Prometheus' usual interval

    def test_scrapes_at_once_read_once(self, host: Host) -> None:
        collector = Collector(host.app)
        found: list[object] = []
        threads = [
            threading.Thread(target=lambda: found.append(collector.collect())) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 8
        assert all(each is found[0] for each in found)


# -- several processes -----------------------------------------------------------------------------

APP = """
import os
from flask import Flask
from flask_c2meter import C2Meter, Customer, current_usage, metered

def create_app():
    app = Flask("served", instance_path=os.getcwd() + "/instance")
    app.config.from_prefixed_env()
    meter = C2Meter(app)
    meter.customer_loader(lambda: Customer("cus_1"))
    app.register_blueprint(meter.metrics_blueprint(public=True))

    @app.post("/sign")
    @metered("sign_operations", rate_limit=False)
    def sign():
        current_usage.update(manifest_id="m-1")
        return {}

    @app.after_request
    def tell(response):
        response.headers["X-Pid"] = str(os.getpid())
        return response

    return app
"""


@contextmanager
def gunicorn(folder: Path, stripe: StripeEmulator, workers: int) -> Iterator[int]:
    """Serve :data:`APP` on a free port, given in the block."""
    (folder / "served.py").write_text(APP)
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "gunicorn", "-w", str(workers), "--no-control-socket"),
                *("-b", f"fd://{listener.fileno()}", "served:create_app()"),
            ],
            cwd=folder,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(folder), *sys.path]),
                "FLASK_C2METER_STRIPE_SECRET_KEY": "sk_test_1",
                "FLASK_C2METER_STRIPE_BASE_URL": stripe.url,
            },
            pass_fds=[listener.fileno()],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            yield listener.getsockname()[1]
            process.send_signal(signal.SIGTERM)
            output, _ = process.communicate(timeout=30)
            assert process.returncode == 0, output
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate(timeout=30)


def ask(port: int, method: str, path: str) -> tuple[str, str]:
    """The pid that answered, on a connection of its own, and what."""
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        assert answer.status == 200
        return answer.headers["X-Pid"], answer.read().decode()
    finally:
        connection.close()


def test_two_processes_say_the_same(tmp_path: Path, stripe_emulator: StripeEmulator) -> None:
    with gunicorn(tmp_path, stripe_emulator, workers=2) as port:
        recorders: set[str] = set()
        count = 0
        deadline = time.monotonic() + 30
        while len(recorders) < 2 or count < 20:
            recorders.add(ask(port, "POST", "/sign")[0])
            count += 1
            assert time.monotonic() < deadline
        wait_until(lambda: stripe_emulator.meter_total("sign_operations", "cus_1") == count)

        said: dict[str, list[Samples]] = {}

        def both_have_told() -> bool:
            pid, text = ask(port, "GET", "/metrics")
            said.setdefault(pid, []).append(parsed(text))
            # The outcome of the last request is noted a moment after Stripe has it; a reading that
            # came before is served for some seconds.
            return len(said) == 2 and all(
                tellings[-1]["c2meter_shipments", ("sign_operations", "sending")] == 0
                and tellings[-1]["c2meter_unshipped_units", ("sign_operations",)] == 0
                for tellings in said.values()
            )

        wait_until(both_have_told, timeout_s=30)

    one, other = (tellings[-1] for tellings in said.values())
    assert one["c2meter_events_recorded_total", ()] == count
    assert one["c2meter_workers", ()] == 2
    assert one == other


def test_without_prometheus_client_it_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "prometheus_client.py").write_text(
        "raise ModuleNotFoundError('not here', name='prometheus_client')"
    )
    script = "from flask_c2meter import C2Meter; C2Meter().metrics_blueprint()"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "pip install 'flask_c2meter[metrics]'" in done.stderr.splitlines()[-1]
