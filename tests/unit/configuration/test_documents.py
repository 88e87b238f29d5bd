"""Documents that are right, and anything else that a document can be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from provider.configuration.documents import Findings, Place, read_document
from provider.configuration.key_providers import InlineParameters, parse_duration
from provider.configuration.policies import ConfigPolicyParameters
from provider.configuration.resources import GROUP, KINDS, LATER, PARAMETERS, Component, Resource
from provider.configuration.stores import DockerConfigParameters, OciLayoutParameters, OrasParameters
from provider.configuration.verifiers import NotationParameters
from provider.notation.trust_policy import StoreType
from tests.unit.configuration.samples import GOOD, KEY_PROVIDER, STORE, VERIFIER, fill

API_VERSION = f"{GROUP}/v1beta1"
FOLDER = Path("/etc/countersign")


def read_one(text: str, folder: Path | None = FOLDER) -> Resource:
    """The one resource of a text that has no fault."""
    findings = Findings()
    [resource] = read_document(yaml.safe_load(fill(text)), Place("file.yaml#1", folder), findings)
    assert not findings.faults
    return resource


def faults_of(value: Any, folder: Path | None = FOLDER) -> list[str]:
    """What is wrong with a document."""
    findings = Findings()
    assert read_document(value, Place("file.yaml#1", folder), findings) == ()
    return [str(fault) for fault in findings.faults]


def store(**parameters: Any) -> dict[str, Any]:
    """A Store of type oras as a value."""
    return {
        "apiVersion": API_VERSION,
        "kind": "Store",
        "metadata": {"name": "store-oras"},
        "spec": {"name": "oras", "parameters": parameters},
    }


def test_a_store_with_every_setting_is_read() -> None:
    resource = read_one(
        STORE
        + """
    useHttp: true
    authProvider:
      name: dockerConfig
      configPath: docker/config.json
    registries:
      - host: registry.example.com:5000
        plainHttp: false
        caFile: /etc/ca.pem
        clientCertFile: client.pem
        clientKeyFile: client.key
        tokenHosts: [auth.example.com, "tokens:8443", "[fd00::1]:443"]
        redirectHosts: [blobs.internal]
      - host: docker.io
    maxReferrers: 50
    timeoutSeconds: 2.5
    maxConnectionsPerHost: 10
"""
    )
    parameters = resource.parameters
    assert isinstance(parameters, OrasParameters)
    assert (resource.label, resource.type, resource.reference) == ("Store/store-oras", "oras", "store-oras")
    assert parameters.auth_provider == DockerConfigParameters.model_construct(
        name="dockerConfig", config_path=FOLDER / "docker/config.json"
    )
    registry = parameters.registries[0]
    assert (registry.ca_file, registry.client_key_file) == (Path("/etc/ca.pem"), FOLDER / "client.key")
    assert registry.token_hosts == ("auth.example.com", "tokens:8443", "[fd00::1]:443")
    assert parameters.use_http
    assert (parameters.max_referrers, parameters.timeout_seconds, parameters.max_connections_per_host) == (50, 2.5, 10)


def test_a_store_without_parameters_is_read() -> None:
    """Ratify's quick start has no more than a name; credentials are then Docker's."""
    parameters = read_one(STORE.split("  parameters:")[0] + "  parameters:\n").parameters
    assert parameters == OrasParameters()


def test_credentials_without_a_name_are_dockers() -> None:
    """Ratify's default, written out: an empty authProvider."""
    resource = read_one(STORE + "    authProvider: {}\n")
    assert isinstance(resource.parameters, OrasParameters)
    assert resource.parameters.auth_provider == DockerConfigParameters(name="dockerConfig")
    empty = read_one(STORE + "    authProvider:\n").parameters
    assert isinstance(empty, OrasParameters)
    assert empty.auth_provider is None


def test_a_layout_store_is_read() -> None:
    text = STORE.replace("name: oras", "name: oci-layout").split("  parameters:")[0] + "  parameters: {path: images}\n"
    assert read_one(text).parameters == OciLayoutParameters.model_construct(path=FOLDER / "images")


def test_a_relative_path_needs_a_folder_to_begin_at() -> None:
    """A resource of a cluster has no folder, and the process's own would be anybody's guess."""
    value = store(registries=[{"host": "registry.example.com", "caFile": "ca.pem"}])
    assert faults_of(value, folder=None) == [
        "file.yaml#1 Store/store-oras spec.parameters.registries[0].caFile: "
        "must be an absolute path, found the text 'ca.pem'"
    ]
    absolute = store(registries=[{"host": "registry.example.com", "caFile": "/ca.pem"}])
    assert read_document(absolute, Place("cluster"), Findings())


