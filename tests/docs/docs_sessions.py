"""The stories of which pages show captured sessions: what has happened before the first command.

Each leaves an ``app.py`` in the folder of the page, so that its commands are real processes.
"""

from __future__ import annotations

import csv
import hashlib
import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import chdir, closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from billing_rig import CATALOGUE, billed
from docs_project import Project
from reconcile_rig import OTHERS, a_month
from stripe import StripeClient

from flask_c2meter.emulator import StripeEmulator

APP = """
import json, os, time
from datetime import UTC, datetime
from decimal import Decimal
from flask import Flask
from flask_c2meter import C2Meter, Customer, StorageMeasurement, metered

app = Flask(__name__)
app.config["C2METER_WORKER"] = "off"
app.config.from_prefixed_env()
"""


def write_app(project: Project, code: str) -> None:
    (project.folder / "app.py").write_text(f"{APP}{code}\nmeter = C2Meter(app)\n")


def ledger(project: Project) -> Path:
    return project.folder / "instance" / "c2meter.sqlite"


@contextmanager
def emulated(project: Project, **settings: Any) -> Iterator[StripeEmulator]:
    """An emulator, and the environment that leads to it."""
    with StripeEmulator(**settings) as stripe:
        project.environment["FLASK_C2METER_STRIPE_BASE_URL"] = stripe.url
        project.environment["FLASK_C2METER_STRIPE_SECRET_KEY"] = "sk_test_1"
        yield stripe


# -- docs/monitoring.md ----------------------------------------------------------------------------


@contextmanager
def monitored(project: Project) -> Iterator[None]:
    """An app with a canary, whose usage is delivered."""
    with emulated(project) as stripe:
        stripe.add_meter("sign_operations")
        stripe.add_meter("c2meter_canary")
        stripe.add_customer("cus_canary")
        stripe.add_customer("cus_1")
        write_app(
            project,
            'app.config["C2METER_CANARY"] = 300\n'
            'app.config["C2METER_CANARY_CUSTOMER"] = "cus_canary"\n',
        )
        (project.folder / "use.py").write_text(
            "from app import app\n"
            "with app.app_context():\n"
            "    from flask_c2meter import Customer, current_metering\n"
            '    ada = Customer("cus_1", plan="starter")\n'
            "    for _ in range(480):\n"
            '        current_metering.record("sign_operations", ada, manifest_id="m")\n'
        )
        for command in ("python use.py", "flask c2meter worker --once"):
            output, exit_code = project.terminal().run(command)
            assert exit_code == 0, output
        yield


# -- docs/storage.md -------------------------------------------------------------------------------

_STORES = '''
def size(number):
    return Decimal(number * 7919 % 10_000) / 1000 / 3 + Decimal("0.5")

def tries_before(number):
    """How often this customer was to be measured before."""
    with open(os.path.join(os.path.dirname(__file__), "measured"), "a+") as seen:
        seen.seek(0)
        known = seen.read().split()
        seen.write(f"{number} ")
    return known.count(str(number))

meter = C2Meter(app)

@meter.storage_loader
def measure(is_wanted):
    for number in range(250):
        customer = f"cus_{number:03}"
        if not is_wanted(customer):
            continue
        failures = 2 if number < 2 else 1 if number < 31 else 0
        if failures and tries_before(number) < failures:
            yield StorageMeasurement(customer, error="the bucket did not answer")
        else:
            yield StorageMeasurement(customer, evidence_gb=size(number))
'''


@contextmanager
def storage_session(project: Project) -> Iterator[None]:
    """250 customers, of whom 31 cannot be measured at first, and two not at the second time."""
    (project.folder / "app.py").write_text(
        f'{APP}app.config["C2METER_STORAGE_PAUSE"] = 0\n'
        'app.config["C2METER_STRIPE_SECRET_KEY"] = ""\n'
        'app.config["C2METER_STORAGE_RETRIES"] = 0\n' + _STORES
    )
    yield


# -- docs/provisioning.md --------------------------------------------------------------------------


