"""One HTTP exchange with a registry, its token service or its blob storage: sessions, limits, retries, errors.

Rules:
- Redirects are never followed here, cookies never kept, content never decompressed, ~/.netrc never read.
- Every body is read up to a cap. What is longer is reported as such, not cut to size and not held in memory.
- A connection belongs to one set of egress rules and one TLS identity: the sessions are kept apart by both. Hosts that
  the operator did not name see neither the client certificate nor a connection to anywhere but a public address.
- What may pass (connect failures, timeouts, 5xx, cut bodies) is tried again, twice at most, with jitter; what will not
  (certificates, refused addresses, 4xx) is not. 429 is never retried here: the wait is the caller's. Besides, aiohttp
  sends a GET once more when its connection broke, because it may have been an old one.
- Errors name the host and what was asked, never a header, a query or a body: those may hold secrets. The texts of
  aiohttp's exceptions are not passed on, because some hold whole URLs.

What does not belong here: what a status means to OCI (oras.py), who gets which credentials (tokens.py).
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Final

import aiohttp
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
    guarded_connector,
    load_client_certificate,
    tls_context,
)
from provider.errors import ConfigurationError, Undecided
from provider.stores.profile import OrasStoreSettings, RegistryProfile, Route

MAX_RETRIES: Final = 2  # after the first try; more only hammers a registry that is down
MAX_ERROR_BYTES: Final = 64 * 1024  # of the body of an answer that is not 200
MAX_RETRY_AFTER: Final = 3600.0  # seconds; a registry that asks for more is asked again after an hour all the same
MAX_HOSTS: Final = 1024  # hosts whose concurrency is remembered
CERTIFICATE_CHECK_SECONDS: Final = 60.0  # how often the files of a client certificate are looked at for rotation

USER_AGENT: Final = f"countersign/{__version__}"


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
        monotonic: seconds of a clock that never goes back.

    Raises:
        ConfigurationError: CERTIFICATE_INVALID, when the TLS material of a profile cannot be used.
    """

    def __init__(
        self,
        settings: OrasStoreSettings,
        proxies: ProxySettings | None = None,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._proxies = proxies or ProxySettings()
        self._system_tls = tls_context()
        self._tls = {
            profile.host: _ProfileTls(profile, monotonic) for profile in settings.profiles if profile.has_own_tls
        }
        self._sessions: dict[tuple[str, EgressRules, bool], aiohttp.ClientSession] = {}
        self._closed = False
        self._slots: LRUCache[str, asyncio.Semaphore] = LRUCache(MAX_HOSTS)
        self._timeout = aiohttp.ClientTimeout(
            total=settings.attempt_timeout_seconds, sock_connect=settings.connect_timeout_seconds
        )

    async def send(self, request: Request, route: Route) -> Response:
        """Send a request, again where that may help. The caller bounds the time of the whole.

        Returns:
            An answer whose status is below 500 (or 501) and not 408 or 429.

        Raises:
            Undecided: REGISTRY_UNAVAILABLE, REGISTRY_THROTTLED, REGISTRY_PROTOCOL.
        """
        for attempt in range(MAX_RETRIES + 1):
            if attempt:
                await asyncio.sleep(self._backoff(attempt))
            try:
                response = await self._exchange(request, route)
            except _Transient as failure:
                problem = str(failure)
                continue
            if response.status == 429:
                raise Undecided(
                    "REGISTRY_THROTTLED",
                    f"{request.host} limits the request rate: 429 for {request.what}",
                    retry_after=retry_after_seconds(response.headers),
                )
            if response.status != 408 and (response.status < 500 or response.status == 501):
                return response
            problem = f"answered {response.status}"
            if (wait := retry_after_seconds(response.headers)) is not None:
                raise _unavailable(request, problem, retry_after=wait)
        raise _unavailable(request, problem)

    def _backoff(self, attempt: int) -> float:
        jitter = random.uniform(0.5, 1.5)  # noqa: S311 - spreads load, protects nothing
        return float(self._settings.retry_backoff_seconds * 2 ** (attempt - 1) * jitter)

    async def _exchange(self, request: Request, route: Route) -> Response:
        """One try.

        Raises:
            _Transient: it may work the next time.
            Undecided: it will not.
        """
        try:
            proxy = self._proxies.for_url(request.url)
            route.rules.check_host(request.url.raw_host or "")
            async with self._slot(request.host):
                return await self._send_once(request, route, proxy)
        except EgressRefusedError as refusal:
            raise _egress_refused(request, refusal) from None
        except aiohttp.ClientConnectorCertificateError as error:
            raise _untrusted_certificate(request, error) from None
        except aiohttp.ClientHttpProxyError as error:
            raise _unavailable(request, f"is behind a proxy that answered {error.status} to CONNECT") from None
        except aiohttp.ClientConnectorError as error:
            if isinstance(error.os_error, EgressRefusedError):
                raise _egress_refused(request, error.os_error) from None
            raise _Transient(_connect_problem(error)) from None
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError, UnicodeError):  # UnicodeError: no name for DNS
            raise _protocol(request, "is no host that can be asked") from None
        except aiohttp.ClientResponseError:  # raised only for answers that are not HTTP: raise_for_status is off
            raise _protocol(request, "gave an answer that is not HTTP within limits") from None
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
        async with self._session(route, proxied=proxy is not None).request(
            request.method,
            request.url,
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

    def _slot(self, host: str) -> asyncio.Semaphore:
        slot = self._slots.get(host)
        if slot is None:
            slot = self._slots[host] = asyncio.Semaphore(self._settings.max_connections_per_host)
        return slot

    def _session(self, route: Route, *, proxied: bool) -> aiohttp.ClientSession:
        # A proxy is the operator's: its address is judged by its own rules, and never shared with direct connections.
        rules = LOOPBACK_ALLOWED if proxied else route.rules
        own = self._tls.get(route.profile.host)
        if own is not None:
            own.refresh()
        key = (route.profile.host if own else "", rules, route.foreign if own else False)
        session = self._sessions.get(key)
        if self._closed:
            raise Undecided("REGISTRY_UNAVAILABLE", "the store was closed, as the configuration changed meanwhile")
        if session is None:
            tls = self._system_tls if own is None else own.foreign if route.foreign else own.context
            session = self._sessions[key] = aiohttp.ClientSession(
                connector=guarded_connector(
                    rules, tls=tls, max_connections_per_host=self._settings.max_connections_per_host
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity"},
                timeout=self._timeout,
                auto_decompress=False,
                trust_env=False,
            )
        return session

    async def aclose(self) -> None:
        """Close every connection, for good: what is under way ends undecided."""
        self._closed = True
        sessions, self._sessions = self._sessions, {}
        for session in sessions.values():
            await session.close()


class _ProfileTls:
    """The TLS contexts of a profile; a renewed client certificate is taken up without a restart."""

    def __init__(self, profile: RegistryProfile, monotonic: Callable[[], float]) -> None:
        self._certificate, self._key = profile.client_certificate, profile.client_key
        self._monotonic = monotonic
        self._looked = monotonic()
        self._stamp = self._stamp_now()
        self.context = tls_context(
            ca_pem=profile.ca_bundle,
            ca_file=profile.ca_file,
            client_certificate=self._certificate,
            client_key=self._key,
        )
        self.foreign = tls_context(ca_pem=profile.ca_bundle, ca_file=profile.ca_file, system_roots=True)

    def refresh(self) -> None:
        """Load the client certificate again if its files changed; a bad or half-written pair leaves the good one."""
        if self._certificate is None or self._monotonic() < self._looked + CERTIFICATE_CHECK_SECONDS:
            return
        self._looked = self._monotonic()
        stamp = self._stamp_now()
        if stamp == self._stamp:
            return
        try:
            # Into a fresh context first: a failed load would leave a live one with a certificate and no matching key.
            load_client_certificate(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), self._certificate, self._key)
            load_client_certificate(self.context, self._certificate, self._key)
        except ConfigurationError:
            return
        self._stamp = stamp

    def _stamp_now(self) -> tuple[object, ...]:
        return tuple(_file_stamp(path) for path in (self._certificate, self._key))


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


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """The wait that a response asks for (RFC 9110 section 10.2.3), seconds, 0 to MAX_RETRY_AFTER; None without one.

    A date is compared with the response's own Date, so that no clock of ours takes part.
    """
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:9]), MAX_RETRY_AFTER)
    try:
        until, sent = (_http_date(value) for value in (text, headers.get("Date", "")))
    except (ValueError, TypeError, OverflowError):
        return None
    return min(max((until - sent).total_seconds(), 0.0), MAX_RETRY_AFTER)


def _http_date(text: str) -> datetime:
    parsed = parsedate_to_datetime(text)
    return parsed if parsed.tzinfo is not None else parsed.replace(tzinfo=UTC)


def _connect_problem(error: aiohttp.ClientConnectorError) -> str:
    cause = error.os_error
    if isinstance(cause, socket.gaierror):
        return "cannot be found in DNS"
    if isinstance(cause, ssl.SSLError):
        if cause.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"):  # as OpenSSL 3.0 and later say it
            return "does not speak TLS; if it speaks plain HTTP, set plainHttp for it in the Store's registries"
        return f"failed the TLS handshake: {(cause.reason or 'no reason given').replace('_', ' ').lower()}"
    # Not strerror: asyncio puts the address there, and who may name hosts need not learn where they are.
    return f"cannot be connected to: {os.strerror(cause.errno).lower() if cause.errno else 'no reason given'}"


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
