"""Gatekeeper's side of a soak run: callers that know which verdict is right, and the ledger of what came back.

Rules:
- Which verdict is right follows from the reference and the key that is trusted when it is asked for; while the trusted
  key changes, the verdict of either is.
- A key that is not decided, and said so, is no wrong verdict; it is asked for again until it is decided.
- A request is unanswered without a well-formed answer within the webhook's time that accounts for each of its keys.

What does not belong here: what goes wrong on purpose (soak.py).
"""

from __future__ import annotations

import json
import random
import ssl
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from bench import workload
from bench.caller import Caller, context_for, request_for
from bench.processes import BenchmarkError
from bench.registry import Kind, kind_of
from bench.replicas import Replica

WEBHOOK_SECONDS: Final = 5.0  # what Gatekeeper's validating webhook waits: a later answer is none
SPELLINGS: Final = 3  # of one image: by tag, by digest, by both
WARM_KEYS: Final = 5  # of one request for images that were asked for before
COLD_KEYS: Final = 10  # of one request for references that were not
MOST_OPEN: Final = 500  # undecided references, beyond which no new ones are asked for
SHOWN: Final = 10  # examples of what went wrong
ADMITTED: Final = "admitted"


def right_outcome(kind: Kind, trusted: str) -> str:
    """`admitted`, or the code of the refusal, of an image of a kind while `first` or `second` is trusted."""
    if kind == "unsigned":
        return "UNSIGNED"
    return ADMITTED if kind in ("both", trusted) else "UNTRUSTED_ROOT"


def reference(host: str, position: int) -> tuple[str, Kind]:
    """One of the distinct references, and the kind of its image."""
    number, spelling = divmod(position, SPELLINGS)
    name, tag, digest = f"{host}/{workload.REPOSITORY}", f":v{number}", f"@{workload.digest_of(number)}"
    return name + (tag, digest, tag + digest)[spelling], kind_of(number)


def read_outcomes(body: bytes) -> tuple[dict[str, str], str]:
    """The outcome of each key of an answer, `admitted` or a code, and the systemError.

    Raises:
        ValueError, KeyError, TypeError: it is no ProviderResponse.
    """
    response: dict[str, Any] = json.loads(body)["response"]
    outcomes = {}
    for item in response.get("items") or []:
        value = item.get("value")
        if value is None:
            outcomes[item["key"]] = str(item["error"])
        else:
            outcomes[item["key"]] = ADMITTED if value["isSuccess"] is True else str(value["code"])
    return outcomes, response.get("systemError", "")


@dataclass
class Ledger:
    """What was asked and what came back. Safe for threads.

    Attributes:
        counts: of what the table shows.
        examples: of what went wrong, the first ones.
        again: keys to ask for again, because they were not decided.
        undecided_at: when the last answer came that left a key undecided (monotonic).
        stopping: callers shall end.
        patience: seconds after which a request counts as unanswered.
    """

    counts: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    again: deque[tuple[str, Kind]] = field(default_factory=deque)
    undecided_at: float = field(default_factory=time.monotonic)
    stopping: threading.Event = field(default_factory=threading.Event)
    patience: float = WEBHOOK_SECONDS
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, counts: Counter[str], examples: Iterable[str] = ()) -> None:
        """Count what one request came to."""
        with self._lock:
            self.counts.update(counts)
            self.examples += list(examples)[: SHOWN - len(self.examples)]


@dataclass(frozen=True)
class Sources:
    """What callers ask for.

    Attributes:
        hot: references that are asked for all the time.
        references: how many distinct ones are asked for once.
        host: of the registry.
        pace: how far the warm requests are, 0 to 1: cold references are spread over them.
    """

    hot: Sequence[tuple[str, Kind]]
    references: int
    host: str
    pace: Callable[[], float]
    _taken: list[int] = field(default_factory=lambda: [0])
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def taken(self) -> int:
        """Distinct references that were asked for."""
        return self._taken[0]

    def warm(self) -> list[tuple[str, Kind]]:
        """For a caller of hot references."""
        return random.sample(self.hot, WARM_KEYS)

    def cold(self, ledger: Ledger) -> list[tuple[str, Kind]]:
        """For a caller of new ones, or of undecided ones; empty when it should wait."""
        with self._lock:
            first = self._taken[0]
            batch = min(COLD_KEYS, self.references - first)
            is_time = batch > 0 and first <= self.references * self.pace() and len(ledger.again) < MOST_OPEN
            if is_time and not (ledger.again and random.random() < 0.5):
                self._taken[0] += batch
                return [reference(self.host, position) for position in range(first, first + batch)]
            return [ledger.again.popleft() for _ in range(min(COLD_KEYS, len(ledger.again)))]


