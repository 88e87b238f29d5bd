"""When requests may go to one host: not more than it takes, the oldest work first, and none while it is down.

    turn() -> request -> answered() | throttled() | failed() -> done()

Rules:
- A host that never limited its rate is not limited here but by its connections. After a 429 nothing is sent until the
  host wants to be asked again (Retry-After, else half a second, doubling), and then no faster than it took requests
  before, growing slowly; so most of what it can take is asked of it, and little that it cannot.
- Who waits for a turn is served in the order in which the work began that the request is part of. Under a limit, images
  are then finished one after the other instead of all being half done when the answers leave.
- A pause longer than answers can wait is not waited out: requests fail at once and say when the host is asked again.
- A host that cannot be connected to, or whose gateway says that nobody is behind it, some times in a row is left alone
  for a while that doubles, and requests fail at once; then one request tries it. Any answer ends that. Answers of 500
  and answers that are late do not count: those may be the fault of one repository (patience.py has a rule for them).
- Waiting for a turn does not count as the host's time (`time_limit`): its own limit would end the work that waits
  because of others. The executor's limit of one verification bounds it all.

What does not belong here: HTTP (transport.py), how long answers wait (gatekeeper/answering.py, patience.py).
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import Any, Final

from provider.errors import Undecided
from provider.progress import current

WINDOW_SECONDS: Final = 1.0  # over which it is counted what a host took
DEFAULT_PAUSE_SECONDS: Final = 0.5  # after a 429 without Retry-After; doubles with each that follows
MAX_PAUSE_SECONDS: Final = 60.0  # whatever Retry-After says: a host must not shut us out for a day by one answer
# What was asked while little was to be done says nothing of what a host would take. One that takes less than this says
# so again, and its pauses grow.
MIN_RATE: Final = 20.0  # requests per second after a 429: five images
FORGET_SECONDS: Final = 30.0  # without a 429, after which a host counts as one that never limited its rate
GROWTH: Final = 0.05  # of the rate, per second in which the host takes what it is sent
SLOWER: Final = 0.8  # of what a host took, after a 429 that came although the rate was limited
BURST: Final = 8  # requests that may go at once within the rate
UNLIMITED: Final = 5000.0  # requests per second from which on a limit is none
FAILURES: Final = 6  # in a row until a host is left alone: two requests with their tries
DOWN_SECONDS: Final = 1.0  # how long at first
MAX_DOWN_SECONDS: Final = 15.0  # short, because a registry that is back must not deny for minutes
_MAX_DOUBLINGS: Final = 10  # reaches both maxima

_limit: ContextVar[tuple[asyncio.Task[Any] | None, asyncio.Timeout] | None] = ContextVar("limit", default=None)


@asynccontextmanager
async def time_limit(seconds: float) -> AsyncIterator[None]:
    """A time limit for what is done with a host; waiting for turns is not counted.

    Raises:
        TimeoutError: the time was up.
    """
    before = _limit.get()
    async with asyncio.timeout(seconds) as timeout:
        _limit.set((asyncio.current_task(), timeout))
        try:
            yield
        finally:
            _limit.set(before)


@contextmanager
def _not_counted() -> Iterator[None]:
    """Stop the clock of the time limit around this, if this is the task that it was set in."""
    limit = _limit.get()
    if limit is None or limit[0] is not asyncio.current_task() or limit[1].expired():
        yield
        return
    loop, timeout = asyncio.get_running_loop(), limit[1]
    left = (timeout.when() or loop.time()) - loop.time()
    timeout.reschedule(None)
    try:
        yield
    finally:
        timeout.reschedule(loop.time() + left)


class Pace:
    """The turns of one host. For one event loop.

    Args:
        host: for errors.
        connections: requests side by side.
        longest_wait: seconds of a pause that is waited out.
        down_seconds: how long a host is left alone at first.
        forget_seconds: how long a limit is remembered after the last pause.
    """

    def __init__(
        self,
        host: str,
        *,
        connections: int,
        longest_wait: float,
        down_seconds: float = DOWN_SECONDS,
        forget_seconds: float = FORGET_SECONDS,
    ) -> None:
        self._host = host
        self._connections = connections
        self._longest_wait = longest_wait
        self._down_seconds = down_seconds
        self._forget_seconds = forget_seconds
        self._under_way = 0
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()
        self._taken: deque[float] = deque()  # when answers came, within the window
        self._rate: float | None = None
        self._next_at = 0.0
        self._paused_until = 0.0
        self._pauses = 0  # in a row
        self._failures = 0  # in a row
        self._down_until = 0.0
        self._down_because = ""
        self._timer: asyncio.TimerHandle | None = None

    @property
    def limited(self) -> bool:
        """Whether the host has limited its rate lately."""
        return self._rate is not None

    @property
    def down(self) -> bool:
        """Whether the host is left alone because nobody is there."""
        return asyncio.get_running_loop().time() < self._down_until

    @property
    def under_way(self) -> int:
        """Requests that have their turn now."""
        return self._under_way

    @property
    def waiting(self) -> int:
        """Requests that wait for one."""
        return len(self._waiting)

    @property
    def idle(self) -> bool:
        """Whether nothing is known or under way that would be lost with this object."""
        return not (self._under_way or self._waiting or self._rate is not None or self._failures)

    async def turn(self) -> None:
        """Wait until a request may be sent; `done` has to follow.

        Raises:
            Undecided: REGISTRY_THROTTLED, REGISTRY_UNAVAILABLE: the host is not to be asked now.
        """
        loop = asyncio.get_running_loop()
        self._check(loop.time())
        if not self._waiting and self._under_way < self._places and self._delay(loop.time()) <= 0:
            self._begin(loop.time())
            return
        above = current()
        turn: asyncio.Future[None] = loop.create_future()
        heapq.heappush(self._waiting, (loop.time() if above is None else above.origin, next(self._numbers), turn))
        self._serve()
        try:
            with _not_counted():
                await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.done()  # it came in the same moment
            raise

    def done(self) -> None:
        """The request of a turn is over, whatever became of it."""
        self._under_way -= 1
        self._serve()

    def answered(self) -> None:
        """The host took a request."""
        now = asyncio.get_running_loop().time()
        self._taken.append(now)
        self._forget_taken(now)
        self._failures = 0
        if now >= self._paused_until:
            self._pauses = 0
        if self._rate is not None:
            self._rate += GROWTH
            if self._rate > UNLIMITED or now > self._paused_until + self._forget_seconds:
                self._rate = None

    def throttled(self, retry_after: float | None) -> float:
        """The host refused a request because there are too many.

        Args:
            retry_after: seconds that it wants to be left alone for, if it said so.

        Returns:
            Seconds until it is asked again.
        """
        now = asyncio.get_running_loop().time()
        self._failures = 0
        if now >= self._paused_until:  # further ones of the same moment say nothing new
            self._forget_taken(now)
            took = len(self._taken) / WINDOW_SECONDS
            self._rate = max(MIN_RATE, took if self._rate is None else min(self._rate, max(took, MIN_RATE)) * SLOWER)
            self._pauses += 1
        wanted = (
            DEFAULT_PAUSE_SECONDS * 2.0 ** min(self._pauses - 1, _MAX_DOUBLINGS) if retry_after is None else retry_after
        )
        self._paused_until = max(self._paused_until, now + min(wanted, MAX_PAUSE_SECONDS))
        self._next_at = max(self._next_at, self._paused_until)
        pause = self._paused_until - now
        if pause > self._longest_wait:
            self._turn_away(now)
        return pause

    def failed(self, problem: str) -> None:
        """The host could not be connected to, or there is nobody behind it.

        Args:
            problem: what happened, for people.
        """
        self._failures += 1
        if self._failures < FAILURES:
            return
        now = asyncio.get_running_loop().time()
        doublings = min(self._failures - FAILURES, _MAX_DOUBLINGS)
        seconds = min(self._down_seconds * 2.0**doublings, MAX_DOWN_SECONDS)
        self._down_until = now + seconds * random.uniform(0.75, 1.25)  # noqa: S311 - spreads load, protects nothing
        self._down_because = problem
        self._turn_away(now)

    def _check(self, now: float) -> None:
        if now > self._down_until + 15 * self._down_seconds:  # long ago: it says nothing of now
            self._failures = min(self._failures, FAILURES - 1)
        error = self._refusal(now)
        if error is not None:
            raise error

    def _refusal(self, now: float) -> Undecided | None:
        """Why nobody is to wait for the host, if that is so."""
        pause = self._paused_until - now
        if pause > self._longest_wait:
            return Undecided(
                "REGISTRY_THROTTLED",
                f"{self._host} limits the request rate and is not asked again for {pause:.0f} s",
                retry_after=pause,
            )
        down = self._down_until - now
        if down > 0:
            return Undecided(
                "REGISTRY_UNAVAILABLE",
                f"{self._host} {self._down_because}, {self._failures} times in a row; it is asked again in "
                f"{down:.1f} s",
                retry_after=down,
            )
        return None

    @property
    def _places(self) -> int:
        """Requests side by side: one alone tries a host that was down, the others wait for what becomes of it."""
        return 1 if self._failures >= FAILURES else self._connections

    def _delay(self, now: float) -> float:
        """Seconds until the next request may go."""
        return max(self._paused_until, self._next_at if self._rate is not None else 0.0) - now

    def _begin(self, now: float) -> None:
        self._under_way += 1
        if self._rate is not None:
            self._next_at = max(self._next_at, now - BURST / self._rate) + 1 / self._rate

    def _serve(self) -> None:
        """Give turns to those who wait, as many as may go now; come back for the rest."""
        loop = asyncio.get_running_loop()
        while self._waiting and self._under_way < self._places:
            if self._waiting[0][2].done():  # gave up
                heapq.heappop(self._waiting)
                continue
            now = loop.time()
            if self._refusal(now) is not None:
                self._turn_away(now)
                return
            delay = self._delay(now)
            if delay > 0:
                if self._timer is None:
                    self._timer = loop.call_later(delay, self._wake)
                return
            _, _, turn = heapq.heappop(self._waiting)
            self._begin(now)
            turn.set_result(None)

    def _wake(self) -> None:
        self._timer = None
        self._serve()

    def _turn_away(self, now: float) -> None:
        """Nobody waits any longer."""
        waiting, self._waiting = self._waiting, []
        for _, _, turn in waiting:
            error = self._refusal(now)  # one for each: an exception that many tasks raise grows with each
            assert error is not None  # noqa: S101 - or they would wait for ever
            if not turn.done():
                turn.set_exception(error)

    def _forget_taken(self, now: float) -> None:
        while self._taken and self._taken[0] < now - WINDOW_SECONDS:
            self._taken.popleft()
