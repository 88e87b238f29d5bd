"""A registry that wants a password, which is in a pull secret of the cluster.

Two docker-registries serve one folder: through the open one images are pushed and signed, of the other pods are made.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.cluster import NAMESPACE, Cluster
from tests.e2e.countersign import Countersign
from tests.e2e.images import Image, Shop
from tests.e2e.pods import assert_admitted, assert_denied, run
from tests.e2e.processes import ADDRESS, wait_for
from tests.interop import peers
from tests.interop.registries import Registry

USER, PASSWORD = "gatekeeper", "correct horse"  # of a registry that lives for a minute
HTPASSWD = f"{USER}:$2y$05$abcdefghijklmnopqrstuuHNbAKRhpaujgo33bRWs.NLUTJO3lOy2\n"  # bcrypt, cost 5
SECRET = "registry-login"


def docker_registry(folder: Path, storage: Path, **more: object) -> tuple[peers.Command, re.Pattern[str]]:
    """The command of a registry over a folder, and what it says of its address."""
    configuration = folder / f"registry-{len(more)}.yml"
    document = {
        "version": 0.1,
        "log": {"level": "info"},
        "storage": {"filesystem": {"rootdirectory": str(storage)}},
        "http": {"addr": f"{ADDRESS}:0", "secret": "only so that it need not make one up"},
        **more,
    }
    configuration.write_text(json.dumps(document))  # JSON is YAML
    return [peers.find("docker-registry"), "serve", configuration], re.compile(r"listening on (127\.0\.0\.1:\d+)")


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory, shop: Shop, provider: Countersign) -> Iterator[dict[str, Image]]:
    """Signed and unsigned images in the closed registry, and a chart that reads pull secrets for it."""
    folder = tmp_path_factory.mktemp("closed")
    passwords = folder / "htpasswd"
    passwords.write_text(HTPASSWD)
    auth = {"htpasswd": {"realm": "closed", "path": str(passwords)}}
    command, address = docker_registry(folder, folder / "storage")
    other, _ = docker_registry(folder, folder / "storage", auth=auth)
    with peers.serving(command, address=address) as public, peers.serving(other, address=address) as private:
        repository = Registry("docker-registry", public, has_referrers_api=False).repository("closed/app")
        images = {}
        for name in ("signed", "also-signed", "unsigned"):
            pushed = Image(repository.at(name), repository.push_image(name, name))
            if name != "unsigned":
                shop.sign(pushed, shop.signer)
            images[name] = Image(pushed.tagged.replace(public, private), pushed.digest)
        provider.change(
            "oras.authProviders.k8secretsEnabled=true",
            f"oras.authProviders.k8secrets[0].secretName={SECRET}",
            f"oras.registries[2].host={private}",
            "oras.registries[2].plainHttp=true",
        )
        provider.renew_baseline()
        yield images
        provider.change()
        provider.renew_baseline()


@pytest.fixture
def secret(cluster: Cluster, closed: dict[str, Image]) -> Iterator[str]:
    """Nothing yet, and nothing afterwards."""
    yield SECRET
    cluster.delete("secret", SECRET, f"--namespace={NAMESPACE}")


def log_in(cluster: Cluster, image: Image, password: str) -> None:
    """`kubectl create secret docker-registry`, or its update."""
    made = cluster.must(
        *("create", "secret", "docker-registry", SECRET, f"--namespace={NAMESPACE}", "--dry-run=client"),
        *(f"--docker-server={image.tagged.partition('/')[0]}", f"--docker-username={USER}"),
        *(f"--docker-password={password}", "--output=json"),
    )
    cluster.must("apply", "-f", "-", stdin=made)


def test_the_pull_secret_opens_the_registry_and_a_new_password_is_taken_up(
    denying: Cluster, closed: dict[str, Image], secret: str
) -> None:
    signed, again, unsigned = closed["signed"], closed["also-signed"], closed["unsigned"]
    said = run(denying, "nobody", signed)
    assert_denied(said, signed, code="CREDENTIALS_UNAVAILABLE")
    assert f"{NAMESPACE}/{SECRET}" in said.err
    log_in(denying, signed, "a wrong one")
    wait_for("the wrong password to be tried", lambda: "REGISTRY_" in run(denying, "wrong", signed).err)
    log_in(denying, signed, PASSWORD)
    wait_for("the new password to be taken up", lambda: run(denying, "demo-signed", again).ok)
    assert_admitted(run(denying, "demo-signed-too", signed), "demo-signed-too")
    assert_denied(run(denying, "demo-unsigned", unsigned), unsigned, code="UNSIGNED")


def test_the_password_is_in_no_log(
    provider: Countersign, denying: Cluster, closed: dict[str, Image], secret: str
) -> None:
    log_in(denying, closed["signed"], PASSWORD)
    wait_for("the password to be used", lambda: run(denying, "demo-signed", closed["signed"]).ok)
    assert all(PASSWORD not in pod.log.read_text() for pod in provider.pods)
