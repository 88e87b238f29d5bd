"""An embedded OCI registry on loopback: pull, push, tags and the referrers API, in memory.

Rules:
- It follows OCI distribution-spec 1.1, and nothing beyond it: no authentication, no deletion, no catalogue.
- Content is stored under the digest it has, never under one it is said to have. A manifest is stored only when its
  config and layers are there (its subject need not be) and when it is well-formed.
- Everything is bounded: bytes of a blob and a manifest, bytes in all, uploads, entries.
- `requests` remembers what was asked, oldest first, for people and tests.

What does not belong here: faults (tests have a simulator for them), which images there are (images.py).
Source: github.com/opencontainers/distribution-spec, version 1.1.
"""

from __future__ import annotations

import json
import re
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

from aiohttp import web

from provider.errors import InvalidKey, Refused, UsageError
from provider.oci import (
    MAX_MANIFEST_BYTES,
    MEDIA_TYPE_DOCKER_INDEX,
    MEDIA_TYPE_DOCKER_MANIFEST,
    MEDIA_TYPE_INDEX,
    MEDIA_TYPE_MANIFEST,
    Descriptor,
    Digest,
    Index,
    Manifest,
    Reference,
)

MAX_BLOB_BYTES: Final = 64 * 1024 * 1024  # a demo's layers are some bytes; a user may push a small real image
MAX_TOTAL_BYTES: Final = 512 * 1024 * 1024  # default for manifests, blobs and unfinished uploads together
MAX_UPLOADS: Final = 64  # unfinished uploads at once; the oldest is dropped
MAX_MANIFESTS: Final = 10_000  # manifests in all
MAX_REMEMBERED_REQUESTS: Final = 1000  # lines of `requests`
MAX_TAGS: Final = 1000  # tags of one page of the list
SHUTDOWN_SECONDS: Final = 1.0  # for requests under way when the context closes

_INDEX_TYPES: Final = frozenset({MEDIA_TYPE_INDEX, MEDIA_TYPE_DOCKER_INDEX})
_MANIFEST_TYPES: Final = frozenset({MEDIA_TYPE_MANIFEST, MEDIA_TYPE_DOCKER_MANIFEST})
_ARTIFACT_FILTER: Final = "artifactType"
_RANGE = re.compile(r"([0-9]{1,12})-([0-9]{1,12})")

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class StoredManifest:
    """A manifest as it was pushed.

    Attributes:
        media_type: its media type.
        data: its bytes.
        subject: what it refers to, None for nothing.
        descriptor: how lists of referrers describe it.
    """

    media_type: str
    data: bytes
    subject: Digest | None
    descriptor: dict[str, Any]


@dataclass(slots=True)
class Repository:
    """The content of one repository."""

    blobs: dict[Digest, bytes] = field(default_factory=dict)
    manifests: dict[Digest, StoredManifest] = field(default_factory=dict)
    tags: dict[str, Digest] = field(default_factory=dict)


