"""The Secret and the Provider objects in the Kubernetes API: read, written, watched.

Rules:
- The Providers are read before the Secret, and a caBundle is written with its Provider's resourceVersion: then no
  replica can write a caBundle of an older Secret over that of a newer one. The Secret is written with the
  resourceVersion that was read, so that of two replicas one wins.
- A Secret that somebody else keeps is not written: cert-manager's, any other controller's, one whose content was given
  to the chart as values, one of another type, or one that cannot be changed.
- Every failure of a call is a ClusterError. The messages have the API's words, made printable, and nothing of a Secret.
- lightkube is imported here and in rotation.py, and they only in a cluster.

What does not belong here: what is written and when (rotation_plan.py), what a Secret holds (keyring.py).
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final
from urllib.parse import urlsplit

import httpx2
import msgspec
from lightkube import AsyncClient
from lightkube.core.exceptions import ConfigError
from lightkube.generic_resource import create_global_resource
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.core_v1 import Secret
from lightkube.types import PatchType

from provider.errors import printable
from provider.gatekeeper.keyring import ENTRIES, Keyring, encode, read_bundle, read_keyring
from provider.gatekeeper.rotation_plan import RotationSettings, Seen

REQUEST_ANNOTATION: Final = "countersign/rotate"  # of the Secret; any value asks for a new authority
FIELD_MANAGER: Final = "countersign"
CERT_MANAGER: Final = "cert-manager.io/"  # prefix of what cert-manager annotates each Secret with that it keeps
KEPT_BY_ANNOTATION: Final = "countersign/kept-by"  # the chart's, on a Secret with a given certificate
_OUR_TYPES: Final = (None, "", "Opaque", "kubernetes.io/tls")  # of Secrets; cert-controller writes the former as well
_NOT_FOUND: Final = 404
_CONFLICT: Final = 409
_FORBIDDEN: Final = 403

# httpx2: no connection, a status that is not good, what is not HTTP. The others: lightkube's reading of an answer
# that is not from a Kubernetes API, of the service account's token, of a status without its fields.
API_ERRORS: Final = (
    *(httpx2.HTTPError, httpx2.StreamError, httpx2.InvalidURL, msgspec.MsgspecError, ConfigError),
    *(OSError, ValueError, KeyError, AttributeError),
)
_STATUS_REMEDIES: Final = {
    401: "Check the service account's token.",
    403: "Grant the service account what the docstring of provider/gatekeeper/rotation.py lists (the chart does).",
    422: "Check that the Secret is not immutable, and of type Opaque or kubernetes.io/tls.",
}

_MAKE_IT: Final = (
    "Make it by hand: helm upgrade, or for the Secret `kubectl create secret generic`; what was in it is entered again."
    " Or grant the right to create it."
)

# Any, because lightkube makes the class at run time.
Provider: Any = create_global_resource("externaldata.gatekeeper.sh", "v1beta1", "Provider", "providers")


class ClusterError(Exception):
    """A call of the Kubernetes API failed.

    Attributes:
        conflict: the object is not what it was when it was read; look again.
        remediation: what to do.
    """

    def __init__(self, reason: str, *, conflict: bool = False, remediation: str | None = None) -> None:
        super().__init__(reason)
        self.conflict = conflict
        self.remediation = remediation


@dataclass(frozen=True, slots=True)
class Look:
    """What was read from the cluster.

    Attributes:
        seen: for the plan.
        secret: the object, None when there is none.
        providers: the objects by name.
    """

    seen: Seen
    secret: Secret | None
    providers: Mapping[str, Any]


class ClusterObjects:
    """The calls of the Kubernetes API. Every failure is a ClusterError."""

    def __init__(self, client: AsyncClient, settings: RotationSettings) -> None:
        self._client = client
        self._settings = settings
        self._read: tuple[Mapping[str, Any], Keyring] = ({}, Keyring())

    async def look(self) -> Look:
        """Read the Providers, then the Secret; the order matters."""
        settings = self._settings
        providers: dict[str, Any] = {}
        for name in settings.providers:
            found = await self._get(f"Provider {name}", partial(self._client.get, Provider, name))
            if found is not None:
                providers[name] = found
        secret: Secret | None = await self._get(
            f"Secret {settings.secret}",
            partial(self._client.get, Secret, settings.secret, namespace=settings.namespace),
        )
        annotations = (
            secret.metadata.annotations if secret is not None and secret.metadata is not None else None
        ) or {}
        bundles = {name: read_bundle(_spec(found).get("caBundle")) for name, found in providers.items()}
        keyring = None if secret is None else self._keyring(secret)
        kept_by = None if secret is None else keeper_of(secret)
        return Look(Seen(keyring, bundles, REQUEST_ANNOTATION in annotations, kept_by), secret, providers)

    async def write_secret(self, found: Secret | None, keyring: Keyring, *, forget_request: bool) -> None:
        """Write a keyring over what was read, or make the Secret."""
        entries = {name: encode(entry) for name, entry in keyring.entries().items()}
        settings = self._settings
        what = f"Secret {settings.secret}"
        if found is None or found.metadata is None:
            labels = {"app.kubernetes.io/managed-by": FIELD_MANAGER}
            metadata = ObjectMeta(name=settings.secret, namespace=settings.namespace, labels=labels)
            secret = Secret(metadata=metadata, data=entries, type="Opaque")
            await self._call("create", what, lambda: self._client.create(secret, field_manager=FIELD_MANAGER))
            return
        kept = {name: value for name, value in (found.data or {}).items() if name not in ENTRIES}
        metadata = msgspec.structs.replace(found.metadata, managedFields=None)
        if forget_request and metadata.annotations:
            metadata.annotations = {k: v for k, v in metadata.annotations.items() if k != REQUEST_ANNOTATION}
        secret = msgspec.structs.replace(found, data=kept | entries, metadata=metadata)
        await self._call("update", what, lambda: self._client.replace(secret, field_manager=FIELD_MANAGER))

    async def write_bundle(self, found: Any, bundle: bytes) -> None:
        """Write the caBundle of a Provider that was read."""
        name = found.metadata.name
        patch = {
            "metadata": {"resourceVersion": found.metadata.resourceVersion},
            "spec": {"caBundle": encode(bundle)},
        }
        await self._call(
            "patch",
            f"Provider {name}",
            lambda: self._client.patch(Provider, name, patch, patch_type=PatchType.MERGE, field_manager=FIELD_MANAGER),
        )

    async def create_provider(self, name: str, bundle: bytes) -> None:
        """Make a missing Provider again."""
        spec = self._settings.restore[name]
        provider = Provider(
            metadata=ObjectMeta(name=name),
            spec={"url": spec.url, "timeout": spec.timeout, "caBundle": encode(bundle)},
        )
        await self._call(
            "create", f"Provider {name}", lambda: self._client.create(provider, field_manager=FIELD_MANAGER)
        )

    def watches(self) -> tuple[Callable[[], AsyncIterable[object]], ...]:
        """Begins a watch of each object. A watch yields something for every change, and raises one of API_ERRORS."""
        settings = self._settings
        watch = self._client.watch
        providers = (partial(watch, Provider, fields={"metadata.name": name}) for name in settings.providers)
        secret = partial(watch, Secret, fields={"metadata.name": settings.secret}, namespace=settings.namespace)
        return (*providers, secret)

    def _keyring(self, secret: Secret) -> Keyring:
        """The keyring of a Secret; the last one is kept, because checking a key costs up to 50 ms for RSA."""
        data = dict(secret.data or {})
        if self._read[0] != data:
            self._read = (data, read_keyring(data))
        return self._read[1]

    async def _get(self, what: str, call: Callable[[], Any]) -> Any:
        try:
            return await self._call("get", what, call)
        except ClusterError as error:
            if error.conflict:
                return None
            raise

    async def _call(self, verb: str, what: str, call: Callable[[], Any]) -> Any:
        try:
            return await call()
        except httpx2.HTTPStatusError as error:
            status = error.response.status_code
            raise ClusterError(
                f"cannot {verb} {what}: status {status}, {printable(str(error))}",
                conflict=status == _CONFLICT or (status == _NOT_FOUND and verb != "create"),
                remediation=_MAKE_IT if (verb, status) == ("create", _FORBIDDEN) else _STATUS_REMEDIES.get(status),
            ) from None
        except API_ERRORS as error:
            raise ClusterError(
                f"cannot {verb} {what}: {type(error).__name__} {printable(str(error))}".rstrip(),
                remediation="Check that the Kubernetes API can be reached from the pod.",
            ) from None


def _spec(provider: Mapping[str, Any]) -> Mapping[str, Any]:
    spec = provider.get("spec")
    return spec if isinstance(spec, dict) else {}


def keeper_of(secret: Secret) -> str | None:
    """Who keeps a Secret, or why nobody can; None when nobody else does."""
    metadata = secret.metadata or ObjectMeta()
    if any(name.startswith(CERT_MANAGER) for name in metadata.annotations or {}):
        return "cert-manager"
    kept_by = (metadata.annotations or {}).get(KEPT_BY_ANNOTATION)
    if kept_by is not None:
        return printable(str(kept_by))
    for owner in metadata.ownerReferences or ():
        if owner.controller:
            return printable(f"{owner.kind} {owner.name}")
    if secret.immutable:
        return "nobody: it is immutable"
    return None if secret.type in _OUR_TYPES else printable(f"the type {secret.type}")


def host_of(provider: Mapping[str, Any]) -> str:
    """The host that a Provider calls; empty when its URL has none."""
    try:
        return urlsplit(str(_spec(provider).get("url", ""))).hostname or ""
    except ValueError:
        return ""


def writer_of_bundle(provider: Any) -> str | None:
    """Who wrote a Provider's caBundle last, as the Kubernetes API notes it: the name of a tool such as `helm`."""
    for entry in provider.metadata.managedFields or ():
        fields = entry.fieldsV1
        spec = fields.get("f:spec") if isinstance(fields, dict) else None
        if isinstance(spec, dict) and "f:caBundle" in spec:
            return None if entry.manager is None else printable(entry.manager)
    return None
