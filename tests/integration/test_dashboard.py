"""The dashboard's rules: who may look at whom, what may be changed from where, what is sent."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from dashboard_rig import OPERATOR, SIGN, VERIFY, Service, at, exceeded, service
from flask import Flask, Response, abort, redirect, request
from jinja2 import DictLoader, StrictUndefined
from sqlalchemy import event
from werkzeug.test import TestResponse

from flask_c2meter import ALL_CUSTOMERS, C2Meter, Customer, metered

ALICE, BOB = "cus_alice", "cus_bob"
SAME_SITE = {"Sec-Fetch-Site": "same-origin"}
NONCE = re.compile(r"'nonce-([A-Za-z0-9_-]{20,})'")


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Service]:
    with service(tmp_path / "instance") as made:
        for customer in (ALICE, BOB):
            made.subscribe(customer, "starter")
            made.use(customer, VERIFY, 1234, "03-10 10:00")
        yield made


def hide_store(made: Service) -> Path:
    """The store's file is gone; return where it is."""
    made.metering.store.close()
    path = Path(made.app.instance_path, "c2meter.sqlite")
    return path.rename(path.with_suffix(".away"))


def routes(app: Flask) -> list[tuple[str, str]]:
    """Each method and path of the dashboard."""
    return [
        (method, rule.rule)
        for rule in app.url_map.iter_rules()
        if rule.endpoint.startswith("c2meter_dashboard.")
        for method in sorted(rule.methods or ())
    ]


# -- registering -----------------------------------------------------------------------------------


def test_it_refuses_to_register_without_dashboard_auth(tmp_path: Path) -> None:
    app = Flask("bare", instance_path=str(tmp_path))
    meter = C2Meter(app)
    with pytest.raises(RuntimeError, match=r"register a function with @meter\.dashboard_auth"):
        app.register_blueprint(meter.dashboard_blueprint(), url_prefix="/billing")


def test_it_refuses_to_register_before_init_app(tmp_path: Path) -> None:
    app = Flask("bare", instance_path=str(tmp_path))
    meter = C2Meter()
    meter.dashboard_auth(lambda: ALICE)
    with pytest.raises(RuntimeError, match="Did you forget to call 'init_app'"):
        app.register_blueprint(meter.dashboard_blueprint(), url_prefix="/billing")


def test_two_apps_have_dashboards_of_their_own(tmp_path: Path) -> None:
    with service(tmp_path / "one") as one, service(tmp_path / "two") as two:
        one.use(ALICE, VERIFY, 11, "03-10 10:00")
        two.meter.dashboard_auth(lambda: ALICE)  # whoever comes is Alice there
        two.use(ALICE, VERIFY, 22, "03-10 10:00")
        for made, total in ((one, "11"), (two, "22")):
            found = made.client(ALICE).get("/billing/usage.json").get_json()
            assert next(m["total"] for m in found["meters"] if m["meter"] == VERIFY) == total
        assert one.client(None).get("/billing/usage").status_code == 401
        assert two.client(None).get("/billing/usage").status_code == 200


# -- who looks -------------------------------------------------------------------------------------


def test_no_route_answers_anything_to_somebody_unknown(made: Service) -> None:
    """Case 28."""
    found = routes(made.app)
    assert len(found) >= 10
    for method, path in found:
        for accept in ("text/html", "application/json"):
            answer = made.client(None).open(
                path, method=method, headers={"Accept": accept, **SAME_SITE}
            )
            assert answer.status_code == 401, (method, path)
            assert ALICE not in answer.text and "1234" not in answer.text


def test_a_customer_that_has_used_nothing_has_a_page(made: Service) -> None:
    answer = made.client("cus_fresh").get("/billing/usage")
    assert answer.status_code == 200
    assert "cus_fresh" in answer.text


