"""Images in Google Artifact Registry, read by a workload identity, against simulators under genuine names
(attacks N07, N11, N12)."""

from __future__ import annotations

import asyncio
import json
import textwrap
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import trustme

from provider.assembly import Assembler
from provider.configuration.manifests import load
from provider.credentials.google import SCOPE, ArtifactRegistryCredentials
from provider.credentials.renewal import REFUSAL_PAUSE_SECONDS
from provider.demo import pki
from provider.egress import ProxySettings
from provider.errors import Undecided
from provider.executor import Executor
from provider.oci import Reference
from provider.parts import Environment
from provider.stores.oras import OrasStore
from provider.stores.profile import RegistryProfile
from tests.integration.test_admission import MANIFESTS, ROOT, SIGNER, push_signature
from tests.simulators.azure.entra import service_account_token
from tests.simulators.azure.hosts import Hosts
from tests.simulators.clouds.google import (
    ACCOUNT,
    AUDIENCE,
    READ_ONLY,
    REGISTRY,
    ArtifactRegistrySimulator,
    FederationSimulator,
    MetadataSimulator,
    Tokens,
)
from tests.simulators.listener import Fault, body, delay, hang, reset, status
from tests.simulators.registry import SIGNATURE
from tests.simulators.stores import QUICK, Clock
from tests.simulators.witness import Witness, witness

NAME = "project/repository/app"
JSON = {"Content-Type": "application/json"}


@dataclass
class Google:
    """A pod, and Google Cloud around it."""

    tokens: Tokens
    metadata: MetadataSimulator
    federation: FederationSimulator
    registry: ArtifactRegistrySimulator
    hosts: Hosts
    folder: Path
    subject_token: str
    variables: dict[str, str]

    @property
    def proxies(self) -> ProxySettings:
        return ProxySettings.from_environment(self.hosts.variables)

    def credentials(self, config: Path | None = None, **more: Any) -> ArtifactRegistryCredentials:
        return ArtifactRegistryCredentials(config, proxies=self.proxies, variables=self.variables, **more)

    def configuration(self, *, impersonate: bool = False, form: str = "text", **changes: Any) -> Path:
        """A credential configuration as gcloud writes it, with changes."""
        file = self.folder / "subject-token"
        file.write_text(json.dumps({"id_token": self.subject_token}) if form == "json" else f"{self.subject_token}\n")
        source: dict[str, Any] = {"file": str(file), "format": {"type": form}}
        if form == "json":
            source["format"]["subject_token_field_name"] = "id_token"
        document = {
            "universe_domain": "googleapis.com",
            "type": "external_account",
            "audience": AUDIENCE,
            "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
            "token_url": "https://sts.googleapis.com/v1/token",
            "credential_source": source,
        }
        if impersonate:
            document["service_account_impersonation_url"] = (
                f"https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/{ACCOUNT}:generateAccessToken"
            )
        path = self.folder / "credential-configuration.json"
        path.write_text(json.dumps({**document, **changes}))
        return path


@pytest.fixture
def heard() -> Iterator[Witness]:
    with witness() as listening:
        yield listening


@pytest.fixture
async def google(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heard: Witness) -> AsyncIterator[Google]:
    """No secret may be heard of, whatever happens in a test."""
    authority = trustme.CA()
    tokens = Tokens()
    subject = service_account_token(audience=AUDIENCE)
    async with (
        MetadataSimulator(tokens) as metadata,
        FederationSimulator(tokens, tls=authority) as federation,
        ArtifactRegistrySimulator(tokens, tls=authority) as registry,
        Hosts(
            {**dict.fromkeys(federation.HOSTS, federation), **dict.fromkeys(registry.HOSTS, registry)},
            authority,
            tmp_path,
        ) as hosts,
    ):
        hosts.apply(monkeypatch)
        federation.subjects.add(subject)
        image = registry.push_image(NAME, tag="v1")
        registry.push_artifact(NAME, image, SIGNATURE, [(b"envelope", "application/jose+json")])
        variables = {"GCE_METADATA_HOST": metadata.host}
        yield Google(tokens, metadata, federation, registry, hosts, tmp_path, subject, variables)
    heard.check([subject, *tokens.minted])


