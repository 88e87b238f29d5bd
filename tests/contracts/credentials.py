"""What every source of registry credentials must do, wherever it has them from: the contract test of
interfaces.CredentialProvider.

A test module subclasses `CredentialContract` and gives the fixture `world`: a source that works, a registry that it is
for, and a way to break what it depends on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pytest

from provider.credentials.chain import CredentialChain
from provider.errors import Undecided
from provider.interfaces import (
    AlternativeCredentialProvider,
    Credential,
    CredentialProvider,
    RenewableCredentialProvider,
)
from tests.simulators.stores import Credentials
from tests.simulators.witness import witness

PATH = "team/app"


@dataclass
class World:
    """A source under test.

    Attributes:
        source: a fresh one, that has not been asked yet; the fixture closes it.
        domain: a registry that it has a credential for.
        cloud: the credential is a cloud's, for its own registries alone.
        asked: how often others were asked on its behalf so far.
        break_it: let what it depends on fail from now on.
        secrets: every secret so far.
    """

    source: CredentialProvider
    domain: str
    cloud: bool
    asked: Callable[[], int]
    break_it: Callable[[], None]
    secrets: Callable[[], Iterable[str]]


class CredentialContract:
    """The tests. `world` is a fresh World for each."""

    async def test_a_registry_that_it_is_for_gets_exactly_one_kind_of_secret(self, world: World) -> None:
        found = await world.source.credential(world.domain, PATH)
        assert found is not None
        kinds = [bool(found.username and found.password), bool(found.identity_token), bool(found.registry_token)]
        assert kinds.count(True) == 1
        assert found.own_origin_only == world.cloud

    @pytest.mark.parametrize("spoil", ["{}.attacker.example", "x.{}", "{}:8443", "{}."])
    async def test_n07_n08_a_registry_that_looks_like_it_gets_nothing_and_nobody_is_asked(
        self, world: World, spoil: str
    ) -> None:
        assert await world.source.credential(spoil.format(world.domain), PATH) is None
        assert world.asked() == 0

    async def test_all_who_wait_are_given_the_same_for_the_price_of_one(self, world: World) -> None:
        found = await asyncio.gather(*(world.source.credential(world.domain, PATH) for _ in range(20)))
        price = world.asked()
        again = await world.source.credential(world.domain, PATH)
        assert set(found) == {again}
        assert world.asked() == price

    async def test_a_waiter_that_gives_up_spoils_it_for_nobody(self, world: World) -> None:
        first, second = (asyncio.create_task(world.source.credential(world.domain, PATH)) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        assert await second is not None

    async def test_a_failure_is_undecided_and_neither_nothing_nor_the_next_source(self, world: World) -> None:
        world.break_it()
        chain = CredentialChain([world.source, Credentials({world.domain: Credential("robot", "hunter2")})])
        for source in (world.source, chain):
            with pytest.raises(Undecided) as caught:
                await source.credential(world.domain, PATH)
            assert caught.value.code == "CREDENTIALS_UNAVAILABLE"

    async def test_a_refusal_just_after_it_was_had_does_not_cost_another(self, world: World) -> None:
        """Whoever names an image decides how often a registry refuses."""
        await world.source.credential(world.domain, PATH)
        price = world.asked()
        for _ in range(5):
            found = await world.source.credential(world.domain, PATH)
            if isinstance(world.source, RenewableCredentialProvider):
                world.source.refused(world.domain, PATH)
                world.source.refused("registry.test", PATH)
            if isinstance(world.source, AlternativeCredentialProvider):
                assert await world.source.another(world.domain, PATH, [found]) is None
                assert await world.source.another("registry.test", PATH, [found]) is None
                assert await world.source.another(world.domain, PATH, []) == found
        assert world.asked() == price

    async def test_n11_neither_it_nor_what_it_gives_nor_a_failure_shows_a_secret(self, world: World) -> None:
        with witness() as heard:
            heard.see(world.source, await world.source.credential(world.domain, PATH))
            world.break_it()
            broken: Any = None
            try:
                await world.source.credential(world.domain, PATH)
            except Undecided as error:
                broken = error
            heard.see(broken)
        heard.check(world.secrets())
