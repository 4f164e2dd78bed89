"""What the emulator remembers of metering: meters, events, totals, summaries.

Stripe's rules for meter events live here, free of HTTP: a :class:`~.terms.Rejection` says what is
wrong in one vocabulary, and each endpoint translates it. Not thread-safe: the app holds its lock.
Imports ``customers`` and ``terms``. Promises: an identifier counts once in its lifetime, totals
cost O(1) to read, and summaries show an event only when it has been aggregated.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from sys import intern

from .customers import Customers
from .terms import Rejection, Tell, new_id, whole_second

MAX_AGE = timedelta(days=35)
MAX_AHEAD = timedelta(minutes=5)
CANCEL_WITHIN = timedelta(hours=24)
MAX_DIGITS = 15

#: Length of the windows in which summaries and pre-aggregated meters group, in seconds.
WINDOWS = {"hour": 3600, "day": 86400}

_WHOLE = re.compile(r"-?[0-9]+")
_DECIMAL = re.compile(r"-?[0-9]+(\.[0-9]+)?")
# Values repeat: one Decimal for all ones saves 100 bytes an event.
_decimal = lru_cache(maxsize=4096)(Decimal)


@dataclass(slots=True)
class Meter:
    """A Billing Meter."""

    id: str
    event_name: str
    display_name: str
    created: datetime
    updated: datetime
    #: ``sum``, ``count`` or ``last``.
    formula: str = "sum"
    customer_key: str = "stripe_customer_id"
    value_key: str = "value"
    #: ``hour`` or ``day``: only the event received last in each counts; None: all count.
    event_time_window: str | None = None
    deactivated_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class MeterEvent:
    """A meter event that was accepted and counts."""

    event_name: str
    customer: str
    value: Decimal
    timestamp: datetime
    identifier: str
    received_at: datetime
    payload: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class AsyncError:
    """An event that was answered with 200 and then not counted.

    Stripe reports these in ``v1.billing.meter.error_report_triggered``, with the same codes.
    """

    code: str
    message: str
    event_name: str
    identifier: str
    received_at: datetime


@dataclass(frozen=True, slots=True)
class Summary:
    """What a customer used of a meter in ``[start, end)``, epoch seconds."""

    id: str
    start: int
    end: int
    value: Decimal


@dataclass(slots=True)
class Lane:
    """The events of one customer and meter."""

    total: Decimal = Decimal(0)
    count: int = 0
    #: Start of the minute, epoch seconds -> events with a timestamp in it.
    minutes: dict[int, list[MeterEvent]] = field(default_factory=dict)
    _ordered: list[int] = field(default_factory=list)

    def add(self, event: MeterEvent) -> None:
        """Count *event*."""
        self.total += event.value
        self.count += 1
        self.minutes.setdefault(_floor(event, 60), []).append(event)

    def remove(self, event: MeterEvent) -> None:
        """Count *event* no longer; without effect if it is not counted."""
        events = self.minutes.get(_floor(event, 60), [])
        if any(other is event for other in events):
            self.minutes[_floor(event, 60)] = [other for other in events if other is not event]
            self.total -= event.value
            self.count -= 1

    def between(self, start: int, end: int) -> Iterable[MeterEvent]:
        """The events of the minutes in ``[start, end)``, in order of arrival per minute."""
        for minute, events in self.minutes.items():
            if start <= minute < end:
                yield from events

    def within(self, start: int, end: int) -> Iterable[MeterEvent]:
        """The events of the seconds in ``[start, end)``, by the minute."""
        # Sorted when asked for: minutes come almost in order and never go.
        if len(self._ordered) < len(self.minutes):
            self._ordered = sorted(self.minutes)
        first = bisect_left(self._ordered, start - start % 60)
        for minute in self._ordered[first : bisect_left(self._ordered, end)]:
            events = self.minutes[minute]
            if start <= minute and minute + 60 <= end:
                yield from events
            else:
                yield from (event for event in events if start <= _floor(event, 1) < end)


@dataclass(frozen=True, slots=True)
class Rules:
    """How strict the meters are; each field is a parameter of ``StripeEmulator``."""

    auto_meters: bool = True
    allow_negative: bool = True
    allow_decimals: bool = False
    identifier_ttl: timedelta = timedelta(hours=24)
    aggregation_delay: timedelta = timedelta(0)


class Meters:
    """All meters and their events.

    :param tell: told of new meters.
    """

    def __init__(self, rules: Rules, customers: Customers, tell: Tell) -> None:
        self.rules = rules
        self._customers = customers
        self._tell = tell
        self.by_id: dict[str, Meter] = {}
        self.by_name: dict[str, Meter] = {}
        self.events: list[MeterEvent] = []
        self.async_errors: list[AsyncError] = []
        #: How many events were refused or dropped because their identifier was known.
        self.duplicates: int = 0
        self.lanes: dict[tuple[str, str], Lane] = {}
        self._seen: dict[str, MeterEvent] = {}

    def create(self, meter: Meter) -> Meter:
        """Add *meter*.

        :raises Rejection: its event name is taken.
        """
        if meter.event_name in self.by_name:
            raise Rejection(
                "meter_exists", f"A meter with event_name {meter.event_name} already exists."
            )
        self.by_id[meter.id] = self.by_name[meter.event_name] = meter
        self._tell("billing.meter.created", meter, meter.created)
        return meter

    def customer_key(self, event_name: str) -> str:
        """The payload key that holds the customer in events of *event_name*."""
        meter = self.by_name.get(event_name)
        return meter.customer_key if meter else "stripe_customer_id"

    def accept(
        self,
        event_name: str,
        payload: Mapping[str, str],
        now: datetime,
        identifier: str | None = None,
        timestamp: datetime | None = None,
    ) -> MeterEvent:
        """Count one event, or note it among the asynchronous errors if its customer is unknown.

        :raises Rejection: it breaks a rule; nothing has changed.
        """
        meter = self._meter(event_name, now)
        customer = intern(_customer(meter, payload))
        event = MeterEvent(
            event_name=meter.event_name,
            customer=customer,
            value=self._value(meter, payload),
            timestamp=self._timely(customer, timestamp, now),
            identifier=identifier or f"evt_{secrets.token_hex(12)}",
            received_at=now,
            payload={intern(key): intern(value) for key, value in payload.items()},
        )
        self._refuse_duplicate(event)
        self._seen[event.identifier] = event
        if not self._customers.is_known(customer):
            self.note("meter_event_customer_not_found", "Customer not found", event)
        else:
            self.events.append(event)
            self.lanes.setdefault((event.event_name, customer), Lane()).add(event)
        return event

    def note(self, code: str, message: str, event: MeterEvent) -> None:
        """Remember that *event* passed the call, but did not count."""
        self.async_errors.append(
            AsyncError(code, message, event.event_name, event.identifier, event.received_at)
        )

    def accept_later(
        self,
        event_name: str,
        payload: Mapping[str, str],
        now: datetime,
        identifier: str | None = None,
        timestamp: datetime | None = None,
    ) -> None:
        """As :meth:`accept` for the stream, where a bad event is an asynchronous error.

        A duplicate is dropped without a word.
        """
        try:
            self.accept(event_name, payload, now, identifier, timestamp)
        except Rejection as rejection:
            if rejection.code != "duplicate_meter_event":
                code = ASYNC_CODES.get(rejection.code, rejection.code)
                self.async_errors.append(
                    AsyncError(code, rejection.message, event_name, identifier or "", now)
                )

    def cancel(self, event_name: str, identifier: str, now: datetime) -> None:
        """Take one event back.

        :raises Rejection: it is unknown, of another meter or older than 24 hours.
        """
        event = self._seen.get(identifier)
        if event is None or event.event_name != event_name:
            raise Rejection(
                "invalid_cancel_configuration",
                f"No meter event of {event_name} found with identifier {identifier}.",
            )
        if now - event.received_at > CANCEL_WITHIN:
            raise Rejection(
                "invalid_cancel_configuration",
                "A meter event can be cancelled within 24 hours of being received.",
            )
        self.lanes.get((event_name, event.customer), Lane()).remove(event)
        self.events = [other for other in self.events if other is not event]

    def summaries(
        self, meter: Meter, customer: str, start: int, end: int, window: str | None, now: datetime
    ) -> list[Summary]:
        """What is aggregated by *now* of ``[start, end)``, newest first; nothing for no usage."""
        lane = self.lanes.get((meter.event_name, customer), Lane())
        visible = [
            event
            for event in lane.between(start, end)
            if event.received_at + self.rules.aggregation_delay <= now
        ]
        length = WINDOWS[window] if window else end - start
        groups: dict[int, list[MeterEvent]] = {}
        for event in visible:
            begin = _floor(event, length) if window else start
            groups.setdefault(begin, []).append(event)
        return [
            _summary(meter, customer, begin, begin + length, events)
            for begin, events in sorted(groups.items(), reverse=True)
        ]

    def usage(self, meter: Meter, customer: str, start: datetime, end: datetime) -> Decimal:
        """What *customer* used of *meter* in ``[start, end)``, as far as it has arrived by now.

        :param start: and *end*: in whole seconds.
        """
        lane = self.lanes.get((meter.event_name, customer), Lane())
        return _aggregate(meter, list(lane.within(int(start.timestamp()), int(end.timestamp()))))

    def _meter(self, event_name: str, now: datetime) -> Meter:
        meter = self.by_name.get(event_name)
        if meter is None and self.rules.auto_meters:
            name = intern(event_name)
            meter = self.create(Meter(new_id("mtr"), name, name, created=now, updated=now))
        if meter is None:
            raise Rejection("no_meter", f"No active meter found for event name {event_name}.")
        if meter.deactivated_at is not None:
            raise Rejection("archived_meter", f"The meter for {event_name} is deactivated.")
        return meter

    def _value(self, meter: Meter, payload: Mapping[str, str]) -> Decimal:
        text = payload.get(meter.value_key, "")
        if not text and meter.formula == "count":
            return Decimal(1)
        if not text:
            raise Rejection(
                "payload_no_value_defined", f"The payload has no value at {meter.value_key!r}."
            )
        if not (_DECIMAL if self.rules.allow_decimals else _WHOLE).fullmatch(text):
            raise Rejection("payload_invalid_value", f"The value {text!r} must be a whole number.")
        if text.startswith("-") and not self.rules.allow_negative:
            raise Rejection("payload_invalid_value", f"The value {text!r} must be positive.")
        if len(text.lstrip("-").replace(".", "").lstrip("0")) > MAX_DIGITS:
            raise Rejection(
                "payload_value_too_many_digits",
                f"The value {text!r} has more than {MAX_DIGITS} significant digits.",
            )
        return _decimal(text)

    def _timely(self, customer: str, timestamp: datetime | None, now: datetime) -> datetime:
        # Which clock this window follows for a customer with a test clock is not documented: with
        # its own, usage can be sent for the time it lives in.
        now = self._customers.now_of(customer, now)
        if timestamp is None:
            return whole_second(now)
        if timestamp < now - MAX_AGE:
            raise Rejection(
                "timestamp_too_far_in_past",
                "The timestamp cannot be more than 35 days in past of the current time.",
            )
        if timestamp > now + MAX_AHEAD:
            raise Rejection(
                "timestamp_in_future",
                "The timestamp cannot be more than 5 minutes in future of the current time.",
            )
        return timestamp

    def _refuse_duplicate(self, event: MeterEvent) -> None:
        known = self._seen.get(event.identifier)
        if known and event.received_at - known.received_at < self.rules.identifier_ttl:
            self.duplicates += 1
            raise Rejection(
                "duplicate_meter_event",
                f"An event already exists with identifier {event.identifier}.",
            )


#: v2 error code -> code in an asynchronous error report, where they differ.
ASYNC_CODES = {
    "payload_invalid_value": "meter_event_invalid_value",
    "payload_no_customer_defined": "meter_event_no_customer_defined",
    "payload_no_value_defined": "meter_event_value_not_found",
    "payload_value_too_many_digits": "meter_event_value_too_many_digits",
}


def _customer(meter: Meter, payload: Mapping[str, str]) -> str:
    customer = payload.get(meter.customer_key, "")
    if not customer:
        raise Rejection(
            "payload_no_customer_defined",
            f"The payload has no customer at {meter.customer_key!r}.",
        )
    return customer


def _floor(event: MeterEvent, length: int) -> int:
    seconds = int(event.timestamp.timestamp())
    return seconds - seconds % length


def _summary(
    meter: Meter, customer: str, start: int, end: int, events: list[MeterEvent]
) -> Summary:
    # The same question has the same ids, so that they work as cursors of a page.
    digest = hashlib.sha256(f"{meter.id}/{customer}/{start}/{end}".encode()).hexdigest()
    return Summary(f"mtrusg_{digest[:24]}", start, end, _aggregate(meter, events))


def _aggregate(meter: Meter, events: list[MeterEvent]) -> Decimal:
    if not events:
        return Decimal(0)
    if meter.event_time_window:
        length = WINDOWS[meter.event_time_window]
        events = list({_floor(event, length): event for event in _by_arrival(events)}.values())
    return FORMULAS[meter.formula](events)


def _by_arrival(events: list[MeterEvent]) -> list[MeterEvent]:
    return sorted(events, key=lambda event: event.received_at)


#: What a meter makes of the events of a window.
FORMULAS: Mapping[str, Callable[[list[MeterEvent]], Decimal]] = {
    "sum": lambda events: sum((event.value for event in events), Decimal(0)),
    "count": lambda events: Decimal(len(events)),
    "last": lambda events: max(events, key=lambda event: event.timestamp).value,
}
