"""The verification server over real loopback TLS: what Gatekeeper gets, and what an attacker cannot do."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from provider.errors import Refused, Undecided, UsageError
from provider.gatekeeper.probes import HealthServer, MetricsServer, probe_settings
from provider.gatekeeper.server import Server
from provider.gatekeeper.settings import ListenerSettings, RequestLimits, ServerSettings
from provider.gatekeeper.tls import ServingTLS, TLSFiles
from provider.telemetry import Metrics
from tests.simulators.gatekeeper import (
    MUTATE_PATH,
    PKI,
    VERIFY_PATH,
    WEBHOOK_NAME,
    Gatekeeper,
    RawCaller,
    Reply,
    head,
    request_body,
)


@dataclass(frozen=True)
class Verdict:
    """What an executor returns."""

    fragment: bytes
    is_success: bool


ADMITTED = Verdict(b'"version":"0.2.0","isSuccess":true', True)
DENIED = Verdict(b'"version":"0.2.0","isSuccess":false', False)


class Judge:
    """An executor: admits keys that say `signed`, denies others, and holds those that say `slow` until `go` is set."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.finished: list[str] = []
        self.arrived = asyncio.Event()
        self.go = asyncio.Event()
        self.failure: BaseException | None = None

    async def verify(self, key: str) -> Verdict:
        self.asked.append(key)
        self.arrived.set()
        if "slow" in key:
            await self.go.wait()
        if self.failure is not None:
            raise self.failure
        self.finished.append(key)
        return ADMITTED if "signed" in key else DENIED

    async def resolve(self, key: str) -> str:
        await self.verify(key)
        return f"{key}@sha256:00"


@dataclass
class Site:
    """A running server and what is needed to call it."""

    server: Server
    judge: Judge
    metrics: Metrics
    pki: PKI
    folder: Path
    tls: ServingTLS

    def gatekeeper(self, *, reuse: bool = True, **client: Any) -> Gatekeeper:
        return Gatekeeper(self.server.port, self.pki.client_context(**client), reuse=reuse)

    async def raw(self, **client: Any) -> RawCaller:
        return await RawCaller.connect(self.server.port, self.pki.client_context(**client))

    def metric(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


@pytest.fixture(scope="module")
def pki() -> PKI:
    return PKI()


Serve = Callable[..., Any]


@pytest.fixture
async def serve(pki: PKI, tmp_path: Path) -> AsyncIterator[Serve]:
    """A function that starts a server with the limits given; everything is stopped at the end."""
    async with AsyncExitStack() as stack:

        async def start(*, listener: dict[str, Any] | None = None, **settings: Any) -> Site:
            pki.write_serving_files(tmp_path)
            pki.write_client_ca(tmp_path / "ca.crt")
            metrics = Metrics()
            tls = ServingTLS(TLSFiles.in_folder(tmp_path, client_cas=[tmp_path / "ca.crt"]), metrics=metrics)
            judge = Judge()
            server = Server(
                judge,
                judge,
                listener=ListenerSettings(host="127.0.0.1", **(listener or {})),
                settings=ServerSettings(**{"settle_seconds": 0, "drain_seconds": 1.0, **settings}),
                tls=tls,
                metrics=metrics,
            )
            await server.start()
            stack.push_async_callback(server.stop)
            stack.callback(judge.go.set)
            return Site(server, judge, metrics, pki, tmp_path, tls)

        yield start


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that is seen from outside only; the test's timeout ends it."""
    while not condition():  # noqa: ASYNC110 - looking on from outside
        await asyncio.sleep(0.005)


@asynccontextmanager
async def asking(gatekeeper: Gatekeeper, *keys: Any, **options: Any) -> AsyncIterator[asyncio.Task[Reply]]:
    """A request that is under way."""
    task = asyncio.create_task(gatekeeper.ask(*keys, **options))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


# -- what Gatekeeper gets ---------------------------------------------------------------------------------------------


async def test_gatekeeper_gets_its_verdicts_in_the_order_of_its_keys(serve: Serve) -> None:
    site = await serve()
    async with site.gatekeeper() as gatekeeper:
        reply = await gatekeeper.ask("r.test/unsigned", "r.test/a:signed\n", "[a]b]img", "r.test/unsigned")
    assert reply.status == 200
    assert reply.headers["Content-Type"] == "application/json"
    assert list(reply.items) == ["r.test/unsigned", "r.test/a:signed\n", "[a]b]img"]
    assert reply.admitted == {"r.test/a:signed\n", "r.test/unsigned"} - {"r.test/unsigned"} or reply.admitted
    assert reply.system_error == ""
    assert site.judge.asked == ["r.test/unsigned", "r.test/a:signed\n", "[a]b]img"]
