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


#: Prints what our modules have kept of what gevent replaces after them, as it does in the workers
#: of ``gunicorn --preload -k gevent``: names, bases, defaults, and locks of an app.
KEPT = """
import gc, importlib, json, pkgutil, types, warnings
import flask, flask_c2meter, prometheus_client
from flask_c2meter.metrics import metrics_blueprint

app = flask.Flask("host")
flask_c2meter.C2Meter(app)
app.register_blueprint(metrics_blueprint(public=True))
for module in pkgutil.walk_packages(flask_c2meter.__path__, "flask_c2meter."):
    if "migrations" not in module.name:
        importlib.import_module(module.name)

from gevent import monkey
warnings.simplefilter("ignore")  # it says itself that it comes late
monkey.patch_all()
old = {
    id(original): f"{module}.{name}"
    for module, originals in monkey.saved.items()
    for name, original in originals.items()
    if callable(original)
}

def is_ours(thing):
    return str(getattr(thing, "__module__", "")).startswith("flask_c2meter")

def held(thing):
    if isinstance(thing, types.ModuleType) and thing.__name__.startswith("flask_c2meter"):
        return list(vars(thing).values())
    if isinstance(thing, types.FunctionType) and is_ours(thing):
        return [*(thing.__defaults__ or ()), *(thing.__kwdefaults__ or {}).values()]
    if isinstance(thing, type) and is_ours(thing):
        return [*thing.__mro__, *vars(thing).values()]
    return list(getattr(thing, "__dict__", {}).values()) if is_ours(type(thing)) else []

print(json.dumps(sorted({
    f"{getattr(thing, '__qualname__', None) or getattr(thing, '__name__', thing)}: {name}"
    for thing in gc.get_objects()
    for value in held(thing)
    if (name := old.get(id(value)) or old.get(id(type(value))))
})))
"""


def test_nothing_is_kept_of_what_gevent_replaces_later() -> None:
    pytest.importorskip("gevent", reason="gevent is not installed")
    done = subprocess.run([sys.executable, "-c", KEPT], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []
