"""Images in Azure Container Registry, read by a workload identity: the unmodified SDK and store against simulators
under genuine names, with TLS and host rules on (attacks N04, N06, N07, N11, N12)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from provider.credentials.azure import RegistryHosts
from provider.errors import CountersignError, Refused, Undecided
from provider.interfaces import Credential
from provider.oci import Descriptor, Reference
from provider.stores.oras import OrasStore
from provider.stores.profile import RegistryProfile
from tests.simulators.azure.cloud import REGISTRY, STORAGE, Cloud, cloud
from tests.simulators.azure.entra import CLIENT, REGISTRY_AUDIENCE
from tests.simulators.listener import body, delay, hang, status
from tests.simulators.registry import SIGNATURE
from tests.simulators.stores import QUICK, Clock
from tests.simulators.witness import Witness, witness

NAME = "team/app"
JWS = "application/jose+json"


@pytest.fixture
def heard() -> Iterator[Witness]:
    with witness() as listening:
        yield listening


@pytest.fixture
async def azure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heard: Witness) -> AsyncIterator[Cloud]:
    """A cluster beside a registry with one signed image. No secret may be heard of, whatever happens in a test."""
    async with cloud(tmp_path, monkeypatch) as running:
        push(running)
        yield running
    assert running.hosts.strangers == []
    heard.check(running.secrets)


def push(azure: Cloud, name: str = NAME) -> Descriptor:
    image = azure.acr.push_image(name, tag="v1")
    azure.acr.push_artifact(name, image, SIGNATURE, [(f"envelope of {name}".encode(), JWS)])
    return image


async def read(store: OrasStore, registry: str = REGISTRY, name: str = NAME) -> int:
    """Resolve, list, fetch everything; how many signatures there are."""
    subject = await store.resolve(Reference.parse(f"{registry}/{name}:v1"))
    entries = [entry async for entry in store.list_referrers(subject, SIGNATURE)]
    for entry in entries:
        manifest = await store.fetch_manifest(subject, entry)
        assert manifest
    return len(entries)


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something has happened."""
    while not condition():  # noqa: ASYNC110 - looking on from outside
        await asyncio.sleep(0.01)


async def refusal(heard: Witness, store: OrasStore, registry: str = REGISTRY, name: str = NAME) -> CountersignError:
    """The error of reading, which is noted for its looks."""
    with pytest.raises((Undecided, Refused)) as caught:
        await read(store, registry, name)
    heard.see(caught.value, caught.value.remediation, caught.value.found)
    return caught.value


