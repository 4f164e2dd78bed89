"""Rate limits counted in memory: exact, moving, forgetting, and nobody else's business."""

from __future__ import annotations

import os
import random
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import flask
import pytest
import time_machine
from flask_limiter import Limiter
from flask_limiter.util import get_remote_address

from flask_c2meter.errors import ConfigError
from flask_c2meter.limiting import RateLimiter, identify, limiter_of, parse_rule
from flask_c2meter.model import Customer
from flask_c2meter.ratelimit import build_limiter
from flask_c2meter.windows import Decision, MovingWindowStorage

NOON = 1_800_000_000
ALICE = identify(Customer("cus_1", user_id="alice"))
BOB = identify(Customer("cus_1", user_id="bob"))


@pytest.fixture
def clock():
    with time_machine.travel(NOON, tick=False) as traveller:
        yield traveller


def make_limiter(**config: Any) -> RateLimiter:
    app = flask.Flask("host")
    app.config.update(config)
    return build_limiter(app)


def hit(limiter: RateLimiter, rule: str, user: str = ALICE) -> Decision:
    decision = limiter.hit("verify_operations", rule, user)
    assert decision is not None
    return decision


class TestDeciding:
    @pytest.mark.parametrize("rule", ["50/minute", "50/minute;60/hour"])
    def test_64_threads_get_exactly_the_limit(self, rule: str) -> None:
        limiter = make_limiter()
        start = threading.Barrier(64)

        def client(_: int) -> int:
            start.wait()
            return sum(hit(limiter, rule).allowed for _ in range(5))

        with ThreadPoolExecutor(64) as pool:
            assert sum(pool.map(client, range(64))) == 50

    def test_the_window_moves(self, clock) -> None:
        limiter = make_limiter()
        assert hit(limiter, "2/minute").allowed
        clock.shift(40)
        assert hit(limiter, "2/minute").allowed
        clock.shift(19)
        assert not hit(limiter, "2/minute").allowed
        clock.shift(1)
        assert hit(limiter, "2/minute").allowed
        assert not hit(limiter, "2/minute").allowed

    def test_waiting_as_told_is_enough_and_needed(self, clock) -> None:
        limiter = make_limiter()
        hit(limiter, "1/minute")
        clock.shift(12.5)
        refused = hit(limiter, "1/minute")
        assert refused == Decision(
            allowed=False, limit=1, remaining=0, reset_at=NOON + 60, retry_after_s=48
        )
        clock.shift(refused.retry_after_s - 1)
        assert not hit(limiter, "1/minute").allowed
        clock.shift(1)
        assert hit(limiter, "1/minute").allowed

    def test_refused_hits_are_not_counted(self, clock) -> None:
        limiter = make_limiter()
        hit(limiter, "1/minute")
        for _ in range(59):
            clock.shift(1)
            assert not hit(limiter, "1/minute").allowed
        clock.shift(1)
        assert hit(limiter, "1/minute").allowed

    def test_a_clock_set_back_does_not_lock_out(self, clock) -> None:
        limiter = make_limiter()
        hit(limiter, "1/minute")
        clock.shift(-3600)
        assert hit(limiter, "1/minute").retry_after_s == 60
        clock.shift(60)
        assert hit(limiter, "1/minute").allowed

    def test_each_of_several_limits_must_allow(self, clock) -> None:
        limiter = make_limiter()
        rule = "2/second;3/minute"
        assert [hit(limiter, rule).allowed for _ in range(3)] == [True, True, False]
        clock.shift(1)
        # The refusal above has taken nothing of the minute.
        assert hit(limiter, rule) == Decision(True, 3, 0, NOON + 60, 0)
        assert hit(limiter, rule) == Decision(False, 3, 0, NOON + 60, 59)

    def test_users_and_meters_have_limits_of_their_own(self) -> None:
        limiter = make_limiter()
        assert hit(limiter, "1/minute").allowed
        assert hit(limiter, "1/minute", BOB).allowed
        decision = limiter.hit("sign_operations", "1/minute", ALICE)
        assert decision is not None and decision.allowed

    @pytest.mark.parametrize("rule", [None, ""])
    def test_no_rule_no_limit(self, rule: str | None) -> None:
        assert make_limiter().hit("verify_operations", rule, ALICE) is None

    @pytest.mark.parametrize("rule", ["many", "100", "100/fortnight", "x;1/minute"])
    def test_a_bad_rule_is_named_with_its_cure(self, rule: str) -> None:
        with pytest.raises(ConfigError, match="100 per minute") as caught:
            parse_rule(rule)
        assert repr(rule) in str(caught.value)


