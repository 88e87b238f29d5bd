"""The custom resources of group config.ratify.deislabs.io: models, tables, and the set that decides together.

Rules:
- What a document may be is said by three tables: KINDS, PARAMETERS (the model of each type's parameters; a new type is
  one line there) and LATER (types that Ratify has and this version has not, with the reason in words).
- CertificateStore is Ratify's former key management provider and becomes one.
- A key provider of one namespace serves the Verifiers of that namespace only: who may write there must not decide what
  the cluster trusts.

What does not belong here: reading documents (documents.py), files (manifests.py), the Kubernetes API (cluster.py), what
resources say of each other (consistency.py), live objects (assembly.py).
Source: Ratify v1.4 custom resource definitions and controllers; docs/ratify-compatibility.md lists the differences.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from provider.configuration.key_providers import InlineParameters
from provider.configuration.policies import ConfigPolicyParameters
from provider.configuration.sections import Section, Text
from provider.configuration.stores import OciLayoutParameters, OrasParameters
from provider.configuration.verifiers import NotationParameters
from provider.errors import Fault

GROUP: Final = "config.ratify.deislabs.io"
VERSION: Final = "v1beta1"
FORMER_VERSION: Final = "v1alpha1"
POLICY_NAME: Final = "ratify-policy"  # the one name that Ratify evaluates
CERTIFICATE_STORE: Final = "CertificateStore"
PROVIDER_NAMESPACE: Final = "gatekeeper-system"  # where the chart installs by default


class Component(enum.Enum):
    """What a resource configures."""

    STORE = "Store"
    VERIFIER = "Verifier"
    KEY_PROVIDER = "KeyManagementProvider"
    POLICY = "Policy"


@dataclass(frozen=True, slots=True)
class KindEntry:
    """What a kind stands for."""

    component: Component
    spec: type[Section]
    namespaced: bool = False
    former_version: bool = False


class PluginSource(Section):
    """Where Ratify would download a plugin from."""

    artifact: str | None = None
    auth_provider: dict[str, Any] | None = None


class PluginSpec(Section):
    """What stores and verifiers have in common.

    Attributes:
        name: the type.
        version: of a plugin; no effect.
        address: folder of a plugin; no effect.
        source: where a plugin is downloaded from; refused.
        parameters: of the type.
    """

    name: Text
    version: str | None = None
    address: str | None = None
    source: PluginSource | None = None
    parameters: dict[str, Any] | None = None


class StoreSpec(PluginSpec):
    """spec of Store and NamespacedStore."""


class VerifierSpec(PluginSpec):
    """spec of Verifier and NamespacedVerifier.

    Attributes:
        type: the type, if it is not the name.
        artifact_types: artifact types that are verified, separated by commas; `*` is any.
    """

    type: str | None = None
    artifact_types: Text


class KeyManagementProviderSpec(Section):
    """spec of KeyManagementProvider and NamespacedKeyManagementProvider.

    Attributes:
        type: the type.
        refresh_interval: how often to load again, as Go writes durations; empty: never.
        parameters: of the type.
    """

    type: Text
    refresh_interval: str | None = None
    parameters: dict[str, Any] | None = None


class PolicySpec(Section):
    """spec of Policy and NamespacedPolicy."""

    type: Text
    parameters: dict[str, Any] | None = None


class CertificateStoreSpec(Section):
    """spec of CertificateStore."""

    provider: Text
    parameters: dict[str, Any] | None = None


class Metadata(Section):
    """ObjectMeta, as far as it is read; the rest is what Kubernetes and its tools add."""

    name: str
    namespace: str | None = None
    generate_name: Any = None
    labels: Any = None
    annotations: Any = None
    uid: Any = None
    resource_version: Any = None
    generation: Any = None
    creation_timestamp: Any = None
    deletion_timestamp: Any = None
    deletion_grace_period_seconds: Any = None
    owner_references: Any = None
    finalizers: Any = None
    managed_fields: Any = None
    self_link: Any = None


class ResourceObject(Section):
    """The outermost keys of a resource."""

    api_version: str
    kind: str
    metadata: dict[str, Any]
    spec: dict[str, Any]
    status: Any = None


KINDS: Final[Mapping[str, KindEntry]] = {
    "Store": KindEntry(Component.STORE, StoreSpec, former_version=True),
    "NamespacedStore": KindEntry(Component.STORE, StoreSpec, namespaced=True),
    "Verifier": KindEntry(Component.VERIFIER, VerifierSpec, former_version=True),
    "NamespacedVerifier": KindEntry(Component.VERIFIER, VerifierSpec, namespaced=True),
    "KeyManagementProvider": KindEntry(Component.KEY_PROVIDER, KeyManagementProviderSpec),
    "NamespacedKeyManagementProvider": KindEntry(Component.KEY_PROVIDER, KeyManagementProviderSpec, namespaced=True),
    "Policy": KindEntry(Component.POLICY, PolicySpec, former_version=True),
    "NamespacedPolicy": KindEntry(Component.POLICY, PolicySpec, namespaced=True),
    CERTIFICATE_STORE: KindEntry(Component.KEY_PROVIDER, CertificateStoreSpec, namespaced=True, former_version=True),
}

PARAMETERS: Final[Mapping[tuple[Component, str], type[Section]]] = {
    (Component.STORE, "oras"): OrasParameters,
    (Component.STORE, "oci-layout"): OciLayoutParameters,
    (Component.VERIFIER, "notation"): NotationParameters,
    (Component.KEY_PROVIDER, "inline"): InlineParameters,
    (Component.POLICY, "config-policy"): ConfigPolicyParameters,
}

LATER: Final[Mapping[tuple[Component, str], str]] = {
    (Component.VERIFIER, "cosign"): "is not supported by this version",
    (Component.KEY_PROVIDER, "azurekeyvault"): "is not supported by this version yet",
    (Component.POLICY, "rego-policy"): (
        "is not supported: say what an image needs with config-policy, and what goes beyond it in the Rego of the "
        "ConstraintTemplate, which sees every verifier report"
    ),
}


@dataclass(frozen=True, slots=True)
class Resource:
    """One resource that was read and found right by itself.

    Attributes:
        kind: as written; a CertificateStore keeps its kind.
        component: what it configures.
        namespace: empty for a cluster-wide one.
        name: metadata.name.
        source: file and document, or the cluster's object; for faults.
        type: key of PARAMETERS.
        parameters: of the model that PARAMETERS names for the type.
        artifact_types: what a verifier judges; empty for other components.
        refresh_seconds: how often a key provider loads again; None for never.
    """

    kind: str
    component: Component
    namespace: str
    name: str
    source: str
    type: str
    parameters: Section
    artifact_types: frozenset[str] = frozenset()
    refresh_seconds: float | None = None

    @property
    def label(self) -> str:
        """`kind/name`, or `kind/namespace/name`."""
        return "/".join(part for part in (self.kind, self.namespace, self.name) if part)

    @property
    def reference(self) -> str:
        """`name`, or `namespace/name`: how others refer to it, and what it is called in reports."""
        return f"{self.namespace}/{self.name}" if self.namespace else self.name

    @property
    def is_former_store(self) -> bool:
        """It is a CertificateStore."""
        return self.kind == CERTIFICATE_STORE


@dataclass(frozen=True, slots=True)
class ResourceSet:
    """Resources that were read together and found consistent.

    Attributes:
        stores: by namespace and name, as all the others are.
        verifiers: Verifiers.
        key_providers: KeyManagementProviders and CertificateStores.
        policies: Policies.
        home: the provider's own namespace, whose CertificateStores are found by their bare name.
        warnings: what is odd, in the words of faults; nothing depends on it.
        digest: SHA-256 of everything that was read, in hex; equal for equal content.
    """

    stores: tuple[Resource, ...] = ()
    verifiers: tuple[Resource, ...] = ()
    key_providers: tuple[Resource, ...] = ()
    policies: tuple[Resource, ...] = ()
    home: str = PROVIDER_NAMESPACE
    warnings: tuple[Fault, ...] = ()
    digest: str = ""
    _providers: Mapping[str, tuple[Resource, ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        by_name: dict[str, list[Resource]] = {}
        for provider in self.key_providers:
            by_name.setdefault(provider.name, []).append(provider)
        object.__setattr__(self, "_providers", {name: tuple(those) for name, those in by_name.items()})

    def __iter__(self) -> Iterator[Resource]:
        return iter((*self.stores, *self.verifiers, *self.key_providers, *self.policies))

    @property
    def namespaces(self) -> tuple[str, ...]:
        """Namespaces that have a store, verifier or policy of their own."""
        deciding = (*self.stores, *self.verifiers, *self.policies)
        return tuple(sorted({resource.namespace for resource in deciding} - {""}))

    def in_scope(self, resources: Iterable[Resource], namespace: str) -> tuple[Resource, ...]:
        """Those of a namespace, or the cluster's if it has none; as in Ratify, each component by itself."""
        candidates = tuple(resources)
        own = tuple(resource for resource in candidates if resource.namespace == namespace)
        return own or tuple(resource for resource in candidates if not resource.namespace)

    def find_key_provider(self, reference: str, namespace: str) -> Resource | None:
        """The key provider that a Verifier means.

        Args:
            reference: `name`, a cluster-wide provider (or a CertificateStore in the provider's own namespace), or
                `namespace/name`, one of the Verifier's own namespace (or, named by a cluster-wide Verifier, a
                CertificateStore of that namespace, as Ratify has it).
            namespace: the Verifier's; empty for a cluster-wide one.

        Returns:
            None when there is none within reach. A KeyManagementProvider goes before a CertificateStore of its name.
        """
        home, slash, name = reference.rpartition("/")
        named = self._providers.get(name, ())
        if not slash:
            providers = [one for one in named if not one.namespace]
            return next(iter(providers), None) or _former(named, self.home)
        providers = [one for one in named if one.namespace == home and not one.is_former_store]
        if providers:
            return providers[0] if home == namespace else None
        return _former(named, home) if namespace in ("", home) else None


def _former(resources: Iterable[Resource], namespace: str) -> Resource | None:
    return next((one for one in resources if one.is_former_store and one.namespace == namespace), None)


def assemble_set(
    resources: Iterable[Resource], *, home: str = PROVIDER_NAMESPACE, warnings: Iterable[Fault] = (), digest: str = ""
) -> ResourceSet:
    """Sort resources into a set, whatever order they came in."""
    ordered = sorted(resources, key=lambda resource: (resource.namespace, resource.name, resource.kind))
    by_component = {
        component: tuple(resource for resource in ordered if resource.component is component) for component in Component
    }
    return ResourceSet(
        stores=by_component[Component.STORE],
        verifiers=by_component[Component.VERIFIER],
        key_providers=by_component[Component.KEY_PROVIDER],
        policies=by_component[Component.POLICY],
        home=home,
        warnings=tuple(warnings),
        digest=digest,
    )