@pytest.mark.parametrize("said", [None, ""])
def test_nobody_is_401(made: Service, said: Any) -> None:
    made.meter.dashboard_auth(lambda: said)
    answer = made.client(ALICE).get("/billing/usage.json")
    assert (answer.status_code, answer.get_json()) == (401, {"error": "Unauthorized"})


def test_auth_may_return_a_customer_whose_plan_then_counts(made: Service) -> None:
    made.meter.dashboard_auth(lambda: Customer("cus_new", plan="growth"))
    assert made.client(None).get("/billing/usage.json").get_json()["plan"] == "growth"


def test_auth_may_be_async(made: Service) -> None:
    async def auth() -> str:
        return ALICE

    made.meter.dashboard_auth(auth)  # type: ignore[arg-type]
    assert made.client(None).get("/billing/usage.json").get_json()["customer"] == ALICE


def test_auth_may_send_to_a_login(made: Service) -> None:
    made.meter.dashboard_auth(lambda: abort(redirect("/login")))
    answer = made.client(None).get("/billing/usage")
    assert (answer.status_code, answer.location) == (302, "/login")


@pytest.mark.parametrize("said", [42, True, "no id!", "all customers", object()])
def test_auth_that_returns_something_else_is_a_mistake(made: Service, said: Any) -> None:
    made.meter.dashboard_auth(lambda: said)
    made.app.testing = True
    with pytest.raises(RuntimeError, match="must return a customer id, a Customer, ALL_CUSTOMERS"):
        made.client(None).get("/billing/usage")


# -- at whom ---------------------------------------------------------------------------------------


def same(answer: TestResponse) -> tuple[int, bytes, dict[str, str]]:
    """All of an answer, but for the nonce in its policy, which is new each time."""
    headers = {name: NONCE.sub("'nonce'", text) for name, text in answer.headers}
    return answer.status_code, answer.data, headers


@pytest.mark.parametrize("path", ["/billing/usage", "/billing/usage.json"])
@pytest.mark.parametrize(
    "wanted", [BOB, "cus_unknown", "", "*", "all customers", "<b>", "cus_alice ", "' OR 1=1 --"]
)
def test_foreign_and_unknown_customers_are_the_same_404(
    made: Service, path: str, wanted: str
) -> None:
    """Case 29: the same to the byte."""
    client = made.client(ALICE)
    unknown = same(client.get(path, query_string={"customer": "cus_nobody"}))
    answer = client.get(path, query_string={"customer": wanted})
    assert same(answer) == unknown
    assert answer.status_code == 404


def test_a_customer_may_name_itself(made: Service) -> None:
    answer = made.client(ALICE).get("/billing/usage?customer=cus_alice")
    assert answer.status_code == 200 and "1,234" in answer.text


def test_of_another_customer_nothing_is_seen_anywhere(made: Service) -> None:
    made.use(BOB, SIGN, 198, "03-11 10:00")  # an alert of Bob's
    client = made.client(ALICE)
    for path in ("usage", "usage.json", "customers", "customers?q=bob", "usage?customer=cus_bob"):
        answer = client.get(f"/billing/{path}")
        assert BOB not in answer.text and "198" not in answer.text


def test_an_operator_sees_each_recorded_customer_and_no_other(made: Service) -> None:
    client = made.client(OPERATOR)
    assert "1,234" in client.get("/billing/usage?customer=cus_bob").text
    found = client.get("/billing/usage.json?customer=cus_bob").get_json()
    assert found["customer"] == BOB
    for wanted in ("cus_nobody", "", "<b>", "x" * 300):
        answer = client.get("/billing/usage", query_string={"customer": wanted})
        assert answer.status_code == 404


def test_asking_for_an_unknown_customer_does_not_make_it_known(tmp_path: Path) -> None:
    with service(tmp_path / "instance") as made:
        made.meter.subscription_loader(lambda customer: None)
        client = made.client(OPERATOR)
        for _ in range(2):
            assert client.get("/billing/usage?customer=cus_nobody").status_code == 404
        assert list(made.metering.store.customer_ids()) == []


