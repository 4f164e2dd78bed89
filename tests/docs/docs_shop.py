"""The shop of docs/doctor.md: before Stripe is set up, afterwards, and when things go wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from docs_project import Project
from docs_sessions import APP, emulated, ledger

_SHOP = """
import pathlib
app.config["C2METER_WORKER"] = "thread"
app.config["C2METER_CATALOGUE"] = "catalogue.json"
app.config["C2METER_STRIPE_WEBHOOK_SECRET"] = "whsec_any"
app.config.update(json.loads(pathlib.Path("settings.json").read_text()))
meter = C2Meter(app)
app.register_blueprint(meter.webhook_blueprint(), url_prefix="/stripe")
"""


@contextmanager
def examined(project: Project) -> Iterator[None]:
    """A shop, before Stripe is set up; then it is; then things go wrong."""
    if shutil.which("jq") is None:
        pytest.skip("needs jq, which the page uses")
    project.is_wrapped = True
    project.rename("/srv/shop", project.folder)
    meters = {
        "verify_operations": ("sum", 0, {}),
        "storage_gb": ("max", 3, {}),
        "active_sites": (
            "unique_count",
            0,
            {
                "unique_by": "domain",
                "properties": {"domain": {"type": "domain", "required": True}},
            },
        ),
    }
    shop = {
        "plans": {"starter": {}, "scale": {}},
        "meters": {
            name: {
                "event_type": name,
                "unit": {"verify_operations": "verify", "storage_gb": "GB"}.get(name, "site"),
                "aggregation": aggregation,
                "precision": precision,
                "included": {"starter": 2, "scale": 200},
                "price": {"mode": "flat", "unit_amount": "4", "currency": "usd"},
                **more,
            }
            for name, (aggregation, precision, more) in meters.items()
        },
    }
    settings, catalogue = project.folder / "settings.json", project.folder / "catalogue.json"
    settings.write_text("{}")
    catalogue.write_text(json.dumps(shop))
    (project.folder / "app.py").write_text(f"{APP}{_SHOP}")

    def run(command: str) -> None:
        output, exit_code = project.terminal().run(command)
        assert exit_code == 0, output

    with emulated(project) as stripe:

        def set_up() -> None:
            run("flask c2meter provision --apply")
            for thin in (False, True):
                stripe.add_webhook_endpoint(
                    "https://shop.example/stripe/webhook", "whsec_any", thin=thin
                )
            mail = {"MAIL_SERVER": "localhost", "MAIL_SENDER": "shop@shop.example"}
            given = {f"C2METER_{name}": value for name, value in mail.items()}
            settings.write_text(json.dumps({**given, "C2METER_SECURITY_HEADERS": "strict"}))

        def go_wrong() -> None:
            stripe.add_customer("cus_1")
            run(
                'python -c "from app import app; app.app_context().push(); '
                "from flask_c2meter import current_metering; "
                "current_metering.record('verify_operations', 'cus_1')\""
                " && flask c2meter worker --once"
            )
            shop["meters"]["active_sites"]["price"]["unit_amount"] = "5"
            catalogue.write_text(json.dumps(shop))
            ledger(project).chmod(0o644)  # what SQLite puts beside it gets the same
            stripe.fail(403, times=None, path="/v1/customers")
            given = json.loads(settings.read_text())
            settings.write_text(json.dumps({**given, "C2METER_WORKER": "off"}))
            run("export WEB_CONCURRENCY=4 FLASK_C2METER_STRIPE_SECRET_KEY=rk_test_1")

        def mend() -> None:
            stripe.recover()
            run("export WEB_CONCURRENCY=1 FLASK_C2METER_STRIPE_SECRET_KEY=sk_test_1")

        project.before["destinations, strict headers and a mail server"] = set_up
        project.before["restricted key that may not do all"] = go_wrong
        project.before["## selftest"] = mend
        project.before["When it fails it says"] = lambda: stripe.fail(
            403, times=None, path="/v1/billing/meter_events"
        )
        yield
