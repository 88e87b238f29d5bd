"""A warm start with a real executor, registry, Kubernetes API and, at last, the whole command."""

from __future__ import annotations

import asyncio
import json
import signal
import textwrap
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from provider.cli.prewarm_options import PrewarmFlags
from provider.configuration.pods import MAX_ANSWER_BYTES, PAGE, running_images
from provider.demo import pki
from provider.demo.scenario import open_demo
from provider.prewarming import ListError, Prewarming, PrewarmSettings, Recent, file_source
from tests.integration.test_admission import MANIFESTS, ROOT, SIGNER, STRANGER, System, push_signature, system
from tests.integration.test_cli import serving
from tests.integration.test_tls import until
from tests.simulators.gatekeeper import Gatekeeper
from tests.simulators.kubernetes import KubernetesSimulator
from tests.simulators.listener import Reply, delay, hang, reset, status
from tests.simulators.registry import RegistrySimulator

__all__ = ["system"]  # a fixture


def pod(name: str, *images: str, namespace: str = "shop") -> dict[str, Any]:
    containers = [{"name": f"c{number}", "image": image} for number, image in enumerate(images)]
    spec = {"containers": containers[:1], "initContainers": containers[1:2], "ephemeralContainers": containers[2:]}
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": {"phase": "Running"}}


async def listed(server: KubernetesSimulator) -> list[tuple[str, str]]:
    async with server.client() as client:
        return [found async for found in running_images(client, trust_env=False)]


# -- pods -------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def cluster() -> AsyncIterator[KubernetesSimulator]:
    async with KubernetesSimulator() as made:
        yield made


async def test_the_images_of_all_running_pods_are_listed_page_by_page(cluster: KubernetesSimulator) -> None:
    cluster.apply(pod("a", "reg.example.com/a:v1", "reg.example.com/init:v1", "reg.example.com/debug:v1"))
    cluster.apply(*(pod(f"b{number:03}", f"reg.example.com/b:{number}") for number in range(2 * PAGE)))
    found = await listed(cluster)
    assert found[:2] == [("shop", "reg.example.com/init:v1"), ("shop", "reg.example.com/a:v1")]
    assert len(found) == 3 + 2 * PAGE
    assert cluster.verbs == ["list pods"] * 3
    assert {request.query["fieldSelector"] for request in cluster.requests} == {"status.phase=Running"}
    assert {request.query["limit"] for request in cluster.requests} == {str(PAGE)}


@pytest.mark.parametrize(
    "spec",
    [None, [], {"containers": {"image": "x"}}, {"containers": [None, 7, {}, {"image": 7}, {"image": "[team]x"}]}],
)
async def test_a_pod_of_any_content_spoils_nothing_but_itself(spec: object, cluster: KubernetesSimulator) -> None:
    cluster.apply({**pod("a"), "spec": spec}, pod("b", "reg.example.com/b:v1"))
    assert await listed(cluster) == [("shop", "reg.example.com/b:v1")]


def answering(body: bytes) -> Any:
    async def fault(_request: object, _reply: Reply) -> Reply:
        return Reply(200, {"Content-Type": "application/json"}, body)

    return fault


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (status(500), "the API server answered 500"),
        (reset(), "the API server is out of reach"),
        (answering(b"<html>"), "no list of pods"),
        (answering(b"[" * 100_000), "no list of pods"),
        (answering(b'{"items": {}}'), "no list of pods"),
        (answering(b" " * (MAX_ANSWER_BYTES + 1)), "more than"),
    ],
    ids=["error", "reset", "html", "deep", "no list", "endless"],
)
async def test_an_api_server_that_fails_is_said_to(fault: Any, words: str, cluster: KubernetesSimulator) -> None:
    cluster.spoil("list", "pods", fault)
    with pytest.raises(ListError, match=words):
        await listed(cluster)


