"""Replicas of `countersign serve` that share manifests, and can be killed and started again: what soak.py runs.

What does not belong here: a provider that is measured (processes.py), what is asked (judging.py).
"""

from __future__ import annotations

import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Final

from bench.processes import _CLI, Serving, Stage, Watched, _await_ready, free_port

POLL_SECONDS: Final = 0.2  # --config-poll-seconds


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
