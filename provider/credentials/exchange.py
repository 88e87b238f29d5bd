"""One HTTP exchange with a service that gives credentials, and what it answers.

Rules:
- Bounded in time and bytes. Redirects are never followed, cookies never kept, content never decompressed.
- What may pass (connect failures, cut answers, 5xx) is tried once more; what will not is not. 429 is the caller's: the
  wait that it asks for is kept, not slept through.
- A connection belongs to one set of egress rules. A proxy of the environment is used where one is set, but never on the
  way to a metadata service.
- A failure names the host and the kind of trouble, never a header, a query or a body: those hold secrets, and a server
  may send back what it was sent.

What does not belong here: who is asked for what (the sources), keeping (renewal.py).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp
from multidict import CIMultiDictProxy
from yarl import URL

from provider import __version__, strict_json
from provider.egress import (
    LOOPBACK_ALLOWED,
    EgressRefusedError,
    EgressRules,
    ProxySettings,
    connection_problem,
    guarded_connector,
)
from provider.lifetimes import retry_after_seconds

MAX_ANSWER_BYTES: Final = 256 * 1024  # tokens of large directories reach some 10 KiB
ATTEMPT_SECONDS: Final = 4.0  # one exchange, so that a dead connection leaves time for another
CONNECT_SECONDS: Final = 3.0  # TCP connect and TLS handshake
BACKOFF_SECONDS: Final = 0.2  # mean wait before the second try
MAX_SIDE_BY_SIDE: Final = 16  # exchanges with one host; there is one a registry
USER_AGENT: Final = f"countersign/{__version__}"


class ExchangeFailedError(Exception):
    """There was no answer that could be read. Never leaves credentials/.

    Attributes:
        problem: what happened, such as "login.example.com did not answer in time".
        retry_after: seconds that the service asks to be left alone for.
    """

    def __init__(self, problem: str, *, retry_after: float | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.retry_after = retry_after


class _TransientError(Exception):
    """It may work the next time. Never leaves this file."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back, of a status below 500 that is not 429.

    Attributes:
        status: HTTP status.
        headers: header fields; may hold secrets.
        body: the body; may hold secrets.
    """

    status: int
    headers: CIMultiDictProxy[str] = field(repr=False)
    body: bytes = field(repr=False)

    def document(self) -> dict[str, Any]:
        """The body as a JSON object; empty when it is none."""
        try:
            value = strict_json.loads(self.body, max_bytes=MAX_ANSWER_BYTES)
        except strict_json.MalformedJSONError:
            return {}
        return value if isinstance(value, dict) else {}


class Exchanges:
    """Sends requests to such services. To be closed with `aclose`.

    Args:
        proxies: proxies of the environment, None for none.
        attempt_seconds: the most that one exchange may take; there are two at most.
    """

    def __init__(self, proxies: ProxySettings | None = None, *, attempt_seconds: float = ATTEMPT_SECONDS) -> None:
        self._proxies = proxies or ProxySettings()
        self._timeout = aiohttp.ClientTimeout(total=attempt_seconds, sock_connect=CONNECT_SECONDS)
        self._sessions: dict[EgressRules, aiohttp.ClientSession] = {}

    async def send(
        self,
        method: str,
        url: URL,
        *,
        rules: EgressRules,
        headers: Mapping[str, str] | None = None,
        form: Mapping[str, str] | None = None,
        data: bytes | None = None,
    ) -> Answer:
        """Send a request and read the answer.

        Args:
            method: HTTP method.
            url: absolute URL.
            rules: which addresses the host may have.
            headers: header fields; may hold secrets.
            form: a form to post; may hold secrets.
            data: a body to post in its place.

        Raises:
            ExchangeFailedError: there was no answer, or one of 429 or from 500 up.
        """
        host = url.host_port_subcomponent or ""
        problem = ""
        for attempt in range(2):
            if attempt:
                await asyncio.sleep(BACKOFF_SECONDS * random.uniform(0.5, 1.5))  # noqa: S311 - spreads load
            try:
                answer = await self._send_once(method, url, rules, headers=headers, body=data if form is None else form)
            except _TransientError as failure:
                problem = str(failure)
                continue
            if answer.status != 429 and answer.status < 500:
                return answer
            problem = "limits the request rate (429)" if answer.status == 429 else f"answered {answer.status}"
            wait = retry_after_seconds(answer.headers)
            if answer.status == 429 or wait is not None:
                raise ExchangeFailedError(f"{host} {problem}", retry_after=wait)
        raise ExchangeFailedError(f"{host} {problem}")

    async def _send_once(
        self,
        method: str,
        url: URL,
        rules: EgressRules,
        *,
        headers: Mapping[str, str] | None,
        body: Mapping[str, str] | bytes | None,
    ) -> Answer:
        host = url.host_port_subcomponent or ""
        proxy = None if rules.metadata_service else self._proxies.for_url(url)
        try:
            rules.check_host(url.raw_host or "")
            async with self._session(rules if proxy is None else LOOPBACK_ALLOWED).request(
                method,
                url,
                headers=headers,
                data=body,
                allow_redirects=False,
                proxy=None if proxy is None else proxy.url,
                proxy_headers=None if proxy is None else proxy.headers,
            ) as answer:
                return Answer(answer.status, answer.headers, await _read(answer, host))
        except EgressRefusedError as refusal:
            kind = refusal.kind.name.lower().replace("_", "-")
            raise ExchangeFailedError(f"{host} is an address of the class {kind}, which is not connected to") from None
        except aiohttp.ClientHttpProxyError as error:
            raise ExchangeFailedError(f"{host} is behind a proxy that answered {error.status} to CONNECT") from None
        except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorError) as error:
            if isinstance(error, aiohttp.ClientConnectorError) and not isinstance(error.os_error, EgressRefusedError):
                raise _TransientError(connection_problem(error)) from None
            raise ExchangeFailedError(f"{host} {connection_problem(error)}") from None
        except TimeoutError:
            raise _TransientError("did not answer in time") from None
        except (aiohttp.InvalidURL, aiohttp.ClientResponseError, UnicodeError):  # UnicodeError: no name for DNS
            raise ExchangeFailedError(f"{host} gave an answer that is not HTTP within limits") from None
        except (aiohttp.ClientError, OSError, RuntimeError):  # RuntimeError: what uvloop says of a closed transport
            raise _TransientError("closed the connection") from None

    def _session(self, rules: EgressRules) -> aiohttp.ClientSession:
        session = self._sessions.get(rules)
        if session is None:
            session = self._sessions[rules] = aiohttp.ClientSession(
                connector=guarded_connector(rules, max_connections_per_host=MAX_SIDE_BY_SIDE),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity"},
                timeout=self._timeout,
                auto_decompress=False,
                trust_env=False,
            )
        return session

    async def aclose(self) -> None:
        """Close every connection."""
        sessions, self._sessions = self._sessions, {}
        for session in sessions.values():
            await session.close()


async def _read(answer: aiohttp.ClientResponse, host: str) -> bytes:
    if answer.headers.get("Content-Encoding", "identity").strip().lower() not in ("identity", ""):
        answer.close()
        raise ExchangeFailedError(f"{host} compressed its answer although it was asked not to")
    body = bytearray()
    async for chunk in answer.content.iter_any():
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            answer.close()
            raise ExchangeFailedError(f"{host} answered with more than {MAX_ANSWER_BYTES} bytes")
    return bytes(body)
