"""The shipped policy files as a cluster would take them: names, versions, twins, and the samples."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from provider.demo.admission import Constraint, ExternalData, Template, policies_folder, review_of
from tests.policies import engines
from tests.policies.engines import POLICIES

TEMPLATES: Final = ("template.yaml", "template-rego-v0.yaml", "multi-tenancy-template.yaml")
SAMPLES: Final = sorted(path.name for path in (POLICIES / "samples").glob("*.yaml"))
TENANT: Final = Template.parse((POLICIES / "multi-tenancy-template.yaml").read_bytes())
IMAGE: Final = "r.test/a:1"
REFUSED: Final = {"responses": [], "errors": [], "status_code": 200, "system_error": ""}


def _pod(namespace: str = "default") -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p", "namespace": namespace},
        "spec": {"containers": [{"name": "c", "image": IMAGE}]},
    }


def _yes(key: str) -> ExternalData:
    return ExternalData([(key, {"isSuccess": True})], [], 200, "")


@pytest.mark.parametrize("file", TEMPLATES)
def test_every_template_has_the_names_that_users_and_azure_policy_look_for(file: str) -> None:
    document = yaml.safe_load((POLICIES / file).read_text())
    assert document["apiVersion"] == "templates.gatekeeper.sh/v1"
    assert document["metadata"]["name"] == "ratifyverification"
    assert document["spec"]["crd"]["spec"]["names"]["kind"] == "RatifyVerification"
    assert [target["target"] for target in document["spec"]["targets"]] == ["admission.k8s.gatekeeper.sh"]
    rego, older = engines.source(file)
    assert 'provider := "ratify-provider"' in rego
    assert older == (file == "template-rego-v0.yaml")
    assert ("import" in rego) is False  # Gatekeeper refuses `import rego.v1`


def test_the_templates_differ_only_in_the_key_and_the_language_version() -> None:
    key = re.compile(r"# What the provider is asked about an image\..*?(?=# ---- The images)", re.DOTALL)
    default, tenant = (key.sub("", engines.source(file)[0]) for file in ("template.yaml", TEMPLATES[2]))
    assert tenant == default
    comments = [
        [line.strip() for line in engines.source(file)[0].splitlines() if line.strip().startswith("#")]
        for file in TEMPLATES[:2]
    ]
    assert comments[0] == comments[1]


@pytest.mark.parametrize("file", TEMPLATES)
def test_opas_strict_check_finds_no_fault(file: str, tmp_path: Path) -> None:
    assert engines.opa_check(file, tmp_path) == ""


@pytest.mark.parametrize("file", SAMPLES)
def test_every_sample_is_a_constraint_of_the_kind_and_is_called_as_ratifys(file: str) -> None:
    constraint = Constraint.parse((POLICIES / "samples" / file).read_bytes())
    assert (constraint.name, constraint.kind) == ("ratify-constraint", "RatifyVerification")
    assert constraint.kinds == {("", "Pod")}
    assert constraint.namespaces == {"default"}
    assert constraint.matches(review_of(_pod()))
    assert not constraint.matches(review_of(_pod("kube-system")))


@pytest.mark.parametrize(
    ("file", "action"),
    [
        ("constraint.yaml", "deny"),
        ("multi-tenancy-constraint.yaml", "deny"),
        ("constraint-dryrun.yaml", "dryrun"),
        ("constraint-warn.yaml", "warn"),
        ("constraint-audit-only.yaml", "scoped"),
    ],
)
def test_the_action_of_a_sample_is_what_its_name_says(file: str, action: str) -> None:
    assert Constraint.parse((POLICIES / "samples" / file).read_bytes()).action == action


@pytest.mark.parametrize("file", SAMPLES)
@pytest.mark.parametrize("namespace", ["default", "elsewhere"])
def test_gator_takes_every_sample_and_applies_it_where_it_matches(file: str, namespace: str, tmp_path: Path) -> None:
    constraint = (POLICIES / "samples" / file).read_text()
    template = TEMPLATES[2] if file.startswith("multi") else TEMPLATES[0]
    results = engines.gator(template, constraint, _pod(namespace), REFUSED, tmp_path)
    applies = namespace == "default" and "audit-only" not in file  # that one is silent at gator's enforcement point
    assert [result["msg"] for result in results] == [f"Subject failed verification: {IMAGE}: no verdict"] * applies


def test_the_policies_are_found_in_the_source_tree() -> None:
    assert policies_folder() == POLICIES


# ---- the template of tenants ----


def test_a_tenants_image_is_asked_about_under_its_namespace_and_shown_without() -> None:
    review = review_of(_pod("team-a"))
    assert TENANT.keys(review) == (f"[team-a]{IMAGE}",)
    assert TENANT.violations(review, _yes(f"[team-a]{IMAGE}")) == ()
    assert TENANT.violations(review, ExternalData([], [], 200, "OVERLOADED: x")) == (
        f"Subject failed verification: {IMAGE}: OVERLOADED: x",
    )


@pytest.mark.parametrize("key", [IMAGE, f"[team-b]{IMAGE}", f"[]{IMAGE}", f"[team-a] {IMAGE}"])
def test_n36_a_yes_for_another_tenant_or_the_cluster_admits_nothing(key: str) -> None:
    assert TENANT.violations(review_of(_pod("team-a")), _yes(key)) == (
        f"Subject failed verification: {IMAGE}: no verdict",
    )


def test_n64_without_the_requests_namespace_the_objects_counts_and_without_both_nothing_is_admitted() -> None:
    review = review_of(_pod("team-a"))
    del review["namespace"]
    assert TENANT.keys(review) == (f"[team-a]{IMAGE}",)
    del review["object"]["metadata"]["namespace"]
    assert TENANT.keys(review) == ()
    for key in (IMAGE, f"[]{IMAGE}", f"[null]{IMAGE}"):
        assert TENANT.violations(review, _yes(key)) == (f"Subject failed verification: {IMAGE}: no verdict",)


def test_the_requests_namespace_wins_over_what_the_object_claims() -> None:
    review = review_of(_pod("team-b"))
    review["namespace"] = "team-a"
    assert TENANT.keys(review) == (f"[team-a]{IMAGE}",)
