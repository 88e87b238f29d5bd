"""What a user does with pods and policies, and what kubectl says then.

Rules:
- Templates and constraints are those of policies/, applied as they are with kubectl.
- Words are compared, not only exit codes: people and scripts read them.

What does not belong here: the tests' own expectations.
"""

from __future__ import annotations

import json
from typing import Final

from tests.e2e.cluster import Cluster, Json, Said
from tests.e2e.images import Image
from tests.interop.peers import CLONE

POLICIES: Final = CLONE / "policies"
ELSEWHERE: Final = "elsewhere"  # a namespace that no constraint covers
TENANT: Final = "tenant"  # a namespace with trust of its own
EXTRA_NAMESPACES: Final = (ELSEWHERE, TENANT)
DENIED: Final = 'admission webhook "validation.gatekeeper.sh" denied the request: '


def failure(image: Image | str) -> str:
    """What users read about an image, before the reason."""
    return f"Subject failed verification: {image}"


def run(cluster: Cluster, name: str, image: Image | str) -> Said:
    """`kubectl run`, as the tutorial has it."""
    return cluster.kubectl("run", name, f"--image={image}")


def assert_admitted(said: Said, name: str) -> None:
    """kubectl says that a pod was created, and nothing else."""
    assert said.ok, str(said)
    assert said.out == f"pod/{name} created\n", str(said)


def assert_denied(said: Said, *images: Image | str, code: str = "") -> None:
    """Gatekeeper denied it for each of these images and for nothing else.

    Args:
        said: what kubectl said.
        images: those that failed.
        code: code of the reason.
    """
    assert said.code == 1, str(said)
    assert said.out == "", str(said)
    _, found, messages = said.err.partition(DENIED)
    assert found, str(said)
    lines = sorted(messages.splitlines())
    heads = sorted(f"[ratify-constraint] {failure(image)}: {code}" for image in images)
    assert len(lines) == len(heads), str(said)
    for line, head in zip(lines, heads, strict=True):
        assert line.startswith(head), str(said)


def pod(name: str, *images: Image | str, init: tuple[Image | str, ...] = ()) -> Json:
    """A pod with a container for each image."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "containers": [{"name": f"main-{number}", "image": str(image)} for number, image in enumerate(images)],
            "initContainers": [{"name": f"init-{number}", "image": str(image)} for number, image in enumerate(init)],
        },
    }


def create(cluster: Cluster, thing: Json, *words: str) -> Said:
    """`kubectl apply` of one object."""
    return cluster.kubectl("apply", *words, "-f", "-", stdin=json.dumps(thing))


def enforce(cluster: Cluster, constraint: str = "constraint.yaml", template: str = "template.yaml") -> None:
    """Apply a template and a constraint of policies/ as they are, and wait until Gatekeeper acts on them."""
    cluster.must("apply", "-f", str(POLICIES / template))
    cluster.wait_template()
    cluster.must("apply", "-f", str(POLICIES / "samples" / constraint))
    cluster.wait_constraint()
