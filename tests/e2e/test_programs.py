"""Where the rig looks for its programs, and what it says when there are none. These tests start nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e import programs
from tests.e2e.programs import ASSETS, MANIFEST, Programs, find, variable


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing but empty places to look in: assets, a clone and a PATH below a folder."""
    for name in ("etcd", "kube-apiserver", "gatekeeper", "gatekeeper-manifest"):
        monkeypatch.delenv(variable(name), raising=False)
    monkeypatch.setenv(ASSETS, str(tmp_path / "assets"))
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setattr(programs, "CLONE", tmp_path / "clone")
    return tmp_path


def lay(file: Path) -> Path:
    """Put a program somewhere."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("#!/bin/sh\n")
    file.chmod(0o755)
    return file


def test_a_program_that_is_nowhere_is_a_skip_that_says_what_to_do() -> None:
    with pytest.raises(pytest.skip.Exception, match=r"no etcd here: run `make e2e-tools`.*COUNTERSIGN_E2E_ETCD"):
        find("etcd")


def test_the_first_place_that_has_it_wins(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = [places / "path" / "etcd", places / "clone" / ".peers" / "bin" / "etcd", places / "assets" / "etcd"]
    for file in where:
        lay(file)
        assert find("etcd") == file
    own = lay(places / "own-etcd")
    monkeypatch.setenv("COUNTERSIGN_E2E_ETCD", str(own))
    assert find("etcd") == own


def test_a_variable_that_names_nothing_runnable_is_a_mistake_and_no_skip(
    places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay(places / "path" / "kube-apiserver")
    monkeypatch.setenv("COUNTERSIGN_E2E_KUBE_APISERVER", str(places))
    with pytest.raises(pytest.fail.Exception, match="cannot be run"):
        find("kube-apiserver")


def test_gatekeepers_manifest_lies_beside_the_program_or_is_named(
    places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("etcd", "kube-apiserver", "gatekeeper"):
        lay(places / "path" / name)
    with pytest.raises(pytest.skip.Exception, match="COUNTERSIGN_E2E_GATEKEEPER_MANIFEST"):
        Programs.find()
    beside = lay(places / "path" / MANIFEST)
    assert Programs.find().manifest == beside
    named = lay(places / "named.yaml")
    monkeypatch.setenv("COUNTERSIGN_E2E_GATEKEEPER_MANIFEST", str(named))
    assert Programs.find().manifest == named
    monkeypatch.setenv("COUNTERSIGN_E2E_GATEKEEPER_MANIFEST", str(places / "absent.yaml"))
    with pytest.raises(pytest.fail.Exception, match="is not there"):
        Programs.find()
