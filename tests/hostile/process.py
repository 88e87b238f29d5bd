"""`countersign serve` in a process of its own, looked at from outside: its log, its memory, its ports."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import aiohttp

MIB: Final = 1024 * 1024
START_SECONDS: Final = 30.0  # generous: it takes one, on an idle machine
_ENVIRONMENT: Final = {key: value for key, value in os.environ.items() if not key.startswith("COUNTERSIGN_")}
_SIZE: Final = re.compile(r"^(VmRSS|VmHWM):\s+(\d+) kB$", re.MULTILINE)


@dataclass
class ServeProcess:
    """A running server.

    Attributes:
        process: the process.
        port: where Gatekeeper calls.
        health_port: where probes call.
        log: lines of standard error so far.
    """

    process: asyncio.subprocess.Process
    port: int
    health_port: int
    log: list[str] = field(default_factory=list)

    @property
    def running(self) -> bool:
        """It has not ended."""
        return self.process.returncode is None

    def memory(self) -> int:
        """Bytes of memory that it has."""
        return self._sizes()["VmRSS"]

    def peak(self) -> int:
        """The most bytes of memory that it had since `forget_peak`."""
        return self._sizes()["VmHWM"]

    def forget_peak(self) -> None:
        """Measure `peak` from now on."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def _sizes(self) -> dict[str, int]:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return {name: int(kib) * 1024 for name, kib in _SIZE.findall(status)}

    async def probe(self, path: str) -> int:
        """The status that a probe gets; 0 when nobody answers."""
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=START_SECONDS)) as session,
                session.get(f"http://127.0.0.1:{self.health_port}{path}") as response,
            ):
                return response.status
        except aiohttp.ClientConnectionError:
            return 0

    async def follow(self) -> None:
        """Read the log until it ends, or the pipe would fill up and stop the server."""
        assert self.process.stderr is not None
        while line := await self.process.stderr.readline():
            self.log.append(line.decode())


def free_ports(count: int) -> tuple[int, ...]:
    """Ports that nobody listens on."""
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return tuple(entry.getsockname()[1] for entry in held)


@contextlib.asynccontextmanager
async def serve(*options: str) -> AsyncIterator[ServeProcess]:
    """Start it with these options besides its ports, and wait until it is ready."""
    port, health_port = free_ports(2)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "provider", "serve", "--host", "127.0.0.1", "--port", str(port)),
        *("--health-port", str(health_port), "--no-metrics", *options),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        limit=MIB,
        env=_ENVIRONMENT,
    )
    running = ServeProcess(process, port, health_port)
    follower = asyncio.create_task(running.follow())
    try:
        async with asyncio.timeout(START_SECONDS):
            while await running.probe("/readyz") != 200:
                assert running.running, "".join(running.log)
                await asyncio.sleep(0.05)
        yield running
    finally:
        if running.running:
            process.kill()
        await process.wait()
        await follower
