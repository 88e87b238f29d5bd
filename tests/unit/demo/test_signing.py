"""The signer: what it makes opens in the product's own reader, and what a caller breaks stays broken."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from provider.demo import pki, signing
from provider.demo.pki import CertifiedKey
from provider.demo.signing import EnvelopeFormat, SignOptions
from provider.errors import Refused
from provider.notation.envelope import open_envelope
from provider.notation.payload import check_metadata, check_payload
from provider.oci import MEDIA_TYPE_MANIFEST, Descriptor, Digest, Manifest

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
TARGET = Descriptor(MEDIA_TYPE_MANIFEST, Digest.of(b"image"), 5)
each_format = pytest.mark.parametrize("format", list(EnvelopeFormat))


def _signer(key: pki.PrivateKey | None = None) -> CertifiedKey:
    span: dict[str, Any] = {"not_before": NOW - DAY, "not_after": NOW + DAY}
    root = pki.issue({"O": "X", "CN": "root"}, pki.authority(), issuer=None, **span)
    return pki.issue({"O": "X", "CN": "leaf"}, pki.code_signing(), issuer=root, key=key, **span)


SIGNER = _signer()


@each_format
@pytest.mark.parametrize(
    "key",
    [
        pytest.param(lambda: ec.generate_private_key(ec.SECP256R1()), id="P-256"),
        pytest.param(lambda: ec.generate_private_key(ec.SECP384R1()), id="P-384"),
        pytest.param(lambda: ec.generate_private_key(ec.SECP521R1()), id="P-521"),
        pytest.param(lambda: rsa.generate_private_key(65537, 2048), id="RSA-2048"),
    ],
)
def test_a_signature_of_every_kind_of_key_is_good(key: Any, format: EnvelopeFormat) -> None:  # noqa: A002 - as in SignOptions
    signer = _signer(key())
    opened = open_envelope(signing.sign(TARGET, signer, NOW, SignOptions(format)), format.value)
    check_payload(opened, TARGET)
    assert [certificate.der for certificate in opened.chain] == [pki.der(entry) for entry in signer.chain]
    assert opened.signing_time == NOW
    assert opened.signing_agent == signing.SIGNING_AGENT


@each_format
def test_options_end_up_in_the_signed_part(format: EnvelopeFormat) -> None:  # noqa: A002 - as in SignOptions
    options = SignOptions(
        format=format,
        scheme=signing.SCHEME_SIGNING_AUTHORITY,
        expiry=NOW + DAY,
        annotations={"build": "7"},
        extra={"com.example.note": "x"},
        signing_agent=None,
    )
    opened = open_envelope(signing.sign(TARGET, SIGNER, NOW, options), format.value)
    assert opened.signing_scheme == signing.SCHEME_SIGNING_AUTHORITY
    assert (opened.signing_time, opened.expiry) == (NOW, NOW + DAY)
    assert opened.signing_agent is None
    check_metadata(opened, {"build": "7"})
    with pytest.raises(Refused):
        check_metadata(opened, {"build": "8"})


@each_format
def test_a_time_stamp_is_asked_for_over_the_raw_signature(format: EnvelopeFormat) -> None:  # noqa: A002 - as in SignOptions
    asked: list[bytes] = []

    def timestamp(signature: bytes) -> bytes:
        asked.append(signature)
        return b"token"

    opened = open_envelope(signing.sign(TARGET, SIGNER, NOW, SignOptions(format, timestamp=timestamp)), format.value)
    assert opened.timestamp_token == b"token"
    assert asked == [opened.signature]


@each_format
def test_a_critical_attribute_of_the_callers_own_is_signed_and_refused(format: EnvelopeFormat) -> None:  # noqa: A002 - as in SignOptions
    options = SignOptions(format, extra={"com.example.must": "x"}, critical=["com.example.must"])
    with pytest.raises(Refused) as caught:
        open_envelope(signing.sign(TARGET, SIGNER, NOW, options), format.value)
    assert caught.value.code == "CRITICAL_ATTRIBUTE_UNKNOWN"


def test_each_step_can_be_taken_alone_with_a_defect_in_it() -> None:
    attributes = signing.jws_attributes(SIGNER.key, NOW, SignOptions())
    del attributes["io.cncf.notary.signingTime"]
    envelope = signing.seal_jws(signing.payload_of(TARGET), attributes, SIGNER, agent=None)
    assert "signingAgent" not in envelope.decode()
    with pytest.raises(Refused) as caught:
        open_envelope(envelope, EnvelopeFormat.JWS.value)
    assert caught.value.code == "ENVELOPE_MALFORMED"


def test_the_specification_knows_no_algorithm_for_other_keys() -> None:
    with pytest.raises(ValueError, match="secp224r1"):
        signing.algorithm_of(ec.generate_private_key(ec.SECP224R1()))


@pytest.mark.parametrize("legacy", [False, True])
def test_a_signature_manifest_attaches_one_envelope_to_its_subject(legacy: bool) -> None:
    data = signing.signature_manifest(
        TARGET, b"envelope", EnvelopeFormat.JWS.value, SIGNER.chain, created=NOW, legacy=legacy
    )
    manifest = Manifest.parse(data)
    assert manifest.subject == TARGET
    assert [layer.digest for layer in manifest.layers] == [Digest.of(b"envelope")]
    assert manifest.config is not None
    forms = (manifest.artifact_type, manifest.config.media_type)
    assert forms == (
        (None, signing.ARTIFACT_TYPE) if legacy else (signing.ARTIFACT_TYPE, "application/vnd.oci.empty.v1+json")
    )
    thumbprints = json.loads(manifest.annotations[signing.THUMBPRINT])
    assert thumbprints == [Digest.of(pki.der(certificate)).hex for certificate in SIGNER.chain]
    assert manifest.annotations[signing.CREATED] == "2026-06-01T12:00:00Z"
