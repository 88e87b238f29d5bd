"""From a configuration to the snapshot that decides, and from one snapshot to the next.

    ResourceSet -> stores, key providers, verifiers, policies -> scopes -> executor.Snapshot

Rules:
- A new snapshot is complete before it is used; one that cannot be built leaves everything as it was, and every fault is
  told.
- What did not change lives on: a store keeps its connections and tokens, a key provider its material, so that a change
  of one resource makes nothing else cold. What no snapshot uses any more is closed after a time of grace, because
  decisions that began with it may still be under way.

What does not belong here: reading resources (configuration/), which class stands behind a type (components.py), how a
live object is kept fresh (parts.py), deciding (executor.py).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Final, TypeVar

import structlog

from provider.components import KEY_PROVIDERS, POLICIES, REVOCATION, STAND_INS, STORES, VERIFIERS
from provider.configuration.resources import POLICY_NAME, Component, Resource, ResourceSet, Unusable
from provider.errors import ConfigurationError
from provider.executor import Scope, Snapshot
from provider.figures import Figure
from provider.interfaces import KeyManagementProvider, PolicyEnforcer, Store, Verifier
from provider.parts import Environment, Key, Loading, Making, Part, close
from provider.stores.oras import OrasStore
from provider.telemetry import Metrics
from provider.verifiers.notation import NotationVerifier

GRACE_SECONDS: Final = 60.0  # twice what the executor gives one verification in the background
LOAD_SECONDS: Final = 10.0  # how long a key service may hold up a new configuration
RETRY_SECONDS: Final = 30.0  # until a key provider that failed is asked again
MAX_SHOWN_ANCHORS: Final = 100  # pairs of key provider and trust store in the metrics; those that end first

_log = structlog.get_logger(__name__)

T = TypeVar("T")


class Assembler:
    """Turns each good configuration into a snapshot and looks after the objects in it. To be closed with `aclose`.

    Args:
        publish: puts a snapshot to use, as Executor.use does.
        environment: what objects need beyond their resource.
        grace_seconds: how long objects that are no more used live on; longer than any decision may take.
        load_seconds: the most that loading a key provider may hold up a snapshot.
        retry_seconds: time until a key provider that could not be loaded is asked again.
        metrics: where the age of key material is shown; None for nowhere.
    """

    def __init__(
        self,
        publish: Callable[[Snapshot], None],
        *,
        environment: Environment | None = None,
        metrics: Metrics | None = None,
        grace_seconds: float = GRACE_SECONDS,
        load_seconds: float = LOAD_SECONDS,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        self._publish = publish
        self._environment = environment or Environment()
        self._metrics = metrics or Metrics()
        self._grace_seconds = grace_seconds
        self._load_seconds = load_seconds
        self._retry_seconds = retry_seconds
        self._generation = 0
        self._parts: dict[Key, Part] = {}
        self._scopes: Mapping[str, Scope] = {}
        self._retiring: set[asyncio.Task[None]] = set()
        self._closing = asyncio.Event()
        self._turn = asyncio.Lock()

    @property
    def key_providers(self) -> Mapping[str, KeyManagementProvider]:
        """The key providers in use, by label of their resource: for status and metrics."""
        return {
            str(name): part.live for (what, name), part in self._parts.items() if what == Component.KEY_PROVIDER.value
        }

    def figures(self) -> Iterator[Figure]:
        """What is kept of registries and authorities, and which certificates and CRLs end first."""
        environment = self._environment
        yield from environment.objects.figures("objects")
        tally = environment.objects.tally
        yield from tally.figures("objects")
        yield Figure("ratify_blob_cache_count", tally.hits, ("true",))
        yield Figure("ratify_blob_cache_count", tally.misses, ("false",))
        yield from environment.tallies.figures()
        for part in self._parts.values():
            if isinstance(part.live, OrasStore):
                yield from part.live.figures()
        fetchers = [part.live for (what, _), part in self._parts.items() if what == REVOCATION]
        for fetcher in fetchers:
            yield from fetcher.figures()
        ends = [end for end in (fetcher.first_end() for fetcher in fetchers) if end is not None]
        if ends:
            yield Figure("countersign_crl_next_update_seconds", min(ends))
        verifiers = (verifier for scope in self._scopes.values() for verifier in scope.verifiers)
        yield from anchor_figures(verifiers, time.time())

    async def apply(self, resources: ResourceSet) -> Snapshot:
        """Build the objects of a configuration and put them to use.

        Args:
            resources: a consistent set, as configuration.manifests and configuration.cluster give.

        Returns:
            The snapshot, now in use.

        Raises:
            ConfigurationError: CONFIG_INVALID, with every fault, each with the label of its resource; what was in use
                still is.
        """
        async with self._turn:
            attempt = _Attempt(resources, self._environment, self._parts)
            try:
                await attempt.build(self._load_seconds)
                scopes = attempt.scopes()
            except BaseException:
                await close(attempt.new)
                raise
            self._generation += 1
            retired = attempt.retired()
            self._parts, self._scopes = attempt.parts, scopes
            snapshot = Snapshot(self._generation, scopes)
            self._publish(snapshot)
            for part in attempt.new:
                part.start(self._retry_seconds, self._metrics)
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
            self._closing.set()
            await asyncio.gather(*self._retiring)
            parts, self._parts = self._parts, {}
            await close(parts.values())

    def _retire(self, parts: Collection[Part]) -> None:
        if parts:
            task = asyncio.create_task(self._close_later(parts))
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)

    async def _close_later(self, parts: Collection[Part]) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._grace_seconds):
                await self._closing.wait()
        await close(parts)


def anchor_figures(verifiers: Iterable[Verifier], now: float) -> Iterator[Figure]:
    """When the first certificate of each key provider in each trust store ends.

    One that has ended already says nothing any more, unless there is no other; old roots are kept for old signatures.
    The names are an operator's or a tenant's, so their number is limited.
    """
    ends: dict[tuple[str, str], list[float]] = {}
    for verifier in verifiers:
        if isinstance(verifier, NotationVerifier):
            for provider, store, certificate in verifier.trust_anchors():
                ends.setdefault((provider, store), []).append(certificate.not_after.timestamp())
    first = {labels: min((end for end in found if end > now), default=max(found)) for labels, found in ends.items()}
    for labels, end in sorted(first.items(), key=lambda item: item[1])[:MAX_SHOWN_ANCHORS]:
        yield Figure("countersign_trust_anchor_not_after_seconds", end, labels)


class _Attempt(Making):
    """One attempt to build a configuration."""

    def __init__(self, resources: ResourceSet, environment: Environment, earlier: Mapping[Key, Part]) -> None:
        super().__init__(resources, environment, earlier)
        self._stores: dict[str, Store] = {}
        self._verifiers: dict[str, Verifier] = {}
        self._policies: dict[str, PolicyEnforcer] = {}

    async def build(self, load_seconds: float) -> None:
        """Make everything.

        Raises:
            ConfigurationError: CONFIG_INVALID, with every fault.
        """
        self._each(self.resources.stores, STORES, self._stores)
        self._each(self.resources.key_providers, KEY_PROVIDERS, self.key_providers)
        self._each(self.resources.verifiers, VERIFIERS, self._verifiers)
        self._each(self.resources.policies, POLICIES, self._policies)
        await asyncio.gather(*(self._load(part, loading, load_seconds) for part, loading in self.to_load))
        if self.faults:
            more = f" (and {len(self.faults) - 1} more)" if len(self.faults) > 1 else ""
            raise ConfigurationError("CONFIG_INVALID", f"{self.faults[0]}{more}", faults=self.faults)

    def scopes(self) -> dict[str, Scope]:
        """The scopes that have all they need, the cluster's under the empty name.

        Raises:
            ConfigurationError: CONFIG_INVALID, when there is none and the set does not say that this is so.
        """
        scopes = {}
        for namespace in ("", *self.resources.namespaces):
            stores, verifiers, policies = (
                self.resources.in_scope(component, namespace)
                for component in (Component.STORE, Component.VERIFIER, Component.POLICY)
            )
            if stores and verifiers and policies:
                scopes[namespace] = Scope(
                    tuple(self._stores[store.label] for store in stores),
                    tuple(self._verifiers[verifier.label] for verifier in verifiers),
                    self._policies[_deciding(policies).label],
                )
        if not scopes and not self.resources.may_be_incomplete:
            raise ConfigurationError("CONFIG_INVALID", "no Store, Verifier and Policy decide together")
        return scopes

    def _each(self, resources: Iterable[Resource], makers: Mapping[str, Callable[..., T]], made: dict[str, T]) -> None:
        for resource in resources:
            if isinstance(resource.parameters, Unusable):
                made[resource.label] = STAND_INS[resource.component](resource, resource.parameters)
                continue
            try:
                made[resource.label] = makers[resource.type](self, resource, resource.parameters)
            except ConfigurationError as error:
                self.fault(resource, "spec.parameters", error.detail)
            except ValueError as error:  # settings refuse illegal values; whatever the models let through is no crash
                self.fault(resource, "spec.parameters", str(error))
            except Exception:  # noqa: BLE001 - a resource that nobody foresaw must not end the process, which decides for all
                _log.exception("building a resource failed unexpectedly", resource=resource.label)
                self.fault(resource, "spec.parameters", "cannot be built; the log says why")

    async def _load(self, part: Part, loading: Loading, seconds: float) -> None:
        try:
            await part.load(seconds)
        except ConfigurationError as error:
            for problem in error.faults or (error.detail,):
                self.fault(loading.resource, loading.path, str(problem))


def _deciding(policies: Sequence[Resource]) -> Resource:
    """The Policy that counts: the one of the one name that a Policy may have; else whichever says why it cannot."""
    return next((policy for policy in policies if policy.name == POLICY_NAME), policies[0])
