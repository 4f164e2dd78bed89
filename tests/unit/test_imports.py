"""Importing the package is cheap and quiet."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

REPORT = """
import json, os, sys, threading
print(json.dumps({
    "modules": sorted({name.partition(".")[0] for name in sys.modules}),
    "threads": threading.active_count(),
    "sockets": sum(
        os.path.realpath(f"/proc/self/fd/{name}").startswith("socket:")
        for name in os.listdir("/proc/self/fd")
    ) if os.path.isdir("/proc/self/fd") else 0,
}))
"""


def after(script: str) -> dict[str, Any]:
    """What a fresh interpreter holds after *script*."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script + REPORT],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@pytest.mark.parametrize(
    "script",
    [
        "import flask_c2meter",
        "import flask, flask_c2meter; flask_c2meter.C2Meter(flask.Flask('host'))",
    ],
    ids=["import", "init_app"],
)
def test_what_is_not_needed_is_not_imported(script: str) -> None:
    modules = set(after(script)["modules"])
    assert "flask_c2meter" in modules
    heavy = {"stripe", "alembic", "apscheduler", "requests", "pytest"}
    heavy |= {"prometheus_client", "opentelemetry"}
    assert modules & heavy == set()


def test_importing_starts_no_thread_and_opens_no_socket() -> None:
    report = after("import flask_c2meter, flask_c2meter.cli, flask_c2meter.worker")
    assert (report["threads"], report["sockets"]) == (1, 0)
