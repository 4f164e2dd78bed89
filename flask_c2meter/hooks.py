"""What a host teaches its ``C2Meter``: functions, registered before or after ``init_app``.

Imports only types.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

from .model import Customer, StorageMeasurement, Subscription

if TYPE_CHECKING:
    from .channels.mail import Mail


class Everyone(Enum):
    """No text, so that nothing a request says can ever become it."""

    ALL_CUSTOMERS = "all customers"


#: What a ``dashboard_auth`` returns for an operator, who may look at every customer.
ALL_CUSTOMERS: Final = Everyone.ALL_CUSTOMERS

#: Whom the visitor of the dashboard may look at: a customer (or its id), everyone, or nobody.
Sight = Customer | str | Everyone | None

CustomerLoader = Callable[[], Customer | None]
SubscriptionLoader = Callable[[str], Subscription | None]
#: Without a parameter, or with one: a function that says whether a customer id is still wanted.
StorageLoader = (
    Callable[[], Iterable[StorageMeasurement]]
    | Callable[[Callable[[str], bool]], Iterable[StorageMeasurement]]
)
MailSender = Callable[["Mail"], object]
DashboardAuth = Callable[[], Sight]
MetricsAuth = Callable[[], bool]


@dataclass(slots=True)
class Hooks:
    """The functions that were registered."""

    customer_loader: CustomerLoader | None = None
    #: Runs in an app context, outside of any request.
    subscription_loader: SubscriptionLoader | None = None
    #: The same, in a thread of its own.
    storage_loader: StorageLoader | None = None
    #: As the subscription_loader.
    mail_sender: MailSender | None = None
    #: Runs within each request to the dashboard.
    dashboard_auth: DashboardAuth | None = None
    #: Runs within each request for metrics.
    metrics_auth: MetricsAuth | None = None
