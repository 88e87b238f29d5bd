"""One process of the provider, as far as its configuration goes, on a simulated cluster: what the tests of that share.

The client, the assembly and the executor are the real ones.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import trustme
from lightkube import AsyncClient

from provider.assembly import Assembler
from provider.configuration.cluster import ClusterConfiguration, ClusterSettings
from provider.configuration.reflector import FollowSettings
from provider.configuration.resources import KINDS, ResourceSet
from provider.configuration.statuses import StatusSettings
from provider.errors import ConfigurationError, Undecided
from provider.executor import Executor
from provider.interfaces import KeyManagementProvider
from tests.integration.test_tls import until
from tests.simulators.kubernetes import KubernetesSimulator
from tests.unit.configuration.objects import Object, one

AT = datetime(2026, 11, 23, tzinfo=UTC)
IMAGE = "registry.example.com/app:signed"
QUICK = ClusterSettings(
    settle=0.002,
    settle_at_most=0.05,
    retry=0.05,
    follow=FollowSettings(answer=5.0, watch=60.0, idle=30.0, backoff=0.01, max_backoff=0.05),
    status=StatusSettings(look=0.05, jitter=0.005, answer=1.0),
)
PLURALS = tuple(entry.plural for entry in KINDS.values())
BAD_LEVEL = ("level: strict", "level: strickt")


def bare(value: Object) -> Object:
    """An object as somebody applies it."""
    value = copy.deepcopy(value)
    for name in ("uid", "generation", "resourceVersion"):
        value["metadata"].pop(name)
    return value


def stranger() -> Object:
    """The good key provider, with somebody else's root."""
    value = bare(one("KeyManagementProvider"))
    value["spec"]["parameters"]["value"] = trustme.CA().cert_pem.bytes().decode()
    return value


@dataclass
class Replica:
    """One process of the provider, as far as its configuration goes."""

    cluster: ClusterConfiguration
    executor: Executor
    assembler: Assembler
    sets: list[ResourceSet] = field(default_factory=list)
    reports: list[str] = field(default_factory=list)
    refuse: Callable[[ResourceSet], ConfigurationError | None] = lambda _: None

    async def follow(self) -> None:
        """What serve does."""
        sets = self.cluster.watch()
        outcome: ConfigurationError | None = None
        try:
            while True:
                resources = await sets.asend(outcome)
                outcome = self.refuse(resources)
                if outcome is None:
                    try:
                        await self.assembler.apply(resources)
                    except ConfigurationError as error:
                        outcome = error
                    else:
                        self.sets.append(resources)
        finally:
            await sets.aclose()

    def labels(self) -> set[str]:
        """What is in force."""
        return {resource.label for resource in self.sets[-1]} if self.sets else set()

    def unusable(self) -> set[str]:
        return {resource.label for resource in self.sets[-1] if not resource.is_usable}

    async def ask(self, key: str = IMAGE) -> str:
        """`admitted`, or the code of the denial."""
        try:
            return (await self.executor.verify(key)).verdict.code or "admitted"
        except Undecided as error:
            return error.code


@asynccontextmanager
async def replica(
    server: KubernetesSimulator,
    *,
    settings: ClusterSettings = QUICK,
    refuse: Callable[[ResourceSet], ConfigurationError | None] = lambda _: None,
    key_providers: Callable[[], Mapping[str, KeyManagementProvider]] | None = None,
    client: AsyncClient | None = None,
) -> AsyncIterator[Replica]:
    reports: list[str] = []
    client = client or server.client()
    cluster = ClusterConfiguration(
        client, lambda error: reports.extend(map(str, error.faults or (error,))), settings=settings, trust_env=False
    )
    executor = Executor(clock=lambda: AT)
    made = Replica(cluster, executor, Assembler(executor.use), reports=reports, refuse=refuse)
    tasks = [
        asyncio.create_task(made.follow()),
        asyncio.create_task(cluster.write_status(key_providers or (lambda: made.assembler.key_providers))),
    ]
    try:
        yield made
        assert not any(task.done() for task in tasks), "nothing may end it"
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await executor.aclose()
        await made.assembler.aclose()
        await client.close()


def events(logs: list[Any], event: str) -> list[tuple[str, str]]:
    return [(line.get("kind", ""), line.get("reason", "")) for line in logs if line["event"] == event]


UNWATCHED = "resources cannot be watched, what is known stays in force"
ABSENT = "resources cannot be watched, there are none"
AGAIN = "resources are watched again"


async def watched(server: KubernetesSimulator) -> None:
    """Until there is a watch of every kind."""
    await until(lambda: server.watches == len(KINDS))


def deafen(server: KubernetesSimulator, plural: str) -> Callable[[], None]:
    """The watch of a plural hears nothing from now on, and its stream stays open. Returns what ends it."""
    [watcher] = [one for one in server._watchers if one.plural == plural]
    server._watchers.discard(watcher)
    return lambda: watcher.queue.put_nowait(None)
