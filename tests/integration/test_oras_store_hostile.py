"""The oras store and registries that are broken, overloaded or hostile: bounded, undecided or refused, not taken in."""

from __future__ import annotations

import gzip
import json
import socket
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import trustme

from provider.errors import InvalidKey, Refused, Undecided
from provider.interfaces import Credential
from provider.oci import Descriptor, Digest, Reference
from provider.stores.profile import OrasStoreSettings
from provider.stores.transport import MAX_RETRIES
from tests.simulators.listener import (
    Fault,
    body,
    endless,
    gzipped,
    hang,
    headers,
    lying_length,
    raw,
    reset,
    status,
    trickle,
    truncate,
)
from tests.simulators.registry import (
    SIGNATURE,
    BlobStorageSimulator,
    Links,
    RegistrySimulator,
    as_json,
    index_of,
)
from tests.simulators.stores import QUICK, Credentials, listed, oras_store, subject_of

NAME = "team/app"
JWS = "application/jose+json"
IMPATIENT = replace(QUICK, timeout_seconds=0.3, attempt_timeout_seconds=0.1, listing_timeout_seconds=0.3)
BLOB = b"envelope"


@pytest.fixture
async def registry() -> AsyncIterator[RegistrySimulator]:
    async with RegistrySimulator() as simulator:
        yield simulator


def push(registry: RegistrySimulator) -> tuple[Descriptor, Descriptor, Descriptor]:
    """An image, its signature manifest, its envelope."""
    image = registry.push_image(NAME, tag="v1")
    signature = registry.push_artifact(NAME, image, SIGNATURE, [(BLOB, JWS)])
    return image, signature, Descriptor(JWS, Digest.of(BLOB), len(BLOB))


