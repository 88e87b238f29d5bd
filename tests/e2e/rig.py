"""A cluster without containers: etcd, kube-apiserver and Gatekeeper as processes on loopback; or an existing cluster.

    python -m tests.e2e.rig          starts one and keeps it until Ctrl-C, for trying things by hand

Rules:
- Real programs, Gatekeeper's own manifest: its resources, roles and webhooks as released. Only what needs a network of
  pods is changed: webhooks are called at a loopback address, and Gatekeeper signs in with a certificate instead of a
  service account that a kubelet would hand it.
- Gatekeeper runs with the settings that the tutorial installs it with: webhook timeouts of 5 and 2 s, verdicts kept for
  10 s, failure policy Ignore. So what is admitted by a slow webhook would be seen here.
- There is no controller manager, scheduler or kubelet: pods stay Pending, and a deletion is immediate.
- Waiting is for a state that the API shows, never for a time.

What does not belong here: the provider (countersign.py), images (images.py), expectations (the tests).
"""

from __future__ import annotations

import contextlib
import copy
import http.client
import json
import os
import signal
import ssl
import subprocess
import sys
import tempfile
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import yaml
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from provider.demo import pki
from tests.e2e import programs
from tests.e2e.processes import ADDRESS, Process, free_ports, wait_for
from tests.e2e.programs import Programs

Json = dict[str, Any]

NAMESPACE: Final = "gatekeeper-system"
WEBHOOK_NAME: Final = "gatekeeper-webhook-service.gatekeeper-system.svc"  # what Gatekeeper's certificate says
WEBHOOK_SECRET: Final = "gatekeeper-webhook-server-cert"
GATEKEEPER_USER: Final = "gatekeeper-rig"
VALIDATION_SECONDS: Final = 5  # the tutorial's validatingWebhookTimeoutSeconds
MUTATION_SECONDS: Final = 2  # its mutatingWebhookTimeoutSeconds
CACHE_SECONDS: Final = 10  # its externaldataProviderResponseCacheTTL
AUDIT_SECONDS: Final = 3  # Gatekeeper's default is 60
CALL_SECONDS: Final = 60.0  # one kubectl
REQUEST_SECONDS: Final = 5.0  # one look at a health end point
EXISTING: Final = "COUNTERSIGN_E2E_KUBECONFIG"  # names the cluster to use instead of starting one
REACHED_AT: Final = "COUNTERSIGN_E2E_ADDRESS"  # where that cluster's Gatekeeper reaches this machine
RIG_CONTEXT: Final = "countersign-e2e"

# Kinds of Gatekeeper's manifest that are applied; the others need a kubelet or a controller manager.
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


@dataclass(frozen=True)
class Said:
    """What a run of kubectl said."""

    code: int
    out: str
    err: str

    @property
    def ok(self) -> bool:
        return self.code == 0

    def __str__(self) -> str:
        return f"exit code {self.code}\n{self.out}{self.err}"


