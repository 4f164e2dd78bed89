"""``flask_c2meter.testing``: what a host's own tests get."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from flask import Flask

from flask_c2meter import C2Meter, UsageEvent
from flask_c2meter.emulator import StripeEmulator
from flask_c2meter.metering import Metering
from flask_c2meter.testing import (
    FAILPOINTS,
    Failure,
    FrozenClock,
    arm_from_environment,
    capture_usage,
    failpoint,
)


@pytest.fixture
def metering(tmp_path: Path) -> Iterator[Metering]:
    app = Flask("host", instance_path=str(tmp_path))
    app.config["C2METER_STRIPE_SECRET_KEY"] = ""
    C2Meter(app)
    metering: Metering = app.extensions["c2meter"].metering
    yield metering
    metering.store.close()


class TestFrozenClock:
    def test_it_moves_only_when_told_to(self) -> None:
        clock = FrozenClock()
        start = clock()
        assert clock() == start == datetime(2026, 1, 15, 12, tzinfo=UTC)
        assert clock.advance(timedelta(hours=2)) == clock() == start + timedelta(hours=2)
        clock.advance(timedelta(hours=-2))
        assert clock() == start

    def test_it_begins_where_it_is_told_to(self) -> None:
        moment = datetime(2030, 5, 17, tzinfo=UTC)
        assert FrozenClock(moment)() == moment


class TestFixtures:
    def test_a_clock(self, c2meter_clock: FrozenClock) -> None:
        assert isinstance(c2meter_clock, FrozenClock)

    def test_an_emulator_over_a_real_socket(self, stripe_emulator: StripeEmulator) -> None:
        assert stripe_emulator.url.startswith("http://127.0.0.1:")
        assert stripe_emulator.events == []

    def test_which_goes_by_that_clock_if_both_are_used(
        self, stripe_emulator: StripeEmulator, c2meter_clock: FrozenClock
    ) -> None:
        c2meter_clock.advance(timedelta(days=400))
        assert stripe_emulator.now() == c2meter_clock()

    def test_captured_usage(self, captured_usage: list[UsageEvent], metering: Metering) -> None:
        event = metering.record("api_calls", "cus_1")
        assert captured_usage == [event]


def test_capture_usage_ends_with_its_block(metering: Metering) -> None:
    with capture_usage() as captured:
        event = metering.record("api_calls", "cus_1")
    metering.record("api_calls", "cus_1")
    assert captured == [event]


class TestFailpoints:
    def test_an_armed_one_acts_whenever_it_is_reached(self, metering: Metering) -> None:
        reached = []
        with failpoint("before_commit", lambda: reached.append(len(reached))):
            for _ in range(3):
                metering.record("api_calls", "cus_1")
        metering.record("api_calls", "cus_1")
        assert reached == [0, 1, 2]

    def test_one_that_raises_before_the_commit_leaves_no_row(self, metering: Metering) -> None:
        def fail() -> None:
            raise Failure

        with failpoint("before_commit", fail), pytest.raises(Failure):
            metering.record("api_calls", "cus_1")
        assert metering.store.events() == []
        assert metering.record("api_calls", "cus_1") is not None

    def test_a_name_that_does_not_exist_is_refused(self) -> None:
        with pytest.raises(ValueError, match="there are before_commit"), failpoint("later", print):
            pass

    @pytest.mark.parametrize(
        ("spec", "code", "rows"),
        [
            ("before_commit=kill", -signal.SIGKILL, 0),
            ("before_commit=kill:3", -signal.SIGKILL, 2),
            ("after_commit=kill", -signal.SIGKILL, 1),
            ("after_commit=exit:2", 1, 2),
            ("before_commit=raise", 1, 0),
            ("", 0, 5),
        ],
    )
    def test_the_environment_arms_real_processes(
        self, tmp_path: Path, spec: str, code: int, rows: int
    ) -> None:
        script = (
            "import flask, flask_c2meter, flask_c2meter.testing, sys\n"
            "app = flask.Flask('host', instance_path=sys.argv[1])\n"
            "flask_c2meter.C2Meter(app)\n"
            "metering = app.extensions['c2meter'].metering\n"
            "for number in range(5): metering.record('api_calls', 'cus_1', key=f'k-{number}')\n"
        )
        environ = {**os.environ, "C2METER_FAILPOINTS": spec}
        environ.pop("STRIPE_SECRET_KEY", None)
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)],
            env=environ,
            capture_output=True,
            timeout=60,
        )
        assert done.returncode == code, done.stderr

        app = Flask("host", instance_path=str(tmp_path))
        app.config["C2METER_STRIPE_SECRET_KEY"] = ""
        C2Meter(app)
        store = app.extensions["c2meter"].metering.store
        assert len(store.events()) == rows
        assert list(store.verify()) == []
        store.close()

    def test_a_wrong_one_in_the_environment_is_refused(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("C2METER_FAILPOINTS", "somewhere=kill")
        with pytest.raises(ValueError, match="no failpoint 'somewhere'"):
            arm_from_environment()

    def test_the_contracts_seven_exist(self) -> None:
        assert set(FAILPOINTS) == {
            "before_commit",
            "after_commit",
            "after_claim",
            "before_send",
            "after_send",
            "before_ack",
            "after_ack",
        }
