"""For tests of apps that are metered: a clock, captured usage, the emulator, failpoints.

The pytest fixtures ``stripe_emulator``, ``c2meter_clock`` and ``captured_usage`` are there as soon
as the package is installed. Importing this module makes failpoints live: the environment variable
``C2METER_FAILPOINTS`` (such as ``before_commit=kill``, ``after_send=kill:3`` for the third time, or
``before_ack=raise``) arms them for real processes.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from . import failpoints

if TYPE_CHECKING:
    from .emulator import StripeEmulator
    from .model import UsageEvent

#: The places that can be armed.
FAILPOINTS = (
    "before_commit",
    "after_commit",
    "after_claim",
    "before_send",
    "after_send",
    "before_ack",
    "after_ack",
)


class FrozenClock:
    """A clock that moves only when told to; pass it as ``C2METER_CLOCK``.

    :param now: aware; default 2026-01-15 12:00 UTC.
    """

    def __init__(self, now: datetime | None = None) -> None:
        self.now: datetime = now or datetime(2026, 1, 15, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, by: timedelta) -> datetime:
        """Move by *by*, backwards too; return the new time."""
        self.now += by
        return self.now


@contextmanager
def capture_usage() -> Iterator[list[UsageEvent]]:
    """Collect the events that any app of this process records within the block."""
    from .signals import usage_recorded

    captured: list[UsageEvent] = []

    def collect(sender: object, event: UsageEvent, **extra: object) -> None:
        captured.append(event)

    with usage_recorded.connected_to(collect):
        yield captured


class Failure(BaseException):
    """Raised at a failpoint armed with ``raise``; like the end of a process, nothing catches it."""


@contextmanager
def failpoint(name: str, action: Callable[[], None]) -> Iterator[None]:
    """Run *action* whenever this process reaches *name*, within the block."""
    _arm(name, action)
    try:
        yield
    finally:
        failpoints.armed.pop(name, None)


def _arm(name: str, action: Callable[[], None]) -> None:
    if name not in FAILPOINTS:
        raise ValueError(f"no failpoint {name!r}; there are {', '.join(FAILPOINTS)}")
    failpoints.armed[name] = action


def _action(text: str) -> Callable[[], None]:
    """``kill``, ``raise`` or ``exit``, with ``:N`` at the N-th time only."""
    kind, _, count = text.partition(":")
    left = int(count or 1)

    def act() -> None:
        nonlocal left
        left -= 1
        if left:
            return
        if kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "exit":
            os._exit(1)
        raise Failure(text)

    return act


def arm_from_environment() -> None:
    """Arm what ``C2METER_FAILPOINTS`` names, comma-separated."""
    for item in filter(None, os.environ.get("C2METER_FAILPOINTS", "").split(",")):
        name, _, action = item.partition("=")
        _arm(name, _action(action))


arm_from_environment()


# -- pytest fixtures -------------------------------------------------------------------------------


@pytest.fixture
def stripe_emulator(request: pytest.FixtureRequest) -> Iterator[StripeEmulator]:
    """A Stripe emulator over a real socket, for one test; it goes by ``c2meter_clock`` if used."""
    from .emulator import StripeEmulator

    is_frozen = "c2meter_clock" in request.fixturenames
    clock = request.getfixturevalue("c2meter_clock") if is_frozen else None
    with StripeEmulator(clock=clock) as emulator:
        yield emulator


@pytest.fixture
def c2meter_clock() -> FrozenClock:
    """A clock to pass as ``C2METER_CLOCK``."""
    return FrozenClock()


@pytest.fixture
def captured_usage() -> Iterator[list[UsageEvent]]:
    """The events recorded during the test."""
    with capture_usage() as captured:
        yield captured
