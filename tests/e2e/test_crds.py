"""The custom resource definitions on a real API server: in force, affordable, refusing mistakes in words, and nothing
that the provider can use; and `countersign apply-crds`, which puts them there.

The unit tests (tests/unit/configuration/test_schemas.py) ask a simulator about the same resources. Only etcd and
kube-apiserver run here; the whole takes about a minute.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from provider.configuration.resources import GROUP, KINDS
from tests.chart.rendering import EVERYTHING, GIVEN, MINIMAL, template
from tests.chart.test_values import ALL as CASES
from tests.e2e import programs
from tests.e2e.chart import CRDS
from tests.e2e.cluster import Cluster, has_condition
from tests.e2e.control_plane import ControlPlane
from tests.interop.peers import CALL_SECONDS, CLONE
from tests.unit.configuration.admission import BASES, TENANT, Mistake, accepted, changed, mistakes
from tests.unit.configuration.samples import PRIVATE_KEY_PEM
from tests.unit.configuration.test_schemas import EXAMPLES, RATIFY

Json = dict[str, Any]

HERE: Final = Path(__file__).resolve().parent
FOREIGN: Final = (  # the operator of Prometheus is not at hand, nor the versions of Gatekeepers before 3.11
    "monitoring.coreos.com/",
    "externaldata.gatekeeper.sh/v1alpha1",
    "mutations.gatekeeper.sh/v1beta1",
)
NAMES: Final = [f"{entry.plural}.{GROUP}" for entry in KINDS.values()]
MISTAKES: Final = mistakes()
BATCH: Final = 250  # resources of one kubectl


def apply_crds(folder: Path, kubeconfig: Path) -> subprocess.CompletedProcess[str]:
    """Run `countersign apply-crds`."""
    return subprocess.run(
        [sys.executable, "-m", "provider", "apply-crds", str(folder), "--timeout=30"],
        env={**os.environ, "KUBECONFIG": str(kubeconfig)},
        cwd=CLONE,
        capture_output=True,
        text=True,
        timeout=CALL_SECONDS,
        check=False,
    )


@pytest.fixture(scope="module")
def api_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """An API server with nothing in it but our definitions, which `apply-crds` brought."""
    named = [Path(word.partition("::")[0]).resolve() for word in request.config.args]
    if not any(HERE in (path, *path.parents) for path in named):
        pytest.skip("end-to-end tests run with `make e2e`")
    with contextlib.ExitStack() as stack:
        etcd, apiserver = programs.find("etcd"), programs.find("kube-apiserver")
        server = ControlPlane(tmp_path_factory.mktemp("api-server"), etcd, apiserver, stack)
        done = apply_crds(CRDS, server.kubeconfig)
        assert done.returncode == 0, done.stderr
        assert sorted(done.stdout.splitlines()) == sorted(
            [f"customresourcedefinition/{name} created" for name in NAMES] + [f"{len(NAMES)} definitions are in force"]
        )
        server.must("create", "namespace", TENANT)
        server.must("create", "namespace", "gatekeeper-system")
        yield server


def ask(cluster: Cluster, *resources: Json) -> Any:
    """Whether the API server would take resources; kubectl demands strictness, as it does by default."""
    listed = {"apiVersion": "v1", "kind": "List", "items": list(resources)}
    text = json.dumps(resources[0] if len(resources) == 1 else listed)
    return cluster.kubectl("create", "--dry-run=server", "-f", "-", stdin=text)


def homed(resource: Json) -> Json:
    """The resource in a namespace that is there, if it is in one."""
    if "namespace" not in resource["metadata"]:
        return resource
    return {**resource, "metadata": {**resource["metadata"], "namespace": TENANT}}


# -- the definitions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_definition_is_in_force_and_structural(api_server: ControlPlane, name: str) -> None:
    """The API server also took the cost of every rule, or there would be no definition."""
    definition = api_server.get("customresourcedefinition", name)
    assert definition is not None
    assert has_condition(definition, "Established")
    assert has_condition(definition, "NamesAccepted")
    kinds = {condition["type"] for condition in definition["status"]["conditions"]}
    assert "NonStructuralSchema" not in kinds
    assert definition["status"]["storedVersions"] == ["v1beta1"]


def test_what_is_in_force_is_what_the_chart_has(api_server: ControlPlane) -> None:
    """Nothing of a schema is a word that the API server does not know and drops."""
    for path in sorted(CRDS.glob("*.yaml")):
        wanted = yaml.safe_load(path.read_text())
        found = api_server.get("customresourcedefinition", wanted["metadata"]["name"])
        assert found is not None
        assert found["spec"]["versions"] == wanted["spec"]["versions"], path.name


def test_kubectl_apply_takes_the_definitions_too(api_server: ControlPlane) -> None:
    """The way that the chart's README shows."""
    said = api_server.must("apply", "--server-side", "--force-conflicts", "-f", str(CRDS))
    assert len(said.splitlines()) == len(NAMES)


