"""What somebody who runs the provider can see of its work: metrics, the event of a decision, trace ids, spans.

Rules: everything is real but the registry; what is asserted is what a scraper, a log or a collector would get.
"""

from __future__ import annotations

import asyncio
import importlib.util
import re
import textwrap
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs

from provider.assembly import Assembler
from provider.configuration.manifests import load
from provider.demo import pki
from provider.executor import Executor
from provider.gatekeeper.server import Server
from provider.gatekeeper.settings import ListenerSettings, ServerSettings
from provider.parts import Environment
from provider.telemetry import Metrics
from provider.tracing import Tracing
from tests.integration.test_admission import MANIFESTS, ROOT, SIGNER, STRANGER, push_signature
from tests.integration.test_cli import serving
from tests.simulators.gatekeeper import MUTATE_PATH, Gatekeeper
from tests.simulators.listener import delay, status
from tests.simulators.registry import BlobStorageSimulator, RegistrySimulator

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"
SUBJECT = "verification response for subject"


@dataclass
class Site:
    """A provider with a registry, and Gatekeeper to ask it."""

    registry: RegistrySimulator
    gatekeeper: Gatekeeper
    metrics: Metrics
    executor: Executor

    def image(self, repository: str, *signers: pki.CertifiedKey) -> str:
        image = self.registry.push_image(repository, tag="v1", content=repository.encode())
        for signer in signers:
            push_signature(self.registry, repository, image, signer)
        return f"{self.registry.host}/{repository}:v1"

    def sample(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)

    def told(self, header: str) -> list[str | None]:
        """What the registry was told in a header, by request."""
        return [request.headers.get(header) for request in self.registry.requests]


@asynccontextmanager
async def running(
    folder: Path, *, trace_header: str | None = None, tracing: Tracing | None = None
) -> AsyncIterator[Site]:
    (folder / "all.yaml").write_text(MANIFESTS.format(pem=textwrap.indent(pki.pem(ROOT.certificate).decode(), " " * 6)))
    metrics = Metrics()
    executor = Executor()
    environment = Environment(trace_header=trace_header, count_answer=metrics.count_registry_answer)
    assembler = Assembler(executor.use, environment=environment, metrics=metrics)
    server = Server(
        executor,
        executor,
        listener=ListenerSettings(host="127.0.0.1"),
        settings=ServerSettings(verify_seconds=1.0, mutate_seconds=1.0, settle_seconds=0, drain_seconds=0.1),
        tls=None,
        metrics=metrics,
        remembered=executor.remembered,
        tracing=tracing,
    )
    for part in (executor, assembler, server):
        metrics.figures.read_from(part.figures)
    await assembler.apply(load(folder))
    await server.start()
    try:
        async with RegistrySimulator() as registry, Gatekeeper(server.port, None) as gatekeeper:
            yield Site(registry, gatekeeper, metrics, executor)
    finally:
        await server.stop()
        await executor.aclose()
        await assembler.aclose()


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with running(tmp_path) as made:
        yield made


@pytest.fixture
def events() -> Iterator[list[Any]]:
    with capture_logs(processors=[merge_contextvars]) as logs:
        yield logs


def decisions(events: list[Any]) -> list[Any]:
    return [event for event in events if event["event"].startswith(SUBJECT)]


# -- metrics ----------------------------------------------------------------------------------------------------------


