"""Keeping what an exchange gave: for whom, for how long, and what happens when the next one fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from provider.credentials.renewal import (
    FAILURE_PAUSE_SECONDS,
    MAX_PAUSE_SECONDS,
    RENEW_SHARE,
    Lease,
    Renewing,
)
from provider.errors import Undecided
from tests.simulators.stores import Clock
from tests.simulators.witness import witness

SECONDS = 1000.0


class Service:
    """Gives one lease after the other, when it may."""

    def __init__(self) -> None:
        self.asked = 0
        self.error: Undecided | None = None
        self.open = asyncio.Event()
        self.open.set()

    async def exchange(self, key: str) -> Lease[str]:
        self.asked += 1
        number = self.asked
        await self.open.wait()
        if self.error is not None:
            raise self.error
        return Lease(f"{key}-{number}", SECONDS)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
async def kept(service: Service, clock: Clock) -> AsyncIterator[Renewing[str, str]]:
    renewing: Renewing[str, str] = Renewing(service.exchange, monotonic=clock)
    yield renewing
    await renewing.aclose()


async def test_all_who_wait_for_a_key_share_one_exchange(kept: Renewing[str, str], service: Service) -> None:
    service.open.clear()
    waiting = [asyncio.create_task(kept.get(key)) for key in ("a", "a", "b", "a")]
    await asyncio.sleep(0)
    service.open.set()
    assert await asyncio.gather(*waiting) == ["a-1", "a-1", "b-2", "a-1"]


async def test_a_waiter_that_gives_up_spoils_it_for_nobody(kept: Renewing[str, str], service: Service) -> None:
    service.open.clear()
    first, second = (asyncio.create_task(kept.get("a")) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    service.open.set()
    assert await second == "a-1"


async def test_it_is_renewed_behind_those_who_use_it(kept: Renewing[str, str], service: Service, clock: Clock) -> None:
    await kept.get("a")
    clock.now += SECONDS * RENEW_SHARE
    service.open.clear()
    assert [await kept.get("a"), await kept.get("a")] == ["a-1", "a-1"]
    await asyncio.sleep(0.01)
    assert service.asked == 2
    service.open.set()
    await asyncio.sleep(0.01)
    assert await kept.get("a") == "a-2"


async def test_from_its_end_on_it_is_given_to_nobody(kept: Renewing[str, str], clock: Clock) -> None:
    await kept.get("a")
    clock.now += SECONDS
    assert await kept.get("a") == "a-2"


async def test_a_renewal_that_fails_leaves_what_there_is_and_pauses(
    kept: Renewing[str, str], service: Service, clock: Clock
) -> None:
    await kept.get("a")
    service.error = Undecided("CREDENTIALS_UNAVAILABLE", "down")
    clock.now += SECONDS * RENEW_SHARE
    for _ in range(3):
        assert await kept.get("a") == "a-1"
        await asyncio.sleep(0.01)
    assert service.asked == 2
    clock.now += SECONDS
    with pytest.raises(Undecided, match="down"):
        await kept.get("a")


@pytest.mark.parametrize(
    ("asked_for", "pause"),
    [(None, FAILURE_PAUSE_SECONDS), (20.0, 20.0), (3600.0, MAX_PAUSE_SECONDS)],
)
async def test_a_failure_is_told_for_as_long_as_the_service_asks_and_no_longer_than_a_minute(
    kept: Renewing[str, str], service: Service, clock: Clock, asked_for: float | None, pause: float
) -> None:
    service.error = Undecided(
        "CREDENTIALS_UNAVAILABLE", "busy", expected="e", found="f", remediation="wait", retry_after=asked_for
    )
    for _ in range(3):
        with pytest.raises(Undecided):
            await kept.get("a")
    clock.now += pause - 1
    with pytest.raises(Undecided) as caught:
        await kept.get("a")
    again = caught.value
    assert (again.reason, again.expected, again.found, again.remediation) == ("busy", "e", "f", "wait")
    assert again.retry_after == 1.0
    assert service.asked == 1
    service.error = None
    assert await kept.get("b") == "b-2"
    clock.now += 1
    assert await kept.get("a") == "a-3"


async def test_a_renewal_that_fails_is_told_once_until_one_succeeds(service: Service, clock: Clock) -> None:
    renewing: Renewing[str, str] = Renewing(service.exchange, service="the cloud", monotonic=clock)
    with witness() as heard:
        for round_ in range(2):
            service.error = None
            value = await renewing.get("a")
            assert heard.log.getvalue().count("credentials not renewed yet") == round_
            service.error = Undecided("CREDENTIALS_UNAVAILABLE", "down")
            clock.now += SECONDS * RENEW_SHARE
            for _ in range(3):
                assert await renewing.get("a") == value
                await asyncio.sleep(0.01)
                clock.now += FAILURE_PAUSE_SECONDS
            clock.now += SECONDS
    assert heard.log.getvalue().count("credentials not renewed yet") == 2
    assert "the cloud" in heard.log.getvalue()
    await renewing.aclose()


async def test_closing_ends_exchanges_and_renewals(kept: Renewing[str, str], service: Service, clock: Clock) -> None:
    await kept.get("a")
    clock.now += SECONDS * RENEW_SHARE
    service.open.clear()
    await kept.get("a")
    waiting = asyncio.create_task(kept.get("b"))
    await asyncio.sleep(0)
    await kept.aclose()
    with pytest.raises(Undecided, match="cancelled"):
        await waiting


def test_n11_a_lease_does_not_show_what_it_is_of() -> None:
    assert "secret" not in repr(Lease("secret", 1.0))
