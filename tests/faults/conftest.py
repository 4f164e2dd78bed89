"""The fault suite: the cases a metering product must survive, and the fixtures they share.

Each case has a short variant in the default run; ``pytest -m long`` runs its own numbers.

======  =================================================  =======================================
case    what happens                                       tests
======  =================================================  =======================================
1       killed before COMMIT, the client tries again       test_kills: test_case_01_*
2       killed after COMMIT, before sending                test_kills: test_case_02_*
3       killed after sending, before the receipt is noted  test_kills: test_case_03_*
5       four workers on one backlog                        test_workers: test_case_05_*
6       gunicorn --preload with four workers               test_workers: test_case_06_*
7       SIGTERM with backlog and requests in flight        test_workers: test_case_07_*
8       the database is locked                             test_store_outage: test_case_08_*
9       the database or the disk is full                   test_store_outage: test_case_09_*
10      the clock jumps                                    test_time: test_case_10_*
11      rows at the edge of 35 days                        test_time: test_case_11_*
12      events at the edge of a period, delivered late     test_time: test_case_12_*
13      the same idempotency key, other bodies, tenants    test_repeats: test_case_13_*
14      an unknown outcome, then a day without Stripe      integration/test_jury
15      timeout and reset after processing                 test_stripe_outage: test_case_15_*
16      429 with and without Retry-After                   test_stripe_outage: test_case_16_*
17      minutes of 5xx with a backlog                      test_stripe_outage: test_case_17_*
18      one bad shipment among a hundred                   test_stripe_outage: test_case_18_*
19      an hour of 401                                     test_stripe_outage: test_case_19_*
20      an asynchronous error report                       test_stripe_outage: test_case_20_*,
                                                           integration/test_webhook_reports
21      sixteen processes record at once                   test_workers: test_case_21_*
22      a million events wait                              test_backlog: test_case_22_*
23      a million amounts against a fractions oracle       unit/test_rating: *_the_fractions_oracle
24      shuffled, late, repeated, voided usage             test_conservation: test_case_24_*
25      quantities that are none                           integration/test_metered, test_metering
26      the storage job: failures, reruns, kills           test_storage: test_case_26_*
27      a thousand crossings, jumps, restarts              test_alerts: test_case_27_*
28      every route without login                          integration/test_logins, test_dashboard,
                                                           test_webhooks_in
29      another tenant's ids on every route                integration/test_logins, test_dashboard
30      forged, altered and old webhooks of Stripe         unit/test_stripe_signature,
                                                           integration/test_webhooks_in
31      secrets on every path, logged at DEBUG             test_secrets: test_case_31_*
32      forty forms of forbidden webhook URLs              integration/test_alert_webhook: HOME
33      origins that are not ours                          integration/test_extension: TestCors
34      a thousand forged X-Forwarded-For                  unit/test_ratelimit: TestIdentity
======  =================================================  =======================================

Beyond the numbered cases: the other store faults of the same kind (file replaced, unlinked,
read-only, damaged) are in test_store_outage, an hour without Stripe is in test_stripe_outage, a
thousand mixed operations under ten percent faults are in test_conservation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fault_rig import Children, Rig

from flask_c2meter.emulator import StripeEmulator
from flask_c2meter.testing import FrozenClock


@pytest.fixture
def clock() -> FrozenClock:
    """Moves only when told to."""
    return FrozenClock()


@pytest.fixture
def stripe() -> Iterator[StripeEmulator]:
    """Stripe in real time."""
    with StripeEmulator(seed=7) as emulator:
        yield emulator


@pytest.fixture
def frozen_stripe(clock: FrozenClock) -> Iterator[StripeEmulator]:
    """Stripe on the same clock as the app."""
    with StripeEmulator(clock=clock, seed=7) as emulator:
        yield emulator


@pytest.fixture
def new_rig(tmp_path: Path) -> Iterator[Callable[..., Rig]]:
    """Makes apps that are closed after the test."""
    made: list[Rig] = []

    def make(stripe: StripeEmulator, clock: FrozenClock | None = None, **config: Any) -> Rig:
        made.append(Rig(tmp_path, stripe, clock, **config))
        return made[-1]

    yield make
    for rig in made:
        rig.close()


@pytest.fixture
def rig(new_rig: Callable[..., Rig], stripe: StripeEmulator) -> Rig:
    """An app and Stripe in real time."""
    return new_rig(stripe)


@pytest.fixture
def frozen_rig(
    new_rig: Callable[..., Rig], frozen_stripe: StripeEmulator, clock: FrozenClock
) -> Rig:
    """An app and Stripe on one clock that only the test moves."""
    return new_rig(frozen_stripe, clock)


@pytest.fixture
def children(tmp_path: Path, stripe: StripeEmulator) -> Iterator[Children]:
    """Child processes on the ledger of this test."""
    started = Children(tmp_path, stripe)
    yield started
    started.stop_all()
