"""Configuration: the one table of ``C2METER_`` keys, read once into a frozen :class:`Config`.

Imports only :mod:`~flask_c2meter.model`, :mod:`~flask_c2meter.errors` and
:mod:`~flask_c2meter.parsers`, touches no file and no network. The promise: a key that is misspelt
or has a bad value fails here, naming the key, the value (never that of a secret) and what to write
instead; nothing is silently ignored.

The table *is* the dataclass: each field carries its :class:`Key`, and :meth:`Config.table` feeds
the documentation.
"""

# ruff: noqa: RUF009  (_key makes a dataclass field, like dataclasses.field itself)

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from . import parsers
from .errors import ConfigError, did_you_mean, show
from .model import Clock, utc_now

PREFIX = "C2METER_"

#: Stands beside the keys in an environment that these are read from; it is the tests'.
_OF_TESTS = "C2METER_FAILPOINTS"

_SQLITE_FILE = re.compile(r"(sqlite(?:\+\w+)?:///)(?!/|:memory:|file:|[A-Za-z]:)([^?]+)(.*)", re.S)


@dataclass(frozen=True, slots=True)
class Key:
    """One configuration key: a row of the table, of the documentation and of an error message."""

    #: With the prefix, as in ``app.config``.
    name: str
    #: Native value or text -> value of the field; raises if it is neither.
    parse: Callable[[Any], Any]
    #: Used if the key is absent or None; parsed like any value, unless it is None.
    default: Any
    #: What may be written, in words; also the cure when something else was.
    takes: str
    #: What it is for, in one or two sentences.
    doc: str
    #: Of a number; empty if there is none.
    unit: str = ""
    #: Environment variable read before the default is used; empty if there is none.
    env: str = ""
    #: Parses that variable, if not the way the key is parsed.
    parse_env: Callable[[str], Any] | None = None
    #: True if its value may appear in no message, log or repr.
    is_secret: bool = False

    def read(self, settings: Mapping[str, Any], environ: Mapping[str, str]) -> Any:
        """The parsed value from *settings*, else from *environ*, else the default.

        :raises ConfigError: naming the key or variable, the value and the cure.
        """
        source, value, parse = self.name, settings.get(self.name), self.parse
        if value is None and environ.get(self.env):
            source, value = f"environment variable {self.env}", environ[self.env]
            parse = self.parse_env or self.parse
        if value is None:
            value = self.default
        if value is None:
            return None
        try:
            return parse(value)
        except parsers.BAD_VALUE as error:
            shown = "(a secret, not shown)" if self.is_secret else f"= {show(value)}"
            cause = None if self.is_secret else error
            raise ConfigError(f"{source} {shown} is wrong: write {self.takes}") from cause


