"""The key management provider of type `azurekeyvault`: certificates with their chains, and public keys, of one vault.

    refresh: versions of each object -> which count -> what is not yet known of them -> material
    material: from memory, whatever Azure does meanwhile

Rules:
- Nothing is asked during an admission. What was loaded last stays through any fault, for a bounded time; after that it
  is as if it had never been there, and what needs it is undecided.
- Each certificate and key stands for itself: one that cannot be had costs the others nothing. Material says what is
  missing from it, because without that nobody can say of a signer that he is not trusted.
- What the vault's owners switched off is no fault: a disabled version is gone with the next refresh. A deleted one is a
  fault, because more are deleted by mistake than in earnest.
- What a version holds never changes, so it is asked for once. Private keys never get here (key_vault_content.py).

What does not belong here: the SDK (key_vault_client.py), which version counts (key_vault_versions.py), when to refresh
(assembly.py), which certificate may anchor trust (notation/certificates.py).
Source: Ratify v1.4 key management provider azurekeyvault; versionHistoryLimit of its development branch.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, NamedTuple

import structlog

from provider.azure.sdk import load_sdk
from provider.errors import ConfigurationError, CountersignError, Undecided
from provider.interfaces import KeyMaterial
from provider.key_management.key_vault_access import VaultAccess, VaultError
from provider.key_management.key_vault_content import SecretContent, read_certificate_secret, read_key
from provider.key_management.key_vault_versions import Judged, VersionFacts, VersionState, judge_versions
from provider.notation.certificates import Certificate

if TYPE_CHECKING:
    from provider.key_management.key_vault_client import VaultClient

REFRESH_SECONDS: Final = 600.0  # how long a new or disabled version goes unseen; costs one request per object
MAX_AGE_SECONDS: Final = 24 * 3600.0  # longer than outages of Entra and Key Vault were, and somebody notices in time
HISTORY: Final = 2  # versions: the one that signs now, and the one before a rotation
MAX_TOLD_VERSIONS: Final = 10  # versions of one object that do not count and are told in the status all the same

_log = structlog.get_logger(__name__)


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


@dataclass(frozen=True, slots=True)
class AzureKeyVaultSettings:
    """What a provider holds.

    Attributes:
        certificates: wanted certificates.
        keys: wanted keys.
        max_age_seconds: how long what was loaded last stays through faults.
        keep_expired: versions that have expired count: time-stamps tell what was signed in time.

    Raises:
        ValueError: nothing is wanted, or nothing may be kept.
    """

    certificates: tuple[VaultObject, ...] = ()
    keys: tuple[VaultObject, ...] = ()
    max_age_seconds: float = MAX_AGE_SECONDS
    keep_expired: bool = False

    def __post_init__(self) -> None:
        if not self.certificates and not self.keys:
            raise ValueError("a provider of neither certificates nor keys")
        if not self.max_age_seconds > 0:
            raise ValueError("the age must be more than 0 seconds")


class AzureKeyVaultProvider:
    """A KeyManagementProvider over one vault. It holds nothing before the first refresh. To be closed with `aclose`.

    Args:
        name: name of the resource, `namespace/name` for a namespaced one.
        settings: what it holds.
        access: how the vault is reached.
        clock: the time (aware, UTC), for the validity of versions.
        monotonic: seconds of a clock that never goes back, for ages.
    """

    def __init__(
        self,
        name: str,
        settings: AzureKeyVaultSettings,
        access: VaultAccess,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self._settings = settings
        self._access = access
        self._clock = clock
        self._monotonic = monotonic
        self._watched = [
            *(_Watched(_CERTIFICATE, wanted) for wanted in settings.certificates),
            *(_Watched(_KEY, wanted) for wanted in settings.keys),
        ]
        self._client: VaultClient | None = None
        self._composed: _Composed | None = None

    def material(self) -> KeyMaterial:
        """What was loaded last, less what is too old. `missing` says what is not there and should be.

        Raises:
            Undecided: KEYS_UNAVAILABLE, when nothing was ever loaded or all of it is too old.
        """
        if self._composed is None or self._monotonic() > self._composed.until:
            self._composed = self._compose()
        return self._composed.material

    async def refresh(self) -> None:
        """Look at every version again and load what is new. What cannot be had now stays as it was.

        Raises:
            Undecided: KEYS_UNAVAILABLE, when something could not be had; the rest was refreshed all the same.
        """
        client = await self._connect()
        try:
            await asyncio.gather(*(self._refresh_one(client, one) for one in self._watched))
        finally:
            self._composed = None  # time may have run out half-way; what came counts
        problems = [problem for one in self._watched for problem in one.problems]
        if problems:
            first = problems[0]
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            waits = [problem.retry_after for problem in problems if isinstance(problem, Undecided)]
            raise Undecided(
                "KEYS_UNAVAILABLE",
                f"{first.reason}{more}",
                expected=first.expected,
                found=first.found,
                remediation=first.remediation,
                retry_after=max((wait for wait in waits if wait is not None), default=None),
            )

    async def aclose(self) -> None:
        """Close the connections; the material stays."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def _connect(self) -> VaultClient:
        if self._client is None:
            client_class = await asyncio.to_thread(_import_client)
            self._client = client_class(self._access)
        return self._client

    # -- loading --------------------------------------------------------------------------------------------------

    async def _refresh_one(self, client: VaultClient, one: _Watched) -> None:
        try:
            one.look(await self._look(client, one), self._monotonic(), self._clock())
        except VaultError as error:
            one.error = error.trouble.error

    async def _look(self, client: VaultClient, one: _Watched) -> _Look:
        """See which versions there are, and have what is in those that count. Raises VaultError."""
        wanted = one.wanted
        versions = await self._versions(client, one) if wanted.history else None
        if versions is None:
            return await self._look_at_one(client, one)
        judged = self._judge(one, versions)
        if not judged:  # for a name that it does not know, Key Vault lists no versions
            return await self._look_at_one(client, one)
        look = _Look()
        for entry in judged:
            content = one.known.get(entry.facts.version)
            if entry.state is not VersionState.IN_USE:
                look.add(entry, None)
            elif content is not None:
                look.add(self._settle(entry.facts, content), content)
            else:
                look.add(*await self._fetch(client, one, entry.facts.version))
        return look

    async def _versions(self, client: VaultClient, one: _Watched) -> Sequence[VersionFacts] | None:
        """Versions, by whichever permission the identity has; None when it may not list. Raises VaultError."""
        for list_versions in one.kind.listings(client):
            try:
                return await list_versions(one.wanted.name)
            except VaultError as error:
                if not error.trouble.lacks_permission:
                    raise
        return None

    async def _look_at_one(self, client: VaultClient, one: _Watched) -> _Look:
        """The pinned version, or the newest, without a list. Raises VaultError."""
        look = _Look()
        entry, content = await self._fetch(client, one, one.wanted.version, alone=True)
        look.add(entry, content)
        return look

    def _judge(self, one: _Watched, versions: Sequence[VersionFacts]) -> tuple[Judged, ...]:
        return judge_versions(
            versions,
            pinned=one.wanted.version,
            limit=one.wanted.history,
            at=self._clock(),
            keep_expired=self._settings.keep_expired,
        )

    async def _fetch(
        self, client: VaultClient, one: _Watched, version: str | None, *, alone: bool = False
    ) -> tuple[Judged, _Content | CountersignError | None]:
        """What a version holds.

        Args:
            client: of the vault.
            one: whose version.
            version: None for the newest.
            alone: nothing else is known of the object, so that a fault is the object's.

        Returns:
            The version, and what it holds: None when it does not count, the error when it cannot be had or read.

        Raises:
            VaultError: only for one that is alone.
        """
        try:
            facts, content = await one.kind.fetch(client, one.wanted.name, version)
        except VaultError as error:
            facts = VersionFacts(version or "", enabled=not error.trouble.is_disabled)
            if error.trouble.is_disabled:
                return Judged(facts, VersionState.DISABLED), None
            if alone:
                raise
            return Judged(facts, VersionState.IN_USE), error.trouble.error
        if isinstance(content, ConfigurationError):
            return Judged(facts, facts.state(self._clock(), keep_expired=self._settings.keep_expired)), content
        if content.held_private_key and facts.version not in one.known:
            _log.warning(
                "private key in a secret of Key Vault, dropped",
                provider=self.name,
                certificate=one.wanted.name,
                version=facts.version,
                remediation="Make the certificate's key non-exportable: whoever may read the secret has the key.",
            )
        one.known[facts.version] = content
        return self._settle(facts, content), content

    def _settle(self, facts: VersionFacts, content: _Content) -> Judged:
        """Whether a version counts, by what Key Vault says of it and by the leaf that is in it."""
        at = self._clock()
        state = facts.state(at, keep_expired=self._settings.keep_expired)
        if state is VersionState.IN_USE:
            state = content.validity.state(at, keep_expired=self._settings.keep_expired)
        return Judged(facts, state)

    # -- handing out ----------------------------------------------------------------------------------------------

    def _compose(self) -> _Composed:
        """Put together what is fresh enough. Raises Undecided, when nothing is."""
        now = self._monotonic()
        fresh = [one for one in self._watched if one.is_fresh(now, self._settings.max_age_seconds)]
        stale = [one for one in self._watched if one not in fresh]
        if not fresh:
            error = stale[0].error
            raise Undecided(
                "KEYS_UNAVAILABLE",
                f"{self.name} holds nothing: {stale[0].why_stale(now)}",
                remediation=error.remediation if error else None,
            )
        certificates: dict[bytes, Certificate] = {}
        keys: dict[str, bytes] = {}
        for one in fresh:
            for version, content in one.in_use:
                certificates |= {certificate.der: certificate for certificate in content.chain}
                if content.key:
                    keys[f"{one.wanted.name}/{version}"] = content.key
        missing = [one.why_stale(now) for one in stale]
        missing += [f"{one.label}, version {version}: {error.detail}" for one in fresh for version, error in one.faults]
        properties = {
            kind.heading: [row for one in self._watched if one.kind is kind for row in one.rows()]
            for kind in (_CERTIFICATE, _KEY)
        }
        material = KeyMaterial(
            tuple(certificates.values()),
            keys,
            {heading: rows for heading, rows in properties.items() if rows},
            tuple(missing),
        )
        return _Composed(material, min(one.seen or now for one in fresh) + self._settings.max_age_seconds)


