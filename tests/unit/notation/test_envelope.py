"""Opening an envelope: the order of its checks, its limits, and looking inside without believing anything."""

from __future__ import annotations

import base64
import dataclasses
import itertools

import cbor2
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st

from provider.errors import MAX_FOREIGN_TEXT, Refused
from provider.notation.envelope import MEDIA_TYPES, Envelope, inspect_envelope, open_envelope
from provider.notation.headers import MAX_ENVELOPE_BYTES
from tests.simulators.signer import (
    AGENT,
    COSE,
    EXPIRY,
    JWS,
    LEAF_NAME,
    PAYLOAD,
    PAYLOAD_TYPE,
    PLUGIN,
    ROOT_NAME,
    SCHEME,
    SIGNED_AT,
    SIGNING_TIME,
    TIMESTAMP,
    Signer,
    certificate,
    change,
    epoch,
)

FORMATS = pytest.mark.parametrize("media_type", [JWS, COSE])


@pytest.fixture(scope="module")
def signer() -> Signer:
    return Signer.make()


def sealed(signer: Signer, media_type: str) -> bytes:
    return signer.jws() if media_type == JWS else signer.cose()


def refusal(data: bytes, media_type: str) -> Refused:
    with pytest.raises(Refused) as caught:
        open_envelope(data, media_type)
    return caught.value


@FORMATS
@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()])
def test_every_curve_signs_in_both_formats(media_type: str, curve: ec.EllipticCurve) -> None:
    signer = Signer.make(ec.generate_private_key(curve))
    envelope = open_envelope(sealed(signer, media_type), media_type)
    assert (envelope.payload, envelope.algorithm.curve) == (PAYLOAD, curve.name)


@FORMATS
def test_rsa_signs_in_both_formats(media_type: str) -> None:
    signer = Signer.make(rsa.generate_private_key(65537, 2048))
    assert open_envelope(sealed(signer, media_type), media_type).algorithm.name == "PS256"


@FORMATS
def test_both_formats_give_the_same_content(signer: Signer, media_type: str) -> None:
    expected = open_envelope(signer.jws(), JWS)
    envelope = open_envelope(sealed(signer, media_type), media_type)
    assert envelope == dataclasses.replace(expected, media_type=media_type, signature=envelope.signature)
    assert envelope.payload_content_type == PAYLOAD_TYPE


def test_what_was_opened_is_not_opened_again_and_nothing_else_passes_for_it(signer: Signer) -> None:
    data = signer.jws()
    opened = open_envelope(data, "application/jose+json")
    assert open_envelope(bytes(bytearray(data)), "application/jose+json") is opened
    with pytest.raises(Refused):
        open_envelope(data, "application/cose")
    for position in range(0, len(data), 97):
        altered = data[:position] + bytes((data[position] ^ 1,)) + data[position + 1 :]
        try:
            assert open_envelope(altered, "application/jose+json") != opened
        except Refused:
            continue


def test_a_large_envelope_is_opened_each_time(signer: Signer) -> None:
    data = signer.jws(header={**signer.jws_unprotected(), "note": "x" * 20_000})
    first = open_envelope(data, "application/jose+json")
    assert open_envelope(data, "application/jose+json") is not first


@pytest.mark.parametrize(
    "media_type",
    ["", "application/unsupported+json", "application/JOSE+json", "application/jose+json; a=b", "application/json"],
)
def test_a_media_type_that_is_not_one_of_the_two_is_refused(signer: Signer, media_type: str) -> None:
    error = refusal(signer.jws(), media_type)
    assert (error.code, error.expected) == ("ENVELOPE_UNSUPPORTED", " or ".join(MEDIA_TYPES))


def test_the_format_is_never_guessed_from_the_bytes(signer: Signer) -> None:
    assert refusal(signer.jws(), COSE).code == "ENVELOPE_MALFORMED"
    assert refusal(signer.cose(), JWS).code == "ENVELOPE_MALFORMED"


@FORMATS
def test_n16_an_envelope_over_the_limit_is_refused_unread(media_type: str) -> None:
    error = refusal(b" " * (MAX_ENVELOPE_BYTES + 1), media_type)
    assert (error.code, error.reason) == ("ENVELOPE_MALFORMED", "the signature envelope is too large")


def test_n16_an_envelope_at_the_limit_is_read(signer: Signer) -> None:
    data = signer.jws()
    assert open_envelope(data + b" " * (MAX_ENVELOPE_BYTES - len(data)), JWS).payload == PAYLOAD


# -- certificates -----------------------------------------------------------------------------------------------------


