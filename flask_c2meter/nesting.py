"""How deep JSON from outside may be nested; imports nothing."""

from __future__ import annotations

#: Arrays and objects within each other, the outermost included.
MAX_DEPTH = 32


def is_too_deep(content: object) -> bool:
    """Whether *content*, as parsed from JSON, is nested deeper than :data:`MAX_DEPTH`.

    Level by level: a check that called itself would fail at the depth it is to refuse.
    """
    level: list[object] = [content]
    for _ in range(MAX_DEPTH):
        level = [inner for each in level for inner in _within(each)]
        if not level:
            return False
    return any(isinstance(each, list | dict) for each in level)


def _within(content: object) -> list[object]:
    if isinstance(content, dict):
        return list(content.values())
    return content if isinstance(content, list) else []
