"""Public keys and signatures of X.509 and CMS: which are accepted, read from AlgorithmIdentifiers, and verified.

Rules:
- Signatures: RSASSA-PKCS1-v1_5, RSASSA-PSS and ECDSA, with SHA-256, SHA-384 or SHA-512, and Ed25519. Nothing else;
  SHA-1 and MD5 are named in the refusal. PSS takes MGF1 with the same hash and says its salt length itself.
- Keys: RSA of 1024 to 16384 bits with an odd exponent from 3 to 2^31-1; NIST P-224, P-256, P-384, P-521; Ed25519.
  These are the bounds for authorities, set so that one verification costs at most milliseconds; which keys may sign
  images and time-stamps is narrower and decided in certificates.py.
- The bounds are checked on the encoded numbers before a key is built from them, so that an exponent of 1 or a modulus
  of 64 KiB costs nothing.

What does not belong here: envelope algorithms (JWS `alg`, COSE label 1), certificate rules.
Sources: RFC 3279, RFC 4055, RFC 5480, RFC 5754, RFC 8410; the exponent's bound is that of Go's crypto/rsa.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final, cast

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_der_public_key

from provider.notation import asn1
from provider.notation.asn1 import Element, MalformedASN1Error

PublicKey = RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey

MIN_RSA_BITS: Final = 1024  # below, a modulus is factored in hours
MAX_RSA_BITS: Final = 16384  # the most OpenSSL computes with; a verification takes about 2 ms
MAX_RSA_EXPONENT: Final = 2**31 - 1
MAX_PSS_SALT: Final = 2048  # octets; what fits a modulus of MAX_RSA_BITS

HASH_NAMES: Final = {
    "2.16.840.1.101.3.4.2.1": "sha256",
    "2.16.840.1.101.3.4.2.2": "sha384",
    "2.16.840.1.101.3.4.2.3": "sha512",
}
_HASHES: Final[dict[str, hashes.HashAlgorithm]] = {
    "sha256": hashes.SHA256(),
    "sha384": hashes.SHA384(),
    "sha512": hashes.SHA512(),
}

_RSA_ENCRYPTION: Final = "1.2.840.113549.1.1.1"
_RSASSA_PSS: Final = "1.2.840.113549.1.1.10"
_MGF1: Final = "1.2.840.113549.1.1.8"
_EC_PUBLIC_KEY: Final = "1.2.840.10045.2.1"
_ED25519: Final = "1.3.101.112"
_CURVES: Final = {
    "1.3.132.0.33": "P-224",
    "1.2.840.10045.3.1.7": "P-256",
    "1.3.132.0.34": "P-384",
    "1.3.132.0.35": "P-521",
}
_PKCS1_HASHES: Final = {
    "1.2.840.113549.1.1.11": "sha256",
    "1.2.840.113549.1.1.12": "sha384",
    "1.2.840.113549.1.1.13": "sha512",
}
_ECDSA_HASHES: Final = {
    "1.2.840.10045.4.3.2": "sha256",
    "1.2.840.10045.4.3.3": "sha384",
    "1.2.840.10045.4.3.4": "sha512",
}
_REFUSED_NAMES: Final = {  # for the message only
    "1.2.840.113549.1.1.2": "MD2 with RSA",
    "1.2.840.113549.1.1.4": "MD5 with RSA",
    "1.2.840.113549.1.1.5": "SHA-1 with RSA",
    "1.2.840.113549.1.1.14": "SHA-224 with RSA",
    "1.2.840.10045.4.1": "ECDSA with SHA-1",
    "1.2.840.10040.4.3": "DSA with SHA-1",
    "1.3.14.3.2.26": "SHA-1",
    "1.3.14.3.2.29": "SHA-1 with RSA",
    "1.2.840.113549.2.5": "MD5",
    "2.16.840.1.101.3.4.2.4": "SHA-224",
}


class UnsupportedAlgorithmError(ValueError):
    """A key or an algorithm is outside this file's rules; the message names it."""


class WrongSignatureError(Exception):
    """The signature does not verify."""


class Family(enum.Enum):
    """Kinds of signature."""

    RSA_PKCS1 = "RSASSA-PKCS1-v1_5"
    RSA_PSS = "RSASSA-PSS"
    ECDSA = "ECDSA"
    ED25519 = "Ed25519"


