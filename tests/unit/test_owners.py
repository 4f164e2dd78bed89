"""Who holds a lease, and whether that process has died: by real processes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from flask_c2meter.owners import is_gone, new_owner

_OWNER = "from flask_c2meter.owners import new_owner; print(new_owner(), flush=True); input()"


@contextmanager
def somebody(*prefix: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """An owner in a process of its own, which lives until its input ends, or the block."""
    process = subprocess.Popen(
        [*prefix, sys.executable, "-c", _OWNER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin and process.stdout
    try:
        yield process.stdout.readline().strip(), process
    finally:
        process.stdin.close()
        process.wait(10)
        process.stdout.close()


def test_one_that_lives_is_not_gone() -> None:
    assert not is_gone(new_owner())
    with somebody() as (owner, _):
        assert not is_gone(owner)


def test_one_that_has_died_is_gone() -> None:
    with somebody() as (owner, process):
        process.terminate()
        process.wait(10)
        assert is_gone(owner)


def test_of_another_host_nothing_is_known() -> None:
    assert not is_gone(f"elsewhere.{new_owner()}")


def test_of_another_container_with_the_same_host_name_nothing_is_known() -> None:
    """Those of one pod share the host's name, and count their processes each from 1."""
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare, of util-linux")
    with somebody("unshare", "--user", "--map-root-user", "--pid", "--fork") as (owner, _):
        if not owner:
            pytest.skip("this machine lets nobody make a namespace of processes")
        # As if the other had a number that nobody has here.
        host, _, tail = owner.split(":")
        assert not is_gone(f"{host}:{2**22 + 1}:{tail}")
