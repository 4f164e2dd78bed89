"""A page that does not hold fails, and no block of any page goes by unseen."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from docs_blocks import PAGES, ROOT, Block, blocks
from docs_project import NOT_RUN, Project
from docs_terminal import commands, fits, plain

#: A link of Markdown to a file of the project, with its heading.
_LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([\w-]+))?\)|<img src=\"([^\"]+)\"")


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    project = Project(tmp_path)
    yield project
    project.close()


def block(language: str, text: str, introduction: str = "") -> Block:
    return Block("docs/page.md", 1, language, text, introduction)


class TestARun:
    def test_of_commands_that_print_what_is_stated(self, project: Project) -> None:
        project.run(
            block("console", "$ export WHO=you; mkdir a; cd a\n$ echo $WHO; pwd\nyou\n...\n")
        )
        project.run(block("console", "$ basename $PWD; exit 3\na\n(exit code 3)\n"))

    @pytest.mark.parametrize(
        "text",
        ["$ echo 1\n2\n", "$ echo 1\n", "$ true\n1\n", "$ false\n", "$ true\n(exit code 1)\n"],
    )
    def test_of_commands_that_do_not(self, text: str, project: Project) -> None:
        with pytest.raises(AssertionError):
            project.run(block("console", text))

    def test_of_a_command_that_was_left_running(self, project: Project) -> None:
        text = "$ echo ready; exec sleep 60\nready\n"
        project.run(block("console", text, "In a second terminal:"))
        project.close()
        assert project.left_running == ["ready\n"]

    def test_of_one_that_does_not_say_what_is_stated(self, project: Project) -> None:
        text = "$ echo steady\nready\n"
        with pytest.raises(AssertionError, match="steady"):
            project.run(block("console", text, "In a second terminal:"))

    def test_knows_ids_again(self, project: Project) -> None:
        stated, real = (f"01a2165f-4f7b-7e24-b8a0-7edf6e1e41b{n}" for n in (3, 4))
        project.run(block("console", f"$ echo {real[:-1]}$((2 + 2))\n{stated}\n"))
        text = f"$ test {stated} = {real[:-1]}$((2 + 2))\n"
        project.run(block("console", text))

    def test_of_python_that_raises(self, project: Project) -> None:
        project.run(block("python", "x = 1\n"))
        with pytest.raises(ZeroDivisionError):
            project.run(block("python", "x / 0\n"))

    @pytest.mark.parametrize(
        ("language", "text"),
        [
            ("", "what?\n"),
            ("text", "what?\n"),
            ("json", "{\n"),
            ("toml", "[meters.x]\nunit = 1\n"),
            ("yaml", "a: [\n"),
            ("jinja", "{% if %}\n"),
            ("ini", "no section\n"),
            ("dockerfile", "RUN true\n"),
        ],
    )
    def test_of_what_cannot_be_read(self, language: str, text: str, project: Project) -> None:
        with pytest.raises(Exception, match=r".*"):
            project.run(block(language, text))

    def test_of_a_file_that_nothing_uses(self, project: Project) -> None:
        project.run(block("python", "# used.py\nprint(1)\n"))
        project.run(block("python", "# unused.py\nprint(1)\n"))
        project.run(block("console", "$ python -c 'import used'\n1\n"))
        with pytest.raises(AssertionError, match=r"unused\.py"):
            project.check_that_all_python_ran()


def test_an_ellipsis_is_any_number_of_lines() -> None:
    assert fits(["a", "...", "d"], ["a", "b", "c", "d"])
    assert fits(["...", "a"], ["a"])
    assert not fits(["...", "a"], ["a", "b"])
    assert not fits(["a"], ["a", "b"])


def test_only_what_differs_from_run_to_run_is_left_out() -> None:
    assert plain("at 2026-01-15T12:00:00.123+00:00\n\n 7  images ") == ["at <time>", "7 images"]
    assert plain("price_7761e43909c8329772e96ffd 0.08 s") == ["<price> <seconds>"]


def test_a_command_may_go_on_in_the_next_line() -> None:
    (command,) = commands("$ curl -s URL \\\n    -d 1\nanswer\n")
    assert (command.text, command.expected) == ("curl -s URL -d 1", ["answer"])


@pytest.mark.parametrize("page", PAGES)
def test_no_block_is_missed(page: str) -> None:
    """Each fence, however far to the right, belongs to a block that is run."""
    fences = re.findall(r"^[ \t>]*(?:```|~~~)", (ROOT / page).read_text(), re.M)
    assert len(fences) == 2 * len(blocks(page))


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for path, heading, image in _LINK.findall((ROOT / page).read_text()):
        target = (ROOT / page).parent / (path or image) if path or image else ROOT / page
        assert target.exists(), f"{page}: {path or image}"
        if heading:
            slugs = {
                re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
                for title in re.findall(r"^#+ (.+)$", target.read_text(), re.M)
            }
            assert heading in slugs, f"{page}: {path}#{heading}"


def test_what_is_not_run_is_there() -> None:
    first_lines = {
        (block.page, block.text.partition("\n")[0]) for page in PAGES for block in blocks(page)
    }
    assert first_lines >= NOT_RUN.keys()
