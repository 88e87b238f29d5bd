"""The embedded registry, the revocation end points and pushing with oras, over real sockets."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from provider.demo import pki, registry
from provider.demo.publishing import Push, image, publish, signature
from provider.demo.registry import EmbeddedRegistry
from provider.demo.revocation_service import RevocationService
from provider.demo.signing import ARTIFACT_TYPE, EnvelopeFormat, descriptor_json, signature_manifest
from provider.errors import Undecided, UsageError
from provider.oci import MEDIA_TYPE_INDEX, MEDIA_TYPE_MANIFEST, Descriptor, Digest, Index

NOW = datetime(2026, 6, 1, tzinfo=UTC)
REPOSITORY = "team/app"


@pytest.fixture
async def running() -> AsyncIterator[EmbeddedRegistry]:
    async with EmbeddedRegistry() as made:
        yield made


@pytest.fixture
async def client(running: EmbeddedRegistry) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(f"http://{running.host}") as session:
        yield session


async def _code(response: aiohttp.ClientResponse) -> str:
    return str((await response.json())["errors"][0]["code"])


async def _attach(running: EmbeddedRegistry, tag: str, *envelopes: bytes) -> tuple[Descriptor, list[Digest]]:
    push, target = image(REPOSITORY, tag, tag)
    manifests = [
        signature_manifest(target, envelope, EnvelopeFormat.JWS.value, (), created=NOW, legacy=bool(number % 2))
        for number, envelope in enumerate(envelopes)
    ]
    pushes = [
        signature(REPOSITORY, manifest, envelope) for manifest, envelope in zip(manifests, envelopes, strict=True)
    ]
    await publish(running.host, [push, *pushes])
    return target, [Digest.of(manifest) for manifest in manifests]


async def test_what_oras_pushes_is_pulled_byte_for_byte(
    running: EmbeddedRegistry, client: aiohttp.ClientSession
) -> None:
    push, target = image(REPOSITORY, "1", "content")
    await publish(running.host, [push])
    for reference in ("1", str(target.digest)):
        async with client.get(f"/v2/{REPOSITORY}/manifests/{reference}") as response:
            assert response.content_type == MEDIA_TYPE_MANIFEST
            assert response.headers["Docker-Content-Digest"] == str(target.digest)
            assert await response.read() == push.manifest
        async with client.head(f"/v2/{REPOSITORY}/manifests/{reference}") as response:
            assert int(response.headers["Content-Length"]) == target.size
    for blob in push.blobs:
        async with client.get(f"/v2/{REPOSITORY}/blobs/{Digest.of(blob)}") as response:
            assert await response.read() == blob


async def test_signatures_are_listed_as_referrers_of_both_forms_and_can_be_filtered(
    running: EmbeddedRegistry, client: aiohttp.ClientSession
) -> None:
    target, digests = await _attach(running, "1", b"one", b"two")
    await _attach(running, "2", b"three")
    async with client.get(f"/v2/{REPOSITORY}/referrers/{target.digest}") as response:
        assert "OCI-Filters-Applied" not in response.headers
        index = Index.parse(await response.read())
    assert [entry.digest for entry in index.manifests] == digests
    assert {entry.artifact_type for entry in index.manifests} == {ARTIFACT_TYPE}
    query = f"?artifactType={quote(ARTIFACT_TYPE, safe='')}"
    async with client.get(f"/v2/{REPOSITORY}/referrers/{target.digest}{query}") as response:
        assert response.content_type == MEDIA_TYPE_INDEX
        assert response.headers["OCI-Filters-Applied"] == "artifactType"
        assert len(Index.parse(await response.read()).manifests) == 2
    async with client.get(f"/v2/{REPOSITORY}/referrers/{target.digest}?artifactType=other/type") as response:
        assert Index.parse(await response.read()).manifests == ()


async def test_an_image_without_referrers_or_repository_has_an_empty_list(client: aiohttp.ClientSession) -> None:
    async with client.get(f"/v2/no/such/referrers/{Digest.of(b'x')}") as response:
        assert response.status == 200
        assert Index.parse(await response.read()).manifests == ()


async def _upload(client: aiohttp.ClientSession, data: bytes, *cuts: int) -> aiohttp.ClientResponse:
    async with client.post(f"/v2/{REPOSITORY}/blobs/uploads/") as response:
        location = response.headers["Location"]
    for begin, end in zip((0, *cuts), cuts, strict=False):
        headers = {"Content-Range": f"{begin}-{end - 1}"}
        async with client.patch(location, data=data[begin:end], headers=headers) as response:
            assert response.headers["Range"] == f"0-{end - 1}"
    rest = data[cuts[-1] :] if cuts else data
    async with client.put(f"{location}?digest={Digest.of(data)}", data=rest) as response:
        return response


async def test_a_blob_arrives_in_one_piece_or_in_chunks(client: aiohttp.ClientSession) -> None:
    for data, cuts in ((b"whole", ()), (b"in three parts", (4, 9))):
        assert (await _upload(client, data, *cuts)).status == 201
        async with client.head(f"/v2/{REPOSITORY}/blobs/{Digest.of(data)}") as response:
            assert int(response.headers["Content-Length"]) == len(data)


async def test_a_blob_can_be_posted_at_once_or_mounted_from_another_repository(client: aiohttp.ClientSession) -> None:
    digest = Digest.of(b"x")
    async with client.post(f"/v2/{REPOSITORY}/blobs/uploads/?digest={digest}", data=b"x") as response:
        assert response.status == 201
    async with client.post(f"/v2/other/blobs/uploads/?mount={digest}&from={REPOSITORY}") as response:
        assert response.status == 201
    async with client.get(f"/v2/other/blobs/{digest}") as response:
        assert await response.read() == b"x"
    async with client.post(f"/v2/other/blobs/uploads/?mount={digest}&from=no/such") as response:
        assert response.status == 202  # an ordinary upload begins


async def test_an_upload_can_be_looked_at_and_given_up(client: aiohttp.ClientSession) -> None:
    async with client.post(f"/v2/{REPOSITORY}/blobs/uploads/") as response:
        location = response.headers["Location"]
    async with client.patch(location, data=b"abc"):
        pass
    async with client.get(location) as response:
        assert (response.status, response.headers["Range"]) == (204, "0-2")
    async with client.delete(location) as response:
        assert response.status == 204
    async with client.get(location) as response:
        assert (response.status, await _code(response)) == (404, "BLOB_UPLOAD_UNKNOWN")


async def test_a_chunk_out_of_place_is_refused(client: aiohttp.ClientSession) -> None:
    async with client.post(f"/v2/{REPOSITORY}/blobs/uploads/") as response:
        location = response.headers["Location"]
    for content_range in ("5-7", "0-9", "junk"):
        async with client.patch(location, data=b"abc", headers={"Content-Range": content_range}) as response:
            assert (response.status, await _code(response)) == (416, "BLOB_UPLOAD_INVALID")


@pytest.mark.parametrize("digest", ["sha256:" + "0" * 64, "sha256:short", "md5:" + "0" * 32, ""])
async def test_n25_nothing_is_kept_under_a_digest_that_it_does_not_have(
    client: aiohttp.ClientSession, digest: str
) -> None:
    async with client.post(f"/v2/{REPOSITORY}/blobs/uploads/?digest={digest}", data=b"x") as response:
        assert (response.status, await _code(response)) == (400, "DIGEST_INVALID")


async def test_a_manifest_under_another_digest_is_refused(client: aiohttp.ClientSession) -> None:
    url = f"/v2/{REPOSITORY}/manifests/sha256:{'0' * 64}"
    async with client.put(url, data=b"{}", headers={"Content-Type": MEDIA_TYPE_MANIFEST}) as response:
        assert (response.status, await _code(response)) == (400, "DIGEST_INVALID")


@pytest.mark.parametrize(
    ("body", "content_type", "status", "code"),
    [
        (b"{}", "text/plain", 400, "MANIFEST_INVALID"),
        (b"not json", MEDIA_TYPE_MANIFEST, 400, "MANIFEST_INVALID"),
        (b"not json", MEDIA_TYPE_INDEX, 400, "MANIFEST_INVALID"),
        (image("x", "y", "z")[0].manifest, MEDIA_TYPE_MANIFEST, 404, "MANIFEST_BLOB_UNKNOWN"),
        (b" " * (4 * 1024 * 1024 + 1), MEDIA_TYPE_MANIFEST, 413, "SIZE_INVALID"),
    ],
)
async def test_a_manifest_that_is_none_or_lacks_its_parts_is_refused(
    client: aiohttp.ClientSession, body: bytes, content_type: str, status: int, code: str
) -> None:
    headers = {"Content-Type": content_type}
    async with client.put(f"/v2/{REPOSITORY}/manifests/1", data=io.BytesIO(body), headers=headers) as response:
        assert (response.status, await _code(response)) == (status, code)


async def test_an_index_is_kept_when_its_manifests_are_there(
    running: EmbeddedRegistry, client: aiohttp.ClientSession
) -> None:
    push, target = image(REPOSITORY, "1", "content")
    body = json.dumps({"schemaVersion": 2, "mediaType": MEDIA_TYPE_INDEX, "manifests": [descriptor_json(target)]})
    headers = {"Content-Type": MEDIA_TYPE_INDEX}
    url = f"/v2/{REPOSITORY}/manifests/all"
    async with client.put(url, data=body, headers=headers) as response:
        assert (response.status, await _code(response)) == (404, "MANIFEST_BLOB_UNKNOWN")
    await publish(running.host, [push])
    async with client.put(url, data=body, headers=headers) as response:
        assert response.status == 201
        assert "OCI-Subject" not in response.headers


async def test_a_manifest_with_a_subject_is_acknowledged_as_a_referrer(client: aiohttp.ClientSession) -> None:
    subject = Descriptor(MEDIA_TYPE_MANIFEST, Digest.of(b"not pushed"), 10)
    manifest = signature_manifest(subject, b"e", EnvelopeFormat.COSE.value, (), created=NOW)
    for blob in (b"{}", b"e"):
        await _upload(client, blob)
    url = f"/v2/{REPOSITORY}/manifests/{Digest.of(manifest)}"
    async with client.put(url, data=manifest, headers={"Content-Type": MEDIA_TYPE_MANIFEST}) as response:
        assert response.status == 201
        assert response.headers["OCI-Subject"] == str(subject.digest)


async def test_tags_come_sorted_and_in_pages(running: EmbeddedRegistry, client: aiohttp.ClientSession) -> None:
    await publish(running.host, [image(REPOSITORY, tag, tag)[0] for tag in ("c", "a", "b")])
    async with client.get(f"/v2/{REPOSITORY}/tags/list?n=2") as response:
        assert await response.json() == {"name": REPOSITORY, "tags": ["a", "b"]}
        assert response.headers["Link"] == f'</v2/{REPOSITORY}/tags/list?n=2&last=b>; rel="next"'
    async with client.get(f"/v2/{REPOSITORY}/tags/list?n=2&last=b") as response:
        assert (await response.json())["tags"] == ["c"]
        assert "Link" not in response.headers
    async with client.get(f"/v2/{REPOSITORY}/tags/list?n=x") as response:
        assert response.status == 400


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v2/no/such/tags/list", 404, "NAME_UNKNOWN"),
        ("GET", "/v2/no/such/manifests/1", 404, "NAME_UNKNOWN"),
        ("GET", "/v2/Upper/manifests/1", 400, "NAME_INVALID"),
        ("GET", f"/v2/{REPOSITORY}/manifests/none", 404, "MANIFEST_UNKNOWN"),
        ("GET", f"/v2/{REPOSITORY}/manifests/sha256:{'0' * 64}", 404, "MANIFEST_UNKNOWN"),
        ("GET", f"/v2/{REPOSITORY}/blobs/sha256:{'0' * 64}", 404, "BLOB_UNKNOWN"),
        ("GET", f"/v2/{REPOSITORY}/referrers/nonsense", 400, "DIGEST_INVALID"),
        ("DELETE", f"/v2/{REPOSITORY}/manifests/1", 405, "UNSUPPORTED"),
        ("DELETE", f"/v2/{REPOSITORY}/blobs/sha256:{'0' * 64}", 405, "UNSUPPORTED"),
        ("POST", "/v2/", 405, "UNSUPPORTED"),
        ("GET", "/somewhere", 404, "UNSUPPORTED"),
    ],
)
async def test_errors_are_told_in_the_specifications_words(
    running: EmbeddedRegistry, client: aiohttp.ClientSession, method: str, path: str, status: int, code: str
) -> None:
    await publish(running.host, [image(REPOSITORY, "1", "x")[0]])
    async with client.request(method, path) as response:
        assert (response.status, await _code(response)) == (status, code)
    assert running.requests[-1] == (method, path, status)


async def test_a_tag_outside_the_grammar_is_refused(running: EmbeddedRegistry, client: aiohttp.ClientSession) -> None:
    push, _ = image(REPOSITORY, "1", "x")
    await publish(running.host, [push])
    url = f"/v2/{REPOSITORY}/manifests/-bad-"
    async with client.put(url, data=push.manifest, headers={"Content-Type": MEDIA_TYPE_MANIFEST}) as response:
        assert (response.status, await _code(response)) == (400, "TAG_INVALID")


async def test_the_base_path_answers_that_this_is_a_registry(client: aiohttp.ClientSession) -> None:
    async with client.get("/v2/") as response:
        assert response.status == 200
        assert response.headers["Docker-Distribution-API-Version"] == "registry/2.0"


async def test_the_oldest_upload_makes_room(client: aiohttp.ClientSession) -> None:
    async with client.post(f"/v2/{REPOSITORY}/blobs/uploads/") as response:
        first = response.headers["Location"]
    for _ in range(registry.MAX_UPLOADS):
        async with client.post(f"/v2/{REPOSITORY}/blobs/uploads/"):
            pass
    async with client.get(first) as response:
        assert response.status == 404


async def test_n15_a_full_registry_refuses_instead_of_growing() -> None:
    async with EmbeddedRegistry(max_bytes=10) as full, aiohttp.ClientSession(f"http://{full.host}") as session:
        async with session.post(f"/v2/a/blobs/uploads/?digest={Digest.of(b'x' * 8)}", data=b"x" * 8) as response:
            assert response.status == 201
        async with session.post(f"/v2/a/blobs/uploads/?digest={Digest.of(b'y' * 8)}", data=b"y" * 8) as response:
            assert (response.status, await _code(response)) == (413, "SIZE_INVALID")
        async with session.post("/v2/a/blobs/uploads/") as response:
            location = response.headers["Location"]
        async with session.post(location) as response:
            assert (response.status, await _code(response)) == (405, "UNSUPPORTED")
        async with session.patch(location, data=b"zzz") as response:
            assert (response.status, await _code(response)) == (413, "SIZE_INVALID")


async def test_oras_tells_when_the_registry_refuses(running: EmbeddedRegistry) -> None:
    push, _ = image(REPOSITORY, "1", "x")
    lacking = Push(REPOSITORY, "1", push.manifest, ())
    with pytest.raises(Undecided) as caught:
        await publish(running.host, [lacking])
    assert caught.value.code == "REGISTRY_UNAVAILABLE"
    assert caught.value.found == "status 404"


# ---- revocation ----


def _authority() -> tuple[pki.CertifiedKey, x509.Certificate]:
    span: dict[str, Any] = {"not_before": NOW - timedelta(days=1), "not_after": NOW + timedelta(days=1)}
    root = pki.issue({"CN": "root"}, pki.authority(), issuer=None, **span)
    return root, pki.issue({"CN": "leaf"}, pki.code_signing(), issuer=root, **span).certificate


async def test_the_end_points_answer_for_the_issuer_and_by_its_clock() -> None:
    root, leaf = _authority()
    request = (
        ocsp.OCSPRequestBuilder().add_certificate(leaf, root.certificate, SHA1()).build().public_bytes(Encoding.DER)
    )
    async with RevocationService(lambda: NOW) as service, aiohttp.ClientSession() as session:
        async with session.get(service.crl_url) as response:
            assert response.status == 503  # nobody's list yet
        service.publish(root, [leaf], {leaf.serial_number: NOW})
        async with session.get(service.crl_url) as response:
            crl = x509.load_der_x509_crl(await response.read())
        assert crl.get_revoked_certificate_by_serial_number(leaf.serial_number) is not None
        assert crl.last_update_utc < NOW < (crl.next_update_utc or NOW)
        encoded = quote(base64.b64encode(request).decode(), safe="")
        answers = []
        async with session.post(service.ocsp_url, data=request) as response:
            answers.append(await response.read())
        async with session.get(f"{service.ocsp_url}/{encoded}") as response:
            answers.append(await response.read())
        for answer in answers:
            assert ocsp.load_der_ocsp_response(answer).certificate_status is ocsp.OCSPCertStatus.REVOKED
        for wrong in ("%21%21", "bm9uc2Vuc2U="):
            async with session.get(f"{service.ocsp_url}/{wrong}") as response:
                status = ocsp.load_der_ocsp_response(await response.read()).response_status
                assert status is ocsp.OCSPResponseStatus.MALFORMED_REQUEST


async def test_ports_that_are_taken_are_usage_errors(running: EmbeddedRegistry) -> None:
    port = int(running.host.rpartition(":")[2])
    for service in (EmbeddedRegistry(port=port), RevocationService(lambda: NOW, port=port)):
        with pytest.raises(UsageError):
            await service.__aenter__()
