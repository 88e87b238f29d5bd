"""The store of type `oras`: images and what refers to them, read from remote registries over the distribution API.

Rules:
- Everything is checked against what was asked for: digest, size, and the media type of a manifest. A blob's media type
  is what the manifest says of it; registries do not know it.
- A tag costs one HEAD, a digest nothing; then the list, the manifest, the blob: four requests or three, and one token a
  repository while it lasts. Objects that were checked are kept by digest and cost nothing again.
- The list of referrers comes from the referrers API, else from the tag schema; which of them a repository has is
  remembered, and a registry that had the API once is not believed to have lost it.
- Redirects: for blobs, three at most, https unless the registry itself is plain http, Authorization for the registry's
  own origin alone.

What does not belong here: connections and retries (transport.py), credentials (tokens.py), what a response says
(responses.py, referrers.py), what a signature is (verifiers/).
Sources: OCI distribution-spec 1.1; facts notary 1.2; attacks N01 to N06, N13, N15, N25, N26, N33, N38.
"""

from __future__ import annotations

import math
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Final

from cachetools import LRUCache, TTLCache
from yarl import URL

from provider.cache import ByteBoundedCache
from provider.egress import ProxySettings
from provider.errors import Refused, Undecided
from provider.figures import Figure
from provider.interfaces import Credential, CredentialProvider
from provider.oci import (
    MAX_MANIFEST_BYTES,
    MEDIA_TYPE_ARTIFACT_MANIFEST,
    MEDIA_TYPE_DOCKER_INDEX,
    MEDIA_TYPE_DOCKER_MANIFEST,
    MEDIA_TYPE_INDEX,
    MEDIA_TYPE_MANIFEST,
    Descriptor,
    Digest,
    Index,
    Reference,
    Subject,
)
from provider.progress import Observer, Stage, current_observer, step
from provider.stores.objects import check_object, check_size
from provider.stores.pacing import time_limit
from provider.stores.profile import OrasStoreSettings, Repository
from provider.stores.referrers import next_page, referrers_tag, select
from provider.stores.responses import (
    announced,
    content,
    error_codes,
    hashed,
    index_of,
    protocol_error,
    redirect_target,
    says_not_found,
    unexpected,
)
from provider.stores.tokens import Authenticator
from provider.stores.transport import MAX_ERROR_BYTES, Request, Response, Transport

MAX_REDIRECTS: Final = 3  # of one blob; registries send one
MAX_CREDENTIALS: Final = 4  # shown for one request, one after the other; what was refused is remembered for the next
MAX_KEPT_BYTES: Final = 64 * 1024 * 1024  # manifests and envelopes kept; some 5,000 signed images
KEPT_OVERHEAD: Final = 512  # bytes that a kept object costs beside its content, roughly
MAX_REPOSITORIES: Final = 4096  # repositories of which something is remembered, such as how they list referrers
REFERRERS_API_SECONDS: Final = 3600.0  # how long a repository is known to have the referrers API
TAG_SCHEMA_SECONDS: Final = 300.0  # how long not to have it; short, because registries are upgraded

_IMAGE_TYPES: Final = ", ".join(
    (
        MEDIA_TYPE_INDEX,
        MEDIA_TYPE_MANIFEST,
        MEDIA_TYPE_DOCKER_INDEX,
        MEDIA_TYPE_DOCKER_MANIFEST,
        MEDIA_TYPE_ARTIFACT_MANIFEST,
    )
)
TRACEPARENT: Final = "traceparent"  # W3C Trace Context, section 3.2

_W3C_TRACE_ID = re.compile(r"(?!0{32})[0-9a-f]{32}")
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_NO_SUCH_API: Final = frozenset({404, 405, 501})

ObjectKey = tuple[str, Digest, str]  # "manifest" or "blob", digest, media type as checked
ObjectCache = ByteBoundedCache[ObjectKey, bytes]


