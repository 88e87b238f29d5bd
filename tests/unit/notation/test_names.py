"""Distinguished names: what people read, and what a name cannot be made to look like."""

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from provider.notation import asn1
from provider.notation.asn1 import MalformedASN1Error
from provider.notation.names import read_name


def name(*relative_names: bytes) -> bytes:
    return asn1.encode(asn1.SEQUENCE, *relative_names)


def attribute(kind: str, tag: int, value: bytes) -> bytes:
    return asn1.encode(asn1.SEQUENCE, asn1.encode_object_identifier(kind), asn1.encode(tag, value))


def relative(*attributes: bytes) -> bytes:
    return asn1.encode_set_of(attributes)


@given(st.binary(max_size=64))
def test_any_bytes_are_a_name_or_refused(data: bytes) -> None:
    try:
        read_name(data)
    except MalformedASN1Error:
        return


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=16))
def test_the_line_for_people_is_the_one_that_the_library_writes(text: str) -> None:
    other = x509.Name([x509.NameAttribute(NameOID.COUNTRY_NAME, "US"), x509.NameAttribute(NameOID.COMMON_NAME, text)])
    attributes, line = read_name(other.public_bytes())
    assert line == other.rfc4514_string()
    assert attributes[1][0].text == text


def test_every_kind_of_string_is_decoded_and_everything_else_is_shown_in_hex() -> None:
    values = [
        (0x0C, "é".encode(), "é"),
        (0x12, b"42", "42"),
        (0x13, b"US", "US"),
        (0x14, b"\xe9", "é"),
        (0x16, b"a@b", "a@b"),
        (0x1A, b"v", "v"),
        (0x1C, "é".encode("utf-32-be"), "é"),
        (0x1E, "é".encode("utf-16-be"), "é"),
        (0x0C, b"\xff", None),
        (0x13, b"\xe9", None),
        (0x1E, b"\xd8\x00", None),
        (0x04, b"octets", None),
    ]
    for tag, content, text in values:
        ((found,),), line = read_name(name(relative(attribute("2.5.4.3", tag, content))))
        assert found.text == text
        assert line == f"CN={text}" if text is not None else line == f"CN=#{found.encoded.hex()}"


def test_a_value_cannot_pose_as_further_attributes() -> None:
    encoded = name(relative(attribute("2.5.4.3", 0x0C, b"x,O=Contoso+OU=y\0")))
    assert read_name(encoded)[1] == "CN=x\\,O=Contoso\\+OU=y\\00"


def test_multi_valued_relative_names_and_unknown_types_are_written_out() -> None:
    encoded = name(
        relative(attribute("2.5.4.10", 0x0C, b" Contoso ")),
        relative(attribute("2.5.4.3", 0x0C, b"#1"), attribute("1.2.3", 0x0C, b"z")),
    )
    attributes, line = read_name(encoded)
    assert [len(relative_name) for relative_name in attributes] == [1, 2]
    assert line == "1.2.3=z+CN=\\#1,O=\\ Contoso\\ "


@pytest.mark.parametrize(
    "encoded",
    [
        b"",
        b"\x31\x00",
        name(asn1.encode(asn1.SET)),
        name(asn1.encode(asn1.SEQUENCE, attribute("2.5.4.3", 0x0C, b"x"))),
        name(relative(asn1.encode(asn1.SEQUENCE, asn1.encode_object_identifier("2.5.4.3")))),
        name(relative(asn1.encode(asn1.SEQUENCE, b"\x06\x00", b"\x0c\x00"))),
        name(relative(asn1.encode(asn1.SEQUENCE, asn1.encode_object_identifier("2.5.4.3"), b"\x0c\x00\x05\x00"))),
    ],
)
def test_what_is_no_name_is_refused(encoded: bytes) -> None:
    with pytest.raises(MalformedASN1Error):
        read_name(encoded)


def test_an_empty_name_is_a_name() -> None:
    assert read_name(name()) == ((), "")
