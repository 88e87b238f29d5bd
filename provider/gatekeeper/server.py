"""The verification server: requests of Gatekeeper in, answers out before their deadlines.

    first byte -> caller allowed? -> path, method -> not overloaded? -> body -> keys -> answering.py -> answer

Rules:
- The deadline counts from the request's first byte, and reading the body is inside it.
- Every answer is a ProviderResponse. HTTP statuses other than 200 are for people and proxies (400 malformed, 403 not
  allowed, 404, 405, 413): Gatekeeper looks at the body only.
- Nobody waits for anybody else: a caller that hangs up cancels nothing.
- An unexpected exception is a systemError INTERNAL with a trace id; its text goes to the log and nowhere else.

What does not belong here: keys (answering.py), connections (listener.py), wire formats (protocol.py).
"""

from __future__ import annotations

import asyncio
import io
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final, cast

import structlog
from aiohttp import payload, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_exceptions import HttpProcessingError

from provider.errors import CountersignError, Undecided, printable
from provider.figures import Figure
from provider.gatekeeper import protocol
from provider.gatekeeper.answering import (
    Answer,
    Endpoint,
    KeyWork,
    Mutation,
    RenderedVerdict,
    Resolves,
    Verification,
    Verifies,
)
from provider.gatekeeper.listener import Connection, Listener
from provider.gatekeeper.settings import ListenerSettings, ServerSettings
from provider.gatekeeper.tls import ServingTLS
from provider.progress import Observer
from provider.telemetry import Metrics, StageTimes
from provider.tracing import Tracing

_log = structlog.get_logger(__name__)

VERIFY_PATH: Final = "/ratify/gatekeeper/v1/verify"
MUTATE_PATH: Final = "/ratify/gatekeeper/v1/mutate"
TRACE_ID_FIELD: Final = "trace-id"  # of log events; Ratify's name

MAX_LOGGED_KEYS: Final = 20  # of one request; the rest is counted

_TRACE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/=+-]{0,127}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")
_PIECE_BYTES: Final = 256 * 1024  # of an answer at a time; asyncio makes a writer wait from 64 KiB on
_HEADERS: Final = {"Content-Type": "application/json", "Server": "countersign"}


def no_memory(_key: str) -> None:
    """Remembers nothing."""


def utc_now() -> datetime:
    """The time stamped on verdicts."""
    return datetime.now(UTC)


def new_trace_id() -> str:
    """A trace id for a request that brought none: 32 hex digits, as in W3C Trace Context."""
    return secrets.token_hex(16)


