"""A Notary Project signer: JWS and COSE envelopes around a target descriptor, and the manifests that carry them.

    sign = payload -> attributes -> seal;  each step can be taken alone, so that tests can put a defect into any of them

Rules:
- What `sign` makes is what `notation sign` makes: same attributes, same order of the chain, same signed bytes.
- Attributes are plain mappings between the steps; `seal_jws` and `seal_cose` sign whatever they are given.
- The algorithm follows from the key. Time is an argument.

What does not belong here: checking signatures (provider.notation), pushing (publishing.py), certificates (pki.py).
Source: Notary Project signature specification with its JWS and COSE envelopes, version 1.1.
"""

from __future__ import annotations

import base64
import enum
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import cbor2
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from provider.demo.pki import CertifiedKey, PrivateKey, der
from provider.oci import MEDIA_TYPE_EMPTY, MEDIA_TYPE_MANIFEST, Descriptor, Digest

ARTIFACT_TYPE: Final = "application/vnd.cncf.notary.signature"
PAYLOAD_TYPE: Final = "application/vnd.cncf.notary.payload.v1+json"
THUMBPRINT: Final = "io.cncf.notary.x509chain.thumbprint#S256"
CREATED: Final = "org.opencontainers.image.created"
SCHEME_X509: Final = "notary.x509"
SCHEME_SIGNING_AUTHORITY: Final = "notary.x509.signingAuthority"
SIGNING_AGENT: Final = "countersign-demo/1.0"
EMPTY_CONFIG: Final = b"{}"

_SCHEME: Final = "io.cncf.notary.signingScheme"
_SIGNING_TIME: Final = "io.cncf.notary.signingTime"
_AUTHENTIC_SIGNING_TIME: Final = "io.cncf.notary.authenticSigningTime"
_EXPIRY: Final = "io.cncf.notary.expiry"
_TIMESTAMP: Final = "io.cncf.notary.timestampSignature"
_AGENT: Final = "io.cncf.notary.signingAgent"

# COSE header labels (RFC 9052 section 3.1, RFC 9360)
_ALG, _CRIT, _CONTENT_TYPE, _X5CHAIN = 1, 2, 3, 33
_EPOCH_TAG, _SIGN1_TAG = 1, 18


class EnvelopeFormat(enum.Enum):
    """The two formats of an envelope; the value is the media type."""

    JWS = "application/jose+json"
    COSE = "application/cose"


@dataclass(frozen=True, slots=True)
class Algorithm:
    """What a key signs with.

    Attributes:
        jws: name in JWS.
        cose: number in COSE.
        hash: hash of the signature, and of the mask and the salt length of RSASSA-PSS.
    """

    jws: str
    cose: int
    hash: hashes.HashAlgorithm


_ALGORITHMS: Final[dict[str | int, Algorithm]] = {  # by curve, or by bits of an RSA key
    "secp256r1": Algorithm("ES256", -7, hashes.SHA256()),
    "secp384r1": Algorithm("ES384", -35, hashes.SHA384()),
    "secp521r1": Algorithm("ES512", -36, hashes.SHA512()),
    2048: Algorithm("PS256", -37, hashes.SHA256()),
    3072: Algorithm("PS384", -38, hashes.SHA384()),
    4096: Algorithm("PS512", -39, hashes.SHA512()),
}


@dataclass(frozen=True, slots=True)
class SignOptions:
    """How to sign.

    Attributes:
        format: format of the envelope.
        scheme: signing scheme.
        expiry: when the signature expires (aware), None for never.
        annotations: user metadata in the payload.
        extra: further signed attributes, by name or, in COSE, by number.
        critical: names or numbers of further attributes that a verifier must understand.
        signing_agent: unsigned note of who signed.
        timestamp: asked for a time-stamp token (DER) of the raw signature; None for no time-stamp.
    """

    format: EnvelopeFormat = EnvelopeFormat.JWS
    scheme: str = SCHEME_X509
    expiry: datetime | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str | int, Any] = field(default_factory=dict)
    critical: Sequence[str | int] = ()
    signing_agent: str | None = SIGNING_AGENT
    timestamp: Callable[[bytes], bytes] | None = None


