"""Certificates that no library would make: a good one is taken apart, parts are replaced, and it is sewn up again.

The signature is made anew when a key is given; without one the old signature stays and no longer fits.
"""

from __future__ import annotations

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from provider.notation import asn1

ECDSA_WITH_SHA256 = asn1.encode(asn1.SEQUENCE, asn1.encode_object_identifier("1.2.840.10045.4.3.2"))
SHA1_WITH_RSA = asn1.encode(asn1.SEQUENCE, asn1.encode_object_identifier("1.2.840.113549.1.1.5"), b"\x05\x00")
PARTS = ("version", "serial", "inner_algorithm", "issuer", "validity", "subject", "key", "extensions")


def take_apart(der: bytes) -> tuple[dict[str, bytes], bytes, bytes]:
    """The parts of TBSCertificate by name of PARTS, the outer algorithm, the signature; all encoded."""
    outer = asn1.Reader(asn1.read_whole(der, asn1.SEQUENCE, "certificate").content, "certificate")
    inner = asn1.Reader(outer.read(asn1.SEQUENCE, "TBSCertificate").content, "TBSCertificate")
    parts = {name: element.encoded for name, element in zip(PARTS, inner.rest(), strict=True)}
    return parts, outer.read_any().encoded, outer.read_any().encoded


def operate(
    der: bytes,
    *,
    signer: ec.EllipticCurvePrivateKey | None = None,
    outer_algorithm: bytes | None = None,
    signature: bytes | None = None,
    before_extensions: bytes = b"",
    **replaced: bytes,
) -> bytes:
    """Replace parts of a version 3 certificate that has extensions.

    Args:
        der: the certificate.
        signer: signs the result with ECDSA and SHA-256.
        outer_algorithm: encoded AlgorithmIdentifier in place of the outer one.
        signature: encoded BIT STRING in place of the signature.
        before_extensions: encoded elements to put between key and extensions.
        replaced: encoded elements by name of PARTS; empty takes the part out.
    """
    parts, algorithm, old_signature = take_apart(der)
    parts.update(replaced)
    body = asn1.encode(asn1.SEQUENCE, *(parts[name] for name in PARTS[:-1]), before_extensions, parts["extensions"])
    if signer is not None:
        old_signature = asn1.encode(asn1.BIT_STRING, b"\0", signer.sign(body, ec.ECDSA(hashes.SHA256())))
    return asn1.encode(asn1.SEQUENCE, body, outer_algorithm or algorithm, signature or old_signature)


def extension(identifier: str, value: bytes, critical: bytes = b"") -> bytes:
    """An Extension around an encoded value; `critical` encoded."""
    return asn1.encode(
        asn1.SEQUENCE, asn1.encode_object_identifier(identifier), critical, asn1.encode(asn1.OCTET_STRING, value)
    )


def extension_list(*extensions: bytes) -> bytes:
    """The explicitly tagged Extensions of a certificate."""
    return asn1.encode(asn1.context(3), asn1.encode(asn1.SEQUENCE, *extensions))