async def test_a_right_that_is_missing_is_named(cluster: KubernetesSimulator) -> None:
    cluster.forbid("list", "pods")
    with pytest.raises(ListError, match="may not list pods"):
        await listed(cluster)


async def test_with_the_api_server_away_the_other_lists_are_verified(system: System, tmp_path: Path) -> None:
    (path := tmp_path / "list").write_text(system.image("app", SIGNER))
    async with KubernetesSimulator() as gone:
        client = gone.client()
    flags = PrewarmFlags(path, True, None, PrewarmSettings())
    prewarming = flags.prewarming(system.executor, client, Recent(), busy=lambda: False)
    prewarming.begin()
    with capture_logs() as logs:
        await prewarming.run()
    await client.close()
    event = logs[-1]
    assert (event["ended"], event["admitted"]) == ("done", 1)
    assert "out of reach" in event["problems"][0]


async def test_pods_are_asked_for_by_the_name_that_decides_on_them(
    cluster: KubernetesSimulator, system: System
) -> None:
    """A namespace with a configuration of its own is asked for as the multi-tenancy template does."""
    key = system.image("app", SIGNER)
    snapshot = system.executor.snapshot
    assert snapshot is not None
    system.executor.use(replace(snapshot, scopes={**snapshot.scopes, "team": snapshot.scopes[""]}))
    cluster.apply(pod("a", key), pod("b", key, namespace="team"), pod("c", "Not An Image"))
    client = cluster.client()
    flags = PrewarmFlags(None, True, None, PrewarmSettings())
    prewarming = flags.prewarming(system.executor, client, Recent(), busy=lambda: False)
    prewarming.begin()
    with capture_logs() as logs:
        await prewarming.run()
    await client.close()
    assert (logs[-1]["admitted"], logs[-1]["malformed"], logs[-1]["problems"]) == (2, 1, None)
    for asked in (key, f"[team]{key}"):
        assert system.executor.remembered(asked) is not None


# -- executor and registry --------------------------------------------------------------------------------------------


def prewarming_of(system: System, path: Path, **settings: Any) -> Prewarming:
    made = Prewarming(
        system.executor.verify,
        [file_source("list", path)],
        settings=PrewarmSettings(**settings),
        busy=lambda: system.executor.suspects_any,
    )
    made.begin()
    return made


async def test_what_was_verified_beforehand_costs_a_request_nothing(system: System, tmp_path: Path) -> None:
    """And only what was verified now: a list that calls an image good makes it no better."""
    good, bad = system.image("good", SIGNER), system.image("bad", STRANGER)
    (path := tmp_path / "list").write_text(f"{good}\n{bad} # verified, isSuccess=true\n")
    with capture_logs() as logs:
        await prewarming_of(system, path).run()
    assert (logs[-1]["admitted"], logs[-1]["refused"]) == (1, 1)
    del system.registry.requests[:]
    reply = await system.gatekeeper.ask(good, bad)
    assert reply.admitted == {good}
    assert system.registry.lines == []


async def test_a_request_is_answered_while_the_registry_of_the_list_hangs(system: System, tmp_path: Path) -> None:
    async with RegistrySimulator() as dead:
        dead.fault("*", hang())
        (path := tmp_path / "list").write_text("".join(f"{dead.host}/app:{number}\n" for number in range(100)))
        task = asyncio.create_task(prewarming_of(system, path).run())
        await until(lambda: len(dead.requests) == 8)
        key = system.image("app", SIGNER)
        assert (await system.gatekeeper.ask(key)).admitted == {key}
        assert len(dead.requests) == 8  # a few at a time
        late = f"{dead.host}/app:0"
        assert (await system.gatekeeper.ask(late)).admitted == set()
        assert system.executor.suspects_any
        assert (await system.gatekeeper.ask(key)).admitted == {key}
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_the_registry_sees_a_few_images_at_a_time(system: System, tmp_path: Path) -> None:
    image = system.registry.push_image("app", content=b"app")
    push_signature(system.registry, "app", image, SIGNER)
    for number in range(20):
        system.registry.repository("app").tags[f"v{number}"] = str(image.digest)
    system.registry.fault("*/manifests/v*", delay(0.01))
    (path := tmp_path / "list").write_text("".join(f"{system.registry.host}/app:v{number}\n" for number in range(20)))
    most = 0

    def look() -> bool:
        nonlocal most
        most = max(most, len(system.executor._key_flights))
        return False

    made = Prewarming(
        system.executor.verify, [file_source("list", path)], settings=PrewarmSettings(concurrency=3), busy=look
    )
    made.begin()
    with capture_logs() as logs:
        await made.run()
    assert logs[-1]["admitted"] == 20
    assert 0 < most <= 3


