"""The scenarios of the article, from the chart's values to the verdict: Key Vault, Trusted Signing, neither of the two.

The article's commands are rendered by helm, or taken from the renderings that tests/chart keeps where there is no helm.
`countersign serve` runs as a process of its own on what was rendered; Entra ID, registry and vault are simulators under
their genuine names, and Gatekeeper asks. Files and custom resources of a cluster are two ways to the same verdicts.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from structlog.testing import capture_logs

from provider.assembly import Assembler
from provider.configuration.manifests import Manifest, read_set
from provider.configuration.resources import ResourceSet
from provider.demo import pki, signing
from provider.errors import Undecided
from provider.executor import Executor, ExecutorSettings
from provider.key_management.azure_key_vault import AzureKeyVaultProvider
from provider.parts import Environment
from provider.telemetry import Metrics
from tests.chart.rendering import CHART
from tests.chart.test_article import GOLDEN, INSTALLATIONS, PRELUDE, VARIABLES
from tests.interop import peers
from tests.simulators.azure.artifact_signing import ArtifactSigning
from tests.simulators.azure.cloud import Cloud, cloud
from tests.simulators.azure.entra import CLIENT, TENANT
from tests.simulators.azure.key_vault import PKCS12, KeyVaultSimulator, pem_secret, pkcs12_secret
from tests.simulators.gatekeeper import PKI, Gatekeeper, Reply
from tests.simulators.kubernetes import KubernetesSimulator
from tests.simulators.listener import hang, status

NOW = datetime.now(UTC).replace(microsecond=0)
DAY = timedelta(days=1)
SIGNED_AT = NOW - 30 * DAY
REPOSITORY = "shop/cart"
REGISTRY = "contoso.azurecr.io"
NAME = {"C": "US", "ST": "WA", "O": "Contoso", "CN": "release"}
VALID = {"not_before": NOW - 99 * DAY, "not_after": NOW + 99 * DAY}


@dataclass(frozen=True)
class Authorities:
    """Who signs: a company with a root of its own, and the service; and strangers of the same names."""

    root: pki.CertifiedKey
    company: pki.CertifiedKey
    stranger: pki.CertifiedKey
    service: ArtifactSigning
    strange_service: ArtifactSigning


@cache
def authorities() -> Authorities:
    root, other = (pki.issue({**NAME, "CN": "root"}, pki.authority(), issuer=None, **VALID) for _ in range(2))
    company, stranger = (pki.issue(NAME, pki.code_signing(), issuer=one, **VALID) for one in (root, other))
    return Authorities(root, company, stranger, ArtifactSigning(NOW), ArtifactSigning(NOW))


# -- from the chart's values to resources -----------------------------------------------------------------------------


def rendered(installation: str, folder: Path) -> str:
    """What the article's command installs, with the roots of these tests; by helm, or as it was stored."""
    made = authorities()
    signer_root = made.service.root if installation == "trusted-signing" else made.root
    roots = {
        "ROOT_CERT_FILE": pki.pem(signer_root.certificate).decode(),
        "TSA_ROOT_CERT_FILE": pki.pem(made.service.timestamps.signer.root).decode(),
    }
    if not _has_helm():
        return _stored(installation, roots)
    files = {}
    for name, pem in roots.items():
        files[name] = str(folder / f"{name}.pem")
        Path(files[name]).write_text(pem)
    variables = {**VARIABLES, **files, "IDENTITY_CLIENT_ID": CLIENT, "AKV_TENANT_ID": TENANT}
    done = subprocess.run(
        ["bash", "-c", PRELUDE + INSTALLATIONS[installation]],
        env={**variables, "HELM": str(peers.find("helm")), "CHART": str(CHART), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        timeout=peers.CALL_SECONDS,
        check=True,
    )
    return done.stdout.decode()


def _has_helm() -> bool:
    try:
        peers.find("helm")
    except pytest.skip.Exception:
        return False
    return True


def _stored(installation: str, roots: Mapping[str, str]) -> str:
    """The stored rendering, with these identities and roots in the places of those that it was made with."""
    text = (GOLDEN / f"{installation}.yaml").read_text()
    for variable, value in (("IDENTITY_CLIENT_ID", CLIENT), ("AKV_TENANT_ID", TENANT)):
        text = text.replace(VARIABLES[variable], value)
    documents = list(yaml.safe_load_all(text))
    for variable, pem in roots.items():
        old = Path(VARIABLES[variable]).read_text()
        for one in documents:
            parameters = one.get("spec", {}).get("parameters") if isinstance(one.get("spec"), dict) else None
            if one["kind"] == "KeyManagementProvider" and str(parameters.get("value", "")).strip() == old.strip():
                parameters["value"] = pem
    return yaml.safe_dump_all(documents)


def custom_resources(text: str) -> list[dict[str, Any]]:
    """The resources of the rendering that configure the provider."""
    documents = [one for one in yaml.safe_load_all(text) if one is not None]
    return [one for one in documents if one["apiVersion"].startswith("config.ratify.deislabs.io/")]


@pytest.mark.parametrize("installation", INSTALLATIONS)
def test_the_stored_renderings_configure_what_helm_configures(installation: str, tmp_path: Path) -> None:
    """So that a machine without helm tests the same."""
    peers.find("helm")
    made = authorities()
    signer_root = made.service.root if installation == "trusted-signing" else made.root
    roots = {
        "ROOT_CERT_FILE": pki.pem(signer_root.certificate).decode(),
        "TSA_ROOT_CERT_FILE": pki.pem(made.service.timestamps.signer.root).decode(),
    }
    by_helm = {one["metadata"]["name"]: one["spec"] for one in custom_resources(rendered(installation, tmp_path))}
    stored = {one["metadata"]["name"]: one["spec"] for one in custom_resources(_stored(installation, roots))}
    assert stored == by_helm


# -- the servers ------------------------------------------------------------------------------------------------------


@dataclass
class Stage:
    """Azure with a vault and a registry that holds three images for each scenario."""

    azure: Cloud
    vault: KeyVaultSimulator

    def push_images(self, *, trusted_signing: bool) -> dict[str, str]:
        """An image that is signed, one that is not, one that strangers signed; references by what they are."""
        made, references = authorities(), {}
        for name in ("signed", "unsigned", "untrusted"):
            image = self.azure.acr.push_image(REPOSITORY, tag=name, content=name.encode())
            references[name] = f"{REGISTRY}/{REPOSITORY}:{name}"
            if name == "unsigned":
                continue
            if trusted_signing:
                service = made.service if name == "signed" else made.strange_service
                signer = service.certify(SIGNED_AT)
                envelope = service.sign(image, signer, SIGNED_AT, timestamps=made.service.timestamps)
                kind = "application/cose"
            else:
                signer = made.company if name == "signed" else made.stranger
                options = signing.SignOptions(timestamp=partial(made.service.timestamps.token, gen_time=SIGNED_AT))
                kind, envelope = "application/jose+json", signing.sign(image, signer, SIGNED_AT, options)
            self.azure.acr.push_blob(REPOSITORY, envelope, kind)
            manifest = signing.signature_manifest(image, envelope, kind, signer.chain, created=SIGNED_AT)
            self.azure.acr.push_manifest(REPOSITORY, manifest)
        return references


@pytest.fixture
async def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    from azure.keyvault.secrets._shared import http_challenge_cache

    http_challenge_cache.clear()
    async with cloud(tmp_path, monkeypatch) as azure:
        vault = KeyVaultSimulator(azure.entra, tls=azure.authority, name=VARIABLES["AKV_NAME"])
        await azure.enter(vault.vault_host, vault)
        # Imported as it is mostly done: with a key that may be exported, which the provider must not keep.
        company = authorities().company
        vault.add_certificate(VARIABLES["CERT_NAME"], pkcs12_secret(company.chain, company.key), PKCS12)
        yield Stage(azure, vault)


@dataclass
class Serving:
    """A running `countersign serve`."""

    process: asyncio.subprocess.Process
    port: int
    health_port: int
    metrics_port: int
    pki: PKI
    log: Path
    began: float

    async def until_ready(self) -> float:
        """Wait; seconds since the start."""
        async with aiohttp.ClientSession() as session, asyncio.timeout(30):
            while True:
                try:
                    async with session.get(f"http://127.0.0.1:{self.health_port}/readyz") as answer:
                        if answer.status == 200:
                            return time.monotonic() - self.began
                except aiohttp.ClientError:
                    pass
                assert self.process.returncode is None, self.log.read_text()
                await asyncio.sleep(0.02)

    async def ask(self, *references: str) -> Reply:
        async with Gatekeeper(self.port, self.pki.client_context()) as gatekeeper:
            return await gatekeeper.ask(*references)

    async def metrics(self) -> str:
        url = f"http://127.0.0.1:{self.metrics_port}/metrics"
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            return await answer.text()


def quiet_ports(count: int) -> list[int]:
    """Ports that nobody listens on, below those that the system gives to the many connections of these tests."""
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(15_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            found.append(port)
    return found


@asynccontextmanager
async def serving(folder: Path, stage: Stage, *source: str, **variables: str) -> AsyncIterator[Serving]:
    certificates = PKI()
    certificates.write_serving_files(folder)
    certificates.write_client_ca(folder / "ca.crt")
    ports = quiet_ports(3)
    log = folder / "log"
    began = time.monotonic()
    with log.open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "provider", "serve", *source, "--log-level", "debug", "--host", "127.0.0.1"),
            *("--cert-dir", str(folder), "--client-ca-file", str(folder / "ca.crt"), "--port", str(ports[0])),
            *("--health-port", str(ports[1]), "--metrics-port", str(ports[2])),
            stderr=stderr,
            env={"PATH": "/usr/bin:/bin", **stage.azure.variables, **stage.azure.hosts.variables, **variables},
        )
    try:
        yield Serving(process, *ports, certificates, log, began)  # type: ignore[misc]
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def codes(reply: Reply, references: Mapping[str, str]) -> dict[str, str]:
    """What was said of each image: `ok`, a code, or `nothing`."""
    said = {}
    for name, reference in references.items():
        value = reply.items.get(reference, {}).get("value", {})
        said[name] = "ok" if value.get("isSuccess") is True else value.get("code", "nothing")
    return said


