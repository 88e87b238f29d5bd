"""A loopback HTTP server with a log of its requests and faults to switch on: the ground other simulators stand on.

    async with SomeSimulator(tls=ca) as server:
        server.fault("/v2/*/manifests/*", status(500), times=2)
        ... server.requests ...

A subclass answers in `reply`. A fault replaces or spoils that answer for the paths that match its pattern.
"""

from __future__ import annotations

import asyncio
import fnmatch
import gzip
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import trustme
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL


@dataclass(frozen=True)
class RecordedRequest:
    """One request as it came in."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: CIMultiDict[str]
    body: bytes
    client_certificate: bool = False

    @property
    def line(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def authorization(self) -> str | None:
        return self.headers.get("Authorization")


@dataclass(frozen=True)
class Reply:
    """An answer before it is sent."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


Fault = Callable[[web.Request, Reply], Awaitable[Reply | web.StreamResponse]]


def status(code: int, *, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Fault:
    """Answer with this status instead, such as status(429, headers={"Retry-After": "7"})."""

    async def apply(request: web.Request, reply: Reply) -> Reply:
        return Reply(code, dict(headers or {}), body)

    return apply


def delay(seconds: float) -> Fault:
    """Answer, but late."""

    async def apply(request: web.Request, reply: Reply) -> Reply:
        await asyncio.sleep(seconds)
        return reply

    return apply


def hang() -> Fault:
    """Never answer."""

    async def apply(request: web.Request, reply: Reply) -> Reply:
        await asyncio.Event().wait()
        return reply

    return apply


def reset() -> Fault:
    """Break the connection before any answer."""

    async def apply(request: web.Request, reply: Reply) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    return apply


def raw(data: bytes) -> Fault:
    """Send these bytes as they are, and close."""

    async def apply(request: web.Request, reply: Reply) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.write(data)
        request.transport.close()
        return web.Response()

    return apply


def truncate(keep: int) -> Fault:
    """Announce the whole body, send `keep` bytes of it, and close."""

    async def apply(request: web.Request, reply: Reply) -> web.StreamResponse:
        fields = {"Content-Length": str(len(reply.body)), **reply.headers}
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        return await raw(f"HTTP/1.1 {reply.status} X\r\n{head}\r\n".encode() + reply.body[:keep])(request, reply)  # type: ignore[return-value]

    return apply


def lying_length(length: int) -> Fault:
    """Announce this Content-Length whatever the body is, send the body, and close."""

    async def apply(request: web.Request, reply: Reply) -> web.StreamResponse:
        fields = {**reply.headers, "Content-Length": str(length)}
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        return await raw(f"HTTP/1.1 {reply.status} X\r\n{head}\r\n".encode() + reply.body)(request, reply)  # type: ignore[return-value]

    return apply


def headers(changes: Mapping[str, str | None]) -> Fault:
    """Change header fields of the answer; None removes one."""

    async def apply(request: web.Request, reply: Reply) -> Reply:
        merged = {**reply.headers, **changes}
        return replace(reply, headers={name: value for name, value in merged.items() if value is not None})

    return apply


def body(data: bytes) -> Fault:
    """Send another body under the same header fields."""

    async def apply(request: web.Request, reply: Reply) -> Reply:
        return replace(reply, body=data)

    return apply


def gzipped() -> Fault:
    """Compress the body although nobody asked for it."""

    async def apply(request: web.Request, reply: Reply) -> Reply:
        fields = {**reply.headers, "Content-Encoding": "gzip"}
        return replace(reply, headers=fields, body=gzip.compress(reply.body))

    return apply


def endless(chunk: bytes = b"\0" * 65536) -> Fault:
    """A chunked body without an end."""

    async def apply(request: web.Request, reply: Reply) -> web.StreamResponse:
        response = web.StreamResponse(status=reply.status, headers=reply.headers)
        response.enable_chunked_encoding()
        await response.prepare(request)
        while True:
            await response.write(chunk)
            await asyncio.sleep(0)

    return apply


def trickle(seconds: float) -> Fault:
    """The right body, one byte at a time."""

    async def apply(request: web.Request, reply: Reply) -> web.StreamResponse:
        response = web.StreamResponse(status=reply.status, headers=reply.headers)
        response.content_length = len(reply.body)
        await response.prepare(request)
        for byte in reply.body:
            await response.write(bytes((byte,)))
            await asyncio.sleep(seconds)
        return response

    return apply


@dataclass
class _Switched:
    pattern: str
    fault: Fault
    times: int | None
    method: str | None

    def applies(self, request: web.Request) -> bool:
        """Whether it would spoil the answer to this request."""
        path = request.raw_path.partition("?")[0]
        right = fnmatch.fnmatchcase(path, self.pattern) and self.method in (None, request.method)
        return right and self.times != 0


class Listener:
    """An HTTP(S) server on a free port of 127.0.0.1.

    Args:
        tls: authority that issues the server's certificate; None for plain HTTP.
        client_ca: demand client certificates of this authority.
        host: the name that `host` and `url` carry; 127.0.0.1 or localhost, so that two simulators can be two hosts.
        names: further names in the server's certificate, such as *.azurecr.io.
    """

    def __init__(
        self,
        *,
        tls: trustme.CA | None = None,
        client_ca: trustme.CA | None = None,
        host: str = "127.0.0.1",
        names: Sequence[str] = (),
    ) -> None:
        self.requests: list[RecordedRequest] = []
        self.most_at_once = 0
        self._at_once = 0
        self._tls = tls
        self._client_ca = client_ca
        self._name = host
        self._names = names
        self._port = 0
        self._faults: list[_Switched] = []
        self._runner: web.AppRunner | None = None

    async def reply(self, request: web.Request) -> Reply:
        """What the server answers when no fault is switched on."""
        raise NotImplementedError

    @property
    def host(self) -> str:
        """Host and port, as in image references."""
        return f"{self._name}:{self._port}"

    @property
    def port(self) -> int:
        return self._port

    @property
    def url(self) -> URL:
        return URL(f"{'https' if self._tls else 'http'}://{self.host}")

    @property
    def lines(self) -> list[str]:
        """`METHOD path` of every request so far."""
        return [request.line for request in self.requests]

    def fault(self, pattern: str, fault: Fault, *, times: int | None = None, method: str | None = None) -> None:
        """Spoil the answers to paths that match the shell pattern: the next `times` of them, or all. The last one
        switched on that matches counts."""
        self._faults.insert(0, _Switched(pattern, fault, times, method))

    def heal(self) -> None:
        """Switch every fault off."""
        self._faults.clear()

    async def __aenter__(self) -> Self:
        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            try:
                return await self._handle(request)  # type: ignore[arg-type]
            finally:
                self._at_once -= 1

        application = web.Application(client_max_size=64 * 1024 * 1024)
        application.router.add_route("*", "/{path:.*}", handle)
        # No waiting for what hangs on purpose.
        self._runner = web.AppRunner(application, access_log=None, handler_cancellation=True, shutdown_timeout=0.01)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self._context())
        await site.start()
        self._port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    def _context(self) -> ssl.SSLContext | None:
        if self._tls is None:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.issue_cert("127.0.0.1", "localhost", *self._names).configure_cert(context)
        if self._client_ca is not None:
            self._client_ca.configure_trust(context)
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        certificate = bool(request.transport and request.transport.get_extra_info("peercert"))
        self.requests.append(
            RecordedRequest(
                request.method,
                request.raw_path.partition("?")[0],
                dict(request.query),
                CIMultiDict(request.headers),
                await request.read(),
                certificate,
            )
        )
        answer: Reply | web.StreamResponse = await self.reply(request)
        for switched in self._faults:
            if not switched.applies(request):
                continue
            if switched.times is not None:
                switched.times -= 1
            assert isinstance(answer, Reply)
            answer = await switched.fault(request, answer)
            break
        if isinstance(answer, Reply):
            fields = dict(answer.headers)
            if request.method == "HEAD" and answer.body and "Content-Length" not in fields:
                fields["Content-Length"] = str(len(answer.body))
            return web.Response(status=answer.status, headers=fields, body=answer.body)
        return answer
