"""The oras store and honest registries: how many requests, which ways of listing, what is remembered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import trustme

from provider.cache import ByteBoundedCache
from provider.errors import Refused, Undecided
from provider.oci import MEDIA_TYPE_INDEX, Descriptor, Digest, Manifest, Reference, Subject
from provider.stores.oras import REFERRERS_API_SECONDS, TAG_SCHEMA_SECONDS, OrasStore
from tests.simulators.listener import body, delay, hang, headers, status
from tests.simulators.registry import SIGNATURE, RegistrySimulator, as_json, index_of, sha512
from tests.simulators.stores import QUICK, Clock, listed, oras_store, subject_of

NAME = "team/app"
JWS = "application/jose+json"


@pytest.fixture
async def registry() -> AsyncIterator[RegistrySimulator]:
    async with RegistrySimulator() as simulator:
        yield simulator


def signed_image(registry: RegistrySimulator, name: str = NAME) -> tuple[Descriptor, Descriptor]:
    image = registry.push_image(name, tag="v1")
    return image, registry.push_artifact(name, image, SIGNATURE, [(b"envelope", JWS)])


async def read_all(store: OrasStore, reference: str) -> list[bytes]:
    """What a verifier does: resolve, list, fetch every signature."""
    subject = await store.resolve(Reference.parse(reference))
    envelopes = []
    async for entry in store.list_referrers(subject, SIGNATURE):
        manifest = Manifest.parse(await store.fetch_manifest(subject, entry))
        envelopes.append(await store.fetch_blob(subject, manifest.layers[0], 1024))
    return envelopes


class TestRequests:
    """How many there are, because round trips decide how long an admission takes."""

    async def test_a_tag_costs_four_requests(self, registry: RegistrySimulator) -> None:
        image, signature = signed_image(registry)
        async with oras_store(registry) as store:
            assert await read_all(store, f"{registry.host}/{NAME}:v1") == [b"envelope"]
        assert registry.lines == [
            f"HEAD /v2/{NAME}/manifests/v1",
            f"GET /v2/{NAME}/referrers/{image.digest}",
            f"GET /v2/{NAME}/manifests/{signature.digest}",
            f"GET /v2/{NAME}/blobs/{Digest.of(b'envelope')}",
        ]
        assert registry.requests[1].query == {"artifactType": SIGNATURE}
        assert {request.headers["Accept-Encoding"] for request in registry.requests} == {"identity"}

    async def test_a_digest_costs_three_requests(self, registry: RegistrySimulator) -> None:
        image, _ = signed_image(registry)
        async with oras_store(registry) as store:
            assert await read_all(store, f"{registry.host}/{NAME}@{image.digest}") == [b"envelope"]
        assert len(registry.requests) == 3

    async def test_looking_again_costs_the_tag_and_the_list_alone(self, registry: RegistrySimulator) -> None:
        signed_image(registry)
        async with oras_store(registry) as store:
            await read_all(store, f"{registry.host}/{NAME}:v1")
            registry.requests.clear()
            assert await read_all(store, f"{registry.host}/{NAME}:v1") == [b"envelope"]
        assert [line.split("/")[4] for line in registry.lines] == ["manifests", "referrers"]

    async def test_what_is_kept_is_bounded_and_still_checked_against_what_is_asked(
        self, registry: RegistrySimulator
    ) -> None:
        image, signature = signed_image(registry)
        objects: ByteBoundedCache[tuple[str, Digest, str], bytes] = ByteBoundedCache(signature.size + 512)
        async with oras_store(registry, objects=objects) as store:
            subject = subject_of(registry, NAME, image)
            blob = Descriptor(JWS, Digest.of(b"envelope"), 8)
            await store.fetch_manifest(subject, signature)
            with pytest.raises(Refused, match="DIGEST_MISMATCH"):
                await store.fetch_manifest(subject, replace(signature, size=signature.size - 1))
            await store.fetch_blob(subject, blob, 8)
            with pytest.raises(Refused, match="DIGEST_MISMATCH"):
                await store.fetch_blob(subject, replace(blob, size=7), 8)
        assert len(objects) == 1
        assert objects.size <= signature.size + 512

    async def test_no_more_exchanges_run_side_by_side_than_allowed(self, registry: RegistrySimulator) -> None:
        images = [registry.push_image(NAME, tag=f"v{number}") for number in range(8)]
        registry.fault("/v2/*", delay(0.01))
        async with oras_store(registry, settings=replace(QUICK, max_connections_per_host=2)) as store:
            subjects = await asyncio.gather(
                *(store.resolve(Reference.parse(f"{registry.host}/{NAME}:v{number}")) for number in range(8))
            )
        assert [subject.digest for subject in subjects] == [image.digest for image in images]
        assert registry.most_at_once == 2


class TestResolving:
    async def test_without_a_digest_field_the_manifest_is_fetched_and_hashed(self, registry: RegistrySimulator) -> None:
        registry.digest_header = False
        image = registry.push_image(NAME, tag="v1")
        async with oras_store(registry) as store:
            subject = await store.resolve(Reference.parse(f"{registry.host}/{NAME}:v1"))
        assert (subject.digest, subject.descriptor) == (image.digest, image)
        assert [request.method for request in registry.requests] == ["HEAD", "GET"]

    async def test_a_registry_without_head_is_asked_with_get(self, registry: RegistrySimulator) -> None:
        registry.head = False
        image = registry.push_image(NAME, tag="v1")
        async with oras_store(registry) as store:
            subject = await store.resolve(Reference.parse(f"{registry.host}/{NAME}:v1"))
        assert subject.descriptor == image

    async def test_a_sha512_registry_is_taken_at_its_digest(self, registry: RegistrySimulator) -> None:
        image = registry.push_image(NAME, tag="v1")
        data, _ = registry.repository(NAME).manifests[str(image.digest)]
        registry.fault("*", headers({"Docker-Content-Digest": str(sha512(data))}))
        registry.head = False
        async with oras_store(registry) as store:
            subject = await store.resolve(Reference.parse(f"{registry.host}/{NAME}:v1"))
        assert subject.digest == sha512(data)

    async def test_a_manifest_without_type_or_length_has_no_descriptor(self, registry: RegistrySimulator) -> None:
        image = registry.push_image(NAME, tag="v1")
        registry.fault("*", headers({"Content-Type": "nonsense"}))
        async with oras_store(registry) as store:
            by_head = await store.resolve(Reference.parse(f"{registry.host}/{NAME}:v1"))
            registry.head = False
            by_get = await store.resolve(Reference.parse(f"{registry.host}/{NAME}:v1"))
        assert (by_head.digest, by_head.descriptor) == (image.digest, None)
        assert (by_get.digest, by_get.descriptor) == (image.digest, None)

    async def test_n26_a_manifest_that_is_not_of_its_announced_digest_is_refused(
        self, registry: RegistrySimulator
    ) -> None:
        registry.push_image(NAME, tag="v1")
        registry.head = False
        registry.fault("*", headers({"Docker-Content-Digest": f"sha256:{'0' * 64}"}))
        async with oras_store(registry) as store:
            with pytest.raises(Refused, match="DIGEST_MISMATCH"):
                await store.resolve(Reference.parse(f"{registry.host}/{NAME}:v1"))

    @pytest.mark.parametrize(
        "digest", ["sha256:ABCDEF" + "0" * 58, "sha256:00", "md5:" + "0" * 32, "sha256:../../x", ""]
    )
    async def test_n33_an_announced_digest_that_is_none_is_no_digest(
        self, registry: RegistrySimulator, digest: str
    ) -> None:
        registry.push_image(NAME, tag="v1")
        registry.fault("*", headers({"Docker-Content-Digest": digest}))
        async with oras_store(registry) as store:
            with pytest.raises(Undecided, match="REGISTRY_PROTOCOL"):
                await store.resolve(Reference.parse(f"{registry.host}/{NAME}:v1"))

    async def test_a_404_of_something_in_front_of_the_registry_is_no_verdict(self, registry: RegistrySimulator) -> None:
        registry.push_image(NAME, tag="v1")
        registry.api_version_header = False
        registry.fault("*", status(404, body=b"default backend - 404"))
        async with oras_store(registry) as store:
            with pytest.raises(Undecided, match="without saying that it is a registry"):
                await store.resolve(Reference.parse(f"{registry.host}/{NAME}:v1"))

    async def test_an_unknown_repository_is_refused_as_not_found(self, registry: RegistrySimulator) -> None:
        async with oras_store(registry) as store:
            with pytest.raises(Refused, match="IMAGE_NOT_FOUND"):
                await store.resolve(Reference.parse(f"{registry.host}/no/such:v1"))

    async def test_a_redirected_manifest_is_not_followed(self, registry: RegistrySimulator) -> None:
        registry.push_image(NAME, tag="v1")
        registry.fault("*", status(307, headers={"Location": "/v2/other/manifests/v1"}))
        async with oras_store(registry) as store:
            with pytest.raises(Undecided, match="REGISTRY_PROTOCOL"):
                await store.resolve(Reference.parse(f"{registry.host}/{NAME}:v1"))
        assert len(registry.requests) == 1

    async def test_a_tagged_manifest_over_the_cap_is_refused(self, registry: RegistrySimulator) -> None:
        registry.digest_header = False
        registry.push_manifest(NAME, b" " * (4 * 1024 * 1024 + 1), tag="v1")
        async with oras_store(registry) as store:
            with pytest.raises(Refused, match="MANIFEST_INVALID"):
                await store.resolve(Reference.parse(f"{registry.host}/{NAME}:v1"))


class TestListing:
    async def test_pages_are_followed_to_the_last(self, registry: RegistrySimulator) -> None:
        image = registry.push_image(NAME)
        pushed = [registry.push_artifact(NAME, image, SIGNATURE, [(b"%d" % n, JWS)]).digest for n in range(5)]
        registry.page_size = 2
        async with oras_store(registry) as store:
            assert [entry.digest for entry in await listed(store, subject_of(registry, NAME, image))] == pushed
        assert len(registry.requests) == 3

    async def test_a_consumer_that_has_enough_costs_no_further_page(self, registry: RegistrySimulator) -> None:
        image = registry.push_image(NAME)
        for number in range(5):
            registry.push_artifact(NAME, image, SIGNATURE, [(b"%d" % number, JWS)])
        registry.page_size = 2
        async with oras_store(registry) as store:
            async for _ in store.list_referrers(subject_of(registry, NAME, image), SIGNATURE):
                break
        assert len(registry.requests) == 1

    async def test_a_registry_that_does_not_filter_is_filtered_here(self, registry: RegistrySimulator) -> None:
        image, signature = signed_image(registry)
        registry.push_artifact(NAME, image, "application/spdx+json")
        registry.list_referrer(NAME, image.digest, as_json(Descriptor("a/b", Digest.of(b"untyped"), 1)))
        registry.filters = False
        async with oras_store(registry) as store:
            found = await listed(store, subject_of(registry, NAME, image))
        assert [entry.digest for entry in found] == [signature.digest]

    async def test_an_entry_without_type_in_a_filtered_list_is_of_the_type_asked_for(
        self, registry: RegistrySimulator
    ) -> None:
        image, signature = signed_image(registry)
        untyped = as_json(replace(signature, artifact_type=None))
        page = (
            index_of([untyped])[:-1]
            + b', "annotations": {"org.opencontainers.referrers.filtersApplied": "artifactType"}}'
        )
        registry.fault("*/referrers/*", body(page))
        registry.filters = False
        async with oras_store(registry) as store:
            [found] = await listed(store, subject_of(registry, NAME, image))
        assert (found.digest, found.artifact_type) == (signature.digest, SIGNATURE)

    async def test_a_filter_that_a_registry_only_claims_is_applied_all_the_same(
        self, registry: RegistrySimulator
    ) -> None:
        image = registry.push_image(NAME)
        registry.push_artifact(NAME, image, "application/spdx+json")
        registry.filters = False
        registry.fault("*/referrers/*", headers({"OCI-Filters-Applied": "artifactType"}))
        async with oras_store(registry) as store:
            assert await listed(store, subject_of(registry, NAME, image)) == []

    async def test_an_entry_that_is_listed_twice_is_given_once(self, registry: RegistrySimulator) -> None:
        image, signature = signed_image(registry)
        registry.list_referrer(NAME, image.digest, {**as_json(signature), "artifactType": SIGNATURE})
        async with oras_store(registry) as store:
            assert len(await listed(store, subject_of(registry, NAME, image))) == 1

    @pytest.mark.parametrize(
        "fault", [status(404), status(405), status(501), headers({"Content-Type": "text/html; charset=utf-8"})]
    )
    async def test_n38_without_the_api_the_tag_schema_is_used_and_remembered(
        self, registry: RegistrySimulator, fault: object
    ) -> None:
        registry.referrers_api = False
        image, signature = signed_image(registry)
        other = registry.push_image(NAME, content=b"other")
        registry.fault("*/referrers/*", fault)  # type: ignore[arg-type]
        async with oras_store(registry) as store:
            found = await listed(store, subject_of(registry, NAME, image))
            assert [entry.digest for entry in found] == [signature.digest]
            assert await listed(store, subject_of(registry, NAME, other)) == []
        assert registry.lines == [
            f"GET /v2/{NAME}/referrers/{image.digest}",
            f"GET /v2/{NAME}/manifests/{image.digest.algorithm}-{image.digest.hex}",
            f"GET /v2/{NAME}/manifests/{other.digest.algorithm}-{other.digest.hex}",
        ]

    async def test_a_registry_that_learns_the_api_is_noticed(self, registry: RegistrySimulator) -> None:
        registry.referrers_api = False
        image, _ = signed_image(registry)
        clock = Clock()
        async with oras_store(registry, monotonic=clock) as store:
            await listed(store, subject_of(registry, NAME, image))
            registry.referrers_api = True
            registry.requests.clear()
            clock.now += TAG_SCHEMA_SECONDS + 1
            assert len(await listed(store, subject_of(registry, NAME, image))) == 1
        assert [line.split("/")[4] for line in registry.lines] == ["referrers"]

    async def test_a_registry_that_had_the_api_is_not_believed_to_have_lost_it(
        self, registry: RegistrySimulator
    ) -> None:
        image, _ = signed_image(registry)
        registry.api_version_header = False
        clock = Clock()
        async with oras_store(registry, monotonic=clock) as store:
            subject = subject_of(registry, NAME, image)
            assert len(await listed(store, subject)) == 1
            registry.fault("*", status(404, body=b"404 page not found"))
            with pytest.raises(Undecided, match="REGISTRY_PROTOCOL"):
                await listed(store, subject)
            registry.heal()
            registry.referrers_api = False
            clock.now += REFERRERS_API_SECONDS + 1
            assert len(await listed(store, subject)) == 1

    async def test_n38_asking_for_an_unknown_digest_turns_the_api_off_for_nobody(
        self, registry: RegistrySimulator
    ) -> None:
        image, _ = signed_image(registry)
        absent = Descriptor("a/b", Digest.of(b"no such image"), 1)
        registry.fault(f"*/referrers/{absent.digest}", status(404, body=b"404 page not found"))
        async with oras_store(registry) as store:
            assert await listed(store, subject_of(registry, NAME, absent)) == []
            assert len(await listed(store, subject_of(registry, NAME, image))) == 1

    async def test_an_unknown_repository_has_no_list(self, registry: RegistrySimulator) -> None:
        image = registry.push_image(NAME)
        async with oras_store(registry) as store:
            with pytest.raises(Refused, match="IMAGE_NOT_FOUND"):
                await listed(store, subject_of(registry, "no/such", image))

    async def test_a_bare_404_for_the_tag_is_no_verdict_of_unsigned(self, registry: RegistrySimulator) -> None:
        image = registry.push_image(NAME)
        registry.api_version_header = False
        registry.fault("*", status(404, body=b"default backend - 404"))
        async with oras_store(registry) as store:
            with pytest.raises(Undecided, match="REGISTRY_PROTOCOL"):
                await listed(store, subject_of(registry, NAME, image))

    async def test_the_tag_of_a_long_digest_is_cut_as_the_specification_says(self, registry: RegistrySimulator) -> None:
        registry.referrers_api = False
        registry.push_image(NAME)
        digest = sha512(b"image")
        signature = registry.push_artifact(NAME, Descriptor("a/b", digest, 1), SIGNATURE)
        listing = registry.push_manifest(
            NAME, index_of([{**as_json(signature), "artifactType": SIGNATURE}]), media_type=MEDIA_TYPE_INDEX
        )
        registry.repository(NAME).tags[f"sha512-{digest.hex[:64]}"] = str(listing.digest)
        async with oras_store(registry) as store:
            subject = Subject(Reference.parse(f"{registry.host}/{NAME}@{digest}"), digest)
            assert [entry.digest for entry in await listed(store, subject)] == [signature.digest]


class TestTls:
    async def test_a_registry_of_an_unknown_authority_is_not_spoken_to(self) -> None:
        async with RegistrySimulator(tls=trustme.CA()) as registry:
            registry.push_image(NAME, tag="v1")
            async with oras_store(registry, profile={"plain_http": False}) as store:
                with pytest.raises(Undecided, match=r"REGISTRY_UNAVAILABLE.*not trusted"):
                    await store.resolve(Reference.parse(f"{registry.host}/{NAME}:v1"))
        assert registry.requests == []

    async def test_a_client_certificate_is_shown_where_it_is_demanded(self, tmp_path: Path) -> None:
        folder = tmp_path
        authority, clients = trustme.CA(), trustme.CA()
        client = clients.issue_cert("countersign@example.test")
        client.cert_chain_pems[0].write_to_path(folder / "client.pem")
        client.private_key_pem.write_to_path(folder / "client.key")
        authority.cert_pem.write_to_path(folder / "ca.pem")
        async with RegistrySimulator(tls=authority, client_ca=clients) as registry:
            image = registry.push_image(NAME, tag="v1")
            trusting = {"plain_http": False, "ca_file": folder / "ca.pem"}
            shown = {"client_certificate": folder / "client.pem", "client_key": folder / "client.key"}
            reference = Reference.parse(f"{registry.host}/{NAME}:v1")
            async with oras_store(registry, profile=trusting | shown) as store:
                assert (await store.resolve(reference)).digest == image.digest
            async with oras_store(registry, profile=trusting) as store:
                with pytest.raises(Undecided, match="REGISTRY_UNAVAILABLE"):
                    await store.resolve(reference)
        assert [request.client_certificate for request in registry.requests] == [True]

    async def test_a_registry_without_a_profile_is_spoken_to_over_tls_unless_the_store_says_plain(self) -> None:
        async with RegistrySimulator() as registry:
            image = registry.push_image(NAME, tag="v1")
            reference = Reference.parse(f"{registry.host}/{NAME}:v1")
            for settings in (QUICK, replace(QUICK, plain_http=True)):
                store = OrasStore("store", settings)
                try:
                    if settings.plain_http:
                        assert (await store.resolve(reference)).digest == image.digest
                    else:
                        with pytest.raises(Undecided, match="REGISTRY_UNAVAILABLE"):
                            await store.resolve(reference)
                finally:
                    await store.aclose()


async def test_a_store_that_is_closed_ends_what_is_under_way_undecided(registry: RegistrySimulator) -> None:
    registry.push_image(NAME, tag="v1")
    registry.fault("*", hang())
    async with oras_store(registry) as store:
        waiting = asyncio.create_task(store.resolve(Reference.parse(f"{registry.host}/{NAME}:v1")))
        while not registry.requests:  # noqa: ASYNC110 - the simulator has no event for it
            await asyncio.sleep(0.001)
        await store.aclose()
        with pytest.raises(Undecided, match="REGISTRY_UNAVAILABLE"):
            await waiting
    assert len(registry.requests) == 1
