"""The turns of one host: in order of age, within its connections, its rate and its bad times."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from provider.errors import Undecided
from provider.progress import Step
from provider.stores.pacing import FAILURES, MAX_PAUSE_SECONDS, Pace, time_limit


def pace(connections: int = 100, longest_wait: float = 4.0, down_seconds: float = 10.0) -> Pace:
    return Pace("registry.test", connections=connections, longest_wait=longest_wait, down_seconds=down_seconds)


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def in_work(origin: float, work: Callable[[], Coroutine[Any, Any, None]]) -> asyncio.Task[None]:
    """Run as a part of work that began at `origin`."""
    return Step(monotonic=lambda: origin).task(work())


async def turns(subject: Pace, count: int) -> None:
    for _ in range(count):
        await subject.turn()


class TestConnections:
    async def test_no_more_requests_than_connections_are_under_way(self) -> None:
        subject = pace(connections=2)
        await turns(subject, 2)
        third = asyncio.create_task(subject.turn())
        await settle()
        assert not third.done()
        subject.done()
        await asyncio.wait_for(third, 5)

    async def test_whoever_began_first_is_served_first_whenever_it_comes(self) -> None:
        subject, served = pace(connections=1), list[float]()
        await subject.turn()

        def ask(origin: float) -> asyncio.Task[None]:
            async def work() -> None:
                await subject.turn()
                served.append(origin)
                subject.done()

            return in_work(origin, work)

        tasks = [ask(origin) for origin in (30.0, 10.0, 20.0)]
        await settle()
        subject.done()
        await asyncio.gather(*tasks)
        assert served == [10.0, 20.0, 30.0]

    async def test_one_who_gives_up_keeps_no_place(self) -> None:
        subject = pace(connections=1)
        await subject.turn()
        given_up, patient = (asyncio.create_task(subject.turn()) for _ in range(2))
        await settle()
        given_up.cancel()
        await asyncio.gather(given_up, return_exceptions=True)
        subject.done()
        await asyncio.wait_for(patient, 5)
        subject.done()
        assert subject.idle

    async def test_one_who_gives_up_as_its_turn_comes_hands_it_on(self) -> None:
        subject = pace(connections=1)
        await subject.turn()
        given_up, patient = (asyncio.create_task(subject.turn()) for _ in range(2))
        await settle()
        subject.done()  # the turn is given, and its taker has not run yet
        given_up.cancel()
        await asyncio.gather(given_up, return_exceptions=True)
        await asyncio.wait_for(patient, 5)


class TestThrottling:
    async def test_a_host_that_never_limited_its_rate_is_not_limited(self) -> None:
        subject = pace(connections=5000)
        await turns(subject, 5000)
        for _ in range(5000):
            subject.answered()
            subject.done()
        assert not subject.limited
        assert subject.idle

    async def test_after_a_429_nobody_gets_a_turn_until_the_pause_is_over(self) -> None:
        subject = pace()
        await subject.turn()
        assert subject.throttled(0.05) == pytest.approx(0.05)
        subject.done()
        began = asyncio.get_running_loop().time()
        await subject.turn()
        assert asyncio.get_running_loop().time() >= began + 0.04
        assert subject.limited

    async def test_many_429s_of_one_moment_slow_down_once(self) -> None:
        subject = pace()
        await turns(subject, 60)
        for _ in range(40):
            subject.answered()
            subject.done()
        pauses = [subject.throttled(None) for _ in range(20)]
        assert max(pauses) <= 0.5  # it would double with each

    async def test_429s_in_a_row_without_a_wish_double_the_pause(self) -> None:
        subject = pace(longest_wait=0.1)
        await subject.turn()
        first = subject.throttled(None)
        await asyncio.sleep(first + 0.01)
        assert subject.throttled(None) == pytest.approx(2 * first, rel=0.1)

    async def test_a_pause_longer_than_an_answer_can_wait_fails_everybody_at_once(self) -> None:
        subject = pace(connections=1)
        await subject.turn()
        waiting = [asyncio.create_task(subject.turn()) for _ in range(3)]
        await settle()
        subject.throttled(30.0)
        errors = await asyncio.gather(*waiting, return_exceptions=True)
        assert len({id(error) for error in errors}) == 3
        for error in errors:
            assert isinstance(error, Undecided)
            assert error.code == "REGISTRY_THROTTLED"
            assert error.retry_after == pytest.approx(30.0, abs=1)
        subject.done()
        with pytest.raises(Undecided, match=r"registry\.test limits the request rate and is not asked again for 30 s"):
            await subject.turn()

    async def test_n37_no_answer_shuts_us_out_for_a_day(self) -> None:
        subject = pace()
        assert subject.throttled(86_400.0) <= MAX_PAUSE_SECONDS

    async def test_the_rate_is_what_the_host_took_and_grows(self) -> None:
        subject = pace()
        await turns(subject, 50)
        for _ in range(50):
            subject.answered()
            subject.done()
        subject.throttled(0.01)
        loop = asyncio.get_running_loop()
        await asyncio.sleep(0.02)
        began = loop.time()
        for _ in range(30):  # 8 at once, the others at 50 a second
            await subject.turn()
            subject.answered()
            subject.done()
        assert loop.time() - began >= 20 / 60

    async def test_one_429_while_little_was_asked_does_not_hold_up_the_next_pod(self) -> None:
        """What was asked in the last second says nothing of what the host would have taken."""
        subject = pace()
        await subject.turn()
        subject.throttled(0.01)
        subject.done()
        await asyncio.sleep(0.02)

        async def pod() -> None:
            for _ in range(20):  # five images
                await subject.turn()
                subject.answered()
                subject.done()

        await asyncio.wait_for(pod(), 3)

    async def test_a_limit_is_forgotten_when_the_host_has_not_limited_for_long(self) -> None:
        subject = Pace("registry.test", connections=1, longest_wait=4.0, forget_seconds=0.02)
        await subject.turn()
        subject.throttled(0.01)
        subject.done()
        await asyncio.sleep(0.05)
        await subject.turn()
        subject.answered()
        assert not subject.limited


class TestBeingDown:
    async def fail(self, subject: Pace, times: int = FAILURES) -> None:
        for _ in range(times):
            await subject.turn()
            subject.failed("cannot be connected to")
            subject.done()

    async def test_a_host_that_is_down_is_left_alone(self) -> None:
        subject = pace()
        await self.fail(subject)
        with pytest.raises(
            Undecided, match=f"registry.test cannot be connected to, {FAILURES} times in a row"
        ) as caught:
            await subject.turn()
        assert caught.value.code == "REGISTRY_UNAVAILABLE"
        assert caught.value.retry_after is not None

    async def test_an_answer_between_makes_the_count_begin_anew(self) -> None:
        subject = pace()
        await self.fail(subject, FAILURES - 1)
        subject.answered()
        await self.fail(subject, FAILURES - 1)
        await subject.turn()

    async def test_those_who_wait_are_told_at_once(self) -> None:
        subject = pace(connections=1)
        await self.fail(subject, FAILURES - 1)
        await subject.turn()
        waiting = asyncio.create_task(subject.turn())
        await settle()
        subject.failed("answers 503")
        with pytest.raises(Undecided, match="answers 503"):
            await waiting

    async def test_one_request_tries_it_and_the_others_wait_for_what_becomes_of_it(self) -> None:
        subject = pace(down_seconds=0.05)
        await self.fail(subject)
        await asyncio.sleep(0.07)
        await subject.turn()  # the one that tries
        others = [asyncio.create_task(subject.turn()) for _ in range(3)]
        await settle()
        assert not any(other.done() for other in others)
        subject.answered()
        subject.done()
        await asyncio.gather(*others)

    async def test_the_others_are_told_when_that_one_fails_too(self) -> None:
        subject = pace(down_seconds=0.05)
        await self.fail(subject)
        await asyncio.sleep(0.07)
        await subject.turn()
        other = asyncio.create_task(subject.turn())
        await settle()
        subject.failed("cannot be connected to")
        subject.done()
        with pytest.raises(Undecided, match="7 times in a row"):
            await other

    async def test_long_ago_says_nothing_of_now(self) -> None:
        subject = pace(down_seconds=0.001)
        await self.fail(subject)
        await asyncio.sleep(0.05)
        await asyncio.wait_for(turns(subject, 2), 5)

    async def test_any_number_of_failures_is_counted(self) -> None:
        subject = pace()
        for _ in range(5000):
            subject.failed("answers 503")
        with pytest.raises(Undecided, match="5000 times in a row"):
            await subject.turn()


class TestTimeLimit:
    async def test_waiting_for_a_turn_is_not_the_hosts_time(self) -> None:
        subject = pace(connections=1)
        await subject.turn()
        asyncio.get_running_loop().call_later(0.3, subject.done)
        async with time_limit(0.1):
            await subject.turn()

    async def test_what_comes_after_the_turn_is(self) -> None:
        subject = pace(connections=1)
        await subject.turn()
        asyncio.get_running_loop().call_later(0.05, subject.done)

        async def take_long() -> None:
            async with time_limit(0.1):
                await subject.turn()
                await asyncio.sleep(5)

        with pytest.raises(TimeoutError):
            await take_long()

    async def test_work_of_another_task_does_not_stop_the_clock(self) -> None:
        subject = pace(connections=1)
        await subject.turn()
        with pytest.raises(TimeoutError):
            async with time_limit(0.05):
                await asyncio.create_task(subject.turn())
