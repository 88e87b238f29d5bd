"""A cluster with a good set of resources, for the tests of what watches it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.replica import bare
from tests.simulators.kubernetes import KubernetesSimulator
from tests.simulators.layout import write_layout
from tests.simulators.registry import Repository
from tests.simulators.signed_images import push_image, sign
from tests.simulators.signer import Signer
from tests.unit.configuration.objects import one
from tests.unit.configuration.samples import SIGNER


@pytest.fixture(scope="session")
def layout_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A layout with an image signed by SIGNER, and one signed by a stranger."""
    repository = Repository()
    sign(repository, push_image(repository, "signed"), SIGNER)
    sign(repository, push_image(repository, "strange"), Signer.make())
    return write_layout(repository, tmp_path_factory.mktemp("layout"))


@pytest.fixture
async def server(layout_folder: Path) -> AsyncIterator[KubernetesSimulator]:
    """A cluster with the good set of resources."""
    async with KubernetesSimulator() as made:
        store = {"name": "oci-layout", "parameters": {"path": str(layout_folder)}}
        made.apply({**bare(one("Store")), "spec": store})
        made.apply(*(bare(one(kind)) for kind in ("Verifier", "KeyManagementProvider", "Policy")))
        yield made
