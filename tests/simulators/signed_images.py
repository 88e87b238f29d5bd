"""Images and their Notation signatures, put into a repository of the registry simulator."""

from __future__ import annotations

import json
from typing import Any

from provider.oci import Descriptor
from tests.simulators.registry import Repository, as_json, describe
from tests.simulators.signer import JWS, Signer

SIGNATURE = "application/vnd.cncf.notary.signature"
IMAGE_TYPE = "application/vnd.oci.image.manifest.v1+json"


def push(repository: Repository, data: bytes, media_type: str, tag: str | None = None) -> Descriptor:
    descriptor = describe(data, media_type)
    repository.manifests[str(descriptor.digest)] = (data, media_type)
    if tag:
        repository.tags[tag] = str(descriptor.digest)
    return descriptor


def push_blob(repository: Repository, data: bytes, media_type: str) -> dict[str, Any]:
    descriptor = describe(data, media_type)
    repository.blobs[str(descriptor.digest)] = data
    return as_json(descriptor)


def push_image(repository: Repository, tag: str) -> Descriptor:
    config = push_blob(repository, b'{"tag": "%s"}' % tag.encode(), "application/vnd.oci.image.config.v1+json")
    manifest = {"schemaVersion": 2, "mediaType": IMAGE_TYPE, "config": config, "layers": []}
    return push(repository, json.dumps(manifest).encode(), IMAGE_TYPE, tag)


def sign(repository: Repository, image: Descriptor, signer: Signer) -> None:
    payload = json.dumps({"targetArtifact": as_json(image)}).encode()
    manifest = {
        "schemaVersion": 2,
        "mediaType": IMAGE_TYPE,
        "artifactType": SIGNATURE,
        "config": push_blob(repository, b"{}", "application/vnd.oci.empty.v1+json"),
        "layers": [push_blob(repository, signer.jws(payload=payload), JWS)],
        "subject": as_json(image),
    }
    push(repository, json.dumps(manifest).encode(), IMAGE_TYPE)
