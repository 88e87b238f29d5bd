"""Asking one Key Vault, through the SDK: versions, secrets of certificates, keys. Bounded in time, bytes and pages.

Rules:
- Only the vault's own host is asked, whatever an answer says: redirects and links to other hosts are refused. The SDK
  gets a token only for the service that the vault belongs to (verify_challenge_resource).
- Times and tries are ours. The SDK by itself waits 300 seconds, tries ten times, and obeys any Retry-After.
- An answer is believed when it is about what was asked: another name, version or vault is a fault, and so is an answer
  that leaves out what decides, such as whether a version is enabled.
- A refused token is asked for once more anew: the SDK would show the refused one again. A challenge that led to no good
  is forgotten: the SDK would heed it until the process ends.
- An identity of one tenant is not shown to a vault that says it is another's.
- Values of secrets are handed to the caller and neither kept nor logged here.

What does not belong here: what a value holds (key_vault_content.py), which version counts (key_vault_versions.py), when
to ask (azure_key_vault.py). Imports the SDK, nearly a second of work: imported where it is used, in a thread.
Sources: Azure Key Vault REST API 7.4; the SDK's behaviour was measured, not read of.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import urlsplit

from azure.core.credentials import AccessToken, AccessTokenInfo, TokenRequestOptions
from azure.core.exceptions import HttpResponseError
from azure.core.pipeline.transport import AsyncHttpTransport
from azure.core.rest import HttpRequest
from azure.keyvault.certificates._shared import http_challenge_cache as certificates_challenges
from azure.keyvault.certificates.aio import CertificateClient
from azure.keyvault.secrets._shared import http_challenge_cache as secrets_challenges
from azure.keyvault.secrets.aio import SecretClient
from yarl import URL

from provider import __version__, strict_json
from provider.azure.explanations import AzureIdentityError
from provider.azure.identity import AzureIdentity
from provider.azure.sdk import MAX_ANSWER_BYTES, guarded_transport
from provider.key_management.key_vault_access import Passing, VaultAccess, VaultError
from provider.key_management.key_vault_errors import ForeignHostError, MalformedAnswerError, explain
from provider.key_management.key_vault_versions import VersionFacts

API_VERSION: Final = "7.4"  # the SDK's default is of 2026, and clouds of governments are years behind
MAX_PAGES: Final = 40  # of versions, 25 each: who renews every day has three years' worth
MAX_AT_ONCE: Final = 4  # operations side by side, of one vault

_VERSION: Final = re.compile(r"[0-9A-Za-z]{1,64}")
_TENANT_ID: Final = re.compile(r"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")

T = TypeVar("T")


class SecretAnswer(NamedTuple):
    """A secret. Not to be printed.

    Attributes:
        facts: its version.
        value: secret.
        content_type: as Key Vault says.
    """

    facts: VersionFacts
    value: str | None
    content_type: str | None

    def __repr__(self) -> str:
        return f"SecretAnswer({self.facts.version!r})"


class KeyAnswer(NamedTuple):
    """A public key: its version and its JSON Web Key, untrusted."""

    facts: VersionFacts
    description: Any


class VaultClient:
    """Asks one vault. To be made in a running loop, and closed with `aclose`."""

    def __init__(self, access: VaultAccess) -> None:
        self.host = URL(access.uri).host or ""
        self._access = access
        self._tokens = _Tokens(access.identity)
        self._transport = guarded_transport(access.proxies)  # a vault may be private
        settings: dict[str, Any] = {
            "transport": _OneOrigin(URL(access.uri).origin(), self._transport),
            "api_version": API_VERSION,
            "verify_challenge_resource": True,
            "permit_redirects": False,
            "retry_total": 0,
            "user_agent": f"countersign/{__version__}",
        }
        self._secrets = SecretClient(access.uri, self._tokens, **settings)
        self._certificates = CertificateClient(access.uri, self._tokens, **settings)
        self._slots = asyncio.Semaphore(MAX_AT_ONCE)

    async def secret_versions(self, name: str) -> tuple[VersionFacts, ...]:
        """The versions of a secret, in no order; none for a name that is not there.

        Raises:
            VaultError: they could not be had.
        """
        return await self._ask(
            f"the versions of secret {name}",
            lambda: self._collect(self._secrets.list_properties_of_secret_versions(name).by_page(), name),
        )

    async def certificate_versions(self, name: str) -> tuple[VersionFacts, ...]:
        """The same, asked of the certificates, which is another permission. Raises VaultError."""
        return await self._ask(
            f"the versions of certificate {name}",
            lambda: self._collect(self._certificates.list_properties_of_certificate_versions(name).by_page(), name),
        )

    async def key_versions(self, name: str) -> tuple[VersionFacts, ...]:
        """The versions of a key, in no order. Raises VaultError."""
        return await self._ask(f"the versions of key {name}", lambda: self._collect(self._key_pages(name), name))

    async def secret(self, name: str, version: str | None) -> SecretAnswer:
        """A secret.

        Args:
            name: its name.
            version: None for the newest.

        Raises:
            VaultError: it could not be had.
        """

        async def get() -> SecretAnswer:
            answer = await self._secrets.get_secret(name, version)
            facts = self._facts(answer.properties, name, version)
            if not isinstance(answer.value, str | None) or not isinstance(answer.properties.content_type, str | None):
                raise MalformedAnswerError("its members are of the wrong kind")
            return SecretAnswer(facts, answer.value, answer.properties.content_type)

        return await self._ask(f"secret {_named(name, version)}", get)

    async def key(self, name: str, version: str | None) -> KeyAnswer:
        """A public key. Arguments and errors as for `secret`."""

        async def get() -> KeyAnswer:
            answer = await self._get_json(f"/keys/{name}/{version}" if version else f"/keys/{name}")
            description = answer.get("key")
            identifier = description.get("kid") if isinstance(description, dict) else None
            facts = self._facts(_Item(identifier, answer.get("attributes")), name, version)
            return KeyAnswer(facts, description)

        return await self._ask(f"key {_named(name, version)}", get)

    async def aclose(self) -> None:
        """Close the connections, those of the identity too."""
        await self._transport.close()
        await self._access.identity.aclose()

    # -- asking ---------------------------------------------------------------------------------------------------

    async def _ask(self, asked: str, operation: Callable[[], Awaitable[T]]) -> T:
        """Do it, again where that may help, once for each reason. Raises VaultError."""
        tried: set[Passing] = set()
        while True:
            number = self._tokens.number
            try:
                async with self._slots, asyncio.timeout(self._access.call_seconds):
                    return await operation()
            except Exception as error:  # noqa: BLE001 - the SDK raises whatever its parts do; all of it is explained
                trouble = explain(error, vault=self.host, asked=asked)
            if trouble.status in (0, 401):
                self._forget_challenges()
            if trouble.passing is Passing.NO or trouble.passing in tried:
                raise VaultError(trouble)
            tried.add(trouble.passing)
            if trouble.passing is Passing.WITH_A_NEW_TOKEN:
                self._tokens.forget(number)
            else:
                await asyncio.sleep(self._access.pause_seconds)

    def _forget_challenges(self) -> None:
        for cache in (secrets_challenges, certificates_challenges):
            cache.remove_challenge_for_url(self._access.uri)

    async def _collect(self, pages: AsyncIterator[Any], name: str) -> tuple[VersionFacts, ...]:
        found: list[VersionFacts] = []
        number = 0
        async for page in pages:
            number += 1
            if number > MAX_PAGES:
                raise MalformedAnswerError(f"there are more than {MAX_PAGES} pages")
            found += [self._facts(item, name, None) for item in [item async for item in page]]
        return tuple(found)

    async def _key_pages(self, name: str) -> AsyncIterator[AsyncIterator[_Item]]:
        link: str | None = f"/keys/{name}/versions"
        while link:
            answer = await self._get_json(link)
            items = answer.get("value")
            if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
                raise MalformedAnswerError("it is no page of versions")

            async def page(items: list[Any] = items) -> AsyncIterator[_Item]:
                for item in items:
                    yield _Item(item.get("kid"), item.get("attributes"))

            yield page()
            link = answer.get("nextLink")
            if not isinstance(link, str | None):
                raise MalformedAnswerError("it is no page of versions")

    async def _get_json(self, link: str) -> dict[str, Any]:
        """One answer of the REST API, through the pipeline of the secrets' client: its tokens are for keys as well."""
        response = await self._secrets.send_request(HttpRequest("GET", link))
        if response.status_code != 200:
            raise HttpResponseError(response=response)
        answer = strict_json.loads(response.content, max_bytes=MAX_ANSWER_BYTES)
        if not isinstance(answer, dict):
            raise MalformedAnswerError("it is no JSON object")
        return answer

    def _facts(self, item: Any, name: str, version: str | None) -> VersionFacts:
        """Read what the SDK made of an answer: the identifier and attributes of a version.

        Raises:
            MalformedAnswerError: it is about something else, or says not enough.
        """
        identifier = item.id
        if not isinstance(identifier, str):
            raise MalformedAnswerError("it does not say what it is about")
        parts = urlsplit(identifier)
        path = parts.path.strip("/").split("/")
        if len(path) != 3 or path[1].lower() != name.lower() or parts.hostname != self.host:
            raise MalformedAnswerError("it is about something else")
        if _VERSION.fullmatch(path[2]) is None or (version is not None and path[2].lower() != version.lower()):
            raise MalformedAnswerError("it is about another version")
        times = (item.not_before, item.expires_on, item.created_on)
        if not isinstance(item.enabled, bool) or not all(isinstance(time, datetime | None) for time in times):
            raise MalformedAnswerError("it does not say whether the version may be used")
        return VersionFacts(path[2], item.enabled, *times)


