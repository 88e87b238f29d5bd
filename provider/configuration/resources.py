"""The custom resources of group config.ratify.deislabs.io: models, tables, and the set that decides together.

Rules:
- What a document may be is said by three tables: KINDS, PARAMETERS (the model of each type's parameters; a new type is
  one line there) and LATER (types that Ratify has and this version has not, with the reason in words).
- CertificateStore is Ratify's former key management provider and becomes one.
- A key provider of one namespace serves the Verifiers of that namespace only: who may write there must not decide what
  the cluster trusts.
- A resource of a cluster that cannot be used has a place in the set (Unusable): left out without a trace, a tenant's
  Verifier would be replaced by the cluster's, and a check that was asked for would not be made.

What does not belong here: reading documents (documents.py), files (manifests.py), the Kubernetes API (cluster.py), what
resources say of each other (consistency.py), live objects (assembly.py).
Source: Ratify v1.4 custom resource definitions and controllers; docs/ratify-compatibility.md lists the differences.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from provider.configuration.key_providers import AzureKeyVaultParameters, InlineParameters
from provider.configuration.policies import ConfigPolicyParameters
from provider.configuration.sections import Section, Text
from provider.configuration.stores import OciLayoutParameters, OrasParameters
from provider.configuration.verifiers import NotationParameters
from provider.errors import Fault
from provider.notation.trust_policy import StoreType

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
    """What a kind stands for.

    Attributes:
        component: what it configures.
        spec: model of its `spec`.
        plural: its name in the API.
        namespaced: it belongs to a namespace.
        former_version: it is served as FORMER_VERSION too.
    """

    component: Component
    spec: type[Section]
    plural: str
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
        refresh_interval: how often to load again, as Go writes durations; empty: as the type has it.
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


class Unusable(Section):
    """In the place of a resource's parameters: it is there and cannot be used, so that what depends on it is denied.

    Attributes:
        reason: why, in the words of its first fault; for whoever asks why an image is denied.
    """

    reason: Text


KINDS: Final[Mapping[str, KindEntry]] = {
    "Store": KindEntry(Component.STORE, StoreSpec, "stores", former_version=True),
    "NamespacedStore": KindEntry(Component.STORE, StoreSpec, "namespacedstores", namespaced=True),
    "Verifier": KindEntry(Component.VERIFIER, VerifierSpec, "verifiers", former_version=True),
    "NamespacedVerifier": KindEntry(Component.VERIFIER, VerifierSpec, "namespacedverifiers", namespaced=True),
    "KeyManagementProvider": KindEntry(Component.KEY_PROVIDER, KeyManagementProviderSpec, "keymanagementproviders"),
    "NamespacedKeyManagementProvider": KindEntry(
        Component.KEY_PROVIDER, KeyManagementProviderSpec, "namespacedkeymanagementproviders", namespaced=True
    ),
    "Policy": KindEntry(Component.POLICY, PolicySpec, "policies", former_version=True),
    "NamespacedPolicy": KindEntry(Component.POLICY, PolicySpec, "namespacedpolicies", namespaced=True),
    CERTIFICATE_STORE: KindEntry(
        Component.KEY_PROVIDER, CertificateStoreSpec, "certificatestores", namespaced=True, former_version=True
    ),
}

PARAMETERS: Final[Mapping[tuple[Component, str], type[Section]]] = {
    (Component.STORE, "oras"): OrasParameters,
    (Component.STORE, "oci-layout"): OciLayoutParameters,
    (Component.VERIFIER, "notation"): NotationParameters,
    (Component.KEY_PROVIDER, "inline"): InlineParameters,
    (Component.KEY_PROVIDER, "azurekeyvault"): AzureKeyVaultParameters,
    (Component.POLICY, "config-policy"): ConfigPolicyParameters,
}

LATER: Final[Mapping[tuple[Component, str], str]] = {
    (Component.VERIFIER, "cosign"): "is not supported by this version",
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
        type: key of PARAMETERS; empty for one that is Unusable.
        parameters: of the model that PARAMETERS names for the type, or Unusable.
        artifact_types: what a verifier judges; empty for other components.
        refresh_seconds: how often a key provider loads again; None: as its type has it.
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

    @property
    def is_usable(self) -> bool:
        """It can be used."""
        return not isinstance(self.parameters, Unusable)


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
        may_be_incomplete: it is to be used although nothing may be able to decide: what was there was deleted, or has a
            fault, and everything is denied until that is mended.
        digest: SHA-256 of everything that was read, in hex; equal for equal content.
    """

    stores: tuple[Resource, ...] = ()
    verifiers: tuple[Resource, ...] = ()
    key_providers: tuple[Resource, ...] = ()
    policies: tuple[Resource, ...] = ()
    home: str = PROVIDER_NAMESPACE
    warnings: tuple[Fault, ...] = ()
    digest: str = ""
    may_be_incomplete: bool = False
    _providers: Mapping[tuple[str, str, bool], Resource] = field(init=False, repr=False, compare=False)
    _own: Mapping[tuple[Component, str], tuple[Resource, ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        own: dict[tuple[Component, str], list[Resource]] = {}
        for resource in self:
            own.setdefault((resource.component, resource.namespace), []).append(resource)
        object.__setattr__(self, "_own", {key: tuple(those) for key, those in own.items()})
        providers: dict[tuple[str, str, bool], Resource] = {}
        for provider in self.key_providers:
            providers.setdefault((provider.namespace, provider.name, provider.is_former_store), provider)
        object.__setattr__(self, "_providers", providers)

    def __iter__(self) -> Iterator[Resource]:
        return iter((*self.stores, *self.verifiers, *self.key_providers, *self.policies))

    @property
    def namespaces(self) -> tuple[str, ...]:
        """Namespaces that have a store, verifier or policy of their own."""
        deciding = (*self.stores, *self.verifiers, *self.policies)
        return tuple(sorted({resource.namespace for resource in deciding} - {""}))

    def own(self, component: Component, namespace: str) -> tuple[Resource, ...]:
        """Those of a namespace; the cluster-wide ones for the empty name."""
        return self._own.get((component, namespace), ())

    def in_scope(self, component: Component, namespace: str) -> tuple[Resource, ...]:
        """Those of a namespace, or the cluster's if it has none; as in Ratify, each component by itself."""
        return self.own(component, namespace) or self.own(component, "")

    def has_timestamps(self, provider: Resource) -> bool:
        """Whether a statement of some trust policy uses a key provider in a trust store beside one of type tsa.

        Then a time-stamp tells what was signed while a certificate that has expired since was valid.
        """
        for verifier in self.verifiers:
            if not isinstance(verifier.parameters, NotationParameters):
                continue
            stores = {
                store
                for store, entry in verifier.parameters.verification_cert_stores.items()
                if any(self.find_key_provider(one, verifier.namespace) == provider for one in entry.references)
            }
            for statement in verifier.parameters.trust_policy_doc.statements:
                named = set(statement.trust_stores)
                if named & stores and any(kind is StoreType.TSA for kind, _ in named):
                    return True
        return False

    def find_key_provider(self, reference: str, namespace: str) -> Resource | None:
        """The key provider that a Verifier means.

        Args:
            reference: `name`, a cluster-wide provider (or a CertificateStore in the provider's own namespace), or
                `namespace/name`, one of the Verifier's own namespace (or, named by a cluster-wide Verifier, a
                CertificateStore of that namespace, as Ratify has it).
            namespace: the Verifier's; empty for a cluster-wide one.

        Returns:
            None when there is none within reach. A KeyManagementProvider goes before a CertificateStore of its name
            that is within reach too.
        """
        home, slash, name = reference.rpartition("/")
        if not slash:
            return self._providers.get(("", name, False)) or self._providers.get((self.home, name, True))
        # Only within the namespace does a KeyManagementProvider hide the CertificateStore: else a tenant could take
        # from the cluster what the cluster's Verifier names.
        own = self._providers.get((home, name, False)) if namespace == home else None
        return own or (self._providers.get((home, name, True)) if namespace in ("", home) else None)


def assemble_set(
    resources: Iterable[Resource],
    *,
    home: str = PROVIDER_NAMESPACE,
    warnings: Iterable[Fault] = (),
    digest: str = "",
    may_be_incomplete: bool = False,
) -> ResourceSet:
    """Sort resources into a set, whatever order they came in.

    Those that cannot be used keep their place: what a Store before others would have answered, no other may answer.
    """
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
        may_be_incomplete=may_be_incomplete,
    )