async def test_a_cold_image_shows_what_its_time_went_into_and_a_warm_one_costs_nothing_more(site: Site) -> None:
    key = site.image("app", SIGNER)
    assert (await site.gatekeeper.ask(key)).admitted == {key}
    counts = {
        stage: site.sample("countersign_stage_duration_seconds_count", stage=stage)
        for stage in ("key", "resolve", "referrers", "artifact", "fetch", "verify", "revocation", "policy")
    }
    expected = {"key": 1, "resolve": 1, "referrers": 1, "artifact": 1, "fetch": 2, "verify": 1, "revocation": 0}
    assert counts == {**expected, "policy": 1}
    assert site.sample("ratify_registry_request_count_total", status_code="200") == 4
    assert site.sample("ratify_verifier_duration_count", verifier="notation", success="true") == 1
    before = site.metrics.render()[0]
    assert (await site.gatekeeper.ask(key)).admitted == {key}
    changed = {
        line.split(b"{")[0].split(b" ")[0]
        for line in set(site.metrics.render()[0].splitlines()) - set(before.splitlines())
        if line.startswith((b"countersign_", b"ratify_"))
    }
    assert changed.isdisjoint({b"countersign_stage_duration_seconds_count", b"ratify_registry_request_count_total"})
    assert b"countersign_cache_hits_total" in changed


async def test_caches_show_what_they_hold_and_how_often_it_helped(site: Site) -> None:
    key = site.image("app", SIGNER)
    for _ in range(3):
        await site.gatekeeper.ask(key)
    assert site.sample("countersign_cache_hits_total", cache="verdicts") == 2
    assert site.sample("countersign_cache_misses_total", cache="verdicts") == 1
    assert site.sample("countersign_cache_entries", cache="verdicts") == 2  # by key and by digest
    assert site.sample("countersign_cache_entries", cache="objects") == 2  # manifest and envelope
    assert (site.sample("countersign_cache_bytes", cache="objects") or 0) > 1000
    assert site.sample("ratify_blob_cache_count_total", hit="false") == 2
    site.executor.use(site.executor.snapshot)  # type: ignore[arg-type]
    assert (await site.gatekeeper.ask(key)).admitted == {key}
    assert site.sample("ratify_blob_cache_count_total", hit="true") == 2
    assert site.sample("countersign_cache_misses_total", cache="verdicts") == 2, "a new configuration keeps the counts"


async def test_the_end_of_each_trust_anchor_is_shown_by_key_provider_and_trust_store(site: Site) -> None:
    shown = site.sample("countersign_trust_anchor_not_after_seconds", provider="root", store="ca:company")
    assert shown == ROOT.certificate.not_valid_after_utc.timestamp()


async def test_hosts_that_are_waited_for_and_those_under_suspicion_are_counted(site: Site) -> None:
    key = site.image("app", SIGNER)
    site.registry.fault("/v2/app/referrers/*", delay(1.5), times=1)
    asking = asyncio.create_task(site.gatekeeper.ask(key))
    await asyncio.sleep(0.3)
    assert site.sample("countersign_hosts_waited_for") == 1
    assert site.sample("countersign_hosts_suspect") == 0
    assert site.sample("countersign_work_under_way", work="digest") == 1
    assert (await asking).items == {}
    assert site.sample("countersign_hosts_suspect") == 1
    for _ in range(60):
        if not site.sample("countersign_hosts_waited_for"):
            break
        await asyncio.sleep(0.05)
    assert site.sample("countersign_hosts_suspect") == 0
    assert site.sample("countersign_work_under_way", work="key") == 0


async def test_a_token_is_a_stage_of_its_own_and_is_asked_for_once(site: Site) -> None:
    site.registry.auth = "bearer"
    assert (await site.gatekeeper.ask(site.image("app", SIGNER))).admitted
    assert site.sample("countersign_stage_duration_seconds_count", stage="token") == 1
    assert site.sample("countersign_stage_duration_seconds_count", stage="credentials") == 0


async def test_hosts_that_hold_requests_back_are_counted(site: Site) -> None:
    key = site.image("app", SIGNER)
    site.registry.fault("/v2/app/*", status(429, headers={"Retry-After": "30"}))
    assert site.sample("countersign_registry_hosts", state="limited") == 0
    await site.gatekeeper.ask(key)
    assert site.sample("countersign_registry_hosts", state="limited") == 1
    assert site.sample("countersign_registry_hosts", state="down") == 0
    assert site.sample("countersign_registry_requests", state="under_way") == 0
    assert site.sample("countersign_registry_requests", state="waiting") == 0


