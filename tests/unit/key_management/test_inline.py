"""Certificates and keys that are written into a resource."""

from __future__ import annotations

import hashlib
import ssl
from contextlib import suppress

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa, x25519
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from provider.errors import ConfigurationError
from provider.key_management.inline import KEY_NAME, InlineKeyManagementProvider, read_inline
from provider.notation.certificates import Certificate
from tests.simulators.signer import Signer

SIGNER = Signer.make()
LEAF, ROOT = map(Certificate.parse, SIGNER.chain)
LEAF_PEM, ROOT_PEM = map(ssl.DER_cert_to_PEM_cert, SIGNER.chain)
EC_KEY = ec.generate_private_key(ec.SECP256R1())


def public_pem(key: PrivateKeyTypes) -> str:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def private_pem(key: PrivateKeyTypes, form: PrivateFormat = PrivateFormat.PKCS8) -> str:
    return key.private_bytes(Encoding.PEM, form, NoEncryption()).decode()


def refusal_of(content_type: str, value: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        read_inline(content_type, value)  # type: ignore[arg-type]
    assert caught.value.code == "CERTIFICATE_INVALID"
    return caught.value.detail


async def test_certificates_are_there_from_the_beginning() -> None:
    """A bundle with text between its blocks, in its order, without repetitions; a refresh changes nothing."""
    provider = InlineKeyManagementProvider(
        "team-a/certs", content_type="certificate", value=f"# leaf\n{LEAF_PEM}subject=root\n{ROOT_PEM}{LEAF_PEM}"
    )
    assert provider.name == "team-a/certs"
    material = provider.material()
    assert material.certificates == (LEAF, ROOT)
    assert not material.public_keys
    await provider.refresh()
    assert provider.material() is material


def test_the_status_shows_certificates_in_ratifys_shape() -> None:
    material = read_inline("certificate", ROOT_PEM)
    assert material.properties == {
        "Certificates": [
            {
                "Name": "CN=root,O=Contoso,C=US",
                "Version": "",
                "Enabled": "true",
                "NotAfter": "2036-02-27T10:00:00+00:00",
                "SHA256": hashlib.sha256(SIGNER.chain[1]).hexdigest(),
            }
        ]
    }


@pytest.mark.parametrize(
    "key",
    [
        EC_KEY,
        ec.generate_private_key(ec.SECP384R1()),
        ec.generate_private_key(ec.SECP521R1()),
        rsa.generate_private_key(65537, 2048),
    ],
    ids=["P-256", "P-384", "P-521", "RSA-2048"],
)
def test_a_public_key_is_read(key: PrivateKeyTypes) -> None:
    material = read_inline("key", public_pem(key))
    der = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert material.public_keys == {KEY_NAME: der}
    assert material.properties == {"Keys": [{"Name": "", "Version": "", "Enabled": "true"}]}
    assert not material.certificates


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("", "there is neither a PEM block nor DER"),
        ("/etc/certs/ca.pem", "there is neither a PEM block nor DER"),
        (ROOT_PEM[:300], "block 1: truncated, its end line is missing"),
        (LEAF_PEM + ROOT_PEM[:300], "block 2: truncated, its end line is missing"),
        (ROOT_PEM.replace("MII", "!!!"), "block 1: what is between its boundary lines is not base64"),
        (public_pem(EC_KEY), "block 1 is no certificate"),
        (ROOT_PEM + private_pem(EC_KEY), "block 2 is a private key"),
    ],
    ids=["nothing", "path", "truncated", "second truncated", "not base64", "key", "private key"],
)
def test_what_is_no_certificate_is_refused_whole(value: str, reason: str) -> None:
    """A bundle with one damaged certificate is not a bundle of the others."""
    assert refusal_of("certificate", value).startswith(reason)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("", "the value is not one public key"),
        (public_pem(EC_KEY)[:60], "the PEM is damaged: block 1: truncated"),
        (public_pem(EC_KEY) * 2, "the value is not one public key"),
        (ROOT_PEM, "the value is not one public key"),
        (private_pem(EC_KEY), "the value holds a private key"),
        (private_pem(EC_KEY, PrivateFormat.TraditionalOpenSSL), "the value holds a private key"),
        (public_pem(EC_KEY) + private_pem(EC_KEY), "the value holds a private key"),
        (ROOT_PEM.replace("CERTIFICATE", "PUBLIC KEY"), "the PEM block is not a SubjectPublicKeyInfo"),
        (public_pem(ed25519.Ed25519PrivateKey.generate()), "the public key's algorithm is not supported"),
        (public_pem(x25519.X25519PrivateKey.generate()), "the public key's algorithm is not supported"),
        (public_pem(ec.generate_private_key(ec.SECP256K1())), "the public key's algorithm is not supported"),
        (public_pem(rsa.generate_private_key(65537, 1024)), "the RSA key is too short"),
    ],
)
def test_what_is_no_usable_public_key_is_refused(value: str, reason: str) -> None:
    assert refusal_of("key", value).startswith(reason)


@pytest.mark.parametrize("content_type", ["certificate", "key"])
def test_no_refusal_repeats_a_private_key(content_type: str) -> None:
    """Whoever pasted it finds it in no log and in no status."""
    pem = private_pem(EC_KEY)
    with pytest.raises(ConfigurationError) as caught:
        read_inline(content_type, pem)  # type: ignore[arg-type]
    told = f"{caught.value!r} {caught.value} {caught.value.remediation}"
    assert not any(line in told for line in pem.splitlines() if "-----" not in line)
    assert "replace" in caught.value.remediation


@settings(deadline=None)
@given(
    st.sampled_from(["certificate", "key"]),
    st.text(max_size=200) | st.just(ROOT_PEM) | st.just(public_pem(EC_KEY)),
    st.integers(0, 800),
    st.characters(),
)
def test_n70_any_value_gives_material_or_a_refusal(content_type: str, value: str, place: int, character: str) -> None:
    """Damage at any place of a certificate or key is a refusal, or does not matter to what is read."""
    damaged = value[:place] + character + value[place + 1 :]
    with suppress(ConfigurationError):
        material = read_inline(content_type, damaged)  # type: ignore[arg-type]
        assert material.certificates or material.public_keys
