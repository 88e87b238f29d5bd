"""Callers who mean ill: strange bytes, endless ones, too many at once, strangers at the door."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import secrets
import ssl
from collections.abc import AsyncIterator, Iterable

import aiohttp
import pytest
import trustme
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.hostile.process import MIB
from tests.hostile.site import BOUND, DEADLINE, MAX_GROWTH, Site, decision, sign, signer
from tests.simulators.gatekeeper import MUTATE_PATH, VERIFY_PATH, RawCaller, head, request_body

pytestmark = pytest.mark.asyncio(loop_scope="module")

CALLERS = 60  # connections of one attacker, far more than Gatekeeper keeps


@contextlib.asynccontextmanager
async def unharmed(site: Site, growth: int = MAX_GROWTH) -> AsyncIterator[None]:
    """Whatever is done inside: in time, in bounds, and honest callers are served after it."""
    before = site.server.memory()
    site.server.forget_peak()
    async with asyncio.timeout(2 * BOUND):
        yield
    await site.unharmed()
    assert site.server.peak() - before <= growth


async def sent(site: Site, data: bytes) -> bytes:
    """All that comes back for these bytes, sent on a connection of a caller with Gatekeeper's certificate."""
    async with await RawCaller.connect(site.server.port, site.certificates.client_context()) as caller:
        with contextlib.suppress(OSError, ssl.SSLError):
            await caller.send(data)
        return await caller.until_closed()


# -- requests ---------------------------------------------------------------------------------------------------------


async def test_n21_ten_thousand_keys(site: Site) -> None:
    async with unharmed(site):
        reply = await site.gatekeeper.ask(*(f"{site.honest.host}/x{number}:v1" for number in range(10_000)))
        assert (reply.status, reply.items) != (200, None)
        assert reply.system_error.startswith("REQUEST_INVALID: ")
        assert reply.items == {}


async def test_n21_hundreds_of_keys_of_a_host_that_nobody_listens_on(site: Site) -> None:
    async with unharmed(site):
        reply = await site.gatekeeper.ask(*(f"127.0.0.1:1/x{number}/{'a' * 100}:v1" for number in range(500)))
        assert reply.admitted == set()


async def test_n21_fifty_megabytes(site: Site) -> None:
    async with unharmed(site):
        with contextlib.suppress(aiohttp.ClientError):
            reply = await site.gatekeeper.send("POST", VERIFY_PATH, data=b" " * 50_000_000)
            assert reply.status == 413


@pytest.mark.parametrize(
    "key",
    [
        'registry.test/app:v1\n{"level":"info","msg":"forged"}',
        "registry.test/app\x00:v1",
        "\x1b[2J\x1b[31mregistry.test/app:v1",
        "registry.test/app:v1\u202egnp.exe",
        "registry.test/app\u2028:v1",
        "r\u0435gistry.test/app:v1",
        "registry.test/app:v1\r\nX-Evil: 1",
        "[a]b]registry.test/app:v1",
        "[../../x]registry.test/app:v1",
        "registry.test/../../token:v1",
        "registry.test/app@sha256:../../../etc/passwd",
        "http://169.254.169.254/latest",
        "user:password@registry.test/app:v1",
        "a" * 4096,
        "",
        " ",
    ],
    ids=lambda key: ascii(key)[1:30],
)
@pytest.mark.parametrize("path", [VERIFY_PATH, MUTATE_PATH], ids=["verify", "mutate"])
async def test_n34_a_key_that_is_no_reference(site: Site, key: str, path: str) -> None:
    async with unharmed(site):
        reply = await site.gatekeeper.ask(key, path=path)
        assert (reply.admitted, decision(reply, key)) == (set(), "REFERENCE_INVALID")
        assert "value" not in reply.items[key]
        assert not any(json.loads(line).get("msg") == "forged" for line in site.server.log)


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 500_000,
        b'{"request":' * 40_000,
        b'{"apiVersion":' + b"9" * 500_000 + b"}",
        request_body(["a"]).replace(b'"keys"', b'"keys":["b"],"keys"'),
        b"\xff\xfe",
        b"",
        b"null",
        request_body([["a"]]),
        request_body(["a"]).replace(b'"a"', b'"\\ud800"'),
    ],
    ids=["deep", "deep objects", "number", "twice", "bytes", "empty", "null", "lists", "surrogate"],
)
async def test_n21_a_body_that_is_no_request(site: Site, body: bytes) -> None:
    async with unharmed(site):
        reply = await site.gatekeeper.send("POST", VERIFY_PATH, data=body)
        assert reply.items == {}
        assert reply.system_error.startswith("REQUEST_INVALID: ")


# -- HTTP -------------------------------------------------------------------------------------------------------------

START = f"POST {VERIFY_PATH} HTTP/1.1\r\nHost: localhost\r\n".encode()
HIDDEN = head("POST", VERIFY_PATH, len(request_body(["x/smuggled:v1"]))) + request_body(["x/smuggled:v1"])


