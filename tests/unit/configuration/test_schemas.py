"""The custom resource definitions: structural, Ratify's names, refusing mistakes and nothing that the provider can use.

A real API server is asked the same in tests/e2e/test_crds.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from provider.configuration.documents import Findings, Place, read_document
from provider.configuration.resources import GROUP, KINDS
from provider.configuration.schemas import custom_resource_definitions
from provider.configuration.structural_schemas import PRESERVE, RULES
from tests.simulators.structural import WORDS, refusals
from tests.unit.configuration import admission
from tests.unit.configuration.admission import BASES, VALUES, Json, Mistake, changed, fields, is_accepted, mistakes
from tests.unit.configuration.samples import PRIVATE_KEY_PEM, fill
from tests.unit.configuration.test_mistakes import MISTAKES, read_header

REPOSITORY: Final = Path(__file__).parents[3]
DEFINITIONS: Final[Mapping[str, Json]] = {
    definition["spec"]["names"]["kind"]: definition for definition in custom_resource_definitions().values()
}
ALL_MISTAKES: Final = mistakes()

# What Ratify v1.4 installs: plural, scope, versions with the stored one last, columns beside IsSuccess and Error.
RATIFY: Final = {
    "Store": ("stores", "Cluster", ["v1alpha1", "v1beta1"], []),
    "NamespacedStore": ("namespacedstores", "Namespaced", ["v1beta1"], []),
    "Verifier": ("verifiers", "Cluster", ["v1alpha1", "v1beta1"], []),
    "NamespacedVerifier": ("namespacedverifiers", "Namespaced", ["v1beta1"], []),
    "KeyManagementProvider": ("keymanagementproviders", "Cluster", ["v1beta1"], ["LastFetchedTime"]),
    "NamespacedKeyManagementProvider": (
        *("namespacedkeymanagementproviders", "Namespaced"),
        *(["v1beta1"], ["LastFetchedTime"]),
    ),
    "Policy": ("policies", "Cluster", ["v1alpha1", "v1beta1"], []),
    "NamespacedPolicy": ("namespacedpolicies", "Namespaced", ["v1beta1"], []),
    "CertificateStore": ("certificatestores", "Namespaced", ["v1alpha1", "v1beta1"], ["LastFetchedTime"]),
}


def refused(resource: Json) -> list[str]:
    """Why an API server refuses a resource."""
    return refusals(DEFINITIONS[resource["kind"]], resource)


def nodes(schema: Json, path: str) -> Iterator[tuple[str, Json]]:
    """A schema and all schemas in it."""
    yield path, schema
    for key, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{key}")
    for key in ("items", "additionalProperties"):
        if key in schema:
            yield from nodes(schema[key], f"{path}.{key}")


ROOTS: Final = {
    f"{kind} {version['name']}": version["schema"]["openAPIV3Schema"]
    for kind, definition in DEFINITIONS.items()
    for version in definition["spec"]["versions"]
}
NODES: Final = [(path, node) for name, root in ROOTS.items() for path, node in nodes(root, name)]


# -- the definitions ---------------------------------------------------------------------------------------------------


def test_kinds_versions_and_columns_are_ratifys() -> None:
    """Whoever has Ratify's resources in a cluster, and scripts that read them, finds everything in its place."""
    found = {}
    for kind, definition in DEFINITIONS.items():
        spec = definition["spec"]
        assert definition["metadata"]["name"] == f"{spec['names']['plural']}.{GROUP}"
        versions = [version["name"] for version in spec["versions"]]
        columns = [column["name"] for column in spec["versions"][-1]["additionalPrinterColumns"]]
        assert columns[:2] == ["IsSuccess", "Error"]
        found[kind] = (spec["names"]["plural"], spec["scope"], versions, columns[2:])
    assert found == RATIFY
    assert DEFINITIONS.keys() == KINDS.keys()


