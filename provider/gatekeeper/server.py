"""The verification server: requests of Gatekeeper in, answers out before their deadlines.

    first byte -> allowed? -> not overloaded? -> body -> keys -> one task for each key that is not remembered
               -> wait for all of them or the deadline -> items in the order of the keys, systemError for what is missing

Rules:
- The deadline counts from the request's first byte, and reading the body is inside it. What is done by then is
  answered, what is not is named in systemError and goes on in the background, for the next attempt to find.
- Every answer is a ProviderResponse. HTTP statuses other than 200 are for people and proxies (400 malformed, 403 not
  allowed, 404, 405, 413): Gatekeeper looks at the body only.
- Nobody waits for anybody else: a caller that hangs up cancels nothing.
- An unexpected exception is a systemError INTERNAL with a trace id; its text goes to the log and nowhere else.
- An admission is only ever what `Verifies` returned. There is no path from an error to a verdict that admits.

What does not belong here: deciding and coalescing (executor.py), connections (listener.py), wire formats (protocol.py).
"""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Protocol, cast

import structlog
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestPayloadError

from provider.errors import CountersignError, InvalidKey, Refused, Undecided
from provider.gatekeeper import protocol
from provider.gatekeeper.listener import Connection, Listener
from provider.gatekeeper.settings import ListenerSettings, ServerSettings
from provider.gatekeeper.tls import ServingTLS
from provider.telemetry import Metrics

_log = structlog.get_logger(__name__)

VERIFY_PATH: Final = "/ratify/gatekeeper/v1/verify"
MUTATE_PATH: Final = "/ratify/gatekeeper/v1/mutate"
TRACE_ID_FIELD: Final = "trace-id"  # of log events; Ratify's name

_TRACE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/=+-]{0,127}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")
_HEADERS: Final = {"Content-Type": "application/json", "Server": "countersign"}


class RenderedVerdict(Protocol):
    """A decision on one key, ready to be answered."""

    @property
    def fragment(self) -> bytes:
        """JSON members as reports.Verdict.render makes them."""
        ...

    @property
    def is_success(self) -> bool:
        """Whether the fragment admits the image; for counting only."""
        ...


class Verifies(Protocol):
    """What the verification endpoint needs."""

    async def verify(self, key: str) -> RenderedVerdict:
        """Decide on one key. Cancelling the caller cancels no work that others wait for.

        Raises:
            InvalidKey: the key is no image reference.
            Refused: taken for a verdict that refuses.
            Undecided: no decision was possible this time.
        """
        ...


class Resolves(Protocol):
    """What the mutation endpoint needs."""

    async def resolve(self, key: str) -> str:
        """Pin the image of one key to a digest.

        Raises:
            InvalidKey, Refused, Undecided: as for verifying.
        """
        ...


def no_memory(_key: str) -> None:
    """Remembers nothing."""


def utc_now() -> datetime:
    """The time stamped on verdicts."""
    return datetime.now(UTC)


def new_trace_id() -> str:
    """A trace id for a request that brought none."""
    return uuid.uuid4().hex


@dataclass(frozen=True, slots=True)
class _Endpoint:
    """How one of the two paths answers.

    Attributes:
        name: for metrics and logs.
        seconds: deadline, from the first byte on.
        remembered: what is known about a key without waiting; None when nothing is.
        start: begins the work on a key.
        answer: renders an answer from the settled keys.
    """

    name: str
    seconds: float
    remembered: Callable[[str], object | None]
    start: Callable[[str], Awaitable[object]]
    answer: Callable[[_Round], bytes]


