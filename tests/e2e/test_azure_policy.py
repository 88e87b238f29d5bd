"""The Azure Policy definition, put into the cluster as the add-on of AKS does it.

Rules: what the add-on makes of a definition is taken from Azure's documentation and from objects seen in clusters: a
template with its annotations, a constraint whose name begins with `azurepolicy-ratifyverification-` and ends with 20
hexadecimal digits; Deny becomes the action deny, Audit dryrun, Disabled no constraint. The test does that part; what
is in the objects comes from policies/customazurepolicy.json alone.

What does not belong here: the definition as a document (tests/policies).
"""

from __future__ import annotations

import json
from base64 import b64decode
from typing import Any

import pytest
import yaml

from tests.e2e.cluster import Cluster, Json
from tests.e2e.images import Shop
from tests.e2e.pods import DENIED, POLICIES, assert_admitted, failure, run

NAME = "azurepolicy-ratifyverification-077bac5b63d37da0bc4a"  # the tutorial's example
ACTIONS = {"deny": "deny", "audit": "dryrun"}


def assign(cluster: Cluster, **given: Any) -> None:
    """Do what the add-on does with an assignment: resolve the parameters, install template and constraint."""
    definition = json.loads((POLICIES / "customazurepolicy.json").read_text())
    parameters = {name: each["defaultValue"] for name, each in definition["parameters"].items()}
    unknown = set(given) - set(parameters)
    assert not unknown, unknown
    parameters |= given
    assert parameters["effect"] in definition["parameters"]["effect"]["allowedValues"]

    def resolved(value: Any) -> Any:
        if isinstance(value, str) and value.startswith("[parameters('"):
            return parameters[value.removeprefix("[parameters('").removesuffix("')]")]
        return value

    then = definition["policyRule"]["then"]
    details = {name: resolved(value) for name, value in then["details"].items()}
    effect = resolved(then["effect"]).lower()
    template = yaml.safe_load(b64decode(details["templateInfo"]["content"], validate=True))
    template["metadata"]["annotations"] = {"constraint-template-installed-by": "azure-policy-addon"}
    cluster.apply(template)
    cluster.wait_template()
    if effect == "disabled":
        cluster.delete("ratifyverification", NAME)
        return
    match: Json = {"kinds": [{"apiGroups": details["apiGroups"], "kinds": details["kinds"]}]}
    match |= {name: details[name] for name in ("namespaces", "excludedNamespaces", "labelSelector") if details[name]}
    constraint = {
        "apiVersion": "constraints.gatekeeper.sh/v1beta1",
        "kind": template["spec"]["crd"]["spec"]["names"]["kind"],
        "metadata": {"name": NAME, "annotations": {"constraint-installed-by": "azure-policy-addon"}},
        "spec": {"enforcementAction": ACTIONS[effect], "match": match},
    }
    cluster.apply(constraint)
    cluster.wait_constraint(NAME)


def test_by_default_what_is_not_verified_is_denied_in_the_words_of_the_tutorial(cluster: Cluster, shop: Shop) -> None:
    assign(cluster)
    assert_admitted(run(cluster, "demo-signed", shop.signed()), "demo-signed")
    for name, image in (("demo-unsigned", shop.unsigned()), ("demo-signed-untrusted", shop.untrusted())):
        said = run(cluster, name, image)
        assert said.code == 1, str(said)
        assert said.err.startswith(f"Error from server (Forbidden): {DENIED}[{NAME}] {failure(image)}"), str(said)


@pytest.mark.parametrize("effect", ["Audit", "audit"])
def test_the_effect_audit_admits_and_reports(cluster: Cluster, shop: Shop, effect: str) -> None:
    assign(cluster, effect=effect)
    image = shop.unsigned()
    assert_admitted(run(cluster, "demo-signed", shop.signed()), "demo-signed")
    assert_admitted(run(cluster, "demo-unsigned", image), "demo-unsigned")

    def reported(constraint: Json) -> bool:
        return [each["name"] for each in constraint["status"].get("violations", [])] == ["demo-unsigned"]

    found = cluster.wait("the audit", "ratifyverification", NAME, until=reported)
    (violation,) = found["status"]["violations"]
    assert violation["message"].startswith(failure(image))


def test_the_effect_disabled_does_nothing(cluster: Cluster, shop: Shop) -> None:
    assign(cluster)
    assign(cluster, effect="Disabled")
    assert_admitted(run(cluster, "demo-unsigned", shop.unsigned()), "demo-unsigned")


def test_excluded_namespaces_are_spared_and_all_others_are_not(cluster: Cluster, shop: Shop) -> None:
    assign(cluster)
    image = shop.unsigned()
    command = ("run", "unsigned", f"--image={image}", "--dry-run=server")
    assert cluster.kubectl(*command, "--namespace=kube-system").ok
    assert not cluster.kubectl(*command, "--namespace=kube-public").ok
    assign(cluster, namespaces=["kube-public"])
    assert cluster.kubectl(*command).ok
    assert not cluster.kubectl(*command, "--namespace=kube-public").ok
