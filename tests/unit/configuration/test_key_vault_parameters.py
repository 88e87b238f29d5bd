"""A KeyManagementProvider of type azurekeyvault as it is written: defaults, what overrides them, what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from provider.configuration.key_providers import MIN_VAULT_REFRESH_SECONDS, AzureKeyVaultParameters
from provider.configuration.resources import Resource, ResourceSet
from provider.errors import ConfigurationError
from provider.key_management.azure_key_vault import MAX_AGE_SECONDS, REFRESH_SECONDS, AzureKeyVaultSettings
from provider.key_management.key_vault_objects import VaultObject
from tests.unit.configuration.samples import GOOD, good, read

PAGE = Path(__file__).resolve().parents[3] / "docs" / "azure.md"
VERSION = "0123456789abcdef0123456789abcdef"


def vault(spec: str = "", **parameters: Any) -> str:
    content = {"vaultURI": "https://contoso.vault.azure.net", "certificates": [{"name": "release"}], **parameters}
    text = yaml.safe_dump({"parameters": content})
    indented = "".join(f"  {line}\n" for line in text.splitlines())
    return (
        "apiVersion: config.ratify.deislabs.io/v1beta1\nkind: KeyManagementProvider\n"
        f"metadata: {{name: ratify-notation-inline-cert-0}}\nspec:\n  type: azurekeyvault\n{spec}{indented}"
    )


def resource(text: str, verifier: str = GOOD["Verifier"], *more: str) -> tuple[ResourceSet, Resource]:
    resources = read(*good(KeyManagementProvider=text, Verifier=verifier), *more)
    (found,) = [one for one in resources.key_providers if one.type == "azurekeyvault"]
    return resources, found


def parameters(text: str) -> AzureKeyVaultParameters:
    found = resource(text)[1].parameters
    assert isinstance(found, AzureKeyVaultParameters)
    return found


def test_the_newest_two_versions_count_unless_something_else_is_said() -> None:
    certificates = [
        {"name": "a"},
        {"name": "b", "version": VERSION.upper()},
        {"name": "c", "versionHistoryLimit": 0},
    ]
    read_ones = parameters(vault(certificates=certificates))
    assert read_ones.version_history_limit == 2
    assert [one.wanted(2) for one in read_ones.certificates] == [
        VaultObject("a", None, 2),
        VaultObject("b", VERSION, 2),
        VaultObject("c", None, 0),
    ]


@pytest.mark.parametrize(
    ("spec", "seconds", "age"),
    [
        ("", REFRESH_SECONDS, MAX_AGE_SECONDS),
        ("  refreshInterval: 1h\n", 3600.0, MAX_AGE_SECONDS),
        ("  refreshInterval: 24h\n", 86400.0, 2 * 86400.0),
        ("  refreshInterval: 1s\n", MIN_VAULT_REFRESH_SECONDS, MAX_AGE_SECONDS),
    ],
)
def test_refreshing_is_on_and_what_was_loaded_stays_for_two_of_its_times(spec: str, seconds: float, age: float) -> None:
    """Ratify never asks again unless told to, and a rotated certificate goes unseen until the pod restarts."""
    found = resource(vault(spec))[1]
    assert isinstance(found.parameters, AzureKeyVaultParameters)
    assert found.parameters.interval_seconds(found.refresh_seconds) == seconds
    assert found.parameters.max_age_seconds(found.refresh_seconds) == age


def test_the_age_can_be_set() -> None:
    assert parameters(vault(maxAge="90m")).max_age_seconds(None) == 5400.0


@pytest.mark.parametrize(
    "uri",
    [
        "https://contoso.vault.azure.net/",
        "https://CONTOSO.vault.azure.net",
        "https://a-1.vault.azure.cn",
        "https://abc.vault.usgovcloudapi.net",
    ],
)
def test_vaults_of_every_cloud_are_known(uri: str) -> None:
    assert parameters(vault(vaultURI=uri)).vault_uri == uri.lower().rstrip("/")


@pytest.mark.parametrize(
    "uri",
    [
        "http://contoso.vault.azure.net",
        "https://contoso.vault.azure.net.evil.example",
        "https://evil.example/contoso.vault.azure.net",
        "https://contoso.vault.azure.net@evil.example",
        "https://user:password@contoso.vault.azure.net",
        "https://contoso.vault.azure.net:8443",
        "https://contoso.vault.azure.net/secrets",
        "https://contoso.vault.azure.net?x=1",
        "https://contoso.vault.azure.net#x",
        "https://a.b.vault.azure.net",
        "https://vault.azure.net",
        "https://-a.vault.azure.net",
        "https://contoso.managedhsm.azure.net",
        "https://[::1",
        "contoso",
        "",
    ],
)
def test_n07_a_token_is_for_vaults_and_what_only_looks_like_one_is_refused(uri: str) -> None:
    with pytest.raises(ConfigurationError, match="vaultURI"):
        resource(vault(vaultURI=uri))


def test_the_same_certificate_twice_is_told_whatever_its_case() -> None:
    with pytest.raises(ConfigurationError, match=r"certificates\[1\]\.name: Release stands here a second time"):
        resource(vault(certificates=[{"name": "release"}, {"name": "Release"}]))
    twice = [{"name": "release"}, {"name": "release", "version": VERSION}]
    assert len(parameters(vault(certificates=twice)).certificates) == 2


def test_expired_versions_count_beside_a_tsa_store_and_nowhere_else() -> None:
    """A store of its own or of another statement makes no difference to this provider."""
    resources, found = resource(vault())
    assert not resources.has_timestamps(found)
    beside = (
        GOOD["Verifier"]
        .replace('["ca:certs"]', '["ca:certs", "tsa:stamps"]')
        .replace("      ca:\n", "      tsa:\n        stamps: [stamps]\n      ca:\n")
    )
    stamps = GOOD["KeyManagementProvider"].replace("ratify-notation-inline-cert-0", "stamps")
    resources, found = resource(vault(), beside, stamps)
    assert resources.has_timestamps(found)
    inline = next(one for one in resources.key_providers if one.type == "inline")
    assert resources.has_timestamps(inline)


def test_a_provider_of_nothing_and_one_that_keeps_nothing_are_programming_errors() -> None:
    with pytest.raises(ValueError, match="neither"):
        AzureKeyVaultSettings()
    with pytest.raises(ValueError, match="more than 0"):
        AzureKeyVaultSettings((VaultObject("a"),), max_age_seconds=0)


def test_what_the_page_shows_is_a_good_resource() -> None:
    (shown,) = re.findall(
        r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8").partition("## Key Vault")[2], re.DOTALL
    )[:1]
    found = parameters(shown.replace("name: kmprovider-akv", "name: ratify-notation-inline-cert-0"))
    assert [one.name for one in found.certificates] == ["contoso-signing", "partner-signing"]
