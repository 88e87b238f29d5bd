"""Time-stamp tokens of RFC 3161: verified against trusted roots, or only decoded for display.

    CMS SignedData -> TSTInfo: imprint and time -> signer and its certificate (RFC 5816) -> signature
        -> path to a trusted root, valid at the stated time -> time-stamping certificate rules -> interval of time

Rules:
- The imprint covers the raw octets of the envelope's signature, with SHA-256, SHA-384 or SHA-512.
- The signer's certificate is the one that the signed attribute signingCertificateV2 binds by hash. Any one good signer
  of a token suffices.
- Intermediates come from the token, roots only from the given list; a root inside the token is worth nothing. The
  search tries every path, because cross-signed authorities have several, and is bounded in steps and signatures.
- Every certificate of the path is valid at the stated time, not now: a token outlives its authority's certificates.
- The stated time is an interval, genTime +/- accuracy. Nonce, ordering and the name in `tsa` are not evaluated.

What does not belong here: revocation of the authority (attack N47; revocation.py), whether the policy wants a
time-stamp. Sources: RFC 3161, RFC 5816, RFC 5035; notaryproject/specifications trust-store-trust-policy.md "Timestamp
Verification"; ETSI EN 319 422 (accuracy of the baseline policy).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from itertools import islice
from typing import Final

from provider.errors import Refused
from provider.notation import asn1, cms
from provider.notation.asn1 import Element, MalformedASN1Error
from provider.notation.certificates import (
    ANY_PURPOSE,
    MAX_CHAIN_LENGTH,
    TIME_STAMPING,
    Certificate,
    check_chain_valid_at,
    check_issued_by,
    check_timestamping_chain,
    check_valid_at,
    is_self_signed,
)
from provider.notation.extensions import read_extension
from provider.notation.names import read_name
from provider.notation.signature_algorithms import (
    UnsupportedAlgorithmError,
    WrongSignatureError,
    read_algorithm,
    read_hash,
)

MAX_TOKEN_BYTES: Final = 128 * 1024  # real tokens have 3 to 8 KiB
MAX_PATH_STEPS: Final = 512  # candidates looked at while searching a path; a token with four certificates takes 6
MAX_PATH_SIGNATURES: Final = 32  # certificate signatures verified meanwhile; at most 2.4 ms each (RSA-16384)
MAX_PATHS: Final = 16  # whole paths held against the rules
MAX_ACCURACY_SECONDS: Final = 10**9  # beyond 30 years it says nothing

TST_INFO: Final = "1.2.840.113549.1.9.16.1.4"
SIGNING_CERTIFICATE_V2: Final = "1.2.840.113549.1.9.16.2.47"
SIGNING_TIME: Final = "1.2.840.113549.1.9.5"
BASELINE_POLICY: Final = "0.4.0.2023.1.1"  # ETSI best-practices-ts-policy: one second or better
BASELINE_ACCURACY: Final = timedelta(seconds=1)

_VERIFIED_TOKENS: Final = 64  # tokens remembered, each with MAX_TOKEN_BYTES at most
_DIRECTORY_NAME: Final = asn1.context(4)
_FAULTS: Final = (MalformedASN1Error, UnsupportedAlgorithmError, WrongSignatureError)


@dataclass(frozen=True, slots=True)
class Timestamp:
    """A verified statement that something was there at a time.

    Attributes:
        gen_time: the stated time (aware, UTC, cut to microseconds).
        accuracy: how far the true time may be off on either side.
        lower: the earliest true time.
        upper: the latest true time.
        chain: the authority's certificates, signer first, trusted root last; not checked for revocation.
    """

    gen_time: datetime
    accuracy: timedelta
    lower: datetime
    upper: datetime
    chain: tuple[Certificate, ...]


@dataclass(frozen=True, slots=True)
class TimestampDescription:
    """What a token says, verified by nobody.

    Attributes:
        gen_time: the stated time (aware, UTC, cut to microseconds).
        accuracy: how far the true time may be off, defaults applied.
        policy: dotted identifier of the authority's policy.
        serial: the token's serial number.
        hash_algorithm: hash of the imprint; a dotted identifier when it is not one that is accepted.
        authority: name of the authority as the token has it, else as its signer's certificate has it, else empty.
        certificates: what came along.
    """

    gen_time: datetime
    accuracy: timedelta
    policy: str
    serial: int
    hash_algorithm: str
    authority: str
    certificates: tuple[Certificate, ...]


@dataclass(frozen=True, slots=True)
class _TSTInfo:
    """The content of a token (RFC 3161 section 2.4.2), read and not judged."""

    policy: str
    hash_algorithm: Element
    imprint: bytes
    serial: int
    gen_time: datetime
    accuracy: timedelta
    lower: datetime
    upper: datetime
    authority: Element | None


def verify_timestamp(token: bytes, message: bytes, roots: Collection[Certificate]) -> Timestamp:
    """Verify a time-stamp token over a message. Remembered when it holds: the answer does not depend on when one asks.

    Args:
        token: the token (a CMS ContentInfo, not a TimeStampResp) in DER, or in BER with definite lengths.
        message: what was stamped: the raw octets of the envelope's signature.
        roots: trusted roots, the only ends a path may have.

    Returns:
        The statement with the authority's chain. Not checked: revocation of that chain, and what the time means for the
        stamped signature (check_timestamp_covers).

    Raises:
        Refused: TIMESTAMP_MISSING for an empty token; TIMESTAMP_UNTRUSTED when no path leads to a root;
            TIMESTAMP_INVALID for everything else.
    """
    if not token:
        raise Refused("TIMESTAMP_MISSING", "the time-stamp token is empty")
    return _verify(bytes(token), bytes(message), tuple(roots))


def inspect_timestamp(token: bytes) -> TimestampDescription:
    """Decode a token for display. Nothing is verified and nothing may be concluded.

    Raises:
        Refused: TIMESTAMP_INVALID, it cannot be decoded.
    """
    message, info = _open(bytes(token))
    try:
        hash_algorithm = read_hash(info.hash_algorithm)
    except UnsupportedAlgorithmError:
        hash_algorithm, _ = read_algorithm(info.hash_algorithm)
    except MalformedASN1Error as error:
        raise _invalid(str(error)) from None
    return TimestampDescription(
        gen_time=info.gen_time,
        accuracy=info.accuracy,
        policy=info.policy,
        serial=info.serial,
        hash_algorithm=hash_algorithm,
        authority=_authority_name(info.authority) or _signer_name(message),
        certificates=message.certificates,
    )


def check_timestamp_covers(chain: Sequence[Certificate], timestamp: Timestamp) -> None:
    """Check that every certificate was valid during the whole interval of a verified time-stamp, ends included.

    Args:
        chain: the certificate chain of the stamped signature.
        timestamp: what verify_timestamp returned for it.

    Raises:
        Refused: TIMESTAMP_OUTSIDE_VALIDITY.
    """
    for certificate in chain:
        if timestamp.lower < certificate.not_before or timestamp.upper > certificate.not_after:
            raise Refused(
                "TIMESTAMP_OUTSIDE_VALIDITY",
                f'the time-stamp lies outside the validity of the certificate "{certificate.subject_text}"',
                expected=f"{certificate.not_before.isoformat()} to {certificate.not_after.isoformat()}",
                found=f"{timestamp.lower.isoformat()} to {timestamp.upper.isoformat()}",
            )


def _invalid(reason: str, *, expected: str | None = None, found: str | None = None) -> Refused:
    return Refused("TIMESTAMP_INVALID", f"the time-stamp token is not valid: {reason}", expected=expected, found=found)


# -- content ----------------------------------------------------------------------------------------------------------


def _open(token: bytes) -> tuple[cms.SignedData, _TSTInfo]:
    if len(token) > MAX_TOKEN_BYTES:
        raise _invalid("it is too large", expected=f"at most {MAX_TOKEN_BYTES} bytes", found=str(len(token)))
    try:
        message = cms.read_signed_data(token)
        if message.content_type != TST_INFO:
            raise MalformedASN1Error(f"its content is of type {message.content_type}, not TSTInfo")
        return message, _read_tst_info(message.content)
    except MalformedASN1Error as error:
        raise _invalid(str(error)) from None


def _read_tst_info(content: bytes) -> _TSTInfo:
    reader = asn1.open_sequence(asn1.read_whole(content, asn1.SEQUENCE, "TSTInfo"), "TSTInfo")
    if asn1.decode_integer(reader.read(asn1.INTEGER, "version")) != 1:
        raise MalformedASN1Error("the version of TSTInfo is not 1")
    policy = asn1.decode_object_identifier(reader.read(asn1.OBJECT_IDENTIFIER, "policy"))
    imprint = asn1.open_sequence(reader.read(asn1.SEQUENCE, "message imprint"), "message imprint")
    hash_algorithm = imprint.read(asn1.SEQUENCE, "hash algorithm")
    digest = imprint.read(asn1.OCTET_STRING, "hash").content
    imprint.finish()
    serial = asn1.decode_integer(reader.read(asn1.INTEGER, "serial number"))
    gen_time, was_cut = asn1.decode_precise_time(reader.read(asn1.GENERALIZED_TIME, "genTime"))
    accuracy = _read_accuracy(reader.optional(asn1.SEQUENCE))
    ordering = reader.optional(asn1.BOOLEAN)
    if ordering is not None:
        asn1.decode_boolean(ordering)
    nonce = reader.optional(asn1.INTEGER)
    if nonce is not None:
        asn1.decode_integer(nonce)
    authority = reader.optional(asn1.context(0))
    _check_extensions(reader.optional(asn1.context(1)))
    reader.finish()
    if not accuracy and policy == BASELINE_POLICY:
        accuracy = BASELINE_ACCURACY
    try:
        lower, upper = gen_time - accuracy, gen_time + accuracy + timedelta(microseconds=int(was_cut))
    except OverflowError:
        raise MalformedASN1Error("genTime and accuracy lead beyond the calendar") from None
    return _TSTInfo(policy, hash_algorithm, digest, serial, gen_time, accuracy, lower, upper, authority)


def _read_accuracy(element: Element | None) -> timedelta:
    """Accuracy of RFC 3161 section 2.4.2; zero when absent. Zero milliseconds are met and let pass."""
    if element is None:
        return timedelta()
    reader = asn1.open_sequence(element, "accuracy")
    amounts = []
    for tag, limit in (
        (asn1.INTEGER, MAX_ACCURACY_SECONDS),
        (asn1.context(0, constructed=False), 999),
        (asn1.context(1, constructed=False), 999),
    ):
        part = reader.optional(tag)
        amount = 0 if part is None else asn1.decode_integer(part, tag)
        if not 0 <= amount <= limit:
            raise MalformedASN1Error("a part of accuracy is out of range")
        amounts.append(amount)
    reader.finish()
    return timedelta(seconds=amounts[0], milliseconds=amounts[1], microseconds=amounts[2])


def _check_extensions(element: Element | None) -> None:
    """An extension that is critical must be understood (RFC 5280 section 4.2), and none is."""
    for part in () if element is None else asn1.Reader(element.content, "extensions of TSTInfo").rest():
        identifier, extension = read_extension(part)
        if extension.critical:
            raise MalformedASN1Error(f"the critical extension {identifier} of TSTInfo is not known")


# -- signer -----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=_VERIFIED_TOKENS)
def _verify(token: bytes, message: bytes, roots: tuple[Certificate, ...]) -> Timestamp:
    signed, info = _open(token)
    try:
        hash_name = read_hash(info.hash_algorithm)
    except _FAULTS as error:
        raise _invalid(f"its message imprint: {error}") from None
    digest = hashlib.new(hash_name, message).digest()
    if info.imprint != digest:
        raise _invalid("it is of other content", expected=digest.hex(), found=info.imprint.hex())
    search = _PathSearch(signed.certificates, roots, info.gen_time)
    failure = _invalid("it has no signer")
    for encoded in signed.signers:
        try:
            chain = _verify_signer(encoded, signed, search)
        except _FAULTS as error:
            failure = _invalid(str(error))
        except Refused as error:
            failure = error
        else:
            return Timestamp(info.gen_time, info.accuracy, info.lower, info.upper, chain)
    raise failure


def _verify_signer(encoded: bytes, message: cms.SignedData, search: _PathSearch) -> tuple[Certificate, ...]:
    """Verify one signer of a token and return its chain. Raises Refused or one of _FAULTS."""
    signer = cms.read_signer(encoded)
    certificate = _signing_certificate(signer, message.certificates)
    if certificate.public_key is None:
        raise UnsupportedAlgorithmError(f"the authority's key: {certificate.key_name}")
    cms.verify_signer(signer, certificate.public_key, message)
    chain = search.find(certificate)
    signing_time = signer.attribute(SIGNING_TIME)
    if signing_time is not None:
        try:
            check_chain_valid_at(chain, asn1.decode_time(signing_time))
        except Refused as error:
            raise _invalid(f"its signing time: {error.detail}") from None
    return chain


def _signing_certificate(signer: cms.Signer, certificates: Sequence[Certificate]) -> Certificate:
    """The certificate that the first ESSCertIDv2 of signingCertificateV2 binds (RFC 5035 sections 3 and 4).

    Version 1 of the attribute binds by SHA-1 and is not accepted. Where ESSCertIDv2 names issuer and serial number,
    they decide and not the unsigned `sid`, as in notation.
    """
    value = signer.attribute(SIGNING_CERTIFICATE_V2)
    if value is None:
        raise MalformedASN1Error("the signed attribute signingCertificateV2 is absent")
    what = "signingCertificateV2"
    identifiers = asn1.open_sequence(asn1.open_sequence(value, what).read(asn1.SEQUENCE, "certificates"), what)
    reader = asn1.open_sequence(identifiers.read(asn1.SEQUENCE, "ESSCertIDv2"), "ESSCertIDv2")
    algorithm = reader.optional(asn1.SEQUENCE)
    hash_name = "sha256" if algorithm is None else read_hash(algorithm)
    digest = reader.read(asn1.OCTET_STRING, "certificate hash").content
    named = reader.optional(asn1.SEQUENCE)
    reader.finish()
    issuer, serial = (signer.issuer, signer.serial) if named is None else _read_issuer_serial(named)
    candidates = [found for found in certificates if found.issuer == issuer and found.serial == serial]
    if not candidates:
        raise MalformedASN1Error("the authority's certificate is not in the token")
    for certificate in candidates:
        if hashlib.new(hash_name, certificate.der).digest() == digest:
            return certificate
    raise WrongSignatureError("the authority's certificate is not the one that signingCertificateV2 binds")


def _read_issuer_serial(element: Element) -> tuple[bytes, int]:
    reader = asn1.open_sequence(element, "issuerSerial")
    names = asn1.open_sequence(reader.read(asn1.SEQUENCE, "issuer"), "issuer")
    name = names.read(_DIRECTORY_NAME, "directory name").content
    names.finish()
    serial = asn1.decode_integer(reader.read(asn1.INTEGER, "serial number"))
    reader.finish()
    return name, serial


def _authority_name(wrapped: Element | None) -> str:
    """The name in `tsa`; empty when it is absent, of another kind than a directory name, or cannot be read."""
    if wrapped is None:
        return ""
    try:
        return read_name(asn1.read_whole(wrapped.content, _DIRECTORY_NAME, "tsa").content)[1]
    except MalformedASN1Error:
        return ""


def _signer_name(message: cms.SignedData) -> str:
    for encoded in message.signers:
        try:
            signer = cms.read_signer(encoded)
        except _FAULTS:
            continue
        for certificate in message.certificates:
            if (certificate.issuer, certificate.serial) == (signer.issuer, signer.serial):
                return certificate.subject_text
    return ""


# -- path -------------------------------------------------------------------------------------------------------------


class _PathSearch:
    """Depth-first search through the certificates of a token, with one budget for all its signers."""

    def __init__(self, pool: Collection[Certificate], roots: Collection[Certificate], at: datetime) -> None:
        self._roots = dict.fromkeys(root for root in roots if root.is_self_issued)  # a set that keeps the order
        self._by_subject: dict[bytes, list[Certificate]] = {}
        for certificate in dict.fromkeys((*self._roots, *pool)):  # trusted roots first: the shortest paths
            self._by_subject.setdefault(certificate.subject, []).append(certificate)
        self._at = at
        self._steps = MAX_PATH_STEPS
        self._signatures = MAX_PATH_SIGNATURES
        self._links: dict[tuple[Certificate, Certificate], str] = {}
        self._obstacle = ""

    def find(self, signer: Certificate) -> tuple[Certificate, ...]:
        """Find a path from the authority's certificate to a trusted root that keeps the rules of time-stamping chains.

        Raises:
            Refused: TIMESTAMP_INVALID when the authority's certificate or every path breaks a rule; TIMESTAMP_UNTRUSTED
                when there is no path, or the search takes more than MAX_PATH_STEPS or MAX_PATH_SIGNATURES.
        """
        try:
            check_valid_at(signer, self._at)
        except Refused as error:
            raise _invalid(f"at the time it states, {error.detail}") from None
        self._obstacle = f'a certificate issued by "{signer.issuer_text}"'
        failure: Refused | None = None
        for path in islice(self._extend((signer,)), MAX_PATHS):
            try:
                check_timestamping_chain(path)
            except Refused as error:
                failure = _invalid(error.detail)
            else:
                return path
        raise failure or Refused(
            "TIMESTAMP_UNTRUSTED",
            f'no path leads from the time-stamp authority "{signer.subject_text}" to a trusted root',
            expected=f"one of {len(self._roots)} trusted roots",
            found=self._obstacle,
        )

    def _extend(self, path: tuple[Certificate, ...]) -> Iterator[tuple[Certificate, ...]]:
        """All continuations of a path up to a trusted root."""
        if len(path) == MAX_CHAIN_LENGTH:
            return
        below = path[-1]
        for candidate in self._by_subject.get(below.issuer, ()):
            if candidate in path:
                continue
            obstacle = self._check_link(below, candidate)
            if obstacle:
                self._obstacle = obstacle
            elif candidate in self._roots:
                yield (*path, candidate)
            else:
                yield from self._extend((*path, candidate))

    def _check_link(self, below: Certificate, candidate: Certificate) -> str:
        """Why `candidate` cannot stand above `below` in a path; empty when it can."""
        obstacle = self._links.get((below, candidate))
        self._steps -= 1
        self._signatures -= obstacle is None
        if self._steps < 0 or self._signatures < 0:
            raise Refused("TIMESTAMP_UNTRUSTED", "the certificates of the time-stamp token form too many paths")
        if obstacle is None:
            obstacle = self._links[below, candidate] = self._find_obstacle(below, candidate)
        return obstacle

    def _find_obstacle(self, below: Certificate, candidate: Certificate) -> str:
        purpose = candidate.extended_key_usage
        if purpose is not None and not {TIME_STAMPING, ANY_PURPOSE}.intersection(purpose.purposes):
            return f'the certificate "{candidate.subject_text}", whose extKeyUsage excludes time-stamping'
        try:
            check_valid_at(candidate, self._at)
            check_issued_by(below, candidate)
        except Refused as error:
            return error.detail
        if candidate not in self._roots and is_self_signed(candidate):
            return f'the root "{candidate.subject_text}", which is not among the trusted roots'
        return ""
