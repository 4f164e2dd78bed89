"""What the parts of a store need of it: transactions. Imports nothing but types."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from sqlalchemy import Connection


class Transactions(Protocol):
    """A database, as one process uses it."""

    def writing(self) -> AbstractContextManager[Connection]:
        """A serialised write transaction; commits at the end, rolls back on error."""

    def reading(self) -> AbstractContextManager[Connection]:
        """A read transaction that sees one snapshot."""
