"""Envelopes, certificates, time-stamps and revocation that mean ill, as the server meets them at a registry."""

from __future__ import annotations

import base64
import hashlib
import json
from datetime import timedelta
from typing import Any, Final

import cbor2
import pytest

from provider.demo import pki, signing, timestamping
from provider.demo.signing import EnvelopeFormat, SignOptions
from provider.oci import MEDIA_TYPE_INDEX, MEDIA_TYPE_MANIFEST, Descriptor
from tests.hostile.process import MIB
from tests.hostile.site import (
    CLOCK_ROOT,
    COSE,
    DAY,
    JWS,
    MAX_GROWTH,
    NOW,
    OTHER_ROOT,
    ROOT,
    SIGNER,
    STRANGER,
    Site,
    push_envelope,
    sign,
    signer,
)
from tests.simulators.registry import as_json, describe, index_of
from tests.simulators.revocation import Fault

pytestmark = pytest.mark.asyncio(loop_scope="module")

OTHER: Final = describe(b"another image", MEDIA_TYPE_MANIFEST)
CERTIFICATE: Final = base64.b64encode(pki.der(SIGNER.certificate)).decode()


async def refused(site: Site, make: Any, media_type: str, *codes: str) -> None:
    """An image with one envelope that `make` made of its descriptor."""
    registry = site.registry()
    key, image = site.image(registry, signed=False)
    push_envelope(registry, image, make(image), media_type)
    await site.denied(key, *codes)


def jws(image: Descriptor, **members: Any) -> bytes:
    """A good signature of which members were replaced afterwards."""
    return json.dumps({**json.loads(signing.sign(image, SIGNER, NOW)), **members}).encode()


def with_algorithm(image: Descriptor, algorithm: str, signature: bytes | None = None) -> bytes:
    """A signature whose header says another algorithm than the key's, and is signed so."""
    attributes = {**signing.jws_attributes(SIGNER.key, NOW, SignOptions()), "alg": algorithm}
    envelope = json.loads(signing.seal_jws(signing.payload_of(image), attributes, SIGNER))
    if signature is not None:
        envelope["signature"] = base64.urlsafe_b64encode(signature).rstrip(b"=").decode()
    return json.dumps(envelope).encode()


# -- envelopes --------------------------------------------------------------------------------------------------------


async def test_n28_a_good_signature_of_another_image(site: Site) -> None:
    await refused(site, lambda image: signing.sign(OTHER, SIGNER, NOW), JWS, "PAYLOAD_MISMATCH")


async def test_n28_a_good_signature_that_lies_in_another_repository(site: Site) -> None:
    """Signatures are looked for beside the image alone."""
    registry = site.registry()
    key, image = site.image(registry, signed=False)
    sign(registry, image)
    other = registry.repository("app")
    registry.repository("elsewhere").referrers = other.referrers
    other.referrers = {}
    await site.denied(key, "UNSIGNED")


async def test_n32_a_signed_part_does_not_vouch_for_its_index(site: Site) -> None:
    registry = site.registry()
    _, part = site.image(registry)
    key = f"{registry.host}/app:index"
    registry.push_manifest("app", index_of([as_json(part)]), media_type=MEDIA_TYPE_INDEX, tag="index")
    await site.denied(key, "UNSIGNED")


@pytest.mark.parametrize("algorithm", ["none", "None", "HS256", "ES384", "PS256", "RS256", "", "ES256\u0000"])
async def test_n49_an_algorithm_that_is_not_the_keys(site: Site, algorithm: str) -> None:
    unsigned = b"" if algorithm.lower() == "none" else None
    code = "ALGORITHM_UNSUPPORTED" if unsigned is None else "ENVELOPE_MALFORMED"
    await refused(site, lambda image: with_algorithm(image, algorithm, unsigned), JWS, code)


@pytest.mark.parametrize(
    ("members", "code"),
    [
        ({"header": {"x5c": [CERTIFICATE] * 1000}}, "CERTIFICATE_CHAIN_INVALID"),
        ({"header": {"x5c": ["A" * 4_000_000]}}, "CERTIFICATE_CHAIN_INVALID"),
        ({"header": {"x5c": [""] * 100_000}}, "ENVELOPE_MALFORMED"),
        ({"header": {"x5c": []}}, "ENVELOPE_MALFORMED"),
        ({"header": {"x5c": [base64.b64encode(pki.der(STRANGER.certificate)).decode()]}}, "SIGNATURE_INVALID"),
        ({"signature": ""}, "ENVELOPE_MALFORMED"),
        ({"signature": "A" * 86}, "SIGNATURE_INVALID"),
        ({"payload": "e30"}, "SIGNATURE_INVALID"),
        ({"header": 10**1000}, "ENVELOPE_MALFORMED"),
    ],
    ids=["1000", "4 MB", "100,000", "none", "a stranger's", "no signature", "zeros", "payload", "number"],
)
async def test_n18_certificates_and_members_that_do_not_fit(site: Site, members: dict[str, Any], code: str) -> None:
    await refused(site, lambda image: jws(image, **members), JWS, code)