def test_kubectl_explains_a_setting(api_server: ControlPlane) -> None:
    said = api_server.must("explain", f"verifiers.{GROUP}.spec.parameters.trustPolicyDoc")
    assert "The Notary Project trust policy document." in said


# -- what is admitted --------------------------------------------------------------------------------------------------


def test_a_good_resource_of_every_kind_is_admitted_in_every_version(api_server: ControlPlane) -> None:
    for base, resource in BASES.items():
        if base == "NamespacedKeyVault":
            continue
        for version in RATIFY[resource["kind"]][2]:
            said = ask(api_server, {**resource, "apiVersion": f"{GROUP}/{version}"})
            assert said.ok, f"{base} {version}: {said}"
            deprecated = f"Warning: v1alpha1 of {resource['kind']} is deprecated: write {GROUP}/v1beta1"
            assert (deprecated in said.err) is (version == "v1alpha1"), str(said)


def test_what_is_written_as_v1alpha1_is_read_as_v1beta1_whole(api_server: ControlPlane) -> None:
    resource = changed(BASES["Verifier"], {"metadata.name": "both", "spec.type": "notation", "spec.name": "mine"})
    api_server.apply({**resource, "apiVersion": f"{GROUP}/v1alpha1"})
    found = api_server.get(f"verifiers.v1beta1.{GROUP}", "both")
    assert found is not None
    assert found["apiVersion"] == f"{GROUP}/v1beta1"
    assert found["spec"] == resource["spec"]


def test_what_the_documentation_and_the_chart_say_is_admitted(api_server: ControlPlane) -> None:
    for where, resource in EXAMPLES:
        if "..." in str(resource) or "…" in str(resource):
            continue
        said = ask(api_server, homed(resource))
        relative = "should match '^/'" in said.err  # a path beside a file, which a cluster has not
        assert said.ok or relative, f"{where}: {said}"


def test_nothing_that_the_provider_accepts_is_refused(api_server: ControlPlane) -> None:
    """Every field of every model with every kind of value that the provider can use."""
    corpus = [homed(resource) for resource in accepted()]
    assert len(corpus) > 1500
    for start in range(0, len(corpus), BATCH):
        said = ask(api_server, *corpus[start : start + BATCH])
        assert said.ok, str(said)[:4000]


def test_a_large_trust_policy_is_affordable(api_server: ControlPlane) -> None:
    """Rules have a budget for each request too: as much as etcd stores must be within it."""
    statement = BASES["Verifier"]["spec"]["parameters"]["trustPolicyDoc"]["trustPolicies"][0]
    wide = {**statement, "registryScopes": [f"registry.example.com/team-{n}/app" for n in range(10_000)]}
    many = [
        {**statement, "name": f"team-{n}", "registryScopes": [f"registry.example.com/team-{n}/{m}" for m in range(20)]}
        for n in range(500)
    ]
    for statements in ([wide], many):
        said = ask(api_server, changed(BASES["Verifier"], {"parameters.trustPolicyDoc.trustPolicies": statements}))
        assert said.ok, str(said)[:2000]


