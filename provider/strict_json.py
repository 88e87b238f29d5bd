"""JSON as foreign bytes: one reader that refuses what lenient readers let through.

Rules: UTF-8 without a byte order mark; no duplicate member names (RFC 8259 section 4 leaves their meaning open, and two
readers that choose differently are how a signature is made to say two things); no NaN or Infinity; bounded bytes, depth
and digits; nothing after the value. The reader knows nothing of any schema.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, Final, NoReturn

MAX_DEPTH: Final = 64  # nested arrays and objects; a Notary envelope has 2, an OCI index 5
MAX_DIGITS: Final = 100  # digits of one number; keeps int() linear


# Strings are passed over whole; possessive, so that no input makes it go back.
_STRUCTURE: Final = re.compile(r'"(?:[^"\\]|\\.)*+"|(?P<opens>[\[{])|(?P<closes>[\]}])', re.DOTALL)


class MalformedJSONError(ValueError):
    """The bytes are not JSON as this file understands it; the message says where and why, without quoting the input."""


def loads(data: bytes, *, max_bytes: int) -> Any:
    """Parse `data` strictly.

    Args:
        data: untrusted bytes.
        max_bytes: refuse more than this many bytes before parsing.

    Raises:
        MalformedJSONError: for every input that is not one strict JSON value within the limits. Nothing else is raised.
    """
    if len(data) > max_bytes:
        raise MalformedJSONError(f"more than {max_bytes} bytes")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MalformedJSONError(f"not UTF-8 at byte {error.start}") from None
    _check_depth(text)
    try:
        value = _DECODER.decode(text)
        if "\\u" in text:  # an escaped lone surrogate parses, and then breaks whoever encodes it
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError as error:
        raise MalformedJSONError(f"{error.msg} at character {error.pos}") from None
    except UnicodeEncodeError:
        raise MalformedJSONError("an escape that is half of a surrogate pair") from None
    return value


def _check_depth(text: str) -> None:
    """Refuse deep nesting before the recursive parser meets it."""
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    depth = 0
    for match in _STRUCTURE.finditer(text):
        if match.lastgroup == "opens":
            depth += 1
            if depth > MAX_DEPTH:
                raise MalformedJSONError(f"nested deeper than {MAX_DEPTH}")
        elif match.lastgroup == "closes":
            depth -= 1


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise MalformedJSONError("duplicate member name in an object")
    return members


def _no_constant(name: str) -> NoReturn:
    raise MalformedJSONError(f"{name} is not a JSON number")


def _bounded_int(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise MalformedJSONError(f"a number of more than {MAX_DIGITS} digits")
    return int(digits)


def _bounded_float(digits: str) -> float:
    if len(digits) > MAX_DIGITS:
        raise MalformedJSONError(f"a number of more than {MAX_DIGITS} digits")
    number = float(digits)
    if not math.isfinite(number):
        raise MalformedJSONError("a number too large for a double")
    return number


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_unique, parse_constant=_no_constant, parse_int=_bounded_int, parse_float=_bounded_float
)