def test_an_operator_without_a_customer_gets_the_list(made: Service) -> None:
    answer = made.client(OPERATOR).get("/billing/usage")
    assert (answer.status_code, answer.location) == (303, "/billing/customers")
    assert made.client(OPERATOR).get("/billing/usage.json").status_code == 404


# -- the list --------------------------------------------------------------------------------------


def listed(answer: TestResponse) -> list[str]:
    return re.findall(r'<a href="/billing/usage\?customer=([^"]+)">', answer.text)


def test_the_list_is_for_operators(made: Service) -> None:
    assert listed(made.client(OPERATOR).get("/billing/customers")) == [ALICE, BOB]
    mine = made.client(ALICE).get("/billing/customers")
    assert same(mine) == same(made.client(ALICE).get("/billing/usage?customer=cus_bob"))


def test_the_list_shows_plan_level_and_the_end_of_the_period(made: Service) -> None:
    made.use(BOB, SIGN, 191, "03-11 10:00")
    made.subscribe(BOB, "starter", status="past_due", when="03-12")
    rows = made.client(OPERATOR).get("/billing/customers").text.split("<tr")
    (bob,) = [row for row in rows if BOB in row]
    for text in (
        "Starter",
        "Payment overdue",
        "Critical",
        "96%",
        "Sign Operations",
        "1 Apr, 00:00",
    ):
        assert text in bob


def test_no_address_is_in_the_list(made: Service) -> None:
    now = made.clock()
    made.metering.record(
        VERIFY, Customer("cus_carol", email="carol@example.com"), value=1, occurred_at=now
    )
    client = made.client(OPERATOR)
    answer = client.get("/billing/customers")
    assert listed(answer) == [ALICE, BOB, "cus_carol"] and "carol@" not in answer.text
    assert listed(client.get("/billing/customers?q=example.com")) == []


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("cus_", [ALICE, BOB]),
        ("ALI", [ALICE]),
        ("bob", [BOB]),
        (" bob ", [BOB]),
        ("cus%", []),
        ("cus_b_b", []),
        ("'", []),
        ("<script>", []),
    ],
)
def test_the_list_is_searched_by_any_part_of_an_id(
    made: Service, wanted: str, found: list[str]
) -> None:
    answer = made.client(OPERATOR).get("/billing/customers", query_string={"q": wanted})
    assert listed(answer) == found
    assert "<script>" not in answer.text


def test_the_list_is_read_page_by_page(made: Service) -> None:
    for number in range(120):
        made.use(f"cus_n{number:03}", VERIFY, 1, "03-10 10:00")
    client = made.client(OPERATOR)
    pages, path = [], "/billing/customers?q=cus_n"
    while path:
        answer = client.get(path)
        pages.append(listed(answer))
        following = re.search(r'rel="next" href="([^"]+)"', answer.text)
        path = following[1].replace("&amp;", "&") if following else ""
    assert [len(page) for page in pages] == [50, 50, 20]
    seen = [customer for page in pages for customer in page]
    assert seen == [f"cus_n{number:03}" for number in range(120)]


# -- marking as read -------------------------------------------------------------------------------


@pytest.fixture
def alerted(made: Service) -> Service:
    """Alice and Bob have two unread alerts each."""
    for customer in (ALICE, BOB):
        made.use(customer, SIGN, 170, "03-10 10:00")
        made.use(customer, SIGN, 25, "03-11 10:00")
    return made


def unread(made: Service, customer: str) -> int:
    return made.metering.store.announcements.unread(customer)


def alerts_of(made: Service, customer: str) -> list[str]:
    notices = made.metering.store.announcements.notices(at("01-01"), customer)
    return [notice.alert.identifier for notice in notices]


