"""Sets of resources: what is told of them as a whole. The mistakes of single sets are in mistakes/."""

from __future__ import annotations

import pytest

from provider.errors import ConfigurationError
from tests.unit.configuration.samples import GOOD, KEY_PROVIDER, VERIFIER, good, read

TSA = KEY_PROVIDER.replace("inline-cert-0", "inline-cert-1")
TIMESTAMPING = VERIFIER.replace(
    "certs: [ratify-notation-inline-cert-0]",
    "cert-0: [ratify-notation-inline-cert-0]\n      tsa:\n        cert-1: [ratify-notation-inline-cert-1]",
).replace('["ca:certs"]', '["ca:cert-0", "tsa:cert-1"]')


def faults_of(*texts: str) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        read(*texts)
    assert caught.value.code == "CONFIG_INVALID"
    return [fault.message for fault in caught.value.faults]


def namespaced(text: str, namespace: str = "team-a") -> str:
    """A resource's namespaced twin."""
    return text.replace("kind: ", "kind: Namespaced").replace("metadata:\n", f"metadata:\n  namespace: {namespace}\n")


def test_what_ratifys_chart_renders_is_read_without_a_warning() -> None:
    """The values of the article, as they were meant: Key Vault apart, with a time-stamp authority."""
    store = GOOD["Store"].replace("ttl: 10", "ttl: 10\n    useHttp: false")
    policy = GOOD["Policy"].replace("      application/vnd.cncf.notary.signature: any\n", "")
    assert read(store, TIMESTAMPING, KEY_PROVIDER, TSA, policy).warnings == ()


def test_the_articles_slip_is_told_twice() -> None:
    """`ca` where `tsa` was meant: twin stores, and a key provider unused. Else it shows when certificates expire."""
    slip = TIMESTAMPING.replace(
        "      tsa:\n        cert-1: [ratify-notation-inline-cert-1]", "        cert-1: [ratify-notation-inline-cert-0]"
    ).replace("tsa:cert-1", "ca:cert-1")
    told = [warning.message for warning in read(*good(Verifier=slip), TSA).warnings]
    assert told == [
        "ca:cert-1 holds the same as ca:cert-0: was another type or provider meant?",
        "no trust store of a Verifier uses it",
    ]


def test_n43_a_leaf_is_no_trust_anchor_for_time_stamps_either() -> None:
    leaf = TSA.replace("@ROOT@", "@LEAF@")
    [message] = faults_of(*good(Verifier=TIMESTAMPING), leaf)
    assert message.startswith(
        "KeyManagementProvider/ratify-notation-inline-cert-1 holds no certificate that tsa:cert-1 can use: "
    )


@pytest.mark.parametrize("kind", ["Store", "Verifier", "Policy"])
def test_n58_a_set_that_cannot_decide_is_no_configuration(kind: str) -> None:
    assert faults_of(*good(**{kind: ""})) == [f"lacks a {kind}; it takes a Store, a Verifier and a Policy to decide"]


def test_n58_nothing_at_all_is_no_configuration() -> None:
    assert faults_of("# nothing\n") == [
        "lacks a Store and a Verifier and a Policy; it takes a Store, a Verifier and a Policy to decide"
    ]


def test_a_namespace_may_be_all_that_is_configured() -> None:
    """A tenant's store, verifier and policy decide for the tenant; the rest of the cluster is told of."""
    tenant = [namespaced(GOOD[kind]) for kind in ("Store", "Verifier", "Policy")]
    resources = read(KEY_PROVIDER, *tenant)
    assert [warning.message for warning in resources.warnings] == [
        "lacks a Store and a Verifier and a Policy for the whole cluster: "
        "images are refused, except in the namespaces team-a"
    ]


def test_a_namespaced_policy_completes_the_clusters_resources() -> None:
    policy = namespaced(GOOD["Policy"])
    assert read(*good(), policy).namespaces == ("team-a",)


def test_a_tenants_policy_that_nobody_can_fulfil_is_told() -> None:
    policy = namespaced(GOOD["Policy"]).replace("vnd.cncf.notary.signature", "spdx+json")
    [warning] = read(*good(), policy).warnings
    assert (warning.resource, warning.message) == (
        "NamespacedPolicy/team-a/ratify-policy",
        "no Verifier judges this type: every image is refused",
    )


def test_a_verifier_of_any_type_fulfils_every_policy() -> None:
    verifier = VERIFIER.replace("artifactTypes: application/vnd.cncf.notary.signature", 'artifactTypes: "*"')
    policy = GOOD["Policy"].replace("vnd.cncf.notary.signature", "spdx+json")
    assert read(*good(Verifier=verifier, Policy=policy)).warnings == ()


def test_a_faulty_resource_causes_no_faults_of_those_that_need_it() -> None:
    """One mistake, one fault: not the trust store's, the verifier's and the set's as well."""
    broken = KEY_PROVIDER.replace("@ROOT@", "@TRUNCATED@")
    assert faults_of(*good(KeyManagementProvider=broken)) == ["block 1: truncated, its end line is missing"]
    former = broken.replace("KeyManagementProvider", "CertificateStore").replace("type:", "provider:")
    assert faults_of(*good(KeyManagementProvider=former)) == ["block 1: truncated, its end line is missing"]
    verifier = VERIFIER.replace("level: strict", "level: strictest")
    assert len(faults_of(*good(Verifier=verifier))) == 1


def test_a_text_that_cannot_be_read_causes_no_faults_of_the_rest() -> None:
    """What is missing may be in the file that could not be read."""
    assert faults_of(*good(Verifier=VERIFIER.replace("  name: notation", "\tname: notation"))) == [
        "line 7: the line is indented with a tab: YAML wants spaces"
    ]


def test_a_tenants_key_provider_of_the_same_name_changes_nothing_for_the_cluster() -> None:
    """Who may write to a namespace would otherwise choose whom the cluster trusts."""
    tenant = namespaced(KEY_PROVIDER.replace("@ROOT@", "@CHAIN@"))
    resources = read(*good(), tenant)
    found = resources.find_key_provider("ratify-notation-inline-cert-0", "")
    assert found is not None
    assert found.label == "KeyManagementProvider/ratify-notation-inline-cert-0"


def test_folders_serve_whatever_the_policy_names() -> None:
    """Without verificationCertStores there is nothing that a trust store would have to be in."""
    folders = VERIFIER.replace(
        "    verificationCertStores:\n      ca:\n        certs: [ratify-notation-inline-cert-0]\n",
        "    verificationCerts: [certs]\n",
    )
    [warning] = read(*good(Verifier=folders)).warnings
    assert warning.message == "no trust store of a Verifier uses it"
    neither = folders.replace("    verificationCerts: [certs]\n", "")
    assert faults_of(*good(Verifier=neither, KeyManagementProvider="")) == ["ca:certs is not in verificationCertStores"]