def test_a_verifier_with_every_setting_is_read() -> None:
    resource = read_one(
        VERIFIER.replace("  name: notation\n", "  name: any\n  type: notation\n").replace(
            "artifactTypes: application/vnd.cncf.notary.signature",
            "artifactTypes: application/vnd.cncf.notary.signature, application/vnd.cncf.notary.v2.signature",
        )
        + """
    verificationCerts: [certs, /etc/certs]
    maxSignatureAttempts: 5
    userMetadata:
      stage: production
    revocation:
      allowPrivateAddresses: true
      allowedHosts: [ocsp.internal]
"""
    )
    parameters = resource.parameters
    assert isinstance(parameters, NotationParameters)
    assert resource.type == "notation"
    assert resource.artifact_types == {
        "application/vnd.cncf.notary.signature",
        "application/vnd.cncf.notary.v2.signature",
    }
    assert parameters.verification_cert_stores[StoreType.CA, "certs"].references == ("ratify-notation-inline-cert-0",)
    assert parameters.verification_certs == (FOLDER / "certs", Path("/etc/certs"))
    assert parameters.max_signature_attempts == 5
    assert parameters.user_metadata == {"stage": "production"}
    assert parameters.revocation.allow_private_addresses
    assert parameters.revocation.allowed_hosts == ("ocsp.internal",)
    assert parameters.trust_policy_doc.select("registry.example.com/app").name == "default"


def test_any_artifact_type_goes_before_others() -> None:
    text = VERIFIER.replace("application/vnd.cncf.notary.signature", '"application/spdx+json,*"')
    assert read_one(text).artifact_types == {"*"}


def test_both_forms_of_trust_stores_mean_the_same() -> None:
    """Ratify's older form has no types, and means ca."""
    typed = read_one(VERIFIER).parameters
    legacy = read_one(VERIFIER.replace("      ca:\n        certs:", "      certs:")).parameters
    assert isinstance(typed, NotationParameters)
    assert isinstance(legacy, NotationParameters)
    assert [(store, entry.references) for store, entry in typed.verification_cert_stores.items()] == [
        (store, entry.references) for store, entry in legacy.verification_cert_stores.items()
    ]
    assert legacy.verification_cert_stores[StoreType.CA, "certs"].path == "certs"


def test_trust_stores_of_all_types_are_read() -> None:
    resource = read_one(
        VERIFIER.replace(
            "        certs: [ratify-notation-inline-cert-0]",
            "        certs: [a, team-a/b]\n      tsa: {certs: [c]}\n      signingAuthority: {certs: [d, d]}",
        )
    )
    assert isinstance(resource.parameters, NotationParameters)
    stores = {key: entry.references for key, entry in resource.parameters.verification_cert_stores.items()}
    assert stores == {
        (StoreType.CA, "certs"): ("a", "team-a/b"),
        (StoreType.TSA, "certs"): ("c",),
        (StoreType.SIGNING_AUTHORITY, "certs"): ("d", "d"),
    }


def test_trust_stores_that_were_left_out_are_none() -> None:
    text = VERIFIER.replace("      ca:\n        certs: [ratify-notation-inline-cert-0]\n", "")
    parameters = read_one(text).parameters
    assert isinstance(parameters, NotationParameters)
    assert not parameters.verification_cert_stores


def test_more_trust_stores_than_anybody_has_are_refused() -> None:
    value = yaml.safe_load(VERIFIER)
    value["spec"]["parameters"]["verificationCertStores"] = {f"s{number}": ["certs"] for number in range(101)}
    assert faults_of(value) == [
        "file.yaml#1 Verifier/verifier-notation spec.parameters.verificationCertStores: "
        "must have at most 100 trust stores, found 101"
    ]


def test_an_inline_key_provider_is_read_and_never_shown() -> None:
    resource = read_one(KEY_PROVIDER.replace("  type: inline\n", "  type: inline\n  refreshInterval: 1h30m\n"))
    assert isinstance(resource.parameters, InlineParameters)
    assert resource.refresh_seconds == 5400.0
    assert len(resource.parameters.material().certificates) == 1
    assert "BEGIN" not in repr(resource)
    assert (
        read_one(KEY_PROVIDER.replace("  type: inline\n", '  type: inline\n  refreshInterval: ""\n')).refresh_seconds
        is None
    )


