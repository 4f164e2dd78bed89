"""A page of the documentation, executed from top to bottom in a folder of its own.

By its language, a block is

- a file of the project, if its first line is a comment that names one (``# app.py``);
- ``console``, ``sh``: commands for a terminal, with what they print. In a block whose introduction
  speaks of a "second terminal" (or third) the last command is left running there;
- ``python`` without a file name: run where the ones before it on the page left off;
- ``toml``, ``json``, ``yaml``, ``jinja``, ``ini``, ``dockerfile``: read by a parser;
- a directive in braces: Sphinx's, which builds the pages.

Anything else fails, but for what :data:`NOT_RUN` names.
"""

from __future__ import annotations

import ast
import configparser
import json
import os
import re
import socket
import sys
import tomllib
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from docs_blocks import ROOT, Block, blocks
from docs_terminal import Terminal, commands, fits, plain
from jinja2 import Environment

from flask_c2meter import catalogue

#: Ports that pages name; each run has others, because tests run side by side.
PORTS = ("12111", "5000", "8000", "6379")


def _check_ci_runs(text: str) -> None:
    assert text in (ROOT / ".ci" / "run").read_text()


def _check_it_can_be_served(_: str) -> None:
    assert find_spec("example_app.__main__") is not None


def _check_log(text: str) -> None:
    source = "".join(path.read_text() for path in (ROOT / "flask_c2meter").rglob("*.py"))
    for line in text.splitlines():
        match = re.fullmatch(r"event=(\w+)( \w+=([^\s\"]+|\"[^\"]*\"))*", line)
        assert match is not None, line
        assert f'"{match[1]}"' in source, line


_INSTALL = "python3 -m venv .venv && .venv/bin/pip install -q -e"

#: Blocks that are not run here, by page and first line: why, and what is checked instead.
NOT_RUN: Mapping[tuple[str, str], tuple[str, Callable[[str], object]]] = {
    ("README.md", f"{_INSTALL} '.[example]' && .venv/bin/python -m example_app"): (
        "it serves for ever: test_example_app starts and uses it",
        _check_it_can_be_served,
    ),
    ("README.md", f"{_INSTALL} '.[test]' && .venv/bin/python -m pytest -n auto"): (
        "it runs these very tests: the same line of .ci/run does",
        _check_ci_runs,
    ),
    ("docs/howto/migrating.md", "stripe.SubscriptionItem.create_usage_record("): (
        "Stripe and its library have removed it: read as Python",
        ast.parse,
    ),
    ("docs/monitoring.md", "event=deliveries_held meter=* reason=401"): (
        "lines of a log: each is an event that the package logs",
        _check_log,
    ),
}

#: Where the interpreter of the tests stands in for an installation of the reader's own.
_INSTALLS = re.compile(r"(python3 -m venv|\. \.venv/bin/activate|pip install)\b.*")

