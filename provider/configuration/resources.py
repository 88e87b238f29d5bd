"""The custom resources of group config.ratify.deislabs.io: one document in, one checked resource out.

Rules:
- What a document is, is said by three tables: KINDS, PARAMETERS (the model of each type's parameters; a new type is one
  line there) and LATER (types that Ratify has and this version has not, with the reason in words).
- Reading a document finds everything that is wrong with it. What is merely odd is a warning.
- Fields that Ratify's plugin mechanism needs have no effect here; where they would make Ratify run or download a program,
  the resource is refused rather than read as something weaker.
- CertificateStore is Ratify's former key management provider and becomes one.

What does not belong here: files (manifests.py), the Kubernetes API (cluster.py), what resources say of each other
(consistency.py), live objects (assembly.py).
Source: facts of Ratify v1.4 custom resource definitions and controllers; docs/ratify-compatibility.md lists differences.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from provider.configuration.key_providers import InlineParameters, parse_duration
from provider.configuration.policies import ConfigPolicyParameters
from provider.configuration.sections import (
    Flaw,
    Section,
    Surroundings,
    Text,
    describe,
    inspect,
    join,
    step,
    suggest,
)
from provider.configuration.stores import OciLayoutParameters, OrasParameters
from provider.configuration.verifiers import NotationParameters
from provider.errors import Fault, printable

GROUP: Final = "config.ratify.deislabs.io"
VERSION: Final = "v1beta1"
FORMER_VERSION: Final = "v1alpha1"
POLICY_NAME: Final = "ratify-policy"  # the one name that Ratify evaluates
PROVIDER_NAMESPACE: Final = "gatekeeper-system"  # where the chart installs by default
MAX_LIST_ITEMS: Final = 10_000  # of one document of kind List

_NAME: Final = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")  # RFC 1123
_NAMESPACE: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_MEDIA_TYPE: Final = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}"
)  # RFC 6838
ANY_TYPE: Final = "*"


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
    "CertificateStore": KindEntry(Component.KEY_PROVIDER, CertificateStoreSpec, namespaced=True, former_version=True),
}

PARAMETERS: Final[Mapping[tuple[Component, str], type[Section]]] = {
    (Component.STORE, "oras"): OrasParameters,
    (Component.STORE, "oci-layout"): OciLayoutParameters,
    (Component.VERIFIER, "notation"): NotationParameters,
    (Component.KEY_PROVIDER, "inline"): InlineParameters,
    (Component.POLICY, "configpolicy"): ConfigPolicyParameters,
}

LATER: Final[Mapping[tuple[Component, str], str]] = {
    (Component.VERIFIER, "cosign"): "is not supported by this version",
    (Component.KEY_PROVIDER, "azurekeyvault"): "is not supported by this version yet",
    (Component.POLICY, "regopolicy"): (
        "is not supported: say what an image needs with config-policy, and what goes beyond it in the Rego of the "
        "ConstraintTemplate, which sees every verifier report"
    ),
}
