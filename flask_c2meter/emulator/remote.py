"""The remote control: a test in another process pulls the emulator's levers over HTTP.

``POST /_emulator/<lever>`` takes JSON with the parameters of the method of the same name, times as
ISO text; ``advance`` takes ``seconds``. The answer has the emulator's ``now`` and, where the lever
returns something, the ``result``. Imports ``wire``. Promise: a parameter that a lever does not
take is refused before it is pulled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from .wire import Answer, ReceivedRequest, Refusal, parse_json, rfc3339

if TYPE_CHECKING:
    from .app import StripeEmulator

_TEXT = (str,)
_FLAG = (bool,)
_MAP = (dict,)
_LIST = (list,)
_NUMBER = (int, float)
#: In JSON an ISO text with a zone.
_TIME = (datetime,)

#: Lever -> its parameters and their types.
LEVERS: Mapping[str, Mapping[str, tuple[type, ...]]] = {
    "advance": {"seconds": _NUMBER},
    "recover": {},
    "forget": {},
    "accept_keys": {"keys": (list, type(None))},
    "fail": {
        "status": (int,),
        "times": (int, type(None)),
        "path": _TEXT,
        "after_processing": _FLAG,
        "retry_after": (int, str),
        "code": _TEXT,
        "message": _TEXT,
        "reset": _FLAG,
        "delay": _NUMBER,
        "rate": _NUMBER,
        "body": _TEXT,
        "headers": _MAP,
    },
    "add_customer": {
        "id": _TEXT,
        "email": _TEXT,
        "name": _TEXT,
        "metadata": _MAP,
        "test_clock": _TEXT,
    },
    "update_customer": {"id": _TEXT, "email": _TEXT, "name": _TEXT, "metadata": _MAP},
    "delete_customer": {"id": _TEXT},
    "add_test_clock": {"frozen_time": _TIME, "name": _TEXT},
    "advance_test_clock": {"id": _TEXT, "frozen_time": _TIME},
    "add_meter": {"event_name": _TEXT, "display_name": _TEXT},
    "add_price": {
        "meter": _TEXT,
        "lookup_key": _TEXT,
        "currency": _TEXT,
        "unit_amount_decimal": _TEXT,
        "tiers": _LIST,
        "tiers_mode": _TEXT,
        "interval": _TEXT,
        "interval_count": (int,),
        "metadata": _MAP,
        "product": _TEXT,
    },
    "add_subscription": {
        "customer": _TEXT,
        "prices": _LIST,
        "start": _TIME,
        "billing_mode": _TEXT,
        "trial_end": _TIME,
        "metadata": _MAP,
        "id": _TEXT,
    },
    "change_price": {"subscription": _TEXT, "old": _TEXT, "new": _TEXT, "reset_anchor": _FLAG},
    "change_prices": {"subscription": _TEXT, "changes": _MAP, "reset_anchor": _FLAG},
    "add_item": {"subscription": _TEXT, "price": _TEXT},
    "remove_item": {"subscription": _TEXT, "price": _TEXT},
    "cancel_subscription": {"subscription": _TEXT, "at_period_end": _FLAG},
    "set_status": {"subscription": _TEXT, "status": _TEXT},
    "preview_invoice": {"subscription": _TEXT},
    "add_webhook_endpoint": {"url": _TEXT, "secret": _TEXT, "events": _LIST, "thin": _FLAG},
    "resend": {"event_id": _TEXT},
    "hold_webhooks": {},
    "release_webhooks": {},
    "report_errors": {},
}


def pull(stripe: StripeEmulator, name: str, request: ReceivedRequest) -> Answer:
    """Pull the lever *name* with what *request* says."""
    # A page of another origin cannot send JSON without asking first, so it cannot pull.
    if not request.headers.get("Content-Type", "").startswith("application/json"):
        return Answer.of({"error": "send application/json"}, 415)
    if name not in LEVERS:
        return Answer.of({"error": f"no lever {name!r}: there are {', '.join(LEVERS)}"}, 404)
    try:
        params = _params(parse_json(request.body or b"{}"), LEVERS[name])
        result = _call(stripe, name, params)
    except (Refusal, TypeError, ValueError, OverflowError) as wrong:
        return Answer.of({"error": str(wrong)}, 400)
    now = {"now": rfc3339(stripe.now())}
    return Answer.of(now if result is None else {**now, "result": plain(result)})


def _advance(stripe: StripeEmulator, *, seconds: float) -> None:
    stripe.advance(timedelta(seconds=seconds))


def _call(stripe: StripeEmulator, name: str, params: Mapping[str, Any]) -> Any:
    if name != "advance":
        return getattr(stripe, name)(**params)
    _advance(stripe, **params)
    return None


def _params(given: Mapping[str, Any], types: Mapping[str, tuple[type, ...]]) -> dict[str, Any]:
    for name in given:
        if name not in types:
            raise Refusal(f"unknown parameter {name!r}: there are {', '.join(types) or 'none'}")
    return {name: _param(name, value, types[name]) for name, value in given.items()}


def _param(name: str, value: Any, types: tuple[type, ...]) -> Any:
    if types is _TIME:
        return datetime.fromisoformat(value)
    if not isinstance(value, types):
        raise Refusal(f"{name} has the wrong type {type(value).__name__}")
    return value


def plain(value: Any) -> Any:
    """*value* in JSON's types: decimals as text, times in RFC 3339."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, datetime):
        return rfc3339(value)
    return str(value) if isinstance(value, Decimal) else value
