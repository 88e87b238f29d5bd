"""Parameters of KeyManagementProvider resources, by type.

    inline:        contentType: certificate | key, value: <PEM>
    azurekeyvault: Ratify's vaultURI, tenantID, clientID, certificates [{name, version}], keys [{name, version}],
                   versionHistoryLimit, and ours: maxAge, keepExpired

The material of an inline provider is read with the resource: a certificate that is cut off is a fault of the resource.

What does not belong here: what a certificate is (notation/), how a key service is asked (key_management/).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Final, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, model_validator
from yarl import URL

from provider.configuration.azure import ClientId, TenantId
from provider.configuration.sections import (
    Flaw,
    Listed,
    Section,
    cluster_only,
    describe,
    flaw,
    join,
    quote,
    reject,
    step,
)
from provider.errors import ConfigurationError
from provider.interfaces import KeyMaterial
from provider.key_management.azure_key_vault import MAX_AGE_SECONDS, REFRESH_SECONDS
from provider.key_management.inline import ContentType, read_inline
from provider.key_management.key_vault_objects import HISTORY, VaultObject

MAX_REFRESH_SECONDS: Final = 366 * 24 * 3600.0  # a year; what is meant to be longer is meant to be never
MIN_VAULT_REFRESH_SECONDS: Final = 10.0  # Key Vault limits requests, and what is shared with others is not hammered
MAX_VAULT_OBJECTS: Final = 100  # certificates, or keys, of one provider; each costs a request at every refresh
MAX_HISTORY: Final = 25  # versions of one object that count: those of one page

_UNITS: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION: Final = re.compile(r"(?:[0-9]{1,12}(?:\.[0-9]{0,9})?(?:ns|us|µs|μs|ms|s|m|h)){1,8}")
_PART: Final = re.compile(r"([0-9.]+)([a-zµμ]+)")


def parse_duration(text: str) -> float:
    """Seconds of a duration as Go writes it: `1h30m`, `90s`, `0.5h`.

    Raises:
        ValueError: it is none, is not positive, or is longer than MAX_REFRESH_SECONDS.
    """
    if _DURATION.fullmatch(text) is None:
        raise ValueError(f"must be a duration such as 30m or 1h30m, found {quote(text)}")
    seconds = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
    if not 0 < seconds <= MAX_REFRESH_SECONDS:
        raise ValueError(f"must be more than 0 and at most a year, found {quote(text)}")
    return seconds


def _readable(value: str, info: ValidationInfo) -> str:
    content_type = info.data.get("content_type")
    if content_type is not None:  # else that is a fault already, and what the value should be is not known
        try:
            read_inline(content_type, value)
        except ConfigurationError as error:
            raise flaw(error.detail) from None
    return value


class InlineParameters(Section):
    """Parameters of `inline`.

    Attributes:
        content_type: what the value is.
        value: PEM: certificates, or one public key.
    """

    content_type: ContentType
    value: Annotated[str, AfterValidator(_readable), Field(repr=False)]

    def material(self) -> KeyMaterial:
        """What the value holds; it was readable when the section was read."""
        return read_inline(self.content_type, self.value)


# -- azurekeyvault ----------------------------------------------------------------------------------------------------

VAULT_ZONES: Final = ("vault.azure.net", "vault.azure.cn", "vault.usgovcloudapi.net")

_VAULT_HOST: Final = re.compile(rf"[a-z0-9][a-z0-9-]{{1,22}}[a-z0-9]\.(?:{'|'.join(map(re.escape, VAULT_ZONES))})")
_OBJECT_NAME: Final = re.compile(r"[0-9A-Za-z-]{1,127}")
_VERSION: Final = re.compile(r"[0-9A-Fa-f]{32}")


def _vault(value: str) -> str:
    """`https://<host>` of a vault. Tokens go there, so it is a vault's name and nothing that only looks like one."""
    try:
        url = URL(value)
        plain = url.host is not None and url == URL.build(scheme="https", host=url.host, path=url.path)
        host = url.host if plain and url.path in ("", "/") else None
    except ValueError:
        host = None
    if host is None or _VAULT_HOST.fullmatch(host) is None:
        zones = ", ".join(VAULT_ZONES)
        raise flaw(f"must be the URI of a vault, https://<name>.<one of {zones}>, found {quote(value)}")
    return f"https://{host}"


