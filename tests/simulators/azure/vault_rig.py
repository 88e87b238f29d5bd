"""A vault, the identity that opens it, and a registry with three images, for the tests of Key Vault.

    from tests.simulators.azure.vault_rig import azure, images  # fixtures

`azure` leads this process to simulators under the genuine names, and searches everything that was told in a test for
what is secret. `images` decides on a signed, an unsigned and an untrusted image, and no decision may ask Azure.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme
from structlog.testing import capture_logs

from provider.azure.identity import AzureIdentity, WorkloadIdentity
from provider.demo import pki, signing
from provider.egress import ProxySettings
from provider.errors import InvalidKey, Undecided
from provider.executor import Executor, ExecutorSettings, Scope, Snapshot
from provider.interfaces import KeyMaterial
from provider.key_management.azure_key_vault import AzureKeyVaultProvider, AzureKeyVaultSettings
from provider.key_management.key_vault_access import VaultAccess
from provider.key_management.key_vault_objects import VaultObject
from provider.notation.trust_policy import StoreType, TrustPolicyDocument
from provider.policy import ConfigPolicy, Rule
from provider.stores.oras import OrasStore
from provider.stores.profile import OrasStoreSettings
from provider.verifiers.notation import ARTIFACT_TYPE, NotationVerifier
from provider.verifiers.revocation_fetcher import RevocationFetcher
from tests.simulators.azure.entra import CLIENT, TENANT, EntraSimulator, service_account_token
from tests.simulators.azure.hosts import Hosts
from tests.simulators.azure.key_vault import (
    KeyVaultSimulator,
)
from tests.simulators.registry import RegistrySimulator

NOW = datetime.now(UTC).replace(microsecond=0)
DAY = timedelta(days=1)
VERSION = "0123456789abcdef0123456789abcdef"


def issue(name: str, extensions: pki.Extensions, issuer: pki.CertifiedKey | None = None, **facts: Any) -> Any:
    facts = {"not_before": NOW - 30 * DAY, "not_after": NOW + 30 * DAY} | facts
    return pki.issue({"C": "US", "ST": "WA", "O": "Contoso", "CN": name}, extensions, issuer=issuer, **facts)


ROOT = issue("root", pki.authority())
SIGNER = issue("release", pki.code_signing(), ROOT)
OTHER_ROOT = issue("other root", pki.authority())
STRANGER = issue("release", pki.code_signing(), OTHER_ROOT)


@dataclass
class Azure:
    """The servers of Azure, and the name of everything secret that went through them."""

    entra: EntraSimulator
    vault: KeyVaultSimulator
    hosts: Hosts
    folder: Path
    told: list[str] = field(default_factory=list)
    opened: list[AzureKeyVaultProvider] = field(default_factory=list)

    @property
    def asked(self) -> int:
        """How many requests Azure saw."""
        return len(self.vault.requests) + len(self.entra.requests)

    def provider(
        self,
        *certificates: VaultObject,
        keys: tuple[VaultObject, ...] = (),
        call_seconds: float = 5.0,
        tenant: str = TENANT,
        clock: Callable[[], datetime] | None = None,
        monotonic: Callable[[], float] | None = None,
        **settings: Any,
    ) -> AzureKeyVaultProvider:
        """A provider of this vault."""
        proxies = ProxySettings.from_environment(os.environ)
        identity = AzureIdentity(
            WorkloadIdentity(CLIENT, tenant),
            proxies=proxies,
            variables={"AZURE_FEDERATED_TOKEN_FILE": str(self.folder / "token")},
        )
        clocks = {"clock": clock, "monotonic": monotonic}
        made = AzureKeyVaultProvider(
            "kmprovider-akv",
            AzureKeyVaultSettings(certificates or () if keys else certificates or (RELEASE,), keys, **settings),
            VaultAccess(self.vault.uri, identity, proxies, call_seconds=call_seconds, pause_seconds=0.001),
            **{name: value for name, value in clocks.items() if value is not None},  # type: ignore[arg-type]
        )
        self.opened.append(made)
        return made

    async def refresh(self, provider: AzureKeyVaultProvider) -> str:
        """Refresh; the error's text, empty without one."""
        try:
            await provider.refresh()
        except Undecided as error:
            self.told.append(f"{error} {error.remediation}")
            return str(error) if error.code == "KEYS_UNAVAILABLE" and error.remediation else "not told as it should be"
        return ""


RELEASE = VaultObject("release")


