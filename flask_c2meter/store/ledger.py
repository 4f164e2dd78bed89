"""Writing events, and what follows from them, in one transaction.

An event's *increment* is what it adds to its period's aggregate, in recorded order: its value for a
sum, 1 for a count, the rise of the running maximum for max, 1 at first sight for a unique count.
Increments are never stored; their sums per minute (``buckets``) and per period (``totals``) are.

This is the hot path: it runs on the driver's own cursor, one multi-row statement per table and
batch. Every statement releases the interpreter lock, and beside a CPU-bound thread each release can
cost 5 ms.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple, cast

from ..catalogue import CANARY
from ..errors import InvalidEvent, KeyConflict, UnknownEvent
from ..model import (
    DAY_MS,
    MINUTE_MS,
    Aggregation,
    Customer,
    Flag,
    Meter,
    UsageEvent,
    from_ms,
    to_ms,
)
from ..schemas import canonical_json
from .alerts import AlertBook, AlertPolicy, Reached
from .book import PeriodBook, Span
from .cursor import Cursor, execute_many, marked
from .customers import CustomerBook

#: Largest batch of one transaction: 13 columns each stay far below SQLite's 32,766 parameters.
MAX_BATCH = 500

#: Largest aggregate of a period, in wire units: a thousand events of the largest size fit.
MAX_TOTAL = 10**18

#: Prefix of an adjustment's key; the rest is the key of the event it voids.
ADJUST = "adjust:"

EVENT_COLUMNS = (
    "key",
    "customer",
    "meter",
    "value",
    "unique_by",
    "occurred_at",
    "recorded_at",
    "properties",
    "request_id",
    "kind",
    "flags",
    "fingerprint",
    "checksum",
)

_INSERT_EVENTS = f"INSERT INTO events ({', '.join(EVENT_COLUMNS)})"
_FIND = (
    f"SELECT {', '.join(EVENT_COLUMNS)} FROM events WHERE customer = ? AND meter = ? AND key = ?"
)
_UNVOIDED = (
    f"SELECT {', '.join(EVENT_COLUMNS)} FROM events e WHERE customer = ? AND meter = ? "
    "AND kind = 'usage' AND flags NOT IN ('invalid', 'incomplete invalid') "
    "AND NOT EXISTS (SELECT 1 FROM events a "
    "WHERE a.customer = e.customer AND a.meter = e.meter AND a.key = 'adjust:' || e.key)"
)
_ADD_TO_BUCKET = (
    "ON CONFLICT (customer, meter, period, minute) DO UPDATE SET "
    "total = buckets.total + excluded.total, last_at = CASE WHEN excluded.last_at > "
    "buckets.last_at THEN excluded.last_at ELSE buckets.last_at END, waiting_since = "
    "CASE WHEN buckets.total = buckets.counted THEN excluded.waiting_since "
    "ELSE buckets.waiting_since END, trace = "
    "CASE WHEN buckets.total = buckets.counted THEN excluded.trace ELSE buckets.trace END"
)
_TOTAL = "SELECT total FROM totals WHERE customer = ? AND meter = ? AND period = ?"
_INSERT_TOTALS = "INSERT INTO totals (customer, meter, period, total, events, last_at)"
_ADD_TO_TOTAL = (
    "ON CONFLICT (customer, meter, period) DO UPDATE SET "
    "total = totals.total + excluded.total, events = totals.events + excluded.events, "
    "last_at = CASE WHEN excluded.last_at > totals.last_at THEN excluded.last_at "
    "ELSE totals.last_at END RETURNING customer, meter, period, total"
)
_ADD_TO_DAY = (
    "UPDATE days SET total = total + ? WHERE customer = ? AND meter = ? AND period = ? AND day = ?"
)
_FORGET_SIGHT = "DELETE FROM seen WHERE customer = ? AND meter = ? AND period = ? AND key_hash = ?"


def adjustment_key(key: str) -> str:
    """The key of the adjustment that voids the event with *key*."""
    return ADJUST + key


class Row(NamedTuple):
    """One row of ``events`` without its id, in column order."""

    key: str
    customer: str
    meter: str
    value: int
    unique_by: str | None
    occurred_at: int
    recorded_at: int
    properties: str
    request_id: str | None
    kind: str
    flags: str
    fingerprint: str | None
    checksum: str

    @property
    def minute(self) -> int:
        """Start of the minute of occurrence."""
        return self.occurred_at - self.occurred_at % MINUTE_MS

    @property
    def is_intact(self) -> bool:
        """Whether the row is as it was written."""
        return self.checksum == _checksum(self[:-1])


class Entry(NamedTuple):
    """What one caller wants recorded."""

    row: Row
    #: Who it is, as the loader just said; None when only the id is known.
    customer: Customer | None = None
    #: Whether it comes from the spill, perhaps long after ``recorded_at``.
    is_replayed: bool = False
    #: The trace context it was recorded in (W3C ``traceparent``).
    trace: str | None = None

    @property
    def is_late(self) -> bool:
        """Whether the day of its occurrence may have been added up already."""
        row = self.row
        return self.is_replayed or row.occurred_at // DAY_MS < row.recorded_at // DAY_MS


def _checksum(fields: tuple[Any, ...]) -> str:
    return blake2b(repr(fields).encode(), digest_size=8).hexdigest()


def encode(event: UsageEvent) -> Row:
    """The row that stores *event*."""
    fields = (
        event.key,
        event.customer,
        event.meter,
        event.units,
        event.unique_by,
        to_ms(event.occurred_at),
        to_ms(event.recorded_at),
        canonical_json(dict(event.properties)),
        event.request_id,
        event.kind,
        " ".join(event.flags),
        event.fingerprint,
    )
    return Row(*fields, checksum=_checksum(fields))


def decode(row: Row, meters: Mapping[str, Meter]) -> UsageEvent:
    """The inverse of :func:`encode`."""
    meter = meters.get(row.meter)
    return UsageEvent(
        key=row.key,
        customer=row.customer,
        meter=row.meter,
        units=row.value,
        precision=meter.precision if meter else 0,
        occurred_at=from_ms(row.occurred_at),
        recorded_at=from_ms(row.recorded_at),
        properties=json.loads(row.properties),
        unique_by=row.unique_by,
        request_id=row.request_id,
        kind="adjustment" if row.kind == "adjustment" else "usage",
        flags=cast("tuple[Flag, ...]", tuple(row.flags.split())),
        fingerprint=row.fingerprint,
    )


def key_hash(unique_by: str) -> str:
    """What ``seen`` remembers of a counted thing."""
    return blake2b(unique_by.encode(), digest_size=16).hexdigest()


class Lane(NamedTuple):
    """A customer's meter in one period: what is aggregated into one total."""

    customer: str
    meter: str
    period: int


