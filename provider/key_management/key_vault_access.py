"""How an Azure Key Vault is reached, and how it fails: what can be said without the SDK, which is imported when used.

What does not belong here: requests (key_vault_client.py), what failures mean (key_vault_errors.py).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from provider.azure.identity import AzureIdentity
from provider.egress import ProxySettings
from provider.errors import Undecided

CALL_SECONDS: Final = 8.0  # one operation with its challenge and token; loading may hold up a configuration 10 seconds
RETRY_PAUSE_SECONDS: Final = 0.5

DISABLED_CODES: Final = frozenset({"SecretDisabled", "KeyDisabled", "CertificateDisabled"})
_NETWORK_CODES: Final = frozenset({"ForbiddenByFirewall", "ForbiddenByConnection"})


@dataclass(frozen=True, slots=True)
class VaultAccess:
    """How a vault is reached.

    Attributes:
        uri: `https://<host>`, nothing behind it. It gets tokens, so who gives it has checked the host.
        identity: who to be; closed with the client.
        proxies: proxies of the environment.
        call_seconds: the most that one operation may take.
        pause_seconds: before it is tried again.
    """

    uri: str
    identity: AzureIdentity
    proxies: ProxySettings = field(default_factory=ProxySettings)
    call_seconds: float = CALL_SECONDS
    pause_seconds: float = RETRY_PAUSE_SECONDS


class Passing(enum.Enum):
    """Whether another try may help."""

    NO = "no"
    AT_ONCE = "at once"
    WITH_A_NEW_TOKEN = "with a new token"  # noqa: S105 - no secret


class Trouble(NamedTuple):
    """An explained exception.

    Attributes:
        error: what to tell.
        passing: whether another try may help.
        status: the HTTP status, 0 when there was no answer.
        code: Key Vault's own code, the inner one where there is one; empty when there is none.
    """

    error: Undecided
    passing: Passing = Passing.NO
    status: int = 0
    code: str = ""

    @property
    def is_disabled(self) -> bool:
        """It is there and switched off: an answer more than a fault."""
        return self.status == 403 and self.code in DISABLED_CODES

    @property
    def lacks_permission(self) -> bool:
        """The vault was reached, and the identity may not do this there."""
        return self.status == 403 and self.code not in DISABLED_CODES | _NETWORK_CODES


class VaultError(Exception):
    """An operation failed; `trouble` explains it."""

    def __init__(self, trouble: Trouble) -> None:
        super().__init__(str(trouble.error))
        self.trouble = trouble
