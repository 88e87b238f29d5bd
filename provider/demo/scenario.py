"""The demo from end to end: a registry, an authority, the real server, and pods that Gatekeeper would be asked about.

    open_demo: PKI -> registry and revocation end points -> images pushed -> manifests written -> server with mTLS
    rows:      pod -> shipped Rego: which keys? -> HTTPS POST, as Gatekeeper's -> shipped Rego: which violations? -> row

Rules:
- What decides is the product: configuration read from files, assembled, served over TLS 1.3 with client certificates.
  Only what stands around it is played.
- Everything listens on loopback, keys live in a temporary folder that only its owner can read, and both end with the
  context.
- A row knows what should have come of it, so that a demo that goes wrong says so.

What does not belong here: rows of images and pods (images.py), how a table looks (cli/).
"""

from __future__ import annotations

import json
import socket
import ssl
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import aiohttp

from provider.assembly import Assembler
from provider.configuration.manifests import load
from provider.demo import pki
from provider.demo.admission import (
    PROVIDER,
    Constraint,
    ExternalData,
    Template,
    denial,
    policies_folder,
    review_of,
)
from provider.demo.configuration import Addresses, write_manifests
from provider.demo.images import IMAGES, PODS, DemoImage, DemoPod, build, establish, pod_manifest, reference
from provider.demo.publishing import publish
from provider.demo.registry import EmbeddedRegistry
from provider.demo.revocation_service import RevocationService
from provider.errors import UsageError
from provider.executor import Executor
from provider.gatekeeper.protocol import API_VERSION, REQUEST_KIND
from provider.gatekeeper.server import VERIFY_PATH, Server
from provider.gatekeeper.settings import ListenerSettings, ServerSettings
from provider.gatekeeper.tls import ServingTLS, TLSFiles
from provider.parts import Environment
from provider.telemetry import Metrics

ADDRESS: Final = "127.0.0.1"
GATEKEEPER_NAME: Final = "gatekeeper-webhook-service.gatekeeper-system.svc"  # what Gatekeeper's certificate says
PROVIDER_TIMEOUT_SECONDS: Final = 5.0  # of the Provider object in the chart; Gatekeeper gives up then
TLS_VALIDITY: Final = timedelta(days=2)  # of the throw-away TLS certificates

Progress = Callable[[str], None]


def utc_now() -> datetime:
    """The demo's moment."""
    return datetime.now(UTC)


def no_progress(_step: str) -> None:
    """Tells nobody."""


@dataclass(frozen=True, slots=True)
class DemoSettings:
    """What may be chosen.

    Attributes:
        registry_port: port of the embedded registry; 0 takes a free one.
        server_port: port of the verification server; 0 takes a free one.
        folder: where manifests, roots and throw-away TLS files are written and left; None takes a temporary folder.
    """

    registry_port: int = 0
    server_port: int = 0
    folder: Path | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """What came of one pod.

    Attributes:
        pod: name of the pod.
        images: image references, each once, in the order of the containers.
        admitted: the decision under the effect Deny.
        compliant: the decision under the effect Audit, which lets the pod in either way.
        message: what kubectl prints under Deny.
        violations: the messages without kubectl's words; what an audit reports.
        why: what there is to see.
        expected: what should have come of it: the code for each image that must be refused.
        as_expected: whether it did.
    """

    pod: str
    images: tuple[str, ...]
    admitted: bool
    compliant: bool
    message: str
    violations: tuple[str, ...]
    why: str
    expected: tuple[tuple[str, str], ...]
    as_expected: bool