@FORMATS
def test_n18_a_leaf_key_of_another_kind_is_refused(signer: Signer, media_type: str) -> None:
    root_key = ec.generate_private_key(ec.SECP256R1())
    root = certificate(root_key, name=ROOT_NAME, issuer_key=root_key, authority=True)
    for key in (
        ed25519.Ed25519PrivateKey.generate(),
        ec.generate_private_key(ec.SECP256K1()),
        ec.generate_private_key(ec.SECP224R1()),
        rsa.generate_private_key(65537, 1024),
    ):
        wrong = dataclasses.replace(signer, chain=(certificate(key, issuer_key=root_key), root))
        assert refusal(sealed(wrong, media_type), media_type).code == "ALGORITHM_UNSUPPORTED"


@FORMATS
def test_a_leaf_that_is_no_certificate_is_refused(signer: Signer, media_type: str) -> None:
    for junk in (b"", b"0", signer.chain[0][:-1], b"\0" * 40_000):
        wrong = dataclasses.replace(signer, chain=(junk, signer.chain[1]))
        assert refusal(sealed(wrong, media_type), media_type).code == "CERTIFICATE_CHAIN_INVALID"


@FORMATS
def test_an_authority_that_is_no_certificate_is_refused(signer: Signer, media_type: str) -> None:
    wrong = dataclasses.replace(signer, chain=(signer.chain[0], b"0"))
    assert refusal(sealed(wrong, media_type), media_type).code == "CERTIFICATE_CHAIN_INVALID"


@FORMATS
def test_the_chain_of_another_signer_is_refused(signer: Signer, media_type: str) -> None:
    wrong = dataclasses.replace(signer, chain=Signer.make().chain)
    assert refusal(sealed(wrong, media_type), media_type).code == "SIGNATURE_INVALID"


@FORMATS
def test_a_chain_that_breaks_the_certificate_rules_is_refused(signer: Signer, media_type: str) -> None:
    leaf, root = signer.chain
    other_root = Signer.make().chain[1]
    for chain in ((leaf,), (leaf, leaf, root), (leaf, root, root), (leaf, other_root)):
        wrong = dataclasses.replace(signer, chain=chain)
        assert refusal(sealed(wrong, media_type), media_type).code == "CERTIFICATE_CHAIN_INVALID"


@FORMATS
def test_a_chain_with_the_leaf_last_is_refused(signer: Signer, media_type: str) -> None:
    wrong = dataclasses.replace(signer, chain=tuple(reversed(signer.chain)))
    assert refusal(sealed(wrong, media_type), media_type).code == "SIGNATURE_INVALID"


@FORMATS
def test_an_authority_s_own_certificate_may_not_sign(media_type: str) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    signer = Signer(key, (certificate(key, name=ROOT_NAME, issuer_key=key, authority=True),))
    assert refusal(sealed(signer, media_type), media_type).code == "CERTIFICATE_CHAIN_INVALID"


@FORMATS
def test_a_single_self_signed_certificate_may_sign(media_type: str) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    signer = Signer(key, (certificate(key, issuer=LEAF_NAME, issuer_key=key),))
    assert len(open_envelope(sealed(signer, media_type), media_type).chain) == 1


def test_attributes_are_judged_after_the_signature(signer: Signer) -> None:
    """Someone on the way who marks an attribute critical is told of the broken signature, not of the attribute."""
    header = signer.jws_header() | {"crit": [SCHEME, "x"], "x": 1}
    assert refusal(signer.jws(header), JWS).code == "CRITICAL_ATTRIBUTE_UNKNOWN"
    assert refusal(Signer(Signer.make().key, signer.chain).jws(header), JWS).code == "SIGNATURE_INVALID"


def test_n70_any_bytes_with_any_media_type_are_refused() -> None:
    @given(st.binary(max_size=100), st.sampled_from([*MEDIA_TYPES, "x/y"]) | st.text(max_size=10))
    def check(data: bytes, media_type: str) -> None:
        for function in (open_envelope, inspect_envelope):
            with pytest.raises(Refused):
                function(data, media_type)

    check()


def test_an_envelope_cannot_be_changed_and_can_be_a_key(signer: Signer) -> None:
    data = signer.jws()
    envelope: Envelope = open_envelope(data, JWS)
    with pytest.raises(dataclasses.FrozenInstanceError):
        envelope.payload = b""  # type: ignore[misc]
    assert {envelope: 1}[open_envelope(data, JWS)] == 1


# -- looking inside ---------------------------------------------------------------------------------------------------


