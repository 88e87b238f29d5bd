"""One signature, one decision: the verification workflow of the Notary Project, as a generator without input or output.

    (1) integrity           the envelope is well-formed, signed by its leaf, and the chain keeps the certificate rules
    (2) payload             what was signed is the image at hand, and carries the demanded metadata (always enforced)
    (3) authenticity        a trust store of the policy holds a certificate of the chain, the leaf is a trusted identity
    (4) expiry              the signature's own expiry has not passed
    (5) authenticTimestamp  the certificates were valid when the signature was made, by a trusted clock's word
    (6) revocation          no certificate of the chain was revoked

Rules:
- Every check is recorded with the action that the trust policy gives it. The first failure whose action is enforce ends
  the workflow and the signature fails; a failure whose action is log is recorded and the workflow goes on.
- What must be fetched (OCSP, CRL) is yielded as a batch of queries; the driver of the generator sends back the answers.
  Nothing is fetched for a check whose action is skip, nor before the checks that need no network.
- Time is the argument `at`; it is the same for every check of one decision.
- Verification plugins are not run: a signature that demands one fails (1), naming it.

What does not belong here: finding signatures (stores), choosing among them (executor, policy), fetching (verifiers).
Source: notaryproject/specifications, trust-store-trust-policy.md "Signature Verification" and
signature-specification.md; stricter than notation-go where docs/threat-model.md says so.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from provider.errors import CountersignError, Refused, Undecided
from provider.notation.certificates import Certificate, check_chain_valid_at, find_trust_anchor
from provider.notation.envelope import Envelope, open_envelope
from provider.notation.headers import SigningScheme
from provider.notation.identities import match_identity
from provider.notation.payload import check_metadata, check_payload
from provider.notation.revocation import ChainRevocation, ChainStatus, Inquiry, Purpose, check_chain
from provider.notation.timestamp import Timestamp, check_timestamp_covers, verify_timestamp
from provider.notation.trust_policy import Action, Check, Level, StoreType, TrustPolicyStatement, VerifyTimestamp
from provider.oci import Descriptor

TrustStores = Mapping[tuple[StoreType, str], Sequence[Certificate]]
"""Certificates of the stores that a statement names; a store that is absent or empty fails the check that needs it."""


class CheckResult(NamedTuple):
    """One row of an outcome.

    Attributes:
        check: name of the check as the trust policy spells it; `payload` and `metadata` for the two it cannot name.
        action: what the policy wants of a failure.
        error: why it failed; None when it passed. Undecided when an answer could not be had.
    """

    check: str
    action: Action
    error: CountersignError | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """The proof of one signature's verification, or of its failure.

    Attributes:
        checks: every check that was made, in order.
        envelope: the verified content; None when integrity failed.
        timestamp: the verified time-stamp; None when none was verified.

    Raises:
        ValueError: there is no check: nothing was looked at, which must never pass for success.
    """

    checks: tuple[CheckResult, ...]
    envelope: Envelope | None = None
    timestamp: Timestamp | None = None

    def __post_init__(self) -> None:
        if not self.checks:
            raise ValueError("an outcome without a check proves nothing")

    @property
    def failure(self) -> CheckResult | None:
        """The enforced check that failed, if any; without one the signature is verified."""
        return next(
            (check for check in self.checks if check.error is not None and check.action is Action.ENFORCE), None
        )

    @property
    def logged(self) -> tuple[CheckResult, ...]:
        """Checks that failed and that the policy only logs."""
        return tuple(check for check in self.checks if check.error is not None and check.action is Action.LOG)


def verify(
    data: bytes,
    media_type: str,
    *,
    target: Descriptor,
    statement: TrustPolicyStatement,
    trust_stores: TrustStores,
    required_metadata: Mapping[str, str],
    at: datetime,
) -> Inquiry[Outcome]:
    """Verify one signature envelope.

    Args:
        data: the envelope, untrusted.
        media_type: the envelope's media type as its manifest's layer says.
        target: the image that must have been signed.
        statement: the trust policy statement selected for the image; its level is not skip.
        trust_stores: the certificates of the stores that the statement names.
        required_metadata: user metadata that must be in the signed payload.
        at: the time of the decision (aware, UTC).

    Returns:
        The outcome. Refusals are in it, not raised.

    Raises:
        ValueError: the statement's level is skip: who waives verification must not ask for it (a programming error).
    """
    if statement.level is Level.SKIP:
        raise ValueError("the trust policy waives verification")
    return (yield from _Verification(data, media_type, target, statement, trust_stores, required_metadata, at).run())


class _Stop(Exception):
    """An enforced check failed."""


@dataclass(slots=True)
class _Verification:
    """The state of one run: the arguments of `verify`, what is known so far, and the rows of the outcome."""

    data: bytes
    media_type: str
    target: Descriptor
    statement: TrustPolicyStatement
    trust_stores: TrustStores
    required_metadata: Mapping[str, str]
    at: datetime
    checks: list[CheckResult] = field(default_factory=list)
    envelope: Envelope | None = None
    timestamp: Timestamp | None = None

    def run(self) -> Inquiry[Outcome]:
        with contextlib.suppress(_Stop):
            yield from self._steps()
        return Outcome(tuple(self.checks), self.envelope, self.timestamp)

    def _steps(self) -> Inquiry[None]:
        # (1)
        envelope = self._open()
        # (2) here and not last, as in notation-go: no network for a signature of something else.
        self._record("payload", Action.ENFORCE, _failure(check_payload, envelope, self.target))
        lacking = _failure(check_metadata, envelope, self.required_metadata) if self.required_metadata else None
        self._record("metadata", Action.ENFORCE, lacking)
        # (3)
        self._policy_record(Check.AUTHENTICITY, _failure(self._check_authenticity, envelope))
        # (4)
        self._policy_record(Check.EXPIRY, _failure(_check_expiry, envelope, self.at))
        # (5)
        try:
            signing_time = yield from self._authenticate_time(envelope)
        except (Refused, Undecided) as error:
            signing_time = None
            self._policy_record(Check.AUTHENTIC_TIMESTAMP, error)
        else:
            self._policy_record(Check.AUTHENTIC_TIMESTAMP, None)
        # (6)
        if self.statement.action(Check.REVOCATION) is not Action.SKIP:
            revocation = yield from check_chain(
                envelope.chain, purpose=Purpose.CODE_SIGNING, at=self.at, signing_time=signing_time
            )
            self._policy_record(Check.REVOCATION, _revocation_error(revocation, "signing certificate"))

    def _open(self) -> Envelope:
        try:
            self.envelope = open_envelope(self.data, self.media_type)
        except Refused as error:
            self.checks.append(CheckResult(Check.INTEGRITY.value, Action.ENFORCE, error))
            raise _Stop from error
        self._record(Check.INTEGRITY.value, Action.ENFORCE, None)
        return self.envelope

    def _policy_record(self, check: Check, error: CountersignError | None) -> None:
        self._record(check.value, self.statement.action(check), error)

    def _record(self, check: str, action: Action, error: CountersignError | None) -> None:
        self.checks.append(CheckResult(check, action, error))
        if error is not None and action is Action.ENFORCE:
            raise _Stop

    def _check_authenticity(self, envelope: Envelope) -> None:
        """Trust the chain, then the identity. Every listed store of the scheme's type must be there, as in notation."""
        by_authority = envelope.signing_scheme is SigningScheme.SIGNING_AUTHORITY
        wanted = StoreType.SIGNING_AUTHORITY if by_authority else StoreType.CA
        find_trust_anchor(envelope.chain, self._store_certificates(wanted))
        match_identity(envelope.chain[0], self.statement.trusted_identities)

    def _store_certificates(self, wanted: StoreType) -> tuple[Certificate, ...]:
        names = [name for store_type, name in self.statement.trust_stores if store_type is wanted]
        if not names:
            raise Refused(
                "TRUST_STORE_EMPTY",
                f"the trust policy {self.statement.name!r} lists no trust store of type {wanted.value}",
            )
        found: list[Certificate] = []
        for name in names:
            certificates = self.trust_stores.get((wanted, name), ())
            if not certificates:
                raise Refused("TRUST_STORE_EMPTY", f"the trust store {wanted.value}:{name} holds no certificate")
            found.extend(certificates)
        return tuple(found)

    def _authenticate_time(self, envelope: Envelope) -> Inquiry[datetime | None]:
        """Step (5). Returns the latest time at which the signature can have been made, when a trusted clock says so."""
        if envelope.signing_scheme is SigningScheme.SIGNING_AUTHORITY:
            check_chain_valid_at(envelope.chain, envelope.signing_time)
            return envelope.signing_time
        if not self._wants_timestamp(envelope):
            check_chain_valid_at(envelope.chain, self.at)
            return None
        if not envelope.timestamp_token:
            why = (
                "a certificate of its chain has expired"
                if self._is_expired(envelope)
                else "the policy lists a tsa store"
            )
            raise Refused("TIMESTAMP_MISSING", f"the signature carries no time-stamp, and {why}")
        roots = self._store_certificates(StoreType.TSA)
        timestamp = verify_timestamp(envelope.timestamp_token, envelope.signature, roots)
        check_timestamp_covers(envelope.chain, timestamp)
        revocation = yield from check_chain(
            timestamp.chain, purpose=Purpose.TIMESTAMPING, at=self.at, signing_time=None
        )
        error = _revocation_error(revocation, "time-stamp authority's certificate")
        if error is not None:
            raise error
        self.timestamp = timestamp
        return timestamp.upper

    def _wants_timestamp(self, envelope: Envelope) -> bool:
        if not any(store_type is StoreType.TSA for store_type, _ in self.statement.trust_stores):
            return False
        if self.statement.verify_timestamp is VerifyTimestamp.ALWAYS:
            return True
        return self._is_expired(envelope)

    def _is_expired(self, envelope: Envelope) -> bool:
        return any(certificate.not_after < self.at for certificate in envelope.chain)


def _failure(check: Callable[..., object], *arguments: object) -> CountersignError | None:
    """The refusal that a check raises, as a value."""
    try:
        check(*arguments)
    except Refused as error:
        return error
    return None


def _check_expiry(envelope: Envelope, at: datetime) -> None:
    if envelope.expiry is not None and at >= envelope.expiry:
        raise Refused("SIGNATURE_EXPIRED", f"the signature expired on {envelope.expiry.isoformat()}")


def _revocation_error(revocation: ChainRevocation, whose: str) -> CountersignError | None:
    """Why a chain fails the revocation check; out of reach is no judgement, so that it is never kept as one."""
    if revocation.status is ChainStatus.OK:
        return None
    reason = f"{whose}: {revocation.reason}"
    if revocation.status is ChainStatus.REVOKED:
        return Refused("CERTIFICATE_REVOKED", reason)
    if revocation.unavailable:
        return Undecided("REVOCATION_UNAVAILABLE", reason)
    return Refused("REVOCATION_UNKNOWN", reason)
