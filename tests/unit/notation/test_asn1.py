"""What can be done to the reader of ASN.1, and what it makes of honest encodings."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provider.notation import asn1
from provider.notation.asn1 import Element, MalformedASN1Error, Reader


def element(tag: int, content: bytes) -> Element:
    return asn1.read_whole(asn1.encode(tag, content), tag, "value")


@given(st.binary(max_size=64))
def test_any_bytes_are_read_whole_or_refused(data: bytes) -> None:
    try:
        parts = list(Reader(data, "bytes").rest())
    except MalformedASN1Error:
        return
    assert b"".join(part.encoded for part in parts) == data


@given(st.binary(max_size=64))
def test_any_bytes_become_der_or_are_refused(data: bytes) -> None:
    try:
        der = asn1.to_der(data)
    except MalformedASN1Error:
        return
    assert asn1.to_der(der) == der
    assert len(der) <= len(data)


@given(st.integers(0, 30), st.binary(max_size=70_000))
def test_what_is_written_is_read_again(number: int, content: bytes) -> None:
    encoded = asn1.encode(asn1.context(number, constructed=False), content)
    assert asn1.read_whole(encoded, asn1.context(number, constructed=False), "value").content == content
    assert asn1.to_der(encoded) == encoded


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("", "found the end"),
        ("30", "truncated"),
        ("3001", "truncated"),
        ("300200", "truncated"),
        ("308100", "longer than needed"),
        ("30817f" + "00" * 127, "longer than needed"),
        ("30820080" + "00" * 128, "longer than needed"),
        ("3080" + "0000", "indefinite"),
        ("3081", "truncated length"),
        ("30890000000000000000" + "00", "overlong"),
        ("30ff" + "00" * 200, "overlong"),
        ("300000", "1 octets too many"),
        ("3100", "expected tag 0x30, found tag 0x31"),
    ],
)
def test_lengths_and_tags_that_are_not_der_are_refused(data: str, reason: str) -> None:
    with pytest.raises(MalformedASN1Error, match=reason):
        asn1.read_whole(bytes.fromhex(data), asn1.SEQUENCE, "value")


def test_a_tag_number_over_thirty_is_refused() -> None:
    with pytest.raises(MalformedASN1Error, match="tag number over 30"):
        Reader(bytes.fromhex("3f8101" + "00"), "value").read_any()


def test_the_reader_hands_out_parts_in_order_and_tells_when_it_is_done() -> None:
    reader = Reader(bytes.fromhex("020105" + "0500"), "value")
    assert reader.optional(asn1.NULL) is None
    assert reader.next_tag() == asn1.INTEGER
    with pytest.raises(MalformedASN1Error, match="5 octets too many in value"):
        reader.finish()
    assert asn1.decode_integer(reader.read(asn1.INTEGER, "number")) == 5
    assert reader.optional(asn1.NULL) is not None
    reader.finish()
    assert reader.at_end
    assert reader.next_tag() is None
    assert reader.optional(asn1.NULL) is None
    with pytest.raises(MalformedASN1Error, match="value is truncated"):
        reader.read_any()
    assert asn1.open_sequence(element(asn1.SEQUENCE, b""), "value").at_end
    with pytest.raises(MalformedASN1Error, match="expected a SEQUENCE"):
        asn1.open_sequence(element(asn1.SET, b""), "value")


def test_a_boolean_has_two_encodings() -> None:
    assert asn1.decode_boolean(element(asn1.BOOLEAN, b"\xff")) is True
    assert asn1.decode_boolean(element(asn1.BOOLEAN, b"\x00")) is False
    for tag, content in ((asn1.BOOLEAN, b"\x01"), (asn1.BOOLEAN, b""), (asn1.INTEGER, b"\x00")):
        with pytest.raises(MalformedASN1Error, match="BOOLEAN"):
            asn1.decode_boolean(element(tag, content))


@given(st.integers())
def test_integers_of_any_size_and_sign_survive(value: int) -> None:
    assert asn1.decode_integer(asn1.read_whole(asn1.encode_integer(value), asn1.INTEGER, "value")) == value


@pytest.mark.parametrize("content", ["", "0000", "007f", "ffff", "ff80"])
def test_an_integer_that_is_empty_or_padded_is_refused(content: str) -> None:
    with pytest.raises(MalformedASN1Error, match="INTEGER"):
        asn1.decode_integer(element(asn1.INTEGER, bytes.fromhex(content)))


def test_an_integer_of_another_tag_is_refused() -> None:
    with pytest.raises(MalformedASN1Error, match="INTEGER"):
        asn1.decode_integer(element(asn1.OCTET_STRING, b"\x01"))
    assert asn1.decode_integer(element(0x80, b"\x01"), 0x80) == 1


@given(st.integers(0, 2), st.integers(0, 39), st.lists(st.integers(0, 2**64), max_size=8))
def test_object_identifiers_survive(first: int, second: int, arcs: list[int]) -> None:
    dotted = ".".join(map(str, (first, second, *arcs)))
    encoded = asn1.read_whole(asn1.encode_object_identifier(dotted), asn1.OBJECT_IDENTIFIER, "value")
    assert asn1.decode_object_identifier(encoded) == dotted


def test_the_second_arc_under_two_may_be_large() -> None:
    encoded = asn1.read_whole(asn1.encode_object_identifier("2.999.3"), asn1.OBJECT_IDENTIFIER, "value")
    assert encoded.content == bytes.fromhex("883703")
    assert asn1.decode_object_identifier(encoded) == "2.999.3"


@pytest.mark.parametrize("content", [b"", b"\x2a\x80\x01", b"\x80\x01", b"\x2a\x86", b"\x2a" * 129])
def test_an_object_identifier_that_is_empty_padded_cut_or_endless_is_refused(content: bytes) -> None:
    with pytest.raises(MalformedASN1Error, match="OBJECT IDENTIFIER"):
        asn1.decode_object_identifier(element(asn1.OBJECT_IDENTIFIER, content))


def test_octets_and_bits_are_told_apart() -> None:
    assert asn1.decode_octets(element(asn1.OCTET_STRING, b"abc")) == b"abc"
    with pytest.raises(MalformedASN1Error, match="OCTET STRING"):
        asn1.decode_octets(element(asn1.BIT_STRING, b"\0abc"))
    assert asn1.decode_bits(element(asn1.BIT_STRING, b"\x07\x80")) == (b"\x80", 7)
    assert asn1.decode_whole_octets(element(asn1.BIT_STRING, b"\0abc")) == b"abc"
    with pytest.raises(MalformedASN1Error, match="end on an octet"):
        asn1.decode_whole_octets(element(asn1.BIT_STRING, b"\x07\x80"))


@pytest.mark.parametrize("content", ["", "08ff00", "01", "0181"])
def test_a_bit_string_with_wrong_unused_bits_is_refused(content: str) -> None:
    with pytest.raises(MalformedASN1Error, match="BIT STRING"):
        asn1.decode_bits(element(asn1.BIT_STRING, bytes.fromhex(content)))


@pytest.mark.parametrize(
    ("tag", "text", "year"),
    [
        (asn1.UTC_TIME, b"500102030405Z", 1950),
        (asn1.UTC_TIME, b"491231235959Z", 2049),
        (asn1.GENERALIZED_TIME, b"99991231235959Z", 9999),
    ],
)
def test_times_of_certificates_are_read(tag: int, text: bytes, year: int) -> None:
    time = asn1.decode_time(element(tag, text))
    assert (time.year, time.tzinfo) == (year, UTC)


@pytest.mark.parametrize(
    ("tag", "text"),
    [
        (asn1.UTC_TIME, b"2401020304Z"),
        (asn1.UTC_TIME, b"240102030405+0100"),
        (asn1.UTC_TIME, b"2401020304050"),
        (asn1.UTC_TIME, b"-40102030405Z"),
        (asn1.UTC_TIME, b"241302030405Z"),
        (asn1.UTC_TIME, b"20240102030405Z"),
        (asn1.GENERALIZED_TIME, b"240102030405Z"),
        (asn1.GENERALIZED_TIME, b"20240102030405.5Z"),
        (asn1.GENERALIZED_TIME, b"2024010203040 Z"),
        (asn1.GENERALIZED_TIME, b"20240102030460Z"),
        (asn1.GENERALIZED_TIME, b"00000102030405Z"),
        (asn1.OCTET_STRING, b"20240102030405Z"),
    ],
)
def test_times_in_other_forms_are_refused(tag: int, text: bytes) -> None:
    with pytest.raises(MalformedASN1Error, match="time"):
        asn1.decode_time(element(tag, text))


@pytest.mark.parametrize(
    ("text", "microsecond", "cut"),
    [
        (b"20240102030405Z", 0, False),
        (b"20240102030405.5Z", 500_000, False),
        (b"20240102030405.000001Z", 1, False),
        (b"20240102030405.123456789Z", 123_456, True),
    ],
)
def test_precise_times_keep_their_fraction(text: bytes, microsecond: int, cut: bool) -> None:
    time, was_cut = asn1.decode_precise_time(element(asn1.GENERALIZED_TIME, text))
    assert time == datetime(2024, 1, 2, 3, 4, 5, microsecond, UTC)
    assert was_cut is cut


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"Z",
        b"20240102030405",
        b"202401020304Z",
        b"20240102030405+0100",
        b"20240102030405.Z",
        b"20240102030405.0Z",
        b"20240102030405.50Z",
        b"20240102030405.-5Z",
        b"20240102030405.1234567891Z",
        b"20240102030405,5Z",
    ],
)
def test_precise_times_in_other_forms_are_refused(text: bytes) -> None:
    with pytest.raises(MalformedASN1Error, match="time"):
        asn1.decode_precise_time(element(asn1.GENERALIZED_TIME, text))


def test_a_precise_time_must_be_a_generalized_time() -> None:
    with pytest.raises(MalformedASN1Error, match="time"):
        asn1.decode_precise_time(element(asn1.UTC_TIME, b"240102030405Z"))


def test_long_lengths_are_made_short_at_every_depth() -> None:
    ber = bytes.fromhex("30840000000b" + "318200050481020102" + "0500")
    assert asn1.to_der(ber) == bytes.fromhex("3008" + "310404020102" + "0500")


def test_octet_strings_are_not_looked_into_when_der_is_made() -> None:
    ber = bytes.fromhex("048104" + "30810100")
    assert asn1.to_der(ber) == bytes.fromhex("0404" + "30810100")


@pytest.mark.parametrize("data", ["", "3080" + "0000", "300000", "3003020201"])
def test_what_cannot_be_made_der_is_refused(data: str) -> None:
    with pytest.raises(MalformedASN1Error):
        asn1.to_der(bytes.fromhex(data))


def test_deep_nesting_is_refused_before_it_costs_the_stack() -> None:
    data = b""
    for _ in range(asn1.MAX_DEPTH):
        data = asn1.encode(asn1.SEQUENCE, data)
    assert asn1.to_der(data) == data
    with pytest.raises(MalformedASN1Error, match="deeper"):
        asn1.to_der(asn1.encode(asn1.SEQUENCE, data))


def test_countless_elements_are_refused() -> None:
    with pytest.raises(MalformedASN1Error, match="more than"):
        asn1.to_der(asn1.encode(asn1.SEQUENCE, b"\x05\x00" * asn1.MAX_ELEMENTS))


def test_a_set_is_written_in_order() -> None:
    assert asn1.encode_set_of([b"\x02\x01\x02", b"\x01\x01\xff", b"\x02\x01\x01"]) == bytes.fromhex(
        "3109" + "0101ff" + "020101" + "020102"
    )