async def read(google: Google, source: ArtifactRegistryCredentials, registry: str = REGISTRY) -> int:
    """Resolve, list, fetch everything; how many signatures there are."""
    store = OrasStore("store", QUICK, credentials=source, proxies=google.proxies)
    try:
        subject = await store.resolve(Reference.parse(f"{registry}/{NAME}:v1"))
        entries = [entry async for entry in store.list_referrers(subject, SIGNATURE)]
        for entry in entries:
            await store.fetch_manifest(subject, entry)
        return len(entries)
    finally:
        await store.aclose()


async def failure(google: Google, heard: Witness, config: Path | None = None, **more: Any) -> Undecided:
    """The error of asking for a credential, which is noted for its looks."""
    source = google.credentials(config, **more)
    with pytest.raises(Undecided) as caught:
        await source.credential(REGISTRY, NAME)
    await source.aclose()
    heard.see(caught.value, caught.value.remediation)
    assert caught.value.code == "CREDENTIALS_UNAVAILABLE"
    return caught.value


class TestTheWayThere:
    @pytest.mark.parametrize("registry", [REGISTRY, "us-central1-docker.pkg.dev", "gcr.io", "eu.gcr.io"])
    async def test_the_node_says_who_a_pod_is(self, google: Google, heard: Witness, registry: str) -> None:
        source = google.credentials()
        assert await read(google, source, registry) == 1
        assert len(google.metadata.requests) == 1
        heard.see(source, await source.credential(REGISTRY, NAME))
        await source.aclose()

    async def test_n12_the_token_can_only_read(self, google: Google) -> None:
        source = google.credentials()
        await source.credential(REGISTRY, NAME)
        await source.aclose()
        assert SCOPE == READ_ONLY
        assert list(google.tokens.scopes.values()) == [READ_ONLY]

    @pytest.mark.parametrize("form", ["text", "json"])
    async def test_a_federation_says_who_a_pod_of_another_cloud_is(self, google: Google, form: str) -> None:
        source = google.credentials(google.configuration(form=form))
        assert await read(google, source) == 1
        await source.aclose()
        assert google.metadata.requests == []
        assert list(google.tokens.scopes.values()) == [READ_ONLY]

    async def test_a_federated_identity_can_be_a_service_account(self, google: Google) -> None:
        google.variables["GOOGLE_APPLICATION_CREDENTIALS"] = str(google.configuration(impersonate=True))
        source = google.credentials()
        assert await read(google, source) == 1
        await source.aclose()
        first, second = google.tokens.scopes.values()
        assert (first, second) == ("https://www.googleapis.com/auth/iam", READ_ONLY)

    async def test_all_who_wait_share_one_exchange(self, google: Google) -> None:
        google.metadata.fault("*", delay(0.05))
        source = google.credentials()
        found = await asyncio.gather(*(source.credential(REGISTRY, f"{NAME}-{number}") for number in range(20)))
        assert len(set(found)) == len(google.metadata.requests) == 1
        await source.aclose()

    async def test_a_token_is_given_up_five_minutes_before_its_end(self, google: Google) -> None:
        for config in (None, google.configuration(), google.configuration(impersonate=True)):
            clock = Clock()
            source = google.credentials(config, monotonic=clock)
            first = await source.credential(REGISTRY, NAME)
            clock.now += (3599 - 300) * 0.7
            assert await source.credential(REGISTRY, NAME) == first
            clock.now += (3599 - 300) * 0.3 + 2
            assert await source.credential(REGISTRY, NAME) != first
            await source.aclose()

    async def test_a_token_that_is_refused_is_got_anew_once(self, google: Google) -> None:
        clock = Clock()
        source = google.credentials(monotonic=clock)
        await source.credential(REGISTRY, NAME)
        google.tokens.scopes.clear()
        clock.now += REFUSAL_PAUSE_SECONDS + 1
        assert await read(google, source) == 1
        assert len(google.metadata.requests) == 2
        await source.aclose()


