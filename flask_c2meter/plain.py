"""Our nouns in JSON's types: quantities and amounts as text, times in ISO 8601, UTC.

Pure. The command line and the dashboard say the same in the same words.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from .model import Alert, Charge, Period, Projection, Usage, UsageEvent

if TYPE_CHECKING:
    from .billing import Offer
    from .provisioning import Plan
    from .reports import MeterReport, Report
    from .store.announcements import Notice

Plain = dict[str, Any]


def period(value: Period) -> Plain:
    """``{"start", "end"}``."""
    return {"start": value.start.isoformat(), "end": value.end.isoformat()}


def usage(value: Usage) -> Plain:
    """What was used of one meter."""
    return {
        "meter": value.meter,
        "total": str(value.total),
        "included": _text(value.included),
        "utilization": None if value.utilization is None else f"{value.utilization:.4f}",
        "level": value.level,
        "period": period(value.period),
    }


def charge(value: Charge) -> Plain:
    """One line of the bill; amounts in minor units."""
    return {
        "meter": value.meter,
        "units": str(value.units),
        "amount": _text(value.amount),
        "currency": value.currency,
        "projected_units": _text(value.projected_units),
        "projected_amount": _text(value.projected_amount),
        "projected_low": _text(value.projected_low),
        "projected_high": _text(value.projected_high),
        "period": period(value.period),
    }


def projection(value: Projection | None) -> Plain | None:
    """What is expected, or None."""
    if value is None:
        return None
    return {"total": str(value.total), "low": str(value.low), "high": str(value.high)}


def offer(value: Offer, *, is_current: bool) -> Plain:
    """What usage would cost on one plan; amounts in minor units.

    :param is_current: it is the customer's plan.
    """
    return {
        "plan": value.plan.name,
        "plan_name": value.plan.display_name,
        "is_current": is_current,
        "meters": [
            {
                "meter": each.meter,
                "total": str(each.total),
                "included": _text(each.included),
                "units": str(each.units),
                "amount": _text(each.amount),
                "currency": each.currency,
            }
            for each in value.quotes
        ],
        "totals": {currency: str(amount) for currency, amount in value.totals.items()},
    }


def event(value: UsageEvent) -> Plain:
    """One event of the ledger."""
    return {
        "key": value.key,
        "customer": value.customer,
        "meter": value.meter,
        "value": str(value.value),
        "occurred_at": value.occurred_at.isoformat(),
        "recorded_at": value.recorded_at.isoformat(),
        "properties": dict(value.properties),
        "unique_by": value.unique_by,
        "request_id": value.request_id,
        "kind": value.kind,
        "flags": list(value.flags),
    }


def alert(value: Alert) -> Plain:
    """One alert."""
    return {
        "id": value.identifier,
        "customer": value.customer,
        "meter": value.meter,
        "level": value.level,
        "utilization": None if value.utilization is None else f"{value.utilization:.4f}",
        "total": str(value.total),
        "included": str(value.included),
        "period": period(value.period),
        "raised_at": value.raised_at.isoformat(),
    }


def notice(value: Notice) -> Plain:
    """An alert and where it was announced."""
    return alert(value.alert) | {"channels": _channels(value)}


def _channels(value: Notice) -> Mapping[str, Plain]:
    return {
        name: {
            "state": announced.state,
            "attempts": announced.attempts,
            "reason": announced.reason,
            "settled_at": _time(announced.settled_at),
            "read_at": _time(announced.read_at),
        }
        for name, announced in value.channels.items()
    }


def report(value: Report, *, action_url: str, with_channels: bool) -> Plain:
    """Everything about one customer: version 1 of the dashboard's JSON.

    Quantities are in the meter's unit, amounts in minor units.

    :param action_url: of the page that an alert leads to.
    :param with_channels: also what became of each alert on each channel, for operators.
    """
    return {
        "version": 1,
        "customer": value.customer,
        "as_of": value.as_of.isoformat(),
        "plan": value.plan,
        "plan_name": value.plan_name,
        "status": value.status,
        "ended_at": _time(value.ended_at),
        "period": period(value.period),
        "cycle": period(value.cycle),
        "plans": [{"plan_name": name} | period(each) for each, name in value.plans],
        "meters": [_meter(each) for each in value.meters],
        "bill": [
            {
                "currency": each.currency,
                "amount": str(each.amount),
                "projected": _text(each.projected),
                "low": _text(each.low),
                "high": _text(each.high),
            }
            for each in value.bills
        ],
        "alerts": [
            alert(each.alert)
            | {
                "message": value.message(each.alert),
                "action_url": action_url,
                "unread": each.is_unread,
            }
            | ({"channels": _channels(each)} if with_channels else {})
            for each in value.notices
        ],
        "unread": value.unread,
    }


def _meter(value: MeterReport) -> Plain:
    return usage(value.usage) | {
        "display_name": value.meter.display_name,
        "unit": value.meter.unit,
        "billable": value.meter.billable,
        "projection": projection(value.projection),
        "charges": [charge(each) for each in value.charges],
        "days": {day.isoformat(): str(total) for day, total in value.days},
    }


def provisioning(value: Plan, account: str, *, is_applied: bool) -> Plain:
    """The steps of *value*: version 1 of the JSON of ``provision``.

    :param account: where they were to be taken.
    :param is_applied: they have been taken, and each has the id of its object.
    """
    return {
        "version": 1,
        "account": account,
        "applied": is_applied,
        "summary": {action.value: count for action, count in value.counts.items()},
        "steps": [
            {
                "action": step.action.value,
                "kind": step.kind,
                "name": step.name,
                "id": step.id,
                "detail": step.detail,
                "note": step.note,
                "params": dict(step.params),
            }
            for step in value.steps
        ],
        "notes": list(value.notes),
    }


def _text(value: Decimal | None) -> str | None:
    return None if value is None else str(value)


def _time(value: datetime | None) -> str | None:
    return None if value is None else value.isoformat()
