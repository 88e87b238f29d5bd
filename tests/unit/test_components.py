"""What stands behind a type: everything of a resource reaches its object, and what cannot be built is a fault."""

from __future__ import annotations

import json
import ssl
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from provider import components
from provider.configuration.manifests import load
from provider.configuration.resources import PARAMETERS, Component, assemble_set
from provider.configuration.stores import CREDENTIALS, DockerConfigParameters, OrasParameters, RegistryParameters
from provider.errors import ConfigurationError
from provider.parts import Environment
from tests.unit.assembling import FOLDERS, assembler, write_manifests
from tests.unit.configuration.samples import GOOD, ROOT_PEM, SIGNER, good, read


def test_every_type_that_is_read_has_a_class() -> None:
    """And no class is out of reach."""
    tables = {
        Component.STORE: components.STORES,
        Component.VERIFIER: components.VERIFIERS,
        Component.KEY_PROVIDER: components.KEY_PROVIDERS,
        Component.POLICY: components.POLICIES,
    }
    assert {(component, name) for component, table in tables.items() for name in table} == PARAMETERS.keys()
    assert components.CREDENTIALS.keys() == CREDENTIALS.keys()


async def test_credentials_are_those_that_the_store_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Stores that name the same share them."""
    asked: list[tuple[Path | None, bool]] = []

    def credentials(attempt: Any, resource: Any, parameters: DockerConfigParameters) -> None:
        asked.append((parameters.config_path, attempt.environment.docker_config is None))

    monkeypatch.setitem(components.CREDENTIALS, "dockerConfig", credentials)  # type: ignore[arg-type]
    named = GOOD["Store"] + "    authProvider: {name: dockerConfig, configPath: /etc/docker.json}\n"
    stores = [named, named.replace("store-oras", "a"), GOOD["Store"].replace("store-oras", "b")]
    async with assembler() as (one, _):
        await one.apply(read(*good(Store=stores[0]), *stores[1:]))
    assert asked == [(Path("/etc/docker.json"), True), (None, True)]


async def test_stores_are_built_with_all_that_their_resource_says(tmp_path: Path) -> None:
    """A registry of one's own authority, numbers, credentials: nothing of it fails to fit the store's settings."""
    (tmp_path / "ca.pem").write_text(ROOT_PEM)
    store = GOOD["Store"] + (
        "    authProvider: {name: dockerConfig, configPath: docker.json}\n"
        "    registries:\n"
        "      - {host: registry.example.com, caFile: ca.pem, tokenHosts: [a.example.com], redirectHosts: [b:1]}\n"
        f"      - {{host: 'other.example.com:5000', caBundle: {json.dumps(ROOT_PEM)}}}\n"
        "      - {host: localhost:5000, plainHttp: true}\n"
        "    useHttp: false\n    maxReferrers: 5\n    timeoutSeconds: 1\n    maxConnectionsPerHost: 2\n"
    )
    environment = Environment.from_variables({"HOME": str(tmp_path), "HTTPS_PROXY": "proxy.example.com:3128"})
    async with assembler(environment=environment) as (one, published):
        await one.apply(load(write_manifests(tmp_path, *good(Store=store))))
    assert [store.name for store in published[0].scopes[""].stores] == ["store-oras"]


async def test_files_that_a_store_needs_and_cannot_use_are_faults(tmp_path: Path) -> None:
    broken = GOOD["Store"] + "    registries: [{host: registry.example.com, caFile: none.pem}]\n"
    async with assembler() as (one, published):
        with pytest.raises(ConfigurationError) as caught:
            await one.apply(load(write_manifests(tmp_path, *good(Store=broken))))
        assert not published
    [fault] = caught.value.faults
    assert (fault.resource, fault.path) == ("Store/store-oras", "spec.parameters")
    assert "none.pem cannot be read" in fault.message


async def test_settings_that_a_store_refuses_are_faults(tmp_path: Path) -> None:
    """Should the models ever let through what the store does not take."""
    [store] = read(*good()).stores
    registry = RegistryParameters.model_construct(host="No Host")
    wrong = replace(store, parameters=OrasParameters().model_copy(update={"registries": (registry,)}))
    resources = assemble_set([wrong, *(one for one in read(*good()) if one.component is not Component.STORE)])
    async with assembler() as (one, _):
        with pytest.raises(ConfigurationError, match="is not a registry host"):
            await one.apply(resources)


async def test_a_trust_store_never_lacks_a_source_silently() -> None:
    """A set that was not checked: the key provider is missing."""
    resources = assemble_set(one for one in read(*good()) if one.component is not Component.KEY_PROVIDER)
    async with assembler() as (one, _):
        with pytest.raises(ConfigurationError) as caught:
            await one.apply(resources)
    assert [(fault.path, fault.message) for fault in caught.value.faults] == [
        ("spec.parameters.verificationCertStores.ca.certs", "there is no key provider ratify-notation-inline-cert-0")
    ]


async def test_a_folder_serves_stores_of_its_type_only(tmp_path: Path) -> None:
    """A leaf that signs itself may be in a ca store and not in a tsa store, though the folder is the same."""
    folder = tmp_path / "certs"
    folder.mkdir()
    (folder / "root.pem").write_text(ssl.DER_cert_to_PEM_cert(SIGNER.chain[1]))
    verifier = FOLDERS.replace("[certs]", f"[{folder}]").replace(
        '["ca:certs"]', '["ca:certs", "tsa:clock", "ca:other"]'
    )
    async with assembler() as (one, published):
        await one.apply(read(*good(Verifier=verifier)))
        assert len(published) == 1
        (folder / "leaf.pem").write_text(ssl.DER_cert_to_PEM_cert(SIGNER.chain[0]))
        await one.apply(read(*good(Verifier=verifier, Policy=GOOD["Policy"].replace("any", "all"))))
        assert len(published) == 2  # the folder lives on with what was good; its own refresh tells of the leaf