class Cluster:
    """A cluster as kubectl sees it.

    Attributes:
        kubeconfig: of an administrator.
        provider_address: address of this machine for Gatekeeper.
    """

    def __init__(self, kubeconfig: Path, folder: Path, *, provider_address: str = ADDRESS) -> None:
        self.kubeconfig = kubeconfig
        self.provider_address = provider_address
        self._kubectl = programs.find("kubectl")
        self._cache = folder / "kubectl-cache"  # nothing is kept in the home of whoever runs the tests

    def kubectl(self, *words: str, stdin: str | None = None, kubeconfig: Path | None = None) -> Said:
        """Run kubectl to its end, whatever its exit code.

        Args:
            words: its arguments.
            stdin: what it reads from `-f -`.
            kubeconfig: somebody else's; the administrator's by default.
        """
        done = subprocess.run(
            [str(self._kubectl), f"--cache-dir={self._cache}", *words],
            env={**os.environ, "KUBECONFIG": str(kubeconfig or self.kubeconfig)},
            input=stdin or "",
            capture_output=True,
            text=True,
            timeout=CALL_SECONDS,
            check=False,
        )
        return Said(done.returncode, done.stdout, done.stderr)

    def must(self, *words: str, stdin: str | None = None) -> str:
        """Run kubectl, which has to succeed; its standard output.

        Raises:
            AssertionError: with its own words.
        """
        said = self.kubectl(*words, stdin=stdin)
        assert said.ok, f"kubectl {' '.join(words)}: {said}"
        return said.out

    def apply(self, *objects: Json, server_side: bool = False) -> None:
        """Apply objects."""
        options = ["--server-side", "--force-conflicts"] if server_side else []
        self.must(
            "apply", *options, "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
        )

    def get(self, *words: str) -> Json | None:
        """An object, or a list of them that is not empty; None where there is none."""
        said = self.kubectl("get", *words, "--ignore-not-found", "--output=json")
        if not said.ok:
            # The kind itself is not there yet, or discovery does not know it yet.
            assert "the server doesn't have a resource type" in said.err or "NotFound" in said.err, str(said)
            return None
        found: Json | None = json.loads(said.out) if said.out.strip() else None
        return found

    def delete(self, *words: str, wait: bool = True) -> None:
        """Delete objects, those that are there, and wait until they are gone unless told not to."""
        said = self.kubectl("delete", *words, "--ignore-not-found", f"--wait={str(wait).lower()}")
        assert said.ok or "the server doesn't have a resource type" in said.err, str(said)

    def wait(self, what: str, *words: str, until: Callable[[Json], bool]) -> Json:
        """Wait until an object is there and as it should be; the object.

        Raises:
            AssertionError: it was not in time; with how it was last.
        """
        last: Json = {}

        def ready() -> bool:
            nonlocal last
            last = self.get(*words) or {}
            return bool(last) and until(last)

        try:
            wait_for(what, ready)
        except AssertionError as error:
            raise AssertionError(f"{error}; last seen: {json.dumps(last.get('status', last))}") from None
        return last

    def gatekeeper_ca(self) -> bytes:
        """The CA of Gatekeeper's own certificate, which it shows to providers (PEM)."""
        secret = self.wait("Gatekeeper's certificate", "secret", WEBHOOK_SECRET, f"--namespace={NAMESPACE}", until=bool)
        return bytes_of(secret["data"]["ca.crt"])

    def write_service_account(self, file: Path, name: str, namespace: str = NAMESPACE) -> None:
        """A kubeconfig of a service account that is there, with a token as its pods would get."""
        token = self.must("create", "token", name, f"--namespace={namespace}", "--duration=24h").strip()
        mine = json.loads(self.must("config", "view", "--raw", "--flatten", "--minify", "--output=json"))
        mine["users"] = [{"name": each["name"], "user": {"token": token}} for each in mine["users"]]
        file.touch(mode=0o600)
        file.write_text(json.dumps(mine))

    # ---- Waiting for Gatekeeper ----

    def wait_template(self, name: str = "ratifyverification") -> None:
        """Wait until Gatekeeper compiled the present version of a template.

        Raises:
            AssertionError: it cannot be compiled, or took too long.
        """
        template = self.wait(f"template {name} to be compiled", "constrainttemplate", name, until=_seen)
        faults = [error for pod in template["status"]["byPod"] for error in pod.get("errors", [])]
        assert not faults, faults
        assert template["status"]["created"] is True
        kind = template["spec"]["crd"]["spec"]["names"]["kind"]
        crd = f"{kind.lower()}.constraints.gatekeeper.sh"
        self.wait(
            f"the kind {kind}", "customresourcedefinition", crd, until=lambda it: has_condition(it, "Established")
        )

    def wait_constraint(self, name: str = "ratify-constraint", kind: str = "ratifyverification") -> None:
        """Wait until Gatekeeper enforces the present version of a constraint."""

        def enforced(constraint: Json) -> bool:
            return _seen(constraint) and all(pod.get("enforced") for pod in constraint["status"]["byPod"])

        self.wait(f"constraint {name} to be enforced", kind, name, until=enforced)

    def wait_provider(self, name: str = "ratify-provider") -> None:
        """Wait until Gatekeeper knows the present version of a Provider."""

        def active(provider: Json) -> bool:
            return _seen(provider) and all(pod.get("active") for pod in provider["status"]["byPod"])

        self.wait(f"provider {name} to be active", "provider.externaldata.gatekeeper.sh", name, until=active)

    def wait_mutators(self, kind: str = "assign") -> None:
        """Wait until Gatekeeper enforces all mutators of a kind."""

        def enforced(listed: Json) -> bool:
            return all(
                _seen(each) and all(pod.get("enforced") for pod in each["status"]["byPod"]) for each in listed["items"]
            )

        self.wait(f"the {kind} objects to be enforced", f"{kind}.mutations.gatekeeper.sh", until=enforced)


