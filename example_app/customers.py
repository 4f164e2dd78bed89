"""The two demonstration customers and the operator, and how a request proves to be one of them.

Programs send an API key with each request; people log in with it once, and a session remembers. A
real service looks the key up in its own database; everything else stays as it is here. Imports only
Flask and ``flask_c2meter``.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from typing import Any, TypeVar

from flask import request, session

from flask_c2meter import ALL_CUSTOMERS, Customer

T = TypeVar("T")

#: API key -> customer. The keys are public on purpose: they guard nothing but a demonstration.
DEMO_CUSTOMERS = {
    "demo-starter-key": Customer(
        id="cus_demo_starter", user_id="starter", plan="starter", email="starter@customer.example"
    ),
    "demo-growth-key": Customer(
        id="cus_demo_growth", user_id="growth", plan="growth", email="growth@customer.example"
    ),
}
#: Sees every customer's dashboard, and has no usage of its own.
OPERATOR_KEY = "demo-operator-key"

_VISITORS: Mapping[str, Any] = {**DEMO_CUSTOMERS, OPERATOR_KEY: ALL_CUSTOMERS}


def load_customer() -> Customer | None:
    """The customer whose API key this request carries, or None.

    The key comes as ``Authorization: Bearer KEY`` or as ``X-API-Key: KEY``. Both are headers that
    no foreign web page can make a browser send, which is what protects the state changes from CSRF.
    """
    authorization = request.authorization
    bearer = authorization.token if authorization and authorization.type == "bearer" else None
    offered = (bearer or request.headers.get("X-API-Key", "")).encode()
    return _known(offered, DEMO_CUSTOMERS)


def log_in(key: str) -> bool:
    """Let this browser be whoever has the API *key*; False if nobody has."""
    if _known(key.encode(), _VISITORS) is None:
        return False
    session["key"] = key
    return True


def load_visitor() -> Any:
    """Who looks at the dashboard: one customer, or the operator, who may see all."""
    return _VISITORS.get(session.get("key", ""))


def _known(offered: bytes, keys: Mapping[str, T]) -> T | None:
    found = None
    for key, owner in keys.items():
        # Every key is compared, each in constant time: the answer's timing says nothing.
        if hmac.compare_digest(key.encode(), offered):
            found = owner
    return found
