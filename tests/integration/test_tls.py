"""TLS of the verification port: who gets in, and certificates that change while Gatekeeper keeps calling."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme
import uvloop
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from structlog.testing import capture_logs

from provider.errors import ConfigurationError
from provider.gatekeeper import tls as tls_module
from provider.gatekeeper.server import Server
from provider.gatekeeper.settings import ListenerSettings, ServerSettings
from provider.gatekeeper.tls import ServingTLS, TLSFiles
from provider.telemetry import Metrics
from tests.simulators.gatekeeper import PKI, WEBHOOK_NAME, Gatekeeper, RawCaller


@dataclass(frozen=True)
class Verdict:
    """What an executor returns."""

    fragment: bytes = b'"isSuccess":true'
    is_success: bool = True


class Judge:
    """An executor that admits everything."""

    async def verify(self, key: str) -> Verdict:
        return Verdict()

    async def resolve(self, key: str) -> str:
        return key


class Site:
    """A folder with TLS files, and a server on them while it is entered."""

    def __init__(self, folder: Path, pki: PKI, *, client_ca: bool = True, **listener: Any) -> None:
        self.pki = pki
        self.folder = folder
        self.metrics = Metrics()
        self.client_ca = folder / "ca.crt"
        pki.write_serving_files(folder)
        pki.write_client_ca(self.client_ca)
        self.files = TLSFiles.in_folder(
            folder,
            client_cas=[self.client_ca] if client_ca else [],
            optional_client_cas=[folder / "optional-ca.crt"],
        )
        self.tls = ServingTLS(self.files, metrics=self.metrics)
        self.server = Server(
            Judge(),
            Judge(),
            listener=ListenerSettings(host="127.0.0.1", **listener),
            settings=ServerSettings(settle_seconds=0),
            tls=self.tls,
            metrics=self.metrics,
        )

    async def __aenter__(self) -> Site:
        await self.server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.server.stop()

    async def raw(self, **client: Any) -> RawCaller:
        return await RawCaller.connect(self.server.port, self.pki.client_context(**client))

    async def can_call(self, context: ssl.SSLContext) -> bool:
        """Whether a caller with these TLS settings gets an answer on a new connection."""
        async with Gatekeeper(self.server.port, context) as gatekeeper:
            try:
                return bool((await gatekeeper.ask("r.test/a")).admitted)
            except (aiohttp.ClientError, OSError):
                return False

    def metric(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    def failures(self, reason: str) -> float:
        return self.metric("countersign_tls_handshake_failures_total", reason=reason)

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """The files are looked at every few milliseconds."""
        task = asyncio.create_task(self.tls.watch(0.005))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])


@pytest.fixture(scope="module")
def pki() -> PKI:
    return PKI()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that is seen from outside only; the test's timeout ends it."""
    while not condition():  # noqa: ASYNC110 - looking on from outside
        await asyncio.sleep(0.005)


# -- who gets in ------------------------------------------------------------------------------------------------------


async def test_n67_tls_1_3_is_served_and_tls_1_2_refused(tmp_path: Path, pki: PKI) -> None:
    async with Site(tmp_path, pki) as site:
        assert await site.can_call(pki.client_context())
        old = pki.client_context()
        old.minimum_version = ssl.TLSVersion.TLSv1_2
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        with capture_logs() as logs:
            assert not await site.can_call(old)
        assert site.failures("old_tls") >= 1
        assert logs[0]["errorReason"] == "the caller does not speak TLS 1.3"


async def test_n66_a_caller_without_a_certificate_is_refused_and_the_log_says_so(tmp_path: Path, pki: PKI) -> None:
    async with Site(tmp_path, pki) as site:
        with capture_logs() as logs:
            assert not await site.can_call(pki.client_context(name=None))
            assert not await site.can_call(pki.client_context(name=None))
        assert site.failures("no_client_certificate") >= 2
        assert [event["errorReason"] for event in logs] == ["the caller sent no client certificate"]


