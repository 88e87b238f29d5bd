"""What Gatekeeper and a cluster are to a serving certificate that the provider keeps itself.

    ApiServer   the Kubernetes API with the chart's objects: a Secret, two Providers
    Caller      a process of Gatekeeper: trusts what the Provider's caBundle holds, some time after it was written
    load        four of them, calling replicas without a pause; none of the calls may fail

What does not belong here: replicas of the provider (integration/test_rotation.py, and as processes
integration/test_serve_rotation.py).
"""

from __future__ import annotations

import asyncio
import base64
import ssl
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from provider.gatekeeper.issuance import issue_authority, issue_pair
from provider.gatekeeper.keyring import Keyring, read_bundle, read_keyring
from provider.gatekeeper.rotation_plan import ProviderSpec, RotationSettings
from tests.simulators.gatekeeper import MUTATE_PATH, PKI, VERIFY_PATH, Gatekeeper
from tests.simulators.kubernetes import KubernetesSimulator

NAMESPACE, SECRET = "gatekeeper-system", "ratify-tls"
VERIFY, MUTATE = "ratify-provider", "ratify-mutation-provider"
URL = "https://ratify.gatekeeper-system:6001"
SPEC = ProviderSpec(URL + VERIFY_PATH, 5)
NOW = timedelta(0)
SETTINGS = RotationSettings(
    "ratify",
    NAMESPACE,
    SECRET,
    (VERIFY, MUTATE),
    more_names=("localhost",),
    settle=timedelta(seconds=1),
    retire=timedelta(seconds=2),
    absence=NOW,
    poll_seconds=60.0,  # what is noticed sooner is noticed by a watch
    pause_seconds=0.01,
)
OFTEN = replace(SETTINGS, poll_seconds=0.02)


class ApiServer(KubernetesSimulator):
    """A cluster with the chart's objects: an empty Secret, two Providers with a placeholder for a caBundle."""

    async def __aenter__(self) -> ApiServer:
        await super().__aenter__()
        self.secret(SECRET, NAMESPACE, {})
        self.provider(VERIFY, URL + VERIFY_PATH)
        self.provider(MUTATE, URL + MUTATE_PATH)
        return self

    def provider(self, name: str, url: str, bundle: bytes = b"placeholder") -> None:
        spec = {"url": url, "timeout": 5, "caBundle": base64.b64encode(bundle).decode()}
        kind = {"apiVersion": "externaldata.gatekeeper.sh/v1beta1", "kind": "Provider"}
        self.apply({**kind, "metadata": {"name": name}, "spec": spec})

    def bundle(self, name: str = VERIFY) -> bytes:
        """The caBundle, PEM."""
        return base64.b64decode(self.object("providers", name)["spec"]["caBundle"])

    def keyring(self) -> Keyring:
        return read_keyring(self.object("secrets", SECRET, NAMESPACE)["data"])

    def put(self, keyring: Keyring, **more: bytes) -> None:
        """Somebody writes the Secret."""
        self.secret(SECRET, NAMESPACE, {**keyring.entries(), **more})

    def ask_for_rotation(self) -> None:
        """kubectl annotate."""
        value = dict(self.object("secrets", SECRET, NAMESPACE))
        value["metadata"] = {**value["metadata"], "annotations": {"countersign/rotate": "now", "other": "stays"}}
        self.apply(value)

    @property
    def in_order(self) -> bool:
        """Every caBundle is what the Secret wants it to be."""
        wanted = frozenset(self.keyring().trusted)
        found = [self.object("providers", name)["spec"]["caBundle"] for name in (VERIFY, MUTATE)]
        return bool(wanted) and all(read_bundle(bundle) == wanted for bundle in found)


def made_before(*, left: timedelta, settings: RotationSettings = SETTINGS) -> Keyring:
    """An authority that has so much of its life left, and a fresh pair."""
    at = datetime.now(UTC)
    authority = issue_authority("ratify", at=at + left - settings.ca_lifetime, lifetime=settings.ca_lifetime)
    return Keyring(authority, issue_pair(authority, settings.names, at=at, lifetime=settings.leaf_lifetime))


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that is seen from outside only, but not for ever."""
    async with asyncio.timeout(100):
        while not condition():  # noqa: ASYNC110 - looking on from outside
            await asyncio.sleep(0.005)


async def cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()


def trusting(bundle: bytes, pki: PKI | None = None) -> ssl.SSLContext:
    """Gatekeeper's TLS settings with a caBundle."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if pki is None else pki.client_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=bundle.decode())
    return context


class Caller:
    """A process of Gatekeeper that learns of a changed caBundle some time after it was written.

    Args:
        server: where the Provider is.
        ports: of the replicas, called in turn.
        lag: seconds.
        reuse: keep connections, as Gatekeeper does from 3.22 on, until the caBundle changes.
        image: what is asked about; it is to be admitted.
    """

    def __init__(
        self, server: ApiServer, ports: Sequence[int], pki: PKI, *, lag: float, reuse: bool, image: str
    ) -> None:
        self._server, self._ports, self._pki, self._lag, self._reuse = server, ports, pki, lag, reuse
        self._image = image
        self._known: deque[tuple[float, bytes]] = deque([(0.0, server.bundle())])
        self.calls = 0
        self.failures: list[BaseException] = []

    def _bundle(self) -> bytes:
        now, current = time.monotonic(), self._server.bundle()
        if current != self._known[-1][1]:
            self._known.append((now, current))
        while len(self._known) > 1 and self._known[1][0] <= now - self._lag:
            self._known.popleft()
        return self._known[0][1]

    async def run(self) -> None:
        """Call until cancelled."""
        used = b""
        async with AsyncExitStack() as stack:
            gatekeepers: list[Gatekeeper] = []
            while True:
                bundle = self._bundle()
                if bundle != used:
                    await stack.aclose()
                    used, context = bundle, trusting(bundle, self._pki)
                    gatekeepers = [Gatekeeper(port, context, reuse=self._reuse) for port in self._ports]
                    for gatekeeper in gatekeepers:
                        await stack.enter_async_context(gatekeeper)
                for gatekeeper in gatekeepers:
                    try:
                        assert (await gatekeeper.ask(self._image)).admitted
                    except Exception as error:
                        self.failures.append(error)
                    self.calls += 1
                await asyncio.sleep(0.02)  # beyond that only the processor would be tested


@asynccontextmanager
async def load(
    server: ApiServer, ports: Sequence[int], pki: PKI, image: str = "r.test/a"
) -> AsyncIterator[list[Caller]]:
    """Four processes of Gatekeeper: quick and slow to learn, keeping and not keeping connections."""
    callers = [
        Caller(server, ports, pki, lag=lag, reuse=reuse, image=image) for lag in (0.0, 0.3) for reuse in (True, False)
    ]
    tasks = [asyncio.create_task(caller.run()) for caller in callers]
    try:
        yield callers
        seen = [caller.calls for caller in callers]
        await until(lambda: all(caller.calls > before + 2 for caller, before in zip(callers, seen, strict=True)))
    finally:
        for task in tasks:
            await cancelled(task)
    assert [repr(failure) for caller in callers for failure in caller.failures[:3]] == []
