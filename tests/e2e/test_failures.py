"""When something is broken, slow or away: the pod is denied, the reason is told, and nothing needs a restart after it.

Gatekeeper runs with the tutorial's settings, failure policy Ignore included, so each of these would admit an unsigned
image if Gatekeeper were not answered, or not in time.
"""

from __future__ import annotations

import copy
import http.server
import json
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import ClassVar

import pytest

from provider.demo import pki
from tests.e2e.chart import RELEASE
from tests.e2e.cluster import NAMESPACE, Cluster, Json
from tests.e2e.countersign import PROVIDER, PROVIDERS, Countersign
from tests.e2e.forwarding import Passage
from tests.e2e.images import Image, Shop
from tests.e2e.pods import assert_admitted, assert_denied, create, enforce, pod, run
from tests.e2e.processes import ADDRESS, wait_for
from tests.e2e.rig import CACHE_SECONDS, VALIDATION_SECONDS, Rig

BURST = 20  # pods at once
OWN_CACHE_SECONDS = 10  # `countersign serve --result-ttl`


def assert_heals(cluster: Cluster, name: str, image: Image) -> None:
    """The very next attempt succeeds: nothing was kept as a verdict."""
    assert_admitted(run(cluster, name, image), name)


def test_without_the_provider_nothing_is_admitted(denying: Cluster, shop: Shop, provider: Countersign) -> None:
    good, bad = shop.signed(), shop.unsigned()
    with provider.away():
        for image in (good, bad):
            said = run(denying, "down", image)
            assert_denied(said, image, code="the provider cannot be reached")
            assert "https://" not in said.err, "an address inside the cluster is no business of whoever creates pods"
    assert_heals(denying, "down", good)


def test_a_hanging_provider_is_not_waited_for_longer_than_the_webhook_is(
    denying: Cluster, shop: Shop, provider: Countersign
) -> None:
    asked = denying.get(PROVIDERS, PROVIDER)
    assert asked
    assert asked["spec"]["timeout"] < VALIDATION_SECONDS, "the chart's default, with the tutorial's Gatekeeper"
    good, bad = shop.signed(), shop.unsigned()
    with provider.hanging():
        assert_denied(run(denying, "hung", bad), bad, code="the provider did not answer in time")
    assert_heals(denying, "hung", good)


def test_a_hanging_registry_is_answered_by_the_deadline_and_the_next_attempt_finds_it_done(
    denying: Cluster, shop: Shop
) -> None:
    image = shop.signed(gated=True)
    with shop.gate.passage(Passage.JAMMED):
        assert_denied(run(denying, "slow", image), image, code="DEADLINE_EXCEEDED")
    assert_heals(denying, "slow", image)


def test_one_hanging_registry_does_not_hide_the_verdict_on_another_image(denying: Cluster, shop: Shop) -> None:
    slow, bad = shop.signed(gated=True), shop.unsigned()
    with shop.gate.passage(Passage.JAMMED):
        said = create(denying, pod("both", slow, bad))
    assert_denied(said, slow, bad)
    assert f"{slow}: DEADLINE_EXCEEDED" in said.err
    assert f"{bad}: UNSIGNED" in said.err


def test_a_registry_that_is_away_is_not_taken_for_a_missing_signature(denying: Cluster, shop: Shop) -> None:
    image = shop.signed(gated=True)
    with shop.gate.passage(Passage.SHUT):
        assert_denied(run(denying, "away", image), image, code="REGISTRY_UNAVAILABLE")
    assert_heals(denying, "away", image)


class Impostor(http.server.BaseHTTPRequestHandler):
    """Says yes to every image."""

    asked: ClassVar[list[Json]] = []

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(request)
        items = [{"key": key, "value": {"isSuccess": True}} for key in request["request"]["keys"]]
        body = {"apiVersion": request["apiVersion"], "kind": "ProviderResponse", "response": {"items": items}}
        answer = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


