"""Gatekeeper as a provider sees it: a TLS 1.3 client with a certificate that POSTs and keeps its connections.

Certificates are made by trustme, with the names that Gatekeeper's own cert-controller uses.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import trustme

API_VERSION = "externaldata.gatekeeper.sh/v1beta1"
WEBHOOK_NAME = "gatekeeper-webhook-service.gatekeeper-system.svc"
VERIFY_PATH = "/ratify/gatekeeper/v1/verify"
MUTATE_PATH = "/ratify/gatekeeper/v1/mutate"


def request_body(keys: Iterable[Any]) -> bytes:
    """The body that Gatekeeper sends."""
    document = {"apiVersion": API_VERSION, "kind": "ProviderRequest", "request": {"keys": list(keys)}}
    return json.dumps(document, separators=(",", ":")).encode()


class PKI:
    """A CA for the provider's serving certificate and one for Gatekeeper's client certificate."""

    def __init__(self) -> None:
        self.server_ca = trustme.CA()
        self.client_ca = trustme.CA()

    def write_serving_files(self, folder: Path, *, server_ca: trustme.CA | None = None) -> None:
        """Write a new tls.crt and tls.key for localhost."""
        certificate = (server_ca or self.server_ca).issue_cert("localhost", "127.0.0.1")
        (folder / "tls.crt").write_bytes(b"".join(pem.bytes() for pem in certificate.cert_chain_pems))
        (folder / "tls.key").write_bytes(certificate.private_key_pem.bytes())

    def write_client_ca(self, path: Path, *cas: trustme.CA) -> None:
        """Write CA certificates of callers; Gatekeeper's own when none is given."""
        path.write_bytes(b"".join(ca.cert_pem.bytes() for ca in cas or (self.client_ca,)))

    def client_context(
        self, *, client_ca: trustme.CA | None = None, name: str | None = WEBHOOK_NAME, trusts: Iterable[trustme.CA] = ()
    ) -> ssl.SSLContext:
        """A caller's TLS settings. `name` None sends no certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        for ca in tuple(trusts) or (self.server_ca,):
            ca.configure_trust(context)
        if name is not None:
            (client_ca or self.client_ca).issue_cert(name, common_name=name).configure_cert(context)
        return context


@dataclass(frozen=True)
class Reply:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def document(self) -> dict[str, Any]:
        """The ProviderResponse; Gatekeeper parses it whatever the status and content type are."""
        document: dict[str, Any] = json.loads(self.body)
        assert document["kind"] == "ProviderResponse"
        assert document["apiVersion"] == API_VERSION
        return document

    @property
    def items(self) -> dict[str, dict[str, Any]]:
        """Items by key."""
        return {item["key"]: item for item in self.document["response"].get("items", [])}

    @property
    def system_error(self) -> str:
        """The systemError, blank when there is none."""
        return str(self.document["response"].get("systemError", ""))

    @property
    def admitted(self) -> set[str]:
        """Keys that the shipped template would admit."""
        return {key for key, item in self.items.items() if item.get("value", {}).get("isSuccess") is True}


class Gatekeeper:
    """A process of Gatekeeper with its pool of connections. To be used as a context manager.

    Args:
        port: the provider's port on localhost.
        tls: as PKI.client_context makes it; None speaks plain HTTP.
        reuse: keep connections, as Gatekeeper does from 3.22 on.
    """

    def __init__(self, port: int, tls: ssl.SSLContext | None, *, reuse: bool = True) -> None:
        self._base = f"{'http' if tls is None else 'https'}://localhost:{port}"
        connector = aiohttp.TCPConnector(ssl=True if tls is None else tls, force_close=not reuse, limit=0)
        self._session = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=20))

    async def __aenter__(self) -> Gatekeeper:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def ask(self, *keys: Any, path: str = VERIFY_PATH, headers: dict[str, str] | None = None) -> Reply:
        """Send a ProviderRequest."""
        return await self.send("POST", path, data=request_body(keys), headers=headers)

    async def send(self, method: str, path: str, *, data: Any = None, headers: dict[str, str] | None = None) -> Reply:
        """Send anything."""
        merged = {"Content-Type": "application/json", **(headers or {})}
        if isinstance(data, bytes):
            data = io.BytesIO(data)  # aiohttp warns of large bytes
        async with self._session.request(method, self._base + path, data=data, headers=merged) as response:
            return Reply(response.status, dict(response.headers), await response.read())


class RawCaller:
    """One connection on which bytes are sent by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, port: int, tls: ssl.SSLContext | None = None) -> RawCaller:
        """Connect; `tls` None sends plain bytes."""
        name = None if tls is None else "localhost"
        return cls(*await asyncio.open_connection("127.0.0.1", port, ssl=tls, server_hostname=name))

    async def __aenter__(self) -> RawCaller:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()
        with contextlib.suppress(OSError, ssl.SSLError):
            await self.writer.wait_closed()

    async def send(self, data: bytes) -> None:
        """Send bytes."""
        self.writer.write(data)
        await self.writer.drain()

    async def ask(self, *keys: Any, path: str = VERIFY_PATH) -> Reply:
        """Send a ProviderRequest and read the answer."""
        body = request_body(keys)
        await self.send(head("POST", path, len(body)) + body)
        return await self.reply()

    async def reply(self) -> Reply:
        """Read one answer."""
        start = await self.reader.readuntil(b"\r\n\r\n")
        status_line, *lines = start.decode("latin-1").split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines if line)
        body = await self.reader.readexactly(int(headers.get("Content-Length", 0)))
        return Reply(int(status_line.split()[1]), headers, body)

    async def until_closed(self) -> bytes:
        """Everything that still comes until the other side closes or resets the connection."""
        received = b""
        with contextlib.suppress(OSError, ssl.SSLError):
            while chunk := await self.reader.read(65536):
                received += chunk
        return received


def head(method: str, path: str, length: int, *headers: str) -> bytes:
    """The head of a request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Content-Length: {length}", *headers, "", ""]
    return "\r\n".join(lines).encode()
