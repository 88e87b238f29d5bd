"""The OCI layout store and folders that are broken or hostile."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from provider.errors import Refused, Undecided
from provider.oci import Descriptor, Digest, Reference, Subject
from provider.stores.oci_layout import OciLayoutStore
from tests.simulators.layout import write_layout
from tests.simulators.registry import SIGNATURE, RegistrySimulator, as_json

NAME = "team/app"
JWS = "application/jose+json"
VECTORS = Path(__file__).parents[2] / "vectors" / "generated"


class Folder:
    """A layout with one image and one signature, to be spoilt."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.registry = RegistrySimulator()
        self.image = self.registry.push_image(NAME, tag="v1")
        self.signature = self.registry.push_artifact(NAME, self.image, SIGNATURE, [(b"envelope", JWS)])
        self.write()

    def write(self) -> None:
        write_layout(self.registry.repository(NAME), self.root)

    def index(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads((self.root / "index.json").read_bytes())
        return value

    def change_index(self, value: object) -> None:
        (self.root / "index.json").write_text(json.dumps(value))

    def path(self, digest: Digest) -> Path:
        return self.root / "blobs" / digest.algorithm / digest.hex

    @property
    def store(self) -> OciLayoutStore:
        return OciLayoutStore("layout", self.root)

    @property
    def subject(self) -> Subject:
        return Subject(Reference.parse(f"reg.example.test/{NAME}@{self.image.digest}"), self.image.digest)

    async def listed(self, artifact_type: str | None = SIGNATURE, subject: Subject | None = None) -> list[Digest]:
        found = self.store.list_referrers(subject or self.subject, artifact_type)
        return [entry.digest async for entry in found]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


class TestTags:
    @pytest.mark.parametrize(
        "annotations",
        [
            {"org.opencontainers.image.ref.name": "v2"},
            {"org.opencontainers.image.ref.name": f"reg.example.test/{NAME}:v2"},
            {"io.containerd.image.name": f"reg.example.test/{NAME}:v2"},
        ],
    )
    async def test_a_tag_is_found_as_tools_write_it(self, folder: Folder, annotations: dict[str, str]) -> None:
        index = folder.index()
        index["manifests"][0]["annotations"] = annotations
        folder.change_index(index)
        subject = await folder.store.resolve(Reference.parse(f"reg.example.test/{NAME}:v2"))
        assert subject.digest == folder.image.digest

    async def test_a_tag_of_another_repository_is_not_found(self, folder: Folder) -> None:
        index = folder.index()
        index["manifests"][0]["annotations"] = {"org.opencontainers.image.ref.name": f"reg.example.test/{NAME}:v2"}
        folder.change_index(index)
        with pytest.raises(Refused, match="IMAGE_NOT_FOUND"):
            await folder.store.resolve(Reference.parse("reg.example.test/team/other:v2"))

    async def test_a_tag_that_two_manifests_bear_is_refused(self, folder: Folder) -> None:
        index = folder.index()
        for entry in index["manifests"]:
            entry["annotations"] = {"org.opencontainers.image.ref.name": "v1"}
        folder.change_index(index)
        with pytest.raises(Refused, match=r"MANIFEST_INVALID.*2 manifests"):
            await folder.store.resolve(Reference.parse(f"reg.example.test/{NAME}:v1"))

    async def test_the_same_manifest_listed_twice_is_one(self, folder: Folder) -> None:
        index = folder.index()
        index["manifests"] *= 2
        folder.change_index(index)
        subject = await folder.store.resolve(Reference.parse(f"reg.example.test/{NAME}:v1"))
        assert subject.digest == folder.image.digest
        assert await folder.listed() == [folder.signature.digest]


class TestFolders:
    @pytest.mark.parametrize("name", ["oci-layout", "index.json"])
    async def test_a_folder_that_is_no_layout_is_undecided_as_a_volume_may_yet_be_mounted(
        self, folder: Folder, name: str
    ) -> None:
        (folder.root / name).unlink()
        with pytest.raises(Undecided, match=f"REGISTRY_UNAVAILABLE.*{name}"):
            await folder.listed()

    @pytest.mark.parametrize("content", ["{}", "[]", "nonsense", '{"imageLayoutVersion": "2.0.0"}', "x" * 5000])
    async def test_another_version_is_refused(self, folder: Folder, content: str) -> None:
        (folder.root / "oci-layout").write_text(content)
        with pytest.raises(Refused, match="MANIFEST_INVALID"):
            await folder.listed()

    @pytest.mark.parametrize("content", ["", "[]", '{"manifests": 7}', '{"manifests": [{"digest": "sha256:../../x"}]}'])
    async def test_n33_an_index_that_is_none_is_refused(self, folder: Folder, content: str) -> None:
        (folder.root / "index.json").write_text(content)
        with pytest.raises(Refused, match="MANIFEST_INVALID"):
            await folder.listed()

    async def test_n15_an_index_over_the_cap_is_refused(self, folder: Folder) -> None:
        with (folder.root / "index.json").open("wb") as file:
            file.truncate(5 * 1024 * 1024)
        with pytest.raises(Refused, match="MANIFEST_INVALID"):
            await folder.listed()


class TestReferrers:
    async def test_n29_a_manifest_of_another_subject_or_of_none_is_passed_over(self, folder: Folder) -> None:
        other = folder.registry.push_image(NAME, content=b"other")
        folder.registry.push_artifact(NAME, other, SIGNATURE, [(b"other", JWS)])
        folder.write()
        assert await folder.listed() == [folder.signature.digest]

    @pytest.mark.parametrize(
        "subject",
        [{"size": 1}, {"mediaType": "application/vnd.oci.image.index.v1+json"}, {"digest": f"sha256:{'0' * 64}"}],
    )
    async def test_n29_a_subject_that_is_not_exactly_the_image_is_passed_over(
        self, folder: Folder, subject: dict[str, Any]
    ) -> None:
        data, _ = folder.registry.repository(NAME).manifests[str(folder.signature.digest)]
        manifest = json.loads(data)
        manifest["subject"] |= subject
        folder.registry.push_manifest(NAME, manifest)
        folder.write()
        assert await folder.listed() == [folder.signature.digest]
        whole = Subject(folder.subject.reference, folder.image.digest, folder.image)
        assert await folder.listed(subject=whole) == [folder.signature.digest]

    async def test_an_image_that_is_not_in_the_index_is_compared_by_digest_alone(self, folder: Folder) -> None:
        index = folder.index()
        del index["manifests"][0]
        folder.change_index(index)
        assert await folder.listed() == [folder.signature.digest]

    async def test_n30_a_signature_whose_config_says_another_type_is_passed_over(self, folder: Folder) -> None:
        data, _ = folder.registry.repository(NAME).manifests[str(folder.signature.digest)]
        manifest = json.loads(data)
        manifest["config"]["mediaType"] = "application/vnd.oci.image.config.v1+json"
        folder.registry.push_manifest(NAME, manifest)
        folder.write()
        assert await folder.listed() == [folder.signature.digest]

    async def test_a_manifest_that_says_another_media_type_than_its_entry_is_passed_over(self, folder: Folder) -> None:
        index = folder.index()
        index["manifests"][1]["mediaType"] = "application/vnd.oci.artifact.manifest.v1+json"
        folder.change_index(index)
        assert await folder.listed() == []

    async def test_an_unreadable_manifest_without_a_type_is_passed_over_and_one_with_a_type_listed(
        self, folder: Folder
    ) -> None:
        folder.path(folder.signature.digest).write_bytes(b"{}")
        assert await folder.listed() == [folder.signature.digest]
        index = folder.index()
        del index["manifests"][1]["artifactType"]
        folder.change_index(index)
        assert await folder.listed() == []

    async def test_n15_an_entry_over_the_cap_is_not_read_and_fails_when_it_is_fetched(self, folder: Folder) -> None:
        index = folder.index()
        index["manifests"][1]["size"] = 2**40
        folder.change_index(index)
        [entry] = [entry async for entry in folder.store.list_referrers(folder.subject, SIGNATURE)]
        with pytest.raises(Refused, match="MANIFEST_INVALID"):
            await folder.store.fetch_manifest(folder.subject, entry)

    async def test_indexes_and_other_things_in_the_index_are_no_referrers(self, folder: Folder) -> None:
        index = folder.index()
        odd = {**as_json(folder.signature), "mediaType": "application/vnd.oci.image.index.v1+json"}
        index["manifests"].append(odd)
        folder.change_index(index)
        assert await folder.listed(None) == [folder.signature.digest]


class TestFiles:
    """A layout that somebody else unpacked may hold anything in the place of a blob."""

    async def test_a_pipe_does_not_block(self, folder: Folder) -> None:
        path = folder.path(folder.signature.digest)
        path.unlink()
        os.mkfifo(path)
        async with asyncio.timeout(5):
            with pytest.raises(Undecided, match="REGISTRY_UNAVAILABLE"):
                await folder.store.fetch_manifest(folder.subject, folder.signature)
            assert await folder.listed() == [folder.signature.digest]
            index = folder.index()
            del index["manifests"][1]["artifactType"]
            folder.change_index(index)
            with pytest.raises(Undecided, match="not a regular file"):
                await folder.listed()

    async def test_a_folder_or_a_file_in_the_way_is_borne(self, folder: Folder) -> None:
        path = folder.path(folder.signature.digest)
        path.unlink()
        path.mkdir()
        with pytest.raises(Undecided, match="REGISTRY_UNAVAILABLE"):
            await folder.store.fetch_manifest(folder.subject, folder.signature)
        blob = Descriptor(JWS, Digest("sha512", "0" * 128), 1)
        (folder.root / "blobs" / "sha512").write_text("a file")
        with pytest.raises(Refused, match="IMAGE_NOT_FOUND"):
            await folder.store.fetch_blob(folder.subject, blob, 10)

    async def test_a_link_to_a_device_or_a_secret_gives_nothing_away(self, folder: Folder, tmp_path: Path) -> None:
        secret = tmp_path / "secret"
        secret.write_text("password")
        for target in (Path("/dev/zero"), secret):
            path = folder.path(folder.signature.digest)
            path.unlink()
            path.symlink_to(target)
            with pytest.raises((Refused, Undecided), match=r"DIGEST_MISMATCH|REGISTRY_UNAVAILABLE") as caught:
                await folder.store.fetch_manifest(folder.subject, folder.signature)
            assert "password" not in str(caught.value)

    async def test_a_link_to_the_right_content_is_as_good_as_the_file(self, folder: Folder, tmp_path: Path) -> None:
        path = folder.path(folder.signature.digest)
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
        assert len(await folder.store.fetch_manifest(folder.subject, folder.signature)) == folder.signature.size

    @pytest.mark.parametrize("content", [b"not json", b"[]", b'{"mediaType": 7}', b'{"mediaType": "a/b"}'])
    async def test_a_manifest_that_says_another_type_of_itself_is_refused(self, folder: Folder, content: bytes) -> None:
        odd = Descriptor(folder.signature.media_type, Digest.of(content), len(content))
        folder.path(odd.digest).write_bytes(content)
        with pytest.raises(Refused, match="MANIFEST_INVALID"):
            await folder.store.fetch_manifest(folder.subject, odd)


def layouts() -> list[Any]:
    cases = json.loads((VECTORS / "cases.json").read_bytes())
    return [pytest.param(case, id=case["id"]) for case in cases if case.get("kind") == "oci"]


@pytest.mark.parametrize("case", layouts())
@pytest.mark.parametrize("with_descriptor", [False, True])
async def test_as_many_signatures_are_listed_as_the_vectors_say(case: dict[str, Any], with_descriptor: bool) -> None:
    store = OciLayoutStore("layout", VECTORS / case["layout"])
    descriptor = Descriptor.parse(case["desc"]) if with_descriptor else None
    subject = Subject(Reference.parse(case["ref"]), Digest.parse(case["desc"]["digest"]), descriptor)
    assert len([entry async for entry in store.list_referrers(subject, SIGNATURE)]) == case["listed"]
