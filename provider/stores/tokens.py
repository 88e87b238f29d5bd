"""Who a registry is told that we are: answers to its challenges, bearer tokens, and where credentials may go.

Rules:
- A credential goes to the registry it is for, and to a token service only on the registry's own host, on a host that
  the operator listed (tokenHosts), or on the known token host of a public registry. Nobody else, whatever a realm says.
  What a cloud gave for its own registries (Credential.own_origin_only) stays on the registry's origin, over https.
- A realm is https unless the registry itself is reached over plain http; its address obeys the egress rules.
- A token is asked for with a scope of our making, to pull from the one repository, and kept under registry, realm,
  service, scope and credential: it never reaches another registry, and another credential never gets it.
- What a registry answered once is remembered: later requests bring their token along and cost no 401.
- A token that is refused is dropped and asked for once more. A refusal by the token service is remembered for seconds,
  so that a wrong password is not tried once for every image and the account not locked.
- A credential that a repository refused comes after the source's others for a while. When it has no others, the first
  is shown again: rights may have been given since. Anonymous access never comes after a credential.

What does not belong here: reading credentials (credentials/), connections and retries (transport.py).
Sources: distribution token specification, its OAuth2 variant; RFC 6750, RFC 7617; facts N01 to N06.
"""

from __future__ import annotations

import asyncio
import base64
import re
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from cachetools import LRUCache, TTLCache
from yarl import URL

from provider import strict_json
from provider.cache import SingleFlight
from provider.challenge import Challenge, parse_challenges
from provider.errors import Undecided
from provider.interfaces import (
    AlternativeCredentialProvider,
    Credential,
    CredentialProvider,
    RenewableCredentialProvider,
)
from provider.lifetimes import token_lifetime_seconds
from provider.progress import Stage, step
from provider.stores.profile import Repository
from provider.stores.transport import Request, Response, Transport

MAX_TOKEN_ANSWER_BYTES: Final = 256 * 1024  # tokens of large directories reach some 10 KiB
MAX_TOKENS: Final = 4096  # kept tokens: one a repository
MAX_CHALLENGES_KEPT: Final = 4096  # registries and repositories whose challenge is remembered
CHALLENGE_SECONDS: Final = 3600.0  # how long a challenge is remembered
REFUSAL_SECONDS: Final = 10.0  # how long a token service's refusal is remembered
SPURNED_SECONDS: Final = 60.0  # how long a credential that a repository refused comes after others
MAX_SPURNED: Final = 4096  # repositories of which such credentials are remembered
MAX_SPURNED_EACH: Final = 64  # of one repository
DEFAULT_LIFETIME: Final = 60.0  # seconds; the specification's value when expires_in is absent
MAX_LIFETIME: Final = 24 * 3600.0  # seconds; a registry that says more is asked again after a day
USABLE_SHARE: Final = 0.9  # of a token's lifetime, so that none expires on its way

CLIENT_ID: Final = "countersign"

_BEARER_TOKEN = re.compile(r"[\x21-\x7e]+")  # RFC 6750 allows less; registries send JWTs and opaque visible ASCII


@dataclass(frozen=True, slots=True)
class Authorization:
    """A value for the Authorization field, and where it came from.

    Attributes:
        value: the field's value; secret.
        key: the cache key of the token in it, None for what is not from a token service.
    """

    value: str = field(repr=False)
    key: _TokenKey | None = None


class _Realm(NamedTuple):
    """How a registry wants to be asked: `url` of the token service and its `service`, or None for Basic."""

    url: str | None
    service: str


class _TokenKey(NamedTuple):
    domain: str
    realm: _Realm
    scope: str
    credential: Credential | None


class _Token(NamedTuple):
    value: str
    expires: float

    def __repr__(self) -> str:
        return "_Token(...)"


