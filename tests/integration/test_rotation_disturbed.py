"""The self-managed serving certificate when others interfere: tampered objects, a Kubernetes API in trouble, a Secret
that somebody else keeps, clocks that are wrong. What is served stays good through all of it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from provider.errors import ConfigurationError
from provider.gatekeeper.server import VERIFY_PATH
from tests.integration.rotating import Replica
from tests.simulators import listener
from tests.simulators.rotation import (
    MUTATE,
    NAMESPACE,
    NOW,
    OFTEN,
    SECRET,
    SETTINGS,
    SPEC,
    URL,
    VERIFY,
    ApiServer,
    made_before,
    until,
)


@pytest.fixture
async def server() -> AsyncIterator[ApiServer]:
    async with ApiServer() as simulator:
        yield simulator


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


async def test_a_deleted_secret_that_must_not_be_created_is_filled_when_somebody_makes_it(
    server: ApiServer, tmp_path: Path
) -> None:
    """The chart gives no right to create secrets."""
    server.forbid("create", "secrets")
    async with Replica(server, tmp_path, OFTEN) as replica:
        before = server.keyring()
        with capture_logs() as logs:
            server.delete("secrets", SECRET, NAMESPACE)
            await until(lambda: replica.count("restore", "failed") > 2)
            assert await replica.answers(server.bundle())
            server.secret(SECRET, NAMESPACE, {})
            await until(lambda: server.keyring() == before)
        (error,) = [event for event in logs if event["log_level"] == "error"]
        assert "kubectl create secret generic" in error["remediation"]


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


async def test_a_mistake_of_ours_is_logged_and_serving_goes_on(server: ApiServer, tmp_path: Path) -> None:
    wrong = [False]

    def clock() -> datetime:
        if wrong[0]:
            raise ZeroDivisionError
        return datetime.now(UTC)

    with capture_logs() as logs:
        async with Replica(server, tmp_path, OFTEN, clock=clock) as replica:
            wrong[0] = True
            await until(lambda: replica.count("look", "failed") > 3)
            assert await replica.answers(server.bundle())
            wrong[0] = False
            server.provider(VERIFY, URL + VERIFY_PATH)
            await until(lambda: server.in_order)
    assert any("failed unexpectedly" in event["event"] and event["exc_info"] for event in logs)


async def test_what_can_be_done_is_done_when_the_secret_cannot_be_written(server: ApiServer, tmp_path: Path) -> None:
    server.put(made_before(left=timedelta(days=120)))
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


# -- a Secret that somebody else keeps --------------------------------------------------------------------------------

KEEPERS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "cert-manager": ({"annotations": {"cert-manager.io/certificate-name": "ratify"}}, {}, "cert-manager"),
    "the chart's values": ({"annotations": {"countersign/kept-by": "helm"}}, {}, "helm"),
    "a controller": (
        {
            "ownerReferences": [
                {"kind": "SealedSecret", "name": "x", "controller": True, "apiVersion": "v1", "uid": "1"}
            ]
        },
        {},
        "SealedSecret x",
    ),
    "nobody, as it cannot be changed": ({}, {"immutable": True}, "nobody: it is immutable"),
    "whoever made a pull secret": ({}, {"type": "kubernetes.io/dockerconfigjson"}, "the type kubernetes.io/docker"),
}


def hand_over(server: ApiServer, metadata: dict[str, Any], rest: dict[str, Any]) -> None:
    """Make the Secret somebody else's."""
    secret = dict(server.object("secrets", SECRET, NAMESPACE))
    server.apply({**secret, **rest, "metadata": {**secret["metadata"], **metadata}})


@pytest.mark.parametrize("keeper", KEEPERS)
async def test_a_secret_of_somebody_else_ends_the_start_with_what_to_do(
    server: ApiServer, tmp_path: Path, keeper: str
) -> None:
    metadata, rest, found = KEEPERS[keeper]
    hand_over(server, metadata, rest)
    with capture_logs(), pytest.raises(ConfigurationError) as caught:
        async with Replica(server, tmp_path):
            pass
    assert f"found {found}" in caught.value.detail
    assert "--cert-dir" in caught.value.remediation
    assert not [verb for verb in server.verbs if verb.startswith(("update", "create", "patch"))]


async def test_a_secret_that_cert_manager_takes_over_meanwhile_is_left_alone_and_serving_goes_on(
    server: ApiServer, tmp_path: Path
) -> None:
    async with Replica(server, tmp_path, OFTEN) as replica:
        bundle, looks = server.bundle(), len(server.verbs)
        server.put(made_before(left=timedelta(days=3)))
        metadata, rest, _ = KEEPERS["cert-manager"]
        with capture_logs() as logs:
            hand_over(server, metadata, rest)
            before = replica.served
            await until(lambda: any("kept by somebody else" in event["event"] for event in logs))
            looks = len(server.verbs)
            await until(lambda: len(server.verbs) > looks + 20)
        assert len([event for event in logs if "kept by somebody else" in event["event"]]) == 1
        taken = server.keyring()
        assert replica.served == before
        assert await replica.answers(bundle)
        await until(lambda: len(server.verbs) > looks + 40)
        assert server.keyring() == taken


# -- clocks -----------------------------------------------------------------------------------------------------------


async def test_a_replica_with_a_clock_that_is_behind_serves_what_the_others_serve_and_says_so(
    server: ApiServer, tmp_path: Path
) -> None:
    async with Replica(server, tmp_path / "right") as right:
        keyring = server.keyring()
        with capture_logs() as logs:
            async with Replica(
                server, tmp_path / "wrong", OFTEN, clock=lambda: datetime(2020, 1, 1, tzinfo=UTC)
            ) as wrong:
                assert wrong.served == right.served
                assert await wrong.answers(server.bundle())
                looks = len(server.verbs)
                await until(lambda: len(server.verbs) > looks + 20)
        assert len([event for event in logs if "a clock is wrong" in event["event"]]) == 1
        assert server.keyring() == keyring


async def test_a_clock_that_is_set_back_changes_nothing(server: ApiServer, tmp_path: Path) -> None:
    now = [datetime.now(UTC)]
    async with Replica(server, tmp_path, OFTEN, clock=lambda: now[0]) as replica:
        keyring, served = server.keyring(), replica.served
        with capture_logs():
            now[0] -= timedelta(days=3)
            server.provider(VERIFY, URL + VERIFY_PATH)
            await until(lambda: server.in_order)
        assert server.keyring() == keyring
        assert replica.served == served
