"""The endpoints about the account itself: what it is, and where its events go.

Imports ``account``, ``bodies``, ``calls``, ``hooks``, ``referee`` and ``wire``.
"""

from __future__ import annotations

from typing import Any

from .account import Account
from .bodies import seconds
from .calls import EXPAND, PAGING, Call, Route, page
from .hooks import Endpoint
from .referee import Shape, list_of, page_limit, text
from .wire import rfc3339

ENDPOINTS = "/v1/webhook_endpoints"
DESTINATIONS = "/v2/core/event_destinations"
_URL = "webhook_endpoint.url"


def _retrieve_account(account: Account, call: Call) -> Any:
    return {
        "object": "account",
        "id": account.id,
        "business_type": None,
        "charges_enabled": True,
        "country": "US",
        "default_currency": "usd",
        "details_submitted": True,
        "email": None,
        "metadata": {},
        "payouts_enabled": True,
        "type": "standard",
    }


def _list_endpoints(account: Account, call: Call) -> Any:
    found = [each for each in reversed(account.endpoints()) if not each.is_thin]
    return page([_endpoint_body(each, call.livemode) for each in found], ENDPOINTS, call)


def _endpoint_body(endpoint: Endpoint, livemode: bool) -> dict[str, Any]:
    return {
        "object": "webhook_endpoint",
        "id": endpoint.id,
        "api_version": None,
        "application": None,
        "created": seconds(endpoint.created),
        "description": None,
        "enabled_events": list(endpoint.types),
        "livemode": livemode,
        "metadata": {},
        "status": "enabled",
        "url": endpoint.url,
    }


def _list_destinations(account: Account, call: Call) -> Any:
    found = [each for each in reversed(account.endpoints()) if each.is_thin]
    shown = found[: call.params.get("limit", 20)]
    with_url = _URL in call.params.get("include", ())
    return {
        "data": [_destination_body(each, call.livemode, with_url=with_url) for each in shown],
        "next_page_url": None,
        "previous_page_url": None,
    }


def _destination_body(endpoint: Endpoint, livemode: bool, *, with_url: bool) -> dict[str, Any]:
    return {
        "object": "v2.core.event_destination",
        "id": endpoint.id,
        "created": rfc3339(endpoint.created),
        "description": "",
        "enabled_events": list(endpoint.types),
        "event_payload": "thin",
        "events_from": ["@self"],
        "livemode": livemode,
        "metadata": {},
        "name": endpoint.id,
        "snapshot_api_version": None,
        "status": "enabled",
        "status_details": None,
        "type": "webhook_endpoint",
        "updated": rfc3339(endpoint.created),
        "webhook_endpoint": {
            "signing_secret": None,
            "url": endpoint.url if with_url else None,
        },
    }


DESTINATION_ROUTES = (
    Route("GET", "/v1/account", _retrieve_account, Shape(optional=EXPAND)),
    Route("GET", ENDPOINTS, _list_endpoints, Shape(optional={**EXPAND, **PAGING})),
    Route(
        "GET",
        DESTINATIONS,
        _list_destinations,
        Shape(optional={"include": list_of(text(100)), "limit": page_limit}),
    ),
)
