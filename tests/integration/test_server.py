"""The verification server over real loopback TLS: what Gatekeeper gets, and what an attacker cannot do."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from provider.errors import UsageError
from provider.gatekeeper.probes import HealthServer, MetricsServer, probe_settings
from provider.gatekeeper.server import Server
from provider.gatekeeper.settings import ListenerSettings, RequestLimits, ServerSettings
from provider.gatekeeper.tls import ServingTLS, TLSFiles
from provider.telemetry import Metrics
from tests.simulators.gatekeeper import (
    MUTATE_PATH,
    PKI,
    VERIFY_PATH,
    WEBHOOK_NAME,
    Gatekeeper,
    RawCaller,
    Reply,
    head,
    request_body,
)


@dataclass(frozen=True)
class Verdict:
    """What an executor returns."""

    fragment: bytes
    is_success: bool


ADMITTED = Verdict(b'"version":"0.2.0","isSuccess":true', True)
DENIED = Verdict(b'"version":"0.2.0","isSuccess":false', False)


class Judge:
    """An executor: admits keys that say `good`, denies others, and holds those that say `slow` until `go` is set."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.finished: list[str] = []
        self.arrived = asyncio.Event()
        self.go = asyncio.Event()
        self.failure: BaseException | None = None

    async def verify(self, key: str) -> Verdict:
        self.asked.append(key)
        self.arrived.set()
        if "slow" in key:
            await self.go.wait()
        if self.failure is not None:
            raise self.failure
        self.finished.append(key)
        return ADMITTED if "good" in key else DENIED

    async def resolve(self, key: str) -> str:
        await self.verify(key)
        return f"{key}@sha256:00"


