"""Refusals and faults of Azure on the way to an image in its registries: undecided for a reason that helps, waits kept,
nothing asked for again and again (attack N11)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from provider.azure.identity import REFUSAL_PAUSE_SECONDS as IDENTITY_PAUSE
from provider.azure.identity import WorkloadIdentity
from provider.credentials.azure import SCOPE
from provider.credentials.chain import CredentialChain
from provider.credentials.renewal import FAILURE_PAUSE_SECONDS, REFUSAL_PAUSE_SECONDS
from provider.errors import Undecided
from provider.interfaces import Credential
from provider.stores.oras import OrasStore
from tests.integration.test_azure_registry import NAME, push, read, refusal, until
from tests.simulators.azure.cloud import REGISTRY, Cloud, cloud
from tests.simulators.azure.entra import CLIENT, Federation, service_account_token
from tests.simulators.listener import body, delay, headers, reset, status, truncate
from tests.simulators.stores import QUICK, Clock, Credentials
from tests.simulators.witness import Witness, witness


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


class TestRefusals:
    async def test_revoked_tokens_are_exchanged_anew_from_entra_on_and_tried_once_more(self, azure: Cloud) -> None:
        clock = Clock()
        store = azure.store(azure.credentials(azure.identity(monotonic=clock), monotonic=clock))
        assert await read(store) == 1
        azure.entra.revoke()
        azure.acr.revoke()
        clock.now += REFUSAL_PAUSE_SECONDS + 1
        assert await read(store) == 1
        assert (len(azure.entra.minted), len(azure.acr.exchanges)) == (2, 2)

    async def test_a_registry_that_is_switched_to_permissions_by_repository_is_read_again(self, azure: Cloud) -> None:
        """It then refuses refresh tokens that have not ended."""
        clock = Clock()
        store = azure.store(azure.credentials(monotonic=clock))
        assert await read(store) == 1
        azure.acr.switch_to_abac()
        azure.acr.roles.repository_reader = {CLIENT: {"*"}}
        clock.now += REFUSAL_PAUSE_SECONDS + 1
        assert await read(store) == 1

    async def test_entras_token_that_a_registry_refuses_is_got_anew_once(self, azure: Cloud) -> None:
        identity = azure.identity()
        await identity.token(SCOPE)
        azure.entra.revoke()
        assert await read(azure.store(azure.credentials(identity))) == 1
        assert len(azure.entra.minted) == len(azure.acr.exchanges) == 2

    async def test_registries_that_refuse_the_same_token_at_once_all_get_the_new_one(self, azure: Cloud) -> None:
        identity = azure.identity()
        await identity.token(SCOPE)
        azure.entra.revoke()
        store = azure.store(azure.credentials(identity))
        azure.acr.fault("/oauth2/exchange", delay(0.05))
        registries = [f"registry{number}.azurecr.io" for number in range(5)]
        assert await asyncio.gather(*(read(store, registry) for registry in registries)) == [1] * 5
        assert len(azure.entra.minted) == 2

    async def test_an_identity_without_a_role_is_told_which_role_it_needs(self, azure: Cloud, heard: Witness) -> None:
        azure.acr.roles.pull.clear()
        error = await refusal(heard, azure.store(azure.credentials()))
        assert error.code == "CREDENTIALS_UNAVAILABLE"
        assert "401" in error.reason
        assert "UNAUTHORIZED" in error.reason
        assert "AcrPull" in error.remediation
        assert "Container Registry Repository Reader" in error.remediation

    async def test_registries_that_refuse_cannot_make_the_identity_ask_entra_again_and_again(
        self, azure: Cloud, heard: Witness
    ) -> None:
        """Whoever may name images may name a thousand registries that are not ours."""
        azure.acr.roles.pull.clear()
        clock = Clock()
        store = azure.store(azure.credentials(azure.identity(monotonic=clock), monotonic=clock))
        for number in range(5):
            await refusal(heard, store, f"stranger{number}.azurecr.io")
        assert len(azure.entra.minted) == 2
        clock.now += IDENTITY_PAUSE + 1
        await refusal(heard, store, "stranger9.azurecr.io")
        assert len(azure.entra.minted) == 3

    async def test_a_refusal_for_one_repository_does_not_cost_an_exchange_each_time(
        self, azure: Cloud, heard: Witness
    ) -> None:
        clock = Clock()
        azure.acr.abac = True
        azure.acr.roles.repository_reader = {CLIENT: {"team/other"}}
        store = azure.store(azure.credentials(monotonic=clock))
        for _ in range(5):
            assert (await refusal(heard, store)).code == "REGISTRY_UNAUTHORIZED"
        assert len(azure.acr.exchanges) == 1

    async def test_a_refusal_for_one_repository_takes_nothing_from_the_others_while_azure_is_down(
        self, azure: Cloud, heard: Witness
    ) -> None:
        """Whoever names an image that the identity may not see would else shut out all others."""
        clock = Clock()
        push(azure, "team/secret")
        push(azure, "team/other")
        azure.acr.abac = True
        azure.acr.roles.repository_reader = {CLIENT: {NAME, "team/other"}}
        store = azure.store(azure.credentials(azure.identity(monotonic=clock), monotonic=clock))
        assert await read(store) == 1
        azure.entra.fault("*", status(503))
        azure.acr.fault("/oauth2/exchange", status(503))
        clock.now += REFUSAL_PAUSE_SECONDS + 1
        assert (await refusal(heard, store, name="team/secret")).code == "REGISTRY_UNAUTHORIZED"
        assert await read(store, name="team/other") == 1

    async def test_a_failure_is_an_error_and_not_anonymous_access(self, azure: Cloud, heard: Witness) -> None:
        """Not even where everybody may pull, nor with another source after it."""
        azure.acr.anonymous = True
        azure.entra.federations.clear()
        chain = CredentialChain([azure.credentials(), Credentials({REGISTRY: Credential("robot", "hunter2")})])
        error = await refusal(heard, azure.store(chain))
        assert (error.code, "AADSTS700016" in error.reason) == ("CREDENTIALS_UNAVAILABLE", True)
        assert azure.acr.lines == ["GET /v2/"]

    async def test_other_registries_go_on_to_the_next_source(self, azure: Cloud) -> None:
        other = Credentials({"registry.example.com": Credential("robot", "hunter2")})
        chain = CredentialChain([azure.credentials(), other])
        assert await chain.credential("registry.example.com", NAME) == Credential("robot", "hunter2")
        assert await chain.credential(REGISTRY, NAME) != Credential("robot", "hunter2")


class TestFaults:
    """The faults of facts 6 that concern registries and their tokens: undecided, for a reason that helps."""

    @pytest.mark.parametrize("path", ["/v2/", "/oauth2/exchange"])
    @pytest.mark.parametrize(
        ("fault", "words"),
        [
            (status(500), "answered 500"),
            (status(503), "answered 503"),
            (reset(), "closed the connection"),
            (truncate(10), "closed the connection"),
            (headers({"Content-Encoding": "gzip"}), "compressed"),
            (body(b"x" * 300_000), "more than"),
        ],
    )
    async def test_a_fault_of_the_registry_is_tried_once_more_and_then_told(
        self, azure: Cloud, heard: Witness, path: str, fault: object, words: str
    ) -> None:
        azure.acr.fault(path, fault)  # type: ignore[arg-type]
        error = await refusal(heard, azure.store(azure.credentials()))
        assert (error.code, words in error.reason) == ("CREDENTIALS_UNAVAILABLE", True), error.reason
        azure.entra.mint("a", "b", "c")

    @pytest.mark.parametrize("path", ["/v2/", "/oauth2/exchange"])
    async def test_a_fault_that_passes_harms_nobody(self, azure: Cloud, path: str) -> None:
        azure.acr.fault(path, status(503), times=1)
        azure.entra.fault("*", reset(), times=1)
        assert await read(azure.store(azure.credentials())) == 1

    @pytest.mark.parametrize(
        "answer",
        [
            b"<html>login</html>",
            b'{"refresh_token": 7}',
            b'{"refresh_token": ""}',
            b'{"refresh_token": "two\\nlines"}',
            b'{"refresh_token": null}',
            b"[]",
            b"{}",
            b"\xff",
            b'{"a":' * 5000,
        ],
    )
    async def test_an_exchange_without_a_refresh_token_is_an_error(
        self, azure: Cloud, heard: Witness, answer: bytes
    ) -> None:
        azure.acr.fault("/oauth2/exchange", body(answer))
        error = await refusal(heard, azure.store(azure.credentials()))
        assert error.code == "CREDENTIALS_UNAVAILABLE"
        assert error.reason == f"the registry {REGISTRY} answered 200 without a refresh token"

    @pytest.mark.parametrize("code", [400, 403, 404])
    async def test_a_refused_exchange_is_told_with_its_status(self, azure: Cloud, heard: Witness, code: int) -> None:
        azure.acr.fault("/oauth2/exchange", status(code, body=b'{"errors":[{"code":"DENIED","message":"m"}]}'))
        error = await refusal(heard, azure.store(azure.credentials()))
        assert (error.code, str(code) in error.reason) == ("CREDENTIALS_UNAVAILABLE", True)
        assert ("DENIED" in error.reason) == (code == 403)

    @pytest.mark.parametrize("path", ["/v2/", "/oauth2/exchange"])
    @pytest.mark.parametrize(("field", "seconds"), [("7", 7), ("3600", 60), (None, FAILURE_PAUSE_SECONDS)])
    async def test_the_wait_of_a_429_is_kept(
        self, azure: Cloud, heard: Witness, path: str, field: str | None, seconds: float
    ) -> None:
        """It is said to whoever asks; the registry is left alone for so long, and for a minute at most."""
        clock = Clock()
        fields = {} if field is None else {"Retry-After": field}
        azure.acr.fault(path, status(429, headers=fields))
        credentials = azure.credentials(monotonic=clock)
        with pytest.raises(Undecided) as first:
            await credentials.credential(REGISTRY, NAME)
        asked = len(azure.acr.requests)
        assert first.value.retry_after == (None if field is None else float(field))
        clock.now += seconds - 1
        with pytest.raises(Undecided) as again:
            await credentials.credential(REGISTRY, NAME)
        assert (len(azure.acr.requests), again.value.retry_after) == (asked, 1.0)
        heard.see(first.value, again.value)
        azure.acr.heal()
        clock.now += 1.5
        assert await credentials.credential(REGISTRY, NAME) is not None

    async def test_a_429_of_the_registry_itself_is_no_verdict(self, azure: Cloud, heard: Witness) -> None:
        store = azure.store(azure.credentials())
        azure.acr.fault("/v2/*/referrers/*", status(429, headers={"Retry-After": "30"}))
        error = await refusal(heard, store)
        assert isinstance(error, Undecided)
        assert (error.code, error.retry_after) == ("REGISTRY_THROTTLED", 30.0)

    async def test_what_has_not_ended_is_used_while_azure_is_down(self, azure: Cloud) -> None:
        clock = Clock()
        store = azure.store(azure.credentials(monotonic=clock))
        assert await read(store) == 1
        azure.entra.fault("*", status(503))
        azure.acr.fault("/oauth2/exchange", status(503))
        clock.now += (10800 - 300) * 0.8 + 1
        assert await read(store) == 1

    async def test_a_service_account_token_that_was_rotated_is_read_anew_after_a_refusal(
        self, azure: Cloud, heard: Witness
    ) -> None:
        """The SDK keeps the file's content for ten minutes."""
        clock = Clock()
        azure.put_token(service_account_token(lifetime=-10))
        store = azure.store(azure.credentials(monotonic=clock))
        error = await refusal(heard, store)
        assert "AADSTS700024" in error.reason
        azure.put_token(service_account_token())
        clock.now += FAILURE_PAUSE_SECONDS + 1
        assert await read(store) == 1

    async def test_a_slow_azure_holds_up_an_operation_no_longer_than_its_time_limit(
        self, azure: Cloud, heard: Witness
    ) -> None:
        """And the exchange goes on behind it: who comes later finds it done."""
        azure.entra.fault("*", delay(0.6), times=1)
        store = OrasStore(
            "store", replace(QUICK, timeout_seconds=0.2), credentials=azure.credentials(), proxies=azure.proxies
        )
        error = await refusal(heard, store)
        assert (error.code, "0.2 s" in error.reason) == ("REGISTRY_UNAVAILABLE", True)
        await until(lambda: bool(azure.acr.exchanges))
        assert await read(store) == 1
        assert len(azure.entra.minted) == 1
        await store.aclose()

    async def test_a_tenant_that_is_not_the_registrys_is_refused(self, azure: Cloud, heard: Witness) -> None:
        azure.entra.federations.add(Federation(tenant="00000000-0000-0000-0000-000000000000"))
        identity = azure.identity(WorkloadIdentity(tenant_id="00000000-0000-0000-0000-000000000000"))
        error = await refusal(heard, azure.store(azure.credentials(identity)))
        assert (error.code, "401" in error.reason) == ("CREDENTIALS_UNAVAILABLE", True)
