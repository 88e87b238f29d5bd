"""What may and may not stand in a COSE envelope. Every envelope is signed correctly unless the test says otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from provider.errors import Refused
from provider.notation import cose
from provider.notation.certificates import MAX_CHAIN_LENGTH
from provider.notation.envelope import open_envelope
from provider.notation.headers import SigningScheme
from tests.simulators.signer import (
    ABSENT,
    AGENT,
    AUTHENTIC_TIME,
    COSE,
    EXPIRY,
    PAYLOAD,
    PLUGIN,
    PLUGIN_VERSION,
    SCHEME,
    SIGNED_AT,
    SIGNING_TIME,
    TIMESTAMP,
    Signer,
    change,
    epoch,
)

HOUR = timedelta(hours=1)


@pytest.fixture(scope="module")
def signer() -> Signer:
    return Signer.make()


def refusal(data: bytes) -> Refused:
    with pytest.raises(Refused) as caught:
        open_envelope(data, COSE)
    return caught.value


def malformed(data: bytes) -> str:
    error = refusal(data)
    assert error.code == "ENVELOPE_MALFORMED"
    return error.detail


def header_with(signer: Signer, encoded: str, *, count: int = 1) -> bytes:
    """A protected map with entries appended as hex, which no encoder would write."""
    header = cbor2.dumps(signer.cose_header())
    return bytes([header[0] + count]) + header[1:] + bytes.fromhex(encoded)


def test_an_envelope_as_notation_writes_it_opens(signer: Signer) -> None:
    envelope = open_envelope(signer.cose(), COSE)
    assert envelope.payload == PAYLOAD
    assert envelope.signing_scheme is SigningScheme.X509
    assert (envelope.signing_time, envelope.expiry) == (SIGNED_AT, None)
    assert tuple(certificate.der for certificate in envelope.chain) == signer.chain
    assert (envelope.algorithm.name, envelope.signing_agent) == ("ES256", "tests/1.0")
    assert (envelope.timestamp_token, len(envelope.signature)) == (None, 64)


def test_expiry_and_a_time_of_a_signing_authority_are_read(signer: Signer) -> None:
    header = {
        2: [SCHEME, AUTHENTIC_TIME, EXPIRY],
        SCHEME: "notary.x509.signingAuthority",
        SIGNING_TIME: ABSENT,
        AUTHENTIC_TIME: epoch(SIGNED_AT),
        EXPIRY: epoch(SIGNED_AT + HOUR),
    }
    envelope = open_envelope(signer.cose(change(signer.cose_header(), header)), COSE)
    assert envelope.signing_scheme == "notary.x509.signingAuthority"
    assert (envelope.signing_time, envelope.expiry) == (SIGNED_AT, SIGNED_AT + HOUR)


# -- the message ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "respell",
    [
        lambda data: data[1:],
        lambda data: b"\xd1" + data[1:],
        lambda data: b"\xd8\x12" + data[1:],
        lambda data: b"\xd9\xd9\xf7" + data,
        lambda data: b"\xd2" + data,
        lambda data: b"\xd2\x98\x04" + data[2:],
        lambda data: b"\xd2\x9f" + data[2:] + b"\xff",
        lambda data: b"\xd2\x83" + data[2:],
        lambda data: b"\xd2\x85" + data[2:] + b"\xf6",
        lambda data: b"\xd2\xa2" + data[2:],
    ],
)
def test_what_is_no_array_of_four_under_tag_18_is_refused(signer: Signer, respell: Any) -> None:
    assert "not a tagged COSE_Sign1" in malformed(respell(signer.cose()))


@pytest.mark.parametrize("data", [b"", b"\xd2", b"\xd2\x84", b"{}", b"\xff" * 8])
def test_what_is_no_message_is_refused(data: bytes) -> None:
    assert refusal(data).code == "ENVELOPE_MALFORMED"


@pytest.mark.parametrize("more", [b"\x00", b"\xf6", b"\xff", b"\n"])
def test_n17_bytes_after_the_message_are_refused(signer: Signer, more: bytes) -> None:
    assert malformed(signer.cose() + more) == "the envelope is followed by other bytes"


def test_n17_a_truncated_message_is_refused_wherever_it_ends(signer: Signer) -> None:
    data = signer.cose()
    for length in range(2, len(data)):
        assert malformed(data[:length]) == "the envelope is truncated"


@pytest.mark.parametrize("protected", [{}, None, "x", [], 1])
def test_a_protected_header_that_is_no_byte_string_is_refused(signer: Signer, protected: object) -> None:
    assert malformed(signer.cose(sealed={0: protected})) == "the protected header is not a byte string"


@pytest.mark.parametrize("part", [2, 3])
@pytest.mark.parametrize("value", [None, b"", "text", [], 0])
def test_a_detached_or_empty_payload_or_signature_is_refused(signer: Signer, part: int, value: object) -> None:
    assert "payload or the signature is missing" in malformed(signer.cose(sealed={part: value}))


def test_an_empty_payload_that_was_signed_is_refused(signer: Signer) -> None:
    assert "payload or the signature is missing" in malformed(signer.cose(payload=b""))


@pytest.mark.parametrize("header", [None, [], b"", "x", {1.5: 0}, {True: 0}, {None: 0}, {b"33": 0}, {(1, 2): 0}])
def test_an_unprotected_header_that_is_no_map_of_labels_is_refused(signer: Signer, header: object) -> None:
    assert "unprotected header is not a map" in malformed(signer.cose(sealed={1: header}))


@pytest.mark.parametrize("encoded", ["f400", "fb3ff800000000000000", "4161 00", "f600", "8000", "a000"])
def test_a_protected_header_with_other_labels_is_refused(signer: Signer, encoded: str) -> None:
    assert "protected header is not a map" in malformed(signer.cose(header_with(signer, encoded)))


@pytest.mark.parametrize("protected", [cbor2.dumps([1]), cbor2.dumps(b"x"), b"\xf6"])
def test_a_protected_header_that_is_no_map_is_refused(signer: Signer, protected: bytes) -> None:
    assert "protected header is not a map" in malformed(signer.cose(protected))


# -- what CBOR can express and an envelope may not --------------------------------------------------------------------


@pytest.mark.parametrize("encoded", ["0300", "030c", "180300", "1900 03 00", "f9 3c00 00"])
def test_n17_a_label_twice_is_refused_however_it_is_encoded(signer: Signer, encoded: str) -> None:
    assert "Duplicate map key" in malformed(signer.cose(header_with(signer, encoded)))


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("9f01ff", "indefinite length"),
        ("bf0102ff", "indefinite length"),
        ("5f4101ff", "indefinite length"),
        ("7f6161ff", "indefinite length"),
        ("ff", "indefinite length"),
        ("1c", "reserved form"),
        ("fc", "reserved form"),
        ("c0 74 323032362d30332d30315431303a30303a30305a", "CBOR tag 0"),
        ("c2 41ff", "CBOR tag 2"),
        ("c3 41ff", "CBOR tag 3"),
        ("c4 820103", "CBOR tag 4"),
        ("c5 820103", "CBOR tag 5"),
        ("d2 00", "CBOR tag 18"),
        ("d8 19 00", "CBOR tag 25"),
        ("d8 1c 80", "CBOR tag 28"),
        ("d8 1d 00", "CBOR tag 29"),
        ("d8 1e 820102", "CBOR tag 30"),
        ("d8 23 6128", "CBOR tag 35"),
        ("d8 24 6161", "CBOR tag 36"),
        ("d8 25 50 00000000000000000000000000000000", "CBOR tag 37"),
        ("d8 64 01", "CBOR tag 100"),
        ("d9 0102 8101", "CBOR tag 258"),
        ("d9 d9f7 00", "CBOR tag 55799"),
        ("db ffffffffffffffff 00", "CBOR tag 18446744073709551615"),
        ("c1 c1 00", "epoch time that is not a number"),
        ("c1 6130", "epoch time that is not a number"),
        ("c1 f5", "epoch time that is not a number"),
        ("c1 f6", "epoch time that is not a number"),
        ("c1 80", "epoch time that is not a number"),
        ("f7", "simple value"),
        ("f8 20", "simple value"),
        ("e0", "simple value"),
        ("62 c080", "not strict CBOR"),
        ("63 eda080", "not strict CBOR"),
        ("c1 fb 7ff8000000000000", "not strict CBOR"),
        ("c1 fb 7ff0000000000000", "not strict CBOR"),
        ("c1 1b ffffffffffffffff", "not strict CBOR"),
        ("c1 3b ffffffffffffffff", "not strict CBOR"),
        ("9b ffffffffffffffff", "truncated"),
        ("bb 7fffffffffffffff", "truncated"),
        ("5b ffffffffffffffff", "truncated"),
        ("7b ffffffffffffffff", "truncated"),
        ("19 00", "truncated"),
        ("c1", "truncated"),
        ("81" * 20 + "00", "nested deeper"),
        ("a100" * 20 + "00", "nested deeper"),
        ("c1" * 20 + "00", "epoch time that is not a number"),
    ],
)
def test_n17_other_forms_tags_and_values_are_refused_in_the_protected_header(
    signer: Signer, value: str, why: str
) -> None:
    detail = malformed(signer.cose(header_with(signer, "6161" + value)))
    assert detail.startswith("the protected header ")
    assert why in detail


@pytest.mark.parametrize("value", ["9f01ff", "c0 60", "c2 41ff", "d8 1c 80", "d8 23 6128", "f7", "81" * 20 + "00"])
def test_n17_the_unprotected_header_is_no_place_for_them_either(signer: Signer, value: str) -> None:
    data = signer.cose(header=signer.cose_unprotected() | {"a": "@@@@"})
    assert malformed(data.replace(b"\x64@@@@", bytes.fromhex(value))).startswith("the envelope ")


@pytest.mark.parametrize("crowd", [[0] * cose.MAX_ITEMS, dict.fromkeys(range(cose.MAX_ITEMS)), [[]] * cose.MAX_ITEMS])
def test_n17_a_huge_map_or_array_is_refused_before_it_is_built(signer: Signer, crowd: object) -> None:
    assert "values" in malformed(signer.cose(signer.cose_header() | {"a": crowd}))
    assert "values" in malformed(signer.cose(header=signer.cose_unprotected() | {"a": crowd}))


def test_another_order_and_longer_forms_are_taken_as_signed(signer: Signer) -> None:
    header = dict(reversed(signer.cose_header().items()))
    assert open_envelope(signer.cose(header), COSE).payload == PAYLOAD
    assert open_envelope(signer.cose(header_with(signer, "18 2a 1a 00000001")), COSE).extended_attributes == {42: 1}
    sealed = signer.cose()
    assert sealed[2] == 0x58  # the length of the protected header in one octet; in two it is the same header
    assert open_envelope(sealed[:2] + b"\x59\x00" + sealed[3:], COSE).payload == PAYLOAD


def test_floats_booleans_and_null_are_values_of_extended_attributes(signer: Signer) -> None:
    own = {"a": 1.5, "b": [True, False, None], -70000: {"c": b"d"}, "e": epoch(SIGNED_AT)}
    envelope = open_envelope(signer.cose(signer.cose_header() | own), COSE)
    assert envelope.extended_attributes == own | {"e": SIGNED_AT}


# -- headers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", [1, 3, SCHEME, "own"])
def test_n50_a_label_in_both_headers_is_refused(signer: Signer, label: Any) -> None:
    protected = signer.cose_header() | {"own": 1}
    data = signer.cose(protected, header=signer.cose_unprotected() | {label: protected[label]})
    assert str(label) in malformed(data)


def test_n50_crit_in_the_unprotected_header_is_refused(signer: Signer) -> None:
    protected = change(signer.cose_header(), {2: ABSENT})
    data = signer.cose(protected, header=signer.cose_unprotected() | {2: [SCHEME]})
    assert malformed(data) == "crit stands in the unprotected header"


@pytest.mark.parametrize(
    ("algorithm", "found"),
    [
        (ABSENT, "none"),
        (None, "none"),
        (-35, "-35"),
        (-37, "-37"),
        (-8, "-8"),
        (5, "5"),
        ("ES256", "ES256"),
        ([-7], "list"),
    ],
)
def test_n50_another_algorithm_than_the_keys_is_refused(signer: Signer, algorithm: object, found: str) -> None:
    error = refusal(signer.cose(change(signer.cose_header(), {1: algorithm})))
    assert (error.code, error.found) == ("ALGORITHM_UNSUPPORTED", found)


def test_n50_an_algorithm_in_the_unprotected_header_does_not_count(signer: Signer) -> None:
    protected = change(signer.cose_header(), {1: ABSENT})
    error = refusal(signer.cose(protected, header=signer.cose_unprotected() | {1: -7}))
    assert (error.code, error.found) == ("ALGORITHM_UNSUPPORTED", "none")


@pytest.mark.parametrize("content_type", [ABSENT, None, 50, "application/json", b"application/json"])
def test_n50_another_payload_content_type_is_refused(signer: Signer, content_type: object) -> None:
    assert "content type of the payload" in malformed(signer.cose(change(signer.cose_header(), {3: content_type})))


@pytest.mark.parametrize(
    ("critical", "why"),
    [
        (ABSENT, "crit is missing, empty or not an array"),
        ([], "crit is missing, empty or not an array"),
        (SCHEME, "crit is missing, empty or not an array"),
        ({SCHEME: 1}, "crit is missing, empty or not an array"),
        ([SCHEME, b"x"], "neither a number nor text"),
        ([SCHEME, True], "neither a number nor text"),
        ([SCHEME, 1.0], "neither a number nor text"),
        ([SCHEME, [1]], "neither a number nor text"),
        ([SCHEME, "absent"], "names a label that is not there"),
        ([SCHEME, 33], "names a label that is not there"),
        ([SCHEME, EXPIRY], "names a label that is not there"),
        ([3], f"{SCHEME} is not marked critical"),
    ],
)
def test_n50_a_bad_crit_is_refused(signer: Signer, critical: object, why: str) -> None:
    assert why in malformed(signer.cose(change(signer.cose_header(), {2: critical})))


@pytest.mark.parametrize("label", [1, 2, 3, SIGNING_TIME, SCHEME])
def test_crit_may_name_what_is_understood(signer: Signer, label: Any) -> None:
    assert open_envelope(signer.cose(signer.cose_header() | {2: [SCHEME, label]}), COSE).payload == PAYLOAD


@pytest.mark.parametrize("label", ["com.example.must", 4, 42, -65537])
def test_n51_an_unknown_critical_label_is_refused_by_name(signer: Signer, label: Any) -> None:
    error = refusal(signer.cose(signer.cose_header() | {2: [SCHEME, label], label: 1}))
    assert (error.code, error.found) == ("CRITICAL_ATTRIBUTE_UNKNOWN", str(label))


@pytest.mark.parametrize("value", ["com.example.plugin", 7, b"x"])
def test_n51_a_verification_plugin_is_refused_by_name(signer: Signer, value: object) -> None:
    header = signer.cose_header() | {2: [SCHEME, PLUGIN, PLUGIN_VERSION], PLUGIN: value, PLUGIN_VERSION: "1.0"}
    error = refusal(signer.cose(header))
    assert error.code == "CRITICAL_ATTRIBUTE_UNKNOWN"
    assert repr(value) in error.reason


@pytest.mark.parametrize("attribute", [PLUGIN, PLUGIN_VERSION])
def test_n51_a_plugin_that_is_not_marked_critical_is_refused(signer: Signer, attribute: str) -> None:
    assert "is not marked critical" in malformed(signer.cose(signer.cose_header() | {attribute: "x"}))


@pytest.mark.parametrize("scheme", [ABSENT, "", "notary.tuf", 1, None, b"notary.x509"])
def test_n51_another_signing_scheme_is_refused(signer: Signer, scheme: object) -> None:
    assert SCHEME in malformed(signer.cose(change(signer.cose_header(), {SCHEME: scheme})))


AT = epoch(SIGNED_AT)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({SIGNING_TIME: ABSENT}, f"{SIGNING_TIME} is missing"),
        ({AUTHENTIC_TIME: AT}, f"{AUTHENTIC_TIME} must not"),
        ({AUTHENTIC_TIME: AT, 2: [SCHEME, AUTHENTIC_TIME]}, f"{AUTHENTIC_TIME} must not"),
        ({SCHEME: "notary.x509.signingAuthority"}, f"{SIGNING_TIME} must not"),
        ({SCHEME: "notary.x509.signingAuthority", SIGNING_TIME: ABSENT}, f"{AUTHENTIC_TIME} is missing"),
        (
            {SCHEME: "notary.x509.signingAuthority", AUTHENTIC_TIME: AT, 2: [SCHEME, AUTHENTIC_TIME]},
            f"{SIGNING_TIME} must not",
        ),
        (
            {SCHEME: "notary.x509.signingAuthority", SIGNING_TIME: ABSENT, AUTHENTIC_TIME: AT},
            f"{AUTHENTIC_TIME} is not marked critical",
        ),
        ({EXPIRY: epoch(SIGNED_AT + HOUR)}, f"{EXPIRY} is not marked critical"),
        ({EXPIRY: AT, 2: [SCHEME, EXPIRY]}, "expires before it was made"),
        ({EXPIRY: epoch(SIGNED_AT - HOUR), 2: [SCHEME, EXPIRY]}, "expires before it was made"),
        ({EXPIRY: int(SIGNED_AT.timestamp()) + 60, 2: [SCHEME, EXPIRY]}, f"{EXPIRY} is not a time"),
        ({SIGNING_TIME: int(SIGNED_AT.timestamp())}, f"{SIGNING_TIME} is not a time"),
        ({SIGNING_TIME: "2026-03-01T10:00:00Z"}, f"{SIGNING_TIME} is not a time"),
        ({SIGNING_TIME: None}, f"{SIGNING_TIME} is not a time"),
        ({SIGNING_TIME: [AT]}, f"{SIGNING_TIME} is not a time"),
        ({SIGNING_TIME: cbor2.CBORTag(1, -62135596800)}, f"{SIGNING_TIME} is missing"),
    ],
)
def test_n51_wrong_times_are_refused(signer: Signer, changes: Mapping[Any, object], why: str) -> None:
    assert why in malformed(signer.cose(change(signer.cose_header(), changes)))


@pytest.mark.parametrize(
    ("seconds", "time"),
    [
        (0, datetime(1970, 1, 1, tzinfo=UTC)),
        (-1, datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC)),
        (1772359200.5, SIGNED_AT.replace(microsecond=500_000)),
    ],
)
def test_epoch_times_may_have_a_sign_and_a_fraction(signer: Signer, seconds: float, time: datetime) -> None:
    header = signer.cose_header() | {SIGNING_TIME: cbor2.CBORTag(1, seconds)}
    assert open_envelope(signer.cose(header), COSE).signing_time == time


def test_two_times_of_the_same_kind_differ_to_the_microsecond(signer: Signer) -> None:
    header = {
        SIGNING_TIME: cbor2.CBORTag(1, 1772359200.5),
        EXPIRY: cbor2.CBORTag(1, 1772359200.75),
        2: [SCHEME, EXPIRY],
    }
    assert open_envelope(signer.cose(signer.cose_header() | header), COSE).expiry == SIGNED_AT.replace(
        microsecond=750_000
    )


# -- unprotected values -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chain", [ABSENT, None, [], b"0\x82", {}])
def test_an_envelope_without_an_array_of_certificates_is_refused(signer: Signer, chain: object) -> None:
    data = signer.cose(header=change(signer.cose_unprotected(), {33: chain}))
    assert "x5chain is missing, empty or not an array" in malformed(data)


def test_a_lone_certificate_outside_an_array_is_refused(signer: Signer) -> None:
    assert "x5chain" in malformed(signer.cose(header={33: signer.chain[0]}))


def test_a_chain_in_the_protected_header_is_not_read(signer: Signer) -> None:
    assert "x5chain" in malformed(signer.cose(signer.cose_header() | {33: list(signer.chain)}, header={}))


@pytest.mark.parametrize("entry", ["MIIB", None, 1, [b"0"]])
def test_a_chain_with_an_entry_that_is_no_byte_string_is_refused(signer: Signer, entry: object) -> None:
    assert "not a byte string" in malformed(signer.cose(header={33: [*signer.chain, entry]}))


def test_n18_a_chain_of_a_thousand_certificates_is_refused_unread(signer: Signer) -> None:
    for count in (MAX_CHAIN_LENGTH + 1, 1000):
        error = refusal(signer.cose(header={33: [b"not even a certificate"] * count}))
        assert (error.code, error.found) == ("CERTIFICATE_CHAIN_INVALID", str(count))


@pytest.mark.parametrize("value", ["text", 1, None, [b"x"], b""])
def test_a_timestamp_token_of_a_wrong_type_counts_as_absent(signer: Signer, value: object) -> None:
    data = signer.cose(header=signer.cose_unprotected() | {TIMESTAMP: value})
    assert open_envelope(data, COSE).timestamp_token is None


def test_a_timestamp_token_is_handed_on_undecoded(signer: Signer) -> None:
    data = signer.cose(header=signer.cose_unprotected() | {TIMESTAMP: b"token"})
    assert open_envelope(data, COSE).timestamp_token == b"token"


@pytest.mark.parametrize("agent", [1, None, ["x"], b"x", ABSENT])
def test_a_signing_agent_of_a_wrong_type_does_not_fail_the_signature(signer: Signer, agent: object) -> None:
    data = signer.cose(header=change(signer.cose_unprotected(), {AGENT: agent}))
    assert open_envelope(data, COSE).signing_agent is None


# -- any bytes --------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=200))
def test_n70_any_bytes_are_refused_and_nothing_else_happens(data: bytes) -> None:
    for message in (data, b"\xd2\x84" + data):
        with pytest.raises(Refused):
            cose.decode(message)


@given(protected=st.binary(max_size=60))
def test_n70_any_bytes_as_a_signed_header_are_refused(signer: Signer, protected: bytes) -> None:
    for header in (protected, header_with(signer, "0a" + protected.hex())):
        try:
            envelope = open_envelope(signer.cose(header), COSE)
        except Refused:
            continue
        assert envelope.extended_attributes.keys() == {10}


cbor_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**66), 2**66) | st.floats() | st.text() | st.binary() | st.just(AT),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=5,
)
labels = st.sampled_from([1, 2, 3, 33, SCHEME, SIGNING_TIME, AUTHENTIC_TIME, EXPIRY, PLUGIN, PLUGIN_VERSION])


@given(changes=st.dictionaries(labels, cbor_values | st.just(ABSENT), min_size=1, max_size=3))
def test_n70_any_signed_header_is_refused_or_means_the_same(signer: Signer, changes: dict[Any, object]) -> None:
    try:
        envelope = open_envelope(signer.cose(change(signer.cose_header(), changes)), COSE)
    except Refused:
        return
    present = {label for label, value in changes.items() if value is not ABSENT}
    assert not present & {33, AUTHENTIC_TIME, PLUGIN, PLUGIN_VERSION}
    assert (envelope.payload, envelope.signing_scheme, envelope.algorithm.name) == (PAYLOAD, "notary.x509", "ES256")


@given(data=st.data())
def test_n70_one_changed_octet_of_an_envelope_never_changes_what_was_signed(
    signer: Signer, data: st.DataObject
) -> None:
    sealed = bytearray(signer.cose())
    position = data.draw(st.integers(0, len(sealed) - 1))
    sealed[position] = data.draw(st.integers(0, 255))
    try:
        envelope = open_envelope(bytes(sealed), COSE)
    except Refused:
        return
    assert (envelope.payload, envelope.signing_time) == (PAYLOAD, SIGNED_AT)
    assert tuple(certificate.der for certificate in envelope.chain) == signer.chain


def test_the_payload_and_header_that_were_signed_cannot_be_exchanged(signer: Signer) -> None:
    header = cbor2.dumps(signer.cose_header() | {SIGNING_TIME: epoch(SIGNED_AT + HOUR)})
    for sealed in ({2: b"{}"}, {0: header}):
        assert refusal(signer.cose(sealed=sealed)).code == "SIGNATURE_INVALID"
