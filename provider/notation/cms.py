"""CMS SignedData (RFC 5652), as much of it as time-stamp tokens need: read it, and verify one signer.

Rules:
- ContentInfo holds SignedData of version 3 with attached content, and nothing follows it. Certificates are X.509 only.
- Signers are kept unread: one that is malformed must not hide another that is good.
- A signer is of version 1, has signed attributes, and its signature covers them as a SET OF in DER, whatever order
  they were sent in. contentType and messageDigest bind them to the content. No attribute that is read may occur twice.
- BER with definite lengths is made DER first, as notation does. The content is an octet string; that never touches it.

Errors are those of asn1.py and signature_algorithms.py; timestamp.py turns them into refusals.

What does not belong here: which certificate is the signer's, whether it is trusted, what the content means.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from provider.errors import Refused
from provider.notation import asn1
from provider.notation.asn1 import Element, MalformedASN1Error, Reader
from provider.notation.certificates import Certificate
from provider.notation.signature_algorithms import (
    PublicKey,
    WrongSignatureError,
    read_hash,
    read_signature_algorithm,
    verify_signature,
)

MAX_CERTIFICATES: Final = 32  # in one message; tokens carry 1 to 4
MAX_SIGNERS: Final = 8  # of one message; tokens have 1

SIGNED_DATA: Final = "1.2.840.113549.1.7.2"
CONTENT_TYPE: Final = "1.2.840.113549.1.9.3"
MESSAGE_DIGEST: Final = "1.2.840.113549.1.9.4"


@dataclass(frozen=True, slots=True)
class SignedData:
    """The parts of a message. Nothing is verified.

    Attributes:
        content_type: dotted identifier of what `content` is.
        content: the octets that were signed.
        certificates: what came along, in order; unsigned hints.
        signers: DER of each SignerInfo, for read_signer.
    """

    content_type: str
    content: bytes
    certificates: tuple[Certificate, ...]
    signers: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Signer:
    """One SignerInfo of version 1. Nothing is verified.

    Attributes:
        issuer: DER of the name of the issuer of the signer's certificate, as the unsigned `sid` says.
        serial: its serial number, likewise.
        digest: hash of the content: sha256, sha384 or sha512.
        attributes: the signed attributes: dotted identifier and values, in the order they were sent.
        signed_octets: what the signature covers: the attributes as SET OF in DER.
        signature_algorithm: the AlgorithmIdentifier.
        signature: the octets.
    """

    issuer: bytes
    serial: int
    digest: str
    attributes: tuple[tuple[str, tuple[Element, ...]], ...]
    signed_octets: bytes
    signature_algorithm: Element
    signature: bytes

    def attribute(self, identifier: str) -> Element | None:
        """The value of a signed attribute, None when it is absent.

        Raises:
            MalformedASN1Error: the attribute occurs twice, or has not exactly one value.
        """
        found = [values for kind, values in self.attributes if kind == identifier]
        if not found:
            return None
        if len(found) > 1 or len(found[0]) != 1:
            raise MalformedASN1Error(f"the signed attribute {identifier} has not exactly one value")
        return found[0][0]


def read_signed_data(data: bytes) -> SignedData:
    """Read a message in DER, or in BER with definite lengths.

    Raises:
        MalformedASN1Error: anything else, more than MAX_CERTIFICATES or MAX_SIGNERS, a certificate that cannot be read.
    """
    try:
        return _read_signed_data(data)
    except MalformedASN1Error:
        try:
            rewritten = asn1.to_der(data)
        except MalformedASN1Error:
            rewritten = data
        if rewritten == data:
            raise
        return _read_signed_data(rewritten)


def _read_signed_data(data: bytes) -> SignedData:
    outer = asn1.open_sequence(asn1.read_whole(data, asn1.SEQUENCE, "ContentInfo"), "ContentInfo")
    kind = asn1.decode_object_identifier(outer.read(asn1.OBJECT_IDENTIFIER, "content type"))
    if kind != SIGNED_DATA:
        raise MalformedASN1Error(f"the message is of type {kind}, not SignedData")
    wrapped = outer.read(asn1.context(0), "content")
    outer.finish()

    reader = asn1.open_sequence(asn1.read_whole(wrapped.content, asn1.SEQUENCE, "SignedData"), "SignedData")
    version = asn1.decode_integer(reader.read(asn1.INTEGER, "version"))
    if version != 3:
        raise MalformedASN1Error("the version of SignedData is not 3")
    reader.read(asn1.SET, "digest algorithms")  # a hint for one-pass processing
    content_type, content = _read_content(reader.read(asn1.SEQUENCE, "content"))
    certificates = reader.optional(asn1.context(0))
    reader.optional(asn1.context(1))  # revocation lists: an authority's own word on itself is not asked
    signers = reader.read(asn1.SET, "signers")
    reader.finish()
    return SignedData(
        content_type=content_type,
        content=content,
        certificates=() if certificates is None else _read_certificates(certificates),
        signers=tuple(element.encoded for element in _limited(signers, MAX_SIGNERS, "signers")),
    )


def _read_content(element: Element) -> tuple[str, bytes]:
    reader = asn1.open_sequence(element, "content")
    content_type = asn1.decode_object_identifier(reader.read(asn1.OBJECT_IDENTIFIER, "content type"))
    wrapped = reader.read(asn1.context(0), "attached content")
    reader.finish()
    return content_type, asn1.read_whole(wrapped.content, asn1.OCTET_STRING, "attached content").content


def _limited(element: Element, limit: int, what: str) -> list[Element]:
    found: list[Element] = []
    for part in Reader(element.content, what).rest():
        if len(found) == limit:
            raise MalformedASN1Error(f"there are more than {limit} {what}")
        found.append(part)
    return found


def _read_certificates(element: Element) -> tuple[Certificate, ...]:
    certificates = []
    for part in _limited(element, MAX_CERTIFICATES, "certificates"):
        if part.tag != asn1.SEQUENCE:
            raise MalformedASN1Error("a certificate is not of X.509")
        try:
            certificates.append(Certificate.parse(part.encoded))
        except Refused as error:
            raise MalformedASN1Error(error.detail) from None
    return tuple(certificates)


def read_signer(encoded: bytes) -> Signer:
    """Read one SignerInfo.

    Raises:
        MalformedASN1Error: not a SignerInfo of version 1 with signed attributes.
        UnsupportedAlgorithmError: another hash than SHA-256, SHA-384 and SHA-512.
    """
    reader = asn1.open_sequence(asn1.read_whole(encoded, asn1.SEQUENCE, "SignerInfo"), "SignerInfo")
    version = asn1.decode_integer(reader.read(asn1.INTEGER, "version"))
    if version != 1:
        raise MalformedASN1Error("the version of SignerInfo is not 1")
    identifier = asn1.open_sequence(reader.read(asn1.SEQUENCE, "issuer and serial number"), "issuer and serial number")
    issuer = identifier.read(asn1.SEQUENCE, "issuer").encoded
    serial = asn1.decode_integer(identifier.read(asn1.INTEGER, "serial number"))
    identifier.finish()
    digest = read_hash(reader.read(asn1.SEQUENCE, "digest algorithm"))
    attributes, signed_octets = _read_attributes(reader.read(asn1.context(0), "signed attributes"))
    signature_algorithm = reader.read(asn1.SEQUENCE, "signature algorithm")
    signature = reader.read(asn1.OCTET_STRING, "signature").content
    reader.optional(asn1.context(1))  # unsigned attributes
    reader.finish()
    return Signer(issuer, serial, digest, attributes, signed_octets, signature_algorithm, signature)


def _read_attributes(element: Element) -> tuple[tuple[tuple[str, tuple[Element, ...]], ...], bytes]:
    attributes = []
    encoded = []
    rewritten = asn1.read_whole(asn1.to_der(element.encoded), element.tag, "signed attributes")
    for part in Reader(rewritten.content, "signed attributes").rest():
        reader = asn1.open_sequence(part, "signed attribute")
        kind = asn1.decode_object_identifier(reader.read(asn1.OBJECT_IDENTIFIER, "type"))
        values = reader.read(asn1.SET, "values")
        reader.finish()
        attributes.append((kind, tuple(Reader(values.content, "values of a signed attribute").rest())))
        encoded.append(part.encoded)
    return tuple(attributes), asn1.encode_set_of(encoded)


def verify_signer(signer: Signer, key: PublicKey, message: SignedData) -> None:
    """Verify that the holder of `key` signed the content of the message through this signer.

    Raises:
        WrongSignatureError: contentType, messageDigest or the signature does not match.
        MalformedASN1Error, UnsupportedAlgorithmError: attributes or algorithm cannot be read or are not accepted.
    """
    content_type = signer.attribute(CONTENT_TYPE)
    if content_type is None or asn1.decode_object_identifier(content_type) != message.content_type:
        raise WrongSignatureError("the signed content type is absent or not that of the content")
    digest = signer.attribute(MESSAGE_DIGEST)
    if digest is None or asn1.decode_octets(digest) != hashlib.new(signer.digest, message.content).digest():
        raise WrongSignatureError("the signed message digest is absent or not that of the content")
    algorithm = read_signature_algorithm(signer.signature_algorithm, signer.digest)
    verify_signature(key, algorithm, signer.signature, signer.signed_octets)
