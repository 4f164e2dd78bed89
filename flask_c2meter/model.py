"""The nouns: frozen values that every other module passes around.

Imports only :mod:`~flask_c2meter.errors` and :mod:`~flask_c2meter.decimals`, performs no I/O and
knows no clock. Quantities come in two forms and never as floats: a ``value`` is a
:class:`~decimal.Decimal` in the meter's unit (1.5 GB), ``units`` are the same as an integer of
``10**-precision`` of it (1500 MB), which is what is stored, added and sent.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Literal

from .decimals import EXACT
from .errors import InvalidEvent

#: Tells the time: aware, UTC. One clock is injected per app; everything asks it.
Clock = Callable[[], datetime]

#: Largest quantity of one event or shipment, in wire units: Stripe takes 15 significant digits.
MAX_UNITS = 10**15 - 1

#: Stripe takes usage, and corrections of it, from this far back.
MAX_AGE: timedelta = timedelta(days=35)

#: Of moments in milliseconds, see :func:`to_ms`.
MINUTE_MS: int = 60_000
HOUR_MS: int = 60 * MINUTE_MS
DAY_MS: int = 24 * HOUR_MS

#: Longest id, key or identifier, in bytes.
MAX_ID_BYTES = 255

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_CUSTOMER_ID = re.compile(r"[A-Za-z0-9_\-]{1,255}")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


def utc_now() -> datetime:
    """The default :data:`Clock`."""
    return datetime.now(UTC)


def to_ms(moment: datetime) -> int:
    """An aware *moment* as UTC milliseconds since 1970, exact.

    :raises ValueError: *moment* is naive.
    """
    if moment.tzinfo is None:
        raise ValueError(f"{moment!r} has no time zone; pass an aware datetime")
    return (moment - _EPOCH) // _MILLISECOND


def from_ms(milliseconds: int) -> datetime:
    """The inverse of :func:`to_ms`."""
    return _EPOCH + milliseconds * _MILLISECOND


def new_id(now_ms: int | None = None) -> str:
    """A time-ordered random identifier: UUID version 7 as 36 characters.

    Time-ordered because random keys cost six times as much in a large unique index.
    Source: RFC 9562, section 5.7.
    """
    milliseconds = time.time_ns() // 1_000_000 if now_ms is None else now_ms
    # os.urandom, not random: a forked child must not repeat its parent's identifiers.
    tail = int.from_bytes(os.urandom(10), "big")
    number = (milliseconds << 80 | tail) & ~(0xF << 76 | 0x3 << 62) | 0x7 << 76 | 0x2 << 62
    digits = f"{number:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def first_id(at_ms: int) -> str:
    """What sorts before each :func:`new_id` made at *at_ms* or later, and after the rest."""
    digits = f"{max(0, at_ms):012x}"
    return f"{digits[:8]}-{digits[8:]}"


def check_text(name: str, text: object, max_bytes: int = MAX_ID_BYTES) -> str:
    """*text* itself if it is a non-empty, printable ``str`` of at most *max_bytes* in UTF-8.

    :raises InvalidEvent: naming the field; a bad text is refused, never cleaned.
    """
    if not isinstance(text, str):
        raise InvalidEvent({name: f"must be a string, not {type(text).__name__}"})
    if not text:
        raise InvalidEvent({name: "must not be empty"})
    if _CONTROL.search(text):
        raise InvalidEvent({name: "must not contain control characters"})
    try:
        size_bytes = len(text.encode())
    except UnicodeEncodeError:
        raise InvalidEvent({name: "must not contain lone surrogates"}) from None
    if size_bytes > max_bytes:
        raise InvalidEvent({name: f"must have at most {max_bytes} bytes, has {size_bytes}"})
    return text


def check_customer_id(text: object) -> str:
    """*text* itself if it can be a Stripe customer or account id.

    :raises InvalidEvent: otherwise; two customers must never become one by cleaning.
    """
    checked = check_text("customer", text)
    if not _CUSTOMER_ID.fullmatch(checked):
        raise InvalidEvent(
            {"customer": f"{checked!r} is no Stripe customer id: use letters, digits, '_' and '-'"}
        )
    return checked


class Aggregation(StrEnum):
    """How the events of a billing period become one number."""

    SUM = "sum"
    COUNT = "count"
    MAX = "max"
    UNIQUE_COUNT = "unique_count"


@dataclass(frozen=True, slots=True)
class Tier:
    """One step of a graduated or volume price, over overage units."""

    #: Last overage unit of this tier, in the meter's unit; None = open end (last tier only).
    up_to: Decimal | None
    #: Per overage unit, in minor units of the currency; up to 12 decimal places.
    unit_amount: Decimal
    #: Once, when the tier is entered, in minor units.
    flat_amount: Decimal = Decimal(0)


@dataclass(frozen=True, slots=True)
class Price:
    """What overage costs, in Stripe's price words."""

    #: One price for each unit, each tier at its own rate, or all at the rate of the last reached.
    mode: Literal["flat", "graduated", "volume"]
    #: Three letters, such as ``usd``.
    currency: str
    #: Per overage unit for ``flat``, in minor units; None for tiers.
    unit_amount: Decimal | None = None
    #: Ascending by ``up_to``, for ``graduated`` and ``volume``.
    tiers: tuple[Tier, ...] = ()


