"""What may and may not stand in a JWS envelope. Every envelope is signed correctly unless the test says otherwise."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provider.errors import Refused
from provider.notation import jws
from provider.notation.certificates import MAX_CHAIN_LENGTH
from provider.notation.envelope import open_envelope
from provider.notation.headers import SigningScheme
from provider.notation.json_objects import MAX_VALUES
from tests.simulators.signer import (
    ABSENT,
    AGENT,
    AUTHENTIC_TIME,
    EXPIRY,
    JWS,
    PAYLOAD,
    PLUGIN,
    PLUGIN_VERSION,
    SCHEME,
    SIGNED_AT,
    SIGNING_TIME,
    TIMESTAMP,
    Signer,
    base64url,
    change,
)


@pytest.fixture(scope="module")
def signer() -> Signer:
    return Signer.make()


def refusal(data: bytes) -> Refused:
    with pytest.raises(Refused) as caught:
        open_envelope(data, JWS)
    return caught.value


def malformed(data: bytes) -> str:
    error = refusal(data)
    assert error.code == "ENVELOPE_MALFORMED"
    return error.detail


def test_an_envelope_as_notation_writes_it_opens(signer: Signer) -> None:
    envelope = open_envelope(signer.jws(), JWS)
    assert envelope.payload == PAYLOAD
    assert envelope.signing_scheme is SigningScheme.X509
    assert (envelope.signing_time, envelope.expiry) == (SIGNED_AT, None)
    assert tuple(certificate.der for certificate in envelope.chain) == signer.chain
    assert (envelope.algorithm.name, envelope.signing_agent) == ("ES256", "tests/1.0")
    assert (envelope.timestamp_token, len(envelope.signature)) == (None, 64)


def test_expiry_and_a_time_of_a_signing_authority_are_read(signer: Signer) -> None:
    header = {
        "crit": [SCHEME, AUTHENTIC_TIME, EXPIRY],
        SCHEME: "notary.x509.signingAuthority",
        SIGNING_TIME: ABSENT,
        AUTHENTIC_TIME: "2026-03-01T12:00:00.25+02:00",
        EXPIRY: "2026-03-02T10:00:00Z",
    }
    envelope = open_envelope(signer.jws(change(signer.jws_header(), header)), JWS)
    assert envelope.signing_scheme == "notary.x509.signingAuthority"
    assert envelope.signing_time == SIGNED_AT.replace(microsecond=250_000)
    assert envelope.expiry == SIGNED_AT.replace(day=2)


# -- the serialization ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sealed",
    [
        {"foo": 1},
        {"header": ABSENT},
        {"payload": ABSENT},
        {"signature": ABSENT},
        {"signatures": []},
        {"payload": ABSENT, "protected": ABSENT, "header": ABSENT, "signature": ABSENT},
    ],
)
def test_n49_other_members_than_the_four_are_refused(signer: Signer, sealed: Mapping[str, object]) -> None:
    assert "flattened JWS" in malformed(signer.jws(sealed=sealed))


@pytest.mark.parametrize("name", ["Payload", "PAYLOAD", "\u017fignature"])
def test_n49_a_member_in_another_case_is_refused(signer: Signer, name: str) -> None:
    assert "in case alone" in malformed(signer.jws(sealed={name: "x"}))


@pytest.mark.parametrize("data", [b"", b"null", b"[]", b'"a.b.c"', b"1", b"eyJhbGciOiJub25lIn0.e30.", b"\xff", b"{"])
def test_n49_the_compact_form_and_what_is_no_object_are_refused(data: bytes) -> None:
    assert "not a strict JSON object" in malformed(data)


def test_n16_bytes_after_the_envelope_are_refused(signer: Signer) -> None:
    assert "Extra data" in malformed(signer.jws() + b"{}")


def test_n16_a_member_twice_is_refused(signer: Signer) -> None:
    data = signer.jws()
    assert "duplicate" in malformed(data[:-1] + b', "payload": "e30"}')


def test_n16_deep_and_crowded_json_is_refused_before_it_is_parsed(signer: Signer) -> None:
    assert "nested deeper" in malformed(b'{"header":' + b"[" * 5000 + b"]" * 5000 + b"}")
    assert f"more than {MAX_VALUES} values" in malformed(b'{"header":[' + b"[]," * MAX_VALUES + b"0]}")
    crowded = signer.jws(header=signer.jws_unprotected() | {"x": [0] * (MAX_VALUES + 1)})
    assert f"more than {MAX_VALUES} values" in malformed(crowded)


def test_json_white_space_and_member_order_do_not_matter(signer: Signer) -> None:
    members = json.loads(signer.jws())
    data = json.dumps(dict(reversed(members.items())), indent=3).encode()
    assert open_envelope(data, JWS).payload == PAYLOAD


@pytest.mark.parametrize("member", ["payload", "protected", "signature"])
@pytest.mark.parametrize("value", [1, None, ["e30"], {"a": 1}])
def test_a_member_that_is_no_string_is_refused(signer: Signer, member: str, value: object) -> None:
    assert f"{member} is" in malformed(signer.jws(sealed={member: value}))


@pytest.mark.parametrize("header", [None, [], "x", 1])
def test_an_unprotected_header_that_is_no_object_is_refused(signer: Signer, header: object) -> None:
    assert "unprotected header is not a JSON object" in malformed(signer.jws(sealed={"header": header}))


# -- base64url --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("member", ["payload", "protected", "signature"])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text + "=" * (-len(text) % 4 or 4),
        lambda text: text + "=",
        lambda text: text[:8] + "\n" + text[8:],
        lambda text: text + "\r\n",
        lambda text: text[:8] + " " + text[8:],
        lambda text: text[:-2] + "+/",
        lambda text: text[:-1] + "é",
        lambda text: text[:-1] + "\u00ad",
        lambda text: text[:-1] + "\0",
        lambda text: text + "A" * (5 - len(text) % 4),
        lambda text: text[:8] + "." + text[8:],
    ],
)
def test_n49_padding_line_breaks_and_other_alphabets_are_refused(signer: Signer, member: str, spoil: Any) -> None:
    members = json.loads(signer.jws())
    assert f"{member} is not base64url" in malformed(signer.jws(sealed={member: spoil(members[member])}))


def test_n49_stray_bits_at_the_end_are_refused(signer: Signer) -> None:
    text = json.loads(signer.jws())["signature"]  # 64 octets: the last digit carries 4 bits of data and 2 of nothing
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    for stray in (1, 2, 3):
        spoilt = text[:-1] + alphabet[alphabet.index(text[-1]) + stray]
        assert base64.urlsafe_b64decode(spoilt + "==") == base64.urlsafe_b64decode(text + "==")
        assert "signature is not base64url in its one form" in malformed(signer.jws(sealed={"signature": spoilt}))


@pytest.mark.parametrize("sealed", [{"payload": ""}, {"signature": ""}])
def test_an_empty_payload_or_signature_is_refused(signer: Signer, sealed: Mapping[str, object]) -> None:
    assert "is empty" in malformed(signer.jws(sealed=sealed))


def test_an_empty_payload_that_was_signed_is_refused(signer: Signer) -> None:
    assert "is empty" in malformed(signer.jws(payload=b""))


# -- the protected header ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protected", [b"", b"[]", b"null", b'{"alg":"ES256","alg":"ES256"}', b"{}x", b"\xff"])
def test_a_protected_header_that_is_no_strict_object_is_refused(signer: Signer, protected: bytes) -> None:
    assert "protected header is not a strict JSON object" in malformed(signer.jws(protected))


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("cty", "CTY"),
        ("alg", "Alg"),
        ("crit", "Crit"),
        ("b64", "B64"),
        (SCHEME, SCHEME.lower()),
        (EXPIRY, EXPIRY.title()),
    ],
)
def test_n49_a_protected_name_in_another_case_is_refused(signer: Signer, name: str, variant: str) -> None:
    header = signer.jws_header()
    beside = signer.jws(header | {variant: header.get(name, "x")})
    instead = signer.jws(change(header, {name: ABSENT, variant: header.get(name, "x")}))
    for data in (beside, instead):
        assert "in case alone" in malformed(data)


@pytest.mark.parametrize("algorithm", ["none", "HS256", "RS256", "ES384", "PS256", "es256", "EdDSA"])
def test_n49_another_algorithm_than_the_keys_is_refused(signer: Signer, algorithm: str) -> None:
    error = refusal(signer.jws(signer.jws_header() | {"alg": algorithm}))
    assert (error.code, error.found) == ("ALGORITHM_UNSUPPORTED", algorithm)


@pytest.mark.parametrize("algorithm", [ABSENT, None, -7, ["ES256"]])
def test_n49_an_algorithm_that_is_no_string_is_refused(signer: Signer, algorithm: object) -> None:
    assert "alg is" in malformed(signer.jws(change(signer.jws_header(), {"alg": algorithm})))


@pytest.mark.parametrize("value", [True, False])
@pytest.mark.parametrize("critical", [[SCHEME], [SCHEME, "b64"]])
def test_n49_b64_is_refused(signer: Signer, value: bool, critical: list[str]) -> None:
    assert "b64" in malformed(signer.jws(signer.jws_header() | {"b64": value, "crit": critical}))
    assert "b64" in malformed(signer.jws(header=signer.jws_unprotected() | {"b64": value}))


@pytest.mark.parametrize(
    ("critical", "why"),
    [
        (ABSENT, "crit is missing, empty or not an array"),
        ([], "crit is missing, empty or not an array"),
        (SCHEME, "crit is missing, empty or not an array"),
        ({SCHEME: True}, "crit is missing, empty or not an array"),
        (None, "crit is missing, empty or not an array"),
        ([SCHEME, 1], "an entry of crit is not a string"),
        ([SCHEME, None], "an entry of crit is missing"),
        ([SCHEME, SCHEME], "names a header twice"),
        ([SCHEME, "absent"], "names a header that is not there"),
        ([SCHEME, EXPIRY], "names a header that is not there"),
        ([SCHEME, "alg"], "may not name alg"),
        ([SCHEME, "cty"], "may not name cty"),
        ([SCHEME, "crit"], "may not name crit"),
        ([SCHEME, SIGNING_TIME], "may not name io.cncf.notary.signingTime"),
        ([AGENT], "names a header that is not there"),
    ],
)
def test_n49_a_bad_crit_is_refused(signer: Signer, critical: object, why: str) -> None:
    assert why in malformed(signer.jws(change(signer.jws_header(), {"crit": critical})))


def test_n49_crit_in_the_unprotected_header_is_refused(signer: Signer) -> None:
    protected = change(signer.jws_header(), {"crit": ABSENT})
    data = signer.jws(protected, header=signer.jws_unprotected() | {"crit": [SCHEME]})
    assert "crit stands in the unprotected header" in malformed(data)


@pytest.mark.parametrize("name", ["alg", "cty", SCHEME, "com.example.own"])
def test_n49_a_name_in_both_headers_is_refused(signer: Signer, name: str) -> None:
    protected = signer.jws_header() | {"com.example.own": 1}
    data = signer.jws(protected, header=signer.jws_unprotected() | {name: protected[name]})
    assert name in malformed(data)


def test_unknown_members_of_both_headers_are_ignored(signer: Signer) -> None:
    protected = signer.jws_header() | {
        "com.example.info": {"a": [1.5, None]},
        "kid": 7,
        "x5u": "http://169.254.169.254/",
    }
    envelope = open_envelope(signer.jws(protected, header=signer.jws_unprotected() | {"jku": 1, EXPIRY: 1}), JWS)
    assert envelope.extended_attributes == {
        "com.example.info": {"a": [1.5, None]},
        "kid": 7,
        "x5u": "http://169.254.169.254/",
    }
    assert envelope.expiry is None


# -- critical attributes ----------------------------------------------------------------------------------------------


def test_n51_an_unknown_critical_attribute_is_refused_by_name(signer: Signer) -> None:
    header = signer.jws_header() | {"crit": [SCHEME, "com.example.must", "x5t"], "com.example.must": 1, "x5t": "a"}
    error = refusal(signer.jws(header))
    assert (error.code, error.found) == ("CRITICAL_ATTRIBUTE_UNKNOWN", "com.example.must, x5t")


@pytest.mark.parametrize("more", [{}, {PLUGIN_VERSION: "1.0.0"}, {"SomeKey": "x"}])
def test_n51_a_verification_plugin_is_refused_by_name(signer: Signer, more: dict[str, str]) -> None:
    attributes = {**more, PLUGIN: "com.example.plugin"}
    error = refusal(signer.jws(signer.jws_header() | {"crit": [SCHEME, *attributes], **attributes}))
    assert error.code == "CRITICAL_ATTRIBUTE_UNKNOWN"
    assert "'com.example.plugin'" in error.reason


def test_n51_the_version_of_a_plugin_alone_is_refused_too(signer: Signer) -> None:
    header = signer.jws_header() | {"crit": [SCHEME, PLUGIN_VERSION], PLUGIN_VERSION: "1.0.0"}
    assert refusal(signer.jws(header)).code == "CRITICAL_ATTRIBUTE_UNKNOWN"


@pytest.mark.parametrize("attribute", [PLUGIN, PLUGIN_VERSION])
def test_n51_a_plugin_that_is_not_marked_critical_is_refused(signer: Signer, attribute: str) -> None:
    assert "is not marked critical" in malformed(signer.jws(signer.jws_header() | {attribute: "x"}))


def test_n51_an_expiry_that_is_not_marked_critical_is_refused(signer: Signer) -> None:
    data = signer.jws(signer.jws_header() | {EXPIRY: "2027-01-01T00:00:00Z"})
    assert malformed(data) == f"{EXPIRY} is not marked critical, which it must be"


def test_n51_a_scheme_that_is_not_marked_critical_is_refused(signer: Signer) -> None:
    header = signer.jws_header() | {"crit": [EXPIRY], EXPIRY: "2027-01-01T00:00:00Z"}
    assert f"{SCHEME} is not marked critical" in malformed(signer.jws(header))


# -- attributes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content_type", [ABSENT, None, 1, "application/json", "application/VND.cncf.notary.payload.v1+json"]
)
def test_n31_another_payload_content_type_is_refused(signer: Signer, content_type: object) -> None:
    assert "content type of the payload" in malformed(signer.jws(change(signer.jws_header(), {"cty": content_type})))


@pytest.mark.parametrize("scheme", ["notary.tuf", "", "Notary.x509", "notary.x509 ", None, 1, ["notary.x509"]])
def test_n51_another_signing_scheme_is_refused(signer: Signer, scheme: object) -> None:
    assert f"{SCHEME} is missing or not supported" in malformed(signer.jws(signer.jws_header() | {SCHEME: scheme}))


def test_n51_a_header_without_a_scheme_is_refused(signer: Signer) -> None:
    header = {SCHEME: ABSENT, "crit": [EXPIRY], EXPIRY: "2027-01-01T00:00:00Z"}
    assert f"{SCHEME} is missing" in malformed(signer.jws(change(signer.jws_header(), header)))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({SIGNING_TIME: ABSENT}, f"{SIGNING_TIME} is missing"),
        ({SIGNING_TIME: "0001-01-01T00:00:00Z"}, f"{SIGNING_TIME} is missing"),
        ({SIGNING_TIME: ABSENT, AUTHENTIC_TIME: "2026-03-01T10:00:00Z"}, f"{AUTHENTIC_TIME} must not"),
        ({AUTHENTIC_TIME: "2026-03-01T10:00:00Z"}, f"{AUTHENTIC_TIME} must not"),
        ({AUTHENTIC_TIME: None}, f"{AUTHENTIC_TIME} must not"),
        ({SCHEME: "notary.x509.signingAuthority"}, f"{SIGNING_TIME} must not"),
        ({SCHEME: "notary.x509.signingAuthority", SIGNING_TIME: ABSENT}, f"{AUTHENTIC_TIME} is missing"),
        (
            {
                SCHEME: "notary.x509.signingAuthority",
                AUTHENTIC_TIME: "2026-03-01T10:00:00Z",
                "crit": [SCHEME, AUTHENTIC_TIME],
            },
            f"{SIGNING_TIME} must not",
        ),
        (
            {SCHEME: "notary.x509.signingAuthority", SIGNING_TIME: ABSENT, AUTHENTIC_TIME: "2026-03-01T10:00:00Z"},
            f"{AUTHENTIC_TIME} is not marked critical",
        ),
    ],
)
def test_n51_the_time_attribute_of_the_other_scheme_is_refused(
    signer: Signer, changes: Mapping[str, object], why: str
) -> None:
    assert why in malformed(signer.jws(change(signer.jws_header(), changes)))


@pytest.mark.parametrize("expiry", ["2026-03-01T10:00:00Z", "2026-03-01T09:59:59Z", "2026-03-01T12:00:00+02:00"])
def test_n51_an_expiry_that_is_not_after_the_signing_time_is_refused(signer: Signer, expiry: str) -> None:
    data = signer.jws(signer.jws_header() | {"crit": [SCHEME, EXPIRY], EXPIRY: expiry})
    assert "expires before it was made" in malformed(data)


def test_go_s_zero_time_as_expiry_means_none(signer: Signer) -> None:
    header = signer.jws_header() | {EXPIRY: "0001-01-01T00:00:00Z"}
    assert open_envelope(signer.jws(header), JWS).expiry is None
    assert "marked critical but has no value" in malformed(signer.jws(header | {"crit": [SCHEME, EXPIRY]}))


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2026-03-01T10:00:00Z", SIGNED_AT),
        ("2026-03-01T10:00:00.5Z", SIGNED_AT.replace(microsecond=500_000)),
        ("2026-03-01T10:00:00.123456789Z", SIGNED_AT.replace(microsecond=123_456)),
        ("2026-03-01T10:00:00+00:00", SIGNED_AT),
        ("2026-03-01T09:30:00-00:30", SIGNED_AT),
        ("2026-03-02T09:59:00+23:59", SIGNED_AT),
        ("2024-02-29T00:00:00Z", datetime(2024, 2, 29, tzinfo=UTC)),
        ("9999-12-31T23:59:59Z", datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)),
    ],
)
def test_times_of_rfc_3339_are_read(text: str, time: datetime) -> None:
    assert jws.read_time(text) == time
    assert jws.read_time(text).tzinfo is UTC


@pytest.mark.parametrize(
    "text",
    [
        1_700_000_000,
        None,
        True,
        ["2026-03-01T10:00:00Z"],
        "",
        "2026-03-01",
        "2026-03-01 10:00:00Z",
        "2026-03-01t10:00:00z",
        "2026-03-01T10:00:00",
        "2026-03-01T10:00Z",
        "2026-03-01T10:00:00.Z",
        "2026-03-01T10:00:00,5Z",
        "2026-03-01T10:00:00Z\n",
        " 2026-03-01T10:00:00Z",
        "2026-3-01T10:00:00Z",
        "+2026-03-01T10:00:00Z",
        "2026-03-01T10:00:00+0000",
        "2026-03-01T10:00:00+24:00",
        "2026-03-01T10:00:00+00:60",
        "2026-03-01T24:00:00Z",
        "2026-03-01T10:00:60Z",
        "2026-02-30T10:00:00Z",
        "2025-02-29T10:00:00Z",
        "2026-13-01T10:00:00Z",
        "0000-01-01T00:00:00Z",
        "0001-01-01T00:00:00+00:01",
        "9999-12-31T23:59:59-00:01",
        "２０２６-03-01T10:00:00Z",
        "20260301T100000Z",
    ],
)
def test_other_times_are_refused(signer: Signer, text: object) -> None:
    data = signer.jws(signer.jws_header() | {SIGNING_TIME: text})
    assert f"{SIGNING_TIME} is not a time" in malformed(data)


@given(st.text(alphabet="0123456789-T:.Z+ ", max_size=40) | st.text(max_size=30))
def test_n70_any_text_is_a_time_or_a_value_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert jws.read_time(text).tzinfo is UTC


@given(
    time=st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30)),  # noqa: DTZ001 - the offset is drawn beside it
    minutes=st.integers(-1439, 1439),
)
def test_every_time_that_can_be_written_is_read_back(time: datetime, minutes: int) -> None:
    aware = time.replace(tzinfo=timezone(timedelta(minutes=minutes)))
    assert jws.read_time(aware.isoformat()) == aware


# -- the unprotected header -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chain", [ABSENT, None, [], "MIIB", {}])
def test_an_envelope_without_a_chain_is_refused(signer: Signer, chain: object) -> None:
    data = signer.jws(header=change(signer.jws_unprotected(), {"x5c": chain}))
    assert "x5c is missing, empty or not an array" in malformed(data)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text.rstrip("=") + "A" * (text.count("=") == 0),
        lambda text: text[:64] + "\n" + text[64:],
        lambda text: text[:64] + "\r\n" + text[64:],
        lambda text: text.replace("+", "-").replace("/", "_") + "-",
        lambda text: f"-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n",
        lambda text: " " + text,
        lambda text: text + "é",
        lambda text: "QR==",  # stray bits
        lambda text: "QQ=",
    ],
)
def test_a_chain_in_pem_base64url_or_broken_base64_is_refused(signer: Signer, spoil: Any) -> None:
    header = signer.jws_unprotected()
    header["x5c"][0] = spoil(header["x5c"][0])
    assert "an entry of x5c is not base64" in malformed(signer.jws(header=header))


@pytest.mark.parametrize("entry", [None, 1, ["MIIB"]])
def test_a_chain_with_an_entry_that_is_no_string_is_refused(signer: Signer, entry: object) -> None:
    header = signer.jws_unprotected()
    header["x5c"].append(entry)
    assert "an entry of x5c is" in malformed(signer.jws(header=header))


def test_octets_after_a_certificate_are_refused(signer: Signer) -> None:
    header = signer.jws_unprotected() | {"x5c": [base64.b64encode(der + b"\0").decode() for der in signer.chain]}
    assert refusal(signer.jws(header=header)).code == "CERTIFICATE_CHAIN_INVALID"


def test_n18_a_chain_of_a_thousand_certificates_is_refused_unread(signer: Signer) -> None:
    for count in (MAX_CHAIN_LENGTH + 1, 1000):
        error = refusal(signer.jws(header={"x5c": ["not even base64"] * count}))
        assert (error.code, error.found) == ("CERTIFICATE_CHAIN_INVALID", str(count))


@pytest.mark.parametrize("name", ["X5C", "x5C", TIMESTAMP.upper()])
def test_n49_an_unprotected_name_in_another_case_is_refused(signer: Signer, name: str) -> None:
    assert "in case alone" in malformed(signer.jws(header=signer.jws_unprotected() | {name: "x"}))


@pytest.mark.parametrize("agent", [1, None, ["x"], {"a": 1}, True])
def test_a_signing_agent_of_a_wrong_type_does_not_fail_the_signature(signer: Signer, agent: object) -> None:
    assert open_envelope(signer.jws(header=signer.jws_unprotected() | {AGENT: agent}), JWS).signing_agent is None


def test_the_signing_agent_as_early_signers_wrote_it_does_not_fail_the_signature(signer: Signer) -> None:
    header = change(signer.jws_unprotected(), {AGENT: ABSENT, "io.cncf.notary.SigningAgent": "Notation/1.0.0"})
    assert open_envelope(signer.jws(header=header), JWS).signing_agent is None


def test_a_timestamp_token_is_handed_on_undecoded(signer: Signer) -> None:
    header = signer.jws_unprotected() | {TIMESTAMP: base64.b64encode(b"token").decode()}
    assert open_envelope(signer.jws(header=header), JWS).timestamp_token == b"token"
    assert open_envelope(signer.jws(header=header | {TIMESTAMP: ""}), JWS).timestamp_token is None


@pytest.mark.parametrize("token", [None, 1, ["AAAA"], "A", "AB==", "AA\n==", "-_-_"])
def test_a_timestamp_token_that_is_no_base64_text_is_refused(signer: Signer, token: object) -> None:
    assert TIMESTAMP in malformed(signer.jws(header=signer.jws_unprotected() | {TIMESTAMP: token}))


# -- any bytes --------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=300) | st.text(alphabet='{}[]",:\\0eE-.truefalsn \t', max_size=200).map(str.encode))
def test_n70_any_bytes_are_refused_and_nothing_else_happens(data: bytes) -> None:
    with pytest.raises(Refused):
        jws.decode(data)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
protected_names = st.sampled_from(
    ["alg", "cty", "crit", "b64", SCHEME, SIGNING_TIME, AUTHENTIC_TIME, EXPIRY, PLUGIN, PLUGIN_VERSION, "x5c", "Alg"]
)


@given(changes=st.dictionaries(protected_names, json_values | st.just(ABSENT), min_size=1, max_size=3))
def test_n70_any_signed_header_is_refused_or_means_the_same(signer: Signer, changes: dict[str, object]) -> None:
    data = signer.jws(change(signer.jws_header(), changes))
    try:
        envelope = open_envelope(data, JWS)
    except Refused:
        return
    # What can change and still open is a signing time that nobody trusts, and attributes that nobody processes.
    present = {name for name, value in changes.items() if value is not ABSENT}
    assert not present & {"b64", "Alg", AUTHENTIC_TIME, PLUGIN, PLUGIN_VERSION}
    assert (envelope.payload, envelope.signing_scheme, envelope.algorithm.name) == (PAYLOAD, "notary.x509", "ES256")


@given(changes=st.dictionaries(st.sampled_from(["x5c", TIMESTAMP, AGENT, "alg", "y"]), json_values, min_size=1))
def test_n70_any_unprotected_header_is_refused_or_means_the_same(signer: Signer, changes: dict[str, object]) -> None:
    try:
        envelope = open_envelope(signer.jws(header=signer.jws_unprotected() | changes), JWS)
    except Refused:
        return
    assert (envelope.payload, envelope.chain[0].der) == (PAYLOAD, signer.chain[0])


@given(data=st.data())
def test_n70_one_changed_character_of_an_envelope_never_changes_what_was_signed(
    signer: Signer, data: st.DataObject
) -> None:
    sealed = bytearray(signer.jws())
    position = data.draw(st.integers(0, len(sealed) - 1))
    sealed[position] = data.draw(st.integers(0, 255))
    try:
        envelope = open_envelope(bytes(sealed), JWS)
    except Refused:
        return
    assert (envelope.payload, envelope.signing_time) == (PAYLOAD, SIGNED_AT)
    assert tuple(certificate.der for certificate in envelope.chain) == signer.chain


def test_the_payload_and_header_that_were_signed_cannot_be_exchanged(signer: Signer) -> None:
    other = json.dumps({"targetArtifact": {"size": 1}}).encode()
    header = json.dumps(signer.jws_header() | {SIGNING_TIME: "2020-01-01T00:00:00Z"}).encode()
    for sealed in ({"payload": base64url(other)}, {"protected": base64url(header)}):
        assert refusal(signer.jws(sealed=sealed)).code == "SIGNATURE_INVALID"