@dataclass(slots=True)
class _Round:
    """One request's keys on their way.

    Attributes:
        endpoint: which path was asked.
        trace_id: of this request.
        settled: by key, in the order of the request: what was returned or raised, or the task still under way.
    """

    endpoint: _Endpoint
    trace_id: str
    settled: dict[str, object] = field(default_factory=dict)


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
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        self._trace_ids = trace_ids
        self._listener = Listener("verify", self._handle, self._fault, settings=listener, tls=tls, metrics=metrics)
        self._endpoints = {
            VERIFY_PATH: _Endpoint(
                "verify", settings.verify_seconds, remembered, verifier.verify, self._answer_verification
            ),
            MUTATE_PATH: _Endpoint(
                "mutate", settings.mutate_seconds, no_memory, resolver.resolve, self._answer_mutation
            ),
        }
        self._requests = 0
        self._unfinished: set[asyncio.Task[object]] = set()
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
        return len(self._unfinished)

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
        for task in tuple(self._unfinished):
            task.cancel()
        if self._unfinished:
            await asyncio.wait(self._unfinished)

    # -- one request ----------------------------------------------------------------------------------------------

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request, whatever it is. Raises nothing but cancellation."""
        connection = cast(Connection, request.protocol)
        received_at = connection.head_at or self._listener.now()
        trace_id = self._trace_id(request.headers)
        structlog.contextvars.bind_contextvars(**{TRACE_ID_FIELD: trace_id})
        endpoint = self._endpoints.get(request.path)
        name = "other" if endpoint is None else endpoint.name
        self._requests += 1
        self._metrics.requests_in_flight.set(self._requests)
        try:
            status, body = await self._respond(request, connection, endpoint, received_at, trace_id)
        except Exception:  # noqa: BLE001 - a fault of ours must deny this request, not end the connection
            _log.exception("request failed unexpectedly", endpoint=name)
            status, body = 200, self._failure(name, "failed", _internal_error(), trace_id)
        finally:
            self._requests -= 1
            self._metrics.requests_in_flight.set(self._requests)
        if endpoint is not None:
            self._observe(endpoint, self._listener.now() - received_at)
        response = web.Response(status=status, body=body, headers=_HEADERS)
        if status == 405:
            response.headers["Allow"] = "POST"
        if not request.content.is_eof():
            response.force_close()  # what was not read of the body must not be taken for the next request
        return response

    async def _respond(
        self,
        request: web.BaseRequest,
        connection: Connection,
        endpoint: _Endpoint | None,
        received_at: float,
        trace_id: str,
    ) -> tuple[int, bytes]:
        """HTTP status and body of the answer."""
        if endpoint is None:
            error = Undecided("REQUEST_INVALID", "there is nothing at this path", expected=VERIFY_PATH)
            return 404, self._failure("other", "rejected", error, trace_id)
        if request.method != "POST":
            error = Undecided("REQUEST_INVALID", "this path is asked by POST", found=request.method)
            return 405, self._failure(endpoint.name, "rejected", error, trace_id)
        if connection.refusal is not None:
            _log.warning("caller is not allowed", errorReason=connection.refusal.detail)
            return 403, self._failure(endpoint.name, "rejected", connection.refusal, trace_id)
        if self._requests > self._settings.max_requests:
            error = Undecided("OVERLOADED", f"{self._settings.max_requests} requests are being answered already")
            return 200, self._failure(endpoint.name, "failed", error, trace_id)
        deadline = received_at + endpoint.seconds
        try:
            keys = protocol.parse_request(await self._read_body(request, deadline), self._settings.requests)
        except _BodyTooLargeError:
            limit = self._settings.requests.max_body_bytes
            error = Undecided("REQUEST_INVALID", "the body is too large", expected=f"at most {limit} bytes")
            return 413, self._failure(endpoint.name, "rejected", error, trace_id)
        except Undecided as error:
            status, outcome = (400, "rejected") if error.code == "REQUEST_INVALID" else (200, "failed")
            return status, self._failure(endpoint.name, outcome, error, trace_id)
        return 200, endpoint.answer(await self._settle(endpoint, keys, deadline, trace_id))

    async def _read_body(self, request: web.BaseRequest, deadline: float) -> bytes:
        """Read the body within its limit.

        Raises:
            _BodyTooLargeError: it has more bytes than allowed.
            Undecided: DEADLINE_EXCEEDED, it did not arrive in time; REQUEST_INVALID, it is compressed or broken off.
        """
        limit = self._settings.requests.max_body_bytes
        if request.headers.get("Content-Encoding", "identity") != "identity":
            raise Undecided("REQUEST_INVALID", "the body is compressed", expected="no Content-Encoding")
        if (request.content_length or 0) > limit:
            raise _BodyTooLargeError
        body = bytearray()
        try:
            if request.headers.get("Expect", "").lower() == "100-continue":
                await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                request.writer.output_size = 0  # the answer itself has not begun
            if request.content.is_eof():  # most bodies arrive with their head
                body += request.content.read_nowait()
            else:
                async with asyncio.timeout_at(deadline):
                    while chunk := await request.content.readany():
                        body += chunk
                        if len(body) > limit:
                            raise _BodyTooLargeError
        except TimeoutError:
            raise Undecided("DEADLINE_EXCEEDED", "the request's body did not arrive in time") from None
        except (RequestPayloadError, HttpProcessingError, ConnectionError):
            raise Undecided("REQUEST_INVALID", "the request's body is broken off or not valid HTTP") from None
        if len(body) > limit:
            raise _BodyTooLargeError
        return bytes(body)

    async def _settle(self, endpoint: _Endpoint, keys: tuple[str, ...], deadline: float, trace_id: str) -> _Round:
        """Work on all keys until they are done or the deadline comes."""
        settled = _Round(endpoint, trace_id)
        waiting: set[asyncio.Task[object]] = set()
        for key in keys:
            outcome = endpoint.remembered(key)
            if outcome is None:
                outcome = self._start(endpoint, key)
                if isinstance(outcome, asyncio.Task):
                    waiting.add(outcome)
            settled.settled[key] = outcome
        if waiting:
            _, late = await asyncio.wait(waiting, timeout=max(0.0, deadline - self._listener.now()))
            if late:
                self._metrics.deadline_misses.labels(endpoint.name).inc()
                self._leave(late)
        for key, outcome in settled.settled.items():
            if isinstance(outcome, asyncio.Task):
                settled.settled[key] = _outcome(outcome, endpoint.seconds)
        return settled

    def _start(self, endpoint: _Endpoint, key: str) -> object:
        """Begin the work on a key, or say why not now."""
        if len(self._unfinished) >= self._settings.max_unfinished_keys:
            return Undecided("OVERLOADED", f"{self._settings.max_unfinished_keys} images are being looked at already")
        task: asyncio.Task[object] = asyncio.ensure_future(_run(endpoint.start, key))
        self._unfinished.add(task)
        self._metrics.unfinished_keys.set(len(self._unfinished))
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[object]) -> None:
        self._unfinished.discard(task)
        self._metrics.unfinished_keys.set(len(self._unfinished))

    def _leave(self, late: set[asyncio.Task[object]]) -> None:
        """Let late tasks go on without their request, but not for ever."""

        def give_up() -> None:
            for task in late:
                task.cancel()

        asyncio.get_running_loop().call_later(self._settings.background_seconds, give_up)

    # -- answers --------------------------------------------------------------------------------------------------

    def _answer_verification(self, settled: _Round) -> bytes:
        """Verdicts and errors that will not heal as items; what could not be decided is left out and named."""
        tail = protocol.verdict_tail(trace_id=settled.trace_id, at=self._clock())
        items: list[bytes] = []
        missing: dict[str, Undecided] = {}
        succeeded = refused = 0
        for key, outcome in settled.settled.items():
            if isinstance(outcome, Refused):
                refused += 1
                items.append(protocol.value_item(key, b"{" + protocol.refusal_fragment(key, outcome) + tail))
            elif isinstance(outcome, InvalidKey):
                items.append(protocol.error_item(key, outcome, trace_id=settled.trace_id))
            elif isinstance(outcome, CountersignError):
                missing[key] = _as_undecided(outcome)
            else:
                verdict = cast(RenderedVerdict, outcome)
                succeeded += verdict.is_success
                refused += not verdict.is_success
                items.append(protocol.value_item(key, b"{" + verdict.fragment + tail))
        invalid = len(items) - succeeded - refused
        self._count("verify", succeeded=succeeded, refused=refused, invalid=invalid, missing=missing)
        error = protocol.system_error(missing, trace_id=settled.trace_id) if missing else ""
        return protocol.render_response(items, system_error=error)

    def _answer_mutation(self, settled: _Round) -> bytes:
        """Every key as an item and no systemError: Gatekeeper drops all items of a mutation that has one."""
        items: list[bytes] = []
        missing: dict[str, Undecided] = {}
        succeeded = refused = 0
        for key, outcome in settled.settled.items():
            if isinstance(outcome, CountersignError):
                refused += isinstance(outcome, Refused)
                if not isinstance(outcome, Refused | InvalidKey):
                    missing[key] = _as_undecided(outcome)
                items.append(protocol.error_item(key, outcome, trace_id=settled.trace_id))
            else:
                succeeded += 1
                items.append(protocol.string_item(key, cast(str, outcome)))
        invalid = len(items) - succeeded - refused - len(missing)
        self._count("mutate", succeeded=succeeded, refused=refused, invalid=invalid, missing=missing)
        return protocol.render_response(items, idempotent=True)

    def _count(
        self, endpoint: str, *, succeeded: int, refused: int, invalid: int, missing: Mapping[str, Undecided]
    ) -> None:
        counts = {"succeeded": succeeded, "refused": refused, "invalid": invalid, "undecided": len(missing)}
        for outcome, number in counts.items():
            if number:
                self._metrics.keys.labels(endpoint, outcome).inc(number)
        for code in {error.code for error in missing.values()}:
            self._metrics.system_errors.labels(code).inc()
        decided = succeeded + refused + invalid
        result = "complete" if not missing else "partial" if decided else "failed"
        self._metrics.requests.labels(endpoint, result).inc()

    def _failure(self, endpoint: str, outcome: str, error: Undecided, trace_id: str) -> bytes:
        """An answer without items."""
        self._metrics.requests.labels(endpoint, outcome).inc()
        self._metrics.system_errors.labels(error.code).inc()
        return protocol.render_response((), system_error=protocol.request_error(error, trace_id=trace_id))

    def _fault(self, status: int) -> web.Response:
        """The answer to what never became a request, or to a fault of the listener."""
        error = _internal_error() if status >= 500 else Undecided("REQUEST_INVALID", "the request is not valid HTTP")
        body = self._failure("other", "failed" if status >= 500 else "rejected", error, self._trace_ids())
        return web.Response(status=status, body=body, headers=_HEADERS)

    def _observe(self, endpoint: _Endpoint, seconds: float) -> None:
        self._metrics.request_seconds.labels(endpoint.name).observe(seconds)
        if endpoint.name == "verify":
            self._metrics.ratify_verification_request.observe(seconds * 1000)
        else:
            self._metrics.ratify_mutation_request.observe(seconds * 1000)

    def _trace_id(self, headers: Mapping[str, str]) -> str:
        """The caller's trace id if it sent a proper one, else a new one."""
        for name in self._settings.trace_headers:
            value = headers.get(name, "")
            if name.lower() == "traceparent":
                match = _TRACEPARENT.fullmatch(value)
                if match is not None:
                    return match[1]
            elif _TRACE_ID.fullmatch(value) is not None:
                return value
        return self._trace_ids()


class _BodyTooLargeError(Exception):
    """The body has more bytes than allowed."""


async def _run(start: Callable[[str], Awaitable[object]], key: str) -> object:
    """The work on one key. What it raises is returned, so that no task ends with an exception nobody looks at."""
    try:
        return await start(key)
    except CountersignError as error:
        return error
    except Exception:  # noqa: BLE001 - whatever went wrong, this key is denied and the others are not
        _log.exception("key failed unexpectedly", key=key)
        return _internal_error()


def _outcome(task: asyncio.Task[object], seconds: float) -> object:
    """What a task came to, as far as it has."""
    if not task.done():
        return Undecided("DEADLINE_EXCEEDED", f"verification did not finish within {seconds:g} s")
    with suppress(asyncio.CancelledError):
        return task.result()
    return Undecided("INTERNAL", "the work was cancelled")


def _as_undecided(error: CountersignError) -> Undecided:
    """An error that has no place in an answer is a fault of ours, and denies without being cached."""
    return error if isinstance(error, Undecided) else _internal_error()


def _internal_error() -> Undecided:
    return Undecided("INTERNAL", "something failed unexpectedly")
