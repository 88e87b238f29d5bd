"""Keys and signatures of certificates and tokens: which are accepted, and which cost nothing to refuse."""

import hashlib
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from provider.notation import asn1
from provider.notation.asn1 import Element, MalformedASN1Error
from provider.notation.signature_algorithms import (
    MAX_PSS_SALT,
    Family,
    PublicKey,
    SignatureAlgorithm,
    UnsupportedAlgorithmError,
    WrongSignatureError,
    read_hash,
    read_public_key,
    read_signature_algorithm,
    verify_signature,
)

NULL = b"\x05\x00"
SHA1, SHA256, SHA384 = "1.3.14.3.2.26", "2.16.840.1.101.3.4.2.1", "2.16.840.1.101.3.4.2.2"
PSS, MGF1, RSA = "1.2.840.113549.1.1.10", "1.2.840.113549.1.1.8", "1.2.840.113549.1.1.1"


def encoded_algorithm(identifier: str, *parameters: bytes) -> bytes:
    return asn1.encode(asn1.SEQUENCE, asn1.encode_object_identifier(identifier), *parameters)


def algorithm(identifier: str, *parameters: bytes) -> Element:
    return asn1.read_whole(encoded_algorithm(identifier, *parameters), asn1.SEQUENCE, "algorithm")


def pss(*fields: bytes) -> Element:
    return algorithm(PSS, asn1.encode(asn1.SEQUENCE, *fields))


def pss_field(number: int, content: bytes) -> bytes:
    return asn1.encode(asn1.context(number), content)


HASH_FIELD = pss_field(0, encoded_algorithm(SHA256, NULL))
MASK_FIELD = pss_field(1, encoded_algorithm(MGF1, encoded_algorithm(SHA256, NULL)))


def public_key(element: bytes) -> Element:
    return asn1.read_whole(element, asn1.SEQUENCE, "key")


def rsa_key(modulus: int, exponent: int) -> Element:
    numbers = asn1.encode(asn1.SEQUENCE, asn1.encode_integer(modulus), asn1.encode_integer(exponent))
    return public_key(
        asn1.encode(asn1.SEQUENCE, encoded_algorithm(RSA, NULL), asn1.encode(asn1.BIT_STRING, b"\0" + numbers))
    )


@pytest.fixture(scope="module")
def rsa_private_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


@given(st.binary(max_size=80))
def test_any_bytes_are_an_algorithm_or_refused(data: bytes) -> None:
    element = public_key(asn1.encode(asn1.SEQUENCE, data))
    readers: list[Callable[[Element], object]] = [read_signature_algorithm, read_public_key, read_hash]
    for read in readers:
        try:
            read(element)
        except (MalformedASN1Error, UnsupportedAlgorithmError):
            continue


@pytest.mark.parametrize(
    ("identifier", "family", "hash_name"),
    [
        ("1.2.840.113549.1.1.11", Family.RSA_PKCS1, "sha256"),
        ("1.2.840.113549.1.1.12", Family.RSA_PKCS1, "sha384"),
        ("1.2.840.113549.1.1.13", Family.RSA_PKCS1, "sha512"),
        ("1.2.840.10045.4.3.2", Family.ECDSA, "sha256"),
        ("1.2.840.10045.4.3.3", Family.ECDSA, "sha384"),
        ("1.2.840.10045.4.3.4", Family.ECDSA, "sha512"),
        ("1.3.101.112", Family.ED25519, "sha512"),
    ],
)
@pytest.mark.parametrize("parameters", [b"", NULL])
def test_accepted_signature_algorithms_are_read(
    identifier: str, family: Family, hash_name: str, parameters: bytes
) -> None:
    assert read_signature_algorithm(algorithm(identifier, parameters)) == SignatureAlgorithm(family, hash_name)


