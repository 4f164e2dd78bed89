"""CPU time of ``import flask_c2meter`` beside the packages an app like ours would import.

Every module comes from byte code, ours too, whatever ``PYTHONDONTWRITEBYTECODE`` says here.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from statistics import median

from .measure import ROOT, Report, alternate, folder_on_disk, options, ratio

#: What the source document's stack imports.
STACK = (
    "flask",
    "flask_limiter",
    "stripe",
    "sqlalchemy",
    "marshmallow",
    "flask_cors",
    "flask_talisman",
)
#: What must not come with ``import flask_c2meter``: loaded where it is used.
HEAVY = (
    "stripe",
    "alembic",
    "apscheduler",
    "requests",
    "urllib3",
    "standardwebhooks",
    "idna",
    "asyncio",
    "smtplib",
    "pytest",
)

_TIMED = "import time; t = time.process_time(); import {}; print(time.process_time() - t)"


def _cpu(modules: Sequence[str]) -> Callable[[], float]:
    """Measures, in a fresh interpreter, the seconds of CPU that importing *modules* takes."""
    code = _TIMED.format(", ".join(modules))
    return lambda: float(_python(code))


def _python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout


def main() -> None:
    chosen = options(__doc__, rounds=11)
    with folder_on_disk(chosen.dir) as folder:
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = str(folder)
        measure(chosen.rounds).print()


def measure(rounds: int) -> Report:
    installed = [name for name in STACK if find_spec(name)]
    for name in sorted(set(STACK) - set(installed)):
        print(f"! {name} is not installed: left out of the stack, which makes the target harder")
    variants = {
        "flask": _cpu(["flask"]),
        "flask_c2meter": _cpu(["flask_c2meter"]),
        "the stack": _cpu(installed),
        **{f"  {name}": _cpu([name]) for name in installed[1:]},
    }
    alternate(variants, 1)  # byte code, disk cache
    found = alternate(variants, rounds)
    report = Report(f"CPU time of an import, ms (medians of {rounds} rounds)")
    for name, times in found.items():
        figures = f"{median(times) * 1e3:6.0f}   {ratio(times, found['flask']):5.2f} x flask"
        report.figure(name, figures)
    loaded = _python(f"import sys, flask_c2meter; print(*({set(HEAVY)!r} & sys.modules.keys()))")
    report.figure("imported although heavy", ", ".join(loaded.split()) or "none")
    report.figure("not imported", ", ".join(name for name in HEAVY if name not in loaded.split()))
    report.at_most(
        "flask_c2meter / the stack", ratio(found["flask_c2meter"], found["the stack"]), 0.7
    )
    return report


if __name__ == "__main__":
    main()
