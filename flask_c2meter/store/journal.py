"""The journal of what people did to the books: who, what, why, in the table ``audit``."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from .transactions import Transactions


class Decision(NamedTuple):
    """Who decides something, why, and when."""

    who: str
    why: str
    #: UTC milliseconds.
    at_ms: int


class Journal:
    """The journal of a store."""

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions

    def add(self, decision: Decision, *what: str) -> None:
        """Add a row for each thing done."""
        with self._transactions.writing() as connection:
            note(connection, decision, *what)

    def find(self, what: str) -> Decision | None:
        """When that was done first, and by whom; None = never."""
        from sqlalchemy import select

        from .tables import audit

        query = select(audit).where(audit.c.what == what).order_by(audit.c.id).limit(1)
        with self._transactions.reading() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else Decision(row.who, row.why or "", row.at)


def note(connection: Connection, decision: Decision, *what: str) -> None:
    """Add a row for each thing done; the caller commits it with the thing."""
    from .tables import audit  # SQLAlchemy is loaded where a store is opened, not before

    if what:
        connection.execute(
            audit.insert(),
            [
                {"at": decision.at_ms, "who": decision.who, "what": each, "why": decision.why}
                for each in what
            ],
        )
