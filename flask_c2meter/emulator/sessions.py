"""The sessions of the meter event stream: permission to write, for a while.

Imports ``terms``. Not thread-safe: the app holds its lock.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from .terms import new_id


@dataclass(frozen=True, slots=True)
class Session:
    """Permission to write to the stream for a while."""

    id: str
    token: str = field(repr=False)
    created: datetime
    expires_at: datetime
    livemode: bool


class Sessions:
    """The stream's sessions."""

    def __init__(self, ttl: timedelta) -> None:
        self._ttl = ttl
        self._by_token: dict[str, Session] = {}

    def open(self, livemode: bool, now: datetime) -> Session:
        """A new session."""
        token = secrets.token_urlsafe(24)
        session = Session(new_id("mes"), token, now, now + self._ttl, livemode)
        self._by_token[token] = session
        return session

    def find(self, token: str, now: datetime) -> Session | None:
        """The session of *token*, None if unknown or expired."""
        session = self._by_token.get(token)
        return session if session and now < session.expires_at else None
