"""Bursts against registries that hang: everything is answered in time, and nobody else pays for it.

The server, the executor, the store and the loopback connections are real; so is the hanging. What "at once" means is
seen by what the server counts: an answer that had to leave at its deadline is a miss, one that never waited is none.
"""

from __future__ import annotations

import asyncio
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from provider.assembly import Assembler
from provider.configuration.manifests import load
from provider.demo import pki
from provider.executor import Executor, ExecutorSettings
from provider.gatekeeper.server import Server
from provider.gatekeeper.settings import ListenerSettings, ServerSettings
from provider.gatekeeper.tls import ServingTLS, TLSFiles
from provider.patience import PatienceSettings
from provider.telemetry import Metrics
from tests.integration.test_admission import MANIFESTS, ROOT, SIGNER, System
from tests.simulators.gatekeeper import MUTATE_PATH, PKI, VERIFY_PATH, Gatekeeper, Reply
from tests.simulators.listener import hang
from tests.simulators.registry import RegistrySimulator, TokenServiceSimulator

DEADLINE = 0.8  # seconds; long for what is warm or answers on loopback, short for what hangs
PROBE = 0.1


class Cluster(System):
    """A system that counts."""

    metrics: Metrics

    def misses(self, endpoint: str = "verify") -> float:
        """Answers that left at their deadline."""
        return (
            self.metrics.registry.get_sample_value("countersign_deadline_misses_total", {"endpoint": endpoint}) or 0.0
        )

    async def burst(self, host: str, numbers: range, *, path: str = VERIFY_PATH) -> list[Reply]:
        """Each number an image of its own in a pod of its own."""
        keys = [f"{host}/app{number}:v1" for number in numbers]
        return await asyncio.gather(*(self.gatekeeper.ask(key, path=path) for key in keys))


Serve = Callable[..., Awaitable[Cluster]]


@pytest.fixture
async def serve(tmp_path: Path) -> AsyncIterator[Serve]:
    """A function that starts everything; it is stopped at the end."""
    certificates = PKI()
    certificates.write_serving_files(tmp_path)
    certificates.write_client_ca(tmp_path / "client-ca.crt")
    (tmp_path / "config").mkdir()
    root = textwrap.indent(pki.pem(ROOT.certificate).decode(), " " * 6)
    manifests = MANIFESTS.format(pem=root).replace("timeoutSeconds: 2", "timeoutSeconds: 30")  # longer than any test
    (tmp_path / "config" / "all.yaml").write_text(manifests)
    async with AsyncExitStack() as stack:

        async def start(*, probe_seconds: float = PROBE) -> Cluster:
            metrics = Metrics()
            patience = PatienceSettings(probe_seconds=probe_seconds, probe_pause_seconds=60)
            executor = Executor(ExecutorSettings(patience=patience))
            assembler = Assembler(executor.use)
            stack.push_async_callback(assembler.aclose)
            stack.push_async_callback(executor.aclose)
            await assembler.apply(load(tmp_path / "config"))
            server = Server(
                executor,
                executor,
                listener=ListenerSettings(host="127.0.0.1"),
                settings=ServerSettings(
                    verify_seconds=DEADLINE, mutate_seconds=DEADLINE, settle_seconds=0, drain_seconds=0.1
                ),
                tls=ServingTLS(TLSFiles.in_folder(tmp_path, client_cas=[tmp_path / "client-ca.crt"]), metrics=metrics),
                metrics=metrics,
                remembered=executor.remembered,
            )
            await server.start()
            stack.push_async_callback(server.stop)
            registry = await stack.enter_async_context(RegistrySimulator())
            gatekeeper = await stack.enter_async_context(Gatekeeper(server.port, certificates.client_context()))
            cluster = Cluster(registry, gatekeeper, executor, assembler, tmp_path / "config")
            cluster.metrics = metrics
            return cluster

        yield start


@pytest.fixture
async def hung() -> AsyncIterator[RegistrySimulator]:
    """A registry that takes connections and never answers."""
    async with RegistrySimulator() as registry:
        registry.fault("*", hang())
        yield registry


