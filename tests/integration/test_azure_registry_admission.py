"""Gatekeeper asks for images in Azure Container Registry: whatever happens to Azure, nobody is admitted who should not
be, nobody waits longer than the deadline, and no secret is heard of (attacks N07, N11)."""

from __future__ import annotations

import asyncio
import textwrap
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import structlog

from provider.assembly import Assembler
from provider.azure.sdk import load_sdk
from provider.configuration.manifests import load
from provider.demo import pki
from provider.executor import Executor
from provider.gatekeeper.server import Server
from provider.gatekeeper.settings import ListenerSettings, ServerSettings
from provider.gatekeeper.tls import ServingTLS, TLSFiles
from provider.parts import Environment
from provider.telemetry import Metrics
from tests.integration.test_admission import MANIFESTS, ROOT, SIGNER, STRANGER, push_signature
from tests.simulators.azure.cloud import REGISTRY, STORAGE, Cloud, cloud
from tests.simulators.azure.entra import CLIENT
from tests.simulators.azure.imds import MetadataSimulator
from tests.simulators.gatekeeper import PKI, Gatekeeper
from tests.simulators.listener import Fault, body, endless, hang, reset, status, truncate
from tests.simulators.witness import Witness, witness

OAUTH = "/oauth2/*"
AUTH = "authProvider: {name: azureWorkloadIdentity}"


@pytest.fixture
def heard() -> Iterator[Witness]:
    with witness() as listening:
        yield listening


@pytest.fixture
async def azure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heard: Witness) -> AsyncIterator[Cloud]:
    await asyncio.to_thread(load_sdk)  # not in the time of the first image
    async with cloud(tmp_path, monkeypatch) as running:
        yield running
    heard.check(running.secrets)


@dataclass
class System:
    """A provider on Azure, and Gatekeeper to ask it."""

    azure: Cloud
    gatekeeper: Gatekeeper
    heard: Witness
    signed: str
    unsigned: str
    untrusted: str

    async def ask(self, *keys: str) -> tuple[set[str], dict[str, str | None], str]:
        """Who is admitted, the code of every verdict, and the system error."""
        reply = await self.gatekeeper.ask(*(keys or (self.signed, self.unsigned, self.untrusted)))
        self.heard.see(reply)
        codes = {key: item["value"].get("code") for key, item in reply.items.items() if "value" in item}
        return reply.admitted, codes, reply.system_error


@pytest.fixture(params=[AUTH])
async def system(request: pytest.FixtureRequest, azure: Cloud, heard: Witness, tmp_path: Path) -> AsyncIterator[System]:
    certificates = PKI()
    certificates.write_serving_files(tmp_path)
    certificates.write_client_ca(tmp_path / "client-ca.crt")
    folder = tmp_path / "config"
    folder.mkdir()
    root = textwrap.indent(pki.pem(ROOT.certificate).decode(), " " * 6)
    manifests = MANIFESTS.format(pem=root).replace("useHttp: true, timeoutSeconds: 2", request.param)
    assert request.param in manifests
    (folder / "all.yaml").write_text(manifests)
    azure.acr.redirect_blobs_to = STORAGE
    images = {}
    for name, signers in {"signed": [SIGNER], "unsigned": [], "untrusted": [STRANGER]}.items():
        image = azure.acr.push_image(name, tag="v1", content=name.encode())
        for signer in signers:
            push_signature(azure.acr, name, image, signer)
        azure.storage.blobs |= azure.acr.repository(name).blobs
        images[name] = f"{REGISTRY}/{name}:v1"
    metrics, executor = Metrics(), Executor()
    assembler = Assembler(executor.use, environment=Environment(proxies=azure.proxies))
    tls = ServingTLS(TLSFiles.in_folder(tmp_path, client_cas=[tmp_path / "client-ca.crt"]), metrics=metrics)
    server = Server(
        executor,
        executor,
        listener=ListenerSettings(host="127.0.0.1"),
        settings=ServerSettings(verify_seconds=2.0, mutate_seconds=1.0, settle_seconds=0, drain_seconds=0.1),
        tls=tls,
        metrics=metrics,
        remembered=executor.remembered,
    )
    await assembler.apply(load(folder))
    await server.start()
    try:
        async with Gatekeeper(server.port, certificates.client_context()) as gatekeeper:
            yield System(azure, gatekeeper, heard, **images)
    finally:
        await server.stop()
        await executor.aclose()
        await assembler.aclose()


