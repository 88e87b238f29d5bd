"""Microsoft Entra ID as workload identities meet it: the v2.0 token endpoint, and the token proxy of identity bindings.

    POST /<tenant>/oauth2/v2.0/token    client_credentials with a service account's token as client assertion

What it checks is what Entra ID checks, and what it says then are its codes. Service accounts' tokens are made here too,
by the issuer that the simulator trusts. Other simulators ask `accepts` whether a token is good for them. Tests that are
not about who somebody is set `open_to_all`: then any assertion of any client in any tenant will do.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

import trustme
from aiohttp import web

from tests.simulators.listener import Listener, Reply

TENANT = "11111111-2222-3333-4444-555555555555"
CLIENT = "99999999-8888-7777-6666-555555555555"
ISSUER = "https://westeurope.oic.prod-aks.azure.com/11111111-2222-3333-4444-555555555555/cluster/"
SUBJECT = "system:serviceaccount:gatekeeper-system:ratify-admin"
AUDIENCE = "api://AzureADTokenExchange"
BINDING_AUDIENCE = "api://AKSIdentityBinding"
ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
REGISTRY_AUDIENCE = "https://containerregistry.azure.net"

_KEY = b"the cluster's key for service accounts"


def encode(data: bytes) -> str:
    """base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def json_web_token(claims: Mapping[str, Any], key: bytes) -> str:
    """A JSON web token with HMAC, so that simulators can tell their own from others."""
    head = encode(json.dumps({"alg": "HS256", "typ": "JWT"}).encode())
    text = f"{head}.{encode(json.dumps(dict(claims)).encode())}"
    return f"{text}.{encode(hmac.digest(key, text.encode(), hashlib.sha256))}"


def claims_of(token: str, key: bytes) -> dict[str, Any] | None:
    """The claims of a token with this key's signature, None for any other."""
    text, _, signature = token.rpartition(".")
    if text.count(".") != 1 or signature != encode(hmac.digest(key, text.encode(), hashlib.sha256)):
        return None
    payload = text.partition(".")[2]
    claims: dict[str, Any] = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return claims


def service_account_token(
    *,
    subject: str = SUBJECT,
    issuer: str = ISSUER,
    audience: str = AUDIENCE,
    lifetime: float = 3600,
    key: bytes = _KEY,
) -> str:
    """A token as the cluster puts it into a pod's volume."""
    now = int(time.time())
    claims = {"iss": issuer, "sub": subject, "aud": [audience], "iat": now, "nbf": now, "exp": now + int(lifetime)}
    return json_web_token({**claims, "jti": secrets.token_hex(8)}, key)


@dataclass(frozen=True)
class Federation:
    """A federated credential of an identity."""

    client: str = CLIENT
    tenant: str = TENANT
    issuer: str = ISSUER
    subject: str = SUBJECT
    audience: str = AUDIENCE


