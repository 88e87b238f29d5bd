"""Credentials for Azure Container Registry, by an identity of Microsoft Entra ID.

    GET  https://REG/v2/               401 with REG's own realm and service
    Entra ID                           a token for https://containerregistry.azure.net, for every registry the same
    POST https://REG/oauth2/exchange   a refresh token for REG
    POST https://REG/oauth2/token      an access token for one repository (stores/tokens.py does this last step)

Rules:
- Entra's token goes to registries of Azure alone, by their names (RegistryHosts), over https, after the registry has
  named itself, and nobody else, as its token service. Another host never sees one, whatever it answers (N07).
- It is a token for container registries and good for nothing else (N12).
- The refresh token stays on the registry's origin (Credential.own_origin_only). Scopes are asked for one repository
  each, to pull, as registries with permissions by repository (ABAC) demand.
- It is used until five minutes before it, or the token of Entra ID, ends, and renewed before that. What a registry
  refuses is exchanged anew, from Entra's token on, and tried once more; others use it meanwhile.
- A failure is an error, not anonymous access.

What does not belong here: Entra ID (provider/azure/), access tokens and challenges of repositories (stores/).
Sources: Azure/acr "AAD-OAuth", Azure Container Registry REST API 2019-08-15; CVE-2025-27403; attacks N07, N11, N12.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Final, Self

import structlog
from yarl import URL

from provider.azure.explanations import AzureIdentityError
from provider.azure.identity import AzureIdentity
from provider.challenge import parse_challenges
from provider.credentials.exchange import Answer, ExchangeFailedError, Exchanges
from provider.credentials.renewal import Lease, Renewing
from provider.egress import LOOPBACK_ALLOWED, PRIVATE_ALLOWED, EgressRules, ProxySettings, is_loopback_literal
from provider.errors import Undecided
from provider.interfaces import Credential
from provider.lifetimes import token_lifetime_seconds

SCOPE: Final = "https://containerregistry.azure.net/.default"  # of every cloud of Azure
MARGIN_SECONDS: Final = 300.0  # a token is given up this long before its end
UNKNOWN_LIFETIME_SECONDS: Final = 900.0  # of a refresh token that does not say; they last for three hours
MAX_ENDPOINTS: Final = 100

_log = structlog.get_logger(__name__)

_ZONES: Final = ("azurecr.io", "azurecr.us", "azurecr.cn")
_LABEL: Final = r"(?!xn--)[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_ZONE: Final = "|".join(map(re.escape, _ZONES))
_LOGIN_SERVER = re.compile(rf"{_LABEL}(?:\.[a-z0-9]{{1,40}}\.geo)?\.(?:{_ZONE})")  # the second form: regional
_ENDPOINT = re.compile(rf"(?P<wildcard>\*\.)?{_LABEL}(?:\.{_LABEL})*(?P<port>:[1-9][0-9]{{0,4}})?")
_FIRST_LABEL = re.compile(rf"{_LABEL}(?=\.)")
_REFRESH_TOKEN = re.compile(r"[\x21-\x7e]{1,65536}")


@dataclass(frozen=True, slots=True)
class RegistryHosts:
    """The registries that Entra's token may be sent to.

    Without endpoints: `<registry>.azurecr.io`, `.us` and `.cn`, with exactly one label before, and the regional
    `<registry>.<region>.geo.azurecr.io`. With endpoints: those alone.

    Attributes:
        endpoints: hosts, `host:port`, or `*.zone`, which stands for exactly one label; lower case.

    Raises:
        ValueError: an endpoint is none of these.
    """

    endpoints: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for endpoint in self.endpoints:
            match = _ENDPOINT.fullmatch(endpoint)
            wide = match is not None and match["wildcard"] and ("." not in endpoint[2:] or match["port"])
            if match is None or wide:
                raise ValueError(
                    f"{endpoint[:100]!r} is neither a host in lower case, such as registry.example.com, nor *.zone with "  # noqa: E501 - a sentence
                    "a zone of two labels or more, such as *.azurecr.io"
                )

    @classmethod
    def of(cls, endpoints: Iterable[str]) -> Self:
        """The rule for some endpoints."""
        return cls(tuple(endpoints))

    def cover(self, domain: str) -> bool:
        """Whether a registry is one of them. A pure function of the text.

        Args:
            domain: as in references, normalised: lower case, without scheme and user, with a port only where one is
                written. What is not normalised is not covered.
        """
        if not self.endpoints:
            return _LOGIN_SERVER.fullmatch(domain) is not None
        if "*" in domain:
            return False
        first = _FIRST_LABEL.match(domain)
        wildcard = f"*{domain[first.end() :]}" if first else None
        return any(endpoint in (domain, wildcard) for endpoint in self.endpoints)


class AzureContainerRegistryCredentials:
    """A source of credentials. For one event loop; to be closed with `aclose`.

    Args:
        identity: who to be; this object closes it.
        hosts: the registries that it is for.
        proxies: proxies of the environment, on the way to registries.
        monotonic: seconds of a clock that never goes back.
    """

    def __init__(
        self,
        identity: AzureIdentity,
        *,
        hosts: RegistryHosts | None = None,
        proxies: ProxySettings | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._identity = identity
        self._hosts = hosts or RegistryHosts()
        self._exchanges = Exchanges(proxies)
        self._refresh_tokens: Renewing[str, str] = Renewing(
            self._exchange, service="Azure Container Registry", monotonic=monotonic
        )
        self._refused: set[str] = set()  # registries that will want another token of Entra's
        self._preparation: asyncio.Task[None] | None = None

    async def credential(self, domain: str, path: str) -> Credential | None:  # noqa: ARG002 - one for all of a registry
        """The credential for a registry of Azure, None for any other; see interfaces.CredentialProvider.

        Raises:
            Undecided: CREDENTIALS_UNAVAILABLE.
        """
        if not self._hosts.cover(domain):
            return None
        return _credential(await self._refresh_tokens.get(domain))

    async def another(self, domain: str, path: str, refused: Collection[Credential | None]) -> Credential | None:
        """One that was got anew, from Entra's token on, unless that was so just now; see
        interfaces.AlternativeCredentialProvider.

        Raises:
            Undecided: CREDENTIALS_UNAVAILABLE.
        """
        found = await self.credential(domain, path)
        if found is not None and found in refused:
            self._refused.add(domain)
            found = _credential(await self._refresh_tokens.get(domain, anew=True))
        return None if found in refused else found

    def prepare(self) -> None:
        """Begin to have Entra's token at hand, so that the first image does not wait for it; a failure is told."""
        self._preparation = asyncio.create_task(self._prepare())

    async def _prepare(self) -> None:
        try:
            await self._identity.token(SCOPE)
        except AzureIdentityError as error:
            _log.warning("no credentials for registries of Azure yet", reason=str(_no_identity("registries", error)))
        except Undecided:
            pass  # closed meanwhile

    async def aclose(self) -> None:
        """Close every connection and give up what is under way."""
        if self._preparation is not None:
            self._preparation.cancel()
            await asyncio.wait((self._preparation,))
        await self._refresh_tokens.aclose()
        await self._identity.aclose()
        await self._exchanges.aclose()

    async def _exchange(self, domain: str) -> Lease[str]:
        """A refresh token for a registry.

        Raises:
            Undecided: CREDENTIALS_UNAVAILABLE.
        """
        origin = URL(f"https://{domain}")
        rules = LOOPBACK_ALLOWED if is_loopback_literal(origin.raw_host or "") else PRIVATE_ALLOWED
        if domain in self._refused:
            self._refused.discard(domain)
            self._identity.refuse()
        try:
            service = await self._service(origin, rules)
            for attempt in range(2):
                token = await self._identity.token(SCOPE)
                form = {"grant_type": "access_token", "service": service, "access_token": token.value}
                if self._identity.tenant_id:
                    form["tenant"] = self._identity.tenant_id
                answer = await self._exchanges.send("POST", origin / "oauth2/exchange", rules=rules, form=form)
                # Refused: the identity's rights may have changed since its token was given.
                if answer.status != 401 or attempt or not self._identity.refuse(token):
                    break
        except AzureIdentityError as error:
            raise _no_identity(domain, error) from None
        except ExchangeFailedError as error:
            raise Undecided(
                "CREDENTIALS_UNAVAILABLE",
                f"the registry {domain} could not be logged in to: {error.problem}",
                remediation=_REACH,
                retry_after=error.retry_after,
            ) from None
        return _lease(domain, answer, token.seconds)

    async def _service(self, origin: URL, rules: EgressRules) -> str:
        """The name that the registry gives itself, once it has named itself as its own token service.

        Raises:
            ExchangeFailedError: it could not be asked.
            Undecided: CREDENTIALS_UNAVAILABLE, when it names another, or does not answer as registries of Azure do.
        """
        answer = await self._exchanges.send("GET", origin / "v2/", rules=rules)
        for challenge in parse_challenges(answer.headers.getall("WWW-Authenticate", [])):
            realm = challenge.parameters.get("realm", "")
            if answer.status != 401 or challenge.scheme != "bearer" or not realm:
                continue
            if not _is_at(realm, origin):
                raise _unavailable(
                    f"the registry {origin.host_subcomponent} names another host than itself as its token service, so "
                    "Entra's token is not sent to it",
                    expected=f"a realm at {origin}",
                    remediation="See what stands in front of the registry, and name it as Azure does: "
                    "az acr show --query loginServer.",
                )
            return challenge.parameters.get("service") or (origin.host_port_subcomponent or "")
        raise _unavailable(
            f"{origin.host_subcomponent} does not answer as a registry of Azure does, so Entra's token is not sent to it",  # noqa: E501 - a sentence
            expected="401 with a Bearer challenge",
            found=f"{answer.status}",
            remediation="See that the name leads to Azure: az acr check-health --name <registry>.",
        )


