"""Every page is executed, block by block, as :mod:`docs_project` says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from docs_blocks import PAGES, blocks
from docs_project import Project
from docs_scenes import SCENES

#: Pages with tests of their own, which run them as well.
ELSEWHERE = {
    "docs/alerts.md",  # test_docs_alerts
    "docs/tutorial.md",  # test_docs_tutorial
    "docs/wsgi.md",  # test_wsgi_frameworks: each block within a host of its own
}


def has_code(page: str) -> bool:
    """Whether there is more than directives, which Sphinx runs."""
    return any(not block.language.startswith("{") for block in blocks(page))


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    project = Project(tmp_path)
    yield project
    project.close()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page) and page not in ELSEWHERE])
def test_a_page(page: str, project: Project) -> None:
    with SCENES[page](project):
        project.run_page(page)
