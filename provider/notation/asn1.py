"""ASN.1 for certificates and time-stamp tokens: a strict reader of DER, a small writer, and BER made DER.

Rules:
- The reader takes low tag numbers and definite, minimal lengths only; every value has one accepted encoding. It never
  recurses: who reads a structure asks for its parts one by one, so depth is that of the caller's schema.
- `to_der` mends the one liberty that real time-stamp tokens take with BER, lengths that are longer than needed, with a
  bound on depth and on the number of elements. Indefinite lengths and constructed strings are refused.
- The order inside a SET OF is not checked when reading (it is not signed, and authorities get it wrong);
  `encode_set_of` writes it sorted, as DER demands where it is signed.
- MalformedASN1Error is the only error. Its message holds tags, numbers and names of fields, never content.

What does not belong here: any schema (certificates, CMS, time-stamps have their own files).
Sources: ITU-T X.690 (2021) sections 8, 10 and 11; RFC 5280 section 4.1.2.5 (times).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final, NamedTuple

BOOLEAN: Final = 0x01
INTEGER: Final = 0x02
BIT_STRING: Final = 0x03
OCTET_STRING: Final = 0x04
NULL: Final = 0x05
OBJECT_IDENTIFIER: Final = 0x06
UTF8_STRING: Final = 0x0C
UTC_TIME: Final = 0x17
GENERALIZED_TIME: Final = 0x18
SEQUENCE: Final = 0x30
SET: Final = 0x31

MAX_DEPTH: Final = 32  # nested elements in to_der; a time-stamp token with certificates has about 14
MAX_ELEMENTS: Final = 10_000  # elements in to_der; a token with four certificates has about 600
MAX_OBJECT_IDENTIFIER: Final = 128  # octets of one identifier; Microsoft's long ones have about 30
MAX_FRACTION_DIGITS: Final = 9  # of a second; authorities give milliseconds or microseconds

_FIELDS: Final = ((0, 4), (4, 6), (6, 8), (8, 10), (10, 12), (12, 14))  # of YYYYMMDDHHMMSS
_CONSTRUCTED: Final = 0x20
_TAG_NUMBER: Final = 0x1F
_MAX_LENGTH_OCTETS: Final = 8  # of a BER length; nothing that is read here comes near four


class MalformedASN1Error(ValueError):
    """The bytes are not what the reader was asked for; the message names the field and never quotes the input."""


class Element(NamedTuple):
    """One tag-length-value. A tuple, because a certificate has a hundred and frozen dataclasses take long to make.

    Attributes:
        tag: the identifier octet: class, constructed bit and number.
        content: the octets of the value.
        encoded: the whole element as it was read.
    """

    tag: int
    content: bytes
    encoded: bytes


def context(number: int, *, constructed: bool = True) -> int:
    """The identifier octet of a context-specific tag."""
    return 0x80 | (_CONSTRUCTED if constructed else 0) | number


class Reader:
    """A cursor over the elements that lie one after the other in `data`."""

    __slots__ = ("_data", "_position", "_what")

    def __init__(self, data: bytes, what: str) -> None:
        self._data = data
        self._position = 0
        self._what = what

    @property
    def at_end(self) -> bool:
        """Whether nothing is left."""
        return self._position == len(self._data)

    def next_tag(self) -> int | None:
        """The identifier octet of the next element, None at the end."""
        return None if self.at_end else self._data[self._position]

    def read_any(self) -> Element:
        """Read the next element whatever its tag. Raises MalformedASN1Error."""
        data, position = self._data, self._position
        try:  # the usual case, in which one octet tells the length; `_header` has the general one
            tag, length = data[position], data[position + 1]
        except IndexError:
            raise MalformedASN1Error(f"{self._what} is truncated") from None
        start = position + 2
        end = start + length
        if length >= 0x80 or end > len(data) or tag & _TAG_NUMBER == _TAG_NUMBER:
            tag, start, end = _header(data, position, self._what, minimal=True)
        self._position = end
        return Element(tag, data[start:end], data[position:end])

    def read(self, tag: int, what: str) -> Element:
        """Read the next element, which must have this tag. Raises MalformedASN1Error, naming `what`."""
        element = self.optional(tag)
        if element is None:
            found = self.next_tag()
            raise MalformedASN1Error(
                f"{what} of {self._what}: expected tag {tag:#04x}, found "
                + ("the end" if found is None else f"tag {found:#04x}")
            )
        return element

    def optional(self, tag: int) -> Element | None:
        """Read the next element if it has this tag. Raises MalformedASN1Error."""
        position = self._position
        if position == len(self._data) or self._data[position] != tag:
            return None
        return self.read_any()

    def rest(self) -> Iterator[Element]:
        """Read what is left, element by element. Raises MalformedASN1Error."""
        while not self.at_end:
            yield self.read_any()

    def finish(self) -> None:
        """Raise MalformedASN1Error unless everything was read."""
        if not self.at_end:
            raise MalformedASN1Error(f"{len(self._data) - self._position} octets too many in {self._what}")


def read_whole(data: bytes, tag: int, what: str) -> Element:
    """Read `data` as exactly one element of this tag. Raises MalformedASN1Error."""
    reader = Reader(data, what)
    element = reader.read(tag, "outer element")
    reader.finish()
    return element


def open_sequence(element: Element, what: str) -> Reader:
    """A reader over the parts of an element that must be a SEQUENCE. Raises MalformedASN1Error."""
    if element.tag != SEQUENCE:
        raise MalformedASN1Error(f"{what}: expected a SEQUENCE, found tag {element.tag:#04x}")
    return Reader(element.content, what)


def decode_boolean(element: Element) -> bool:
    """A BOOLEAN in DER: 0x00 or 0xff. Raises MalformedASN1Error."""
    if element.tag != BOOLEAN or element.content not in (b"\x00", b"\xff"):
        raise MalformedASN1Error("a BOOLEAN is not encoded in DER")
    return element.content == b"\xff"


def decode_integer(element: Element, tag: int = INTEGER) -> int:
    """An INTEGER in its shortest form; `tag` for one that is implicitly tagged. Raises MalformedASN1Error."""
    content = element.content
    if element.tag != tag or not content:
        raise MalformedASN1Error("an INTEGER is missing or empty")
    if len(content) > 1 and (content[0], content[1] >> 7) in ((0x00, 0), (0xFF, 1)):
        raise MalformedASN1Error("an INTEGER is longer than needed")
    return int.from_bytes(content, "big", signed=True)


def decode_object_identifier(element: Element, tag: int = OBJECT_IDENTIFIER) -> str:
    """An OBJECT IDENTIFIER as dotted text. Raises MalformedASN1Error."""
    if element.tag != tag or not element.content or len(element.content) > MAX_OBJECT_IDENTIFIER:
        raise MalformedASN1Error("an OBJECT IDENTIFIER is missing, empty or too long")
    return _dotted(element.content)


@lru_cache(maxsize=512)  # certificates use the same thirty over and over
def _dotted(content: bytes) -> str:
    arcs: list[int] = []
    arc = 0
    starting = True
    for octet in content:
        if starting and octet == 0x80:
            raise MalformedASN1Error("an arc of an OBJECT IDENTIFIER is longer than needed")
        arc = arc << 7 | octet & 0x7F
        starting = not octet & 0x80
        if starting:
            arcs.append(arc)
            arc = 0
    if not starting:
        raise MalformedASN1Error("an OBJECT IDENTIFIER is truncated")
    first = min(arcs[0] // 40, 2)
    return ".".join(str(arc) for arc in (first, arcs[0] - 40 * first, *arcs[1:]))


def decode_octets(element: Element) -> bytes:
    """The content of an OCTET STRING. Raises MalformedASN1Error."""
    if element.tag != OCTET_STRING:
        raise MalformedASN1Error(f"expected an OCTET STRING, found tag {element.tag:#04x}")
    return element.content


def decode_bits(element: Element) -> tuple[bytes, int]:
    """The octets of a BIT STRING, and how many bits at the end do not count. Raises MalformedASN1Error."""
    content = element.content
    if element.tag != BIT_STRING or not content:
        raise MalformedASN1Error("a BIT STRING is missing or empty")
    unused = content[0]
    if unused > 7 or (unused and len(content) == 1) or (unused and content[-1] & ((1 << unused) - 1)):
        raise MalformedASN1Error("the unused bits of a BIT STRING are not as DER has them")
    return content[1:], unused


def decode_whole_octets(element: Element) -> bytes:
    """The octets of a BIT STRING whose every bit counts, as keys and signatures are. Raises MalformedASN1Error."""
    octets, unused = decode_bits(element)
    if unused:
        raise MalformedASN1Error("a BIT STRING does not end on an octet")
    return octets


def decode_time(element: Element) -> datetime:
    """A UTCTime or a GeneralizedTime without a fraction, to the second and in Z, as RFC 5280 has them.

    Raises:
        MalformedASN1Error: another form, or a date that does not exist (a leap second among them).
    """
    content = element.content
    if element.tag == UTC_TIME and len(content) == 13 and content[:2].isdigit():
        content = (b"19" if content[:2] >= b"50" else b"20") + content
    elif element.tag != GENERALIZED_TIME or len(content) != 15:
        raise MalformedASN1Error("a time is neither UTCTime nor GeneralizedTime in seconds and Z")
    return _calendar(content)


def decode_precise_time(element: Element) -> tuple[datetime, bool]:
    """A GeneralizedTime in Z that may have a fraction of a second, as RFC 3161 has them.

    Returns:
        The time cut to whole microseconds, and whether anything was cut.

    Raises:
        MalformedASN1Error: another form, a fraction with trailing zeros, a date that does not exist.
    """
    if element.tag != GENERALIZED_TIME or element.content[-1:] != b"Z":
        raise MalformedASN1Error("a time is not a GeneralizedTime in Z")
    seconds, point, fraction = element.content[:-1].partition(b".")
    time = _calendar(seconds + b"Z")
    if not point:
        return time, False
    if not fraction.isdigit() or fraction.endswith(b"0") or len(fraction) > MAX_FRACTION_DIGITS:
        raise MalformedASN1Error(f"the fraction of a time is not 1 to {MAX_FRACTION_DIGITS} digits without end zeros")
    return time.replace(microsecond=int(fraction[:6].ljust(6, b"0"))), len(fraction) > 6


def _calendar(text: bytes) -> datetime:
    """YYYYMMDDHHMMSSZ as an aware time."""
    if len(text) != 15 or not text[:14].isdigit() or text[14:] != b"Z":
        raise MalformedASN1Error("a time is not written as YYYYMMDDHHMMSSZ")
    year, month, day, hour, minute, second = (int(text[at:end]) for at, end in _FIELDS)
    try:
        return datetime(year, month, day, hour, minute, second, tzinfo=UTC)
    except ValueError:
        raise MalformedASN1Error("a time names a date that does not exist") from None


def to_der(data: bytes) -> bytes:
    """Rewrite one element, and all inside it, with lengths as DER has them. What is DER already comes back unchanged.

    Raises:
        MalformedASN1Error: indefinite length, high tag number, truncated or trailing octets, deeper than MAX_DEPTH,
            more than MAX_ELEMENTS.
    """
    budget = [MAX_ELEMENTS]
    encoded, end = _rewrite(data, 0, budget, MAX_DEPTH)
    if end != len(data):
        raise MalformedASN1Error(f"{len(data) - end} octets too many after the element")
    return encoded


def _rewrite(data: bytes, position: int, budget: list[int], depth: int) -> tuple[bytes, int]:
    if depth == 0 or budget[0] == 0:
        raise MalformedASN1Error(f"nested deeper than {MAX_DEPTH} or of more than {MAX_ELEMENTS} elements")
    budget[0] -= 1
    tag, start, end = _header(data, position, "a BER element", minimal=False)
    content = data[start:end]
    if tag & _CONSTRUCTED:
        parts = []
        inner = 0
        while inner < len(content):
            part, inner = _rewrite(content, inner, budget, depth - 1)
            parts.append(part)
        content = b"".join(parts)
    return encode(tag, content), end


def _header(data: bytes, position: int, what: str, *, minimal: bool) -> tuple[int, int, int]:
    """Read tag and length at `position`: the tag, where the content starts, where it ends."""
    if position + 2 > len(data):
        raise MalformedASN1Error(f"{what} is truncated")
    tag, length = data[position], data[position + 1]
    start = position + 2
    if tag & _TAG_NUMBER == _TAG_NUMBER:
        raise MalformedASN1Error(f"{what} holds a tag number over 30")
    if length >= 0x80:
        octets = data[start : start + (length & 0x7F)]
        if length == 0x80 or len(octets) > _MAX_LENGTH_OCTETS or len(octets) != length & 0x7F:
            raise MalformedASN1Error(f"{what} holds an indefinite, overlong or truncated length")
        start += len(octets)
        length = int.from_bytes(octets, "big")
        if minimal and (length < 0x80 or octets[0] == 0):
            raise MalformedASN1Error(f"{what} holds a length that is longer than needed")
    if length > len(data) - start:
        raise MalformedASN1Error(f"{what} is truncated")
    return tag, start, start + length


def encode(tag: int, *parts: bytes) -> bytes:
    """Write one element whose content is the parts one after the other."""
    content = b"".join(parts)
    length = len(content)
    if length < 0x80:
        return bytes((tag, length)) + content
    octets = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(octets))) + octets + content


def encode_integer(value: int, tag: int = INTEGER) -> bytes:
    """Write an INTEGER in its shortest form."""
    magnitude = value if value >= 0 else ~value
    return encode(tag, value.to_bytes(magnitude.bit_length() // 8 + 1, "big", signed=True))


def encode_object_identifier(dotted: str) -> bytes:
    """Write an OBJECT IDENTIFIER. `dotted` is ours, not foreign: it must be one."""
    first, second, *others = (int(arc) for arc in dotted.split("."))
    content = bytearray()
    for arc in (40 * first + second, *others):
        groups = [arc & 0x7F]
        while arc := arc >> 7:
            groups.append(0x80 | arc & 0x7F)
        content += bytes(reversed(groups))
    return encode(OBJECT_IDENTIFIER, bytes(content))


def encode_set_of(elements: Iterable[bytes], tag: int = SET) -> bytes:
    """Write a SET OF in the order DER demands. No element is a prefix of another, so octet order is that order."""
    return encode(tag, *sorted(elements))
