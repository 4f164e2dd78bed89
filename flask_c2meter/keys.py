"""Idempotency keys: what they are called, and that each counts once."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Protocol

from .config import Config
from .errors import CorruptStore, InvalidEvent, KeyConflict, StoreUnavailable
from .measurements import STORAGE
from .model import UsageEvent, check_text, to_ms
from .signals import emit, usage_rejected

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from .store import Store

#: A client's idempotency key is remembered this long; later it begins anew.
KEY_LIFE = timedelta(hours=24)

#: Keys we make ourselves; a client's key must not look like one.
_RESERVED = ("adjust:", "again:", "nested:", "part:")
#: Keys of the storage job: a client that uses one up would be measured no more.
_JOBS = f"{STORAGE}:"


class HasStore(Protocol):
    """What is needed of the process at hand."""

    @property
    def store(self) -> Store:
        """Its store."""


class Keys:
    """What the keys of one app have been used for.

    :param sender: of the signals.
    """

    def __init__(self, config: Config, parts: HasStore, sender: object) -> None:
        self._config = config
        self._parts = parts
        self._sender = sender

    def for_request(
        self, meter: str, customer: str, client_key: str, fingerprint: str, use: int = 1
    ) -> str:
        """The event key for a request with *client_key*: the same one for a repeated request.

        :param use: which operation of this meter it is within its request, counted from 1.
        :raises InvalidEvent: the key is too long, has control characters or is reserved.
        :raises KeyConflict: within 24 hours the key was used with another request.
        """
        first = key = request_key(client_key, use)
        now = self._config.clock()
        while (known := self._find(customer, meter, key)) is not None:
            if now - known.recorded_at < KEY_LIFE:
                if known.fingerprint != fingerprint:
                    raise _conflict("Idempotency-Key")
                return key
            key = f"again:{to_ms(known.recorded_at)}:{first}"
        return key

    def check_same(self, event: UsageEvent, connection: Connection | None = None) -> None:
        """A known key must come with the same request.

        :param connection: sees the event, if the caller's transaction has not committed it yet.
        :raises KeyConflict: it does not.
        """
        known = self._parts.store.find(event.customer, event.meter, event.key, connection)
        if known is not None and known.fingerprint != event.fingerprint:
            emit(
                usage_rejected,
                self._sender,
                customer=event.customer,
                meter=event.meter,
                reason="conflict",
                event=None,
            )
            raise _conflict("key")

    def _find(self, customer: str, meter: str, key: str) -> UsageEvent | None:
        """The event with that key; None also if the store is out of order and events are spilled.

        Then the key cannot be checked now, but counts once all the same when it is replayed.
        """
        try:
            return self._parts.store.find(customer, meter, key)
        except (StoreUnavailable, CorruptStore):
            if self._config.on_store_failure == "refuse":
                raise
            return None


def request_key(client_key: str, use: int) -> str:
    """The event key of a request with the client's *client_key*, when it is new.

    :param use: which operation of its meter it is within its request, counted from 1.
    :raises InvalidEvent: the key is too long, has control characters or is reserved.
    """
    check_client_key("Idempotency-Key", client_key)
    if client_key.startswith(_JOBS):
        raise InvalidEvent({"Idempotency-Key": f"must not begin with {_JOBS}"})
    return client_key if use == 1 else f"nested:{use}:{client_key}"


def part_key(key: str, number: int) -> str:
    """The key of a part, 1 and up, of the operation whose event has *key*."""
    return f"part:{number}:{key}"


def check_client_key(field: str, key: object) -> str:
    """*key* itself if a client may use it.

    :raises InvalidEvent: too long, control characters, or reserved.
    """
    checked = check_text(field, key)
    if checked.startswith(_RESERVED):
        raise InvalidEvent({field: f"must not begin with {' or '.join(_RESERVED)}"})
    return checked


def _conflict(field: str) -> KeyConflict:
    return KeyConflict({field: "was already used for something else; use a new key"})
