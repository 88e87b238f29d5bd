"""Runs the real helm on the chart: objects, notes, refusals.

Rules: helm is found as every peer is (tests/interop/peers.py) and never sees a cluster or the user's own files. `helm
template` does not print NOTES.txt; a copy of the chart has one more template that does.
What does not belong here: what the objects should be (the tests), whether they hang together (structure.py).
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from provider.cli.check_config import read_cluster
from provider.configuration.resources import ResourceSet
from tests.interop import peers

CHART: Final = Path(__file__).resolve().parents[2] / "charts" / "countersign"
CERTIFICATES: Final = Path(__file__).parent / "certificates"
ROOT: Final = (CERTIFICATES / "signer-root.pem").read_text()
TIMESTAMP_ROOT: Final = (CERTIFICATES / "timestamp-root.pem").read_text()
COSIGN_KEY: Final = (CERTIFICATES / "cosign.pub").read_text()

ROTATED: Final = {"featureFlags": {"RATIFY_CERT_ROTATION": True}}
# The least that installs and verifies.
MINIMAL: Final = {**ROTATED, "notationCerts": [ROOT]}

# An identity and a vault, as the provider accepts them.
IDENTITY: Final = {"azureWorkloadIdentity": {"clientId": "11111111-2222-3333-4444-555555555555"}}
VAULT: Final = {
    "enabled": True,
    "vaultURI": "https://contoso.vault.azure.net",
    "tenantId": "66666666-7777-8888-9999-000000000000",
    "certificates": [{"name": "signing"}],
}
# A certificate that is given, and everything at once.
GIVEN: Final = {
    "featureFlags": {"RATIFY_CERT_ROTATION": False},
    "notationCerts": [ROOT],
    "provider": {"tls": {"crt": ROOT, "key": "-----BEGIN PRIVATE KEY-----\n", "cabundle": ROOT}},
}
EVERYTHING: Final = {
    **ROTATED,
    "notationCerts": [ROOT, TIMESTAMP_ROOT],
    "cosignKeys": [COSIGN_KEY],
    "replicaCount": 2,
    **IDENTITY,
    "azurekeyvault": VAULT,
    "vulnerabilityreport": {"enabled": True},
    "sbom": {"enabled": True},
    "dockerConfig": "{}",
    "oras": {"authProviders": {"azureWorkloadIdentityEnabled": True, "k8secretsEnabled": True}},
    "provider": {
        "tls": {"restoreProviders": True},
        "mutation": {"workloads": True, "keepTag": True},
        "clientAuth": {"caBundle": ROOT, "allowedNames": ["a"], "caCerts": [{"secretName": "s", "secretKey": "k"}]},
        "deadline": {"verificationSeconds": 45},
        "limits": {"maxKeys": 500, "maxBodyBytes": 1048576},
    },
    "logger": {"requestHeaders": {"traceIDHeaderName": ["x-trace"]}},
    "rbac": {"pullSecretNamespaces": ["team"]},
    "autoscaling": {"enabled": True},
    "serviceMonitor": {"enabled": True},
    "prometheusRule": {"enabled": True},
    "dashboard": {"enabled": True},
    "networkPolicy": {"enabled": True},
}

_NOTES: Final = """\
apiVersion: v1
kind: ConfigMap
metadata:
  name: notes-of-the-release
data:
  notes: {{ include (print $.Template.BasePath "/NOTES.txt") . | toJson }}
"""


@dataclass(frozen=True)
class Rendered:
    """What a rendering gave: every object, in order."""

    text: str
    objects: tuple[dict[str, Any], ...]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.objects)

    def find(self, kind: str, name: str, namespace: str | None = None) -> dict[str, Any] | None:
        """The object, or None."""
        for one in self.objects:
            metadata = one["metadata"]
            if (one["kind"], metadata["name"]) == (kind, name) and namespace in (None, metadata.get("namespace")):
                return one
        return None

    def get(self, kind: str, name: str) -> dict[str, Any]:
        """The object.

        Raises:
            AssertionError: it was not rendered.
        """
        found = self.find(kind, name)
        present = sorted(f"{one['kind']}/{one['metadata']['name']}" for one in self.objects)
        assert found is not None, f"no {kind}/{name} among {present}"
        return found

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """All objects of a kind."""
        return [one for one in self.objects if one["kind"] == kind]

    @property
    def container(self) -> dict[str, Any]:
        """The provider's container."""
        (deployment,) = self.of_kind("Deployment")
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        return dict(container)

    @property
    def args(self) -> list[str]:
        """The provider's command line."""
        return list(self.container["args"])

    @property
    def environment(self) -> dict[str, Any]:
        """Environment variables of the provider."""
        return {entry["name"]: entry.get("value") for entry in self.container["env"]}

    def resources(self) -> ResourceSet:
        """What our own configuration makes of the custom resources, as a cluster would be given them.

        Raises:
            ConfigurationError: they have faults.
        """
        return read_cluster(self.text.encode())