@dataclass
class Site:
    """A running server and what is needed to call it."""

    server: Server
    judge: Judge
    metrics: Metrics
    pki: PKI
    folder: Path
    tls: ServingTLS

    def gatekeeper(self, *, reuse: bool = True, **client: Any) -> Gatekeeper:
        return Gatekeeper(self.server.port, self.pki.client_context(**client), reuse=reuse)

    async def raw(self, **client: Any) -> RawCaller:
        return await RawCaller.connect(self.server.port, self.pki.client_context(**client))

    def metric(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


@pytest.fixture(scope="module")
def pki() -> PKI:
    return PKI()


Serve = Callable[..., Any]


@pytest.fixture
async def serve(pki: PKI, tmp_path: Path) -> AsyncIterator[Serve]:
    """A function that starts a server with the limits given; everything is stopped at the end."""
    async with AsyncExitStack() as stack:

        async def start(*, listener: dict[str, Any] | None = None, **settings: Any) -> Site:
            pki.write_serving_files(tmp_path)
            pki.write_client_ca(tmp_path / "ca.crt")
            metrics = Metrics()
            tls = ServingTLS(TLSFiles.in_folder(tmp_path, client_cas=[tmp_path / "ca.crt"]), metrics=metrics)
            judge = Judge()
            server = Server(
                judge,
                judge,
                listener=ListenerSettings(host="127.0.0.1", **(listener or {})),
                settings=ServerSettings(**{"settle_seconds": 0, "drain_seconds": 1.0, **settings}),
                tls=tls,
                metrics=metrics,
            )
            await server.start()
            stack.push_async_callback(server.stop)
            stack.callback(judge.go.set)
            return Site(server, judge, metrics, pki, tmp_path, tls)

        yield start


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that is seen from outside only; the test's timeout ends it."""
    while not condition():  # noqa: ASYNC110 - looking on from outside
        await asyncio.sleep(0.005)


@asynccontextmanager
async def asking(gatekeeper: Gatekeeper, *keys: Any, **options: Any) -> AsyncIterator[asyncio.Task[Reply]]:
    """A request that is under way."""
    task = asyncio.create_task(gatekeeper.ask(*keys, **options))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


# -- what Gatekeeper gets ---------------------------------------------------------------------------------------------


async def test_gatekeeper_gets_its_verdicts_in_the_order_of_its_keys(serve: Serve) -> None:
    site = await serve()
    keys = ["r.test/bad", "r.test/a:good\n", "[a]b]img", "[ns]r.test/a:good"]
    async with site.gatekeeper() as gatekeeper:
        reply = await gatekeeper.ask(*keys, "r.test/bad")
    assert reply.status == 200
    assert reply.headers["Content-Type"] == "application/json"
    assert list(reply.items) == keys
    assert reply.admitted == {"r.test/a:good\n", "[ns]r.test/a:good"}
    assert reply.system_error == ""
    assert site.judge.asked == keys
    value = reply.items["r.test/bad"]["value"]
    assert value["timestamp"].endswith("Z")
    assert len(value["traceID"]) == 32


async def test_mutation_gets_strings_and_a_blank_system_error(serve: Serve) -> None:
    site = await serve(mutate_seconds=0.1)
    async with site.gatekeeper() as gatekeeper:
        reply = await gatekeeper.ask("r.test/a:good", "r.test/slow", path=MUTATE_PATH)
    assert reply.document["response"]["idempotent"] is True
    assert reply.system_error == ""
    assert reply.items["r.test/a:good"]["value"] == "r.test/a:good@sha256:00"
    assert reply.items["r.test/slow"]["error"].startswith("DEADLINE_EXCEEDED")
    assert site.metric("ratify_mutation_request_count") == 1


async def test_n57_a_partial_answer_leaves_at_the_deadline_and_the_retry_finds_the_rest_done(serve: Serve) -> None:
    site = await serve(verify_seconds=0.1)
    async with site.gatekeeper() as gatekeeper:
        first = await gatekeeper.ask("r.test/slow:good", "r.test/a:good")
        assert first.status == 200
        assert first.admitted == {"r.test/a:good"}
        assert list(first.items) == ["r.test/a:good"]
        assert first.system_error.startswith("DEADLINE_EXCEEDED: not decided within 0.1 s [r.test/slow:good]. ")
        assert site.server.unfinished == 1
        site.judge.go.set()
        await until(lambda: site.server.unfinished == 0)
        assert "r.test/slow:good" in site.judge.finished
        retry = await gatekeeper.ask("r.test/slow:good")
    assert retry.admitted == {"r.test/slow:good"}
    assert retry.system_error == ""
    assert site.metric("countersign_requests_total", endpoint="verify", outcome="partial") == 1


async def test_n68_a_caller_that_hangs_up_harms_no_other(serve: Serve) -> None:
    site = await serve()
    async with (
        site.gatekeeper() as first,
        site.gatekeeper() as second,
        asking(first, "r.test/slow:good") as abandoned,
        asking(second, "r.test/slow:good") as waiting,
    ):
        await until(lambda: len(site.judge.asked) == 2)
        abandoned.cancel()
        await asyncio.wait([abandoned])
        await until(lambda: site.metric("countersign_connections") == 1)
        site.judge.go.set()
        assert (await waiting).admitted == {"r.test/slow:good"}
    assert len(site.judge.finished) == 2


@pytest.mark.parametrize("failure", [RuntimeError("password=hunter2"), MemoryError(), asyncio.CancelledError()])
async def test_n56_a_failing_executor_denies_with_a_trace_id_and_tells_nothing_of_itself(
    serve: Serve, failure: BaseException
) -> None:
    site = await serve()
    site.judge.failure = failure
    async with site.gatekeeper() as gatekeeper:
        with capture_logs():
            reply = await gatekeeper.ask("r.test/a:good", headers={"X-Request-Id": "call-7"})
    assert reply.status == 200
    assert reply.items == {}
    assert reply.system_error.startswith("INTERNAL: ")
    assert reply.system_error.endswith("(trace-id call-7)")
    assert "hunter2" not in reply.body.decode()


async def test_n56_a_fault_of_the_server_itself_is_a_system_error_and_its_traceback_is_logged(
    serve: Serve, pki: PKI, tmp_path: Path
) -> None:
    class Broken(Judge):
        async def verify(self, key: str) -> Any:
            return None

    site = await serve()
    server = Server(
        Broken(),
        site.judge,
        listener=ListenerSettings(host="127.0.0.1"),
        settings=ServerSettings(settle_seconds=0),
        tls=None,
        metrics=site.metrics,
    )
    await server.start()
    with capture_logs() as logs:
        async with Gatekeeper(server.port, None) as gatekeeper:
            reply = await gatekeeper.ask("r.test/a:good")
    await server.stop()
    assert reply.status == 200
    assert reply.items == {}
    assert reply.system_error.startswith("INTERNAL: something failed unexpectedly. ")
    assert [event["event"] for event in logs if event.get("exc_info")] == ["request failed unexpectedly"]


async def test_a_remembered_verdict_is_answered_without_asking(serve: Serve, pki: PKI) -> None:
    metrics, judge = Metrics(), Judge()
    server = Server(
        judge,
        judge,
        listener=ListenerSettings(host="127.0.0.1"),
        settings=ServerSettings(settle_seconds=0),
        tls=None,
        metrics=metrics,
        remembered=lambda key: ADMITTED if "warm" in key else None,
    )
    await server.start()
    async with Gatekeeper(server.port, None) as gatekeeper:
        assert (await gatekeeper.ask("warm", "cold:good")).admitted == {"warm", "cold:good"}
    await server.stop()
    assert judge.asked == ["cold:good"]


# -- trace ids --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"X-Request-ID": "abc-123"}, "abc-123"),
        ({"traceparent": f"00-{'a1' * 16}-{'b2' * 8}-01"}, "a1" * 16),
        ({"X-Request-ID": "first", "traceparent": f"00-{'a1' * 16}-{'b2' * 8}-01"}, "first"),
        ({"X-Request-ID": "bad id", "traceparent": f"00-{'a1' * 16}-{'b2' * 8}-01"}, "a1" * 16),
        ({"X-Request-ID": 'x"}],"systemError":""'}, None),
        ({"X-Request-ID": "a" * 129}, None),
        ({"traceparent": "00-zz-01"}, None),
        ({"X-Other": "abc"}, None),
        ({}, None),
    ],
)
async def test_the_trace_id_is_the_callers_if_it_is_a_proper_one(
    serve: Serve, headers: dict[str, str], expected: str | None
) -> None:
    site = await serve()
    async with site.gatekeeper() as gatekeeper:
        reply = await gatekeeper.ask("r.test/a", headers=headers)
    trace_id = reply.items["r.test/a"]["value"]["traceID"]
    if expected is None:
        assert len(trace_id) == 32
        assert int(trace_id, 16)
    else:
        assert trace_id == expected


