"""The Grafana dashboard, charts/countersign/dashboards/countersign.json: what is shown and in which order.

Rules:
- Every metric is one that the provider has, with labels that it has; tests/chart/test_monitoring.py looks.
- A panel answers one question that somebody asks at night; its description says which, and what to do about the answer.
- Queries take the namespace and pods that are chosen above, so that one dashboard serves several releases.

What does not belong here: alerts (charts/countersign/rules/), what a metric means (docs/operations.md).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
COLUMNS: Final = 24  # of Grafana's grid
PANEL_HEIGHT: Final = 8
SELECTED: Final = 'namespace=~"$namespace",pod=~"$pod"'


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel.

    Attributes:
        title: what is shown.
        description: the question that it answers.
        unit: Grafana's name of the unit.
        queries: legend to PromQL; `%s` in it is the selection, `$__rate_interval` Grafana's.
        kind: type of the panel.
    """

    title: str
    description: str
    unit: str
    queries: dict[str, str]
    kind: str = "timeseries"


def _rate(metric: str, by: str = "", matchers: str = "") -> str:
    """The rate of a counter, added up over pods."""
    clause = f" by ({by})" if by else ""
    return f"sum{clause} (rate({metric}{{{matchers}%s}}[$__rate_interval]))"


def _quantile(share: float, metric: str, by: str = "", matchers: str = "") -> str:
    labels = f"le,{by}" if by else "le"
    return f"histogram_quantile({share}, {_rate(f'{metric}_bucket', labels, matchers)})"


_VERIFY: Final = 'endpoint="verify",'
_REQUEST: Final = "countersign_request_duration_seconds"
_STAGE: Final = "countersign_stage_duration_seconds"

ROWS: Final[dict[str, tuple[Panel, ...]]] = {
    "Answers": (
        Panel(
            "Images by outcome",
            "Is anything denied? refused: by the policy. undecided: for want of a registry, keys or time.",
            "ops",
            {"{{outcome}}": _rate("countersign_keys_total", "outcome", _VERIFY)},
        ),
        Panel(
            "Causes of what could not be decided",
            "Codes of docs/errors.md; each says what to do.",
            "ops",
            {"{{error}}": _rate("ratify_system_error_count_total", "error")},
        ),
        Panel(
            "Time to answer",
            "Answers have to leave before the Provider's timeout (4 s). Warm ones take milliseconds.",
            "s",
            {
                "median": _quantile(0.5, _REQUEST, matchers=_VERIFY),
                "95 %": _quantile(0.95, _REQUEST, matchers=_VERIFY),
                "99 %": _quantile(0.99, _REQUEST, matchers=_VERIFY),
                "99 % of mutations": _quantile(0.99, _REQUEST, matchers='endpoint="mutate",'),
            },
        ),
        Panel(
            "Requests by outcome",
            "partial and failed: keys were left out. rejected: somebody other than Gatekeeper calls.",
            "ops",
            {"{{endpoint}} {{outcome}}": _rate("countersign_requests_total", "endpoint,outcome")},
        ),
        Panel(
            "Answers that left before all was done",
            "A registry or an authority is slow, or there are more new images than one replica can look at.",
            "ops",
            {"{{endpoint}}": _rate("countersign_deadline_misses_total", "endpoint")},
        ),
        Panel(
            "Requests and keys now",
            "What is being answered, and what goes on after its answer.",
            "short",
            {
                "requests": "sum (countersign_requests_in_flight{%s})",
                "keys under way": "sum (countersign_unfinished_keys{%s})",
            },
        ),
    ),
    "Where the time of a new image goes": (
        Panel(
            "Stages, 95 %",
            "Which stage is slow? resolve, referrers, fetch and token are the registry, revocation the authority.",
            "s",
            {"{{stage}}": _quantile(0.95, _STAGE, "stage")},
        ),
        Panel(
            "Stages, seconds of each second",
            "How much of the time goes into which stage, all images together.",
            "s",
            {"{{stage}}": _rate(f"{_STAGE}_sum", "stage")},
        ),
        Panel(
            "Answers of registries",
            "429: the registry limits the rate. 401 and 403: credentials. none: it cannot be reached.",
            "ops",
            {"{{status_code}}": _rate("ratify_registry_request_count_total", "status_code")},
        ),
        Panel(
            "Artifacts by verifier",
            "Signatures that were looked at, and whether they were good.",
            "ops",
            {"{{verifier}} {{success}}": _rate("ratify_verifier_duration_count", "verifier,success")},
        ),
        Panel(
            "Work under way",
            "Shared work: equal work runs once, whatever the number of requests that wait for it.",
            "short",
            {"{{work}}": "sum by (work) (countersign_work_under_way{%s})"},
        ),
        Panel(
            "Registry hosts",
            "suspect: it kept an answer waiting in vain. limited: by 429. down: nobody is there.",
            "short",
            {
                "waited for": "max (countersign_hosts_waited_for{%s})",
                "suspect": "max (countersign_hosts_suspect{%s})",
                "{{state}}": "max by (state) (countersign_registry_hosts{%s})",
            },
        ),
        Panel(
            "Requests to registries",
            "waiting: for their turn, because a registry limits the rate or its connections are all in use.",
            "short",
            {"{{state}}": "sum by (state) (countersign_registry_requests{%s})"},
        ),
    ),
    "What is kept": (
        Panel(
            "Look-ups that found something",
            "Low for verdicts: new images, a time-to-live that is short, or a cache that is small.",
            "percentunit",
            {
                "{{cache}}": "sum by (cache) (rate(countersign_cache_hits_total{%s}[$__rate_interval]))"
                " / (sum by (cache) (rate(countersign_cache_hits_total{%s}[$__rate_interval]))"
                " + sum by (cache) (rate(countersign_cache_misses_total{%s}[$__rate_interval])))"
            },
        ),
        Panel(
            "Bytes", "What each cache holds.", "bytes", {"{{cache}}": "sum by (cache) (countersign_cache_bytes{%s})"}
        ),
        Panel(
            "Entries", "The same by number.", "short", {"{{cache}}": "sum by (cache) (countersign_cache_entries{%s})"}
        ),
    ),
    "Trust": (
        Panel(
            "Trust anchors end in",
            "The first certificate of each key provider in each trust store. Add the next one beside it in time.",
            "s",
            {
                "{{provider}} {{store}}": "min by (provider,store)"
                " (countersign_trust_anchor_not_after_seconds{%s}) - time()"
            },
            "bargauge",
        ),
        Panel(
            "Serving certificate, its authority and the first CRL end in",
            "All three are renewed by themselves; what comes close to zero is not.",
            "s",
            {
                "serving certificate": "min (countersign_tls_certificate_not_after_seconds{%s}) - time()",
                "its authority": "min (countersign_tls_ca_not_after_seconds{%s} > 0) - time()",
                "first CRL": "min (countersign_crl_next_update_seconds{%s}) - time()",
            },
        ),
        Panel(
            "Age of key material",
            "How long ago the material of a key service was last seen to be so.",
            "s",
            {"{{provider}}": "max by (provider) (time() - countersign_key_material_seen_timestamp_seconds{%s})"},
        ),
        Panel(
            "Configuration",
            "Generation in use by pod; they may differ, but must not stay at 0. failed: the last good one stays.",
            "short",
            {
                "{{pod}}": "max by (pod) (countersign_configuration_generation{%s})",
                "failed": 'sum (increase(countersign_configurations_total{%s,result="failed"}[$__rate_interval]))',
            },
        ),
    ),
    "Connections and process": (
        Panel(
            "Connections of Gatekeeper",
            "Gatekeeper up to 3.21 opens one for each call and never closes it; we do.",
            "short",
            {
                "open": "sum (countersign_connections{%s})",
                "ended, {{reason}}": _rate("countersign_connections_ended_total", "reason"),
            },
        ),
        Panel(
            "TLS handshakes that failed",
            "server_untrusted: the Provider's caBundle does not fit. client_untrusted: the client CA does not.",
            "ops",
            {"{{reason}}": _rate("countersign_tls_handshake_failures_total", "reason")},
        ),
        Panel(
            "Memory",
            "Resident memory. It is bounded by the caches' limits; see Sizing in docs/operations.md.",
            "bytes",
            {
                "{{pod}}": "max by (pod) (process_resident_memory_bytes{%s}"
                " and on (namespace,pod) countersign_build_info)"
            },
        ),
        Panel(
            "Processor",
            "One event loop uses one processor at most.",
            "short",
            {
                "{{pod}}": "sum by (pod) (rate(process_cpu_seconds_total{%s}[$__rate_interval])"
                " and on (namespace,pod) countersign_build_info)"
            },
        ),
    ),
}


