"""Amazon ECR as a pod with an IAM role meets it: the security token service, the ECR API, the registries.

    POST https://sts.<region>.amazonaws.com/       AssumeRoleWithWebIdentity, in XML
    POST https://api.ecr.<region>.amazonaws.com/   GetAuthorizationToken, signed (Signature Version 4)
    https://<account>.dkr.ecr.<region>.amazonaws.com/v2/...    Basic, blobs redirected to S3

Signatures are checked by the documented steps, with code of its own: what the client computes is not used here.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs

import trustme
from aiohttp import web

from tests.simulators.azure.entra import as_json
from tests.simulators.listener import Listener, RecordedRequest, Reply
from tests.simulators.registry import RegistrySimulator, error_reply

ROLE = "arn:aws:iam::123456789012:role/countersign"
REGION = "eu-west-1"
REGISTRY = f"123456789012.dkr.ecr.{REGION}.amazonaws.com"
API = "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken"

_AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 Credential=(?P<key>\w+)/(?P<day>\d{8})/(?P<region>[\w-]+)/(?P<service>\w+)/aws4_request, "
    r"SignedHeaders=(?P<signed>[a-z0-9;-]+), Signature=(?P<signature>[0-9a-f]{64})"
)


class SecurityTokenSimulator(Listener):
    """sts.<region>.amazonaws.com.

    Attributes:
        web_identities: service accounts' tokens that the role trusts.
        keys: secret access key and session token of every key that was given out, by key id.
        minted: every secret that was ever given out.
    """

    HOSTS = ("sts.eu-west-1.amazonaws.com", "sts.us-east-1.amazonaws.com", "sts.cn-north-1.amazonaws.com.cn")

    def __init__(self, *, tls: trustme.CA | None = None, names: Sequence[str] = HOSTS) -> None:
        super().__init__(tls=tls, names=names)
        self.web_identities: set[str] = set()
        self.keys: dict[str, tuple[str, str]] = {}
        self.minted: list[str] = []

    async def reply(self, request: web.Request) -> Reply:
        form = {name: values[0] for name, values in parse_qs(self.requests[-1].body.decode()).items()}
        wanted = {"Action": "AssumeRoleWithWebIdentity", "Version": "2011-06-15"}
        if wanted.items() - form.items() or not re.fullmatch(r"[\w+=,.@-]{2,64}", form.get("RoleSessionName", "")):
            return self.refuse("ValidationError", 400)
        if form.get("RoleArn") != ROLE:
            return self.refuse("AccessDenied", 403)
        if form.get("WebIdentityToken") not in self.web_identities:
            return self.refuse("InvalidIdentityToken", 400)
        key, secret, session = f"ASIA{secrets.token_hex(8).upper()}", secrets.token_urlsafe(30), secrets.token_hex(80)
        secret = secret.replace("-", "/").replace("_", "+")
        self.keys[key] = (secret, session)
        self.minted += [secret, session]
        return _xml(
            f"""<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
  <AssumeRoleWithWebIdentityResult>
    <SubjectFromWebIdentityToken>system:serviceaccount:gatekeeper-system:ratify-admin</SubjectFromWebIdentityToken>
    <Audience>sts.amazonaws.com</Audience>
    <AssumedRoleUser><Arn>{ROLE}/x</Arn><AssumedRoleId>AROACLKWSDQRAOEXAMPLE:x</AssumedRoleId></AssumedRoleUser>
    <Credentials>
      <AccessKeyId>{key}</AccessKeyId>
      <SecretAccessKey>{secret}</SecretAccessKey>
      <SessionToken>{session}</SessionToken>
      <Expiration>2026-11-23T10:00:00Z</Expiration>
    </Credentials>
  </AssumeRoleWithWebIdentityResult>
  <ResponseMetadata><RequestId>c6104cbe-af31-11e0-8154-cbc7ccf896c7</RequestId></ResponseMetadata>