# -- N21: what is no request ------------------------------------------------------------------------------------------

TOO_MANY = request_body([f"r.test/{number}" for number in range(100_000)])


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "the body is not JSON"),
        (b"<html>", "the body is not JSON"),
        (b"[" * 100_000, "nested deeper than"),
        (request_body(["a", 7, None]), "request.keys[1] is not a string"),
        (request_body(["a"]).replace(b"ProviderRequest", b"AdmissionReview"), "kind is not that of a request"),
        (request_body(["a"]).replace(b"v1beta1", b"v9"), "apiVersion is not"),
        (request_body(["a" * 5000]), "request.keys has a key that is too long"),
        (request_body(["a"] * 2001), "request.keys has too many keys"),
    ],
)
async def test_n21_what_is_no_provider_request_gets_a_400_with_the_reason(serve: Serve, body: bytes, told: str) -> None:
    site = await serve()
    async with site.gatekeeper() as gatekeeper:
        reply = await gatekeeper.send("POST", VERIFY_PATH, data=body)
        assert reply.status == 400
        assert reply.items == {}
        assert reply.system_error.startswith("REQUEST_INVALID: ")
        assert told in reply.system_error
        assert (await gatekeeper.ask("r.test/a:good")).admitted == {"r.test/a:good"}
    assert site.metric("countersign_requests_total", endpoint="verify", outcome="rejected") == 1


async def test_n21_a_thousand_keys_are_answered_and_duplicates_once(serve: Serve) -> None:
    site = await serve()
    keys = [f"registry.example.test/team/application-{number}:good" for number in range(1000)]
    async with site.gatekeeper() as gatekeeper:
        reply = await gatekeeper.ask(*keys, *keys[:500])
    assert list(reply.items) == keys
    assert len(site.judge.asked) == 1000