@contextmanager
def provisioning(project: Project) -> Iterator[None]:
    """An app with nothing but its catalogue, which lies beside it."""
    write_app(project, 'app.config["C2METER_CATALOGUE"] = "catalogue.toml"\n')

    def somebody_makes_a_meter() -> None:
        client = StripeClient(
            "sk_test_any", base_addresses={"api": f"http://127.0.0.1:{project.port('12111')}"}
        )
        client.v1.billing.meters.create(
            {
                "event_name": "stored_gb",
                "display_name": "Stored",
                "default_aggregation": {"formula": "last"},
            }
        )
        catalogue = project.folder / "catalogue.toml"
        catalogue.write_text(catalogue.read_text().replace("storage_gb", "stored_gb"))

    project.before["while something does, nothing at all is changed"] = somebody_makes_a_meter
    project.before["A Stripe that is too busy is waited for"] = project.terminal("second").close
    yield


# -- docs/proof.md ---------------------------------------------------------------------------------

BEGIN = datetime(2026, 11, 26, 5, 41, tzinfo=UTC)

_VERIFY = """
app.config["C2METER_CLOCK"] = lambda: datetime.fromtimestamp(time.time() - BEHIND, UTC)
meter = C2Meter(app)
meter.customer_loader(lambda: Customer("cus_123", plan="starter"))

@app.post("/verify")
@metered("verify_operations", properties={"manifest_id": "urn:c2pa:5"})
def verify():
    return {}
"""

_OLD = """customer,meter,key,occurred_at,value,manifest_id
cus_123,verify_operations,old-1,2026-11-03T09:15:00Z,1800,urn:c2pa:1
cus_123,verify_operations,old-2,2026-11-04T16:40:12Z,950,urn:c2pa:2
cus_123,verify_operations,old-3,2026-11-05 10:00:00,3,urn:c2pa:3
cus_123,verify_operations,old-4,2026-10-02T08:00:00Z,7,urn:c2pa:4
"""

_TWO_REQUESTS = """
from app import app
for number in (4711, 4712):
    headers = {"X-Request-ID": f"req-{number}"}
    assert app.test_client().post("/verify", headers=headers).status_code == 200
"""


@contextmanager
def proof(project: Project) -> Iterator[None]:
    """An app that delivers to the emulator, two requests, and a file of older usage."""
    behind = time.time() - BEGIN.timestamp()
    with emulated(
        project, clock=lambda: datetime.fromtimestamp(time.time() - behind, UTC)
    ) as stripe:
        stripe.add_meter("verify_operations")
        stripe.add_customer("cus_123")
        (project.folder / "app.py").write_text(f"{APP}BEHIND = {behind}\n{_VERIFY}")
        (project.folder / "old.csv").write_text(_OLD)
        (project.folder / "use.py").write_text(_TWO_REQUESTS)
        stripe.fail(
            status=400, code="payload_invalid_value", times=1, path="/v1/billing/meter_events"
        )

        def old_1_is(value: int) -> None:
            """Somebody changes an event in the database."""
            with closing(sqlite3.connect(ledger(project))) as database, database:
                database.execute("UPDATE events SET value = ? WHERE key = 'old-1'", (value,))

        def run(command: str) -> None:
            output, exit_code = project.terminal().run(command)
            assert exit_code == 0, output

        export_again = "flask c2meter export cus_123 --output november.csv"
        project.names.update(csv=csv, hashlib=hashlib, json=json)
        project.before["After somebody has changed one event"] = lambda: old_1_is(18)
        project.before["A bill that the customer can audit"] = lambda: old_1_is(1800)
        project.before["Each row has a `hash`"] = lambda: run(export_again)
        project.before["it is *dead*, `status` is unhealthy"] = lambda: run("python use.py")
        with chdir(project.folder):
            yield


# -- docs/reconciliation.md ------------------------------------------------------------------------


@contextmanager
def reconciliation(project: Project) -> Iterator[None]:
    """A month of five customers, and five things that went wrong."""
    folder = project.folder / "instance"
    known = {"cus_1", *OTHERS}
    with billed(folder, emulator={"customers": known}) as account:
        a_month(account, known)
        project.environment["FLASK_C2METER_STRIPE_BASE_URL"] = account.stripe.url
        project.environment["FLASK_C2METER_STRIPE_SECRET_KEY"] = "sk_test_1"
        (project.folder / "catalogue.json").write_text(json.dumps(CATALOGUE))
        write_app(
            project,
            'app.config["C2METER_CATALOGUE"] = "catalogue.json"\n'
            f'app.config["C2METER_CLOCK"] = lambda: '
            f'datetime.fromisoformat("{account.clock().isoformat()}")\n',
        )
        yield
