"""Connections: one listening port of aiohttp with limits on what a caller can hold and for how long.

    accept -> TLS handshake (time limit) -> admitted (names, number) -> head (time limit) -> handler -> answer taken
           (time limit) -> kept for the next request, or told to close

Rules:
- aiohttp's low-level server is used, not its Application: two exact paths need no router, and the limits below need the
  connection class. Only documented methods and attributes of it are used.
- Every answer has a body of the protocol in use, also for what aiohttp itself refuses: `fault` makes it.
- A connection is ended between requests by an answer that says `Connection: close`, because a client that is just
  sending its next request would otherwise see it fail. Force is for callers that break a limit.
- Gatekeeper up to 3.21 opens a connection for each call and never closes it, so that only so many are kept open, and
  each only a little longer than the 90 s after which a newer Gatekeeper closes an idle one itself.

What does not belong here: what is answered (server.py, probes.py), certificates (tls.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

import structlog
from aiohttp import web

from provider.errors import ConfigurationError, Undecided, UsageError
from provider.gatekeeper.settings import ListenerSettings
from provider.gatekeeper.tls import ServingTLS
from provider.telemetry import Metrics

_log = structlog.get_logger(__name__)

SWEEP_SECONDS: Final = 0.5  # how often the time limits of connections are looked at
LINGER_SECONDS: Final = 1.0  # an unwanted body is read away for so long, or the caller would not see the answer
_CLOSE_SECONDS: Final = 0.1  # for connections to close after the requests under way were waited for
BACKLOG: Final = 1024  # connections waiting to be accepted; a burst of admissions opens them all at once

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
FaultResponse = Callable[[int], web.Response]


class Connection(web.RequestHandler):
    """One connection of a Listener.

    Attributes:
        refusal: why this caller may not ask; None when it may.
        head_at: monotonic time of the first byte of the request that is under way; None between requests.
        answering: the request's head is complete and its answer is not written yet.
        writing_since: monotonic time at which the answer began to be written; None when none is.
        idle_since: monotonic time at which the connection was opened or its last answer was written.
    """

    __slots__ = ("_listener", "answering", "head_at", "idle_since", "opened_at", "refusal", "tls", "writing_since")

    def __init__(self, listener: Listener, manager: web.Server, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            manager,
            loop=loop,
            keepalive_timeout=listener.settings.keepalive_seconds,
            access_log=None,  # type: ignore[arg-type] # documented: None turns it off
            auto_decompress=False,  # Gatekeeper never compresses, and a bomb must not be inflated
            lingering_time=LINGER_SECONDS,
        )
        self._listener = listener
        self.refusal: Undecided | None = None
        self.head_at: float | None = None
        self.answering = False
        self.writing_since: float | None = None
        self.idle_since = self.opened_at = time.monotonic()
        self.tls: object = None

    @property
    def idle(self) -> bool:
        """Nothing of a request was received since the last answer."""
        return self.head_at is None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        ssl_object = transport.get_extra_info("ssl_object")
        self.tls = None if ssl_object is None else ssl_object.context
        self.refusal = _refusal(transport.get_extra_info("peercert"), self._listener.allowed_names)
        self._listener.opened(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self._listener.closed(self)

    def data_received(self, data: bytes) -> None:
        if self.head_at is None:
            self.head_at = time.monotonic()
        super().data_received(data)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        if self._listener.is_last_answer(self):
            resp.force_close()
        self.writing_since = time.monotonic()
        try:
            return await super().finish_response(request, resp, start_time)
        finally:
            self.answering = False
            self.head_at = self.writing_since = None
            self.idle_since = time.monotonic()
            self._listener.answered()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what is not HTTP, and what a handler failed at, in the terms of the protocol in use."""
        if status >= 500:
            _log.error("request handler failed unexpectedly", exc_info=exc)
        else:
            _log.debug("request is not HTTP", listener=self._listener.name, detail=message)
        if request.writer.output_size > 0:
            raise ConnectionError("an answer was begun already")
        response = self._listener.fault(status)
        response.force_close()
        return response


