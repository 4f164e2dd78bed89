"""Usage that grows while its response streams: recorded as it goes.

Before the first byte an event is recorded with what is known then; one of 0 is a reservation, with
the flag ``reserved``. What the draft's ``value`` has grown to since is recorded after that in
parts, events of their own with the key ``part:<n>:<key>``: at most one a second, and at the end.
A process that dies has billed up to its last part. Imports no framework.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TypeVar

from . import logs
from .drafts import Operation, UsageDraft
from .errors import CorruptStore, StoreUnavailable
from .keys import part_key
from .metering import Metering
from .model import Aggregation, Meter
from .schemas import ValidEvent

logger: logs.Log = logs.logger(__name__)

Chunk = TypeVar("Chunk")

#: A stream records at most this often, except at its end.
CHECKPOINT_S = 1.0


def may_grow(meter: Meter) -> bool:
    """Whether *meter* takes values at all, rather than counting events."""
    return meter.aggregation in (Aggregation.SUM, Aggregation.MAX)


def reserving(draft: UsageDraft, valid: ValidEvent) -> ValidEvent:
    """*valid*, flagged as a reservation if *draft* says that nothing is known yet."""
    if draft.value is None or valid.units or "invalid" in valid.flags:
        return valid
    return replace(valid, flags=("reserved", *valid.flags))


class Growth:
    """What a streamed operation's value becomes after its event was recorded.

    :param recorded: the event's own, before the first byte.
    """

    __slots__ = (
        "_draft",
        "_looked_at",
        "_metering",
        "_operation",
        "_parts",
        "_recorded",
        "_seen",
        "_units",
    )

    def __init__(
        self, metering: Metering, operation: Operation, draft: UsageDraft, recorded: ValidEvent
    ) -> None:
        self._metering = metering
        self._operation = operation
        self._draft = draft
        self._recorded = recorded
        self._units = recorded.units
        self._seen = draft.value
        self._parts = 0
        self._looked_at = float("-inf")

    def look(self) -> None:
        """Record what has grown, unless that was done within the last second; never raises."""
        if self._draft.value is self._seen:
            return
        now = time.monotonic()
        if now - self._looked_at >= CHECKPOINT_S:
            self._looked_at = now
            self._record(is_last=False)

    def end(self) -> None:
        """Record what has grown, and that a reservation has come to its end; never raises."""
        is_silent = "reserved" in self._recorded.flags and not self._parts
        if is_silent or self._draft.value is not self._seen:
            self._record(is_last=True)

    def _record(self, *, is_last: bool) -> None:
        meter = self._operation.meter
        try:
            value = self._draft.value
            said = {**self._recorded.properties, **self._draft.properties}
            valid = self._metering.schema(meter.name).lenient(said, 0 if value is None else value)
            has_grown = "invalid" not in valid.flags and valid.units >= self._units
            if not has_grown and not is_last:
                return  # perhaps it is only being worked on
            part = replace(self._operation, key=part_key(self._operation.key, self._parts + 1))
            self._metering.complete(part, self._added(valid) if has_grown else _undecided(valid))
        except (StoreUnavailable, CorruptStore) as exc:
            logger.error("usage_not_recorded", meter=meter.name, error=exc)
        except Exception:  # the response is on its way: a fault of ours does not cut it off
            logger.exception("usage_not_recorded", meter=meter.name)
        else:
            self._seen = value
            self._parts += 1
            self._units = max(self._units, valid.units)

    def _added(self, valid: ValidEvent) -> ValidEvent:
        """What is new of it: a ``max`` meter takes the whole as it is."""
        is_sum = self._operation.meter.aggregation is Aggregation.SUM
        return replace(valid, units=valid.units - self._units) if is_sum else valid


def _undecided(valid: ValidEvent) -> ValidEvent:
    """No number, or one below what is recorded."""
    flags = [flag for flag in valid.flags if flag != "invalid"]
    return replace(valid, units=0, flags=(*flags, "invalid"))


class GrowingStream(Iterator[Chunk]):
    """The *chunks* of a response, none of which is held back; after each, a look at its usage."""

    def __init__(self, chunks: Iterable[Chunk], growth: Growth) -> None:
        self._body = chunks
        self._chunks: Iterator[Chunk] | None = None
        self._growth = growth

    def __next__(self) -> Chunk:
        if self._chunks is None:
            self._chunks = iter(self._body)
        try:
            chunk = next(self._chunks)
        except BaseException:  # its end, or the app's failure
            self._growth.end()
            raise
        self._growth.look()
        return chunk

    def close(self) -> None:
        """Tell the app that nobody reads on."""
        try:
            if (close := getattr(self._body, "close", None)) is not None:
                close()
        finally:
            self._growth.end()