def test_one_alert_is_marked_by_a_plain_form(alerted: Service) -> None:
    client = alerted.client(ALICE)
    identifier = alerts_of(alerted, ALICE)[0]
    form = re.search(rf'<form[^>]*action="([^"]+)"[^>]*>[^<]*<input[^>]*value="{identifier}"',
                     client.get("/billing/usage").text)  # fmt: skip
    assert form
    answer = client.post(form[1], data={"id": identifier}, headers=SAME_SITE)
    assert (answer.status_code, answer.location) == (303, "/billing/usage")
    assert unread(alerted, ALICE) == 1
    assert identifier not in re.findall(r'id="read-([^"]+)"', client.get("/billing/usage").text)


def test_all_alerts_are_marked_at_once(alerted: Service) -> None:
    client = alerted.client(ALICE)
    headers = {"Accept": "application/json", **SAME_SITE}
    answer = client.post("/billing/notifications/read", headers=headers)
    assert (answer.status_code, answer.get_json()) == (200, {"read": 2})
    assert (unread(alerted, ALICE), unread(alerted, BOB)) == (0, 2)
    assert "unread alert" not in client.get("/billing/usage").text


def test_the_alerts_of_others_cannot_be_marked_and_answer_as_unknown_ones(
    alerted: Service,
) -> None:
    client = alerted.client(ALICE)
    answers = [
        same(client.post("/billing/notifications/read", data={"id": identifier}, headers=SAME_SITE))
        for identifier in (*alerts_of(alerted, BOB), "no-such-alert")
    ]
    assert len({str(answer) for answer in answers}) == 1
    assert (unread(alerted, ALICE), unread(alerted, BOB)) == (2, 2)
    asked = client.post("/billing/notifications/read?customer=cus_bob", headers=SAME_SITE)
    assert asked.status_code == 404
    assert unread(alerted, BOB) == 2


def test_each_alert_says_in_json_what_the_page_says_and_where_that_is(alerted: Service) -> None:
    client = alerted.client(ALICE)
    page = client.get("/billing/usage").text
    told = client.get("/billing/usage.json").get_json()["alerts"]
    assert [(each["level"], each["message"], each["unread"]) for each in told] == [
        ("critical", "Sign Operations usage at 98%", True),
        ("warning", "Sign Operations usage at 85%", True),
    ]
    assert {each["action_url"] for each in told} == {"/billing/usage"}
    assert all(each["message"] in page for each in told)


def test_where_that_is_follows_the_mount_and_leads_an_operator_to_the_customer(
    alerted: Service,
) -> None:
    told = alerted.client(OPERATOR).get(
        "/billing/usage.json?customer=cus_alice", environ_overrides={"SCRIPT_NAME": "/shop"}
    )
    urls = {each["action_url"] for each in told.get_json()["alerts"]}
    assert urls == {"/shop/billing/usage?customer=cus_alice"}


def test_operators_only_look(alerted: Service) -> None:
    client = alerted.client(OPERATOR)
    assert "<form method" not in client.get("/billing/usage?customer=cus_alice").text
    for path in ("read", "read?customer=cus_alice"):
        answer = client.post(f"/billing/notifications/{path}", headers=SAME_SITE)
        assert answer.status_code == 403
    assert unread(alerted, ALICE) == 2


@pytest.mark.parametrize(
    ("headers", "is_ours"),
    [
        ({"Sec-Fetch-Site": "same-origin"}, True),
        ({"Sec-Fetch-Site": "same-site"}, False),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "none"}, False),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "http://app.example"}, False),
        ({"Sec-Fetch-Site": ""}, False),
        ({"Origin": "http://app.example"}, True),
        ({"Origin": "http://app.example:80"}, True),
        ({"Origin": "https://app.example"}, False),
        ({"Origin": "http://app.example:8080"}, False),
        ({"Origin": "http://evil.example"}, False),
        ({"Origin": "http://app.example.evil"}, False),
        ({"Origin": "http://evil-app.example"}, False),
        ({"Origin": "http://app.example@evil.example"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": ""}, False),
        ({"Origin": "http://app.example:x"}, False),
        ({"Origin": "null", "Referer": "http://app.example/billing/usage"}, False),
        ({"Referer": "http://app.example/billing/usage"}, True),
        ({"Referer": "http://evil.example/?http://app.example/"}, False),
        ({}, False),
    ],
)
def test_a_change_must_come_from_a_page_of_the_same_origin(
    alerted: Service, headers: dict[str, str], is_ours: bool
) -> None:
    answer = alerted.client(ALICE).post(
        "/billing/notifications/read", headers=headers, base_url="http://app.example"
    )
    assert answer.status_code == (303 if is_ours else 403)
    assert unread(alerted, ALICE) == (0 if is_ours else 2)


