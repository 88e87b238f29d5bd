"""Somebody with push rights alters real signatures, or hangs them on other images. None of it is admitted.

The starting point is always a signature that verifies, so that each test shows what its one change does.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import cbor2
import pytest

from tests.interop.authorities import Identity
from tests.interop.conftest import Judge
from tests.interop.countersign import Countersign
from tests.interop.notation import Decision, Notation, Trust, assert_refused, assert_verified
from tests.interop.registries import IMAGE_INDEX, IMAGE_MANIFEST, Repository, descriptor, encode

# Which of them it is depends on where the flipped bit lies: in a name, a number, a separator ...
FLIPS: Final = 100  # octets, evenly spread over an envelope of some 3,000, that are altered one at a time
ALTERED: Final = (
    "SIGNATURE_INVALID",
    "ENVELOPE_MALFORMED",
    "ENVELOPE_UNSUPPORTED",
    "ALGORITHM_UNSUPPORTED",
    "CERTIFICATE_CHAIN_INVALID",
    "CRITICAL_ATTRIBUTE_UNKNOWN",
    "PAYLOAD_MISMATCH",
)


@dataclass(frozen=True)
class Signed:
    """A good signature to alter.

    Attributes:
        image: digest of the image.
        manifest: the signature manifest.
        envelope: the envelope in it.
        clean: another repository with the same image and no signature.
    """

    image: str
    manifest: bytes
    envelope: bytes
    clean: Repository


@pytest.fixture
def signed(app: Repository, notation: Notation, signer: Identity, trust: Trust, envelope: str) -> Signed:
    """A signature that verifies."""
    digest = app.push_image("to be altered")
    notation.sign(app.at(digest), signer, envelope=envelope)
    assert_verified(notation.verify(app.at(digest), trust))
    [signature] = app.signatures(digest)
    clean = Repository(app.registry, f"{app.name}-{envelope}-altered")
    assert clean.push_image("to be altered") == digest
    manifest = app.manifest(signature)
    clean.push_blob(app.blob(json.loads(manifest)["config"]["digest"]))
    return Signed(digest, manifest, app.envelope(signature)[0], clean)


def test_the_same_signature_attached_by_hand_still_verifies(signed: Signed, trust: Trust, judge: Judge) -> None:
    """The control: attaching is not what the other tests are refused for."""
    signed.clean.attach(signed.image, signed.manifest, signed.envelope)
    assert_verified(judge.verify(signed.clean.at(signed.image), trust))


def _flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def _jws_parts(envelope: bytes) -> Iterator[tuple[str, bytes]]:
    """A JWS envelope once for each signed part, with one bit of that part flipped."""
    document = json.loads(envelope)
    for part in ("payload", "protected", "signature"):
        octets = base64.urlsafe_b64decode(document[part] + "=" * (-len(document[part]) % 4))
        for at in (0, len(octets) // 2, len(octets) - 1):
            text = base64.urlsafe_b64encode(_flipped(octets, at)).rstrip(b"=").decode()
            yield f"{part}[{at}]", json.dumps({**document, part: text}).encode()
    header = document["header"]
    leaf = base64.b64encode(_flipped(base64.b64decode(header["x5c"][0]), 100)).decode()
    yield "certificate", json.dumps({**document, "header": {**header, "x5c": [leaf, *header["x5c"][1:]]}}).encode()


def _cose_parts(envelope: bytes) -> Iterator[tuple[str, bytes]]:
    """A COSE envelope once for each signed part, with one bit of that part flipped."""
    protected, unprotected, payload, signature = parts = list(cbor2.loads(envelope).value)
    for index, name in ((0, "protected"), (2, "payload"), (3, "signature")):
        for at in (0, len(parts[index]) // 2, len(parts[index]) - 1):
            altered = list(parts)
            altered[index] = _flipped(parts[index], at)
            yield f"{name}[{at}]", cbor2.dumps(cbor2.CBORTag(18, altered))
    leaf, *others = unprotected[33]
    mixed = {**unprotected, 33: [_flipped(leaf, 100), *others]}
    yield "certificate", cbor2.dumps(cbor2.CBORTag(18, [protected, mixed, payload, signature]))


PARTS: Final[dict[str, Callable[[bytes], Iterator[tuple[str, bytes]]]]] = {"jws": _jws_parts, "cose": _cose_parts}


@pytest.mark.parametrize("number", range(10))
def test_one_flipped_bit_in_a_signed_part_is_refused(
    signed: Signed, trust: Trust, envelope: str, number: int, judge: Judge
) -> None:
    part, altered = list(PARTS[envelope](signed.envelope))[number]
    assert altered != signed.envelope, part
    signed.clean.attach(signed.image, signed.manifest, altered)
    assert_refused(judge.verify(signed.clean.at(signed.image), trust), *ALTERED)


def test_wherever_a_bit_is_flipped_countersign_admits_nothing_that_notation_refuses(
    signed: Signed, trust: Trust, notation: Notation, countersign: Countersign
) -> None:
    """Also in what is not signed: padding, the order of members, who signed with which program.

    Being stricter is allowed. Each altered envelope is alone in a repository.
    """
    step = len(signed.envelope) // FLIPS
    clean = signed.clean
    altered = {}
    for at in range(0, len(signed.envelope), step):
        repository = Repository(clean.registry, f"{clean.name}-{at}")
        repository.push_image("to be altered")
        repository.push_blob(b"{}")
        repository.attach(signed.image, signed.manifest, _flipped(signed.envelope, at))
        altered[repository.at(signed.image)] = at
    decisions = countersign.verify_many(list(altered), trust)
    assert decisions.keys() == altered.keys()
    assert Decision.UNDECIDED not in decisions.values()
    admitted = [image for image, decision in decisions.items() if decision is Decision.VERIFIED]
    assert len(admitted) < len(altered) / 2, "most of an envelope is signed"
    for image in admitted:
        verdict = notation.verify(image, trust)
        assert verdict.decision is Decision.VERIFIED, f"bit 0 of octet {altered[image]}: {verdict.words}"


@pytest.mark.parametrize("kept", [0, 1, 200, -1], ids=["nothing", "one octet", "200 octets", "all but one octet"])
def test_a_truncated_envelope_is_refused(signed: Signed, trust: Trust, kept: int, judge: Judge) -> None:
    signed.clean.attach(signed.image, signed.manifest, signed.envelope[:kept])
    assert_refused(judge.verify(signed.clean.at(signed.image), trust), *ALTERED)


def test_n28_a_signature_of_another_image_is_refused(signed: Signed, trust: Trust, judge: Judge) -> None:
    """The signature is good, the image is another."""
    other = signed.clean.push_image("never signed")
    signed.clean.attach(other, signed.manifest, signed.envelope)
    assert_refused(judge.verify(signed.clean.at(other), trust), "PAYLOAD_MISMATCH")


def test_n38_a_tag_schema_that_lists_another_images_signature_is_refused(
    app: Repository, notation: Notation, signer: Identity, trust: Trust, judge: Judge
) -> None:
    """The attacker needs no signature manifest of his own: he lists the one that is there beneath another image."""
    good, evil = app.push_image("good"), app.push_image("evil")
    notation.sign(app.at(good), signer)
    listed = app.tag_schema(good)
    index = {"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": listed}
    app.push_manifest(encode(index), IMAGE_INDEX, evil.replace(":", "-"))
    assert_refused(judge.verify(app.at(evil), trust), "PAYLOAD_MISMATCH", "MANIFEST_INVALID", "UNSIGNED")
    assert_verified(judge.verify(app.at(good), trust))


def test_an_envelope_that_is_labelled_as_the_other_format_is_refused(
    signed: Signed, trust: Trust, envelope: str, judge: Judge
) -> None:
    manifest = json.loads(signed.manifest)
    manifest["layers"][0]["mediaType"] = {"jws": "application/cose", "cose": "application/jose+json"}[envelope]
    signed.clean.attach(signed.image, encode(manifest), signed.envelope)
    assert_refused(judge.verify(signed.clean.at(signed.image), trust), *ALTERED)


def test_a_signature_manifest_with_two_envelopes_is_refused(signed: Signed, trust: Trust, judge: Judge) -> None:
    clean, manifest = signed.clean, json.loads(signed.manifest)
    body = clean.manifest(signed.image)
    clean.push_blob(signed.envelope)
    manifest["subject"] = descriptor(body, IMAGE_MANIFEST)
    manifest["layers"] *= 2
    data = encode(manifest)
    clean.push_manifest(data, IMAGE_MANIFEST)
    entry = descriptor(data, IMAGE_MANIFEST, artifactType=manifest["config"]["mediaType"])
    index = {"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": [entry]}
    clean.push_manifest(encode(index), IMAGE_INDEX, signed.image.replace(":", "-"))
    assert_refused(judge.verify(clean.at(signed.image), trust), "MANIFEST_INVALID", "ENVELOPE_MALFORMED", "UNSIGNED")


def test_a_broken_signature_does_not_hide_a_good_one(
    app: Repository, notation: Notation, signer: Identity, trust: Trust, countersign: Countersign
) -> None:
    """Only ours: notation stops at the first signature that it cannot read, so an attacker can stop a deployment."""
    digest = app.push_image("hidden")
    notation.sign(app.at(digest), signer)
    [signature] = app.signatures(digest)
    good, _ = app.envelope(signature)
    for junk in (b"", b"{}", good[:100]):
        app.attach(digest, app.manifest(signature), junk)
    assert_verified(countersign.verify(app.at(digest), trust))
