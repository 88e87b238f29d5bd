"""Which versions of a certificate or key in a Key Vault count.

Rules:
- A pinned version never moves: it counts or nothing does.
- Unpinned, the newest few that may be used count, so that signatures made before a rotation stay good.
- Disabled, expired and not yet valid versions do not count; each is told with what it is. Expired ones count where the
  operator has a time-stamp decide what was signed in time.
- Key Vault lists versions in no order; the time of creation says which is newest.

What does not belong here: asking Key Vault (key_vault_client.py), the clock (the caller gives the time).
Source: Azure Key Vault REST API "Get Secret Versions"; attributes nbf and exp do not keep Key Vault from handing out.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, NamedTuple

_LONG_AGO: Final = datetime.min.replace(tzinfo=UTC)


class VersionState(enum.Enum):
    """Whether a version counts, and why not."""

    IN_USE = "in use"
    DISABLED = "disabled"
    EXPIRED = "expired"
    NOT_YET_VALID = "not yet valid"
    OLDER = "older than those in use"


@dataclass(frozen=True, slots=True)
class VersionFacts:
    """What Key Vault says of a version.

    Attributes:
        version: 32 hex digits.
        enabled: it may be used.
        not_before: aware; None for no limit.
        expires: aware; None for no limit.
        created: aware; None when it is not told.
    """

    version: str
    enabled: bool = True
    not_before: datetime | None = None
    expires: datetime | None = None
    created: datetime | None = None

    def state(self, at: datetime, *, keep_expired: bool) -> VersionState:
        """Whether it may be used.

        Args:
            at: the time, aware.
            keep_expired: what has expired may.
        """
        if not self.enabled:
            return VersionState.DISABLED
        if self.not_before is not None and at < self.not_before:
            return VersionState.NOT_YET_VALID
        if self.expires is not None and at > self.expires and not keep_expired:
            return VersionState.EXPIRED
        return VersionState.IN_USE


class Judged(NamedTuple):
    """A version and whether it counts."""

    facts: VersionFacts
    state: VersionState


def judge_versions(
    versions: Iterable[VersionFacts], *, pinned: str | None, limit: int, at: datetime, keep_expired: bool
) -> tuple[Judged, ...]:
    """Say of each version whether it counts.

    Args:
        versions: as listed, in any order.
        pinned: the only version wanted; None for the newest.
        limit: how many of the newest count.
        at: the time, aware.
        keep_expired: what has expired counts too.

    Returns:
        All versions, newest first; the pinned one alone.
    """
    ordered = sorted(versions, key=lambda one: (one.created or _LONG_AGO, one.version), reverse=True)
    if pinned is not None:
        ordered = [one for one in ordered if one.version.lower() == pinned.lower()]
    judged = []
    left = limit
    for facts in ordered:
        state = facts.state(at, keep_expired=keep_expired)
        if state is VersionState.IN_USE:
            state = VersionState.IN_USE if left > 0 else VersionState.OLDER
            left -= 1
        judged.append(Judged(facts, state))
    return tuple(judged)
