"""Several sources of credentials asked in order: the first that has one wins.

A source that fails ends the search: what it would have said is not known, and neither the next source nor anonymous
access is a substitute that anyone asked for.

What does not belong here: the sources.
"""

from __future__ import annotations

from collections.abc import Iterable

from provider.interfaces import Credential, CredentialProvider


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
        for source in self._sources:
            found = await source.credential(domain, path)
            if found is not None:
                return found
        return None
