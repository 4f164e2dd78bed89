"""OpenTelemetry, with the real SDK in real processes: a request's trace leads to what Stripe has.

Each part runs in an interpreter of its own, because a process has one tracer provider for life.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flask_c2meter import tracing
from flask_c2meter.emulator import StripeEmulator

#: A host's module, with and without a provider; ``spans()`` tells what was traced.
HOST = """
import json, os
from flask import Flask
from flask_c2meter import C2Meter, Customer, current_usage, metered
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON

exporter = InMemorySpanExporter()

def trace_all(sampler=ALWAYS_ON):
    provider = TracerProvider(sampler=sampler)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return provider.get_tracer("host")

def create_app():
    app = Flask("host", instance_path=os.getcwd() + "/instance")
    app.config.from_prefixed_env()
    app.config["C2METER_WORKER"] = "off"
    meter = C2Meter(app)
    meter.customer_loader(lambda: Customer("cus_1", "user 7", "starter", "ann@example.com"))

    @app.post("/sign")
    @metered("sign_operations", rate_limit=False)
    def sign():
        current_usage.update(manifest_id="m-1")
        return {}

    return app

def metering(app):
    return app.extensions["c2meter"].metering

def spans():
    return [
        {
            "name": span.name,
            "trace": f"{span.context.trace_id:032x}",
            "parent": span.parent and f"{span.parent.span_id:016x}",
            "id": f"{span.context.span_id:016x}",
            "links": [f"{link.context.trace_id:032x}" for link in span.links],
            "attributes": dict(span.attributes),
            "events": [event.name for event in span.events],
            "status": [span.status.status_code.name, span.status.description],
            "kind": span.kind.name,
        }
        for span in exporter.get_finished_spans()
    ]
"""


@pytest.fixture
def run(tmp_path: Path, stripe_emulator: StripeEmulator) -> Callable[[str], Any]:
    """Runs a script beside the module ``host``; what it prints, as JSON."""
    (tmp_path / "host.py").write_text(HOST)

    def run(script: str) -> Any:
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)],
            cwd=tmp_path,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]),
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


#: A request that the host traces itself, as its instrumentation would.
REQUEST = """
    import json, host
    tracer = host.trace_all()
    app = host.create_app()
    with tracer.start_as_current_span("POST /sign"):
        assert app.test_client().post("/sign").status_code == 200
    (event,) = host.metering(app).store.events()
    print(json.dumps([host.spans(), event.request_id]))
"""

#: Another process, which delivers.
WORKER = """
    import json, host
    host.trace_all()
    host.metering(host.create_app()).worker.run_once()
    print(json.dumps(host.spans()))
