"""Making the provider's own certification authority and serving certificate, and judging pairs that others made.

    Authority (ca.crt, ca.key) --issues--> ServingPair (tls.crt, tls.key): what a caller that trusts `anchor` accepts

Rules:
- Keys are ECDSA P-256: every TLS 1.3 client knows it, and a handshake costs a tenth of what RSA costs. RSA (2048 bits
  and more) and the other NIST curves are accepted from others, as Ratify's RSA pair is after a change of provider.
- Time is an argument. Certificates begin an hour early, because clocks of nodes differ.
- Every authority has a key of its own and names it (subject and authority key identifiers), so that two authorities
  with one name can stand in one caBundle.
- A pair is made only whole: `ServingPair.of` refuses what OpenSSL or Go would refuse later, in a handshake.

What does not belong here: where pairs are kept (keyring.py), when they are renewed (rotation_plan.py), files (tls.py).
Sources: RFC 5280 sections 4.1 and 4.2; RFC 9525 section 6 (names are subjectAltNames, never the common name).
"""

from __future__ import annotations

import ipaddress
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from provider.errors import ConfigurationError

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

ORGANIZATION: Final = "Countersign"  # O of the CA's subject; cert-controller writes the name of its owner there as well
BACKDATING: Final = timedelta(hours=1)  # difference between clocks of nodes that is put up with
MAX_CERTIFICATES: Final = 16  # of one PEM bundle
MAX_PEM_BYTES: Final = 256 * 1024  # of one bundle or key; 16 certificates of RSA-4096 have a tenth of this
_MAX_COMMON_NAME: Final = 64  # characters, RFC 5280 appendix A.1
_MIN_RSA_BITS: Final = 2048  # OpenSSL refuses less at its usual security level
_CURVES: Final = ("secp256r1", "secp384r1", "secp521r1")  # those that TLS 1.3 clients in Go accept
_BROKEN_HASHES: Final = (hashes.SHA1, hashes.MD5)  # Go and OpenSSL refuse certificates signed with them
_CERTIFICATE_ERRORS: Final = (ValueError, TypeError, x509.InvalidVersion, UnsupportedAlgorithm)


@dataclass(frozen=True, slots=True)
class Authority:
    """Certificates of an authority with, perhaps, the key of the first of them.

    Attributes:
        certificates: what callers are to trust; at least one.
        key: signs for the first certificate; None when somebody else keeps it.
    """

    certificates: tuple[x509.Certificate, ...]
    key: PrivateKey | None = field(default=None, repr=False, compare=False)

    @property
    def certificate(self) -> x509.Certificate:
        """The certificate of the key."""
        return self.certificates[0]

    def can_sign(self, at: datetime) -> bool:
        """Whether certificates can be issued at a time (aware)."""
        return self.key is not None and is_valid(self.certificate, at)


@dataclass(frozen=True, slots=True)
class ServingPair:
    """A serving certificate with its key, and the authority under which callers accept it.

    Attributes:
        chain: the serving certificate, then intermediates.
        key: private key of the serving certificate.
        anchor: certificate that a caller has to trust.
    """

    chain: tuple[x509.Certificate, ...]
    key: PrivateKey = field(repr=False, compare=False)
    anchor: x509.Certificate

    @classmethod
    def of(cls, chain: Sequence[x509.Certificate], key: PrivateKey, trusted: Iterable[x509.Certificate]) -> ServingPair:
        """Put a pair together.

        Args:
            chain: serving certificate first.
            key: private key.
            trusted: authorities of which one must be above the serving certificate, or be it.

        Raises:
            ConfigurationError: TLS_INVALID; the parts do not belong together, or TLS clients refuse such parts. Time
                and names are not looked at here.
        """
        leaf = chain[0]
        if not _same_key(leaf, key):
            raise unusable("the private key does not belong to the serving certificate")
        if not _may_serve(leaf):
            raise unusable("the serving certificate is not for TLS servers")
        anchor = _anchor_of(chain, tuple(trusted))
        if anchor is None:
            raise unusable("the serving certificate does not lead to the CA certificate beside it")
        return cls(tuple(chain), key, anchor)

    @property
    def certificate(self) -> x509.Certificate:
        """The serving certificate."""
        return self.chain[0]

    @property
    def names(self) -> frozenset[str]:
        """DNS names and IP addresses that the serving certificate is for."""
        try:
            names = self.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except (x509.ExtensionNotFound, *_CERTIFICATE_ERRORS):
            return frozenset()
        addresses = (str(address) for address in names.get_values_for_type(x509.IPAddress))
        return frozenset((*(name.lower() for name in names.get_values_for_type(x509.DNSName)), *addresses))

    def is_valid(self, at: datetime) -> bool:
        """Whether both ends of the chain are within their validity at a time (aware)."""
        return is_valid(self.certificate, at) and is_valid(self.anchor, at)

    def pem(self) -> bytes:
        """Key, then chain, for one PEM file: a reader never meets a key and a certificate of different pairs."""
        return key_pem(self.key) + certificates_pem(self.chain)


