"""What becomes of pods under the shipped template and constraints, in the words that the tutorial promises.

The template and the constraints are applied verbatim from policies/, with kubectl, as a user does.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.e2e.cluster import Cluster, Json
from tests.e2e.countersign import Countersign
from tests.e2e.images import Shop
from tests.e2e.pods import (
    DENIED,
    ELSEWHERE,
    POLICIES,
    TENANT,
    assert_admitted,
    assert_denied,
    create,
    enforce,
    failure,
    pod,
    run,
)

AUDITED_BYTES = 256  # of a violation's message that Gatekeeper's audit keeps


# ---- The tutorial ----


def test_a_signed_image_is_admitted(denying: Cluster, shop: Shop) -> None:
    assert_admitted(run(denying, "demo-signed", shop.signed()), "demo-signed")
    assert denying.get("pod", "demo-signed", "--namespace=default")


def test_an_unsigned_image_is_denied_in_the_words_of_the_tutorial(denying: Cluster, shop: Shop) -> None:
    image = shop.unsigned()
    said = run(denying, "demo-unsigned", image)
    assert said.err.startswith(
        'Error from server (Forbidden): admission webhook "validation.gatekeeper.sh" denied the request: '
        f"[ratify-constraint] Subject failed verification: {image}"
    )
    assert_denied(said, image, code="UNSIGNED")
    assert denying.get("pod", "demo-unsigned", "--namespace=default") is None


def test_an_image_signed_by_somebody_untrusted_is_denied(denying: Cluster, shop: Shop) -> None:
    image = shop.untrusted()
    assert_denied(run(denying, "demo-signed-untrusted", image), image, code="UNTRUSTED_ROOT")


def test_the_log_tells_why_under_the_words_that_users_search_for(
    denying: Cluster, shop: Shop, provider: Countersign
) -> None:
    image = shop.unsigned()
    run(denying, "demo-unsigned", image)
    (verdict,) = provider.verdicts(str(image))
    assert verdict["errorReason"]
    assert verdict["is_success"] is False


def test_the_trace_id_of_a_denial_is_in_the_log(denying: Cluster, shop: Shop, provider: Countersign) -> None:
    said = run(denying, "demo-unsigned", shop.unsigned())
    trace = said.err.strip().rpartition("(trace-id ")[2].removesuffix(")")
    assert trace
    assert any(trace in str(event) for event in provider.events()), said.err


def test_an_image_by_digest_is_judged_too(denying: Cluster, shop: Shop) -> None:
    assert_admitted(run(denying, "demo-signed", shop.signed().pinned), "demo-signed")
    unsigned = shop.unsigned().pinned
    assert_denied(run(denying, "demo-unsigned", unsigned), unsigned, code="UNSIGNED")


# ---- Every place where a pod names an image ----


def test_one_bad_container_among_good_ones_denies_the_pod(denying: Cluster, shop: Shop) -> None:
    good, bad, worse = shop.signed(), shop.unsigned(), shop.untrusted()
    assert_denied(create(denying, pod("mixed", good, bad)), bad, code="UNSIGNED")
    assert_denied(create(denying, pod("mixed", bad, good, worse)), bad, worse)
    assert_admitted(create(denying, pod("mixed", good, good)), "mixed")


def test_an_unsigned_init_container_denies_the_pod(denying: Cluster, shop: Shop) -> None:
    good, bad = shop.signed(), shop.unsigned()
    assert_denied(create(denying, pod("with-init", good, init=(bad,))), bad, code="UNSIGNED")
    assert_admitted(create(denying, pod("with-init", good, init=(good,))), "with-init")


def test_an_unsigned_ephemeral_container_cannot_be_added_with_kubectl_debug(denying: Cluster, shop: Shop) -> None:
    good, bad = shop.signed(), shop.unsigned()
    assert_admitted(run(denying, "debugged", good), "debugged")
    said = denying.kubectl("debug", "debugged", f"--image={bad}", "--container=shell")
    assert said.code == 1, str(said)
    assert f"{DENIED}[ratify-constraint] {failure(bad)}: UNSIGNED" in said.err
    assert ephemeral(denying, "debugged") == []
    said = denying.kubectl("debug", "debugged", f"--image={shop.signed()}", "--container=shell")
    assert said.ok, str(said)
    assert ephemeral(denying, "debugged") == ["shell"]


def test_an_unsigned_ephemeral_container_cannot_be_patched_in(denying: Cluster, shop: Shop) -> None:
    bad = shop.unsigned()
    assert_admitted(run(denying, "patched", shop.signed()), "patched")
    added = {"spec": {"ephemeralContainers": [{"name": "shell", "image": str(bad)}]}}
    said = denying.kubectl(
        "patch", "pod", "patched", "--subresource=ephemeralcontainers", f"--patch={json.dumps(added)}"
    )
    assert_denied(said, bad, code="UNSIGNED")
    assert ephemeral(denying, "patched") == []


def ephemeral(cluster: Cluster, name: str) -> list[str]:
    """Names of a pod's ephemeral containers."""
    found = cluster.get("pod", name, "--namespace=default")
    assert found
    return [each["name"] for each in found["spec"].get("ephemeralContainers", [])]


