"""Rate limits in Flask: Flask-Limiter's ``Limiter`` owns storage and configuration.

Imports Flask, Flask-Limiter and lower layers. The hot path asks the ``Limiter``'s strategy object
itself (:mod:`~flask_c2meter.limiting`), which costs 10 us a request instead of 170.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import flask
from flask_limiter import Limiter
from flask_limiter.util import get_remote_address

from .errors import ConfigError
from .limiting import RETRY_STORAGE_S, RateLimiter, storage_of, usable_storage, warn_of_memory
from .windows import Decision


class FlaskRateLimiter(RateLimiter):
    """Decides for one Flask app. Build it with :func:`build_limiter`."""

    def __init__(
        self,
        app: flask.Flask,
        limiter: Limiter,
        *,
        workers: int | None = None,
        retry_storage_s: float = RETRY_STORAGE_S,
    ) -> None:
        super().__init__(
            # Taken now, because a second app's init_app would put its own storage into the limiter.
            limiter.limiter if limiter.enabled else None,
            app.config.get("RATELIMIT_KEY_PREFIX"),
            workers=workers,
            retry_storage_s=retry_storage_s,
        )
        self._limiter = limiter
        # The live set: a limiter that the host adds later is seen as well.
        self._limiters: set[Limiter] = app.extensions.setdefault("limiter", set())

    @property
    def is_shared(self) -> bool | None:
        """The same; None also while the host has switched its limiter off."""
        return super().is_shared if self._limiter.enabled else None

    def hit(self, meter: str, rule: str | None, user: str) -> Decision | None:
        """The same, unless the host has switched its limiter off meanwhile."""
        return super().hit(meter, rule, user) if self._limiter.enabled else None

    def headers(self, decision: Decision) -> list[tuple[str, str]]:
        """The headers to send with *decision*, within its request.

        If a limiter of the host's own sends headers for this very request, it appends them: its
        ``X-RateLimit-*`` would follow ours, so ours stay away. A refusal is ours alone: there its
        headers would speak of a limit that has not been reached.
        """
        pairs = decision.headers()
        senders = [limiter for limiter in self._limiters if _sends_headers(limiter)]
        if not decision.allowed:
            for limiter in senders:
                limiter.context.view_rate_limit = None
            return pairs
        return [] if senders else pairs


def build_limiter(
    app: flask.Flask,
    limiter: Limiter | None = None,
    *,
    workers: int | None = None,
    retry_storage_s: float = RETRY_STORAGE_S,
) -> RateLimiter:
    """The rate limiter of *app*; opens no connection and starts no thread.

    :param limiter: the host's own, whose storage and strategy are then used as they are. It must
        be initialised for *app* before.
    :param workers: processes that share a limit while the storage fails; None = what
        ``WEB_CONCURRENCY`` says, or how many there are like this one beside it.
    :param retry_storage_s: how long a failed storage is left alone.
    :raises ConfigError: the storage cannot be used, or *limiter* does not know *app*.

    Reads ``RATELIMIT_ENABLED``, ``RATELIMIT_STORAGE_URI``, ``RATELIMIT_STORAGE_OPTIONS`` and
    ``RATELIMIT_KEY_PREFIX``; the other ``RATELIMIT_`` keys concern the host's limiters only.
    """
    if limiter is None:
        limiter = _own_limiter(app)
        if limiter.enabled:
            warn_of_memory(limiter.limiter)
    elif limiter.enabled and limiter not in app.extensions.get("limiter", ()):
        raise ConfigError(
            "the limiter handed over is not initialised for this app; "
            "call limiter.init_app(app) before"
        )
    return FlaskRateLimiter(app, limiter, workers=workers, retry_storage_s=retry_storage_s)


def _own_limiter(app: flask.Flask) -> Limiter:
    """A ``Limiter`` of ours that neither inherits the host's limits nor touches its requests."""
    registered: set[Limiter] = app.extensions.setdefault("limiter", set())
    is_first = not registered
    uri, options = storage_of(app.config)
    limiter = Limiter(
        get_remote_address,
        strategy="moving-window",
        storage_uri=uri,
        storage_options=options,
        headers_enabled=False,
        enabled=app.config.get("RATELIMIT_ENABLED", True),
    )
    # A limiter that is known already gets no before_request, after_request and teardown hooks.
    registered.add(limiter)
    try:
        with usable_storage(uri), _hidden(app.config, "RATELIMIT_"):
            limiter.init_app(app)
    finally:
        # The command `flask limiter` shows any one of the registered: leave it the host's.
        if not (limiter.initialized and is_first):
            registered.discard(limiter)
    return limiter


@contextmanager
def _hidden(config: dict[str, Any], prefix: str) -> Iterator[None]:
    """Hide the keys with *prefix*, and drop those that are set meanwhile."""
    saved = {key: value for key, value in config.items() if key.startswith(prefix)}
    for key in saved:
        del config[key]
    try:
        yield
    finally:
        for key in [key for key in config if key.startswith(prefix)]:
            del config[key]
        config.update(saved)


def _sends_headers(limiter: Limiter) -> bool:
    # current_limit is set once the limiter has checked this request.
    return bool(getattr(limiter, "_headers_enabled", False) and limiter.current_limit)
