"""charts/countersign through the real helm: rendered, installed, upgraded, removed.

Rules: nothing of an object is changed here; a test that must change something says so. Helm keeps nothing in the home
of whoever runs the tests.

What does not belong here: tests of the chart itself (tests/chart).
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import yaml

from tests.e2e.cluster import NAMESPACE, Json, Said
from tests.interop import peers

CHART: Final = peers.CLONE / "charts" / "countersign"
CRDS: Final = CHART / "crds"
RELEASE: Final = "ratify"  # the tutorial's name
WAIT_SECONDS: Final = 60  # for what helm waits for: the pods of an installation
CALL_SECONDS: Final = 120.0  # one helm, with what it waits for


class Helm:
    """Helm with the rights of an administrator of a cluster."""

    def __init__(self, kubeconfig: Path, folder: Path) -> None:
        """Nothing runs yet.

        Raises:
            pytest.skip.Exception: there is no helm.
        """
        self._program = peers.find("helm")
        homes = {f"HELM_{name}_HOME": str(folder / "helm" / name.lower()) for name in ("CACHE", "CONFIG", "DATA")}
        self.environment: Final = {**homes, "KUBECONFIG": str(kubeconfig)}

    def __call__(self, *words: str | Path) -> Said:
        """Run helm to its end, whatever its exit code."""
        done = subprocess.run(
            [str(self._program), *(str(word) for word in words)],
            env={**os.environ, **self.environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=CALL_SECONDS,
            check=False,
        )
        return Said(done.returncode, done.stdout, done.stderr)

    def must(self, *words: str | Path) -> str:
        """Run helm, which has to succeed; its standard output.

        Raises:
            AssertionError: with its own words.
        """
        said = self(*words)
        assert said.ok, f"helm {' '.join(str(word) for word in words)}: {said}"
        return said.out

    def manifest(self) -> list[Json]:
        """The objects of the release, as they were rendered."""
        text = self.must("get", "manifest", RELEASE, "--namespace", NAMESPACE)
        return [each for each in yaml.safe_load_all(text) if each]


def options(settings: Sequence[str]) -> list[str]:
    """`--set` for each of `key=value`, `--set-file` for each of `key=@path`."""
    words = []
    for setting in settings:
        key, _, value = setting.partition("=")
        words += ["--set-file", f"{key}={value[1:]}"] if value.startswith("@") else ["--set", setting]
    return words
