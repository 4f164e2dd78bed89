"""The documentation builds without a warning, and its reference leaves nothing out."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path

import click
import pytest

import flask_c2meter
from flask_c2meter import emulator, wsgi
from flask_c2meter.cli import c2meter_group
from flask_c2meter.config import Config
from flask_c2meter.metrics import NAMES
from flask_c2meter.model import Meter, Plan, Price, Property, Tier

ROOT = Path(__file__).parents[2]
NEEDED = ("sphinx", "myst_parser", "furo", "sphinx_click")
MISSING = [name for name in NEEDED if find_spec(name) is None]

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"needs the extra 'docs': no {MISSING}")


def commands(group: click.Group, path: str) -> Iterator[str]:
    """The HTML ids of *group* and all commands below."""
    yield path
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands(command, f"{path}-{name}")
        else:
            yield f"{path}-{name}"


@pytest.mark.timeout(300)  # ten seconds, alone on a machine
def test_it_builds_without_a_warning_and_leaves_nothing_out(tmp_path: Path) -> None:
    html = tmp_path / "html"
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "docs", str(html)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=290,
    )
    assert (done.returncode, done.stderr) == (0, "")

    def page(name: str) -> str:
        return (html / "reference" / f"{name}.html").read_text()

    api = page("api") + page("signals")
    assert not [name for name in flask_c2meter.__all__ if f'id="flask_c2meter.{name}"' not in api]
    middleware = [f'id="flask_c2meter.wsgi.{name}"' for name in wsgi.__all__]
    assert not [each for each in middleware if each not in api]
    stand_in = page("emulator")
    ids = [f'id="flask_c2meter.emulator.{name}"' for name in emulator.__all__]
    assert not [each for each in ids if each not in stand_in]
    slugs = [key.name.lower().replace("_", "-") for key in Config.table()]
    assert not [each for each in slugs if f'id="{each}"' not in page("configuration")]
    listed = list(commands(c2meter_group, "flask-c2meter"))
    assert not [each for each in listed if f'id="{each}"' not in page("cli")]
    assert not [name for name in NAMES if name not in page("metrics")]


def test_each_key_of_the_catalogue_says_what_it_means_and_what_to_write() -> None:
    from from_code.tables import TABLES

    for kind in (Meter, Property, Price, Tier, Plan):
        rows = [
            [cell.strip() for cell in line.strip("|").split("|")]
            for line in TABLES[f"catalogue.{kind.__name__.lower()}"]()
        ]
        keys = {row[0].strip("`"): row[1:] for row in rows if row[0].startswith("`")}
        assert keys.keys() == {item.name for item in fields(kind)} - {"name"}
        assert all(meaning and write for meaning, write, *_ in keys.values())
    (aggregation,) = (row for row in TABLES["catalogue.meter"]() if row.startswith("| `aggr"))
    assert 'one of "sum", "count", "max", "unique_count" | required' in aggregation
