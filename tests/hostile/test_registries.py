"""Registries that send too much, too slowly, or something else than was asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

import pytest

from provider.demo import signing
from provider.oci import MEDIA_TYPE_INDEX, MEDIA_TYPE_MANIFEST, Descriptor
from tests.hostile.faults import bomb, drip, flood
from tests.hostile.site import NOW, SIGNER, STRANGER, Site, push_envelope, sign
from tests.simulators.listener import Fault, hang, status, trickle
from tests.simulators.registry import (
    SIGNATURE,
    Links,
    as_json,
    describe,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

TAG: Final = "/v2/app/manifests/v1"
LIST: Final = "/v2/app/referrers/*"
MANIFEST: Final = "/v2/app/manifests/sha256:*"
BLOB: Final = "/v2/app/blobs/*"
OK: Final = f"HTTP/1.1 200 OK\r\nContent-Type: {MEDIA_TYPE_INDEX}\r\n".encode()
CHUNKED: Final = OK + b"Transfer-Encoding: chunked\r\n\r\n"
OBJECTS: Final = [LIST, MANIFEST, BLOB]
NAMES: Final = {TAG: "tag", LIST: "list", MANIFEST: "manifest", BLOB: "envelope"}
METADATA: Final = [
    "http://169.254.169.254/latest/meta-data",
    "http://[fd00:ec2::254]/latest/meta-data",
    "http://2852039166/decimal",
    "http://0251.0376.0251.0376/octal",
    "http://0xa9fea9fe/hexadecimal",
    "http://169.254.43518/short",
    "http://[::ffff:169.254.169.254]/mapped",
    "http://[64:ff9b::a9fe:a9fe]/nat64",
    "http://[2002:a9fe:a9fe::]/6to4",
    "http://168.63.129.16/azure",
    "http://100.100.100.200/alibaba",
]
ENTRY: Final = {"mediaType": MEDIA_TYPE_MANIFEST, "artifactType": SIGNATURE, "size": 700}


def short(value: object) -> str | None:
    """Parameters as they are shown."""
    return NAMES.get(value) if isinstance(value, str) else None


async def spoilt(site: Site, pattern: str, fault: Fault, *codes: str) -> str:
    """A signed image, whose registry spoils the answers to these paths."""
    registry = site.registry()
    key, _ = site.image(registry)
    registry.fault(pattern, fault)
    return await site.denied(key, *codes)


# -- too much ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "code"),
    [(LIST, "MANIFEST_INVALID"), (MANIFEST, "DIGEST_MISMATCH"), (BLOB, "DIGEST_MISMATCH")],
    ids=short,
)
async def test_n15_a_body_without_end(site: Site, pattern: str, code: str) -> None:
    await spoilt(site, pattern, flood(CHUNKED, b"10000\r\n" + bytes(65536) + b"\r\n"), code)


@pytest.mark.parametrize("pattern", OBJECTS, ids=short)
async def test_n15_a_gzip_bomb(site: Site, pattern: str) -> None:
    await spoilt(site, pattern, bomb(), "REGISTRY_PROTOCOL")


@pytest.mark.parametrize(
    ("pattern", "code"),
    [(LIST, "MANIFEST_INVALID"), (MANIFEST, "DIGEST_MISMATCH"), (BLOB, "DIGEST_MISMATCH")],
    ids=short,
)
async def test_n15_a_promise_of_a_terabyte(site: Site, pattern: str, code: str) -> None:
    await spoilt(site, pattern, drip(OK + b"Content-Length: %d\r\n\r\n" % (1 << 40), b""), code)


@pytest.mark.parametrize(
    ("start", "unit"),
    [
        (OK + b"X: ", b"a" * 65536),
        (OK, b"X: aaaaaaaaaaaaa\r\n" * 4096),
        (CHUNKED + b"0\r\n", b"X: aaaaaaaaaaaaa\r\n" * 4096),
        (b"HTTP/1.1 200 ", b"a" * 65536),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 2048),
        (b"", b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" * 1024),
    ],
    ids=["field", "fields", "trailers", "reason", "100 Continue", "103 Early Hints"],
)
async def test_n15_a_head_without_end(site: Site, start: bytes, unit: bytes) -> None:
    await spoilt(site, LIST, flood(start, unit), "REGISTRY_PROTOCOL")


@pytest.mark.parametrize(
    ("start", "unit"),
    [(CHUNKED + b"1;", b"a" * 65536), (CHUNKED, b"1\r\na\r\n" * 8192), (b"", b"\r\n" * 32768)],
    ids=["chunk extension", "chunks of one byte", "blank lines"],
)
async def test_n15_framing_without_end(site: Site, start: bytes, unit: bytes) -> None:
    """It ends with the time of the exchange or after 64 MiB, whichever is first."""
    await spoilt(site, LIST, flood(start, unit), "DEADLINE_EXCEEDED", "REGISTRY_PROTOCOL", "REGISTRY_UNAVAILABLE")


# -- too slow ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", [TAG, *OBJECTS], ids=short)
async def test_n22_a_registry_that_never_answers(site: Site, pattern: str) -> None:
    await spoilt(site, pattern, hang(), "DEADLINE_EXCEEDED")


@pytest.mark.parametrize(
    "fault",
    [
        trickle(0.2),
        drip(b"HTTP/1.1 200 OK\r\n", b"X"),
        drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n", seconds=0.4),
        drip(CHUNKED, b"1\r\na\r\n"),
    ],
    ids=["body", "head", "100 Continue", "chunks"],
)
async def test_n22_a_registry_that_dribbles(site: Site, fault: Fault) -> None:
    await spoilt(site, LIST, fault, "DEADLINE_EXCEEDED")


# -- elsewhere --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", METADATA)
async def test_n04_a_blob_that_is_redirected_to_a_metadata_service(site: Site, target: str) -> None:
    await spoilt(site, BLOB, status(307, headers={"Location": target}), "REGISTRY_PROTOCOL")


@pytest.mark.parametrize("target", METADATA)
async def test_n03_a_token_service_that_is_a_metadata_service(site: Site, target: str) -> None:
    registry = site.registry()
    key, _ = site.image(registry)
    registry.auth, registry.realm = "bearer", target
    await site.denied(key, "REGISTRY_UNAUTHORIZED")


@pytest.mark.parametrize(
    "host",
    ["169.254.169.254", "2852039166:80", "0251.0376.0251.0376", "0xa9fea9fe:80", "168.63.129.16"],
)
async def test_n03_an_image_that_is_at_a_metadata_service(site: Site, host: str) -> None:
    await site.denied(f"{host}/latest:v1", "REGISTRY_PROTOCOL")


async def test_n04_redirects_without_end(site: Site) -> None:
    registry = site.registry()
    key, _ = site.image(registry)
    registry.fault(BLOB, status(307, headers={"Location": f"{registry.url}/v2/app/blobs/sha256:0"}))
    await site.denied(key, "REGISTRY_PROTOCOL")


@pytest.mark.parametrize("pattern", [TAG, LIST, MANIFEST], ids=short)
async def test_n04_a_redirect_of_what_is_not_redirected(site: Site, pattern: str) -> None:
    elsewhere = site.registry()
    await spoilt(site, pattern, status(307, headers={"Location": f"{elsewhere.url}/v2/app/x"}), "REGISTRY_PROTOCOL")
    assert elsewhere.requests == []


# -- lists ------------------------------------------------------------------------------------------------------------


async def test_n13_a_page_of_referrers_without_end(site: Site) -> None:
    listed = b",".join([json.dumps({**ENTRY, "digest": "sha256:" + "0" * 64}).encode()] * 1000) + b","
    start = b'{"schemaVersion":2,"manifests":['
    chunks = [b"%x\r\n%b\r\n" % (len(data), data) for data in (start, listed)]
    await spoilt(site, LIST, flood(CHUNKED + chunks[0], chunks[1]), "MANIFEST_INVALID")


@pytest.mark.parametrize(
    ("links", "code"),
    [("endless", "POLICY_NOT_SATISFIED"), ("loop", "REGISTRY_PROTOCOL"), ("other host", "REGISTRY_PROTOCOL")],
)
async def test_n13_pages_without_end(site: Site, links: Links, code: str) -> None:
    registry = site.registry()
    key, image = site.image(registry, signed=False)
    for _ in range(3):
        sign(registry, image, STRANGER)
    registry.page_size, registry.links = 1, links
    await site.denied(key, code)


async def test_n13_one_bad_signature_listed_a_thousand_times(site: Site) -> None:
    registry = site.registry()
    key, image = site.image(registry, signed=False)
    signature = sign(registry, image, STRANGER)
    for _ in range(1000):
        registry.list_referrer("app", image.digest, {**as_json(signature), "artifactType": SIGNATURE})
    await site.denied(key, "POLICY_NOT_SATISFIED")


@pytest.mark.parametrize(
    ("entry", "code"),
    [
        ({"digest": "sha256:" + "0" * 64}, "IMAGE_NOT_FOUND"),
        ({"size": 1}, "DIGEST_MISMATCH"),
        ({"size": 1 << 62}, "MANIFEST_INVALID"),
        ({"mediaType": "application/vnd.oci.image.index.v1+json"}, "MANIFEST_INVALID"),
        ({"mediaType": "text/html"}, "MANIFEST_INVALID"),
        ({"digest": "sha256:../../token"}, "MANIFEST_INVALID"),
        ({"digest": "md5:d41d8cd98f00b204e9800998ecf8427e"}, "MANIFEST_INVALID"),
    ],
    ids=["digest", "size", "huge size", "index", "type", "path", "md5"],
)
async def test_n25_an_entry_that_is_not_what_it_says(site: Site, entry: dict[str, Any], code: str) -> None:
    registry = site.registry()
    key, image = site.image(registry)
    [true] = registry.repository("app").referrers[str(image.digest)]
    registry.repository("app").referrers[str(image.digest)] = [{**true, **entry}]
    await site.denied(key, code)


# -- manifests --------------------------------------------------------------------------------------------------------


def manifest(image: Descriptor, envelope: Descriptor, **members: Any) -> dict[str, Any]:
    """A signature manifest, with some members replaced."""
    return {
        "schemaVersion": 2,
        "mediaType": MEDIA_TYPE_MANIFEST,
        "artifactType": SIGNATURE,
        "config": as_json(describe(b"{}", "application/vnd.oci.empty.v1+json")),
        "layers": [as_json(envelope)],
        "subject": as_json(image),
        **members,
    }


OTHER: Final = describe(b"another image", MEDIA_TYPE_MANIFEST)
Spoil = Callable[[Descriptor, Descriptor], bytes]


def with_members(**members: Any) -> Spoil:
    return lambda image, envelope: json.dumps(manifest(image, envelope, **members)).encode()


def two_layers(image: Descriptor, envelope: Descriptor) -> bytes:
    return json.dumps(manifest(image, envelope, layers=[as_json(envelope)] * 2)).encode()


def twice(image: Descriptor, envelope: Descriptor) -> bytes:
    """A manifest that two readers read differently: which of the subjects counts?"""
    data = json.dumps(manifest(image, envelope)).encode()
    return data[:-1] + b', "subject": ' + json.dumps(as_json(OTHER)).encode() + b"}"


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (with_members(subject=as_json(OTHER)), "MANIFEST_INVALID"),
        (with_members(subject=None), "MANIFEST_INVALID"),
        (with_members(layers=[]), "MANIFEST_INVALID"),
        (
            lambda image, envelope: json.dumps(manifest(image, envelope, layers=[as_json(envelope)] * 2)).encode(),
            "MANIFEST_INVALID",
        ),
        (twice, "MANIFEST_INVALID"),
        (lambda image, envelope: b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}", "MANIFEST_INVALID"),
        (lambda image, envelope: b'{"a":' * 50_000 + b"1" + b"}" * 50_000, "MANIFEST_INVALID"),
        (lambda image, envelope: b'{"schemaVersion":' + b"9" * 100_000 + b"}", "MANIFEST_INVALID"),
        (lambda image, envelope: b"[" + b"1," * 1_000_000 + b"1]", "MANIFEST_INVALID"),
        (
            lambda image, envelope: b"\xff\xfe" + json.dumps(manifest(image, envelope)).encode("utf-16-le"),
            "MANIFEST_INVALID",
        ),
    ],
    ids=[
        "subject",
        "no subject",
        "no layer",
        "two layers",
        "a name twice",
        "deep lists",
        "deep objects",
        "huge number",
        "crowded",
        "UTF-16",
    ],
)
async def test_n29_a_signature_manifest_that_is_none(site: Site, spoil: Spoil, code: str) -> None:
    registry = site.registry()
    key, image = site.image(registry, signed=False)
    envelope = registry.push_blob("app", signing.sign(image, STRANGER, NOW), "application/jose+json")
    data = spoil(image, envelope)
    entry = {**as_json(describe(data, MEDIA_TYPE_MANIFEST)), "artifactType": SIGNATURE}
    registry.repository("app").manifests[entry["digest"]] = (data, MEDIA_TYPE_MANIFEST)
    registry.list_referrer("app", image.digest, entry)
    await site.denied(key, code)


async def test_n20_what_refers_to_a_signature_is_not_looked_for(site: Site) -> None:
    """However long the chain of referrers, nobody walks it: a good signature at its end is not even asked for."""
    registry = site.registry()
    key, image = site.image(registry, signed=False)
    end = sign(registry, image, STRANGER)
    for _ in range(1000):
        end = registry.push_artifact("app", end, SIGNATURE, [(b"{}", "application/jose+json")])
    push_envelope(registry, end, signing.sign(image, SIGNER, NOW))
    await site.denied(key, "UNTRUSTED_ROOT")
    assert [line for line in site.asked[registry.host] if "/referrers/" in line] == [
        f"GET /v2/app/referrers/{image.digest}"
    ]
