"""The nouns of OCI: digests, references, descriptors, manifests; grammar and strict parsing, no network.

    reference  = [ domain "/" ] path [ ":" tag ] [ "@" digest ]
    domain     = host [ ":" port ]          a host has a dot, a colon or is "localhost"; else it belongs to the path
                                            a port has no leading zero, so that one registry has one spelling
    path       = component *( "/" component )          component: lower-case letters and digits joined by . _ __ -+
    digest     = algorithm ":" lower-case hex

Rules:
- Normalisation is Docker's, because that is what the kubelet's runtime will pull: `nginx` is
  `docker.io/library/nginx:latest`. A tag beside a digest is kept for display and never asked of a registry.
- Values are checked when they are built; there is no way to hold a Digest that is not one.
- Manifests are untrusted bytes. Their digest is checked by the store that fetched them, their shape here.

What does not belong here: which artifacts are signatures (verifiers), where bytes come from (stores).
Sources: OCI distribution-spec 1.1, image-spec 1.1, github.com/distribution/reference (grammar).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self

from provider import strict_json
from provider.errors import InvalidKey, Refused

MEDIA_TYPE_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
MEDIA_TYPE_INDEX: Final = "application/vnd.oci.image.index.v1+json"
MEDIA_TYPE_ARTIFACT_MANIFEST: Final = "application/vnd.oci.artifact.manifest.v1+json"  # withdrawn; read, never written
MEDIA_TYPE_EMPTY: Final = "application/vnd.oci.empty.v1+json"
MEDIA_TYPE_DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
MEDIA_TYPE_DOCKER_INDEX: Final = "application/vnd.docker.distribution.manifest.list.v2+json"

MAX_MANIFEST_BYTES: Final = (
    4 * 1024 * 1024
)  # distribution-spec section "Pushing manifests": registries should take 4 MiB
MAX_REFERENCE_LENGTH: Final = 1024  # characters; domain 255 + path 255 + tag 128 + digest 135, with room
MAX_DESCRIPTORS: Final = 10_000  # entries of one index; 4 MiB hold about 15,000

# Linear on every input: no quantified group can match the empty string or overlap its neighbour.
_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_DOMAIN = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]+\])(?::(?P<port>[1-9][0-9]{{0,4}}))?")
_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
_HEX_LENGTH: Final = {"sha256": 64, "sha384": 96, "sha512": 128}
_HEX = re.compile(r"[0-9a-f]+")
_MEDIA_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}")


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """A content address `algorithm:hex` of a supported algorithm (sha256, sha384, sha512).

    Raises:
        ValueError: the algorithm is unknown, or the hex has the wrong length or an upper-case letter.
    """

    algorithm: str
    hex: str

    def __post_init__(self) -> None:
        length = _HEX_LENGTH.get(self.algorithm)
        if length is None:
            raise ValueError(f"digest algorithm is not one of {', '.join(_HEX_LENGTH)}")
        if len(self.hex) != length or _HEX.fullmatch(self.hex) is None:
            raise ValueError(f"a {self.algorithm} digest has {length} lower-case hex digits")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `algorithm:hex`. Raises ValueError as the constructor does."""
        algorithm, _, hexadecimal = text.partition(":")
        return cls(algorithm, hexadecimal)

    @classmethod
    def of(cls, data: bytes, algorithm: str = "sha256") -> Self:
        """The digest of `data`."""
        return cls(algorithm, hashlib.new(algorithm, data).hexdigest())

    def matches(self, data: bytes) -> bool:
        """Whether `data` has this digest. Not a secret comparison: digests are public."""
        return hashlib.new(self.algorithm, data).hexdigest() == self.hex

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"


