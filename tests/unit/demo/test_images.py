"""The demo's images and configuration as data: what is built is what the rows say."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from provider.configuration.manifests import load
from provider.demo import images
from provider.demo.configuration import Addresses, manifests, write_manifests
from provider.demo.images import IMAGES, PODS, Authorities, DemoImage, Signature
from provider.errors import CODES, Kind, Refused
from provider.notation.envelope import open_envelope
from provider.notation.payload import check_payload
from provider.oci import Descriptor, Digest, Manifest, Reference

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
ADDRESSES = Addresses("127.0.0.1:5000", "127.0.0.1:9", "127.0.0.1:8080")
BY_NAME = {entry.name: entry for entry in IMAGES}


@pytest.fixture(scope="module")
def authorities() -> Authorities:
    return images.establish(NOW, ocsp_url="http://127.0.0.1:1/ocsp", crl_url="http://127.0.0.1:1/crl")


def test_the_rows_hang_together() -> None:
    assert len(BY_NAME) == len(IMAGES)
    assert len({pod.name for pod in PODS}) == len(PODS)
    assert all(name in BY_NAME for pod in PODS for name in pod.images)
    assert all(made.made_for in {"", *BY_NAME} for entry in IMAGES for made in entry.signatures)
    assert all(CODES[entry.code].kind in (Kind.REFUSED, Kind.UNDECIDED) for entry in IMAGES if entry.code)
    assert {bool(entry.code) for entry in IMAGES} == {True, False}


def test_everything_that_a_manifest_needs_is_pushed_and_signatures_come_last(authorities: Authorities) -> None:
    pushes = images.build(authorities, NOW)
    seen: set[tuple[str, Digest]] = set()
    for push in pushes:
        manifest = Manifest.parse(push.manifest)
        held = {Digest.of(blob) for blob in push.blobs}
        assert manifest.config is not None
        assert {manifest.config.digest, *(layer.digest for layer in manifest.layers)} <= held
        assert manifest.subject is None or (push.repository, manifest.subject.digest) in seen
        seen.add((push.repository, Digest.of(push.manifest)))
    assert sum(Manifest.parse(push.manifest).subject is None for push in pushes) == sum(
        entry.pushed for entry in IMAGES
    )


def _built(authorities: Authorities, entry: DemoImage) -> tuple[Descriptor, bytes]:
    """The descriptor of an image and its first envelope."""
    pushes = images.build(authorities, NOW, [BY_NAME["signed"], entry])
    target = Manifest.parse(pushes[-1].manifest).subject
    assert target is not None
    return target, pushes[-1].blobs[1]


def test_a_moved_signature_is_whole_and_of_another_image(authorities: Authorities) -> None:
    target, envelope = _built(authorities, BY_NAME["moved"])
    opened = open_envelope(envelope, "application/jose+json")
    with pytest.raises(Refused) as caught:
        check_payload(opened, target)
    assert caught.value.code == "PAYLOAD_MISMATCH"


def test_a_rewritten_signature_speaks_of_this_image_and_is_broken(authorities: Authorities) -> None:
    target, envelope = _built(authorities, BY_NAME["tampered"])
    with pytest.raises(Refused) as caught:
        open_envelope(envelope, "application/jose+json")
    assert caught.value.code == "SIGNATURE_INVALID"
    assert str(target.digest) not in envelope.decode()  # it is in the payload, which is encoded


def test_a_new_row_needs_no_code(authorities: Authorities) -> None:
    row = DemoImage("new", "w", (Signature("intern", timestamped_by="tsa", lifetime=timedelta(days=1)),))
    target, envelope = _built(authorities, row)
    opened = open_envelope(envelope, "application/jose+json")
    check_payload(opened, target)
    assert opened.timestamp_token
    assert opened.expiry == NOW + timedelta(hours=23)


def test_a_pod_names_its_images_where_kubernetes_has_them() -> None:
    pod = next(pod for pod in PODS if pod.name == "all-good")
    references = {name: images.reference(BY_NAME[name], "127.0.0.1:5000", "127.0.0.1:1") for name in pod.images}
    manifest = images.pod_manifest(pod, references)
    assert manifest["kind"] == "Pod"
    lists = ("containers", "initContainers", "ephemeralContainers")
    assert [[entry["image"] for entry in manifest["spec"][kind]] for kind in lists] == [
        ["127.0.0.1:5000/shop/cart:signed"],
        ["127.0.0.1:5000/shop/cart:signed-cose"],
        ["127.0.0.1:5000/shop/cart:signed"],
    ]


def test_an_image_out_of_reach_is_named_at_the_closed_registry() -> None:
    entry = replace(BY_NAME["unreachable"])
    assert Reference.parse(images.reference(entry, "127.0.0.1:5000", "127.0.0.1:9")).domain == "127.0.0.1:9"


def test_the_configuration_is_good_and_without_oddities(authorities: Authorities, tmp_path: Path) -> None:
    write_manifests(tmp_path, ADDRESSES, authorities)
    resources = load(tmp_path)
    assert resources.warnings == ()
    assert {resource.label for resource in resources} == {
        "Store/store-oras",
        "Verifier/verifier-notation",
        "KeyManagementProvider/company-root",
        "KeyManagementProvider/clock-root",
        "Policy/ratify-policy",
    }


def test_the_configuration_holds_no_key(authorities: Authorities) -> None:
    assert all("PRIVATE" not in text for text in manifests(ADDRESSES, authorities).values())