async def test_signed_unsigned_and_untrusted_images_get_their_verdicts(system: System) -> None:
    admitted, codes, problem = await system.ask()
    assert (admitted, problem) == ({system.signed}, "")
    assert codes == {system.signed: None, system.unsigned: "UNSIGNED", system.untrusted: "UNTRUSTED_ROOT"}
    assert len(system.azure.entra.minted) == len(system.azure.acr.exchanges) == 1
    assert sorted(system.azure.acr.scopes) == [
        "repository:signed:pull",
        "repository:unsigned:pull",
        "repository:untrusted:pull",
    ]
    assert {request.authorization for request in system.azure.storage.requests} == {None}


@pytest.mark.parametrize("where", ["entra", "exchange", "token", "challenge"])
@pytest.mark.parametrize(
    "fault",
    [
        status(401),
        status(403, body=b'{"errors":[{"code":"DENIED"}]}'),
        status(404),
        status(429, headers={"Retry-After": "3600"}),
        status(429),
        status(500),
        status(503, headers={"Retry-After": "7"}),
        status(200, body=b"<html>sign in</html>", headers={"Content-Type": "text/html"}),
        status(200, body=b"{", headers={"Content-Type": "application/json"}),
        status(200, body=b"{}", headers={"Content-Type": "application/json"}),
        status(302, headers={"Location": "https://attacker.example/"}),
        truncate(10),
        reset(),
        hang(),
        endless(),
        body(b"x" * 2_000_000),
    ],
)
async def test_n11_no_fault_of_azure_admits_anybody_or_lets_a_secret_out(
    system: System, where: str, fault: Fault
) -> None:
    """Every image is left out of the answer, so that Gatekeeper does not keep it and asks again."""
    azure = system.azure
    await system.ask("registry.azurecr.us/signed:v1")  # there are secrets now, and a way that works
    server = azure.entra if where == "entra" else azure.acr
    azure.entra.revoke()
    azure.acr.revoke()
    pattern = {"entra": "*", "exchange": "/oauth2/exchange", "token": "/oauth2/token", "challenge": "/v2/*"}[where]
    server.fault(pattern, fault)
    admitted, codes, problem = await system.ask()
    assert (admitted, codes) == (set(), {})
    assert problem != ""
    assert not any("attacker" in name for name in azure.hosts.connections)


async def test_an_azure_that_never_answers_holds_up_no_answer(system: System) -> None:
    system.azure.acr.fault(OAUTH, hang())
    admitted, codes, problem = await system.ask()
    assert (admitted, codes) == (set(), {})
    assert "DEADLINE_EXCEEDED" in problem
    system.azure.acr.heal()


async def test_what_went_on_behind_an_answer_is_there_for_the_next(system: System) -> None:
    system.azure.acr.fault("/oauth2/exchange", hang(), times=1)
    assert (await system.ask())[0] == set()
    deadline = asyncio.get_running_loop().time() + 20
    while (await system.ask())[0] != {system.signed}:
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.2)


async def test_permissions_by_repository_decide_for_each_image(system: System) -> None:
    system.azure.acr.abac = True
    system.azure.acr.roles.repository_reader = {CLIENT: {"signed"}}
    admitted, codes, problem = await system.ask()
    assert (admitted, codes) == ({system.signed}, {system.signed: None})
    assert "REGISTRY_UNAUTHORIZED" in problem


@pytest.fixture
def unfederated(azure: Cloud) -> None:
    azure.entra.federations.clear()


@pytest.mark.usefixtures("unfederated")
async def test_an_identity_without_federation_is_told_at_the_start_and_with_every_image(system: System) -> None:
    admitted, codes, problem = await system.ask()
    assert (admitted, codes) == (set(), {})
    assert "CREDENTIALS_UNAVAILABLE" in problem
    assert "AADSTS700016" in problem
    assert "no credentials for registries of Azure yet" in system.heard.log.getvalue()


def test_the_log_is_listened_to(heard: Witness) -> None:
    structlog.get_logger("test").warning("said")
    assert "said" in heard.log.getvalue()


@pytest.mark.parametrize(
    "system",
    [
        f"authProviders: [{{name: azureManagedIdentity, clientID: {CLIENT}}}]",
        f"authProvider: {{name: azureManagedIdentity, endpoints: [{REGISTRY}]}}",
    ],
    indirect=True,
)
@pytest.mark.usefixtures("node")
async def test_a_managed_identity_reads_the_registry_too(system: System) -> None:
    assert (await system.ask())[0] == {system.signed}
    assert system.azure.entra.requests == []


@pytest.fixture
async def node(azure: Cloud, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    async with MetadataSimulator(azure.entra) as running:
        monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", str(running.url))
        yield
