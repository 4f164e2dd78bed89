"""Who is billed: customers, and the test clocks some of them live by.

Imports ``agenda`` and ``terms``. Not thread-safe: the app holds its lock. Promise: a customer's
time is its clock's if it has one, else the emulator's, and is asked for in one place.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from .agenda import Agenda
from .terms import Rejection, new_id


@dataclass(slots=True)
class Clock:
    """A test clock: time that stands still until it is advanced."""

    id: str
    frozen_time: datetime
    created: datetime
    name: str | None = None
    #: What its customers have to come.
    agenda: Agenda = field(default_factory=Agenda)


@dataclass(slots=True)
class Customer:
    """Somebody with subscriptions."""

    id: str
    created: datetime
    email: str | None = None
    name: str | None = None
    description: str | None = None
    phone: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    clock: Clock | None = None
    is_deleted: bool = False


class Customers:
    """All customers and test clocks.

    :param known: ids that are customers without having been created; None = any.
    """

    def __init__(self, known: Container[str] | None = None) -> None:
        self._known = known
        self.by_id: dict[str, Customer] = {}
        self.clocks: dict[str, Clock] = {}

    def create(self, customer: Customer) -> Customer:
        """Add *customer*.

        :raises Rejection: its id is taken, by a deleted customer too.
        """
        if customer.id in self.by_id:
            raise Rejection(
                "resource_already_exists", f"Customer already exists: '{customer.id}'", "id"
            )
        self.by_id[customer.id] = customer
        return customer

    def find(self, id: str) -> Customer:
        """The customer of this id.

        :raises Rejection: there is none, or it is deleted.
        """
        customer = self.by_id.get(id)
        if customer is None or customer.is_deleted:
            raise Rejection("resource_missing", f"No such customer: '{id}'", "customer")
        return customer

    def is_known(self, id: str) -> bool:
        """Whether *id* is a customer, created here or not."""
        customer = self.by_id.get(id)
        if customer is None:
            return self._known is None or id in self._known
        return not customer.is_deleted

    def now_of(self, id: str, now: datetime) -> datetime:
        """The customer's own time when the emulator's is *now*."""
        customer = self.by_id.get(id)
        return now if customer is None or customer.clock is None else customer.clock.frozen_time

    def add_clock(self, frozen_time: datetime, now: datetime, name: str | None = None) -> Clock:
        """A new test clock."""
        clock = Clock(new_id("clock"), frozen_time, now, name)
        self.clocks[clock.id] = clock
        return clock

    def find_clock(self, id: str) -> Clock:
        """The test clock of this id.

        :raises Rejection: there is none.
        """
        if id not in self.clocks:
            raise Rejection("resource_missing", f"No such testclock: '{id}'", "test_clock")
        return self.clocks[id]

    def advance_clock(self, id: str, frozen_time: datetime) -> Clock:
        """Move a test clock; what becomes due for its customers happens, step by step.

        :raises Rejection: there is no such clock, or *frozen_time* is not later than its time.
        """
        clock = self.find_clock(id)
        if frozen_time <= clock.frozen_time:
            raise Rejection(
                "parameter_invalid_integer",
                "The new frozen time must be later than the clock's current one.",
                "frozen_time",
            )
        clock.frozen_time = frozen_time
        clock.agenda.run(frozen_time)
        return clock
