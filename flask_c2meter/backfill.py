"""Backfill: usage that was recorded elsewhere, taken in from a file.

Every line is checked as if it had been recorded when it happened, and has a key, so that taking the
same file in again adds nothing: whatever stops it, the cure is to run it again. A bad line stops no
other. Batches are transactions; one batch is in memory.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from .errors import C2MeterError, InvalidEvent, KeyConflict, StoreUnavailable, did_you_mean
from .metering import Metering
from .model import Property, UsageEvent, check_text, to_ms
from .nesting import is_too_deep
from .records import TOO_DEEP, Record
from .shipment import DeadReason
from .store import MAX_BATCH

#: What a line may say; in CSV any other column is a property.
FIELDS = ("customer", "meter", "key", "occurred_at", "value", "request_id", "properties")
_REQUIRED = FIELDS[:4]

#: Clocks differ a little; what is further ahead is a mistake.
_AHEAD = timedelta(minutes=5)

_BOOLEANS = {"true": True, "false": False}

#: Told the number of a line and what is wrong with it.
Complain = Callable[[int, str], None]


class Backfill:
    """One run.

    :param apply: False = only say what would be done: nothing is written.
    """

    def __init__(self, metering: Metering, *, apply: bool, complain: Complain) -> None:
        self._metering = metering
        self._apply = apply
        self._complain = complain
        self._batch: list[tuple[int, UsageEvent]] = []
        #: ``new``, ``known``, ``not billed``, ``errors``; of the new, ``expired`` and ``late``.
        self.counts: Counter[str] = Counter()
        self.lines: int = 0
        #: Everything up to this line is done.
        self.done: int = 0

    def run(self, records: Iterable[Record], progress: Callable[[int], None]) -> None:
        """Take *records* in.

        :param progress: told now and then how many lines are done.
        :raises StoreUnavailable: the ledger cannot be used now; what is :attr:`done` is recorded.
        """
        for record in records:
            self.lines += 1
            self._read(record)
            if len(self._batch) == MAX_BATCH:
                self._flush(record.line)
                progress(self.lines)
        if self.lines:
            self._flush(record.line)
        progress(self.lines)

    def _read(self, record: Record) -> None:
        if record.problem is not None:
            self._fail(record.line, record.problem)
            return
        try:
            event = self._draft(record)
        except StoreUnavailable:
            raise
        except C2MeterError as exc:
            self._fail(record.line, str(exc))
            return
        if event is None:
            self.counts["not billed"] += 1
        else:
            self._batch.append((record.line, event))

    def _fail(self, line: int, problem: str) -> None:
        self.counts["errors"] += 1
        self._complain(line, problem)

    # -- from a line to an event -------------------------------------------------------------------

    def _draft(self, record: Record) -> UsageEvent | None:
        fields = {name: value for name, value in record.fields.items() if value is not None}
        if missing := [name for name in _REQUIRED if name not in fields]:
            raise InvalidEvent({name: _WHY.get(name, "is required") for name in missing})
        meter = self._metering.catalogue.meter(check_text("meter", fields["meter"]))
        request_id = fields.get("request_id")
        return self._metering.draft(
            meter.name,
            fields["customer"],
            value=fields.get("value"),
            key=fields["key"],
            occurred_at=self._moment(fields["occurred_at"]),
            request_id=None if request_id is None else check_text("request_id", request_id),
            properties=_properties(fields, meter.properties, record.is_csv),
        )

    def _moment(self, text: object) -> datetime:
        try:
            moment = datetime.fromisoformat(text) if isinstance(text, str) else None
        except ValueError:
            moment = None
        if moment is None or moment.tzinfo is None:
            raise InvalidEvent(
                {"occurred_at": "must be ISO 8601 with an offset, such as 2026-01-15T12:00:00Z"}
            )
        if moment > self._metering.config.clock() + _AHEAD:
            raise InvalidEvent({"occurred_at": f"{text} is in the future"})
        return moment

    # -- from events to the ledger -----------------------------------------------------------------

    def _flush(self, line: int) -> None:
        """Take the batch in; *line* is the last that was read."""
        if batch := self._batch:
            is_new = self._record(batch) if self._apply else self._would_record(batch)
            new = [event for (_, event), new in zip(batch, is_new, strict=True) if new]
            self.counts["new"] += len(new)
            self._foretell(new)
            self._batch = []
        self.done = line

    def _record(self, batch: Sequence[tuple[int, UsageEvent]]) -> list[bool]:
        try:
            is_new = self._metering.record_batch([event for _, event in batch])
        except InvalidEvent as exc:
            if len(batch) > 1:  # one of them: alone, it stops no other
                return [new for each in batch for new in self._record([each])]
            self._fail(batch[0][0], str(exc))
            return [False]
        for (line, event), found, new in zip(batch, self._find(batch), is_new, strict=True):
            if not new:
                self._judge(line, event, found)
        return is_new

    def _would_record(self, batch: Sequence[tuple[int, UsageEvent]]) -> list[bool]:
        first: dict[tuple[str, str, str], UsageEvent] = {}
        is_new = []
        for (line, event), found in zip(batch, self._find(batch), strict=True):
            known = first.setdefault((event.customer, event.meter, event.key), found or event)
            is_new.append(known is event)
            if known is not event:
                self._judge(line, event, known)
        return is_new

    def _find(self, batch: Sequence[tuple[int, UsageEvent]]) -> list[UsageEvent | None]:
        return self._metering.store.find_all([event for _, event in batch])

    def _judge(self, line: int, event: UsageEvent, known: UsageEvent | None) -> None:
        """Count what is known already, unless its key was used for something else."""
        if known is None or _are_same(event, known):
            self.counts["known"] += 1
        else:
            problem = KeyConflict({"key": f"{event.key!r} is known for another event"})
            self._fail(line, str(problem))

    def _foretell(self, events: Sequence[UsageEvent]) -> None:
        """Count what Stripe will not take any more."""
        meters = self._metering.catalogue.meters
        billable = [event for event in events if meters[event.meter].billable]
        now_ms = to_ms(self._metering.config.clock())
        for fate in self._metering.store.dead.fates(billable, now_ms):
            if fate is not None:
                self.counts[fate.value] += 1


_WHY = {
    "key": "is required, so that running this again adds nothing",
    "occurred_at": "is required: when it happened decides which bill it is on",
}

#: Why Stripe will not take some of the new events, in words.
FATES = {
    DeadReason.EXPIRED: "are older than the 35 days that Stripe takes",
    DeadReason.LATE: "lie in periods whose invoice is final",
}


def _are_same(event: UsageEvent, known: UsageEvent) -> bool:
    """Whether a known event says the same, recorded by whatever way."""
    return event.fingerprint == known.fingerprint or (
        (event.units, event.unique_by, dict(event.properties), event.occurred_at)
        == (known.units, known.unique_by, dict(known.properties), known.occurred_at)
    )


def _properties(
    fields: Mapping[str, Any], known: Mapping[str, Property], is_csv: bool
) -> dict[str, Any]:
    given = fields.get("properties", {})
    if is_csv and isinstance(given, str):
        try:
            given = json.loads(given)
        except (ValueError, RecursionError):
            raise InvalidEvent({"properties": "is no JSON"}) from None
        if is_too_deep(given):
            raise InvalidEvent({"properties": TOO_DEEP})
    if not isinstance(given, dict):
        raise InvalidEvent({"properties": "must be an object"})
    others = {name: value for name, value in fields.items() if name not in FIELDS}
    if others and not is_csv:
        raise InvalidEvent(
            {
                name: f"is none of {', '.join(FIELDS)}{did_you_mean(name, FIELDS)}; what describes "
                "the event belongs into properties"
                for name in others
            }
        )
    return given | {name: _typed(cell, known.get(name)) for name, cell in others.items()}


def _typed(cell: str, prop: Property | None) -> Any:
    """A cell of a CSV as the catalogue wants the property; as it is where that cannot be."""
    if prop is not None and prop.type == "boolean":
        return _BOOLEANS.get(cell.lower(), cell)
    if prop is not None and prop.type == "integer" and len(cell) < 20:
        try:
            return int(cell)
        except ValueError:
            return cell
    return cell
