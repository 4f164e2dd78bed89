"""The table of configuration keys: defaults, both kinds of values, errors that name the cure."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from flask_c2meter.config import Config
from flask_c2meter.errors import ConfigError

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


def noon() -> datetime:
    return NOON


def load(environ: Mapping[str, str] | None = None, /, **settings: Any) -> Config:
    """A config from keys written without their prefix."""
    prefixed = {f"C2METER_{name}": value for name, value in settings.items()}
    return Config.load(prefixed, environ=environ or {}, instance_path="/srv/instance")


def test_nothing_has_to_be_set() -> None:
    config = load()
    assert config.stripe_secret_key == ""
    assert config.database_url == "sqlite:////srv/instance/c2meter.sqlite"
    assert config.spill_path == Path("/srv/instance/c2meter.spill")
    assert (config.transport, config.durability, config.worker) == ("v1", "full", "thread")
    assert config.on_store_failure == "spill"
    assert config.finalisation_grace_s == 3600
    assert config.lease_s == 60.0
    assert config.alert_thresholds == (Decimal("0.8"), Decimal("0.95"), Decimal("1.0"))
    assert config.security_headers == "standard"
    assert config.storage_schedule == "0 2 * * *"
    assert config.cors_origins == ()
    assert config.stripe_base_url is config.catalogue is config.rate_cap is None
    assert config.clock().tzinfo is UTC


def test_the_table_describes_every_key() -> None:
    table = Config.table()
    assert len({key.name for key in table}) == len(table) == 38
    for key in table:
        assert key.name.startswith("C2METER_")
        assert key.takes and key.doc.endswith(".")


def test_every_default_is_what_the_table_says_it_takes() -> None:
    defaults = {key.name: key.default for key in Config.table()}
    assert Config.load(defaults, environ={}, instance_path="/srv/instance") == load()


def test_failpoints_in_the_environment_are_no_misspelt_key() -> None:
    """Where the settings are read from it, as the middleware does."""
    environ = {"C2METER_FAILPOINTS": "after_send=kill"}
    assert Config.load(environ, environ=environ, instance_path="/srv/instance") == load()


def test_keys_of_others_are_left_alone() -> None:
    config = Config.load({"SECRET_KEY": "x", "DEBUG": 1}, environ={}, instance_path="/srv/instance")
    assert config == load()


@pytest.mark.parametrize(
    ("name", "value", "parsed"),
    [
        ("STRIPE_BASE_URL", "http://localhost:12111/", "http://localhost:12111"),
        ("STRIPE_BASE_URL", "", None),
        ("STRIPE_WEBHOOK_SECRET", "whsec_a, whsec_b", ("whsec_a", "whsec_b")),
        ("STRIPE_WEBHOOK_SECRET", ["whsec_a"], ("whsec_a",)),
        ("RATE_CAP", "12.5", 12.5),
        ("RATE_CAP", 80, 80.0),
        ("ALERT_WEBHOOK_SECRET", "whsec_c2VjcmV0", "whsec_c2VjcmV0"),
        ("ALERT_WEBHOOK_SECRET", "c2VjcmV0cw", "c2VjcmV0cw"),
        ("ALERT_WEBHOOK_SECRET", "", None),
        ("ALERT_WEBHOOK_ALLOW_LOOPBACK", "on", True),
        ("MAIL_SENDER", "Acme Inc. <billing@acme.example>", "Acme Inc. <billing@acme.example>"),
        ("MAIL_SENDER", "", None),
        ("MAIL_PASSWORD", 123456, "123456"),
        ("MAIL_TLS", "off", False),
        ("MAIL_TLS", True, True),
        ("MAIL_PORT", "25", 25),
        ("CORS_ORIGINS", "https://a.example, https://b.example", ("https://a.example", "https://b.example")),
        ("SECURITY_HEADERS", {"X-Frame-Options": "DENY"}, {"X-Frame-Options": "DENY"}),
        ("STORAGE_SCHEDULE", "*/15 0-6,22 1 * 1-5", "*/15 0-6,22 1 * 1-5"),
        ("CATALOGUE", "meters.toml", Path("meters.toml")),
        ("CATALOGUE", {"meters": {}}, {"meters": {}}),
        ("CATALOGUE", "", None),
        ("DURABILITY", "relaxed", "relaxed"),
        ("TRANSPORT", "stream", "stream"),
        ("WORKER", "off", "off"),
        ("ON_STORE_FAILURE", "refuse", "refuse"),
        ("SPILL_PATH", "/var/spill", Path("/var/spill")),
        ("CLOCK", noon, noon),
    ],
)  # fmt: skip
def test_values_may_be_native_or_text(name: str, value: object, parsed: object) -> None:
    assert getattr(load(**{name: value}), name.lower()) == parsed


@pytest.mark.parametrize("value", ["0.5, 0.9, 1", (0.5, 0.9, 1), [Decimal("0.5"), "0.9", 1]])
def test_thresholds_are_exact_however_they_are_written(value: object) -> None:
    levels = load(ALERT_THRESHOLDS=value).alert_thresholds
    assert levels == (Decimal("0.5"), Decimal("0.9"), Decimal(1))


def test_flasks_environment_is_understood() -> None:
    environ = {
        "FLASK_C2METER_LEASE": "2.5",
        "FLASK_C2METER_MAIL_PASSWORD": "0815",
        "FLASK_C2METER_MAIL_PORT": "25",
        "FLASK_C2METER_MAIL_TLS": "false",
        "FLASK_C2METER_ALERT_THRESHOLDS": "[0.7, 0.8, 0.9]",
        "FLASK_C2METER_SECURITY_HEADERS__X-Frame-Options": "DENY",
    }
    program = """
