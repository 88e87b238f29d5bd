"""A replica of the provider that keeps its serving certificate itself, in the process of a test."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp

from provider.gatekeeper.rotation import CertificateRotation
from provider.gatekeeper.rotation_plan import RotationSettings
from provider.gatekeeper.server import Server
from provider.gatekeeper.settings import ListenerSettings, ServerSettings
from provider.gatekeeper.tls import ServingTLS, TLSFiles
from provider.telemetry import Metrics
from tests.integration.test_tls import Judge
from tests.simulators.gatekeeper import PKI, Gatekeeper
from tests.simulators.rotation import (
    SETTINGS,
    ApiServer,
    cancelled,
    trusting,
)


class Replica:
    """A process of the provider, while it is entered."""

    def __init__(self, server: ApiServer, folder: Path, settings: RotationSettings = SETTINGS, **more: Any) -> None:
        self.server = server
        self.metrics = Metrics()
        self.pki: PKI | None = more.pop("pki", None)
        self.client = server.client()
        self.rotation = CertificateRotation(self.client, settings, folder=folder, metrics=self.metrics, **more)
        self.client_ca = folder / "client-ca.crt"
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Replica:
        self._stack.push_async_callback(self.client.close)
        try:
            await self.rotation.prepare()
            client_cas: tuple[Path, ...] = ()
            if self.pki is not None:
                self.pki.write_client_ca(self.client_ca)
                client_cas = (self.client_ca,)
            self.tls = ServingTLS(TLSFiles(self.rotation.file, self.rotation.file, client_cas), metrics=self.metrics)
            self.http = Server(
                Judge(),
                Judge(),
                listener=ListenerSettings(host="127.0.0.1"),
                settings=ServerSettings(settle_seconds=0),
                tls=self.tls,
                metrics=self.metrics,
            )
            await self.http.start()
            self._stack.push_async_callback(self.http.stop)
            task = asyncio.create_task(self.rotation.run(self.tls.reload))
            self._stack.push_async_callback(cancelled, task)
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    @property
    def port(self) -> int:
        return self.http.port

    def metric(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    def count(self, action: str, outcome: str) -> float:
        return self.metric("countersign_certificate_rotation_total", action=action, outcome=outcome)

    @property
    def served(self) -> bytes:
        """The PEM file without its key."""
        return b"-----BEGIN CERT" + self.rotation.file.read_bytes().partition(b"-----BEGIN CERT")[2]

    async def answers(self, bundle: bytes) -> bool:
        """Whether a caller that trusts a caBundle gets an answer."""
        async with Gatekeeper(self.port, trusting(bundle)) as gatekeeper:
            try:
                return bool((await gatekeeper.ask("r.test/a")).admitted)
            except (aiohttp.ClientError, OSError):
                return False