def leaks(stage: Stage, text: str) -> list[str]:
    """What is secret and stands in a text."""
    lines = [line for line in authorities().company.key_pem().decode().splitlines() if "-----" not in line]
    return [secret for secret in (*stage.azure.secrets, *lines, "PRIVATE KEY") if secret in text]


SCENARIOS = [
    ("key-vault", False),
    ("key-vault-and-timestamps", False),
    ("trusted-signing", True),
    ("no-key-vault", False),
]
RIGHT = {"signed": "ok", "unsigned": "UNSIGNED", "untrusted": "UNTRUSTED_ROOT"}


@pytest.mark.parametrize(("installation", "trusted_signing"), SCENARIOS, ids=[name for name, _ in SCENARIOS])
async def test_the_articles_scenarios_end_in_the_right_verdicts(
    stage: Stage, tmp_path: Path, installation: str, trusted_signing: bool
) -> None:
    """Files of the rendering. The signed image is admitted, the other two are denied for what they are."""
    references = stage.push_images(trusted_signing=trusted_signing)
    config = tmp_path / "config"
    config.mkdir()
    (config / "chart.yaml").write_text(rendered(installation, tmp_path))
    async with serving(tmp_path, stage, "--config", str(config)) as running:
        ready = await running.until_ready()
        print(f"{installation}: {ready:.2f} s from start to ready")
        before = len(stage.vault.requests)
        reply = await running.ask(*references.values())
        assert len(stage.vault.requests) == before, "an admission asked Key Vault"
        assert reply.system_error == ""
        assert codes(reply, references) == RIGHT
        assert reply.admitted == {references["signed"]}
        metrics = await running.metrics()
    used = installation.startswith("key-vault")
    assert bool(before) == used
    assert ('countersign_key_material_complete{provider="kmprovider-akv"} 1.0' in metrics) == used
    assert stage.azure.hosts.strangers == []
    log = running.log.read_text()
    assert leaks(stage, log + json.dumps(reply.document) + metrics) == []
    assert ("private key in a secret of Key Vault, dropped" in log) == used
    for name, reference in references.items():
        assert f"verification response for subject {reference}" in log, name


