"""What the parts of a store need of it: transactions."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from sqlalchemy import Connection


class Transactions(Protocol):
    """A database, as one process uses it."""

    def writing(self) -> AbstractContextManager[Connection]:
        """A serialised write transaction; commits at the end, rolls back on error."""

    def reading(self) -> AbstractContextManager[Connection]:
        """A read transaction that sees one snapshot."""


def writing(
    transactions: Transactions, on: Connection | None
) -> AbstractContextManager[Connection]:
    """The caller's write transaction *on*, which is the caller's to commit, or one of our own."""
    return transactions.writing() if on is None else nullcontext(on)