async def test_n21_a_hundred_thousand_keys_are_refused_before_they_are_read(serve: Serve) -> None:
    site = await serve()
    async with site.gatekeeper() as gatekeeper:
        reply = await gatekeeper.send("POST", VERIFY_PATH, data=TOO_MANY)
    assert reply.status == 413
    assert "the body is too large" in reply.system_error
    assert site.judge.asked == []


async def test_n21_a_hundred_thousand_keys_within_a_larger_limit_of_bytes_are_refused_too(serve: Serve) -> None:
    site = await serve(requests=RequestLimits(max_body_bytes=len(TOO_MANY)))
    async with site.gatekeeper() as gatekeeper:
        reply = await gatekeeper.send("POST", VERIFY_PATH, data=TOO_MANY)
    assert reply.status == 400
    assert "too many keys (expected at most 2000, found 100000)" in reply.system_error


async def test_n21_fifty_megabytes_are_refused_by_their_announced_length(serve: Serve) -> None:
    site = await serve()
    async with await site.raw() as caller:
        await caller.send(head("POST", VERIFY_PATH, 50 * 1024 * 1024) + b" " * 100_000)
        reply = await caller.reply()
    assert reply.status == 413
    assert reply.headers["Connection"] == "close"
    assert reply.system_error.startswith("REQUEST_INVALID: the body is too large (expected at most 524288 bytes)")


async def test_n15_endless_chunks_are_cut_off_at_the_limit(serve: Serve) -> None:
    site = await serve()
    async with await site.raw() as caller:
        start = head("POST", VERIFY_PATH, 0, "Transfer-Encoding: chunked").replace(b"Content-Length: 0\r\n", b"")
        await caller.send(start)
        for _ in range(6):
            await caller.send(b"19000\r\n" + b" " * 0x19000 + b"\r\n")
        reply = await caller.reply()
    assert reply.status == 413


async def test_n15_a_compressed_body_is_not_inflated(serve: Serve) -> None:
    site = await serve()
    bomb = gzip.compress(b" " * 10_000_000)
    async with site.gatekeeper() as gatekeeper:
        reply = await gatekeeper.send("POST", VERIFY_PATH, data=bomb, headers={"Content-Encoding": "gzip"})
        assert reply.status == 400
        assert "the body is compressed" in reply.system_error
        reply = await gatekeeper.send("POST", VERIFY_PATH, data=bomb)
        assert reply.status == 400


async def test_a_body_that_breaks_off_is_answered_or_closed_and_asks_nobody(serve: Serve) -> None:
    site = await serve(verify_seconds=0.1)
    async with await site.raw() as caller:
        start = head("POST", VERIFY_PATH, 0, "Transfer-Encoding: chunked").replace(b"Content-Length: 0\r\n", b"")
        await caller.send(start)
        await asyncio.sleep(0.02)
        await caller.send(b"zz\r\n")
        reply = await caller.reply()
    assert reply.items == {}
    assert "body did not arrive in time" in reply.system_error
    async with await site.raw() as caller:
        await caller.send(head("POST", VERIFY_PATH, 1000) + b"{")
    await until(lambda: site.metric("countersign_requests_in_flight") == 0)
    assert site.judge.asked == []


async def test_a_caller_that_expects_100_continue_is_told_to(serve: Serve) -> None:
    site = await serve()
    body = request_body(["r.test/a:good"])
    async with await site.raw() as caller:
        await caller.send(head("POST", VERIFY_PATH, len(body), "Expect: 100-continue"))
        assert await caller.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await caller.send(body)
        assert (await caller.reply()).admitted == {"r.test/a:good"}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", VERIFY_PATH, 405),
        ("PUT", MUTATE_PATH, 405),
        ("POST", "/", 404),
        ("POST", "/ratify/gatekeeper/v2/verify", 404),
        ("GET", "/metrics", 404),
    ],
)
async def test_other_paths_and_methods_get_an_error_in_the_protocols_own_form(
    serve: Serve, method: str, path: str, status: int
) -> None:
    site = await serve()
    async with site.gatekeeper() as gatekeeper:
        reply = await gatekeeper.send(method, path, data=request_body(["r.test/a:good"]))
    assert reply.status == status
    assert reply.system_error.startswith("REQUEST_INVALID: ")
    assert reply.items == {}
    assert reply.headers.get("Allow") == ("POST" if status == 405 else None)


