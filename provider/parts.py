"""The live parts of a snapshot: what they are made with, how they live on, are kept fresh and end.

Rules:
- A part that was made of the same recipe lives on in the next snapshot, with its connections, tokens and material.
- Key providers are loaded before a snapshot is used and, where they are told to, again and again. One that cannot be
  loaded now holds up nothing but the decisions that need it.
- A fault of one part ends neither the others nor their refreshing, and keeps no other part from its end.

What does not belong here: which class stands behind a type (components.py), when a part ends (assembly.py).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self, TypeVar

import structlog

from provider.cache import ByteBoundedCache
from provider.configuration.resources import Resource, ResourceSet
from provider.egress import ProxySettings
from provider.errors import ConfigurationError, CountersignError, Fault
from provider.interfaces import KeyManagementProvider
from provider.stores.oras import MAX_KEPT_BYTES, ObjectCache
from provider.telemetry import Metrics
from provider.verifiers.revocation_fetcher import RevocationTallies

if TYPE_CHECKING:
    from lightkube import AsyncClient

MAX_WAIT_SECONDS: Final = 600.0  # of the waits that key services ask for; without keys everything is denied meanwhile
JITTER: Final = 0.1  # of the time between two loads, so that replicas and providers do not ask all at once

_log = structlog.get_logger(__name__)

T = TypeVar("T")

Key = tuple[str, object]  # what a part is, and which of them


@dataclass(frozen=True, slots=True)
class Environment:
    """What live objects need beyond their resource.

    Attributes:
        proxies: proxies for outbound connections.
        docker_config: the Docker configuration that counts when a Store names none; it need not exist.
        objects: checked registry objects, shared by all stores.
        tallies: where look-ups of OCSP answers and CRLs are counted.
        trace_header: header that registries are told the trace id of a request in; None for none.
        count_answer: told the status of each answer of a registry, None for none.
        kubernetes: a client of the cluster's API, for what is in Secrets; None outside of a cluster.
    """

    proxies: ProxySettings = field(default_factory=ProxySettings)
    docker_config: Path | None = None
    objects: ObjectCache = field(default_factory=lambda: ByteBoundedCache(MAX_KEPT_BYTES))
    tallies: RevocationTallies = field(default_factory=RevocationTallies)
    trace_header: str | None = None
    count_answer: Callable[[int | None], None] | None = None
    kubernetes: AsyncClient | None = None

    @classmethod
    def from_variables(cls, variables: Mapping[str, str], *, kubernetes: AsyncClient | None = None) -> Self:
        """Read what environment variables say: those of proxies, DOCKER_CONFIG and HOME.

        Args:
            variables: the variables.
            kubernetes: see above.

        Raises:
            ConfigurationError: CONFIG_INVALID, for a proxy variable that is no URL.
        """
        home = variables.get("HOME")
        folder = variables.get("DOCKER_CONFIG") or (str(Path(home, ".docker")) if home else None)
        return cls(
            ProxySettings.from_environment(variables),
            Path(folder, "config.json") if folder else None,
            kubernetes=kubernetes,
        )


class Part:
    """A live object of a snapshot.

    Args:
        live: the object.
        recipe: what it was made of; while that is equal the object stays.
        refresh_seconds: how often a key provider is loaded again; None for never.
    """

    def __init__(self, live: Any, recipe: object, refresh_seconds: float | None = None) -> None:
        self.live = live
        self.recipe = recipe
        self._refresh_seconds = refresh_seconds
        self._loaded = True
        self._asked_to_wait = 0.0
        self._metrics: Metrics | None = None
        self._task: asyncio.Task[None] | None = None

    async def load(self, seconds: float) -> None:
        """Load a key provider for the first time; one that cannot be reached now is tried again later.

        Raises:
            ConfigurationError: what it is to load is wrong.
        """
        try:
            async with asyncio.timeout(seconds):
                await self._refresh()
        except TimeoutError:
            _log.warning("key provider not loaded", provider=self.live.name, reason=f"it took over {seconds:g} s")

    def start(self, retry_seconds: float, metrics: Metrics) -> None:
        """Keep a key provider fresh from now on."""
        if self._refresh_seconds is not None or not self._loaded:
            self._metrics = metrics
            self._show()
            self._task = asyncio.create_task(self._keep_fresh(retry_seconds))

    async def _keep_fresh(self, retry_seconds: float) -> None:
        while self._refresh_seconds is not None or not self._loaded:
            interval = self._refresh_seconds or retry_seconds
            pause = interval if self._loaded else min(interval, retry_seconds)
            pause *= random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - spreads load, protects nothing
            await asyncio.sleep(max(pause, self._asked_to_wait))
            try:
                await self._refresh()
            except ConfigurationError as error:
                _log.warning("key provider not loaded", provider=self.live.name, reason=str(error))

    async def _refresh(self) -> None:
        """Load now; only what an operator has to mend is raised."""
        self._loaded, self._asked_to_wait = False, 0.0
        try:
            await self.live.refresh()
            self._loaded = True
        except ConfigurationError:
            raise
        except CountersignError as error:
            self._asked_to_wait = min(getattr(error, "retry_after", None) or 0.0, MAX_WAIT_SECONDS)
            _log.warning("key provider not loaded", provider=self.live.name, reason=str(error))
        except Exception:  # noqa: BLE001 - a fault of one provider must end neither the others nor its refreshing
            _log.exception("key provider failed unexpectedly", provider=self.live.name)
        finally:
            self._show()

    def _show(self) -> None:
        """Show how old the material is, of a provider whose material ages."""
        if self._metrics is None:
            return
        try:
            material = self.live.material()
        except CountersignError:
            self._metrics.key_material_complete.labels(self.live.name).set(0)
            return
        if material.as_of is not None:
            self._metrics.key_material_seen.labels(self.live.name).set(material.as_of.timestamp())
            self._metrics.key_material_complete.labels(self.live.name).set(not material.missing)

    async def aclose(self) -> None:
        """End it; what goes wrong is told, so that it keeps no other part from its end."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._metrics is not None:
            self._metrics.forget_key_provider(self.live.name)
        try:
            if hasattr(self.live, "aclose"):
                await self.live.aclose()
        except Exception:  # noqa: BLE001 - see above
            _log.exception("not closed cleanly", part=type(self.live).__name__)