async def test_n66_a_certificate_of_a_foreign_ca_is_refused(tmp_path: Path, pki: PKI) -> None:
    async with Site(tmp_path, pki) as site:
        with capture_logs():
            assert not await site.can_call(pki.client_context(client_ca=trustme.CA()))
        assert site.failures("client_untrusted") >= 1


async def test_without_client_cas_every_caller_is_served(tmp_path: Path, pki: PKI) -> None:
    async with Site(tmp_path, pki, client_ca=False) as site:
        assert await site.can_call(pki.client_context(name=None))


async def test_a_caller_that_does_not_trust_the_serving_certificate_is_told_of_in_the_log(
    tmp_path: Path, pki: PKI
) -> None:
    """Gatekeeper with a stale caBundle reports only its own side; this is ours."""
    async with Site(tmp_path, pki) as site:
        with capture_logs() as logs:
            await asyncio.to_thread(_shake_hands, site.server.port, pki.client_context(trusts=[trustme.CA()]))
            await until(lambda: site.failures("server_untrusted") == 1)
        assert "caBundle" in logs[0]["errorReason"]


def _shake_hands(port: int, context: ssl.SSLContext) -> None:
    """A handshake that fails; unlike asyncio's, this client sends its alert before it goes."""
    with (
        socket.create_connection(("127.0.0.1", port)) as connection,
        pytest.raises(ssl.SSLCertVerificationError),
        context.wrap_socket(connection, server_hostname="localhost"),
    ):
        pass


async def test_plain_http_on_the_tls_port_is_refused(tmp_path: Path, pki: PKI) -> None:
    async with Site(tmp_path, pki) as site:
        with capture_logs():
            async with await RawCaller.connect(site.server.port) as caller:
                await caller.send(b"POST / HTTP/1.1\r\nHost: x\r\n\r\n")
                received = await caller.until_closed()
        assert b"HTTP" not in received
        assert site.failures("not_tls") == 1


async def test_an_optional_client_ca_counts_once_it_is_there_and_its_loss_lets_nobody_in(
    tmp_path: Path, pki: PKI
) -> None:
    optional = tmp_path / "optional-ca.crt"
    async with Site(tmp_path, pki, client_ca=False) as site, site.watching():
        nobody = pki.client_context(name=None)
        assert not site.tls.demands_client_certificate
        assert await site.can_call(nobody)
        pki.write_client_ca(optional)
        await until(lambda: site.tls.demands_client_certificate)
        assert not await site.can_call(nobody)
        assert await site.can_call(pki.client_context())
        optional.unlink()
        await until(lambda: site.tls.fault is not None)
        assert str(optional) in str(site.tls.fault)
        assert not await site.can_call(nobody)
        assert await site.can_call(pki.client_context())


async def test_a_client_ca_that_is_itself_an_intermediate_may_be_the_anchor(tmp_path: Path, pki: PKI) -> None:
    intermediate = pki.client_ca.create_child_ca()
    async with Site(tmp_path, pki) as site:
        pki.write_client_ca(site.client_ca, intermediate)
        assert site.tls.reload()
        assert await site.can_call(pki.client_context(client_ca=intermediate))
        with capture_logs():
            assert not await site.can_call(pki.client_context())


def test_allowed_names_without_client_cas_are_a_mistake_that_is_told(tmp_path: Path, pki: PKI) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Site(tmp_path, pki, client_ca=False, allowed_client_names=frozenset({WEBHOOK_NAME}))
    assert caught.value.code == "TLS_INVALID"
    assert "no client CA file" in caught.value.detail


