"""tests/peers/install, with a stand-in for the Go toolchain: its time box, its reasons, its exit codes, its second run.

Nothing is built and no network is used here: `go` is a script that the test puts on the PATH.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

INSTALL = Path(__file__).resolve().parents[1] / "peers" / "install"
BUILDS = """
while [ "$1" != "-o" ]; do shift; done
echo "built in $PWD" > "$2"
"""
FAILS = """
echo 'some/package: reading https://a.registry.example/some/package: 403 Forbidden' >&2
exit 1
"""
HANGS = """
echo $$ > "{pids}"
sleep 300 & echo $! >> "{pids}"
wait
"""

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def install(tmp_path: Path) -> Run:
    """Run the installer with a given `go` into a folder of the test."""
    path = tmp_path / "path"
    path.mkdir()

    def run(go: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        script = path / "go"
        script.write_text("#!/bin/sh\n" + go)
        script.chmod(0o755)
        command = [sys.executable, str(INSTALL), "--bin", str(tmp_path / "bin"), *arguments]
        env = {**os.environ, "PATH": f"{path}:/usr/bin:/bin"}
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)

    return run


def report(done: subprocess.CompletedProcess[str]) -> Any:
    return json.loads(done.stdout)


def test_a_program_is_built_once_and_again_only_when_asked(install: Run, tmp_path: Path) -> None:
    first, second = install(BUILDS, "notation", "--output", "json"), install(FAILS, "notation", "--output", "json")
    assert [one["fresh"] for one in report(first)["installed"]] == [True]
    assert [one["fresh"] for one in report(second)["installed"]] == [False], "go was run though nothing had changed"
    assert report(first)["installed"][0]["version"] == "v1.3.2"
    assert os.access(tmp_path / "bin" / "notation", os.X_OK)
    forced = install(FAILS, "notation", "--output", "json", "--force")
    assert list(report(forced)["missing"]) == ["notation"]


def test_each_program_is_built_from_its_own_pins(install: Run, tmp_path: Path) -> None:
    install(BUILDS, "notation", "helm")
    for name in ("notation", "helm"):
        assert (tmp_path / "bin" / name).read_text() == f"built in {INSTALL.parent / name}\n"


def test_what_cannot_be_had_is_reported_with_the_reason_and_fails_only_when_strict(
    install: Run, tmp_path: Path
) -> None:
    lenient, strict = install(FAILS, "opa", "notation"), install(FAILS, "opa", "notation", "--strict")
    assert (lenient.returncode, strict.returncode) == (0, 1)
    assert "403 Forbidden" in lenient.stdout
    assert "registry.example" not in lenient.stdout, "no registry's address belongs in a log"
    assert "0 there, 2 missing" in lenient.stdout
    assert not (tmp_path / "bin" / "opa").exists()


def test_a_build_that_hangs_is_stopped_with_its_children_and_the_next_goes_on(install: Run, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    done = install(HANGS.format(pids=pids), "opa", "notation", "--seconds", "0.5")
    assert done.returncode == 0
    assert done.stdout.count("out of time") == 2
    assert [pid for pid in pids.read_text().split() if runs(pid)] == []


def runs(pid: str) -> bool:
    """Whether a process runs; one that is dead and waits to be reaped does not."""
    try:
        state = Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_the_time_box_of_all_leaves_nothing_for_the_rest(install: Run, tmp_path: Path) -> None:
    done = install(
        HANGS.format(pids=tmp_path / "pids"), "opa", "notation", "--total-seconds", "0.5", "--output", "json"
    )
    assert report(done)["missing"]["notation"] == "the time box was used up before it began"


def test_without_go_the_report_says_so(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    command = [sys.executable, str(INSTALL), "--bin", str(tmp_path / "bin"), "notation"]
    env = {"PATH": str(tmp_path / "empty")}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0
    assert "there is no Go toolchain" in done.stdout


def test_a_set_stands_for_its_programs_and_what_only_a_cluster_needs_is_asked_for(install: Run) -> None:
    usual = report(install(FAILS, "--output", "json"))
    cluster = report(install(FAILS, "e2e", "notation", "--output", "json"))
    tried = [{one["name"] for one in said["installed"]} | set(said["missing"]) for said in (usual, cluster)]
    assert "opa" in tried[0]
    assert "kube-apiserver" not in tried[0]
    assert {"notation", "etcd", "gatekeeper", "kube-apiserver"} <= tried[1]
    assert "opa" not in tried[1]


def test_an_unknown_program_is_wrong_usage(install: Run) -> None:
    done = install(BUILDS, "kubelet")
    assert done.returncode == 2
    assert "unknown program kubelet" in done.stderr


def test_every_pin_is_exact_and_has_a_hash() -> None:
    modules = sorted(INSTALL.parent.glob("*/go.mod"))
    assert modules, "there are no pins"
    for module in modules:
        hashes = (module.parent / "go.sum").read_text()
        excluded = False  # what a module must not be built from has no hash
        for line in module.read_text().splitlines():
            excluded = line == "exclude (" or (excluded and line != ")")
            words = [] if excluded else line.removeprefix("require").split()
            if len(words) < 2 or "/" not in words[0] or not words[1].startswith("v"):
                continue
            assert f"{words[0]} {words[1]}" in hashes, f"{module.parent.name}: {words[0]} {words[1]} has no hash"
        assert "replace" not in module.read_text()