def sign(target: Descriptor, signer: CertifiedKey, at: datetime, options: SignOptions | None = None) -> bytes:
    """Sign a target.

    Args:
        target: what is signed.
        signer: key and chain.
        at: signing time (aware).
        options: how; None takes the defaults.

    Returns:
        The envelope.
    """
    options = options if options is not None else SignOptions()
    payload = payload_of(target, options.annotations)
    if options.format is EnvelopeFormat.JWS:
        attributes = jws_attributes(signer.key, at, options)
        return seal_jws(payload, attributes, signer, agent=options.signing_agent, timestamp=options.timestamp)
    attributes = cose_attributes(signer.key, at, options)
    return seal_cose(payload, attributes, signer, agent=options.signing_agent, timestamp=options.timestamp)


def payload_of(target: Descriptor, annotations: Mapping[str, str] | None = None) -> bytes:
    """The payload: a JSON object that describes the target, with user metadata as its annotations."""
    artifact: dict[str, Any] = descriptor_json(target)
    if annotations:
        artifact["annotations"] = dict(annotations)
    return json.dumps({"targetArtifact": artifact}, separators=(",", ":")).encode()


def algorithm_of(key: PrivateKey) -> Algorithm:
    """The algorithm that belongs to a key.

    Raises:
        ValueError: the specification allows no such key.
    """
    name: str | int = key.curve.name if isinstance(key, ec.EllipticCurvePrivateKey) else key.key_size
    algorithm = _ALGORITHMS.get(name)
    if algorithm is None:
        raise ValueError(f"the Notary Project specification allows no key of {name}")
    return algorithm


def jws_attributes(key: PrivateKey, at: datetime, options: SignOptions) -> dict[str | int, Any]:
    """The protected header of a JWS envelope."""
    attributes: dict[str | int, Any] = {"alg": algorithm_of(key).jws, "cty": PAYLOAD_TYPE}
    attributes["crit"] = [*_critical(options), *options.critical]
    attributes[_SCHEME] = options.scheme
    attributes[_time_attribute(options.scheme)] = _rfc3339(at)
    if options.expiry is not None:
        attributes[_EXPIRY] = _rfc3339(options.expiry)
    return {**attributes, **options.extra}


def cose_attributes(key: PrivateKey, at: datetime, options: SignOptions) -> dict[str | int, Any]:
    """The protected header of a COSE envelope."""
    attributes: dict[str | int, Any] = {_ALG: algorithm_of(key).cose, _CONTENT_TYPE: PAYLOAD_TYPE}
    attributes[_CRIT] = [*_critical(options), *options.critical]
    attributes[_SCHEME] = options.scheme
    attributes[_time_attribute(options.scheme)] = cbor2.CBORTag(_EPOCH_TAG, int(at.timestamp()))
    if options.expiry is not None:
        attributes[_EXPIRY] = cbor2.CBORTag(_EPOCH_TAG, int(options.expiry.timestamp()))
    return {**attributes, **options.extra}


def seal_jws(
    payload: bytes,
    attributes: Mapping[str | int, Any],
    signer: CertifiedKey,
    *,
    agent: str | None = SIGNING_AGENT,
    timestamp: Callable[[bytes], bytes] | None = None,
) -> bytes:
    """Sign payload and attributes as a JWS in flattened JSON serialisation (RFC 7515 section 7.2.2)."""
    protected, body = _base64url(json.dumps(attributes, separators=(",", ":")).encode()), _base64url(payload)
    signature = raw_signature(signer.key, f"{protected}.{body}".encode())
    header: dict[str, Any] = {"x5c": [base64.b64encode(der(entry)).decode() for entry in signer.chain]}
    if timestamp is not None:
        header[_TIMESTAMP] = base64.b64encode(timestamp(signature)).decode()
    if agent is not None:
        header[_AGENT] = agent
    envelope = {"payload": body, "protected": protected, "header": header, "signature": _base64url(signature)}
    return json.dumps(envelope, separators=(",", ":")).encode()


