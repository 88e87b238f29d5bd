"""One HTTP exchange with a registry, its token service or its blob storage: sessions, limits, retries, errors.

Rules:
- Redirects are never followed here, cookies never kept, content never decompressed, ~/.netrc never read.
- Every body is read up to a cap. What is longer is reported as such, not cut to size and not held in memory.
- A connection belongs to one set of egress rules and one TLS identity: the sessions are kept apart by both. Hosts that
  the operator did not name see neither the client certificate nor a connection to anywhere but a public address.
- CA files and client certificates that change are taken up without a restart, and with them come new connections: none
  is used again that an authority vouched for which is trusted no more. Files that cannot be used leave the good ones.
- What may pass (connect failures, timeouts, 5xx, cut bodies) is tried again, twice at most, with jitter; what will not
  (certificates, refused addresses, 4xx) is not. After a 429 the request takes its turn again (pacing.py), unless the
  host wants to be left alone for longer than an answer can wait. Besides, aiohttp sends a GET once more when its
  connection broke, because it may have been an old one.
- Errors name the host and what was asked, never a header, a query or a body: those may hold secrets. The texts of
  aiohttp's exceptions are not passed on, because some hold whole URLs.

What does not belong here: what a status means to OCI (oras.py), who gets which credentials (tokens.py).
"""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import aiohttp
import structlog
from cachetools import LRUCache
from multidict import CIMultiDictProxy
from yarl import URL

from provider import __version__
from provider.egress import (
    LOOPBACK_ALLOWED,
    EgressRefusedError,
    EgressRules,
    Proxy,
    ProxySettings,
    connection_problem,
    guarded_connector,
    tls_context,
)
from provider.errors import ConfigurationError, Undecided
from provider.figures import Figure
from provider.lifetimes import retry_after_seconds
from provider.progress import step
from provider.stores.pacing import Pace
from provider.stores.profile import OrasStoreSettings, RegistryProfile, Route

MAX_RETRIES: Final = 2  # after the first try; more only hammers a registry that is down
MAX_THROTTLED: Final = 5  # 429s for one request; one that the pace is kept for rarely gets a second
MAX_ERROR_BYTES: Final = 64 * 1024  # of the body of an answer that is not 200
MAX_HOSTS: Final = 1024  # hosts whose pace is remembered
FILE_CHECK_SECONDS: Final = (
    5.0  # how often the TLS files of a profile are looked at for a change, as long as it is used
)

_NOBODY_BEHIND: Final = frozenset({502, 503, 504})  # what gateways say

USER_AGENT: Final = f"countersign/{__version__}"

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Request:
    """What to send. GET and HEAD, and POST of a form.

    Attributes:
        method: HTTP method.
        url: absolute URL; may be a secret (signed storage URLs).
        what: what it asks for, for errors: "the manifest sha256:...".
        headers: header fields; secret.
        form: form fields to post; secret.
        max_bytes: cap of the body of a 200.
    """

    method: str
    url: URL = field(repr=False)
    what: str
    headers: Mapping[str, str] = field(repr=False)
    max_bytes: int
    form: Mapping[str, str] | None = field(default=None, repr=False)

    @property
    def host(self) -> str:
        """Host, with the port when it is not the scheme's."""
        return self.url.host_port_subcomponent or ""

    def with_header(self, name: str, value: str) -> Request:
        """The same request with one more header field."""
        return replace(self, headers={**self.headers, name: value})


@dataclass(frozen=True, slots=True)
class Response:
    """What came back.

    Attributes:
        status: HTTP status.
        headers: header fields; may hold secrets.
        body: the body, empty when it was over the cap or compressed; may hold secrets.
        oversized: the body of this 200 is larger than the cap.
    """

    status: int
    headers: CIMultiDictProxy[str] = field(repr=False)
    body: bytes = field(default=b"", repr=False)
    oversized: bool = False

    @property
    def media_type(self) -> str:
        """Content-Type without parameters, lower case; empty when absent."""
        return self.headers.get("Content-Type", "").partition(";")[0].strip().lower()


class _Transient(Exception):
    """An exchange failed in a way that another may not. Never leaves this file."""


