"""Parameters of Store resources, by type.

    oras:       Ratify's useHttp, cosignEnabled, cacheEnabled, ttl, localCachePath, authProvider {name, ...}
                and ours: registries [{host, ...}], maxReferrers, timeoutSeconds, maxConnectionsPerHost
    oci-layout: path, a folder in the OCI image layout (ours)

What does not belong here: how a registry is spoken to (stores/), secrets (credentials/).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field, PlainValidator, ValidationInfo

from provider.configuration.sections import (
    AbsolutePath,
    Flaw,
    Host,
    Listed,
    Section,
    Surroundings,
    Text,
    describe,
    flaw,
    inspect,
    join,
    quote,
    reject,
    step,
)
from provider.errors import InvalidKey
from provider.oci import Reference

MAX_REGISTRIES: Final = 1000
MAX_REFERRERS: Final = 100_000
MAX_TIMEOUT_SECONDS: Final = 300.0  # no admission waits that long; the audit may
MAX_CONNECTIONS: Final = 10_000


def _registry_host(value: str) -> str:
    """A registry as it stands in normal references: `host` or `host:port`, lower case, `docker.io` for Docker Hub."""
    try:
        domain = Reference.parse(f"{value}/name/space:tag").domain
    except InvalidKey:
        domain = ""
    if domain != value or value != value.lower():
        raise flaw(f"must be a registry host such as registry.example.com:5000 or docker.io, found {quote(value)}")
    return value


RegistryHost = Annotated[str, AfterValidator(_registry_host)]


class RegistryParameters(Section):
    """What is said of one registry. See stores/profile.py for what each setting does.

    Attributes:
        host: the registry as in image references.
        plain_http: speak http to it.
        ca_bundle: PEM certificates trusted in place of the system's roots.
        ca_file: a file of such.
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
    token_hosts: Listed[Host] = ()
    redirect_hosts: Listed[Host] = ()


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

    name: Literal["dockerConfig"]
    config_path: AbsolutePath | None = None


CredentialParameters = DockerConfigParameters  # a union, once there are more

CREDENTIALS: Final[Mapping[str, type[CredentialParameters]]] = {
    "dockerConfig": DockerConfigParameters,
}
LATER_CREDENTIALS: Final = frozenset(
    {"k8Secrets", "azureWorkloadIdentity", "azureManagedIdentity", "awsEcrBasic", "alibabacloudAcrBasic"}
)


def _read_credentials(value: Any, info: ValidationInfo) -> CredentialParameters | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise flaw(f"must be a mapping, found {describe(value)}")
    name = value.get("name", "dockerConfig")  # Ratify's default
    model = CREDENTIALS.get(name) if isinstance(name, str) else None
    if model is None:
        what = "is not supported by this version" if name in LATER_CREDENTIALS else "is no authentication provider"
        reject([Flaw("name", f"{quote(str(name))} {what} (supported: {', '.join(CREDENTIALS)})")])
    surroundings = info.context if isinstance(info.context, Surroundings) else Surroundings()
    section, flaws = inspect(model, {**value, "name": name}, surroundings)
    if section is None:
        reject(flaws)
    return section


class OrasParameters(Section):
    """Parameters of `oras`.

    Attributes:
        use_http: speak http to registries that are not listed.
        auth_provider: where credentials come from; None: Docker's configuration file, if there is one.
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
    auth_provider: Annotated[CredentialParameters | None, PlainValidator(_read_credentials)] = None
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