def test_on_https_at_its_own_port_the_origin_must_say_so(alerted: Service) -> None:
    client = alerted.client(ALICE)
    for origin, status in (("https://app.example", 403), ("https://app.example:8443", 303)):
        answer = client.post(
            "/billing/notifications/read",
            headers={"Origin": origin},
            base_url="https://app.example:8443",
        )
        assert answer.status_code == status


def test_a_huge_form_is_refused(alerted: Service) -> None:
    answer = alerted.client(ALICE).post(
        "/billing/notifications/read", data={"id": "x" * 20_000}, headers=SAME_SITE
    )
    assert answer.status_code == 413
    assert answer.headers["Cache-Control"] == "no-store"


# -- headers ---------------------------------------------------------------------------------------


def answers(made: Service) -> Iterator[TestResponse]:
    """One of each kind, over https."""
    alice, over = made.client(ALICE), {"base_url": "https://app.example"}
    yield alice.get("/billing/usage", **over)
    yield alice.get("/billing/usage.json", **over)
    yield alice.get("/billing/usage?customer=cus_bob", **over)
    yield alice.post("/billing/notifications/read", **over)
    yield alice.post("/billing/notifications/read", headers=SAME_SITE, **over)
    yield made.client(None).get("/billing/usage", **over)
    yield made.client(OPERATOR).get("/billing/customers", **over)
    hide_store(made)
    yield alice.get("/billing/usage", **over)
    yield alice.get("/billing/usage.json", **over)


@pytest.mark.parametrize("policy", ["standard", "strict", "off"])
def test_every_answer_has_a_strict_policy_whatever_the_apps_is(tmp_path: Path, policy: str) -> None:
    """P20."""
    with service(tmp_path / "instance", C2METER_SECURITY_HEADERS=policy) as made:
        made.use(ALICE, VERIFY, 1, "03-10 10:00")
        seen = list(answers(made))
        assert [answer.status_code for answer in seen] == [
            200, 200, 404, 403, 303, 401, 200, 503, 503,
        ]  # fmt: skip
        for answer in seen:
            headers = answer.headers
            rules = dict(
                rule.split(" ", 1) for rule in headers["Content-Security-Policy"].split("; ")
            )
            for name in ("default-src", "object-src", "base-uri", "frame-ancestors"):
                assert rules[name] == "'none'"
            assert rules["connect-src"] == rules["form-action"] == "'self'"
            assert "unsafe" not in str(rules) and "http" not in str(rules)
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert headers["Referrer-Policy"] == "same-origin"
            assert headers["Cache-Control"] == "no-store"
            assert "X-XSS-Protection" not in headers
            assert "preload" not in headers.get("Strict-Transport-Security", "")
            assert ("Strict-Transport-Security" in headers) is (policy != "off")


def test_each_page_has_a_nonce_of_its_own_for_its_one_script(made: Service) -> None:
    nonces = set()
    for _ in range(3):
        answer = made.client(ALICE).get("/billing/usage")
        named = NONCE.findall(answer.headers["Content-Security-Policy"])
        scripts = re.findall(r"<script([^>]*)>", answer.text)
        assert scripts == [f' nonce="{named[0]}"']
        assert 'style="' not in answer.text and " on" + "click" not in answer.text
        nonces.add(named[0])
    assert len(nonces) == 3