def _import_client() -> type[VaultClient]:
    load_sdk()
    from provider.key_management.key_vault_client import VaultClient

    return VaultClient


# -- one object of the vault ------------------------------------------------------------------------------------------


class _Composed(NamedTuple):
    """Material, and the monotonic time until which it holds."""

    material: KeyMaterial
    until: float


class _Content(NamedTuple):
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


class _Kind(NamedTuple):
    """Certificates or keys: their word, their heading in the status, and how they are asked for."""

    word: str
    heading: str
    listings: Callable[[VaultClient], Sequence[Callable[[str], Awaitable[Sequence[VersionFacts]]]]]
    fetch: Callable[[VaultClient, str, str | None], Awaitable[tuple[VersionFacts, _Content | ConfigurationError]]]


async def _fetch_certificate(
    client: VaultClient, name: str, version: str | None
) -> tuple[VersionFacts, _Content | ConfigurationError]:
    answer = await client.secret(name, version)
    try:
        # In a thread: opening PKCS #12 takes a tenth of a second and more.
        content: SecretContent = await asyncio.to_thread(read_certificate_secret, answer.value, answer.content_type)
    except ConfigurationError as error:
        return answer.facts, error
    return answer.facts, _Content(chain=content.chain, held_private_key=content.held_private_key)


