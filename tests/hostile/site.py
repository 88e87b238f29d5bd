"""A provider in its own process among registries, token services, responders and callers that mean it ill.

Every registry has a host of its own (a port) and a password of its own, so that one attack does not change the outcome
of the next, and a secret that turns up anywhere tells whose it was.

Rules: `denied` is what every attack has to come out as; a test adds nothing to it but the attack. Memory is that of the
server's process, from the kernel. Times are bounds many times the deadline, not measurements.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import re
import secrets
import textwrap
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from provider.demo import pki, signing
from provider.oci import Descriptor
from tests.hostile.process import MIB, ServeProcess, serve
from tests.simulators.gatekeeper import PKI, Gatekeeper, Reply
from tests.simulators.listener import Listener
from tests.simulators.registry import SIGNATURE, RegistrySimulator, TokenIssuer
from tests.simulators.revocation import RevocationServer

DEADLINE: Final = 1.0  # seconds that the server has to answer in
BOUND: Final = 15 * DEADLINE  # by then an answer is there, on the slowest machine
MAX_GROWTH: Final = 64 * MIB  # of the server's memory during one attack; objects are capped at 4 MiB
REGISTRIES: Final = 120  # more than there are attacks in a module
JWS: Final = "application/jose+json"
COSE: Final = "application/cose"
USER: Final = "robot"

NOW: Final = datetime.now(UTC)
DAY: Final = timedelta(days=1)
_NAME: Final = {"C": "US", "ST": "WA", "O": "Contoso", "CN": "release"}
_SENTENCE: Final = re.compile(r"^([A-Z_]+): ")


def _root(name: str) -> pki.CertifiedKey:
    return pki.issue(
        {**_NAME, "CN": name}, pki.authority(), issuer=None, not_before=NOW - 99 * DAY, not_after=NOW + 99 * DAY
    )


ROOT: Final = _root("root")
OTHER_ROOT: Final = _root("other")
CLOCK_ROOT: Final = _root("clock")


def signer(
    issuer: pki.CertifiedKey = ROOT,
    *,
    not_after: datetime = NOW + DAY,
    key: pki.PrivateKey | None = None,
    **locations: str | None,
) -> pki.CertifiedKey:
    """A signer with the trusted name. `locations` as pki.code_signing takes them."""
    extensions = pki.code_signing(**locations)
    return pki.issue(_NAME, extensions, issuer=issuer, not_before=NOW - 50 * DAY, not_after=not_after, key=key)


SIGNER: Final = signer()
STRANGER: Final = signer(OTHER_ROOT)

_MANIFESTS: Final = """\
apiVersion: config.ratify.deislabs.io/v1beta1
kind: Store
metadata: {{name: store-oras}}
spec:
  name: oras
  parameters:
    useHttp: true
    timeoutSeconds: 4
    authProvider: {{name: dockerConfig, configPath: "{docker_config}"}}
---
apiVersion: config.ratify.deislabs.io/v1beta1
kind: Verifier
metadata: {{name: verifier-notation}}
spec:
  name: notation
  artifactTypes: application/vnd.cncf.notary.signature
  parameters:
    verificationCertStores: {{ca: {{company: [root]}}, tsa: {{clock: [clock]}}}}
    revocation: {{allowPrivateAddresses: true, allowedHosts: ["{responder}"]}}
    trustPolicyDoc:
      version: "1.0"
      trustPolicies:
        - name: all
          registryScopes: ["*"]
          signatureVerification: {{level: strict, verifyTimestamp: afterCertExpiry}}
          trustStores: ["ca:company", "tsa:clock"]
          trustedIdentities: ["x509.subject: C=US, ST=WA, O=Contoso, CN=release"]
---
apiVersion: config.ratify.deislabs.io/v1beta1
kind: Policy
metadata: {{name: ratify-policy}}
spec:
  type: config-policy
  parameters: {{artifactVerificationPolicies: {{application/vnd.cncf.notary.signature: any}}}}
