"""Genuine host names that lead to simulators on loopback, so that names, TLS and host rules are tested as they are.

    authority = trustme.CA()
    async with (
        EntraSimulator(tls=authority) as entra,
        Hosts({"login.microsoftonline.com": entra}, authority, tmp_path) as hosts,
    ):
        hosts.apply(monkeypatch)        # HTTPS_PROXY and SSL_CERT_FILE
        ... any client that reads them asks https://login.microsoftonline.com ...
        assert hosts.strangers == []    # nobody asked for a host that is not there

Two ways lead there, and the client is unmodified on both:
- `apply` and `variables`: a proxy that knows CONNECT. TLS runs through it from the client to the simulator, under the
  genuine name; trusted is the simulators' authority and nothing else. Works across processes too.
- `resolver`: for a client that takes an aiohttp session. Its addresses are loopback, which guarded connectors refuse.

A simulator that answers to a genuine name needs it in its certificate: Listener(names=...).
"""

from __future__ import annotations

import asyncio
import contextlib
import fnmatch
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import pytest
import trustme
from aiohttp.abc import AbstractResolver, ResolveResult

from tests.simulators.listener import Listener

_PROXY_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


class Hosts:
    """Names, each with the simulator behind it; a proxy that leads there while it is entered.

    Args:
        simulators: by name, or by shell pattern such as *.azurecr.io; they are running already.
        authority: who issued their certificates.
        folder: where the authority's certificate is put.

    Attributes:
        connections: `host:port` of every connection asked for, in order.
        strangers: those of them that no simulator stands for; they were refused.
    """

    def __init__(self, simulators: Mapping[str, Listener], authority: trustme.CA, folder: Path) -> None:
        self.connections: list[str] = []
        self.strangers: list[str] = []
        self._simulators = dict(simulators)
        self._authority = folder / "simulators.pem"
        self._authority.write_bytes(authority.cert_pem.bytes())
        self._server: asyncio.Server | None = None
        self._pipes: set[asyncio.Task[None]] = set()

    def add(self, name: str, simulator: Listener) -> None:
        """Let a name, or a pattern, lead to a simulator; later ones count before earlier ones."""
        self._simulators.pop(name, None)
        self._simulators = {name: simulator, **self._simulators}

    @property
    def proxy(self) -> str:
        """URL of the proxy."""
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    @property
    def variables(self) -> dict[str, str]:
        """Environment variables that lead a process here."""
        return {"HTTPS_PROXY": self.proxy, "SSL_CERT_FILE": str(self._authority)}

    def apply(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Lead this process here, until the test is over."""
        for name in _PROXY_VARIABLES:
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(name.lower(), raising=False)
        for name, value in self.variables.items():
            monkeypatch.setenv(name, value)

    def resolver(self) -> AbstractResolver:
        """A resolver for an aiohttp connector. Names that are not here do not resolve."""
        return _Resolver(self)

    def port(self, host: str, port: int) -> int | None:
        """The loopback port behind a host; None for a stranger."""
        self.connections.append(f"{host}:{port}")
        for pattern, simulator in self._simulators.items():
            if port == 443 and fnmatch.fnmatchcase(host, pattern):
                return simulator.port
        self.strangers.append(f"{host}:{port}")
        return None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for pipe in tuple(self._pipes):
            pipe.cancel()
        await asyncio.gather(*self._pipes, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._pipes.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await self._tunnel(reader, writer)
        finally:
            self._pipes.discard(task)
            writer.close()

    async def _tunnel(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        method, target, _ = head.split(b"\r\n", 1)[0].decode("ascii").split(" ")
        host, _, port = target.rpartition(":")
        inner = self.port(host, int(port)) if method == "CONNECT" else None
        if inner is None:
            writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()
            return
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", inner)
        try:
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            both = (_pump(reader, inner_writer), _pump(inner_reader, writer))
            _, pending = await asyncio.wait(
                [asyncio.create_task(one) for one in both], return_when=asyncio.FIRST_COMPLETED
            )
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)
        finally:
            inner_writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()


class _Resolver(AbstractResolver):
    def __init__(self, hosts: Hosts) -> None:
        self._hosts = hosts

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        inner = self._hosts.port(host, port)
        if inner is None:
            raise OSError(None, f"{host} is not simulated")
        return [
            ResolveResult(
                hostname=host, host="127.0.0.1", port=inner, family=socket.AF_INET, proto=0, flags=socket.AI_NUMERICHOST
            )
        ]

    async def close(self) -> None:
        """Nothing is held."""