class Demo:
    """A running demo; made by open_demo.

    Attributes:
        registry: the embedded registry.
        responder: the revocation end points.
        config: folder of the manifests that the server runs on.
        tls: folder with ca.crt, client.crt and client.key, for calls by hand.
        server_url: where Gatekeeper would send its requests.
        references: image references by the names of the images.
    """

    def __init__(
        self,
        *,
        registry: EmbeddedRegistry,
        responder: RevocationService,
        folder: Path,
        server_url: str,
        references: dict[str, str],
        session: aiohttp.ClientSession,
    ) -> None:
        self.registry = registry
        self.responder = responder
        self.config = folder / "config"
        self.tls = folder / "tls"
        self.server_url = server_url
        self.references = references
        self._session = session
        policies = policies_folder()
        self._template = Template.parse((policies / "template.yaml").read_bytes())
        self._constraint = Constraint.parse((policies / "samples" / "constraint.yaml").read_bytes())

    async def rows(self, pods: tuple[DemoPod, ...] = PODS) -> AsyncIterator[Row]:
        """Have each pod reviewed, one after the other.

        Raises:
            ConfigurationError, Undecided: the shipped policies are missing or cannot be evaluated.
        """
        for pod in pods:
            yield await self._row(pod)

    async def review(self, manifest: dict[str, Any]) -> tuple[str, ...]:
        """Do with a manifest what Gatekeeper does at its creation.

        Returns:
            The violations' messages; none for an object that the constraint does not match.

        Raises:
            Undecided: INTERNAL, when the Rego cannot be evaluated.
        """
        review = review_of(manifest)
        if not self._constraint.matches(review):
            return ()
        keys = self._template.keys(review)
        answer = await self.ask(keys) if keys else ExternalData((), (), 0, "")
        return self._template.violations(review, answer)

    async def ask(self, keys: tuple[str, ...]) -> ExternalData:
        """Send keys to the server as Gatekeeper does, and give what its builtin would return."""
        body = {"apiVersion": API_VERSION, "kind": REQUEST_KIND, "request": {"keys": list(keys)}}
        try:
            async with self._session.post(
                self.server_url,
                json=body,
                headers={"User-Agent": "Go-http-client/1.1"},
                timeout=aiohttp.ClientTimeout(total=PROVIDER_TIMEOUT_SECONDS),
            ) as response:
                return ExternalData.from_response(response.status, await response.read())
        except TimeoutError:
            cause = "context deadline exceeded"
        except aiohttp.ClientError as error:
            cause = str(error)
        return ExternalData.failed(f'failed to send external data request: Post "{self.server_url}": {cause}')

    def commands(self) -> tuple[str, ...]:
        """Lines for a shell, to try the running servers by hand."""
        tls = f"--cacert {self.tls}/ca.crt --cert {self.tls}/client.crt --key {self.tls}/client.key"
        image = self.references["unsigned"]
        body = {"apiVersion": API_VERSION, "kind": REQUEST_KIND, "request": {"keys": [image]}}
        return (
            f"curl --tlsv1.3 {tls} --data '{json.dumps(body)}' {self.server_url}",
            f"curl http://{image.partition('/')[0]}/v2/{image.partition('/')[2].partition(':')[0]}/tags/list",
            f"countersign verify --config {self.config} {image}",
        )

    async def _row(self, pod: DemoPod) -> Row:
        manifest = pod_manifest(pod, self.references)
        violations = await self.review(manifest)
        wanted = {entry.name: entry.code for entry in IMAGES if entry.code}
        expected = tuple((self.references[name], wanted[name]) for name in sorted(pod.images) if name in wanted)
        name = manifest["metadata"]["name"]
        return Row(
            pod=name,
            images=tuple(self.references[image] for image in pod.images),
            admitted=not violations,
            compliant=not violations,
            message=denial(self._constraint.name, violations) if violations else f"pod/{name} created",
            violations=violations,
            why=pod.why,
            expected=expected,
            as_expected=is_as_expected(violations, expected),
        )


def is_as_expected(violations: tuple[str, ...], expected: tuple[tuple[str, str], ...]) -> bool:
    """Whether there is one violation for each refusal, with the image and the code, and no other.

    Args:
        violations: messages of the violations.
        expected: image and code of each refusal.
    """
    heads = sorted(f"Subject failed verification: {image}: {code}" for image, code in expected)
    return len(heads) == len(violations) and all(
        text == head or text.startswith((f"{head}: ", f"{head} ("))
        for text, head in zip(sorted(violations), heads, strict=True)
    )


async def run_demo(progress: Progress = no_progress, settings: DemoSettings | None = None) -> tuple[Row, ...]:
    """Run the demo once and give all rows. See open_demo for what is raised."""
    async with open_demo(progress, settings) as demo:
        return tuple([row async for row in demo.rows()])


