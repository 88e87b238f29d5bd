"""An OCSP responder and CRL server on loopback, with a log of what was asked and faults to switch on.

A path answers what `publish` put there, to GET and POST alike; an OCSP request in a GET comes as one more path segment.
"""

from __future__ import annotations

import asyncio
import base64
import enum
from dataclasses import dataclass
from typing import Self
from urllib.parse import unquote

from aiohttp import web


class Fault(enum.Enum):
    """What a path does instead of answering."""

    SILENT = "takes the request and never answers"
    STALLED = "sends half of its answer and then nothing"
    ERROR = "answers 500"
    MISSING = "answers 404"
    EMPTY = "answers 204"
    REDIRECT = "answers 302 to /elsewhere"
    GARBAGE = "answers with octets that mean nothing"
    CUT = "closes the connection in the middle of its answer"
    CLOSED = "closes the connection without an answer"
    OVERSIZE = "promises a terabyte"
    ENDLESS = "never stops sending"
    COMPRESSED = "says that the answer is compressed"
    NO_HTTP = "answers with something that is not HTTP"


@dataclass(frozen=True)
class Asked:
    """One request.

    Attributes:
        method: GET or POST.
        path: the published path.
        host: the Host header.
        request: the OCSP request that it carried, if any.
        headers: names in lower case.
    """

    method: str
    path: str
    host: str
    request: bytes
    headers: dict[str, str]


class RevocationServer:
    """To be used as an asynchronous context manager."""

    def __init__(self) -> None:
        self.log: list[Asked] = []
        self.faults: dict[str, Fault] = {}
        self.gates: dict[str, asyncio.Event] = {}
        self._published: dict[str, bytes] = {}
        self._closing = asyncio.Event()
        self._runner: web.AppRunner | None = None
        self.port = 0

    def url(self, path: str = "", host: str = "127.0.0.1") -> str:
        """The URL of a path."""
        return f"http://{host}:{self.port}{path}"

    def publish(self, path: str, answer: bytes) -> None:
        """Answer with these octets from now on."""
        self._published[path] = answer

    @property
    def asked(self) -> list[str]:
        """The paths that were asked for, in order."""
        return [asked.path for asked in self.log]

    async def wait_for(self, count: int) -> None:
        """Wait until that many requests have come in."""
        while len(self.log) < count:  # noqa: ASYNC110 - a log has no event
            await asyncio.sleep(0.001)

    async def __aenter__(self) -> Self:
        application = web.Application(client_max_size=64 * 1024)
        application.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._closing.set()
        assert self._runner is not None
        await self._runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        path, carried = self._split(request.raw_path)
        body = await request.read()
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.log.append(Asked(request.method, path, request.host, carried or body, headers))
        if path in self.gates:
            await self.gates[path].wait()
        fault = self.faults.get(path)
        if fault is not None:
            return await self._misbehave(request, fault, self._published.get(path, b"x" * 100))
        if path not in self._published:
            raise web.HTTPNotFound
        return web.Response(body=self._published[path])

    def _split(self, raw_path: str) -> tuple[str, bytes]:
        """The published path, and the OCSP request behind it."""
        if raw_path.startswith("http://"):  # asked as a proxy
            raw_path = "/" + raw_path.split("/", 3)[3]
        head, _, last = raw_path.rpartition("/")
        if (
            raw_path not in self._published
            and raw_path not in self.faults
            and (head or "/")
            in {
                *self._published,
                *self.faults,
            }
        ):
            return head or "/", base64.b64decode(unquote(last), validate=True)
        return raw_path, b""

    async def _misbehave(self, request: web.Request, fault: Fault, answer: bytes) -> web.StreamResponse:
        statuses = {Fault.ERROR: 500, Fault.MISSING: 404, Fault.EMPTY: 204}
        if fault in statuses:
            return web.Response(status=statuses[fault])
        if fault is Fault.REDIRECT:
            raise web.HTTPFound(self.url("/elsewhere"))
        if fault is Fault.GARBAGE:
            return web.Response(body=b"\x30\x03\x02\x01\x01")
        if fault is Fault.COMPRESSED:
            return web.Response(body=answer, headers={"Content-Encoding": "gzip"})
        transport = request.transport
        assert transport is not None
        if fault is Fault.NO_HTTP:
            transport.write(b"SSH-2.0-nothing to see here\r\n\r\n")
        elif fault is Fault.SILENT:
            await self._closing.wait()
        if fault in (Fault.NO_HTTP, Fault.SILENT, Fault.CLOSED):
            transport.close()
            return web.Response()
        return await self._stream(request, fault, answer, transport)

    async def _stream(
        self, request: web.Request, fault: Fault, answer: bytes, transport: asyncio.Transport
    ) -> web.StreamResponse:
        response = web.StreamResponse()
        if fault is not Fault.ENDLESS:
            response.content_length = 1 << 40 if fault is Fault.OVERSIZE else len(answer)
        await response.prepare(request)
        await response.write(answer[: len(answer) // 2])
        try:
            while fault is Fault.ENDLESS and not self._closing.is_set():
                await response.write(bytes(1024))
            if fault in (Fault.STALLED, Fault.OVERSIZE):
                await self._closing.wait()
        except ConnectionError:
            pass  # the client had enough
        transport.close()
        return response
