"""A signer that makes any envelope it is asked for, wrong ones above all.

`Signer` has a key and a chain. `jws` and `cose` seal a header and a payload; each part can be replaced before it is
signed (a defect that the signer made) or after (a defect that somebody on the way made). Keys are made here and kept
nowhere.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import cbor2
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID

JWS: Final = "application/jose+json"
COSE: Final = "application/cose"
PAYLOAD_TYPE: Final = "application/vnd.cncf.notary.payload.v1+json"
SCHEME: Final = "io.cncf.notary.signingScheme"
SIGNING_TIME: Final = "io.cncf.notary.signingTime"
AUTHENTIC_TIME: Final = "io.cncf.notary.authenticSigningTime"
EXPIRY: Final = "io.cncf.notary.expiry"
PLUGIN: Final = "io.cncf.notary.verificationPlugin"
PLUGIN_VERSION: Final = "io.cncf.notary.verificationPluginMinVersion"
TIMESTAMP: Final = "io.cncf.notary.timestampSignature"
AGENT: Final = "io.cncf.notary.signingAgent"
SIGNED_AT: Final = datetime(2026, 3, 1, 10, 0, tzinfo=UTC)
TARGET: Final[dict[str, Any]] = {
    "mediaType": "application/vnd.oci.image.manifest.v1+json",
    "digest": "sha256:" + "a" * 64,
    "size": 528,
}
PAYLOAD: Final = json.dumps({"targetArtifact": TARGET}).encode()
ABSENT: Final = object()
"""As a replacement: the member is left out."""

Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
_ALGORITHMS: Final[dict[Any, tuple[str, int, hashes.HashAlgorithm]]] = {
    2048: ("PS256", -37, hashes.SHA256()),
    "secp256r1": ("ES256", -7, hashes.SHA256()),
    "secp384r1": ("ES384", -35, hashes.SHA384()),
    "secp521r1": ("ES512", -36, hashes.SHA512()),
}


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def subject(**attributes: str) -> x509.Name:
    """A name from attribute types of NameOID, in the order given."""
    return x509.Name([x509.NameAttribute(getattr(NameOID, key), value) for key, value in attributes.items()])


LEAF_NAME: Final = subject(
    COUNTRY_NAME="US", STATE_OR_PROVINCE_NAME="WA", ORGANIZATION_NAME="Contoso", COMMON_NAME="signer"
)
ROOT_NAME: Final = subject(COUNTRY_NAME="US", ORGANIZATION_NAME="Contoso", COMMON_NAME="root")


def certificate(
    key: CertificateIssuerPrivateKeyTypes,
    *,
    name: x509.Name = LEAF_NAME,
    issuer: x509.Name = ROOT_NAME,
    issuer_key: CertificateIssuerPrivateKeyTypes,
    authority: bool = False,
) -> bytes:
    """A certificate for code signing, or an authority's, in DER."""
    usage = x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )
    built = (
        x509.CertificateBuilder(issuer, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(SIGNED_AT - timedelta(days=30))
        .not_valid_after(SIGNED_AT + timedelta(days=3650))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .sign(issuer_key, hashes.SHA256())
    )
    return built.public_bytes(serialization.Encoding.DER)


@dataclass(frozen=True)
class Signer:
    """A signing key and its chain, leaf first, in DER."""

    key: Key
    chain: tuple[bytes, ...]

    @classmethod
    def make(cls, key: Key | None = None, name: x509.Name = LEAF_NAME) -> Signer:
        """A signer below a root of its own. The default key is EC P-256, which is quick to make."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        root_key = ec.generate_private_key(ec.SECP256R1())
        root = certificate(root_key, name=ROOT_NAME, issuer_key=root_key, authority=True)
        return cls(key, (certificate(key, name=name, issuer_key=root_key), root))

    @property
    def algorithm(self) -> tuple[str, int, hashes.HashAlgorithm]:
        """JWS name, COSE number and hash of the key's algorithm."""
        return _ALGORITHMS[
            self.key.curve.name if isinstance(self.key, ec.EllipticCurvePrivateKey) else self.key.key_size
        ]

    def sign(self, message: bytes) -> bytes:
        """The raw signature value."""
        hash_ = self.algorithm[2]
        if isinstance(self.key, ec.EllipticCurvePrivateKey):
            r, s = decode_dss_signature(self.key.sign(message, ec.ECDSA(hash_)))
            octets = (self.key.curve.key_size + 7) // 8
            return r.to_bytes(octets, "big") + s.to_bytes(octets, "big")
        return self.key.sign(
            message, padding.PSS(mgf=padding.MGF1(hash_), salt_length=padding.PSS.DIGEST_LENGTH), hash_
        )

    # -- JWS -------------------------------------------------------------------------------------------------------

    def jws_header(self) -> dict[Any, Any]:
        """A protected header as notation writes it."""
        return {
            "alg": self.algorithm[0],
            "cty": PAYLOAD_TYPE,
            "crit": [SCHEME],
            SCHEME: "notary.x509",
            SIGNING_TIME: "2026-03-01T10:00:00Z",
        }

    def jws_unprotected(self) -> dict[Any, Any]:
        """An unprotected header as notation writes it."""
        return {"x5c": [base64.b64encode(der).decode() for der in self.chain], AGENT: "tests/1.0"}

    def jws(
        self,
        protected: Mapping[Any, object] | bytes | None = None,
        *,
        payload: bytes = PAYLOAD,
        header: Mapping[Any, object] | None = None,
        sealed: Mapping[Any, object] | None = None,
    ) -> bytes:
        """An envelope. `protected` and `payload` are signed as given; `sealed` replaces members of the result."""
        octets = protected if isinstance(protected, bytes) else json.dumps(protected or self.jws_header()).encode()
        signed = f"{base64url(octets)}.{base64url(payload)}"
        envelope = {
            "payload": base64url(payload),
            "protected": base64url(octets),
            "header": self.jws_unprotected() if header is None else header,
            "signature": base64url(self.sign(signed.encode())),
        }
        return json.dumps(change(envelope, sealed or {})).encode()

    # -- COSE ------------------------------------------------------------------------------------------------------

    def cose_header(self) -> dict[Any, Any]:
        """A protected map as notation writes it."""
        return {
            1: self.algorithm[1],
            2: [SCHEME],
            3: PAYLOAD_TYPE,
            SCHEME: "notary.x509",
            SIGNING_TIME: epoch(SIGNED_AT),
        }

    def cose_unprotected(self) -> dict[Any, Any]:
        """An unprotected map as notation writes it."""
        return {33: list(self.chain), AGENT: "tests/1.0"}

    def cose(
        self,
        protected: Mapping[Any, object] | bytes | None = None,
        *,
        payload: bytes = PAYLOAD,
        header: Mapping[Any, object] | None = None,
        sealed: Mapping[int, object] | None = None,
    ) -> bytes:
        """An envelope. `protected` and `payload` are signed as given; `sealed` replaces parts of the result."""
        octets = protected if isinstance(protected, bytes) else cbor2.dumps(protected or self.cose_header())
        message = cbor2.dumps(["Signature1", octets, b"", payload])
        parts = {
            0: octets,
            1: self.cose_unprotected() if header is None else header,
            2: payload,
            3: self.sign(message),
        }
        return b"\xd2" + cbor2.dumps(list(change(parts, sealed or {}).values()))


def epoch(time: datetime) -> cbor2.CBORTag:
    """CBOR tag 1 around whole seconds."""
    return cbor2.CBORTag(1, int(time.timestamp()))


def change(header: Mapping[Any, Any], changes: Mapping[Any, object]) -> dict[Any, Any]:
    """A header with members added or replaced; those replaced by `ABSENT` are left out."""
    return {label: value for label, value in {**header, **changes}.items() if value is not ABSENT}