@dataclass(frozen=True, slots=True)
class Reference:
    """An image reference in normal form. At least one of tag and digest is set.

    Attributes:
        domain: registry host with optional port, such as `docker.io` or `localhost:5000`.
        path: repository path inside the registry.
        tag: the tag; when a digest is given too, only for display.
        digest: the digest that was asked for, if any.
    """

    domain: str
    path: str
    tag: str | None = None
    digest: Digest | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse and normalise a reference as Docker does.

        Raises:
            InvalidKey: REFERENCE_INVALID, for anything outside the grammar in this file's head.
        """
        if not text or len(text) > MAX_REFERENCE_LENGTH:
            raise _invalid_reference(
                text, f"is {'empty' if not text else f'longer than {MAX_REFERENCE_LENGTH} characters'}"
            )
        rest, at, digest_text = text.partition("@")
        digest = None
        if at:
            try:
                digest = Digest.parse(digest_text)
            except ValueError as error:
                raise _invalid_reference(text, f"has a bad digest: {error}") from None
        domain, path_and_tag = _split_domain(rest)
        path, colon, tag = path_and_tag.partition(":")
        if colon and _TAG.fullmatch(tag) is None:
            raise _invalid_reference(text, "has a bad tag")
        if not _is_domain(domain):
            raise _invalid_reference(text, "has a bad registry host")
        if len(path) > 255 or not all(_COMPONENT.fullmatch(component) for component in path.split("/")):
            raise _invalid_reference(text, "has a bad repository path")
        return cls(domain, path, tag if colon else (None if digest else "latest"), digest)

    @property
    def repository(self) -> str:
        """`domain/path`, the text that trust policy scopes are compared with."""
        return f"{self.domain}/{self.path}"

    def at_digest(self, digest: Digest) -> Reference:
        """The same repository by digest."""
        return Reference(self.domain, self.path, None, digest)

    def __str__(self) -> str:
        """The normal form that Ratify reports: with a digest the tag is dropped."""
        return f"{self.repository}@{self.digest}" if self.digest else f"{self.repository}:{self.tag}"


def _invalid_reference(text: str, problem: str) -> InvalidKey:
    return InvalidKey("REFERENCE_INVALID", f"image reference {problem}", found=text)


def _split_domain(text: str) -> tuple[str, str]:
    """Split off the registry as Docker does: the first component counts as a host only if it looks like one."""
    first, slash, rest = text.partition("/")
    looks_like_host = "." in first or ":" in first or first == "localhost" or first != first.lower()
    if not slash or not looks_like_host:
        domain, rest = "docker.io", text
    else:
        domain = first
    if domain == "index.docker.io":
        domain = "docker.io"
    if domain == "docker.io" and "/" not in rest:
        rest = f"library/{rest}"
    return domain, rest


def _is_domain(domain: str) -> bool:
    match = _DOMAIN.fullmatch(domain)
    return match is not None and len(domain) <= 255 and int(match["port"] or 1) < 65536


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A content descriptor: what some object claims to be, until its bytes were checked against it.

    Attributes:
        media_type: media type of the object.
        digest: content address.
        size: bytes.
        artifact_type: type of the artifact, in lists of referrers; None when absent.
        annotations: unsigned key-value text.

    Raises:
        ValueError: malformed media type or negative size.
    """

    media_type: str
    digest: Digest
    size: int
    artifact_type: str | None = None
    annotations: Mapping[str, str] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if _MEDIA_TYPE.fullmatch(self.media_type) is None:
            raise ValueError("mediaType is not a media type")
        if self.size < 0:
            raise ValueError("size is negative")

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Read the JSON object of a descriptor; unknown members are ignored, as image-spec demands.

        Raises:
            ValueError: a required member is absent or of the wrong type.
        """
        if not isinstance(value, dict):
            raise ValueError("a descriptor is a JSON object")
        media_type, digest, size = value.get("mediaType"), value.get("digest"), value.get("size")
        if not isinstance(media_type, str) or not isinstance(digest, str):
            raise ValueError("a descriptor needs the strings mediaType and digest")
        if not isinstance(size, int) or isinstance(size, bool):
            raise ValueError("a descriptor needs the integer size")
        artifact_type = value.get("artifactType")
        if artifact_type is not None and not isinstance(artifact_type, str):
            raise ValueError("artifactType is not a string")
        return cls(
            media_type, Digest.parse(digest), size, artifact_type or None, _annotations(value.get("annotations"))
        )


@dataclass(frozen=True, slots=True)
class Manifest:
    """An image manifest (or a withdrawn artifact manifest) as far as verifiers need it.

    Attributes:
        media_type: the manifest's own mediaType.
        artifact_type: as written, None when absent.
        config: config descriptor; None for the withdrawn artifact manifest.
        layers: layers, or blobs of the withdrawn artifact manifest.
        subject: the manifest this one refers to, None when absent.
        annotations: unsigned key-value text.
    """

    media_type: str
    artifact_type: str | None
    config: Descriptor | None
    layers: tuple[Descriptor, ...]
    subject: Descriptor | None
    annotations: Mapping[str, str]

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Parse manifest bytes whose digest the caller has checked.

        Raises:
            Refused: MANIFEST_INVALID, when they are not a manifest.
        """
        value = _document(data, "manifest")
        media_type = value.get("mediaType")
        try:
            if media_type not in (MEDIA_TYPE_MANIFEST, MEDIA_TYPE_DOCKER_MANIFEST, MEDIA_TYPE_ARTIFACT_MANIFEST):
                raise ValueError("mediaType is not that of a manifest")
            withdrawn = media_type == MEDIA_TYPE_ARTIFACT_MANIFEST
            layers = value.get("blobs" if withdrawn else "layers", [] if withdrawn else None)
            if not isinstance(layers, list) or len(layers) > MAX_DESCRIPTORS:
                raise ValueError("layers is not a list within limits")
            artifact_type = value.get("artifactType")
            if artifact_type is not None and not isinstance(artifact_type, str):
                raise ValueError("artifactType is not a string")
            return cls(
                media_type=media_type,
                artifact_type=artifact_type or None,
                config=None if withdrawn else Descriptor.parse(value.get("config")),
                layers=tuple(Descriptor.parse(layer) for layer in layers),
                subject=None if value.get("subject") is None else Descriptor.parse(value["subject"]),
                annotations=_annotations(value.get("annotations")),
            )
        except ValueError as error:
            raise Refused("MANIFEST_INVALID", f"the manifest is malformed: {error}") from None


