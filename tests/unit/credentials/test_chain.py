"""Several sources of credentials in order."""

from __future__ import annotations

import pytest

from provider.credentials.chain import CredentialChain
from provider.errors import Undecided
from provider.interfaces import Credential
from tests.simulators.stores import Credentials


class Broken:
    async def credential(self, domain: str, path: str) -> Credential | None:
        raise Undecided("CREDENTIALS_UNAVAILABLE", "sealed")


async def test_the_first_source_that_has_a_credential_wins() -> None:
    first, second = Credential("first", "x"), Credential("second", "x")
    chain = CredentialChain([Credentials({"a.test": first}), Credentials({"a.test": second, "b.test": second})])
    assert await chain.credential("a.test", "x") == first
    assert await chain.credential("b.test", "x") == second
    assert await chain.credential("c.test", "x") is None


async def test_a_source_that_fails_ends_the_search() -> None:
    behind = Credentials({"a.test": Credential("other", "x")})
    with pytest.raises(Undecided, match="CREDENTIALS_UNAVAILABLE"):
        await CredentialChain([Broken(), behind]).credential("a.test", "x")
    assert behind.asked == []
