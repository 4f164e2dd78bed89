"""What a database is set to, as far as that decides whether it keeps what it is given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class DatabaseSettings:
    """The settings in force, as the database itself says."""

    #: When a commit returns: ``full`` = it is on the disk; ``normal``, ``off`` = not yet.
    synchronous: str
    #: SQLite's; None = another database.
    journal_mode: str | None = None
    #: Of the database, if it is a file of this host.
    path: Path | None = None
