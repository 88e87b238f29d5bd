"""What JWS and COSE envelopes have in common: their parts before anything is verified, and the signed header's rules.

    signed attribute                              when                            in crit
    content type (cty / 3)                        always, one value               no
    io.cncf.notary.signingScheme                  always                          yes
    io.cncf.notary.signingTime                    with notary.x509 only           no
    io.cncf.notary.authenticSigningTime           with signingAuthority only      yes
    io.cncf.notary.expiry                         optional, after signing time    yes
    io.cncf.notary.verificationPlugin, its
      MinVersion and every other critical one     refused
    any other                                     ignored, kept for display       no

Rules:
- Every attribute that the signer marked critical is understood or the signature is refused (attack N51). A verification
  plugin is never run, so naming one refuses the signature too. (notation-go lets unknown critical attributes pass where
  no plugin is named.)
- Each scheme has its own time attribute; the other one beside it would leave open which clock was meant.
- jws.py and cose.py turn bytes into an UnverifiedEnvelope; nothing in it may be believed before envelope.py has
  verified it.

What does not belong here: bytes of either format (jws.py, cose.py), the order of the verification (envelope.py).
Source: notaryproject/specifications signature-specification.md "Signature Envelope", signature-envelope-jws.md and
signature-envelope-cose.md.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from provider.errors import Refused
from provider.notation.algorithms import Algorithm
from provider.notation.certificates import MAX_CHAIN_LENGTH

PAYLOAD_CONTENT_TYPE: Final = "application/vnd.cncf.notary.payload.v1+json"

ATTRIBUTE_SIGNING_SCHEME: Final = "io.cncf.notary.signingScheme"
ATTRIBUTE_SIGNING_TIME: Final = "io.cncf.notary.signingTime"
ATTRIBUTE_AUTHENTIC_SIGNING_TIME: Final = "io.cncf.notary.authenticSigningTime"
ATTRIBUTE_EXPIRY: Final = "io.cncf.notary.expiry"
ATTRIBUTE_PLUGIN: Final = "io.cncf.notary.verificationPlugin"
ATTRIBUTE_PLUGIN_MIN_VERSION: Final = "io.cncf.notary.verificationPluginMinVersion"
UNSIGNED_TIMESTAMP: Final = "io.cncf.notary.timestampSignature"
UNSIGNED_SIGNING_AGENT: Final = "io.cncf.notary.signingAgent"

MAX_ENVELOPE_BYTES: Final = 4 * 1024 * 1024  # octets of one envelope; real ones have 2 to 12 KiB (attack N16)

_ZERO_TIME: Final = datetime.min.replace(tzinfo=UTC)  # Go's zero time, which its encoders write for "none"
TIME_ATTRIBUTES: Final = (ATTRIBUTE_SIGNING_TIME, ATTRIBUTE_AUTHENTIC_SIGNING_TIME, ATTRIBUTE_EXPIRY)
_PROCESSED: Final = (ATTRIBUTE_AUTHENTIC_SIGNING_TIME, ATTRIBUTE_EXPIRY, ATTRIBUTE_SIGNING_SCHEME)
_ALWAYS_CRITICAL: Final = (*_PROCESSED, ATTRIBUTE_PLUGIN, ATTRIBUTE_PLUGIN_MIN_VERSION)

Label = int | str
"""Name of a header parameter; numbers occur in COSE only."""


class SigningScheme(enum.StrEnum):
    """Whose clock gave the signing time: the signer's, or that of a signing authority."""

    X509 = "notary.x509"
    SIGNING_AUTHORITY = "notary.x509.signingAuthority"


@dataclass(frozen=True, slots=True)
class HeaderFormat:
    """Where the two formats differ in their signed header.

    Attributes:
        algorithm: label of the algorithm.
        critical: label of the list of critical attributes.
        content_type: label of the payload's content type.
        may_be_critical: labels that the critical list may name though nothing demands it.
        read_time: turns the value of a time attribute into an aware UTC time; raises ValueError, saying why not.
    """

    algorithm: Label
    critical: Label
    content_type: Label
    may_be_critical: frozenset[Label]
    read_time: Callable[[object], datetime]


@dataclass(frozen=True, slots=True)
class UnverifiedEnvelope:
    """An envelope taken apart. Its syntax was checked and nothing else: every value may be a forger's.

    Attributes:
        media_type: media type of the envelope.
        format: how to read `protected`.
        algorithm: the algorithm that the header claims; None when it is not an allowed one.
        algorithm_name: the same as written, for people.
        protected: the signed header.
        critical: labels that the signed header marks critical; each is in it.
        signing_input: the octets that the signature covers.
        payload: the payload's octets, not empty.
        signature: the raw signature value, not empty.
        certificates: DER of the chain as transmitted, leaf first; at least one.
        timestamp_token: the unsigned time-stamp token, None when absent or empty.
        signing_agent: what the signer calls itself, unsigned; None when absent or not text.
    """

    media_type: str
    format: HeaderFormat
    algorithm: Algorithm | None
    algorithm_name: str
    protected: Mapping[Label, object]
    critical: tuple[Label, ...]
    signing_input: bytes
    payload: bytes
    signature: bytes
    certificates: tuple[bytes, ...]
    timestamp_token: bytes | None
    signing_agent: str | None