async def test_n66_a_common_name_counts_only_where_there_is_no_other_name(tmp_path: Path, pki: PKI) -> None:
    async with Site(tmp_path, pki, allowed_client_names=frozenset({WEBHOOK_NAME})) as site:
        masked = pki.client_context(name=None)
        pki.client_ca.issue_cert("intruder.test", common_name=WEBHOOK_NAME).configure_cert(masked)
        assert not await site.can_call(masked)
        bare = pki.client_context(name=None)
        pki.client_ca.issue_cert(common_name=WEBHOOK_NAME).configure_cert(bare)
        assert await site.can_call(bare)


# -- certificates that change -----------------------------------------------------------------------------------------


async def _rotate_under_traffic(folder: Path, pki: PKI) -> None:
    """Call without pause, on kept and on new connections, while the serving certificate changes five times."""
    async with Site(folder, pki) as site, site.watching():
        context = pki.client_context()
        rotating = True
        failures: list[Exception] = []
        calls = [0, 0]

        async def call(gatekeeper: Gatekeeper, counter: int) -> None:
            while rotating:
                try:
                    assert (await gatekeeper.ask("r.test/a")).admitted
                except Exception as error:
                    failures.append(error)
                calls[counter] += 1

        async with (
            Gatekeeper(site.server.port, context) as keeping,
            Gatekeeper(site.server.port, context, reuse=False) as leaking,
        ):
            callers = [asyncio.create_task(call(keeping, 0)), asyncio.create_task(call(leaking, 1))]
            for number in range(1, 6):
                pki.write_serving_files(folder)
                await until(lambda: site.metric("countersign_tls_reloads_total", result="loaded") >= number)  # noqa: B023
                seen = list(calls)
                await until(lambda: all(now > then + 2 for now, then in zip(calls, seen, strict=True)))  # noqa: B023
            rotating = False
            await asyncio.wait(callers)
        assert failures == []


async def test_n67_the_serving_certificate_rotates_under_traffic_without_a_failed_call(
    tmp_path: Path, pki: PKI
) -> None:
    await _rotate_under_traffic(tmp_path, pki)


def test_n67_the_same_on_uvloop(tmp_path: Path, pki: PKI) -> None:
    uvloop.run(_rotate_under_traffic(tmp_path, pki))


async def test_a_new_serving_certificate_is_what_new_connections_see(tmp_path: Path, pki: PKI) -> None:
    async with Site(tmp_path, pki) as site:
        new_ca = trustme.CA()
        old, new = pki.client_context(), pki.client_context(trusts=[new_ca])
        assert await site.can_call(old)
        pki.write_serving_files(tmp_path, server_ca=new_ca)
        assert site.tls.reload()
        assert not site.tls.reload()
        assert await site.can_call(new)
        with capture_logs():
            assert not await site.can_call(old)


async def test_a_client_ca_that_was_replaced_is_trusted_no_longer(tmp_path: Path, pki: PKI) -> None:
    """The old CA is gone for new connections at once; an open one gets one answer more and is closed with it."""
    async with Site(tmp_path, pki) as site:
        new_ca = trustme.CA()
        old, new = pki.client_context(), pki.client_context(client_ca=new_ca)
        async with await RawCaller.connect(site.server.port, old) as open_one:
            assert (await open_one.ask("r.test/a")).headers.get("Connection") is None
            pki.write_client_ca(site.client_ca, new_ca)
            assert site.tls.reload()
            assert await site.can_call(new)
            with capture_logs():
                assert not await site.can_call(old)
            assert (await open_one.ask("r.test/a")).headers["Connection"] == "close"
            assert await open_one.until_closed() == b""


async def test_two_client_cas_are_trusted_during_a_change_over(tmp_path: Path, pki: PKI) -> None:
    async with Site(tmp_path, pki) as site:
        new_ca = trustme.CA()
        pki.write_client_ca(site.client_ca, pki.client_ca, new_ca)
        assert site.tls.reload()
        assert await site.can_call(pki.client_context())
        assert await site.can_call(pki.client_context(client_ca=new_ca))


