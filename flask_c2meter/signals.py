"""Signals: what happens here, announced to whoever listens.

The sender is the app; the payload comes as keywords, so receivers take ``**extra``. All are sent
through :func:`emit`, which logs a receiver that raises and goes on with the next.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from blinker import NamedSignal, Namespace

from . import logs

logger: logs.Log = logs.logger(__name__)

_signals = Namespace()

#: An event is durable. ``event``: :class:`~flask_c2meter.model.UsageEvent`. Sent in the request.
usage_recorded: NamedSignal = _signals.signal("usage-recorded")

#: Usage was kept only in part, or not at all. ``customer``, ``meter``: names; ``reason``:
#: ``incomplete``, ``invalid``, ``conflict`` or ``dropped``; ``event``: what was kept, or None. With
#: ``refused`` Stripe has refused it after accepting it, as a webhook told: once for each
#: ``shipment``, in the process that runs the worker.
usage_rejected: NamedSignal = _signals.signal("usage-rejected")

#: Stripe has a shipment. ``shipment``: :class:`~flask_c2meter.shipment.Shipment`. Sent in the
#: process that runs the worker, outside any request.
usage_delivered: NamedSignal = _signals.signal("usage-delivered")

#: Sent in the process that runs the worker, outside any request: a customer has reached a
#: threshold of the included quantity. ``alert``: :class:`~flask_c2meter.model.Alert`. A receiver
#: that raises is told again, with growing pauses, for 24 hours.
usage_alert: NamedSignal = _signals.signal("usage-alert")

#: A job has ended, once for each run. ``result``: :class:`~flask_c2meter.model.JobResult`; its
#: ``alert`` says whether the operator is alerted. Sent in the process that ran it, outside any
#: request.
job_finished: NamedSignal = _signals.signal("job-finished")


def emit(signal: NamedSignal, sender: object, **payload: Any) -> None:
    """Send *signal*; a receiver that raises is logged and stops neither the rest nor the caller."""
    if not signal.receivers:
        return
    for receiver in signal.receivers_for(sender):
        tell(receiver, signal, sender, payload)


def tell(
    receiver: Callable[..., Any], signal: NamedSignal, sender: object, payload: Mapping[str, Any]
) -> bool:
    """Let one *receiver* have *signal*; whether it took it. What it raises is logged."""
    try:
        receiver(sender, **payload)
    except Exception:
        logger.exception("receiver_failed", signal=signal.name)
        return False
    return True
