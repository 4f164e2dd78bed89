"""Markdown from tables, shapes and the HTTP API."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .openapi import document
from .shapes import SHAPES, USES, Schema


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table, as lines; a column that says nothing is left out."""
    shown = [number for number in range(len(head)) if any(row[number] for row in rows)]
    lines = [[head[number] for number in shown], ["---" for _ in shown]]
    lines += [[row[number].replace("|", "\\|") for number in shown] for row in rows]
    return ["", *(f"| {' | '.join(cells)} |" for cells in lines), ""]


def code(value: object) -> str:
    """*value* as code; nothing for None."""
    return "" if value is None else f"`{value}`"


# -- shapes ----------------------------------------------------------------------------------------


def shapes() -> list[str]:
    """Every shape but those that only the HTTP API has."""
    lines: list[str] = []
    for name, uses in USES.items():
        version = SHAPES[name]["properties"].get("version")
        lines += [f"## {name}", "", *(f"- {use}" for use in uses), ""]
        lines += [f"Version {version['const']}." if version else "", ""]
        lines += _shape(name)
    parts = _parts(USES)
    lines += ["## Parts", "", "What the shapes above are made of.", ""]
    for name in parts:
        lines += [f"### {name}", "", *_shape(name)]
    return lines


def _parts(names: Mapping[str, object]) -> list[str]:
    """What the shapes called *names* refer to, beside each other."""
    found: dict[str, None] = {}
    todo = list(names)
    while todo:
        text = str(SHAPES[todo.pop()])
        for name in SHAPES:
            if f"schemas/{name}'" in text and name not in names and name not in found:
                found[name] = None
                todo.append(name)
    return [name for name in SHAPES if name in found]


def _shape(name: str) -> list[str]:
    shape = SHAPES[name]
    return [shape["description"], *table(("key", "type", "meaning"), list(_keys(shape)))]


def _keys(shape: Schema, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    for name, schema in shape["properties"].items():
        optional = "" if name in shape["required"] else " (may be absent)"
        yield f"`{prefix}{name}`{optional}", kind(schema), schema.get("description", "")
        inner = schema.get("items", schema)
        if "properties" in inner:
            yield from _keys(inner, f"{prefix}{name}{'[]' * ('items' in schema)}.")


def kind(schema: Schema) -> str:
    """The type of *schema*, in words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](json.md#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(map(kind, schema["anyOf"]))
    if "const" in schema:
        return f"`{str(schema['const']).strip()}`"
    if "enum" in schema:
        return ", ".join("null" if each is None else f"`{each}`" for each in schema["enum"])
    types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    return " or ".join(_words(each, schema) for each in types)


def _words(name: str, schema: Schema) -> str:
    if name == "array":
        return f"list of {kind(schema['items'])}"
    if name == "string" and "pattern" in schema and r"\.\d" in schema["pattern"]:
        return "number as text"
    if name == "string" and schema.get("format") == "date-time":
        return "time as text"
    values = schema.get("additionalProperties")
    if name == "object" and isinstance(values, dict):
        return f"object of {kind(values)}"
    return {"string": "text"}.get(name, name)


# -- the HTTP API ----------------------------------------------------------------------------------


def http() -> list[str]:
    """Every route, what it takes and what it answers."""
    lines: list[str] = []
    paths = document()["paths"]
    for tag in document()["tags"]:
        lines += [f"## {tag['name']}", ""]
        for path, operations in paths.items():
            for method, operation in operations.items():
                if operation["tags"] == [tag["name"]]:
                    lines += _operation(method, path, operation)
    return lines


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> list[str]:
    lines = [f"### `{method.upper()} {path}`", "", f"{operation['summary']}.", ""]
    if "description" in operation:
        lines += [operation["description"], ""]
    takes = [
        (f"`{each['name']}`", each["in"], each["description"])
        for each in operation.get("parameters", ())
    ]
    body = operation.get("requestBody")
    if body is not None:
        (media,) = body["content"]
        fields = body["content"][media]["schema"].get("properties", {})
        takes.append(("the body", code(media), body["description"]))
        takes += [(code(name), "field", each["description"]) for name, each in fields.items()]
    if takes:
        lines += table(("takes", "in", "meaning"), takes)
    answers = [
        (
            status,
            ", ".join(_content(*each) for each in answer.get("content", {}).items()),
            answer["description"],
            ", ".join(f"`{name}`: {each['description']}" for name, each in _headers(answer)),
        )
        for status, answer in operation["responses"].items()
    ]
    return lines + table(("status", "content", "when", "headers"), answers)


def _content(media: str, content: Mapping[str, Any]) -> str:
    name = content["schema"].get("$ref", "").rpartition("/")[2]
    return f"`{media}`: {kind(content['schema'])}" if name in USES else f"`{media}`"


def _headers(answer: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return list(answer.get("headers", {}).items())