_ID = re.compile(r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b")

_OTHER_TERMINAL = re.compile(r"[Ii]n a (second|third|fourth) terminal")


class Project:
    """The folder of one page.

    :param folder: empty.
    :param is_installed: the interpreter of the tests has all that the page installs; False = really
        install it.
    """

    def __init__(self, folder: Path, *, is_installed: bool = True) -> None:
        self.folder = folder / "clone"
        self.folder.mkdir()
        self.names: dict[str, Any] = {"__name__": "page"}
        #: What happens before a block without a reader's doing, by words of its introduction.
        self.before: dict[str, Callable[[], object]] = {}
        #: What the commands printed that were left running; filled by :meth:`close`.
        self.left_running: list[str] = []
        #: Whether output is compared without line breaks, which depend on how long paths are.
        self.is_wrapped = False
        self._root = folder
        self._is_installed = is_installed
        self._replaced = {port: str(_free_port()) for port in PORTS}
        self._terminals: dict[str, Terminal] = {}
        self._written: list[Path] = []
        self._typed = ""
        #: Id that the page states -> id that it is here.
        self._ids: dict[str, str] = {}
        self.environment = self._environment()

    def _environment(self) -> dict[str, str]:
        """Ours, without what would change what a page prints."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("FLASK_", "C2METER_", "STRIPE_", "PYTEST_", "PYTHON", "COV_"))
            and name not in ("FRONTEND_URL", "USAGE_WEBHOOK_URL", "WEB_CONCURRENCY")
        }
        if self._is_installed:
            kept["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
        # An operator's name is printed by commands, the width of a terminal by others.
        return {**kept, "LOGNAME": "ann", "COLUMNS": "200", "PYTHONUNBUFFERED": "1"}

    def port(self, named: str) -> int:
        """The port of this run that stands for the one a page names."""
        return int(self._replaced[named])

    def map_folder(self, named: str) -> Path:
        """A folder of this run that stands for the one of the machine that a page names."""
        folder = self._root / "root" / named[1:]
        folder.mkdir(parents=True)
        self.rename(named, folder)
        return folder

    def rename(self, named: str, folder: Path) -> None:
        """*folder* stands for the one that a page names."""
        self._replaced[named] = str(folder)

    def here(self, text: str) -> str:
        """*text* of a page with the ports and folders of this run."""
        names = "|".join(map(re.escape, self._replaced))
        return re.sub(rf"(?<![\w.])({names})\b", lambda m: self._replaced[m[1]], text)

    def terminal(self, which: str = "first") -> Terminal:
        """The terminal called *which*; a new one opens in the folder of the first."""
        if which not in self._terminals:
            folder = self.folder if which == "first" else self.terminal().folder
            self._terminals[which] = Terminal(folder, self.environment, self._root / which)
        return self._terminals[which]

    def run_page(self, page: str) -> None:
        """Run every block of *page*."""
        for block in blocks(page):
            self.run(block)
        assert not self.before, f"{page} does not say {list(self.before)}"
        self.check_that_all_python_ran()

    def run(self, block: Block) -> None:
        """Run one block, by its language."""
        for words in [words for words in self.before if words in block.introduction]:
            self.before.pop(words)()
        text = self.here(block.text)
        unrun = NOT_RUN.get((block.page, block.text.partition("\n")[0]))
        if unrun is not None:
            unrun[1](text)
        elif block.language.startswith("{"):
            return
        elif (reader := _READERS.get(block.language)) is not None:
            reader(text)
        elif block.language in ("console", "sh"):
            self._type(block, text)
        elif block.language == "python":
            if block.file is None:
                code = compile("\n" * block.line + text, str(ROOT / block.page), "exec")
                exec(code, self.names)
        else:
            raise AssertionError(f"{block}: nobody knows how to run {block.language!r}")
        if block.file is not None:
            self._write(block.file, text)

    def _write(self, name: str, text: str) -> None:
        """A file of the project; one outside of it lands below ``root``."""
        path = self._root / "root" / name[1:] if name[0] == "/" else self.terminal().folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        if path.suffix == ".py":
            compile(text, name, "exec")
            for compiled in path.parent.glob(f"__pycache__/{path.stem}.*.pyc"):
                compiled.unlink()  # this version has not run yet
            self._written.append(path)

    def _type(self, block: Block, text: str) -> None:
        """Type the commands of a block, and compare what they print."""
        other = _OTHER_TERMINAL.search(block.introduction)
        terminal = self.terminal(other[1] if other else "first")
        listed = commands(text) if block.language == "console" else _script(text)
        for number, command in enumerate(listed, start=1):
            self._typed += command.text + "\n"
            installs = bool(_INSTALLS.fullmatch(command.text))
            if self._is_installed and installs:
                continue
            typed = re.sub(_ID, lambda match: self._ids.get(match[0], match[0]), command.text)
            expected = self._lines("\n".join(command.expected))
            if other and number == len(listed):
                terminal.leave_running(typed, expected)
                continue
            output, exit_code = terminal.run(typed)
            told = f"{block}: $ {command.text}\n{output}"
            assert exit_code == command.exit_code, f"exit code {exit_code} of {told}"
            if block.language == "console" and not installs:  # pip warns of many things
                assert fits(expected, self._lines(output)), f"expected {expected} of {told}"
                self._learn(_ID.findall("\n".join(command.expected)), _ID.findall(output))

    def _lines(self, output: str) -> list[str]:
        lines = plain(output)
        return [" ".join(lines)] if lines and self.is_wrapped else lines

    def _learn(self, stated: list[str], real: list[str]) -> None:
        """The ids that a page states are other ones here, also where it types them later."""
        if len(stated) == len(real):
            self._ids.update(zip(stated, real, strict=True))

    def check_that_all_python_ran(self) -> None:
        """A file that nothing has imported, and no command names, was not executed."""
        for path in self._written:
            imported = any(path.parent.glob(f"__pycache__/{path.stem}.*.pyc"))
            assert imported or path.name in self._typed, f"nothing has run {path.name}"

    def close(self) -> None:
        """End what was left running, and forget what the page has defined.

        Signals know receivers by weak references only.
        """
        for terminal in self._terminals.values():
            self.left_running += terminal.close()
        self.names.clear()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _script(text: str) -> list[Any]:
    """The commands of an ``sh`` block: as they are, each line one."""
    return commands("".join(f"$ {line}\n" for line in text.splitlines()))


def _read_toml(text: str) -> None:
    content = tomllib.loads(text)
    if "meters" in content:
        catalogue.load(content)


def _read_ini(text: str) -> None:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(text)


def _read_dockerfile(text: str) -> None:
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert lines[0].startswith("FROM ")
    known = {"FROM", "WORKDIR", "COPY", "RUN", "ENV", "USER", "VOLUME", "EXPOSE", "CMD"}
    assert {line.split()[0] for line in lines} <= known
    for line in lines:
        if line.startswith("CMD "):
            assert all(isinstance(word, str) for word in json.loads(line.removeprefix("CMD ")))


_READERS: Mapping[str, Callable[[str], object]] = {
    "toml": _read_toml,
    "json": json.loads,
    "yaml": yaml.safe_load,
    "jinja": Environment(extensions=[]).parse,
    "ini": _read_ini,
    "dockerfile": _read_dockerfile,
}
