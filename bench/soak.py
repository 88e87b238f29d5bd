"""`python -m bench.soak`: the real server for a long time under everything that goes wrong, on loopback.

Two replicas of `countersign serve` share a folder of manifests and one registry (bench.registry --mixed). Callers ask
both of them, while the registry fails in every way it knows, the trusted key is changed, the configuration is edited
well and badly, and one replica is killed and started again.

Rules:
- Which verdict is right follows from the reference and the trusted key. From the moment a key change is written until
  a replica says that it uses it (/metrics), the verdict of either key is right; before and after, of one.
- A key that is not decided, and said so, is no wrong verdict; it is asked for again until it is decided.
- A request is unanswered without a well-formed answer within the webhook's time that accounts for each of its keys.
- Figures of memory, files and work under way are those of the replica that is never killed.

What does not belong here: speed (the other measurements), hostile content (tests/).
"""

from __future__ import annotations

import json
import random
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Final

import click

from bench import workload
from bench.caller import Caller, context_for, request_for
from bench.processes import _CLI, BenchmarkError, RegistryProcess, Serving, Stage, Watched, _await_ready, free_port
from bench.registry import FAULTS, Kind, kind_of

WEBHOOK_SECONDS: Final = 5.0  # what Gatekeeper's validating webhook waits: a later answer is none
POLL_SECONDS: Final = 0.2  # --config-poll-seconds of the replicas
CHANGE_SECONDS: Final = 30.0  # for a replica to use a change of the manifests; two looks are enough on an idle machine
SETTLE_SECONDS: Final = 60.0  # for everything to be decided and idle once the registry is well again
SPELLINGS: Final = 3  # of one image: by tag, by digest, by both
HOT_IMAGES: Final = 60
WARM_KEYS: Final = 5  # of one request for images that were asked for before
COLD_KEYS: Final = 10  # of one request for references that were not
WARM_CALLERS: Final = 3  # of each replica
COLD_CALLERS: Final = 2
PROGRESS_SECONDS: Final = 10.0
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


@dataclass(frozen=True)
class Limits:
    """What the run is held against.

    Attributes:
        growth_mib: MiB that resident memory may grow after warm-up, beyond what the caches reckon they hold more.
        files: open files and sockets that may be left beyond those of a fresh replica.
    """

    growth_mib: float
    files: int


