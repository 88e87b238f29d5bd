"""OCSP: the request for one certificate, and what a response proves about it.

Rules:
- A request names the certificate by SHA-1, as every responder understands, and carries no nonce, so that a responder
  may answer with a response it signed before. It goes by GET when short enough, else by POST.
- A response counts only if it is successful, signed by the issuer or by a responder that the issuer appointed, speaks
  of this serial of this issuer, and is current. Anything else says nothing, and the next server may be asked.
- An appointed responder was issued by the issuer itself, is valid now and carries the purpose OCSPSigning; without
  these rules every certificate of an authority could vouch for itself. Whether the responder was revoked is for the
  caller to find out, unless it carries id-pkix-ocsp-nocheck.
- No extension is processed but invalidityDate; one that is critical makes the response unusable.

What does not belong here: fetching, which server to ask next and what follows from the answer (revocation.py).
Sources: RFC 6960; notaryproject/specifications trust-store-trust-policy.md "Revocation Checking with OCSP"; the limits
are those of notation-core-go.
"""

from __future__ import annotations

import base64
import enum
import hashlib
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from provider.errors import Refused, Undecided
from provider.notation import asn1
from provider.notation.asn1 import MalformedASN1Error, Reader
from provider.notation.certificates import OCSP_SIGNING, Certificate, check_issued_by, check_valid_at
from provider.notation.extensions import (
    BASIC_CONSTRAINTS,
    CRL_DISTRIBUTION_POINTS,
    EXTENDED_KEY_USAGE,
    KEY_USAGE,
    Extension,
)
from provider.notation.signature_algorithms import HASH_NAMES, read_algorithm
from provider.notation.signed_status import (
    INVALIDITY_DATE,
    SignedPart,
    check_current,
    check_not_from_future,
    read_extension_list,
    read_invalidity_date,
    unknown,
)

MAX_RESPONSE_BYTES: Final = 20_480  # notation-core-go; real responses have 0.5 to 4 KiB
RESPONSE_TIMEOUT_SECONDS: Final = 2.0  # for one request; the specification's number
MAX_GET_CHARACTERS: Final = 254  # of the request in base64, before and after escaping; RFC 6960 appendix A.1: under 255
MAX_ANSWERS: Final = 100  # single responses in one response; responders that were asked for one give one
MAX_RESPONDER_CERTIFICATES: Final = 8  # certificates in one response; responders send one or its chain

NO_CHECK: Final = "1.3.6.1.5.5.7.48.1.5"  # id-pkix-ocsp-nocheck, RFC 6960 section 4.2.2.2.1

_BASIC_RESPONSE: Final = "1.3.6.1.5.5.7.48.1.1"
_SHA1: Final = "1.3.14.3.2.26"
_SUBJECT_ALTERNATIVE_NAME: Final = "2.5.29.17"
_CERTIFICATE_POLICIES: Final = "2.5.29.32"
_ENUMERATED: Final = 0x0A
_GOOD: Final = asn1.context(0, constructed=False)
_REVOKED: Final = asn1.context(1)
_UNKNOWN: Final = asn1.context(2, constructed=False)
_INTERNAL_ERROR: Final = 2
_TRY_LATER: Final = 3
_STATUSES: Final = {  # of a response that is not successful
    1: "malformedRequest",
    _INTERNAL_ERROR: "internalError",
    _TRY_LATER: "tryLater",
    5: "sigRequired",
    6: "unauthorized",
}
_HASHES_OF_NAMES: Final = {_SHA1: "sha1", **HASH_NAMES}  # SHA-1 finds the certificate here, it protects nothing
_KNOWN_TO_RESPONDERS: Final = frozenset(
    {
        BASIC_CONSTRAINTS,
        KEY_USAGE,
        EXTENDED_KEY_USAGE,
        CRL_DISTRIBUTION_POINTS,
        NO_CHECK,
        _SUBJECT_ALTERNATIVE_NAME,
        _CERTIFICATE_POLICIES,
    }
)
_RESPONDER_USAGES: Final = frozenset({"digitalSignature", "contentCommitment"})
_WHAT: Final = "OCSP response"


