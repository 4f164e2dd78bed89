"""The metered app of the fault suite: a factory that server and child processes import.

Everything comes from the environment: the folder (``FAULT_DIR``) and any ``C2METER_`` key.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from flask import Flask, request

from flask_c2meter import C2Meter, Customer, current_metering, current_usage, metered

if "C2METER_FAILPOINTS" in os.environ:
    import flask_c2meter.testing  # noqa: F401  (arms them)

CLOCK = "fault_app:shifted_clock"


def shifted_clock() -> datetime:
    """Real time, moved by the seconds in the file ``clock`` of the folder."""
    shift = Path(os.environ["FAULT_DIR"], "clock").read_text()
    return datetime.now(UTC) + timedelta(seconds=float(shift))


def build(folder: str | Path, **config: Any) -> Flask:
    """An app with its store in *folder*; a customer is who the header ``X-Customer`` names."""
    app = Flask("fault_app", instance_path=str(folder))
    app.config.update(config)
    meter = C2Meter(app)
    #: How often the view of /verify ran in this process.
    app.config["VIEW_RUNS"] = 0

    @meter.customer_loader
    def load_customer() -> Customer | None:
        name = request.headers.get("X-Customer")
        return Customer(name, plan="starter") if name else None

    @app.post("/verify")
    @metered("verify_operations", rate_limit=False, body="json")
    def verify() -> dict[str, bool]:
        app.config["VIEW_RUNS"] += 1
        ok = request.json.get("ok", True)
        current_usage.update(manifest_id="urn:c2pa:1", verification_result=ok)
        return {"ok": ok}

    @app.post("/sign")
    @metered("sign_operations", rate_limit=False, body="json")
    def sign() -> dict[str, bool]:
        current_usage.value = request.json.get("value", 1)
        current_usage.update(manifest_id="urn:c2pa:2")
        return {"ok": True}

    @app.post("/stream")
    @metered("api_calls", rate_limit=False)
    def stream() -> Iterator[str]:
        current_usage.value = 0
        usage = current_usage._get_current_object()  # type: ignore[attr-defined]

        def chunks() -> Iterator[str]:
            for value in itertools.count(1):
                usage.value = 2 * value
                yield str(value)

        return chunks()

    @app.post("/ping")
    @metered("api_calls", rate_limit=False)
    def ping() -> dict[str, bool]:
        return {"ok": True}

    @app.get("/health")
    def health() -> dict[str, bool]:
        return {"ok": True}

    @app.post("/record/<name>")
    def record(name: str) -> dict[str, bool]:
        content = dict(request.json)
        key = content.pop("key", None)
        event = current_metering.record(name, request.headers["X-Customer"], key=key, **content)
        return {"new": event is not None}

    return app


def create_app() -> Flask:
    """The app as the environment describes it."""
    keys = {k: v for k, v in os.environ.items() if k.startswith("C2METER_")}
    return build(os.environ["FAULT_DIR"], **keys)
