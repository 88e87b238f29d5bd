"""Making authorities and serving certificates, and judging those that others made."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, padding, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st

from provider.demo.pki import CertifiedKey, authority, der, issue, key_usage, tls_client, tls_server
from provider.errors import ConfigurationError
from provider.gatekeeper.issuance import (
    MAX_CERTIFICATES,
    MAX_PEM_BYTES,
    Authority,
    ServingPair,
    authority_of,
    certificates_pem,
    is_valid,
    issue_authority,
    issue_pair,
    key_pem,
    read_certificates,
    read_key,
)
from provider.notation import asn1
from tests.simulators.certificate_surgery import operate

NOW = datetime.now(UTC).replace(microsecond=0)  # OpenSSL checks validity by its own clock
DAY = timedelta(days=1)
NAMES = ("ratify.gatekeeper-system", "ratify.gatekeeper-system.svc", "127.0.0.1")
VALID = {"not_before": NOW - DAY, "not_after": NOW + DAY}


def made(name: str = "ratify.gatekeeper-system") -> Authority:
    return issue_authority(name, at=NOW, lifetime=10 * DAY)


def shake_hands(
    folder: Path, pair: ServingPair, trusted: tuple[x509.Certificate, ...], name: str, *, strict: bool = True
) -> None:
    """A TLS 1.3 handshake of OpenSSL with OpenSSL in memory."""
    (folder / "serving.pem").write_bytes(pair.pem())
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.minimum_version = ssl.TLSVersion.TLSv1_3
    server_side.load_cert_chain(folder / "serving.pem")
    client_side = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if strict:
        client_side.verify_flags |= ssl.VERIFY_X509_STRICT
    client_side.load_verify_locations(cadata=certificates_pem(trusted).decode())
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = server_side.wrap_bio(to_server, to_client, server_side=True)
    client = client_side.wrap_bio(to_client, to_server, server_hostname=name)
    for side in (client, server, client, server):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    assert client.version() == "TLSv1.3"


# -- what is made -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_strict_caller_accepts_what_is_made_under_every_name(tmp_path: Path, name: str) -> None:
    ours = made()
    shake_hands(tmp_path, issue_pair(ours, NAMES, at=NOW, lifetime=DAY), ours.certificates, name)


def test_a_caller_refuses_another_name_or_another_authority(tmp_path: Path) -> None:
    ours = made()
    pair = issue_pair(ours, NAMES, at=NOW, lifetime=DAY)
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        shake_hands(tmp_path, pair, ours.certificates, "other.gatekeeper-system")
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(tmp_path, pair, made().certificates, NAMES[0])


def test_two_authorities_of_one_name_stand_in_one_bundle(tmp_path: Path) -> None:
    """During a change both have the same subject; the key identifiers tell them apart, in either order."""
    old, new = made(), made()
    assert old.certificate.subject == new.certificate.subject
    for signer in (old, new):
        pair = issue_pair(signer, NAMES, at=NOW, lifetime=DAY)
        shake_hands(tmp_path, pair, (*old.certificates, *new.certificates), NAMES[0])
        shake_hands(tmp_path, pair, (*new.certificates, *old.certificates), NAMES[0])


def test_the_authority_is_named_after_the_service_and_can_do_nothing_but_sign() -> None:
    certificate = made().certificate
    assert certificate.subject.rfc4514_string() == "CN=ratify.gatekeeper-system,O=Countersign"
    assert certificate.extensions.get_extension_for_class(x509.BasicConstraints).value == x509.BasicConstraints(True, 0)
    assert certificate.extensions.get_extension_for_class(x509.KeyUsage).value == key_usage("key_cert_sign", "crl_sign")
    assert certificate.not_valid_before_utc == NOW - timedelta(hours=1)
    assert certificate.not_valid_after_utc == NOW + 10 * DAY
    assert isinstance(certificate.public_key(), ec.EllipticCurvePublicKey)


def test_the_serving_certificate_is_for_tls_servers_only() -> None:
    pair = issue_pair(made(), NAMES, at=NOW, lifetime=DAY)
    extensions = pair.certificate.extensions
    assert list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    assert pair.names == set(NAMES)
    assert (pair.certificate.not_valid_before_utc, pair.certificate.not_valid_after_utc) == (
        NOW - timedelta(hours=1),
        NOW + DAY,
    )


def test_names_too_long_for_a_common_name_are_only_where_they_belong(tmp_path: Path) -> None:
    long = f"{'s' * 60}.{'n' * 60}"
    ours = made(long)
    assert ours.certificate.subject.rfc4514_string() == "O=Countersign"
    pair = issue_pair(ours, (long,), at=NOW, lifetime=DAY)
    assert not list(pair.certificate.subject)
    assert pair.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).critical
    shake_hands(tmp_path, pair, ours.certificates, long)


def test_a_serving_certificate_does_not_outlive_its_authority() -> None:
    ours = made()
    pair = issue_pair(ours, NAMES, at=NOW, lifetime=100 * DAY)
    assert pair.certificate.not_valid_after_utc == ours.certificate.not_valid_after_utc


def test_without_the_authoritys_key_nothing_is_issued() -> None:
    keyless = Authority(made().certificates)
    assert not keyless.can_sign(NOW)
    with pytest.raises(ConfigurationError, match="key of the CA certificate is not at hand"):
        issue_pair(keyless, NAMES, at=NOW, lifetime=DAY)


def test_an_authority_signs_within_its_validity_only() -> None:
    ours = made()
    assert ours.can_sign(NOW)
    assert not ours.can_sign(NOW + 11 * DAY)
    assert not ours.can_sign(NOW - DAY)
    assert is_valid(ours.certificate, NOW)


def test_keys_are_in_no_repr() -> None:
    ours = made()
    for thing in (ours, issue_pair(ours, NAMES, at=NOW, lifetime=DAY)):
        assert "key=" not in repr(thing)


# -- what others made -------------------------------------------------------------------------------------------------


def a_root(**more: Any) -> CertifiedKey:
    return issue({"CN": "root"}, authority(), issuer=None, **{**VALID, **more})


def pair_of(leaf: CertifiedKey, *trusted: x509.Certificate) -> ServingPair:
    chain, key = read_certificates(leaf.chain_pem()), read_key(leaf.key_pem())
    return ServingPair.of(chain, key, trusted or (leaf.root,))


def test_the_rsa_pair_of_cert_controller_with_its_serial_number_0_is_taken(tmp_path: Path) -> None:
    """Ratify's and Gatekeeper's: RSA, serial 0, key usages of a TLS server at the authority, no key identifiers."""
    key = rsa.generate_private_key(65537, 2048)
    usage = key_usage("digital_signature", "key_encipherment", "key_cert_sign")
    root = issue(
        {"O": "Ratify", "CN": "ratify.gatekeeper-system"},
        ((x509.BasicConstraints(ca=True, path_length=None), True), (usage, True)),
        issuer=None,
        key=key,
        serial=1,
        **VALID,
    )
    zero = asn1.encode(asn1.INTEGER, b"\0")
    body = _body(operate(der(root.certificate), serial=zero))
    signature = asn1.encode(asn1.BIT_STRING, b"\0", key.sign(body, padding.PKCS1v15(), hashes.SHA256()))
    resigned = operate(der(root.certificate), serial=zero, signature=signature)
    leaf = issue({"CN": NAMES[0]}, tls_server(NAMES[:1]), issuer=root, serial=1, **VALID)
    (certificate,) = read_certificates(ssl.DER_cert_to_PEM_cert(resigned).encode())
    theirs = authority_of((certificate,), read_key(root.key_pem()))
    assert theirs.can_sign(NOW)
    pair = pair_of(leaf, certificate)
    assert pair.anchor == certificate
    renewed = issue_pair(theirs, NAMES, at=NOW, lifetime=DAY)
    assert ServingPair.of(renewed.chain, renewed.key, theirs.certificates).is_valid(NOW)


def _body(certificate: bytes) -> bytes:
    """The TBSCertificate, which is what is signed."""
    outer = asn1.Reader(asn1.read_whole(certificate, asn1.SEQUENCE, "certificate").content, "certificate")
    return outer.read(asn1.SEQUENCE, "TBSCertificate").encoded


def test_a_chain_with_an_intermediate_leads_to_its_root(tmp_path: Path) -> None:
    root = a_root()
    middle = issue({"CN": "middle"}, authority(), issuer=root, **VALID)
    leaf = issue({"CN": "leaf"}, tls_server(NAMES), issuer=middle, **VALID)
    pair = pair_of(leaf)
    assert pair.anchor == root.certificate
    assert len(pair.chain) == 2
    shuffled = ServingPair.of((pair.chain[0], a_root().certificate, pair.chain[1]), pair.key, (root.certificate,))
    assert shuffled.anchor == root.certificate
    assert pair_of(leaf, middle.certificate).anchor == middle.certificate
    shake_hands(tmp_path, pair, (root.certificate,), NAMES[0], strict=False)


def test_a_self_signed_serving_certificate_is_its_own_anchor(tmp_path: Path) -> None:
    leaf = issue({"CN": "self"}, tls_server(NAMES), issuer=None, **VALID)
    assert pair_of(leaf).anchor == leaf.certificate


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        ("key", "does not belong to the serving certificate"),
        ("usage", "is not for TLS servers"),
        ("root", "does not lead to the CA certificate"),
        ("not a ca", "does not lead to the CA certificate"),
        ("same name", "does not lead to the CA certificate"),
        ("sha1", "does not lead to the CA certificate"),
    ],
)
def test_parts_that_do_not_belong_together_are_no_pair(spoil: str, told: str) -> None:
    root = a_root()
    kind = tls_client(NAMES) if spoil == "usage" else tls_server(NAMES)
    if spoil == "not a ca":
        root = issue({"CN": "root"}, tls_server(NAMES), issuer=None, **VALID)
    leaf = issue({"CN": "leaf"}, kind, issuer=root, **VALID)
    key = read_key((root if spoil == "key" else leaf).key_pem())
    chain = (leaf.certificate,)
    if spoil == "sha1":
        chain = (_with_sha1(leaf, root),)
    trusted = a_root() if spoil in ("root", "same name") else root
    if spoil == "root":
        trusted = issue({"CN": "other"}, authority(), issuer=None, **VALID)
    with pytest.raises(ConfigurationError, match=told) as caught:
        ServingPair.of(chain, key, (trusted.certificate,))
    assert caught.value.code == "TLS_INVALID"


def _with_sha1(leaf: CertifiedKey, issuer: CertifiedKey) -> x509.Certificate:
    """The same certificate, well signed with SHA-1, which cryptography does not make."""
    algorithm = asn1.encode(asn1.SEQUENCE, asn1.encode_object_identifier("1.2.840.10045.4.1"))
    changes: dict[str, bytes] = {"inner_algorithm": algorithm, "outer_algorithm": algorithm}
    body = _body(operate(der(leaf.certificate), **changes))
    assert isinstance(issuer.key, ec.EllipticCurvePrivateKey)
    signature = asn1.encode(asn1.BIT_STRING, b"\0", issuer.key.sign(body, ec.ECDSA(hashes.SHA1())))
    return x509.load_der_x509_certificate(operate(der(leaf.certificate), signature=signature, **changes))


@pytest.mark.parametrize(
    "key",
    [
        ed25519.Ed25519PrivateKey.generate(),
        dsa.generate_private_key(1024),
        rsa.generate_private_key(65537, 1024),
        ec.generate_private_key(ec.SECP256K1()),
    ],
    ids=["Ed25519", "DSA", "RSA-1024", "secp256k1"],
)
def test_keys_that_callers_refuse_are_refused(key: Any) -> None:
    with pytest.raises(ConfigurationError, match="neither RSA"):
        read_key(key_pem(key))


def test_an_encrypted_key_is_refused() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"hunter2")
    )
    with pytest.raises(ConfigurationError, match="cannot be read") as caught:
        read_key(pem)
    assert "hunter2" not in str(caught.value)


def test_too_much_of_anything_is_refused() -> None:
    one = certificates_pem(made().certificates)
    many = b"".join(certificates_pem(made().certificates) for _ in range(MAX_CERTIFICATES + 1))
    with pytest.raises(ConfigurationError, match="more than 16 certificates"):
        read_certificates(many)
    with pytest.raises(ConfigurationError, match="bytes"):
        read_certificates(one + b"\n" * MAX_PEM_BYTES)
    with pytest.raises(ConfigurationError, match="bytes"):
        read_key(b"\n" * (MAX_PEM_BYTES + 1))
    assert len(read_certificates(one + one)) == 1


def test_a_certificate_without_names_has_none() -> None:
    bare = issue({"CN": "bare"}, (), issuer=None, **VALID)
    assert pair_of(bare).names == frozenset()


def test_a_key_that_is_not_the_authoritys_is_left_out() -> None:
    root, other = a_root(), a_root()
    both = (root.certificate, other.certificate)
    assert authority_of(both, read_key(other.key_pem())).certificates == (other.certificate, root.certificate)
    assert authority_of(both, read_key(a_root().key_pem())).key is None
    leaf = issue({"CN": "leaf"}, tls_server(NAMES), issuer=None, **VALID)
    assert authority_of((leaf.certificate,), read_key(leaf.key_pem())).key is None


@given(st.binary(max_size=200), st.integers(0, 3))
def test_n70_any_bytes_give_our_error_only(data: bytes, kind: int) -> None:
    pem = (b"", b"-----BEGIN CERTIFICATE-----\n", b"-----BEGIN EC PRIVATE KEY-----\n", b"-----BEGIN PRIVATE KEY-----\n")
    for read in (read_certificates, read_key):
        with pytest.raises(ConfigurationError):
            read(pem[kind] + data)


@given(st.data())
def test_n70_a_certificate_with_changed_bytes_gives_our_error_or_a_pair_that_does_not_crash(
    data: st.DataObject,
) -> None:
    changed = bytearray(der(SAMPLE.certificate))
    for position in data.draw(st.lists(st.integers(0, len(changed) - 1), min_size=1, max_size=4)):
        changed[position] = data.draw(st.integers(0, 255))
    try:
        chain = read_certificates(ssl.DER_cert_to_PEM_cert(bytes(changed)).encode())
        pair = ServingPair.of(chain, SAMPLE.key, (SAMPLE.anchor,))
    except ConfigurationError:
        return
    assert pair.is_valid(NOW) in (True, False)
    assert isinstance(pair.names, frozenset)


SAMPLE = issue_pair(made(), NAMES, at=NOW, lifetime=DAY)