@dataclass(frozen=True, slots=True)
class SignatureAlgorithm:
    """How a signature was made.

    Attributes:
        family: the kind of signature.
        hash_name: sha256, sha384 or sha512; not used for Ed25519.
        salt_length: octets of salt, for RSASSA-PSS.
    """

    family: Family
    hash_name: str = "sha512"
    salt_length: int = 0


def read_algorithm(element: Element) -> tuple[str, Element | None]:
    """Split an AlgorithmIdentifier into object identifier and parameters. Raises MalformedASN1Error."""
    reader = asn1.open_sequence(element, "algorithm identifier")
    identifier = asn1.decode_object_identifier(reader.read(asn1.OBJECT_IDENTIFIER, "algorithm"))
    parameters = None if reader.at_end else reader.read_any()
    reader.finish()
    return identifier, parameters


def read_hash(element: Element) -> str:
    """The name hashlib has for the hash of an AlgorithmIdentifier: sha256, sha384 or sha512.

    Raises:
        UnsupportedAlgorithmError: another hash.
        MalformedASN1Error: not an AlgorithmIdentifier.
    """
    identifier, parameters = read_algorithm(element)
    name = HASH_NAMES.get(identifier)
    if name is None:
        raise UnsupportedAlgorithmError(f"the hash {_REFUSED_NAMES.get(identifier, identifier)} is not accepted")
    _no_parameters(parameters)
    return name


def read_signature_algorithm(element: Element, digest: str | None = None) -> SignatureAlgorithm:
    """Read the AlgorithmIdentifier of a signature.

    Args:
        element: the AlgorithmIdentifier.
        digest: the hash stated beside it, for CMS, where `rsaEncryption` alone stands for PKCS #1 v1.5 with that hash.

    Raises:
        UnsupportedAlgorithmError: an algorithm outside this file's rules.
        MalformedASN1Error: not an AlgorithmIdentifier, or parameters that do not belong to it.
    """
    identifier, parameters = read_algorithm(element)
    if identifier == _RSASSA_PSS:
        return _read_pss(parameters)
    if identifier in _PKCS1_HASHES:
        algorithm = SignatureAlgorithm(Family.RSA_PKCS1, _PKCS1_HASHES[identifier])
    elif identifier in _ECDSA_HASHES:
        algorithm = SignatureAlgorithm(Family.ECDSA, _ECDSA_HASHES[identifier])
    elif identifier == _ED25519:
        algorithm = SignatureAlgorithm(Family.ED25519)
    elif identifier == _RSA_ENCRYPTION and digest is not None:
        algorithm = SignatureAlgorithm(Family.RSA_PKCS1, digest)
    else:
        raise UnsupportedAlgorithmError(
            f"the signature algorithm {_REFUSED_NAMES.get(identifier, identifier)} is not accepted"
        )
    _no_parameters(parameters)
    return algorithm


def _no_parameters(parameters: Element | None) -> None:
    """Absent or NULL: RFC 4055 has NULL for RSA, RFC 5754 absent for hashes, and real encoders mix them up."""
    if parameters is not None and (parameters.tag != asn1.NULL or parameters.content):
        raise MalformedASN1Error("an algorithm identifier has parameters that do not belong to it")


def _read_pss(parameters: Element | None) -> SignatureAlgorithm:
    """RSASSA-PSS-params of RFC 4055 section 3.1. Its defaults are SHA-1 throughout, hence not accepted."""
    if parameters is None:
        raise UnsupportedAlgorithmError("RSASSA-PSS without parameters means SHA-1, which is not accepted")
    reader = asn1.open_sequence(parameters, "RSASSA-PSS parameters")
    hash_element = reader.optional(asn1.context(0))
    mask_element = reader.optional(asn1.context(1))
    salt_element = reader.optional(asn1.context(2))
    trailer_element = reader.optional(asn1.context(3))
    reader.finish()
    if hash_element is None or mask_element is None:
        raise UnsupportedAlgorithmError("RSASSA-PSS with SHA-1 is not accepted")
    hash_name = read_hash(asn1.read_whole(hash_element.content, asn1.SEQUENCE, "hash of RSASSA-PSS"))
    mask, mask_parameters = read_algorithm(asn1.read_whole(mask_element.content, asn1.SEQUENCE, "mask of RSASSA-PSS"))
    if mask != _MGF1 or mask_parameters is None or read_hash(mask_parameters) != hash_name:
        raise UnsupportedAlgorithmError("RSASSA-PSS with a mask other than MGF1 of the same hash is not accepted")
    salt_length, trailer = _wrapped_integer(salt_element, 20), _wrapped_integer(trailer_element, 1)
    if not 0 <= salt_length <= MAX_PSS_SALT or trailer != 1:
        raise MalformedASN1Error("the salt length or trailer of RSASSA-PSS parameters is out of range")
    return SignatureAlgorithm(Family.RSA_PSS, hash_name, salt_length)


