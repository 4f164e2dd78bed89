"""The public API as type checkers see it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent

needs_mypy = pytest.mark.skipif(find_spec("mypy") is None, reason="needs mypy: the extra 'test'")
needs_pyright = pytest.mark.skipif(
    find_spec("pyright") is None, reason="needs pyright: pip install 'pyright[nodejs]'"
)


def pyright(*arguments: str) -> dict[str, Any]:
    """What pyright says, run from the repository with this interpreter's packages."""
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--outputjson", *arguments],
        cwd=ROOT,
        # It does not follow an editable install, and takes the first python on the path.
        env=os.environ
        | {
            "PYTHONPATH": str(ROOT),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1",
        },
        capture_output=True,
        text=True,
        timeout=290,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


@needs_mypy
@pytest.mark.timeout(300)  # a minute with an empty cache on a busy machine
def test_the_public_names_keep_their_types() -> None:
    done = subprocess.run(
        # Its cache is the one of a plain `mypy` run: then it takes a second.
        [sys.executable, "-m", "mypy", "--strict", str(HERE / "public_api.py")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=290,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@needs_pyright
@pytest.mark.timeout(300)
def test_they_keep_them_for_pyright_too() -> None:
    said = pyright(str(HERE / "public_api.py"))
    assert said["summary"]["filesAnalyzed"] == 1
    assert [each for each in said["generalDiagnostics"] if each["severity"] == "error"] == []


@needs_pyright
@pytest.mark.timeout(300)  # twenty seconds, alone on a machine
def test_no_public_name_is_without_a_type() -> None:
    completeness = pyright("--verifytypes", "flask_c2meter", "--ignoreexternal")["typeCompleteness"]
    without = {
        symbol["name"]: [each["message"] for each in symbol["diagnostics"]]
        for symbol in completeness["symbols"]
        if symbol["isExported"] and not symbol["isTypeKnown"]
    }
    assert without == {}
    assert completeness["completenessScore"] == 1