class Transport:
    """Sends requests for one store. To be closed with `aclose`.

    Args:
        settings: limits and profiles.
        proxies: proxies of the environment, None for none.
        count_answer: told the status of each answer, None for none.
        monotonic: seconds of a clock that never goes back.

    Raises:
        ConfigurationError: CERTIFICATE_INVALID, when the TLS material of a profile cannot be used.
    """

    def __init__(
        self,
        settings: OrasStoreSettings,
        proxies: ProxySettings | None = None,
        *,
        count_answer: Callable[[int | None], None] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._count_answer = count_answer or _count_nothing
        self._proxies = proxies or ProxySettings()
        self._system_tls = tls_context()
        self._tls = {
            profile.host: _ProfileTls(profile, monotonic) for profile in settings.profiles if profile.has_own_tls
        }
        self._sessions: dict[tuple[str, EgressRules, bool], aiohttp.ClientSession] = {}
        self._closed = False
        self._paces: LRUCache[str, Pace] = LRUCache(MAX_HOSTS)
        self._timeout = aiohttp.ClientTimeout(
            total=settings.attempt_timeout_seconds, sock_connect=settings.connect_timeout_seconds
        )

    def figures(self) -> Iterator[Figure]:
        """How many hosts hold requests back, and how many requests there are."""
        paces = tuple(self._paces.values())
        yield Figure("countersign_registry_hosts", sum(pace.limited for pace in paces), ("limited",))
        yield Figure("countersign_registry_hosts", sum(pace.down for pace in paces), ("down",))
        yield Figure("countersign_registry_requests", sum(pace.under_way for pace in paces), ("under_way",))
        yield Figure("countersign_registry_requests", sum(pace.waiting for pace in paces), ("waiting",))

    async def send(self, request: Request, route: Route) -> Response:
        """Send a request, again where that may help. The caller bounds the time of the whole.

        Returns:
            An answer whose status is below 500 (or 501) and not 408 or 429.

        Raises:
            Undecided: REGISTRY_UNAVAILABLE, REGISTRY_THROTTLED, REGISTRY_PROTOCOL.
        """
        pace = self._pace(request.host)
        attempts = refusals = 0
        while True:
            wait = None
            try:
                response = await self._exchange(request, route, pace)
            except _Transient as failure:
                self._count_answer(None)
                problem = str(failure)
            else:
                if response.status == 429:
                    refusals += 1
                    self._check_throttled(request, response, pace, refusals)
                    continue
                if response.status != 408 and (response.status < 500 or response.status == 501):
                    return response
                problem = f"answered {response.status}"
                wait = retry_after_seconds(response.headers)
            attempts += 1
            if attempts > MAX_RETRIES or wait is not None:
                raise _unavailable(request, problem, retry_after=wait)
            with step(f"the next try at {request.host}"):
                await asyncio.sleep(self._backoff(attempts))

    def _check_throttled(self, request: Request, response: Response, pace: Pace, refusals: int) -> None:
        """Let a request that got a 429 take its turn again.

        Raises:
            Undecided: REGISTRY_THROTTLED, when that would take too long.
        """
        wanted = retry_after_seconds(response.headers)
        pause = pace.throttled(wanted)
        if pause > self._settings.throttle_wait_seconds or refusals == MAX_THROTTLED:
            raise Undecided(
                "REGISTRY_THROTTLED",
                f"{request.host} limits the request rate: 429 for {request.what}",
                retry_after=pause if wanted is None else wanted,
            )

    def _backoff(self, attempt: int) -> float:
        jitter = random.uniform(0.5, 1.5)  # noqa: S311 - spreads load, protects nothing
        return float(self._settings.retry_backoff_seconds * 2 ** (attempt - 1) * jitter)

    async def _exchange(self, request: Request, route: Route, pace: Pace) -> Response:
        """One try.

        Raises:
            _Transient: it may work the next time.
            Undecided: it will not.
        """
        try:
            proxy = self._proxies.for_url(request.url)
            route.rules.check_host(request.url.raw_host or "")
            with step(_waited_for(pace, request.host)):
                await pace.turn()
            try:
                with step(f"an answer of {request.host}"):
                    response = await self._send_once(request, route, proxy)
                _tell(pace, response)
                self._count_answer(response.status)
                return response
            finally:
                pace.done()
        except EgressRefusedError as refusal:
            raise _egress_refused(request, refusal) from None
        except aiohttp.ClientConnectorCertificateError as error:
            raise _untrusted_certificate(request, error) from None
        except aiohttp.ClientHttpProxyError as error:
            raise _unavailable(request, f"is behind a proxy that answered {error.status} to CONNECT") from None
        except aiohttp.ClientConnectorError as error:
            if isinstance(error.os_error, EgressRefusedError):
                raise _egress_refused(request, error.os_error) from None
            problem = _connection_problem(error)
            pace.failed(problem)
            raise _Transient(problem) from None
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError, UnicodeError):  # UnicodeError: no name for DNS
            raise _protocol(request, "is no host that can be asked") from None
        except aiohttp.ClientResponseError:  # raised only for answers that are not HTTP: raise_for_status is off
            raise _protocol(request, "gave an answer that is not HTTP within limits") from None
        except aiohttp.ConnectionTimeoutError:
            pace.failed("cannot be connected to in time")
            raise _Transient("cannot be connected to in time") from None
        except TimeoutError:
            raise _Transient("did not answer in time") from None
        except aiohttp.ClientPayloadError:
            raise _Transient("cut its answer short") from None
        except (aiohttp.ClientError, OSError, RuntimeError):  # RuntimeError: what uvloop says of a closed transport
            raise _Transient("closed the connection") from None

    async def _send_once(self, request: Request, route: Route, proxy: Proxy | None) -> Response:
        headers = dict(request.headers)
        if proxy is not None and request.url.scheme == "http":
            headers |= proxy.headers  # the proxy reads the request itself; with https it reads the CONNECT alone
        session, tls = self._session(route, proxied=proxy is not None)
        async with session.request(
            request.method,
            request.url,
            ssl=tls,
            headers=headers,
            data=request.form,
            allow_redirects=False,
            proxy=None if proxy is None else proxy.url,
            proxy_headers=None if proxy is None else proxy.headers,
        ) as answer:
            if request.method == "HEAD":
                return Response(answer.status, answer.headers)
            encoding = answer.headers.get("Content-Encoding", "identity").strip().lower()
            if encoding not in ("identity", ""):
                if answer.status == 200:
                    raise _protocol(request, "compressed its answer although it was asked not to", found=encoding)
                answer.close()
                return Response(answer.status, answer.headers)
            cap = request.max_bytes if answer.status == 200 else MAX_ERROR_BYTES
            body = await _read(answer, cap)
            oversized = body is None and answer.status == 200
            return Response(answer.status, answer.headers, body or b"", oversized)

    def _pace(self, host: str) -> Pace:
        pace = self._paces.get(host)
        if pace is None:
            pace = self._paces[host] = Pace(
                host,
                connections=self._settings.max_connections_per_host,
                longest_wait=self._settings.throttle_wait_seconds,
            )
        return pace

    def _session(self, route: Route, *, proxied: bool) -> tuple[aiohttp.ClientSession, ssl.SSLContext]:
        """The session for a way, and the TLS context now: aiohttp uses a connection again for the same context only."""
        # A proxy is the operator's: its address is judged by its own rules, and never shared with direct connections.
        rules = LOOPBACK_ALLOWED if proxied else route.rules
        own = self._tls.get(route.profile.host)
        tls = self._system_tls
        if own is not None:
            own.refresh()
            tls = own.foreign if route.foreign else own.context
        key = (route.profile.host if own else "", rules, route.foreign if own else False)
        session = self._sessions.get(key)
        if self._closed:
            raise Undecided("REGISTRY_UNAVAILABLE", "the store was closed, as the configuration changed meanwhile")
        if session is None:
            session = self._sessions[key] = aiohttp.ClientSession(
                connector=guarded_connector(
                    rules, tls=self._system_tls, max_connections_per_host=self._settings.max_connections_per_host
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity"},
                timeout=self._timeout,
                auto_decompress=False,
                trust_env=False,
            )
        return session, tls

    async def aclose(self) -> None:
        """Close every connection, for good: what is under way ends undecided."""
        self._closed = True
        sessions, self._sessions = self._sessions, {}
        for session in sessions.values():
            await session.close()


def _count_nothing(_status: int | None) -> None:
    """Nobody counts."""


def _waited_for(pace: Pace, host: str) -> str:
    return f"its turn at {host}, which limits the request rate" if pace.limited else f"a free connection to {host}"


def _tell(pace: Pace, response: Response) -> None:
    """Tell the pace of a host what its answer says about it; 429 is told where it is decided on."""
    if response.status in _NOBODY_BEHIND:
        pace.failed(f"answers {response.status}")
    elif response.status != 429:
        pace.answered()


class _ProfileTls:
    """The TLS contexts of a profile, made anew when one of its files changes.

    Args:
        profile: the profile.
        monotonic: seconds of a clock that never goes back.

    Attributes:
        context: for the registry and the hosts that the operator listed.
        foreign: for others: no client certificate, and the system's roots trusted too.

    Raises:
        ConfigurationError: CERTIFICATE_INVALID, when a file cannot be used.
    """

    def __init__(self, profile: RegistryProfile, monotonic: Callable[[], float]) -> None:
        self._profile = profile
        self._monotonic = monotonic
        self._looked = monotonic()
        self._told = ""
        self._stamp = self._stamp_now()
        self.context, self.foreign = self._load()

    def refresh(self) -> None:
        """Load the files again if one changed; what is half-written or does not fit together leaves the good ones."""
        if self._monotonic() < self._looked + FILE_CHECK_SECONDS:
            return
        self._looked = self._monotonic()
        stamp = self._stamp_now()
        if stamp == self._stamp:
            return
        try:
            self.context, self.foreign = self._load()
        except ConfigurationError as error:
            if self._told != error.detail:
                self._told = error.detail
                _log.warning(
                    "TLS files of a registry cannot be used, the last good ones stay",
                    registry=self._profile.host,
                    reason=error.detail,
                )
            return
        self._stamp, self._told = stamp, ""

    def _load(self) -> tuple[ssl.SSLContext, ssl.SSLContext]:
        profile = self._profile
        own = tls_context(
            ca_pem=profile.ca_bundle,
            ca_file=profile.ca_file,
            client_certificate=profile.client_certificate,
            client_key=profile.client_key,
        )
        return own, tls_context(ca_pem=profile.ca_bundle, ca_file=profile.ca_file, system_roots=True)

    def _stamp_now(self) -> tuple[object, ...]:
        profile = self._profile
        return tuple(map(_file_stamp, (profile.ca_file, profile.client_certificate, profile.client_key)))


def _file_stamp(path: Path | None) -> object:
    try:
        status = None if path is None else path.stat()
    except OSError:
        return None
    return status and (status.st_ino, status.st_mtime_ns, status.st_size)


async def _read(answer: aiohttp.ClientResponse, cap: int) -> bytes | None:
    """The body, or None when it is longer than `cap` bytes; then the connection is given up, not drained."""
    declared = answer.content_length
    if declared is not None and declared > cap:
        answer.close()
        return None
    chunks: list[bytes] = []
    length = 0
    async for chunk in answer.content.iter_any():
        length += len(chunk)
        if length > cap:
            answer.close()
            return None
        chunks.append(chunk)
    return b"".join(chunks)


def _connection_problem(error: aiohttp.ClientConnectorError) -> str:
    cause = error.os_error
    # As OpenSSL 3.0 and later say it.
    if isinstance(cause, ssl.SSLError) and cause.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"):
        return "does not speak TLS; if it speaks plain HTTP, set plainHttp for it in the Store's registries"
    return connection_problem(error)


def _unavailable(request: Request, problem: str, *, retry_after: float | None = None) -> Undecided:
    return Undecided(
        "REGISTRY_UNAVAILABLE", f"{request.host} {problem}, asked for {request.what}", retry_after=retry_after
    )


def _protocol(request: Request, problem: str, *, found: str | None = None) -> Undecided:
    return Undecided("REGISTRY_PROTOCOL", f"{request.host} {problem}, asked for {request.what}", found=found)


def _untrusted_certificate(request: Request, error: aiohttp.ClientConnectorCertificateError) -> Undecided:
    cause = error.certificate_error
    verdict = getattr(cause, "verify_message", "") or "it does not verify"
    return Undecided(
        "REGISTRY_UNAVAILABLE",
        f"the TLS certificate of {request.host} is not trusted: {verdict}",
        remediation="Put the registry's CA into caBundle or caFile of its entry under registries of the Store.",
    )


def _egress_refused(request: Request, refusal: EgressRefusedError) -> Undecided:
    return Undecided(
        "REGISTRY_PROTOCOL",
        f"{request.host} has an address of the class {refusal.kind.name.lower().replace('_', '-')}, which is not "
        f"connected to, asked for {request.what}",
        remediation="If it is meant, list the registry under registries of the Store, or the host under its tokenHosts "
        "or redirectHosts; link-local and metadata addresses are always refused.",
    )
