"""``C2Meter``: one line in the factory; then headers, preflights, limits and a CLI are there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask import Blueprint, Flask, Response, abort, request, session
from flask_host import ALICE, Host, load_customer
from flask_limiter import Limiter
from flask_limiter.util import get_remote_address

from flask_c2meter import C2Meter, CatalogueError, ConfigError, current_usage, metered
from flask_c2meter.headers import STANDARD

ORIGIN = "https://app.example"
PREFLIGHT = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST"}


def site_catalogue(meter: str, **settings: Any) -> dict[str, Any]:
    return {
        "meters": {
            meter: {
                "display_name": meter,
                "event_type": f"{meter}.done",
                "unit": "unit",
                "aggregation": "sum",
                **settings,
            }
        }
    }


class TestInitApp:
    def test_the_constructor_takes_an_app_too(self, new_app: Callable[..., Flask]) -> None:
        app = new_app()
        C2Meter(app)
        assert "c2meter" in app.extensions

    def test_a_second_time_on_one_app_names_the_cure(self, new_app: Callable[..., Flask]) -> None:
        app = new_app()
        meter = C2Meter(app)
        for init in (meter.init_app, C2Meter):
            with pytest.raises(RuntimeError, match="call init_app once per app"):
                init(app)
        assert len(app.after_request_funcs[None]) == 1

    def test_callbacks_may_be_registered_before_and_after(
        self, new_app: Callable[..., Flask]
    ) -> None:
        meter = C2Meter()
        meter.customer_loader(lambda: None)
        app = new_app()
        meter.init_app(app)
        assert meter.customer_loader(load_customer) is load_customer
        host = Host(app, meter)
        host.route(lambda: "")
        assert host.client(ALICE).get("/").status_code == 200
        host.close()

    @pytest.mark.parametrize(
        ("config", "error", "message"),
        [
            ({"C2METER_DURABILITY": "ful"}, ConfigError, "C2METER_DURABILITY = 'ful'"),
            ({"C2METER_DATABASE": "x"}, ConfigError, "C2METER_DATABASE is no key"),
            ({"C2METER_CORS_ORIGINS": ["*"]}, ConfigError, "C2METER_CORS_ORIGINS"),
            ({"C2METER_CATALOGUE": {"meters": {"x": {}}}}, CatalogueError, r"meters\.x"),
            ({"C2METER_CATALOGUE": "missing.toml"}, CatalogueError, r"missing\.toml"),
            ({"RATELIMIT_STORAGE_URI": "nowhere://"}, ConfigError, "RATELIMIT_STORAGE_URI"),
        ],
    )
    def test_a_wrong_setting_fails_here_and_leaves_the_app_as_it_was(
        self,
        new_app: Callable[..., Flask],
        config: dict[str, Any],
        error: type[Exception],
        message: str,
    ) -> None:
        app = new_app(**config)
        with pytest.raises(error, match=message):
            C2Meter(app)
        assert "c2meter" not in app.extensions
        assert "c2meter" not in app.cli.commands
        assert not any(app.before_request_funcs.values())
        assert not any(app.after_request_funcs.values())

    def test_settings_may_come_from_the_environment(
        self,
        new_app: Callable[..., Flask],
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
    ) -> None:
        app = new_app()
        for name, text in {
            "RATE_CAP": "12.5",
            "DATABASE_URL": f"sqlite:///{tmp_path}/other.sqlite",
            "CORS_ORIGINS": "https://a.example, https://b.example",
            "WORKER": "off",
            "MAIL_PASSWORD": "12345",
            "MAIL_TLS": "false",
        }.items():
            monkeypatch.setenv(f"FLASK_C2METER_{name}", text)
        app.config.from_prefixed_env()
        host = Host(app, C2Meter(app))

        config = host.metering.config
        assert (config.rate_cap, config.worker, config.mail_password) == (12.5, "off", "12345")
        assert config.cors_origins == ("https://a.example", "https://b.example")
        assert config.mail_tls is False
        host.metering.record("api_calls", "cus_1")
        assert (tmp_path / "other.sqlite").exists()
        host.close()

    def test_the_stripe_key_falls_back_to_stripes_own_variable(
        self, new_app: Callable[..., Flask], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("STRIPE_SECRET_KEY", "sk_test_of_the_environment")
        app = new_app(C2METER_STRIPE_SECRET_KEY=None)
        C2Meter(app)
        config = app.extensions["c2meter"].metering.config
        assert config.stripe_secret_key == "sk_test_of_the_environment"
        assert "sk_test" not in repr(config)


class TestSeveralApps:
    def test_two_apps_share_nothing(self, new_host: Callable[..., Host]) -> None:
        one = new_host(C2METER_CATALOGUE=site_catalogue("pages", rate_limit="1/hour"))
        two = new_host(C2METER_CATALOGUE=site_catalogue("pages", precision=2, billable=False))

        def view() -> str:
            current_usage.value = "2"
            return ""

        for host in (one, two):
            host.route(view, "pages", rate_limit=None)
        assert one.client().get("/").status_code == 200
        assert one.client().get("/").status_code == 429
        for _ in range(2):
            assert two.client().get("/").status_code == 200

        assert (one.total("pages"), one.event().units) == (2, 2)
        assert two.total("pages") == 4
        assert [event.units for event in two.events()] == [200, 200]
        assert one.metering.catalogue.meters["pages"].billable
        assert not two.metering.catalogue.meters["pages"].billable

    def test_one_c2meter_for_two_apps_shares_its_loader_only(
        self, new_app: Callable[..., Flask]
    ) -> None:
        meter = C2Meter()
        meter.customer_loader(load_customer)
        hosts = []
        for security in ("standard", "strict"):
            app = new_app(C2METER_SECURITY_HEADERS=security)
            meter.init_app(app)
            hosts.append(Host(app, meter))
            hosts[-1].route(lambda: "", rate_limit="1/hour")
        for host in hosts:
            answer = host.client().get("/")
            assert answer.status_code == 200
            assert ("X-XSS-Protection" in answer.headers) is (host is hosts[0])
            assert host.event().customer == "cus_alice"
            host.close()


class TestSecurityHeaders:
    def test_every_response_has_the_documents_six(self, host: Host) -> None:
        host.app.add_url_rule("/plain", "plain", view_func=lambda: "")
        host.app.add_url_rule("/broken", "broken", view_func=lambda: 1 / 0)
        for path, status in (("/plain", 200), ("/nowhere", 404), ("/broken", 500)):
            answer = host.app.test_client().get(path, base_url="https://localhost")
            assert answer.status_code == status
            assert {name: answer.headers[name] for name in STANDARD} == dict(STANDARD)
            assert answer.headers.getlist("Vary") == ["Origin"]

    def test_refusals_have_them_too(self, host: Host) -> None:
        host.route(lambda: "", rate_limit="1/hour", body="json")
        statuses = []
        for client, body in (({}, {}), (ALICE, []), (ALICE, {}), (ALICE, {})):
            answer = host.client(client).post("/", json=body)
            statuses.append(answer.status_code)
            assert answer.headers["X-Frame-Options"] == "DENY"
            assert answer.headers["Vary"] == "Origin"
        assert statuses == [401, 400, 200, 429]

    def test_hsts_is_sent_on_https_only(self, host: Host) -> None:
        answer = host.app.test_client().get("/")
        assert "Strict-Transport-Security" not in answer.headers

    def test_what_a_view_has_set_stays(self, host: Host) -> None:
        own = {
            "X-Frame-Options": "SAMEORIGIN",
            "content-security-policy": "default-src *",
            "Vary": "Accept",
        }
        host.app.add_url_rule("/", view_func=lambda: ("", own))
        headers = host.app.test_client().get("/").headers
        for name, text in own.items():
            wanted = "Accept, Origin" if name == "Vary" else text
            assert headers.getlist(name) == [wanted]

    def test_vary_of_a_session_stays_complete(self, host: Host) -> None:
        host.app.secret_key = "not a secret"

        @host.app.get("/")
        def view() -> str:
            session["seen"] = True
            return ""

        vary = host.app.test_client().get("/").headers.getlist("Vary")
        assert {part.strip() for line in vary for part in line.split(",")} == {"Origin", "Cookie"}

    def test_off_and_no_origins_leaves_responses_alone(self, new_host: Callable[..., Host]) -> None:
        host = new_host(C2METER_SECURITY_HEADERS="off")
        host.app.add_url_rule("/", view_func=lambda: "")
        assert {name for name, _ in host.app.test_client().get("/").headers} == {
            "Content-Type",
            "Content-Length",
        }


class TestCors:
    @pytest.fixture
    def host(self, new_host: Callable[..., Host]) -> Host:
        host = new_host(C2METER_CORS_ORIGINS=[ORIGIN])
        host.route(lambda: "", path="/sign", methods=("POST",), rate_limit="9/hour")
        return host

    def test_a_listed_origin_may_call_with_credentials_and_read_the_limits(
        self, host: Host
    ) -> None:
        answer = host.client().post("/sign", headers={"Origin": ORIGIN})
        assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
        assert answer.headers["Access-Control-Allow-Credentials"] == "true"
        assert "X-RateLimit-Remaining" in answer.headers["Access-Control-Expose-Headers"]
        assert answer.headers["Vary"] == "Origin"

    @pytest.mark.parametrize(
        "origin",
        [
            "https://evil.example",
            "null",
            "*",
            "http://app.example",
            "https://app.example.evil.example",
            "https://evilapp.example",
            "https://app.example:444",
            "https://app.example/",
            "https://app.exampl",
            None,
        ],
    )
    def test_no_other_origin_may(self, host: Host, origin: str | None) -> None:
        """Case 33."""
        own = {} if origin is None else {"Origin": origin}
        for headers in (own, {**own, "Access-Control-Request-Method": "POST"}):
            for method in ("POST", "OPTIONS"):
                answer = host.client().open("/sign", method=method, headers=headers)
                assert not [n for n, _ in answer.headers if n.startswith("Access-Control-")]
                assert answer.headers["Vary"] == "Origin"

    def test_without_a_list_no_origin_may(self, new_host: Callable[..., Host]) -> None:
        host = new_host()
        host.route(lambda: "")
        answer = host.client().get("/", headers={"Origin": ORIGIN})
        assert "Access-Control-Allow-Origin" not in answer.headers
        assert answer.headers["Vary"] == "Origin"

    def test_a_preflight_of_a_listed_origin_is_answered_without_the_view(self, host: Host) -> None:
        answer = host.client({}).options("/sign", headers=PREFLIGHT)
        assert (answer.status_code, answer.data) == (200, b"")
        assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
        assert "POST" in answer.headers["Access-Control-Allow-Methods"]
        assert "Idempotency-Key" in answer.headers["Access-Control-Allow-Headers"]
        assert answer.headers["Vary"] == "Origin"
        assert host.events() == []

    def test_also_if_the_server_passes_the_method_on_as_it_was_sent(self, host: Host) -> None:
        as_sent = {"REQUEST_METHOD": "options"}
        answer = host.client({}).options("/sign", headers=PREFLIGHT, environ_overrides=as_sent)
        assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
        assert "POST" in answer.headers["Access-Control-Allow-Methods"]

    @pytest.mark.parametrize("is_earlier", [True, False], ids=["earlier", "later"])
    def test_whenever_the_hosts_login_was_registered(
        self, new_app: Callable[..., Flask], is_earlier: bool
    ) -> None:
        def login() -> None:
            if "Authorization" not in request.headers:
                abort(401)

        app, meter = new_app(C2METER_CORS_ORIGINS=[ORIGIN]), C2Meter()
        if is_earlier:
            app.before_request(login)
        meter.init_app(app)
        if not is_earlier:
            app.before_request(login)
        site = Blueprint("site", __name__)
        site.before_request(login)
        site.post("/sign")(metered("sign_operations")(lambda: ""))
        app.register_blueprint(site)

        client = app.test_client()
        answer = client.options("/sign", headers=PREFLIGHT)
        assert answer.status_code == 200
        assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
        assert client.options("/sign").status_code == 401
        assert client.post("/sign", headers={"Origin": ORIGIN}).status_code == 401

    def test_any_other_options_request_is_the_hosts(self, host: Host) -> None:
        host.app.add_url_rule("/own", view_func=lambda: "mine", methods=["OPTIONS"])
        client = host.client({})
        assert client.options("/own").text == "mine"
        for headers in ({"Origin": ORIGIN}, {"Access-Control-Request-Method": "POST"}):
            assert client.options("/own", headers=headers).text == "mine"
        foreign = {**PREFLIGHT, "Origin": "https://other.example"}
        assert client.options("/own", headers=foreign).text == "mine"

    def test_a_foreign_preflight_reaches_a_metered_options_view_unmetered(self, host: Host) -> None:
        host.route(lambda: "own CORS rules", path="/own", methods=("OPTIONS",))
        foreign = {**PREFLIGHT, "Origin": "https://other.example"}
        assert host.client({}).options("/own", headers=foreign).text == "own CORS rules"
        assert host.client({}).options("/own").status_code == 401

    def test_a_preflight_finds_current_usage_in_the_view_and_bills_nothing(
        self, host: Host
    ) -> None:
        def view() -> str:
            current_usage.update(manifest_id="m-1")
            return "own CORS rules"

        host.route(view, path="/own", methods=("POST", "OPTIONS"))
        foreign = {**PREFLIGHT, "Origin": "https://other.example"}
        assert host.client({}).options("/own", headers=foreign).text == "own CORS rules"
        assert host.metering.store.events() == []

    def test_a_view_that_decides_on_cors_has_decided(self, host: Host) -> None:
        own = {"Access-Control-Allow-Origin": "https://third.example"}
        host.app.add_url_rule("/own", view_func=lambda: ("", own))
        headers = host.client().get("/own", headers={"Origin": ORIGIN}).headers
        assert headers.getlist("Access-Control-Allow-Origin") == ["https://third.example"]
        assert "Access-Control-Allow-Credentials" not in headers

    def test_the_frontends_url_is_the_default_origin(
        self, new_host: Callable[..., Host], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FRONTEND_URL", "https://app.example/start?page=1")
        host = new_host(C2METER_CORS_ORIGINS=None)
        host.route(lambda: "")
        answer = host.client().get("/", headers={"Origin": ORIGIN})
        assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN


class TestHostsLimiter:
    def test_its_storage_and_strategy_are_used(self, new_app: Callable[..., Flask]) -> None:
        app = new_app()
        limiter = Limiter(
            get_remote_address, app=app, storage_uri="c2meter-memory://", strategy="moving-window"
        )
        meter = C2Meter(app, limiter=limiter)
        meter.customer_loader(load_customer)
        host = Host(app, meter)
        host.route(lambda: "", rate_limit="2/hour")
        assert [host.client().get("/").status_code for _ in range(3)] == [200, 200, 429]
        limiter.reset()
        host.close()

    def test_one_that_does_not_know_the_app_is_refused(self, new_app: Callable[..., Flask]) -> None:
        limiter = Limiter(get_remote_address)
        with pytest.raises(ConfigError, match=r"call limiter\.init_app"):
            C2Meter(new_app(), limiter=limiter)

    def test_the_hosts_limits_do_not_fall_on_metered_views_twice(
        self, new_app: Callable[..., Flask]
    ) -> None:
        app = new_app(RATELIMIT_DEFAULT="3/hour", RATELIMIT_HEADERS_ENABLED=True)
        limiter = Limiter(
            get_remote_address, app=app, storage_uri="c2meter-memory://", strategy="moving-window"
        )
        meter = C2Meter(app)
        meter.customer_loader(load_customer)
        host = Host(app, meter)
        host.route(lambda: "", rate_limit="9/hour")
        answers = [host.client().get("/") for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        for answer in answers:
            assert answer.headers.getlist("X-RateLimit-Limit") == ["3"]
        limiter.reset()
        host.close()

    def test_ratelimit_enabled_false_turns_ours_off_too(
        self, new_host: Callable[..., Host]
    ) -> None:
        host = new_host(RATELIMIT_ENABLED=False)
        host.route(lambda: "", rate_limit="1/hour")
        answers = [host.client().get("/") for _ in range(3)]
        assert {answer.status_code for answer in answers} == {200}
        assert "X-RateLimit-Limit" not in answers[0].headers


def test_a_response_class_of_the_hosts_own_stays(host: Host) -> None:
    class Own(Response):
        default_mimetype = "text/x-own"

    host.app.response_class = Own
    host.route(lambda: "text")
    assert host.client().get("/").mimetype == "text/x-own"