def _seen(thing: Json) -> bool:
    """Every pod of Gatekeeper reports on the present generation of an object."""
    pods = thing.get("status", {}).get("byPod", [])
    return bool(pods) and all(pod.get("observedGeneration") == thing["metadata"]["generation"] for pod in pods)


def has_condition(thing: Json, kind: str) -> bool:
    """A condition of an object's status is True."""
    conditions = thing.get("status", {}).get("conditions", [])
    return any(each["type"] == kind and each["status"] == "True" for each in conditions)


def bytes_of(text: str) -> bytes:
    """What a Secret's data stands for."""
    return b64decode(text, validate=True)


# ---- Keys ----


@dataclass(frozen=True)
class Keys:
    """Throw-away keys of a rig, in files.

    Attributes:
        folder: `<name>.crt` and `<name>.key` for each name, `kubernetes-ca.crt`, `gatekeeper-ca.crt`.
    """

    folder: Path

    def __call__(self, name: str) -> Path:
        return self.folder / name


def make_keys(folder: Path) -> Keys:
    """Make all of them."""
    folder.mkdir()
    now = datetime.now(UTC)

    def issue(name: str, subject: dict[str, str], extensions: pki.Extensions, issuer: pki.CertifiedKey | None) -> Any:
        made = pki.issue(
            subject,
            extensions,
            issuer=issuer,
            not_before=now - timedelta(hours=1),
            not_after=now + timedelta(days=7),
        )
        (folder / f"{name}.crt").write_bytes(made.chain_pem())
        (folder / f"{name}.key").write_bytes(made.key_pem())
        return made

    kubernetes = issue("kubernetes-ca", {"CN": "kubernetes-ca"}, pki.authority(), None)
    issue("apiserver", {"CN": "kube-apiserver"}, pki.tls_server([ADDRESS, "localhost"]), kubernetes)
    issue("service-accounts", {"CN": "service-accounts"}, pki.authority(), None)
    administrator = {"O": "system:masters", "CN": "administrator"}
    issue("administrator", administrator, pki.tls_client(["administrator"]), kubernetes)
    issue("gatekeeper-user", {"CN": GATEKEEPER_USER}, pki.tls_client([GATEKEEPER_USER]), kubernetes)
    gatekeeper = issue("gatekeeper-ca", {"O": "gatekeeper", "CN": "gatekeeper-ca"}, pki.authority(), None)
    webhook = issue("tls", {"CN": WEBHOOK_NAME}, _server_and_client([ADDRESS, WEBHOOK_NAME]), gatekeeper)
    certificates = folder / "webhook"
    certificates.mkdir()
    (certificates / "tls.crt").write_bytes(webhook.chain_pem())
    (certificates / "tls.key").write_bytes(webhook.key_pem())
    (certificates / "ca.crt").write_bytes(pki.pem(gatekeeper.certificate))
    return Keys(folder)


def _server_and_client(hosts: Sequence[str]) -> pki.Extensions:
    """Gatekeeper's certificate serves its webhook and is shown to providers."""
    purposes = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    return tuple(
        (purposes, critical) if isinstance(extension, x509.ExtendedKeyUsage) else (extension, critical)
        for extension, critical in pki.tls_server(hosts)
    )


def write_kubeconfig(file: Path, server: str, authority: Path, user: Mapping[str, str]) -> Path:
    """A kubeconfig with one context; `user` has the members of its user."""
    cluster = {"server": server, "certificate-authority": str(authority)}
    context = {"cluster": RIG_CONTEXT, "user": RIG_CONTEXT}
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": RIG_CONTEXT,
        "clusters": [{"name": RIG_CONTEXT, "cluster": cluster}],
        "users": [{"name": RIG_CONTEXT, "user": dict(user)}],
        "contexts": [{"name": RIG_CONTEXT, "context": context}],
    }
    file.write_text(json.dumps(document))
    file.chmod(0o600)
    return file


