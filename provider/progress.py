"""What work under way waits for, so that an answer that leaves without it can say so, and that it did leave.

    Step("") of a request's key
    `-- Step of the shared work                      <- roots: cache.SingleFlight makes one for each flight
        `-- the list of referrers                    <- `with step(...)` around whatever may take long
            `-- an answer of reg.example.com         <- a leaf: this is what is waited for

Rules:
- Steps are known to the code that runs inside of them by a context variable: whoever waits for something says so, and
  nobody passes anything along. Outside of any root, saying so costs a look-up and does nothing.
- Shared work has one root, and everybody who waits for it follows that root: so each sees what it waits for.
- What a step says is a few words about a thing and a host. Never a URL, a query, a header or a name of a secret: these
  words are answered to whoever creates pods. Hosts are foreign text, and are cut and made printable here.
- Nothing decides by these words. Times are monotonic seconds, by the clock of the root.
- Some steps are a stage of a decision. Whoever watches the request (an Observer) is told when a stage begins and ends;
  shared work is watched by who started it, and knows the trace ids of a bounded number of those that wait for it.

What does not belong here: deadlines (gatekeeper/answering.py), what follows from a miss (patience.py), metrics.
"""

from __future__ import annotations

import asyncio
import enum
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from provider.errors import printable

MAX_WORDS: Final = 100  # characters of one step's words; host names have at most 253, and the rest tells nothing more
MAX_TOLD: Final = 3  # things told that are waited for side by side; the others are counted
MAX_TRACE_IDS: Final = 10  # requests told that wait for one piece of work; the others are counted

T = TypeVar("T")

_current: ContextVar[Step | None] = ContextVar("step", default=None)


class Stage(enum.Enum):
    """What the time of a decision goes into. A closed list: metrics are labelled with it."""

    KEY = "key"  # one key of one request, from when it is begun until it is over
    RESOLVE = "resolve"  # what a tag names
    REFERRERS = "referrers"  # one page of the list
    ARTIFACT = "artifact"  # one verifier's look at one artifact, with all of the following
    CREDENTIALS = "credentials"  # what a cloud has to give before a registry can be asked
    TOKEN = "token"  # noqa: S105 - the name of a stage: what the token service of a registry has to give
    FETCH = "fetch"  # a manifest or an envelope that is not kept
    VERIFY = "verify"  # signature, certificates, trust, with REVOCATION
    REVOCATION = "revocation"  # OCSP answers and CRLs that are not kept
    POLICY = "policy"  # weighing the reports


class Observer(Protocol):
    """Watches one request, or a stage of it.

    Attributes:
        trace_id: the request's; "" for none.
        traceparent: what other services continue the trace by (W3C Trace Context); "" when it is not recorded.
    """

    @property
    def trace_id(self) -> str: ...

    @property
    def traceparent(self) -> str: ...

    def begin(self, stage: Stage) -> Observer:
        """A stage begins inside of this one; who watches that."""
        ...

    def note(self, name: str, value: str | bool | int) -> None:
        """A fact of the stage. No secrets."""
        ...

    def end(self, seconds: float) -> None:
        """The stage is over."""
        ...


class Watcher(Protocol):
    """Told what becomes of a root."""

    def missed(self, step: Step) -> None:
        """An answer left without the work for the first time."""
        ...

    def ended(self, step: Step) -> None:
        """The work is over, whatever came of it."""
        ...


class Leaf(NamedTuple):
    """Something that is waited for: the words on the way to it, the host named last on the way, and since when."""

    words: tuple[str, ...]
    host: str
    since: float


