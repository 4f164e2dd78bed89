"""The HTTP API as OpenAPI 3.1: the routes of the real blueprints, and what is known of each.

A route that is not described here, or that is described and not there, is an error.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from flask import Flask

from flask_c2meter import ALL_CUSTOMERS, C2Meter

from .shapes import SHAPES, ref

#: Where the document is kept.
PATH = Path(__file__).parents[1] / "reference" / "openapi.json"

Operation = Mapping[str, Any]

_HTML = {"text/html": {"schema": {"type": "string"}}}
_ERROR = {"application/json": {"schema": ref("Error")}}


def _json(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": dict(schema)}}


def _says(description: str, content: Mapping[str, Any] | None = None, **headers: str) -> Operation:
    said: dict[str, Any] = {"description": description}
    if headers:
        said["headers"] = {
            name.replace("_", "-"): {"description": what, "schema": {"type": "string"}}
            for name, what in headers.items()
        }
    return said | ({"content": dict(content)} if content else {})


def _query(name: str, description: str) -> Operation:
    return {"name": name, "in": "query", "description": description, "schema": {"type": "string"}}


_CUSTOMER = _query(
    "customer",
    "Whom to show: needed by an operator, and nothing but the visitor itself by anybody else.",
)
_UNAUTHORIZED = "`dashboard_auth` has said None."
_NOT_FOUND = "No such customer that the visitor may see."
_UNAVAILABLE = "The store cannot be read now."
_RETRY_AFTER = "Seconds to wait."

#: Either of the two, as `Accept` has it.
_REFUSAL = _HTML | _ERROR

#: Endpoint of the blueprint -> its operation.
_OPERATIONS: Mapping[str, Operation] = {
    "c2meter_dashboard.usage": {
        "summary": "The page of one customer",
        "parameters": [_CUSTOMER],
        "responses": {
            "200": _says("Its usage, bill, days and alerts.", _HTML),
            "303": _says("An operator named no customer: to the list.", Location="the list"),
            "401": _says(_UNAUTHORIZED, _REFUSAL),
            "404": _says(_NOT_FOUND, _REFUSAL),
            "503": _says(_UNAVAILABLE, _REFUSAL, Retry_After=_RETRY_AFTER),
        },
    },
    "c2meter_dashboard.usage_json": {
        "summary": "The same numbers",
        "parameters": [_CUSTOMER],
        "responses": {
            "200": _says(
                "Version 1; `channels` of alerts for operators only.", _json(ref("Report"))
            ),
            "401": _says(_UNAUTHORIZED, _ERROR),
            "404": _says(_NOT_FOUND, _ERROR),
            "503": _says(_UNAVAILABLE, _ERROR, Retry_After=_RETRY_AFTER),
        },
    },
    "c2meter_dashboard.customers": {
        "summary": "The list of customers, for operators",
        "parameters": [
            _query("q", "Only customers whose ids contain this."),
            _query("after", "Only those whose ids come after this one: the next page."),
        ],
        "responses": {
            "200": _says("Up to 50 customers.", _HTML),
            "401": _says(_UNAUTHORIZED, _REFUSAL),
            "404": _says("The visitor is no operator.", _REFUSAL),
            "503": _says(_UNAVAILABLE, _REFUSAL, Retry_After=_RETRY_AFTER),
        },
    },
    "c2meter_dashboard.read": {
        "summary": "The visitor has seen an alert, or all",
        "description": "Only from a page of the same origin, as `Sec-Fetch-Site` or else `Origin` "
        "or `Referer` say; then no token is needed.",
        "requestBody": {
            "description": "Without a field: all alerts. At most 16 KiB.",
            "content": {
                "application/x-www-form-urlencoded": {
                    "schema": {
                        "type": "object",
                        "properties": {
                            "id": {
                                "type": "array",
                                "items": {"type": "string"},
                                "description": "ids of alerts",
                            }
                        },
                    }
                }
            },
        },
        "responses": {
            "200": _says(
                "Asked for JSON: how many were unread.",
                _json(
                    {
                        "type": "object",
                        "properties": {"read": {"type": "integer", "minimum": 0}},
                        "required": ["read"],
                        "additionalProperties": False,
                    }
                ),
            ),
            "303": _says("Else: back to the page.", Location="the page"),
            "401": _says(_UNAUTHORIZED, _REFUSAL),
            "403": _says("From another origin, or by an operator.", _REFUSAL),
            "413": _says("The form is too large.", _REFUSAL),
            "503": _says("The store cannot be written now.", _REFUSAL, Retry_After=_RETRY_AFTER),
        },
    },
    "c2meter_webhooks.receive": {
        "summary": "Stripe tells what has changed",
        "parameters": [
            {
                "name": "Stripe-Signature",
                "in": "header",
                "required": True,
                "description": "Over the raw body, by a secret of `C2METER_STRIPE_WEBHOOK_SECRET`.",
                "schema": {"type": "string"},
            }
        ],
        "requestBody": {
            "description": "A snapshot or thin event. At most 256 KiB.",
            "required": True,
            "content": _json({"type": "object"}),
        },
        "responses": {
            "200": _says(
                "It is in the store, with its effect, or to be looked into by the worker.",
                _json(
                    {
                        "type": "object",
                        "properties": {"received": {"const": True}},
                        "required": ["received"],
                        "additionalProperties": False,
                    }
                ),
            ),
            "400": _says("Not by Stripe, not of now, of the other mode, or no event.", _ERROR),
            "413": _says("The body is too large.", _ERROR),
            "503": _says("The store cannot take it now: Stripe sends it again.", _ERROR),
        },
    },
    "c2meter_metrics.metrics": {
        "summary": "The metrics, for Prometheus",
        "responses": {
            "200": _says(
                "In the format that `Accept` prefers.",
                {
                    media: {"schema": {"type": "string"}}
                    for media in ("text/plain", "application/openmetrics-text")
                },
            ),
            "401": _says(
                "`metrics_auth` has said False.",
                {"text/plain": {"schema": {"const": "Unauthorized\n"}}},
            ),
        },
    },
}

_TAGS = {
    "c2meter_dashboard": "Dashboard",
    "c2meter_webhooks": "Webhooks",
    "c2meter_metrics": "Metrics",
}


def document() -> dict[str, Any]:
    """The document.

    :raises KeyError: a route and its description do not both exist.
    """
    described = dict(_OPERATIONS)
    paths: dict[str, dict[str, Any]] = {}
    for method, path, endpoint in sorted(_routes(), key=lambda each: each[1]):
        paths.setdefault(path, {})[method] = {
            "operationId": endpoint.partition(".")[2],
            "tags": [_TAGS[endpoint.partition(".")[0]]],
            **described.pop(endpoint),
        }
    if described:
        raise KeyError(f"there is no route for {', '.join(described)}")
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "flask_c2meter",
            "version": version("flask_c2meter"),
            "description": "What the blueprints answer, at the prefixes that the documentation "
            "uses. Who may ask is decided by functions of the host's own: `dashboard_auth` and "
            "`metrics_auth`.",
        },
        "tags": [{"name": name} for name in _TAGS.values()],
        "paths": paths,
        "components": {"schemas": _used(paths)},
    }


def as_text() -> str:
    """The document as it is kept."""
    return json.dumps(document(), indent=1, ensure_ascii=False) + "\n"


def _routes() -> Iterator[tuple[str, str, str]]:
    """Method, path and endpoint of every route that a host can have from us."""
    app = Flask("reference", static_folder=None)
    app.config["C2METER_STRIPE_WEBHOOK_SECRET"] = "whsec_reference"
    app.config["C2METER_STRIPE_SECRET_KEY"] = ""
    meter = C2Meter(app)
    meter.dashboard_auth(lambda: ALL_CUSTOMERS)
    app.register_blueprint(meter.dashboard_blueprint(), url_prefix="/billing")
    app.register_blueprint(meter.webhook_blueprint(), url_prefix="/stripe")
    app.register_blueprint(meter.metrics_blueprint(public=True))
    for rule in app.url_map.iter_rules():
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}:
            yield method.lower(), rule.rule, rule.endpoint


def _used(paths: Mapping[str, Any]) -> dict[str, Any]:
    """The shapes that *paths* refer to, and those that they refer to, in their own order."""
    found: set[str] = set()
    todo = [paths]
    while todo:
        for name in _refs(todo.pop()) - found:
            found.add(name)
            todo.append(SHAPES[name])
    return {name: shape for name, shape in SHAPES.items() if name in found}


def _refs(value: object) -> set[str]:
    if isinstance(value, Mapping):
        own = {str(value["$ref"]).rpartition("/")[2]} if "$ref" in value else set()
        return own.union(*map(_refs, value.values()))
    return set().union(*map(_refs, value)) if isinstance(value, list) else set()
