"""An Azure Key Vault on loopback: certificates with their versions, secrets and keys, as the REST API hands them out.

    async with KeyVaultSimulator(entra, tls=authority) as vault:
        version = vault.add_certificate("release", pem_secret(signer.chain))
        vault.disable("release", version)
        vault.fault("/secrets/release/*", status(503), times=1)
        vault.refuse("/secrets/*", 403, "Forbidden", "ForbiddenByRbac")

It answers to its genuine name (hosts.py leads there), demands a token and an api-version, pages its lists,
and writes links with `:443` in them, as Azure does. A disabled version is refused with Azure's inner code.

What it does not: sign or encrypt, store anything, know which caller has which role (`refuse` stands for that).
Source: Azure Key Vault REST API 7.4, and what facts of Azure's answers are known from its SDKs' recordings.
"""

from __future__ import annotations

import base64
import itertools
import json
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import trustme
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import KeySerializationEncryption, NoEncryption, pkcs12

from provider.demo.pki import CertifiedKey, PrivateKey, pem
from tests.simulators.azure.entra import TENANT, EntraSimulator
from tests.simulators.listener import Listener, Reply

PEM: Final = "application/x-pem-file"
PKCS12: Final = "application/x-pkcs12"
RESOURCE: Final = "https://vault.azure.net"
BEGAN: Final = datetime(2026, 1, 1, tzinfo=UTC)  # when the first version of anything was made


@dataclass
class Version:
    """One version of a certificate, a secret or a key.

    Attributes:
        content: members of the answer that are its own: value and contentType of a secret, `key` of a key.
        enabled: it may be read.
        created: when it was made.
        not_before: nbf; None leaves it out.
        expires: exp; None leaves it out.
    """

    content: dict[str, Any]
    created: datetime
    enabled: bool = True
    not_before: datetime | None = None
    expires: datetime | None = None

    @property
    def attributes(self) -> dict[str, Any]:
        times = {"created": self.created, "updated": self.created, "nbf": self.not_before, "exp": self.expires}
        told = {name: int(time.timestamp()) for name, time in times.items() if time is not None}
        return {"enabled": self.enabled, **told, "recoveryLevel": "Recoverable+Purgeable", "recoverableDays": 90}


class KeyVaultSimulator(Listener):
    """The vault `https://<name>.vault.azure.net`.

    Args:
        entra: whose tokens are good, if they are for the vault's service.
        tls: authority of its certificate.
        name: its name.
        zone: what stands behind its name.

    Attributes:
        page_size: versions on one page of a list.
        challenge: the WWW-Authenticate of a 401.
        changes: called with each answer before it is sent, to spoil it; None for nothing.
    """

    def __init__(
        self,
        entra: EntraSimulator,
        *,
        tls: trustme.CA,
        name: str = "contoso",
        zone: str = "vault.azure.net",
    ) -> None:
        self.vault_host = f"{name}.{zone}"
        super().__init__(tls=tls, names=(self.vault_host,))
        self.page_size = 25
        self.challenge = f'Bearer authorization="https://login.microsoftonline.com/{TENANT}", resource="https://{zone}"'
        self.changes: Callable[[dict[str, Any]], Any] | None = None
        self._entra = entra
        self._audience = f"https://{zone}"
        self._objects: dict[tuple[str, str], dict[str, Version]] = {}  # by collection and name in lower case
        self._minutes = itertools.count()

    # -- what tests do to it --------------------------------------------------------------------------------------

    @property
    def uri(self) -> str:
        return f"https://{self.vault_host}"

    @property
    def operations(self) -> list[str]:
        """Paths of the requests that came with a token: what was asked, less the challenges."""
        return [request.path for request in self.requests if request.authorization is not None]

    def add_certificate(
        self, name: str, value: str | None, content_type: str | None = PEM, *, version: str | None = None, **facts: Any
    ) -> str:
        """Add a version of a certificate with its secret. Returns the version.

        Args:
            name: name of the certificate.
            value: the secret's value.
            content_type: its contentType.
            version: 32 hex digits; None makes some.
            facts: enabled, created, not_before, expires of Version.
        """
        content = {"value": value, "contentType": content_type, "managed": True}
        return self._add("secrets", name, content, version, facts)

    def add_key(
        self, name: str, key: PrivateKey, *, hsm: bool = False, version: str | None = None, **facts: Any
    ) -> str:
        """Add a version of a key. Returns the version."""
        return self._add("keys", name, {"key": json_web_key(key, hsm=hsm)}, version, facts)

    def version(self, name: str, version: str, collection: str = "secrets") -> Version:
        """A version, to be changed."""
        return self._objects[collection, name.lower()][version]

    def disable(self, name: str, version: str, collection: str = "secrets") -> None:
        """Switch a version off."""
        self.version(name, version, collection).enabled = False

    def delete(self, name: str, collection: str = "secrets") -> None:
        """Delete an object with all of its versions."""
        del self._objects[collection, name.lower()]

    def refuse(self, pattern: str, code: int, error: str, inner: str | None = None, message: str = "refused") -> None:
        """Answer who comes with a token with an error of Key Vault's shape from now on."""
        refusal = _fail(code, error, inner, message)

        async def apply(request: web.Request, reply: Reply) -> Reply:
            return refusal if "Authorization" in request.headers else reply

        self.fault(pattern, apply)

    # -- answering ------------------------------------------------------------------------------------------------

    async def reply(self, request: web.Request) -> Reply:
        if request.method != "GET":
            return _fail(405, "BadParameter", None, "only GET is simulated")
        if not self._may(request.headers.get("Authorization", "")):
            return _fail(401, "Unauthorized", None, "AKV10000: a token is needed", {"WWW-Authenticate": self.challenge})
        if "api-version" not in request.query:
            return _fail(400, "BadParameter", None, "api-version is missing")
        collection, name, which = (*request.path.strip("/").split("/"), "", "", "")[:3]
        versions = self._objects.get((collection, name.lower()), {})
        if which == "versions":
            return self._page(request, collection, name, versions)
        chosen = which.lower() or max(versions, key=lambda one: versions[one].created, default="")
        found = versions.get(chosen)
        if found is None:
            return _fail(404, f"{collection[:-1].title()}NotFound", None, f"A {collection[:-1]} was not found")
        if not found.enabled and collection != "certificates":
            kind = collection[:-1].title()
            return _fail(403, "Forbidden", f"{kind}Disabled", f"Operation get is not allowed on a disabled {kind}.")
        answer = {**found.content, "attributes": found.attributes, "tags": {}}
        identifier = f"{self.uri}/{collection}/{name}/{chosen}"
        if collection == "keys":
            answer["key"] = {"kid": identifier, **answer["key"]}
        else:
            answer["id"] = identifier
        return self._answer(answer)

    def _may(self, authorization: str) -> bool:
        scheme, _, token = authorization.partition(" ")
        return scheme == "Bearer" and self._entra.tokens.get(token, {}).get("aud") == self._audience

    def _page(self, request: web.Request, collection: str, name: str, versions: dict[str, Version]) -> Reply:
        """A page of versions in the order of their names, which is none, as Azure has it."""
        listed = sorted(versions)
        begin = int(request.query.get("$skiptoken", "0"))
        end = begin + self.page_size
        member = "kid" if collection == "keys" else "id"
        items = [
            {member: f"{self.uri}/{collection}/{name}/{one}", "attributes": versions[one].attributes}
            for one in listed[begin:end]
        ]
        link = f"{self.uri}:443{request.path}?api-version={request.query['api-version']}&$skiptoken={end}"
        return self._answer({"value": items, "nextLink": link if end < len(listed) else None})

    def _answer(self, content: dict[str, Any]) -> Reply:
        changed = content if self.changes is None else self.changes(content)
        return Reply(200, {"Content-Type": _JSON}, json.dumps(changed).encode())

    def _add(
        self, collection: str, name: str, content: dict[str, Any], version: str | None, facts: dict[str, Any]
    ) -> str:
        version = version or secrets.token_hex(16)
        facts.setdefault("created", BEGAN + timedelta(minutes=next(self._minutes)))
        made = Version(content, **facts)
        self._objects.setdefault((collection, name.lower()), {})[version] = made
        if collection == "secrets":  # the certificate's own address knows the same versions
            self._objects.setdefault(("certificates", name.lower()), {})[version] = made
        return version


