"""Answering the keys of one request by its deadline: what the two endpoints do, without HTTP.

    keys -> remembered, or one task each -> wait for all or the deadline -> items in the order of the keys

Rules:
- What is done by the deadline is answered; what is not is named, with what it waits for, and goes on in the background
  for the next attempt. That an answer left without it is noted (progress.py): the next one does not wait for it again.
- Work that goes on without its request is bounded in number and time.
- One key's failure is that key's: an unexpected exception denies its image and leaves the others alone.
- An admission is only ever what `Verifies` returned. No error leads to a value, except a Refused to a refusing verdict.

What does not belong here: HTTP, connections (server.py), deciding, coalescing and caching (executor.py).
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Generic, NamedTuple, Protocol, TypeVar

import structlog

from provider.cache import Tally
from provider.errors import CountersignError, InvalidKey, Refused, Undecided, printable
from provider.gatekeeper import protocol
from provider.gatekeeper.settings import ServerSettings
from provider.progress import Observer, Stage, Step
from provider.reports import verdict_tail
from provider.telemetry import Metrics

_log = structlog.get_logger(__name__)

T = TypeVar("T")
Failure = Refused | InvalidKey | Undecided

_NOT_BEGUN: Final = Undecided("OVERLOADED", "too many images are being looked at already")


class RenderedVerdict(Protocol):
    """A decision on one key, ready to be answered."""

    @property
    def fragment(self) -> bytes:
        """JSON members as reports.Verdict.render makes them. It alone says whether the image is admitted."""
        ...

    @property
    def is_success(self) -> bool:
        """The same, for counting."""
        ...


class Verifies(Protocol):
    """What the verification endpoint needs."""

    async def verify(self, key: str) -> RenderedVerdict:
        """Decide on one key, exactly as it was sent. Cancelling the caller cancels no work that others wait for.

        Raises:
            InvalidKey: the key is no image reference.
            Refused: taken for a verdict that refuses.
            Undecided: no decision was possible this time.
        """
        ...


class Resolves(Protocol):
    """What the mutation endpoint needs."""

    async def resolve(self, key: str) -> str:
        """The image of one key, pinned to a digest.

        Raises:
            InvalidKey, Refused, Undecided: as for verifying.
        """
        ...


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request is answered with.

    Attributes:
        body: a ProviderResponse.
        counts: keys by outcome: succeeded, refused, invalid, undecided.
        failed: keys that an error became of, of whatever kind.
        codes: codes of the keys that could not be decided, each once.
    """

    body: bytes
    counts: Mapping[str, int]
    failed: int
    codes: frozenset[str] = field(default=frozenset())


class Endpoint(Protocol[T]):
    """One of the two paths."""

    name: str
    seconds: float
    tally: Tally  # of looks into what is remembered; counted once for a request and not for each key

    def remembered(self, key: str) -> T | None:
        """What is known about a key without waiting; None when nothing is."""
        ...

    def work(self, key: str) -> Awaitable[T]:
        """Begin to work on a key."""
        ...

    def answer(self, settled: Mapping[str, T | Failure], trace_id: str) -> Answer:
        """Render what became of each key, in the order of the mapping."""
        ...


class Verification(Endpoint[RenderedVerdict]):
    """Verdicts, and errors that will not heal, as items; what could not be decided is left out and named.

    Args:
        verifier: decides.
        remembered: a look into the results at hand. It spares a warm key the task that waiting costs.
        seconds: deadline, from a request's first byte on.
        clock: the time stamped on verdicts (aware, UTC).
    """

    name = "verify"

    def __init__(
        self,
        verifier: Verifies,
        remembered: Callable[[str], RenderedVerdict | None],
        *,
        seconds: float,
        clock: Callable[[], datetime],
    ) -> None:
        self.seconds = seconds
        self.tally = Tally()
        self._verifier = verifier
        self._remembered = remembered
        self._clock = clock

    def remembered(self, key: str) -> RenderedVerdict | None:
        return self._remembered(key)

    def work(self, key: str) -> Awaitable[RenderedVerdict]:
        return self._verifier.verify(key)

    def answer(self, settled: Mapping[str, RenderedVerdict | Failure], trace_id: str) -> Answer:
        tail = verdict_tail(trace_id=trace_id, at=self._clock())
        items: list[protocol.Item] = []
        missing: dict[str, Undecided] = {}
        succeeded = invalid = refusals = 0
        for key, outcome in settled.items():
            if not isinstance(outcome, CountersignError):
                succeeded += outcome.is_success
                items.append(protocol.value_item(key, b"{", outcome.fragment, tail))
            elif isinstance(outcome, Refused):
                refusals += 1
                items.append(protocol.value_item(key, b"{", protocol.refusal_fragment(key, outcome), tail))
            elif isinstance(outcome, InvalidKey):
                invalid += 1
                items.append(protocol.error_item(key, outcome, trace_id=trace_id))
            else:
                missing[key] = outcome
        error = protocol.system_error(missing, trace_id=trace_id) if missing else ""
        refused = len(items) - succeeded - invalid
        return Answer(
            body=protocol.render_response(items, system_error=error),
            counts={"succeeded": succeeded, "refused": refused, "invalid": invalid, "undecided": len(missing)},
            failed=refusals + invalid + len(missing),
            codes=frozenset(error.code for error in missing.values()),
        )


