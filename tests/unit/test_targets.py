"""The four targets: what counts as met, and what a share says."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal, localcontext

import pytest

from flask_c2meter.targets import (
    ALERT_TIMELINESS,
    EVENT_LATENCY,
    Accuracy,
    Targets,
    accuracy,
    durations,
    percentile,
    share,
)

AT = datetime(2026, 1, 15, 12, tzinfo=UTC)
NOTHING = durations((), EVENT_LATENCY)


def met(name: str, **more: object) -> bool | None:
    given: dict[str, object] = {
        "event_latency": NOTHING,
        "success_rate": None,
        "accuracy": None,
        "alert_timeliness": NOTHING,
    }
    return Targets(**(given | more)).are_met[name]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ascending", "percent", "value"),
    [
        ([], 99, None),
        ([7], 50, 7),
        ([7], 99, 7),
        ([1, 2], 50, 1),
        ([1, 2, 3], 50, 2),
        (list(range(1, 101)), 99, 99),
        (list(range(1, 102)), 99, 100),
    ],
)
def test_a_percentile_is_the_least_value_that_so_many_do_not_exceed(
    ascending: list[int], percent: int, value: int | None
) -> None:
    assert percentile(ascending, percent) == value


def test_a_share_is_rounded_down_so_that_one_means_all() -> None:
    assert share(9_999_999, 10_000_000) == Decimal("0.99999")
    assert share(3, 3) == 1
    assert share(0, 3) == 0
    assert share(0, 0) is None


def test_the_hosts_decimal_context_changes_nothing() -> None:
    with localcontext() as context:
        context.prec = 2
        assert share(2, 3) == Decimal("0.66666")
        assert durations([12_345], EVENT_LATENCY).p50 == Decimal("12.345")


def test_nothing_has_happened() -> None:
    assert NOTHING.p50 is NOTHING.p99 is NOTHING.longest is NOTHING.share_within is None
    for name in ("event_latency", "success_rate", "billing_accuracy", "alert_timeliness"):
        assert met(name) is None


@pytest.mark.parametrize(("waits_ms", "is_met"), [([4_999], True), ([5_000], False)])
def test_latency_is_met_below_five_seconds(waits_ms: list[int], is_met: bool) -> None:
    assert met("event_latency", event_latency=durations(waits_ms, EVENT_LATENCY)) is is_met


@pytest.mark.parametrize(("failed", "is_met"), [(0, True), (1, False), (2, False)])
def test_success_is_met_above_999_of_1000(failed: int, is_met: bool) -> None:
    assert met("success_rate", success_rate=share(1000 - failed, 1000)) is is_met


@pytest.mark.parametrize(("right", "is_met"), [(720, True), (719, False)])
def test_accuracy_is_met_at_all(right: int, is_met: bool) -> None:
    value = share(right, 720)
    assert value is not None
    assert met("billing_accuracy", accuracy=Accuracy(value, AT)) is is_met


@pytest.mark.parametrize(
    ("more", "within"),
    [
        ({}, "1"),
        ({"waiting_ms": [900_000]}, "1"),
        ({"waiting_ms": [900_001]}, "0.5"),
        ({"failed": 1}, "0.5"),
    ],
)
def test_an_alert_that_is_overdue_or_given_up_is_not_in_time(
    more: dict[str, object], within: str
) -> None:
    found = durations([1_000], ALERT_TIMELINESS, **more)  # type: ignore[arg-type]
    assert found.share_within == Decimal(within)
    assert met("alert_timeliness", alert_timeliness=found) is (within == "1")


def test_accuracy_is_what_the_last_reconciliation_noted() -> None:
    at = "2026-01-15T12:00:00Z"
    assert accuracy(None) is None
    assert accuracy({"accuracy": None, "at": at}) is None
    assert accuracy({"accuracy": "0.99861", "at": at}) == Accuracy(Decimal("0.99861"), AT)
