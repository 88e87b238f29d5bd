"""What every Store must do, whatever it reads from: the contract test of interfaces.Store.

A test module subclasses `StoreContract` and gives the fixture `world`: something to push into, and `open` to get a
store that serves what was pushed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Protocol

import pytest

from provider.errors import Refused
from provider.interfaces import Store
from provider.oci import MEDIA_TYPE_INDEX, Descriptor, Digest, Reference, Subject
from tests.simulators.registry import SIGNATURE, RegistrySimulator

NAME = "team/app"
SBOM = "application/spdx+json"
JWS = "application/jose+json"
ABSENT = Digest("sha256", "0" * 64)


class World(Protocol):
    """Where a store under test reads from.

    Attributes:
        registry: what was pushed, whether or not it is ever served over HTTP.
    """

    registry: RegistrySimulator

    def open(self, *, max_referrers: int = 1000) -> AbstractAsyncContextManager[tuple[Store, str]]:
        """A store that serves what was pushed so far, and the repository's name for it, `domain/path`."""
        ...


async def listed(store: Store, subject: Subject, artifact_type: str | None = SIGNATURE) -> list[Descriptor]:
    """All that the store lists."""
    found: AsyncIterator[Descriptor] = store.list_referrers(subject, artifact_type)
    return [entry async for entry in found]


