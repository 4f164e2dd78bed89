"""``MeterMiddleware`` around a bare callable: the same steps as ``@metered``, and nothing else."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import marshmallow
import pytest
from werkzeug.test import EnvironBuilder, run_wsgi_app
from wsgi_rig import ALICE, BOB, WsgiHost, answering, customer_of

from flask_c2meter import Customer, Period, StorageMeasurement, Subscription
from flask_c2meter.errors import CatalogueError, ConfigError, UnknownMeter
from flask_c2meter.jobs import Order
from flask_c2meter.wsgi import MeterMiddleware, Terms

ORIGIN = "https://app.example.com"

SIGN = Terms("sign_operations", rate_limit=False)


def nobody(environ: dict[str, Any]) -> None:
    return None


class TestTheSteps:
    """Each request here is wrong in several ways: the first step that refuses answers."""

    @pytest.fixture
    def ran(self) -> list[str]:
        return []

    @pytest.fixture
    def host(self, new_wsgi_host: Callable[..., WsgiHost], ran: list[str]) -> WsgiHost:
        def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
            ran.append(environ["c2meter.usage"].customer.id)
            return answering()(environ, start_response)  # type: ignore[return-value]

        return new_wsgi_host(
            app, {"POST /sign": Terms("sign_operations", body="json", rate_limit="2/hour")}
        )

    def test_without_a_customer_it_is_401_whatever_else_is_wrong(
        self, host: WsgiHost, ran: list[str]
    ) -> None:
        answer = host.send(who={}, data="not json", headers={"Idempotency-Key": "\x7f"})

        assert (answer.status, answer.json) == ("401 Unauthorized", {"error": "Unauthorized"})
        assert answer.content_type == "application/json"
        assert (ran, host.events()) == ([], [])

    def test_a_bad_body_is_400_even_when_the_limit_is_reached(
        self, host: WsgiHost, ran: list[str]
    ) -> None:
        for _ in range(2):
            assert host.send(json={}).status_code == 200

        answer = host.send(json=[])

        assert (answer.status_code, answer.json) == (400, {"error": "Invalid request body"})
        assert len(ran) == 2

    def test_over_the_limit_it_is_429_and_the_app_does_not_run(
        self, host: WsgiHost, ran: list[str]
    ) -> None:
        answers = [host.send(json={}) for _ in range(3)]

        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert answers[2].json == {"error": "Rate limit exceeded"}
        assert [a.headers["X-RateLimit-Remaining"] for a in answers] == ["1", "0", "0"]
        assert 0 < int(answers[2].headers["Retry-After"]) <= 3600
        assert "Retry-After" not in answers[1].headers
        assert len(ran) == len(host.events()) == 2

    def test_a_limit_counts_per_customer_and_user(self, host: WsgiHost) -> None:
        for _ in range(2):
            host.send(json={})
        assert host.send(json={}).status_code == 429
        assert host.send(json={}, headers={"X-User": "second"}).status_code == 200
        assert host.send(json={}, who=BOB).status_code == 200

    def test_over_the_plan_it_is_402_where_that_is_enforced(
        self, new_wsgi_host: Callable[..., WsgiHost]
    ) -> None:
        terms = Terms("sign_operations", enforce="block", value=199, rate_limit=False)
        host = new_wsgi_host(meters={"POST /sign": terms})
        answers = [host.send() for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 402]
        assert answers[2].json == {"error": "Usage limit exceeded"}

    def test_an_id_that_no_customer_can_have_is_400(
        self, new_wsgi_host: Callable[..., WsgiHost]
    ) -> None:
        host = new_wsgi_host(customer=lambda environ: environ["HTTP_AUTHORIZATION"])
        answer = host.send(who={"Authorization": "cus_alice; cus_bob"})
        assert answer.status_code == 400
        assert "no Stripe customer id" in answer.get_json()["fields"]["customer"]

    def test_an_id_alone_will_do(self, new_wsgi_host: Callable[..., WsgiHost]) -> None:
        host = new_wsgi_host(customer=lambda environ: environ.get("HTTP_AUTHORIZATION", ""))
        assert [host.send().status_code, host.send(who={}).status_code] == [200, 401]
        assert host.event().customer == "cus_alice"

    def test_anything_else_is_told_to_the_developer(
        self, new_wsgi_host: Callable[..., WsgiHost]
    ) -> None:
        host = new_wsgi_host(customer=lambda environ: 42)
        with pytest.raises(RuntimeError, match="returned int"):
            host.send()

    def test_the_event_is_committed_before_the_response_leaves(
        self, wsgi_host: WsgiHost, tmp_path: Path
    ) -> None:
        rows: list[int] = []

        def start_response(*args: Any) -> Any:
            database = sqlite3.connect(tmp_path / "wsgi-0" / "c2meter.sqlite")
            rows.extend(database.execute("SELECT count(*) FROM events").fetchone())
            database.close()
            return lambda chunk: None

        environ = EnvironBuilder("/sign", method="POST", headers=ALICE).get_environ()
        body = wsgi_host.middleware(environ, start_response)
        assert b"".join(body) == b"done"
        body.close()  # type: ignore[attr-defined]
        assert rows == [1]


class TestWhatIsMetered:
    def test_other_paths_and_methods_pass_without_a_customer(
        self, new_wsgi_host: Callable[..., WsgiHost]
    ) -> None:
        host = new_wsgi_host(meters={"POST /sign": SIGN}, customer=nobody)
        for method, path in (("GET", "/sign"), ("POST", "/sign/1"), ("POST", "/")):
            assert host.send(method, path).text == "done"
        assert host.events() == []

    def test_a_whole_app_in_one_line(self, new_wsgi_host: Callable[..., WsgiHost]) -> None:
        host = new_wsgi_host(meters={"* /*": "api_calls"})
        for method, path in (("GET", "/"), ("PUT", "/a/b"), ("DELETE", "/a%20b"), ("HEAD", "/")):
            assert host.send(method, path).status_code == 200
        assert host.total("api_calls") == 3

    def test_but_for_what_has_a_line_of_none(self, new_wsgi_host: Callable[..., WsgiHost]) -> None:
        host = new_wsgi_host(meters={"* /*": "api_calls", "GET /health": None})
        assert host.send("GET", "/health", who={}).status_code == 200
        assert host.send("POST", "/health", who={}).status_code == 401
        assert host.events() == []

    def test_a_path_counts_for_its_most_specific_line_only(
        self, new_wsgi_host: Callable[..., WsgiHost]
    ) -> None:
        host = new_wsgi_host(
            meters={"* /*": "api_calls", "POST /sites/<site>/sign": "sign_operations"}
        )
        assert host.send("POST", "/sites/a.example/sign").status_code == 200
        assert [event.meter for event in host.events()] == ["sign_operations"]

    def test_below_a_mount_point_the_path_is_the_apps_own(self, wsgi_host: WsgiHost) -> None:
        assert wsgi_host.send(base_url="http://localhost/mounted/here").status_code == 200
        assert wsgi_host.total("sign_operations") == 1

    @pytest.mark.parametrize("status", ["200 OK", "201 Created", "204 No Content", "299 Odd"])
    def test_success_is_billed(self, new_wsgi_host: Callable[..., WsgiHost], status: str) -> None:
        host = new_wsgi_host(answering(status=status))
        assert host.send().status_code == int(status[:3])
        assert len(host.events()) == 1

    @pytest.mark.parametrize("status", ["304 Not Modified", "302 Found", "404 Not Found", "500 Oh"])
    def test_other_statuses_are_not(
        self, new_wsgi_host: Callable[..., WsgiHost], status: str
    ) -> None:
        host = new_wsgi_host(answering(status=status))
        assert host.send().status_code == int(status[:3])
        assert host.events() == []

    @pytest.mark.parametrize("method", ["HEAD", "OPTIONS"])
    def test_neither_are_head_and_options(self, wsgi_host: WsgiHost, method: str) -> None:
        assert wsgi_host.send(method, who={}).status_code == 401
        assert wsgi_host.send(method).status_code == 200
        assert wsgi_host.events() == []

    @pytest.mark.filterwarnings("ignore:Unknown REQUEST_METHOD")
    def test_a_method_in_small_letters_is_the_same(self, wsgi_host: WsgiHost) -> None:
        """Some servers pass it on, and frameworks take it."""
        for method in ("post", "Head", "options"):
            environ = EnvironBuilder("/sign", headers=ALICE).get_environ()
            environ["REQUEST_METHOD"] = method
            run_wsgi_app(wsgi_host.middleware, environ, buffered=True)
        assert len(wsgi_host.events()) == 1

    def test_nor_is_an_app_that_fails(self, new_wsgi_host: Callable[..., WsgiHost]) -> None:
        def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
            start_response("200 OK", [("Content-Type", "text/plain")])
            raise ZeroDivisionError

        host = new_wsgi_host(app)
        with pytest.raises(ZeroDivisionError):
            host.send()
        assert host.events() == []

    def test_the_request_id_is_kept(self, wsgi_host: WsgiHost) -> None:
        wsgi_host.send(headers={"X-Request-ID": "r-7"})
        assert wsgi_host.event().request_id == "r-7"


class TestWhatTheAppSays:
    def said(
        self, new_wsgi_host: Callable[..., WsgiHost], say: Callable[[Any], object]
    ) -> WsgiHost:
        def app(environ: dict[str, Any], start_response: Any) -> Any:
            say(environ["c2meter.usage"])
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [b""]

        host = new_wsgi_host(app)
        assert host.send().status_code == 200
        return host

    def test_properties_and_value(self, new_wsgi_host: Callable[..., WsgiHost]) -> None:
        def say(usage: Any) -> None:
            usage.update(manifest_id="m-9", asset_type="image")
            usage.value = 3

        event = self.said(new_wsgi_host, say).event()
        assert (event.value, event.flags) == (3, ())
        assert event.properties == {"manifest_id": "m-9", "asset_type": "image"}

    def test_cancelled_is_not_billed(self, new_wsgi_host: Callable[..., WsgiHost]) -> None:
        assert self.said(new_wsgi_host, lambda usage: usage.cancel()).events() == []

    def test_nothing_is_billed_too_and_flagged(
        self, new_wsgi_host: Callable[..., WsgiHost]
    ) -> None:
        host = self.said(new_wsgi_host, lambda usage: None)
        assert host.event().flags == ("incomplete",)
        assert host.rejections == ["incomplete"]

    def test_terms_may_say_it_of_the_response(self, new_wsgi_host: Callable[..., WsgiHost]) -> None:
        terms = Terms(
            "sign_operations",
            rate_limit=False,
            value=lambda reply: int(dict(reply.headers)["X-Pages"]),
            properties=lambda reply: {"manifest_id": reply.environ["QUERY_STRING"]},
            bill_on=lambda reply: reply.status == 202,
        )
        app = answering(status="202 Accepted", headers=[("X-Pages", "7")])
        host = new_wsgi_host(app, {"POST /sign": terms})
        host.send(query_string="m-2")
        assert host.event().value == 7

    def test_a_failed_verification_is_not_billed(
        self, new_wsgi_host: Callable[..., WsgiHost]
    ) -> None:
        terms = Terms("verify_operations", properties={"verification_result": False})
        host = new_wsgi_host(meters={"POST /sign": terms})
        assert host.send().status_code == 200
        assert host.events() == []

    def test_a_body_may_have_32_levels_and_no_more(
        self, new_wsgi_host: Callable[..., WsgiHost]
    ) -> None:
        host = new_wsgi_host(meters={"POST /sign": Terms("api_calls", body="json")})
        for levels, status in ((32, 200), (33, 400)):
            body = '{"a":' * levels + "1" + "}" * levels
            answer = host.send(data=body, content_type="application/json")
            assert answer.status_code == status
        assert answer.json == {"error": "Invalid request body"}
        assert len(host.events()) == 1

    def test_a_validated_body_is_handed_over(self, new_wsgi_host: Callable[..., WsgiHost]) -> None:
        class Site(marshmallow.Schema):
            domain = marshmallow.fields.String(required=True)
            pages = marshmallow.fields.Integer(load_default=1)

        def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
            start_response("200 OK", [("Content-Type", "application/json")])
            sent = json.loads(environ["wsgi.input"].read(100))
            return [json.dumps([sent, environ["c2meter.body"]]).encode()]

        host = new_wsgi_host(app, {"POST /sign": Terms("api_calls", body=Site)})
        assert host.send(json={"domain": "a"}).json == [
            {"domain": "a"},
            {"domain": "a", "pages": 1},
        ]
        refused = host.send(json={"pages": "many"})
        assert refused.status_code == 400
        assert refused.get_json()["fields"]["pages"] == ["Not a valid integer."]


class TestIdempotency:
    @pytest.fixture
    def host(self, new_wsgi_host: Callable[..., WsgiHost]) -> WsgiHost:
        def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
            size = int(environ.get("CONTENT_LENGTH") or 0)
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [environ["wsgi.input"].read(size)]

        return new_wsgi_host(app, MAX_CONTENT_LENGTH="3000000")

    def keyed(self, host: WsgiHost, **more: Any) -> Any:
        return host.send(headers={"Idempotency-Key": "key-1"}, **more)

    def test_a_repeated_request_runs_again_and_counts_once(self, host: WsgiHost) -> None:
        for _ in range(3):
            assert self.keyed(host, data=b"image").data == b"image"
        assert host.event().key == "key-1"

    @pytest.mark.parametrize("change", [{"data": b"other"}, {"query_string": "a=1"}])
    def test_the_key_of_another_request_is_409(
        self, host: WsgiHost, change: dict[str, Any]
    ) -> None:
        self.keyed(host, data=b"image")
        answer = self.keyed(host, **{"data": b"image", **change})
        assert answer.status_code == 409
        assert "use a new key" in answer.get_json()["error"]
        assert len(host.events()) == 1

    def test_large_bodies_are_told_apart_and_handed_on_whole(self, host: WsgiHost) -> None:
        body = os.urandom(2_500_000)
        assert self.keyed(host, data=body).data == body
        assert self.keyed(host, data=body[:-1] + b"\0").status_code in (200, 409)
        assert self.keyed(host, data=body).data == body
        assert len(host.events()) == 1

    def test_a_body_over_the_hosts_limit_is_413(self, host: WsgiHost) -> None:
        answer = self.keyed(host, data=b"x" * 3_000_001)
        assert (answer.status_code, answer.json) == (413, {"error": "Request body too large"})

    def test_a_key_that_cannot_be_kept_is_400(self, host: WsgiHost) -> None:
        assert host.send(headers={"Idempotency-Key": "x" * 256}).status_code == 400

    def test_without_a_key_the_apps_input_is_the_servers(self, tmp_path: Path) -> None:
        sources: list[object] = []

        def app(environ: dict[str, Any], start_response: Any) -> Any:
            sources.append(environ["wsgi.input"])
            return answering()(environ, start_response)

        meters = {"POST /": "api_calls"}
        host = WsgiHost(MeterMiddleware(app, meters, customer_of, {}, instance_path=tmp_path))
        environ = EnvironBuilder("/", method="POST", headers=ALICE, data=b"x").get_environ()
        run_wsgi_app(host.middleware, environ)
        assert sources == [environ["wsgi.input"]]
        assert len(host.events()) == 1
        host.close()


class TestHeaders:
    def test_security_headers_are_on_every_answer(
        self, new_wsgi_host: Callable[..., WsgiHost]
    ) -> None:
        host = new_wsgi_host(C2METER_SECURITY_HEADERS="strict")
        for answer in (host.send(), host.send(who={}), host.send("GET", "/elsewhere")):
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert answer.headers.getlist("Vary") == ["Origin"]
            assert "Strict-Transport-Security" not in answer.headers
        secure = host.send(base_url="https://localhost")
        assert "max-age" in secure.headers["Strict-Transport-Security"]

    def test_what_the_app_has_set_stays(self, new_wsgi_host: Callable[..., WsgiHost]) -> None:
        own = [("x-frame-options", "SAMEORIGIN"), ("vary", "Cookie"), ("x-ratelimit-limit", "9")]
        host = new_wsgi_host(answering(headers=own), {"* /sign": "sign_operations"})
        headers = host.send().headers
        assert headers.getlist("X-Frame-Options") == ["SAMEORIGIN"]
        assert headers.getlist("Vary") == ["Cookie, Origin"]
        assert headers.getlist("X-RateLimit-Limit") == ["9"]

    def test_off_means_none(self, new_wsgi_host: Callable[..., WsgiHost]) -> None:
        host = new_wsgi_host(C2METER_SECURITY_HEADERS="off")
        assert {name for name, _ in host.send("GET", "/elsewhere").headers} == {"Content-Type"}

    def test_cors_for_listed_origins_and_their_preflights(
        self, new_wsgi_host: Callable[..., WsgiHost]
    ) -> None:
        host = new_wsgi_host(C2METER_CORS_ORIGINS=[ORIGIN])
        asked = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST"}

        preflight = host.send("OPTIONS", who={}, headers=asked)
        refused = host.send(who={}, headers={"Origin": ORIGIN})
        foreign = host.send(headers={"Origin": "https://evil.example"})

        assert (preflight.status_code, preflight.data) == (200, b"")
        assert "POST" in preflight.headers["Access-Control-Allow-Methods"]
        assert refused.status_code == 401
        assert refused.headers["Access-Control-Allow-Origin"] == ORIGIN
        assert "Access-Control-Allow-Origin" not in foreign.headers

    def test_a_foreign_preflight_reaches_the_app_unmetered(
        self, new_wsgi_host: Callable[..., WsgiHost]
    ) -> None:
        def app(environ: dict[str, Any], start_response: Any) -> Any:
            assert environ["c2meter.usage"].customer is None
            return answering(b"own CORS rules")(environ, start_response)

        host = new_wsgi_host(app)
        asked = {"Origin": "https://other.example", "Access-Control-Request-Method": "POST"}
        assert host.send("OPTIONS", who={}, headers=asked).text == "own CORS rules"
        assert host.events() == []


class TestWhileTheStoreIsOutOfOrder:
    def test_usage_is_spilled_and_the_app_goes_on(self, wsgi_host: WsgiHost) -> None:
        wsgi_host.send()
        file = Path(wsgi_host.metering.config.database_url.removeprefix("sqlite:///"))
        away = file.rename(file.with_suffix(".away"))
        assert wsgi_host.send().status_code == 200
        assert not wsgi_host.metering.spill.is_empty
        away.rename(file)

    def test_or_billable_work_is_refused(self, new_wsgi_host: Callable[..., WsgiHost]) -> None:
        ran: list[str] = []

        def app(environ: dict[str, Any], start_response: Any) -> Any:
            ran.append(environ["PATH_INFO"])
            return answering()(environ, start_response)

        host = new_wsgi_host(app, C2METER_ON_STORE_FAILURE="refuse")
        host.send()
        file = Path(host.metering.config.database_url.removeprefix("sqlite:///"))
        away = file.rename(file.with_suffix(".away"))
        first, second = host.send(), host.send()
        away.rename(file)

        assert [first.status_code, second.status_code] == [503, 503]
        assert first.json == {"error": "Usage cannot be recorded right now"}
        assert first.headers["Retry-After"] == "1"
        assert len(ran) == 2  # the last one was refused before its work


class TestConstruction:
    def make(self, meters: Any, customer: Any = nobody, config: Any = None, **more: Any) -> Any:
        return MeterMiddleware(answering(), meters, customer, config or {}, **more)

    @pytest.mark.parametrize(
        ("meters", "error", "cure"),
        [
            ({}, ConfigError, "write {'POST /verify'"),
            ("verify_operations", ConfigError, "write {'POST /verify'"),
            ({"POST /v": "verify"}, UnknownMeter, r"meters\['POST /v'\].*verify_operations"),
            ({"POST /v": 7}, TypeError, "name the meter"),
            ({"/v": "api_calls"}, ConfigError, "a method and a path"),
            ({"GET /<a>": "api_calls", "GET /<b>": "api_calls"}, ConfigError, "remove one"),
            ({"GET /": Terms("api_calls", properties={"x": 1})}, ConfigError, r"meters\['GET /'\]"),
            ({"GET /": Terms("api_calls", value="0.5")}, ConfigError, r"meters\['GET /'\]"),
        ],
    )
    def test_a_wrong_line_fails_with_its_cure(
        self, meters: Any, error: type[Exception], cure: str
    ) -> None:
        with pytest.raises(error, match=cure):
            self.make(meters)

    @pytest.mark.parametrize(
        ("config", "error"),
        [
            ({"C2METER_WORKER": "on"}, ConfigError),
            ({"C2METER_WORKERS": "off"}, ConfigError),
            ({"C2METER_CATALOGUE": {"meters": 7}}, CatalogueError),
            ({"RATELIMIT_STORAGE_URI": "nosuch://x"}, ConfigError),
            ({"RATELIMIT_ENABLED": "perhaps"}, ConfigError),
            ({"MAX_CONTENT_LENGTH": "1 MB"}, ConfigError),
        ],
    )
    def test_so_does_a_wrong_key(self, config: Any, error: type[Exception]) -> None:
        with (
            pytest.raises(error, match=next(iter(config)))
            if error is ConfigError
            else (pytest.raises(error))
        ):
            self.make({"GET /": "api_calls"}, config=config)

    def test_and_a_customer_that_is_no_function(self) -> None:
        with pytest.raises(ConfigError, match="customer='cus_1' is not callable"):
            self.make({"GET /": "api_calls"}, customer="cus_1")

    def test_by_default_everything_is_in_the_environment_and_the_folder_instance(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("C2METER_WORKER", "off")
        monkeypatch.setenv("C2METER_DURABILITY", "relaxed")
        made = MeterMiddleware(answering(), {"GET /": "api_calls"}, nobody)
        assert made.metering.config.durability == "relaxed"
        assert made.metering.config.spill_path == tmp_path / "instance" / "c2meter.spill"
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_stays_where_it_was_when_the_process_moves(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        made = self.make({"GET /": "api_calls"}, instance_path="data")
        assert made.metering.config.spill_path == tmp_path / "data" / "c2meter.spill"

    def test_it_starts_no_thread_and_opens_nothing(self, tmp_path: Path) -> None:
        threads = set(threading.enumerate())
        self.make({"GET /": "api_calls"}, instance_path=tmp_path / "instance")
        assert set(threading.enumerate()) <= threads
        assert list(tmp_path.iterdir()) == []


def test_usage_by_hand_and_signals(wsgi_host: WsgiHost, captured_usage: list[Any]) -> None:
    wsgi_host.metering.record("active_sites", Customer("cus_alice"), domain="a.example")
    wsgi_host.send()
    assert [event.meter for event in captured_usage] == ["active_sites", "sign_operations"]


def test_the_worker_asks_the_hosts_own_functions(
    new_wsgi_host: Callable[..., WsgiHost],
) -> None:
    asked: list[str] = []
    mails: list[Any] = []
    was_asked = threading.Event()

    def subscription_of(customer_id: str) -> Subscription:
        asked.append(customer_id)
        was_asked.set()
        return Subscription("growth", Period.month_of(datetime.now(UTC)))

    host = new_wsgi_host(
        C2METER_STORAGE_SCHEDULE="59 23 * * *",  # not by the worker meanwhile
        hooks={
            "subscription_loader": subscription_of,
            "storage_loader": lambda: [StorageMeasurement("cus_alice", storage_gb=1)],
            "mail_sender": mails.append,
        },
    )
    host.send()
    assert was_asked.wait(30)
    assert set(asked) == {"cus_alice"}

    job = host.metering.storage_job
    run = job.begin(Order(job.today))
    assert run is not None
    while not run.is_over:
        run.step()
    assert host.total("storage_gb") == 1

    host.metering.record("api_calls", Customer("cus_bob", email="bob@customer.example"))
    assert host.metering.test_alert("cus_bob")["email"] is None
    assert [mail.to for mail in mails] == ["bob@customer.example"]


def test_nothing_beneath_it_loads_flask(tmp_path: Path) -> None:
    """The package's own front door does; whoever needs it not to may go round."""
    script = """
import importlib.machinery, importlib.util, pathlib, sys, types
found = importlib.util.find_spec("flask_c2meter")
package = types.ModuleType("flask_c2meter")
package.__path__ = list(found.submodule_search_locations)
sys.modules["flask_c2meter"] = package
import flask_c2meter.wsgi
print(sorted({"flask", "flask_limiter", "werkzeug", "stripe"} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")