def test_the_image_of_a_running_pod_cannot_be_changed_to_an_unsigned_one(denying: Cluster, shop: Shop) -> None:
    bad = shop.unsigned()
    assert_admitted(run(denying, "changed", shop.signed()), "changed")
    assert_denied(denying.kubectl("set", "image", "pod/changed", f"changed={bad}"), bad, code="UNSIGNED")
    said = denying.kubectl("set", "image", "pod/changed", f"changed={shop.signed()}")
    assert said.out == "pod/changed image updated\n", str(said)


def test_a_reference_that_cannot_be_parsed_is_denied(denying: Cluster) -> None:
    image = "Registry.Example/Not a reference"
    said = create(denying, pod("nonsense", image))
    assert said.code == 1, str(said)
    assert f"{DENIED}[ratify-constraint] {failure(image)}" in said.err, str(said)


def test_an_image_that_pretends_to_be_of_another_namespace_is_denied(denying: Cluster, shop: Shop) -> None:
    image = f"[default]{shop.signed()}"
    said = create(denying, pod("bracketed", image))
    assert said.code == 1, str(said)
    assert f"{DENIED}[ratify-constraint] {failure('container main-0 has no valid image')}" in said.err, str(said)


def test_workloads_are_denied_when_the_constraint_names_them(denying: Cluster, shop: Shop) -> None:
    constraint = yaml.safe_load((POLICIES / "samples" / "constraint.yaml").read_text())
    constraint["spec"]["match"]["kinds"] += [
        {"apiGroups": ["apps"], "kinds": ["Deployment"]},
        {"apiGroups": ["batch"], "kinds": ["CronJob"]},
    ]
    good, bad = shop.signed(), shop.unsigned()
    for image in (good, bad):
        for words in (("deployment", "web"), ("cronjob", "nightly", "--schedule=@daily")):
            said = denying.kubectl("create", *words, f"--image={image}")
            assert said.ok, f"the constraint covers pods only: {said}"
            denying.delete(words[0], words[1])
    denying.apply(constraint)
    denying.wait_constraint()
    for words in (("deployment", "web"), ("cronjob", "nightly", "--schedule=@daily")):
        said = denying.kubectl("create", *words, f"--image={bad}")
        assert f"{DENIED}[ratify-constraint] {failure(bad)}: UNSIGNED" in said.err, str(said)
        assert denying.kubectl("create", *words, f"--image={good}").ok


def test_other_namespaces_are_left_alone(denying: Cluster, shop: Shop) -> None:
    denying.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": ELSEWHERE}})
    said = denying.kubectl(
        "run", "unsigned", f"--image={shop.unsigned()}", f"--namespace={ELSEWHERE}", "--dry-run=server"
    )
    assert said.ok, str(said)


# ---- Pods that are there already ----


def test_a_label_change_on_an_unsigned_pod_is_denied_and_its_deletion_is_not(cluster: Cluster, shop: Shop) -> None:
    image = shop.unsigned()
    enforce(cluster, "constraint-dryrun.yaml")
    assert_admitted(run(cluster, "old", image), "old")
    enforce(cluster)
    assert_denied(cluster.kubectl("label", "pod", "old", "tier=web"), image, code="UNSIGNED")
    said = cluster.kubectl("delete", "pod", "old", "--now")
    assert said.ok, str(said)
    assert cluster.get("pod", "old", "--namespace=default") is None


def test_a_label_change_on_a_signed_pod_is_admitted(denying: Cluster, shop: Shop) -> None:
    assert_admitted(run(denying, "good", shop.signed()), "good")
    said = denying.kubectl("label", "pod", "good", "tier=web")
    assert said.out == "pod/good labeled\n", str(said)


# ---- The other effects ----


