"""Throw-away certificates and keys: authorities, signers, time-stampers, servers and clients, CRLs and OCSP answers.

Rules:
- Keys are made when asked for and live in memory only; ECDSA P-256 unless a caller brings another key, because one
  takes a tenth of a millisecond.
- The profiles (`authority`, `code_signing` ...) are those that the Notary Project specification and TLS demand. `issue`
  takes any extensions, so that tests can break each rule on its own.
- Time is an argument: every validity is given by the caller.

What does not belong here: which certificates a demo needs (images.py), signing artifacts (signing.py), any check.
Sources: RFC 5280; RFC 6960; Notary Project signature specification, "Certificate Requirements".
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
Extensions = Sequence[tuple[x509.ExtensionType, bool]]  # with their criticality

_NAME_TYPES: Final = {
    "C": NameOID.COUNTRY_NAME,
    "ST": NameOID.STATE_OR_PROVINCE_NAME,
    "L": NameOID.LOCALITY_NAME,
    "O": NameOID.ORGANIZATION_NAME,
    "OU": NameOID.ORGANIZATIONAL_UNIT_NAME,
    "CN": NameOID.COMMON_NAME,
}


@dataclass(frozen=True, slots=True)
class CertifiedKey:
    """A private key with its certificate and the certificates above it.

    Attributes:
        certificate: the certificate of the key.
        key: secret, though of no worth.
        issuers: from the issuer up to the root; empty for a self-signed certificate.
    """

    certificate: x509.Certificate
    key: PrivateKey = field(repr=False)
    issuers: tuple[x509.Certificate, ...] = ()

    @property
    def chain(self) -> tuple[x509.Certificate, ...]:
        """Leaf to root."""
        return (self.certificate, *self.issuers)

    @property
    def root(self) -> x509.Certificate:
        """The last certificate of the chain."""
        return self.chain[-1]

    def chain_pem(self) -> bytes:
        """The chain as PEM, leaf first, without the root unless it stands alone."""
        return b"".join(pem(certificate) for certificate in self.chain[: max(1, len(self.chain) - 1)])

    def key_pem(self) -> bytes:
        """The private key as unencrypted PKCS #8 PEM."""
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )


def pem(certificate: x509.Certificate) -> bytes:
    """A certificate as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def der(certificate: x509.Certificate) -> bytes:
    """A certificate as DER."""
    return certificate.public_bytes(serialization.Encoding.DER)


def subject_of(certificate: x509.Certificate) -> str:
    """The subject as trust policies write it, in the order in which it was built: `C=US, ST=WA, ...`."""
    short = {oid: name for name, oid in _NAME_TYPES.items()}
    return ", ".join(f"{short[attribute.oid]}={attribute.value!s}" for attribute in certificate.subject)


def issue(
    subject: Mapping[str, str],
    extensions: Extensions,
    *,
    issuer: CertifiedKey | None,
    not_before: datetime,
    not_after: datetime,
    key: PrivateKey | None = None,
    serial: int | None = None,
) -> CertifiedKey:
    """Issue a certificate.

    Args:
        subject: attribute types C, ST, L, O, OU, CN with their values, in order.
        extensions: exactly these; `authority`, `code_signing` and the like make the usual sets.
        issuer: who signs; None for self-signed.
        not_before: first moment of validity (aware).
        not_after: last moment of validity (aware).
        key: key to certify; None makes an ECDSA P-256 key.
        serial: serial number; None takes a random one.
    """
    key = key if key is not None else ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(_NAME_TYPES[kind], value) for kind, value in subject.items()])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name if issuer is None else issuer.certificate.subject)
        .public_key(key.public_key())
        .serial_number(serial if serial is not None else x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(not_after)
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    certificate = builder.sign(key if issuer is None else issuer.key, hashes.SHA256())
    return CertifiedKey(certificate, key, () if issuer is None else issuer.chain)


def key_usage(*uses: str) -> x509.KeyUsage:
    """A key usage with the uses named as cryptography names them (`digital_signature` ...) and no others."""
    every = (
        *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
        *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
    )
    return x509.KeyUsage(**{use: use in uses for use in every})


def authority(*, path_length: int | None = None) -> Extensions:
    """A certification authority, which may also sign CRLs and OCSP answers."""
    return (
        (x509.BasicConstraints(ca=True, path_length=path_length), True),
        (key_usage("key_cert_sign", "crl_sign", "digital_signature"), True),
    )


def code_signing(*, ocsp_url: str | None = None, crl_url: str | None = None) -> Extensions:
    """A signer of artifacts, with where its revocation can be looked up."""
    return (
        *_leaf(ExtendedKeyUsageOID.CODE_SIGNING, critical=False),
        *([] if ocsp_url is None else [(_ocsp_location(ocsp_url), False)]),
        *([] if crl_url is None else [(_crl_location(crl_url), False)]),
    )


def timestamping() -> Extensions:
    """A time-stamp authority's signer: its one extended key usage is critical (RFC 3161 section 2.3)."""
    return _leaf(ExtendedKeyUsageOID.TIME_STAMPING, critical=True)