def test_an_impostor_with_another_certificate_is_not_believed(
    rig: Rig, denying: Cluster, shop: Shop, tmp_path: Path
) -> None:
    """Whoever takes over the Service's address says yes to everything, under the right name but a CA of his own."""
    name = f"{RELEASE}.{NAMESPACE}"
    now, day = datetime.now(UTC), timedelta(days=1)
    authority = pki.issue({"CN": name}, pki.authority(), issuer=None, not_before=now - day, not_after=now + day)
    serving = pki.tls_server([name])
    foreign = pki.issue({"CN": name}, serving, issuer=authority, not_before=now - day, not_after=now + day)
    (tmp_path / "tls.crt").write_bytes(foreign.chain_pem())
    (tmp_path / "tls.key").write_bytes(foreign.key_pem())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "tls.crt", tmp_path / "tls.key")
    image, unsigned = shop.signed(), shop.unsigned()
    with http.server.ThreadingHTTPServer((ADDRESS, 0), Impostor) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with rig.node.service.diverted((ADDRESS, server.server_address[1])):
            for each in (image, unsigned):
                said = run(denying, "impostor", each)
                assert_denied(said, each, code="the TLS connection to the provider failed")
        server.shutdown()
    assert Impostor.asked == []
    assert_heals(denying, "impostor", image)


def test_without_the_provider_object_nothing_is_admitted(denying: Cluster, shop: Shop) -> None:
    denying.delete("provider.externaldata.gatekeeper.sh", PROVIDER)
    good = shop.signed()
    wait_for("Gatekeeper to forget the provider", lambda: not run(denying, "forgotten", shop.signed()).ok)
    assert_denied(run(denying, "nobody", good), good, code="no Provider object is installed")


def test_a_broken_update_of_a_verifier_leaves_the_good_one_in_use(
    denying: Cluster, shop: Shop, provider: Countersign
) -> None:
    broken = copy.deepcopy(provider.baseline)
    (verifier,) = (each for each in broken if each["kind"] == "Verifier")
    verifier["spec"]["parameters"]["trustPolicyDoc"]["trustPolicies"][0]["trustStores"] = ["ca:nowhere"]
    faults = provider.said("configuration fault")
    provider.write(broken)
    wait_for("the fault to be told", lambda: provider.said("configuration fault") > faults)
    bad = shop.unsigned()
    assert_admitted(run(denying, "good", shop.signed()), "good")
    assert_denied(run(denying, "bad", bad), bad, code="UNSIGNED")


def test_a_new_key_is_trusted_without_a_restart(denying: Cluster, shop: Shop, provider: Countersign) -> None:
    """A configuration's verdicts do not outlive it in the provider; Gatekeeper keeps its own for some seconds."""
    before, after = shop.untrusted(), shop.untrusted()
    assert_denied(run(denying, "stranger", before), before, code="UNTRUSTED_ROOT")
    changed = [each for each in provider.baseline if each["kind"] in ("Store", "Policy")]
    changed += [
        shop.key_resource("KeyManagementProvider", "stranger-root", shop.stranger),
        shop.verifier_resource("Verifier", "verifier-notation", "stranger-root", shop.stranger),
    ]
    provider.use(changed)
    assert_admitted(run(denying, "stranger", after), "stranger")
    company = shop.signed()
    assert_denied(run(denying, "company", company), company, code="UNTRUSTED_ROOT")


def test_an_image_signed_after_its_refusal_is_admitted_when_the_caches_run_out(
    denying: Cluster, shop: Shop, provider: Countersign
) -> None:
    image = shop.unsigned()
    assert_denied(run(denying, "late", image), image, code="UNSIGNED")
    shop.sign(image, shop.signer)
    assert_denied(run(denying, "late", image), image, code="UNSIGNED")
    assert len(provider.verdicts(str(image))) == 1, "the second answer came from a cache"
    wait_for(
        "the refusal to be forgotten",
        lambda: run(denying, "late", image).ok,
        seconds=2 * (CACHE_SECONDS + OWN_CACHE_SECONDS),
    )


