"""What a check is given and what it says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..catalogue import Catalogue
    from ..config import Config
    from ..headers import Pair
    from ..store import DatabaseSettings
    from ..survey import Survey


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    #: Works, but not for ever, or not for everybody.
    WARNING = "warning"
    #: Usage is not counted, not billed or not safe.
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check has found."""

    level: Level
    what: str
    #: What to do about it; empty if nothing is wrong.
    cure: str = ""


def ok(what: str) -> Finding:
    """Nothing is wrong."""
    return Finding(Level.OK, what)


def warning(what: str, cure: str) -> Finding:
    """Something should be done."""
    return Finding(Level.WARNING, what, cure)


def error(what: str, cure: str) -> Finding:
    """Something must be done."""
    return Finding(Level.ERROR, what, cure)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a file lies."""

    name: str
    #: Type of the file system, such as ``ext4``; empty if that cannot be told.
    file_system: str = ""
    #: None = that cannot be told.
    free_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class DatabaseFacts:
    """What is known of the store and its files."""

    #: Why it cannot be read; empty if it can.
    failure: str = ""
    settings: DatabaseSettings | None = None
    #: Where its file lies; None = it is no file.
    place: Place | None = None
    #: File name -> size in bytes and permission bits.
    files: Mapping[str, tuple[int, int]] = field(default_factory=lambda: MappingProxyType({}))
    spill: Place = field(default_factory=lambda: Place(""))


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What is known of the app around us and its server."""

    #: Security headers of its https responses.
    headers: Sequence[Pair] = ()
    #: Whether rate limits are counted for all processes together; None = there are no limits.
    shares_limits: bool | None = None
    #: Processes that ``WEB_CONCURRENCY`` says serve the app; >= 1.
    processes: int = 1
    #: Whether the app's worker ran before anything was asked for.
    has_early_worker: bool = False
    #: Path of the webhook blueprint; None = it is not registered.
    webhook_path: str | None = None
    #: Whether customers' plans come from the host instead of Stripe.
    has_subscription_loader: bool = False
    #: Whether somebody says how much customers store.
    has_storage_loader: bool = False
    #: Ways to announce alerts outside of the app: ``email``, ``webhook``, ``signal``.
    channels: Sequence[str] = ()
    #: Channel -> why it could not be reached, empty if it could; None = nobody tried.
    reached: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything there is to know."""

    config: Config
    catalogue: Catalogue
    #: What Stripe says; None = there is no key.
    stripe: Survey | None
    database: DatabaseFacts
    #: As ``status`` reports it.
    status: Mapping[str, Any]
    host: HostFacts
    #: Types of snapshot and thin events that have an effect.
    snapshot_events: Sequence[str] = ()
    thin_events: Sequence[str] = ()

    @property
    def is_trial(self) -> bool:
        """Whether nothing that is recorded here reaches Stripe itself."""
        return self.stripe is None or self.stripe.is_diverted


Check = Callable[[Facts], Iterator[Finding]]


def named(names: Sequence[str], shown: int = 4) -> str:
    """Some of *names*, and how many more there are."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
