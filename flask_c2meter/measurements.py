"""Judging what a ``storage_loader`` says: the event it makes, or why it is not believed.

Pure; imports only :mod:`~flask_c2meter.model`, :mod:`~flask_c2meter.decimals`,
:mod:`~flask_c2meter.errors` and :mod:`~flask_c2meter.schemas`. The promise: what leaves here is
exact to the meter's precision and never less than was measured; what is no quantity, or not
plausible, is refused with its reason and never becomes 0 GB.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import ROUND_CEILING, ROUND_HALF_UP, Decimal, Inexact, InvalidOperation
from functools import reduce
from typing import Any

from .decimals import own_context
from .errors import InvalidEvent, show
from .model import Customer, Meter, StorageMeasurement, UsageEvent, check_customer_id
from .schemas import EventSchema, ValidEvent, check_quantity

#: The name of the job, and the beginning of its events' keys.
STORAGE = "storage"
#: The meter it measures.
METER = "storage_gb"

_PARTS = ("storage_gb", "evidence_gb", "manifest_gb", "backup_gb")
#: Longest reason of a failure, in characters.
_LONGEST = 300
#: Decimal places that are kept of a part, for whoever asks later: a gigabyte has so many bytes.
_KEPT = Decimal(1).scaleb(-9)
_EXACT = own_context(100, Inexact, InvalidOperation)
_UP = own_context(100, InvalidOperation, rounding=ROUND_CEILING)
_HALF_UP = own_context(100, InvalidOperation, rounding=ROUND_HALF_UP)
_FIFTEEN_DIGITS = own_context(15, InvalidOperation, rounding=ROUND_HALF_UP)


@dataclass(frozen=True, slots=True)
class Judged:
    """A measurement that is believed."""

    event: ValidEvent
    #: True if it had more decimal places than the meter: rounded up.
    is_rounded: bool


@dataclass(frozen=True, slots=True)
class Finding:
    """What a measurement means for its customer."""

    #: Why it is none; None if it is one.
    failure: str | None
    event: UsageEvent | None = None
    #: What was said of the customer, if more than an id was.
    customer: Customer | None = None
    is_rounded: bool = False


@dataclass(frozen=True, slots=True)
class Judge:
    """Judges the measurements of one meter.

    :param max_growth: more than so many times the measurement before is not believed; 0 = any is.
    """

    meter: Meter
    schema: EventSchema
    max_growth: Decimal

    def judge(self, measurement: StorageMeasurement, before: int | None) -> Judged:
        """The event that *measurement* makes.

        :param before: the measurement before, in wire units; None = there is none.
        :raises InvalidEvent: it is none: an error, no quantity, negative, too large, or grown
            beyond belief.
        """
        if measurement.error is not None:
            # Whatever it says: one printable line, and not all of a page.
            raise InvalidEvent({"error": show(measurement.error, 150)})
        parts = _parts(measurement)
        counted = [value for name, value in parts.items() if self._counts(name)]
        if not counted:
            names = ", ".join(self.meter.value_from or _PARTS)
            raise InvalidEvent({"value": f"nothing was measured: give one of {names}"})
        try:
            exact = reduce(_EXACT.add, counted)
            value = exact.quantize(Decimal(1).scaleb(-self.meter.precision), context=_UP)
        except ArithmeticError:
            raise InvalidEvent({"value": "must have at most 15 digits"}) from None
        event = self.schema.strict(_properties(parts), value)
        self._check_growth(event.units, before)
        return Judged(event, value != exact)

    def findings(
        self,
        named: Iterable[tuple[str, StorageMeasurement]],
        done: Collection[str],
        before: Mapping[str, int],
        day: date,
        now: datetime,
    ) -> dict[str, Finding]:
        """Customer -> what its measurement means; of one named twice the first good one counts.

        :param named: :func:`name_of` each, and what was said of it.
        :param done: customers that are measured already: nothing is found of them.
        :param before: customer -> its measurement before, in wire units.
        :param day: UTC, that it is of.
        """
        found: dict[str, Finding] = {}
        for name, measurement in named:
            known = found.get(name)
            if name in done or (known is not None and known.failure is None):
                continue
            try:
                customer_id(measurement)
                judged = self.judge(measurement, before.get(name))
            except InvalidEvent as exc:
                found[name] = Finding(str(exc)[:_LONGEST])
            else:
                found[name] = self._believed(name, measurement, judged, day, now)
        return found

    def _believed(
        self, name: str, measurement: StorageMeasurement, judged: Judged, day: date, now: datetime
    ) -> Finding:
        event = UsageEvent(
            key=event_key(STORAGE, day),
            customer=name,
            meter=self.meter.name,
            units=judged.event.units,
            precision=self.meter.precision,
            occurred_at=_within(day, now),
            recorded_at=now,
            properties=judged.event.properties,
        )
        who = measurement.customer if isinstance(measurement.customer, Customer) else None
        return Finding(None, event, who, judged.is_rounded)

    def _counts(self, name: str) -> bool:
        return not self.meter.value_from or name in self.meter.value_from

    def _check_growth(self, units: int, before: int | None) -> None:
        # Nothing can be said of what has grown from nothing.
        if not self.max_growth or not before:
            return
        if units > _EXACT.multiply(Decimal(before), self.max_growth):
            now, then = (self.meter.to_value(each) for each in (units, before))
            raise InvalidEvent(
                {"value": f"{now} is more than {self.max_growth:f} times the {then} before"}
            )


def event_key(job: str, day: date) -> str:
    """The key of the event that *job* records for a customer on *day*."""
    return f"{job}:{day.isoformat()}"


def customer_id(measurement: StorageMeasurement) -> str:
    """Whose it is.

    :raises InvalidEvent: that cannot be a customer.
    """
    customer: Any = measurement.customer
    return check_customer_id(getattr(customer, "id", customer))


def name_of(measurement: StorageMeasurement) -> str:
    """The customer's id; of what cannot be one, its look, quoted, so that it is no other's."""
    try:
        return customer_id(measurement)
    except InvalidEvent:
        return show(measurement.customer, 60)


def _within(day: date, now: datetime) -> datetime:
    """*now*, or the last moment of *day* if that is over."""
    end = datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(days=1)
    return min(now, end - timedelta(milliseconds=1))


def _parts(measurement: StorageMeasurement) -> dict[str, Decimal]:
    """What was measured, by name.

    :raises InvalidEvent: naming each part that is no quantity.
    """
    parts, wrong = {}, {}
    for name in _PARTS:
        given = getattr(measurement, name)
        if given is None:
            continue
        try:
            check_quantity(given)
        except InvalidEvent as error:
            wrong[name] = error.messages["value"]
        else:
            parts[name] = Decimal(given).copy_abs()  # minus zero is zero
    if wrong:
        raise InvalidEvent(wrong)
    return parts


def _properties(parts: Mapping[str, Decimal]) -> dict[str, Decimal]:
    """*parts* as an event keeps them: at most 9 decimal places and 15 digits."""
    return {name: _FIFTEEN_DIGITS.plus(_to_bytes(part)) for name, part in parts.items()}


def _to_bytes(part: Decimal) -> Decimal:
    exponent: Any = part.as_tuple().exponent
    if exponent >= -9:
        return part
    return part.quantize(_KEPT, context=_HALF_UP)