class TestHeaders:
    def test_an_allowed_request_learns_what_is_left(self, clock) -> None:
        assert hit(make_limiter(), "100/minute").headers() == [
            ("X-RateLimit-Limit", "100"),
            ("X-RateLimit-Remaining", "99"),
            ("X-RateLimit-Reset", str(NOON + 60)),
        ]

    def test_a_refused_one_when_to_return(self, clock) -> None:
        limiter = make_limiter()
        hit(limiter, "1/minute")
        assert dict(hit(limiter, "1/minute").headers())["Retry-After"] == "60"

    @pytest.mark.parametrize("has_headers", [True, False])
    def test_the_hosts_own_headers_are_not_doubled(self, has_headers: bool) -> None:
        app = flask.Flask("host")
        limiter = build_limiter(app)
        host = Limiter(
            get_remote_address, app=app, storage_uri="memory://", headers_enabled=has_headers
        )

        @app.get("/both")
        @host.limit("5/minute")
        def both():
            return answer()

        @app.get("/ours")
        def ours():
            return answer()

        def answer():
            response = flask.make_response("ok")
            response.headers.extend(limiter.headers(hit(limiter, "100/minute")))
            return response

        client = app.test_client()
        shown = "5" if has_headers else "100"
        assert client.get("/both").headers.getlist("X-RateLimit-Limit") == [shown]
        assert client.get("/ours").headers.getlist("X-RateLimit-Limit") == ["100"]


class TestIdentity:
    def test_ids_are_hashed_and_never_confused(self) -> None:
        people = [("a", "bc"), ("ab", "c"), ("a", None), ("a", "b")]
        keys = {identify(Customer(id, user_id=user)) for id, user in people}
        assert len(keys) == len(people)
        assert {len(key) for key in keys} == {32}
        assert "alice" not in ALICE

    def test_forged_headers_do_not_multiply_a_limit(self) -> None:
        """Case 34."""
        app = flask.Flask("host")
        limiter = build_limiter(app)

        @app.get("/")
        def verify():
            decision = hit(limiter, "50/minute", identify(Customer("cus_1")))
            return "", 200 if decision.allowed else 429

        client = app.test_client()
        numbers = random.Random(34)
        allowed = 0
        for _ in range(1000):
            address = ".".join(str(numbers.randrange(256)) for _ in range(4))
            headers = {"X-Forwarded-For": address, "X-Real-IP": address, "Forwarded": address}
            allowed += client.get("/", headers=headers).status_code == 200
        assert allowed == 50


class TestEmbedding:
    def test_two_apps_share_nothing(self) -> None:
        one, other = make_limiter(), make_limiter(RATELIMIT_ENABLED=False)
        third = make_limiter()
        assert hit(one, "1/minute").allowed
        assert not hit(one, "1/minute").allowed
        assert other.hit("verify_operations", "1/minute", ALICE) is None
        assert hit(third, "1/minute").allowed

    def test_disabled_means_unlimited(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # Also where the number of processes would be worth a warning.
        monkeypatch.setenv("WEB_CONCURRENCY", "4")
        limiter = make_limiter(RATELIMIT_ENABLED=False)
        assert limiter.hit("verify_operations", "1/minute", ALICE) is None

    @pytest.mark.parametrize("uri", [None, "memory://"])
    def test_building_starts_no_thread_and_costs_no_request(self, uri: str | None) -> None:
        threads = set(threading.enumerate())
        app = flask.Flask("host")
        app.config.update(
            RATELIMIT_STORAGE_URI=uri,
            RATELIMIT_DEFAULT="1/minute",
            RATELIMIT_IN_MEMORY_FALLBACK_ENABLED=True,
        )
        before = dict(app.config)
        build_limiter(app)
        assert set(threading.enumerate()) <= threads
        assert app.config == before
        assert not (app.before_request_funcs or app.after_request_funcs)
        assert not app.teardown_request_funcs

    @pytest.mark.parametrize("host_first", [True, False, None])
    def test_the_hosts_limits_and_ours_do_not_meet(self, host_first: bool | None) -> None:
        app = flask.Flask("host")
        app.config.update(
            RATELIMIT_DEFAULT="2/minute",
            RATELIMIT_APPLICATION="1000/minute",
            RATELIMIT_META="1000/minute",
            RATELIMIT_STORAGE_URI="memory://",
        )
        if host_first is True:
            Limiter(get_remote_address, app=app)
        ours = build_limiter(app)
        if host_first is False:
            Limiter(get_remote_address, app=app)

        @app.get("/")
        def plain():
            return ""

        client = app.test_client()
        for _ in range(10):
            assert hit(ours, "10/minute").allowed
        assert not hit(ours, "10/minute").allowed
        statuses = [client.get("/").status_code for _ in range(3)]
        assert statuses == ([200] * 3 if host_first is None else [200, 200, 429])

    def test_a_limiter_handed_over_is_used_as_it_is(self) -> None:
        app = flask.Flask("host")
        host = Limiter(get_remote_address, app=app, storage_uri="memory://")
        ours = build_limiter(app, host)
        assert [hit(ours, "2/minute").allowed for _ in range(3)] == [True, True, False]
        host.reset()
        assert hit(ours, "2/minute").allowed
        host.enabled = False
        assert ours.hit("verify_operations", "2/minute", ALICE) is None

    def test_our_empty_storage_is_still_one_to_flask_limiter(self) -> None:
        app = flask.Flask("host")
        build_limiter(app)
        (registered,) = app.extensions["limiter"]
        registered.reset()

    def test_one_unknown_to_the_app_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="init_app"):
            build_limiter(flask.Flask("host"), Limiter(get_remote_address))

    @pytest.mark.parametrize(
        "uri", ["nosuch://user:secret@example.com", "redis://user:secret@example.com:port"]
    )
    def test_an_unusable_storage_is_named_without_its_password(self, uri: str) -> None:
        with pytest.raises(ConfigError, match="RATELIMIT_STORAGE_URI") as caught:
            make_limiter(RATELIMIT_STORAGE_URI=uri)
        assert "secret" not in str(caught.value)
        assert caught.value.__suppress_context__