def test_the_hosts_own_pages_keep_their_policy(made: Service) -> None:
    made.app.add_url_rule("/", view_func=lambda: "host")
    answer = made.client(ALICE).get("/", base_url="https://app.example")
    assert answer.headers["X-XSS-Protection"] == "1; mode=block"
    assert "preload" in answer.headers["Strict-Transport-Security"]
    assert "cdn.jsdelivr.net" in answer.headers["Content-Security-Policy"]


def test_what_the_host_adds_to_every_response_does_not_weaken_ours(made: Service) -> None:
    @made.app.after_request
    def weaken(response: Response) -> Response:
        response.headers["Content-Security-Policy"] = "default-src *"
        response.headers["Cache-Control"] = "public"
        response.headers["X-Host"] = "seen"
        return response

    headers = made.client(ALICE).get("/billing/usage").headers
    assert headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert (headers["Cache-Control"], headers["X-Host"]) == ("no-store", "seen")


# -- the host's looks ------------------------------------------------------------------------------


def test_a_host_puts_its_header_above_every_page(made: Service) -> None:
    own = {"c2meter/dashboard/header.html": '<nav id="host">{{ request.path }}</nav>'}
    made.app.jinja_loader = DictLoader(own)
    for who, path in ((ALICE, "usage"), (OPERATOR, "customers"), (None, "usage")):
        answer = made.client(who).get(f"/billing/{path}")
        assert f'<nav id="host">/billing/{path}</nav>' in answer.text


def test_a_host_replaces_the_page_and_includes_the_report_in_it(made: Service) -> None:
    made.app.jinja_loader = DictLoader(
        {
            "c2meter/dashboard/usage.html": (
                '{% extends "c2meter/dashboard/layout.html" %}'
                "{% block header %}<h6>Acme</h6>{% endblock %}"
                '{% block content %}{% include "c2meter/dashboard/report.html" %}{% endblock %}'
                '{% block scripts %}<script nonce="{{ csp_nonce }}">1</script>{% endblock %}'
            )
        }
    )
    answer = made.client(ALICE).get("/billing/usage")
    assert "<h6>Acme</h6>" in answer.text and "1,234" in answer.text
    (nonce,) = set(NONCE.findall(answer.headers["Content-Security-Policy"]))
    assert f'<script nonce="{nonce}">1</script>' in answer.text


def test_a_host_with_strict_templates_gets_every_page(made: Service) -> None:
    made.app.jinja_env.undefined = StrictUndefined
    exceeded(made, "cus_full")
    for who, path in (
        (ALICE, "usage"),
        ("cus_full", "usage"),
        (OPERATOR, "usage?customer=cus_full"),
        (OPERATOR, "customers"),
        (OPERATOR, "customers?q=nobody"),
    ):
        assert made.client(who).get(f"/billing/{path}").status_code == 200


def test_hostile_names_are_shown_as_text(tmp_path: Path) -> None:
    hostile = "<script>alert('x')</script>\"&{{ 7*7 }}"
    catalogue = {
        "plans": {"starter": {"display_name": hostile}},
        "meters": {
            "verify": {
                "display_name": hostile,
                "event_type": "v",
                "unit": hostile,
                "aggregation": "sum",
                "included": {"starter": 10},
            },
            "calls": {
                "display_name": hostile,
                "event_type": "c",
                "unit": "c",
                "aggregation": "sum",
                "billable": False,
            },
        },
    }
    with service(tmp_path / "instance", C2METER_CATALOGUE=catalogue) as made:
        made.subscribe(ALICE, "starter")
        made.use(ALICE, "verify", 9, "03-10 10:00")
        pages = [
            made.client(ALICE).get("/billing/usage").text,
            made.client(OPERATOR).get("/billing/usage?customer=cus_alice").text,
            made.client(OPERATOR).get("/billing/customers", query_string={"q": hostile}).text,
        ]
    for page in pages:
        assert "<script>" not in page and "alert('x')" not in page
        assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&#34;&amp;{{ 7*7 }}" in page


