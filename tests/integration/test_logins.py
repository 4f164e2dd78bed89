"""Cases 28 and 29 over every route of an app with all blueprints: strangers, and other tenants.

What each blueprint refuses for itself is in its own tests; here no route may be forgotten.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from flask_host import close

from flask_c2meter.metering import Metering

pytest.importorskip("c2pa", reason="the example app needs the extra 'example'")

from example_app import create_app

MINE, THEIRS = "cus_demo_starter", "cus_demo_growth"
KEYS = {MINE: "demo-starter-key", THEIRS: "demo-growth-key"}
#: What only the other tenant has: nobody else may see these digits.
SECRET_USAGE = 8_675_309

#: Routes that anybody may use, and what they answer to whoever knows nothing.
PUBLIC = {
    ("GET", "pages.index"): 200,  # the page that asks for a key
    ("GET", "static"): 404,  # no such file
    ("POST", "demo.login"): 401,
    ("POST", "demo.logout"): 303,  # forgets the visitor's own session
    ("POST", "c2meter_webhooks.receive"): 400,  # Stripe's signature is the login
}


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Flask]:
    """The example with every blueprint, and usage of both tenants."""
    settings = {
        "TESTING": True,
        "C2METER_STRIPE_SECRET_KEY": "",
        "C2METER_STRIPE_BASE_URL": None,
        "C2METER_STRIPE_WEBHOOK_SECRET": "whsec_test",
    }
    app = create_app(settings, instance_path=str(tmp_path))
    metering = metering_of(app)
    metering.record("verify_operations", MINE, value=12, manifest_id="m")
    metering.record("verify_operations", THEIRS, value=SECRET_USAGE, manifest_id="m")
    yield app
    close(app)


def metering_of(app: Flask) -> Metering:
    state: Any = app.extensions["c2meter"]
    metering: Metering = state.metering
    return metering


def routes(app: Flask) -> list[tuple[str, str, str]]:
    """Method, endpoint and path of everything; ids in paths are the other tenant's."""
    found = []
    with app.test_request_context():
        for rule in app.url_map.iter_rules():
            path = rule.build(dict.fromkeys(rule.arguments, THEIRS))
            assert path is not None
            for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
                found.append((method, rule.endpoint, path[1]))
    return found


def logged_in(app: Flask, customer: str) -> FlaskClient:
    """A browser and a program in one: the session and the key of *customer*."""
    client = app.test_client()
    assert client.post("/login", data={"key": KEYS[customer]}).status_code == 303
    client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {KEYS[customer]}"
    return client


def test_case_28_every_route_is_closed_to_strangers(app: Flask) -> None:
    found = routes(app)
    assert len(found) >= 15
    assert {endpoint.partition(".")[0] for _, endpoint, _ in found} >= {
        "api",
        "demo",
        "c2meter_dashboard",
        "c2meter_webhooks",
    }
    for method, endpoint, path in found:
        for accept in ("text/html", "application/json"):
            answer = app.test_client().open(
                path,
                method=method,
                headers={"Accept": accept, "Sec-Fetch-Site": "same-origin"},
                query_string={"customer": THEIRS},
            )
            allowed = PUBLIC.get((method, endpoint))
            assert answer.status_code == allowed or (
                allowed is None and answer.status_code in (401, 403)
            ), (method, path, answer.status_code)
            assert str(SECRET_USAGE) not in answer.text
            answer.close()


@pytest.mark.parametrize("key", ["demo-starter-key ", "DEMO-STARTER-KEY", "", "null", "é"])
def test_case_28_a_wrong_key_is_no_login(app: Flask, key: str) -> None:
    client = app.test_client()
    assert client.post("/login", data={"key": key}).status_code == 401
    for method, endpoint, path in routes(app):
        if (method, endpoint) not in PUBLIC:
            answer = client.open(path, method=method, headers={"X-API-Key": key.encode()})
            assert answer.status_code in (401, 403), (method, path)


def test_case_29_no_route_tells_a_tenant_of_another(app: Flask) -> None:
    """Wherever a request can carry an id, it carries the other's."""
    assert str(SECRET_USAGE) in logged_in(app, THEIRS).get("/api/usage").text
    names = ("customer", "id", "q", "after", "user", "customer_id", "stripe_customer_id")
    foreign = dict.fromkeys(names, THEIRS)
    client = logged_in(app, MINE)
    for method, endpoint, path in routes(app):
        if endpoint in ("pages.index", "demo.logout"):  # names both for show; ends the session
            continue
        for body in ({"data": foreign}, {"json": foreign}, {}):
            if method == "GET" and body:
                continue
            for query in (foreign, {}):
                headers = {"Sec-Fetch-Site": "same-origin", "X-Customer": THEIRS}
                answer = client.open(
                    path, method=method, query_string=query, headers=headers, **body
                )
                assert answer.status_code < 500, (method, path)
                for digits in (f"{SECRET_USAGE}", f"{SECRET_USAGE:,}"):
                    assert digits not in answer.text, (method, path)
                assert THEIRS not in answer.text, (method, path)
                answer.close()
    with app.app_context():
        (usage,) = [
            each for each in metering_of(app).usage(THEIRS) if each.meter == "verify_operations"
        ]
    assert usage.total == SECRET_USAGE


def test_case_29_a_foreign_id_is_answered_as_an_unknown_one(app: Flask) -> None:
    client = logged_in(app, MINE)
    for path in ("/billing/usage", "/billing/usage.json"):
        answers = [
            client.get(path, query_string={"customer": customer})
            for customer in (THEIRS, "cus_nobody")
        ]
        texts = [re.sub('nonce="[^"]+"', "", answer.text) for answer in answers]
        assert [answer.status_code for answer in answers] == [404, 404], path
        assert texts[0] == texts[1], path