@dataclass(frozen=True, slots=True)
class OcspQuery:
    """A question to one responder.

    Attributes:
        url: the responder, an http URL as the certificate has it.
        request_der: OCSPRequest in DER.
    """

    url: str
    request_der: bytes

    @classmethod
    def build(cls, url: str, certificate: Certificate, issuer: Certificate) -> OcspQuery:
        """The question after one certificate of `issuer`."""
        certificate_identifier = asn1.encode(
            asn1.SEQUENCE,
            asn1.encode(asn1.SEQUENCE, asn1.encode_object_identifier(_SHA1), asn1.encode(asn1.NULL)),
            asn1.encode(asn1.OCTET_STRING, _hash("sha1", issuer.subject)),
            asn1.encode(asn1.OCTET_STRING, _hash("sha1", issuer.public_key_octets)),
            asn1.encode_integer(certificate.serial),
        )
        request = certificate_identifier
        for _ in ("Request", "requestList", "TBSRequest", "OCSPRequest"):
            request = asn1.encode(asn1.SEQUENCE, request)
        return cls(url, request)

    @property
    def get_url(self) -> str | None:
        """Where to GET the answer; None when the request is too long for that and must be POSTed to `url`."""
        text = base64.b64encode(self.request_der).decode("ascii")
        escaped = text.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D")
        if len(text) > MAX_GET_CHARACTERS or len(escaped) > MAX_GET_CHARACTERS or "?" in self.url or "#" in self.url:
            return None
        return f"{self.url.rstrip('/')}/{escaped}"


def _hash(name: str, data: bytes) -> bytes:
    return hashlib.new(name, data, usedforsecurity=False).digest()


class CertStatus(enum.Enum):
    """What a responder says of a certificate (RFC 6960 section 4.2.1)."""

    GOOD = "good"
    UNKNOWN = "unknown"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True)
class SingleResponse:
    """What a response says of one certificate.

    Attributes:
        hash_name: hash with which the certificate's issuer is named.
        issuer_name_hash: hash of the issuer's name.
        issuer_key_hash: hash of the issuer's key.
        serial: the certificate's serial number.
        status: its status.
        revoked_at: when it was revoked; None unless it was.
        this_update: when that was known to be right.
        next_update: when something newer will be known; None when the responder does not say.
        extensions: by dotted object identifier.
    """

    hash_name: str
    issuer_name_hash: bytes
    issuer_key_hash: bytes
    serial: int
    status: CertStatus
    revoked_at: datetime | None
    this_update: datetime
    next_update: datetime | None
    extensions: dict[str, Extension]

    def is_about(self, certificate: Certificate, issuer: Certificate) -> bool:
        """Whether this speaks of that certificate of that issuer."""
        return (
            self.serial == certificate.serial
            and self.issuer_name_hash == _hash(self.hash_name, issuer.subject)
            and self.issuer_key_hash == _hash(self.hash_name, issuer.public_key_octets)
        )