# -- when things are not well ----------------------------------------------------------------------


def test_a_store_that_is_gone_is_503_on_every_route_and_comes_back(made: Service) -> None:
    away = hide_store(made)
    for who, path in (
        (ALICE, "usage"),
        (OPERATOR, "customers"),
        (OPERATOR, "usage?customer=cus_x"),
    ):
        answer = made.client(who).get(f"/billing/{path}")
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
        assert "cannot be read right now" in answer.text and "<style>" in answer.text
    answer = made.client(ALICE).get("/billing/usage.json")
    assert (answer.status_code, set(answer.get_json())) == (503, {"error"})
    answer = made.client(ALICE).post("/billing/notifications/read", headers=SAME_SITE)
    assert answer.status_code == 503

    away.rename(away.with_suffix(".sqlite"))
    assert "1,234" in made.client(ALICE).get("/billing/usage").text


def test_a_damaged_store_is_503(made: Service) -> None:
    made.metering.store.close()
    Path(made.app.instance_path, "c2meter.sqlite").write_bytes(b"this is no database" * 500)
    assert made.client(ALICE).get("/billing/usage").status_code == 503


def test_a_store_that_cannot_be_written_is_still_read(made: Service) -> None:
    """Days are not added up then, and the numbers are the same."""
    before = made.client(ALICE).get("/billing/usage.json").get_json()
    made.use(BOB, SIGN, 3, "03-10 10:00")
    store: Any = made.metering.store
    with closing(sqlite3.connect(store.path, isolation_level=None)) as rude:
        rude.execute("BEGIN IMMEDIATE")
        assert made.client(ALICE).get("/billing/usage.json").get_json() == before
        assert made.client(BOB).get("/billing/usage").status_code == 200
        rude.execute("ROLLBACK")


def test_the_page_is_there_when_metered_views_are_limited_and_looking_is_not_metered(
    made: Service,
) -> None:
    made.meter.customer_loader(lambda: Customer(request.cookies["who"], plan="starter"))
    view = metered(SIGN, rate_limit="1/minute")(lambda: "signed")
    made.app.add_url_rule("/sign", "sign", view, methods=["POST"])
    client = made.client(ALICE)
    assert [client.post("/sign").status_code for _ in range(3)] == [200, 429, 429]
    recorded = len(made.metering.store.events())
    for _ in range(3):
        assert client.get("/billing/usage").status_code == 200
        assert client.get("/billing/usage.json").status_code == 200
    assert len(made.metering.store.events()) == recorded


def test_no_statement_behind_the_pages_reads_events(made: Service) -> None:
    ran: list[str] = []
    store: Any = made.metering.store
    with store.reading() as connection:
        engine = connection.engine

    def note(conn: Any, cursor: Any, statement: str, *more: Any) -> None:
        ran.append(statement)

    # The one connection that writes is not of the pool, but of the same engine.
    event.listen(engine, "before_cursor_execute", note)
    for who, path in ((ALICE, "usage"), (ALICE, "usage.json"), (OPERATOR, "customers")):
        assert made.client(who).get(f"/billing/{path}").status_code == 200
    event.remove(engine, "before_cursor_execute", note)
    assert any("FROM totals" in statement for statement in ran)
    assert any("INSERT INTO days" in statement for statement in ran)  # the first opening
    assert not [statement for statement in ran if re.search(r"(FROM|JOIN) events\b", statement)]


def test_the_json_is_plain_versioned_json(made: Service) -> None:
    answer = made.client(ALICE).get("/billing/usage.json")
    assert answer.content_type == "application/json"
    found = json.loads(answer.data)
    assert (found["version"], found["customer"]) == (1, ALICE)
    assert found["as_of"] == "2026-03-19T14:05:00+00:00"
    assert ALL_CUSTOMERS not in found.values()