class TestWithoutFlask:
    """The same limiter from the same keys, for hosts that are no Flask apps."""

    @pytest.mark.parametrize("uri", [None, "memory://"])
    def test_it_counts_in_memory_without_a_thread(self, uri: str | None) -> None:
        threads = set(threading.enumerate())
        limiter = limiter_of({"RATELIMIT_STORAGE_URI": uri})
        assert [hit(limiter, "2/minute").allowed for _ in range(3)] == [True, True, False]
        assert set(threading.enumerate()) <= threads

    def test_disabled_means_unlimited(self) -> None:
        limiter = limiter_of({"RATELIMIT_ENABLED": False})
        assert limiter.hit("verify_operations", "1/minute", ALICE) is None

    def test_an_unusable_storage_is_named_without_its_password(self) -> None:
        with pytest.raises(ConfigError, match="RATELIMIT_STORAGE_URI") as caught:
            limiter_of({"RATELIMIT_STORAGE_URI": "nosuch://user:secret@example.com"})
        assert "secret" not in str(caught.value)

    @pytest.mark.parametrize("is_enabled", [True, False])
    def test_several_processes_that_count_apart_are_warned_of(
        self,
        is_enabled: bool,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setenv("WEB_CONCURRENCY", "4")
        limiter_of({"RATELIMIT_ENABLED": is_enabled})
        make_limiter(RATELIMIT_ENABLED=is_enabled)
        assert ["processes=4" in record.getMessage() for record in caplog.records] == (
            [True, True] if is_enabled else []
        )


class TestMemory:
    def test_idle_users_are_forgotten(self, clock) -> None:
        storage = MovingWindowStorage()
        for user in range(10_000):
            storage.acquire_entry(f"idle {user}", 5, 60)
        clock.shift(60)
        for user in range(10_000):
            storage.acquire_entry(f"active {user % 100}", 10_000, 60)
        assert storage.key_count == 100

    def test_active_users_are_not(self, clock) -> None:
        storage = MovingWindowStorage()
        assert storage.acquire_entry("active", 2, 60)
        clock.shift(30)
        assert storage.acquire_entry("active", 2, 60)
        for second in range(29):
            clock.shift(1)
            storage.acquire_entry(f"other {second}", 5, 60)
        assert not storage.acquire_entry("active", 2, 60)

    def test_it_can_be_cleared_and_reset(self) -> None:
        storage = MovingWindowStorage()
        for key in ("a", "b", "c"):
            storage.acquire_entry(key, 1, 60)
        storage.clear("a")
        assert storage.get_moving_window("a", 1, 60)[1] == 0
        assert storage.get_moving_window("b", 1, 60)[1] == 1
        assert storage.reset() == 2
        assert storage.key_count == 0

    # A fork beside threads is just what is tested; newer interpreters warn of it.
    @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
    def test_a_fork_while_a_thread_is_inside_leaves_the_child_usable(self) -> None:
        storage = MovingWindowStorage()
        inside, leave = threading.Event(), threading.Event()

        class SlowKey(str):
            def __hash__(self) -> int:
                inside.set()
                leave.wait()
                return super().__hash__()

        thread = threading.Thread(target=storage.acquire_entry, args=(SlowKey("slow"), 1, 60))
        thread.start()
        inside.wait()
        pid = os.fork()
        if pid == 0:
            signal.alarm(10)
            os._exit(0 if storage.acquire_entry("quick", 1, 60) else 1)
        leave.set()
        thread.join()
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
