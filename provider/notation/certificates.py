"""Certificates as the Notary Project sees them: bundles of them, and the rules for chains, trust anchors and validity.

Rules:
- Only basicConstraints, keyUsage and extKeyUsage are evaluated; any other extension, critical or not, is not (signature
  specification, "Certificate Requirements").
- A chain is checked as it was given, leaf first, root last. Nothing is reordered, left out or looked up: the path is
  part of what was signed or is found by timestamp.py.
- Whether a chain follows the rules does not depend on time and is remembered; validity is a check of its own.
- Cheap rules come before signatures, and every size is bounded before anything is computed.

Stricter than notation-go 1.3, which is what the specification says: anyExtendedKeyUsage on a signing certificate,
basicConstraints of a code-signing authority that is not critical, a SHA-1 or MD5 signature on any certificate, a single
self-signed one included.

What does not belong here: reading one certificate (x509.py, whose Certificate is this file's too), trusted identities,
revocation, building paths, where certificates come from.
Sources: notaryproject/specifications signature-specification.md "Certificate Requirements" and
trust-store-trust-policy.md "Trust Store"; RFC 5280 section 4.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from functools import lru_cache
from itertools import pairwise
from typing import Final

from provider.errors import ConfigurationError, Refused
from provider.notation import asn1, pem
from provider.notation.asn1 import MalformedASN1Error
from provider.notation.signature_algorithms import (
    UnsupportedAlgorithmError,
    WrongSignatureError,
    read_signature_algorithm,
    verify_signature,
)
from provider.notation.x509 import Certificate as Certificate

MAX_CHAIN_LENGTH: Final = 16  # certificates; real chains have 2 to 4
MAX_CHAIN_BYTES: Final = 64 * 1024  # of all certificates together; bounds what the memory of checked chains holds
MAX_BUNDLE_BYTES: Final = 2 * 1024 * 1024  # of configuration; a whole system bundle has 220 KiB, a Secret at most 1 MiB
MAX_BUNDLE_CERTIFICATES: Final = 1024  # a whole system bundle has 150

SIGNING_KEYS: Final = ("RSA-2048", "RSA-3072", "RSA-4096", "P-256", "P-384", "P-521")
"""Keys that may sign images and time-stamps (signature-specification.md, "Algorithm Selection")."""

SERVER_AUTH: Final = "1.3.6.1.5.5.7.3.1"
CLIENT_AUTH: Final = "1.3.6.1.5.5.7.3.2"
CODE_SIGNING: Final = "1.3.6.1.5.5.7.3.3"
EMAIL_PROTECTION: Final = "1.3.6.1.5.5.7.3.4"
TIME_STAMPING: Final = "1.3.6.1.5.5.7.3.8"
OCSP_SIGNING: Final = "1.3.6.1.5.5.7.3.9"
ANY_PURPOSE: Final = "2.5.29.37.0"

_FORBIDDEN_FOR_CODE_SIGNING: Final = {
    SERVER_AUTH: "serverAuth",
    CLIENT_AUTH: "clientAuth",
    EMAIL_PROTECTION: "emailProtection",
    TIME_STAMPING: "timeStamping",
    OCSP_SIGNING: "OCSPSigning",
    ANY_PURPOSE: "anyExtendedKeyUsage",
}
_SIGNING_USAGES: Final = frozenset({"digitalSignature", "contentCommitment"})
_CERTIFICATE_LABELS: Final = ("CERTIFICATE", "X509 CERTIFICATE", "X.509 CERTIFICATE")  # RFC 7468 section 5.1
_CHECKED_LINKS: Final = 256
_CHECKED_CHAINS: Final = 128


def _chain_invalid(reason: str, *, expected: str | None = None, found: str | None = None) -> Refused:
    return Refused("CERTIFICATE_CHAIN_INVALID", reason, expected=expected, found=found)


def parse_certificates(data: bytes, *, ignore_private_keys: bool = False) -> tuple[Certificate, ...]:
    """Read certificates from configuration: a PEM bundle, or DER, one certificate after the other.

    Nothing is dropped silently: what is damaged, truncated or of another kind is an error, so that a trust store never
    holds fewer certificates than its file.

    Args:
        data: the file. PEM may have text around its blocks.
        ignore_private_keys: skip private keys unread, for key services that hand out key and chain in one.

    Returns:
        At least one certificate, in the order of the file, repetitions included. Nothing is verified.

    Raises:
        ConfigurationError: CERTIFICATE_INVALID, naming the block by its number from 1. No content is quoted.
    """
    if len(data) > MAX_BUNDLE_BYTES:
        raise _unusable(f"the certificates have {len(data)} bytes", expected=f"at most {MAX_BUNDLE_BYTES}")
    data = bytes(data).removeprefix(b"\xef\xbb\xbf")  # Windows editors begin files with a byte order mark
    certificates: list[Certificate] = []
    try:
        for number, der in (
            _pem_certificates(data, ignore_private_keys) if pem.is_pem(data) else _der_certificates(data)
        ):
            if len(certificates) == MAX_BUNDLE_CERTIFICATES:
                raise _unusable("there are too many certificates", expected=f"at most {MAX_BUNDLE_CERTIFICATES}")
            try:
                certificates.append(Certificate.parse(der))
            except Refused as error:
                raise _unusable(f"block {number}: {error.detail}") from None
    except (pem.MalformedPEMError, MalformedASN1Error) as error:
        raise _unusable(str(error)) from None
    if not certificates:
        raise _unusable("there is no certificate", expected="at least one")
    return tuple(certificates)


def _unusable(reason: str, *, expected: str | None = None, found: str | None = None) -> ConfigurationError:
    return ConfigurationError("CERTIFICATE_INVALID", reason, expected=expected, found=found)


def _pem_certificates(data: bytes, ignore_private_keys: bool) -> list[tuple[int, bytes]]:
    found = []
    for block in pem.read_blocks(data):
        if block.label in _CERTIFICATE_LABELS:
            found.append((block.number, block.content))
        elif not block.label.endswith("PRIVATE KEY"):
            raise _unusable(f"block {block.number} is no certificate", expected="CERTIFICATE", found=block.label)
        elif not ignore_private_keys:
            raise ConfigurationError(
                "CERTIFICATE_INVALID",
                f"block {block.number} is a private key, which is not needed here and should not be here",
                remediation="Take the key out of this configuration, and replace it if others could read it.",
            )
    return found


def _der_certificates(data: bytes) -> list[tuple[int, bytes]]:
    if data[:1] != bytes((asn1.SEQUENCE,)):
        raise _unusable("there is neither a PEM block nor DER", expected="-----BEGIN CERTIFICATE----- or DER")
    reader = asn1.Reader(data, "certificates in DER")
    return [(number, element.encoded) for number, element in enumerate(reader.rest(), 1)]


# -- links ------------------------------------------------------------------------------------------------------------


def check_issued_by(certificate: Certificate, issuer: Certificate) -> None:
    """Check that `issuer` is named as issuer and its key signed the certificate. Remembered when it holds.

    Whether the issuer may issue certificates (basicConstraints, keyUsage) and when is not checked.

    Raises:
        Refused: CERTIFICATE_CHAIN_INVALID when the name differs or the signature does not verify; ALGORITHM_UNSUPPORTED
            when the issuer's key or the signature algorithm is not accepted.
    """
    if certificate.issuer != issuer.subject:
        raise _chain_invalid(
            f'the certificate "{certificate.subject_text}" is not issued by the one that follows it',
            expected=certificate.issuer_text,
            found=issuer.subject_text,
        )
    _check_signature(certificate, issuer)


@lru_cache(maxsize=_CHECKED_LINKS)
def _check_signature(certificate: Certificate, issuer: Certificate) -> None:
    if issuer.public_key is None:
        raise Refused("ALGORITHM_UNSUPPORTED", f'the key of "{issuer.subject_text}" cannot be used: {issuer.key_name}')
    element = asn1.read_whole(certificate.signature_algorithm, asn1.SEQUENCE, "signature algorithm")
    try:
        algorithm = read_signature_algorithm(element)
        verify_signature(issuer.public_key, algorithm, certificate.signature, certificate.signed_part)
    except UnsupportedAlgorithmError as error:
        raise Refused("ALGORITHM_UNSUPPORTED", f'the certificate "{certificate.subject_text}": {error}') from None
    except (WrongSignatureError, MalformedASN1Error) as error:
        raise _chain_invalid(
            f'the certificate "{certificate.subject_text}" is not signed by "{issuer.subject_text}": {error}'
        ) from None


def is_self_signed(certificate: Certificate) -> bool:
    """Whether the certificate is issued to itself and signed with its own key, by an accepted algorithm."""
    try:
        check_issued_by(certificate, certificate)
    except Refused:
        return False
    return True


# -- chains -----------------------------------------------------------------------------------------------------------


def check_code_signing_chain(chain: Sequence[Certificate]) -> None:
    """Check a signature's certificate chain, leaf to root, by every rule that does not depend on time.

    Trust, validity periods and revocation are not checked. Remembered when it holds.

    Raises:
        Refused: CERTIFICATE_CHAIN_INVALID, or ALGORITHM_UNSUPPORTED for a key or signature algorithm.
    """
    _check_code_signing_chain(_bounded(chain))


def check_timestamping_chain(chain: Sequence[Certificate]) -> None:
    """Check a time-stamp authority's certificate chain, leaf to root, by every rule that does not depend on time.

    As check_code_signing_chain, but extKeyUsage of the leaf must be critical and timeStamping alone, and keyUsage and
    basicConstraints need not be critical.

    Raises:
        Refused: CERTIFICATE_CHAIN_INVALID, or ALGORITHM_UNSUPPORTED for a key or signature algorithm.
    """
    _check_timestamping_chain(_bounded(chain))


def _bounded(chain: Sequence[Certificate]) -> tuple[Certificate, ...]:
    if not chain:
        raise _chain_invalid("the certificate chain is empty")
    if len(chain) > MAX_CHAIN_LENGTH:
        raise _chain_invalid(
            "the certificate chain is too long",
            expected=f"at most {MAX_CHAIN_LENGTH} certificates",
            found=str(len(chain)),
        )
    size = sum(len(certificate.der) for certificate in chain)
    if size > MAX_CHAIN_BYTES:
        raise _chain_invalid(
            "the certificate chain is too large", expected=f"at most {MAX_CHAIN_BYTES} bytes", found=str(size)
        )
    return tuple(chain)


@lru_cache(maxsize=_CHECKED_CHAINS)
def _check_code_signing_chain(chain: tuple[Certificate, ...]) -> None:
    leaf = chain[0]
    _check_signing_leaf(leaf)
    if leaf.key_usage is not None and not leaf.key_usage.critical:
        raise _breaks(leaf, "its keyUsage is not critical")
    purposes = leaf.extended_key_usage.purposes if leaf.extended_key_usage is not None else ()
    for purpose in purposes:
        if purpose in _FORBIDDEN_FOR_CODE_SIGNING:
            raise _breaks(leaf, f"its extKeyUsage has {_FORBIDDEN_FOR_CODE_SIGNING[purpose]}")
    _check_authorities(chain, critical=True)
    _check_signatures(chain)


@lru_cache(maxsize=_CHECKED_CHAINS)
def _check_timestamping_chain(chain: tuple[Certificate, ...]) -> None:
    leaf = chain[0]
    _check_signing_leaf(leaf)
    purpose = leaf.extended_key_usage
    if purpose is None or purpose.purposes != (TIME_STAMPING,):
        raise _breaks(leaf, "its extKeyUsage is not timeStamping alone")
    if not purpose.critical:
        raise _breaks(leaf, "its extKeyUsage is not critical")
    _check_authorities(chain, critical=False)
    _check_signatures(chain)


def _breaks(certificate: Certificate, rule: str) -> Refused:
    return _chain_invalid(f'the certificate "{certificate.subject_text}" breaks a rule: {rule}')


def _check_signing_leaf(leaf: Certificate) -> None:
    """What code-signing and time-stamping leaves have in common."""
    if leaf.is_authority:
        raise _breaks(leaf, "the first must not be an authority (basicConstraints cA)")
    if leaf.key_usage is None:
        raise _breaks(leaf, "it has no keyUsage")
    if "digitalSignature" not in leaf.key_usage.usages:
        raise _breaks(leaf, "its keyUsage lacks digitalSignature")
    forbidden = sorted(leaf.key_usage.usages - _SIGNING_USAGES)
    if forbidden:
        raise _breaks(leaf, f"its keyUsage has {', '.join(forbidden)}")
    if leaf.key_name not in SIGNING_KEYS:
        raise Refused(
            "ALGORITHM_UNSUPPORTED",
            f'the key of the signing certificate "{leaf.subject_text}" is not of an accepted kind',
            expected=", ".join(SIGNING_KEYS),
            found=leaf.key_name,
        )


def _check_authorities(chain: tuple[Certificate, ...], *, critical: bool) -> None:
    """What every certificate above the leaf must be; `critical` whether its two extensions must be so."""
    for below, certificate in enumerate(chain[1:]):
        constraints, usage = certificate.basic_constraints, certificate.key_usage
        if constraints is None or not constraints.ca:
            raise _breaks(certificate, "it issued a certificate and is no authority (basicConstraints cA)")
        if constraints.path_length is not None and constraints.path_length < below:
            raise _breaks(
                certificate, f"its path length allows {constraints.path_length} authorities below, there are {below}"
            )
        if usage is None or "keyCertSign" not in usage.usages:
            raise _breaks(certificate, "it issued a certificate and its keyUsage lacks keyCertSign")
        if critical and not (constraints.critical and usage.critical):
            raise _breaks(certificate, "its basicConstraints or its keyUsage is not critical")


def _check_signatures(chain: tuple[Certificate, ...]) -> None:
    """Each issued by the next, the last by itself, and no other by itself."""
    for certificate, issuer in pairwise(chain):
        if is_self_signed(certificate):
            raise _breaks(certificate, "it is self-signed and not the last of the chain")
        check_issued_by(certificate, issuer)
    root = chain[-1]
    if not root.is_self_issued:
        raise _breaks(root, f'it is the last of the chain and not self-signed, but issued by "{root.issuer_text}"')
    check_issued_by(root, root)


# -- trust ------------------------------------------------------------------------------------------------------------


def check_trust_anchor(certificate: Certificate) -> None:
    """Check that a certificate may be in a `ca` or `signingAuthority` trust store: an authority, or self-signed.

    A leaf that somebody else signed is refused: trusting it would go round the checks on its issuers. A certificate
    issued to itself with a signature of a kind that is not accepted (SHA-1) may stay, so that one old certificate does
    not make its whole store unusable; no chain with it will pass.

    Raises:
        ConfigurationError: CERTIFICATE_INVALID.
    """
    if not certificate.is_authority and not _may_be_self_signed(certificate):
        raise _unusable(
            f'the certificate "{certificate.subject_text}" cannot be a trust anchor',
            expected="an authority (basicConstraints cA) or a self-signed certificate",
            found=f'a certificate issued by "{certificate.issuer_text}"',
        )


def _may_be_self_signed(certificate: Certificate) -> bool:
    try:
        check_issued_by(certificate, certificate)
    except Refused as error:
        return certificate.is_self_issued and error.code == "ALGORITHM_UNSUPPORTED"
    return True


def check_timestamp_trust_anchor(certificate: Certificate) -> None:
    """Check that a certificate may be in a `tsa` trust store: a self-signed authority.

    Raises:
        ConfigurationError: CERTIFICATE_INVALID.
    """
    try:
        if not certificate.is_authority:
            raise _breaks(certificate, "it is no authority (basicConstraints cA)")
        check_issued_by(certificate, certificate)
    except Refused as error:
        raise _unusable(
            f'the certificate "{certificate.subject_text}" cannot be a trust anchor for time-stamps: {error.detail}',
            expected="a self-signed authority",
        ) from None


def find_trust_anchor(chain: Sequence[Certificate], trusted: Collection[Certificate]) -> Certificate:
    """Find the first certificate of the chain that is trusted, octet for octet. No path is built.

    Args:
        chain: a chain that was checked; without that the answer means nothing.
        trusted: what the trust stores of the policy hold; a frozenset makes the look-up quick.

    Raises:
        Refused: UNTRUSTED_ROOT.
    """
    for certificate in chain:
        if certificate in trusted:
            return certificate
    raise Refused(
        "UNTRUSTED_ROOT",
        "no certificate of the signature's chain is trusted",
        expected=f"one of {len(trusted)} trusted certificates",
        found=" < ".join(f'"{certificate.subject_text}"' for certificate in chain),
    )


# -- time -------------------------------------------------------------------------------------------------------------


def check_valid_at(certificate: Certificate, at: datetime) -> None:
    """Check that a certificate is within its validity period, both ends included.

    Args:
        certificate: any.
        at: an aware time.

    Raises:
        Refused: CERTIFICATE_EXPIRED, CERTIFICATE_NOT_YET_VALID.
    """
    if at > certificate.not_after:
        raise Refused(
            "CERTIFICATE_EXPIRED",
            f'the certificate "{certificate.subject_text}" has expired',
            expected=f"a time up to {certificate.not_after.isoformat()}",
            found=at.isoformat(),
        )
    if at < certificate.not_before:
        raise Refused(
            "CERTIFICATE_NOT_YET_VALID",
            f'the certificate "{certificate.subject_text}" is not valid yet',
            expected=f"a time from {certificate.not_before.isoformat()}",
            found=at.isoformat(),
        )


def check_chain_valid_at(chain: Sequence[Certificate], at: datetime) -> None:
    """Check that every certificate of a chain is within its validity period. Raises as check_valid_at does."""
    for certificate in chain:
        check_valid_at(certificate, at)
