"""The workflow: which checks run, in which order, what the policy's action makes of a failure, and what time counts."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from provider.demo import pki, signing
from provider.demo.timestamping import issue_token
from provider.errors import Refused, Undecided
from provider.notation.certificates import Certificate
from provider.notation.trust_policy import Action, StoreType, TrustPolicyDocument
from provider.notation.verification import Outcome, verify
from provider.oci import MEDIA_TYPE_MANIFEST, Descriptor, Digest
from tests.simulators.revocation_data import Network

DAY = timedelta(days=1)
SIGNED_AT = datetime(2026, 1, 10, tzinfo=UTC)
NOW = datetime(2026, 1, 11, tzinfo=UTC)
LATER = datetime(
    2027, 6, 1, tzinfo=UTC
)  # the signing certificate has expired, its issuers and the authority's have not
TARGET = Descriptor(MEDIA_TYPE_MANIFEST, Digest.of(b"image"), 5)
SUBJECT = {"C": "US", "ST": "WA", "O": "Contoso", "CN": "release"}
OCSP, CRL, TSA_CRL = "http://ocsp.test/", "http://crl.test/c.crl", "http://crl.test/tsa.crl"
ALL = ["integrity", "payload", "metadata", "authenticity", "expiry", "authenticTimestamp", "revocation"]


@cache
def ca(name: str) -> pki.CertifiedKey:
    subject = {**SUBJECT, "CN": name}
    return pki.issue(subject, pki.authority(), issuer=None, not_before=NOW - 900 * DAY, not_after=NOW + 3650 * DAY)


@cache
def signer(crl_url: str | None = None, root: str = "root") -> pki.CertifiedKey:
    extensions = pki.code_signing(crl_url=crl_url)
    return pki.issue(SUBJECT, extensions, issuer=ca(root), not_before=SIGNED_AT - DAY, not_after=SIGNED_AT + 30 * DAY)


@cache
def authority(crl_url: str | None = None) -> pki.CertifiedKey:
    point = x509.DistributionPoint([x509.UniformResourceIdentifier(crl_url or "")], None, None, None)
    extensions = (*pki.timestamping(), *([(x509.CRLDistributionPoints([point]), False)] if crl_url else []))
    return pki.issue(
        {"CN": "tsa"}, extensions, issuer=ca("tsa root"), not_before=NOW - 30 * DAY, not_after=NOW + 900 * DAY
    )


def token(signature: bytes, *, at: datetime = SIGNED_AT, by: pki.CertifiedKey | None = None) -> bytes:
    by = by or authority()
    return issue_token(
        message_imprint=hashlib.sha256(signature).digest(),
        hash_algorithm="sha256",
        signer_key=by.key,
        signer_certificate=by.certificate,
        certificates=by.chain,
        gen_time=at,
        accuracy_seconds=1,
    )


def store(*keys: pki.CertifiedKey) -> tuple[Certificate, ...]:
    return tuple(Certificate.parse(pki.der(key.root)) for key in keys)


STORES: Mapping[tuple[StoreType, str], Sequence[Certificate]] = {
    (StoreType.CA, "s"): store(ca("root")),
    (StoreType.SIGNING_AUTHORITY, "s"): store(ca("root")),
    (StoreType.TSA, "s"): store(ca("tsa root")),
}


def outcome(
    options: signing.SignOptions | None = None,
    *,
    signed_by: pki.CertifiedKey | None = None,
    level: str = "strict",
    override: Mapping[str, str] | None = None,
    stores: Sequence[str] = ("ca:s",),
    identity: str = "*",
    at: datetime = NOW,
    target: Descriptor = TARGET,
    metadata: Mapping[str, str] | None = None,
    network: Network | None = None,
    verify_timestamp: str = "always",
    data: bytes | None = None,
) -> Outcome:
    verification: dict[str, Any] = {"level": level, "verifyTimestamp": verify_timestamp}
    if override:
        verification["override"] = dict(override)
    document = TrustPolicyDocument.from_object(
        {
            "version": "1.0",
            "trustPolicies": [
                {
                    "name": "p",
                    "registryScopes": ["*"],
                    "signatureVerification": verification,
                    "trustStores": list(stores),
                    "trustedIdentities": [identity],
                }
            ],
        }
    )
    options = options or signing.SignOptions()
    return (network or Network()).drive(
        verify(
            data or signing.sign(TARGET, signed_by or signer(), SIGNED_AT, options),
            options.format.value,
            target=target,
            statement=document.statements[0],
            trust_stores=STORES,
            required_metadata=metadata or {},
            at=at,
        )
    )


def failed(made: Outcome) -> tuple[str, str]:
    """The enforced failure: check and code."""
    assert made.failure is not None
    assert made.failure.error is not None
    return made.failure.check, made.failure.error.code


@pytest.mark.parametrize("envelope_format", signing.EnvelopeFormat)
def test_a_good_signature_passes_every_check_in_order(envelope_format: signing.EnvelopeFormat) -> None:
    made = outcome(signing.SignOptions(format=envelope_format))
    assert made.failure is None
    assert [check.check for check in made.checks] == ALL
    assert made.logged == ()
    assert made.envelope is not None
    assert made.timestamp is None


def test_a_check_that_fails_enforced_ends_the_workflow() -> None:
    made = outcome(identity="x509.subject: C=US, ST=WA, O=Fabrikam")
    assert failed(made) == ("authenticity", "UNTRUSTED_IDENTITY")
    assert [check.check for check in made.checks] == ALL[:4]


def test_garbage_fails_integrity_and_shows_no_content() -> None:
    made = outcome(data=b"garbage")
    assert failed(made) == ("integrity", "ENVELOPE_MALFORMED")
    assert made.envelope is None


@pytest.mark.parametrize("level", ["strict", "permissive", "audit"])
@pytest.mark.parametrize(
    "other",
    [
        replace(TARGET, digest=Digest.of(b"other")),
        replace(TARGET, size=6),
        replace(TARGET, media_type="application/vnd.oci.image.index.v1+json"),
    ],
)
def test_n28_a_signature_of_something_else_fails_at_every_level(level: str, other: Descriptor) -> None:
    assert failed(outcome(level=level, target=other)) == ("payload", "PAYLOAD_MISMATCH")


@pytest.mark.parametrize("level", ["strict", "permissive", "audit"])
def test_demanded_metadata_is_enforced_at_every_level(level: str) -> None:
    options = signing.SignOptions(annotations={"stage": "prod"})
    assert outcome(options, level=level, metadata={"stage": "prod"}).failure is None
    assert failed(outcome(options, level=level, metadata={"stage": "test"})) == ("metadata", "METADATA_MISMATCH")


def test_the_chain_must_lead_to_a_store_of_the_schemes_own_type() -> None:
    by_authority = signing.SignOptions(scheme=signing.SCHEME_SIGNING_AUTHORITY)
    assert outcome(by_authority, stores=["signingAuthority:s"]).failure is None
    assert failed(outcome(by_authority)) == ("authenticity", "TRUST_STORE_EMPTY")
    assert failed(outcome(stores=["signingAuthority:s"])) == ("authenticity", "TRUST_STORE_EMPTY")
    assert failed(outcome(stores=["ca:s", "ca:missing"])) == ("authenticity", "TRUST_STORE_EMPTY")
    assert failed(outcome(signed_by=signer(root="stranger"))) == ("authenticity", "UNTRUSTED_ROOT")


def test_n52_what_the_level_only_logs_is_reported_and_passes() -> None:
    expired = signing.SignOptions(expiry=SIGNED_AT + timedelta(hours=1))
    assert failed(outcome(expired)) == ("expiry", "SIGNATURE_EXPIRED")
    made = outcome(expired, level="permissive", at=LATER)
    assert made.failure is None
    assert [(check.check, check.error and check.error.code) for check in made.logged] == [
        ("expiry", "SIGNATURE_EXPIRED"),
        ("authenticTimestamp", "CERTIFICATE_EXPIRED"),
    ]
    assert [check.check for check in outcome(level="audit", signed_by=signer(root="stranger")).logged] == [
        "authenticity"
    ]


def test_the_moment_of_expiry_is_expired() -> None:
    at = SIGNED_AT + timedelta(hours=1)
    options = signing.SignOptions(expiry=at)
    assert outcome(options, at=at - timedelta(seconds=1)).failure is None
    assert failed(outcome(options, at=at)) == ("expiry", "SIGNATURE_EXPIRED")


def test_nothing_looked_at_is_never_success() -> None:
    with pytest.raises(ValueError, match="proves nothing"):
        Outcome(())


def test_a_waived_verification_cannot_be_asked_for() -> None:
    skip = {"name": "p", "registryScopes": ["reg.test/app"], "signatureVerification": {"level": "skip"}}
    document = TrustPolicyDocument.from_object({"version": "1.0", "trustPolicies": [skip]})
    made = verify(
        b"",
        "application/cose",
        target=TARGET,
        statement=document.statements[0],
        trust_stores={},
        required_metadata={},
        at=NOW,
    )
    with pytest.raises(ValueError, match="waives"):
        Network().drive(made)


# -- time -------------------------------------------------------------------------------------------------------------


def test_n39_without_a_time_stamp_the_certificates_must_be_valid_now() -> None:
    assert failed(outcome(at=LATER)) == ("authenticTimestamp", "CERTIFICATE_EXPIRED")
    assert failed(outcome(at=SIGNED_AT - 2 * DAY)) == ("authenticTimestamp", "CERTIFICATE_NOT_YET_VALID")


def test_a_signing_authority_vouches_for_its_own_time() -> None:
    options = signing.SignOptions(scheme=signing.SCHEME_SIGNING_AUTHORITY)
    assert outcome(options, stores=["signingAuthority:s"], at=LATER).failure is None
    early = signing.sign(TARGET, signer(), SIGNED_AT - 2 * DAY, options)
    made = outcome(options, stores=["signingAuthority:s"], data=early)
    assert failed(made) == ("authenticTimestamp", "CERTIFICATE_NOT_YET_VALID")


def test_n39_a_time_stamp_holds_up_a_signature_whose_certificate_expired() -> None:
    stamped = signing.SignOptions(timestamp=token)
    for choice in ("always", "afterCertExpiry"):
        made = outcome(stamped, stores=["ca:s", "tsa:s"], at=LATER, verify_timestamp=choice)
        assert made.failure is None
        assert made.timestamp is not None
        assert made.timestamp.gen_time == SIGNED_AT


def test_n42_a_time_stamp_counts_only_where_the_policy_lists_a_tsa_store() -> None:
    stamped = signing.SignOptions(timestamp=token)
    assert failed(outcome(stamped, at=LATER)) == ("authenticTimestamp", "CERTIFICATE_EXPIRED")
    assert failed(outcome(stores=["ca:s", "tsa:s"])) == ("authenticTimestamp", "TIMESTAMP_MISSING")
    assert outcome(stores=["ca:s", "tsa:s"], verify_timestamp="afterCertExpiry").failure is None
    expired = outcome(stores=["ca:s", "tsa:s"], verify_timestamp="afterCertExpiry", at=LATER)
    assert failed(expired) == ("authenticTimestamp", "TIMESTAMP_MISSING")


def test_n39_a_time_stamp_of_other_content_or_another_time_does_not_count() -> None:
    other = signing.SignOptions(timestamp=lambda signature: token(signature + b"x"))
    late = signing.SignOptions(timestamp=lambda signature: token(signature, at=SIGNED_AT + 40 * DAY))
    stores = ["ca:s", "tsa:s"]
    assert failed(outcome(other, stores=stores)) == ("authenticTimestamp", "TIMESTAMP_INVALID")
    assert failed(outcome(late, stores=stores)) == ("authenticTimestamp", "TIMESTAMP_OUTSIDE_VALIDITY")


def crl(key: pki.CertifiedKey, *revoked: pki.CertifiedKey, invalid_from: datetime | None = None) -> bytes:
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(key.certificate.subject)
        .last_update(NOW - DAY)
        .next_update(LATER + DAY)
    )
    for entry in revoked:
        made = x509.RevokedCertificateBuilder().serial_number(entry.certificate.serial_number).revocation_date(NOW)
        if invalid_from is not None:
            made = made.add_extension(x509.InvalidityDate(invalid_from), critical=False)
        builder = builder.add_revoked_certificate(made.build())
    return builder.sign(key.key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def test_n47_a_revoked_or_unknown_time_stamp_authority_fails_whatever_the_revocation_setting() -> None:
    by = authority(TSA_CRL)
    stamped = signing.SignOptions(timestamp=lambda signature: token(signature, by=by))
    arguments: dict[str, Any] = {"stores": ["ca:s", "tsa:s"], "override": {"revocation": "skip"}}
    good, revoked = crl(ca("tsa root")), crl(ca("tsa root"), by)
    assert outcome(stamped, network=Network({TSA_CRL: good}), **arguments).failure is None
    made = outcome(stamped, network=Network({TSA_CRL: revoked}), **arguments)
    assert failed(made) == ("authenticTimestamp", "CERTIFICATE_REVOKED")
    assert made.timestamp is None
    unreachable = outcome(stamped, network=Network(), **arguments)
    assert failed(unreachable) == ("authenticTimestamp", "REVOCATION_UNAVAILABLE")
    assert failed(outcome(stamped, network=Network({TSA_CRL: b"junk"}), **arguments)) == (
        "authenticTimestamp",
        "REVOCATION_UNKNOWN",
    )


# -- revocation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "code", "kind"),
    [
        ("good", None, None),
        ("revoked", "CERTIFICATE_REVOKED", Refused),
        ("junk", "REVOCATION_UNKNOWN", Refused),
        (None, "REVOCATION_UNAVAILABLE", Undecided),
    ],
)
def test_n46_revocation_by_level(answer: str | None, code: str | None, kind: type | None) -> None:
    leaf = signer(CRL)
    answers = {"good": crl(ca("root")), "revoked": crl(ca("root"), leaf), "junk": b"junk"}
    network = {} if answer is None else {CRL: answers[answer]}
    strict = outcome(signed_by=leaf, network=Network(network))
    for level in ("permissive", "audit"):
        made = outcome(signed_by=leaf, level=level, network=Network(network))
        assert made.failure is None
        assert [check.check for check in made.logged] == ([] if code is None else ["revocation"])
    if code is None:
        assert strict.failure is None
    else:
        assert failed(strict) == ("revocation", code)
        assert strict.failure is not None
        assert isinstance(strict.failure.error, kind or ())


def test_a_skipped_revocation_check_asks_nobody() -> None:
    network = Network()
    made = outcome(signed_by=signer(CRL), override={"revocation": "skip"}, network=network)
    assert made.failure is None
    assert [check.check for check in made.checks] == ALL[:-1]
    assert network.asked == []


def test_n28_nobody_is_asked_about_a_signature_of_something_else() -> None:
    network = Network()
    outcome(signed_by=signer(CRL), target=replace(TARGET, size=6), network=network)
    assert network.asked == []


def test_a_trusted_signing_time_before_the_invalidity_date_forgives_a_revocation() -> None:
    leaf = signer(CRL)
    network = {CRL: crl(ca("root"), leaf, invalid_from=SIGNED_AT + timedelta(hours=1))}
    stamped = signing.SignOptions(timestamp=token)
    assert failed(outcome(signed_by=leaf, network=Network(network))) == ("revocation", "CERTIFICATE_REVOKED")
    with_time = outcome(stamped, signed_by=leaf, stores=["ca:s", "tsa:s"], network=Network(network))
    assert with_time.failure is None
    # The whole interval of the time-stamp must lie before that date.
    close = {CRL: crl(ca("root"), leaf, invalid_from=SIGNED_AT + timedelta(seconds=1))}
    made = outcome(stamped, signed_by=leaf, stores=["ca:s", "tsa:s"], network=Network(close))
    assert failed(made) == ("revocation", "CERTIFICATE_REVOKED")


def test_a_time_stamp_that_failed_forgives_nothing_even_where_it_is_only_logged() -> None:
    leaf = signer(CRL)
    network = Network({CRL: crl(ca("root"), leaf, invalid_from=SIGNED_AT + DAY)})
    forged = signing.SignOptions(timestamp=lambda signature: token(signature + b"x"))
    made = outcome(
        forged,
        signed_by=leaf,
        level="permissive",
        override={"revocation": "enforce"},
        stores=["ca:s", "tsa:s"],
        network=network,
    )
    assert failed(made) == ("revocation", "CERTIFICATE_REVOKED")
    assert made.logged[0].action is Action.LOG
