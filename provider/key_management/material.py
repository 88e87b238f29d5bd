"""Key material as every source hands it out: duplicates removed, with the facts that a resource's status shows.

Rules:
- Private keys are refused: they have no business in a verifier, and whoever put one here has to know that it leaked.
  No error repeats anything of a value.
- Public keys are those that signatures of the supported formats are made with.

What does not belong here: where material comes from, and which certificate may anchor trust (notation/certificates.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from provider.errors import ConfigurationError
from provider.interfaces import KeyMaterial
from provider.notation.certificates import Certificate
from provider.notation.pem import MalformedPEMError, read_blocks

MIN_RSA_BITS: Final = 2048  # NIST SP 800-131A rev. 2; also the least that Notary Project and Sigstore accept
_CURVES: Final = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)
_PUBLIC_KEY_LABEL: Final = "PUBLIC KEY"


def material_of(
    certificates: Iterable[Certificate] = (), public_keys: Mapping[str, bytes] | None = None
) -> KeyMaterial:
    """Key material with Ratify's status properties: lists `Certificates` and `Keys` of Name, Version and Enabled.

    NotAfter and SHA256 of a certificate are additions: an expiry that nears is what people look for there.

    Args:
        certificates: in order; a second one with the same octets is dropped.
        public_keys: SubjectPublicKeyInfo DER by name.
    """
    unique = tuple({certificate.der: certificate for certificate in certificates}.values())
    keys = dict(public_keys or {})
    properties: dict[str, Any] = {}
    if unique:
        properties["Certificates"] = [
            {
                "Name": certificate.subject_text,
                "Version": "",
                "Enabled": "true",
                "NotAfter": certificate.not_after.isoformat(),
                "SHA256": certificate.sha256_fingerprint,
            }
            for certificate in unique
        ]
    if keys:
        properties["Keys"] = [{"Name": name, "Version": "", "Enabled": "true"} for name in keys]
    return KeyMaterial(unique, keys, properties)


def read_public_key(data: bytes) -> bytes:
    """Read one public key, a PEM block of label PUBLIC KEY, as SubjectPublicKeyInfo DER.

    Raises:
        ConfigurationError: CERTIFICATE_INVALID: not exactly one block, another label, another algorithm than RSA and
            ECDSA on a NIST curve, or an RSA key that is too short.
    """
    try:
        blocks = tuple(read_blocks(data))
    except MalformedPEMError as error:
        raise ConfigurationError("CERTIFICATE_INVALID", f"the PEM is damaged: {error}") from None
    labels = ", ".join(block.label for block in blocks)
    if "PRIVATE KEY" in labels:
        raise ConfigurationError(
            "CERTIFICATE_INVALID",
            "the value holds a private key, which is not needed here and should not be here",
            remediation="Take the private key out of this configuration, and replace the key if others could read it.",
        )
    if [block.label for block in blocks] != [_PUBLIC_KEY_LABEL]:
        raise ConfigurationError(
            "CERTIFICATE_INVALID",
            "the value is not one public key",
            expected=f"one PEM block {_PUBLIC_KEY_LABEL}",
            found=labels or "no PEM block",
        )
    try:
        key = load_der_public_key(blocks[0].content)
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigurationError("CERTIFICATE_INVALID", "the PEM block is not a SubjectPublicKeyInfo") from None
    check_public_key(key)
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def check_public_key(key: object) -> None:
    """Check that a public key is of a kind that signatures of the supported formats are made with.

    Args:
        key: a key of the package cryptography.

    Raises:
        ConfigurationError: CERTIFICATE_INVALID: another algorithm than RSA and ECDSA on a NIST curve, or an RSA key
            that is too short.
    """
    if isinstance(key, rsa.RSAPublicKey):
        if key.key_size < MIN_RSA_BITS:
            raise ConfigurationError(
                "CERTIFICATE_INVALID",
                "the RSA key is too short",
                expected=f"at least {MIN_RSA_BITS} bits",
                found=f"{key.key_size} bits",
            )
    elif not (isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, _CURVES)):
        raise ConfigurationError(
            "CERTIFICATE_INVALID",
            "the public key's algorithm is not supported",
            expected="RSA, or ECDSA P-256, P-384, P-521",
        )
