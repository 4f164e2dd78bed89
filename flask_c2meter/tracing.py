"""Spans for OpenTelemetry, where the host has set it up: ``c2meter.record`` and ``c2meter.ship``.

Never imports it: a host that traces has done so, and has set a tracer provider. For the others a
span costs a look into ``sys.modules``. No attribute says who a customer is, nor what an exception
said.

A request's span ends long before its usage is shipped, often by another process. So the ledger
keeps the context that an event was recorded in (a W3C ``traceparent``, if it was sampled), and the
span of the shipment links to it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from .shipment import Outcome, Shipment, Verdict

_SCOPE = "flask_c2meter"
_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")

#: A span's attribute.
Attribute = str | int


class Span:
    """A span under way, in a ``with`` statement; an exception that ends it is named, not quoted."""

    def __init__(
        self,
        tracing: _Tracing,
        name: str,
        kind: str,
        attributes: Mapping[str, Attribute],
        links: Sequence[Any] = (),
    ) -> None:
        self._error = tracing.api.StatusCode.ERROR
        self._scope = tracing.tracer.start_as_current_span(
            name,
            kind=tracing.api.SpanKind[kind],
            attributes=attributes,
            links=links,
            record_exception=False,
            set_status_on_exception=False,
        )
        self._span: Any = None

    def __enter__(self) -> Span:
        self._span = self._scope.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._fail(kind.__name__)
        self._scope.__exit__(kind, exc, trace)

    @property
    def context(self) -> str | None:
        """What a later span links to, to be kept; None if nobody will keep this one."""
        known = self._span.get_span_context()
        if not known.trace_flags.sampled:
            return None
        return f"00-{known.trace_id:032x}-{known.span_id:016x}-{known.trace_flags:02x}"

    def ended(self, outcomes: Iterable[Outcome]) -> None:
        """Say what became of the shipments of an attempt."""
        outcomes = list(outcomes)
        verdicts = sorted({outcome.verdict.value for outcome in outcomes})
        self._span.set_attribute("c2meter.outcome", " ".join(verdicts))
        reasons = sorted(
            {each.reason for each in outcomes if each.verdict is not Verdict.DELIVERED}
        )
        if reasons:
            self._fail(reasons[0])

    def _fail(self, reason: str) -> None:
        self._span.set_attribute("error.type", reason)
        self._span.set_status(self._error)


_OFF: AbstractContextManager[None] = nullcontext()


def record(meter: str) -> AbstractContextManager[Span | None]:
    """The span of making one event durable."""
    tracing = _tracing()
    if tracing is None:
        return _OFF
    return Span(tracing, "c2meter.record", "INTERNAL", {"c2meter.meter": meter})


def ship(shipments: Sequence[Shipment]) -> AbstractContextManager[Span | None]:
    """The span of one attempt to hand *shipments* to Stripe; links to where they were recorded."""
    tracing = _tracing()
    if tracing is None or not shipments:
        return _OFF
    first = shipments[0]
    attributes: dict[str, Attribute] = {
        "c2meter.shipments": len(shipments),
        "c2meter.meter": " ".join(sorted({shipment.meter for shipment in shipments})),
    }
    if len(shipments) == 1:
        attributes |= {"c2meter.identifier": first.identifier, "c2meter.attempt": first.attempts}
    links = [link for each in shipments if (link := _link(tracing.api, each.trace)) is not None]
    return Span(tracing, "c2meter.ship", "CLIENT", attributes, links)


def trace_id() -> str | None:
    """The id of the current trace as 32 hexadecimal digits; None if there is none."""
    tracing = _tracing()
    if tracing is None:
        return None
    known = tracing.api.get_current_span().get_span_context()
    return f"{known.trace_id:032x}" if known.is_valid else None


@dataclass(frozen=True, slots=True)
class _Tracing:
    """OpenTelemetry as the host has set it up."""

    api: Any
    provider: Any
    tracer: Any


#: What was found last: making a tracer costs more than a span.
_found: _Tracing | None = None


def _tracing() -> _Tracing | None:
    global _found
    api: Any = sys.modules.get("opentelemetry.trace")
    # While another thread is importing it, it is there only in part.
    if api is None or not hasattr(api, "get_tracer_provider"):
        return None
    provider = api.get_tracer_provider()
    found = _found
    if found is not None and found.provider is provider:
        return found
    if isinstance(provider, api.ProxyTracerProvider):  # nobody has set one yet
        return None
    _found = found = _Tracing(api, provider, provider.get_tracer(_SCOPE))
    return found


def _link(api: Any, trace: str | None) -> Any:
    found = _TRACEPARENT.fullmatch(trace or "")
    if found is None:
        return None
    trace_id, span_id, flags = (int(part, 16) for part in found.groups())
    known = api.SpanContext(trace_id, span_id, is_remote=True, trace_flags=api.TraceFlags(flags))
    return api.Link(known)
