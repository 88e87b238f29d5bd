"""Azure around one pod of a cluster: Entra ID, container registries and their storage, under their genuine names.

    async with cloud(tmp_path, monkeypatch) as azure:
        azure.acr.push_image("team/app", tag="v1")
        store = azure.store(azure.credentials())
        ... registry.azurecr.io/team/app:v1 ...

The environment variables are those that the workload identity webhook puts into the pod. Whatever secrets there are,
`azure.secrets` lists them, so that a test can look for them where they must not be.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme

from provider.azure.identity import AzureIdentity, ManagedIdentity, WorkloadIdentity
from provider.credentials.azure import AzureContainerRegistryCredentials
from provider.egress import ProxySettings
from provider.interfaces import CredentialProvider
from provider.stores.oras import OrasStore
from tests.simulators.azure.acr import AcrSimulator
from tests.simulators.azure.entra import CLIENT, TENANT, EntraSimulator, service_account_token
from tests.simulators.azure.hosts import Hosts
from tests.simulators.registry import BlobStorageSimulator
from tests.simulators.stores import QUICK

REGISTRY = "registry.azurecr.io"
STORAGE = "https://eusmanaged1.blob.core.windows.net/container"


@dataclass
class Cloud:
    """What there is. To be made by `cloud`.

    Attributes:
        authority: who issued the certificates of all of it.
        hosts: the names, and who asked for which.
        entra: Entra ID.
        acr: container registries.
        storage: where blobs are.
        token_file: the service account's token of the pod.
        service_account_tokens: every one that was put there.
        variables: environment variables of the pod.
    """

    authority: trustme.CA
    hosts: Hosts
    entra: EntraSimulator
    acr: AcrSimulator
    storage: BlobStorageSimulator
    token_file: Path
    service_account_tokens: list[str]
    variables: dict[str, str]
    _stack: AsyncExitStack

    @property
    def secrets(self) -> list[str]:
        """Every secret that there was so far."""
        return [*self.service_account_tokens, *self.entra.minted, *self.acr.minted]

    @property
    def proxies(self) -> ProxySettings:
        """The way there."""
        return ProxySettings.from_environment(self.hosts.variables)

    def put_token(self, token: str) -> None:
        """Put a service account's token into the pod."""
        self.service_account_tokens.append(token)
        self.token_file.write_text(token)

    def identity(self, who: WorkloadIdentity | ManagedIdentity | None = None, **more: Any) -> AzureIdentity:
        """An identity of the pod, closed at the end."""
        identity = AzureIdentity(
            who or WorkloadIdentity(), **{"proxies": self.proxies, "variables": self.variables, **more}
        )
        self._stack.push_async_callback(identity.aclose)
        return identity

    def credentials(self, identity: AzureIdentity | None = None, **more: Any) -> AzureContainerRegistryCredentials:
        """Credentials for registries, closed at the end."""
        source = AzureContainerRegistryCredentials(identity or self.identity(), **{"proxies": self.proxies, **more})
        self._stack.push_async_callback(source.aclose)
        return source

    def store(self, credentials: CredentialProvider | None, **more: Any) -> OrasStore:
        """A store, closed at the end."""
        store = OrasStore("store", QUICK, credentials=credentials, proxies=self.proxies, **more)
        self._stack.push_async_callback(store.aclose)
        return store

    async def enter(self, name: str, simulator: Any) -> None:
        """Add a simulator under a name."""
        await self._stack.enter_async_context(simulator)
        self.hosts.add(name, simulator)


@asynccontextmanager
async def cloud(
    folder: Path, monkeypatch: pytest.MonkeyPatch, variables: Mapping[str, str] | None = None
) -> AsyncIterator[Cloud]:
    """Start everything, and lead this process there.

    Args:
        folder: for the certificate and the service account's token.
        monkeypatch: sets the environment variables.
        variables: further ones.
    """
    authority = trustme.CA()
    entra = EntraSimulator(tls=authority)
    acr = AcrSimulator(entra, tls=authority)
    storage = BlobStorageSimulator(tls=authority, names=("*.blob.core.windows.net",))
    token_file = folder / "azure-identity-token"
    async with AsyncExitStack() as stack:
        for one in (entra, acr, storage):
            await stack.enter_async_context(one)
        names = {
            **dict.fromkeys(entra.HOSTS, entra),
            **dict.fromkeys(acr.HOSTS, acr),
            "*.blob.core.windows.net": storage,
        }
        hosts = await stack.enter_async_context(Hosts(names, authority, folder))
        hosts.apply(monkeypatch)
        pod = {
            "AZURE_CLIENT_ID": CLIENT,
            "AZURE_TENANT_ID": TENANT,
            "AZURE_FEDERATED_TOKEN_FILE": str(token_file),
            "AZURE_AUTHORITY_HOST": "https://login.microsoftonline.com/",
            **(variables or {}),
        }
        for name, value in pod.items():
            monkeypatch.setenv(name, value)
        azure = Cloud(authority, hosts, entra, acr, storage, token_file, [], pod, stack)
        azure.put_token(service_account_token())
        yield azure