async def test_custom_resources_of_a_cluster_lead_to_the_same_verdicts(stage: Stage, tmp_path: Path) -> None:
    """`serve --cluster`, and the status that says which version of the certificate is in use."""
    references = stage.push_images(trusted_signing=False)
    async with KubernetesSimulator() as cluster:
        cluster.apply(*custom_resources(rendered("key-vault", tmp_path)))
        kubeconfig = cluster.kubeconfig(tmp_path / "kubeconfig")
        async with serving(tmp_path, stage, "--cluster", KUBECONFIG=str(kubeconfig), NO_PROXY="127.0.0.1") as running:
            await running.until_ready()
            assert codes(await running.ask(*references.values()), references) == RIGHT
            async with asyncio.timeout(30):
                while "properties" not in (told := cluster.status("keymanagementproviders", "kmprovider-akv")):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
        (row,) = told["properties"]["Certificates"]
        assert told["issuccess"] is True
        assert (row["Name"], row["State"], row["Enabled"]) == (VARIABLES["CERT_NAME"], "in use", "true")
        assert row["LastRefreshed"]
        assert leaks(stage, running.log.read_text() + json.dumps(told)) == []


async def test_a_certificate_that_is_not_in_the_vault_is_in_the_status(stage: Stage, tmp_path: Path) -> None:
    """The others go on; who is not among them is not called untrusted, because he may be the missing one."""
    references = stage.push_images(trusted_signing=False)
    found = custom_resources(rendered("key-vault", tmp_path))
    (vault,) = [one for one in found if one["kind"] == "KeyManagementProvider"]
    vault["spec"]["parameters"]["certificates"].append({"name": "absent"})
    async with KubernetesSimulator() as cluster:
        cluster.apply(*found)
        kubeconfig = cluster.kubeconfig(tmp_path / "kubeconfig")
        async with serving(tmp_path, stage, "--cluster", KUBECONFIG=str(kubeconfig), NO_PROXY="127.0.0.1") as running:
            await running.until_ready()
            reply = await running.ask(*references.values())
            assert codes(reply, references) == {"signed": "ok", "unsigned": "UNSIGNED", "untrusted": "nothing"}
            assert "certificate absent: contoso-vault.vault.azure.net has no such thing" in reply.system_error
            async with asyncio.timeout(30):
                while "properties" not in (told := cluster.status("keymanagementproviders", "kmprovider-akv")):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
    assert told["issuccess"] is False
    assert told["error"].startswith("certificate absent: contoso-vault.vault.azure.net has no such thing")
    states = {row["Name"]: row.get("State", row.get("Error", "")) for row in told["properties"]["Certificates"]}
    assert states["contoso-signing"] == "in use"
    assert "404 SecretNotFound" in states["absent"]