@pytest.mark.parametrize(
    "garbage", [b"\x16\x03\x01\x00\xa5\x01\r\n\r\n", b"GET / HTTP/9.9.9\r\n\r\n", b"\x00" * 64 + b"\r\n"]
)
async def test_what_is_not_http_gets_a_400_in_the_protocols_own_form_and_no_traceback(
    serve: Serve, garbage: bytes
) -> None:
    site = await serve()
    with capture_logs() as logs:
        async with await site.raw() as caller:
            await caller.send(garbage)
            reply = await caller.reply()
            assert await caller.until_closed() == b""
    assert reply.status == 400
    assert reply.system_error.startswith("REQUEST_INVALID: the request is not valid HTTP. ")
    assert not [event for event in logs if event["log_level"] not in ("debug", "info")]


async def test_a_head_of_endless_headers_is_refused(serve: Serve) -> None:
    site = await serve()
    async with await site.raw() as caller:
        await caller.send(b"POST /x HTTP/1.1\r\nHost: localhost\r\n" + b"X-Filler: " + b"a" * 20_000 + b"\r\n")
        reply = await caller.reply()
    assert reply.status == 400


# -- N22: slow callers ------------------------------------------------------------------------------------------------


async def test_n22_a_body_that_dribbles_is_answered_at_the_deadline(serve: Serve) -> None:
    site = await serve(verify_seconds=0.15)
    body = request_body(["r.test/a:good"])
    async with await site.raw() as caller:
        await caller.send(head("POST", VERIFY_PATH, len(body)) + body[:10])
        reply = await caller.reply()
        assert reply.status == 200
        assert reply.items == {}
        assert reply.system_error.startswith("DEADLINE_EXCEEDED: the request's body did not arrive in time. ")
        assert reply.headers["Connection"] == "close"
        await caller.until_closed()
    assert site.judge.asked == []


async def test_n22_the_time_a_body_takes_is_missing_for_the_work(serve: Serve) -> None:
    site = await serve(verify_seconds=0.3)
    body = request_body(["r.test/slow"])
    async with await site.raw() as caller:
        await caller.send(head("POST", VERIFY_PATH, len(body)) + body[:10])
        await asyncio.sleep(0.1)
        started = asyncio.get_running_loop().time()
        await caller.send(body[10:])
        reply = await caller.reply()
        waited = asyncio.get_running_loop().time() - started
    assert "[r.test/slow]" in reply.system_error
    assert waited < 0.3  # the deadline counts from the first byte, not from the last


async def test_n22_a_head_that_dribbles_is_cut_off(serve: Serve) -> None:
    site = await serve(listener={"head_seconds": 0.1})
    async with await site.raw() as caller:
        await caller.send(b"POST /ratify HTTP/1.1\r\n")
        await caller.send(b"X-Never: ")
        assert await caller.until_closed() == b""
    assert site.metric("countersign_connections_ended_total", reason="slow_head") == 1
    await until(lambda: site.metric("countersign_connections") == 0)


async def test_n22_a_connection_that_never_begins_the_handshake_is_cut_off(serve: Serve) -> None:
    site = await serve(listener={"handshake_seconds": 0.1})
    async with await RawCaller.connect(site.server.port) as caller:
        assert await caller.until_closed() == b""


async def test_n22_an_idle_connection_is_closed_after_the_keep_alive_time(serve: Serve) -> None:
    site = await serve(listener={"keepalive_seconds": 0.1})
    async with await site.raw() as caller:
        await caller.ask("r.test/a")
        assert await caller.until_closed() == b""


async def test_n22_a_caller_that_does_not_read_its_answer_is_cut_off(serve: Serve) -> None:
    site = await serve(listener={"write_seconds": 0.1})
    big = Verdict(b'"isSuccess":true,"padding":"' + b"x" * 20_000 + b'"', True)

    async def verify(_key: str) -> Verdict:
        return big

    site.judge.verify = verify
    body = request_body([f"k{number}" for number in range(1000)])
    async with await site.raw() as caller:
        await caller.send(head("POST", VERIFY_PATH, len(body)) + body)
        await until(lambda: site.metric("countersign_connections_ended_total", reason="slow_reader") == 1)
        assert len(await caller.until_closed()) < 20_000_000
    await until(lambda: site.metric("countersign_connections") == 0)