class Ledger:
    """The statements that record, bound to the catalogue's meters.

    Call :meth:`committed` or :meth:`forget` when the transaction has ended.

    :param meters: name -> meter; decides how an event adds to its aggregate.
    :param alerts: when to raise one.
    :param mark: the driver's parameter mark, ``?`` or ``%s``.
    """

    def __init__(
        self, meters: Mapping[str, Meter], alerts: AlertPolicy | None = None, mark: str = "?"
    ) -> None:
        self.meters = meters
        self._mark = mark
        self._book = PeriodBook(mark)
        self._customers = CustomerBook(mark)
        self._alerts = AlertBook(alerts or AlertPolicy(), mark)

    def append(self, cursor: Cursor, entries: Sequence[Entry]) -> list[bool]:
        """Record *entries* and all that follows; the caller commits.

        A known key changes nothing for its neighbours.

        :return: for each entry, whether its key was new.
        """
        self._book.refresh(cursor)
        is_new = self._insert_events(cursor, [entry.row for entry in entries])
        fresh = [entry for entry, new in zip(entries, is_new, strict=True) if new]
        if fresh:
            self._customers.note(cursor, _customers_of(fresh))
            spans = [self._span(cursor, entry.row) for entry in fresh]
            self._apply(cursor, fresh, spans, self._increments(cursor, fresh, spans))
        return is_new

    def committed(self) -> None:
        """What was recorded last is in the store."""
        self._customers.committed()
        self._alerts.committed()

    def forget(self) -> None:
        """What was recorded last may have been rolled back."""
        self._book.forget()
        self._customers.forget()
        self._alerts.forget()

    def find(self, cursor: Cursor, customer: str, meter: str, key: str) -> Row | None:
        """The row with that key, or None."""
        self._run(cursor, _FIND, (customer, meter, key))
        found = cursor.fetchone()
        return Row(*found) if found else None

    def adjust(self, cursor: Cursor, adjustment: UsageEvent) -> Row:
        """Void the event that *adjustment* names; the caller commits.

        :param adjustment: its key is ``adjust:<key>``; value and time are taken from the event.
        :return: the adjustment's row: a second call returns the first one's.
        :raises UnknownEvent: no such event.
        :raises KeyConflict: the event is an adjustment itself.
        :raises InvalidEvent: the event is corrupt: what it has counted is not known.
        """
        known = self.find(cursor, adjustment.customer, adjustment.meter, adjustment.key)
        if known is not None:
            return known
        voided_key = adjustment.key.removeprefix(ADJUST)
        voided = self.find(cursor, adjustment.customer, adjustment.meter, voided_key)
        if voided is None:
            raise UnknownEvent(
                f"customer {adjustment.customer} has no {adjustment.meter} event with key "
                f"{voided_key!r}; `flask c2meter events` lists them"
            )
        if voided.kind == "adjustment":
            raise KeyConflict({"key": "names an adjustment, which cannot be voided itself"})
        if not voided.is_intact:
            raise InvalidEvent(
                {"key": "names an event that is not as it was written (corrupt); restore it first"}
            )
        fields = encode(adjustment)._replace(
            value=voided.value,
            unique_by=voided.unique_by,
            occurred_at=voided.occurred_at,
        )[:-1]
        row = Row(*fields, checksum=_checksum(fields))
        self._book.refresh(cursor)
        span = self._span(cursor, voided)
        increment = self._void(cursor, voided, span)
        self._insert_events(cursor, [row])
        # A day that is over may have been added up, whenever the voided event was recorded.
        self._apply(cursor, [Entry(row, is_replayed=True)], [span], [increment])
        return row

    def look_again(self, cursor: Cursor, customer: str, now: int) -> None:
        """Raise the alerts that the present totals of *customer* deserve; the caller commits."""
        known = self._customers.of(cursor, customer)
        for meter in self.meters:
            span = self._book.span(cursor, customer, meter, now)
            total = self._total(cursor, Lane(customer, meter, span.start))
            if self._alerts.may_reach(meter, total):
                self._alerts.look(cursor, Reached(known, meter, span, total, now))

    # -- the parts of append ---------------------------------------------------------------

    def _span(self, cursor: Cursor, row: Row) -> Span:
        return self._book.span(cursor, row.customer, row.meter, row.occurred_at)

    def _insert_events(self, cursor: Cursor, rows: Sequence[Row]) -> list[bool]:
        ignore_known = "ON CONFLICT (customer, meter, key) DO NOTHING"
        if len(rows) == 1:  # a quarter cheaper than asking what was returned
            self._write(cursor, _INSERT_EVENTS, rows, ignore_known)
            return [cursor.rowcount == 1]
        self._write(cursor, _INSERT_EVENTS, rows, f"{ignore_known} RETURNING customer, meter, key")
        inserted = {tuple(found) for found in cursor.fetchall()}
        is_new = []
        for row in rows:  # a key that comes twice in one batch is new only once
            identity = (row.customer, row.meter, row.key)
            is_new.append(identity in inserted)
            inserted.discard(identity)
        return is_new

    def _increments(
        self, cursor: Cursor, entries: Sequence[Entry], spans: Sequence[Span]
    ) -> list[int]:
        first_seen = self._see(cursor, entries, spans)
        peaks: dict[Lane, int] = {}
        increments = []
        for (row, *_), span in zip(entries, spans, strict=True):
            meter = self.meters.get(row.meter)
            aggregation = meter.aggregation if meter else None
            # A spilled event may be of a meter no longer in the catalogue: kept, `verify` says so.
            if aggregation is None or "invalid" in row.flags:
                increments.append(0)
            elif aggregation is Aggregation.MAX:
                lane = Lane(row.customer, row.meter, span.start)
                peak = peaks[lane] if lane in peaks else self._total(cursor, lane)
                peaks[lane] = max(peak, row.value)
                increments.append(peaks[lane] - peak)
            elif aggregation is Aggregation.UNIQUE_COUNT:
                sight = _sight(row, span)
                increments.append(int(sight in first_seen))
                first_seen.discard(sight)
            else:
                increments.append(row.value if aggregation is Aggregation.SUM else 1)
        return increments

    def _see(
        self, cursor: Cursor, entries: Sequence[Entry], spans: Sequence[Span]
    ) -> set[tuple[Any, ...]]:
        """Note what *entries* count uniquely; return what was seen for the first time."""
        sights = [
            _sight(entry.row, span)
            for entry, span in zip(entries, spans, strict=True)
            if entry.row.unique_by is not None and "invalid" not in entry.row.flags
        ]
        if not sights:
            return set()
        self._write(
            cursor,
            "INSERT INTO seen (customer, meter, period, key_hash)",
            sights,
            "ON CONFLICT DO NOTHING RETURNING customer, meter, period, key_hash",
        )
        return {tuple(found) for found in cursor.fetchall()}

    def _total(self, cursor: Cursor, lane: Lane) -> int:
        self._run(cursor, _TOTAL, lane)
        found = cursor.fetchone()
        return found[0] if found else 0

    def _apply(
        self,
        cursor: Cursor,
        entries: Sequence[Entry],
        spans: Sequence[Span],
        increments: Sequence[int],
    ) -> None:
        """Add *increments* to buckets, totals and finished days; raise the alerts they deserve."""
        buckets: dict[tuple[str, str, int, int], tuple[int, int, int, str | None]] = {}
        totals: dict[Lane, tuple[int, int, int]] = {}
        latest: dict[Lane, tuple[Entry, Span]] = {}
        late: list[tuple[int, str, str, int, int]] = []
        for entry, span, increment in zip(entries, spans, increments, strict=True):
            row = entry.row
            customer, meter, occurred_at = row.customer, row.meter, row.occurred_at
            if increment:
                minute = (customer, meter, span.start, row.minute)
                added, last_at, since, trace = buckets.get(
                    minute, (0, occurred_at, row.recorded_at, entry.trace)
                )
                since = min(since, row.recorded_at)
                buckets[minute] = (added + increment, max(last_at, occurred_at), since, trace)
                if entry.is_late:
                    day = occurred_at - occurred_at % DAY_MS
                    late.append((increment, customer, meter, span.start, day))
            lane = Lane(customer, meter, span.start)
            total, events, last_at = totals.get(lane, (0, 0, 0))
            events += 1 if row.kind == "usage" else -1
            totals[lane] = (total + increment, events, max(last_at, occurred_at))
            latest[lane] = (entry, span)
        if buckets:
            self._write(
                cursor,
                "INSERT INTO buckets (customer, meter, period, minute, total, last_at, "
                "waiting_since, trace, counted)",
                [(*minute, *added, 0) for minute, added in sorted(buckets.items())],
                _ADD_TO_BUCKET,
            )
        rows = [(*lane, *added) for lane, added in sorted(totals.items())]
        self._write(cursor, _INSERT_TOTALS, rows, _ADD_TO_TOTAL)
        for customer, meter, period, total in cursor.fetchall():
            if not -MAX_TOTAL <= total <= MAX_TOTAL:
                raise InvalidEvent({"value": f"the period's total would exceed {MAX_TOTAL}"})
            self._look(cursor, *latest[Lane(customer, meter, period)], total)
        for added_late in late:
            self._run(cursor, _ADD_TO_DAY, added_late)

    def _look(self, cursor: Cursor, entry: Entry, span: Span, total: int) -> None:
        row = entry.row
        if self._alerts.may_reach(row.meter, total):
            customer = self._customers.of(cursor, entry.customer or row.customer)
            reached = Reached(customer, row.meter, span, total, row.recorded_at)
            self._alerts.look(cursor, reached)

    # -- voiding ------------------------------------------------------------------------------

    def _void(self, cursor: Cursor, voided: Row, span: Span) -> int:
        """The (negative or zero) increment of leaving *voided* out of its period."""
        aggregation = self.meters[voided.meter].aggregation
        if "invalid" in voided.flags:
            return 0
        if aggregation is Aggregation.SUM:
            return -voided.value
        if aggregation is Aggregation.COUNT:
            return -1
        others = [
            row
            for row in self._unvoided(cursor, voided.customer, voided.meter)
            if row.key != voided.key and span.start <= row.occurred_at < span.end
        ]
        if aggregation is Aggregation.MAX:
            peak = max((row.value for row in others), default=0)
            return peak - self._total(cursor, Lane(voided.customer, voided.meter, span.start))
        if any(row.unique_by == voided.unique_by for row in others):
            return 0
        self._run(cursor, _FORGET_SIGHT, _sight(voided, span))
        return -1

    def _unvoided(self, cursor: Cursor, customer: str, meter: str) -> Iterable[Row]:
        self._run(cursor, _UNVOIDED, (customer, meter))
        return [Row(*found) for found in cursor.fetchall()]

    # -- plumbing -------------------------------------------------------------------------------

    def _run(self, cursor: Cursor, statement: str, parameters: Sequence[Any]) -> None:
        cursor.execute(marked(statement, self._mark), parameters)

    def _write(self, cursor: Cursor, head: str, rows: Sequence[Sequence[Any]], tail: str) -> None:
        execute_many(cursor, head, rows, tail, self._mark)


def _customers_of(entries: Iterable[Entry]) -> Iterator[Customer | str]:
    """Who *entries* are of; the canary is nobody's."""
    return (e.customer or e.row.customer for e in entries if e.row.meter != CANARY.name)


def _sight(row: Row, span: Span) -> tuple[str, str, int, str]:
    """The row of ``seen`` for what *row* counts."""
    return row.customer, row.meter, span.start, key_hash(row.unique_by or "")
