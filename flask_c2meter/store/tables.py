"""The tables; their names are part of the operator's interface.

``events`` is the truth and append-only. ``seen``, ``buckets``, ``totals`` and ``days`` follow from
it and from ``periods``, and can be rebuilt; ``shipments`` says what Stripe was told. Quantities are
integers in wire units, times are UTC milliseconds since 1970: nothing here is ever a float.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    text,
)

metadata: MetaData = MetaData()

#: Row numbers; plain INTEGER on SQLite, where only that is an alias of the rowid.
_Id = BigInteger().with_variant(Integer, "sqlite")

events: Table = Table(
    "events",
    metadata,
    Column("id", _Id, primary_key=True, comment="recorded order"),
    Column("key", Text, nullable=False),
    Column("customer", Text, nullable=False),
    Column("meter", Text, nullable=False),
    Column("value", BigInteger, nullable=False),
    Column("unique_by", Text),
    Column("occurred_at", BigInteger, nullable=False),
    Column("recorded_at", BigInteger, nullable=False),
    Column("properties", Text, nullable=False, comment="canonical JSON"),
    Column("request_id", Text),
    Column("kind", Text, nullable=False, comment="usage | adjustment"),
    Column("flags", Text, nullable=False, comment="space-separated"),
    Column("fingerprint", Text),
    Column("checksum", Text, nullable=False),
    UniqueConstraint("customer", "meter", "key"),
)

Index(
    "events_flagged",
    events.c.meter,
    events.c.flags,
    sqlite_where=events.c.flags != "",
    postgresql_where=events.c.flags != "",
)

customers: Table = Table(
    "customers",
    metadata,
    Column("id", Text, primary_key=True),
    Column("email", Text, comment="as the loader last said, like the next two"),
    Column("plan", Text),
    Column("user_label", Text),
    Column("subscription", Text, comment="what was found at the last look: known, none, ..."),
    Column("read_at", BigInteger, comment="as of when the subscriptions are known"),
    Column("read_due_at", BigInteger, nullable=False, server_default="0"),
    sqlite_with_rowid=False,
)
Index("customers_due", customers.c.read_due_at)

periods: Table = Table(
    "periods",
    metadata,
    Column("id", _Id, primary_key=True, comment="order of knowledge: the newest wins"),
    Column("customer", Text, nullable=False),
    Column("meter", Text, nullable=False, comment="* = each that has no row of its own"),
    Column("start", BigInteger, nullable=False),
    Column("end", BigInteger, nullable=False),
    Column("cycle_start", BigInteger, nullable=False),
    Column("cycle_end", BigInteger, nullable=False, comment="its invoice is made then"),
    Column("plan", Text),
    Column("status", Text, nullable=False),
    Column("source", Text, nullable=False, comment="stripe | loader"),
    Column("subscription", Text),
    Column("known_at", BigInteger, nullable=False),
    Column("is_exact", Integer, nullable=False),
    Column("finalized_at", BigInteger),
    Index("periods_by_customer", "customer"),
    Index("periods_by_end", "cycle_end"),
)

seen: Table = Table(
    "seen",
    metadata,
    Column("customer", Text, primary_key=True),
    Column("meter", Text, primary_key=True),
    Column("period", BigInteger, primary_key=True),
    Column("key_hash", Text, primary_key=True),
    sqlite_with_rowid=False,
)

buckets: Table = Table(
    "buckets",
    metadata,
    Column("customer", Text, primary_key=True),
    Column("meter", Text, primary_key=True),
    Column("period", BigInteger, primary_key=True, comment="start of the period"),
    Column("minute", BigInteger, primary_key=True, comment="start of the minute of occurrence"),
    Column("total", BigInteger, nullable=False, comment="sum of the increments"),
    Column("counted", BigInteger, nullable=False, comment="sum of its shipments' counted"),
    Column("last_at", BigInteger, nullable=False, comment="latest occurrence"),
    # Two notes on how delivery fares, not derived from the events: null after a rebuild.
    Column(
        "waiting_since", BigInteger, comment="when the oldest event not yet shipped was recorded"
    ),
    Column("trace", Text, comment="that event's trace context, if it had one"),
    sqlite_with_rowid=False,
)
# What is still to be shipped, lane by lane: the worker's only way in.
Index(
    "buckets_open",
    buckets.c.meter,
    buckets.c.customer,
    buckets.c.minute,
    sqlite_where=text("total <> counted"),
    postgresql_where=text("total <> counted"),
)

totals: Table = Table(
    "totals",
    metadata,
    Column("customer", Text, primary_key=True),
    Column("meter", Text, primary_key=True),
    Column("period", BigInteger, primary_key=True),
    Column("total", BigInteger, nullable=False),
    Column("events", BigInteger, nullable=False, comment="usage events not voided"),
    Column("last_at", BigInteger, nullable=False, comment="latest occurrence"),
    sqlite_with_rowid=False,
)

#: Finished days, added up when somebody looks, without gaps; what comes late is added to them.
days: Table = Table(
    "days",
    metadata,
    Column("customer", Text, primary_key=True),
    Column("meter", Text, primary_key=True),
    Column("period", BigInteger, primary_key=True),
    Column("day", BigInteger, primary_key=True, comment="start of the UTC day"),
    Column("total", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

#: One row per (customer, meter) that was ever shipped. The customer ``*`` stands for all of them:
#: its rows hold a whole meter, or everything (meter ``*``), until the next probe at lease_until.
lanes: Table = Table(
    "lanes",
    metadata,
    Column("customer", Text, primary_key=True),
    Column("meter", Text, primary_key=True),
    Column("lease_owner", Text),
    Column("lease_until", BigInteger, nullable=False),
    Column("hold_reason", Text),
    Column("held_since", BigInteger),
    sqlite_with_rowid=False,
)
Index(
    "lanes_leased",
    lanes.c.lease_owner,
    sqlite_where=lanes.c.lease_owner.is_not(None),
    postgresql_where=lanes.c.lease_owner.is_not(None),
)

shipments: Table = Table(
    "shipments",
    metadata,
    Column("identifier", Text, primary_key=True),
    Column("customer", Text, nullable=False),
    Column("meter", Text, nullable=False),
    Column("period", BigInteger, nullable=False),
    Column("minute", BigInteger, nullable=False),
    Column("value", BigInteger, nullable=False),
    Column("counted", BigInteger, nullable=False),
    Column("timestamp", BigInteger, nullable=False, comment="milliseconds; sent as seconds"),
    Column("state", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("first_attempt_at", BigInteger),
    Column("next_attempt_at", BigInteger, nullable=False),
    Column("settled_at", BigInteger),
    Column("reason", Text),
    Column("waiting_since", BigInteger, comment="of its bucket when it was cut, like the next"),
    Column("trace", Text),
)
Index("shipments_by_minute", shipments.c.customer, shipments.c.meter, shipments.c.minute)
#: Joins a shipment to the bucket it was cut from.
IS_OF_BUCKET = (
    (shipments.c.customer == buckets.c.customer)
    & (shipments.c.meter == buckets.c.meter)
    & (shipments.c.minute == buckets.c.minute)
    & (shipments.c.period == buckets.c.period)
)
#: Everything not yet at rest. A query must say just this, beside what it looks for, or SQLite does
#: not use the index and reads the whole history.
SHIPMENT_IS_OPEN = "state IN ('ready', 'sending', 'in_doubt', 'dead')"
Index(
    "shipments_open",
    shipments.c.state,
    shipments.c.next_attempt_at,
    sqlite_where=text(SHIPMENT_IS_OPEN),
    postgresql_where=text(SHIPMENT_IS_OPEN),
)

#: A histogram: how long events waited until Stripe had them. Grows with the meters only.
delivery_times: Table = Table(
    "delivery_times",
    metadata,
    Column("meter", Text, primary_key=True),
    Column("up_to_ms", BigInteger, primary_key=True, comment="longest wait counted in this row"),
    Column("shipments", BigInteger, nullable=False),
    Column("waited_ms", BigInteger, nullable=False, comment="sum of their waits"),
    sqlite_with_rowid=False,
)

#: Those of the customer ``*`` are the operator's: ``meter`` names a job, ``period`` is a day,
#: ``level`` is ``failures`` or ``broken``, ``total`` of ``included`` customers have failed.
alerts: Table = Table(
    "alerts",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("identifier", Text, nullable=False, comment="what receivers know it by"),
    Column("customer", Text, nullable=False),
    Column("meter", Text, nullable=False),
    Column("period", BigInteger, nullable=False),
    Column("period_end", BigInteger, nullable=False),
    Column("level", Text, nullable=False),
    Column("included", BigInteger, nullable=False),
    Column("total", BigInteger, nullable=False),
    Column("raised_at", BigInteger, nullable=False),
    UniqueConstraint("customer", "meter", "period", "level", "included"),
)

alert_deliveries: Table = Table(
    "alert_deliveries",
    metadata,
    Column("alert", _Id, ForeignKey("alerts.id"), primary_key=True),
    Column("channel", Text, primary_key=True, comment="signal | email | webhook | in_app"),
    Column("state", Text, nullable=False, comment="ready | sending | delivered | dead"),
    Column("attempts", Integer, nullable=False),
    Column("next_attempt_at", BigInteger, nullable=False, comment="while sending: the lease's end"),
    Column("settled_at", BigInteger),
    Column("read_at", BigInteger, comment="in_app: by the customer"),
    Column("reason", Text),
)
#: As with the shipments, a query must say just this to use the index.
ANNOUNCEMENT_IS_OPEN = "state IN ('ready', 'sending')"
Index(
    "alert_deliveries_open",
    alert_deliveries.c.channel,
    alert_deliveries.c.next_attempt_at,
    sqlite_where=text(ANNOUNCEMENT_IS_OPEN),
    postgresql_where=text(ANNOUNCEMENT_IS_OPEN),
)

webhook_events: Table = Table(
    "webhook_events",
    metadata,
    Column("id", Text, primary_key=True),
    Column("type", Text, nullable=False),
    Column("received_at", BigInteger, nullable=False),
    Column("state", Text, nullable=False, comment="applied | ignored | pending | dead"),
    Column("attempts", Integer, nullable=False),
    Column("next_attempt_at", BigInteger, nullable=False),
    Column("reason", Text),
)
WEBHOOK_IS_OPEN = "state = 'pending'"
Index(
    "webhook_events_open",
    webhook_events.c.next_attempt_at,
    sqlite_where=text(WEBHOOK_IS_OPEN),
    postgresql_where=text(WEBHOOK_IS_OPEN),
)

job_runs: Table = Table(
    "job_runs",
    metadata,
    Column("job", Text, primary_key=True),
    Column("day", Text, primary_key=True),
    Column("customer", Text, primary_key=True),
    Column("state", Text, nullable=False, comment="done | failed: and why"),
)

audit: Table = Table(
    "audit",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("at", BigInteger, nullable=False),
    Column("who", Text, nullable=False),
    Column("what", Text, nullable=False),
    Column("why", Text),
)

meta: Table = Table(
    "meta",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
)
