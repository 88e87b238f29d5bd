"""From a resource to its live objects: the only place that knows which class stands behind a `type:`.

Rules:
- A type is one line in a table here and one in configuration/resources.py. Nothing registers itself.
- A maker takes what holds connections, tokens or material from the parts (Making.take), so that it lives on while its
  recipe is the same; the recipe is everything of the resource that the object is made of.
- A resource that cannot be used (resources.Unusable) becomes a stand-in that denies what depends on it.
- Nothing here imports the SDK of a cloud or the client of the cluster's API; what needs one loads it when it is used.

What does not belong here: how parts live and end (parts.py), which of them decide together (assembly.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from provider.azure.identity import AzureIdentity, ManagedIdentity, WorkloadIdentity
from provider.configuration.key_providers import AzureKeyVaultParameters, InlineParameters
from provider.configuration.policies import ConfigPolicyParameters
from provider.configuration.resources import Component, Resource, Unusable
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
from provider.interfaces import CredentialProvider, KeyManagementProvider, PolicyEnforcer, Store, Verifier
from provider.key_management.azure_key_vault import AzureKeyVaultProvider, AzureKeyVaultSettings
from provider.key_management.directory import DirectoryKeyManagementProvider
from provider.key_management.inline import InlineKeyManagementProvider
from provider.key_management.key_vault_access import VaultAccess
from provider.notation.trust_policy import StoreType
from provider.parts import Loading, Making
from provider.policy import ConfigPolicy, Rule
from provider.stores.oci_layout import OciLayoutStore
from provider.stores.oras import OrasStore
from provider.stores.profile import OrasStoreSettings, RegistryProfile
from provider.unusable import ANY_TYPE, UnusableKeyManagementProvider, UnusablePolicy, UnusableStore, UnusableVerifier
from provider.verifiers.notation import NotationVerifier
from provider.verifiers.revocation_fetcher import RevocationFetcher, RevocationSettings

REVOCATION: Final = "revocation"  # what a fetcher is among the parts
FOLDER_REFRESH_SECONDS: Final = 60.0  # how often folders of certificates are read again, as quick as kubelet swaps them

# -- stores -----------------------------------------------------------------------------------------------------------


def _oras(making: Making, resource: Resource, parameters: OrasParameters) -> Store:
    settings = {
        "max_referrers": parameters.max_referrers,
        "timeout_seconds": parameters.timeout_seconds,
        "max_connections_per_host": parameters.max_connections_per_host,
    }
    given: dict[str, Any] = {name: value for name, value in settings.items() if value is not None}
    environment = making.environment

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

    credentials = _credentials(making, resource, parameters.credentials)
    return making.take((Component.STORE.value, resource.label), parameters, make)


def _credentials(
    making: Making, resource: Resource, named: Sequence[CredentialParameters]
) -> CredentialProvider | None:
    """Where a store's credentials come from. A tenant's has none but those it names: the rest is the provider's own."""
    if not named and not resource.namespace:
        named = (DockerConfigParameters(name="dockerConfig"),)
    sources = [
        making.take(
            ("credentials", (auth, resource.namespace)), auth, partial(CREDENTIALS[auth.name], making, resource, auth)
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


def _oci_layout(making: Making, resource: Resource, parameters: OciLayoutParameters) -> Store:
    return making.take(
        (Component.STORE.value, resource.label),
        parameters,
        lambda: OciLayoutStore(resource.name, parameters.path),
    )


def _docker_config(
    making: Making, _resource: Resource, parameters: DockerConfigParameters
) -> CredentialProvider | None:
    path = parameters.config_path or making.environment.docker_config
    return None if path is None else DockerConfigCredentials(path, required=parameters.config_path is not None)


def _kubernetes_secrets(
    making: Making, resource: Resource, parameters: KubernetesSecretsParameters
) -> CredentialProvider:
    from provider.credentials.kubernetes import PullSecretCredentials  # a quarter second, for those in need
    from provider.credentials.pull_secrets import ObjectName

    home = resource.namespace or making.resources.home
    return PullSecretCredentials(
        making.environment.kubernetes,
        secrets=[ObjectName(one.namespace or home, one.secret_name) for one in parameters.secrets],
        service_account=ObjectName(home, parameters.service_account_name),
    )


def _azure(
    making: Making,
    _resource: Resource,
    parameters: AzureWorkloadIdentityParameters | AzureManagedIdentityParameters,
) -> CredentialProvider:
    identity: WorkloadIdentity | ManagedIdentity = ManagedIdentity(parameters.client_id)
    if isinstance(parameters, AzureWorkloadIdentityParameters):
        identity = WorkloadIdentity(parameters.client_id, parameters.tenant_id)
    proxies = making.environment.proxies
    credentials = AzureContainerRegistryCredentials(
        AzureIdentity(identity, proxies=proxies), hosts=RegistryHosts.of(parameters.endpoints), proxies=proxies
    )
    credentials.prepare()
    return credentials


def _aws(making: Making, _resource: Resource, _parameters: AwsEcrParameters) -> CredentialProvider:
    return ElasticContainerRegistryCredentials(proxies=making.environment.proxies)


def _google(making: Making, _resource: Resource, parameters: GoogleWorkloadIdentityParameters) -> CredentialProvider:
    return ArtifactRegistryCredentials(parameters.config_path, proxies=making.environment.proxies)


# -- key providers, verifiers, policies -------------------------------------------------------------------------------


def _inline(making: Making, resource: Resource, parameters: InlineParameters) -> KeyManagementProvider:
    return making.take(
        (Component.KEY_PROVIDER.value, resource.label),
        (resource.type, parameters, resource.refresh_seconds),
        lambda: InlineKeyManagementProvider(
            resource.reference, content_type=parameters.content_type, value=parameters.value
        ),
    )


def _azure_key_vault(making: Making, resource: Resource, parameters: AzureKeyVaultParameters) -> KeyManagementProvider:
    keep_expired = parameters.keep_expired
    if keep_expired is None:
        keep_expired = making.resources.has_timestamps(resource)
    return making.take(
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
                    proxies=making.environment.proxies,
                ),
                making.environment.proxies,
            ),
        ),
        load=Loading(resource, "spec.parameters", parameters.interval_seconds(resource.refresh_seconds)),
    )


