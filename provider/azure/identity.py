"""Who this process is at Microsoft Entra ID, and the tokens that show it.

    identity = AzureIdentity(WorkloadIdentity(client_id="..."), proxies=proxies)
    token = await identity.token("https://containerregistry.azure.net/.default")

Rules:
- A workload identity shows Entra ID the service account's token that Kubernetes keeps in a file; where the pod has an
  identity binding, it shows it to the cluster's token proxy (AZURE_KUBERNETES_TOKEN_PROXY). A managed identity is asked
  for at the instance metadata service of the node, and nowhere else.
- The SDK is imported when the first token is asked for, in a thread.
- One exchange for all who wait for the same scope. The SDK keeps the token and renews it early; who was refused with
  one says so, because the SDK would give the same again. `refuse` is heeded now and then and not each time: whoever
  names an image decides how often a registry refuses, and Entra ID limits how often an identity asks.
- Every exception of the SDK becomes AzureIdentityError. No token is in an error, a log line or a repr.

What does not belong here: what a token is exchanged for (credentials/azure.py), Key Vault (key_management/).
Sources: azure-identity 1.27; azure-workload-identity v1.6; attack N11.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from yarl import URL

from provider.azure.explanations import FEDERATION_CODES, NO_WEBHOOK, AzureIdentityError, entra_code, explain
from provider.azure.sdk import CONNECT_SECONDS, READ_SECONDS, RETRIES, Answered, guarded_transport, load_sdk
from provider.cache import SingleFlight
from provider.egress import LOOPBACK_ALLOWED, METADATA_ONLY, ProxySettings
from provider.errors import printable
from provider.lifetimes import unverified_claims

if TYPE_CHECKING:
    from azure.core.credentials_async import AsyncTokenCredential

TOKEN_SECONDS: Final = 10.0  # one token with its second try
REFUSAL_PAUSE_SECONDS: Final = 30.0  # between two tokens that refusals cause
MAX_TOKEN_FILE_BYTES: Final = 64 * 1024  # of the service account's token, where it is read for an error

_TOKEN = re.compile(r"[\x21-\x7e]{1,65536}")
_AUTHORITY: Final = "https://login.microsoftonline.com"
_METADATA_HOST_VARIABLE: Final = "AZURE_POD_IDENTITY_AUTHORITY_HOST"  # the SDK's own; of AAD Pod Identity, and of tests
_TOKEN_PROXY_VARIABLE: Final = "AZURE_KUBERNETES_TOKEN_PROXY"  # noqa: S105 - a variable's name


@dataclass(frozen=True, slots=True)
class WorkloadIdentity:
    """The identity that a service account of Kubernetes is federated with.

    Attributes:
        client_id: of the identity; empty for AZURE_CLIENT_ID.
        tenant_id: its tenant; empty for AZURE_TENANT_ID.
    """

    client_id: str = ""
    tenant_id: str = ""


@dataclass(frozen=True, slots=True)
class ManagedIdentity:
    """An identity of the node.

    Attributes:
        client_id: of a user-assigned identity; empty for the node's own.
    """

    client_id: str = ""


@dataclass(frozen=True, slots=True)
class AzureToken:
    """A token of Entra ID.

    Attributes:
        value: the token; secret.
        seconds: how long it lasts, from when it was given out here.
        generation: how often tokens had been given up before it.
    """

    value: str = field(repr=False)
    seconds: float
    generation: int = 0


class AzureIdentity:
    """Gets tokens for one identity. For one event loop; to be closed with `aclose`.

    Args:
        identity: who to be.
        proxies: proxies of the environment, on the way to Entra ID.
        variables: what the workload identity webhook says through environment variables. The SDK reads those of an
            identity binding and of AAD Pod Identity in os.environ, whatever is given here.
        token_seconds: the most that one token may take.
        clock: seconds since 1970, as the SDK reckons the end of tokens.
        monotonic: seconds of a clock that never goes back.
    """

    def __init__(
        self,
        identity: WorkloadIdentity | ManagedIdentity,
        *,
        proxies: ProxySettings | None = None,
        variables: Mapping[str, str] | None = None,
        token_seconds: float = TOKEN_SECONDS,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._identity = identity
        self._proxies = proxies or ProxySettings()
        self._variables = os.environ if variables is None else variables
        self._token_seconds = token_seconds
        self._clock = clock
        self._monotonic = monotonic
        self._refusals_count_from = -math.inf
        self._answered: Answered | None = None
        self._credential: AsyncTokenCredential | None = None
        self._stale = False
        self._generation = 0
        self._opening = asyncio.Lock()
        self._flights: SingleFlight[str, AzureToken] = SingleFlight()

    @property
    def tenant_id(self) -> str:
        """The identity's tenant; empty when it is not known here."""
        named = self._identity.tenant_id if isinstance(self._identity, WorkloadIdentity) else ""
        return named or self._variables.get("AZURE_TENANT_ID", "")

    async def token(self, scope: str) -> AzureToken:
        """A token for a resource, such as `https://containerregistry.azure.net/.default`.

        Raises:
            AzureIdentityError: there is none.
        """
        return await self._flights.run(scope, lambda: self._get(scope))

    async def credential(self) -> AsyncTokenCredential:
        """The SDK's credential, for a client of the SDK; it stays this object's, which closes it.

        Raises:
            AzureIdentityError: the identity is not set up.
        """
        async with self._opening:
            if self._stale:
                await self._close()
            if self._credential is None:
                await asyncio.to_thread(load_sdk)
                if isinstance(self._identity, WorkloadIdentity):
                    self._credential = self._open_workload_identity(self._identity)
                else:
                    self._credential = self._open_managed_identity(self._identity)
            return self._credential

    def forget(self) -> None:
        """Let the next token be a new one, for who decides himself how often he is refused."""
        self._give_up()

    def refuse(self, token: AzureToken | None = None) -> bool:
        """Let the next token be a new one, unless that was so just now, for who is refused at other people's will.

        Args:
            token: what was refused; None when it is not known.

        Returns:
            Whether the next token will be another than the one refused.
        """
        if token is not None and token.generation < self._generation:
            return True
        now = self._monotonic()
        if now < self._refusals_count_from:
            return False
        self._refusals_count_from = now + REFUSAL_PAUSE_SECONDS
        self._give_up()
        return True

    async def aclose(self) -> None:
        """Close every connection and give up what is under way."""
        await self._flights.aclose()
        await self._close()

    def _give_up(self) -> None:
        self._stale = True
        self._generation += 1

    async def _close(self) -> None:
        credential, self._credential, self._stale = self._credential, None, False
        if credential is not None:
            await credential.close()

    async def _get(self, scope: str) -> AzureToken:
        generation = self._generation
        try:
            async with asyncio.timeout(self._token_seconds):
                credential = await self.credential()
                token = await credential.get_token(scope)
        except AzureIdentityError:
            raise
        except Exception as error:  # noqa: BLE001 - the SDK lets through whatever its parsers raise
            self._give_up()  # it keeps the service account's token for ten minutes
            raise self._explained(error) from None
        value, seconds = token.token, token.expires_on - self._clock()
        if not isinstance(value, str) or _TOKEN.fullmatch(value) is None or seconds <= 0:
            self._give_up()
            raise AzureIdentityError(f"{self._asked} gave a token that cannot be used")
        return AzureToken(value, seconds, generation)

    # -- setting up -----------------------------------------------------------------------------------------------

    def _open_workload_identity(self, identity: WorkloadIdentity) -> AsyncTokenCredential:
        from azure.identity.aio import WorkloadIdentityCredential

        client_id = identity.client_id or self._variables.get("AZURE_CLIENT_ID", "")
        token_file = self._variables.get("AZURE_FEDERATED_TOKEN_FILE", "")
        if not token_file:
            raise AzureIdentityError(
                "there is no workload identity in this pod: AZURE_FEDERATED_TOKEN_FILE is not set", NO_WEBHOOK
            )
        for name, value in (("client", client_id), ("tenant", self.tenant_id)):
            if not value:
                raise AzureIdentityError(
                    f"the {name} id of the workload identity is not known",
                    f"Set {name}ID, or annotate the service account with azure.workload.identity/{name}-id and start "
                    "the pod anew.",
                )
        settings: dict[str, Any] = {"use_env_settings": False}  # the token proxy is inside the cluster
        if _TOKEN_PROXY_VARIABLE not in os.environ:
            settings = {"transport": guarded_transport(self._proxies, note=self._note)}
        try:
            return WorkloadIdentityCredential(
                tenant_id=self.tenant_id,
                client_id=client_id,
                token_file_path=token_file,
                authority=self._authority,
                enable_azure_proxy=True,
                connection_timeout=CONNECT_SECONDS,
                read_timeout=READ_SECONDS,
                **RETRIES,
                **settings,
            )
        except ValueError:  # not quoted: URLs may hold passwords
            raise AzureIdentityError(
                "the workload identity is set up wrongly",
                "AZURE_AUTHORITY_HOST and AZURE_KUBERNETES_TOKEN_PROXY are https URLs; beside the latter stand "
                "AZURE_KUBERNETES_SNI_NAME and one of AZURE_KUBERNETES_CA_FILE, which can be read, and "
                "AZURE_KUBERNETES_CA_DATA.",
            ) from None

    def _open_managed_identity(self, identity: ManagedIdentity) -> AsyncTokenCredential:
        from azure.identity.aio import ManagedIdentityCredential

        rules = LOOPBACK_ALLOWED if _METADATA_HOST_VARIABLE in os.environ else METADATA_ONLY
        return ManagedIdentityCredential(
            client_id=identity.client_id or None,
            transport=guarded_transport(None, rules=rules, note=self._note),
            # The SDK would take the pod's workload identity in its place, where there is one.
            _exclude_workload_identity_credential=True,
            **{**RETRIES, "retry_status": 1},  # the metadata service answers 404 and 410 for a moment now and then
        )

    def _note(self, answered: Answered | None) -> None:
        self._answered = answered

    # -- what went wrong ------------------------------------------------------------------------------------------

    @property
    def _authority(self) -> str:
        return self._variables.get("AZURE_AUTHORITY_HOST") or _AUTHORITY

    @property
    def _asked(self) -> str:
        if isinstance(self._identity, ManagedIdentity):
            return "the instance metadata service"
        if _TOKEN_PROXY_VARIABLE in os.environ:
            return "the token proxy of the identity binding"
        try:
            host = URL(self._authority).host or self._authority
        except ValueError:
            host = "no authority"
        return f"Entra ID at {printable(host, 253)}"

    def _explained(self, error: Exception) -> AzureIdentityError:
        if isinstance(error, OSError) and error.filename is not None:  # of connections it is None
            return AzureIdentityError(
                f"the service account's token cannot be read: {error.strerror or 'no reason given'}", NO_WEBHOOK
            )
        trouble = explain(error, self._asked, self._answered)
        if entra_code(error) in FEDERATION_CODES:
            trouble.found = self._service_account()
        return trouble

    def _service_account(self) -> str | None:
        """What the service account's token says of itself; none of it is secret, and all of it explains a refusal."""
        try:
            with Path(self._variables.get("AZURE_FEDERATED_TOKEN_FILE", "")).open(encoding="ascii") as file:
                claims = unverified_claims(file.read(MAX_TOKEN_FILE_BYTES).strip())
        except (OSError, ValueError):
            return None
        said = {name: claims[name] for name in ("iss", "sub", "aud") if name in claims}
        return f"a service account token with {json.dumps(said)}" if said else None