@asynccontextmanager
async def open_demo(
    progress: Progress = no_progress,
    settings: DemoSettings | None = None,
    *,
    clock: Callable[[], datetime] = utc_now,
) -> AsyncIterator[Demo]:
    """Start everything; it runs until the context ends.

    Args:
        progress: told each step in words.
        settings: what may be chosen.
        clock: the time at which certificates are made and decisions taken (aware, UTC).

    Raises:
        UsageError: a port cannot be listened on.
        CountersignError: something of the demo does not work; it should.
    """
    settings = settings or DemoSettings()
    async with AsyncExitStack() as stack:
        at = clock()
        folder = settings.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="countersign-demo-")))
        responder = await stack.enter_async_context(RevocationService(clock, address=ADDRESS))
        registry = await stack.enter_async_context(EmbeddedRegistry(address=ADDRESS, port=settings.registry_port))
        progress(f"an OCI registry listens on {registry.host}")
        progress(f"an OCSP responder and a CRL are at http://{responder.host}")
        authorities = establish(at, ocsp_url=responder.ocsp_url, crl_url=responder.crl_url)
        known = [key.certificate for key in authorities.signers.values()]
        responder.publish(authorities.issuer, known, authorities.revoked)
        pushes = build(authorities, at)
        await publish(registry.host, pushes)
        pushed = sum(entry.pushed for entry in IMAGES)
        progress(f"{pushed} images and {len(pushes) - pushed} signatures were pushed")
        addresses = Addresses(registry.host, stack.enter_context(_closed_port()), responder.host)
        _make_folder(folder / "config")
        write_manifests(folder / "config", addresses, authorities)
        client = _write_tls_files(folder / "tls", at)
        server = await _serve(stack, folder, settings.server_port, clock)
        url = f"https://{ADDRESS}:{server.port}{VERIFY_PATH}"
        progress(f"Countersign answers at {url}, to clients with Gatekeeper's certificate")
        session = await stack.enter_async_context(
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=client), trust_env=False)
        )
        yield Demo(
            registry=registry,
            responder=responder,
            folder=folder,
            server_url=url,
            references={entry.name: _reference(entry, addresses) for entry in IMAGES},
            session=session,
        )


def _reference(entry: DemoImage, addresses: Addresses) -> str:
    return reference(entry, addresses.registry, addresses.closed)


async def _serve(stack: AsyncExitStack, folder: Path, port: int, clock: Callable[[], datetime]) -> Server:
    """The product: configuration, executor and server as `countersign serve` runs them."""
    resources = load(folder / "config")
    executor = Executor(clock=clock)
    assembler = Assembler(executor.use, environment=Environment())
    stack.push_async_callback(assembler.aclose)
    stack.push_async_callback(executor.aclose)
    await assembler.apply(resources)
    metrics = Metrics()
    files = TLSFiles.in_folder(folder / "tls", client_cas=[folder / "tls" / "client-ca.crt"])
    server = Server(
        executor,
        executor,
        listener=ListenerSettings(host=ADDRESS, port=port, allowed_client_names=frozenset({GATEKEEPER_NAME})),
        settings=ServerSettings(settle_seconds=0.0),
        tls=ServingTLS(files, metrics=metrics),
        metrics=metrics,
        remembered=executor.remembered,
        clock=clock,
    )
    await server.start()
    stack.push_async_callback(server.stop)
    return server


def _make_folder(path: Path) -> None:
    """Make a folder, private as keys will be in one.

    Raises:
        UsageError: USAGE, it cannot be made, or is there already: nothing of anybody's is written over.
    """
    try:
        path.mkdir(mode=0o700, parents=True)
    except OSError as error:
        raise UsageError("USAGE", f"the folder {path} cannot be made: {error.strerror}") from None


def _write_tls_files(folder: Path, at: datetime) -> ssl.SSLContext:
    """Make serving and client certificates; give what Gatekeeper would call with."""
    _make_folder(folder)

    def issue(subject: dict[str, str], extensions: pki.Extensions, issuer: pki.CertifiedKey | None) -> pki.CertifiedKey:
        begin, end = at - timedelta(hours=1), at + TLS_VALIDITY
        return pki.issue(subject, extensions, issuer=issuer, not_before=begin, not_after=end)

    serving_ca = issue({"O": "Countersign demo", "CN": "serving"}, pki.authority(), None)
    client_ca = issue({"O": "gatekeeper", "CN": "gatekeeper-ca"}, pki.authority(), None)
    serving = issue({"CN": PROVIDER}, pki.tls_server([ADDRESS, "localhost"]), serving_ca)
    caller = issue({"CN": GATEKEEPER_NAME}, pki.tls_client([GATEKEEPER_NAME]), client_ca)
    contents = {
        "ca.crt": pki.pem(serving_ca.certificate),
        "client-ca.crt": pki.pem(client_ca.certificate),
        "tls.crt": serving.chain_pem(),
        "tls.key": serving.key_pem(),
        "client.crt": caller.chain_pem(),
        "client.key": caller.key_pem(),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    context = ssl.create_default_context(cafile=folder / "ca.crt")
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(folder / "client.crt", folder / "client.key")
    return context


@contextmanager
def _closed_port() -> Iterator[str]:
    """A port of loopback that is taken and does not listen, so that connecting to it fails at once."""
    with socket.socket() as taken:
        taken.bind((ADDRESS, 0))
        yield f"{ADDRESS}:{taken.getsockname()[1]}"
