"""OCI image layouts on disk, written from what was pushed to a registry simulator."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.simulators.registry import Repository, index_of


def write_layout(repository: Repository, folder: Path) -> Path:
    """Write a repository as an image layout: manifests in the order they were pushed, each as its key says it is, even
    when its content was spoilt since."""
    blobs = {digest: data for digest, (data, _) in repository.manifests.items()} | repository.blobs
    for digest, data in blobs.items():
        algorithm, _, hexadecimal = digest.partition(":")
        (folder / "blobs" / algorithm).mkdir(parents=True, exist_ok=True)
        (folder / "blobs" / algorithm / hexadecimal).write_bytes(data)
    listed = {entry["digest"]: entry for entries in repository.referrers.values() for entry in entries}
    entries: list[dict[str, Any]] = []
    for digest, (data, media_type) in repository.manifests.items():
        entry = dict(listed.get(digest) or {"mediaType": media_type, "digest": digest, "size": len(data)})
        names = [tag for tag, tagged in repository.tags.items() if tagged == digest]
        if names:
            entry["annotations"] = {"org.opencontainers.image.ref.name": names[0]}
        entries.append(entry)
    (folder / "oci-layout").write_text(json.dumps({"imageLayoutVersion": "1.0.0"}))
    (folder / "index.json").write_bytes(index_of(entries))
    return folder