# -- limits on number -------------------------------------------------------------------------------------------------


async def test_more_requests_than_may_be_answered_at_once_are_told_so_at_once(serve: Serve) -> None:
    site = await serve(max_requests=1)
    async with site.gatekeeper() as gatekeeper, asking(gatekeeper, "r.test/slow:good") as first:
        await site.judge.arrived.wait()
        second = await gatekeeper.ask("r.test/a:good")
        assert second.status == 200
        assert second.items == {}
        assert second.system_error.startswith("OVERLOADED: 1 requests are being answered already. ")
        site.judge.go.set()
        assert (await first).admitted == {"r.test/slow:good"}
        assert (await gatekeeper.ask("r.test/a:good")).admitted == {"r.test/a:good"}


async def test_keys_beyond_the_places_for_work_are_named_as_overload(serve: Serve) -> None:
    site = await serve(max_unfinished_keys=2, verify_seconds=0.1)
    async with site.gatekeeper() as gatekeeper:
        reply = await gatekeeper.ask("slow1", "slow2", "a:good")
    assert reply.items == {}
    assert "OVERLOADED: too many images are being looked at already [a:good]" in reply.system_error
    assert "DEADLINE_EXCEEDED: not decided within 0.1 s [slow1, slow2]" in reply.system_error


async def test_n24_two_thousand_image_names_leave_no_trace_in_the_metrics(serve: Serve) -> None:
    site = await serve()
    async with site.gatekeeper() as gatekeeper:
        await gatekeeper.ask("r.test/first:good", "r.test/first", path=VERIFY_PATH)
        before = len(site.metrics.render()[0].splitlines())
        for batch in range(2):
            keys = [f"random-{batch}-{number}.test/x:good" for number in range(1000)]
            await gatekeeper.ask(*keys, headers={"X-Request-Id": f"random-{batch}"})
        await gatekeeper.send("POST", "/random-path", data=b"")
    page = site.metrics.render()[0]
    assert b"random-" not in page
    assert len(page.splitlines()) - before < 10
    assert site.metric("countersign_keys_total", endpoint="verify", outcome="succeeded") == 2001


# -- connections ------------------------------------------------------------------------------------------------------


async def test_a_connection_serves_request_after_request(serve: Serve) -> None:
    site = await serve()
    async with await site.raw() as caller:
        for _ in range(3):
            reply = await caller.ask("r.test/a:good")
            assert reply.headers.get("Connection") is None
        assert site.metric("countersign_connections") == 1


async def test_pipelined_requests_are_answered_in_turn(serve: Serve) -> None:
    site = await serve()
    bodies = [request_body([f"r.test/{number}:good"]) for number in range(3)]
    async with await site.raw() as caller:
        await caller.send(b"".join(head("POST", VERIFY_PATH, len(body)) + body for body in bodies))
        for number in range(3):
            assert (await caller.reply()).admitted == {f"r.test/{number}:good"}


async def test_leaked_connections_of_old_gatekeepers_are_kept_up_to_a_number_only(serve: Serve) -> None:
    """Gatekeeper up to 3.21 makes a connection for each call and never uses or closes it again."""
    site = await serve(listener={"max_kept_connections": 2})
    async with AsyncExitStack() as stack:
        for number in range(6):
            caller = await stack.enter_async_context(await site.raw())
            reply = await caller.ask("r.test/a:good")
            assert reply.admitted == {"r.test/a:good"}
            assert reply.headers.get("Connection") == (None if number < 2 else "close")
        await until(lambda: site.metric("countersign_connections") == 2)


async def test_beyond_the_limit_the_longest_idle_connection_makes_room(serve: Serve) -> None:
    site = await serve(listener={"max_connections": 2})
    async with await site.raw() as first, await site.raw() as second:
        await first.ask("r.test/a")
        await second.ask("r.test/a")
        async with await site.raw() as third:
            assert (await third.ask("r.test/a:good")).admitted == {"r.test/a:good"}
            assert await first.until_closed() == b""
            assert (await second.ask("r.test/a:good")).admitted == {"r.test/a:good"}
    assert site.metric("countersign_connections_ended_total", reason="evicted") == 1


