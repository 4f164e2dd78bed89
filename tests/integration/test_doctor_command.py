"""``flask c2meter doctor``: what it finds in apps, what it prints and exits with."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import pytest
from channel_rig import Mailbox, served
from click.testing import Result
from flask import Flask
from flask_host import Host
from flask_limiter import Limiter

from flask_c2meter import C2Meter, usage_alert
from flask_c2meter.emulator import StripeEmulator

NewHost = Callable[..., Host]


def doctor(host: Host | Flask, *arguments: str) -> Result:
    app = host if isinstance(host, Flask) else host.app
    return app.test_cli_runner().invoke(args=["c2meter", "doctor", *arguments])


def said(host: Host | Flask, name: str, *arguments: str) -> list[str]:
    """What a check says, with its level."""
    document = json.loads(doctor(host, "--json", *arguments).output)
    return [
        *(f"{row['level']}: {row['what']}" for row in document["findings"] if row["check"] == name),
        *(row["what"] for row in document["fine"] if row["check"] == name),
    ]


@pytest.fixture
def at_stripe(stripe_emulator: StripeEmulator) -> dict[str, Any]:
    return {
        "C2METER_STRIPE_SECRET_KEY": "sk_test_1",
        "C2METER_STRIPE_BASE_URL": stripe_emulator.url,
    }


def test_each_finding_has_its_cure_on_the_next_line(host: Host) -> None:
    result = doctor(host)
    assert result.exit_code == 0, "warnings only"
    lines = result.output.splitlines()
    assert lines[0] == "? key         no Stripe key: the ledger records and nothing is delivered"
    assert lines[1].strip() == "-> set C2METER_STRIPE_SECRET_KEY (or STRIPE_SECRET_KEY)"
    assert lines[-1] == "3 warnings; 11 in order."
    assert max(len(line) for line in lines if "/" not in line) <= 100, "paths stay whole"


def test_strict_counts_warnings(host: Host) -> None:
    assert doctor(host, "--strict").exit_code == 1


def test_json_names_findings_with_the_worst_first(
    new_host: NewHost, at_stripe: dict[str, Any]
) -> None:
    result = doctor(new_host(**at_stripe), "--json")
    document = json.loads(result.output)
    assert (result.exit_code, document["version"]) == (1, 1)
    assert document["account"] == "127.0.0.1 test"
    levels = [row["level"] for row in document["findings"]]
    assert levels == sorted(levels), "errors come before warnings"
    assert document["summary"] == {
        "ok": len(document["fine"]),
        "warning": levels.count("warning"),
        "error": levels.count("error"),
    }
    assert all(row["cure"] for row in document["findings"])


def test_it_starts_nothing_and_writes_nothing_to_stripe(
    new_host: NewHost, at_stripe: dict[str, Any], stripe_emulator: StripeEmulator
) -> None:
    host = new_host(**at_stripe)
    doctor(host, "--network")
    assert {request.method for request in stripe_emulator.requests} == {"GET"}
    assert not host.metering.worker.is_running
    assert host.metering.store.facts() == {}


class TestTrouble:
    def test_no_stripe(
        self, new_host: NewHost, at_stripe: dict[str, Any], stripe_emulator: StripeEmulator
    ) -> None:
        stripe_emulator.stop()
        host = new_host(**at_stripe)
        assert said(host, "connection") == ["error: Stripe could not be asked: no_connection"]
        assert said(host, "database"), "the rest is looked at"
        assert doctor(host).exit_code == 1

    def test_a_refused_key(
        self, new_host: NewHost, at_stripe: dict[str, Any], stripe_emulator: StripeEmulator
    ) -> None:
        stripe_emulator.accept_keys(["sk_test_other"])
        (found,) = said(new_host(**at_stripe), "key")
        assert "refused (401 api_key_invalid)" in found

    def test_no_database(self, new_host: NewHost, tmp_path: Any) -> None:
        (tmp_path / "file").write_text("in the way")
        host = new_host(C2METER_DATABASE_URL=f"sqlite:///{tmp_path}/file/ledger.db")
        result = doctor(host)
        assert (result.exit_code, "Traceback" in result.output) == (1, False)
        (found,) = said(host, "database")
        assert found.startswith("error: the store cannot be read: ledger.db")

    def test_a_damaged_database(self, new_host: NewHost, tmp_path: Any) -> None:
        (tmp_path / "ledger.db").write_bytes(b"this is no database " * 100)
        host = new_host(C2METER_DATABASE_URL=f"sqlite:///{tmp_path}/ledger.db")
        (found,) = said(host, "database")
        assert "is damaged" in found
        assert doctor(host).exit_code == 1


class TestDatabase:
    def test_durability_is_what_the_database_says(self, new_host: NewHost) -> None:
        assert said(new_host(), "durability") == ["a committed event survives power loss"]
        (found,) = said(new_host(C2METER_DURABILITY="relaxed"), "durability")
        assert found.startswith("warning: durability is relaxed")

    def test_files_that_others_can_open(self, host: Host) -> None:
        assert said(host, "files") == ["only this user can open the files"]
        path = host.metering.store.settings().path
        assert path is not None
        os.chmod(path, 0o640)
        (found,) = said(host, "files")
        assert str(path) in found

    def test_spilled_events(self, host: Host) -> None:
        assert said(host, "spill") == ["no event is spilled"]
        host.metering.spill.path.write_text("not an event\n")
        (found,) = said(host, "spill")
        assert found.startswith("warning: 1 events wait")

    def test_the_account(self, new_host: NewHost, at_stripe: dict[str, Any]) -> None:
        host = new_host(**at_stripe)
        host.metering.store.note("account", "api.stripe.com live")
        (found,) = said(host, "account")
        assert found.startswith("error: nothing is sent: the ledger delivers to api.stripe.com")


class TestHost:
    def test_threads_started_by_creating_the_app(
        self, new_host: NewHost, at_stripe: dict[str, Any]
    ) -> None:
        host = new_host(**at_stripe)
        assert said(host, "fork") == ["creating the app starts no thread"]
        host.metering.record("api_calls", "cus_1")
        (found,) = said(host, "fork")
        assert "has started its worker" in found

    def test_limiters(self, new_app: Callable[..., Flask], monkeypatch: Any) -> None:
        monkeypatch.setenv("WEB_CONCURRENCY", "3")
        own = new_app()
        C2Meter(own)
        (found,) = said(own, "limiter")
        assert "3 processes count rate limits each for itself" in found

        hosts = new_app()
        limiter = Limiter(lambda: "all", storage_uri="memory://")
        limiter.init_app(hosts)
        C2Meter(limiter=limiter).init_app(hosts)
        (found,) = said(hosts, "limiter")
        assert found.startswith("warning"), "also in the memory of the host's own limiter"

        shared = new_app(RATELIMIT_STORAGE_URI="redis://127.0.0.1:9")
        C2Meter(shared)
        assert said(shared, "limiter") == ["all processes count rate limits together"]

        without = new_app(RATELIMIT_ENABLED=False)
        C2Meter(without)
        assert said(without, "limiter") == ["there are no rate limits"]

    def test_headers(self, new_host: NewHost) -> None:
        (found,) = said(new_host(), "headers")
        assert found.startswith("warning: weak security headers")
        strict = new_host(C2METER_SECURITY_HEADERS="strict")
        assert said(strict, "headers") == ["9 security headers, none of them weak"]

    def test_webhook_routes(self, new_host: NewHost) -> None:
        host = new_host(C2METER_STRIPE_WEBHOOK_SECRET="whsec_one")
        (found,) = said(host, "webhooks")
        assert found == "warning: there is a webhook secret, and no route that receives webhooks"
        host.app.register_blueprint(host.meter.webhook_blueprint(), url_prefix="/hooks")
        assert said(host, "webhooks") == []

    def test_alerts_by_signal(self, host: Host) -> None:
        def hear(sender: Flask, **extra: Any) -> None: ...
        def hear_another(sender: Flask, **extra: Any) -> None: ...

        with usage_alert.connected_to(hear_another, sender=Flask("another")):
            with usage_alert.connected_to(hear, sender=host.app):
                assert said(host, "alerts") == ["alerts are announced in the app and by signal"]
            assert said(host, "alerts") == [
                "alerts are shown in the app only, which will do for a trial"
            ]


class TestNetwork:
    def mail(self, port: int) -> dict[str, Any]:
        return {
            "C2METER_MAIL_SERVER": "127.0.0.1",
            "C2METER_MAIL_PORT": port,
            "C2METER_MAIL_TLS": False,
            "C2METER_MAIL_SENDER": "usage@example.com",
        }

    def test_a_mail_server_is_asked_only_if_told_to(self, new_host: NewHost) -> None:
        mailbox = Mailbox()
        with served(mailbox) as port:
            host = new_host(**self.mail(port))
            assert said(host, "alerts") == ["alerts are announced in the app and by email"]
            assert said(host, "alerts", "--network") == [
                "alerts are announced in the app and by email (reached)"
            ]
        assert mailbox.messages() == [], "no mail is sent"
        assert said(host, "alerts", "--network") == [
            "error: alerts cannot be announced by email: no_connection"
        ]

    def test_a_webhook_receiver(self, new_host: NewHost, stripe_emulator: StripeEmulator) -> None:
        host = new_host(
            C2METER_ALERT_WEBHOOK_URL=f"{stripe_emulator.url}/alerts",
            C2METER_ALERT_WEBHOOK_SECRET="whsec_c2VjcmV0c2VjcmV0",
            C2METER_ALERT_WEBHOOK_ALLOW_LOOPBACK=True,
        )
        assert said(host, "alerts", "--network") == [
            "alerts are announced in the app and by webhook (reached)"
        ]
        assert stripe_emulator.requests == [], "nothing is said to it"
        stripe_emulator.stop()
        assert said(host, "alerts", "--network") == [
            "error: alerts cannot be announced by webhook: no_connection"
        ]


def test_no_secret_is_shown(new_host: NewHost, at_stripe: dict[str, Any]) -> None:
    secrets = {
        "C2METER_STRIPE_SECRET_KEY": "sk_test_canary1",
        "C2METER_STRIPE_WEBHOOK_SECRET": "not canary2, whsec_canary3",
        "C2METER_MAIL_SERVER": "127.0.0.1",
        "C2METER_MAIL_PORT": 9,
        "C2METER_MAIL_SENDER": "canary4@example.com",
        "C2METER_MAIL_USERNAME": "canary5",
        "C2METER_MAIL_PASSWORD": "canary6",
    }
    host = new_host(**{**at_stripe, **secrets})
    for arguments in ((), ("--json",), ("--network",)):
        assert "canary" not in doctor(host, *arguments).output


def test_help_names_the_exit_codes(host: Host) -> None:
    output = " ".join(doctor(host, "--help").output.split())
    assert "Exit codes: 0 no errors; 1 errors, or with --strict warnings." in output
