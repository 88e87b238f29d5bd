"""Real registries on loopback, and the few raw requests that tests need of a registry.

Rules:
- Written against the OCI Distribution specification 1.1 with nothing but the standard library: it is the second opinion
  to the product's own client, so it shares no code with it.
- What is pushed is exactly the bytes given; digests are computed here and never taken from an answer.

What does not belong here: signing (signers.py) and judging (judges.py).
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from tests.interop import peers

IMAGE_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
IMAGE_INDEX = "application/vnd.oci.image.index.v1+json"
IMAGE_CONFIG = "application/vnd.oci.image.config.v1+json"
IMAGE_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
NOTATION_SIGNATURE = "application/vnd.cncf.notary.signature"
REQUEST_SECONDS = 20.0

Json = dict[str, Any]


def digest_of(data: bytes) -> str:
    """`sha256:<hex>` of some bytes."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def descriptor(data: bytes, media_type: str, **more: object) -> Json:
    """An OCI descriptor of some bytes."""
    return {"mediaType": media_type, "digest": digest_of(data), "size": len(data), **more}


def encode(document: object) -> bytes:
    """A manifest as bytes; the digest depends on them, so there is one way."""
    return json.dumps(document, separators=(",", ":")).encode()


@dataclass(frozen=True)
class Answer:
    """A registry's answer: status, headers with lower-case names, body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Repository:
    """One repository of a registry that speaks plain HTTP.

    Attributes:
        registry: `host:port`.
        name: repository path.
    """

    registry: str
    name: str

    def at(self, reference: str) -> str:
        """The image reference for a tag or a digest of this repository."""
        return f"{self.registry}/{self.name}{'@' if ':' in reference else ':'}{reference}"

    def request(
        self, method: str, path: str, *, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """One HTTP request; `path` is below `/v2/<name>/` or an absolute location that the registry gave."""
        host, _, port = self.registry.partition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=REQUEST_SECONDS)
        with contextlib.closing(connection):
            where = path if path.startswith("/") else f"/v2/{self.name}/{path}"
            connection.request(method, where, body=body, headers=dict(headers or {}))
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())

    def push_blob(self, data: bytes) -> str:
        """Push a blob; its digest."""
        begun = self.request("POST", "blobs/uploads/", body=b"")
        assert begun.status == 202, begun
        location = urlsplit(begun.headers["location"])
        query = "&".join(part for part in (location.query, urlencode({"digest": digest_of(data)})) if part)
        pushed = self.request(
            "PUT", f"{location.path}?{query}", body=data, headers={"Content-Type": "application/octet-stream"}
        )
        assert pushed.status == 201, pushed
        return digest_of(data)

    def push_manifest(self, data: bytes, media_type: str, tag: str | None = None) -> str:
        """Push a manifest under its digest or a tag; its digest."""
        pushed = self.request(
            "PUT", f"manifests/{tag or digest_of(data)}", body=data, headers={"Content-Type": media_type}
        )
        assert pushed.status == 201, pushed
        return digest_of(data)

    def manifest(self, reference: str) -> bytes:
        """A manifest's bytes."""
        accept = {"Accept": f"{IMAGE_MANIFEST}, {IMAGE_INDEX}"}
        answer = self.request("GET", f"manifests/{reference}", headers=accept)
        assert answer.status == 200, answer
        return answer.body

    def blob(self, digest: str) -> bytes:
        """A blob's bytes."""
        answer = self.request("GET", f"blobs/{digest}")
        assert answer.status == 200, answer
        return answer.body

    def push_image(self, text: str, tag: str | None = None) -> str:
        """Push a tiny image whose content, and so whose digest, depends on a text; its digest."""
        config = encode({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}})
        layer = text.encode()
        self.push_blob(config)
        self.push_blob(layer)
        manifest = {
            "schemaVersion": 2,
            "mediaType": IMAGE_MANIFEST,
            "config": descriptor(config, IMAGE_CONFIG),
            "layers": [descriptor(layer, IMAGE_LAYER)],
        }
        return self.push_manifest(encode(manifest), IMAGE_MANIFEST, tag)

    def push_index(self, digests: Mapping[str, str], tag: str | None = None) -> str:
        """Push an image index over images already here, by architecture; its digest."""
        manifests = [
            descriptor(self.manifest(digest), IMAGE_MANIFEST, platform={"architecture": architecture, "os": "linux"})
            for architecture, digest in digests.items()
        ]
        index = encode({"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": manifests})
        return self.push_manifest(index, IMAGE_INDEX, tag)

    def referrers(self, digest: str) -> list[Json] | None:
        """What the referrers API lists for a digest, unfiltered; None where the registry has no such API."""
        answer = self.request("GET", f"referrers/{digest}")
        if answer.status == 404:
            return None
        assert answer.status == 200, answer
        listed: list[Json] = json.loads(answer.body)["manifests"]
        return listed

    def tag_schema(self, digest: str) -> list[Json]:
        """What the referrers tag schema lists for a digest."""
        answer = self.request("GET", f"manifests/{digest.replace(':', '-')}", headers={"Accept": IMAGE_INDEX})
        if answer.status == 404:
            return []
        assert answer.status == 200, answer
        listed: list[Json] = json.loads(answer.body)["manifests"]
        return listed

    def signatures(self, digest: str) -> list[str]:
        """Digests of the notation signature manifests attached to a digest, by either way of finding them."""
        listed = self.referrers(digest) or self.tag_schema(digest)
        return [entry["digest"] for entry in listed if entry.get("artifactType") == NOTATION_SIGNATURE]

    def envelope(self, signature: str) -> tuple[bytes, str]:
        """The envelope of a signature manifest, and its media type."""
        layer = json.loads(self.manifest(signature))["layers"][0]
        return self.blob(layer["digest"]), layer["mediaType"]

    def attach(self, subject: str, template: bytes, envelope: bytes) -> str:
        """Attach an envelope to an image as a signature, as an attacker with push rights would; its manifest's digest.

        Both ways of finding it are served: the manifest names its subject, and the tag schema's index lists it.

        Args:
            subject: digest of the image.
            template: a signature manifest whose other members are kept.
            envelope: what becomes the only layer.
        """
        manifest = json.loads(template)
        body = self.manifest(subject)
        manifest["subject"] = descriptor(body, json.loads(body)["mediaType"])
        manifest["layers"] = [descriptor(envelope, manifest["layers"][0]["mediaType"])]
        self.push_blob(self.blob(manifest["config"]["digest"]))
        self.push_blob(envelope)
        data = encode(manifest)
        digest = self.push_manifest(data, IMAGE_MANIFEST)
        artifact_type = manifest.get("artifactType", manifest["config"]["mediaType"])
        listed = [*self.tag_schema(subject), descriptor(data, IMAGE_MANIFEST, artifactType=artifact_type)]
        index = {"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": listed}
        self.push_manifest(encode(index), IMAGE_INDEX, subject.replace(":", "-"))
        return digest