class Refusal(Exception):
    """helm refused; the text is its own."""


def template(
    *values: Mapping[str, Any],
    sets: Sequence[str] = (),
    release: str = "ratify",
    namespace: str = "gatekeeper-system",
    options: Sequence[str] = (),
    chart: Path = CHART,
) -> Rendered:
    """Render the chart.

    Args:
        values: values files, the later over the earlier.
        sets: arguments of --set.
        release: its name.
        namespace: its namespace.
        options: further options of `helm template`.
        chart: the chart's folder.

    Raises:
        Refusal: helm does not render it.
    """
    assignments = [word for assignment in sets for word in ("--set", assignment)]
    with _values_files(values) as files:
        return parse(helm("template", release, chart, "--namespace", namespace, *options, *files, *assignments))


def lint(*values: Mapping[str, Any]) -> str:
    """`helm lint --strict`.

    Raises:
        Refusal: it finds something.
    """
    with _values_files(values) as files:
        return helm("lint", "--strict", CHART, *files)


@contextlib.contextmanager
def _values_files(values: Sequence[Mapping[str, Any]]) -> Iterator[list[str | Path]]:
    with tempfile.TemporaryDirectory() as folder:
        arguments: list[str | Path] = []
        for number, mapping in enumerate(values):
            file = Path(folder, f"{number}.yaml")
            file.write_text(yaml.safe_dump(dict(mapping)))
            arguments += ["--values", file]
        yield arguments


def parse(text: str) -> Rendered:
    """What `helm template` printed."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    documents = [document for document in yaml.load_all(text, Loader=loader) if document is not None]
    return Rendered(text, tuple(documents))


def helm(*arguments: str | Path) -> str:
    """Run helm; its standard output.

    Raises:
        Refusal: it failed.
    """
    with tempfile.TemporaryDirectory() as home:
        done = subprocess.run(
            [str(peers.find("helm")), *map(str, arguments)],
            env={"HOME": home, "KUBECONFIG": str(Path(home, "none")), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            timeout=peers.CALL_SECONDS,
            check=False,
        )
    if done.returncode != 0:
        raise Refusal(done.stderr.decode() + done.stdout.decode())
    return done.stdout.decode()


def notes(*values: Mapping[str, Any], sets: Sequence[str] = (), namespace: str = "gatekeeper-system") -> str:
    """What helm tells after installing, in one line."""
    rendered = template(*values, sets=sets, namespace=namespace, chart=chart_with_notes())
    return " ".join(str(rendered.get("ConfigMap", "notes-of-the-release")["data"]["notes"]).split())


@functools.cache
def chart_with_notes() -> Path:
    """A copy of the chart that renders its notes too, as ConfigMap/notes-of-the-release."""
    home = tempfile.mkdtemp(prefix="chart-")
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    folder = Path(home, "countersign")
    shutil.copytree(CHART, folder)
    (folder / "templates" / "notes-of-the-release.yaml").write_text(_NOTES)
    return folder


def at(node: Any, path: str) -> Any:
    """A value inside an object: `spec.parameters.trustPolicyDoc.trustPolicies.0.name`.

    Raises:
        AssertionError: there is none.
    """
    for step in path.split("."):
        if isinstance(node, list):
            assert int(step) < len(node), f"{path}: no item {step} in {node}"
            node = node[int(step)]
        else:
            assert isinstance(node, dict), f"{path}: {node!r} has no {step}"
            assert step in node, f"{path}: no {step} in {sorted(node)}"
            node = node[step]
    return node