@pytest.mark.parametrize(
    ("envelope", "media_type"),
    [
        (b'{"payload":' + b"[" * 500_000, JWS),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, JWS),
        (b'{"payload":"","payload":""}', JWS),
        (b'{"header":' + b"9" * 3_000_000 + b"}", JWS),
        (b'{"a":"' + b"\\u0000" * 500_000 + b'"}', JWS),
        (b"\x81" * 1_000_000, COSE),
        (b"\xd2" * 1_000_000, COSE),
        (b"\x9f" * 1_000_000, COSE),
        (b"\xd2\x84\x5b" + b"\xff" * 8, COSE),
        (b"\xd2\xbb" + b"\xff" * 8, COSE),
        (b"\xd2\x9b\x00\x00\x00\x00\xff\xff\xff\xff", COSE),
        (b"\xc2\x5a\x00\x0f\xff\xff" + b"\xff" * 1_048_575, COSE),
        (cbor2.dumps({number: number for number in range(200_000)}), COSE),
        (b"", JWS),
        (bytes(4 * MIB), JWS),
    ],
    ids=[
        *("deep lists", "deep objects", "twice", "number", "escapes", "deep arrays", "deep tags", "indefinite"),
        *("huge string", "huge map", "huge array", "bignum", "crowded", "empty", "zeros"),
    ],
)
async def test_n16_n17_an_envelope_that_is_a_trap(site: Site, envelope: bytes, media_type: str) -> None:
    await refused(site, lambda image: envelope, media_type, "ENVELOPE_MALFORMED")


async def test_n16_an_envelope_over_the_limit(site: Site) -> None:
    await refused(site, lambda image: bytes(5 * MIB), JWS, "MANIFEST_INVALID")


@pytest.mark.parametrize("media_type", ["application/jwt", "application/x-executable"])
async def test_n50_an_envelope_of_another_type(site: Site, media_type: str) -> None:
    await refused(site, lambda image: signing.sign(image, SIGNER, NOW), media_type, "ENVELOPE_UNSUPPORTED")


async def test_n51_a_critical_attribute_that_nobody_knows(site: Site) -> None:
    options = SignOptions(extra={"evil": 1}, critical=["evil"])
    await refused(site, lambda image: signing.sign(image, SIGNER, NOW, options), JWS, "CRITICAL_ATTRIBUTE_UNKNOWN")


# -- revocation -------------------------------------------------------------------------------------------------------


async def revocable(site: Site, *codes: str, growth: int = MAX_GROWTH, **locations: str) -> None:
    """An image signed with a certificate that says where its revocation can be looked up."""
    registry = site.registry()
    key, image = site.image(registry, signed=False)
    sign(registry, image, signer(**locations))
    await site.denied(key, *codes, growth=growth)


@pytest.mark.parametrize("method", ["ocsp_url", "crl_url"])
@pytest.mark.parametrize("fault", Fault, ids=lambda fault: fault.name.lower())
async def test_n46_a_responder_that_misbehaves(site: Site, fault: Fault, method: str) -> None:
    path = f"/{method}-{fault.name}"
    site.responder.publish(path, b"x" * 100)
    site.responder.faults[path] = fault
    codes = ["REVOCATION_UNAVAILABLE", "REVOCATION_UNKNOWN"]
    codes += ["DEADLINE_EXCEEDED"] if fault in (Fault.SILENT, Fault.STALLED, Fault.OVERSIZE, Fault.ENDLESS) else []
    await revocable(site, *codes, **{method: site.responder.url(path)})


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\x30\x84\xff\xff\xff\xff",
        b"\x30" * 20_000,
        b"\x30\x80" * 10_000,
        b"\x30\x03\x0a\x01\x00",
        b"\x30\x03\x0a\x01\x06",
        pki.revocation_list(ROOT, {}, this_update=NOW, next_update=NOW + DAY),
    ],
    ids=["empty", "length", "deep", "indefinite", "no response", "unauthorized", "a CRL"],
)
async def test_n46_ocsp_garbage(site: Site, answer: bytes) -> None:
    path = f"/ocsp/{hashlib.sha256(answer).hexdigest()}"
    site.responder.publish(path, answer)
    await revocable(site, "REVOCATION_UNAVAILABLE", "REVOCATION_UNKNOWN", ocsp_url=site.responder.url(path))


async def test_n46_a_crl_of_fifty_megabytes(site: Site) -> None:
    site.responder.publish("/huge.crl", bytes(50_000_000))
    await revocable(site, "REVOCATION_UNKNOWN", "REVOCATION_UNAVAILABLE", crl_url=site.responder.url("/huge.crl"))


