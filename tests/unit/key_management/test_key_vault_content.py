"""What a secret of Key Vault holds: every way a chain can be written, and every way it can be broken.

The files of the folder pkcs12 were made by OpenSSL 3.0 (`openssl pkcs12 -export -nokeys -passout pass:`), root first
and without a key, as Key Vault hands out certificates whose key cannot be exported.
"""

from __future__ import annotations

import base64
import contextlib
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_public_key,
    pkcs12,
)
from hypothesis import given
from hypothesis import strategies as st

from provider.demo import pki
from provider.errors import ConfigurationError
from provider.key_management.key_vault_content import (
    MAX_PKCS12_ROUNDS,
    MAX_VALUE_CHARACTERS,
    PEM_TYPE,
    PKCS12_TYPE,
    SecretContent,
    order_chain,
    read_certificate_secret,
    read_key,
)
from provider.notation.certificates import MAX_CHAIN_LENGTH, Certificate
from tests.simulators.azure.key_vault import json_web_key, pem_secret, pkcs12_secret

NOW = datetime(2026, 11, 1, tzinfo=UTC)
DAY = timedelta(days=1)
FILES = sorted(Path(__file__).with_name("pkcs12").glob("*.pfx"))


def issue(name: str, extensions: pki.Extensions, issuer: pki.CertifiedKey | None = None, **options: Any) -> Any:
    return pki.issue(
        {"C": "US", "ST": "WA", "O": "Contoso", "CN": name},
        extensions,
        issuer=issuer,
        not_before=NOW - DAY,
        not_after=NOW + DAY,
        **options,
    )


ROOT = issue("root", pki.authority())
ISSUING = issue("issuing", pki.authority(), ROOT)
SIGNER = issue("release", pki.code_signing(), ISSUING)
SELF_SIGNED = issue("alone", pki.code_signing())
CHAIN = tuple(Certificate.parse(pki.der(one)) for one in SIGNER.chain)


def refusal_of(value: str | None, content_type: str | None = PEM_TYPE) -> str:
    with pytest.raises(ConfigurationError) as caught:
        read_certificate_secret(value, content_type)
    assert caught.value.code == "CERTIFICATE_INVALID"
    return caught.value.detail


# -- chains that are there --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [None, SIGNER.key], ids=["without a key", "with its key"])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (0, 2, 1)])
def test_a_chain_in_pem_comes_leaf_first_whatever_its_order(order: tuple[int, ...], key: pki.PrivateKey | None) -> None:
    read = read_certificate_secret(pem_secret([SIGNER.chain[index] for index in order], key), PEM_TYPE)
    assert read == SecretContent(CHAIN, held_private_key=key is not None)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_a_chain_in_pkcs12_without_a_key_comes_leaf_first(order: tuple[int, ...]) -> None:
    """Ratify cannot read these: it skips certificates whose key cannot be exported."""
    read = read_certificate_secret(pkcs12_secret([SIGNER.chain[index] for index in order]), PKCS12_TYPE)
    assert read == SecretContent(CHAIN, held_private_key=False)


def test_a_chain_in_pkcs12_with_its_key_is_read_and_the_key_is_told_and_dropped() -> None:
    read = read_certificate_secret(pkcs12_secret(SIGNER.chain, SIGNER.key), PKCS12_TYPE)
    assert read == SecretContent(CHAIN, held_private_key=True)
    shown = repr(read)
    number = SIGNER.key.private_numbers().private_value
    assert str(number) not in shown
    assert f"{number:x}" not in shown
    assert "PRIVATE" not in shown


def test_base64_in_lines_is_read_too() -> None:
    value = pkcs12_secret(SIGNER.chain)
    folded = "\r\n".join(value[index : index + 64] for index in range(0, len(value), 64))
    assert read_certificate_secret(folded, PKCS12_TYPE).chain == CHAIN


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_files_of_openssl_are_read(file: Path) -> None:
    read = read_certificate_secret(base64.b64encode(file.read_bytes()).decode(), PKCS12_TYPE)
    assert [one.subject_text for one in read.chain] == ["CN=release,O=Contoso,ST=WA,C=US", "CN=root,O=Contoso,C=US"]
    assert not read.held_private_key


