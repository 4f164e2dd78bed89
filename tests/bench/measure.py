"""What the scripts share: options, alternating rounds, tables, a folder on disk, processes."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from flask_c2meter.catalogue import load
from flask_c2meter.config import Config
from flask_c2meter.emulator import StripeEmulator
from flask_c2meter.hooks import Hooks
from flask_c2meter.metering import Metering
from flask_c2meter.process import Host

T = TypeVar("T")

#: Processes start from scratch: nothing is inherited, as on a server.
PROCESSES = get_context("spawn")

#: The root of the checkout, from where child processes find ``tests.bench``.
ROOT = Path(__file__).parents[2]

KEY = "sk_test_bench"


def options(doc: str | None, rounds: int, **more: Mapping[str, Any]) -> argparse.Namespace:
    """The command line: ``--rounds``, ``--quick``, ``--dir`` and the script's own."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=rounds, help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="a few seconds; rough figures")
    parser.add_argument("--dir", type=Path, default=Path.cwd(), help="a folder on a real disk")
    for name, keywords in more.items():
        parser.add_argument(f"--{name}", **keywords)
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.rounds = min(chosen.rounds, 3)
    return chosen


def alternate(variants: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Run every variant once a round, A B then B A, so that a busy machine is busy for all."""
    results: dict[str, list[T]] = {name: [] for name in variants}
    names = list(variants)
    for number in range(rounds):
        print(f"\r  round {number + 1} of {rounds} ", end="", file=sys.stderr, flush=True)
        for name in names if number % 2 == 0 else reversed(names):
            results[name].append(variants[name]())
    print("\r" + " " * 30 + "\r", end="", file=sys.stderr, flush=True)
    return results


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of the ratios within each round."""
    return median(one / other for one, other in zip(ours, theirs, strict=True))


def percentile(values: Iterable[float], percent: float) -> float:
    """The smallest of *values* that *percent* of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


class Report:
    """Lines of figures, then targets with pass or miss."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._figures: list[tuple[str, str]] = []
        self._targets: list[tuple[str, str, str, str]] = []

    def figure(self, what: str, text: str) -> None:
        """A measured figure without a target."""
        self._figures.append((what, text))

    def at_most(self, what: str, measured: float, limit: float, unit: str = "x") -> None:
        """A target that *measured* must not exceed."""
        self._target(what, measured, f"<= {limit:g} {unit}", unit, measured <= limit)

    def at_least(self, what: str, measured: float, limit: float, unit: str = "x") -> None:
        """A target that *measured* must reach."""
        self._target(what, measured, f">= {limit:g} {unit}", unit, measured >= limit)

    def _target(self, what: str, measured: float, target: str, unit: str, is_met: bool) -> None:
        shown = f"{measured:.2f} {unit}" if measured < 100 else f"{measured:.0f} {unit}"
        self._targets.append((what, shown, target, "pass" if is_met else "MISS"))

    def print(self) -> None:
        """Everything, in columns."""
        print(f"\n{self._title}\n{'-' * len(self._title)}")
        _print_columns(self._figures)
        if self._targets:
            print()
            _print_columns([("", "measured", "target", ""), *self._targets])
        print()


def _print_columns(rows: Sequence[tuple[str, ...]]) -> None:
    if not rows:
        return
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for first, *others in rows:
        cells = [text.rjust(width) for text, width in zip(others, widths[1:], strict=True)]
        print("  ".join([first.ljust(widths[0]), *cells]))


# -- where the data lies ---------------------------------------------------------------------------


@contextmanager
def folder_on_disk(parent: Path) -> Iterator[Path]:
    """A new folder in *parent*, removed at the end; says so if fsync costs nothing there."""
    folder = Path(tempfile.mkdtemp(prefix=".bench-", dir=parent))
    kind = _file_system(folder)
    if kind in ("tmpfs", "ramfs", "devtmpfs"):
        print(f"! {parent} is {kind}: durable writes are not real there; use --dir")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _file_system(folder: Path) -> str:
    """Type of the file system that holds *folder* (Linux; else unknown)."""
    device = os.stat(folder).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return "unknown"
    for line in lines:
        if line.split()[2] == wanted:
            return line.partition(" - ")[2].split()[0]
    return "unknown"


def build_metering(folder: Path, **settings: Any) -> Metering:
    """A ``Metering`` as an app has it, its SQLite file in *folder*; *settings* without prefix."""
    config = Config.load(
        {f"C2METER_{name.upper()}": value for name, value in settings.items()},
        environ={},
        instance_path=str(folder),
    )
    return Metering(config, load(), Host(sender=None, hooks=Hooks(), context=nullcontext))


# -- other processes -------------------------------------------------------------------------------


class RemoteEmulator:
    """The Stripe emulator in a process of its own; see :func:`remote_emulator`."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self.url: str = pipe.recv()

    def count(self) -> int:
        """Meter events accepted so far."""
        return int(self._ask("count"))

    def requests(self) -> int:
        """Requests received so far."""
        return int(self._ask("requests"))

    def arrivals(self) -> list[tuple[str, int, float, float]]:
        """Customer, value, timestamp and time of arrival of each meter event, in that order."""
        found: list[tuple[str, int, float, float]] = self._ask("arrivals")
        return found

    def forget(self) -> None:
        """Start anew."""
        self._ask("forget")

    def _ask(self, question: str) -> Any:
        self._pipe.send(question)
        return self._pipe.recv()


@contextmanager
def remote_emulator() -> Iterator[RemoteEmulator]:
    """An emulator that shares neither interpreter lock nor process time with what is measured."""
    ours, theirs = PROCESSES.Pipe()
    process = PROCESSES.Process(target=_emulate, args=(theirs,), daemon=True)
    process.start()
    try:
        yield RemoteEmulator(ours)
    finally:
        ours.send(None)
        process.join(10)
        if process.is_alive():
            process.kill()


def _emulate(pipe: Any) -> None:
    with StripeEmulator() as stripe:
        pipe.send(stripe.url)
        while (question := pipe.recv()) is not None:
            pipe.send(_QUESTIONS[question](stripe))


_QUESTIONS: dict[str, Callable[[StripeEmulator], Any]] = {
    "count": lambda stripe: len(stripe.events),
    "requests": lambda stripe: len(stripe.requests),
    "arrivals": lambda stripe: [
        (
            event.customer,
            int(event.value),
            event.timestamp.timestamp(),
            event.received_at.timestamp(),
        )
        for event in stripe.events
    ],
    "forget": lambda stripe: stripe.forget(),
}


@contextmanager
def running(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    """A child process, ended with the block."""
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