@pytest.mark.parametrize("federated", [False, True])
async def test_a_store_with_googleworkloadidentity_admits_what_is_signed(
    google: Google, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, federated: bool
) -> None:
    monkeypatch.setenv("GCE_METADATA_HOST", google.metadata.host)
    auth = "authProvider: {name: googleWorkloadIdentity}"
    if federated:
        auth = f"authProvider: {{name: googleWorkloadIdentity, configPath: {google.configuration()}}}"
    root = textwrap.indent(pki.pem(ROOT.certificate).decode(), " " * 6)
    text = MANIFESTS.format(pem=root).replace("useHttp: true, timeoutSeconds: 2", auth)
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "all.yaml").write_text(text)
    image = google.registry.push_image("project/shop/app", tag="signed")
    push_signature(google.registry, "project/shop/app", image, SIGNER)
    google.registry.push_image("project/shop/app", tag="unsigned", content=b"other")
    executor = Executor()
    assembler = Assembler(executor.use, environment=Environment(proxies=google.proxies))
    await assembler.apply(load(tmp_path / "config"))
    assert (await executor.verify(f"{REGISTRY}/project/shop/app:signed")).is_success
    assert not (await executor.verify(f"{REGISTRY}/project/shop/app:unsigned")).is_success
    await executor.aclose()
    await assembler.aclose()
    assert bool(google.metadata.requests) != federated


class TestWhoNeverSeesAToken:
    @pytest.mark.parametrize(
        "domain",
        [
            "europe-docker.pkg.dev.attacker.example",
            "docker.pkg.dev",
            "-docker.pkg.dev",
            "europe-docker.pkg.dev:443",
            "a.b-docker.pkg.dev",
            "a.b.gcr.io",
            "agcr.io",
            "gcr.io.",
            "registry.example.com",
        ],
    )
    async def test_n07_another_host_gets_nothing(self, google: Google, domain: str) -> None:
        source = google.credentials()
        assert await source.credential(domain, NAME) is None
        assert await source.another(domain, NAME, [None]) is None
        await source.aclose()
        assert google.metadata.requests == []

    async def test_n07_a_registry_that_names_another_token_service_gets_no_token_there(
        self, google: Google, heard: Witness
    ) -> None:
        google.registry.realm = "https://europe-docker.pkg.dev.attacker.example/v2/token"
        source = google.credentials()
        with pytest.raises(Undecided) as caught:
            await read(google, source)
        heard.see(caught.value)
        await source.aclose()
        assert caught.value.code == "REGISTRY_UNAUTHORIZED"
        assert not any("attacker" in name for name in google.hosts.connections)

    async def test_n07_not_even_a_token_host_that_is_listed_gets_the_token(
        self, google: Google, heard: Witness
    ) -> None:
        google.registry.realm = "https://gcr.io/v2/token"
        source = google.credentials()
        settings = replace(QUICK, profiles=(RegistryProfile(REGISTRY, token_hosts=frozenset({"gcr.io"})),))
        store = OrasStore("store", settings, credentials=source, proxies=google.proxies)
        with pytest.raises(Undecided, match="registry itself alone") as caught:
            await store.resolve(Reference.parse(f"{REGISTRY}/{NAME}:v1"))
        heard.see(caught.value)
        await store.aclose()
        await source.aclose()
        assert not any("gcr.io" in name for name in google.hosts.connections)

    @pytest.mark.parametrize(
        "changes",
        [
            {"token_url": "https://attacker.example/v1/token"},
            {"token_url": "https://sts.googleapis.com.attacker.example/v1/token"},
            {"token_url": "http://sts.googleapis.com/v1/token"},
            {"token_url": "https://sts.googleapis.com/v1/token/../elsewhere"},
            {"token_url": "https://sts.googleapis.com@attacker.example/v1/token"},
            {"service_account_impersonation_url": "https://attacker.example/x:generateAccessToken"},
            {"service_account_impersonation_url": "https://iamcredentials.googleapis.com/../x:generateAccessToken"},
        ],
    )
    async def test_n07_a_configuration_cannot_send_tokens_elsewhere(
        self, google: Google, heard: Witness, changes: dict[str, str]
    ) -> None:
        error = await failure(google, heard, google.configuration(**changes))
        assert "is not Google's" in error.reason
        assert google.hosts.connections == []