async def test_a_vault_that_cannot_be_reached_at_the_start_denies_and_says_why(stage: Stage, tmp_path: Path) -> None:
    """The process is up all the same; an image without a signature is denied for that, the others for want of keys."""
    references = stage.push_images(trusted_signing=False)
    config = tmp_path / "config"
    config.mkdir()
    (config / "chart.yaml").write_text(rendered("key-vault", tmp_path))
    stage.vault.fault("*", status(503))
    async with serving(tmp_path, stage, "--config", str(config)) as running:
        await running.until_ready()
        reply = await running.ask(*references.values())
        assert reply.admitted == set()
        assert codes(reply, references) == {"signed": "nothing", "unsigned": "UNSIGNED", "untrusted": "nothing"}
        assert "KEYS_UNAVAILABLE" in reply.system_error
        assert "503" in reply.system_error
        assert 'countersign_key_material_complete{provider="kmprovider-akv"} 0.0' in await running.metrics()
    assert leaks(stage, running.log.read_text()) == []


# -- what the assembly makes of the resource --------------------------------------------------------------------------


def resources(text: str) -> ResourceSet:
    return read_set([Manifest("chart.yaml", CHART, text.encode())])


def provider_of(assembler: Assembler) -> AzureKeyVaultProvider:
    found = assembler.key_providers["KeyManagementProvider/kmprovider-akv"]
    assert isinstance(found, AzureKeyVaultProvider)
    return found