class EntraSimulator(Listener):
    """login.microsoftonline.com and its like.

    Attributes:
        federations: federated credentials that exist.
        lifetime: expires_in of tokens, seconds.
        tokens: claims of every token that was given out and is good, by token.
        minted: every token that was ever given out.
        echoing: its errors repeat what it was sent, as no server should.
        open_to_all: it takes every assertion.
    """

    HOSTS = ("login.microsoftonline.com", "login.microsoftonline.us", "login.chinacloudapi.cn")

    def __init__(self, *, tls: trustme.CA | None = None, names: Sequence[str] = HOSTS, prefix: str = "") -> None:
        super().__init__(tls=tls, names=names)
        self.federations = {Federation()}
        self.lifetime = 86400
        self.tokens: dict[str, dict[str, Any]] = {}
        self.minted: list[str] = []
        self.echoing = False
        self.open_to_all = False
        self._prefix = prefix

    def revoke(self) -> None:
        """No token that was given out is good any more."""
        self.tokens.clear()

    def accepts(self, token: str, audience: str) -> bool:
        """Whether a token is good, and for this audience."""
        claims = self.tokens.get(token)
        return claims is not None and claims["aud"] == audience

    def mint(self, tenant: str, client: str, audience: str) -> str:
        """A token of an identity for an audience."""
        claims = {"aud": audience, "tid": tenant, "appid": client, "exp": int(time.time()) + self.lifetime}
        token = json_web_token({**claims, "uti": secrets.token_hex(8)}, secrets.token_bytes(32))
        self.tokens[token] = claims
        self.minted.append(token)
        return token

    async def reply(self, request: web.Request) -> Reply:
        seen = self.requests[-1]
        tenant, _, rest = seen.path.removeprefix(self._prefix).removeprefix("/").partition("/")
        if seen.method != "POST" or rest != "oauth2/v2.0/token" or not seen.path.startswith(self._prefix):
            return Reply(404, {}, b"")
        form = {name: values[0] for name, values in parse_qs(seen.body.decode()).items()}
        return self._judge(tenant, form)

    def _judge(self, tenant: str, form: Mapping[str, str]) -> Reply:
        if form.get("grant_type") != "client_credentials" or form.get("client_assertion_type") != ASSERTION_TYPE:
            return self.refuse(900144, "The request body must contain what it does not contain.", form)
        scope = form.get("scope", "")
        if not scope.endswith("/.default"):
            return self.refuse(1002012, f"The provided value for scope {scope} is not valid.", form)
        claims = claims_of(form.get("client_assertion", ""), _KEY)
        if self.open_to_all:
            return self._give(tenant, form.get("client_id", ""), scope)
        if claims is None:
            return self.refuse(700027, "Client assertion failed signature validation.", form)
        if claims["exp"] <= time.time():
            return self.refuse(700024, "Client assertion is not within its valid time range.", form)
        client = form.get("client_id", "")
        mine = [one for one in self.federations if one.client == client and one.tenant == tenant]
        if not mine:
            return self.refuse(700016, "Application was not found in the directory.", form, error="unauthorized_client")
        for code, name, value in (
            (700211, "issuer", claims["iss"]),
            (700213, "subject", claims["sub"]),
            (700212, "audience", claims["aud"][0]),
        ):
            mine = [one for one in mine if getattr(one, name) == value]
            if not mine:
                return self.refuse(code, f"No matching federated identity record found for {name} '{value}'.", form)
        return self._give(tenant, client, scope)

    def _give(self, tenant: str, client: str, scope: str) -> Reply:
        token = self.mint(tenant, client, scope.removesuffix("/.default"))
        document = {"token_type": "Bearer", "expires_in": self.lifetime, "ext_expires_in": self.lifetime}
        return as_json({**document, "access_token": token})

    def refuse(self, code: int, text: str, form: Mapping[str, str], *, error: str = "invalid_client") -> Reply:
        """A refusal in Entra's form."""
        echo = f" {dict(form)}" if self.echoing else ""
        document = {
            "error": error,
            "error_description": f"AADSTS{code}: {text}{echo} Trace ID: 0c0e5e9d-0000-0000-0000-1c6ad9e01b00 "
            "Correlation ID: 5e2d1a4f-1111-2222-3333-c4b1a5b0f6aa Timestamp: 2026-11-23 09:00:00Z",
            "error_codes": [code],
            "timestamp": "2026-11-23 09:00:00Z",
            "trace_id": "0c0e5e9d-0000-0000-0000-1c6ad9e01b00",
            "correlation_id": "5e2d1a4f-1111-2222-3333-c4b1a5b0f6aa",
        }
        return as_json(document, status=401 if error == "invalid_client" else 400)


class TokenProxySimulator(EntraSimulator):
    """The token proxy of identity bindings: it takes the cluster's tokens for itself, and knows who may use which.

    Attributes:
        server_names: server names (SNI) that clients asked for.
    """

    SERVER_NAME = "proxy.ib.aks.test"
    PREFIX = "/proxies/cluster"

    def __init__(self, *, tls: trustme.CA) -> None:
        super().__init__(tls=tls, names=(self.SERVER_NAME,), prefix=self.PREFIX)
        self.federations = {Federation(audience=BINDING_AUDIENCE)}
        self.server_names: list[str | None] = []

    def _context(self) -> ssl.SSLContext | None:
        context = super()._context()
        assert context is not None

        def note(_socket: object, name: str | None, _context: object) -> None:
            self.server_names.append(name)

        context.sni_callback = note  # type: ignore[assignment]
        return context


def as_json(document: Mapping[str, Any], *, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    """An answer in JSON."""
    return Reply(status, {"Content-Type": "application/json", **(headers or {})}, json.dumps(dict(document)).encode())
