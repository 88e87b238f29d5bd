"""The floor under the warm path: an aiohttp server on uvloop that answers from finished fragments, and nothing else.

    python -m bench.reference --port PORT --folder DIR [--mtls]

It reads the JSON of a request, looks each key up in a dict, joins what it finds and sends it: no limits, no deadlines,
no counters, no log, no checks. That is what an answer costs at least on this library. It must never serve anything
real.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import ssl
import sys
from pathlib import Path
from typing import Final

from aiohttp import web

from bench.processes import loop_factory

_HEAD: Final = b'{"apiVersion":"externaldata.gatekeeper.sh/v1beta1","kind":"ProviderResponse","response":{"items":['
_VALUE: Final = b'{"version":"0.2.0","isSuccess":true,"verifierReports":[],"padding":"%b"}'


async def _serve(port: int, context: ssl.SSLContext, value_bytes: int) -> None:
    value = _VALUE % (b"x" * max(0, value_bytes - len(_VALUE) + 2))
    fragments: dict[str, bytes] = {}

    async def handle(request: web.BaseRequest) -> web.Response:
        keys = json.loads(await request.read())["request"]["keys"]
        for key in keys:
            if key not in fragments:
                fragments[key] = b'{"key":' + json.dumps(key).encode() + b',"value":' + value + b"}"
        body = _HEAD + b",".join([fragments[key] for key in keys]) + b"]}}"
        return web.Response(body=body, content_type="application/json")

    runner = web.ServerRunner(web.Server(handle, access_log=None), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, ssl_context=context).start()
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)  # ends with whoever started it
    await runner.cleanup()


def main() -> None:
    """Serve until standard input ends."""
    parser = argparse.ArgumentParser(prog="python -m bench.reference", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--port", type=int, required=True, help="port on 127.0.0.1")
    parser.add_argument("--folder", type=Path, required=True, help="folder with tls.crt and tls.key")
    parser.add_argument("--value-bytes", type=int, default=670, help="length of the value of each item")
    parser.add_argument("--mtls", action="store_true", help="demand certificates of client-ca.crt")
    arguments = parser.parse_args()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(arguments.folder / "tls.crt", arguments.folder / "tls.key")
    if arguments.mtls:
        context.load_verify_locations(arguments.folder / "client-ca.crt")
        context.verify_mode = ssl.CERT_REQUIRED
    with contextlib.suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=loop_factory()) as loop:
        loop.run(_serve(arguments.port, context, arguments.value_bytes))


if __name__ == "__main__":
    main()