class TestTheWayThere:
    async def test_a_workload_identity_reads_a_registry_with_one_exchange_of_each_kind(self, azure: Cloud) -> None:
        store = azure.store(azure.credentials())
        assert await read(store) == 1
        assert azure.entra.lines == [f"POST /{azure.variables['AZURE_TENANT_ID']}/oauth2/v2.0/token"]
        assert azure.acr.lines[:4] == ["GET /v2/", "POST /oauth2/exchange", f"HEAD /v2/{NAME}/manifests/v1", "POST /oauth2/token"]  # fmt: skip  # noqa: E501
        [exchange] = azure.acr.exchanges
        assert exchange == {
            "grant_type": "access_token",
            "service": REGISTRY,
            "tenant": azure.variables["AZURE_TENANT_ID"],
            "access_token": azure.entra.minted[0],
        }

    async def test_n12_entra_is_asked_for_registries_and_the_registry_for_one_repository_to_pull(
        self, azure: Cloud
    ) -> None:
        push(azure, "team/other")
        store = azure.store(azure.credentials())
        assert await read(store) + await read(store, name="team/other") == 2
        assert [token["aud"] for token in azure.entra.tokens.values()] == [REGISTRY_AUDIENCE]
        assert azure.acr.scopes == ["repository:team/app:pull", "repository:team/other:pull"]

    async def test_the_challenge_of_a_repository_cannot_widen_the_scope(self, azure: Cloud) -> None:
        azure.acr.challenge = (
            f'Bearer realm="https://{REGISTRY}/oauth2/token",service="{REGISTRY}",'
            'scope="registry:catalog:* repository:other:pull,push"'
        )
        assert await read(azure.store(azure.credentials())) == 1
        assert azure.acr.scopes == ["repository:team/app:pull"]

    async def test_a_registry_with_permissions_by_repository_is_read_by_its_reader(self, azure: Cloud) -> None:
        azure.acr.abac = True
        azure.acr.roles.repository_reader = {CLIENT: {NAME}}
        assert await read(azure.store(azure.credentials())) == 1

    async def test_acrpull_alone_does_not_count_where_permissions_are_by_repository(
        self, azure: Cloud, heard: Witness
    ) -> None:
        azure.acr.abac = True
        error = await refusal(heard, azure.store(azure.credentials()))
        assert (error.code, "403" in error.reason) == ("REGISTRY_UNAUTHORIZED", True)

    @pytest.mark.parametrize(
        "registry",
        ["registry.azurecr.us", "registry.azurecr.cn", "registry.westeurope.geo.azurecr.io", "name-hash01.azurecr.io"],
    )
    async def test_registries_of_every_cloud_and_their_regional_names_are_read(
        self, azure: Cloud, registry: str
    ) -> None:
        assert await read(azure.store(azure.credentials()), registry) == 1
        assert [exchange["service"] for exchange in azure.acr.exchanges] == [registry]

    async def test_a_configured_endpoint_is_read_and_replaces_the_names_of_azure(
        self, azure: Cloud, heard: Witness
    ) -> None:
        hosts = RegistryHosts.of(["registry.contoso.example"])
        store = azure.store(azure.credentials(hosts=hosts))
        assert await read(store, "registry.contoso.example") == 1
        error = await refusal(heard, store)
        assert error.code == "REGISTRY_UNAUTHORIZED"
        assert [exchange["service"] for exchange in azure.acr.exchanges] == ["registry.contoso.example"]

    async def test_n06_each_registry_gets_tokens_of_its_own(self, azure: Cloud) -> None:
        store = azure.store(azure.credentials())
        assert await read(store) + await read(store, "second.azurecr.io") == 2
        assert [exchange["service"] for exchange in azure.acr.exchanges] == [REGISTRY, "second.azurecr.io"]
        assert len(azure.entra.minted) == 1

    async def test_n04_blobs_come_from_storage_without_authorization(self, azure: Cloud) -> None:
        store = azure.store(azure.credentials())
        azure.acr.redirect_blobs_to = STORAGE
        data = b"kept elsewhere"
        blob = azure.acr.push_blob(NAME, data)
        azure.storage.blobs[str(blob.digest)] = data
        subject = await store.resolve(Reference.parse(f"{REGISTRY}/{NAME}:v1"))
        assert await store.fetch_blob(subject, blob, 1024) == data
        [request] = azure.storage.requests
        assert request.authorization is None
        assert "Cookie" not in request.headers

    async def test_many_images_at_once_cost_one_exchange(self, azure: Cloud) -> None:
        for number in range(10):
            push(azure, f"team/app-{number}")
        azure.entra.fault("*", delay(0.05))
        azure.acr.fault("/oauth2/exchange", delay(0.05))
        store = azure.store(azure.credentials())
        assert sum(await asyncio.gather(*(read(store, name=f"team/app-{number}") for number in range(10)))) == 10
        assert (len(azure.entra.minted), len(azure.acr.exchanges), len(azure.acr.scopes)) == (1, 1, 10)

    async def test_preparing_has_the_token_there_before_the_first_image(self, azure: Cloud) -> None:
        credentials = azure.credentials()
        credentials.prepare()
        await until(lambda: bool(azure.entra.minted))
        assert azure.acr.requests == []
        assert await read(azure.store(credentials)) == 1
        assert len(azure.entra.minted) == 1

    async def test_preparing_tells_what_is_wrong_before_the_first_image(self, azure: Cloud, heard: Witness) -> None:
        azure.entra.federations.clear()
        credentials = azure.credentials()
        credentials.prepare()
        await until(lambda: "no credentials for registries of Azure yet" in heard.log.getvalue())
        assert "AADSTS700016" in heard.log.getvalue()

    async def test_closing_ends_what_is_under_way(self, azure: Cloud) -> None:
        azure.entra.fault("*", hang())
        credentials = azure.credentials()
        credentials.prepare()
        reading = asyncio.create_task(credentials.credential(REGISTRY, NAME))
        await until(lambda: bool(azure.entra.requests))
        await credentials.aclose()
        with pytest.raises(Undecided):
            await reading


