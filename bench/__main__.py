"""`python -m bench`: measure, print the table of docs/performance.md, fail on what is broken. See bench/README.md."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click
from rich.console import Console

from bench import cold, crypto, warm
from bench.processes import BenchmarkError, Stage
from bench.report import Figure, show, write

Measurement = Callable[[Stage], Iterator[Figure]]


def measurements(*, full: bool, rounds: int) -> dict[str, Measurement]:
    """What is measured, by name."""
    chosen: dict[str, Measurement] = {
        "requests": cold.requests,
        "coalescing": lambda stage: cold.coalescing(stage, callers=200 if full else 50),
        "revocation": lambda stage: cold.revocation(stage, images=1000 if full else 100),
        "latency": lambda stage: cold.latency(stage, images=20 if full else 5),
        "crypto": lambda _: crypto.measure(rounds=rounds, count=60, full=full),
        "warm": lambda stage: warm.warm_requests(stage, rounds=rounds, full=full),
        "image": lambda stage: cold.image_cost(stage, rounds=rounds, images=200 if full else 60),
    }
    if full:
        chosen |= {
            "connections": lambda stage: warm.connections(stage, rounds=rounds),
            "burst": lambda stage: cold.burst(stage, images=1000),
            "throttled": lambda stage: cold.throttled(stage),
            "memory": lambda stage: warm.memory(stage, images=11_000),
            "growth": lambda stage: cold.growth(stage, images=10_000),
            "start": lambda stage: cold.start(stage, rounds=rounds),
            "azure": lambda _: cold.start_with_azure(),
        }
    return chosen


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--full", is_flag=True, help="Everything, some minutes. Otherwise counts and processor time, within 60 s."
)
@click.option("--only", "names", multiple=True, metavar="NAME", help="One measurement; may be repeated.")
@click.option("--rounds", type=click.IntRange(1), default=None, help="Interleaved rounds.  [default: 3, full 5]")
@click.option("--json", "json_path", type=click.Path(path_type=Path), metavar="FILE", help="Write the figures as JSON.")
def main(full: bool, names: tuple[str, ...], rounds: int | None, json_path: Path | None) -> None:
    """Measure Countersign against what its libraries cost at least.

    Exit codes: 0 every target is met or missed by less than 20 %, 1 one is missed, 2 something could not be measured.
    """
    chosen = measurements(full=full or bool(names), rounds=rounds or (5 if full else 3))
    unknown = set(names) - set(chosen)
    if unknown:
        raise click.UsageError(f"no measurement is called {', '.join(sorted(unknown))}; there are {', '.join(chosen)}")
    console = Console(width=None if sys.stdout.isatty() else 170)
    figures: list[Figure] = []
    broken = False
    for name, measure in chosen.items():
        if names and name not in names:
            continue
        began = time.monotonic()
        try:
            with tempfile.TemporaryDirectory(prefix="countersign-bench-") as folder, Stage(Path(folder)) as stage:
                figures += list(measure(stage))
        except BenchmarkError as error:
            broken = True
            console.print(f"[bold red]{name} could not be measured: {error}[/]")
        print(f"{name}: {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)
    show(figures, console)
    if json_path is not None:
        write(figures, json_path)
    missed = [figure for figure in figures if figure.state == "missed"]
    sys.exit(2 if broken else 1 if missed else 0)


if __name__ == "__main__":
    main()
