"""Credentials for Google Artifact Registry, by the workload identity of a service account.

On Google's clusters the metadata service of the node says who the pod is:

    GET  http://169.254.169.254/computeMetadata/v1/instance/service-accounts/default/token    an access token

Elsewhere a workload identity federation does, which a credential configuration describes (external_account):

    POST https://sts.googleapis.com/v1/token                        the service account's token for a federated one
    POST https://iamcredentials.googleapis.com/...:generateAccessToken     that for one of a service account of Google

Rules:
- The access token goes to registries of Google alone, by their names, over https, to the registry's own origin
  (Credential.own_origin_only). It is asked for with a scope that can only read.
- The service account's token goes to Google's security token service alone, whatever the configuration says.
- What lasts is used until five minutes before its end and renewed before that.
- A failure is an error, not anonymous access. Of a foreign answer no more than its error code is told.

Not here: keys of service accounts, which are secrets to be lost, and subject tokens that do not stand in a file.

What does not belong here: challenges of registries (stores/), keeping (renewal.py).
Sources: Google Cloud "Workload Identity Federation", AIP-4115, AIP-4117, "Artifact Registry: authentication"; RFC 8693;
attacks N07, N11, N12.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from yarl import URL

from provider import strict_json
from provider.credentials.exchange import Answer, ExchangeFailedError, Exchanges
from provider.credentials.renewal import Lease, Renewing
from provider.egress import LOOPBACK_ALLOWED, METADATA_ADDRESS, METADATA_ONLY, PRIVATE_ALLOWED, ProxySettings
from provider.errors import Undecided
from provider.interfaces import Credential
from provider.lifetimes import seconds_until

SCOPE: Final = "https://www.googleapis.com/auth/cloud-platform.read-only"
MARGIN_SECONDS: Final = 300.0  # a token is given up this long before its end
MAX_FILE_BYTES: Final = 64 * 1024  # of the credential configuration, and of the service account's token

_REGISTRY = re.compile(r"(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)?gcr\.io|[a-z0-9][a-z0-9-]{0,56}-docker\.pkg\.dev")
_STS = re.compile(r"https://sts\.(?:[a-z0-9-]{1,63}\.(?:rep\.)?)?googleapis\.com/v1/token")
_IMPERSONATION = re.compile(
    r"https://iamcredentials\.(?:[a-z0-9-]{1,63}\.(?:rep\.)?)?googleapis\.com/v1/projects/-/serviceAccounts/"
    r"[A-Za-z0-9@._-]{1,256}:generateAccessToken"
)
_TOKEN = re.compile(r"[\x21-\x7e]{1,65536}")
_ERROR_CODE = re.compile(r"[A-Za-z_]{1,64}")
_IMPERSONATION_SCOPE: Final = "https://www.googleapis.com/auth/iam"  # of a token that only asks for another
_METADATA_HOST_VARIABLE: Final = "GCE_METADATA_HOST"  # of Google's libraries; of emulators and tests


def is_registry(domain: str) -> bool:
    """Whether a registry is Google's: Artifact Registry, or what is left of Container Registry. A pure function.

    Args:
        domain: as in references, normalised. What is not normalised, or has a port, is none.
    """
    return _REGISTRY.fullmatch(domain) is not None


@dataclass(frozen=True, slots=True)
class Federation:
    """A credential configuration of the type external_account.

    Attributes:
        audience: the provider of the workload identity pool.
        token_url: Google's security token service.
        subject_token_type: what the token in the file is.
        file: where the token is.
        member: its member, for a file of JSON; empty for a file that holds the token alone.
        impersonation_url: where the token of a service account is had for the federated one; empty for none.
    """

    audience: str
    token_url: str
    subject_token_type: str
    file: str
    member: str = ""
    impersonation_url: str = ""

    @classmethod
    def parse(cls, data: bytes) -> Federation:
        """Read it.

        Args:
            data: JSON, as gcloud iam workload-identity-pools create-cred-config writes it.

        Raises:
            Undecided: CREDENTIALS_UNAVAILABLE; nothing of it is quoted.
        """
        try:
            document = strict_json.loads(data, max_bytes=MAX_FILE_BYTES)
        except strict_json.MalformedJSONError:
            document = None
        if not isinstance(document, dict) or document.get("type") != "external_account":
            raise _misconfigured("is no JSON object of the type external_account")
        source = document.get("credential_source")
        source = source if isinstance(source, dict) else {}
        form = source.get("format")
        form = form if isinstance(form, dict) else {}
        federation = cls(
            audience=_text(document, "audience"),
            token_url=_text(document, "token_url"),
            subject_token_type=_text(document, "subject_token_type"),
            file=_text(source, "file"),
            member=_text(form, "subject_token_field_name") if form.get("type") == "json" else "",
            impersonation_url=_text(document, "service_account_impersonation_url"),
        )
        if _STS.fullmatch(federation.token_url) is None:
            raise _misconfigured("has a token_url that is not Google's: https://sts.googleapis.com/v1/token")
        if federation.impersonation_url and _IMPERSONATION.fullmatch(federation.impersonation_url) is None:
            raise _misconfigured("has a service_account_impersonation_url that is not Google's")
        if not federation.audience or not federation.subject_token_type:
            raise _misconfigured("has no audience or no subject_token_type")
        if not federation.file:
            raise _misconfigured("names no file in its credential_source, and other sources are not supported")
        return federation

    def subject_token(self) -> str:
        """The token in the file, which Kubernetes keeps fresh.

        Raises:
            Undecided: CREDENTIALS_UNAVAILABLE.
        """
        text = _read(Path(self.file), "the service account's token for Google").decode("ascii", "replace").strip()
        if self.member:
            try:
                document = strict_json.loads(text.encode(), max_bytes=MAX_FILE_BYTES)
            except strict_json.MalformedJSONError:
                document = None
            text = _text(document, self.member) if isinstance(document, dict) else ""
        if _TOKEN.fullmatch(text) is None:
            raise _unavailable("the file that the credential configuration names holds no token")
        return text


@dataclass(frozen=True, slots=True)
class _Token:
    value: str = field(repr=False)
    seconds: float


class ArtifactRegistryCredentials:
    """A source of credentials. For one event loop; to be closed with `aclose`.

    Args:
        config: a credential configuration; None for the one that GOOGLE_APPLICATION_CREDENTIALS names, or else the
            metadata service.
        proxies: proxies of the environment; never on the way to the metadata service.
        variables: the environment.
        monotonic: seconds of a clock that never goes back.
    """

    def __init__(
        self,
        config: Path | None = None,
        *,
        proxies: ProxySettings | None = None,
        variables: Mapping[str, str] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._variables = os.environ if variables is None else variables
        named = self._variables.get("GOOGLE_APPLICATION_CREDENTIALS", "")
        self._config = config or (Path(named) if named else None)
        self._exchanges = Exchanges(proxies)
        self._tokens: Renewing[str, str] = Renewing(
            self._exchange, service="Google Artifact Registry", monotonic=monotonic
        )

    async def credential(self, domain: str, path: str) -> Credential | None:  # noqa: ARG002 - one for all of Google
        """The credential for a registry of Google, None for any other; see interfaces.CredentialProvider.

        Raises:
            Undecided: CREDENTIALS_UNAVAILABLE.
        """
        if not is_registry(domain):
            return None
        return _credential(await self._tokens.get(SCOPE))

    async def another(self, domain: str, path: str, refused: Collection[Credential | None]) -> Credential | None:
        """One that was got anew, unless that was so just now; see interfaces.AlternativeCredentialProvider.

        Raises:
            Undecided: CREDENTIALS_UNAVAILABLE.
        """
        found = await self.credential(domain, path)
        if found is not None and found in refused:
            found = _credential(await self._tokens.get(SCOPE, anew=True))
        return None if found in refused else found

    async def aclose(self) -> None:
        """Close every connection and give up what is under way."""
        await self._tokens.aclose()
        await self._exchanges.aclose()

    async def _exchange(self, scope: str) -> Lease[str]:
        """An access token.

        Raises:
            Undecided: CREDENTIALS_UNAVAILABLE.
        """
        try:
            token = await (self._ask_metadata(scope) if self._config is None else self._federate(self._config, scope))
        except ExchangeFailedError as error:
            raise Undecided(
                "CREDENTIALS_UNAVAILABLE",
                f"no token for registries of Google: {error.problem}",
                remediation="Let the pod reach it: egress rules, NetworkPolicy, the proxy that HTTPS_PROXY names. The "
                "metadata service answers on Google's clusters only.",
                retry_after=error.retry_after,
            ) from None
        return Lease(token.value, token.seconds - min(MARGIN_SECONDS, token.seconds / 2))

    async def _ask_metadata(self, scope: str) -> _Token:
        override = self._variables.get(_METADATA_HOST_VARIABLE, "")
        host, rules = (override, LOOPBACK_ALLOWED) if override else (METADATA_ADDRESS, METADATA_ONLY)
        try:
            url = URL(f"http://{host}/computeMetadata/v1/instance/service-accounts/default/token")
        except ValueError:
            raise _unavailable(f"{_METADATA_HOST_VARIABLE} is no host") from None
        answer = await self._exchanges.send(
            "GET", url.with_query(scopes=scope), rules=rules, headers={"Metadata-Flavor": "Google"}
        )
        token = _token_of(answer, "access_token", answer.document().get("expires_in"))
        if token is None:
            raise _refused(
                "the metadata service gave no token",
                answer,
                "Give the cluster a workload pool and the node pool its metadata server (--workload-metadata="
                "GKE_METADATA), and the service account roles/artifactregistry.reader.",
            )
        return token

    async def _federate(self, config: Path, scope: str) -> _Token:
        federation, subject_token = await asyncio.to_thread(_load, config)
        form = {
            "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
            "requested_token_type": "urn:ietf:params:oauth:token-type:access_token",
            "audience": federation.audience,
            "scope": _IMPERSONATION_SCOPE if federation.impersonation_url else scope,
            "subject_token_type": federation.subject_token_type,
            "subject_token": subject_token,
        }
        url = URL(federation.token_url)
        answer = await self._exchanges.send("POST", url, rules=PRIVATE_ALLOWED, form=form)
        token = _token_of(answer, "access_token", answer.document().get("expires_in"))
        if token is None:
            raise _refused(
                f"{url.host} gave no token for the service account's",
                answer,
                "Compare issuer, allowed audience and attribute condition of the pool's provider with the service "
                "account's token: gcloud iam workload-identity-pools providers describe.",
            )
        return await self._impersonate(federation, token, scope) if federation.impersonation_url else token

    async def _impersonate(self, federation: Federation, token: _Token, scope: str) -> _Token:
        url = URL(federation.impersonation_url, encoded=True)
        answer = await self._exchanges.send(
            "POST",
            url,
            rules=PRIVATE_ALLOWED,
            headers={"Authorization": f"Bearer {token.value}", "Content-Type": "application/json"},
            data=json.dumps({"scope": [scope]}).encode(),
        )
        found = _token_of(answer, "accessToken", _seconds_to(answer))
        if found is None:
            raise _refused(
                f"{url.host} gave no token of the service account",
                answer,
                "Give the federated identity roles/iam.workloadIdentityUser on the service account.",
            )
        return found


def _credential(token: str) -> Credential:
    return Credential("oauth2accesstoken", token, own_origin_only=True)


def _load(config: Path) -> tuple[Federation, str]:
    federation = Federation.parse(_read(config, "the credential configuration of Google"))
    return federation, federation.subject_token()


def _read(path: Path, what: str) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES)
    except (OSError, ValueError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or "its name is none"
        raise _unavailable(f"{what} cannot be read: {why}") from None


def _text(document: Mapping[str, Any], name: str) -> str:
    value = document.get(name)
    return value if isinstance(value, str) else ""


def _token_of(answer: Answer, member: str, seconds: Any) -> _Token | None:
    """The token of an answer, None when there is none that can be used."""
    value = _text(answer.document(), member) if answer.status == 200 else ""
    if _TOKEN.fullmatch(value) is None or isinstance(seconds, bool) or not isinstance(seconds, int | float):
        return None
    return _Token(value, float(seconds)) if 0 < seconds < 1e9 else None


def _seconds_to(answer: Answer) -> float | None:
    """Seconds until the `expireTime` of an answer."""
    try:
        end = datetime.fromisoformat(_text(answer.document(), "expireTime"))
    except ValueError:
        return None
    return None if end.tzinfo is None else seconds_until(end.timestamp(), answer.headers)


def _refused(problem: str, answer: Answer, remediation: str) -> Undecided:
    """The codes are `error` (RFC 6749), or `error.status` of Google's APIs."""
    error = answer.document().get("error")
    code = error.get("status") if isinstance(error, dict) else error
    named = f" ({code})" if isinstance(code, str) and _ERROR_CODE.fullmatch(code) else ""
    said = f"{answer.status}{named}" if answer.status != 200 else "200 without one that can be read"
    return _unavailable(f"{problem}: it answered {said}", remediation=remediation)


def _misconfigured(problem: str) -> Undecided:
    return _unavailable(
        f"the credential configuration of Google {problem}",
        remediation="Make it with gcloud iam workload-identity-pools create-cred-config --credential-source-file.",
    )


def _unavailable(reason: str, *, remediation: str | None = None) -> Undecided:
    return Undecided("CREDENTIALS_UNAVAILABLE", reason, remediation=remediation)
