"""JWS envelopes: RFC 7515 in the flattened JSON serialization, as the Notary Project narrows it.

    {"payload": base64url, "protected": base64url(JSON), "signature": base64url,
     "header": {"x5c": [base64(DER), ...], "io.cncf.notary.timestampSignature": base64(DER), ...}}

Rules:
- Exactly these four members; not the compact and not the general serialization. The signature covers
  ASCII(protected "." payload) as transmitted, so nothing is ever encoded again.
- Two readers must not be able to read two things: no duplicate names, no name in both headers, no name that differs
  from a known one in case alone (Go's reader would take it), no `b64` (RFC 7797 changes what is signed), nothing after
  the JSON.
- base64url without padding, base64 with padding; each text has one value and each value one text (no line breaks, no
  other alphabet, no stray bits at the end).
- `crit` names no header of RFC 7515 and nothing twice. It may not name signingTime either: notation refuses that in
  JWS, though not in COSE, and the two verifiers should agree.
- Of the unprotected header only x5c, timestampSignature and signingAgent are looked at; other members are ignored.

What does not belong here: what the attributes mean (headers.py), keys and trust (envelope.py).
Source: notaryproject/specifications signature-envelope-jws.md; RFC 7515, RFC 7797, RFC 3339.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone
from functools import lru_cache
from typing import Any, Final

from provider.errors import printable
from provider.notation.algorithms import find_by_name
from provider.notation.headers import (
    ATTRIBUTE_AUTHENTIC_SIGNING_TIME,
    ATTRIBUTE_EXPIRY,
    ATTRIBUTE_PLUGIN,
    ATTRIBUTE_PLUGIN_MIN_VERSION,
    ATTRIBUTE_SIGNING_SCHEME,
    ATTRIBUTE_SIGNING_TIME,
    UNSIGNED_SIGNING_AGENT,
    UNSIGNED_TIMESTAMP,
    HeaderFormat,
    Label,
    UnverifiedEnvelope,
    check_chain_length,
    malformed,
)
from provider.notation.json_objects import check_names, read_object
from provider.strict_json import MalformedJSONError

MEDIA_TYPE: Final = "application/jose+json"

_MEMBERS: Final = ("payload", "protected", "header", "signature")
_PROTECTED: Final = (
    "alg",
    "cty",
    "crit",
    "b64",
    ATTRIBUTE_SIGNING_SCHEME,
    ATTRIBUTE_SIGNING_TIME,
    ATTRIBUTE_AUTHENTIC_SIGNING_TIME,
    ATTRIBUTE_EXPIRY,
    ATTRIBUTE_PLUGIN,
    ATTRIBUTE_PLUGIN_MIN_VERSION,
)
_UNPROTECTED: Final = ("x5c", UNSIGNED_TIMESTAMP)  # not signingAgent: early signers wrote SigningAgent
_NEVER_CRITICAL: Final = frozenset(("alg", "cty", "crit", ATTRIBUTE_SIGNING_TIME))

_REMEMBERED_LENGTH: Final = 8192  # characters of a certificate that is remembered; real ones have 1,000 to 3,000

# RFC 3339 section 5.6, with T and Z in upper case as Go writes and demands them. No two parts match the same text.
_RFC_3339: Final = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})T([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]+))?(?:Z|([+-])([0-9]{2}):([0-9]{2}))"
)


def decode(data: bytes) -> UnverifiedEnvelope:
    """Take a JWS envelope apart.

    Args:
        data: untrusted bytes; the caller bounds their number.

    Returns:
        The parts; nothing of them is verified.

    Raises:
        Refused: ENVELOPE_MALFORMED.
    """
    members = _object(data, "the envelope", known=_MEMBERS)
    if set(members) != set(_MEMBERS):
        raise malformed(
            "the envelope is not a flattened JWS",
            expected=f"the members {', '.join(_MEMBERS)}",
            found=", ".join(sorted(members)) or "none",
        )
    payload_text = _text(members["payload"], "payload")
    protected_text = _text(members["protected"], "protected")
    payload = _base64url(payload_text, "payload")
    signature = _base64url(_text(members["signature"], "signature"), "signature")
    protected: Mapping[Label, Any] = _object(
        _base64url(protected_text, "protected"), "the protected header", known=_PROTECTED
    )
    header = members["header"]
    if not isinstance(header, dict):
        raise malformed("the unprotected header is not a JSON object")
    try:
        check_names(header, known=_UNPROTECTED)
    except MalformedJSONError as error:
        raise malformed(f"the unprotected header is ambiguous: {error}") from None
    _check_headers(protected, header)
    if not payload or not signature:
        raise malformed("the payload or the signature is empty")
    algorithm = _text(protected.get("alg"), "alg")
    agent = header.get(UNSIGNED_SIGNING_AGENT)
    return UnverifiedEnvelope(
        media_type=MEDIA_TYPE,
        format=_FORMAT,
        algorithm=find_by_name(algorithm),
        algorithm_name=printable(algorithm),
        protected=protected,
        critical=_critical(protected),
        signing_input=f"{protected_text}.{payload_text}".encode("ascii"),
        payload=payload,
        signature=signature,
        certificates=_certificates(header.get("x5c")),
        timestamp_token=_timestamp(header),
        # It is for people only and unsigned: whatever it holds, it must not fail the signature.
        signing_agent=agent if isinstance(agent, str) else None,
    )


def _object(data: bytes, what: str, *, known: tuple[str, ...]) -> dict[Any, Any]:
    try:
        return read_object(data, known=known)
    except MalformedJSONError as error:
        raise malformed(f"{what} is not a strict JSON object: {error}") from None


def _check_headers(protected: Mapping[Label, object], header: Mapping[str, object]) -> None:
    both = sorted(name for name in header if name in protected)
    if both:
        raise malformed("a name stands in the protected and in the unprotected header", found=", ".join(both))
    if "crit" in header:  # RFC 7515 section 4.1.11
        raise malformed("crit stands in the unprotected header")
    if "b64" in protected or "b64" in header:
        raise malformed("b64 (RFC 7797) is not allowed in a signature of the Notary Project")


def _critical(protected: Mapping[Label, object]) -> tuple[str, ...]:
    value = protected.get("crit")
    if not isinstance(value, list) or not value:
        raise malformed("crit is missing, empty or not an array")
    critical = tuple(_text(name, "an entry of crit") for name in value)
    for name in critical:
        if name in _NEVER_CRITICAL:
            raise malformed(f"crit may not name {name}")
        if name not in protected:
            raise malformed("crit names a header that is not there", found=name)
    if len(set(critical)) != len(critical):
        raise malformed("crit names a header twice")
    return critical


def _certificates(value: object) -> tuple[bytes, ...]:
    if not isinstance(value, list) or not value:
        raise malformed("the certificate chain x5c is missing, empty or not an array")
    check_chain_length(len(value))
    return tuple(_certificate(_text(text, "an entry of x5c")) for text in value)


def _certificate(text: str) -> bytes:
    return _remembered_certificate(text) if len(text) <= _REMEMBERED_LENGTH else _base64(text, "an entry of x5c")


@lru_cache(maxsize=128)  # one signer's images carry the same certificates, letter for letter
def _remembered_certificate(text: str) -> bytes:
    return _base64(text, "an entry of x5c")


def _timestamp(header: Mapping[str, object]) -> bytes | None:
    if UNSIGNED_TIMESTAMP not in header:
        return None
    return _base64(_text(header[UNSIGNED_TIMESTAMP], UNSIGNED_TIMESTAMP), UNSIGNED_TIMESTAMP) or None


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise malformed(f"{what} is {'missing' if value is None else 'not a string'}")
    return value


def _base64(text: str, what: str) -> bytes:
    """Standard base64 with padding, as RFC 7515 section 4.1.6 has it for x5c."""
    try:
        octets = text.encode("ascii")
        value = binascii.a2b_base64(octets)
    except ValueError:
        raise malformed(f"{what} is not base64") from None
    # Whatever the decoder let pass, foreign signs or stray bits under the padding, does not come back.
    if binascii.b2a_base64(value, newline=False) != octets:
        raise malformed(f"{what} is not base64 in its one form")
    return value


def _base64url(text: str, what: str) -> bytes:
    """base64url without padding (RFC 7515 section 2)."""
    try:
        octets = text.encode("ascii").translate(_TO_STANDARD) + b"=" * (-len(text) % 4)
        value = binascii.a2b_base64(octets)
    except ValueError:
        raise malformed(f"{what} is not base64url without padding") from None
    if binascii.b2a_base64(value, newline=False) != octets:
        raise malformed(f"{what} is not base64url in its one form")
    return value


def read_time(value: object) -> datetime:
    """Read an RFC 3339 time, cut to microseconds. Raises ValueError, saying why not."""
    match = _RFC_3339.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError("it is not a string YYYY-MM-DDThh:mm:ssZ")
    *numbers, fraction, sign, hours, minutes = match.groups()
    microsecond = int(((fraction or "") + "000000")[:6])
    offset = timedelta()
    if sign:
        if int(hours) > 23 or int(minutes) > 59:
            raise ValueError("its offset is no offset")
        offset = timedelta(hours=int(hours), minutes=int(minutes)) * (-1 if sign == "-" else 1)
    year, month, day, hour, minute, second = (int(number) for number in numbers)
    try:
        return datetime(year, month, day, hour, minute, second, microsecond, timezone(offset)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError("there is no such time") from None


_TO_STANDARD: Final = bytes.maketrans(b"-_+/=", b"+/!!!")  # the standard alphabet's own signs become invalid
_FORMAT: Final = HeaderFormat(
    algorithm="alg", critical="crit", content_type="cty", may_be_critical=frozenset(), read_time=read_time
)