def _credential(refresh_token: str) -> Credential:
    return Credential(identity_token=refresh_token, own_origin_only=True)


_REACH: Final = (
    "Let the pod reach the registry: egress rules, the firewall of the registry (az acr network-rule list), its private "  # noqa: E501 - a sentence
    "endpoint and DNS. az acr check-health --name <registry> tells more."
)
_ROLE: Final = (
    "Assign AcrPull on the registry to the identity; where the registry has permissions by repository (ABAC), AcrPull "
    "does not count: assign Container Registry Repository Reader. A new assignment takes some minutes to count. See "
    "docs/azure.md."
)


def _is_at(realm: str, origin: URL) -> bool:
    try:
        url = URL(realm)
        return url.origin() == origin and url.raw_user is None and url.raw_password is None
    except ValueError:
        return False


def _lease(domain: str, answer: Answer, entra_seconds: float) -> Lease[str]:
    """The refresh token of an answer, and how long it is used.

    Raises:
        Undecided: CREDENTIALS_UNAVAILABLE.
    """
    if answer.status in (401, 403):
        raise _unavailable(
            f"the registry {domain} answered {answer.status} to the identity's token{_error_code(answer)}",
            remediation=_ROLE if answer.status == 401 else f"{_ROLE} {_REACH}",
        )
    token = answer.document().get("refresh_token") if answer.status == 200 else None
    if not isinstance(token, str) or _REFRESH_TOKEN.fullmatch(token) is None:
        raise _unavailable(f"the registry {domain} answered {answer.status} without a refresh token")
    own_seconds = token_lifetime_seconds(token, answer.headers)
    seconds = min(UNKNOWN_LIFETIME_SECONDS if own_seconds is None else own_seconds, entra_seconds)
    if seconds <= 0:
        raise _unavailable(f"the registry {domain} gave a refresh token that has ended already")
    return Lease(token, seconds - min(MARGIN_SECONDS, seconds / 2))


_ERROR_CODE = re.compile(r"[A-Z_]{1,64}")


def _error_code(answer: Answer) -> str:
    """The code of an OCI error body, for people. Not its message: that may hold what the registry was sent."""
    errors = answer.document().get("errors")
    first = errors[0] if isinstance(errors, list) and errors else None
    code = first.get("code") if isinstance(first, dict) else None
    return f" ({code})" if isinstance(code, str) and _ERROR_CODE.fullmatch(code) else ""


def _no_identity(domain: str, error: AzureIdentityError) -> Undecided:
    return Undecided(
        "CREDENTIALS_UNAVAILABLE",
        f"no token for {domain}: {error.reason}",
        found=error.found,
        remediation=error.remediation,
        retry_after=error.retry_after,
    )


def _unavailable(
    reason: str, *, expected: str | None = None, found: str | None = None, remediation: str | None = None
) -> Undecided:
    return Undecided("CREDENTIALS_UNAVAILABLE", reason, expected=expected, found=found, remediation=remediation)