async def test_answers_of_a_registry_are_counted_by_status(site: Site) -> None:
    key = site.image("app", SIGNER)
    site.registry.fault("/v2/app/manifests/*", status(503), times=1)
    site.registry.fault("/v2/app/referrers/*", status(799), times=1)
    await site.gatekeeper.ask(key)
    assert site.sample("ratify_registry_request_count_total", status_code="503") == 1
    assert site.sample("ratify_registry_request_count_total", status_code="other") == 1


# -- the event of a decision ------------------------------------------------------------------------------------------


async def test_a_decision_is_one_event_with_all_that_an_auditor_asks(site: Site, events: list[Any]) -> None:
    key = site.image("app", SIGNER)
    await site.gatekeeper.ask(key, headers={"traceparent": PARENT})
    await site.gatekeeper.ask(key)
    (event,) = decisions(events)
    duration, artifact = event.pop("duration_ms"), event.pop("artifact")
    assert duration > 0
    assert re.fullmatch("sha256:[0-9a-f]{64}", artifact)
    assert len(event.pop("reports")) == 1
    leaf = SIGNER.certificate
    assert event == {
        "event": f"{SUBJECT} {key}",
        "log_level": "info",
        "key": key,
        "namespace": None,
        "is_success": True,
        "digest": str(site.registry.repository("app").tags["v1"]),
        "code": None,
        "errorReason": None,
        "source": "verified",
        "generation": 1,
        "verifier": "verifier-notation",
        "signer": "CN=release,O=Contoso,ST=WA,C=US",
        "issuer": "CN=root,O=Contoso,ST=WA,C=US",
        "trustPolicy": "all",
        "signedAt": None,
        "certificateNotAfter": leaf.not_valid_after_utc.isoformat(),
        "waiters": None,
        "trace-id": TRACE,
    }


async def test_a_refusal_says_who_signed_instead(site: Site, events: list[Any]) -> None:
    await site.gatekeeper.ask(site.image("app", STRANGER))
    (event,) = decisions(events)
    assert (event["is_success"], event["code"], event["issuer"]) == (
        False,
        "UNTRUSTED_ROOT",
        "CN=other,O=Contoso,ST=WA,C=US",
    )
    assert event["errorReason"]


async def test_other_spellings_say_where_their_verdict_comes_from(site: Site, events: list[Any]) -> None:
    key = site.image("app", SIGNER)
    digest = site.registry.repository("app").tags["v1"]
    await site.gatekeeper.ask(key)
    await site.gatekeeper.ask(f"[team]{key}", f"{site.registry.host}/app@{digest}")
    told = {(event["key"], event["source"], event["namespace"]) for event in decisions(events)}
    by_digest = f"{site.registry.host}/app@{digest}"
    assert told == {(key, "verified", None), (f"[team]{key}", "kept", "team"), (by_digest, "kept", None)}


async def test_every_request_that_waited_for_a_decision_is_named_in_its_event(site: Site, events: list[Any]) -> None:
    key = site.image("app", SIGNER)
    site.registry.fault("/v2/app/referrers/*", delay(0.3), times=1)
    await asyncio.gather(*(site.gatekeeper.ask(key, headers={"x-request-id": f"r{number}"}) for number in range(12)))
    (event,) = decisions(events)
    assert event["waiters"] == 12
    assert len(event["trace-ids"]) == 10
    assert event["trace-id"] == event["trace-ids"][0]
    assert set(event["trace-ids"]) < {f"r{number}" for number in range(12)}


# -- trace ids for registries -----------------------------------------------------------------------------------------