def _notation(making: Making, resource: Resource, parameters: NotationParameters) -> Verifier:
    return NotationVerifier(
        name=resource.name,
        artifact_types=resource.artifact_types,
        document=parameters.trust_policy_doc,
        trust_stores=_trust_stores(making, resource, parameters),
        revocation=making.take(
            (REVOCATION, parameters.revocation),
            parameters.revocation,
            lambda: _revocation_fetcher(making, parameters.revocation),
        ),
        max_attempts=parameters.max_signature_attempts,
        user_metadata=parameters.user_metadata,
    )


def _trust_stores(
    making: Making, resource: Resource, parameters: NotationParameters
) -> dict[tuple[StoreType, str], tuple[KeyManagementProvider, ...]]:
    """The key sources behind each trust store: the key providers it names, or folders for every one of the policy."""
    stores = {}
    for store, entry in parameters.verification_cert_stores.items():
        sources = []
        for reference in dict.fromkeys(entry.references):
            provider = making.resources.find_key_provider(reference, resource.namespace)
            if provider is None:  # a trust store with fewer sources than written is another trust store
                path = join("spec.parameters.verificationCertStores", entry.path)
                sources += _absent(making, resource, path, reference)
            elif provider.label in making.key_providers:  # else a fault already
                sources.append(making.key_providers[provider.label])
        stores[store] = tuple(sources)
    if not stores:
        named = {store for statement in parameters.trust_policy_doc.statements for store in statement.trust_stores}
        for store in named:
            stores[store] = tuple(
                _folder(making, resource, index, path, timestamping=store[0] is StoreType.TSA)
                for index, path in enumerate(parameters.verification_certs)
            )
    return stores


def _absent(making: Making, resource: Resource, path: str, reference: str) -> list[KeyManagementProvider]:
    """What is in the place of a key provider that is not there: in a cluster it may have been deleted."""
    if not making.resources.may_be_incomplete:
        making.fault(resource, path, f"there is no key provider {reference}")
        return []
    reason = f"{resource.label} needs the KeyManagementProvider {reference}, and there is none within reach"
    return [UnusableKeyManagementProvider(reference, reason)]


def _folder(making: Making, resource: Resource, index: int, path: Path, *, timestamping: bool) -> KeyManagementProvider:
    return making.take(
        ("folder", (path, timestamping)),
        None,
        lambda: DirectoryKeyManagementProvider(str(path), path, timestamping=timestamping),
        load=Loading(resource, f"spec.parameters.verificationCerts[{index}]", FOLDER_REFRESH_SECONDS),
    )


def _revocation_fetcher(making: Making, parameters: RevocationParameters) -> RevocationFetcher:
    return RevocationFetcher(
        RevocationSettings(
            allow_private_addresses=parameters.allow_private_addresses,
            allowed_hosts=frozenset(parameters.allowed_hosts),
        ),
        making.environment.proxies,
        tallies=making.environment.tallies,
    )


def _config_policy(_making: Making, _resource: Resource, parameters: ConfigPolicyParameters) -> PolicyEnforcer:
    rules = {kind: Rule(rule) for kind, rule in parameters.rules.items()}
    return ConfigPolicy(rules, Rule(parameters.default))


# -- the tables: what a type is ---------------------------------------------------------------------------------------

STORES: Final[Mapping[str, Callable[[Making, Resource, Any], Store]]] = {
    "oras": _oras,
    "oci-layout": _oci_layout,
}
CREDENTIALS: Final[Mapping[str, Callable[[Making, Resource, Any], CredentialProvider | None]]] = {
    "dockerConfig": _docker_config,
    "k8Secrets": _kubernetes_secrets,
    "azureWorkloadIdentity": _azure,
    "azureManagedIdentity": _azure,
    "awsEcrBasic": _aws,
    "googleWorkloadIdentity": _google,
}
KEY_PROVIDERS: Final[Mapping[str, Callable[[Making, Resource, Any], KeyManagementProvider]]] = {
    "inline": _inline,
    "azurekeyvault": _azure_key_vault,
}
VERIFIERS: Final[Mapping[str, Callable[[Making, Resource, Any], Verifier]]] = {
    "notation": _notation,
}
POLICIES: Final[Mapping[str, Callable[[Making, Resource, Any], PolicyEnforcer]]] = {
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
