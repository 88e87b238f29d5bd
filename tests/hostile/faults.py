"""Faults that are about size: answers that never end, each in another place of an HTTP message."""

from __future__ import annotations

import asyncio
import functools
import zlib
from typing import Final

from aiohttp import web

from tests.hostile.process import MIB
from tests.simulators.listener import Fault, Reply

_BACKLOG: Final = 256 * 1024  # bytes that wait to be sent; the kernel holds more
BOMB_BYTES: Final = 256 * MIB  # what the bomb unpacks to; it has a thousandth of it


def flood(start: bytes, unit: bytes) -> Fault:
    """Send `start`, and then `unit` for as long as the other side takes it."""

    async def apply(request: web.Request, reply: Reply) -> web.StreamResponse:
        transport = request.transport
        assert transport is not None
        transport.write(start)
        while not transport.is_closing():
            if transport.get_write_buffer_size() < _BACKLOG:
                transport.write(unit)
            await asyncio.sleep(0.001)
        return web.Response()

    return apply


def drip(start: bytes, unit: bytes, *, seconds: float = 0.05) -> Fault:
    """Send `start`, and then `unit` every now and then."""

    async def apply(request: web.Request, reply: Reply) -> web.StreamResponse:
        transport = request.transport
        assert transport is not None
        transport.write(start)
        while not transport.is_closing():
            transport.write(unit)
            await asyncio.sleep(seconds)
        return web.Response()

    return apply


@functools.cache
def gzip_bomb() -> bytes:
    """BOMB_BYTES of zeros as gzip."""
    packer = zlib.compressobj(1, wbits=31)
    packed = [packer.compress(bytes(MIB)) for _ in range(BOMB_BYTES // MIB)]
    return b"".join((*packed, packer.flush()))


def bomb() -> Fault:
    """Answer with the bomb."""

    async def apply(request: web.Request, reply: Reply) -> Reply:
        return Reply(200, {**reply.headers, "Content-Encoding": "gzip"}, gzip_bomb())

    return apply