@pytest.mark.parametrize(
    ("identifier", "name"),
    [
        ("1.2.840.113549.1.1.5", "SHA-1 with RSA"),
        ("1.2.840.113549.1.1.4", "MD5 with RSA"),
        ("1.2.840.10045.4.1", "ECDSA with SHA-1"),
        ("1.2.3", r"1\.2\.3"),
        (RSA, RSA),
    ],
)
def test_n44_sha1_md5_and_unknown_signatures_are_refused_by_name(identifier: str, name: str) -> None:
    with pytest.raises(UnsupportedAlgorithmError, match=name):
        read_signature_algorithm(algorithm(identifier, NULL))


def test_in_cms_the_rsa_key_algorithm_stands_for_a_signature_with_the_stated_hash() -> None:
    found = read_signature_algorithm(algorithm(RSA, NULL), "sha384")
    assert found == SignatureAlgorithm(Family.RSA_PKCS1, "sha384")


@pytest.mark.parametrize("parameters", [b"\x02\x01\x00", NULL + NULL, b"\x05\x01\x00"])
def test_parameters_that_do_not_belong_to_an_algorithm_are_refused(parameters: bytes) -> None:
    with pytest.raises(MalformedASN1Error):
        read_signature_algorithm(algorithm("1.2.840.113549.1.1.11", parameters))


def test_hashes_are_read_and_sha1_is_refused_by_name() -> None:
    assert read_hash(algorithm(SHA384)) == "sha384"
    with pytest.raises(UnsupportedAlgorithmError, match="SHA-1"):
        read_hash(algorithm(SHA1, NULL))


def test_pss_parameters_are_read() -> None:
    assert read_signature_algorithm(pss(HASH_FIELD, MASK_FIELD)) == SignatureAlgorithm(Family.RSA_PSS, "sha256", 20)
    fields = (HASH_FIELD, MASK_FIELD, pss_field(2, b"\x02\x01\x20"), pss_field(3, b"\x02\x01\x01"))
    assert read_signature_algorithm(pss(*fields)) == SignatureAlgorithm(Family.RSA_PSS, "sha256", 32)


@pytest.mark.parametrize(
    ("element", "reason"),
    [
        (algorithm(PSS), "without parameters"),
        (pss(), "SHA-1"),
        (pss(HASH_FIELD), "SHA-1"),
        (pss(MASK_FIELD), "SHA-1"),
        (pss(pss_field(0, encoded_algorithm(SHA1)), MASK_FIELD), "SHA-1"),
        (pss(HASH_FIELD, pss_field(1, encoded_algorithm(MGF1))), "mask"),
        (pss(HASH_FIELD, pss_field(1, encoded_algorithm("1.2.3", encoded_algorithm(SHA256)))), "mask"),
        (pss(HASH_FIELD, pss_field(1, encoded_algorithm(MGF1, encoded_algorithm(SHA384)))), "mask"),
    ],
)
def test_pss_with_other_parameters_is_not_accepted(element: Element, reason: str) -> None:
    with pytest.raises(UnsupportedAlgorithmError, match=reason):
        read_signature_algorithm(element)


@pytest.mark.parametrize(
    "fields",
    [
        (pss_field(2, b"\x02\x01\xff"),),
        (pss_field(2, asn1.encode_integer(MAX_PSS_SALT + 1)),),
        (pss_field(2, b"\x05\x00"),),
        (pss_field(3, b"\x02\x01\x02"),),
        (NULL,),
    ],
)
def test_malformed_pss_parameters_are_refused(fields: tuple[bytes, ...]) -> None:
    with pytest.raises(MalformedASN1Error):
        read_signature_algorithm(pss(HASH_FIELD, MASK_FIELD, *fields))


def test_keys_are_read_with_their_names(rsa_private_key: rsa.RSAPrivateKey) -> None:
    keys: dict[str, PublicKey] = {
        "RSA-2048": rsa_private_key.public_key(),
        "P-224": ec.generate_private_key(ec.SECP224R1()).public_key(),
        "P-256": ec.generate_private_key(ec.SECP256R1()).public_key(),
        "P-384": ec.generate_private_key(ec.SECP384R1()).public_key(),
        "P-521": ec.generate_private_key(ec.SECP521R1()).public_key(),
        "Ed25519": ed25519.Ed25519PrivateKey.generate().public_key(),
    }
    for name, key in keys.items():
        encoded = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        assert read_public_key(public_key(encoded)) == (key, name)