def dashboard() -> str:
    """The dashboard as JSON text."""
    variables = (
        {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"},
        _labels("namespace", "Namespace", "label_values(countersign_build_info, namespace)"),
        _labels("pod", "Pod", 'label_values(countersign_build_info{namespace=~"$namespace"}, pod)'),
    )
    document = {
        "uid": "countersign",
        "title": "Countersign",
        "description": "Verification of container images during admission.",
        "tags": ["countersign", "gatekeeper"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "1m",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": list(variables)},
        "panels": list(_panels()),
    }
    return json.dumps(document, indent=2) + "\n"


def _labels(name: str, label: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,  # when the range of time changes
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def _panels() -> Iterator[dict[str, Any]]:
    numbers, top = itertools.count(1), 0
    for title, panels in ROWS.items():
        yield {
            "id": next(numbers),
            "type": "row",
            "title": title,
            "collapsed": False,
            "panels": [],
            "gridPos": {"x": 0, "y": top, "w": COLUMNS, "h": 1},
        }
        top += 1
        across = 2 if len(panels) == 4 else 3
        width = COLUMNS // across
        for index, panel in enumerate(panels):
            line, column = divmod(index, across)
            position = {"x": column * width, "y": top + line * PANEL_HEIGHT, "w": width, "h": PANEL_HEIGHT}
            yield _panel(next(numbers), panel, position)
        top += -(-len(panels) // across) * PANEL_HEIGHT


def _panel(number: int, panel: Panel, position: dict[str, int]) -> dict[str, Any]:
    targets = [
        {
            "refId": chr(ord("A") + index),
            "datasource": SOURCE,
            "expr": query.replace("%s", SELECTED),
            "legendFormat": legend,
        }
        for index, (legend, query) in enumerate(panel.queries.items())
    ]
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "gridPos": position,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": targets,
    }