@dataclass(frozen=True)
class Registry:
    """A running registry.

    Attributes:
        kind: `zot`, `docker-registry` or `ggcr-registry`.
        address: `host:port`, plain HTTP.
        has_referrers_api: whether it serves OCI 1.1's referrers API; else signatures are found by the tag schema.
        lists_artifact_types: whether that API names a manifest's artifactType as it must.
    """

    kind: str
    address: str
    has_referrers_api: bool
    lists_artifact_types: bool = True

    def repository(self, name: str) -> Repository:
        return Repository(self.address, name)


@contextlib.contextmanager
def docker_registry(folder: Path) -> Iterator[Registry]:
    """Docker's registry 2.8 as Debian ships it: no referrers API."""
    configuration = folder / "docker-registry.yml"
    configuration.write_text(
        json.dumps(  # JSON is YAML
            {
                "version": 0.1,
                "log": {"level": "info"},
                "storage": {"inmemory": {}},
                "http": {"addr": "127.0.0.1:0", "secret": "only so that it need not make one up"},
            }
        )
    )
    command: peers.Command = [peers.find("docker-registry"), "serve", configuration]
    with peers.serving(command, address=re.compile(r"listening on (127\.0\.0\.1:\d+)")) as address:
        yield Registry("docker-registry", address, has_referrers_api=False)


@contextlib.contextmanager
def ggcr_registry(folder: Path) -> Iterator[Registry]:
    """go-containerregistry's: its referrers API filters nothing and lists the config's type as artifact type."""
    with peers.serving([peers.find("ggcr-registry")], address=re.compile(r"^(127\.0\.0\.1:\d+)$")) as address:
        yield Registry("ggcr-registry", address, has_referrers_api=True, lists_artifact_types=False)


@contextlib.contextmanager
def zot(folder: Path) -> Iterator[Registry]:
    """zot: the referrers API with its filter. It logs JSON and names the port that it was given by the system."""
    configuration = folder / "zot.json"
    configuration.write_text(
        json.dumps(
            {
                "distSpecVersion": "1.1.1",
                "storage": {"rootDirectory": str(folder / "zot"), "gc": False},
                "http": {"address": "127.0.0.1", "port": "0"},
                "log": {"level": "info"},
            }
        )
    )
    command: peers.Command = [peers.find("zot"), "serve", configuration]
    chosen = re.compile(r'(?=.*kernel chosen port).*"port":\s*(\d+)')
    with peers.serving(command, address=chosen) as port:
        yield Registry("zot", f"127.0.0.1:{port}", has_referrers_api=True)


KINDS = {"docker-registry": docker_registry, "ggcr-registry": ggcr_registry, "zot": zot}
