"""The tutorial, command by command in its order, in a shell, with what each one says.

Only these are other than printed: the chart is ours, from a chart repository on loopback; the installation is that of
the FAQ, without Key Vault, with settings more because the registry here speaks plain HTTP; policies come from policies/
of this clone instead of an address; the printed slips are mended (commas and backslashes).

Left out, because they need Azure or the network: every `az`; `curl` of the definition (policies/customazurepolicy.json
stands for what it fetches, test_azure_policy.py for what the add-on does with it); the installation with Key Vault
(tests/chart renders it, simulators of Azure stand for the rest); `helm install gatekeeper/gatekeeper` (the rig's
Gatekeeper has its settings).
"""

from __future__ import annotations

import functools
import http.server
import os
import re
import subprocess
import threading
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.chart import CHART
from tests.e2e.cluster import CALL_SECONDS, Cluster, Json, Said
from tests.e2e.conftest import wipe
from tests.e2e.countersign import Countersign
from tests.e2e.images import Image, Shop
from tests.e2e.pods import POLICIES
from tests.e2e.processes import ADDRESS, wait_for
from tests.e2e.programs import find
from tests.e2e.rig import Rig
from tests.interop import peers

INSTALL = r"""
helm install ratify countersign/countersign --atomic --namespace $RATIFY_NAMESPACE --create-namespace --version $CHART_VER \
--set provider.enableMutation=false --set featureFlags.RATIFY_CERT_ROTATION=true \
--set azureWorkloadIdentity.clientId=$IDENTITY_CLIENT_ID \
--set oras.authProviders.azureWorkloadIdentityEnabled=true \
--set-file notationCerts[0]="$ROOT_CERT_FILE" \
--set notation.trustPolicies[0].registryScopes[0]="$REPO_URI" \
--set notation.trustPolicies[0].trustStores[0]="ca:notationCerts[0]" \
--set notation.trustPolicies[0].trustedIdentities[0]="x509.subject: $SUBJECT" \
--set oras.registries[0].host="$REGISTRY" --set oras.registries[0].plainHttp=true --set image.tag=e2e
"""  # noqa: E501 - as printed
WORKLOAD_IDENTITY = "--set azureWorkloadIdentity.clientId"
CLEAN_UP = r"""
helm delete ratify --namespace $RATIFY_NAMESPACE
kubectl delete crd stores.config.ratify.deislabs.io verifiers.config.ratify.deislabs.io certificatestores.config.ratify.deislabs.io policies.config.ratify.deislabs.io keymanagementproviders.config.ratify.deislabs.io namespacedkeymanagementproviders.config.ratify.deislabs.io namespacedpolicies.config.ratify.deislabs.io namespacedstores.config.ratify.deislabs.io namespacedverifiers.config.ratify.deislabs.io
"""  # noqa: E501 - as printed
CLEAR_SECONDS = 15.0
# Objects that the cluster itself makes and renews.
LIVELY = ("events", "leases", "componentstatuses", "endpoints", "endpointslices", "ipaddresses", "bindings")


class Shell:
    """A shell of a cluster's administrator, as the tutorial has it."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._folder = folder
        programs = folder / "bin"
        programs.mkdir()
        for name, program in (("kubectl", find("kubectl")), ("helm", peers.find("helm"))):
            (programs / name).symlink_to(program.absolute())
        self.variables = {**os.environ, **environment, "PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(folder)}

    def __call__(self, commands: str) -> Said:
        """Run commands to their end; the first that fails is the last."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands],
            cwd=self._folder,
            env=self.variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=2 * CALL_SECONDS,
            check=False,
        )
        return Said(done.returncode, done.stdout, done.stderr)

    def must(self, commands: str) -> str:
        """The same for commands that have to succeed; what they say."""
        said = self(commands)
        assert said.ok, f"{commands}\n{said}"
        return said.out


def everything(cluster: Cluster) -> dict[str, str]:
    """Every object of the cluster by kind, namespace and name, with its uid."""
    kinds = cluster.must("api-resources", "--verbs=list,delete", "--output=name").split()
    wanted = ",".join(sorted(kind for kind in kinds if kind.partition(".")[0] not in LIVELY))
    listed = yaml.safe_load(cluster.must("get", wanted, "--all-namespaces", "--output=json"))
    found: dict[str, str] = {}
    for each in listed["items"]:
        name = "/".join((each["kind"], each["metadata"].get("namespace", ""), each["metadata"]["name"]))
        found[name] = each["metadata"]["uid"]
    for each in listed["items"]:
        owners = [owner["uid"] for owner in each["metadata"].get("ownerReferences", [])]
        if owners and not set(owners) & set(found.values()):
            collect(cluster, each)
    return found