def test_gatekeeper_remembers_a_verdict_but_not_for_ever(denying: Cluster, shop: Shop, provider: Countersign) -> None:
    known, other = shop.signed(), shop.signed()
    assert_admitted(run(denying, "first", known), "first")
    begun = time.monotonic()
    with provider.away():
        said = run(denying, "second", known)
        if time.monotonic() - begun < CACHE_SECONDS / 2:  # else the machine was too busy to see it
            assert_admitted(said, "second")
        assert_denied(run(denying, "third", other), other, code="the provider cannot be reached")
        wait_for(
            "the verdict to be forgotten",
            lambda: not denying.kubectl("run", "fourth", f"--image={known}", "--dry-run=server").ok,
            seconds=3 * CACHE_SECONDS,
        )


def test_enforcement_goes_on_when_gatekeeper_restarts(rig: Rig, denying: Cluster, shop: Shop) -> None:
    known, bad = shop.signed(), shop.unsigned()
    assert_admitted(run(denying, "first", known), "first")
    rig.restart_gatekeeper()
    rig.wait_constraint()
    assert_admitted(run(denying, "second", known), "second")
    assert_denied(run(denying, "third", bad), bad, code="UNSIGNED")


def test_a_burst_of_unsigned_pods_gets_nobody_in(denying: Cluster, shop: Shop) -> None:
    images = [shop.unsigned() for _ in range(BURST)]
    with ThreadPoolExecutor(BURST) as pool:
        answers = list(pool.map(lambda number: run(denying, f"burst-{number}", images[number]), range(BURST)))
    for image, said in zip(images, answers, strict=True):
        assert_denied(said, image, code="UNSIGNED")


@pytest.fixture
def threaded(rig: Rig) -> Iterator[Rig]:
    """Gatekeeper with the threads that policies/README.md advises; its default is one for each processor."""
    rig.restart_gatekeeper("--max-serving-threads=100")
    enforce(rig)
    yield rig
    rig.restart_gatekeeper()


def test_a_burst_of_pods_on_a_hanging_registry_gets_nobody_in(threaded: Rig, shop: Shop) -> None:
    """With few threads they would queue in Gatekeeper, each behind others' deadlines, until the webhook's timeout."""
    images = [shop.unsigned(gated=True) for _ in range(BURST)]
    with shop.gate.passage(Passage.JAMMED), ThreadPoolExecutor(BURST) as pool:
        answers = list(pool.map(lambda number: run(threaded, f"burst-{number}", images[number]), range(BURST)))
    for image, said in zip(images, answers, strict=True):
        assert_denied(said, image, code="DEADLINE_EXCEEDED")


def test_a_stream_of_pods_while_the_provider_restarts_gets_nobody_in(
    denying: Cluster, shop: Shop, provider: Countersign
) -> None:
    good, bad = shop.signed(), shop.unsigned()
    answers = []

    def stream() -> None:
        for number in range(BURST):
            answers.append(denying.kubectl("run", f"stream-{number}", f"--image={bad}"))

    with ThreadPoolExecutor(1) as pool:
        streaming = pool.submit(stream)
        with provider.away():
            pass
        streaming.result()
    assert len(answers) == BURST
    for said in answers:
        assert_denied(said, bad)
    assert_heals(denying, "afterwards", good)


def test_a_pod_with_many_images_is_one_question(denying: Cluster, shop: Shop) -> None:
    images = [shop.signed() for _ in range(BURST)]
    assert_admitted(create(denying, pod("many", *images)), "many")


def test_a_dry_run_of_the_constraint_is_as_safe_as_none(cluster: Cluster, shop: Shop, provider: Countersign) -> None:
    """dryrun must not hold anybody up, even without a provider."""
    enforce(cluster, "constraint-dryrun.yaml")
    with provider.away():
        assert_admitted(run(cluster, "free", shop.unsigned()), "free")
