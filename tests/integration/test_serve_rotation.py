"""`countersign serve --cluster --rotate-certs` as processes, against a Kubernetes API on loopback and under load.

The configuration comes from custom resources, the images from the demo's registry, the certificate from the provider.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.serialization import Encoding

from provider.demo.scenario import Demo, open_demo
from provider.gatekeeper.issuance import read_certificates
from provider.gatekeeper.keyring import Keyring
from tests.integration.test_cli import free_ports, start
from tests.simulators.gatekeeper import PKI, Gatekeeper
from tests.simulators.rotation import (
    MUTATE,
    NAMESPACE,
    SECRET,
    SETTINGS,
    VERIFY,
    ApiServer,
    load,
    made_before,
    trusting,
    until,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")  # that of the demo's registry

DAY = 86400
# An authority lives for two minutes here and is due when 30 s are left. Shorter, and a busy machine would be late.
DUE = timedelta(seconds=30)
SHORT = replace(SETTINGS, ca_lifetime=4 * DUE, ca_renew_before=DUE, leaf_lifetime=DUE, leaf_renew_before=DUE / 3)
ROTATE = (
    *("--rotate-certs", "--rotate-service", "ratify", "--rotate-secret", SECRET, "--rotate-name", "localhost"),
    *("--rotate-provider", VERIFY, "--rotate-provider", MUTATE),
)
SHORT_LIVED = (
    *("--rotate-ca-days", str(120 / DAY), "--rotate-leaf-days", str(30 / DAY), "--rotate-settle-seconds", "4"),
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def demo() -> AsyncIterator[Demo]:
    async with open_demo() as running:
        yield running


class Replica:
    """A running process of `serve`. What it logs is read along."""

    def __init__(self, process: asyncio.subprocess.Process, port: int, health: int) -> None:
        self.process = process
        self.port = port
        self.health = health
        self.log: list[dict[str, object]] = []
        self.raw = ""
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stderr is not None
        while line := (await self.process.stderr.readline()).decode():
            self.raw += line
            if line.startswith("{"):
                self.log.append(json.loads(line))

    def said(self, words: str) -> list[dict[str, object]]:
        return [event for event in self.log if words in str(event["msg"])]

    async def readiness(self) -> str:
        try:
            async with (
                aiohttp.ClientSession() as session,
                session.get(f"http://127.0.0.1:{self.health}/readyz") as response,
            ):
                return (await response.text()).strip()
        except aiohttp.ClientConnectionError:
            return ""

    async def until_ready(self, wanted: str = "ready") -> None:
        async with asyncio.timeout(60):
            while await self.readiness() != wanted:  # noqa: ASYNC110 - looking on from outside
                await asyncio.sleep(0.05)

    async def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        code = await self.process.wait()
        await self._reading
        return code


@asynccontextmanager
async def replica(server: ApiServer, home: Path, *options: str) -> AsyncIterator[Replica]:
    """A process with its own folder. It is killed if it has not ended by itself."""
    home.mkdir()
    port, health = free_ports(2)
    process = await start(
        *("serve", "--cluster", *ROTATE, "--host", "127.0.0.1", "--port", str(port), "--health-port", str(health)),
        *("--no-metrics", *options),
        KUBECONFIG=str(server.kubeconfig(home / "kubeconfig")),
        HOME=str(home),
        COUNTERSIGN_NAMESPACE=NAMESPACE,
    )
    running = Replica(process, port, health)
    try:
        yield running
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await running._reading


@asynccontextmanager
async def cluster(demo: Demo) -> AsyncIterator[ApiServer]:
    """A cluster with the demo's configuration as custom resources."""
    async with ApiServer() as server:
        for manifest in sorted(demo.config.iterdir()):
            server.apply(manifest.read_text())
        yield server


