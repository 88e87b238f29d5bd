"""Stores opened on simulators: what the integration tests of stores share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from provider.interfaces import Credential
from provider.oci import Descriptor, Reference, Subject
from provider.stores.oras import OrasStore
from provider.stores.profile import OrasStoreSettings, RegistryProfile
from tests.simulators.registry import SIGNATURE, RegistrySimulator

QUICK = OrasStoreSettings(
    timeout_seconds=5.0, attempt_timeout_seconds=2.0, connect_timeout_seconds=2.0, retry_backoff_seconds=0.001
)


class Credentials:
    """Credentials by registry, with a log of who asked."""

    def __init__(self, by_domain: dict[str, Credential]) -> None:
        self.by_domain = by_domain
        self.asked: list[tuple[str, str]] = []

    async def credential(self, domain: str, path: str) -> Credential | None:
        self.asked.append((domain, path))
        return self.by_domain.get(domain)


class Clock:
    """Monotonic seconds that go on when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def oras_store(
    *registries: RegistrySimulator,
    settings: OrasStoreSettings = QUICK,
    profile: dict[str, Any] | None = None,
    **more: Any,
) -> AsyncIterator[OrasStore]:
    """A store for plain HTTP registries, unless a profile says more.

    Args:
        registries: simulators that get a profile.
        settings: limits.
        profile: fields of their profiles; plain_http by default.
        more: further arguments of OrasStore.
    """
    fields = {"plain_http": True, **(profile or {})}
    profiles = tuple(RegistryProfile(registry.host, **fields) for registry in registries)
    store = OrasStore("store", replace(settings, profiles=profiles), **more)
    try:
        yield store
    finally:
        await store.aclose()


def subject_of(registry: RegistrySimulator, repository: str, image: Descriptor) -> Subject:
    """An image by digest, as `resolve` gives it."""
    return Subject(Reference.parse(f"{registry.host}/{repository}@{image.digest}"), image.digest)


async def listed(store: OrasStore, subject: Subject, artifact_type: str | None = SIGNATURE) -> list[Descriptor]:
    """All that the store lists."""
    return [entry async for entry in store.list_referrers(subject, artifact_type)]