def _named(name: str, version: str | None) -> str:
    return f"{name}, version {version}" if version else name


class _Item:
    """A version in an answer of the REST API, as the SDK shows those that it knows."""

    def __init__(self, identifier: Any, attributes: Any) -> None:
        told = attributes if isinstance(attributes, dict) else {}
        self.id = identifier
        self.enabled = told.get("enabled")
        self.not_before, self.expires_on, self.created_on = (
            _time(told.get(name)) for name in ("nbf", "exp", "created")
        )


def _time(seconds: Any) -> Any:
    """A time in seconds since 1970; what is none is returned as it is, to be refused."""
    if isinstance(seconds, int) and 0 <= seconds < 253_402_300_800:  # the year 10000
        return datetime.fromtimestamp(seconds, UTC)
    return seconds


# -- the SDK's parts in our hands -------------------------------------------------------------------------------------


class _Tokens:
    """The identity, as the SDK wants to see a credential.

    Attributes:
        number: how often the tokens were forgotten.
    """

    def __init__(self, identity: AzureIdentity) -> None:
        self.number = 0
        self._identity = identity

    async def get_token(self, *scopes: str, **options: Any) -> AccessToken:
        """A token. Raises AzureIdentityError."""
        token = await self._get(scopes, options)
        return AccessToken(token.token, token.expires_on)

    async def get_token_info(self, *scopes: str, options: TokenRequestOptions | None = None) -> AccessTokenInfo:
        """A token. Raises AzureIdentityError."""
        return await self._get(scopes, options or {})

    async def _get(self, scopes: Sequence[str], options: Mapping[str, Any]) -> AccessTokenInfo:
        wanted, own = options.get("tenant_id") or "", self._identity.tenant_id
        if _TENANT_ID.fullmatch(own) and _TENANT_ID.fullmatch(wanted) and own.lower() != wanted.lower():
            raise AzureIdentityError(
                "the vault belongs to another tenant than the identity",
                "Set tenantID to the tenant of the vault, and clientID to an identity of that tenant.",
                found=f"the vault's tenant {wanted}, the identity's {own}",
            )
        if options.get("claims"):  # an event that ended the last token, such as a changed network
            self._identity.forget()
        token = await self._identity.token(scopes[0])
        return AccessTokenInfo(token.value, int(time.time() + token.seconds))

    def forget(self, number: int) -> None:
        """Have new tokens from now on, unless that was done since `number`."""
        if number == self.number:
            self.number += 1
            self._identity.forget()

    async def close(self) -> None:
        """The identity is closed by the client that has it."""

    async def __aenter__(self) -> _Tokens:
        return self

    async def __aexit__(self, *_: object) -> None:
        """See close."""


def _parts(url: URL) -> tuple[str, str | None, int | None]:
    """An origin to compare: yarl tells one with the default port written out apart, and Key Vault's links have it."""
    return url.scheme, url.raw_host, url.port


class _OneOrigin(AsyncHttpTransport[Any, Any]):
    """Sends requests to one origin, and to no other."""

    def __init__(self, origin: URL, inner: AsyncHttpTransport[Any, Any]) -> None:
        self._origin = _parts(origin)
        self._inner = inner

    async def send(self, request: Any, **config: Any) -> Any:
        """Send a request of the SDK. Raises ForeignHostError."""
        url = URL(request.url)
        if "\\" in request.url or _parts(url) != self._origin:
            raise ForeignHostError(url.host)
        request.headers["Accept-Encoding"] = "identity"
        return await self._inner.send(request, **config)

    async def open(self) -> None:
        """Connections are opened when they are needed."""

    async def close(self) -> None:
        """The two clients share the inner transport; whoever made it closes it."""

    async def __aexit__(self, *_: object) -> None:
        """See close."""
