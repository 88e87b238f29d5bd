"""Opening a signature envelope: from untrusted bytes to content that the key of its leaf certificate has signed.

    (1) parse        the format that the media type names, never one that is guessed from the bytes
    (2) leaf         read the first certificate
    (3) signature    verify it with the leaf's key; the key decides the algorithm, the header must agree
    (4) header       the rules of the signed attributes, critical ones among them
    (5) chain        the certificate rules that do not depend on time

Rules:
- An Envelope is made by `open_envelope` only; holding one means that (1) to (5) hold. It does not mean that anybody
  trusts the chain, that a certificate is valid now, or that the payload is about the image at hand; verification.py
  goes on from there.
- Every failure here is a failure of integrity, which no trust policy can override.
- `inspect_envelope` shows what an envelope says and believes none of it.

What does not belong here: formats (jws.py, cose.py), attributes (headers.py), what the payload says (payload.py).
Source: notaryproject/specifications signature-specification.md and trust-store-trust-policy.md "Signature Verification"
(integrity).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from types import MappingProxyType
from typing import Final

from provider.errors import Refused, printable
from provider.notation import cose, jws
from provider.notation.algorithms import Algorithm, algorithm_for_key, unsupported_key, verify_signature
from provider.notation.certificates import Certificate, check_code_signing_chain
from provider.notation.headers import (
    MAX_ENVELOPE_BYTES,
    TIME_ATTRIBUTES,
    Label,
    SigningScheme,
    UnverifiedEnvelope,
    check_attributes,
    malformed,
    unknown_critical,
)

_DECODERS: Final[Mapping[str, Callable[[bytes], UnverifiedEnvelope]]] = {
    jws.MEDIA_TYPE: jws.decode,
    cose.MEDIA_TYPE: cose.decode,
}
MEDIA_TYPES: Final = tuple(_DECODERS)
_REMEMBERED_BYTES: Final = 16 * 1024  # of an envelope that is remembered; real ones have 2 to 12 KiB


@dataclass(frozen=True, slots=True)
class Envelope:
    """The content of an envelope whose integrity was verified.

    Attributes:
        media_type: media type of the envelope.
        payload: what was signed.
        payload_content_type: the payload's content type; there is one only.
        signing_scheme: whose clock gave the signing time.
        signing_time: the signing time (aware, UTC). Under notary.x509 it is the signer's claim and proves nothing.
        expiry: when the signature expires (aware, UTC), None when it does not.
        chain: the certificate chain, leaf first, root last; by the rules, not yet trusted.
        signature: the raw signature value, which a time-stamp covers.
        algorithm: the algorithm of the signature.
        timestamp_token: DER of a time-stamp token, not signed and not verified; None when there is none.
        signing_agent: what the signer calls itself, not signed; None when it says nothing readable.
        extended_attributes: signed attributes that are not critical and that nothing here processes.
    """

    media_type: str
    payload: bytes
    payload_content_type: str
    signing_scheme: SigningScheme
    signing_time: datetime
    expiry: datetime | None
    chain: tuple[Certificate, ...]
    signature: bytes
    algorithm: Algorithm
    timestamp_token: bytes | None
    signing_agent: str | None
    extended_attributes: Mapping[Label, object] = field(hash=False)


@dataclass(frozen=True, slots=True)
class InspectedAttribute:
    """A signed attribute as text for people.

    Attributes:
        name: its label.
        value: its value; foreign text made printable. Times are ISO 8601.
        critical: whether the signer marked it critical.
    """

    name: str
    value: str
    critical: bool


@dataclass(frozen=True, slots=True)
class InspectedEnvelope:
    """What an envelope says. Nothing of it was verified, not even the signature.

    Attributes:
        media_type: media type of the envelope.
        algorithm: the algorithm that the header claims, as written.
        content_type: the payload's content type as written, None when absent.
        attributes: the other signed attributes in the order of the header.
        unknown_critical: names of critical attributes that verification refuses.
        payload: what was signed; payload.py reads it.
        signature: the raw signature value.
        chain: the certificates that can be read, in their order.
        timestamp_token: DER of a time-stamp token, None when there is none.
        signing_agent: what the signer calls itself, None when it says nothing readable.
        faults: rules seen broken without verifying anything, one sentence each. An empty one promises nothing.
    """

    media_type: str
    algorithm: str
    content_type: str | None
    attributes: tuple[InspectedAttribute, ...]
    unknown_critical: tuple[str, ...]
    payload: bytes
    signature: bytes
    chain: tuple[Certificate, ...]
    timestamp_token: bytes | None
    signing_agent: str | None
    faults: tuple[str, ...]


def open_envelope(data: bytes, media_type: str) -> Envelope:
    """Verify an envelope's integrity: everything that needs neither trust, nor time, nor the image.

    Remembered when it holds, for envelopes of ordinary size: the answer depends on the arguments alone, and an image is
    verified again whenever its verdict has come of age.

    Args:
        data: the envelope, untrusted; more than MAX_ENVELOPE_BYTES are refused.
        media_type: what the signature manifest's layer says it is.

    Returns:
        The verified content.

    Raises:
        Refused: ENVELOPE_UNSUPPORTED, ENVELOPE_MALFORMED, ALGORITHM_UNSUPPORTED, SIGNATURE_INVALID,
            CRITICAL_ATTRIBUTE_UNKNOWN, CERTIFICATE_CHAIN_INVALID.
    """
    data = bytes(data)
    return _open_remembered(data, media_type) if len(data) <= _REMEMBERED_BYTES else _open(data, media_type)


@lru_cache(maxsize=1024)  # of 16 KiB at most, and as much again for what is read from them
def _open_remembered(data: bytes, media_type: str) -> Envelope:
    return _open(data, media_type)


def _open(data: bytes, media_type: str) -> Envelope:
    # (1)
    unverified = _decode(data, media_type)
    # (2)
    leaf = Certificate.parse(unverified.certificates[0])
    # (3)
    if leaf.public_key is None:
        raise unsupported_key(leaf.key_name)
    algorithm = algorithm_for_key(leaf.public_key)
    if unverified.algorithm != algorithm:
        raise Refused(
            "ALGORITHM_UNSUPPORTED",
            f"the header does not name the algorithm of its signing key, {algorithm.key}",
            expected=f"{algorithm.name} ({algorithm.cose_label} in COSE)",
            found=unverified.algorithm_name,
        )
    verify_signature(leaf.public_key, unverified.signature, unverified.signing_input)
    # (4)
    attributes = check_attributes(unverified)
    # (5)
    chain = tuple(Certificate.parse(der) for der in unverified.certificates)
    check_code_signing_chain(chain)
    return Envelope(
        media_type=media_type,
        payload=unverified.payload,
        payload_content_type=attributes.content_type,
        signing_scheme=attributes.scheme,
        signing_time=attributes.signing_time,
        expiry=attributes.expiry,
        chain=chain,
        signature=unverified.signature,
        algorithm=algorithm,
        timestamp_token=unverified.timestamp_token,
        signing_agent=unverified.signing_agent,
        extended_attributes=MappingProxyType(dict(attributes.extended)),
    )


def inspect_envelope(data: bytes, media_type: str) -> InspectedEnvelope:
    """Show what an envelope says, without verifying anything. Never use the result to decide.

    Args:
        data: the envelope, untrusted.
        media_type: what the signature manifest's layer says it is.

    Raises:
        Refused: ENVELOPE_UNSUPPORTED or ENVELOPE_MALFORMED, when it cannot be taken apart;
            CERTIFICATE_CHAIN_INVALID, when it holds too many certificates.
    """
    unverified = _decode(data, media_type)
    faults: list[str] = []
    if unverified.algorithm is None:
        faults.append(f"the algorithm {unverified.algorithm_name} is not supported")
    try:
        check_attributes(unverified)
    except Refused as error:
        faults.append(error.detail)
    chain: list[Certificate] = []
    for number, der in enumerate(unverified.certificates, 1):
        try:
            chain.append(Certificate.parse(der))
        except Refused as error:
            faults.append(f"certificate {number}: {error.detail}")
    labels = unverified.format
    content_type = unverified.protected.get(labels.content_type)
    return InspectedEnvelope(
        media_type=media_type,
        algorithm=unverified.algorithm_name,
        content_type=None if content_type is None else _shown(content_type),
        attributes=tuple(
            InspectedAttribute(_shown(label), _shown_value(unverified, label), label in unverified.critical)
            for label in unverified.protected
            if label not in (labels.algorithm, labels.critical, labels.content_type)
        ),
        unknown_critical=tuple(_shown(label) for label in unknown_critical(unverified)),
        payload=unverified.payload,
        signature=unverified.signature,
        chain=tuple(chain),
        timestamp_token=unverified.timestamp_token,
        signing_agent=None if unverified.signing_agent is None else printable(unverified.signing_agent),
        faults=tuple(faults),
    )


def _decode(data: bytes, media_type: str) -> UnverifiedEnvelope:
    decoder = _DECODERS.get(media_type)
    if decoder is None:
        raise Refused(
            "ENVELOPE_UNSUPPORTED",
            "the media type of the signature envelope is not supported",
            expected=" or ".join(MEDIA_TYPES),
            found=media_type,
        )
    if len(data) > MAX_ENVELOPE_BYTES:
        raise malformed(
            "the signature envelope is too large", expected=f"at most {MAX_ENVELOPE_BYTES} bytes", found=str(len(data))
        )
    return decoder(data)


def _shown_value(unverified: UnverifiedEnvelope, label: Label) -> str:
    value = unverified.protected[label]
    if label in TIME_ATTRIBUTES:
        try:
            return unverified.format.read_time(value).isoformat()
        except ValueError:
            return _shown(value)
    return _shown(value)


def _shown(value: object) -> str:
    return printable(value if isinstance(value, str) else value.hex() if isinstance(value, bytes) else repr(value))