async def test_a_mounted_secret_that_is_swapped_by_its_symbolic_link_is_noticed(tmp_path: Path, pki: PKI) -> None:
    first, second, mount = tmp_path / "..1", tmp_path / "..2", tmp_path / "mount"
    for folder in (first, second, mount):
        folder.mkdir()
    pki.write_client_ca(mount / "ca.crt")
    pki.write_serving_files(first)
    new_ca = trustme.CA()
    pki.write_serving_files(second, server_ca=new_ca)
    (mount / "..data").symlink_to(first)
    site = Site(tmp_path, pki)
    for name in ("tls.crt", "tls.key"):
        (mount / name).symlink_to(Path("..data") / name)
    site.tls = ServingTLS(TLSFiles.in_folder(mount), metrics=site.metrics)
    async with site.watching():
        before = site.tls.current
        (mount / "..new").symlink_to(second)
        os.replace(mount / "..new", mount / "..data")
        await until(lambda: site.tls.current is not before)


# -- N65: bad updates -------------------------------------------------------------------------------------------------


async def test_n65_a_bad_update_keeps_the_last_good_one_and_says_what_is_wrong_once(tmp_path: Path, pki: PKI) -> None:
    async with Site(tmp_path, pki) as site:
        good_key = (tmp_path / "tls.key").read_bytes()
        before = site.tls.current
        with capture_logs() as logs:
            async with site.watching():
                (tmp_path / "tls.key").write_bytes(b"not a key")
                await until(lambda: site.tls.fault is not None)
                await asyncio.sleep(0.05)
                assert await site.can_call(pki.client_context())
                (tmp_path / "tls.key").unlink()
                await until(lambda: "cannot be read" in (site.tls.fault or ""))
                (tmp_path / "tls.key").write_bytes(good_key)
                await until(lambda: site.tls.fault is None)
                assert site.tls.current is before
                pki.write_serving_files(tmp_path)
                await until(lambda: site.tls.current is not before)
                assert await site.can_call(pki.client_context())
        errors = [event for event in logs if event["log_level"] == "error"]
        assert [event["code"] for event in errors] == ["TLS_INVALID", "TLS_INVALID"]
        assert all("tls.key" in event["errorReason"] for event in errors)
        assert "secret" not in str(logs).lower()
        assert site.metric("countersign_tls_reloads_total", result="failed") == 2


def _encrypted(key: bytes) -> bytes:
    private = load_pem_private_key(key, None)
    return private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"hunter2"))


OTHER = trustme.CA().issue_cert("localhost")


