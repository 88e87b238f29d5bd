"""The key decides the algorithm, and a signature of any other kind is refused."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from hypothesis import given
from hypothesis import strategies as st

from provider.errors import Refused
from provider.notation.algorithms import (
    ALGORITHMS,
    algorithm_for_key,
    find_by_cose_label,
    find_by_name,
    verify_signature,
)
from tests.simulators.signer import Signer

MESSAGE = b"what was signed"
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


@pytest.fixture(scope="module")
def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


@pytest.fixture(scope="module")
def p256_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def refusal(key: object, signature: bytes = b"") -> Refused:
    with pytest.raises(Refused) as caught:
        verify_signature(key, signature, MESSAGE)
    return caught.value


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()])
def test_an_elliptic_curve_signature_verifies(curve: ec.EllipticCurve) -> None:
    signer = Signer(ec.generate_private_key(curve), ())
    algorithm = verify_signature(signer.key.public_key(), signer.sign(MESSAGE), MESSAGE)
    assert (algorithm.name, algorithm.cose_label) == signer.algorithm[:2]


def test_an_rsa_signature_verifies(rsa_key: rsa.RSAPrivateKey) -> None:
    assert verify_signature(rsa_key.public_key(), Signer(rsa_key, ()).sign(MESSAGE), MESSAGE).name == "PS256"


def test_the_table_has_the_sizes_of_the_specification() -> None:
    rows = {entry.name: (entry.key_size, entry.hash.digest_size, entry.signature_size) for entry in ALGORITHMS}
    assert rows == {
        "PS256": (2048, 32, 256),
        "PS384": (3072, 48, 384),
        "PS512": (4096, 64, 512),
        "ES256": (256, 32, 64),
        "ES384": (384, 48, 96),
        "ES512": (521, 64, 132),
    }


@pytest.mark.parametrize("name", ["none", "HS256", "RS256", "ES256K", "EdDSA", "ps256", "", None, -7, ["ES256"]])
def test_n49_alg_none_macs_and_others_are_no_algorithms(name: object) -> None:
    assert find_by_name(name) is None


@pytest.mark.parametrize("label", [-8, 5, -257, -47, 0, -7.0, True, "ES256", "-7", None])
def test_n50_other_cose_algorithms_are_none(label: object) -> None:
    assert find_by_cose_label(label) is None


def test_names_and_labels_lead_to_the_same_row() -> None:
    for entry in ALGORITHMS:
        assert find_by_name(entry.name) is find_by_cose_label(entry.cose_label) is entry


@pytest.mark.parametrize(
    ("key", "found"),
    [
        (ec.generate_private_key(ec.SECP224R1()).public_key(), "EC secp224r1"),
        (ec.generate_private_key(ec.SECP256K1()).public_key(), "EC secp256k1"),
        (ed25519.Ed25519PrivateKey.generate().public_key(), "Ed25519"),
        (rsa.generate_private_key(65537, 1024).public_key(), "RSA 1024"),
        (None, "NoneType"),
    ],
)
def test_n18_a_key_of_another_kind_or_size_is_refused(key: object, found: str) -> None:
    error = refusal(key)
    assert (error.code, error.found) == ("ALGORITHM_UNSUPPORTED", found)
    assert error.expected is not None
    assert "RSA 3072" in error.expected


def test_content_that_was_changed_is_refused(p256_key: ec.EllipticCurvePrivateKey) -> None:
    signature = Signer(p256_key, ()).sign(b"something else")
    assert refusal(p256_key.public_key(), signature).code == "SIGNATURE_INVALID"


def test_n49_pss_with_another_salt_length_is_refused(rsa_key: rsa.RSAPrivateKey) -> None:
    for salt_length in (0, 20, 64, padding.PSS.MAX_LENGTH):
        pss = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=salt_length)
        signature = rsa_key.sign(MESSAGE, pss, hashes.SHA256())
        assert refusal(rsa_key.public_key(), signature).code == "SIGNATURE_INVALID"


def test_n49_pss_with_another_hash_for_its_mask_is_refused(rsa_key: rsa.RSAPrivateKey) -> None:
    pss = padding.PSS(mgf=padding.MGF1(hashes.SHA1()), salt_length=32)
    signature = rsa_key.sign(MESSAGE, pss, hashes.SHA256())
    assert refusal(rsa_key.public_key(), signature).code == "SIGNATURE_INVALID"


def test_n49_pkcs1_signatures_are_refused(rsa_key: rsa.RSAPrivateKey) -> None:
    signature = rsa_key.sign(MESSAGE, padding.PKCS1v15(), hashes.SHA256())
    assert refusal(rsa_key.public_key(), signature).code == "SIGNATURE_INVALID"


def test_n50_a_der_signature_is_refused_by_its_length(p256_key: ec.EllipticCurvePrivateKey) -> None:
    error = refusal(p256_key.public_key(), p256_key.sign(MESSAGE, ec.ECDSA(hashes.SHA256())))
    assert (error.code, error.expected) == ("SIGNATURE_INVALID", "64 octets")


@pytest.mark.parametrize(
    ("r", "s"), [(0, 0), (0, 1), (1, 0), (P256_ORDER, 1), (1, P256_ORDER), (2**256 - 1, 2**256 - 1)]
)
def test_n50_r_and_s_at_the_edges_are_refused(p256_key: ec.EllipticCurvePrivateKey, r: int, s: int) -> None:
    signature = r.to_bytes(32, "big") + s.to_bytes(32, "big")
    assert refusal(p256_key.public_key(), signature).code == "SIGNATURE_INVALID"


def test_n50_a_high_s_is_accepted_because_no_rule_forbids_it(p256_key: ec.EllipticCurvePrivateKey) -> None:
    signature = Signer(p256_key, ()).sign(MESSAGE)
    mirrored = signature[:32] + (P256_ORDER - int.from_bytes(signature[32:], "big")).to_bytes(32, "big")
    assert verify_signature(p256_key.public_key(), mirrored, MESSAGE).name == "ES256"


@given(signature=st.binary(max_size=80) | st.binary(min_size=64, max_size=64) | st.binary(min_size=256, max_size=256))
def test_n70_no_random_octets_are_a_signature(
    p256_key: ec.EllipticCurvePrivateKey, rsa_key: rsa.RSAPrivateKey, signature: bytes
) -> None:
    assert refusal(p256_key.public_key(), signature).code == "SIGNATURE_INVALID"
    assert refusal(rsa_key.public_key(), signature).code == "SIGNATURE_INVALID"


def test_the_algorithm_of_a_key_can_be_asked_for(rsa_key: rsa.RSAPrivateKey) -> None:
    assert algorithm_for_key(rsa_key.public_key()).name == "PS256"
