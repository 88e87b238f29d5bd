"""The provider beside a cluster that was there: its pod as a process of this machine, at an address that is named.

Rules:
- Nodes have no image of what is tested, so the chart's own pods fit no node, and the Deployment is scaled to none. The
  process is what the rendered Deployment says, as in a rig.
- Gatekeeper's pods do not find it by the Service's name, so the Provider objects get its address, and it has a
  certificate for that, given as values of the chart.

What does not belong here: clusters of processes (node.py).
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

from provider.demo import pki
from tests.e2e.chart import RELEASE
from tests.e2e.cluster import NAMESPACE, Cluster, Json
from tests.e2e.forwarding import PORT
from tests.e2e.pod_process import PodProcess, SignedIn, Surroundings
from tests.e2e.processes import wait_for

PROVIDERS = "providers.externaldata.gatekeeper.sh"


class Outside:
    """At most one pod, which follows the Deployment when it is told to."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self._cluster = cluster
        self._folder = folder
        self._pod: PodProcess | None = None
        self._starts = 0
        make_serving_files(folder, cluster.provider_address)

    @property
    def settings(self) -> list[str]:
        files = (("crt", "tls.crt"), ("key", "tls.key"), ("cabundle", "tls-ca.crt"))
        return [
            "nodeSelector.countersign-e2e=runs-outside",
            *(f"provider.tls.{key}=@{self._folder / file}" for key, file in files),
        ]

    @property
    def pods(self) -> list[PodProcess]:
        return [self._pod] if self._pod is not None else []

    def follow(self) -> None:
        self._cluster.must("scale", f"deployment/{RELEASE}", "--replicas=0", f"--namespace={NAMESPACE}")
        listed = self._cluster.get(PROVIDERS) or {"items": []}
        for provider in listed["items"]:
            path = provider["spec"]["url"].partition(f":{PORT}")[2]
            url = f"https://{self._cluster.provider_address}:{PORT}{path}"
            patch = json.dumps({"spec": {"url": url}})
            self._cluster.must("patch", PROVIDERS, provider["metadata"]["name"], "--type=merge", f"--patch={patch}")
        self.scale(0)
        self.scale(1)

    def scale(self, replicas: int) -> None:
        assert replicas in (0, 1), "several replicas need a Service"
        if not replicas:
            if self._pod is not None:
                self._pod.stop()
            self._pod = None
            return
        deployment = self._cluster.get("deployment", RELEASE, f"--namespace={NAMESPACE}")
        assert deployment
        self._starts += 1
        surroundings = Surroundings(NAMESPACE, self._sign_in, self._read)
        spec = deployment["spec"]["template"]["spec"]
        name = f"{RELEASE}-{self._starts}"
        self._pod = pod = PodProcess(name, spec, self._cluster.provider_address, self._folder, surroundings)
        assert pod.start(), "a Secret or ConfigMap of the pod is missing"

        def ready() -> bool:
            pod.probe()
            return pod.ready or not pod.running

        wait_for("the provider to be ready", ready)
        assert pod.running, pod.process.last_words()

    def reach(self, host: str) -> str:
        return host

    def _sign_in(self, account: str, folder: Path) -> SignedIn:
        file = folder / "kubeconfig"
        self._cluster.write_service_account(file, account)
        return SignedIn({"KUBECONFIG": str(file)}, {})

    def _read(self, plural: str, name: str) -> Json | None:
        return self._cluster.get(plural, name, f"--namespace={NAMESPACE}")


def make_serving_files(folder: Path, address: str) -> None:
    """Make tls.crt and tls.key for an address, and tls-ca.crt, their authority's certificate."""
    now = datetime.now(UTC)

    def issue(subject: dict[str, str], extensions: pki.Extensions, issuer: pki.CertifiedKey | None) -> pki.CertifiedKey:
        begin, end = now - timedelta(hours=1), now + timedelta(days=7)
        return pki.issue(subject, extensions, issuer=issuer, not_before=begin, not_after=end)

    authority = issue({"CN": "countersign-ca"}, pki.authority(), None)
    serving = issue({"CN": RELEASE}, pki.tls_server([address]), authority)
    (folder / "tls.crt").write_bytes(serving.chain_pem())
    (folder / "tls.key").write_bytes(serving.key_pem())
    (folder / "tls-ca.crt").write_bytes(pki.pem(authority.certificate))