async def _fetch_key(
    client: VaultClient, name: str, version: str | None
) -> tuple[VersionFacts, _Content | ConfigurationError]:
    answer = await client.key(name, version)
    try:
        return answer.facts, _Content(key=read_key(answer.description))
    except ConfigurationError as error:
        return answer.facts, error


# Listing secrets is part of the role that reading them takes; listing certificates is another permission.
_CERTIFICATE: Final = _Kind(
    "certificate",
    "Certificates",
    lambda client: (client.secret_versions, client.certificate_versions),
    _fetch_certificate,
)
_KEY: Final = _Kind("key", "Keys", lambda client: (client.key_versions,), _fetch_key)


@dataclass(slots=True)
class _Look:
    """What one look at an object found: its versions, newest first, and what those hold that count."""

    judged: list[Judged] = field(default_factory=list)
    contents: dict[str, _Content] = field(default_factory=dict)
    faults: dict[str, CountersignError] = field(default_factory=dict)

    def add(self, entry: Judged, content: _Content | CountersignError | None) -> None:
        """Take up a version."""
        self.judged.append(entry)
        if entry.state is not VersionState.IN_USE:
            return
        if isinstance(content, CountersignError):
            self.faults[entry.facts.version] = content
        elif content is not None:
            self.contents[entry.facts.version] = content


