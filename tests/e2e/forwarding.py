"""TCP forwarders on loopback: a gate in front of a registry that can jam, and a Service in front of pods.

Rules: bytes are moved as they are; a connection to nowhere ends as a network would end it.

What does not belong here: who listens behind them (images.py, node.py).
"""

from __future__ import annotations

import contextlib
import enum
import itertools
import random
import socket
import threading
from collections.abc import Iterator, Sequence
from typing import Final

from tests.e2e.processes import ADDRESS

CHUNK: Final = 65536  # bytes moved at a time
PORT: Final = 6001  # that the chart's Service and its pods listen on
Target = tuple[str, int]


def free_address() -> str:
    """An address of loopback on which nobody has the provider's port. Linux has all of 127.0.0.0/8."""
    while True:
        address = ".".join(["127", *(str(random.randint(1, 254)) for _ in range(3))])
        with contextlib.suppress(OSError), socket.create_server((address, PORT)):
            return address


class Connections:
    """The connections of a forwarder, each to a target that is chosen when it is made."""

    def __init__(self) -> None:
        self._open: set[socket.socket] = set()
        self._kept: set[socket.socket] = set()
        self._lock = threading.Lock()

    def keep(self, caller: socket.socket) -> None:
        """Hold a connection open that leads nowhere."""
        with self._lock:
            self._kept.add(caller)

    def connect(self, caller: socket.socket, target: Target) -> None:
        """Lead a connection to a target; one that cannot be reached ends it."""
        try:
            server = socket.create_connection(target)
        except OSError:
            caller.close()
            return
        with self._lock:
            self._open |= {caller, server}
        for source, sink in ((caller, server), (server, caller)):
            threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def drop(self) -> None:
        """End all of them."""
        with self._lock:
            dropped, kept = self._open | self._kept, self._kept
            self._open, self._kept = set(), set()
        for each in dropped:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for each in kept:  # the others are closed by who moves their bytes
            each.close()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        """Move bytes one way until either side ends; then both do."""
        with contextlib.suppress(OSError):
            while data := source.recv(CHUNK):
                sink.sendall(data)
        for each in (source, sink):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        with self._lock:
            self._open.discard(source)
        source.close()


class Passage(enum.Enum):
    """What a gate does with a connection."""

    OPEN = "open"  # leads to the registry
    SHUT = "shut"  # ends at once
    JAMMED = "jammed"  # is accepted and never answered


class Gate:
    """A forwarder in front of a registry, for registries that go away, hang and come back."""

    def __init__(self, target: str) -> None:
        host, _, port = target.partition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server((ADDRESS, 0))
        self._passage = Passage.OPEN
        self._connections = Connections()
        self.address = f"{ADDRESS}:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Gate:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._connections.drop()

    @contextlib.contextmanager
    def passage(self, passage: Passage) -> Iterator[None]:
        """Behave otherwise for the time of a `with` block; connections that are open end at either change."""
        self._change(passage)
        try:
            yield
        finally:
            self._change(Passage.OPEN)

    def _change(self, passage: Passage) -> None:
        self._passage = passage
        self._connections.drop()

    def _accept(self) -> None:
        while True:
            try:
                caller, _ = self._listener.accept()
            except OSError:
                return
            if self._passage is Passage.SHUT:
                caller.close()
            elif self._passage is Passage.JAMMED:
                self._connections.keep(caller)
            else:
                self._connections.connect(caller, self._target)


class Service:
    """What a cluster's Service is: an address that leads to one ready pod after the other, and refuses without any."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._targets: Sequence[Target] = ()
        self._diverted: Target | None = None
        self._turns = itertools.count()
        self._listener: socket.socket | None = None
        self._connections = Connections()

    def lead_to(self, targets: Sequence[Target]) -> None:
        """Lead new connections to these; those that are open stay until either side ends them."""
        self._targets = tuple(targets)
        wanted = bool(self._targets or self._diverted)
        if wanted and self._listener is None:
            self._listener = socket.create_server((self.address, PORT), backlog=128)
            threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()
        elif not wanted and self._listener is not None:
            listener, self._listener = self._listener, None
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()

    @contextlib.contextmanager
    def diverted(self, target: Target) -> Iterator[None]:
        """Lead all connections to somebody else for the time of a `with` block."""
        self._diverted = target
        self._connections.drop()
        try:
            yield
        finally:
            self._diverted = None
            self._connections.drop()

    def close(self) -> None:
        """Lead nowhere, and end what is open."""
        self.lead_to(())
        self._connections.drop()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                caller, _ = listener.accept()
            except OSError:
                return
            targets = (self._diverted,) if self._diverted else self._targets
            if targets:
                self._connections.connect(caller, targets[next(self._turns) % len(targets)])
            else:
                caller.close()
