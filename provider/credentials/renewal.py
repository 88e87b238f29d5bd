"""Keeping what an exchange gave while it lasts: one exchange for all who wait, the next one before the first has ended.

Rules:
- From the time it should be renewed, what is kept is still given out while the next exchange runs behind it; from the
  time it has ended, callers wait for the exchange.
- A failed exchange is remembered for seconds, as long as the service asked for and no longer than MAX_PAUSE_SECONDS:
  the service is left alone and nobody is locked out. What has not ended is used meanwhile.
- What a registry refused is exchanged anew, but not oftener than every REFUSAL_PAUSE_SECONDS: whoever names an image
  decides how often a registry refuses. The one who was refused waits, and everybody else goes on with what is kept: it
  may be good for others, and there may be nothing to be had in its place.
- That what is kept cannot be renewed is told in the log, once until it can, by those who say whose it is.

What does not belong here: the exchanges (azure.py, aws.py, google.py, kubernetes.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

import structlog
from cachetools import LRUCache

from provider.cache import SingleFlight
from provider.errors import Undecided
from provider.progress import Stage, step

RENEW_SHARE: Final = 0.8  # of its time; what is left of the shortest, minutes, is ample for an exchange
FAILURE_PAUSE_SECONDS: Final = 3.0  # without a wait of the service's own; below the first retry of any controller
MAX_PAUSE_SECONDS: Final = 60.0  # what Azure and AWS ask for at most
REFUSAL_PAUSE_SECONDS: Final = 30.0  # between two exchanges that refusals of a registry cause
MAX_KEPT: Final = 1024  # registries of one source

_log = structlog.get_logger(__name__)

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Lease(Generic[V]):
    """What an exchange gave.

    Attributes:
        value: it; secret.
        seconds: how long it is used, from when it was asked for; a margin for its way is the source's to take off.
        renew_seconds: when it is to be renewed, from when it was asked for; None for RENEW_SHARE of `seconds`.
    """

    value: V = field(repr=False)
    seconds: float
    renew_seconds: float | None = None


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
        refusal_pause_seconds: between two exchanges for one key that refusals of a registry cause.
        service: who gives it, for the log; empty for a source that tells of its failures itself.
        monotonic: seconds of a clock that never goes back.
    """

    def __init__(
        self,
        exchange: Callable[[K], Awaitable[Lease[V]]],
        *,
        refusal_pause_seconds: float = REFUSAL_PAUSE_SECONDS,
        service: str = "",
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._exchange = exchange
        self._refusal_pause_seconds = refusal_pause_seconds
        self._service = service
        self._monotonic = monotonic
        self._told: set[K] = set()
        self._kept: LRUCache[K, _Kept[V]] = LRUCache(MAX_KEPT)
        self._failures: LRUCache[K, _Failure] = LRUCache(MAX_KEPT)
        self._flights: SingleFlight[K, V] = SingleFlight()
        self._renewals: set[asyncio.Task[None]] = set()

    async def get(self, key: K, *, anew: bool = False) -> V:
        """What is kept for a key, or what an exchange gives.

        Args:
            key: what is wanted.
            anew: rather what an exchange gives now, unless it was asked for just now. What is kept stays good for
                others meanwhile, and is what comes of it if the exchange fails.

        Raises:
            Undecided: whatever the exchange raised, or the last one did a moment ago.
        """
        now, kept = self._monotonic(), self._kept.get(key)
        if kept is not None and now < kept.ends:
            if self._failure(key, now) is None:
                if anew and now >= kept.asked + self._refusal_pause_seconds:
                    with contextlib.suppress(Undecided):
                        return await self._flights.run(key, lambda: self._ask(key))
                elif now >= kept.renew and key not in self._flights:
                    self._renew(key)
            return kept.value
        failure = self._failure(key, now)
        if failure is not None:
            raise _again(failure, now)
        return await self._flights.run(key, lambda: self._ask(key))

    async def aclose(self) -> None:
        """Give up the exchanges under way."""
        await self._flights.aclose()
        await asyncio.gather(*self._renewals)

    def _failure(self, key: K, now: float) -> _Failure | None:
        failure = self._failures.get(key)
        return failure if failure is not None and now < failure.ends else None

    def _renew(self, key: K) -> None:
        async def renew() -> None:
            try:
                await self._flights.run(key, lambda: self._ask(key))
            except Undecided as error:  # remembered; who comes when the kept one has ended is told
                if self._service and key not in self._told and key in self._kept:
                    self._told.add(key)
                    _log.warning("credentials not renewed yet", service=self._service, reason=str(error))

        task = asyncio.create_task(renew())
        self._renewals.add(task)
        task.add_done_callback(self._renewals.discard)

    async def _ask(self, key: K) -> V:
        asked = self._monotonic()
        try:
            with step("", stage=Stage.CREDENTIALS):
                lease = await self._exchange(key)
        except Undecided as error:
            pause = FAILURE_PAUSE_SECONDS if error.retry_after is None else min(error.retry_after, MAX_PAUSE_SECONDS)
            self._failures[key] = _Failure(error, self._monotonic() + pause)
            raise
        self._failures.pop(key, None)
        self._told.discard(key)
        renew = lease.seconds * RENEW_SHARE if lease.renew_seconds is None else lease.renew_seconds
        self._kept[key] = _Kept(lease.value, asked, asked + renew, asked + lease.seconds)
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