# -- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(90)
async def test_a_restarted_replica_looks_at_what_was_admitted_before(tmp_path: Path) -> None:
    """The first run is asked; the second looks by itself, and is ready when it has."""
    async with open_demo() as demo:
        signed, unsigned = demo.references["signed"], demo.references["unsigned"]
        snapshot = tmp_path / "state" / "list"
        snapshot.parent.mkdir()
        (first := tmp_path / "first").mkdir()
        options = ("--prewarm-snapshot", str(snapshot), "--prewarm-wait-seconds", "60")
        async with serving(first, demo.config, *options) as running:
            await running.until_ready()
            async with Gatekeeper(running.ports[0], running.certificates.client_context()) as gatekeeper:
                assert (await gatekeeper.ask(signed, unsigned)).admitted == {signed}
            running.process.send_signal(signal.SIGTERM)
            assert await running.process.wait() == 0
        assert [line for line in snapshot.read_text().splitlines() if not line.startswith("#")] == [signed]
        (second := tmp_path / "second").mkdir()
        async with serving(second, demo.config, *options) as running:
            event = json.loads(await running.log_until("prewarming ended"))
            assert (event["ended"], event["images"], event["admitted"]) == ("done", 1, 1)
            await running.until_ready()


@pytest.fixture
async def hanging(tmp_path: Path) -> AsyncIterator[tuple[Path, Path]]:
    """A configuration, and a list of images of a registry that never answers."""
    root = textwrap.indent(pki.pem(ROOT.certificate).decode(), " " * 6)
    (config := tmp_path / "config").mkdir()
    (config / "all.yaml").write_text(MANIFESTS.format(pem=root).replace("timeoutSeconds: 2", "timeoutSeconds: 25"))
    async with RegistrySimulator() as dead:
        dead.fault("*", hang())
        lines = "".join(f"{dead.host}/app:{number}\n" for number in range(100))
        (path := tmp_path / "list").write_bytes(lines.encode() + b"\x00\xff\n")
        yield config, path


@pytest.mark.timeout(90)
async def test_readiness_does_not_wait_for_a_registry_that_hangs(tmp_path: Path, hanging: tuple[Path, Path]) -> None:
    config, path = hanging
    async with serving(tmp_path, config, "--prewarm-file", str(path)) as running:
        assert (await running.until_ready()).strip() == "ready"
        running.process.send_signal(signal.SIGTERM)
        event = json.loads(await running.log_until("prewarming ended"))
        assert (event["ended"], event["admitted"], event["not_tried"]) == ("stopped", 0, 100)
        assert event["malformed"] == 1
        assert await running.process.wait() == 0


@pytest.mark.timeout(90)
async def test_readiness_waits_for_a_list_no_longer_than_it_was_told(
    tmp_path: Path, hanging: tuple[Path, Path]
) -> None:
    config, path = hanging
    options = ("--prewarm-file", str(path), "--prewarm-wait-seconds", "2")
    async with serving(tmp_path, config, *options) as running:
        await running.log_until("configuration in use")
        assert "a warm start is being prepared" in await running.until_ready(503)
        await running.until_ready()