def test_the_former_version_is_served_deprecated_and_not_stored() -> None:
    for kind, definition in DEFINITIONS.items():
        for version in definition["spec"]["versions"]:
            former = version["name"] == "v1alpha1"
            assert version["served"] is True
            assert version["storage"] is not former
            assert version.get("deprecated", False) is former
            assert version["subresources"] == {"status": {}}
            if former:
                assert version["deprecationWarning"] == f"v1alpha1 of {kind} is deprecated: write {GROUP}/v1beta1"


def test_no_version_loses_what_another_says() -> None:
    for definition in DEFINITIONS.values():
        schemas = [version["schema"] for version in definition["spec"]["versions"]]
        assert all(schema == schemas[0] for schema in schemas)


@pytest.mark.parametrize("name", ROOTS)
def test_a_schema_is_structural(name: str) -> None:
    """The demands of the Kubernetes documentation, on every schema in it by itself."""
    for path, node in nodes(ROOTS[name], name):
        assert list(structural_faults(path, node)) == [], path


def structural_faults(path: str, node: Json) -> Iterator[str]:
    kind, properties = node.get("type"), node.get("properties", {})
    if not node.keys() <= WORDS:
        yield f"words that structural schemas do not have, or that nobody tests: {node.keys() - WORDS}"
    if kind is None and not node.get(PRESERVE):
        yield "has neither a type nor anything that says that it may have none"
    if node.keys() & {"properties", "additionalProperties", "required"} and kind != "object":
        yield "has keys and is no object"
    if "properties" in node and "additionalProperties" in node:
        yield "has properties beside additionalProperties"
    if isinstance(node.get("additionalProperties"), bool):
        yield "has additionalProperties that are no schema"
    if kind == "array" and not isinstance(node.get("items"), dict):
        yield "is a list of nobody knows what"
    said = node.keys() & {"properties", "additionalProperties", PRESERVE}
    if kind == "object" and not said and not path.endswith(".metadata"):
        yield "is an object whose keys are all cut off"
    if not set(node.get("required", ())) <= set(properties):
        yield "requires what it does not describe"
    if path.endswith(".metadata") and not set(properties) <= {"name", "generateName"}:
        yield "says more of metadata than an API server takes"
    if "enum" in node and node.get("nullable"):
        yield "would refuse null: an API server does for an enum, whatever nullable says"
    re.compile(node.get("pattern", ""))


def test_what_a_rule_is_about_has_a_bound_so_that_its_cost_has_one() -> None:
    for path, node in NODES:
        if RULES in node:
            bound = {"string": "maxLength", "array": "maxItems"}.get(node["type"])
            bound = "maxProperties" if "additionalProperties" in node else bound
            assert bound is None or bound in node, path
            for one in node[RULES]:
                assert set(one) == {"rule", "message"}, path
                assert one["message"].strip(), path
                assert "\n" not in one["rule"] + one["message"], path


def test_a_rule_is_never_about_a_text_that_may_be_a_key() -> None:
    """API servers repeat a text that breaks its rule or pattern."""
    for path, node in NODES:
        if path.endswith((".value", ".caBundle")):
            assert not node.keys() & {RULES, "pattern", "enum"}, path


def test_every_field_of_the_status_that_the_provider_writes_is_kept() -> None:
    for kind, definition in DEFINITIONS.items():
        properties = definition["spec"]["versions"][-1]["schema"]["openAPIV3Schema"]["properties"]["status"][
            "properties"
        ]
        wanted = {"issuccess", "error", "brieferror", "observedGeneration"}
        if "LastFetchedTime" in RATIFY[kind][3]:
            wanted |= {"lastfetchedtime", "properties"}
        assert set(properties) == wanted


def test_the_verifier_has_its_type() -> None:
    """Ratify's chart lacks it: what was written there was cut off."""
    for kind in ("Verifier", "NamespacedVerifier"):
        spec = ROOTS[f"{kind} v1beta1"]["properties"]["spec"]
        assert spec["properties"]["type"]["type"] == "string"


