"""Several sources of credentials in order."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from provider.credentials.chain import CredentialChain
from provider.errors import Undecided
from provider.interfaces import AlternativeCredentialProvider, Credential, RenewableCredentialProvider
from tests.simulators.stores import Credentials

ONE, TWO, THREE = (Credential(name, "x") for name in ("one", "two", "three"))


class Broken:
    async def credential(self, domain: str, path: str) -> Credential | None:
        raise Undecided("CREDENTIALS_UNAVAILABLE", "sealed")


class Several:
    """A source that has several credentials for everything."""

    def __init__(self, *held: Credential) -> None:
        self.held = held
        self.told: list[tuple[str, str]] = []

    async def credential(self, domain: str, path: str) -> Credential | None:
        return await self.another(domain, path, ())

    async def another(self, domain: str, path: str, refused: Collection[Credential | None]) -> Credential | None:
        return next((one for one in self.held if one not in refused), None)

    def refused(self, domain: str, path: str) -> None:
        self.told.append((domain, path))


async def test_the_first_source_that_has_a_credential_wins() -> None:
    chain = CredentialChain([Credentials({"a.test": ONE}), Credentials({"a.test": TWO, "b.test": TWO})])
    assert await chain.credential("a.test", "x") == ONE
    assert await chain.credential("b.test", "x") == TWO
    assert await chain.credential("c.test", "x") is None


async def test_a_source_that_has_what_is_wanted_keeps_those_behind_it_out_of_it() -> None:
    assert await CredentialChain([Credentials({"a.test": ONE}), Broken()]).credential("a.test", "x") == ONE


async def test_a_source_that_fails_ends_the_search() -> None:
    behind = Credentials({"a.test": Credential("other", "x")})
    with pytest.raises(Undecided, match="CREDENTIALS_UNAVAILABLE"):
        await CredentialChain([Broken(), behind]).credential("a.test", "x")
    assert behind.asked == []


async def test_what_a_registry_refused_gives_way_to_the_next_of_a_source_and_then_to_the_next_source() -> None:
    chain = CredentialChain([Several(ONE, TWO), Credentials({"a.test": THREE})])
    assert await chain.another("a.test", "x", {ONE}) == TWO
    assert await chain.another("a.test", "x", {ONE, TWO}) == THREE
    assert await chain.another("b.test", "x", {ONE, TWO}) is None
    assert await chain.another("a.test", "x", {ONE, TWO, THREE}) is None
    assert await chain.credential("a.test", "x") == ONE


async def test_what_failed_is_no_end_of_what_a_registry_refused() -> None:
    with pytest.raises(Undecided, match="sealed"):
        await CredentialChain([Several(ONE), Broken()]).another("a.test", "x", {ONE})


async def test_sources_that_care_are_told_of_a_refusal() -> None:
    caring = Several(ONE)
    chain = CredentialChain([Credentials({}), caring])
    chain.refused("a.test", "x")
    assert caring.told == [("a.test", "x")]


def test_a_chain_can_be_asked_whatever_its_sources_can() -> None:
    chain = CredentialChain([])
    assert isinstance(chain, RenewableCredentialProvider)
    assert isinstance(chain, AlternativeCredentialProvider)
