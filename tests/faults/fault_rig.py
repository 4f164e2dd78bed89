"""What the fault tests are made of: an app with its emulator and clock, and child processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from decimal import Decimal
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from fault_app import build

from flask_c2meter import current_metering
from flask_c2meter.clerk import Clerk
from flask_c2meter.courier import Courier
from flask_c2meter.emulator import StripeEmulator
from flask_c2meter.gateway import Gateway
from flask_c2meter.jury import Jury
from flask_c2meter.metering import Metering
from flask_c2meter.model import to_ms
from flask_c2meter.testing import FrozenClock
from flask_c2meter.transports import transport
from flask_c2meter.worker import Worker

HERE = Path(__file__).parent
KEY = "sk_test_faults"

VERIFY = "verify_operations"
SIGN = "sign_operations"
STORAGE = "storage_gb"
SITES = "active_sites"
BILLABLE = (VERIFY, SIGN, STORAGE, SITES)


def until(true: Callable[[], object], within_s: float, what: str = "") -> float:
    """Poll until *true*; return the seconds it took. Fails after *within_s*."""
    started = time.monotonic()
    while not true():
        waited = time.monotonic() - started
        assert waited < within_s, f"not within {within_s} s: {what or true}"
        time.sleep(0.005)
    return time.monotonic() - started


class Rig:
    """One app in this process, without a worker thread: tests run its workers themselves.

    :param clock: the app's; a :class:`FrozenClock` makes :meth:`drain` a simulation.
    """

    def __init__(
        self, folder: Path, stripe: StripeEmulator, clock: FrozenClock | None = None, **config: Any
    ) -> None:
        self.folder = folder
        self.stripe = stripe
        self.clock = clock
        if clock is not None:
            config["C2METER_CLOCK"] = clock
        self.app = build(
            folder,
            **{
                "C2METER_STRIPE_BASE_URL": stripe.url,
                "C2METER_STRIPE_SECRET_KEY": KEY,
                "C2METER_WORKER": "off",
                **config,
            },
        )
        with self.app.app_context():
            self.metering: Metering = current_metering._get_current_object()  # type: ignore[attr-defined]
        self.store = self.metering.store

    def close(self) -> None:
        """Stop its worker thread, if it has one, and close the store."""
        worker = self.metering.worker
        if worker is not None and worker.is_running:
            worker.stop()
            until(lambda: not worker.is_running, 15)
        self.store.close()

    # -- recording -------------------------------------------------------------------------------

    def record_many(self, usage: Iterable[tuple[str, int, datetime | None]]) -> int:
        """Record verifications of (customer, value, time) in one transaction; their number."""
        number = 0
        with self.store.writing() as connection:
            for customer, value, at in usage:
                self.metering.record(
                    VERIFY,
                    customer,
                    value=value,
                    occurred_at=at,
                    connection=connection,
                    manifest_id="m",
                )
                number += 1
        return number

    def backlog(self, customers: int, minutes: int, end: datetime) -> int:
        """One event in each of *minutes* before *end* of each customer: so many shipments."""
        return self.record_many(
            (f"cus_{c}", 1 + (c + m) % 3, end - timedelta(minutes=m))
            for c in range(customers)
            for m in range(minutes)
        )

    # -- delivering ------------------------------------------------------------------------------

    def worker(
        self, deadline_s: float = 20.0, kind: Any = "v1", key: str = KEY, rate_cap: float = 10_000
    ) -> Worker:
        """A worker with a pace and a deadline of the test's choice."""
        config = self.metering.config
        gateway = Gateway(key, base_url=self.stripe.url, clock=config.clock, deadline_s=deadline_s)
        courier = Courier(
            self.store,
            self.metering._process.spill,
            transport(kind, gateway),
            account=gateway.account,
            meters=BILLABLE,
            clock=config.clock,
            rate_cap=rate_cap,
        )
        return Worker(Clerk([Jury(self.store, gateway, config.clock)]), courier)

    def next_event(self) -> datetime | None:
        """When a worker has something to do next; None = never."""
        assert self.clock is not None
        now_ms = to_ms(self.clock())
        holds = self.store.holds()
        held = {hold.meter for hold in holds}
        due = None
        if "*" not in held:
            due = self.store.next_due_ms([m for m in BILLABLE if m not in held], now_ms)
        moments = [hold.probe_ms for hold in holds] + ([] if due is None else [due])
        if self.store.next_due_ms(BILLABLE, now_ms) is None:
            return None
        return self.clock() + timedelta(milliseconds=max(0, min(moments) - now_ms))

    def drain(
        self,
        worker: Worker | None = None,
        within: timedelta = timedelta(hours=3),
        at: Mapping[datetime, Callable[[], None]] | None = None,
    ) -> None:
        """Deliver everything, moving the clock from one due time to the next.

        :param at: what to do when the clock reaches a time.
        """
        assert self.clock is not None
        worker = worker or self.worker()
        plan = sorted((at or {}).items())
        limit = self.clock() + within
        while True:
            worker.run_once()
            moment = self.next_event()
            if moment is None and not plan:
                return
            assert self.clock() < limit, f"not delivered within {within}: {self.counts()}"
            # Half a second at least: a retry that is due "now" again would be no simulation.
            moment = max(moment or plan[0][0], self.clock() + timedelta(milliseconds=500))
            if plan and moment >= plan[0][0]:
                self.clock.now, act = plan.pop(0)
                act()
            else:
                self.clock.now = moment

    # -- judging ---------------------------------------------------------------------------------

    def counts(self) -> dict[str, str]:
        """Where the quantity of the verifications is."""
        row: dict[str, str] = self.metering.status()["meters"][VERIFY]
        return row

    def dead(self) -> list[tuple[str, str | None]]:
        """Customer and reason of each dead shipment."""
        return [(s.customer, s.reason) for s in self.store.shipments("dead")]

    def assert_books_balance(self) -> None:
        """Nothing is dead or under way, ``verify`` is clean, and Stripe holds what we recorded."""
        assert self.dead() == []
        assert list(self.store.verify()) == []
        assert stripe_totals(self.stripe) == ledger_totals(self.folder)
        assert leases(self.folder) == []