@dataclass(frozen=True, slots=True, eq=False)
class OcspResponse:
    """A successful response that was read. Nothing of it is verified by that; `judge` does.

    Kept for a second use it costs no signature operation (SignedPart remembers).

    Attributes:
        signed: what the responder signed.
        responder_name: DER of the responder's name; None when it is named by its key.
        responder_key_hash: SHA-1 of the responder's key; None when it is named by its name.
        answers: what it says of each certificate.
        critical_extensions: identifiers of the critical extensions of the whole response.
        certificates: certificates in DER that the responder sent along; untrusted, not parsed.
    """

    signed: SignedPart
    responder_name: bytes | None
    responder_key_hash: bytes | None
    answers: tuple[SingleResponse, ...]
    critical_extensions: tuple[str, ...]
    certificates: tuple[bytes, ...]

    @classmethod
    def parse(cls, der: bytes) -> OcspResponse:
        """Read a response.

        Args:
            der: foreign bytes, at most MAX_RESPONSE_BYTES.

        Raises:
            Refused: REVOCATION_UNKNOWN, when it is malformed or the responder does not answer the question.
            Undecided: REVOCATION_UNAVAILABLE, when the responder says that it cannot answer now.
        """
        if len(der) > MAX_RESPONSE_BYTES:
            raise unknown(f"the {_WHAT} is too large", expected=f"at most {MAX_RESPONSE_BYTES} bytes")
        try:
            return _parse(der)
        except MalformedASN1Error as error:
            raise unknown(f"the {_WHAT} cannot be read: {error}") from None

    @property
    def weight(self) -> int:
        """About how many bytes of memory it takes."""
        return 2 * len(self.signed.octets) + sum(map(len, self.certificates)) + 2048

    def find_signer(self, issuer: Certificate, at: datetime) -> Certificate:
        """Find who signed: the issuer, or a responder that it appointed and that is valid at `at`.

        Raises:
            Refused: REVOCATION_UNKNOWN.
        """
        fault = unknown(f"the {_WHAT} is neither by {issuer.subject_text!r} nor by a certificate that came with it")
        if self._names(issuer):
            try:
                self.signed.check_signed_by(issuer)
            except Refused as error:
                fault = error
            else:
                return issuer
        for der in self.certificates:
            try:
                candidate = Certificate.parse(der)
                if self._names(candidate):
                    check_appointed(candidate, issuer, at)
                    self.signed.check_signed_by(candidate)
                    return candidate
            except Refused as error:
                fault = error
        raise unknown(fault.detail)

    def _names(self, certificate: Certificate) -> bool:
        if self.responder_name is not None:
            return self.responder_name == certificate.subject
        return self.responder_key_hash == _hash("sha1", certificate.public_key_octets)


def check_appointed(responder: Certificate, issuer: Certificate, at: datetime) -> None:
    """Check that `issuer` appointed a responder, by RFC 6960 section 4.2.2.2. Its own revocation is not checked.

    Raises:
        Refused: REVOCATION_UNKNOWN, naming the responder.
    """
    who = f"the OCSP responder {responder.subject_text!r}"
    purpose, usage = responder.extended_key_usage, responder.key_usage
    if purpose is None or OCSP_SIGNING not in purpose.purposes:  # anyExtendedKeyUsage is not enough
        raise unknown(f"{who} is not appointed", expected="the extended key usage OCSPSigning")
    if usage is not None and not usage.usages & _RESPONDER_USAGES:
        raise unknown(f"the keyUsage of {who} does not allow signatures")
    for identifier, extension in responder.extensions.items():
        if extension.critical and identifier not in _KNOWN_TO_RESPONDERS:
            raise unknown(f"{who} has the critical extension {identifier}, which is not processed")
    if responder.issuer != issuer.subject:
        raise unknown(
            f"{who} is appointed by another authority", expected=issuer.subject_text, found=responder.issuer_text
        )
    try:
        check_valid_at(responder, at)
        check_issued_by(responder, issuer)
    except Refused as error:
        raise unknown(f"{who} cannot be trusted: {error.detail}") from None


@dataclass(frozen=True, slots=True)
class OcspFinding:
    """What a good response says.

    Attributes:
        status: the certificate's status, GOOD also for a revocation that does not reach back to the signing time.
        detail: one line for people.
        signer: who signed the response: the issuer, or an appointed responder whose revocation is still to be checked.
        next_update: until when the response may be used.
    """

    status: CertStatus
    detail: str
    signer: Certificate
    next_update: datetime


def judge(
    response: OcspResponse,
    certificate: Certificate,
    issuer: Certificate,
    *,
    at: datetime,
    signing_time: datetime | None,
) -> OcspFinding:
    """Judge what a response proves about a certificate.

    Args:
        response: what the responder answered.
        certificate: the certificate in question.
        issuer: its issuer; that it is so was checked.
        at: the time of the decision (aware, UTC).
        signing_time: a trusted time by which the signature existed, None when there is none. A certificate that became
            invalid only after it is good.

    Raises:
        Refused: REVOCATION_UNKNOWN, when the response says nothing that counts.
    """
    if response.critical_extensions:
        raise unknown(
            f"the {_WHAT} has the critical extension {response.critical_extensions[0]}, which is not processed"
        )
    answers = [answer for answer in response.answers if answer.is_about(certificate, issuer)]
    if not answers:
        raise unknown(f"the {_WHAT} does not speak of the certificate {certificate.subject_text!r} of its issuer")
    signer = response.find_signer(issuer, at)
    if signer == certificate:
        raise unknown(f"the certificate {certificate.subject_text!r} vouches for itself")
    # Several answers about one certificate are odd but allowed; the worst of them counts.
    findings = [_judge_answer(answer, signer, at, signing_time) for answer in answers]
    return max(findings, key=lambda finding: tuple(CertStatus).index(finding.status))