class TestFaults:
    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"type": "service_account"}, "external_account"),
            ({"audience": ""}, "no audience"),
            ({"subject_token_type": 7}, "no audience or no subject_token_type"),
            ({"credential_source": {"url": "http://169.254.169.254/"}}, "names no file"),
            ({"credential_source": "file"}, "names no file"),
            ({"credential_source": {"file": "/nowhere"}}, "cannot be read: No such file"),
            ({"credential_source": {"file": "\0"}}, "cannot be read"),
            ({"credential_source": {"file": "/dev/null"}}, "holds no token"),
            ({"credential_source": {"file": "/dev/null", "format": {"type": "json"}}}, "holds no token"),
            (
                {
                    "credential_source": {
                        "file": "/dev/null",
                        "format": {"type": "json", "subject_token_field_name": "x"},
                    }
                },
                "holds no token",
            ),
        ],
    )
    async def test_a_configuration_that_cannot_be_used_is_told(
        self, google: Google, heard: Witness, changes: dict[str, Any], words: str
    ) -> None:
        assert words in (await failure(google, heard, google.configuration(**changes))).reason
        assert google.hosts.connections == []

    @pytest.mark.parametrize("content", [None, b"", b"[]", b"{", b"\xff"])
    async def test_a_configuration_that_cannot_be_read_is_told(
        self, google: Google, heard: Witness, content: bytes | None
    ) -> None:
        path = google.folder / "other.json"
        if content is not None:
            path.write_bytes(content)
        assert "the credential configuration of Google" in (await failure(google, heard, path)).reason

    async def test_a_provider_of_the_pool_that_refuses_is_told_without_what_was_sent(
        self, google: Google, heard: Witness
    ) -> None:
        google.federation.subjects.clear()
        error = await failure(google, heard, google.configuration())
        assert error.reason.endswith("it answered 400 (invalid_grant)")

    async def test_an_identity_that_may_not_be_the_service_account_is_told_the_role(
        self, google: Google, heard: Witness
    ) -> None:
        denied = b'{"error": {"code": 403, "message": "m", "status": "PERMISSION_DENIED"}}'
        google.federation.fault("*generateAccessToken", status(403, body=denied, headers=JSON))
        error = await failure(google, heard, google.configuration(impersonate=True))
        assert error.reason.endswith("it answered 403 (PERMISSION_DENIED)")
        assert "roles/iam.workloadIdentityUser" in error.remediation

    @pytest.mark.parametrize("where", ["metadata", "exchange", "impersonation"])
    @pytest.mark.parametrize(
        ("fault", "words"),
        [
            (status(200, body=b"<html>"), "200 without one that can be read"),
            (status(200, body=b"{}"), "200 without"),
            (status(200, body=b'{"access_token": "x", "accessToken": "x"}'), "200 without"),
            (status(200, body=b'{"access_token": "x", "expires_in": true, "accessToken": 7}'), "200 without"),
            (status(200, body=b'{"access_token": "x", "expires_in": 0}'), "200 without"),
            (status(200, body=b'{"access_token": "two\\n", "expires_in": 9}'), "200 without"),
            (status(200, body=b'{"accessToken": "x", "expireTime": "2026-01-01T00:00:00"}'), "200 without"),
            (status(404), "answered 404"),
            (status(302, headers={"Location": "https://attacker.example/"}), "answered 302"),
            (status(500), "answered 500"),
            (reset(), "closed the connection"),
            (body(b"x" * 300_000), "more than"),
        ],
    )
    async def test_a_fault_is_an_error(
        self, google: Google, heard: Witness, where: str, fault: Fault, words: str
    ) -> None:
        patterns = {"metadata": "*", "exchange": "/v1/token", "impersonation": "*generateAccessToken"}
        server = google.metadata if where == "metadata" else google.federation
        server.fault(patterns[where], fault)
        config = None if where == "metadata" else google.configuration(impersonate=where == "impersonation")
        assert words in (await failure(google, heard, config)).reason
        assert not any("attacker" in name for name in google.hosts.connections)

    async def test_a_metadata_host_that_is_none_is_told(self, google: Google, heard: Witness) -> None:
        google.variables["GCE_METADATA_HOST"] = "[:"
        assert "GCE_METADATA_HOST" in (await failure(google, heard)).reason

    async def test_closing_ends_what_is_under_way(self, google: Google) -> None:
        google.metadata.fault("*", hang())
        source = google.credentials()
        waiting = asyncio.create_task(source.credential(REGISTRY, NAME))
        while not google.metadata.requests:  # noqa: ASYNC110 - looking on from outside
            await asyncio.sleep(0.01)
        await source.aclose()
        with pytest.raises(Undecided):
            await waiting
