"""Keeping and sharing work: bounds hold, ends are kept, and nobody's giving up hurts anybody else."""

from __future__ import annotations

import asyncio
import gc
import traceback
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provider.cache import ByteBoundedCache, SingleFlight, Tally
from provider.errors import Undecided
from provider.figures import Figure


class Clock:
    """Monotonic seconds that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


class TestByteBoundedCache:
    def test_a_value_is_given_out_until_its_end_and_not_at_it(self, clock: Clock) -> None:
        cache: ByteBoundedCache[str, str] = ByteBoundedCache(100, monotonic=clock)
        assert cache.put("key", "value", size=10, expires=1010.0)
        clock.now = 1009.9
        assert cache.get("key") == "value"
        clock.now = 1010.0
        assert cache.get("key") is None

    def test_look_ups_are_counted_where_the_next_cache_goes_on_counting(self, clock: Clock) -> None:
        tally = Tally()
        for _ in range(2):
            cache: ByteBoundedCache[str, str] = ByteBoundedCache(100, monotonic=clock, tally=tally)
            cache.put("key", "value", size=10, expires=1010.0)
            assert cache.get("key") == "value"
            assert cache.get("other") is None
            assert (cache.peek("key"), cache.peek("other")) == ("value", None)
            assert ("key" in cache, "other" in cache) == (True, False)
        assert tally == Tally(hits=2, misses=2)
        assert list(tally.figures("crl")) == [
            Figure("countersign_cache_hits", 2, ("crl",)),
            Figure("countersign_cache_misses", 2, ("crl",)),
        ]
        assert list(cache.figures("crl")) == [
            Figure("countersign_cache_entries", 1, ("crl",)),
            Figure("countersign_cache_bytes", 10, ("crl",)),
        ]

    def test_every_entry_has_its_own_end(self, clock: Clock) -> None:
        cache: ByteBoundedCache[str, str] = ByteBoundedCache(100, monotonic=clock)
        cache.put("long", "a", size=10, expires=1100.0)
        cache.put("short", "b", size=10, expires=1001.0)
        clock.now = 1050.0
        assert (cache.get("long"), cache.get("short")) == ("a", None)

    def test_the_least_recently_used_makes_room(self, clock: Clock) -> None:
        cache: ByteBoundedCache[str, int] = ByteBoundedCache(30, monotonic=clock)
        for number, key in enumerate("abc"):
            cache.put(key, number, size=10, expires=2000.0)
        assert cache.get("a") == 0
        cache.put("d", 3, size=10, expires=2000.0)
        assert [cache.get(key) for key in "abcd"] == [0, None, 2, 3]

    def test_a_value_larger_than_the_cache_is_not_kept_and_evicts_nothing_else(self, clock: Clock) -> None:
        cache: ByteBoundedCache[str, int] = ByteBoundedCache(30, monotonic=clock)
        cache.put("small", 1, size=10, expires=2000.0)
        assert not cache.put("large", 2, size=31, expires=2000.0)
        assert (cache.get("small"), cache.get("large")) == (1, None)

    @pytest.mark.parametrize(("size", "expires"), [(31, 2000.0), (10, 1000.0), (10, float("nan"))])
    def test_a_value_that_cannot_be_kept_does_not_leave_its_predecessor_behind(
        self, clock: Clock, size: int, expires: float
    ) -> None:
        cache: ByteBoundedCache[str, int] = ByteBoundedCache(30, monotonic=clock)
        cache.put("key", 1, size=10, expires=2000.0)
        assert not cache.put("key", 2, size=size, expires=expires)
        assert cache.get("key") is None

    def test_a_cache_of_no_bytes_keeps_nothing(self, clock: Clock) -> None:
        cache: ByteBoundedCache[str, int] = ByteBoundedCache(0, monotonic=clock)
        assert not cache.put("key", 1, size=1, expires=2000.0)
        assert cache.get("key") is None

    @pytest.mark.parametrize("size", [0, -1])
    def test_an_entry_without_cost_is_a_programming_error(self, clock: Clock, size: int) -> None:
        cache: ByteBoundedCache[str, int] = ByteBoundedCache(30, monotonic=clock)
        with pytest.raises(ValueError, match="at least 1 byte"):
            cache.put("key", 1, size=size, expires=2000.0)

    def test_discard_and_clear_forget(self, clock: Clock) -> None:
        cache: ByteBoundedCache[str, int] = ByteBoundedCache(30, monotonic=clock)
        cache.put("a", 1, size=10, expires=2000.0)
        cache.put("b", 2, size=10, expires=2000.0)
        cache.discard("a")
        cache.discard("never kept")
        assert (cache.get("a"), cache.get("b"), len(cache), cache.size) == (None, 2, 1, 10)
        cache.clear()
        assert (cache.get("b"), len(cache), cache.size) == (None, 0, 0)

    def test_what_has_ended_makes_room_before_what_has_not(self, clock: Clock) -> None:
        cache: ByteBoundedCache[str, int] = ByteBoundedCache(30, monotonic=clock)
        cache.put("old", 1, size=10, expires=2000.0)
        for key in ("b", "c"):
            cache.put(key, 2, size=10, expires=1001.0)
        clock.now = 1002.0
        cache.put("d", 3, size=10, expires=2000.0)
        assert (cache.get("old"), cache.get("d"), len(cache), cache.size) == (1, 3, 2, 20)

    def test_a_key_that_is_put_again_and_again_costs_one_entry(self, clock: Clock) -> None:
        cache: ByteBoundedCache[str, int] = ByteBoundedCache(30, monotonic=clock)
        for number in range(1000):
            assert cache.put("key", number, size=10, expires=2000.0 + number % 7)
        assert (cache.get("key"), len(cache), cache.size) == (999, 1, 10)

    def test_discarding_what_has_ended_is_no_error(self, clock: Clock) -> None:
        cache: ByteBoundedCache[str, int] = ByteBoundedCache(30, monotonic=clock)
        cache.put("a", 1, size=10, expires=1001.0)
        clock.now = 1002.0
        cache.discard("a")
        assert cache.get("a") is None

    @given(
        st.lists(st.tuples(st.integers(0, 5), st.integers(1, 60), st.integers(-5, 20), st.integers(0, 5)), max_size=60)
    )
    def test_no_sequence_of_puts_exceeds_the_bound_or_gives_out_what_ended(
        self, steps: list[tuple[int, int, int, int]]
    ) -> None:
        clock = Clock()
        cache: ByteBoundedCache[int, tuple[int, float]] = ByteBoundedCache(100, monotonic=clock)
        for number, (key, size, lifetime, pause) in enumerate(steps):
            expires = clock.now + lifetime
            kept = cache.put(key, (number, expires), size=size, expires=expires)
            assert kept == (lifetime > 0)
            assert cache.size <= 100
            if kept:
                assert cache.get(key) == (number, expires)
            clock.now += pause
            for other in range(6):
                found = cache.get(other)
                assert found is None or found[1] > clock.now


class Work:
    """A job that can be held back, counts its starts, and then returns or raises."""

    def __init__(self, outcome: str | Exception = "done") -> None:
        self.starts = 0
        self.ended = 0
        self.gate = asyncio.Event()
        self._outcome = outcome

    async def __call__(self) -> str:
        self.starts += 1
        try:
            await self.gate.wait()
            if isinstance(self._outcome, Exception):
                raise self._outcome
            return self._outcome
        finally:
            self.ended += 1


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - what is waited for has no event of its own
        await asyncio.sleep(0)


class TestSingleFlight:
    async def test_many_callers_of_one_key_share_one_flight(self) -> None:
        flights: SingleFlight[str, str] = SingleFlight()
        work = Work()
        waiters = [asyncio.create_task(flights.run("key", work)) for _ in range(50)]
        await _until(lambda: work.starts > 0)
        assert len(flights) == 1
        work.gate.set()
        assert await asyncio.gather(*waiters) == ["done"] * 50
        assert (work.starts, len(flights)) == (1, 0)

    async def test_other_keys_fly_on_their_own(self) -> None:
        flights: SingleFlight[str, str] = SingleFlight()
        slow, quick = Work("slow"), Work("quick")
        quick.gate.set()
        waiter = asyncio.create_task(flights.run("slow", slow))
        assert await flights.run("quick", quick) == "quick"
        assert not waiter.done()
        slow.gate.set()
        assert await waiter == "slow"

    async def test_n68_the_caller_who_started_gives_up_and_the_others_still_get_the_result(self) -> None:
        flights: SingleFlight[str, str] = SingleFlight()
        work = Work()
        leader = asyncio.create_task(flights.run("key", work))
        await _until(lambda: work.starts > 0)
        follower = asyncio.create_task(flights.run("key", work))
        await asyncio.sleep(0)
        leader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leader
        work.gate.set()
        assert await follower == "done"
        assert work.starts == 1

    async def test_n68_a_flight_goes_on_when_every_caller_gave_up(self) -> None:
        flights: SingleFlight[str, str] = SingleFlight()
        work = Work()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await flights.run("key", work)
        assert (len(flights), work.ended) == (1, 0)
        work.gate.set()
        await _until(lambda: len(flights) == 0)
        assert work.ended == 1

    async def test_n68_an_error_reaches_every_waiter_and_the_next_caller_tries_again(self) -> None:
        flights: SingleFlight[str, str] = SingleFlight()
        work = Work(Undecided("REGISTRY_UNAVAILABLE", "down"))
        waiters = [asyncio.create_task(flights.run("key", work)) for _ in range(3)]
        await _until(lambda: work.starts > 0)
        work.gate.set()
        outcomes = await asyncio.gather(*waiters, return_exceptions=True)
        assert [str(outcome) for outcome in outcomes] == ["REGISTRY_UNAVAILABLE: down"] * 3
        good = Work()
        good.gate.set()
        assert await flights.run("key", good) == "done"

    async def test_a_shared_error_does_not_grow_with_the_number_of_waiters(self) -> None:
        flights: SingleFlight[str, str] = SingleFlight()
        work = Work(ValueError("bad"))
        waiters = [asyncio.create_task(flights.run("key", work)) for _ in range(20)]
        await _until(lambda: work.starts > 0)
        work.gate.set()
        outcomes = await asyncio.gather(*waiters, return_exceptions=True)
        assert isinstance(outcomes[-1], ValueError)
        frames = traceback.extract_tb(outcomes[-1].__traceback__)
        assert len(frames) < 6
        assert any(frame.name == "__call__" for frame in frames)  # where it happened is still told

    async def test_a_failure_that_nobody_waits_for_is_quiet(self) -> None:
        complaints: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: complaints.append(context))
        flights: SingleFlight[str, str] = SingleFlight()
        work = Work(ValueError("bad"))
        waiter = asyncio.create_task(flights.run("key", work))
        await _until(lambda: work.starts > 0)
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        work.gate.set()
        await _until(lambda: len(flights) == 0)
        gc.collect()
        assert complaints == []

    async def test_closing_cancels_the_work_and_tells_the_waiters(self) -> None:
        flights: SingleFlight[str, str] = SingleFlight()
        work = Work()
        waiter = asyncio.create_task(flights.run("key", work))
        await _until(lambda: work.starts > 0)
        await flights.aclose()
        assert (len(flights), work.ended) == (0, 1)
        with pytest.raises(Undecided, match="INTERNAL"):
            await waiter
        await flights.aclose()

    async def test_a_call_that_cannot_even_start_fails_like_any_other(self) -> None:
        flights: SingleFlight[str, str] = SingleFlight()

        def start() -> asyncio.Future[str]:
            raise ValueError("no")

        with pytest.raises(ValueError, match="no"):
            await flights.run("key", start)
        assert len(flights) == 0
