"""Two ways not to do work twice: keep what is known (ByteBoundedCache), share what is under way (SingleFlight).

Rules:
- A cache is bounded in bytes, and every entry has its own end; the least recently used goes first. Time is a monotonic
  clock that the caller passes in, in seconds: wall clocks jump.
- A flight is detached from whoever started it. A waiter that is cancelled, or waits no longer, cancels nobody; a failed
  flight fails all who wait for it and is forgotten, so that the next caller tries again.
- A flight is a root of progress.py, and everybody who waits for it follows it.
- Both belong to one event loop and are not safe to share between threads.

What does not belong here: what is worth keeping and for how long, caches shared between processes.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, NamedTuple, TypeVar

from provider.errors import Undecided
from provider.figures import Figure
from provider.progress import Step, Watcher, current_observer, following

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class _Entry(NamedTuple, Generic[V]):
    value: V
    size: int
    expires: float


@dataclass(slots=True)
class Tally:
    """How often something was looked for in a cache, or in those that were in its place one after the other."""

    hits: int = 0
    misses: int = 0

    def figures(self, cache: str) -> Iterator[Figure]:
        """These counts, under the name of the cache."""
        yield Figure("countersign_cache_hits", self.hits, (cache,))
        yield Figure("countersign_cache_misses", self.misses, (cache,))


class ByteBoundedCache(Generic[K, V]):
    """Values with an end each, at most so many bytes of them; the least recently used are evicted.

    Args:
        max_bytes: the most that the kept entries may add up to, by the sizes that `put` was told. 0 keeps nothing.
        monotonic: seconds of a clock that never goes back.
        tally: where look-ups are counted.

    Attributes:
        tally: as above.
    """

    def __init__(
        self, max_bytes: int, *, monotonic: Callable[[], float] = time.monotonic, tally: Tally | None = None
    ) -> None:
        self.tally = tally or Tally()
        self._monotonic = monotonic
        self._max_bytes = max_bytes
        self._bytes = 0
        self._entries: OrderedDict[K, _Entry[V]] = OrderedDict()  # the one used last comes last
        self._ends: list[tuple[float, int, K]] = []  # a heap; ends of entries that are gone lie in it until they come
        self._numbers = itertools.count()  # so that the heap never compares keys

    def get(self, key: K) -> V | None:
        """The value, if it is kept and has not ended; None otherwise. Counts as a use."""
        value = self.peek(key)
        if value is None:
            self.tally.misses += 1
        else:
            self.tally.hits += 1
        return value

    def peek(self, key: K) -> V | None:
        """As `get`, for who has asked before: it is not counted."""
        # Written for speed: a request with a thousand warm keys comes here a thousand times.
        entry = self._entries.get(key)
        if entry is None or not self._monotonic() < entry[2]:
            return None
        self._entries.move_to_end(key)
        return entry[0]

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
        now = self._monotonic()
        self.discard(key)
        self._sweep(now)
        if size > self._max_bytes or not now < expires:
            return False
        while self._bytes + size > self._max_bytes:
            self.discard(next(iter(self._entries)))
        self._entries[key] = _Entry(value, size, expires)
        self._bytes += size
        if expires != math.inf:
            heapq.heappush(self._ends, (expires, next(self._numbers), key))
        return True

    def discard(self, key: K) -> None:
        """Forget the key, if it is kept."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._bytes -= entry.size

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self._ends.clear()
        self._bytes = 0

    def _sweep(self, now: float) -> None:
        """Forget what has ended, and the ends of what is gone when they are the most of what is remembered."""
        while self._ends and not now < self._ends[0][0]:
            _, _, key = heapq.heappop(self._ends)
            entry = self._entries.get(key)
            if entry is not None and not now < entry.expires:
                self.discard(key)
        if len(self._ends) > 2 * len(self._entries) + 64:
            self._ends = [(entry.expires, next(self._numbers), key) for key, entry in self._entries.items()]
            heapq.heapify(self._ends)

    def figures(self, cache: str) -> Iterator[Figure]:
        """How much is kept, under the name of the cache. What was looked for says the tally."""
        yield Figure("countersign_cache_entries", len(self), (cache,))
        yield Figure("countersign_cache_bytes", self.size, (cache,))

    def __contains__(self, key: K) -> bool:
        """Whether the key is kept and has not ended. Does not count as a use."""
        entry = self._entries.get(key)
        return entry is not None and self._monotonic() < entry.expires

    @property
    def size(self) -> int:
        """Bytes kept now, entries that have ended but were not swept yet included."""
        return self._bytes

    def __len__(self) -> int:
        """Entries kept, those that have ended included until the next one is put."""
        return len(self._entries)


