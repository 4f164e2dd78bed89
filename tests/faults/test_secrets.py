"""Case 31: secrets and addresses on every path, with all that is logged at DEBUG: none is seen."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from fault_rig import Children, Rig
from fault_watch import ANN, CANARY, MAIL_USER, STRIPE_SECRET, Watch, settings, watching
from flask import Flask

from flask_c2meter import C2Meter, Customer, current_metering, metered, usage_alert
from flask_c2meter.config import Config
from flask_c2meter.emulator import StripeEmulator
from flask_c2meter.emulator.hooks import signature
from flask_c2meter.errors import C2MeterError, StoreUnavailable
from flask_c2meter.metering import Metering
from flask_c2meter.model import utc_now
from tests.integration.channel_rig import Mailbox, Receiver, served, serving, status

VERIFY = "verify_operations"


@pytest.fixture
def watch(capfd: pytest.CaptureFixture[str]) -> Iterator[Watch]:
    """Everything that is logged or printed; holds no secret at the end of the test."""
    with watching() as watch:
        yield watch
    watch.lines += capfd.readouterr()
    assert watch.hits() == []


def use(metering: Metering, value: int = 1) -> None:
    metering.record(VERIFY, ANN, value=value, manifest_id="m")


def work(metering: Metering) -> None:
    assert metering.worker is not None
    metering.worker.run_once()


def command(rig: Rig, watch: Watch, *arguments: str) -> str:
    """What ``flask c2meter ARGUMENTS`` prints."""
    result = rig.app.test_cli_runner().invoke(args=["c2meter", *arguments])
    if result.exc_info is not None:
        watch.see("".join(traceback.format_exception(*result.exc_info)))
    return watch.see(result.output)


COMMANDS: tuple[tuple[str, ...], ...] = (
    ("status",),
    ("status", "--json"),
    ("worker", "--once"),
    ("usage", ANN.id),
    ("usage", ANN.id, "--json"),
    ("bill", ANN.id),
    ("project", ANN.id),
    ("project", "--backtest"),
    ("events",),
    ("events", "--json"),
    ("alerts",),
    ("alerts", "--json"),
    ("alerts", "--test", ANN.id),
    ("explain", ANN.id, VERIFY),
    ("dead", "list"),
    ("verify",),
    ("provision",),
    ("reconcile",),
    ("measure-storage",),
    ("doctor",),
    ("doctor", "--json"),
    ("db", "upgrade"),
)


def test_case_31_delivering_to_a_stripe_that_refuses_in_every_way(
    new_rig: Callable[..., Rig], stripe: StripeEmulator, watch: Watch
) -> None:
    rig = new_rig(stripe, **settings(9, 9), C2METER_RATE_CAP="10000")
    for fault in (
        {"status": 400, "code": "payload_invalid_value"},
        {"status": 401},
        {"status": 403},
        {"status": 429},
        {"status": 500},
        {"status": 302, "headers": {"Location": "https://elsewhere.example/"}},
        {"reset": True},
        {"reset": True, "after_processing": True},
    ):
        stripe.fail(times=1, **fault)
        use(rig.metering)
        work(rig.metering)
    stripe.accept_keys(["sk_test_other"])
    work(rig.metering)
    stripe.stop()
    use(rig.metering)
    work(rig.metering)
    command(rig, watch, "status", "--json")
    stripe.start()
    assert watch.logged("stripe") and watch.logged("flask_c2meter.courier")


def test_case_31_announcing_to_far_ends_that_refuse_in_every_way(
    new_rig: Callable[..., Rig], stripe: StripeEmulator, watch: Watch
) -> None:
    echo = f"550 5.1.1 <{ANN.email}> is unknown to {MAIL_USER}"
    mailbox, receiver = Mailbox(), Receiver()

    def deaf(sender: object, **extra: Any) -> None:
        raise LookupError("deaf")

    with served(mailbox) as mail_port, serving(receiver) as receiver.port:
        rig = new_rig(stripe, **settings(mail_port, receiver.port))
        use(rig.metering, 1600)
        with usage_alert.connected_to(deaf):
            for refusals, answer in (
                ({"RCPT": echo}, status("500 No", f"X-Echo: {CANARY}")),
                ({"MAIL": echo}, status(f"302 {CANARY}", f"Location: https://{CANARY}.example/")),
                ({"DATA": echo}, status(f"404 {CANARY}")),
                ({}, CANARY.encode()),
            ):
                mailbox.refusals, receiver.answers = refusals, [answer]
                command(rig, watch, "alerts", "--test", ANN.id)
                work(rig.metering)
                for arguments in COMMANDS:
                    command(rig, watch, *arguments)
    command(rig, watch, "alerts", "--test", ANN.id)  # nobody is there any more
    assert watch.logged("flask_c2meter.notify") and watch.logged("flask_c2meter.signals")


@pytest.mark.parametrize("problem", ["login", "tls"])
def test_case_31_a_mail_server_that_refuses_the_login_or_speaks_no_tls(
    new_rig: Callable[..., Rig], stripe: StripeEmulator, watch: Watch, problem: str
) -> None:
    mailbox = Mailbox()  # its password is another
    options: dict[str, Any] = {}
    if problem == "login":
        options = {"authenticator": mailbox.authenticate, "auth_require_tls": False}
    with served(mailbox, **options) as mail_port:
        config = settings(mail_port, 9) | {"C2METER_MAIL_TLS": problem == "tls"}
        rig = new_rig(stripe, **config)
        use(rig.metering, 1600)
        work(rig.metering)
        shown = command(rig, watch, "alerts", "--test", ANN.id)
    assert f"email: {'login' if problem == 'login' else 'not_supported'}" in shown
    assert bool(mailbox.logins) == (problem == "login")
    assert mailbox.envelopes == []


def test_case_31_hooks_of_the_host_that_raise_with_what_they_were_given(
    tmp_path: Path, watch: Watch
) -> None:
    app = Flask("host", instance_path=str(tmp_path))
    app.config.update(
        {
            **settings(9, 9),
            "C2METER_STRIPE_SECRET_KEY": "",
            "C2METER_MAIL_SERVER": None,
            "C2METER_WORKER": "off",
        }
    )
    meter = C2Meter(app)

    @meter.mail_sender
    def send(mail: Any) -> None:
        raise ConnectionError(f"cannot send to {mail.to} as {MAIL_USER}")

    with app.app_context():
        metering: Metering = current_metering._get_current_object()  # type: ignore[attr-defined]
    use(metering, 1600)
    work(metering)
    (notice,) = metering.store.announcements.notices(metering.config.clock().replace(day=1))
    assert notice.channels["email"].reason == "sender:ConnectionError"
    metering.store.close()


def test_case_31_a_store_that_is_locked_or_damaged(
    new_rig: Callable[..., Rig], stripe: StripeEmulator, watch: Watch
) -> None:
    rig = new_rig(stripe, **settings(9, 9))
    use(rig.metering, 1600)
    path = rig.folder / "c2meter.sqlite"
    with closing(sqlite3.connect(path, isolation_level=None)) as lock:
        lock.execute("BEGIN IMMEDIATE")
        use(rig.metering)
        with pytest.raises(StoreUnavailable) as locked:
            work(rig.metering)
        watch.see("".join(traceback.format_exception(locked.value)))
    rig.store.close()
    for file in rig.folder.glob("c2meter.sqlite*"):
        file.write_bytes(b"no database " * 400)
    use(rig.metering)
    for arguments in COMMANDS:
        command(rig, watch, *arguments)
    assert watch.logged("flask_c2meter")
    assert watch.logged("sqlalchemy")


def test_case_31_requests_and_webhooks(
    tmp_path: Path, watch: Watch, stripe: StripeEmulator
) -> None:
    app = Flask("host", instance_path=str(tmp_path))
    app.config.update(
        {**settings(9, 9), "C2METER_STRIPE_BASE_URL": stripe.url, "C2METER_WORKER": "off"}
    )
    meter = C2Meter(app)
    meter.customer_loader(lambda: ANN)
    meter.dashboard_auth(lambda: ANN)
    app.register_blueprint(meter.webhook_blueprint(), url_prefix="/stripe")
    app.register_blueprint(meter.dashboard_blueprint(), url_prefix="/billing")

    @app.post("/fail")
    @metered(VERIFY, rate_limit="3 per hour", body="json")
    def fail() -> str:
        raise LookupError("a fault of the view")

    client = app.test_client()
    key = {"X-API-Key": f"{CANARY}-api-key", "Authorization": f"Bearer {CANARY}-api-key"}
    for body in ("{}", "[", "{}", "{}", "{}"):
        response = client.post("/fail", data=body, headers={**key, "Idempotency-Key": "k"})
        watch.see(f"{response.status} {response.headers} {response.text}")
    for path in ("/billing/usage", "/billing/usage.json", "/billing/customers", "/nowhere"):
        response = client.get(path, headers=key)
        watch.see(f"{response.status} {response.headers} {response.text}")

    event = json.dumps({"id": "evt_1", "object": "event", "type": "x", "livemode": False}).encode()
    now = utc_now()
    for header in (
        "",
        f"t={int(now.timestamp())},v1={CANARY}",
        signature(event, "whsec_another", now),
        signature(event, STRIPE_SECRET, now - timedelta(hours=1)),
        signature(event, STRIPE_SECRET, now),
    ):
        signed = {"Stripe-Signature": header}
        response = client.post("/stripe/webhook", data=event, headers=signed)
        watch.see(f"{response.status} {response.headers} {response.text}")
    assert response.status_code == 200
    current: Any = app.extensions["c2meter"].metering
    current.store.close()


def test_case_31_the_api_keys_of_the_example(
    tmp_path: Path, watch: Watch, stripe: StripeEmulator
) -> None:
    pytest.importorskip("c2pa", reason="the example app needs the extra 'example'")
    from example_app import create_app
    from example_app.customers import DEMO_CUSTOMERS, OPERATOR_KEY

    config = settings(9, 9) | {"C2METER_STRIPE_BASE_URL": stripe.url, "C2METER_WORKER": "off"}
    app = create_app(config, instance_path=str(tmp_path))
    client = app.test_client()
    for key in (*DEMO_CUSTOMERS, OPERATOR_KEY, f"{CANARY}-key"):
        for headers in ({"X-API-Key": key}, {"Authorization": f"Bearer {key}"}):
            for path in ("/api/verify", "/api/sign", "/api/sites", "/api/nowhere"):
                response = client.post(path, json={"domain": "example.com"}, headers=headers)
                watch.see(f"{response.status} {response.headers} {response.text}")
            response = client.get("/api/usage", headers=headers)
            watch.see(f"{response.status} {response.headers} {response.text}")
    metering: Metering = app.extensions["c2meter"].metering
    for customer in DEMO_CUSTOMERS.values():
        metering.record(VERIFY, customer, value=20_000, manifest_id="m")
    work(metering)
    for arguments in COMMANDS:
        watch.see(app.test_cli_runner().invoke(args=["c2meter", *arguments]).output)
    metering.store.close()
    secrets = [*DEMO_CUSTOMERS, OPERATOR_KEY, *(str(c.email) for c in DEMO_CUSTOMERS.values())]
    assert [line for line in watch.lines if any(secret in line for secret in secrets)] == []


def test_case_31_whatever_has_a_repr(
    new_rig: Callable[..., Rig], stripe: StripeEmulator, watch: Watch
) -> None:
    rig = new_rig(stripe, **settings(9, 9))
    use(rig.metering, 1600)
    metering = rig.metering
    claim = metering.store.announcements.claim("email", metering.config.clock())
    assert claim is not None and claim.email == ANN.email
    for thing in (
        metering.config,
        ANN,
        claim,
        metering,
        metering.store,
        metering.gateway,
        metering.worker,
        metering._process,
        *metering._process.channels,
        *(vars(channel) for channel in metering._process.channels),
        rig.app.extensions["c2meter"],
    ):
        watch.see(repr(thing))
        watch.see(str(thing))


@pytest.mark.parametrize(
    "field", [field for field in dataclasses.fields(Config) if not field.repr], ids=lambda f: f.name
)
@pytest.mark.parametrize(
    "bad", [f"{CANARY}\n", f"{CANARY} {CANARY}", [CANARY], 4.5, CANARY.encode()]
)
def test_case_31_a_secret_that_is_wrong_fails_the_start_unseen(
    field: Any, bad: object, watch: Watch, tmp_path: Path
) -> None:
    app = Flask("host", instance_path=str(tmp_path))
    app.config.update({**settings(9, 9), field.metadata["key"].name: bad})
    try:
        C2Meter(app)
    except C2MeterError as exc:
        watch.see("".join(traceback.format_exception(exc)))


def test_case_31_a_customer_that_cannot_be_one(watch: Watch) -> None:
    for arguments in (
        {"id": "cus_1", "email": f"{CANARY}\n@customer.example"},
        {"id": "cus_1", "email": f"{CANARY}@customer.example" * 50},
    ):
        with pytest.raises(C2MeterError) as caught:
            Customer(**arguments)
        watch.see("".join(traceback.format_exception(caught.value)))


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://acme:{CANARY}@127.0.0.1:9/c2meter",
        f"postgresql+psycopg://acme:{CANARY}@127.0.0.1:9/c2meter?password={CANARY}",
        f"mysql://acme:{CANARY}@127.0.0.1:9/c2meter",
        f"sqlite:////nowhere/at/all.sqlite?password={CANARY}",
        f"acme:{CANARY}@127.0.0.1",
    ],
)
def test_case_31_a_database_out_of_reach_in_a_process_of_its_own(
    children: Children, watch: Watch, url: str
) -> None:
    env = {key: str(value) for key, value in settings(9, 9).items()}
    code, output = children.c2meter("status", env={**env, "C2METER_DATABASE_URL": url})
    assert code != 0
    assert watch.see(output)