@pytest.mark.parametrize(
    "data",
    [
        START + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + HIDDEN,
        START + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n" + HIDDEN,
        START + b"Content-Length: 0\r\nContent-Length: %d\r\n\r\n" % len(HIDDEN) + HIDDEN,
        START + b"Content-Length: 0, 5\r\n\r\n" + HIDDEN,
        START + b"Content-Length: +5\r\n\r\n" + HIDDEN,
        START + b"Content-Length: -1\r\n\r\n" + HIDDEN,
        START + b"Content-Length: 0x5\r\n\r\n" + HIDDEN,
        START + b"Content-Length: 5 5\r\n\r\n" + HIDDEN,
        START + b"Content-Length : 5\r\n\r\n" + HIDDEN,
        START + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + HIDDEN,
        START + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + HIDDEN,
        START + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + HIDDEN,
        START + b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n" + HIDDEN,
        START + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n" + HIDDEN,
        START + b"Transfer-Encoding: chunked\r\n\r\n0x1\r\na\r\n0\r\n\r\n" + HIDDEN,
        START + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n" + HIDDEN,
        START + b"X: a\r\n folded\r\nContent-Length: 0\r\n\r\n" + HIDDEN,
        START + b"X: a\x00b\r\nContent-Length: 0\r\n\r\n" + HIDDEN,
        START + b"X: a\rContent-Length: 0\r\n\r\n" + HIDDEN,
        START + b"\xff\xff: a\r\n\r\n" + HIDDEN,
        START + b"X: " + b"a" * 1_000_000 + b"\r\n\r\n",
        START + b"X: a\r\n" * 50_000 + b"\r\n",
        b"POST " + b"/" * 1_000_000 + b" HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01" * 1000,
    ],
    ids=[
        *("CL TE", "TE CL", "CL CL", "CL list", "CL plus", "CL minus", "CL hex", "CL words", "CL space", "TE other"),
        *("TE last", "TE space", "TE tab", "chunk minus", "chunk hex", "chunk huge", "fold", "nul", "CR", "name"),
        *("field", "fields", "target", "h2", "version", "TLS"),
    ],
)
async def test_n21_a_request_that_two_readers_would_end_in_two_places(site: Site, data: bytes) -> None:
    """It gets one answer, an error, and the connection ends: nothing behind it is a request."""
    async with unharmed(site):
        received = await sent(site, data)
        assert received.count(b"HTTP/1.") <= 1
        assert not received or re.match(rb"HTTP/1\.[01] 4", received)
        assert b"smuggled" not in received


# -- slow and many ----------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def crowd(site: Site, tls: ssl.SSLContext | None, starts: Iterable[bytes]) -> AsyncIterator[list[RawCaller]]:
    """Many connections, each of which sends its start and then nothing."""
    async with contextlib.AsyncExitStack() as stack:
        callers = []
        for start in starts:
            caller = await RawCaller.connect(site.server.port, tls)
            callers.append(await stack.enter_async_context(caller))
            await caller.send(start)
        yield callers


@pytest.mark.parametrize(
    "start",
    [b"", START, START + b"Content-Length: 1000\r\n\r\n{", START + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"],
    ids=["nothing", "half a head", "half a body", "half a chunk"],
)
async def test_n22_a_crowd_that_never_goes_on(site: Site, start: bytes) -> None:
    async with unharmed(site), crowd(site, site.certificates.client_context(), [start] * CALLERS):
        await site.admitted(site.honest_key())


@pytest.mark.parametrize("start", [b"", b"\x16\x03\x01\x02\x00\x01", secrets.token_bytes(2000)])
async def test_n22_handshakes_that_never_end(site: Site, start: bytes) -> None:
    async with unharmed(site), crowd(site, None, [start] * 300):
        await site.admitted(site.honest_key())


async def test_n22_callers_that_do_not_read_their_answers(site: Site) -> None:
    keys = [f"no reference {number} {'x' * 150}" for number in range(1500)]
    body = request_body(keys)
    request = head("POST", VERIFY_PATH, len(body)) + body
    async with unharmed(site, growth=128 * MIB), crowd(site, site.certificates.client_context(), [request] * 10):
        await site.admitted(site.honest_key())


async def test_n69_a_hundred_large_signatures_at_once_keep_nobody_else_waiting(site: Site) -> None:
    """A probe that is not answered restarts the pod. Here each is answered while signatures are verified."""
    large = signer(key=rsa.generate_private_key(65537, 4096))
    registry = site.registry()
    keys = []
    for number in range(100):
        image = registry.push_image("app", tag=f"v{number}", content=secrets.token_bytes(8))
        sign(registry, image, large)
        keys.append(f"{registry.host}/app:v{number}")
    async with unharmed(site, growth=128 * MIB):
        asking = asyncio.create_task(site.gatekeeper.ask(*keys))
        while not asking.done():
            async with asyncio.timeout(DEADLINE):
                assert await site.server.probe("/healthz") == 200
        for key in keys:
            await site.admitted(key)


# -- strangers --------------------------------------------------------------------------------------------------------


async def test_n66_a_caller_of_a_foreign_authority_or_of_none(site: Site) -> None:
    key = site.honest_key()
    async with unharmed(site):
        for context in (
            site.certificates.client_context(client_ca=trustme.CA()),
            site.certificates.client_context(client_ca=site.certificates.server_ca),
            site.certificates.client_context(name=None),
        ):
            with contextlib.suppress(OSError, ssl.SSLError):
                async with await RawCaller.connect(site.server.port, context) as caller:
                    await caller.send(head("POST", VERIFY_PATH, len(request_body([key]))) + request_body([key]))
                    assert await caller.until_closed() == b""
        assert not any(request.path.startswith(f"/v2/{key.split('/')[1]}") for request in site.honest.requests)


async def test_n67_a_caller_that_speaks_tls_1_2(site: Site) -> None:
    async with unharmed(site):
        context = site.certificates.client_context()
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises(OSError):  # noqa: PT011 - an alert of TLS, or a reset, whichever comes first
            await RawCaller.connect(site.server.port, context)


async def test_n67_a_caller_that_speaks_no_tls(site: Site) -> None:
    async with unharmed(site), await RawCaller.connect(site.server.port) as caller:
        await caller.send(HIDDEN)
        assert not (await caller.until_closed()).startswith(b"HTTP/")