@FORMATS
def test_inspecting_a_good_envelope_shows_what_is_in_it(signer: Signer, media_type: str) -> None:
    inspected = inspect_envelope(sealed(signer, media_type), media_type)
    assert (inspected.media_type, inspected.content_type, inspected.payload) == (media_type, PAYLOAD_TYPE, PAYLOAD)
    assert inspected.algorithm == ("ES256" if media_type == JWS else "-7")
    shown = [(attribute.name, attribute.value, attribute.critical) for attribute in inspected.attributes]
    assert shown == [(SCHEME, "notary.x509", True), (SIGNING_TIME, SIGNED_AT.isoformat(), False)]
    assert tuple(certificate.der for certificate in inspected.chain) == signer.chain
    assert (inspected.signing_agent, inspected.timestamp_token) == ("tests/1.0", None)
    assert (len(inspected.signature), inspected.unknown_critical, inspected.faults) == (64, (), ())


@FORMATS
def test_inspecting_shows_a_forgery_as_it_is(signer: Signer, media_type: str) -> None:
    forger = Signer(Signer.make().key, signer.chain)
    assert refusal(sealed(forger, media_type), media_type).code == "SIGNATURE_INVALID"
    assert inspect_envelope(sealed(forger, media_type), media_type).chain[0].der == signer.chain[0]


def test_inspecting_lists_unknown_critical_attributes(signer: Signer) -> None:
    more = {PLUGIN: "com.example.plugin", "x": 1}
    jws = inspect_envelope(signer.jws(signer.jws_header() | {"crit": [SCHEME, *more]} | more), JWS)
    cose = inspect_envelope(signer.cose(signer.cose_header() | {2: [SCHEME, *more, 9], 9: 1} | more), COSE)
    assert jws.unknown_critical == (PLUGIN, "x")
    assert cose.unknown_critical == (PLUGIN, "x", "9")
    for inspected in (jws, cose):
        assert "'com.example.plugin'" in inspected.faults[0]


def test_inspecting_names_every_fault_it_sees(signer: Signer) -> None:
    header = signer.jws_unprotected()
    header["x5c"].insert(1, base64.b64encode(b"junk").decode())
    protected = signer.jws_header() | {"alg": "none", SIGNING_TIME: "yesterday"}
    inspected = inspect_envelope(signer.jws(protected, header=header), JWS)
    assert inspected.algorithm == "none"
    assert [fault.partition(":")[0] for fault in inspected.faults] == [
        "the algorithm none is not supported",
        f"{SIGNING_TIME} is not a time",
        "certificate 2",
    ]
    assert len(inspected.chain) == 2
    assert {attribute.name: attribute.value for attribute in inspected.attributes}[SIGNING_TIME] == "yesterday"


def test_inspecting_shows_foreign_values_as_printable_text(signer: Signer) -> None:
    values = {"a\x1b[2J": "b\n\x1b", "n": None, "long": "x" * 9999, "bytes": b"\x00\xff", 5: [1, {"k": b"v"}]}
    protected = change(signer.cose_header(), {3: 50, EXPIRY: epoch(SIGNED_AT)} | values)
    header = signer.cose_unprotected() | {AGENT: "agent\x07", TIMESTAMP: b"token"}
    inspected = inspect_envelope(signer.cose(protected, header=header), COSE)
    shown = {attribute.name: attribute.value for attribute in inspected.attributes}
    assert (shown["a\ufffd[2J"], shown["n"], shown["bytes"]) == ("b\ufffd\ufffd", "None", "00ff")
    assert (len(shown["long"]), shown["5"]) == (MAX_FOREIGN_TEXT, "[1, {'k': b'v'}]")
    assert (shown[EXPIRY], inspected.content_type) == (SIGNED_AT.isoformat(), "50")
    assert (inspected.signing_agent, inspected.timestamp_token) == ("agent\ufffd", b"token")
    for text in itertools.chain(shown, shown.values()):
        assert text.isprintable()


@FORMATS
def test_inspecting_an_envelope_without_content_type_or_agent_says_so(signer: Signer, media_type: str) -> None:
    if media_type == JWS:
        protected = {key: value for key, value in signer.jws_header().items() if key != "cty"}
        data = signer.jws(protected, header={"x5c": signer.jws_unprotected()["x5c"]})
    else:
        protected = {key: value for key, value in signer.cose_header().items() if key != 3}
        data = signer.cose(cbor2.dumps(protected), header={33: list(signer.chain)})
    inspected = inspect_envelope(data, media_type)
    assert (inspected.content_type, inspected.signing_agent) == (None, None)
    assert "content type" in inspected.faults[0]


@given(position=st.integers(0), value=st.integers(0, 255), media_type=st.sampled_from(MEDIA_TYPES))
def test_n70_a_damaged_envelope_is_shown_or_refused(signer: Signer, position: int, value: int, media_type: str) -> None:
    data = bytearray(sealed(signer, media_type))
    data[position % len(data)] = value
    try:
        inspected = inspect_envelope(bytes(data), media_type)
    except Refused:
        return
    assert all(fault.isprintable() for fault in inspected.faults)
