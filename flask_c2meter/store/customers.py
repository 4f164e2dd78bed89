"""What the loader last said of each customer; remembered, so that only what changed is written."""

from __future__ import annotations

from collections.abc import Iterable
from time import monotonic

from ..model import Customer
from .cursor import Cursor, execute_many, marked

#: Most customers a process remembers.
_REMEMBERED = 50_000
#: For so long: another process may have been told something else since.
_REMEMBERED_S = 60.0

_COLUMNS = "INSERT INTO customers (id, email, plan, user_label)"
_REPLACE = (
    "ON CONFLICT (id) DO UPDATE SET email = excluded.email, plan = excluded.plan, "
    "user_label = excluded.user_label"
)
_FIND = "SELECT id, user_label, plan, email FROM customers WHERE id = ?"


class CustomerBook:
    """The customers, for a process.

    :param mark: the driver's parameter mark.
    """

    def __init__(self, mark: str = "?") -> None:
        self._mark = mark
        #: Customer -> what the loader last said; None = only that there is one.
        self._known: dict[str, Customer | None] = {}
        self._uncommitted: dict[str, Customer | None] = {}
        self._since_s = monotonic()

    def note(self, cursor: Cursor, customers: Iterable[Customer | str]) -> None:
        """Write what is new of *customers*; of a bare id, that there is such a customer."""
        if monotonic() - self._since_s >= _REMEMBERED_S:
            self._known.clear()
            self._since_s = monotonic()
        said: dict[str, Customer] = {}
        bare: dict[str, None] = {}
        for each in customers:
            if isinstance(each, str):
                if each not in self._known:
                    bare[each] = None
            elif not self._is_known(each):
                said[each.id] = each
        if bare:
            ids = [(customer, None, None, None) for customer in bare]
            execute_many(cursor, _COLUMNS, ids, "ON CONFLICT (id) DO NOTHING", self._mark)
        if said:
            rows = [(c.id, c.email, c.plan, c.user_id) for c in said.values()]
            execute_many(cursor, _COLUMNS, rows, _REPLACE, self._mark)
        if bare or said:
            self._uncommitted |= {**bare, **said}

    def of(self, cursor: Cursor, customer: Customer | str) -> Customer:
        """*customer* itself, or what is stored of a bare id."""
        if isinstance(customer, Customer):
            return customer
        cursor.execute(marked(_FIND, self._mark), (customer,))
        found = cursor.fetchone()
        return Customer(*found) if found else Customer(customer)

    def committed(self) -> None:
        """What was noted last is in the store."""
        if self._uncommitted:
            if len(self._known) > _REMEMBERED:
                self._known.clear()
            self._known |= self._uncommitted
            self._uncommitted.clear()

    def forget(self) -> None:
        """What was noted last may have been rolled back: it is written again."""
        self._uncommitted.clear()

    def _is_known(self, customer: Customer) -> bool:
        known = self._known.get(customer.id)
        return known is not None and (known.email, known.plan) == (customer.email, customer.plan)