class Step:
    """Something under way, and what it waits for.

    Args:
        what: a few words, "the list of referrers"; empty for a root, which has its name elsewhere.
        host: the host that has to do its part; empty for the one of the step above.
        watcher: told of a miss and of the end; for roots.
        observer: watches the request that this is done for, or this stage of it.
        monotonic: the clock, seconds.

    Attributes:
        since: when it began.
        origin: when the work began that this is a part of: whoever has little to give serves the oldest first.
        missed: whether an answer has left without it.
        observer: as above.
        trace_ids: of the requests that followed this, at most MAX_TRACE_IDS.
        followers: how many times it was followed.
    """

    __slots__ = (
        *("_below", "_monotonic", "_watcher"),
        *("followers", "host", "missed", "observer", "origin", "since", "trace_ids", "what"),
    )

    def __init__(
        self,
        what: str = "",
        *,
        host: str = "",
        watcher: Watcher | None = None,
        observer: Observer | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.what = printable(what, MAX_WORDS)
        self.host = host
        self.since = monotonic()
        above = _current.get()
        self.origin: float = self.since if above is None else above.origin
        self.missed = False
        self.observer = observer
        self.trace_ids: tuple[str, ...] = ()
        self.followers = 0
        self._watcher = watcher
        self._monotonic = monotonic
        self._below: dict[Step, None] = {}  # a set that keeps its order

    def task(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Begin work as a task of its own that is inside of this step."""
        context = copy_context()
        context.run(_current.set, self)
        return asyncio.create_task(work, context=context)

    def below(self, what: str, host: str, stage: Stage | None = None) -> Step:
        """A step below this one, by the same clock; not entered yet."""
        observer = self.observer
        if observer is not None and stage is not None:
            observer = observer.begin(stage)
        return Step(what, host=host, observer=observer, monotonic=self._monotonic)

    def observed(self) -> None:
        """Tell its observer that this stage is over."""
        if self.observer is not None:
            self.observer.end(self._monotonic() - self.since)

    def note(self, name: str, value: str | bool | int) -> None:
        """Tell its observer a fact. No secrets."""
        if self.observer is not None:
            self.observer.note(name, value)

    def follow(self, other: Step) -> None:
        """`other` waits for this from now on."""
        other.enter(self)
        self.followers += 1
        trace_id = "" if other.observer is None else other.observer.trace_id
        if trace_id and self.observer is not None and self.observer.trace_id not in ("", trace_id):
            other.note("waits_for_trace", self.observer.trace_id)
        if trace_id and len(self.trace_ids) < MAX_TRACE_IDS and trace_id not in self.trace_ids:
            self.trace_ids += (trace_id,)

    def enter(self, step: Step) -> None:
        """This waits for `step` from now on."""
        self._below[step] = None

    def leave(self, step: Step) -> None:
        """It does no longer."""
        self._below.pop(step, None)

    def end(self) -> None:
        """The work is over."""
        if self._watcher is not None:
            self._watcher.ended(self)

    def miss(self) -> None:
        """An answer leaves without this, and so without everything that it waits for."""
        if self.missed:
            return
        self.missed = True
        if self._watcher is not None:
            self._watcher.missed(self)
        for step in tuple(self._below):
            step.miss()

    def leaves(self) -> Iterator[Leaf]:
        """What is waited for now. A root that waits for nothing in particular is a leaf without words."""
        return self._leaves((), "")

    def _leaves(self, words: tuple[str, ...], host: str) -> Iterator[Leaf]:
        words = (*words, self.what) if self.what else words
        host = self.host or host
        if not self._below:
            yield Leaf(words, host, self.since)
        for step in tuple(self._below):
            yield from step._leaves(words, host)

    def describe(self) -> str:
        """What is waited for and for how long, the oldest first; empty when that is not known.

        the list of referrers (an answer of reg.example.com, 3.8 s) and 2 more
        """
        now = self._monotonic()
        leaves = sorted((leaf for leaf in self.leaves() if leaf.words), key=lambda leaf: leaf.since)
        told = [_told(leaf, now) for leaf in leaves[:MAX_TOLD]]
        more = len(leaves) - len(told)
        return ", ".join(told) + (f" and {more} more" if more else "")


def _told(leaf: Leaf, now: float) -> str:
    # The first words say what for, the last what; what lies between is detail.
    first, last = leaf.words[0], leaf.words[-1]
    seconds = f"{now - leaf.since:.1f} s"
    return f"{first} ({seconds})" if len(leaf.words) == 1 else f"{first} ({last}, {seconds})"


def current() -> Step | None:
    """The step that this code runs inside of."""
    return _current.get()


def current_observer() -> Observer | None:
    """Who watches the request that this code runs for, if anybody."""
    inside = _current.get()
    return None if inside is None else inside.observer


def note(name: str, value: str | bool | int) -> None:
    """Tell whoever watches a fact of the stage that this code runs inside of. No secrets."""
    inside = _current.get()
    if inside is not None:
        inside.note(name, value)


@contextmanager
def step(what: str, host: str = "", *, stage: Stage | None = None) -> Iterator[None]:
    """Say what is waited for inside of the block.

    Args:
        what: a few words, no secrets; see Step. Empty adds none to those around.
        host: the host that has to do its part; empty for the one named around.
        stage: the stage of a decision that the block is.
    """
    above = _current.get()
    if above is None:
        yield
        return
    entered = above.below(what, host, stage)
    above.enter(entered)
    _current.set(entered)
    try:
        yield
    finally:
        # Not by a token: a coroutine that is thrown away is ended in another context, which may not use it.
        _current.set(above)
        above.leave(entered)
        if stage is not None:
            entered.observed()


@contextmanager
def following(root: Step) -> Iterator[None]:
    """Wait for shared work inside of the block."""
    above = _current.get()
    if above is None:
        yield
        return
    root.follow(above)
    try:
        yield
    finally:
        above.leave(root)
