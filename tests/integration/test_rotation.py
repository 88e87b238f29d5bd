"""The self-managed serving certificate: in a cluster, by several replicas, under the eyes of Gatekeeper.

The Kubernetes API is a simulator on loopback, the servers and their TLS are real, and a caller trusts what the
Provider's caBundle holds, as Gatekeeper does: some time after it was written.
"""

from __future__ import annotations

import asyncio
import contextlib
import stat
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import uvloop
from structlog.testing import capture_logs

from provider.errors import ConfigurationError
from provider.gatekeeper.keyring import Keyring
from tests.integration.rotating import Replica
from tests.simulators.gatekeeper import PKI
from tests.simulators.rotation import (
    MUTATE,
    NAMESPACE,
    NOW,
    OFTEN,
    SECRET,
    VERIFY,
    ApiServer,
    load,
    made_before,
    until,
)


@pytest.fixture
async def server() -> AsyncIterator[ApiServer]:
    async with ApiServer() as simulator:
        yield simulator


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
    theirs = made_before(left=timedelta(days=700))
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


async def _rotate_everything_under_load(folder: Path) -> None:
    """The authority is due; then a new one is asked for; then the pair is renewed; then somebody else's pair is put
    into the Secret."""
    pki = PKI()
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(ApiServer())
        first = made_before(left=timedelta(days=120))
        server.put(first)
        replicas = [Replica(server, folder / str(number), OFTEN, pki=pki) for number in range(2)]
        for replica in replicas:
            await stack.enter_async_context(replica)
        async with load(server, [replica.port for replica in replicas], pki) as callers:
            await until(lambda: server.keyring().authority != first.authority)
            second = server.keyring()
            assert second.old == first.trusted[:1]
            assert second.old_until is not None
            assert first.pair is not None
            assert second.old_until > first.pair.certificate.not_valid_after_utc
            await until(lambda: server.in_order and len({replica.served for replica in replicas}) == 1)

            server.ask_for_rotation()
            await until(lambda: server.keyring().authority != second.authority)
            third = server.keyring()
            assert third.old == (second.trusted[0], *first.trusted[:1])
            await until(lambda: server.in_order and not server.keyring().old)
            assert len({replica.served for replica in replicas}) == 1
            assert server.keyring().trusted == third.trusted[:1]

            server.put(replace(server.keyring(), pair=None))
            await until(lambda: server.keyring().pair not in (None, third.pair))
            assert server.keyring().authority == third.authority

            theirs = made_before(left=timedelta(days=700))
            assert theirs.authority is not None
            adopted = replace(theirs, authority=replace(theirs.authority, key=None))
            server.put(adopted)
            await until(lambda: server.in_order and server.keyring().trusted == adopted.trusted)
            assert [replica.served for replica in replicas] == [_chain(theirs)] * 2
            assert min(caller.calls for caller in callers) > 5
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
            async with load(server, [replica.port], pki) as callers:
                before = replica.served
                server.ask_for_rotation()
                await until(lambda: replica.served != before)
        assert any(caller.failures for caller in callers)


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