@dataclass(frozen=True, slots=True)
class Property:
    """One descriptive property of a meter's events, as the catalogue defines it."""

    name: str
    #: A ``domain`` is lower-cased and IDNA-encoded, without port; a ``decimal`` is never a float.
    type: Literal["string", "integer", "decimal", "boolean", "domain"]
    #: An event without it is incomplete.
    required: bool = False
    #: Regular expression the whole string must match.
    pattern: str | None = None
    #: The strings allowed; empty = any.
    choices: tuple[str, ...] = ()
    #: Longest string, in characters.
    max_length: int = 255
    #: Smallest number allowed, itself included; None = any.
    min: Decimal | None = None
    #: Largest number allowed, itself included; None = any.
    max: Decimal | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan a customer can be on."""

    name: str
    #: What people call it.
    display_name: str


@dataclass(frozen=True, slots=True)
class Meter:
    """What is counted; ``name`` is Stripe's ``event_name``."""

    name: str
    #: What people call it.
    display_name: str
    #: The host's name of the happening, such as ``verify.completed``.
    event_type: str
    #: What a value of 1 is, such as ``verify`` or ``gb``.
    unit: str
    #: How the events of a period become one number.
    aggregation: Aggregation
    #: Decimal places of a value, 0 to 9.
    precision: int = 0
    #: Property whose distinct values are counted (``unique_count`` only).
    unique_by: str | None = None
    #: Properties that add up to the value when none is given; at least one must be present.
    value_from: tuple[str, ...] = ()
    #: Flask-Limiter notation, moving window, per customer and user; None = unlimited.
    rate_limit: str | None = None
    #: Property -> value an event must have to be billed; an absent property passes.
    filter: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    #: Plan name -> included value in the meter's unit; None (in a catalogue ``"unlimited"``) =
    #: unlimited.
    included: Mapping[str, Decimal | None] = field(default_factory=lambda: MappingProxyType({}))
    #: What overage costs; None = it has units, and no amount.
    price: Price | None = None
    #: What an event may say about itself.
    properties: Mapping[str, Property] = field(default_factory=lambda: MappingProxyType({}))
    #: False = ledger and dashboard only: never sent to Stripe.
    billable: bool = True

    def to_units(self, value: Decimal) -> int:
        """*value* in wire units; the caller has checked its decimal places."""
        return int(value.scaleb(self.precision, EXACT))

    def to_value(self, units: int) -> Decimal:
        """The inverse of :meth:`to_units`."""
        return Decimal(units).scaleb(-self.precision, EXACT)


