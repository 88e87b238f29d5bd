"""The registry that everything is measured against, in a process of its own: `python -m bench.registry`.

    GET /v2/...       what an OCI registry answers, after a simulated round trip, within a simulated rate
    GET /token        tokens, if it was told to demand them
    POST /ocsp        good answers of the signer's authorities
    GET /control      what was counted since the last reset
    POST /control     {"rtt": s, "rate": requests/s, "burst": n, "retryAfter": s, "auth": bool, "reset": true}

Rules:
- Everything is made before the first request, so that what is measured is not the registry.
- It counts by kind of request, and the longest run of requests of which each began after the one before it ended: the
  sequential depth, which no amount of parallelism hides.
- Plain HTTP on 127.0.0.1; it ends with its standard input.

What does not belong here: faults (tests/simulators/registry.py has those), measuring.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import secrets
import sys
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import unquote

from aiohttp import web

from bench.processes import loop_factory
from bench.workload import REPOSITORY, Signer, signed_images
from provider.demo import pki
from provider.oci import MEDIA_TYPE_INDEX, MEDIA_TYPE_MANIFEST


class Registry:
    """Answers and counts.

    Args:
        images: how many to hold.
        algorithm: of the signer.
        revocable: the signer's certificate names this registry as OCSP responder.
    """

    def __init__(self, images: int, algorithm: Any, *, revocable: bool, port: int) -> None:
        leaf = pki.code_signing(ocsp_url=f"http://127.0.0.1:{port}/ocsp") if revocable else None
        self.signer = Signer.make(algorithm, leaf=leaf)
        self.rtt = 0.0
        self.rate = 0.0
        self.burst = 0.0
        self.retry_after = 0
        self.auth = False
        self._tokens: set[str] = set()
        self._answers: dict[str, tuple[str, bytes, str]] = {}  # path: media type, body, digest
        for image in signed_images(self.signer, images):
            base = f"/v2/{REPOSITORY}"
            digest = str(image.image.digest)
            held = (MEDIA_TYPE_MANIFEST, image.manifest, digest)
            self._answers[f"{base}/manifests/v{image.number}"] = held
            self._answers[f"{base}/manifests/{digest}"] = held
            index = {"schemaVersion": 2, "mediaType": MEDIA_TYPE_INDEX, "manifests": [image.signature]}
            self._answers[f"{base}/referrers/{digest}"] = (MEDIA_TYPE_INDEX, json.dumps(index).encode(), "")
            name = str(image.signature["digest"])
            self._answers[f"{base}/manifests/{name}"] = (MEDIA_TYPE_MANIFEST, image.signature_manifest, name)
            layer = str(image.layer)
            self._answers[f"{base}/blobs/{layer}"] = ("application/octet-stream", image.envelope, layer)
        self.reset()

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
            return await self._answer(request)
        finally:
            self.at_once -= 1

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
        found = self._answers.get(path)
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
    holder.append(Registry(arguments.images, arguments.algorithm, revocable=arguments.revocable, port=port))
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
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; 0 takes a free one")
    arguments = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=loop_factory()) as loop:
        loop.run(_serve(arguments))


if __name__ == "__main__":
    main()
