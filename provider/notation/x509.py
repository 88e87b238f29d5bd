"""One X.509 certificate, read strictly and whole. Nothing is verified here.

Rules:
- The reader is our own and refuses what is not DER, so that nothing warns, raises lazily, or reads one extension only
  when all are well formed. Three extensions must be well formed themselves; see extensions.py.
- A key of a kind or size that is not accepted does not make a certificate unreadable: whoever uses the key refuses it.
- Equal octets give the same object while it is remembered: names, keys and extensions are read once.

What does not belong here: rules for chains, trust and time (certificates.py).
Source: RFC 5280 section 4.1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Final

from provider.errors import Refused
from provider.notation import asn1
from provider.notation.asn1 import MalformedASN1Error
from provider.notation.extensions import (
    BasicConstraints,
    ExtendedKeyUsage,
    Extension,
    Extensions,
    KeyUsage,
    read_extensions,
)
from provider.notation.names import RelativeName, read_name
from provider.notation.signature_algorithms import PublicKey, UnsupportedAlgorithmError, read_public_key

MAX_CERTIFICATE_BYTES: Final = 32 * 1024  # code-signing certificates have 1 to 3 KiB

_PARSED_CERTIFICATES: Final = 512  # certificates remembered; stores, authorities and the signers of a few days


@dataclass(frozen=True, slots=True, eq=False)
class Certificate:
    """A certificate that was read whole. Nothing of it is verified by that. Equal to another when the octets are.

    Attributes:
        der: the octets.
        version: 1, 2 or 3.
        serial: the serial number, not negative.
        issuer: DER of the issuer's name, as it stands in the certificate.
        subject: DER of the subject's name, as it stands in the certificate.
        issuer_text: the issuer's name for people.
        subject_text: the subject's name for people.
        subject_attributes: the subject's relative names in the order of the encoding.
        not_before: first second of validity (aware, UTC).
        not_after: last second of validity (aware, UTC).
        public_key: the subject's key; None when its kind or size is not accepted, and then `key_name` says why.
        key_name: `RSA-3072`, `P-256`, `Ed25519` or the reason why it is not accepted.
        public_key_info: DER of SubjectPublicKeyInfo.
        public_key_octets: content of its BIT STRING, which OCSP hashes to name an issuer.
        signed_part: DER of TBSCertificate, what the issuer signed.
        signature_algorithm: DER of the AlgorithmIdentifier of the issuer's signature.
        signature: the issuer's signature.
        decoded_extensions: the extensions; the usual ones have properties of their own here.
    """

    der: bytes
    version: int
    serial: int
    issuer: bytes
    subject: bytes
    issuer_text: str
    subject_text: str
    subject_attributes: tuple[RelativeName, ...]
    not_before: datetime
    not_after: datetime
    public_key: PublicKey | None
    key_name: str
    public_key_info: bytes
    public_key_octets: bytes
    signed_part: bytes
    signature_algorithm: bytes
    signature: bytes
    decoded_extensions: Extensions

    @classmethod
    def parse(cls, der: bytes) -> Certificate:
        """Read one certificate in DER. Equal octets give the same object while it is remembered.

        Raises:
            Refused: CERTIFICATE_CHAIN_INVALID, for anything that is not one certificate in DER of at most
                MAX_CERTIFICATE_BYTES. A key or signature of a kind that is not accepted is refused when it is used, not
                here.
        """
        if len(der) > MAX_CERTIFICATE_BYTES:
            raise Refused(
                "CERTIFICATE_CHAIN_INVALID",
                f"a certificate has {len(der)} bytes",
                expected=f"at most {MAX_CERTIFICATE_BYTES}",
            )
        try:
            return _parse(bytes(der))
        except MalformedASN1Error as error:
            raise Refused("CERTIFICATE_CHAIN_INVALID", f"a certificate cannot be read: {error}") from None

    @property
    def extensions(self) -> Mapping[str, Extension]:
        """All extensions as octets, by dotted object identifier."""
        return self.decoded_extensions.by_identifier

    @property
    def basic_constraints(self) -> BasicConstraints | None:
        """The basicConstraints, None when absent."""
        return self.decoded_extensions.basic_constraints

    @property
    def key_usage(self) -> KeyUsage | None:
        """The keyUsage, None when absent."""
        return self.decoded_extensions.key_usage

    @property
    def extended_key_usage(self) -> ExtendedKeyUsage | None:
        """The extKeyUsage, None when absent."""
        return self.decoded_extensions.extended_key_usage

    @property
    def ocsp_urls(self) -> tuple[str, ...]:
        """URIs of OCSP responders in order, of any scheme. See also `decoded_extensions.unreadable`."""
        return self.decoded_extensions.ocsp_urls

    @property
    def crl_urls(self) -> tuple[str, ...]:
        """URIs of CRLs in order, of any scheme. See also `decoded_extensions.unreadable`."""
        return self.decoded_extensions.crl_urls

    @property
    def is_authority(self) -> bool:
        """Whether basicConstraints says cA."""
        constraints = self.basic_constraints
        return constraints is not None and constraints.ca

    @property
    def is_self_issued(self) -> bool:
        """Whether subject and issuer are the same name. Says nothing of the signature."""
        return self.subject == self.issuer

    @property
    def sha256_fingerprint(self) -> str:
        """SHA-256 of the octets in lower-case hex, as tools show it."""
        return hashlib.sha256(self.der).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Certificate) and self.der == other.der

    def __hash__(self) -> int:
        return hash(self.der)

    def __repr__(self) -> str:
        return f"Certificate({self.subject_text!r}, serial={self.serial:#x})"


@lru_cache(maxsize=_PARSED_CERTIFICATES)
def _parse(der: bytes) -> Certificate:
    """Certificate of RFC 5280 section 4.1. Raises MalformedASN1Error."""
    outer = asn1.open_sequence(asn1.read_whole(der, asn1.SEQUENCE, "certificate"), "certificate")
    signed_part = outer.read(asn1.SEQUENCE, "TBSCertificate")
    signature_algorithm = outer.read(asn1.SEQUENCE, "signature algorithm")
    signature = asn1.decode_whole_octets(outer.read(asn1.BIT_STRING, "signature"))
    outer.finish()

    inner = asn1.open_sequence(signed_part, "TBSCertificate")
    version = _read_version(inner)
    serial = asn1.decode_integer(inner.read(asn1.INTEGER, "serial number"))
    if serial < 0:
        raise MalformedASN1Error("the serial number is negative")
    if inner.read(asn1.SEQUENCE, "signature algorithm").encoded != signature_algorithm.encoded:
        raise MalformedASN1Error("the signature algorithm inside differs from the one outside")
    issuer = inner.read(asn1.SEQUENCE, "issuer")
    validity = asn1.open_sequence(inner.read(asn1.SEQUENCE, "validity"), "validity")
    not_before, not_after = asn1.decode_time(validity.read_any()), asn1.decode_time(validity.read_any())
    validity.finish()
    subject = inner.read(asn1.SEQUENCE, "subject")
    public_key_info = inner.read(asn1.SEQUENCE, "public key")
    if version >= 2:  # unique identifiers, long out of use
        inner.optional(asn1.context(1, constructed=False))
        inner.optional(asn1.context(2, constructed=False))
    wrapped = inner.optional(asn1.context(3)) if version == 3 else None
    inner.finish()

    key, key_name, key_octets = _read_key(public_key_info)
    subject_attributes, subject_text = read_name(subject.encoded)
    _, issuer_text = read_name(issuer.encoded)
    return Certificate(
        der=der,
        version=version,
        serial=serial,
        issuer=issuer.encoded,
        subject=subject.encoded,
        issuer_text=issuer_text,
        subject_text=subject_text,
        subject_attributes=subject_attributes,
        not_before=not_before,
        not_after=not_after,
        public_key=key,
        key_name=key_name,
        public_key_info=public_key_info.encoded,
        public_key_octets=key_octets,
        signed_part=signed_part.encoded,
        signature_algorithm=signature_algorithm.encoded,
        signature=signature,
        decoded_extensions=read_extensions(
            None if wrapped is None else asn1.read_whole(wrapped.content, asn1.SEQUENCE, "extensions")
        ),
    )


def _read_version(reader: asn1.Reader) -> int:
    wrapped = reader.optional(asn1.context(0))
    if wrapped is None:
        return 1
    number = asn1.decode_integer(asn1.read_whole(wrapped.content, asn1.INTEGER, "version"))
    if number not in (0, 1, 2):  # 0 should have been left out, and is met
        raise MalformedASN1Error("the certificate is of an unknown version")
    return number + 1


def _read_key(element: asn1.Element) -> tuple[PublicKey | None, str, bytes]:
    reader = asn1.open_sequence(element, "public key")
    reader.read(asn1.SEQUENCE, "algorithm")
    octets = asn1.decode_whole_octets(reader.read(asn1.BIT_STRING, "key"))
    try:
        return *read_public_key(element), octets
    except UnsupportedAlgorithmError as error:
        return None, str(error), octets
