"""L1 to L3, K1, R1, C3, B1 to B3, G2: images that nothing is known of yet.

Rules: requests are counted by the registry. Latencies are held against depth x round trip, throughput against what the
round trip or the registry's rate allows; both are simulated, so the floors are exact.
What does not belong here: the cost of signatures by themselves (crypto.py).
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence

from bench import caller, workload
from bench.processes import BenchmarkError, RegistryProcess, Serving, Stage
from bench.report import Figure, median, paired, ratio
from bench.warm import KEEPS, PATIENT, fill


def _admit(serving: Serving, keys: Sequence[str]) -> float:
    """Ask, demand that all are admitted; returns seconds."""
    with caller.Caller(serving, caller.context_for(serving)) as one:
        began = time.monotonic()
        reply = one.ask(keys)
        taken = time.monotonic() - began
    if len(reply.admitted) != len(keys):
        raise BenchmarkError(f"not all admitted: {reply.system_error[:300]}")
    return taken


def requests(stage: Stage, *, images: int = 10) -> Iterator[Figure]:
    """L2: requests of a cold image; L3: of one that is verified again; R1: of revocation."""
    registry = stage.registry("--images", str(4 * images + 2))
    registry.control(auth=True)
    serving = stage.countersign(registry, *PATIENT, "--result-ttl", "0.1")
    registry.control(reset=True)
    _admit(serving, workload.tags(registry.host, 0, 1))
    first = registry.control()
    kinds = first["kinds"]
    yield Figure("L2", "first image: registry requests beyond those of any other", kinds.get("401", 0), "exactly", 1)
    yield Figure("L2", "first image: tokens", kinds.get("token", 0), "exactly", 1)
    for name, keys, target in (
        ("tag", workload.tags(registry.host, 1, images), 4),
        ("digest", workload.digests(registry.host, 1 + images, images), 3),
    ):
        registry.control(reset=True)
        for key in keys:
            _admit(serving, [key])
        counted = registry.control()["requests"] / images
        yield Figure("L2", f"requests of a cold image by {name}, token at hand", counted, "exactly", target)
    for name, keys, target in (
        ("tag", workload.tags(registry.host, 1, images), 2),
        ("digest", workload.digests(registry.host, 1 + images, images), 1),
    ):
        time.sleep(0.2)
        registry.control(reset=True)
        for key in keys:
            _admit(serving, [key])
        counted = registry.control()["requests"] / images
        yield Figure("L3", f"requests of a verification after its time-to-live, by {name}", counted, "exactly", target)


def revocation(stage: Stage, *, images: int) -> Iterator[Figure]:
    """R1: OCSP requests while many images of one signer are verified."""
    registry = stage.registry("--images", str(images), "--revocable")
    serving = stage.countersign(registry, *PATIENT)
    registry.control(reset=True)
    _admit(serving, workload.tags(registry.host, 0, images))
    asked = registry.control()["kinds"].get("ocsp", 0)
    yield Figure("R1", f"OCSP requests for {images} images of one signer", asked, "exactly", 1)


def coalescing(stage: Stage, *, callers: int) -> Iterator[Figure]:
    """K1: one image under many spellings, asked for by many at once."""
    registry = stage.registry("--images", "1")
    serving = stage.countersign(registry, *PATIENT)
    registry.control(reset=True, rtt=0.05)
    [tag], [digest] = workload.tags(registry.host, 0, 1), workload.digests(registry.host, 0, 1)
    pinned = f"{tag}@{digest.partition('@')[2]}"
    spellings = [tag, digest, pinned, f"[team-a]{tag}", f"[team-b]{digest}"]
    results: list[bool] = []

    def ask(key: str) -> None:
        results.append(key in caller.ask_once(serving, [key]).admitted)

    threads = [threading.Thread(target=ask, args=(spellings[number % len(spellings)],)) for number in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if results.count(True) != callers:
        raise BenchmarkError(f"{callers - results.count(True)} of {callers} callers got no yes")
    kinds = registry.control()["kinds"]
    for kind in ("GET referrers", "GET manifests", "GET blobs"):
        what = f"{kind} for {callers} callers x {len(spellings)} spellings of one image"
        yield Figure("K1", what, kinds.get(kind, 0), "exactly", 1)


def latency(stage: Stage, *, images: int) -> Iterator[Figure]:
    """L1: latency of a cold image against depth x round trip of 50 ms."""
    rtt = 0.05
    registry = stage.registry("--images", str(2 * images + 1))
    serving = stage.countersign(registry, *PATIENT)
    fill(serving, registry, 1, start=2 * images)  # connections are open
    for name, keys, depth in (
        ("tag", workload.tags(registry.host, 0, images), 4),
        ("digest", workload.digests(registry.host, images, images), 3),
    ):
        registry.control(rtt=rtt, reset=True)
        taken = [_admit(serving, [key]) for key in keys]
        reached = registry.control()["depth"] / images
        yield Figure("L1", f"exchanges one after the other, by {name}", reached, "exactly", depth)
        yield Figure(
            "L1",
            f"latency of a cold image by {name}, round trip 50 ms",
            median(taken) / (depth * rtt),
            "at most",
            1.10,
            low=min(taken) / (depth * rtt),
            high=max(taken) / (depth * rtt),
            measured=f"{median(taken) * 1000:.0f} ms",
            reference=f"{depth * rtt * 1000:.0f} ms = depth x round trip",
        )


def image_cost(stage: Stage, *, rounds: int, images: int) -> Iterator[Figure]:
    """C3: processor time of a whole cold image against four bare GETs of aiohttp's client."""
    registry = stage.registry("--images", str(images * rounds + 100))
    serving = stage.countersign(registry, *PATIENT)
    fill(serving, registry, 100, start=images * rounds)
    done = 0

    def ours() -> float:
        nonlocal done
        before = serving.process.fine_cpu_seconds()
        fill(serving, registry, images, start=done, batch=10)
        done += images
        return (serving.process.fine_cpu_seconds() - before) / images

    rounds_ = paired(rounds, ours, lambda: _bare_gets(registry, images))
    yield ratio("C3", "whole cold image, 10 at a time, CPU", rounds_, target=1.6, reference="of 4 GETs by aiohttp")


