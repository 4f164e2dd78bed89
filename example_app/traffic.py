"""A month of believable traffic, so that a new installation has something to show.

Busy on weekdays and in office hours, quiet at night; the same each time it is asked for, so that
asking twice counts nothing twice. Pure but for :func:`record`; imports ``flask_c2meter`` only.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from flask_c2meter import Customer
from flask_c2meter.metering import Metering

#: Share of the included quantity that a whole month uses: more than all of it on the small plan.
_SHARES = {
    "starter": {"sign_operations": 1.2, "verify_operations": 0.9},
    "growth": {"sign_operations": 0.85, "verify_operations": 0.3},
}
_SITES = {"starter": ["shop.example"], "growth": ["news.example", "media.example", "a.example"]}
#: Gigabytes at the start of the month, and what each day adds.
_STORAGE = {"starter": (5.8, 0.11), "growth": (21.0, 0.42)}

#: How much of a day's traffic each hour has, and of a week's each day, Monday first.
_HOURS = [1, 1, 1, 1, 1, 2, 5, 10, 18, 22, 24, 22, 17, 21, 24, 23, 20, 15, 10, 7, 5, 4, 3, 2]
_WEEK = [20, 23, 24, 22, 18, 6, 5]

_DAY = timedelta(days=1)
#: Enough to share the commits; more would only queue.
_THREADS = 16


@dataclass(frozen=True, slots=True)
class Happening:
    """One thing that a customer did."""

    key: str
    meter: str
    at: datetime
    properties: dict[str, Any]


def month(
    customer: Customer, included: dict[str, int], start: datetime, now: datetime
) -> Iterator[Happening]:
    """What *customer* did in the billing period so far, in no order.

    :param included: meter -> included quantity of its plan.
    :param start: of the period.
    """
    plan = customer.plan or ""
    days = [start + _DAY * number for number in range((now - start) // _DAY)]
    if not days:
        return
    name, chance = f"{start:%Y%m%d}", random.Random(f"{customer.id} {start}")
    for meter, share in _SHARES.get(plan, {}).items():
        # A month's worth, in proportion to the days that have passed.
        count = round(included[meter] * share * len(days) / 30)
        for number, moment in enumerate(_moments(chance, days, count)):
            manifest = f"urn:demo:{name}-{meter}-{number}"
            yield Happening(f"{name}-{number}", meter, moment, _facts(chance, meter, manifest))
    for number, domain in enumerate(_SITES.get(plan, [])):
        at = days[min(number, len(days) - 1)] + timedelta(hours=9)
        yield Happening(f"{name}-{number}", "active_sites", at, {"domain": domain})
    for number, day in enumerate(days):
        calls = {"endpoint": "/v1/manifests", "method": "GET", "status_code": 200}
        amount = chance.randint(2, 6) * _WEEK[day.weekday()]
        at = day + timedelta(hours=15)
        yield Happening(f"{name}-{number}", "api_calls", at, {"value": amount, **calls})
        yield Happening(f"{name}-{number}", "dashboard_views", at, {"page": "usage"})
    base, growth = _STORAGE.get(plan, (1.0, 0.0))
    for number, day in enumerate(days):
        stored = {"storage_gb": f"{base + growth * number:.3f}"}
        yield Happening(f"{name}-{number}", "storage_gb", day + timedelta(hours=2), stored)


def _moments(chance: random.Random, days: list[datetime], count: int) -> Iterator[datetime]:
    weights = [_WEEK[day.weekday()] * chance.uniform(0.7, 1.3) for day in days]
    for day in chance.choices(days, weights, k=count):
        (hour,) = chance.choices(range(24), _HOURS)
        yield day + timedelta(hours=hour, seconds=chance.uniform(0, 3599))


def _facts(chance: random.Random, meter: str, manifest: str) -> dict[str, Any]:
    if meter == "sign_operations":
        size = int(chance.lognormvariate(14, 0.8))
        return {"manifest_id": manifest, "asset_type": "image", "file_size_bytes": size}
    took = int(chance.lognormvariate(3.2, 0.5))
    return {"manifest_id": manifest, "verification_result": True, "processing_time_ms": took}


def record(metering: Metering, customer: Customer) -> int:
    """Let *customer* have had such a month; return how many events are new."""
    rows = metering.usage(customer)
    included = {row.meter: int(row.included) for row in rows if row.included is not None}
    start, now = rows[0].period.start, metering.config.clock()

    def happen(what: Happening) -> bool:
        event = metering.record(
            what.meter, customer, key=f"demo-{what.key}", occurred_at=what.at, **what.properties
        )
        return event is not None

    with ThreadPoolExecutor(_THREADS) as threads:
        return sum(threads.map(happen, month(customer, included, start, now)))
