"""Everything the emulated Stripe account holds, put together.

Imports the rooms of the account. Not thread-safe: the app holds its lock. Promise: whatever happens
in a room is told once, as an event of its moment; :meth:`Account.catch_up` costs nothing when
nothing is due.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from .agenda import Agenda
from .billing import Billing
from .bodies import body_of
from .customers import Customers
from .hooks import Endpoint
from .invoices import Invoices
from .meters import Meters, Rules
from .news import Event, Journal
from .prices import Catalogue
from .sessions import Sessions
from .terms import new_id


@dataclass(frozen=True, slots=True)
class Settings:
    """What an account goes by; each field is a parameter of ``StripeEmulator``."""

    rules: Rules
    customers: Container[str] | None
    session_ttl: timedelta
    finalisation_grace: timedelta
    max_samples: int
    livemode: bool


class Account:
    """All rooms of an account, empty at first.

    :param post: sends an event to the endpoints that want it; returns how many.
    :param endpoints: where events go.
    """

    def __init__(
        self,
        settings: Settings,
        post: Callable[[Event], int],
        endpoints: Callable[[], Sequence[Endpoint]],
    ) -> None:
        self._livemode = settings.livemode
        self.id: str = new_id("acct")
        self.endpoints = endpoints
        #: What is still to come for customers without a test clock.
        self.agenda: Agenda = Agenda()
        self.customers: Customers = Customers(settings.customers)
        self.meters: Meters = Meters(settings.rules, self.customers, self.tell)
        self.sessions: Sessions = Sessions(settings.session_ttl)
        self.catalogue: Catalogue = Catalogue()
        self.invoices: Invoices = Invoices(self.meters)
        self.journal: Journal = Journal(self.meters, post, settings.livemode, settings.max_samples)
        self.billing: Billing = Billing(
            self.customers, self.invoices, self.agenda, self.tell, settings.finalisation_grace
        )

    def tell(self, type: str, thing: Any, moment: datetime) -> None:
        """Make an event of what has happened to *thing*."""
        self.journal.write(type, body_of(thing, self.invoices, self._livemode), moment)

    def catch_up(self, now: datetime) -> None:
        """Let happen what has become due by *now*."""
        self.agenda.run(now)
