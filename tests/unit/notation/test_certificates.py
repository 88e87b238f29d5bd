"""Certificates and chains as signers, attackers and operators hand them in."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import example, given
from hypothesis import strategies as st

from provider.demo import pki
from provider.demo.pki import CertifiedKey, der
from provider.errors import ConfigurationError, Refused
from provider.notation import asn1
from provider.notation.certificates import (
    MAX_BUNDLE_BYTES,
    MAX_BUNDLE_CERTIFICATES,
    MAX_CHAIN_BYTES,
    MAX_CHAIN_LENGTH,
    Certificate,
    check_chain_valid_at,
    check_code_signing_chain,
    check_issued_by,
    check_timestamp_trust_anchor,
    check_timestamping_chain,
    check_trust_anchor,
    check_valid_at,
    find_trust_anchor,
    is_self_signed,
    parse_certificates,
)
from provider.notation.x509 import MAX_CERTIFICATE_BYTES
from tests.simulators.certificate_surgery import (
    ECDSA_WITH_SHA256,
    SHA1_WITH_RSA,
    extension,
    extension_list,
    operate,
    take_apart,
)
from tests.simulators.timestamp_authority import NOT_AFTER, NOT_BEFORE, certify, read

ANY_PURPOSE = x509.ObjectIdentifier("2.5.29.37.0")
NO_CA = (x509.BasicConstraints(ca=False, path_length=None), True)
SIGNS = (pki.key_usage("digital_signature"), True)


def usage(*purposes: x509.ObjectIdentifier, critical: bool = False) -> tuple[x509.ExtendedKeyUsage, bool]:
    return x509.ExtendedKeyUsage(purposes), critical


ROOT = certify("Root", pki.authority())
ISSUING = certify("Issuing", pki.authority(path_length=0), ROOT)
LEAF = certify("Signer", pki.code_signing(), ISSUING)
STAMPER = certify("Stamper", pki.timestamping(), ISSUING)


def chain_of(key: CertifiedKey) -> list[Certificate]:
    return [read(certificate) for certificate in key.chain]


def refusal(check: Callable[[Sequence[Certificate]], None], chain: Sequence[Certificate]) -> Refused:
    """The refusal of a chain; the second attempt gives a fresh one."""
    with pytest.raises(Refused) as first:
        check(chain)
    with pytest.raises(Refused) as second:
        check(chain)
    assert first.value is not second.value
    assert str(first.value) == str(second.value)
    return second.value


# -- one certificate --------------------------------------------------------------------------------------------------


def test_a_certificate_is_read_as_the_library_reads_it() -> None:
    other = LEAF.certificate
    found = read(other)
    assert found.der == der(other)
    assert (found.version, found.serial) == (3, other.serial_number)
    assert (found.issuer, found.subject) == (other.issuer.public_bytes(), other.subject.public_bytes())
    assert (found.issuer_text, found.subject_text) == (other.issuer.rfc4514_string(), other.subject.rfc4514_string())
    assert [attribute.text for (attribute,) in found.subject_attributes] == ["US", "Stamps", "Signer"]
    assert (found.not_before, found.not_after) == (other.not_valid_before_utc, other.not_valid_after_utc)
    assert (found.public_key, found.key_name) == (other.public_key(), "P-256")
    assert found.public_key_info == other.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert found.public_key_octets == other.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    assert (found.signed_part, found.signature) == (other.tbs_certificate_bytes, other.signature)
    assert found.signature_algorithm == ECDSA_WITH_SHA256
    assert set(found.extensions) == {"2.5.29.19", "2.5.29.15", "2.5.29.37"}
    assert found.key_usage is not None
    assert found.extended_key_usage is not None
    assert found.basic_constraints is not None
    assert not found.is_authority
    assert not found.is_self_issued
    assert found.sha256_fingerprint == other.fingerprint(SHA256()).hex()
    assert repr(found) == f"Certificate('CN=Signer,O=Stamps,C=US', serial={found.serial:#x})"


def test_revocation_addresses_are_at_hand() -> None:
    found = read(certify("x", pki.code_signing(ocsp_url="http://o/", crl_url="http://c/"), ROOT).certificate)
    assert (found.ocsp_urls, found.crl_urls) == (("http://o/",), ("http://c/",))


def test_equal_octets_are_the_same_certificate_and_others_are_not() -> None:
    first, again = Certificate.parse(der(LEAF.certificate)), Certificate.parse(bytearray(der(LEAF.certificate)))  # type: ignore[arg-type]
    assert first is again
    assert first == again
    assert first != read(ROOT.certificate)
    assert first != first.der
    assert len({first, again, read(ROOT.certificate)}) == 2


@given(st.binary(max_size=300))
def test_any_bytes_are_a_certificate_or_refused(data: bytes) -> None:
    try:
        Certificate.parse(data)
    except Refused as error:
        assert error.code == "CERTIFICATE_CHAIN_INVALID"  # noqa: PT017 - either outcome is fine


@given(st.data())
def test_a_damaged_certificate_is_read_or_refused_and_then_its_chain_is_refused(data: st.DataObject) -> None:
    whole = bytearray(der(LEAF.certificate))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        damaged = Certificate.parse(bytes(whole))
    except Refused:
        return
    if damaged != read(LEAF.certificate):
        with pytest.raises(Refused):
            check_code_signing_chain([damaged, *chain_of(ISSUING)])


def test_n18_a_certificate_of_megabytes_is_refused_unread() -> None:
    with pytest.raises(Refused, match=f"at most {MAX_CERTIFICATE_BYTES}"):
        Certificate.parse(asn1.encode(asn1.SEQUENCE, bytes(MAX_CERTIFICATE_BYTES)))


TIMES = asn1.encode(asn1.UTC_TIME, b"200101000000Z") * 2
KEY, _, SIGNATURE = take_apart(der(LEAF.certificate))


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"version": asn1.encode(asn1.context(0), asn1.encode_integer(3))}, "unknown version"),
        ({"version": asn1.encode(asn1.context(0), asn1.encode_integer(-1))}, "unknown version"),
        ({"version": asn1.encode(asn1.context(0), b"\x05\x00")}, "version"),
        ({"version": b""}, "octets too many"),  # version 1 has no extensions
        ({"version": asn1.encode(asn1.context(0), asn1.encode_integer(1))}, "octets too many"),
        ({"serial": asn1.encode_integer(-5)}, "serial number is negative"),
        ({"serial": bytes.fromhex("02020005")}, "longer than needed"),
        ({"inner_algorithm": SHA1_WITH_RSA}, "signature algorithm inside differs"),
        ({"validity": asn1.encode(asn1.SEQUENCE, TIMES, TIMES)}, "octets too many in validity"),
        ({"validity": asn1.encode(asn1.SEQUENCE, b"\x05\x00" * 2)}, "time"),
        ({"subject": b"\x31\x00"}, "subject"),
        ({"subject": asn1.encode(asn1.SEQUENCE, b"\x31\x00")}, "relative name"),
        ({"key": asn1.encode(asn1.SEQUENCE)}, "algorithm of public key"),
        ({"key": KEY["key"][:-1] + bytes((KEY["key"][-1] ^ 1,))}, "not a valid P-256 key"),
        ({"extensions": extension_list() + b"\x05\x00"}, "octets too many"),
        ({"extensions": asn1.encode(asn1.context(3))}, "extensions"),
        ({"extensions": extension_list(extension("2.5.29.19", b"\x05\x00"))}, "basicConstraints"),
        ({"outer_algorithm": SHA1_WITH_RSA}, "signature algorithm inside differs"),
        ({"signature": asn1.encode(asn1.BIT_STRING, b"\x01\x02")}, "end on an octet"),
        ({"signature": SIGNATURE + b"\x05\x00"}, "octets too many in certificate"),
    ],
)
def test_malformed_parts_are_refused_with_their_name(parts: dict[str, bytes], reason: str) -> None:
    with pytest.raises(Refused, match=reason) as caught:
        Certificate.parse(operate(der(LEAF.certificate), **parts))  # type: ignore[arg-type]
    assert caught.value.code == "CERTIFICATE_CHAIN_INVALID"


def test_oddities_that_libraries_warn_of_are_read_quietly() -> None:
    unique = asn1.encode(0x81, b"\0\1") + asn1.encode(0x82, b"\0\2")
    explicit_v1 = asn1.encode(asn1.context(0), asn1.encode_integer(0))
    assert Certificate.parse(operate(der(LEAF.certificate), serial=asn1.encode_integer(0))).serial == 0
    assert Certificate.parse(operate(der(LEAF.certificate), serial=asn1.encode_integer(2**8000))).serial == 2**8000
    assert Certificate.parse(operate(der(LEAF.certificate), before_extensions=unique)).version == 3
    assert Certificate.parse(operate(der(LEAF.certificate), extensions=b"")).extensions == {}
    assert Certificate.parse(operate(der(LEAF.certificate), extensions=b"", version=b"")).version == 1
    assert Certificate.parse(operate(der(LEAF.certificate), extensions=b"", version=explicit_v1)).version == 1


# -- chains -----------------------------------------------------------------------------------------------------------


def test_good_chains_pass_each_for_its_purpose_alone() -> None:
    check_code_signing_chain(chain_of(LEAF))
    check_timestamping_chain(chain_of(STAMPER))
    assert "extKeyUsage is not timeStamping alone" in str(refusal(check_timestamping_chain, chain_of(LEAF)))
    assert "extKeyUsage has timeStamping" in str(refusal(check_code_signing_chain, chain_of(STAMPER)))


def test_a_single_self_signed_certificate_passes_by_the_rules_of_leaves() -> None:
    check_code_signing_chain(chain_of(certify("Self", pki.code_signing())))
    check_timestamping_chain(chain_of(certify("Self", pki.timestamping())))
    error = refusal(check_code_signing_chain, chain_of(ROOT))
    assert "must not be an authority" in error.reason


@pytest.mark.parametrize(
    "extensions",
    [
        [SIGNS],
        [(x509.BasicConstraints(ca=False, path_length=None), False), SIGNS],
        [NO_CA, (pki.key_usage("digital_signature", "content_commitment"), True)],
        [NO_CA, SIGNS, usage(x509.ObjectIdentifier("1.3.6.1.4.1.311.97.1.0"), ExtendedKeyUsageOID.CODE_SIGNING)],
        [NO_CA, SIGNS, usage(ExtendedKeyUsageOID.CODE_SIGNING, critical=True)],
        [NO_CA, SIGNS, (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"junk"), True)],
    ],
)
def test_signing_certificates_that_the_specification_allows_pass(extensions: pki.Extensions) -> None:
    check_code_signing_chain(chain_of(certify("Leaf", extensions, ISSUING)))


@pytest.mark.parametrize(
    ("extensions", "reason"),
    [
        ([(x509.BasicConstraints(ca=True, path_length=None), True), SIGNS], "must not be an authority"),
        ([NO_CA], "no keyUsage"),
        ([NO_CA, (pki.key_usage("digital_signature"), False)], "keyUsage is not critical"),
        ([NO_CA, (pki.key_usage("content_commitment"), True)], "lacks digitalSignature"),
        ([NO_CA, (pki.key_usage("digital_signature", "key_encipherment"), True)], "keyUsage has keyEncipherment"),
        ([NO_CA, (pki.key_usage("digital_signature", "data_encipherment"), True)], "keyUsage has dataEncipherment"),
        (
            [NO_CA, (pki.key_usage("digital_signature", "key_agreement", "encipher_only"), True)],
            "keyUsage has encipherOnly, keyAgreement",
        ),
        (
            [NO_CA, (pki.key_usage("digital_signature", "key_agreement", "decipher_only"), True)],
            "keyUsage has decipherOnly, keyAgreement",
        ),
        ([NO_CA, (pki.key_usage("digital_signature", "key_cert_sign", "crl_sign"), True)], "has cRLSign, keyCertSign"),
        ([NO_CA, SIGNS, usage(ExtendedKeyUsageOID.SERVER_AUTH)], "extKeyUsage has serverAuth"),
        ([NO_CA, SIGNS, usage(ExtendedKeyUsageOID.CLIENT_AUTH)], "extKeyUsage has clientAuth"),
        ([NO_CA, SIGNS, usage(ExtendedKeyUsageOID.EMAIL_PROTECTION)], "extKeyUsage has emailProtection"),
        ([NO_CA, SIGNS, usage(ExtendedKeyUsageOID.OCSP_SIGNING)], "extKeyUsage has OCSPSigning"),
        (
            [NO_CA, SIGNS, usage(ExtendedKeyUsageOID.CODE_SIGNING, ExtendedKeyUsageOID.TIME_STAMPING)],
            "extKeyUsage has timeStamping",
        ),
        ([NO_CA, SIGNS, usage(ExtendedKeyUsageOID.CODE_SIGNING, ANY_PURPOSE)], "has anyExtendedKeyUsage"),
    ],
)
def test_n44_signing_certificates_made_for_something_else_are_refused(extensions: pki.Extensions, reason: str) -> None:
    error = refusal(check_code_signing_chain, chain_of(certify("Leaf", extensions, ISSUING)))
    assert error.code == "CERTIFICATE_CHAIN_INVALID"
    assert reason in error.reason


@pytest.mark.parametrize(
    ("extensions", "reason"),
    [
        ([NO_CA, SIGNS], "not timeStamping alone"),
        ([NO_CA, SIGNS, usage(ExtendedKeyUsageOID.TIME_STAMPING)], "extKeyUsage is not critical"),
        (
            [NO_CA, SIGNS, usage(ExtendedKeyUsageOID.TIME_STAMPING, x509.ObjectIdentifier("1.2.3"), critical=True)],
            "not timeStamping alone",
        ),
        ([NO_CA, SIGNS, usage(ANY_PURPOSE, critical=True)], "not timeStamping alone"),
        ([NO_CA, usage(ExtendedKeyUsageOID.TIME_STAMPING, critical=True)], "no keyUsage"),
    ],
)
def test_n41_time_stamping_certificates_with_other_purposes_are_refused(
    extensions: pki.Extensions, reason: str
) -> None:
    assert reason in refusal(check_timestamping_chain, chain_of(certify("Leaf", extensions, ISSUING))).reason


def test_time_stamping_chains_need_no_critical_key_usage_or_basic_constraints() -> None:
    lax = [
        (x509.BasicConstraints(ca=True, path_length=None), False),
        (pki.key_usage("key_cert_sign"), False),
    ]
    issuing = certify("Lax", lax, ROOT)
    stamper = [(pki.key_usage("digital_signature"), False), usage(ExtendedKeyUsageOID.TIME_STAMPING, critical=True)]
    check_timestamping_chain(chain_of(certify("Leaf", stamper, issuing)))


def test_n18_n44_keys_that_may_not_sign_are_refused_and_those_that_may_are_not() -> None:
    for curve in (ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()):
        check_code_signing_chain(
            chain_of(certify("Leaf", pki.code_signing(), ISSUING, key=ec.generate_private_key(curve)))
        )
    keys: list[pki.PrivateKey] = [
        ec.generate_private_key(ec.SECP224R1()),
        ec.generate_private_key(ec.SECP256K1()),
        rsa.generate_private_key(65537, 1024),
        ed25519.Ed25519PrivateKey.generate(),  # type: ignore[list-item]  # the builder takes it
    ]
    for key in keys:
        chain = chain_of(certify("Leaf", pki.code_signing(), ISSUING, key=key))
        error = refusal(check_code_signing_chain, chain)
        assert error.code == "ALGORITHM_UNSUPPORTED"
        assert error.expected is not None
        assert "P-256" in error.expected


@pytest.mark.parametrize(
    ("extensions", "reason"),
    [
        ([(pki.key_usage("key_cert_sign"), True)], "is no authority"),
        ([NO_CA, (pki.key_usage("key_cert_sign"), True)], "is no authority"),
        ([(x509.BasicConstraints(ca=True, path_length=None), True)], "lacks keyCertSign"),
        (
            [(x509.BasicConstraints(ca=True, path_length=None), True), (pki.key_usage("digital_signature"), True)],
            "lacks keyCertSign",
        ),
        (
            [(x509.BasicConstraints(ca=True, path_length=None), False), (pki.key_usage("key_cert_sign"), True)],
            "is not critical",
        ),
        (
            [(x509.BasicConstraints(ca=True, path_length=None), True), (pki.key_usage("key_cert_sign"), False)],
            "is not critical",
        ),
    ],
)
def test_n44_issuers_that_may_not_issue_are_refused(extensions: pki.Extensions, reason: str) -> None:
    leaf = certify("Leaf", pki.code_signing(), certify("Issuing", extensions, ROOT))
    error = refusal(check_code_signing_chain, chain_of(leaf))
    assert error.code == "CERTIFICATE_CHAIN_INVALID"
    assert reason in error.reason


def test_n44_a_path_length_counts_the_authorities_below() -> None:
    root = certify("Root", pki.authority(path_length=1))
    first = certify("First", pki.authority(path_length=0), root)
    check_code_signing_chain(chain_of(certify("Leaf", pki.code_signing(), first)))
    second = certify("Second", pki.authority(), first)
    error = refusal(check_code_signing_chain, chain_of(certify("Leaf", pki.code_signing(), second)))
    assert "path length allows 0 authorities below, there are 1" in error.reason
    unlimited = certify("Second", pki.authority(), certify("First", pki.authority(), root))
    error = refusal(check_code_signing_chain, chain_of(certify("Leaf", pki.code_signing(), unlimited)))
    assert "path length allows 1 authorities below, there are 2" in error.reason


def test_name_constraints_and_purposes_of_authorities_are_not_evaluated() -> None:
    constraints = x509.NameConstraints([x509.DNSName("other.example")], None)
    extensions = [*pki.authority(), (constraints, True), usage(ExtendedKeyUsageOID.SERVER_AUTH)]
    check_code_signing_chain(chain_of(certify("Leaf", pki.code_signing(), certify("Issuing", extensions, ROOT))))


def test_chains_out_of_order_incomplete_or_with_strangers_are_refused() -> None:
    leaf, issuing, root = chain_of(LEAF)
    stranger = read(certify("Stranger", pki.authority()).certificate)
    for chain, reason in (
        ([], "is empty"),
        ([leaf], "is the last of the chain and not self-signed"),
        ([leaf, issuing], "is the last of the chain and not self-signed"),
        ([leaf, root], "is not issued by the one that follows it"),
        ([issuing, leaf, root], "must not be an authority"),
        ([leaf, root, issuing], "path length"),
        ([leaf, issuing, root, root], "self-signed and not the last"),
        ([leaf, issuing, stranger], "is not issued by the one that follows it"),
        ([leaf, issuing, root, stranger], "self-signed and not the last"),
    ):
        assert reason in refusal(check_code_signing_chain, chain).reason


def test_a_root_that_occurs_twice_is_refused() -> None:
    root = certify("Root", pki.authority())
    chain = chain_of(certify("Leaf", pki.code_signing(), root))
    check_code_signing_chain(chain)
    assert "self-signed and not the last" in refusal(check_code_signing_chain, [*chain, chain[-1]]).reason


def test_a_renewed_key_of_the_same_name_may_stand_in_the_middle() -> None:
    root = certify("Root", pki.authority())
    renewed = certify("Root", pki.authority(), root)
    assert read(renewed.certificate).is_self_issued
    check_code_signing_chain(chain_of(certify("Leaf", pki.code_signing(), renewed)))


def test_a_forged_link_is_refused() -> None:
    impostor = certify("Issuing", pki.authority(path_length=0), certify("Root", pki.authority()))
    forged = certify("Leaf", pki.code_signing(), impostor)
    error = refusal(check_code_signing_chain, [read(forged.certificate), *chain_of(ISSUING)])
    assert error.code == "CERTIFICATE_CHAIN_INVALID"
    assert 'is not signed by "CN=Issuing,O=Stamps,C=US"' in error.reason


@pytest.mark.parametrize("position", [0, 1, 2])
def test_n44_sha1_is_refused_on_every_certificate_of_a_chain(position: int) -> None:
    chain = chain_of(LEAF)
    chain[position] = Certificate.parse(
        operate(chain[position].der, inner_algorithm=SHA1_WITH_RSA, outer_algorithm=SHA1_WITH_RSA)
    )
    error = refusal(check_code_signing_chain, chain)
    assert error.code == "ALGORITHM_UNSUPPORTED"
    assert "SHA-1 with RSA" in error.reason


def test_n44_sha1_is_refused_on_a_single_self_signed_certificate() -> None:
    whole = der(certify("Self", pki.code_signing()).certificate)
    single = Certificate.parse(operate(whole, inner_algorithm=SHA1_WITH_RSA, outer_algorithm=SHA1_WITH_RSA))
    assert refusal(check_code_signing_chain, [single]).code == "ALGORITHM_UNSUPPORTED"


def test_an_algorithm_with_malformed_parameters_is_refused_when_used() -> None:
    odd = asn1.encode(asn1.SEQUENCE, asn1.encode_object_identifier("1.2.840.10045.4.3.2"), b"\x02\x01\x00")
    whole = der(certify("Self", pki.code_signing()).certificate)
    single = Certificate.parse(operate(whole, inner_algorithm=odd, outer_algorithm=odd))
    assert refusal(check_code_signing_chain, [single]).code == "CERTIFICATE_CHAIN_INVALID"


def test_n18_an_issuer_with_a_degenerate_key_is_refused_before_any_arithmetic() -> None:
    numbers = asn1.encode(asn1.SEQUENCE, asn1.encode_integer(2**2047 + 1), asn1.encode_integer(1))
    algorithm = asn1.encode(asn1.SEQUENCE, asn1.encode_object_identifier("1.2.840.113549.1.1.1"), b"\x05\x00")
    key = asn1.encode(asn1.SEQUENCE, algorithm, asn1.encode(asn1.BIT_STRING, b"\0" + numbers))
    leaf, issuing, root = chain_of(LEAF)
    weak = Certificate.parse(operate(issuing.der, key=key))
    assert weak.public_key is None
    error = refusal(check_code_signing_chain, [leaf, weak, root])
    assert error.code == "ALGORITHM_UNSUPPORTED"
    assert "exponent" in error.reason


def test_an_authority_may_have_a_key_that_a_signer_may_not() -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Edwards")])
    builder = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, NOT_BEFORE, NOT_AFTER)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .add_extension(pki.key_usage("key_cert_sign"), True)
    )
    root = builder.sign(key, None)
    leaf_key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Leaf")])
    leaf_builder = x509.CertificateBuilder(name, subject, leaf_key.public_key(), 2, NOT_BEFORE, NOT_AFTER)
    for value, critical in pki.code_signing():
        leaf_builder = leaf_builder.add_extension(value, critical)
    check_code_signing_chain([read(leaf_builder.sign(key, None)), read(root)])


def test_n18_a_chain_of_a_thousand_certificates_is_refused_by_its_length() -> None:
    error = refusal(check_code_signing_chain, chain_of(LEAF) * 1000)
    assert error.expected == f"at most {MAX_CHAIN_LENGTH} certificates"


def test_n18_a_chain_of_swollen_certificates_is_refused_by_its_size() -> None:
    swollen = Certificate.parse(
        operate(
            der(LEAF.certificate), extensions=extension_list(extension("1.2.3", bytes(MAX_CHAIN_BYTES // 2 - 4096)))
        )
    )
    error = refusal(check_code_signing_chain, [swollen] * 3)
    assert error.expected == f"at most {MAX_CHAIN_BYTES} bytes"


# -- trust ------------------------------------------------------------------------------------------------------------


def test_authorities_and_self_signed_certificates_may_be_trusted() -> None:
    for key in (ROOT, ISSUING, certify("Self", pki.code_signing())):
        check_trust_anchor(read(key.certificate))
    check_timestamp_trust_anchor(read(ROOT.certificate))


def test_n43_a_leaf_in_a_trust_store_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="cannot be a trust anchor") as caught:
        check_trust_anchor(read(LEAF.certificate))
    assert caught.value.code == "CERTIFICATE_INVALID"
    # issued to itself by name alone
    impostor = certify("Signer", pki.code_signing(), certify("Signer", pki.authority()))
    assert not is_self_signed(read(impostor.certificate))
    with pytest.raises(ConfigurationError, match="cannot be a trust anchor"):
        check_trust_anchor(read(impostor.certificate))


def test_an_old_self_issued_certificate_does_not_spoil_its_store_and_still_signs_nothing() -> None:
    whole = der(certify("Self", pki.code_signing()).certificate)
    old = Certificate.parse(operate(whole, inner_algorithm=SHA1_WITH_RSA, outer_algorithm=SHA1_WITH_RSA))
    check_trust_anchor(old)
    assert refusal(check_code_signing_chain, [old]).code == "ALGORITHM_UNSUPPORTED"
    # the same signature under somebody else's name is no trust anchor
    foreign = operate(der(LEAF.certificate), inner_algorithm=SHA1_WITH_RSA, outer_algorithm=SHA1_WITH_RSA)
    with pytest.raises(ConfigurationError, match="cannot be a trust anchor"):
        check_trust_anchor(Certificate.parse(foreign))


@pytest.mark.parametrize(
    "key",
    [LEAF, ISSUING, certify("Self", pki.timestamping()), certify("X", pki.authority(), certify("X", pki.authority()))],
)
def test_n43_only_a_self_signed_authority_may_be_trusted_for_time_stamps(key: CertifiedKey) -> None:
    with pytest.raises(ConfigurationError, match="cannot be a trust anchor for time-stamps"):
        check_timestamp_trust_anchor(read(key.certificate))


def test_the_anchor_of_a_chain_is_found_anywhere_in_it_by_its_octets() -> None:
    leaf, issuing, root = chain_of(LEAF)
    for anchor in (leaf, issuing, root):
        assert find_trust_anchor([leaf, issuing, root], frozenset({anchor})) == anchor
    same_name = read(certify("Root", pki.authority()).certificate)
    with pytest.raises(Refused) as caught:
        find_trust_anchor([leaf, issuing, root], [same_name])
    assert caught.value.code == "UNTRUSTED_ROOT"
    assert caught.value.found is not None
    assert '"CN=Root,O=Stamps,C=US"' in caught.value.found


def test_an_issuer_is_one_by_name_and_key() -> None:
    check_issued_by(read(LEAF.certificate), read(ISSUING.certificate))
    with pytest.raises(Refused, match="not issued by"):
        check_issued_by(read(LEAF.certificate), read(ROOT.certificate))


# -- time -------------------------------------------------------------------------------------------------------------


def test_n39_n40_every_certificate_of_a_chain_is_valid_from_its_first_to_its_last_second() -> None:
    leaf, short_lived = read(LEAF.certificate), NOT_BEFORE + timedelta(days=1)
    issuing = read(certify("Issuing", pki.authority(), ROOT, not_after=short_lived).certificate)
    for at in (NOT_BEFORE, short_lived):
        check_chain_valid_at([leaf, issuing], at)
    with pytest.raises(Refused) as caught:
        check_chain_valid_at([leaf, issuing], short_lived + timedelta(microseconds=1))
    assert caught.value.code == "CERTIFICATE_EXPIRED"
    assert "CN=Issuing" in caught.value.reason
    with pytest.raises(Refused) as caught:
        check_valid_at(leaf, NOT_BEFORE - timedelta(microseconds=1))
    assert caught.value.code == "CERTIFICATE_NOT_YET_VALID"
    with pytest.raises(Refused) as caught:
        check_valid_at(leaf, datetime(9999, 1, 1, tzinfo=UTC))
    assert caught.value.code == "CERTIFICATE_EXPIRED"


# -- bundles ----------------------------------------------------------------------------------------------------------

PEM_ROOT, PEM_LEAF = pki.pem(ROOT.certificate), pki.pem(LEAF.certificate)
SECRET = ROOT.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@pytest.mark.parametrize(
    "data",
    [
        PEM_ROOT + PEM_LEAF,
        b"subject=CN=Root\n" + PEM_ROOT + b"\nissuer=...\n" + PEM_LEAF + b"\n\n",
        (PEM_ROOT + PEM_LEAF).replace(b"\n", b"\r\n"),
        b"\xef\xbb\xbf" + PEM_ROOT + PEM_LEAF,
        PEM_ROOT.replace(b"CERTIFICATE", b"X509 CERTIFICATE") + PEM_LEAF,
        der(ROOT.certificate) + der(LEAF.certificate),
        bytearray(PEM_ROOT + PEM_LEAF),
    ],
)
def test_bundles_are_read_as_people_have_them(data: bytes) -> None:
    assert parse_certificates(data) == (read(ROOT.certificate), read(LEAF.certificate))


def test_repeated_certificates_are_kept_as_they_are() -> None:
    assert len(parse_certificates(PEM_ROOT + PEM_ROOT)) == 2


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "neither a PEM block nor DER"),
        (b"MIIB", "neither a PEM block nor DER"),
        (base64.b64encode(der(ROOT.certificate)), "neither a PEM block nor DER"),
        (PEM_ROOT + PEM_LEAF[:-30], "block 2: truncated"),
        (PEM_ROOT + PEM_LEAF.replace(b"MI", b"M!", 1), "block 2: what is between"),
        (PEM_ROOT + PEM_LEAF.replace(b"\n", b"\nAAAA", 1), "block 2: a certificate cannot be read"),
        (PEM_ROOT + b"-----BEGIN PKCS7-----\nAAAA\n-----END PKCS7-----\n", "block 2 is no certificate"),
        (b"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n", "block 1: a certificate cannot be read"),
        (der(ROOT.certificate) + der(LEAF.certificate)[:-1], "truncated"),
        (der(ROOT.certificate) + b"\n", "truncated"),
        (der(ROOT.certificate) + b"\x30\x00", "block 2: a certificate cannot be read"),
        (b" " * (MAX_BUNDLE_BYTES + 1), "bytes"),
        (b"\x30\x00" * 2, "block 1: a certificate cannot be read"),
    ],
)
def test_nothing_of_a_bundle_is_dropped_silently(data: bytes, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason) as caught:
        parse_certificates(data)
    assert caught.value.code == "CERTIFICATE_INVALID"


def test_a_bundle_of_too_many_certificates_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="too many certificates"):
        parse_certificates(der(ROOT.certificate) * (MAX_BUNDLE_CERTIFICATES + 1))


@pytest.mark.parametrize("label", [b"PRIVATE KEY", b"EC PRIVATE KEY", b"ENCRYPTED PRIVATE KEY"])
def test_a_private_key_is_refused_without_being_quoted_unless_it_is_to_be_ignored(label: bytes) -> None:
    data = PEM_ROOT + SECRET.replace(b"PRIVATE KEY", label) + PEM_LEAF
    with pytest.raises(ConfigurationError, match="block 2 is a private key") as caught:
        parse_certificates(data)
    shown = f"{caught.value} {caught.value.remediation} {caught.value!r}"
    assert not any(line.decode() in shown for line in SECRET.splitlines()[1:-1])
    assert parse_certificates(data, ignore_private_keys=True) == (read(ROOT.certificate), read(LEAF.certificate))
    with pytest.raises(ConfigurationError, match="there is no certificate"):
        parse_certificates(SECRET, ignore_private_keys=True)


@given(st.binary(max_size=300))
@example(b"-----BEGIN ")
def test_any_bytes_are_a_bundle_or_a_configuration_error(data: bytes) -> None:
    for given_bytes in (data, PEM_ROOT + data, PEM_ROOT[:-20] + data):
        try:
            parse_certificates(given_bytes)
        except ConfigurationError as error:
            assert error.code == "CERTIFICATE_INVALID"  # noqa: PT017 - either outcome is fine
