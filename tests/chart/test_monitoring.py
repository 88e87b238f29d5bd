"""The dashboard and the alerts: what they ask for is there, and is rendered as it was written."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Final

import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase

from provider.errors import CODES
from provider.figures import FAMILIES
from provider.telemetry import ENDPOINTS, KEY_OUTCOMES, Metrics
from tests.chart.rendering import CHART, MINIMAL, template

DASHBOARD: Final = json.loads((CHART / "dashboards" / "countersign.json").read_text())
RULES: Final = yaml.safe_load((CHART / "rules" / "countersign.yaml").read_text())
ALERTS: Final[list[dict[str, Any]]] = RULES["groups"][0]["rules"]
PANELS: Final = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
TARGETS: Final = [(panel["title"], target) for panel in PANELS for target in panel["targets"]]

# Labels that Prometheus adds when it reads, and those of histograms.
ADDED: Final = frozenset({"namespace", "pod", "le"})
# Metrics of the process that every Python program has.
FOREIGN: Final = frozenset({"process_resident_memory_bytes", "process_cpu_seconds_total"})
_SUFFIXES: Final = {
    "counter": ("_total",),
    "gauge": ("",),
    "histogram": ("_bucket", "_sum", "_count"),
    "info": ("_info",),
}
_METRIC = re.compile(r"\b(?:countersign|ratify|process)_[a-z_]+\b")
_SELECTOR = re.compile(r"\b(?P<metric>(?:countersign|ratify)_[a-z_]+)\{(?P<matchers>[^}]*)\}")
_MATCHER = re.compile(r'(?P<label>\w+)(?:=~|=|!=)"(?P<value>[^"]*)"')
_GROUPING = re.compile(r"\b(?:by|on) \((?P<labels>[\w, ]+)\)")


def exposed() -> dict[str, frozenset[str]]:
    """Every name that a scraper gets, with the names of its labels."""
    metrics = Metrics()
    members = [
        member
        for value in vars(metrics).values()
        for member in (value.values() if isinstance(value, dict) else (value,))
    ]
    labels = {one._name: frozenset(one._labelnames) for one in members if isinstance(one, MetricWrapperBase)}
    labels |= {name: frozenset(family.labels) for name, family in FAMILIES.items()}
    return {
        family.name + suffix: labels.get(family.name, frozenset())
        for family in metrics.registry.collect()
        for suffix in _SUFFIXES.get(family.type, ())
    }


EXPOSED: Final = exposed()


def expressions() -> Iterator[tuple[str, str]]:
    """Every query, with where it stands."""
    yield from ((f"panel {title}", target["expr"]) for title, target in TARGETS)
    yield from ((f"alert {alert['alert']}", alert["expr"]) for alert in ALERTS)


EXPRESSIONS: Final = [pytest.param(expression, id=where) for where, expression in expressions()]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_metric_that_is_asked_for_is_one(expression: str) -> None:
    named = set(_METRIC.findall(expression))
    assert named
    assert named - EXPOSED.keys() - FOREIGN == set()


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_label_that_is_asked_for_is_one_of_the_metric(expression: str) -> None:
    for metric, matchers in _SELECTOR.findall(expression):
        found = {label for label, _ in _MATCHER.findall(matchers)}
        assert found <= EXPOSED[metric] | ADDED, metric
    having = frozenset().union(*(EXPOSED.get(name, frozenset()) for name in _METRIC.findall(expression)))
    for labels in _GROUPING.findall(expression):
        assert {label.strip() for label in labels.split(",")} <= having | ADDED
    assert expression.count("(") == expression.count(")")


def test_values_that_are_asked_for_are_ones_that_there_are() -> None:
    known = {"endpoint": set(ENDPOINTS), "error": set(CODES), "status_code": {"429"}}
    known |= {
        "result": {"failed"},
        "reason": {"server_untrusted"},
        "outcome": {*KEY_OUTCOMES, "failed"},
        "state": {"down"},
    }
    for where, expression in expressions():
        for _, matchers in _SELECTOR.findall(expression):
            for label, value in _MATCHER.findall(matchers):
                assert label in ("namespace", "pod") or value in known[label], where


def test_every_metric_of_our_own_is_seen_on_the_dashboard_or_by_an_alert_or_said_why_not() -> None:
    shown = {name for _, expression in expressions() for name in _METRIC.findall(expression)}
    families = {
        family.name for family in Metrics().registry.collect() if family.name.startswith(("countersign_", "ratify_"))
    }
    unseen = {family for family in families if not any(name.startswith(family) for name in shown)}
    assert unseen == {
        "ratify_verification_request",  # the same as countersign_request_duration_seconds, for Ratify's dashboards
        "ratify_mutation_request",
        "ratify_blob_cache_count",  # the same as countersign_cache_hits and _misses of objects
    }


def test_legends_name_labels_that_the_query_keeps() -> None:
    for title, target in TARGETS:
        kept = {label for labels in _GROUPING.findall(target["expr"]) for label in re.split(r", ?", labels)}
        assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= kept, title


def test_every_query_takes_the_chosen_namespace_and_pods() -> None:
    for title, target in TARGETS:
        selected = [m for metric, m in _SELECTOR.findall(target["expr"]) if metric != "countersign_build_info"]
        assert selected or "process_" in target["expr"], title
        assert all('namespace=~"$namespace"' in one and 'pod=~"$pod"' in one for one in selected), title
        assert "%s" not in target["expr"]


def test_panels_have_places_of_their_own_and_say_what_they_are_for() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert all(panel["description"].endswith((".", "?")) for panel in PANELS)


def test_alerts_have_names_of_their_own_a_severity_and_words() -> None:
    names = [alert["alert"] for alert in ALERTS]
    assert len(set(names)) == len(names)
    for alert in ALERTS:
        assert re.fullmatch("Countersign[A-Za-z]+", alert["alert"])
        assert alert["labels"]["severity"] in ("warning", "critical")
        assert set(alert["annotations"]) == {"summary", "description"}
        grouped = {label for labels in _GROUPING.findall(alert["expr"]) for label in re.split(r", ?", labels)}
        used = set(re.findall(r"\$labels\.(\w+)", json.dumps(alert["annotations"])))
        assert used <= grouped, alert["alert"]


def test_what_is_rendered_is_what_was_written() -> None:
    """Braces of Prometheus and Grafana are none of Helm's."""
    rendered = template(MINIMAL, {"prometheusRule": {"enabled": True}, "dashboard": {"enabled": True}})
    (rule,) = rendered.of_kind("PrometheusRule")
    assert rule["spec"] == RULES
    maps = [one for one in rendered.of_kind("ConfigMap") if one["metadata"]["name"].endswith("-dashboard")]
    assert [json.loads(one["data"]["countersign.json"]) for one in maps] == [DASHBOARD]
    assert maps[0]["metadata"]["labels"]["grafana_dashboard"] == "1"


def test_alerts_can_be_left_out_and_added() -> None:
    own = {"alert": "Own", "expr": "vector(1)", "labels": {"severity": "info"}}
    values = {"prometheusRule": {"enabled": True, "disabled": ["CountersignAbsent"], "additionalRules": [own]}}
    (rule,) = template(MINIMAL, values).of_kind("PrometheusRule")
    (group,) = rule["spec"]["groups"]
    assert group["rules"] == [*ALERTS[1:], own]


def test_nothing_of_it_is_rendered_by_default() -> None:
    kinds = {one["kind"] for one in template(MINIMAL)}
    assert "PrometheusRule" not in kinds
    assert not any(one["metadata"]["name"].endswith("-dashboard") for one in template(MINIMAL))
