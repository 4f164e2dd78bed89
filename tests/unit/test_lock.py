"""requirements.lock pins what pyproject.toml asks for, each file of it by its hash."""

from __future__ import annotations

import re
import tomllib
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: Mapping[str, list[str]] = PROJECT["optional-dependencies"]
#: Extras that no installation in production needs.
FOR_DEVELOPMENT = {"example", "test", "browser", "docs"}
LOCKED = EXTRAS.keys() - FOR_DEVELOPMENT
REQUIRED = [*PROJECT["dependencies"], *(text for each in sorted(LOCKED) for text in EXTRAS[each])]
PIN = re.compile(
    r"(?P<name>[\w.-]+)==(?P<version>\S+)(?: ; (?P<marker>.+?))?(?: --hash=sha256:[0-9a-f]{64})+"
)


def pins() -> dict[str, list[Version]]:
    """Name -> its versions; of several, each has a marker that says where it is meant."""
    text = re.sub(r"^ *#.*\n", "", (ROOT / "requirements.lock").read_text(), flags=re.M)
    found: defaultdict[str, list[Version]] = defaultdict(list)
    for line in re.sub(r" *\\\n *", " ", text).splitlines():
        pin = PIN.fullmatch(line)
        assert pin is not None, f"neither a version nor hashes alone: {line[:100]}"
        assert pin["marker"] is None or Marker(pin["marker"])
        found[canonicalize_name(pin["name"])].append(Version(pin["version"]))
    return found


@pytest.mark.parametrize("requirement", [Requirement(text) for text in REQUIRED], ids=str)
def test_what_is_required_is_pinned_to_a_version_that_fits(requirement: Requirement) -> None:
    found = pins()
    versions = found[canonicalize_name(requirement.name)]
    assert versions
    assert all(requirement.specifier.contains(version) for version in versions)
    # Those of Flask-Limiter are called as the package that they bring.
    assert all(found[extra] for extra in requirement.extras)


def test_an_extra_is_locked_or_for_development() -> None:
    assert set(re.findall(r"--extra (\w+)", (ROOT / ".ci/lock").read_text())) == LOCKED
