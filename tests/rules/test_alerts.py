"""examples/deploy/alerts.yaml: rules ask for metrics that the gateway has, docs/operations.md says what to do."""

import re
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from serve.metrics import Metrics
from tests.rules.checkout import REPO

RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((REPO / "examples" / "deploy" / "alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
]


def list_metrics() -> dict[str, set[str]]:
    """Return the labels of each metric of the gateway, by the names that its samples have."""
    metrics = Metrics()
    found: dict[str, set[str]] = {}
    for metric in vars(metrics).values():
        for family in getattr(metric, "describe", list)():
            labels = set(getattr(metric, "_labelnames", ()))
            for ending in ("", "_total", "_bucket", "_sum", "_count"):
                found[family.name + ending] = labels | {"le", "job", "instance"}
    assert list(text_string_to_metric_families(metrics.render({}).decode()))
    return found


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_a_rule_asks_for_metrics_and_labels_that_exist(rule: dict[str, Any]) -> None:
    known = list_metrics()
    names = set(re.findall(r"\bloam_[a-z_]+", rule["expr"]))
    assert names or re.search(r"\b(up|node_\w+)\{", rule["expr"])
    assert names <= known.keys()
    labels = {word.strip() for part in re.findall(r"by \(([^)]*)\)", rule["expr"]) for word in part.split(",")}
    labels |= set(re.findall(r"(\w+)=~?\"", rule["expr"].split("node_")[0]))
    labels |= set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
    assert labels <= set().union(*(known[name] for name in names)) | {"job"}
    assert rule["labels"]["severity"] in ("page", "ticket")


def test_the_page_says_what_to_do_for_each_alert() -> None:
    page = (REPO / "docs" / "operations.md").read_text()
    named = re.findall(r"^\| (Loam\w+) \|", page, re.MULTILINE)
    assert named == [rule["alert"] for rule in RULES]