_JSON: Final = "application/json; charset=utf-8"


def _error(code: str, inner: str | None, message: str) -> bytes:
    error: dict[str, Any] = {"code": code, "message": message}
    if inner is not None:
        error["innererror"] = {"code": inner}
    return json.dumps({"error": error}).encode()


def _fail(code: int, error: str, inner: str | None, message: str, headers: dict[str, str] | None = None) -> Reply:
    return Reply(code, {"Content-Type": _JSON, **(headers or {})}, _error(error, inner, message))


# -- what a certificate's secret holds --------------------------------------------------------------------------------


def pem_secret(chain: Sequence[x509.Certificate], key: PrivateKey | None = None) -> str:
    """A chain as PEM, behind its private key if it is exportable."""
    private = CertifiedKey(chain[0], key).key_pem().decode() if key is not None else ""
    return private + "".join(pem(certificate).decode() for certificate in chain)


def pkcs12_secret(
    chain: Sequence[x509.Certificate],
    key: PrivateKey | None = None,
    *,
    encryption: KeySerializationEncryption | None = None,
) -> str:
    """A chain as PKCS #12 in base64; without a key, the certificates stand in their order."""
    if key is None:
        data = pkcs12.serialize_java_truststore(
            [pkcs12.PKCS12Certificate(certificate, None) for certificate in chain], encryption or NoEncryption()
        )
    else:
        assert isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey)
        data = pkcs12.serialize_key_and_certificates(None, key, chain[0], chain[1:], encryption or NoEncryption())
    return base64.b64encode(data).decode()


def json_web_key(key: PrivateKey, *, hsm: bool = False) -> dict[str, Any]:
    """A public key as Key Vault describes it."""
    kind = "-HSM" if hsm else ""
    operations = {"key_ops": ["sign", "verify"]}
    if isinstance(key, rsa.RSAPrivateKey):
        numbers = key.public_key().public_numbers()
        size = (key.key_size + 7) // 8
        return {"kty": f"RSA{kind}", "n": _base64url(numbers.n, size), "e": _base64url(numbers.e, 3), **operations}
    point = key.public_key().public_numbers()
    size = (key.curve.key_size + 7) // 8
    curve = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521", "secp256k1": "P-256K"}[key.curve.name]
    return {
        "kty": f"EC{kind}",
        "crv": curve,
        "x": _base64url(point.x, size),
        "y": _base64url(point.y, size),
        **operations,
    }


def _base64url(number: int, octets: int) -> str:
    return base64.urlsafe_b64encode(number.to_bytes(octets, "big")).rstrip(b"=").decode()