class Server:
    """Answers verification and mutation requests on one TLS port.

    Args:
        verifier: decides.
        resolver: pins images, for mutation.
        listener: limits of the port.
        settings: limits of answering.
        tls: the TLS state; None serves plain HTTP, for tests and behind a terminating proxy only.
        metrics: what is counted.
        remembered: a look into the results at hand, without waiting. It spares a warm key the task that waiting costs,
            half of the time of a request with many keys.
        clock: the time stamped on verdicts (aware, UTC).
        trace_ids: makes trace ids.
        tracing: makes spans; None for none.
    """

    def __init__(
        self,
        verifier: Verifies,
        resolver: Resolves,
        *,
        listener: ListenerSettings,
        settings: ServerSettings,
        tls: ServingTLS | None,
        metrics: Metrics,
        remembered: Callable[[str], RenderedVerdict | None] = no_memory,
        clock: Callable[[], datetime] = utc_now,
        trace_ids: Callable[[], str] = new_trace_id,
        tracing: Tracing | None = None,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._trace_ids = trace_ids
        self._tracing = tracing
        self._listener = Listener("verify", self._handle, self._fault, settings=listener, tls=tls, metrics=metrics)
        verification = Verification(verifier, remembered, seconds=settings.verify_seconds, clock=clock)
        self._tally = verification.tally
        self._endpoints: dict[str, Endpoint[Any]] = {
            VERIFY_PATH: verification,
            MUTATE_PATH: Mutation(resolver, seconds=settings.mutate_seconds),
        }
        self._work = KeyWork(settings, metrics)
        self._requests = 0
        self._stopping = False

    @property
    def port(self) -> int:
        """The port listened on."""
        return self._listener.port

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called: readiness has to say no from then on."""
        return self._stopping

    @property
    def unfinished(self) -> int:
        """Keys under way, those whose request was already answered included."""
        return len(self._work)

    def figures(self) -> Iterator[Figure]:
        """How many keys were at hand when they were asked for, and how many were not."""
        return self._tally.figures("verdicts")

    async def start(self) -> None:
        """Listen.

        Raises:
            UsageError: USAGE, when the address cannot be listened on.
        """
        await self._listener.start()

    async def stop(self) -> None:
        """Stop gracefully: not ready at once, accept a little longer, answer what is under way, close, end the rest."""
        self._stopping = True
        self._listener.drain()
        await asyncio.sleep(self._settings.settle_seconds)
        await self._listener.stop(self._settings.drain_seconds)
        await self._work.aclose()

    # -- one request ----------------------------------------------------------------------------------------------

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request, whatever it is. Raises nothing but cancellation."""
        connection = cast(Connection, request.protocol)
        received_at = connection.head_at or time.monotonic()
        endpoint = self._endpoints.get(request.path)
        name = "other" if endpoint is None else endpoint.name
        observer = self._observer(name, request.headers)
        trace_id = observer.trace_id
        structlog.contextvars.bind_contextvars(**{TRACE_ID_FIELD: trace_id})
        self._requests += 1
        self._metrics.requests_in_flight.set(self._requests)
        try:
            status, body = 200, await self._answer(request, connection, endpoint, received_at, observer)
        except _RejectionError as rejection:
            status, error = rejection.status, rejection.error
            _log.warning("request rejected", endpoint=name, status=status, code=error.code, errorReason=error.detail)
            body = self._failure(name, "failed" if status == 200 else "rejected", error, trace_id)
        except Exception:  # noqa: BLE001 - a fault of ours must deny this request, not end the connection
            _log.exception("request failed unexpectedly", endpoint=name)
            status, body = 200, self._failure(name, "failed", _internal_error(), trace_id)
        finally:
            self._requests -= 1
            self._metrics.requests_in_flight.set(self._requests)
        seconds = time.monotonic() - received_at
        self._metrics.endpoint(name).observe(seconds)
        if self._tracing is not None:
            observer.note("status", status)
            observer.end(seconds)
        # A large answer goes out in pieces: of one that was written at once and is not read, asyncio's TLS would keep
        # all in memory and not even say that it is still there.
        whole = body if len(body) <= _PIECE_BYTES else _Pieces(io.BytesIO(body))
        response = web.Response(status=status, body=whole, headers=_HEADERS)
        if status == 405:
            response.headers["Allow"] = "POST"
        if not request.content.is_eof():
            response.force_close()  # what was not read of the body must not be taken for the next request
        return response

    async def _answer(
        self,
        request: web.BaseRequest,
        connection: Connection,
        endpoint: Endpoint[Any] | None,
        received_at: float,
        observer: Observer,
    ) -> bytes:
        """The answer to a request that is in order.

        Raises:
            _RejectionError: it is not, or cannot be looked at now.
        """
        if connection.refusal is not None:
            raise _RejectionError(403, connection.refusal)
        if endpoint is None:
            raise _invalid(404, "there is nothing at this path", expected=VERIFY_PATH)
        if request.method != "POST":
            raise _invalid(405, "this path is asked by POST", found=request.method)
        if self._requests > self._settings.max_requests:
            reason = f"{self._settings.max_requests} requests are being answered already"
            raise _RejectionError(200, Undecided("OVERLOADED", reason))
        deadline = received_at + endpoint.seconds
        body = await self._read_body(request, deadline)
        try:
            keys = protocol.parse_request(body, self._settings.requests)
        except Undecided as error:
            raise _RejectionError(400, error) from None
        settled = await self._work.settle(endpoint, keys, deadline, observer=observer)
        answer = endpoint.answer(settled, observer.trace_id)
        self._count(endpoint.name, answer)
        _log_answer(endpoint.name, settled, answer)
        return answer.body

    async def _read_body(self, request: web.BaseRequest, deadline: float) -> bytes:
        """Read the body within its limit of bytes and time.

        Raises:
            _RejectionError: 413 too large; 400 compressed, broken off or malformed; 200 not there by the deadline.
        """
        limit = self._settings.requests.max_body_bytes
        if request.headers.get("Content-Encoding", "identity") != "identity":
            raise _invalid(400, "the body is compressed", expected="no Content-Encoding")
        if (request.content_length or 0) > limit:
            raise _too_large(limit)
        body = bytearray()
        try:
            if request.headers.get("Expect", "").lower() == "100-continue":
                await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                request.writer.output_size = 0  # the answer itself has not begun
            if request.content.is_eof():  # most bodies arrive with their head
                body += request.content.read_nowait()
            else:
                async with asyncio.timeout(deadline - time.monotonic()):
                    while len(body) <= limit and (chunk := await request.content.readany()):
                        body += chunk
        except TimeoutError:
            late = Undecided("DEADLINE_EXCEEDED", "the request's body did not arrive in time")
            raise _RejectionError(200, late) from None
        except (web.RequestPayloadError, HttpProcessingError, ConnectionError):
            raise _invalid(400, "the request's body is broken off or not valid HTTP") from None
        if len(body) > limit:
            raise _too_large(limit)
        return bytes(body)

    def _count(self, endpoint: str, answer: Answer) -> None:
        metrics = self._metrics.endpoint(endpoint)
        for outcome, number in answer.counts.items():
            if number:
                metrics.keys[outcome].inc(number)
        for code in answer.codes:
            self._metrics.system_errors.labels(code).inc()
        undecided, total = answer.counts.get("undecided", 0), sum(answer.counts.values())
        metrics.requests["complete" if not undecided else "failed" if undecided == total else "partial"].inc()

    def _failure(self, endpoint: str, outcome: str, error: Undecided, trace_id: str) -> bytes:
        """An answer without items."""
        self._metrics.endpoint(endpoint).requests[outcome].inc()
        self._metrics.system_errors.labels(error.code).inc()
        return protocol.render_response((), system_error=protocol.request_error(error, trace_id=trace_id))

    def _fault(self, status: int) -> web.Response:
        """The answer to what never became a request, or to a fault of the listener."""
        error = _internal_error() if status >= 500 else Undecided("REQUEST_INVALID", "the request is not valid HTTP")
        body = self._failure("other", "failed" if status >= 500 else "rejected", error, self._trace_ids())
        return web.Response(status=status, body=body, headers=_HEADERS)

    def _observer(self, endpoint: str, headers: Mapping[str, str]) -> Observer:
        """Who watches a request, with the caller's trace id if it sent a proper one, else a new one."""
        trace_id = self._trace_id(headers)
        if self._tracing is None:
            return StageTimes(self._metrics, trace_id or self._trace_ids())
        span = self._tracing.begin(endpoint, headers)
        return span.beside(StageTimes(self._metrics, trace_id or span.trace_id))

    def _trace_id(self, headers: Mapping[str, str]) -> str:
        """The caller's trace id; empty when it sent no proper one."""
        for name in self._settings.trace_headers:
            value = headers.get(name, "")
            if name.lower() == "traceparent":
                match = _TRACEPARENT.fullmatch(value)
                if match is not None:
                    return match[1]
            elif _TRACE_ID.fullmatch(value) is not None:
                return value
        return ""


class _Pieces(payload.BytesIOPayload):
    """A large body; aiohttp's own pieces of it are so small that their number costs more than the encryption."""

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        """Write the body, as much of it as the writer takes at a time."""
        body = memoryview(self._value.getvalue())[:content_length]
        for start in range(0, len(body), _PIECE_BYTES):
            if start:
                await asyncio.sleep(0)  # others have their turn
            await writer.write(body[start : start + _PIECE_BYTES])


def _log_answer(endpoint: str, settled: Mapping[str, Any], answer: Answer) -> None:
    """One event for what was left without a verdict, with the request's trace id; verdicts have events of their own."""
    if answer.failed:
        failures = [(key, outcome) for key, outcome in settled.items() if isinstance(outcome, CountersignError)]
        causes = {printable(key): str(error) for key, error in failures[:MAX_LOGGED_KEYS]}
        _log.warning("keys without a verdict", endpoint=endpoint, number=len(failures), causes=causes)
    _log.debug("request answered", endpoint=endpoint, **answer.counts)


class _RejectionError(Exception):
    """The request as a whole gets an error for an answer.

    Attributes:
        status: HTTP status; 200 when the request was in order and the fault is ours.
        error: what systemError says.
    """

    def __init__(self, status: int, error: Undecided) -> None:
        super().__init__(status, error)
        self.status = status
        self.error = error


def _invalid(status: int, reason: str, *, expected: str | None = None, found: str | None = None) -> _RejectionError:
    return _RejectionError(status, Undecided("REQUEST_INVALID", reason, expected=expected, found=found))


def _too_large(limit: int) -> _RejectionError:
    return _invalid(413, "the body is too large", expected=f"at most {limit} bytes")


def _internal_error() -> Undecided:
    return Undecided("INTERNAL", "something failed unexpectedly")
