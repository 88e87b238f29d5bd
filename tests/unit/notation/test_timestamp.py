"""Time-stamp tokens as authorities issue them, and as attackers would like them to be believed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st

from provider.demo import pki, timestamping
from provider.demo.pki import CertifiedKey, der
from provider.errors import Refused
from provider.notation import asn1, cms
from provider.notation.certificates import Certificate
from provider.notation.timestamp import (
    BASELINE_POLICY,
    MAX_ACCURACY_SECONDS,
    MAX_TOKEN_BYTES,
    SIGNING_CERTIFICATE_V2,
    SIGNING_TIME,
    check_timestamp_covers,
    inspect_timestamp,
    verify_timestamp,
)
from tests.simulators.certificate_surgery import SHA1_WITH_RSA, extension, operate
from tests.simulators.timestamp_authority import (
    GEN_TIME,
    NOT_AFTER,
    NOT_BEFORE,
    TimestampAuthority,
    certify,
    read,
)

SIGNATURE = b"the raw signature of an envelope"
AUTHORITY = TimestampAuthority.set_up()
ROOTS = [AUTHORITY.root]
TOKEN = AUTHORITY.token(SIGNATURE)
STAMPER, ISSUING, ROOT = AUTHORITY.signer.chain
SIGNING_CERTIFICATE_V1 = "1.2.840.113549.1.9.16.2.12"


def refused(token: bytes, roots: Sequence[Certificate] = ROOTS, message: bytes = SIGNATURE) -> Refused:
    with pytest.raises(Refused) as caught:
        verify_timestamp(token, message, roots)
    return caught.value


def seconds(value: int) -> bytes:
    return asn1.encode(asn1.SEQUENCE, asn1.encode_integer(value))


# -- what a good token says -------------------------------------------------------------------------------------------


def test_a_token_of_a_trusted_authority_is_verified_with_its_chain() -> None:
    found = verify_timestamp(TOKEN, SIGNATURE, ROOTS)
    assert (found.gen_time, found.accuracy) == (GEN_TIME, timedelta())
    assert (found.lower, found.upper) == (GEN_TIME, GEN_TIME)
    assert found.chain == tuple(read(certificate) for certificate in AUTHORITY.signer.chain)
    assert verify_timestamp(TOKEN, SIGNATURE, ROOTS) == found


def test_the_demo_authority_issues_tokens_that_verify() -> None:
    token = timestamping.issue_token(
        message_imprint=hashlib.sha512(SIGNATURE).digest(),
        hash_algorithm="sha512",
        signer_key=AUTHORITY.signer.key,
        signer_certificate=STAMPER,
        certificates=[STAMPER, ISSUING],
        gen_time=GEN_TIME,
        accuracy_seconds=3,
        serial=7,
    )
    assert verify_timestamp(token, SIGNATURE, ROOTS).accuracy == timedelta(seconds=3)
    assert inspect_timestamp(token).serial == 7
    token = timestamping.issue_token(
        message_imprint=hashlib.sha256(SIGNATURE).digest(),
        hash_algorithm="sha256",
        signer_key=AUTHORITY.signer.key,
        signer_certificate=STAMPER,
        certificates=[STAMPER, ISSUING],
        gen_time=GEN_TIME,
    )
    assert verify_timestamp(token, SIGNATURE, ROOTS).accuracy == timedelta()


@pytest.mark.parametrize("hash_algorithm", ["sha256", "sha384", "sha512"])
@pytest.mark.parametrize("digest", ["sha256", "sha384", "sha512"])
def test_every_accepted_hash_verifies(hash_algorithm: str, digest: str) -> None:
    verify_timestamp(AUTHORITY.token(SIGNATURE, hash_algorithm=hash_algorithm, digest=digest), SIGNATURE, ROOTS)


def test_an_rsa_authority_verifies() -> None:
    key = rsa.generate_private_key(65537, 2048)
    signer = certify("RSA", pki.timestamping(), certify("Root", pki.authority()), key=key)
    authority = TimestampAuthority(signer)
    verify_timestamp(authority.token(SIGNATURE), SIGNATURE, [authority.root])


def test_every_optional_field_of_the_content_is_understood() -> None:
    rest = b"".join(
        (
            bytes.fromhex("0101ff"),
            asn1.encode_integer(2**64),
            asn1.encode(asn1.context(0), asn1.encode(asn1.context(4), ROOT.subject.public_bytes())),
            asn1.encode(asn1.context(1), extension("1.2.3", b"\x05\x00")),
        )
    )
    token = AUTHORITY.token(SIGNATURE, rest=rest)
    verify_timestamp(token, SIGNATURE, ROOTS)
    assert inspect_timestamp(token).authority == "CN=Root,O=Stamps,C=US"


def test_the_interval_is_as_wide_as_the_accuracy() -> None:
    accuracy = asn1.encode(
        asn1.SEQUENCE, asn1.encode_integer(1), asn1.encode_integer(2, 0x80), asn1.encode_integer(3, 0x81)
    )
    found = verify_timestamp(AUTHORITY.token(SIGNATURE, accuracy=accuracy), SIGNATURE, ROOTS)
    width = timedelta(seconds=1, milliseconds=2, microseconds=3)
    assert (found.accuracy, found.lower, found.upper) == (width, GEN_TIME - width, GEN_TIME + width)
    micros = asn1.encode(asn1.SEQUENCE, asn1.encode_integer(999, 0x81))
    found = verify_timestamp(AUTHORITY.token(SIGNATURE, accuracy=micros), SIGNATURE, ROOTS)
    assert found.accuracy == timedelta(microseconds=999)


@pytest.mark.parametrize(
    ("policy", "accuracy", "expected"),
    [
        (BASELINE_POLICY, None, 1),
        (BASELINE_POLICY, asn1.encode(asn1.SEQUENCE), 1),
        (BASELINE_POLICY, seconds(2), 2),
        ("1.2.3", None, 0),
    ],
)
def test_the_baseline_policy_means_one_second(policy: str, accuracy: bytes | None, expected: int) -> None:
    found = verify_timestamp(AUTHORITY.token(SIGNATURE, policy=policy, accuracy=accuracy), SIGNATURE, ROOTS)
    assert found.accuracy == timedelta(seconds=expected)


def test_a_time_finer_than_microseconds_widens_the_interval() -> None:
    fine = asn1.encode(asn1.GENERALIZED_TIME, b"20240506070809.0000005Z")
    plain = timestamping.generalized_time(GEN_TIME)

    def refine(content: bytes) -> bytes:
        inner = asn1.read_whole(content, asn1.SEQUENCE, "TSTInfo").content
        assert plain in inner
        return asn1.encode(asn1.SEQUENCE, inner.replace(plain, fine))

    found = verify_timestamp(AUTHORITY.token(SIGNATURE, edit_content=refine), SIGNATURE, ROOTS)
    assert (found.lower, found.upper) == (GEN_TIME, GEN_TIME + timedelta(microseconds=1))
    milliseconds = GEN_TIME + timedelta(milliseconds=120)
    found = verify_timestamp(AUTHORITY.token(SIGNATURE, gen_time=milliseconds), SIGNATURE, ROOTS)
    assert found.gen_time == milliseconds


# -- N39, N40: what the time means for a signature --------------------------------------------------------------------


def test_n39_n40_every_certificate_must_have_been_valid_during_the_whole_interval() -> None:
    accuracy = seconds(2)
    for gen_time, covered in (
        (NOT_BEFORE + timedelta(seconds=2), True),
        (NOT_BEFORE + timedelta(seconds=1), False),
        (NOT_AFTER - timedelta(seconds=2), True),
        (NOT_AFTER - timedelta(seconds=1), False),
    ):
        wide = TimestampAuthority(
            certify("Wide", pki.timestamping(), _wide_root(), not_before=_BEFORE, not_after=_AFTER)
        )
        token = wide.token(SIGNATURE, gen_time=gen_time, accuracy=accuracy)
        found = verify_timestamp(token, SIGNATURE, [wide.root])
        chain = [read(ISSUING), read(ROOT)]
        if covered:
            check_timestamp_covers(chain, found)
            continue
        with pytest.raises(Refused) as caught:
            check_timestamp_covers(chain, found)
        assert caught.value.code == "TIMESTAMP_OUTSIDE_VALIDITY"


_BEFORE, _AFTER = NOT_BEFORE - timedelta(days=1000), NOT_AFTER + timedelta(days=1000)


def _wide_root() -> CertifiedKey:
    return certify("Wide root", pki.authority(), not_before=_BEFORE, not_after=_AFTER)


def test_n40_an_intermediate_that_had_expired_is_found_though_the_leaf_was_valid() -> None:
    expired = read(certify("Old", pki.authority(), not_after=GEN_TIME - timedelta(seconds=1)).certificate)
    with pytest.raises(Refused, match="CN=Old") as caught:
        check_timestamp_covers([read(STAMPER), expired], verify_timestamp(TOKEN, SIGNATURE, ROOTS))
    assert caught.value.code == "TIMESTAMP_OUTSIDE_VALIDITY"


# -- content ----------------------------------------------------------------------------------------------------------


def test_an_empty_token_is_a_missing_one() -> None:
    assert refused(b"").code == "TIMESTAMP_MISSING"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"message_imprint": bytes(32)}, "of other content"),
        ({"message_imprint": hashlib.sha256(SIGNATURE).digest()[:-1]}, "of other content"),
        ({"hash_algorithm": "sha1"}, "the hash SHA-1 is not accepted"),
        ({"version": 2}, "version of TSTInfo"),
        ({"accuracy": seconds(-1)}, "accuracy is out of range"),
        ({"accuracy": seconds(MAX_ACCURACY_SECONDS + 1)}, "accuracy is out of range"),
        ({"accuracy": asn1.encode(asn1.SEQUENCE, asn1.encode_integer(1000, 0x80))}, "accuracy is out of range"),
        ({"accuracy": asn1.encode(asn1.SEQUENCE, b"\x05\x00")}, "octets too many in accuracy"),
        ({"rest": bytes.fromhex("010101")}, "BOOLEAN"),
        ({"rest": bytes.fromhex("02020001")}, "INTEGER"),
        ({"rest": b"\x05\x00"}, "octets too many in TSTInfo"),
        ({"rest": asn1.encode(asn1.context(1), extension("1.2.3", b"", bytes.fromhex("0101ff")))}, "critical"),
        ({"rest": asn1.encode(asn1.context(1), b"\x05\x00")}, "extension"),
        ({"gen_time": datetime(1, 1, 1, tzinfo=UTC), "accuracy": seconds(1)}, "beyond the calendar"),
        ({"edit_content": lambda content: content + b"\0"}, "octets too many"),
        ({"signed_data": {"content_type": "1.2.840.113549.1.7.1"}}, "not TSTInfo"),
        ({"signed_data": {"version": 1}}, "version of SignedData"),
    ],
)
def test_n39_a_token_with_wrong_content_is_refused(options: dict[str, Any], reason: str) -> None:
    error = refused(AUTHORITY.token(SIGNATURE, **options))
    assert error.code == "TIMESTAMP_INVALID"
    assert reason in error.reason


def test_n39_a_token_over_another_signature_is_refused() -> None:
    assert "of other content" in refused(TOKEN, message=b"another signature").reason


def test_a_token_with_trailing_octets_or_of_megabytes_is_refused() -> None:
    assert "octets too many" in refused(TOKEN + b"\0").reason
    assert "too large" in refused(TOKEN + bytes(MAX_TOKEN_BYTES)).reason


# -- signer -----------------------------------------------------------------------------------------------------------


def bound(*parts: bytes) -> bytes:
    """signingCertificateV2 with one ESSCertIDv2 of these parts."""
    identifiers = asn1.encode(asn1.SEQUENCE, asn1.encode(asn1.SEQUENCE, *parts))
    return timestamping.attribute(SIGNING_CERTIFICATE_V2, asn1.encode(asn1.SEQUENCE, identifiers))


def octets(data: bytes) -> bytes:
    return asn1.encode(asn1.OCTET_STRING, data)


def issuer_serial(*names: bytes, serial: int = STAMPER.serial_number) -> bytes:
    return asn1.encode(asn1.SEQUENCE, asn1.encode(asn1.SEQUENCE, *names), asn1.encode_integer(serial))


DIRECTORY = asn1.encode(asn1.context(4), STAMPER.issuer.public_bytes())
SHA384 = timestamping.algorithm_identifier("2.16.840.1.101.3.4.2.2")
SHA1 = timestamping.algorithm_identifier("1.3.14.3.2.26")
THUMBPRINT = hashlib.sha256(der(STAMPER)).digest()


def binding(attribute: bytes) -> Callable[[list[bytes]], list[bytes]]:
    return lambda attributes: [*attributes[:2], attribute]


@pytest.mark.parametrize(
    "attribute",
    [
        bound(octets(THUMBPRINT)),
        bound(octets(THUMBPRINT), issuer_serial(DIRECTORY)),
        bound(SHA384, octets(hashlib.sha384(der(STAMPER)).digest())),
    ],
)
def test_the_signing_certificate_is_bound_by_hash_with_and_without_its_name(attribute: bytes) -> None:
    verify_timestamp(AUTHORITY.token(SIGNATURE, edit_attributes=binding(attribute)), SIGNATURE, ROOTS)


@pytest.mark.parametrize(
    ("attribute", "reason"),
    [
        (timestamping.attribute(SIGNING_CERTIFICATE_V1, b"\x30\x00"), "signingCertificateV2 is absent"),
        (bound(octets(bytes(32))), "not the one that signingCertificateV2 binds"),
        (bound(octets(hashlib.sha256(der(ISSUING)).digest())), "not the one that signingCertificateV2 binds"),
        (bound(SHA1, octets(hashlib.sha1(der(STAMPER)).digest())), "SHA-1"),
        (bound(octets(THUMBPRINT), issuer_serial(DIRECTORY, serial=1)), "not in the token"),
        (bound(octets(THUMBPRINT), issuer_serial()), "directory name"),
        (bound(octets(THUMBPRINT), issuer_serial(DIRECTORY, DIRECTORY)), "octets too many"),
        (bound(octets(THUMBPRINT), issuer_serial(asn1.encode(0x82, b"dns"))), "directory name"),
        (bound(octets(THUMBPRINT), b"\x05\x00"), "octets too many in ESSCertIDv2"),
        (timestamping.attribute(SIGNING_CERTIFICATE_V2, b"\x30\x00"), "signingCertificateV2"),
        (timestamping.attribute(SIGNING_CERTIFICATE_V2, b"\x30\x02\x30\x00"), "ESSCertIDv2"),
        (timestamping.attribute(SIGNING_CERTIFICATE_V2), "not exactly one value"),
    ],
)
def test_n41_a_token_that_does_not_bind_its_signer_is_refused(attribute: bytes, reason: str) -> None:
    error = refused(AUTHORITY.token(SIGNATURE, edit_attributes=binding(attribute)))
    assert error.code == "TIMESTAMP_INVALID"
    assert reason in error.reason


def test_n41_a_token_that_binds_another_certificate_than_the_signers_is_refused() -> None:
    other = bound(
        octets(hashlib.sha256(der(ISSUING)).digest()),
        issuer_serial(asn1.encode(asn1.context(4), ISSUING.issuer.public_bytes()), serial=ISSUING.serial_number),
    )
    error = refused(AUTHORITY.token(SIGNATURE, edit_attributes=binding(other)))
    assert "the signature does not verify" in error.reason


def test_n41_a_certificate_with_the_same_name_and_number_does_not_take_the_signers_place() -> None:
    issuing = CertifiedKey(ISSUING, ec.generate_private_key(ec.SECP256R1()), (ROOT,))  # an impostor's key
    twin = certify("Twin", pki.timestamping(), issuing, serial=STAMPER.serial_number).certificate
    for order in ([twin, STAMPER, ISSUING], [STAMPER, ISSUING, twin]):
        verify_timestamp(AUTHORITY.token(SIGNATURE, certificates=order), SIGNATURE, ROOTS)
    assert "not the one" in refused(AUTHORITY.token(SIGNATURE, certificates=[twin, ISSUING])).reason


def test_a_signer_that_is_named_only_by_the_signed_attribute_is_found() -> None:
    def rename(signer: bytes) -> bytes:
        number = asn1.encode_integer(STAMPER.serial_number)
        changed = asn1.encode_integer(STAMPER.serial_number ^ 1)
        return signer.replace(number, changed, 1)

    token = AUTHORITY.token(SIGNATURE, edit_signer=rename)
    verify_timestamp(token, SIGNATURE, ROOTS)
    nameless = AUTHORITY.token(SIGNATURE, edit_signer=rename, edit_attributes=binding(bound(octets(THUMBPRINT))))
    assert "not in the token" in refused(nameless).reason


def test_one_good_signer_among_bad_ones_suffices() -> None:
    stranger = TimestampAuthority.set_up()
    content = cms.read_signed_data(TOKEN).content
    attributes = timestamping.signed_attributes(content, stranger.signer.certificate)
    foreign = timestamping.signer_info(attributes, stranger.signer.key, stranger.signer.certificate)
    certificates = [STAMPER, ISSUING, *stranger.signer.chain]
    bad = [b"\x05\x00", b"\x30\x00", foreign]
    token = AUTHORITY.token(SIGNATURE, more_signers=bad, certificates=certificates)
    assert verify_timestamp(token, SIGNATURE, ROOTS).chain[0] == read(STAMPER)
    assert verify_timestamp(token, SIGNATURE, [stranger.root]).chain[0] == read(stranger.signer.certificate)
    error = refused(token, [TimestampAuthority.set_up().root])
    assert error.code in ("TIMESTAMP_UNTRUSTED", "TIMESTAMP_INVALID")


def test_a_token_without_signers_or_certificates_is_refused() -> None:
    content = cms.read_signed_data(TOKEN).content
    assert "no signer" in refused(timestamping.signed_data(content, [der(STAMPER)], [])).reason
    assert "not in the token" in refused(AUTHORITY.token(SIGNATURE, certificates=[])).reason


def test_a_signer_whose_key_is_of_no_accepted_kind_is_refused() -> None:
    signer = certify(
        "Odd", pki.timestamping(), certify("Root", pki.authority()), key=ec.generate_private_key(ec.SECP256K1())
    )
    authority = TimestampAuthority(signer)
    assert "the authority's key" in refused(authority.token(SIGNATURE), [authority.root]).reason


def signing_time(time: bytes) -> Callable[[list[bytes]], list[bytes]]:
    return lambda attributes: [*attributes, timestamping.attribute(SIGNING_TIME, time)]


def test_a_signing_time_must_lie_in_the_validity_of_the_authority() -> None:
    good = asn1.encode(asn1.UTC_TIME, b"240506070809Z")
    verify_timestamp(AUTHORITY.token(SIGNATURE, edit_attributes=signing_time(good)), SIGNATURE, ROOTS)
    for time, reason in (
        (asn1.encode(asn1.UTC_TIME, b"190301000000Z"), "is not valid yet"),
        (asn1.encode(asn1.GENERALIZED_TIME, b"20310301000000Z"), "has expired"),
        (asn1.encode(asn1.UTC_TIME, b"240506070809"), "time"),
    ):
        error = refused(AUTHORITY.token(SIGNATURE, edit_attributes=signing_time(time)))
        assert error.code == "TIMESTAMP_INVALID"
        assert reason in error.reason


# -- N41: authority and path ------------------------------------------------------------------------------------------

NO_CA = (x509.BasicConstraints(ca=False, path_length=None), True)
SIGNS = (pki.key_usage("digital_signature"), True)


def usage(*purposes: x509.ObjectIdentifier, critical: bool = True) -> tuple[x509.ExtendedKeyUsage, bool]:
    return x509.ExtendedKeyUsage(purposes), critical


@pytest.mark.parametrize(
    ("extensions", "reason"),
    [
        ([NO_CA, SIGNS], "not timeStamping alone"),
        ([NO_CA, SIGNS, usage(ExtendedKeyUsageOID.CODE_SIGNING)], "not timeStamping alone"),
        (
            [NO_CA, SIGNS, usage(ExtendedKeyUsageOID.TIME_STAMPING, ExtendedKeyUsageOID.CODE_SIGNING)],
            "not timeStamping alone",
        ),
        ([NO_CA, SIGNS, usage(ExtendedKeyUsageOID.TIME_STAMPING, critical=False)], "extKeyUsage is not critical"),
        ([NO_CA, usage(ExtendedKeyUsageOID.TIME_STAMPING)], "no keyUsage"),
        (
            [(x509.BasicConstraints(ca=True, path_length=None), True), SIGNS, usage(ExtendedKeyUsageOID.TIME_STAMPING)],
            "must not be an authority",
        ),
    ],
)
def test_n41_a_signer_that_is_not_made_for_time_stamping_is_refused(extensions: pki.Extensions, reason: str) -> None:
    authority = TimestampAuthority.set_up(extensions)
    error = refused(authority.token(SIGNATURE), [authority.root])
    assert error.code == "TIMESTAMP_INVALID"
    assert reason in error.reason


@pytest.mark.parametrize(
    ("purposes", "good"),
    [
        ([], True),
        ([usage(ExtendedKeyUsageOID.TIME_STAMPING, critical=False)], True),
        ([usage(x509.ObjectIdentifier("2.5.29.37.0"), critical=False)], True),
        ([usage(ExtendedKeyUsageOID.CODE_SIGNING, critical=False)], False),
    ],
)
def test_n41_an_intermediate_may_lack_purposes_but_not_exclude_time_stamping(
    purposes: list[tuple[x509.ExtendedKeyUsage, bool]], good: bool
) -> None:
    issuing = certify("Issuing", [*pki.authority(), *purposes], certify("Root", pki.authority()))
    authority = TimestampAuthority(certify("Stamper", pki.timestamping(), issuing))
    token = authority.token(SIGNATURE)
    if good:
        verify_timestamp(token, SIGNATURE, [authority.root])
    else:
        error = refused(token, [authority.root])
        assert error.code == "TIMESTAMP_UNTRUSTED"
        assert "excludes time-stamping" in error.detail


def test_n41_a_root_that_is_not_trusted_is_refused_even_if_the_token_brings_it() -> None:
    token = AUTHORITY.token(SIGNATURE, certificates=AUTHORITY.signer.chain)
    verify_timestamp(token, SIGNATURE, ROOTS)
    for roots in ([], [read(certify("Root", pki.authority()).certificate)]):
        error = refused(token, roots)
        assert error.code == "TIMESTAMP_UNTRUSTED"
        assert "not among the trusted roots" in error.detail


def test_n41_only_roots_end_a_path() -> None:
    assert refused(TOKEN, [read(ISSUING)]).code == "TIMESTAMP_UNTRUSTED"
    assert refused(TOKEN, [read(STAMPER)]).code == "TIMESTAMP_UNTRUSTED"
    # an intermediate beside its root in the store must not be in the way
    verify_timestamp(TOKEN, SIGNATURE, [read(ISSUING), AUTHORITY.root])
    alone = TimestampAuthority(certify("Alone", pki.timestamping()))
    error = refused(alone.token(SIGNATURE, certificates=alone.signer.chain), [alone.root])
    assert error.code == "TIMESTAMP_UNTRUSTED"


def test_n41_a_missing_intermediate_is_told() -> None:
    error = refused(AUTHORITY.token(SIGNATURE, certificates=[STAMPER]))
    assert error.code == "TIMESTAMP_UNTRUSTED"
    assert 'issued by "CN=Issuing,O=Stamps,C=US"' in error.detail


def test_n44_a_root_with_a_sha1_signature_ends_no_path() -> None:
    root = Certificate.parse(operate(der(ROOT), inner_algorithm=SHA1_WITH_RSA, outer_algorithm=SHA1_WITH_RSA))
    error = refused(TOKEN, [root])
    assert error.code == "TIMESTAMP_INVALID"
    assert "SHA-1" in error.reason


def test_the_chain_is_judged_at_the_stated_time_and_not_now() -> None:
    early = datetime(2010, 1, 1, tzinfo=UTC)
    old = [early, early + timedelta(days=10)]
    root = certify("Root", pki.authority(), not_before=old[0], not_after=old[1])
    authority = TimestampAuthority(certify("Stamper", pki.timestamping(), root, not_before=old[0], not_after=old[1]))
    verify_timestamp(authority.token(SIGNATURE, gen_time=old[1]), SIGNATURE, [authority.root])
    error = refused(authority.token(SIGNATURE), [authority.root])
    assert error.code == "TIMESTAMP_INVALID"
    assert "has expired" in error.reason


def test_an_authority_that_had_expired_at_the_stated_time_leads_nowhere() -> None:
    root = certify("Root", pki.authority(), not_after=GEN_TIME - timedelta(seconds=1))
    authority = TimestampAuthority(certify("Stamper", pki.timestamping(), root))
    error = refused(authority.token(SIGNATURE), [authority.root])
    assert error.code == "TIMESTAMP_UNTRUSTED"
    assert "has expired" in error.detail


# -- cross-signed authorities -----------------------------------------------------------------------------------------


def cross_signed(certificate: CertifiedKey, issuer: CertifiedKey, extensions: pki.Extensions) -> x509.Certificate:
    """The same name and key, certified by somebody else."""
    common_name = certificate.certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value
    assert isinstance(common_name, str)
    return certify(common_name, extensions, issuer, key=certificate.key).certificate


def test_a_cross_signed_authority_is_verified_by_either_root_in_any_order() -> None:
    old_root, new_root = certify("Old", pki.authority()), certify("New", pki.authority())
    issuing = certify("Issuing", pki.authority(), new_root)
    authority = TimestampAuthority(certify("Stamper", pki.timestamping(), issuing))
    dead_end = cross_signed(issuing, certify("Gone", pki.authority()), pki.authority())
    bridge = cross_signed(new_root, old_root, pki.authority())
    sent = [dead_end, issuing.certificate, authority.signer.certificate, bridge, new_root.certificate]
    for certificates in (sent, sent[::-1]):
        token = authority.token(SIGNATURE, certificates=certificates)
        for root in (old_root, new_root):
            found = verify_timestamp(token, SIGNATURE, [read(root.certificate)])
            assert found.chain[-1] == read(root.certificate)


def test_a_path_that_breaks_a_rule_gives_way_to_one_that_does_not() -> None:
    roots = [certify(name, pki.authority(path_length=length)) for name, length in (("Tight", 0), ("Wide", 5))]
    first = certify("Issuing", pki.authority(), roots[0])
    authority = TimestampAuthority(certify("Stamper", pki.timestamping(), first))
    second = cross_signed(first, roots[1], pki.authority())
    tight, wide = (read(root.certificate) for root in roots)
    token = authority.token(SIGNATURE, certificates=[authority.signer.certificate, first.certificate, second])
    assert verify_timestamp(token, SIGNATURE, [tight, wide]).chain[-1] == wide
    error = refused(token, [tight])
    assert error.code == "TIMESTAMP_INVALID"
    assert "path length" in error.reason


@pytest.mark.parametrize("size", [4, 15])  # more steps than allowed, more signatures than allowed
def test_n18_a_token_whose_certificates_form_a_maze_is_refused_in_bounded_work(size: int) -> None:
    keys = [certify("A", pki.authority()), certify("B", pki.authority())]
    stamper = certify("Stamper", pki.timestamping(), keys[0])
    maze = [
        certify(below, pki.authority(), above, key=key.key).certificate
        for below, above, key in (("A", keys[1], keys[0]), ("B", keys[0], keys[1]))
        for _ in range(size)
    ]
    authority = TimestampAuthority(CertifiedKey(stamper.certificate, stamper.key, keys[0].issuers))
    token = authority.token(SIGNATURE, certificates=[stamper.certificate, *maze])
    error = refused(token, [read(certify("C", pki.authority()).certificate)])
    assert error.code == "TIMESTAMP_UNTRUSTED"
    assert "too many paths" in error.reason


def test_n18_many_links_that_do_not_hold_are_refused_in_bounded_work() -> None:
    issuing = certify("Issuing", pki.authority(), certify("Root", pki.authority()))
    stamper = certify("Stamper", pki.timestamping(), issuing)
    impostors = [certify("Issuing", pki.authority()).certificate for _ in range(30)]
    authority = TimestampAuthority(stamper)
    token = authority.token(SIGNATURE, certificates=[stamper.certificate, *impostors])
    error = refused(token, [authority.root])
    assert error.code == "TIMESTAMP_UNTRUSTED"
    assert "is not signed by" in error.detail


def test_n18_many_bad_paths_to_a_trusted_root_are_given_up() -> None:
    root = certify("Root", pki.authority(path_length=0))
    issuing = certify("Issuing", pki.authority(), root)
    twins = [cross_signed(issuing, root, pki.authority()) for _ in range(20)]
    stamper = certify("Stamper", pki.timestamping(), issuing)
    authority = TimestampAuthority(stamper)
    token = authority.token(SIGNATURE, certificates=[stamper.certificate, *twins])
    assert "path length" in refused(token, [authority.root]).reason


def test_a_path_has_at_most_as_many_certificates_as_a_chain() -> None:
    issuer = certify("Root", pki.authority())
    for number in range(20):
        issuer = certify(f"Level {number}", pki.authority(), issuer)
    authority = TimestampAuthority(certify("Stamper", pki.timestamping(), issuer))
    assert refused(authority.token(SIGNATURE), [authority.root]).code == "TIMESTAMP_UNTRUSTED"


# -- any bytes --------------------------------------------------------------------------------------------------------


@given(st.binary(min_size=1, max_size=200))
def test_any_bytes_are_refused(data: bytes) -> None:
    assert refused(data).code == "TIMESTAMP_INVALID"
    with pytest.raises(Refused):
        inspect_timestamp(data)


@given(st.data())
def test_a_damaged_token_is_refused_or_says_the_same(data: st.DataObject) -> None:
    whole = bytearray(TOKEN)
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        inspect_timestamp(bytes(whole))
        found = verify_timestamp(bytes(whole), SIGNATURE, ROOTS)
    except Refused as error:
        assert error.code in ("TIMESTAMP_INVALID", "TIMESTAMP_UNTRUSTED")  # noqa: PT017 - either outcome is fine
        return
    assert found == verify_timestamp(TOKEN, SIGNATURE, ROOTS)


# -- inspection -------------------------------------------------------------------------------------------------------


def test_a_token_is_described_without_trust() -> None:
    found = inspect_timestamp(AUTHORITY.token(b"anything", accuracy=seconds(2), policy="1.2.3", serial=5))
    assert (found.gen_time, found.accuracy) == (GEN_TIME, timedelta(seconds=2))
    assert (found.policy, found.serial, found.hash_algorithm) == ("1.2.3", 5, "sha256")
    assert found.authority == "CN=Stamper,O=Stamps,C=US"
    assert set(found.certificates) == {read(STAMPER), read(ISSUING)}


def test_a_token_that_would_be_refused_is_described_all_the_same() -> None:
    assert inspect_timestamp(AUTHORITY.token(b"x", hash_algorithm="sha1")).hash_algorithm == "1.3.14.3.2.26"
    assert inspect_timestamp(AUTHORITY.token(b"x", certificates=[])).authority == ""
    content = cms.read_signed_data(TOKEN).content
    for signers in ([], [b"\x30\x00"]):
        assert inspect_timestamp(timestamping.signed_data(content, [der(STAMPER)], signers)).authority == ""
    for name in (b"", asn1.encode(0x82, b"dns"), asn1.encode(asn1.context(4), b"\x05\x00")):
        token = AUTHORITY.token(b"x", rest=asn1.encode(asn1.context(0), name))
        assert inspect_timestamp(token).authority == "CN=Stamper,O=Stamps,C=US"


def test_a_hash_with_odd_parameters_cannot_be_described() -> None:
    plain = timestamping.algorithm_identifier("2.16.840.1.101.3.4.2.1")
    odd = asn1.encode(asn1.SEQUENCE, asn1.encode_object_identifier("2.16.840.1.101.3.4.2.1"), b"\x02\x01\x00")

    def change(content: bytes) -> bytes:
        parts = list(asn1.Reader(asn1.read_whole(content, asn1.SEQUENCE, "TSTInfo").content, "TSTInfo").rest())
        encoded = [part.encoded for part in parts]
        encoded[2] = asn1.encode(asn1.SEQUENCE, parts[2].content.replace(plain, odd))
        return asn1.encode(asn1.SEQUENCE, *encoded)

    token = AUTHORITY.token(SIGNATURE, edit_content=change)
    assert "message imprint" in refused(token).reason
    with pytest.raises(Refused, match="parameters"):
        inspect_timestamp(token)
