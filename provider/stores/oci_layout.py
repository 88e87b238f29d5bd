"""The store of type `oci-layout`: the same answers as a registry's, read from a folder in the OCI image layout.

    <root>/oci-layout          {"imageLayoutVersion": "1.0.0"}
    <root>/index.json          the manifests of the layout, in order
    <root>/blobs/<alg>/<hex>   every object, manifests too

Rules:
- One folder is one repository; it serves every reference, whatever its registry and path say. A tag is found by the
  annotation org.opencontainers.image.ref.name, as the bare tag or as the whole reference.
- Referrers are the manifests of index.json whose `subject` is the image, in the order of index.json. A manifest of
  another subject or another artifact type is passed over. One that cannot be read is listed if its entry names the
  wanted type, and fails when it is fetched: a broken signature is no reason not to look at the next.
- File names are made of parsed digests alone. Only regular files are read, up to the size declared, and hashed; so a
  symbolic link, a device or a pipe in the folder does no harm. index.json is not hashed: whoever may write it decides
  what is listed, and no more.

What does not belong here: archives (tar) of layouts, writing.
Sources: OCI image-spec "Image Layout"; facts notary 1.1 (which manifests count as signatures).
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from provider import strict_json
from provider.errors import Refused, Undecided
from provider.oci import (
    MAX_MANIFEST_BYTES,
    MEDIA_TYPE_ARTIFACT_MANIFEST,
    MEDIA_TYPE_EMPTY,
    MEDIA_TYPE_MANIFEST,
    Descriptor,
    Digest,
    Index,
    Manifest,
    Reference,
    Subject,
)
from provider.stores.objects import check_object, check_size

LAYOUT_VERSION: Final = "1.0.0"
MAX_LAYOUT_FILE_BYTES: Final = 4096  # of the file oci-layout; it has 30
MAX_REFERRERS: Final = 1000  # as for a registry, profile.OrasStoreSettings.max_referrers

REFERENCE_ANNOTATION: Final = "org.opencontainers.image.ref.name"
CONTAINERD_ANNOTATION: Final = "io.containerd.image.name"  # containerd and BuildKit put the whole reference here

# Artifact types whose specification demands the empty config when artifactType is set (Notary Project, OCI Signatures).
_EMPTY_CONFIG_DEMANDED: Final = frozenset({"application/vnd.cncf.notary.signature"})
_ARTIFACT_MANIFESTS: Final = frozenset({MEDIA_TYPE_MANIFEST, MEDIA_TYPE_ARTIFACT_MANIFEST})


class OciLayoutStore:
    """Reads from one OCI image layout.

    Args:
        name: name of the Store resource.
        root: the folder that holds `oci-layout` and `index.json`.
        max_referrers: entries listed for one image.
    """

    def __init__(self, name: str, root: Path, *, max_referrers: int = MAX_REFERRERS) -> None:
        self.name = name
        self._root = root
        self._max_referrers = max_referrers

    async def resolve(self, reference: Reference) -> Subject:
        """Find the digest behind a reference; see interfaces.Store.

        Raises:
            Refused: IMAGE_NOT_FOUND, MANIFEST_INVALID (index.json is none, or gives the tag to two manifests).
            Undecided: REGISTRY_UNAVAILABLE, when the folder cannot be read.
        """
        if reference.digest is not None:
            return Subject(reference, reference.digest)
        index = await asyncio.to_thread(self._read_index)
        named = {entry.digest: entry for entry in index.manifests if _names(entry, reference)}
        if not named:
            raise Refused("IMAGE_NOT_FOUND", f"the layout {self._root} does not know the tag {reference.tag}")
        if len(named) > 1:
            raise Refused("MANIFEST_INVALID", f"index.json gives the tag {reference.tag} to {len(named)} manifests")
        [(digest, descriptor)] = named.items()
        return Subject(reference, digest, descriptor)

    async def list_referrers(self, subject: Subject, artifact_type: str | None) -> AsyncIterator[Descriptor]:
        """List what refers to the subject; see interfaces.Store. An entry that is listed twice is given once.

        Raises:
            Refused: REFERRERS_LIMIT, MANIFEST_INVALID (index.json).
            Undecided: REGISTRY_UNAVAILABLE, when the folder cannot be read.
        """
        index = await asyncio.to_thread(self._read_index)
        target = subject.descriptor or next(
            (entry for entry in index.manifests if entry.digest == subject.digest), None
        )
        given: set[Digest] = set()
        for entry in index.manifests:
            if entry.media_type not in _ARTIFACT_MANIFESTS or entry.digest in given:
                continue
            referrer = await asyncio.to_thread(self._referrer, entry, subject.digest, target)
            if referrer is None or artifact_type not in (None, referrer.artifact_type):
                continue
            if len(given) >= self._max_referrers:
                raise Refused("REFERRERS_LIMIT", f"more than {self._max_referrers} artifacts refer to {subject.digest}")
            given.add(entry.digest)
            yield referrer

    async def fetch_manifest(
        self,
        subject: Subject,  # noqa: ARG002 - the Protocol's; a layout is one repository
        descriptor: Descriptor,
    ) -> bytes:
        """Fetch a manifest; see interfaces.Store.

        Raises:
            Refused: IMAGE_NOT_FOUND, DIGEST_MISMATCH, MANIFEST_INVALID.
            Undecided: REGISTRY_UNAVAILABLE, when the folder cannot be read.
        """
        what = f"the manifest {descriptor.digest}"
        data = await asyncio.to_thread(self._read_object, descriptor, MAX_MANIFEST_BYTES, what)
        _check_media_type(descriptor, data, what)
        return data

    async def fetch_blob(
        self,
        subject: Subject,  # noqa: ARG002 - the Protocol's; a layout is one repository
        descriptor: Descriptor,
        max_bytes: int,
    ) -> bytes:
        """Fetch a blob; see interfaces.Store.

        Raises:
            Refused: IMAGE_NOT_FOUND, DIGEST_MISMATCH, MANIFEST_INVALID.
            Undecided: REGISTRY_UNAVAILABLE, when the folder cannot be read.
        """
        what = f"the blob {descriptor.digest}"
        return await asyncio.to_thread(self._read_object, descriptor, max_bytes, what)

    async def aclose(self) -> None:
        """Nothing is held open."""

    def _read_index(self) -> Index:
        try:
            layout = _read_file(self._root / "oci-layout", MAX_LAYOUT_FILE_BYTES)
            data = _read_file(self._root / "index.json", MAX_MANIFEST_BYTES)
        except FileNotFoundError as error:
            name = Path(error.filename).name
            raise _unreadable(f"the folder {self._root} is no OCI layout: it has no file {name}") from None
        try:
            marker = strict_json.loads(layout, max_bytes=MAX_LAYOUT_FILE_BYTES)
            version = marker.get("imageLayoutVersion") if isinstance(marker, dict) else None
        except strict_json.MalformedJSONError:
            version = None
        if version != LAYOUT_VERSION:
            raise Refused(
                "MANIFEST_INVALID",
                f"the folder {self._root} is of another version of the OCI layout",
                expected=LAYOUT_VERSION,
                found=str(version),
            )
        return Index.parse(data)

    def _referrer(self, entry: Descriptor, subject: Digest, target: Descriptor | None) -> Descriptor | None:
        """The entry as a registry would list it, None when it does not refer to the subject."""
        try:
            what = f"the manifest {entry.digest}"
            manifest = Manifest.parse(self._read_object(entry, MAX_MANIFEST_BYTES, what))
        except Refused:
            return entry if entry.artifact_type else None  # it fails again when it is fetched
        except Undecided:
            if entry.artifact_type:
                return entry
            raise  # what cannot be read might be a signature: no list is better than one without it
        if manifest.subject is None or manifest.subject.digest != subject:
            return None
        if target is not None and manifest.subject != Descriptor(target.media_type, subject, target.size):
            return None
        artifact_type = _artifact_type(manifest)
        if manifest.media_type != entry.media_type or artifact_type is None:
            return None
        return Descriptor(entry.media_type, entry.digest, entry.size, artifact_type, manifest.annotations)

    def _read_object(self, descriptor: Descriptor, max_bytes: int, what: str) -> bytes:
        check_size(descriptor, max_bytes, what)
        digest = descriptor.digest
        try:
            data = _read_file(self._root / "blobs" / digest.algorithm / digest.hex, descriptor.size)
        except FileNotFoundError:
            raise Refused("IMAGE_NOT_FOUND", f"the layout {self._root} does not hold {what}") from None
        return check_object(descriptor, data, what)


def _names(entry: Descriptor, reference: Reference) -> bool:
    full = f"{reference.repository}:{reference.tag}"
    name = entry.annotations.get(REFERENCE_ANNOTATION)
    return name in (reference.tag, full) or entry.annotations.get(CONTAINERD_ANNOTATION) == full


def _artifact_type(manifest: Manifest) -> str | None:
    """The type of an artifact (image-spec "Guidelines for Artifact Usage"); None when its two statements disagree."""
    config_type = manifest.config.media_type if manifest.config else MEDIA_TYPE_EMPTY
    if manifest.artifact_type is None:
        return config_type
    if manifest.artifact_type in _EMPTY_CONFIG_DEMANDED and config_type != MEDIA_TYPE_EMPTY:
        return None
    return manifest.artifact_type


def _check_media_type(descriptor: Descriptor, data: bytes, what: str) -> None:
    """Refuse a manifest whose own mediaType is not its descriptor's: there is no header here to say it."""
    try:
        document = strict_json.loads(data, max_bytes=MAX_MANIFEST_BYTES)
    except strict_json.MalformedJSONError as error:
        raise Refused("MANIFEST_INVALID", f"{what} is not JSON: {error}") from None
    found = document.get("mediaType", descriptor.media_type) if isinstance(document, dict) else None
    if found != descriptor.media_type:
        raise Refused(
            "MANIFEST_INVALID",
            f"{what} is of another media type than its descriptor says",
            expected=descriptor.media_type,
            found=str(found),
        )


def _read_file(path: Path, max_bytes: int) -> bytes:
    """A regular file, up to one byte more than `max_bytes`, which then tells that it is longer.

    Raises:
        FileNotFoundError: there is none.
        Undecided: REGISTRY_UNAVAILABLE, when it cannot be read or is no regular file.
    """
    try:
        # O_NONBLOCK: opening a pipe that nobody writes to would wait for ever.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise _unreadable(f"{path} is not a regular file")
            return file.read(max_bytes + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(error.errno, error.strerror, str(path)) from None
    except OSError as error:
        raise _unreadable(f"{path} cannot be read: {error.strerror}") from None


def _unreadable(reason: str) -> Undecided:
    return Undecided(
        "REGISTRY_UNAVAILABLE",
        reason,
        remediation="Check the path of the Store, that its volume is mounted, and that the process may read it.",
    )
