"""The table of all endpoints: which route a request takes, and how a "no" is said on it.

A handler takes the account and a checked :class:`~.calls.Call` and returns what becomes the JSON
body; it raises :class:`~.wire.Refusal` or lets a :class:`~.terms.Rejection` through. A new family
of endpoints is a room beside ``billing_calls`` and its rows in :data:`ROUTES`. Imports the
families, ``terms`` and ``wire``. Promise: every answer is valid against Stripe's OpenAPI
description (tests/contract); the part of it at hand describes neither invoices nor destinations.
"""

from __future__ import annotations

import re

from .billing_calls import BILLING_ROUTES
from .calls import Route
from .destination_calls import DESTINATION_ROUTES
from .invoice_calls import INVOICE_ROUTES
from .meter_calls import METER_ROUTES
from .price_calls import PRICE_ROUTES
from .terms import Rejection
from .wire import ReceivedRequest, Refusal

ROUTES = (
    *METER_ROUTES,
    *PRICE_ROUTES,
    *BILLING_ROUTES,
    *INVOICE_ROUTES,
    *DESTINATION_ROUTES,
)

_EXACT = {(route.method, route.path): route for route in ROUTES if "{id}" not in route.path}
_WITH_ID = tuple(
    (route.method, re.compile(route.path.replace("{id}", "([^/]+)")), route)
    for route in ROUTES
    if "{id}" in route.path
)


def find_route(method: str, path: str) -> tuple[Route, str]:
    """The route of a request and the id in its path.

    :raises Refusal: there is none (404).
    """
    exact = _EXACT.get((method, path))
    if exact:
        return exact, ""
    for wanted, pattern, route in _WITH_ID:
        match = pattern.fullmatch(path)
        if wanted == method and match:
            return route, match[1]
    raise Refusal(f"Unrecognized request URL ({method}: {path}).", status=404)


_BARE_IN_V1 = {"no_meter", "meter_exists", "timestamp_in_future", "timestamp_too_far_in_past"}


def translate(rejection: Rejection, request: ReceivedRequest, duplicate_code: bool) -> Refusal:
    """What is answered to a *rejection*: v1 leaves most codes out, v2 never does.

    :param duplicate_code: whether v1 names the code of a duplicate.
    """
    duplicate = rejection.code == "duplicate_meter_event"
    bare = rejection.code in _BARE_IN_V1 or (duplicate and not duplicate_code)
    code = None if bare and not request.is_v2 else rejection.code
    return Refusal(rejection.message, code=code, param=rejection.param)
