"""Durable usage metering for Flask apps, billed through Stripe Billing Meters.

These are the public names; each module's own docstring says what lives there.
"""

from __future__ import annotations

from .decorators import metered
from .errors import (
    C2MeterError,
    CatalogueError,
    ConfigError,
    CorruptStore,
    InvalidEvent,
    KeyConflict,
    StoreUnavailable,
    UnknownEvent,
    UnknownMeter,
)
from .extension import C2Meter
from .globals import current_customer, current_metering, current_usage
from .hooks import ALL_CUSTOMERS
from .model import (
    Alert,
    Charge,
    Customer,
    Period,
    StorageMeasurement,
    Subscription,
    SubscriptionItem,
    Usage,
    UsageEvent,
)
from .signals import (
    job_finished,
    usage_alert,
    usage_delivered,
    usage_recorded,
    usage_rejected,
)

__all__ = [
    "ALL_CUSTOMERS",
    "Alert",
    "C2Meter",
    "C2MeterError",
    "CatalogueError",
    "Charge",
    "ConfigError",
    "CorruptStore",
    "Customer",
    "InvalidEvent",
    "KeyConflict",
    "Period",
    "StorageMeasurement",
    "StoreUnavailable",
    "Subscription",
    "SubscriptionItem",
    "UnknownEvent",
    "UnknownMeter",
    "Usage",
    "UsageEvent",
    "current_customer",
    "current_metering",
    "current_usage",
    "job_finished",
    "metered",
    "usage_alert",
    "usage_delivered",
    "usage_recorded",
    "usage_rejected",
]