def test_windows_line_ends_and_bag_attributes_around_the_blocks_do_no_harm() -> None:
    value = "Bag Attributes\n  localKeyID: 01\n" + pem_secret(SIGNER.chain) + "\n\ntrailing text\n"
    assert read_certificate_secret(value.replace("\n", "\r\n"), PEM_TYPE).chain == CHAIN


def test_a_self_signed_certificate_stands_alone() -> None:
    assert len(read_certificate_secret(pem_secret(SELF_SIGNED.chain), PEM_TYPE).chain) == 1


def test_a_chain_without_its_root_is_enough_with_an_authority_in_it() -> None:
    assert read_certificate_secret(pem_secret(SIGNER.chain[:2]), PEM_TYPE).chain == CHAIN[:2]


def test_an_authority_that_two_roots_have_signed_may_be_there_twice() -> None:
    other = issue("other root", pki.authority())
    crossed = issue("issuing", pki.authority(), other, key=ISSUING.key)
    certificates = [*SIGNER.chain, crossed.certificate, other.certificate]
    read = read_certificate_secret(pem_secret(certificates[::-1]), PEM_TYPE)
    assert read.chain[0] == CHAIN[0]
    assert len(read.chain) == 5


# -- chains that are not ----------------------------------------------------------------------------------------------


def test_a_truncated_certificate_is_an_error_and_not_left_out() -> None:
    """The parser of most programs drops a last block that is cut off, and trusts one certificate less."""
    assert "block 3" in refusal_of(pem_secret(SIGNER.chain)[:-80])
    assert "cannot be read" in refusal_of(pkcs12_secret(SIGNER.chain)[:-80], PKCS12_TYPE)


def test_duplicates_are_refused_by_name() -> None:
    assert refusal_of(pem_secret([*SIGNER.chain, SIGNER.chain[1]])).startswith(
        'the certificate "CN=issuing,O=Contoso,ST=WA,C=US" stands twice'
    )
    doubled = pkcs12_secret([*SIGNER.chain, SIGNER.chain[0]])
    assert "stands twice" in refusal_of(doubled, PKCS12_TYPE)


def test_two_leaves_are_refused() -> None:
    other = issue("other", pki.code_signing(), ISSUING)
    told = refusal_of(pem_secret([*SIGNER.chain, other.certificate]))
    assert told.startswith("the certificates are not one chain (expected one leaf, found ")
    assert '"CN=release' in told
    assert '"CN=other' in told


def test_a_stranger_among_the_certificates_is_refused() -> None:
    assert "not one chain" in refusal_of(pem_secret([*SIGNER.chain, issue("stranger", pki.authority()).certificate]))


def test_a_namesake_of_the_issuer_is_no_issuer() -> None:
    """The link is the signature, not the name."""
    namesake = issue("issuing", pki.authority())
    assert "not one chain" in refusal_of(pem_secret([SIGNER.certificate, namesake.certificate]))


def test_authorities_that_signed_each_other_and_no_leaf_are_no_chain() -> None:
    one, two = issue("one", pki.authority()), issue("two", pki.authority())
    circle = [
        issue("one", pki.authority(), two, key=one.key).certificate,
        issue("two", pki.authority(), one, key=two.key).certificate,
    ]
    assert "found none" in refusal_of(pem_secret(circle))
    assert "one leaf with its issuers" in refusal_of(pem_secret([*SIGNER.chain, *circle]))


def test_a_leaf_without_its_issuers_can_anchor_nothing_and_says_so() -> None:
    told = refusal_of(pem_secret(SIGNER.chain[:1]))
    assert told == (
        'the certificate "CN=release,O=Contoso,ST=WA,C=US" is there without its issuers '
        "(expected its chain, up to an authority)"
    )


