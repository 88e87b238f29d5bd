"""Authorities made on the spot, and whatever they, or somebody who pretends to be them, might say about revocation.

Certificates come from `cryptography`; OCSP responses and CRLs are written here octet by octet, so that each can be
wrong in exactly one way. `cryptography` reads them back in the tests, as a second opinion on the writer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID, NameOID

from provider.notation.certificates import Certificate
from provider.notation.revocation import Answer, Fetch, FetchFailure, Inquiry, Keep, Query

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
YESTERDAY = NOW - timedelta(days=1)
TOMORROW = NOW + timedelta(days=1)

SHA1_OID = "1.3.14.3.2.26"
SHA256_OID = "2.16.840.1.101.3.4.2.1"
BASIC_OCSP = "1.3.6.1.5.5.7.48.1.1"
NO_CHECK_OID = "1.3.6.1.5.5.7.48.1.5"
CRL_NUMBER, REASON, INVALIDITY, DELTA, SCOPE, FRESHEST = (f"2.5.29.{arc}" for arc in (20, 21, 24, 27, 28, 46))

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
T = TypeVar("T")


def der(tag: int, *parts: bytes) -> bytes:
    """One element."""
    content = b"".join(parts)
    if len(content) < 0x80:
        return bytes((tag, len(content))) + content
    length = len(content).to_bytes((len(content).bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + content


def integer(number: int, tag: int = 0x02) -> bytes:
    return der(tag, number.to_bytes((number if number >= 0 else ~number).bit_length() // 8 + 1, "big", signed=True))


def oid(dotted: str) -> bytes:
    first, second, *rest = map(int, dotted.split("."))
    content = b""
    for arc in (40 * first + second, *rest):
        groups = [arc & 0x7F]
        while arc := arc >> 7:
            groups.insert(0, 0x80 | arc & 0x7F)
        content += bytes(groups)
    return der(0x06, content)


def generalized(time: datetime) -> bytes:
    return der(0x18, time.strftime("%Y%m%d%H%M%SZ").encode())


def utc(time: datetime) -> bytes:
    return der(0x17, time.strftime("%y%m%d%H%M%SZ").encode())


def x509_time(time: datetime) -> bytes:
    return utc(time) if time.year < 2050 else generalized(time)


def extension(identifier: str, value: bytes, *, critical: bool = False) -> bytes:
    return der(0x30, oid(identifier), der(0x01, b"\xff") if critical else b"", der(0x04, value))


def algorithm(identifier: str, parameters: bytes = b"") -> bytes:
    return der(0x30, oid(identifier), parameters)


def locations(*urls: str) -> bytes:
    """CRLDistributionPoints with one point for each URL, as freshestCRL has it too."""
    return der(0x30, *(der(0x30, der(0xA0, der(0xA0, der(0x86, url.encode())))) for url in urls))


def _sign(key: PrivateKey, data: bytes, style: str = "") -> tuple[bytes, bytes]:
    """AlgorithmIdentifier and signature. Styles: pss; sha1 (named, and really SHA-256: it must be refused unseen)."""
    if isinstance(key, rsa.RSAPrivateKey):
        sha256 = der(0xA0, algorithm(SHA256_OID))
        if style == "pss":
            mask = der(0xA1, algorithm("1.2.840.113549.1.1.8", algorithm(SHA256_OID)))
            pss = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
            parameters = der(0x30, sha256, mask, der(0xA2, integer(32)))
            return algorithm("1.2.840.113549.1.1.10", parameters), key.sign(data, pss, hashes.SHA256())
        return (
            algorithm("1.2.840.113549.1.1.11", der(0x05)),
            key.sign(data, padding.PKCS1v15(), hashes.SHA256()),
        )
    signature = key.sign(data, ec.ECDSA(hashes.SHA256()))
    return algorithm("1.2.840.10045.4.1" if style == "sha1" else "1.2.840.10045.4.3.2"), signature


def new_key() -> PrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@dataclass(frozen=True)
class Entity:
    """A certificate with its key, and what it can sign."""

    certificate: Certificate
    key: PrivateKey = field(repr=False)
    chain: tuple[Certificate, ...] = ()

    # -- certificates -------------------------------------------------------------------------------------------------

    @classmethod
    def root(cls, name: str = "Root", **options: Any) -> Entity:
        """A self-signed certificate, an authority unless told otherwise."""
        key = options.pop("key", None) or new_key()
        certificate = _certificate(name, key, name, key, **{"authority": True, **options})
        return cls(certificate, key, (certificate,))

    def issue(self, name: str, *, key: PrivateKey | None = None, **options: Any) -> Entity:
        """A certificate of this authority. Options as `_certificate` has them."""
        key = key or new_key()
        issuer = x509.load_der_x509_certificate(self.certificate.der).subject
        common_name = issuer.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
        assert isinstance(common_name, str)
        certificate = _certificate(name, key, common_name, self.key, **options)
        return Entity(certificate, key, (certificate, *self.chain))

    # -- OCSP ---------------------------------------------------------------------------------------------------------

    def ocsp(
        self,
        certificate: Certificate,
        issuer: Certificate | None = None,
        *,
        singles: Sequence[bytes] | None = None,
        extensions: Sequence[bytes] = (),
        certificates: Sequence[Certificate | bytes] = (),
        named_by: str = "key",
        names: Certificate | None = None,
        style: str = "",
        version: bytes = b"",
        response_type: str = BASIC_OCSP,
        status: int = 0,
        **single_options: Any,
    ) -> bytes:
        """A response signed by this entity about a certificate of `issuer` (itself, when None)."""
        issuer = issuer or self.certificate
        names = names or self.certificate
        if singles is None:
            singles = [single_response(certificate, issuer, **single_options)]
        responder = (
            der(0xA1, names.subject)
            if named_by == "name"
            else der(0xA2, der(0x04, hashlib.sha1(names.public_key_octets).digest()))
        )
        listed = der(0xA1, der(0x30, *extensions)) if extensions else b""
        data = der(0x30, version, responder, generalized(NOW), der(0x30, *singles), listed)
        signed_by, signature = _sign(self.key, data, style)
        sent = [item if isinstance(item, bytes) else item.der for item in certificates]
        basic = der(0x30, data, signed_by, der(0x03, b"\0", signature), der(0xA0, der(0x30, *sent)) if sent else b"")
        return ocsp_response(status, response_type, basic)

    # -- CRL ----------------------------------------------------------------------------------------------------------

    def crl(
        self,
        *entries: bytes,
        this_update: datetime = YESTERDAY,
        next_update: datetime | None = TOMORROW,
        number: int | None = 10,
        delta_to: int | None = None,
        scope: bytes | None = None,
        freshest: Sequence[str] | None = None,
        extensions: Sequence[bytes] = (),
        issuer: Certificate | None = None,
        style: str = "",
        version: bytes = b"\x02\x01\x01",
        inner_algorithm: bytes | None = None,
    ) -> bytes:
        """A list signed by this entity."""
        listed = list(extensions)
        if number is not None:
            listed.append(extension(CRL_NUMBER, integer(number)))
        if delta_to is not None:
            listed.append(extension(DELTA, integer(delta_to), critical=True))
        if scope is not None:
            listed.append(extension(SCOPE, scope, critical=True))
        if freshest is not None:
            listed.append(extension(FRESHEST, locations(*freshest)))
        signed_by, _ = _sign(self.key, b"", style)
        data = der(
            0x30,
            version,
            signed_by if inner_algorithm is None else inner_algorithm,
            (issuer or self.certificate).subject,
            x509_time(this_update),
            b"" if next_update is None else x509_time(next_update),
            der(0x30, *entries) if entries else b"",
            der(0xA0, der(0x30, *listed)) if listed else b"",
        )
        _, signature = _sign(self.key, data, style)
        return der(0x30, data, signed_by, der(0x03, b"\0", signature))


def ocsp_response(status: int, response_type: str, basic: bytes) -> bytes:
    wrapped = der(0xA0, der(0x30, oid(response_type), der(0x04, basic))) if basic else b""
    return der(0x30, integer(status, 0x0A), wrapped)


def single_response(
    certificate: Certificate,
    issuer: Certificate,
    *,
    says: str = "good",
    serial: int | None = None,
    hash_oid: str = SHA1_OID,
    revoked_at: datetime = YESTERDAY,
    this_update: datetime = YESTERDAY,
    next_update: datetime | None = TOMORROW,
    single_extensions: Sequence[bytes] = (),
) -> bytes:
    """SingleResponse."""
    name = {SHA1_OID: "sha1", SHA256_OID: "sha256"}.get(hash_oid, "md5")
    identifier = der(
        0x30,
        algorithm(hash_oid, der(0x05)),
        der(0x04, hashlib.new(name, issuer.subject).digest()),
        der(0x04, hashlib.new(name, issuer.public_key_octets).digest()),
        integer(certificate.serial if serial is None else serial),
    )
    statuses = {"good": der(0x80), "unknown": der(0x82), "revoked": der(0xA1, generalized(revoked_at))}
    statuses["odd"] = der(0x83)
    return der(
        0x30,
        identifier,
        statuses[says],
        generalized(this_update),
        b"" if next_update is None else der(0xA0, generalized(next_update)),
        der(0xA1, der(0x30, *single_extensions)) if single_extensions else b"",
    )


def entry(
    serial: int,
    revoked_at: datetime = YESTERDAY,
    *,
    reason: int | None = None,
    invalid_from: datetime | None = None,
    extensions: Sequence[bytes] = (),
) -> bytes:
    """One entry of a CRL."""
    listed = list(extensions)
    if reason is not None:
        listed.append(extension(REASON, integer(reason, 0x0A)))
    if invalid_from is not None:
        listed.append(extension(INVALIDITY, generalized(invalid_from)))
    return der(0x30, integer(serial), utc(revoked_at), der(0x30, *listed) if listed else b"")


def scope(
    *,
    urls: Sequence[str] = (),
    relative: bool = False,
    users_only: bool = False,
    authorities_only: bool = False,
    some_reasons: bool = False,
    indirect: bool = False,
    attributes_only: bool = False,
) -> bytes:
    """IssuingDistributionPoint."""
    name = b""
    if urls:
        name = der(0xA0, der(0xA0, *(der(0x86, url.encode()) for url in urls)))
    if relative:
        name = der(0xA0, der(0xA1, der(0x30, oid("2.5.4.3"), der(0x0C, b"point"))))
    return der(
        0x30,
        name,
        der(0x81, b"\xff") if users_only else b"",
        der(0x82, b"\xff") if authorities_only else b"",
        der(0x83, b"\x06\x40") if some_reasons else b"",
        der(0x84, b"\xff") if indirect else b"",
        der(0x85, b"\xff") if attributes_only else b"",
    )


def _certificate(
    name: str,
    key: PrivateKey,
    issuer_name: str,
    issuer_key: PrivateKey,
    *,
    authority: bool = False,
    serial: int | None = None,
    not_before: datetime = NOW - timedelta(days=365),
    not_after: datetime = NOW + timedelta(days=365),
    ocsp: Iterable[str] = (),
    crl: Iterable[str] = (),
    purposes: Sequence[x509.ObjectIdentifier] = (),
    usages: Sequence[str] | None = None,
    no_check: bool = False,
    extensions: Mapping[str, bytes] | None = None,
    critical_extensions: Mapping[str, bytes] | None = None,
) -> Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer_name)]))
        .public_key(key.public_key())
        .serial_number(serial if serial is not None else x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(not_after)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
    )
    if usages is None:
        usages = ("key_cert_sign", "crl_sign") if authority else ("digital_signature",)
    if usages:
        flags = dict.fromkeys(
            (
                *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
                *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
            ),
            False,
        )
        builder = builder.add_extension(x509.KeyUsage(**flags | dict.fromkeys(usages, True)), critical=True)
    if purposes:
        timestamping = list(purposes) == [ExtendedKeyUsageOID.TIME_STAMPING]
        builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=timestamping)
    if responders := list(ocsp):
        places = [
            x509.AccessDescription(AuthorityInformationAccessOID.OCSP, x509.UniformResourceIdentifier(url))
            for url in responders
        ]
        builder = builder.add_extension(x509.AuthorityInformationAccess(places), critical=False)
    raw = dict(extensions or {})
    if urls := list(crl):
        raw["2.5.29.31"] = locations(*urls)
    if no_check:
        raw[NO_CHECK_OID] = der(0x05)
    for critical, found in ((False, raw), (True, critical_extensions or {})):
        for identifier, value in found.items():
            builder = builder.add_extension(
                x509.UnrecognizedExtension(x509.ObjectIdentifier(identifier), value), critical=critical
            )
    signed = builder.sign(issuer_key, hashes.SHA256())
    return Certificate.parse(signed.public_bytes(serialization.Encoding.DER))


# -- driving ----------------------------------------------------------------------------------------------------------


class Network:
    """Answers by URL, and remembers what was asked and what was to be kept. An absent URL cannot be reached."""

    def __init__(self, answers: Mapping[str, Answer] | None = None) -> None:
        self.answers = dict(answers or {})
        self.rounds: list[tuple[str, ...]] = []
        self.kept: list[Keep] = []

    @property
    def asked(self) -> list[str]:
        """URLs in the order in which they were asked."""
        return [url for urls in self.rounds for url in urls]

    def _answer(self, query: Fetch) -> Answer:
        return self.answers.get(query.url, FetchFailure("nobody is there"))

    def drive(self, inquiry: Inquiry[T]) -> T:
        """Run a generator to its end."""
        try:
            batch: tuple[Query, ...] = next(inquiry)
            while True:
                fetches = [query for query in batch if not isinstance(query, Keep)]
                self.kept.extend(query for query in batch if isinstance(query, Keep))
                if fetches:
                    self.rounds.append(tuple(query.url for query in fetches))
                batch = inquiry.send({query: self._answer(query) for query in fetches})
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]