class _RegistryError(Exception):
    """An error as the specification writes it: an HTTP status and a code."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


class EmbeddedRegistry:
    """A registry that serves while its context is open.

        async with EmbeddedRegistry() as registry:
            ... f"{registry.host}/demo/app:1" ...

    Attributes:
        requests: method, path and status of the latest requests.
    """

    def __init__(self, *, address: str = "127.0.0.1", port: int = 0, max_bytes: int = MAX_TOTAL_BYTES) -> None:
        """Prepare a registry.

        Args:
            address: loopback address to listen on.
            port: TCP port; 0 takes a free one.
            max_bytes: bytes of manifests, blobs and unfinished uploads together.
        """
        self._max_bytes = max_bytes
        self.requests: deque[tuple[str, str, int]] = deque(maxlen=MAX_REMEMBERED_REQUESTS)
        self._address = address
        self._port = port
        self._repositories: dict[str, Repository] = {}
        self._uploads: dict[str, tuple[str, bytearray]] = {}
        self._runner: web.AppRunner | None = None

    @property
    def host(self) -> str:
        """`address:port`, which image references begin with."""
        return f"{self._address}:{self._port}"

    async def __aenter__(self) -> Self:
        runner = web.AppRunner(self.application(), access_log=None, shutdown_timeout=SHUTDOWN_SECONDS)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._address, self._port).start()
        except OSError as error:
            await runner.cleanup()
            reason = f"{self.host} cannot be listened on: {error.strerror or error}"
            raise UsageError("USAGE", reason, remediation="Choose a port that is free.") from None
        self._runner = runner
        self._port = runner.addresses[0][1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    def application(self) -> web.Application:
        """The registry as an aiohttp application."""
        application = web.Application(client_max_size=MAX_BLOB_BYTES, middlewares=[self._answer])
        route = application.router.add_route
        route("GET", "/v2/", self._version)
        route("GET", "/v2/{name:.+}/tags/list", self._list_tags)
        route("GET", "/v2/{name:.+}/referrers/{digest}", self._list_referrers)
        route("*", "/v2/{name:.+}/manifests/{reference}", self._manifest)
        route("POST", "/v2/{name:.+}/blobs/uploads/", self._start_upload)
        route("*", "/v2/{name:.+}/blobs/uploads/{session}", self._upload)
        route("*", "/v2/{name:.+}/blobs/{digest}", self._blob)
        return application

    @web.middleware
    async def _answer(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        """Write errors the specification's way, and remember the request."""
        try:
            response = await handler(request)
        except _RegistryError as error:
            body = {"errors": [{"code": error.code, "message": error.message}]}
            response = web.json_response(body, status=error.status)
        except web.HTTPException as error:
            body = {"errors": [{"code": "UNSUPPORTED", "message": error.reason}]}
            response = web.json_response(body, status=error.status)
        response.headers["Docker-Distribution-API-Version"] = "registry/2.0"
        self.requests.append((request.method, request.path_qs, response.status))
        return response

    async def _version(self, _request: web.Request) -> web.StreamResponse:
        return web.json_response({})

    # ---- manifests ----

    async def _manifest(self, request: web.Request) -> web.StreamResponse:
        name = _repository_name(request)
        if request.method == "PUT":
            return await self._put_manifest(request, name)
        if request.method not in ("GET", "HEAD"):
            raise _RegistryError(405, "UNSUPPORTED", "manifests can be read and written")
        repository = self._existing(name)
        reference = request.match_info["reference"]
        digest = _digest(reference) if ":" in reference else repository.tags.get(reference)
        manifest = None if digest is None else repository.manifests.get(digest)
        if digest is None or manifest is None:
            raise _RegistryError(404, "MANIFEST_UNKNOWN", "the repository has no such manifest")
        headers = {"Docker-Content-Digest": str(digest), "Content-Type": manifest.media_type}
        return _content(request, manifest.data, headers)

    async def _put_manifest(self, request: web.Request, name: str) -> web.StreamResponse:
        data = await _body(request, MAX_MANIFEST_BYTES)
        repository = self._repositories.get(name, Repository())
        reference = request.match_info["reference"]
        digest = _digest(reference) if ":" in reference else Digest.of(data)
        if not digest.matches(data):
            raise _RegistryError(400, "DIGEST_INVALID", "the manifest has another digest")
        manifest = _parse_manifest(data, digest, request.content_type, repository)
        self._make_room(len(data))
        self._repositories[name] = repository
        repository.manifests[digest] = manifest
        if ":" not in reference:
            repository.tags[_tag(name, reference)] = digest
        headers = {"Location": f"/v2/{name}/manifests/{digest}", "Docker-Content-Digest": str(digest)}
        if manifest.subject is not None:
            headers["OCI-Subject"] = str(manifest.subject)
        return web.Response(status=201, headers=headers)

    async def _list_tags(self, request: web.Request) -> web.StreamResponse:
        name = _repository_name(request)
        count = request.query.get("n", str(MAX_TAGS))
        if not (count.isascii() and count.isdigit()):
            raise _RegistryError(400, "PAGINATION_NUMBER_INVALID", "n is not a number")
        limit = min(int(count[:9]), MAX_TAGS)
        tags = [tag for tag in sorted(self._existing(name).tags) if tag > request.query.get("last", "")]
        headers = {}
        if limit and len(tags) > limit:
            headers["Link"] = f'</v2/{name}/tags/list?n={limit}&last={tags[limit - 1]}>; rel="next"'
        return web.json_response({"name": name, "tags": tags[:limit]}, headers=headers)

    async def _list_referrers(self, request: web.Request) -> web.StreamResponse:
        name = _repository_name(request)
        digest = _digest(request.match_info["digest"])
        repository = self._repositories.get(name, Repository())
        wanted = request.query.get(_ARTIFACT_FILTER)
        found = [manifest.descriptor for manifest in repository.manifests.values() if manifest.subject == digest]
        if wanted is not None:
            found = [descriptor for descriptor in found if descriptor.get(_ARTIFACT_FILTER) == wanted]
        index = {"schemaVersion": 2, "mediaType": MEDIA_TYPE_INDEX, "manifests": found}
        headers = {} if wanted is None else {"OCI-Filters-Applied": _ARTIFACT_FILTER}
        return web.Response(
            body=json.dumps(index, separators=(",", ":")).encode(), content_type=MEDIA_TYPE_INDEX, headers=headers
        )

    # ---- blobs ----

    async def _blob(self, request: web.Request) -> web.StreamResponse:
        name = _repository_name(request)
        if request.method not in ("GET", "HEAD"):
            raise _RegistryError(405, "UNSUPPORTED", "blobs are written by uploads")
        digest = _digest(request.match_info["digest"])
        data = self._existing(name).blobs.get(digest)
        if data is None:
            raise _RegistryError(404, "BLOB_UNKNOWN", "the repository has no such blob")
        headers = {"Docker-Content-Digest": str(digest), "Content-Type": "application/octet-stream"}
        return _content(request, data, headers)

    async def _start_upload(self, request: web.Request) -> web.StreamResponse:
        name = _repository_name(request)
        if "digest" in request.query:
            return self._finish(name, await _body(request, MAX_BLOB_BYTES), request.query["digest"])
        if "mount" in request.query:
            digest, origin = _digest(request.query["mount"]), self._repositories.get(request.query.get("from", ""))
            if origin is not None and digest in origin.blobs:
                return self._finish(name, origin.blobs[digest], str(digest))
        while len(self._uploads) >= MAX_UPLOADS:
            del self._uploads[next(iter(self._uploads))]
        session = secrets.token_urlsafe(16)
        self._uploads[session] = (name, bytearray())
        return _progress(name, session, 0, 202)

    async def _upload(self, request: web.Request) -> web.StreamResponse:
        name, session = _repository_name(request), request.match_info["session"]
        owner, received = self._uploads.get(session, ("", bytearray()))
        if owner != name:
            raise _RegistryError(404, "BLOB_UPLOAD_UNKNOWN", "there is no such upload")
        if request.method == "GET":
            return _progress(name, session, len(received), 204)
        if request.method == "DELETE":
            self._uploads.pop(session, None)
            return web.Response(status=204)
        if request.method not in ("PATCH", "PUT"):
            raise _RegistryError(405, "UNSUPPORTED", "an upload is continued by PATCH and PUT")
        chunk = await _body(request, MAX_BLOB_BYTES - len(received))
        _check_range(request.headers.get("Content-Range"), len(received), len(chunk))
        self._make_room(len(chunk))
        received += chunk
        if request.method == "PATCH":
            return _progress(name, session, len(received), 202)
        self._uploads.pop(session, None)
        return self._finish(name, bytes(received), request.query.get("digest", ""))

    def _finish(self, name: str, data: bytes, claimed: str) -> web.Response:
        digest = _digest(claimed)
        if not digest.matches(data):
            raise _RegistryError(400, "DIGEST_INVALID", "the blob has another digest")
        self._make_room(len(data))
        self._repositories.setdefault(name, Repository()).blobs[digest] = data
        headers = {"Location": f"/v2/{name}/blobs/{digest}", "Docker-Content-Digest": str(digest)}
        return web.Response(status=201, headers=headers)

    # ---- the store ----

    def _existing(self, name: str) -> Repository:
        repository = self._repositories.get(name)
        if repository is None:
            raise _RegistryError(404, "NAME_UNKNOWN", "there is no such repository")
        return repository

    def _make_room(self, size: int) -> None:
        repositories = self._repositories.values()
        held = sum(
            sum(map(len, repository.blobs.values()))
            + sum(len(manifest.data) for manifest in repository.manifests.values())
            for repository in repositories
        ) + sum(len(received) for _, received in self._uploads.values())
        if held + size > self._max_bytes or sum(len(entry.manifests) for entry in repositories) >= MAX_MANIFESTS:
            raise _RegistryError(413, "SIZE_INVALID", "the registry is full")


