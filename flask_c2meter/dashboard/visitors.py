"""Who looks at the dashboard, and at whom: what ``dashboard_auth`` says, and what follows from it.

Imports flask for the request at hand. The promise (P20): a customer sees itself and nobody else;
whoever asks for another id gets the same answer whether there is such a customer or not.
"""

from __future__ import annotations

from dataclasses import dataclass
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING

from flask import current_app

from ..errors import InvalidEvent
from ..globals import app_state
from ..hooks import ALL_CUSTOMERS, Sight
from ..model import Customer, check_customer_id

if TYPE_CHECKING:
    from ..store import Store


@dataclass(frozen=True, slots=True)
class Visitor:
    """Somebody who may look.

    :param customer: whom the visitor is; None = an operator.
    """

    customer: Customer | str | None

    @property
    def is_operator(self) -> bool:
        """Whether it may look at every customer, and change nothing."""
        return self.customer is None

    def sees(self, wanted: str | None, store: Store) -> Customer | str | None:
        """The customer to show; None = there is none that this visitor may see.

        :param wanted: the id that was asked for; None = the visitor itself.
        """
        if self.customer is not None:
            # Before anything is looked up: what is there must not even change how long it takes.
            return self.customer if wanted in (None, self.customer_id) else None
        return wanted if wanted is not None and _is_known(wanted, store) else None

    @property
    def customer_id(self) -> str | None:
        """Its id; None for an operator."""
        return self.customer.id if isinstance(self.customer, Customer) else self.customer


def _is_known(customer: str, store: Store) -> bool:
    try:
        return store.standing(check_customer_id(customer)).customer is not None
    except InvalidEvent:
        return False


def visitor() -> Visitor | None:
    """Who makes this request; None = nobody that may look.

    :raises RuntimeError: ``dashboard_auth`` returned something else than it may.
    """
    auth = app_state().hooks.dashboard_auth
    if auth is None:  # it was there when the blueprint was registered
        return None
    said: Sight = current_app.ensure_sync(auth)() if iscoroutinefunction(auth) else auth()
    if said is ALL_CUSTOMERS:
        return Visitor(None)
    if said is None or said == "":
        return None
    if isinstance(said, Customer):
        return Visitor(said)
    try:
        return Visitor(check_customer_id(said))
    except InvalidEvent as exc:
        raise RuntimeError(
            f"The dashboard_auth returned a {type(said).__name__} that is no customer: {exc}. "
            "It must return a customer id, a Customer, ALL_CUSTOMERS or None."
        ) from None
