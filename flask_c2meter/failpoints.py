"""Named places where a test may make the process fail; inert in production.

The places are ``before_commit``, ``after_commit``, ``after_claim``, ``before_send``,
``after_send``, ``before_ack`` and ``after_ack``. Nothing happens at any of them
until :mod:`flask_c2meter.testing` is imported and arms one.
"""

from __future__ import annotations

from collections.abc import Callable

#: name -> what to do there; filled by ``flask_c2meter.testing`` only.
armed: dict[str, Callable[[], None]] = {}


def reach(name: str) -> None:
    """Run what is armed at *name*, normally nothing."""
    if armed and (action := armed.get(name)) is not None:
        action()