async def test_n46_thirty_megabytes_that_begin_like_a_crl(site: Site) -> None:
    """As large as may be, and so read: it takes more memory than others, within what is documented."""
    entry = timestamping.asn1.encode(
        timestamping.asn1.SEQUENCE, timestamping.asn1.encode_integer(7), b"\x17\x0d260101000000Z"
    )
    whole = pki.revocation_list(ROOT, {7: NOW}, this_update=NOW - DAY, next_update=NOW + DAY)
    assert entry[:4] in whole
    site.responder.publish("/large.crl", b"\x30\x84\x01\xc9\xc3\x80" + whole[4:200] + entry * 1_500_000)
    await revocable(
        site,
        "REVOCATION_UNKNOWN",
        "REVOCATION_UNAVAILABLE",
        "DEADLINE_EXCEEDED",
        growth=300 * MIB,
        crl_url=site.responder.url("/large.crl"),
    )


async def test_n46_a_list_and_an_answer_by_a_stranger_under_the_issuers_name(site: Site) -> None:
    impostor = pki.issue(
        {"C": "US", "ST": "WA", "O": "Contoso", "CN": "root"},
        pki.authority(),
        issuer=None,
        not_before=NOW - 99 * DAY,
        not_after=NOW + 99 * DAY,
    )
    forged = pki.revocation_list(impostor, {}, this_update=NOW - DAY, next_update=NOW + DAY)
    site.responder.publish("/forged.crl", forged)
    await revocable(site, "REVOCATION_UNKNOWN", "REVOCATION_UNAVAILABLE", crl_url=site.responder.url("/forged.crl"))


async def test_n46_a_revoked_certificate(site: Site) -> None:
    registry = site.registry()
    key, image = site.image(registry, signed=False)
    revoked = signer(crl_url=site.responder.url("/good.crl"))
    serials = {revoked.certificate.serial_number: NOW - DAY}
    issued = pki.revocation_list(ROOT, serials, this_update=NOW - DAY, next_update=NOW + DAY)
    site.responder.publish("/good.crl", issued)
    sign(registry, image, revoked)
    await site.denied(key, "CERTIFICATE_REVOKED")


@pytest.mark.parametrize("method", ["ocsp_url", "crl_url"])
@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data",
        "http://[fd00:ec2::254]/",
        "http://2852039166/",
        "http://0251.0376.0251.0376/",
        "http://localhost:1/",
        "http://[::1]:1/",
        "file:///etc/passwd",
        "https://127.0.0.1:1/",
        "ldap://127.0.0.1/",
        "http://",
        "http://" + "a" * 5000,
    ],
    ids=lambda url: url[:30],
)
async def test_n09_a_certificate_that_leads_inside(site: Site, url: str, method: str) -> None:
    await revocable(site, "REVOCATION_UNAVAILABLE", "REVOCATION_UNKNOWN", **{method: url})


# -- time-stamps ------------------------------------------------------------------------------------------------------


def stamp(root: pki.CertifiedKey, message: bytes, extensions: pki.Extensions | None = None) -> bytes:
    """A token by an authority below `root`, over `message`."""
    name = {"C": "US", "O": "Stamps", "CN": "Stamper"}
    clock = pki.issue(
        name, extensions or pki.timestamping(), issuer=root, not_before=NOW - 60 * DAY, not_after=NOW + DAY
    )
    return timestamping.issue_token(
        message_imprint=hashlib.sha256(message).digest(),
        hash_algorithm="sha256",
        signer_key=clock.key,
        signer_certificate=clock.certificate,
        certificates=[clock.certificate],
        gen_time=NOW - 20 * DAY,
    )


@pytest.mark.parametrize("form", EnvelopeFormat, ids=lambda form: form.name)
@pytest.mark.parametrize(
    ("timestamp", "codes"),
    [
        (lambda signature: b"garbage", ["TIMESTAMP_INVALID"]),
        (lambda signature: b"\x30" * 1_000_000, ["TIMESTAMP_INVALID", "ENVELOPE_MALFORMED"]),
        (lambda signature: b"\x30\x80" * 50_000, ["TIMESTAMP_INVALID"]),
        (lambda signature: stamp(CLOCK_ROOT, b"another signature"), ["TIMESTAMP_INVALID"]),
        (lambda signature: stamp(OTHER_ROOT, signature), ["TIMESTAMP_UNTRUSTED"]),
        (lambda signature: stamp(ROOT, signature), ["TIMESTAMP_UNTRUSTED"]),
        (
            lambda signature: stamp(CLOCK_ROOT, signature, pki.code_signing()),
            ["TIMESTAMP_INVALID", "TIMESTAMP_UNTRUSTED"],
        ),
    ],
    ids=["garbage", "1 MB", "deep", "another signature", "a stranger", "the signers' authority", "no time-stamper"],
)
async def test_n39_n41_a_time_stamp_that_is_none(
    site: Site, form: EnvelopeFormat, timestamp: Any, codes: list[str]
) -> None:
    expired = signer(not_after=NOW - timedelta(days=10))
    options = SignOptions(format=form, timestamp=timestamp)
    await refused(site, lambda image: signing.sign(image, expired, NOW - 20 * DAY, options), form.value, *codes)
