"""Threads and processes: nothing runs before the first event, and nothing survives a fork."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from flask_host import Host

from flask_c2meter import InvalidEvent
from flask_c2meter.emulator import StripeEmulator

#: A host's module; ``report()`` tells what runs and what is open in this process.
APP = """
import json, os, sys, threading
from flask import Flask
from flask_c2meter import C2Meter, Customer, current_usage, metered

def report():
    files = {os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")}
    return {
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "files": sorted(f for f in files if f.startswith(("socket:", os.getcwd()))),
        "folder": sorted(os.listdir(os.getcwd())),
    }

def create_app():
    app = Flask("host", instance_path=os.getcwd() + "/instance")
    app.config.from_prefixed_env()
    meter = C2Meter(app)
    meter.customer_loader(lambda: Customer("cus_1"))

    @app.post("/sign")
    @metered("sign_operations", rate_limit=False)
    def sign():
        current_usage.update(manifest_id="m-1")
        return {"pid": os.getpid()}

    return app

def metering(app):
    return app.extensions["c2meter"].metering
"""


@pytest.fixture
def stripe_host(new_host: Callable[..., Host], stripe_emulator: StripeEmulator) -> Host:
    """Delivers to the emulator from a thread of its own, as by default."""
    return new_host(
        C2METER_STRIPE_SECRET_KEY="sk_test_1", C2METER_STRIPE_BASE_URL=stripe_emulator.url
    )


def is_delivering(host: Host) -> bool:
    worker = host.metering.worker
    return worker is not None and worker.is_running


class TestTheWorkersThread:
    def test_nothing_but_an_event_starts_it(self, stripe_host: Host) -> None:
        stripe_host.route(lambda: ("", 404), rate_limit="1/hour")
        client = stripe_host.client()
        for answer in (client.get("/"), client.head("/"), stripe_host.client({}).get("/")):
            assert answer.status_code in (401, 404, 429)
        stripe_host.metering.usage("cus_1")
        stripe_host.metering.status()
        with pytest.raises(InvalidEvent):
            stripe_host.metering.record("api_calls", "cus_1", value=-1)
        assert not is_delivering(stripe_host)

        stripe_host.metering.record("api_calls", "cus_1")
        assert is_delivering(stripe_host)

    def test_it_delivers_what_a_request_records_within_a_second(
        self, stripe_host: Host, stripe_emulator: StripeEmulator
    ) -> None:
        stripe_host.route(lambda: "")
        assert stripe_host.client().get("/").status_code == 200
        assert stripe_emulator.wait_for(1, timeout=10)
        assert stripe_emulator.meter_total("sign_operations", "cus_alice") == 1

    def test_64_threads_start_one(self, stripe_host: Host) -> None:
        before = set(threading.enumerate())  # another test's worker may still be polling
        start = threading.Barrier(64)

        def record(number: int) -> None:
            start.wait(30)
            stripe_host.metering.record("api_calls", f"cus_{number}")

        with ThreadPoolExecutor(64) as pool:
            list(pool.map(record, range(64)))
        new = [thread.name for thread in threading.enumerate() if thread not in before]
        assert new.count("c2meter-courier") == new.count("c2meter-clerk") == 1
        assert stripe_host.metering.worker.is_running

    def test_it_does_not_run_where_it_is_off(
        self, new_host: Callable[..., Host], stripe_emulator: StripeEmulator
    ) -> None:
        host = new_host(
            C2METER_STRIPE_SECRET_KEY="sk_test_1",
            C2METER_STRIPE_BASE_URL=stripe_emulator.url,
            C2METER_WORKER="off",
        )
        host.metering.record("sign_operations", "cus_1", manifest_id="m-1")
        assert not is_delivering(host)
        assert stripe_emulator.requests == []

    def test_without_a_key_only_the_clerk_runs(self, new_host: Callable[..., Host]) -> None:
        before = set(threading.enumerate())
        host = new_host()
        host.metering.record("sign_operations", "cus_1", manifest_id="m-1")
        new = [thread.name for thread in threading.enumerate() if thread not in before]
        assert "c2meter-clerk" in new
        assert "c2meter-courier" not in new


@pytest.fixture
def run(tmp_path: Path, stripe_emulator: StripeEmulator) -> Callable[[str], Any]:
    """Runs a script beside the module ``host`` in a fresh process; what it prints, as JSON."""
    (tmp_path / "host.py").write_text(APP)

    def run(script: str) -> Any:
        path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", textwrap.dedent(script)],
            cwd=tmp_path,
            env={
                **os.environ,
                "PYTHONPATH": path,
                "PYTHONDONTWRITEBYTECODE": "1",
                "FLASK_C2METER_STRIPE_SECRET_KEY": "sk_test_1",
                "FLASK_C2METER_STRIPE_BASE_URL": stripe_emulator.url,
            },
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


class TestBeforeTheFirstEvent:
    @pytest.mark.parametrize("config", ["", "app.test_client().get('/nowhere')"])
    def test_init_app_starts_no_thread_and_opens_nothing(
        self, run: Callable[[str], Any], stripe_emulator: StripeEmulator, config: str
    ) -> None:
        state = run(f"""
            import json, host
            app = host.create_app()
            {config}
            print(json.dumps(host.report()))
        """)
        assert state == {"threads": ["MainThread"], "files": [], "folder": ["host.py"]}
        assert stripe_emulator.requests == []

    def test_a_parent_that_only_loads_the_app_delivers_nothing(
        self, run: Callable[[str], Any], stripe_emulator: StripeEmulator
    ) -> None:
        """As the reloader's parent and gunicorn's master do."""
        state = run("""
            import json, os, host
            app = host.create_app()
            child = os.fork()
            if child == 0:
                answer = app.test_client().post("/sign")
                host.metering(app).worker.stop()
                while host.metering(app).worker.is_running:
                    pass
                os._exit(0 if answer.status_code == 200 else 1)
            _, status = os.waitpid(child, 0)
            print(json.dumps([os.waitstatus_to_exitcode(status), host.report()]))
        """)
        assert state[0] == 0
        assert (state[1]["threads"], state[1]["files"]) == (["MainThread"], [])


class TestForks:
    def test_a_child_uses_nothing_of_its_parents_and_both_count(
        self, run: Callable[[str], Any], stripe_emulator: StripeEmulator
    ) -> None:
        result = run("""
            import json, os, threading, host
            app = host.create_app()
            client = app.test_client()
            assert client.post("/sign").status_code == 200  # opens the file, starts the thread
            ours = host.metering(app)
            children = []
            for _ in range(3):
                child = os.fork()
                if child == 0:
                    theirs = host.metering(app)
                    before = theirs.worker.is_running
                    ok = [client.post("/sign").status_code for _ in range(5)] == [200] * 5
                    ok = ok and not before and theirs.worker.is_running
                    os._exit(0 if ok else 1)
                children.append(child)
            codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
            assert client.post("/sign").status_code == 200
            ours.worker.stop()
            while ours.worker.is_running:
                pass
            print(json.dumps([
                codes,
                len(ours.store.events()),
                list(ours.store.verify()),
                ours.status()["spill"],
            ]))
        """)
        assert result == [[0, 0, 0], 17, [], {"pending": 0, "corrupt": 0}]

    def test_a_fork_while_another_thread_records_leaves_the_child_free_to_record(
        self, run: Callable[[str], Any]
    ) -> None:
        result = run("""
            import json, os, threading, host
            app = host.create_app()
            busy = threading.Event()
            stop = threading.Event()

            def work():
                client = app.test_client()
                while not stop.is_set():
                    client.post("/sign")
                    busy.set()

            thread = threading.Thread(target=work)
            thread.start()
            busy.wait()
            codes = []
            for _ in range(10):
                child = os.fork()
                if child == 0:
                    os._exit(0 if app.test_client().post("/sign").status_code == 200 else 1)
                codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            stop.set()
            thread.join()
            worker = host.metering(app).worker
            worker.stop()
            while worker.is_running:
                pass
            print(json.dumps([codes, list(host.metering(app).store.verify())]))
        """)
        assert result == [[0] * 10, []]
