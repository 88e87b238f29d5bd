"""The floor under a cold image: `python -m bench.gets HOST IMAGES` prints the processor time of four GETs, in seconds.

aiohttp's client on uvloop, 10 images at a time, every body read and thrown away. Connections are opened before that.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import aiohttp

from bench.processes import loop_factory
from bench.workload import REPOSITORY, digest_of


async def _get(session: aiohttp.ClientSession, url: str) -> bytes:
    async with session.get(url) as response:
        return await response.read()


async def _image(session: aiohttp.ClientSession, base: str, number: int) -> None:
    await _get(session, f"{base}/manifests/v{number}")
    index = json.loads(await _get(session, f"{base}/referrers/{digest_of(number)}"))
    manifest = json.loads(await _get(session, f"{base}/manifests/{index['manifests'][0]['digest']}"))
    await _get(session, f"{base}/blobs/{manifest['layers'][0]['digest']}")


async def _measure(host: str, images: int) -> float:
    base = f"http://{host}/v2/{REPOSITORY}"
    for number in range(images):
        digest_of(number)
    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(_image(session, base, number) for number in range(10)))
        before = time.process_time()
        for first in range(0, images, 10):
            await asyncio.gather(*(_image(session, base, number) for number in range(first, min(first + 10, images))))
        return (time.process_time() - before) / images


def main() -> None:
    """Print seconds of processor time per image."""
    with asyncio.Runner(loop_factory=loop_factory()) as loop:
        print(loop.run(_measure(sys.argv[1], int(sys.argv[2]))))


if __name__ == "__main__":
    main()
