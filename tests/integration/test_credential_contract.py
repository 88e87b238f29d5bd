"""The contract of CredentialProvider, kept by the sources of the clouds against simulators, and by Docker's file."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trustme

from provider.credentials.aws import ElasticContainerRegistryCredentials
from provider.credentials.docker_config import DockerConfigCredentials
from provider.credentials.google import ArtifactRegistryCredentials
from provider.egress import ProxySettings
from tests.contracts.credentials import CredentialContract, World
from tests.simulators.azure.cloud import REGISTRY as ACR
from tests.simulators.azure.cloud import cloud
from tests.simulators.azure.entra import service_account_token
from tests.simulators.azure.hosts import Hosts
from tests.simulators.clouds import aws, google
from tests.simulators.listener import status


class TestAzureContainerRegistry(CredentialContract):
    @pytest.fixture
    async def world(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
        async with cloud(tmp_path, monkeypatch) as azure:
            yield World(
                azure.credentials(),
                ACR,
                cloud=True,
                asked=lambda: len(azure.entra.requests) + len(azure.acr.requests),
                break_it=lambda: azure.acr.fault("/oauth2/*", status(500)),
                secrets=lambda: azure.secrets,
            )


class TestElasticContainerRegistry(CredentialContract):
    @pytest.fixture
    async def world(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
        authority = trustme.CA()
        token = service_account_token(audience="sts.amazonaws.com")
        (tmp_path / "token").write_text(token)
        async with (
            aws.SecurityTokenSimulator(tls=authority) as sts,
            aws.ElasticContainerRegistryApi(sts, tls=authority) as api,
            Hosts({**dict.fromkeys(sts.HOSTS, sts), **dict.fromkeys(api.HOSTS, api)}, authority, tmp_path) as hosts,
        ):
            hosts.apply(monkeypatch)
            sts.web_identities.add(token)
            source = ElasticContainerRegistryCredentials(
                proxies=ProxySettings.from_environment(hosts.variables),
                variables={
                    "AWS_ROLE_ARN": aws.ROLE,
                    "AWS_WEB_IDENTITY_TOKEN_FILE": str(tmp_path / "token"),
                    "AWS_REGION": aws.REGION,
                },
            )
            yield World(
                source,
                aws.REGISTRY,
                cloud=True,
                asked=lambda: len(sts.requests) + len(api.requests),
                break_it=lambda: api.fault("*", status(500)),
                secrets=lambda: [token, *sts.minted, *api.minted],
            )
            await source.aclose()


class TestArtifactRegistry(CredentialContract):
    @pytest.fixture
    async def world(self) -> AsyncIterator[World]:
        tokens = google.Tokens()
        async with google.MetadataSimulator(tokens) as metadata:
            source = ArtifactRegistryCredentials(variables={"GCE_METADATA_HOST": metadata.host})
            yield World(
                source,
                google.REGISTRY,
                cloud=True,
                asked=lambda: len(metadata.requests),
                break_it=lambda: metadata.fault("*", status(500)),
                secrets=lambda: tokens.minted,
            )
            await source.aclose()


class TestDockerConfig(CredentialContract):
    @pytest.fixture
    async def world(self, tmp_path: Path) -> World:
        path = tmp_path / "config.json"
        auth = {"username": "robot", "password": "hunter2-password"}
        path.write_text(json.dumps({"auths": {"registry.example.com": auth}}))
        return World(
            DockerConfigCredentials(path),
            "registry.example.com",
            cloud=False,
            asked=lambda: 0,
            break_it=lambda: path.write_text("{"),  # type: ignore[arg-type, return-value]
            secrets=lambda: ["hunter2-password"],
        )