class _Watched:
    """A certificate or key: what was found last, when, and what went wrong since.

    Attributes:
        kind: which of the two.
        wanted: what is wanted of it.
        contents: what the versions in use hold.
        known: what versions hold that were looked into, those of a look that was cut off included.
        error: why the last look failed; None when it did not.
        seen: monotonic time of the last look that did not fail; None before the first.
    """

    def __init__(self, kind: _Kind, wanted: VaultObject) -> None:
        self.kind = kind
        self.wanted = wanted
        self.contents: dict[str, _Content] = {}
        self.known: dict[str, _Content] = {}
        self.error: CountersignError | None = None
        self.seen: float | None = None
        self._seen_at: datetime | None = None
        self._judged: list[Judged] = []
        self._faults: dict[str, CountersignError] = {}

    @property
    def label(self) -> str:
        """What it is called in errors."""
        return f"{self.kind.word} {self.wanted.name}"

    @property
    def in_use(self) -> tuple[tuple[str, _Content], ...]:
        """The versions that count, with what they hold."""
        return tuple(self.contents.items())

    @property
    def faults(self) -> tuple[tuple[str, CountersignError], ...]:
        """The versions that should count and cannot be had or read."""
        return tuple(self._faults.items())

    @property
    def problems(self) -> tuple[CountersignError, ...]:
        """Everything that is wrong with it now."""
        return (*((self.error,) if self.error else ()), *self._faults.values())

    def look(self, look: _Look, seen: float, at: datetime) -> None:
        """Take up what a look found."""
        self.contents, self._judged, self._faults = look.contents, look.judged, look.faults
        self.known = dict(look.contents)
        self.seen, self._seen_at, self.error = seen, at, None

    def is_fresh(self, now: float, max_age: float) -> bool:
        """Whether what was found last may still be used."""
        return self.seen is not None and now - self.seen <= max_age

    def why_stale(self, now: float) -> str:
        """Why nothing is known of it."""
        reason = self.error.detail if self.error else "it is not loaded yet"
        if self.seen is None:
            return f"{self.label}: {reason}"
        return f"{self.label}, last seen {(now - self.seen) / 3600:.1f} hours ago, which is too long: {reason}"

    def rows(self) -> list[dict[str, str]]:
        """Its part of the status, as Ratify has it, with additions: versions in use, then others, each with why."""
        used = [entry for entry in self._judged if entry.state is VersionState.IN_USE]
        others = [entry for entry in self._judged if entry.state is not VersionState.IN_USE][:MAX_TOLD_VERSIONS]
        rows = [self._row(entry) for entry in used + others]
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
            "LastRefreshed": _text(self._seen_at),
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
