"""An API server on loopback with its etcd, as processes.

Rules:
- Real programs with the flags of an ordinary cluster. Left off is what needs a controller manager: the admission of
  service accounts, which demands objects that nobody makes here.
- Everything that is written is below one folder, and every process ends with the `with` block that started it.

What does not belong here: Gatekeeper (rig.py), what runs on nodes (node.py).
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.e2e.cluster import Cluster
from tests.e2e.keys import make_keys, write_kubeconfig
from tests.e2e.processes import ADDRESS, Mounts, Process, free_ports, healthy


class ControlPlane(Cluster):
    """A running API server, without anything that uses it.

    Attributes:
        server: its URL.
        folder: where everything of it is, logs too.
        keys: its throw-away keys.
    """

    def __init__(self, folder: Path, etcd: Path, apiserver: Path, stack: contextlib.ExitStack) -> None:
        self.folder = folder
        self.keys = make_keys(folder / "keys")
        self._stack = stack
        self._ports = dict(zip(("etcd", "peer", "api", "webhook", "health", "metrics"), free_ports(6), strict=True))
        self.server = f"https://{ADDRESS}:{self._ports['api']}"
        super().__init__(self._kubeconfig("administrator"), folder)
        self._start_control_plane(etcd, apiserver)

    def _kubeconfig(self, user: str) -> Path:
        signed_in = {"client-certificate": str(self.keys(f"{user}.crt")), "client-key": str(self.keys(f"{user}.key"))}
        return write_kubeconfig(
            self.folder / f"{user}.kubeconfig", self.server, self.keys("kubernetes-ca.crt"), signed_in
        )

    @property
    def api_port(self) -> int:
        return self._ports["api"]

    def _start(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        mounts: Mounts | None = None,
    ) -> Process:
        process = Process(name, command, self.folder / f"{name}.log", env or {}, mounts)
        self._stack.callback(process.stop)
        return process

    def _start_control_plane(self, etcd_program: Path, apiserver_program: Path) -> None:
        ports, keys = self._ports, self.keys
        client, peer = (f"http://{ADDRESS}:{ports[name]}" for name in ("etcd", "peer"))
        etcd = self._start(
            "etcd",
            [
                etcd_program,
                f"--data-dir={self.folder / 'etcd'}",
                f"--listen-client-urls={client}",
                f"--advertise-client-urls={client}",
                f"--listen-peer-urls={peer}",
                f"--initial-advertise-peer-urls={peer}",
                f"--initial-cluster=default={peer}",
                "--unsafe-no-fsync",
            ],
        )
        etcd.wait_ready(lambda: healthy(ports["etcd"], "/health"))
        apiserver = self._start(
            "kube-apiserver",
            [
                apiserver_program,
                f"--etcd-servers={client}",
                f"--bind-address={ADDRESS}",
                f"--advertise-address={ADDRESS}",
                f"--secure-port={ports['api']}",
                f"--tls-cert-file={keys('apiserver.crt')}",
                f"--tls-private-key-file={keys('apiserver.key')}",
                f"--client-ca-file={keys('kubernetes-ca.crt')}",
                "--service-account-issuer=https://kubernetes.default.svc",
                f"--service-account-key-file={keys('service-accounts.crt')}",
                f"--service-account-signing-key-file={keys('service-accounts.key')}",
                "--authorization-mode=RBAC",
                "--service-cluster-ip-range=10.0.0.0/24",
                "--endpoint-reconciler-type=none",
                "--disable-admission-plugins=ServiceAccount",  # nothing makes the service accounts that it demands
                "--allow-privileged",
                "--profiling=false",
                "--v=1",
            ],
        )
        trusted = ssl.create_default_context(cafile=keys("kubernetes-ca.crt"))
        trusted.load_cert_chain(keys("administrator.crt"), keys("administrator.key"))
        apiserver.wait_ready(lambda: healthy(ports["api"], "/readyz", trusted))
        self.wait("the namespace default", "namespace", "default", until=bool)
