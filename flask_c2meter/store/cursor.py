"""The driver's own cursor, for the hot path: SQLAlchemy's expression layer would halve its rate.

Statements are constant but for the number of rows; every value is bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    from sqlalchemy import Connection


class Cursor(Protocol):
    """The little of a DB-API cursor that we need."""

    @property
    def rowcount(self) -> int: ...
    def execute(self, statement: str, parameters: Sequence[Any] = ..., /) -> Any: ...
    def fetchone(self) -> Any: ...
    def fetchall(self) -> list[Any]: ...


def cursor_of(connection: Connection) -> Cursor:
    """A cursor of *connection*, inside its transaction."""
    return cast(Cursor, connection.connection.cursor())


@lru_cache(maxsize=512)
def marked(statement: str, mark: str) -> str:
    """*statement*, written with ``?``, with the driver's own parameter *mark*."""
    return statement if mark == "?" else statement.replace("?", mark)


@lru_cache(maxsize=512)
def values(head: str, rows: int, columns: int, tail: str, mark: str) -> str:
    """A statement with that many rows of parameters between *head* and *tail*."""
    row = f"({', '.join([mark] * columns)})"
    return f"{head} VALUES {', '.join([row] * rows)} {tail}"


def execute_many(
    cursor: Cursor, head: str, rows: Sequence[Sequence[Any]], tail: str, mark: str
) -> None:
    """Execute *head*, all *rows* at once, *tail*."""
    statement = values(head, len(rows), len(rows[0]), tail, mark)
    cursor.execute(statement, [value for row in rows for value in row])