def _bare_gets(registry: RegistryProcess, images: int) -> float:
    arguments = [sys.executable, "-m", "bench.gets", registry.host, str(images)]
    return float(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout)


def burst(stage: Stage, *, images: int) -> Iterator[Figure]:
    """B1: many cold images in one request, 100 connections, round trip 50 ms."""
    rtt, connections = 0.05, 100
    registry = stage.registry("--images", str(images + 100))
    serving = stage.countersign(registry, *PATIENT, connections=connections)
    fill(serving, registry, 100, start=images)
    registry.control(rtt=rtt, reset=True)
    taken = _admit(serving, workload.tags(registry.host, 0, images))
    floor = 4 * images * rtt / connections
    yield Figure(
        "B1",
        f"{images:,} cold images, 100 connections, round trip 50 ms",
        taken / floor,
        "at most",
        1.4,
        measured=f"{taken:.2f} s",
        reference=f"{floor:.2f} s = 4 x images x round trip / connections",
    )


def throttled(stage: Stage, *, images: int = 1000, deadline: float = 4.9) -> Iterator[Figure]:
    """B2, B3: the same where the registry answers 166 requests a second, and 429 beyond."""
    rate = burst_size = 166.0
    for retry_after in (1, 0):
        name = "with Retry-After" if retry_after else "without Retry-After"
        registry = stage.registry("--images", str(images))
        registry.control(rtt=0.05)
        options = ("--verify-deadline", str(deadline), "--verification-timeout", "120", *KEEPS)
        serving = stage.countersign(registry, *options)
        registry.control(rate=rate, burst=burst_size, retryAfter=retry_after, reset=True)
        keys = workload.tags(registry.host, 0, images)
        began = time.monotonic()
        possible = (rate * deadline + burst_size) / 4
        first = caller.ask_once(serving, keys)
        yield Figure(
            "B2",
            f"part of the possible images in the first answer, 166 requests/s, {name}",
            len(first.admitted) / possible,
            "at least",
            0.75,
            measured=f"{len(first.admitted)} images",
            reference=f"{possible:.0f} = (rate x time + burst) / 4",
        )
        replies, admitted, refused = 1, set(first.admitted), set(first.refused)
        while len(admitted) < images and time.monotonic() < began + 60:
            time.sleep(0.5)  # what an answer has left without is not waited for again
            reply = caller.ask_once(serving, [key for key in keys if key not in admitted])
            admitted |= reply.admitted
            refused |= reply.refused
            replies += 1
        taken = time.monotonic() - began
        counts = registry.control()
        limited = counts["kinds"].get("429", 0)
        floor = (4 * images - burst_size) / rate
        yield Figure("B2", f"images refused for good, {name}", len(refused), "exactly", 0)
        yield Figure(
            "B2", f"part of the requests that were one too many, {name}", limited / counts["requests"], "at most", 0.1
        )
        yield Figure(
            "B3",
            f"all {images:,} images admitted, asked again and again, {name}",
            taken / floor if len(admitted) == images else 99.0,
            "at most",
            1.15,
            measured=f"{taken:.1f} s, {replies} requests",
            reference=f"{floor:.1f} s",
        )
        yield Figure("B3", f"objects fetched twice, {name}", counts["repeated"], "exactly", 0)


