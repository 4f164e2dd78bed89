"""The endpoints of metering: events, the stream, adjustments, meters, summaries.

Imports ``account``, ``bodies``, ``calls``, ``meters``, ``referee``, ``sessions``, ``terms`` and
``wire``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from .account import Account
from .bodies import meter_body, seconds
from .calls import EXPAND, PAGING, Call, Route, missing, page
from .meters import WINDOWS, Meter, MeterEvent, Summary
from .referee import Shape, date_time, epoch, flat_map, one_of, text, whole_number
from .sessions import Session
from .terms import new_id
from .wire import Refusal, rfc3339

MAX_STREAM_EVENTS = 100

# --- meter events ---------------------------------------------------------------------------


def _create_event_v1(account: Account, call: Call) -> Any:
    event = account.meters.accept(now=call.now, **_event(call.params))
    return _event_body("billing.meter_event", event, call.livemode, seconds)


def _create_event_v2(account: Account, call: Call) -> Any:
    event = account.meters.accept(now=call.now, **_event(call.params))
    return _event_body("v2.billing.meter_event", event, call.livemode, rfc3339)


def _event(params: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in params.items() if name != "expand"}


def _event_body(
    kind: str, event: MeterEvent, livemode: bool, moment: Callable[[datetime], Any]
) -> dict[str, Any]:
    return {
        "object": kind,
        "created": moment(event.received_at),
        "event_name": event.event_name,
        "identifier": event.identifier,
        "livemode": livemode,
        "payload": dict(event.payload),
        "timestamp": moment(event.timestamp),
    }


def _cancel_event_v1(account: Account, call: Call) -> Any:
    if "identifier" not in call.params.get("cancel", {}):
        raise Refusal(
            "Missing required param: cancel[identifier].",
            code="parameter_missing",
            param="cancel[identifier]",
        )
    return {"object": "billing.meter_event_adjustment", **_cancel(account, call)}


def _cancel_event_v2(account: Account, call: Call) -> Any:
    return {
        "object": "v2.billing.meter_event_adjustment",
        "id": new_id("mea"),
        "created": rfc3339(call.now),
        **_cancel(account, call),
    }


def _cancel(account: Account, call: Call) -> dict[str, Any]:
    identifier = call.params["cancel"]["identifier"]
    account.meters.cancel(call.params["event_name"], identifier, call.now)
    return {
        "type": call.params["type"],
        "event_name": call.params["event_name"],
        "cancel": {"identifier": identifier},
        "livemode": call.livemode,
        # Stripe works on it later; here it has already happened.
        "status": "pending",
    }


def _open_session(account: Account, call: Call) -> Any:
    session: Session = account.sessions.open(call.livemode, call.now)
    return {
        "object": "v2.billing.meter_event_session",
        "id": session.id,
        "authentication_token": session.token,
        "created": rfc3339(session.created),
        "expires_at": rfc3339(session.expires_at),
        "livemode": session.livemode,
    }


def _stream(account: Account, call: Call) -> Any:
    for event in call.params["events"]:
        account.meters.accept_later(now=call.now, **event)
    return {}


def _stream_events(name: str, value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_STREAM_EVENTS:
        raise Refusal(f"{name} must be a list of 1 to {MAX_STREAM_EVENTS} items", param=name)
    return [_EVENT_V2(f"{name}[{index}]", item) for index, item in enumerate(value)]


# --- meters ---------------------------------------------------------------------------------


def _create_meter(account: Account, call: Call) -> Any:
    params = call.params
    meter = Meter(
        id=new_id("mtr"),
        event_name=params["event_name"],
        display_name=params["display_name"],
        created=call.now,
        updated=call.now,
        formula=params["default_aggregation"]["formula"],
        event_time_window=params.get("event_time_window"),
    )
    if "customer_mapping" in params:
        meter.customer_key = params["customer_mapping"]["event_payload_key"]
    if "value_settings" in params:
        meter.value_key = params["value_settings"]["event_payload_key"]
    return meter_body(account.meters.create(meter), call.livemode)


def _list_meters(account: Account, call: Call) -> Any:
    newest_first = reversed(account.meters.by_id.values())
    bodies = [meter_body(meter, call.livemode) for meter in newest_first]
    wanted = call.params.get("status")
    return page(
        [body for body in bodies if wanted in (None, body["status"])], "/v1/billing/meters", call
    )


def _retrieve_meter(account: Account, call: Call) -> Any:
    return meter_body(_find_meter(account, call), call.livemode)


def _update_meter(account: Account, call: Call) -> Any:
    meter = _find_meter(account, call)
    meter.display_name = call.params.get("display_name", meter.display_name)
    meter.updated = call.now
    account.tell("billing.meter.updated", meter, call.now)
    return meter_body(meter, call.livemode)


def _deactivate_meter(account: Account, call: Call) -> Any:
    meter = _find_meter(account, call)
    if meter.deactivated_at is None:
        meter.deactivated_at = meter.updated = call.now
        account.tell("billing.meter.deactivated", meter, call.now)
    return meter_body(meter, call.livemode)


def _reactivate_meter(account: Account, call: Call) -> Any:
    meter = _find_meter(account, call)
    if meter.deactivated_at is not None:
        meter.deactivated_at, meter.updated = None, call.now
        account.tell("billing.meter.reactivated", meter, call.now)
    return meter_body(meter, call.livemode)


def _find_meter(account: Account, call: Call) -> Meter:
    meter = account.meters.by_id.get(call.id)
    if meter is None:
        raise missing("billing meter", call.id)
    return meter


def _summaries(account: Account, call: Call) -> Any:
    meter = _find_meter(account, call)
    params = call.params
    window = params.get("value_grouping_window")
    start, end = params["start_time"], params["end_time"]
    _refuse_misaligned(start, end, window)
    found = account.meters.summaries(meter, params["customer"], start, end, window, call.now)
    url = f"/v1/billing/meters/{meter.id}/event_summaries"
    return page([_summary_body(summary, meter, call) for summary in found], url, call)


def _refuse_misaligned(start: int, end: int, window: str | None) -> None:
    grain, word = (WINDOWS[window], window) if window else (60, "minute")
    for name, value in (("start_time", start), ("end_time", end)):
        if value % grain:
            raise Refusal(
                f"{name} must be aligned with {word} boundaries", param=name, code="invalid_time"
            )
    if end <= start:
        raise Refusal("end_time must be after start_time", param="end_time", code="invalid_time")


def _summary_body(summary: Summary, meter: Meter, call: Call) -> dict[str, Any]:
    value = summary.value
    return {
        "object": "billing.meter_event_summary",
        "id": summary.id,
        # A JSON number, as Stripe sends it: exact for whole numbers only.
        "aggregated_value": int(value) if value == value.to_integral_value() else float(value),
        "start_time": summary.start,
        "end_time": summary.end,
        "livemode": call.livemode,
        "meter": meter.id,
    }


# --- the table ------------------------------------------------------------------------------

_NAME_AND_PAYLOAD = {"event_name": text(100), "payload": flat_map}
_CANCEL = Shape(required={"identifier": text(100)})

_EVENT_V1 = Shape(_NAME_AND_PAYLOAD, {"identifier": text(100), "timestamp": epoch, **EXPAND})
_EVENT_V2 = Shape(_NAME_AND_PAYLOAD, {"identifier": text(100), "timestamp": date_time})
_ADJUSTMENT_V1 = Shape(
    {"event_name": text(100), "type": one_of("cancel")},
    {"cancel": Shape(optional={"identifier": text(100)}), **EXPAND},
)
_ADJUSTMENT_V2 = Shape({"event_name": text(100), "type": one_of("cancel"), "cancel": _CANCEL})
_NEW_METER = Shape(
    {
        "display_name": text(250),
        "event_name": text(100),
        "default_aggregation": Shape({"formula": one_of("sum", "count", "last")}),
    },
    {
        "customer_mapping": Shape({"type": one_of("by_id"), "event_payload_key": text(100)}),
        "value_settings": Shape({"event_payload_key": text(100)}),
        "event_time_window": one_of("day", "hour"),
        **EXPAND,
    },
)
_SUMMARIES = Shape(
    {"customer": text(5000), "start_time": whole_number, "end_time": whole_number},
    {"value_grouping_window": one_of("day", "hour"), **PAGING, **EXPAND},
)

METERS = "/v1/billing/meters"
METER_ROUTES = (
    Route("POST", "/v1/billing/meter_events", _create_event_v1, _EVENT_V1, in_lane=True),
    Route("POST", "/v1/billing/meter_event_adjustments", _cancel_event_v1, _ADJUSTMENT_V1),
    Route("POST", "/v2/billing/meter_events", _create_event_v2, _EVENT_V2, in_lane=True),
    Route("POST", "/v2/billing/meter_event_adjustments", _cancel_event_v2, _ADJUSTMENT_V2),
    Route("POST", "/v2/billing/meter_event_session", _open_session),
    Route(
        "POST",
        "/v2/billing/meter_event_stream",
        _stream,
        Shape({"events": _stream_events}),
        by_session=True,
    ),
    Route("POST", METERS, _create_meter, _NEW_METER),
    Route(
        "GET",
        METERS,
        _list_meters,
        Shape(optional={"status": one_of("active", "inactive"), **PAGING, **EXPAND}),
    ),
    Route("GET", METERS + "/{id}", _retrieve_meter, Shape(optional=EXPAND)),
    Route(
        "POST",
        METERS + "/{id}",
        _update_meter,
        Shape(optional={"display_name": text(250), **EXPAND}),
    ),
    Route("POST", METERS + "/{id}/deactivate", _deactivate_meter, Shape(optional=EXPAND)),
    Route("POST", METERS + "/{id}/reactivate", _reactivate_meter, Shape(optional=EXPAND)),
    Route("GET", METERS + "/{id}/event_summaries", _summaries, _SUMMARIES),
)
