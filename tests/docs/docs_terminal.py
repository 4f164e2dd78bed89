"""A terminal as a reader has one: a folder, an environment, commands, and what they print."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Condition, Thread

#: For one command, or until what is left running has said what it should.
TIMEOUT_S = 90.0

#: What differs from run to run, and what a page's output and a real one both become.
_PLACEHOLDERS = (
    (re.compile(r"\x1b\[[0-9;]*[mK]"), ""),
    (re.compile(r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b"), "<uuid>"),
    (re.compile(r"\b[0-9a-f]{64}\b"), "<sha256>"),
    (re.compile(r"\b(price|mtr|prod|sub|si|in|evt|cus)_[0-9a-f]{16,32}\b"), r"<\1>"),
    (
        re.compile(r"\b\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?)?(?:Z|\+00:00)?"),
        "<time>",
    ),
    (re.compile(r"\b\d\d:\d\d(?::\d\d(?:\.\d+)?)?\b"), "<clock>"),
    (re.compile(r"\b\d+(?:\.\d+)? ?s\b"), "<seconds>"),
    (re.compile(r"\[\d+\]|\(\d+\)"), "<pid>"),
    (re.compile(r"\b\d+\.\d GiB\b"), "<size>"),
    (re.compile(r"\blies on \w+"), "lies on <file system>"),
    # A page's few requests may lie around the end of a minute.
    (re.compile(r"\bin \d+ shipments\b"), "in <n> shipments"),
    (re.compile(r"\b\d+ of \d+ hours\b"), "<n> of <n> hours"),
    # How fast it went: whether that is well is for other tests.
    (re.compile(r"\d+\.\d{3} % in time"), "<share> in time"),
    (re.compile(r"\): (?:met|MISSED)$", re.M), "): <verdict>"),
    (re.compile(r"[ \t]+"), " "),
)

_EXIT = re.compile(r"\(exit code (\d+)\)")


def plain(text: str) -> list[str]:
    """The lines of *text* without what differs from run to run; empty ones are left out."""
    for pattern, placeholder in _PLACEHOLDERS:
        text = pattern.sub(placeholder, text)
    return [line.strip() for line in text.splitlines() if line.strip()]


def fits(expected: Sequence[str], printed: Sequence[str]) -> bool:
    """Whether *printed* is what *expected* says; a line ``...`` or ``[...]`` is any number."""
    if not expected:
        return not printed
    if expected[0] in ("...", "[...]"):
        rest = expected[1:]
        return any(fits(rest, printed[start:]) for start in range(len(printed) + 1))
    return bool(printed) and expected[0] == printed[0] and fits(expected[1:], printed[1:])


@dataclass
class Command:
    """One command of a ``console`` block, and what the page says it prints."""

    text: str
    expected: list[str] = field(default_factory=list)
    exit_code: int = 0


def commands(console: str) -> list[Command]:
    """The commands of a ``console`` block: ``$`` begins one, ``(exit code 1)`` ends its output."""
    found: list[Command] = []
    for line in console.splitlines():
        if line.startswith("$ "):
            found.append(Command(line[2:]))
        elif found and not found[-1].expected and found[-1].text.endswith("\\"):
            found[-1].text = found[-1].text[:-1] + line.strip()
        elif found:
            exit_code = _EXIT.fullmatch(line)
            if exit_code:
                found[-1].exit_code = int(exit_code[1])
            else:
                found[-1].expected.append(line)
    return found


class Terminal:
    """A shell that keeps its folder and its environment from one command to the next."""

    def __init__(self, folder: Path, environment: dict[str, str], state: Path) -> None:
        self._state = state
        self._environment = environment
        self._running: list[Running] = []
        self.folder = folder
        state.write_text(f"cd {shlex.quote(str(folder))}\n")

    def run(self, command: str) -> tuple[str, int]:
        """What *command* prints, on either stream, and its exit code."""
        script = (
            f". {self._state}\n{command}\nstatus=$?\n"
            f"{{ printf 'cd %q\\n' \"$PWD\"; export -p; }} > {self._state}\nexit $status"
        )
        done = subprocess.run(
            ["bash", "-c", script],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT_S,
        )
        self.folder = Path(shlex.split(self._state.read_text().splitlines()[0])[1])
        return done.stdout, done.returncode

    def leave_running(self, command: str, expected: Sequence[str]) -> None:
        """Start *command* and return once it has printed the *expected* lines."""
        running = Running(f". {self._state}\n{command}", self._environment)
        self._running.append(running)
        running.wait_for(expected)

    def close(self) -> list[str]:
        """End what was left running, as CTRL+C does; return all that each has printed."""
        return [running.stop() for running in self._running]


class Running:
    """A command that was left running, with everything that it starts."""

    def __init__(self, script: str, environment: dict[str, str]) -> None:
        self._lines: list[str] = []
        self._has_ended = False
        self._changed = Condition()
        self._process = subprocess.Popen(
            ["bash", "-c", script],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._changed:
                self._lines.append(line)
                self._changed.notify_all()
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()

    def _has_said(self, expected: Sequence[str]) -> bool:
        printed = plain("".join(self._lines))
        return fits([*expected, "..."], printed)

    def wait_for(self, expected: Sequence[str]) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._has_ended or self._has_said(expected), TIMEOUT_S)
            assert self._has_said(expected), (
                f"expected {expected}, printed {plain(''.join(self._lines))}"
            )

    def stop(self) -> str:
        for number in self._signals():
            os.killpg(self._process.pid, number)
            try:
                self._process.wait(15)
                break
            except subprocess.TimeoutExpired:
                continue
        self._reader.join(5)
        assert self._process.stdout is not None
        self._process.stdout.close()
        return "".join(self._lines)

    def _signals(self) -> Iterator[signal.Signals]:
        if self._process.poll() is None:
            yield from (signal.SIGTERM, signal.SIGKILL)
