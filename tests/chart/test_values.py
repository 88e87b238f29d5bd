"""Every value of Ratify's chart 1.15, set once and seen in what is rendered, or told to be without effect.

The cases are in cases.yaml; together they set all of RATIFY, and all that the chart has beyond.
"""

from __future__ import annotations

import base64
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from charts.generate import documented_values
from provider.configuration.schemas import custom_resource_definitions
from tests.chart.rendering import CERTIFICATES, CHART, MINIMAL, Refusal, Rendered, at, chart_with_notes, notes, template
from tests.chart.structure import faults
from tests.simulators.structural import refusals

# The values of Ratify's chart with their defaults, and what its next version adds.
RATIFY_DEFAULTS: Final = json.loads(Path(__file__).with_name("ratify-defaults.json").read_text())
RATIFY: Final = frozenset({*RATIFY_DEFAULTS, "provider.clientAuth.caCerts"})

DEFINITIONS: Final = {one["spec"]["names"]["kind"]: one for one in custom_resource_definitions().values()}
CASES: Final = Path(__file__).parent / "cases.yaml"
_PRIVATE_KEY: Final = "-----BEGIN PRIVATE KEY-----\nMA==\n-----END PRIVATE KEY-----\n"  # helm does not look inside
_ABBREVIATIONS: Final = {
    "pod": "Deployment/ratify:spec.template.spec.",
    "container": "Deployment/ratify:spec.template.spec.containers.0.",
}


@dataclass(frozen=True)
class Case:
    """Values, and what they lead to.

    Attributes:
        title: for the test's name; `(ours)` ends those of values that Ratify has not.
        values: over the least that installs.
        expect: `Kind/name:path` and the value there; None says that the object is not rendered.
        args: command line arguments.
        environment: environment variables.
        told: what NOTES.txt says.
        covers: the values that this case is about; by default all that it sets.
        hangs_together: whether structure.py knows objects like these.
    """

    title: str
    values: Mapping[str, Any]
    expect: Mapping[str, Any] = field(default_factory=dict)
    args: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    told: tuple[str, ...] = ()
    covers: tuple[str, ...] = ()
    hangs_together: bool = True


def load(path: Path) -> tuple[Case, ...]:
    """The cases of a file."""
    tokens = {f"<{file.name}>": file.read_text() for file in CERTIFICATES.iterdir()}
    tokens["<private key>"] = _PRIVATE_KEY
    tokens |= {f"base64 {token}": base64.b64encode(text.encode()).decode() for token, text in tokens.items()}

    def filled(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: filled(child) for key, child in node.items()}
        if isinstance(node, list):
            return [filled(child) for child in node]
        return tokens.get(node, node) if isinstance(node, str) else node

    entries = filled(yaml.safe_load(path.read_text()))
    return tuple(Case(**{key.replace("-", "_"): value for key, value in entry.items()}) for entry in entries)


ALL: Final = load(CASES)


def leaves(node: Any, known: frozenset[str], path: str = "") -> set[str]:
    """The value paths of an overlay: down to a path that is known, or to where there is no mapping."""
    if path in known or not isinstance(node, Mapping):
        return {path}
    return {leaf for key, child in node.items() for leaf in leaves(child, known, f"{path}.{key}" if path else str(key))}


@pytest.mark.parametrize("case", ALL, ids=[case.title for case in ALL])
def test_a_value_is_seen_in_what_is_rendered(case: Case) -> None:
    rendered = template(MINIMAL, case.values)
    for address, wanted in case.expect.items():
        check(rendered, address, wanted)
    for argument in case.args:
        assert argument in rendered.args
    for variable, text in case.environment.items():
        assert rendered.environment.get(variable) == text
    if case.told:
        told = notes(MINIMAL, case.values)
        for text in case.told:
            assert text in told
    if case.hangs_together:
        assert faults(rendered) == []
    for one in rendered:
        if one["kind"] in DEFINITIONS:
            assert refusals(DEFINITIONS[one["kind"]], one) == []


def check(rendered: Rendered, address: str, wanted: Any) -> None:
    target, _, path = address.partition(":")
    if target in _ABBREVIATIONS:
        target, _, path = f"{_ABBREVIATIONS[target]}{path}".partition(":")
    kind, _, name = target.partition("/")
    if wanted is None:
        assert rendered.find(kind, name) is None, f"{target} is rendered"
        return
    found: Any = rendered.get(kind, name)
    for step in path.split("."):
        found = at(found, step) if "%" not in step else found[step.replace("%", ".")]
    assert found == wanted, address