class Listener:
    """A port that is listened on.

    Args:
        name: for logs, such as `verify`.
        handler: answers requests; it must not raise.
        fault: makes the answer for a request that never reached the handler, from an HTTP status.
        settings: limits.
        tls: the TLS state; None serves plain HTTP.
        metrics: counts connections, when given.

    Raises:
        ConfigurationError: TLS_INVALID, when client names are demanded but no client certificates.
    """

    def __init__(
        self,
        name: str,
        handler: Handler,
        fault: FaultResponse,
        *,
        settings: ListenerSettings,
        tls: ServingTLS | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        if settings.allowed_client_names and not (tls is not None and tls.demands_client_certificate):
            raise ConfigurationError(
                "TLS_INVALID",
                "allowed client names are given, but no client CA file",
                remediation="Give the client CA file, or drop the allowed client names.",
            )
        self.name = name
        self.fault = fault
        self.settings = settings
        self.allowed_names = frozenset(name.lower() for name in settings.allowed_client_names)
        self._handler = handler
        self._tls = tls
        self._metrics = metrics
        self._connections: set[Connection] = set()
        self._draining = False
        self._quiet = asyncio.Event()  # set when draining is done
        self._server: asyncio.Server | None = None
        self._manager: web.Server | None = None
        self._sweeper: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        """The port in use; the configured one before `start`."""
        sockets = self._server.sockets if self._server is not None else ()
        return int(sockets[0].getsockname()[1]) if sockets else self.settings.port

    @property
    def connections(self) -> int:
        """Open connections, those in the TLS handshake not included."""
        return len(self._connections)

    async def start(self) -> None:
        """Listen.

        Raises:
            UsageError: USAGE, when the address cannot be listened on.
        """
        loop = asyncio.get_running_loop()
        manager = self._manager = web.Server(self._handle)
        limits: dict[str, Any] = {}
        if self._tls is not None:
            limits = {"ssl_handshake_timeout": self.settings.handshake_seconds, "ssl_shutdown_timeout": 2.0}
        try:
            self._server = await loop.create_server(
                lambda: Connection(self, manager, loop),
                self.settings.host,
                self.settings.port,
                ssl=None if self._tls is None else self._tls.context,
                backlog=BACKLOG,
                **limits,
            )
        except OSError as error:
            where = f"{self.settings.host or '*'}:{self.settings.port}"
            raise UsageError("USAGE", f"cannot listen on {where} for {self.name}: {error.strerror or error}") from None
        self._sweeper = asyncio.create_task(self._sweep())

    def drain(self) -> None:
        """From now on every answer is the last one of its connection."""
        self._draining = True

    async def stop(self, drain_seconds: float) -> None:
        """Accept nothing more, let the requests under way be answered for at most `drain_seconds`, close everything."""
        self.drain()
        if self._server is None or self._manager is None or self._sweeper is None:
            return
        self._server.close()
        await asyncio.sleep(0)  # requests that have arrived get to their handlers first
        self._quiet.clear()
        self.answered()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._quiet.wait(), drain_seconds)
        self._manager.pre_shutdown()
        await self._manager.shutdown(_CLOSE_SECONDS)
        self._sweeper.cancel()
        await asyncio.wait((self._sweeper,))

    def opened(self, connection: Connection) -> None:
        """Count a new connection in; when there are too many, the longest idle one, or this one, has to go."""
        self._connections.add(connection)
        if len(self._connections) > self.settings.max_connections:
            idle = [other for other in self._connections if other.idle and other is not connection]
            victim = min(idle, key=lambda other: other.idle_since, default=connection)
            self._end(victim, "full" if victim is connection else "evicted")
        self._count()

    def closed(self, connection: Connection) -> None:
        """Count a connection out."""
        self._connections.discard(connection)
        self._count()
        self.answered()

    def answered(self) -> None:
        """Notice whether a request is still being answered, for the sake of `stop`."""
        if self._draining and not any(connection.answering for connection in self._connections):
            self._quiet.set()

    def is_last_answer(self, connection: Connection) -> bool:
        """Whether the connection shall be closed with the answer that is about to be written."""
        return (
            self._draining
            or connection.refusal is not None
            or len(self._connections) > self.settings.max_kept_connections
            or time.monotonic() - connection.opened_at > self.settings.max_connection_seconds
            or (self._tls is not None and connection.tls is not self._tls.current)
        )

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = cast(Connection, request.protocol)
        connection.answering = True
        if connection.head_at is None:  # a pipelined request counts from when its turn comes
            connection.head_at = time.monotonic()
        return await self._handler(request)

    async def _sweep(self) -> None:
        """Enforce the time limits that aiohttp has not."""
        interval = min(SWEEP_SECONDS, self.settings.head_seconds / 4, self.settings.write_seconds / 4)
        while True:
            await asyncio.sleep(interval)
            now = time.monotonic()
            for connection in tuple(self._connections):
                head_at, writing_since = connection.head_at, connection.writing_since
                if writing_since is not None:
                    if now - writing_since > self.settings.write_seconds:
                        self._end(connection, "slow_reader")
                elif head_at is not None and not connection.answering and now - head_at > self.settings.head_seconds:
                    self._end(connection, "slow_head")

    def _end(self, connection: Connection, reason: str) -> None:
        if connection.transport is not None:
            connection.transport.abort()  # closing would wait until the caller has read what is buffered
        connection.force_close()
        self._connections.discard(connection)
        if self._metrics is not None:
            self._metrics.connections_ended.labels(reason).inc()

    def _count(self) -> None:
        if self._metrics is not None:
            self._metrics.connections.set(len(self._connections))


def _refusal(peer: Any, allowed: frozenset[str]) -> Undecided | None:
    """Why a caller may not ask. OpenSSL has verified the certificate before; this looks at its names only."""
    if not allowed:
        return None
    certificate = peer or {}
    names = [name for kind, name in certificate.get("subjectAltName", ()) if kind in ("DNS", "URI")]
    if not names:
        names = [value for rdn in certificate.get("subject", ()) for kind, value in rdn if kind == "commonName"]
    if any(name.lower() in allowed for name in names):
        return None
    return Undecided(
        "CLIENT_NOT_ALLOWED",
        "the client certificate carries none of the allowed names",
        expected=", ".join(sorted(allowed)),
        found=", ".join(names) or "no name",
    )