def test_a_certificate_with_a_signature_of_an_old_kind_counts_by_its_name() -> None:
    """An authority with a key that nobody accepts is no reason to lose the chain; what it signed passes nowhere."""
    key = ed25519.Ed25519PrivateKey.generate()
    builder = x509.CertificateBuilder(serial_number=1).not_valid_before(NOW - DAY).not_valid_after(NOW + DAY)
    builder = builder.issuer_name(ROOT.certificate.subject)
    odd_root = builder.subject_name(ROOT.certificate.subject).public_key(key.public_key()).sign(key, None)
    builder = builder.subject_name(ISSUING.certificate.subject).public_key(ISSUING.certificate.public_key())
    for extension, critical in pki.authority():
        builder = builder.add_extension(extension, critical)
    odd = [SIGNER.certificate, builder.sign(key, None), odd_root]
    chain = order_chain([Certificate.parse(pki.der(one)) for one in reversed(odd)])
    assert [one.der for one in chain] == [pki.der(one) for one in odd]


def test_there_is_a_limit_to_a_chain() -> None:
    names = [issue(f"authority {number}", pki.authority()) for number in range(MAX_CHAIN_LENGTH + 1)]
    many = [one.certificate for one in names]
    assert "too many certificates" in refusal_of(pem_secret(many))
    assert "too many certificates" in refusal_of(pkcs12_secret(many), PKCS12_TYPE)


@pytest.mark.parametrize(
    ("value", "content_type", "told"),
    [
        (None, PEM_TYPE, "the secret has no value"),
        ("", PKCS12_TYPE, "the secret has no value"),
        ("x" * (MAX_VALUE_CHARACTERS + 1), PEM_TYPE, f"the secret has {MAX_VALUE_CHARACTERS + 1} characters"),
        ("hunter2", None, "the secret is not that of a certificate"),
        ("hunter2", "text/plain", "the secret is not that of a certificate"),
        ("hunter2", PEM_TYPE, "there is neither a PEM block nor DER"),
        ("hunter2\ud800", PEM_TYPE, "there is neither a PEM block nor DER"),
        ("hunter2", PKCS12_TYPE, "the secret is not base64"),
        ("pässwort", PKCS12_TYPE, "the secret is not base64"),
        ("aHVudGVyMg==", PKCS12_TYPE, "the PKCS #12 file cannot be read"),
    ],
)
def test_what_is_no_certificate_is_refused_and_not_quoted(
    value: str | None, content_type: str | None, told: str
) -> None:
    """It may be somebody's password that was stored under the name of a certificate."""
    said = refusal_of(value, content_type)
    assert said.startswith(told)
    assert "hunter2" not in said
    assert "pässwort" not in said


def test_a_key_alone_is_refused_and_not_quoted() -> None:
    key = SIGNER.key_pem().decode()
    said = refusal_of(key)
    assert said == "there is no certificate (expected at least one)"
    assert key.splitlines()[1] not in said
    data = pkcs12.serialize_key_and_certificates(None, SIGNER.key, None, None, _encryption(2_000, b"x"))
    assert "its password is not empty" in refusal_of(base64.b64encode(data).decode(), PKCS12_TYPE)


def test_a_pkcs12_file_without_certificates_is_refused() -> None:
    data = pkcs12.serialize_key_and_certificates(None, SIGNER.key, None, None, NoEncryption())
    assert "there is no certificate" in refusal_of(base64.b64encode(data).decode(), PKCS12_TYPE)


def test_a_certificate_that_is_not_well_formed_is_refused() -> None:
    """The library reads it; what is in it is not DER."""
    sloppy = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.19"), b"\x30\x03\x01\x01\x55")
    leaf = issue("sloppy", [(sloppy, True)], ISSUING)
    assert refusal_of(pkcs12_secret([leaf.certificate, *ISSUING.chain]), PKCS12_TYPE)
    assert "block 1" in refusal_of(pem_secret([leaf.certificate, *ISSUING.chain]))


def test_a_file_that_asks_for_too_many_rounds_is_refused_before_they_are_made() -> None:
    data = pkcs12.serialize_key_and_certificates(
        None, SIGNER.key, SIGNER.certificate, None, _encryption(MAX_PKCS12_ROUNDS + 1, b"x")
    )
    said = refusal_of(base64.b64encode(data).decode(), PKCS12_TYPE)
    assert said == (
        f"the PKCS #12 file asks for {MAX_PKCS12_ROUNDS + 1} iterations (expected at most {MAX_PKCS12_ROUNDS})"
    )


