"""Alerts for the operator, in the tables of the customers' and announced as they are.

A row is of the customer ``*`` instead of a customer, and of a job instead of a meter. Functions
take an open connection; the caller commits.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, func, insert, select

from ..model import JobAlert, from_ms, to_ms
from .tables import alert_deliveries, alerts

#: In the place of a customer. No id can be this.
OPERATOR = "*"

_DAY = timedelta(days=1)


def raise_alert(
    connection: Connection, alert: JobAlert, channels: Sequence[str]
) -> JobAlert | None:
    """Queue *alert* on *channels* and return it; None if one was raised for its day."""
    start = datetime(alert.day.year, alert.day.month, alert.day.day, tzinfo=UTC)
    is_same = (
        (alerts.c.customer == OPERATOR)
        & (alerts.c.meter == alert.job)
        & (alerts.c.period == to_ms(start))
    )
    if connection.execute(select(func.count()).where(is_same)).scalar_one():
        return None
    number = connection.execute(
        insert(alerts).returning(alerts.c.id),
        {
            "identifier": alert.identifier,
            "customer": OPERATOR,
            "meter": alert.job,
            "period": to_ms(start),
            "period_end": to_ms(start + _DAY),
            "level": "broken" if alert.is_broken else "failures",
            "included": alert.total,
            "total": alert.failed,
            "raised_at": to_ms(alert.raised_at),
        },
    ).scalar_one()
    for channel in channels:
        connection.execute(
            insert(alert_deliveries),
            {
                "alert": number,
                "channel": channel,
                "state": "ready",
                "attempts": 0,
                "next_attempt_at": to_ms(alert.raised_at),
            },
        )
    return alert


def job_alert(row: Any) -> JobAlert:
    """The alert in a *row* that is the operator's."""
    return JobAlert(
        job=row.meter,
        day=from_ms(row.period).date(),
        total=row.included,
        failed=row.total,
        is_broken=row.level == "broken",
        raised_at=from_ms(row.raised_at),
        identifier=row.identifier,
    )