def test_every_setting_is_explained() -> None:
    """`kubectl explain verifiers.spec.parameters` is documentation."""
    unexplained = {
        path
        for name, root in ROOTS.items()
        for path, node in nodes(root["properties"]["spec"]["properties"]["parameters"], name)
        if "description" not in node and path.count(".") == 1
    }
    assert unexplained == set()


# -- what is admitted --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", [base for base in BASES if base != "NamespacedKeyVault"])
def test_a_good_resource_of_every_kind_is_admitted_in_every_version(base: str) -> None:
    resource = BASES[base]
    assert is_accepted(resource)
    for version in RATIFY[resource["kind"]][2]:
        assert refused({**resource, "apiVersion": f"{GROUP}/{version}"}) == []


def examples() -> Iterator[tuple[str, Json]]:
    """Every resource that the repository shows to people or renders for them."""
    for path in sorted((REPOSITORY / "docs").glob("*.md")):
        for number, block in enumerate(re.findall(r"^```ya?ml\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)):
            yield from _ours(f"{path.name}#{number}", block)
    for folder in ("policies", "tests/chart/golden", "bench"):
        for path in sorted((REPOSITORY / folder).rglob("*.yaml")):
            yield from _ours(path.name, path.read_text())


def _ours(where: str, text: str) -> Iterator[tuple[str, Json]]:
    try:
        documents = list(yaml.safe_load_all(text))
    except yaml.YAMLError:  # a fragment with an ellipsis
        return
    for document in documents:
        if isinstance(document, dict) and str(document.get("apiVersion", "")).startswith(f"{GROUP}/"):
            yield f"{where} {document['kind']}/{document['metadata']['name']}", document


EXAMPLES: Final = list(examples())


def test_there_are_examples() -> None:
    assert len(EXAMPLES) > 20


@pytest.mark.parametrize(("where", "resource"), EXAMPLES, ids=[where for where, _ in EXAMPLES])
def test_what_the_documentation_and_the_chart_say_is_admitted(where: str, resource: Json) -> None:
    """What can be used in a cluster is admitted there; what needs the folder of a file is refused."""
    findings = Findings()
    read_document(resource, Place(where, Path("/etc/countersign")), findings)
    if findings.faults and ("..." in str(resource) or "…" in str(resource)):
        pytest.skip("something is left out of this example")
    assert [str(fault) for fault in findings.faults if "is not supported" not in fault.message] == []
    assert (refused(resource) == []) is (is_accepted(resource) or bool(findings.faults))


def test_nothing_that_the_provider_accepts_is_refused() -> None:
    """Every field of every model with every kind of value: what the provider can use may be stored."""
    corpus = admission.accepted()
    assert len(corpus) > 1500  # else this proves nothing
    assert {resource["kind"] for resource in corpus} == set(KINDS)
    assert [(resource, found) for resource in corpus if (found := refused(resource))] == []


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_nothing_that_the_provider_accepts_is_refused_whatever_is_combined(data: st.DataObject) -> None:
    base = data.draw(st.sampled_from(sorted(BASES)))
    pair = st.tuples(st.sampled_from(fields(base)), st.sampled_from(VALUES))
    resource = admission.with_values(base, *data.draw(st.lists(pair, min_size=2, max_size=4)))
    if resource is not None and is_accepted(resource):
        assert refused(resource) == []


def test_what_ratify_stores_and_this_version_cannot_use_stays_storable() -> None:
    """Its own settings, and parameters of verifiers that come later: a cluster that moves over loses nothing."""
    cosign = {
        "key": "/usr/local/ratify-certs/cosign/cosign.pub",
        "trustPolicies": [{"name": "a", "keys": [{"provider": "b"}]}],
    }
    sbom = {"nestedReferences": "application/vnd.cncf.notary.signature", "disallowedLicenses": ["AGPL"]}
    vault = {"vaultURI": "https://v.vault.azure.net", "certificates": "array:\n- |\n  certificateName: c\n"}
    for base, edits in (
        ("Verifier", {"spec.name": "cosign", "spec.parameters": cosign}),
        ("Verifier", {"spec.name": "sbom", "spec.parameters": sbom, "spec.artifactTypes": "application/spdx+json"}),
        ("Store", {"spec.name": "a-plugin", "spec.address": "/plugins", "spec.parameters.anything": {"at": "all"}}),
        ("Store", {"spec.parameters.authProvider": {"name": "alibabacloudAcrBasic", "defaultInstanceId": "i"}}),
        (
            "Policy",
            {"spec.type": "rego-policy", "spec.parameters": {"passthroughEnabled": False, "policy": "package a"}},
        ),
        ("CertificateStore", {"spec.provider": "azurekeyvault", "spec.parameters": vault}),
    ):
        assert refused(changed(BASES[base], edits)) == []


@pytest.mark.parametrize(
    ("base", "edits"),
    [
        ("Verifier", {"statement.signatureVerification.overide": {"revocation": "enforce"}}),
        ("Verifier", {"spec.parameters.revocation": {"allowedHost": ["ocsp.example.com"]}}),
        ("Store", {"spec.parameters.registries": [{"host": "registry.example.com", "caFiles": "/ca.crt"}]}),
        ("Store", {"spec.parameters.authProvider": {"name": "dockerConfig", "confgPath": "/c"}}),
        ("KeyVault", {"spec.parameters.certificates": [{"name": "a", "versoin": "0" * 32}]}),
    ],
    ids=["override", "responders", "authority", "credentials", "pinned version"],
)
def test_a_misspelled_key_that_would_weaken_what_is_trusted_is_kept_for_the_provider_to_refuse(
    base: str, edits: Json
) -> None:
    """Clients that do not ask for strictness have unknown keys cut off; a policy must not become weaker in silence."""
    resource = changed(BASES[base], edits)
    assert refused(resource) == []
    assert not is_accepted(resource)


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mistake", ALL_MISTAKES, ids=[mistake.title for mistake in ALL_MISTAKES])
def test_a_mistake_is_refused_at_its_place(mistake: Mistake) -> None:
    found = refused(mistake.resource)
    assert any(mistake.at in one.partition(": ")[0] for one in found), found
    assert not is_accepted(mistake.resource)
    messages = {one["message"] for _, node in NODES for one in node.get(RULES, ())}
    if any(mistake.told in message for message in messages):
        assert any(mistake.told in one for one in found), found


def test_every_rule_is_broken_by_some_mistake() -> None:
    messages = {one["message"] for _, node in NODES for one in node.get(RULES, ())}
    told = [one for mistake in ALL_MISTAKES for one in refused(mistake.resource)]
    assert {message for message in messages if not any(one.endswith(f": {message}") for one in told)} == set()


def test_no_refusal_repeats_key_material() -> None:
    for mistake in ALL_MISTAKES:
        told = "\n".join(refused(mistake.resource))
        assert not any(line in told for line in PRIVATE_KEY_PEM.splitlines() if "-----" not in line)


ODD: Final = [path for path in MISTAKES if not read_header(path.read_text(), "fault")]


@pytest.mark.parametrize("path", ODD, ids=lambda path: path.stem)
def test_manifests_that_the_provider_takes_are_admitted(path: Path) -> None:
    """Those of the folder mistakes that are only odd."""
    for where, resource in _ours(path.name, fill(path.read_text())):
        assert refused(resource) == [], where


@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
@settings(max_examples=200, deadline=None)
def test_the_simulator_has_an_answer_to_anything(value: Any) -> None:
    """Any specification: refused, or admitted, and never an exception of the tests' own."""
    for base in ("Store", "Verifier", "KeyManagementProvider", "Policy"):
        refused({**BASES[base], "spec": value})