def issue_authority(name: str, *, at: datetime, lifetime: timedelta) -> Authority:
    """Make an authority with a new key.

    Args:
        name: common name, `<service>.<namespace>`; left out where it is too long for one.
        at: now (aware).
        lifetime: from now on.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, ORGANIZATION)]
    if len(name) <= _MAX_COMMON_NAME:
        attributes.append(x509.NameAttribute(NameOID.COMMON_NAME, name))
    subject = x509.Name(attributes)
    certificate = (
        _begin(subject, subject, key.public_key(), at=at, until=at + lifetime)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage("key_cert_sign", "crl_sign"), critical=True)
        .sign(key, hashes.SHA256())
    )
    return Authority((certificate,), key)


def issue_pair(authority: Authority, names: Sequence[str], *, at: datetime, lifetime: timedelta) -> ServingPair:
    """Issue a serving certificate for a new key.

    Args:
        authority: with its key.
        names: DNS names and IP addresses, the main one first.
        at: now (aware).
        lifetime: from now on; cut to the authority's own.

    Raises:
        ConfigurationError: TLS_INVALID; the authority has no key.
    """
    if authority.key is None:
        raise unusable("the key of the CA certificate is not at hand")
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = authority.certificate
    until = min(at + lifetime, issuer.not_valid_after_utc)
    # Without a subject the names must be critical (RFC 5280 section 4.2.1.6), so the main one is a common name as well.
    subject = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, names[0])] if len(names[0]) <= _MAX_COMMON_NAME else []
    )
    certificate = (
        _begin(subject, issuer.subject, key.public_key(), at=at, until=until)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage("digital_signature"), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=not list(subject))
        .add_extension(_authority_key_identifier(issuer), critical=False)
        .sign(authority.key, hashes.SHA256())
    )
    return ServingPair((certificate,), key, issuer)


def read_certificates(data: bytes, *, limit: int = MAX_CERTIFICATES) -> tuple[x509.Certificate, ...]:
    """Certificates of a PEM bundle, at most `limit`, each once.

    Raises:
        ConfigurationError: TLS_INVALID; it is not PEM, has none or too many, or one cannot be parsed.
    """
    if len(data) > MAX_PEM_BYTES:
        raise unusable(f"the PEM bundle has more than {MAX_PEM_BYTES} bytes")
    try:
        with warnings.catch_warnings():
            # Authorities of cert-controller, which Ratify and Gatekeeper use, have the serial number 0.
            warnings.simplefilter("ignore", CryptographyDeprecationWarning)
            certificates = x509.load_pem_x509_certificates(data)
            for certificate in certificates:
                _ = certificate.extensions, certificate.not_valid_after_utc, certificate.subject, certificate.issuer
    except _CERTIFICATE_ERRORS:
        raise unusable("a certificate cannot be parsed") from None
    if len(certificates) > limit:
        raise unusable(f"there are more than {limit} certificates")
    return tuple(dict.fromkeys(certificates))


def read_key(data: bytes) -> PrivateKey:
    """A private key, PEM, not encrypted.

    Raises:
        ConfigurationError: TLS_INVALID; it is none, or of a kind that TLS clients refuse.
    """
    if len(data) > MAX_PEM_BYTES:
        raise unusable(f"the private key has more than {MAX_PEM_BYTES} bytes")
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except _CERTIFICATE_ERRORS:
        raise unusable("the private key cannot be read") from None
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size >= _MIN_RSA_BITS:
        return key
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in _CURVES:
        return key
    raise unusable(f"the private key is neither RSA with {_MIN_RSA_BITS} bits nor ECDSA on a NIST curve")


def authority_of(certificates: tuple[x509.Certificate, ...], key: PrivateKey | None) -> Authority:
    """Certificates as an authority, the key's own first; a key of none of them, or of no authority, is left out."""
    if key is not None:
        for certificate in certificates:
            if is_authority(certificate) and _same_key(certificate, key):
                others = (other for other in certificates if other != certificate)
                return Authority((certificate, *others), key)
    return Authority(certificates)


def certificates_pem(certificates: Iterable[x509.Certificate]) -> bytes:
    """A PEM bundle."""
    return b"".join(certificate.public_bytes(serialization.Encoding.PEM) for certificate in certificates)


def key_pem(key: PrivateKey) -> bytes:
    """A private key as unencrypted PKCS #8 PEM."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def is_valid(certificate: x509.Certificate, at: datetime) -> bool:
    """Whether a certificate is within its validity at a time (aware)."""
    return certificate.not_valid_before_utc <= at <= certificate.not_valid_after_utc


def is_authority(certificate: x509.Certificate) -> bool:
    """Whether a certificate says of itself that it is one of an authority."""
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, *_CERTIFICATE_ERRORS):
        return False


def unusable(reason: str) -> ConfigurationError:
    """The error for material that cannot be used."""
    return ConfigurationError("TLS_INVALID", reason)


def _begin(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    *,
    at: datetime,
    until: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(at - BACKDATING)
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _key_usage(*uses: str) -> x509.KeyUsage:
    every = (
        *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
        *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
    )
    return x509.KeyUsage(**{use: use in uses for use in every})


def _authority_key_identifier(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    try:
        own = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        key = issuer.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey)  # noqa: S101 - it has such a private key
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(key)
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _same_key(certificate: x509.Certificate, key: PrivateKey) -> bool:
    try:
        return certificate.public_key() == key.public_key()
    except _CERTIFICATE_ERRORS:
        return False


def _may_serve(certificate: x509.Certificate) -> bool:
    try:
        usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return True
    except _CERTIFICATE_ERRORS:
        return False
    return ExtendedKeyUsageOID.SERVER_AUTH in usages or ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE in usages


def _anchor_of(chain: Sequence[x509.Certificate], trusted: Sequence[x509.Certificate]) -> x509.Certificate | None:
    """The trusted certificate that is above, or is, the first of the chain. Each certificate is passed at most once."""
    current, others = chain[0], list(chain[1:])
    while True:
        for candidate in trusted:
            if candidate == current or _issued(candidate, current):
                return candidate
        parent = next((other for other in others if _issued(other, current)), None)
        if parent is None:
            return None
        others.remove(parent)
        current = parent


def _issued(issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
    if not is_authority(issuer):
        return False
    try:
        if isinstance(certificate.signature_hash_algorithm, _BROKEN_HASHES):
            return False
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, *_CERTIFICATE_ERRORS):
        return False
    return True
