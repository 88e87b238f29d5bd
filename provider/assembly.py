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
- A resource that cannot be used (resources.Unusable) becomes a stand-in that denies what depends on it.

What does not belong here: reading resources (configuration/), deciding (executor.py).
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self, TypeVar

import structlog

from provider.azure.identity import AzureIdentity, ManagedIdentity, WorkloadIdentity
from provider.cache import ByteBoundedCache
from provider.configuration.key_providers import AzureKeyVaultParameters, InlineParameters
from provider.configuration.policies import ConfigPolicyParameters
from provider.configuration.resources import POLICY_NAME, Component, Resource, ResourceSet, Unusable
from provider.configuration.sections import join
from provider.configuration.stores import (
    AwsEcrParameters,
    AzureManagedIdentityParameters,
    AzureWorkloadIdentityParameters,
    CredentialParameters,
    DockerConfigParameters,
    GoogleWorkloadIdentityParameters,
    KubernetesSecretsParameters,
    OciLayoutParameters,
    OrasParameters,
    RegistryParameters,
)
from provider.configuration.verifiers import NotationParameters, RevocationParameters
from provider.credentials.aws import ElasticContainerRegistryCredentials
from provider.credentials.azure import AzureContainerRegistryCredentials, RegistryHosts
from provider.credentials.chain import CredentialChain
from provider.credentials.docker_config import DockerConfigCredentials
from provider.credentials.google import ArtifactRegistryCredentials
from provider.egress import ProxySettings
from provider.errors import ConfigurationError, CountersignError, Fault
from provider.executor import Scope, Snapshot
from provider.figures import Figure
from provider.interfaces import CredentialProvider, KeyManagementProvider, PolicyEnforcer, Store, Verifier
from provider.key_management.azure_key_vault import AzureKeyVaultProvider, AzureKeyVaultSettings
from provider.key_management.directory import DirectoryKeyManagementProvider
from provider.key_management.inline import InlineKeyManagementProvider
from provider.key_management.key_vault_access import VaultAccess
from provider.notation.trust_policy import StoreType
from provider.policy import ConfigPolicy, Rule
from provider.stores.oci_layout import OciLayoutStore
from provider.stores.oras import MAX_KEPT_BYTES, ObjectCache, OrasStore
from provider.stores.profile import OrasStoreSettings, RegistryProfile
from provider.telemetry import Metrics
from provider.unusable import ANY_TYPE, UnusableKeyManagementProvider, UnusablePolicy, UnusableStore, UnusableVerifier
from provider.verifiers.notation import NotationVerifier
from provider.verifiers.revocation_fetcher import RevocationFetcher, RevocationSettings, RevocationTallies

if TYPE_CHECKING:
    from lightkube import AsyncClient

GRACE_SECONDS: Final = 60.0  # twice what the executor gives one verification in the background
LOAD_SECONDS: Final = 10.0  # how long a key service may hold up a new configuration
RETRY_SECONDS: Final = 30.0  # until a key provider that failed is asked again
MAX_WAIT_SECONDS: Final = 600.0  # of the waits that key services ask for; without keys everything is denied meanwhile
JITTER: Final = 0.1  # of the time between two loads, so that replicas and providers do not ask all at once
MAX_SHOWN_ANCHORS: Final = 100  # pairs of key provider and trust store in the metrics; those that end first
REVOCATION: Final = "revocation"  # what a fetcher is among the parts
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
        self._parts: dict[_Key, _Part] = {}
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
                await _close(attempt.new)
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
            await _close(parts.values())

    def _retire(self, parts: Collection[_Part]) -> None:
        if parts:
            task = asyncio.create_task(self._close_later(parts))
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)

    async def _close_later(self, parts: Collection[_Part]) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._grace_seconds):
                await self._closing.wait()
        await _close(parts)


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


# -- parts ------------------------------------------------------------------------------------------------------------

_Key = tuple[str, object]  # what a part is, and which of them


class _Part:
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


async def _close(parts: Iterable[_Part]) -> None:
    for part in reversed(tuple(parts)):  # what uses others was made after them
        await part.aclose()


class Loading(NamedTuple):
    """How a key provider is loaded: whom to blame when it cannot be, and how often again, None for never."""

    resource: Resource
    path: str
    refresh_seconds: float | None