async def test_beyond_the_limit_with_all_connections_busy_the_newcomer_goes(serve: Serve) -> None:
    site = await serve(listener={"max_connections": 1})
    async with await site.raw() as busy:
        await busy.send(head("POST", VERIFY_PATH, 100))
        await until(lambda: site.metric("countersign_requests_in_flight") == 1)
        async with await site.raw() as newcomer:
            assert await newcomer.until_closed() == b""
    assert site.metric("countersign_connections_ended_total", reason="full") == 1


async def test_an_old_connection_is_closed_with_its_next_answer(serve: Serve) -> None:
    site = await serve(listener={"max_connection_seconds": 0.05})
    async with await site.raw() as caller:
        assert (await caller.ask("r.test/a")).headers.get("Connection") is None
        await asyncio.sleep(0.06)
        reply = await caller.ask("r.test/a:good")
        assert reply.admitted == {"r.test/a:good"}
        assert reply.headers["Connection"] == "close"
        assert await caller.until_closed() == b""


@pytest.mark.parametrize("allowed", [WEBHOOK_NAME, WEBHOOK_NAME.upper()])
async def test_n66_a_caller_with_the_right_name_may_ask(serve: Serve, allowed: str) -> None:
    site = await serve(listener={"allowed_client_names": frozenset({"other.test", allowed})})
    async with site.gatekeeper() as gatekeeper:
        assert (await gatekeeper.ask("r.test/a:good")).admitted == {"r.test/a:good"}


async def test_n66_a_caller_with_a_wrong_name_is_refused_and_told_why(serve: Serve) -> None:
    site = await serve(listener={"allowed_client_names": frozenset({WEBHOOK_NAME})})
    async with await site.raw(name="intruder.test") as caller:
        reply = await caller.ask("r.test/a:good")
        assert reply.status == 403
        assert reply.items == {}
        assert reply.system_error.startswith(
            "CLIENT_NOT_ALLOWED: the client certificate carries none of the allowed names "
            f"(expected {WEBHOOK_NAME}, found intruder.test). "
        )
        assert await caller.until_closed() == b""
    assert site.judge.asked == []


async def test_a_port_that_is_taken_is_told_in_words(serve: Serve) -> None:
    site = await serve()
    other = HealthServer(lambda: None, probe_settings("127.0.0.1", site.server.port))
    with pytest.raises(UsageError) as caught:
        await other.start()
    assert f"cannot listen on 127.0.0.1:{site.server.port} for health" in caught.value.detail


# -- stopping ---------------------------------------------------------------------------------------------------------


async def test_a_stopping_server_answers_what_is_under_way_and_accepts_nothing_new(serve: Serve) -> None:
    site = await serve(drain_seconds=5)
    async with await site.raw() as idle, await site.raw() as busy:
        await idle.ask("r.test/a")
        body = request_body(["r.test/slow:good"])
        await busy.send(head("POST", VERIFY_PATH, len(body)) + body)
        await site.judge.arrived.wait()
        await until(lambda: "r.test/slow:good" in site.judge.asked)
        stopping = asyncio.create_task(site.server.stop())
        await asyncio.sleep(0.02)
        assert site.server.stopping
        with pytest.raises(OSError, match="Connect call failed"):
            await RawCaller.connect(site.server.port)
        late = await idle.ask("r.test/b:good")  # a request that was on its way is answered too
        assert late.admitted == {"r.test/b:good"}
        assert late.headers["Connection"] == "close"
        site.judge.go.set()
        reply = await busy.reply()
        assert reply.admitted == {"r.test/slow:good"}
        assert reply.headers["Connection"] == "close"
        await stopping


async def test_a_stopping_server_settles_first_so_that_no_call_is_refused_meanwhile(serve: Serve) -> None:
    site = await serve(settle_seconds=0.2)
    stopping = asyncio.create_task(site.server.stop())
    await asyncio.sleep(0.01)
    assert site.server.stopping
    async with await site.raw() as caller:
        reply = await caller.ask("r.test/a:good")
    assert reply.admitted == {"r.test/a:good"}
    assert reply.headers["Connection"] == "close"
    await stopping