async def test_n22_a_burst_against_a_registry_that_hangs_is_answered_and_the_next_honest_pod_admitted(
    serve: Serve, hung: RegistrySimulator
) -> None:
    cluster = await serve()
    honest = [cluster.image(f"good{number}", SIGNER) for number in range(3)]
    first = await cluster.burst(hung.host, range(20))  # Gatekeeper's threads, before anything is known
    assert all("not decided within 0.8 s, waiting for the digest of its tag (" in reply.system_error for reply in first)
    assert all(f"an answer of {hung.host}" in reply.system_error for reply in first)
    assert cluster.misses() == 20
    assert (await cluster.gatekeeper.ask(honest[0])).admitted == {honest[0]}

    probe = await cluster.burst(hung.host, range(20, 40))
    assert any("so this answer waited for 0.1 s only, waiting for" in reply.system_error for reply in probe)
    rest = await cluster.burst(hung.host, range(40, 200))
    assert all("so no answer waits for it" in reply.system_error for reply in rest)
    assert cluster.misses() == 20  # none of them waited for as long as that
    for reply in (*probe, *rest):
        assert (reply.status, reply.items) == (200, {})
        assert reply.system_error.startswith("DEADLINE_EXCEEDED: ")
    assert (await cluster.gatekeeper.ask(honest[1])).admitted == {honest[1]}

    again = await cluster.burst(hung.host, range(20))
    assert all("an answer has left without this already" in reply.system_error for reply in again)
    reply = await cluster.gatekeeper.ask(f"{hung.host}/app0:v1", honest[2])
    assert reply.admitted == {honest[2]}
    assert cluster.misses() == 20


async def test_n22_two_hundred_images_of_a_hung_registry_in_one_pod_hold_it_up_once(
    serve: Serve, hung: RegistrySimulator
) -> None:
    cluster = await serve()
    good = cluster.image("good", SIGNER)
    keys = [f"{hung.host}/app{number}:v1" for number in range(200)]
    reply = await cluster.gatekeeper.ask(*keys, good)
    assert reply.admitted == {good}
    assert f"an answer of {hung.host}" in reply.system_error
    assert f"a free connection to {hung.host}" in reply.system_error
    assert cluster.misses() == 1
    again = await cluster.gatekeeper.ask(*keys, good)
    assert again.admitted == {good}
    assert cluster.misses() == 1


async def test_n22_a_registry_that_recovers_is_believed_at_once(serve: Serve, hung: RegistrySimulator) -> None:
    cluster = await serve(probe_seconds=0)
    cluster.registry.fault("*", hang())
    late = cluster.image("late", SIGNER)
    await cluster.gatekeeper.ask(late)
    cluster.registry.heal()
    probe, other = cluster.image("probe", SIGNER), cluster.image("other", SIGNER)
    told = (await cluster.gatekeeper.ask(probe)).system_error
    assert "so no answer waits for it; this one is looked at meanwhile" in told
    while cluster.executor.remembered(probe) is None:  # noqa: ASYNC110 - looking on from outside
        await asyncio.sleep(0.005)
    assert (await cluster.gatekeeper.ask(probe)).admitted == {probe}
    assert (await cluster.gatekeeper.ask(other)).admitted == {other}


async def test_n22_mutation_under_a_burst_is_answered_with_errors_and_never_a_value(
    serve: Serve, hung: RegistrySimulator
) -> None:
    cluster = await serve(probe_seconds=0)
    honest = cluster.image("good", SIGNER)
    await cluster.burst(hung.host, range(5), path=MUTATE_PATH)
    assert cluster.misses("mutate") == 5
    rest = await cluster.burst(hung.host, range(100), path=MUTATE_PATH)
    assert cluster.misses("mutate") == 5
    for reply in rest:
        (item,) = reply.items.values()
        assert "value" not in item
        assert item["error"].startswith("DEADLINE_EXCEEDED: ")
        assert reply.system_error == ""
    pinned = (await cluster.gatekeeper.ask(honest, path=MUTATE_PATH)).items[honest]["value"]
    assert pinned.startswith(f"{cluster.registry.host}/good@sha256:")


async def test_a_token_service_that_hangs_is_named(serve: Serve) -> None:
    cluster = await serve()
    cluster.registry.auth = "bearer"
    async with TokenServiceSimulator(cluster.registry.issuer) as service:
        service.fault("*", hang())
        cluster.registry.realm = str(service.url / "token")
        path = cluster.manifests / "all.yaml"
        entry = f'registries: [{{host: "{cluster.registry.host}", plainHttp: true, tokenHosts: ["{service.host}"]}}]'
        path.write_text(path.read_text().replace("useHttp: true", f"useHttp: true, {entry}"))
        await cluster.assembler.apply(load(cluster.manifests))
        told = (await cluster.gatekeeper.ask(cluster.image("app", SIGNER))).system_error
        assert f"waiting for the digest of its tag (an answer of {service.host}," in told
        assert "scope" not in told  # nothing of the URL


@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("/v2/*/referrers/*", "the list of referrers"),
        ("/v2/*/blobs/*", "an artifact for verifier-notation"),
    ],
)
async def test_a_list_or_an_artifact_that_hangs_is_named(serve: Serve, path: str, what: str) -> None:
    cluster = await serve()
    key = cluster.image("app", SIGNER)
    cluster.registry.fault(path, hang())
    told = (await cluster.gatekeeper.ask(key)).system_error
    assert f"not decided within 0.8 s, waiting for {what} (an answer of {cluster.registry.host}, " in told