class StoreContract:
    """The tests. `world` is a fresh World for each."""

    async def test_a_tag_resolves_to_digest_size_and_media_type(self, world: World) -> None:
        image = world.registry.push_image(NAME, tag="v1")
        async with world.open() as (store, repository):
            subject = await store.resolve(Reference.parse(f"{repository}:v1"))
        assert subject.digest == image.digest
        assert subject.descriptor == image

    async def test_a_digest_resolves_to_itself_without_being_looked_up(self, world: World) -> None:
        async with world.open() as (store, repository):
            reference = Reference.parse(f"{repository}:v1@{ABSENT}")
            assert await store.resolve(reference) == Subject(reference, ABSENT, None)

    async def test_an_unknown_tag_is_refused_as_not_found(self, world: World) -> None:
        world.registry.push_image(NAME, tag="v1")
        async with world.open() as (store, repository):
            with pytest.raises(Refused, match="IMAGE_NOT_FOUND"):
                await store.resolve(Reference.parse(f"{repository}:v2"))

    async def test_referrers_come_in_order_and_carry_their_type_in_each_form_of_manifest(self, world: World) -> None:
        image = world.registry.push_image(NAME, tag="v1")
        pushed = [
            world.registry.push_artifact(NAME, image, SIGNATURE, [(form.encode(), JWS)], form=form)
            for form in ("artifactType", "config", "withdrawn")
        ]
        async with world.open() as (store, repository):
            subject = await store.resolve(Reference.parse(f"{repository}:v1"))
            found = await listed(store, subject)
        assert [entry.digest for entry in found] == [entry.digest for entry in pushed]
        assert {entry.artifact_type for entry in found} == {SIGNATURE}

    async def test_only_the_wanted_type_is_listed_unless_all_are_wanted(self, world: World) -> None:
        image = world.registry.push_image(NAME, tag="v1")
        signature = world.registry.push_artifact(NAME, image, SIGNATURE)
        sbom = world.registry.push_artifact(NAME, image, SBOM)
        async with world.open() as (store, repository):
            subject = await store.resolve(Reference.parse(f"{repository}:v1"))
            assert [entry.digest for entry in await listed(store, subject)] == [signature.digest]
            assert [entry.digest for entry in await listed(store, subject, SBOM)] == [sbom.digest]
            assert [entry.digest for entry in await listed(store, subject, None)] == [signature.digest, sbom.digest]

    async def test_nothing_is_listed_for_an_image_that_nothing_refers_to(self, world: World) -> None:
        image = world.registry.push_image(NAME, tag="v1")
        other = world.registry.push_image(NAME, tag="v2", content=b"other")
        world.registry.push_artifact(NAME, other, SIGNATURE)
        async with world.open() as (store, repository):
            reference = Reference.parse(f"{repository}@{image.digest}")
            assert await listed(store, Subject(reference, image.digest)) == []

    async def test_objects_come_byte_for_byte(self, world: World) -> None:
        subject, signature, blob = push_signed(world)
        async with world.open() as (store, repository):
            where = Subject(Reference.parse(f"{repository}@{subject.digest}"), subject.digest)
            manifest = await store.fetch_manifest(where, signature)
            assert (Digest.of(manifest), len(manifest)) == (signature.digest, signature.size)
            assert await store.fetch_blob(where, blob, 100) == b"envelope"

    async def test_more_referrers_than_the_limit_are_given_up_to_it_and_then_refused(self, world: World) -> None:
        image = world.registry.push_image(NAME, tag="v1")
        for number in range(4):
            world.registry.push_artifact(NAME, image, SIGNATURE, [(b"%d" % number, JWS)])
        found = []
        async with world.open(max_referrers=3) as (store, repository):
            subject = Subject(Reference.parse(f"{repository}@{image.digest}"), image.digest)
            with pytest.raises(Refused, match="REFERRERS_LIMIT"):  # noqa: PT012 - what came before it counts
                async for entry in store.list_referrers(subject, SIGNATURE):
                    found.append(entry)
        assert len(found) == 3

    async def test_n25_an_object_that_is_not_what_was_asked_for_is_refused(self, world: World) -> None:
        image, signature, blob = push_signed(world)
        held = world.registry.repository(NAME)
        held.blobs[str(blob.digest)] = b"ENVELOPE"
        data, media_type = held.manifests[str(signature.digest)]
        held.manifests[str(signature.digest)] = (data.replace(b'"layers"', b'"LAYERS"'), media_type)
        async with world.open() as (store, repository):
            where = Subject(Reference.parse(f"{repository}@{image.digest}"), image.digest)
            with pytest.raises(Refused, match="DIGEST_MISMATCH"):
                await store.fetch_blob(where, blob, 100)
            with pytest.raises(Refused, match="DIGEST_MISMATCH"):
                await store.fetch_manifest(where, signature)

    @pytest.mark.parametrize("size", [7, 9])
    async def test_a_descriptor_that_lies_about_the_size_is_refused(self, world: World, size: int) -> None:
        image, signature, blob = push_signed(world)
        async with world.open() as (store, repository):
            where = Subject(Reference.parse(f"{repository}@{image.digest}"), image.digest)
            with pytest.raises(Refused, match="DIGEST_MISMATCH"):
                await store.fetch_blob(where, replace(blob, size=size), 100)
            with pytest.raises(Refused, match="DIGEST_MISMATCH"):
                await store.fetch_manifest(where, replace(signature, size=signature.size + size - 8))

    async def test_n15_a_declared_size_over_the_cap_is_refused_unread(self, world: World) -> None:
        image, signature, blob = push_signed(world)
        async with world.open() as (store, repository):
            where = Subject(Reference.parse(f"{repository}@{image.digest}"), image.digest)
            with pytest.raises(Refused, match="MANIFEST_INVALID"):
                await store.fetch_blob(where, blob, 7)
            with pytest.raises(Refused, match="MANIFEST_INVALID"):
                await store.fetch_manifest(where, replace(signature, size=4 * 1024 * 1024 + 1))

    async def test_a_manifest_of_another_media_type_than_declared_is_refused(self, world: World) -> None:
        image, signature, _ = push_signed(world)
        async with world.open() as (store, repository):
            where = Subject(Reference.parse(f"{repository}@{image.digest}"), image.digest)
            with pytest.raises(Refused, match="MANIFEST_INVALID"):
                await store.fetch_manifest(where, replace(signature, media_type=MEDIA_TYPE_INDEX))

    async def test_objects_that_are_not_there_are_refused_as_not_found(self, world: World) -> None:
        image, signature, blob = push_signed(world)
        async with world.open() as (store, repository):
            where = Subject(Reference.parse(f"{repository}@{image.digest}"), image.digest)
            with pytest.raises(Refused, match="IMAGE_NOT_FOUND"):
                await store.fetch_blob(where, replace(blob, digest=ABSENT), 100)
            with pytest.raises(Refused, match="IMAGE_NOT_FOUND"):
                await store.fetch_manifest(where, replace(signature, digest=ABSENT))

    async def test_a_spoilt_signature_fails_alone_and_the_next_one_is_still_found(self, world: World) -> None:
        image = world.registry.push_image(NAME, tag="v1")
        bad = world.registry.push_artifact(NAME, image, SIGNATURE, [(b"bad", JWS)])
        good = world.registry.push_artifact(NAME, image, SIGNATURE, [(b"good", JWS)])
        world.registry.repository(NAME).manifests[str(bad.digest)] = (b"{}", bad.media_type)
        async with world.open() as (store, repository):
            subject = await store.resolve(Reference.parse(f"{repository}:v1"))
            found = await listed(store, subject)
            assert [entry.digest for entry in found] == [bad.digest, good.digest]
            with pytest.raises(Refused, match="DIGEST_MISMATCH"):
                await store.fetch_manifest(subject, found[0])
            assert await store.fetch_manifest(subject, found[1])


def push_signed(world: World) -> tuple[Descriptor, Descriptor, Descriptor]:
    """An image, the manifest of its signature, the envelope `envelope`."""
    image = world.registry.push_image(NAME, tag="v1")
    signature = world.registry.push_artifact(NAME, image, SIGNATURE, [(b"envelope", JWS)])
    return image, signature, Descriptor(JWS, Digest.of(b"envelope"), 8)
