"""Parameters of Store resources, by type.

    oras:       Ratify's useHttp, cosignEnabled, cacheEnabled, ttl, localCachePath, authProvider {name, ...}
                and ours: authProviders [{name, ...}], registries [{host, ...}], maxReferrers, timeoutSeconds,
                maxConnectionsPerHost
    oci-layout: path, a folder in the OCI image layout (ours)

    authProvider: dockerConfig {configPath}, k8Secrets {serviceAccountName, secrets [{secretName, namespace}]},
                  azureWorkloadIdentity {clientID, tenantID, endpoints}, azureManagedIdentity {clientID, endpoints},
                  awsEcrBasic {}, googleWorkloadIdentity {configPath}

What does not belong here: how a registry is spoken to (stores/), secrets (credentials/).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field, PlainValidator, ValidationInfo

from provider.configuration.azure import ClientId, TenantId
from provider.configuration.sections import (
    NAMESPACE_NAME,
    OBJECT_NAME,
    AbsolutePath,
    Flaw,
    Host,
    Listed,
    Section,
    Text,
    cluster_only,
    describe,
    flaw,
    inspect,
    join,
    quote,
    reject,
    step,
    surroundings_of,
)
from provider.credentials.azure import MAX_ENDPOINTS, RegistryHosts
from provider.errors import InvalidKey
from provider.oci import Reference

MAX_REGISTRIES: Final = 1000
MAX_REFERRERS: Final = 100_000
MAX_TIMEOUT_SECONDS: Final = 300.0  # no admission waits that long; the audit may
MAX_CONNECTIONS: Final = 10_000
MAX_AUTH_PROVIDERS: Final = 16  # of one store; each may cost every image a look
MAX_SECRETS: Final = 64  # of one auth provider; each is read before a registry is asked

_OWN_IDENTITY: Final = cluster_only("shows registries the provider's own identity")
_REACHES_INSIDE: Final = cluster_only("lets the provider call private addresses")


def _registry_host(value: str) -> str:
    """A registry as it stands in normal references: `host` or `host:port`, lower case, `docker.io` for Docker Hub."""
    try:
        domain = Reference.parse(f"{value}/name/space:tag").domain
    except InvalidKey:
        domain = ""
    if not domain or domain != value or value != value.lower():
        raise flaw(f"must be a registry host such as registry.example.com:5000 or docker.io, found {quote(value)}")
    return value


RegistryHost = Annotated[str, AfterValidator(_registry_host)]


class RegistryParameters(Section):
    """What is said of one registry. See stores/profile.py for what each setting does.

    Attributes:
        host: the registry as in image references.
        plain_http: speak http to it.
        ca_bundle: PEM certificates trusted in place of the system's roots.
        ca_file: a file of such; read again when it changes, as the two below are.
        client_cert_file: PEM file of a client certificate.
        client_key_file: PEM file of its key.
        token_hosts: hosts that credentials for this registry may be sent to, besides its own.
        redirect_hosts: hosts that blobs may be fetched from although their address is private.
    """

    host: RegistryHost
    plain_http: bool = False
    ca_bundle: Annotated[Text | None, Field(repr=False)] = None
    ca_file: AbsolutePath | None = None
    client_cert_file: AbsolutePath | None = None
    client_key_file: AbsolutePath | None = None
    token_hosts: Annotated[Listed[Host], _REACHES_INSIDE] = ()
    redirect_hosts: Annotated[Listed[Host], _REACHES_INSIDE] = ()


def _check_registries(registries: Sequence[RegistryParameters]) -> Sequence[RegistryParameters]:
    """What no registry can say of itself by one field alone."""
    flaws: list[Flaw] = []
    seen: dict[str, int] = {}
    for index, registry in enumerate(registries):
        path = step(index)
        first = seen.setdefault(registry.host, index)
        if first != index:
            flaws.append(Flaw(join(path, "host"), f"{registry.host} stands here a second time, first at [{first}]"))
        if registry.ca_bundle and registry.ca_file:
            flaws.append(Flaw(join(path, "caFile"), "stands beside caBundle: give one of the two"))
        if registry.client_key_file and not registry.client_cert_file:
            flaws.append(Flaw(join(path, "clientKeyFile"), "needs clientCertFile"))
        if registry.plain_http and (registry.ca_bundle or registry.ca_file or registry.client_cert_file):
            flaws.append(Flaw(join(path, "plainHttp"), "contradicts the TLS settings beside it"))
    if flaws:
        reject(flaws)
    return registries


class DockerConfigParameters(Section):
    """Credentials from a Docker configuration file.

    Attributes:
        name: the type's name.
        config_path: the file; by default the one Docker uses.
    """

    name: Annotated[Literal["dockerConfig"], cluster_only("shows registries the provider's own credentials")]
    config_path: AbsolutePath | None = None


def _object_name(value: str) -> str:
    if OBJECT_NAME.fullmatch(value) is None:
        raise flaw(f"must be a Kubernetes name (a-z, 0-9, '-', '.'), found {quote(value)}")
    return value


def _secret_namespace(value: str, info: ValidationInfo) -> str:
    tenant = surroundings_of(info).tenant
    if NAMESPACE_NAME.fullmatch(value) is None:
        raise flaw(f"must be a Kubernetes namespace, found {quote(value)}")
    if tenant and value != tenant:
        raise flaw(f"must be {tenant}, the namespace of the resource, found {quote(value)}")
    return value


ObjectName = Annotated[str, AfterValidator(_object_name)]


class SecretReference(Section):
    """A pull secret.

    Attributes:
        secret_name: name of a Secret of type kubernetes.io/dockerconfigjson or kubernetes.io/dockercfg.
        namespace: its namespace; by default that of the resource, or the provider's own for one of the whole cluster.
    """

    secret_name: ObjectName
    namespace: Annotated[str, AfterValidator(_secret_namespace)] | None = None


class KubernetesSecretsParameters(Section):
    """Credentials from pull secrets of the cluster: those listed, then those of a service account.

    Attributes:
        name: the type's name.
        service_account_name: the service account whose imagePullSecrets count after `secrets`, in the resource's
            namespace, or the provider's own for one of the whole cluster.
        secrets: pull secrets; of entries that are equally specific the first one's comes first.
    """

    name: Literal["k8Secrets"]
    service_account_name: ObjectName = "default"
    secrets: Annotated[Listed[SecretReference], Field(max_length=MAX_SECRETS)] = ()


def _endpoint(value: str) -> str:
    try:
        RegistryHosts.of((value,))
    except ValueError:
        raise flaw(
            "must be a registry host in lower case such as registry.example.com, or *. before a zone such as "
            f"*.azurecr.io, found {quote(value)}"
        ) from None
    return value


RegistryEndpoints = Annotated[Listed[Annotated[str, AfterValidator(_endpoint)]], Field(max_length=MAX_ENDPOINTS)]


class AzureWorkloadIdentityParameters(Section):
    """Credentials for Azure Container Registry, by the identity that the service account is federated with.

    Attributes:
        name: the type's name.
        client_id: client id of the identity; by default the one that the pod was given (AZURE_CLIENT_ID).
        tenant_id: its tenant; by default the one that the pod was given (AZURE_TENANT_ID).
        endpoints: the registries it is for, in place of `*.azurecr.io`, `*.azurecr.us`, `*.azurecr.cn` and their
            regional names.
    """

    name: Annotated[Literal["azureWorkloadIdentity"], _OWN_IDENTITY]
    client_id: ClientId = ""
    tenant_id: TenantId = ""
    endpoints: RegistryEndpoints = ()


class AzureManagedIdentityParameters(Section):
    """Credentials for Azure Container Registry, by an identity of the node.

    Attributes:
        name: the type's name.
        client_id: client id of a user-assigned identity; by default the node's own.
        endpoints: as for azureWorkloadIdentity.
    """

    name: Annotated[Literal["azureManagedIdentity"], _OWN_IDENTITY]
    client_id: ClientId = ""
    endpoints: RegistryEndpoints = ()


class AwsEcrParameters(Section):
    """Credentials for Amazon Elastic Container Registry, by the role of the service account (IRSA).

    Attributes:
        name: the type's name.
    """

    name: Annotated[Literal["awsEcrBasic"], _OWN_IDENTITY]


class GoogleWorkloadIdentityParameters(Section):
    """Credentials for Google Artifact Registry, by the identity of the service account.

    Attributes:
        name: the type's name.
        config_path: credential configuration of a workload identity federation; by default the one that
            GOOGLE_APPLICATION_CREDENTIALS names, or else the metadata service of the node is asked.
    """

    name: Annotated[Literal["googleWorkloadIdentity"], _OWN_IDENTITY]
    config_path: AbsolutePath | None = None


CredentialParameters = (
    DockerConfigParameters
    | KubernetesSecretsParameters
    | AzureWorkloadIdentityParameters
    | AzureManagedIdentityParameters
    | AwsEcrParameters
    | GoogleWorkloadIdentityParameters
)

CREDENTIALS: Final[Mapping[str, type[CredentialParameters]]] = {
    "dockerConfig": DockerConfigParameters,
    "k8Secrets": KubernetesSecretsParameters,
    "azureWorkloadIdentity": AzureWorkloadIdentityParameters,
    "azureManagedIdentity": AzureManagedIdentityParameters,
    "awsEcrBasic": AwsEcrParameters,
    "googleWorkloadIdentity": GoogleWorkloadIdentityParameters,
}
LATER_CREDENTIALS: Final = frozenset({"alibabacloudAcrBasic"})


def _read_optional_credentials(value: Any, info: ValidationInfo) -> CredentialParameters | None:
    return None if value is None else _read_credentials(value, info)


def _read_credentials(value: Any, info: ValidationInfo) -> CredentialParameters:
    if not isinstance(value, dict):
        raise flaw(f"must be a mapping, found {describe(value)}")
    name = value.get("name", "dockerConfig")  # Ratify's default
    model = CREDENTIALS.get(name) if isinstance(name, str) else None
    if model is None:
        later = isinstance(name, str) and name in LATER_CREDENTIALS
        what = "is not supported by this version" if later else "is no authentication provider"
        reject([Flaw("name", f"{quote(str(name))} {what} (supported: {', '.join(CREDENTIALS)})")])
    section, flaws = inspect(model, {**value, "name": name}, surroundings_of(info))
    if section is None:
        reject(flaws)
    return section


def _only_list(value: Sequence[CredentialParameters], info: ValidationInfo) -> Sequence[CredentialParameters]:
    if value and info.data.get("auth_provider") is not None:
        raise flaw("stands beside authProvider: give one of the two")
    return value


class OrasParameters(Section):
    """Parameters of `oras`.

    Attributes:
        use_http: speak http to registries that are not listed.
        auth_provider: where credentials come from; by default Docker's configuration file, if there is one, or nowhere
            for a resource of one namespace.
        auth_providers: the same for several sources: the first that has a credential for the registry wins.
        registries: registries that need something said of them.
        max_referrers: entries read from one list of referrers.
        timeout_seconds: one operation with its retries and tokens.
        max_connections_per_host: exchanges with one host side by side.
        cosign_enabled: Ratify's; cosign's signature tags are not looked for by this version.
        cache_enabled: Ratify's, without effect: what is content-addressed is always kept, the rest by the executor.
        ttl: Ratify's, seconds, without effect as cache_enabled.
        local_cache_path: Ratify's, without effect: nothing is kept on disk.
        capacity: of older Ratify, without effect.
        key_number: of older Ratify, without effect.
    """

    use_http: bool = False
    auth_provider: Annotated[CredentialParameters | None, PlainValidator(_read_optional_credentials)] = None
    auth_providers: Annotated[
        Listed[Annotated[CredentialParameters, PlainValidator(_read_credentials)]],
        Field(max_length=MAX_AUTH_PROVIDERS),
        AfterValidator(_only_list),
    ] = ()
    registries: Annotated[
        Listed[RegistryParameters], Field(max_length=MAX_REGISTRIES), AfterValidator(_check_registries)
    ] = ()
    max_referrers: Annotated[int, Field(ge=1, le=MAX_REFERRERS)] | None = None
    timeout_seconds: Annotated[float, Field(gt=0, le=MAX_TIMEOUT_SECONDS)] | None = None
    max_connections_per_host: Annotated[int, Field(ge=1, le=MAX_CONNECTIONS)] | None = None
    cosign_enabled: bool = False
    cache_enabled: bool | None = None
    ttl: int | None = None
    local_cache_path: str | None = None
    capacity: int | None = None
    key_number: int | None = None

    @property
    def credentials(self) -> tuple[CredentialParameters, ...]:
        """The sources of credentials that the resource names, in order."""
        return self.auth_providers or tuple(one for one in (self.auth_provider,) if one is not None)

    def oddities(self) -> Iterable[Flaw]:
        """Settings of Ratify without effect, less cacheEnabled and ttl, which its chart always renders."""
        if self.cosign_enabled:
            yield Flaw("cosignEnabled", "has no effect: this version does not look for cosign signatures")
        for name, value in (
            ("localCachePath", self.local_cache_path),
            ("capacity", self.capacity),
            ("keyNumber", self.key_number),
        ):
            if value:
                yield Flaw(name, "has no effect: nothing is cached on disk")


class OciLayoutParameters(Section):
    """Parameters of `oci-layout`.

    Attributes:
        path: the folder.
    """

    path: AbsolutePath
