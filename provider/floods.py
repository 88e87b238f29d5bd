"""Connections that bear floods: an answer without end is cut off while it is being read.

Rules:
- The event loop is everybody's, and a time limit comes too late for what is parsed in one go: what comes in is parsed
  in slices, and counted after each.
- One answer may have so many heads and so many bytes with its framing; beyond that its connection is aborted and who
  reads it gets an error.

What does not belong here: how much of a body is kept (up to who reads it), where connections lead (egress.py).
Source: RFC 9110 section 15.2 (informational answers, of which there may be any number).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

from aiohttp import TCPConnector
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError

MAX_HEADS: Final = 16  # answers to one request, all but the last of them informational (1xx); servers send one or two
MAX_WIRE_BYTES: Final = 64 * 1024 * 1024  # of one answer with its framing; the largest wanted is a CRL of 32 MiB
_SLICE_BYTES: Final = 16 * 1024  # parsed at once: some 700 of the smallest heads, 5 ms


class FloodGuardedConnector(TCPConnector):
    """A connector whose connections bear floods."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        # aiohttp has no public place for this; test_egress.py floods a connection, to see that it still is this one.
        make: Callable[..., ResponseHandler] = _FloodGuard
        self._factory = partial(make, loop=self._loop)


class _FloodGuard(ResponseHandler):
    """Reads the answers of one connection, and ends it when there is no end to them.

    aiohttp queues every answer that it parses, asked for or not, and waits for the last after any number of `100
    Continue`; a single read of uvloop's can bring it several megabytes, which are 300,000 of them and five seconds.
    """

    _heads = 0
    _bytes = 0
    _ended = False

    def set_response_params(self, **params: Any) -> None:
        """A request begins."""
        self._heads = self._bytes = 0
        super().set_response_params(**params)

    def feed_data(self, data: Any, size: int = 0) -> None:
        """A head was parsed."""
        self._heads += 1
        if self._heads <= MAX_HEADS:
            super().feed_data(data, size)

    def data_received(self, data: bytes) -> None:
        """Bytes came in."""
        for start in range(0, len(data), _SLICE_BYTES) or (0,):
            if self._ended:
                return
            part = data[start : start + _SLICE_BYTES]
            self._bytes += len(part)
            super().data_received(part)
            if self._heads > MAX_HEADS or self._bytes > MAX_WIRE_BYTES:
                self._end()

    def _end(self) -> None:
        self._ended = True
        self.set_exception(HttpProcessingError(code=400, message="there is no end to the answer"))
        if self.transport is not None:
            self.transport.abort()
