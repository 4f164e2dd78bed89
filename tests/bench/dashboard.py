"""Whether history costs the dashboard anything: its page and its JSON, with few and many events.

All events are of one customer, in the billing period under way. The first opening, which adds the
finished days up, is reported beside it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from flask import Flask, request

from flask_c2meter import C2Meter, Period, Subscription
from flask_c2meter.metering import Metering
from flask_c2meter.model import UsageEvent, new_id, to_ms
from flask_c2meter.testing import FrozenClock

from .drain import METER, fill
from .measure import Report, alternate, folder_on_disk, options, ratio

CUSTOMER = "cus_1"
NOW = datetime(2026, 3, 28, 17, 30, tzinfo=UTC)
MONTH = Period(datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 4, 1, tzinfo=UTC))


def _month(total: int) -> Iterator[UsageEvent]:
    """*total* events, evenly over the period so far."""
    elapsed = NOW - MONTH.start
    for number in range(total):
        moment = MONTH.start + elapsed * number / total
        yield UsageEvent(
            key=new_id(to_ms(moment)),
            customer=CUSTOMER,
            meter=METER,
            units=1,
            precision=0,
            occurred_at=moment,
            recorded_at=moment,
            properties={"manifest_id": "urn:c2pa:1", "verification_result": True},
        )


def _app(folder: Path, durability: str) -> Flask:
    app = Flask("bench", instance_path=str(folder))
    app.config.update(
        C2METER_STRIPE_SECRET_KEY="",
        C2METER_WORKER="off",
        C2METER_CLOCK=FrozenClock(NOW),
        C2METER_DURABILITY=durability,
        C2METER_CORS_ORIGINS=[],
    )
    meter = C2Meter(app)
    meter.dashboard_auth(lambda: request.headers["Customer"])
    app.register_blueprint(meter.dashboard_blueprint(), url_prefix="/billing")
    return app


def _metering(app: Flask) -> Metering:
    state: Any = app.extensions["c2meter"]
    metering: Metering = state.metering
    return metering


def filled(folder: Path, total: int) -> Flask:
    """An app whose customer has *total* events in the period."""
    builder = _metering(_app(folder, "relaxed"))  # only to be built faster
    started = time.perf_counter()
    builder.store.subscriptions.learn(
        CUSTOMER,
        [Subscription("starter", MONTH, id="sub_1")],
        MONTH.start,
        source="stripe",
        finding="known",
        look_again=None,
    )
    minutes = fill(builder, _month(total))
    builder.store.close()
    seconds = time.perf_counter() - started
    print(f"  {total} events in {minutes} minutes of the period stored in {seconds:.0f} s")
    return _app(folder, "full")


def _opened(app: Flask, path: str, count: int, customer: str = CUSTOMER) -> Callable[[], float]:
    """Opens *path* so many times; returns milliseconds of one."""
    client = app.test_client()

    def run() -> float:
        started = time.perf_counter()
        for _ in range(count):
            answer = client.get(f"/billing/{path}", headers={"Customer": customer})
            if answer.status_code != 200:
                raise RuntimeError(f"{path} cannot be opened")
        return (time.perf_counter() - started) / count * 1e3

    return run


def main() -> None:
    chosen = options(
        __doc__,
        rounds=25,
        events={"type": int, "default": 1_000_000, "help": "in the large store"},
    )
    many = 50_000 if chosen.quick else chosen.events
    sizes = {"few": 1_000, "many": many}
    report = Report(f"Opening the dashboard, ms (medians of {chosen.rounds} rounds)")
    with folder_on_disk(chosen.dir) as folder:
        apps = {name: filled(folder / name, size) for name, size in sizes.items()}
        for name, app in apps.items():
            # Another's page before, so that templates are compiled and the store is open.
            _opened(app, "usage", 1, "cus_2")()
            first = _opened(app, "usage", 1)()
            report.figure(f"the page for the first time, {sizes[name]} events", f"{first:8.2f}")
        for path in ("usage", "usage.json"):
            openings = {name: _opened(app, path, 5) for name, app in apps.items()}
            alternate(openings, 1)
            times = alternate(openings, chosen.rounds)
            for name, found in times.items():
                report.figure(f"{path}, {sizes[name]} events", f"{median(found):8.2f}")
            report.at_most(
                f"{path}, {many} / {sizes['few']} events", ratio(times["many"], times["few"]), 1.2
            )
        for app in apps.values():
            _metering(app).store.close()
    report.print()


if __name__ == "__main__":
    main()