@pytest.mark.parametrize(
    ("modulus", "exponent", "reason"),
    [
        (2**511 + 1, 65537, "512 bits"),
        (2**524287 + 1, 65537, "524288 bits"),
        (-(2**2047) - 1, 65537, "2048 bits"),
        (2**2047 + 1, 1, "exponent"),
        (2**2047 + 1, 65536, "exponent"),
        (2**2047 + 1, -3, "exponent"),
        (2**2047 + 1, 2**31 + 1, "exponent"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_n18_monstrous_and_degenerate_rsa_keys_are_refused_on_their_numbers(
    modulus: int, exponent: int, reason: str
) -> None:
    with pytest.raises(UnsupportedAlgorithmError, match=reason):
        read_public_key(rsa_key(modulus, exponent))


def test_n18_weird_curves_and_kinds_of_keys_are_refused() -> None:
    for key in (ec.generate_private_key(ec.SECP256K1()), ec.generate_private_key(ec.BrainpoolP256R1())):
        encoded = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        with pytest.raises(UnsupportedAlgorithmError, match="curve"):
            read_public_key(public_key(encoded))
    explicit_curve = encoded_algorithm("1.2.840.10045.2.1", asn1.encode(asn1.SEQUENCE))
    for kind in (explicit_curve, encoded_algorithm("1.2.840.10045.2.1"), encoded_algorithm(PSS)):
        encoded = asn1.encode(asn1.SEQUENCE, kind, asn1.encode(asn1.BIT_STRING, b"\0\x04"))
        with pytest.raises(UnsupportedAlgorithmError, match="kind"):
            read_public_key(public_key(encoded))


def test_a_point_that_is_not_on_the_curve_is_no_key() -> None:
    encoded = (
        ec.generate_private_key(ec.SECP256R1())
        .public_key()
        .public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    )
    with pytest.raises(MalformedASN1Error, match="not a valid P-256 key"):
        read_public_key(public_key(encoded[:-64] + b"\x01" * 64))


def test_signatures_of_every_family_verify_and_others_do_not(rsa_private_key: rsa.RSAPrivateKey) -> None:
    elliptic, edwards = ec.generate_private_key(ec.SECP256R1()), ed25519.Ed25519PrivateKey.generate()
    digest = hashes.SHA256()
    signatures: dict[SignatureAlgorithm, tuple[PublicKey, bytes]] = {
        SignatureAlgorithm(Family.RSA_PKCS1, "sha256"): (
            rsa_private_key.public_key(),
            rsa_private_key.sign(b"message", padding.PKCS1v15(), digest),
        ),
        SignatureAlgorithm(Family.RSA_PSS, "sha256", 20): (
            rsa_private_key.public_key(),
            rsa_private_key.sign(b"message", padding.PSS(padding.MGF1(digest), 20), digest),
        ),
        SignatureAlgorithm(Family.ECDSA, "sha256"): (
            elliptic.public_key(),
            elliptic.sign(b"message", ec.ECDSA(digest)),
        ),
        SignatureAlgorithm(Family.ED25519): (edwards.public_key(), edwards.sign(b"message")),
    }
    for found, (key, signature) in signatures.items():
        verify_signature(key, found, signature, b"message")
        for other, (other_key, other_signature) in signatures.items():
            with pytest.raises(WrongSignatureError):
                verify_signature(other_key, found, other_signature, b"message" if other != found else b"massage")


def test_a_salt_that_the_key_has_no_room_for_is_a_wrong_signature(rsa_private_key: rsa.RSAPrivateKey) -> None:
    found = SignatureAlgorithm(Family.RSA_PSS, "sha512", MAX_PSS_SALT)
    with pytest.raises(WrongSignatureError):
        verify_signature(rsa_private_key.public_key(), found, hashlib.sha512(b"").digest() * 4, b"message")