class TestServerTrouble:
    """What may pass is tried again, and is never a verdict."""

    async def test_two_failures_are_got_over(self, registry: RegistrySimulator) -> None:
        image, _, _ = push(registry)
        registry.fault("*", status(502), times=2)
        async with oras_store(registry) as store:
            assert (await store.resolve(Reference.parse(f"{registry.host}/{NAME}:v1"))).digest == image.digest
        assert len(registry.requests) == 3

    @pytest.mark.parametrize(
        "fault",
        [status(500), status(503), status(408), reset(), truncate(3), raw(b"")],
        ids=["500", "503", "408", "reset", "cut body", "no answer"],
    )
    async def test_a_server_that_keeps_failing_is_unavailable_after_few_tries(
        self, registry: RegistrySimulator, fault: Fault
    ) -> None:
        image, _, blob = push(registry)
        registry.fault("*", fault)
        async with oras_store(registry) as store:
            with pytest.raises(Undecided, match="REGISTRY_UNAVAILABLE"):
                await store.fetch_blob(subject_of(registry, NAME, image), blob, 100)
        # aiohttp itself repeats a request once whose connection broke, as it may have been an old one.
        assert 1 + MAX_RETRIES <= len(registry.requests) <= 2 * (1 + MAX_RETRIES)

    async def test_429_is_handed_on_at_once_with_the_wait_that_was_asked_for(self, registry: RegistrySimulator) -> None:
        push(registry)
        registry.fault("*", status(429, headers={"Retry-After": "7"}))
        async with oras_store(registry) as store:
            with pytest.raises(Undecided, match="REGISTRY_THROTTLED") as caught:
                await store.resolve(Reference.parse(f"{registry.host}/{NAME}:v1"))
        assert caught.value.retry_after == 7
        assert len(registry.requests) == 1

    async def test_503_with_a_wait_is_handed_on_at_once(self, registry: RegistrySimulator) -> None:
        push(registry)
        registry.fault("*", status(503, headers={"Retry-After": "30"}))
        async with oras_store(registry) as store:
            with pytest.raises(Undecided, match="REGISTRY_UNAVAILABLE") as caught:
                await store.resolve(Reference.parse(f"{registry.host}/{NAME}:v1"))
        assert caught.value.retry_after == 30
        assert len(registry.requests) == 1

    @pytest.mark.parametrize("fault", [hang(), trickle(0.05)], ids=["never answers", "a byte now and then"])
    async def test_n22_a_server_that_takes_for_ever_is_given_up(
        self, registry: RegistrySimulator, fault: Fault
    ) -> None:
        image, _, blob = push(registry)
        registry.fault("*", fault)
        async with oras_store(registry, settings=IMPATIENT) as store:
            with pytest.raises(Undecided, match="REGISTRY_UNAVAILABLE"):
                await store.fetch_blob(subject_of(registry, NAME, image), blob, 100)

    async def test_the_whole_operation_has_a_limit_beside_that_of_each_try(self, registry: RegistrySimulator) -> None:
        push(registry)
        registry.fault("*", hang())
        settings = replace(IMPATIENT, attempt_timeout_seconds=60)
        async with oras_store(registry, settings=settings) as store:
            with pytest.raises(Undecided, match=r"could not be had within 0\.3 s"):
                await store.resolve(Reference.parse(f"{registry.host}/{NAME}:v1"))
        assert len(registry.requests) == 1

    async def test_nobody_listens_there(self) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            host = f"127.0.0.1:{taken.getsockname()[1]}"
            async with oras_store(settings=replace(QUICK, plain_http=True)) as store:
                with pytest.raises(Undecided, match="REGISTRY_UNAVAILABLE"):
                    await store.resolve(Reference.parse(f"{host}/{NAME}:v1"))

    @pytest.mark.parametrize(
        "answer",
        [
            b"SSH-2.0-OpenSSH_9.2\r\n",
            b"HTTP/1.1 200 OK\r\nX: " + b"a" * 20000 + b"\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n" + b"X: a\r\n" * 2000 + b"\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        ],
        ids=["another protocol", "endless field", "many fields", "negative length", "broken chunk"],
    )
    async def test_what_is_no_http_is_undecided(self, registry: RegistrySimulator, answer: bytes) -> None:
        image, _, blob = push(registry)
        registry.fault("*", raw(answer))
        async with oras_store(registry) as store:
            with pytest.raises(Undecided, match="REGISTRY_"):
                await store.fetch_blob(subject_of(registry, NAME, image), blob, 100)

    async def test_a_registry_that_speaks_no_tls_where_tls_is_meant_is_undecided(
        self, registry: RegistrySimulator
    ) -> None:
        async with oras_store(registry, profile={"plain_http": False}) as store:
            with pytest.raises(Undecided, match=r"REGISTRY_UNAVAILABLE.*(TLS handshake|plainHttp)"):
                await store.resolve(Reference.parse(f"{registry.host}/{NAME}:v1"))

    @pytest.mark.parametrize("code", [400, 402, 418])
    async def test_statuses_that_make_no_sense_are_undecided_and_not_tried_again(
        self, registry: RegistrySimulator, code: int
    ) -> None:
        push(registry)
        registry.fault("*", status(code))
        async with oras_store(registry) as store:
            with pytest.raises(Undecided, match=f"REGISTRY_PROTOCOL.*{code}"):
                await store.resolve(Reference.parse(f"{registry.host}/{NAME}:v1"))
        assert len(registry.requests) == 1

    async def test_403_is_undecided(self, registry: RegistrySimulator) -> None:
        push(registry)
        registry.fault("*", status(403))
        async with oras_store(registry) as store:
            with pytest.raises(Undecided, match="REGISTRY_UNAUTHORIZED"):
                await store.resolve(Reference.parse(f"{registry.host}/{NAME}:v1"))


class TestObjects:
    """N15, N25: what is read is what was asked for, and no more of it."""

    @pytest.mark.parametrize(
        ("fault", "refusal"),
        [
            (body(b"ENVELOPE"), "DIGEST_MISMATCH"),
            (body(BLOB + b"!"), "DIGEST_MISMATCH"),
            (body(BLOB[:-1]), "DIGEST_MISMATCH"),
            (body(b""), "DIGEST_MISMATCH"),
            (lying_length(10**12), "DIGEST_MISMATCH"),
            (endless(), "DIGEST_MISMATCH"),
        ],
        ids=["tampered", "longer", "shorter", "empty", "huge length", "endless"],
    )
    async def test_n15_n25_a_blob_that_is_not_the_one_is_refused(
        self, registry: RegistrySimulator, fault: Fault, refusal: str
    ) -> None:
        image, _, blob = push(registry)
        registry.fault("*/blobs/*", fault)
        async with oras_store(registry) as store:
            with pytest.raises(Refused, match=refusal):
                await store.fetch_blob(subject_of(registry, NAME, image), blob, 100)

    async def test_n15_a_length_that_is_too_small_never_makes_a_whole(self, registry: RegistrySimulator) -> None:
        image, _, blob = push(registry)
        registry.fault("*/blobs/*", lying_length(3))
        async with oras_store(registry) as store:
            with pytest.raises((Refused, Undecided), match=r"DIGEST_MISMATCH|REGISTRY_PROTOCOL"):
                await store.fetch_blob(subject_of(registry, NAME, image), blob, 100)

    @pytest.mark.parametrize("fault", [body(b"{}"), endless(), lying_length(10**12)])
    async def test_n15_n25_a_manifest_that_is_not_the_one_is_refused(
        self, registry: RegistrySimulator, fault: Fault
    ) -> None:
        image, signature, _ = push(registry)
        registry.fault("*/manifests/*", fault)
        async with oras_store(registry) as store:
            with pytest.raises(Refused, match="DIGEST_MISMATCH"):
                await store.fetch_manifest(subject_of(registry, NAME, image), signature)

    async def test_n15_a_compressed_answer_is_not_unpacked(self, registry: RegistrySimulator) -> None:
        image, signature, _ = push(registry)
        registry.fault("*", gzipped())
        async with oras_store(registry) as store:
            with pytest.raises(Undecided, match=r"REGISTRY_PROTOCOL.*compressed"):
                await store.fetch_manifest(subject_of(registry, NAME, image), signature)

    async def test_n15_a_gzip_bomb_costs_its_own_size(self, registry: RegistrySimulator) -> None:
        image, _, blob = push(registry)
        registry.fault("*", body(gzip.compress(b"\0" * 10**7)))
        async with oras_store(registry) as store:
            with pytest.raises(Refused, match="DIGEST_MISMATCH"):
                await store.fetch_blob(subject_of(registry, NAME, image), blob, 100)

    async def test_n15_a_declared_size_over_the_cap_costs_no_request(self, registry: RegistrySimulator) -> None:
        image, signature, blob = push(registry)
        async with oras_store(registry) as store:
            subject = subject_of(registry, NAME, image)
            with pytest.raises(Refused, match="MANIFEST_INVALID"):
                await store.fetch_manifest(subject, replace(signature, size=2**40))
            with pytest.raises(Refused, match="MANIFEST_INVALID"):
                await store.fetch_blob(subject, replace(blob, size=2**40), 4096)
        assert registry.requests == []

    @pytest.mark.parametrize("media_type", [None, "application/json", "application/vnd.oci.image.index.v1+json"])
    async def test_a_manifest_under_another_media_type_is_refused(
        self, registry: RegistrySimulator, media_type: str | None
    ) -> None:
        image, signature, _ = push(registry)
        registry.fault("*", headers({"Content-Type": media_type}))
        async with oras_store(registry) as store:
            with pytest.raises(Refused, match="MANIFEST_INVALID"):
                await store.fetch_manifest(subject_of(registry, NAME, image), signature)

    async def test_n26_a_lying_digest_field_changes_nothing_for_what_is_hashed(
        self, registry: RegistrySimulator
    ) -> None:
        image, signature, blob = push(registry)
        registry.fault("*", headers({"Docker-Content-Digest": f"sha256:{'0' * 64}"}))
        async with oras_store(registry) as store:
            subject = subject_of(registry, NAME, image)
            assert len(await store.fetch_manifest(subject, signature)) == signature.size
            assert await store.fetch_blob(subject, blob, 100) == BLOB

    async def test_a_blob_that_is_gone_is_refused_only_on_the_registrys_word(self, registry: RegistrySimulator) -> None:
        image, _, blob = push(registry)
        del registry.repository(NAME).blobs[str(blob.digest)]
        async with oras_store(registry) as store:
            with pytest.raises(Refused, match="IMAGE_NOT_FOUND"):
                await store.fetch_blob(subject_of(registry, NAME, image), blob, 100)
            registry.api_version_header = False
            registry.fault("*", status(404, body=b"<html>"))
            with pytest.raises(Undecided, match="REGISTRY_PROTOCOL"):
                await store.fetch_blob(subject_of(registry, NAME, image), blob, 100)


class TestLists:
    """N05, N13, N38: no list is endless, none leads elsewhere."""

    async def test_n13_ten_thousand_referrers_are_not_all_read(self, registry: RegistrySimulator) -> None:
        image = registry.push_image(NAME)
        entry = as_json(Descriptor("a/b", Digest.of(b"x"), 1, SIGNATURE))
        for number in range(10_000):
            registry.list_referrer(NAME, image.digest, {**entry, "digest": str(Digest.of(b"%d" % number))})
        found = 0
        async with oras_store(registry) as store:
            with pytest.raises(Refused, match="REFERRERS_LIMIT"):  # noqa: PT012 - what came before it counts
                async for _ in store.list_referrers(subject_of(registry, NAME, image), SIGNATURE):
                    found += 1
        assert found == OrasStoreSettings().max_referrers

    async def test_n13_entries_that_are_not_wanted_count_too(self, registry: RegistrySimulator) -> None:
        image = registry.push_image(NAME)
        registry.filters = False
        for number in range(4):
            registry.push_artifact(NAME, image, "application/spdx+json", [(b"%d" % number, JWS)])
        async with oras_store(registry, settings=replace(QUICK, max_referrers=3)) as store:
            with pytest.raises(Refused, match="REFERRERS_LIMIT"):
                await listed(store, subject_of(registry, NAME, image))

    @pytest.mark.parametrize(
        ("links", "problem"),
        [
            ("endless", "REFERRERS_LIMIT"),
            ("loop", "REGISTRY_PROTOCOL.*circle"),
            ("other host", "REGISTRY_PROTOCOL.*out of its API"),
        ],
    )
    async def test_n05_n13_links_that_never_end_go_round_or_lead_away_end_the_list(
        self, registry: RegistrySimulator, links: Links, problem: str
    ) -> None:
        image, _, _ = push(registry)
        registry.page_size = 1
        registry.links = links
        async with oras_store(registry, settings=replace(QUICK, max_referrer_pages=5)) as store:
            with pytest.raises((Refused, Undecided), match=problem):
                await listed(store, subject_of(registry, NAME, image))
        assert len(registry.requests) <= 5

    async def test_n13_empty_pages_without_end_are_bounded_in_time_too(self, registry: RegistrySimulator) -> None:
        image, _, _ = push(registry)
        registry.page_size = 1
        registry.links = "endless"
        registry.fault("*", body(index_of([])))
        now = iter(range(0, 10**6, 10))
        async with oras_store(registry, monotonic=lambda: float(next(now))) as store:
            with pytest.raises(Undecided, match="REGISTRY_UNAVAILABLE"):
                await listed(store, subject_of(registry, NAME, image))
        assert len(registry.requests) < 10

    async def test_a_page_that_fails_leaves_no_half_list_for_a_whole(self, registry: RegistrySimulator) -> None:
        image = registry.push_image(NAME)
        for number in range(4):
            registry.push_artifact(NAME, image, SIGNATURE, [(b"%d" % number, JWS)])
        registry.page_size = 2
        async with oras_store(registry) as store:
            entries = store.list_referrers(subject_of(registry, NAME, image), SIGNATURE)
            assert [await anext(entries), await anext(entries)]
            registry.fault("*", status(404))
            with pytest.raises(Undecided, match="REGISTRY_PROTOCOL"):
                await anext(entries)

    @pytest.mark.parametrize(
        "page",
        [
            b"",
            b"[]",
            b"{",
            b'{"manifests": 1}',
            b'{"manifests": [{}]}',
            b'{"schemaVersion": 2, "schemaVersion": 2}',
            b"[" * 10**5,
        ],
    )
    async def test_a_list_that_is_none_is_refused(self, registry: RegistrySimulator, page: bytes) -> None:
        image, _, _ = push(registry)
        registry.fault("*", body(page))
        async with oras_store(registry) as store:
            with pytest.raises(Refused, match="MANIFEST_INVALID"):
                await listed(store, subject_of(registry, NAME, image))

    async def test_n15_a_list_over_the_cap_is_refused_unread(self, registry: RegistrySimulator) -> None:
        image, _, _ = push(registry)
        registry.fault("*", endless())
        async with oras_store(registry) as store:
            with pytest.raises(Refused, match=r"MANIFEST_INVALID.*larger"):
                await listed(store, subject_of(registry, NAME, image))

    async def test_n38_a_tag_that_holds_no_list_is_refused(self, registry: RegistrySimulator) -> None:
        registry.referrers_api = False
        image, signature, _ = push(registry)
        registry.repository(NAME).tags[f"sha256-{image.digest.hex}"] = str(signature.digest)
        async with oras_store(registry) as store:
            with pytest.raises(Refused, match=r"MANIFEST_INVALID.*not an image index"):
                await listed(store, subject_of(registry, NAME, image))

    async def test_n38_lies_in_a_list_come_out_when_the_entry_is_fetched(self, registry: RegistrySimulator) -> None:
        registry.referrers_api = False
        image, signature, blob = push(registry)
        lies = [
            {**as_json(signature), "artifactType": SIGNATURE, "size": signature.size + 1},
            {**as_json(blob), "mediaType": signature.media_type, "artifactType": SIGNATURE},
        ]
        registry.repository(NAME).referrers[str(image.digest)] = lies
        async with oras_store(registry) as store:
            subject = subject_of(registry, NAME, image)
            for entry in await listed(store, subject):
                with pytest.raises(Refused, match=r"DIGEST_MISMATCH|IMAGE_NOT_FOUND"):
                    await store.fetch_manifest(subject, entry)


class TestRedirects:
    """N04: blobs may come from elsewhere, credentials do not go there."""

    async def test_n04_a_blob_is_followed_to_storage_without_authorization(self, registry: RegistrySimulator) -> None:
        image, _, blob = push(registry)
        registry.auth, registry.accounts = "basic", {"robot": "hunter2"}
        credentials = Credentials({registry.host: Credential("robot", "hunter2")})
        async with BlobStorageSimulator(host="localhost") as storage:
            storage.blobs[str(blob.digest)] = BLOB
            registry.redirect_blobs_to = f"{storage.url}/bucket"
            profile = {"redirect_hosts": frozenset({"localhost"})}
            async with oras_store(registry, profile=profile, credentials=credentials) as store:
                assert await store.fetch_blob(subject_of(registry, NAME, image), blob, 100) == BLOB
        assert registry.requests[-1].authorization is not None
        assert [request.authorization for request in storage.requests] == [None]

    async def test_n04_another_port_of_the_registrys_host_gets_no_authorization_either(
        self, registry: RegistrySimulator
    ) -> None:
        image, _, blob = push(registry)
        registry.auth, registry.accounts = "basic", {"robot": "hunter2"}
        credentials = Credentials({registry.host: Credential("robot", "hunter2")})
        async with BlobStorageSimulator() as storage:
            storage.blobs[str(blob.digest)] = BLOB
            registry.redirect_blobs_to = f"{storage.url}/bucket"
            async with oras_store(registry, credentials=credentials) as store:
                assert await store.fetch_blob(subject_of(registry, NAME, image), blob, 100) == BLOB
        assert [request.authorization for request in storage.requests] == [None]

    async def test_n04_authorization_stays_within_the_registry_and_does_not_come_back(
        self, registry: RegistrySimulator
    ) -> None:
        image, _, blob = push(registry)
        registry.auth, registry.accounts = "basic", {"robot": "hunter2"}
        credentials = Credentials({registry.host: Credential("robot", "hunter2")})
        mirror = f"/v2/mirror/blobs/{blob.digest}"
        registry.push_blob("mirror", BLOB)
        async with BlobStorageSimulator() as storage:
            async with oras_store(registry, credentials=credentials) as store:
                await store.resolve(Reference.parse(f"{registry.host}/{NAME}:v1"))
                registry.fault(f"/v2/{NAME}/blobs/*", status(302, headers={"Location": mirror}))
                assert await store.fetch_blob(subject_of(registry, NAME, image), blob, 100) == BLOB
            assert registry.requests[-1].authorization is not None
            registry.fault(f"/v2/{NAME}/blobs/*", status(302, headers={"Location": f"{storage.url}/x"}))
            storage.fault("*", status(302, headers={"Location": f"{registry.url}{mirror}"}))
            async with oras_store(registry, credentials=credentials) as store:
                await store.resolve(Reference.parse(f"{registry.host}/{NAME}:v1"))
                with pytest.raises(Undecided, match=r"REGISTRY_PROTOCOL.*401"):
                    await store.fetch_blob(subject_of(registry, NAME, image), blob, 100)
        assert registry.requests[-1].authorization is None

    @pytest.mark.parametrize(
        "target",
        [
            "http://10.0.0.1/x",
            "http://192.168.1.1/x",
            "http://localhost:1/x",
            "http://[::1]:1/x",
            "http://[::ffff:127.0.0.1]:1/x",
            "http://[64:ff9b::7f00:1]:1/x",
            "http://[2002:7f00:1::]:1/x",
            "http://169.254.169.254/latest/meta-data",
            "http://[fe80::1]/x",
            "http://0.0.0.0/x",
        ],
    )
    async def test_n04_a_redirect_to_an_inner_address_is_not_followed(
        self, registry: RegistrySimulator, target: str
    ) -> None:
        image, _, blob = push(registry)
        registry.fault("*/blobs/*", status(307, headers={"Location": target}))
        async with oras_store(registry) as store:
            with pytest.raises(Undecided, match=r"REGISTRY_PROTOCOL.*not connected to"):
                await store.fetch_blob(subject_of(registry, NAME, image), blob, 100)

    async def test_n04_metadata_addresses_are_refused_even_when_listed(self, registry: RegistrySimulator) -> None:
        image, _, blob = push(registry)
        registry.fault("*/blobs/*", status(307, headers={"Location": "http://169.254.169.254/x"}))
        profile = {"redirect_hosts": frozenset({"169.254.169.254"})}
        async with oras_store(registry, profile=profile) as store:
            with pytest.raises(Undecided, match=r"REGISTRY_PROTOCOL.*link-local"):
                await store.fetch_blob(subject_of(registry, NAME, image), blob, 100)

    @pytest.mark.parametrize(
        "target",
        [
            "",
            "ftp://example.test/x",
            "file:///etc/passwd",
            "http://user:pw@127.0.0.1/x",
            "http://127.0.0.1/a b",
            "http://[",
            "http://127.0.0.1:99999/",
            "javascript:1",
        ],
    )
    async def test_n04_a_redirect_to_no_url_is_not_followed(self, registry: RegistrySimulator, target: str) -> None:
        image, _, blob = push(registry)
        registry.fault("*/blobs/*", status(307, headers={"Location": target}))
        async with oras_store(registry) as store:
            with pytest.raises(Undecided, match="REGISTRY_PROTOCOL"):
                await store.fetch_blob(subject_of(registry, NAME, image), blob, 100)
        assert len(registry.requests) == 1

    async def test_n04_a_tls_registry_cannot_redirect_to_plain_http(self) -> None:
        authority = trustme.CA()
        async with RegistrySimulator(tls=authority) as registry, BlobStorageSimulator() as storage:
            image, _, blob = push(registry)
            storage.blobs[str(blob.digest)] = BLOB
            registry.redirect_blobs_to = f"{storage.url}/bucket"
            profile = {"plain_http": False, "ca_bundle": authority.cert_pem.bytes()}
            async with oras_store(registry, profile=profile) as store:
                with pytest.raises(Undecided, match=r"REGISTRY_PROTOCOL.*without TLS"):
                    await store.fetch_blob(subject_of(registry, NAME, image), blob, 100)
        assert storage.requests == []

    async def test_n04_three_redirects_are_followed(self, registry: RegistrySimulator) -> None:
        image, _, blob = push(registry)
        registry.fault("*/blobs/*", status(307, headers={"Location": f"/v2/{NAME}/blobs/{blob.digest}"}), times=3)
        async with oras_store(registry) as store:
            assert await store.fetch_blob(subject_of(registry, NAME, image), blob, 100) == BLOB

    async def test_n04_redirects_without_end_are_given_up(self, registry: RegistrySimulator) -> None:
        image, _, blob = push(registry)
        registry.fault("*/blobs/*", status(307, headers={"Location": f"/v2/{NAME}/blobs/{blob.digest}"}))
        async with oras_store(registry) as store:
            with pytest.raises(Undecided, match="redirects more than 3 times"):
                await store.fetch_blob(subject_of(registry, NAME, image), blob, 100)
        assert len(registry.requests) == 4

    async def test_storage_that_has_no_such_blob_is_no_verdict(self, registry: RegistrySimulator) -> None:
        image, _, blob = push(registry)
        async with BlobStorageSimulator() as storage:
            registry.redirect_blobs_to = f"{storage.url}/bucket?sig=verysecret&x="
            async with oras_store(registry) as store:
                with pytest.raises(Undecided, match=r"REGISTRY_PROTOCOL.*404") as caught:
                    await store.fetch_blob(subject_of(registry, NAME, image), blob, 100)
        assert "verysecret" not in str(caught.value)

    async def test_n25_storage_is_checked_like_the_registry(self, registry: RegistrySimulator) -> None:
        image, _, blob = push(registry)
        async with BlobStorageSimulator() as storage:
            storage.blobs[str(blob.digest)] = b"ENVELOPE"
            registry.redirect_blobs_to = f"{storage.url}/bucket"
            async with oras_store(registry) as store:
                with pytest.raises(Refused, match="DIGEST_MISMATCH"):
                    await store.fetch_blob(subject_of(registry, NAME, image), blob, 100)


class TestWhereRegistriesMayBe:
    @pytest.mark.parametrize(
        "host", ["169.254.169.254", "[fe80::1]", "168.63.129.16", "0.0.0.0:1", "[::]:1", "224.0.0.1"]
    )
    async def test_an_image_reference_cannot_name_a_metadata_service(self, host: str) -> None:
        async with oras_store(settings=replace(QUICK, plain_http=True)) as store:
            with pytest.raises(Undecided, match=r"REGISTRY_PROTOCOL.*not connected to"):
                await store.resolve(Reference.parse(f"{host}/{NAME}:v1"))

    async def test_n03_a_name_that_dns_puts_at_a_loopback_address_is_not_connected_to(
        self, registry: RegistrySimulator
    ) -> None:
        """An odd spelling stands in for a rebinding name: no IP literal to look at, and 127.0.0.1 to the resolver."""
        registry.push_image(NAME, tag="v1")
        async with oras_store(settings=replace(QUICK, plain_http=True)) as store:
            with pytest.raises(Undecided, match=r"REGISTRY_PROTOCOL.*loopback.*not connected to"):
                await store.resolve(Reference.parse(f"0x7f.1:{registry.port}/{NAME}:v1"))
        assert registry.requests == []

    @pytest.mark.parametrize("host", ["a" * 64 + ".example.test", "127.1", "1.2.3.4.5"])
    async def test_a_host_that_is_no_name_for_dns_is_undecided(self, host: str) -> None:
        async with oras_store(settings=replace(QUICK, plain_http=True)) as store:
            with pytest.raises(Undecided, match=r"REGISTRY_PROTOCOL.*no host that can be asked"):
                await store.resolve(Reference.parse(f"{host}/{NAME}:v1"))

    @pytest.mark.parametrize("host", ["https://a..b/token", "https://" + "a" * 64 + ".example.test/token"])
    async def test_a_realm_or_redirect_that_is_no_name_for_dns_is_undecided(
        self, registry: RegistrySimulator, host: str
    ) -> None:
        image, _, blob = push(registry)
        async with oras_store(registry) as store:
            registry.fault("*", status(302, headers={"Location": host}))
            with pytest.raises(Undecided, match="REGISTRY_PROTOCOL"):
                await store.fetch_blob(subject_of(registry, NAME, image), blob, 100)
            registry.fault("*", status(401, headers={"WWW-Authenticate": f'Bearer realm="{host}"'}))
            with pytest.raises(Undecided, match="REGISTRY_PROTOCOL"):
                await store.resolve(Reference.parse(f"{registry.host}/{NAME}:v1"))

    async def test_n34_a_tag_built_around_the_grammar_makes_no_url(self, registry: RegistrySimulator) -> None:
        push(registry)
        async with oras_store(registry) as store:
            await store.resolve(Reference.parse(f"{registry.host}/{NAME}:v1"))
            registry.requests.clear()
            for tag in ("../../x", "v1?x", "v1/../v2", ".."):
                with pytest.raises(InvalidKey):
                    await store.resolve(Reference(registry.host, NAME, tag))
        assert registry.requests == []

    async def test_error_bodies_that_are_compressed_are_not_read(self, registry: RegistrySimulator) -> None:
        push(registry)
        registry.head = False
        fields = {"Content-Encoding": "gzip", "Docker-Distribution-Api-Version": "registry/2.0"}
        registry.fault("*", status(404, body=gzip.compress(b"{}"), headers=fields), method="GET")
        async with oras_store(registry) as store:
            with pytest.raises(Refused, match="IMAGE_NOT_FOUND"):
                await store.resolve(Reference.parse(f"{registry.host}/{NAME}:v1"))

    async def test_error_bodies_without_end_are_not_read(self, registry: RegistrySimulator) -> None:
        push(registry)
        registry.head = False

        async def endless_404(request: object, reply: object) -> object:
            return await endless()(request, replace(reply, status=404))  # type: ignore[arg-type, type-var]

        registry.fault("*", endless_404, method="GET")  # type: ignore[arg-type]
        async with oras_store(registry) as store:
            with pytest.raises((Undecided, Refused), match=r"REGISTRY_PROTOCOL|IMAGE_NOT_FOUND"):
                await store.resolve(Reference.parse(f"{registry.host}/{NAME}:v1"))

    async def test_error_bodies_of_any_shape_are_borne(self, registry: RegistrySimulator) -> None:
        push(registry)
        registry.api_version_header = False
        async with oras_store(registry) as store:
            for document in ([], {"errors": 1}, {"errors": [1, {"code": 7}]}, "x"):
                registry.heal()
                registry.fault("*", status(404, body=json.dumps(document).encode()))
                with pytest.raises(Undecided, match="REGISTRY_PROTOCOL"):
                    await store.resolve(Reference.parse(f"{registry.host}/{NAME}:v1"))