async def test_registries_are_told_no_trace_id_unless_somebody_wants_it(site: Site) -> None:
    await site.gatekeeper.ask(site.image("app", SIGNER), headers={"traceparent": PARENT, "x-request-id": "r1"})
    for request in site.registry.requests:
        assert not {"traceparent", "x-request-id"} & {name.lower() for name in request.headers}
        assert TRACE not in str(request.headers)


async def test_a_registry_is_told_the_trace_id_of_the_request_that_started_the_work(tmp_path: Path) -> None:
    async with running(tmp_path, trace_header="X-Correlation-Id") as site:
        await site.gatekeeper.ask(site.image("app", SIGNER), headers={"x-request-id": "r1"})
        assert site.told("X-Correlation-Id") == ["r1"] * 4
        pinned = site.image("other")
        await site.gatekeeper.ask(pinned, path=MUTATE_PATH, headers={"x-request-id": "r2"})
        assert site.told("X-Correlation-Id") == ["r1"] * 4 + ["r2"]


async def test_a_traceparent_has_the_form_of_w3c_and_is_left_out_when_the_id_has_not(tmp_path: Path) -> None:
    async with running(tmp_path, trace_header="traceparent") as site:
        await site.gatekeeper.ask(site.image("app", SIGNER), headers={"traceparent": PARENT})
        told = site.told("traceparent")
        assert len(told) == 4
        assert all(re.fullmatch(f"00-{TRACE}-[0-9a-f]{{16}}-00", value or "") for value in told)
        await site.gatekeeper.ask(site.image("other", SIGNER), headers={"x-request-id": "not-hex"})
        assert site.told("traceparent")[4:] == [None] * 4


async def test_the_storage_that_a_registry_redirects_to_is_not_told(tmp_path: Path) -> None:
    async with running(tmp_path, trace_header="X-Correlation-Id") as site, BlobStorageSimulator() as storage:
        site.registry.redirect_blobs_to = f"http://{storage.host}/blobs"
        await site.gatekeeper.ask(site.image("app", SIGNER), headers={"x-request-id": "r1"})
        assert site.told("X-Correlation-Id") == ["r1"] * 4
        assert storage.requests
        assert all("X-Correlation-Id" not in request.headers for request in storage.requests)


# -- the process ------------------------------------------------------------------------------------------------------


async def test_serve_shows_all_of_it_and_tells_registries_the_header_it_was_given(tmp_path: Path) -> None:
    config = tmp_path / "all.yaml"
    config.write_text(MANIFESTS.format(pem=textwrap.indent(pki.pem(ROOT.certificate).decode(), " " * 6)))
    async with RegistrySimulator() as registry:
        image = registry.push_image("app", tag="v1", content=b"app")
        push_signature(registry, "app", image, SIGNER)
        async with (
            serving(tmp_path, config, "--registry-trace-header", "X-Correlation-Id") as running,
            Gatekeeper(running.ports[0], running.certificates.client_context()) as gatekeeper,
        ):
            await running.until_ready()
            key = f"{registry.host}/app:v1"
            for _ in range(2):
                assert (await gatekeeper.ask(key, headers={"x-request-id": "r1"})).admitted == {key}
            _, page = await running.get("/metrics", port=2)
    assert [request.headers.get("X-Correlation-Id") for request in registry.requests] == ["r1"] * 4
    for line in (
        'countersign_cache_hits_total{cache="verdicts"} 1.0',
        'countersign_cache_entries{cache="objects"} 2.0',
        'countersign_stage_duration_seconds_count{stage="verify"} 1.0',
        'ratify_registry_request_count_total{status_code="200"} 4.0',
        "countersign_hosts_waited_for 0.0",
    ):
        assert line in page
    assert 'countersign_trust_anchor_not_after_seconds{provider="root",store="ca:company"}' in page


@pytest.mark.skipif(importlib.util.find_spec("opentelemetry") is not None, reason="OpenTelemetry is installed")
async def test_spans_without_opentelemetry_end_the_command_with_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    async with serving(tmp_path, tmp_path / "config", "--otel") as running:
        async with asyncio.timeout(20):
            _, errors = await running.process.communicate()
    assert running.process.returncode == 2
    assert b"countersign[otel]" in errors


