"""The objects of charts/countersign, rendered by the real `helm template`.

Rules: nothing of an object is changed here; a test that must change something says so.

What does not belong here: tests of the chart itself (tests/chart).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import yaml

from tests.e2e.rig import NAMESPACE, Json
from tests.interop import peers

CHART: Final = peers.CLONE / "charts" / "countersign"
CRDS: Final = CHART / "crds"
RELEASE: Final = "ratify"  # the tutorial's name


def render(*settings: str, only: str | None = None) -> list[Json]:
    """The objects of an install.

    Args:
        settings: `key=value`, as for `--set`.
        only: one template's objects, by its file name; all objects by default.

    Raises:
        pytest.skip.Exception: there is no helm.
        AssertionError: helm failed; with its words.
    """
    helm: Path = peers.find("helm")
    options = [word for setting in settings for word in ("--set", setting)]
    if only is not None:
        options += ["--show-only", f"templates/{only}"]
    text = peers.must([helm, "template", RELEASE, CHART, "--namespace", NAMESPACE, *options])
    return [each for each in yaml.safe_load_all(text) if each]
