"""Small facts: the entries of ``meta``, a name and a value in JSON each.

Functions take an open connection; the caller commits.
"""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import Connection, delete, select, text

from .tables import meta

_WRITE = text(
    "INSERT INTO meta (name, value) VALUES (:name, :value) "
    "ON CONFLICT (name) DO UPDATE SET value = excluded.value"
)


def every(connection: Connection) -> dict[str, Any]:
    """Name -> value of each entry."""
    return {name: json.loads(value) for name, value in connection.execute(select(meta)).all()}


def read(connection: Connection, name: str) -> Any:
    """The value of the entry *name*, locked where writers are not alone; None = there is none."""
    query = select(meta.c.value).where(meta.c.name == name).with_for_update()
    found = connection.execute(query).scalar()
    return None if found is None else json.loads(found)


def write(connection: Connection, name: str, value: object) -> None:
    """Set the entry *name*; None removes it."""
    if value is None:
        connection.execute(delete(meta).where(meta.c.name == name))
    else:
        connection.execute(_WRITE, {"name": name, "value": json.dumps(value)})
