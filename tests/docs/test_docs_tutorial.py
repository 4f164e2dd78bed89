"""The tutorial, followed literally from an empty folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from docs_blocks import ROOT
from docs_project import Project

PAGE = "docs/tutorial.md"


@pytest.mark.timeout(300)
def test_it_ends_with_a_bill(tmp_path: Path) -> None:
    """Every command with the output that the page states, in real processes."""
    project = Project(tmp_path)
    try:
        project.run_page(PAGE)
    finally:
        project.close()
    app = project.left_running[-1]
    assert app.count('"POST /resize HTTP/1.1" 200') == 7


@pytest.mark.long
@pytest.mark.timeout(900)
def test_it_ends_with_a_bill_after_a_real_installation(tmp_path: Path) -> None:
    """The same with an environment of its own, into which the package is built and installed."""
    project = Project(tmp_path, is_installed=False)
    for name in ("pyproject.toml", "README.md", "LICENSE", "flask_c2meter"):
        source, clone = ROOT / name, project.folder / name
        if source.is_dir():
            shutil.copytree(source, clone, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, clone)
    try:
        project.run_page(PAGE)
    finally:
        project.close()
    assert (tmp_path / "first-bill" / ".venv").is_dir()