@pytest.mark.parametrize("constraint", ["constraint-dryrun.yaml", "constraint-audit-only.yaml"])
def test_pods_are_admitted_and_the_bad_ones_reported(cluster: Cluster, shop: Shop, constraint: str) -> None:
    images = {
        "demo-signed": shop.signed(),
        "demo-unsigned": shop.unsigned(),
        "demo-signed-untrusted": shop.untrusted(),
    }
    enforce(cluster, constraint)
    for name, image in images.items():
        assert_admitted(run(cluster, name, image), name)
    bad = {"demo-unsigned": "UNSIGNED", "demo-signed-untrusted": "UNTRUSTED_ROOT"}

    def audited(found: Json) -> bool:
        return {each["name"] for each in violations(found)} == set(bad)

    found = cluster.wait("the audit", "ratifyverification", "ratify-constraint", until=audited)
    assert found["status"]["totalViolations"] == len(bad)
    for each in violations(found):
        head = f"{failure(images[each['name']])}: {bad[each['name']]}: "
        assert each["message"].startswith(head), each
        assert each["message"].endswith(")"), f"the trace id was cut off: {each}"
        assert len(each["message"].encode()) <= AUDITED_BYTES
        assert each.get("enforcementActions", [each["enforcementAction"]]) == ["dryrun"]
        assert (each["kind"], each["namespace"]) == ("Pod", "default")


def violations(constraint: Json) -> list[Json]:
    """What the last audit found."""
    found: list[Json] = constraint.get("status", {}).get("violations", [])
    return found


def test_the_provider_is_not_asked_at_admission_when_only_the_audit_is_wanted(
    cluster: Cluster, shop: Shop, provider: Countersign
) -> None:
    enforce(cluster, "constraint-audit-only.yaml")
    image = shop.unsigned()
    said = cluster.kubectl("run", "unsigned", f"--image={image}", "--dry-run=server")
    assert said.ok, str(said)
    assert provider.verdicts(str(image)) == []


def test_pods_are_admitted_with_a_warning(cluster: Cluster, shop: Shop) -> None:
    image = shop.unsigned()
    enforce(cluster, "constraint-warn.yaml")
    said = run(cluster, "warned", image)
    assert_admitted(said, "warned")
    assert said.err.startswith(f"Warning: [ratify-constraint] {failure(image)}: UNSIGNED"), str(said)
    assert run(cluster, "not-warned", shop.signed()).err == ""


# ---- The other templates ----


def test_the_template_for_old_gatekeepers_decides_and_speaks_as_the_new_one(cluster: Cluster, shop: Shop) -> None:
    bad = shop.unsigned()
    messages = []
    for template in ("template.yaml", "template-rego-v0.yaml"):
        enforce(cluster, template=template)
        assert create(cluster, pod("signed", shop.signed(), init=(shop.signed(),)), "--dry-run=server").ok
        said = create(cluster, pod("unsigned", shop.signed(), init=(bad,)), "--dry-run=server")
        assert_denied(said, bad, code="UNSIGNED")
        messages.append(said.err.partition(" (trace-id ")[0])
    assert messages[0] == messages[1]


def test_a_namespace_with_its_own_verifier_is_judged_by_it(cluster: Cluster, shop: Shop, provider: Countersign) -> None:
    keys = shop.key_resource("NamespacedKeyManagementProvider", "root", shop.stranger, TENANT)
    verifier = shop.verifier_resource("NamespacedVerifier", "verifier", f"{TENANT}/root", shop.stranger, TENANT)
    provider.use([*provider.baseline, keys, verifier])
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": TENANT}})
    cluster.must("apply", "-f", str(POLICIES / "multi-tenancy-template.yaml"))
    cluster.wait_template()
    constraint = yaml.safe_load((POLICIES / "samples" / "multi-tenancy-constraint.yaml").read_text())
    constraint["spec"]["match"]["namespaces"] = ["default", TENANT]
    cluster.apply(constraint)
    cluster.wait_constraint()
    companys, tenants = shop.signed(), shop.untrusted()
    for namespace, good, bad in (("default", companys, tenants), (TENANT, tenants, companys)):
        where = (f"--namespace={namespace}", "--dry-run=server")
        said = cluster.kubectl("run", "good", f"--image={good}", *where)
        assert said.out == "pod/good created (server dry run)\n", str(said)
        assert_denied(cluster.kubectl("run", "bad", f"--image={bad}", *where), bad, code="UNTRUSTED_ROOT")


def test_every_shipped_sample_is_used_here() -> None:
    used = Path(__file__).read_text()
    shipped = [*POLICIES.glob("*template*.yaml"), *POLICIES.glob("samples/*.yaml")]
    assert len(shipped) > 5
    assert [file.name for file in shipped if file.name not in used] == []
