"""The provider as a process beside the cluster, and how it gets its configuration.

    cluster:  custom resources in the cluster, `countersign serve --cluster`, with the chart's service account and roles
    files:    the same resources in a folder, `countersign serve --config DIR`

Rules:
- The command runs as its users run it: with options, certificates in files, and Gatekeeper's CA for its callers.
- A configuration is in use when the log, and in a cluster the status of each resource, say so; then a test goes on.
- What a test asks of the provider's log is what its documentation promises of it.

What does not belong here: the cluster (rig.py), expectations (the tests).
"""

from __future__ import annotations

import json
import os
import sys
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

import pytest
import yaml

from provider.demo import pki
from tests.e2e import chart
from tests.e2e.images import GROUP
from tests.e2e.processes import ADDRESS, Process, free_ports, wait_for
from tests.e2e.rig import NAMESPACE, WEBHOOK_NAME, Cluster, Json, has_condition, healthy

SERVICE_ACCOUNT: Final = "ratify-admin"
SELF_MANAGED: Final = "featureFlags.RATIFY_CERT_ROTATION=true"  # the chart wants to know where its certificate is from
MODE: Final = "COUNTERSIGN_E2E_MODE"
PROVIDER: Final = "ratify-provider"
MUTATION_PROVIDER: Final = "ratify-mutation-provider"
# Timeouts of the Provider objects. Each has to be below its webhook's (rig.py): with equal ones Gatekeeper and the API
# server give up on a provider that hangs at the same moment, and then the failure policy Ignore admits the pod.
VERIFY_SECONDS: Final = 4
MUTATE_SECONDS: Final = 1
MARGIN_SECONDS: Final = 0.1  # the provider answers so long before
IN_USE: Final = "configuration in use"
VERDICT: Final = "verification response for subject "


class Configuration(Protocol):
    """Where the provider's custom resources are kept."""

    name: str

    def arguments(self) -> list[str]:
        """What `countersign serve` is told, to read them there."""
        ...

    def environment(self) -> dict[str, str]:
        """What is added to its environment, for the same end."""
        ...

    def write(self, resources: Sequence[Json]) -> None:
        """Make exactly these resources what there is."""
        ...

    def accepted(self, resources: Sequence[Json]) -> bool:
        """The provider says of each of them that it is good, where it says so at all."""
        ...


class Files:
    """Manifests in a folder, as on a laptop."""

    name = "files"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir()

    def arguments(self) -> list[str]:
        return ["--config", str(self._folder), "--config-poll-seconds", "0.1"]

    def write(self, resources: Sequence[Json]) -> None:
        scratch = self._folder.parent / "resources.yaml"
        scratch.write_text(yaml.safe_dump_all(list(resources)))
        scratch.replace(self._folder / "resources.yaml")

    def environment(self) -> dict[str, str]:
        return {}

    def accepted(self, resources: Sequence[Json]) -> bool:
        return True


class CustomResources:
    """Custom resources of a cluster, read with the rights that the chart gives and no others."""

    name = "cluster"

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        """Install the chart's resource definitions, service account and roles."""
        self._cluster = cluster
        self._kubeconfig = folder / "ratify-admin.kubeconfig"
        definitions = [yaml.safe_load(file.read_text()) for file in sorted(chart.CRDS.glob("*.yaml"))]
        self._plurals = [definition["metadata"]["name"] for definition in definitions]
        cluster.apply(*definitions, server_side=True)
        for name in self._plurals:
            established = partial(has_condition, kind="Established")
            cluster.wait(name, "customresourcedefinition", name, until=established)
        for template in ("serviceaccount.yaml", "rbac.yaml"):
            cluster.apply(*chart.render(SELF_MANAGED, only=template))
        cluster.write_service_account(self._kubeconfig, SERVICE_ACCOUNT)

    def arguments(self) -> list[str]:
        return ["--cluster", "--namespace", NAMESPACE]

    def environment(self) -> dict[str, str]:
        return {"KUBECONFIG": str(self._kubeconfig)}

    def write(self, resources: Sequence[Json]) -> None:
        for namespace in {each["metadata"].get("namespace") for each in resources} - {None}:
            self._cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
        self._cluster.apply(*resources)
        wanted = {_identity(each) for each in resources}
        for plural in self._plurals:
            listed = self._cluster.get(plural, "--all-namespaces") or {"items": []}
            for each in listed["items"]:
                kind, namespace, name = _identity(each)
                if (kind, namespace, name) not in wanted:
                    self._cluster.delete(plural, name, *([f"--namespace={namespace}"] if namespace else []))

    def accepted(self, resources: Sequence[Json]) -> bool:
        for each in resources:
            kind, namespace, name = _identity(each)
            words = [f"{kind.lower()}.{GROUP.partition('/')[0]}", name]
            found = self._cluster.get(*words, *([f"--namespace={namespace}"] if namespace else [])) or {}
            status = found.get("status", {})
            if not status.get("issuccess") or status.get("observedGeneration") != found["metadata"]["generation"]:
                return False
        return True


