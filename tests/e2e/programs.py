"""Where the programs of a cluster are: etcd, kube-apiserver, kubectl, Gatekeeper.

Rules:
- A program is named by its variable (`COUNTERSIGN_E2E_ETCD=/path`), else taken from the folder that KUBEBUILDER_ASSETS
  names (what setup-envtest lays down), else from `.peers/bin` (`make e2e-tools` fills it), else from the PATH.
- A variable that names nothing runnable is a mistake of the person who set it, so it fails; a program that is nowhere
  is a skip with the reason.

What does not belong here: starting them (processes.py, rig.py).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import pytest

from tests.interop.peers import CLONE

ASSETS: Final = "KUBEBUILDER_ASSETS"
MANIFEST: Final = "gatekeeper.yaml"  # of Gatekeeper's release; `make e2e-tools` puts it beside the program


def variable(name: str) -> str:
    """The environment variable that names a program."""
    return f"COUNTERSIGN_E2E_{name.upper().replace('-', '_')}"


def find(name: str) -> Path:
    """The program to run.

    Raises:
        pytest.skip.Exception: it is not on this machine.
        pytest.fail.Exception: its variable names something that cannot be run.
    """
    named = os.environ.get(variable(name))
    if named:
        if not _runnable(Path(named)):
            pytest.fail(f"{variable(name)} names {named!r}, which cannot be run", pytrace=False)
        return Path(named)
    for candidate in _candidates(name):
        if _runnable(candidate):
            return candidate
    pytest.skip(f"no {name} here: run `make e2e-tools`, or name one with {variable(name)}")


def _candidates(name: str) -> Iterator[Path]:
    assets = os.environ.get(ASSETS)
    if assets:
        yield Path(assets) / name
    yield CLONE / ".peers" / "bin" / name
    found = shutil.which(name)
    if found is not None:
        yield Path(found)


def _runnable(path: Path) -> bool:
    return os.access(path, os.X_OK) and not path.is_dir()


@dataclass(frozen=True)
class Programs:
    """The programs that make a cluster.

    Attributes:
        manifest: gatekeeper.yaml of the release that `gatekeeper` is of.
    """

    etcd: Path
    apiserver: Path
    gatekeeper: Path
    manifest: Path

    @classmethod
    def find(cls) -> Self:
        """All of them.

        Raises:
            pytest.skip.Exception: one is not on this machine.
            pytest.fail.Exception: a variable names something that cannot be used.
        """
        etcd, apiserver, gatekeeper = (find(name) for name in ("etcd", "kube-apiserver", "gatekeeper"))
        named = os.environ.get(variable("gatekeeper-manifest"))
        manifest = Path(named) if named else gatekeeper.parent / MANIFEST
        if not manifest.is_file():
            reason = f"{manifest} is not there; {variable('gatekeeper-manifest')} names Gatekeeper's manifest"
            if named:
                pytest.fail(reason, pytrace=False)
            pytest.skip(reason)
        return cls(etcd, apiserver, gatekeeper, manifest)
