"""How long an answer waits for work: not for work that kept one waiting in vain, and not for long for its host.

A deadline alone does not hold up under a burst. With a registry that hangs, every pod waits for the whole deadline,
Gatekeeper's threads are used up by those that wait, and the pods behind them queue there until the API server gives up
on the webhook; what then happens to a pod is the webhook's failurePolicy, and by default it is admitted. So:

1. Work that an answer had to leave without is overdue until it ends. Whoever asks for that same work is answered at
   once, undecided. It goes on meanwhile, and its result is used when it is there.
2. A host is suspect while work that waits for it is overdue and it has finished nothing since that became so. Other
   work of a suspect host is begun all the same, but answers wait for it during short probes only (`probe_seconds`),
   with a pause between them (`probe_pause_seconds`) in which they leave at once.
3. Whatever the host finishes lifts the suspicion at once, and so does the end of all overdue work. One image that is
   slow, for whatever reason of its own, cannot deny a registry that works: an image that is asked for during a probe
   gets its answer, and finishing any lifts the suspicion for everybody, even if its own answer had to leave before.
4. Work is laid at the door of a host only if it waits for that host at that moment: an OCSP responder that hangs casts
   no suspicion on the registry.
5. One host has a share of the places for work under way (`max_pending_per_host`), and while suspect a smaller one
   (`max_overdue_per_host`): hosts that hang do not use up the places of those that answer.

Hosts are told apart by a `Where`, in which the executor puts everything that must not share a fate: generations of the
configuration, namespaces, verification and mutation. What is kept of a host lives as long as its work does.

What does not belong here: deadlines of requests (gatekeeper/answering.py), what is waited for (progress.py), retries
and the pace of requests to a registry (stores/transport.py).
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from provider.cache import SingleFlight, UnfinishedError
from provider.errors import Undecided
from provider.figures import Figure
from provider.progress import Step

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class PatienceSettings:
    """Limits of waiting.

    Attributes:
        probe_seconds: how long answers wait for a suspect host, all together: longer than an image takes that is looked
            at for the first time (0.2 s for a registry 50 ms away), and so short that an answer which queued in
            Gatekeeper for a whole deadline still leaves before the webhook's time is up (3.8 + 0.5 < 5 s).
        probe_pause_seconds: from the end of one probe to the next: the webhook's time, so that no pod queues for two.
        max_pending_per_host: pieces of work of one host under way at once; a full request of distinct images.
        max_overdue_per_host: the same for a suspect host; more than the connections it has could not be looked at.
    """

    probe_seconds: float = 0.5
    probe_pause_seconds: float = 5.0
    max_pending_per_host: int = 2000
    max_overdue_per_host: int = 256


class Where(NamedTuple):
    """A host, as far as work with it shares its fate.

    Attributes:
        kind: of the work.
        generation: of the configuration.
        scope: the namespace whose configuration decides; "" for the cluster's.
        host: the registry's domain.
    """

    kind: str
    generation: int
    scope: str
    host: str


@dataclass(slots=True)
class _Standing:
    """What there is to know of one host.

    Attributes:
        under_way: its work that is not over.
        overdue: of that, what it has been kept waiting for since it last finished anything.
        probe_until: when the last probe ends, or ended; monotonic seconds.
    """

    under_way: int = 0
    overdue: set[Step] = field(default_factory=set)
    probe_until: float = -math.inf

    def lift(self) -> None:
        """It is not suspect any more."""
        self.overdue.clear()
        self.probe_until = -math.inf


class _Watch:
    """Keeps the standing of a host by what becomes of one piece of work."""

    __slots__ = ("_standing", "_standings", "_where")

    def __init__(self, standings: dict[Where, _Standing], where: Where) -> None:
        self._standings = standings
        self._where = where
        self._standing = standings.setdefault(where, _Standing())
        self._standing.under_way += 1

    def missed(self, step: Step) -> None:
        if any(leaf.host in ("", self._where.host) for leaf in step.leaves()):
            self._standing.overdue.add(step)

    def ended(self, step: Step) -> None:
        standing = self._standing
        standing.under_way -= 1
        standing.overdue.discard(step)
        if not standing.overdue:
            standing.lift()
        if not standing.under_way:
            del self._standings[self._where]


class Patience:
    """Waits for work, within the rules above. One for an executor.

    Args:
        settings: limits.
        monotonic: seconds of a clock that never goes back.
    """

    def __init__(self, settings: PatienceSettings, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._monotonic = monotonic
        self._standings: dict[Where, _Standing] = {}

    async def run(self, flights: SingleFlight[K, V], key: K, start: Callable[[], Awaitable[V]], *, where: Where) -> V:
        """Join the flight of a key, or start it, and wait for it as long as that is reasonable.

        Args:
            flights: where the work is shared.
            key: what makes work equal.
            start: as for SingleFlight.run.
            where: the host that the work needs.

        Raises:
            Undecided: DEADLINE_EXCEEDED, when it was not waited for, or not to its end; OVERLOADED, when it was not
                begun; whatever the work raises.
        """
        refuse_overdue(flights.under_way(key))
        standing = self._standings.get(where)
        watcher = None
        if key not in flights:
            self._check_room(standing, where.host)
            watcher = _Watch(self._standings, where)
        if standing is None or not standing.overdue:
            return await flights.run(key, start, watcher=watcher)
        seconds = self._probe(standing)
        try:
            return await flights.run(key, start, watcher=watcher, seconds=seconds)
        except UnfinishedError as unfinished:
            raise _let_go(unfinished.step, where.host, seconds) from None

    def answered(self, where: Where) -> None:
        """The host finished something, good or bad: it is not suspect."""
        standing = self._standings.get(where)
        if standing is not None:
            standing.lift()

    @property
    def suspects_any(self) -> bool:
        """Whether a host is suspect now."""
        return any(standing.overdue for standing in self._standings.values())

    def figures(self) -> Iterator[Figure]:
        """How many hosts there are, each once, whatever the work and its scope."""
        suspects = {where.host for where, standing in self._standings.items() if standing.overdue}
        yield Figure("countersign_hosts_waited_for", len({where.host for where in self._standings}))
        yield Figure("countersign_hosts_suspect", len(suspects))

    def __len__(self) -> int:
        """Hosts that there is something to know of."""
        return len(self._standings)

    def _check_room(self, standing: _Standing | None, host: str) -> None:
        if standing is None:
            return
        if standing.overdue and standing.under_way >= self._settings.max_overdue_per_host:
            raise Undecided(
                "OVERLOADED",
                f"{host} keeps {standing.under_way} images waiting and has finished none since; this one is not begun",
                expected="fewer than max_overdue_per_host",
            )
        if standing.under_way >= self._settings.max_pending_per_host:
            raise Undecided(
                "OVERLOADED",
                f"{standing.under_way} images of {host} are being looked at already",
                expected="fewer than max_pending_per_host",
            )

    def _probe(self, standing: _Standing) -> float:
        """How long an answer may wait for a suspect host: until the end of the probe, if there is one now."""
        now = self._monotonic()
        if now >= standing.probe_until + self._settings.probe_pause_seconds:
            standing.probe_until = now + self._settings.probe_seconds
        return max(0.0, standing.probe_until - now)


def refuse_overdue(step: Step | None) -> None:
    """Do not wait for work that an answer has left without already.

    Args:
        step: the work, if there is any.

    Raises:
        Undecided: DEADLINE_EXCEEDED.
    """
    if step is not None and step.missed:
        reason = "an answer has left without this already, and it is not over yet"
        raise Undecided("DEADLINE_EXCEEDED", reason + waiting_for(step))


def waiting_for(step: Step) -> str:
    """What work waits for, to be put behind what else is said of it; empty when that is not known."""
    waiting = step.describe()
    return f", waiting for {waiting}" if waiting else ""


def _let_go(step: Step, host: str, seconds: float) -> Undecided:
    """An answer leaves without work of a suspect host."""
    told = waiting_for(step)
    step.miss()
    reason = f"{host} keeps images waiting and has finished none since"
    if not seconds:
        return Undecided("DEADLINE_EXCEEDED", f"{reason}, so no answer waits for it; this one is looked at meanwhile")
    return Undecided("DEADLINE_EXCEEDED", f"{reason}, so this answer waited for {seconds:.1f} s only{told}")