@dataclass(frozen=True, slots=True)
class Index:
    """An image index: a list of manifests.

    Attributes:
        manifests: descriptors in their order.
        annotations: unsigned key-value text.
    """

    manifests: tuple[Descriptor, ...]
    annotations: Mapping[str, str]

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Parse index bytes. An entry that is not a descriptor makes the index bad as a whole.

        Raises:
            Refused: MANIFEST_INVALID, when they are not an index.
        """
        value = _document(data, "index")
        try:
            if value.get("mediaType", MEDIA_TYPE_INDEX) not in (MEDIA_TYPE_INDEX, MEDIA_TYPE_DOCKER_INDEX):
                raise ValueError("mediaType is not that of an index")
            manifests = value.get("manifests")
            if not isinstance(manifests, list) or len(manifests) > MAX_DESCRIPTORS:
                raise ValueError("manifests is not a list within limits")
            return cls(tuple(Descriptor.parse(entry) for entry in manifests), _annotations(value.get("annotations")))
        except ValueError as error:
            raise Refused("MANIFEST_INVALID", f"the index is malformed: {error}") from None


def _document(data: bytes, what: str) -> dict[str, Any]:
    try:
        value = strict_json.loads(data, max_bytes=MAX_MANIFEST_BYTES)
    except strict_json.MalformedJSONError as error:
        raise Refused("MANIFEST_INVALID", f"the {what} is not JSON: {error}") from None
    if not isinstance(value, dict) or value.get("schemaVersion", 2) != 2:
        raise Refused("MANIFEST_INVALID", f"the {what} is not an object of schemaVersion 2")
    return value


def _annotations(value: Any) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise ValueError("annotations is not an object of strings")
    return value


@dataclass(frozen=True, slots=True)
class Subject:
    """The artifact under decision, after its reference was resolved.

    Attributes:
        reference: the normal form of what was asked for.
        digest: what it resolved to; for a reference with a digest, that digest.
        descriptor: media type, digest and size as the registry gave them; None for a reference by digest that was not
            looked up, to save a round trip: the digest alone already binds the content.
    """

    reference: Reference
    digest: Digest
    descriptor: Descriptor | None = None