@pytest.fixture
async def azure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> AsyncIterator[Azure]:
    """The servers. When a test is over, everything that was told is searched for what is secret."""
    from azure.keyvault.secrets._shared import http_challenge_cache

    http_challenge_cache.clear()
    caplog.set_level(logging.DEBUG)
    of_the_pod = service_account_token()
    (tmp_path / "token").write_text(of_the_pod)
    authority = trustme.CA()
    with capture_logs() as logs:
        async with (
            EntraSimulator(tls=authority) as entra,
            KeyVaultSimulator(entra, tls=authority) as vault,
            Hosts({"login.microsoftonline.com": entra, vault.vault_host: vault}, authority, tmp_path) as hosts,
        ):
            hosts.apply(monkeypatch)
            one = Azure(entra, vault, hosts, tmp_path)
            try:
                yield one
            finally:
                for provider in one.opened:
                    await provider.aclose()
    said = "\n".join([*one.told, repr(logs), caplog.text, repr(one.opened)])
    secrets = [*entra.minted, of_the_pod.rpartition(".")[2], "PRIVATE KEY", *_lines_of(SIGNER)]
    assert [secret for secret in secrets if secret in said] == []


def _lines_of(signer: pki.CertifiedKey) -> list[str]:
    return [line for line in signer.key_pem().decode().splitlines() if "-----" not in line]


def subjects(material: KeyMaterial) -> set[str]:
    return {one.subject_text.split(",")[0].removeprefix("CN=") for one in material.certificates}


def rows(provider: AzureKeyVaultProvider, heading: str = "Certificates") -> list[dict[str, str]]:
    found: Any = provider.material().properties[heading]
    return list(found)


def signers(number: int) -> list[Any]:
    """Self-signed certificates, as Key Vault makes them by default, each of them a version."""
    return [issue(f"v{index}", pki.code_signing()) for index in range(number)]


# -- verdicts ---------------------------------------------------------------------------------------------------------


@dataclass
class Images:
    """A registry with three images, and what decides on them with the provider's certificates."""

    azure: Azure
    registry: RegistrySimulator
    executor: Executor
    store: OrasStore
    revocation: RevocationFetcher

    def use(self, *providers: AzureKeyVaultProvider) -> None:
        """Decide with the certificates of these from now on."""
        document = TrustPolicyDocument.from_object(
            {
                "version": "1.0",
                "trustPolicies": [
                    {
                        "name": "all",
                        "registryScopes": ["*"],
                        "signatureVerification": {"level": "strict"},
                        "trustStores": ["ca:company"],
                        "trustedIdentities": ["x509.subject: C=US, ST=WA, O=Contoso, CN=release"],
                    }
                ],
            }
        )
        verifier = NotationVerifier(
            name="verifier-notation",
            document=document,
            trust_stores={(StoreType.CA, "company"): providers},
            revocation=self.revocation,
        )
        self.executor.use(Snapshot(1, {"": Scope((self.store,), (verifier,), ConfigPolicy({ARTIFACT_TYPE: Rule.ANY}))}))

    async def verdicts(self) -> tuple[str, str, str]:
        """What is said of the signed, the unsigned and the untrusted image: `ok`, or a code. Azure is not asked."""
        asked = self.azure.asked
        codes = []
        for name in ("signed", "unsigned", "untrusted"):
            try:
                verdict = (await self.executor.verify(f"{self.registry.host}/{name}:v1")).verdict
            except (Undecided, InvalidKey) as error:
                self.azure.told.append(str(error))
                codes.append(error.code)
            else:
                self.azure.told.append(repr(verdict))
                codes.append("ok" if verdict.is_success else verdict.code)
        assert self.azure.asked == asked, "an admission asked Azure"
        return codes[0], codes[1], codes[2]


RIGHT = ("ok", "UNSIGNED", "UNTRUSTED_ROOT")
NO_KEYS = ("KEYS_UNAVAILABLE", "UNSIGNED", "KEYS_UNAVAILABLE")


@pytest.fixture
async def images(azure: Azure) -> AsyncIterator[Images]:
    executor = Executor(ExecutorSettings(result_ttl_seconds=0))
    async with RegistrySimulator() as registry:
        for name, signer in (("signed", SIGNER), ("unsigned", None), ("untrusted", STRANGER)):
            image = registry.push_image(name, tag="v1", content=name.encode())
            if signer is not None:
                envelope = signing.sign(image, signer, NOW)
                kind = "application/jose+json"
                registry.push_blob(name, envelope, kind)
                registry.push_manifest(
                    name, signing.signature_manifest(image, envelope, kind, signer.chain, created=NOW)
                )
        made = Images(
            azure, registry, executor, OrasStore("store", OrasStoreSettings(plain_http=True)), RevocationFetcher()
        )
        yield made
        await executor.aclose()
        await made.store.aclose()
        await made.revocation.aclose()


async def load(azure: Azure, provider: AzureKeyVaultProvider) -> None:
    """Refresh until it works: with a limit of milliseconds a busy machine needs more than one try."""
    async with asyncio.timeout(20):
        while await azure.refresh(provider):
            pass
