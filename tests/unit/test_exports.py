"""The public names: adding or removing one is a decision, made here."""

from __future__ import annotations

import flask_c2meter

NAMES = {
    # What a host creates and uses.
    "ALL_CUSTOMERS",
    "C2Meter",
    "metered",
    "current_customer",
    "current_metering",
    "current_usage",
    # Values.
    "Customer",
    "Period",
    "Usage",
    "UsageEvent",
    # Signals.
    "job_finished",
    "usage_alert",
    "usage_delivered",
    "usage_recorded",
    "usage_rejected",
    "Alert",
    "Charge",
    "StorageMeasurement",
    "Subscription",
    "SubscriptionItem",
    # Errors.
    "C2MeterError",
    "CatalogueError",
    "ConfigError",
    "CorruptStore",
    "InvalidEvent",
    "KeyConflict",
    "StoreUnavailable",
    "UnknownEvent",
    "UnknownMeter",
}


def test_the_public_names_are_exactly_these() -> None:
    assert set(flask_c2meter.__all__) == NAMES
    assert flask_c2meter.__all__ == sorted(flask_c2meter.__all__)
    assert all(hasattr(flask_c2meter, name) for name in NAMES)


def test_nothing_else_is_public_but_the_modules() -> None:
    others = {
        name
        for name, value in vars(flask_c2meter).items()
        if not name.startswith("_") and name not in NAMES and name != "annotations"
    }
    modules = {name for name in others if hasattr(vars(flask_c2meter)[name], "__spec__")}
    assert others == modules
