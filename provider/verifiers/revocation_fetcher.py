"""Fetches OCSP responses and CRLs for the revocation check, and keeps what the check found good.

Drives a generator of notation/ (revocation.check_chain, verification.verify): fetches each batch that it yields, all
queries at once, and sends back the answers. What goes wrong on the way is an answer too, a FetchFailure.

Rules:
- Addresses come from certificates, so from strangers: http only, no redirects, public addresses only unless the
  settings say otherwise, capped bodies, no decompression, a time limit for each exchange.
- An answer is kept only when the check says that it is authentic and current (Keep), and until it is due for
  replacement. CRLs are kept read and indexed. Nothing is written to disk: read-only file systems work, and there is no
  file for anybody to tamper with.
- A kept answer of some age (`refresh_seconds`) is fetched anew when it is needed, because authorities publish a
  revocation long before the old answer ends. When nobody can be reached, the kept one still serves.
- Equal queries share one fetch. Who gives up waiting cancels nobody.
- A failure is remembered for some seconds, so that a dead server does not delay every image by its time limit.
- Large CRLs are read in a thread, one at a time, and few of them are held in memory at once.

What does not belong here: what to ask and what the answers mean (notation/revocation.py).
Sources: RFC 6960 appendix A; RFC 5280 section 4.2.1.13; the limits are named where they are defined.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeVar

import aiohttp
from yarl import URL

from provider import __version__
from provider.cache import ByteBoundedCache, SingleFlight, Tally
from provider.egress import (
    LOOPBACK_ALLOWED,
    PRIVATE_ALLOWED,
    PUBLIC_ONLY,
    EgressRefusedError,
    EgressRules,
    Proxy,
    ProxySettings,
    guarded_connector,
    is_listed,
)
from provider.errors import Refused, Undecided
from provider.figures import Figure
from provider.notation.certificates import Certificate
from provider.notation.crl import CRL_TIMEOUT_SECONDS, MAX_CRL_BYTES, RevocationList
from provider.notation.ocsp import MAX_RESPONSE_BYTES, RESPONSE_TIMEOUT_SECONDS, OcspQuery, OcspResponse
from provider.notation.revocation import Answer, Fetch, FetchFailure, Keep, Query, ServerOutcome
from provider.progress import Stage, step

LARGE_CRL_BYTES: Final = 64 * 1024  # from here on reading and verifying takes over a millisecond: done in the thread
HUGE_CRL_BYTES: Final = 1024 * 1024  # from here on a body counts against MAX_HUGE_CRLS
MAX_HUGE_CRLS: Final = 2  # bodies over HUGE_CRL_BYTES in memory at once: at worst some 300 MiB with the index of one
MAX_CONNECTIONS_PER_HOST: Final = 8  # sockets to one responder
FAILURE_BYTES: Final = 1024  # what a remembered failure takes, roughly
MAX_FAILURE_BYTES: Final = 1024 * 1024  # about a thousand of them

T = TypeVar("T")

_NO_HOST: Final = "an address without a host"


@dataclass(frozen=True, slots=True)
class RevocationSettings:
    """Limits and permissions of the fetcher.

    Attributes:
        allow_private_addresses: responders may have private addresses: an authority of one's own.
        allowed_hosts: the only hosts that may be asked, `host` or `host:port`; empty: any. A host listed here may be
            the loopback interface too, when private addresses are allowed.
        ocsp_timeout_seconds: for one OCSP exchange, connecting included.
        crl_timeout_seconds: for one download of a CRL, connecting included.
        max_ocsp_bytes: memory for kept OCSP responses; one takes about 4 KiB.
        max_crl_bytes: memory for kept CRLs with their indexes; 100,000 entries take about 18 MiB.
        refresh_seconds: age from which on a kept answer is fetched anew when it is needed; None: not before it ends.
        failure_seconds: how long a server that failed is not asked again; 0 asks every time.
    """

    allow_private_addresses: bool = False
    allowed_hosts: frozenset[str] = frozenset()
    ocsp_timeout_seconds: float = RESPONSE_TIMEOUT_SECONDS
    crl_timeout_seconds: float = CRL_TIMEOUT_SECONDS
    max_ocsp_bytes: int = 16 * 1024 * 1024
    max_crl_bytes: int = 128 * 1024 * 1024
    refresh_seconds: float | None = 3600.0
    failure_seconds: float = 5.0


@dataclass(frozen=True, slots=True)
class RevocationTallies:
    """How often answers were looked for among those kept, by all fetchers that share this."""

    responses: Tally = field(default_factory=Tally)
    lists: Tally = field(default_factory=Tally)

    def figures(self) -> Iterator[Figure]:
        """The counts."""
        yield from self.responses.figures("ocsp")
        yield from self.lists.figures("crl")


class _Kept(NamedTuple):
    """An answer that was judged good, and when that was."""

    answer: OcspResponse | RevocationList
    since: float


class RevocationFetcher:
    """Drives revocation checks and keeps their answers. One for a process, so that all verifiers share what is kept.

    Args:
        settings: limits and permissions.
        proxies: which proxy leads where; none by default.
        clock: seconds since the epoch. A wall clock, because answers end at a time of day; whatever it says, the check
            judges every answer again by the time of its decision.
        tallies: where look-ups are counted.
    """

    def __init__(
        self,
        settings: RevocationSettings | None = None,
        proxies: ProxySettings | None = None,
        *,
        clock: Callable[[], float] = time.time,
        tallies: RevocationTallies | None = None,
    ) -> None:
        tallies = tallies or RevocationTallies()
        self._settings = settings or RevocationSettings()
        self._proxies = proxies or ProxySettings()
        self._clock = clock
        self._responses: ByteBoundedCache[Fetch, _Kept] = ByteBoundedCache(
            self._settings.max_ocsp_bytes, monotonic=clock, tally=tallies.responses
        )
        self._lists: ByteBoundedCache[Fetch, _Kept] = ByteBoundedCache(
            self._settings.max_crl_bytes, monotonic=clock, tally=tallies.lists
        )
        self._list_ends: dict[Fetch, float] = {}  # of those kept, and of some that were
        self._failures: ByteBoundedCache[Fetch, FetchFailure] = ByteBoundedCache(MAX_FAILURE_BYTES, monotonic=clock)
        self._flights: SingleFlight[Fetch, Answer] = SingleFlight()
        self._sessions: dict[tuple[EgressRules, bool], aiohttp.ClientSession] = {}
        self._huge = asyncio.Semaphore(MAX_HUGE_CRLS)
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="crl-reader")

    async def run(self, inquiry: Generator[tuple[Query, ...], Mapping[Query, Answer], T]) -> T:
        """Run a generator to its end.

        Args:
            inquiry: yields batches of queries and takes the answers; it need not have a query at all.

        Returns:
            What it returns.

        Raises:
            CountersignError: whatever it raises. Failures of the network are answers, not errors.
        """
        try:
            batch = next(inquiry)
            while True:
                batch = inquiry.send(await self._answers(batch))
        except StopIteration as stop:
            result: T = stop.value
            return result
        finally:
            inquiry.close()

    def figures(self) -> Iterator[Figure]:
        """How much is kept; what was looked for say the tallies."""
        yield from self._responses.figures("ocsp")
        yield from self._lists.figures("crl")

    def first_end(self) -> float | None:
        """Seconds since the epoch at which the first CRL that is kept ends; None when none is kept."""
        return min(self._kept_ends().values(), default=None)

    async def aclose(self) -> None:
        """Cancel what is under way and close every connection."""
        await self._flights.aclose()
        sessions, self._sessions = self._sessions, {}
        for session in sessions.values():
            await session.close()
        self._reader.shutdown(wait=False, cancel_futures=True)

    # -- keeping ------------------------------------------------------------------------------------------------------

    async def _answers(self, batch: Iterable[Query]) -> dict[Query, Answer]:
        fetches: list[Fetch] = []
        for query in batch:
            if isinstance(query, Keep):
                self._keep(query)
            else:
                fetches.append(query)
        answers = await asyncio.gather(*(self._answer(query) for query in fetches))
        return dict(zip(fetches, answers, strict=True))

    def _kept_for(self, query: Fetch) -> ByteBoundedCache[Fetch, _Kept]:
        return self._responses if isinstance(query, OcspQuery) else self._lists

    def _keep(self, keep: Keep) -> None:
        kept = self._kept_for(keep.query)
        known = kept.peek(keep.query)
        if known is None or known.answer is not keep.answer:  # used again is not fetched again
            entry = _Kept(keep.answer, self._clock())
            ends = keep.until.timestamp()
            if kept.put(keep.query, entry, size=keep.answer.weight, expires=ends) and kept is self._lists:
                self._list_ends[keep.query] = ends
                if len(self._list_ends) > 2 * len(kept):
                    self._list_ends = self._kept_ends()

    def _kept_ends(self) -> dict[Fetch, float]:
        return {query: ends for query, ends in self._list_ends.items() if query in self._lists}

    async def _answer(self, query: Fetch) -> Answer:
        known = self._kept_for(query).get(query)
        refresh = self._settings.refresh_seconds
        if known is not None and (refresh is None or self._clock() < known.since + refresh):
            return known.answer
        answer: Answer | None = self._failures.get(query)
        if answer is None:
            host = _host(query.url)
            # Told apart from a registry of that name: whoever signs must not be able to cast suspicion on one.
            with step(
                f"{'the OCSP answer' if isinstance(query, OcspQuery) else 'the CRL'} of {host}",
                f"http://{host}",
                stage=Stage.REVOCATION,
            ):
                answer = await self._flights.run(query, lambda: self._fetch(query))
        if known is not None and isinstance(answer, FetchFailure):
            return known.answer
        return answer

    # -- fetching -----------------------------------------------------------------------------------------------------

    async def _fetch(self, query: Fetch) -> Answer:
        """The flight of one query. Whatever goes wrong is its result."""
        try:
            if isinstance(query, OcspQuery):
                async with asyncio.timeout(self._settings.ocsp_timeout_seconds):
                    return await self._fetch_response(query)
            return await self._fetch_list(query.url, query.issuer)
        except _FetchError as error:
            failure = error.failure
        except TimeoutError:
            failure = FetchFailure("no answer within the time limit")
        self._failures.put(query, failure, size=FAILURE_BYTES, expires=self._clock() + self._settings.failure_seconds)
        return failure

    async def _fetch_response(self, query: OcspQuery) -> Answer:
        async with AsyncExitStack() as stack:
            if query.get_url is not None:
                body = await self._exchange(stack, "GET", query.get_url, max_bytes=MAX_RESPONSE_BYTES)
            else:
                body = await self._exchange(
                    stack, "POST", query.url, body=query.request_der, max_bytes=MAX_RESPONSE_BYTES
                )
        try:
            return OcspResponse.parse(body)  # once for all who wait; it remembers its signature too
        except (Refused, Undecided):
            return body  # the check says what is wrong with it

    async def _fetch_list(self, url: str, issuer: Certificate) -> RevocationList:
        async with AsyncExitStack() as stack:
            async with asyncio.timeout(self._settings.crl_timeout_seconds):
                body = await self._exchange(stack, "GET", url, max_bytes=MAX_CRL_BYTES)
            try:
                if len(body) < LARGE_CRL_BYTES:
                    return RevocationList.parse(body)
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(self._reader, _read_and_verify, body, issuer)
            except Refused as error:
                raise _FetchError(error.detail, ServerOutcome.UNUSABLE) from None

    async def _exchange(
        self, stack: AsyncExitStack, method: str, address: str, *, max_bytes: int, body: bytes | None = None
    ) -> bytes:
        """One HTTP exchange, whose connection, and place among the huge ones, is held until `stack` is left.

        Raises:
            _FetchError: there is no body of a 200 within the limits.
        """
        try:
            url = URL(address, encoded=True)  # as it is: a responder must see the %2F of a GET
            rules, proxy = self._route(url)
            session = self._session(rules, proxied=proxy is not None)
            answer = await stack.enter_async_context(
                session.request(
                    method,
                    url,
                    data=body,
                    headers={} if body is None else {"Content-Type": "application/ocsp-request"},
                    allow_redirects=False,
                    proxy=None if proxy is None else proxy.url,
                    proxy_headers=None if proxy is None else proxy.headers,
                )
            )
            if answer.status != 200:
                answer.close()
                raise _FetchError(f"answered {answer.status}, expected 200")
            return await self._read(stack, answer, max_bytes)
        except EgressRefusedError as refusal:
            raise _not_allowed(refusal) from None
        except aiohttp.ClientConnectorError as error:
            if isinstance(error.os_error, EgressRefusedError):
                raise _not_allowed(error.os_error) from None
            raise _FetchError("cannot be connected to") from None
        except aiohttp.ClientResponseError:
            raise _FetchError("gave an answer that is not HTTP within limits") from None
        except ValueError:  # of yarl and of IDNA too
            raise _FetchError("the address is no HTTP URL", ServerOutcome.NOT_ASKED) from None
        except (aiohttp.ClientError, OSError, RuntimeError):  # RuntimeError: what uvloop says of a closed transport
            raise _FetchError("closed the connection") from None

    async def _read(self, stack: AsyncExitStack, answer: aiohttp.ClientResponse, max_bytes: int) -> bytes:
        body = bytearray()
        is_huge = False
        if (answer.content_length or 0) <= max_bytes:
            async for chunk in answer.content.iter_any():
                body += chunk
                if len(body) > max_bytes:
                    break
                if len(body) > HUGE_CRL_BYTES and not is_huge:
                    is_huge = True
                    await stack.enter_async_context(self._huge)
            else:
                return bytes(body)
        answer.close()
        raise _FetchError(f"the answer is larger than {max_bytes} bytes", ServerOutcome.UNUSABLE)

    def _route(self, url: URL) -> tuple[EgressRules, Proxy | None]:
        """The egress rules for an address that a certificate names, and the proxy that leads there.

        Raises:
            _FetchError: the settings do not allow the host.
            EgressRefusedError: its text alone says that the rules do not allow it.
        """
        settings = self._settings
        listed = is_listed(url, settings.allowed_hosts)
        if settings.allowed_hosts and not listed:
            raise _FetchError("the host is not among those that may be asked", ServerOutcome.NOT_ASKED)
        rules = PUBLIC_ONLY
        if settings.allow_private_addresses:
            rules = LOOPBACK_ALLOWED if listed else PRIVATE_ALLOWED
        rules.check_host(url.raw_host or "")
        return rules, self._proxies.for_url(url)

    def _session(self, rules: EgressRules, *, proxied: bool) -> aiohttp.ClientSession:
        # A proxy is the operator's: its own address may be private, and its connections are not shared with others.
        key = (LOOPBACK_ALLOWED if proxied else rules, proxied)
        session = self._sessions.get(key)
        if session is None:
            session = self._sessions[key] = aiohttp.ClientSession(
                connector=guarded_connector(key[0], max_connections_per_host=MAX_CONNECTIONS_PER_HOST),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": f"countersign/{__version__}", "Accept-Encoding": "identity"},
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),  # one limit around the whole exchange
                auto_decompress=False,
                trust_env=False,
            )
        return session


def _host(address: str) -> str:
    """The host of an address that a certificate names, for people: never the rest of it."""
    try:
        return URL(address, encoded=True).host_port_subcomponent or _NO_HOST
    except ValueError:
        return _NO_HOST


class _FetchError(Exception):
    """A fetch that failed; its FetchFailure is the answer."""

    def __init__(self, reason: str, outcome: ServerOutcome = ServerOutcome.UNREACHABLE) -> None:
        super().__init__(reason)
        self.failure = FetchFailure(reason, outcome)


def _not_allowed(refusal: EgressRefusedError) -> _FetchError:
    kind = refusal.kind.name.lower().replace("_", "-")
    return _FetchError(f"the address is {kind}, which the settings do not allow", ServerOutcome.NOT_ASKED)


def _read_and_verify(body: bytes, issuer: Certificate) -> RevocationList:
    """Read a large list and verify its signature, both in the thread; the list remembers what came of the latter.

    Raises:
        Refused: REVOCATION_UNKNOWN, when it cannot be read. A wrong signature is for the check to find.
    """
    revocation_list = RevocationList.parse(body)
    with suppress(Refused):
        revocation_list.signed.check_signed_by(issuer)
    return revocation_list
