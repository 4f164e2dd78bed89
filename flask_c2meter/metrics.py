"""Metrics for Prometheus: what the store says, at each scrape.

Needs the extra ``metrics``. Any process gives the same answer, because nothing is counted in the
memory of one: neither the number of processes nor their end matters, and prometheus_client's
multiprocess mode is not needed. Imports flask, prometheus_client and the facade.

Two ways to serve them: the blueprint of ``C2Meter.metrics_blueprint``, or :class:`Collector` in a
registry of the host's own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from decimal import Decimal
from typing import Any, cast

from flask import Blueprint, Flask, Response, current_app, request
from flask.blueprints import BlueprintSetupState
from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder

from .errors import CorruptStore, SetupError, StoreUnavailable
from .globals import app_state
from .locks import ProcessLock
from .metering import Metering
from .model import to_ms
from .store.measures import BOUNDS_MS
from .targets import Durations
from .vitals import Vitals

#: A reading is served this long, whoever asks and however often. Scrapes that come faster would see
#: counters go back, when a process with an older reading answers after another one.
CACHE_S = 5.0

_QUANTILES = (("0.5", "p50"), ("0.99", "p99"), ("1", "longest"))


class Collector:
    """Collects the metrics of one app: ``registry.register(Collector(app))``.

    Registering reads nothing; each collection reads the store, at most every 5 seconds. While the
    store cannot be read, ``c2meter_store_up`` is 0 and what comes from it is absent.
    """

    def __init__(self, app: Flask) -> None:
        self._app = app
        self._lock = ProcessLock()
        self._read_at = float("-inf")
        self._families: Sequence[Metric] = ()

    def describe(self) -> Iterator[Metric]:
        """The names, so that a registry need not collect to know them."""
        return _describe()

    def collect(self) -> Iterable[Metric]:
        """The families, read now or within the last seconds."""
        with self._lock():
            if time.monotonic() - self._read_at >= CACHE_S:
                self._families = tuple(_families(app_state(self._app).metering))
                self._read_at = time.monotonic()
            return self._families


def metrics_blueprint(name: str = "c2meter_metrics", *, public: bool = False) -> Blueprint:
    """A blueprint with ``GET /metrics``.

    Registering raises ``RuntimeError`` where the app has no ``C2Meter``, or that no
    ``metrics_auth``, unless it is *public*: then something else must keep strangers out.
    """
    blueprint = Blueprint(name, __name__)

    def set_up(setup: BlueprintSetupState) -> None:
        app = cast(Flask, setup.app)
        if app_state(app).hooks.metrics_auth is None and not public:
            raise SetupError(
                "The metrics need a metrics_auth: register a function with @meter.metrics_auth "
                "that returns whether this request may read them, or pass public=True where "
                "nobody else can reach them."
            )
        registry = CollectorRegistry(auto_describe=False)
        registry.register(Collector(app))
        app.extensions[_REGISTRY] = registry

    blueprint.record_once(set_up)
    blueprint.get("/metrics", endpoint="metrics")(lambda: _scrape(public))
    return blueprint


#: Where an app keeps the registry that its blueprint serves.
_REGISTRY = "c2meter_metrics"


def _scrape(public: bool) -> Response:
    auth = app_state().hooks.metrics_auth
    if not public and not (auth is not None and current_app.ensure_sync(auth)()):
        return Response("Unauthorized\n", 401, mimetype="text/plain")
    encode, content_type = choose_encoder(request.headers.get("Accept", ""))
    body = encode(current_app.extensions[_REGISTRY])
    return Response(body, content_type=content_type, headers={"Cache-Control": "no-store"})


# -- the families ----------------------------------------------------------------------------------


def _describe() -> Iterator[Metric]:
    for kind, name, doc, labels in _GAUGES_AND_COUNTERS:
        yield kind(name, doc, labels=labels)
    yield HistogramMetricFamily(_LATENCY, _LATENCY_DOC, labels=["meter"])


_LATENCY = "c2meter_event_latency_seconds"
_LATENCY_DOC = "From record() until Stripe has it: the longest-waiting event of each shipment."

_Kind = Callable[..., Any]
_GAUGE: _Kind = GaugeMetricFamily
_COUNTER: _Kind = CounterMetricFamily

_GAUGES_AND_COUNTERS: Sequence[tuple[_Kind, str, str, Sequence[str]]] = (
    (_GAUGE, "c2meter_store_up", "Whether the store can be read.", ()),
    (_GAUGE, "c2meter_spilled_events", "Events that wait in this host's spill file.", ()),
    (_GAUGE, "c2meter_spill_corrupt_lines", "Spilled lines that cannot be read.", ()),
    (_COUNTER, "c2meter_events_recorded", "Events in the ledger.", ()),
    (_COUNTER, "c2meter_dropped_events", "Analytics events that were lost.", ("meter",)),
    (_COUNTER, "c2meter_unexplained_refusals", "Refused events without a shipment.", ("code",)),
    (_GAUGE, "c2meter_unshipped_units", "Recorded, not yet in a shipment.", ("meter",)),
    (_GAUGE, "c2meter_shipments", "Shipments not at rest, and dead ones.", ("meter", "state")),
    (
        _GAUGE,
        "c2meter_oldest_unshipped_age_seconds",
        "Since the oldest event that Stripe does not have; 0 without one.",
        ("meter",),
    ),
    (_GAUGE, "c2meter_holds", "Holds in force.", ()),
    (
        _GAUGE,
        "c2meter_held",
        "1 for each hold of a meter's deliveries, or of all ('*').",
        ("meter", "reason"),
    ),
    (_GAUGE, "c2meter_breaker_open", "Whether deliveries wait because Stripe is down.", ()),
    (_GAUGE, "c2meter_workers", "Workers that deliver.", ()),
    (_GAUGE, "c2meter_alerts", "Usage alerts by channel and state.", ("channel", "state")),
    (
        _GAUGE,
        "c2meter_recent_event_latency_seconds",
        "Event latency over the last day.",
        ("quantile",),
    ),
    (
        _GAUGE,
        "c2meter_recent_alert_delay_seconds",
        "From raising an alert to its last channel, over the last day.",
        ("quantile",),
    ),
    (
        _GAUGE,
        "c2meter_target_ratio",
        "How far a target is met: share in time, delivered or right, 0 to 1.",
        ("target",),
    ),
    (_GAUGE, "c2meter_target_met", "Whether a target is met.", ("target",)),
    (_GAUGE, "c2meter_canary_age_seconds", "Since the last canary came so far.", ("leg",)),
    (_GAUGE, "c2meter_canary_stale", "Whether that is too long, or never was.", ("leg",)),
    (_GAUGE, "c2meter_reconciled_timestamp_seconds", "The last reconciliation.", ()),
)

#: Every metric, as Prometheus' queries name it (a histogram by its base name).
NAMES = frozenset(
    {_LATENCY}
    | {f"{name}_total" if kind is _COUNTER else name for kind, name, _, _ in _GAUGES_AND_COUNTERS}
)


def _families(metering: Metering) -> Iterator[Metric]:
    families = {
        name: kind(name, doc, labels=labels) for kind, name, doc, labels in _GAUGES_AND_COUNTERS
    }

    def add(name: str, value: int | float | Decimal | bool | None, *labels: str) -> None:
        if value is not None:
            families[name].add_metric(labels, float(value))

    spill = metering.spill
    add("c2meter_spilled_events", spill.pending())
    add("c2meter_spill_corrupt_lines", spill.corrupt())
    try:
        vitals = metering.vitals()
    except (StoreUnavailable, CorruptStore):
        add("c2meter_store_up", False)
    else:
        add("c2meter_store_up", True)
        _add_delivery(add, vitals, metering)
        _add_targets(add, vitals)
        yield _latency(vitals)
    yield from (family for family in families.values() if family.samples)


_Add = Callable[..., None]


def _add_delivery(add: _Add, vitals: Vitals, metering: Metering) -> None:
    add("c2meter_events_recorded", vitals.recorded)
    for meter, count in vitals.dropped.items():
        add("c2meter_dropped_events", count, meter)
    for code, count in vitals.unexplained.items():
        add("c2meter_unexplained_refusals", count, code)
    now_ms = to_ms(vitals.at)
    for name, backlog in vitals.backlog.items():
        add(
            "c2meter_unshipped_units",
            metering.catalogue.meter(name).to_value(backlog.unshipped),
            name,
        )
        oldest = now_ms if backlog.oldest_ms is None else backlog.oldest_ms
        add("c2meter_oldest_unshipped_age_seconds", max(0, now_ms - oldest) / 1000, name)
        for state in ("ready", "sending", "in_doubt", "dead"):
            add("c2meter_shipments", backlog.shipments.get(state, 0), name, state)
    # Always a sample, so that a rule sees it go back to 0.
    add("c2meter_breaker_open", vitals.breaker_is_open)
    add("c2meter_holds", len(vitals.holds))
    for hold in vitals.holds:
        add("c2meter_held", 1, hold.meter, hold.reason)
    add("c2meter_workers", len(vitals.workers))
    for leg in vitals.canary:
        add("c2meter_canary_age_seconds", leg.age_s, leg.name)
        add("c2meter_canary_stale", leg.is_stale, leg.name)
    for channel, states in vitals.alerts.items():
        for state in ("ready", "sending", "delivered", "dead"):
            add("c2meter_alerts", states[state], channel, state)


def _add_targets(add: _Add, vitals: Vitals) -> None:
    targets = vitals.targets
    _add_durations(add, "c2meter_recent_event_latency_seconds", targets.event_latency)
    _add_durations(add, "c2meter_recent_alert_delay_seconds", targets.alert_timeliness)
    add("c2meter_target_ratio", targets.event_latency.share_within, "event_latency")
    add("c2meter_target_ratio", targets.success_rate, "success_rate")
    add("c2meter_target_ratio", targets.alert_timeliness.share_within, "alert_timeliness")
    if targets.accuracy is not None:
        add("c2meter_target_ratio", targets.accuracy.share, "billing_accuracy")
        add("c2meter_reconciled_timestamp_seconds", targets.accuracy.at.timestamp())
    for name, is_met in targets.are_met.items():
        add("c2meter_target_met", is_met, name)


def _add_durations(add: _Add, name: str, durations: Durations) -> None:
    for quantile, field in _QUANTILES:
        add(name, getattr(durations, field), quantile)


def _latency(vitals: Vitals) -> HistogramMetricFamily:
    family = HistogramMetricFamily(_LATENCY, _LATENCY_DOC, labels=["meter"])
    for meter, times in sorted(vitals.times.items()):
        buckets, below = [], 0
        for bound_ms in BOUNDS_MS:
            below += times.shipments.get(bound_ms, 0)
            buckets.append((str(bound_ms / 1000), below))
        buckets.append(("+Inf", sum(times.shipments.values())))
        family.add_metric([meter], buckets, times.waited_ms / 1000)
    return family