def seal_cose(
    payload: bytes,
    attributes: Mapping[str | int, Any],
    signer: CertifiedKey,
    *,
    agent: str | None = SIGNING_AGENT,
    timestamp: Callable[[bytes], bytes] | None = None,
) -> bytes:
    """Sign payload and attributes as a tagged COSE_Sign1 (RFC 9052 section 4.2)."""
    protected = cbor2.dumps(dict(attributes))
    signature = raw_signature(signer.key, cbor2.dumps(["Signature1", protected, b"", payload]))
    header: dict[str | int, Any] = {_X5CHAIN: [der(entry) for entry in signer.chain]}
    if timestamp is not None:
        header[_TIMESTAMP] = timestamp(signature)
    if agent is not None:
        header[_AGENT] = agent
    return cbor2.dumps(cbor2.CBORTag(_SIGN1_TAG, [protected, header, payload, signature]))


def raw_signature(key: PrivateKey, data: bytes) -> bytes:
    """The signature octets that both formats carry: r and s side by side, or RSASSA-PSS."""
    algorithm = algorithm_of(key)
    if isinstance(key, ec.EllipticCurvePrivateKey):
        length = (key.key_size + 7) // 8
        return b"".join(
            number.to_bytes(length, "big") for number in decode_dss_signature(key.sign(data, ec.ECDSA(algorithm.hash)))
        )
    scheme = padding.PSS(padding.MGF1(algorithm.hash), algorithm.hash.digest_size)
    return key.sign(data, scheme, algorithm.hash)


def signature_manifest(
    subject: Descriptor,
    envelope: bytes,
    media_type: str,
    chain: Sequence[x509.Certificate],
    *,
    created: datetime,
    legacy: bool = False,
) -> bytes:
    """The manifest that attaches an envelope to its subject.

    Args:
        subject: the image that the signature is for.
        envelope: the envelope, which is the manifest's only layer.
        media_type: media type of the envelope.
        chain: certificates whose thumbprints are noted, leaf first.
        created: time that is noted (aware).
        legacy: the form of notation before 1.4, which has the artifact type as the config's media type.
    """
    config = Descriptor(ARTIFACT_TYPE if legacy else MEDIA_TYPE_EMPTY, Digest.of(EMPTY_CONFIG), len(EMPTY_CONFIG))
    thumbprints = [Digest.of(der(certificate)).hex for certificate in chain]
    manifest = {
        "schemaVersion": 2,
        "mediaType": MEDIA_TYPE_MANIFEST,
        **({} if legacy else {"artifactType": ARTIFACT_TYPE}),
        "config": descriptor_json(config),
        "layers": [descriptor_json(Descriptor(media_type, Digest.of(envelope), len(envelope)))],
        "subject": descriptor_json(subject),
        "annotations": {THUMBPRINT: json.dumps(thumbprints), CREATED: _rfc3339(created)},
    }
    return json.dumps(manifest, separators=(",", ":")).encode()


def descriptor_json(descriptor: Descriptor) -> dict[str, Any]:
    """The three members that bind a descriptor to content."""
    return {"mediaType": descriptor.media_type, "digest": str(descriptor.digest), "size": descriptor.size}


def _critical(options: SignOptions) -> list[str]:
    names = [_SCHEME]
    if options.scheme == SCHEME_SIGNING_AUTHORITY:
        names.append(_AUTHENTIC_SIGNING_TIME)
    if options.expiry is not None:
        names.append(_EXPIRY)
    return names


def _time_attribute(scheme: str) -> str:
    return _AUTHENTIC_SIGNING_TIME if scheme == SCHEME_SIGNING_AUTHORITY else _SIGNING_TIME


def _rfc3339(time: datetime) -> str:
    return time.replace(microsecond=0).isoformat().replace("+00:00", "Z")


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