class Mutation(Endpoint[str]):
    """Every key as an item, and never a systemError: Gatekeeper drops all items of a mutation that has one.

    Failures have no value beside their error, so that nothing can take an image that was not resolved for one that was.
    """

    name = "mutate"

    def __init__(self, resolver: Resolves, *, seconds: float) -> None:
        self.seconds = seconds
        self.tally = Tally()
        self._resolver = resolver

    def remembered(self, key: str) -> None:  # noqa: ARG002 - a tag's digest is looked up each time
        return None

    def work(self, key: str) -> Awaitable[str]:
        return self._resolver.resolve(key)

    def answer(self, settled: Mapping[str, str | Failure], trace_id: str) -> Answer:
        items: list[protocol.Item] = []
        counts: Counter[str] = Counter()
        codes: set[str] = set()
        for key, outcome in settled.items():
            if isinstance(outcome, str):
                counts["succeeded"] += 1
                items.append(protocol.string_item(key, outcome))
                continue
            items.append(protocol.error_item(key, outcome, trace_id=trace_id))
            if isinstance(outcome, Undecided):
                counts["undecided"] += 1
                codes.add(outcome.code)
            else:
                counts["refused" if isinstance(outcome, Refused) else "invalid"] += 1
        failed = len(items) - counts["succeeded"]
        return Answer(protocol.render_response(items, idempotent=True), counts, failed, frozenset(codes))


class KeyWork:
    """The keys under way, of all requests, and beyond the deadlines of their requests.

    Args:
        settings: max_unfinished_keys and background_seconds are used.
        metrics: counts unfinished keys and deadline misses.
    """

    def __init__(self, settings: ServerSettings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._unfinished: set[asyncio.Task[object]] = set()

    def __len__(self) -> int:
        """Keys under way now."""
        return len(self._unfinished)

    async def settle(
        self, endpoint: Endpoint[T], keys: Iterable[str], deadline: float, *, observer: Observer | None = None
    ) -> dict[str, T | Failure]:
        """Work on all keys until they are done or the deadline comes.

        Args:
            endpoint: knows what the work is.
            keys: distinct keys.
            deadline: monotonic time, seconds.
            observer: watches the request.

        Returns:
            What became of each key, in their order; an Undecided for what is not done or could not be begun.
        """
        settled: dict[str, T | Failure] = {}
        work: dict[str, _Work[T]] = {}
        cold = 0
        for key in keys:
            known = endpoint.remembered(key)
            if known is not None:
                settled[key] = known
                continue
            cold += 1
            settled[key] = _NOT_BEGUN  # the key takes its place in the order; the task's outcome replaces this
            if len(self._unfinished) < self._settings.max_unfinished_keys:
                work[key] = self._begin(endpoint, key, observer)
        endpoint.tally.misses += cold
        endpoint.tally.hits += len(settled) - cold
        if work:
            remaining = max(0.0, deadline - time.monotonic())
            _, late = await asyncio.wait([begun.task for begun in work.values()], timeout=remaining)
            for key, begun in work.items():
                settled[key] = begun.outcome(endpoint.seconds)
            if late:
                self._metrics.endpoint(endpoint.name).deadline_misses.inc()
                self._let_go([begun for begun in work.values() if begun.task in late])
        return settled

    async def aclose(self) -> None:
        """Cancel whatever is still under way, and wait until it has ended."""
        tasks = tuple(self._unfinished)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _begin(self, endpoint: Endpoint[T], key: str, observer: Observer | None) -> _Work[T]:
        step = Step(observer=None if observer is None else observer.begin(Stage.KEY))
        step.note("key", printable(key))
        attempt = _attempt(endpoint, key)
        task = step.task(attempt)
        self._unfinished.add(task)
        self._metrics.unfinished_keys.set(len(self._unfinished))

        def ended(_task: object) -> None:
            self._unfinished.discard(task)
            self._metrics.unfinished_keys.set(len(self._unfinished))
            step.note("code", _code(task))
            step.observed()

        task.add_done_callback(ended)
        return _Work(task, step)

    def _let_go(self, late: Sequence[_Work[T]]) -> None:
        """Let work go on without its request, but not for ever: what hangs must not fill all places."""
        for begun in late:
            begun.step.miss()

        def give_up() -> None:
            for begun in late:
                begun.task.cancel()

        asyncio.get_running_loop().call_later(self._settings.background_seconds, give_up)


def _code(task: asyncio.Task[T | Failure]) -> str:
    """What became of a key, as a code of errors.CODES; empty for a verdict or a digest."""
    if task.cancelled():
        return "INTERNAL"
    outcome = task.result()
    return outcome.code if isinstance(outcome, CountersignError) else ""


class _Work(NamedTuple, Generic[T]):
    """The work on one key, and what it waits for."""

    task: asyncio.Task[T | Failure]
    step: Step

    def outcome(self, seconds: float) -> T | Failure:
        """What it has come to by now, which is the deadline `seconds` after the request if it is not done."""
        if not self.task.done():
            waiting = self.step.describe()
            told = f", waiting for {waiting}" if waiting else ""
            return Undecided("DEADLINE_EXCEEDED", f"not decided within {seconds:g} s{told}")
        with suppress(asyncio.CancelledError):
            return self.task.result()
        return Undecided("INTERNAL", "the work was cancelled")


async def _attempt(endpoint: Endpoint[T], key: str) -> T | Failure:
    """The work on one key. What it raises is returned: a task nobody asks any more must not complain about that."""
    try:
        return await endpoint.work(key)
    except (Refused, InvalidKey, Undecided) as error:
        return error
    except Exception:  # noqa: BLE001 - whatever went wrong, this key is denied and the others are not
        _log.exception("key failed unexpectedly", endpoint=endpoint.name, key=key)
        return Undecided("INTERNAL", "something failed unexpectedly")