def tls_server(hosts: Iterable[str]) -> Extensions:
    """A TLS server by DNS names or IP addresses."""
    names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
    return (*_leaf(ExtendedKeyUsageOID.SERVER_AUTH, critical=False), (names, False))


def tls_client(hosts: Iterable[str]) -> Extensions:
    """A TLS client by DNS names; Gatekeeper shows the serving certificate of its webhook, which has one."""
    names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
    return (*_leaf(ExtendedKeyUsageOID.CLIENT_AUTH, critical=False), (names, False))


def _leaf(purpose: ObjectIdentifier, *, critical: bool) -> Extensions:
    return (
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (key_usage("digital_signature"), True),
        (x509.ExtendedKeyUsage([purpose]), critical),
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _ocsp_location(url: str) -> x509.AuthorityInformationAccess:
    location = x509.UniformResourceIdentifier(url)
    return x509.AuthorityInformationAccess(
        [x509.AccessDescription(x509.oid.AuthorityInformationAccessOID.OCSP, location)]
    )


def _crl_location(url: str) -> x509.CRLDistributionPoints:
    point = x509.DistributionPoint([x509.UniformResourceIdentifier(url)], None, None, None)
    return x509.CRLDistributionPoints([point])


def revocation_list(
    issuer: CertifiedKey,
    revoked: Mapping[int, datetime],
    *,
    this_update: datetime,
    next_update: datetime,
    number: int = 1,
) -> bytes:
    """A complete CRL, DER.

    Args:
        issuer: whose certificates it is about.
        revoked: serial numbers with their revocation dates.
        this_update: when it was made.
        next_update: when the next one is due.
        number: its CRL number.
    """
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.certificate.subject)
        .last_update(this_update)
        .next_update(next_update)
        .add_extension(x509.CRLNumber(number), critical=False)
    )
    for serial, date in revoked.items():
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(date).build()
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(issuer.key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def ocsp_answer(
    issuer: CertifiedKey,
    request: bytes,
    *,
    known: Iterable[x509.Certificate],
    revoked: Mapping[int, datetime],
    this_update: datetime,
    next_update: datetime,
) -> bytes:
    """The issuer's own OCSP answer to a request, DER. A request that cannot be read or is of no known certificate is
    answered with an error status.

    Args:
        issuer: authority of the certificates; signs the answer itself.
        request: DER of an OCSPRequest.
        known: certificates that the issuer issued.
        revoked: serial numbers with their revocation dates.
        this_update: time of the answer.
        next_update: until when it holds.
    """
    try:
        serial = ocsp.load_der_ocsp_request(request).serial_number
    except ValueError:
        return _ocsp_error(ocsp.OCSPResponseStatus.MALFORMED_REQUEST)
    certificate = next((entry for entry in known if entry.serial_number == serial), None)
    if certificate is None:
        return _ocsp_error(ocsp.OCSPResponseStatus.UNAUTHORIZED)
    date = revoked.get(serial)
    builder = (
        ocsp.OCSPResponseBuilder()
        .add_response(
            cert=certificate,
            issuer=issuer.certificate,
            algorithm=hashes.SHA1(),  # noqa: S303 - RFC 5019 section 2.1.1: names the issuer, protects nothing
            cert_status=ocsp.OCSPCertStatus.GOOD if date is None else ocsp.OCSPCertStatus.REVOKED,
            this_update=this_update,
            next_update=next_update,
            revocation_time=date,
            revocation_reason=None if date is None else x509.ReasonFlags.key_compromise,
        )
        .responder_id(ocsp.OCSPResponderEncoding.HASH, issuer.certificate)
    )
    return builder.sign(issuer.key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def _ocsp_error(status: ocsp.OCSPResponseStatus) -> bytes:
    return ocsp.OCSPResponseBuilder.build_unsuccessful(status).public_bytes(serialization.Encoding.DER)
