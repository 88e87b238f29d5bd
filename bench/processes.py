"""Processes that are measured: the provider, the registry, the bare server; their processor time, memory and sockets.

Rules:
- What is measured runs in a process of its own, so that neither the caller nor the registry is counted.
- Figures come from /proc (Linux). Processor time is user and system time of the process and its threads.
- Whoever starts a process ends it.

What does not belong here: what is asked of them.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

from bench import workload
from provider.demo import pki

_TICK: Final = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
_PAGE: Final = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
_START_SECONDS: Final = 60.0
_CLI: Final = "import sys; from provider.cli import main; sys.exit(main())"
_ENDPOINT: Final = "/ratify/gatekeeper/v1/verify"


class BenchmarkError(Exception):
    """Something that was to be measured did not work; the message says what."""


@dataclass(frozen=True)
class Watched:
    """A process by its id: one of ours, or any other provider's."""

    pid: int

    def cpu_seconds(self) -> float:
        """Processor time since its start."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICK

    def fine_cpu_seconds(self) -> float:
        """The same in nanoseconds' resolution, of all threads; falls back to ticks."""
        try:
            tasks = list(Path(f"/proc/{self.pid}/task").iterdir())
            return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
        except (OSError, ValueError, IndexError):
            return self.cpu_seconds()

    def rss_bytes(self) -> int:
        """Resident memory."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * _PAGE

    def open_files(self) -> int:
        """Open file descriptors, sockets included."""
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))


def loop_factory() -> type[asyncio.AbstractEventLoop] | None:
    """uvloop where there is one, as in the product."""
    try:
        import uvloop
    except ImportError:  # Windows
        return None
    return uvloop.Loop


def free_port() -> int:
    """A TCP port that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Serving:
    """Somebody who answers ProviderRequests.

    Attributes:
        port: on 127.0.0.1.
        path: of verification.
        process: who answers.
        ca: PEM of the CA of its certificate; None accepts any, for a provider that is not ours.
        start_seconds: from exec to ready; None if somebody else started it.
        client: certificate file and key file that callers show, if it demands one.
    """

    port: int
    process: Watched
    path: str = _ENDPOINT
    ca: str | None = None
    start_seconds: float | None = None
    client: tuple[str, str] | None = None


@dataclass
class Stage:
    """Everything that one measurement started, ended with it. To be used as a context manager.

    Attributes:
        folder: for files.
    """

    folder: Path
    _stack: ExitStack = field(default_factory=ExitStack)
    _pki: dict[str, Any] = field(default_factory=dict)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def spawn(self, arguments: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        """Start a process of this Python; what it says to standard error is kept in a file."""
        path = self.folder / f"{len(list(self.folder.iterdir()))}.log"
        log = self._stack.enter_context(path.open("w+"))
        process = subprocess.Popen([sys.executable, *arguments], stderr=log, text=True, **options)
        self._stack.callback(_end, process)
        return process

    def registry(self, *options: str) -> RegistryProcess:
        """Start a registry with these options of bench.registry."""
        process = self.spawn(
            ["-m", "bench.registry", *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path.cwd()
        )
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise BenchmarkError("the registry did not start")
        told = json.loads(line)
        return RegistryProcess(told["host"], told["root"], Watched(process.pid))

    def bare(self, *options: str) -> Serving:
        """Start the bare server."""
        port = free_port()
        folder = self.certificates()
        process = self.spawn(
            ["-m", "bench.reference", "--port", str(port), "--folder", str(folder), *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path.cwd(),
        )
        _await_line(process.stdout, "the bare server")
        return Serving(port, Watched(process.pid), ca=self._pki["ca"], client=self._pki["client"])

    def countersign(self, registry: RegistryProcess, *options: str, connections: int = 100) -> Serving:
        """Start `countersign serve` on the registry's signer, ready when this returns."""
        resources = workload.write_resources(
            self.folder / f"trust-{free_port()}", registry.host, registry.root, connections=connections
        )
        port, health = free_port(), free_port()
        arguments = ["-c", _CLI, "serve", "--config", str(resources), "--cert-dir", str(self.certificates())]
        arguments += ["--host", "127.0.0.1", "--port", str(port), "--health-port", str(health)]
        arguments += ["--metrics-port", str(free_port()), "--log-level", "error", *options]
        began = time.monotonic()
        process = self.spawn(arguments, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
        _await_ready(process, health, began)
        return Serving(
            port,
            Watched(process.pid),
            ca=self._pki["ca"],
            start_seconds=time.monotonic() - began,
            client=self._pki["client"],
        )

    def certificates(self) -> Path:
        """A folder with tls.crt, tls.key, client-ca.crt, client.crt and client.key."""
        folder = self.folder / "tls"
        if folder.exists():
            return folder
        folder.mkdir()
        now = datetime.now(UTC)
        issue = partial(pki.issue, not_before=now - timedelta(days=1), not_after=now + timedelta(days=2))
        for name, extensions in (
            ("tls", pki.tls_server(["localhost", "127.0.0.1"])),
            ("client", pki.tls_client(["x"])),
        ):
            root = issue({"CN": f"{name} CA"}, pki.authority(), issuer=None)
            leaf = issue({"CN": name}, extensions, issuer=root)
            (folder / f"{name}.crt").write_bytes(leaf.chain_pem())
            (folder / f"{name}.key").write_bytes(leaf.key_pem())
            (folder / f"{name}-ca.crt").write_bytes(pki.pem(root.certificate))
        self._pki["ca"] = (folder / "tls-ca.crt").read_text()
        self._pki["client"] = (str(folder / "client.crt"), str(folder / "client.key"))
        return folder


@dataclass(frozen=True)
class RegistryProcess:
    """The registry from outside.

    Attributes:
        host: as in image references.
        root: PEM of its signer's root.
    """

    host: str
    root: str
    process: Watched

    def control(self, **settings: Any) -> dict[str, Any]:
        """Change settings (bench.registry names them); returns the counts."""
        body = json.dumps(settings).encode() if settings else None
        with urllib.request.urlopen(f"http://{self.host}/control", data=body, timeout=30) as answer:
            counts: dict[str, Any] = json.load(answer)
            return counts


def _await_line(stream: IO[str] | None, what: str) -> str:
    line = stream.readline() if stream is not None else ""
    if not line:
        raise BenchmarkError(f"{what} did not start")
    return line


def _await_ready(process: subprocess.Popen[str], health_port: int, began: float) -> None:
    while time.monotonic() < began + _START_SECONDS:
        if process.poll() is not None:
            raise BenchmarkError(f"countersign serve ended with {process.returncode}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{health_port}/readyz", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.005)
    raise BenchmarkError("countersign serve is not ready")


def _end(process: subprocess.Popen[str]) -> None:
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
