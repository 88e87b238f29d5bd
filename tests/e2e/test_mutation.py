"""Tags become digests at admission, through the chart's own Assign objects."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.cluster import Cluster
from tests.e2e.countersign import Countersign
from tests.e2e.forwarding import Passage
from tests.e2e.images import Image, Shop
from tests.e2e.pods import assert_admitted, assert_denied, create, pod, run

REJECTED = 'admission webhook "mutation.gatekeeper.sh" denied the request: '


@pytest.fixture(scope="module")
def pinning(cluster: Cluster, provider: Countersign) -> Iterator[None]:
    """The chart with its Assign objects, for pods only, as by default."""
    provider.change("provider.enableMutation=true")
    yield
    provider.change()


@pytest.fixture
def mutating(cluster: Cluster, pinning: None) -> Cluster:
    """A cluster where Gatekeeper acts on them."""
    cluster.wait_mutators()
    return cluster


def images_of(cluster: Cluster, name: str, *lists: str) -> list[str]:
    """Images of a pod as it was stored."""
    found = cluster.get("pod", name, "--namespace=default")
    assert found
    return [each["image"] for part in lists or ("containers",) for each in found["spec"].get(part, [])]


def test_a_tag_becomes_a_digest_in_every_container(mutating: Cluster, shop: Shop) -> None:
    first, second, third = shop.signed(), shop.unsigned(), shop.signed()
    assert_admitted(create(mutating, pod("pinned", first, second, init=(third,))), "pinned")
    assert images_of(mutating, "pinned", "containers", "initContainers") == [
        first.pinned,
        second.pinned,
        third.pinned,
    ]


def test_a_digest_is_left_as_it_is(mutating: Cluster, shop: Shop) -> None:
    image = shop.unsigned().pinned
    assert_admitted(run(mutating, "by-digest", image), "by-digest")
    assert images_of(mutating, "by-digest") == [image]


def test_what_was_pinned_is_what_is_verified(mutating: Cluster, denying: Cluster, shop: Shop) -> None:
    """The tag can move after admission; what runs is what was judged."""
    good, bad = shop.signed(), shop.unsigned()
    assert_admitted(run(denying, "demo-signed", good), "demo-signed")
    assert images_of(denying, "demo-signed") == [good.pinned]
    assert_denied(run(denying, "demo-unsigned", bad), bad.pinned, code="UNSIGNED")


def test_a_tag_that_does_not_exist_is_rejected(mutating: Cluster, shop: Shop) -> None:
    image = Image(shop.signed().tagged.replace(":v1", ":v2"), "")
    said = run(mutating, "missing", image)
    assert said.code == 1, str(said)
    assert REJECTED in said.err, str(said)
    assert "IMAGE_NOT_FOUND" in said.err, str(said)
    assert str(image) in said.err, str(said)
    assert mutating.get("pod", "missing", "--namespace=default") is None


def test_a_registry_that_is_away_rejects_and_the_next_attempt_succeeds(mutating: Cluster, shop: Shop) -> None:
    image = shop.signed(gated=True)
    with shop.gate.passage(Passage.SHUT):
        said = run(mutating, "away", image)
    assert said.code == 1, str(said)
    assert REJECTED in said.err, str(said)
    assert_admitted(run(mutating, "away", image), "away")
    assert images_of(mutating, "away") == [image.pinned]


def test_without_the_provider_nothing_is_created_unpinned(mutating: Cluster, shop: Shop, provider: Countersign) -> None:
    image = shop.signed()
    with provider.away():
        said = run(mutating, "down", image)
        assert said.code == 1, str(said)
        assert REJECTED in said.err, str(said)
    assert_admitted(run(mutating, "down", image), "down")


def test_a_hanging_provider_lets_nothing_in_unpinned(mutating: Cluster, shop: Shop, provider: Countersign) -> None:
    with provider.hanging():
        said = run(mutating, "hung", shop.signed())
    assert said.code == 1, str(said)
    assert REJECTED in said.err, str(said)


def test_the_rig_and_the_namespaces_that_the_chart_excludes_are_left_alone(mutating: Cluster, shop: Shop) -> None:
    image = shop.unsigned()
    said = mutating.kubectl(
        "run", "excluded", f"--image={image}", "--namespace=kube-system", "--dry-run=server", "--output=yaml"
    )
    assert said.ok, str(said)
    assert f"image: {image}\n" in said.out
