"""Extensions of certificates: three must be right, two are read as far as they go, the others are left alone."""

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from provider.demo import pki
from provider.notation import asn1
from provider.notation.asn1 import MalformedASN1Error
from provider.notation.extensions import (
    AUTHORITY_INFORMATION_ACCESS,
    BASIC_CONSTRAINTS,
    CRL_DISTRIBUTION_POINTS,
    EXTENDED_KEY_USAGE,
    KEY_USAGE,
    KEY_USAGES,
    BasicConstraints,
    ExtendedKeyUsage,
    Extension,
    Extensions,
    KeyUsage,
    read_extensions,
)
from tests.simulators.certificate_surgery import extension

TRUE = bytes.fromhex("0101ff")
FALSE = bytes.fromhex("010100")


def read(*extensions: bytes) -> Extensions:
    return read_extensions(asn1.read_whole(asn1.encode(asn1.SEQUENCE, *extensions), asn1.SEQUENCE, "extensions"))


def made(value: x509.ExtensionType, critical: bytes = b"") -> bytes:
    return extension(value.oid.dotted_string, value.public_bytes(), critical)


@given(st.binary(max_size=64), st.sampled_from([BASIC_CONSTRAINTS, KEY_USAGE, EXTENDED_KEY_USAGE]))
def test_any_bytes_in_an_extension_that_decides_are_read_or_refused(value: bytes, identifier: str) -> None:
    try:
        read(extension(identifier, value))
    except MalformedASN1Error:
        return


@given(st.binary(max_size=64), st.sampled_from([AUTHORITY_INFORMATION_ACCESS, CRL_DISTRIBUTION_POINTS, "1.2.3"]))
def test_any_bytes_in_another_extension_are_no_reason_to_refuse(value: bytes, identifier: str) -> None:
    found = read(extension(identifier, value, TRUE))
    assert found.by_identifier == {identifier: Extension(True, value)}


@given(st.binary(max_size=64))
def test_any_bytes_are_extensions_or_refused(data: bytes) -> None:
    try:
        read(data)
    except MalformedASN1Error:
        return


def test_a_certificate_without_extensions_has_none() -> None:
    assert read_extensions(None) == Extensions({}, None, None, None, (), (), frozenset())


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("3000", BasicConstraints(True, False, None)),
        ("3003" + "0101ff", BasicConstraints(True, True, None)),
        ("3003" + "010100", BasicConstraints(True, False, None)),
        ("3006" + "0101ff" + "020102", BasicConstraints(True, True, 2)),
    ],
)
def test_basic_constraints_are_read(value: str, expected: BasicConstraints) -> None:
    assert read(extension(BASIC_CONSTRAINTS, bytes.fromhex(value), TRUE)).basic_constraints == expected


def test_an_explicit_false_is_not_critical() -> None:
    found = read(extension(BASIC_CONSTRAINTS, bytes.fromhex("3000"), FALSE))
    assert found.basic_constraints == BasicConstraints(False, False, None)


@pytest.mark.parametrize("value", ["", "3100", "300101", "3003010101", "3006" + "0101ff" + "0201ff", "30000500"])
def test_malformed_basic_constraints_are_refused(value: str) -> None:
    with pytest.raises(MalformedASN1Error):
        read(extension(BASIC_CONSTRAINTS, bytes.fromhex(value)))


@pytest.mark.parametrize("usage", KEY_USAGES)
def test_each_key_usage_has_its_bit(usage: str) -> None:
    fields = {
        "contentCommitment": "content_commitment",
        "cRLSign": "crl_sign",
    }
    field = fields.get(usage) or "".join("_" + letter.lower() if letter.isupper() else letter for letter in usage)
    expected = {usage}
    uses = [field]
    if usage in ("encipherOnly", "decipherOnly"):  # the library wants keyAgreement with them
        expected.add("keyAgreement")
        uses.append("key_agreement")
    found = read(made(pki.key_usage(*uses), TRUE))
    assert found.key_usage == KeyUsage(True, frozenset(expected))


def test_unknown_bits_of_key_usage_and_surplus_zeros_are_let_pass() -> None:
    found = read(extension(KEY_USAGE, bytes.fromhex("0304" + "00" + "800001")))
    assert found.key_usage == KeyUsage(False, frozenset({"digitalSignature"}))
    found = read(extension(KEY_USAGE, bytes.fromhex("030100")))
    assert found.key_usage == KeyUsage(False, frozenset())


def test_extended_key_usages_are_read_in_order() -> None:
    usage = x509.ExtendedKeyUsage([x509.ObjectIdentifier("1.2.3"), x509.ObjectIdentifier("1.3.6.1.5.5.7.3.8")])
    assert read(made(usage)).extended_key_usage == ExtendedKeyUsage(False, ("1.2.3", "1.3.6.1.5.5.7.3.8"))


@pytest.mark.parametrize("value", ["3000", "3002" + "0500", "0603550403"])
def test_malformed_extended_key_usages_are_refused(value: str) -> None:
    with pytest.raises(MalformedASN1Error):
        read(extension(EXTENDED_KEY_USAGE, bytes.fromhex(value)))


def test_an_extension_that_occurs_twice_is_refused() -> None:
    once = extension("1.2.3", b"\x05\x00")
    with pytest.raises(MalformedASN1Error, match=r"1\.2\.3 occurs twice"):
        read(once, once)


def test_addresses_of_responders_and_lists_are_read_in_order() -> None:
    uri, directory = x509.UniformResourceIdentifier, x509.DirectoryName(x509.Name([]))
    access = x509.AuthorityInformationAccess(
        [
            x509.AccessDescription(x509.oid.AuthorityInformationAccessOID.CA_ISSUERS, uri("http://a/ca.crt")),
            x509.AccessDescription(x509.oid.AuthorityInformationAccessOID.OCSP, uri("http://a/1")),
            x509.AccessDescription(x509.oid.AuthorityInformationAccessOID.OCSP, directory),
            x509.AccessDescription(x509.oid.AuthorityInformationAccessOID.OCSP, uri("ldap://a/2")),
        ]
    )
    points = x509.CRLDistributionPoints(
        [
            x509.DistributionPoint([directory, uri("http://b/1"), uri("http://b/2")], None, None, None),
            x509.DistributionPoint(None, None, None, [directory]),
            x509.DistributionPoint(
                None, x509.RelativeDistinguishedName([x509.NameAttribute(x509.NameOID.COMMON_NAME, "x")]), None, None
            ),
            x509.DistributionPoint([uri("https://b/3")], None, None, None),
        ]
    )
    found = read(made(access), made(points))
    assert found.ocsp_urls == ("http://a/1", "ldap://a/2")
    assert found.crl_urls == ("http://b/1", "http://b/2", "https://b/3")
    assert found.unreadable == frozenset()


def test_a_damaged_address_is_not_mistaken_for_an_absent_one() -> None:
    access = x509.AuthorityInformationAccess(
        [
            x509.AccessDescription(
                x509.oid.AuthorityInformationAccessOID.OCSP, x509.UniformResourceIdentifier("http://a/1")
            )
        ]
    ).public_bytes()
    two = asn1.encode(asn1.SEQUENCE, access[2:], access[2:].replace(b"http", b"\xff\xff\xff\xff"))
    found = read(extension(AUTHORITY_INFORMATION_ACCESS, two), extension(CRL_DISTRIBUTION_POINTS, b"\x05\x00"))
    assert found.ocsp_urls == ("http://a/1",)
    assert found.crl_urls == ()
    assert found.unreadable == {AUTHORITY_INFORMATION_ACCESS, CRL_DISTRIBUTION_POINTS}