class _Attempt:
    """One attempt to build a configuration, on the parts of the one in use.

    Attributes:
        resources: the configuration.
        environment: what objects need beyond their resource.
        key_providers: what was built so far, by label of the resource.
        parts: everything that the new snapshot will use.
        new: those of `parts` that were made for it.
    """

    def __init__(self, resources: ResourceSet, environment: Environment, earlier: Mapping[_Key, _Part]) -> None:
        self.resources = resources
        self.environment = environment
        self.key_providers: dict[str, KeyManagementProvider] = {}
        self.parts: dict[_Key, _Part] = {}
        self.new: list[_Part] = []
        self._earlier = earlier
        self._stores: dict[str, Store] = {}
        self._verifiers: dict[str, Verifier] = {}
        self._policies: dict[str, PolicyEnforcer] = {}
        self._to_load: list[tuple[_Part, Loading]] = []
        self._faults: list[Fault] = []

    def take(self, key: _Key, recipe: object, make: Callable[[], T], *, load: Loading | None = None) -> T:
        """An object of the configuration in use, or a new one.

        Args:
            key: what it is, and which.
            recipe: what it is made of.
            make: makes it.
            load: for a key provider that has to be loaded.
        """
        part = self.parts.get(key) or self._earlier.get(key)
        if part is None or part.recipe != recipe:
            part = _Part(make(), recipe, load.refresh_seconds if load else None)
            self.new.append(part)
            if load:
                self._to_load.append((part, load))
        self.parts[key] = part
        live: T = part.live
        return live

    def retired(self) -> tuple[_Part, ...]:
        """The earlier parts that the new snapshot does without."""
        kept = {id(part) for part in self.parts.values()}
        return tuple(part for part in self._earlier.values() if id(part) not in kept)

    def fault(self, resource: Resource, path: str, message: str) -> None:
        """Note what is wrong."""
        self._faults.append(Fault(resource.source, resource.label, path, message))

    async def build(self, load_seconds: float) -> None:
        """Make everything.

        Raises:
            ConfigurationError: CONFIG_INVALID, with every fault.
        """
        self._each(self.resources.stores, STORES, self._stores)
        self._each(self.resources.key_providers, KEY_PROVIDERS, self.key_providers)
        self._each(self.resources.verifiers, VERIFIERS, self._verifiers)
        self._each(self.resources.policies, POLICIES, self._policies)
        await asyncio.gather(*(self._load(part, loading, load_seconds) for part, loading in self._to_load))
        if self._faults:
            more = f" (and {len(self._faults) - 1} more)" if len(self._faults) > 1 else ""
            raise ConfigurationError("CONFIG_INVALID", f"{self._faults[0]}{more}", faults=self._faults)

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

    async def _load(self, part: _Part, loading: Loading, seconds: float) -> None:
        try:
            await part.load(seconds)
        except ConfigurationError as error:
            for problem in error.faults or (error.detail,):
                self.fault(loading.resource, loading.path, str(problem))


def _deciding(policies: Sequence[Resource]) -> Resource:
    """The Policy that counts: the one of the one name that a Policy may have; else whichever says why it cannot."""
    return next((policy for policy in policies if policy.name == POLICY_NAME), policies[0])


# -- stores -----------------------------------------------------------------------------------------------------------


def _oras(attempt: _Attempt, resource: Resource, parameters: OrasParameters) -> Store:
    settings = {
        "max_referrers": parameters.max_referrers,
        "timeout_seconds": parameters.timeout_seconds,
        "max_connections_per_host": parameters.max_connections_per_host,
    }
    given: dict[str, Any] = {name: value for name, value in settings.items() if value is not None}
    environment = attempt.environment

    def make() -> OrasStore:
        return OrasStore(
            resource.name,
            OrasStoreSettings(
                plain_http=parameters.use_http, profiles=tuple(map(_profile, parameters.registries)), **given
            ),
            credentials=credentials,
            proxies=environment.proxies,
            objects=environment.objects,
            trace_header=environment.trace_header,
            count_answer=environment.count_answer,
        )

    credentials = _credentials(attempt, resource, parameters.credentials)
    return attempt.take((Component.STORE.value, resource.label), parameters, make)


def _credentials(
    attempt: _Attempt, resource: Resource, named: Sequence[CredentialParameters]
) -> CredentialProvider | None:
    """Where a store's credentials come from. A tenant's has none but those it names: the rest is the provider's own."""
    if not named and not resource.namespace:
        named = (DockerConfigParameters(name="dockerConfig"),)
    sources = [
        attempt.take(
            ("credentials", (auth, resource.namespace)), auth, partial(CREDENTIALS[auth.name], attempt, resource, auth)
        )
        for auth in named
    ]
    present = [source for source in sources if source is not None]
    return present[0] if len(present) == 1 else CredentialChain(present) if present else None


