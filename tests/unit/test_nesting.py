"""How deep JSON from outside may be nested."""

from __future__ import annotations

import json
from typing import Any

import pytest

from flask_c2meter.nesting import MAX_DEPTH, is_too_deep


def nested(depth: int, kind: str) -> Any:
    """Arrays, objects, or both in turn, *depth* of them within each other."""
    content: Any = 1
    for number in range(depth):
        is_list = kind == "list" or (kind == "both" and number % 2)
        content = [content] if is_list else {"a": content}
    return content


@pytest.mark.parametrize("kind", ["list", "dict", "both"])
def test_32_levels_are_fine_and_33_are_not(kind: str) -> None:
    assert MAX_DEPTH == 32
    assert not is_too_deep(nested(32, kind))
    assert is_too_deep(nested(33, kind))


@pytest.mark.parametrize("content", [None, 1, "[[", [], {}, {"a": [], "b": {}}])
def test_what_is_flat_is_fine(content: Any) -> None:
    assert not is_too_deep(content)


def test_one_deep_value_among_many_is_found() -> None:
    assert is_too_deep({"a": 1, "b": list(range(1000)), "c": [{}, nested(31, "dict")]})


def test_the_depth_is_no_danger_to_the_check() -> None:
    assert is_too_deep(nested(100_000, "list"))
    assert not is_too_deep(json.loads("[" + "[]," * 100_000 + "0]"))
