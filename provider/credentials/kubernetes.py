"""Registry credentials from pull secrets of the cluster: Secrets that are named, and those of a service account.

    Secret kubernetes.io/dockerconfigjson    .dockerconfigjson    a Docker configuration
    Secret kubernetes.io/dockercfg           .dockercfg           its `auths` alone, the form of old
    ServiceAccount                           imagePullSecrets     names of Secrets of its namespace

Rules:
- What is asked first wins: the named secrets in their order, then the service account's.
- A secret that cannot be had ends the search as undecided. What it would have said is not known, and anonymous access
  is no substitute that anyone asked for.
- Only the two types above are read, and of them only `auths`: a secret of another purpose is nobody's pull secret, and
  a credential helper that a secret names is a program to run, which no Secret may choose.
- A secret is kept for a time and read anew after it, or when a registry refuses what was in it. While the API server is
  out of reach the last good one is used, for a longer time; one that is gone or forbidden is not.
- Nothing of a secret is in an error, a log line or a repr.

RBAC needed: `get` on secrets and on serviceaccounts, in the namespaces whose secrets are named: the provider's own, for
a Store that says nothing else, and every namespace that may have a NamespacedStore with k8Secrets.

What does not belong here: what is done with a credential (stores/), who may name which secret (configuration/).
Sources: Kubernetes "Pull an Image from a Private Registry"; Ratify v1.4 auth provider k8Secrets; attacks N08, N11.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import httpx2
import msgspec
from cachetools import LRUCache
from lightkube import AsyncClient
from lightkube.core.exceptions import ConfigError
from lightkube.resources.core_v1 import Secret, ServiceAccount

from provider import strict_json
from provider.cache import SingleFlight
from provider.credentials.docker_config import MAX_CONFIG_BYTES, DockerConfig
from provider.errors import ConfigurationError, Undecided, printable
from provider.interfaces import Credential

KEEP_SECONDS: Final = 60.0  # until a secret is read again; the longest that a rotation without a refusal goes unseen
KEEP_UNREACHABLE_SECONDS: Final = 3600.0  # how long the last good one is used while the API server is out of reach
REFUSAL_PAUSE_SECONDS: Final = 5.0  # between two readings that refusals of a registry cause
READ_SECONDS: Final = 5.0  # of one reading; the answer to Gatekeeper is due before that
MAX_KEPT: Final = 256  # secrets and service accounts of one source
MAX_SECRETS: Final = 64  # of a service account

_DATA_KEYS: Final = {"kubernetes.io/dockerconfigjson": ".dockerconfigjson", "kubernetes.io/dockercfg": ".dockercfg"}


class ObjectName(NamedTuple):
    """An object of a namespace."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class _MissingError(Exception):
    """There is no such object, or it may not be read; the message says which."""


class _UnreachableError(Exception):
    """The API server could not be asked; the message says why."""


_Kind = type[Secret] | type[ServiceAccount]
_Key = tuple[_Kind, ObjectName]


@dataclass(slots=True)
class _Kept:
    """What was read of one object.

    Attributes:
        value: a Docker configuration, or names of secrets.
        read: when, in seconds of the monotonic clock.
        due: when it is to be read again.
    """

    value: Any = field(repr=False)
    read: float
    due: float


