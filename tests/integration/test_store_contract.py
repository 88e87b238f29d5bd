"""The contract of Store, kept by the oras store over real loopback TLS and by the OCI layout store on disk."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme

from provider.interfaces import Store
from provider.stores.oci_layout import OciLayoutStore
from provider.stores.oras import OrasStore
from provider.stores.profile import OrasStoreSettings, RegistryProfile
from tests.contracts.store import NAME, StoreContract
from tests.simulators.layout import write_layout
from tests.simulators.registry import RegistrySimulator


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


class OrasWorld:
    """A registry behind TLS; `with_api` chooses between the referrers API and the tag schema."""

    def __init__(self, authority: trustme.CA, *, with_api: bool) -> None:
        self.registry = RegistrySimulator(tls=authority)
        self.registry.referrers_api = with_api
        self._ca = authority.cert_pem.bytes()

    @asynccontextmanager
    async def open(self, *, max_referrers: int = 1000) -> AsyncIterator[tuple[Store, str]]:
        async with self.registry:
            profile = RegistryProfile(self.registry.host, ca_bundle=self._ca)
            store = OrasStore("store", OrasStoreSettings(profiles=(profile,), max_referrers=max_referrers))
            try:
                yield store, f"{self.registry.host}/{NAME}"
            finally:
                await store.aclose()


class TestOrasStoreWithReferrersApi(StoreContract):
    @pytest.fixture
    def world(self, authority: trustme.CA) -> OrasWorld:
        return OrasWorld(authority, with_api=True)


class TestOrasStoreWithTagSchema(StoreContract):
    @pytest.fixture
    def world(self, authority: trustme.CA) -> OrasWorld:
        return OrasWorld(authority, with_api=False)


class LayoutWorld:
    """A folder."""

    def __init__(self, folder: Path) -> None:
        self.registry = RegistrySimulator()
        self._folder = folder

    @asynccontextmanager
    async def open(self, *, max_referrers: int = 1000) -> AsyncIterator[tuple[Store, str]]:
        root = write_layout(self.registry.repository(NAME), self._folder)
        store = OciLayoutStore("store", root, max_referrers=max_referrers)
        try:
            yield store, f"registry.example.test/{NAME}"
        finally:
            await store.aclose()


class TestOciLayoutStore(StoreContract):
    @pytest.fixture
    def world(self, tmp_path: Path) -> LayoutWorld:
        return LayoutWorld(tmp_path)
