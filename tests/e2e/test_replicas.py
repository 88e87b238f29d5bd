"""Several replicas, and pods that come and go: nobody who creates pods notices.

The stream that runs meanwhile asks about an image under a new tag each time, so that no answer comes from a cache.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import ssl
import threading
from collections.abc import Iterator

import pytest

from tests.e2e.chart import RELEASE
from tests.e2e.cluster import NAMESPACE, Cluster, Json, Said
from tests.e2e.countersign import Countersign
from tests.e2e.forwarding import PORT
from tests.e2e.images import GROUP, Shop
from tests.e2e.pods import assert_admitted, assert_denied, run
from tests.e2e.processes import wait_for
from tests.e2e.rig import Rig

REPLICAS = 3
STREAM = 400  # images at most; a rotation takes some seconds, and a creation a tenth of one


@contextlib.contextmanager
def stream(cluster: Cluster, shop: Shop) -> Iterator[list[Said]]:
    """Pods with a signed image, one after the other, while the `with` block runs; what kubectl said of each."""
    images = shop.tags(shop.signed(), STREAM)
    answers: list[Said] = []
    over = threading.Event()

    def create() -> None:
        for number, image in enumerate(images):
            if over.is_set():
                return
            answers.append(run(cluster, f"stream-{number}", image))

    thread = threading.Thread(target=create)
    thread.start()
    try:
        yield answers
    finally:
        over.set()
        thread.join()
    assert len(answers) < STREAM, "the stream ran dry: nothing is known of the end"


def assert_all_admitted(answers: list[Said]) -> None:
    """Every pod of a stream was created."""
    assert len(answers) > 5, "too few to say anything"
    for number, said in enumerate(answers):
        assert_admitted(said, f"stream-{number}")


@pytest.fixture
def several(rig: Rig, provider: Countersign) -> Iterator[Countersign]:
    """The provider with several replicas."""
    provider.scale(REPLICAS)
    yield provider
    provider.scale(1)


def versions(cluster: Cluster, provider: Countersign) -> dict[str, str]:
    """Resource versions of all custom resources: each write changes one."""
    listed: Json = cluster.get(",".join(provider.plurals), "--all-namespaces") or {}
    return {each["metadata"]["name"]: each["metadata"]["resourceVersion"] for each in listed["items"]}


def test_every_replica_answers_and_all_agree(several: Countersign, denying: Cluster, shop: Shop) -> None:
    good, bad = shop.tags(shop.signed(), 4 * REPLICAS), shop.tags(shop.unsigned(), 4 * REPLICAS)
    for number, (one, other) in enumerate(zip(good, bad, strict=True)):
        assert_admitted(run(denying, f"good-{number}", one), f"good-{number}")
        assert_denied(run(denying, f"bad-{number}", other), other, code="UNSIGNED")


def test_replicas_do_not_fight_over_the_status(several: Countersign, cluster: Cluster, shop: Shop) -> None:
    changed = [each for each in several.baseline if each["kind"] != "Verifier"]
    verifier = shop.verifier_resource("Verifier", "verifier-notation", "ratify-notation-inline-cert-0", shop.signer)
    several.use([*changed, verifier])
    seen = versions(cluster, several)
    cluster.must("annotate", f"verifier.{GROUP.partition('/')[0]}", "verifier-notation", "look=again")  # one write
    for _ in range(10):
        after = versions(cluster, several)
    assert {name for name in seen if after[name] != seen[name]} <= {"verifier-notation"}
    again = versions(cluster, several)
    for _ in range(10):
        assert versions(cluster, several) == again


def test_a_replica_that_is_deleted_is_not_missed(several: Countersign, denying: Cluster, shop: Shop) -> None:
    victim = several.pods[0]
    with stream(denying, shop) as answers:
        wait_for("the stream", lambda: len(answers) > 3)
        denying.must("delete", "pod", victim.name, f"--namespace={NAMESPACE}", "--wait=false")
        wait_for("another in its place", lambda: victim not in several.pods and len(several.pods) == REPLICAS)
        wait_for("all to be ready", lambda: all(pod.ready for pod in several.pods))
    assert_all_admitted(answers)


def test_an_upgrade_of_the_release_is_not_noticed(
    rig: Rig, denying: Cluster, shop: Shop, provider: Countersign
) -> None:
    (former,) = provider.pods
    with stream(denying, shop) as answers:
        provider.change("podAnnotations.changed=yes")
    assert former not in provider.pods
    assert_all_admitted(answers)
    provider.change()


def test_a_rotation_of_ca_and_certificate_is_not_noticed(
    rig: Rig, denying: Cluster, shop: Shop, provider: Countersign
) -> None:
    """Asked for as docs/operations.md says, of two replicas; only the five minutes for Gatekeeper to follow are not."""
    provider.change("extraArgs[0]=--rotate-settle-seconds=2")
    provider.scale(2)
    before = provider.authorities()
    where = f"--namespace={NAMESPACE}"
    with stream(denying, shop) as answers:
        rig.must("annotate", "secret", f"{RELEASE}-tls", "countersign/rotate=now", where)
        looks = itertools.count()

        def changed() -> bool:
            # Replicas look every half minute, and when the Secret changes: the test does not wait for the former.
            rig.must("annotate", "secret", f"{RELEASE}-tls", f"look={next(looks)}", "--overwrite", where)
            return not provider.authorities() & before

        wait_for("both replicas to serve under the new CA", changed)
        done = len(answers)
        wait_for("the stream to go on", lambda: len(answers) > done + 5)
    assert_all_admitted(answers)
    assert len(provider.authorities()) == 1
    provider.change()


def test_gatekeepers_new_ca_is_taken_over_without_a_restart(
    rig: Rig, denying: Cluster, shop: Shop, provider: Countersign
) -> None:
    (pod,) = provider.pods
    rig.renew_gatekeeper()
    rig.wait_constraint()
    image = shop.signed()
    wait_for("the new CA to reach the provider", lambda: run(denying, "renewed", image).ok)
    bad = shop.unsigned()
    assert_denied(run(denying, "bad", bad), bad, code="UNSIGNED")
    assert provider.pods == [pod], "nothing was restarted"


def test_a_caller_without_gatekeepers_certificate_is_not_answered(rig: Rig, provider: Countersign) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    answer = b""
    with (
        contextlib.suppress(OSError),
        socket.create_connection((rig.node.service.address, PORT), 5.0) as plain,
        context.wrap_socket(plain) as wrapped,
    ):
        wrapped.sendall(b"POST /ratify/gatekeeper/v1/verify HTTP/1.1\r\nHost: ratify\r\nContent-Length: 0\r\n\r\n")
        answer = wrapped.recv(1)
    assert answer == b""
    wait_for("the log to tell", lambda: bool(provider.said("TLS handshake failed")))