@pytest.mark.parametrize(
    ("file", "spoil", "told"),
    [
        ("tls.crt", lambda _: b"", "tls.crt: OpenSSL cannot use it"),
        ("tls.crt", lambda _: b"garbage", "tls.crt: OpenSSL cannot use it"),
        ("tls.crt", lambda good: good[: len(good) // 2], "cannot use it"),
        ("tls.key", lambda _: b"", "tls.key: OpenSSL cannot use it"),
        ("tls.key", lambda _: OTHER.private_key_pem.bytes(), "tls.key: the private key does not belong to the certif"),
        ("tls.key", _encrypted, "tls.key: the private key is encrypted"),
        ("tls.key", None, "tls.key: the file cannot be read: No such file or directory"),
        ("tls.crt", None, "tls.crt: the file cannot be read: No such file or directory"),
        ("tls.crt", lambda good: good + b"\n" * tls_module.MAX_FILE_BYTES, "tls.crt: the file has more than"),
        ("ca.crt", None, "ca.crt: the file cannot be read: No such file or directory"),
        ("ca.crt", lambda _: b"", "ca.crt: the client CA file holds no certificate"),
        (
            "ca.crt",
            lambda good: good + good[: len(good) // 2],
            "ca.crt: the client CA file holds no certificate, or one",
        ),
        (
            "ca.crt",
            lambda good: good + good.replace(b"MII", b"MIX"),
            "ca.crt: certificate 2 of the client CA file cannot",
        ),
    ],
)
def test_files_that_cannot_be_used_are_named_with_the_reason(
    tmp_path: Path, pki: PKI, file: str, spoil: Callable[[bytes], bytes] | None, told: str
) -> None:
    pki.write_serving_files(tmp_path)
    pki.write_client_ca(tmp_path / "ca.crt")
    path = tmp_path / file
    if spoil is None:
        path.unlink()
    else:
        path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ConfigurationError) as caught:
        ServingTLS(TLSFiles.in_folder(tmp_path, client_cas=[tmp_path / "ca.crt"]), metrics=Metrics())
    assert caught.value.code == "TLS_INVALID"
    assert told in caught.value.detail.removeprefix(f"{tmp_path}/")
    assert caught.value.remediation
    assert "hunter2" not in str(caught.value)
    assert [fault.source for fault in caught.value.faults]


CHANGING = Path("/proc/sys/kernel/random/uuid")


@pytest.mark.skipif(not CHANGING.exists(), reason="needs a file that has other bytes each time it is read")
def test_files_that_never_stay_the_same_are_given_up(tmp_path: Path, pki: PKI) -> None:
    pki.write_serving_files(tmp_path)
    with pytest.raises(ConfigurationError) as caught:
        ServingTLS(TLSFiles.in_folder(tmp_path, client_cas=[CHANGING]), metrics=Metrics())
    assert "the files keep changing while they are read" in caught.value.detail


def test_the_expiry_of_the_serving_certificate_is_known(tmp_path: Path, pki: PKI) -> None:
    site = Site(tmp_path, pki)
    assert site.metric("countersign_tls_certificate_not_after_seconds") == site.tls.not_after.timestamp()
    assert site.tls.demands_client_certificate


async def test_n67_a_certificate_that_nobody_renews_is_told_of_before_and_after_its_end(
    tmp_path: Path, pki: PKI
) -> None:
    site = Site(tmp_path, pki)
    end = site.tls.not_after
    now = [end - timedelta(days=8)]
    tls = ServingTLS(site.files, metrics=Metrics(), clock=lambda: now[0])
    with capture_logs() as logs:
        watching = asyncio.create_task(tls.watch(0.001))
        told = []
        for left in (timedelta(days=6), timedelta(days=6, minutes=-30), timedelta(days=1), timedelta(0), -timedelta(1)):
            now[0] = end - left
            await asyncio.sleep(0.05)
            told.append(len([event for event in logs if event["event"].startswith("serving certificate expires")]))
        pki.write_serving_files(tmp_path)
        now[0] = end - timedelta(days=20)
        await until(lambda: any(event["event"] == "TLS files loaded" for event in logs))
        watching.cancel()
        await asyncio.wait([watching])
    assert told == [1, 1, 2, 3, 4]
    events = [event for event in logs if event["log_level"] == "error"]
    assert len(events) == 4
    assert all(event["expires"] == str(end) for event in events)


async def test_files_that_a_thread_read_before_a_reload_do_not_take_the_newer_ones_place(
    tmp_path: Path, pki: PKI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watch looks on in a thread; the rotation reloads at once when it has written a certificate."""
    site = Site(tmp_path, pki)
    tls, load = site.tls, tls_module._load
    reading, go_on = threading.Event(), threading.Event()

    def slowly(*arguments: Any) -> Any:
        loaded = load(*arguments)
        if threading.current_thread() is not threading.main_thread():
            reading.set()
            go_on.wait(10)
        return loaded

    monkeypatch.setattr(tls_module, "_load", slowly)
    before = tls.current
    watching = asyncio.create_task(tls.watch(0.001))
    await until(reading.is_set)
    pki.write_serving_files(tmp_path)
    assert tls.reload()
    after = tls.current
    go_on.set()
    await asyncio.sleep(0.05)
    watching.cancel()
    await asyncio.wait([watching])
    assert before is not after
    assert tls.current is after