@dataclass(frozen=True, slots=True)
class Customer:
    """Who is billed: what a ``customer_loader`` returns.

    :param id: the Stripe customer id, ``cus_...``.
    :param user_id: the authenticated user, for rate limits; the customer's id if absent.
    :param plan: name of a plan of the catalogue; None = no included quantities known.
    :param email: receives the customer's usage alerts.
    :raises InvalidEvent: (a ``ValueError``) if an id has forbidden characters.
    """

    id: str
    user_id: str | None = None
    plan: str | None = None
    email: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_customer_id(self.id)
        for name in ("user_id", "plan", "email"):
            text = getattr(self, name)
            if text is not None:
                check_text(name, text)


#: What is known of an event's quality (see ``UsageEvent.flags``).
Flag = Literal["incomplete", "invalid", "reserved"]


@dataclass(frozen=True, slots=True)
class UsageEvent:
    """One fact: a customer used a meter. Immutable; the ledger is made of these."""

    #: Idempotency key, unique per customer and meter.
    key: str
    customer: str
    meter: str
    #: Quantity in integers of ``10**-precision`` of the meter's unit.
    units: int
    precision: int
    #: When it happened and when it was recorded, aware UTC.
    occurred_at: datetime
    recorded_at: datetime
    properties: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    #: What a ``unique_count`` meter counts.
    unique_by: str | None = None
    request_id: str | None = None
    #: ``adjustment`` voids the event whose key follows ``adjust:`` in its own.
    kind: Literal["usage", "adjustment"] = "usage"
    #: ``incomplete``: properties were left out; ``invalid``: undecidable, so recorded with 0;
    #: ``reserved``: a stream has begun, whose parts say how much it was.
    flags: tuple[Flag, ...] = ()
    #: Hash of the request the key was first used with, or None.
    fingerprint: str | None = None

    @property
    def value(self) -> Decimal:
        """Quantity in the meter's unit."""
        return Decimal(self.units).scaleb(-self.precision, EXACT)


@dataclass(frozen=True, slots=True)
class Period:
    """A billing period ``[start, end)``, aware UTC."""

    start: datetime
    end: datetime

    @classmethod
    def month_of(cls, moment: datetime) -> Period:
        """The calendar month (UTC) of *moment*: the period until a subscription is known."""
        start = moment.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        end = (start + timedelta(days=32)).replace(day=1)
        return cls(start, end)


#: A row of the period history that speaks of every meter without a row of its own.
EVERY_METER = "*"


@dataclass(frozen=True, slots=True)
class SubscriptionItem:
    """What a subscription says of one meter.

    :param period: the cycle under way, aware UTC.
    :param plan: of the meter's price; None = the subscription's.
    """

    period: Period
    plan: str | None = None


@dataclass(frozen=True, slots=True)
class Subscription:
    """What a customer subscribes to, as Stripe or the host's ``subscription_loader`` says.

    :param plan: name of a plan of the catalogue; None = it names none.
    :param period: the billing cycle under way, aware UTC.
    :param status: in Stripe's words.
    :param items: meter -> what is said of it; a meter that is not there has *plan* and *period*.
    :param id: Stripe's, ``sub_...``.
    :param started_at: of its first cycle, aware UTC; None = no earlier cycle is known.
    :param ended_at: aware UTC; None = it goes on.
    :param billing_mode: Stripe's; ``classic`` drops the usage before a change of price.
    """

    plan: str | None
    period: Period
    status: str = "active"
    items: Mapping[str, SubscriptionItem] = field(default_factory=lambda: MappingProxyType({}))
    id: str | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    billing_mode: Literal["classic", "flexible"] = "flexible"


#: How far the included quantity is used up.
Level = Literal["warning", "critical", "exceeded"]


