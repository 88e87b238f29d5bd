"""Extensions of certificates: the three that decide, and the addresses of revocation data.

Rules:
- basicConstraints, keyUsage and extKeyUsage must be well formed. Every other extension, critical or not, is kept as
  octets and not evaluated, as the Notary Project specification demands (section "Certificate Requirements").
- Addresses of OCSP responders and CRLs are read leniently, because a fault there is no fault of the signature; but an
  extension that is there and cannot be read is named in `unreadable`, so that nobody mistakes it for absent.
- The same extension twice is refused (RFC 5280 section 4.2).

What does not belong here: what values are demanded of whom (certificates.py), fetching (revocation).
Source: RFC 5280 section 4.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, TypeVar

from provider.notation import asn1
from provider.notation.asn1 import Element, MalformedASN1Error, Reader

BASIC_CONSTRAINTS: Final = "2.5.29.19"
KEY_USAGE: Final = "2.5.29.15"
EXTENDED_KEY_USAGE: Final = "2.5.29.37"
AUTHORITY_INFORMATION_ACCESS: Final = "1.3.6.1.5.5.7.1.1"
CRL_DISTRIBUTION_POINTS: Final = "2.5.29.31"

_OCSP: Final = "1.3.6.1.5.5.7.48.1"
_URI: Final = asn1.context(6, constructed=False)

KEY_USAGES: Final = (  # in the order of their bits
    "digitalSignature",
    "contentCommitment",
    "keyEncipherment",
    "dataEncipherment",
    "keyAgreement",
    "keyCertSign",
    "cRLSign",
    "encipherOnly",
    "decipherOnly",
)

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Extension:
    """An extension as it stands: whether critical, and the octets of its value."""

    critical: bool
    value: bytes


@dataclass(frozen=True, slots=True)
class BasicConstraints:
    """Whether the subject is an authority, and how many authorities may come below it (None: any number)."""

    critical: bool
    ca: bool
    path_length: int | None


@dataclass(frozen=True, slots=True)
class KeyUsage:
    """What the key is for, as names of KEY_USAGES."""

    critical: bool
    usages: frozenset[str]


@dataclass(frozen=True, slots=True)
class ExtendedKeyUsage:
    """What the key is for, as dotted object identifiers in the order of the encoding."""

    critical: bool
    purposes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Extensions:
    """The extensions of one certificate.

    Attributes:
        by_identifier: all of them, by dotted object identifier.
        basic_constraints: None when absent, as are the next two.
        key_usage: see above.
        extended_key_usage: see above.
        ocsp_urls: URIs of OCSP responders, in order; of any scheme.
        crl_urls: URIs of CRLs, in order; of any scheme.
        unreadable: identifiers of the two extensions of addresses that are there and could not be read whole.
    """

    by_identifier: Mapping[str, Extension]
    basic_constraints: BasicConstraints | None
    key_usage: KeyUsage | None
    extended_key_usage: ExtendedKeyUsage | None
    ocsp_urls: tuple[str, ...]
    crl_urls: tuple[str, ...]
    unreadable: frozenset[str]


def read_extensions(element: Element | None) -> Extensions:
    """Read the Extensions of a certificate; None stands for a certificate without.

    Raises:
        MalformedASN1Error: the list, or one of the three extensions that decide, is malformed; an extension twice.
    """
    found: dict[str, Extension] = {}
    if element is not None:
        for part in asn1.open_sequence(element, "extensions").rest():
            identifier, extension = read_extension(part)
            if identifier in found:
                raise MalformedASN1Error(f"the extension {identifier} occurs twice")
            found[identifier] = extension
    unreadable: set[str] = set()
    return Extensions(
        by_identifier=MappingProxyType(found),
        basic_constraints=_apply(_basic_constraints, found.get(BASIC_CONSTRAINTS)),
        key_usage=_apply(_key_usage, found.get(KEY_USAGE)),
        extended_key_usage=_apply(_extended_key_usage, found.get(EXTENDED_KEY_USAGE)),
        ocsp_urls=_leniently(_ocsp_urls, AUTHORITY_INFORMATION_ACCESS, found, unreadable),
        crl_urls=_leniently(_crl_urls, CRL_DISTRIBUTION_POINTS, found, unreadable),
        unreadable=frozenset(unreadable),
    )


def read_extension(element: Element) -> tuple[str, Extension]:
    """Read one Extension: its dotted object identifier and itself. Raises MalformedASN1Error."""
    reader = asn1.open_sequence(element, "extension")
    identifier = asn1.decode_object_identifier(reader.read(asn1.OBJECT_IDENTIFIER, "identifier"))
    critical = reader.optional(asn1.BOOLEAN)
    value = asn1.decode_octets(reader.read(asn1.OCTET_STRING, "value"))
    reader.finish()
    return identifier, Extension(critical is not None and asn1.decode_boolean(critical), value)


def _apply(read: Callable[[Extension], _T], extension: Extension | None) -> _T | None:
    return None if extension is None else read(extension)


def _basic_constraints(extension: Extension) -> BasicConstraints:
    reader = Reader(asn1.read_whole(extension.value, asn1.SEQUENCE, "basicConstraints").content, "basicConstraints")
    authority = reader.optional(asn1.BOOLEAN)
    length = reader.optional(asn1.INTEGER)
    reader.finish()
    path_length = None if length is None else asn1.decode_integer(length)
    if path_length is not None and path_length < 0:
        raise MalformedASN1Error("the path length of basicConstraints is negative")
    return BasicConstraints(extension.critical, authority is not None and asn1.decode_boolean(authority), path_length)


def _key_usage(extension: Extension) -> KeyUsage:
    octets, _ = asn1.decode_bits(asn1.read_whole(extension.value, asn1.BIT_STRING, "keyUsage"))
    bits = "".join(f"{octet:08b}" for octet in octets[:2])  # further bits have no meaning
    usages = frozenset(name for name, bit in zip(KEY_USAGES, bits, strict=False) if bit == "1")
    return KeyUsage(extension.critical, usages)


def _extended_key_usage(extension: Extension) -> ExtendedKeyUsage:
    sequence = asn1.read_whole(extension.value, asn1.SEQUENCE, "extKeyUsage")
    purposes = tuple(asn1.decode_object_identifier(part) for part in Reader(sequence.content, "extKeyUsage").rest())
    if not purposes:
        raise MalformedASN1Error("extKeyUsage lists no purpose")
    return ExtendedKeyUsage(extension.critical, purposes)


def _leniently(
    read: Callable[[bytes], Iterator[str]], identifier: str, found: Mapping[str, Extension], unreadable: set[str]
) -> tuple[str, ...]:
    """What can be read of an extension before its first fault."""
    extension = found.get(identifier)
    urls: list[str] = []
    if extension is not None:
        try:
            urls.extend(read(extension.value))
        except (MalformedASN1Error, UnicodeDecodeError):
            unreadable.add(identifier)
    return tuple(urls)


def _ocsp_urls(value: bytes) -> Iterator[str]:
    what = "authorityInfoAccess"
    for description in Reader(asn1.read_whole(value, asn1.SEQUENCE, what).content, what).rest():
        reader = asn1.open_sequence(description, what)
        method = asn1.decode_object_identifier(reader.read(asn1.OBJECT_IDENTIFIER, "access method"))
        location = reader.read_any()
        reader.finish()
        if method == _OCSP and location.tag == _URI:
            yield location.content.decode("ascii")


def _crl_urls(value: bytes) -> Iterator[str]:
    what = "cRLDistributionPoints"
    for point in Reader(asn1.read_whole(value, asn1.SEQUENCE, what).content, what).rest():
        name = asn1.open_sequence(point, what).optional(asn1.context(0))
        if name is None:
            continue
        full_name = Reader(name.content, what).optional(asn1.context(0))
        if full_name is None:
            continue
        for general_name in Reader(full_name.content, what).rest():
            if general_name.tag == _URI:
                yield general_name.content.decode("ascii")