def _object(value: str) -> str:
    if _OBJECT_NAME.fullmatch(value) is None:
        raise flaw(f"must be a name in Key Vault (letters, digits, '-'), found {quote(value)}")
    return value


def _version(value: str) -> str:
    if value and _VERSION.fullmatch(value) is None:
        raise flaw(f"must be a version in Key Vault, 32 hexadecimal digits, found {quote(value)}")
    return value.lower()


def _seconds(value: Any) -> float | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise flaw(f"must be a duration such as 24h, found {describe(value)}")
    try:
        return parse_duration(value)
    except ValueError as error:
        raise flaw(str(error)) from None


History = Annotated[int, Field(ge=0, le=MAX_HISTORY)]
Duration = Annotated[float | None, BeforeValidator(_seconds)]


class VaultObjectParameters(Section):
    """A certificate or key of a vault.

    Attributes:
        name: its name in the vault.
        version: the only version that counts; empty: the newest ones.
        version_history_limit: how many of the newest versions count, for this one.
    """

    name: Annotated[str, AfterValidator(_object)]
    version: Annotated[str, AfterValidator(_version)] | None = None
    version_history_limit: History | None = None

    def wanted(self, history: int) -> VaultObject:
        """What is wanted of it.

        Args:
            history: how many versions count, if it does not say so itself.
        """
        limit = history if self.version_history_limit is None else self.version_history_limit
        return VaultObject(self.name, self.version or None, limit)


def _only_once(value: Sequence[VaultObjectParameters]) -> Sequence[VaultObjectParameters]:
    """Names are the same in any case, as Key Vault has it."""
    first: dict[tuple[str, str], int] = {}
    flaws = []
    for index, one in enumerate(value):
        earlier = first.setdefault((one.name.lower(), one.version or ""), index)
        if earlier != index:
            flaws.append(Flaw(join(step(index), "name"), f"{one.name} stands here a second time, first at [{earlier}]"))
    if flaws:
        reject(flaws)
    return value


VaultObjects = Annotated[Listed[VaultObjectParameters], Field(max_length=MAX_VAULT_OBJECTS), AfterValidator(_only_once)]


class AzureKeyVaultParameters(Section):
    """Parameters of `azurekeyvault`.

    Attributes:
        vault_uri: the vault, `https://<name>.vault.azure.net`, or as the clouds of China and the US government have it.
        tenant_id: tenant of the vault and the identity; empty: as the pod's workload identity says.
        client_id: client id of the identity; empty: as the pod's workload identity says.
        certificates: certificates, trusted with their chains.
        keys: public keys.
        version_history_limit: how many of the newest versions of each count, so that signatures made before a rotation
            stay good; 0: the newest, and the identity needs no permission to list.
        max_age: how long what was loaded last stays while the vault cannot be read, as Go writes durations; by default
            24h, or twice the refreshInterval if that is longer.
        keep_expired: versions that have expired count. By default they do where a trust policy that uses this provider
            has a tsa trust store, because then a time-stamp tells what was signed in time.
    """

    vault_uri: Annotated[
        str,
        AfterValidator(_vault),
        cluster_only("lets the provider's own identity read vaults"),
        Field(alias="vaultURI"),
    ]
    tenant_id: TenantId = ""
    client_id: ClientId = ""
    certificates: VaultObjects = ()
    keys: VaultObjects = ()
    version_history_limit: History = HISTORY
    max_age: Duration = None
    keep_expired: bool | None = None

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.certificates and not self.keys:
            raise flaw("names neither certificates nor keys")
        return self

    @staticmethod
    def interval_seconds(refresh_seconds: float | None) -> float:
        """How often it is loaded again, for a resource whose refreshInterval says so, or None."""
        return max(refresh_seconds or REFRESH_SECONDS, MIN_VAULT_REFRESH_SECONDS)

    def max_age_seconds(self, refresh_seconds: float | None) -> float:
        """How long what was loaded last stays, for a resource whose refreshInterval says so, or None."""
        return self.max_age or max(MAX_AGE_SECONDS, 2 * self.interval_seconds(refresh_seconds))
