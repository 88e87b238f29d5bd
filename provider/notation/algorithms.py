"""The signature algorithms that the Notary Project allows, and the verification of one raw signature by one key.

    leaf key    JWS     COSE   hash      signature value
    RSA 2048    PS256   -37    SHA-256   RSASSA-PSS, MGF1 with the same hash, salt as long as the hash
    RSA 3072    PS384   -38    SHA-384   the same
    RSA 4096    PS512   -39    SHA-512   the same
    P-256       ES256   -7     SHA-256   r and s, 32 octets each
    P-384       ES384   -35    SHA-384   r and s, 48 octets each
    P-521       ES512   -36    SHA-512   r and s, 66 octets each

Rules:
- The key decides the algorithm. What a header says is compared with it and never chosen by; there is no `none`, no MAC,
  no PKCS #1 v1.5 and no other key size or curve to choose (attack N49).
- The salt length is fixed (RFC 7518 section 3.5, RFC 8230 section 2); another one is another signature scheme.
- ECDSA values are raw (RFC 7518 section 3.4, RFC 9053 section 2.1). DER is refused by its length. A low s is
  not asked for (attack N50): the specification has no such rule, and nothing here is named by its signature.

What does not belong here: certificates and their own signatures (certificates.py), where headers say the algorithm
(jws.py, cose.py).
Source: notaryproject/specifications signature-specification.md "Algorithm Selection".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from provider.errors import Refused


@dataclass(frozen=True, slots=True)
class Algorithm:
    """One row of the table in this file's head.

    Attributes:
        name: the JWS name (RFC 7518), which is how people know it.
        cose_label: the COSE number (RFC 9053, RFC 8230).
        key: the key it belongs to, for people.
        hash: the hash function.
        key_size: bits of the RSA modulus; for an elliptic curve, bits of its order.
        curve: name of the elliptic curve; None for RSA.
    """

    name: str
    cose_label: int
    key: str
    hash: hashes.HashAlgorithm = field(compare=False)
    key_size: int
    curve: str | None = None

    @property
    def signature_size(self) -> int:
        """Octets of a signature value."""
        octets = (self.key_size + 7) // 8
        return octets if self.curve is None else 2 * octets


ALGORITHMS: Final = (
    Algorithm("PS256", -37, "RSA 2048", hashes.SHA256(), 2048),
    Algorithm("PS384", -38, "RSA 3072", hashes.SHA384(), 3072),
    Algorithm("PS512", -39, "RSA 4096", hashes.SHA512(), 4096),
    Algorithm("ES256", -7, "EC P-256", hashes.SHA256(), 256, "secp256r1"),
    Algorithm("ES384", -35, "EC P-384", hashes.SHA384(), 384, "secp384r1"),
    Algorithm("ES512", -36, "EC P-521", hashes.SHA512(), 521, "secp521r1"),
)
_BY_NAME: Final = {algorithm.name: algorithm for algorithm in ALGORITHMS}
_BY_COSE_LABEL: Final = {algorithm.cose_label: algorithm for algorithm in ALGORITHMS}
_BY_RSA_SIZE: Final = {algorithm.key_size: algorithm for algorithm in ALGORITHMS if algorithm.curve is None}
_BY_CURVE: Final = {algorithm.curve: algorithm for algorithm in ALGORITHMS if algorithm.curve is not None}


def find_by_name(name: object) -> Algorithm | None:
    """The algorithm of a JWS `alg` value; None for every value that is not in the table."""
    return _BY_NAME.get(name) if isinstance(name, str) else None


def find_by_cose_label(label: object) -> Algorithm | None:
    """The algorithm of a COSE `alg` value; None for every value that is not in the table."""
    return _BY_COSE_LABEL.get(label) if type(label) is int else None


def algorithm_for_key(key: object) -> Algorithm:
    """The one algorithm that signatures of this public key may use.

    Args:
        key: a public key of the cryptography package, of any kind. An RSA exponent is not looked at: certificates.py
            refuses bad ones when it reads the key.

    Raises:
        Refused: ALGORITHM_UNSUPPORTED, when keys of this kind, size or curve are not allowed.
    """
    supported = _rsa_or_ec(key)
    if isinstance(supported, ec.EllipticCurvePublicKey):
        algorithm = _BY_CURVE.get(supported.curve.name)
        if algorithm is None:
            raise unsupported_key(f"EC {supported.curve.name}")
        return algorithm
    algorithm = _BY_RSA_SIZE.get(supported.key_size)
    if algorithm is None:
        raise unsupported_key(f"RSA {supported.key_size}")
    return algorithm


def verify_signature(key: object, signature: bytes, message: bytes) -> Algorithm:
    """Verify a signature value with the key's own algorithm.

    Args:
        key: public key of the signing certificate; nothing is checked of the certificate here.
        signature: the raw signature value, untrusted.
        message: the octets that were signed.

    Returns:
        The algorithm with which the signature was verified.

    Raises:
        Refused: ALGORITHM_UNSUPPORTED for the key; SIGNATURE_INVALID for the signature.
    """
    supported = _rsa_or_ec(key)
    algorithm = algorithm_for_key(supported)
    if len(signature) != algorithm.signature_size:
        raise Refused(
            "SIGNATURE_INVALID",
            f"the signature is not as long as one of {algorithm.name}",
            expected=f"{algorithm.signature_size} octets",
            found=f"{len(signature)} octets",
        )
    try:
        if isinstance(supported, ec.EllipticCurvePublicKey):
            half = len(signature) // 2
            r, s = (int.from_bytes(part, "big") for part in (signature[:half], signature[half:]))
            supported.verify(encode_dss_signature(r, s), message, ec.ECDSA(algorithm.hash))
        else:
            pss = padding.PSS(mgf=padding.MGF1(algorithm.hash), salt_length=padding.PSS.DIGEST_LENGTH)
            supported.verify(signature, message, pss, algorithm.hash)
    except InvalidSignature:
        raise Refused(
            "SIGNATURE_INVALID",
            f"the {algorithm.name} signature does not verify with the key of the signing certificate",
        ) from None
    return algorithm


def _rsa_or_ec(key: object) -> rsa.RSAPublicKey | ec.EllipticCurvePublicKey:
    if isinstance(key, (rsa.RSAPublicKey, ec.EllipticCurvePublicKey)):
        return key
    raise unsupported_key(type(key).__name__.removesuffix("PublicKey"))


def unsupported_key(found: str) -> Refused:
    """The refusal of a signing key; `found` says what it is."""
    return Refused(
        "ALGORITHM_UNSUPPORTED",
        "the key of the signing certificate is of a kind or size that is not allowed",
        expected=", ".join(algorithm.key for algorithm in ALGORITHMS),
        found=found,
    )
