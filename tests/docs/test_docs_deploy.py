"""The deployment files say what was tried: units and containers run the commands of the page."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from docs_blocks import Block, blocks
from docs_terminal import commands

PAGE = "docs/howto/deploy.md"


def files() -> dict[str, Block]:
    return {block.file: block for block in blocks(PAGE) if block.file}


def typed() -> set[str]:
    """The commands that the page's own test runs."""
    return {
        command.text
        for block in blocks(PAGE)
        if block.language == "console"
        for command in commands(block.text)
    }


def units() -> dict[str, str]:
    return {name: block.text for name, block in files().items() if name.endswith(".service")}


@pytest.mark.parametrize("name", units())
def test_a_unit_starts_what_was_typed(name: str) -> None:
    (started,) = (
        line.removeprefix("ExecStart=/srv/acme/.venv/bin/")
        for line in units()[name].splitlines()
        if line.startswith("ExecStart=")
    )
    assert started in typed()


@pytest.mark.parametrize("name", units())
def test_systemd_takes_the_unit(name: str, tmp_path: Path) -> None:
    """Its paths are this machine's: systemd looks for the programs that it names."""
    systemd = shutil.which("systemd-analyze")
    if systemd is None:
        pytest.skip("needs systemd-analyze, of the package systemd")
    for unit, text in units().items():
        text = text.replace("/srv/acme/.venv/bin/gunicorn", "/bin/true")
        text = text.replace("/srv/acme/.venv/bin/flask", "/bin/true").replace("User=acme\n", "")
        (tmp_path / Path(unit).name).write_text(text)
    done = subprocess.run(
        [systemd, "verify", "--man=no", str(tmp_path / Path(name).name)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_container_starts_what_was_typed() -> None:
    dockerfile = files()["Dockerfile"].text
    (command,) = (
        json.loads(line.removeprefix("CMD "))
        for line in dockerfile.splitlines()
        if line.startswith("CMD ")
    )
    assert " ".join(command).replace("0.0.0.0", "127.0.0.1") in typed()
    copied = {line.split()[1] for line in dockerfile.splitlines() if line.startswith("COPY ")}
    assert copied <= files().keys()


def test_both_containers_share_one_ledger() -> None:
    services = yaml.safe_load(files()["compose.yaml"].text)["services"]
    assert " ".join(services["worker"]["command"]) in typed()
    assert services["web"]["volumes"] == services["worker"]["volumes"] == ["ledger:/var/lib/acme"]
