"""`python -m bench.soak`: the real server for a long time under everything that goes wrong, on loopback.

Two replicas of `countersign serve` share a folder of manifests and one registry (bench.registry --mixed). Callers ask
both of them, while the registry fails in every way it knows, the trusted key is changed, the configuration is edited
well and badly, and one replica is killed and started again.

Rules:
- From the moment a key change is written until a replica says that it uses it (/metrics), the verdict of either key is
  right; before and after, of one.
- Figures of memory, files and work under way are those of the replica that is never killed.

What does not belong here: judging answers (judging.py), speed (the other measurements), hostile content (tests/).
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
import urllib.error
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, cycle
from pathlib import Path
from typing import Any, Final

import click

from bench import workload
from bench.judging import SHOWN, SPELLINGS, WEBHOOK_SECONDS, Asker, Ledger, Sources, reference
from bench.processes import BenchmarkError, RegistryProcess, Stage
from bench.registry import FAULTS
from bench.replicas import Replica, total, under_way

CHANGE_SECONDS: Final = 30.0  # for a replica to use a change of the manifests; two looks are enough on an idle machine
SETTLE_SECONDS: Final = 60.0  # for everything to be decided and idle once the registry is well again
HOT_IMAGES: Final = 60
WARM_CALLERS: Final = 3  # of each replica
COLD_CALLERS: Final = 2
PROGRESS_SECONDS: Final = 10.0


@dataclass(frozen=True)
class Limits:
    """What the run is held against.

    Attributes:
        growth_mib: MiB that resident memory may grow after warm-up, beyond what the caches reckon they hold more.
        files: open files and sockets that may be left beyond those of a fresh replica.
    """

    growth_mib: float
    files: int


class Soak:
    """One run: replicas, registry, callers and what disturbs them."""

    def __init__(
        self,
        stage: Stage,
        *,
        requests: int,
        references: int,
        seconds: float,
        hold: float,
        patience: float = WEBHOOK_SECONDS,
    ) -> None:
        images = max(-(-references // SPELLINGS), HOT_IMAGES)
        self.registry: RegistryProcess = stage.registry("--mixed", "--images", str(images))
        self.roots = {"first": self.registry.root, "second": str(self.registry.control()["secondRoot"])}
        self.folder, self.trusted, self._edits = stage.folder / "manifests", "first", count(1)
        self._write()
        self.replicas = [Replica(stage, name, self.folder, "first") for name in ("a", "b")]
        for replica in self.replicas:
            replica.start()
        self.seconds, self.requests, self.hold = seconds, requests, hold
        self.ledger = Ledger(patience=patience)
        self.began = self.fine_at = time.monotonic()
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
        warm = [Asker(self.ledger, [one], self.sources.warm, warm=True) for one in self.replicas * WARM_CALLERS]
        take = lambda: self.sources.cold(self.ledger)  # noqa: E731
        cold: list[threading.Thread] = [
            Asker(self.ledger, self.replicas, take, warm=False) for _ in range(COLD_CALLERS)
        ]
        threads = [*warm, *cold, threading.Thread(target=self._report_progress, daemon=True)]
        for thread in threads:
            thread.start()
        try:
            self._disturb()
            self._settle()
        finally:
            self.ledger.stopping.set()
            for thread in threads:
                thread.join(2 * self.ledger.patience)

    def _disturb(self) -> None:
        """One fault after the other with a well registry between them, and something else in the middle of each."""
        others = [self.change_key, self.edit, self.kill, self.edit_badly]
        steps = [step for fault in FAULTS[1:] for step in (fault, "fine")]
        for turn, fault in enumerate(cycle(steps)):
            if self.is_out_of_time() or (turn >= len(steps) and self.is_complete()):
                return
            self._set_fault(fault, share=0.4 if turn // len(steps) % 2 else 1.0)
            time.sleep(self.hold / 2)
            others[(turn + turn // len(others)) % len(others)]()  # so that in time each meets every fault
            time.sleep(self.hold / 2)
            self._look()

    def is_complete(self) -> bool:
        """All requests and references were asked for."""
        return self.ledger.counts["warm"] >= self.requests and self.sources.taken >= self.sources.references

    def undecided_references(self) -> int:
        """Distinct references that were asked for and have no verdict yet."""
        return self.sources.taken - self.ledger.counts["decided"]

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
            self.recovery = max(self.recovery, self.ledger.undecided_at - self.fine_at)
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
        # The hot references are asked for all the time: one that stays undecided keeps undecided_at young.
        while self.undecided_references() or time.monotonic() - self.ledger.undecided_at < 2:
            if time.monotonic() > end:
                self.ledger.add(Counter({"never decided": max(1, self.undecided_references())}))
                break
            time.sleep(0.1)
        self.recovery = max(self.recovery, self.ledger.undecided_at - self.fine_at)

    def _report_progress(self) -> None:
        while not self.ledger.stopping.wait(PROGRESS_SECONDS):
            counts, memory = self.ledger.counts, self.replicas[0].serving.process
            print(
                f"{time.monotonic() - self.began:5.0f} s  {counts['warm']:,} warm requests, {self.sources.taken:,} "
                f"references ({self.undecided_references():,} open), {counts['undecided']:,} keys undecided, wrong "
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
        ("RSS of the other one", f"{soak.warmed[0] / 2**20:.0f} MiB warmed up, then +{grown:.1f} MiB"),
    ]
    limited: list[tuple[str, float, float]] = [
        ("wrong verdicts", counts["wrong"], 0),
        ("unanswered requests", counts["unanswered"], 0),
        ("unanswered by a replica when killed", counts["killed"], soak.done["kills"] * (WARM_CALLERS + COLD_CALLERS)),
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
    default=16,
    show_default=True,
    help="Files and sockets that may be open beyond a fresh replica's, when it was idle for at most a minute.",
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
    are counted apart, at most one for each connection), no reference undecided 60 s after the last fault, no internal
    error, no connection or task left, --growth-mib, --files.

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