@dataclass(frozen=True, slots=True)
class SignedAttributes:
    """The signed header after its rules were checked.

    Attributes:
        content_type: the payload's content type, PAYLOAD_CONTENT_TYPE.
        scheme: the signing scheme.
        signing_time: signingTime or authenticSigningTime, as the scheme has it.
        expiry: the signature's expiry, None when it has none.
        extended: attributes that are not critical and not the specification's, as written.
    """

    content_type: str
    scheme: SigningScheme
    signing_time: datetime
    expiry: datetime | None
    extended: Mapping[Label, object]


def malformed(reason: str, *, expected: str | None = None, found: str | None = None) -> Refused:
    """The refusal of an envelope that breaks a rule of its format."""
    return Refused("ENVELOPE_MALFORMED", reason, expected=expected, found=found)


def check_chain_length(count: int) -> None:
    """Refuse a chain that is too long, before any of it is decoded (attack N18).

    Raises:
        Refused: CERTIFICATE_CHAIN_INVALID.
    """
    if count > MAX_CHAIN_LENGTH:
        raise Refused(
            "CERTIFICATE_CHAIN_INVALID",
            "the certificate chain in the signature is too long",
            expected=f"at most {MAX_CHAIN_LENGTH} certificates",
            found=str(count),
        )


def check_attributes(envelope: UnverifiedEnvelope) -> SignedAttributes:
    """Check the signed header against the table in this file's head.

    Args:
        envelope: its signature should have been verified first; here only the header's content is judged.

    Raises:
        Refused: ENVELOPE_MALFORMED, or CRITICAL_ATTRIBUTE_UNKNOWN naming what is not understood.
    """
    header = envelope.protected
    content_type = header.get(envelope.format.content_type)
    if content_type != PAYLOAD_CONTENT_TYPE:
        raise malformed(
            "the content type of the payload is missing or not supported",
            expected=PAYLOAD_CONTENT_TYPE,
            found="none" if content_type is None else str(content_type),
        )
    scheme = _read_scheme(header.get(ATTRIBUTE_SIGNING_SCHEME))
    own, foreign = ATTRIBUTE_SIGNING_TIME, ATTRIBUTE_AUTHENTIC_SIGNING_TIME
    if scheme is SigningScheme.SIGNING_AUTHORITY:
        own, foreign = foreign, own
    if foreign in header:
        raise malformed(f"{foreign} must not stand in a signature of scheme {scheme.value}")
    signing_time = _read_time(envelope, own)
    if signing_time is None:
        raise malformed(f"{own} is missing from a signature of scheme {scheme.value}")
    expiry = _read_time(envelope, ATTRIBUTE_EXPIRY)
    if expiry is not None and expiry <= signing_time:
        raise malformed(
            "the signature expires before it was made",
            expected=f"an expiry after {signing_time.isoformat()}",
            found=expiry.isoformat(),
        )
    _check_critical(envelope, absent={ATTRIBUTE_EXPIRY} if expiry is None else set())
    return SignedAttributes(PAYLOAD_CONTENT_TYPE, scheme, signing_time, expiry, _extended(envelope))


def unknown_critical(envelope: UnverifiedEnvelope) -> tuple[Label, ...]:
    """Labels marked critical that this verifier does not process, plugins among them."""
    optional = envelope.format.may_be_critical
    return tuple(label for label in envelope.critical if label not in _PROCESSED and label not in optional)


def _read_scheme(value: object) -> SigningScheme:
    for scheme in SigningScheme:
        if value == scheme.value:
            return scheme
    raise malformed(
        f"{ATTRIBUTE_SIGNING_SCHEME} is missing or not supported",
        expected=" or ".join(scheme.value for scheme in SigningScheme),
        found="none" if value is None else str(value),
    )


def _read_time(envelope: UnverifiedEnvelope, label: str) -> datetime | None:
    """The value of a time attribute; None when it is absent or zero."""
    if label not in envelope.protected:
        return None
    try:
        time = envelope.format.read_time(envelope.protected[label])
    except ValueError as error:
        raise malformed(f"{label} is not a time: {error}") from None
    return None if time == _ZERO_TIME else time


def _check_critical(envelope: UnverifiedEnvelope, absent: set[str]) -> None:
    """Check the critical list; `absent` names attributes whose value says that they are not there."""
    unknown = unknown_critical(envelope)
    if ATTRIBUTE_PLUGIN in unknown:
        raise Refused(
            "CRITICAL_ATTRIBUTE_UNKNOWN",
            f"the signature demands the verification plugin {envelope.protected[ATTRIBUTE_PLUGIN]!r}, and none is run",
        )
    if unknown:
        raise Refused(
            "CRITICAL_ATTRIBUTE_UNKNOWN",
            "the signature marks an attribute critical that is not processed",
            found=", ".join(str(label) for label in unknown),
        )
    for label in envelope.critical:
        if label in absent:
            raise malformed(f"{label} is marked critical but has no value")
    for label in _ALWAYS_CRITICAL:
        if label in envelope.protected and label not in absent and label not in envelope.critical:
            raise malformed(f"{label} is not marked critical, which it must be")


def _extended(envelope: UnverifiedEnvelope) -> dict[Label, object]:
    labels = envelope.format
    own = {labels.algorithm, labels.critical, labels.content_type, ATTRIBUTE_SIGNING_SCHEME, *TIME_ATTRIBUTES}
    return {label: value for label, value in envelope.protected.items() if label not in own}