def _profile(registry: RegistryParameters) -> RegistryProfile:
    return RegistryProfile(
        host=registry.host,
        plain_http=registry.plain_http,
        ca_bundle=(registry.ca_bundle or "").encode(),
        ca_file=registry.ca_file,
        client_certificate=registry.client_cert_file,
        client_key=registry.client_key_file,
        token_hosts=frozenset(registry.token_hosts),
        redirect_hosts=frozenset(registry.redirect_hosts),
    )


def _oci_layout(attempt: _Attempt, resource: Resource, parameters: OciLayoutParameters) -> Store:
    return attempt.take(
        (Component.STORE.value, resource.label),
        parameters,
        lambda: OciLayoutStore(resource.name, parameters.path),
    )


def _docker_config(
    attempt: _Attempt, _resource: Resource, parameters: DockerConfigParameters
) -> CredentialProvider | None:
    path = parameters.config_path or attempt.environment.docker_config
    return None if path is None else DockerConfigCredentials(path, required=parameters.config_path is not None)


def _kubernetes_secrets(
    attempt: _Attempt, resource: Resource, parameters: KubernetesSecretsParameters
) -> CredentialProvider:
    from provider.credentials.kubernetes import PullSecretCredentials  # a quarter second, for those in need
    from provider.credentials.pull_secrets import ObjectName

    home = resource.namespace or attempt.resources.home
    return PullSecretCredentials(
        attempt.environment.kubernetes,
        secrets=[ObjectName(one.namespace or home, one.secret_name) for one in parameters.secrets],
        service_account=ObjectName(home, parameters.service_account_name),
    )


def _azure(
    attempt: _Attempt,
    _resource: Resource,
    parameters: AzureWorkloadIdentityParameters | AzureManagedIdentityParameters,
) -> CredentialProvider:
    identity: WorkloadIdentity | ManagedIdentity = ManagedIdentity(parameters.client_id)
    if isinstance(parameters, AzureWorkloadIdentityParameters):
        identity = WorkloadIdentity(parameters.client_id, parameters.tenant_id)
    proxies = attempt.environment.proxies
    credentials = AzureContainerRegistryCredentials(
        AzureIdentity(identity, proxies=proxies), hosts=RegistryHosts.of(parameters.endpoints), proxies=proxies
    )
    credentials.prepare()
    return credentials


def _aws(attempt: _Attempt, _resource: Resource, _parameters: AwsEcrParameters) -> CredentialProvider:
    return ElasticContainerRegistryCredentials(proxies=attempt.environment.proxies)


def _google(attempt: _Attempt, _resource: Resource, parameters: GoogleWorkloadIdentityParameters) -> CredentialProvider:
    return ArtifactRegistryCredentials(parameters.config_path, proxies=attempt.environment.proxies)


# -- key providers, verifiers, policies -------------------------------------------------------------------------------


def _inline(attempt: _Attempt, resource: Resource, parameters: InlineParameters) -> KeyManagementProvider:
    return attempt.take(
        (Component.KEY_PROVIDER.value, resource.label),
        (resource.type, parameters, resource.refresh_seconds),
        lambda: InlineKeyManagementProvider(
            resource.reference, content_type=parameters.content_type, value=parameters.value
        ),
    )


def _azure_key_vault(
    attempt: _Attempt, resource: Resource, parameters: AzureKeyVaultParameters
) -> KeyManagementProvider:
    keep_expired = parameters.keep_expired
    if keep_expired is None:
        keep_expired = attempt.resources.has_timestamps(resource)
    return attempt.take(
        (Component.KEY_PROVIDER.value, resource.label),
        (resource.type, parameters, resource.refresh_seconds, keep_expired),
        lambda: AzureKeyVaultProvider(
            resource.reference,
            AzureKeyVaultSettings(
                certificates=tuple(one.wanted(parameters.version_history_limit) for one in parameters.certificates),
                keys=tuple(one.wanted(parameters.version_history_limit) for one in parameters.keys),
                max_age_seconds=parameters.max_age_seconds(resource.refresh_seconds),
                keep_expired=keep_expired,
            ),
            VaultAccess(
                parameters.vault_uri,
                AzureIdentity(
                    WorkloadIdentity(parameters.client_id, parameters.tenant_id),
                    proxies=attempt.environment.proxies,
                ),
                attempt.environment.proxies,
            ),
        ),
        load=Loading(resource, "spec.parameters", parameters.interval_seconds(resource.refresh_seconds)),
    )


def _notation(attempt: _Attempt, resource: Resource, parameters: NotationParameters) -> Verifier:
    return NotationVerifier(
        name=resource.name,
        artifact_types=resource.artifact_types,
        document=parameters.trust_policy_doc,
        trust_stores=_trust_stores(attempt, resource, parameters),
        revocation=attempt.take(
            (REVOCATION, parameters.revocation),
            parameters.revocation,
            lambda: _revocation_fetcher(attempt, parameters.revocation),
        ),
        max_attempts=parameters.max_signature_attempts,
        user_metadata=parameters.user_metadata,
    )


