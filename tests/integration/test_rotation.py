"""The self-managed serving certificate: in a cluster, by several replicas, under the eyes of Gatekeeper.

The Kubernetes API is a simulator on loopback, the servers and their TLS are real, and a caller trusts what the
Provider's caBundle holds, as Gatekeeper does: some time after it was written.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ssl
import stat
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import uvloop
from structlog.testing import capture_logs

from provider.errors import ConfigurationError
from provider.gatekeeper.issuance import issue_authority, issue_pair
from provider.gatekeeper.keyring import Keyring, read_bundle, read_keyring
from provider.gatekeeper.rotation import CertificateRotation
from provider.gatekeeper.rotation_plan import ProviderSpec, RotationSettings
from provider.gatekeeper.server import MUTATE_PATH, VERIFY_PATH, Server
from provider.gatekeeper.settings import ListenerSettings, ServerSettings
from provider.gatekeeper.tls import ServingTLS, TLSFiles
from provider.telemetry import Metrics
from tests.integration.test_tls import Judge, until
from tests.simulators import listener
from tests.simulators.gatekeeper import PKI, Gatekeeper
from tests.simulators.kubernetes import KubernetesSimulator

NAMESPACE, SECRET = "gatekeeper-system", "ratify-tls"
VERIFY, MUTATE = "ratify-provider", "ratify-mutation-provider"
URL = "https://ratify.gatekeeper-system:6001"
SPEC = ProviderSpec(URL + VERIFY_PATH, 5)
NOW = timedelta(0)
SETTINGS = RotationSettings(
    "ratify",
    NAMESPACE,
    SECRET,
    (VERIFY, MUTATE),
    more_names=("localhost",),
    settle=timedelta(seconds=1),
    retire=timedelta(seconds=2),
    absence=NOW,
    poll_seconds=60.0,  # what is noticed sooner is noticed by a watch
    pause_seconds=0.01,
)
OFTEN = replace(SETTINGS, poll_seconds=0.02)


class ApiServer(KubernetesSimulator):
    """A cluster with the chart's objects: an empty Secret, two Providers with a placeholder for a caBundle."""

    async def __aenter__(self) -> ApiServer:
        await super().__aenter__()
        self.secret(SECRET, NAMESPACE, {})
        self.provider(VERIFY, URL + VERIFY_PATH)
        self.provider(MUTATE, URL + MUTATE_PATH)
        return self

    def provider(self, name: str, url: str, bundle: bytes = b"placeholder") -> None:
        spec = {"url": url, "timeout": 5, "caBundle": base64.b64encode(bundle).decode()}
        kind = {"apiVersion": "externaldata.gatekeeper.sh/v1beta1", "kind": "Provider"}
        self.apply({**kind, "metadata": {"name": name}, "spec": spec})

    def bundle(self, name: str = VERIFY) -> bytes:
        """The caBundle, PEM."""
        return base64.b64decode(self.object("providers", name)["spec"]["caBundle"])

    def keyring(self) -> Keyring:
        return read_keyring(self.object("secrets", SECRET, NAMESPACE)["data"])

    def put(self, keyring: Keyring, **more: bytes) -> None:
        """Somebody writes the Secret."""
        self.secret(SECRET, NAMESPACE, {**keyring.entries(), **more})

    def ask_for_rotation(self) -> None:
        """kubectl annotate."""
        value = dict(self.object("secrets", SECRET, NAMESPACE))
        value["metadata"] = {**value["metadata"], "annotations": {"countersign/rotate": "now", "other": "stays"}}
        self.apply(value)

    @property
    def in_order(self) -> bool:
        """Every caBundle is what the Secret wants it to be."""
        wanted = frozenset(self.keyring().trusted)
        found = [self.object("providers", name)["spec"]["caBundle"] for name in (VERIFY, MUTATE)]
        return bool(wanted) and all(read_bundle(bundle) == wanted for bundle in found)