@asynccontextmanager
async def assembled(stage: Stage, **settings: Any) -> AsyncIterator[tuple[Assembler, Metrics]]:
    metrics = Metrics()
    executor = Executor(ExecutorSettings(result_ttl_seconds=0))
    environment = Environment.from_variables(stage.azure.hosts.variables)
    assembler = Assembler(executor.use, environment=environment, metrics=metrics, **settings)
    try:
        yield assembler, metrics
    finally:
        await executor.aclose()
        await assembler.aclose()


async def test_expired_versions_count_where_a_tsa_store_stands_beside_the_vault(stage: Stage, tmp_path: Path) -> None:
    """What was signed and time-stamped before the end is still good; without a time-stamp nobody can know."""
    old = pki.issue(
        {**NAME, "CN": "old"}, pki.code_signing(), issuer=None, not_before=NOW - 9 * DAY, not_after=NOW - DAY
    )
    stage.vault.add_certificate(VARIABLES["CERT_NAME"], pem_secret(old.chain), expires=NOW - DAY)
    async with assembled(stage) as (assembler, _):
        for installation, kept in (("key-vault", False), ("key-vault-and-timestamps", True)):
            await assembler.apply(resources(rendered(installation, tmp_path)))
            material = provider_of(assembler).material()
            assert any("CN=old" in one.subject_text for one in material.certificates) == kept


async def test_the_age_of_key_material_is_a_metric_until_the_resource_is_gone(stage: Stage, tmp_path: Path) -> None:
    async with assembled(stage, grace_seconds=0.0) as (assembler, metrics):

        def sample(name: str) -> float | None:
            return metrics.registry.get_sample_value(name, {"provider": "kmprovider-akv"})

        await assembler.apply(resources(rendered("key-vault", tmp_path)))
        seen = sample("countersign_key_material_seen_timestamp_seconds")
        assert seen is not None
        assert abs(seen - time.time()) < 60
        assert sample("countersign_key_material_complete") == 1.0
        await assembler.apply(resources(rendered("no-key-vault", tmp_path)))
        async with asyncio.timeout(10):
            while sample("countersign_key_material_complete") is not None:  # noqa: ASYNC110 - a metric sets no event
                await asyncio.sleep(0.01)
        assert sample("countersign_key_material_seen_timestamp_seconds") is None


async def test_a_vault_that_hangs_holds_up_a_configuration_for_a_time_only(stage: Stage, tmp_path: Path) -> None:
    stage.vault.fault("*", hang())
    async with assembled(stage, load_seconds=0.5) as (assembler, metrics):
        with capture_logs() as logs:
            await assembler.apply(resources(rendered("key-vault", tmp_path)))
        with pytest.raises(Undecided, match="did not answer in time"):
            provider_of(assembler).material()
        assert (
            metrics.registry.get_sample_value("countersign_key_material_complete", {"provider": "kmprovider-akv"}) == 0
        )
    assert "key provider not loaded" in [one["event"] for one in logs]


async def test_a_new_version_in_the_vault_is_found_without_anybodys_doing(stage: Stage, tmp_path: Path) -> None:
    """Refreshing is on without a refreshInterval; here it is the failed first load that is tried again."""
    stage.vault.fault("*", status(503), times=4)
    async with assembled(stage, retry_seconds=0.05) as (assembler, _):
        await assembler.apply(resources(rendered("key-vault", tmp_path)))
        async with asyncio.timeout(20):
            while True:
                try:
                    material = provider_of(assembler).material()
                except Undecided:
                    await asyncio.sleep(0.02)
                else:
                    break
    assert material.certificates
