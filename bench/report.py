"""Figures with their targets, and how they are told.

Rules:
- A figure is a median with its spread, beside what it is held against. A target is a ratio or a count, never a time:
  machines differ and are shared.
- Counts must be met exactly. A ratio fails its gate from 20 % over its target on, which is more than the noise of
  interleaved runs.

What does not belong here: measuring.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

from rich.console import Console
from rich.table import Table

TOLERANCE: Final = 0.20

Bound = Literal["exactly", "at most", "at least", "for information"]


@dataclass(frozen=True)
class Figure:
    """One measured figure.

    Attributes:
        id: as in docs/performance.md.
        what: what was measured.
        value: the number that the target is about.
        unit: of the value; blank for a ratio.
        bound: how the target bounds the value.
        target: the bound.
        low: least value of the rounds.
        high: greatest value of the rounds.
        measured: what the value was made of, for people.
        reference: what it was held against.
    """

    id: str
    what: str
    value: float
    bound: Bound = "for information"
    target: float | None = None
    unit: str = ""
    low: float | None = None
    high: float | None = None
    measured: str = ""
    reference: str = ""

    @property
    def state(self) -> Literal["met", "near", "missed", ""]:
        """`near` is a ratio over its target, but within the tolerance."""
        if self.target is None or self.bound == "for information":
            return ""
        if self.bound == "exactly":
            return "met" if self.value == self.target else "missed"
        over = self.value / self.target if self.bound == "at most" else self.target / max(self.value, 1e-9)
        return "met" if over <= 1 else "near" if over <= 1 + TOLERANCE else "missed"


def median(values: Sequence[float]) -> float:
    """The median."""
    return statistics.median(values)


def paired(
    rounds: int, measured: Callable[[], float], reference: Callable[[], float]
) -> tuple[list[float], list[float], list[float]]:
    """Measure two things in turn; returns both lists and the ratios of each round."""
    ours, theirs = [], []
    for _ in range(rounds):
        theirs.append(reference())
        ours.append(measured())
    return ours, theirs, [one / other for one, other in zip(ours, theirs, strict=True)]


def ratio(
    id_: str,
    what: str,
    rounds: tuple[list[float], list[float], list[float]],
    *,
    target: float,
    scale: float = 1e6,
    unit: str = "µs",
    reference: str = "",
) -> Figure:
    """A figure of what `paired` measured."""
    ours, theirs, ratios = rounds
    return Figure(
        id_,
        what,
        median(ours) / median(theirs),
        "at most",
        target,
        low=min(ratios),
        high=max(ratios),
        measured=f"{median(ours) * scale:.3g} {unit}",
        reference=f"{median(theirs) * scale:.3g} {unit} {reference}".strip(),
    )


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if value == int(value) and abs(value) < 1e6 else f"{value:.3g}"


def show(figures: Iterable[Figure], console: Console) -> None:
    """Print a table."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("", "what", "target", "value", "spread", "measured", "against", ""):
        table.add_column(name, justify="right" if name in ("target", "value") else "left", overflow="fold")
    signs = {"exactly": "", "at most": "≤ ", "at least": "≥ ", "for information": ""}
    colours = {"met": "green", "near": "yellow", "missed": "bold red", "": ""}
    for figure in figures:
        spread = f"{_number(figure.low)}–{_number(figure.high)}" if figure.low is not None else ""
        state = figure.state
        table.add_row(
            figure.id,
            figure.what,
            signs[figure.bound] + _number(figure.target),
            f"{_number(figure.value)} {figure.unit}".strip(),
            spread,
            figure.measured,
            figure.reference,
            f"[{colours[state]}]{state}[/]" if state else "",
        )
    console.print(table)


def write(figures: Sequence[Figure], path: Path) -> None:
    """Write figures as JSON."""
    path.write_text(json.dumps([asdict(figure) | {"state": figure.state} for figure in figures], indent=1) + "\n")
