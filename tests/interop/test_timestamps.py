"""Time-stamps by `openssl ts`, certificates that ran out, and what must not pass for a time-stamp.

The certificates run out for real, some seconds after `notation` signed with them: no clock is changed.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import cbor2
import pytest

from tests.interop import peers
from tests.interop.authorities import Authority, Identity, TimestampAuthority
from tests.interop.conftest import Judge
from tests.interop.notation import FORMATS, Notation, Trust, assert_refused, assert_verified
from tests.interop.registries import Registry, Repository

pytestmark = pytest.mark.timeout(180)  # all of LIVES one after the other, on a machine that is too busy for the first
LIVES = (5, 15, 40)  # seconds that a short-lived certificate lives, tried in turn: a busy machine signs slowly
TIMESTAMP = "io.cncf.notary.timestampSignature"


@pytest.fixture
def trust_tsa(trust: Trust, tsa: TimestampAuthority) -> Trust:
    """Trust in the signer's root and in the time-stamp authority's."""
    return trust.but(tsa=[tsa.root])


def test_a_time_stamped_signature_verifies(
    app: Repository,
    notation: Notation,
    signer: Identity,
    tsa: TimestampAuthority,
    trust_tsa: Trust,
    envelope: str,
    judge: Judge,
) -> None:
    digest = app.push_image("stamped")
    notation.sign(app.at(digest), signer, envelope=envelope, timestamp=tsa)
    assert_verified(judge.verify(app.at(digest), trust_tsa))
    assert_verified(judge.verify(app.at(digest), trust_tsa.but(verify_timestamp="afterCertExpiry")))


def test_a_time_stamp_with_an_ecdsa_key_verifies(
    app: Repository, notation: Notation, signer: Identity, other_tsa: TimestampAuthority, trust: Trust, judge: Judge
) -> None:
    digest = app.push_image("stamped")
    notation.sign(app.at(digest), signer, timestamp=other_tsa)
    assert_verified(judge.verify(app.at(digest), trust.but(tsa=[other_tsa.root])))


def test_a_signature_without_the_demanded_time_stamp_is_refused(
    app: Repository, notation: Notation, signer: Identity, trust_tsa: Trust, envelope: str, judge: Judge
) -> None:
    digest = app.push_image("unstamped")
    notation.sign(app.at(digest), signer, envelope=envelope)
    assert_refused(judge.verify(app.at(digest), trust_tsa), "TIMESTAMP_MISSING")
    assert_verified(judge.verify(app.at(digest), trust_tsa.but(verify_timestamp="afterCertExpiry")))


def test_n41_a_time_stamp_of_an_authority_that_is_not_trusted_is_refused(
    app: Repository,
    notation: Notation,
    signer: Identity,
    tsa: TimestampAuthority,
    other_tsa: TimestampAuthority,
    trust: Trust,
    judge: Judge,
) -> None:
    digest = app.push_image("stamped by another")
    notation.sign(app.at(digest), signer, timestamp=other_tsa)
    assert_refused(judge.verify(app.at(digest), trust.but(tsa=[tsa.root])), "TIMESTAMP_UNTRUSTED")
    # The signer's own root in the tsa store does not help either.
    assert_refused(judge.verify(app.at(digest), trust.but(tsa=[signer.root])), "TIMESTAMP_UNTRUSTED")


def test_n39_a_time_stamp_of_another_signature_is_refused(
    app: Repository,
    notation: Notation,
    signer: Identity,
    tsa: TimestampAuthority,
    trust_tsa: Trust,
    envelope: str,
    judge: Judge,
) -> None:
    victim, donor = app.push_image("victim"), app.push_image("donor")
    notation.sign(app.at(victim), signer, envelope=envelope)
    notation.sign(app.at(donor), signer, envelope=envelope, timestamp=tsa)
    [signature], [lent] = app.signatures(victim), app.signatures(donor)
    (signed, _), (stamped, _) = app.envelope(signature), app.envelope(lent)
    clean = Repository(app.registry, app.name + "-altered")
    for text in ("victim", "donor"):
        clean.push_image(text)
    clean.push_blob(app.blob(json.loads(app.manifest(signature))["config"]["digest"]))
    clean.attach(victim, app.manifest(signature), _transplant(signed, stamped, FORMATS[envelope]))
    assert_refused(judge.verify(clean.at(victim), trust_tsa), "TIMESTAMP_INVALID")
    # The control: with the token it is for, the same rewriting does no harm.
    clean.attach(donor, app.manifest(lent), _transplant(stamped, stamped, FORMATS[envelope]))
    assert_verified(judge.verify(clean.at(donor), trust_tsa))


def _transplant(signed: bytes, stamped: bytes, media_type: str) -> bytes:
    """An envelope with the time-stamp of another one; the time-stamp is not signed, so the signature still holds."""
    if media_type == FORMATS["jws"]:
        document, lender = json.loads(signed), json.loads(stamped)
        document["header"][TIMESTAMP] = lender["header"][TIMESTAMP]
        assert base64.b64decode(document["header"][TIMESTAMP])
        return json.dumps(document).encode()
    message, lending = cbor2.loads(signed), cbor2.loads(stamped)
    protected, unprotected, payload, signature = message.value
    mixed = {**unprotected, TIMESTAMP: lending.value[1][TIMESTAMP]}
    return cbor2.dumps(cbor2.CBORTag(18, [protected, mixed, payload, signature]))


@dataclass(frozen=True)
class Lapsed:
    """Images signed with a certificate that has run out since.

    Attributes:
        repository: where they are.
        stamped: digest of the image whose signature has a time-stamp, by envelope format.
        unstamped: the same without.
    """

    repository: Repository
    stamped: Mapping[str, str]
    unstamped: Mapping[str, str]


@pytest.fixture(scope="module")
def lapsed(one_registry: Registry, notation: Notation, pki: Authority, tsa: TimestampAuthority) -> Lapsed:
    """Sign with a certificate that lives for some seconds, and wait until it is dead."""
    for life in LIVES:
        repository = one_registry.repository(f"interop/lapsed-{life}")
        images = {
            (kind, envelope): repository.push_image(f"{kind} {envelope}")
            for kind in ("stamped", "unstamped")
            for envelope in FORMATS
        }
        end = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=life)
        identity = pki.issue(f"lives-{life}-seconds", not_after=end)
        try:
            for (kind, envelope), digest in images.items():
                stamp = tsa if kind == "stamped" else None
                notation.sign(repository.at(digest), identity, envelope=envelope, timestamp=stamp)
        except AssertionError:
            if life == LIVES[-1]:
                raise
            continue
        if time.time() + 2 > end.timestamp():  # a time-stamp says "within a second", and all of it must be in time
            continue
        peers.wait_until(end.timestamp() + 1)
        by_kind = {
            kind: {envelope: digest for (one, envelope), digest in images.items() if one == kind}
            for kind in ("stamped", "unstamped")
        }
        return Lapsed(repository, **by_kind)
    pytest.fail(f"this machine needs more than {LIVES[-1]} s for four signatures")


def test_n39_an_expired_certificate_is_refused_without_a_time_stamp(
    lapsed: Lapsed, trust: Trust, trust_tsa: Trust, envelope: str, judge: Judge
) -> None:
    image = lapsed.repository.at(lapsed.unstamped[envelope])
    assert_refused(judge.verify(image, trust), "CERTIFICATE_EXPIRED")
    assert_refused(judge.verify(image, trust_tsa), "TIMESTAMP_MISSING")
    assert_refused(judge.verify(image, trust_tsa.but(verify_timestamp="afterCertExpiry")), "TIMESTAMP_MISSING")


def test_n39_an_expired_certificate_is_admitted_with_a_time_stamp_from_when_it_was_alive(
    lapsed: Lapsed, trust_tsa: Trust, envelope: str, judge: Judge
) -> None:
    image = lapsed.repository.at(lapsed.stamped[envelope])
    assert_verified(judge.verify(image, trust_tsa))
    assert_verified(judge.verify(image, trust_tsa.but(verify_timestamp="afterCertExpiry")))


def test_a_time_stamp_that_the_policy_does_not_trust_saves_no_expired_certificate(
    lapsed: Lapsed, other_tsa: TimestampAuthority, trust: Trust, envelope: str, judge: Judge
) -> None:
    image = lapsed.repository.at(lapsed.stamped[envelope])
    assert_refused(judge.verify(image, trust), "CERTIFICATE_EXPIRED")
    assert_refused(judge.verify(image, trust.but(tsa=[other_tsa.root])), "TIMESTAMP_UNTRUSTED")


def test_level_permissive_admits_an_expired_certificate(lapsed: Lapsed, trust: Trust, judge: Judge) -> None:
    assert_verified(judge.verify(lapsed.repository.at(lapsed.unstamped["jws"]), trust.but(level="permissive")))
