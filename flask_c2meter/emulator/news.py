"""What has happened, as Stripe tells it: snapshot events, and thin reports of bad meter events.

A snapshot event carries the object as it is and, after an update, what it was before. A thin event
is only a notice; its data are fetched. Imports ``meters``, ``terms`` and ``wire``. Not thread-safe:
the app holds its lock. Promise: an asynchronous error is reported once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby
from typing import Any

from .meters import AsyncError, Meters
from .terms import new_id
from .wire import rfc3339

#: Of the objects in snapshot events.
API_VERSION = "2026-10-28.endive"
#: How long a thin event can be fetched.
FETCHABLE_FOR = timedelta(days=30)

ERROR_REPORT = "v1.billing.meter.error_report_triggered"
NO_METER = "v1.billing.meter.no_meter_found"


@dataclass(frozen=True, slots=True)
class Event:
    """Something that has happened."""

    id: str
    type: str
    created: datetime
    #: What is sent to endpoints.
    body: dict[str, Any]
    #: What a thin event's body leaves out; None: a snapshot event, which leaves nothing out.
    data: Mapping[str, Any] | None = None

    @property
    def is_thin(self) -> bool:
        """Whether it goes to thin endpoints, else to the others."""
        return self.data is not None


class Journal:
    """All events.

    :param post: sends an event, or not; returns to how many endpoints.
    :param max_samples: how many bad meter events a report lists per code.
    """

    def __init__(
        self, meters: Meters, post: Callable[[Event], int], livemode: bool, max_samples: int
    ) -> None:
        self._meters = meters
        self._post = post
        self._livemode = livemode
        self._max_samples = max_samples
        self._reported = 0
        #: Id of an object -> its body in the latest event.
        self._latest: dict[str, dict[str, Any]] = {}
        self.by_id: dict[str, Event] = {}

    def write(self, type: str, body: dict[str, Any], moment: datetime) -> None:
        """Tell of *body*, an object, what happened to it at *moment*."""
        data = {"object": body}
        if type.endswith(".updated"):
            data["previous_attributes"] = _previous(self._latest.get(body["id"], {}), body)
        self._latest[body["id"]] = body
        id = new_id("evt")
        envelope = {
            "object": "event",
            "id": id,
            "api_version": API_VERSION,
            "created": int(moment.timestamp()),
            "data": data,
            "livemode": self._livemode,
            "pending_webhooks": 0,
            "request": {"id": None, "idempotency_key": None},
            "type": type,
        }
        self._publish(Event(id, type, moment, envelope))

    @property
    def has_unreported(self) -> bool:
        """Whether there are asynchronous errors to report."""
        return self._reported < len(self._meters.async_errors)

    def report(self, now: datetime) -> list[str]:
        """Report the asynchronous errors not reported yet, one event per meter.

        :return: the ids of the events.
        """
        errors = self._meters.async_errors[self._reported :]
        self._reported += len(errors)
        return [
            self._report(event_name, list(group), now)
            for event_name, group in _grouped(errors, self._event_name)
        ]

    def fetch(self, id: str, now: datetime) -> dict[str, Any] | None:
        """The whole of a thin event; None if there is none, or no longer."""
        event = self.by_id.get(id)
        if event is None or event.data is None or now - event.created > FETCHABLE_FOR:
            return None
        return {**event.body, "data": event.data}

    def _event_name(self, error: AsyncError) -> str:
        # Events without a meter share one report: there is no meter that it could be about.
        return error.event_name if error.event_name in self._meters.by_name else ""

    def _report(self, event_name: str, errors: Sequence[AsyncError], now: datetime) -> str:
        meter = self._meters.by_name.get(event_name)
        event_type = ERROR_REPORT if meter else NO_METER
        id = new_id("evt_test")
        body: dict[str, Any] = {
            "object": "v2.core.event",
            "id": id,
            "type": event_type,
            "created": rfc3339(now),
            "livemode": self._livemode,
            "context": None,
            "reason": None,
        }
        if meter is not None:
            body["related_object"] = {
                "id": meter.id,
                "type": "billing.meter",
                "url": f"/v1/billing/meters/{meter.id}",
            }
        data = self._report_data(errors, now)
        return self._publish(Event(id, event_type, now, body, data)).id

    def _report_data(self, errors: Sequence[AsyncError], now: datetime) -> dict[str, Any]:
        count = len(errors)
        are = "is 1 invalid event" if count == 1 else f"are {count} invalid events"
        return {
            "developer_message_summary": f"There {are}",
            "validation_start": rfc3339(min(error.received_at for error in errors)),
            "validation_end": rfc3339(now),
            "reason": {
                "error_count": count,
                "error_types": [
                    self._error_type(code, list(group))
                    for code, group in _grouped(errors, lambda error: error.code)
                ],
            },
        }

    def _error_type(self, code: str, errors: Sequence[AsyncError]) -> dict[str, Any]:
        return {
            "code": code,
            "error_count": len(errors),
            "sample_errors": [
                {"error_message": error.message, "request": {"identifier": error.identifier}}
                for error in errors[: self._max_samples]
            ],
        }

    def _publish(self, event: Event) -> Event:
        self.by_id[event.id] = event
        endpoints = self._post(event)
        if not event.is_thin:
            event.body["pending_webhooks"] = endpoints
        return event


def _grouped(
    errors: Iterable[AsyncError], key: Callable[[AsyncError], str]
) -> Iterable[tuple[str, Iterable[AsyncError]]]:
    return groupby(sorted(errors, key=key), key)


def _previous(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Of what has changed, what it was; null for what is new."""
    changed: dict[str, Any] = {key: None for key in after if key not in before}
    for key, value in before.items():
        now = after.get(key)
        if isinstance(value, dict) and isinstance(now, dict) and value != now:
            changed[key] = _previous(value, now)
        elif key not in after or value != now:
            changed[key] = value
    return changed