class OrasStore:
    """Reads from remote registries. Safe for any number of tasks of one event loop; to be closed with `aclose`.

    Args:
        name: name of the Store resource.
        settings: limits and registries.
        credentials: where credentials come from; None for anonymous access.
        proxies: proxies of the environment.
        objects: checked objects to keep and reuse; may be shared between stores, since a digest is the same everywhere.
        trace_header: header that registries are told the trace id in; with `traceparent` in the form of W3C Trace
            Context. Token services and storage are not told. None for no header.
        count_answer: told the status of each answer, None for none.
        monotonic: seconds of a clock that never goes back, for lifetimes.

    Raises:
        ConfigurationError: CERTIFICATE_INVALID, when the TLS material of a profile cannot be used.
    """

    def __init__(
        self,
        name: str,
        settings: OrasStoreSettings | None = None,
        *,
        credentials: CredentialProvider | None = None,
        proxies: ProxySettings | None = None,
        objects: ObjectCache | None = None,
        trace_header: str | None = None,
        count_answer: Callable[[int | None], None] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self._settings = settings or OrasStoreSettings()
        self._monotonic = monotonic
        self._trace_header = trace_header
        self._transport = Transport(self._settings, proxies, count_answer=count_answer, monotonic=monotonic)
        self._authenticator = Authenticator(
            self._transport, credentials, timeout_seconds=self._settings.timeout_seconds, monotonic=monotonic
        )
        self._objects = objects if objects is not None else ByteBoundedCache(MAX_KEPT_BYTES, monotonic=monotonic)
        self._repositories: LRUCache[tuple[str, str], Repository] = LRUCache(MAX_REPOSITORIES)
        self._with_api: TTLCache[tuple[str, str], bool] = TTLCache(
            MAX_REPOSITORIES, REFERRERS_API_SECONDS, timer=monotonic
        )
        self._without_api: TTLCache[tuple[str, str], bool] = TTLCache(
            MAX_REPOSITORIES, TAG_SCHEMA_SECONDS, timer=monotonic
        )

    async def resolve(self, reference: Reference) -> Subject:
        """Find the digest behind a reference; see interfaces.Store.

        The digest of a tag is the registry's word: what is fetched under it later is checked against it.

        Raises:
            Refused: IMAGE_NOT_FOUND, DIGEST_MISMATCH, MANIFEST_INVALID (a tagged manifest over 4 MiB).
            Undecided: REGISTRY_* or CREDENTIALS_UNAVAILABLE.
        """
        repository = Repository.of(reference, self._settings)  # looks at the tag too, which is no part of what is kept
        if reference.digest is not None:
            return Subject(reference, reference.digest)
        url, what = repository.manifest_url(reference.tag or ""), f"{reference}"
        async with self._time_limit(Stage.RESOLVE, what):
            response = await self._ask(repository, _request("HEAD", url, what, accept=_IMAGE_TYPES))
            if response.status == 200 and "Docker-Content-Digest" in response.headers:
                return Subject(reference, *announced(repository, response))
            if response.status not in (200, *_NO_SUCH_API):
                raise unexpected(repository, response, what)
            # No digest, no HEAD, or a 404 that cannot say whose it is: the body tells.
            request = _request("GET", url, what, accept=_IMAGE_TYPES, max_bytes=MAX_MANIFEST_BYTES)
            response = await self._ask(repository, request)
        if response.status != 200:
            raise unexpected(repository, response, what)
        return Subject(reference, *hashed(repository, response))

    async def list_referrers(self, subject: Subject, artifact_type: str | None) -> AsyncIterator[Descriptor]:
        """List what refers to the subject; see interfaces.Store. An entry that is listed twice is given once.

        Raises:
            Refused: REFERRERS_LIMIT, MANIFEST_INVALID (a page that is no index), IMAGE_NOT_FOUND (no such repository).
            Undecided: REGISTRY_* or CREDENTIALS_UNAVAILABLE.
        """
        repository = self._repository(subject.reference)
        given: set[Digest] = set()
        read = 0
        async for index, headers in self._pages(repository, subject.digest, artifact_type):
            room = self._settings.max_referrers - read
            read += len(index.manifests)
            for entry in select(replace(index, manifests=index.manifests[:room]), headers, artifact_type):
                if entry.digest not in given:
                    given.add(entry.digest)
                    yield entry
            if read > self._settings.max_referrers:
                raise _too_many(f"more than {self._settings.max_referrers} artifacts refer to {subject.digest}")

    async def fetch_manifest(self, subject: Subject, descriptor: Descriptor) -> bytes:
        """Fetch a manifest of the subject's repository; see interfaces.Store.

        Raises:
            Refused: IMAGE_NOT_FOUND, DIGEST_MISMATCH, MANIFEST_INVALID.
            Undecided: REGISTRY_* or CREDENTIALS_UNAVAILABLE.
        """
        repository = self._repository(subject.reference)
        what = f"the manifest {descriptor.digest}"
        check_size(descriptor, MAX_MANIFEST_BYTES, what)
        key = ("manifest", descriptor.digest, descriptor.media_type)
        kept = self._objects.get(key)
        if kept is not None:
            return check_object(descriptor, kept, what)
        url = repository.manifest_url(descriptor.digest)
        request = _request("GET", url, what, accept=descriptor.media_type, max_bytes=descriptor.size)
        async with self._time_limit(Stage.FETCH, what):
            response = await self._ask(repository, request)
        data = content(repository, descriptor, response, what)
        if response.media_type != descriptor.media_type.lower():
            raise Refused(
                "MANIFEST_INVALID",
                f"{what} came as another media type than its descriptor says",
                expected=descriptor.media_type,
                found=response.media_type or "none",
            )
        self._keep(key, data)
        return data

    async def fetch_blob(self, subject: Subject, descriptor: Descriptor, max_bytes: int) -> bytes:
        """Fetch a blob of the subject's repository; see interfaces.Store.

        Raises:
            Refused: IMAGE_NOT_FOUND, DIGEST_MISMATCH, MANIFEST_INVALID.
            Undecided: REGISTRY_* or CREDENTIALS_UNAVAILABLE.
        """
        repository = self._repository(subject.reference)
        what = f"the blob {descriptor.digest}"
        check_size(descriptor, max_bytes, what)
        key = ("blob", descriptor.digest, "")
        kept = self._objects.get(key)
        if kept is not None:
            return check_object(descriptor, kept, what)
        request = _request("GET", repository.blob_url(descriptor.digest), what, max_bytes=descriptor.size)
        async with self._time_limit(Stage.FETCH, what):
            response = await self._ask_following(repository, request)
        data = content(repository, descriptor, response, what)
        self._keep(key, data)
        return data

    def figures(self) -> Iterator[Figure]:
        """How many hosts hold requests back, and how many requests there are."""
        return self._transport.figures()

    async def aclose(self) -> None:
        """Close every connection and give up what is under way."""
        await self._authenticator.aclose()
        await self._transport.aclose()

    def _repository(self, reference: Reference) -> Repository:
        key = (reference.domain, reference.path)
        repository = self._repositories.get(key)
        if repository is None:
            repository = self._repositories[key] = Repository.of(reference, self._settings)
        return repository

    def _keep(self, key: ObjectKey, data: bytes) -> None:
        self._objects.put(key, data, size=len(data) + KEPT_OVERHEAD, expires=math.inf)

    async def _ask(self, repository: Repository, request: Request) -> Response:
        """Send a request with what the registry wants to see, answering one challenge.

        Raises:
            Undecided: REGISTRY_* or CREDENTIALS_UNAVAILABLE.
        """
        response, _ = await self._ask_authorized(repository, request)
        return response

    async def _ask_authorized(self, repository: Repository, request: Request) -> tuple[Response, Request]:
        """As _ask_once, and again with others when credentials were refused: rotated ones, or the next of several."""
        credential = await self._authenticator.credential(repository)
        tried: list[Credential | None] = []
        while True:
            try:
                return await self._ask_once(repository, request, credential)
            except Undecided as error:
                tried.append(credential)
                if error.code != "REGISTRY_UNAUTHORIZED" or len(tried) == MAX_CREDENTIALS:
                    raise
                credential = await self._authenticator.renew(repository, tried)
                if credential is None:
                    raise

    async def _ask_once(
        self, repository: Repository, request: Request, credential: Credential | None
    ) -> tuple[Response, Request]:
        if self._trace_header is not None and (trace := _trace(self._trace_header, current_observer())):
            request = request.with_header(self._trace_header, trace)
        authorization = await self._authenticator.expected(repository, credential)
        sent = request if authorization is None else request.with_header("Authorization", authorization.value)
        response = await self._transport.send(sent, repository.route)
        if response.status == 401:
            fields = response.headers.getall("WWW-Authenticate", [])
            authorization = await self._authenticator.answer(repository, fields, credential, authorization)
            sent = request.with_header("Authorization", authorization.value)
            response = await self._transport.send(sent, repository.route)
        if response.status in (401, 403):
            raise Undecided(
                "REGISTRY_UNAUTHORIZED",
                f"the registry {repository.domain} answered {response.status} to what it was shown, asked for "
                f"{request.what}",
            )
        return response, sent

    async def _ask_following(self, repository: Repository, request: Request) -> Response:
        """As _ask, and follow redirects within the rules (N04)."""
        response, sent = await self._ask_authorized(repository, request)
        for _ in range(MAX_REDIRECTS):
            if response.status not in _REDIRECTS:
                return response
            url = redirect_target(repository, sent, response)
            # Off the registry's origin without Authorization, which does not come back either.
            sent = replace(sent if url.origin() == repository.origin else request, url=url)
            response = await self._transport.send(sent, repository.redirect_route(url))
            if response.status not in (200, *_REDIRECTS):
                raise protocol_error(
                    f"{sent.host}, where {repository.domain} redirected to, answered {response.status}, asked for "
                    f"{request.what}"
                )
        if response.status in _REDIRECTS:
            raise protocol_error(
                f"{repository.domain} redirects more than {MAX_REDIRECTS} times, asked for {request.what}"
            )
        return response

    async def _pages(
        self, repository: Repository, digest: Digest, artifact_type: str | None
    ) -> AsyncIterator[tuple[Index, Mapping[str, str]]]:
        """The pages of a list with the header fields they came with, by the API or else by the tag schema."""
        what = f"the referrers of {digest}"
        name = (repository.domain, repository.path)
        if name not in self._without_api:
            url = repository.referrers_url(digest, artifact_type)
            async with self._time_limit(Stage.REFERRERS, what):
                response = await self._ask(repository, _index_request(url, what))
            if response.status == 200 and response.media_type == MEDIA_TYPE_INDEX:
                self._with_api[name] = True
                async for page in self._follow_pages(repository, url, response, what):
                    yield page
                return
            self._check_api_absent(repository, response, what)
        tag = referrers_tag(digest)
        async with self._time_limit(Stage.REFERRERS, what):
            response = await self._ask(repository, _index_request(repository.manifest_url(tag), f"{what} by tag"))
        if response.status == 404 and says_not_found(response):
            return
        if response.status != 200:
            raise unexpected(repository, response, f"{what} by tag")
        if response.media_type != MEDIA_TYPE_INDEX:
            raise Refused(
                "MANIFEST_INVALID",
                f"the referrers tag {tag} is not an image index",
                expected=MEDIA_TYPE_INDEX,
                found=response.media_type or "none",
            )
        index = index_of(response, what)
        # Only a list found this way is proof: asking for an unknown digest must not turn the API off for others.
        self._without_api[name] = True
        yield index, {}

    def _check_api_absent(self, repository: Repository, response: Response, what: str) -> None:
        """Pass when an answer may mean that the repository has no referrers API.

        Raises:
            Refused: IMAGE_NOT_FOUND.
            Undecided: REGISTRY_PROTOCOL.
        """
        had_it = (repository.domain, repository.path) in self._with_api
        if response.status not in (200, *_NO_SUCH_API) or had_it or "NAME_UNKNOWN" in error_codes(response):
            raise unexpected(repository, response, what)

    async def _follow_pages(
        self, repository: Repository, url: URL, response: Response, what: str
    ) -> AsyncIterator[tuple[Index, Mapping[str, str]]]:
        """This page and those that it links to, within the limits of pages and time (N05, N13)."""
        seen = {url}
        left = self._settings.listing_timeout_seconds
        while True:
            following = next_page(url, response.headers.getall("Link", []))
            yield index_of(response, what), response.headers
            if following is None:
                return
            if following in seen:
                raise protocol_error(f"{repository.domain} links the pages of {what} in a circle")
            if len(seen) >= self._settings.max_referrer_pages:
                raise _too_many(f"{what} fill more than {self._settings.max_referrer_pages} pages")
            seen.add(following)
            url = following
            began = self._monotonic()
            async with self._time_limit(Stage.REFERRERS, what, min(left, self._settings.timeout_seconds)):
                response = await self._ask(repository, _index_request(url, what))
            left -= self._monotonic() - began
            if left <= 0:
                raise Undecided(
                    "REGISTRY_UNAVAILABLE",
                    f"the pages of {what} took longer than {self._settings.listing_timeout_seconds:g} s",
                )
            if response.status != 200 or response.media_type != MEDIA_TYPE_INDEX:
                raise unexpected(repository, response, f"a further page of {what}")

    @asynccontextmanager
    async def _time_limit(self, stage: Stage, what: str, seconds: float | None = None) -> AsyncIterator[None]:
        limit = self._settings.timeout_seconds if seconds is None else seconds
        try:
            with step(what, stage=stage):
                async with time_limit(limit):
                    yield
        except TimeoutError:
            raise Undecided("REGISTRY_UNAVAILABLE", f"{what} could not be had within {limit:.3g} s") from None


def _trace(header: str, observer: Observer | None) -> str:
    """What the header says of the request that this is asked for; empty when there is nothing to say."""
    if observer is None:
        return ""
    if header.lower() != TRACEPARENT:
        return observer.trace_id
    if observer.traceparent or _W3C_TRACE_ID.fullmatch(observer.trace_id) is None:
        return observer.traceparent
    return f"00-{observer.trace_id}-{secrets.token_hex(8)}-00"  # not sampled: nobody records the span that this names


def _request(method: str, url: URL, what: str, *, accept: str = "*/*", max_bytes: int = MAX_ERROR_BYTES) -> Request:
    return Request(method, url, what, {"Accept": accept}, max_bytes)


def _index_request(url: URL, what: str) -> Request:
    return _request("GET", url, what, accept=MEDIA_TYPE_INDEX, max_bytes=MAX_MANIFEST_BYTES)


def _too_many(reason: str) -> Refused:
    return Refused("REFERRERS_LIMIT", reason)
