"""What ``@metered`` adds to a request, beside flask-limiter alone and Stripe's SDK in the request.

The WSGI app is called directly, with the same environ for all variants; "added" is the variant
minus the bare app. The metered variants have no Stripe key: what they add is the durable record;
delivery is the worker's and no part of a request. The floors write the same rows by bare
``sqlite3``, without key, check, limit or header. ``--profile`` shows where the time goes.
"""

from __future__ import annotations

import cProfile
import io
import pstats
import socket
import sys
import time
from collections.abc import Callable, Iterable
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any

from flask import Flask

from .apps import CUSTOMERS, VARIANTS, create_app
from .load import requests_per_second
from .measure import Report, alternate, folder_on_disk, options, ratio, remote_emulator, running

_KEYS = cycle(CUSTOMERS)


def call(app: Flask) -> None:
    """One POST /verify, its answer read to the end.

    :raises RuntimeError: it was not 200.
    """
    statuses: list[str] = []

    def start_response(status: str, *_: object) -> Any:
        statuses.append(status)

    body: Any = app.wsgi_app(_environ(next(_KEYS)), start_response)
    for _ in body:
        pass
    body.close()
    if statuses != ["200 OK"]:
        raise RuntimeError(f"{app.instance_path} answered {statuses}")


def _environ(key: str) -> dict[str, Any]:
    return {
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/verify",
        "QUERY_STRING": "",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "127.0.0.1",
        "HTTP_HOST": "localhost",
        "HTTP_AUTHORIZATION": key,
        "CONTENT_LENGTH": "0",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }


def per_request(app: Flask, count: int) -> Callable[[], tuple[float, float]]:
    """Measures *count* requests: wall and CPU time of one, in us."""

    def run() -> tuple[float, float]:
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(count):
            call(app)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        return wall / count * 1e6, cpu / count * 1e6

    return run


def measure_requests(apps: dict[str, Flask], rounds: int, count: int) -> Report:
    runs = {
        name: per_request(app, count // 4 if name == "sdk" else count) for name, app in apps.items()
    }
    alternate(runs, 2)  # connections, schema, caches
    found = alternate(runs, rounds)
    report = Report(f"One request, us (medians of {rounds} rounds; ledger only, no delivery)")
    walls = {name: [wall for wall, _ in pairs] for name, pairs in found.items()}
    cpus = {name: [cpu for _, cpu in pairs] for name, pairs in found.items()}
    for name in found:
        report.figure(name, f"wall {median(walls[name]):7.0f}   cpu {median(cpus[name]):7.0f}")
    wall, cpu = _added(walls), _added(cpus)
    for name in wall:
        report.figure(
            f"  {name} adds", f"wall {median(wall[name]):7.0f}   cpu {median(cpu[name]):7.0f}"
        )
    for name, floor in (("metered", "floor"), ("relaxed", "relaxed floor")):
        for kind, added in (("wall", wall), ("CPU", cpu)):
            of_rows, of_all = (ratio(added[one], added["limiter"]) for one in (floor, name))
            text = f"{of_rows:.2f} of {of_all:.2f} x"
            report.figure(f"  {name}: {kind} due to the rows themselves", text)
    limiter = "flask-limiter's"
    report.at_most(f"added wall / {limiter}", ratio(wall["metered"], wall["limiter"]), 1.7)
    report.at_most(f"added CPU / {limiter}", ratio(cpu["metered"], cpu["limiter"]), 1.1)
    report.at_most(
        f"added wall, relaxed / {limiter}", ratio(wall["relaxed"], wall["limiter"]), 0.45
    )
    report.at_most(
        "added wall / SDK call in the request", ratio(wall["metered"], wall["sdk"]), 0.22
    )
    return report


def _added(times: dict[str, list[float]]) -> dict[str, list[float]]:
    return {
        name: [one - bare for one, bare in zip(values, times["bare"], strict=True)]
        for name, values in times.items()
        if name != "bare"
    }


# -- under a server --------------------------------------------------------------------------------


def measure_server(folder: Path, rounds: int, seconds: float, threads: int) -> Report:
    ports = {"limiter": _free_port(), "metered": _free_port()}
    servers = [_gunicorn(name, folder, port, threads) for name, port in ports.items()]
    with running(*servers[0]), running(*servers[1]):
        for port in ports.values():
            _wait_until_open(port)
        runs = {name: _load(port, seconds, threads) for name, port in ports.items()}
        alternate(runs, 1)
        found = alternate(runs, rounds)
    report = Report(f"Under gunicorn gthread, 1 worker, {threads} threads, {threads} connections")
    for name, rates in found.items():
        report.figure(name, f"{median(rates):.0f} requests/s")
    report.at_least("requests/s / flask-limiter's", ratio(found["metered"], found["limiter"]), 1.2)
    return report


def _load(port: int, seconds: float, connections: int) -> Callable[[], float]:
    return lambda: requests_per_second(port, seconds, connections)


def _gunicorn(variant: str, folder: Path, port: int, threads: int) -> tuple[str, ...]:
    factory = f"tests.bench.apps:create_app({variant!r}, {str(folder / 'server')!r})"
    command = (sys.executable, "-m", "gunicorn", "--worker-class", "gthread", "--workers", "1")
    quiet = ("--log-level", "error", "--threads", str(threads))
    return (*command, *quiet, "--bind", f"127.0.0.1:{port}", factory)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_open(port: int, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


# -- where the time goes ---------------------------------------------------------------------------


def profile(app: Flask, count: int, lines: int = 45) -> None:
    """Print the functions of one request by their own time, in us per request."""
    profiler = cProfile.Profile()
    profiler.enable()
    for _ in range(count):
        call(app)
    profiler.disable()
    stats: Any = pstats.Stats(profiler)
    rows = [
        (own / count * 1e6, total / count * 1e6, calls / count, where)
        for where, (_, calls, own, total, _) in stats.stats.items()
    ]
    print("   own us  total us    calls")
    for own, total, calls, (file, line, function) in sorted(rows, reverse=True)[:lines]:
        place = f"{'/'.join(Path(file).parts[-2:])}:{line} " if line else ""
        print(f"{own:9.1f} {total:9.1f} {calls:8.2f}  {place}{function}")


def _close(apps: Iterable[Flask]) -> None:
    for app in apps:
        if (state := app.extensions.get("c2meter")) is not None:
            state.metering.store.close()
        if (floor := app.extensions.get("floor")) is not None:
            floor.close()


def main() -> None:
    chosen = options(
        __doc__,
        rounds=15,
        profile={"action": "store_true", "help": "show where the time of a request goes"},
        threads={"type": int, "default": 8, "help": "of gunicorn; default: %(default)s"},
    )
    count = 100 if chosen.quick else 400
    with folder_on_disk(chosen.dir) as folder, remote_emulator() as stripe:
        apps = {name: create_app(name, str(folder), stripe.url) for name in VARIANTS}
        measure_requests(apps, chosen.rounds, count).print()
        if chosen.profile:
            profile(apps["metered"], 5 * count)
        _close(apps.values())
        seconds = 1.0 if chosen.quick else 2.5
        measure_server(folder, max(3, chosen.rounds // 3), seconds, chosen.threads).print()


if __name__ == "__main__":
    main()