class PullSecretCredentials:
    """A source of credentials. Safe for any number of tasks of one event loop; to be closed with `aclose`.

    Args:
        client: of the Kubernetes API; stays its owner's to close. None outside of a cluster, where nothing can be had.
        secrets: pull secrets, in the order in which they are asked.
        service_account: whose pull secrets are asked after them; None for nobody's.
        keep_seconds: how long what was read is used.
        monotonic: seconds of a clock that never goes back.
    """

    def __init__(
        self,
        client: AsyncClient | None,
        *,
        secrets: Iterable[ObjectName] = (),
        service_account: ObjectName | None = None,
        keep_seconds: float = KEEP_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._secrets = tuple(secrets)
        self._service_account = service_account
        self._keep_seconds = keep_seconds
        self._monotonic = monotonic
        self._kept: LRUCache[_Key, _Kept] = LRUCache(MAX_KEPT)
        self._flights: SingleFlight[_Key, Any] = SingleFlight()

    async def credential(self, domain: str, path: str) -> Credential | None:
        """The credential for a repository; see interfaces.CredentialProvider.

        Raises:
            Undecided: CREDENTIALS_UNAVAILABLE, when a secret that would have been asked cannot be had.
        """
        found = await self._first(self._secrets, domain, path)
        if found is None and self._service_account is not None:
            secrets = await self._read(ServiceAccount, self._service_account)
            found = await self._first(secrets, domain, path)
        return found

    def refused(self, domain: str, path: str) -> None:  # noqa: ARG002 - any of the secrets may have been rotated
        """A registry refused: whatever was not read just now is read again before it is used."""
        for kept in self._kept.values():
            kept.due = min(kept.due, kept.read + REFUSAL_PAUSE_SECONDS)

    async def aclose(self) -> None:
        """Give up the readings under way."""
        await self._flights.aclose()

    async def _first(self, secrets: Iterable[ObjectName], domain: str, path: str) -> Credential | None:
        """The first credential in secrets that are read side by side; a failure counts when its secret's turn comes."""
        readings = await asyncio.gather(*(self._read(Secret, name) for name in secrets), return_exceptions=True)
        for reading in readings:
            if isinstance(reading, BaseException):
                raise reading
            found: Credential | None = reading.lookup(domain, path)
            if found is not None:
                return found
        return None

    async def _read(self, kind: _Kind, name: ObjectName) -> Any:
        """A DockerConfig for a Secret, names of Secrets for a ServiceAccount."""
        key = (kind, name)
        kept = self._kept.get(key)
        if kept is not None and self._monotonic() < kept.due:
            return kept.value
        return await self._flights.run(key, lambda: self._read_now(key))

    async def _read_now(self, key: _Key) -> Any:
        kind, name = key
        what = f"the {kind.__name__} {name}"
        if self._client is None:
            raise _unavailable(f"{what} is in a cluster, and this process is not connected to one")
        try:
            async with asyncio.timeout(READ_SECONDS):
                value = _MEANINGS[kind](name, await _get(self._client, key))
        except (_UnreachableError, TimeoutError) as error:
            now, kept = self._monotonic(), self._kept.get(key)
            if kept is not None and now < kept.read + KEEP_UNREACHABLE_SECONDS:
                kept.due = now + REFUSAL_PAUSE_SECONDS
                return kept.value
            raise _unavailable(f"{what} cannot be read: {str(error) or 'the API server does not answer'}") from None
        except _MissingError as error:
            self._kept.pop(key, None)
            raise _unavailable(f"{what} cannot be read: {error}") from None
        now = self._monotonic()
        self._kept[key] = _Kept(value, now, now + self._keep_seconds)
        return value


async def _get(client: AsyncClient, key: _Key) -> Any:
    """Read an object.

    Raises:
        _MissingError, _UnreachableError: it cannot be had.
    """
    kind, name = key
    try:
        return await client.get(kind, name.name, namespace=name.namespace)
    except httpx2.HTTPStatusError as error:
        status = error.response.status_code
        if status == 404:
            raise _MissingError("there is none") from None
        if status == 403:
            raise _MissingError(f"the provider's service account may not get {kind.__name__.lower()}s there") from None
        raise _UnreachableError(f"the API server answered {status}") from None
    except (httpx2.HTTPError, httpx2.StreamError, OSError, ConfigError) as error:
        raise _UnreachableError(f"the API server is out of reach ({type(error).__name__})") from None
    except (msgspec.MsgspecError, ValueError, KeyError, AttributeError, RecursionError):  # from lightkube's reading
        raise _UnreachableError("the API server's answer cannot be read") from None


def _pull_secrets(name: ObjectName, account: ServiceAccount) -> tuple[ObjectName, ...]:
    names = [reference.name for reference in account.imagePullSecrets or () if reference.name]
    if len(names) > MAX_SECRETS:
        raise _unavailable(f"the ServiceAccount {name} names more than {MAX_SECRETS} pull secrets")
    return tuple(ObjectName(name.namespace, secret) for secret in names)


def read_pull_secret(name: ObjectName, secret: Secret) -> DockerConfig:
    """Read the credentials that a Secret holds. A pure function.

    Args:
        name: for errors.
        secret: the Secret; untrusted.

    Raises:
        Undecided: CREDENTIALS_UNAVAILABLE; nothing of the data is in it.
    """
    kind = secret.type or "Opaque"
    key = _DATA_KEYS.get(kind)
    if key is None:
        wanted = " or ".join(_DATA_KEYS)
        raise _unavailable(f"the Secret {name} is no pull secret: it is of type {printable(kind, 64)}, not {wanted}")
    data = (secret.data or {}).get(key)
    if data is None:
        raise _unavailable(f"the Secret {name} of type {kind} has no {key}")
    try:
        document = base64.b64decode(data, validate=True)
        if key == ".dockercfg":
            document = json.dumps({"auths": strict_json.loads(document, max_bytes=MAX_CONFIG_BYTES)}).encode()
        return DockerConfig.parse(document)
    except (binascii.Error, ValueError, ConfigurationError):
        raise _unavailable(f"the Secret {name} of type {kind} holds no Docker configuration under {key}") from None


_MEANINGS: Final[Mapping[_Kind, Callable[[ObjectName, Any], Any]]] = {
    Secret: read_pull_secret,
    ServiceAccount: _pull_secrets,
}


def _unavailable(reason: str) -> Undecided:
    return Undecided("CREDENTIALS_UNAVAILABLE", reason)
