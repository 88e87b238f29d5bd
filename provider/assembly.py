"""From a configuration to live objects: the only place that knows which class stands behind a `type:`.

    ResourceSet -> stores, key providers, verifiers, policies -> scopes -> executor.Snapshot

Rules:
- A type is one line in a table here and one in configuration/resources.py. Nothing registers itself.
- A new snapshot is complete before it is used; one that cannot be built leaves everything as it was, and every fault is
  told.
- What did not change lives on: a store keeps its connections and tokens, a key provider its material, so that a change
  of one resource makes nothing else cold. What no snapshot uses any more is closed after a time of grace, because
  decisions that began with it may still be under way.
- Key providers are loaded before a snapshot is used and, where they are told to, again and again. One that cannot be
  loaded now holds up nothing but the decisions that need it.

What does not belong here: reading resources (configuration/), deciding (executor.py).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import structlog

from provider.cache import ByteBoundedCache
from provider.configuration.key_providers import InlineParameters
from provider.configuration.policies import ConfigPolicyParameters
from provider.configuration.resources import Component, Resource, ResourceSet
from provider.configuration.stores import (
    CredentialParameters,
    DockerConfigParameters,
    OciLayoutParameters,
    OrasParameters,
    RegistryParameters,
)
from provider.configuration.verifiers import NotationParameters, RevocationParameters
from provider.credentials.docker_config import DockerConfigCredentials
from provider.egress import ProxySettings
from provider.errors import ConfigurationError, CountersignError, Fault, Undecided
from provider.executor import Scope, Snapshot
from provider.interfaces import CredentialProvider, KeyManagementProvider, PolicyEnforcer, Store, Verifier
from provider.key_management.directory import DirectoryKeyManagementProvider
from provider.key_management.inline import InlineKeyManagementProvider
from provider.notation.trust_policy import StoreType
from provider.policy import ConfigPolicy, Rule
from provider.stores.oci_layout import OciLayoutStore
from provider.stores.oras import MAX_KEPT_BYTES, ObjectCache, OrasStore
from provider.stores.profile import OrasStoreSettings, RegistryProfile
from provider.verifiers.notation import NotationVerifier
from provider.verifiers.revocation_fetcher import RevocationFetcher

GRACE_SECONDS: Final = 60.0  # twice what the executor gives one verification in the background
FOLDER_REFRESH_SECONDS: Final = 60.0  # how often folders of certificates are read again, as quick as kubelet swaps them

_log = structlog.get_logger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Environment:
    """What live objects need beyond their resource.

    Attributes:
        proxies: proxies for outbound connections.
        docker_config: the Docker configuration that counts when a Store names none; it need not exist.
        objects: checked registry objects, shared by all stores.
    """

    proxies: ProxySettings = field(default_factory=ProxySettings)
    docker_config: Path | None = None
    objects: ObjectCache = field(default_factory=lambda: ByteBoundedCache(MAX_KEPT_BYTES))

    @classmethod
    def from_variables(cls, variables: Mapping[str, str]) -> Self:
        """Read what environment variables say: those of proxies, DOCKER_CONFIG and HOME.

        Raises:
            ConfigurationError: CONFIG_INVALID, for a proxy variable that is no URL.
        """
        home = variables.get("HOME")
        folder = variables.get("DOCKER_CONFIG") or (str(Path(home, ".docker")) if home else None)
        return cls(ProxySettings.from_environment(variables), Path(folder, "config.json") if folder else None)


class Assembler:
    """Turns each good configuration into a snapshot and looks after the objects in it. To be closed with `aclose`.

    Args:
        publish: puts a snapshot to use, as Executor.use does.
        environment: what objects need beyond their resource.
        grace_seconds: how long objects that are no more used live on; longer than any decision may take.
        load_seconds: the most that loading a key provider may hold up a snapshot.
        retry_seconds: time until a key provider that could not be loaded is asked again.
    """

    def __init__(
        self,
        publish: Callable[[Snapshot], None],
        *,
        environment: Environment | None = None,
        grace_seconds: float = GRACE_SECONDS,
        load_seconds: float = LOAD_SECONDS,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        self._publish = publish
        self._environment = environment or Environment()
        self._grace_seconds = grace_seconds
        self._load_seconds = load_seconds
        self._retry_seconds = retry_seconds
        self._generation = 0
        self._parts: dict[Hashable, _Part] = {}
        self._tasks: dict[asyncio.Task[None], tuple[_Part, ...]] = {}  # parts that wait for their end, by who waits
        self._turn = asyncio.Lock()

    @property
    def key_providers(self) -> Mapping[str, KeyManagementProvider]:
        """The key providers in use, by label of their resource: for status and metrics."""
        return {
            key: part.live for key, part in self._parts.items() if isinstance(key, str) and part.refresh is not None
        }

    async def apply(self, resources: ResourceSet) -> Snapshot:
        """Build the objects of a configuration and put them to use.

        Args:
            resources: a consistent set, as configuration.manifests gives.

        Returns:
            The snapshot, now in use.

        Raises:
            ConfigurationError: CONFIG_INVALID, with every fault; what was in use still is.
        """
        async with self._turn:
            attempt = _Attempt(resources, self._environment, self._parts)
            try:
                await attempt.build(self._load_seconds)
                scopes = attempt.scopes()
            except BaseException:
                await _close(attempt.new)
                raise
            self._generation += 1
            retired = tuple(part for part in self._parts.values() if not attempt.keeps(part))
            self._parts = attempt.parts
            snapshot = Snapshot(self._generation, scopes)
            self._publish(snapshot)
            for part in attempt.new:
                part.keep_fresh(self._retry_seconds)
            self._retire(retired)
            _log.info(
                "configuration in use",
                generation=snapshot.generation,
                digest=resources.digest or None,
                scopes=[name or "cluster" for name in scopes],
            )
            return snapshot

    async def aclose(self) -> None:
        """Close everything at once, what waits for its end too. What is under way fails."""
        async with self._turn:
            waiting, parts = tuple(self._tasks), tuple(self._parts.values())
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            self._parts = {}
            await _close((*parts, *(part for task in waiting for part in self._tasks.pop(task, ()))))

    def _retire(self, parts: tuple[_Part, ...]) -> None:
        if parts:
            task = asyncio.create_task(self._close_later(parts))
            self._tasks[task] = parts

    async def _close_later(self, parts: tuple[_Part, ...]) -> None:
        await asyncio.sleep(self._grace_seconds)
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine that runs is a task's
        del self._tasks[task]  # from here on the end is this task's own affair
        await _close(parts)
