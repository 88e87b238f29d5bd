"""What tests of assembly, components and parts share: an assembler, recorded doubles, manifests on disk."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from provider import components
from provider.assembly import Assembler
from provider.configuration.resources import Component
from provider.errors import Undecided
from provider.executor import Snapshot
from provider.interfaces import KeyMaterial
from provider.parts import Loading
from tests.unit.configuration.samples import GOOD, ROOT_PEM

MOMENT = 0.001  # seconds between tries of a key provider
FOLDERS = GOOD["Verifier"].replace(
    "    verificationCertStores:\n      ca:\n        certs: [ratify-notation-inline-cert-0]\n",
    "    verificationCerts: [certs]\n",
)


@asynccontextmanager
async def assembler(**settings: Any) -> AsyncIterator[tuple[Assembler, list[Snapshot]]]:
    """An assembler, and what it has published."""
    published: list[Snapshot] = []
    one = Assembler(published.append, **settings)
    try:
        yield one, published
    finally:
        await one.aclose()


async def eventually(condition: Callable[[], bool]) -> None:
    """Let others run until it is so."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is waited for sets no event
            await asyncio.sleep(MOMENT)


@dataclass(eq=False)
class Recorded:
    """A store or key provider that remembers what happens to it."""

    name: str
    script: list[BaseException | float] = field(default_factory=list)  # what refreshes raise, or how long they take
    refreshed: int = 0
    closed: bool = False
    given: KeyMaterial | None = field(default_factory=KeyMaterial)

    def material(self) -> KeyMaterial:
        if self.given is None:
            raise Undecided("KEYS_UNAVAILABLE", "nothing was ever loaded")
        return self.given

    async def refresh(self) -> None:
        self.refreshed += 1
        step = self.script.pop(0) if self.script else 0.0
        if isinstance(step, BaseException):
            raise step
        await asyncio.sleep(step)

    async def aclose(self) -> None:
        self.closed = True
        if self.name == "unclosable":
            raise RuntimeError("it will not close")


def scripted(monkeypatch: pytest.MonkeyPatch, *script: BaseException | float, refresh: float | None = None) -> Recorded:
    """Key providers of type inline are one double, whose refreshes follow the script."""
    double = Recorded("keys", list(script))

    def provider(attempt: Any, resource: Any, parameters: Any) -> Any:
        return attempt.take(
            (Component.KEY_PROVIDER.value, resource.label),
            parameters,
            lambda: double,
            load=Loading(resource, "spec.parameters", refresh),
        )

    monkeypatch.setitem(components.KEY_PROVIDERS, "inline", provider)  # type: ignore[arg-type]
    return double


def write_manifests(folder: Path, *texts: str) -> Path:
    """Write manifests into one file, beside a folder `certs` with the root that @ROOT@ stands for."""
    (folder / "certs").mkdir(exist_ok=True)
    (folder / "certs" / "root.pem").write_text(ROOT_PEM)
    (folder / "all.yaml").write_text("\n---\n".join(texts).replace("@ROOT@", json.dumps(ROOT_PEM)))
    return folder / "all.yaml"
