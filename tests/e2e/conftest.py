"""Fixtures of the end-to-end tests: one cluster, one registry and one provider for all of them.

Rules:
- A missing program skips everything here, with the reason.
- They run when they are asked for (`make e2e`, or `pytest tests/e2e`) and not with the whole suite: every worker of it
  would start a cluster of its own.
- Each test begins without pods and without constraints, with the provider running on the same configuration, and
  leaves its own objects to the next test's clean-up, so that a failure can be looked at.

What does not belong here: expectations.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.cluster import Cluster
from tests.e2e.countersign import Countersign
from tests.e2e.images import Shop, open_shop
from tests.e2e.pods import EXTRA_NAMESPACES, enforce
from tests.e2e.rig import Rig, open_cluster
from tests.interop import peers
from tests.interop.registries import KINDS, Registry

HERE = Path(__file__).resolve().parent
TEST_SECONDS = 180  # of a test with all that it waits for; the first one also starts the cluster
CLUSTER = "cluster"  # the fixture that all tests on a cluster use, in the end
REGISTRIES = ("ggcr-registry", "docker-registry", "zot")  # the first that is here is taken


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    named = [Path(word.partition("::")[0]).resolve() for word in config.args]
    asked = any(HERE in (path, *path.parents) for path in named)
    items.sort(key=lambda item: item.path == HERE / "test_article.py")  # it ends with everything removed
    for item in items:
        if HERE not in item.path.parents:
            continue
        item.add_marker(pytest.mark.timeout(TEST_SECONDS))
        if not asked and CLUSTER in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.skip(reason="end-to-end tests run with `make e2e`"))


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster with Gatekeeper. One that was there before is left without anything of ours."""
    with open_cluster(tmp_path_factory.mktemp("cluster")) as running:
        if isinstance(running, Rig):
            yield running
            return
        if running.get("pods", "--namespace=default"):
            pytest.fail("the namespace default is not empty, and these tests delete what is there", pytrace=False)
        yield running
        wipe(running)
        running.delete("constrainttemplates", "ratifyverification")
        running.delete("namespaces", *EXTRA_NAMESPACES, wait=False)  # it takes a controller manager its time


def wipe(cluster: Cluster) -> None:
    """Delete what tests leave for the next one's clean-up."""
    cluster.delete("ratifyverification", "--all")
    cluster.delete("deployments,cronjobs", "--all", "--namespace=default")
    # In one request: kubectl deletes a hundred pods one by one, five in a second.
    cluster.must("delete", "--raw", "/api/v1/namespaces/default/pods?gracePeriodSeconds=0")


@pytest.fixture
def rig(cluster: Cluster) -> Rig:
    """The cluster, where its processes are ours."""
    if not isinstance(cluster, Rig):
        pytest.skip("this needs a Gatekeeper that the tests may restart")
    return cluster


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A real registry."""
    for kind in REGISTRIES:
        try:
            peers.find(kind)
        except pytest.skip.Exception:
            continue
        with KINDS[kind](tmp_path_factory.mktemp("registry")) as running:
            yield running
        return
    pytest.skip(f"none of the registries {', '.join(REGISTRIES)} is here: run `make e2e-tools`")


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory, registry: Registry) -> Iterator[Shop]:
    """Signers, and images on demand."""
    with open_shop(tmp_path_factory.mktemp("shop"), registry) as shop:
        yield shop


@pytest.fixture(scope="session")
def provider(tmp_path_factory: pytest.TempPathFactory, cluster: Cluster, shop: Shop) -> Iterator[Countersign]:
    """The provider, installed with values that trust the shop's signer. Helm leaves its resource definitions behind."""
    provider = Countersign(cluster, shop, tmp_path_factory.mktemp("countersign"))
    try:
        provider.install()
        yield provider
    finally:
        provider.uninstall()
        cluster.delete("customresourcedefinitions", *provider.plurals)


@pytest.fixture(autouse=True)
def clean(request: pytest.FixtureRequest) -> None:
    """No pods, constraints or mutators of earlier tests, and the provider as it was at first."""
    if CLUSTER not in request.fixturenames:
        return
    cluster: Cluster = request.getfixturevalue(CLUSTER)
    provider: Countersign = request.getfixturevalue("provider")
    wipe(cluster)
    provider.use(provider.baseline)
    provider.restore_providers()


@pytest.fixture
def denying(cluster: Cluster) -> Cluster:
    """A cluster that denies, as the shipped template and constraint say."""
    enforce(cluster)
    return cluster