def _encryption(rounds: int, password: bytes) -> Any:
    builder = PrivateFormat.PKCS12.encryption_builder().kdf_rounds(rounds).hmac_hash(hashes.SHA256())
    return builder.build(password)


def test_a_deeply_nested_file_is_refused() -> None:
    data = b""
    for _ in range(40):
        length = len(data)
        head = bytes((length,)) if length < 0x80 else bytes((0x81, length))
        data = b"\x30" + head + data
    assert "nested too deeply" in refusal_of(base64.b64encode(data).decode(), PKCS12_TYPE)


def test_a_password_other_than_the_empty_one_is_told() -> None:
    value = pkcs12_secret(SIGNER.chain, SIGNER.key, encryption=BestAvailableEncryption(b"secret"))
    assert "its password is not empty" in refusal_of(value, PKCS12_TYPE)


@cache
def samples() -> tuple[bytes, ...]:
    return (
        pem_secret(SIGNER.chain, SIGNER.key).encode(),
        base64.b64decode(pkcs12_secret(SIGNER.chain, SIGNER.key)),
        FILES[0].read_bytes(),
    )


@given(st.data())
def test_any_value_gives_a_chain_or_our_error(data: st.DataObject) -> None:
    """Random bytes, and good values with bytes changed or cut off."""
    raw = bytearray(data.draw(st.one_of(st.binary(max_size=200), st.sampled_from(samples()))))
    for place, byte in data.draw(st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), max_size=4)):
        if place < len(raw):
            raw[place] = byte
    raw = raw[: data.draw(st.integers(0, 6000))]
    for value, kind in ((raw.decode("latin-1"), PEM_TYPE), (base64.b64encode(bytes(raw)).decode(), PKCS12_TYPE)):
        with contextlib.suppress(ConfigurationError):
            assert read_certificate_secret(value, kind).chain


# -- keys -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hsm", [False, True])
@pytest.mark.parametrize(
    "key",
    [
        rsa.generate_private_key(65537, 2048),
        *(ec.generate_private_key(curve) for curve in (ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1())),
    ],
    ids=["RSA", "P-256", "P-384", "P-521"],
)
def test_a_public_key_is_read(key: pki.PrivateKey, hsm: bool) -> None:
    read = read_key(json_web_key(key, hsm=hsm))
    assert read == key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


GOOD_KEY = json_web_key(SIGNER.key)
RSA_KEY = json_web_key(rsa.generate_private_key(65537, 2048))


@pytest.mark.parametrize(
    ("description", "told"),
    [
        (None, "the key's description is missing"),
        ([], "the key's description is missing"),
        ({}, "the key's algorithm is not supported"),
        ({**GOOD_KEY, "kty": "oct-HSM"}, "the key's algorithm is not supported"),
        ({**GOOD_KEY, "crv": "P-256K"}, "the key's algorithm is not supported"),
        ({**GOOD_KEY, "crv": "P-384"}, "the key's description is malformed"),
        ({**GOOD_KEY, "x": "AAAA"}, "the key's description is malformed"),
        ({**GOOD_KEY, "x": None}, "the key's description is malformed"),
        ({**GOOD_KEY, "x": 7}, "the key's description is malformed"),
        ({**GOOD_KEY, "x": ""}, "the key's description is malformed"),
        ({**GOOD_KEY, "x": "!"}, "the key's description is malformed"),
        ({**GOOD_KEY, "x": "A" * 5000}, "the key's description is malformed"),
        ({**RSA_KEY, "e": "AA"}, "the key's description is malformed"),
        ({**RSA_KEY, "n": RSA_KEY["n"][:172]}, "the RSA key is too short"),
    ],
)
def test_a_key_that_cannot_be_used_is_refused(description: Any, told: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_key(description)
    assert caught.value.detail.startswith(told)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@given(
    st.dictionaries(st.sampled_from(["kty", "crv", "n", "e", "x", "y"]), json_values | st.sampled_from(["RSA", "EC"]))
)
def test_any_description_gives_a_key_or_our_error(description: dict[str, Any]) -> None:
    with contextlib.suppress(ConfigurationError):
        assert load_der_public_key(read_key(description))
