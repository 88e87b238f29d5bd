"""Files and folders of manifests, read once and watched."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from provider.configuration import manifests
from provider.configuration.manifests import Manifest, digest_of, load, read_set, watch
from provider.configuration.resources import ResourceSet
from provider.configuration.stores import OrasParameters
from provider.errors import ConfigurationError
from tests.unit.configuration.samples import GOOD, fill, good, manifest

ALL = "\n---\n".join(fill(text) for text in good())
POLL_SECONDS = 0.001
MOVING = Path("/proc/sys/kernel/random/uuid")


def write(folder: Path, **files: str) -> Path:
    """Write files; `__` in a name stands for its dot."""
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(fill(text))
    return folder


def faults_of(path: Path) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        load(path)
    assert caught.value.code == "CONFIG_INVALID"
    return list(map(str, caught.value.faults))


# -- reading ----------------------------------------------------------------------------------------------------------


def test_a_file_of_several_documents_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, all__yaml=ALL) / "all.yaml"
    resources = load(path)
    assert [one.label for one in resources] == [
        "Store/store-oras",
        "Verifier/verifier-notation",
        "KeyManagementProvider/ratify-notation-inline-cert-0",
        "Policy/ratify-policy",
    ]
    assert resources.stores[0].source == f"{path}#1"


def test_a_folder_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    write(tmp_path, b__yml=GOOD["Verifier"], a__yaml=GOOD["Store"], c__yaml=GOOD["KeyManagementProvider"])
    (tmp_path / "d.json").write_text(json.dumps(yaml.safe_load(GOOD["Policy"])))
    assert [one.source for one in load(tmp_path)] == [
        f"{tmp_path}/{name}#1" for name in ("a.yaml", "b.yml", "c.yaml", "d.json")
    ]


def test_what_is_no_manifest_is_left_alone(tmp_path: Path) -> None:
    """Notes, editors' backups, hidden files, folders, and the file of kustomize."""
    write(tmp_path, all__yaml=ALL, README__md="# x", all__yaml__bak="}{", kustomization__yaml="resources: [all.yaml]")
    write(tmp_path, __all__yaml__swp="}{", __hidden__yaml="}{")
    (tmp_path / "more.yaml").mkdir()
    write(tmp_path / "more.yaml", broken__yaml="}{")
    assert len(list(load(tmp_path))) == 4


def test_a_folder_without_manifests_is_no_configuration(tmp_path: Path) -> None:
    write(tmp_path, README__md="# x")
    assert faults_of(tmp_path) == [f"{tmp_path}: holds no manifest (*.yaml, *.yml, *.json)"]


def test_a_path_that_leads_nowhere_is_told(tmp_path: Path) -> None:
    path = tmp_path / "none.yaml"
    assert faults_of(path) == [f"{path}: cannot be read: No such file or directory"]


def test_files_that_cannot_be_read_are_told_together(tmp_path: Path) -> None:
    """A pipe would keep a reader waiting for ever, a dangling link names nothing."""
    write(tmp_path, all__yaml=ALL)
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "link.yaml").symlink_to("nowhere.yaml")
    assert faults_of(tmp_path) == [
        f"{tmp_path}/link.yaml: cannot be read: No such file or directory",
        f"{tmp_path}/pipe.yaml: cannot be read: not a regular file",
    ]


def test_too_much_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "big.yaml"
    path.write_bytes(b"#" * (manifests.MAX_BYTES + 1))
    assert faults_of(path) == [f"{path}: cannot be read: more than {manifests.MAX_BYTES} bytes"]
    for number in range(manifests.MAX_FILES + 1):
        (tmp_path / f"{number}.yaml").touch()
    assert faults_of(tmp_path) == [f"{tmp_path}: cannot be read: more than {manifests.MAX_FILES} manifests"]


def test_a_folder_has_a_limit_too(tmp_path: Path) -> None:
    full = b"#" * manifests.MAX_BYTES
    for number in range(9):
        (tmp_path / f"{number}.yaml").write_bytes(full)
    assert faults_of(tmp_path) == [
        f"{tmp_path}: the manifests together have more than {manifests.MAX_TOTAL_BYTES} bytes"
    ]


def test_json_is_read_strictly(tmp_path: Path) -> None:
    write(tmp_path, a__json='{"kind": 1, "kind": 2}', b__json="{", c__json="[]")
    assert faults_of(tmp_path) == [
        f"{tmp_path}/a.json#1: is not strict JSON: duplicate member name in an object",
        f"{tmp_path}/b.json#1: is not strict JSON: Expecting property name enclosed in double quotes at character 1",
        f"{tmp_path}/c.json#1: must be a mapping with apiVersion and kind, found a list",
    ]


