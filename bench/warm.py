"""W1 to W4, G1, M1: verdicts that are at hand, asked for over TLS; connections and memory.

Rules: the provider and the bare server are asked the same bytes in turn; what counts is their own processor time.
What does not belong here: verification that has to be done (cold.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

from bench import caller, workload
from bench.processes import BenchmarkError, RegistryProcess, Serving, Stage
from bench.report import Figure, median, paired, ratio

PATIENT = ("--verify-deadline", "110", "--verification-timeout", "100")
KEEPS = ("--result-ttl", "36000")


def fill(serving: Serving, registry: RegistryProcess, count: int, *, start: int = 0, batch: int = 1000) -> None:
    """Make the provider verify `count` images.

    Raises:
        BenchmarkError: not every one of them was admitted.
    """
    with caller.Caller(serving, caller.context_for(serving)) as connection:
        for first in range(start, start + count, batch):
            keys = workload.tags(registry.host, first, min(batch, start + count - first))
            reply = connection.ask(keys)
            if len(reply.admitted) != len(keys):
                missing = len(keys) - len(reply.admitted)
                raise BenchmarkError(f"{missing} images are not admitted: {reply.system_error[:300]}")


def _cpu_per_request(serving: Serving, request: bytes, times: int, *, connections: int = 8) -> Callable[[], float]:
    callers = caller.connect(serving, connections)
    caller.hammer(callers, request, 2)

    def measure() -> float:
        before = serving.process.fine_cpu_seconds()
        caller.hammer(callers, request, times)
        return (serving.process.fine_cpu_seconds() - before) / (times * connections)

    return measure


def warm_requests(stage: Stage, *, rounds: int, full: bool) -> Iterator[Figure]:
    """W1: processor time of a request whose verdicts are at hand."""
    registry = stage.registry("--images", "1000")
    serving = stage.countersign(registry, *PATIENT, *KEEPS)
    fill(serving, registry, 1000)
    with caller.Caller(serving, caller.context_for(serving)) as one:
        one.send(caller.request_for(workload.tags(registry.host, 0, 100), serving.path))
        value_bytes = len(one.receive()) // 100 - 50
    bare = stage.bare("--value-bytes", str(value_bytes))  # as many bytes, so that TLS costs the same
    sizes = {1: 300, 10: 250, 100: 80, 1000: 12} if full else {1: 150, 100: 40}
    for keys, times in sizes.items():
        request = caller.request_for(workload.tags(registry.host, 0, keys), serving.path)
        rounds_ = paired(rounds, _cpu_per_request(serving, request, times), _cpu_per_request(bare, request, times))
        what = f"warm request of {keys} {'key' if keys == 1 else 'keys'}, CPU"
        yield ratio("W1", what, rounds_, target=1.5, reference="of bare aiohttp")
    if full:
        yield from _latencies(serving, bare, caller.request_for(workload.tags(registry.host, 0, 10), serving.path))


def _latencies(serving: Serving, bare: Serving, request: bytes) -> Iterator[Figure]:
    """W2: how far the slowest percent is from the middle."""

    def tail(who: Serving) -> tuple[float, float]:
        callers = caller.connect(who, 8)
        taken = []
        for _ in range(400):
            began = time.perf_counter()
            for one in callers:
                one.send(request)
            for one in callers:
                one.receive()
                taken.append(time.perf_counter() - began)
        caller.close_all(callers)
        taken.sort()
        return taken[len(taken) // 2], taken[len(taken) * 99 // 100]

    ours, theirs = [], []
    for _ in range(3):
        theirs.append(tail(bare)[1])
        ours.append(tail(serving)[1])
    ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
    yield ratio(
        "W2",
        "99th percentile at 10 keys, 8 connections",
        (ours, theirs, ratios),
        target=2.0,
        reference="of bare aiohttp",
    )


def connections(stage: Stage, *, rounds: int) -> Iterator[Figure]:
    """W3: a connection for each request, as Gatekeeper up to 3.21 does; W4: what an idle connection holds."""
    registry = stage.registry("--images", "10")
    cas = ("--client-ca-file", str(stage.certificates() / "client-ca.crt"))
    for name, ours, theirs in (("TLS", (), ()), ("mTLS", cas, ("--mtls",))):
        serving, bare = stage.countersign(registry, *PATIENT, *KEEPS, *ours), stage.bare(*theirs)
        request = caller.request_for(workload.tags(registry.host, 0, 1), serving.path)

        def measure(who: Serving, request: bytes = request, times: int = 150) -> float:
            before = who.process.fine_cpu_seconds()
            caller.reconnect(who, request, times, client=True)
            return (who.process.fine_cpu_seconds() - before) / times

        measure(serving), measure(bare)
        rounds_ = paired(rounds, partial(measure, serving), partial(measure, bare))
        yield ratio("W3", f"request on a new {name} connection, CPU", rounds_, target=1.5, reference="of bare aiohttp")
        if name == "TLS":
            yield _idle(serving, request)


def _idle(serving: Serving, request: bytes) -> Figure:
    """Memory of connections that were used once and wait."""
    warm = caller.connect(serving, 20)
    caller.hammer(warm, request, 1)
    before, count = serving.process.rss_bytes(), 100
    idle = caller.connect(serving, count)
    caller.hammer(idle, request, 1)
    grown = (serving.process.rss_bytes() - before) / count / 1000
    caller.close_all([*warm, *idle])
    return Figure("W4", "memory of an idle TLS connection", grown, "at most", 60.0, unit="kB")


def memory(stage: Stage, *, images: int) -> Iterator[Figure]:
    """M1: memory of verdicts; G1: whether many of them make a warm request dearer."""
    registry = stage.registry("--images", str(images))
    serving = stage.countersign(registry, *PATIENT, *KEEPS)
    fill(serving, registry, 1000)
    request = caller.request_for(workload.tags(registry.host, 0, 100), serving.path)
    measure = _cpu_per_request(serving, request, 60)
    few, before = median([measure() for _ in range(3)]), serving.process.rss_bytes()
    fill(serving, registry, images - 1000, start=1000)
    grown = (serving.process.rss_bytes() - before) / (images - 1000) * 10_000 / 1e6
    many = median([measure() for _ in range(3)])
    yield Figure("M1", "memory of 10,000 subjects", grown, "at most", 15.0, unit="MB")
    yield Figure(
        "G1",
        f"warm request with {images:,} verdicts kept against 1,000, CPU",
        many / few,
        "at most",
        1.2,
        measured=f"{many * 1e6:.0f} µs",
        reference=f"{few * 1e6:.0f} µs",
    )