def _identity(thing: Json) -> tuple[str, str | None, str]:
    """What a resource is told apart by: kind, namespace, name."""
    return thing["kind"], thing["metadata"].get("namespace"), thing["metadata"]["name"]


def best(cluster: Cluster, folder: Path) -> Configuration:
    """The mode that COUNTERSIGN_E2E_MODE names; else custom resources, if the chart has their definitions by now.

    Raises:
        pytest.fail.Exception: there is no such mode.
    """
    modes: dict[str, Callable[[], Configuration]] = {
        Files.name: lambda: Files(folder / "config"),
        CustomResources.name: lambda: CustomResources(cluster, folder),
    }
    default = CustomResources.name if any(chart.CRDS.glob("*.yaml")) else Files.name
    mode = os.environ.get(MODE) or default
    if mode not in modes:
        pytest.fail(f"{MODE} names {mode!r}; there are {', '.join(modes)}", pytrace=False)
    return modes[mode]()


class Countersign:
    """The provider, running until `stop`.

    Attributes:
        configuration: where its custom resources are.
        log: file of its log, over all its starts.
    """

    def __init__(self, cluster: Cluster, configuration: Configuration, folder: Path) -> None:
        """Make keys and take ports; nothing runs yet."""
        self.configuration = configuration
        self._cluster = cluster
        self._folder = folder
        self.log = folder / "countersign.log"
        self._ports = dict(zip(("provider", "health", "metrics"), free_ports(3), strict=True))
        self._stack = ExitStack()
        self._process: Process | None = None
        self._in_use: list[Json] = []
        (folder / "gatekeeper-ca.crt").write_bytes(cluster.gatekeeper_ca())
        self._authority = make_serving_files(folder / "tls", cluster.provider_address)

    def start(self) -> None:
        """Start it and wait until it is ready.

        Raises:
            AssertionError: it does not get ready; with its last words.
        """
        command = [
            *(sys.executable, "-m", "provider", "serve"),
            *self.configuration.arguments(),
            *("--host", self._cluster.provider_address),
            *("--port", str(self._ports["provider"])),
            *("--health-port", str(self._ports["health"])),
            *("--metrics-port", str(self._ports["metrics"])),
            *("--cert-dir", str(self._folder / "tls")),
            *("--client-ca-file", str(self._folder / "gatekeeper-ca.crt")),
            *("--allowed-client-name", WEBHOOK_NAME),
            *("--verify-deadline", str(VERIFY_SECONDS - MARGIN_SECONDS)),
            *("--mutate-deadline", str(MUTATE_SECONDS - MARGIN_SECONDS)),
            *("--log-format", "json"),
        ]
        self._process = Process("countersign", command, self.log, self.configuration.environment())
        self._stack.callback(self._process.stop)
        self._process.wait_ready(lambda: healthy(self._ports["health"], "/readyz"))

    @property
    def process(self) -> Process:
        assert self._process is not None
        return self._process

    def stop(self) -> None:
        """End it and wait."""
        self._stack.close()

    @contextmanager
    def away(self) -> Iterator[None]:
        """It does not run for the time of a `with` block."""
        self.stop()
        try:
            yield
        finally:
            self.start()

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """It answers nobody for the time of a `with` block, though its ports are open."""
        self.process.freeze()
        try:
            yield
        finally:
            self.process.thaw()

    def use(self, resources: Iterable[Json]) -> None:
        """Write a configuration and wait until it is in use.

        Raises:
            AssertionError: it is not put to use; with the log's last words.
        """
        wanted = list(resources)
        if wanted == self._in_use:
            # It never went out of use, so nothing will say that it is in use again; a bad one in its place is replaced.
            self.configuration.write(wanted)
            return
        before = self.said(IN_USE)
        self.configuration.write(wanted)
        if self._process is not None and self._process.running:
            scopes = sorted({each["metadata"].get("namespace", "cluster") for each in wanted})

            def in_use() -> bool:
                said = [event for event in self.events() if event.get("msg") == IN_USE]
                return len(said) > before and sorted(said[-1]["scopes"]) == scopes and accepted()

            def accepted() -> bool:
                return self.configuration.accepted(wanted)

            try:
                wait_for("the configuration to be in use", in_use)
            except AssertionError as error:
                raise AssertionError(f"{error}\n{self._process.last_words()}") from None
        self._in_use = wanted

    def provider_objects(self, *, timeout: int = VERIFY_SECONDS, ca: bytes | None = None) -> tuple[Json, Json]:
        """The two Provider objects, as the chart has them but for the address.

        Args:
            timeout: seconds of the verification Provider.
            ca: certificate authority that they name (PEM); the right one by default.
        """
        return (
            self._provider_object(PROVIDER, "verify", timeout, ca),
            self._provider_object(MUTATION_PROVIDER, "mutate", MUTATE_SECONDS, ca),
        )

    def _provider_object(self, name: str, path: str, timeout: int, ca: bytes | None) -> Json:
        url = f"https://{self._cluster.provider_address}:{self._ports['provider']}/ratify/gatekeeper/v1/{path}"
        bundle = b64encode(ca or self._authority).decode()
        return {
            "apiVersion": "externaldata.gatekeeper.sh/v1beta1",
            "kind": "Provider",
            "metadata": {"name": name},
            "spec": {"url": url, "timeout": timeout, "caBundle": bundle},
        }

    def install_providers(self, *, timeout: int = VERIFY_SECONDS, ca: bytes | None = None) -> None:
        """Apply the Provider objects and wait until Gatekeeper knows them."""
        objects = self.provider_objects(timeout=timeout, ca=ca)
        self._cluster.apply(*objects)
        for each in objects:
            self._cluster.wait_provider(each["metadata"]["name"])

    # ---- Its log ----

    def events(self) -> list[Json]:
        """Every line of its log that is an event."""
        events = []
        for line in self.log.read_text(errors="replace").splitlines() if self.log.exists() else []:
            try:
                event: Any = json.loads(line)
            except ValueError:
                continue  # a line half written, or a warning of the interpreter
            if isinstance(event, dict):
                events.append(event)
        return events

    def said(self, text: str) -> int:
        """How many events begin with a text."""
        return sum(str(event.get("msg", "")).startswith(text) for event in self.events())

    def verdicts(self, image: str) -> list[Json]:
        """What the log says under the words that users are told to search for."""
        return [event for event in self.events() if event.get("msg") == VERDICT + image]


def make_serving_files(folder: Path, address: str) -> bytes:
    """Make tls.crt and tls.key for an address; their authority's certificate (PEM)."""
    folder.mkdir()
    now = datetime.now(UTC)

    def issue(subject: dict[str, str], extensions: pki.Extensions, issuer: pki.CertifiedKey | None) -> pki.CertifiedKey:
        begin, end = now - timedelta(hours=1), now + timedelta(days=7)
        return pki.issue(subject, extensions, issuer=issuer, not_before=begin, not_after=end)

    authority = issue({"CN": "countersign-ca"}, pki.authority(), None)
    serving = issue({"CN": PROVIDER}, pki.tls_server(dict.fromkeys([address, ADDRESS, "localhost"])), authority)
    (folder / "tls.crt").write_bytes(serving.chain_pem())
    (folder / "tls.key").write_bytes(serving.key_pem())
    return pki.pem(authority.certificate)