def test_paths_in_a_manifest_begin_at_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the process was started."""
    store = GOOD["Store"] + "    registries: [{host: registry.example.com, caFile: ca.pem}]\n"
    write(tmp_path, all__yaml="\n---\n".join(good(Store=store)))
    monkeypatch.chdir(tmp_path.parent)
    for path in (tmp_path, Path(tmp_path.name), Path(tmp_path.name, "all.yaml")):
        parameters = load(path).stores[0].parameters
        assert isinstance(parameters, OrasParameters)
        assert parameters.registries[0].ca_file == tmp_path / "ca.pem"


def test_a_volume_of_kubernetes_is_read_in_one_generation(tmp_path: Path) -> None:
    """Links into a hidden folder; a relative path in a manifest still begins at the volume."""
    generation = tmp_path / "..2026_01_02"
    generation.mkdir()
    store = GOOD["Store"] + "    registries: [{host: registry.example.com, caFile: ca.pem}]\n"
    write(generation, all__yaml="\n---\n".join(good(Store=store)))
    (tmp_path / "..data").symlink_to(generation.name)
    (tmp_path / "all.yaml").symlink_to("..data/all.yaml")
    resources = load(tmp_path)
    parameters = resources.stores[0].parameters
    assert isinstance(parameters, OrasParameters)
    assert parameters.registries[0].ca_file == tmp_path / "ca.pem"
    assert resources.stores[0].source == f"{tmp_path}/all.yaml#1"
    assert len(list(load(tmp_path / "all.yaml"))) == 4


def test_the_home_of_the_provider_decides_which_certificate_stores_are_near() -> None:
    store = """
