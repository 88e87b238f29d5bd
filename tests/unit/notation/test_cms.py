"""CMS messages: read without trusting them, and a signer verified against a key."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from hypothesis import given
from hypothesis import strategies as st

from provider.demo import pki, timestamping
from provider.demo.pki import der
from provider.notation import asn1, cms
from provider.notation.asn1 import MalformedASN1Error
from provider.notation.signature_algorithms import UnsupportedAlgorithmError, WrongSignatureError
from tests.simulators.timestamp_authority import TimestampAuthority, certify

AUTHORITY = TimestampAuthority.set_up()
CERTIFICATE = AUTHORITY.signer.certificate
KEY = AUTHORITY.signer.key
TOKEN = AUTHORITY.token(b"message")
MESSAGE = cms.read_signed_data(TOKEN)
SHA256_WITH_RSA = timestamping.algorithm_identifier("1.2.840.113549.1.1.11")


def list_parts(encoded: bytes) -> list[bytes]:
    """The parts of a SEQUENCE, encoded."""
    outer = asn1.read_whole(encoded, asn1.SEQUENCE, "sequence")
    return [element.encoded for element in asn1.Reader(outer.content, "sequence").rest()]


def rebuilt(encoded: bytes, index: int, part: bytes) -> bytes:
    """A SEQUENCE with one part replaced; empty takes it out."""
    parts = list_parts(encoded)
    parts[index] = part
    return asn1.encode(asn1.SEQUENCE, *parts)


def with_data_part(index: int, part: bytes) -> bytes:
    """TOKEN with one part of SignedData replaced."""
    reader = asn1.open_sequence(asn1.read_whole(TOKEN, asn1.SEQUENCE, "token"), "token")
    kind, wrapped = reader.read_any(), reader.read_any()
    return asn1.encode(asn1.SEQUENCE, kind.encoded, asn1.encode(wrapped.tag, rebuilt(wrapped.content, index, part)))


def test_the_parts_of_a_message_are_read() -> None:
    assert MESSAGE.content_type == "1.2.840.113549.1.9.16.1.4"
    assert {certificate.der for certificate in MESSAGE.certificates} == {
        der(certificate) for certificate in AUTHORITY.signer.chain[:-1]
    }
    (encoded,) = MESSAGE.signers
    signer = cms.read_signer(encoded)
    assert (signer.issuer, signer.serial) == (CERTIFICATE.issuer.public_bytes(), CERTIFICATE.serial_number)
    assert signer.digest == "sha256"
    assert signer.attribute("1.2.3") is None
    cms.verify_signer(signer, KEY.public_key(), MESSAGE)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_refused(data: bytes) -> None:
    with pytest.raises(MalformedASN1Error):
        cms.read_signed_data(data)
    with pytest.raises(MalformedASN1Error):
        cms.read_signer(data)


@given(st.data())
def test_a_damaged_message_is_read_or_refused(data: st.DataObject) -> None:
    whole = bytearray(TOKEN)
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        message = cms.read_signed_data(bytes(whole))
        for encoded in message.signers:
            cms.verify_signer(cms.read_signer(encoded), KEY.public_key(), message)
    except (MalformedASN1Error, UnsupportedAlgorithmError, WrongSignatureError):
        return
    assert message.content == MESSAGE.content


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        (b"", "outer element of ContentInfo"),
        (TOKEN + b"\0", "octets too many"),
        (rebuilt(TOKEN, 0, asn1.encode_object_identifier("1.2.840.113549.1.7.1")), "not SignedData"),
        (TOKEN[:-1], "truncated"),
        (with_data_part(0, asn1.encode_integer(4)), "version of SignedData"),
        (with_data_part(1, b""), "digest algorithms"),
        (with_data_part(2, timestamping.algorithm_identifier("1.2.3")), "attached content"),
        (with_data_part(3, asn1.encode(asn1.context(0), asn1.encode(asn1.context(1)))), "not of X.509"),
        (with_data_part(3, asn1.encode(asn1.context(0), asn1.encode(asn1.SEQUENCE))), "certificate cannot be read"),
        (
            with_data_part(3, asn1.encode(asn1.context(0), b"\x05\x00" * (cms.MAX_CERTIFICATES + 1))),
            f"more than {cms.MAX_CERTIFICATES} certificates",
        ),
        (
            with_data_part(4, asn1.encode(asn1.SET, b"\x05\x00" * (cms.MAX_SIGNERS + 1))),
            f"more than {cms.MAX_SIGNERS} signers",
        ),
        (with_data_part(4, asn1.encode(asn1.SET) * 2), "octets too many in SignedData"),
        (with_data_part(4, asn1.encode(asn1.SEQUENCE)), "signers"),
    ],
)
def test_malformed_messages_are_refused_with_the_name_of_the_part(token: bytes, reason: str) -> None:
    with pytest.raises(MalformedASN1Error, match=reason):
        cms.read_signed_data(token)


def test_a_message_without_certificates_and_with_revocation_lists_is_read() -> None:
    assert cms.read_signed_data(with_data_part(3, b"")).certificates == ()
    assert cms.read_signed_data(with_data_part(3, asn1.encode(asn1.context(1), b"\x30\x00"))).certificates == ()


def lengthened(encoded: bytes) -> bytes:
    """BER of the same: every length of a constructed element in five octets."""
    element = asn1.Reader(encoded, "element").read_any()
    if not element.tag & 0x20:
        return encoded
    content = b"".join(lengthened(part.encoded) for part in asn1.Reader(element.content, "element").rest())
    return bytes((element.tag, 0x84)) + len(content).to_bytes(4, "big") + content


def test_a_message_with_longer_lengths_than_needed_is_the_same_message() -> None:
    ber = lengthened(TOKEN)
    assert len(ber) > len(TOKEN)
    assert cms.read_signed_data(ber) == MESSAGE


SIGNER = MESSAGE.signers[0]


@pytest.mark.parametrize(
    ("encoded", "reason"),
    [
        (rebuilt(SIGNER, 0, asn1.encode_integer(3)), "version of SignerInfo"),
        (rebuilt(SIGNER, 1, asn1.encode(asn1.context(0, constructed=False), b"key")), "issuer and serial number"),
        (rebuilt(SIGNER, 3, b""), "signed attributes"),
        (rebuilt(SIGNER, 3, asn1.encode(asn1.context(0), b"\x05\x00")), "signed attribute"),
        (rebuilt(SIGNER, 5, b""), "signature"),
        (SIGNER + b"\0", "octets too many"),
    ],
)
def test_malformed_signers_are_refused_with_the_name_of_the_part(encoded: bytes, reason: str) -> None:
    with pytest.raises(MalformedASN1Error, match=reason):
        cms.read_signer(encoded)


def test_a_signer_with_sha1_is_refused() -> None:
    encoded = rebuilt(SIGNER, 2, timestamping.algorithm_identifier("1.3.14.3.2.26"))
    with pytest.raises(UnsupportedAlgorithmError, match="SHA-1"):
        cms.read_signer(encoded)


def test_unsigned_attributes_are_let_pass() -> None:
    encoded = rebuilt(SIGNER, 5, list_parts(SIGNER)[5] + asn1.encode(asn1.context(1)))
    cms.verify_signer(cms.read_signer(encoded), KEY.public_key(), MESSAGE)


def signed(**changes: Any) -> tuple[cms.SignedData, cms.Signer]:
    message = cms.read_signed_data(AUTHORITY.token(b"message", **changes))
    return message, cms.read_signer(message.signers[0])


def test_attributes_in_any_order_are_verified_as_a_sorted_set() -> None:
    def reverse(encoded: bytes) -> bytes:
        parts = list_parts(encoded)
        attributes = asn1.read_whole(parts[3], asn1.context(0), "attributes")
        backwards = [element.encoded for element in asn1.Reader(attributes.content, "attributes").rest()][::-1]
        parts[3] = asn1.encode(asn1.context(0), *backwards)
        return asn1.encode(asn1.SEQUENCE, *parts)

    message, signer = signed(edit_signer=reverse)
    assert [kind for kind, _ in signer.attributes] != [kind for kind, _ in cms.read_signer(SIGNER).attributes]
    cms.verify_signer(signer, KEY.public_key(), message)


CONTENT_TYPE = timestamping.attribute(cms.CONTENT_TYPE, asn1.encode_object_identifier("1.2.840.113549.1.9.16.1.4"))


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        (lambda found: found[1:], "signed content type is absent"),
        (
            lambda found: [
                timestamping.attribute(cms.CONTENT_TYPE, asn1.encode_object_identifier("1.2.3")),
                *found[1:],
            ],
            "signed content type is absent or not",
        ),
        (lambda found: [found[0], found[2]], "signed message digest is absent"),
        (
            lambda found: [
                found[0],
                timestamping.attribute(cms.MESSAGE_DIGEST, asn1.encode(asn1.OCTET_STRING, hashlib.sha256().digest())),
            ],
            "signed message digest is absent or not",
        ),
    ],
)
def test_attributes_that_do_not_bind_the_content_are_refused(attributes: Any, reason: str) -> None:
    message, signer = signed(edit_attributes=attributes)
    with pytest.raises(WrongSignatureError, match=reason):
        cms.verify_signer(signer, KEY.public_key(), message)


@pytest.mark.parametrize(
    "attributes",
    [
        lambda found: [*found, CONTENT_TYPE],
        lambda found: [
            timestamping.attribute(
                cms.CONTENT_TYPE,
                asn1.encode_object_identifier("1.2.840.113549.1.9.16.1.4"),
                asn1.encode_object_identifier("1.2.3"),
            ),
            *found[1:],
        ],
        lambda found: [timestamping.attribute(cms.CONTENT_TYPE), *found[1:]],
    ],
)
def test_an_attribute_that_says_two_things_is_refused(attributes: Any) -> None:
    message, signer = signed(edit_attributes=attributes)
    with pytest.raises(MalformedASN1Error, match="not exactly one value"):
        cms.verify_signer(signer, KEY.public_key(), message)


@pytest.mark.parametrize("digest", ["sha384", "sha512"])
def test_longer_digests_are_verified(digest: str) -> None:
    message, signer = signed(digest=digest)
    assert signer.digest == digest
    cms.verify_signer(signer, KEY.public_key(), message)


def test_a_signature_of_another_key_or_over_other_attributes_is_refused() -> None:
    message, signer = signed()
    with pytest.raises(WrongSignatureError):
        cms.verify_signer(signer, ec.generate_private_key(ec.SECP256R1()).public_key(), message)
    other = [*timestamping.signed_attributes(message.content, CERTIFICATE), timestamping.attribute("1.2.3")]
    encoded = timestamping.assemble_signer(
        other, CERTIFICATE, timestamping.algorithm_identifier("1.2.840.10045.4.3.2"), signer.signature
    )
    with pytest.raises(WrongSignatureError):
        cms.verify_signer(cms.read_signer(encoded), KEY.public_key(), message)


@pytest.fixture(scope="module")
def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


def test_rsa_signatures_of_every_form_are_verified(rsa_key: rsa.RSAPrivateKey) -> None:
    certificate = certify("RSA", pki.timestamping(), key=rsa_key).certificate
    attributes = timestamping.signed_attributes(MESSAGE.content, certificate)
    octets = asn1.encode_set_of(attributes)
    pkcs1 = rsa_key.sign(octets, padding.PKCS1v15(), hashes.SHA256())
    salted = rsa_key.sign(octets, padding.PSS(padding.MGF1(hashes.SHA384()), 11), hashes.SHA384())
    sha384 = timestamping.algorithm_identifier("2.16.840.1.101.3.4.2.2")
    mask = asn1.encode(asn1.SEQUENCE, asn1.encode_object_identifier("1.2.840.113549.1.1.8"), sha384)
    parameters = asn1.encode(
        asn1.SEQUENCE,
        asn1.encode(asn1.context(0), sha384),
        asn1.encode(asn1.context(1), mask),
        asn1.encode(asn1.context(2), asn1.encode_integer(11)),
    )
    pss = asn1.encode(asn1.SEQUENCE, asn1.encode_object_identifier("1.2.840.113549.1.1.10"), parameters)
    for algorithm, signature in (
        (SHA256_WITH_RSA, pkcs1),
        (timestamping.algorithm_identifier("1.2.840.113549.1.1.1"), pkcs1),
        (pss, salted),
    ):
        encoded = timestamping.assemble_signer(attributes, certificate, algorithm, signature)
        cms.verify_signer(cms.read_signer(encoded), rsa_key.public_key(), MESSAGE)
        with pytest.raises(WrongSignatureError):
            cms.verify_signer(cms.read_signer(encoded), KEY.public_key(), MESSAGE)
    assert cms.read_signer(timestamping.signer_info(attributes, rsa_key, certificate)).signature == pkcs1
