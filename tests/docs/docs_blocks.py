"""The fenced blocks of a Markdown page, in order, and what each is for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

#: Every page whose blocks are executed.
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md"))
    if "_build" not in path.parts
)

_FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.M | re.S)
#: A first line that names the file that the block is: a comment of the block's own language.
_FILE = re.compile(r"(?:#|<!--|\{#|//) (\S*?(?:\w+\.\w+|Dockerfile))(?: (?:-->|#\}))?")


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    page: str
    line: int
    language: str
    text: str
    #: The paragraph right above it, in one line.
    introduction: str

    @property
    def file(self) -> str | None:
        """The file of the project that it is, if its first line names one."""
        match = _FILE.fullmatch(self.text.partition("\n")[0])
        return match[1] if match else None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: str) -> list[Block]:
    """The blocks of *page*, which is a path from the root of the project."""
    text = (ROOT / page).read_text()
    return [
        Block(
            page,
            text.count("\n", 0, match.start()) + 1,
            match[1].split()[0] if match[1].strip() else "",
            match[2],
            " ".join(text[: match.start()].rstrip("\n").rpartition("\n\n")[2].split()),
        )
        for match in _FENCE.finditer(text)
    ]