def _repository_name(request: web.Request) -> str:
    """The repository of a request, by the grammar of references, so that no `..` or upper case gets in."""
    try:
        return Reference.parse(f"localhost/{request.match_info['name']}").path
    except InvalidKey:
        raise _RegistryError(400, "NAME_INVALID", "the repository name is malformed") from None


def _digest(text: str) -> Digest:
    try:
        return Digest.parse(text)
    except ValueError:
        raise _RegistryError(400, "DIGEST_INVALID", "the digest is malformed") from None


def _tag(name: str, text: str) -> str:
    try:
        return Reference.parse(f"localhost/{name}:{text}").tag or ""
    except InvalidKey:
        raise _RegistryError(400, "TAG_INVALID", "the tag is malformed") from None


async def _body(request: web.Request, limit: int) -> bytes:
    """Read a body of at most `limit` bytes."""
    data = bytearray()
    async for chunk in request.content.iter_any():
        data += chunk
        if len(data) > limit:
            raise _RegistryError(413, "SIZE_INVALID", f"more than {limit} bytes")
    return bytes(data)


def _progress(name: str, session: str, received: int, status: int) -> web.Response:
    headers = {"Location": f"/v2/{name}/blobs/uploads/{session}", "Range": f"0-{max(0, received - 1)}"}
    return web.Response(status=status, headers=headers)


