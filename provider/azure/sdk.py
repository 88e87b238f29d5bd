"""The Azure SDK within our limits: its transport, its retries, its log lines, and when it is imported.

Rules:
- Nothing of the SDK is imported with this file: half a second and 10 MiB that nobody pays who is not in Azure.
- Connections obey egress rules, the proxies of the environment and the roots of the system. Answers are bounded in
  bytes and not decompressed; time is bounded by whoever calls.
- A connection is tried once more. A status is not: the wait that it asks for is the caller's to keep, and the SDK would
  sleep through it, however long it is.

What does not belong here: credentials (identity.py), what an exception means (explanations.py).
Source: azure-core 1.41.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import aiohttp
from yarl import URL

from provider.egress import LOOPBACK_ALLOWED, PRIVATE_ALLOWED, EgressRules, ProxySettings, guarded_connector

if TYPE_CHECKING:
    from azure.core.pipeline.transport import AsyncHttpTransport

MAX_ANSWER_BYTES: Final = 1024 * 1024  # of any answer; secrets of Key Vault have at most 25 KiB
CONNECT_SECONDS: Final = 3.0
READ_SECONDS: Final = 5.0  # between two pieces of an answer; Azure answers within a second

# One more try for a connection, none for a status: the wait that a status asks for is kept by the caller.
RETRIES: Final[Mapping[str, Any]] = {"retry_total": 1, "retry_status": 0, "retry_backoff_factor": 0.2}


def load_sdk() -> None:
    """Import what is slow to import. Failures are told by us, once, so the SDK's own log lines are not wanted."""
    import azure.core.pipeline.transport
    import azure.identity.aio  # noqa: F401

    for name in ("azure", "msal"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


class Answered(NamedTuple):
    """What the SDK was last answered, for exceptions of its parsers, which do not say.

    Attributes:
        status: HTTP status.
        headers: header fields.
    """

    status: int
    headers: Mapping[str, str]


def guarded_transport(
    proxies: ProxySettings | None,
    *,
    rules: EgressRules = PRIVATE_ALLOWED,
    note: Callable[[Answered | None], None] = lambda _: None,
) -> AsyncHttpTransport[Any, Any]:
    """A transport for one client of the SDK, which closes it: proxies, addresses, roots and limits are ours.

    Args:
        proxies: proxies of the environment; None for none, whatever the environment says.
        rules: which addresses may be connected to.
        note: told of each answer, and None when a request begins.
    """
    from azure.core.pipeline.transport import AioHttpTransport, AsyncHttpTransport

    class GuardedTransport(AsyncHttpTransport[Any, Any]):
        """Two transports of the SDK, each with a session of ours: one directly, one by a proxy."""

        def __init__(self) -> None:
            self._inner: dict[bool, AioHttpTransport] = {}

        async def open(self) -> None:
            """Sessions are opened when they are needed."""

        async def close(self) -> None:
            inner, self._inner = self._inner, {}
            for transport in inner.values():
                await transport.close()

        async def __aexit__(self, *_: object) -> None:
            await self.close()

        async def send(self, request: Any, **config: Any) -> Any:
            note(None)
            url = URL(request.url)
            proxy = None if proxies is None else proxies.for_url(url)
            (rules if proxy is None else LOOPBACK_ALLOWED).check_host(url.raw_host or "")
            if proxy is not None:
                config |= {"proxy": proxy.url, "proxy_headers": proxy.headers}
            config.pop("proxies", None)
            transport = self._inner.get(proxy is not None)
            if transport is None:
                transport = self._inner[proxy is not None] = AioHttpTransport(
                    session=_session(rules if proxy is None else LOOPBACK_ALLOWED),
                    connection_timeout=CONNECT_SECONDS,
                    read_timeout=READ_SECONDS,
                )
            response = await transport.send(request, **config)
            note(Answered(response.status_code, response.headers))
            return response

    return GuardedTransport()


def _session(rules: EgressRules) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=guarded_connector(rules),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"Accept-Encoding": "identity"},
        response_class=_BoundedResponse,
        auto_decompress=False,
        trust_env=False,
    )


class _BoundedResponse(aiohttp.ClientResponse):
    """A response whose body is read up to MAX_ANSWER_BYTES and not decompressed."""

    async def read(self) -> bytes:
        body = bytearray()
        if self.headers.get("Content-Encoding", "identity").strip().lower() in ("identity", ""):
            async for chunk in self.content.iter_any():
                body += chunk
                if len(body) > MAX_ANSWER_BYTES:
                    break
            else:
                return bytes(body)
        self.close()
        raise aiohttp.ClientPayloadError("the answer is compressed or larger than may be")
