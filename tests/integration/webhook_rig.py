"""Webhooks as Stripe would send them, made by hand, and what became of each in the store."""

from __future__ import annotations

import hmac
import http.client
import itertools
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any
from urllib.parse import urlsplit

from billing_rig import CUSTOMER, SECRET, Account
from sqlalchemy import text

_numbers = itertools.count(1)


def event(account: Account, kind: str, found: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """A snapshot event of now that tells of the object *found*."""
    return {
        "object": "event",
        "id": f"evt_by_hand_{next(_numbers)}",
        "type": kind,
        "created": int(account.clock().timestamp()),
        "livemode": False,
        "data": {"object": dict(found)},
        **more,
    }


def invoice(account: Account, start: datetime, end: datetime, **more: Any) -> dict[str, Any]:
    """An invoice of the cycle that ended at *end*, for its one metered item."""
    return {
        "object": "invoice",
        "id": f"in_by_hand_{next(_numbers)}",
        "billing_reason": "subscription_cycle",
        "created": int(end.timestamp()),
        "customer": CUSTOMER,
        "lines": {"object": "list", "data": [line(start, end)]},
        "parent": {
            "type": "subscription_details",
            "subscription_details": {"subscription": account.subscription},
        },
        "period_start": int(start.timestamp()),
        "period_end": int(end.timestamp()),
        "status_transitions": {"finalized_at": int(account.clock().timestamp())},
        **more,
    }


def line(start: datetime, end: datetime, kind: str = "subscription_item_details") -> dict[str, Any]:
    return {
        "object": "line_item",
        "parent": {"type": kind},
        "period": {"start": int(start.timestamp()), "end": int(end.timestamp())},
    }


def signed(body: bytes, at: datetime, *secrets: str) -> str:
    """The ``Stripe-Signature`` of *body*."""
    seconds = int(at.timestamp())
    digests = (
        hmac.new(secret.encode(), f"{seconds}.".encode() + body, sha256).hexdigest()
        for secret in secrets
    )
    return ",".join([f"t={seconds}", *(f"v1={digest}" for digest in digests)])


def send(
    account: Account,
    body: bytes | Mapping[str, Any],
    *,
    secret: str = SECRET,
    age: timedelta = timedelta(0),
    signature: str | None = None,
    method: str = "POST",
    chunked: bool = False,
) -> tuple[int, str]:
    """Send *body* over a socket; status and text of the answer.

    :param age: how long ago it was signed.
    :param signature: in place of the right one.
    :param chunked: without a ``Content-Length``.
    """
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    header = signed(data, account.clock() - age, secret) if signature is None else signature
    where = urlsplit(account.url)
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=10)
    try:
        connection.request(
            method,
            where.path,
            iter([data]) if chunked else data,
            {"Stripe-Signature": header, "Content-Type": "application/json"},
            encode_chunked=chunked,
        )
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


@contextmanager
def down(account: Account) -> Iterator[list[str]]:
    """The host is down for webhooks; the events that it has missed, oldest first, after the block.

    The emulator must try each event once only.
    """
    missed: list[str] = []
    hooks = account.app.before_request_funcs.setdefault(None, [])
    hooks.insert(0, _is_down)
    yield missed
    account.settle()
    hooks.remove(_is_down)
    missed += [each.event for each in account.stripe.webhook_deliveries if each.status == 502]


def _is_down() -> tuple[str, int]:
    return "", 502


def inbox(account: Account) -> dict[str, tuple[str, str, str | None]]:
    """Id -> type, state and reason of every event taken in."""
    with account.store.reading() as connection:
        rows = connection.execute(text("SELECT id, type, state, reason FROM webhook_events"))
        return {row[0]: (row[1], row[2], row[3]) for row in rows}


def states(account: Account, kind: str) -> list[str]:
    """The states of the events of one type."""
    return sorted(state for found, state, _ in inbox(account).values() if found == kind)


def statuses(account: Account) -> list[int | None]:
    """What the app has answered to the emulator's webhooks."""
    return [delivery.status for delivery in account.stripe.webhook_deliveries]


def reads(account: Account) -> list[str]:
    """What Stripe has been asked for, after it was set up."""
    asked = account.stripe.requests[account.asked_before :]
    return [f"{request.method} {request.path}" for request in asked]
