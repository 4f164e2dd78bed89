"""The middleware over a Flask app whose views are metered: every operation counts once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from flask import request
from flask_host import ALICE, Host
from werkzeug.test import TestResponse
from wsgi_rig import WsgiHost, customer_of

from flask_c2meter import current_usage
from flask_c2meter.wsgi import MeterMiddleware, Terms


@pytest.fixture
def host(host: Host) -> Host:
    """Signs at ``/sign``; verifies at ``/verify``, unmetered; both in one app."""

    def sign() -> dict[str, str]:
        current_usage.update(manifest_id="inner")
        return {"seen": current_usage.meter}

    def verify() -> dict[str, str]:
        request.environ["c2meter.usage"].update(manifest_id="outer")
        return {}

    host.route(sign, path="/sign", methods=("GET", "POST"), rate_limit=None)
    host.app.add_url_rule("/verify", view_func=verify, methods=["POST"])
    return host


Wrap = Callable[..., MeterMiddleware]


@pytest.fixture
def wrap(host: Host, request: pytest.FixtureRequest) -> Wrap:
    """Puts a middleware with the app's own configuration around it, as its documentation says."""

    def make(meters: dict[str, Any], customer: Any = customer_of) -> MeterMiddleware:
        middleware = MeterMiddleware(
            host.app.wsgi_app,
            meters,
            customer,
            host.app.config,
            instance_path=host.app.instance_path,
        )
        host.app.wsgi_app = middleware  # type: ignore[method-assign]
        request.addfinalizer(WsgiHost(middleware).close)
        return middleware

    return make


def send(host: Host, path: str = "/sign", **headers: str) -> TestResponse:
    return host.client({**ALICE, **headers}).post(path, json={"image": 1})


def counts(host: Host) -> list[tuple[str, str]]:
    return sorted((event.meter, event.customer) for event in host.events())


def test_a_view_that_meters_the_same_is_the_one_that_counts(host: Host, wrap: Wrap) -> None:
    wrap({"POST /sign": "sign_operations"})
    assert send(host).get_json() == {"seen": "sign_operations"}
    assert host.event().properties == {"manifest_id": "inner"}


def test_and_the_one_that_knows_the_customer(host: Host, wrap: Wrap) -> None:
    wrap({"* /*": "sign_operations"}, lambda environ: "cus_outer")
    assert send(host).status_code == 200
    assert counts(host) == [("sign_operations", "cus_alice")]


@pytest.mark.parametrize("how", ["cancelled", "failed", "refused"])
def test_what_the_view_does_not_bill_the_middleware_does_not_either(
    host: Host, wrap: Wrap, how: str
) -> None:
    def view() -> Any:
        current_usage.cancel()
        return {}

    if how == "cancelled":
        host.route(view, path="/other")
    elif how == "failed":
        host.route(lambda: ("", 404), path="/other")
    else:
        host.route(lambda: {}, path="/other", body="json")
    wrap({"POST /other": "sign_operations"})
    host.client().post("/other")
    assert host.events() == []


def test_other_meters_count_beside_it(host: Host, wrap: Wrap) -> None:
    wrap({"* /*": "api_calls"})
    assert send(host).status_code == 200
    assert counts(host) == [("api_calls", "cus_alice"), ("sign_operations", "cus_alice")]


def test_views_without_a_decorator_are_metered_in_the_same_ledger(host: Host, wrap: Wrap) -> None:
    wrap({"POST /verify": "verify_operations"})
    assert [send(host, "/verify").status_code, send(host).status_code] == [200, 200]
    assert counts(host) == [("sign_operations", "cus_alice"), ("verify_operations", "cus_alice")]
    assert host.total("verify_operations") == host.total("sign_operations") == 1


def test_a_limit_is_taken_from_once(host: Host, wrap: Wrap) -> None:
    wrap({"POST /sign": "sign_operations"})
    answers = [send(host) for _ in range(51)]
    assert [answer.status_code for answer in answers] == [200] * 50 + [429]
    assert answers[0].headers.getlist("X-RateLimit-Remaining") == ["49"]
    assert len(host.events()) == 50


def test_a_limit_of_the_views_own_holds_too(host: Host, wrap: Wrap) -> None:
    host.route(lambda: {}, path="/rare", rate_limit="1/hour")
    wrap({"POST /rare": "sign_operations"})
    assert [send(host, "/rare").status_code for _ in range(2)] == [200, 429]


def test_a_key_counts_once_and_the_views_see_the_whole_body(host: Host, wrap: Wrap) -> None:
    bodies: list[bytes] = []

    def view() -> dict[str, str]:
        bodies.append(request.get_data())
        return {}

    host.route(view, path="/keyed")
    wrap({"POST /keyed": "sign_operations"})
    answers = [send(host, "/keyed", Idempotency_Key="key-1") for _ in range(2)]
    other = host.client({**ALICE, "Idempotency-Key": "key-1"}).post("/keyed", data="other")

    assert [answer.status_code for answer in (*answers, other)] == [200, 200, 409]
    assert [event.key for event in host.events()] == ["key-1"]
    assert bodies == [b'{"image": 1}'] * 2


def test_a_form_that_was_parsed_before_the_decorator_is_the_same_request(
    host: Host, wrap: Wrap
) -> None:
    host.app.before_request(lambda: request.form.get("csrf") and None)
    wrap({"POST /sign": "sign_operations"})
    for _ in range(2):
        client = host.client({**ALICE, "Idempotency-Key": "key-1"})
        assert client.post("/sign", data={"csrf": "1"}).status_code == 200
    assert len(host.events()) == 1


def test_two_middlewares_with_the_same_meter_count_once(host: Host, wrap: Wrap) -> None:
    wrap({"POST /verify": Terms("verify_operations", rate_limit="2/hour")})
    wrap({"* /*": Terms("verify_operations", rate_limit="2/hour")})
    assert [send(host, "/verify").status_code for _ in range(3)] == [200, 200, 429]
    assert len(host.events()) == 2


def test_two_middlewares_with_two_meters_count_both(host: Host, wrap: Wrap) -> None:
    wrap({"POST /verify": "verify_operations"})
    wrap({"*": "api_calls"})
    assert send(host, "/verify").status_code == 200
    assert counts(host) == [("api_calls", "cus_alice"), ("verify_operations", "cus_alice")]


def test_headers_are_not_doubled(host: Host, wrap: Wrap) -> None:
    wrap({"* /*": "api_calls"})
    answer = send(host)
    for name in ("X-Frame-Options", "Vary", "X-RateLimit-Limit", "X-Content-Type-Options"):
        assert len(answer.headers.getlist(name)) == 1


def test_threads_of_both_write_one_ledger(host: Host, wrap: Wrap) -> None:
    wrap({"* /*": "api_calls"})
    start = threading.Barrier(8)

    def client(_: int) -> None:
        start.wait(30)
        for _ in range(5):
            assert send(host).status_code == 200

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(client, range(8)))
    assert (host.total("api_calls"), host.total("sign_operations")) == (40, 40)
