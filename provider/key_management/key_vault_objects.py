"""One certificate or key of a Key Vault: what is wanted of it, what was found, and what the status says of it.

Rules:
- What was found is replaced as a whole by the next look that succeeds, and by nothing else.
- Versions that do not count are kept for the status only; what they hold is not.

What does not belong here: when to look and what is handed out (azure_key_vault.py), requests (key_vault_client.py).
Source: status of Ratify's KeyManagementProvider (`Name`, `Version`, `Enabled`, `LastRefreshed`); the rest is ours.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, NamedTuple

from provider.errors import ConfigurationError, CountersignError
from provider.key_management.key_vault_content import SecretContent, read_certificate_secret, read_key
from provider.key_management.key_vault_versions import Judged, VersionFacts, VersionState
from provider.notation.certificates import Certificate

if TYPE_CHECKING:
    from provider.key_management.key_vault_client import VaultClient

HISTORY: Final = 2  # versions: the one that signs now, and the one before a rotation
TOO_OLD: Final = "seen too long ago"  # state of a version that counted until nothing was heard of it any more
MAX_TOLD_VERSIONS: Final = 10  # versions of one object that do not count and are told in the status all the same


@dataclass(frozen=True, slots=True)
class VaultObject:
    """A certificate or key that is wanted.

    Attributes:
        name: its name in the vault.
        version: the only version wanted; None for the newest.
        history: how many of the newest versions count; 0: the newest, without looking at the others, which takes no
            permission to list.
    """

    name: str
    version: str | None = None
    history: int = HISTORY


class Content(NamedTuple):
    """What a version holds.

    Attributes:
        chain: a certificate's, leaf first.
        key: SubjectPublicKeyInfo of a key.
        held_private_key: there was one beside the chain.
    """

    chain: tuple[Certificate, ...] = ()
    key: bytes = b""
    held_private_key: bool = False

    @property
    def validity(self) -> VersionFacts:
        """When the leaf is valid."""
        if not self.chain:
            return VersionFacts("")
        return VersionFacts("", not_before=self.chain[0].not_before, expires=self.chain[0].not_after)


class ObjectKind(NamedTuple):
    """Certificates or keys: their word, their heading in the status, and how they are asked for."""

    word: str
    heading: str
    listings: Callable[[VaultClient], Sequence[Callable[[str], Awaitable[Sequence[VersionFacts]]]]]
    fetch: Callable[[VaultClient, str, str | None], Awaitable[tuple[VersionFacts, Content | ConfigurationError]]]


async def _fetch_certificate(
    client: VaultClient, name: str, version: str | None
) -> tuple[VersionFacts, Content | ConfigurationError]:
    answer = await client.secret(name, version)
    try:
        # In a thread: opening PKCS #12 takes a tenth of a second and more.
        content: SecretContent = await asyncio.to_thread(read_certificate_secret, answer.value, answer.content_type)
    except ConfigurationError as error:
        return answer.facts, error
    return answer.facts, Content(chain=content.chain, held_private_key=content.held_private_key)


async def _fetch_key(
    client: VaultClient, name: str, version: str | None
) -> tuple[VersionFacts, Content | ConfigurationError]:
    answer = await client.key(name, version)
    try:
        return answer.facts, Content(key=read_key(answer.description))
    except ConfigurationError as error:
        return answer.facts, error


# Listing secrets is part of the role that reading them takes; listing certificates is another permission.
CERTIFICATE: Final = ObjectKind(
    "certificate",
    "Certificates",
    lambda client: (client.secret_versions, client.certificate_versions),
    _fetch_certificate,
)
KEY: Final = ObjectKind("key", "Keys", lambda client: (client.key_versions,), _fetch_key)


@dataclass(slots=True)
class Look:
    """What one look at an object found: its versions, newest first, and what those hold that count."""

    judged: list[Judged] = field(default_factory=list)
    contents: dict[str, Content] = field(default_factory=dict)
    faults: dict[str, CountersignError] = field(default_factory=dict)

    def add(self, entry: Judged, content: Content | CountersignError | None) -> None:
        """Take up a version."""
        self.judged.append(entry)
        if entry.state is not VersionState.IN_USE:
            return
        if isinstance(content, CountersignError):
            self.faults[entry.facts.version] = content
        elif content is not None:
            self.contents[entry.facts.version] = content


class Watched:
    """A certificate or key: what was found last, when, and what went wrong since.

    Attributes:
        kind: which of the two.
        wanted: what is wanted of it.
        contents: what the versions in use hold.
        known: what versions hold that were looked into, those of a look that was cut off included.
        error: why the last look failed; None when it did not.
        seen: monotonic time of the last look that did not fail; None before the first.
        seen_at: the same, as a time of day.
    """

    def __init__(self, kind: ObjectKind, wanted: VaultObject) -> None:
        self.kind = kind
        self.wanted = wanted
        self.contents: dict[str, Content] = {}
        self.known: dict[str, Content] = {}
        self.error: CountersignError | None = None
        self.seen: float | None = None
        self.seen_at: datetime | None = None
        self._judged: list[Judged] = []
        self._faults: dict[str, CountersignError] = {}

    @property
    def label(self) -> str:
        """What it is called in errors."""
        return f"{self.kind.word} {self.wanted.name}"

    @property
    def in_use(self) -> tuple[tuple[str, Content], ...]:
        """The versions that count, with what they hold."""
        return tuple(self.contents.items())

    @property
    def faults(self) -> tuple[str, ...]:
        """The versions that should count and cannot be had or read, in words."""
        return tuple(f"{self.label}, version {version}: {error.detail}" for version, error in self._faults.items())

    @property
    def problems(self) -> tuple[tuple[str, CountersignError], ...]:
        """Everything that is wrong with it now, each with what it is wrong with."""
        faults = [(f"{self.label}, version {version}", error) for version, error in self._faults.items()]
        return (*(((self.label, self.error),) if self.error else ()), *faults)

    def look(self, look: Look, seen: float, at: datetime) -> None:
        """Take up what a look found."""
        self.contents, self._judged, self._faults = look.contents, look.judged, look.faults
        self.known = dict(look.contents)
        self.seen, self.seen_at, self.error = seen, at, None

    def is_fresh(self, now: float, max_age: float) -> bool:
        """Whether what was found last may still be used."""
        return self.seen is not None and now - self.seen <= max_age

    def why_stale(self, now: float) -> str:
        """Why nothing is known of it."""
        reason = self.error.detail if self.error else "it is not loaded yet"
        if self.seen is None:
            return f"{self.label}: {reason}"
        return f"{self.label}, last seen {(now - self.seen) / 3600:.1f} hours ago, which is too long: {reason}"

    def rows(self, *, fresh: bool) -> list[dict[str, str]]:
        """Its part of the status, as Ratify has it, with additions: versions in use, then others, each with why.

        Args:
            fresh: what was found last may still be used.
        """
        used = [entry for entry in self._judged if entry.state is VersionState.IN_USE]
        others = [entry for entry in self._judged if entry.state is not VersionState.IN_USE][:MAX_TOLD_VERSIONS]
        rows = [self._row(entry) for entry in used + others]
        for row in rows[: 0 if fresh else len(used)]:
            row["State"] = TOO_OLD
        if self.error is not None:
            rows = rows or [{"Name": self.wanted.name, "Version": self.wanted.version or ""}]
            rows[0]["Error"] = self.error.detail
        return rows

    def _row(self, entry: Judged) -> dict[str, str]:
        facts = entry.facts
        row = {
            "Name": self.wanted.name,
            "Version": facts.version,
            "Enabled": str(facts.enabled).lower(),
            "State": entry.state.value,
            "LastRefreshed": _text(self.seen_at),
            "NotAfter": _text(facts.expires),
        }
        content, fault = self.contents.get(facts.version), self._faults.get(facts.version)
        if content is not None and content.chain:
            row["NotAfter"] = _text(content.chain[0].not_after)
            row["SHA256"] = content.chain[0].sha256_fingerprint
        if fault is not None:
            row["Error"] = fault.detail
        return {name: value for name, value in row.items() if value or name == "Version"}


def _text(time: datetime | None) -> str:
    return "" if time is None else time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