def _check_range(header: str | None, held: int, received: int) -> None:
    if header is None:
        return
    match = _RANGE.fullmatch(header)
    if match is None or int(match[1]) != held or int(match[2]) != held + received - 1:
        raise _RegistryError(416, "BLOB_UPLOAD_INVALID", "the chunk does not begin where the last one ended")


def _content(request: web.Request, data: bytes, headers: Mapping[str, str]) -> web.Response:
    if request.method == "HEAD":
        return web.Response(headers={**headers, "Content-Length": str(len(data))})
    return web.Response(body=data, headers=headers)


def _parse_manifest(data: bytes, digest: Digest, content_type: str, repository: Repository) -> StoredManifest:
    """Check a pushed manifest and describe it for lists of referrers."""
    subject: Descriptor | None = None
    artifact_type: str | None = None
    try:
        if content_type in _INDEX_TYPES:
            index = Index.parse(data)
            annotations = index.annotations
            missing = [entry for entry in index.manifests if entry.digest not in repository.manifests]
        elif content_type in _MANIFEST_TYPES:
            manifest = Manifest.parse(data)
            config = [] if manifest.config is None else [manifest.config]
            missing = [entry for entry in (*config, *manifest.layers) if entry.digest not in repository.blobs]
            subject, annotations = manifest.subject, manifest.annotations
            artifact_type = manifest.artifact_type or (config[0].media_type if config else None)
        else:
            raise _RegistryError(400, "MANIFEST_INVALID", f"manifests of type {content_type} are not kept")
    except Refused as error:
        raise _RegistryError(400, "MANIFEST_INVALID", error.reason) from None
    if missing:
        raise _RegistryError(404, "MANIFEST_BLOB_UNKNOWN", f"the repository lacks {missing[0].digest}")
    described: dict[str, Any] = {"mediaType": content_type, "digest": str(digest), "size": len(data)}
    if artifact_type is not None:
        described[_ARTIFACT_FILTER] = artifact_type
    if annotations:
        described["annotations"] = dict(annotations)
    return StoredManifest(content_type, data, None if subject is None else subject.digest, described)
