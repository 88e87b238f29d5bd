"""The provider as the chart installs it, how it is configured, and what its log says.

    helm install -> Deployment -> node.py runs it          in a cluster of processes
                                -> Outside runs it          beside a cluster that was there, which has no image of it

Rules:
- It runs with the rendered command line, Secrets, service account and roles, and signs in with a token of that account.
- A configuration is in use when the log, and the status of each resource, say so; then a test goes on.
- What a test asks of the provider's log is what its documentation promises of it.

What does not belong here: the cluster (rig.py), expectations (the tests).
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

import yaml
from cryptography import x509

from tests.e2e import chart
from tests.e2e.chart import CHART, RELEASE, Helm
from tests.e2e.cluster import NAMESPACE, WEBHOOK_NAME, Cluster, Json, bytes_of
from tests.e2e.forwarding import PORT
from tests.e2e.images import GROUP, Shop
from tests.e2e.node import Node
from tests.e2e.outside import Outside
from tests.e2e.pod_process import PodProcess
from tests.e2e.processes import wait_for
from tests.e2e.rig import Rig

SERVICE_ACCOUNT: Final = "ratify-admin"
SELF_MANAGED: Final = "featureFlags.RATIFY_CERT_ROTATION=true"
PROVIDER: Final = "ratify-provider"
MUTATION_PROVIDER: Final = "ratify-mutation-provider"
PROVIDERS: Final = "providers.externaldata.gatekeeper.sh"
IN_USE: Final = "configuration in use"
VERDICT: Final = "verification response for subject "
HANDSHAKE_SECONDS: Final = 5.0


class Pods(Protocol):
    """What runs the pods of the chart's Deployment."""

    @property
    def settings(self) -> list[str]:
        """What the chart has to be told so that its pods can run there."""
        ...

    @property
    def pods(self) -> list[PodProcess]:
        """Those that run."""
        ...

    def follow(self) -> None:
        """An installation or an upgrade is through."""
        ...

    def scale(self, replicas: int) -> None:
        """Run so many, and wait until they are ready and the others gone."""
        ...

    def reach(self, host: str) -> str:
        """The address behind the host of a Provider's URL."""
        ...


class Replicas:
    """The pods of a rig's node."""

    settings: Final = [SELF_MANAGED]

    def __init__(self, cluster: Cluster, node: Node) -> None:
        self._cluster = cluster
        self._node = node

    @property
    def pods(self) -> list[PodProcess]:
        return self._node.pods

    def follow(self) -> None:
        self._node.settle()

    def scale(self, replicas: int) -> None:
        self._cluster.must("scale", f"deployment/{RELEASE}", f"--replicas={replicas}", f"--namespace={NAMESPACE}")

        self._node.settle()

        def scaled() -> bool:
            pods = self._node.pods
            return len(pods) == replicas and all(pod.ready for pod in pods)

        wait_for(f"{replicas} pods to be ready", scaled)

    def reach(self, host: str) -> str:
        return self._node.service.address


def settings_of(shop: Shop) -> list[str]:
    """Values of the chart that trust a shop's signer for every image of its registry."""
    subject = shop.signer.subject.replace(",", r"\,")
    policy = "notation.trustPolicies[0]"
    registries = [
        f"oras.registries[{number}].{setting}"
        for number, host in enumerate((shop.registry.address, shop.gate.address))
        for setting in (f"host={host}", "plainHttp=true")
    ]
    return [
        "provider.enableMutation=false",
        f"notationCerts[0]=@{shop.signer.root}",
        f"{policy}.name=shop",
        f"{policy}.registryScopes[0]=*",
        f"{policy}.trustStores[0]=ca:notationCerts[0]",
        f"{policy}.trustedIdentities[0]=x509.subject: {subject}",
        *registries,
        f"provider.clientAuth.allowedNames[0]={WEBHOOK_NAME}",
        # Earlier than by default: a test that waits for this answer must not fail because two processors are busy with
        # twenty kubectl. Gatekeeper's time for the provider is the chart's.
        "provider.deadline.verifySeconds=3",
        "logger.formatter=json",
    ]