class TestWhoNeverSeesAToken:
    """N07: whatever a host answers, Entra's token goes to registries of Azure alone."""

    @pytest.mark.parametrize(
        "domain",
        [
            "registry.azurecr.io.attacker.example",
            "a.b.azurecr.io",
            ".azurecr.io",
            "azurecr.io",
            "registryazurecr.io",
            "registry.azurecr.io:443",
            "registry.azurecr.io.",
            "registry.azurecr.de",
            "REGISTRY.azurecr.io",
            "xn--registry.azurecr.io",
            "registry.azurecr.io/../attacker.example",
            "user@registry.azurecr.io",
            "registry.west.europe.geo.azurecr.io",
            "registry.geo.azurecr.io.attacker.example",
            "127.0.0.1",
        ],
    )
    async def test_n07_a_host_outside_the_rule_is_not_asked_for_anything(self, azure: Cloud, domain: str) -> None:
        credentials = azure.credentials()
        assert await credentials.credential(domain, NAME) is None
        assert await credentials.another(domain, NAME, [None]) is None
        assert azure.entra.requests == azure.acr.requests == []
        azure.entra.mint("a", "b", "c")  # there is something to look for

    async def test_n07_a_host_that_looks_like_a_registry_of_azure_is_asked_anonymously(
        self, azure: Cloud, heard: Witness
    ) -> None:
        """It answers as one, and names the genuine registry as its service."""
        imposter = "registry.azurecr.io.attacker.example"
        azure.acr.service = REGISTRY
        error = await refusal(heard, azure.store(azure.credentials()), imposter)
        assert error.code == "REGISTRY_UNAUTHORIZED"
        assert azure.acr.exchanges == []
        assert all(request.authorization is None and not request.body for request in azure.acr.requests)
        azure.entra.mint("a", "b", "c")

    @pytest.mark.parametrize(
        "realm",
        [
            "https://attacker.azurecr.io/oauth2/token",
            "https://registry.azurecr.io.attacker.example/oauth2/token",
            "http://registry.azurecr.io/oauth2/token",
            "https://registry.azurecr.io:8443/oauth2/token",
            "https://registry.azurecr.io@attacker.example/oauth2/token",
            "https://user:pw@registry.azurecr.io/oauth2/token",
            "//registry.azurecr.io/oauth2/token",
            "https://[registry.azurecr.io]/oauth2/token",
        ],
    )
    async def test_n07_a_registry_that_names_another_token_service_gets_no_token(
        self, azure: Cloud, heard: Witness, realm: str
    ) -> None:
        azure.acr.realm = realm
        error = await refusal(heard, azure.store(azure.credentials()))
        assert error.code == "CREDENTIALS_UNAVAILABLE"
        assert "is not sent to it" in error.reason
        assert azure.acr.lines == ["GET /v2/"]
        assert azure.entra.minted == []
        azure.entra.mint("a", "b", "c")

    async def test_n07_a_refresh_token_does_not_follow_a_realm_that_turns_elsewhere_later(
        self, azure: Cloud, heard: Witness
    ) -> None:
        store = azure.store(azure.credentials())
        assert await read(store) == 1
        push(azure, "team/other")
        azure.acr.realm = "https://attacker.azurecr.io/oauth2/token"
        azure.acr.revoke()
        before = len(azure.hosts.connections)
        error = await refusal(heard, store, name="team/other")
        assert error.code in ("REGISTRY_UNAUTHORIZED", "CREDENTIALS_UNAVAILABLE")
        assert not any("attacker" in name for name in azure.hosts.connections[before:])

    async def test_n07_not_even_a_token_host_that_is_listed_gets_the_refresh_token(
        self, azure: Cloud, heard: Witness
    ) -> None:
        """Listed hosts are for passwords that somebody chose; this one is good for the registry alone."""
        profile = RegistryProfile(REGISTRY, token_hosts=frozenset({"second.azurecr.io"}))
        settings = replace(QUICK, profiles=(profile,))
        store = OrasStore("store", settings, credentials=azure.credentials(), proxies=azure.proxies)
        azure.acr.fault(
            "/v2/team/*",
            status(401, headers={"WWW-Authenticate": 'Bearer realm="https://second.azurecr.io/oauth2/token"'}),
        )
        error = await refusal(heard, store)
        await store.aclose()
        assert (error.code, "registry itself alone" in error.reason) == ("REGISTRY_UNAUTHORIZED", True)
        assert not any("second" in name for name in azure.hosts.connections)

    @pytest.mark.parametrize("code", [301, 302, 307, 308])
    async def test_n07_a_redirect_of_the_exchange_is_not_followed(
        self, azure: Cloud, heard: Witness, code: int
    ) -> None:
        azure.acr.fault("/oauth2/exchange", status(code, headers={"Location": "https://attacker.azurecr.io/x"}))
        error = await refusal(heard, azure.store(azure.credentials()))
        assert error.code == "CREDENTIALS_UNAVAILABLE"
        assert not any("attacker" in name for name in azure.hosts.connections)

    async def test_n07_a_registry_over_plain_http_gets_no_token(self, azure: Cloud, heard: Witness) -> None:
        store = OrasStore(
            "store",
            replace(QUICK, plain_http=True),
            credentials=azure.credentials(),
            proxies=azure.proxies,
        )
        error = await refusal(heard, store)
        await store.aclose()
        assert (error.code, "plain http" in error.reason) == ("CREDENTIALS_UNAVAILABLE", True)

    @pytest.mark.parametrize(
        ("answer", "found"),
        [
            (status(200, body=b"{}"), "200"),
            (status(401), "401"),
            (status(401, headers={"WWW-Authenticate": 'Basic realm="registry"'}), "401"),
            (status(401, headers={"WWW-Authenticate": "Bearer"}), "401"),
            (status(302, headers={"Location": "https://attacker.azurecr.io/v2/"}), "302"),
            (status(403, body=b"<html>firewall</html>"), "403"),
        ],
    )
    async def test_what_does_not_answer_as_a_registry_gets_no_token(
        self, azure: Cloud, heard: Witness, answer: object, found: str
    ) -> None:
        azure.acr.fault("/v2/", answer)  # type: ignore[arg-type]
        error = await refusal(heard, azure.store(azure.credentials()))
        assert (error.code, error.found) == ("CREDENTIALS_UNAVAILABLE", found)
        assert azure.entra.minted == []
        azure.entra.mint("a", "b", "c")