async def test_stopping_does_not_wait_for_hung_work_for_ever(serve: Serve) -> None:
    site = await serve(drain_seconds=0.05)
    async with await site.raw() as caller:
        body = request_body(["r.test/slow:good"])
        await caller.send(head("POST", VERIFY_PATH, len(body)) + body)
        await site.judge.arrived.wait()
        await site.server.stop()
        assert site.server.unfinished == 0
        received = await caller.until_closed()
    assert b"isSuccess" not in received


async def test_stopping_what_was_never_started_does_nothing() -> None:
    await HealthServer(lambda: None, probe_settings("127.0.0.1")).stop()


# -- health and metrics -----------------------------------------------------------------------------------------------


async def probe(port: int, path: str, method: str = "GET", accept: str = "") -> tuple[int, str, str]:
    async with await RawCaller.connect(port) as caller:
        await caller.send(head(method, path, 0, f"Accept: {accept}"))
        reply = await caller.reply() if method != "HEAD" else None
        if reply is None:
            status_line = (await caller.reader.readline()).decode()
            return int(status_line.split()[1]), "", ""
        return reply.status, reply.body.decode(), reply.headers["Content-Type"]


async def test_health_says_alive_and_readiness_says_why_not() -> None:
    reason: list[str] = ["no good configuration is loaded"]
    server = HealthServer(lambda: reason[0] if reason else None, probe_settings("127.0.0.1"))
    await server.start()
    assert await probe(server.port, "/healthz") == (200, "ok\n", "text/plain; charset=utf-8")
    assert (await probe(server.port, "/readyz"))[:2] == (503, "not ready: no good configuration is loaded\n")
    reason.clear()
    assert (await probe(server.port, "/readyz"))[:2] == (200, "ready\n")
    assert (await probe(server.port, "/readyz", "HEAD"))[0] == 200
    assert (await probe(server.port, "/metrics"))[0] == 404
    assert (await probe(server.port, "/healthz", "POST"))[0] == 405
    async with await RawCaller.connect(server.port) as caller:
        await caller.send(b"\x16\x03\x01\r\n\r\n")
        reply = await caller.reply()
    assert (reply.status, reply.body) == (400, b"the request is not valid HTTP\n")
    await server.stop()


async def test_a_readiness_check_that_fails_is_an_error_and_not_the_end() -> None:
    def broken() -> str | None:
        raise RuntimeError("hunter2")

    server = HealthServer(broken, probe_settings("127.0.0.1"))
    await server.start()
    with capture_logs() as logs:
        assert (await probe(server.port, "/readyz"))[:2] == (500, "internal error\n")
    assert logs[0]["event"] == "request handler failed unexpectedly"
    assert (await probe(server.port, "/healthz"))[0] == 200
    await server.stop()


async def test_metrics_tell_what_happened(serve: Serve) -> None:
    site = await serve(verify_seconds=0.05)
    async with site.gatekeeper() as gatekeeper:
        await gatekeeper.ask("a:good", "b", "slow")
    server = MetricsServer(site.metrics, probe_settings("127.0.0.1"))
    await server.start()
    status, page, content_type = await probe(server.port, "/metrics")
    assert status == 200
    assert content_type.startswith("text/plain; version=")
    assert 'countersign_keys_total{endpoint="verify",outcome="succeeded"} 1.0' in page
    assert 'countersign_keys_total{endpoint="verify",outcome="refused"} 1.0' in page
    assert 'countersign_keys_total{endpoint="verify",outcome="undecided"} 1.0' in page
    assert 'countersign_deadline_misses_total{endpoint="verify"} 1.0' in page
    assert 'ratify_system_error_count_total{error="DEADLINE_EXCEEDED"} 1.0' in page
    assert "ratify_verification_request_count 1.0" in page
    assert "countersign_unfinished_keys 1.0" in page
    assert (await probe(server.port, "/metrics", accept="application/openmetrics-text"))[2].startswith(
        "application/openmetrics-text"
    )
    await server.stop()
