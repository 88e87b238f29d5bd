"""`countersign apply-crds` against an API server that is slow, strange, forbidding or away.

A real API server is asked in tests/e2e/test_crds.py.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from provider.configuration.schemas import custom_resource_definitions
from tests.simulators.kubernetes import KubernetesSimulator

PLURAL = "customresourcedefinitions"
DEFINITIONS = {definition["metadata"]["name"]: definition for definition in custom_resource_definitions().values()}
GOOD = [{"type": "NamesAccepted", "status": "True"}, {"type": "Established", "status": "True"}]


@dataclass(frozen=True)
class Finished:
    """What the command left behind."""

    code: int
    out: str
    err: str


@pytest_asyncio.fixture
async def server() -> AsyncIterator[KubernetesSimulator]:
    async with KubernetesSimulator() as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """All definitions, as files of a folder."""
    path = tmp_path / "crds"
    path.mkdir()
    for name, definition in DEFINITIONS.items():
        (path / f"{name}.yaml").write_text(json.dumps(definition))
    return path


async def apply_crds(path: Path, server: KubernetesSimulator | None, *options: str) -> Finished:
    kubeconfig = path.parent / "kubeconfig"
    if server is not None:
        server.kubeconfig(kubeconfig)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "provider", "apply-crds", str(path), *options),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "KUBECONFIG": str(kubeconfig), "NO_PROXY": "127.0.0.1"},
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    assert b"Traceback" not in err, err.decode()
    return Finished(process.returncode, out.decode(), err.decode())


async def establish(server: KubernetesSimulator, conditions: list[dict[str, str]]) -> None:
    """What the API server's own controller does after a definition was written."""
    pending = set(DEFINITIONS)
    while pending:
        for name in tuple(pending):
            try:
                found = server.object(PLURAL, name)
            except KeyError:
                continue
            server.apply({**found, "status": {"conditions": conditions}})
            pending.discard(name)
        await asyncio.sleep(0.01)


async def apply_established(
    path: Path, server: KubernetesSimulator, conditions: list[dict[str, str]] = GOOD
) -> Finished:
    """Run the command while the API server does its part."""
    controller = asyncio.create_task(establish(server, conditions))
    try:
        return await apply_crds(path, server)
    finally:
        controller.cancel()
        await asyncio.gather(controller, return_exceptions=True)


async def test_every_definition_is_created_and_waited_for(server: KubernetesSimulator, folder: Path) -> None:
    """Resources that are created next are accepted: nothing ends well before every definition is in force."""
    done = await apply_established(folder, server)
    assert done.code == 0, done.err
    assert done.out.splitlines() == [f"customresourcedefinition/{name} created" for name in sorted(DEFINITIONS)] + [
        "9 definitions are in force"
    ]
    for name, definition in DEFINITIONS.items():
        assert server.object(PLURAL, name)["spec"] == definition["spec"]
    applied = [request for request in server.requests if request.method == "PATCH"]
    assert {request.query["fieldManager"] for request in applied} == {"countersign"}
    assert {request.query["force"] for request in applied} == {"true"}
    assert not any(verb.startswith("delete") for verb in server.verbs)


async def test_a_second_run_changes_nothing_and_a_changed_definition_is_told(
    server: KubernetesSimulator, folder: Path
) -> None:
    await apply_established(folder, server)
    again = await apply_crds(folder, server)
    assert again.out.count(" unchanged\n") == 9
    path = folder / "stores.config.ratify.deislabs.io.yaml"
    path.write_text(path.read_text().replace("Settings of the type.", "What the type needs."))
    changed = await apply_crds(folder, server)
    assert changed.out.count(" unchanged\n") == 8
    assert "customresourcedefinition/stores.config.ratify.deislabs.io changed\n" in changed.out


async def test_a_definition_that_never_comes_into_force_is_not_waited_for_for_ever(
    server: KubernetesSimulator, folder: Path
) -> None:
    done = await apply_crds(folder, server, "--timeout=1")
    assert done.code == 2
    assert "the definitions were not in force within 1 s" in done.err


@pytest.mark.parametrize(
    ("condition", "told"),
    [
        (
            {"type": "NonStructuralSchema", "status": "True", "message": "spec: must not be empty"},
            "NonStructuralSchema: spec: must not be empty",
        ),
        (
            {"type": "NamesAccepted", "status": "False", "message": '"stores" is already in use'},
            'is not in force: "stores" is already in use',
        ),
        ({"type": "Terminating", "status": "True", "message": "being deleted"}, "Terminating: being deleted"),
    ],
)
async def test_a_definition_that_cannot_come_into_force_is_told_in_the_api_servers_words(
    server: KubernetesSimulator, folder: Path, condition: dict[str, str], told: str
) -> None:
    done = await apply_established(folder, server, [*GOOD[1:], condition])
    assert done.code == 2
    assert told in done.err


async def test_missing_rights_are_told_with_what_to_give(server: KubernetesSimulator, folder: Path) -> None:
    server.forbid("patch", PLURAL)
    done = await apply_crds(folder, server)
    assert done.code == 2
    assert "the API server refused: customresourcedefinitions is forbidden" in done.err
    assert "Give the service account get, create and patch on customresourcedefinitions" in done.err


async def test_an_api_server_that_is_away_is_told(folder: Path) -> None:
    async with KubernetesSimulator() as gone:
        gone.kubeconfig(folder.parent / "kubeconfig")
    done = await apply_crds(folder, None)
    assert done.code == 2
    assert "the API server did not answer" in done.err


async def test_no_way_to_a_cluster_is_told(folder: Path) -> None:
    done = await apply_crds(folder, None)
    assert done.code == 2
    assert "there is no way to a Kubernetes API server" in done.err
    assert "a pod with a service account's token, or KUBECONFIG" in done.err


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("apiVersion: v1\nkind: Secret\nmetadata: {name: s}\n", "is no CustomResourceDefinition of config.ratify"),
        ("a: [", "line"),
        ("- 1\n", "is no CustomResourceDefinition"),
        (
            json.dumps({**DEFINITIONS["stores.config.ratify.deislabs.io"], "metadata": {"name": "s"}}),
            "is no Custom",
        ),
        (json.dumps(DEFINITIONS["stores.config.ratify.deislabs.io"]), "stands here a second time"),
        (
            json.dumps({**DEFINITIONS["stores.config.ratify.deislabs.io"], "spec": {"group": "example.com"}}),
            "is no CustomResourceDefinition of config.ratify",
        ),
    ],
    ids=["another kind", "no YAML", "no object", "another name", "a definition twice", "another group"],
)
async def test_nothing_is_applied_when_a_file_holds_anything_else(
    server: KubernetesSimulator, folder: Path, text: str, told: str
) -> None:
    """The Job may change definitions of the whole cluster: it does so with ours alone, and with all or none."""
    (folder / "z.yaml").write_text(text)
    done = await apply_crds(folder, server)
    assert done.code == 2
    assert "z.yaml" in done.err
    assert told in done.err
    assert server.verbs == []


async def test_an_empty_folder_is_a_mistake(server: KubernetesSimulator, tmp_path: Path) -> None:
    (tmp_path / "crds").mkdir()
    done = await apply_crds(tmp_path / "crds", server)
    assert (done.code, done.out) == (2, "")
    assert "holds no manifest" in done.err