async def close(parts: Iterable[Part]) -> None:
    """End parts, given in the order that they were made in."""
    for part in reversed(tuple(parts)):  # what uses others was made after them
        await part.aclose()


class Loading(NamedTuple):
    """How a key provider is loaded: whom to blame when it cannot be, and how often again, None for never."""

    resource: Resource
    path: str
    refresh_seconds: float | None


class Making:
    """What one configuration is made of, on the parts of the one in use.

    Attributes:
        resources: the configuration.
        environment: what objects need beyond their resource.
        key_providers: what was built so far, by label of the resource.
        parts: everything that the new snapshot will use.
        new: those of `parts` that were made for it.
        to_load: those of `new` that have to be loaded.
        faults: what is wrong with the configuration.
    """

    def __init__(self, resources: ResourceSet, environment: Environment, earlier: Mapping[Key, Part]) -> None:
        self.resources = resources
        self.environment = environment
        self.key_providers: dict[str, KeyManagementProvider] = {}
        self.parts: dict[Key, Part] = {}
        self.new: list[Part] = []
        self.to_load: list[tuple[Part, Loading]] = []
        self.faults: list[Fault] = []
        self._earlier = earlier

    def take(self, key: Key, recipe: object, make: Callable[[], T], *, load: Loading | None = None) -> T:
        """An object of the configuration in use, or a new one.

        Args:
            key: what it is, and which.
            recipe: what it is made of.
            make: makes it.
            load: for a key provider that has to be loaded.
        """
        part = self.parts.get(key) or self._earlier.get(key)
        if part is None or part.recipe != recipe:
            part = Part(make(), recipe, load.refresh_seconds if load else None)
            self.new.append(part)
            if load:
                self.to_load.append((part, load))
        self.parts[key] = part
        live: T = part.live
        return live

    def retired(self) -> tuple[Part, ...]:
        """The earlier parts that the new snapshot does without."""
        kept = {id(part) for part in self.parts.values()}
        return tuple(part for part in self._earlier.values() if id(part) not in kept)

    def fault(self, resource: Resource, path: str, message: str) -> None:
        """Note what is wrong."""
        self.faults.append(Fault(resource.source, resource.label, path, message))
