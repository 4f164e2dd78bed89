"""Bringing a database to the schema of this version, with the packaged Alembic migrations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import StoreUnavailable

if TYPE_CHECKING:
    from sqlalchemy import Connection

#: Version of the schema that this code needs: the newest of ``migrations/versions``.
SCHEMA_VERSION = "0001"


def load_migrations() -> None:
    """Import what :func:`migrate` needs: half a second, which need not be spent in it."""
    import alembic.command  # noqa: F401


def migrate(connection: Connection) -> None:
    """Run the missing migrations on *connection* and commit.

    One at a time in a process: Alembic keeps its state in globals.

    :raises StoreUnavailable: the schema is newer than this version of the package.
    """
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", "flask_c2meter.store:migrations")
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as exc:
        raise StoreUnavailable(
            f"this version does not know the database's schema ({exc}); upgrade flask_c2meter"
        ) from exc
    if connection.in_transaction():
        connection.commit()
