"""Google Artifact Registry as a workload identity meets it.

GET  http://<metadata service>/computeMetadata/v1/instance/service-accounts/default/token     Metadata-Flavor: Google
POST https://sts.googleapis.com/v1/token                                                      token exchange
POST https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/<e-mail>:generateAccessToken
https://<location>-docker.pkg.dev/v2/...    Bearer, with /v2/token of its own that takes oauth2accesstoken:<token>
"""

from __future__ import annotations

import base64
import secrets
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs

import trustme
from aiohttp import web

from provider import strict_json
from tests.simulators.azure.entra import as_json
from tests.simulators.listener import Listener, Reply
from tests.simulators.registry import RegistrySimulator, error_reply

REGISTRY = "europe-docker.pkg.dev"
READ_ONLY = "https://www.googleapis.com/auth/cloud-platform.read-only"
AUDIENCE = "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/pool/providers/cluster"
ACCOUNT = "countersign@project.iam.gserviceaccount.com"


class Tokens:
    """Access tokens of Google.

    Attributes:
        scopes: scope of every token that is good, by token.
        minted: every token that was ever given out.
        lifetime: seconds that they last.
    """

    def __init__(self) -> None:
        self.scopes: dict[str, str] = {}
        self.minted: list[str] = []
        self.lifetime = 3599

    def mint(self, scope: str) -> str:
        """A token."""
        token = f"ya29.{secrets.token_hex(60)}"
        self.scopes[token] = scope
        self.minted.append(token)
        return token


class MetadataSimulator(Listener):
    """The metadata service of a node, or of a cluster with workload identity."""

    def __init__(self, tokens: Tokens) -> None:
        super().__init__()
        self._tokens = tokens

    async def reply(self, request: web.Request) -> Reply:
        seen = self.requests[-1]
        if seen.headers.get("Metadata-Flavor") != "Google" or "X-Forwarded-For" in seen.headers:
            return Reply(403, {"Content-Type": "text/html"}, b"<html>Missing Metadata-Flavor:Google header.</html>")
        if seen.path != "/computeMetadata/v1/instance/service-accounts/default/token":
            return Reply(404, {}, b"")
        token = self._tokens.mint(seen.query.get("scopes", "https://www.googleapis.com/auth/cloud-platform"))
        document = {"access_token": token, "expires_in": self._tokens.lifetime, "token_type": "Bearer"}
        return as_json(document, headers={"Metadata-Flavor": "Google"})


class FederationSimulator(Listener):
    """sts.googleapis.com and iamcredentials.googleapis.com.

    Attributes:
        subjects: service accounts' tokens that the pool's provider trusts.
        federated: tokens of federated identities.
    """

    HOSTS = ("sts.googleapis.com", "iamcredentials.googleapis.com")

    def __init__(self, tokens: Tokens, *, tls: trustme.CA | None = None, names: Sequence[str] = HOSTS) -> None:
        super().__init__(tls=tls, names=names)
        self.subjects: set[str] = set()
        self.federated: set[str] = set()
        self._tokens = tokens

    async def reply(self, request: web.Request) -> Reply:
        seen = self.requests[-1]
        if seen.path == "/v1/token":
            return self._exchange({name: values[0] for name, values in parse_qs(seen.body.decode()).items()})
        if seen.path == f"/v1/projects/-/serviceAccounts/{ACCOUNT}:generateAccessToken":
            return self._impersonate(seen.authorization, strict_json.loads(seen.body, max_bytes=10_000))
        return Reply(404, {}, b"")

    def _exchange(self, form: dict[str, str]) -> Reply:
        wanted = {
            "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
            "requested_token_type": "urn:ietf:params:oauth:token-type:access_token",
            "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        }
        if wanted.items() - form.items() or not form.get("scope"):
            return as_json({"error": "invalid_request", "error_description": "no"}, status=400)
        if form.get("audience") != AUDIENCE or form.get("subject_token") not in self.subjects:
            said = {"error": "invalid_grant", "error_description": f"no to {form}"}
            return as_json(said, status=400)
        token = self._tokens.mint(form["scope"])
        self.federated.add(token)
        said = {"issued_token_type": wanted["requested_token_type"], "token_type": "Bearer"}
        return as_json({**said, "access_token": token, "expires_in": self._tokens.lifetime})

    def _impersonate(self, authorization: str | None, document: Any) -> Reply:
        if (authorization or "").removeprefix("Bearer ") not in self.federated:
            error = {"code": 403, "message": f"no to {authorization}", "status": "PERMISSION_DENIED"}
            return as_json({"error": error}, status=403)
        end = datetime.fromtimestamp(time.time() + self._tokens.lifetime, UTC).isoformat().replace("+00:00", "Z")
        return as_json({"accessToken": self._tokens.mint(" ".join(document["scope"])), "expireTime": end})


class ArtifactRegistrySimulator(RegistrySimulator):
    """Registries of Google."""

    HOSTS = ("europe-docker.pkg.dev", "us-central1-docker.pkg.dev", "gcr.io", "eu.gcr.io",
             "europe-docker.pkg.dev.attacker.example")  # fmt: skip

    def __init__(self, tokens: Tokens, *, tls: trustme.CA | None = None) -> None:
        super().__init__(tls=tls, names=self.HOSTS)
        self.auth = "bearer"
        self._access = tokens

    async def reply(self, request: web.Request) -> Reply:
        seen = self.requests[-1]
        if seen.path != "/v2/token":
            return await super().reply(request)
        scheme, _, value = (seen.authorization or "").partition(" ")
        user, _, token = (base64.b64decode(value).decode() if scheme == "Basic" else "").partition(":")
        if user != "oauth2accesstoken" or token not in self._access.scopes:
            return error_reply(401, "UNAUTHORIZED")
        given = f"registry-{secrets.token_hex(20)}"
        self._access.minted.append(given)
        self.issuer.issued[given] = seen.query.get("scope", "")
        return as_json({"token": given, "expires_in": 43200})

    def _refuse(self, repository: str, authorization: str | None) -> Reply | None:
        host = self.requests[-1].headers["Host"]
        scope = f"repository:{repository}:pull"
        if self.issuer.issued.get((authorization or "").removeprefix("Bearer ")) == scope:
            return None
        realm = self.realm or f"https://{host}/v2/token"
        challenge = f'Bearer realm="{realm}",service="{host}",scope="{scope}"'
        return error_reply(401, "UNAUTHORIZED", {"WWW-Authenticate": self.challenge or challenge})