def collect(cluster: Cluster, orphan: Json) -> None:
    """Delete what has no owner any more, in place of the garbage collector, which is in the controller manager."""
    metadata = orphan["metadata"]
    kind = f"{orphan['kind'].lower()}.{orphan['apiVersion'].partition('/')[0]}"
    where = [f"--namespace={metadata['namespace']}"] if "namespace" in metadata else []
    cluster.delete(kind, metadata["name"], *where)


def wait_until_none(what: str, look: Callable[[], Collection[object]]) -> None:
    """Wait until Gatekeeper has cleared away what it made of ours."""
    left: Collection[object] = ()

    def none() -> bool:
        nonlocal left
        left = look()
        return not left

    try:
        wait_for(f"{what} to be gone", none, seconds=CLEAR_SECONDS)
    except AssertionError as error:
        raise AssertionError(f"{error}: {sorted(map(str, left))}") from None


@pytest.fixture
def before(cluster: Cluster, provider: Countersign) -> Iterator[dict[str, str]]:
    """All objects of a cluster as the tutorial finds it: with Gatekeeper, and nothing of ours."""
    if not isinstance(cluster, Rig):
        pytest.skip("`helm install --atomic` waits for pods, and a cluster that was there has no image to run")
    provider.uninstall()
    cluster.delete("customresourcedefinitions", *provider.plurals)
    cluster.delete("constrainttemplates", "ratifyverification")
    wait_until_none("things of ours", lambda: [each for each in everything(cluster) if "atify" in each])
    yield everything(cluster)
    provider.uninstall()
    cluster.delete("customresourcedefinitions", *provider.plurals)
    wipe(cluster)


