"""Trusted identities: the subjects that a trust policy names, and whether a signing certificate has one of them.

    identity  = "*"  /  "x509.subject:" dn  /  prefix ":" anything
    dn        = rdn *( ("," / ";") rdn )
    rdn       = *SP type *SP "=" *SP value *SP
    value     = characters, or \\ with one of  space # = + , ; < > " \\  , or \\ with two hex digits (an octet of UTF-8)

Rules:
- Every attribute that the identity names must be in the leaf's subject with an equal value: code point by code point,
  case and inner spaces included. Order does not matter, nor do attributes that the identity does not name.
- C, ST and O are mandatory; `S` is another name of ST. Types are compared as written: neither `c` nor `2.5.4.6` is C.
- Refused because they could be read in two ways: a type named twice, multi-valued names (an unescaped +), hex values
  (an unescaped # that begins a value), an empty value, any other escape. `"`, `<` and `>` stand for themselves.
- A certificate whose subject has a type twice matches nothing but `*`: which of the two was meant is open. notation-go
  refuses every subject with an attribute outside its nine types, as a side effect; here such an attribute is ignored
  unless it is named.
- An identity with another prefix matches nothing. It is no fault, because the specification leaves room for others.

What does not belong here: whether the chain is trusted (certificates.py), lists of identities (trust_policy.py).
Sources: notaryproject/specifications trust-store-trust-policy.md "Trusted Identities Constraints"; RFC 4514.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Self

from provider.errors import ConfigurationError, Refused
from provider.notation.certificates import Certificate
from provider.notation.names import SHORT_NAMES

MAX_IDENTITY_LENGTH: Final = 4096  # characters; RFC 5280 bounds each attribute of a name to some 64 (attack N19)

_WILDCARD: Final = "*"
_PREFIX: Final = "x509.subject"
_MANDATORY: Final = ("C", "ST", "O")
_ALIASES: Final = {"S": "ST"}
_ESCAPABLE: Final = frozenset(' #=+,;<>"\\')
_HEX_PAIR: Final = re.compile(r"[0-9a-fA-F]{2}")


class IdentityKind(enum.Enum):
    """What a trusted identity names."""

    ANY = "any"
    X509_SUBJECT = "x509.subject"
    UNSUPPORTED = "unsupported"


@dataclass(frozen=True, slots=True)
class TrustedIdentity:
    """One entry of `trustedIdentities`.

    Attributes:
        text: the entry as written.
        kind: what it names.
        attributes: what a subject must have, by attribute type; empty unless kind is X509_SUBJECT.

    Raises:
        ConfigurationError: TRUST_POLICY_INVALID, when the text is outside the grammar in this file's head.
    """

    text: str
    kind: IdentityKind = field(init=False)
    attributes: Mapping[str, str] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        kind, attributes = _parse(self.text)
        object.__setattr__(self, "kind", kind)
        object.__setattr__(self, "attributes", MappingProxyType(attributes))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read an entry. Raises ConfigurationError as the constructor does."""
        return cls(text)

    def overlaps(self, other: TrustedIdentity) -> bool:
        """Whether one of the two matches every subject that the other matches, as notation-go has it."""
        if self.kind is not IdentityKind.X509_SUBJECT or other.kind is not IdentityKind.X509_SUBJECT:
            return False
        mine, theirs = self.attributes.items(), other.attributes.items()
        return mine <= theirs or theirs <= mine


def match_identity(certificate: Certificate, identities: Sequence[TrustedIdentity]) -> TrustedIdentity:
    """Find the first identity that the certificate's subject has.

    Args:
        certificate: the leaf of a chain. Nothing is checked of it here; the answer means something only if its chain
            is trusted.
        identities: the trusted identities of a statement.

    Returns:
        The identity matched.

    Raises:
        Refused: UNTRUSTED_IDENTITY.
    """
    subjects = []
    for identity in identities:
        if identity.kind is IdentityKind.ANY:
            return identity
        if identity.kind is IdentityKind.X509_SUBJECT:
            subjects.append(identity)
    if not subjects:
        raise Refused("UNTRUSTED_IDENTITY", "the trust policy lists no identity of a supported kind")
    subject = _subject(certificate)
    for identity in subjects:
        if identity.attributes.items() <= subject.items():
            return identity
    raise Refused(
        "UNTRUSTED_IDENTITY",
        "the subject of the signing certificate matches no trusted identity",
        expected=" or ".join(identity.text for identity in subjects),
        found=certificate.subject_text,
    )