def _judge_answer(
    answer: SingleResponse, signer: Certificate, at: datetime, signing_time: datetime | None
) -> OcspFinding:
    for identifier, extension in answer.extensions.items():
        if extension.critical:
            raise unknown(f"the {_WHAT} has the critical extension {identifier}, which is not processed")
    check_not_from_future(_WHAT, answer.this_update, at)
    next_update = check_current(_WHAT, answer.next_update, at)
    if answer.revoked_at is None:
        return OcspFinding(answer.status, f"the responder says {answer.status.value}", signer, next_update)
    detail = f"the responder says revoked on {answer.revoked_at.isoformat()}"
    invalidity = answer.extensions.get(INVALIDITY_DATE)
    if invalidity is not None and signing_time is not None:
        try:
            invalid_from = read_invalidity_date(invalidity.value)
        except MalformedASN1Error as error:
            raise unknown(f"the {_WHAT} cannot be read: {error}") from None
        if signing_time < invalid_from:
            detail += f", invalid from {invalid_from.isoformat()}, after the signature was made"
            return OcspFinding(CertStatus.GOOD, detail, signer, next_update)
    return OcspFinding(CertStatus.REVOKED, detail, signer, next_update)


# -- reading (RFC 6960 section 4.2.1) ---------------------------------------------------------------------------------


def _parse(der: bytes) -> OcspResponse:
    outer = asn1.open_sequence(asn1.read_whole(der, asn1.SEQUENCE, _WHAT), _WHAT)
    status = asn1.decode_integer(outer.read(_ENUMERATED, "responseStatus"), _ENUMERATED)
    if status in (_INTERNAL_ERROR, _TRY_LATER):
        raise Undecided("REVOCATION_UNAVAILABLE", "the OCSP responder cannot answer now", found=_STATUSES[status])
    if status != 0:
        raise unknown("the OCSP responder did not answer", found=_STATUSES.get(status, f"status {status}"))
    wrapped = outer.read(asn1.context(0), "responseBytes")
    outer.finish()
    response_bytes = asn1.open_sequence(asn1.read_whole(wrapped.content, asn1.SEQUENCE, "responseBytes"), _WHAT)
    kind = asn1.decode_object_identifier(response_bytes.read(asn1.OBJECT_IDENTIFIER, "responseType"))
    content = asn1.decode_octets(response_bytes.read(asn1.OCTET_STRING, "response"))
    response_bytes.finish()
    if kind != _BASIC_RESPONSE:
        raise unknown("the OCSP response is of a kind that is not supported", expected=_BASIC_RESPONSE, found=kind)

    basic = asn1.open_sequence(asn1.read_whole(content, asn1.SEQUENCE, "BasicOCSPResponse"), "BasicOCSPResponse")
    data = basic.read(asn1.SEQUENCE, "tbsResponseData")
    algorithm = basic.read(asn1.SEQUENCE, "signatureAlgorithm")
    signature = asn1.decode_whole_octets(basic.read(asn1.BIT_STRING, "signature"))
    certificates = _read_certificates(basic)
    basic.finish()

    inner = asn1.open_sequence(data, "ResponseData")
    version = inner.optional(asn1.context(0))
    if version is not None and version.content != asn1.encode_integer(0):  # v1 should be left out, and is met
        raise MalformedASN1Error("the response is of an unknown version")
    name, key_hash = _read_responder(inner)
    inner.read(asn1.GENERALIZED_TIME, "producedAt")
    answers = tuple(
        _read_single(asn1.open_sequence(element, "SingleResponse"))
        for element in _sequence_of(inner.read(asn1.SEQUENCE, "responses"), MAX_ANSWERS)
    )
    extensions = _read_extensions(inner)
    inner.finish()
    return OcspResponse(
        signed=SignedPart(_WHAT, data.encoded, algorithm.encoded, signature),
        responder_name=name,
        responder_key_hash=key_hash,
        answers=answers,
        critical_extensions=tuple(key for key, extension in extensions.items() if extension.critical),
        certificates=certificates,
    )