class Asker(threading.Thread):
    """One connection of Gatekeeper's. Asks until it is told to stop."""

    def __init__(
        self, ledger: Ledger, replicas: Sequence[Replica], take: Callable[[], list[tuple[str, Kind]]], *, warm: bool
    ) -> None:
        super().__init__(daemon=True)
        self._ledger, self._replicas, self._take, self._warm = ledger, replicas, take, warm
        self._context: ssl.SSLContext | None = None
        self._connections: dict[Replica, tuple[int, Caller]] = {}
        self._turn = 0

    def run(self) -> None:
        """Ask the replicas in turn."""
        try:
            while not self._ledger.stopping.is_set():
                self._turn += 1
                replica = self._replicas[self._turn % len(self._replicas)]
                wanted = self._take() if replica.is_up else []
                if wanted:
                    self.ask(replica, dict(wanted))
                else:
                    self._ledger.stopping.wait(0.02)
        except Exception as error:  # noqa: BLE001 - a caller that ends unseen would make the run look good
            self._ledger.add(Counter(broken=1), [f"a caller ended: {error!r}"])
        finally:
            self.close()

    def close(self) -> None:
        """Close its connections."""
        for _, connection in self._connections.values():
            connection.close()
        self._connections.clear()

    def ask(self, replica: Replica, wanted: dict[str, Kind]) -> None:
        """One request, judged."""
        lives, epoch = replica.lives, len(replica.trusts) - 1
        began = time.monotonic()
        try:
            connection = self._connect(replica, lives)
            connection.send(request_for(list(wanted), replica.serving.path))
            outcomes, system_error = read_outcomes(connection.receive())
            if time.monotonic() - began > self._ledger.patience:
                raise BenchmarkError(f"answered after {time.monotonic() - began:.1f} s")
        except (OSError, BenchmarkError, ValueError, KeyError, TypeError, AttributeError) as error:
            if replica in self._connections:
                self._connections.pop(replica)[1].close()
            killed = replica.lives != lives or not lives % 2
            self._ledger.again.extend(() if self._warm else wanted.items())
            example = f"unanswered by {replica.name} after {time.monotonic() - began:.1f} s: {error!r}"
            self._ledger.add(Counter({"killed" if killed else "unanswered": 1}), () if killed else (example,))
            return
        trusted: frozenset[str] = frozenset().union(*replica.trusts[epoch:])
        counts, examples = self._judge(replica.name, wanted, outcomes, trusted)
        missing = wanted.keys() - outcomes.keys()
        if missing and not system_error:
            counts["unanswered"] += 1
            examples.append(f"{replica.name} is silent on {min(missing)}")
        if "INTERNAL" in system_error:
            counts["internal"] += 1
            examples.append(system_error[:300])
        if missing:
            counts["undecided"] += len(missing)
            self._ledger.undecided_at = time.monotonic()
            if not self._warm:
                self._ledger.again.extend((key, wanted[key]) for key in missing)
        self._ledger.add(counts, examples)

    def _judge(
        self, name: str, wanted: dict[str, Kind], outcomes: dict[str, str], trusted: frozenset[str]
    ) -> tuple[Counter[str], list[str]]:
        counts, examples = Counter({"warm" if self._warm else "cold": 1}), []
        if not self._warm:
            counts["decided"] = len(outcomes)
        for key, outcome in outcomes.items():
            kind = wanted.get(key)
            right = {right_outcome(kind, one) for one in trusted} if kind else set()
            if outcome in right:
                counts["right"] += 1
                counts[f"right {kind}"] += 1
            else:
                counts["wrong"] += 1
                examples.append(f"{name}: {key} ({kind}, {'/'.join(sorted(trusted))} trusted) is {outcome}")
        return counts, examples

    def _connect(self, replica: Replica, lives: int) -> Caller:
        made = self._connections.get(replica)
        if made is not None and made[0] == lives:
            return made[1]
        if made is not None:
            made[1].close()
        if self._context is None:
            self._context = context_for(replica.serving)
        caller = Caller(replica.serving, self._context, timeout=self._ledger.patience)
        self._connections[replica] = lives, caller
        return caller