class Authenticator:
    """Answers the challenges of registries for one store.

    Args:
        transport: sends requests to token services.
        credentials: where credentials come from; None for anonymous access.
        timeout_seconds: the most that one token may take.
        monotonic: seconds of a clock that never goes back.
    """

    def __init__(
        self,
        transport: Transport,
        credentials: CredentialProvider | None,
        *,
        timeout_seconds: float,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._transport = transport
        self._credentials = credentials
        self._timeout_seconds = timeout_seconds
        self._monotonic = monotonic
        self._tokens: LRUCache[_TokenKey, _Token] = LRUCache(MAX_TOKENS)
        self._flights: SingleFlight[_TokenKey, _Token] = SingleFlight()
        self._refusals: TTLCache[_TokenKey, Undecided] = TTLCache(MAX_TOKENS, REFUSAL_SECONDS, timer=monotonic)
        self._spurned: TTLCache[tuple[str, str], frozenset[Credential | None]] = TTLCache(
            MAX_SPURNED, SPURNED_SECONDS, timer=monotonic
        )
        # By (registry, repository); (registry, "") holds the one to expect of a repository not seen yet.
        self._realms: TTLCache[tuple[str, str], _Realm] = TTLCache(
            MAX_CHALLENGES_KEPT, CHALLENGE_SECONDS, timer=monotonic
        )

    async def credential(self, repository: Repository) -> Credential | None:
        """What to answer a repository with; None for anonymous access.

        Raises:
            Undecided: CREDENTIALS_UNAVAILABLE.
        """
        spurned = self._spurned.get((repository.domain, repository.path))
        found = await self._another(repository, spurned) if spurned else None
        return found or await self._credential(repository)

    async def renew(self, repository: Repository, tried: Collection[Credential | None]) -> Credential | None:
        """Another credential for a repository that refused some: one that was rotated, or the next of several.

        Args:
            repository: who refused.
            tried: what it refused; None stands for anonymous access.

        Returns:
            None when there is no other.

        Raises:
            Undecided: CREDENTIALS_UNAVAILABLE.
        """
        name = (repository.domain, repository.path)
        spurned = frozenset(tried) | self._spurned.get(name, frozenset())
        if len(spurned) > MAX_SPURNED_EACH:  # of a source whose credentials are new ones all the time
            spurned = frozenset(tried)
        if any(one is not None for one in tried):
            self._spurned[name] = spurned
        if isinstance(self._credentials, RenewableCredentialProvider):
            self._credentials.refused(*name)
        if isinstance(self._credentials, AlternativeCredentialProvider):
            found = await self._another(repository, spurned)
        elif isinstance(self._credentials, RenewableCredentialProvider):
            found = await self._credential(repository)
        else:
            return None
        return None if found in tried else found

    async def expected(self, repository: Repository, credential: Credential | None) -> Authorization | None:
        """What to bring along to a repository before it asks; None to go without and learn what it wants.

        Args:
            repository: who will be asked.
            credential: what to answer it with.

        Raises:
            Undecided: CREDENTIALS_UNAVAILABLE, REGISTRY_*.
        """
        if credential is not None and credential.registry_token:
            return _bearer(credential.registry_token)
        realm = self._realms.get((repository.domain, repository.path))
        if realm is not None:
            return await self._authorize(repository, realm, credential)
        realm = self._realms.get((repository.domain, ""))
        if realm is None:
            return None
        try:
            return await self._authorize(repository, realm, credential)
        except Undecided as error:
            if error.code != "REGISTRY_UNAUTHORIZED":
                raise
            return None  # another repository's realm need not be this one's: let it say what it wants

    async def answer(
        self,
        repository: Repository,
        fields: Iterable[str],
        credential: Credential | None,
        refused: Authorization | None,
    ) -> Authorization:
        """What to bring along after a 401.

        Args:
            repository: what was asked for.
            fields: the WWW-Authenticate fields of the 401; untrusted.
            credential: what to answer with.
            refused: what was brought along in vain; a token is dropped.

        Raises:
            Undecided: REGISTRY_UNAUTHORIZED, when there is nothing to answer with; CREDENTIALS_UNAVAILABLE, REGISTRY_*.
        """
        if refused is not None:
            if refused.key is None:
                raise _unauthorized(repository, "refuses the credentials that are configured for it")
            self._drop(refused.key, refused.value)
        realm = _choose(repository, parse_challenges(fields))
        authorization = await self._authorize(repository, realm, credential)
        if authorization is None:
            raise _unauthorized(repository, "asks for a user name and password, and none are configured for it")
        expected = self._realms.get((repository.domain, ""))
        if expected is None:
            self._realms[(repository.domain, "")] = realm
        elif expected != realm or (repository.domain, repository.path) in self._realms:
            self._realms[(repository.domain, repository.path)] = realm
        return authorization

    async def aclose(self) -> None:
        """Give up the tokens under way."""
        await self._flights.aclose()

    async def _credential(self, repository: Repository) -> Credential | None:
        if self._credentials is None:
            return None
        with step("its credentials"):
            credential = await self._credentials.credential(repository.domain, repository.path)
        return _checked(repository, credential)

    async def _another(self, repository: Repository, spurned: Collection[Credential | None]) -> Credential | None:
        if not isinstance(self._credentials, AlternativeCredentialProvider):
            return None
        with step("its credentials"):
            credential = await self._credentials.another(repository.domain, repository.path, spurned)
        return _checked(repository, credential)

    async def _authorize(
        self, repository: Repository, realm: _Realm, credential: Credential | None
    ) -> Authorization | None:
        """The answer to a challenge; None when it asks for a password and there is none."""
        if realm.url is None:
            if credential is None or not credential.username:
                return None
            return Authorization(_basic(credential))
        key = _TokenKey(repository.domain, realm, repository.pull_scope, credential)
        token = self._tokens.get(key)
        if token is None or self._monotonic() >= token.expires:
            refusal = self._refusals.get(key)
            if refusal is not None:
                raise refusal.with_traceback(None)
            token = await self._flights.run(key, lambda: self._ask(repository, key))
        return Authorization(f"Bearer {token.value}", key)

    def _drop(self, key: _TokenKey, value: str) -> None:
        token = self._tokens.get(key)
        if token is not None and f"Bearer {token.value}" == value:  # not one that came in the meantime
            del self._tokens[key]

    async def _ask(self, repository: Repository, key: _TokenKey) -> _Token:
        """Ask the token service, and keep what it says."""
        url = _realm_url(repository, key.realm.url or "")
        host = url.host_port_subcomponent
        if key.credential is not None and key.credential.own_origin_only and url.origin() != repository.origin:
            raise _unauthorized(
                repository,
                f"wants its credentials sent to {host}, and they are for the registry itself alone",
                remediation="A registry of a cloud names itself as its token service. See what stands in front of it.",
            )
        if key.credential is not None and not repository.may_have_credentials(url):
            raise _unauthorized(
                repository,
                f"wants its credentials sent to {host}, which is not one of its token hosts",
                remediation=f"If {host} is this registry's token service, list it under tokenHosts of the registry's "
                "entry under registries of the Store.",
            )
        request = _token_request(url, key)
        asked = self._monotonic()
        try:
            with step("", stage=Stage.TOKEN):
                async with asyncio.timeout(self._timeout_seconds):
                    response = await self._transport.send(request, repository.token_route(url))
        except TimeoutError:
            raise Undecided(
                "REGISTRY_UNAVAILABLE",
                f"{request.host} did not give {request.what} within {self._timeout_seconds:g} s",
            ) from None
        if response.status != 200:
            refusal = _refusal(repository, request, response)
            if refusal.code == "REGISTRY_UNAUTHORIZED":
                self._refusals[key] = refusal
            raise refusal
        value, lifetime = _read_token(request, response)
        token = _Token(value, asked + min(lifetime, MAX_LIFETIME) * USABLE_SHARE)
        self._tokens[key] = token
        return token


def _checked(repository: Repository, credential: Credential | None) -> Credential | None:
    """A credential, if it may be shown to the registry at all.

    Raises:
        Undecided: CREDENTIALS_UNAVAILABLE.
    """
    if credential is not None and credential.own_origin_only and repository.origin.scheme != "https":
        raise Undecided(
            "CREDENTIALS_UNAVAILABLE",
            f"the registry {repository.domain} is reached over plain http, and its credentials are for https alone",
            remediation="Remove useHttp of the Store, or plainHttp of the registry's entry under registries.",
        )
    return credential


def _choose(repository: Repository, challenges: Iterable[Challenge]) -> _Realm:
    """The challenge to answer: Bearer before Basic, the first of each.

    Raises:
        Undecided: REGISTRY_UNAUTHORIZED.
    """
    by_scheme: dict[str, Challenge] = {}
    for challenge in challenges:
        by_scheme.setdefault(challenge.scheme, challenge)
    bearer = by_scheme.get("bearer")
    if bearer is not None and bearer.parameters.get("realm"):
        return _Realm(bearer.parameters["realm"], bearer.parameters.get("service", ""))
    if "basic" in by_scheme:
        return _Realm(None, "")
    raise _unauthorized(
        repository,
        "answered 401 without a challenge that can be answered",
        expected="Bearer with a realm, or Basic",
        found=", ".join(by_scheme) or "none",
    )


def _realm_url(repository: Repository, realm: str) -> URL:
    """Check the URL of a token service (N01 to N03; the address itself is judged when it is connected to).

    Raises:
        Undecided: REGISTRY_PROTOCOL.
    """
    try:
        url = URL(realm)
        usable = url.scheme in ("http", "https") and bool(url.raw_host) and url.port is not None
    except ValueError:
        usable = False
    if not usable or url.raw_user is not None or url.raw_password is not None:
        raise _bad_realm(repository, "names a token realm that is no http or https URL of a host")
    if url.scheme != "https" and not repository.profile.plain_http:
        raise _bad_realm(repository, f"names a token realm on {url.host_port_subcomponent} that is not https")
    return url.with_fragment(None)


def _token_request(url: URL, key: _TokenKey) -> Request:
    what = f"a token for {key.scope}"
    headers = {"Accept": "application/json"}
    credential = key.credential
    service = {"service": key.realm.service} if key.realm.service else {}
    if credential is not None and credential.identity_token:
        form = {
            "grant_type": "refresh_token",
            **service,
            "scope": key.scope,
            "client_id": CLIENT_ID,
            "refresh_token": credential.identity_token,
        }
        return Request("POST", url, what, headers, MAX_TOKEN_ANSWER_BYTES, form)
    if credential is not None:
        headers["Authorization"] = _basic(credential)
    return Request("GET", url.update_query({**service, "scope": key.scope}), what, headers, MAX_TOKEN_ANSWER_BYTES)


def _read_token(request: Request, response: Response) -> tuple[str, float]:
    """The token of an answer and its lifetime in seconds.

    Raises:
        Undecided: REGISTRY_PROTOCOL.
    """
    try:
        answer: Any = None if response.oversized else strict_json.loads(response.body, max_bytes=MAX_TOKEN_ANSWER_BYTES)
    except strict_json.MalformedJSONError:
        answer = None
    value = (answer.get("token") or answer.get("access_token")) if isinstance(answer, dict) else None
    if not isinstance(value, str) or _BEARER_TOKEN.fullmatch(value) is None:
        raise Undecided(
            "REGISTRY_PROTOCOL", f"{request.host} answered without a usable token, asked for {request.what}"
        )
    lifetime = answer.get("expires_in")
    if lifetime is None:  # some say it in the token alone, as Azure does
        lifetime = token_lifetime_seconds(value, response.headers)
    if isinstance(lifetime, bool) or not isinstance(lifetime, int | float) or lifetime <= 0:
        return value, DEFAULT_LIFETIME
    return value, float(min(lifetime, MAX_LIFETIME))


def _refusal(repository: Repository, request: Request, response: Response) -> Undecided:
    if 400 <= response.status < 500:
        return _unauthorized(
            repository, f"has a token service, {request.host}, that answered {response.status} to {request.what}"
        )
    return Undecided("REGISTRY_PROTOCOL", f"{request.host} answered {response.status}, asked for {request.what}")


def _basic(credential: Credential) -> str:
    return "Basic " + base64.b64encode(f"{credential.username}:{credential.password}".encode()).decode("ascii")


def _bearer(token: str) -> Authorization:
    if _BEARER_TOKEN.fullmatch(token) is None:
        raise Undecided("CREDENTIALS_UNAVAILABLE", "the registry token that is configured is not a bearer token")
    return Authorization(f"Bearer {token}")


def _unauthorized(
    repository: Repository,
    problem: str,
    *,
    expected: str | None = None,
    found: str | None = None,
    remediation: str | None = None,
) -> Undecided:
    return Undecided(
        "REGISTRY_UNAUTHORIZED",
        f"the registry {repository.domain} {problem}",
        expected=expected,
        found=found,
        remediation=remediation,
    )


def _bad_realm(repository: Repository, problem: str) -> Undecided:
    return Undecided("REGISTRY_PROTOCOL", f"the registry {repository.domain} {problem}")
