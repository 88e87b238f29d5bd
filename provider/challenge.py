"""The WWW-Authenticate field: how a server says in which ways it wants to be asked (RFC 9110 section 11, RFC 7235).

    WWW-Authenticate = #challenge
    challenge        = auth-scheme [ 1*SP ( token68 / #auth-param ) ]
    auth-param       = token BWS "=" BWS ( token / quoted-string )

Rules:
- Total on every input: a line outside the grammar, or with a parameter given twice, yields no challenge; no error.
- Schemes and parameter names are lower-cased; they are case-insensitive by the RFC.
- More lenient than the grammar in one point: an unquoted value may hold the characters of a URL, as some registries
  write `realm=https://...`.

What does not belong here: which scheme is answered and with what (stores/tokens.py, credentials/azure.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

MAX_FIELD_LENGTH: Final = 8192  # characters of one field line; aiohttp reads no longer ones
MAX_CHALLENGES: Final = 16  # challenges of one response; registries send one or two
MAX_PARAMETERS: Final = 32  # parameters of one challenge; Bearer has four

_TOKEN: Final = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"  # noqa: S105 - a grammar rule
_SCHEME = re.compile(rf"({_TOKEN})(?=[ \t,]|\Z)")
_TOKEN68 = re.compile(r"[A-Za-z0-9\-._~+/]+=*(?=[ \t]*(?:,|\Z))")
_PARAMETER = re.compile(rf"""({_TOKEN})[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)"|([^\s",]+))(?=[ \t]*(?:,|\Z))""")
_SEPARATOR = re.compile(r"[ \t]*(?:,[ \t]*)*")
_SPACES = re.compile(r"[ \t]*")
_ESCAPE = re.compile(r"\\(.)")


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way in which a server wants to be asked. Untrusted.

    Attributes:
        scheme: authentication scheme, lower case.
        parameters: by lower-case name, unquoted; empty for a challenge with a token68 or with nothing.
    """

    scheme: str
    parameters: Mapping[str, str] = field(default_factory=dict)


def parse_challenges(lines: Iterable[str]) -> tuple[Challenge, ...]:
    """Read all WWW-Authenticate field lines of a response.

    Args:
        lines: the field values, one a line; untrusted.

    Returns:
        The challenges in their order, at most MAX_CHALLENGES; a line that cannot be read contributes none.
    """
    found: list[Challenge] = []
    for line in lines:
        if len(line) <= MAX_FIELD_LENGTH:
            found.extend(_parse_line(line))
        if len(found) >= MAX_CHALLENGES:
            break
    return tuple(found[:MAX_CHALLENGES])


def _parse_line(line: str) -> list[Challenge]:
    challenges: list[Challenge] = []
    position = _skip(_SEPARATOR, line, 0)
    while position < len(line):
        scheme = _SCHEME.match(line, position)
        if scheme is None:
            return []
        position = _skip(_SPACES, line, scheme.end())
        lone = _TOKEN68.match(line, position)
        # `Negotiate abc=` is a token68, but the `Basic` of `Negotiate, Basic` comes after a comma and is none.
        if lone is not None and position > scheme.end():
            challenges.append(Challenge(scheme[1].lower()))
            position = _skip(_SEPARATOR, line, lone.end())
            continue
        parameters: dict[str, str] = {}
        while (parameter := _PARAMETER.match(line, position)) is not None:
            name = parameter[1].lower()
            if name in parameters or len(parameters) >= MAX_PARAMETERS:
                return []
            quoted, bare = parameter[2], parameter[3]
            parameters[name] = bare if quoted is None else _ESCAPE.sub(r"\1", quoted)
            position = _skip(_SEPARATOR, line, parameter.end())
        if not parameters and line[position : position + 1] not in ("", ","):
            return []
        challenges.append(Challenge(scheme[1].lower(), parameters))
        position = _skip(_SEPARATOR, line, position)
    return challenges


def _skip(pattern: re.Pattern[str], line: str, position: int) -> int:
    match = pattern.match(line, position)
    return position if match is None else match.end()
