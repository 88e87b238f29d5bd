"""Pushing into a registry with the oras package: blobs, images and the signatures that refer to them.

Rules:
- This is the one file that imports oras, and it does so when something is pushed: the import takes its time.
- oras blocks and, when a registry fails, sleeps for minutes between attempts; so everything here runs in a thread
  of its own, and only against a registry that the caller runs itself.
- No proxy, no credential store: what is pushed here goes to loopback.

What does not belong here: what is pushed (images.py), the registry (registry.py).
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from provider.demo.signing import EMPTY_CONFIG, descriptor_json
from provider.errors import Undecided
from provider.oci import MEDIA_TYPE_MANIFEST, Descriptor, Digest

MEDIA_TYPE_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
MEDIA_TYPE_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"


@dataclass(frozen=True, slots=True)
class Push:
    """One manifest to push, with its blobs.

    Attributes:
        repository: repository path.
        reference: tag, or digest for an untagged manifest.
        manifest: bytes of the manifest.
        blobs: what the manifest needs and the registry may not have yet.
    """

    repository: str
    reference: str
    manifest: bytes
    blobs: tuple[bytes, ...]


def image(repository: str, tag: str, content: str) -> tuple[Push, Descriptor]:
    """A tiny image whose one layer is the given text, and the descriptor that a signature of it names."""
    layer = content.encode()
    config = json.dumps({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}}).encode()
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MEDIA_TYPE_MANIFEST,
            "config": descriptor_json(Descriptor(MEDIA_TYPE_CONFIG, Digest.of(config), len(config))),
            "layers": [descriptor_json(Descriptor(MEDIA_TYPE_LAYER, Digest.of(layer), len(layer)))],
        },
        separators=(",", ":"),
    ).encode()
    descriptor = Descriptor(MEDIA_TYPE_MANIFEST, Digest.of(manifest), len(manifest))
    return Push(repository, tag, manifest, (config, layer)), descriptor


def signature(repository: str, manifest: bytes, envelope: bytes) -> Push:
    """The push of a signature manifest, by digest, with its envelope."""
    return Push(repository, str(Digest.of(manifest)), manifest, (EMPTY_CONFIG, envelope))


async def publish(host: str, pushes: Sequence[Push]) -> None:
    """Push everything, in order, in a thread.

    Args:
        host: `address:port` of a registry that speaks plain HTTP.
        pushes: what to push.

    Raises:
        Undecided: REGISTRY_UNAVAILABLE, when the registry refuses something.
    """
    await asyncio.to_thread(_publish, host, pushes)


def _publish(host: str, pushes: Sequence[Push]) -> None:
    import oras.provider  # the one place; see this file's head

    registry = oras.provider.Registry(hostname=host, insecure=True)
    registry.session.trust_env = False
    try:
        with tempfile.TemporaryDirectory(prefix="countersign-demo-") as folder:
            for push in pushes:
                _push(registry, host, push, Path(folder))
    finally:
        registry.session.close()


def _push(registry: Any, host: str, push: Push, folder: Path) -> None:
    container = registry.get_container(f"{host}/{push.repository}:latest")
    for blob in push.blobs:
        file = folder / "blob"
        file.write_bytes(blob)
        layer = {"mediaType": "application/octet-stream", "digest": str(Digest.of(blob)), "size": len(blob)}
        _check(registry.upload_blob(str(file), container, layer), "a blob")
    # oras would write the manifest's JSON itself, and the signature is over these very bytes.
    response = registry.do_request(
        f"http://{container.manifest_url(push.reference)}",
        "PUT",
        data=push.manifest,
        headers={"Content-Type": MEDIA_TYPE_MANIFEST},
    )
    _check(response, "a manifest")


def _check(response: Any, what: str) -> None:
    if response.status_code not in (200, 201):
        raise Undecided("REGISTRY_UNAVAILABLE", f"the registry refused {what}", found=f"status {response.status_code}")
