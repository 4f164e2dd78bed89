"""What ``flask c2meter doctor`` looks at: one small function for each check.

Pure: facts in, findings out; :mod:`~flask_c2meter.doctor` gathers the facts. ``at_stripe`` has the
checks of what Stripe says, ``database`` those of the store and its files, ``host`` those of the app
and its server. A new check is a function there and a row in :data:`CHECKS`.
"""

from __future__ import annotations

from collections.abc import Mapping

from . import at_stripe, database, host
from .findings import Check, DatabaseFacts, Facts, Finding, HostFacts, Level, Place

__all__ = [
    "CHECKS",
    "Check",
    "DatabaseFacts",
    "Facts",
    "Finding",
    "HostFacts",
    "Level",
    "Place",
]

#: Name -> check, in the order in which they are reported. Nothing is said of what cannot be known.
CHECKS: Mapping[str, Check] = {
    "key": at_stripe.key,
    "connection": at_stripe.connection,
    "permissions": at_stripe.permissions,
    "clock": at_stripe.clock,
    "account": at_stripe.account,
    "meters": at_stripe.meters,
    "prices": at_stripe.prices,
    "unpriced": at_stripe.unpriced,
    "webhooks": at_stripe.webhooks,
    "database": database.database,
    "durability": database.durability,
    "files": database.files,
    "disk": database.disk,
    "spill": database.spill,
    "worker": host.worker,
    "storage": host.storage,
    "canary": at_stripe.canary,
    "fork": host.fork,
    "limiter": host.limiter,
    "headers": host.headers,
    "alerts": host.alerts,
    "status": database.status,
}
