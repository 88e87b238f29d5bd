"""Signatures made in an OCI layout on disk and copied to a registry, and other referrers, with the real `oras`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.interop import peers
from tests.interop.authorities import Identity
from tests.interop.conftest import Judge
from tests.interop.notation import Notation, Trust, assert_refused, assert_verified
from tests.interop.registries import Registry, Repository, digest_of, encode


@pytest.fixture
def layout(tmp_path: Path) -> tuple[Path, str]:
    """An OCI image layout with one image; its folder and the image's digest."""
    folder = tmp_path / "layout"
    oras = peers.find("oras")
    (tmp_path / "layer.txt").write_text("on disk")
    peers.must([oras, "push", "--oci-layout", f"{folder}:v1", "layer.txt"], cwd=tmp_path)
    fetched = peers.must([oras, "manifest", "fetch", "--oci-layout", f"{folder}:v1"])
    return folder, digest_of(fetched)


def test_an_image_signed_on_disk_and_copied_with_its_referrers_verifies(
    registry: Registry,
    repository: Repository,
    layout: tuple[Path, str],
    notation: Notation,
    signer: Identity,
    trust: Trust,
    envelope: str,
    judge: Judge,
) -> None:
    folder, digest = layout
    notation.sign(f"{folder}@{digest}", signer, envelope=envelope, layout=True)
    copy: peers.Command = [
        peers.find("oras"),
        "copy",
        "--recursive",
        "--from-oci-layout",
        "--to-plain-http",
        f"{folder}:v1",
    ]
    peers.must([*copy, repository.at("v1")])
    assert_verified(judge.verify(repository.at("v1"), trust))
    assert_verified(judge.verify(repository.at(digest), trust))


def test_an_image_copied_without_its_referrers_is_unsigned(
    repository: Repository,
    layout: tuple[Path, str],
    notation: Notation,
    signer: Identity,
    trust: Trust,
    judge: Judge,
) -> None:
    folder, digest = layout
    notation.sign(f"{folder}@{digest}", signer, layout=True)
    oras = peers.find("oras")
    peers.must([oras, "copy", "--from-oci-layout", "--to-plain-http", f"{folder}:v1", repository.at("v1")])
    assert_refused(judge.verify(repository.at("v1"), trust), "UNSIGNED")


def test_a_signed_image_among_other_referrers_verifies(
    repository: Repository,
    notation: Notation,
    signer: Identity,
    trust: Trust,
    tmp_path: Path,
    judge: Judge,
) -> None:
    """An SBOM hangs on the image too, as `oras attach` hangs it there."""
    digest = repository.push_image("with sbom")
    (tmp_path / "sbom.json").write_bytes(encode({"spdxVersion": "SPDX-2.3"}))
    attach: peers.Command = [peers.find("oras"), "attach", "--plain-http", "--artifact-type", "application/spdx+json"]
    peers.must([*attach, repository.at(digest), "sbom.json:application/spdx+json"], cwd=tmp_path)
    assert_refused(judge.verify(repository.at(digest), trust), "UNSIGNED")
    notation.sign(repository.at(digest), signer)
    assert_verified(judge.verify(repository.at(digest), trust))
