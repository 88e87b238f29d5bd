"""The oras store and the TLS files of a registry's profile: what changes on disk counts without a restart."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trustme
from structlog.testing import capture_logs

from provider.errors import Undecided
from provider.oci import Descriptor
from provider.stores.oras import OrasStore
from provider.stores.transport import FILE_CHECK_SECONDS
from tests.simulators.registry import SIGNATURE, BlobStorageSimulator, RegistrySimulator
from tests.simulators.stores import Clock, listed, oras_store, subject_of

NAME = "team/app"


@pytest.fixture(scope="module")
def authorities() -> tuple[trustme.CA, trustme.CA]:
    return trustme.CA(), trustme.CA()


@pytest.fixture
async def registry(authorities: tuple[trustme.CA, trustme.CA]) -> AsyncIterator[RegistrySimulator]:
    """A registry whose certificate is of the first authority."""
    async with RegistrySimulator(tls=authorities[0]) as simulator:
        yield simulator


@pytest.fixture
def ca_file(tmp_path: Path) -> Path:
    return tmp_path / "ca.crt"


def put(path: Path, *authorities: trustme.CA) -> None:
    """Put a file in place as the kubelet does, at once."""
    fresh = path.with_suffix(".new")
    fresh.write_bytes(b"".join(authority.cert_pem.bytes() for authority in authorities))
    fresh.rename(path)


def profile(ca_file: Path) -> dict[str, object]:
    return {"plain_http": False, "ca_file": ca_file}


async def read(store: OrasStore, registry: RegistrySimulator, image: Descriptor) -> int:
    return len(await listed(store, subject_of(registry, NAME, image)))


async def test_a_new_authority_in_the_file_is_trusted_and_an_old_one_no_longer(
    registry: RegistrySimulator, authorities: tuple[trustme.CA, trustme.CA], ca_file: Path
) -> None:
    first, second = authorities
    image = registry.push_image(NAME)
    clock = Clock()
    put(ca_file, second)
    async with oras_store(registry, profile=profile(ca_file), monotonic=clock) as store:
        with pytest.raises(Undecided, match="is not trusted"):
            await read(store, registry, image)
        put(ca_file, second, first)
        with pytest.raises(Undecided, match="is not trusted"):
            await read(store, registry, image)  # files are looked at now and then, not for every request
        clock.now += FILE_CHECK_SECONDS
        assert await read(store, registry, image) == 0
        put(ca_file, second)
        clock.now += FILE_CHECK_SECONDS
        with pytest.raises(Undecided, match="is not trusted"):
            await read(store, registry, image)  # though there is an open connection to it


async def test_what_is_under_way_goes_on_when_the_file_changes(
    registry: RegistrySimulator, authorities: tuple[trustme.CA, trustme.CA], ca_file: Path
) -> None:
    first, second = authorities
    image = registry.push_image(NAME)
    clock = Clock()
    put(ca_file, first)
    arrived, leave = asyncio.Event(), asyncio.Event()

    async def wait(request: object, reply: object) -> object:
        arrived.set()
        await leave.wait()
        return reply

    async with oras_store(registry, profile=profile(ca_file), monotonic=clock) as store:
        registry.fault("*/referrers/*", wait, times=1)  # type: ignore[arg-type]
        waiting = asyncio.create_task(read(store, registry, image))
        await arrived.wait()
        put(ca_file, first, second)
        clock.now += FILE_CHECK_SECONDS
        assert await read(store, registry, image) == 0
        leave.set()
        assert await waiting == 0
    assert len(registry.requests) == 2


@pytest.mark.parametrize("content", [b"", b"no certificate", b"-----BEGIN CERTIFICATE-----\nAAAA\n", None])
async def test_a_file_that_is_broken_or_gone_leaves_the_last_good_one_and_is_told_once(
    registry: RegistrySimulator, authorities: tuple[trustme.CA, trustme.CA], ca_file: Path, content: bytes | None
) -> None:
    image = registry.push_image(NAME)
    clock = Clock()
    put(ca_file, authorities[0])
    async with oras_store(registry, profile=profile(ca_file), monotonic=clock) as store:
        await read(store, registry, image)
        if content is None:
            ca_file.unlink()
        else:
            ca_file.write_bytes(content)
        with capture_logs() as logs:
            for _ in range(3):
                clock.now += FILE_CHECK_SECONDS
                assert await read(store, registry, image) == 0
        assert [(log["event"], log["registry"]) for log in logs] == [
            ("TLS files of a registry cannot be used, the last good ones stay", registry.host)
        ]
        assert logs[0]["reason"]
        put(ca_file, authorities[1])
        clock.now += FILE_CHECK_SECONDS
        with pytest.raises(Undecided, match="is not trusted"):
            await read(store, registry, image)


async def test_storage_that_the_registry_redirects_to_goes_by_the_new_file_too(
    registry: RegistrySimulator, authorities: tuple[trustme.CA, trustme.CA], ca_file: Path
) -> None:
    first, second = authorities
    image = registry.push_image(NAME)
    clock = Clock()
    put(ca_file, first)
    async with BlobStorageSimulator(tls=second, host="localhost") as storage:
        registry.redirect_blobs_to = f"{storage.url}/blobs"
        blob = registry.push_blob(NAME, b"an envelope")
        storage.blobs[str(blob.digest)] = b"an envelope"
        fields = profile(ca_file) | {"redirect_hosts": frozenset({storage.host})}
        async with oras_store(registry, profile=fields, monotonic=clock) as store:
            subject = subject_of(registry, NAME, image)
            with pytest.raises(Undecided, match="is not trusted"):
                await store.fetch_blob(subject, blob, 100)
            put(ca_file, first, second)
            clock.now += FILE_CHECK_SECONDS
            assert await store.fetch_blob(subject, blob, 100) == b"an envelope"


async def test_a_renewed_client_certificate_is_shown_from_then_on(
    authorities: tuple[trustme.CA, trustme.CA], ca_file: Path, tmp_path: Path
) -> None:
    """The registry takes client certificates of the second authority; the first that it is shown is another one."""
    first, second = authorities
    put(ca_file, first)
    certificate = tmp_path / "client.pem"
    clock = Clock()

    def issue(authority: trustme.CA) -> None:
        issued = authority.issue_cert("countersign@example.test")
        fresh = certificate.with_suffix(".new")
        fresh.write_bytes(issued.private_key_and_cert_chain_pem.bytes())
        fresh.rename(certificate)

    issue(first)
    async with RegistrySimulator(tls=first, client_ca=second) as registry:
        image = registry.push_image(NAME)
        registry.push_artifact(NAME, image, SIGNATURE, [(b"{}", "application/jose+json")])
        fields = profile(ca_file) | {"client_certificate": certificate}
        async with oras_store(registry, profile=fields, monotonic=clock) as store:
            with pytest.raises(Undecided, match="REGISTRY_UNAVAILABLE"):
                await read(store, registry, image)
            issue(second)
            clock.now += FILE_CHECK_SECONDS
            assert await read(store, registry, image) == 1
            assert registry.requests[-1].client_certificate
