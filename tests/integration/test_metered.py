"""``@metered``: 401, 400, 429, the view, the record, the response; and whatever views may do."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import marshmallow
import pytest
from flask import (
    Blueprint,
    Flask,
    Response,
    abort,
    current_app,
    g,
    jsonify,
    redirect,
    request,
    send_file,
    stream_with_context,
)
from flask.views import MethodView
from flask_host import ALICE, BOB, Host, load_customer
from werkzeug.exceptions import HTTPException
from werkzeug.test import EnvironBuilder, run_wsgi_app

from flask_c2meter import (
    C2Meter,
    Customer,
    current_customer,
    current_metering,
    current_usage,
    metered,
)
from flask_c2meter.errors import ConfigError, StoreUnavailable


def done() -> dict[str, bool]:
    current_usage.update(manifest_id="m-1")
    return {"ok": True}


class TestTheSteps:
    """Each request here is wrong in several ways: the first step that refuses answers."""

    @pytest.fixture
    def ran(self) -> list[str]:
        return []

    @pytest.fixture
    def host(self, host: Host, ran: list[str]) -> Host:
        def view() -> dict[str, bool]:
            ran.append(str(current_customer.id))
            return {"ok": True}

        host.route(view, body="json", rate_limit="2/hour")
        return host

    def test_without_a_customer_it_is_401_whatever_else_is_wrong(
        self, host: Host, ran: list[str]
    ) -> None:
        answer = host.client({}).post("/", data="not json", headers={"Idempotency-Key": "\x7f"})

        assert (answer.status_code, answer.json) == (401, {"error": "Unauthorized"})
        assert ran == []
        assert host.events() == []

    @pytest.mark.parametrize("id", ["../x", "cus 1", "ü", "c" * 256])
    def test_an_id_that_no_customer_can_have_is_400(
        self, host: Host, ran: list[str], id: str
    ) -> None:
        answer = host.client({}).post("/", json={}, headers={"Authorization": id})

        assert answer.status_code == 400
        assert answer.json is not None and answer.json["error"] == "Invalid request"
        assert set(answer.json["fields"]) == {"customer"}
        assert ran == []
        assert host.events() == []

    @pytest.mark.parametrize("error", [ValueError, KeyError, StoreUnavailable])
    def test_what_else_the_loader_raises_is_the_hosts(
        self, host: Host, error: type[Exception]
    ) -> None:
        def load() -> Customer:
            raise error("of the host's own")

        host.app.testing = True
        host.meter.customer_loader(load)
        with pytest.raises(error, match="of the host's own"):
            host.client().post("/", json={})

    def test_a_bad_body_is_400_even_when_the_limit_is_reached(
        self, host: Host, ran: list[str]
    ) -> None:
        client = host.client()
        for _ in range(2):
            assert client.post("/", json={}).status_code == 200

        answer = client.post("/", json=[])

        assert (answer.status_code, answer.json) == (400, {"error": "Invalid request body"})
        assert len(ran) == 2

    def test_over_the_limit_it_is_429_and_the_view_does_not_run(
        self, host: Host, ran: list[str]
    ) -> None:
        client = host.client()
        for _ in range(2):
            client.post("/", json={})

        answer = client.post("/", json={})

        assert (answer.status_code, answer.json) == (429, {"error": "Rate limit exceeded"})
        assert len(ran) == len(host.events()) == 2

    def test_refused_requests_take_nothing_of_the_limit(self, host: Host) -> None:
        client = host.client()
        for _ in range(5):
            assert host.client({}).post("/", json={}).status_code == 401
            assert client.post("/", json=[]).status_code == 400
        assert [client.post("/", json={}).status_code for _ in range(3)] == [200, 200, 429]

    def test_the_event_is_committed_before_the_response_leaves(
        self, host: Host, tmp_path: Path
    ) -> None:
        rows: list[int] = []

        def leaving(environ: Any, start_response: Any) -> Any:
            def start(*args: Any) -> Any:
                database = sqlite3.connect(tmp_path / "instance-0" / "c2meter.sqlite")
                rows.extend(database.execute("SELECT count(*) FROM events").fetchone())
                database.close()
                return start_response(*args)

            return wrapped(environ, start)

        wrapped = host.app.wsgi_app
        host.app.wsgi_app = leaving  # type: ignore[method-assign]

        assert host.client().post("/", json={}).status_code == 200
        assert rows == [1]


class TestRateLimits:
    def test_200_and_429_carry_the_limits_headers(self, host: Host) -> None:
        host.route(done, rate_limit="1/hour")
        client = host.client()

        first, second = client.get("/"), client.get("/")

        assert (first.status_code, second.status_code) == (200, 429)
        for answer in (first, second):
            assert answer.headers["X-RateLimit-Limit"] == "1"
            assert answer.headers["X-RateLimit-Remaining"] == "0"
            assert int(answer.headers["X-RateLimit-Reset"]) > 0
        assert "Retry-After" not in first.headers
        assert 0 < int(second.headers["Retry-After"]) <= 3600

    @pytest.mark.parametrize(
        ("meter", "limit"), [("verify_operations", "100"), ("sign_operations", "50")]
    )
    def test_by_default_the_catalogues_limit_holds(
        self, host: Host, meter: str, limit: str
    ) -> None:
        host.route(done, meter, rate_limit=None)
        assert host.client().get("/").headers["X-RateLimit-Limit"] == limit

    def test_a_meter_without_a_limit_and_rate_limit_false_are_unlimited(self, host: Host) -> None:
        host.route(lambda: "", "api_calls", "/calls", rate_limit=None)
        host.route(done, rate_limit=False)
        client = host.client()

        answers = [client.get("/") for _ in range(60)] + [client.get("/calls")]

        assert {answer.status_code for answer in answers} == {200}
        assert not any("X-RateLimit-Limit" in answer.headers for answer in answers)

    def test_a_limit_counts_per_customer_and_user_and_per_meter(self, host: Host) -> None:
        host.route(done, "sign_operations", "/sign", rate_limit="1/hour")
        host.route(done, "verify_operations", "/verify", rate_limit="1/hour")

        def status(path: str, **headers: str) -> int:
            return host.client(headers).get(path).status_code

        assert status("/sign", **ALICE) == 200
        assert status("/sign", **ALICE) == 429
        assert status("/sign", **ALICE, X_User="second") == 200
        assert status("/sign", **BOB) == 200
        assert status("/verify", **ALICE) == 200

    def test_what_the_view_says_about_limits_stays(self, host: Host) -> None:
        host.route(lambda: ("", 200, {"x-ratelimit-limit": "mine"}), rate_limit="9/hour")
        headers = host.client().get("/").headers
        assert headers.getlist("X-RateLimit-Limit") == ["mine"]

    @pytest.mark.parametrize("rule", ["often", "", "100 per fortnight", "-1/minute"])
    def test_a_rule_that_cannot_be_read_fails_when_the_view_is_decorated(self, rule: str) -> None:
        with pytest.raises(ConfigError, match="100 per minute"):
            metered("verify_operations", rate_limit=rule)


class TestBody:
    @pytest.mark.parametrize(
        "sent",
        [
            pytest.param({"data": "{}"}, id="not declared as JSON"),
            pytest.param({"data": "{", "content_type": "application/json"}, id="broken"),
            pytest.param({"data": "", "content_type": "application/json"}, id="empty"),
            pytest.param({"json": []}, id="a list"),
            pytest.param({"json": "text"}, id="a string"),
            pytest.param({"json": None}, id="null"),
            pytest.param({"data": b"\xff\xfe{}", "content_type": "application/json"}, id="not UTF"),
            pytest.param(
                {"data": '{"a":' + "[" * 100_000, "content_type": "application/json"}, id="deep"
            ),
            pytest.param(
                {"data": '{"a":' * 40 + "1" + "}" * 40, "content_type": "application/json"},
                id="40 levels",
            ),
            pytest.param(
                {"data": '{"a":' + "9" * 10_000 + "}", "content_type": "application/json"},
                id="a huge number",
            ),
        ],
    )
    def test_json_must_be_an_object(self, host: Host, sent: dict[str, Any]) -> None:
        host.route(done, body="json")

        answer = host.client().post("/", **sent)

        assert (answer.status_code, answer.json) == (400, {"error": "Invalid request body"})
        assert host.events() == []

    def test_it_may_have_32_levels_and_no_more(self, host: Host) -> None:
        class Tree(marshmallow.Schema):
            a = marshmallow.fields.Raw()

        host.route(done, body="json")
        host.route(done, path="/tree", body=Tree)
        for path in ("/", "/tree"):
            for levels, status in ((32, 200), (33, 400)):
                body = '{"a":' * levels + "1" + "}" * levels
                answer = host.client().post(path, data=body, content_type="application/json")
                assert answer.status_code == status
        assert len(host.events()) == 2

    def test_a_schema_class_validates_and_hands_over_the_result(self, host: Host) -> None:
        class Site(marshmallow.Schema):
            domain = marshmallow.fields.String(required=True)
            pages = marshmallow.fields.Integer(load_default=1)

        host.route(lambda: jsonify(g.c2meter_body), body=Site)
        client = host.client()

        assert client.post("/", json={"domain": "a.example"}).json == {
            "domain": "a.example",
            "pages": 1,
        }
        refused = client.post("/", json={"pages": "many", "colour": "red"})
        assert refused.status_code == 400
        assert refused.json == {
            "error": "Invalid request body",
            "fields": {
                "domain": ["Missing data for required field."],
                "pages": ["Not a valid integer."],
                "colour": ["Unknown field."],
            },
        }
        assert len(host.events()) == 1

    @pytest.mark.parametrize("body", ["xml", "", dict, marshmallow.Schema(), True])
    def test_anything_else_is_refused_when_the_view_is_decorated(self, body: Any) -> None:
        with pytest.raises(ValueError, match="neither 'json' nor a marshmallow Schema class"):
            metered("verify_operations", body=body)


class TestArguments:
    def test_a_constant_value(self, host: Host) -> None:
        host.route(done, value=3)
        host.client().get("/")
        assert host.event().value == 3

    def test_a_value_taken_from_the_response(self, host: Host) -> None:
        host.route(lambda: {"pages": [1, 2, 3, 4]}, value=lambda r: len(r.get_json()["pages"]))
        host.client().get("/")
        assert host.event().value == 4

    def test_the_views_value_wins(self, host: Host) -> None:
        def view() -> str:
            current_usage.value = 5
            return ""

        host.route(view, value=lambda response: 1)
        host.client().get("/")
        assert host.event().value == 5

    def test_constant_properties_below_those_of_the_view(self, host: Host) -> None:
        def view() -> str:
            current_usage.update(asset_type="video")
            return ""

        host.route(view, properties={"manifest_id": "m-9", "asset_type": "image"})
        host.client().get("/")
        assert host.event().properties == {"manifest_id": "m-9", "asset_type": "video"}

    def test_properties_taken_from_the_response(self, host: Host) -> None:
        host.route(lambda: {"id": "m-7"}, properties=lambda r: {"manifest_id": r.get_json()["id"]})
        host.client().get("/")
        assert host.event().properties == {"manifest_id": "m-7"}

    def test_a_cancelled_operation_is_not_billed(self, host: Host) -> None:
        def view() -> str:
            current_usage.cancel()
            return "free of charge"

        host.route(view)
        assert host.client().get("/").text == "free of charge"
        assert host.events() == []

    @pytest.mark.parametrize(("wanted", "billed"), [(True, 1), (False, 0)])
    def test_bill_on_decides_instead_of_status_and_filter(
        self, host: Host, wanted: bool, billed: int
    ) -> None:
        def view() -> tuple[str, int]:
            current_usage.update(manifest_id="m-1", verification_result=False)
            return "", 404 if wanted else 200

        host.route(view, "verify_operations", bill_on=lambda response: wanted)
        host.client().get("/")
        assert len(host.events()) == billed

    @pytest.mark.parametrize(("result", "billed"), [(True, 1), (False, 0)])
    def test_if_bill_on_fails_status_and_filter_decide(
        self, host: Host, result: bool, billed: int
    ) -> None:
        def view() -> str:
            current_usage.update(manifest_id="m-1", verification_result=result)
            return ""

        host.route(view, "verify_operations", bill_on=lambda response: 1 / 0 > 0)
        assert host.client().get("/").status_code == 200
        assert len(host.events()) == billed

    def test_enforce_allow_is_what_happens_anyway(self, new_host: Callable[..., Host]) -> None:
        host = new_host()
        host.route(done, enforce="allow", value=201)
        assert host.client().get("/").status_code == 200
        assert host.total("sign_operations") == 201

    def test_enforce_block_refuses_what_is_over_the_plan(
        self, new_host: Callable[..., Host]
    ) -> None:
        host = new_host()
        host.route(done, enforce="block", value=199)
        host.route(done, path="/free", enforce="allow")
        client = host.client()
        assert [client.get("/").status_code for _ in range(3)] == [200, 200, 402]
        assert client.get("/").get_json() == {"error": "Usage limit exceeded"}
        assert client.get("/free").status_code == 200
        assert host.total("sign_operations") == 399

    def test_enforce_block_blocks_nobody_while_usage_cannot_be_read(self, host: Host) -> None:
        host.route(done, enforce="block", value=300)
        client = host.client()
        assert client.get("/").status_code == 200
        assert client.get("/").status_code == 402
        file = Path(host.metering.config.database_url.removeprefix("sqlite:///"))
        file.rename(file.with_suffix(".away"))
        host.metering.store.close()
        assert client.get("/").status_code == 200

    @pytest.mark.parametrize("enforce", ["deny", True])
    def test_enforce_is_allow_or_block(self, enforce: Any) -> None:
        with pytest.raises(ValueError, match=r"enforce=.* is neither 'allow' nor 'block'"):
            metered("verify_operations", enforce=enforce)

    @pytest.mark.parametrize("value", [True, 1.5, -1, "-1", "a", [1]])
    def test_a_constant_value_that_no_meter_takes_is_refused_at_once(self, value: Any) -> None:
        with pytest.raises(ValueError, match="value"):
            metered("verify_operations", value=value)

    @pytest.mark.parametrize("name", ["bill_on", "idempotency_key"])
    def test_functions_must_be_callable(self, name: str) -> None:
        with pytest.raises(ValueError, match=f"{name}='x' is not callable"):
            metered("verify_operations", **{name: "x"})  # type: ignore[arg-type]

    def test_the_parentheses_are_asked_for(self) -> None:
        with pytest.raises(TypeError, match="name the meter"):
            metered(done)  # type: ignore[arg-type]

    def test_properties_that_fail_flag_the_event(self, host: Host) -> None:
        host.route(done, "api_calls", properties=lambda response: {"endpoint": 1 / 0})
        assert host.client().get("/").status_code == 200
        assert host.event().flags == ("incomplete",)
        assert host.rejections == ["incomplete"]
        assert host.metering.status()["meters"]["api_calls"]["incomplete"] == 1

    @pytest.mark.parametrize("properties", ["text", ["manifest_id"], 7])
    def test_properties_must_be_a_mapping_or_a_callable(self, properties: Any) -> None:
        with pytest.raises(ValueError, match="neither a mapping nor a callable"):
            metered("verify_operations", properties=properties)

    @pytest.mark.parametrize("rate_limit", [True, 0, 5, 1.5])
    def test_a_rate_limit_is_a_rule_or_none(self, rate_limit: Any) -> None:
        with pytest.raises(ValueError, match="is no limit; use '100/minute'"):
            metered("verify_operations", rate_limit=rate_limit)

    def test_an_unknown_meter_is_named_before_the_view_runs(self, host: Host) -> None:
        host.app.testing = True
        host.route(lambda: pytest.fail("the view ran"), "verify_operation")
        with pytest.raises(LookupError, match="did you mean 'verify_operations'"):
            host.client().get("/")

    def test_the_request_id_is_kept_if_it_is_fit_to_be(self, host: Host) -> None:
        host.route(done)
        client = host.client()
        for text in ("req-1", "x" * 300):
            assert client.get("/", headers={"X-Request-ID": text}).status_code == 200
        assert [event.request_id for event in host.events()] == ["req-1", None]


class TestWhatIsBilled:
    @pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
    def test_success_is(self, host: Host, status: int) -> None:
        host.route(lambda: ("", status))
        assert host.client().get("/").status_code == status
        assert len(host.events()) == 1

    @pytest.mark.parametrize("status", [300, 302, 304, 400, 404, 410, 500, 503])
    def test_other_statuses_are_not(self, host: Host, status: int) -> None:
        host.route(lambda: ("", status))
        assert host.client().get("/").status_code == status
        assert host.events() == []

    def test_exceptions_are_not(self, host: Host) -> None:
        def view() -> str:
            raise LookupError("the host's own problem")

        host.route(view)
        assert host.client().get("/").status_code == 500
        assert host.events() == []

    def test_nor_are_those_that_an_error_handler_answers_with_200(self, host: Host) -> None:
        host.app.register_error_handler(LookupError, lambda exc: ("never mind", 200))

        def view() -> str:
            raise LookupError

        host.route(view)
        assert host.client().get("/").status_code == 200
        assert host.events() == []

    @pytest.mark.parametrize("refusal", [404, 418, Response("custom", 200)])
    def test_abort_is_not(self, host: Host, refusal: Any) -> None:
        def view() -> None:
            abort(refusal)

        host.route(view)
        host.client().get("/")
        assert host.events() == []

    def test_head_is_not_but_get_is(self, host: Host) -> None:
        host.route(done)
        assert host.client().head("/").status_code == 200
        assert host.events() == []
        host.client().get("/")
        assert len(host.events()) == 1

    def test_a_method_in_small_letters_is_the_same(self, host: Host) -> None:
        """Some servers pass it on, and Flask takes it."""
        host.route(done)
        for method in ("head", "post"):
            environ = EnvironBuilder("/", headers=ALICE).get_environ()
            environ["REQUEST_METHOD"] = method
            run_wsgi_app(host.app, environ, buffered=True)
        assert len(host.events()) == 1

    def test_options_is_not_whoever_answers_it(self, host: Host) -> None:
        host.route(done)
        host.route(done, path="/own", methods=("OPTIONS", "POST"))
        client = host.client()

        assert client.options("/").status_code == 200
        assert client.options("/own").json == {"ok": True}
        assert host.events() == []

    @pytest.mark.parametrize("result", [False, "failed", "pending"])
    def test_a_verification_without_success_is_not(self, host: Host, result: Any) -> None:
        def view() -> dict[str, Any]:
            current_usage.update(manifest_id="m-1", verification_result=result)
            return {"valid": result}

        host.route(view, "verify_operations")
        assert host.client().get("/").json == {"valid": result}
        assert host.events() == []

    @pytest.mark.parametrize("properties", [{}, {"verification_result": True}])
    def test_one_with_success_or_without_a_word_about_it_is(
        self, host: Host, properties: dict[str, Any]
    ) -> None:
        host.route(done, "verify_operations", properties=properties)
        host.client().get("/")
        assert host.event().flags == ()


class TestAfterSuccess:
    """The view has done its work: its response goes out, and its usage is kept and flagged."""

    @pytest.mark.parametrize(
        "properties",
        [
            pytest.param({}, id="required one missing"),
            pytest.param({"manifest_id": "m\x00-1"}, id="control character"),
            pytest.param({"manifest_id": "m" * 101}, id="too long"),
            pytest.param({"manifest_id": 7}, id="wrong type"),
            pytest.param({"manifest_id": "m-1", "colour": "red"}, id="unknown"),
            pytest.param({"manifest_id": "m-1", "file_size_bytes": -1}, id="negative"),
            pytest.param({"manifest_id": "m-1", "file_size_bytes": True}, id="a boolean"),
            pytest.param({"manifest_id": "m-1", "file_size_bytes": float("nan")}, id="NaN"),
            pytest.param({"manifest_id": "\ud800"}, id="lone surrogate"),
        ],
    )
    def test_bad_properties_are_left_out_and_the_event_is_incomplete(
        self, host: Host, properties: dict[str, Any]
    ) -> None:
        def view() -> tuple[str, int]:
            current_usage.update(**properties)
            return "done", 201

        host.route(view, properties=None)

        answer = host.client().post("/")

        assert (answer.status_code, answer.text) == (201, "done")
        event = host.event()
        assert event.flags == ("incomplete",)
        assert event.value == 1
        assert set(event.properties.values()) <= {"m-1"}
        assert host.total("sign_operations") == 1
        assert host.rejections == ["incomplete"]

    def test_the_log_names_what_was_wrong_but_not_what_it_said(
        self, host: Host, caplog: pytest.LogCaptureFixture
    ) -> None:
        def view() -> str:
            current_usage.value = "secret-value"
            current_usage.update(manifest="secret-id", asset_type="secret\ntype")
            return "done"

        host.route(view, properties=None)

        assert host.client().post("/").status_code == 200
        assert caplog.messages[-1] == (
            f"event=usage_flagged meter=sign_operations key={host.event().key} "
            "flags=incomplete,invalid wrong=asset_type,manifest,manifest_id,value"
        )
        assert "secret" not in caplog.text

    @pytest.mark.parametrize(
        "value",
        [
            *(-1, 1.5, float("nan"), float("inf"), True, 10**16, "NaN", "1e3", "-1", "", [], {}),
            *map(Decimal, ("NaN", "sNaN", "Infinity", "1e400", "0.5", "-1")),
        ],
    )
    def test_an_undecidable_value_is_kept_as_0_and_invalid(self, host: Host, value: Any) -> None:
        def view() -> dict[str, bool]:
            current_usage.value = value
            return {"ok": True}

        host.route(view)

        assert host.client().post("/").json == {"ok": True}
        assert (host.event().value, host.event().flags) == (0, ("invalid",))
        assert host.total("sign_operations") == 0
        assert host.rejections == ["invalid"]

    @pytest.mark.parametrize("body", ["-1", "NaN", "Infinity", "1e400", "true", str(10**16)])
    def test_a_value_taken_from_the_request_is_kept_too(self, host: Host, body: str) -> None:
        host.route(done, value=lambda response: request.get_json()["n"], body="json")

        answer = host.client().post("/", data=f'{{"n": {body}}}', content_type="application/json")

        assert answer.status_code == 200
        assert (host.event().value, host.event().flags) == (0, ("invalid",))

    @pytest.mark.parametrize("argument", ["value", "properties", "both"])
    def test_a_callable_that_fails_costs_only_what_it_should_have_said(
        self, host: Host, argument: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fail(response: Response) -> Any:
            raise LookupError("no such thing")

        names = ("value", "properties") if argument == "both" else (argument,)
        host.route(lambda: "done", **dict.fromkeys(names, fail))

        assert host.client().get("/").text == "done"
        assert (
            host.event().flags
            == {
                "value": ("invalid",),
                "properties": ("incomplete",),
                "both": ("incomplete", "invalid"),
            }[argument]
        )
        assert "no such thing" in caplog.text

    @pytest.mark.parametrize("garbage", [None, 7, "text", [("a", 1, 2)]])
    def test_properties_that_are_no_mapping_are_left_out(self, host: Host, garbage: Any) -> None:
        host.route(lambda: "done", properties=lambda response: garbage)
        assert host.client().get("/").text == "done"
        assert host.event().flags == ("incomplete",)

    def test_even_a_replaced_dictionary_does_not_break_the_view(self, host: Host) -> None:
        def view() -> str:
            current_usage.properties = None  # type: ignore[assignment]
            return "done"

        host.route(view)
        assert host.client().get("/").text == "done"
        assert len(host.events()) == 1

    @pytest.mark.parametrize("domain", ["ex ample", "http://a.example/", "10.0.0.1", "", None])
    def test_a_site_without_a_domain_is_not_counted_but_kept(
        self, host: Host, domain: str | None
    ) -> None:
        host.route(lambda: "done", "active_sites", properties={"domain": domain})
        assert host.client().get("/").text == "done"
        assert host.event().flags == ("incomplete", "invalid")
        assert host.total("active_sites") == 0

    def test_storage_adds_up_from_its_parts(self, host: Host) -> None:
        parts = {"evidence_gb": "1.5", "manifest_gb": Decimal("0.25"), "backup_gb": 2}
        host.route(lambda: "", "storage_gb", properties=parts)
        host.client().get("/")
        assert (host.event().value, host.event().units) == (Decimal("3.75"), 3750)


class TestOddResponses:
    @pytest.mark.parametrize(
        ("returned", "body"),
        [
            pytest.param("text", b"text", id="str"),
            pytest.param(b"bytes", b"bytes", id="bytes"),
            pytest.param({"a": 1}, b'{"a":1}\n', id="dict"),
            pytest.param([1, 2], b"[1,2]\n", id="list"),
            pytest.param(("text", 201), b"text", id="with status"),
            pytest.param(("text", {"X-Own": "1"}), b"text", id="with headers"),
            pytest.param(("text", 202, [("X-Own", "1")]), b"text", id="with both"),
            pytest.param(iter(["a", "b"]), b"ab", id="iterator"),
            pytest.param((part for part in ("a", "b")), b"ab", id="generator"),
            pytest.param(Response("own"), b"own", id="Response"),
        ],
    )
    def test_whatever_flask_takes(self, host: Host, returned: Any, body: bytes) -> None:
        host.route(lambda: returned)
        answer = host.client().get("/")
        assert 200 <= answer.status_code < 300
        assert answer.data == body
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert len(host.events()) == 1

    def test_a_stream_keeps_its_context_and_is_recorded_before_its_first_byte(
        self, host: Host
    ) -> None:
        recorded: list[int] = []

        def view() -> Response:
            def parts() -> Iterator[str]:
                recorded.append(len(host.events()))
                yield request.args["word"]
                yield str(current_customer.id)

            return Response(stream_with_context(parts()))

        host.route(view)
        assert host.client().get("/?word=hello-").text == "hello-cus_alice"
        assert recorded == [1]
        assert len(host.events()) == 1

    def test_none_is_flasks_own_error(self, host: Host) -> None:
        host.app.testing = True
        host.route(lambda: None)
        with pytest.raises(TypeError, match="did not return a valid response"):
            host.client().get("/")
        assert host.events() == []

    def test_a_wsgi_callable(self, host: Host) -> None:
        def other(environ: Any, start_response: Any) -> list[bytes]:
            start_response("203 Fine", [("X-Other", "yes")])
            return [b"from elsewhere"]

        host.route(lambda: other)
        answer = host.client().get("/")
        assert (answer.status_code, answer.text) == (203, "from elsewhere")
        assert answer.headers["X-Other"] == "yes"
        assert len(host.events()) == 1

    def test_a_redirect_is_not_billed(self, host: Host) -> None:
        host.route(lambda: redirect("/elsewhere"))
        assert host.client().get("/").location == "/elsewhere"
        assert host.events() == []

    def test_a_file_passed_through_directly(self, host: Host, tmp_path: Path) -> None:
        (tmp_path / "image.png").write_bytes(b"\x89PNG")
        host.route(lambda: send_file(tmp_path / "image.png"), rate_limit="9/hour")
        answer = host.client().get("/")
        assert answer.data == b"\x89PNG"
        assert answer.headers["X-RateLimit-Remaining"] == "8"
        assert len(host.events()) == 1
        answer.close()

    def test_headers_that_the_view_replaced_by_a_plain_dict(self, host: Host) -> None:
        def view() -> Response:
            response = Response("plain")
            response.headers = {"Content-Type": "text/x-own", "x-frame-options": "SAMEORIGIN"}  # type: ignore[assignment]
            return response

        host.route(view, rate_limit="9/hour")
        headers = host.client().get("/").headers
        assert headers["Content-Type"] == "text/x-own"
        assert headers.getlist("X-Frame-Options") == ["SAMEORIGIN"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-RateLimit-Limit"] == "9"
        assert len(host.events()) == 1

    @pytest.mark.parametrize("is_later", [True, False], ids=["later", "earlier"])
    def test_headers_that_an_after_request_replaced_by_a_plain_dict(
        self, new_app: Callable[..., Flask], is_later: bool
    ) -> None:
        def replace(response: Response) -> Response:
            response.headers = dict(response.headers)  # type: ignore[assignment]
            return response

        app, meter = new_app(), C2Meter()
        if not is_later:  # Flask runs these in reverse order
            app.after_request(replace)
        meter.init_app(app)
        if is_later:
            app.after_request(replace)
        meter.customer_loader(load_customer)
        host = Host(app, meter)
        host.route(done)
        try:
            answer = host.client().get("/")
            assert answer.status_code == 200
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert len(host.events()) == 1
        finally:
            host.close()

    def test_headers_that_are_no_headers_at_all_go_out_as_they_are(
        self, host: Host, caplog: pytest.LogCaptureFixture
    ) -> None:
        def view() -> Response:
            response = Response("plain")
            response.headers = [("X-Own", "1")]  # type: ignore[assignment]
            return response

        host.route(view, rate_limit="9/hour")
        answer = host.client().get("/")
        assert (answer.status_code, answer.headers["X-Own"]) == (200, "1")
        assert len(host.events()) == 1
        assert "event=headers_not_added response=Response" in caplog.text


class TestWhereItWorks:
    def test_on_a_blueprint(self, host: Host) -> None:
        site = Blueprint("site", __name__)

        @site.post("/verify/<int:number>")
        @metered("verify_operations", rate_limit=False)
        def verify(number: int) -> str:
            current_usage.update(manifest_id=f"m-{number}")
            return str(number)

        host.app.register_blueprint(site, url_prefix="/api")
        assert host.client().post("/api/verify/7").text == "7"
        assert host.event().properties == {"manifest_id": "m-7"}

    def test_in_the_decorators_of_a_method_view(self, host: Host) -> None:
        class Items(MethodView):
            decorators = [metered("api_calls")]  # noqa: RUF012

            def get(self) -> str:
                return "listed"

            def post(self) -> tuple[str, int]:
                return "made", 201

        host.app.add_url_rule("/items", view_func=Items.as_view("items"))
        client = host.client()
        assert client.get("/items").text == "listed"
        assert client.post("/items").status_code == 201
        assert client.delete("/items").status_code == 405
        assert len(host.events("api_calls")) == 2

    def test_on_an_async_view(self, host: Host) -> None:
        pytest.importorskip("asgiref", reason="async views need flask[async]")

        async def view() -> dict[str, str]:
            current_usage.update(manifest_id=f"of-{current_customer.id}")
            current_usage.value = 2
            return {"meter": current_usage.meter}

        host.route(view, properties=None)
        assert host.client().get("/").json == {"meter": "sign_operations"}
        assert host.event().properties == {"manifest_id": "of-cus_alice"}
        assert host.event().value == 2

    def test_with_an_async_customer_loader(self, host: Host) -> None:
        pytest.importorskip("asgiref", reason="async views need flask[async]")

        async def load() -> Customer | None:
            return load_customer()

        host.meter.customer_loader(load)  # type: ignore[arg-type]
        host.route(done)
        assert host.client().get("/").status_code == 200
        assert host.client({}).get("/").status_code == 401
        assert host.event().customer == "cus_alice"

    def test_the_view_keeps_its_name_and_documentation(self) -> None:
        @metered("verify_operations")
        def verify() -> str:
            """Verify an image."""
            return ""

        assert (verify.__name__, verify.__doc__) == ("verify", "Verify an image.")

    def test_outside_a_metered_app_it_says_what_is_missing(self) -> None:
        app = Flask("bare")
        app.testing = True
        app.add_url_rule("/", view_func=metered("verify_operations")(done))
        with pytest.raises(RuntimeError, match="Did you forget to call 'init_app'"):
            app.test_client().get("/")

    def test_without_a_customer_loader_it_says_so(self, new_app: Callable[..., Flask]) -> None:
        app = new_app(TESTING=True)
        C2Meter(app)
        app.add_url_rule("/", view_func=metered("verify_operations")(done))
        with pytest.raises(RuntimeError, match="customer_loader"):
            app.test_client().get("/")

    @pytest.mark.parametrize("returned", ["cus_1", {"id": "cus_1"}, True])
    def test_a_loader_that_returns_something_else_is_told(self, host: Host, returned: Any) -> None:
        host.app.testing = True
        host.meter.customer_loader(lambda: returned)
        host.route(done)
        with pytest.raises(RuntimeError, match="must return a Customer or None"):
            host.client().get("/")

    def test_32_threads_each_get_their_own_customer_and_properties(self, host: Host) -> None:
        start = threading.Barrier(32)

        def view(number: int) -> dict[str, str]:
            current_usage.update(manifest_id=f"m-{number}")
            start.wait(30)
            assert current_usage.properties == {"manifest_id": f"m-{number}"}
            current_usage.value = number + 1
            return {"customer": current_customer.id}

        host.route(view, path="/<int:number>", properties=None)

        def call(number: int) -> Any:
            return host.client({"Authorization": f"cus_{number}"}).get(f"/{number}").json

        with ThreadPoolExecutor(32) as pool:
            answers = list(pool.map(call, range(32)))

        assert answers == [{"customer": f"cus_{number}"} for number in range(32)]
        assert {
            (event.customer, event.properties["manifest_id"], int(event.value))
            for event in host.events()
        } == {(f"cus_{number}", f"m-{number}", number + 1) for number in range(32)}


class TestNesting:
    def test_two_meters_on_one_view_both_count(self, host: Host) -> None:
        @host.app.get("/")
        @metered("api_calls", properties={"endpoint": "verify"})
        @metered("verify_operations", rate_limit=False)
        def verify() -> str:
            current_usage.update(manifest_id="m-1")
            current_usage.value = 3
            return ""

        assert host.client().get("/").status_code == 200
        api_call, verification = sorted(host.events(), key=lambda event: event.meter)
        assert (api_call.value, api_call.properties) == (1, {"endpoint": "verify"})
        assert (verification.value, verification.properties) == (3, {"manifest_id": "m-1"})
        assert api_call.flags == verification.flags == ()

    def test_cancelling_the_inner_one_leaves_the_outer_one(self, host: Host) -> None:
        @host.app.get("/")
        @metered("api_calls")
        @metered("verify_operations", rate_limit=False)
        def verify() -> str:
            current_usage.cancel()
            return ""

        host.client().get("/")
        assert [event.meter for event in host.events()] == ["api_calls"]

    def test_the_inner_ones_refusal_is_the_answer_and_bills_neither(self, host: Host) -> None:
        @host.app.get("/")
        @metered("api_calls", rate_limit="9/hour")
        @metered("verify_operations", rate_limit="1/hour", properties={"manifest_id": "m-1"})
        def verify() -> str:
            return ""

        client = host.client()
        assert client.get("/").headers["X-RateLimit-Limit"] == "1"
        refused = client.get("/")
        assert (refused.status_code, refused.headers["X-RateLimit-Remaining"]) == (429, "0")
        assert header_counts(refused)["X-RateLimit-Limit"] == 1
        assert len(host.events()) == 2

    @pytest.mark.parametrize("key", [{}, {"Idempotency-Key": "k"}])
    def test_a_repeated_request_counts_each_meter_once(
        self, host: Host, key: dict[str, str]
    ) -> None:
        @host.app.get("/")
        @metered("api_calls")
        @metered("dashboard_views")
        def view() -> str:
            return ""

        client = host.client()
        for _ in range(3):
            assert client.get("/", headers=key).status_code == 200
        times = 1 if key else 3
        assert len(host.events("api_calls")) == len(host.events("dashboard_views")) == times

    @pytest.mark.parametrize("key", [{}, {"Idempotency-Key": "k"}])
    def test_a_batch_that_calls_a_metered_view_counts_each_call(
        self, host: Host, key: dict[str, str]
    ) -> None:
        @metered("sign_operations", rate_limit=False)
        def sign(number: int) -> str:
            current_usage.update(manifest_id=f"m-{number}")
            return str(number)

        def batch() -> str:
            parts = [sign(number) for number in range(3)]
            current_usage.update(manifest_id="batch")
            return "".join(current_app.make_response(part).get_data(as_text=True) for part in parts)

        host.route(batch, properties=None)
        for _ in range(2 if key else 1):
            assert host.client().post("/", headers=key).text == "012"
        assert sorted(event.properties["manifest_id"] for event in host.events()) == [
            "batch",
            "m-0",
            "m-1",
            "m-2",
        ]

    def test_an_inner_failure_leaves_the_outer_ones_usage_in_place(self, host: Host) -> None:
        @metered("sign_operations", rate_limit=False)
        def sign() -> str:
            current_usage.update(manifest_id="inner")
            raise LookupError

        def outer() -> str:
            try:
                sign()
            except LookupError:
                current_usage.update(manifest_id="outer")
            return ""

        host.route(outer, properties=None)
        assert host.client().get("/").status_code == 200
        assert host.event().properties == {"manifest_id": "outer"}

    def test_a_context_of_another_app_inside_a_view_disturbs_neither(
        self, new_host: Callable[..., Host]
    ) -> None:
        ours, other = new_host(), new_host()

        def view() -> str:
            with other.app.app_context():
                current_metering.record("api_calls", "cus_other")
            current_usage.update(manifest_id="m-1")
            return ""

        ours.route(view, properties=None)
        assert ours.client().get("/").status_code == 200
        assert (ours.event().customer, ours.event().flags) == ("cus_alice", ())
        assert other.event().customer == "cus_other"

    def test_a_request_to_another_app_inside_a_view_has_its_own_customer(
        self, new_host: Callable[..., Host]
    ) -> None:
        ours, other = new_host(), new_host()
        other.route(done)

        def view() -> str:
            assert other.client(BOB).get("/").status_code == 200
            assert current_customer.id == "cus_alice"
            return ""

        ours.route(view)
        assert ours.client().get("/").status_code == 200
        assert (ours.event().customer, other.event().customer) == ("cus_alice", "cus_bob")

    def test_requests_that_share_an_app_context_share_no_customer(self, host: Host) -> None:
        host.route(done)
        with host.app.app_context():
            assert host.client(ALICE).get("/").status_code == 200
            assert host.client(BOB).get("/").status_code == 200
            assert host.client({}).get("/").status_code == 401
        assert [event.customer for event in host.events()] == ["cus_alice", "cus_bob"]


class TestHostErrors:
    def test_the_hosts_error_pages_are_its_own(self, host: Host) -> None:
        @host.app.errorhandler(HTTPException)
        def explain(exc: HTTPException) -> tuple[str, int]:
            return f"own page {exc.code}", exc.code or 500

        host.route(done, methods=("POST",))
        assert host.client().get("/").text == "own page 405"
        assert host.client().get("/nowhere").text == "own page 404"
        assert json.loads(host.client({}).post("/").data) == {"error": "Unauthorized"}


def header_counts(answer: Any) -> dict[str, int]:
    names = [name for name, _ in answer.headers]
    return {name: names.count(name) for name in names}