def test_every_value_of_ratify_is_set_by_some_case() -> None:
    """policy.useRego is refused (test_refusals.py)."""
    covered = {path for case in ALL for path in (case.covers or leaves(case.values, RATIFY))}
    assert RATIFY - covered == {"policy.useRego"}


# Values that change nothing: refused (test_refusals.py), and of one possible setting.
WITHOUT_EFFECT: Final = {"policy.useRego", "instrumentation.metricsType"}


@pytest.mark.parametrize("path", sorted(RATIFY - WITHOUT_EFFECT))
def test_setting_a_value_of_ratify_changes_what_is_rendered_or_told(path: str) -> None:
    """A case that sets it, rendered with and without it: what is accepted without effect is at least told so."""
    for case in ALL:
        if path in leaves(case.values, RATIFY):
            bare = without(case.values, path)
            if rendered_and_told(bare) != rendered_and_told(case.values):
                return
    pytest.fail(f"{path} is set by {[case.title for case in ALL if path in leaves(case.values, RATIFY)]} to no effect")


def without(values: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Values without one of them."""
    result = json.loads(json.dumps(values))
    *parents, last = path.split(".")
    node = result
    for key in parents:
        node = node[key]
    del node[last]
    return dict(result)


def rendered_and_told(values: Mapping[str, Any]) -> str:
    """What helm makes of values, notes included, or why it refuses them."""
    return _rendered_and_told(json.dumps(values))


@functools.cache
def _rendered_and_told(values: str) -> str:
    try:
        return template(MINIMAL, json.loads(values), chart=chart_with_notes()).text
    except Refusal as refusal:
        return str(refusal)


def test_every_value_of_ours_is_set_by_some_case() -> None:
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    known = frozenset(value.path for value in documented_values((CHART / "values.yaml").read_text()))
    covered = {path for case in ALL for path in leaves(case.values, known)}
    assert leaves(defaults, known) - covered - RATIFY == set()


def test_every_value_of_ratify_has_its_key_here() -> None:
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    for path in RATIFY:
        at(defaults, path)


def test_defaults_that_differ_from_ratifys_are_few() -> None:
    """Each is in docs/ratify-compatibility.md with its reason; a new one belongs there first."""
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    different = {
        path: at(defaults, path)
        for path, default in RATIFY_DEFAULTS.items()
        if at(defaults, path) not in (default, default or "")
    }
    assert different == {
        "image.crdRepository": "",
        "image.repository": "ghcr.io/countersign/countersign",
        "image.tag": "",
        "logger.requestHeaders.traceIDHeaderName": [],
        "provider.cache.cacheSizeMb": 64,
        "provider.timeout.mutationTimeoutSeconds": 1,
        "provider.timeout.validationTimeoutSeconds": 4,
        "upgradeCRDs.enabled": False,
    }


def test_the_default_installation_has_three_of_the_nine_mutations() -> None:
    """Mutating what makes pods is off: GitOps tools fight it, and Ratify's users asked (ratify#1593)."""
    names = [one["metadata"]["name"] for one in template(MINIMAL).of_kind("Assign")]
    assert names == ["mutate-pod-image", "mutate-pod-image-init", "mutate-pod-image-ephemeral"]


def test_no_mutation_touches_replica_sets() -> None:
    rendered = template(MINIMAL, {"provider": {"mutation": {"workloads": True}}})
    kinds = {kind for one in rendered.of_kind("Assign") for entry in one["spec"]["applyTo"] for kind in entry["kinds"]}
    assert kinds == {"Pod", "DaemonSet", "Deployment", "StatefulSet", "Job", "ReplicationController", "CronJob"}
    assert len(rendered.of_kind("Assign")) == 9


@pytest.mark.parametrize(
    ("release", "fullname"),
    [("ratify", "ratify"), ("my-ratify-2", "my-ratify-2"), ("countersign", "countersign-ratify")],
)
def test_objects_are_named_as_ratifys_rule_names_them(release: str, fullname: str) -> None:
    rendered = template(MINIMAL, release=release)
    assert rendered.get("Service", fullname)
    assert rendered.get("KeyManagementProvider", f"{fullname}-notation-inline-cert-0")
    url = rendered.get("Provider", "ratify-provider")["spec"]["url"]
    assert url == f"https://{fullname}.gatekeeper-system:6001/ratify/gatekeeper/v1/verify"
