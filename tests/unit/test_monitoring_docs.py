"""The dashboard, the alert rules and the page about them name metrics that there are."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from flask import Flask

from flask_c2meter.metrics import NAMES, Collector

DOCS = Path(__file__).parents[2] / "docs"

#: A metric and its selector.
USE = re.compile(r"\b(c2meter_[a-z_]+)(?:\{([^}]*)\})?")
#: The labels by which something is joined.
JOIN = re.compile(r"by \(([a-z_, ]+)\)")

#: What targets, rules and labels may be called: the labels of each metric, and what they may say.
VALUES = {
    "state": {"ready", "sending", "in_doubt", "dead", "delivered"},
    "target": {"event_latency", "success_rate", "billing_accuracy", "alert_timeliness"},
    "quantile": {"0.5", "0.99", "1"},
}


def labels() -> dict[str, set[str]]:
    """Metric, as queries name it -> its labels."""
    found: dict[str, set[str]] = {}
    for family in Collector(Flask("host")).describe():
        own = set(family._labelnames)  # type: ignore[attr-defined]
        if family.type == "counter":
            found[f"{family.name}_total"] = own
        else:
            found[family.name] = own
        if family.type == "histogram":
            found[f"{family.name}_bucket"] = own | {"le"}
            found[f"{family.name}_count"] = found[f"{family.name}_sum"] = own
    return found


def dashboard() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((DOCS / "grafana-dashboard.json").read_text())
    return content


def rules() -> list[dict[str, Any]]:
    content = yaml.safe_load((DOCS / "alert-rules.yml").read_text())
    return [rule for group in content["groups"] for rule in group["rules"]]


def queries() -> Iterator[tuple[str, str]]:
    """Where it stands, and the query."""
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]
    for rule in rules():
        yield rule["alert"], rule["expr"]


@pytest.mark.parametrize(("where", "query"), list(queries()))
def test_a_query_names_metrics_and_labels_that_there_are(where: str, query: str) -> None:
    known = labels()
    uses = USE.findall(query)
    assert uses
    for name, selector in uses:
        assert name in known, where
        for label, value in re.findall(r"([a-z_]+)!?=\"([^\"]*)\"", selector):
            assert label in known[name], where
            assert value in VALUES.get(label, {value}), where
    joined = {label.strip() for group in JOIN.findall(query) for label in group.split(",")}
    assert joined <= set().union(*(known[name] for name, _ in uses)), where


@pytest.mark.parametrize(("where", "query"), list(queries()))
def test_what_every_process_tells_is_never_added_up(where: str, query: str) -> None:
    """Only the spill file belongs to a host."""
    for inner in re.findall(r"\b(?:sum|avg|count)(?: by \([^)]*\))? ?\(([^()]*)", query):
        assert inner.startswith(("max by", "c2meter_spill")), where


def test_every_metric_is_on_the_dashboard_or_in_a_rule() -> None:
    used = {name for _, query in queries() for name, _ in USE.findall(query)}
    bases = {re.sub("_(bucket|count|sum)$", "", name) for name in used}
    # What a target being met means is said by its ratio.
    assert bases == NAMES - {"c2meter_target_met"}


def test_the_page_explains_every_metric_and_every_alert() -> None:
    page = (DOCS / "monitoring.md").read_text()
    words = set(re.findall(r"`(\w+)`", page))
    assert words >= NAMES
    assert words >= {rule["alert"] for rule in rules()}


def test_what_the_page_names_exists() -> None:
    page = (DOCS / "monitoring.md").read_text()
    words = re.findall(r"`(\w+)`", page)
    alerts = {rule["alert"] for rule in rules()}
    assert {word for word in words if word.startswith("C2Meter")} == alerts
    metrics = {word for word in words if word.startswith("c2meter_")}
    assert metrics == NAMES | {"c2meter_canary"}


def test_a_rule_says_how_urgent_and_what() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names) > 20
    for rule in rules():
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["summary"].endswith((".", "?", "}}"))


def test_the_dashboard_can_be_imported_anywhere() -> None:
    content = dashboard()
    assert {"title", "uid", "schemaVersion", "panels", "templating"} <= content.keys()
    panels = content["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        assert 0 <= place["x"] and place["x"] + place["w"] <= 24
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${datasource}"
            assert panel["description"]