def test_the_status_is_written_as_the_provider_writes_it_and_shown_at_a_glance(api_server: ControlPlane) -> None:
    resource = changed(BASES["KeyManagementProvider"], {"metadata.name": "shown"})
    api_server.apply(resource)
    status = {
        "issuccess": False,
        "error": "spec.parameters.value: is wrong",
        "brieferror": "is wrong",
        "lastfetchedtime": "2026-01-01T00:00:00Z",
        "observedGeneration": 1,
        "properties": {"Certificates": [{"Name": "a", "Version": "1", "Enabled": "true"}]},
    }
    kind = f"keymanagementproviders.{GROUP}"
    patch = json.dumps({"status": status})
    api_server.must("patch", kind, "shown", "--subresource=status", "--type=merge", f"--patch={patch}")
    found = api_server.get(kind, "shown")
    assert found is not None
    assert found["status"] == status
    header, row = api_server.must("get", kind, "shown").splitlines()
    assert header.split() == ["NAME", "ISSUCCESS", "ERROR", "LASTFETCHEDTIME"]
    assert row.split()[:4] == ["shown", "false", "is", "wrong"]


def test_a_key_that_is_cut_off_for_lenient_clients_never_weakens_the_policy(api_server: ControlPlane) -> None:
    """Without strictness, as most tools but kubectl ask, a misspelled override still reaches the provider."""
    edits = {"metadata.name": "lenient", "statement.signatureVerification.overide": {"revocation": "enforce"}}
    text = json.dumps(changed(BASES["Verifier"], edits))
    api_server.must("create", "--validate=ignore", "-f", "-", stdin=text)
    found = api_server.get(f"verifiers.{GROUP}", "lenient")
    assert found is not None
    statement = found["spec"]["parameters"]["trustPolicyDoc"]["trustPolicies"][0]
    assert statement["signatureVerification"]["overide"] == {"revocation": "enforce"}


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mistake", MISTAKES, ids=[mistake.title for mistake in MISTAKES])
def test_kubectl_refuses_a_mistake_and_says_what_is_wrong_where(api_server: ControlPlane, mistake: Mistake) -> None:
    said = ask(api_server, homed(mistake.resource))
    assert said.code == 1, str(said)
    assert mistake.at in said.err, str(said)
    assert mistake.told in said.err, str(said)
    assert "failed to" not in said.err, f"a rule that cannot be evaluated: {said}"
    assert not any(line in said.err for line in PRIVATE_KEY_PEM.splitlines() if "-----" not in line)


def test_what_was_stored_before_may_still_get_its_status(api_server: ControlPlane) -> None:
    """Ratify's definitions let anything in. With ratcheting its resources are not stuck, and their status says why."""
    definition = api_server.get("customresourcedefinition", f"verifiers.{GROUP}")
    assert definition is not None
    lenient = copy.deepcopy(definition)
    for key in ("resourceVersion", "uid", "managedFields", "generation", "creationTimestamp"):
        lenient["metadata"].pop(key, None)
    for version in lenient["spec"]["versions"]:
        spec = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
        spec["properties"]["parameters"] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
        spec.pop("x-kubernetes-validations", None)
    api_server.must("replace", "-f", "-", stdin=json.dumps(lenient))
    edits = {"metadata.name": "stored", "statement.signatureVerification.level": "lenient"}
    old = changed(BASES["Verifier"], edits)
    api_server.wait(
        "the lenient definition to be in force",
        f"verifiers.{GROUP}",
        until=lambda _: api_server.kubectl("apply", "-f", "-", stdin=json.dumps(old)).ok,
    )
    assert apply_crds(CRDS, api_server.kubeconfig).returncode == 0
    api_server.wait(
        "the strict definition to be in force",
        f"verifiers.{GROUP}",
        until=lambda _: not ask(api_server, {**old, "metadata": {"name": "new"}}).ok,
    )
    patch = json.dumps({"status": {"issuccess": False, "brieferror": "level"}})
    kind = f"verifiers.{GROUP}"
    api_server.must("patch", kind, "stored", "--subresource=status", "--type=merge", f"--patch={patch}")


# -- apply-crds --------------------------------------------------------------------------------------------------------


def test_applying_again_changes_nothing(api_server: ControlPlane) -> None:
    assert apply_crds(CRDS, api_server.kubeconfig).returncode == 0
    done = apply_crds(CRDS, api_server.kubeconfig)
    assert done.returncode == 0
    assert {line.rpartition(" ")[2] for line in done.stdout.splitlines()[:-1]} == {"unchanged"}