class Replica:
    """A process of the provider, while it is entered."""

    def __init__(self, server: ApiServer, folder: Path, settings: RotationSettings = SETTINGS, **more: Any) -> None:
        self.server = server
        self.metrics = Metrics()
        self.pki: PKI | None = more.pop("pki", None)
        self.client = server.client()
        self.rotation = CertificateRotation(self.client, settings, folder=folder, metrics=self.metrics, **more)
        self.client_ca = folder / "client-ca.crt"
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Replica:
        self._stack.push_async_callback(self.client.close)
        try:
            await self.rotation.prepare()
            client_cas: tuple[Path, ...] = ()
            if self.pki is not None:
                self.pki.write_client_ca(self.client_ca)
                client_cas = (self.client_ca,)
            self.tls = ServingTLS(TLSFiles(self.rotation.file, self.rotation.file, client_cas), metrics=self.metrics)
            self.http = Server(
                Judge(),
                Judge(),
                listener=ListenerSettings(host="127.0.0.1"),
                settings=ServerSettings(settle_seconds=0),
                tls=self.tls,
                metrics=self.metrics,
            )
            await self.http.start()
            self._stack.push_async_callback(self.http.stop)
            task = asyncio.create_task(self.rotation.run(self.tls.reload))
            self._stack.push_async_callback(cancelled, task)
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    @property
    def port(self) -> int:
        return self.http.port

    def metric(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    def count(self, action: str, outcome: str) -> float:
        return self.metric("countersign_certificate_rotation_total", action=action, outcome=outcome)

    @property
    def served(self) -> bytes:
        """The PEM file without its key."""
        return b"-----BEGIN CERT" + self.rotation.file.read_bytes().partition(b"-----BEGIN CERT")[2]

    async def answers(self, bundle: bytes) -> bool:
        """Whether a caller that trusts a caBundle gets an answer."""
        async with Gatekeeper(self.port, trusting(bundle)) as gatekeeper:
            try:
                return bool((await gatekeeper.ask("r.test/a")).admitted)
            except (aiohttp.ClientError, OSError):
                return False


async def cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()


def trusting(bundle: bytes, pki: PKI | None = None) -> ssl.SSLContext:
    """Gatekeeper's TLS settings with a caBundle."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if pki is None else pki.client_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=bundle.decode())
    return context


@pytest.fixture
async def server() -> AsyncIterator[ApiServer]:
    async with ApiServer() as simulator:
        yield simulator


def made_before(*, days_left: int) -> Keyring:
    """An authority with so many days left, and a fresh pair; due when there are less than 180 left."""
    at = datetime.now(UTC)
    authority = issue_authority("ratify", at=at, lifetime=timedelta(days=days_left))
    return Keyring(authority, issue_pair(authority, SETTINGS.names, at=at, lifetime=SETTINGS.leaf_lifetime))


# -- installation -----------------------------------------------------------------------------------------------------


async def test_a_fresh_installation_serves_under_an_authority_that_gatekeeper_is_told_of(
    server: ApiServer, tmp_path: Path
) -> None:
    with capture_logs() as logs:
        async with Replica(server, tmp_path / "new" / "folder") as replica:
            assert server.in_order
            assert server.bundle(VERIFY) == server.bundle(MUTATE)
            assert await replica.answers(server.bundle())
            assert stat.S_IMODE(replica.rotation.file.stat().st_mode) == 0o600
            assert [path.name for path in replica.rotation.file.parent.iterdir()] == ["serving.pem"]
            assert replica.metric("countersign_provider_present", provider=VERIFY) == 1
            anchor = server.keyring().trusted[0]
            assert replica.metric("countersign_tls_ca_not_after_seconds") == anchor.not_valid_after_utc.timestamp()
    data = server.object("secrets", SECRET, NAMESPACE)["data"]
    assert sorted(data) == ["ca.crt", "ca.key", "tls.crt", "tls.key"]
    assert "PRIVATE" not in str(logs)
    wrong_host = [event for event in logs if "does not name" in event["event"]]
    assert wrong_host == []


async def test_only_the_documented_rights_are_used(server: ApiServer, tmp_path: Path) -> None:
    async with Replica(server, tmp_path, OFTEN):
        server.ask_for_rotation()
        await until(lambda: server.keyring().coming is not None and server.in_order)
        await until(lambda: server.watches == 3)
    assert set(server.verbs) == {
        *("get providers", "patch providers", "watch providers"),
        *("get secrets", "update secrets", "watch secrets"),
    }
    watched = [request.query["fieldSelector"] for request in server.requests if "watch" in request.query]
    assert sorted(set(watched)) == [f"metadata.name={name}" for name in (MUTATE, VERIFY, SECRET)]


async def test_without_a_secret_one_is_made(server: ApiServer, tmp_path: Path) -> None:
    server.delete("secrets", SECRET, NAMESPACE)
    with capture_logs():
        async with Replica(server, tmp_path) as replica:
            assert await replica.answers(server.bundle())
    assert server.object("secrets", SECRET, NAMESPACE)["type"] == "Opaque"


async def test_a_right_that_is_missing_is_named_and_waited_for(server: ApiServer, tmp_path: Path) -> None:
    server.forbid("update", "secrets")
    replica = Replica(server, tmp_path, OFTEN)
    with capture_logs() as logs:
        entering = asyncio.create_task(replica.__aenter__())
        await until(lambda: replica.count("create", "failed") > 3)
        server.permit()
        await entering
        assert await replica.answers(server.bundle())
    await replica.__aexit__()
    (error,) = [event for event in logs if event["log_level"] == "error"]
    assert error["errorReason"].startswith(f"cannot update Secret {SECRET}: status 403")
    assert "Grant" in error["remediation"]


async def test_replicas_that_start_at_once_serve_one_pair(server: ApiServer, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        replicas = [Replica(server, tmp_path / str(number)) for number in range(4)]
        await asyncio.gather(*(stack.enter_async_context(replica) for replica in replicas))
        assert len({replica.served for replica in replicas}) == 1
        assert sum(replica.count("create", "done") for replica in replicas) == 1
        assert server.in_order
        for replica in replicas:
            assert await replica.answers(server.bundle())


async def test_the_pair_of_a_former_ratify_is_served_on(server: ApiServer, tmp_path: Path) -> None:
    theirs = made_before(days_left=700)
    server.put(theirs)
    async with Replica(server, tmp_path) as replica:
        assert replica.served == _chain(theirs)
        assert server.keyring() == theirs


async def test_a_folder_that_cannot_be_written_to_ends_the_start(server: ApiServer, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"serving\.pem: the serving certificate cannot be written") as caught:
        async with Replica(server, tmp_path / "file" / "folder"):
            pass
    assert caught.value.code == "TLS_INVALID"


async def test_a_provider_with_a_host_that_the_certificate_does_not_name_is_told_of(
    server: ApiServer, tmp_path: Path
) -> None:
    server.provider(VERIFY, "https://elsewhere:6001/x")
    server.provider(MUTATE, "https://[not a host/")
    with capture_logs() as logs:
        async with Replica(server, tmp_path, OFTEN) as replica:
            server.ask_for_rotation()
            await until(lambda: replica.count("prepare", "done") == 1)
    told = {event["provider"]: event["found"] for event in logs if "does not name" in event["event"]}
    assert told == {VERIFY: "elsewhere", MUTATE: ""}
    assert len([event for event in logs if "does not name" in event["event"]]) == 2


# -- N67: no call fails -----------------------------------------------------------------------------------------------


class Caller:
    """A process of Gatekeeper that learns of a changed caBundle some time after it was written.

    Args:
        server: where the Provider is.
        ports: of the replicas, called in turn.
        lag: seconds.
        reuse: keep connections, as Gatekeeper does from 3.22 on, until the caBundle changes.
    """

    def __init__(self, server: ApiServer, ports: list[int], pki: PKI, *, lag: float, reuse: bool) -> None:
        self._server, self._ports, self._pki, self._lag, self._reuse = server, ports, pki, lag, reuse
        self._known: deque[tuple[float, bytes]] = deque([(0.0, server.bundle())])
        self.calls = 0
        self.failures: list[BaseException] = []

    def _bundle(self) -> bytes:
        now, current = time.monotonic(), self._server.bundle()
        if current != self._known[-1][1]:
            self._known.append((now, current))
        while len(self._known) > 1 and self._known[1][0] <= now - self._lag:
            self._known.popleft()
        return self._known[0][1]

    async def run(self) -> None:
        """Call until cancelled."""
        used = b""
        async with AsyncExitStack() as stack:
            gatekeepers: list[Gatekeeper] = []
            while True:
                bundle = self._bundle()
                if bundle != used:
                    await stack.aclose()
                    used, context = bundle, trusting(bundle, self._pki)
                    gatekeepers = [Gatekeeper(port, context, reuse=self._reuse) for port in self._ports]
                    for gatekeeper in gatekeepers:
                        await stack.enter_async_context(gatekeeper)
                for gatekeeper in gatekeepers:
                    try:
                        assert (await gatekeeper.ask("r.test/a")).admitted
                    except Exception as error:
                        self.failures.append(error)
                    self.calls += 1
                await asyncio.sleep(0.005)


@asynccontextmanager
async def load(server: ApiServer, replicas: list[Replica], pki: PKI) -> AsyncIterator[list[Caller]]:
    """Four processes of Gatekeeper: quick and slow to learn, keeping and not keeping connections."""
    ports = [replica.port for replica in replicas]
    callers = [Caller(server, ports, pki, lag=lag, reuse=reuse) for lag in (0.0, 0.3) for reuse in (True, False)]
    tasks = [asyncio.create_task(caller.run()) for caller in callers]
    try:
        yield callers
        seen = [caller.calls for caller in callers]
        await until(lambda: all(caller.calls > before + 2 for caller, before in zip(callers, seen, strict=True)))
    finally:
        for task in tasks:
            await cancelled(task)
    assert [caller.failures for caller in callers] == [[]] * len(callers)


async def _rotate_everything_under_load(folder: Path) -> None:
    """The authority is due; then the pair is renewed; then somebody else's pair is put into the Secret."""
    pki = PKI()
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(ApiServer())
        first = made_before(days_left=120)
        server.put(first)
        replicas = [Replica(server, folder / str(number), OFTEN, pki=pki) for number in range(2)]
        for replica in replicas:
            await stack.enter_async_context(replica)
        async with load(server, replicas, pki) as callers:
            await until(lambda: server.keyring().authority != first.authority)
            second = server.keyring()
            assert second.old == first.trusted[:1]
            await until(lambda: server.in_order and not server.keyring().old)
            assert len({replica.served for replica in replicas}) == 1
            assert server.keyring().trusted == second.trusted[:1]

            server.put(replace(server.keyring(), pair=None))
            await until(lambda: server.keyring().pair not in (None, second.pair))
            third = server.keyring()
            assert third.authority == second.authority

            theirs = made_before(days_left=700)
            assert theirs.authority is not None
            adopted = replace(theirs, authority=replace(theirs.authority, key=None))
            server.put(adopted)
            await until(lambda: server.in_order and server.keyring().trusted == adopted.trusted)
            assert [replica.served for replica in replicas] == [_chain(theirs)] * 2
            assert min(caller.calls for caller in callers) > 20
        for replica in replicas:
            assert replica.metric("countersign_tls_handshake_failures_total", reason="server_untrusted") == 0


def _chain(keyring: Keyring) -> bytes:
    return keyring.entries()["tls.crt"]


async def test_n67_no_call_fails_while_authority_and_pair_change_on_two_replicas(tmp_path: Path) -> None:
    await _rotate_everything_under_load(tmp_path)


def test_n67_the_same_on_uvloop(tmp_path: Path) -> None:
    uvloop.run(_rotate_everything_under_load(tmp_path))


async def test_the_load_notices_a_pair_that_is_changed_without_care(server: ApiServer, tmp_path: Path) -> None:
    """The load test would fail, were the settle time left out: callers that lag behind fail."""
    pki = PKI()
    hasty = replace(OFTEN, settle=NOW)
    async with Replica(server, tmp_path, hasty, pki=pki) as replica:
        with contextlib.suppress(AssertionError):
            async with load(server, [replica], pki) as callers:
                before = replica.served
                server.ask_for_rotation()
                await until(lambda: replica.served != before)
        assert any(caller.failures for caller in callers)


# -- changes from outside ---------------------------------------------------------------------------------------------


async def test_a_tampered_ca_bundle_is_mended_as_soon_as_it_is_seen(server: ApiServer, tmp_path: Path) -> None:
    async with Replica(server, tmp_path) as replica:
        await until(lambda: server.watches == 3)
        with capture_logs() as logs:
            value = dict(server.object("providers", MUTATE))
            fields = {"f:spec": {"f:caBundle": {}}}
            managed = [{"manager": "kubectl", "fieldsV1": {"f:spec": {}}}, {"manager": "helm", "fieldsV1": fields}]
            value["metadata"] = {**value["metadata"], "managedFields": managed}
            server.apply({**value, "spec": {**value["spec"], "caBundle": "Z2FyYmFnZQ=="}})
            await until(lambda: server.in_order)
            await until(lambda: replica.count("bundle", "done") == 3)
        (event,) = [event for event in logs if event["event"] == "caBundle of a Provider was written"]
        assert (event["provider"], event["formerWriter"]) == (MUTATE, "helm")
        assert server.object("providers", MUTATE)["spec"]["timeout"] == 5


@pytest.mark.parametrize("entry", ["ca.crt", "ca.key", "tls.crt", "tls.key"])
async def test_garbage_in_the_secret_is_mended_and_serving_goes_on(
    server: ApiServer, tmp_path: Path, entry: str
) -> None:
    async with Replica(server, tmp_path) as replica:
        await until(lambda: server.watches == 3)
        good = server.keyring()
        with capture_logs() as logs:
            server.put(good, **{entry: b"garbage"})
            if entry != "ca.key":
                await until(lambda: server.keyring().pair is not None)
                await until(lambda: server.in_order)
                assert server.keyring().trusted == good.trusted
            else:  # it is needed only when the pair is due; then ours takes over
                await until(lambda: any("ca.key" in event.get("errorReason", "") for event in logs))
            assert await replica.answers(server.bundle())
        faults = [event["errorReason"] for event in logs if event["log_level"] == "warning"]
        assert any(fault.startswith(f"{entry}:") for fault in faults)


async def test_what_else_the_secret_holds_stays(server: ApiServer, tmp_path: Path) -> None:
    server.secret(SECRET, NAMESPACE, {"mine": b"stays", "next-ca.crt": b"garbage"})
    value = dict(server.object("secrets", SECRET, NAMESPACE))
    value["metadata"] = {**value["metadata"], "labels": {"app.kubernetes.io/managed-by": "Helm"}}
    server.apply(value)
    with capture_logs():
        async with Replica(server, tmp_path, OFTEN):
            server.ask_for_rotation()
            await until(lambda: server.keyring().coming is not None)
    secret = server.object("secrets", SECRET, NAMESPACE)
    assert secret["data"]["mine"] == "c3RheXM="
    assert secret["metadata"]["labels"] == {"app.kubernetes.io/managed-by": "Helm"}
    assert secret["metadata"]["annotations"] == {"other": "stays"}


async def test_a_deleted_secret_is_made_again_with_the_same_authority(server: ApiServer, tmp_path: Path) -> None:
    async with Replica(server, tmp_path) as replica:
        await until(lambda: server.watches == 3)
        before = server.keyring()
        with capture_logs() as logs:
            server.delete("secrets", SECRET, NAMESPACE)
            await until(lambda: replica.count("restore", "done") == 1)
        assert server.keyring() == before
        assert any(event["event"].endswith("is missing") for event in logs)


async def test_a_deleted_provider_is_reported_and_its_bundle_written_when_it_is_there_again(
    server: ApiServer, tmp_path: Path
) -> None:
    async with Replica(server, tmp_path) as replica:
        await until(lambda: server.watches == 3)
        with capture_logs() as logs:
            server.delete("providers", VERIFY)
            await until(lambda: replica.metric("countersign_provider_present", provider=VERIFY) == 0)
            server.provider(VERIFY, URL + VERIFY_PATH)
            await until(lambda: server.in_order)
        assert replica.metric("countersign_provider_present", provider=VERIFY) == 1
        (error,) = [event for event in logs if event["log_level"] == "error"]
        assert error["provider"] == VERIFY
        assert "create providers" not in server.verbs


async def test_a_deleted_provider_is_restored_when_that_was_asked_for(server: ApiServer, tmp_path: Path) -> None:
    settings = replace(SETTINGS, restore={VERIFY: SPEC})
    with capture_logs():
        async with Replica(server, tmp_path, settings) as replica:
            await until(lambda: server.watches == 3)
            server.delete("providers", VERIFY)
            await until(lambda: replica.count("provider", "done") == 1)
            assert server.in_order
            restored = server.object("providers", VERIFY)
            assert restored["apiVersion"] == "externaldata.gatekeeper.sh/v1beta1"
            assert restored["spec"] == {"url": SPEC.url, "timeout": 5, "caBundle": restored["spec"]["caBundle"]}
            assert await replica.answers(server.bundle())


# -- a Kubernetes API in trouble --------------------------------------------------------------------------------------

TROUBLE = {
    "500": listener.status(500),
    "a page of a proxy": listener.status(502, body=b"<html>", headers={"Content-Type": "text/html"}),
    "an error that is not one": listener.status(500, body=b"{}", headers={"Content-Type": "application/json"}),
    "an error in tatters": listener.status(500, body=b"{", headers={"Content-Type": "application/json"}),
    "401": listener.status(401),
    "403": listener.status(403),
    "reset": listener.reset(),
    "not HTTP": listener.raw(b"SSH-2.0-OpenSSH\r\n"),
    "a body in tatters": listener.truncate(20),
    "another body": listener.body(b"garbage"),
    "a list": listener.body(b"[]"),
    "a string": listener.body(b'"x"'),
    "no object": listener.body(b'{"metadata": 5, "data": 7, "spec": 8}'),
}


@pytest.mark.parametrize("trouble", TROUBLE)
async def test_serving_goes_on_while_the_kubernetes_api_is_in_trouble(
    server: ApiServer, tmp_path: Path, trouble: str
) -> None:
    with capture_logs() as logs:
        async with Replica(server, tmp_path, OFTEN) as replica:
            bundle = server.bundle()
            server.fault("/api*", TROUBLE[trouble])
            await until(lambda: replica.count("look", "failed") > 3)
            assert await replica.answers(bundle)
            server.heal()
            server.provider(VERIFY, URL + VERIFY_PATH)
            await until(lambda: server.in_order)
    errors = [event for event in logs if event["log_level"] == "error"]
    assert errors
    assert len({event.get("errorReason") for event in errors}) == len(errors) < 8


async def test_what_can_be_done_is_done_when_the_secret_cannot_be_written(server: ApiServer, tmp_path: Path) -> None:
    server.put(made_before(days_left=120))
    server.forbid("update", "secrets")
    with capture_logs() as logs:
        async with Replica(server, tmp_path, OFTEN) as replica:
            assert server.in_order
            assert await replica.answers(server.bundle())
            await until(lambda: replica.count("prepare", "failed") > 3)
            server.permit()
            await until(lambda: server.keyring().coming is not None)
    assert len([event for event in logs if event["log_level"] == "error"]) == 1


async def test_a_provider_that_cannot_be_written_keeps_the_authority_from_changing(
    server: ApiServer, tmp_path: Path
) -> None:
    """Rather an authority that is due than one that Gatekeeper does not know."""
    with capture_logs():
        async with Replica(server, tmp_path, replace(OFTEN, settle=NOW)) as replica:
            before = replica.served
            server.forbid("patch", "providers")
            server.ask_for_rotation()
            await until(lambda: replica.count("bundle", "failed") > 5)
            assert replica.count("promote", "done") == 0
            assert replica.served == before
            server.permit()
            await until(lambda: replica.served != before)


async def test_without_watches_changes_are_still_noticed(server: ApiServer, tmp_path: Path) -> None:
    server.forbid("watch", "providers")
    server.forbid("watch", "secrets")
    async with Replica(server, tmp_path, OFTEN):
        server.provider(VERIFY, URL + VERIFY_PATH)
        await until(lambda: server.in_order)


async def test_watches_that_end_are_begun_again(server: ApiServer, tmp_path: Path) -> None:
    async with Replica(server, tmp_path) as replica:
        await until(lambda: server.watches == 3)
        server.end_watches()
        await until(lambda: server.watches == 3)
        server.provider(VERIFY, URL + VERIFY_PATH)
        await until(lambda: server.in_order)
        assert replica.count("look", "failed") == 0


# -- the file ---------------------------------------------------------------------------------------------------------


async def test_a_file_that_cannot_be_written_leaves_the_last_pair_in_use(server: ApiServer, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    with capture_logs() as logs:
        async with Replica(server, folder, replace(OFTEN, settle=NOW)) as replica:
            folder.rename(tmp_path / "away")
            server.ask_for_rotation()
            await until(lambda: replica.count("serve", "failed") > 3)
            assert await replica.answers(server.bundle())
            (tmp_path / "away").rename(folder)
            before = replica.served
            await until(lambda: replica.served != before)
            assert sorted(path.name for path in folder.iterdir()) == ["serving.pem"]
    errors = [event for event in logs if event["log_level"] == "error"]
    assert [event["action"] for event in errors] == ["serve"]
    assert "serving.pem cannot be written" in errors[0]["errorReason"]


async def test_a_client_ca_that_is_broken_meanwhile_is_told_of(server: ApiServer, tmp_path: Path) -> None:
    pki = PKI()
    with capture_logs() as logs:
        async with Replica(server, tmp_path, replace(OFTEN, settle=NOW), pki=pki) as replica:
            before = replica.served
            replica.client_ca.write_bytes(b"garbage")
            server.ask_for_rotation()
            await until(lambda: replica.served != before)
            pki.write_client_ca(replica.client_ca)
            assert replica.tls.reload()
    errors = [event["errorReason"] for event in logs if event["log_level"] == "error"]
    assert any("client-ca.crt" in reason for reason in errors)