@dataclass(frozen=True, slots=True)
class _Crash:
    """How a flight failed. Carried as a result, so that a flight nobody waits for any more logs no warning."""

    error: Exception
    traceback: TracebackType | None


class UnfinishedError(Exception):
    """Work was not over within the time that it was waited for.

    Attributes:
        step: what it waits for.
    """

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.step = step


class _Flight(NamedTuple, Generic[V]):
    """Work under way, and what it waits for."""

    task: asyncio.Task[V | _Crash]
    step: Step


class SingleFlight(Generic[K, V]):
    """Runs equal work once: callers with the same key share one detached task and its outcome.

    A flight must not wait for its own key: it would wait for itself.
    """

    def __init__(self) -> None:
        self._flights: dict[K, _Flight[V]] = {}

    async def run(
        self, key: K, start: Callable[[], Awaitable[V]], *, watcher: Watcher | None = None, seconds: float | None = None
    ) -> V:
        """Join the flight of this key, or start it.

        Args:
            key: what makes work equal.
            start: called at once, and only when no flight of the key is under way.
            watcher: of the flight, when it is started here; see progress.Step.
            seconds: how long to wait; None for as long as it takes. 0 waits for what takes no time.

        Raises:
            UnfinishedError: it was not over by then; it goes on.
            Undecided: INTERNAL, when the flight itself was cancelled, as `aclose` does.
            Exception: whatever the flight raised, the same for all who wait.
        """
        flight = self._flights.get(key) or self._start(key, start, watcher)
        with following(flight.step):
            # asyncio.wait, not await: a cancelled waiter leaves the flight alone, a cancelled flight cancels no waiter.
            await asyncio.wait((flight.task,), timeout=seconds)
        if not flight.task.done():
            raise UnfinishedError(flight.step)
        if flight.task.cancelled():
            raise Undecided("INTERNAL", "the work that this waited for was cancelled")
        outcome = flight.task.result()
        if isinstance(outcome, _Crash):
            # One exception is raised in many tasks: without a reset every waiter would lengthen its traceback.
            raise outcome.error.with_traceback(outcome.traceback)
        return outcome

    def _start(self, key: K, start: Callable[[], Awaitable[V]], watcher: Watcher | None) -> _Flight[V]:
        step = Step(watcher=watcher, observer=current_observer())
        flight = self._flights[key] = _Flight(step.task(_fly(start)), step)

        def ended(_task: object) -> None:
            del self._flights[key]
            step.end()

        flight.task.add_done_callback(ended)
        return flight

    def __contains__(self, key: K) -> bool:
        """Whether a flight of this key is under way, to be joined."""
        return key in self._flights

    def under_way(self, key: K) -> Step | None:
        """What the flight of this key waits for, if there is one to be joined."""
        flight = self._flights.get(key)
        return None if flight is None else flight.step

    def __len__(self) -> int:
        """Flights under way."""
        return len(self._flights)

    async def aclose(self) -> None:
        """Cancel every flight and wait until all have ended; their waiters get Undecided."""
        tasks = tuple(flight.task for flight in self._flights.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


async def _fly(start: Callable[[], Awaitable[V]]) -> V | _Crash:
    try:
        return await start()
    except Exception as error:  # noqa: BLE001 - handed to every waiter, who raises it
        return _Crash(error, error.__traceback__)