def _wrapped_integer(element: Element | None, default: int) -> int:
    if element is None:
        return default
    return asn1.decode_integer(asn1.read_whole(element.content, asn1.INTEGER, "number of RSASSA-PSS"))


def read_public_key(element: Element) -> tuple[PublicKey, str]:
    """Read a SubjectPublicKeyInfo.

    Returns:
        The key, and its name: `RSA-3072`, `P-256`, `Ed25519`.

    Raises:
        UnsupportedAlgorithmError: a kind or size of key outside this file's rules.
        MalformedASN1Error: not a SubjectPublicKeyInfo, or numbers that are no key.
    """
    reader = asn1.open_sequence(element, "public key")
    identifier, parameters = read_algorithm(reader.read(asn1.SEQUENCE, "algorithm"))
    octets = asn1.decode_whole_octets(reader.read(asn1.BIT_STRING, "key"))
    reader.finish()
    if identifier == _RSA_ENCRYPTION:
        name = _check_rsa(octets)
    elif identifier == _EC_PUBLIC_KEY and parameters is not None and parameters.tag == asn1.OBJECT_IDENTIFIER:
        curve = asn1.decode_object_identifier(parameters)
        if curve not in _CURVES:
            raise UnsupportedAlgorithmError(f"keys on the curve {curve} are not accepted")
        name = _CURVES[curve]
    elif identifier == _ED25519:
        name = "Ed25519"
    else:
        raise UnsupportedAlgorithmError(f"keys of the kind {identifier} are not accepted")
    try:
        key = cast(PublicKey, load_der_public_key(element.encoded))  # of the kind that the identifier says
    except (ValueError, UnsupportedAlgorithm):
        raise MalformedASN1Error(f"the public key is not a valid {name} key") from None
    return key, name


def _check_rsa(octets: bytes) -> str:
    reader = asn1.open_sequence(asn1.read_whole(octets, asn1.SEQUENCE, "RSA key"), "RSA key")
    modulus = asn1.decode_integer(reader.read(asn1.INTEGER, "modulus"))
    exponent = asn1.decode_integer(reader.read(asn1.INTEGER, "exponent"))
    reader.finish()
    bits = modulus.bit_length()
    if modulus <= 0 or not MIN_RSA_BITS <= bits <= MAX_RSA_BITS:
        raise UnsupportedAlgorithmError(f"RSA keys of {bits} bits are not accepted")
    if exponent % 2 == 0 or not 3 <= exponent <= MAX_RSA_EXPONENT:
        raise UnsupportedAlgorithmError("RSA keys with such an exponent are not accepted")
    return f"RSA-{bits}"


def verify_signature(key: PublicKey, algorithm: SignatureAlgorithm, signature: bytes, message: bytes) -> None:
    """Verify a signature over `message`.

    Args:
        key: who is to have signed.
        algorithm: how.
        signature: the octets as X.509 and CMS carry them (ECDSA: DER of r and s).
        message: what is to have been signed.

    Raises:
        WrongSignatureError: it does not verify, whether for its value or because the algorithm is not one of the key's.
    """
    digest = _HASHES[algorithm.hash_name]
    try:
        if isinstance(key, RSAPublicKey) and algorithm.family is Family.RSA_PKCS1:
            key.verify(signature, message, padding.PKCS1v15(), digest)
        elif isinstance(key, RSAPublicKey) and algorithm.family is Family.RSA_PSS:
            key.verify(signature, message, padding.PSS(padding.MGF1(digest), algorithm.salt_length), digest)
        elif isinstance(key, EllipticCurvePublicKey) and algorithm.family is Family.ECDSA:
            key.verify(signature, message, ECDSA(digest))
        elif isinstance(key, Ed25519PublicKey) and algorithm.family is Family.ED25519:
            key.verify(signature, message)
        else:
            raise WrongSignatureError(f"the key is not one for {algorithm.family.value}")
    except (InvalidSignature, UnsupportedAlgorithm, ValueError):  # ValueError: a key too small for hash and salt
        raise WrongSignatureError("the signature does not verify") from None
