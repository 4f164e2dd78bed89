"""Commands of apps that cannot be loaded: one line where the fault is ours to explain."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

MODULE = """
from flask import Flask
from flask_c2meter import C2Meter
app = Flask(__name__)
{settings}
meter = C2Meter(app)
{blueprints}
"""
FACTORY = """
from flask import Flask
from flask_c2meter import C2Meter
def create_app():
    app = Flask(__name__)
    app.config["C2METER_CATALOGUE"] = {"meters": {"page": {"unit": 1.5}}}
    C2Meter(app)
    return app
"""
WEBHOOKS = 'app.register_blueprint(meter.webhook_blueprint(), url_prefix="/stripe")'
DASHBOARD = 'app.register_blueprint(meter.dashboard_blueprint(), url_prefix="/billing")'


def module(settings: str = "", blueprints: str = "") -> str:
    return MODULE.format(settings=settings, blueprints=blueprints)


def run(folder: Path, app: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``flask c2meter ...`` in a process of its own, of the app with that code."""
    (folder / "acme.py").write_text(app)
    (folder / "broken.toml").write_text('[meters.pages]\nunit = "page"\nkind = "count"\n')
    return subprocess.run(
        [sys.executable, "-m", "flask", "--app", "acme", "c2meter", *arguments],
        cwd=folder,
        env={name: text for name, text in os.environ.items() if "STRIPE" not in name},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("app", "words"),
    [
        (module('app.config["C2METER_CATALOGUE"] = "nowhere.toml"'), "nowhere.toml"),
        (module('app.config["C2METER_CATALOGUE"] = "broken.toml"'), "meters.pages.kind"),
        (module('app.config["C2METER_WORKER"] = "maybe"'), "C2METER_WORKER"),
        (module(blueprints=WEBHOOKS), "needs C2METER_STRIPE_WEBHOOK_SECRET"),
        (module(blueprints=DASHBOARD), "@meter.dashboard_auth"),
        (FACTORY, "meters.page"),
        ("from flask import Flask\napp = Flask(__name__)\n", "call 'init_app'"),
    ],
    ids=["no-catalogue", "catalogue", "key", "webhooks", "dashboard", "factory", "unmetered"],
)
def test_what_is_set_up_wrongly_is_one_line(tmp_path: Path, app: str, words: str) -> None:
    done = run(tmp_path, app, "status")
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert words in line


def test_a_fault_of_the_host_keeps_its_traceback(tmp_path: Path) -> None:
    done = run(tmp_path, module(blueprints='raise ValueError("no database")'), "status")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1] == "ValueError: no database"


def test_help_needs_no_app(tmp_path: Path) -> None:
    done = run(tmp_path, module('app.config["C2METER_WORKER"] = "maybe"'), "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "status" in done.stdout