# ---- The servers ----


class Rig(Cluster):
    """A running cluster of processes.

    Attributes:
        server: URL of the API server.
        keys: its throw-away keys.
        gatekeeper: the process; `restart_gatekeeper` replaces it.
    """

    def __init__(self, folder: Path, found: Programs, stack: contextlib.ExitStack) -> None:
        self.folder = folder
        self.keys = make_keys(folder / "keys")
        self._found = found
        self._stack = stack
        self._ports = dict(zip(("etcd", "peer", "api", "webhook", "health", "metrics"), free_ports(6), strict=True))
        self.server = f"https://{ADDRESS}:{self._ports['api']}"
        super().__init__(self._kubeconfig("administrator"), folder)
        self._start_control_plane()
        manifests = [each for each in yaml.load_all(found.manifest.read_text(), _LOADER) if each]
        self._apply_gatekeeper(manifests)
        self.gatekeeper = self._start_gatekeeper()
        self._apply_webhooks(manifests)

    def _kubeconfig(self, user: str) -> Path:
        signed_in = {"client-certificate": str(self.keys(f"{user}.crt")), "client-key": str(self.keys(f"{user}.key"))}
        return write_kubeconfig(
            self.folder / f"{user}.kubeconfig", self.server, self.keys("kubernetes-ca.crt"), signed_in
        )

    def _start(self, name: str, command: Sequence[str | Path], **env: str) -> Process:
        process = Process(name, command, self.folder / f"{name}.log", env)
        self._stack.callback(process.stop)
        return process

    def _start_control_plane(self) -> None:
        ports, keys = self._ports, self.keys
        client, peer = (f"http://{ADDRESS}:{ports[name]}" for name in ("etcd", "peer"))
        etcd = self._start(
            "etcd",
            [
                self._found.etcd,
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
                self._found.apiserver,
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

    def _apply_gatekeeper(self, manifests: Sequence[Json]) -> None:
        wanted = [copy.deepcopy(each) for each in manifests if each["kind"] in APPLIED]
        for each in wanted:
            if each["kind"].endswith("Binding"):
                group = "rbac.authorization.k8s.io"
                each["subjects"] = [{"kind": "User", "name": GATEKEEPER_USER, "apiGroup": group}]
        namespace = next(each for each in wanted if each["kind"] == "Namespace")
        self.apply(namespace, server_side=True)
        self.apply(*(each for each in wanted if each is not namespace), server_side=True)
        certificates = self.keys("webhook")
        data = {file.name: b64encode(file.read_bytes()).decode() for file in certificates.iterdir()}
        metadata = {"name": WEBHOOK_SECRET, "namespace": NAMESPACE}
        self.apply({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": data})
        self.wait(
            "Gatekeeper's resources",
            "customresourcedefinitions",
            until=lambda listed: all(has_condition(each, "Established") for each in listed["items"]),
        )

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
            POD_NAMESPACE=NAMESPACE,
            POD_NAME="gatekeeper",
        )
        process.wait_ready(lambda: healthy(self._ports["health"], "/readyz"))
        return process

    def _apply_webhooks(self, manifests: Sequence[Json]) -> None:
        authority = b64encode(self.keys("webhook").joinpath("ca.crt").read_bytes()).decode()
        configurations = [copy.deepcopy(each) for each in manifests if each["kind"] in WEBHOOKS]
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


_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the manifest is large


def healthy(port: int, path: str, context: ssl.SSLContext | None = None) -> bool:
    """A server on loopback answers 200."""
    connection = (
        http.client.HTTPConnection(ADDRESS, port, timeout=REQUEST_SECONDS)
        if context is None
        else http.client.HTTPSConnection(ADDRESS, port, timeout=REQUEST_SECONDS, context=context)
    )
    with contextlib.closing(connection):
        try:
            connection.request("GET", path)
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False


@contextlib.contextmanager
def open_rig(folder: Path) -> Iterator[Rig]:
    """Start a cluster in a folder; it ends with the `with` block, which waits for every process.

    Raises:
        pytest.skip.Exception: a program is not on this machine.
        AssertionError: a server did not start; with its last words.
    """
    with contextlib.ExitStack() as stack:
        yield Rig(folder, Programs.find(), stack)


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
    import pytest

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
