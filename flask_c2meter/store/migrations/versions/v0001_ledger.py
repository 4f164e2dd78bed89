"""The ledger and all that is derived from it."""

from alembic import op

from flask_c2meter.store.tables import metadata

revision = "0001"
down_revision = None


def upgrade() -> None:
    metadata.create_all(op.get_bind())
