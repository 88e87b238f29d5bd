"""Which key provider a verifier means, and which resources decide for a namespace."""

from __future__ import annotations

import pytest

from provider.configuration.key_providers import InlineParameters
from provider.configuration.policies import ConfigPolicyParameters
from provider.configuration.resources import Component, Resource, ResourceSet, Unusable, assemble_set
from provider.configuration.stores import OrasParameters
from tests.unit.configuration.samples import GOOD, ROOT_PEM, good, read

MATERIAL = InlineParameters.model_validate({"contentType": "certificate", "value": ROOT_PEM})


def key_provider(name: str, namespace: str = "", *, former: bool = False) -> Resource:
    kind = "CertificateStore" if former else "NamespacedKeyManagementProvider" if namespace else "KeyManagementProvider"
    return Resource(kind, Component.KEY_PROVIDER, namespace, name, "test", "inline", MATERIAL)


PROVIDERS = assemble_set(
    [
        key_provider("cluster"),
        key_provider("both"),
        key_provider("both", "team-a"),
        key_provider("both", "gatekeeper-system", former=True),
        key_provider("own", "team-a"),
        key_provider("former", "gatekeeper-system", former=True),
        key_provider("former", "team-a", former=True),
        key_provider("own", "team-b", former=True),
        key_provider("shadowed", "team-a"),
        key_provider("shadowed", "team-a", former=True),
    ]
)


@pytest.mark.parametrize(
    ("reference", "namespace", "label"),
    [
        ("cluster", "", "KeyManagementProvider/cluster"),
        ("cluster", "team-a", "KeyManagementProvider/cluster"),
        ("both", "", "KeyManagementProvider/both"),
        ("both", "team-a", "KeyManagementProvider/both"),
        ("team-a/both", "team-a", "NamespacedKeyManagementProvider/team-a/both"),
        ("team-a/own", "team-a", "NamespacedKeyManagementProvider/team-a/own"),
        ("former", "", "CertificateStore/gatekeeper-system/former"),
        ("former", "team-a", "CertificateStore/gatekeeper-system/former"),
        ("team-a/former", "team-a", "CertificateStore/team-a/former"),
        ("team-a/former", "", "CertificateStore/team-a/former"),
        ("gatekeeper-system/both", "", "CertificateStore/gatekeeper-system/both"),
        ("team-a/shadowed", "team-a", "NamespacedKeyManagementProvider/team-a/shadowed"),
        ("team-a/shadowed", "", "CertificateStore/team-a/shadowed"),
    ],
)
def test_a_verifier_finds_the_key_provider_it_names(reference: str, namespace: str, label: str) -> None:
    found = PROVIDERS.find_key_provider(reference, namespace)
    assert found is not None
    assert found.label == label


@pytest.mark.parametrize(
    ("reference", "namespace"),
    [
        ("own", ""),
        ("own", "team-a"),
        ("team-a/own", ""),
        ("team-a/both", ""),
        ("team-a/own", "team-b"),
        ("team-a/former", "team-b"),
        ("team-b/own", "team-a"),
        ("team-a/cluster", "team-a"),
        ("gatekeeper-system/cluster", ""),
        ("other", ""),
    ],
)
def test_a_tenant_supplies_no_certificates_to_others(reference: str, namespace: str) -> None:
    """Neither to the cluster's verifiers nor to another tenant's, whatever the names are."""
    assert PROVIDERS.find_key_provider(reference, namespace) is None


def test_a_namespace_uses_its_own_resources_and_else_the_clusters() -> None:
    """Each component is looked up by itself, as in Ratify."""
    stores = [
        Resource("Store", Component.STORE, "", "cluster", "test", "oras", OrasParameters()),
        Resource("NamespacedStore", Component.STORE, "team-a", "own", "test", "oras", OrasParameters()),
    ]
    policies = [
        Resource("Policy", Component.POLICY, "", "ratify-policy", "test", "config-policy", ConfigPolicyParameters())
    ]
    resources = assemble_set([*stores, *policies])
    assert resources.namespaces == ("team-a",)
    assert [one.name for one in resources.in_scope(Component.STORE, "team-a")] == ["own"]
    assert [one.name for one in resources.in_scope(Component.STORE, "team-b")] == ["cluster"]
    assert [one.label for one in resources.in_scope(Component.POLICY, "team-a")] == ["Policy/ratify-policy"]


def test_the_order_of_documents_does_not_matter() -> None:
    """The files of a folder, or what a cluster lists, come in any order."""
    forwards, backwards = read(*good()), read(*reversed(good()))
    assert [one.label for one in forwards] == [one.label for one in backwards]
    assert forwards.digest != backwards.digest  # other files, the same resources


def test_stores_go_by_the_order_of_their_names() -> None:
    other = GOOD["Store"].replace("store-oras", "a-store")
    assert [store.name for store in read(*good(), other).stores] == ["a-store", "store-oras"]


def test_what_cannot_be_used_keeps_its_place() -> None:
    """An unusable Store that is asked last would let a laxer one answer in its place."""
    stores = [
        Resource("Store", Component.STORE, "", name, "test", "", parameters)
        for name, parameters in (("b", OrasParameters()), ("a", Unusable(reason="why")), ("c", OrasParameters()))
    ]
    assert [(one.name, one.is_usable) for one in assemble_set(stores).stores] == [
        ("a", False),
        ("b", True),
        ("c", True),
    ]


def test_an_empty_set_has_nothing_in_it() -> None:
    assert list(ResourceSet()) == []
    assert ResourceSet().namespaces == ()