apiVersion: config.ratify.deislabs.io/v1beta1
kind: CertificateStore
metadata: {name: certs, namespace: ratify}
spec: {provider: inline, parameters: {value: @ROOT@}}
"""
    verifier = GOOD["Verifier"].replace("ratify-notation-inline-cert-0", "certs")
    texts = good(Verifier=verifier, KeyManagementProvider=store)
    assert read_set([manifest(text, f"{n}.yaml") for n, text in enumerate(texts)], home="ratify").home == "ratify"
    with pytest.raises(ConfigurationError, match="did you mean ratify/certs"):
        read_set([manifest(text, f"{n}.yaml") for n, text in enumerate(texts)])


def test_the_digest_is_of_names_and_contents() -> None:
    """No two folders share one by shifting octets between names and contents."""
    ab, a_b = Manifest("ab", Path(), b""), Manifest("a", Path(), b"b")
    digests = {digest_of(those) for those in ([ab], [a_b], [ab, a_b], [a_b, ab], [])}
    assert len(digests) == 5


def test_the_error_says_the_first_fault_and_how_many_more() -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_set([manifest("- a\n---\n- b\n", "x.yaml")])
    assert str(caught.value) == (
        "CONFIG_INVALID: x.yaml#1: must be a mapping with apiVersion and kind, found a list (and 2 more)"
    )


@given(st.lists(st.binary(max_size=120), max_size=3), st.sampled_from(["a.yaml", "a.json"]))
@settings(max_examples=200, deadline=None)
def test_n70_any_files_give_a_set_or_faults(contents: list[bytes], name: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_set([Manifest(name, Path("/"), data) for data in contents])
    assert caught.value.faults


# -- watching ---------------------------------------------------------------------------------------------------------


class Watcher:
    """Watches a path and keeps what was reported."""

    def __init__(self, path: Path) -> None:
        self.reports: asyncio.Queue[ConfigurationError] = asyncio.Queue()
        self.sets: AsyncIterator[ResourceSet] = watch(path, self.reports.put_nowait, poll_seconds=POLL_SECONDS)
        self.next: asyncio.Task[ResourceSet] | None = None

    async def good(self) -> ResourceSet:
        """The next good set."""
        task, self.next = self.next or self.look(), None
        return await asyncio.wait_for(task, 10)

    async def bad(self) -> ConfigurationError:
        """The next report; meanwhile no set may come."""
        self.next = self.next or self.look()
        error = await asyncio.wait_for(self.reports.get(), 10)
        assert not self.next.done()
        return error

    def look(self) -> asyncio.Task[ResourceSet]:
        async def following() -> ResourceSet:
            return await anext(self.sets)

        return asyncio.create_task(following())

    async def aclose(self) -> None:
        if self.next is not None:
            self.next.cancel()
            await asyncio.gather(self.next, return_exceptions=True)
        await self.sets.aclose()  # type: ignore[attr-defined]


async def test_n65_a_bad_update_is_reported_with_every_fault_and_replaces_nothing(tmp_path: Path) -> None:
    """The last good set stays in force until the next good one."""
    write(tmp_path, all__yaml=ALL)
    async with aclosing(Watcher(tmp_path)) as watcher:
        first = await watcher.good()
        write(tmp_path, all__yaml=ALL.replace("name: oras", "name: orass").replace("type: config-policy", "type: x"))
        error = await watcher.bad()
        assert [fault.path for fault in error.faults] == ["spec.name", "spec.type"]
        write(tmp_path, all__yaml=ALL.replace("ttl: 10", "ttl: 20"))
        second = await watcher.good()
        assert first.digest != second.digest
        assert watcher.reports.empty()


async def test_n65_a_folder_that_vanishes_is_reported_once(tmp_path: Path) -> None:
    """An unmounted volume is no reason to forget what was good."""
    folder = tmp_path / "config"
    folder.mkdir()
    write(folder, all__yaml=ALL)
    async with aclosing(Watcher(folder)) as watcher:
        await watcher.good()
        folder.rename(tmp_path / "elsewhere")
        assert "cannot be read" in str(await watcher.bad())
        (tmp_path / "elsewhere").rename(folder)
        write(folder, all__yaml=ALL + "\n# changed\n")
        await watcher.good()
        assert watcher.reports.empty()


async def test_a_change_and_its_reversal_yield_nothing_new(tmp_path: Path) -> None:
    write(tmp_path, all__yaml=ALL)
    async with aclosing(Watcher(tmp_path)) as watcher:
        await watcher.good()
        write(tmp_path, all__yaml="- broken\n")
        await watcher.bad()
        write(tmp_path, all__yaml=ALL)
        watcher.next = watcher.next or watcher.look()
        await asyncio.sleep(50 * POLL_SECONDS)
        assert not watcher.next.done()
        write(tmp_path, more__yaml="- broken\n")
        await watcher.bad()
        (tmp_path / "more.yaml").unlink()
        write(tmp_path, all__yaml=ALL.replace("ttl: 10", "ttl: 20"))
        parameters = (await watcher.good()).stores[0].parameters
        assert isinstance(parameters, OrasParameters)
        assert parameters.ttl == 20


async def test_a_watch_that_begins_with_nothing_good_goes_on(tmp_path: Path) -> None:
    """N58: nothing to decide with, until there is."""
    async with aclosing(Watcher(tmp_path)) as watcher:
        assert "holds no manifest" in str(await watcher.bad())
        write(tmp_path, all__yaml=ALL)
        assert len(list(await watcher.good())) == 4


async def test_a_swapped_volume_of_kubernetes_is_a_change(tmp_path: Path) -> None:
    """Kubelet writes a new hidden folder and renames the link."""
    for generation, text in (("..1", ALL), ("..2", ALL.replace("ttl: 10", "ttl: 20"))):
        (tmp_path / generation).mkdir()
        write(tmp_path / generation, all__yaml=text)
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "all.yaml").symlink_to("..data/all.yaml")
    async with aclosing(Watcher(tmp_path)) as watcher:
        first = await watcher.good()
        (tmp_path / "..data_tmp").symlink_to("..2")
        (tmp_path / "..data_tmp").rename(tmp_path / "..data")
        assert (await watcher.good()).digest != first.digest


@pytest.mark.skipif(not MOVING.exists(), reason="no file here that reads differently each time")
async def test_a_file_that_is_still_being_written_is_not_judged(tmp_path: Path) -> None:
    """Content that is another at each look counts for nothing until it rests."""
    write(tmp_path, all__yaml=ALL)
    async with aclosing(Watcher(tmp_path)) as watcher:
        await watcher.good()
        (tmp_path / "moving.yaml").symlink_to(MOVING)
        watcher.next = watcher.look()
        await asyncio.sleep(50 * POLL_SECONDS)
        assert watcher.reports.empty()
        (tmp_path / "moving.yaml").unlink()
        write(tmp_path, rests__yaml="- broken\n")
        assert "found a list" in str(await watcher.bad())