def _key(
    name: str,
    parse: Callable[[Any], Any],
    default: Any,
    takes: str,
    doc: str,
    *,
    unit: str = "",
    env: str = "",
    parse_env: Callable[[str], Any] | None = None,
    is_secret: bool = False,
) -> Any:
    """A field of :class:`Config` and its :class:`Key`."""
    key = Key(name, parse, default, takes, doc, unit, env, parse_env, is_secret)
    return field(metadata={"key": key}, repr=not is_secret)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All settings of one app, parsed and checked; secrets are not in its repr."""

    stripe_secret_key: str = _key(
        "C2METER_STRIPE_SECRET_KEY",
        parsers.secret_key,
        "",
        "a secret (sk_...) or restricted (rk_...) key, or empty text",
        "The key of the Stripe account to deliver to. Empty: keep a ledger, send nothing.",
        env="STRIPE_SECRET_KEY",
        is_secret=True,
    )
    stripe_webhook_secret: tuple[str, ...] = _key(
        "C2METER_STRIPE_WEBHOOK_SECRET",
        parsers.texts,
        (),
        "a signing secret (whsec_...), or several as a list or separated by commas",
        "What Stripe signs its webhooks with; several while a secret is being rolled.",
        is_secret=True,
    )
    stripe_base_url: str | None = _key(
        "C2METER_STRIPE_BASE_URL",
        parsers.base_url,
        None,
        "a URL such as 'http://localhost:12111'",
        "Where to send instead of Stripe's own hosts: the emulator.",
    )
    finalisation_grace_s: int = _key(
        "C2METER_FINALISATION_GRACE",
        parsers.whole(0, 30 * 86_400),
        3600,
        "a whole number of seconds from 0 to 2592000 (30 days)",
        "How long after a period's end Stripe still bills its usage (an account setting).",
        unit="s",
    )
    transport: Literal["v1", "stream"] = _key(
        "C2METER_TRANSPORT",
        parsers.one_of("v1", "stream"),
        "v1",
        "'v1' or 'stream'",
        "One event per call, or Stripe's v2 stream with 100 (live mode only).",
    )
    rate_cap: float | None = _key(
        "C2METER_RATE_CAP",
        parsers.between(0.01, 10_000),
        None,
        "a number from 0.01 to 10000",
        "Most requests sent to Stripe; absent: 80 % of Stripe's own limit.",
        unit="requests/s",
    )
    database_url: str = _key(
        "C2METER_DATABASE_URL",
        parsers.database_url,
        "sqlite:///c2meter.sqlite",
        "a database URL such as 'sqlite:///c2meter.sqlite'",
        "The store. A relative SQLite path lies in the instance folder.",
        is_secret=True,
    )
    durability: Literal["full", "relaxed"] = _key(
        "C2METER_DURABILITY",
        parsers.one_of("full", "relaxed"),
        "full",
        "'full' or 'relaxed'",
        "'relaxed' survives a killed process, but may lose the last events at power loss.",
    )
    on_store_failure: Literal["spill", "refuse"] = _key(
        "C2METER_ON_STORE_FAILURE",
        parsers.one_of("spill", "refuse"),
        "spill",
        "'spill' or 'refuse'",
        "While the store fails: keep events in the spill file, or answer 503.",
    )
    spill_path: Path = _key(
        "C2METER_SPILL_PATH",
        parsers.path,
        "c2meter.spill",
        "a file path",
        "The spill file. A relative path lies in the instance folder.",
    )
    catalogue: Path | Mapping[str, Any] | None = _key(
        "C2METER_CATALOGUE",
        parsers.catalogue,
        None,
        "the path of a .toml or .json file, or a mapping",
        "Meters, plans and prices (path: from the working directory); absent: the packaged ones.",
    )
    worker: Literal["thread", "off"] = _key(
        "C2METER_WORKER",
        parsers.one_of("thread", "off"),
        "thread",
        "'thread' or 'off'",
        "Deliver from a thread of each process, or only from `flask c2meter worker`.",
    )
    lease_s: float = _key(
        "C2METER_LEASE",
        parsers.between(0.1, 3600),
        60.0,
        "a number of seconds from 0.1 to 3600",
        "How long a worker holds a lane without a sign of life.",
        unit="s",
    )
    clock: Clock = _key(
        "C2METER_CLOCK",
        parsers.clock,
        utc_now,
        "a callable that returns an aware datetime, or its name as 'module:attribute'",
        "Tells the time to everything but the rate limits; for tests and simulations.",
    )
    alert_thresholds: tuple[Decimal, ...] = _key(
        "C2METER_ALERT_THRESHOLDS",
        parsers.thresholds,
        ("0.8", "0.95", "1.0"),
        "three ascending numbers above 0, such as '0.8, 0.95, 1.0'",
        "Shares of the included quantity: warning, critical and exceeded.",
    )
    alert_webhook_url: str | None = _key(
        "C2METER_ALERT_WEBHOOK_URL",
        parsers.url("https", "http"),
        None,
        "a URL that begins with https://",
        "Receives each usage alert as a signed webhook.",
        env="USAGE_WEBHOOK_URL",
        is_secret=True,
    )
    alert_webhook_secret: str | None = _key(
        "C2METER_ALERT_WEBHOOK_SECRET",
        parsers.signing_secret,
        None,
        "a Standard Webhooks secret: base64, with 'whsec_' before it or without",
        "Signs the alert webhooks; goes with their URL.",
        is_secret=True,
    )
    alert_webhook_allow_loopback: bool = _key(
        "C2METER_ALERT_WEBHOOK_ALLOW_LOOPBACK",
        parsers.flag,
        False,
        "true or false",
        "For development: also http, and receivers on this machine.",
    )
    site_url: str | None = _key(
        "C2METER_SITE_URL",
        parsers.base_url,
        None,
        "a URL such as 'https://app.example.com'",
        "Where customers see the app: the link in an alert's mail; absent: FRONTEND_URL.",
        env="FRONTEND_URL",
        parse_env=parsers.first_url,
    )
    mail_server: str | None = _key(
        "C2METER_MAIL_SERVER",
        parsers.optional,
        None,
        "a host name",
        "SMTP server for usage alerts; absent: no mail.",
    )
    mail_port: int = _key(
        "C2METER_MAIL_PORT",
        parsers.whole(1, 65_535),
        587,
        "a port number from 1 to 65535",
        "Its port.",
    )
    mail_username: str | None = _key(
        "C2METER_MAIL_USERNAME",
        parsers.optional,
        None,
        "text",
        "Login at the mail server; absent: none.",
        is_secret=True,
    )
    mail_password: str | None = _key(
        "C2METER_MAIL_PASSWORD",
        parsers.optional,
        None,
        "text (quoted twice in the environment if it looks like a number)",
        "Password of that login.",
        is_secret=True,
    )
    mail_tls: bool = _key(
        "C2METER_MAIL_TLS",
        parsers.flag,
        True,
        "true or false",
        "Encrypt the connection to the mail server (STARTTLS; port 465: TLS from the start).",
    )
    mail_sender: str | None = _key(
        "C2METER_MAIL_SENDER",
        parsers.mailbox,
        None,
        "an e-mail address, with a display name or without",
        "Sender of the mails; goes with the mail server.",
        is_secret=True,
    )
    security_headers: str | Mapping[str, str] = _key(
        "C2METER_SECURITY_HEADERS",
        parsers.headers,
        "standard",
        "'standard', 'strict', 'off' or a mapping of header names to text",
        "Security headers of the app's responses; what a view has set stays.",
    )
    cors_origins: tuple[str, ...] = _key(
        "C2METER_CORS_ORIGINS",
        parsers.texts,
        (),
        "origins such as 'https://app.example.com', as a list or separated by commas",
        "Web origins that may call the app with credentials; absent: FRONTEND_URL's.",
        env="FRONTEND_URL",
        parse_env=parsers.origins_of_urls,
    )
    canary_s: int = _key(
        "C2METER_CANARY",
        parsers.whole(0, 86_400),
        0,
        "a whole number of seconds from 0 to 86400",
        "How often the worker records an event of its own, to prove that it can; 0: never.",
        unit="s",
    )
    canary_customer: str | None = _key(
        "C2METER_CANARY_CUSTOMER",
        parsers.optional,
        None,
        "the Stripe id of a customer without subscriptions",
        "Whose usage those events are at Stripe; absent: they stay in the ledger.",
    )
    storage_schedule: str = _key(
        "C2METER_STORAGE_SCHEDULE",
        parsers.cron,
        "0 2 * * *",
        "five cron fields in numbers, such as '0 2 * * *'",
        "When the worker measures storage, in UTC.",
    )
    storage_batch: int = _key(
        "C2METER_STORAGE_BATCH",
        parsers.whole(1, 500),
        100,
        "a whole number from 1 to 500",
        "How many customers' storage is measured, and recorded, at a time.",
        unit="customers",
    )
    storage_pause_s: float = _key(
        "C2METER_STORAGE_PAUSE",
        parsers.between(0, 3600),
        1.0,
        "a number of seconds from 0 to 3600",
        "Rest between two batches, so that measuring does not wear your systems out.",
        unit="s",
    )
    storage_timeout_s: float = _key(
        "C2METER_STORAGE_TIMEOUT",
        parsers.between(0.01, 86_400),
        300.0,
        "a number of seconds from 0.01 to 86400",
        "How long the storage_loader may take over a batch.",
        unit="s",
    )
    storage_retries: int = _key(
        "C2METER_STORAGE_RETRIES",
        parsers.whole(0, 100),
        3,
        "a whole number from 0 to 100",
        "How often the storage_loader is asked again when it failed, or customers did.",
    )
    storage_retry_delay_s: float = _key(
        "C2METER_STORAGE_RETRY_DELAY",
        parsers.between(0, 86_400),
        60.0,
        "a number of seconds from 0 to 86400",
        "How long to wait before that.",
        unit="s",
    )
    storage_max_growth: Decimal = _key(
        "C2METER_STORAGE_MAX_GROWTH",
        parsers.exact_between(0, 1_000_000),
        10,
        "a number from 0 to 1000000",
        "More than so many times the measurement before is not believed; 0: any growth is.",
        unit="times",
    )
    storage_max_failures: Decimal = _key(
        "C2METER_STORAGE_MAX_FAILURES",
        parsers.exact_between(0, 1),
        "0.1",
        "a number from 0 to 1",
        "Share of a day's customers above which failures raise an alert for the operator.",
    )
    operator_email: str | None = _key(
        "C2METER_OPERATOR_EMAIL",
        parsers.mailbox,
        None,
        "an e-mail address, with a display name or without",
        "Receives the alerts that are no customer's, such as of a failed job; absent: no mail.",
        is_secret=True,
    )

    @classmethod
    def table(cls) -> tuple[Key, ...]:
        """Every key there is, in the order of the documentation."""
        return tuple(item.metadata["key"] for item in fields(cls))

    @classmethod
    def load(
        cls, settings: Mapping[str, Any], *, environ: Mapping[str, str], instance_path: str
    ) -> Config:
        """Parse and check all ``C2METER_`` keys of *settings*; other keys are not ours.

        :param settings: such as ``app.config``; an absent key and None mean the default.
        :param environ: such as ``os.environ``, for the keys that fall back to a variable.
        :param instance_path: folder of relative SQLite and spill paths; it need not exist.
        :raises ConfigError: a key is unknown, has a bad value or misses the one it goes with.
        """
        _refuse_unknown(settings, {key.name.removeprefix(PREFIX) for key in cls.table()})
        values = {item.name: item.metadata["key"].read(settings, environ) for item in fields(cls)}
        config = cls(**values)
        _refuse_half_set(config)
        folder = Path(instance_path)
        return replace(
            config,
            database_url=_placed(config.database_url, folder),
            spill_path=folder / config.spill_path,
        )


def _refuse_unknown(settings: Mapping[str, Any], known: set[str]) -> None:
    for name in settings:
        is_ours = name.startswith(PREFIX) and name != _OF_TESTS
        if is_ours and name.removeprefix(PREFIX) not in known:
            # Compared without the prefix, which would make all of them look alike.
            hint = did_you_mean(name.removeprefix(PREFIX), known, PREFIX)
            raise ConfigError(f"{name} is no key of flask_c2meter{hint}: correct or remove it")


def _refuse_half_set(config: Config) -> None:
    url, may_be_http = config.alert_webhook_url, config.alert_webhook_allow_loopback
    if url and urlsplit(url).scheme != "https" and not may_be_http:
        raise ConfigError(
            "C2METER_ALERT_WEBHOOK_URL (a secret, not shown) is wrong: write a URL that begins "
            "with https://, or for development set C2METER_ALERT_WEBHOOK_ALLOW_LOOPBACK"
        )
    if url and not config.alert_webhook_secret:
        raise ConfigError(
            "C2METER_ALERT_WEBHOOK_URL (or USAGE_WEBHOOK_URL) is set without "
            "C2METER_ALERT_WEBHOOK_SECRET: add the secret that signs the webhooks, 'whsec_' and "
            "base64"
        )
    if config.mail_server and not config.mail_sender:
        raise ConfigError(
            "C2METER_MAIL_SERVER is set without C2METER_MAIL_SENDER: add the e-mail address that "
            "the mails come from"
        )


def _placed(url: str, folder: Path) -> str:
    """*url* with the relative path of an SQLite file moved into *folder*."""
    match = _SQLITE_FILE.fullmatch(url)
    return f"{match[1]}{folder / match[2]}{match[3]}" if match else url