def test_a_certificate_store_becomes_a_key_provider() -> None:
    """It holds certificates without saying so, and lives in the provider's own namespace when it names none."""
    text = """
apiVersion: config.ratify.deislabs.io/v1alpha1
kind: CertificateStore
metadata: {name: certs}
spec: {provider: inline, parameters: {value: @ROOT@}}
"""
    resource = read_one(text)
    assert resource.component is Component.KEY_PROVIDER
    assert (resource.namespace, resource.name, resource.type) == ("gatekeeper-system", "certs", "inline")
    assert isinstance(resource.parameters, InlineParameters)
    assert resource.parameters.content_type == "certificate"


@pytest.mark.parametrize("name", ["config-policy", "configpolicy", "configPolicy", "ConfigPolicy"])
def test_policies_are_named_loosely_as_in_ratify(name: str) -> None:
    resource = read_one(GOOD["Policy"].replace("config-policy", name))
    assert resource.type == "config-policy"
    assert isinstance(resource.parameters, ConfigPolicyParameters)
    assert resource.parameters.rules == {"application/vnd.cncf.notary.signature": "any"}
    assert resource.parameters.default == "all"


def test_a_policy_without_rules_wants_all_to_verify() -> None:
    parameters = read_one(GOOD["Policy"].split("  parameters:")[0]).parameters
    assert isinstance(parameters, ConfigPolicyParameters)
    assert (parameters.rules, parameters.default) == ({}, "all")


def test_what_kubernetes_adds_is_taken() -> None:
    """The output of kubectl get -o yaml, with status and all that the API server writes into metadata."""
    value = store()
    value["metadata"] |= {
        "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}", "helm.sh/hook": "pre-install"},
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "finalizers": ["x"],
        "generation": 1,
        "labels": {"app": "ratify"},
        "managedFields": [{"manager": "helm"}],
        "ownerReferences": [],
        "resourceVersion": "1",
        "selfLink": "",
        "uid": "0",
    }
    value["status"] = {"issuccess": True, "error": "", "brieferror": ""}
    listed = {"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}, "items": [value, value]}
    assert len(read_document(listed, Place("list.yaml#1"), Findings())) == 2


def test_a_very_long_wrong_list_is_cut() -> None:
    """Nobody reads a hundred thousand faults, and they have to be kept somewhere."""
    assert len(faults_of(store(**{f"key{number}": 1 for number in range(500)}))) == 100


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30m", 1800.0),
        ("1h30m", 5400.0),
        ("90s", 90.0),
        ("0.5h", 1800.0),
        ("1500ms", 1.5),
        ("10s500ms", 10.5),
        ("1us", 1e-6),
    ],
)
def test_durations_are_those_of_go(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "5", "-5m", "5 m", "m", "1d", "1.5.5s", "9" * 12 + "h", "0s", "1h" * 9, "٣m"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be"):
        parse_duration(text)


@pytest.mark.parametrize(("component", "name"), LATER, ids=lambda part: str(part))
def test_no_type_is_both_supported_and_not(component: Component, name: str) -> None:
    assert (component, name) not in PARAMETERS


SCALARS = st.none() | st.booleans() | st.integers() | st.text(max_size=8)
WORDS = st.sampled_from(
    [
        *("apiVersion", "kind", "metadata", "spec", "name", "namespace", "type", "parameters", "provider", "items"),
        *("artifactTypes", "refreshInterval", "source", "artifact", "address", "version", "registries", "host"),
        *("authProvider", "value", "contentType", "trustPolicyDoc", "verificationCertStores", "ca", "useHttp"),
    ]
)
TEXTS = st.sampled_from(
    [API_VERSION, "v1", "List", "oras", "notation", "inline", "config-policy", "ratify-policy", "a", "key", *KINDS]
)
VALUES = st.recursive(
    SCALARS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS | st.text(max_size=5), inner, max_size=5),
    max_leaves=15,
)


@given(VALUES, VALUES, VALUES, st.sampled_from(sorted(KINDS)))
@settings(max_examples=200, deadline=None)
def test_n70_no_document_raises(metadata: object, spec: object, parameters: object, kind: str) -> None:
    """Whatever a document holds: resources, or faults, each in one printable line."""
    for value in (
        spec,
        {"apiVersion": API_VERSION, "kind": kind, "metadata": metadata, "spec": spec},
        {
            "apiVersion": API_VERSION,
            "kind": kind,
            "metadata": {"name": "ratify-policy", "namespace": "a"},
            "spec": {"name": "notation", "type": "inline", "provider": "inline", "parameters": parameters},
        },
    ):
        findings = Findings()
        resources = read_document(value, Place("file.yaml#1", FOLDER), findings)
        if findings.broken and not (isinstance(value, dict) and value.get("kind") == "List"):
            assert findings.faults
            assert not resources
        for fault in (*findings.faults, *findings.warnings):
            assert "\n" not in str(fault)
