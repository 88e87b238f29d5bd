"""COSE envelopes: a tagged COSE_Sign1 (RFC 9052) as the Notary Project narrows it.

    D2 84 [protected: bstr .cbor map, unprotected: map, payload: bstr, signature: bstr]

Rules:
- Exactly that, starting with these two octets and ending with the signature. No detached payload, no empty signature.
- CBOR of definite lengths only, without duplicate keys, bounded in items and depth; the only tag inside is 1 (epoch
  time), on a number. Anything else that CBOR could express (big numbers, shared values, regular expressions, ...) is
  refused before the decoder sees it (attack N17). A number in another than its shortest form is taken, as in go-cose.
- Labels are numbers or text. No label stands in both maps; `crit` stands in the protected one only. It may name the
  labels understood here even where nothing demands it (RFC 9052 only advises against), as notation-go has it.
- The chain is the array under label 33 of the unprotected map. The lone byte string of RFC 9360 and a chain in the
  protected map are not read, as in notation-go; no signer writes them.
- signingAgent and timestampSignature of a wrong type count as absent: both are unsigned.

What does not belong here: what the attributes mean (headers.py), keys and trust (envelope.py).
Source: notaryproject/specifications signature-envelope-cose.md; RFC 9052, RFC 9360, RFC 8949.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final, cast

import cbor2

from provider.notation.algorithms import find_by_cose_label
from provider.notation.headers import (
    ATTRIBUTE_SIGNING_TIME,
    UNSIGNED_SIGNING_AGENT,
    UNSIGNED_TIMESTAMP,
    HeaderFormat,
    Label,
    UnverifiedEnvelope,
    check_chain_length,
    malformed,
)

MEDIA_TYPE: Final = "application/cose"

LABEL_ALGORITHM: Final = 1
LABEL_CRITICAL: Final = 2
LABEL_CONTENT_TYPE: Final = 3
LABEL_X5CHAIN: Final = 33

MAX_DEPTH: Final = 16  # containers and tags inside each other; an envelope has 2, an extended attribute may add some
MAX_ITEMS: Final = 10_000  # CBOR items of the message or of the protected header; real ones have about 20

_START: Final = b"\xd2\x84"  # tag 18, array of four
_TAG_EPOCH: Final = 1
# What major type 7 may be: false, true, null and the three floats. No undefined, no simple values.
_MAJOR_7: Final = frozenset((20, 21, 22, 25, 26, 27))
_FLOATS: Final = frozenset((25, 26, 27))


def decode(data: bytes) -> UnverifiedEnvelope:
    """Take a COSE envelope apart.

    Args:
        data: untrusted bytes; the caller bounds their number.

    Returns:
        The parts; nothing of them is verified.

    Raises:
        Refused: ENVELOPE_MALFORMED.
    """
    if not data.startswith(_START):
        raise malformed("the envelope is not a tagged COSE_Sign1", expected=_START.hex(" "), found=data[:2].hex(" "))
    parts = _decode(data[1:], "the envelope")
    protected_octets, unprotected, payload, signature = cast("list[object]", parts)
    if not isinstance(protected_octets, bytes):
        raise malformed("the protected header is not a byte string")
    if not isinstance(payload, bytes) or not isinstance(signature, bytes) or not payload or not signature:
        raise malformed("the payload or the signature is missing, empty or not a byte string")
    protected = _labels(_decode(protected_octets, "the protected header"), "the protected header")
    header = _labels(unprotected, "the unprotected header")
    both = sorted(str(label) for label in header if label in protected)
    if both:
        raise malformed("a label stands in the protected and in the unprotected header", found=", ".join(both))
    if LABEL_CRITICAL in header:  # RFC 9052 section 3.1
        raise malformed("crit stands in the unprotected header")
    algorithm = protected.get(LABEL_ALGORITHM)
    token, agent = header.get(UNSIGNED_TIMESTAMP), header.get(UNSIGNED_SIGNING_AGENT)
    return UnverifiedEnvelope(
        media_type=MEDIA_TYPE,
        format=_FORMAT,
        algorithm=find_by_cose_label(algorithm),
        algorithm_name="none" if algorithm is None else _name(algorithm),
        protected=protected,
        critical=_critical(protected),
        signing_input=cbor2.dumps(["Signature1", protected_octets, b"", payload]),  # RFC 9052 section 4.4
        payload=payload,
        signature=signature,
        certificates=_certificates(header.get(LABEL_X5CHAIN)),
        timestamp_token=(token or None) if isinstance(token, bytes) else None,
        signing_agent=agent if isinstance(agent, str) else None,
    )


def _decode(data: bytes, what: str) -> object:
    """Decode one CBOR item into text, numbers, bytes, booleans, None, lists, dicts and aware times; nothing else."""
    _check_structure(data, what)
    try:
        value: object = cbor2.loads(data, allow_indefinite=False, allow_duplicate_keys=False, max_depth=MAX_DEPTH)
    except cbor2.CBORDecodeError as error:
        raise malformed(f"{what} is not strict CBOR: {error}") from None
    return value


def _check_structure(data: bytes, what: str) -> None:
    """Walk over the heads of one item: the forms, tags and limits of this file's rules, and nothing after it.

    cbor2 decodes some thirty tags by itself, ignores what follows, and has no limit on the number of items; what would
    have to be switched off one by one there is not let through here.
    """
    position = items = 0
    tagged = False
    pending = [1]  # items still to come, for each open container
    while pending:
        if pending[-1] == 0:
            pending.pop()
            continue
        pending[-1] -= 1
        items += 1
        if items > MAX_ITEMS or len(pending) > MAX_DEPTH:
            raise malformed(f"{what} holds more than {MAX_ITEMS} values or is nested deeper than {MAX_DEPTH}")
        if position >= len(data):
            raise malformed(f"{what} is truncated")
        major, short = data[position] >> 5, data[position] & 0x1F
        position += 1
        argument, width = short, 0
        if short >= 28:
            raise malformed(f"{what} holds an indefinite length or a reserved form")
        if short >= 24:
            width = 1 << (short - 24)
            argument = int.from_bytes(data[position : position + width], "big")
            position += width
        if tagged and not (major in (0, 1) or (major == 7 and short in _FLOATS)):
            raise malformed(f"{what} holds an epoch time that is not a number")
        tagged = False
        if major in (2, 3):
            position += argument
        elif major == 4:
            pending.append(argument)
        elif major == 5:
            pending.append(2 * argument)
        elif major == 6:
            if argument != _TAG_EPOCH:
                raise malformed(f"{what} holds the CBOR tag {argument}", expected="no tag but 1")
            pending.append(1)
            tagged = True
        elif major == 7 and short not in _MAJOR_7:
            raise malformed(f"{what} holds a simple value")
    if position != len(data):
        raise malformed(f"{what} is {'truncated' if position > len(data) else 'followed by other bytes'}")


def _labels(value: object, what: str) -> dict[Label, object]:
    # bool is an int to Python, and True would be the label 1.
    if not isinstance(value, dict) or not all(type(label) in (int, str) for label in value):
        raise malformed(f"{what} is not a map whose labels are numbers or text")
    return value


def _name(value: object) -> str:
    return str(value) if type(value) in (int, str) else type(value).__name__


def _critical(protected: Mapping[Label, object]) -> tuple[Label, ...]:
    value = protected.get(LABEL_CRITICAL)
    if not isinstance(value, list) or not value:
        raise malformed("crit is missing, empty or not an array")
    for label in value:
        if type(label) not in (int, str):
            raise malformed("an entry of crit is neither a number nor text")
        if label not in protected:
            raise malformed("crit names a label that is not there", found=str(label))
    return tuple(value)


def _certificates(value: object) -> tuple[bytes, ...]:
    if not isinstance(value, list) or not value:
        raise malformed("the certificate chain x5chain is missing, empty or not an array")
    check_chain_length(len(value))
    if not all(isinstance(certificate, bytes) for certificate in value):
        raise malformed("an entry of x5chain is not a byte string")
    return tuple(value)


def read_time(value: object) -> datetime:
    """Read a decoded tag 1 time. Raises ValueError, saying why not.

    Tag 0 never comes this far, so a time can only be tag 1; cbor2 makes an aware UTC time of it.
    """
    if not isinstance(value, datetime):
        raise ValueError("it is not a CBOR epoch time (tag 1)")
    return value.astimezone(UTC)


_FORMAT: Final = HeaderFormat(
    algorithm=LABEL_ALGORITHM,
    critical=LABEL_CRITICAL,
    content_type=LABEL_CONTENT_TYPE,
    may_be_critical=frozenset((LABEL_ALGORITHM, LABEL_CRITICAL, LABEL_CONTENT_TYPE, ATTRIBUTE_SIGNING_TIME)),
    read_time=read_time,
)
