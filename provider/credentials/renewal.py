"""Keeping what an exchange gave while it lasts: one exchange for all who wait, the next one before the first has ended.

Rules:
- From the time it should be renewed, what is kept is still given out while the next exchange runs behind it; from the
  time it has ended, callers wait for the exchange.
- A failed exchange is remembered for seconds, as long as the service asked for and no longer than MAX_PAUSE_SECONDS:
  the service is left alone and nobody is locked out. What has not ended is used meanwhile.
- What a registry refused is exchanged anew before it is given out again, but not oftener than every
  REFUSAL_PAUSE_SECONDS: whoever names an image decides how often a registry refuses.

What does not belong here: the exchanges (azure.py, aws.py, google.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from cachetools import LRUCache

from provider.cache import SingleFlight
from provider.errors import Undecided

RENEW_SHARE: Final = 0.8  # of its time; what is left of the shortest, minutes, is ample for an exchange
FAILURE_PAUSE_SECONDS: Final = 3.0  # without a wait of the service's own; below the first retry of any controller
MAX_PAUSE_SECONDS: Final = 60.0  # what Azure and AWS ask for at most
REFUSAL_PAUSE_SECONDS: Final = 30.0  # between two exchanges that refusals of a registry cause
MAX_KEPT: Final = 1024  # registries of one source

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Lease(Generic[V]):
    """What an exchange gave.

    Attributes:
        value: it; secret.
        seconds: how long it is used, from when it was asked for; a margin for its way is the source's to take off.
    """

    value: V = field(repr=False)
    seconds: float


@dataclass(slots=True)
class _Kept(Generic[V]):
    value: V = field(repr=False)
    asked: float
    renew: float
    ends: float


@dataclass(frozen=True, slots=True)
class _Failure:
    error: Undecided
    ends: float


class Renewing(Generic[K, V]):
    """Keeps what exchanges give, by key. For one event loop; to be closed with `aclose`.

    Args:
        exchange: gets what a key stands for. Raises Undecided, with `retry_after` where the service said so.
        monotonic: seconds of a clock that never goes back.
    """

    def __init__(
        self, exchange: Callable[[K], Awaitable[Lease[V]]], *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._exchange = exchange
        self._monotonic = monotonic
        self._kept: LRUCache[K, _Kept[V]] = LRUCache(MAX_KEPT)
        self._failures: LRUCache[K, _Failure] = LRUCache(MAX_KEPT)
        self._flights: SingleFlight[K, V] = SingleFlight()
        self._renewals: set[asyncio.Task[None]] = set()

    async def get(self, key: K) -> V:
        """What is kept for a key, or what an exchange gives.

        Raises:
            Undecided: whatever the exchange raised, or the last one did a moment ago.
        """
        now, kept = self._monotonic(), self._kept.get(key)
        if kept is not None and now < kept.ends:
            if now >= kept.renew and key not in self._flights and self._failure(key, now) is None:
                self._renew(key)
            return kept.value
        failure = self._failure(key, now)
        if failure is not None:
            raise _again(failure, now)
        return await self._flights.run(key, lambda: self._ask(key))

    def refuse(self, key: K) -> bool:
        """Forget what a registry refused, unless it was got just now. Whether it was forgotten."""
        kept = self._kept.get(key)
        if kept is None or self._monotonic() < kept.asked + REFUSAL_PAUSE_SECONDS:
            return False
        del self._kept[key]
        return True

    async def aclose(self) -> None:
        """Give up the exchanges under way."""
        await self._flights.aclose()
        await asyncio.gather(*self._renewals)

    def _failure(self, key: K, now: float) -> _Failure | None:
        failure = self._failures.get(key)
        return failure if failure is not None and now < failure.ends else None

    def _renew(self, key: K) -> None:
        async def renew() -> None:
            with contextlib.suppress(Undecided):  # remembered; who comes when the kept one has ended is told
                await self._flights.run(key, lambda: self._ask(key))

        task = asyncio.create_task(renew())
        self._renewals.add(task)
        task.add_done_callback(self._renewals.discard)

    async def _ask(self, key: K) -> V:
        asked = self._monotonic()
        try:
            lease = await self._exchange(key)
        except Undecided as error:
            pause = FAILURE_PAUSE_SECONDS if error.retry_after is None else min(error.retry_after, MAX_PAUSE_SECONDS)
            self._failures[key] = _Failure(error, self._monotonic() + pause)
            raise
        self._failures.pop(key, None)
        self._kept[key] = _Kept(lease.value, asked, asked + lease.seconds * RENEW_SHARE, asked + lease.seconds)
        return lease.value


def _again(failure: _Failure, now: float) -> Undecided:
    """The error of a moment ago, with what is left of its wait."""
    error = failure.error
    return Undecided(
        error.code,
        error.reason,
        expected=error.expected,
        found=error.found,
        remediation=error.remediation,
        retry_after=failure.ends - now,
    )
