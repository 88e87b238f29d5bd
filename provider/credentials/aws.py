"""Credentials for Amazon Elastic Container Registry, by the IAM role of a service account (IRSA).

    POST https://sts.<region>.amazonaws.com/          AssumeRoleWithWebIdentity: keys of the role, for an hour
    POST https://api.ecr.<region>.amazonaws.com/      GetAuthorizationToken: a password for the region's registries

Rules:
- The service account's token goes to AWS's security token service alone, the keys of the role nowhere: they sign one
  request and are forgotten. The password goes to registries of AWS alone, by their names, over https, to the registry's
  own origin (Credential.own_origin_only).
- One password serves all registries of a region. It is used until five minutes before its end and renewed before that.
- A failure is an error, not anonymous access. Of a foreign answer no more than its error code is told.

Not here: EKS Pod Identity and instance profiles, whose services have link-local addresses; public.ecr.aws, which needs
no credentials; registries of AWS's secret regions.

What does not belong here: challenges of registries (stores/), keeping (renewal.py).
Sources: Amazon ECR and AWS STS API references; IAM "Signature Version 4"; Ratify v1 awsEcrBasic; attacks N07, N11.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import os
import re
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

from yarl import URL

from provider.credentials.exchange import Answer, ExchangeFailedError, Exchanges
from provider.credentials.renewal import Lease, Renewing
from provider.egress import PRIVATE_ALLOWED, ProxySettings
from provider.errors import Undecided, printable
from provider.interfaces import Credential
from provider.lifetimes import seconds_until

MARGIN_SECONDS: Final = 300.0  # a password is given up this long before its end
UNKNOWN_LIFETIME_SECONDS: Final = 900.0  # of a password that does not say; they last for twelve hours
MAX_TOKEN_FILE_BYTES: Final = 64 * 1024
SESSION_NAME: Final = "countersign"  # what CloudTrail shows

_REGION: Final = r"[a-z]{2,4}(?:-[a-z]{2,12}){1,3}-[0-9]{1,2}"
_ZONES: Final = ("amazonaws.com", "amazonaws.com.cn", "amazonaws.eu", "on.aws", "on.amazonwebservices.com.cn")
_REGISTRY = re.compile(
    rf"[0-9]{{12}}\.dkr[.-]ecr(?P<fips>-fips)?\.(?P<region>{_REGION})\.(?:{'|'.join(map(re.escape, _ZONES))})"
)
_SUFFIXES: Final = {"cn": "amazonaws.com.cn", "eusc": "amazonaws.eu"}  # by first part of the region
_PASSWORD = re.compile(r"[\x21-\x7e]{1,65536}")


class RegistryRegion(NamedTuple):
    """Where a registry is.

    Attributes:
        name: the region.
        fips: the registry is named by its FIPS endpoint.
    """

    name: str
    fips: bool = False


def registry_region(domain: str) -> RegistryRegion | None:
    """The region of a private registry of Amazon ECR, None for any other host. A pure function of the text.

    Args:
        domain: as in references, normalised. What is not normalised, or has a port, is none.
    """
    match = _REGISTRY.fullmatch(domain)
    return None if match is None else RegistryRegion(match["region"], match["fips"] is not None)


@dataclass(frozen=True, slots=True)
class AccessKey:
    """Keys of a role, for a time.

    Attributes:
        identifier: the access key id.
        secret: the secret access key.
        session_token: goes with it; secret.
    """

    identifier: str = field(repr=False)
    secret: str = field(repr=False)
    session_token: str = field(default="", repr=False)


def sign(
    key: AccessKey, url: URL, headers: Mapping[str, str], body: bytes, *, region: str, service: str, at: datetime
) -> dict[str, str]:
    """The header fields of a signed POST: those given, and those that sign it. A pure function (Signature Version 4).

    Args:
        key: who signs.
        url: where to; without a query.
        headers: fields to send, all of which are signed.
        body: what to send.
        region: the service's region.
        service: its name in signatures, such as ecr.
        at: the time (aware, UTC); AWS wants it within five minutes of its own.
    """
    moment = at.strftime("%Y%m%dT%H%M%SZ")
    fields = {**headers, "Host": url.host_port_subcomponent or "", "X-Amz-Date": moment}
    if key.session_token:
        fields["X-Amz-Security-Token"] = key.session_token
    lowered = sorted((name.lower(), value.strip()) for name, value in fields.items())
    signed = ";".join(name for name, _ in lowered)
    canonical = "\n".join(
        ("POST", url.raw_path or "/", "", *(f"{name}:{value}" for name, value in lowered), "", signed, _sha256(body))
    )
    scope = f"{moment[:8]}/{region}/{service}/aws4_request"
    signing_key = f"AWS4{key.secret}".encode()
    for part in scope.split("/"):
        signing_key = hmac.digest(signing_key, part.encode(), "sha256")
    to_sign = "\n".join(("AWS4-HMAC-SHA256", moment, scope, _sha256(canonical.encode())))
    signature = hmac.digest(signing_key, to_sign.encode(), "sha256").hex()
    fields["Authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={key.identifier}/{scope}, SignedHeaders={signed}, Signature={signature}"
    )
    del fields["Host"]  # the client sends its own
    return fields


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class ElasticContainerRegistryCredentials:
    """A source of credentials. For one event loop; to be closed with `aclose`.

    Args:
        proxies: proxies of the environment.
        variables: what EKS says of the role: AWS_ROLE_ARN, AWS_WEB_IDENTITY_TOKEN_FILE, AWS_REGION; and Ratify's
            AWS_API_OVERRIDE_ENDPOINT and AWS_API_OVERRIDE_REGION, the ECR API of one region.
        clock: the time, for signatures.
        monotonic: seconds of a clock that never goes back.
    """

    def __init__(
        self,
        *,
        proxies: ProxySettings | None = None,
        variables: Mapping[str, str] | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._variables = os.environ if variables is None else variables
        self._clock = clock
        self._exchanges = Exchanges(proxies)
        self._passwords: Renewing[RegistryRegion, str] = Renewing(
            self._exchange, service="Amazon ECR", monotonic=monotonic
        )

    async def credential(self, domain: str, path: str) -> Credential | None:  # noqa: ARG002 - one for a whole region
        """The credential for a registry of Amazon ECR, None for any other; see interfaces.CredentialProvider.

        Raises:
            Undecided: CREDENTIALS_UNAVAILABLE.
        """
        region = registry_region(domain)
        if region is None:
            return None
        return _credential(await self._passwords.get(region))

    async def another(self, domain: str, path: str, refused: Collection[Credential | None]) -> Credential | None:
        """One that was got anew, unless that was so just now; see interfaces.AlternativeCredentialProvider.

        Raises:
            Undecided: CREDENTIALS_UNAVAILABLE.
        """
        found, region = await self.credential(domain, path), registry_region(domain)
        if region is not None and found in refused:
            found = _credential(await self._passwords.get(region, anew=True))
        return None if found in refused else found

    async def aclose(self) -> None:
        """Close every connection and give up what is under way."""
        await self._passwords.aclose()
        await self._exchanges.aclose()

    async def _exchange(self, region: RegistryRegion) -> Lease[str]:
        """A password for the registries of a region.

        Raises:
            Undecided: CREDENTIALS_UNAVAILABLE.
        """
        try:
            return await self._authorization_token(region, await self._assume_role(region))
        except ExchangeFailedError as error:
            raise Undecided(
                "CREDENTIALS_UNAVAILABLE",
                f"no password for Amazon ECR in {region.name}: {error.problem}",
                remediation="Let the pod reach sts and api.ecr of the region: egress rules, DNS, the VPC endpoints "
                "(com.amazonaws.<region>.sts, .ecr.api, .ecr.dkr and S3's), the proxy that HTTPS_PROXY names.",
                retry_after=error.retry_after,
            ) from None

    async def _assume_role(self, region: RegistryRegion) -> AccessKey:
        role = self._variables.get("AWS_ROLE_ARN", "")
        file = self._variables.get("AWS_WEB_IDENTITY_TOKEN_FILE", "")
        if not role or not file:
            raise _unavailable(
                "there is no IAM role for this pod: AWS_ROLE_ARN or AWS_WEB_IDENTITY_TOKEN_FILE is not set",
                remediation="Annotate the service account with eks.amazonaws.com/role-arn and start the pod anew. EKS "
                "Pod Identity is not supported.",
            )
        form = {
            "Action": "AssumeRoleWithWebIdentity",
            "Version": "2011-06-15",
            "RoleArn": role,
            "RoleSessionName": SESSION_NAME,
            "WebIdentityToken": await asyncio.to_thread(_read_token, file),
        }
        own_region = self._variables.get("AWS_REGION", "")
        asked = own_region if re.fullmatch(_REGION, own_region) else region.name
        url = URL(f"https://sts.{asked}.{_suffix(asked)}/")
        answer = await self._exchanges.send("POST", url, rules=PRIVATE_ALLOWED, form=form)
        if answer.status == 200:
            key = _access_key(answer.body)
            if key is not None:
                return key
        raise _refused(f"{url.host} did not give the role {printable(role, 256)}", answer, _STS_CODES)

    async def _authorization_token(self, region: RegistryRegion, key: AccessKey) -> Lease[str]:
        url, body = self._api(region), b"{}"
        headers = {
            "Content-Type": "application/x-amz-json-1.1",
            "X-Amz-Target": "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken",
        }
        signed = sign(key, url, headers, body, region=region.name, service="ecr", at=self._clock())
        answer = await self._exchanges.send("POST", url, rules=PRIVATE_ALLOWED, headers=signed, data=body)
        lease = _lease(answer) if answer.status == 200 else None
        if lease is None:
            raise _refused(f"{url.host} gave no password for registries", answer, _ECR_CODES)
        return lease

    def _api(self, region: RegistryRegion) -> URL:
        """Where the ECR API of a region is.

        Raises:
            Undecided: CREDENTIALS_UNAVAILABLE, when the environment names another that cannot be it.
        """
        override = self._variables.get("AWS_API_OVERRIDE_ENDPOINT", "")
        if not override or self._variables.get("AWS_API_OVERRIDE_REGION", "") != region.name:
            name = "ecr-fips" if region.fips else "api.ecr"
            return URL(f"https://{name}.{region.name}.{_suffix(region.name)}/")
        try:
            url = URL(override)
            usable = url.scheme == "https" and bool(url.raw_host) and url.port is not None
        except ValueError:
            usable = False
        if not usable or url.raw_user is not None or url.raw_password is not None or url.raw_query_string:
            raise _unavailable(
                "AWS_API_OVERRIDE_ENDPOINT is no https URL of a host",
                remediation="Give oras.authProviders.awsApiOverride.endpoint as https://host.",
            )
        return url.with_fragment(None)


def _credential(password: str) -> Credential:
    return Credential("AWS", password, own_origin_only=True)


def _suffix(region: str) -> str:
    return _SUFFIXES.get(region.partition("-")[0], "amazonaws.com")


def _read_token(path: str) -> str:
    """The service account's token, that Kubernetes keeps fresh in a file.

    Raises:
        Undecided: CREDENTIALS_UNAVAILABLE.
    """
    try:
        with Path(path).open(encoding="ascii") as file:
            token = file.read(MAX_TOKEN_FILE_BYTES).strip()
    except (OSError, ValueError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or "it is no text"
        raise _unavailable(f"the service account's token for AWS cannot be read: {why}") from None
    if not token:
        raise _unavailable("the service account's token for AWS cannot be read: it is empty")
    return token


def _access_key(body: bytes) -> AccessKey | None:
    """The keys in an answer of the security token service. Its members are flat and hold nothing that XML escapes, so
    that no XML parser, with the entities it would expand, is let loose on it."""
    found = {
        name: re.findall(rb"<" + name.encode() + rb">\s*([A-Za-z0-9/+=]{1,16384})\s*</", body)
        for name in ("AccessKeyId", "SecretAccessKey", "SessionToken")
    }
    if any(len(values) != 1 for values in found.values()):
        return None
    return AccessKey(*(values[0].decode("ascii") for values in found.values()))


def _lease(answer: Answer) -> Lease[str] | None:
    """The password in an answer of the ECR API, None when there is none."""
    entries = answer.document().get("authorizationData")
    first = entries[0] if isinstance(entries, list) and entries else None
    if not isinstance(first, dict):
        return None
    try:
        pair = base64.b64decode(str(first.get("authorizationToken", "")), validate=True).decode("ascii")
    except (binascii.Error, ValueError):
        return None
    user, _, password = pair.partition(":")
    if user != "AWS" or _PASSWORD.fullmatch(password) is None:
        return None
    seconds = seconds_until(first.get("expiresAt"), answer.headers)
    if seconds is None:
        seconds = UNKNOWN_LIFETIME_SECONDS
    return None if seconds <= 0 else Lease(password, seconds - min(MARGIN_SECONDS, seconds / 2))


_CODE_IN_XML = re.compile(rb"<Code>\s*([A-Za-z.]{1,64})\s*</Code>")
_CODE_IN_JSON = re.compile(r"(?:[\w.]{1,100}#)?([A-Za-z]{1,64})")
_CLOCK: Final = "See that the clock of the node is right."
_STS_CODES: Final[Mapping[str, str]] = {
    "AccessDenied": "Let the role's trust policy allow sts:AssumeRoleWithWebIdentity for the issuer of the cluster, "
    "this service account (sub) and the audience sts.amazonaws.com.",
    "InvalidIdentityToken": "Make the issuer of the cluster an OpenID Connect provider of the account in IAM, with the "
    "audience sts.amazonaws.com.",
    "ExpiredTokenException": f"kubelet renews the token: see that it can. {_CLOCK}",
    "IDPCommunicationError": "AWS could not read the keys of the cluster's issuer. Try again.",
    "RegionDisabledException": "Activate the security token service for the region in IAM, or set AWS_REGION.",
}
_ECR_CODES: Final[Mapping[str, str]] = {
    "AccessDeniedException": "Give the role a policy that allows ecr:GetAuthorizationToken on every resource (*), and "
    "ecr:BatchGetImage and ecr:GetDownloadUrlForLayer on the repositories: AmazonEC2ContainerRegistryReadOnly.",
    "InvalidSignatureException": _CLOCK,
    "UnrecognizedClientException": "See that the account and its region are active.",
}


def _refused(problem: str, answer: Answer, remediations: Mapping[str, str]) -> Undecided:
    match = _CODE_IN_XML.search(answer.body)
    kind = _CODE_IN_JSON.fullmatch(str(answer.document().get("__type", "")))
    code = match[1].decode("ascii") if match else kind[1] if kind else ""
    said = f"{answer.status} {code}".strip() if answer.status != 200 else "200 without one that can be read"
    return _unavailable(f"{problem}: it answered {said}", remediation=remediations.get(code))


def _unavailable(reason: str, *, remediation: str | None = None) -> Undecided:
    return Undecided("CREDENTIALS_UNAVAILABLE", reason, remediation=remediation)