@pytest.mark.timeout(180)
async def test_n67_no_call_fails_while_two_processes_change_their_short_lived_authority(
    demo: Demo, tmp_path: Path
) -> None:
    """The authority comes due by itself, serving certificates meanwhile too; four callers that trust what caBundle
    holds, at once or a little later, never stop asking."""
    pki = PKI()
    pki.write_client_ca(client_ca := tmp_path / "client-ca.crt")
    image = demo.references["signed"]
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(cluster(demo))
        server.forbid("get", "secrets")
        replicas = [
            await stack.enter_async_context(
                replica(server, tmp_path / name, *SHORT_LIVED, "--client-ca-file", str(client_ca))
            )
            for name in ("one", "two")
        ]
        for each in replicas:
            await each.until_ready("not ready: there is no serving certificate yet")
        first = made_before(left=DUE + timedelta(seconds=3), settings=SHORT)
        server.put(first)
        server.permit()
        server.forbid("update", "secrets")  # so that it is not changed before anybody calls
        for each in replicas:
            await each.until_ready()
        async with load(server, [each.port for each in replicas], pki, image) as callers:
            await until(lambda: min(caller.calls for caller in callers) > 5)
            server.permit()
            async with asyncio.timeout(100):
                while server.keyring().authority == first.authority:
                    assert set(first.trusted) <= set(server.keyring().trusted)
                    await asyncio.sleep(0.1)
                second = server.keyring()
                assert second.old == first.trusted
                assert second.authority is not None
                for each in replicas:  # both serve under the new authority
                    while not await answers(each, server, pki, image, without=first):  # noqa: ASYNC110 - as above
                        await asyncio.sleep(0.1)
            assert min(caller.calls for caller in callers) > 10
        assert await asyncio.gather(*(each.stop() for each in replicas)) == [0, 0]
    assert "PRIVATE" not in "".join(each.raw for each in replicas)
    changes = [event for each in replicas for event in each.said("the Secret was written")]
    assert [event["step"] for event in changes].count("promote") >= 1


async def answers(each: Replica, server: ApiServer, pki: PKI, image: str, *, without: Keyring) -> bool:
    """Whether a caller is answered that trusts all of caBundle but former authorities."""
    bundle = b"".join(
        certificate.public_bytes(Encoding.PEM)
        for certificate in read_certificates(server.bundle())
        if certificate not in without.trusted
    )
    async with Gatekeeper(each.port, trusting(bundle, pki), reuse=False) as gatekeeper:
        try:
            return image in (await gatekeeper.ask(image)).admitted
        except aiohttp.ClientError:
            return False


async def test_a_process_waits_for_its_first_certificate_and_can_be_stopped_meanwhile(
    demo: Demo, tmp_path: Path
) -> None:
    async with cluster(demo) as server, replica(server, tmp_path / "home") as waiting:
        server.forbid("update", "secrets")
        await waiting.until_ready("not ready: there is no serving certificate yet")
        await until(lambda: bool(waiting.said("an action failed")))
        assert await waiting.stop() == 0
        assert waiting.said("stopping")
        assert "Traceback" not in waiting.raw


async def test_a_process_keeps_its_key_in_a_folder_that_only_it_can_read_and_removes_it(
    demo: Demo, tmp_path: Path
) -> None:
    async with cluster(demo) as server, replica(server, tmp_path / "home", "--log-level", "debug") as running:
        await running.until_ready()
        (event,) = running.said("serving certificate written")
        file = Path(str(event["file"]))
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
        key = file.read_text().partition("-----END PRIVATE KEY-----")[0].splitlines()[1]
        async with Gatekeeper(running.port, trusting(server.bundle())) as gatekeeper:
            assert (await gatekeeper.ask(demo.references["signed"])).admitted
        assert await running.stop() == 0
        assert not file.parent.exists()
        assert key not in running.raw


async def test_a_process_puts_its_key_where_it_is_told_to(demo: Demo, tmp_path: Path) -> None:
    folder = tmp_path / "tls"
    async with cluster(demo) as server, replica(server, tmp_path / "home", "--cert-dir", str(folder)) as running:
        await running.until_ready()
        assert os.listdir(folder) == ["serving.pem"]
        assert await running.stop() == 0


async def test_the_secret_of_cert_manager_ends_the_start_and_is_not_written(demo: Demo, tmp_path: Path) -> None:
    async with cluster(demo) as server:
        secret = dict(server.object("secrets", SECRET, NAMESPACE))
        secret["metadata"] = {**secret["metadata"], "annotations": {"cert-manager.io/certificate-name": "ratify"}}
        server.apply(secret)
        async with replica(server, tmp_path / "home") as refused:
            assert await refused.process.wait() == 2
        assert "TLS_INVALID" in refused.raw
        assert "cert-manager" in refused.raw
        assert "--cert-dir" in refused.raw
        assert "update secrets" not in server.verbs