from flask import Flask
from flask_c2meter.config import Config
app = Flask("app")
app.config.from_prefixed_env()
config = Config.load(app.config, environ={}, instance_path=app.instance_path)
print(config.lease_s, config.mail_password, config.mail_port, config.mail_tls)
print(*config.alert_thresholds, config.security_headers)
"""
    printed = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | environ,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert printed == "2.5 0815 25 False\n0.7 0.8 0.9 {'X-Frame-Options': 'DENY'}\n"


@pytest.mark.parametrize(
    ("url", "placed"),
    [
        ("sqlite:///data/usage.db", "sqlite:////srv/instance/data/usage.db"),
        ("sqlite+pysqlite:///u.db?timeout=5", "sqlite+pysqlite:////srv/instance/u.db?timeout=5"),
        ("sqlite:////var/usage.db", "sqlite:////var/usage.db"),
        ("sqlite:///:memory:", "sqlite:///:memory:"),
        ("sqlite://", "sqlite://"),
        ("postgresql://db.example/usage", "postgresql://db.example/usage"),
    ],
)
def test_relative_sqlite_paths_lie_in_the_instance_folder(url: str, placed: str) -> None:
    assert load(DATABASE_URL=url).database_url == placed


def test_the_usual_environment_variables_are_the_fallback() -> None:
    environ = {
        "STRIPE_SECRET_KEY": "sk_test_env",
        "USAGE_WEBHOOK_URL": "https://hooks.example.com/usage",
        "FRONTEND_URL": "https://app.example.com/portal/",
    }
    config = load(environ, ALERT_WEBHOOK_SECRET="whsec_c2VjcmV0")
    assert config.stripe_secret_key == "sk_test_env"
    assert config.alert_webhook_url == "https://hooks.example.com/usage"
    assert config.cors_origins == ("https://app.example.com",)
    assert config.site_url == "https://app.example.com/portal"
    explicit = load(environ, STRIPE_SECRET_KEY="", CORS_ORIGINS=[], ALERT_WEBHOOK_URL="")
    assert explicit.stripe_secret_key == ""
    assert explicit.cors_origins == ()


def test_a_bad_environment_variable_is_named() -> None:
    with pytest.raises(ConfigError, match=r"environment variable FRONTEND_URL = 'app\.example'"):
        load({"FRONTEND_URL": "app.example"})


def test_a_clock_can_be_named() -> None:
    assert load(CLOCK=f"{__name__}:noon").clock() == NOON


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("STRIPE_BASE_URL", "localhost:12111"),
        ("STRIPE_BASE_URL", "ftp://localhost"),
        ("STRIPE_BASE_URL", "http://localhost:99999"),
        ("STRIPE_BASE_URL", "http://localhost/?x=1"),
        ("FINALISATION_GRACE", -1),
        ("FINALISATION_GRACE", 1.5),
        ("FINALISATION_GRACE", True),
        ("FINALISATION_GRACE", "an hour"),
        ("TRANSPORT", "v3"),
        ("RATE_CAP", 0),
        ("RATE_CAP", "inf"),
        ("RATE_CAP", float("nan")),
        ("DURABILITY", "FULL"),
        ("ON_STORE_FAILURE", None.__class__),
        ("SPILL_PATH", ""),
        ("CATALOGUE", 7),
        ("WORKER", True),
        ("LEASE", 0),
        ("LEASE", "1e9"),
        ("CLOCK", "nowhere:clock"),
        ("CLOCK", "datetime:nothing"),
        ("CLOCK", "datetime:datetime.utcoffset"),
        ("CLOCK", datetime(2026, 1, 1)),
        ("CLOCK", lambda: datetime(2026, 1, 1)),
        ("ALERT_THRESHOLDS", "0.8, 0.95"),
        ("ALERT_THRESHOLDS", (0.95, 0.8, 1)),
        ("ALERT_THRESHOLDS", (0, 0.8, 1)),
        ("ALERT_THRESHOLDS", 0.8),
        ("MAIL_PORT", 0),
        ("MAIL_TLS", "maybe"),
        ("MAIL_SERVER", "mail.example\r\nX: y"),
        ("SECURITY_HEADERS", "none"),
        ("SECURITY_HEADERS", {"X-Frame-Options": 1}),
        ("CORS_ORIGINS", 5),
        ("STORAGE_SCHEDULE", "daily"),
        ("STORAGE_SCHEDULE", "60 2 * * *"),
        ("STORAGE_SCHEDULE", "0 6-2 * * *"),
        ("STORAGE_SCHEDULE", "0 2 * * * *"),
    ],
)
def test_a_bad_value_is_refused_with_key_value_and_cure(name: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        load(**{name: value})
    key = next(key for key in Config.table() if key.name == f"C2METER_{name}")
    message = str(caught.value)
    assert message.startswith(f"{key.name} = ")
    assert repr(value)[:40] in message
    assert message.endswith(key.takes)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("STRIPE_SECRET_KEY", "pk_live_canary"),
        ("STRIPE_SECRET_KEY", "sk_live_canary\n"),
        ("STRIPE_WEBHOOK_SECRET", {"whsec_canary": 1}),
        ("DATABASE_URL", "user:canary@db.example"),
        ("ALERT_WEBHOOK_URL", "http://hooks.example/canary"),
        ("ALERT_WEBHOOK_URL", "https://user:canary@hooks.example/"),
        ("ALERT_WEBHOOK_SECRET", b"whsec_canary"),
        ("ALERT_WEBHOOK_SECRET", "whsec_canary!"),
        ("ALERT_WEBHOOK_SECRET", "whsec_canar"),
        ("ALERT_WEBHOOK_SECRET", "whsec_"),
        ("MAIL_PASSWORD", ["canary"]),
        ("MAIL_SENDER", "canary"),
        ("MAIL_SENDER", "canary@a.example, b@c.example"),
        ("MAIL_SENDER", "canary@a.example\r\nBcc: b@c.example"),
    ],
)
def test_a_bad_secret_is_refused_without_showing_it(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"C2METER_{name} ") as caught:
        load(**{name: value})
    assert "canary" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


class TestKeysThatGoTogether:
    def test_a_webhook_has_a_secret(self) -> None:
        with pytest.raises(ConfigError, match=r"C2METER_ALERT_WEBHOOK_SECRET") as caught:
            load(ALERT_WEBHOOK_URL="https://hooks.example/canary")
        assert "canary" not in str(caught.value)
        with pytest.raises(ConfigError, match=r"USAGE_WEBHOOK_URL"):
            load({"USAGE_WEBHOOK_URL": "https://hooks.example/"})
        url = "https://hooks.example.com/x/"
        config = load(ALERT_WEBHOOK_URL=url, ALERT_WEBHOOK_SECRET="whsec_c2VjcmV0")
        assert config.alert_webhook_url == url

    def test_a_webhook_without_encryption_is_for_development(self) -> None:
        keys = {"ALERT_WEBHOOK_URL": "http://localhost/", "ALERT_WEBHOOK_SECRET": "c2VjcmV0"}
        with pytest.raises(ConfigError, match=r"https://.*ALERT_WEBHOOK_ALLOW_LOOPBACK"):
            load(**keys)
        assert load(**keys, ALERT_WEBHOOK_ALLOW_LOOPBACK=True).alert_webhook_url

    def test_a_mail_server_has_a_sender(self) -> None:
        with pytest.raises(ConfigError, match=r"C2METER_MAIL_SENDER"):
            load(MAIL_SERVER="mail.example")
        assert load(MAIL_SERVER="mail.example", MAIL_SENDER="a@b.example").mail_server


def test_secrets_are_not_in_the_repr() -> None:
    config = load(
        STRIPE_SECRET_KEY="sk_live_hush-hush",
        STRIPE_WEBHOOK_SECRET="whsec_aHVzaC1odXNo",
        DATABASE_URL="postgresql://user:hush-hush@db.example/usage",
        ALERT_WEBHOOK_URL="https://hooks.example/hush-hush",
        ALERT_WEBHOOK_SECRET="whsec_aHVzaC1odXNo",
        MAIL_USERNAME="hush-hush",
        MAIL_PASSWORD="hush-hush",
        MAIL_SENDER="hush-hush@example.com",
    )
    assert "hush" not in repr(config) and "aHVz" not in repr(config)


def test_a_misspelt_key_is_refused_with_the_right_one() -> None:
    with pytest.raises(
        ConfigError, match=r"C2METER_DATABSE_URL .*did you mean 'C2METER_DATABASE_URL'"
    ):
        load(DATABSE_URL="sqlite://")
    with pytest.raises(ConfigError, match=r"C2METER_QQQ .*remove it"):
        load(QQQ=1)


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        load().worker = "off"  # type: ignore[misc]
