"""Two ways not to do work twice: keep what is known (ByteBoundedCache), share what is under way (SingleFlight).

Rules:
- A cache is bounded in bytes, and every entry has its own end; the least recently used goes first. Time is a monotonic
  clock that the caller passes in, in seconds: wall clocks jump.
- A flight is detached from whoever started it. A waiter that is cancelled cancels nobody; a failed flight fails all who
  wait for it and is forgotten, so that the next caller tries again.
- Both belong to one event loop and are not safe to share between threads.

What does not belong here: what is worth keeping and for how long, caches shared between processes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, NamedTuple, TypeVar

from cachetools import TLRUCache

from provider.errors import Undecided

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class _Entry(NamedTuple):
    value: object
    size: int
    expires: float


class ByteBoundedCache(Generic[K, V]):
    """Values with an end each, at most so many bytes of them; the least recently used are evicted.

    Args:
        max_bytes: the most that the kept entries may add up to, by the sizes that `put` was told. 0 keeps nothing.
        monotonic: seconds of a clock that never goes back.
    """

    def __init__(self, max_bytes: int, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._entries: TLRUCache[K, _Entry] = TLRUCache(
            maxsize=max_bytes,
            ttu=lambda _key, entry, _now: entry.expires,
            timer=monotonic,
            getsizeof=lambda entry: entry.size,
        )

    def get(self, key: K) -> V | None:
        """The value, if it is kept and has not ended; None otherwise. Counts as a use."""
        entry = self._entries.get(key)
        return None if entry is None else entry.value  # type: ignore[return-value]

    def put(self, key: K, value: V, *, size: int, expires: float) -> bool:
        """Keep a value in place of any that the key has.

        Args:
            key: what to find it by.
            value: anything but None.
            size: bytes it costs, key and overhead included, as the caller reckons them; at least 1.
            expires: monotonic time, seconds, from which on the value is not given out any more.

        Returns:
            Whether it was kept: not when it has ended already or is larger than the whole cache.

        Raises:
            ValueError: a size below 1, which would let entries in without bound (a programming error).
        """
        if size < 1:
            raise ValueError(f"a kept value costs at least 1 byte, not {size}")
        if size > self._entries.maxsize or not self._monotonic() < expires:
            self.discard(key)
            return False
        self._entries[key] = _Entry(value, size, expires)
        return True

    def discard(self, key: K) -> None:
        """Forget the key, if it is kept."""
        self._entries.pop(key, None)

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()

    @property
    def size(self) -> int:
        """Bytes kept now, entries that have ended but were not swept yet included."""
        return int(self._entries.currsize)

    def __len__(self) -> int:
        return len(self._entries)


@dataclass(frozen=True, slots=True)
class _Crash:
    """How a flight failed. Carried as a result, so that a flight nobody waits for any more logs no warning."""

    error: Exception
    traceback: TracebackType | None


class SingleFlight(Generic[K, V]):
    """Runs equal work once: callers with the same key share one detached task and its outcome.

    A flight must not wait for its own key: it would wait for itself.
    """

    def __init__(self) -> None:
        self._flights: dict[K, asyncio.Task[V | _Crash]] = {}

    async def run(self, key: K, start: Callable[[], Awaitable[V]]) -> V:
        """Join the flight of this key, or start it.

        Args:
            key: what makes work equal.
            start: called at once, and only when no flight of the key is under way.

        Raises:
            Undecided: INTERNAL, when the flight itself was cancelled, as `aclose` does.
            Exception: whatever the flight raised, the same for all who wait.
        """
        flight = self._flights.get(key)
        if flight is None:
            flight = asyncio.create_task(_fly(start))
            self._flights[key] = flight
            flight.add_done_callback(lambda _done: self._flights.pop(key, None))
        # asyncio.wait, not await: a cancelled waiter leaves the flight alone, a cancelled flight cancels no waiter.
        await asyncio.wait((flight,))
        if flight.cancelled():
            raise Undecided("INTERNAL", "the work that this waited for was cancelled")
        outcome = flight.result()
        if isinstance(outcome, _Crash):
            # One exception is raised in many tasks: without a reset every waiter would lengthen its traceback.
            raise outcome.error.with_traceback(outcome.traceback)
        return outcome

    def __contains__(self, key: K) -> bool:
        """Whether a flight of this key is under way, to be joined."""
        return key in self._flights

    def __len__(self) -> int:
        """Flights under way."""
        return len(self._flights)

    async def aclose(self) -> None:
        """Cancel every flight and wait until all have ended; their waiters get Undecided."""
        flights = tuple(self._flights.values())
        for flight in flights:
            flight.cancel()
        if flights:
            await asyncio.wait(flights)


async def _fly(start: Callable[[], Awaitable[V]]) -> V | _Crash:
    try:
        return await start()
    except Exception as error:  # noqa: BLE001 - handed to every waiter, who raises it
        return _Crash(error, error.__traceback__)