class TestWhenTokensEnd:
    async def test_the_refresh_token_is_renewed_before_its_end_without_anybody_waiting(self, azure: Cloud) -> None:
        clock = Clock()
        credentials = azure.credentials(monotonic=clock)
        first = await credentials.credential(REGISTRY, NAME)
        clock.now += (10800 - 300) * 0.8 + 1
        azure.acr.fault("/oauth2/exchange", delay(0.05))
        assert await credentials.credential(REGISTRY, NAME) == first
        await until(lambda: len(azure.acr.minted) == 2)
        await asyncio.sleep(0.1)  # until the answer has come
        assert await credentials.credential(REGISTRY, NAME) != first
        assert len(azure.acr.exchanges) == 2

    async def test_five_minutes_before_its_end_it_is_given_to_nobody(self, azure: Cloud) -> None:
        clock = Clock()
        credentials = azure.credentials(monotonic=clock)
        first = await credentials.credential(REGISTRY, NAME)
        clock.now += 10800 - 300 + 2
        assert await credentials.credential(REGISTRY, NAME) != first

    async def test_the_end_of_entras_token_counts_when_it_comes_first(self, azure: Cloud) -> None:
        clock = Clock()
        azure.entra.lifetime = 3600
        credentials = azure.credentials(monotonic=clock)
        first = await credentials.credential(REGISTRY, NAME)
        clock.now += 3600 - 300 + 2
        assert await credentials.credential(REGISTRY, NAME) != first

    async def test_a_lifetime_as_short_as_the_documentations_own_sample_counts(self, azure: Cloud) -> None:
        clock = Clock()
        azure.acr.refresh_seconds = 2089
        credentials = azure.credentials(monotonic=clock)
        first = await credentials.credential(REGISTRY, NAME)
        clock.now += 1000
        assert await credentials.credential(REGISTRY, NAME) == first
        clock.now += 1089 - 300 + 2
        assert await credentials.credential(REGISTRY, NAME) != first

    async def test_a_refresh_token_that_does_not_say_is_kept_for_a_quarter_of_an_hour_at_most(
        self, azure: Cloud
    ) -> None:
        clock = Clock()
        azure.acr.fault("/oauth2/exchange", body(b'{"refresh_token": "opaque-refresh-token"}'))
        credentials = azure.credentials(monotonic=clock)
        assert await credentials.credential(REGISTRY, NAME) == Credential(
            identity_token="opaque-refresh-token", own_origin_only=True
        )
        azure.acr.heal()
        clock.now += 900
        found = await credentials.credential(REGISTRY, NAME)
        assert found is not None
        assert found.identity_token in azure.acr.minted

    async def test_a_refresh_token_that_has_ended_is_not_used(self, azure: Cloud, heard: Witness) -> None:
        azure.acr.refresh_seconds = -60
        error = await refusal(heard, azure.store(azure.credentials()))
        assert (error.code, "ended" in error.reason) == ("CREDENTIALS_UNAVAILABLE", True)
