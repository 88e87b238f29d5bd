"""JSON objects inside signatures, read so that no two readers can see two things in them.

Rules, beyond those of strict_json.py (no duplicate names, nothing after the value, bounded depth):
- A name that equals a known one but for case is refused: Go's reader, which made and reads these signatures elsewhere,
  takes `TargetArtifact` for `targetArtifact`.
- The number of values is bounded before anything is parsed.

What does not belong here: which names are known (jws.py, payload.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

from provider import strict_json
from provider.strict_json import MalformedJSONError

MAX_BYTES: Final = 4 * 1024 * 1024  # one text; no larger than an envelope may be
MAX_VALUES: Final = 10_000  # separators and openings of one text; real ones have about 20 (attack N16)


def read_object(data: bytes, *, known: tuple[str, ...]) -> dict[str, Any]:
    """Read one JSON object.

    Args:
        data: untrusted bytes.
        known: member names with a meaning.

    Raises:
        MalformedJSONError: for everything else; the message does not quote the input.
    """
    # Each of these makes an object of its own, and four mebibytes of them take hundreds in memory. Those inside strings
    # count too; texts that hold ten thousand commas are no signatures.
    if len(data) > MAX_VALUES and sum(data.count(mark) for mark in (b",", b"[", b"{")) > MAX_VALUES:
        raise MalformedJSONError(f"more than {MAX_VALUES} values")
    value = strict_json.loads(data, max_bytes=MAX_BYTES)
    if not isinstance(value, dict):
        raise MalformedJSONError("not an object")
    check_names(value, known=known)
    return value


def check_names(members: Mapping[str, object], *, known: tuple[str, ...]) -> None:
    """Refuse member names that differ from a known one in case alone. Raises MalformedJSONError."""
    folded = _folded(known)
    for name in members:
        meant = folded.get(name) or folded.get(name.casefold())
        if meant is not None and meant != name:
            raise MalformedJSONError(f"a member name differs from {meant} in case alone")


@lru_cache(maxsize=16)  # the callers' constants
def _folded(known: tuple[str, ...]) -> Mapping[str, str]:
    """Known names by themselves and by their case-folded form."""
    return {name.casefold(): name for name in known} | {name: name for name in known}