def growth(stage: Stage, *, images: int) -> Iterator[Figure]:
    """G2: whether a cold image gets dearer the more were verified."""
    registry = stage.registry("--images", str(images))
    serving = stage.countersign(registry, *PATIENT)
    fill(serving, registry, 200)

    def cost(start: int) -> float:
        before = serving.process.fine_cpu_seconds()
        fill(serving, registry, 400, start=start, batch=50)
        return (serving.process.fine_cpu_seconds() - before) / 400

    early = cost(200)
    fill(serving, registry, images - 1000, start=600)
    late = cost(images - 400)
    yield Figure(
        "G2",
        f"cold image after {images - 400:,} others against the first ones, CPU",
        late / early,
        "at most",
        1.1,
        measured=f"{late * 1e6:.0f} µs",
        reference=f"{early * 1e6:.0f} µs",
    )


def start(stage: Stage, *, rounds: int) -> Iterator[Figure]:
    """S1: from exec to ready, against the bare imports."""
    registry = stage.registry("--images", "1")
    modules = "aiohttp, uvloop, yaml, structlog, cryptography.x509, pydantic, click, cbor2, prometheus_client"

    def imports() -> float:
        began = time.monotonic()
        subprocess.run([sys.executable, "-c", f"import {modules}"], check=True)
        return time.monotonic() - began

    def ours() -> float:
        serving = stage.countersign(registry)
        assert serving.start_seconds is not None
        return serving.start_seconds

    ours(), imports()
    rounds_ = paired(rounds, ours, imports)
    yield ratio(
        "S1", "start to ready", rounds_, target=1.6, scale=1.0, unit="s", reference="of importing the libraries"
    )
    yield Figure("S1", "start to ready, seconds", median(rounds_[0]), "for information", 1.0, unit="s")


def start_with_azure() -> Iterator[Figure]:
    """S1 with a Key Vault and workload identity, against the simulators of the integration tests."""
    scenarios = "tests/integration/test_azure_scenarios.py::test_the_articles_scenarios_end_in_the_right_verdicts"
    arguments = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", scenarios]
    run = subprocess.run(arguments, capture_output=True, text=True)
    for name, seconds in re.findall(r"([a-z-]+): ([0-9.]+) s from start to ready", run.stdout):
        what = f"start to ready, the article's installation {name}, seconds"
        yield Figure(
            "S1", what, float(seconds), "for information", 2.0 if name.startswith("key-vault") else 1.0, unit="s"
        )
    if run.returncode:
        raise BenchmarkError("the article's installations could not be started (are the development tools installed?)")
