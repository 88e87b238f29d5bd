"""A time-stamp authority's hand: TSTInfo, signed attributes and the token around them, signed with a throw-away key.

Rules:
- `issue_token` makes what RFC 3161 with RFC 5816 demands, and nothing that verifiers differ on: DER throughout, SHA-256
  for the signature, signingCertificateV2 with issuer and serial number.
- The parts are functions of their own, so that tests can put together tokens that break one rule at a time.
- Time is an argument.

What does not belong here: HTTP (whoever serves tokens), checking tokens (provider/notation/timestamp.py).
Sources: RFC 3161 section 2.4, RFC 5652 sections 5 and 11, RFC 5035 section 3.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding

from provider.demo.pki import PrivateKey, der
from provider.notation import asn1

DEFAULT_POLICY: Final = "1.3.6.1.4.1.61000.1"

_HASHES: Final = {
    "sha1": "1.3.14.3.2.26",  # no verifier takes it
    "sha256": "2.16.840.1.101.3.4.2.1",
    "sha384": "2.16.840.1.101.3.4.2.2",
    "sha512": "2.16.840.1.101.3.4.2.3",
}
_SIGNED_DATA: Final = "1.2.840.113549.1.7.2"
_TST_INFO: Final = "1.2.840.113549.1.9.16.1.4"
_CONTENT_TYPE: Final = "1.2.840.113549.1.9.3"
_MESSAGE_DIGEST: Final = "1.2.840.113549.1.9.4"
_SIGNING_CERTIFICATE_V2: Final = "1.2.840.113549.1.9.16.2.47"
_SHA256_WITH_RSA: Final = "1.2.840.113549.1.1.11"
_ECDSA_WITH_SHA256: Final = "1.2.840.10045.4.3.2"


def issue_token(
    *,
    message_imprint: bytes,
    hash_algorithm: str,
    signer_key: PrivateKey,
    signer_certificate: x509.Certificate,
    certificates: Sequence[x509.Certificate],
    gen_time: datetime,
    accuracy_seconds: int | None = None,
    policy: str = DEFAULT_POLICY,
    serial: int = 1,
) -> bytes:
    """Issue a time-stamp token.

    Args:
        message_imprint: hash of what is stamped.
        hash_algorithm: name of that hash, as hashlib has it: sha256, sha384 or sha512.
        signer_key: key of the authority.
        signer_certificate: its certificate.
        certificates: what goes along, as a rule the signer's certificate and its issuers without the root.
        gen_time: the time to state (aware).
        accuracy_seconds: how far it may be off; None leaves it unsaid.
        policy: dotted identifier of the authority's policy.
        serial: serial number of the token.

    Returns:
        The TimeStampToken, DER of a CMS ContentInfo.
    """
    accuracy = None if accuracy_seconds is None else asn1.encode(asn1.SEQUENCE, asn1.encode_integer(accuracy_seconds))
    content = tst_info(
        message_imprint=message_imprint,
        hash_algorithm=hash_algorithm,
        gen_time=gen_time,
        accuracy=accuracy,
        policy=policy,
        serial=serial,
    )
    signer = signer_info(signed_attributes(content, signer_certificate), signer_key, signer_certificate)
    return signed_data(content, [der(certificate) for certificate in certificates], [signer])


def tst_info(
    *,
    message_imprint: bytes,
    hash_algorithm: str,
    gen_time: datetime,
    accuracy: bytes | None = None,
    policy: str = DEFAULT_POLICY,
    serial: int = 1,
    version: int = 1,
    rest: bytes = b"",
) -> bytes:
    """TSTInfo in DER. `accuracy` and `rest` (ordering, nonce, tsa, extensions) come encoded."""
    imprint = asn1.encode(
        asn1.SEQUENCE, algorithm_identifier(_HASHES[hash_algorithm]), asn1.encode(asn1.OCTET_STRING, message_imprint)
    )
    return asn1.encode(
        asn1.SEQUENCE,
        asn1.encode_integer(version),
        asn1.encode_object_identifier(policy),
        imprint,
        asn1.encode_integer(serial),
        generalized_time(gen_time),
        accuracy or b"",
        rest,
    )


def generalized_time(time: datetime) -> bytes:
    """GeneralizedTime in Z, with microseconds where there are any."""
    time = time.astimezone(UTC)
    fraction = f".{time.microsecond:06}".rstrip("0") if time.microsecond else ""
    return asn1.encode(asn1.GENERALIZED_TIME, f"{time.year:04}{time:%m%d%H%M%S}{fraction}Z".encode())


def algorithm_identifier(identifier: str) -> bytes:
    """AlgorithmIdentifier without parameters."""
    return asn1.encode(asn1.SEQUENCE, asn1.encode_object_identifier(identifier))


def attribute(identifier: str, *values: bytes) -> bytes:
    """An Attribute with encoded values."""
    return asn1.encode(asn1.SEQUENCE, asn1.encode_object_identifier(identifier), asn1.encode_set_of(values))


def signed_attributes(content: bytes, certificate: x509.Certificate, *, digest: str = "sha256") -> list[bytes]:
    """contentType, messageDigest and signingCertificateV2 for a content and a signer."""
    return [
        attribute(_CONTENT_TYPE, asn1.encode_object_identifier(_TST_INFO)),
        attribute(_MESSAGE_DIGEST, asn1.encode(asn1.OCTET_STRING, hashlib.new(digest, content).digest())),
        attribute(_SIGNING_CERTIFICATE_V2, signing_certificate(certificate)),
    ]


def signing_certificate(certificate: x509.Certificate) -> bytes:
    """SigningCertificateV2 that binds one certificate by SHA-256 (the default), issuer and serial number."""
    issuer = asn1.encode(asn1.SEQUENCE, asn1.encode(asn1.context(4), certificate.issuer.public_bytes()))
    bound = asn1.encode(
        asn1.SEQUENCE,
        asn1.encode(asn1.OCTET_STRING, hashlib.sha256(der(certificate)).digest()),
        asn1.encode(asn1.SEQUENCE, issuer, asn1.encode_integer(certificate.serial_number)),
    )
    return asn1.encode(asn1.SEQUENCE, asn1.encode(asn1.SEQUENCE, bound))


def signer_info(
    attributes: Sequence[bytes], key: PrivateKey, certificate: x509.Certificate, *, digest: str = "sha256"
) -> bytes:
    """SignerInfo: the attributes signed with SHA-256, by RSASSA-PKCS1-v1_5 or ECDSA as the key has it."""
    message = asn1.encode_set_of(attributes)
    if isinstance(key, ec.EllipticCurvePrivateKey):
        algorithm, signature = _ECDSA_WITH_SHA256, key.sign(message, ec.ECDSA(hashes.SHA256()))
    else:
        algorithm, signature = _SHA256_WITH_RSA, key.sign(message, padding.PKCS1v15(), hashes.SHA256())
    return assemble_signer(attributes, certificate, algorithm_identifier(algorithm), signature, digest=digest)


def assemble_signer(
    attributes: Sequence[bytes],
    certificate: x509.Certificate,
    signature_algorithm: bytes,
    signature: bytes,
    *,
    digest: str = "sha256",
) -> bytes:
    """SignerInfo around a signature that is there already."""
    return asn1.encode(
        asn1.SEQUENCE,
        asn1.encode_integer(1),
        asn1.encode(asn1.SEQUENCE, certificate.issuer.public_bytes(), asn1.encode_integer(certificate.serial_number)),
        algorithm_identifier(_HASHES[digest]),
        asn1.encode_set_of(attributes, asn1.context(0)),
        signature_algorithm,
        asn1.encode(asn1.OCTET_STRING, signature),
    )


def signed_data(
    content: bytes,
    certificates: Sequence[bytes],
    signers: Sequence[bytes],
    *,
    content_type: str = _TST_INFO,
    version: int = 3,
) -> bytes:
    """ContentInfo with SignedData around a content, certificates in DER and SignerInfos."""
    encapsulated = asn1.encode(
        asn1.SEQUENCE,
        asn1.encode_object_identifier(content_type),
        asn1.encode(asn1.context(0), asn1.encode(asn1.OCTET_STRING, content)),
    )
    data = asn1.encode(
        asn1.SEQUENCE,
        asn1.encode_integer(version),
        asn1.encode_set_of([algorithm_identifier(_HASHES["sha256"])]),
        encapsulated,
        asn1.encode_set_of(certificates, asn1.context(0)) if certificates else b"",
        asn1.encode_set_of(signers),
    )
    return asn1.encode(asn1.SEQUENCE, asn1.encode_object_identifier(_SIGNED_DATA), asn1.encode(asn1.context(0), data))