def test_the_charts_job_may_do_what_it_has_to_and_nothing_else(api_server: ControlPlane, tmp_path: Path) -> None:
    """The Job's own service account, with the roles that the chart renders for it."""
    rendered = template(EVERYTHING, {"upgradeCRDs": {"enabled": True}})
    name = "ratify-admin-upgrade-crds"
    for kind in ("ServiceAccount", "ClusterRole", "ClusterRoleBinding"):
        api_server.apply(rendered.get(kind, name))
    api_server.write_service_account(tmp_path / "kubeconfig", name)
    plural = f"policies.{GROUP}"
    api_server.delete("customresourcedefinition", plural)
    folder = tmp_path / "crds"
    folder.mkdir()
    for file, text in rendered.get("ConfigMap", name)["data"].items():
        (folder / file).write_text(text)
    done = apply_crds(folder, tmp_path / "kubeconfig")
    assert done.returncode == 0, done.stderr
    assert f"customresourcedefinition/{plural} created" in done.stdout.splitlines()
    me = f"--as=system:serviceaccount:gatekeeper-system:{name}"
    for verb, what in (("delete", f"crd/{plural}"), ("patch", "crd/others.example.com"), ("list", "secrets")):
        assert api_server.kubectl("auth", "can-i", verb, what, me).out.strip() == "no"


def test_a_service_account_without_rights_is_told_which_it_needs(api_server: ControlPlane, tmp_path: Path) -> None:
    api_server.must("create", "serviceaccount", "nobody", "--namespace=gatekeeper-system")
    api_server.write_service_account(tmp_path / "kubeconfig", "nobody")
    done = apply_crds(CRDS, tmp_path / "kubeconfig")
    assert done.returncode == 2
    assert "forbidden" in done.stderr
    assert "Give the service account get, create and patch on customresourcedefinitions" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_definition_that_the_api_server_refuses_is_told_in_its_words(
    api_server: ControlPlane, tmp_path: Path
) -> None:
    definition = yaml.safe_load((CRDS / "stores.yaml").read_text())
    definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"] = {"type": "text"}
    (tmp_path / "stores.yaml").write_text(yaml.safe_dump(definition))
    done = apply_crds(tmp_path, api_server.kubeconfig)
    assert done.returncode == 2
    assert "applying stores.config.ratify.deislabs.io: the API server refused:" in done.stderr
    assert "Unsupported value" in done.stderr


# -- the chart ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_gatekeepers_kinds(api_server: ControlPlane) -> ControlPlane:
    """The API server with Gatekeeper's definitions of Provider and Assign too, from its own manifest."""
    manifest = programs.find("gatekeeper").parent / programs.MANIFEST
    names = {"providers.externaldata.gatekeeper.sh", "assign.mutations.gatekeeper.sh"}
    found = [one for one in yaml.load_all(manifest.read_text(), yaml.CSafeLoader) if one["metadata"]["name"] in names]
    api_server.apply(*found, server_side=True)
    for name in names:
        api_server.wait(name, "customresourcedefinition", name, until=lambda it: has_condition(it, "Established"))
    return api_server


def test_the_api_server_takes_every_object_of_the_chart(with_gatekeepers_kinds: ControlPlane) -> None:
    """Every object of every case of tests/chart, by all schemas that there are and strictly."""
    texts: set[str] = set()
    for values in (EVERYTHING, GIVEN, {**EVERYTHING, "upgradeCRDs": {"enabled": True}}):
        texts |= {json.dumps(one) for one in template(values)}
    for case in CASES:
        texts |= {json.dumps(one) for one in template(MINIMAL, case.values)}
    known = [one for text in sorted(texts) if not (one := json.loads(text))["apiVersion"].startswith(FOREIGN)]
    assert len(known) > 150
    for namespace in sorted({one["metadata"].get("namespace", "default") for one in known}):
        with_gatekeepers_kinds.kubectl("create", "namespace", namespace)
    for start in range(0, len(known), BATCH):
        said = ask(with_gatekeepers_kinds, *known[start : start + BATCH])
        wrong = [line for line in said.err.splitlines() if "already exists" not in line and "Warning:" not in line]
        assert wrong == []
