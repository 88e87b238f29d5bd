"""An OCI registry on loopback, with its token service and its blob storage: what the store and its attackers meet.

    async with RegistrySimulator(tls=ca) as registry:
        image = registry.push_image("team/app", tag="v1")
        signature = registry.push_artifact("team/app", image, SIGNATURE, [(envelope, "application/jose+json")])
        ... registry.host, registry.requests, registry.fault("/v2/*/referrers/*", status(500)) ...

Everything is switched by attributes, at any time. What is pushed lives in memory and is not checked, so that wrong
things can be pushed too.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal
from urllib.parse import parse_qs

import trustme
from aiohttp import web

from provider.oci import (
    MEDIA_TYPE_ARTIFACT_MANIFEST,
    MEDIA_TYPE_EMPTY,
    MEDIA_TYPE_INDEX,
    MEDIA_TYPE_MANIFEST,
    Descriptor,
    Digest,
)
from tests.simulators.listener import Listener, Reply

SIGNATURE: Final = "application/vnd.cncf.notary.signature"
EMPTY_CONFIG: Final = b"{}"

Links = Literal["honest", "endless", "loop", "other host"]


@dataclass
class Repository:
    """What one repository holds."""

    manifests: dict[str, tuple[bytes, str]] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    referrers: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


@dataclass
class TokenIssuer:
    """Who gets which token. One may serve several registries and stand on any host.

    Attributes:
        accounts: passwords by user name.
        refresh_tokens: identity tokens that are good.
        anonymous: tokens are given to nobody in particular too.
        lifetime: expires_in of tokens, seconds; None leaves it out.
        member: name of the member that carries the token.
        issued: scopes by token, for those that are good.
    """

    accounts: dict[str, str] = field(default_factory=dict)
    refresh_tokens: set[str] = field(default_factory=set)
    anonymous: bool = True
    lifetime: int | None = 300
    member: str = "token"
    issued: dict[str, str] = field(default_factory=dict)

    def revoke(self) -> None:
        """No token that was given out is good any more."""
        self.issued.clear()

    def answer(self, method: str, authorization: str | None, query: Mapping[str, str], body: bytes) -> Reply:
        """What the token service says."""
        if method == "POST":
            form = {name: values[0] for name, values in parse_qs(body.decode()).items()}
            known = form.get("grant_type") == "refresh_token" and form.get("refresh_token") in self.refresh_tokens
            scope = form.get("scope", "")
        elif authorization is None:
            known, scope = self.anonymous, query.get("scope", "")
        else:
            known, scope = has_account(authorization, self.accounts), query.get("scope", "")
        if not known:
            return error_reply(401, "UNAUTHORIZED")
        token = f"token-{secrets.token_hex(16)}"
        self.issued[token] = scope
        document: dict[str, Any] = {self.member: token}
        if self.lifetime is not None:
            document["expires_in"] = self.lifetime
        return Reply(200, {"Content-Type": "application/json"}, json.dumps(document).encode())


class TokenServiceSimulator(Listener):
    """A token service on a host of its own."""

    def __init__(self, issuer: TokenIssuer, *, tls: trustme.CA | None = None, host: str = "127.0.0.1") -> None:
        super().__init__(tls=tls, host=host)
        self.issuer = issuer

    async def reply(self, request: web.Request) -> Reply:
        seen = self.requests[-1]
        return self.issuer.answer(seen.method, seen.authorization, seen.query, seen.body)


class BlobStorageSimulator(Listener):
    """Where a registry redirects to for blobs. The last component of a path is a digest."""

    def __init__(self, *, tls: trustme.CA | None = None, host: str = "127.0.0.1", names: Sequence[str] = ()) -> None:
        super().__init__(tls=tls, host=host, names=names)
        self.blobs: dict[str, bytes] = {}

    async def reply(self, request: web.Request) -> Reply:
        data = self.blobs.get(request.path.rpartition("/")[2])
        return Reply(404, {}, b"<NoSuchKey/>") if data is None else Reply(200, {}, data)


class RegistrySimulator(Listener):
    """A registry after distribution-spec 1.1.

    Args:
        tls: authority of its certificate; None for plain HTTP.
        client_ca: demand client certificates of this authority.
        host: 127.0.0.1 or localhost.
        names: further names in the server's certificate.

    Attributes:
        auth: "none", "basic" or "bearer".
        accounts: passwords by user name, for basic.
        issuer: its tokens, for bearer; served under /token of the registry itself.
        realm: the realm that it names instead of its own /token.
        challenge: the whole WWW-Authenticate field instead of its own.
        referrers_api: it has the referrers API.
        tag_schema: without the API it keeps the lists under tags.
        filters: it filters by artifact type, and says so.
        page_size: entries of a page; None for one page.
        links: how its pages are linked.
        digest_header: it sends Docker-Content-Digest.
        api_version_header: it sends Docker-Distribution-Api-Version.
        head: it knows HEAD.
        redirect_blobs_to: URL prefix that blobs are redirected to.
        redirect_status: status of such a redirect.
    """

    def __init__(
        self,
        *,
        tls: trustme.CA | None = None,
        client_ca: trustme.CA | None = None,
        host: str = "127.0.0.1",
        names: Sequence[str] = (),
    ) -> None:
        super().__init__(tls=tls, client_ca=client_ca, host=host, names=names)
        self.auth: Literal["none", "basic", "bearer"] = "none"
        self.accounts: dict[str, str] = {}
        self.issuer = TokenIssuer()
        self.realm: str | None = None
        self.challenge: str | None = None
        self.referrers_api = True
        self.tag_schema = True
        self.filters = True
        self.page_size: int | None = None
        self.links: Links = "honest"
        self.digest_header = True
        self.api_version_header = True
        self.head = True
        self.redirect_blobs_to: str | None = None
        self.redirect_status = 307
        self._repositories: dict[str, Repository] = {}

    # -- what it holds --------------------------------------------------------------------------------------------

    def repository(self, name: str) -> Repository:
        """A repository, made when it is not there."""
        return self._repositories.setdefault(name, Repository())

    def push_blob(self, repository: str, data: bytes, media_type: str = "application/octet-stream") -> Descriptor:
        """Put a blob."""
        descriptor = describe(data, media_type)
        self.repository(repository).blobs[str(descriptor.digest)] = data
        return descriptor

    def push_manifest(
        self,
        repository: str,
        manifest: bytes | Mapping[str, Any],
        *,
        media_type: str = MEDIA_TYPE_MANIFEST,
        tag: str | None = None,
    ) -> Descriptor:
        """Put a manifest, tag it, and list it under its subject if it has one."""
        data = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
        descriptor = describe(data, media_type)
        held = self.repository(repository)
        held.manifests[str(descriptor.digest)] = (data, media_type)
        if tag is not None:
            held.tags[tag] = str(descriptor.digest)
        document = as_object(data)
        subject = document.get("subject")
        if isinstance(subject, dict):
            config = document.get("config") or {}
            entry = {
                **as_json(descriptor),
                "artifactType": document.get("artifactType") or config.get("mediaType"),
                "annotations": document.get("annotations") or {},
            }
            self.list_referrer(repository, subject["digest"], entry)
        return descriptor

    def push_image(self, repository: str, *, tag: str | None = None, content: bytes = b"layer") -> Descriptor:
        """Put an image of one layer."""
        config = self.push_blob(repository, b"{}", "application/vnd.oci.image.config.v1+json")
        layer = self.push_blob(repository, content, "application/vnd.oci.image.layer.v1.tar")
        manifest = {
            "schemaVersion": 2,
            "mediaType": MEDIA_TYPE_MANIFEST,
            "config": as_json(config),
            "layers": [as_json(layer)],
        }
        return self.push_manifest(repository, manifest, tag=tag)

    def push_artifact(
        self,
        repository: str,
        subject: Descriptor,
        artifact_type: str,
        layers: Iterable[tuple[bytes, str]] = (),
        *,
        form: Literal["artifactType", "config", "withdrawn"] = "artifactType",
        annotations: Mapping[str, str] | None = None,
    ) -> Descriptor:
        """Put an artifact that refers to `subject`, such as a signature.

        Args:
            repository: where to.
            subject: the image.
            artifact_type: its type.
            layers: content and media type of each layer.
            form: where its type stands: artifactType with the empty config, config.mediaType (before image-spec 1.1),
                or the withdrawn artifact manifest.
            annotations: annotations of the manifest.
        """
        blobs = [as_json(self.push_blob(repository, data, media_type)) for data, media_type in layers]
        config_type = artifact_type if form == "config" else MEDIA_TYPE_EMPTY
        media_type = MEDIA_TYPE_ARTIFACT_MANIFEST if form == "withdrawn" else MEDIA_TYPE_MANIFEST
        manifest: dict[str, Any] = {"mediaType": media_type, "subject": as_json(subject)}
        if form != "config":
            manifest["artifactType"] = artifact_type
        if form == "withdrawn":
            manifest["blobs"] = blobs
        else:
            config = as_json(self.push_blob(repository, EMPTY_CONFIG, config_type))
            manifest |= {"schemaVersion": 2, "config": config, "layers": blobs}
        if annotations:
            manifest["annotations"] = dict(annotations)
        return self.push_manifest(repository, manifest, media_type=media_type)

    def list_referrer(self, repository: str, subject: Digest | str, entry: Mapping[str, Any]) -> None:
        """List an entry under a subject, true or not."""
        self.repository(repository).referrers.setdefault(str(subject), []).append(dict(entry))

    # -- what it answers ------------------------------------------------------------------------------------------

    async def reply(self, request: web.Request) -> Reply:
        seen = self.requests[-1]
        if seen.path == "/token":
            return self.issuer.answer(seen.method, seen.authorization, seen.query, seen.body)
        name, _, rest = seen.path.removeprefix("/v2/").rpartition("/")
        name, _, kind = name.rpartition("/")
        answer = self._refuse(name, seen.authorization)
        if answer is None:
            answer = self._route(request.method, name, kind, rest, seen.query)
        fields = dict(answer.headers)
        if self.api_version_header and seen.path.startswith("/v2/"):
            fields["Docker-Distribution-Api-Version"] = "registry/2.0"
        return Reply(answer.status, fields, answer.body)

    def _refuse(self, repository: str, authorization: str | None) -> Reply | None:
        if self.auth == "none":
            return None
        if self.auth == "basic":
            if authorization is not None and has_account(authorization, self.accounts):
                return None
            challenge = 'Basic realm="registry"'
        else:
            token = (authorization or "").removeprefix("Bearer ")
            scope = f"repository:{repository}:pull"
            if self.issuer.issued.get(token) == scope:
                return None
            realm = self.realm or f"{self.url}/token"
            challenge = f'Bearer realm="{realm}",service="simulator",scope="{scope}"'
        return error_reply(401, "UNAUTHORIZED", {"WWW-Authenticate": self.challenge or challenge})

    def _route(self, method: str, name: str, kind: str, rest: str, query: Mapping[str, str]) -> Reply:
        if method not in ("GET", "HEAD") or (method == "HEAD" and not self.head):
            return error_reply(405, "UNSUPPORTED")
        if kind == "referrers" and not self.referrers_api:
            return Reply(404, {"Content-Type": "text/plain"}, b"404 page not found\n")
        held = self._repositories.get(name)
        if held is None:
            return error_reply(404, "NAME_UNKNOWN")
        if kind == "manifests":
            return self._manifest(held, rest)
        if kind == "blobs":
            return self._blob(held, rest)
        if kind == "referrers":
            return self._referrers(held, f"/v2/{name}/referrers/{rest}", rest, query)
        return Reply(404, {}, b"404 page not found\n")

    def _manifest(self, held: Repository, reference: str) -> Reply:
        digest = held.tags.get(reference, reference)
        data, media_type = held.manifests.get(digest, (b"", ""))
        algorithm, dash, hexadecimal = reference.partition("-")
        listed = held.referrers.get(f"{algorithm}:{hexadecimal}") if dash and not self.referrers_api else None
        if not data and listed and self.tag_schema:
            data, media_type = index_of(listed), MEDIA_TYPE_INDEX
            digest = str(Digest.of(data))
        if not data:
            return error_reply(404, "MANIFEST_UNKNOWN")
        fields = {"Content-Type": media_type}
        if self.digest_header:
            fields["Docker-Content-Digest"] = digest
        return Reply(200, fields, data)

    def _blob(self, held: Repository, digest: str) -> Reply:
        data = held.blobs.get(digest)
        if data is None:
            return error_reply(404, "BLOB_UNKNOWN")
        if self.redirect_blobs_to is not None:
            return Reply(self.redirect_status, {"Location": f"{self.redirect_blobs_to}/{digest}"})
        fields = {"Content-Type": "application/octet-stream"}
        if self.digest_header:
            fields["Docker-Content-Digest"] = digest
        return Reply(200, fields, data)

    def _referrers(self, held: Repository, path: str, digest: str, query: Mapping[str, str]) -> Reply:
        entries: Sequence[Mapping[str, Any]] = held.referrers.get(digest, [])
        fields = {"Content-Type": MEDIA_TYPE_INDEX}
        wanted = query.get("artifactType")
        if wanted and self.filters:
            entries = [entry for entry in entries if entry.get("artifactType") == wanted]
            fields["OCI-Filters-Applied"] = "artifactType"
        start = int(query.get("last", "0"))
        if self.page_size is not None:
            more = len(entries) > start + self.page_size
            entries = entries[start : start + self.page_size] if self.links == "honest" else entries[: self.page_size]
            following = {
                "honest": f"{path}?last={start + self.page_size}" if more else None,
                "endless": f"{path}?last={start + 1}",
                "loop": f"{path}?last={(start + 1) % 3}",
                "other host": f"https://elsewhere.example.test{path}?last=1",
            }[self.links]
            if following is not None:
                wanted_too = f"&artifactType={wanted.replace('/', '%2F')}" if wanted else ""
                fields["Link"] = f'<{following}{wanted_too}>; rel="next"'
        return Reply(200, fields, index_of(entries))


def describe(data: bytes, media_type: str) -> Descriptor:
    """The descriptor of some content."""
    return Descriptor(media_type, Digest.of(data), len(data))


def as_json(descriptor: Descriptor) -> dict[str, Any]:
    """A descriptor as it stands in manifests."""
    value: dict[str, Any] = {
        "mediaType": descriptor.media_type,
        "digest": str(descriptor.digest),
        "size": descriptor.size,
    }
    if descriptor.artifact_type:
        value["artifactType"] = descriptor.artifact_type
    return value


def as_object(data: bytes) -> dict[str, Any]:
    """A JSON object, empty for anything else."""
    try:
        document = json.loads(data)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def index_of(entries: Iterable[Mapping[str, Any]]) -> bytes:
    """An image index."""
    return json.dumps({"schemaVersion": 2, "mediaType": MEDIA_TYPE_INDEX, "manifests": list(entries)}).encode()


def error_reply(code: int, name: str, headers: Mapping[str, str] | None = None) -> Reply:
    """An error after distribution-spec."""
    document = {"errors": [{"code": name, "message": name.lower()}]}
    return Reply(code, {"Content-Type": "application/json", **(headers or {})}, json.dumps(document).encode())


def has_account(authorization: str, accounts: Mapping[str, str]) -> bool:
    """Whether a Basic authorization is one of the accounts."""
    scheme, _, value = authorization.partition(" ")
    if scheme != "Basic":
        return False
    username, _, password = base64.b64decode(value).decode().partition(":")
    return accounts.get(username) == password


def sha512(data: bytes) -> Digest:
    """The other digest algorithm that registries know."""
    return Digest("sha512", hashlib.sha512(data).hexdigest())
