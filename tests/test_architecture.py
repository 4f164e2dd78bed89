"""The layers of the package, as setup.cfg states them."""

from __future__ import annotations

import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

pytest.importorskip("importlinter", reason="the layer contracts need the extra 'test'")

ROOT = Path(__file__).parent.parent


def contracts(path: Path) -> ConfigParser:
    parser = ConfigParser()
    parser.read(path)
    return parser


def lint(config: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable,
            "-c",
            "from importlinter.cli import lint_imports_command; lint_imports_command()",
            "--config",
            str(config),
            "--no-cache",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_every_contract_holds() -> None:
    done = lint(ROOT / "setup.cfg")
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 broken" in done.stdout


def test_a_broken_contract_would_be_seen(tmp_path: Path) -> None:
    parser = contracts(ROOT / "setup.cfg")
    layers = parser["importlinter:contract:layers"]
    layers["layers"] = "\n".join(reversed(layers["layers"].split("\n")))
    with open(tmp_path / "setup.cfg", "w") as file:
        parser.write(file)
    done = lint(tmp_path / "setup.cfg")
    assert done.returncode == 1
    assert "BROKEN" in done.stdout


def test_no_module_is_left_out() -> None:
    parser = contracts(ROOT / "setup.cfg")
    layers = parser["importlinter:contract:layers"]
    assert layers.getboolean("exhaustive")
    listed = set(layers["layers"].replace("|", " ").split())
    package = ROOT / "flask_c2meter"
    modules = {path.stem for path in package.glob("*.py")} | {
        path.parent.name for path in package.glob("*/__init__.py")
    }
    assert listed == modules - {"__init__"}


def test_flask_is_kept_from_every_module_that_does_not_need_it() -> None:
    contract = contracts(ROOT / "setup.cfg")["importlinter:contract:flask"]
    assert contract["source_modules"].split() == ["flask_c2meter"]
    excused = {
        line.split(" -> ")[0].removeprefix("flask_c2meter.").removesuffix(".**")
        for line in contract["ignore_imports"].strip().splitlines()
    }
    assert excused == {
        "extension",
        "decorators",
        "dashboard",
        "webhooks",
        "cli",
        "globals",
        "metrics",
        "ratelimit",
    }