class Replica:
    """One `countersign serve`, which can be killed and started again on its ports."""

    def __init__(self, stage: Stage, name: str, resources: Path, trusted: str) -> None:
        self._stage, self.name = stage, name
        tls = stage.certificates()
        self._port, self._health, self._metrics = free_port(), free_port(), free_port()
        self._arguments = ["-c", _CLI, "serve", "--config", str(resources), "--cert-dir", str(tls)]
        self._arguments += ["--host", "127.0.0.1", "--port", str(self._port), "--health-port", str(self._health)]
        self._arguments += ["--metrics-port", str(self._metrics), "--config-poll-seconds", str(POLL_SECONDS)]
        self._arguments += ["--log-level", "error"]
        self._process: subprocess.Popen[str] | None = None
        self.ca = (tls / "tls-ca.crt").read_text()
        self.lives = 0  # even: it is down
        self.trusts = [frozenset((trusted,))]  # what may be trusted, from change to change

    def start(self) -> None:
        """Start it; it is ready when this returns."""
        began = time.monotonic()
        self._process = self._stage.spawn(self._arguments, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
        _await_ready(self._process, self._health, began)
        self.lives += 1

    def kill(self) -> None:
        """SIGKILL."""
        assert self._process is not None
        self.lives += 1
        self._process.kill()
        self._process.wait()

    @property
    def is_up(self) -> bool:
        """It is expected to answer."""
        return self.lives % 2 == 1

    @property
    def serving(self) -> Serving:
        """Where to ask."""
        assert self._process is not None
        return Serving(self._port, Watched(self._process.pid), ca=self.ca)

    def has_ended(self) -> bool:
        """It ended by itself."""
        return self.is_up and self._process is not None and self._process.poll() is not None

    def figures(self) -> dict[str, float]:
        """/metrics, by name with labels."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._metrics}/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name: float(value) for name, _, value in pairs}


def total(figures: dict[str, float], *names: str) -> float:
    """The sum of these metrics over their labels."""
    return sum(value for name, value in figures.items() if name.partition("{")[0] in names)


def under_way(figures: dict[str, float]) -> float:
    """Tasks: requests, keys, shared work and requests to registries that are not done."""
    names = ("requests_in_flight", "unfinished_keys", "work_under_way", "registry_requests")
    return total(figures, *(f"countersign_{name}" for name in names))


@dataclass
class Ledger:
    """What was asked and what came back. Safe for threads.

    Attributes:
        counts: of what the table shows.
        examples: of what went wrong, the first ones.
        again: keys to ask for again, because they were not decided.
    """

    counts: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    again: deque[tuple[str, Kind]] = field(default_factory=deque)
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
    _next: Iterator[int] = field(default_factory=count)
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
        """For a caller of new ones; empty when it should wait. Every other request is for undecided ones."""
        with self._lock:
            first = self._taken[0]
            batch = min(COLD_KEYS, self.references - first)
            if batch > 0 and (first <= self.references * self.pace()) and (len(ledger.again) < 50 * COLD_KEYS):
                self._taken[0] += batch
                return [reference(self.host, position) for position in range(first, first + batch)]
            return [ledger.again.popleft() for _ in range(min(COLD_KEYS, len(ledger.again)))]


class Asker(threading.Thread):
    """One connection of Gatekeeper's. Asks until it is told to stop."""

    def __init__(
        self, soak: Soak, replicas: Sequence[Replica], take: Callable[[], list[tuple[str, Kind]]], *, warm: bool
    ) -> None:
        super().__init__(daemon=True)
        self._soak, self._replicas, self._take, self._warm = soak, replicas, take, warm
        self._context: ssl.SSLContext | None = None
        self._connections: dict[Replica, tuple[int, Caller]] = {}
        self._turn = 0

    def run(self) -> None:
        """Ask the replicas in turn."""
        try:
            while not self._soak.stopping.is_set():
                self._turn += 1
                replica = self._replicas[self._turn % len(self._replicas)]
                if not replica.is_up:
                    replica = self._soak.replicas[0] if len(self._replicas) > 1 else replica
                wanted = self._take() if replica.is_up else []
                if wanted:
                    self.ask(replica, dict(wanted))
                else:
                    self._soak.stopping.wait(0.02)
        except Exception as error:  # noqa: BLE001 - a caller that ends unseen would make the run look good
            self._soak.ledger.add(Counter(broken=1), [f"a caller ended: {error!r}"])
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
            if time.monotonic() - began > WEBHOOK_SECONDS:
                raise BenchmarkError(f"answered after {time.monotonic() - began:.1f} s")
        except (OSError, BenchmarkError, ValueError, KeyError, TypeError, AttributeError) as error:
            if replica in self._connections:
                self._connections.pop(replica)[1].close()
            killed = replica.lives != lives or not lives % 2
            self._soak.ledger.again.extend(() if self._warm else wanted.items())
            example = f"unanswered by {replica.name} after {time.monotonic() - began:.1f} s: {error!r}"
            self._soak.ledger.add(Counter({"killed" if killed else "unanswered": 1}), () if killed else (example,))
            return
        trusted: frozenset[str] = frozenset().union(*replica.trusts[epoch:])
        counts, examples = self._judge(replica.name, wanted, outcomes, trusted)
        missing = wanted.keys() - outcomes.keys()
        if missing and not system_error:
            counts["unanswered"] += 1
            examples.append(f"{replica.name} is silent on {sorted(missing)[0]}")
        if "INTERNAL" in system_error:
            counts["internal"] += 1
            examples.append(system_error[:300])
        if missing:
            counts["undecided"] += len(missing)
            self._soak.undecided_at = time.monotonic()
            if not self._warm:
                self._soak.ledger.again.extend((key, wanted[key]) for key in missing)
        self._soak.ledger.add(counts, examples)

    def _judge(
        self, name: str, wanted: dict[str, Kind], outcomes: dict[str, str], trusted: frozenset[str]
    ) -> tuple[Counter[str], list[str]]:
        counts, examples = Counter({"warm" if self._warm else "cold": 1}), []
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
        caller = Caller(replica.serving, self._context, timeout=WEBHOOK_SECONDS)
        self._connections[replica] = lives, caller
        return caller


class Soak:
    """One run: replicas, registry, callers and what disturbs them."""

    def __init__(self, stage: Stage, *, requests: int, references: int, seconds: float, hold: float) -> None:
        images = max(-(-references // SPELLINGS), HOT_IMAGES)
        self.registry: RegistryProcess = stage.registry("--mixed", "--images", str(images))
        self.roots = {"first": self.registry.root, "second": str(self.registry.control()["secondRoot"])}
        self.folder, self.trusted, self._edits = stage.folder / "manifests", "first", count(1)
        self._write()
        self.replicas = [Replica(stage, name, self.folder, "first") for name in ("a", "b")]
        for replica in self.replicas:
            replica.start()
        self.seconds, self.requests, self.hold = seconds, requests, hold
        self.ledger, self.stopping = Ledger(), threading.Event()
        self.began = self.undecided_at = self.fine_at = time.monotonic()
        self.recovery = 0.0  # longest time from the end of a fault to the last key that was not decided
        hot = [reference(self.registry.host, position * SPELLINGS) for position in range(HOT_IMAGES)]
        self.sources = Sources(hot, references, self.registry.host, lambda: self.ledger.counts["warm"] / requests)
        self._fault, self._warmed = "fine", False
        self.done: Counter[str] = Counter()
        survivor = self.replicas[0]
        self.files_at_first = survivor.serving.process.open_files()
        self.warmed = (survivor.serving.process.rss_bytes(), survivor.figures())

    def run(self) -> None:
        """Disturb until everything was asked for, or time is up; then let it settle."""
        warm = [Asker(self, [one], self.sources.warm, warm=True) for one in self.replicas * WARM_CALLERS]
        take = lambda: self.sources.cold(self.ledger)  # noqa: E731
        cold = [Asker(self, self.replicas, take, warm=False) for _ in range(COLD_CALLERS)]
        for thread in (*warm, *cold):
            thread.start()
        disturb = threading.Thread(target=self._report_progress, daemon=True)
        disturb.start()
        try:
            self._disturb()
            self._settle()
        finally:
            self.stopping.set()
            for thread in (*warm, *cold, disturb):
                thread.join(2 * WEBHOOK_SECONDS)

    def _disturb(self) -> None:
        """One fault after the other with a well registry between them, and something else in the middle of each."""
        others = [self.change_key, self.edit, self.kill, self.edit_badly]
        turn = 0
        while not (turn > len(FAULTS) * 2 and self.is_complete()):
            for fault in FAULTS[1:]:
                for now in (fault, "fine"):
                    if self.is_out_of_time():
                        return
                    turn += 1
                    self._set_fault(now, share=1.0 if turn % 4 < 2 else 0.4)
                    time.sleep(self.hold / 2)
                    others[turn % len(others)]()
                    time.sleep(self.hold / 2)
                    self._look()

    def is_complete(self) -> bool:
        """All requests and references were asked for."""
        return self.ledger.counts["warm"] >= self.requests and self.sources.taken >= self.sources.references

    def is_out_of_time(self) -> bool:
        """The bound of the run."""
        return time.monotonic() - self.began > self.seconds

    def _look(self) -> None:
        for replica in self.replicas:
            if replica.has_ended():
                raise BenchmarkError(f"replica {replica.name} ended by itself")
        progress = max(
            (time.monotonic() - self.began) / self.seconds,
            min(self.ledger.counts["warm"] / self.requests, self.sources.taken / (self.sources.references or 1)),
        )
        if not self._warmed and progress > 1 / 3:
            survivor = self.replicas[0]
            self._warmed, self.warmed = True, (survivor.serving.process.rss_bytes(), survivor.figures())

    def _set_fault(self, fault: str, *, share: float) -> None:
        if self._fault == "fine":
            self.recovery = max(self.recovery, self.undecided_at - self.fine_at)
        self.registry.control(fault=fault, faultShare=share, retryAfter=1)
        if fault == "fine":
            self.fine_at = time.monotonic()
        self._fault = fault
        self.done[f"registry {fault}"] += 1

    def _write(self, *, broken: bool = False) -> None:
        number = next(self._edits)
        workload.write_resources(
            self.folder.with_name("next"), self.registry.host, self.roots[self.trusted], connections=100 + number % 2
        )
        written = self.folder.with_name("next") / "resources.yaml"
        text = written.read_text() + f"# edit {number}\n" + ("spec: [\n" if broken else "")
        written.write_text(text)
        self.folder.mkdir(exist_ok=True)
        written.replace(self.folder / "resources.yaml")

    def _change(self, metric: str, **options: Any) -> None:
        """Write the manifests and wait until every replica has read them."""
        before = {replica: replica.figures().get(metric, 0.0) for replica in self.replicas}
        self._write(**options)
        end = time.monotonic() + CHANGE_SECONDS
        for replica in self.replicas:
            while replica.figures().get(metric, 0.0) <= before[replica]:
                if time.monotonic() > end:
                    raise BenchmarkError(f"replica {replica.name} does not read the manifests: {metric} stays")
                time.sleep(0.02)
            replica.trusts.append(frozenset((self.trusted,)))

    def change_key(self) -> None:
        """Trust the other signer instead."""
        self.trusted = "second" if self.trusted == "first" else "first"
        for replica in self.replicas:
            replica.trusts.append(frozenset(self.roots))
        self._change("countersign_configuration_generation")
        self.done["key changes"] += 1

    def edit(self) -> None:
        """A change that decides nothing."""
        self._change("countersign_configuration_generation")
        self.done["edits"] += 1

    def edit_badly(self) -> None:
        """A change that is no YAML, and the way back."""
        self._change('countersign_configurations_total{result="failed"}', broken=True)
        self._change("countersign_configuration_generation")
        self.done["bad edits"] += 1

    def kill(self) -> None:
        """SIGKILL for the second replica, and a new start."""
        self.replicas[1].kill()
        time.sleep(self.hold / 4)
        self.replicas[1].start()
        self.done["kills"] += 1

    def _settle(self) -> None:
        """With a well registry, everything has to be decided."""
        self._set_fault("fine", share=1.0)
        end = time.monotonic() + SETTLE_SECONDS
        time.sleep(1)
        # In the end nothing waits to be asked for again, and nothing was undecided for a while.
        while self.ledger.again or time.monotonic() - self.undecided_at < 2:
            if time.monotonic() > end:
                self.ledger.add(Counter({"never decided": max(1, len(self.ledger.again))}))
                break
            time.sleep(0.1)
        self.recovery = max(self.recovery, self.undecided_at - self.fine_at)

    def _report_progress(self) -> None:
        while not self.stopping.wait(PROGRESS_SECONDS):
            counts, memory = self.ledger.counts, self.replicas[0].serving.process
            print(
                f"{time.monotonic() - self.began:5.0f} s  {counts['warm']:,} warm requests, {self.sources.taken:,} "
                f"references, {counts['undecided']:,} keys undecided, {len(self.ledger.again):,} to ask again, wrong "
                f"{counts['wrong']}, unanswered {counts['unanswered']}, RSS {memory.rss_bytes() / 2**20:.0f} MiB, "
                f"files {memory.open_files()}, registry {self._fault}",
                file=sys.stderr,
                flush=True,
            )

    def left_over(self, limits: Limits) -> tuple[int, float]:
        """Open files beyond a fresh replica's and work under way, once idle; waits for them to be within limits."""
        survivor, end = self.replicas[0], time.monotonic() + SETTLE_SECONDS
        while True:
            files = survivor.serving.process.open_files() - self.files_at_first
            tasks = under_way(survivor.figures()) + total(survivor.figures(), "countersign_connections")
            if (files <= limits.files and not tasks) or time.monotonic() > end:
                return files, tasks
            time.sleep(0.2)

    def growth(self) -> tuple[float, float]:
        """MiB of resident memory since warm-up, and how many of them the caches reckon as theirs."""
        survivor, (memory, figures) = self.replicas[0], self.warmed
        kept = total(survivor.figures(), "countersign_cache_bytes") - total(figures, "countersign_cache_bytes")
        return (survivor.serving.process.rss_bytes() - memory) / 2**20, max(0.0, kept / 2**20)


def logged(folder: Path) -> list[str]:
    """Tracebacks and internal errors of the processes' logs."""
    lines = (line for log in sorted(folder.glob("*.log")) for line in log.read_text().splitlines())
    return [line for line in lines if "Traceback" in line or "INTERNAL" in line or '"exception"' in line]


def report(soak: Soak, limits: Limits, folder: Path) -> bool:
    """Print the table; says whether everything is within limits."""
    counts = soak.ledger.counts
    files, tasks = soak.left_over(limits)
    grown, kept = soak.growth()
    loggings = logged(folder)
    unlimited = [
        ("seconds", f"{time.monotonic() - soak.began:.0f}"),
        ("warm requests", f"{counts['warm']:,} of {soak.requests:,}"),
        ("distinct references", f"{soak.sources.taken:,} of {soak.sources.references:,}, {counts['cold']:,} requests"),
        ("right verdicts", f"{counts['right']:,}: " + ", ".join(_kinds(counts))),
        ("keys undecided, and said so", f"{counts['undecided']:,}"),
        ("longest until decided after a fault", f"{soak.recovery:.1f} s"),
        ("disturbances", ", ".join(f"{name} {number}" for name, number in sorted(soak.done.items()))),
        ("unanswered by the killed replica", f"{counts['killed']:,}"),
        ("RSS of the other one", f"{soak.warmed[0] / 2**20:.0f} MiB warmed up, then +{grown:.1f} MiB"),
    ]
    limited: list[tuple[str, float, float]] = [
        ("wrong verdicts", counts["wrong"], 0),
        ("unanswered requests", counts["unanswered"], 0),
        ("references never decided", counts["never decided"], 0),
        ("internal errors, tracebacks, lost callers", counts["internal"] + len(loggings) + counts["broken"], 0),
        ("MiB of growth beyond the caches'", round(grown - kept, 1), limits.growth_mib),
        ("files and sockets left open", files, limits.files),
        ("connections and tasks left", tasks, 0),
    ]
    for name, text in unlimited:
        print(f"{name:<42} {text}")
    for name, value, limit in limited:
        print(f"{name:<42} {value:g} (at most {limit:g}) {'ok' if value <= limit else 'BROKEN'}")
    for line in (*soak.ledger.examples, *loggings[:SHOWN]):
        print(f"  {line[:600]}")
    return all(value <= limit for _, value, limit in limited)


def _kinds(counts: Counter[str]) -> Iterator[str]:
    for name, number in sorted(counts.items()):
        if name.startswith("right "):
            yield f"{name.removeprefix('right ')} {number:,}"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--full", is_flag=True, help="A million requests, 100,000 references, at most 45 min, held for 5 s.")
@click.option("--requests", type=click.IntRange(1), help="Warm requests.  [default: 40000]")
@click.option("--references", type=click.IntRange(0), help="Distinct references.  [default: 3000]")
@click.option("--seconds", type=click.FloatRange(1), help="At most, without start and end.  [default: 60]")
@click.option("--hold", type=click.FloatRange(0.1), help="Seconds of each fault.  [default: 2]")
@click.option(
    "--growth-mib",
    type=click.FloatRange(0),
    default=32.0,
    show_default=True,
    help="Resident memory may grow so much from a third of the run on, beyond what the caches reckon.",
)
@click.option(
    "--files",
    type=click.IntRange(0),
    default=110,
    show_default=True,
    help="Files that may be open at the end beyond a fresh replica's: connections kept to the registry, 100 or so.",
)
def main(
    full: bool,
    requests: int | None,
    references: int | None,
    seconds: float | None,
    hold: float | None,
    growth_mib: float,
    files: int,
) -> None:
    """Run Countersign under load and faults, and count what it got wrong.

    Ends when all requests and references were asked for and each fault was there, at the latest after --seconds.
    Limits: no wrong verdict, no request without an answer within 5 s (those of the replica at the moment it is killed
    are counted apart), no reference undecided 60 s after the last fault, no internal error, no connection or task left,
    --growth-mib, --files.

    Exit codes: 0 everything is within limits, 1 something is not, 2 the run could not be made.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="countersign-soak-") as folder, Stage(Path(folder)) as stage:
            soak = Soak(
                stage,
                requests=requests or (1_000_000 if full else 40_000),
                references=references if references is not None else 100_000 if full else 3_000,
                seconds=seconds or (2700 if full else 60),
                hold=hold or (5 if full else 2),
            )
            soak.run()
            sys.exit(0 if report(soak, Limits(growth_mib, files), Path(folder)) else 1)
    except (BenchmarkError, urllib.error.URLError) as error:
        print(f"the run broke off: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