@pytest.fixture
def repository(tmp_path: Path, provider: Countersign) -> Iterator[str]:
    """A chart repository on loopback with our chart; its URL."""
    folder = tmp_path / "charts"
    folder.mkdir()
    provider.helm.must("package", CHART, "--destination", folder)
    provider.helm.must("repo", "index", folder)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            """Nothing."""

    with http.server.ThreadingHTTPServer((ADDRESS, 0), functools.partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://{ADDRESS}:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture
def images(shop: Shop) -> dict[str, Image]:
    """The tutorial's three images, in one repository."""
    repository = shop.registry.repository("article/demo")
    made = {}
    for name, signer in (("SIGNED", shop.signer), ("UNSIGNED", None), ("SIGNED_UNTRUSTED", shop.stranger)):
        tag = name.lower().replace("_", "-")
        image = Image(repository.at(tag), repository.push_image(f"article {name}", tag))
        if signer is not None:
            shop.sign(image, signer)
        made[name] = image
    return made


@pytest.fixture
def shell(
    tmp_path: Path, cluster: Cluster, shop: Shop, images: dict[str, Image], provider: Countersign, repository: str
) -> Shell:
    """With the tutorial's variables."""
    chart: Json = yaml.safe_load((CHART / "Chart.yaml").read_text())
    return Shell(
        tmp_path,
        {
            **provider.helm.environment,
            "KUBECONFIG": str(cluster.kubeconfig),
            "CHARTS": repository,
            "CHART_VER": chart["version"],
            "RATIFY_NAMESPACE": "gatekeeper-system",
            "RATIFY_SA_NAME": "ratify-admin",
            "IDENTITY_CLIENT_ID": "11111111-2222-3333-4444-555555555555",
            "ROOT_CERT_FILE": str(shop.signer.root),
            "REGISTRY": shop.registry.address,
            "REPO_URI": f"{shop.registry.address}/article/demo",
            "SUBJECT": shop.signer.subject.replace(",", r"\,"),
            "POLICIES": str(POLICIES),
            **{f"IMAGE_{name}": str(image) for name, image in images.items()},
        },
    )


def test_the_tutorial_from_first_to_last_command(
    cluster: Cluster, before: dict[str, str], shell: Shell, images: dict[str, Image]
) -> None:
    installs(shell)
    enforces(cluster, shell)
    decides(shell, images)
    audits(cluster, shell, images)
    cleans_up(cluster, shell)
    wait_until_none("differences to a cluster without us", lambda: everything(cluster).items() ^ before.items())


def installs(shell: Shell) -> None:
    """ "Set up Ratify on your AKS cluster", with the FAQ's "if I don't have access to Key Vault"."""
    assert '"countersign" has been added to your repositories' in shell.must("helm repo add countersign $CHARTS")
    assert "Update Complete." in shell.must("helm repo update")
    said = shell(INSTALL)
    assert said.ok, str(said)
    assert "NAME: ratify\n" in said.out
    assert "STATUS: deployed\n" in said.out
    assert "Countersign 0" in said.out, "the notes"
    assert "WARNING" not in said.out, said.out
    resources = shell.must("kubectl get stores,verifiers,keymanagementproviders,policies.config.ratify.deislabs.io")
    rows = [line.split() for line in resources.splitlines() if ".config.ratify.deislabs.io/" in line]
    assert [row[0].partition("/")[2] for row in rows] == [
        "store-oras",
        "verifier-notation",
        "ratify-notation-inline-cert-0",
        "ratify-policy",
    ]
    wait_for(
        "every resource to be in use",
        lambda: "false" not in shell.must("kubectl get stores,verifiers,keymanagementproviders,policies -A"),
    )


def enforces(cluster: Cluster, shell: Shell) -> None:
    """ "What steps should I take if Azure Policy is disabled", then "Use the following command to check the status"."""
    said = shell.must("kubectl apply -f $POLICIES/template.yaml")
    assert said == "constrainttemplate.templates.gatekeeper.sh/ratifyverification created\n"
    cluster.wait_template()
    said = shell.must("kubectl apply -f $POLICIES/samples/constraint.yaml")
    assert said == "ratifyverification.constraints.gatekeeper.sh/ratify-constraint created\n"
    cluster.wait_constraint()
    listed = shell.must("kubectl get constraintTemplate ratifyverification")
    assert re.fullmatch(r"NAME +AGE\nratifyverification +\d+s\n", listed), listed
    definition = shell.must(
        "export CUSTOM_POLICY=$(cat $POLICIES/customazurepolicy.json)\n"
        'echo "$CUSTOM_POLICY" | jq .policyRule\necho "$CUSTOM_POLICY" | jq .parameters'
    )
    assert "\"[parameters('effect')]\"" in definition
    assert '"defaultValue": "Deny"' in definition


def decides(shell: Shell, images: dict[str, Image]) -> None:
    """ "Use the Deny policy effect"."""
    said = shell("kubectl run demo-signed --image=$IMAGE_SIGNED")
    assert (said.code, said.out, said.err) == (0, "pod/demo-signed created\n", "")
    for name, reason in (("unsigned", "UNSIGNED"), ("signed-untrusted", "UNTRUSTED_ROOT")):
        variable = name.upper().replace("-", "_")
        said = shell(f"kubectl run demo-{name} --image=$IMAGE_{variable}")
        assert (said.code, said.out) == (1, "")
        assert said.err.startswith(
            'Error from server (Forbidden): admission webhook "validation.gatekeeper.sh" denied the request: '
            f"[ratify-constraint] Subject failed verification: {images[variable]}: {reason}: "
        ), said.err
    pod = shell.must("kubectl get pods -n $RATIFY_NAMESPACE -o name").strip()
    assert re.fullmatch(r"pod/ratify-[0-9a-z]+-[0-9a-z]{5}", pod), pod
    log = shell.must(f"kubectl logs {pod} -n $RATIFY_NAMESPACE")
    (line,) = [each for each in log.splitlines() if f"verification response for subject {images['UNSIGNED']}" in each]
    assert "errorReason" in line
    assert "UNSIGNED" in line


def audits(cluster: Cluster, shell: Shell, images: dict[str, Image]) -> None:
    """ "Use the Audit policy effect", which on a cluster without Azure Policy is a constraint that only reports."""
    shell.must("kubectl apply -f $POLICIES/samples/constraint-dryrun.yaml")
    cluster.wait_constraint()
    shell.must("kubectl delete pod demo-signed --force --grace-period=0")
    for name in ("signed", "unsigned", "signed-untrusted"):
        said = shell(f"kubectl run demo-{name} --image=$IMAGE_{name.upper().replace('-', '_')}")
        assert (said.code, said.out) == (0, f"pod/demo-{name} created\n"), str(said)
    wanted = {"demo-unsigned": "UNSIGNED", "demo-signed-untrusted": "SIGNED_UNTRUSTED"}

    def reported(constraint: Json) -> bool:
        return {each["name"] for each in constraint["status"].get("violations", [])} == set(wanted)

    found = cluster.wait("the audit", "ratifyverification", "ratify-constraint", until=reported)
    for each in found["status"]["violations"]:
        assert each["enforcementAction"] == "dryrun"
        assert each["message"].startswith(f"Subject failed verification: {images[wanted[each['name']]]}: ")


def cleans_up(cluster: Cluster, shell: Shell) -> None:
    """ "Clean up", and what was made beside the release: pods, constraint, template."""
    shell.must("kubectl delete pods demo-signed demo-unsigned demo-signed-untrusted --force --grace-period=0")
    shell.must("kubectl delete -f $POLICIES/samples/constraint.yaml -f $POLICIES/template.yaml")
    said = shell.must(CLEAN_UP)
    assert said.startswith('release "ratify" uninstalled\n'), said
    deleted = re.findall(r'customresourcedefinition\.apiextensions\.k8s\.io "(\S+)" deleted', said)
    assert len(deleted) == 9
    assert all(name.endswith(".config.ratify.deislabs.io") for name in deleted)
