"""Custom resources in the cluster: what kubectl refuses, what their status says, what the provider makes of changes."""

from __future__ import annotations

import copy

import pytest

from tests.e2e.cluster import NAMESPACE, Cluster, Json
from tests.e2e.countersign import SERVICE_ACCOUNT, Countersign
from tests.e2e.images import Shop
from tests.e2e.pods import assert_admitted, assert_denied, create, run
from tests.e2e.processes import wait_for

GROUP = "config.ratify.deislabs.io"
KEYS = "ratify-notation-inline-cert-0"  # what the chart makes of notationCerts[0]


def verifier_of(provider: Countersign) -> Json:
    """The chart's Verifier, to be changed."""
    (verifier,) = (each for each in provider.baseline if each["kind"] == "Verifier")
    return copy.deepcopy(verifier)


def statement_of(verifier: Json) -> Json:
    """The one statement of its trust policy."""
    statement: Json = verifier["spec"]["parameters"]["trustPolicyDoc"]["trustPolicies"][0]
    return statement


def test_kubectl_shows_at_a_glance_what_is_good(cluster: Cluster, provider: Countersign) -> None:
    for kind, name in (
        ("stores", "store-oras"),
        ("verifiers", "verifier-notation"),
        ("keymanagementproviders", KEYS),
        ("policies", "ratify-policy"),
    ):
        header, row = cluster.must("get", f"{kind}.{GROUP}", name).splitlines()
        assert "ISSUCCESS" in header, header
        assert row.split()[:2] == [name, "true"], row


def test_a_broken_verifier_says_why_at_which_key_and_heals(denying: Cluster, shop: Shop, provider: Countersign) -> None:
    broken = verifier_of(provider)
    statement_of(broken)["trustStores"] = ["ca:nowhere"]
    denying.apply(broken)
    name = f"verifiers.{GROUP}"
    found = denying.wait(
        "the status to say it", name, "verifier-notation", until=lambda it: it["status"]["issuccess"] is False
    )
    assert "trustPolicies[0].trustStores[0]" in found["status"]["error"]
    assert "nowhere" in found["status"]["error"]
    assert found["status"]["brieferror"]
    assert found["status"]["observedGeneration"] == found["metadata"]["generation"]
    assert_admitted(run(denying, "old-one-stays", shop.signed()), "old-one-stays")
    denying.apply(verifier_of(provider))
    healed = denying.wait(
        "the status to say so", name, "verifier-notation", until=lambda it: it["status"]["issuccess"] is True
    )
    assert not healed["status"].get("error")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("signatureVerification", "level"), "lenient"),
        (("trustStores",), "ca:company"),
        (("trustStores",), ["company"]),
    ],
)
def test_kubectl_refuses_a_mistake_that_a_schema_can_see(
    cluster: Cluster, provider: Countersign, path: tuple[str, ...], value: object
) -> None:
    broken = verifier_of(provider)
    *parents, last = path
    place = statement_of(broken)
    for key in parents:
        place = place[key]
    place[last] = value
    said = create(cluster, broken, "--dry-run=server")
    assert said.code == 1, str(said)
    assert f"spec.parameters.trustPolicyDoc.trustPolicies[0].{'.'.join(path)}" in said.err, str(said)


def test_key_material_is_swapped_with_kubectl_apply_without_a_restart(
    denying: Cluster, shop: Shop, provider: Countersign
) -> None:
    (pod,) = provider.pods
    before, companys = shop.untrusted(), shop.signed()
    assert_denied(run(denying, "before", before), before, code="UNTRUSTED_ROOT")
    verifier = verifier_of(provider)
    statement_of(verifier)["trustedIdentities"] = ["*"]
    denying.apply(verifier, shop.key_resource("KeyManagementProvider", KEYS, shop.stranger))
    # A new image each time: the answer on one that came too early would be kept by Gatekeeper.
    wait_for("the new key to be trusted", lambda: run(denying, "after", shop.untrusted()).ok)
    assert_denied(run(denying, "companys", companys), companys, code="UNTRUSTED_ROOT")
    assert provider.pods == [pod], "nothing was restarted"
    assert pod.running


def test_without_its_key_provider_a_verifier_lets_nobody_in_and_says_what_is_missing(
    denying: Cluster, shop: Shop, provider: Countersign
) -> None:
    denying.delete(f"keymanagementproviders.{GROUP}", KEYS)
    name = f"verifiers.{GROUP}"
    denying.wait("the status to say it", name, "verifier-notation", until=lambda it: not it["status"]["issuccess"])
    image = shop.signed()
    said = run(denying, "keyless", image)
    assert_denied(said, image, code="RESOURCE_UNUSABLE")
    assert f"KeyManagementProvider {KEYS}" in said.err
    provider.write(provider.baseline)
    wait_for("it to heal", lambda: run(denying, "healed", shop.signed()).ok)


def test_the_provider_may_do_what_it_needs_and_nothing_else(cluster: Cluster) -> None:
    me = f"--as=system:serviceaccount:{NAMESPACE}:{SERVICE_ACCOUNT}"

    def may(verb: str, what: str, *words: str) -> bool:
        return cluster.kubectl("auth", "can-i", verb, what, me, *words).out.strip() == "yes"

    assert may("watch", f"verifiers.{GROUP}")
    assert may("patch", f"verifiers.{GROUP}", "--subresource=status")
    assert not may("patch", f"verifiers.{GROUP}")
    assert not may("list", "secrets", f"--namespace={NAMESPACE}")
    assert not may("get", "secrets", "--namespace=default")
    assert not may("create", "pods", "--namespace=default")
    assert not may("patch", "providers.externaldata.gatekeeper.sh/some-other-provider")
