"""What a Key Vault hands out, read: certificates of a secret's value, public keys of a key's description.

A certificate in Key Vault has a secret of the same name and version, whose value is the certificate with its chain and,
if it may be exported, its private key: PEM, or PKCS #12 in base64 with an empty password.

Rules:
- Only certificates leave this file. A private key in the value is dropped where it stands; that there was one is told,
  because an identity that only verifies had better not be able to read it. Python cannot overwrite memory: the octets
  live until the value's memory is used again.
- Nothing is dropped silently: a truncated block, a certificate that stands twice, two leaves or a stranger among the
  certificates is an error, and no error quotes the value.
- The order is mended: Key Vault keeps the order of an import, root first is as good as leaf first.
- Somebody chose the iteration counts of a PKCS #12 file: they are bounded before anything is derived.

What does not belong here: requests (key_vault_client.py), which version counts (key_vault_versions.py), trust.
Sources: Azure Key Vault REST API "Get Secret" and "Get Key"; RFC 7292 section 4; RFC 7517, RFC 7518 section 6.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.hazmat.primitives.serialization.pkcs12 import load_pkcs12

from provider.errors import ConfigurationError, Refused
from provider.key_management.material import check_public_key
from provider.notation import asn1, pem
from provider.notation.asn1 import MalformedASN1Error
from provider.notation.certificates import (
    MAX_CHAIN_LENGTH,
    Certificate,
    check_issued_by,
    check_trust_anchor,
    parse_certificates,
)

PEM_TYPE: Final = "application/x-pem-file"
PKCS12_TYPE: Final = "application/x-pkcs12"
MAX_VALUE_CHARACTERS: Final = 256 * 1024  # Key Vault keeps secrets of at most 25 KiB
MAX_PKCS12_ROUNDS: Final = 200_000  # of one key derivation, a tenth of a second; Windows and OpenSSL use 2,000
MAX_PKCS12_DEPTH: Final = 24  # nested elements; a file of OpenSSL has 12

_PRIVATE_KEY: Final = "PRIVATE KEY"
_CURVES: Final[Mapping[str, type[ec.EllipticCurve]]] = {
    "P-256": ec.SECP256R1,
    "P-384": ec.SECP384R1,
    "P-521": ec.SECP521R1,
}
_MAX_NUMBER_CHARACTERS: Final = 2048  # of one base64url number; RSA-8192 has 1366


class SecretContent(NamedTuple):
    """What a certificate's secret holds.

    Attributes:
        chain: the leaf, then whoever issued it, as far up as is there.
        held_private_key: there was a private key beside it.
    """

    chain: tuple[Certificate, ...]
    held_private_key: bool


def read_certificate_secret(value: str | None, content_type: str | None) -> SecretContent:
    """Read the value of a certificate's secret.

    Links between the certificates are checked by name and signature; trust, purposes and validity are not.

    Args:
        value: as Key Vault gives it; None when it gives none.
        content_type: PEM_TYPE or PKCS12_TYPE, as Key Vault gives it.

    Raises:
        ConfigurationError: CERTIFICATE_INVALID. Nothing of the value is quoted.
    """
    if not value:
        raise _invalid("the secret has no value")
    if len(value) > MAX_VALUE_CHARACTERS:
        raise _invalid(f"the secret has {len(value)} characters", expected=f"at most {MAX_VALUE_CHARACTERS}")
    if content_type == PEM_TYPE:
        certificates, held_private_key = _read_pem(value)
    elif content_type == PKCS12_TYPE:
        certificates, held_private_key = _read_pkcs12(value)
    else:
        raise _invalid(
            "the secret is not that of a certificate",
            expected=f"the content type {PEM_TYPE} or {PKCS12_TYPE}",
            found=content_type or "none",
            remediation="Name a certificate of the vault; one that was stored as a plain secret has to be imported.",
        )
    chain = order_chain(certificates)
    _check_usable(chain)
    return SecretContent(chain, held_private_key)


def _read_pem(value: str) -> tuple[tuple[Certificate, ...], bool]:
    data = value.encode("utf-8", "replace")
    certificates = parse_certificates(data, ignore_private_keys=True)
    return certificates, any(block.label.endswith(_PRIVATE_KEY) for block in pem.read_blocks(data))


def _read_pkcs12(value: str) -> tuple[tuple[Certificate, ...], bool]:
    try:
        data = base64.b64decode("".join(value.split()), validate=True)
    except (binascii.Error, ValueError):
        raise _invalid("the secret is not base64, which PKCS #12 is given in") from None
    try:
        _check_rounds(data)
        opened = load_pkcs12(data, None)
    except MalformedASN1Error as error:
        raise _invalid(f"the PKCS #12 file cannot be read: {error}") from None
    except (ValueError, UnsupportedAlgorithm):
        raise _invalid(
            "the PKCS #12 file cannot be read: it is damaged, or its password is not empty",
            remediation="Import the certificate again; Key Vault hands PKCS #12 out with an empty password.",
        ) from None
    held_private_key = opened.key is not None
    entries = ([opened.cert] if opened.cert else []) + list(opened.additional_certs)
    del opened  # and the private key with it
    if not entries:
        raise _invalid("there is no certificate", expected="at least one")
    try:
        certificates = tuple(
            Certificate.parse(entry.certificate.public_bytes(Encoding.DER)) for entry in entries[: MAX_CHAIN_LENGTH + 1]
        )
    except Refused as error:
        raise _invalid(error.detail) from None
    return certificates, held_private_key


def _check_rounds(data: bytes) -> None:
    """Bound the iteration counts of a PKCS #12 file, as far as they are not encrypted themselves.

    In each structure that says how a key is derived (macData, PBES1, PBKDF2) the number follows the octets of the salt.

    Raises:
        ConfigurationError: CERTIFICATE_INVALID.
        MalformedASN1Error: it is not DER.
    """
    pending = [(data, 0)]
    while pending:
        octets, depth = pending.pop()
        previous = 0
        for element in asn1.Reader(octets, "PKCS #12 file").rest():
            if element.tag == asn1.INTEGER and previous == asn1.OCTET_STRING:
                rounds = asn1.decode_integer(element)
                if not 0 < rounds <= MAX_PKCS12_ROUNDS:
                    raise _invalid(
                        f"the PKCS #12 file asks for {min(rounds, 10**12)} iterations",
                        expected=f"at most {MAX_PKCS12_ROUNDS}",
                    )
            if depth == MAX_PKCS12_DEPTH:
                raise MalformedASN1Error("it is nested too deeply")
            if element.tag & 0x20 or (element.tag == asn1.OCTET_STRING and _is_nested(element.content)):
                pending.append((element.content, depth + 1))
            previous = element.tag


def _is_nested(content: bytes) -> bool:
    """Whether the octets are one whole SEQUENCE, as those of AuthenticatedSafe and SafeContents are."""
    try:
        asn1.read_whole(content, asn1.SEQUENCE, "content")
    except MalformedASN1Error:
        return False
    return True


# -- chains -----------------------------------------------------------------------------------------------------------


def order_chain(certificates: Sequence[Certificate]) -> tuple[Certificate, ...]:
    """Put a leaf and its issuers in order, leaf first.

    Args:
        certificates: in any order. An authority may be there more than once, signed by different roots.

    Raises:
        ConfigurationError: CERTIFICATE_INVALID: one stands twice, there are too many, there is not exactly one leaf, or
            one has nothing to do with the leaf.
    """
    if len(certificates) > MAX_CHAIN_LENGTH:
        raise _invalid("there are too many certificates", expected=f"at most {MAX_CHAIN_LENGTH}")
    seen: set[bytes] = set()
    for certificate in certificates:
        if certificate.der in seen:
            raise _invalid(f'the certificate "{certificate.subject_text}" stands twice')
        seen.add(certificate.der)
    leaves = [one for one in certificates if not any(_issued(one, other) for other in certificates if other is not one)]
    if len(leaves) != 1:
        names = ", ".join(f'"{leaf.subject_text}"' for leaf in leaves)
        raise _invalid("the certificates are not one chain", expected="one leaf", found=names or "none")
    ordered = leaves
    for below in ordered:  # grows while it is walked
        ordered += [one for one in certificates if one not in ordered and _issued(one, below)]
    if len(ordered) != len(certificates):  # two authorities that issued each other and nobody else
        raise _invalid("the certificates are not one chain", expected="one leaf with its issuers")
    return tuple(ordered)


def _issued(issuer: Certificate, certificate: Certificate) -> bool:
    """Whether it did, by name and signature; one by an algorithm that is not accepted counts by its name."""
    try:
        check_issued_by(certificate, issuer)
    except Refused as error:
        return error.code == "ALGORITHM_UNSUPPORTED" and certificate.issuer == issuer.subject
    return True


def _check_usable(chain: Sequence[Certificate]) -> None:
    """Raises ConfigurationError, when no certificate of a chain may anchor trust."""
    problem: ConfigurationError | None = None
    for certificate in chain:
        try:
            check_trust_anchor(certificate)
        except ConfigurationError as error:
            problem = problem or error
        else:
            return
    raise _invalid(
        f'the certificate "{chain[0].subject_text}" is there without its issuers',
        expected="its chain, up to an authority",
        remediation="Import the certificate with its whole chain, or give the authority as a provider of type inline.",
    ) from problem


# -- keys -------------------------------------------------------------------------------------------------------------


def read_key(description: Any) -> bytes:
    """Read a public key as Key Vault describes it: a JSON Web Key, whose `kty` may end in `-HSM`.

    Args:
        description: the member `key` of the answer, untrusted.

    Returns:
        SubjectPublicKeyInfo in DER.

    Raises:
        ConfigurationError: CERTIFICATE_INVALID: another kind than RSA and EC on a NIST curve, too short, or malformed.
    """
    if not isinstance(description, dict):
        raise _invalid("the key's description is missing")
    kind = str(description.get("kty")).removesuffix("-HSM")
    try:
        if kind == "RSA":
            key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey = rsa.RSAPublicNumbers(
                e=_number(description, "e"), n=_number(description, "n")
            ).public_key()
        elif kind == "EC" and (curve := _CURVES.get(str(description.get("crv")))):
            key = ec.EllipticCurvePublicNumbers(
                _number(description, "x"), _number(description, "y"), curve()
            ).public_key()
        else:
            raise _invalid(
                "the key's algorithm is not supported",
                expected="RSA, or EC with P-256, P-384, P-521",
                found=f"{description.get('kty')} {description.get('crv') or ''}".strip(),
            )
    except (ValueError, UnsupportedAlgorithm):
        raise _invalid("the key's description is malformed") from None
    check_public_key(key)
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _number(description: Mapping[str, Any], name: str) -> int:
    """A base64url number. Raises ValueError."""
    text = description.get(name)
    if not isinstance(text, str) or not 0 < len(text) <= _MAX_NUMBER_CHARACTERS:
        raise ValueError(name)
    return int.from_bytes(base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True), "big")


def _invalid(
    reason: str, *, expected: str | None = None, found: str | None = None, remediation: str | None = None
) -> ConfigurationError:
    return ConfigurationError(
        "CERTIFICATE_INVALID",
        reason,
        expected=expected,
        found=found,
        remediation=remediation or "Look at the certificate in the vault, and import it again with its whole chain.",
    )