@dataclass(frozen=True, slots=True)
class Usage:
    """A customer's aggregated usage of one meter in one period."""

    meter: str
    #: In the meter's unit.
    total: Decimal
    #: Part of the plan, in the meter's unit; None = unlimited or no plan known.
    included: Decimal | None
    #: total / included; None without an included quantity or when it is 0.
    utilization: Decimal | None
    #: ``warning``, ``critical``, ``exceeded`` or None below the first threshold.
    level: Level | None
    period: Period


@dataclass(frozen=True, slots=True)
class Projection:
    """What a total is expected to be at its period's end, in the meter's unit."""

    total: Decimal
    #: Four times in five the truth lies between these two.
    low: Decimal
    high: Decimal


@dataclass(frozen=True, slots=True)
class Charge:
    """One line of the bill: the overage of one meter in one period.

    Amounts are whole minor units; None without a price. What is projected is None while it is too
    early to say, and equal to what is when the period is over.
    """

    meter: str
    #: Overage so far, in the meter's unit.
    units: Decimal
    amount: Decimal | None
    currency: str | None
    projected_units: Decimal | None
    projected_amount: Decimal | None
    projected_low: Decimal | None
    projected_high: Decimal | None
    period: Period


@dataclass(frozen=True, slots=True)
class Alert:
    """A customer has reached a threshold of the included quantity; announced once."""

    customer: str
    meter: str
    level: Level
    #: total / included when it was raised; None if nothing is included.
    utilization: Decimal | None
    #: Usage of the period when it was raised, and the included quantity, in the meter's unit.
    total: Decimal
    included: Decimal
    period: Period
    raised_at: datetime
    #: Unique and time-ordered: what receivers know a repetition by.
    identifier: str
    #: True if nothing was reached and an operator tries the channels.
    is_test: bool = False


@dataclass(frozen=True, slots=True)
class StorageMeasurement:
    """How much one customer stores: what a ``storage_loader`` yields.

    Nothing is checked here: a measurement that is none is a failure of this customer alone.

    :param customer: or its id.
    :param evidence_gb: in gigabytes, like the next three, which are added up; at least one must be
        given, as an ``int``, a ``Decimal`` or text such as ``"1.5"``, never a ``float``.
    :param error: why it could not be measured; it then counts as failed, never as 0 GB.
    """

    customer: Customer | str
    evidence_gb: int | Decimal | str | None = None
    manifest_gb: int | Decimal | str | None = None
    backup_gb: int | Decimal | str | None = None
    storage_gb: int | Decimal | str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class JobAlert:
    """Too much of a job has failed: for the operator, announced once a day."""

    job: str
    #: UTC.
    day: date
    #: Customers of the day, and those of them that failed.
    total: int
    failed: int
    #: True if the job could not be carried through at all.
    is_broken: bool
    raised_at: datetime
    #: Unique and time-ordered: what receivers know a repetition by.
    identifier: str

    @property
    def rate(self) -> str:
        """Share of the failures, as the document writes it: ``11.00%``."""
        return percentage(self.failed, self.total)


@dataclass(frozen=True, slots=True)
class JobResult:
    """What has become of a job on a day: the payload of ``job_finished``."""

    job: str
    #: UTC.
    day: date
    #: Customers of the day, whichever run dealt with them, and those of them that failed.
    total: int
    failed: int
    #: Customers of the day before whom nobody has named today.
    unnamed: int
    #: Why the run ended before its end; None if it did not.
    error: str | None
    #: True if too much failed: more than ``C2METER_STORAGE_MAX_FAILURES``, or the run itself.
    is_bad: bool
    #: What was raised by this run; None if there is nothing to say, or it was said this day.
    alert: JobAlert | None
    begun_at: datetime
    ended_at: datetime

    @property
    def rate(self) -> str:
        """Share of the failures: ``11.00%``."""
        return percentage(self.failed, self.total)


def percentage(part: int, whole: int) -> str:
    """*part* of *whole* as text with two places, half up; of nothing it is ``0.00%``."""
    hundredths = (part * 20_000 + whole) // (2 * whole) if whole else 0
    return f"{hundredths // 100}.{hundredths % 100:02d}%"
