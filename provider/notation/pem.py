"""PEM as configuration holds it: blocks with text around them, split without ever dropping one.

Rules: lines end in LF or CRLF and may be indented; text outside blocks is ignored (openssl writes subjects there); a
block that is truncated, nested, mislabelled at its end or not base64 is an error that names it by number, and no error
quotes what a block holds, because it may be a private key.

What does not belong here: what the blocks mean.
Source: RFC 7468 sections 2 and 3 (the "lax" grammar, less its headers).
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

_ANY_BOUNDARY: Final = re.compile(rb"^[ \t]*-----BEGIN ", re.MULTILINE)
_BOUNDARY: Final = re.compile(rb"-----(BEGIN|END) ([A-Z0-9][A-Z0-9 .#-]{0,62})-----")
_OUTSIDE: Final = (b"-----BEGIN ", b"-----END ")  # text around blocks may well be underlined with dashes
_INSIDE: Final = (b"-",)  # no dash is base64


class MalformedPEMError(ValueError):
    """A block is damaged; the message says which and how, without quoting it."""


@dataclass(frozen=True, slots=True)
class Block:
    """One block: its number from 1, its label and its octets. Not shown by repr: it may be a key."""

    number: int
    label: str
    content: bytes

    def __repr__(self) -> str:
        return f"Block({self.number}, {self.label!r})"


def is_pem(data: bytes) -> bool:
    """Whether a line of `data` begins a PEM block, well formed or not."""
    return _ANY_BOUNDARY.search(data) is not None


def read_blocks(data: bytes) -> Iterator[Block]:
    """Split PEM into its blocks.

    Raises:
        MalformedPEMError: while iterating, at the first damaged block.
    """
    number = 0
    label: str | None = None
    body: list[bytes] = []
    for line in data.splitlines():
        text = line.strip()
        if not text.startswith(_OUTSIDE if label is None else _INSIDE):
            body.append(text)
            continue
        boundary = _BOUNDARY.fullmatch(text)
        number += label is None
        if boundary is None:
            raise MalformedPEMError(f"block {number}: a boundary line is damaged or has something after it")
        kind, found = boundary[1], boundary[2].decode("ascii")
        if kind == b"END":
            if found != label:
                raise MalformedPEMError(f"block {number}: its end line does not belong to a begin line")
            yield Block(number, found, _decode(number, body))
            label = None
        elif label is None:
            label, body = found, []
        else:
            raise MalformedPEMError(f"block {number}: another block begins before its end line")
    if label is not None:
        raise MalformedPEMError(f"block {number}: truncated, its end line is missing")


def _decode(number: int, body: list[bytes]) -> bytes:
    try:
        return base64.b64decode(b"".join(body), validate=True)
    except (binascii.Error, ValueError):
        raise MalformedPEMError(f"block {number}: what is between its boundary lines is not base64") from None
