"""The emulator needs nothing but the standard library and Jinja, and its rooms stand in order."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import flask_c2meter.emulator

ROOMS = sorted(Path(flask_c2meter.emulator.__file__).parent.glob("*.py"))


def _imports(path: Path) -> Iterator[tuple[int, str]]:
    """Level and name of what a module imports when it runs, not for its types only."""
    for node in ast.walk(_without_type_checking(path)):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = [node.module] if node.module else [alias.name for alias in node.names]
            yield from ((node.level, name) for name in names)


def _without_type_checking(path: Path) -> ast.Module:
    module = ast.parse(path.read_text("utf-8"))
    module.body = [
        node
        for node in module.body
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    ]
    return module


def test_it_needs_the_standard_library_and_jinja_only() -> None:
    allowed = sys.stdlib_module_names | {"jinja2", "markupsafe"}
    foreign = {
        f"{path.name}: {name}"
        for path in ROOMS
        for level, name in _imports(path)
        if level > 1 or (level == 0 and name.partition(".")[0] not in allowed)
    }
    assert foreign == set()


def test_no_two_rooms_need_each_other() -> None:
    graph = {path.stem: {name for level, name in _imports(path) if level == 1} for path in ROOMS}
    order = list(TopologicalSorter(graph).static_order())
    assert set(order) == {path.stem for path in ROOMS}