"""


def test_a_request_leads_to_the_attempt_that_another_process_makes(
    run: Callable[[str], Any], stripe_emulator: StripeEmulator
) -> None:
    (recorded, request), request_id = run(REQUEST)
    assert (recorded["name"], recorded["kind"]) == ("c2meter.record", "INTERNAL")
    assert recorded["attributes"] == {"c2meter.meter": "sign_operations"}
    assert recorded["parent"] == request["id"]
    assert request_id == request["trace"]

    (shipped,) = run(WORKER)
    (event,) = stripe_emulator.events
    assert (shipped["name"], shipped["kind"]) == ("c2meter.ship", "CLIENT")
    assert shipped["links"] == [request["trace"]]
    assert shipped["trace"] != request["trace"]
    assert shipped["attributes"] == {
        "c2meter.shipments": 1,
        "c2meter.meter": "sign_operations",
        "c2meter.identifier": event.identifier,
        "c2meter.attempt": 1,
        "c2meter.outcome": "delivered",
    }
    assert shipped["status"] == ["UNSET", None]


def test_each_attempt_has_a_span_and_a_failure_says_why(
    run: Callable[[str], Any], stripe_emulator: StripeEmulator
) -> None:
    _, request = run(REQUEST)[0]
    stripe_emulator.fail(400, path="*meter_events", code="payload_invalid_value", message="cus_1!")
    (failed,) = run(WORKER)
    assert failed["links"] == [request["trace"]]
    assert failed["attributes"]["c2meter.outcome"] == "rejected"
    assert failed["attributes"]["error.type"] == "payload_invalid_value"
    assert failed["status"] == ["ERROR", None]
    assert failed["events"] == []


def test_no_span_says_who_it_was(
    run: Callable[[str], Any], stripe_emulator: StripeEmulator
) -> None:
    everything = json.dumps([run(REQUEST), run(WORKER)])
    for personal in ("cus_1", "user 7", "ann@example.com", "sk_test_1"):
        assert personal not in everything


def test_an_event_that_cannot_be_recorded_names_the_error_only(run: Callable[[str], Any]) -> None:
    spans = run("""
        import json, os, host
        tracer = host.trace_all()
        app = host.create_app()
        open("instance", "w").close()  # where a folder is needed
        assert app.test_client().post("/sign").status_code == 503
        print(json.dumps(host.spans()))
    """)
    (recorded,) = spans
    assert recorded["status"] == ["ERROR", None]
    assert recorded["attributes"]["error.type"] == "StoreUnavailable"
    assert recorded["events"] == []


def test_of_a_bundle_the_event_that_waited_longest_is_linked(run: Callable[[str], Any]) -> None:
    spans = run("""
        import datetime, json, host
        tracer = host.trace_all()
        metering = host.metering(host.create_app())
        at = datetime.datetime.now(datetime.UTC).replace(second=1) - datetime.timedelta(minutes=2)
        for name in ("one", "two"):
            with tracer.start_as_current_span(name):
                metering.record("sign_operations", "cus_1", occurred_at=at, manifest_id="m")
        metering.worker.run_once()
        print(json.dumps(host.spans()))
    """)
    by_name = {span["name"]: span for span in spans}
    assert by_name["c2meter.ship"]["links"] == [by_name["one"]["trace"]]


def test_what_is_not_sampled_is_not_linked_but_still_found_by_its_id(
    run: Callable[[str], Any],
) -> None:
    spans, links, request_id = run("""
        import json, host
        tracer = host.trace_all(host.ALWAYS_OFF)
        app = host.create_app()
        with tracer.start_as_current_span("POST /sign"):
            assert app.test_client().post("/sign").status_code == 200
        store = host.metering(app).store
        host.metering(app).worker.run_once()
        (event,), (shipment,) = store.events(), store.shipments()
        print(json.dumps([host.spans(), shipment.trace, event.request_id]))
    """)
    assert (spans, links) == ([], None)
    assert len(request_id) == 32


def test_a_request_id_of_the_clients_stays(run: Callable[[str], Any]) -> None:
    request_id = run("""
        import json, host
        tracer = host.trace_all()
        app = host.create_app()
        with tracer.start_as_current_span("POST /sign"):
            app.test_client().post("/sign", headers={"X-Request-ID": "r-1"})
        (event,) = host.metering(app).store.events()
        print(json.dumps(event.request_id))
    """)
    assert request_id == "r-1"


@pytest.mark.parametrize("imported", ["opentelemetry.trace", "json"])
def test_without_a_provider_nothing_happens(run: Callable[[str], Any], imported: str) -> None:
    is_loaded, trace, request_id = run(f"""
        import json, os, sys, {imported}
        from flask import Flask
        from flask_c2meter import C2Meter
        app = Flask("host", instance_path=os.getcwd() + "/instance")
        app.config.from_prefixed_env()
        app.config["C2METER_WORKER"] = "off"
        C2Meter(app)
        metering = app.extensions["c2meter"].metering
        event = metering.record("sign_operations", "cus_1", manifest_id="m-1")
        metering.worker.run_once()
        (shipment,) = metering.store.shipments()
        assert shipment.state == "delivered"
        print(json.dumps(["opentelemetry" in sys.modules, shipment.trace, event.request_id]))
    """)
    assert is_loaded is (imported == "opentelemetry.trace")
    assert trace is request_id is None


def test_a_context_that_is_none_is_no_link(run: Callable[[str], Any]) -> None:
    """What somebody has written into the ledger by hand stops no shipment."""
    spans = run("""
        import json, host
        from sqlalchemy import text
        host.trace_all()
        metering = host.metering(host.create_app())
        metering.record("sign_operations", "cus_1", manifest_id="m-1")
        with metering.store.writing() as connection:
            connection.execute(text("UPDATE buckets SET trace = '00-nonsense'"))
        metering.worker.run_once()
        print(json.dumps(host.spans()))
    """)
    assert [span["links"] for span in spans] == [[], []]


def test_here_where_nobody_traces_a_span_is_nothing() -> None:
    with tracing.record("sign_operations") as span:
        assert span is tracing.trace_id() is None