def _sequence_of(element: asn1.Element, limit: int) -> list[asn1.Element]:
    found: list[asn1.Element] = []
    for part in asn1.open_sequence(element, _WHAT).rest():
        if len(found) == limit:
            raise MalformedASN1Error(f"a list has more than {limit} members")
        found.append(part)
    return found


def _read_certificates(basic: Reader) -> tuple[bytes, ...]:
    wrapped = basic.optional(asn1.context(0))
    if wrapped is None:
        return ()
    listed = asn1.read_whole(wrapped.content, asn1.SEQUENCE, "certs")
    return tuple(element.encoded for element in _sequence_of(listed, MAX_RESPONDER_CERTIFICATES))


def _read_responder(inner: Reader) -> tuple[bytes | None, bytes | None]:
    by_name = inner.optional(asn1.context(1))
    if by_name is not None:
        return asn1.read_whole(by_name.content, asn1.SEQUENCE, "responderID").encoded, None
    by_key = inner.read(asn1.context(2), "responderID")
    return None, asn1.read_whole(by_key.content, asn1.OCTET_STRING, "responderID").content


def _read_single(reader: Reader) -> SingleResponse:
    identifier = asn1.open_sequence(reader.read(asn1.SEQUENCE, "certID"), "certID")
    hash_identifier, _ = read_algorithm(identifier.read(asn1.SEQUENCE, "hashAlgorithm"))
    name_hash = asn1.decode_octets(identifier.read(asn1.OCTET_STRING, "issuerNameHash"))
    key_hash = asn1.decode_octets(identifier.read(asn1.OCTET_STRING, "issuerKeyHash"))
    serial = asn1.decode_integer(identifier.read(asn1.INTEGER, "serialNumber"))
    identifier.finish()
    if hash_identifier not in _HASHES_OF_NAMES:
        raise MalformedASN1Error(f"the certificate is named with the hash {hash_identifier}")
    status, revoked_at = _read_status(reader)
    this_update = asn1.decode_time(reader.read(asn1.GENERALIZED_TIME, "thisUpdate"))
    wrapped = reader.optional(asn1.context(0))
    next_update = None
    if wrapped is not None:
        next_update = asn1.decode_time(asn1.read_whole(wrapped.content, asn1.GENERALIZED_TIME, "nextUpdate"))
    extensions = _read_extensions(reader)
    reader.finish()
    return SingleResponse(
        hash_name=_HASHES_OF_NAMES[hash_identifier],
        issuer_name_hash=name_hash,
        issuer_key_hash=key_hash,
        serial=serial,
        status=status,
        revoked_at=revoked_at,
        this_update=this_update,
        next_update=next_update,
        extensions=extensions,
    )


def _read_status(reader: Reader) -> tuple[CertStatus, datetime | None]:
    """CertStatus, with the time of a revocation. The reason is not read: whatever it is, the certificate is revoked."""
    element = reader.read_any()
    if element.tag == _REVOKED:
        return CertStatus.REVOKED, asn1.decode_time(
            Reader(element.content, "RevokedInfo").read(asn1.GENERALIZED_TIME, "revocationTime")
        )
    if element.tag not in (_GOOD, _UNKNOWN) or element.content:
        raise MalformedASN1Error("the status of a certificate is none of good, revoked and unknown")
    return (CertStatus.GOOD if element.tag == _GOOD else CertStatus.UNKNOWN), None


def _read_extensions(reader: Reader) -> dict[str, Extension]:
    wrapped = reader.optional(asn1.context(1))
    return {} if wrapped is None else read_extension_list(wrapped.content)