</AssumeRoleWithWebIdentityResponse>"""
        )

    def refuse(self, code: str, status: int) -> Reply:
        """A refusal, which repeats what it was sent as no server should."""
        echo = self.requests[-1].body.decode()
        return _xml(
            f"<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code><Message>{echo.replace('&', '&amp;')}"
            "</Message></Error><RequestId>c6104cbe</RequestId></ErrorResponse>",
            status=status,
        )


class ElasticContainerRegistryApi(Listener):
    """api.ecr.<region>.amazonaws.com.

    Args:
        sts: who gave the keys.

    Attributes:
        lifetime: seconds that passwords last.
        passwords: those that are good.
        minted: every one that was ever given out.
        now: its own time, for signatures.
    """

    HOSTS = ("api.ecr.eu-west-1.amazonaws.com", "api.ecr.us-east-1.amazonaws.com", "ecr-fips.us-east-1.amazonaws.com",
             "api.ecr.cn-north-1.amazonaws.com.cn", "vpce-0123.api.ecr.eu-west-1.vpce.amazonaws.com")  # fmt: skip

    def __init__(
        self, sts: SecurityTokenSimulator, *, tls: trustme.CA | None = None, names: Sequence[str] = HOSTS
    ) -> None:
        super().__init__(tls=tls, names=names)
        self.lifetime = 12 * 3600.0
        self.passwords: set[str] = set()
        self.minted: list[str] = []
        self._sts = sts

    async def reply(self, request: web.Request) -> Reply:
        seen = self.requests[-1]
        problem = self._problem(seen)
        if problem:
            return as_json({"__type": problem, "message": f"refused {seen.headers}"}, status=400)
        if seen.headers.get("X-Amz-Target") != API or seen.headers["Content-Type"] != "application/x-amz-json-1.1":
            return as_json({"__type": "com.amazon.coral.service#UnknownOperationException"}, status=400)
        password = secrets.token_hex(200)
        self.passwords.add(password)
        self.minted.append(password)
        token = base64.b64encode(f"AWS:{password}".encode()).decode()
        self.minted.append(token)
        host = seen.headers["Host"]
        entry = {
            "authorizationToken": token,
            "expiresAt": round(time.time() + self.lifetime, 3),
            "proxyEndpoint": f"https://123456789012.dkr.{host.removeprefix('api.')}",
        }
        return as_json({"authorizationData": [entry]})

    def _problem(self, seen: RecordedRequest) -> str:
        match = _AUTHORIZATION.fullmatch(seen.authorization or "")
        if match is None:
            return "MissingAuthenticationTokenException"
        secret, session = self._sts.keys.get(match["key"], ("", ""))
        if not secret or seen.headers.get("X-Amz-Security-Token") != session:
            return "UnrecognizedClientException"
        if f".{match['region']}." not in seen.headers["Host"] or match["service"] != "ecr":
            return "InvalidSignatureException"
        moment = seen.headers["X-Amz-Date"]
        sent = time.strptime(moment, "%Y%m%dT%H%M%SZ")
        if abs(_seconds(sent) - time.time()) > 300 or moment[:8] != match["day"]:
            return "InvalidSignatureException"
        names = match["signed"].split(";")
        if not {"host", "x-amz-date", "x-amz-security-token"} <= set(names) or names != sorted(names):
            return "InvalidSignatureException"
        return (
            "" if match["signature"] == _signature(seen, names, secret, match, moment) else "InvalidSignatureException"
        )


def _seconds(moment: time.struct_time) -> float:
    import calendar

    return calendar.timegm(moment)


def _signature(seen: RecordedRequest, names: Sequence[str], secret: str, match: re.Match[str], moment: str) -> str:
    """By "Create a signed AWS API request", steps 1 to 4."""
    fields = "".join(f"{name}:{seen.headers[name].strip()}\n" for name in names)
    request = f"{seen.method}\n{seen.path}\n\n{fields}\n{';'.join(names)}\n{hashlib.sha256(seen.body).hexdigest()}"
    scope = f"{match['day']}/{match['region']}/{match['service']}/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{moment}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"

    def mac(key: bytes, part: str) -> bytes:
        return hmac.new(key, part.encode(), hashlib.sha256).digest()

    day = mac(f"AWS4{secret}".encode(), match["day"])
    return mac(mac(mac(mac(day, match["region"]), match["service"]), "aws4_request"), text).hex()


class EcrRegistrySimulator(RegistrySimulator):
    """The registries of a region.

    Args:
        api: who gave the passwords.
    """

    HOSTS = (
        *("*.dkr.ecr.eu-west-1.amazonaws.com", "*.dkr.ecr.us-east-1.amazonaws.com", "*.dkr-ecr.eu-west-1.on.aws"),
        *("*.dkr.ecr-fips.us-east-1.amazonaws.com", "*.dkr.ecr.cn-north-1.amazonaws.com.cn"),
        "*.dkr.ecr.eu-west-1.amazonaws.com.attacker.example",
    )

    def __init__(self, api: ElasticContainerRegistryApi, *, tls: trustme.CA | None = None) -> None:
        super().__init__(tls=tls, names=self.HOSTS)
        self.auth = "basic"
        self._api = api

    def _refuse(self, repository: str, authorization: str | None) -> Reply | None:
        user, _, password = _decoded(authorization).partition(":")
        if user == "AWS" and password in self._api.passwords:
            return None
        host = self.requests[-1].headers["Host"]
        challenge = self.challenge or f'Basic realm="https://{host}/",service="ecr.amazonaws.com"'
        return error_reply(401, "UNAUTHORIZED", {"WWW-Authenticate": challenge})


def _decoded(authorization: str | None) -> str:
    scheme, _, value = (authorization or "").partition(" ")
    return base64.b64decode(value).decode() if scheme == "Basic" else ""


def _xml(text: str, *, status: int = 200, headers: Mapping[str, Any] | None = None) -> Reply:
    return Reply(status, {"Content-Type": "text/xml", **(headers or {})}, text.encode())


def error(code: str) -> bytes:
    """The body of an error of the ECR API."""
    return json.dumps({"__type": code, "message": "no"}).encode()
