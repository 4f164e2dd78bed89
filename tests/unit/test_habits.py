"""What CONTRIBUTING and its like name exists, and the forms on GitHub can be filled in."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / name
    for name in (
        "CONTRIBUTING.md",
        "SECURITY.md",
        "docs/support.md",
        "docs/releasing.md",
        ".github/pull_request_template.md",
    )
]
FORMS = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))
#: Where a path that does not begin at the root begins.
FOLDERS = (ROOT, ROOT / "flask_c2meter", ROOT / "flask_c2meter" / "channels")
PATH = re.compile(r"(?:\.?\w[\w-]*/)*\.?[\w-]+(?:\.\w+|/)")
#: Of the reader's own making.
MADE = {"flask_c2meter/channels/NAME.py"}
TOP = {path.name for path in ROOT.iterdir()}


def names(page: Path) -> set[str]:
    """The files and folders that a page names."""
    words = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", page.read_text())
    parts = {part for word in words for part in word.split()}
    return {part for part in parts if (PATH.fullmatch(part) and "/" in part) or part in TOP} - MADE


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_is_there(page: Path) -> None:
    found = names(page)
    assert found or page.name == "SECURITY.md"
    assert not [name for name in found if not any((each / name).exists() for each in FOLDERS)]


def test_contributing_tells_of_every_folder_of_tests() -> None:
    folders = {
        f"tests/{path.parent.name}/"
        for path in (ROOT / "tests").glob("*/*.py")
        if path.parent.name != "__pycache__"
    }
    assert folders <= names(ROOT / "CONTRIBUTING.md")


@pytest.mark.parametrize(
    "form", [form for form in FORMS if form.name != "config.yml"], ids=lambda form: form.stem
)
def test_a_form_can_be_filled_in(form: Path) -> None:
    content: dict[str, Any] = yaml.safe_load(form.read_text())
    assert content["name"] and content["description"]
    fields = [item for item in content["body"] if item["type"] != "markdown"]
    assert fields and all(item["type"] == "textarea" for item in fields)
    assert len({item["id"] for item in fields}) == len(fields)
    assert all(item["attributes"]["label"] for item in fields)


def test_pre_commit_runs_what_ci_runs() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    run = (ROOT / ".ci/run").read_text()
    assert len(hooks) == 4
    assert not [hook["entry"] for hook in hooks if hook["entry"].split(" --")[0] not in run]
