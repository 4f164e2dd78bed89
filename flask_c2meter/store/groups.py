"""Reading several ordered tables side by side, a group at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import Any, Generic, TypeVar

K = TypeVar("K")


class Groups(Generic[K]):
    """Rows that are ordered by a key, handed out group by group, once.

    :param key: of a row.
    """

    def __init__(self, rows: Iterable[Any], key: Callable[[Any], K]) -> None:
        self._groups = groupby(rows, key=key)
        self._rows: Iterator[Any] = iter(())
        #: The key of the next group; None = there is none.
        self.head: K | None = None
        self._advance()

    def _advance(self) -> None:
        self.head, self._rows = next(self._groups, (None, iter(())))

    def of(self, key: K) -> Iterator[Any]:
        """The rows of the group *key*, which is not behind the head; none if there is no such."""
        if self.head == key:
            yield from self._rows
            self._advance()

    def leave(self, key: K) -> None:
        """Skip what was not read of the group *key*."""
        if self.head == key:
            self._advance()
