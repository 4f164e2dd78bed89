"""Events as they are before they are recorded: made of what a caller says. Nothing is written here.

A call's words must be right, or it raises; an operation's work is done, so that what is wrong with
its words was left out and flagged before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from hashlib import blake2b
from typing import Any

from . import tracing
from .accounts import id_of, moment_of
from .catalogue import Catalogue
from .errors import InvalidEvent
from .keys import check_client_key
from .model import Clock, Customer, Meter, UsageEvent, new_id, to_ms
from .schemas import EventSchema, ValidEvent, canonical_json


@dataclass(frozen=True, slots=True)
class Operation:
    """One metered piece of work, ready to be recorded when it has succeeded."""

    meter: Meter
    customer: Customer
    key: str
    fingerprint: str | None = None
    request_id: str | None = None


@dataclass(slots=True)
class UsageDraft:
    """What the running app says about its usage; ``current_usage`` is this."""

    #: The meter's name.
    meter: str
    #: None while a preflight is answered, which carries no credentials.
    customer: Customer | None
    #: Quantity in the meter's unit; None = the meter's default. While a response streams it may
    #: still grow, from what it is before the first byte; set it to 0 then if nothing is known.
    value: int | Decimal | str | None = None
    #: Properties of the event.
    properties: dict[str, Any] = field(default_factory=dict)
    is_cancelled: bool = False

    def update(self, **properties: Any) -> None:
        """Set properties of the event."""
        self.properties.update(properties)

    def cancel(self) -> None:
        """Do not bill this operation."""
        self.is_cancelled = True


class Drafts:
    """Makes the events of one app."""

    def __init__(self, catalogue: Catalogue, clock: Clock) -> None:
        self._catalogue = catalogue
        self._clock = clock
        self.schemas: Mapping[str, EventSchema] = {
            name: EventSchema(meter) for name, meter in catalogue.meters.items()
        }

    def of_call(
        self,
        meter: str,
        customer: Customer | str,
        *,
        value: int | Decimal | str | None,
        key: str | None,
        occurred_at: datetime | None,
        request_id: str | None,
        properties: Mapping[str, Any],
    ) -> UsageEvent | None:
        """See :meth:`~flask_c2meter.metering.Metering.draft`."""
        definition = self._catalogue.meter(meter)
        valid = self.schemas[meter].strict(properties, value)
        if key is not None:
            check_client_key("key", key)
        if not self.schemas[meter].is_billable(valid.properties):
            return None
        now = self._clock()
        return _event(
            definition,
            id_of(customer),
            valid,
            key=key or new_id(),
            occurred_at=now if occurred_at is None else _occurrence(occurred_at),
            recorded_at=now,
            fingerprint=None if key is None else _content_hash(valid),
            request_id=request_id,
        )

    def of_operation(self, operation: Operation, valid: ValidEvent) -> UsageEvent:
        """The event of an *operation* that has just succeeded."""
        now = self._clock()
        return _event(
            operation.meter,
            operation.customer.id,
            valid,
            key=operation.key,
            occurred_at=now,
            recorded_at=now,
            fingerprint=operation.fingerprint,
            request_id=operation.request_id,
        )


def _event(
    meter: Meter,
    customer: str,
    valid: ValidEvent,
    *,
    key: str,
    occurred_at: datetime,
    recorded_at: datetime,
    fingerprint: str | None,
    request_id: str | None,
) -> UsageEvent:
    return UsageEvent(
        key=key,
        customer=customer,
        meter=meter.name,
        units=valid.units,
        precision=meter.precision,
        occurred_at=occurred_at,
        recorded_at=recorded_at,
        properties=valid.properties,
        unique_by=valid.unique_by,
        request_id=request_id or tracing.trace_id(),
        flags=valid.flags,
        fingerprint=fingerprint,
    )


def _occurrence(given: datetime) -> datetime:
    """When an event happened, in UTC.

    :raises InvalidEvent: no such moment, or one that no ledger can have seen.
    """
    moment = moment_of("occurred_at", given)
    if to_ms(moment) < 0:
        raise InvalidEvent({"occurred_at": "is before 1970-01-01; Stripe takes 35 days back"})
    return moment


def itself(customer: Customer | str) -> Customer | None:
    """The customer if it is one, and not a proxy: whoever leads the batch writes it, anywhere."""
    if not isinstance(customer, Customer):
        return None
    if type(customer) is Customer:
        return customer
    return Customer(customer.id, customer.user_id, customer.plan, customer.email)


def _content_hash(valid: ValidEvent) -> str:
    content = f"{valid.units}:{canonical_json(valid.properties)}"
    return blake2b(content.encode(), digest_size=16).hexdigest()
