"""Keeping what an exchange gave, for sources that say when to renew and have who was refused wait (pull secrets)."""

from __future__ import annotations

import asyncio

import pytest

from provider.credentials.renewal import Lease, Renewing
from provider.errors import Undecided
from tests.simulators.stores import Clock

PAUSE = 5.0


class World:
    """A service that gives one numbered value after the other, when it may, and what keeps them."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.exchanges = 0
        self.failure: Undecided | None = None
        self.open = asyncio.Event()
        self.open.set()
        self.renewing: Renewing[str, str] = Renewing(self.exchange, refusal_pause_seconds=PAUSE, monotonic=self.clock)

    async def exchange(self, key: str) -> Lease[str]:
        self.exchanges += 1
        number = self.exchanges
        await self.open.wait()
        if self.failure is not None:
            raise self.failure
        return Lease(f"{key}-{number}", 3600.0, 60.0)

    async def settle(self) -> None:
        """Let what runs behind go on as far as it can."""
        for _ in range(20):
            await asyncio.sleep(0)


@pytest.fixture
def world() -> World:
    return World()


async def test_a_source_may_say_when_to_renew(world: World) -> None:
    await world.renewing.get("a")
    world.clock.now += 59
    await world.renewing.get("a")
    await world.settle()
    assert world.exchanges == 1
    world.clock.now += 1
    assert await world.renewing.get("a") == "a-1"
    await world.settle()
    assert await world.renewing.get("a") == "a-2"


async def test_wanted_anew_it_is_waited_for_and_the_others_go_on_meanwhile(world: World) -> None:
    await world.renewing.get("a")
    world.clock.now += PAUSE
    world.open.clear()
    waiting = [asyncio.create_task(world.renewing.get("a", anew=True)) for _ in range(10)]
    await world.settle()
    assert not any(task.done() for task in waiting)
    assert await world.renewing.get("a") == "a-1", "who was not refused does not wait"
    world.open.set()
    assert await asyncio.gather(*waiting) == ["a-2"] * 10
    assert world.exchanges == 2


async def test_wanted_anew_too_often_it_is_what_is_kept(world: World) -> None:
    for _ in range(10):
        assert await world.renewing.get("a", anew=True) == "a-1"
    world.clock.now += PAUSE - 0.1
    assert await world.renewing.get("a", anew=True) == "a-1"
    assert world.exchanges == 1
    world.clock.now += 0.1
    assert await world.renewing.get("a", anew=True) == "a-2"


async def test_wanted_anew_of_a_service_that_is_down_it_is_what_is_kept_and_the_service_left_alone(
    world: World,
) -> None:
    await world.renewing.get("a")
    world.clock.now += PAUSE
    world.failure = Undecided("CREDENTIALS_UNAVAILABLE", "down")
    for _ in range(10):
        assert await world.renewing.get("a", anew=True) == "a-1"
    assert world.exchanges == 2


async def test_wanted_anew_without_anything_kept_a_failure_is_told(world: World) -> None:
    world.failure = Undecided("CREDENTIALS_UNAVAILABLE", "down")
    with pytest.raises(Undecided, match="down"):
        await world.renewing.get("a", anew=True)