def _trust_stores(
    attempt: _Attempt, resource: Resource, parameters: NotationParameters
) -> dict[tuple[StoreType, str], tuple[KeyManagementProvider, ...]]:
    """The key sources behind each trust store: the key providers it names, or folders for every one of the policy."""
    stores = {}
    for store, entry in parameters.verification_cert_stores.items():
        sources = []
        for reference in dict.fromkeys(entry.references):
            provider = attempt.resources.find_key_provider(reference, resource.namespace)
            if provider is None:  # a trust store with fewer sources than written is another trust store
                path = join("spec.parameters.verificationCertStores", entry.path)
                sources += _absent(attempt, resource, path, reference)
            elif provider.label in attempt.key_providers:  # else a fault already
                sources.append(attempt.key_providers[provider.label])
        stores[store] = tuple(sources)
    if not stores:
        named = {store for statement in parameters.trust_policy_doc.statements for store in statement.trust_stores}
        for store in named:
            stores[store] = tuple(
                _folder(attempt, resource, index, path, timestamping=store[0] is StoreType.TSA)
                for index, path in enumerate(parameters.verification_certs)
            )
    return stores


def _absent(attempt: _Attempt, resource: Resource, path: str, reference: str) -> list[KeyManagementProvider]:
    """What is in the place of a key provider that is not there: in a cluster it may have been deleted."""
    if not attempt.resources.may_be_incomplete:
        attempt.fault(resource, path, f"there is no key provider {reference}")
        return []
    reason = f"{resource.label} needs the KeyManagementProvider {reference}, and there is none within reach"
    return [UnusableKeyManagementProvider(reference, reason)]


def _folder(
    attempt: _Attempt, resource: Resource, index: int, path: Path, *, timestamping: bool
) -> KeyManagementProvider:
    return attempt.take(
        ("folder", (path, timestamping)),
        None,
        lambda: DirectoryKeyManagementProvider(str(path), path, timestamping=timestamping),
        load=Loading(resource, f"spec.parameters.verificationCerts[{index}]", FOLDER_REFRESH_SECONDS),
    )


def _revocation_fetcher(attempt: _Attempt, parameters: RevocationParameters) -> RevocationFetcher:
    return RevocationFetcher(
        RevocationSettings(
            allow_private_addresses=parameters.allow_private_addresses,
            allowed_hosts=frozenset(parameters.allowed_hosts),
        ),
        attempt.environment.proxies,
        tallies=attempt.environment.tallies,
    )


def _config_policy(_attempt: _Attempt, _resource: Resource, parameters: ConfigPolicyParameters) -> PolicyEnforcer:
    rules = {kind: Rule(rule) for kind, rule in parameters.rules.items()}
    return ConfigPolicy(rules, Rule(parameters.default))


# -- the tables: what a type is ---------------------------------------------------------------------------------------

STORES: Final[Mapping[str, Callable[[_Attempt, Resource, Any], Store]]] = {
    "oras": _oras,
    "oci-layout": _oci_layout,
}
CREDENTIALS: Final[Mapping[str, Callable[[_Attempt, Resource, Any], CredentialProvider | None]]] = {
    "dockerConfig": _docker_config,
    "k8Secrets": _kubernetes_secrets,
    "azureWorkloadIdentity": _azure,
    "azureManagedIdentity": _azure,
    "awsEcrBasic": _aws,
    "googleWorkloadIdentity": _google,
}
KEY_PROVIDERS: Final[Mapping[str, Callable[[_Attempt, Resource, Any], KeyManagementProvider]]] = {
    "inline": _inline,
    "azurekeyvault": _azure_key_vault,
}
VERIFIERS: Final[Mapping[str, Callable[[_Attempt, Resource, Any], Verifier]]] = {
    "notation": _notation,
}
POLICIES: Final[Mapping[str, Callable[[_Attempt, Resource, Any], PolicyEnforcer]]] = {
    "config-policy": _config_policy,
}
STAND_INS: Final[Mapping[Component, Callable[[Resource, Unusable], Any]]] = {
    Component.STORE: lambda resource, why: UnusableStore(resource.name, why.reason),
    Component.VERIFIER: lambda resource, why: UnusableVerifier(
        resource.name, why.reason, resource.artifact_types or ANY_TYPE
    ),
    Component.KEY_PROVIDER: lambda resource, why: UnusableKeyManagementProvider(resource.reference, why.reason),
    Component.POLICY: lambda resource, why: UnusablePolicy(resource.name, why.reason),
}