def sends(stripe: StripeEmulator) -> int:
    """Requests that carried meter events."""
    return sum("meter_event" in request.path for request in stripe.requests)


def sql(folder: Path, query: str, *parameters: object) -> list[tuple[Any, ...]]:
    """Ask the ledger in *folder* as an operator would."""
    connection = sqlite3.connect(f"file:{folder}/c2meter.sqlite?mode=ro", uri=True)
    try:
        return connection.execute(query, parameters).fetchall()
    finally:
        connection.close()


def ledger_totals(folder: Path) -> dict[tuple[str, str], int]:
    """(meter, customer) -> recorded wire units of billable meters."""
    rows = sql(
        folder,
        "SELECT meter, customer, SUM(total) FROM totals GROUP BY 1, 2 HAVING SUM(total) <> 0",
    )
    return {(meter, customer): total for meter, customer, total in rows if meter in BILLABLE}


def stripe_totals(stripe: StripeEmulator) -> dict[tuple[str, str], int]:
    """(meter, customer) -> wire units that Stripe holds."""
    totals: dict[tuple[str, str], Decimal] = {}
    for event in stripe.events:
        lane = (event.event_name, event.customer)
        totals[lane] = totals.get(lane, Decimal(0)) + event.value
    return {lane: int(total) for lane, total in totals.items() if total}


def leases(folder: Path) -> list[tuple[str, str, str]]:
    """Leased lanes: customer, meter, owner."""
    return sql(
        folder, "SELECT customer, meter, lease_owner FROM lanes WHERE lease_owner IS NOT NULL"
    )


# -- processes -------------------------------------------------------------------------------------


class Children:
    """Starts child processes and leaves none behind."""

    def __init__(self, folder: Path, stripe: StripeEmulator | None) -> None:
        self.folder = folder
        self.env = {
            **os.environ,
            "FAULT_DIR": str(folder),
            "PYTHONPATH": str(HERE),
            "PYTHONWARNINGS": "error::ResourceWarning",
        }
        self.env.pop("C2METER_FAILPOINTS", None)
        if stripe is not None:
            self.env |= {"C2METER_STRIPE_BASE_URL": stripe.url, "C2METER_STRIPE_SECRET_KEY": KEY}
        self._started: list[subprocess.Popen[str]] = []

    def start(
        self, *arguments: str, env: Mapping[str, str] | None = None, **options: Any
    ) -> subprocess.Popen[str]:
        """Run ``python -m ARGUMENTS`` in a session of its own."""
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            env={**self.env, **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            **options,
        )
        self._started.append(process)
        return process

    def run(
        self, *arguments: str, env: Mapping[str, str] | None = None, timeout_s: float = 110
    ) -> tuple[int, str]:
        """Run to the end; exit code and output."""
        process = self.start(*arguments, env=env)
        output, _ = process.communicate(timeout=timeout_s)
        return process.returncode, output

    def act(self, name: str, env: Mapping[str, str] | None = None, **arguments: Any) -> Any:
        """Run a function of ``fault_children``; what it returned."""
        timeout_s = arguments.pop("timeout_s", 110)
        code, output = self.run(
            "fault_children", name, json.dumps(arguments), env=env, timeout_s=timeout_s
        )
        assert code == 0, output
        return json.loads(output.splitlines()[-1])

    def c2meter(self, *arguments: str, env: Mapping[str, str] | None = None) -> tuple[int, str]:
        """Run ``flask c2meter ARGUMENTS``."""
        return self.run("flask", "--app", "fault_app:create_app", "c2meter", *arguments, env=env)

    def worker(self, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """Start ``flask c2meter worker``."""
        return self.start("flask", "--app", "fault_app:create_app", "c2meter", "worker", env=env)

    def await_readiness(self, worker: subprocess.Popen[str]) -> None:
        """Until a worker works, and heeds signals: another may do all there is meanwhile."""
        assert worker.stdout is not None
        assert any("SIGTERM stops" in line for line in worker.stdout), "it has ended"

    @contextmanager
    def gunicorn(self, *arguments: str, env: Mapping[str, str] | None = None) -> Iterator[int]:
        """Serve the app on a free port, given in the block."""
        with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
            listener.set_inheritable(True)
            process = self.start(
                "gunicorn",
                *arguments,
                "-b",
                f"fd://{listener.fileno()}",
                "--no-control-socket",
                "fault_app:create_app()",
                env=env,
                pass_fds=[listener.fileno()],
            )
            yield listener.getsockname()[1]
            process.send_signal(signal.SIGTERM)
            output, _ = process.communicate(timeout=60)
            assert process.returncode == 0, output

    def stop_all(self) -> None:
        for process in self._started:
            try:
                # Its session's group: gunicorn's workers may have outlived their master.
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait(timeout=30)
            if process.stdout is not None:
                process.stdout.close()


def post(
    port: int, path: str, content: object, customer: str, **headers: str
) -> tuple[int, dict[str, Any]]:
    """POST JSON to a server of ours; status and answer."""
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(
            "POST",
            path,
            json.dumps(content),
            {"Content-Type": "application/json", "X-Customer": customer, **headers},
        )
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()
