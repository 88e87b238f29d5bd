"""Azure Container Registry: registries under *.azurecr.io that trust Entra ID, with its own token service.

    GET  /v2/...            401 with the registry's own realm and service
    POST /oauth2/exchange   Entra's token for a refresh token of the registry
    POST /oauth2/token      the refresh token for an access token of one repository
    307                     blobs, to the storage account or to the data endpoint of the registry

One simulator stands for every registry whose name leads to it: which one is meant says the Host field, and tokens of
one are no good at another. What each holds is the same.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

import trustme
from aiohttp import web

from tests.simulators.azure.entra import (
    CLIENT,
    REGISTRY_AUDIENCE,
    TENANT,
    EntraSimulator,
    as_json,
    claims_of,
    json_web_token,
)
from tests.simulators.listener import Reply
from tests.simulators.registry import RegistrySimulator

_KEY = b"the registry's key for tokens"


@dataclass
class Roles:
    """Who may do what.

    Attributes:
        pull: client ids with AcrPull.
        repository_reader: repositories by client id with Container Registry Repository Reader; `*` for every one.
    """

    pull: set[str] = field(default_factory=lambda: {CLIENT})
    repository_reader: dict[str, set[str]] = field(default_factory=dict)


class AcrSimulator(RegistrySimulator):
    """Registries of Azure.

    Attributes:
        abac: the registry has permissions by repository: AcrPull does not count, nor do refresh tokens from before.
        anonymous: everybody may pull.
        roles: who may do what.
        refresh_seconds: lifetime of refresh tokens.
        access_seconds: lifetime of access tokens.
        minted: every token that was ever given out.
        service: what it calls itself, when that is not its host.
        realm: its realm, when that is not its own.
    """

    HOSTS = (
        *("*.azurecr.io", "*.azurecr.us", "*.azurecr.cn", "*.westeurope.geo.azurecr.io"),
        *("registry.contoso.example", "registry.azurecr.io.attacker.example", "a.b.azurecr.io"),
    )

    def __init__(self, entra: EntraSimulator, *, tls: trustme.CA | None = None, names: Sequence[str] = HOSTS) -> None:
        super().__init__(tls=tls, names=names)
        self.auth = "bearer"
        self.abac = False
        self.anonymous = False
        self.roles = Roles()
        self.refresh_seconds = 10800
        self.access_seconds = 4500
        self.minted: list[str] = []
        self.service: str | None = None
        self._entra = entra
        self._epoch = 0

    def switch_to_abac(self) -> None:
        """Give the registries permissions by repository."""
        self.abac = True
        self._epoch += 1

    def revoke(self) -> None:
        """No token that was given out is good any more."""
        self._epoch += 1

    @property
    def exchanges(self) -> list[dict[str, str]]:
        """The forms of every exchange so far."""
        return [form_of(one.body) for one in self.requests if one.path == "/oauth2/exchange"]

    @property
    def scopes(self) -> list[str]:
        """The scopes that were asked for."""
        return [form_of(one.body).get("scope", "") for one in self.requests if one.line == "POST /oauth2/token"]

    async def reply(self, request: web.Request) -> Reply:
        seen = self.requests[-1]
        if seen.path == "/oauth2/exchange":
            return self._exchange(seen.headers["Host"], form_of(seen.body))
        if seen.path == "/oauth2/token":
            return self._token(seen.headers["Host"], form_of(seen.body) if seen.method == "POST" else dict(seen.query))
        if seen.path == "/v2/":
            return self._refuse("", seen.authorization) or Reply(200, {}, b"{}")
        return await super().reply(request)

    def _refuse(self, repository: str, authorization: str | None) -> Reply | None:
        host = self.requests[-1].headers["Host"]
        claims = claims_of((authorization or "").removeprefix("Bearer "), _KEY) or {}
        wanted = f"repository:{repository}:pull"
        if claims.get("scope") == wanted and claims.get("aud") == host and self._good(claims):
            if self._may_pull(claims["appid"], repository) or self.anonymous:
                return None
            return refusal(403, "DENIED", repository)
        realm = self.realm or f"https://{host}/oauth2/token"
        challenge = f'Bearer realm="{realm}",service="{self.service or host}"'
        if repository:
            challenge += f',scope="{wanted}"'
        challenge = self.challenge or challenge
        return refusal(401, "UNAUTHORIZED", repository, headers={"WWW-Authenticate": challenge})

    def _good(self, claims: Mapping[str, Any]) -> bool:
        return bool(claims.get("epoch") == self._epoch and claims["exp"] > time.time())

    def _may_pull(self, client: str, repository: str) -> bool:
        allowed = self.roles.repository_reader.get(client, set())
        return not {"*", repository}.isdisjoint(allowed) or (not self.abac and client in self.roles.pull)

    def _exchange(self, host: str, form: Mapping[str, str]) -> Reply:
        claims = self._entra.tokens.get(form.get("access_token", ""))
        known = claims is not None and claims["aud"] == REGISTRY_AUDIENCE and claims["tid"] == TENANT
        service = self.service or host
        if form.get("grant_type") != "access_token" or form.get("service") != service:
            return refusal(400, "UNSUPPORTED")
        if not known or form.get("tenant", TENANT) != TENANT or claims is None:
            return refusal(401, "UNAUTHORIZED")
        if claims["appid"] not in self.roles.pull | self.roles.repository_reader.keys():
            return refusal(401, "UNAUTHORIZED")
        return as_json(
            {"refresh_token": self._mint(host, claims["appid"], self.refresh_seconds, grant="refresh_token")}
        )

    def _token(self, host: str, form: Mapping[str, str]) -> Reply:
        scope = form.get("scope", "")
        if form.get("grant_type") == "refresh_token":
            claims = claims_of(form.get("refresh_token", ""), _KEY) or {}
            good = claims.get("grant") == "refresh_token" and claims.get("aud") == host and self._good(claims)
            if not good or (self.abac and not scope.startswith("repository:")):
                return refusal(401, "UNAUTHORIZED")
            return as_json({"access_token": self._mint(host, claims["appid"], self.access_seconds, scope=scope)})
        if not self.anonymous:
            return refusal(401, "UNAUTHORIZED")
        return as_json({"access_token": self._mint(host, "", self.access_seconds, scope=scope)})

    def _mint(self, host: str, client: str, lifetime: float, **more: str) -> str:
        now = int(time.time())
        claims = {"iss": "Azure Container Registry", "aud": host, "iat": now, "nbf": now, "exp": now + int(lifetime)}
        claims |= {"appid": client, "epoch": self._epoch, "jti": secrets.token_hex(8), **more}
        token = json_web_token(claims, _KEY)
        self.minted.append(token)
        return token


def form_of(body: bytes) -> dict[str, str]:
    """A form that was posted."""
    return {name: values[0] for name, values in parse_qs(body.decode()).items()}


def refusal(status: int, code: str, repository: str = "", *, headers: Mapping[str, str] | None = None) -> Reply:
    """A refusal in the registry's form."""
    detail = [{"Type": "repository", "Name": repository, "Action": "pull"}] if repository else None
    error = {
        "code": code,
        "message": "authentication required, visit https://aka.ms/acr/authorization",
        "detail": detail,
    }
    return as_json({"errors": [error]}, status=status, headers=headers)
