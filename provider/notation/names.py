"""X.501 distinguished names: their attributes as text, and one line for people. No matching (identities.py does that).

Rules:
- A name is compared by its DER octets wherever a rule of the specification compares names; the text here is for people
  and for trusted identities.
- A value in a string type is decoded; one that cannot be (wrong type, broken encoding) has text None, is shown as
  #hex, and so can never equal anything written in a policy.
- The line for people is RFC 4514's: last relative name first, values escaped, types that have no short name as dotted
  identifiers.

Sources: RFC 5280 section 4.1.2.4, RFC 4514 section 2, ITU-T X.520.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from provider.notation import asn1
from provider.notation.asn1 import Element, MalformedASN1Error, Reader

SHORT_NAMES: Final = {
    "2.5.4.3": "CN",
    "2.5.4.5": "SERIALNUMBER",
    "2.5.4.6": "C",
    "2.5.4.7": "L",
    "2.5.4.8": "ST",
    "2.5.4.9": "STREET",
    "2.5.4.10": "O",
    "2.5.4.11": "OU",
    "2.5.4.17": "POSTALCODE",
    "0.9.2342.19200300.100.1.1": "UID",
    "0.9.2342.19200300.100.1.25": "DC",
    "1.2.840.113549.1.9.1": "emailAddress",
}

_ENCODINGS: Final = {
    asn1.UTF8_STRING: "utf-8",
    0x12: "ascii",  # NumericString
    0x13: "ascii",  # PrintableString
    0x14: "latin-1",  # T61String, which everybody fills with Latin-1
    0x16: "ascii",  # IA5String
    0x1A: "ascii",  # VisibleString
    0x1C: "utf-32-be",  # UniversalString
    0x1E: "utf-16-be",  # BMPString
}


@dataclass(frozen=True, slots=True)
class NameAttribute:
    """One attribute of a name.

    Attributes:
        type: the attribute type as a dotted object identifier.
        text: the decoded value; None when it is not text.
        encoded: the value in DER.
    """

    type: str
    text: str | None
    encoded: bytes

    def __str__(self) -> str:
        shown = "#" + self.encoded.hex() if self.text is None else _escape(self.text)
        return f"{SHORT_NAMES.get(self.type, self.type)}={shown}"


RelativeName = tuple[NameAttribute, ...]  # more than one attribute: a multi-valued relative name


@lru_cache(maxsize=256)  # the issuer of one certificate is the subject of another
def read_name(encoded: bytes) -> tuple[tuple[RelativeName, ...], str]:
    """Read a Name.

    Returns:
        Its relative names in the order of the encoding, and the line for people, such as `CN=signer,O=Contoso,C=US`.

    Raises:
        MalformedASN1Error: not a Name.
    """
    relative_names = []
    for relative_name in Reader(asn1.read_whole(encoded, asn1.SEQUENCE, "name").content, "name").rest():
        if relative_name.tag != asn1.SET or not relative_name.content:
            raise MalformedASN1Error("a relative name is not a SET of at least one attribute")
        relative_names.append(tuple(_attribute(part) for part in Reader(relative_name.content, "relative name").rest()))
    text = ",".join("+".join(map(str, relative_name)) for relative_name in reversed(relative_names))
    return tuple(relative_names), text


def _attribute(element: Element) -> NameAttribute:
    reader = asn1.open_sequence(element, "name attribute")
    kind = asn1.decode_object_identifier(reader.read(asn1.OBJECT_IDENTIFIER, "type"))
    value = reader.read_any()
    reader.finish()
    return NameAttribute(kind, _text(value), value.encoded)


def _text(value: Element) -> str | None:
    encoding = _ENCODINGS.get(value.tag)
    if encoding is None:
        return None
    try:
        return value.content.decode(encoding)
    except UnicodeDecodeError:
        return None


def _escape(text: str) -> str:
    escaped = "".join("\\" + character if character in '\\",+;<>' else character for character in text)
    escaped = escaped.replace("\0", "\\00")
    if escaped.startswith(("#", " ")):
        escaped = "\\" + escaped
    if len(text) > 1 and text.endswith(" "):
        escaped = escaped[:-1] + "\\ "
    return escaped
