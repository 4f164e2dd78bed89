"""The JSON that the package writes, as JSON Schema (2020-12, as OpenAPI 3.1 has it).

Every shape lists all of its keys and allows no other, so that a test of real answers against it
finds what was added as well as what was taken away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_type_hints

from flask_c2meter.model import Level, UsageEvent
from flask_c2meter.provisioning import Action
from flask_c2meter.provisioning import Kind as StepKind
from flask_c2meter.reconciliation import Kind
from flask_c2meter.shipment import DeadReason
from flask_c2meter.store.announcements import Announced

Schema = dict[str, Any]

_QUANTITY = r"^-?\d+(\.\d+)?$"
_AMOUNT = r"^-?\d+(\.\d+)?$"


def ref(name: str) -> Schema:
    """The shape called *name*."""
    return {"$ref": f"#/components/schemas/{name}"}


def _object(description: str, optional: Sequence[str] = (), /, **properties: Schema) -> Schema:
    return {
        "type": "object",
        "description": description,
        "properties": properties,
        "required": [name for name in properties if name not in optional],
        "additionalProperties": False,
    }


def _text(description: str, **more: Any) -> Schema:
    return {"type": "string", "description": description, **more}


def _or_null(schema: Schema) -> Schema:
    if "$ref" in schema:
        return {"anyOf": [schema, {"type": "null"}]}
    nullable = schema | {"type": [schema["type"], "null"]}
    return nullable | {"enum": [*schema["enum"], None]} if "enum" in schema else nullable


def _quantity(description: str) -> Schema:
    return _text(f"{description}, in the meter's unit", pattern=_QUANTITY)


def _amount(description: str) -> Schema:
    return _text(f"{description}, in minor units of the currency", pattern=_AMOUNT)


def _time(description: str) -> Schema:
    return _text(f"{description}, UTC", format="date-time")


def _count(description: str) -> Schema:
    return {"type": "integer", "minimum": 0, "description": description}


def _flag(description: str) -> Schema:
    return {"type": "boolean", "description": description}


def _list(items: Schema, description: str) -> Schema:
    return {"type": "array", "items": items, "description": description}


def _map(values: Schema, description: str) -> Schema:
    return {"type": "object", "additionalProperties": values, "description": description}


_ID = _text("the customer's Stripe id")
_METER = _text("the meter's name in the catalogue")
_SHARE = _or_null(
    _text("total / included, four places; null where nothing or 0 is included", pattern=_QUANTITY)
)
_LEVEL = _text("the highest threshold reached", enum=list(get_args(Level)))
_VERSION = {"const": 1, "description": "of this shape"}

_PERIOD = _object(
    "A billing period: from its start up to, not including, its end.",
    start=_time("first moment"),
    end=_time("first moment after it"),
)

_USAGE = {
    "meter": _METER,
    "total": _quantity("what was used in the period"),
    "included": _or_null(_quantity("part of the plan; null: unlimited, or no plan is known")),
    "utilization": _SHARE,
    "level": _or_null(_LEVEL),
    "period": ref("Period"),
}

_CHARGE = _object(
    "One line of the bill: the overage of one meter in one period. Without a price, amounts are "
    "null; what is projected is null while it is too early to say.",
    meter=_METER,
    units=_quantity("overage so far"),
    amount=_or_null(_amount("what that costs")),
    currency=_or_null(_text("three letters, such as `usd`")),
    projected_units=_or_null(_quantity("overage expected by the period's end")),
    projected_amount=_or_null(_amount("what that will cost")),
    projected_low=_or_null(_amount("four times in five it will be at least this")),
    projected_high=_or_null(_amount("and at most this")),
    period=ref("Period"),
)

_ALERT = {
    "id": _text("unique and time-ordered"),
    "customer": _ID,
    "meter": _METER,
    "level": _LEVEL,
    "utilization": _SHARE,
    "total": _quantity("what was used when it was raised"),
    "included": _quantity("what was included then"),
    "period": ref("Period"),
    "raised_at": _time("when it was raised"),
}
_CHANNELS = _map(ref("Announced"), "channel -> what became of it there")

#: Name -> shape.
SHAPES: Mapping[str, Schema] = {
    "Error": _object("Why not.", error=_text("in a few words")),
    "Period": _PERIOD,
    "Usage": _object("What was used of one meter.", **_USAGE),
    "Projection": _object(
        "What a total is expected to be at the period's end; four times in five the truth lies "
        "between `low` and `high`.",
        total=_quantity("the best guess"),
        low=_quantity("at least"),
        high=_quantity("at most"),
    ),
    "Charge": _CHARGE,
    "Offer": _object(
        "What usage would cost on one plan, beyond the price of the plan itself.",
        plan=_text("name in the catalogue"),
        plan_name=_text("what people call it"),
        is_current=_flag("the customer is on it"),
        meters=_list(
            _object(
                "What a total of one meter would cost; without a price, amounts are null.",
                meter=_METER,
                total=_quantity("what was used, is expected or was given"),
                included=_or_null(_quantity("part of the plan; null: unlimited")),
                units=_quantity("overage"),
                amount=_or_null(_amount("what that would cost")),
                currency=_or_null(_text("three letters, such as `usd`")),
            ),
            "those that are billed",
        ),
        totals=_map(_amount("of all meters"), "currency -> amount"),
    ),
    "Event": _object(
        "One event of the ledger.",
        key=_text("idempotency key, unique per customer and meter"),
        customer=_ID,
        meter=_METER,
        value=_quantity("its quantity"),
        occurred_at=_time("when it happened"),
        recorded_at=_time("when it was recorded"),
        properties={"type": "object", "description": "as the catalogue defines them"},
        unique_by=_or_null(_text("what a `unique_count` meter counts")),
        request_id=_or_null(_text("of the request it was recorded in")),
        kind=_text("whether it counts, or voids another", enum=["usage", "adjustment"]),
        flags=_list(
            {"enum": list(get_args(get_args(get_type_hints(UsageEvent)["flags"])[0]))},
            "what is known of its quality",
        ),
    ),
    "Announced": _object(
        "What became of an alert on one channel.",
        state={
            "enum": list(get_args(get_type_hints(Announced)["state"])),
            "description": "`dead`: given up",
        },
        attempts=_count("made so far"),
        reason=_or_null(_text("what the last attempt failed of")),
        settled_at=_or_null(_time("when it was delivered or given up")),
        read_at=_or_null(_time("when the customer has seen it (`in_app`)")),
    ),
    "Notice": _object("An alert, and where it was announced.", **_ALERT, channels=_CHANNELS),
    "CustomerNotice": _object(
        "An alert, as the dashboard shows it.",
        ("channels",),
        **_ALERT,
        message=_text("the alert in one line, as the page and the mail word it"),
        action_url=_text("path of the customer's page of the dashboard"),
        unread=_flag("the customer has not seen it in the app"),
        channels=_CHANNELS | {"description": "channel -> what became of it; for operators only"},
    ),
    "MeterReport": _object(
        "One meter in its current period.",
        **_USAGE,
        display_name=_text("what people call it"),
        unit=_text("of its quantities, such as `verify`"),
        billable=_flag("false: counted and shown only"),
        projection=_or_null(ref("Projection")),
        charges=_list(ref("Charge"), "its lines on the bill; several if the plan was changed"),
        days=_map(
            _text("what was used on it", pattern=_QUANTITY), "each UTC day of the period until now"
        ),
    ),
    "BillTotal": _object(
        "The bill of the cycle in one currency.",
        currency=_text("three letters, such as `usd`"),
        amount=_amount("so far"),
        projected=_or_null(_amount("expected at the cycle's end; null: too early to say")),
        low=_or_null(_amount("at least")),
        high=_or_null(_amount("at most")),
    ),
    "Report": _object(
        "Everything about one customer.",
        version=_VERSION,
        customer=_ID,
        as_of=_time("when it was read"),
        plan=_or_null(_text("name in the catalogue; null: no plan is known")),
        plan_name=_or_null(_text("what people call it")),
        status=_text("of the subscription, in Stripe's words; `none` without one"),
        ended_at=_or_null(_time("when the last subscription ended")),
        period=ref("Period"),
        cycle=ref("Period"),
        plans=_list(
            _object(
                "A part of the cycle on one plan.",
                plan_name=_or_null(_text("what people call it")),
                **_PERIOD["properties"],
            ),
            "the periods of the cycle; several if the plan was changed",
        ),
        meters=_list(ref("MeterReport"), "those that are billed, then those only counted"),
        bill=_list(ref("BillTotal"), "one for each currency"),
        alerts=_list(ref("CustomerNotice"), "of the last 30 days, newest first"),
        unread=_count("alerts that the customer has not seen"),
    ),
    "Provisioning": _object(
        "A plan for Stripe, or what was done of it.",
        version=_VERSION,
        account=_text("where: live, test or an emulator, and which"),
        applied=_flag("the steps were taken"),
        summary=_map(_count("steps"), "action -> number of steps"),
        steps=_list(
            _object(
                "One object at Stripe.",
                action=_text("what is done", enum=[each.value for each in Action]),
                kind=_text("of object", enum=list(get_args(StepKind))),
                name=_text("of the object"),
                id=_or_null(_text("at Stripe; null: there is none yet")),
                detail=_text("what it is, in words; may be empty"),
                note=_text("what to do about it; may be empty"),
                params={"type": "object", "description": "what Stripe is sent"},
            ),
            "in the order in which they are taken",
        ),
        notes=_list({"type": "string"}, "what else there is to know"),
    ),
    "ExportHead": _object(
        "`properties` of the first row of an export.",
        version=_VERSION,
        customer=_ID,
        exported_at=_time("when"),
    ),
    "DeadLetter": _object(
        "A shipment that waits for a decision.",
        identifier=_text("what `dead replay` and `dead discard` take"),
        customer=_ID,
        meter=_METER,
        value=_quantity("negative for a correction"),
        happened_at=_time("of its latest event"),
        period_start=_time("of the billing period"),
        dead_since=_time("when it was set aside"),
        attempts=_count("to deliver it"),
        reason=_text(
            "first word: why, with a code after it",
            pattern=f"^({'|'.join(each.value for each in DeadReason)})",
        ),
    ),
    "Difference": _object(
        "One minute in which the ledger and Stripe differ.",
        customer=_ID,
        meter=_METER,
        minute=_text("its start, UTC", pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\dZ$"),
        kind=_text("of difference", enum=[each.value for each in Kind]),
        recorded=_quantity("what the ledger has"),
        stripe=_text("what Stripe has, in the meter's unit"),
        shipments=_list({"type": "string"}, "identifiers"),
        is_fresh=_flag("on its way for less than an hour: no reason to worry"),
        is_repaired=_flag("repaired by this run"),
        note=_text("what it means"),
    ),
    "Reconciliation": _object(
        "The last line of `reconcile --json`.",
        summary=_object(
            "What was compared.",
            since=_time("from when on"),
            compared=_count("meters of customers"),
            hours=_count("hours of them that have usage"),
            differing_hours=_count("hours of these that differ"),
            billing_accuracy=_or_null(_text("share that agrees, 0 to 1; null: no usage")),
            differences=_map(_count("minutes"), "kind -> number"),
            repaired=_count("minutes repaired"),
        ),
    ),
}

#: Where a program meets them: shape, and what writes it.
USES: Mapping[str, Sequence[str]] = {
    "Report": ["`GET .../usage.json` of the [dashboard](http.md)"],
    "Provisioning": ["`flask c2meter provision --json`"],
    "ExportHead": ["`flask c2meter export`"],
    "Usage": ["`flask c2meter usage --json`: a list"],
    "Charge": ["`flask c2meter bill --json`: a list"],
    "Projection": ["`flask c2meter project --json`: an object, meter -> projection or null"],
    "Offer": ["`flask c2meter simulate --json`: a list"],
    "Event": ["`flask c2meter events --json`: one a line"],
    "Notice": ["`flask c2meter alerts --json`: a list"],
    "DeadLetter": ["`flask c2meter dead list --json`: one a line"],
    "Difference": ["`flask c2meter reconcile --json`: one a line"],
    "Reconciliation": ["`flask c2meter reconcile --json`: the last line"],
}


def schema(name: str) -> Schema:
    """The shape called *name*, complete: for a validator."""
    return ref(name) | {"components": {"schemas": dict(SHAPES)}}
