"""Tables of the reference: configuration, catalogue, metrics, fixtures, from the code's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields
from enum import Enum
from functools import partial
from typing import Any

from blinker import NamedSignal
from sphinx.pycode import ModuleAnalyzer

import flask_c2meter
from flask_c2meter import catalogue, metrics, signals, testing
from flask_c2meter.config import Config
from flask_c2meter.errors import CatalogueError
from flask_c2meter.model import Meter, Plan, Price, Property, Tier

from .render import code, table


def config() -> list[str]:
    """Every configuration key."""
    lines: list[str] = []
    for key in Config.table():
        facts = [f"Write {key.takes}" + f" ({key.unit})" * (key.unit not in ("", "s"))]
        if _shown(key.default):
            facts.append(f"default: {_shown(key.default)}")
        if key.env:
            facts.append(f"absent: the environment's `{key.env}`")
        secret = " *Secret.*" if key.is_secret else ""
        lines += [f"## `{key.name}`", "", key.doc + secret, "", f"{'; '.join(facts)}.", ""]
    return lines


def _shown(default: Any) -> str:
    """A default as a user would write it."""
    if default is None or default == "" or default == ():
        return ""
    if callable(default):
        return f"`{default.__module__}:{default.__qualname__}`"
    if isinstance(default, tuple):
        return f"`{', '.join(default)}`"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return f"`{default}`"


# -- signals ---------------------------------------------------------------------------------------


def signal_list() -> list[str]:
    """Every public signal, with the comment above it in the code."""
    comments = ModuleAnalyzer.for_module(signals.__name__).find_attr_docs()
    lines = ["```{eval-rst}", ".. currentmodule:: flask_c2meter", ""]
    for name in flask_c2meter.__all__:
        if isinstance(getattr(signals, name, None), NamedSignal):
            lines += [f".. py:data:: {name}", "   :type: blinker.NamedSignal", ""]
            lines += [f"   {line}" for line in comments["", name]]
    return [*lines, "```"]


# -- metrics ---------------------------------------------------------------------------------------


def metric_families() -> list[str]:
    """Every metric, as queries name it."""
    counter, gauge = metrics._COUNTER, metrics._GAUGE
    kinds = {counter: "counter", gauge: "gauge"}
    rows = [
        (
            f"`{name}_total`" if kind is counter else f"`{name}`",
            kinds[kind],
            ", ".join(f"`{label}`" for label in labels),
            doc,
        )
        for kind, name, doc, labels in metrics._GAUGES_AND_COUNTERS
    ]
    rows.append((f"`{metrics._LATENCY}`", "histogram", "`meter`", metrics._LATENCY_DOC))
    return table(("metric", "type", "labels", "meaning"), sorted(rows))


# -- fixtures --------------------------------------------------------------------------------------


def fixtures() -> list[str]:
    """Every pytest fixture of the plugin."""
    rows = [
        (f"`{name}`", _markdown(inspect.getdoc(value) or ""))
        for name, value in vars(testing).items()
        if type(value).__name__ == "FixtureFunctionDefinition"
    ]
    return table(("fixture", "what it is"), rows)


def failpoints() -> list[str]:
    """The places that can be armed."""
    return ["", ", ".join(f"`{name}`" for name in testing.FAILPOINTS) + ".", ""]


# -- the catalogue ---------------------------------------------------------------------------------

_PROPERTY: Mapping[str, Any] = {"type": "string"}
_TIER: Mapping[str, Any] = {"unit_amount": 1}
_FLAT: Mapping[str, Any] = {"mode": "flat", "currency": "usd", "unit_amount": 1}
_METER: Mapping[str, Any] = {"event_type": "it.happened", "unit": "it", "aggregation": "sum"}


class _Nothing:
    """A value that fits nowhere."""


#: For a table of the catalogue: a whole one around it, the least that it must have, its class.
_TABLES: Mapping[str, tuple[Callable[[Mapping[str, Any]], Any], Mapping[str, Any], type]] = {
    "meter": (lambda content: _with_meter(content), _METER, Meter),
    "property": (
        lambda content: _with_meter({**_METER, "properties": {"name": content}}),
        _PROPERTY,
        Property,
    ),
    "price": (lambda content: _with_meter({**_METER, "price": content}), _FLAT, Price),
    "tier": (
        lambda content: _with_meter(
            {**_METER, "price": {"mode": "volume", "currency": "usd", "tiers": [content]}}
        ),
        _TIER,
        Tier,
    ),
    "plan": (
        lambda content: {"plans": {"name": content}, "meters": {"m": _METER}},
        {},
        Plan,
    ),
}


def _with_meter(content: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"meters": {"m": content}}


def catalogue_table(name: str) -> list[str]:
    """The keys of one kind of table: what the loader itself says about each.

    What to write is the cure in the error of a value that fits nowhere; a key is required if it is
    missed. So this says what is checked.
    """
    around, least, kind = _TABLES[name]
    meanings = _meanings(kind)
    rows = []
    for item in fields(kind):
        if item.name == "name":
            continue
        without = {key: value for key, value in least.items() if key != item.name}
        is_required = item.name in least and "is missing" in _complaint(around(without))
        default = item.default if item.default not in (None, ()) else None
        default = None if "MISSING" in repr(default) else default
        rows.append(
            (
                f"`{item.name}`",
                _markdown(meanings[item.name]).replace("None = ", "absent: "),
                _what_to_write(around, {**_fitting(kind, item.name, least)}, item.name),
                "required" if is_required else _catalogue_default(default),
            )
        )
    return table(("key", "meaning", "what to write", "default"), rows)


def _fitting(kind: type, key: str, least: Mapping[str, Any]) -> Mapping[str, Any]:
    """The least table in which *key* may be at all."""
    if kind is Property and key in ("min", "max"):
        return {"type": "decimal"}
    if kind is Price and key == "tiers":
        return {"mode": "volume", "currency": "usd"}
    return least


def _what_to_write(
    around: Callable[[Mapping[str, Any]], Any], content: Mapping[str, Any], key: str
) -> str:
    """The cure of a value of no type; if it asks for a text or a list, also of a bad one."""
    cure = _cure(around({**content, key: _Nothing()}))
    if cure.startswith("a list"):
        return f"{cure}, each {_cure(around({**content, key: [_Nothing()]}))}"
    if cure.startswith("text"):
        more = _complaint(around({**content, key: "?"})).partition(": ")[2]
        return _bare(more) if more.startswith(("use one of ", "write ")) else cure
    return cure


def _complaint(source: Any) -> str:
    try:
        catalogue.load(source)
    except CatalogueError as error:
        return str(error)
    return ""


def _cure(source: Any) -> str:
    return _bare(_complaint(source).partition(": ")[2])


def _bare(cure: str) -> str:
    for words in ("write it as ", "write it ", "write ", "use "):
        cure = cure.removeprefix(words)
    return cure


def _markdown(text: str) -> str:
    """A docstring's code marks as Markdown's."""
    return text.replace("``", "`")


def _catalogue_default(default: Any) -> str:
    if default is None:
        return ""
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return code(default.value if isinstance(default, Enum) else default)


def _meanings(kind: type) -> Mapping[str, str]:
    """Field -> the comment above it in the code."""
    comments = ModuleAnalyzer.for_module(kind.__module__).find_attr_docs()
    return {
        item.name: " ".join(comments.get((kind.__name__, item.name), ())).strip()
        for item in fields(kind)
    }


#: What a page may ask for.
TABLES: Mapping[str, Callable[[], list[str]]] = {
    "config": config,
    "signals": signal_list,
    "metrics": metric_families,
    "fixtures": fixtures,
    "failpoints": failpoints,
    **{f"catalogue.{name}": partial(catalogue_table, name) for name in _TABLES},
}
