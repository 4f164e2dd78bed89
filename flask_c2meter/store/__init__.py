"""The store: everything durable, and the only folder with SQL.

:class:`Store` is what the layers above see; :func:`open_store` picks the one for a database URL.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from ..errors import ConfigError
from ..model import Meter
from .alerts import AlertPolicy
from .journal import Decision
from .ledger import MAX_BATCH, Entry, adjustment_key, decode, encode
from .schema import SCHEMA_VERSION
from .settings import DatabaseSettings
from .shipping import (
    ALL,
    RECONCILED,
    UNAVAILABLE,
    UNEXPLAINED,
    Claimant,
    Doubt,
    Hold,
    LaneTour,
    MeterCounts,
    Settlement,
    probe_after_ms,
)
from .spill import Spill

if TYPE_CHECKING:
    from .store import Store
    from .subscriptions import Finding


def __getattr__(name: str) -> Any:
    """``Store``, when somebody asks: SQLAlchemy is loaded where a store is opened, not before."""
    if name == "Store":
        from .store import Store

        return Store
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def open_store(
    url: str,
    meters: Mapping[str, Meter],
    durability: Literal["full", "relaxed"] = "full",
    alerts: AlertPolicy | None = None,
) -> Store:
    """The store at *url*; opens nothing yet.

    :param url: ``sqlite:////absolute/path``.
    :param alerts: when to raise alerts; None = never.
    :raises ConfigError: no store speaks that URL.
    """
    path = database_path(url)
    from .sqlite import SqliteStore

    return SqliteStore(path, meters, durability, alerts)


def database_path(url: str) -> str:
    """The file of a ``sqlite:///`` *url*.

    :raises ConfigError: no store speaks that URL; it is not shown, it may hold a password.
    """
    scheme, _, path = url.partition(":///")
    if scheme != "sqlite" or path in ("", ":memory:") or "?" in path:
        raise ConfigError(
            f"C2METER_DATABASE_URL: there is no store for a {url.partition(':')[0]!r} URL like "
            "this one; use sqlite:////absolute/path/of/a/file, without options "
            "(in-memory databases are not durable)"
        )
    return path


__all__ = [
    "ALL",
    "MAX_BATCH",
    "RECONCILED",
    "SCHEMA_VERSION",
    "UNAVAILABLE",
    "UNEXPLAINED",
    "AlertPolicy",
    "Claimant",
    "DatabaseSettings",
    "Decision",
    "Doubt",
    "Entry",
    "Finding",
    "Hold",
    "LaneTour",
    "MeterCounts",
    "Settlement",
    "Spill",
    "Store",
    "adjustment_key",
    "database_path",
    "decode",
    "encode",
    "open_store",
    "probe_after_ms",
]
