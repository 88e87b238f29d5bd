"""Several sources of credentials asked in order: the first that has one wins.

Rules:
- A source that fails ends the search: what it would have said is not known, and neither the next source nor anonymous
  access is a substitute that anyone asked for.
- A source whose credentials the registry refused, all of them, is passed over for the next one that has another.

What does not belong here: the sources.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from provider.interfaces import (
    AlternativeCredentialProvider,
    Credential,
    CredentialProvider,
    RenewableCredentialProvider,
)


class CredentialChain:
    """Asks sources in order.

    Args:
        sources: the sources; their owner closes them.
    """

    def __init__(self, sources: Iterable[CredentialProvider]) -> None:
        self._sources = tuple(sources)

    async def credential(self, domain: str, path: str) -> Credential | None:
        """The first credential that a source has for the repository, None when none has.

        Raises:
            Undecided: CREDENTIALS_UNAVAILABLE, from the source that failed.
        """
        return await self.another(domain, path, ())

    async def another(self, domain: str, path: str, refused: Collection[Credential | None]) -> Credential | None:
        """The first credential that is none of those refused; see interfaces.AlternativeCredentialProvider.

        Raises:
            Undecided: CREDENTIALS_UNAVAILABLE, from the source that failed.
        """
        for source in self._sources:
            if isinstance(source, AlternativeCredentialProvider):
                found = await source.another(domain, path, refused)
            else:
                found = await source.credential(domain, path)
            if found is not None and found not in refused:
                return found
        return None

    def refused(self, domain: str, path: str) -> None:
        """Pass on that a registry refused the credential, to the sources that care."""
        for source in self._sources:
            if isinstance(source, RenewableCredentialProvider):
                source.refused(domain, path)
