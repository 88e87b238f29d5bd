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
- A version that cannot be had or read leaves its place to an older one: a bad renewal costs no good certificate.
- What a version holds never changes, so it is asked for once. Private keys never get here (key_vault_content.py).

What does not belong here: the SDK (key_vault_client.py), which version counts (key_vault_versions.py), when to refresh
(parts.py), which certificate may anchor trust (notation/certificates.py).
Source: Ratify v1.4 key management provider azurekeyvault; versionHistoryLimit of its development branch.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, NamedTuple

import structlog

from provider.azure.explanations import UNREACHABLE
from provider.azure.sdk import load_sdk
from provider.errors import ConfigurationError, CountersignError, Undecided
from provider.interfaces import KeyMaterial
from provider.key_management.key_vault_access import Trouble, VaultAccess, VaultError
from provider.key_management.key_vault_objects import CERTIFICATE, KEY, Content, Look, VaultObject, Watched
from provider.key_management.key_vault_versions import Judged, VersionFacts, VersionState, judge_versions
from provider.notation.certificates import Certificate

if TYPE_CHECKING:
    from provider.key_management.key_vault_client import VaultClient

REFRESH_SECONDS: Final = 600.0  # how long a new or disabled version goes unseen; costs one request per object
MAX_AGE_SECONDS: Final = 24 * 3600.0  # longer than outages of Entra and Key Vault were, and somebody notices in time

_log = structlog.get_logger(__name__)


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
            *(Watched(CERTIFICATE, wanted) for wanted in settings.certificates),
            *(Watched(KEY, wanted) for wanted in settings.keys),
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
        except asyncio.CancelledError:
            for one in self._watched:
                if one.seen is None and one.error is None:
                    one.error = Undecided(
                        "KEYS_UNAVAILABLE",
                        f"{client.host} did not answer in time, asked for {one.label}",
                        remediation=UNREACHABLE,
                    )
            raise
        finally:
            self._composed = None  # time may have run out half-way; what came counts
        problems = [problem for one in self._watched for problem in one.problems]
        if problems:
            what, first = problems[0]
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            waits = [problem.retry_after for _, problem in problems if isinstance(problem, Undecided)]
            raise Undecided(
                "KEYS_UNAVAILABLE",
                f"{what}: {first.reason}{more}",
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

    async def _refresh_one(self, client: VaultClient, one: Watched) -> None:
        try:
            one.look(await self._look(client, one), self._monotonic(), self._clock())
        except VaultError as error:
            one.error = error.trouble.error

    async def _look(self, client: VaultClient, one: Watched) -> Look:
        """See which versions there are, and have what is in those that count. Raises VaultError."""
        wanted = one.wanted
        versions = await self._versions(client, one) if wanted.history else None
        if versions is None:
            return await self._look_at_one(client, one)
        judged = self._judge(one, versions)
        if not judged:  # for a name that it does not know, Key Vault lists no versions
            return await self._look_at_one(client, one)
        look = Look()
        free, tries = 0, wanted.history  # places of versions that turn out not to count, for older ones
        for entry in judged:
            if entry.state is VersionState.OLDER and free and tries:
                free, tries = free - 1, tries - 1
            elif entry.state is not VersionState.IN_USE:
                look.add(entry, None)
                continue
            content: Content | CountersignError | None = one.known.get(entry.facts.version)
            if isinstance(content, Content):
                found = self._settle(entry.facts, content)
            else:
                found, content = await self._fetch(client, one, entry.facts.version)
            look.add(found, content)
            free += found.state is not VersionState.IN_USE or not isinstance(content, Content)
        return look

    async def _versions(self, client: VaultClient, one: Watched) -> Sequence[VersionFacts] | None:
        """Versions, by whichever permission the identity has; None when it may not list. Raises VaultError."""
        for list_versions in one.kind.listings(client):
            try:
                return await list_versions(one.wanted.name)
            except VaultError as error:
                if not error.trouble.lacks_permission:
                    raise
        return None

    async def _look_at_one(self, client: VaultClient, one: Watched) -> Look:
        """The pinned version, or the newest, without a list. Raises VaultError."""
        look = Look()
        entry, content = await self._fetch(client, one, one.wanted.version, alone=True)
        look.add(entry, content)
        return look

    def _judge(self, one: Watched, versions: Sequence[VersionFacts]) -> tuple[Judged, ...]:
        return judge_versions(
            versions,
            pinned=one.wanted.version,
            limit=one.wanted.history,
            at=self._clock(),
            keep_expired=self._settings.keep_expired,
        )

    async def _fetch(
        self, client: VaultClient, one: Watched, version: str | None, *, alone: bool = False
    ) -> tuple[Judged, Content | CountersignError | None]:
        """What a version holds.

        Args:
            client: of the vault.
            one: whose version.
            version: None for the newest.
            alone: nothing else is known of the object, so that a fault is the object's.

        Returns:
            The version, and what it holds: None when it does not count, the error when it cannot be had or read.

        Raises:
            VaultError: only for one that is alone; for what cannot be read too, so that what was loaded last stays.
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
            if alone:
                raise VaultError(Trouble(_undecided(content)))
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

    def _settle(self, facts: VersionFacts, content: Content) -> Judged:
        """Whether a version counts, by what Key Vault says of it and by the leaf that is in it."""
        at = self._clock()
        state = facts.state(at, keep_expired=self._settings.keep_expired)
        if state is VersionState.IN_USE:
            state = content.validity.state(at, keep_expired=self._settings.keep_expired)
        return Judged(facts, state)

    # -- handing out ----------------------------------------------------------------------------------------------

    def _compose(self) -> _Composed:
        """Put together what is fresh enough. Raises Undecided, when nothing is."""
        now, max_age = self._monotonic(), self._settings.max_age_seconds
        fresh = [one for one in self._watched if one.is_fresh(now, max_age)]
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
        missing += [fault for one in fresh for fault in one.faults]
        properties = {
            kind.heading: [row for one in self._watched if one.kind is kind for row in one.rows(fresh=one in fresh)]
            for kind in (CERTIFICATE, KEY)
        }
        material = KeyMaterial(
            tuple(certificates.values()),
            keys,
            {heading: rows for heading, rows in properties.items() if rows},
            tuple(missing),
            min(one.seen_at for one in fresh if one.seen_at is not None),
        )
        return _Composed(material, min(one.seen for one in fresh if one.seen is not None) + max_age)


def _undecided(error: ConfigurationError) -> Undecided:
    return Undecided(
        "KEYS_UNAVAILABLE", error.reason, expected=error.expected, found=error.found, remediation=error.remediation
    )


def _import_client() -> type[VaultClient]:
    load_sdk()
    from provider.key_management.key_vault_client import VaultClient

    return VaultClient


class _Composed(NamedTuple):
    """Material, and the monotonic time until which it holds."""

    material: KeyMaterial
    until: float
