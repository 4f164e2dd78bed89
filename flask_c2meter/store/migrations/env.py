"""Alembic's entry: runs the versions on the connection that the store hands over."""

from alembic import context

from flask_c2meter.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table="c2meter_schema_version",
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
