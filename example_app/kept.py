"""Small files of this installation, made once: the signing chain, the session key, its first day.

Each appears all at once or not at all, so that any number of processes that start together agree
on its content without a lock. Imports nothing of this app.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


def kept(path: Path, make: Callable[[], str]) -> str:
    """The text in *path*; what *make* returns is put there first if there is no such file.

    :param path: readable by its owner only once it exists; its folder is made if absent.
    :param make: returns ASCII text.
    """
    if not path.exists():
        _publish(path, make())
    return path.read_text("ascii", "replace")


def _publish(path: Path, content: str) -> None:
    """Let *path* have this content, unless another process was faster."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # mkstemp makes it 0600, and link() refuses an existing name: the first process wins whole.
    descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(draft, path)
    finally:
        os.unlink(draft)