"""
_KEYS: Final = """\
apiVersion: config.ratify.deislabs.io/v1beta1
kind: KeyManagementProvider
metadata: {{name: {name}}}
spec:
  type: inline
  parameters:
    contentType: certificate
    value: |
{pem}"""


def push_envelope(registry: RegistrySimulator, image: Descriptor, envelope: bytes, media_type: str = JWS) -> Descriptor:
    """Attach an envelope, whatever it is, to an image in the repository `app`."""
    return registry.push_artifact("app", image, SIGNATURE, [(envelope, media_type)])


def sign(registry: RegistrySimulator, image: Descriptor, by: pki.CertifiedKey = SIGNER) -> Descriptor:
    """Attach a signature to an image in the repository `app`."""
    return push_envelope(registry, image, signing.sign(image, by, NOW))


@dataclass
class Site:
    """The server and everybody around it.

    Attributes:
        server: the server's process.
        gatekeeper: who asks it honestly.
        certificates: of the server and its callers.
        honest: a registry that works.
        responder: OCSP responder and CRLs that the configuration allows.
        bystanders: further listeners, none of which may be sent a secret.
        asked: what each registry was asked, as far as `unharmed` has looked at it.
    """

    server: ServeProcess
    gatekeeper: Gatekeeper
    certificates: PKI
    honest: RegistrySimulator
    responder: RevocationServer
    _registries: Sequence[RegistrySimulator]
    _unused: Iterator[RegistrySimulator]
    bystanders: list[Listener] = field(default_factory=list)
    asked: dict[str, list[str]] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def registry(self) -> RegistrySimulator:
        """A registry that nobody used yet. It demands a password that only it should see."""
        return next(self._unused)

    def image(self, registry: RegistrySimulator, *, signed: bool = True) -> tuple[str, Descriptor]:
        """Push an image to the repository `app`: its key and its descriptor."""
        image = registry.push_image("app", tag="v1", content=secrets.token_bytes(8))
        if signed:
            sign(registry, image)
        return f"{registry.host}/app:v1", image

    def honest_key(self) -> str:
        """An image that nobody asked for yet, and that is to be admitted."""
        name = f"honest{next(self._numbers)}"
        image = self.honest.push_image(name, tag="v1", content=name.encode())
        envelope = signing.sign(image, SIGNER, NOW)
        self.honest.push_artifact(name, image, SIGNATURE, [(envelope, JWS)])
        return f"{self.honest.host}/{name}:v1"

    async def admitted(self, key: str, *beside: str) -> Reply:
        """Ask until the key is admitted, and return the first answer. What a slow machine has not done by the deadline
        is done at one of the next attempts."""
        async with asyncio.timeout(BOUND):
            first = reply = await self.gatekeeper.ask(key, *beside)
            while key not in reply.admitted:
                assert decision(reply, key) == "DEADLINE_EXCEEDED", told(reply, key)
                await asyncio.sleep(0.1)
                reply = await self.gatekeeper.ask(key)
        return first

    async def denied(self, key: str, *codes: str, growth: int = MAX_GROWTH) -> str:
        """The attack comes to nothing: a denial for this cause, in time and in bounds; an honest image in the same
        request and the next one are admitted, and no secret was seen where it does not belong.

        Args:
            key: what the attacker's image is called.
            codes: why it has to be denied; several where it is a matter of speed.
            growth: bytes that the server's memory may grow by meanwhile.

        Returns:
            The answer that named the code, as text.
        """
        before = self.server.memory()
        self.server.forget_peak()
        reply = await self.admitted(self.honest_key(), key)
        async with asyncio.timeout(BOUND):
            while decision(reply, key) == "DEADLINE_EXCEEDED" and "DEADLINE_EXCEEDED" not in codes:
                assert key not in reply.admitted
                await asyncio.sleep(0.1)
                reply = await self.gatekeeper.ask(key)
        assert reply.status == 200
        assert decision(reply, key) in codes, told(reply, key)
        await self.unharmed()
        assert self.server.peak() - before <= growth
        return reply.body.decode()

    async def unharmed(self) -> None:
        """The next honest image is admitted, the server is well, its log is a log, and no secret has leaked."""
        await self.admitted(self.honest_key())
        assert self.server.running
        assert await self.server.probe("/healthz") == 200
        for line in self.server.log:
            entry = json.loads(line)
            assert "unexpectedly" not in entry["msg"], line
            assert "Traceback" not in line
        self.check_secrets()

    def check_secrets(self) -> None:
        """Every secret was seen by its own registry only, and not by the log."""
        owners = {registry.host: secrets_of(registry) for registry in (*self._registries, self.honest)}
        said = "".join(self.server.log)
        assert [secret for known in owners.values() for secret in known if secret in said] == []
        self.server.log.clear()
        for listener in (*self._registries, self.honest, *self.bystanders):
            strange = {secret for host, known in owners.items() if host != listener.host for secret in known}
            for request in listener.requests:
                seen = f"{request.path}{dict(request.query)}{list(request.headers.items())}{request.body!r}"
                assert [secret for secret in strange if secret in seen] == [], (listener.host, request.line)
            self.asked.setdefault(listener.host, []).extend(listener.lines)
            listener.requests.clear()
        for asked in self.responder.log:
            assert "authorization" not in asked.headers
        self.responder.log.clear()


def secrets_of(registry: RegistrySimulator) -> set[str]:
    """What only this registry may see: the password as it is sent and as it is, and the tokens."""
    passwords = registry.accounts | registry.issuer.accounts
    pairs = {base64.b64encode(f"{user}:{password}".encode()).decode() for user, password in passwords.items()}
    return pairs | set(passwords.values()) | set(registry.issuer.issued)


def told(reply: Reply, key: str) -> str:
    """What an answer says of a key."""
    return f"{reply.items.get(key)} {reply.system_error}"


def decision(reply: Reply, key: str) -> str:
    """What became of a key: `admitted`, or the code of its denial."""
    item: dict[str, Any] | None = reply.items.get(key)
    if item is not None and "error" in item:
        return str(item["error"]).partition(":")[0]
    if item is not None:
        return "admitted" if item["value"]["isSuccess"] else str(item["value"]["code"])
    for sentence in reply.system_error.split(" | "):
        named = _SENTENCE.match(sentence)
        if named and key in sentence:
            return named[1]
    return f"unanswered: {reply.system_error}"


@contextlib.asynccontextmanager
async def open_site(folder: Path) -> AsyncIterator[Site]:
    """Start everything.

    Args:
        folder: an empty folder.
    """
    certificates = PKI()
    certificates.write_serving_files(folder)
    certificates.write_client_ca(folder / "ca.crt")
    async with contextlib.AsyncExitStack() as stack:
        registries = [await stack.enter_async_context(RegistrySimulator()) for _ in range(REGISTRIES + 1)]
        responder = await stack.enter_async_context(RevocationServer())
        for registry in registries:
            account = {USER: f"password-{secrets.token_hex(8)}"}
            registry.auth, registry.accounts = "basic", account
            registry.issuer = TokenIssuer(accounts=account, anonymous=False)
        _write_configuration(folder, registries, responder)
        server = await stack.enter_async_context(
            serve(
                *("--config", str(folder / "config"), "--cert-dir", str(folder), "--log-level", "debug"),
                *("--client-ca-file", str(folder / "ca.crt"), "--verify-deadline", str(DEADLINE)),
                *("--mutate-deadline", str(DEADLINE), "--verification-timeout", str(5 * DEADLINE)),
            )
        )
        gatekeeper = await stack.enter_async_context(Gatekeeper(server.port, certificates.client_context()))
        honest, *others = registries
        yield Site(server, gatekeeper, certificates, honest, responder, others, iter(others))


def _write_configuration(folder: Path, registries: Sequence[RegistrySimulator], responder: RevocationServer) -> None:
    auths = {}
    for registry in registries:
        pair = f"{USER}:{registry.accounts[USER]}".encode()
        auths[registry.host] = {"auth": base64.b64encode(pair).decode()}
    docker_config = folder / "docker.json"
    docker_config.write_text(json.dumps({"auths": auths}))
    config = folder / "config"
    config.mkdir()
    manifests = [_MANIFESTS.format(docker_config=docker_config, responder=f"127.0.0.1:{responder.port}")]
    for name, root in (("root", ROOT), ("clock", CLOCK_ROOT)):
        manifests.append(_KEYS.format(name=name, pem=textwrap.indent(pki.pem(root.certificate).decode(), " " * 6)))
    (config / "all.yaml").write_text("---\n".join(manifests))