# -- OpenTelemetry ----------------------------------------------------------------------------------------------------


class Spans:
    """What a collector would get."""

    def __init__(self) -> None:
        reason = "OpenTelemetry is not installed (countersign[otel])"
        trace = pytest.importorskip("opentelemetry.sdk.trace", reason=reason)
        export = pytest.importorskip("opentelemetry.sdk.trace.export", reason=reason)
        memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter", reason=reason)
        self._exporter = memory.InMemorySpanExporter()
        provider = trace.TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(export.SimpleSpanProcessor(self._exporter))
        self.tracing = Tracing(provider)

    def tree(self) -> list[str]:
        """Every span with those above it, in the order in which they ended."""
        spans = self._exporter.get_finished_spans()
        by_id = {span.context.span_id: span for span in spans}

        def path(span: Any) -> str:
            above = by_id.get(span.parent.span_id) if span.parent else None
            return f"{path(above)}/{span.name}" if above else str(span.name)

        return [path(span) for span in spans]

    def named(self, name: str) -> list[Any]:
        return [span for span in self._exporter.get_finished_spans() if span.name == name]


async def test_the_spans_of_a_cold_request_are_the_stages_below_the_callers_span(tmp_path: Path) -> None:
    spans = Spans()
    async with running(tmp_path, tracing=spans.tracing, trace_header="traceparent") as site:
        key = site.image("app", SIGNER)
        await site.gatekeeper.ask(key, headers={"traceparent": PARENT})
        inner = "verify/key/artifact"
        assert spans.tree() == [
            "verify/key/resolve",
            "verify/key/referrers",
            *(f"{inner}/fetch", f"{inner}/fetch", f"{inner}/verify", inner),
            *("verify/key/policy", "verify/key", "verify"),
        ]
        (request,) = (span for span in spans.named("verify") if "countersign.status" in span.attributes)
        assert f"{request.context.trace_id:032x}" == TRACE
        assert f"{request.parent.span_id:016x}" == "b7ad6b7169203331"
        assert spans.named("key")[0].attributes["countersign.key"] == key
        (resolve,) = spans.named("resolve")
        assert site.told("traceparent")[0] == f"00-{TRACE}-{resolve.context.span_id:016x}-01"
        assert site.sample("countersign_stage_duration_seconds_count", stage="fetch") == 2


async def test_a_warm_request_is_one_span_and_without_a_callers_trace_its_own_is_answered(tmp_path: Path) -> None:
    spans = Spans()
    async with running(tmp_path, tracing=spans.tracing) as site:
        key = site.image("app", SIGNER)
        await site.gatekeeper.ask(key)
        before = len(spans.tree())
        reply = await site.gatekeeper.ask(key)
        assert spans.tree()[before:] == ["verify"]
        span = spans.named("verify")[-1]
        assert reply.items[key]["value"]["traceID"] == f"{span.context.trace_id:032x}"


async def test_a_key_that_waits_for_anothers_work_names_its_trace_and_a_failure_its_code(tmp_path: Path) -> None:
    spans = Spans()
    async with running(tmp_path, tracing=spans.tracing) as site:
        key = site.image("app", SIGNER)
        site.registry.fault("/v2/app/referrers/*", status(403))
        site.registry.fault("/v2/app/manifests/*", delay(0.2))
        await asyncio.gather(*(site.gatekeeper.ask(key, headers={"x-request-id": name}) for name in ("r1", "r2")))
        keys = spans.named("key")
        assert [span.attributes["countersign.code"] for span in keys] == ["REGISTRY_UNAUTHORIZED"] * 2
        assert {span.attributes.get("countersign.waits_for_trace") for span in keys} in ({None, "r1"}, {None, "r2"})
        assert len(spans.named("resolve")) == 1
