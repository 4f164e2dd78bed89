"""What Stripe says of us: may the key do what it must, is the clock right, where do events go.

Reads only. Promise: whatever Stripe or the network does, the result says how far it came.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from .catalogue import Catalogue
from .gateway import Gateway, Refused
from .provisioner import Provisioner
from .provisioning import Plan
from .shipment import Verdict

if TYPE_CHECKING:
    from stripe import StripeClient


@dataclass(frozen=True, slots=True)
class Permission:
    """Something that a restricted key may lack."""

    #: In the words of Stripe's Dashboard.
    name: str
    #: What does not work without it.
    needed_for: str
    #: False if usage is counted and billed all the same.
    is_vital: bool
    #: A request that takes it, and changes nothing.
    read: Callable[[StripeClient], Any]


METERS = Permission(
    "Billing Meters: Read",
    "shipments in doubt, reconcile and selftest",
    True,
    lambda client: client.v1.billing.meters.list({"limit": 1}),
)
PRODUCTS = Permission(
    "Products: Read",
    "provision and this examination",
    False,
    lambda client: client.v1.products.list({"limit": 1}),
)
PRICES = Permission(
    "Prices: Read",
    "provision and this examination",
    False,
    lambda client: client.v1.prices.list({"limit": 1}),
)
SUBSCRIPTIONS = Permission(
    "Subscriptions: Read",
    "plans and billing periods, without a subscription_loader",
    True,
    lambda client: client.v1.subscriptions.list({"limit": 1}),
)
CUSTOMERS = Permission(
    "Customers: Read",
    "noticing customers that were deleted",
    False,
    lambda client: client.v1.customers.list({"limit": 1}),
)
WEBHOOK_ENDPOINTS = Permission(
    "Webhook Endpoints: Read",
    "this examination of the webhooks",
    False,
    lambda client: client.v1.webhook_endpoints.list({"limit": 1}),
)
EVENT_DESTINATIONS = Permission(
    "Event Destinations: Read",
    "this examination of the thin webhooks",
    False,
    lambda client: client.v2.core.event_destinations.list({"limit": 1}),
)

PERMISSIONS = (
    METERS,
    PRODUCTS,
    PRICES,
    SUBSCRIPTIONS,
    CUSTOMERS,
    WEBHOOK_ENDPOINTS,
    EVENT_DESTINATIONS,
)


@dataclass(frozen=True, slots=True)
class Destination:
    """Where Stripe sends events to: a webhook endpoint."""

    url: str
    #: Thin events instead of snapshots.
    is_thin: bool
    is_enabled: bool
    #: Types of events, with ``*`` for all.
    events: Sequence[str]

    def wants(self, kind: str) -> bool:
        """Whether events of a type are sent there."""
        return any(fnmatchcase(kind, wanted) for wanted in self.events)


@dataclass(frozen=True, slots=True)
class Survey:
    """What was found."""

    #: Stripe's host, and the mode of the key.
    account: str
    livemode: bool = False
    is_restricted: bool = False
    #: Something else is spoken to in Stripe's place.
    is_diverted: bool = False
    #: Why Stripe could not be asked any further; empty if it could.
    failure: str = ""
    #: How far Stripe's clock is ahead of ours, in seconds; None = it did not say.
    skew_s: float | None = None
    missing: Sequence[Permission] = ()
    #: What would have to be done for the catalogue; None = not known.
    plan: Plan | None = None
    #: None = not known.
    snapshots: Sequence[Destination] | None = None
    thin: Sequence[Destination] | None = None


def survey(gateway: Gateway, catalogue: Catalogue) -> Survey:
    """Ask Stripe all there is to know; never raises for anything Stripe does."""
    found: dict[str, Any] = {}
    try:
        _look(gateway, catalogue, found)
    except Refused as refused:
        found["failure"] = refused.outcome.reason
    return Survey(
        account=gateway.account,
        livemode=gateway.livemode,
        is_restricted=gateway.is_restricted,
        is_diverted=gateway.is_diverted,
        **found,
    )


def _look(gateway: Gateway, catalogue: Catalogue, found: dict[str, Any]) -> None:
    """Put what Stripe says into *found*: what was put there before it refuses stays."""
    found["skew_s"] = _skew_s(gateway)
    missing = found["missing"] = []
    for permission in PERMISSIONS:
        try:
            gateway.ask(permission.read)
        except Refused as refused:
            if not _is_forbidden(refused) and not _is_unknown(refused):
                raise
            missing.append(permission)
    if not {METERS, PRODUCTS, PRICES} & {*missing}:
        found["plan"] = Provisioner(gateway, catalogue).plan()
    # Stripe has both lists; what was made by the newer is not in the older.
    newer = [] if EVENT_DESTINATIONS in missing else gateway.ask(_destinations)
    if EVENT_DESTINATIONS not in missing:
        found["thin"] = [each for each in newer if each.is_thin]
    if WEBHOOK_ENDPOINTS not in missing:
        snapshots = [each for each in newer if not each.is_thin]
        found["snapshots"] = [*gateway.ask(_endpoints), *snapshots]


def _is_forbidden(refused: Refused) -> bool:
    return refused.outcome.reason.startswith("403")


def _is_unknown(refused: Refused) -> bool:
    """Whether this account has no such thing, such as an API that is not for everybody."""
    outcome = refused.outcome
    return outcome.verdict is Verdict.REJECTED or outcome.reason == "unrecognized_url"


def _skew_s(gateway: Gateway) -> float | None:
    """By any answer, a refusal included, unless it speaks against the key."""
    before = gateway.clock()
    try:
        headers = gateway.ask(_account_headers)
    except Refused as refused:
        if not _is_forbidden(refused):
            raise
        headers = refused.headers
    after = gateway.clock()
    try:
        told = parsedate_to_datetime(headers["Date"])
    except (LookupError, TypeError, ValueError):
        return None
    # Stripe has read its clock at some moment between; it says whole seconds.
    return _apart_s(told.replace(tzinfo=told.tzinfo or UTC), before, after)


def _apart_s(told: datetime, before: datetime, after: datetime) -> float:
    if told > after:
        return (told - after).total_seconds()
    return min(0.0, (told - before).total_seconds() + 1)


def _account_headers(client: StripeClient) -> Mapping[str, str]:
    response: Any = client.v1.accounts.retrieve_current().last_response
    headers: Mapping[str, str] = response.headers
    return headers


def _endpoints(client: StripeClient) -> list[Destination]:
    rows = client.v1.webhook_endpoints.list({"limit": 100}).auto_paging_iter()
    return [
        Destination(row.url, False, row.status == "enabled", [*row.enabled_events]) for row in rows
    ]


def _destinations(client: StripeClient) -> list[Destination]:
    rows = client.v2.core.event_destinations.list(
        {"limit": 100, "include": ["webhook_endpoint.url"]}
    )
    return [
        Destination(
            row.webhook_endpoint.url,
            row.event_payload == "thin",
            row.status == "enabled",
            [*row.enabled_events],
        )
        for row in rows.auto_paging_iter()
        if row.webhook_endpoint and row.webhook_endpoint.url
    ]
