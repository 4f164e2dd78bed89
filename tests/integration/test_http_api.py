"""The HTTP API, held against what the reference says of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from dashboard_rig import OPERATOR, Service, exceeded, healthy, service
from flask import request
from from_code import openapi
from from_code.shapes import schema
from jsonschema import Draft202012Validator
from webhook_rig import signed
from werkzeug.test import TestResponse

SECRET = "whsec_dGhpcyBpcyBhIHNlY3JldCBvZiB0aGUgdGVzdHM="
NOBODY = None
OURS = {"Sec-Fetch-Site": "same-origin"}
JSON = {"Accept": "application/json"}
DOCUMENT: Mapping[str, Any] = json.loads(openapi.PATH.read_text())


class Host:
    """A service with every blueprint, and two customers with weeks of usage."""

    def __init__(self, made: Service) -> None:
        self.made = made
        made.meter.metrics_auth(lambda: request.headers.get("Authorization") == "Bearer token")
        made.app.register_blueprint(made.meter.webhook_blueprint(), url_prefix="/stripe")
        made.app.register_blueprint(made.meter.metrics_blueprint())
        self.alice, self.bob = exceeded(made), healthy(made)
        made.settle_alerts("signal", "failed")

    def asks(self, who: str | None, path: str, **more: Any) -> TestResponse:
        return self.made.client(who).open(path, **more)

    def tells(self, body: bytes, **headers: str) -> TestResponse:
        """Stripe does."""
        signature = {"Stripe-Signature": signed(body, self.made.clock.now, SECRET)} | headers
        return self.made.client(NOBODY).post("/stripe/webhook", data=body, headers=signature)

    def lose_store(self) -> None:
        """The file of the store is no database any more."""
        self.made.metering.store.close()
        Path(self.made.app.instance_path, "c2meter.sqlite").write_bytes(b"no database" * 500)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with service(tmp_path / "instance", C2METER_STRIPE_WEBHOOK_SECRET=SECRET) as made:
        yield Host(made)


EVENT = json.dumps(
    {"object": "event", "id": "evt_1", "type": "balance.available", "livemode": False}
    | {"created": 1_773_929_100, "data": {"object": {"object": "balance"}}}
).encode()
READ = "/billing/notifications/read"


def lost(host: Host, *request: Any, **more: Any) -> TestResponse:
    host.lose_store()
    return host.asks(*request, **more)


def lost_webhook(host: Host) -> TestResponse:
    host.lose_store()
    return host.tells(EVENT)


Answer = Callable[[Host], TestResponse]

#: Path, method, status, media type -> requests that are answered so.
CASES: Mapping[tuple[str, str, str, str], list[Answer]] = {
    ("/billing/usage", "get", "200", "text/html"): [lambda h: h.asks(h.alice, "/billing/usage")],
    ("/billing/usage", "get", "303", ""): [lambda h: h.asks(OPERATOR, "/billing/usage")],
    ("/billing/usage", "get", "401", "text/html"): [lambda h: h.asks(NOBODY, "/billing/usage")],
    ("/billing/usage", "get", "401", "application/json"): [
        lambda h: h.asks(NOBODY, "/billing/usage", headers=JSON)
    ],
    ("/billing/usage", "get", "404", "text/html"): [
        lambda h: h.asks(h.alice, f"/billing/usage?customer={h.bob}")
    ],
    ("/billing/usage", "get", "404", "application/json"): [
        lambda h: h.asks(OPERATOR, "/billing/usage?customer=cus_none", headers=JSON)
    ],
    ("/billing/usage", "get", "503", "text/html"): [lambda h: lost(h, h.alice, "/billing/usage")],
    ("/billing/usage", "get", "503", "application/json"): [
        lambda h: lost(h, h.alice, "/billing/usage", headers=JSON)
    ],
    ("/billing/usage.json", "get", "200", "application/json"): [
        lambda h: h.asks(h.alice, "/billing/usage.json"),
        lambda h: h.asks(h.bob, "/billing/usage.json"),
        lambda h: h.asks("cus_new", "/billing/usage.json"),
        lambda h: h.asks(OPERATOR, f"/billing/usage.json?customer={h.alice}"),
    ],
    ("/billing/usage.json", "get", "401", "application/json"): [
        lambda h: h.asks(NOBODY, "/billing/usage.json")
    ],
    ("/billing/usage.json", "get", "404", "application/json"): [
        lambda h: h.asks(h.alice, f"/billing/usage.json?customer={h.bob}")
    ],
    ("/billing/usage.json", "get", "503", "application/json"): [
        lambda h: lost(h, h.alice, "/billing/usage.json")
    ],
    ("/billing/customers", "get", "200", "text/html"): [
        lambda h: h.asks(OPERATOR, "/billing/customers?q=cus&after=cus_A")
    ],
    ("/billing/customers", "get", "401", "text/html"): [
        lambda h: h.asks(NOBODY, "/billing/customers")
    ],
    ("/billing/customers", "get", "401", "application/json"): [
        lambda h: h.asks(NOBODY, "/billing/customers", headers=JSON)
    ],
    ("/billing/customers", "get", "404", "text/html"): [
        lambda h: h.asks(h.alice, "/billing/customers")
    ],
    ("/billing/customers", "get", "404", "application/json"): [
        lambda h: h.asks(h.alice, "/billing/customers", headers=JSON)
    ],
    ("/billing/customers", "get", "503", "text/html"): [
        lambda h: lost(h, OPERATOR, "/billing/customers")
    ],
    ("/billing/customers", "get", "503", "application/json"): [
        lambda h: lost(h, OPERATOR, "/billing/customers", headers=JSON)
    ],
    (READ, "post", "200", "application/json"): [
        lambda h: h.asks(h.alice, READ, method="POST", headers=OURS | JSON),
        lambda h: h.asks(
            h.alice, READ, method="POST", headers=OURS | JSON, data={"id": ["a", "b"]}
        ),
    ],
    (READ, "post", "303", ""): [lambda h: h.asks(h.alice, READ, method="POST", headers=OURS)],
    (READ, "post", "401", "text/html"): [lambda h: h.asks(NOBODY, READ, method="POST")],
    (READ, "post", "401", "application/json"): [
        lambda h: h.asks(NOBODY, READ, method="POST", headers=JSON)
    ],
    (READ, "post", "403", "text/html"): [
        lambda h: h.asks(OPERATOR, READ, method="POST", headers=OURS)
    ],
    (READ, "post", "403", "application/json"): [
        lambda h: h.asks(h.alice, READ, method="POST", headers=JSON)
    ],
    (READ, "post", "413", "text/html"): [
        lambda h: h.asks(h.alice, READ, method="POST", headers=OURS, data={"id": "x" * 20_000})
    ],
    (READ, "post", "413", "application/json"): [
        lambda h: h.asks(
            h.alice, READ, method="POST", headers=OURS | JSON, data={"id": "x" * 20_000}
        )
    ],
    (READ, "post", "503", "text/html"): [
        lambda h: lost(h, h.alice, READ, method="POST", headers=OURS)
    ],
    (READ, "post", "503", "application/json"): [
        lambda h: lost(h, h.alice, READ, method="POST", headers=OURS | JSON)
    ],
    ("/stripe/webhook", "post", "200", "application/json"): [lambda h: h.tells(EVENT)],
    ("/stripe/webhook", "post", "400", "application/json"): [
        lambda h: h.tells(EVENT, **{"Stripe-Signature": "t=1,v1=00"}),
        lambda h: h.tells(b"[]"),
    ],
    ("/stripe/webhook", "post", "413", "application/json"): [lambda h: h.tells(b" " * 300_000)],
    ("/stripe/webhook", "post", "503", "application/json"): [lost_webhook],
    ("/metrics", "get", "200", "text/plain"): [
        lambda h: h.asks(NOBODY, "/metrics", headers={"Authorization": "Bearer token"})
    ],
    ("/metrics", "get", "200", "application/openmetrics-text"): [
        lambda h: h.asks(
            NOBODY,
            "/metrics",
            headers={"Authorization": "Bearer token", "Accept": "application/openmetrics-text"},
        )
    ],
    ("/metrics", "get", "401", "text/plain"): [lambda h: h.asks(NOBODY, "/metrics")],
}


def check(value: Any, wanted: Mapping[str, Any]) -> None:
    """*value* is as *wanted*, whose references lead into the document."""
    whole = dict(wanted) | {"components": DOCUMENT["components"]}
    Draft202012Validator(whole, format_checker=Draft202012Validator.FORMAT_CHECKER).validate(value)


def test_the_document_is_the_one_that_the_code_makes() -> None:
    assert openapi.PATH.read_text() == openapi.as_text(), "run python docs/write_openapi.py"


def test_every_answer_that_is_described_is_tried() -> None:
    described = {
        (path, method, status, media)
        for path, operations in DOCUMENT["paths"].items()
        for method, operation in operations.items()
        for status, answer in operation["responses"].items()
        for media in answer.get("content", ("",))
    }
    assert described == CASES.keys()


@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(case))
def test_an_answer_is_as_described(case: tuple[str, str, str, str], host: Host) -> None:
    path, method, status, media = case
    described = DOCUMENT["paths"][path][method]["responses"][status]
    for ask in CASES[case]:
        answer = ask(host)
        assert (answer.status_code, answer.mimetype if media else "") == (int(status), media)
        for name in described.get("headers", ()):
            assert answer.headers[name]
        if media:
            body = answer.get_json() if media == "application/json" else answer.text
            check(body, described["content"][media]["schema"])


def test_channels_are_for_operators(host: Host) -> None:
    own = host.asks(host.alice, "/billing/usage.json").get_json()["alerts"]
    seen = host.asks(OPERATOR, f"/billing/usage.json?customer={host.alice}").get_json()["alerts"]
    assert own and not any("channels" in alert for alert in own)
    assert {channel["state"] for alert in seen for channel in alert["channels"].values()} == {
        "delivered",
        "dead",
    }


def test_a_shape_allows_nothing_else(host: Host) -> None:
    report = host.asks(host.alice, "/billing/usage.json").get_json()
    check(report, {"$ref": "#/components/schemas/Report"})
    validator = Draft202012Validator(schema("Report"))
    assert validator.is_valid(report)
    assert not validator.is_valid(report | {"more": 1})
    assert not validator.is_valid(report | {"unread": "1"})
    assert not validator.is_valid({name: report[name] for name in report if name != "unread"})