class Countersign:
    """The release.

    Attributes:
        helm: what it is installed with.
        baseline: the custom resources of the chart with the settings that all tests begin with.
    """

    def __init__(self, cluster: Cluster, shop: Shop, folder: Path) -> None:
        """Nothing is installed yet."""
        self._cluster = cluster
        self._folder = folder
        self.helm = Helm(cluster.kubeconfig, folder)
        self._runner: Pods = Replicas(cluster, cluster.node) if isinstance(cluster, Rig) else Outside(cluster, folder)
        self._settings = [*settings_of(shop), *self._runner.settings]
        self._more: tuple[str, ...] = ()
        self.baseline: list[Json] = []
        self._in_use: list[Json] = []
        self.plurals = [yaml.safe_load(file.read_text())["metadata"]["name"] for file in sorted(chart.CRDS.iterdir())]

    # ---- The release ----

    def install(self, *settings: str) -> None:
        """Install it with the baseline's settings and these, and wait until Gatekeeper can call it.

        Raises:
            AssertionError: it does not get ready; with helm's words and its log.
        """
        self._run("install", settings)
        self.renew_baseline()

    def renew_baseline(self) -> None:
        """Begin later tests with the custom resources of the release as it is now."""
        ours = GROUP.partition("/")[0]
        self.baseline = [each for each in self.helm.manifest() if each["apiVersion"].startswith(ours)]
        self._in_use = self.baseline
        wait_for("the chart's resources to be in use", lambda: self.accepted(self.baseline))

    def change(self, *settings: str) -> None:
        """Upgrade the release to the baseline's settings and these; without any, back to the baseline."""
        if settings != self._more:
            self._run("upgrade", settings)

    def uninstall(self) -> None:
        """Remove it where it is, but for the custom resource definitions, which helm leaves."""
        self.helm.must("uninstall", RELEASE, "--namespace", NAMESPACE, "--ignore-not-found")
        self._runner.scale(0) if isinstance(self._runner, Outside) else self._runner.follow()

    def _run(self, verb: str, more: tuple[str, ...]) -> None:
        wait = ["--atomic", f"--timeout={chart.WAIT_SECONDS}s"] if isinstance(self._cluster, Rig) else []
        words: list[str | Path] = [
            verb,
            RELEASE,
            CHART,
            *wait,
            "--namespace",
            NAMESPACE,
            *chart.options([*self._settings, *more]),
        ]
        said = self.helm(*words)
        assert said.ok, f"{said}\n{self.last_words()}"
        self._more = more
        self._runner.follow()
        self.wait_serving()

    def wait_serving(self) -> None:
        """Wait until Gatekeeper knows every Provider object, and the server behind each fits its caBundle."""
        listed = self._cluster.get(PROVIDERS) or {"items": []}
        names = [each["metadata"]["name"] for each in listed["items"]]
        assert PROVIDER in names
        for name in names:
            wait_for(f"{name} to be served", lambda name=name: self._serves(name))  # type: ignore[misc]
            self._cluster.wait_provider(name)

    def _serves(self, name: str) -> bool:
        provider = self._cluster.get(PROVIDERS, name) or {}
        host = urlsplit(provider["spec"]["url"]).hostname or ""
        bundle = bytes_of(provider["spec"]["caBundle"]).decode()
        context = ssl.create_default_context(cadata=bundle)
        try:
            with (
                socket.create_connection((self._runner.reach(host), PORT), HANDSHAKE_SECONDS) as plain,
                context.wrap_socket(plain, server_hostname=host),
            ):
                return True
        except OSError:
            return False

    def authorities(self) -> set[bytes]:
        """Key identifiers of the CAs under which the pods serve now."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # who it is, is what is asked
        found = set()
        for pod in self.pods:
            with (
                socket.create_connection((pod.address, PORT), HANDSHAKE_SECONDS) as plain,
                context.wrap_socket(plain) as wrapped,
            ):
                served = x509.load_der_x509_certificate(wrapped.getpeercert(binary_form=True) or b"")
            issuer = served.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
            found.add(issuer.key_identifier or b"")
        return found

    def restore_providers(self) -> None:
        """Make the chart's Provider objects that are missing again."""
        wanted = [each for each in self.helm.manifest() if each["kind"] == "Provider"]
        missing = [each for each in wanted if not self._cluster.get(PROVIDERS, each["metadata"]["name"])]
        if missing:
            self._cluster.apply(*missing)
            self._runner.follow()
            self.wait_serving()

    # ---- Its pods ----

    @property
    def pods(self) -> list[PodProcess]:
        """Those that run."""
        return self._runner.pods

    def scale(self, replicas: int) -> None:
        """Run so many pods and wait until all are ready and the others gone."""
        self._runner.scale(replicas)

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """No pod runs for the time of a `with` block."""
        self.scale(0)
        try:
            yield
        finally:
            self.scale(1)

    @contextlib.contextmanager
    def hanging(self) -> Iterator[None]:
        """It answers nobody for the time of a `with` block, though its ports are open."""
        frozen = self.pods
        for pod in frozen:
            pod.process.freeze()
        try:
            yield
        finally:
            for pod in frozen:
                pod.process.thaw()

    # ---- Its configuration ----

    def use(self, resources: Iterable[Json]) -> None:
        """Make these the only custom resources and wait until every pod uses them.

        Raises:
            AssertionError: they are not put to use; with the log's last words.
        """
        wanted = list(resources)
        if wanted == self._in_use:
            # They never went out of use, so nothing will say that they are in use again; bad ones are replaced.
            self.write(wanted)
            return
        before = {pod.name: len(said_of(pod, IN_USE)) for pod in self.pods}
        namespaces = {each["metadata"].get("namespace", NAMESPACE) for each in wanted}  # ours is the cluster's
        scopes = sorted("cluster" if namespace == NAMESPACE else namespace for namespace in namespaces)
        self.write(wanted)

        def in_use() -> bool:
            for pod in self.pods:
                said = said_of(pod, IN_USE)
                if len(said) <= before.get(pod.name, 0) or sorted(said[-1]["scopes"]) != scopes:
                    return False
            return self.accepted(wanted)

        try:
            wait_for("the configuration to be in use", in_use)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.last_words()}") from None
        self._in_use = wanted

    def write(self, resources: Sequence[Json]) -> None:
        """Make these the only custom resources."""
        for namespace in {each["metadata"].get("namespace") for each in resources} - {None}:
            self._cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
        self._cluster.apply(*resources)
        wanted = {_identity(each) for each in resources}
        listed = self._cluster.get(",".join(self.plurals), "--all-namespaces") or {"items": []}
        for each in listed["items"]:
            kind, namespace, name = _identity(each)
            if (kind, namespace, name) not in wanted:
                where = [f"--namespace={namespace}"] if namespace else []
                self._cluster.delete(f"{kind.lower()}.{GROUP.partition('/')[0]}", name, *where)

    def accepted(self, resources: Sequence[Json]) -> bool:
        """The status of each of them says that it is good."""
        listed = self._cluster.get(",".join(self.plurals), "--all-namespaces") or {"items": []}
        found = {_identity(each): each for each in listed["items"]}
        for each in resources:
            there = found.get(_identity(each), {})
            status = there.get("status", {})
            if not status.get("issuccess") or status.get("observedGeneration") != there["metadata"]["generation"]:
                return False
        return True

    # ---- Its log ----

    def events(self) -> list[Json]:
        """Every event in the logs of all pods that run."""
        return [event for pod in self.pods for event in events_of(pod)]

    def said(self, text: str) -> int:
        """How many events begin with a text."""
        return sum(len(said_of(pod, text)) for pod in self.pods)

    def verdicts(self, image: str) -> list[Json]:
        """What the log says under the words that users are told to search for."""
        return [event for event in self.events() if event.get("msg") == VERDICT + image]

    def last_words(self) -> str:
        """The end of every log."""
        return "\n".join(f"{pod.name}: {pod.log.read_text(errors='replace')[-4000:]}" for pod in self.pods)


def _identity(thing: Json) -> tuple[str, str | None, str]:
    """What a resource is told apart by: kind, namespace, name."""
    return thing["kind"], thing["metadata"].get("namespace"), thing["metadata"]["name"]


def events_of(pod: PodProcess) -> list[Json]:
    """Every line of a pod's log that is an event."""
    events = []
    for line in pod.log.read_text(errors="replace").splitlines():
        try:
            event: Any = json.loads(line)
        except ValueError:
            continue  # a line half written, or a warning of the interpreter
        if isinstance(event, dict):
            events.append(event)
    return events


def said_of(pod: PodProcess, text: str) -> list[Json]:
    """The events of a pod's log that begin with a text."""
    return [event for event in events_of(pod) if str(event.get("msg", "")).startswith(text)]