def _subject(certificate: Certificate) -> dict[str, str | None]:
    """The leaf's attributes by short name, or by dotted identifier where there is none; None for what is not text."""
    subject: dict[str, str | None] = {}
    for attribute in (attribute for relative_name in certificate.subject_attributes for attribute in relative_name):
        name = SHORT_NAMES.get(attribute.type, attribute.type)
        if name in subject:
            raise Refused(
                "UNTRUSTED_IDENTITY",
                f"the subject of the signing certificate names {name} more than once, so no identity matches it",
                found=certificate.subject_text,
            )
        subject[name] = attribute.text
    return subject


def _invalid(reason: str, text: str) -> ConfigurationError:
    return ConfigurationError("TRUST_POLICY_INVALID", f"the trusted identity {reason}", found=text)


def _parse(text: str) -> tuple[IdentityKind, dict[str, str]]:
    if text == _WILDCARD:
        return IdentityKind.ANY, {}
    if not text or len(text) > MAX_IDENTITY_LENGTH:
        raise _invalid(f"is empty or longer than {MAX_IDENTITY_LENGTH} characters", text)
    prefix, colon, name = text.partition(":")
    if not colon:
        raise _invalid(f"has no prefix; write {_PREFIX}: and a distinguished name", text)
    if prefix != _PREFIX:
        return IdentityKind.UNSUPPORTED, {}
    try:
        return IdentityKind.X509_SUBJECT, _parse_name(name)
    except ValueError as error:
        raise _invalid(f"is no distinguished name that can be matched: {error}", text) from None


def _parse_name(text: str) -> dict[str, str]:
    """Read a distinguished name. Raises ValueError, saying why not."""
    if "=#" in text:
        raise ValueError("it holds =#, a value in hex; escape a # that begins a value")
    attributes: dict[str, str] = {}
    for part in _split(text):
        name, equals, value = part.partition("=")
        name = name.strip(" ")
        if not equals or not name or "\\" in name or "+" in name:
            raise ValueError(f"{part.strip(' ')!r} is not type=value; escape a comma inside a value as \\,")
        name = _ALIASES.get(name, name)
        if name in attributes:
            raise ValueError(f"it names {name} twice")
        attributes[name] = _read_value(name, value)
    for name in _MANDATORY:
        if name not in attributes:
            raise ValueError(f"it lacks {name}; C, ST and O are mandatory")
    return attributes


def _split(text: str) -> Iterator[str]:
    """Split at unescaped separators, leaving the escapes in."""
    start = position = 0
    while position < len(text):
        if text[position] == "\\":
            position += 1  # whatever follows is no separator
        elif text[position] in ",;":
            yield text[start:position]
            start = position + 1
        position += 1
    yield text[start:]


def _read_value(name: str, text: str) -> str:
    """Undo the escapes of a value and drop its unescaped outer spaces."""
    octets = bytearray()
    kept = 0  # length of the value without unescaped spaces at the end
    position = 0
    text = text.lstrip(" ")
    if text.startswith("#"):
        raise ValueError(f"the value of {name} begins with #; escape it as \\#")
    while position < len(text):
        character = text[position]
        position += 1
        if character == "+":
            raise ValueError("it has a multi-valued name; escape a + inside a value as \\+")
        if character == "\\":
            escaped = text[position : position + 1]
            if escaped in _ESCAPABLE:
                octets += escaped.encode()
                position += 1
            elif _HEX_PAIR.fullmatch(text, position, position + 2):
                octets.append(int(text[position : position + 2], 16))
                position += 2
            else:
                raise ValueError(f"the value of {name} holds an unknown escape \\{escaped}")
        else:
            octets += character.encode("utf-8", "surrogatepass")
            if character == " ":
                continue
        kept = len(octets)
    if not kept:
        raise ValueError(f"the value of {name} is empty")
    try:
        return octets[:kept].decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"the value of {name} is not UTF-8") from None
