"""The registry that everything is measured against, in a process of its own: `python -m bench.registry`.

    GET /v2/...       what an OCI registry answers, after a simulated round trip, within a simulated rate
    GET /token        tokens, if it was told to demand them
    POST /ocsp        good answers of the signer's authorities
    GET /control      what was counted since the last reset; the root of the second signer (--mixed)
    POST /control     {"rtt": s, "rate": requests/s, "burst": n, "retryAfter": s, "auth": bool, "reset": true,
                       "fault": "fine"|"slow"|"429"|"500"|"reset"|"truncated", "faultShare": 0..1, "slow": s}

Rules:
- Everything is made before the first request, so that what is measured is not the registry. With --mixed, images are
  signed when they are first asked for: by whom, or whether at all, follows from the number (kind_of).
- A fault meets a share of all requests but those to /control, drawn by chance.
- It counts by kind of request, and the longest run of requests of which each began after the one before it ended: the
  sequential depth, which no amount of parallelism hides.
- Plain HTTP on 127.0.0.1; it ends with its standard input.

What does not belong here: answers made up to deceive (tests/simulators/registry.py has those), measuring.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import random
import secrets
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, get_args
from urllib.parse import unquote

from aiohttp import web

from bench.processes import loop_factory
from bench.workload import REPOSITORY, Signer, digest_of, image_manifest, signed_images
from provider.demo import pki, signing
from provider.oci import MEDIA_TYPE_INDEX, MEDIA_TYPE_MANIFEST, Descriptor, Digest

Fault = Literal["fine", "slow", "429", "500", "reset", "truncated"]
FAULTS: Final[tuple[Fault, ...]] = get_args(Fault)
Kind = Literal["first", "second", "both", "unsigned", "stranger"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER with no time: what closes the socket sends RST


def kind_of(number: int) -> Kind:
    """Who signed image `number` of a registry with --mixed."""
    return KINDS[number % len(KINDS)]


class Registry:
    """Answers and counts.

    Args:
        images: how many to hold.
        algorithm: of the signer.
        revocable: the signer's certificate names this registry as OCSP responder.
        mixed: images are of all kinds, and signed when they are first asked for.
    """

    def __init__(self, images: int, algorithm: Any, *, revocable: bool, port: int, mixed: bool = False) -> None:
        leaf = pki.code_signing(ocsp_url=f"http://127.0.0.1:{port}/ocsp") if revocable else None
        self.signer = Signer.make(algorithm, leaf=leaf)
        self._second, self._stranger = (Signer.make(algorithm) if mixed else self.signer for _ in range(2))
        self.fault: Fault = "fine"
        self.fault_share = 1.0
        self.slow = 2.0
        self._chance = random.Random(0)
        self.rtt = 0.0
        self.rate = 0.0
        self.burst = 0.0
        self.retry_after = 0
        self.auth = False
        self._tokens: set[str] = set()
        self._answers: dict[str, tuple[str, bytes, str]] = {}  # path: media type, body, digest
        self._unmade: dict[str, int] = {}  # tag and digest: number
        if mixed:
            for number in range(images):
                self._unmade |= {f"v{number}": number, digest_of(number): number}
        else:
            for image in signed_images(self.signer, images):
                self._hold_signature(image.signature, image.signature_manifest, image.envelope)
                self._hold(image.number, image.manifest, image.image, [image.signature])
        self.reset()

    def _hold(self, number: int, manifest: bytes, image: Descriptor, signatures: Iterable[dict[str, object]]) -> None:
        base, digest = f"/v2/{REPOSITORY}", str(image.digest)
        held = (MEDIA_TYPE_MANIFEST, manifest, digest)
        self._answers[f"{base}/manifests/v{number}"] = held
        self._answers[f"{base}/manifests/{digest}"] = held
        index = {"schemaVersion": 2, "mediaType": MEDIA_TYPE_INDEX, "manifests": list(signatures)}
        self._answers[f"{base}/referrers/{digest}"] = (MEDIA_TYPE_INDEX, json.dumps(index).encode(), "")

    def _hold_signature(self, descriptor: dict[str, object], manifest: bytes, envelope: bytes) -> None:
        base, name, layer = f"/v2/{REPOSITORY}", str(descriptor["digest"]), str(Digest.of(envelope))
        self._answers[f"{base}/manifests/{name}"] = (MEDIA_TYPE_MANIFEST, manifest, name)
        self._answers[f"{base}/blobs/{layer}"] = ("application/octet-stream", envelope, layer)

    def _make(self, number: int) -> None:
        """Sign an image by its kind, and hold it."""
        manifest, image = image_manifest(number)
        signers: dict[Kind, tuple[Signer, ...]] = {
            "first": (self.signer,),
            "second": (self._second,),
            "both": (self.signer, self._second),
            "unsigned": (),
            "stranger": (self._stranger,),
        }
        descriptors = []
        for signer in signers[kind_of(number)]:
            envelope = signer.sign(image)
            chain, media_type = signer.leaf.chain, signing.EnvelopeFormat.JWS.value
            carrier = signing.signature_manifest(image, envelope, media_type, chain, created=signer.at)
            descriptor: dict[str, object] = {
                "mediaType": MEDIA_TYPE_MANIFEST,
                "digest": str(Digest.of(carrier)),
                "size": len(carrier),
                "artifactType": signing.ARTIFACT_TYPE,
            }
            self._hold_signature(descriptor, carrier, envelope)
            descriptors.append(descriptor)
        self._hold(number, manifest, image, descriptors)

    def _found(self, path: str) -> tuple[str, bytes, str] | None:
        if path not in self._answers:
            number = self._unmade.get(path.rpartition("/")[2])
            if number is not None:
                self._make(number)
        return self._answers.get(path)

    def reset(self) -> None:
        """Count from nothing, with a full bucket."""
        self.counts: Counter[str] = Counter()
        self.paths: Counter[str] = Counter()
        self.depth = 0
        self.at_once = self.most_at_once = 0
        self._level, self._filled = self.burst, time.monotonic()

    def configure(self, settings: dict[str, Any]) -> None:
        """Take what /control was told."""
        self.rtt = float(settings.get("rtt", self.rtt))
        self.rate = float(settings.get("rate", self.rate))
        self.burst = float(settings.get("burst", self.burst))
        self.retry_after = int(settings.get("retryAfter", self.retry_after))
        self.auth = bool(settings.get("auth", self.auth))
        fault = settings.get("fault", self.fault)
        if fault not in FAULTS:
            raise ValueError(f"no fault is called {fault!r}; there are {', '.join(FAULTS)}")
        self.fault = fault
        self.fault_share = float(settings.get("faultShare", self.fault_share))
        self.slow = float(settings.get("slow", self.slow))
        if settings.get("forgetTokens"):
            self._tokens.clear()
        if settings.get("reset"):
            self.reset()

    def counted(self) -> dict[str, Any]:
        """What was asked since the last reset."""
        return {
            "requests": sum(self.counts.values()),
            "kinds": dict(self.counts),
            "repeated": sum(number - 1 for number in self.paths.values()),
            "depth": self.depth,
            "mostAtOnce": self.most_at_once,
            "secondRoot": pki.pem(self._second.leaf.root).decode(),
        }

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        if request.path == "/control":
            if request.method == "POST":
                self.configure(json.loads(await request.read()))
            return web.json_response(self.counted())
        self.at_once += 1
        if self.at_once == 1:
            self.depth += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            if self.fault == "fine" or self._chance.random() >= self.fault_share:
                return await self._answer(request)
            self.counts[self.fault] += 1
            return await self._fail(request, self.fault)
        finally:
            self.at_once -= 1

    async def _fail(self, request: web.BaseRequest, fault: Fault) -> web.StreamResponse:
        """Answer one request as a registry in trouble does."""
        if fault == "429":
            fields = {"Retry-After": str(self.retry_after)} if self.retry_after else {}
            return web.Response(status=429, headers=fields)
        if fault == "500":
            return web.Response(status=500, body=b'{"errors":[{"code":"UNKNOWN"}]}')
        if fault == "slow":
            await asyncio.sleep(self.slow)
            return await self._answer(request)
        if fault == "truncated":
            answer = await self._answer(request)
            whole = answer.body if isinstance(answer, web.Response) and isinstance(answer.body, bytes) else b""
            part = web.StreamResponse(status=answer.status, headers=answer.headers)
            part.content_length = max(len(whole), 2)
            await part.prepare(request)
            await part.write(whole[: len(whole) // 2] or b"{")
        transport = request.transport
        if transport is not None:
            if fault == "reset":
                connection: socket.socket = transport.get_extra_info("socket")
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                transport.abort()
            else:
                transport.close()  # what was written still goes out
        return web.Response(status=500)  # nobody gets it

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.path
        kind = "token" if path == "/token" else "ocsp" if path.startswith("/ocsp") else path.rsplit("/", 2)[-2]
        if self.rtt:
            await asyncio.sleep(self.rtt)
        if kind == "token":
            self.counts[kind] += 1
            token = secrets.token_hex(16)
            self._tokens.add(token)
            return web.json_response({"token": token, "expires_in": 300})
        if kind == "ocsp":
            self.counts[kind] += 1
            return web.Response(body=self._revocation(path, await request.read()))
        if not self._admit():
            self.counts["429"] += 1
            fields = {"Retry-After": str(self.retry_after)} if self.retry_after else {}
            return web.Response(status=429, headers=fields)
        if self.auth and request.headers.get("Authorization", "").removeprefix("Bearer ") not in self._tokens:
            self.counts["401"] += 1
            scope = f"repository:{REPOSITORY}:pull"
            challenge = f'Bearer realm="http://{request.host}/token",service="bench",scope="{scope}"'
            return web.Response(status=401, headers={"WWW-Authenticate": challenge})
        self.counts[f"{request.method} {kind}"] += 1
        self.paths[f"{request.method} {path}"] += 1
        found = self._found(path)
        if found is None:
            return web.Response(status=404, body=b'{"errors":[{"code":"MANIFEST_UNKNOWN"}]}')
        media_type, body, digest = found
        fields = {"Content-Type": media_type}
        if digest:
            fields["Docker-Content-Digest"] = digest
        if kind == "referrers":
            fields["OCI-Filters-Applied"] = "artifactType"
        return web.Response(body=body, headers=fields)

    def _admit(self) -> bool:
        """Take a token out of the bucket, if there is one."""
        if not self.rate:
            return True
        now = time.monotonic()
        self._level = min(self.burst, self._level + (now - self._filled) * self.rate)
        self._filled = now
        if self._level < 1:
            return False
        self._level -= 1
        return True

    def _revocation(self, path: str, body: bytes) -> bytes:
        encoded = unquote(path.removeprefix("/ocsp").strip("/"))
        now = datetime.now(UTC)
        return pki.ocsp_answer(
            self.signer.issuer,
            body or base64.b64decode(encoded),
            known=[self.signer.leaf.certificate],
            revoked={},
            this_update=now - timedelta(minutes=1),
            next_update=now + timedelta(days=1),
        )


async def _serve(arguments: argparse.Namespace) -> None:
    server_port = arguments.port
    holder: list[Registry] = []

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        return await holder[0].handle(request)

    runner = web.ServerRunner(web.Server(handle, access_log=None), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", server_port).start()
    port = runner.addresses[0][1]
    holder.append(
        Registry(arguments.images, arguments.algorithm, port=port, revocable=arguments.revocable, mixed=arguments.mixed)
    )
    root = pki.pem(holder[0].signer.leaf.root).decode()
    print(json.dumps({"host": f"127.0.0.1:{port}", "root": root}), flush=True)
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(None, sys.stdin.read)  # ends with whoever started it
    await runner.cleanup()


def main() -> None:
    """Serve until standard input ends."""
    parser = argparse.ArgumentParser(prog="python -m bench.registry", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--images", type=int, default=100, help="signed images to hold, tagged v0 and so on")
    parser.add_argument("--algorithm", choices=["p256", "rsa3072", "p384"], default="p256", help="of the signer")
    parser.add_argument("--revocable", action="store_true", help="the signer's certificate names an OCSP responder")
    parser.add_argument("--mixed", action="store_true", help="of all kinds: first, second, both, unsigned, stranger")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; 0 takes a free one")
    arguments = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=loop_factory()) as loop:
        loop.run(_serve(arguments))


if __name__ == "__main__":
    main()
