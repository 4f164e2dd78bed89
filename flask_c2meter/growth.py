"""Usage that grows while its response streams: recorded as it goes.

Before the first byte an event is recorded with what is known then; one of 0 is a reservation, with
the flag ``reserved``. What the draft's ``value`` has grown to since is recorded after that in
parts, events of their own with the key ``part:<n>:<key>``: with a chunk, if the last part is a
second old, and at the end. A process that dies has billed up to its last part. Imports no
framework.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

from . import logs
from .drafts import Operation, UsageDraft
from .errors import C2MeterError
from .keys import part_key
from .metering import Metering
from .model import Aggregation
from .schemas import ValidEvent

logger: logs.Log = logs.logger(__name__)

Chunk = TypeVar("Chunk")

#: A stream records at most this often, except at its end.
CHECKPOINT_S = 1.0

#: Aggregations whose events have a value; of the others, each event is one.
_GROWING = (Aggregation.SUM, Aggregation.MAX)


def is_streamed(body: Iterable[Any], environ: Mapping[str, Any]) -> bool:
    """Whether *body* is made while it is sent; a file that the server sends itself is not."""
    wrapper = environ.get("wsgi.file_wrapper")
    is_file = isinstance(wrapper, type) and isinstance(body, wrapper)
    return not is_file and not hasattr(body, "__len__")


def reserving(operation: Operation, draft: UsageDraft, valid: ValidEvent) -> ValidEvent:
    """*valid*, as a reservation if *draft* says that nothing is known yet.

    What its properties lack may be said later, and is judged with the parts.
    """
    if draft.value is None or valid.units or "invalid" in valid.flags:
        return valid
    if operation.meter.aggregation not in _GROWING:
        return valid
    return replace(valid, flags=("reserved",))


class Growth:
    """What a streamed operation becomes after its event was recorded. Its methods never raise.

    :param recorded: the event's own, before the first byte.
    :param read: what there is to record now; None = the meter's filter leaves it out.
    """

    def __init__(
        self,
        metering: Metering,
        operation: Operation,
        draft: UsageDraft,
        recorded: ValidEvent,
        read: Callable[[], ValidEvent | None],
    ) -> None:
        self._metering = metering
        self._operation = operation
        self._draft = draft
        self._is_reserved = "reserved" in recorded.flags
        self._read = read
        self._units = recorded.units
        self._seen = draft.value
        #: Of all events, in the order in which they were recorded.
        self._keys = [operation.key]
        self._looked_at = float("-inf")

    def look(self) -> None:
        """Record what has grown, unless that was done within the last second."""
        if not self._has_changed:
            return
        now = time.monotonic()
        if now - self._looked_at >= CHECKPOINT_S:
            self._looked_at = now
            with self._guard():
                self._record(self._read(), is_last=False)

    def end(self) -> None:
        """Record what has grown, or void all if it is not to be billed after all."""
        if not self._keys:
            return
        with self._guard():
            valid = None if self._draft.is_cancelled else self._read()
            if valid is None:
                self._take_back()
            elif self._has_changed or (self._is_reserved and len(self._keys) == 1):
                self._record(valid, is_last=True)

    @property
    def _has_changed(self) -> bool:
        grows = self._operation.meter.aggregation in _GROWING
        return grows and self._draft.value is not self._seen

    def _record(self, valid: ValidEvent | None, *, is_last: bool) -> None:
        has_grown = (
            valid is not None and "invalid" not in valid.flags and valid.units >= self._units
        )
        if valid is None or (not has_grown and not is_last):
            return  # perhaps it is only being worked on
        value = self._draft.value
        key = part_key(self._operation.key, len(self._keys))
        part = self._added(valid) if has_grown else _undecided(valid)
        self._metering.complete(replace(self._operation, key=key), part)
        self._keys.append(key)
        self._seen = value
        self._units = max(self._units, valid.units)

    def _added(self, valid: ValidEvent) -> ValidEvent:
        """What is new of it: a ``max`` meter takes the whole as it is."""
        is_sum = self._operation.meter.aggregation is Aggregation.SUM
        return replace(valid, units=valid.units - self._units) if is_sum else valid

    def _take_back(self) -> None:
        customer, meter = self._operation.customer.id, self._operation.meter.name
        while self._keys:
            self._metering.adjust(customer, meter, self._keys[-1], "not billed after all")
            self._keys.pop()

    @contextmanager
    def _guard(self) -> Iterator[None]:
        """The response is on its way: no fault of ours cuts it off."""
        try:
            yield
        except C2MeterError as exc:
            logger.error("usage_not_recorded", meter=self._operation.meter.name, error=exc)
        except Exception:
            logger.exception("usage_not_recorded", meter=self._operation.meter.name)


def _undecided(valid: ValidEvent) -> ValidEvent:
    """No number, or one below what is recorded."""
    flags = [flag for flag in valid.flags if flag != "invalid"]
    return replace(valid, units=0, flags=(*flags, "invalid"))


class GrowingStream(Iterator[Chunk]):
    """The *chunks* of a response, none of which is held back; after each, a look at its usage."""

    def __init__(self, chunks: Iterable[Chunk], growth: Growth) -> None:
        self._body = chunks
        self._chunks = iter(chunks)
        self._growth = growth

    def __next__(self) -> Chunk:
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
