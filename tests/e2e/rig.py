"""A cluster without containers: an API server and Gatekeeper as processes on loopback; or an existing cluster.

    python -m tests.e2e.rig          starts one and keeps it until Ctrl-C, for trying things by hand

Rules:
- Real programs, Gatekeeper's own manifest: its resources, roles and webhooks as released. Only what needs a network of
  pods is changed: webhooks are called at a loopback address, and Gatekeeper signs in with a certificate instead of a
  service account that a kubelet would hand it. It finds the provider's Service by name, in a hosts file of its own.
- Gatekeeper runs with the settings that the tutorial installs it with: webhook timeouts of 5 and 2 s, verdicts kept for
  10 s, failure policy Ignore. So what is admitted by a slow webhook would be seen here.
- There is no scheduler: pods stay Pending, and a deletion is immediate. Deployments of Gatekeeper's namespace are run
  by node.py.

What does not belong here: the API server (control_plane.py), the provider (countersign.py), images (images.py),
expectations (the tests).
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import signal
import subprocess
import sys
import tempfile
from base64 import b64encode
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import pytest
import yaml

from tests.e2e.cluster import NAMESPACE, WEBHOOK_SECRET, Cluster, Json, has_condition
from tests.e2e.control_plane import ControlPlane
from tests.e2e.forwarding import free_address
from tests.e2e.keys import GATEKEEPER_USER, make_webhook_keys
from tests.e2e.node import Node
from tests.e2e.processes import ADDRESS, Process, can_mount, healthy, wait_for
from tests.e2e.programs import Programs

VALIDATION_SECONDS: Final = 5  # the tutorial's validatingWebhookTimeoutSeconds
MUTATION_SECONDS: Final = 2  # its mutatingWebhookTimeoutSeconds
CACHE_SECONDS: Final = 10  # its externaldataProviderResponseCacheTTL
AUDIT_SECONDS: Final = 3  # Gatekeeper's default is 60
EXISTING: Final = "COUNTERSIGN_E2E_KUBECONFIG"  # names the cluster to use instead of starting one
REACHED_AT: Final = "COUNTERSIGN_E2E_ADDRESS"  # where that cluster's Gatekeeper reaches this machine
SERVICE: Final = "ratify"  # what the chart calls its Service when the release has the tutorial's name

# Kinds of Gatekeeper's manifest that are applied; the others need pods.
APPLIED: Final = frozenset(
    {"Namespace", "CustomResourceDefinition", "Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding"}
)
WEBHOOKS: Final = {
    "ValidatingWebhookConfiguration": VALIDATION_SECONDS,
    "MutatingWebhookConfiguration": MUTATION_SECONDS,
}
OPERATIONS: Final = (
    "audit",
    "generate",
    "mutation-controller",
    "mutation-status",
    "mutation-webhook",
    "status",
    "webhook",
)


class Rig(ControlPlane):
    """A running cluster of processes.

    Attributes:
        gatekeeper: the process; `restart_gatekeeper` replaces it.
        node: runs the provider's pods.
    """

    def __init__(self, folder: Path, found: Programs, stack: contextlib.ExitStack) -> None:
        self._found = found
        super().__init__(folder, found.etcd, found.apiserver, stack)
        self._hosts = folder / "hosts"
        service_address = free_address()
        self._hosts.write_text(f"{ADDRESS} localhost\n{service_address} {SERVICE}.{NAMESPACE}\n")
        manifests = [each for each in yaml.load_all(found.manifest.read_text(), _LOADER) if each]
        self._apply_gatekeeper(manifests)
        self.gatekeeper = self._start_gatekeeper()
        self._webhooks = [each for each in manifests if each["kind"] in WEBHOOKS]
        self._apply_webhooks()
        self.node = stack.enter_context(Node(self, service_address))

    def _apply_gatekeeper(self, manifests: Sequence[Json]) -> None:
        wanted = [copy.deepcopy(each) for each in manifests if each["kind"] in APPLIED]
        for each in wanted:
            if each["kind"].endswith("Binding"):
                group = "rbac.authorization.k8s.io"
                each["subjects"] = [{"kind": "User", "name": GATEKEEPER_USER, "apiGroup": group}]
        namespace = next(each for each in wanted if each["kind"] == "Namespace")
        self.apply(namespace, server_side=True)
        self.apply(*(each for each in wanted if each is not namespace), server_side=True)
        self._apply_webhook_secret()
        self.wait(
            "Gatekeeper's resources",
            "customresourcedefinitions",
            until=lambda listed: all(has_condition(each, "Established") for each in listed["items"]),
        )

    def _apply_webhook_secret(self) -> None:
        certificates = self.keys("webhook")
        data = {file.name: b64encode(file.read_bytes()).decode() for file in certificates.iterdir()}
        metadata = {"name": WEBHOOK_SECRET, "namespace": NAMESPACE}
        self.apply({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": data})

    def _start_gatekeeper(self, *more: str) -> Process:
        (self.folder / "audit").mkdir(exist_ok=True)
        process = self._start(
            "gatekeeper",
            [
                self._found.gatekeeper,
                f"--kubeconfig={self._kubeconfig('gatekeeper-user')}",
                *(f"--operation={each}" for each in OPERATIONS),
                "--debug-use-fake-pod=true",
                "--disable-cert-rotation=true",
                f"--cert-dir={self.keys('webhook')}",
                f"--host={ADDRESS}",
                f"--port={self._ports['webhook']}",
                f"--health-addr={ADDRESS}:{self._ports['health']}",
                f"--prometheus-port={self._ports['metrics']}",
                f"--audit-interval={AUDIT_SECONDS}",
                f"--api-cache-dir={self.folder / 'audit'}",
                f"--external-data-provider-response-cache-ttl={CACHE_SECONDS}s",
                f"--exempt-namespace={NAMESPACE}",
                "--default-create-vap-for-templates=false",
                "--shutdown-delay=0",
                "--log-denies",
                *more,
            ],
            env={"POD_NAMESPACE": NAMESPACE, "POD_NAME": "gatekeeper"},
            mounts={"/etc/hosts": self._hosts},
        )
        process.wait_ready(lambda: healthy(self._ports["health"], "/readyz"))
        return process

    def _apply_webhooks(self) -> None:
        authority = b64encode(self.keys("webhook").joinpath("ca.crt").read_bytes()).decode()
        configurations = copy.deepcopy(self._webhooks)
        for configuration in configurations:
            for webhook in configuration["webhooks"]:
                path = webhook["clientConfig"]["service"]["path"]
                url = f"https://{ADDRESS}:{self._ports['webhook']}{path}"
                webhook["clientConfig"] = {"url": url, "caBundle": authority}
                webhook["timeoutSeconds"] = WEBHOOKS[configuration["kind"]]
        self.apply(*configurations)
        # The API server learns of webhooks by a watch. A namespace that Gatekeeper has to refuse shows that it did.
        refused = json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Namespace",
                "metadata": {"name": "is-the-webhook-there", "labels": {"admission.gatekeeper.sh/ignore": "yes"}},
            }
        )
        wait_for(
            "the API server to call Gatekeeper",
            lambda: not self.kubectl("create", "--dry-run=server", "-f", "-", stdin=refused).ok,
        )

    def restart_gatekeeper(self, *more: str) -> None:
        """End Gatekeeper and start it again: its caches are empty then.

        Args:
            more: flags beside the usual ones, for this time.
        """
        self.gatekeeper.stop()
        self.gatekeeper = self._start_gatekeeper(*more)

    def renew_gatekeeper(self) -> None:
        """Give Gatekeeper a new CA and certificate, as its own rotation does, and restart it with them."""
        make_webhook_keys(self.keys("webhook"))
        self._apply_webhook_secret()
        self.gatekeeper.stop()
        self.gatekeeper = self._start_gatekeeper()
        self._apply_webhooks()


_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the manifest is large


@contextlib.contextmanager
def open_rig(folder: Path) -> Iterator[Rig]:
    """Start a cluster in a folder; it ends with the `with` block, which waits for every process.

    Raises:
        pytest.skip.Exception: a program is not on this machine.
        AssertionError: a server did not start; with its last words.
    """
    programs = Programs.find()
    if not can_mount():
        pytest.skip("this machine lets no process have a hosts file of its own, which Gatekeeper needs here (unshare)")
    with contextlib.ExitStack() as stack:
        yield Rig(folder, programs, stack)


@contextlib.contextmanager
def open_cluster(folder: Path) -> Iterator[Cluster]:
    """The cluster that COUNTERSIGN_E2E_KUBECONFIG names, which has Gatekeeper already; else a new one."""
    existing = os.environ.get(EXISTING)
    if existing:
        yield Cluster(Path(existing).absolute(), folder, provider_address=os.environ.get(REACHED_AT, ADDRESS))
    else:
        with open_rig(folder) as rig:
            yield rig


def main() -> int:
    """Run a cluster until Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="countersign-e2e-") as folder:
        try:
            with open_rig(Path(folder)) as rig:
                print(f"export KUBECONFIG={rig.kubeconfig}\n# logs are in {folder}; Ctrl-C ends it", flush=True)
                with contextlib.suppress(KeyboardInterrupt):
                    while rig.gatekeeper.running:
                        with contextlib.suppress(subprocess.TimeoutExpired):
                            rig.gatekeeper.wait(60)
        except (pytest.skip.Exception, pytest.fail.Exception, AssertionError) as error:
            print(error, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
