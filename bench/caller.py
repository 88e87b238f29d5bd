"""Gatekeeper's side of a measurement: blocking TLS 1.3 connections that send the same bytes again and again.

Rules: as little work as possible, because caller and provider share a small machine. Answers are read whole, looked at
only where a measurement says so. What does not belong here: measuring.
"""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from bench.processes import BenchmarkError, Serving


def context_for(serving: Serving, *, client: bool = False) -> ssl.SSLContext:
    """TLS settings of a caller; `client` shows its certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if serving.ca is None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # somebody else's provider: nothing is believed, only measured
    else:
        context.load_verify_locations(cadata=serving.ca)
    if client and serving.client is not None:
        context.load_cert_chain(*serving.client)
    return context


def request_for(keys: Sequence[str], path: str) -> bytes:
    """Head and body of a ProviderRequest."""
    document = {
        "apiVersion": "externaldata.gatekeeper.sh/v1beta1",
        "kind": "ProviderRequest",
        "request": {"keys": list(keys)},
    }
    body = json.dumps(document, separators=(",", ":")).encode()
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    head = "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""])
    return head.encode() + body


@dataclass(frozen=True)
class Reply:
    """An answer.

    Attributes:
        admitted: keys with isSuccess true.
        refused: keys with a verdict that is not.
        system_error: why keys are missing.
    """

    admitted: frozenset[str]
    refused: frozenset[str]
    system_error: str

    @classmethod
    def read(cls, body: bytes) -> Reply:
        """Read a ProviderResponse."""
        response: dict[str, Any] = json.loads(body)["response"]
        items = response.get("items") or []
        admitted = frozenset(item["key"] for item in items if (item.get("value") or {}).get("isSuccess") is True)
        return cls(admitted, frozenset(item["key"] for item in items) - admitted, response.get("systemError", ""))


class Caller:
    """One connection. To be used as a context manager."""

    def __init__(self, serving: Serving, context: ssl.SSLContext, *, timeout: float = 120.0) -> None:
        plain = socket.create_connection(("127.0.0.1", serving.port), timeout)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = context.wrap_socket(plain, server_hostname="localhost")
        self._path = serving.path

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close without a word, as Go does."""
        self._socket.close()

    def send(self, request: bytes) -> None:
        """Send a request that request_for made."""
        self._socket.sendall(request)

    def receive(self) -> bytes:
        """Read one answer's body.

        Raises:
            BenchmarkError: it is not an answer with status 200.
        """
        received = b""
        while b"\r\n\r\n" not in received:
            received += self._read()
        head, _, body = received.partition(b"\r\n\r\n")
        if b" 200 " not in head.split(b"\r\n", 1)[0]:
            raise BenchmarkError(f"answered {head[:60]!r}")
        fields = {name.lower(): value for name, _, value in (line.partition(b":") for line in head.split(b"\r\n")[1:])}
        if b"chunked" in fields.get(b"transfer-encoding", b""):
            while not body.endswith(b"0\r\n\r\n"):
                body += self._read()
            return _dechunk(body)
        pieces = [body]
        missing = int(fields[b"content-length"]) - len(body)
        while missing > 0:
            pieces.append(self._read())
            missing -= len(pieces[-1])
        return b"".join(pieces)

    def ask(self, keys: Sequence[str]) -> Reply:
        """Ask and read the answer."""
        self.send(request_for(keys, self._path))
        return Reply.read(self.receive())

    def _read(self) -> bytes:
        chunk = self._socket.recv(1 << 18)
        if not chunk:
            raise BenchmarkError("the connection was closed before the answer")
        return chunk


def _dechunk(body: bytes) -> bytes:
    pieces: list[bytes] = []
    rest = body
    while True:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        if not length:
            return b"".join(pieces)
        pieces.append(rest[:length])
        rest = rest[length + 2 :]


def ask_once(serving: Serving, keys: Sequence[str], *, client: bool = False) -> Reply:
    """Ask on a connection of its own."""
    with Caller(serving, context_for(serving, client=client)) as caller:
        return caller.ask(keys)


def hammer(callers: Sequence[Caller], request: bytes, times: int) -> None:
    """Send a request `times` times over each connection, one under way on each at any moment."""
    for _ in range(times):
        for caller in callers:
            caller.send(request)
        for caller in callers:
            caller.receive()


def connect(serving: Serving, count: int, *, client: bool = False) -> list[Caller]:
    """Open connections."""
    context = context_for(serving, client=client)
    return [Caller(serving, context) for _ in range(count)]


def reconnect(serving: Serving, request: bytes, times: int, *, client: bool = False) -> None:
    """One request on each of `times` connections, one after the other, as Gatekeeper up to 3.21 does."""
    context = context_for(serving, client=client)
    for _ in range(times):
        with closing(Caller(serving, context)) as caller:
            caller.send(request)
            caller.receive()


def close_all(callers: Iterable[Caller]) -> None:
    """Close connections."""
    for caller in callers:
        caller.close()
